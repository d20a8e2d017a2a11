"""The mount: recovered disks exported on this host while their guest is looked into or converted.

Every disk, and every volume on them whose bytes are known, is an export of its own on one
Unix socket, inside a directory of its own (0700). Chains are opened for writing into
their top link only: the interim overlay. `check` connects like any client and reads
both ends of every export. `close` ends it and proves that nobody was left: the hypervisor
must be the only one that has the disks open.

The server lives in this process: when that is killed, its exports are gone with it, and
the disks are as after any crash. The directory that it leaves behind is swept away by the
next mount.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Protocol, Self
from urllib.parse import quote

from . import _native, locks
from .control import listen
from .disk import OpenDisk, open_disk
from .errors import StateError, UsageError, VerificationError
from .nbd_client import NbdClient, Place
from .side_by_side import side_by_side
from .volumes.base import Volume
from .volumes.find import find

CLIENT_SECONDS = 30.0
STOP_MS = 5000
GONE_SECONDS = 2.0
FOLDER_PREFIX = "rollpoint-mount-"
PLACE_BYTES_MAX = 60  # of the directory it is in: a socket's whole path has 107
_PROBE_BYTES = 4096
_SOCKET_NAME = "nbd.sock"


class Opened(Protocol):
    """A disk that somebody else has open: a view, a throw-away overlay."""

    @property
    def reading(self) -> _native.Disk: ...

    @property
    def size_bytes(self) -> int: ...

    def close(self) -> None: ...


class Mount:
    """Exports of disks and of the volumes on them. A context manager.

    Args:
        disks: By name, in the machine's order: the path of a chain, which is opened for
            writing its top link; or a disk that is open, which stays its owner's and must
            stay open until the mount is closed.
        io: Where the files are.
        read_only: Nothing can be written through the exports, and chains are opened so.

    Raises:
        Error: A disk cannot be opened, or read where its tables are. Nothing is left.
    """

    def __init__(
        self,
        disks: Mapping[str, str | Opened],
        io: _native.Io | None = None,
        *,
        read_only: bool = False,
    ) -> None:
        self._own: list[OpenDisk] = []
        self._lent: list[str] = []
        self._natives: dict[str, _native.Disk] = {}  # all exports, by name
        self._server: _native.NbdServer | None = None
        self._names = tuple(disks)
        self._volumes: tuple[Volume, ...] = ()
        self._folder = _Folder()
        try:
            self._open(disks, io, read_only)
            self._volumes = find({name: _Reader(self._natives, name) for name in disks})
            self._serve(read_only)
        except BaseException:
            self._let_go(clean=False)
            raise

    # Nothing native is left in a variable where something may be raised: an exception
    # that somebody keeps would keep it too, and with it the locks of its files.

    def _open(
        self, disks: Mapping[str, str | Opened], io: _native.Io | None, read_only: bool
    ) -> None:
        for name, disk in disks.items():
            if isinstance(disk, str):
                # A fresh overlay has no child: it keeps its content id when it is written.
                self._own.append(open_disk(disk, writable=not read_only, io=io))
                self._natives[name] = self._own[-1].reading
            else:
                self._natives[name] = disk.reading
                self._lent.append(name)

    def _serve(self, read_only: bool) -> None:
        for volume in self._volumes:
            if volume.pieces and volume.name not in self._natives:
                self._natives[volume.name] = _native.slice_disk(
                    [(self._natives[p.disk], p.offset, p.length) for p in volume.pieces]
                )
        self._server = _native.NbdServer()
        for name in self._natives:
            self._server.add(name, self._natives[name], read_only=read_only)
        listener = listen(self.socket_path)
        self._server.listen(listener.detach())
        self._server.start()

    @property
    def socket_path(self) -> str:
        """Where the exports are."""
        return os.path.join(self._folder.path, _SOCKET_NAME)

    @property
    def disks(self) -> tuple[str, ...]:
        """Names of the disks, in the machine's order: each is an export."""
        return self._names

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """What lies on the disks. Each with pieces is an export of its name."""
        return self._volumes

    def uri(self, name: str) -> str:
        """The NBD URI of a disk or a volume.

        Raises:
            UsageError: There is no such export.
        """
        if name not in self._natives:
            raise UsageError(
                f"there is no export {name!r}", f"take one of {', '.join(self._natives)}"
            )
        return f"nbd+unix:///{quote(name, safe='')}?socket={quote(self.socket_path)}"

    def check(self) -> None:
        """Read the first and the last bytes of every disk and volume through its export.

        Raises:
            VerificationError: The export shows another size or other bytes than the disk.
        """
        for name in self._natives:
            disk = _Reader(self._natives, name)
            length = min(_PROBE_BYTES, disk.size_bytes)
            places = sorted({0, disk.size_bytes - length})
            size_bytes, pieces = read_export(self.socket_path, name, length, places)
            wanted = [disk.pread(length, place) for place in places]
            if size_bytes != disk.size_bytes or pieces != wanted:
                raise VerificationError(
                    f"the export {name} does not show what the disk holds",
                    "do not start the machine: report this",
                )

    def close(self) -> None:
        """End the exports, flush the disks, and prove that no client is left.

        May be called twice.

        Raises:
            StateError: A client was connected. The disks are closed all the same.
        """
        if self._server is None:
            return
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
        lent, self._lent = self._lent, []
        own, self._own = self._own, []
        try:
            try:
                for name in lent if clean else ():  # their owners may go on with them
                    self._natives[name].flush()
            finally:
                self._natives.clear()
                written = [disk.links[0] for disk in own if not disk.read_only]
                paths = [file.path for link in written for file in link.files()]
                del written
                side_by_side(lambda disk: disk.close(clean=clean), own)
                locks.settled(paths if clean else ())
        finally:
            self._folder.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


