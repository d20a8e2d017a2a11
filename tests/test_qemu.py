"""Machines as QEMU processes: start, console, power off, from any process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require_tool
from rollpoint import _native
from rollpoint.control import listen
from rollpoint.create import create_disk
from rollpoint.disk import open_disk
from rollpoint.errors import HypervisorError, StateError, ToolMissingError, UsageError
from rollpoint.guest.base import Nic
from rollpoint.hypervisor import qemu_process
from rollpoint.hypervisor.base import Bus, Card, Drive, Hypervisor, Machine
from rollpoint.hypervisor.qemu import Qemu
from rollpoint.hypervisor.qmp import Qmp

MEMORY_BYTES = 16 << 20


def boot_sector(text: str) -> bytes:
    code = bytearray.fromhex("be0000baf8032eac84c07403eeebf7f4ebfd")
    code[1:3] = (0x7C00 + len(code)).to_bytes(2, "little")
    return (bytes(code) + text.encode() + b"\0").ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Qemu]:
    require_tool("qemu-system-x86_64")
    hypervisor = Qemu(tmp_path / "run")
    yield hypervisor
    root = tmp_path / "run"
    for name in os.listdir(root) if root.exists() else []:
        hypervisor.kill(name)


def raw_disk(path: Path, text: str = "READY\r\n") -> Drive:
    path.write_bytes(boot_sector(text).ljust(1 << 20, b"\0"))
    return Drive(str(path), "raw")


def machine(*drives: Drive, id: str = "vm", bus: Bus = "ide", paused: bool = False) -> Machine:
    return Machine(id, "a machine, with a comma", drives, MEMORY_BYTES, bus=bus, paused=paused)


def test_a_machine_starts_speaks_and_is_powered_off(tmp_path: Path, qemu: Qemu) -> None:
    hypervisor: Hypervisor = qemu
    handle = hypervisor.start(machine(raw_disk(tmp_path / "disk.raw")))
    assert hypervisor.status("vm") == "running"
    assert hypervisor.wait_for("vm", "READY", 10) == "READY"
    assert Path(handle.console).read_text() == "READY\n"
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    hypervisor.power_off("vm")
    assert hypervisor.status("vm") == "off"
    assert not Path(f"/proc/{handle.pid}/exe").exists()
    hypervisor.power_off("vm")
    hypervisor.power_off("never-was")


BUSES: list[Bus] = [
    "ide", "ahci", "nvme", "virtio-blk", "virtio-scsi", "pvscsi", "lsisas", "lsi53c895a"
]  # fmt: skip


@pytest.mark.parametrize("bus", BUSES)
def test_every_bus_boots(tmp_path: Path, qemu: Qemu, bus: Bus) -> None:
    drives = [raw_disk(tmp_path / "a.raw"), raw_disk(tmp_path / "b.raw", "WRONG DISK\r\n")]
    qemu.start(machine(*drives, bus=bus))
    assert qemu.wait_for("vm", "READY", 10)


def test_a_controller_that_qemu_has_not_is_refused_with_the_reason(
    tmp_path: Path, qemu: Qemu
) -> None:
    disk = raw_disk(tmp_path / "disk.raw")
    with pytest.raises(UsageError, match="no lsilogic controller") as refused:
        qemu.start(machine(disk, bus="lsilogic"))
    assert "lsisas" in refused.value.hint
    assert qemu.status("vm") == "off"


def test_a_disk_of_an_nbd_server_boots(tmp_path: Path, qemu: Qemu) -> None:
    path = str(tmp_path / "disk.vmdk")
    create_disk(path, "monolithicSparse", 1 << 20)
    with open_disk(path, writable=True) as disk:
        disk.pwrite(boot_sector("READY\r\n"), 0)
        server = _native.NbdServer()
        server.add("a disk, with a comma", disk.reading)
        server.listen(listen(str(tmp_path / "nbd, sock")).detach())
        server.start()
        drive = Drive(str(tmp_path / "nbd, sock"), "nbd", "a disk, with a comma")
        qemu.start(machine(drive, bus="pvscsi"))
        assert qemu.wait_for("vm", "READY", 10)
        assert qemu.start(machine(drive, bus="pvscsi")).pid
        with pytest.raises(StateError, match="other disks"):
            qemu.start(machine(Drive(drive.path, "nbd", "another"), bus="pvscsi"))
        qemu.kill("vm")
        server.stop(1000)


def networks(qemu: Qemu) -> str:
    """What QEMU says of the machine's network, card by card."""
    with qemu.qmp("vm") as qmp:
        told = qmp.execute("human-monitor-command", command_line="info network")
    assert isinstance(told, str)
    return told


