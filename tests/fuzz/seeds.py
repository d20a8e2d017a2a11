"""Makes the seeds: small images of every kind, and every input that once found a mistake.

    python tests/fuzz/seeds.py FOLDER            write them, FOLDER/<target>/<name>
    python tests/fuzz/seeds.py --expand INPUT FOLDER
                                                 write the files that an input makes
"""

from __future__ import annotations

import argparse
import base64
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import recipe

SECTOR = recipe.SECTOR
SEED_BYTES_MAX = 8192
FLAT, ZERO, SPARSE, COWD = 1, 2, 3, 4
DESCRIPTOR = b"""# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="monolithicSparse"
RW 200 SPARSE "a.vmdk"
"""

Image = tuple[recipe.Pieces, int]  # and its size


def fill(number: int, length: int) -> bytes:
    """Data that tells where it belongs, and takes few bytes in a seed."""
    return struct.pack("<I", 0xD0000000 + number) * (length // 4)


def hosted(
    capacity: int,
    grain: int,
    data: Mapping[int, int | None],
    *,
    redundant: bool = True,
    version: int = 1,
    no_tables: tuple[int, ...] = (),
    descriptor: bytes = b"",
    unclean: bool = False,
) -> Image:
    """A hosted sparse extent. data: grain -> what fills it, None for a zero grain."""
    count = -(-capacity // (grain * 512))
    directory_sectors = -(-count * 4 // SECTOR)
    at = 1 + (20 if descriptor else 0)
    places = []
    for _ in range(1 + redundant):
        places.append((at, at + directory_sectors))
        at += directory_sectors + 4 * count
    overhead = -(-at // grain) * grain
    flags = 1 | (2 if redundant else 0) | (4 if version == 2 else 0)
    header = struct.pack(
        "<4sIIQQQQIQQQB4sH",
        b"KDMV", version, flags, capacity, grain, 1 if descriptor else 0,
        20 if descriptor else 0, 512, places[0][0] if redundant else 0, places[-1][0],
        overhead, unclean, b"\n \r\n", 0,
    )  # fmt: skip
    pieces = [(0, header)]
    if descriptor:
        pieces.append((SECTOR, descriptor))
    tables = {index: bytearray(2048) for index in range(count) if index not in no_tables}
    end = overhead
    for number, content in data.items():
        struct.pack_into("<I", tables[number // 512], number % 512 * 4, end if content else 1)
        if content:
            pieces.append((end * SECTOR, fill(content, grain * SECTOR)))
            end += grain
    for directory, first in places:
        entries = [first + 4 * i if i in tables else 0 for i in range(count)]
        pieces.append((directory * SECTOR, struct.pack(f"<{count}I", *entries)))
        pieces += [((first + 4 * i) * SECTOR, bytes(table)) for i, table in tables.items()]
    return pieces, end * SECTOR


def cowd(
    capacity: int, grain: int, data: Mapping[int, int], *, ahead: int = 0, free: int | None = None
) -> Image:
    """An ESX sparse extent, grown ``ahead`` sectors behind its freeSector."""
    count = -(-capacity // (grain * 4096))
    pieces: recipe.Pieces = []
    end = 4 + -(-count * 4 // SECTOR)
    directory = [0] * count
    tables: dict[int, bytearray] = {}
    for number, content in data.items():
        index = number // 4096
        if index not in tables:
            tables[index] = bytearray(16384)
            directory[index] = end
            end += 32
        struct.pack_into("<I", tables[index], number % 4096 * 4, end)
        pieces.append((end * SECTOR, fill(content, grain * SECTOR)))
        end += grain
    pieces += [(directory[i] * SECTOR, bytes(table)) for i, table in tables.items()]
    pieces.append((4 * SECTOR, struct.pack(f"<{count}I", *directory)))
    free = end if free is None else free
    header = struct.pack("<4s7I", b"COWD", 1, 3, capacity, grain, 4, count, free)
    pieces.append((0, header))
    return sorted(pieces), (end + ahead) * SECTOR


def hosted_images() -> Iterator[tuple[str, Image]]:
    yield "plain", hosted(200, 8, {0: 1, 3: 2, 24: 3}, descriptor=DESCRIPTOR)
    yield "zeros", hosted(4096, 8, {0: 1, 1: None, 2: 2, 511: 3}, version=2)
    yield "single", hosted(64, 16, {3: 1, 0: 2}, redundant=False)
    yield "two-tables", hosted(8192, 8, {0: 1, 511: 2, 512: 3, 1023: 4}, version=2)
    yield "no-table", hosted(3 * 4096, 8, {0: 1, 1024: 2}, no_tables=(1,), version=2)
    yield "usual", hosted(1000, 128, {0: 1, 7: 2, 2: 3})
    yield "sectors", hosted(1500, 1, {0: 1, 1: 2, 2: 3, 700: 4, 1499: 5})
    yield "unclean", hosted(130, 8, {1: 1}, unclean=True)
    yield "empty", hosted(4096, 8, {}, version=2)
    yield "large", hosted(5 << 16, 128, {0: 1, 512: 2, 2559: 4}, redundant=False)


def cowd_images() -> Iterator[tuple[str, Image]]:
    yield "plain", cowd(4096, 1, {0: 1, 1: 2, 5: 3, 4095: 4})
    yield "two-tables", cowd(10000, 1, {4096: 1, 0: 2, 9999: 3})
    yield "large-grain", cowd(1000, 8, {0: 1, 124: 2})
    yield "ahead", cowd(100, 1, {7: 1, 8: 2}, ahead=64)
    yield "free-low", cowd(100, 1, {7: 1, 8: 2}, free=5)
    yield "empty", cowd(5000, 1, {})
    yield "usual", cowd(1000, 128, {0: 1, 7: 2})


def image_seeds(images: Iterator[tuple[str, Image]]) -> dict[str, bytes]:
    return {name: recipe.of_pieces(*image) for name, image in images}


def make() -> dict[str, dict[str, bytes]]:
    """Seeds of each target."""
    found = {
        "header": image_seeds(hosted_images()),
        "cowd": image_seeds(cowd_images()),
    }
    for target, name, text in FINDINGS:
        found.setdefault(target, {})[f"finding-{name}"] = base64.b64decode(text)
    return found


# (target, what was wrong, the input): kept for ever.
FINDINGS: tuple[tuple[str, str, str], ...] = ()


def write(folder: Path) -> None:
    for target, seeds in make().items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, data in seeds.items():
            if len(data) > SEED_BYTES_MAX:
                raise ValueError(f"seed {target}/{name} has {len(data)} bytes")
            (folder / target / name).write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the seeds of the fuzz targets.")
    parser.add_argument("--expand", type=Path, metavar="INPUT")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.expand is None:
        write(arguments.folder)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(recipe.expand(arguments.expand.read_bytes())):
        (arguments.folder / f"file{number}").write_bytes(data)


if __name__ == "__main__":
    main()
