"""Long-term restore points: delta disks that nobody writes any more.

When the horizon has come exactly to a point that is to be kept, what a destage writes
shows that point: it is left as it is (frozen), and a new empty delta disk goes on top of
it, below the journal. A point that expired is given up by merging the link above into the
one that showed it; the oldest go first. The first point of all is shown by the base.

While an ingest runs, both are done by the thread of it that destages, with its own
`Replica` object, one after the other: nothing may be destaged meanwhile. The replica's
lock is held for moments only (some small files are replaced), and never waited for; the
data of a merge moves without it, beside writers and readers. That is safe because all that
changes in the lower link lies in the upper one too, which nobody writes: whoever reads
through the chain finds it there first. Only when the newest link itself is merged, or a
new one comes, do the journals get another chain to read through, between two requests.
A hold ends a merge that is going on, by its `progress`; it is begun again later.

No overlay lives meanwhile: the replica is Ready, not on hold, and nothing is in progress.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from . import chains, control, viewers
from ._native import merge as native_merge
from .digests import link_digest
from .disk import OpenDisk, open_disk
from .errors import (
    DamagedError,
    Error,
    FormatError,
    LockedError,
    StateError,
    StorageError,
    on_hold,
)
from .journals import Journals
from .links import LINKS_MAX
from .manifest import Freezing, Frozen, Manifest, Merging
from .points import Point
from .replica import Replica
from .retention import kept_now
from .units import format_time, parse_time

SECOND_NS = 1_000_000_000
POINTS_MAX = LINKS_MAX - 10  # an overlay, the journal and a merge need links as well
RETRY_SECONDS = 600  # after a link could not be read or written

# called with bytes done and bytes in all; False ends it with CancelledError
Progress = Callable[[int, int], bool]


# ---- making one ----


def freeze(
    replica: Replica, journals: Journals, point: Point, progress: Progress | None = None
) -> Frozen | None:
    """Keep a point for long. Asked again, it goes on, and happens once.

    None: it is not kept, because pinned points, or some that could not be given up, have
    left no room for another link.

    Args:
        replica: Of the caller alone: no other thread may use the object.
        journals: Open with `writable_bases`, and destaged exactly to the point.
        progress: Called while the links that now stay as they are are read for their
            digests; where it ends that, the point is kept, and has none yet.

    Raises:
        LockedError: An operation on the replica is going on: ask again later.
        StateError, HeldError: The replica is not Ready, or on hold; or the journals are
            not at the point.
        Error: Nothing may be destaged (journals.targets refuses) before it was asked
            again, with success.
    """
    with replica.locked() as manifest:
        _require_ready(replica, "keep a long-term point of {}")
        chains.settle(replica.directory, manifest)
        found = manifest.long_term(point.id)
        if found is None and len(manifest.frozen) >= POINTS_MAX:
            return None
        if found is None:
            _require_at(journals, point)
            for base in journals.below.values():
                base.finish()  # nobody writes it any more
            journals.unsettled = True
            manifest.freezing = Freezing(
                point=Frozen(
                    id=point.id,
                    time=point.time,
                    kind=point.kind,
                    label=point.label,
                    links=chains.target_names(manifest),
                ),
                tops=chains.new_names(replica.directory, manifest),
            )
            replica.save()
            chains.finish_freezing(replica.directory, manifest)
        _put_bases(replica, journals, {})
    _add_digests(replica, progress)
    return found or replica.manifest.long_term(point.id)


def _require_ready(replica: Replica, doing: str) -> None:
    replica.need_state("Ready", doing=doing)
    if replica.manifest.held:
        raise on_hold(replica.name)


def _require_at(journals: Journals, point: Point) -> None:
    """What is below the journals shows the point, neither more nor less."""
    for name, native in zip(journals.names, journals.natives, strict=True):
        info, oldest = native.info(), native.points()[:1]
        if not oldest or oldest[0][0] != point.id or info["based_entry"] != info["horizon_entry"]:
            raise StateError(
                f"what is below the journal of disk {name} does not show restore point {point.id}",
                "destage to that point first",
            )


def _put_bases(replica: Replica, journals: Journals, ready: Mapping[str, OpenDisk]) -> None:
    """Let the journals read through the chains that the manifest names.

    Args:
        ready: Disk name -> the new chain, where it is open already. It is the journal's
            then.
    """
    journals.unsettled = True
    for disk, journal in zip(replica.manifest.disks, journals.open, strict=True):
        assert journal.base is not None
        if journal.base.links[0].name == disk.below:
            continue
        chain = ready.get(disk.name) or open_disk(
            replica.file(disk.below), writable=True, io=replica.directory.io
        )
        chain.keep_cid()  # its only child names it, and goes on doing so
        journal.put_base(chain).close()
    journals.unsettled = False


# ---- giving one up ----


def expire(
    replica: Replica,
    now_ns: int,
    journals: Journals | None = None,
    progress: Progress | None = None,
) -> list[int]:
    """Give up the long-term points that are older than they are kept; oldest first.

    Pinned and locked ones stay. Asked again after it was cut short, it goes on.

    Args:
        replica: Of the caller alone: no other thread may use the object.
        now_ns: The present moment, nanoseconds since 1970.
        journals: Of the ingest, which are open with `writable_bases`. None: no ingest
            runs, and the replica's lock is held until the end.
        progress: Called at least 10 times a second while data moves.

    Returns:
        The ids of the points that are gone.

    Raises:
        LockedError: An operation, or an ingest that was not named, is going on.
        StateError, HeldError: The replica is not Ready, or on hold.
        CancelledError: progress said so. The point is not listed any more.
        Error: The chains could not be changed; or, without an ingest, storage or data are
            at fault. An ingest does not end for an old link that cannot be read: that is
            put into the manifest, and tried again after RETRY_SECONDS.
    """
    gone: list[int] = []
    with _alone(replica) if journals is None else contextlib.nullcontext():
        while (merging := _next_merge(replica, now_ns, journals)) is not None:
            for journal in journals.open if journals is not None else []:
                journal.target.flush()  # where that fails, nothing can be destaged either
            try:
                _merge(replica, journals, progress)
            except (DamagedError, FormatError, StorageError) as error:
                if journals is None or journals.unsettled:
                    raise
                _note_failure(replica, now_ns, error)
                break
            gone.append(merging.point)
    _add_digests(replica, progress)
    return gone


def _note_failure(replica: Replica, now_ns: int, error: Error) -> None:
    with replica.locked() as manifest:
        if manifest.merging is not None:
            manifest.merging.error, manifest.merging.tried = error.message, format_time(now_ns)
            replica.save()


class _IngestRunsError(LockedError):
    """It merges by itself."""


@contextlib.contextmanager
def _alone(replica: Replica) -> Iterator[Manifest]:
    """The replica's lock, where no ingest runs."""
    with replica.locked() as manifest:
        with contextlib.suppress(control.NotRunningError):
            control.ask(replica.control_path, "status")
            raise _IngestRunsError(
                f"an ingest runs in {replica.path}: it does this by itself", "stop it first"
            )
        yield manifest