CARDS: list[Nic] = ["vmxnet3", "e1000", "e1000e", "virtio-net"]


@pytest.mark.parametrize("model", CARDS)
def test_every_card_is_there_with_no_wire_in_it(tmp_path: Path, qemu: Qemu, model: Nic) -> None:
    card = Card(model, "52:54:00:AA:00:01")
    asked = Machine("vm", "vm", (raw_disk(tmp_path / "d.raw"),), MEMORY_BYTES, cards=(card,))
    words = qemu_process.command_line(asked, str(tmp_path))
    assert "none" in words[words.index("-nic") :]
    assert "-netdev" not in words
    qemu.start(asked)
    assert qemu.wait_for("vm", "READY", 10)
    told = networks(qemu)
    assert "52:54:00:aa:00:01" in told
    assert "\\" not in told, "what hangs on a card is printed as its branch"


def test_a_machine_has_no_network_unless_it_is_asked_for(tmp_path: Path, qemu: Qemu) -> None:
    qemu.start(machine(raw_disk(tmp_path / "disk.raw")))
    assert networks(qemu) == ""


def test_a_card_on_a_network_of_its_own(tmp_path: Path, qemu: Qemu) -> None:
    cards = (Card("virtio-net", "52:54:00:aa:00:01", "user"), Card("e1000", "52:54:00:aa:00:02"))
    asked = Machine("vm", "vm", (raw_disk(tmp_path / "d.raw"),), MEMORY_BYTES, cards=cards)
    qemu.start(asked)
    told = networks(qemu)
    assert told.count("type=user") == 1
    assert told.count("type=nic") == 2


@pytest.mark.parametrize(
    "mac", ["", "52:54:00:aa:00", "53:54:00:aa:00:01", "52:54:00:aa:00:01,x=y"]
)
def test_an_address_that_is_no_cards_is_refused(mac: str) -> None:
    with pytest.raises(UsageError, match="network card"):
        Card("e1000", mac)


@pytest.mark.skipif(not os.path.exists(qemu_process.UEFI_CODE), reason="ovmf is not installed")
def test_uefi_has_variables_of_its_own(tmp_path: Path, qemu: Qemu) -> None:
    disk = raw_disk(tmp_path / "disk.raw")  # not bootable by UEFI, which says so
    qemu.start(Machine("vm", "vm", (disk,), 128 << 20, firmware="uefi"))
    assert qemu.wait_for("vm", "BdsDxe: failed to load Boot0001", 60)
    variables = tmp_path / "run" / "vm" / "uefi-variables.fd"
    template = Path(qemu_process.UEFI_VARIABLES)
    assert variables.stat().st_size == template.stat().st_size
    assert variables.read_bytes() != template.read_bytes()


def test_without_uefi_firmware_it_says_what_to_install(
    tmp_path: Path, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_process, "UEFI_CODE", str(tmp_path / "none"))
    asked = Machine("vm", "vm", (raw_disk(tmp_path / "disk.raw"),), firmware="uefi")
    with pytest.raises(ToolMissingError, match="ovmf"):
        qemu.start(asked)


def test_asked_twice_it_starts_once(tmp_path: Path, qemu: Qemu) -> None:
    disk = raw_disk(tmp_path / "disk.raw")
    first = qemu.start(machine(disk))
    second = Qemu(tmp_path / "run").start(machine(disk))
    assert second.pid == first.pid
    found = Qemu(tmp_path / "run").handle("vm")
    assert found is not None
    assert found.pid == first.pid
    assert qemu.handle("never-was") is None
    assert abs(second.started_ns - first.started_ns) < 1_000_000_000
    with pytest.raises(StateError, match="other disks"):
        qemu.start(machine(raw_disk(tmp_path / "other.raw")))


