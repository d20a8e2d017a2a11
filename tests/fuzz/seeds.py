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
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import recipe  # noqa: E402
import streams  # noqa: E402

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


def sesparse(
    capacity: int,
    data: Mapping[int, int | None],
    *,
    unmapped: tuple[int, ...] = (),
    replay: int = 0,
    named: int | None = None,
) -> Image:
    """A seSparse extent. data: grain -> what fills it, None for a zero grain.

    Its parts follow one another without gaps to whole MiB, as no writer does and every
    reader can read.
    """
    count = -(-capacity // 32768)
    tables: dict[int, int] = {}
    entries: dict[tuple[int, int], int] = {}
    contents = []
    for number, content in data.items():
        index = tables.setdefault(number // 4096, len(tables))
        entry = 2 << 60
        if content is not None:
            place = len(contents)
            entry = 3 << 60 | (place & 0xFFF) << 48 | place >> 12
            contents.append((number, content))
        entries[index, number % 4096] = entry
    for number in unmapped:
        index = tables.setdefault(number // 4096, len(tables))
        entries[index, number % 4096] = 1 << 60
    named = len(tables) if named is None else named
    grains = -(-capacity // 8)
    regions, at = [], 1
    for length in (
        1, 2, 25, -(-count // 64), max(len(tables), 1) * 64, -(-grains // 4096),
        -(-grains // 64), grains * 8,
    ):  # fmt: skip
        regions += [at, length]
        at += length
    header = struct.pack("<26Q", 0xCAFEBABE, 2 << 32 | 1, capacity, 8, 64, 0, 0, 0, 0, 0, *regions)
    pieces = [
        (0, header),
        (regions[0] * SECTOR, struct.pack("<4Q", 0xCAFECAFE, named, 0x24, replay)),
        (regions[2] * SECTOR, struct.pack("<3Q", 0xDEAFC0DE, 0x24, 1)),
    ]
    pieces += [
        (regions[6] * SECTOR + 8 * at, struct.pack("<Q", 1 << 60 | index))
        for at, index in tables.items()
    ]
    pieces += [
        (regions[8] * SECTOR + 32768 * index + 8 * slot, struct.pack("<Q", entry))
        for (index, slot), entry in entries.items()
    ]
    if contents:
        used = (1 << len(contents)) - 1
        pieces.append((regions[10] * SECTOR, used.to_bytes(-(-len(contents) // 8), "little")))
    for place, (number, content) in enumerate(contents):
        back = 1 << 60 | (number & 0xFFF) << 48 | number >> 12
        pieces.append((regions[12] * SECTOR + 8 * place, struct.pack("<Q", back)))
        pieces.append((regions[14] * SECTOR + 4096 * place, fill(content, 4096)))
    return pieces, (regions[14] + 8 * len(contents)) * SECTOR


def sesparse_images() -> Iterator[tuple[str, Image]]:
    yield "plain", sesparse(200, {0: 1, 3: 2, 24: 3})
    yield "zeros", sesparse(4096, {0: 1, 1: None, 511: 2}, unmapped=(2, 400))
    yield "two-tables", sesparse(70000, {4096: 1, 0: 2, 1: 3, 8191: 4, 8749: None})
    yield "scattered", sesparse(4096, {n: 1 for n in (9, 2, 7, 4, 500, 3, 5)})
    yield "to-replay", sesparse(200, {0: 1}, replay=1)
    yield "empty", sesparse(40000, {})
    yield "table-more", sesparse(70000, {1: 1}, named=2)
    yield "usual", usual_sesparse()


def usual_sesparse() -> Image:
    """As ESXi lays a small disk out: every part on a MiB."""
    mib = 2048
    regions = [1, 1, 2, 2]
    for index, length in enumerate((mib, mib, mib, mib, mib, 4096)):
        regions += [mib * (index + 1), length]
    header = struct.pack("<26Q", 0xCAFEBABE, 2 << 32 | 1, 4096, 8, 64, 0, 0, 0, 0, 0, *regions)
    pieces = [
        (0, header),
        (SECTOR, struct.pack("<4Q", 0xCAFECAFE, 1, 0x24, 0)),
        (2 * SECTOR, struct.pack("<3Q", 0xDEAFC0DE, 0x24, 1)),
        (2 << 20, struct.pack("<Q", 1 << 60)),
        (3 << 20, struct.pack("<2Q", 3 << 60, 3 << 60 | 1 << 48)),
        (4 << 20, b"\3"),
        (5 << 20, struct.pack("<2Q", 1 << 60, 1 << 60 | 1 << 48)),
        (6 << 20, fill(1, 4096)),
        ((6 << 20) + 4096, fill(2, 4096)),
    ]
    return pieces, (6 << 20) + 8192


def stream_seeds() -> dict[str, bytes]:
    found = {name: recipe.of_file(data) for name, data in streams.seeds().items()}
    directory = recipe.patch(56, struct.pack("<Q", 2))
    one = recipe.patch(2 * SECTOR, struct.pack("<I", 1))
    found["footer-disagrees"] = found["older-converter"] + directory
    found["one-without-flag"] = stream_by_hand(2, False) + one
    return found | {"by-hand": stream_by_hand(2, False), "large": stream_by_hand(128, True)}


def stream_by_hand(grain: int, squeezed: bool) -> bytes:
    """Tables in front. Not squeezed: grains that mutate.c can change and that inflate still."""
    front, apart = 1 + 1 + 4, grain + 3
    places = {number: front + apart * number for number in (0, 1, 2, 5)}
    header = streams.header(
        flags=0x30001, capacity=6 * grain, grain=grain, descriptor_sectors=0, entries=512,
        redundant_directory=0, directory=1, overhead=front,
    )  # fmt: skip
    table = struct.pack("<6I", *(places.get(number, 0) for number in range(6)))
    parts = [
        recipe.patch(0, header.rstrip(b"\0")),
        recipe.patch(SECTOR, struct.pack("<I", 2)),
        recipe.patch(2 * SECTOR, table),
    ]
    for number, place in places.items():
        data = fill(number, grain * SECTOR)
        if squeezed:
            packed = zlib.compress(data, 9)
            head = struct.pack("<QI", number * grain, len(packed))
            parts.append(recipe.patch(place * SECTOR, head + packed))
        else:
            parts.append(recipe.grain(place * SECTOR, number * grain, data))
    parts.append(recipe.size((front + 6 * apart) * SECTOR))
    return b"".join(parts)


def image_seeds(images: Iterator[tuple[str, Image]]) -> dict[str, bytes]:
    return {name: recipe.of_pieces(*image) for name, image in images}


def operation(code: int, place: int = 0, length: int = 0, fill: int = 0) -> bytes:
    """Of the target write: 0 write, 1 zero, 2 trim, 3 read, 4 flush, 5 reopen, 6 drop, 7 walk."""
    return struct.pack("<II", code | place << 8, length | fill << 24)


HIGH = 0x800000  # a place in the window at the disk's end
PROGRAMS = {
    "write": operation(0, 100, 5000, 1) + operation(4) + operation(0, HIGH + 70000, 60000, 2),
    "mixed": b"".join(
        (
            operation(0, 0, 4096, 1),
            operation(1, 4096, 8192),
            operation(2, 1000, 3000),
            operation(4),
            operation(0, 3000, 100, 7),
            operation(6),
            operation(3, 0, 70000),
            operation(0, HIGH + 100, 40000, 9),
            operation(5),
            operation(1, 0, 1 << 20),
        )
    ),
    "zero": operation(1, 0, 1 << 20) + operation(1, HIGH, 1 << 20) + operation(7),
}


def flat(sectors: int, offset: int = 0) -> bytes:
    data = b"".join(fill(i + 1, SECTOR) if i % 3 else bytes(SECTOR) for i in range(4))
    parts = [recipe.repeat(offset * SECTOR, min(sectors * SECTOR // 2048, 64), data[1024:1536])]
    return b"".join(
        (
            recipe.begin(FLAT, sectors, offset << 4),
            *parts,
            recipe.size((offset + sectors) * SECTOR),
        )
    )


def parents(image: bytes, sectors: int) -> dict[str, bytes]:
    """An image over others of the same size."""
    top = recipe.begin(0, sectors) + image
    base = recipe.of_pieces(*hosted(sectors, 8, {0: 61, 1: 62, 2: None, 4: 63}, version=2))
    old = recipe.of_pieces(*cowd(sectors, 1, {0: 71, 3: 72, 9: 73, 30: 74}))
    return {
        "flat": top + flat(sectors),
        "sparse": top + recipe.begin() + base,
        "cowd": top + recipe.begin() + old,
        "deep": top + recipe.begin() + base + recipe.begin() + old + flat(sectors, 3),
        "split": top
        + recipe.begin(ZERO, sectors // 2)
        + recipe.begin(FLAT, sectors - sectors // 2, 1)
        + recipe.repeat(512, 300, fill(9, 128)),
    }


def small_tops() -> Iterator[tuple[str, bytes, int]]:
    yield "hosted", recipe.of_pieces(*hosted(200, 8, {1: 1, 24: 2})), 200
    yield "zeros", recipe.of_pieces(*hosted(200, 16, {0: None, 3: 2}, version=2)), 200
    yield "esx", recipe.of_pieces(*cowd(200, 1, {8: 1, 199: 2})), 200


def chain_seeds() -> dict[str, bytes]:
    return {
        f"{name}-{kind}": data
        for name, image, sectors in small_tops()
        for kind, data in parents(image, sectors).items()
    }


def copy_seeds() -> dict[str, bytes]:
    """Seven things to do: see targets/copy.c."""
    sources = {**chain_seeds(), **image_seeds(sesparse_images()), **stream_seeds()}
    return {
        f"{name}-{number % 7}": data + recipe.operations(struct.pack("<I", number % 7 | 9000 << 8))
        for number, (name, data) in enumerate(sources.items())
    } | {
        f"{name}-{choice}": data + recipe.operations(struct.pack("<I", choice))
        for name, data in chain_seeds().items()
        for choice in (5, 6)
    }


def damage(image: Image, *changes: tuple[int, int]) -> Image:
    """changes: (offset, u32)."""
    pieces, length = image
    return [*pieces, *((offset, struct.pack("<I", value)) for offset, value in changes)], length


def damaged_images() -> Iterator[tuple[str, Image]]:
    """Two directories at 21 and 26 where there is a descriptor, at 1 and 6 where not."""
    plain = hosted(200, 8, {0: 1, 3: 2, 24: 3}, version=2)
    yield "entry", damage(plain, (7 * SECTOR, 9999))
    yield "redundant-entry", damage(plain, (2 * SECTOR + 12, 0))
    yield "shared-grain", damage(plain, (7 * SECTOR + 16, 16), (2 * SECTOR + 16, 16))
    yield "directory", damage(plain, (6 * SECTOR, 9999))
    yield "no-table", damage(plain, (6 * SECTOR, 0))
    yield "redundant-directory", damage(plain, (SECTOR, 6))
    yield "leak", (plain[0], plain[1] + 8192)
    yield "unclean", damage(hosted(130, 8, {1: 1, 2: 2}, unclean=True), (7 * SECTOR + 4, 0))
    two = hosted(8192, 8, {0: 1, 512: 3}, version=2)
    yield "shared-table", damage(two, (10 * SECTOR + 4, 11))
    esx = cowd(200, 1, {8: 1, 199: 2})
    yield "esx-free", damage(esx, (28, 5))
    yield "esx-shared", damage(esx, (5 * SECTOR, 37))
    yield "esx-directory", damage(cowd(5000, 1, {8: 1, 4500: 2}), (4 * SECTOR + 4, 5))


def repair_seeds() -> dict[str, bytes]:
    return {
        f"{name}-{how:x}": recipe.of_pieces(*image)
        + recipe.operations(struct.pack("<H", how))
        for number, (name, image) in enumerate(damaged_images())
        for how in (0, 0x302 + (number << 8))
    } | {f"whole-{name}": recipe.of_pieces(*image) for name, image in hosted_images()}


def write_seeds() -> dict[str, bytes]:
    alone = {
        f"{name}-{program}": recipe.begin() + recipe.of_pieces(*image) + recipe.operations(code)
        for images in (hosted_images(), cowd_images())
        for name, image in images
        for program, code in PROGRAMS.items()
        if (len(name) + len(program)) % 2  # half of them are enough
    }
    over = {
        f"{name}-{program}": data + recipe.operations(code)
        for name, data in chain_seeds().items()
        for program, code in PROGRAMS.items()
        if program != "zero"
    }
    return alone | over


def make() -> dict[str, dict[str, bytes]]:
    """Seeds of each target."""
    found = {
        "header": image_seeds(hosted_images()),
        "cowd": image_seeds(cowd_images()),
        "sesparse": image_seeds(sesparse_images()),
        "stream": stream_seeds(),
        "chain": chain_seeds(),
        "copy": copy_seeds(),
        "repair": repair_seeds(),
        "write": write_seeds(),
    }
    for number, (target, _, text) in enumerate(FINDINGS):
        found[target][f"finding-{number:02}"] = base64.b64decode(text)
    return found


# (target, what was wrong, the input): kept for ever.
FINDINGS: tuple[tuple[str, str, str], ...] = (
    (
        "write",
        "table entries behind the capacity held the end of a COWD file, and left a leak",
        "UCIAAAAAAABDT1dEAQAAAB0JAADIAAAAgAAAAAQAAAABAAAAKVAGAAAIAAAABVAGAAAvAAAAj1MIAAAGBgAA"
        "AAAATwgAAQAAAAD///8=",
    ),
    (
        "sesparse",
        "an entry of all ones went on as the zeros behind it, and they read as an error",
        "UM8AAAAAAAC+uv7KAAAAAAEAAAACAAAAABAAAAAAAAAIAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAB0AAAAAAAAAAQAAAAAAAAAeAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAABnAAAAAAAAAAAQUAkAAAIAAAD+yv7KUA0AADoAAAAAAAAAAAAAEFANABA8AAAA////////"
        "//9TCAAA7gAAAAAAAA==",
    ),
    (
        "copy",
        "a write to a NOACCESS extent went to a file that there is not",
        "UwgAAFAAAAAAAABQPgAAAAAAAEtETVYCAAAAAAAAAMgAAAAAAAAACAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAIAAAAAAAAAAAAABlAGAAAMAAAAB1AGAAAOAAAAEEYKAAcAAAAAAAAAAABPAQAF",
    ),
    (
        "header",
        "entries of 1 without the flag, and no overhead, read as one run of the file",
        "UFIAAAAAAABLRE1WAQAAAAEAAABAAAAAAAAAAAgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAACAAAAAAAAAAAA"
        "AAEAAAAAAAAAAAAAAAAAAAAACiANClILAAAQAAAAAAQBAADQUgsAACAAAAAABAIAANBQBgAAAgAAAAJQCgAA"
        "BAAAAAgAAAAQUwgAADAAAAAAAABQEQAABAAAAAEAAAABAAAAAQAAAA==",
    ),
    (
        "repair",
        "a freeSector behind the end of a COWD file sent new grains to 2 TiB",
        "UFIAAAAAAABLRE1WAgAAAAcAAADIAAAAAAAAAAgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAACAAABAAAAAAAA"
        "AAYAAAAAAAAAEAAAAAAAAAAACiANClAGAAAMAAAAB1AGAAACAAAABlMIAABQAAAAAAAAUAkADHYAAACTAwAA"
        "UgsAAEAAAAAABAIAANBQCgAAAgAAAAIAAAAHUAICAAoAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAIFAGAAAWAAAAGFACAgAkAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAADBS"
        "CwAAIAAAAAAEAQAA0FBSAAAAAAAAS0RNVgEAAAADAAAAggAAAAAAAAAIAAAA+f////////8AAAAAAAAAAAAA"
        "AAAAAgAAAQAAAAAAAAAGAAAAAAAAABAAAAAAAAAAAQogDQpSCwAAIAAAAAAEAQAA0FAHAADJDAAAAAdTCAAA"
        "MAAAAAAAAFAiAAAAAAAAQ09XRAEAAAADAAAAyAAAAAEAAAAEAAAAAQAAACdQBgAACAAAAAVQBgAACAAAAAVQ"
        "CQAEfgAAAJoAAABQIgMACgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAJQAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAmUAkA"
        "CAAAAACzAAAAUAYAAAoAAAAlUA0AGBwAAAAAAAAAAACAAA==",
    ),
    (
        "write",
        "a descriptor of no sectors made two of a leak, each below a grain, until the file grew",
        "UFIAAAAAAABLRE1WAQAAAAEAAAAAAAUAAAAAAIAAAAAAAAAA5gAAAAAAAAAAAAAAAAAAAAACAAAAAAAAAAAAAAEA"
        "AAAAAAAAgAAAAAAAAAAACiANClILAAAAAQAAAEABAADQUwgAAAACAAAAAABPCAAAAAAAABAAAQ==",
    ),
    (
        "write",
        "a new grain overlapped the last one, cut off by the end of the file, at no whole grain",
        "UFIAAAAAAABLRE1WAgAAAAUAAADIAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAACAAAAAAAAAAAAAAEA"
        "AAAAAAAAEAAAAAAAAAAACiANClAGAAACAAAAAlAGAAwEAAAAEFILAAAgAAAAAAQBAADQUwgAAEAAAAAAAABPCAAA"
        "AAAAABAAAQ==",
    ),
)


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