def _next_merge(replica: Replica, now_ns: int, journals: Journals | None) -> Merging | None:
    """The merge that is under way, or the next one, which is recorded."""
    unsettled = journals is not None and journals.unsettled
    replica.refresh()
    if not unsettled and not is_due(replica.manifest, now_ns):
        return None
    with replica.locked() as manifest:
        _require_ready(replica, "give up a long-term point of {}")
        chains.settle(replica.directory, manifest)
        if journals is not None and unsettled:
            _put_bases(replica, journals, {})
        if manifest.merging is None:
            index = _expired(manifest, now_ns)
            tested = manifest.files_of_tests()
            if index is None or tested or viewers.present(replica.directory):
                return None  # whoever looks may look at that point
            frozen = manifest.frozen[index]
            later = manifest.frozen[index + 1 :]
            manifest.merging = Merging(
                point=frozen.id,
                into=dict(frozen.links),
                away=dict(later[0].links) if later else chains.target_names(manifest),
            )
            manifest.frozen = manifest.frozen[:index] + later
            replica.save()
        return manifest.merging


def is_due(manifest: Manifest, now_ns: int) -> bool:
    """Whether `expire` has something to do; asked every second, so without the lock."""
    merging = manifest.merging
    if merging is None:
        return _expired(manifest, now_ns) is not None
    if merging.tried is None:
        return True
    return not 0 <= now_ns - parse_time(merging.tried) < RETRY_SECONDS * SECOND_NS


