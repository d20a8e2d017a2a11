"""How long restore points are kept: the arithmetic of the ring. No I/O, and no clock.

The horizon is the oldest restore point that the journals keep. It moves when a point is
older than the window, or earlier when the log is nearly full and the policy says so; a
pinned or locked point stops it. What lies before it goes into the base.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from .errors import StateError, UsageError
from .manifest import Manifest, PointNote, Retention
from .points import Point
from .units import format_duration, format_size, parse_time

WINDOW_SECONDS_MIN, WINDOW_SECONDS_MAX = 60.0, 30 * 86400.0
LIMIT_SEGMENTS_MIN = 8  # of each disk: those being written, those being freed, a root
EVERY_SECONDS_MIN = 60.0
LONG_TERM_MAX = 900  # points: each is a link of the chain, which may have links.LINKS_MAX
STEPS_IN_WINDOW = 32  # the horizon moves so often while a window passes
STEP_SECONDS_MIN = 1.0
STRIDES_IN_WINDOW = 4  # and so far at once at most: room is given back at its end
BUSY_SHARE = 0.3  # of the time, for moving it, while there is room and it is not late
RATE_SECONDS = 300.0  # the write rate is taken over that long
APP_SHARE = 10  # of an interval: so late an application-consistent point is preferred
WARN_SHARES = (0.90, 0.75)


class Use(NamedTuple):
    """What the logs of a replica use together."""

    used_bytes: int
    limit_bytes: int  # 0: none
    step_bytes: int  # what a disk may need free before it takes another segment
    disks: int

    @property
    def reserve_bytes(self) -> int:
        """What should stay free, so that nobody has to wait for it."""
        return min(
            max(self.limit_bytes // 16, 2 * self.disks * self.step_bytes),
            self.limit_bytes // 2,
        )

    @property
    def excess_bytes(self) -> int:
        """What should be freed now; 0 while there is room enough."""
        if self.limit_bytes == 0 or self.used_bytes + self.reserve_bytes <= self.limit_bytes:
            return 0
        # One more reserve, so that it is not asked for again at once.
        return self.used_bytes + 2 * self.reserve_bytes - self.limit_bytes

    @property
    def is_full(self) -> bool:
        """Whether a disk that wants another segment may not get one."""
        return 0 < self.limit_bytes < self.used_bytes + self.disks * self.step_bytes


def check(retention: Retention, segments_bytes: Sequence[int]) -> Retention:
    """The settings, when a replica can have them.

    Args:
        segments_bytes: Of each disk's journal.

    Raises:
        UsageError: It says which one cannot be.
    """
    window, limit = retention.window_seconds, retention.limit_bytes
    every, keep = retention.every_seconds, retention.keep_seconds
    if not WINDOW_SECONDS_MIN <= window <= WINDOW_SECONDS_MAX:
        raise UsageError(
            f"a window of {format_duration(window)} cannot be kept", "take 1m to 30d, as in 4h"
        )
    least = LIMIT_SEGMENTS_MIN * sum(segments_bytes)
    if 0 < limit < least:
        raise UsageError(
            f"{format_size(limit)} is too little for the journals of {len(segments_bytes)} disk(s)",
            f"take at least {format_size(least)}, or 0 for no limit",
        )
    if (every > 0) != (keep > 0):
        raise UsageError(
            "long-term points need both: how often, and how long they are kept",
            "as in --every 8h --keep 7d; 0s for both makes none",
        )
    if 0 < every < EVERY_SECONDS_MIN or keep < every:
        raise UsageError(
            f"a long-term point every {format_duration(every)}, kept for {format_duration(keep)}, "
            "makes no sense",
            "take at least 1m, and keep them for longer than that",
        )
    if every > 0 and keep / every > LONG_TERM_MAX:
        raise UsageError(
            f"a long-term point every {format_duration(every)}, kept for {format_duration(keep)}, "
            f"would be more than {LONG_TERM_MAX} disks on top of each other",
            "keep fewer, or for less time",
        )
    return retention


# ---- where the horizon goes ----


def _time(point: Point) -> int:
    return point.time_ns


def _id(point: Point) -> int:
    return point.id


def locked_notes(notes: Iterable[PointNote], now_ns: int) -> list[PointNote]:
    """Those whose locks have not run out."""
    return [
        note
        for note in notes
        if note.locked_until is not None and parse_time(note.locked_until) > now_ns
    ]


def refuse_locked(manifest: Manifest, now_ns: int, doing: str) -> None:
    """Nobody ends a replica with a locked point by mistake.

    Args:
        doing: What is wanted, with {} for the replica.

    Raises:
        StateError: There is one; it names the one that is locked for longest.
    """
    locked = locked_notes(manifest.notes, now_ns)
    if locked:
        last = max(locked, key=lambda note: parse_time(note.locked_until or ""))
        raise StateError(
            f"cannot {doing.format(f'replica {manifest.name}')}: restore point {last.id} is "
            f"locked until {last.locked_until}",
            f"--force {manifest.name} does it all the same",
        )


def stopping(notes: Iterable[PointNote], now_ns: int) -> frozenset[int]:
    """Ids of the points that may not be given up now."""
    notes = list(notes)
    kept = [note for note in notes if note.pinned] + locked_notes(notes, now_ns)
    return frozenset(note.id for note in kept)


def kept_now(manifest: Manifest, now_ns: int) -> frozenset[int]:
    """Ids of the points that may not be given up now, tested ones included."""
    return stopping(manifest.notes, now_ns) | {trial.point for trial in manifest.tests}


def by_window(points: Sequence[Point], now_ns: int, window_seconds: float) -> Point | None:
    """The newest point that is not younger than the window.

    With it every moment of the window has a point that is not after it.
    """
    border = now_ns - int(window_seconds * 1e9)
    index = bisect_right(points, border, key=_time)
    return points[index - 1] if index else None


def by_room(
    points: Sequence[Point], now_ns: int, excess_bytes: int, used_bytes: int
) -> Point | None:
    """The oldest point whose horizon should free that much, if the log grew evenly.

    At most the newest point, which is never given up. None: nothing has to be freed.
    """
    if excess_bytes <= 0 or not points:
        return None
    first_ns = points[0].time_ns
    share = min(1.0, excess_bytes / max(1, used_bytes))
    border = first_ns + int(max(0, now_ns - first_ns) * share)
    index = max(1, bisect_left(points, border, key=_time))
    return points[min(index, len(points) - 1)]


def bounded(points: Sequence[Point], wanted: Point | None, stops: Collection[int]) -> Point | None:
    """wanted, or the oldest point before it that may not be given up."""
    if wanted is None:
        return None
    for number in sorted(stops):
        if number >= wanted.id:
            break
        index = bisect_left(points, number, key=_id)
        if points[index].id == number:
            return points[index]
    return wanted


def scheduled(
    points: Sequence[Point], every_seconds: float, now_ns: int, last_ns: int | None
) -> Iterator[Point]:
    """The points that the schedule keeps for long, oldest first.

    For each multiple of `every_seconds` since 1970 that has come, the newest point that is
    not after it; or the newest application-consistent one, where there is one in the last
    tenth of that interval. An interval without a point has none.

    Args:
        points: Oldest first.
        every_seconds: 0: none are kept.
        last_ns: Of the newest long-term point; the interval that it stands for is over.
    """
    every_ns = round(every_seconds * 1e9)
    if every_ns <= 0:
        return
    done_ns = -1 if last_ns is None else -(-last_ns // every_ns) * every_ns
    first = bisect_right(points, done_ns, key=_time)
    while first < len(points):
        end_ns = -(-points[first].time_ns // every_ns) * every_ns
        if end_ns > now_ns:
            return
        stop = bisect_right(points, end_ns, key=_time)
        chosen, late_ns = stop - 1, end_ns - every_ns // APP_SHARE
        for index in range(stop - 1, first - 1, -1):
            if points[index].time_ns < late_ns:
                break
            if points[index].kind == "app":
                chosen = index
                break
        yield points[chosen]
        first = stop


def _one_stride(points: Sequence[Point], wanted: Point, window_seconds: float) -> Point:
    """wanted, or a point before it that is not too far from the oldest: what is behind."""
    border = points[0].time_ns + int(window_seconds * 1e9 / STRIDES_IN_WINDOW)
    index = max(1, bisect_right(points, border, key=_time) - 1)
    return min(wanted, points[min(index, len(points) - 1)])


def busy_share(view: Outlook, use: Use) -> float:
    """How much of the time may be spent on moving the horizon: more when it is late."""
    if use.excess_bytes or view.kept_seconds is None:
        return 1.0
    late = view.kept_seconds / max(view.asked_seconds, 1e-9) - 1  # of a window
    first = 1 / STRIDES_IN_WINDOW
    return min(1.0, max(BUSY_SHARE, BUSY_SHARE + (1 - BUSY_SHARE) * (late - first) / first))


class Move(NamedTuple):
    """A horizon to go to."""

    point: Point
    why: str  # "window" or "room"
    freeze: bool  # the schedule keeps the point for long


def next_move(
    points: Sequence[Point],
    now_ns: int,
    retention: Retention,
    use: Use,
    stops: Collection[int],
    horizon: int,
    last_long_term_ns: int | None = None,
) -> Move | None:
    """Where the horizon goes now; None: it stays.

    Args:
        points: Those that every journal has, oldest first.
        stops: Ids of points that may not be given up.
        horizon: Id of the point at which it is; 0: it never moved.
    """
    if not points:
        return None
    wanted, why = by_window(points, now_ns, retention.window_seconds), "window"
    if wanted is not None:
        wanted = _one_stride(points, wanted, retention.window_seconds)
    # While there is room it moves in steps: what was written twice meanwhile is copied once.
    step = max(retention.window_seconds / STEPS_IN_WINDOW, STEP_SECONDS_MIN)
    beyond = (now_ns - points[0].time_ns) / 1e9 - retention.window_seconds
    if horizon == points[0].id and not use.excess_bytes and beyond < step:
        wanted = None
    for_room = by_room(points, now_ns, use.excess_bytes, use.used_bytes)
    if for_room is not None and wanted is not None and for_room.id < wanted.id:
        wanted = for_room  # enough for now, and sooner there
    elif for_room is not None and retention.at_limit == "shorten" and for_room != wanted:
        wanted, why = for_room, "room"
    wanted = bounded(points, wanted, stops)
    if wanted is None or wanted.id <= horizon:
        return None
    due = scheduled(points, retention.every_seconds, now_ns, last_long_term_ns)
    over_ns = now_ns - round(retention.keep_seconds * 1e9)  # those would go at once
    kept = next((point for point in due if point.time_ns >= over_ns), None)
    if kept is None or kept.id > wanted.id:
        return Move(wanted, why, False)
    return Move(kept, why, True)


# ---- what is told ----


class Rate:
    """Bytes a second that the logs grow by, over the last minutes."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def sample(self, now_seconds: float, written_bytes: int) -> None:
        """written_bytes: in all, freed ones included; asked about every second."""
        self._samples.append((now_seconds, written_bytes))
        while now_seconds - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()

    @property
    def bytes_per_second(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        return max(0.0, (after - before) / max(last - first, 1e-9))


class Outlook(NamedTuple):
    """How far back restore points go now, and will."""

    asked_seconds: float
    kept_seconds: float | None  # from the oldest point to now; None: there is none
    possible_seconds: float | None  # what the limit allows at this write rate; None: all
    full_in_seconds: float | None  # None: it is not filling up
    is_stopped: bool = False  # a pinned or locked point keeps what the window does not want
    limit: str = ""  # that it was predicted from, for people

    @property
    def share(self) -> float:
        """Of the window that can still be kept, how much is used; 0 when all asked for can."""
        possible = self.possible_seconds
        if self.kept_seconds is None or possible is None:
            return 0.0
        if possible >= self.asked_seconds and not self.is_stopped:
            return 0.0
        return min(1.0, self.kept_seconds / possible) if possible > 0 else 1.0

    @property
    def level(self) -> int:
        """0, 75 or 90: what to warn of."""
        return next((round(border * 100) for border in WARN_SHARES if self.share >= border), 0)


def outlook(
    points: Sequence[Point],
    now_ns: int,
    asked_seconds: float,
    use: Use,
    bytes_per_second: float,
    stops: Collection[int] = (),
    free_bytes: int | None = None,
) -> Outlook:
    """Predict from the write rate what window the limit allows.

    Args:
        stops: Ids of points that may not be given up.
        free_bytes: Of the file system; None: it is not known.
    """
    kept = max(0, now_ns - points[0].time_ns) / 1e9 if points else None
    stopped = kept is not None and kept > asked_seconds and points[0].id in stops
    room = None if use.limit_bytes == 0 else use.limit_bytes - use.reserve_bytes - use.used_bytes
    limit = format_size(use.limit_bytes)
    if free_bytes is not None and (room is None or free_bytes < room):
        room, limit = free_bytes, "what the file system has free"
    if room is None or bytes_per_second <= 0:
        return Outlook(asked_seconds, kept, None, None, stopped)
    left = max(0, room) / bytes_per_second
    return Outlook(asked_seconds, kept, (kept or 0.0) + left, left, stopped, limit)


def warnings(
    view: Outlook,
    use: Use,
    retention: Retention,
    stopped_by: Sequence[int],
    shortened: bool,
    refusing: bool,
) -> dict[str, str]:
    """What the operator should know: what it is about -> one sentence each."""
    found: dict[str, str] = {}
    asked, limit = format_duration(view.asked_seconds), format_size(use.limit_bytes)
    kept = format_duration(view.kept_seconds or 0.0)
    held = ", ".join(str(number) for number in stopped_by)
    if shortened and view.kept_seconds is not None and view.kept_seconds < view.asked_seconds:
        found["shortened"] = (
            f"history was shortened: {kept} of the window of {asked} are kept, because the "
            f"journals may have {limit}"
        )
    if refusing:
        if retention.at_limit == "refuse":
            why = "as was asked for (--at-limit refuse)"
        elif held:
            why = "because pinned, locked or tested points stop the horizon"
        else:
            why = "because nothing older than the newest restore point is left to give up"
        found["full"] = (
            f"the journals are full with {limit}, and writes are refused, {why}; "
            "rollpoint replica set --journal-limit gives them more"
        )
    elif view.level and not shortened:
        possible = format_duration(view.possible_seconds or 0.0)
        fits = possible if view.is_stopped else f"{possible} of {asked}"
        found[f"filling {view.level}"] = (
            f"{view.level} % of the window that can still be kept is used: at this write rate "
            f"{fits} fit into {view.limit}, and it is full in "
            f"{format_duration(view.full_in_seconds or 0.0)}"
        )
    if held and (use.excess_bytes or view.level):
        found["stopped"] = f"the horizon cannot pass restore point {held}: pinned, locked or tested"
    return found
