"""Machines at a vCenter: govmomi's simulator over HTTPS."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from rollpoint import config
from rollpoint.errors import (
    HypervisorError,
    NotFoundError,
    StateError,
    UnsupportedError,
    UsageError,
)
from rollpoint.hypervisor import vsphere_devices, vsphere_note, vsphere_template
from rollpoint.hypervisor.base import Card, Drive, Machine
from rollpoint.hypervisor.vsphere_inventory import Found
from vcenter import VCenter, certificates, vcenter
from vcenter_proxy import Proxy

__all__ = ["certificates", "vcenter"]

THERE = "DC0_C0_RP0_VM0"  # machines that the simulator begins with
OTHER = "DC0_C0_RP0_VM1"
MAC = "00:50:56:01:02:03"
UP = {"guest__toolsRunningStatus": "guestToolsRunning", "guestHeartbeatStatus": "yellow"}
_NUMBERS = itertools.count()


class Bench:
    """A folder on a datastore, with files in it that the simulator takes for disks."""

    def __init__(self, vcenter: VCenter) -> None:
        self.vcenter = vcenter
        self.number = next(_NUMBERS)
        self.folder = Path(vcenter.datastores["LocalDS_0"]) / f"web{self.number}"
        self.folder.mkdir()
        self.proxy = Proxy(vcenter)
        self._made: list[str] = []

    def drive(self, name: str) -> Drive:
        for file in (f"{name}.vmdk", f"{name}-flat.vmdk"):
            (self.folder / file).touch()
        return Drive(str(self.folder / f"{name}.vmdk"))

    def machine(self, *names: str, id: str = "", **said: Any) -> Machine:
        """A machine that the simulator does not have, unless it is named."""
        id = id or f"machine-{self.number}-{len(self._made)}"
        self._made.append(id)
        settings = {"operation": "op-1", "replica": "web", "point": 7, "bus": "pvscsi", **said}
        drives = tuple(self.drive(name) for name in names or ("web-interim",))
        return Machine(id, settings.pop("name", id), drives, **settings)

    def found(self, machine_id: str) -> Found:
        found = self.vcenter.admin._find(machine_id)
        assert found is not None
        return found

    def files(self, machine_id: str) -> list[str]:
        disks = vsphere_devices.disks(self.found(machine_id).devices)
        return [disk.files[0].rpartition("/")[2] for disk in disks]

    def places(self, machine_id: str) -> list[tuple[str, int, int]]:
        disks = vsphere_devices.disks(self.found(machine_id).devices)
        return [(each.place.family, each.place.bus, each.place.unit) for each in disks]

    def cards(self, machine_id: str) -> list[tuple[str, str, bool]]:
        """Network, MAC, whether its wire is in at power-on."""
        name_of = self.vcenter.admin._networks.name_of
        return [
            (name_of(card), card.macAddress.lower(), card.connectable.startConnected)
            for card in vsphere_devices.cards(self.found(machine_id).devices)
        ]

    def close(self) -> None:
        self.proxy.close()
        for name in {*self._made} - {THERE}:
            self.vcenter.remove(name)
        self.reset()

    def reset(self) -> None:
        """The machine that is shared is off and as it was."""
        path = f"DC0/vm/{THERE}"
        found = self.found(path)
        if found.is_on:
            self.vcenter.admin.power_off(path)
        if found.note is not None:
            self.vcenter.admin.let_go(path)


@pytest.fixture
def bench(vcenter: VCenter) -> Iterator[Bench]:
    made = Bench(vcenter)
    made.reset()
    yield made
    made.close()


def test_a_machine_that_is_there_runs_from_the_overlays_and_gets_its_disks_back(
    bench: Bench,
) -> None:
    own, places, cards = bench.files(THERE), bench.places(THERE), bench.cards(THERE)
    machine = bench.machine("web-interim", id=THERE)
    bench.vcenter.new().start(machine)
    assert bench.files(THERE) == ["web-interim.vmdk"]
    assert bench.places(THERE) == places
    assert bench.cards(THERE) == cards, "nothing was said of them"
    assert bench.vcenter.new().started_by(THERE) == "op-1"
    with pytest.raises(StateError, match="is on"):
        bench.vcenter.new().let_go(THERE)
    bench.vcenter.new().power_off(THERE)
    bench.vcenter.new().let_go(THERE)
    assert (bench.files(THERE), bench.places(THERE), bench.cards(THERE)) == (own, places, cards)
    assert bench.vcenter.new().started_by(THERE) == ""
    assert (bench.folder / "web-interim.vmdk").exists()


def test_a_machine_is_found_by_instance_uuid_path_and_name(bench: Bench) -> None:
    uuid = bench.found(THERE).values["config.instanceUuid"]
    hypervisor = bench.vcenter.new()
    for name in (uuid, f"/DC0/vm/{THERE}", f"DC0/vm/{THERE}", THERE):
        assert hypervisor.is_known(name), name
    for name in ("DC0/vm/none", "none", "6f0b1c52-52c9-4e0c-9a55-7d2f7a5c3f99"):
        assert not hypervisor.is_known(name), name
        assert hypervisor.status(name) == "off"
    with pytest.raises(UsageError, match="no machine"):
        hypervisor.status("DC0/vm")


def test_two_machines_of_a_name_are_told_apart_by_the_operator(bench: Bench) -> None:
    machine = bench.machine("a")
    bench.vcenter.new().start(machine)
    bench.vcenter.set(machine.id, name=OTHER)
    with pytest.raises(UsageError, match="2 machines"):
        bench.vcenter.new().status(OTHER)
    assert bench.vcenter.new().status(machine.id) == "running", "its note holds its id"


def test_the_note_tells_people_and_programs_and_leaves_other_words(bench: Bench) -> None:
    bench.vcenter.set(THERE, annotation="Owner: accounting\nbackup: daily")
    own = bench.files(THERE)
    hypervisor = bench.vcenter.new()
    hypervisor.start(bench.machine("web-interim", id=THERE))
    text = bench.found(THERE).annotation
    assert text.startswith("Owner: accounting\nbackup: daily\nRollpoint: replica web, restore poin")
    note = json.loads(text.splitlines()[-1].removeprefix("rollpoint-note: "))
    assert note["operation"] == "op-1"
    assert note["point"] == 7
    assert [each["file"].rpartition("/")[2] for each in note["former"]] == own
    hypervisor.power_off(THERE)
    hypervisor.let_go(THERE)
    text = bench.found(THERE).annotation
    assert text.startswith("Owner: accounting\nbackup: daily\nRollpoint: ")
    assert "rollpoint-note" not in text
    bench.vcenter.set(THERE, annotation="-")


def test_a_damaged_note_stops_everything(bench: Bench) -> None:
    machine = bench.machine("web-interim", id=THERE)
    for line in ('rollpoint-note: {"version":1,', 'rollpoint-note: {"version":9,"machine":"x"}'):
        bench.vcenter.set(THERE, annotation=line)
        try:
            for call in (bench.vcenter.new().let_go, bench.vcenter.new().status):
                with pytest.raises(HypervisorError, match="damaged"):
                    call(THERE)
            with pytest.raises(HypervisorError, match="damaged"):
                bench.vcenter.new().start(machine)
        finally:
            task = _vm(bench, THERE).ReconfigVM_Task(_spec(annotation="-"))
            bench.vcenter.admin._session.finish(task, "mending", 10)


def _vm(bench: Bench, name: str) -> Any:
    path = f"DC0/vm/{name}"
    return bench.vcenter.admin._session.content.searchIndex.FindByInventoryPath(path)


def _spec(**said: Any) -> Any:
    from pyVmomi import vim

    return vim.vm.ConfigSpec(**said)


def test_overlays_take_the_places_of_the_disks_they_are_named_after(bench: Bench) -> None:
    bench.vcenter.new().start(bench.machine("root", "data", "logs", id=THERE))
    bench.vcenter.new().power_off(THERE)
    bench.vcenter.set(THERE, annotation="-")  # as if they were its own
    assert bench.files(THERE) == ["root.vmdk", "data.vmdk", "logs.vmdk"]
    names = ("logs-interim", "root-interim", "data-interim-000002")
    bench.vcenter.new().start(bench.machine(*names, id=THERE))
    assert bench.files(THERE) == [
        "root-interim.vmdk",
        "data-interim-000002.vmdk",
        "logs-interim.vmdk",
    ]
    assert bench.vcenter.new().start(bench.machine(*names, id=THERE)).id == THERE
    bench.vcenter.new().power_off(THERE)
    bench.vcenter.new().let_go(THERE)
    assert bench.files(THERE) == ["root.vmdk", "data.vmdk", "logs.vmdk"]


def test_more_disks_than_before_skip_the_controllers_own_unit(bench: Bench) -> None:
    names = [f"d{number}" for number in range(9)]
    machine = bench.machine(*names)
    bench.vcenter.new().start(machine)
    assert bench.files(machine.id) == [f"{name}.vmdk" for name in names]
    assert [unit for _, _, unit in bench.places(machine.id)] == [0, 1, 2, 3, 4, 5, 6, 8, 9]


@pytest.mark.parametrize(
    ("bus", "first"),
    [
        ("pvscsi", ("scsi", 0, 0)),
        ("lsilogic", ("scsi", 0, 0)),
        ("lsisas", ("scsi", 0, 0)),
        ("ahci", ("sata", 0, 0)),
        ("nvme", ("nvme", 0, 0)),
        ("ide", ("ide", 0, 0)),
    ],
)
def test_each_controller_that_vsphere_has(bench: Bench, bus: str, first: Any) -> None:
    machine = bench.machine("a", "b", bus=bus)
    bench.vcenter.new().start(machine)
    assert bench.places(machine.id)[0] == first
    assert bench.files(machine.id) == ["a.vmdk", "b.vmdk"]


def test_what_vsphere_has_not_is_refused_before_anything_is_made(bench: Bench) -> None:
    hypervisor = bench.vcenter.new()
    card = Card("virtio-net", MAC, "VM Network")
    for machine in (
        bench.machine("a", bus="virtio-scsi"),
        bench.machine("a", paused=True),
        bench.machine("a", cards=(card,)),
        bench.machine("a", cards=(Card("vmxnet3", MAC, "user"),)),
    ):
        with pytest.raises(UnsupportedError):
            hypervisor.start(machine)
        assert not hypervisor.is_known(machine.id)
    machine = bench.machine("a")
    raw = Machine(machine.id, "x", (Drive(machine.drives[0].path, "raw"),))
    with pytest.raises(UnsupportedError, match="VMDK"):
        hypervisor.start(raw)
    away = Machine(machine.id, "x", (Drive("/nowhere/x.vmdk"),))
    with pytest.raises(UsageError, match="lies on no datastore"):
        hypervisor.start(away)
    with pytest.raises(UnsupportedError, match="off"):
        hypervisor.commit(machine.id, {}, lambda done, total: True)


TEMPLATE = """
guest = "debian10_64Guest"
version = "vmx-13"
memory = "1 GiB"
cpus = 2
cores_per_socket = 2
firmware = "uefi"
secure_boot = true

