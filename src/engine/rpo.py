"""What an ingest knows about its own lateness: newest point, missed targets, lag, gaps.

The lag of a disk at a moment is the age of its oldest acknowledged write that no
restore point covers yet. When a write came is not asked on its way; the loop looks ten
times a second at which disks have news, and what it finds then may have come at once
after the look before: so a lag is up to 0.1 s more than the truth, and never less. A
point covers its writes when it is durable. In a gap the source may have written what
never came: then the lag counts from the gap's start.

No I/O. Whoever has the replica's lock writes what `notes` says into the manifest: the
ingest itself when it can, or the operation that asked it to hold.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from .lags import Lag
from .manifest import Gap, Rpo
from .points import Point, now_text
from .units import parse_time

SLACK_SECONDS = 0.1  # of a point that is on time: the loop looks this often
NOTE_SECONDS = 60.0  # between notes when there is nothing but lags to note


class Seen(NamedTuple):
    """A disk as the loop finds it."""

    entries: int  # of its whole log
    has_news: bool  # something is newer than the newest point


class RpoRecord:
    """Kept by one thread. Moments are on the monotonic clock, in seconds.

    Args:
        target_seconds: What was asked for.
        names: Of the disks.
    """

    def __init__(self, target_seconds: float, names: Sequence[str] = ()) -> None:
        self.target_seconds = target_seconds
        self.missed = 0  # since the replica was made
        self.newest: Point | None = None
        self.gap: dict[str, object] | None = None  # that lasts now
        self.catching_up = False  # it ends only when the source says so
        self.lag = Lag()  # of all disks together
        self.disk_lags = {name: Lag() for name in names}
        self.barrier_ns = 0  # of the newest point
        self.barrier_ns_max = 0
        self._to_note: list[dict[str, object]] = []  # gaps, and their ends
        self._since: dict[str, float] = {}  # disk -> not after its oldest uncovered write
        self._entries: dict[str, int] = {}
        self._looked = time.monotonic()
        self._noted = self._looked
        self._has_lags_to_note = False

    def take(self, missed: int, lag: Lag | None, disk_lags: Mapping[str, Lag]) -> None:
        """Go on from what the manifest knows."""
        self.missed = missed
        self.lag = lag or self.lag
        self.disk_lags = {name: disk_lags.get(name, own) for name, own in self.disk_lags.items()}

    # ---- what the loop finds ----

    def look(self, seen: Mapping[str, Seen], at: float) -> None:
        """The disks as they were found.

        Args:
            at: Not after the moment at which they were looked at.
        """
        for name, disk in seen.items():
            if not disk.has_news:
                self._since.pop(name, None)
            else:
                self._since.setdefault(name, self._looked)
            self._entries[name] = disk.entries
        self._looked = at

    def start(self, newest: Point | None, seen: Mapping[str, Seen]) -> None:
        """Journals were taken: what was before is no lag of ours, but perhaps a gap."""
        self.newest = newest
        self._since = {}
        self._entries = {name: disk.entries for name, disk in seen.items()}
        self._looked = time.monotonic()

    def marked(
        self, point: Point, begun: float, seen: Mapping[str, Seen], barrier_ns: int = 0
    ) -> None:
        """A restore point is durable.

        Args:
            begun: Not after the moment of its cut.
            seen: The disks as they are found now, after it.
            barrier_ns: How long writers waited for it.
        """
        now = time.monotonic()
        since = dict(self._since)
        for name, disk in seen.items():
            if disk.entries != self._entries.get(name):
                since.setdefault(name, self._looked)  # written between look and cut, or after
        lags = {name: now - moment for name, moment in since.items()}
        if self.gap is not None and not self.catching_up:
            lags = self._with_gap(lags)
            self._to_note.append({**self.gap, "end": point.time})
            self.gap = None
        for name, lag in lags.items():
            self.disk_lags.setdefault(name, Lag()).add(lag)
        if lags:
            worst = max(lags.values())
            self.lag.add(worst)
            self.missed += worst > self.target_seconds + SLACK_SECONDS
            self._has_lags_to_note = True
        self.barrier_ns = barrier_ns
        self.barrier_ns_max = max(self.barrier_ns_max, barrier_ns)
        self.newest = point
        self._since = {}
        self._looked = begun
        self.look(seen, begun)

    def _with_gap(self, lags: Mapping[str, float]) -> dict[str, float]:
        """In a gap each disk in doubt may miss writes from its start on."""
        assert self.gap is not None
        age = _age_seconds(str(self.gap["start"]))
        doubted = self.gap["disks"] or list(self.disk_lags)
        assert isinstance(doubted, list)
        return {**lags, **{name: max(age, lags.get(name, 0.0)) for name in doubted}}

    # ---- gaps ----

    def begin_gap(self, cause: str, *, resync: bool = False, disks: Sequence[str] = ()) -> None:
        """From the newest point on nothing is provable, until `marked`.

        Args:
            resync: And nothing is marked, until the source says that it has caught up.
            disks: Whose copy is in doubt; none: all.
        """
        self.catching_up = self.catching_up or resync
        if self.gap is None:
            start = self.newest.time if self.newest else now_text()
            self.gap = {"start": start, "end": None, "cause": cause, "resync": resync,
                        "disks": sorted(disks)}  # fmt: skip
        else:
            more = joined_doubts(self.gap["disks"], disks)
            worse = resync and not self.gap["resync"]
            if not worse and more == self.gap["disks"]:
                return
            self.gap = {**self.gap, "disks": more}
            if worse:
                self.gap = {**self.gap, "cause": cause, "resync": True}
        self._to_note.append(self.gap)

    # ---- for the manifest ----

    @property
    def is_due(self) -> bool:
        """Whether there is enough that the manifest does not know."""
        overdue = time.monotonic() - self._noted >= NOTE_SECONDS
        return bool(self._to_note) or (self._has_lags_to_note and overdue)

    @property
    def has_gaps_to_note(self) -> bool:
        """Whether there is a gap, or an end of one, that the manifest does not know."""
        return bool(self._to_note)

    def notes(self) -> dict[str, object]:
        """For the manifest; see replication.take_notes. `noted` when it has them."""
        return {
            "gaps": list(self._to_note),
            "next_point_id": 1 if self.newest is None else self.newest.id + 1,
            "rpo_seconds": self.target_seconds,
            "missed": self.missed,
            "lag": msgspec.to_builtins(self.lag),
            "disk_lags": msgspec.to_builtins(self.disk_lags),
        }

    def noted(self) -> None:
        """The manifest has them."""
        self._to_note = []
        self._has_lags_to_note = False
        self._noted = time.monotonic()

    # ---- for the control socket ----

    def status(self, at_risk: bool, *, held: bool = False) -> dict[str, object]:
        """As of now.

        Args:
            at_risk: Something is newer than the newest point.
            held: Nothing comes in; nobody knows what the source writes meanwhile.
        """
        newest = self.newest
        lag_seconds = None if newest is None else _age_seconds(newest.time)
        ages = self._ages()
        if held and lag_seconds is not None:
            ages = dict.fromkeys(self.disk_lags, lag_seconds)
        oldest = max(ages.values(), default=0.0)
        overdue = oldest > self.target_seconds + SLACK_SECONDS
        return {
            "rpo_seconds": self.target_seconds,
            "newest": None if newest is None else newest.time,
            "lag_seconds": lag_seconds,
            "at_risk": at_risk,
            "missed": self.missed + overdue,
            "gap": self.gap,
            "group": {"now_seconds": oldest, **self.lag.figures()},
            "disks": {
                name: {"now_seconds": ages.get(name, 0.0), **lag.figures()}
                for name, lag in self.disk_lags.items()
            },
            "barrier_ms": {"newest": self.barrier_ns / 1e6, "max": self.barrier_ns_max / 1e6},
        }

    def _ages(self) -> dict[str, float]:
        """How old what may be the oldest uncovered write of each disk is."""
        now = time.monotonic()
        # What came after the last look is not known yet, and no older than that.
        ages = {name: now - moment for name, moment in self._since.items()}
        return ages if self.gap is None else self._with_gap(ages)


def report(
    rpo: Rpo | None, gaps: Sequence[Gap], newest: Point | None, status: Mapping[str, object] | None
) -> dict[str, object]:
    """How far back a failover would go now, and would have gone; never better than the truth.

    target_seconds: what the ingest was asked for, null if there never was one.
    newest, lag_seconds: the newest point and how old it is. missed: how often a point
    came later than the target asked. group, disks: for all disks together and for each,
    the age of the oldest acknowledged write that no point covers (now_seconds), and
    what that was when points came: see docs/operations.md. gaps: how many, how long in all,
    and whether one lasts.

    Args:
        status: What a running ingest says; None where none runs.
    """
    lag_seconds = None if newest is None else _age_seconds(newest.time)
    known: Mapping[str, object]
    if status is not None:
        known = status
    else:
        # Nobody knows what the source has written since: all of it may be missing.
        past, now = rpo or Rpo(target_seconds=0.0), {"now_seconds": lag_seconds}
        known = {
            "missed": past.missed,
            "group": {**now, **(past.lag or Lag()).figures()},
            "disks": {name: {**now, **lag.figures()} for name, lag in past.disk_lags.items()},
        }
    return {
        "target_seconds": rpo.target_seconds if rpo else None,
        "lag_seconds": lag_seconds,
        "newest": None if newest is None else newest.time,
        "missed": known["missed"],
        "group": known["group"],
        "disks": known["disks"],
        "gaps": {
            "count": len(gaps),
            "seconds": sum(_gap_seconds(gap) for gap in gaps),
            "open": any(gap.end is None for gap in gaps),
        },
    }


def _gap_seconds(gap: Gap) -> float:
    if gap.end is None:
        return _age_seconds(gap.start)
    return max(0, parse_time(gap.end) - parse_time(gap.start)) / 1e9


def joined_doubts(known: object, more: Sequence[str]) -> list[str]:
    """Disks in doubt of two gaps that became one; none means all."""
    assert isinstance(known, list)
    return sorted({*known, *more}) if known and more else []


def _age_seconds(moment: str) -> float:
    return max(0, time.time_ns() - parse_time(moment)) / 1e9
