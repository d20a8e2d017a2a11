"""The same work as the native side's where the target is an NBD export.

Two threads read the source ahead; this one has several requests under way at once, so that
neither side waits for the other.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from ._native import RUN_DATA, Disk
from .nbd_client import NbdClient, Reading
from .spans import Span, Spans

CHUNK_BYTES = 1 << 20  # read and written at once
ZERO_BYTES = 64 << 20  # zeroed at once
UNIT_BYTES = 4 << 10  # differences are found in such units
HOLE_BYTES = 64 << 10  # zeros among data are worth a hole from here on
READERS = 2
REQUESTS_MAX = 64  # under way at once
BYTES_MAX = 16 << 20  # of memory that they take

_ZEROS = bytes(HOLE_BYTES)
Tell = Callable[[int], object]  # bytes of the ranges that are done; raises to stop


class _Piece(NamedTuple):
    """Bytes of one range. ahead: what the source holds; None: zeros. there: the target."""

    offset: int
    length: int
    ahead: Future[bytes] | None
    there: Reading | None = None


def send(source: Disk, client: NbdClient, spans: Spans, tell: Tell) -> tuple[int, int, int]:
    """As _native.copy_spans: bytes read, sent and zeroed; durable on return."""
    read = sent = zeroed = done = 0
    with contextlib.closing(_ahead(source, spans, None)) as pieces:
        for piece in pieces:
            if piece.ahead is None:
                client.start_zero(piece.length, piece.offset)
                zeroed += piece.length
            else:
                data = piece.ahead.result()
                read += len(data)
                for start, stop, empty in _zero_runs(data, piece.offset):
                    if empty:
                        client.start_zero(stop - start, piece.offset + start)
                        zeroed += stop - start
                    else:
                        part = data if stop - start == len(data) else data[start:stop]
                        client.start_write(part, piece.offset + start)
                        sent += stop - start
            client.settle(min(REQUESTS_MAX, BYTES_MAX // min(piece.length, CHUNK_BYTES)))
            done += piece.length
            tell(done)
    client.settle()
    client.flush()
    return read, sent, zeroed


def differ(source: Disk, client: NbdClient, spans: Spans, tell: Tell) -> Spans:
    """As _native.differ: where the two differ, in whole units of 4 KiB."""
    found: list[Span] = []
    done = 0
    with contextlib.closing(_ahead(source, spans, client)) as pieces:
        for piece in pieces:
            if piece.ahead is not None or piece.there is not None:
                data = bytes(piece.length) if piece.ahead is None else piece.ahead.result()
                there = bytes(piece.length) if piece.there is None else piece.there.data
                if data != there:
                    found.extend(_units_that_differ(data, there, piece.offset))
            done += piece.length
            tell(done)
    return Spans(found)


def _ahead(source: Disk, spans: Spans, client: NbdClient | None) -> Generator[_Piece, None, None]:
    """The ranges piece by piece, with reads under way for those that come next."""
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="reading the disk")
    waiting: deque[_Piece] = deque()
    held = 0
    try:
        for offset, length, zeros, there_zeros in _pieces(source, spans, client):
            ahead = None if zeros else pool.submit(source.pread, length, offset)
            asked = client is not None and not there_zeros
            there = client.start_read(length, offset) if client and asked else None
            waiting.append(_Piece(offset, length, ahead, there))
            held += 0 if ahead is None and there is None else length
            while len(waiting) > REQUESTS_MAX or held > BYTES_MAX:
                piece = waiting.popleft()
                held -= 0 if piece.ahead is None and piece.there is None else piece.length
                yield piece
        yield from waiting
    finally:
        pool.shutdown(cancel_futures=True)


def _pieces(
    source: Disk, spans: Spans, client: NbdClient | None
) -> Iterator[tuple[int, int, bool, bool]]:
    """Offset, length, and whether source and target know that it is zeros."""
    for start, stop in spans:
        at = start
        while at < stop:
            length, kind = source.run(at, stop - at)[:2]
            zeros, there_zeros = kind != RUN_DATA, False
            if client is not None:
                length, there_zeros = client.run(at, length)
                zeros_alone = zeros and there_zeros
            else:
                length = min(length, ZERO_BYTES) if zeros else length
                zeros_alone = zeros
            if not zeros_alone:
                length = min(length, CHUNK_BYTES)
            yield at, length, zeros, there_zeros
            at += length


def _zero_runs(data: bytes, offset: int) -> Iterator[tuple[int, int, bool]]:
    """Start and stop of stretches of units of the disk, and whether they are zeros."""
    begin, at, was = 0, 0, False
    while at < len(data):
        stop = min((offset + at) // HOLE_BYTES * HOLE_BYTES + HOLE_BYTES - offset, len(data))
        zeros = not data[at] and data[at:stop] == _ZEROS[: stop - at]
        if at and zeros != was:
            yield begin, at, was
            begin = at
        at, was = stop, zeros
    if begin < at:
        yield begin, at, was


def _units_that_differ(
    data: bytes | bytearray, there: bytes | bytearray, offset: int
) -> Iterator[Span]:
    at = 0
    while at < len(data):
        stop = min((offset + at) // UNIT_BYTES * UNIT_BYTES + UNIT_BYTES - offset, len(data))
        if data[at:stop] != there[at:stop]:
            yield offset + at, offset + stop
        at = stop
