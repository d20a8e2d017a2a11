"""Partition tables: MBR with its chains of logical partitions, and GPT.

Parsed as Linux does it, so that numbers and PARTUUIDs are those which the guest uses.
Nothing is trusted: an entry that leaves the disk or lies over another one has a problem,
a chain that runs in a circle ends.

Sources: UEFI specification 2.10, chapter 5; block/partitions/msdos.c and efi.c of Linux
for what is done with odd tables.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

from ..units import SECTOR_BYTES
from .base import Partition, Readable

PARTITIONS_MAX = 256  # as in Linux; more are not looked at
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_GPT_MAGIC = b"EFI PART"
_GPT_ARRAY_BYTES_MAX = 1 << 20
_GPT_ENTRY_BYTES_MAX = 4096
_LARGE_SECTOR_BYTES = 4096
_BOOTABLE = 1 << 2  # GPT attribute "legacy BIOS bootable"


class Entry(NamedTuple):
    """A partition, in bytes, as its table says it."""

    partition: Partition
    offset: int
    length: int
    problem: str = ""


class Table(NamedTuple):
    """What a disk's table says.

    Attributes:
        problem: Why nothing of it can be used.
        note: What was broken and was got over.
    """

    kind: Literal["mbr", "gpt"]
    entries: tuple[Entry, ...]
    problem: str = ""
    note: str = ""


def read_table(name: str, disk: Readable) -> Table | None:
    """The partition table of a disk; None where there is none.

    Args:
        name: Of the disk.

    Raises:
        Error: The disk cannot be read.
    """
    if disk.size_bytes < 2 * SECTOR_BYTES:
        return None
    sector = disk.pread(SECTOR_BYTES, 0)
    slots = _slots(sector)
    if slots is None:
        return None
    if any(slot.type == _PROTECTIVE and slot.length for slot in slots):
        return _checked(_read_gpt(name, disk), disk.size_bytes)
    if not any(slot.type and slot.length for slot in slots):
        return None
    signature = struct.unpack_from("<I", sector, 440)[0]
    return _checked(_read_mbr(name, disk, slots, signature), disk.size_bytes)


class _Slot(NamedTuple):
    """One of the four entries of a boot record, in sectors."""

    flag: int
    type: int
    start: int
    length: int


def _slots(sector: bytes, first: bool = True) -> list[_Slot] | None:
    """The entries of a boot record; None where it is none: the first's flags are 0 or 0x80."""
    if len(sector) < SECTOR_BYTES or sector[510:512] != b"\x55\xaa":
        return None
    found = []
    for at in range(446, 510, 16):
        flag, kind, start, length = struct.unpack_from("<B3xB3xII", sector, at)
        if first and flag not in (0, 0x80):
            return None  # the code of a file system's boot sector
        found.append(_Slot(flag, kind, start, length))
    return found


def _read_mbr(name: str, disk: Readable, slots: list[_Slot], signature: int) -> Table:
    entries: list[Entry] = []
    notes: list[str] = []
    number = 5
    for index, slot in enumerate(slots, 1):
        if not slot.type or not slot.length:
            continue
        if slot.type not in _EXTENDED:
            entries.append(_mbr_entry(name, index, slot, slot.start, signature))
            continue
        for found in _logical(disk, slot, notes):
            if number > PARTITIONS_MAX:
                notes.append(f"there are more than {PARTITIONS_MAX} partitions")
                break
            entries.append(_mbr_entry(name, number, found, found.start, signature))
            number += 1
    return Table("mbr", tuple(entries), note="; ".join(notes))


def _mbr_entry(name: str, number: int, slot: _Slot, start: int, signature: int) -> Entry:
    partition = Partition(
        disk=name,
        table="mbr",
        number=number,
        type=f"{slot.type:02x}",
        uuid=f"{signature:08x}-{number:02x}" if signature else "",
        active=slot.flag == 0x80,
    )
    return Entry(partition, start * SECTOR_BYTES, slot.length * SECTOR_BYTES)


def _logical(disk: Readable, extended: _Slot, notes: list[str]) -> Iterator[_Slot]:
    """The logical partitions of an extended one, start counted from the disk's."""
    sectors = disk.size_bytes // SECTOR_BYTES
    stop = extended.start + extended.length
    at, seen = extended.start, set[int]()
    while True:
        if at in seen:
            notes.append(f"the chain of logical partitions runs in a circle at sector {at}")
            return
        if at >= sectors:
            notes.append(f"the chain of logical partitions leaves the disk at sector {at}")
            return
        if len(seen) >= PARTITIONS_MAX:
            notes.append("the chain of logical partitions is too long")
            return
        seen.add(at)
        slots = _slots(disk.pread(SECTOR_BYTES, at * SECTOR_BYTES), first=False)
        if slots is None:
            if at != extended.start:
                notes.append(f"the chain of logical partitions breaks off at sector {at}")
            return
        for index, slot in enumerate(slots):
            if not slot.type or not slot.length or slot.type in _EXTENDED:
                continue
            start = at + slot.start
            if index >= 2 and (start < extended.start or start + slot.length > stop):
                continue  # the last two are rubbish more often than not
            yield slot._replace(start=start)
        link = next((slot for slot in slots if slot.type in _EXTENDED and slot.length), None)
        if link is None:
            return
        at = extended.start + link.start


class _Header(NamedTuple):
    """Of a GPT, in sectors."""

    lba: int
    other: int
    first: int
    last: int
    array: int
    entries: int
    entry_bytes: int
    array_crc: int


