"""Hosted sparse disks of one file, both ways beside qemu-img: see differential.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from differential import Case, compare_both, params, raws, require_equal_for_qemu
from patterns import MIB, Content, require_same
from rollpoint import disk as disks

__all__ = ["raws"]


@pytest.mark.parametrize("case", params("sparse"), ids=str)
def test_every_byte_is_equal(case: Case, tmp_path: Path, raws: Path) -> None:
    compare_both(case, tmp_path, raws)


@pytest.mark.parametrize("more", [1, 700, 70_000])
@pytest.mark.parametrize("type", ["monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse"])
def test_what_lies_behind_the_last_grain_never_shows(type: str, more: int, tmp_path: Path) -> None:
    """Bytes that a copy or a crash left at the end of a file are not taken for new space."""
    path, raw, content = tmp_path / "a.vmdk", tmp_path / "raw", Content(5 * MIB + 512)
    disks.create_disk(str(path), type, content.size_bytes, grain_bytes=65536)
    with disks.open_disk(path) as disk:
        (name,) = [Path(file.path) for file in disk.links[0].files()]
    for at in (0, 3 * MIB + 5, content.size_bytes - 7):
        with open(name, "ab") as file:
            file.write(b"#" * more)
        with disks.open_disk(path, writable=True) as disk:
            disk.pwrite(b"new", at)
        content.write(b"new", at)
        with disks.open_disk(path) as disk:
            require_same(disk, content)
    content.save(raw)
    require_equal_for_qemu(path, raw, content)
    assert {finding["kind"] for finding in disks.check(path)["findings"]} <= {"leak"}
