"""Fuzzes what finds volumes on disks, which is Python: libFuzzer does not reach it.

    python tests/fuzz/volumes.py --seconds 60 --seed 1
    python tests/fuzz/volumes.py --seed 1 --only 1234      one input again, by its number

Machines with tables, chains, groups and file systems are made and then damaged, most of
them with their checksums right again. What must hold is in `check`.
"""

from __future__ import annotations

import argparse
import random
import re
import struct
import sys
import time
import zlib
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import lvm_maker  # noqa: E402
from rollpoint.errors import Error  # noqa: E402
from rollpoint.volumes.find import find  # noqa: E402
from volume_disks import MIB, SECTOR, MemoryDisk  # noqa: E402

READ_BYTES_MAX = 64 * MIB
HANG_SECONDS = 20.0
_NUMBERS = (0, 1, 2, 7, 127, 128, 255, 4096, 65535, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 39)
_WORDS = (b"{", b"}", b'"', b"[", b"]", b"#", b"-", b"=", b"segment1", b"pv0", b"pv1", b"VISIBLE")


class Broken(Exception):
    """A promise that did not hold."""


class Counted(MemoryDisk):
    """Counts what is read of it."""

    read_bytes = 0

    def pread(self, length: int, offset: int) -> bytes:
        self.read_bytes += length
        return super().pread(length, offset)


def need(condition: object, what: str) -> None:
    if not condition:
        raise Broken(what)


def check(disks: dict[str, Counted]) -> int:
    """What must hold whatever lies on the disks. Returns how many volumes can be used."""
    begun = time.monotonic()
    try:
        volumes = find(disks)
    except Error as error:
        raise Broken(f"an error of its own: {error}") from error
    need(time.monotonic() - begun < HANG_SECONDS, "it ends in time")
    need(sum(d.read_bytes for d in disks.values()) < READ_BYTES_MAX, "it reads little")
    need(len({volume.name for volume in volumes}) == len(volumes), "names are unique")
    usable = []
    for volume in volumes:
        said = f"{volume.name}: {volume}"
        need(len(volume.name.encode()) <= 255, f"a name fits an export: {said}")
        for text in (volume.name, volume.problem, volume.note):
            need(text.isprintable(), f"what is said can be printed: {said}")
        if volume.pieces:
            total = sum(piece.length for piece in volume.pieces)
            need(total == volume.size_bytes, f"its pieces are all of it: {said}")
        for piece in volume.pieces:
            need(0 <= piece.offset < piece.offset + piece.length, f"a piece is one: {said}")
            end = disks[piece.disk].size_bytes
            need(piece.offset + piece.length <= end, f"a piece is on its disk: {said}")
            need(piece.offset % SECTOR == 0 == piece.length % SECTOR, f"whole sectors: {said}")
        if volume.pieces and not volume.problem:
            usable.append(volume)
    spans = sorted(
        (piece.disk, piece.offset, piece.length, volume.name)
        for volume in usable
        if volume.kind != "lvm"
        for piece in volume.pieces
    )
    for one, other in pairwise(spans):
        apart = one[0] != other[0] or one[1] + one[2] <= other[1]
        need(apart, f"what can be used does not overlap: {one} {other}")
    return len(usable)


# ---- machines ----


def record(rng: random.Random, extended: int) -> bytes:
    """A boot record with entries that mostly make sense."""
    entries = b""
    for _ in range(4):
        kind = rng.choice([0, 0x83, 0x07, 0x8E, 0x82, 0x42])
        start, length = rng.randrange(1, 30000), rng.randrange(1, 8000)
        entries += struct.pack("<B3xB3xII", rng.choice([0, 0x80]), kind, start, length)
    if extended:
        at = 16 * rng.randrange(4)
        link = struct.pack("<4xB3xII", rng.choice([5, 15, 0x85]), extended, 8000)
        entries = entries[:at] + link + entries[at + 16 :]
    return bytes(440) + struct.pack("<I2x", rng.getrandbits(32)) + entries + b"\x55\xaa"


def with_mbr(rng: random.Random, disk: Counted) -> None:
    places = [rng.randrange(1, 32000) for _ in range(5)]
    disk.put(0, record(rng, places[0] if rng.random() < 0.7 else 0))
    for at, then in zip(places, [*places[1:], rng.choice(places)], strict=True):
        disk.put(at * SECTOR, record(rng, max(0, then - places[0])))


