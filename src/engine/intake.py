"""What an ingest has in hand: open journals, their exports, and how late it is.

Held, it has no journals and no exports, and sends clients away. One thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

from . import _native, replication
from .errors import Error, HeldError, LockedError, StaleEpochError, StateError
from .rpo import RpoRecord

if TYPE_CHECKING:
    from .journals import Journals
    from .points import Point
    from .replica import Replica

STOP_MS = 5000  # for requests in flight when the exports end


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
        self.record = RpoRecord(rpo_seconds, [disk.name for disk in replica.manifest.disks])
        self.journals: Journals | None = None  # None: held
        self.server: _native.NbdServer | None = None
        self.listener: socket.socket | None = None
        self.epoch = 0
        self.due = 0.0  # the next point, if there is news by then; monotonic
        self.failure: Error | None = None  # ends the ingest once the client has been told

    def take_journals(self) -> Journals:
        """Open them for writing, with the manifest's epoch. Locked."""
        self.journals = journals = self.replica.journals(writable=True, with_bases=True)
        self.epoch = self.replica.manifest.epoch
        points = journals.points()
        self.record.start(points.latest if len(points) else None, journals.seen())
        return journals

    def note_gaps(self) -> None:
        """From the newest point to our first one nothing is known: a gap, if there is one."""
        replica, newest = self.replica, self.record.newest
        replication.note_unclean_end(
            replica, self.need_running().were_clean, newest.time if newest else None
        )
        if newest is not None:
            replication.open_gap(
                replica, newest.time, "no ingest ran: the source may have written on"
            )
        for gap in replica.manifest.gaps:
            if gap.end is None:
                self.record.gap = {
                    "start": gap.start,
                    "end": None,
                    "cause": gap.cause,
                    "resync": gap.resync,
                    "disks": gap.disks,
                }
                self.record.catching_up = gap.resync

    def need_running(self) -> Journals:
        """The journals.

        Raises:
            HeldError: There are none: replication is on hold.
        """
        if self.journals is None:
            raise HeldError(
                f"replication of {self.replica.name} is on hold",
                "rollpoint release lets it go on",
            )
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
        self._lost, self._alarms = {}, journals.gate.alarms
        journals.gate.watch(not self._ignore_lost)
        server.start()
        self.server = server

    def stop_serving(self) -> None:
        """End the exports; requests in flight may end before."""
        if self.server is not None:
            if self.journals is not None:
                self.journals.gate.watch(False)  # nobody is to wait in it any more
            self.server.stop(STOP_MS)
            self._note_losses()
            self.server = None  # it keeps the journals, and so their locks

    def heed_losses(self) -> None:
        """Where a writer left without a word, mark what was there, and begin a gap.

        It may write on elsewhere, and what it wrote may never come. The gate is closed
        since the loss: a point now has what was acknowledged before, and nothing of
        what the source may have written to other disks since.
        """
        if self._has_losses:
            self.mark_if_news()
            self._note_losses()
            self.need_running().gate.heed()

    @property
    def _has_losses(self) -> bool:
        """Whether there were some that are not noted yet."""
        if self._ignore_lost or self.journals is None or self.server is None:
            return False
        return self.journals.gate.alarms != self._alarms

    def _note_losses(self) -> None:
        """Begin the gap of losses that are not noted yet."""
        if not self._has_losses:
            return
        assert self.server is not None
        self._alarms, lost = self.need_running().gate.alarms, self.server.lost()
        disks = [name for name, count in lost.items() if count != self._lost.get(name, 0)]
        self._lost = lost
        which = f"disk {', '.join(disks)}" if disks else "a disk"
        self.record.begin_gap(
            f"the source's connection to {which} was lost: it may have written on",
            resync=True,
            disks=disks,
        )

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
        self.heed_losses()
        self.look()
        self.journals.commit()
        if self.record.is_due:
            with contextlib.suppress(LockedError), self.replica.locked():
                self.write_notes()
                self.replica.save()

    def mark(self, kind: str, label: str) -> Point:
        """A restore point, now."""
        journals, begun = self.need_running(), time.monotonic()
        point = journals.mark(kind, label)
        self.record.marked(point, begun, journals.seen(), journals.barrier_ns)
        return point

    def mark_if_news(self) -> None:
        """A restore point if there is something for it, and it would be exact."""
        # Where a writer was just lost, this is the point of heed_losses.
        if not self.record.catching_up and self.has_news:
            self.mark("crash", "")

    def write_notes(self) -> None:
        """Put into the manifest what happened. Locked; the caller saves."""
        replication.take_notes(self.replica, self.record.notes())
        self.record.noted()

    # ---- hold and release ----

    def hold(self, epoch: int) -> None:
        """Fence: the last point, journals closed with that epoch. The lock is with who asks."""
        if epoch < self.epoch:
            raise StaleEpochError(f"epoch {epoch} is older than {self.epoch}, which is set")
        journals, begun = self.journals or self._reopen(epoch), time.monotonic()
        try:
            journals.gate.hold()
            self.heed_losses()
            last = journals.fence(epoch, consistent=not self.record.catching_up)
            if last is not None:
                self.record.marked(last, begun, journals.seen())
            self.stop_serving()
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
            self.heed_losses()
            self.stop_serving()
            self.mark_if_news()
            self.journals.close_clean()
            self.journals = None

    def close(self) -> None:
        """Let go as a crash would."""
        self.stop_serving()
        if self.journals is not None:
            self.journals.close()
            self.journals = None
