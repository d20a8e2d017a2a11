"""A small NBD client: one request at a time, over a Unix socket or TCP, without TLS.

Fixed newstyle with GO; structured replies and base:allocation where the server has
them, so that holes are not read. It says goodbye when it is closed.

Source: the NBD protocol, doc/proto.md of NetworkBlockDevice/nbd.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from .closing import Closing
from .control import short_path
from .errors import Error, FormatError, HeldError, NotFoundError, StorageError, UsageError

PORT = 10809
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


class Place(NamedTuple):
    """Where an export is. socket_path: of a Unix socket; else host and port."""

    export: str
    socket_path: str | None = None
    host: str = ""
    port: int = PORT

    def __str__(self) -> str:
        where = self.socket_path or f"{self.host}:{self.port}"
        return f"export {self.export!r} at {where}"


def is_uri(text: str) -> bool:
    """Whether the text names an NBD export, and not a file."""
    return text.lower().startswith(("nbd://", "nbd+unix://", "nbds://", "nbds+unix://"))


def parse_uri(text: str) -> Place:
    """The place that nbd+unix:///EXPORT?socket=PATH or nbd://HOST[:PORT]/EXPORT names.

    Raises:
        UsageError: It is neither; or it wants TLS, which this client does not have.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or PORT
    except ValueError as error:
        raise UsageError(f"{text!r} is not an NBD URI: {error}", _URI_HINT) from None
    export = unquote(parts.path.removeprefix("/"))
    if parts.scheme == "nbd+unix":
        paths = parse_qs(parts.query).get("socket", [])
        if len(paths) == 1 and not parts.netloc:
            return Place(export, paths[0])
    elif parts.scheme == "nbd" and parts.hostname:
        return Place(export, None, parts.hostname, port)
    elif parts.scheme.startswith("nbds"):
        raise UsageError(f"{text!r} wants TLS", "put nbdkit or stunnel in between")
    raise UsageError(f"{text!r} is not an NBD URI", _URI_HINT)


_URI_HINT = "write nbd+unix:///EXPORT?socket=PATH or nbd://HOST[:PORT]/EXPORT"


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
        self._known: list[tuple[int, int, bool]] = []  # offset, length, zeros; newest answer
        self._allocation: int | None = None  # id of the context
        self._structured = False
        self._flags = 0
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
            self._read(memoryview(made)[at : at + part], offset + at)
        return bytes(made)

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write data at offset; durable after flush."""
        for at in range(0, len(data), PAYLOAD_BYTES_MAX):
            part = data[at : at + PAYLOAD_BYTES_MAX]
            self.changes += 1
            with self._failures():
                self._send(_WRITE, offset + at, len(part), part)
                self._finish()

    def zero(self, length: int, offset: int) -> None:
        """Make length bytes at offset read as zeros."""
        if not self._flags & _SEND_ZEROES:
            for at in range(0, length, PAYLOAD_BYTES_MAX):
                self.pwrite(bytes(min(PAYLOAD_BYTES_MAX, length - at)), offset + at)
            return
        for at in range(0, length, STATUS_BYTES_MAX):
            self.changes += 1
            with self._failures():
                self._send(_ZEROES, offset + at, min(STATUS_BYTES_MAX, length - at))
                self._finish()

    def flush(self) -> None:
        """Return when everything written before is durable."""
        with self._failures():
            self._send(_FLUSH, 0, 0)
            self._finish()

    def run(self, offset: int, length: int) -> tuple[int, bool]:
        """How many bytes from offset on, at most length, have one answer; whether it is zeros."""
        for start, known, zeros in self._known:
            if start <= offset < start + known:
                return min(length, start + known - offset), zeros
        if self._allocation is None:
            return length, False
        with self._failures():
            self._ask_status(offset, min(length, STATUS_BYTES_MAX))
        start, known, zeros = self._known[0]
        return min(length, known), zeros

    def close(self) -> None:
        """Say goodbye and let go. May be called twice."""
        with contextlib.suppress(OSError):
            self._send(_DISC, 0, 0)
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

    def _send(self, kind: int, offset: int, length: int, data: bytes = b"") -> None:
        self._cookie += 1
        header = struct.pack(">IHHQQI", _REQUEST, 0, kind, self._cookie, offset, length)
        self._socket.sendall(header + data if len(data) < 65536 else header)
        if len(data) >= 65536:
            self._socket.sendall(data)

    def _reply(self) -> tuple[int, int, int]:
        """Flags, type and length of the next chunk; a simple reply is its own end."""
        magic = int.from_bytes(self._receive(4), "big")
        if magic == _SIMPLE:
            error, cookie = struct.unpack(">IQ", self._receive(12))
            flags, kind, length = _DONE, 0, 0
            if cookie == self._cookie and error:
                raise self._refused(error)
        elif magic == _STRUCTURED and self._structured:
            flags, kind, cookie, length = struct.unpack(">HHQI", self._receive(16))
        else:
            raise self._strange("answers with nonsense")
        if cookie != self._cookie or length > PAYLOAD_BYTES_MAX + 64:
            raise self._strange("answers what was not asked")
        if kind & _IS_ERROR:
            body = self._receive(length)
            raise self._refused(int.from_bytes(body[:4], "big"))
        return flags, kind, length

    def _refused(self, number: int) -> Error:
        if number == errno.ESHUTDOWN:
            return HeldError(f"{self._place} takes nothing: replication is on hold", "")
        return StorageError(
            f"{os.strerror(number)}: {self._place} refused a request", "see the server's log",
            number,
        )  # fmt: skip

    def _finish(self) -> None:
        """The reply of a command that returns nothing."""
        flags, _, length = self._reply()
        while length or not flags & _DONE:
            self._receive(length)
            flags, _, length = self._reply()

    def _read(self, into: memoryview, offset: int) -> None:
        with self._failures():
            self._send(_READ, offset, len(into))
            if not self._structured:
                self._reply()
                self._receive_into(into)
                return
            flags = 0
            while not flags & _DONE:
                flags, kind, length = self._reply()
                if kind == _OFFSET_DATA and length > 8:
                    at = int.from_bytes(self._receive(8), "big") - offset
                    if at < 0 or at + length - 8 > len(into):
                        raise self._strange("sends more than was asked")
                    self._receive_into(into[at : at + length - 8])
                elif kind == _OFFSET_HOLE and length == 12:
                    self._receive(12)  # the buffer is zeros already
                else:
                    self._receive(length)

    def _ask_status(self, offset: int, length: int) -> None:
        self._send(_STATUS, offset, length)
        found: list[tuple[int, int, bool]] = []
        flags = 0
        while not flags & _DONE:
            flags, kind, size = self._reply()
            body = self._receive(size)
            if kind != _BLOCK_STATUS or int.from_bytes(body[:4], "big") != self._allocation:
                continue
            at = offset
            for extent, state in struct.iter_unpack(">II", body[4 : 4 + (size - 4) // 8 * 8]):
                if extent:
                    found.append((at, extent, bool(state & _ZERO)))
                at += extent
        if not found:
            raise self._strange("does not say what it was asked about")
        self._known = found
