"""The restore points of an ingest that runs for months: a million of them in 16 MB."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from .points import Point


class Kept(Sequence[Point]):
    """Points, oldest first: added at the end, dropped at the start, by any thread.

    Those that are alike, crash-consistent and without a label, are two numbers each.
    """

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self._lock = threading.Lock()
        self._ids, self._times = array("q"), array("q")
        self._others: dict[int, Point] = {}
        for point in points:
            self.append(point)

    def append(self, point: Point) -> None:
        """A point that is newer than all of them."""
        with self._lock:
            self._ids.append(point.id)
            self._times.append(point.time_ns)
            if point != Point(point.id, point.time_ns, "crash", ""):
                self._others[point.id] = point

    def drop_before(self, number: int) -> None:
        """Forget the points of lower ids."""
        with self._lock:
            count = bisect_left(self._ids, number)
            for gone in self._ids[:count] if self._others else ():
                self._others.pop(gone, None)
            del self._ids[:count], self._times[:count]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        with self._lock:
            if isinstance(index, slice):
                return [self._at(place) for place in range(*index.indices(len(self._ids)))]
            return self._at(index)

    def _at(self, index: int) -> Point:
        number = self._ids[index]
        return self._others.get(number) or Point(number, self._times[index], "crash", "")
