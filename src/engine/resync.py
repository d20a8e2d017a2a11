"""After a disconnect: bring the replica's disks in step with what the source holds.

The source stands still, or is an image of one moment. All of it is compared with what the
replica's disks hold now (what both know to be zeros is not read), or only the ranges
that a dirty bitmap names; what differs is written, like any other write, through the
running ingest or, where none runs, into the journals. From the newest point to the
one that ends this is a gap; it lasts on when this does not come to its end.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, cast

from . import control, nbd_client, replication
from ._native import RUN_DATA, Disk
from .disk import open_disk
from .errors import (
    CancelledError,
    HeldError,
    StateError,
    UsageError,
    on_hold,
    system_error,
)
from .manifest import DiskEntry
from .nbd_client import NbdClient, Place
from .points import Point
from .replica import Replica
from .seed import image_format

CHUNK_BYTES = 4 << 20  # read at once
PIECE_BYTES = 64 << 10  # compared at once
GRAIN_BYTES = 4 << 10  # written at least
RANGES_BYTES_MAX = 256 << 20  # of a file of ranges
LABEL = "resynchronised"
CAUSE = "the source was being compared with the replica, and what differed written"

Range = tuple[int, int]  # start, stop
Progress = Callable[[str, int, int], bool]  # disk, bytes done, bytes in all; False stops


class Side(Protocol):
    """A disk that is compared."""

    @property
    def size_bytes(self) -> int: ...
    def run(self, offset: int, length: int) -> tuple[int, bool]: ...
    def pread(self, length: int, offset: int) -> bytes: ...


class Target(Side, Protocol):
    """A disk that is brought in step."""

    def pwrite(self, data: bytes, offset: int) -> None: ...
    def zero(self, length: int, offset: int) -> None: ...
    def flush(self) -> None: ...


class DiskResult(NamedTuple):
    """Bytes of one disk. compared: read, or known to be zeros on both sides."""

    name: str
    compared_bytes: int
    written_bytes: int
    zeroed_bytes: int


class Resync(NamedTuple):
    """What was done, and the point that ended the gap."""

    disks: list[DiskResult]
    point: Point


def resync(
    replica: Replica,
    sources: Mapping[str, str],
    ranges: Mapping[str, Sequence[Range]] | None = None,
    progress: Progress | None = None,
) -> Resync:
    """Bring disks in step with their sources, and end the gap with a restore point.

    Args:
        sources: Disk name -> an image (raw, or a VMDK by its name) or an NBD URI.
        ranges: Disk name -> what may differ, as read_ranges returns it; all by default.

    Raises:
        UsageError: A size differs, a disk is in doubt and has no source, a range lies outside.
        StateError: The replica is not Ready; or somebody else wrote to it meanwhile.
        HeldError: Replication is on hold.
        NotFoundError, StorageError, ...: A source or the ingest cannot be used. The gap stays.
    """
    entries = [replica.manifest.disk(name) for name in sources]
    if not entries:
        raise UsageError("nothing to resynchronise", "name a disk and its source: --disk NAME=FILE")
    wanted = _wanted(entries, ranges or {})
    with contextlib.ExitStack() as stack:
        opened = {
            entry.name: stack.enter_context(_open_source(sources[entry.name], entry))
            for entry in entries
        }
        job = _Job(opened, wanted, progress)
        try:
            status = control.ask(replica.control_path, "status")
        except control.NotRunningError:
            return _without_ingest(replica, job)
        return _beside_ingest(replica, job, status)


def read_ranges(path: str) -> list[Range]:
    """The ranges in a file: a JSON list of {"start", "length"}, other keys aside.

    `qemu-img map --output=json` writes such lists. All ranges count, whatever else the
    file says about them.

    Raises:
        UsageError: It is not such a list.
        NotFoundError, StorageError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(RANGES_BYTES_MAX + 1)
    except OSError as error:
        raise system_error(f"reading the ranges in {path}", error.errno or 0) from None
    hint = 'write a JSON list of {"start": BYTES, "length": BYTES}'
    if len(data) > RANGES_BYTES_MAX:
        raise UsageError(f"{path} has more than {RANGES_BYTES_MAX} bytes", hint)
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}", hint) from None
    if not isinstance(rows, list):
        raise UsageError(f"{path} is not a list", hint)
    found = []
    for row in rows:
        start, length = (
            (row.get("start"), row.get("length")) if isinstance(row, dict) else (None, None)
        )
        if type(start) is not int or type(length) is not int or start < 0 or length < 0:
            raise UsageError(f"{path} has the range {json.dumps(row)[:80]}", hint)
        found.append((start, start + length))
    return found


