"""Space-efficient sparse disks beside qemu-img: see differential.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from differential import MATRIX, Case, compare_both, params, qemu, raws, we_make

__all__ = ["raws"]


@pytest.mark.parametrize("case", params("sesparse"), ids=str)
def test_every_byte_is_equal(case: Case, tmp_path: Path, raws: Path) -> None:
    compare_both(case, tmp_path, raws)


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in MATRIX["sesparse"] if case.check_is_long])
def test_qemu_finds_no_damage_in_2_tib(case: Case, tmp_path: Path, raws: Path) -> None:
    we_make(case, tmp_path / "a.vmdk", raws)
    qemu("qemu-img", "check", "-f", "vmdk", tmp_path / "a.vmdk")
