"""The RPO is told truthfully: no figure is ever better than what happened."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from nbd_peers import DISC, WRITE, Raw
from replicas import (
    Source,
    empty_model,
    ingesting,
    make,
    rollpoint,
    seen_by_qemu,
    wait_until,
)
from rollpoint import control, operation, replication
from rollpoint import rpo as room
from rollpoint.lags import BUCKET_MAX, RECENT_POINTS, Histogram, Lag, bound_of, bucket_of
from rollpoint.points import Point
from rollpoint.replica import Replica
from rollpoint.rpo import RpoRecord, Seen
from rollpoint.units import format_time

LOOK = 0.1
NOW_NS = 1_800_000_000_000_000_000


# ---- histograms ----


@pytest.mark.parametrize("seed", range(3))
def test_a_bucket_is_never_below_its_samples_and_at_most_a_fifth_above(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(2000):
        seconds = 10 ** rng.uniform(-5, 8)
        bound = bound_of(bucket_of(seconds))
        assert seconds <= bound <= max(0.001, seconds * 1.19)
    for bucket in range(BUCKET_MAX):  # a bound is in its own bucket
        assert bound_of(bucket) <= bound_of(bucket_of(bound_of(bucket))) <= bound_of(bucket) * 1.19


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_are_never_below_the_true_ones(seed: int) -> None:
    rng = random.Random(seed)
    samples = sorted(rng.lognormvariate(0, 2) for _ in range(rng.randrange(1, 400)))
    whole, left, right = Histogram(), Histogram(), Histogram()
    for index, seconds in enumerate(samples):
        whole.add(seconds)
        (left, right)[index % 2].add(seconds)
    assert left.joined(right) == whole
    for part in (0.5, 0.9, 0.99, 1.0):
        true = samples[math.ceil(part * len(samples)) - 1]
        told = whole.quantile(part)
        assert told is not None
        assert true <= told <= max(0.001, true * 1.19)
    assert whole.figures()["max_seconds"] == samples[-1]
    assert whole.figures()["points"] == len(samples)


def test_without_a_sample_nothing_is_told() -> None:
    assert Lag().figures() == {
        "p50_seconds": None, "p99_seconds": None, "max_seconds": None, "points": 0,
        "recent": {"p50_seconds": None, "p99_seconds": None, "max_seconds": None, "points": 0},
    }  # fmt: skip


def test_recent_figures_forget_and_those_since_creation_do_not() -> None:
    lag = Lag()
    lag.add(3600.0)
    for _ in range(2 * RECENT_POINTS):
        lag.add(1.0)
    figures = lag.figures()
    assert figures["max_seconds"] == 3600.0
    assert figures["points"] == 2 * RECENT_POINTS + 1
    assert isinstance(figures["recent"], dict)
    assert figures["recent"]["max_seconds"] == 1.0
    assert RECENT_POINTS <= figures["recent"]["points"] <= 2 * RECENT_POINTS


# ---- the record, against writes whose times are known ----


class Clock:
    """Time as the record sees it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return NOW_NS + round(self.now * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(
        room, "time", SimpleNamespace(monotonic=clock.monotonic, time_ns=clock.time_ns)
    )
    return clock


class World:
    """Disks that are written at moments which only this test knows."""

    def __init__(self, clock: Clock, record: RpoRecord) -> None:
        self.clock, self.record = clock, record
        self.names = list(record.disk_lags)
        self.entries = dict.fromkeys(self.names, 0)
        self.open: dict[str, list[float]] = {name: [] for name in self.names}
        self.points = 0
        self.truth: dict[str, list[float]] = {name: [] for name in ["", *self.names]}

    def write(self, name: str) -> None:
        self.entries[name] += 1
        self.open[name].append(self.clock.now)

    def seen(self) -> dict[str, Seen]:
        return {name: Seen(self.entries[name], bool(self.open[name])) for name in self.names}

    def look(self) -> None:
        at = self.clock.now
        self.clock.now += 0.0001
        self.record.look(self.seen(), at)

    def mark(self, wait: float, sync: float, late: list[str]) -> Point:
        """A cut after `wait`, durable after `sync`, in which the disks of late are written."""
        begun = self.clock.now
        self.clock.now += wait
        covered = {name: times for name, times in self.open.items() if times}
        self.open = {name: [] for name in self.names}
        for name in late:
            self.write(name)
        self.clock.now += sync
        for name, times in covered.items():
            self.truth[name].append(self.clock.now - min(times))
        if covered:
            self.truth[""].append(max(self.truth[name][-1] for name in covered))
        self.points += 1
        point = Point(self.points, self.clock.time_ns(), "crash", "")
        self.record.marked(point, begun, self.seen(), round(wait * 1e9))
        return point


@pytest.mark.parametrize("seed", range(8))
def test_each_lag_is_at_least_the_truth_and_at_most_a_look_more(clock: Clock, seed: int) -> None:
    rng = random.Random(seed)
    record = RpoRecord(2.0, ["a", "b", "c"])
    world = World(clock, record)
    record.start(None, world.seen())
    for _ in range(200):
        for _ in range(rng.randrange(1, 30)):
            for name in rng.sample(world.names, rng.randrange(0, 3)):
                world.write(name)
            clock.now += rng.uniform(0, LOOK / 2)
            if rng.random() < 0.7:
                world.look()
        before = {name: list(lag.ever.counts) for name, lag in lags_of(record).items()}
        world.mark(rng.uniform(0, 0.05), rng.uniform(0, 0.3), rng.sample(world.names, 1))
        for name, lag in lags_of(record).items():
            new = dict(lag.ever.counts)
            for bucket, count in before[name]:
                new[bucket] -= count
            assert sum(new.values()) in (0, 1)
    for name, lag in lags_of(record).items():
        truth = sorted(world.truth[name])
        assert lag.ever.samples >= len(truth)
        assert lag.ever.max_seconds >= truth[-1]
        # Every true lag has a sample of its own that is not better.
        told = sorted(
            (bound for bucket, count in lag.ever.counts for bound in [bound_of(bucket)] * count),
            reverse=True,
        )
        assert all(t >= w for t, w in zip(told, reversed(truth), strict=False)), (name, seed)
    assert record.barrier_ns_max > 0


def lags_of(record: RpoRecord) -> dict[str, Lag]:
    return {"": record.lag, **record.disk_lags}


def test_the_age_of_what_no_point_covers_is_told_while_it_grows(clock: Clock) -> None:
    record = RpoRecord(1.0, ["a", "b"])
    world = World(clock, record)
    record.start(None, world.seen())
    world.look()
    clock.now += 0.05
    world.write("b")
    clock.now += 0.05
    world.look()
    clock.now += 5.0
    status = record.status(True)
    assert isinstance(status["disks"], dict)
    assert isinstance(status["group"], dict)
    assert status["disks"]["a"]["now_seconds"] == 0.0
    assert 5.05 <= status["disks"]["b"]["now_seconds"] <= 5.2
    assert status["group"]["now_seconds"] == status["disks"]["b"]["now_seconds"]
    assert status["missed"] == 1, "late already, though no point has come"
    world.mark(0.0, 0.0, [])
    after = record.status(False)
    assert after["missed"] == 1
    assert isinstance(after["group"], dict)
    assert after["group"]["now_seconds"] == 0.0


def test_a_gap_counts_from_its_start_also_when_nothing_was_written_to_us(clock: Clock) -> None:
    record = RpoRecord(1.0, ["a", "b"])
    world = World(clock, record)
    record.start(None, world.seen())
    first = world.mark(0.0, 0.0, [])
    assert record.lag.ever.samples == 0, "nothing was written, nothing was late"
    clock.now += 10.0
    record.begin_gap("the link was down", resync=True, disks=["b"])
    clock.now += 90.0
    status = record.status(False)
    assert isinstance(status["disks"], dict)
    assert status["disks"]["b"]["now_seconds"] >= 100.0
    assert status["disks"]["a"]["now_seconds"] == 0.0
    record.catching_up = False
    last = world.mark(0.0, 0.0, [])
    assert record.lag.ever.max_seconds >= 100.0
    assert record.disk_lags["b"].ever.max_seconds >= 100.0
    assert record.disk_lags["a"].ever.samples == 0
    notes = record.notes()
    assert notes["missed"] == 1, "told while it lasted, and not forgotten"
    assert isinstance(notes["gaps"], list)
    assert [(gap["start"], gap["end"]) for gap in notes["gaps"]] == [
        (first.time, None), (first.time, last.time)
    ]  # fmt: skip


def test_gaps_that_join_are_in_doubt_about_what_either_was(clock: Clock) -> None:
    record = RpoRecord(1.0, ["a", "b", "c"])
    record.begin_gap("one", disks=["b"], resync=True)
    record.begin_gap("two", disks=["a"], resync=True)
    assert record.gap is not None
    assert (record.gap["cause"], record.gap["disks"]) == ("one", ["a", "b"])
    record.begin_gap("three")
    assert record.gap["disks"] == []
    record.begin_gap("four", disks=["a"])
    assert record.gap["disks"] == [], "all of them stay in doubt"


def test_a_link_that_comes_and_goes_for_months_fits_into_a_manifest(tmp_path: Path) -> None:
    """The oldest gaps become one; no moment that was refused is offered."""
    make(tmp_path / "r", {"a": 1 << 20})
    rows = [
        {"start": format_time(NOW_NS + n * 10_000_000), "cause": f"flap {n}", "resync": True,
         "end": format_time(NOW_NS + n * 10_000_000 + 5_000_000)}
        for n in range(replication.GAPS_MAX + 50)
    ]  # fmt: skip
    with Replica.open(tmp_path / "r") as replica, replica.locked() as manifest:
        replication.take_notes(replica, {"gaps": rows, "next_point_id": 1})
        replica.save()
        assert len(manifest.gaps) == replication.GAPS_MAX
        assert manifest.gaps[0].cause == "many gaps, the first of them: flap 0"
        for row in rows:
            assert any(
                gap.end is not None and gap.start <= row["start"] and row["end"] <= gap.end
                for gap in manifest.gaps
            )
        replication.open_gap(replica, format_time(NOW_NS * 2), "now", resync=True)
        assert replication.needs_resync(replica)
        assert len(manifest.gaps) == replication.GAPS_MAX


# ---- a real ingest ----


def test_lags_are_told_and_kept_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "r"
    make(path)
    counts = []
    for run in range(2):
        with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
            source = Source(tmp_path / "s", empty_model(), run)
            for number in range(3):
                source.write("a", b"x", number)
                rollpoint("mark", path)
            told = replica.rpo()
            assert isinstance(told["disks"], dict)
            counts.append(told["disks"]["a"]["points"])
            assert told["disks"]["b"]["points"] == 2 * run, "but for gaps: between runs, and a hold"
            assert 0 < told["disks"]["a"]["p50_seconds"] <= told["disks"]["a"]["max_seconds"]
            source.close()
            replication.hold(replica)
            held = replica.rpo()
            assert isinstance(held["group"], dict)
            assert held["group"]["now_seconds"] > 0, "nobody knows what the source writes"
            replication.release(replica)
            replication.mark(replica)
    assert counts == [3, 7]
    listed = rollpoint("points", path)["rpo"]
    assert listed["disks"]["a"]["points"] == 8
    assert listed["group"]["points"] == 8
    assert listed["group"]["now_seconds"] == pytest.approx(listed["lag_seconds"])
    assert listed["gaps"]["count"] == 3
    assert listed["gaps"]["open"] is False
    assert rollpoint("replica", "show", path)["rpo"]["group"]["points"] == 8


def test_lags_of_an_ingest_are_in_the_manifest_when_it_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "r"
    make(path, {"a": 1 << 20})
    with ingesting(path, tmp_path / "s", rpo_seconds=0.1), Replica.open(path) as replica:
        source = Source(tmp_path / "s", empty_model({"a": 1 << 20}), 1)
        source.write("a", b"x", 0)
        wait_until(lambda: len(replica.points) == 1, "a point came")
        source.close()
        told = replica.rpo()
    assert isinstance(told["group"], dict)
    assert told["group"]["max_seconds"] > 0
    with Replica.open(path) as replica:
        assert replica.manifest.rpo is not None
        assert replica.manifest.rpo.lag is not None
        assert replica.manifest.rpo.lag.ever.samples == 1
        assert replica.points.latest.time <= format_time(2**62)


# ---- a source that is gone ----


def write_and_vanish(where: Path, disk: str, data: bytes, offset: int) -> None:
    """As a process that is killed: the last write is acknowledged, and no goodbye said."""
    client = Raw(where).enter(disk)
    assert client.error(WRITE, offset, len(data), data=data) == 0
    client.socket.close()


def gap_of(path: Path) -> dict[str, object] | None:
    gap = control.ask(str(path / ".control.sock"), "status")["gap"]
    assert gap is None or isinstance(gap, dict)
    return gap


def test_a_lost_connection_marks_what_came_before_and_begins_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "r"
    make(path)
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        other = Raw(tmp_path / "s").enter("a")
        assert other.error(WRITE, 0, 6, data=b"before") == 0
        write_and_vanish(tmp_path / "s", "b", b"last words", 4096)
        wait_until(lambda: gap_of(path), "the loss is noticed")
        assert other.error(WRITE, 0, 6, data=b"after ") == 0
        assert len(replica.points) == 1
        gap = gap_of(path)
        assert gap is not None
        assert gap["start"] == replica.points.latest.time
        assert gap["disks"] == ["b"]
        assert "connection to disk b was lost" in str(gap["cause"])
        wait_until(lambda: rollpoint("points", path)["gaps"], "the manifest knows")
        assert rollpoint("mark", path, code=1)["type"] == "GapError"
        done = operation.failover(replica, power_on=False)
        assert seen_by_qemu(done.interims["a"], tmp_path)[:6] == b"before"
        assert seen_by_qemu(done.interims["b"], tmp_path)[4096:4106] == b"last words"
        operation.undo(replica)
        other.socket.close()


def test_a_clean_goodbye_or_a_reader_that_vanishes_is_no_gap(tmp_path: Path) -> None:
    path = tmp_path / "r"
    make(path)
    with ingesting(path, tmp_path / "s"):
        writer = Raw(tmp_path / "s").enter("a")
        assert writer.error(WRITE, 0, 4, data=b"data") == 0
        writer.request(DISC)
        assert writer.closed()
        writer.socket.close()
        with Raw(tmp_path / "s").enter("a") as reader:
            assert reader.read(0, 4) == b"data"
        with Raw(tmp_path / "s"):
            pass  # not even a handshake
        rollpoint("mark", path)
        assert gap_of(path) is None
    assert rollpoint("points", path)["gaps"] == []


def test_who_watches_the_source_may_have_losses_ignored(tmp_path: Path) -> None:
    path = tmp_path / "r"
    make(path)
    with ingesting(path, tmp_path / "s", ignore_lost=True):
        write_and_vanish(tmp_path / "s", "b", b"x", 0)
        rollpoint("mark", path)
        assert gap_of(path) is None


@pytest.mark.parametrize("end", ["hold", "stop"])
def test_what_was_acknowledged_before_a_loss_is_in_a_point_or_told_as_a_gap(
    tmp_path: Path, end: str
) -> None:
    path = tmp_path / "r"
    make(path)
    for turn in range(5):
        with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
            write_and_vanish(tmp_path / "s", "a", turn.to_bytes(2, "big"), 0)
            if end == "hold":
                replication.hold(replica)
        with Replica.open(path) as replica:
            with replica.journals() as journals:
                # In the instant in which the exports end a loss is only a gap.
                left = journals.has_news
            assert not left or (end == "stop" and replication.needs_resync(replica)), turn
            if end == "hold":
                replication.release(replica)
            replication.mark(replica, caught_up=True)
