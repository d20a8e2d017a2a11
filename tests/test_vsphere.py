"""Machines at a vCenter: govmomi's simulator over HTTPS."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from rollpoint.errors import StateError
from rollpoint.hypervisor.base import Drive, Machine
from vcenter import VCenter, certificates, vcenter

__all__ = ["certificates", "vcenter"]

_NUMBERS = itertools.count()


class Bench:
    """A folder on a datastore, and files in it that the simulator takes for disks."""

    def __init__(self, vcenter: VCenter) -> None:
        self.vcenter = vcenter
        self.name = f"web{next(_NUMBERS)}"
        self.folder = Path(vcenter.datastores["LocalDS_0"]) / self.name
        self.folder.mkdir()

    def drive(self, name: str) -> Drive:
        for file in (f"{name}.vmdk", f"{name}-flat.vmdk"):
            (self.folder / file).touch()
        return Drive(str(self.folder / f"{name}.vmdk"))

    def files(self, machine_id: str) -> list[str]:
        from rollpoint.hypervisor import vsphere_devices

        found = self.vcenter.admin._find(machine_id)
        assert found is not None
        return [disk.files[0] for disk in vsphere_devices.disks(found.devices)]


@pytest.fixture
def bench(vcenter: VCenter) -> Iterator[Bench]:
    return Bench(vcenter)


def test_a_machine_that_is_there_runs_from_the_overlays_and_gets_its_disks_back(
    bench: Bench,
) -> None:
    own = bench.files("DC0_C0_RP0_VM0")
    drive = bench.drive("web-interim")
    machine = Machine("DC0_C0_RP0_VM0", "web", (drive,), operation="op-1", replica="web", point=7)
    hypervisor = bench.vcenter.new()
    hypervisor.power_off(machine.id)
    assert hypervisor.status(machine.id) == "off"
    hypervisor.start(machine)
    assert bench.files(machine.id) == [f"[LocalDS_0] {bench.name}/web-interim.vmdk"]
    assert bench.vcenter.new().started_by(machine.id) == "op-1"
    with pytest.raises(StateError, match="is on"):
        hypervisor.let_go(machine.id)
    bench.vcenter.new().power_off(machine.id)
    bench.vcenter.new().let_go(machine.id)
    assert bench.files(machine.id) == own
    assert (bench.folder / "web-interim.vmdk").exists()
