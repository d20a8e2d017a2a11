"""seSparse extents: what ESXi's look like we read, what we export others read."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest
from conftest import require_tool
from dissect.hypervisor.disk.vmdk import VMDK
from extents import (
    DATA,
    HOLE,
    ZEROS,
    Extent,
    content,
    folder,
    make_flat,
    noise,
    open_chain,
    open_image,
    runs,
)
from rollpoint import _native, errors
from rollpoint._native import Dir, Io
from sesparses import GRAIN, SECTOR, TABLE_ENTRIES, Kind, Layout, entry, write, write_descriptor

__all__ = ["folder"]

SE = _native.EXTENT_SESPARSE
MIB = 1 << 20
SECTORS = 2 * 32768 + 5  # two tables, and less than a grain
GRAINS = -(-SECTORS // 8)
MAKE = _native.OPEN_WRITE | _native.OPEN_CREATE


def qemu_reads(descriptor: Path) -> bytes:
    raw = descriptor.with_suffix(".raw")
    done = subprocess.run(
        [require_tool("qemu-img"), "convert", "-f", "vmdk", "-O", "raw", descriptor, raw],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    data = raw.read_bytes()
    raw.unlink()
    return data


def dissect_reads(extent: Path) -> bytes:
    """To the last multiple of 8 KiB: it fails at an uneven end."""
    with extent.open("rb") as file:
        return VMDK([file]).read(SECTORS * SECTOR // 8192 * 8192)


def written_by_a_guest(
    seed: int, count: int = 300, kinds: bool = True
) -> tuple[list[tuple[int, bytes | Kind]], dict[int, bytes | Kind]]:
    """Grains in the order of their writing, which is no order, and what is where."""
    rng = random.Random(seed)
    numbers = rng.sample(range(GRAINS), count)
    first = rng.randrange(GRAINS - 600)
    numbers += [n for n in range(first, first + 500) if n not in set(numbers)]
    if GRAINS - 1 not in numbers:
        numbers.append(GRAINS - 1)
    grains: list[tuple[int, bytes | Kind]] = []
    for number in numbers:
        what: bytes | Kind = rng.randbytes(GRAIN)
        if kinds and rng.random() < 0.2:
            what = rng.choice([Kind.ZERO, Kind.UNMAPPED])
        grains.append((number, what))
    return grains, dict(grains)


def model(grains: dict[int, bytes | Kind], below: bytes | None = None) -> bytearray:
    data = bytearray(below if below is not None else bytes(SECTORS * SECTOR))
    for number, what in grains.items():
        part = what if isinstance(what, bytes) else bytes(GRAIN)
        data[number * GRAIN : (number + 1) * GRAIN] = part
    return data[: SECTORS * SECTOR]


def findings(folder: Dir, name: str, sectors: int = SECTORS) -> list[str]:
    return [found[0] for found in open_image(folder, [Extent(SE, sectors, name)]).check()]


@pytest.mark.parametrize("align", [2048, 1])
def test_what_a_guest_wrote_reads_the_same_everywhere(
    folder: Dir, tmp_path: Path, align: int
) -> None:
    """Tables and grains in the order of the first writes, zero and unmapped grains."""
    grains, there = written_by_a_guest(seed=1)
    write(tmp_path / "x-sesparse.vmdk", SECTORS, grains, align=align)
    descriptor = write_descriptor(tmp_path / "x.vmdk", SECTORS, "x-sesparse.vmdk")
    disk = open_chain(folder, [Extent(SE, SECTORS, "x-sesparse.vmdk")])
    wanted = model(there)
    assert content(disk) == wanted
    assert qemu_reads(descriptor)[: len(wanted)] == wanted
    for offset, length, kind, _depth in runs(disk):
        for number in range(offset // GRAIN, -(-(offset + length) // GRAIN)):
            what = there.get(number)
            assert kind == (HOLE if what is None else DATA if isinstance(what, bytes) else ZEROS)


def test_without_unmapped_grains_dissect_reads_the_same(tmp_path: Path, folder: Dir) -> None:
    """It shows the parent where a grain was unmapped: its known mistake."""
    grains, there = written_by_a_guest(seed=2, kinds=False)
    write(tmp_path / "x-sesparse.vmdk", SECTORS, grains)
    disk = open_chain(folder, [Extent(SE, SECTORS, "x-sesparse.vmdk")])
    assert content(disk) == model(there)
    read = dissect_reads(tmp_path / "x-sesparse.vmdk")
    assert read == model(there)[: len(read)]


def test_a_delta_hides_its_parent_where_it_has_a_grain(folder: Dir, tmp_path: Path) -> None:
    """As QEMU has it: an unmapped grain is zeros, not what the parent has."""
    base = (noise(3, MIB) * 33)[: SECTORS * SECTOR]
    flat = make_flat(folder, "base-flat.vmdk", base)
    (tmp_path / "base.vmdk").write_text(
        "# Disk DescriptorFile\nversion=1\nCID=00000007\nparentCID=ffffffff\n"
        f'createType="vmfs"\nRW {SECTORS} VMFS "base-flat.vmdk"\n'
    )
    grains, there = written_by_a_guest(seed=4)
    write(tmp_path / "x-sesparse.vmdk", SECTORS, grains)
    top = write_descriptor(
        tmp_path / "x.vmdk", SECTORS, "x-sesparse.vmdk", parent=("base.vmdk", 7)
    )
    disk = open_chain(folder, [Extent(SE, SECTORS, "x-sesparse.vmdk")], [flat])
    wanted = model(there, base)
    assert content(disk) == wanted
    assert qemu_reads(top)[: len(wanted)] == wanted


def test_a_clean_extent_has_no_findings(folder: Dir, tmp_path: Path) -> None:
    grains, _ = written_by_a_guest(seed=5)
    write(tmp_path / "x", SECTORS, grains)
    assert findings(folder, "x") == []


def test_a_journal_to_replay_is_refused_with_what_to_do(folder: Dir, tmp_path: Path) -> None:
    write(tmp_path / "x", SECTORS, [(0, b"a" * GRAIN)], replay=1)
    with pytest.raises(errors.UnsupportedError, match="consolidate") as caught:
        open_image(folder, [Extent(SE, SECTORS, "x")])
    assert "x has a journal" in str(caught.value)


def test_it_is_never_written(folder: Dir, tmp_path: Path) -> None:
    write(tmp_path / "x", SECTORS, [(0, b"a" * GRAIN)])
    with pytest.raises(errors.ReadOnlyError):
        open_image(folder, [Extent(SE, SECTORS, "x")], writable=True)


def test_header_fields_are_told(folder: Dir, tmp_path: Path) -> None:
    write(tmp_path / "x", 0x100000, [])
    info = _native.sparse_info(folder.open("x", _native.OPEN_READ))
    assert info["kind"] == SE
    # the one real extent that is known: 512 MiB, grains from sector 12288 on
    assert (info["capacity_sectors"], info["overhead_sectors"]) == (0x100000, 12288)
    assert (tmp_path / "x").stat().st_size == (12288 + 1048576) * SECTOR


# ---- export ----


def export(source: _native.Disk, folder: Dir, name: str, workers: int = 1) -> None:
    sectors = source.size_bytes // SECTOR
    sink = _native.sesparse_sink(folder.open(name, MAKE), sectors)
    _native.copy(source, sink, workers=workers)
    folder.sync()


def source_disk(folder: Dir, tmp_path: Path, seed: int) -> tuple[_native.Disk, bytearray]:
    grains, there = written_by_a_guest(seed)
    write(tmp_path / f"source-{seed}", SECTORS, grains)
    return open_chain(folder, [Extent(SE, SECTORS, f"source-{seed}")]), model(there)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_exported_reads_the_same_everywhere(
    folder: Dir, tmp_path: Path, workers: int
) -> None:
    source, wanted = source_disk(folder, tmp_path, seed=6)
    export(source, folder, "y-sesparse.vmdk", workers)
    made = open_chain(folder, [Extent(SE, SECTORS, "y-sesparse.vmdk")])
    assert content(made) == wanted
    assert findings(folder, "y-sesparse.vmdk") == []
    descriptor = write_descriptor(tmp_path / "y.vmdk", SECTORS, "y-sesparse.vmdk")
    assert qemu_reads(descriptor)[: len(wanted)] == wanted
    read = dissect_reads(tmp_path / "y-sesparse.vmdk")
    assert read == wanted[: len(read)]


def test_an_export_is_laid_out_as_esxi_does(folder: Dir, tmp_path: Path) -> None:
    """The same bytes in front of the grains as the maker's, written in disk order."""
    source, wanted = source_disk(folder, tmp_path, seed=7)
    export(source, folder, "y")
    in_order: list[tuple[int, bytes | Kind]] = [
        (n, bytes(wanted[n * GRAIN : (n + 1) * GRAIN]))
        for n in range(GRAINS)
        if any(wanted[n * GRAIN : (n + 1) * GRAIN])
    ]
    layout = write(tmp_path / "z", SECTORS, in_order)
    ours, other = (tmp_path / "y").read_bytes(), (tmp_path / "z").read_bytes()
    assert len(ours) == len(other) == layout.end
    # the journal's sequence number, and its second sector, are what a host leaves
    for name, start, stop in [
        ("volatile", 16, 24), ("journal_header", 8, 16), ("journal_header", 512, 1024),
    ]:
        at = layout.offset(name)
        other = other[: at + start] + bytes(stop - start) + other[at + stop :]
    assert ours == other


