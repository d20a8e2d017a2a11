"""What lies on a FAT volume: its boot sector and its directories, taken apart.

Standard library alone, as worker.py says.

Source: Microsoft "FAT32 File System Specification" 1.03: boot sector, FAT entries,
directory entries with long names; FAT type by the count of clusters.
"""

from __future__ import annotations

import codecs
import struct
from typing import NamedTuple

from .beneath import LIST_MAX, Refused

_FAT_BYTES_MAX = 256 << 20
_ATTRIBUTE_LONG, _ATTRIBUTE_LABEL, _ATTRIBUTE_DIRECTORY = 0x0F, 0x08, 0x10
for _encoding in ("cp437", "utf-16-le"):
    codecs.lookup(_encoding)  # now: its module may be out of reach for the driver's user


class Entry(NamedTuple):
    """One file or directory; short is its 8.3 name. first is a cluster."""

    name: bytes
    short: bytes
    directory: bool
    first: int
    size_bytes: int
    modified_ns: int


class Shape(NamedTuple):
    """Where everything is, in bytes. fat_bytes: as far as the clusters need the table."""

    bits: int  # 12, 16, 32
    fat_at: int
    fat_bytes: int
    root_at: int  # FAT12, FAT16
    root_bytes: int
    root_cluster: int  # FAT32
    data_at: int
    cluster_bytes: int
    clusters: int


def shape_of(boot: bytes) -> Shape:
    """What a boot sector says; Refused when it cannot be."""
    sector, per_cluster, reserved, fats, roots, total16 = struct.unpack_from("<HBHBHH", boot, 11)
    fat16, (total32, fat32), root_cluster = (
        struct.unpack_from("<H", boot, 22)[0],
        struct.unpack_from("<II", boot, 32),
        struct.unpack_from("<I", boot, 44)[0],
    )
    if sector not in (512, 1024, 2048, 4096) or per_cluster not in (1, 2, 4, 8, 16, 32, 64, 128):
        raise Refused("guest", "its boot sector is damaged: no FAT file system has such clusters")
    fat_sectors, total = fat16 or fat32, total16 or total32
    root_sectors = -(-roots * 32 // sector)
    first = reserved + fats * fat_sectors + root_sectors
    clusters = (total - first) // per_cluster
    if not 1 <= fats <= 4 or reserved < 1 or clusters < 1:
        raise Refused("guest", "its boot sector is damaged: no room for data is left")
    bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32
    fat_bytes = min(fat_sectors * sector, (clusters + 2) * bits // 8 + 2)
    if fat_bytes > _FAT_BYTES_MAX:
        raise Refused("guest", f"its allocation table has {fat_bytes} bytes: too many")
    return Shape(
        bits,
        reserved * sector,
        fat_bytes,
        (reserved + fats * fat_sectors) * sector,
        roots * 32,
        root_cluster,
        first * sector,
        sector * per_cluster,
        clusters,
    )


def parse(data: bytes) -> list[Entry]:
    """The files of a directory, without those whose names are no names."""
    found: list[Entry] = []
    long: dict[int, bytes] = {}
    checksum = -1
    for at in range(0, len(data) - 31, 32):
        entry = data[at : at + 32]
        if entry[0] == 0 or len(found) >= LIST_MAX:
            break
        if entry[0] == 0xE5:
            long = {}
            continue
        if entry[11] & 0x3F == _ATTRIBUTE_LONG:
            if entry[0] & 0x40 or entry[13] != checksum:
                long, checksum = {}, entry[13]
            long[entry[0] & 0x1F] = entry[1:11] + entry[14:26] + entry[28:32]
            continue
        parts, long = long, {}
        if entry[11] & _ATTRIBUTE_LABEL:
            continue
        short = _short_name(entry)
        name = short
        if (
            parts
            and checksum == _checksum(entry[:11])
            and set(parts) == set(range(1, len(parts) + 1))
        ):
            name = _long_name(b"".join(parts[number] for number in sorted(parts)))
        if short in (b".", b"..") or not name or b"/" in name or b"\0" in name:
            continue
        high, clock, day, low, size = struct.unpack_from("<HHHHI", entry, 20)
        directory = bool(entry[11] & _ATTRIBUTE_DIRECTORY)
        modified = modified_ns(day, clock)
        found.append(Entry(name, short, directory, high << 16 | low, size, modified))
    return found


def _short_name(entry: bytes) -> bytes:
    base = (b"\xe5" + entry[1:8] if entry[0] == 5 else entry[:8]).rstrip(b" ").decode("cp437")
    extension = entry[8:11].rstrip(b" ").decode("cp437")
    base = base.lower() if entry[12] & 0x08 else base
    extension = extension.lower() if entry[12] & 0x10 else extension
    return (f"{base}.{extension}" if extension else base).encode()


def _long_name(units: bytes) -> bytes:
    for at in range(0, len(units), 2):
        if units[at : at + 2] == b"\0\0":
            units = units[:at]
            break
    return units.decode("utf-16-le", "replace").encode()


def _checksum(short: bytes) -> int:
    total = 0
    for byte in short:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total


def modified_ns(day: int, clock: int) -> int:
    """DOS times are the clock on the wall: UTC is taken for it."""
    year, month = 1980 + (day >> 9), max(1, min(12, day >> 5 & 15))
    # Days since 1970 of the first of a month; years begin in March, so February ends them.
    years = year - (month < 3)
    days = years * 365 + years // 4 - years // 100 + years // 400
    days += (153 * ((month + 9) % 12) + 2) // 5 + max(1, day & 31) - 719469
    return ((days * 24 + (clock >> 11)) * 60 + (clock >> 5 & 63)) * 60 * 10**9 + (
        (clock & 31) * 2 * 10**9
    )
