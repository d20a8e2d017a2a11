"""Hosted sparse extents of version 3 without compression: read as QEMU does, never written."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from conftest import require_tool
from extents import SPARSE, Extent, content, folder, make, noise, open_chain, open_image
from rollpoint import _native, errors
from rollpoint._native import Dir

__all__ = ["folder"]

SECTORS = 5000  # no multiple of the grain
DESCRIPTOR = (
    "# Disk DescriptorFile\nversion=1\nCID=00000007\nparentCID=ffffffff\n"
    f'createType="monolithicSparse"\n\n# Extent description\nRW {SECTORS} SPARSE "disk.vmdk"\n\n'
    '# The Disk Data Base\n#DDB\n\nddb.adapterType = "lsilogic"\n'
).encode()


def set_header(path: Path, offset: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack("<I", value))


@pytest.fixture
def disk(folder: Dir, tmp_path: Path) -> tuple[Path, Extent, bytes]:
    """A disk with some data, of version 3."""
    extent = make(folder, "disk.vmdk", SPARSE, SECTORS, 16, descriptor=DESCRIPTOR)
    chain = open_chain(folder, [extent], writable=True)
    for at in (0, 70_000, 900_000, SECTORS * 512 - 1000):
        chain.pwrite(noise(at, 1000), at)
    chain.close_clean()
    wanted = content(chain)
    set_header(tmp_path / "disk.vmdk", 4, 3)
    return tmp_path / "disk.vmdk", extent, wanted


def test_it_reads_as_qemu_reads_it(folder: Dir, disk: tuple[Path, Extent, bytes]) -> None:
    path, extent, wanted = disk
    raw = path.with_suffix(".raw")
    done = subprocess.run(
        [require_tool("qemu-img"), "convert", "-f", "vmdk", "-O", "raw", path, raw],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert raw.read_bytes()[: len(wanted)] == wanted
    assert content(open_chain(folder, [extent])) == wanted
    assert open_image(folder, [extent]).check() == []
    assert _native.sparse_info(folder.open("disk.vmdk", _native.OPEN_READ))["version"] == 3


def test_it_is_not_written_and_says_what_to_do(
    folder: Dir, disk: tuple[Path, Extent, bytes]
) -> None:
    path, extent, _ = disk
    before = path.read_bytes()
    with pytest.raises(errors.ReadOnlyError, match="convert it"):
        open_image(folder, [extent], writable=True)
    assert path.read_bytes() == before


def test_unknown_low_flags_are_passed_over_and_high_ones_refused(
    folder: Dir, disk: tuple[Path, Extent, bytes]
) -> None:
    path, extent, wanted = disk
    set_header(path, 8, 0x8000 | 0x7)
    assert content(open_chain(folder, [extent])) == wanted
    set_header(path, 8, 0x40000 | 0x7)
    with pytest.raises(errors.UnsupportedError, match=r"disk\.vmdk.*flags"):
        open_chain(folder, [extent])


@pytest.mark.parametrize("version", [0, 4, 0xFFFFFFFF])
def test_other_versions_are_refused(
    folder: Dir, disk: tuple[Path, Extent, bytes], version: int
) -> None:
    path, extent, _ = disk
    set_header(path, 4, version)
    with pytest.raises(errors.UnsupportedError, match=f"version {version}"):
        open_chain(folder, [extent])
