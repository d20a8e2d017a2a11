"""Power cuts and full disks during a failback: whatever is left of the replica is resumed.

The replica is on the simulated disk; the targets are files, which no power cut reaches: what
was sent is sent again.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from frozen_life import SIZES as LONG_SIZES
from replicas import bytes_of
from rollpoint import _native, failback, operation
from rollpoint.replica import Replica
from test_frozen import fail_over, with_points
from test_operation_crash import (
    SIZES,
    Model,
    fail_each_call,
    failed_over,
    make,
    sweep,
)

BUDGET = 60
LONG_BUDGET = 300


class Trip:
    """A replica on a simulated disk, failed over to its first point, and targets of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.targets = {name: str(folder / f"{name}.img") for name in SIZES}

    def prepare(self, io: _native.Io, before: str) -> list[Model]:
        """As far as `before`: snapshots of both points, and what was recovered and written."""
        snapshots = make(io, self.seed)
        recovered = failed_over(io, snapshots, self.seed)
        for name, place in self.targets.items():
            Path(place).write_bytes(snapshots[1][name])
        with Replica.open("/r", io) as replica:
            for word in ("start", "switch"):
                if word == before:
                    break
                self.act(word, replica)
                if before == "undo":
                    break
        return [*snapshots, recovered]

    def act(self, word: str, replica: Replica) -> object:
        if word == "start":
            return failback.start(replica, self.targets, holds=2)
        return {"switch": failback.switch, "commit": failback.commit, "undo": failback.undo}[word](
            replica
        )

    def go_on(self, word: str, io: _native.Io, snapshots: list[Model]) -> None:
        """After a crash: resumed, or asked again, it ends; and then the failback does."""
        found = {"start": "Failover", "switch": "ReadyToSwitch", "commit": "Failback",
                 "undo": "ReadyToSwitch"}[word]  # fmt: skip
        with Replica.open("/r", io) as replica:
            operation.resume(replica)
            if replica.manifest.state == found:
                self.act(word, replica)
            state = replica.manifest.state
            if word == "undo":
                assert state == "Failover"
                for name in SIZES:
                    assert bytes_of(f"/r/{name}-interim.vmdk", io) == snapshots[2][name]
                operation.undo(replica)
                self.require_ready(replica, io, snapshots[1], 2)
                return
            if state == "ReadyToSwitch":
                failback.switch(replica)
            for name, place in self.targets.items():
                assert Path(place).read_bytes() == snapshots[2][name]
            if replica.manifest.state == "Failback":
                failback.commit(replica)
            self.require_ready(replica, io, snapshots[2], 3)

    def require_ready(
        self, replica: Replica, io: _native.Io, wanted: Model, points: int
    ) -> None:
        manifest = replica.manifest
        assert (manifest.state, manifest.operation, manifest.held) == ("Ready", None, False)
        assert (manifest.failback, manifest.recovered) == (None, None)
        assert [name for name in replica.directory.list() if "-interim" in name] == []
        assert len(list(replica.points)) == points  # an id may have been used up in vain
        for name in SIZES:
            assert bytes_of(f"/r/{name}-journal.vmdk", io) == wanted[name]
        assert replica.verify()["ok"]


@pytest.mark.parametrize("index", [0, 2])
def test_a_failover_to_a_long_term_point_goes_back_and_all_points_stay(
    tmp_path: Path, index: int
) -> None:
    io = _native.Io.simulate()
    life, made = with_points(io, "/r", 9)
    life.close()
    model = fail_over(io, made[index], 9)
    targets = {name: str(tmp_path / f"{name}.img") for name in LONG_SIZES}
    for name, place in targets.items():
        Path(place).write_bytes(made[-1].model[name])
    with Replica.open("/r", io) as replica:
        failback.start(replica, targets, holds=made[-1].point.id)
        failback.switch(replica)
        for name, place in targets.items():
            assert Path(place).read_bytes() == model[name]
        done = failback.commit(replica)
        assert replica.verify()["ok"]
        for name in LONG_SIZES:
            assert bytes_of(f"/r/{name}-journal.vmdk", io) == model[name]
        wanted = {each.point.id: each.model for each in made}
        for number, held in [*wanted.items(), (done.point, None)]:
            operation.failover(replica, number, power_on=False)
            for name in LONG_SIZES:
                expected = model if held is None else held
                assert bytes_of(f"/r/{name}-interim.vmdk", io) == expected[name], number
            operation.undo(replica)


WORDS = ["start", "switch", "commit", "undo"]


def cut(folder: Path, word: str, seed: int, budget: int) -> int:
    trip, io = Trip(folder, seed), _native.Io.simulate()
    snapshots = trip.prepare(io, word)
    io.settle()
    with Replica.open("/r", io) as replica:
        trip.act(word, replica)
    return sweep(io, budget, seed, lambda state: trip.go_on(word, state.io, snapshots))


@pytest.mark.parametrize("word", WORDS)
def test_a_power_cut_at_any_moment_is_resumed(tmp_path: Path, word: str) -> None:
    print(f"{word}: {cut(tmp_path, word, 3, BUDGET)} distinct states, seed 3")


@pytest.mark.long
@pytest.mark.parametrize("word", WORDS)
def test_thousands_of_power_cuts_are_resumed(tmp_path: Path, word: str) -> None:
    seeds = range(30, 34)
    found = sum(cut(tmp_path, word, seed, LONG_BUDGET) for seed in seeds)
    print(f"{word}: {found} distinct states, seeds {seeds}")


@pytest.mark.parametrize(
    ("word", "sticky"),
    [
        ("undo", True),
        *(
            pytest.param(word, sticky, marks=pytest.mark.long)
            for word in WORDS
            for sticky in (False, True)
            if (word, sticky) != ("undo", True)
        ),
    ],
)
def test_a_full_disk_at_any_call_is_survived(tmp_path: Path, word: str, sticky: bool) -> None:
    trip = Trip(tmp_path, 7)

    def act(io: _native.Io) -> object:
        with Replica.open("/r", io) as replica:
            return trip.act(word, replica)

    def prepare(io: _native.Io) -> list[Model]:
        return trip.prepare(io, word)

    def settled(io: _native.Io, snapshots: list[Model]) -> None:
        trip.go_on(word, io, snapshots)

    assert fail_each_call(act, prepare, settled, sticky) > 10