def _read_gpt(name: str, disk: Readable) -> Table:
    last = disk.size_bytes // SECTOR_BYTES - 1
    primary = _header(disk, 1)
    entries = None if isinstance(primary, str) else _gpt_entries(name, disk, primary)
    if not isinstance(primary, str) and not isinstance(entries, str):
        assert entries is not None
        return Table("gpt", entries)
    wrong = primary if isinstance(primary, str) else str(entries)
    places = [last] if isinstance(primary, str) else [primary.other, last]
    for place in places:
        backup = _header(disk, place)
        if isinstance(backup, str):
            continue
        entries = _gpt_entries(name, disk, backup)
        if not isinstance(entries, str):
            note = f"the first GPT is broken ({wrong}): its copy in sector {place} is used"
            return Table("gpt", entries, note=note)
    if (
        disk.size_bytes >= 2 * _LARGE_SECTOR_BYTES
        and disk.pread(8, _LARGE_SECTOR_BYTES) == _GPT_MAGIC
    ):
        return Table("gpt", (), "a GPT for sectors of 4096 bytes, and this disk has 512")
    return Table("gpt", (), f"a protective MBR without a GPT: {wrong}, and so is its copy")


def _header(disk: Readable, lba: int) -> _Header | str:
    """The header in a sector, or what is wrong with it."""
    if not 0 < lba < disk.size_bytes // SECTOR_BYTES:
        return f"sector {lba} is not on the disk"
    sector = disk.pread(SECTOR_BYTES, lba * SECTOR_BYTES)
    if sector[:8] != _GPT_MAGIC:
        return f"no header in sector {lba}"
    length, crc = struct.unpack_from("<II", sector, 12)
    if not 92 <= length <= SECTOR_BYTES:
        return f"the header in sector {lba} would have {length} bytes"
    if zlib.crc32(sector[:16] + bytes(4) + sector[20:length]) != crc:
        return f"the checksum of the header in sector {lba} is wrong"
    mine, other, first, last = struct.unpack_from("<QQQQ", sector, 24)
    array, count, entry_bytes, array_crc = struct.unpack_from("<QIII", sector, 72)
    if mine != lba:
        return f"the header in sector {lba} belongs into sector {mine}"
    if (
        entry_bytes < 128
        or entry_bytes > _GPT_ENTRY_BYTES_MAX
        or entry_bytes % 128
        or count * entry_bytes > _GPT_ARRAY_BYTES_MAX
    ):
        return f"the header in sector {lba} tells of {count} entries of {entry_bytes} bytes"
    return _Header(lba, other, first, last, array, count, entry_bytes, array_crc)


def _gpt_entries(name: str, disk: Readable, header: _Header) -> tuple[Entry, ...] | str:
    """The partitions that a header tells of, or what is wrong with its array."""
    length, offset = header.entries * header.entry_bytes, header.array * SECTOR_BYTES
    if offset > disk.size_bytes or length > disk.size_bytes - offset:
        return f"the entries of the header in sector {header.lba} lie outside the disk"
    data = disk.pread(length, offset) if length else b""
    if zlib.crc32(data) != header.array_crc:
        return f"the checksum of the entries in sector {header.array} is wrong"
    found = []
    for index in range(min(header.entries, PARTITIONS_MAX)):
        at = index * header.entry_bytes
        kind, unique = data[at : at + 16], data[at + 16 : at + 32]
        first, last, attributes = struct.unpack_from("<QQQ", data, at + 32)
        if kind == bytes(16):
            continue
        partition = Partition(
            disk=name,
            table="gpt",
            number=index + 1,
            type=guid(kind),
            uuid=guid(unique),
            name=_utf16(data[at + 56 : at + 128]),
            active=bool(attributes & _BOOTABLE),
        )
        problem = ""
        if last < first:
            problem, last = f"it would end in sector {last}, before it begins", first - 1
        elif first < header.first or last > header.last:
            problem = "it lies where its table keeps no room for partitions"
        found.append(
            Entry(partition, first * SECTOR_BYTES, (last - first + 1) * SECTOR_BYTES, problem)
        )
    return tuple(found)


def guid(data: bytes) -> str:
    """A GUID as Microsoft and UEFI store it: the first three fields little-endian."""
    a, b, c = struct.unpack_from("<IHH", data)
    rest = data[8:].hex()
    return f"{a:08x}-{b:04x}-{c:04x}-{rest[:4]}-{rest[4:]}"


def _utf16(data: bytes) -> str:
    return data.decode("utf-16-le", "replace").split("\0", 1)[0]


def _checked(table: Table, size_bytes: int) -> Table:
    """The table, with a problem at each entry that leaves the disk or lies over another one."""
    entries = list(table.entries)
    for index, entry in enumerate(entries):
        if not entry.problem:
            entries[index] = entry._replace(problem=_outside(entry, table.kind, size_bytes))
    order = sorted(range(len(entries)), key=lambda i: (entries[i].offset, i))
    reach, owner = -1, -1  # the furthest end so far, and whose it is
    for index in order:
        entry = entries[index]
        if not entry.length:
            continue
        if entry.offset < reach:
            for one, other in ((index, owner), (owner, index)):
                if not entries[one].problem:
                    number = entries[other].partition.number
                    said = f"it overlaps partition {number}"
                    entries[one] = entries[one]._replace(problem=said)
        if entry.offset + entry.length > reach:
            reach, owner = entry.offset + entry.length, index
    return table._replace(entries=tuple(entries))


def _outside(entry: Entry, kind: str, size_bytes: int) -> str:
    stop = entry.offset + entry.length
    if stop > size_bytes:
        return f"it ends at byte {stop}, and the disk has {size_bytes}"
    if kind == "mbr" and entry.offset < SECTOR_BYTES:
        return "it begins in the sector of its own table"
    return ""
