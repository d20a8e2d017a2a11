"""Failback of machines that run in QEMU: their overlays frozen, their disks switched over."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypervisor_makers import QemuMaker
from replicas import Source, empty_model, ingesting, make, seen_by_qemu
from rollpoint import failback, operation, replication
from rollpoint.manifest import MachineSettings
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


def test_a_machine_goes_back_while_it_runs_and_comes_up_at_its_own_disks(
    place: Path,
) -> None:
    path, seed = place / "web01", 20261123
    make(path, SIZES)
    (path / "replica.toml").write_text(
        f'[machine]\nmemory = "16M"\n[source]\nmachine = "original"\nrun = "{place}/run"\n'
        '[fencing]\naccept = ["none"]\n[failback]\nrounds = 3\nrest = "0s"\nshutdown = "100ms"\n'
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
        for name, target in targets.items():
            assert Path(target).read_bytes() == models[name], name
        there = Guest(place, "original", models, seed + 1)
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
        for name, target in targets.items():
            assert Path(target).read_bytes() == models[name], name
