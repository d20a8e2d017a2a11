"""Stand-ins for disks: what an appliance is launched with before there is anything to open.

Disks cannot be plugged into a running appliance. So it is launched on NBD exports of
this process that have the right sizes and read as zeros, long before a disaster if that
is wanted. Attaching hands each of them a connection to the real export, ready for
requests: from the next request on, bytes go to and fro as they are, both sides having
agreed on the same things (simple replies, flags, no metadata contexts).

Source: the NBD protocol, doc/proto.md of NetworkBlockDevice/nbd: fixed newstyle with GO
and EXPORT_NAME, simple replies.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

# What QEMU may use from the start, so the real exports have to have it:
# flush, FUA, trim, write zeroes.
FLAGS = 0x001 | 0x004 | 0x008 | 0x020 | 0x040
READ_ONLY = 0x002
CONNECT_SECONDS = 30.0
_OPTION = b"IHAVEOPT"
_REPLY = struct.Struct(">QIII")
_REPLY_MAGIC = 0x0003E889045565A9
_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE = struct.Struct(">IIQ")
_EXPORT_NAME, _ABORT, _GO = 1, 2, 7
_ACK, _INFO, _UNSUPPORTED, _UNKNOWN = 1, 3, 0x80000001, 0x80000006
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_OPTION_BYTES_MAX = 1 << 16
_PAYLOAD_BYTES_MAX = 32 << 20
_PUMP_BYTES = 256 << 10


class RefusedError(Exception):
    """The other side did not keep to the protocol, or has no such export."""


class Export(NamedTuple):
    """An export that is ready for requests, and what its server said of it."""

    connection: socket.socket
    size_bytes: int
    flags: int


def enter(socket_path: str, name: str) -> Export:
    """Connect to an export, up to where requests begin.

    Raises:
        RefusedError, OSError: There is no such server or export.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(CONNECT_SECONDS)
        client.connect(socket_path)
        size_bytes, flags = _ask(client, name)
        client.settimeout(None)
    except BaseException:
        client.close()
        raise
    return Export(client, size_bytes, flags)


def leave(connection: socket.socket) -> None:
    """Say goodbye on a connection without requests in flight, and close it."""
    with contextlib.suppress(OSError), connection:
        connection.settimeout(CONNECT_SECONDS)
        connection.sendall(_REQUEST.pack(0x25609513, 0, _DISCONNECT, 0, 0, 0))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # the server has let go when it closes


def _ask(client: socket.socket, name: str) -> tuple[int, int]:
    greeting, magic, _ = struct.unpack(">8s8sH", _exactly(client, 18))
    if greeting != b"NBDMAGIC" or magic != _OPTION:
        raise RefusedError("the server does not speak NBD")
    encoded = name.encode()
    body = struct.pack(">I", len(encoded)) + encoded + struct.pack(">H", 0)
    client.sendall(struct.pack(">I8sII", 3, _OPTION, _GO, len(body)) + body)
    told = None
    while True:
        magic, option, kind, length = _REPLY.unpack(_exactly(client, _REPLY.size))
        if magic != _REPLY_MAGIC or option != _GO or length > _OPTION_BYTES_MAX:
            raise RefusedError("the server answers something else than it was asked")
        body = _exactly(client, length)
        if kind == _ACK and told is not None:
            return told
        if kind == _INFO and len(body) == 12 and body[:2] == b"\0\0":
            size_bytes, flags = struct.unpack(">QH", body[2:])
            told = size_bytes, flags
        elif kind != _INFO:
            raise RefusedError(f"the server refused export {name}: {kind:#x}")


class StandIns:
    """An NBD server with one export for each size, named 0, 1, 2 ..."""

    def __init__(self, socket_path: str, sizes: Sequence[int]) -> None:
        self._sizes = list(sizes)
        self._real: dict[int, socket.socket] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(socket_path)
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def attach(self, connections: Sequence[socket.socket]) -> None:
        """From now on these answer, in the order of the sizes."""
        assert len(connections) == len(self._sizes)
        self._real = dict(enumerate(connections))

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(RefusedError, OSError):
            number = self._greet(client)
            if number is not None:
                self._answer(client, number)

    def _greet(self, client: socket.socket) -> int | None:
        """Negotiate; the export that was entered. QEMU asks for more than there is."""
        client.sendall(b"NBDMAGIC" + _OPTION + struct.pack(">H", 3))
        no_zeroes = struct.unpack(">I", _exactly(client, 4))[0] & 2
        while True:
            magic, option, length = struct.unpack(">8sII", _exactly(client, 16))
            if magic != _OPTION or length > _OPTION_BYTES_MAX:
                raise RefusedError("a client that does not speak NBD")
            body = _exactly(client, length)
            if option == _EXPORT_NAME:
                number = self._number(body)
                if number is None:
                    return None
                pad = b"" if no_zeroes else bytes(124)
                client.sendall(struct.pack(">QH", self._sizes[number], FLAGS) + pad)
                return number
            if option == _ABORT:
                _reply(client, option, _ACK)
                return None
            if option != _GO:
                _reply(client, option, _UNSUPPORTED)
                continue
            (name_length,) = struct.unpack(">I", body[:4].rjust(4, b"\0"))
            number = self._number(body[4 : 4 + name_length])
            if number is None:
                _reply(client, option, _UNKNOWN)
                continue
            told = struct.pack(">HQH", 0, self._sizes[number], FLAGS)
            _reply(client, option, _INFO, told)
            _reply(client, option, _ACK)
            return number

    def _number(self, name: bytes) -> int | None:
        for number in range(len(self._sizes)):
            if name == str(number).encode():
                return number
        return None

    def _answer(self, client: socket.socket, number: int) -> None:
        """Zeros, until a request finds a real export."""
        while True:
            head = _exactly(client, _REQUEST.size)
            real = self._real.pop(number, None)
            if real is not None:
                return _join(client, real, head)
            magic, _, kind, cookie, _, length = _REQUEST.unpack(head)
            if magic != 0x25609513 or (kind <= _WRITE and length > _PAYLOAD_BYTES_MAX):
                raise RefusedError("a request that is none")
            if kind == _DISCONNECT:
                return None
            if kind == _WRITE:
                _exactly(client, length)
            refused = 0 if kind in (_READ, _FLUSH) else errno.EPERM
            client.sendall(_SIMPLE.pack(0x67446698, refused, cookie))
            if kind == _READ:
                client.sendall(bytes(length))


def _join(client: socket.socket, real: socket.socket, head: bytes) -> None:
    """Bytes to and fro, from a request whose head was read on; until both have ended."""
    with real:
        back = threading.Thread(target=_pump, args=(real, client), daemon=True)
        back.start()
        with contextlib.suppress(OSError):
            real.sendall(head)
        _pump(client, real)
        back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    buffer = memoryview(bytearray(_PUMP_BYTES))
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            target.sendall(buffer[:count])
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _reply(client: socket.socket, option: int, kind: int, body: bytes = b"") -> None:
    client.sendall(_REPLY.pack(_REPLY_MAGIC, option, kind, len(body)) + body)


def _exactly(of: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = of.recv(min(length - len(data), 1 << 20))
        if not piece:
            raise RefusedError("it has hung up")
        data += piece
    return bytes(data)
