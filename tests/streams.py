"""Makes compressed sparse extents as their many writers do: for tests, and as seeds for fuzzing.

Written from the specification's words and from what real files look like, beside the
product's own writer: one does not share mistakes with the other.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

SECTOR = 512
AT_END = 2**64 - 1
GRAIN_TABLE, GRAIN_DIRECTORY, FOOTER, PROGRESS = 1, 2, 3, 4

DESCRIPTOR = """# Disk DescriptorFile
version=1
CID={cid:08x}
parentCID={parent_cid:08x}
createType="{create_type}"
{parent_line}
# Extent description
{access} {sectors} SPARSE "somewhere-else.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "1"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
"""


@dataclass(frozen=True)
class Dialect:
    """How one writer lays a stream down.

    directory: "front" (before the grains), "end" (behind them, and the header says where)
    or "footer" (behind them, found through the footer).
    """

    name: str
    directory: str
    version: int = 3
    footer: bool = False
    end_of_stream: bool = False
    markers: bool = True  # flag bit 17; without it a u32 size precedes the data
    table_markers: bool = True
    redundant: bool = False
    progress: bool = False
    skip_empty_tables: bool = False
    short_last_grain: bool = False
    descending: bool = False  # neighbouring grains stand in falling order
    padding_bytes: int = 0  # behind all
    create_type: str = "streamOptimized"
    access: str = "RW"
    level: int = 6
    descriptor_sectors: int = 20

    def __str__(self) -> str:
        return self.name


DIALECTS = [
    Dialect("ovftool", "footer", footer=True, end_of_stream=True, progress=True,
            access="RDONLY", level=1, descriptor_sectors=1),
    Dialect("older converter", "end", version=1, footer=True, end_of_stream=True),
    Dialect("vdiskmanager", "front", end_of_stream=True, table_markers=False),
    Dialect("open-vmdk", "front", end_of_stream=True, table_markers=False,
            skip_empty_tables=True),
    Dialect("qemu", "front", redundant=True, table_markers=False, short_last_grain=True,
            descending=True),
    Dialect("VirtualBox", "footer", footer=True, end_of_stream=True, skip_empty_tables=True,
            descriptor_sectors=2),
    Dialect("cloud export", "footer", footer=True, end_of_stream=True,
            create_type="monolithicSparse"),
    Dialect("version 2", "footer", version=2, footer=True, end_of_stream=True),
    Dialect("no markers", "front", markers=False, table_markers=False),
    Dialect("padded behind", "footer", footer=True, end_of_stream=True, padding_bytes=70_000),
    Dialect("odd bytes behind", "footer", footer=True, end_of_stream=True, padding_bytes=100),
    Dialect("stored", "footer", footer=True, end_of_stream=True, level=0),
]  # fmt: skip


def marker(value: int, size: int, kind: int) -> bytes:
    return struct.pack("<QII", value, size, kind).ljust(SECTOR, b"\0")


def padded(data: bytes, to: int = SECTOR) -> bytes:
    return data + bytes(-len(data) % to)


def header(
    *, version: int = 3, flags: int, capacity: int, grain: int, descriptor_sectors: int,
    entries: int, redundant_directory: int, directory: int, overhead: int, algorithm: int = 1,
) -> bytes:  # fmt: skip
    return (
        struct.pack(
            "<4sIIQQQQIQQQB4sH",
            b"KDMV", version, flags, capacity, grain, 1 if descriptor_sectors else 0,
            descriptor_sectors, entries, redundant_directory, directory, overhead, 0,
            b"\n \r\n", algorithm,
        )
    ).ljust(SECTOR, b"\0")  # fmt: skip


class _Maker:
    def __init__(
        self, how: Dialect, data: bytes, grain: int, entries: int, zeroed: frozenset[int],
        descriptor: bytes,
    ) -> None:  # fmt: skip
        self.how, self.data, self.grain, self.entries = how, data, grain, entries
        self.zeroed, self.descriptor = zeroed, descriptor
        self.capacity = len(data) // SECTOR
        self.grains = -(-self.capacity // grain)
        self.tables = -(-self.grains // entries)
        self.table_sectors = entries * 4 // SECTOR
        self.directory_sectors = -(-self.tables * 4 // SECTOR)
        self.entry: dict[int, int] = {}
        self.table_at: dict[int, int] = {}
        self.out = bytearray(SECTOR)

    def sector(self) -> int:
        assert len(self.out) % SECTOR == 0
        return len(self.out) // SECTOR

    def add(self, blob: bytes) -> int:
        at = self.sector()
        self.out += padded(blob)
        return at

    def packed(self, number: int) -> bytes | None:
        size = self.grain * SECTOR
        grain = self.data[number * size : (number + 1) * size]
        if number in self.zeroed or not any(grain):
            return None
        if not self.how.short_last_grain:
            grain = padded(grain, size)
        squeezed = zlib.compress(grain, self.how.level)
        if self.how.markers:
            return struct.pack("<QI", number * self.grain, len(squeezed)) + squeezed
        return struct.pack("<I", len(squeezed)) + squeezed

    def table(self, index: int) -> bytes:
        numbers = range(index * self.entries, (index + 1) * self.entries)
        return struct.pack(f"<{self.entries}I", *(self.entry.get(n, 0) for n in numbers))

    def directory(self, at: Mapping[int, int]) -> bytes:
        return padded(struct.pack(f"<{self.tables}I", *(at.get(n, 0) for n in range(self.tables))))

    def numbers(self, index: int) -> Iterator[int]:
        stop = min((index + 1) * self.entries, self.grains)
        group = 16 if self.how.descending else 1
        for first in range(index * self.entries, stop, group):
            yield from reversed(range(first, min(first + group, stop)))

    def add_grains(self, index: int) -> None:
        for number in self.numbers(index):
            if number in self.zeroed:
                self.entry[number] = 1
                continue
            blob = self.packed(number)
            if blob is not None:
                self.entry[number] = self.add(blob)
        if self.how.progress:
            note = marker(0, 0, PROGRESS)
            reached = (index + 1) * self.entries * self.grain
            self.add(note[:16] + struct.pack("<Q", reached) + note[24:])

    def wanted(self, index: int) -> bool:
        return any(self.table(index)) or not self.how.skip_empty_tables

    def header(self, directory: int, redundant: int, overhead: int) -> bytes:
        flags = 0x10001 | (0x20000 if self.how.markers else 0)
        flags |= (2 if self.how.redundant else 0) | (4 if self.zeroed else 0)
        return header(
            version=self.how.version, flags=flags, capacity=self.capacity, grain=self.grain,
            descriptor_sectors=self.how.descriptor_sectors, entries=self.entries,
            redundant_directory=redundant, directory=directory, overhead=overhead,
        )  # fmt: skip

    def in_front(self) -> bytes:
        """Room for directories and tables, then the grains; the tables are filled in last."""
        places = []
        for _ in range(2 if self.how.redundant else 1):
            directory = self.add(bytes(self.directory_sectors * SECTOR))
            first = self.add(bytes(self.tables * self.table_sectors * SECTOR))
            places.append((directory, first))
        self.out += bytes(-len(self.out) % (self.grain * SECTOR))
        overhead = self.sector()
        for index in range(self.tables):
            self.add_grains(index)
        for directory, first in places:
            at = {n: first + n * self.table_sectors for n in range(self.tables) if self.wanted(n)}
            self.put(directory, self.directory(at))
            for index, sector in at.items():
                self.put(sector, self.table(index))
        redundant = places[0][0] if self.how.redundant else 0
        return self.header(places[-1][0], redundant, overhead)

    def put(self, sector: int, blob: bytes) -> None:
        self.out[sector * SECTOR : sector * SECTOR + len(blob)] = blob

    def behind(self) -> bytes:
        self.out += bytes(-len(self.out) % (self.grain * SECTOR))
        overhead = self.sector()
        for index in range(self.tables):
            self.add_grains(index)
            if self.wanted(index):
                self.add(marker(self.table_sectors, 0, GRAIN_TABLE))
                self.table_at[index] = self.add(self.table(index))
        self.add(marker(self.directory_sectors, 0, GRAIN_DIRECTORY))
        directory = self.add(self.directory(self.table_at))
        if self.how.footer:
            self.add(marker(1, 0, FOOTER))
            self.add(self.header(directory, 0, overhead))
        return self.header(AT_END if self.how.directory == "footer" else directory, 0, overhead)

    def make(self) -> bytes:
        self.out += self.descriptor.ljust(self.how.descriptor_sectors * SECTOR, b"\0")
        first = self.in_front() if self.how.directory == "front" else self.behind()
        if self.how.end_of_stream:
            self.add(marker(0, 0, 0))
        self.out += bytes(self.how.padding_bytes)
        self.out[:SECTOR] = first
        return bytes(self.out)


def descriptor(
    how: Dialect, sectors: int, *, cid: int = 0x12345678, parent: tuple[int, str] | None = None
) -> bytes:
    """parent: its CID and its file."""
    text = DESCRIPTOR.format(
        cid=cid, parent_cid=0xFFFFFFFF if parent is None else parent[0],
        create_type=how.create_type, access=how.access, sectors=sectors,
        parent_line="" if parent is None else f'parentFileNameHint="{parent[1]}"\n',
    )  # fmt: skip
    return text.encode()[: how.descriptor_sectors * SECTOR]


def make_stream(
    how: Dialect,
    data: bytes,
    *,
    grain_sectors: int = 128,
    entries: int = 512,
    zeroed: frozenset[int] = frozenset(),
    parent: tuple[int, str] | None = None,
) -> bytes:
    """A whole file that holds data (a multiple of 512 bytes); grains of zeros are left out.

    zeroed: grains whose table entry is 1, with flag bit 2.
    """
    text = descriptor(how, len(data) // SECTOR, parent=parent)
    return _Maker(how, data, grain_sectors, entries, zeroed, text).make()


def seeds() -> dict[str, bytes]:
    """One small file of each dialect: fuzzing starts from them."""
    data = bytearray(28 * SECTOR)
    data[:256] = bytes(range(256))
    data[9000:9010] = b"some words"
    data[-512:] = b"\xa5" * 512
    return {
        how.name.replace(" ", "-"): make_stream(
            replace(how, descriptor_sectors=2, level=how.level or 1),
            bytes(data),
            grain_sectors=4,
            entries=128,
        )
        for how in DIALECTS
        if how.padding_bytes < 2000
    }
