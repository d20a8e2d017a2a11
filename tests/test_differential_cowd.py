"""ESX sparse disks beside qemu-img: see differential.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from differential import Case, compare_both, params, raws, we_make
from rollpoint.errors import UsageError

__all__ = ["raws"]


@pytest.mark.parametrize("case", params("cowd"), ids=str)
def test_every_byte_is_equal(case: Case, tmp_path: Path, raws: Path) -> None:
    compare_both(case, tmp_path, raws)


def test_2_tib_are_refused(tmp_path: Path, raws: Path) -> None:
    """Its header counts sectors in 32 bits."""
    for way in ("written", "copied"):
        with pytest.raises(UsageError, match="2 TiB"):
            we_make(Case(way, "vmfsSparse", "2.1T", "sparse"), tmp_path / "a.vmdk", raws)
    assert list(tmp_path.iterdir()) == []