class _Reader(NamedTuple):
    """A disk that is kept open by the mount alone."""

    natives: dict[str, _native.Disk]
    name: str

    @property
    def size_bytes(self) -> int:
        return self.natives[self.name].size_bytes

    def pread(self, length: int, offset: int) -> bytes:
        return self.natives[self.name].pread(length, offset)


class _Folder:
    """A directory for one socket, 0700, locked for as long as its process lives."""

    def __init__(self) -> None:
        place = tempfile.gettempdir()
        if len(os.fsencode(place)) > PLACE_BYTES_MAX:
            place = "/tmp"
        _sweep(place)
        while True:
            path = tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=place)
            handle = _locked(path)
            if handle is not None:
                break  # or a sweep came between the two, and took it
        self.path = path
        self._handle = handle

    def remove(self) -> None:
        """With what is in it. May be called twice."""
        if self._handle >= 0:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.path)
            os.close(self._handle)
            self._handle = -1


def _locked(path: str) -> int | None:
    """The directory, locked; None where it is another's or gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine, there = os.fstat(handle), os.stat(path, follow_symlinks=False)
        if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def _sweep(folder: str) -> None:
    """Remove what mounts of this user left behind whose process was killed."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if entry.name.startswith(FOLDER_PREFIX)]
    for entry in found:
        try:
            known = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if known.st_uid != os.geteuid() or stat.S_IMODE(known.st_mode) != 0o700:
            continue
        handle = _locked(entry.path)
        if handle is not None:
            shutil.rmtree(entry.path, ignore_errors=True)
            os.close(handle)


def read_export(
    socket_path: str, name: str, length: int, places: list[int]
) -> tuple[int, list[bytes]]:
    """Size of an NBD export, and length bytes at each place, read as a client would.

    Raises:
        Error: As NbdClient.
    """
    with NbdClient(Place(name, socket_path), CLIENT_SECONDS) as client:
        return client.size_bytes, [client.pread(length, place) for place in places]
