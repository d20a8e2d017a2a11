"""What a volume holds, told by its signatures, as the guest's blkid would.

Whatever is wrapped around a file system (a RAID, a physical volume, encryption) is looked
for first: what lies inside must not be taken for the thing itself. A file system's numbers
are never believed further than to find its label.

Sources: libblkid of util-linux for places and the form of UUIDs and labels; each format's
own specification as named beside it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from .base import Readable
from .fat import probe_exfat, probe_ntfs, probe_vfat
from .seen import Seen, hyphened, text
from .window import Window

HIBERNATED = "the memory of a hibernated system lies in it"  # a swap area's note
_EXT_INCOMPAT_RECOVER = 0x4
_EXT_INCOMPAT_JOURNAL = 0x8
_EXT_COMPAT_JOURNAL = 0x4
_EXT2_INCOMPAT = 0x2 | 0x10  # file types, meta block groups
_EXT3_INCOMPAT = _EXT2_INCOMPAT | _EXT_INCOMPAT_RECOVER
_EXT3_RO = 0x1 | 0x2 | 0x4  # sparse superblocks, large files, trees of directories
_MD_MAGIC = 0xA92B4EFC
_ZFS_MAGIC = 0x00BAB10C
_SWAP_PAGES = (4096, 8192, 16384, 65536)
_SLEEPING = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001")
_ZERO_TAIL_BYTES = 64 * 1024


def probe(disk: Readable) -> Seen:
    """What lies on it; kind "empty" or "unknown" where nothing was found.

    Raises:
        Error: The disk cannot be read.
    """
    window = Window(disk)
    for look in _LOOKS:
        seen = look(window)
        if seen is not None:
            return seen
    for offset, magic, what in _NAMED:
        if window.has(offset, magic):
            return Seen("unknown", problem=f"it holds {what}, which is not read")
    return _nothing(window)


def probe_boot_sector(disk: Readable) -> Seen | None:
    """A file system whose first sector has a boot record's signature, if one is there.

    Its code can look like a partition table.
    """
    window = Window(disk)
    for look in (_bitlocker, probe_ntfs, probe_exfat, probe_vfat):
        seen = look(window)
        if seen is not None:
            return seen
    return None


def _nothing(window: Window) -> Seen:
    head = window.at(0, min(window.size_bytes, 64 * 1024))
    tail_bytes = min(window.size_bytes, _ZERO_TAIL_BYTES)
    tail = window.at(window.size_bytes - tail_bytes, tail_bytes)
    if not any(head) and not any(tail):
        return Seen("empty")
    start = next((at for at in range(0, len(head), 16) if any(head[at : at + 16])), None)
    if start is None:
        return Seen("unknown", problem="no signature that is known: zeros at its beginning")
    shown = head[start : start + 16].hex(" ")
    return Seen("unknown", problem=f"no signature that is known: {shown} at byte {start}")


# --- what is wrapped around others ---


def _lvm(window: Window) -> Seen | None:
    for at in range(0, 2048, 512):
        if window.has(at, b"LABELONE") and window.has(at + 24, b"LVM2 001"):
            offset = window.number(at + 20, "<I")
            name = window.at(at + offset, 32) if offset <= 480 else b""
            return Seen("lvm", lvm_id(name))
    return None


def lvm_id(data: bytes) -> str:
    """An id of LVM, 32 characters, with the hyphens that it is shown with."""
    name = text(data)
    cuts = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(name[a:b] for a, b in pairwise(cuts))


def _luks(window: Window) -> Seen | None:
    """LUKS1 and LUKS2 on-disk format specifications, "phdr" and "binary header"."""
    return _luks_header(window, 0) if window.has(0, b"LUKS\xba\xbe") else None


def _luks_copy(window: Window) -> Seen | None:
    """A LUKS2 whose first header is gone. Looked for last: file systems leave it behind."""
    for shift in range(14, 23):
        at = 1 << shift
        if window.has(at, b"SKUL\xba\xbe") and window.number(at + 256, ">Q") == at:
            return _luks_header(window, at)
    return None


def _luks_header(window: Window, at: int) -> Seen | None:
    version = window.number(at + 6, ">H")
    if version not in (1, 2):
        return None
    label = text(window.at(at + 24, 48)) if version == 2 else ""
    said = f"it is encrypted with LUKS{version}, and its key is the guest's"
    return Seen("luks", text(window.at(at + 168, 40)), label, said)


def _bitlocker(window: Window) -> Seen | None:
    """Source: libbde's documentation, "Volume header"."""
    to_go = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")
    if window.has(3, b"-FVE-FS-") or (window.has(3, b"MSWIN4.1") and window.has(424, to_go)):
        said = "it is encrypted with BitLocker, and its key is the guest's: decrypt it there"
        return Seen("bitlocker", problem=said)
    return None