def test_another_process_powers_it_off_without_its_pid_file(tmp_path: Path, qemu: Qemu) -> None:
    """The one who started it is gone; so is QEMU's pid file, as if it were not written yet."""
    disk = raw_disk(tmp_path / "disk.raw")
    program = (
        "import sys; from rollpoint.hypervisor.qemu import Qemu;"
        "from rollpoint.hypervisor.base import *;"
        "print(Qemu(sys.argv[1]).start(Machine('vm', 'vm', (Drive(sys.argv[2], 'raw'),), "
        "1 << 24)).pid)"
    )
    root = str(tmp_path / "run")
    started = subprocess.run(
        [sys.executable, "-c", program, root, disk.path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert qemu.wait_for("vm", "READY", 10)
    (tmp_path / "run" / "vm" / "qemu.pid").unlink()
    assert qemu.status("vm") == "running"
    qemu.power_off("vm")
    assert not Path(f"/proc/{started.stdout.strip()}/exe").exists()


def test_a_pid_that_someone_else_has_now_is_not_touched(tmp_path: Path, qemu: Qemu) -> None:
    directory = tmp_path / "run" / "vm"
    directory.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (directory / "qemu.pid").write_text(f"{stranger.pid}\n")
        assert qemu.status("vm") == "off"
        qemu.power_off("vm")
        qemu.kill("vm")
        assert stranger.poll() is None
        stranger.kill()


def test_what_qemu_says_is_in_the_error(tmp_path: Path, qemu: Qemu) -> None:
    with pytest.raises(HypervisorError, match="No such file or directory"):
        qemu.start(machine(Drive(str(tmp_path / "none.raw"), "raw")))
    assert qemu.status("vm") == "off"
    disk = raw_disk(tmp_path / "disk.raw")
    qemu.start(machine(disk))
    with pytest.raises(HypervisorError, match="another process using the image"):
        qemu.start(machine(disk, id="vm2"))
    assert qemu.wait_for("vm", "READY", 10)


def test_a_marker_that_does_not_come_is_an_error_with_the_console(
    tmp_path: Path, qemu: Qemu
) -> None:
    qemu.start(machine(raw_disk(tmp_path / "disk.raw")))
    assert qemu.wait_for("vm", "READY", 10)
    with pytest.raises(HypervisorError, match="READY"):
        qemu.wait_for("vm", "LOGIN", 0.02)
    qemu.kill("vm")
    with pytest.raises(HypervisorError, match="before it went off"):
        qemu.wait_for("vm", "LOGIN", 10)


def test_names_that_break_quoting_do_not(tmp_path: Path) -> None:
    """Commas, quotes, colons, spaces, and a path longer than a socket's may be."""
    require_tool("qemu-system-x86_64")
    deep = tmp_path / "a,b" / 'c"d e:f' / ("x" * 120)
    deep.mkdir(parents=True)
    qemu = Qemu(deep / "run")
    try:
        qemu.start(machine(raw_disk(deep / "nbd:disk,id=1.raw")))
        assert qemu.wait_for("vm", "READY", 10)
        assert qemu.status("vm") == "running"
    finally:
        qemu.kill("vm")


def test_a_paused_machine_waits(tmp_path: Path, qemu: Qemu) -> None:
    qemu.start(machine(raw_disk(tmp_path / "disk.raw"), paused=True))
    assert qemu.status("vm") == "paused"
    with qemu.qmp("vm") as qmp:
        qmp.execute("cont")
        with pytest.raises(HypervisorError, match="no-such-command"):
            qmp.execute("no-such-command")
    assert qemu.wait_for("vm", "READY", 10)


def test_without_qemu_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ToolMissingError, match="apt-get install --no-install-recommends"):
        Qemu(tmp_path, "qemu-system-nowhere").start(machine(raw_disk(tmp_path / "disk.raw")))


def test_kvm_is_refused_where_it_cannot_be_opened(
    tmp_path: Path, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **_: path != "/dev/kvm")
    asked = Machine("vm", "vm", (raw_disk(tmp_path / "d.raw"),), MEMORY_BYTES, accelerator="kvm")
    with pytest.raises(HypervisorError, match="/dev/kvm"):
        qemu.start(asked)
    assert qemu.status("vm") == "off"


@pytest.mark.parametrize("bad", ["", "../up", "a/b", "-x", "a" * 65])
def test_an_id_that_is_no_file_name_is_refused(qemu: Qemu, bad: str) -> None:
    with pytest.raises(UsageError, match="cannot name a machine"):
        qemu.start(machine(Drive("x"), id=bad))
    with pytest.raises(UsageError, match="cannot name a machine"):
        qemu.status(bad)


def test_a_fifth_ide_disk_is_refused(tmp_path: Path, qemu: Qemu) -> None:
    with pytest.raises(UsageError, match="IDE takes 4"):
        qemu.start(machine(*[Drive(f"{tmp_path}/{i}.raw", "raw") for i in range(5)]))


def test_a_machine_whose_directory_is_gone_does_not_answer(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(HypervisorError, match="no such file"):
        Qmp(str(tmp_path / "gone"), "qmp.sock")
    assert set(threading.enumerate()) == before