# ---- both ways ----


class _Job(NamedTuple):
    sources: dict[str, Side]
    ranges: dict[str, list[Range]]
    progress: Progress | None

    def run(self, name: str, target: Target) -> DiskResult:
        return bring_in_step(name, self.sources[name], target, self.ranges[name], self.progress)


def _wanted(
    entries: Sequence[DiskEntry], ranges: Mapping[str, Sequence[Range]]
) -> dict[str, list[Range]]:
    found: dict[str, list[Range]] = {}
    for entry in entries:
        size = entry.size_bytes
        for _, stop in ranges.get(entry.name, ()):
            if stop > size:
                raise UsageError(
                    f"a range of disk {entry.name} ends at {stop}, the disk has {size} bytes",
                    "the ranges are of another disk",
                )
        found[entry.name] = joined(ranges.get(entry.name, [(0, size)]), size)
    for name in ranges:
        if name not in found:
            raise UsageError(f"there are ranges of disk {name}, and no source", "name its --disk")
    return found


def joined(ranges: Sequence[Range], size_bytes: int) -> list[Range]:
    """The ranges in order, in whole grains, each byte once."""
    made: list[Range] = []
    for start, stop in sorted(ranges):
        if start == stop:
            continue
        start = start // GRAIN_BYTES * GRAIN_BYTES
        stop = min(size_bytes, -(-stop // GRAIN_BYTES) * GRAIN_BYTES)
        if made and start <= made[-1][1]:
            made[-1] = (made[-1][0], max(made[-1][1], stop))
        else:
            made.append((start, stop))
    return made


@contextlib.contextmanager
def _open_source(source: str, entry: DiskEntry) -> Iterator[Side]:
    with contextlib.ExitStack() as stack:
        side: Side
        if nbd_client.is_uri(source):
            side = stack.enter_context(NbdClient(nbd_client.parse_uri(source)))
        else:
            disk = stack.enter_context(open_disk(source, format=image_format(source)))
            side = DiskSide(disk.reading)
        if side.size_bytes != entry.size_bytes:
            raise UsageError(
                f"{source} has {side.size_bytes} bytes, disk {entry.name} has {entry.size_bytes}",
                "give the source of that disk",
            )
        yield side


class DiskSide:
    """A native disk as a side."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    @property
    def size_bytes(self) -> int:
        return self._disk.size_bytes

    def run(self, offset: int, length: int) -> tuple[int, bool]:
        found, kind = self._disk.run(offset, length)[:2]
        return found, kind != RUN_DATA

    def pread(self, length: int, offset: int) -> bytes:
        return self._disk.pread(length, offset)

    def pwrite(self, data: bytes, offset: int) -> None:
        self._disk.pwrite(data, offset)

    def zero(self, length: int, offset: int) -> None:
        self._disk.zero(length, offset)

    def flush(self) -> None:
        self._disk.flush()


def _need_sources(job: _Job, doubted: Sequence[str]) -> None:
    missing = [name for name in doubted if name not in job.sources]
    if missing:
        raise UsageError(
            f"what disk {', '.join(missing)} holds is in doubt, too",
            "give each of these disks a source: without, no point would be exact",
        )


def _without_ingest(replica: Replica, job: _Job) -> Resync:
    with replica.locked():
        replica.need_state("Ready", doing="resynchronise {}")
        with replica.journals(
            writable=True, with_bases=True, wait_seconds=replication.LOCK_SECONDS
        ) as journals:
            replication.reconcile(replica, journals.held)
            if replica.manifest.held:
                raise on_hold(replica.name)
            replication.note_unclean_end(replica, journals)
            newest = journals.newest_time
            _need_sources(job, replication.doubted_disks(replica.manifest))
            if newest is not None and journals.has_news and not replication.needs_resync(replica):
                newest = journals.mark("crash").time
            replication.open_gap(
                replica, newest or replica.manifest.created, CAUSE, resync=True,
                disks=list(job.sources),
            )  # fmt: skip
            replica.save()
            done = [
                job.run(name, DiskSide(native.disk()))
                for name, native in zip(journals.names, journals.natives, strict=True)
                if name in job.sources
            ]
            replica.manifest.next_point_id = journals.next_point_id + 1
            replica.save()
            point = journals.mark("crash", LABEL)
            replication.close_gap(replica, point.time)
            replica.save()
    return Resync(done, point)


def _beside_ingest(replica: Replica, job: _Job, status: Mapping[str, object]) -> Resync:
    if status["state"] == "held":
        raise on_hold(replica.name)
    replica.refresh()
    ingest = replica.manifest.ingest
    if ingest is None:
        raise StateError(f"the ingest of {replica.name} is ending", "try again")
    gap = cast("Mapping[str, object] | None", status["gap"])
    if gap is not None and gap["resync"]:
        names = [disk.name for disk in replica.manifest.disks]
        _need_sources(job, cast("list[str]", gap["disks"]) or names)
    elif status["at_risk"]:
        control.ask(replica.control_path, "mark", kind="crash", label="")
    control.ask(replica.control_path, "gap-open", cause=CAUSE, disks=list(job.sources))
    before, own, done = _changes(replica), 0, []
    for name in job.sources:
        with NbdClient(Place(name, ingest.socket)) as target:
            done.append(job.run(name, target))
            own += target.changes
    if _changes(replica) != before + own:
        raise StateError(
            f"somebody else wrote to {replica.name} while its disks were compared",
            "keep the source from writing, and do it again: the gap lasts until then",
        )
    answer = control.ask(replica.control_path, "gap-close", kind="crash", label=LABEL)
    return Resync(done, replication.point_of(answer))


def _changes(replica: Replica) -> int:
    """How many requests to change something the running ingest has got."""
    counts = control.ask(replica.control_path, "status")["exports"]
    if not isinstance(counts, dict):
        raise HeldError(f"replication of {replica.name} was put on hold", "release, and try again")
    return sum(int(counts[key]) for key in ("writes", "trims", "zeroes"))


# ---- one disk ----


def bring_in_step(
    name: str,
    source: Side,
    target: Target,
    ranges: Sequence[Range],
    progress: Progress | None = None,
) -> DiskResult:
    """Write into target what differs from source in these ranges; durable on return."""
    total = sum(stop - start for start, stop in ranges)
    compared = written = zeroed = 0
    for start, stop in ranges:
        at = start
        while at < stop:
            length, data, there = _look(source, target, at, stop - at)
            for begin, end in _differences(data, there):
                if data is None or not any_data(data[begin:end]):
                    target.zero(end - begin, at + begin)
                    zeroed += end - begin
                else:
                    target.pwrite(data[begin:end], at + begin)
                    written += end - begin
            at += length
            compared += length
            if progress is not None and not progress(name, compared, total):
                raise CancelledError(
                    f"resynchronising disk {name} was stopped", "the gap lasts: do it again"
                )
    target.flush()
    return DiskResult(name, compared, written, zeroed)


def _look(
    source: Side, target: Side, at: int, most: int
) -> tuple[int, bytes | None, bytes | None]:
    """What both hold from there on: how many bytes, and them; None where all are zeros."""
    length, source_zeros = source.run(at, most)
    length, target_zeros = target.run(at, length)
    if source_zeros and target_zeros:
        return length, None, None
    length = min(length, CHUNK_BYTES)
    data = None if source_zeros else source.pread(length, at)
    there = None if target_zeros else target.pread(length, at)
    return length, data, there


def _differences(a: bytes | None, b: bytes | None) -> Iterator[Range]:
    """Runs of grains that differ; None is zeros."""
    known = a if a is not None else b
    if known is None or a == b:
        return
    start: int | None = None
    for piece in range(0, len(known), PIECE_BYTES):
        stop = min(piece + PIECE_BYTES, len(known))
        if not _differ(a, b, piece, stop):
            if start is not None:
                yield start, piece
            start = None
            continue
        for grain in range(piece, stop, GRAIN_BYTES):
            differs = _differ(a, b, grain, min(grain + GRAIN_BYTES, stop))
            if differs and start is None:
                start = grain
            elif not differs and start is not None:
                yield start, grain
                start = None
    if start is not None:
        yield start, len(known)


def _differ(a: bytes | None, b: bytes | None, start: int, stop: int) -> bool:
    if a is None or b is None:
        known = b if a is None else a
        assert known is not None
        return any_data(known[start:stop])
    return a[start:stop] != b[start:stop]


def any_data(data: bytes) -> bool:
    """Whether a byte of it is not zero."""
    return data.count(0) != len(data)
