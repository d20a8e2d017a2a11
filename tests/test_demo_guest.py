"""The demo's guest tells good disks from bad ones, and is the program it claims to be."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, require_tool
from rollpoint import demo_guest
from rollpoint.demo_guest import SLOTS, examine, parse_found, place_bytes, record
from rollpoint.hypervisor.base import Bus, Drive, Machine
from rollpoint.hypervisor.qemu import Qemu

SOURCE = ROOT / "src" / "engine" / "demo_guest.asm"


class Guest:
    """Two disks and a QEMU to boot them in."""

    def __init__(self, directory: Path) -> None:
        self.qemu = Qemu(directory / "run")
        self.paths = [directory / "system.raw", directory / "data.raw"]
        for path in self.paths:
            path.write_bytes(bytes(demo_guest.DISK_BYTES_MIN))
        self.write(0, 0, demo_guest.PROGRAM)

    def write(self, disk: int, offset_bytes: int, data: bytes) -> None:
        with self.paths[disk].open("r+b") as file:
            file.seek(offset_bytes)
            file.write(data)

    def write_records(self, disk: int, counters: range) -> None:
        for counter in counters:
            self.write(disk, place_bytes(counter), record(counter, disk))

    def read(self, disk: int, length: int, offset_bytes: int) -> bytes:
        with self.paths[disk].open("rb") as file:
            file.seek(offset_bytes)
            return file.read(length)

    def boot(self, bus: Bus = "ide") -> str:
        """The verdict on the disks."""
        drives = tuple(Drive(str(path), "raw") for path in self.paths)
        self.qemu.start(Machine("guest", "guest", drives, 16 << 20, bus=bus))
        return self.qemu.wait_for("guest", demo_guest.FOUND_MARKER, 20)

    def examine(self) -> list[tuple[int, str]]:
        """The same by Python, from the disks as they are now."""
        return [
            tuple(examine(lambda length, offset, disk=disk: self.read(disk, length, offset), disk))
            for disk in (0, 1)
        ]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    require_tool("qemu-system-x86_64")
    guest = Guest(tmp_path)
    yield guest
    guest.qemu.kill("guest")


def test_the_bytes_are_those_of_the_source(tmp_path: Path) -> None:
    target = tmp_path / "guest.bin"
    subprocess.run([require_tool("nasm"), "-f", "bin", "-o", target, SOURCE], check=True)
    assert target.read_bytes() == demo_guest.PROGRAM


@pytest.mark.parametrize(("bus", "count"), [("ide", 288), ("virtio-blk", 32), ("pvscsi", 32)])
def test_it_counts_on_both_disks_and_finds_its_count_again(
    guest: Guest, bus: Bus, count: int
) -> None:
    """288 is once around the ring and on."""
    assert guest.boot(bus) == "ROLLPOINT FOUND 0 0 OK"
    guest.qemu.wait_for("guest", f"COUNT {count}", 20)
    guest.qemu.kill("guest")
    (first, problem), (second, problem2) = guest.examine()
    assert (problem, problem2) == ("", "")
    assert first >= count
    assert first - second in (0, 1)
    assert parse_found(guest.boot(bus)) == (first, second, "OK")
    written = guest.qemu.wait_for("guest", demo_guest.WRITING_MARKER, 20)
    assert written == f"ROLLPOINT WRITING {second + 1}"


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (range(1, 10), range(1, 10), "9 9 OK"),
        (range(1, 10), range(1, 9), "9 8 OK"),
        (range(1, 1001), range(1, 1000), "1000 999 OK"),
        (range(1, SLOTS + 1), range(1, SLOTS), f"{SLOTS} {SLOTS - 1} OK"),
        (range(1, 9), range(1, 10), "8 9 BAD order"),
        (range(1, 10), range(1, 8), "9 7 BAD order"),
        (range(2, 10), range(1, 10), "9 9 BAD missing"),
        (range(1, 10), range(0), "9 0 BAD order"),
        (range(745, 1001), range(744, 1000), "1000 999 OK"),
        (range(746, 1001), range(744, 1000), "1000 999 BAD missing"),
    ],
)
def test_write_order_and_holes_are_judged(
    guest: Guest, first: range, second: range, verdict: str
) -> None:
    guest.write_records(0, first)
    guest.write_records(1, second)
    problems = {problem for _, problem in guest.examine()} - {""}  # before it writes on
    assert guest.boot() == f"ROLLPOINT FOUND {verdict}"
    assert problems == ({"missing"} if verdict.endswith("missing") else set())


def test_an_older_record_in_the_ring_is_a_hole(guest: Guest) -> None:
    """What a lost write leaves: the slot still holds the record of a round before."""
    guest.write_records(0, range(1, 601))
    guest.write_records(1, range(1, 601))
    guest.write(1, place_bytes(590), record(590 - SLOTS, 1))
    assert guest.boot() == "ROLLPOINT FOUND 600 600 BAD missing"


@pytest.mark.parametrize("byte", [0, 8, 13, 300, 511])
def test_one_wrong_bit_in_a_record_is_damage(guest: Guest, byte: int) -> None:
    guest.write_records(0, range(1, 30))
    guest.write_records(1, range(1, 30))
    place = place_bytes(17) + byte
    guest.write(1, place, bytes([guest.read(1, 1, place)[0] ^ 0x10]))
    assert guest.boot() == "ROLLPOINT FOUND 29 29 BAD damaged"
    assert guest.examine() == [(29, ""), (29, "damaged")]


def test_a_record_of_the_other_disk_is_damage(guest: Guest) -> None:
    guest.write_records(0, range(1, 4))
    guest.write_records(1, range(1, 3))
    guest.write(1, place_bytes(3), record(3, 0))
    assert parse_found(guest.boot())[2] == "BAD damaged"


def test_a_missing_second_disk_is_an_error(guest: Guest) -> None:
    drive = Drive(os.fspath(guest.paths[0]), "raw")
    guest.qemu.start(Machine("guest", "guest", (drive,), 16 << 20))
    assert guest.qemu.wait_for("guest", "ROLLPOINT ERROR", 20)
