"""Failback: changes go to the targets, the replica takes its machine back or lets it go."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from fakes import Plain
from replicas import SIZES, Source, empty_model, ingesting, make, rollpoint, seen_by_qemu
from rollpoint import failback, operation, replication
from rollpoint.disk import open_disk
from rollpoint.errors import Error, HypervisorError, StateError, UnsupportedError, UsageError
from rollpoint.hypervisor.base import Handle, Machine, State
from rollpoint.manifest import Step
from rollpoint.replica import Replica

Snapshot = dict[str, bytes]


class World(Plain):
    """Machines of one place, in memory; those that run can be written through `write`."""

    def __init__(self, can_freeze: bool = True) -> None:
        self.can_freeze = can_freeze
        self.on: dict[str, list[str]] = {}  # machine -> paths of what it writes
        self.known: set[str] = set()
        self.starts = 0
        self.on_freeze: Callable[[], None] = lambda: None

    def start(self, machine: Machine) -> Handle:
        paths = [drive.path for drive in machine.drives]
        if machine.id not in self.on:
            self.starts += 1
            self.on[machine.id] = paths
        assert self.on[machine.id] == paths
        self.known.add(machine.id)
        return Handle(machine.id, 1, 0, "")

    def power_on(self, machine_id: str) -> Handle:
        assert machine_id in self.known
        self.starts += machine_id not in self.on
        self.on.setdefault(machine_id, [])
        return Handle(machine_id, 1, 0, "")

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        return marker

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        self.on.pop(machine_id, None)

    def status(self, machine_id: str) -> State:
        return "running" if machine_id in self.on else "off"

    def is_known(self, machine_id: str) -> bool:
        return machine_id in self.known

    def freeze(self, machine_id: str, overlays: Mapping[str, str]) -> None:
        if not self.can_freeze:
            raise UnsupportedError("it cannot")
        if machine_id not in self.on:
            raise HypervisorError("it is off")
        self.on[machine_id] = [overlays.get(path, path) for path in self.on[machine_id]]
        self.on_freeze()

    def write(self, machine_id: str, models: dict[str, bytearray], seed: int) -> None:
        """The guest writes to its disks, and to the models of them."""
        rng = random.Random(seed)
        for path, name in zip(self.on[machine_id], sorted(models), strict=True):
            scribble(path, models[name], rng)


def scribble(path: str, model: bytearray, rng: random.Random, times: int = 6) -> None:
    with open_disk(path, writable=True) as disk:
        disk.keep_cid()  # as a hypervisor that has changed it once before
        for _ in range(times):
            length = rng.randrange(1, 9000)
            offset = rng.randrange(len(model) - length)
            data = b"" if rng.random() < 0.2 else rng.randbytes(length)
            if data:
                disk.pwrite(data, offset)
            else:
                disk.zero(length, offset)
            model[offset : offset + length] = data or bytes(length)


class Life:
    """A replica with three points, failed over to the second, and targets with what the
    source had at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "web01"
        make(self.path)
        self.snapshots: list[Snapshot] = []
        with ingesting(self.path, folder / "s"), Replica.open(self.path) as replica:
            source = Source(folder / "s", empty_model(), 11)
            for _ in range(3):
                for _ in range(12):
                    source.act()
                replication.mark(replica)
                self.snapshots.append(source.snapshot())
            source.close()
        self.targets = {name: str(folder / f"{name}.img") for name in SIZES}
        for name, place in self.targets.items():
            Path(place).write_bytes(self.snapshots[-1][name])
        self.models = {name: bytearray(data) for name, data in self.snapshots[1].items()}
        self.here, self.there = World(), World()
        self.steps: list[Step] = []

    def say(self, text: str) -> None:
        (self.path / "replica.toml").write_text(text)

    def fail_over(self, running: bool = False) -> None:
        with Replica.open(self.path) as replica:
            skip = {"source-fenced": "a test"}
            done = operation.failover(
                replica, 2, hypervisor=self.here, power_on=running, skip=skip
            )
            self.machine = replica.manifest.id
        if running:
            self.here.write(self.machine, self.models, 1)
        else:
            rng = random.Random(1)
            for name, overlay in done.interims.items():
                scribble(overlay, self.models[name], rng)

    def state(self) -> str:
        with Replica.open(self.path) as replica:
            return replica.manifest.state

    def seen(self, tmp_path: Path) -> Snapshot:
        """What the replica's overlays hold, as QEMU reads them."""
        with Replica.open(self.path) as replica:
            recovered = replica.manifest.recovered
            assert recovered is not None
            return {
                name: seen_by_qemu(self.path / file, tmp_path)
                for name, file in recovered.interims.items()
            }

    def require_targets(self) -> None:
        for name, place in self.targets.items():
            assert Path(place).read_bytes() == self.models[name], name


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path)