def _expired(manifest: Manifest, now_ns: int) -> int | None:
    """Index of the oldest long-term point that is to be given up."""
    keep_ns = round(manifest.retention.keep_seconds * SECOND_NS)
    if keep_ns <= 0:
        return None
    kept = kept_now(manifest, now_ns)
    for index, frozen in enumerate(manifest.frozen):
        if parse_time(frozen.time) + keep_ns < now_ns and frozen.id not in kept:
            return index
    return None


def _merge(replica: Replica, journals: Journals | None, progress: Progress | None) -> None:
    """Carry out the merge that the manifest tells of."""
    directory, lower = replica.directory, _Lower()
    try:
        with replica.locked() as manifest:
            _require_ready(replica, "give up a long-term point of {}")
            merging = manifest.merging
            assert merging is not None
            for disk in manifest.disks:
                path = replica.file(merging.into[disk.name])
                lower.disks[disk.name] = open_disk(path, writable=True, io=directory.io)
            chains.begin_merging(directory, manifest, lower.disks)
        for name, target in lower.disks.items():
            _move(replica.file(merging.away[name]), target, progress)
        with replica.locked() as manifest:
            _require_ready(replica, "give up a long-term point of {}")
            if manifest.merging is None or manifest.merging.cids != merging.cids:
                raise StateError(
                    f"somebody else has worked on the long-term points of {replica.name}",
                    "ask again",
                )
            if journals is not None:
                journals.unsettled = True
            chains.finish_merging(directory, manifest)
            if journals is not None:
                _put_bases(replica, journals, lower.given(manifest))
            lower.close(clean=True)
            chains.drop_merged(directory, manifest)
    finally:
        lower.close(clean=False)


class _Lower:
    """The lower links of a merge, open for writing until they are given away."""

    def __init__(self) -> None:
        self.disks: dict[str, OpenDisk] = {}

    def given(self, manifest: Manifest) -> dict[str, OpenDisk]:
        """Those that are the newest link now; whoever asks has them from here on."""
        newest = chains.target_names(manifest)
        return {
            name: self.disks.pop(name)
            for name in list(self.disks)
            if self.disks[name].links[0].name == newest[name]
        }

    def close(self, clean: bool) -> None:
        while self.disks:
            self.disks.popitem()[1].close(clean=clean)


def _move(upper: str, target: OpenDisk, progress: Progress | None) -> None:
    """Write what the upper link holds itself into the lower one; durable on return."""
    with open_disk(upper, io=target.links[0].dir.io) as source:
        total = source.size_bytes

        def tell(done: int) -> bool:
            return progress is None or progress(done, total)

        native_merge(source.reading, 1, target.writing(), progress=tell)
        target.finish()


def finish(replica: Replica) -> int | None:
    """Finish what a crash left of making or giving up a long-term point.

    Where an ingest runs, it does so itself; and while the replica is not Ready, a merge
    waits. Returns the id of the point that was given up, if there was one.

    Raises:
        LockedError: An operation is going on.
        Error: It failed again.
    """
    with replica.locked() as manifest:
        chains.settle(replica.directory, manifest)
        merging = manifest.merging
        if merging is None or manifest.state != "Ready" or manifest.held:
            return None
        try:
            with _alone(replica):
                _merge(replica, None, None)
        except _IngestRunsError:
            return None
        return merging.point


# ---- digests ----


def _add_digests(replica: Replica, progress: Progress | None) -> None:
    """Digests of frozen delta disks that have none: what fails here is tried again."""
    with contextlib.suppress(Error):
        for number, disk, name in _without_digest(replica.manifest):
            found = link_digest(replica.directory, name, progress)
            with replica.locked() as manifest:
                frozen = manifest.long_term(number)
                if frozen is not None and frozen.links[disk] == name:
                    frozen.digests[disk] = found
                    replica.save()


def _without_digest(manifest: Manifest) -> list[tuple[int, str, str]]:
    """Point, disk and link: not of bases, which take hours to read, nor of what changes."""
    changing = set() if manifest.merging is None else set(manifest.merging.into.values())
    return [
        (frozen.id, disk.name, frozen.links[disk.name])
        for frozen in manifest.frozen
        for disk in manifest.disks
        if disk.name not in frozen.digests
        and frozen.links[disk.name] != disk.base
        and frozen.links[disk.name] not in changing
    ]