def test_holes_and_zeros_take_no_space(folder: Dir, tmp_path: Path) -> None:
    make_flat(folder, "zeros", b"\0" * 8 * MIB)
    source = open_chain(folder, [Extent(_native.EXTENT_FLAT, 16384, "zeros")])
    export(source, folder, "y")
    made = open_chain(folder, [Extent(SE, 16384, "y")])
    assert [kind for _, _, kind, _ in runs(made)] == [HOLE]
    assert (tmp_path / "y").stat().st_blocks * SECTOR < 64 << 10


@pytest.mark.parametrize("tebibytes", [2, 3, 15, 62])
def test_large_disks_have_a_larger_directory(folder: Dir, tmp_path: Path, tebibytes: int) -> None:
    """Above 2 TiB; and where files end at 16 TiB (ext4) the hole behind is left out."""
    size = tebibytes << 40
    grains: list[tuple[int, bytes | Kind]] = [
        (0, b"first".ljust(GRAIN)), (size // GRAIN - 1, b"last".ljust(GRAIN)),
    ]
    tables = -(-size // (16 * MIB))
    layout = Layout(size // SECTOR)
    assert layout.regions["directory"][1] == max(2048, -(-tables * 8 // MIB) * 2048)
    write_source(tmp_path / "source", size, grains)
    source = open_chain(folder, [Extent(SE, size // SECTOR, "source")])
    export(source, folder, "y", workers=2)
    made = open_chain(folder, [Extent(SE, size // SECTOR, "y")])
    assert made.pread(5, 0) == b"first"
    assert made.pread(4, size - GRAIN) == b"last"
    found = [(offset, length) for offset, length, kind, _ in runs(made) if kind == DATA]
    assert found == [(0, GRAIN), (size - GRAIN, GRAIN)]
    info = _native.sparse_info(folder.open("y", _native.OPEN_READ))
    assert info["overhead_sectors"] == layout.regions["grains"][0]
    assert (tmp_path / "y").stat().st_size in (layout.end, layout.offset("grains") + MIB)
    assert (tmp_path / "y").stat().st_blocks * SECTOR < MIB
    assert findings(folder, "y", size // SECTOR) == []


def write_source(path: Path, size: int, grains: list[tuple[int, bytes | Kind]]) -> None:
    """Cut behind its grains: the file system may not have files of its full size."""
    layout = Layout(size // SECTOR)
    try:
        write(path, size // SECTOR, grains)
    except OSError:
        with path.open("r+b") as file:
            file.truncate(layout.offset("grains") + len(grains) * GRAIN)


def test_more_than_esxi_allows_is_refused(folder: Dir) -> None:
    with pytest.raises(errors.StorageError, match="62 TiB"):
        _native.sesparse_sink(folder.open("y", MAKE), (62 << 31) + 1)


def test_at_any_crash_an_export_is_whole_or_does_not_open() -> None:
    """The header comes last, after all it speaks for is durable."""
    simulated = Io.simulate()
    io = Io.order(simulated)
    folder = io.open_dir("/")
    data = noise(8, 3 * GRAIN) + bytes(GRAIN) + noise(9, 700)
    data = data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")
    make_flat(folder, "flat", data)
    source = open_chain(folder, [Extent(_native.EXTENT_FLAT, len(data) // SECTOR, "flat")])
    simulated.settle()
    export(source, folder, "y")
    simulated.acknowledge(1)
    opened = states = 0
    for state in simulated.crash_states(budget=400, seed=1):
        states += 1
        after = state.io.open_dir("/")
        try:
            made = open_chain(after, [Extent(SE, len(data) // SECTOR, "y")])
        except errors.Error:
            assert state.acknowledged == (), state.explain()
            continue
        opened += 1
        assert content(made) == data, state.explain()
    assert states > 50
    assert opened > 0


@pytest.mark.parametrize("effect", ["plain", "partial"])
def test_an_export_that_fails_is_never_taken_for_a_whole_one(
    tmp_path: Path, effect: str
) -> None:
    """Whichever call fails, its error comes out; what opens after all has all of its data."""
    plain = Io.posix().open_dir(str(tmp_path))
    data = noise(10, 5 * GRAIN)
    made = Extent(SE, len(data) // SECTOR, "y")
    make_flat(plain, "flat", data)
    source = open_chain(plain, [Extent(_native.EXTENT_FLAT, len(data) // SECTOR, "flat")])

    def attempt(call: int) -> bool:
        kind = "any" if effect == "plain" else "write"
        failing = Io.posix().fault(call=call, os_errno=28, kind=kind, effect=effect)
        export(source, failing.open_dir(str(tmp_path)), "y")
        return failing.calls < call

    refused = 0
    for call in range(1, 100):
        try:
            if attempt(call):
                break
        except errors.StorageError:
            pass
        try:
            assert content(open_chain(plain, [made])) == data
        except errors.Error:
            refused += 1
        if plain.exists("y"):
            plain.unlink("y")
    assert 5 < call < 50
    assert refused > call / 2
    assert content(open_chain(plain, [made])) == data


def test_an_entry_that_lies_is_named_with_its_place(folder: Dir, tmp_path: Path) -> None:
    layout = write(tmp_path / "x", SECTORS, [(5, b"a" * GRAIN)])
    with (tmp_path / "x").open("r+b") as file:
        file.seek(layout.offset("tables") + 8 * 5)
        file.write(struct.pack("<Q", entry(3, TABLE_ENTRIES * 7)))
    disk = open_chain(folder, [Extent(SE, SECTORS, "x")])
    with pytest.raises(errors.DamagedError, match=f"x.*{layout.offset('tables') + 40}"):
        disk.pread(1, 5 * GRAIN)
    assert disk.pread(1, 6 * GRAIN) == b"\0"
    assert findings(folder, "x") == ["outside", "leak"]
