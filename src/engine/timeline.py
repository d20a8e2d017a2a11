"""The history of a replica: points with what is known of each, in buckets of time.

Nothing here depends on how many points there are: a picture has at most as many
buckets as it was asked for.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from .manifest import Gap, GroupPoint, PointNote
from .points import Point, Points
from .replica import Replica
from .retention import locked_notes
from .units import parse_time

SECOND = 1_000_000_000
# Lengths of buckets, in seconds: those that people count in.
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
         86400, 2 * 86400, 7 * 86400, 14 * 86400, 28 * 86400, 91 * 86400, 364 * 86400)  # fmt: skip


class Entry(NamedTuple):
    """One point. written_bytes: since the point before, None where that is gone."""

    point: Point
    written_bytes: int | None
    note: PointNote
    locked: bool
    group: GroupPoint | None

    @property
    def marks(self) -> list[str]:
        """What sets it apart from the points that come by themselves, in words."""
        note = self.note
        words = [f"name={note.name}"] if note.name else []
        words += ["long-term"] if self.point.long_term else []
        words += ["pinned"] if note.pinned else []
        words += [f"locked until {note.locked_until}"] if self.locked else []
        words += ["group"] if self.group is not None else []
        return words

    @property
    def is_notable(self) -> bool:
        """Whether somebody made it, or said something about it."""
        return bool(self.marks or self.point.label) or self.point.kind == "app"

    def to_json(self) -> dict[str, object]:
        """As `points --json` lists it."""
        group = self.group
        return {
            **self.point.to_json(),
            "long_term": self.point.long_term,
            "written_bytes": self.written_bytes,
            "name": self.note.name,
            "pinned": self.note.pinned,
            "locked_until": self.note.locked_until,
            "group": None if group is None else {"id": group.group, "members": group.members},
        }


class Timeline(NamedTuple):
    """Points, oldest first, and gaps."""

    entries: list[Entry]
    gaps: Sequence[Gap]
    points: Points


class Bucket(NamedTuple):
    """A time, and what was in it. rate: bytes a second, None where it is not known."""

    start_ns: int
    stop_ns: int
    entries: Sequence[Entry]
    rate: float | None
    gap: bool  # some of it lies in a gap


def of(replica: Replica) -> Timeline:
    """The history of a replica, as its journals and its manifest know it."""
    manifest = replica.manifest
    if any(disk.journal is None for disk in manifest.disks):
        return Timeline([], manifest.gaps, replica.points)
    with replica.journals() as journals:
        points = journals.points(manifest.gaps, replica.name, manifest.notes)
        written = journals.written_bytes()
    points = points.with_long_term(manifest.frozen)
    notes = {note.id: note for note in manifest.notes}
    locked = {note.id for note in locked_notes(manifest.notes, time.time_ns())}
    groups = {record.id: record for record in manifest.groups}
    entries = [
        Entry(
            point,
            written.get(point.id),
            notes.get(point.id) or PointNote(id=point.id),
            point.id in locked,
            groups.get(point.id),
        )
        for point in points
    ]
    return Timeline(entries, manifest.gaps, points)


def buckets(entries: Sequence[Entry], gaps: Sequence[Gap], most: int) -> list[Bucket]:
    """The points of the journals in at most that many buckets of one length, oldest first."""
    shown = [entry for entry in entries if not entry.point.long_term]
    if not shown:
        return []
    first, last = shown[0].point.time_ns, shown[-1].point.time_ns
    step_ns = _step_ns(first, last, most)
    spans = [
        (parse_time(gap.start), parse_time(gap.end) if gap.end else time.time_ns()) for gap in gaps
    ]
    times = [entry.point.time_ns for entry in shown]
    made = []
    for start in range(first // step_ns * step_ns, last + 1, step_ns):
        stop = start + step_ns
        inside = shown[bisect_left(times, start) : bisect_left(times, stop)]
        gap = any(begin < stop and end > start for begin, end in spans)
        made.append(Bucket(start, stop, inside, None, gap))
    rates = _rates(shown, made, step_ns)
    return [bucket._replace(rate=rate) for bucket, rate in zip(made, rates, strict=True)]


def _step_ns(first: int, last: int, most: int) -> int:
    for step in STEPS:
        step_ns = step * SECOND
        if last // step_ns - first // step_ns < most:
            return step_ns
    years = STEPS[-1] * SECOND
    return years * ((last - first) // (years * (most - 1)) + 1)


def _rates(
    shown: Sequence[Entry], made: Sequence[Bucket], step_ns: int
) -> list[float | None]:
    """What was written between two points, spread evenly over the time between them."""
    origin = made[0].start_ns
    written = [0.0] * len(made)
    known = [0] * len(made)  # nanoseconds of which it is known
    for before, entry in pairwise(shown):
        begin, end = before.point.time_ns, entry.point.time_ns
        if entry.written_bytes is None or end <= begin:
            continue
        each = entry.written_bytes / (end - begin)
        for index in range((begin - origin) // step_ns, (end - 1 - origin) // step_ns + 1):
            start = origin + index * step_ns
            part = min(end, start + step_ns) - max(begin, start)
            written[index] += each * part
            known[index] += part
    return [
        total * SECOND / part if part else None
        for total, part in zip(written, known, strict=True)
    ]
