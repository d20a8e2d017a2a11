"""The mount: recovered disks exported on this host while their guest is converted.

The chains are opened for writing, into the interim overlays only, and served on a Unix
socket inside a directory of its own (0700). `check` connects like any client and reads
both ends of every disk through the export. `close` ends it and proves that nobody was
left: the hypervisor must be the only one that has the disks open.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Mapping

from . import _native
from .control import listen
from .disk import OpenDisk, open_disk
from .errors import StateError, StorageError, VerificationError
from .side_by_side import side_by_side

CLIENT_SECONDS = 30.0
STOP_MS = 5000
GONE_SECONDS = 2.0
_PROBE_BYTES = 4096
_SOCKET_NAME = "nbd.sock"


class Mount:
    """Exports of a replica's interim overlays, named like the disks.

    Args:
        interims: Disk name and path of its overlay.
        io: Where the files are.
    """

    def __init__(self, interims: Mapping[str, str], io: _native.Io | None = None) -> None:
        self._disks: dict[str, OpenDisk] = {}
        self._server: _native.NbdServer | None = None
        self._folder = tempfile.mkdtemp(prefix="rollpoint-mount-")  # mode 0700
        try:
            server = _native.NbdServer()
            for name, path in interims.items():
                self._disks[name] = open_disk(path, writable=True, io=io)
                # A fresh overlay has no child: it keeps its content id when it is written.
                server.add(name, self._disks[name].reading)
            listener = listen(self.socket_path)
            server.listen(listener.detach())
            server.start()
            self._server = server
        except BaseException:
            self._let_go(clean=False)
            raise

    @property
    def socket_path(self) -> str:
        """Where the exports are."""
        return os.path.join(self._folder, _SOCKET_NAME)

    def check(self) -> None:
        """Read the first and the last bytes of every disk through its export.

        Raises:
            VerificationError: The export shows another size or other bytes than the disk.
        """
        for name, disk in self._disks.items():
            length = min(_PROBE_BYTES, disk.size_bytes)
            places = sorted({0, disk.size_bytes - length})
            size_bytes, pieces = read_export(self.socket_path, name, length, places)
            wanted = [disk.pread(length, place) for place in places]
            if size_bytes != disk.size_bytes or pieces != wanted:
                raise VerificationError(
                    f"the export of {disk.path} does not show what the disk holds",
                    "do not start the machine: report this",
                )

    def close(self) -> None:
        """End the exports, flush the overlays, and prove that no client is left.

        Raises:
            StateError: A client was connected. The overlays are closed all the same.
        """
        left = self._clients_left()
        self._let_go(clean=True)
        if left:
            raise StateError(
                f"{left} client(s) had recovered disks open when their export ended",
                "end what works on the disks, then try again",
            )

    def _clients_left(self) -> int:
        """Clients that are connected; one that has hung up counts until the server saw it."""
        assert self._server is not None
        deadline = time.monotonic() + GONE_SECONDS
        while left := self._server.stats()["connections_open"]:
            if time.monotonic() >= deadline:
                break
            time.sleep(0.001)
        return left

    def abandon(self) -> None:
        """End the exports after a failure. May be called after close()."""
        self._let_go(clean=False)

    def _let_go(self, clean: bool) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop(STOP_MS)
        del server
        try:
            side_by_side(lambda disk: disk.close(clean=clean), list(self._disks.values()))
        finally:
            self._disks = {}
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._folder)


def read_export(
    socket_path: str, name: str, length: int, places: list[int]
) -> tuple[int, list[bytes]]:
    """Size of an NBD export, and length bytes at each place, read as a client would.

    Source: the NBD protocol, doc/proto.md of NetworkBlockDevice/nbd: fixed newstyle
    negotiation with NBD_OPT_GO, simple replies.

    Raises:
        StorageError: The server refused, or answered with something else.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(CLIENT_SECONDS)
        client.connect(socket_path)
        size_bytes = _negotiate(client, name)
        pieces = []
        for cookie, place in enumerate(places):
            client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, cookie, place, length))
            magic, error, echoed = struct.unpack(">IIQ", _receive(client, 16))
            if magic != 0x67446698 or error or echoed != cookie:
                raise StorageError(
                    f"reading export {name} at {place}: the server answered error {error}",
                    os_errno=error,
                )
            pieces.append(_receive(client, length))
        client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))  # disconnect
        client.shutdown(socket.SHUT_WR)
        client.recv(1)  # the server has let go of us when it closes
    return size_bytes, pieces


def _negotiate(client: socket.socket, name: str) -> int:
    greeting, magic, _ = struct.unpack(">8s8sH", _receive(client, 18))
    if greeting != b"NBDMAGIC" or magic != b"IHAVEOPT":
        raise StorageError("the export's server does not speak NBD")
    encoded = name.encode()
    option = struct.pack(">I", len(encoded)) + encoded + struct.pack(">H", 0)
    client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 7, len(option)) + option)
    size_bytes = -1
    while True:
        header = struct.unpack(">QIII", _receive(client, 20))
        kind, body = header[2], _receive(client, header[3])
        if kind == 1:
            return size_bytes
        if kind == 3 and body[:2] == b"\0\0":
            size_bytes = struct.unpack(">Q", body[2:10])[0]
        elif kind != 3:
            raise StorageError(f"the server refused export {name}: reply {kind:#x}")


def _receive(client: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = client.recv(length - len(data))
        if not piece:
            raise StorageError("the export's server hung up")
        data += piece
    return data
