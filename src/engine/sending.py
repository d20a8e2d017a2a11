"""Sending ranges of a disk to a target, finding out which differ, and reading them back.

What reads as zeros is not sent: it is zeroed at the target, which then holds a hole where it
can. Sending again what was sent already changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ._native import RUN_DATA, Disk
from .errors import CancelledError, UsageError, VerificationError
from .spans import Span, Spans, whole
from .targets import Target

CHUNK_BYTES = 1 << 20  # read and written at once
ZERO_BYTES = 64 << 20  # zeroed at once
UNIT_BYTES = 4 << 10  # differences, and zeros among data, are found in such units

# called with bytes done and bytes in all; False stops
Progress = Callable[[int, int], bool]


class Sent(NamedTuple):
    """Bytes of a disk. read: of data of the source; zeroed: made zeros at the target."""

    read_bytes: int
    sent_bytes: int
    zeroed_bytes: int
    seconds: float

    def __add__(self, other: object) -> Sent:
        """Both together."""
        assert isinstance(other, Sent)
        return Sent(
            self.read_bytes + other.read_bytes,
            self.sent_bytes + other.sent_bytes,
            self.zeroed_bytes + other.zeroed_bytes,
            self.seconds + other.seconds,
        )


NOTHING = Sent(0, 0, 0, 0.0)


def send(
    source: Disk, target: Target, spans: Spans, progress: Progress | None = None
) -> Sent:
    """Make the target hold what the source does in these ranges; durable on return.

    Args:
        source: Stands still.
        progress: Told of bytes of the ranges. False ends it.

    Raises:
        UsageError: A range ends behind the disk.
        CancelledError: progress said so. What was sent stays.
        DamagedError, StorageError: One side failed; it names file and place.
    """
    _check(source, target, spans)
    begun = time.perf_counter()
    read = sent = zeroed = done = 0
    total = spans.total_bytes
    for start, stop in spans:
        at = start
        while at < stop:
            length, zeros = _run(source, at, stop - at)
            if zeros:
                length = min(length, ZERO_BYTES)
                target.zero(length, at)
                zeroed += length
            else:
                length = min(length, CHUNK_BYTES)
                data = source.pread(length, at)
                read += length
                for begin, end, empty in _zero_runs(data):
                    if empty:
                        target.zero(end - begin, at + begin)
                        zeroed += end - begin
                    else:
                        target.pwrite(data[begin:end], at + begin)
                        sent += end - begin
            at += length
            done += length
            _tell(progress, done, total, target)
    target.flush()
    return Sent(read, sent, zeroed, time.perf_counter() - begun)


def differing(
    source: Disk,
    target: Target,
    spans: Spans | None = None,
    progress: Progress | None = None,
) -> Spans:
    """Where source and target differ, in whole units of 4 KiB; what both know to be zeros
    is not read.

    Args:
        spans: Where to look; everywhere by default.

    Raises:
        UsageError, CancelledError, DamagedError, StorageError: As send.
    """
    spans = whole(source.size_bytes) if spans is None else spans
    _check(source, target, spans)
    found: list[Span] = []
    done, total = 0, spans.total_bytes
    for start, stop in spans:
        at = start
        while at < stop:
            length, zeros = _run(source, at, stop - at)
            length, there_zeros = target.run(at, length)
            if not (zeros and there_zeros):
                length = min(length, CHUNK_BYTES)
                data = bytes(length) if zeros else source.pread(length, at)
                there = bytes(length) if there_zeros else target.pread(length, at)
                if data != there:
                    found.extend(_units_that_differ(data, there, at))
            at += length
            done += length
            _tell(progress, done, total, target)
    return Spans(found)


def verify(
    source: Disk,
    target: Target,
    spans: Spans | None = None,
    progress: Progress | None = None,
) -> int:
    """Read source and target back; returns how many bytes are the same.

    Raises:
        VerificationError: They differ; it says where.
        UsageError, CancelledError, DamagedError, StorageError: As send.
    """
    spans = whole(source.size_bytes) if spans is None else spans
    for start, stop in differing(source, target, spans, progress):
        raise VerificationError(
            f"{target.place} does not hold what was sent to it, first in the {stop - start} "
            f"bytes from {start}",
            "see that nobody else writes there, and that the storage is sound; then resume",
        )
    return spans.total_bytes


def _check(source: Disk, target: Target, spans: Spans) -> None:
    size = min(source.size_bytes, target.size_bytes)
    if spans.stop > size:
        raise UsageError(
            f"a range ends at {spans.stop}: the disk has {source.size_bytes} bytes, "
            f"{target.place} takes {target.size_bytes}",
            "the ranges are of another disk",
        )


def _tell(progress: Progress | None, done: int, total: int, target: Target) -> None:
    if progress is not None and not progress(done, total):
        raise CancelledError(
            f"the work on {target.place} was stopped after {done} of {total} bytes",
            "it can be done again",
        )


def _run(source: Disk, at: int, most: int) -> tuple[int, bool]:
    length, kind = source.run(at, most)[:2]
    return length, kind != RUN_DATA


def _zero_runs(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """Start and stop of stretches of whole units, and whether they are zeros."""
    if data.count(0) == 0:
        yield 0, len(data), False
        return
    begin, was = 0, False
    for at in range(0, len(data), UNIT_BYTES):
        unit = data[at : at + UNIT_BYTES]
        zeros = unit.count(0) == len(unit)
        if at and zeros != was:
            yield begin, at, was
            begin = at
        was = zeros
    yield begin, len(data), was


def _units_that_differ(data: bytes, there: bytes, offset: int) -> Iterator[Span]:
    for at in range(0, len(data), UNIT_BYTES):
        stop = min(at + UNIT_BYTES, len(data))
        if data[at:stop] != there[at:stop]:
            yield offset + at, offset + stop
