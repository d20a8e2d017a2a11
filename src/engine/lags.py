"""How late restore points were: a histogram that never flatters.

One sample is the age of the oldest acknowledged write of an interval at the moment
when a point covered it, durably: the worst that a failover could have lost in that
interval. Bounds grow by a quarter of an octave, and every figure is the upper bound of
its bucket: it is up to 19 % more than the truth, and never less.
"""

from __future__ import annotations

import math

import msgspec

FLOOR_SECONDS = 0.001
STEPS = 4  # buckets for each doubling
BUCKET_MAX = 40 * STEPS  # 35 years
RECENT_POINTS = 500


def bucket_of(seconds: float) -> int:
    """The bucket whose bound is not below it."""
    if seconds <= FLOOR_SECONDS:
        return 0
    bucket = max(0, math.ceil(math.log2(seconds / FLOOR_SECONDS) * STEPS) - 1)
    while bound_of(bucket) < seconds and bucket < BUCKET_MAX:
        bucket += 1  # where the logarithm was rounded
    return bucket


def bound_of(bucket: int) -> float:
    """The most that a sample in that bucket can be, in seconds."""
    return float(FLOOR_SECONDS * 2 ** (bucket / STEPS))


class Histogram(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """counts: bucket and how many samples it has, rising; max_seconds: of all samples."""

    counts: list[tuple[int, int]] = []
    max_seconds: float = 0.0

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(count for _, count in self.counts)

    def add(self, seconds: float) -> None:
        """One more sample."""
        known = dict(self.counts)
        bucket = bucket_of(seconds)
        known[bucket] = known.get(bucket, 0) + 1
        self.counts = sorted(known.items())
        self.max_seconds = max(self.max_seconds, seconds)

    def joined(self, other: Histogram) -> Histogram:
        """Both as one."""
        known = dict(self.counts)
        for bucket, count in other.counts:
            known[bucket] = known.get(bucket, 0) + count
        return Histogram(
            counts=sorted(known.items()), max_seconds=max(self.max_seconds, other.max_seconds)
        )

    def quantile(self, part: float) -> float | None:
        """Seconds that at least this part (0 to 1) of the samples do not pass."""
        wanted = math.ceil(part * self.samples)
        seen = 0
        for bucket, count in self.counts:
            seen += count
            if seen >= wanted:
                return min(bound_of(bucket), self.max_seconds)
        return None

    def figures(self) -> dict[str, object]:
        """p50, p99 and max in seconds, null without a sample, and how many points they tell of."""
        return {
            "p50_seconds": self.quantile(0.5),
            "p99_seconds": self.quantile(0.99),
            "max_seconds": self.max_seconds if self.counts else None,
            "points": self.samples,
        }


class Lag(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of one disk, or of all together. ever: since the replica was made. recent and
    before: the last 500 to 1000 points."""

    ever: Histogram = msgspec.field(default_factory=Histogram)
    recent: Histogram = msgspec.field(default_factory=Histogram)
    before: Histogram = msgspec.field(default_factory=Histogram)

    def add(self, seconds: float) -> None:
        """One more sample."""
        self.ever.add(seconds)
        if self.recent.samples >= RECENT_POINTS:
            self.before, self.recent = self.recent, Histogram()
        self.recent.add(seconds)

    def figures(self) -> dict[str, object]:
        """Those since the replica was made, and "recent" ones."""
        return {**self.ever.figures(), "recent": self.recent.joined(self.before).figures()}