def _md(window: Window) -> Seen | None:
    """Source: linux/raid/md_p.h, both superblock formats."""
    size = window.size_bytes
    for at, minor in ((0, 1), (4096, 2), (((size >> 9) - 16 & ~7) << 9, 0)):
        if window.number(at, "<I") == _MD_MAGIC and window.number(at + 4, "<I") == 1:
            if window.number(at + 144, "<Q") != at >> 9:
                continue
            uuid, label = hyphened(window.at(at + 16, 16)), text(window.at(at + 32, 32))
            return _raid(window, uuid, label, f"1.{minor}", window.number(at + 72, "<i"))
    at = (size & ~0xFFFF) - 0x10000
    for order in "<>":
        if window.number(at, order + "I") != _MD_MAGIC:
            continue
        if window.number(at + 32, order + "I") << 10 > at:
            continue  # of another device: no room for its data before it
        words = [window.number(at + place, order + "I") for place in (20, 52, 56, 60)]
        if -1 not in words:
            uuid = hyphened(struct.pack(">4I", *words))
            return _raid(window, uuid, "", "0.90", window.number(at + 28, order + "i"))
    return None


def _raid(window: Window, uuid: str, label: str, version: str, level: int) -> Seen:
    how = {-1: "linear", 0: "RAID0", 1: "RAID1", 4: "RAID4", 5: "RAID5", 6: "RAID6", 10: "RAID10"}
    said = f"it is a member of a Linux software RAID ({how.get(level, 'md')}, metadata {version})"
    return Seen("md", uuid, label, said)


def _zfs(window: Window) -> Seen | None:
    """Source: the ZFS on-disk specification, "Vdev Labels"; two of the four are looked at."""
    found = 0
    for label in (0, 256 * 1024):
        ring = window.at(label + 128 * 1024, 128 * 1024)
        for at in range(0, len(ring), 1024):
            for order in "<>":
                if struct.unpack_from(order + "Q", ring, at)[0] == _ZFS_MAGIC:
                    found += 1
    if found < 4:
        return None
    pairs = window.at(16 * 1024, 112 * 1024)
    guid, name = _pair(pairs, b"pool_guid"), _pair(pairs, b"name")
    number = str(struct.unpack(">Q", guid)[0]) if len(guid) == 8 else ""
    return Seen("zfs", number, text(name), "it is a member of a ZFS pool, which is not read")


def _pair(data: bytes, name: bytes) -> bytes:
    """The value of a number or string in an nvlist in XDR: size, name, type, count, value."""
    key = struct.pack(">I", len(name)) + name + bytes(-len(name) % 4)
    at = data.find(key)
    if at < 0 or at + len(key) + 20 > len(data):
        return b""
    kind, count, length = struct.unpack_from(">III", data, at + len(key))
    at += len(key) + 8
    if kind == 8 and count == 1:  # a 64-bit number
        return data[at : at + 8]
    if kind == 9 and count == 1 and length <= 256:
        return data[at + 4 : at + 4 + length]
    return b""


