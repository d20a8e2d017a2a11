"""What a running ingest answers on its control socket (control.py):

  status                    what goes on
  mark kind label           a restore point now -> {"id", "time", "kind", "label"}
  hold epoch                fence: last point, journals closed with that epoch, held
  release epoch             open them again with that epoch
  gap-open cause disks      the source misses writes: no restore points until it says
  gap-close                 that it has caught up -> the first restore point after
  stop                      end in order; the caller has the replica's lock
  group-...                 one cut over several replicas: ingest_group.py

`hold`, `release` and `stop` are asked by who has the replica's lock and writes the
manifest; what the ingest has to put there meanwhile goes along with the answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import control, replication
from .errors import Error, GapError, UsageError
from .ingest_group import GroupCut

if TYPE_CHECKING:
    from .intake import Intake
    from .points import Point

Answer = dict[str, object]


class Answers:
    """The commands of one ingest. Called by its loop.

    Args:
        intake: What they act on.
        stop: Makes the loop end in order, leaving the manifest to who asked.
    """

    def __init__(self, intake: Intake, stop: Callable[[], None]) -> None:
        self._intake = intake
        self._stop = stop
        self._commands: dict[str, Callable[[Answer], Answer]] = {
            "status": self._status,
            "mark": self._mark,
            "hold": self._hold,
            "release": self._release,
            "gap-open": self._gap_open,
            "gap-close": self._gap_close,
            "stop": self._end,
        }
        self.group = GroupCut(intake)

    def __call__(self, request: Answer) -> Answer:
        """The answer to one request; raises Error."""
        name = str(request["command"])
        if name in self.group.commands:
            return self.group.commands[name](request)
        command = self._commands.get(name)
        if command is None:
            raise UsageError(f"an ingest knows no command {name!r}")
        if name != "status":
            self.group.give_up()  # it would wait for the gate, and nobody but us can open it
        return command(request)

    def _status(self, request: Answer) -> Answer:
        intake = self._intake
        intake.look()
        return {
            "state": "held" if intake.journals is None else "running",
            "pid": os.getpid(),
            "epoch": intake.epoch,
            **intake.record.status(intake.has_news, held=intake.journals is None),
            "retention": intake.retainer.status(),
            "exports": intake.server.stats() if intake.server else None,
        }

    def _mark(self, request: Answer) -> Answer:
        self._intake.need_running()
        self._intake.heed_alarms()
        if self._intake.record.catching_up:
            raise GapError(*replication.NOT_CAUGHT_UP)
        return self._mark_or_fail(*replication.asked_for(request)).to_json()

    def _mark_or_fail(self, kind: str, label: str) -> Point:
        """A failed mark ends the ingest; the client hears why first."""
        try:
            return self._intake.mark(kind, label)
        except Error as error:
            if self._intake.has_failed(error):
                self._intake.failure = error
            raise

    def _gap_open(self, request: Answer) -> Answer:
        cause = str(request.get("cause", "the source misses writes"))
        disks = request.get("disks", [])
        known = [disk.name for disk in self._intake.replica.manifest.disks]
        if not isinstance(disks, list) or any(name not in known for name in disks):
            raise UsageError(f"disks of a gap are a list of this replica's, not {disks!r}")
        self._intake.record.begin_gap(cause, resync=True, disks=disks)
        return {"gap": self._intake.record.gap}

    def _gap_close(self, request: Answer) -> Answer:
        self._intake.need_running()
        kind, label = replication.asked_for(request)
        if self._intake.has_refusals:  # of what it had sent again, perhaps
            self._intake.heed_alarms()
            raise GapError(*replication.NOT_CAUGHT_UP)
        self._intake.record.catching_up = False
        return self._mark_or_fail(kind, label).to_json()

    def _hold(self, request: Answer) -> Answer:
        epoch = control.whole(request, "epoch")
        self._intake.hold(epoch)
        return self._hand_over(epoch)

    def _release(self, request: Answer) -> Answer:
        epoch = control.whole(request, "epoch")
        self._intake.release(epoch)
        return self._hand_over(epoch)

    def _hand_over(self, epoch: int) -> Answer:
        """Give the notes to who asks, and has the manifest's lock."""
        notes = self._intake.record.notes()
        self._intake.record.noted()
        return {**notes, "epoch": epoch}

    def _end(self, request: Answer) -> Answer:
        self._stop()
        return self._intake.record.notes()
