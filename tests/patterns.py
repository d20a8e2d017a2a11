"""Contents of disks of any size: what is written, and what must then be read.

A pattern is writes in order; its content is the model they leave, kept in a
dictionary of 64 KiB blocks, which is too simple to be wrong and small for a disk
of any size.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rollpoint.disk import OpenDisk

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
BLOCK = 65536
PIECE = 4 * MIB  # read at once, and no more

SIZES = {
    "512B": 512,
    "64K-512": 65536 - 512,
    "1G+512": GIB + 512,
    "5G": 5 * GIB,
    "2.1T": 21 * TIB // 10 // 512 * 512,  # ends inside a grain of any size from 1 KiB up
}
PATTERNS = ("empty", "full", "sparse", "random", "zeros")


class Content:
    """Bytes of a disk, of which only what was written takes memory."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._blocks: dict[int, bytearray] = {}

    def copy(self) -> Content:
        """Another one with the same bytes."""
        other = Content(self.size_bytes)
        other._blocks = {index: bytearray(block) for index, block in self._blocks.items()}
        return other

    def write(self, data: bytes, offset: int) -> None:
        assert 0 <= offset <= self.size_bytes - len(data)
        for start, stop in _cut(offset, len(data)):
            block = self._blocks.setdefault(start // BLOCK, bytearray(BLOCK))
            block[start % BLOCK : start % BLOCK + stop - start] = data[
                start - offset : stop - offset
            ]

    def zero(self, length: int, offset: int) -> None:
        self.write(bytes(length), offset)

    def read(self, length: int, offset: int) -> bytes:
        assert 0 <= offset <= self.size_bytes - length
        empty = bytes(BLOCK)
        return b"".join(
            self._blocks.get(start // BLOCK, empty)[start % BLOCK : start % BLOCK + stop - start]
            for start, stop in _cut(offset, length)
        )

    def is_zero(self, length: int, offset: int) -> bool:
        stop = offset + length
        return not any(
            any(self.read(min(end, stop) - max(start, offset), max(start, offset)))
            for start, end in self.written()
            if start < stop and offset < end
        )

    def written(self) -> Iterator[tuple[int, int]]:
        """Ranges, in order, outside of which nothing was ever written."""
        indexes = sorted(self._blocks)
        while indexes:
            first = last = indexes[0]
            while indexes and indexes[0] == last:
                last = indexes.pop(0) + 1
            yield first * BLOCK, min(last * BLOCK, self.size_bytes)

    def save(self, path: Path) -> None:
        """As a raw disk with holes."""
        with open(path, "wb") as file:
            file.truncate(self.size_bytes)
            for start, stop in self.written():
                os.pwrite(file.fileno(), self.read(stop - start, start), start)


def _cut(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The range, cut at the borders of blocks."""
    stop = offset + length
    while offset < stop:
        end = min(stop, offset // BLOCK * BLOCK + BLOCK)
        yield offset, end
        offset = end


class Write(NamedTuple):
    """Data, or length zeros."""

    offset: int
    data: bytes | None
    length: int


class Pattern(NamedTuple):
    name: str
    size_bytes: int
    writes: tuple[Write, ...]

    def content(self) -> Content:
        content = Content(self.size_bytes)
        for offset, data, length in self.writes:
            content.write(bytes(length) if data is None else data, offset)
        return content


def borders(size: int) -> list[int]:
    """Places where readers and writers go wrong, each below size: the start, the ends of
    a grain, of COWD's and of hosted tables, of parts of 2047 MiB and of 2 GiB, of 32-bit
    counts of bytes, of 2 TiB and of the disk."""
    places = [
        65536,
        2 * MIB,
        32 * MIB,
        2047 * MIB,
        2 * GIB,
        4 * GIB,
        TIB,
        2 * TIB,
    ]
    return [0, *(place for place in places if place < size), size]


@cache
def pattern(name: str, size: int) -> Pattern:
    """One of PATTERNS, for a disk of size bytes. Always the same for the same arguments.

    empty    nothing was ever written
    full     no byte is zero: all of a disk of up to 1 MiB, and of a larger one
             the first and the last 1 MiB and 256 KiB across each border (a test
             that writes 5 GiB would run for minutes, and meet no other code)
    sparse   a few bytes on both sides of each border, and alone in the middle
    random   whole grains in random order, near a few places: noise, text, one byte
    zeros    data, then zeros over whole grains and over parts of them, in both
             ways that a disk can be told: zero, and a write of zeros
    """
    rng = random.Random(f"{name} {size}")
    writes: list[Write] = []

    def write(offset: int, length: int, data: bytes | None = None) -> None:
        start, stop = max(offset, 0), min(offset + length, size)
        if start < stop:
            writes.append(Write(start, (data or _noise(rng, length))[: stop - start], stop - start))

    def zero(offset: int, length: int, as_data: bool = False) -> None:
        start, stop = max(offset, 0), min(offset + length, size)
        if start < stop:
            writes.append(Write(start, bytes(stop - start) if as_data else None, stop - start))

    if name == "full":
        for place in borders(size)[1:-1]:
            write(place - 128 * 1024, 256 * 1024)
        write(0, MIB)
        write(size - MIB, MIB)
    elif name == "sparse":
        for place in borders(size):
            write(place - 700, 200)
            write(place - 9 if place == size else place - 3, 5)  # the last bytes stay
            write(place + 1111, 1)
        write(size // 3, 4097)
        write(size // 5 // MIB * MIB - 1, 1)  # alone, at the end of a grain of any size
        write(size // 4 // MIB * MIB, 1)  # and at the start of one
    elif name == "random":
        grains = (size + BLOCK - 1) // BLOCK
        places = [rng.randrange(grains) for _ in range(6)]
        for _ in range(24):
            grain = min(rng.choice(places) + rng.randrange(20), grains - 1)
            kind = rng.choice(["noise", "text", "byte"])
            text = b"%d bottles of beer on the wall\n" % rng.randrange(1000)
            fill = {"noise": None, "text": text * 3000, "byte": bytes([rng.randrange(256)]) * BLOCK}
            write(grain * BLOCK, BLOCK, fill[kind])
    elif name == "zeros":
        for place in borders(size):
            write(place - 2 * BLOCK, 5 * BLOCK)
        for place in borders(size):
            zero(place // BLOCK * BLOCK - BLOCK, 2 * BLOCK)
            zero(place - 70_000, 1000)
            zero(place // BLOCK * BLOCK + BLOCK, BLOCK, as_data=True)
            zero(place + 2 * BLOCK + 3000, 333, as_data=True)
        zero(size // 3 // BLOCK * BLOCK, 3 * BLOCK)
    return Pattern(name, size, tuple(writes))


def _noise(rng: random.Random, length: int) -> bytes:
    """Random bytes, none of which is zero."""
    return rng.randbytes(length).replace(b"\0", b"\1")


def write_all(disk: OpenDisk, what: Pattern) -> None:
    for number, (offset, data, length) in enumerate(what.writes):
        if data is None:
            disk.zero(length, offset, may_trim=number % 2 == 0)
        else:
            disk.pwrite(data, offset)


def require_same(disk: OpenDisk, content: Content) -> None:
    """Every byte of the disk is that of the content.

    What the map calls data is read whole, what it calls a hole or zeros has to
    be zeros in the content; and all that was ever written is read once more with
    what lies around it, so that reads cross every border of the map.
    """
    assert disk.size_bytes == content.size_bytes
    at = 0
    for run in disk.runs():
        assert run.offset_bytes == at
        assert run.length_bytes > 0
        at += run.length_bytes
        if run.kind == 3:  # RUN_DATA
            for start in range(run.offset_bytes, at, PIECE):
                _require_range(disk, content, start, min(start + PIECE, at))
        else:
            assert content.is_zero(run.length_bytes, run.offset_bytes), run
    assert at == disk.size_bytes
    for start, stop in content.written():
        first, last = max(start - 4099, 0), min(stop + 4099, at)
        for place in range(first, last, PIECE):
            _require_range(disk, content, place, min(place + PIECE, last))
    _require_range(disk, content, max(at - 777, 0), at)


def _require_range(disk: OpenDisk, content: Content, start: int, stop: int) -> None:
    found, wanted = disk.pread(stop - start, start), content.read(stop - start, start)
    if found != wanted:  # comparing in an assert would print megabytes
        differs = next(i for i in range(len(wanted)) if found[i : i + 1] != wanted[i : i + 1])
        raise AssertionError(f"byte {start + differs} differs, of {disk.path}")