def test_a_replica_that_is_off_goes_back_and_is_ready_again(life: Life, tmp_path: Path) -> None:
    life.fail_over()
    with Replica.open(life.path) as replica:
        done = failback.start(replica, life.targets)
        assert done.state == "ReadyToSwitch"
        done = failback.switch(replica)
        assert done.state == "Failback"
        life.require_targets()
        done = failback.commit(replica)
        assert (done.state, replica.manifest.failback) == ("Ready", None)
        assert replica.manifest.recovered is None
        newest = replica.points.latest
        assert (newest.id, newest.label) == (done.point, "failback")
        assert [point.id for point in replica.points] == [1, 2, 3, newest.id]
    for name in SIZES:
        assert seen_by_qemu(life.path / f"{name}-journal.vmdk", tmp_path) == life.models[name]
    assert [each.name for each in life.path.iterdir() if "interim" in each.name] == []


def test_points_before_the_failback_stay_what_they_were(life: Life, tmp_path: Path) -> None:
    life.fail_over()
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets)
        failback.switch(replica)
        point = failback.commit(replica).point
        assert point is not None
        for number, wanted in [*enumerate(life.snapshots, 1), (point, life.models)]:
            done = operation.failover(replica, number, power_on=False)
            for name, overlay in done.interims.items():
                assert seen_by_qemu(overlay, tmp_path) == wanted[name], (number, name)
            operation.undo(replica)


@pytest.mark.parametrize("switched", [False, True])
def test_a_failback_that_is_undone_leaves_the_failover(
    life: Life, tmp_path: Path, switched: bool
) -> None:
    life.fail_over()
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets)
        if switched:
            failback.switch(replica)
        done = failback.undo(replica)
        assert (done.state, replica.manifest.failback) == ("Failover", None)
        assert life.seen(tmp_path) == life.models
        assert operation.undo(replica).state == "Ready"
    for name in SIZES:
        journal = life.path / f"{name}-journal.vmdk"
        assert seen_by_qemu(journal, tmp_path) == life.snapshots[-1][name]


def test_what_cannot_be_a_target_is_refused_before_anything_is_done(
    life: Life, tmp_path: Path
) -> None:
    small = tmp_path / "small.img"
    small.write_bytes(bytes(4096))
    twice = dict.fromkeys(SIZES, life.targets["b"])
    own = {**life.targets, "a": str(life.path / "a-flat.vmdk")}
    wrong: list[tuple[dict[str, str], type[Error]]] = [
        ({"a": life.targets["a"]}, UsageError),
        ({**life.targets, "a": str(small)}, UsageError),
        ({**life.targets, "a": str(tmp_path / "none.img")}, Error),
        ({**life.targets, "c": str(small)}, Error),
        (twice, UsageError),
        (own, UsageError),
    ]
    with Replica.open(life.path) as replica, pytest.raises(StateError):
        failback.start(replica, life.targets)
    life.fail_over()
    with Replica.open(life.path) as replica:
        for targets, kind in wrong:
            with pytest.raises(kind):
                failback.start(replica, targets)
            replica.refresh()
            assert replica.manifest.operation is None
            assert (replica.manifest.state, replica.manifest.failback) == ("Failover", None)
        assert life.seen(tmp_path) == life.models


def test_a_replica_that_goes_back_takes_no_other_command(life: Life) -> None:
    life.fail_over()
    with Replica.open(life.path) as replica:
        for act in (failback.switch, failback.commit, failback.undo):
            with pytest.raises(StateError):
                act(replica)
        failback.start(replica, life.targets)
        for step in (failback.switch, None):
            for act in (operation.undo, operation.permanent, operation.failover, failback.start):
                with pytest.raises(StateError, match="its state is"):
                    act(replica)
            if step is not None:
                with pytest.raises(StateError):
                    failback.commit(replica)
                step(replica)


def test_the_command_line_leads_through_a_failback(life: Life) -> None:
    life.fail_over()
    targets = [f"--target={name}={place}" for name, place in life.targets.items()]
    assert rollpoint("failback", life.path, *targets)["state"] == "ReadyToSwitch"
    found = rollpoint("failback", "status", life.path)
    assert (found["state"], found["failback"]["rest_bytes"]) == ("ReadyToSwitch", 0)
    assert set(found["failback"]["targets"]) == set(SIZES)
    assert rollpoint("failback", "switch", life.path)["state"] == "Failback"
    assert rollpoint("failback", "undo", life.path)["state"] == "Failover"
    rollpoint("failback", life.path, *targets, "--restored", "--new", code=2)
    rollpoint("failback", life.path, *targets, "--restored", "--once")
    rollpoint("failback", "switch", life.path, "--at", "2026-01-01T00:00:00Z", code=2)
    rollpoint("failback", "switch", life.path, "--when-rest", "10s")
    assert rollpoint("failback", "commit", life.path)["state"] == "Ready"
    assert rollpoint("failback", "status", life.path)["failback"] is None
    life.require_targets()
