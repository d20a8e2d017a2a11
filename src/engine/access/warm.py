"""An appliance launched ahead of a disaster, which then has only its disks to attach.

Whoever keeps a replica ready launches it on stand-ins of the disks' sizes. It listens on
a socket, and the first who connects has it from then on: it serves one guest, once, and
outlives its keeper. Until it is taken it ends when its keeper does, killed or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import stat
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Literal

from ..errors import Error, GuestError
from .appliance_process import LAUNCH_SECONDS, MODULES, Process, launching

State = Literal["launching", "ready", "gone"]
CONNECT_SECONDS = 5.0
ENDING_SECONDS = 5.0
AGAIN_SECONDS = 60.0  # between one that was taken, or could not be launched, and the next
POLL_SECONDS = 0.5
JOIN_SECONDS = 15.0  # one that is just being built dies with this process


def place(replica: str) -> str:
    """Where a warm appliance of a replica on this host listens.

    In a directory of this user's on this host: the replica itself may lie on a datastore
    that several hosts share.

    Raises:
        GuestError: Somebody else owns that directory.
    """
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if not folder or not os.path.isdir(folder):
        folder = f"/tmp/rollpoint-{os.geteuid()}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    wrong = found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077
    if not stat.S_ISDIR(found.st_mode) or wrong:
        raise GuestError(f"{folder} is not this user's alone", "remove it, or have it removed")
    name = hashlib.sha256(os.fsencode(os.path.realpath(replica))).hexdigest()[:24]
    return os.path.join(folder, f"rollpoint-{name}.sock")


def connect(path: str) -> socket.socket | None:
    """A connection to the warm appliance that listens there; None without one of this user's."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(CONNECT_SECONDS)
        with _short(path) as short:
            connection.connect(short)
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] == os.geteuid():
            return connection
    except OSError:
        pass
    connection.close()
    return None


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """A name of at most 107 bytes for a socket: its directory by descriptor."""
    folder, name = os.path.split(path)
    handle = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{name}"
    finally:
        os.close(handle)


class Warm:
    """An appliance that is launched now, for whoever connects to its socket.

    Args:
        path: Of the socket: place() tells one. What is there is replaced.
        sizes: Of the disks, in bytes, in the machine's order. It serves no others.

    Attributes:
        launch_seconds: None while it is being launched.
        problem: Why it could not be.

    Raises:
        ToolMissingError, GuestError: It cannot be started.
    """

    def __init__(self, path: str, sizes: Sequence[int]) -> None:
        self.path = path
        self.launch_seconds: float | None = None
        self.problem = ""
        self._closed = False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, _short(path) as short:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listener.bind(short)
            os.chmod(path, 0o600)
            listener.listen()
            self._process = Process(detached=True)
            request = launching(sizes, MODULES, False)
            try:
                self._process.send("launch", request, b"", [listener.fileno()])
            except BaseException:
                self._process.kill()
                raise

    def state(self, wait_seconds: float = 0.0) -> State:
        """What has become of it. gone: it was taken, or it failed (see problem)."""
        if self._closed:
            return "gone"
        poll = select.poll()
        poll.register(self._process.connection, select.POLLIN)
        while poll.poll(wait_seconds * 1000):
            if self.launch_seconds is not None:
                self._let_go()  # its client hung up on us, as it does when it is taken
                return "gone"
            try:
                said, _ = self._process.answer("launch", LAUNCH_SECONDS)
                self.launch_seconds = float(said["seconds"])
            except Error as error:
                self.problem = error.message
                self._let_go()
                return "gone"
            wait_seconds = 0.0
        return "launching" if self.launch_seconds is None else "ready"

    def close(self) -> None:
        """Let go of it. One that was not taken ends; one that was goes on for its client."""
        if self.state() != "gone":
            self._closed = True
            self._process.kill(ENDING_SECONDS)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)

    def _let_go(self) -> None:
        self._closed = True
        self._process.kill(0.0)


class Keeper:
    """Keeps a warm appliance at a place, on a thread of its own: a new one for each taken.

    Args:
        path: place() of the replica.
        sizes: Of its disks, in bytes, in the machine's order.
    """

    def __init__(self, path: str, sizes: Sequence[int]) -> None:
        self._path, self._sizes = path, tuple(sizes)
        self._ending = threading.Event()
        self._problem = ""
        self._thread = threading.Thread(target=self._keep, name="warm", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why there is none just now; "" when nothing is known against it."""
        return self._problem

    def close(self) -> None:
        """End it, unless it was taken."""
        self._ending.set()
        self._thread.join(JOIN_SECONDS)

    def _keep(self) -> None:
        while True:
            try:
                warm = Warm(self._path, self._sizes)
            except (Error, OSError) as error:
                self._problem = str(error)
            else:
                while not self._ending.is_set() and warm.state() != "gone":
                    self._ending.wait(POLL_SECONDS)
                self._problem = warm.problem
                warm.close()
            if self._ending.wait(AGAIN_SECONDS):
                return
