"""The memory of a large disk goes with what is allocated, not with its size.

Disks of 62 TiB with scattered grains, everything in them a hole but headers and table
entries, are opened and mapped by a process of their own, whose largest size is looked at.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sesparses import GRAIN, TABLE_ENTRIES, USED, Layout, entry, rotate

SIZE = 62 << 40
LIMIT = 256 << 20
SECTOR = 512

# Opens the disk, walks its map, and prints what it saw and what it took.
CHILD = """
import json, re, struct, sys, zlib
from rollpoint import _native
def largest():  # of this program: ru_maxrss has what its parent had, too
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
kind, path, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
folder, name = path.rsplit("/", 1)
file = _native.Io.posix().open_dir(folder).open(name, _native.OPEN_READ)
before = largest()
disk = _native.Chain([_native.Image([(kind, size // 512, file, 0)])])
at = runs = crc = 0
while at < size:
    length, what, _, _, place = disk.run(at, size - at)
    if what == _native.RUN_DATA:
        crc = zlib.crc32(struct.pack("<3Q", at, length, place), crc)
        runs += 1
    else:
        assert what == _native.RUN_HOLE
    at += length
print(json.dumps({"runs": runs, "crc": crc, "before": before, "most": largest()}))
"""


class Big(NamedTuple):
    kind: int
    grain_bytes: int
    first_byte: int  # of the grains in the file


def scatter(count: int, grains: int, page: int, seed: int) -> list[int]:
    """Grains of the disk in the order in which they were written, which is by chance.

    Four in each of count / 4 pages of table entries, so that the file takes count KiB.
    """
    rng = random.Random(seed)
    found = [
        at * page + index
        for at in rng.sample(range(grains // page), count // 4)
        for index in rng.sample(range(page), 4)
    ]
    rng.shuffle(found)
    return found


def make_hosted(path: Path, count: int, seed: int) -> tuple[Big, list[int]]:
    """monolithicSparse: every table allocated, nearly all of them a hole."""
    tables = SIZE // (32 << 20)
    directory = 21
    first_table = -(-(directory + tables * 4 // SECTOR) // 8) * 8  # on a page
    overhead = -(-(first_table + tables * 4) // 128) * 128
    big = Big(3, 65536, overhead * SECTOR)
    grains = scatter(count, SIZE // big.grain_bytes, 1024, seed)
    header = struct.pack(
        "<4sIIQQQQIQQQB4s", b"KDMV", 1, 1, SIZE // SECTOR, 128, 1, 20, 512, 0, directory, overhead,
        0, b"\n \r\n",
    )
    with path.open("wb") as file:
        file.write(header)
        file.seek(directory * SECTOR)
        file.write(array("I", range(first_table, first_table + 4 * tables, 4)).tobytes())
        put(
            file.fileno(),
            ((first_table * SECTOR + 4 * number, struct.pack("<I", overhead + 128 * place))
             for number, place in in_disk_order(grains)),
        )
        file.truncate(overhead * SECTOR + count * big.grain_bytes)
    return big, grains


def make_sesparse(path: Path, count: int, seed: int) -> tuple[Big, list[int]]:
    """The grains' region ends with the last grain: ext4 has no file of 62 TiB."""
    layout = Layout(SIZE // SECTOR)
    big = Big(6, GRAIN, layout.offset("grains"))
    grains = scatter(count, SIZE // GRAIN, 512, seed)
    directory = array("Q", bytes(8 * (SIZE >> 24)))
    tables = 0

    def entries() -> Iterable[tuple[int, bytes]]:
        nonlocal tables
        for number, place in in_disk_order(grains):
            table, index = divmod(number, TABLE_ENTRIES)
            if not directory[table]:
                directory[table] = USED | tables
                tables += 1
            at = layout.offset("tables") + (tables - 1) * 32768 + 8 * index
            yield at, struct.pack("<Q", entry(3, place))

    with path.open("wb") as file:
        put(file.fileno(), entries())
        file.seek(layout.offset("directory"))
        file.write(directory.tobytes())
        file.seek(layout.offset("volatile"))
        file.write(struct.pack("<2Q", 0xCAFECAFE, tables))
        file.seek(layout.offset("backmap"))
        file.write(array("Q", (USED | rotate(number) for number in grains)).tobytes())
        file.seek(0)
        file.write(layout.constant_header())
        file.truncate(layout.offset("grains") + count * GRAIN)
    return big, grains


def in_disk_order(grains: list[int]) -> list[tuple[int, int]]:
    """(grain, its place in the file): writing in order is faster."""
    return sorted((number, place) for place, number in enumerate(grains))


def put(file: int, parts: Iterable[tuple[int, bytes]]) -> None:
    for at, data in parts:
        os.pwrite(file, data, at)


def expected(big: Big, grains: list[int]) -> tuple[int, int]:
    """How many runs of data there are, and a checksum over them."""
    crc = runs = 0
    start = length = place = 0
    for number, index in [*in_disk_order(grains), (-1, -1)]:
        at, where = number * big.grain_bytes, big.first_byte + index * big.grain_bytes
        if length and at == start + length and where == place + length:
            length += big.grain_bytes
            continue
        if length:
            crc = zlib.crc32(struct.pack("<3Q", start, length, place), crc)
            runs += 1
        start, length, place = at, big.grain_bytes, where
    return runs, crc


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where a file takes a GiB for a while: in memory, if there is room, which is faster."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shutil.disk_usage(shared).free < 4 << 30:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    "count", [50_000, pytest.param(1_000_000, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("make", [make_hosted, make_sesparse])
def test_a_disk_of_62_tib_is_mapped_in_little_memory(
    place: Path, count: int, make: Callable[[Path, int, int], tuple[Big, list[int]]]
) -> None:
    path = place / "disk.vmdk"
    try:
        big, grains = make(path, count, 62)
        child = [sys.executable, "-c", CHILD, str(big.kind), str(path), str(SIZE)]
        done = subprocess.run(child, capture_output=True, text=True, timeout=600)
    finally:
        path.unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    print(f"{seen['most'] >> 20} MiB, {seen['before'] >> 20} before the disk was opened")
    assert (seen["runs"], seen["crc"]) == expected(big, grains)
    assert seen["most"] < LIMIT
