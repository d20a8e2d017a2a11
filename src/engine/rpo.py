"""What an ingest knows about its own lateness: newest point, missed targets, gaps.

No I/O. Whoever has the replica's lock writes what `notes` says into the manifest: the
ingest itself when it can, or the operation that asked it to hold.
"""

from __future__ import annotations

import time

from .points import Point, now_text

SLACK_SECONDS = 0.1  # of a point that is on time: the loop looks this often


class RpoRecord:
    """Kept by one thread.

    Args:
        target_seconds: What was asked for.
        missed: How often that was missed before this ingest.
        newest: The newest restore point there is.
    """

    def __init__(self, target_seconds: float, missed: int = 0, newest: Point | None = None) -> None:
        self.target_seconds = target_seconds
        self.missed = missed
        self.newest = newest
        self.gap: dict[str, object] | None = None  # that lasts now
        self.catching_up = False  # it ends only when the source says so
        self._to_note: list[dict[str, object]] = []
        self._news_since: float | None = None  # monotonic; not after the first write
        self._last_look = time.monotonic()

    def look(self, has_news: bool) -> None:
        """Whether something was written since the newest point, seen now."""
        if not has_news:
            self._news_since = None
        elif self._news_since is None:
            self._news_since = self._last_look
        self._last_look = time.monotonic()

    def marked(self, point: Point) -> None:
        """A restore point is durable."""
        now = time.monotonic()
        if (
            self._news_since is not None
            and now - self._news_since > self.target_seconds + SLACK_SECONDS
        ):
            self.missed += 1
        self._news_since = None
        self._last_look = now
        self.newest = point
        if self.gap is not None and not self.catching_up:
            self._to_note.append({**self.gap, "end": point.time})
            self.gap = None

    def begin_gap(self, cause: str, *, resync: bool = False) -> None:
        """From the newest point on nothing is provable, until `marked`.

        Args:
            resync: And nothing is marked, until the source says that it has caught up.
        """
        self.catching_up = self.catching_up or resync
        if self.gap is None:
            start = self.newest.time if self.newest else now_text()
            self.gap = {"start": start, "end": None, "cause": cause, "resync": resync}
        elif resync and not self.gap["resync"]:
            self.gap = {**self.gap, "cause": cause, "resync": True}
        else:
            return
        self._to_note.append(self.gap)

    @property
    def has_gaps_to_note(self) -> bool:
        """Whether the manifest does not know of a gap, or of its end."""
        return bool(self._to_note)

    def notes(self) -> dict[str, object]:
        """For the manifest; see replication.take_notes. `noted` when it has them."""
        return {
            "gaps": list(self._to_note),
            "next_point_id": 1 if self.newest is None else self.newest.id + 1,
            "rpo_seconds": self.target_seconds,
            "missed": self.missed,
        }

    def noted(self) -> None:
        """The manifest has them."""
        self._to_note = []

    def status(self, at_risk: bool) -> dict[str, object]:
        """For the control socket. at_risk: something is newer than the newest point."""
        newest = self.newest
        lag_ns = None if newest is None else max(0, time.time_ns() - newest.time_ns)
        return {
            "rpo_seconds": self.target_seconds,
            "newest": None if newest is None else newest.time,
            "lag_seconds": None if lag_ns is None else lag_ns / 1e9,
            "at_risk": at_risk,
            "missed": self.missed,
            "gap": self.gap,
        }
