"""How many images are compared with QEMU in the usual run: the promise is 200."""

from __future__ import annotations

from differential import MATRIX


def test_at_least_200_images_are_compared() -> None:
    usual = [case for family in MATRIX.values() for case in family if not case.is_long]
    assert len(set(usual)) == len(usual)
    assert len(usual) >= 200
    assert {case.size for case in usual} == {"512B", "64K-512", "1G+512", "5G", "2.1T"}
