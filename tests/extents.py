"""What the tests of extents, images and chains share."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from rollpoint import _native
from rollpoint._native import Chain, Dir, File, Image, Io

READ = _native.OPEN_READ
MAKE = _native.OPEN_WRITE | _native.OPEN_CREATE | _native.OPEN_TRUNCATE
FLAT, ZERO = _native.EXTENT_FLAT, _native.EXTENT_ZERO
SPARSE, COWD = _native.EXTENT_SPARSE, _native.EXTENT_COWD
HOLE, ZEROS, DATA = _native.RUN_HOLE, _native.RUN_ZERO, _native.RUN_DATA


class Extent(NamedTuple):
    kind: int
    sectors: int
    name: str | None
    offset_sectors: int = 0


def make(
    folder: Dir,
    name: str,
    kind: int,
    sectors: int,
    grain: int,
    *,
    zero_grains: bool = True,
    redundant: bool = True,
    descriptor: bytes | None = None,
) -> Extent:
    file = folder.open(name, MAKE)
    _native.sparse_create(
        file,
        kind=kind,
        capacity_sectors=sectors,
        grain_sectors=grain,
        descriptor=descriptor,
        descriptor_sectors=20 if descriptor else 0,
        redundant=redundant and kind == SPARSE,
        zero_grains=zero_grains and kind == SPARSE,
    )
    folder.sync()
    return Extent(kind, sectors, name)


def make_flat(folder: Dir, name: str, content: bytes) -> Extent:
    folder.open(name, MAKE).pwrite(content, 0)
    folder.sync()
    return Extent(FLAT, len(content) // 512, name)


def open_image(folder: Dir, extents: Sequence[Extent], writable: bool = False) -> Image:
    flags = _native.OPEN_WRITE if writable else READ
    opened: list[tuple[int, int, File | None, int]] = []
    for kind, sectors, name, offset in extents:
        file = folder.open(name, flags) if name is not None else None
        opened.append((kind, sectors, file, offset))
    return Image(opened, writable)


def open_chain(folder: Dir, *links: Sequence[Extent], writable: bool = False) -> Chain:
    """Links, top first; only the top is opened for writing."""
    images = [open_image(folder, link, writable and not i) for i, link in enumerate(links)]
    return Chain(images)


def content(disk: _native.Disk) -> bytes:
    return disk.pread(disk.size_bytes, 0)


def runs(disk: _native.Disk) -> Iterator[tuple[int, int, int, int]]:
    """(offset, length, kind, depth) of the whole disk."""
    at = 0
    while at < disk.size_bytes:
        length, kind, depth, _name, _offset = disk.run(at, disk.size_bytes - at)
        yield at, length, kind, depth
        at += length


def findings(folder: Dir, *extents: Extent) -> list[str]:
    return [finding[0] for finding in open_image(folder, extents).check()]


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def write_at_random(disk: Chain, model: bytearray, rng: random.Random, count: int) -> None:
    size = len(model)
    for _ in range(count):
        offset = rng.randrange(size)
        length = min(rng.choice([1, 511, 512, 4096, 65536, 300_000]), size - offset)
        kind = rng.random()
        if kind < 0.25:
            disk.zero(length, offset, may_trim=kind < 0.15)
            model[offset : offset + length] = bytes(length)
        elif kind < 0.3:
            disk.flush()
        else:
            data = rng.randbytes(length)
            disk.pwrite(data, offset)
            model[offset : offset + length] = data


@pytest.fixture
def folder(tmp_path: Path) -> Dir:
    """A directory in which every write-ahead rule is checked."""
    return Io.order(Io.posix()).open_dir(str(tmp_path))
