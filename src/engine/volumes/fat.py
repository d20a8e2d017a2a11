"""Microsoft's file systems, told by their boot sectors: FAT, exFAT, NTFS.

Sources: Microsoft's "FAT: General Overview of On-Disk Format" and exFAT specification;
the NTFS documentation of the Linux-NTFS project for $Volume.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .seen import Seen
from .window import Window

_CHAIN_MAX = 256  # clusters of a directory that are looked through for a label
_ROOT_BYTES_MAX = 1 << 20  # all of them together
_SECTORS = (512, 1024, 2048, 4096)


def _power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)


def probe_vfat(window: Window) -> Seen | None:
    """FAT12, FAT16 and FAT32."""
    jump = window.at(0, 3)
    if len(jump) < 3 or jump[0] not in (0xEB, 0xE9) or not window.has(510, b"\x55\xaa"):
        return None
    sector, per_cluster, reserved, fats = struct.unpack("<HBHB", window.at(11, 6))
    entries, sectors16, media, fat16 = struct.unpack("<HHBH", window.at(17, 7))
    sectors32, fat32 = struct.unpack("<I", window.at(32, 4))[0], window.number(36, "<I")
    if (
        sector not in _SECTORS
        or not _power_of_two(per_cluster)
        or not reserved
        or fats not in (1, 2)
        or (media < 0xF8 and media != 0xF0)
    ):
        return None
    sectors, fat_sectors = sectors16 or sectors32, fat16 or fat32
    root_sectors = -(-entries * 32 // sector)
    data = reserved + fats * fat_sectors + root_sectors
    if not fat_sectors or sectors <= data:
        return None
    clusters = (sectors - data) // per_cluster
    wide = not fat16
    if wide:
        root = window.number(44, "<I")
        directory = _chain(window, root, reserved, sector, per_cluster, data, clusters)
        serial = 67
    else:
        if not entries:
            return None
        offset = (reserved + fats * fat_sectors) * sector
        directory = iter([window.at(offset, min(entries * 32, _ROOT_BYTES_MAX))])
        serial = 39
    uuid = ""
    if window.at(serial - 1, 1) in (b"\x28", b"\x29"):
        low, high = struct.unpack("<HH", window.at(serial, 4))
        uuid = f"{high:04X}-{low:04X}"
    return Seen("vfat", uuid, _fat_label(directory))


def _chain(
    window: Window,
    cluster: int,
    reserved: int,
    sector: int,
    per_cluster: int,
    data: int,
    clusters: int,
) -> Iterator[bytes]:
    """The clusters of FAT32's root directory; a chain in a circle ends."""
    for _ in range(min(_CHAIN_MAX, _ROOT_BYTES_MAX // (per_cluster * sector))):
        if not 2 <= cluster < clusters + 2:
            return
        found = window.at((data + (cluster - 2) * per_cluster) * sector, per_cluster * sector)
        if not found:
            return
        yield found
        cluster = window.number(reserved * sector + cluster * 4, "<I") & 0x0FFFFFFF


def _fat_label(directory: Iterator[bytes]) -> str:
    for part in directory:
        for at in range(0, len(part) - 31, 32):
            first, flags = part[at], part[at + 11]
            if first == 0:
                return ""
            if first != 0xE5 and flags & 0x3F != 0x0F and flags & 0x18 == 0x08:
                name = part[at : at + 11]
                if first == 0x05:
                    name = b"\xe5" + name[1:]
                return name.decode("utf-8", "replace").rstrip(" \0")
    return ""


def probe_exfat(window: Window) -> Seen | None:
    """exFAT."""
    if not window.has(3, b"EXFAT   ") or not window.has(510, b"\x55\xaa"):
        return None
    heap, clusters, root = struct.unpack("<III", window.at(88, 12))
    fat = window.number(80, "<I")
    sector_shift, cluster_shift = window.at(108, 2)
    if not 9 <= sector_shift <= 12 or sector_shift + cluster_shift > 25 or any(window.at(11, 53)):
        return None
    low, high = struct.unpack("<HH", window.at(100, 4))
    label, cluster = "", root
    cluster_bytes = 1 << (sector_shift + cluster_shift)
    length = min(cluster_bytes, _ROOT_BYTES_MAX)
    for _ in range(min(_CHAIN_MAX, _ROOT_BYTES_MAX // length)):
        if not 2 <= cluster < clusters + 2:
            break
        place = (heap << sector_shift) + (cluster - 2) * cluster_bytes
        found = _exfat_label(window.at(place, length))
        if found is not None:
            label = found
            break
        cluster = window.number((fat << sector_shift) + cluster * 4, "<I")
    return Seen("exfat", f"{high:04X}-{low:04X}", label)


def _exfat_label(directory: bytes) -> str | None:
    """The label in a piece of the root directory; None: look at the next piece."""
    for at in range(0, len(directory) - 31, 32):
        if directory[at] == 0:
            return ""
        if directory[at] == 0x83:
            letters = min(directory[at + 1], 15)
            return directory[at + 2 : at + 2 + 2 * letters].decode("utf-16-le", "replace")
    return None if directory else ""


def probe_ntfs(window: Window) -> Seen | None:
    """NTFS; its label is in $VOLUME_NAME of the fourth record of the MFT."""
    if not window.has(3, b"NTFS    ") or not window.has(510, b"\x55\xaa"):
        return None
    sector, per_cluster = window.number(11, "<H"), window.number(13, "<B")
    if sector not in _SECTORS:
        return None
    if per_cluster > 128:
        per_cluster = 1 << min(256 - per_cluster, 16)  # as a negative power of two
    elif not _power_of_two(per_cluster):
        return None
    mft, serial = window.number(48, "<Q"), window.number(72, "<Q")
    size = window.number(64, "<b")
    record_bytes = 1 << min(-size, 16) if size < 0 else size * per_cluster * sector
    label = ""
    if 512 <= record_bytes <= 65536:
        place = mft * per_cluster * sector + 3 * record_bytes
        label = _volume_name(window.at(place, record_bytes))
    return Seen("ntfs", f"{serial:016X}", label)


def _volume_name(record: bytes) -> str:
    if record[:4] != b"FILE":
        return ""
    at = struct.unpack_from("<H", record, 20)[0]
    while at + 24 <= len(record):
        kind, length = struct.unpack_from("<II", record, at)
        if kind == 0xFFFFFFFF or length < 24 or length > len(record) - at:
            return ""
        if kind == 0x60 and not record[at + 8]:
            size, start = struct.unpack_from("<IH", record, at + 16)
            if start + size <= length:
                return record[at + start : at + start + size].decode("utf-16-le", "replace")
        at += length
    return ""
