"""Machines as QEMU processes: start, console, power off, from any process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require_tool
from rollpoint.errors import HypervisorError, StateError, ToolMissingError, UsageError
from rollpoint.hypervisor import qemu_process
from rollpoint.hypervisor.base import Bus, Drive, Hypervisor, Machine
from rollpoint.hypervisor.qemu import Qemu

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


@pytest.mark.parametrize("bus", ["ide", "virtio-blk", "pvscsi"])
def test_every_bus_boots(tmp_path: Path, qemu: Qemu, bus: Bus) -> None:
    drives = [raw_disk(tmp_path / "a.raw"), raw_disk(tmp_path / "b.raw", "WRONG DISK\r\n")]
    qemu.start(machine(*drives, bus=bus))
    assert qemu.wait_for("vm", "READY", 10)


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
def test_an_id_that_is_no_file_name_is_refused(bad: str) -> None:
    with pytest.raises(UsageError, match="cannot name a machine"):
        machine(Drive("x"), id=bad)


def test_a_fifth_ide_disk_is_refused(tmp_path: Path, qemu: Qemu) -> None:
    with pytest.raises(UsageError, match="IDE takes 4"):
        qemu.start(machine(*[Drive(f"{tmp_path}/{i}.raw", "raw") for i in range(5)]))
