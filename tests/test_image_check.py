"""Merging the links of a chain, and what `check` finds in extents."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from extents import (
    COWD,
    SPARSE,
    Extent,
    content,
    findings,
    folder,
    make,
    make_flat,
    noise,
    open_chain,
    open_image,
    write_at_random,
)
from rollpoint import _native, errors
from rollpoint._native import Dir, File, merge

__all__ = ["folder"]


# ---- merge ----


def merge_case(folder: Dir) -> tuple[list[list[Extent]], bytearray, bytearray]:
    """Two overlays over a flat base: the links, the base and what the top shows."""
    size = 3 << 20
    base = bytearray(noise(6, size))
    model = bytearray(base)
    links = [[make_flat(folder, "base", bytes(base))]]
    for number, (kind, grain) in enumerate([(SPARSE, 8), (COWD, 1)]):
        links.insert(0, [make(folder, f"child{number}", kind, size // 512, grain)])
        disk = open_chain(folder, *links, writable=True)
        write_at_random(disk, model, random.Random(number), 25)
        disk.close_clean()
    return links, base, model


def test_merging_twice_is_merging_once(folder: Dir) -> None:
    links, _base, model = merge_case(folder)
    chain = open_chain(folder, *links)
    target = open_chain(folder, links[-1], writable=True)
    told: list[int] = []
    merge(chain, 2, target, progress=lambda done: told.append(done) is None)
    target.flush()
    assert content(target) == model
    assert told[-1] == len(model)
    merge(chain, 2, target)
    assert content(target) == model


def test_a_merge_that_is_stopped_can_be_asked_again(folder: Dir) -> None:
    links, _base, model = merge_case(folder)
    chain = open_chain(folder, *links)
    target = open_chain(folder, links[-1], writable=True)
    with pytest.raises(errors.CancelledError):
        merge(chain, 2, target, progress=lambda _done: False)

    def interrupt(_done: int) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(chain, 2, target, progress=interrupt)
    merge(chain, 2, target)
    assert content(target) == model


def test_one_link_is_merged_into_the_next(folder: Dir) -> None:
    links, _base, model = merge_case(folder)
    chain = open_chain(folder, *links)
    target = open_chain(folder, *links[1:], writable=True)
    merge(chain, 1, target)
    target.close_clean()
    assert content(open_chain(folder, *links[1:])) == model


def test_disks_of_two_sizes_are_not_merged(folder: Dir) -> None:
    a, b = make(folder, "a", SPARSE, 100, 8), make(folder, "b", SPARSE, 108, 8)
    with pytest.raises(errors.UsageError):
        merge(open_chain(folder, [a]), 1, open_chain(folder, [b], writable=True))
    with pytest.raises(errors.UsageError):
        merge(open_chain(folder, [a]), 2, open_chain(folder, [a], writable=True))


# ---- check ----


def planted(
    folder: Dir, change: Callable[[File, dict[str, int], int], None]
) -> tuple[list[str], Extent]:
    """Findings after change(file, info, sector of the first table) of a good extent."""
    extent = make(folder, "disk", SPARSE, 8192, 8)
    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(b"x" * 4096 * 4, 0)
    disk.close_clean()
    file = folder.open("disk", _native.OPEN_WRITE)
    info = _native.sparse_info(file)
    table = struct.unpack("<I", file.pread(4, info["directory_sector"] * 512))[0]
    change(file, info, table)
    return findings(folder, extent), extent


def test_check_finds_two_entries_for_one_grain(folder: Dir) -> None:
    def change(file: File, _info: dict[str, int], table: int) -> None:
        file.pwrite(file.pread(4, table * 512), table * 512 + 4)

    assert sorted(planted(folder, change)[0]) == ["leak", "overlap", "redundant"]


def test_check_finds_grains_outside_the_file_and_in_the_metadata(folder: Dir) -> None:
    def change(file: File, _info: dict[str, int], table: int) -> None:
        file.pwrite(struct.pack("<II", 1 << 30, 2), table * 512 + 64)

    found, extent = planted(folder, change)
    assert sorted(found) == ["outside", "redundant"]
    checked = open_image(folder, [extent]).check()  # two neighbours are one finding
    assert ("outside", 0, 1 << 39, 16 * 4096, 2 * 4096, None) in checked


def test_check_finds_a_table_outside_and_one_shared(folder: Dir) -> None:
    def outside(file: File, info: dict[str, int], _table: int) -> None:
        file.pwrite(struct.pack("<I", 1 << 30), info["directory_sector"] * 512)

    def shared(file: File, info: dict[str, int], _table: int) -> None:
        at = info["directory_sector"] * 512
        file.pwrite(file.pread(4, at), at + 4)

    found, extent = planted(folder, outside)
    assert "table" in found
    with pytest.raises(errors.DamagedError):
        open_chain(folder, [extent]).pread(1, 0)
    for change in (outside, shared):
        found, extent = planted(folder, change)
        assert "table" in found or "overlap" in found
        with pytest.raises(errors.DamagedError, match="reading only"):
            open_image(folder, [extent], writable=True)


def test_check_finds_leaks(folder: Dir) -> None:
    def change(file: File, _info: dict[str, int], _table: int) -> None:
        file.truncate(file.size_bytes + 3 * 4096)

    assert planted(folder, change)[0] == ["leak"]


def test_a_descriptor_of_no_sectors_hides_no_leak(folder: Dir) -> None:
    """Its place, amid the space that nothing points at, made two of it: each below a grain."""

    def change(file: File, _info: dict[str, int], _table: int) -> None:
        end = file.size_bytes
        file.pwrite(b"y" * 4096, end)
        file.pwrite(struct.pack("<QQ", end // 512 + 4, 0), 28)

    assert planted(folder, change)[0] == ["leak"]


@pytest.mark.parametrize("kind", [SPARSE, COWD])
def test_a_new_grain_does_not_overlap_the_last_one_of_the_disk(folder: Dir, kind: int) -> None:
    """Of that one the file has only what the disk shows, and it begins at no whole grain."""
    extent = make(folder, "disk", kind, 100, 8, redundant=False)
    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(b"x" * 4096, 0)
    disk.close_clean()
    file = folder.open("disk", _native.OPEN_WRITE)
    place = file.size_bytes // 512 + 1
    directory = _native.sparse_info(file)["directory_sector"]
    table = struct.unpack("<I", file.pread(4, directory * 512))[0]
    file.pwrite(struct.pack("<I", place), table * 512 + 12 * 4)
    file.pwrite(b"y" * 2048, place * 512)
    if kind == COWD:
        file.pwrite(struct.pack("<I", place + 4), 28)
    assert findings(folder, extent) == []

    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(b"z" * 4096, 4096)
    disk.close_clean()
    assert findings(folder, extent) == []
    assert content(open_chain(folder, [extent])) == (
        b"x" * 4096 + b"z" * 4096 + bytes(10 * 4096) + b"y" * 2048
    )


def test_check_copes_with_a_file_beyond_the_reach_of_its_entries(folder: Dir) -> None:
    """A sparse file can claim any size; the directory may lie behind 2 TiB, too."""

    def change(file: File, info: dict[str, int], _table: int) -> None:
        at = 3 << 40
        file.truncate(at + 4096)
        file.pwrite(file.pread(512, info["directory_sector"] * 512), at)
        file.pwrite(struct.pack("<Q", at // 512), 56)

    found, extent = planted(folder, change)
    assert found == []
    assert open_chain(folder, [extent]).pread(4, 0) == b"xxxx"
