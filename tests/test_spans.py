"""Lists of ranges are in order whatever they were made of."""

from __future__ import annotations

import random

import pytest
from rollpoint import _native
from rollpoint.spans import Spans, whole


def bytes_in(spans: Spans) -> set[int]:
    return {at for start, stop in spans for at in range(start, stop)}


@pytest.mark.parametrize("seed", range(8))
def test_ranges_hold_each_byte_once_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    pairs = [
        (start, start + rng.randrange(-2, 30))
        for start in (rng.randrange(2, 400) for _ in range(rng.randrange(30)))
    ]
    spans = Spans(pairs)
    wanted = {at for start, stop in pairs for at in range(start, stop)}
    assert bytes_in(spans) == wanted
    assert spans.total_bytes == len(wanted)
    assert spans.stop == max(wanted, default=-1) + 1
    flat = [at for pair in spans for at in pair]
    assert flat == sorted(set(flat))  # what touches is one
    other = Spans((at, at + 3) for at in range(0, 400, 17))
    assert bytes_in(spans | other) == wanted | bytes_in(other)
    assert bytes_in(spans - other) == wanted - bytes_in(other)
    assert bytes_in(other - spans) == bytes_in(other) - wanted
    assert Spans.unpack(spans.packed) == spans
    pieces = list(spans.pieces(7))
    assert Spans(pieces) == spans
    assert all(0 < stop - start <= 7 for start, stop in pieces)


def test_no_ranges_are_nothing() -> None:
    assert not Spans()
    assert len(Spans()) == Spans().total_bytes == Spans().stop == 0
    assert Spans([(5, 5), (9, 3)]) == Spans()
    assert list(whole(7)) == [(0, 7)]


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="pairs"):
        _native.join_spans(bytes(24))
