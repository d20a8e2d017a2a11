"""Replication's near end: NBD exports that a source writes to, and restore points.

One thread runs this loop; the exports run on threads of the native server. Every
100 ms what was written becomes durable (a group commit); every RPO interval in which
there were writes ends with a restore point of all disks at one cut. The control socket
(control.py) takes, one JSON document a line:

  status                    what goes on
  mark kind label           a restore point now -> {"id", "time", "kind", "label"}
  hold epoch                fence: last point, journals closed with that epoch, held
  release epoch             open them again with that epoch
  gap-open cause            the source misses writes: no restore points until it says
  gap-close                 that it has caught up -> the first restore point after
  stop                      end in order; the caller has the replica's lock

`hold`, `release` and `stop` are asked by who has the replica's lock and writes the
manifest; what this process has to put there meanwhile goes along with the answer.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from typing import TYPE_CHECKING, cast

from . import _native, control, replication
from .errors import (
    Error,
    GapError,
    HeldError,
    LockedError,
    StaleEpochError,
    StateError,
    UsageError,
)
from .manifest import IngestRecord, Rpo
from .points import Point, now_text
from .replica import Replica
from .rpo import RpoRecord

if TYPE_CHECKING:
    from .journals import Journals

COMMIT_SECONDS = 0.1
RPO_SECONDS = 2.0
RPO_SECONDS_MIN = 0.1
STOP_MS = 5000  # for requests in flight when the exports end
LOCK_SECONDS = 5.0


class Ingest:
    """Serves the disks of a replica until it is stopped.

    Args:
        replica: Ready and not on hold.
        socket_path: Of the Unix socket (0600) whose exports are named like the disks.
        rpo_seconds: Between restore points while there are writes; at least 0.1.

    Raises (start):
        StateError, HeldError: The replica is not Ready, or on hold.
        LockedError: Another ingest or an operation has it.
    """

    def __init__(
        self, replica: Replica, socket_path: str, rpo_seconds: float = RPO_SECONDS
    ) -> None:
        if rpo_seconds < RPO_SECONDS_MIN:
            raise UsageError(
                f"a restore point every {rpo_seconds:g} s is too often",
                f"take at least {RPO_SECONDS_MIN:g} s",
            )
        self._replica = replica
        self._socket_path = os.path.abspath(socket_path)
        self._rpo_seconds = rpo_seconds
        self._selector = selectors.DefaultSelector()
        self._wake_near, self._wake_far = socket.socketpair()
        self._wake_near.setblocking(False)
        self._wake_far.setblocking(False)
        self._selector.register(self._wake_near, selectors.EVENT_READ, None)
        self._stopping = False
        self._failure: Error | None = None  # ends run() once the client has been told
        self._told_to_stop = False  # by who has the lock and writes the manifest
        self._control: control.ControlServer | None = None
        self._listener: socket.socket | None = None
        self._server: _native.NbdServer | None = None
        self._journals: Journals | None = None  # None: held
        self._epoch = 0
        self._due = 0.0
        self._record = RpoRecord(rpo_seconds)

    # ---- its life ----

    def start(self) -> None:
        """Take the journals, listen, and tell the manifest that we run."""
        replica = self._replica
        try:
            with replica.locked(LOCK_SECONDS) as manifest:
                replica.need_state("Ready", doing="ingest into {}")
                self._take_journals()
                replication.reconcile(replica, self._need_running().held)
                if manifest.held:
                    raise HeldError(
                        f"replication of {replica.name} is on hold",
                        "rollpoint release lets it go on",
                    )
                self._listener = control.listen(self._socket_path)
                self._control = control.ControlServer(
                    replica.control_path, self._selector, self._answer
                )
                self._note_gaps()
                missed = manifest.rpo.missed if manifest.rpo else 0
                self._record.missed = missed
                manifest.rpo = Rpo(target_seconds=self._rpo_seconds, missed=missed)
                manifest.ingest = IngestRecord(
                    pid=os.getpid(),
                    socket=self._socket_path,
                    started=now_text(),
                    rpo_seconds=self._rpo_seconds,
                )
                replica.save()
                self._serve()
        except BaseException:
            self._let_go()
            raise

    def run(self) -> None:
        """Serve until stop(), a signal's handler that calls it, or a failure.

        Raises:
            FailedError, StorageError, ...: A journal failed. Nothing was acknowledged
                after that; the manifest tells why; start again to recover.
        """
        self._due = time.monotonic() + self._rpo_seconds
        next_commit = time.monotonic() + COMMIT_SECONDS
        try:
            while not self._stopping:
                wait = max(0.0, min(next_commit, self._due) - time.monotonic())
                for key, mask in self._selector.select(wait):
                    self._ready(key, mask)
                if self._failure is not None:
                    raise self._failure
                now = time.monotonic()
                if now >= next_commit:
                    next_commit = now + COMMIT_SECONDS
                    self._commit()
                if now >= self._due:
                    self._due = max(self._due + self._rpo_seconds, now)
                    self._mark_if_news()
            self._end()
        except Error as error:
            self._fail(error)
            raise
        finally:
            self._let_go()

    def stop(self) -> None:
        """Make run() end in order. May be called from a signal handler or a thread."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake_far.send(b"x")

    def _ready(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.data is None:
            with contextlib.suppress(BlockingIOError):
                self._wake_near.recv(64)
        else:
            cast(control.ControlServer, key.data).ready(key, mask)

    def _end(self) -> None:
        """Drain, a last point, clean journals, sockets gone, the manifest told."""
        if self._journals is not None:
            self._stop_serving()
            self._mark_if_news()
            self._journals.close_clean()
            self._journals = None
        self._close_sockets()
        if not self._told_to_stop:
            with contextlib.suppress(LockedError), self._replica.locked(LOCK_SECONDS):
                self._write_notes()
                self._replica.manifest.ingest = None
                self._replica.save()

    def _fail(self, error: Error) -> None:
        """Turn red: no write gets through any more, and the manifest says why."""
        if self._journals is not None:
            self._journals.gate.hold()
        with contextlib.suppress(Error), self._replica.locked(LOCK_SECONDS) as manifest:
            if manifest.ingest is not None and manifest.ingest.pid == os.getpid():
                manifest.ingest.error = error.message
            self._write_notes()
            self._replica.save()

    def _let_go(self) -> None:
        self._stop_serving()
        if self._journals is not None:
            self._journals.close()
            self._journals = None
        self._close_sockets()
        self._selector.close()
        self._wake_near.close()
        self._wake_far.close()

    def _close_sockets(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                os.unlink(self._socket_path)
        if self._control is not None:
            self._control.close()
            self._control = None

    # ---- journals and exports ----

    def _take_journals(self) -> None:
        self._journals = self._replica.journals(writable=True, with_bases=True)
        self._epoch = self._replica.manifest.epoch
        points = self._journals.points()
        self._record.newest = points.latest if len(points) else None
        self._record.look(False)

    def _note_gaps(self) -> None:
        """From the newest point to our first one nothing is known: a gap, if there is one."""
        replica, newest = self._replica, self._record.newest
        assert self._journals is not None
        replication.note_unclean_end(
            replica, self._journals.were_clean, newest.time if newest else None
        )
        if newest is not None:
            replication.open_gap(
                replica, newest.time, "no ingest ran: the source may have written on"
            )
        for gap in replica.manifest.gaps:
            if gap.end is None:
                self._record.gap = {
                    "start": gap.start,
                    "end": None,
                    "cause": gap.cause,
                    "resync": gap.resync,
                }
                self._record.catching_up = gap.resync

    def _serve(self) -> None:
        """Export every disk on a copy of the listening socket: the server closes its own."""
        assert self._journals is not None
        assert self._listener is not None
        server = _native.NbdServer()
        for name, journal in zip(self._journals.names, self._journals.natives, strict=True):
            server.add(name, journal.disk(), gate=self._journals.gate)
        server.listen(os.dup(self._listener.fileno()))
        server.start()
        self._server = server

    def _stop_serving(self) -> None:
        if self._server is not None:
            self._server.stop(STOP_MS)
            self._server = None  # it keeps the journals, and so their locks

    def _commit(self) -> None:
        if self._journals is None:
            self._refuse_clients()
            return
        self._record.look(self._journals.has_news)
        self._journals.commit()
        if self._record.has_gaps_to_note:
            with contextlib.suppress(LockedError), self._replica.locked():
                self._write_notes()
                self._replica.save()

    def _refuse_clients(self) -> None:
        """On hold there are no exports: who connects is sent away, and may come again."""
        assert self._listener is not None
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.close()

    # ---- restore points ----

    def _mark_if_news(self) -> None:
        if self._journals is not None and not self._record.catching_up and self._journals.has_news:
            self._mark("crash", "")

    def _mark(self, kind: str, label: str) -> Point:
        assert self._journals is not None
        point = self._journals.mark(kind, label)
        self._record.marked(point)
        return point

    def _write_notes(self) -> None:
        replication.take_notes(self._replica, self._record.notes())
        self._record.noted()

    # ---- the control socket ----

    def _answer(self, request: dict[str, object]) -> dict[str, object]:
        command = request["command"]
        if command == "status":
            return self._status()
        if command == "mark":
            return self._answer_mark(request)
        if command == "hold":
            return self._hold(control.whole(request, "epoch"))
        if command == "release":
            return self._release(control.whole(request, "epoch"))
        if command == "gap-open":
            cause = str(request.get("cause", "the source misses writes"))
            self._record.begin_gap(cause, resync=True)
            return {"gap": self._record.gap}
        if command == "gap-close":
            self._need_running()
            kind, label = replication.asked_for(request)
            self._record.catching_up = False
            return self._mark_or_fail(kind, label).to_json()
        if command == "stop":
            self._told_to_stop = True
            self.stop()
            return self._record.notes()
        raise UsageError(f"an ingest knows no command {command!r}")

    def _status(self) -> dict[str, object]:
        return {
            "state": "held" if self._journals is None else "running",
            "pid": os.getpid(),
            "epoch": self._epoch,
            **self._record.status(self._journals is not None and self._journals.has_news),
            "exports": self._server.stats() if self._server else None,
        }

    def _need_running(self) -> Journals:
        if self._journals is None:
            raise HeldError(
                f"replication of {self._replica.name} is on hold",
                "rollpoint release lets it go on",
            )
        return self._journals

    def _answer_mark(self, request: dict[str, object]) -> dict[str, object]:
        self._need_running()
        if self._record.catching_up:
            raise GapError(*replication.NOT_CAUGHT_UP)
        return self._mark_or_fail(*replication.asked_for(request)).to_json()

    def _mark_or_fail(self, kind: str, label: str) -> Point:
        """A failed mark ends the ingest; the client hears why first."""
        try:
            return self._mark(kind, label)
        except Error as error:
            self._failure = error
            raise

    def _hold(self, epoch: int) -> dict[str, object]:
        if epoch < self._epoch:
            raise StaleEpochError(f"epoch {epoch} is older than {self._epoch}, which is set")
        if self._journals is None:
            self._reopen(epoch)
        journals = self._need_running()
        try:
            last = journals.fence(epoch, consistent=not self._record.catching_up)
            if last is not None:
                self._record.marked(last)
            self._stop_serving()
            journals.close_clean()
        except Error as error:
            self._failure = error
            raise
        self._journals = None
        self._epoch = epoch
        return self._hand_over(epoch)

    def _hand_over(self, epoch: int) -> dict[str, object]:
        """Give the notes to who asks, and has the manifest's lock."""
        notes = self._record.notes()
        self._record.noted()
        return {**notes, "epoch": epoch}

    def _reopen(self, epoch: int) -> None:
        """Take the journals again. The lock is with who asks; the manifest is fresh."""
        self._replica.refresh()
        if self._replica.manifest.epoch != epoch:
            raise StateError(
                f"the manifest has epoch {self._replica.manifest.epoch}, not {epoch}",
                "ask again",
            )
        self._take_journals()

    def _release(self, epoch: int) -> dict[str, object]:
        if self._journals is None:
            self._reopen(epoch)
            journals = self._need_running()
            try:
                journals.unfence(epoch)
                self._serve()
            except Error:
                journals.close()
                self._journals = None
                raise
            self._due = time.monotonic() + self._rpo_seconds
            self._record.begin_gap("replication was on hold")
        return self._hand_over(epoch)