def with_gpt(rng: random.Random, disk: Counted) -> None:
    last = disk.size_bytes // SECTOR - 1
    count, entry_bytes = rng.choice([4, 128]), rng.choice([128, 128, 256])
    entries = b""
    for _ in range(4):
        first = rng.randrange(34, last)
        stop = first + rng.choice([0, 100, 2000, 1 << 62])
        entry = rng.randbytes(32) + struct.pack("<QQQ", first, stop, 4) + rng.randbytes(72)
        entries += entry.ljust(entry_bytes, b"\0")
    entries = entries.ljust(count * entry_bytes, b"\0")
    disk.put(0, bytes(446) + struct.pack("<4xB3xII", 0xEE, 1, last).ljust(64, b"\0") + b"\x55\xaa")
    for place, array in ((1, 2), (last, last - 64)):
        body = struct.pack("<QQQQ", place, last + 1 - place, 34, last - 33) + bytes(16)
        body += struct.pack("<QIII", array, count, entry_bytes, zlib.crc32(entries))
        damaged = bytearray(body)
        if rng.random() < 0.3:
            damaged[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        head = b"EFI PART" + struct.pack("<II", 0x10000, 92)
        crc = zlib.crc32(head + bytes(8) + bytes(damaged))
        disk.put(place * SECTOR, head + struct.pack("<I4x", crc) + damaged)
        disk.put(array * SECTOR, entries)


def metadata(rng: random.Random) -> bytes:
    """A group's text, damaged; its checksum will be right."""
    volumes = "".join(
        lvm_maker.logical(
            f"v{number}",
            "; ".join(
                f"{rng.randrange(1, 20)} pv{rng.randrange(3)} {rng.randrange(100)}"
                for _ in range(rng.randint(1, 3))
            ),
        )
        for number in range(rng.randint(1, 4))
    )
    for kind in rng.sample(["thin", "raid1", "mirror", "cache", "snapshot", "linear"], 2):
        if rng.random() < 0.3:
            volumes = volumes.replace('"striped"', f'"{kind}"', rng.randint(1, 2))
    group = rng.choice(["one", "one", "two"])
    data = bytearray(
        lvm_maker.text(volumes, 3, seqno=rng.randint(1, 3), name=group, group=f"id-{group}")
    )
    for match in sorted(
        rng.sample(list(re.finditer(rb"= (\d+)", data)), rng.randint(0, 3)),
        key=lambda match: -match.start(),
    ):
        data[match.start(1) : match.end(1)] = str(rng.choice(_NUMBERS)).encode()
    if rng.random() < 0.4:
        at = rng.randrange(len(data))
        data[at : at + rng.randrange(12)] = rng.choice(_WORDS)
    return bytes(data)


def with_lvm(rng: random.Random, disk: Counted, offset: int, number: int) -> None:
    size = disk.size_bytes - offset
    areas = [(lvm_maker.AREA_AT, lvm_maker.AREA_BYTES)]
    if rng.random() < 0.2:
        areas.append((rng.choice(_NUMBERS), rng.choice(_NUMBERS)))
    disk.put(offset + SECTOR, lvm_maker.label(number, size, areas))
    at = rng.choice([512, 512, lvm_maker.AREA_BYTES - 700, rng.choice(_NUMBERS)])
    if 512 <= at < lvm_maker.AREA_BYTES - 512:
        for place, part in lvm_maker.area(metadata(rng), at).items():
            disk.put(offset + place, part)


def machine(seed: str) -> dict[str, Counted]:
    """Disks of a hostile guest, the same for the same seed."""
    rng = random.Random(seed)
    disks = {}
    for number, name in enumerate(("a", "b", "c")):
        disk = Counted(16 * MIB)
        kind = rng.choice(["mbr", "gpt", "lvm", "lvm", "bare", "noise"])
        if kind == "mbr":
            with_mbr(rng, disk)
        elif kind == "gpt":
            with_gpt(rng, disk)
        elif kind == "lvm":
            with_lvm(rng, disk, 0, number if rng.random() < 0.9 else 0)
        elif kind == "bare":
            disk.put(SECTOR, lvm_maker.label(rng.choice([0, 1, 2, 2, 2]), disk.size_bytes, []))
        for _ in range(rng.choice([0, 0, 1, 3, 12])):
            value = rng.choice([b"\0", b"\xff", b"\x80", rng.randbytes(4), bytes(64)])
            area = rng.choice([512, 2048, 8192, 70000, disk.size_bytes - 64])
            disk.put(rng.randrange(area), value)
        disks[name] = disk
    return disks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--runs", type=int, default=-1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER")
    given = parser.parse_args()
    if given.only is not None:
        check(machine(f"{given.seed}:{given.only}"))
        return 0
    stop, number, usable = time.monotonic() + given.seconds, 0, 0
    while number != given.runs and time.monotonic() < stop:
        try:
            usable += check(machine(f"{given.seed}:{number}"))
        except Exception:
            print(f"found by: --seed {given.seed} --only {number}", file=sys.stderr)
            raise
        number += 1
    print(f"{number} machines, {usable} volumes that could be used, nothing broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
