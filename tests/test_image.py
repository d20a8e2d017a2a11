"""VMDK extents, images and chains, beside QEMU's readers and writers and beside plain models."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import require_tool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollpoint import _native, errors
from rollpoint._native import Chain, Dir, File, Image, Io

READ = _native.OPEN_READ
MAKE = _native.OPEN_WRITE | _native.OPEN_CREATE | _native.OPEN_TRUNCATE
FLAT, ZERO = _native.EXTENT_FLAT, _native.EXTENT_ZERO
SPARSE, COWD = _native.EXTENT_SPARSE, _native.EXTENT_COWD
HOLE, ZEROS, DATA = _native.RUN_HOLE, _native.RUN_ZERO, _native.RUN_DATA


@pytest.fixture
def folder(tmp_path: Path) -> Dir:
    """A directory in which every write-ahead rule is checked."""
    return Io.order(Io.posix()).open_dir(str(tmp_path))


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


# ---- beside QEMU ----


def qemu_img(*arguments: str | Path) -> str:
    done = subprocess.run(
        [require_tool("qemu-img"), *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def qemu_io(path: Path, commands: Sequence[str]) -> None:
    arguments = [argument for command in commands for argument in ("-c", command)]
    done = subprocess.run(
        # unsafe: else QEMU syncs once for each new grain
        [require_tool("qemu-io"), "-t", "unsafe", "-f", "vmdk", *arguments, str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout, done.stdout


def qemu_reads(path: Path) -> bytes:
    raw = path.with_suffix(".qemu-raw")
    qemu_img("convert", "-f", "vmdk", "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def descriptor(
    create_type: str, lines: Sequence[str], parent: str | None = None, cid: str = "0a0b0c0d"
) -> str:
    hint = f'parentFileNameHint="{parent}"\n' if parent else ""
    parent_cid = cid if parent else "ffffffff"
    extents = "\n".join(lines)
    return (
        f"# Disk DescriptorFile\nversion=1\nCID={cid}\nparentCID={parent_cid}\n"
        f'createType="{create_type}"\n{hint}\n# Extent description\n{extents}\n\n'
        "# The Disk Data Base\n#DDB\n\n"
        'ddb.adapterType = "lsilogic"\nddb.virtualHWVersion = "4"\n'
    )


def random_commands(rng: random.Random, size: int, count: int) -> tuple[list[str], bytearray]:
    """Commands of qemu-io and what a disk of zeros holds after them."""
    model = bytearray(size)
    commands = []
    for _ in range(count):
        offset = rng.randrange(size // 512) * 512
        length = min(rng.choice([512, 4096, 65536, 200_192]), size - offset)
        if rng.random() < 0.2:
            commands.append(f"write -z {offset} {length}")
            model[offset : offset + length] = bytes(length)
        else:
            value = rng.randrange(1, 256)
            commands.append(f"write -P {value} {offset} {length}")
            model[offset : offset + length] = bytes([value]) * length
    return commands, model


@pytest.mark.parametrize("size", [3 << 20, (40 << 20) + 512 * 77])
@pytest.mark.parametrize("zeroed", [False, True])
def test_we_read_what_qemu_wrote(folder: Dir, tmp_path: Path, size: int, zeroed: bool) -> None:
    path = tmp_path / "disk.vmdk"
    options = f"subformat=monolithicSparse,zeroed_grain={'on' if zeroed else 'off'}"
    qemu_img("create", "-f", "vmdk", "-o", options, path, str(size))
    commands, model = random_commands(random.Random(size + zeroed), size, 60)
    qemu_io(path, commands)
    extent = Extent(SPARSE, size // 512, "disk.vmdk")

    assert content(open_chain(folder, [extent])) == model
    assert set(findings(folder, extent)) <= {"leak"}  # QEMU forgets grains that it zeroes


def test_we_read_a_split_disk_of_qemu(folder: Dir, tmp_path: Path) -> None:
    path = tmp_path / "split.vmdk"
    size = (2 << 30) + (5 << 20)
    qemu_img("create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", path, str(size))
    edge = 2 << 30
    qemu_io(path, [f"write -P 7 {edge - 8192} 16384", "write -P 9 512 512"])
    disk = open_chain(
        folder,
        [Extent(SPARSE, edge // 512, "split-s001.vmdk"), Extent(SPARSE, 10240, "split-s002.vmdk")],
    )

    assert disk.size_bytes == size
    assert disk.pread(16386, edge - 8193) == b"\0" + b"\7" * 16384 + b"\0"
    assert disk.pread(1024, 256) == bytes(256) + b"\x09" * 512 + bytes(256)
    assert [(length, kind) for _, length, kind, _ in runs(disk)] == [
        (65536, DATA),
        (edge - 131072, HOLE),
        (65536, DATA),  # an answer ends with its extent
        (65536, DATA),
        ((5 << 20) - 65536, HOLE),
    ]


class Shape(NamedTuple):
    kind: int
    grain: int
    zero_grains: bool = True
    redundant: bool = True
    sectors: int = 9000


SHAPES = [
    Shape(SPARSE, 1),
    Shape(SPARSE, 8, zero_grains=False),
    Shape(SPARSE, 8, redundant=False),
    Shape(SPARSE, 128, sectors=70001),
    Shape(SPARSE, 128, zero_grains=False, redundant=False, sectors=4096),
    Shape(SPARSE, 2048, sectors=5001),
    Shape(COWD, 1),
    Shape(COWD, 8, sectors=40001),
    Shape(COWD, 128),
    Shape(COWD, 2048, sectors=2047),
]


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


def qemu_face(tmp_path: Path, shape: Shape, extent: Extent, parent: str | None = None) -> Path:
    """A text descriptor through which QEMU opens an extent of ours."""
    path = tmp_path / "face.vmdk"
    word, create_type = (
        ("SPARSE", "twoGbMaxExtentSparse") if shape.kind == SPARSE else ("VMFSSPARSE", "vmfsSparse")
    )
    line = f'RW {extent.sectors} {word} "{extent.name}"'
    path.write_text(descriptor(create_type, [line], parent))
    return path


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_qemu_reads_what_we_wrote(folder: Dir, tmp_path: Path, shape: Shape) -> None:
    extent = make(
        folder,
        "ours.vmdk",
        shape.kind,
        shape.sectors,
        shape.grain,
        zero_grains=shape.zero_grains,
        redundant=shape.redundant,
    )
    disk = open_chain(folder, [extent], writable=True)
    model = bytearray(disk.size_bytes)
    write_at_random(disk, model, random.Random(shape.sectors * shape.grain), 60)
    disk.close_clean()

    assert findings(folder, extent) == []
    path = qemu_face(tmp_path, shape, extent)
    qemu_img("check", "-f", "vmdk", path)
    assert qemu_reads(path) == model
    assert content(open_chain(folder, [extent])) == model


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_qemu_reads_our_overlay_over_its_parent(folder: Dir, tmp_path: Path, shape: Shape) -> None:
    model = bytearray(noise(1, shape.sectors * 512))
    model[70_000:900_000] = bytes(830_000)
    base = make_flat(folder, "base-flat.vmdk", bytes(model))
    (tmp_path / "base.vmdk").write_text(
        descriptor("monolithicFlat", [f'RW {shape.sectors} FLAT "base-flat.vmdk" 0'])
    )
    top = make(
        folder,
        "top.vmdk",
        shape.kind,
        shape.sectors,
        shape.grain,
        zero_grains=shape.zero_grains,
        redundant=shape.redundant,
    )
    disk = open_chain(folder, [top], [base], writable=True)
    write_at_random(disk, model, random.Random(shape.sectors), 40)
    assert content(disk) == model
    disk.close_clean()

    assert findings(folder, top) == []
    assert qemu_reads(qemu_face(tmp_path, shape, top, "base.vmdk")) == model


def test_qemu_opens_an_embedded_descriptor(folder: Dir, tmp_path: Path) -> None:
    text = descriptor("monolithicSparse", ['RW 8192 SPARSE "ours.vmdk"']).encode()
    extent = make(folder, "ours.vmdk", SPARSE, 8192, 128, descriptor=text, zero_grains=False)
    disk = open_chain(folder, [extent], writable=True)
    disk.pwrite(b"\xee" * 1000, 99_999)
    disk.close_clean()
    path = tmp_path / "ours.vmdk"

    assert path.read_bytes()[512 : 512 + len(text)] == text
    qemu_img("check", "-f", "vmdk", path)
    assert qemu_reads(path) == content(open_chain(folder, [extent]))


@pytest.mark.parametrize("grain", [8, 128])
def test_qemu_writes_an_overlay_that_we_created(folder: Dir, tmp_path: Path, grain: int) -> None:
    """All its grain tables are there: QEMU would write at file offset 0 for a missing one."""
    sectors = 200_001
    model = bytearray(noise(2, sectors * 512))
    base = make_flat(folder, "base-flat.vmdk", bytes(model))
    (tmp_path / "base.vmdk").write_text(
        descriptor("monolithicFlat", [f'RW {sectors} FLAT "base-flat.vmdk" 0'])
    )
    top = make(folder, "top.vmdk", SPARSE, sectors, grain)
    before = (tmp_path / "top.vmdk").read_bytes()[:512]
    path = qemu_face(tmp_path, Shape(SPARSE, grain), top, "base.vmdk")
    commands = []
    rng = random.Random(grain)
    for value in range(1, 40):
        offset, length = rng.randrange(sectors - 300) * 512, 512 * rng.randrange(1, 300)
        commands.append(f"write -P {value} {offset} {length}")
        model[offset : offset + length] = bytes([value]) * length
    qemu_io(path, [*commands, "flush"])

    assert (tmp_path / "top.vmdk").read_bytes()[:512] == before
    assert content(open_chain(folder, [top], [base])) == model
    assert findings(folder, top) == []

    disk = open_chain(folder, [top], [base], writable=True)  # and we go on
    write_at_random(disk, model, rng, 20)
    disk.close_clean()
    assert qemu_reads(path) == model


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
    chain.merge(2, target, lambda done: told.append(done) is None)
    target.flush()
    assert content(target) == model
    assert told[-1] == len(model)
    chain.merge(2, target)
    assert content(target) == model


def test_a_merge_that_is_stopped_can_be_asked_again(folder: Dir) -> None:
    links, _base, model = merge_case(folder)
    chain = open_chain(folder, *links)
    target = open_chain(folder, links[-1], writable=True)
    with pytest.raises(errors.StateError):
        chain.merge(2, target, lambda _done: False)

    def interrupt(_done: int) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chain.merge(2, target, interrupt)
    chain.merge(2, target)
    assert content(target) == model


def test_one_link_is_merged_into_the_next(folder: Dir) -> None:
    links, _base, model = merge_case(folder)
    chain = open_chain(folder, *links)
    target = open_chain(folder, *links[1:], writable=True)
    chain.merge(1, target)
    target.close_clean()
    assert content(open_chain(folder, *links[1:])) == model


def test_disks_of_two_sizes_are_not_merged(folder: Dir) -> None:
    a, b = make(folder, "a", SPARSE, 100, 8), make(folder, "b", SPARSE, 108, 8)
    with pytest.raises(errors.UsageError):
        open_chain(folder, [a]).merge(1, open_chain(folder, [b], writable=True))
    with pytest.raises(errors.UsageError):
        open_chain(folder, [a]).merge(2, open_chain(folder, [a], writable=True))


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
    assert sorted(found) == ["outside", "overlap", "redundant"]
    checked = open_image(folder, [extent]).check()
    assert ("outside", 0, 1 << 39, 16 * 4096) in checked


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
