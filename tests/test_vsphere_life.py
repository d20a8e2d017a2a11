"""A protected machine's whole life at a vCenter, each stage read by qemu-img.

The simulator runs no guests: what a guest would write is written into the overlay here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import require_tool
from replicas import Source, ingesting, make, rollpoint, seen_by_qemu
from rollpoint.disk import open_disk
from rollpoint.hypervisor import vsphere_devices
from rollpoint.hypervisor.base import Drive, Machine
from vcenter import VCenter, certificates, vcenter
from vcenter_proxy import Proxy

__all__ = ["certificates", "vcenter"]

SIZES = {"system": 1 << 20, "data": 640 << 10}
SITE = "DC0_C0_RP0_VM1"  # the protected machine, at the same vCenter


class Life:
    """A replica in a folder of a datastore, and the disks of its source, raw."""

    def __init__(self, vcenter: VCenter, folder: Path, machine: str = "") -> None:
        self.vcenter, self.folder = vcenter, folder
        self.path = Path(vcenter.datastores["LocalDS_0"]) / f"life-{folder.name}"
        self.proxy = Proxy(vcenter)
        self.model = {name: bytearray(size) for name, size in SIZES.items()}
        make(self.path, SIZES)
        for name in SIZES:
            (folder / f"{name}.raw").touch()
        self.keep()
        connection = f"""
            kind = "vsphere"
            server = "127.0.0.1"
            port = {self.proxy.port}
            user = "{vcenter.table().user}"
            password_file = "{vcenter.password_file}"
            ca_file = "{vcenter.certificates.ca}"
            timeout = "20s"
        """
        (self.path / "replica.toml").write_text(
            f"""
            [machine]
            controller = "pvscsi"
            nic = "vmxnet3"
            network = "VM Network"
            [hypervisor]
            {connection}
            machine = "{machine}"
            [hypervisor.datastores]
            LocalDS_0 = "{vcenter.datastores["LocalDS_0"]}"
            [source]
            {connection}
            machine = "{SITE}"
            [source.disks]
            system = "{folder}/system.raw"
            data = "{folder}/data.raw"
            """
        )

    def ask(self, command: str, *options: object) -> dict[str, Any]:
        found: dict[str, Any] = rollpoint(*command.split(), self.path, *options)
        return found

    def keep(self) -> None:
        """The source's disks are as the model says."""
        for name, data in self.model.items():
            with (self.folder / f"{name}.raw").open("r+b") as file:
                file.write(data)

    def write(self, seed: int) -> None:
        """The source writes, through an ingest that runs."""
        client = Source(self.folder / "s", self.model, seed)
        for _ in range(40):
            client.act()
        client.close()
        self.keep()

    def guest(self, byte: int) -> None:
        """The recovered guest writes."""
        for name, disk in self.model.items():
            with open_disk(self.overlay(name), writable=True) as overlay:
                overlay.pwrite(bytes([byte]) * 5000, 12345)
            disk[12345 : 12345 + 5000] = bytes([byte]) * 5000

    def overlay(self, name: str) -> Path:
        return self.path / f"{name}-interim.vmdk"

    def found(self, machine_id: str) -> Any:
        return self.vcenter.admin._find(machine_id)

    def machine(self) -> str:
        identity: str = self.ask("replica show")["id"]
        return identity

    def disks(self, machine_id: str) -> list[str]:
        found = self.found(machine_id)
        disks = vsphere_devices.disks(found.devices)
        return [disk.files[0].rpartition("/")[2] for disk in disks]

    def wired(self, machine_id: str) -> list[bool]:
        cards = vsphere_devices.cards(self.found(machine_id).devices)
        return [card.connectable.startConnected for card in cards]

    def assert_overlays_show(self, model: dict[str, Any]) -> None:
        for name, data in model.items():
            assert seen_by_qemu(self.overlay(name), self.folder) == bytes(data), name


@pytest.fixture
def life(vcenter: VCenter, tmp_path: Path) -> Iterator[Life]:
    require_tool("qemu-img")
    life = Life(vcenter, tmp_path)
    yield life
    life.proxy.close()
    vcenter.admin.power_off(SITE)


