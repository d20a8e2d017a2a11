"""Extents beside QEMU: what it wrote we read, what we wrote it reads."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import require_tool
from extents import (
    COWD,
    DATA,
    HOLE,
    SPARSE,
    Extent,
    content,
    findings,
    folder,
    make,
    make_flat,
    noise,
    open_chain,
    runs,
    write_at_random,
)
from rollpoint._native import Dir

__all__ = ["folder"]


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
