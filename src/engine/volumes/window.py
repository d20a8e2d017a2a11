"""Bytes of a disk or of pieces of disks, read without asking twice or past the end."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from .base import Piece, Readable

_HEAD_BYTES = 72 * 1024  # all signatures near the start: btrfs's lies at 64 KiB
_READ_BYTES_MAX = 1 << 20


class Strung:
    """Pieces of disks, one after another, as a disk of its own."""

    def __init__(self, disks: Mapping[str, Readable], pieces: Sequence[Piece]) -> None:
        self._disks = disks
        self._pieces = tuple(pieces)
        self._stops = list(accumulate(piece.length for piece in pieces))

    @property
    def size_bytes(self) -> int:
        return self._stops[-1] if self._stops else 0

    def pread(self, length: int, offset: int) -> bytes:
        """As of a disk; a range outside it is the caller's mistake."""
        assert 0 <= offset <= self.size_bytes - length
        found = []
        index = bisect_right(self._stops, offset)
        while length:
            piece = self._pieces[index]
            inside = offset - (self._stops[index] - piece.length)
            part = min(length, piece.length - inside)
            found.append(self._disks[piece.disk].pread(part, piece.offset + inside))
            length, offset, index = length - part, offset + part, index + 1
        return b"".join(found)


class Window:
    """What a guest's disk holds at a place; b"" where the disk ends before.

    Its numbers come from the guest's bytes: any offset and length may be asked for.
    """

    def __init__(self, disk: Readable) -> None:
        self._disk = disk
        self.size_bytes = disk.size_bytes
        self._head = disk.pread(min(_HEAD_BYTES, disk.size_bytes), 0)

    def at(self, offset: int, length: int) -> bytes:
        """All of these bytes, or none of them."""
        if offset < 0 or length < 0 or length > _READ_BYTES_MAX:
            return b""
        if offset > self.size_bytes or length > self.size_bytes - offset:
            return b""
        if offset + length <= len(self._head):
            return self._head[offset : offset + length]
        return self._disk.pread(length, offset)

    def has(self, offset: int, magic: bytes) -> bool:
        """Whether these bytes are there."""
        return self.at(offset, len(magic)) == magic

    def number(self, offset: int, form: str) -> int:
        """A number by its struct format; -1 outside the disk."""
        data = self.at(offset, struct.calcsize(form))
        return int(struct.unpack(form, data)[0]) if data else -1
