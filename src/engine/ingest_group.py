"""An ingest's part in a cut over several replicas: close, mark, open, when it is told.

The leader (groups.py) asks every ingest for the same steps over its control socket:

  group-prepare group      commit, and do nothing that takes long from now on
  group-close group        the gate: newcomers wait, nobody is inside
  group-mark group time_ns kind label    the point, in memory
  group-end group          open; the point is durable when this is answered
  group-abort group        open without a point, or with one that belongs to no group

Between prepare and end the ingest's loop does nothing else, and for PATIENCE_SECONDS at
most: a leader that died or is slow finds its cut gone, and writers have not noticed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import control, replication
from .errors import Error, GapError, LockedError, StateError

if TYPE_CHECKING:
    from .intake import Intake
    from .points import Point

PATIENCE_SECONDS = 2.0
Answer = dict[str, object]


class GroupCut:
    """The steps of one ingest. Called by its loop.

    Args:
        intake: What is cut.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._group = ""
        self._begun = 0.0  # not after the gate closed, monotonic
        self._closed = False
        self._point: Point | None = None
        self.until: float | None = None  # while there is one: then it is given up; monotonic
        self.commands: dict[str, Callable[[Answer], Answer]] = {
            "group-prepare": self._prepare,
            "group-close": self._close,
            "group-mark": self._mark,
            "group-end": self._end,
            "group-abort": self._abort,
        }

    def expire(self, now: float) -> None:
        """Give it up when its time is over."""
        if self.until is not None and now >= self.until:
            self.give_up()

    def give_up(self) -> None:
        """Open the gate. A point that was marked stays, as one of this replica alone."""
        if self.until is None:
            return
        self.until = None
        if self._closed and self._intake.journals is not None:
            barrier_ns = self._intake.journals.gate.end()
            if self._point is not None:
                self._make_durable(self._point, barrier_ns)

    def _prepare(self, request: Answer) -> Answer:
        intake = self._intake
        if self.until is not None:
            raise LockedError(
                f"another group of replicas is marking {intake.replica.name}", "try again"
            )
        intake.need_running()
        intake.heed_alarms()
        if intake.record.catching_up:
            raise GapError(*replication.NOT_CAUGHT_UP)
        intake.commit()
        self._group = str(request.get("group", ""))
        self._closed, self._point = False, None
        self.until = time.monotonic() + PATIENCE_SECONDS
        return {"group": self._group}

    def _close(self, request: Answer) -> Answer:
        until = self._need(request)
        journals = self._intake.need_running()
        self._begun = time.monotonic()
        journals.gate.begin(max(1, int((until - self._begun) * 1000)))
        self._closed = True
        if journals.gate.alarmed:  # closed since then: what the others have is newer
            self.give_up()
            raise GapError(*replication.NOT_CAUGHT_UP)
        return {"closed_seconds": self._begun, "time_ns": journals.point_time_ns()}

    def _mark(self, request: Answer) -> Answer:
        self._need(request)
        if not self._closed or self._point is not None:
            raise StateError("a point is marked once, after the gate was closed")
        kind, label = replication.asked_for(request)
        journals, time_ns = self._intake.need_running(), control.whole(request, "time_ns")
        if time_ns < journals.point_time_ns(0):
            raise StateError("the point would not be newer than the newest one")
        try:
            self._point = journals.mark_begun(time_ns, kind, label)
        except Error as error:
            if self._intake.has_failed(error):
                self._intake.failure = error
            raise
        return self._point.to_json()

    def _end(self, request: Answer) -> Answer:
        self._need(request)
        journals, point = self._intake.need_running(), self._point
        if point is None:
            raise StateError("nothing was marked")
        barrier_ns = journals.gate.end()
        opened = time.monotonic()
        self.until = None
        self._make_durable(point, barrier_ns)
        return {
            **point.to_json(),
            "barrier_ms": barrier_ns / 1e6,
            "closed_seconds": self._begun,
            "opened_seconds": opened,
        }

    def _abort(self, request: Answer) -> Answer:
        if self.until is not None and request.get("group") == self._group:
            self.give_up()
        return {}

    def _make_durable(self, point: Point, barrier_ns: int) -> None:
        journals = self._intake.need_running()
        try:
            journals.commit()
        except Error as error:
            self._intake.failure = error
            raise
        journals.tell(point)
        self._intake.record.marked(point, self._begun, journals.seen(), barrier_ns)

    def _need(self, request: Answer) -> float:
        """The end of the cut's time; StateError when it is not this group's any more."""
        if self.until is None or request.get("group") != self._group:
            raise StateError(
                f"{self._intake.replica.name} has given this group's cut up: writers had "
                f"waited for {PATIENCE_SECONDS:g} s, or something else came between",
                "try again",
            )
        return self.until
