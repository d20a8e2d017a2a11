"""Replication's near end: NBD exports that a source writes to, and restore points.

One thread runs this loop; the exports run on threads of the native server. Every
100 ms what was written becomes durable (a group commit); every RPO interval in which
there were writes ends with a restore point of all disks at one cut. What the loop has
in hand is in intake.py, what it answers on the control socket in ingest_answers.py.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable
from typing import cast

from . import control, replication
from .errors import Error, LockedError, UsageError, on_hold
from .ingest_answers import Answers
from .ingest_epoch import EpochWatch
from .intake import Intake
from .manifest import IngestRecord, Rpo
from .points import now_text
from .replica import Replica

COMMIT_SECONDS = 0.1
RPO_SECONDS = 2.0
RPO_SECONDS_MIN = 0.1
LOCK_SECONDS = 5.0


class Ingest:
    """Serves the disks of a replica until it is stopped.

    Args:
        replica: Ready and not on hold.
        socket_path: Of the Unix socket (0600) whose exports are named like the disks.
        rpo_seconds: Between restore points while there are writes; at least 0.1.
        ignore_lost: A connection of the source that is lost begins no gap: somebody
            watches the source, and says gap-open.

    Raises (start):
        StateError, HeldError: The replica is not Ready, or on hold.
        LockedError: Another ingest or an operation has it.
    """

    def __init__(
        self,
        replica: Replica,
        socket_path: str,
        rpo_seconds: float = RPO_SECONDS,
        *,
        ignore_lost: bool = False,
    ) -> None:
        if rpo_seconds < RPO_SECONDS_MIN:
            raise UsageError(
                f"a restore point every {rpo_seconds:g} s is too often",
                f"take at least {RPO_SECONDS_MIN:g} s",
            )
        self._replica = replica
        self._socket_path = os.path.abspath(socket_path)
        self._intake = Intake(replica, rpo_seconds, ignore_lost=ignore_lost)
        self._answers = Answers(self._intake, self._stop_as_told)
        self._watch = EpochWatch(self._intake, self._announce)
        self._started = now_text()
        self._selector = selectors.DefaultSelector()
        self._wake_near, self._wake_far = socket.socketpair()
        self._wake_near.setblocking(False)
        self._wake_far.setblocking(False)
        self._selector.register(self._wake_near, selectors.EVENT_READ, None)
        self._stopping = False
        self._told_to_stop = False  # by who has the lock and writes the manifest
        self._control: control.ControlServer | None = None

    def on_warning(self, warn: Callable[[str], object]) -> None:
        """Have warnings told: that the journals fill up, that history is shortened."""
        self._intake.warn = warn

    def _announce(self) -> None:
        """Put it into the manifest. Locked; the caller saves."""
        self._replica.manifest.ingest = IngestRecord(
            pid=os.getpid(),
            host=os.uname().nodename,
            socket=self._socket_path,
            started=self._started,
            rpo_seconds=self._intake.rpo_seconds,
        )

    def _is_announced(self) -> bool:
        """Whether the manifest has this ingest, and not one that came after it. Locked."""
        record = self._replica.manifest.ingest
        return record is not None and (record.pid, record.host) == (
            os.getpid(),
            os.uname().nodename,
        )

    # ---- its life ----

    def start(self) -> None:
        """Take the journals, listen, and tell the manifest that we run."""
        replica, intake = self._replica, self._intake
        try:
            with replica.locked(LOCK_SECONDS) as manifest:
                replica.need_state("Ready", doing="ingest into {}")
                replication.reconcile(replica, intake.take_journals().held)
                if manifest.held:
                    raise on_hold(replica.name)
                intake.listener = control.listen(self._socket_path)
                self._control = control.ControlServer(
                    replica.control_path, self._selector, self._answers
                )
                intake.note_gaps()
                rpo = manifest.rpo or Rpo(target_seconds=intake.rpo_seconds)
                intake.record.take(rpo.missed, rpo.lag, rpo.disk_lags)
                rpo.target_seconds = intake.rpo_seconds
                manifest.rpo = rpo
                self._announce()
                replica.save()
                intake.serve()
        except BaseException:
            self._let_go()
            raise

    def run(self) -> None:
        """Serve until stop(), a signal's handler that calls it, or a failure.

        Raises:
            FailedError, StorageError, ...: A journal failed. Nothing was acknowledged
                after that; the manifest tells why; start again to recover.
        """
        intake, group = self._intake, self._answers.group
        intake.due = time.monotonic() + intake.rpo_seconds
        next_commit = time.monotonic() + COMMIT_SECONDS
        try:
            while not self._stopping:
                until = group.until or min(next_commit, intake.due)
                for key, mask in self._selector.select(max(0.0, until - time.monotonic())):
                    self._ready(key, mask)
                if intake.failure is not None:
                    raise intake.failure
                now = time.monotonic()
                if group.until is not None:
                    group.expire(now)
                    continue  # writers wait: nothing that takes long
                if now >= next_commit:
                    next_commit = now + COMMIT_SECONDS
                    intake.commit()
                    self._watch.look()
                if now >= intake.due:
                    intake.due = max(intake.due + intake.rpo_seconds, now)
                    intake.mark_if_news()
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

    def _stop_as_told(self) -> None:
        self._told_to_stop = True
        self.stop()

    def _ready(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.data is None:
            with contextlib.suppress(BlockingIOError):
                self._wake_near.recv(64)
        else:
            cast(control.ControlServer, key.data).ready(key, mask)

    def _end(self) -> None:
        """Drain, a last point, clean journals, sockets gone, the manifest told."""
        self._answers.group.give_up()
        self._intake.close_clean()
        self._close_sockets()
        if not self._told_to_stop:
            with contextlib.suppress(LockedError), self._replica.locked(LOCK_SECONDS):
                if self._is_announced():
                    self._intake.write_notes()
                    self._replica.manifest.ingest = None
                    self._replica.save()

    def _fail(self, error: Error) -> None:
        """Turn red: no write gets through any more, and the manifest says why."""
        self._intake.retainer.stop()  # who waits for room keeps the gate open
        if self._intake.journals is not None:
            self._intake.journals.gate.hold()
        with contextlib.suppress(Error), self._replica.locked(LOCK_SECONDS) as manifest:
            if manifest.ingest is not None and self._is_announced():
                manifest.ingest.error = error.message
            self._intake.write_notes()
            self._replica.save()

    def _let_go(self) -> None:
        self._intake.close()
        self._close_sockets()
        self._selector.close()
        self._wake_near.close()
        self._wake_far.close()

    def _close_sockets(self) -> None:
        if self._intake.listener is not None:
            self._intake.listener.close()
            self._intake.listener = None
            with contextlib.suppress(OSError):
                os.unlink(self._socket_path)
        if self._control is not None:
            self._control.close()
            self._control = None
