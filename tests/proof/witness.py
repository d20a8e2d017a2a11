"""What a source knows of its writes, kept outside of the engine, and held against images.

Writers own a part of a disk each and do one thing at a time: write, zero, flush. For each
write the witness keeps when it was issued and when it was answered, so an image of all
disks can be judged alone by its bytes:

  nothing lost    of each writer it has a prefix of the writes, and all that it has to have
  nothing else    every byte is of that prefix (of the next write perhaps a part)
  write order     if a was answered before b was issued, and b is there, then so is a

It knows nothing of journals or VMDK, and gets bytes only.
"""

from __future__ import annotations

import itertools
import random
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

SECTOR = 512
GRAIN = 4096


class Violation(Exception):
    """The engine broke a promise."""


class Op:
    """One write, or one zeroing (data is None), of a writer."""

    __slots__ = ("acked", "acked_ns", "data", "issued", "length", "offset")

    def __init__(self, offset: int, length: int, data: bytes | None, issued: int) -> None:
        self.offset, self.length, self.data = offset, length, data
        self.issued = issued
        self.acked: int | None = None  # events are counted, over all writers
        self.acked_ns = 0  # wall clock

    def bytes(self) -> bytes:
        return bytes(self.length) if self.data is None else self.data


class Cut(NamedTuple):
    """How far an image may be: this many whole writes, and perhaps a part of the next."""

    whole: int
    part: bool


class Writer:
    """A part of a disk, what it held at first, and what was done to it since."""

    def __init__(self, number: int, disk: str, start: int, base: bytes, seed: int) -> None:
        self.number, self.disk, self.start = number, disk, start
        self.base = base
        self.now = bytearray(base)
        self.ops: list[Op] = []
        self.rng = random.Random(seed)
        self.flushed = 0  # so many of its first writes have to be there

    @property
    def stop(self) -> int:
        return self.start + len(self.base)

    def next_op(self, event: int) -> Op:
        """A write that changes something, at any sector; each sector is stamped."""
        rng = self.rng
        sectors = len(self.base) // SECTOR
        length = min(rng.choice((1, 1, 3, 8, 8, 8, 16, 40)), sectors)
        first = rng.randrange(sectors - length + 1)
        if rng.random() < 0.5:
            first = first // 8 * 8
        offset, size = first * SECTOR, length * SECTOR
        data: bytes | None = None
        if rng.random() < 0.8 or not any(self.now[offset : offset + size]):
            stamp = struct.pack("<IIQ", self.number, len(self.ops) + 1, rng.getrandbits(64))
            data = b"".join(
                (stamp + struct.pack("<Q", first + i) + bytes(8)) * 16 for i in range(length)
            )
        return Op(offset, size, data, event)

    def apply(self, op: Op) -> None:
        """It is on its way."""
        self.ops.append(op)
        self.now[op.offset : op.offset + op.length] = op.bytes()

    def cuts(self, found: bytes) -> list[Cut]:
        """Every prefix of the writes that these bytes are."""
        state = bytearray(self.base)
        cuts = []
        for number in range(len(self.ops) + 1):
            if state == found:
                cuts.append(Cut(number, False))
            if number == len(self.ops):
                break
            op = self.ops[number]
            later = bytearray(state)
            later[op.offset : op.offset + op.length] = op.bytes()
            if _between(self.start, op, state, later, found):
                cuts.append(Cut(number, True))
            state = later
        return cuts


