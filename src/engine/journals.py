"""The journals of all disks of a replica, opened together behind one gate.

A restore point, a hold and a release are acts on all disks at once; this is where
they happen, whether an ingest runs around them or a command without one. Each disk's
lock is held while they are open for writing, and every commit carries the epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from . import _native
from .errors import StateError
from .journal import OpenJournal, journal_names, open_journal
from .points import KIND_NUMBERS, Point, Points
from .rpo import Seen
from .side_by_side import side_by_side

if TYPE_CHECKING:
    from .disk import OpenDisk
    from .manifest import Gap, Manifest, PointNote


class Journals:
    """Open journals, in the order of the manifest's disks.

    Args:
        directory: Of the replica.
        manifest: Says which disks there are.
        writable: Takes each journal's lock and recovers its tail.
        epoch: The writer's; 0 takes what each journal has.
        with_bases: Open what is below the journals too: needed to read data and to write
            less than a grain. Without, points are listed and rolled to.
        writable_bases: And open it for writing, for destages: takes its locks.

    Raises:
        LockedError: Another process has one of them open for writing.
        StaleEpochError: A newer epoch was set since the caller's was.
        NotFoundError, FormatError, DamagedError: A file is missing or damaged.
    """

    def __init__(
        self,
        directory: _native.Dir,
        manifest: Manifest,
        *,
        writable: bool,
        epoch: int = 0,
        with_bases: bool = False,
        writable_bases: bool = False,
    ) -> None:
        self.gate = _native.Gate()
        self.names: list[str] = []
        self.on_mark: Callable[[Point], object] | None = None  # told of each point made here
        self.unsettled = False  # below may not be what the manifest says: see frozen.py
        self._open: list[OpenJournal] = []
        self._writable = writable
        try:
            for disk in manifest.disks:
                self._open.append(
                    open_journal(
                        f"{directory.path}/{journal_names(disk.name).log}",
                        f"{directory.path}/{disk.below}" if with_bases else None,
                        writable=writable,
                        writable_base=writable_bases,
                        epoch=epoch,
                        io=directory.io,
                    )
                )
                self.names.append(disk.name)
            # Before we write anything: how did the last writer leave them?
            self.were_clean = all(bool(n.info()["closed_clean"]) for n in self.natives)
            self.end_is_noted = self.were_clean  # or what it means is in the manifest
            ends = [native.points()[-1:] for native in self.natives]
            newest = [row for end in ends for row in end]
        except BaseException:
            self.close()
            raise
        # Above every id in any journal, also those that a crash left in only some.
        self.next_point_id = max([manifest.next_point_id, *(row[0] + 1 for row in newest)])
        self._newest_ns = max([0, *(row[1] for row in newest)])
        # A crash may leave a mark in some journals only; it is no point of the replica,
        # and hides what came before it from entries_since_point.
        self._uneven = len({end[0][0] if end else 0 for end in ends}) > 1
        self.barrier_ns = 0  # how long writers waited for the newest point

    @property
    def natives(self) -> list[_native.Journal]:
        """The native journals."""
        return [journal.native for journal in self._open]

    @property
    def open(self) -> list[OpenJournal]:
        """The journals with their bases."""
        return self._open

    @property
    def below(self) -> dict[str, OpenDisk]:
        """What is below each journal, by disk name, as `put_base` left it."""
        return {
            name: journal.base
            for name, journal in zip(self.names, self._open, strict=True)
            if journal.base is not None
        }

    @property
    def targets(self) -> dict[str, _native.Disk]:
        """What a destage of each journal writes, by disk name: with `writable_bases` only.

        Raises:
            StateError: They cannot be written, or a freeze stopped half way.
        """
        if self.unsettled:
            raise StateError(
                "the chains below the journals are being changed, and that stopped half way",
                "finish it first: it can be asked for again",
            )
        return {
            name: journal.target for name, journal in zip(self.names, self._open, strict=True)
        }

    @property
    def used_bytes(self) -> int:
        """What their logs use together: segments, and roots."""
        return sum(int(native.info()["used_bytes"]) for native in self.natives)

    @property
    def held(self) -> bool:
        """Whether any journal's superblock says that replication is on hold."""
        return any(bool(native.info()["held"]) for native in self.natives)

    @property
    def all_held(self) -> bool:
        """Whether every journal's superblock says so: a hold was carried through."""
        return all(bool(native.info()["held"]) for native in self.natives)

    @property
    def epoch(self) -> int:
        """The lowest epoch of any journal."""
        return min(int(native.info()["epoch"]) for native in self.natives)

    def points(
        self, gaps: Sequence[Gap] = (), where: str = "", notes: Sequence[PointNote] = ()
    ) -> Points:
        """The restore points that all of them have."""
        return Points.common([native.points() for native in self.natives], gaps, where, notes)

    def written_bytes(self) -> dict[int, int]:
        """For each point of all disks but the first, what was logged since the one before.

        In whole grains; a run of zeros counts as one, though it costs no data.
        """
        shared: set[int] | None = None
        cuts: list[dict[int, int]] = []
        for native in self.natives:
            ids = [row[0] for row in native.points()]
            grain_bytes = int(native.info()["grain_bytes"])
            counts = [entries * grain_bytes for entries in native.point_cuts()]
            cuts.append(dict(zip(ids, counts, strict=False)))
            shared = set(ids) if shared is None else shared & set(ids)
        found, before = {}, None
        for number in sorted(shared or ()):
            total = sum(counts[number] for counts in cuts)
            if before is not None:
                found[number] = total - before
            before = total
        return found

    @property
    def newest_time(self) -> str | None:
        """When the newest restore point of all disks was, None without one."""
        points = self.points()
        return points.latest.time if len(points) else None

    def mark(self, kind: str, label: str = "", time_ns: int | None = None) -> Point:
        """A restore point in all journals at one cut; durable on return.

        Args:
            time_ns: When nothing was let in any more; by default that is now.

        Raises:
            FailedError, StorageError: A journal could not take it; the point does not
                count, and that journal takes nothing more.
        """
        if time_ns is not None:
            self.gate.begin(0)
            return self._end_cut(time_ns, kind, label)
        point = self._next_point(self.point_time_ns(0), kind, label)
        self.barrier_ns, cut_ns = self.gate.cut_now(
            self.natives, point.id, point.time_ns, KIND_NUMBERS[kind], label
        )
        self._newest_ns = cut_ns
        self.commit()
        self._uneven = False
        point = point._replace(time_ns=cut_ns)
        self.tell(point)
        return point

    def mark_within(
        self, timeout_ms: int, kind: str, label: str = "", time_ns: int | None = None
    ) -> Point | None:
        """As mark; None, and nothing is marked, where a write inside takes longer than that.

        Raises:
            FailedError, StorageError: As mark.
        """
        try:
            self.gate.begin(timeout_ms)
        except StateError:
            return None
        if time_ns is None and self.gate.alarmed:
            time_ns = self.gate.alarm_time_ns  # nothing was let in since
        return self._end_cut(time_ns, kind, label)

    def _end_cut(self, time_ns: int | None, kind: str, label: str) -> Point:
        try:
            point = self.mark_begun(self.point_time_ns(time_ns), kind, label)
        finally:
            self.barrier_ns = self.gate.end()
        self.commit()
        self.tell(point)
        return point

    def point_time_ns(self, time_ns: int | None = None) -> int:
        """The time of a point that is marked now, or at that moment."""
        # Microseconds are what is printed, and what is printed can be asked for. A
        # clock that was set back must not turn the order of points around.
        wanted = time.time_ns() if time_ns is None else time_ns
        return max(wanted // 1000 * 1000, self._newest_ns // 1000 * 1000 + 1000)

    def mark_begun(self, time_ns: int, kind: str, label: str = "") -> Point:
        """A restore point in all journals at the cut that the gate has begun.

        It is durable with the next commit, after the gate's end; then `tell` is due.

        Args:
            time_ns: Of the cut; not below point_time_ns.

        Raises:
            FailedError, StorageError: As mark.
        """
        point = self._next_point(time_ns, kind, label)
        self.gate.mark(self.natives, point.id, time_ns, KIND_NUMBERS[kind], label)
        self._uneven = False
        return point

    def _next_point(self, time_ns: int, kind: str, label: str) -> Point:
        """Where it fails, some journals may have it: its id is used up, it is no point."""
        point = Point(self.next_point_id, time_ns, kind, label)
        self.next_point_id, self._newest_ns = point.id + 1, point.time_ns
        self._uneven = True
        return point

    def tell(self, point: Point) -> None:
        """A point made here is durable."""
        if self.on_mark is not None:
            self.on_mark(point)

    def seen(self) -> dict[str, Seen]:
        """Each disk by name: how many entries its log has, and whether some are news."""
        found = {}
        for name, native in zip(self.names, self.natives, strict=True):
            info = native.info()
            news = self._uneven or bool(info["entries_since_point"])
            found[name] = Seen(int(info["entry_count"]), news)
        return found

    @property
    def has_news(self) -> bool:
        """Whether anything was written after the newest restore point of all disks."""
        return self._uneven or any(
            bool(native.info()["entries_since_point"]) for native in self.natives
        )

    @property
    def has_failed(self) -> bool:
        """Whether one of them takes nothing any more."""
        return any(bool(native.info()["failed"]) for native in self.natives)

    def commit(self) -> None:
        """Make everything written so far durable; one sync for each disk that needs it.

        Raises:
            FailedError: A journal has failed, here or in a client's flush. It is final.
        """
        side_by_side(
            lambda native: native.commit(),
            [each for each in self.natives if each.pending_bytes or each.info()["failed"]],
        )

    def fence(self, epoch: int, *, consistent: bool = True) -> Point | None:
        """Stop for good: close the gate, mark what is not marked yet, raise the epoch.

        When this returns, no write with an older epoch is acknowledged or applied by
        anybody, and everything that was acknowledged lies before the newest point,
        which is returned if it was made here.

        Args:
            consistent: False marks nothing: the ends of the logs are no cut of the
                source, because a crash took something, or the source is catching up.
        """
        self.gate.hold()
        last = self.mark("crash") if consistent and self.has_news else None
        side_by_side(lambda native: native.set_epoch(epoch, True), self.natives)
        return last

    def unfence(self, epoch: int) -> None:
        """Let replication go on, with this epoch."""
        side_by_side(lambda native: native.set_epoch(epoch, False), self.natives)
        self.gate.release()

    def close_clean(self) -> None:
        """Commit, show the end of the log, mark it clean, let go of the locks.

        An unclean end that nobody noted in the manifest is not papered over: the next
        one finds it (replication.note_unclean_end).
        """
        try:
            if self.end_is_noted:
                side_by_side(lambda journal: journal.close(clean=True), self._open)
            else:
                self.commit()
        finally:
            self.close()

    def close(self) -> None:
        """Let go without committing, as a crash would. May be called twice."""
        for journal in self._open:
            journal.close(clean=False)
        self._open = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._writable:
            self.close_clean()
        else:
            self.close()
