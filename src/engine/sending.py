"""Sending ranges of a disk to a target, finding out which differ, and reading them back.

What reads as zeros is not sent: it is zeroed at the target, which then holds a hole where it
can. Sending again what was sent already changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from . import sending_export
from ._native import Disk, copy_spans, differ
from .errors import CancelledError, UsageError, VerificationError
from .spans import Spans, whole
from .targets import Target

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
    tell = _teller(progress, spans.total_bytes, target)
    native, client = target.native, target.client
    if native is not None:
        counts = copy_spans(source, native, spans.packed, progress=tell)
    else:
        assert client is not None
        counts = sending_export.send(source, client, spans, tell)
    return Sent(*counts, time.perf_counter() - begun)


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
    tell = _teller(progress, spans.total_bytes, target)
    native, client = target.native, target.client
    if native is not None:
        return Spans.unpack(differ(source, native, spans.packed, progress=tell))
    assert client is not None
    return sending_export.differ(source, client, spans, tell)


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


def _teller(progress: Progress | None, total: int, target: Target) -> Callable[[int], bool]:
    """What is told of bytes done while it goes on; it stops by its exception."""

    def told(done: int) -> bool:
        if progress is not None and not progress(done, total):
            raise CancelledError(
                f"the work on {target.place} was stopped after {done} of {total} bytes",
                "it can be done again",
            )
        return True

    return told
