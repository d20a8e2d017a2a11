"""Failback of machines that run in QEMU: their overlays frozen, their disks switched over."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypervisor_makers import QemuMaker
from replicas import Source, empty_model, ingesting, make, seen_by_qemu
from rollpoint import failback, operation, replication
from rollpoint.manifest import MachineSettings, Step
from rollpoint.replica import Replica

SIZES = {"a": 1 << 20, "b": 640 << 10}
Models = dict[str, bytearray]


class Guest(QemuMaker):
    """Writes as the guest of a machine would, and keeps models of its disks."""

    def __init__(self, folder: Path, machine: str, models: Models, seed: int) -> None:
        super().__init__(folder)
        self.machine_id, self.models = machine, models
        self.rng = random.Random(seed)

    def writes(self, times: int = 4) -> None:
        for number, model in enumerate(self.models.values()):
            for _ in range(times):
                length = 512 * self.rng.randrange(1, 40)
                offset = 512 * self.rng.randrange((len(model) - length) // 512)
                byte = self.rng.randrange(256)
                self.write(self.machine_id, number, byte, offset, length)
                model[offset : offset + length] = bytes([byte]) * length


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Of a replica with two points, and of the source's run directory."""
    yield tmp_path
    for root in (tmp_path / "web01", tmp_path):
        maker = QemuMaker(root)
        maker.close()


def failed_over(place: Path, seed: int) -> tuple[Path, Guest, dict[str, str]]:
    """A replica whose machine runs and has written; targets with what the source had."""
    path = place / "web01"
    make(path, SIZES)
    (path / "replica.toml").write_text(
        f'[machine]\nmemory = "16M"\n[source]\nmachine = "original"\nrun = "{place}/run"\n'
        '[failback]\nrounds = 3\nrest = "0s"\nshutdown = "100ms"\n'
    )
    models = empty_model(SIZES)
    with ingesting(path, place / "s"), Replica.open(path) as replica:
        source = Source(place / "s", models, seed)
        for _ in range(2):
            for _ in range(10):
                source.act()
            replication.mark(replica)
        source.close()
    targets = {name: str(place / f"{name}.img") for name in SIZES}
    for name, target in targets.items():
        Path(target).write_bytes(models[name])
    with Replica.open(path) as replica:
        skip = {"source-fenced": "a test"}
        settings = MachineSettings(memory_bytes=16 << 20)
        operation.failover(replica, 2, settings=settings, skip=skip)
        here = Guest(path, replica.manifest.id, models, seed)
    here.writes()
    return path, here, targets


def require(targets: dict[str, str], models: Models) -> None:
    for name, target in targets.items():
        assert Path(target).read_bytes() == models[name], name


def test_a_machine_goes_back_while_it_runs_and_comes_up_at_its_own_disks(
    place: Path,
) -> None:
    path, here, targets = failed_over(place, 20261123)
    models = here.models
    with Replica.open(path) as replica:
        # and back again, with what was frozen below the disks
        failback.start(replica, targets, "restored", holds=2)
        here.writes()
        failback.undo(replica)
        here.writes()

        failback.start(replica, targets, "restored")
        assert replica.manifest.failback is not None
        assert replica.manifest.recovered is not None
        assert len(replica.manifest.recovered.frozen) >= 2
        here.writes()
        done = failback.switch(replica)
        assert done.state == "Failback"
        assert here.new().status(here.machine_id) == "off"
        require(targets, models)
        there = Guest(place, "original", models, 20261124)
        assert there.drives("original") == list(targets.values())

        failback.undo(replica)
        assert there.new().status("original") == "off"
        here.writes()
        failback.start(replica, targets, "restored")
        failback.switch(replica)
        failback.commit(replica)
        for name in SIZES:
            assert seen_by_qemu(path / f"{name}-journal.vmdk", place) == models[name]
        there.writes()
        there.new().power_off("original")
        require(targets, models)


@pytest.mark.parametrize(
    ("command", "step", "moment"),
    [("start", "copy", "done"), ("switch", "shut down", "done"), ("switch", "start", "done")],
)
def test_killed_while_the_machine_writes_it_is_resumed(
    place: Path, command: str, step: str, moment: str
) -> None:
    path, here, targets = failed_over(place, 5)

    def act(replica: Replica, on_step: Callable[[Step], None] | None = None) -> object:
        if command == "start":
            return failback.start(replica, targets, "restored", on_step=on_step)
        return failback.switch(replica, on_step=on_step)

    def die(each: Step) -> None:
        if (each.name, each.state) == (step, moment):
            os._exit(9)

    if command == "switch":
        with Replica.open(path) as replica:
            failback.start(replica, targets, "restored")
        here.writes()
    child = os.fork()
    if child == 0:
        try:
            with Replica.open(path) as replica:
                act(replica, die)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    if command == "start":
        here.writes()
    with Replica.open(path) as replica:
        operation.resume(replica)
        if command == "start":
            here.writes()
            failback.switch(replica)
        assert replica.manifest.state == "Failback"
        require(targets, here.models)
        there = Guest(place, "original", here.models, 6)
        assert (here.new().status(here.machine_id), there.new().status("original")) == (
            "off", "running",
        )  # fmt: skip
        failback.commit(replica)
        for name in SIZES:
            assert seen_by_qemu(path / f"{name}-journal.vmdk", place) == here.models[name]