def _between(start: int, op: Op, old: bytearray, new: bytearray, found: bytes) -> bool:
    """Some grains of the write are there, and others are not."""
    stop = op.offset + op.length
    if found[: op.offset] != old[: op.offset] or found[stop:] != old[stop:]:
        return False
    some = [False, False]
    at = op.offset
    while at < stop:
        end = min(stop, (start + at) // GRAIN * GRAIN + GRAIN - start)
        piece = found[at:end]
        is_new, is_old = piece == new[at:end], piece == old[at:end]
        if not (is_new or is_old):
            return False
        some[is_new] = some[is_new] or is_new != is_old
        some[False] = some[False] or (is_old and not is_new)
        at = end
    return all(some)


class Chapter:
    """From one beginning of replication to its end; all writers of all disks."""

    def __init__(
        self, images: Mapping[str, bytes], per_disk: int, seed: int, begin_ns: int | None = None
    ) -> None:
        self.begin_ns = time.time_ns() if begin_ns is None else begin_ns
        self.events = itertools.count(1)
        self.writers: list[Writer] = []
        self.sizes = {disk: len(image) for disk, image in images.items()}
        for disk, image in images.items():
            part = len(image) // SECTOR // per_disk * SECTOR
            for k in range(per_disk):
                start = k * part
                stop = len(image) if k == per_disk - 1 else start + part
                self.writers.append(
                    Writer(len(self.writers), disk, start, image[start:stop],
                           seed * 1000 + len(self.writers))
                )  # fmt: skip

    def flush_begins(self, disk: str) -> list[tuple[Writer, int]]:
        """What a flush that is issued now promises, once it has been answered."""
        return [
            (writer, sum(1 for op in writer.ops if op.acked is not None))
            for writer in self.writers
            if writer.disk == disk
        ]

    @staticmethod
    def flush_ended(promised: Sequence[tuple[Writer, int]]) -> None:
        for writer, count in promised:
            writer.flushed = max(writer.flushed, count)

    def judge(
        self,
        images: Mapping[str, bytes],
        floor: Callable[[Writer], int],
        what: str,
        across: bool = True,
    ) -> list[Cut]:
        """Hold images of all disks against what was done.

        Args:
            floor: How many writes of a writer have to be there.
            across: Write order holds over all disks, and not only on each.

        Raises:
            Violation: They are no cut of it.
        """
        options = []
        for writer in self.writers:
            found = images[writer.disk][writer.start : writer.stop]
            cuts = [cut for cut in writer.cuts(found) if cut.whole >= floor(writer)]
            if not cuts:
                raise Violation(self._tell(writer, found, floor(writer), what))
            options.append(cuts)
        chosen = [0] * len(options)
        groups = [None] if across else sorted({writer.disk for writer in self.writers})
        for group in groups:
            self._order(options, chosen, group, what)
        return [cuts[index] for cuts, index in zip(options, chosen, strict=True)]

    def _order(
        self, options: list[list[Cut]], chosen: list[int], group: str | None, what: str
    ) -> None:
        """Move each writer to its first prefix that has all that the others' imply."""
        members = [w for w in self.writers if group is None or w.disk == group]
        while True:
            newest = 0
            for writer in members:
                cut = options[writer.number][chosen[writer.number]]
                last = cut.whole + cut.part
                if last:
                    newest = max(newest, writer.ops[last - 1].issued)
            moved = False
            for writer in members:
                need = 0
                for op in writer.ops:
                    if op.acked is None or op.acked >= newest:
                        break
                    need += 1
                index = chosen[writer.number]
                while options[writer.number][index].whole < need:
                    index += 1
                    if index == len(options[writer.number]):
                        raise Violation(
                            f"{what}: write order is broken: writer {writer.number} has "
                            f"{options[writer.number]}, {need} were answered before "
                            f"something that is there was issued (event {newest})"
                        )
                moved = moved or index != chosen[writer.number]
                chosen[writer.number] = index
            if not moved:
                return

    def _tell(self, writer: Writer, found: bytes, floor: int, what: str) -> str:
        stamps = sorted(
            {
                struct.unpack_from("<II", found, at)
                for at in range(0, len(found), SECTOR)
                if any(found[at : at + SECTOR])
            }
        )
        cuts = writer.cuts(found) or "none at all"
        return (
            f"{what}: disk {writer.disk}, bytes {writer.start} to {writer.stop}, writer "
            f"{writer.number}: no prefix of its {len(writer.ops)} writes of which {floor} "
            f"have to be there; it is {cuts}, with stamps {stamps[-8:]}; the last were answered "
            f"at {[op.acked_ns for op in writer.ops[-8:]]}"
        )


def all_flushed(writer: Writer) -> int:
    return writer.flushed


def answered_before(moment_ns: int) -> Callable[[Writer], int]:
    """How many writes had been answered at a moment of the wall clock."""

    def count(writer: Writer) -> int:
        number = 0
        for op in writer.ops:
            if op.acked is None or op.acked_ns >= moment_ns:
                break
            number += 1
        return number

    return count
