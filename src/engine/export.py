"""Offer disks over NBD, on a Unix socket or on loopback TCP.

The server itself is native and runs on threads of its own. This module makes
the sockets: who may connect is decided here, by the mode of the Unix socket
(0600) and by refusing every TCP address that is not loopback. Other addresses
need TLS, with nbdkit in front: docs/nbd.md.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket as sockets
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from ._native import Disk, Gate, NbdServer
from .errors import ExistsError, LockedError, NotFoundError, StorageError, UsageError, system_error

SOCKET_PATH_BYTES_MAX = 107  # sun_path without its NUL
_BACKLOG = 1024
_PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class Export:
    """One disk on offer.

    Attributes:
        name: What clients ask for; "" is the default export. At most 255 bytes.
        disk: Stays open as long as the server runs.
        gate: What its writers pass through, if anything may hold or mark it.
        read_only: Refuse writes even where the disk would take them.
    """

    name: str
    disk: Disk
    gate: Gate | None = None
    read_only: bool = False


class Server:
    """A running NBD server; made by serve(). Leaving its context stops it."""

    def __init__(
        self, native: NbdServer, names: Sequence[str], place: str, made: _SocketFile | None
    ) -> None:
        self._native: NbdServer | None = native
        self._names = tuple(names)
        self._place = place
        self._made = made
        self._last_stats: dict[str, int] = {}

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        if getattr(self, "_native", None) is not None:
            warnings.warn(f"{self!r} was not stopped", ResourceWarning, stacklevel=1)
            self.stop(0)

    def __repr__(self) -> str:
        return f"<Server of {len(self._names)} NBD exports at {self.uri}>"

    @property
    def uri(self) -> str:
        """NBD URI of the first export."""
        return self.uri_of(self._names[0])

    def uri_of(self, name: str) -> str:
        """NBD URI of an export.

        Raises:
            NotFoundError: There is no such export here.
        """
        if name not in self._names:
            raise NotFoundError(
                f"there is no export {name!r}", f"there are {', '.join(map(repr, self._names))}"
            )
        return self._place.replace("{name}", quote(name, safe=""))

    def stats(self) -> dict[str, int]:
        """Counters since the start, by the names in nbd.h. After stop: the last ones."""
        return self._last_stats if self._native is None else self._native.stats()

    def stop(self, deadline_seconds: float = 5.0) -> None:
        """Remove the socket, let running requests end, close all connections.

        Does not flush the disks. Asked twice it does nothing more.

        Args:
            deadline_seconds: How long clients get to take their replies.
        """
        native, self._native = self._native, None
        if native is None:
            return
        if self._made is not None:
            self._made.remove()
        native.stop(round(deadline_seconds * 1000))
        self._last_stats = native.stats()


@dataclass(frozen=True)
class _SocketFile:
    """A socket's place, and which inode we made there."""

    path: Path
    device: int
    inode: int

    def remove(self) -> None:
        """Remove it, unless another server has put its own there meanwhile."""
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                os.unlink(self.path)
        except FileNotFoundError:
            pass


def serve(
    exports: Sequence[Export],
    *,
    socket: Path | None = None,
    tcp: tuple[str, int] | None = None,
    **limits: int,
) -> Server:
    """Start to serve exports, and return at once.

    Args:
        exports: At least one; names differ.
        socket: Path of a Unix socket, made with mode 0600. A socket there that
            nobody serves any more is replaced; nothing else is.
        tcp: Loopback host and port; port 0 takes a free one. Exactly one of
            socket and tcp is given.
        limits: By their names in ``struct rp_nbd_limits``, see docs/nbd.md.

    Raises:
        UsageError: No exports, two of one name, an address that is not
            loopback, a path that is too long.
        LockedError: Another server is alive at that socket or port.
        ExistsError: Something that is not a socket is at that path.
        StorageError: The system refused the socket.
    """
    if not exports:
        raise UsageError("there is nothing to export", "name at least one disk")
    if (socket is None) == (tcp is None):
        raise UsageError("an NBD server needs one place", "give a socket path, or a TCP address")
    for export in exports:
        if any("\ud800" <= letter <= "\udfff" for letter in export.name):
            raise UsageError(
                f"the export name {export.name!r} is not text in UTF-8", "choose another one"
            )
    native = NbdServer(**limits)
    for export in exports:
        native.add(export.name, export.disk, gate=export.gate, read_only=export.read_only)
    made = None
    if socket is not None:
        listener, made = _listen_unix(Path(socket).absolute())
        place = f"nbd+unix:///{{name}}?socket={quote(str(made.path))}"
    else:
        assert tcp is not None
        listener, place = _listen_tcp(*tcp)
    try:
        native.listen(listener.fileno())
        listener.detach()
        native.start()
    except BaseException:
        listener.close()
        if made is not None:
            made.remove()
        raise
    return Server(native, [export.name for export in exports], place, made)


def _listen_unix(path: Path) -> tuple[sockets.socket, _SocketFile]:
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise UsageError(
            f"the socket path {path} has more than {SOCKET_PATH_BYTES_MAX} bytes",
            "choose a shorter one; the kernel takes no longer",
        )
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        with _directory_lock(path.parent):
            _clear_place(path)
            # Linux makes the file with the socket's own mode, so there is no
            # moment at which others could connect.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(os.fspath(path))
            found = os.lstat(path)
            listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _refused(f"cannot make the socket {path}", error) from error
    except BaseException:
        listener.close()
        raise
    return listener, _SocketFile(path, found.st_dev, found.st_ino)


@contextmanager
def _directory_lock(folder: Path) -> Iterator[None]:
    """Two servers that start at once must not remove each other's fresh socket."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no directory {folder}", "make it, or check the path"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _clear_place(path: Path) -> None:
    """Make sure nothing is at path: remove a socket that nobody listens to."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ExistsError(
            f"{path} exists and is not a socket", "choose another path, or remove it first"
        )
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ETIMEDOUT, errno.EACCES, errno.EPROTOTYPE):
                raise
    raise LockedError(
        f"another server is alive at {path}", "stop that one, or choose another path"
    )


def _listen_tcp(host: str, port: int) -> tuple[sockets.socket, str]:
    address = _loopback(host)
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is not a port", "choose 1 to 65535, or 0 for a free one")
    family = sockets.AF_INET6 if address.version == 6 else sockets.AF_INET
    listener = sockets.socket(family, sockets.SOCK_STREAM)
    try:
        listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _refused(f"cannot listen at {host} port {port}", error) from error
    shown = f"[{address}]" if address.version == 6 else str(address)
    return listener, f"nbd://{shown}:{listener.getsockname()[1]}/{{name}}"


def _loopback(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address of host, if nobody outside this machine can reach it."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback or getattr(address, "ipv4_mapped", None):
        raise UsageError(
            f"{host} is not a loopback address, and NBD without TLS is served to no other",
            "serve a Unix socket and put nbdkit with TLS in front of it: docs/nbd.md says how",
        )
    return address


def _refused(doing: str, error: OSError) -> Exception:
    """An error of the socket calls as one of ours; ours pass through as they are."""
    if isinstance(error, StorageError):
        return error
    reason = f"{doing}: {error.strerror}"
    if error.errno == errno.EADDRINUSE:
        return LockedError(reason, "stop the other server, or choose another place")
    return system_error(doing, error.errno or 0)
