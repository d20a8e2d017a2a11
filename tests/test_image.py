"""VMDK extents, images and chains beside a plain model, and what must hold of them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from extents import (
    COWD,
    DATA,
    FLAT,
    HOLE,
    MAKE,
    SPARSE,
    ZERO,
    ZEROS,
    Extent,
    content,
    findings,
    folder,
    make,
    make_flat,
    noise,
    open_chain,
    open_image,
    runs,
    write_at_random,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollpoint import _native, errors
from rollpoint._native import Chain, Dir, Io

__all__ = ["folder"]

# ---- beside a model ----

LENGTHS = st.one_of(st.integers(1, 2000), st.sampled_from([512, 4096, 65536, 150_000]))
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1 << 20), LENGTHS),
        st.tuples(st.just("zero"), st.integers(0, 1 << 20), LENGTHS),
        st.tuples(st.just("trim"), st.integers(0, 1 << 20), LENGTHS),
        st.tuples(st.just("read"), st.integers(0, 1 << 20), LENGTHS),
        st.tuples(st.sampled_from(["flush", "reopen"]), st.just(0), st.just(1)),
    ),
    max_size=12,
)
LINKS = st.lists(
    st.tuples(st.sampled_from([SPARSE, COWD]), st.sampled_from([1, 8, 128]), st.booleans()),
    min_size=1,
    max_size=3,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    links=LINKS,
    flat=st.booleans(),
    sectors=st.sampled_from([1, 7, 900, 1024, 2049]),
    operations=OPERATIONS,
    seed=st.integers(0, 1000),
)
def test_a_chain_is_an_array_of_bytes(
    folder: Dir,
    links: list[tuple[int, int, bool]],
    flat: bool,
    sectors: int,
    operations: list[tuple[str, int, int]],
    seed: int,
) -> None:
    size = sectors * 512
    rng = random.Random(seed)
    model = bytearray(size)
    chain: list[list[Extent]] = []
    if flat:
        model[: size // 2] = rng.randbytes(size // 2)
        chain.append([make_flat(folder, "flat", bytes(model))])
    for number, (kind, grain, zero_grains) in enumerate(links):
        made = make(folder, f"link{number}", kind, sectors, grain, zero_grains=zero_grains)
        chain.insert(0, [made])
        disk = open_chain(folder, *chain, writable=True)
        if number < len(links) - 1:
            write_at_random(disk, model, rng, 3)
            disk.close_clean()
    for name, offset, length in operations:
        offset %= size
        length = min(length, size - offset)
        if name == "write":
            data = rng.randbytes(length)
            disk.pwrite(data, offset)
            model[offset : offset + length] = data
        elif name in ("zero", "trim"):
            disk.zero(length, offset, may_trim=name == "trim")
            model[offset : offset + length] = bytes(length)
        elif name == "read":
            assert disk.pread(length, offset) == model[offset : offset + length]
        elif name == "flush":
            disk.flush()
        else:
            disk.close_clean()
            disk = open_chain(folder, *chain, writable=True)
    assert content(disk) == model
    for at, length, kind, depth in runs(disk):
        assert depth < len(chain)
        if kind != DATA:
            assert model[at : at + length] == bytes(length)
    disk.close_clean()
    assert content(open_chain(folder, *chain)) == model
    assert findings(folder, *chain[0]) == []


# ---- what must hold ----


def test_a_huge_overlay_costs_nothing_until_it_is_written(folder: Dir) -> None:
    extent = make(folder, "huge", SPARSE, 1 << 31, 128)  # 1 TiB
    stat = folder.stat("huge")
    assert stat.allocated_bytes < 1 << 20
    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(b"end", disk.size_bytes - 3)
    disk.close_clean()

    assert open_chain(folder, [extent]).pread(4, (1 << 40) - 4) == b"\0end"
    assert folder.stat("huge").allocated_bytes < 1 << 20


def test_a_new_grain_copies_no_zeros_up(folder: Dir, tmp_path: Path) -> None:
    base = bytearray(1 << 20)
    base[65536 + 8192 : 65536 + 12288] = b"d" * 4096
    flat = make_flat(folder, "base", bytes(base))
    top = make(folder, "top", SPARSE, 2048, 128)
    disk = open_chain(folder, [top], [flat], writable=True)
    before = folder.stat("top").allocated_bytes
    disk.pwrite(b"w" * 4096, 65536 + 32768)
    disk.flush()

    base[65536 + 32768 : 65536 + 36864] = b"w" * 4096
    assert content(disk) == base
    grain, tables = 2 * 4096, 2 * 4096
    assert folder.stat("top").allocated_bytes - before <= grain + tables


def test_nothing_is_written_until_the_first_write(folder: Dir, tmp_path: Path) -> None:
    extent = make(folder, "disk", SPARSE, 4096, 8)
    before = (tmp_path / "disk").read_bytes()
    disk = open_chain(folder, [extent], writable=True)
    content(disk)
    disk.flush()
    disk.close_clean()
    assert (tmp_path / "disk").read_bytes() == before


@pytest.mark.parametrize("kind", [SPARSE, COWD])
def test_a_writer_that_died_is_seen(folder: Dir, kind: int) -> None:
    extent = make(folder, "disk", kind, 4096, 8)
    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(b"x", 100)
    assert _native.sparse_info(folder.open("disk"))["unclean_shutdown"] == 1
    disk.flush()
    del disk
    assert "unclean" in findings(folder, extent)

    disk = open_chain(folder, [extent], writable=True)
    assert disk.pread(2, 100) == b"x\0"
    disk.pwrite(b"y", 101)
    disk.close_clean()
    assert _native.sparse_info(folder.open("disk"))["unclean_shutdown"] == 0
    disk.pwrite(b"z", 102)  # a chain can be written again after it was closed clean
    assert _native.sparse_info(folder.open("disk"))["unclean_shutdown"] == 1
    disk.close_clean()
    assert open_chain(folder, [extent]).pread(3, 100) == b"xyz"


def test_redundant_tables_are_made_equal_after_a_crash(folder: Dir) -> None:
    extent = make(folder, "disk", SPARSE, 4096, 8)
    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(b"x", 0)
    disk.flush()
    del disk
    file = folder.open("disk", _native.OPEN_WRITE)
    info = _native.sparse_info(file)
    redundant = file.pread(4, info["redundant_directory_sector"] * 512)
    file.pwrite(bytes(4), struct.unpack("<I", redundant)[0] * 512)
    assert sorted(findings(folder, extent)) == ["leak", "redundant", "unclean"]

    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(b"y", 1)
    disk.close_clean()
    assert set(findings(folder, extent)) == {"leak"}  # space reserved before the crash
    assert open_chain(folder, [extent]).pread(3, 0) == b"xy\0"


def test_cowd_space_starts_at_the_free_pointer(folder: Dir) -> None:
    """ESX grows the file ahead of it: that tail is neither data nor lost."""
    extent = make(folder, "delta", COWD, 4096, 1)
    file = folder.open("delta", _native.OPEN_WRITE)
    free = _native.sparse_info(file)["free_sector"]
    file.pwrite(b"\xcc" * (1 << 20), free * 512)  # old content of the datastore
    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(b"x", 700)
    disk.close_clean()

    assert content(open_chain(folder, [extent])) == bytes(700) + b"x" + bytes(4096 * 512 - 701)
    assert _native.sparse_info(file)["free_sector"] == free + 32 + 1
    assert file.size_bytes == (free + 33) * 512
    assert findings(folder, extent) == []


def test_cowd_grains_behind_a_stale_free_pointer_are_kept(folder: Dir) -> None:
    """QEMU appends at the end of the file and never raises freeSector."""
    extent = make(folder, "delta", COWD, 4096, 1)
    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(b"a" * 2048, 0)
    disk.close_clean()
    file = folder.open("delta", _native.OPEN_WRITE)
    file.pwrite(struct.pack("<I", 5), 28)
    assert findings(folder, extent) == ["freesector"]

    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(b"b" * 2048, 8192)
    disk.close_clean()
    assert open_chain(folder, [extent]).pread(2048, 0) == b"a" * 2048
    assert findings(folder, extent) == []


def test_runs_tell_holes_zeros_and_data(folder: Dir) -> None:
    base = folder.open("base", MAKE)
    base.truncate(4 << 20)
    base.pwrite(b"d" * 65536, 1 << 20)
    top = make(folder, "top", SPARSE, 8192, 128)
    disk = open_chain(folder, [top], [Extent(FLAT, 8192, "base")], writable=True)
    disk.pwrite(b"t" * 65536, 2 << 20)
    disk.zero(32768, 1 << 20)  # half of the grain: copied up
    disk.zero(65536, 3 << 20)  # shows a hole already: nothing to hide
    disk.pwrite(b"u" * 65536, (3 << 20) + 65536)
    disk.zero(131072, (3 << 20) + 65536)

    found = list(runs(disk))
    assert found == [
        (0, 1 << 20, HOLE, 1),
        (1 << 20, 65536, DATA, 0),
        ((1 << 20) + 65536, (1 << 20) - 65536, HOLE, 1),
        (2 << 20, 65536, DATA, 0),
        ((2 << 20) + 65536, 1 << 20, HOLE, 1),
        ((3 << 20) + 65536, 65536, DATA, 0),
        ((3 << 20) + 131072, (1 << 20) - 131072, HOLE, 1),
    ]
    assert disk.run(2 << 20, 4096)[:3] == (4096, DATA, 0)
    name, offset = disk.run((2 << 20) + 100, 4096)[3:]
    assert name is not None
    assert name.endswith("top")
    assert folder.open("top").pread(4, offset) == b"tttt"


def test_zeroing_over_data_below_writes_no_data(folder: Dir) -> None:
    flat = make_flat(folder, "base", noise(3, 8 << 20))
    top = make(folder, "top", SPARSE, 16384, 128)
    disk = open_chain(folder, [top], [flat], writable=True)
    disk.zero(disk.size_bytes, 0)
    disk.flush()

    assert list(runs(disk)) == [(0, 8 << 20, ZEROS, 0)]
    assert content(disk) == bytes(8 << 20)
    assert folder.stat("top").allocated_bytes < 1 << 16


def test_trimmed_grains_give_their_space_back(folder: Dir) -> None:
    extent = make(folder, "disk", SPARSE, 16384, 128)
    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(noise(4, 8 << 20), 0)
    disk.flush()
    assert folder.stat("disk").allocated_bytes > 8 << 20
    disk.zero(disk.size_bytes, 0, may_trim=True)
    disk.close_clean()

    assert folder.stat("disk").allocated_bytes < 1 << 20
    assert content(open_chain(folder, [extent])) == bytes(8 << 20)
    assert findings(folder, extent) == []


def test_a_flat_file_that_is_too_short_is_told(folder: Dir) -> None:
    make_flat(folder, "short", b"s" * 4096)
    extent = Extent(FLAT, 16, "short")
    disk = open_chain(folder, [extent])
    assert disk.pread(4096, 0) == b"s" * 4096
    assert [(at, kind) for at, _, kind, _ in runs(disk)] == [(0, DATA), (4096, DATA)]
    with pytest.raises(errors.DamagedError, match="short"):
        disk.pread(2, 4095)
    with pytest.raises(errors.DamagedError, match="short"):
        open_chain(folder, [extent], writable=True)


def test_extents_lie_end_to_end(folder: Dir) -> None:
    flat = make_flat(folder, "flat", noise(5, 10 * 512))
    extents = [
        make(folder, "first", SPARSE, 13, 8),
        Extent(FLAT, 7, "flat", 3),
        Extent(ZERO, 5, None),
        make(folder, "last", COWD, 9, 1),
    ]
    disk = open_chain(folder, extents, writable=True)
    assert disk.size_bytes == (13 + 7 + 5 + 9) * 512
    disk.pwrite(b"w" * 1000, 12 * 512 + 100)  # over the edge of two extents
    disk.pwrite(b"v" * 9 * 512, 25 * 512)
    model = bytearray(disk.size_bytes)
    model[13 * 512 : 20 * 512] = noise(5, flat.sectors * 512)[3 * 512 :]
    model[12 * 512 + 100 : 12 * 512 + 1100] = b"w" * 1000
    model[25 * 512 :] = b"v" * 9 * 512
    assert content(disk) == model
    with pytest.raises(errors.ReadOnlyError, match="ZERO"):
        disk.pwrite(b"x", 21 * 512)
    disk.zero(5 * 512, 20 * 512)
    disk.close_clean()
    assert content(open_chain(folder, extents)) == model


def test_chains_that_make_no_sense_are_refused(folder: Dir) -> None:
    small = make(folder, "small", SPARSE, 100, 8)
    large = make(folder, "large", SPARSE, 200, 8)
    with pytest.raises(errors.UsageError, match="link 1"):
        open_chain(folder, [small], [large])
    with pytest.raises(errors.UsageError, match="parent"):
        Chain([open_image(folder, [small]), open_image(folder, [small], writable=True)])
    with pytest.raises(errors.UsageError):
        Chain([])
    with pytest.raises(errors.DamagedError, match="sectors"):
        open_image(folder, [Extent(SPARSE, 101, "small")])
    with pytest.raises(errors.FormatError):
        open_image(folder, [Extent(COWD, 100, "small")])
    with pytest.raises(errors.ReadOnlyError):
        open_chain(folder, [small]).pwrite(b"x", 0)


def test_a_disk_too_large_for_its_format_is_refused_on_creation(folder: Dir) -> None:
    with pytest.raises(errors.StorageError):
        make(folder, "a", COWD, 1 << 32, 1)
    with pytest.raises(errors.StorageError):
        make(folder, "b", SPARSE, 1 << 40, 1)
    with pytest.raises(errors.UsageError):
        make(folder, "c", SPARSE, 100, 3)
    with pytest.raises(errors.UsageError, match="empty"):
        make(folder, "d", SPARSE, 0, 8)


# ---- flush ----


def syncs(io: Io, action: Callable[[], None]) -> int:
    before = len(io.operations())
    action()
    return sum(line.startswith("sync") for line in io.operations()[before:])


def test_a_flush_syncs_no_more_than_it_must(tmp_path: Path) -> None:
    """Twice for new grains, once for overwrites, not at all for nothing."""
    io = Io.record(Io.posix())
    folder = io.open_dir(str(tmp_path))
    extent = make(folder, "disk", SPARSE, 4096, 8)
    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(b"x", 0)
    assert syncs(io, disk.flush) == 2
    assert syncs(io, disk.flush) == 0
    assert syncs(io, lambda: disk.pwrite(b"y", 0)) == 0
    assert syncs(io, disk.flush) == 1
    assert syncs(io, lambda: disk.pwrite(b"z" * 1000, 40_000)) == 0
    assert syncs(io, disk.flush) == 2


def test_a_failed_flush_is_final(tmp_path: Path) -> None:
    folder = Io.posix().open_dir(str(tmp_path))
    extent = make(folder, "disk", SPARSE, 4096, 8)
    failing = Io.posix().fault(call=2, os_errno=5, kind="sync")
    disk = open_chain(failing.open_dir(str(tmp_path)), [extent], writable=True)
    disk.pwrite(b"x", 0)  # the first sync: the unclean mark
    with pytest.raises(errors.StorageError):
        disk.flush()
    for action in (disk.flush, lambda: disk.pwrite(b"y", 0), lambda: disk.zero(1, 0)):
        with pytest.raises(errors.FailedError):
            action()
    assert open_chain(folder, [extent]).pread(1, 0) == b"\0"


def test_entries_that_wait_in_memory_are_bounded(tmp_path: Path) -> None:
    """A million of them bring a flush by themselves."""
    io = Io.record(Io.posix())
    folder = io.open_dir(str(tmp_path))
    sectors = (1 << 20) + (1 << 18)
    base = make(folder, "base", SPARSE, sectors, 2048)
    parent = open_chain(folder, [base], writable=True)
    for at in range(0, sectors * 512, 1 << 20):
        parent.pwrite(b"b", at)  # makes a whole grain
    parent.close_clean()
    top = make(folder, "top", SPARSE, sectors, 1)
    disk = open_chain(folder, [top], [base], writable=True)
    assert syncs(io, lambda: disk.zero(disk.size_bytes, 0)) == 1 + 2  # the mark, a flush
    assert syncs(io, disk.flush) == 2
    assert {kind for _, _, kind, _ in runs(disk)} == {ZEROS}
