"""What an ingest has in hand: open journals, their exports, and how late it is.

Held, it has no journals and no exports, and sends clients away. One thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from . import _native, replication
from .errors import (
    Error,
    FailedError,
    LockedError,
    StaleEpochError,
    StateError,
    StorageError,
    on_hold,
)
from .retaining import Retainer
from .rpo import RpoRecord

if TYPE_CHECKING:
    from .journals import Journals
    from .points import Point
    from .replica import Replica

STOP_MS = 5000  # for requests in flight when the exports end
CUT_MS = 250  # for writers to leave the gate, where they may be waiting for room
FULL = "the journals were full: writes were refused, and the source may have lost them"


class Intake:
    """Takes journals, serves them, marks them, fences them.

    Args:
        replica: Whose.
        rpo_seconds: Between restore points while there are writes.
        ignore_lost: Somebody else tells when the source's connections are lost.
    """

    def __init__(
        self, replica: Replica, rpo_seconds: float, *, ignore_lost: bool = False
    ) -> None:
        self.replica = replica
        self.rpo_seconds = rpo_seconds
        self._ignore_lost = ignore_lost
        self._alarms = 0  # that were heeded, of the gate's
        self._lost: dict[str, int] = {}  # connections, as the server last told
        self._refused: dict[str, int] = {}  # writes, likewise
        self.record = RpoRecord(rpo_seconds, [disk.name for disk in replica.manifest.disks])
        self.retainer = Retainer(replica)
        self.journals: Journals | None = None  # None: held
        self.server: _native.NbdServer | None = None
        self.listener: socket.socket | None = None
        self.epoch = 0
        self.due = 0.0  # the next point, if there is news by then; monotonic
        self.failure: Error | None = None  # ends the ingest once the client has been told
        self.warn: Callable[[str], object] = lambda text: None  # what retention warns of

    def take_journals(self) -> Journals:
        """Open them for writing, with the manifest's epoch. Locked."""
        self.journals = journals = self.replica.journals(
            writable=True, with_bases=True, writable_bases=True
        )
        self.epoch = self.replica.manifest.epoch
        points = journals.points()
        self.record.start(points.latest if len(points) else None, journals.seen())
        return journals

    def note_gaps(self) -> None:
        """From the newest point to our first one nothing is known: a gap, if there is one."""
        replica, newest = self.replica, self.record.newest
        replication.note_unclean_end(replica, self.need_running())
        if newest is not None:
            replication.open_gap(
                replica, newest.time, "no ingest ran: the source may have written on"
            )
        self._take_gap()

    def _take_gap(self) -> None:
        """Believe the manifest about the open gap: a failback ends one, or begins another."""
        gap = next((gap for gap in self.replica.manifest.gaps if gap.end is None), None)
        self.record.gap = None if gap is None else msgspec.to_builtins(gap)
        self.record.catching_up = gap is not None and gap.resync

    def need_running(self) -> Journals:
        """The journals.

        Raises:
            HeldError: There are none: replication is on hold.
        """
        if self.journals is None:
            raise on_hold(self.replica.name)
        return self.journals

    # ---- exports ----

    def serve(self) -> None:
        """Export every disk on a copy of the listening socket: the server closes its own."""
        assert self.listener is not None
        journals = self.need_running()
        server = _native.NbdServer()
        for name, journal in zip(journals.names, journals.natives, strict=True):
            server.add(name, journal.disk(), gate=journals.gate)
        server.listen(os.dup(self.listener.fileno()))
        self._lost, self._refused, self._alarms = {}, {}, journals.gate.alarms
        journals.gate.watch(True)
        server.start()
        self.server = server
        self.retainer.start(journals)

    def stop_serving(self) -> None:
        """End the exports; requests in flight may end before."""
        self.retainer.stop()  # nothing is refused from here on
        if self.server is not None:
            if self.journals is not None:
                self.journals.gate.watch(False)  # nobody is to wait in it any more,
                self.journals.gate.end()  # nor for a cut that is not carried through
            self.server.stop(STOP_MS)
            self._note_alarms()
            self.server = None  # it keeps the journals, and so their locks

    def heed_alarms(self) -> None:
        """Where a writer left without a word, or was refused, mark what was there: then a gap.

        It may write on elsewhere, and what it wrote may never come. The gate is closed
        since the alarm: a point now has what was acknowledged before, and nothing of
        what the source may have written to other disks since.
        """
        if not self._has_alarms:
            return
        gate = self.need_running().gate
        if gate.alarmed:
            self._mark_if_news(gate.alarm_time_ns)
        self._note_alarms()
        gate.heed()

    @property
    def _has_alarms(self) -> bool:
        """Whether there were some that are not noted yet."""
        if self.journals is None or self.server is None:
            return False
        return self.journals.gate.alarms != self._alarms

    @property
    def has_refusals(self) -> bool:
        """Whether a write was refused, the journals being full, that is not noted yet."""
        return self.server is not None and bool(_grown(self._refused, self.server.refused()))

    def _note_alarms(self) -> None:
        """Begin the gap of alarms that are not noted yet."""
        if not self._has_alarms:
            return
        assert self.server is not None
        self._alarms = self.need_running().gate.alarms
        lost, refused = self.server.lost(), self.server.refused()
        left, full = _grown(self._lost, lost), _grown(self._refused, refused)
        self._lost, self._refused = lost, refused
        if left and not self._ignore_lost:
            self.record.begin_gap(
                f"the source's connection to disk {', '.join(left)} was lost: it may have "
                "written on",
                resync=True,
                disks=left,
            )
        if full:
            self.record.begin_gap(FULL, resync=True, disks=full)

    def refuse_clients(self) -> None:
        """On hold there are no exports: who connects is sent away, and may come again."""
        assert self.listener is not None
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                connection.close()

    # ---- commits and restore points ----

    @property
    def has_news(self) -> bool:
        """Whether something is newer than the newest point."""
        return self.journals is not None and self.journals.has_news

    def look(self) -> None:
        """See which disks have news."""
        if self.journals is not None:
            now = time.monotonic()  # before the look, not after: see rpo.py
            self.record.look(self.journals.seen(), now)

    def commit(self) -> None:
        """Make durable what was written, and tell the manifest of gaps when it is free."""
        if self.journals is None:
            self.refuse_clients()
            return
        self.heed_alarms()
        self.heed_retention()
        self.look()
        self.journals.commit()
        if self.record.is_due:
            with contextlib.suppress(LockedError), self.replica.locked():
                self.write_notes()
                self.replica.save()

    def mark(self, kind: str, label: str, time_ns: int | None = None) -> Point:
        """A restore point, now; or as of that moment, since when nothing was let in."""
        journals, begun = self.need_running(), time.monotonic()
        if self.retainer.is_limited:
            point = self._mark_within(journals, kind, label, time_ns)
        else:
            point = journals.mark(kind, label, time_ns)
        self.record.marked(point, begun, journals.seen(), journals.barrier_ns)
        return point

    def _mark_within(
        self, journals: Journals, kind: str, label: str, time_ns: int | None
    ) -> Point:
        """A writer that waits for room is inside the gate: the loop must not wait for it."""
        point = journals.mark_within(CUT_MS, kind, label, time_ns)
        if point is None:
            with self.retainer.lending():
                point = journals.mark_within(CUT_MS, kind, label, time_ns)
        if point is None:
            raise StorageError(
                "the journals are full, or a write takes long: no restore point was marked",
                "ask again, or: rollpoint replica set --journal-limit",
            )
        return point

    def mark_if_news(self) -> None:
        """A restore point if there is something for it, and it would be exact."""
        self.heed_alarms()
        self._mark_if_news()

    def _mark_if_news(self, time_ns: int | None = None) -> None:
        if self.record.catching_up or not self.has_news:
            return
        try:
            self.mark("crash", "", time_ns)
        except StorageError as error:
            if self.has_failed(error):
                raise  # otherwise the journals are full: a point was missed

    def has_failed(self, error: Error) -> bool:
        """Whether a mark that ended so ends the ingest: all but full journals do."""
        full = isinstance(error, StorageError) and not isinstance(error, FailedError)
        return not full or self.need_running().has_failed

    def heed_retention(self) -> None:
        """Tell its warnings, and mark a point where only that lets older ones go.

        Raises:
            Error: Retention failed: that ends the ingest.
        """
        for warning in self.retainer.news():
            self.warn(warning)
        if self.retainer.wants_point:
            self.mark_if_news()

    def write_notes(self) -> None:
        """Put into the manifest what happened. Locked; the caller saves."""
        replication.take_notes(self.replica, self.record.notes())
        self.record.noted()

    # ---- hold and release ----

    def hold(self, epoch: int, *, told: bool = True) -> None:
        """Fence: the last point, journals closed with that epoch. The lock is with who asks.

        Args:
            told: By somebody who takes the notes over. Otherwise a gap that the manifest
                lacks is told by journals that were not closed clean.
        """
        if epoch < self.epoch:
            raise StaleEpochError(f"epoch {epoch} is older than {self.epoch}, which is set")
        journals = self.journals or self._reopen(epoch)
        self.retainer.stop()  # who waits for room keeps the gate open
        begun = time.monotonic()
        try:
            journals.gate.hold()
            self.heed_alarms()
            last = journals.fence(epoch, consistent=not self.record.catching_up)
            if last is not None:
                self.record.marked(last, begun, journals.seen())
            self.stop_serving()
            if not told and self.record.has_gaps_to_note:
                journals.end_is_noted = False
            journals.close_clean()
        except Error as error:
            self.failure = error
            raise
        self.journals = None
        self.epoch = epoch

    def release(self, epoch: int) -> None:
        """Take the journals again and serve. The lock is with who asks."""
        if self.journals is not None:
            return
        journals = self._reopen(epoch)
        self._take_gap()
        try:
            journals.unfence(epoch)
            self.serve()
        except Error:
            journals.close()
            self.journals = None
            raise
        self.due = time.monotonic() + self.rpo_seconds
        self.record.begin_gap("replication was on hold")

    def _reopen(self, epoch: int) -> Journals:
        """Take the journals again, with a fresh manifest."""
        self.replica.refresh()
        if self.replica.manifest.epoch != epoch:
            raise StateError(
                f"the manifest has epoch {self.replica.manifest.epoch}, not {epoch}",
                "ask again",
            )
        return self.take_journals()

    # ---- the end ----

    def close_clean(self) -> None:
        """Drain, a last point, clean journals."""
        if self.journals is not None:
            self.retainer.stop()  # takes a while: losses of that while are heeded next
            self.heed_alarms()
            self.stop_serving()  # notes what was lost meanwhile
            self.mark_if_news()
            self.journals.close_clean()
            self.journals = None

    def close(self) -> None:
        """Let go as a crash would."""
        self.stop_serving()
        if self.journals is not None:
            self.journals.close()
            self.journals = None


def _grown(before: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    """The disks whose counter is not what it was; none was told before: 0."""
    return [name for name, count in now.items() if count != before.get(name, 0)]