def test_a_whole_life_at_a_vcenter(life: Life) -> None:
    life.vcenter.admin.power_on(SITE)
    with ingesting(life.path, life.folder / "s"):
        life.write(1)
        life.ask("mark")
        then = {name: bytes(data) for name, data in life.model.items()}

        # A test beside replication.
        tested = life.ask("failover", "--test", "--no-convert")
        life.write(2)
        trial = life.ask("replica show")["tests"][0]
        machine = trial["running"]["machine"]
        assert life.found(machine).is_on
        assert life.wired(machine) == [False]
        for name, data in then.items():
            assert seen_by_qemu(life.path / trial["disks"][name], life.folder) == data
        assert tested["operation"] == trial["id"]
        life.ask("undo", "--test", trial["id"])
        assert life.found(machine) is None

        # A failover, undone. The source is on: it takes a reason to run beside it.
        life.ask("mark")
        newest = {name: bytes(data) for name, data in life.model.items()}
        skip = ("--skip", "source-fenced=the test says so")
        done = life.ask("failover", "--no-convert", *skip)
        assert done["state"] == "Failover"
        assert life.found(life.machine()).is_on
        assert life.disks(life.machine()) == ["system-interim.vmdk", "data-interim.vmdk"]
        assert life.wired(life.machine()) == [True]
        life.assert_overlays_show(newest)
        life.ask("undo")
        assert life.found(life.machine()) is None

        # Planned, with what the guest writes there; back; and it is the source again.
        planned = life.ask("failover", "--planned", "--no-convert")
        assert planned["state"] == "Failover"
        assert not life.found(SITE).is_on
        life.assert_overlays_show(life.model)
        life.guest(0x51)
        assert life.ask("failback")["state"] == "ReadyToSwitch"
        assert life.ask("failback switch")["state"] == "Failback"
        assert life.found(SITE).is_on
        assert not life.found(life.machine()).is_on
        for name, data in life.model.items():
            assert (life.folder / f"{name}.raw").read_bytes() == bytes(data)
        assert life.ask("failback commit")["state"] == "Ready"
        assert life.found(life.machine()) is None

    # The source is lost, and the replica is the machine from now on.
    with ingesting(life.path, life.folder / "s"):
        life.write(3)  # it says that nothing is missing: what failed back is what it has
        life.ask("mark", "--caught-up")
    life.vcenter.admin.power_off(SITE)
    assert life.ask("failover", "--no-convert")["state"] == "Failover"
    life.assert_overlays_show(life.model)
    life.guest(0x52)
    assert life.ask("permanent")["state"] == "Permanent"
    for name, data in life.model.items():
        assert seen_by_qemu(life.path / f"{name}.vmdk", life.folder) == bytes(data)


def test_a_machine_that_was_there_stays_with_the_merged_disks(
    vcenter: VCenter, tmp_path: Path
) -> None:
    """Named in replica.toml: it has the bases before, and after permanent, at their places."""
    name = "DC0/vm/DC0_C0_RP0_VM0"
    life = Life(vcenter, tmp_path, name)
    vcenter.admin.power_off(name)
    bases = tuple(Drive(str(life.path / f"{disk}.vmdk")) for disk in SIZES)
    try:
        vcenter.admin.start(Machine(name, "web", bases, bus="pvscsi"))
        vcenter.admin.power_off(name)
        vcenter.set(name, annotation="these are its own")
        with ingesting(life.path, life.folder / "s"):
            life.write(4)
            life.ask("mark")
        assert life.ask("failover", "--no-convert")["state"] == "Failover"
        assert life.disks(name) == ["system-interim.vmdk", "data-interim.vmdk"]
        life.guest(0x53)
        assert life.ask("permanent")["state"] == "Permanent"
        assert life.disks(name) == ["system.vmdk", "data.vmdk"]
        for disk, data in life.model.items():
            assert seen_by_qemu(life.path / f"{disk}.vmdk", life.folder) == bytes(data)
    finally:
        life.proxy.close()
