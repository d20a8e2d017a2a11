"""Restore points of a replica, its gaps, and the choice of one of them.

A point is listed only when the journal of every disk has it: one that a crash
left in some of them is not a cut of the replica. This module does no I/O.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import NamedTuple

from .errors import GapError, NotFoundError, UsageError
from .manifest import Frozen, Gap, PointNote
from .units import format_time, parse_time

KINDS = {1: "crash", 2: "app"}  # numbers of the journal format
KIND_NUMBERS = {name: number for number, name in KINDS.items()}
CLOCK_ERROR_NS = 5_000_000_000  # how far ahead of our clock a moment may be


class Point(NamedTuple):
    """One restore point."""

    id: int
    time_ns: int  # since 1970, UTC
    kind: str  # "crash" or "app"
    label: str
    long_term: bool = False  # shown by a chain of its own, not by the journals

    @property
    def time(self) -> str:
        """ISO 8601, UTC."""
        return format_time(self.time_ns)

    def to_json(self) -> dict[str, object]:
        """As `mark` prints it; a long-term point says so."""
        facts = {"id": self.id, "time": self.time, "kind": self.kind, "label": self.label}
        return {**facts, "long_term": True} if self.long_term else facts


class Points(Sequence[Point]):
    """The restore points of a replica, oldest first."""

    def __init__(
        self,
        points: Sequence[Point],
        gaps: Sequence[Gap] = (),
        where: str = "",
        notes: Sequence[PointNote] = (),
    ) -> None:
        self._points = tuple(points)
        self.gaps = tuple(gaps)
        self._where = where
        self.names: Mapping[str, int] = {note.name: note.id for note in notes if note.name}

    @classmethod
    def common(
        cls,
        journals: Sequence[Sequence[tuple[int, int, int, str]]],
        gaps: Sequence[Gap] = (),
        where: str = "",
        notes: Sequence[PointNote] = (),
    ) -> Points:
        """The points that every journal has, from what each lists."""
        if not journals:
            return cls((), gaps, where, notes)
        shared = set.intersection(*({row[0] for row in rows} for rows in journals))
        kept = [
            Point(number, time_ns, KINDS.get(kind, str(kind)), label)
            for number, time_ns, kind, label in journals[0]
            if number in shared
        ]
        return cls(sorted(kept), gaps, where, notes)

    def with_long_term(self, frozen: Sequence[Frozen]) -> Points:
        """These and the long-term points. One that is both is listed as long-term."""
        if not frozen:
            return self
        rows = [Point(row.id, parse_time(row.time), row.kind, row.label, True) for row in frozen]
        newest = max(row.id for row in rows)
        stop = bisect_right(self._points, newest, key=lambda point: point.id)
        older = {point.id: point for point in (*self._points[:stop], *rows)}
        made = copy(self)
        made._points = (*sorted(older.values()), *self._points[stop:])
        return made

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self._points)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._points[index]

    @property
    def latest(self) -> Point:
        """The newest point.

        Raises:
            NotFoundError: There is none yet.
        """
        self._need_one()
        return self._points[-1]

    def by_id(self, number: int) -> Point:
        """The point of that id.

        Raises:
            NotFoundError: There is none, or not in the journal of every disk.
        """
        index = bisect_left(self._points, number, key=lambda point: point.id)
        if index < len(self._points) and self._points[index].id == number:
            return self._points[index]
        self._need_one()
        first = self._points[0]
        if 0 < number < first.id:
            raise NotFoundError(
                f"{self._where} does not keep restore point {number} any more",
                f"the oldest that it has is {first.id}, {first.time}",
            )
        raise NotFoundError(
            f"{self._where} has no restore point {number}",
            f"it has {len(self)}, from {self._points[0].id} to {self._points[-1].id}: "
            "list them with rollpoint points",
        )

    def find(self, wanted: str) -> Point:
        """The point that a person asked for.

        Args:
            wanted: "latest", a point's id, its name, or a moment (ISO 8601): then the
                newest point that is not after it.

        Raises:
            NotFoundError: There is no such point.
            GapError: The moment lies in a gap.
            UsageError: It is none of the four.
        """
        wanted = wanted.strip()
        if wanted == "latest":
            return self.latest
        if wanted.isascii() and wanted.isdigit() and len(wanted) < 20:
            return self.by_id(int(wanted))
        if wanted in self.names:
            return self.by_id(self.names[wanted])
        try:
            return self.nearest(wanted)
        except UsageError:
            known = f"; names are {', '.join(sorted(self.names)[:5])}" if self.names else ""
            raise UsageError(
                f"{wanted[:60]!r} names no restore point",
                "give latest, the id of a point, its name, or a moment as in "
                f"2026-11-22T10:15:00Z{known}",
            ) from None

    def nearest(self, moment: str | int) -> Point:
        """The newest point that is not after the moment: it holds nothing younger.

        Args:
            moment: ISO 8601 (local time without an offset), or nanoseconds since 1970.

        Raises:
            NotFoundError: The moment is before the first point, or in the future.
            GapError: It lies in a gap; the hint names the points on both sides.
            UsageError: The text is not a moment.
        """
        self._need_one()
        wanted = parse_time(moment) if isinstance(moment, str) else moment
        first, last = self._points[0], self._points[-1]
        if wanted // 1000 < first.time_ns // 1000:
            raise NotFoundError(
                f"{format_time(wanted)} is before the first restore point that {self._where} has",
                f"there are points from {first.time} (id {first.id}) to {last.time} (id {last.id})",
            )
        if wanted > time.time_ns() + CLOCK_ERROR_NS:
            raise NotFoundError(
                f"{format_time(wanted)} has not come yet",
                f"the newest restore point is {last.id}, {last.time}",
            )
        # Moments are written with microseconds: what is printed must be found again.
        index = bisect_right(
            self._points, wanted // 1000, key=lambda point: point.time_ns // 1000
        )
        point = self._points[index - 1]
        if point.time_ns // 1000 != wanted // 1000:
            self._refuse_gap(wanted, index)
        return point

    def _refuse_gap(self, wanted: int, index: int) -> None:
        for gap in self.gaps:
            if parse_time(gap.start) <= wanted and (
                gap.end is None or wanted < parse_time(gap.end)
            ):
                before = self._points[index - 1]
                hint = f"nearest points: {before.id} at {before.time} before"
                if index < len(self._points):
                    after = self._points[index]
                    hint += f", {after.id} at {after.time} after"
                raise GapError(
                    f"{format_time(wanted)} lies in a gap of {self._where}, from {gap.start} "
                    f"to {gap.end or 'now'}: {gap.cause}",
                    hint,
                )

    def _need_one(self) -> None:
        if not self._points:
            raise NotFoundError(
                f"{self._where} has no restore point yet",
                "mark one with: rollpoint mark",
            )


def now_text() -> str:
    """The present moment, as manifests and points are written."""
    return format_time(time.time_ns())
