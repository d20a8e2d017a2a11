"""Compressed streams, both ways beside qemu-img: see differential.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from differential import Case, compare_both, params, raws

__all__ = ["raws"]


@pytest.mark.parametrize("case", params("stream"), ids=str)
def test_every_byte_is_equal(case: Case, tmp_path: Path, raws: Path) -> None:
    compare_both(case, tmp_path, raws)
