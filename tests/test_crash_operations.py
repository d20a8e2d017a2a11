"""Power cuts before operations: while the replica was written, and while marks were made.

test_operation_crash.py cuts the power inside of operations. Here it is cut before them, so
that a failover finds what a crash left of writes and marks.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from replicas import bytes_of, change
from rollpoint import _native, operation, replication
from rollpoint.disk import open_disk
from rollpoint.errors import NotFoundError
from rollpoint.replica import Replica

SIZES = {"a": 48 * 1024 + 512, "b": 32 * 1024}
BUDGET = 120
LONG_BUDGET = 6000

Model = dict[str, bytes]


class Life:
    """What two disks went through: their content after each change, and what was promised."""

    def __init__(self, seed: int) -> None:
        self.io = _native.Io.simulate()
        self.versions = {name: [bytes(size)] for name, size in SIZES.items()}
        self.points: list[Model] = []
        self.promised: list[tuple[dict[str, int], int]] = []
        Replica.create("/r", list(SIZES.items()), segment_bytes=65536, io=self.io).close()
        self.io.settle()
        rng = random.Random(seed)
        with (
            Replica.open("/r", self.io) as replica,
            replica.locked(),
            replica.journals(writable=True, with_bases=True) as journals,
        ):
            disks = dict(zip(journals.names, journals.natives, strict=True))
            for _ in range(14):
                what = rng.random()
                name = rng.choice(journals.names)
                if what < 0.6:
                    model = bytearray(self.versions[name][-1])
                    change(disks[name].disk(), model, rng)
                    self.versions[name].append(bytes(model))
                elif what < 0.7:
                    journals.commit()
                    self.promise()
                else:
                    self.points.append(self.now())
                    journals.mark("crash")
                    self.promise()

    def now(self) -> Model:
        return {name: versions[-1] for name, versions in self.versions.items()}

    def promise(self) -> None:
        ages = {name: len(versions) - 1 for name, versions in self.versions.items()}
        self.promised.append((ages, len(self.points)))
        self.io.acknowledge(len(self.promised))


def check_latest(life: Life, state: _native.CrashState) -> None:
    """Everything acknowledged is in the latest point; every point is a cut through all disks."""
    ages, points = {name: 0 for name in SIZES}, 0
    if state.acknowledged:
        ages, points = life.promised[state.acknowledged[-1] - 1]
    with Replica.open("/r", state.io) as replica:
        try:
            done = operation.failover(replica, power_on=False)
        except NotFoundError:  # no point ever: somebody has to mark one
            assert points == 0
            replication.mark(replica)
            done = operation.failover(replica, power_on=False)
        for name, interim in done.interims.items():
            found = bytes_of(interim, state.io)
            # A write of several grains may be there in part unless it was acknowledged.
            assert all(
                any(version[at : at + 512] == found[at : at + 512] for version in later)
                for later in [life.versions[name][ages[name] :]]
                for at in range(0, len(found), 512)
            ), (name, done.point)
        operation.undo(replica)
        for number, model in enumerate(life.points[:points], 1):
            if number not in (points, 1):
                continue
            done = operation.failover(replica, number, power_on=False)
            for name, interim in done.interims.items():
                assert bytes_of(interim, state.io) == model[name], number
            operation.undo(replica)
        assert replication.mark(replica).id > points


def sweep_life(budget: int, seed: int) -> int:
    life = Life(seed)
    sweep = life.io.crash_states(budget=budget, seed=seed, garbage=False)
    for state in sweep:
        try:
            check_latest(life, state)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}\n{state.explain()}") from error
    return sweep.distinct


def test_a_failover_after_a_power_cut_loses_nothing_acknowledged() -> None:
    found = sum(sweep_life(BUDGET // 2, seed) for seed in (1, 2))
    assert found >= BUDGET // 2


@pytest.mark.long
def test_a_failover_after_thousands_of_power_cuts_loses_nothing_acknowledged() -> None:
    print(sum(sweep_life(LONG_BUDGET // 20, seed) for seed in range(10, 30)), "distinct states")


def test_a_mark_that_was_cut_between_two_disks_hides_nothing_from_the_latest_point() -> None:
    """Disk a has the mark and b does not: what a had acknowledged is still in the latest."""
    io = _native.Io.simulate()
    model = bytearray(SIZES["a"])
    Replica.create("/r", list(SIZES.items()), segment_bytes=65536, io=io).close()
    with (
        Replica.open("/r", io) as replica,
        replica.locked(),
        replica.journals(writable=True, with_bases=True) as journals,
    ):
        journals.mark("crash")
        journals.natives[journals.names.index("a")].disk().pwrite(b"acknowledged", 4096)
        model[4096 : 4096 + 12] = b"acknowledged"
        journals.commit()
        io.settle()
        journals.mark("crash")
    cut = 0
    for state in io.crash_states(seed=1, garbage=False):
        with Replica.open("/r", state.io) as replica:
            with replica.journals() as journals:
                cut += len({len(native.points()) for native in journals.natives}) > 1
            done = operation.failover(replica, power_on=False)
            assert bytes_of(done.interims["a"], state.io) == model, state.explain()
    assert cut


# ---- power cuts while resume is at work ----


def recovered(io: _native.Io, points: list[Model]) -> Model:
    """Fail over to the first point and write into the overlays."""
    rng = random.Random(4)
    model = {name: bytearray(data) for name, data in points[0].items()}
    with Replica.open("/r", io) as replica:
        done = operation.failover(replica, 1, power_on=False)
        for name, interim in done.interims.items():
            with open_disk(interim, writable=True, io=io) as disk:
                change(disk.writing(), model[name], rng)
    return {name: bytes(disk) for name, disk in model.items()}


def check_end(io: _native.Io, kind: str, model: Model, latest: Model) -> None:
    """Resumed, or asked for again, the operation has come to its end."""
    with Replica.open("/r", io) as replica:
        if operation.resume(replica) is None and replica.manifest.state == ENDS[kind][0]:
            ENDS[kind][2](replica)
        assert (replica.manifest.state, replica.manifest.operation) == (ENDS[kind][1], None)
        names = replica.directory.list()
    for name in SIZES:
        if kind == "failover":
            assert bytes_of(f"/r/{name}-interim.vmdk", io) == model[name]
        elif kind == "undo":
            assert bytes_of(f"/r/{name}-journal.vmdk", io) == latest[name]
        else:
            assert bytes_of(f"/r/{name}.vmdk", io) == model[name]
    if kind != "failover":
        assert not [name for name in names if "-interim" in name]


# Of each operation: the state it begins in, the state it comes to, and how it is asked for.
ENDS: dict[str, tuple[str, str, Callable[[Replica], object]]] = {
    "failover": (
        "Ready", "Failover", lambda replica: operation.failover(replica, 1, power_on=False)
    ),
    "undo": ("Failover", "Ready", operation.undo),
    "permanent": ("Failover", "Permanent", operation.permanent),
}  # fmt: skip


def sweep_twice(kind: str, first: int, second: int, seed: int) -> int:
    """Cut an operation, resume it, and cut that as well."""
    life = Life(seed)
    while len(life.points) < 2:
        life = Life(seed := seed + 100)
    latest, model = life.now(), life.points[0]
    with Replica.open("/r", life.io) as replica:
        replication.mark(replica)
    if kind != "failover":
        model = recovered(life.io, life.points)
    life.io.settle()
    with Replica.open("/r", life.io) as replica:
        ENDS[kind][2](replica)
    found = 0
    for cut in life.io.crash_states(budget=first, seed=seed, garbage=False):
        check_end(cut.io, kind, model, latest)  # which is recorded, and cut in its turn
        sweep = cut.io.crash_states(budget=second, seed=seed, garbage=False)
        for state in sweep:
            try:
                check_end(state.io, kind, model, latest)
            except Exception as error:
                raise AssertionError(
                    f"{kind}, seed {seed}: {error!r}\n{cut.explain()}\n{state.explain()}"
                ) from error
        found += sweep.distinct
    return found


@pytest.mark.parametrize("kind", ENDS)
def test_a_resumption_that_is_cut_short_is_resumed(kind: str) -> None:
    assert sweep_twice(kind, 12, 10, 1) > 20


@pytest.mark.long
@pytest.mark.parametrize("kind", ENDS)
def test_a_thousand_resumptions_that_are_cut_short_are_resumed(kind: str) -> None:
    assert sum(sweep_twice(kind, 100, 40, seed) for seed in range(10, 16)) > 1000
