"""The types of disks that can be made: what their files are, and what each can be. No I/O.

Bytes: docs/formats.md, "VMDK files we write".
"""

from __future__ import annotations

from dataclasses import dataclass

from ._native import EXTENT_COWD, EXTENT_FLAT, EXTENT_SESPARSE, EXTENT_SPARSE, EXTENT_STREAM
from .errors import UsageError
from .units import SECTOR_BYTES

SPLIT_SPARSE_SECTORS = 4192256  # 2047 MiB, as VMware Workstation splits
SPLIT_FLAT_SECTORS = 4193792  # 2047.75 MiB
COMPRESS_LEVEL = 5  # of a stream by default: about what zlib makes at 6, in half the time
COMPRESS_LEVEL_MAX = 12


@dataclass(frozen=True, slots=True)
class Layout:
    """What the files of a type are: extent type, how a part is named, how it is split."""

    extent_type: str
    kind: int
    suffix: str  # behind the stem; "{}" takes the number of the part
    split_sectors: int = 0
    grain_bytes: int = 0  # 0: not sparse
    append_only: bool = False  # written once, from the first byte to the last
    thick: bool = False  # its space is reserved when it is made


_VMFS = Layout("VMFS", EXTENT_FLAT, "-flat.vmdk")
_THICK = Layout("VMFS", EXTENT_FLAT, "-flat.vmdk", thick=True)
LAYOUTS = {
    "monolithicFlat": Layout("FLAT", EXTENT_FLAT, "-flat.vmdk"),
    "twoGbMaxExtentFlat": Layout("FLAT", EXTENT_FLAT, "-f{:03}.vmdk", SPLIT_FLAT_SECTORS),
    "monolithicSparse": Layout("SPARSE", EXTENT_SPARSE, "", 0, 65536),
    "twoGbMaxExtentSparse": Layout(
        "SPARSE", EXTENT_SPARSE, "-s{:03}.vmdk", SPLIT_SPARSE_SECTORS, 65536
    ),
    "streamOptimized": Layout("SPARSE", EXTENT_STREAM, "", 0, 65536, append_only=True),
    "vmfs": _VMFS,
    "vmfsPreallocated": _THICK,
    "vmfsEagerZeroedThick": _THICK,
    "vmfsThin": _VMFS,
    "vmfsThick": _THICK,
    "vmfsSparse": Layout("VMFSSPARSE", EXTENT_COWD, "-delta.vmdk", 0, SECTOR_BYTES),
    "seSparse": Layout("SESPARSE", EXTENT_SESPARSE, "-sesparse.vmdk", 0, 4096, append_only=True),
    "raw": Layout("FLAT", EXTENT_FLAT, ""),
}
TYPES = tuple(LAYOUTS)


def require_level(type: str, compress_level: int | None) -> None:
    """A compression level goes with the type, and is one.

    Raises:
        UsageError: It is not.
    """
    if compress_level is None:
        return
    if type != "streamOptimized":
        raise UsageError(f"a {type} disk is not compressed", "leave the compression level out")
    if not 0 <= compress_level <= COMPRESS_LEVEL_MAX:
        raise UsageError(
            f"there is no compression level {compress_level}",
            f"give one from 0 (stored) to {COMPRESS_LEVEL_MAX} (smallest)",
        )


def require_layout(type: str, size_bytes: int, grain_bytes: int | None, child: bool) -> Layout:
    """The layout of a type, if a disk like this can be made."""
    layout = LAYOUTS.get(type)
    if layout is None:
        raise UsageError(f"disks of type {type!r} are not made", f"take one of {', '.join(TYPES)}")
    if size_bytes < SECTOR_BYTES or size_bytes % SECTOR_BYTES:
        raise UsageError(
            f"a disk cannot have {size_bytes} bytes", "give a multiple of 512 above 0"
        )
    if size_bytes >= 1 << 62:
        raise UsageError(f"a disk cannot have {size_bytes} bytes", "give a smaller size")
    if layout.kind == EXTENT_COWD and size_bytes // SECTOR_BYTES >= 1 << 32:
        raise UsageError("a vmfsSparse disk is smaller than 2 TiB", "take twoGbMaxExtentSparse")
    if layout.kind == EXTENT_SESPARSE and size_bytes > 62 << 40:
        raise UsageError("a seSparse disk has at most 62 TiB, as on ESXi", "give a smaller size")
    if child and (layout.append_only or not layout.grain_bytes):
        raise UsageError(
            f"a {type} disk cannot have a parent",
            "take a sparse type that is written at random, such as monolithicSparse",
        )
    if grain_bytes is not None:
        _require_grain(type, layout, grain_bytes)
    return layout


def _require_grain(type: str, layout: Layout, grain_bytes: int) -> None:
    if not layout.grain_bytes:
        raise UsageError(f"a {type} disk has no grains", "leave the grain size out")
    if layout.kind == EXTENT_SESPARSE and grain_bytes != layout.grain_bytes:
        raise UsageError("a grain of seSparse has 4 KiB", "leave the grain size out")
    least = 4096 if layout.kind == EXTENT_STREAM else SECTOR_BYTES
    power = grain_bytes & (grain_bytes - 1) == 0
    if not (power and least <= grain_bytes <= 2048 * SECTOR_BYTES):
        raise UsageError(
            f"a grain cannot have {grain_bytes} bytes",
            f"give a power of two from {least} bytes to 1 MiB",
        )


def split(sectors: int, most: int) -> list[int]:
    if most == 0:
        return [sectors]
    whole, rest = divmod(sectors, most)
    if whole >= 9999:
        raise UsageError("the disk would have more than 9999 parts", "take a type of one file")
    return [most] * whole + ([rest] if rest else [])