def _bcache(window: Window) -> Seen | None:
    """Source: linux/bcache.h, struct cache_sb."""
    if not window.has(4096 + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")):
        return None
    uuid, label = hyphened(window.at(4096 + 40, 16)), text(window.at(4096 + 72, 32))
    said = "it is a bcache device: the newest data may lie in its cache"
    return Seen("bcache", uuid, label, said)


# --- file systems ---


def _ext(window: Window) -> Seen | None:
    """Source: Documentation/filesystems/ext4 of Linux, "Super Block"."""
    at = 1024
    if not window.has(at + 56, b"\x53\xef"):
        return None
    compat, incompat, ro = (window.number(at + place, "<I") for place in (92, 96, 100))
    uuid, label = hyphened(window.at(at + 104, 16)), text(window.at(at + 120, 16))
    if incompat & _EXT_INCOMPAT_JOURNAL:
        return Seen("unknown", uuid, label, "it is the journal of an ext file system elsewhere")
    if incompat & ~_EXT3_INCOMPAT or ro & ~_EXT3_RO:
        return Seen("ext4", uuid, label)
    return Seen("ext3" if compat & _EXT_COMPAT_JOURNAL else "ext2", uuid, label)


def _xfs(window: Window) -> Seen | None:
    """Source: "XFS Algorithms & Data Structures", superblocks."""
    block = window.number(4, ">I")
    if not window.has(0, b"XFSB") or not 512 <= block <= 65536 or block & (block - 1):
        return None
    return Seen("xfs", hyphened(window.at(32, 16)), text(window.at(108, 12)))


def _btrfs(window: Window) -> Seen | None:
    """Source: btrfs' on-disk format, "Superblock"."""
    at = 65536
    if not window.has(at + 64, b"_BHRfS_M"):
        return None
    devices = window.number(at + 136, "<Q")
    note = f"its btrfs spans {devices} devices" if devices > 1 else ""
    uuid, label = hyphened(window.at(at + 32, 16)), text(window.at(at + 299, 256))
    return Seen("btrfs", uuid, label, note=note)


def _iso9660(window: Window) -> Seen | None:
    """Source: ECMA-119, "Primary Volume Descriptor"; Joliet's label is taken where it has one."""
    at = 32768
    if not window.has(at + 1, b"CD001"):
        return None
    label = window.at(at + 40, 32).decode("latin-1").rstrip(" \0")
    for number in range(1, 16):
        place = at + number * 2048
        if not window.has(place + 1, b"CD001") or window.has(place, b"\xff"):
            break
        if window.has(place, b"\x02") and window.at(place + 88, 3) in (b"%/@", b"%/C", b"%/E"):
            wide = window.at(place + 40, 32).decode("utf-16-be", "replace").rstrip(" \0")
            label = _joined(label, wide)
    date = window.at(at + 830, 16)
    if not date.isdigit() or date == b"0" * 16:
        date = window.at(at + 813, 16)
    uuid = ""
    if date.isdigit() and date != b"0" * 16:
        parts = [date[:4], *(date[i : i + 2] for i in range(4, 16, 2))]
        uuid = "-".join(part.decode() for part in parts)
    return Seen("iso9660", uuid, label)


def _joined(plain: str, wide: str) -> str:
    """Joliet's label is in 16 letters what may be longer, in capitals, in the plain one."""
    return plain if plain.upper().startswith(wide.upper()) and len(plain) > len(wide) else wide


def _squashfs(window: Window) -> Seen | None:
    if window.has(0, b"hsqs") and 3 <= window.number(28, "<H") <= 4:
        return Seen("squashfs")
    return None


def _swap(window: Window) -> Seen | None:
    """Source: linux/swap.h, union swap_header; kernel/power/swap.c for what sleeps in it."""
    for page in _SWAP_PAGES:
        magic = window.at(page - 10, 10)
        asleep = next((what for what in _SLEEPING if magic.startswith(what)), None)
        if asleep is None and magic not in (b"SWAPSPACE2", b"SWAP-SPACE"):
            continue
        uuid, label = "", ""
        if magic != b"SWAP-SPACE" and window.number(1024, "<I") in (1, 1 << 24):
            identity = window.at(1024 + 12, 16)
            uuid = hyphened(identity) if any(identity) else ""
            label = text(window.at(1024 + 28, 16))
        note = "" if asleep is None else HIBERNATED
        return Seen("swap", uuid, label, note=note)
    return None


class _Named(NamedTuple):
    """What is only called by its name."""

    offset: int
    magic: bytes
    what: str


# What a file system's maker leaves of another one decides about the order.
_LOOKS: tuple[Callable[[Window], Seen | None], ...] = (
    _md,
    _lvm,
    _luks,
    _bitlocker,
    _bcache,
    probe_ntfs,
    probe_exfat,
    _ext,
    _xfs,
    _btrfs,  # its maker wipes all others; others leave it
    _swap,
    _zfs,  # the same
    _squashfs,
    _iso9660,
    probe_vfat,
    _luks_copy,
)
_NAMED = (
    _Named(3, b"ReFS\0\0\0\0", "a ReFS file system"),
    _Named(1024, b"\x10\x20\xf5\xf2", "an f2fs file system"),
    _Named(1024, b"H+\0\x04", "an HFS+ file system"),
    _Named(1024, b"HX\0\x05", "an HFS+ file system"),
    _Named(32, b"NXSB", "an APFS container"),
    _Named(32768, b"JFS1", "a JFS file system"),
    _Named(65536 + 52, b"ReIsEr", "a reiserfs file system"),
    _Named(65536 + 1372, b"\x19\x01\x54\x19", "a UFS2 file system"),
    _Named(8192 + 1372, b"\x54\x19\x01\x00", "a UFS file system"),
    _Named(4096, b"bcachefs", "a bcachefs file system"),
    _Named(4096 + 24, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef"), "a bcachefs file system"),
    _Named(0x100000, b"\x0d\xd0\x01\xc0", "a VMFS volume"),
    _Named(512, b"!Stra0tis\x86\xff\x02^\x41rh", "a Stratis pool's member"),
    _Named(0, b"dmvdo001", "a VDO volume"),
    _Named(0, b"bluestore block device", "a Ceph BlueStore device"),
    _Named(0, b"HM\x01\0", "a physical volume of LVM1"),
    _Named(0, b"HM\x02\0", "a physical volume of LVM1"),
    _Named(0xC00, b"PRIVHEAD", "a Windows dynamic disk"),
    _Named(0, b"SPACEDB ", "a member of Windows Storage Spaces"),
    _Named(4096, b"SPACEDB ", "a member of Windows Storage Spaces"),
    _Named(0, b"integrt\0", "a dm-integrity device"),
    _Named(0, b"-rom1fs-", "a romfs file system"),
    _Named(0, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    _Named(1024, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
)
