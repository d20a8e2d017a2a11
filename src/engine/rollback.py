"""Make journals show a restore point.

Rolling back copies no data: each journal's log gets a block map of its own for
the point, and its header is flipped to it. See src/_native/journal.h.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from ._native import POINT_END, Journal
from .points import Point


class RollReport(NamedTuple):
    """What rolling one disk's journal took."""

    disk: str
    point: int | None  # its id; None: the end of the log
    backwards: bool  # which way the log was walked
    entries_walked: int
    tables_written: int
    bytes_written: int
    seconds: float

    def to_json(self) -> dict[str, object]:
        """As the steps of a failover print it."""
        return dict(self._asdict())


def roll_back(journals: Mapping[str, Journal], point: Point | None) -> list[RollReport]:
    """Make every journal show the point; None: the end of its log. Durable on return.

    Each journal flips with one sector write. A crash in between leaves some at
    the old point, whole; asked again it goes on. A journal that shows the point
    already is left as it is.

    Args:
        journals: Disk name to journal, open for writing.

    Raises:
        NotFoundError: A journal has no such point.
        DamagedError: The log of a disk is damaged on the way.
        StorageError: The file system refused something; that is final.
    """
    return [_roll(disk, journal, point) for disk, journal in journals.items()]


def _roll(disk: str, journal: Journal, point: Point | None) -> RollReport:
    start = time.perf_counter()
    done = journal.roll(POINT_END if point is None else point.id)
    return RollReport(
        disk=disk,
        point=None if point is None else point.id,
        backwards=bool(done["backwards"]),
        entries_walked=done["entries_walked"],
        tables_written=done["tables_written"],
        bytes_written=done["bytes_written"],
        seconds=time.perf_counter() - start,
    )
