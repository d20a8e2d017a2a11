"""What the tests of the NBD server connect with: a raw client, and Debian's libnbd.

The raw client sends whatever bytes a test wants. It knows the protocol only as far as it
must to find the end of a reply, so that it shares no mistakes with the server.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Any

from rollpoint import _native
from rollpoint._native import Chain, Image, Io

MAGIC = b"NBDMAGICIHAVEOPT"
OPTION_REPLY = 0x0003E889045565A9
SIMPLE, STRUCTURED = 0x67446698, 0x668E33EF

EXPORT_NAME, ABORT, LIST, INFO, GO = 1, 2, 3, 6, 7
STRUCTURED_REPLY, LIST_META, SET_META = 8, 9, 10
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
UNSUP, POLICY, INVALID, UNKNOWN, TOO_BIG = (0x80000000 + n for n in (1, 2, 3, 6, 9))

READ, WRITE, DISC, FLUSH, TRIM, ZEROES, STATUS = 0, 1, 2, 3, 4, 6, 7
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 75, 95, 108


def flat_disk(folder: Path, size_bytes: int, name: str = "disk.img") -> Chain:
    """A writable disk of one flat file."""
    flags = _native.OPEN_WRITE | _native.OPEN_CREATE
    file = Io.posix().open_dir(str(folder)).open(name, flags)
    file.truncate(size_bytes)
    return Chain([Image([(_native.EXTENT_FLAT, size_bytes // 512, file, 0)], True)])


class Raw:
    """One connection. Every receive has a generous limit, so that no test hangs."""

    def __init__(self, path: Path, *, flags: int | None = 3) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        self.greeting = self.receive(18)
        if flags is not None:
            self.send(struct.pack(">I", flags))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            if not piece:
                raise ConnectionError(f"closed after {bytes(data)!r}")
            data += piece
        return bytes(data)

    def closed(self) -> bool:
        """The server closes the connection; whatever it still sends is dropped."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    # ---- options ----

    def send_option(self, option: int, data: bytes = b"", length: int | None = None) -> None:
        length = len(data) if length is None else length
        self.send(b"IHAVEOPT" + struct.pack(">II", option, length) + data)

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """All replies to an option, as (type, data)."""
        self.send_option(option, data)
        replies = []
        while True:
            magic, answered, kind, length = struct.unpack(">QIII", self.receive(20))
            assert (magic, answered) == (OPTION_REPLY, option)
            replies.append((kind, self.receive(length)))
            if kind == ACK or kind >= 0x80000000:
                return replies

    def outcome(self, option: int, data: bytes = b"") -> int:
        return self.option(option, data)[-1][0]

    def enter(self, name: str = "", *, structured: bool = False, status: bool = False) -> Raw:
        """Into transmission."""
        if structured or status:
            assert self.outcome(STRUCTURED_REPLY) == ACK
        if status:
            assert self.outcome(SET_META, meta(name, "base:allocation")) == ACK
        assert self.outcome(GO, go(name)) == ACK
        return self

    # ---- commands ----

    def request(
        self,
        kind: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        cookie: int = 0x1122334455667788,
        data: bytes = b"",
    ) -> None:
        self.send(request(kind, offset, length, flags=flags, cookie=cookie) + data)

    def simple(self, cookie: int = 0x1122334455667788) -> int:
        """Error of a simple reply without data."""
        magic, error, answered = struct.unpack(">IIQ", self.receive(16))
        assert (magic, answered) == (SIMPLE, cookie)
        return int(error)

    def error(self, kind: int, offset: int = 0, length: int = 0, **more: Any) -> int:
        """Error of a command that is answered by a simple reply."""
        self.request(kind, offset, length, **more)
        return self.simple(more.get("cookie", 0x1122334455667788))

    def chunk(self, cookie: int = 0x1122334455667788) -> tuple[int, int, bytes]:
        """(flags, type, payload) of a structured reply chunk."""
        magic, flags, kind, answered, length = struct.unpack(">IHHQI", self.receive(20))
        assert (magic, answered) == (STRUCTURED, cookie)
        return flags, kind, self.receive(length)

    def chunk_error(self) -> int:
        """Error of a structured reply that is one error chunk."""
        flags, kind, payload = self.chunk()
        assert (flags, kind) == (1, 0x8001)
        error, text = struct.unpack(">IH", payload[:6])
        assert len(payload) == 6 + text
        return int(error)

    def read(self, offset: int, length: int) -> bytes:
        """With simple replies."""
        self.request(READ, offset, length)
        assert self.simple() == 0
        return self.receive(length)

    def write(self, offset: int, data: bytes, flags: int = 0) -> int:
        return self.error(WRITE, offset, len(data), flags=flags, data=data)


def request(
    kind: int, offset: int, length: int, *, flags: int = 0, cookie: int = 0x1122334455667788
) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">I", len(data)) + data


def go(name: str | bytes = "", *wanted: int) -> bytes:
    return text(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def meta(name: str | bytes, *queries: str | bytes) -> bytes:
    return text(name) + struct.pack(">I", len(queries)) + b"".join(map(text, queries))
