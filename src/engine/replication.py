"""Mark, hold and release: beside a running ingest, through its control socket, or without.

Without an ingest the journals are opened here, under the replica's lock. Either way
the epoch is raised in the manifest before any journal learns of it, so that whatever a
crash leaves, the manifest's epoch is the highest there is.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec

from . import audit, config, control
from .errors import Error, GapError, HeldError, LockedError, StateError, UsageError
from .journal import journal_names
from .journals import Journals
from .manifest import Gap, Manifest, Rpo
from .ousting import oust
from .points import KIND_NUMBERS, Point
from .replica import Replica
from .rpo import joined_doubts
from .units import parse_time

# After an ingest was killed, its journals' locks are free as soon as the kernel has
# taken the process away.
LOCK_SECONDS = 10.0
# An ingest answers a hold when the writes in flight have ended. Later than that it hangs.
HOLD_SECONDS = 30.0
LABEL_BYTES_MAX = 255
GAPS_MAX = 2000
MANY_GAPS = "many gaps, the first of them: "


def check_label(label: str) -> str:
    """The label, when a restore point can carry it.

    Raises:
        UsageError: It is longer than 255 bytes of UTF-8, or not text.
    """
    try:
        size_bytes = len(label.encode())
    except UnicodeEncodeError:
        raise UsageError("the label is not text in UTF-8", "write it in UTF-8") from None
    if size_bytes > LABEL_BYTES_MAX or "\0" in label:
        raise UsageError(
            f"the label has {size_bytes} bytes", f"at most {LABEL_BYTES_MAX}, without NUL"
        )
    return label


def check_kind(kind: str) -> str:
    """The kind, when a restore point can be of it; else UsageError."""
    if kind not in KIND_NUMBERS:
        raise UsageError(f"{kind!r} is not a kind of restore point", "crash or app")
    return kind


def asked_for(request: dict[str, object]) -> tuple[str, str]:
    """Kind and label of a point that a request wants."""
    kind = check_kind(str(request.get("kind", "crash")))
    return kind, check_label(str(request.get("label", "")))


def mark(
    replica: Replica, kind: str = "crash", label: str = "", *, caught_up: bool = False
) -> Point:
    """A restore point of all disks at one cut, now. It is durable when this returns.

    Args:
        kind: "crash", or "app" when the caller has made the application quiet.
        caught_up: The source has sent again whatever may have been missing: this
            point ends the gap.

    Raises:
        GapError: Something may be missing, and caught_up was not said.
        StateError: The replica is not Ready.
        HeldError: Replication is on hold.
        LockedError: An operation on the replica is going on.
    """
    check_label(label)
    check_kind(kind)
    try:
        command = "gap-close" if caught_up else "mark"
        return point_of(control.ask(replica.control_path, command, kind=kind, label=label))
    except control.NotRunningError:
        pass
    with to_mark(replica, caught_up=caught_up) as journals:
        point = journals.mark(kind, label)
        if caught_up:
            close_gap(replica, point.time)
            replica.save()
        return point


@contextlib.contextmanager
def to_mark(replica: Replica, *, caught_up: bool = False) -> Iterator[Journals]:
    """The journals of a replica without an ingest, for one restore point. Locks it.

    Raises:
        As mark.
    """
    with replica.locked():
        replica.need_state("Ready", doing="mark a restore point of {}")
        with replica.journals(writable=True, wait_seconds=LOCK_SECONDS) as journals:
            reconcile(replica, journals.held)
            if replica.manifest.held:
                raise HeldError(
                    f"replication of {replica.name} is on hold: nothing new can be marked",
                    "rollpoint release lets it go on",
                )
            note_unclean_end(replica, journals)
            if needs_resync(replica) and not caught_up:
                replica.save()
                raise GapError(*NOT_CAUGHT_UP)
            # First the manifest: where it cannot be saved, no point may have been made.
            replica.manifest.next_point_id = journals.next_point_id + 1
            replica.save()
            yield journals


def hold(replica: Replica, reason: str = "") -> int:
    """Stop and fence replication of all disks; returns the new epoch.

    When this returns, no write is acknowledged or applied by anybody who was there
    before, until a release; everything acknowledged lies at or before the newest
    restore point. On hold already, it returns the present epoch.

    Raises:
        StateError: The replica is not Ready.
        LockedError: An operation on the replica is going on.
    """
    with replica.locked():
        replica.need_state("Ready", doing="hold {}")
        _require_journals(replica)
        with recorded(replica, "hold", reason), _held_outside(replica):
            return hold_locked(replica)


@contextlib.contextmanager
def _held_outside(replica: Replica) -> Iterator[None]:
    """An external replicator holds first, and goes on where the rest fails."""
    if config.load(replica.directory).hold is None:
        yield
        return
    replica.save()  # the intent
    try:
        hold_outside(replica)
        yield
    except BaseException:
        with contextlib.suppress(Error):
            release_outside(replica)
        raise


def hold_outside(replica: Replica) -> str:
    """Have an external replicator hold; returns what it said, "" where there is none.

    Raises:
        StorageError, UsageError: As holds.hold.
    """
    table = config.load(replica.directory).hold
    if table is None:
        return ""
    from . import holds  # HTTP, which most replicas do without

    return f"; the replicator: {holds.hold(table)}"


def release_outside(replica: Replica) -> str:
    """Have an external replicator go on; returns what it said, "" where there is none.

    Raises:
        StorageError, UsageError: As holds.release.
    """
    table = config.load(replica.directory).hold
    if table is None:
        return ""
    from . import holds

    return f"; the replicator: {holds.release(table)}"


@contextlib.contextmanager
def recorded(replica: Replica, kind: str, reason: str = "") -> Iterator[None]:
    """Intent and outcome of what is no operation of the manifest. Locked.

    Whoever is inside saves before the first effect: that makes the intent durable.
    """
    id = str(uuid.uuid4())
    audit.begin_act(replica.manifest, kind, id, reason)
    try:
        yield
    except BaseException as error:
        audit.end_act(replica.manifest, id, "failed", str(getattr(error, "message", error)))
        with contextlib.suppress(Error):
            replica.save(sync_audit=True)
        raise
    audit.end_act(replica.manifest, id)
    replica.save(sync_audit=True)


def _require_journals(replica: Replica) -> None:
    """Without an ingest, see that the journals open before anything is changed for a hold."""
    try:
        control.ask(replica.control_path, "status", control.STATUS_SECONDS)
    except (control.NotRunningError, control.NotAnsweringError):
        replica.journals(with_bases=True).close()


def _require_writable(replica: Replica) -> None:
    """Without an ingest, see that the journals can be taken before a release is recorded."""
    try:
        control.ask(replica.control_path, "status", control.STATUS_SECONDS)
    except control.NotRunningError:
        replica.journals(writable=True, wait_seconds=LOCK_SECONDS).close()
    except control.NotAnsweringError:
        pass  # the release says so


def hold_locked(replica: Replica) -> int:
    """As hold, for an operation that has the lock, has looked at the state, and saves next."""
    manifest = replica.manifest
    if manifest.held and _held_on_disk(replica):
        return manifest.epoch
    manifest.epoch += 1
    replica.save()
    try:
        answer = control.ask(replica.control_path, "hold", HOLD_SECONDS, epoch=manifest.epoch)
    except (control.NotRunningError, control.NotAnsweringError):
        _hold_without_ingest(replica)
    else:
        take_notes(replica, answer)
    manifest.held = True
    return manifest.epoch


def _hold_without_ingest(replica: Replica) -> None:
    """Where none answers. One on another host reads the epoch, and lets go of the journals;
    one of this host that has not done so by then is killed, which leaves a gap.
    """
    try:
        opened = replica.journals(writable=True, wait_seconds=LOCK_SECONDS)
    except LockedError as error:
        _oust(replica, error)
        opened = replica.journals(writable=True, wait_seconds=LOCK_SECONDS)
    with opened as journals:
        note_unclean_end(replica, journals)
        journals.fence(replica.manifest.epoch, consistent=not needs_resync(replica))
        replica.manifest.next_point_id = journals.next_point_id


def _oust(replica: Replica, refused: LockedError) -> None:
    """End the ingest of this host that has the journals and does not answer.

    Raises:
        LockedError: It is not on this host, or not known.
    """
    record, manifest = replica.manifest.ingest, replica.manifest
    if record is None:
        raise refused
    files = [replica.file(journal_names(disk.name).log) for disk in manifest.disks]
    who = f"the ingest begun at {record.started} (process {record.pid} on {record.host or '?'})"
    if not oust(record.pid, files):
        raise LockedError(
            f"replication of {replica.name} is not on hold: {who} has the journals, and has not "
            f"heeded epoch {manifest.epoch} in {LOCK_SECONDS:g} s",
            "it may hang, or its host be cut off from the storage: end it there, or fence that "
            "host from the storage; then ask again",
        ) from refused
    audit.note(manifest, "hold", "", f"{who} did not answer, and was killed")


def _held_on_disk(replica: Replica) -> bool:
    with replica.journals() as journals:
        return journals.all_held and journals.epoch == replica.manifest.epoch


def has_writes(replica: Replica) -> bool:
    """Whether a hold would find something to take into a first point."""
    try:
        status = control.ask(replica.control_path, "status", control.STATUS_SECONDS)
        return bool(status["at_risk"])
    except (control.NotRunningError, control.NotAnsweringError):
        with replica.journals() as journals:
            return journals.has_news


def is_held(replica: Replica) -> bool:
    """Whether the manifest or any journal says that replication is on hold."""
    if replica.manifest.held:
        return True
    with replica.journals() as journals:
        return journals.held


def release(replica: Replica, reason: str = "") -> int:
    """Let replication go on; returns the epoch. Released already, it changes nothing.

    Raises:
        StateError: The replica is not Ready.
        LockedError: An operation on the replica is going on.
    """
    with replica.locked():
        replica.need_state("Ready", doing="release {}")
        _require_writable(replica)
        with recorded(replica, "release", reason):
            replica.save()  # the intent
            epoch = release_locked(replica)
            release_outside(replica)
            return epoch


def release_locked(replica: Replica) -> int:
    """As release, for an operation that has the lock."""
    manifest = replica.manifest
    try:
        control.ask(replica.control_path, "release", epoch=manifest.epoch)
    except control.NotRunningError:
        with replica.journals(writable=True, wait_seconds=LOCK_SECONDS) as journals:
            journals.unfence(manifest.epoch)
    manifest.held = False
    replica.save()
    return manifest.epoch


def reconcile(replica: Replica, held_on_disk: bool) -> None:
    """Where a crash left the manifest behind its journals, believe the journals."""
    if replica.manifest.held != held_on_disk:
        replica.manifest.held = held_on_disk
        replica.save()


def note_unclean_end(replica: Replica, journals: Journals) -> None:
    """Record a gap when an ingest had the journals and did not close them. Locked."""
    manifest = replica.manifest
    record = manifest.ingest
    if record is None:
        journals.end_is_noted = True
        return
    if not journals.were_clean or record.error is not None:
        why = record.error or (
            f"the ingest begun at {record.started} ended without closing its journals: what it "
            "had acknowledged in its last moments, and was not flushed, may be missing"
        )
        open_gap(replica, journals.newest_time or manifest.created, why, resync=True)
    manifest.ingest = None
    replica.save()
    journals.end_is_noted = True


NOT_CAUGHT_UP = (
    "something that the source wrote may be missing: until it has sent it again, no restore "
    "point would be exact",
    "let the source copy everything again, then: rollpoint mark DIR --caught-up",
)


def needs_resync(replica: Replica) -> bool:
    """Whether a gap is open that only the source can end."""
    return any(gap.end is None and gap.resync for gap in replica.manifest.gaps)


def doubted_disks(manifest: Manifest) -> list[str]:
    """Which disks may miss something that only the source can send again."""
    for gap in manifest.gaps:
        if gap.end is None and gap.resync:
            return list(gap.disks) or [disk.name for disk in manifest.disks]
    return []


def open_gap(
    replica: Replica, start: str, cause: str, *, resync: bool = False, disks: Sequence[str] = ()
) -> None:
    """Begin a gap; one that is open goes on, and takes resync. Locked; the caller saves.

    Args:
        disks: Which may miss something; none: all.
    """
    for gap in replica.manifest.gaps:
        if gap.end is None:
            if resync and not gap.resync:
                gap.cause, gap.resync = cause, True
            gap.disks = joined_doubts(gap.disks, disks)
            return
    new = Gap(start=start, end=None, cause=cause, resync=resync, disks=sorted(disks))
    replica.manifest.gaps = bounded_gaps([*replica.manifest.gaps, new])


def bounded_gaps(gaps: Sequence[Gap]) -> list[Gap]:
    """At most GAPS_MAX of them: the oldest become one, which has the time between them, too.

    A link that comes and goes for months must not make a manifest that nothing can load.
    Moments between the joined gaps are refused then; the points there stay what they are.
    """
    surplus = len(gaps) - GAPS_MAX
    if surplus <= 0:
        return list(gaps)
    old = gaps[: surplus + 1]
    cause = old[0].cause
    if not cause.startswith(MANY_GAPS):
        cause = MANY_GAPS + cause
    joined = Gap(start=old[0].start, end=old[-1].end, cause=cause, disks=[])
    return [joined, *gaps[surplus + 1 :]]


def close_gap(replica: Replica, end: str) -> None:
    """End the open gap, if there is one, at the first point after it. Locked."""
    for gap in replica.manifest.gaps:
        if gap.end is None:
            gap.end = end if parse_time(end) > parse_time(gap.start) else gap.start


def take_notes(replica: Replica, notes: dict[str, object]) -> None:
    """Put into the manifest what an ingest could not write itself. Locked."""
    manifest = replica.manifest
    for row in cast("list[dict[str, Any]]", notes.get("gaps", [])):
        open_gap(
            replica,
            row["start"],
            row["cause"],
            resync=bool(row.get("resync")),
            disks=row.get("disks", ()),
        )
        if row["end"] is not None:
            close_gap(replica, row["end"])
    manifest.next_point_id = max(manifest.next_point_id, cast(int, notes["next_point_id"]))
    if notes.get("rpo_seconds") is not None:
        manifest.rpo = msgspec.convert(
            {
                "target_seconds": notes["rpo_seconds"],
                "missed": notes["missed"],
                "lag": notes.get("lag"),
                "disk_lags": notes.get("disk_lags", {}),
            },
            Rpo,
        )


def point_of(answer: dict[str, object]) -> Point:
    """The point that an ingest answered with."""
    try:
        return Point(
            cast(int, answer["id"]),
            parse_time(cast(str, answer["time"])),
            cast(str, answer["kind"]),
            cast(str, answer["label"]),
        )
    except KeyError as error:
        raise StateError(f"the ingest answered without {error}") from None
