"""The tests' own guests: they are what they say, and boot on the hardware they come from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import require_tool
from guests import machines, tiny
from guests.shelf import Shelf
from rollpoint.hypervisor.base import Bus


def part_of(disk: Path, target: Path, number: int) -> Path:
    """A partition of a disk, as sfdisk sees it, as a file of its own."""
    told = subprocess.check_output([require_tool("sfdisk"), "-d", disk], text=True)
    line = next(line for line in told.splitlines() if line.startswith(f"{disk}{number} "))
    start, size = (
        int(word.split("=")[1].strip(" ,")) for word in line.split(":")[1].split(",")[:2]
    )
    with open(disk, "rb") as source:
        source.seek(start * 512)
        target.write_bytes(source.read(size * 512))
    return target


def test_the_tiny_guest_is_as_a_power_cut_left_it(guests: Shelf, tmp_path: Path) -> None:
    root = part_of(guests.disk("plain"), tmp_path / "root", 1)

    def debugfs(command: str) -> str:
        words = [require_tool("debugfs"), "-R", command, root]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert "needs_recovery" in debugfs("features")
    assert debugfs("cat /var/log/counter") == f"{tiny.BOOTS_BEFORE}\n"
    assert "/dev/vda1 / ext4" in debugfs("cat /etc/fstab")
    replay = [require_tool("e2fsck"), "-y", "-E", "journal_only", root]
    subprocess.run(replay, check=True, capture_output=True)
    assert debugfs("cat /var/log/counter") == f"{tiny.BOOTS_REPLAYED}\n"
    check = subprocess.run([require_tool("e2fsck"), "-fn", root], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


@pytest.mark.boots
@pytest.mark.parametrize("name", ["plain", "generic", "boot-apart", "lvm", "xfs", "dracut"])
def test_it_boots_on_the_hardware_it_comes_from(guests: Shelf, tmp_path: Path, name: str) -> None:
    recipe = tiny.RECIPES[name]
    with machines.qemu_under(tmp_path) as qemu:
        disk = guests.copy(name, tmp_path / "disk.raw")
        told = machines.parse(machines.boot(qemu, disk, "virtio-blk"))
    assert told.verdict == "READY"
    assert told.facts["root"] == Path(recipe.root_device).name
    assert told.facts["drivers"].split(",")[0] == "virtio_blk"
    replayed = recipe.dirty and recipe.root == "ext4"
    boots = 1 + (tiny.BOOTS_REPLAYED if replayed else tiny.BOOTS_BEFORE)
    assert told.facts["boot"] == str(boots)


@pytest.mark.boots
@pytest.mark.parametrize(("name", "bus"), [("plain", "pvscsi"), ("generic", "lsi53c895a")])
def test_it_does_not_boot_elsewhere(guests: Shelf, tmp_path: Path, name: str, bus: Bus) -> None:
    with machines.qemu_under(tmp_path) as qemu:
        disk = guests.copy(name, tmp_path / "disk.raw")
        told = machines.parse(machines.boot(qemu, disk, bus))
    assert told.verdict == "NOROOT"


@pytest.mark.boots
def test_by_uefi_it_is_found_by_nobody_without_its_variables(guests: Shelf, tmp_path: Path) -> None:
    """Its loader is not at the path for removable disks, and new firmware knows no other."""
    with machines.qemu_under(tmp_path) as qemu:
        disk = guests.copy("uefi", tmp_path / "disk.raw")
        machines.boot(qemu, disk, "virtio-blk", "uefi", "failed to load Boot0001", ends=False)