[[disks]]
controller = "lsisas"
unit = 1

[[disks]]
controller = "nvme"

[[cards]]
model = "vmxnet3"
mac = "00:50:56:01:02:03"
network = "Production"

[[cards]]
model = "e1000e"
mac = "00:50:56:9a:00:01"
network = "Backup"

[extra]
"disk.EnableUUID" = "TRUE"
"""
NETWORKS = {"Production": "VM Network", "*": "DC0_DVPG0"}


def test_a_replica_without_a_machine_gets_one_of_its_template(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    file.write_text(TEMPLATE)
    hypervisor = bench.vcenter.new(hardware=str(file), networks=NETWORKS)
    machine = bench.machine("root-interim", "data-interim")
    hypervisor.start(machine)
    assert hypervisor.status(machine.id) == "running"
    assert bench.places(machine.id) == [("scsi", 0, 1), ("nvme", 0, 0)]
    assert bench.files(machine.id) == ["root-interim.vmdk", "data-interim.vmdk"]
    assert bench.cards(machine.id) == [
        ("VM Network", "00:50:56:01:02:03", True),
        ("DC0_DVPG0", "00:50:56:9a:00:01", True),
    ]
    described = hypervisor.describe(machine.id)
    assert (described.guest, described.version) == ("debian10_64Guest", "vmx-13")
    assert (described.memory_bytes, described.cpus) == (1 << 30, 2)
    assert (described.firmware, described.secure_boot) == ("uefi", True)
    hypervisor.power_off(machine.id)
    hypervisor.let_go(machine.id)
    assert not hypervisor.is_known(machine.id)
    assert sorted(os.listdir(bench.folder))[0] == "data-interim-flat.vmdk", "no disk was removed"


def test_a_machine_is_described_and_made_again_from_that(bench: Bench, tmp_path: Path) -> None:
    first = bench.vcenter.new().describe(THERE)
    file = tmp_path / "web.json"
    file.write_bytes(vsphere_template.encode(first))
    assert vsphere_template.load(str(file)) == first
    machine = bench.machine("a", network="none")
    hypervisor = bench.vcenter.new(hardware=str(file))
    hypervisor.start(machine)
    again = hypervisor.describe(machine.id)
    assert (again.guest, again.memory, again.cpus) == (first.guest, first.memory, first.cpus)
    assert again.disks == first.disks[:1]
    assert [card.mac for card in again.cards] == [card.mac for card in first.cards]


def test_networks_are_mapped_and_new_macs_are_made(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    file.write_text(TEMPLATE)
    machine = bench.machine("a")
    bench.vcenter.new(hardware=str(file), networks=NETWORKS, mac="new").start(machine)
    macs = [mac for _, mac, _ in bench.cards(machine.id)]
    assert len(set(macs)) == 2
    assert not {"00:50:56:01:02:03", "00:50:56:9a:00:01"} & set(macs)


def test_a_test_is_on_its_own_network_or_on_none(bench: Bench, tmp_path: Path) -> None:
    """Whatever the template and the mapping say."""
    file = tmp_path / "web.toml"
    file.write_text(TEMPLATE)
    hypervisor = bench.vcenter.new(hardware=str(file), networks=NETWORKS)
    alone = bench.machine("a", network="none")
    hypervisor.start(alone)
    assert [wired for _, _, wired in bench.cards(alone.id)] == [False, False]
    bubble = bench.machine("a", network="DC0_DVPG1")
    hypervisor.start(bubble)
    assert {(net, wired) for net, _, wired in bench.cards(bubble.id)} == {("DC0_DVPG1", True)}
    there = bench.machine("a", id=THERE, network="none")
    before = bench.cards(THERE)
    hypervisor.start(there)
    assert [wired for _, _, wired in bench.cards(THERE)] == [False]
    hypervisor.power_off(THERE)
    hypervisor.let_go(THERE)
    assert bench.cards(THERE) == before


def test_cards_of_a_machine_that_is_there_are_rewired_and_keep_their_macs(bench: Bench) -> None:
    before = bench.cards(THERE)
    hypervisor = bench.vcenter.new(networks=NETWORKS)
    said = (Card("vmxnet3", MAC, "Production"),)
    hypervisor.start(bench.machine("a", id=THERE, cards=said))
    assert bench.cards(THERE) == [("VM Network", before[0][1], True)]
    hypervisor.power_off(THERE)
    hypervisor.let_go(THERE)
    assert bench.cards(THERE) == before


def test_an_unknown_network_is_refused_by_name(bench: Bench) -> None:
    """The simulator panics on it: it must never see the call."""
    machine = bench.machine("a", cards=(Card("vmxnet3", MAC, "Nowhere"),))
    with pytest.raises(NotFoundError, match="no network 'Nowhere'"):
        bench.vcenter.new().start(machine)
    assert not bench.vcenter.new().is_known(machine.id)


def test_where_a_machine_is_made_is_said_or_is_the_only_place(bench: Bench) -> None:
    for said in (
        {"datacenter": "DC9"},
        {"folder": "no/such"},
        {"pool": "none"},
        {"host": "none"},
    ):
        with pytest.raises(NotFoundError):
            bench.vcenter.new(**said).start(bench.machine("a"))
    said = {"datacenter": "DC0", "pool": "DC0_C0", "host": "DC0_C0_H0"}
    machine = bench.machine("a", cards=(Card("vmxnet3", MAC, "DC0_DVPG0"),))
    bench.vcenter.new(**said).start(machine)
    assert bench.vcenter.new().status(machine.id) == "running"


def test_a_name_that_is_taken_gets_the_id_beside_it(bench: Bench) -> None:
    machine = bench.machine("a", name="web")
    bench.proxy.add("CreateVM_Task", "fault", "DuplicateName", "<name>web</name>")
    bench.vcenter.new(port=bench.proxy.port).start(machine)
    assert re.fullmatch(r"web \([0-9a-f]{8}\)", bench.found(machine.id).name)
    assert bench.files(machine.id) == ["a.vmdk"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("guest = 1", "guest"),
        ("nonsense", "no hardware template"),
        ("memori = '1G'", "memori"),
        ("memory = '1 parsec'", "parsec"),
        ("[[disks]]\nunit = 7", "no disk can hang"),
        ("[[disks]]\n[[disks]]", "no disk can hang"),
        ("[[disks]]\nbus = 4", "no bus 4"),
        ("[[disks]]\n[[disks]]\nunit = 1\ncontroller = 'lsisas'", "bus 0 is of"),
        ("[[cards]]\nmac = '01:00:00:00:00:00'", "not the address"),
    ],
)
def test_a_wrong_template_is_refused_with_its_name(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        vsphere_template.load(str(file))
    assert "bad.toml" in caught.value.message
    with pytest.raises(NotFoundError):
        vsphere_template.load(str(tmp_path / "none.toml"))


def test_the_guest_is_waited_for_by_tools_and_heartbeat(bench: Bench) -> None:
    hypervisor = bench.vcenter.new()
    machine = bench.machine("a")
    hypervisor.start(machine)
    with pytest.raises(HypervisorError, match="not up in 0 s: VMware Tools guestToolsNotRunning"):
        hypervisor.wait_for(machine.id, "", 0)
    bench.vcenter.guest(machine.id, **UP)
    assert hypervisor.wait_for(machine.id, "", 5) == "VMware Tools guestToolsRunning, " + (
        "heartbeat yellow"
    )
    with pytest.raises(HypervisorError, match="heartbeat yellow"):
        hypervisor.wait_for(machine.id, "green", 0)
    with pytest.raises(UsageError, match="colour"):
        hypervisor.wait_for(machine.id, "login:", 5)
    hypervisor.power_off(machine.id)
    with pytest.raises(HypervisorError, match="before it was poweredOff"):
        hypervisor.wait_for(machine.id, "", 5)
    with pytest.raises(NotFoundError):
        hypervisor.wait_for("none", "", 5)


def test_snapshots_are_made_and_removed_once(bench: Bench) -> None:
    hypervisor = bench.vcenter.new()
    for name in ("before", "before", "later"):
        hypervisor.snapshot(THERE, name)
    assert sorted(hypervisor._snapshots(bench.found(THERE))) == ["before", "later"]
    with pytest.raises(StateError, match="snapshots"):
        hypervisor.start(bench.machine("a", id=THERE))
    for name in ("before", "later", "later", "never"):
        hypervisor.remove_snapshot(THERE, name)
    assert hypervisor._snapshots(bench.found(THERE)) == {}
    with pytest.raises(NotFoundError):
        hypervisor.snapshot("none", "x")


def test_an_isolated_source_gets_its_wires_back_when_it_is_let_go(bench: Bench) -> None:
    before = bench.cards(THERE)
    hypervisor = bench.vcenter.new()
    hypervisor.power_on(THERE)
    assert "1 network cards" in hypervisor.isolate(THERE)
    assert [wired for _, _, wired in bench.cards(THERE)] == [False]
    hypervisor.shut_down(THERE, 5)
    hypervisor.let_go(THERE)
    assert bench.cards(THERE) == before


def test_a_guest_without_tools_is_powered_off(bench: Bench) -> None:
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    hypervisor.power_on(THERE)
    bench.proxy.add("ShutdownGuest", "fault", "ToolsUnavailable")
    told = hypervisor.shut_down(THERE, 5)
    assert told.startswith("powered off: ")
    assert "ToolsUnavailable" in told
    assert hypervisor.status(THERE) == "off"


def test_conflicts_name_the_machine_and_what_it_has(bench: Bench) -> None:
    other = bench.machine("b", name="the-other", cards=(Card("vmxnet3", MAC, "VM Network"),))
    bench.vcenter.new().start(other)
    bench.vcenter.guest(other.id, guest__ipAddress="192.0.2.9")
    said = (Card("vmxnet3", MAC, "VM Network", ("192.0.2.9",)),)
    wanted = bench.machine("b", uuid=bench.found(other.id).values["config.uuid"], cards=said)
    found = bench.vcenter.new().conflicts(wanted)
    assert {each.kind for each in found} == {"uuid", "mac", "address", "disk"}
    assert all("the-other" in each.where for each in found)
    assert [each.what for each in found if each.kind == "disk"] == [wanted.drives[0].path]
    bench.vcenter.new().power_off(other.id)
    assert bench.vcenter.new().conflicts(wanted) == []


def test_a_mac_of_the_template_is_looked_for_too(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    file.write_text(TEMPLATE)
    other = bench.machine("b", cards=(Card("vmxnet3", MAC, "VM Network"),))
    bench.vcenter.new().start(other)
    hypervisor = bench.vcenter.new(hardware=str(file), networks=NETWORKS)
    assert [each.what for each in hypervisor.conflicts(bench.machine("a"))] == [MAC]
    assert hypervisor.conflicts(bench.machine("a", network="none")) == []


def test_a_disk_below_another_machines_is_in_use(bench: Bench) -> None:
    """Somebody runs a machine from the base: our overlay above it must not run."""
    from pyVmomi import vim

    bench.vcenter.new().start(bench.machine("base", id=THERE))
    bench.vcenter.new().power_off(THERE)
    disk = vsphere_devices.disks(bench.found(THERE).devices)[0].device
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(diskMode="persistent")
    bench.drive("child")
    backing.fileName = disk.backing.fileName.replace("base", "child")
    backing.parent = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName=disk.backing.fileName, diskMode="persistent"
    )
    disk.backing = backing
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
    bench.vcenter.set(THERE, deviceChange=[change])
    bench.vcenter.new().power_on(THERE)
    found = bench.vcenter.new().conflicts(bench.machine("base"))
    assert [each.kind for each in found] == ["disk"]


def test_the_examples_of_the_documentation_are_read(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "vsphere.md").read_text()
    said, hardware = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    table = config.parse(said.encode(), "docs/vsphere.md").hypervisor
    assert (table.kind, table.machine) == ("vsphere", "web01_replica")
    (tmp_path / "hardware.toml").write_text(hardware)
    assert vsphere_template.load(str(tmp_path / "hardware.toml")).disks
    note = re.search(r"^(rollpoint-note: .*)$", text, re.MULTILINE)
    assert note is not None
    read = vsphere_note.read(note[1], "m")
    assert read is not None
    assert read.former is not None
    assert vsphere_note.write("", read) in text


def test_notes_survive_any_words_of_others() -> None:
    note = vsphere_note.Note(machine='a "b"\n', operation="x", made=True)
    text = vsphere_note.write("one\n\ntwo\n", note)
    assert vsphere_note.read(text, "m") == note
    assert vsphere_note.others(text) == "one\n\ntwo"
    assert vsphere_note.write(text, note) == text
    assert vsphere_note.read("nothing", "m") is None
