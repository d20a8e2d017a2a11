"""Makes seSparse extents as ESXi lays them out: for tests, and as seeds for fuzzing.

Written from what is known of a real extent, beside the product's own writer: one does not
share mistakes with the other. Everything that is not written is a hole.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
GRAIN = 4096
TABLE_ENTRIES = 4096
TABLE_SECTORS = 64
REGIONS = (
    "volatile", "journal_header", "journal", "directory", "tables", "bitmap", "backmap", "grains",
)
USED = 1 << 60


class Kind(enum.Enum):
    """What an entry can be that has no data."""

    UNMAPPED = 1  # by the guest; still names the grain that it had
    ZERO = 2


def rotate(index: int) -> int:
    """A grain index as it stands in the low 60 bits of an entry."""
    return (index & 0xFFF) << 48 | index >> 12


def entry(kind: int, index: int) -> int:
    return kind << 60 | rotate(index)


@dataclass(frozen=True)
class Layout:
    """Where the regions lie: {name: (first sector, sectors)}.

    align: regions begin and end on so many sectors. ESXi has 2048; less makes small files.
    """

    sectors: int
    align: int = 2048
    regions: dict[str, tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        grains = -(-self.sectors // 8)
        tables = -(-self.sectors // 32768)
        sizes = {
            "journal": 1,
            "directory": -(-tables // 64),
            "tables": tables * TABLE_SECTORS,
            "bitmap": -(-grains // 4096),
            "backmap": -(-grains // 64),
            "grains": grains * 8,
        }
        regions = {"volatile": (1, 1), "journal_header": (2, 2)}
        at = max(self.align, 4)
        for name, size in sizes.items():
            size = -(-size // self.align) * self.align
            regions[name] = (at, size)
            at += size
        object.__setattr__(self, "regions", regions)

    def offset(self, name: str) -> int:
        """Byte of the file where a region begins."""
        return self.regions[name][0] * SECTOR

    @property
    def end(self) -> int:
        first, size = self.regions["grains"]
        return (first + size) * SECTOR

    def constant_header(self) -> bytes:
        head = struct.pack("<5Q", 0xCAFEBABE, 0x0000000200000001, self.sectors, 8, TABLE_SECTORS)
        placed = b"".join(struct.pack("<2Q", *self.regions[name]) for name in REGIONS)
        return (head + bytes(40) + placed).ljust(SECTOR, b"\0")


def write(
    path: Path,
    sectors: int,
    grains: Iterable[tuple[int, bytes | Kind]],
    *,
    align: int = 2048,
    replay: int = 0,
) -> Layout:
    """An extent of these grains: (number on the disk, its data or kind).

    Their order is the order in which the guest wrote them: tables and places in the file
    are handed out by it. What an unmapped grain had is the place that it got.
    """
    layout = Layout(sectors, align)
    tables: dict[int, int] = {}
    places = 0
    bitmap: dict[int, int] = {}
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for grain, what in grains:
            number, index = divmod(grain, TABLE_ENTRIES)
            table = tables.setdefault(number, len(tables))
            at = layout.offset("tables") + table * TABLE_SECTORS * SECTOR + 8 * index
            if what is Kind.ZERO:
                os.pwrite(descriptor, struct.pack("<Q", entry(2, 0)), at)
                continue
            place, places = places, places + 1
            kind = 1 if what is Kind.UNMAPPED else 3
            os.pwrite(descriptor, struct.pack("<Q", entry(kind, place)), at)
            back = struct.pack("<Q", USED | rotate(grain))
            os.pwrite(descriptor, back, layout.offset("backmap") + 8 * place)
            bitmap[place // 8] = bitmap.get(place // 8, 0) | 1 << place % 8
            if isinstance(what, bytes):
                os.pwrite(descriptor, what, layout.offset("grains") + GRAIN * place)
        for number, table in tables.items():
            at = layout.offset("directory") + 8 * number
            os.pwrite(descriptor, struct.pack("<Q", USED | table), at)
        for at, byte in bitmap.items():
            os.pwrite(descriptor, bytes([byte]), layout.offset("bitmap") + at)
        volatile = struct.pack("<4Q", 0xCAFECAFE, len(tables), 0x24, replay)
        os.pwrite(descriptor, volatile.ljust(SECTOR, b"\0"), layout.offset("volatile"))
        # the second sector is memory of the host that was never cleared
        journal = struct.pack("<3Q", 0xDEAFC0DE, 0x24, 1).ljust(SECTOR, b"\0")
        noise = b"2021-08-27T11:21:54.000Z info hostd[2101] [Originator]".ljust(SECTOR, b"!")
        os.pwrite(descriptor, journal + noise, layout.offset("journal_header"))
        os.pwrite(descriptor, layout.constant_header(), 0)
        os.ftruncate(descriptor, layout.end)
    finally:
        os.close(descriptor)
    return layout


def write_descriptor(
    path: Path,
    sectors: int,
    extent: str,
    *,
    cid: int = 0x0C5A11D1,
    parent: tuple[str, int] | None = None,
) -> Path:
    """The descriptor file that goes with an extent."""
    hint = f'parentFileNameHint="{parent[0]}"\n' if parent else ""
    parent_cid = parent[1] if parent else 0xFFFFFFFF
    path.write_text(
        "# Disk DescriptorFile\nversion=1\n"
        f"CID={cid:08x}\nparentCID={parent_cid:08x}\n"
        f'createType="seSparse"\n{hint}\n'
        f'# Extent description\nRW {sectors} SESPARSE "{extent}"\n\n'
        '# The Disk Data Base\n#DDB\n\nddb.adapterType = "lsilogic"\n'
    )
    return path
