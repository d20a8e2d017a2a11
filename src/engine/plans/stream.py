"""The events of a run for programs, as JSON lines: on a file descriptor, or a Unix socket.

Each line is an Event (events.py). Who connects to the socket, and whenever, gets all lines
of the run from its first; so what a run is can be made from the stream alone. Nobody waits
for a reader: one that falls too far behind gets a last line that says so, and no more.
Users' page: docs/plans.md, "Events".
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable

import msgspec

from .. import control
from ..closing import Closing
from ..errors import UsageError
from .events import Event

BEHIND_MAX = 10_000  # lines that came since it began to read, and were not taken
READERS_MAX = 64
PIECE_BYTES = 64 << 10
CLOSE_SECONDS = 5.0  # what readers get for the rest, when the run has ended


class Stream(Closing):
    """Open it before the first event.

    Args:
        target: "fd:N", or "unix:PATH" of a socket that is made here, mode 0600.
        behind_max: See BEHIND_MAX.

    Raises:
        UsageError: It is neither, or nothing can be written there.
        Error: A socket cannot be made there.
    """

    def __init__(self, target: str, behind_max: int = BEHIND_MAX) -> None:
        self._behind_max = behind_max
        self._lines: list[bytes] = []
        self._changed = threading.Condition()
        self._readers: list[_Reader] = []
        self._ended = False
        self._path = ""
        self._listener: socket.socket | None = None
        what, _, place = target.partition(":")
        if what == "fd" and place.isdecimal() and len(place) < 10:
            self._begin_descriptor(int(place))
        elif what == "unix" and place:
            self._begin_socket(place)
        else:
            raise UsageError(
                f"--events {target!r} is no place for events",
                "write fd:N, as in fd:3 with 3>events.jsonl, or unix:PATH of a socket to make",
            )

    def send(self, events: Iterable[Event]) -> None:
        """Some more. Returns at once."""
        lines = [msgspec.json.encode(event) + b"\n" for event in events]
        with self._changed:
            self._lines += lines
            for reader in self._readers:
                if len(self._lines) - max(reader.position, reader.joined) > self._behind_max:
                    reader.is_slow = True
            self._changed.notify_all()

    def close(self) -> None:
        """The run has ended: readers get the rest, within CLOSE_SECONDS. May be called twice."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            readers = list(self._readers)
        if self._listener is not None:
            self._acceptor.join()
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError), control.short_path(self._path) as place:
                os.unlink(place)
        until = time.monotonic() + CLOSE_SECONDS
        for reader in readers:
            reader.thread.join(max(0.0, until - time.monotonic()))
            reader.give_up()

    def _begin_descriptor(self, number: int) -> None:
        try:
            os.write(number, b"")
            copy = os.dup(number)
        except OSError as error:
            raise UsageError(
                f"--events fd:{number}: nothing can be written there: {error.strerror}",
                f"open it in the shell, as in {number}>events.jsonl",
            ) from None
        self._add(_Descriptor(copy))

    def _begin_socket(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._listener = control.listen(self._path)
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._acceptor.start()

    def _accept(self, listener: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while not self._ended:
                if not selector.select(0.1):
                    continue
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    connection.setblocking(True)
                    self._add(_Connection(connection))

    def _add(self, place: _Place) -> None:
        with self._changed:
            self._readers = [reader for reader in self._readers if reader.thread.is_alive()]
            if len(self._readers) >= READERS_MAX or self._ended:
                place.close()
                return
            reader = _Reader(place, len(self._lines))
            reader.thread = threading.Thread(target=self._feed, args=(reader,), daemon=True)
            self._readers.append(reader)
            reader.thread.start()

    def _feed(self, reader: _Reader) -> None:
        try:
            while (piece := self._next(reader)) is not None:
                reader.place.write(piece)
            if reader.is_slow:
                told = {"dropped": {"lines": reader.position, "why": "too slow to read"}}
                reader.place.write(msgspec.json.encode(told) + b"\n")
        except OSError:
            pass  # it went away
        finally:
            reader.place.close()

    def _next(self, reader: _Reader) -> bytes | None:
        """Whole lines that it has not got; None: there are no more for it."""
        with self._changed:
            self._changed.wait_for(
                lambda: reader.is_slow or self._ended or reader.position < len(self._lines)
            )
            if reader.is_slow or reader.position >= len(self._lines):
                return None
            piece, at = bytearray(self._lines[reader.position]), reader.position + 1
            while at < len(self._lines) and len(piece) < PIECE_BYTES:
                piece += self._lines[at]
                at += 1
            reader.position = at
            return bytes(piece)


class _Reader:
    """position: lines that it got, or is being given. joined: how many there were before."""

    def __init__(self, place: _Place, joined: int) -> None:
        self.place = place
        self.joined = joined
        self.position = 0
        self.is_slow = False
        self.thread: threading.Thread

    def give_up(self) -> None:
        """Let a reader that takes nothing go; the others are gone already."""
        if self.thread.is_alive():
            self.place.interrupt()


class _Place:
    """Where lines go. write blocks until all is taken, and raises OSError."""

    write: Callable[[bytes], object]

    def close(self) -> None:
        raise NotImplementedError

    def interrupt(self) -> None:
        """Have a write that blocks end."""


class _Descriptor(_Place):
    """A pipe that nobody reads blocks its own thread, and nothing else."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.write = self._write

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._number, rest) :]
            except BlockingIOError:  # whoever opened it wanted it so
                with selectors.DefaultSelector() as selector:
                    selector.register(self._number, selectors.EVENT_WRITE)
                    selector.select()

    def close(self) -> None:
        os.close(self._number)


class _Connection(_Place):
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.write = connection.sendall

    def close(self) -> None:
        self._connection.close()

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
