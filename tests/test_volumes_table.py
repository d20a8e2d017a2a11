"""Partition tables: as sfdisk and sgdisk made them, and as a hostile guest would."""

from __future__ import annotations

import json
import random
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from rollpoint.volumes.find import find
from rollpoint.volumes.table import Table, read_table
from volume_disks import MIB, SECTOR, FileDisk, MemoryDisk, call, empty_file

MBR_SCRIPT = """label: dos
label-id: 0xcafe1234
start=2048, size=20480, type=83, bootable
start=22528, size=4096, type=82
start=26624, size=80000, type=f
start=28672, size=2048, type=83
start=32768, size=4096, type=8e
start=40960, size=61440, type=7
"""


def sfdisk(path: Path) -> dict[str, Any]:
    table = json.loads(call("sfdisk", "--json", path))["partitiontable"]
    assert isinstance(table, dict)
    return table


def seen(table: Table | None) -> list[tuple[int, int, int]]:
    """Number, first sector, sectors of each partition that has no problem."""
    assert table is not None
    return [
        (e.partition.number, e.offset // SECTOR, e.length // SECTOR)
        for e in table.entries
        if not e.problem
    ]


def told(listed: list[dict[str, Any]], path: Path) -> list[tuple[int, int, int]]:
    return [
        (int(e["node"].removeprefix(str(path))), e["start"], e["size"])
        for e in listed
        if e["type"] not in ("f", "5", "85")
    ]


def test_mbr_with_logical_partitions_is_as_sfdisk_says(tmp_path: Path) -> None:
    path = tmp_path / "mbr"
    disk = empty_file(path, 64 * MIB)
    call("sfdisk", "-q", path, stdin=MBR_SCRIPT)
    table = read_table("system", disk)
    assert table is not None
    assert (table.kind, table.problem, table.note) == ("mbr", "", "")
    assert seen(table) == told(sfdisk(path)["partitions"], path)
    assert [e.partition.number for e in table.entries] == [1, 2, 5, 6, 7]
    assert [e.partition.type for e in table.entries] == ["83", "82", "83", "8e", "07"]
    assert [e.partition.active for e in table.entries] == [True, False, False, False, False]
    assert [e.partition.uuid for e in table.entries][2] == "cafe1234-05"


@pytest.fixture(scope="module")
def gpt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpt") / "gpt"
    empty_file(path, 64 * MIB)
    call(
        *("sgdisk", "-n1:2048:+1M", "-t1:ef02", "-n2:0:+8M", "-t2:ef00", "-c2:EFI System"),
        *("-n5:0:+20M", "-c5:Wurzel ü", "-A5:set:2", "-n128:0:0", "-t128:8e00", path),
    )
    return path


def copy_of(gpt_file: Path, folder: Path) -> FileDisk:
    return FileDisk(Path(shutil.copy(gpt_file, folder)))


def test_gpt_is_as_sfdisk_says(gpt_file: Path) -> None:
    disk = FileDisk(gpt_file)
    table, listed = read_table("system", disk), sfdisk(disk.path)["partitions"]
    assert seen(table) == told(listed, disk.path)
    assert table is not None
    assert [e.partition.number for e in table.entries] == [1, 2, 5, 128]
    for entry, other in zip(table.entries, listed, strict=True):
        assert entry.partition.type == other["type"].lower()
        assert entry.partition.uuid == other["uuid"].lower()
        assert entry.partition.name == other.get("name", "")
        assert entry.partition.active == ("LegacyBIOSBootable" in other.get("attrs", ""))


@pytest.mark.parametrize("broken", [0, 16, 24, 72, 80, 84, 88, 90, SECTOR + 20])
def test_a_broken_first_gpt_gives_way_to_its_copy_and_is_noted(
    gpt_file: Path, tmp_path: Path, broken: int
) -> None:
    disk = copy_of(gpt_file, tmp_path)
    whole = seen(read_table("system", disk))
    with open(disk.path, "r+b") as file:
        file.seek(SECTOR + broken)
        file.write(b"\xa5\x5a\xa5\x5a")
    table = read_table("system", disk)
    assert seen(table) == whole
    assert table is not None
    assert "the first GPT is broken" in table.note
    assert all("the first GPT is broken" in volume.note for volume in find({"system": disk}))


def test_a_gpt_without_an_intact_copy_is_refused_with_what_was_seen(
    gpt_file: Path, tmp_path: Path
) -> None:
    disk = copy_of(gpt_file, tmp_path)
    with open(disk.path, "r+b") as file:
        for place in (SECTOR + 60, disk.size_bytes - SECTOR + 60):
            file.seek(place)
            file.write(b"\xff")
    (volume,) = find({"system": disk})
    assert (volume.name, volume.kind) == ("system", "unknown")
    assert "checksum of the header in sector 1 is wrong" in volume.problem


def test_a_hybrid_mbr_gives_way_to_its_gpt(gpt_file: Path, tmp_path: Path) -> None:
    disk = copy_of(gpt_file, tmp_path)
    call("sgdisk", "-h", "2:5", disk.path)
    assert read_table("d", disk) == read_table("d", FileDisk(gpt_file))


def test_a_gpt_of_a_disk_that_grew_is_used_as_it_is(gpt_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(gpt_file, tmp_path))
    with open(path, "r+b") as file:
        file.truncate(80 * MIB)
        file.seek(SECTOR + 20)
        file.write(b"broken")
    table = read_table("d", FileDisk(path))
    assert table is not None
    assert table.problem  # where the copy is was told by the header alone
    assert not table.entries
    with open(path, "r+b") as file:
        file.write(gpt_file.read_bytes()[: 2 * SECTOR])
    assert read_table("d", FileDisk(path)) == read_table("d", FileDisk(gpt_file))


def test_a_gpt_for_large_sectors_is_named() -> None:
    disk = MemoryDisk(64 * MIB, [(0, record([(0, 0xEE, 1, 16383)])), (4096, b"EFI PART")])
    (volume,) = find({"system": disk})
    assert "sectors of 4096 bytes" in volume.problem


@pytest.mark.parametrize("seed", range(8))
def test_random_tables_are_as_sfdisk_says(tmp_path: Path, seed: int) -> None:
    """Model: sfdisk. Reproduce with the seed in the test id."""
    rng = random.Random(seed)
    kind = "gpt" if seed % 2 else "dos"
    lines, at = [f"label: {kind}"], 2048
    for number in range(1, rng.randint(2, 12)):
        size = rng.randint(1, 40) * 64
        if kind == "dos" and number == 4:
            lines.append(f"start={at}, type=5")
            at += 2048
        lines.append(f"start={at}, size={size}")
        at += size + 2048 * rng.randint(1, 2)
    path = tmp_path / "disk"
    disk = empty_file(path, 128 * MIB)
    call("sfdisk", "-q", path, stdin="\n".join(lines) + "\n")
    assert seen(read_table("d", disk)) == told(sfdisk(path)["partitions"], path), lines


def record(entries: list[tuple[int, int, int, int]], signature: int = 0) -> bytes:
    """A boot record: flag, type, start, length of up to four partitions."""
    packed = b"".join(struct.pack("<B3xB3xII", *entry) for entry in entries)
    return bytes(440) + struct.pack("<I2x", signature) + packed.ljust(64, b"\0") + b"\x55\xaa"


def chain(*links: tuple[int, bytes]) -> MemoryDisk:
    """An extended partition from sector 64, and boot records at sectors."""
    first = record([(0x80, 0x83, 8, 16), (0, 0x0F, 64, 1000)], 7)
    return MemoryDisk(MIB, [(0, first), *((at * SECTOR, data) for at, data in links)])


def test_a_chain_in_a_circle_ends() -> None:
    disk = chain(
        (64, record([(0, 0x83, 2, 4), (0, 5, 32, 8)])),
        (96, record([(0, 0x83, 2, 4), (0, 5, 0, 8)])),
    )
    table = read_table("d", disk)
    assert seen(table) == [(1, 8, 16), (5, 66, 4), (6, 98, 4)]
    assert table is not None
    assert "circle at sector 64" in table.note


def test_a_chain_that_leaves_the_disk_ends() -> None:
    disk = chain((64, record([(0, 0x83, 2, 4), (0, 5, 0xFFFFFFF0, 8)])))
    table = read_table("d", disk)
    assert seen(table) == [(1, 8, 16), (5, 66, 4)]
    assert table is not None
    assert "leaves the disk" in table.note


def test_a_chain_that_breaks_off_keeps_what_came_before() -> None:
    table = read_table("d", chain((64, record([(0, 0x83, 2, 4), (0, 5, 32, 8)]))))
    assert seen(table) == [(1, 8, 16), (5, 66, 4)]
    assert table is not None
    assert "breaks off at sector 96" in table.note


def test_a_chain_without_end_is_cut() -> None:
    size = 1 << 31
    disk = MemoryDisk(size, [(0, record([(0, 5, 64, 4_000_000)]))])
    for link in range(600):
        disk.put((64 + 4 * link) * SECTOR, record([(0, 0x83, 1, 1), (0, 5, 4 * link + 4, 4)]))
    table = read_table("d", disk)
    assert len(seen(table)) == 252
    assert table is not None
    assert table.note


def test_partitions_that_overlap_or_leave_the_disk_cannot_be_used() -> None:
    entries = [(0, 0x83, 8, 100), (0, 0x83, 50, 10), (0, 0x83, 200, 9999), (0, 7, 0, 1)]
    disk = MemoryDisk(MIB, [(0, record(entries))])
    problems = [volume.problem for volume in find({"d": disk})]
    assert "overlaps partition 2" in problems[0]
    assert "overlaps partition 1" in problems[1]
    assert problems[2] == f"it ends at byte {10199 * SECTOR}, and the disk has {MIB}"
    assert "sector of its own table" in problems[3]
    assert all(not volume.pieces for volume in find({"d": disk}))


def gpt(entries: bytes, count: int, *, entry_bytes: int = 128, size_bytes: int = MIB) -> MemoryDisk:
    """A GPT of our own making, checksums right, without a copy."""
    last = size_bytes // SECTOR - 1
    body = struct.pack("<QQQQ", 1, last, 34, last - 33) + bytes(range(16))
    body += struct.pack("<QIII", 2, count, entry_bytes, zlib.crc32(entries))
    head = b"EFI PART" + struct.pack("<II", 0x10000, 92)
    header = head + struct.pack("<I4x", zlib.crc32(head + bytes(8) + body)) + body
    assert len(header) == 92
    return MemoryDisk(
        size_bytes,
        [(0, record([(0, 0xEE, 1, last)])), (SECTOR, header), (2 * SECTOR, entries)],
    )


def gpt_entry(first: int, last: int, name: bytes = b"") -> bytes:
    return b"t" * 16 + b"u" * 16 + struct.pack("<QQQ", first, last, 0) + name.ljust(72, b"\0")


def test_hostile_gpt_entries_have_problems() -> None:
    entries = gpt_entry(40, 30) + gpt_entry(1, 33) + gpt_entry(40, 1 << 63) + gpt_entry(41, 50)
    table = read_table("d", gpt(entries, 4))
    assert table is not None
    said = [entry.problem for entry in table.entries]
    assert "before it begins" in said[0]
    assert "keeps no room" in said[1]
    assert "keeps no room" in said[2]
    assert "overlaps partition 3" in said[3]


def test_a_gpt_with_endless_entries_is_refused() -> None:
    table = read_table("d", gpt(b"", 1 << 31))
    assert table is not None
    assert "tells of 2147483648 entries" in table.problem


def test_a_name_that_is_no_utf16_is_no_error() -> None:
    table = read_table("d", gpt(gpt_entry(40, 50, b"\x00\xd8A\x00\x00\x00"), 1))
    assert table is not None
    assert table.entries[0].partition.name == "\ufffdA"


def test_no_table_is_no_table() -> None:
    assert read_table("d", MemoryDisk(0)) is None
    assert read_table("d", MemoryDisk(SECTOR)) is None
    assert read_table("d", MemoryDisk(MIB)) is None
    assert read_table("d", MemoryDisk(MIB, [(0, record([]))])) is None
    assert read_table("d", MemoryDisk(MIB, [(0, record([(7, 0x83, 8, 8)]))])) is None


@pytest.mark.parametrize("seed", range(100))
def test_mutated_tables_never_break_the_reader(seed: int) -> None:
    """Random bytes into tables that hold: MemoryDisk asserts that no read leaves the disk."""
    rng = random.Random(seed)
    if seed % 2:
        disk = chain((64, record([(0, 0x83, 2, 4), (0, 5, 32, 8)])), (96, record([(0, 7, 1, 2)])))
        places = [*range(446, 512), *(64 * SECTOR + i for i in range(446, 512))]
    else:
        disk = gpt(gpt_entry(40, 50) + gpt_entry(60, 90), 2)
        places = [*range(446, 512), *range(SECTOR, SECTOR + 92), *range(1024, 1280)]
    for _ in range(rng.randint(1, 6)):
        value = rng.choice([0, 1, 5, 0x0F, 0x7F, 0x80, 0xEE, 0xFF, rng.randrange(256)])
        disk.put(rng.choice(places), bytes([value]))
    for volume in find({"d": disk}):
        for piece in volume.pieces:
            assert piece.offset >= 0
            assert 0 < piece.length <= disk.size_bytes - piece.offset
