"""Lists of ranges of a disk: in order, apart, in bytes, half open."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from ._native import join_spans

Span = tuple[int, int]  # start, stop
_NUMBER = "Q"


class Spans:
    """Ranges of a disk: sorted, each byte once, none empty. It never changes.

    Args:
        pairs: Start and stop of each, in any order.
    """

    __slots__ = ("_flat",)

    def __init__(self, pairs: Iterable[Span] = ()) -> None:
        flat = array(_NUMBER)
        for pair in pairs:
            flat.extend(pair)
        self._flat = _joined(flat.tobytes())

    @classmethod
    def unpack(cls, packed: bytes) -> Spans:
        """From 16 bytes a range, in any order, as spans.h has them."""
        made = cls()
        made._flat = _joined(packed)
        return made

    @property
    def packed(self) -> bytes:
        """As spans.h has them."""
        return self._flat.tobytes()

    @property
    def total_bytes(self) -> int:
        """Of all ranges together."""
        return sum(self._flat[1::2]) - sum(self._flat[::2])

    @property
    def stop(self) -> int:
        """Where the last one ends; 0 without one."""
        return self._flat[-1] if self._flat else 0

    def pieces(self, most_bytes: int) -> Iterator[Span]:
        """The ranges one after the other, cut where they are longer than that."""
        for start, stop in self:
            for at in range(start, stop, most_bytes):
                yield at, min(at + most_bytes, stop)

    def __iter__(self) -> Iterator[Span]:
        return zip(self._flat[::2], self._flat[1::2], strict=True)

    def __len__(self) -> int:
        return len(self._flat) // 2

    def __or__(self, other: Spans) -> Spans:
        return Spans.unpack(self.packed + other.packed)

    def __sub__(self, other: Spans) -> Spans:
        left, taken, index = [], list(other), 0
        for start, stop in self:
            while index < len(taken) and taken[index][1] <= start:
                index += 1
            at = index
            while at < len(taken) and taken[at][0] < stop:
                left.append((start, taken[at][0]))  # empty where that begins before
                start = taken[at][1]
                at += 1
            left.append((start, stop))
        return Spans(left)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spans) and self._flat == other._flat

    def __hash__(self) -> int:
        return hash(self.packed)

    def __repr__(self) -> str:
        return f"Spans({list(self)!r})"


def whole(size_bytes: int) -> Spans:
    """All of a disk."""
    return Spans([(0, size_bytes)])


def _joined(packed: bytes) -> array[int]:
    flat = array(_NUMBER)
    flat.frombytes(join_spans(packed))
    return flat
