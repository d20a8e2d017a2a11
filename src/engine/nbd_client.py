"""A small NBD client, over a Unix socket or TCP, without TLS.

Fixed newstyle with GO; structured replies and base:allocation where the server has
them, so that holes are not read. It says goodbye when it is closed. Several requests may
be under way at once, answered in any order: start_read, start_write and start_zero send
one, `settle` takes the answers. One thread uses a connection.

Source: the NBD protocol, doc/proto.md of NetworkBlockDevice/nbd.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator

from .closing import Closing
from .control import short_path
from .errors import Error, FormatError, HeldError, NotFoundError, StorageError
from .nbd_place import Place as Place
from .nbd_place import is_uri as is_uri
from .nbd_place import parse_uri as parse_uri

TIMEOUT_SECONDS = 60.0
PAYLOAD_BYTES_MAX = 1 << 25
STATUS_BYTES_MAX = 1 << 30  # asked about at once
OPTION_BYTES_MAX = 1 << 16

_OPTION_MAGIC = b"IHAVEOPT"
_OPTION_REPLY = 0x0003E889045565A9
_REQUEST, _SIMPLE, _STRUCTURED = 0x25609513, 0x67446698, 0x668E33EF
_GO, _STRUCTURED_REPLY, _SET_META = 7, 8, 10
_ACK, _INFO, _META = 1, 3, 4
_READ, _WRITE, _DISC, _FLUSH, _ZEROES, _STATUS = 0, 1, 2, 3, 6, 7
_DONE, _OFFSET_DATA, _OFFSET_HOLE, _BLOCK_STATUS, _IS_ERROR = 1, 1, 2, 5, 1 << 15
_READ_ONLY, _SEND_ZEROES = 1 << 1, 1 << 6
_ZERO = 1 << 1  # of base:allocation: it reads as zeros


class NbdClient(Closing):
    """A connection to an export.

    changes: how many requests of ours changed the disk.

    Raises:
        NotFoundError: Nobody listens there, or there is no such export.
        FormatError: It is not an NBD server that can be used.
        StorageError: It does not answer, or refuses.
    """

    def __init__(self, place: Place, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._place = place
        self._cookie = 0
        self._under_way: dict[int, _Request] = {}  # by cookie
        self._refusals: list[tuple[_Request, int]] = []  # nobody was told of them yet
        self._known: list[tuple[int, int, bool]] = []  # offset, length, zeros; newest answer
        self._allocation: int | None = None  # id of the context
        self._structured = False
        self._flags = 0
        self._changed_stop = 0  # nothing behind it was changed since that answer
        self.size_bytes = 0
        self.changes = 0
        self._socket = self._connect(timeout_seconds)
        try:
            with self._failures():
                self._handshake()
        except BaseException:
            self._socket.close()
            raise

    @property
    def read_only(self) -> bool:
        """Whether the export takes no writes."""
        return bool(self._flags & _READ_ONLY)

    # ---- commands ----

    def pread(self, length: int, offset: int) -> bytes:
        """Return length bytes from offset."""
        made = bytearray(length)
        for at in range(0, length, PAYLOAD_BYTES_MAX):
            part = min(PAYLOAD_BYTES_MAX, length - at)
            into = memoryview(made)[at : at + part]
            self._wait(self._start(_READ, offset + at, part, into=into))
        return bytes(made)

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write data at offset; durable after flush."""
        for at in range(0, len(data), PAYLOAD_BYTES_MAX):
            part = data[at : at + PAYLOAD_BYTES_MAX]
            self._wait(self._change(_WRITE, offset + at, len(part), part))

    def zero(self, length: int, offset: int) -> None:
        """Make length bytes at offset read as zeros."""
        self.start_zero(length, offset)
        self.settle()

    def flush(self) -> None:
        """Return when everything that was written and answered before is durable."""
        self._wait(self._start(_FLUSH, 0, 0))

    # ---- several at once ----

    def start_read(self, length: int, offset: int) -> Reading:
        """Ask for at most PAYLOAD_BYTES_MAX; `data` of what is returned waits for them."""
        into = bytearray(length)
        return Reading(self, into, self._start(_READ, offset, length, into=memoryview(into)))

    def start_write(self, data: bytes, offset: int) -> None:
        """Send at most PAYLOAD_BYTES_MAX to be written; whether it was shows in `settle`."""
        self._change(_WRITE, offset, len(data), data)

    def start_zero(self, length: int, offset: int) -> None:
        """Ask for zeros; whether they are there shows in `settle`."""
        if not self._flags & _SEND_ZEROES:
            for at in range(0, length, PAYLOAD_BYTES_MAX):
                self.pwrite(bytes(min(PAYLOAD_BYTES_MAX, length - at)), offset + at)
            return
        for at in range(0, length, STATUS_BYTES_MAX):
            self._change(_ZEROES, offset + at, min(STATUS_BYTES_MAX, length - at))

    def settle(self, most: int = 0) -> None:
        """Take answers until at most so many requests are under way.

        Raises:
            StorageError, HeldError: One of them was refused.
        """
        with self._failures():
            while len(self._under_way) > most:
                self._take_chunk()
        self._raise_refusal()

    def run(self, offset: int, length: int) -> tuple[int, bool]:
        """How many bytes from offset on, at most length, have one answer; whether it is zeros."""
        for start, known, zeros in self._known:
            if self._changed_stop <= offset and start <= offset < start + known:
                return min(length, start + known - offset), zeros
        if self._allocation is None:
            return length, False
        self._ask_status(offset, min(length, STATUS_BYTES_MAX))
        start, known, zeros = self._known[0]
        return min(length, known), zeros

    def close(self) -> None:
        """Say goodbye and let go. May be called twice."""
        with contextlib.suppress(OSError):
            self._send(_DISC, 0, 0, 0)
        self._socket.close()

    # ---- the wire ----

    def _connect(self, timeout_seconds: float) -> socket.socket:
        place = self._place
        try:
            if place.socket_path is None:
                return socket.create_connection((place.host, place.port), timeout_seconds)
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.settimeout(timeout_seconds)
            try:
                with short_path(place.socket_path) as path:
                    made.connect(path)
            except BaseException:
                made.close()
                raise
            return made
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise NotFoundError(
                f"no NBD server answers for {place}: {why}", "see that it runs"
            ) from None

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Error:
            raise
        except TimeoutError:
            raise StorageError(
                f"the NBD server of {self._place} does not answer", "see what it waits for"
            ) from None
        except OSError as error:
            raise StorageError(
                f"the NBD server of {self._place} went away: {error}",
                "see why it ended, then do this again",
                error.errno or 0,
            ) from None

    def _receive(self, length: int) -> bytes:
        made = bytearray(length)
        self._receive_into(memoryview(made))
        return bytes(made)

    def _receive_into(self, view: memoryview) -> None:
        while view:
            got = self._socket.recv_into(view)
            if got == 0:
                raise ConnectionResetError("the connection was closed")
            view = view[got:]

    def _strange(self, what: str) -> FormatError:
        return FormatError(f"the server of {self._place} {what}", "use another NBD server")

    def _handshake(self) -> None:
        magic, flags = self._receive(16), int.from_bytes(self._receive(2), "big")
        if magic != b"NBDMAGIC" + _OPTION_MAGIC or not flags & 1:
            raise self._strange("does not speak NBD's fixed newstyle")
        self._socket.sendall(struct.pack(">I", flags & 3))
        name = self._place.export.encode()
        sized = struct.pack(">I", len(name)) + name
        self._structured = self._option(_STRUCTURED_REPLY, b"") is not None
        if self._structured:
            query = b"base:allocation"
            contexts = self._option(
                _SET_META, sized + struct.pack(">II", 1, len(query)) + query
            )
            for kind, data in contexts or []:
                if kind == _META and data[4:] == query:
                    self._allocation = int.from_bytes(data[:4], "big")
        infos = self._option(_GO, sized + struct.pack(">H", 0))
        if infos is None:
            raise NotFoundError(
                f"there is no {self._place}, or it is refused", "nbdinfo --list tells what there is"
            )
        for kind, data in infos:
            if kind == _INFO and len(data) == 12 and data[:2] == b"\0\0":
                self.size_bytes, self._flags = struct.unpack(">QH", data[2:])
                return
        raise self._strange("does not say how large the export is")

    def _option(self, option: int, data: bytes) -> list[tuple[int, bytes]] | None:
        """The replies before the acknowledgement; None where it was refused."""
        self._socket.sendall(_OPTION_MAGIC + struct.pack(">II", option, len(data)) + data)
        found: list[tuple[int, bytes]] = []
        while True:
            magic, answered, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != _OPTION_REPLY or answered != option or length > OPTION_BYTES_MAX:
                raise self._strange("answers an option with nonsense")
            body = self._receive(length)
            if kind == _ACK:
                return found
            if kind & 1 << 31:
                return None
            found.append((kind, body))

    def _send(self, kind: int, cookie: int, offset: int, length: int, data: bytes = b"") -> None:
        header = struct.pack(">IHHQQI", _REQUEST, 0, kind, cookie, offset, length)
        self._socket.sendall(header + data if len(data) < 65536 else header)
        if len(data) >= 65536:
            self._socket.sendall(data)

    def _start(
        self, kind: int, offset: int, length: int, data: bytes = b"", into: memoryview | None = None
    ) -> _Request:
        request = _Request(kind, offset, into)
        self._cookie += 1
        self._under_way[self._cookie] = request
        with self._failures():
            self._send(kind, self._cookie, offset, length, data)
        return request

    def _change(self, kind: int, offset: int, length: int, data: bytes = b"") -> _Request:
        self.changes += 1
        self._changed_stop = max(self._changed_stop, offset + length)
        return self._start(kind, offset, length, data)

    def _wait(self, request: _Request) -> None:
        with self._failures():
            while not request.done:
                self._take_chunk()
        if request.refused:
            self._refusals.remove((request, request.refused))
            raise self._refused(request.refused)

    def _raise_refusal(self) -> None:
        if self._refusals:
            request, number = self._refusals[0]
            self._refusals.clear()
            raise self._refused(number, f" at {request.offset}")

    def _take_chunk(self) -> None:
        """The next answer, or part of one; a simple reply is its own end."""
        magic = int.from_bytes(self._receive(4), "big")
        if magic == _SIMPLE:
            error, cookie = struct.unpack(">IQ", self._receive(12))
            flags, kind, length = _DONE, 0, 0
        elif magic == _STRUCTURED and self._structured:
            flags, kind, cookie, length = struct.unpack(">HHQI", self._receive(16))
            error = 0
        else:
            raise self._strange("answers with nonsense")
        request = self._under_way.get(cookie)
        if request is None or length > PAYLOAD_BYTES_MAX + 64:
            raise self._strange("answers what was not asked")
        if magic == _SIMPLE:
            if request.into is not None and not error:
                self._receive_into(request.into)
        elif kind & _IS_ERROR:
            error = int.from_bytes(self._receive(length)[:4], "big") or errno.EIO
        else:
            self._take_body(request, kind, length)
        request.refused = request.refused or error
        if flags & _DONE:
            request.done = True
            del self._under_way[cookie]
            if request.refused:
                self._refusals.append((request, request.refused))

    def _take_body(self, request: _Request, kind: int, length: int) -> None:
        into = request.into
        if kind == _OFFSET_DATA and length > 8 and into is not None:
            at = int.from_bytes(self._receive(8), "big") - request.offset
            if at < 0 or at + length - 8 > len(into):
                raise self._strange("sends more than was asked")
            self._receive_into(into[at : at + length - 8])
            return
        body = self._receive(length)  # of a hole: the buffer is zeros already
        if kind != _BLOCK_STATUS or int.from_bytes(body[:4], "big") != self._allocation:
            return
        at = request.offset
        for extent, state in struct.iter_unpack(">II", body[4 : 4 + (length - 4) // 8 * 8]):
            if extent:
                request.extents.append((at, extent, bool(state & _ZERO)))
            at += extent

    def _refused(self, number: int, where: str = "") -> Error:
        if number == errno.ESHUTDOWN:
            return HeldError(f"{self._place} takes nothing: replication is on hold", "")
        return StorageError(
            f"{os.strerror(number)}: {self._place} refused a request{where}",
            "see the server's log",
            number,
        )

    def _ask_status(self, offset: int, length: int) -> None:
        request = self._start(_STATUS, offset, length)
        self._wait(request)
        if not request.extents:
            raise self._strange("does not say what it was asked about")
        self._known, self._changed_stop = request.extents, 0


class _Request:
    """One that is under way. into: where the bytes that were asked for go."""

    __slots__ = ("done", "extents", "into", "kind", "offset", "refused")

    def __init__(self, kind: int, offset: int, into: memoryview | None) -> None:
        self.kind, self.offset, self.into = kind, offset, into
        self.done, self.refused = False, 0
        self.extents: list[tuple[int, int, bool]] = []  # offset, length, zeros


class Reading:
    """Bytes that were asked for."""

    def __init__(self, client: NbdClient, into: bytearray, request: _Request) -> None:
        self._client, self._into, self._request = client, into, request

    @property
    def data(self) -> bytearray:
        """They; waits for them.

        Raises:
            StorageError: The server refused, or went away.
        """
        self._client._wait(self._request)
        return self._into
