"""Machines of hostile guests: what is found on their disks keeps its promises."""

from __future__ import annotations

import pytest
from fuzz import volumes


@pytest.mark.parametrize("block", range(4))
def test_no_hostile_machine_breaks_a_promise(block: int) -> None:
    """Longer: tests/fuzz/volumes.py. The number of a machine that is found stands in the error."""
    usable = 0
    for number in range(block * 50, block * 50 + 50):
        try:
            usable += volumes.check(volumes.machine(f"0:{number}"))
        except Exception as error:
            raise AssertionError(f"found by: volumes.py --seed 0 --only {number}") from error
    assert usable > 20
