"""A cage: a program that reads what a guest wrote, with nothing in reach that is of any worth.

bubblewrap gives it namespaces of its own (mounts, processes, network, IPC, host name) and
a file system of /usr (read-only), a small /run and /tmp, and what it is given by name. It
talks over standard input and output only (worker.py has the messages); it ends when its
standard input hangs up, and everything in it with it, also after a kill -9 of ours.

It has no time to waste: a call that takes longer than it may ends the cage.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from ..errors import GuestError, ToolMissingError
from .base import Lacking

CALL_SECONDS = 60.0
HEADER_MAX = 64 << 20
DATA_MAX = (256 << 20) + 4096
MEMORY_BYTES = 4 << 30  # of address space, for each process
RUN_BYTES = 64 << 20  # of /run and of /tmp
PACKAGES = {
    "bwrap": "bubblewrap",
    "prlimit": "util-linux",
    "nbdfuse": "libnbd-bin",
    "e2fsck": "e2fsprogs",
    "fuse2fs": "fuse2fs",
    "ntfs-3g": "ntfs-3g",
    "ntfsrecover": "ntfs-3g",
    "ntfsfix": "ntfs-3g",
    "mcopy": "mtools",
}
# To mount, to write a user namespace's maps, and to edit what a guest's users own.
CAPABILITIES = (
    "CAP_SYS_ADMIN",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
)
_SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/tmp"}
_GONE_SECONDS = 10.0
_WORDS_MAX = 1000


def missing_tools(names: Sequence[str]) -> str:
    """What is not installed, with the package that brings it; "" when all is there."""
    lacking = [name for name in names if shutil.which(name, path=_SEARCHED) is None]
    if not lacking:
        return ""
    packages = sorted({PACKAGES[name] for name in lacking})
    said = " and ".join(lacking)
    verb = "is" if len(lacking) == 1 else "are"
    return Lacking(f"{said} {verb} missing: install {' '.join(packages)}")


def interpreter() -> tuple[str, str]:
    """The Python that runs this, without its environment, and the directory it lives in."""
    return os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)


class Cage:
    """A running program in its cage.

    Args:
        command: Inside it. "{python}" stands for the interpreter.
        readable: Place inside and path on this host, read-only (a socket there can be
            connected to).
        devices: Device nodes it may use.
        devices_all: All of the host's device nodes (a kernel mount wants its loop device).
        what: For messages.

    Raises:
        ToolMissingError: bubblewrap is missing.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        readable: Mapping[str, str],
        devices: Sequence[str] = (),
        devices_all: bool = False,
        what: str,
    ) -> None:
        lacking = missing_tools(["bwrap", "prlimit"])
        if lacking:
            raise ToolMissingError(f"the sandbox cannot be made: {lacking.split(': ')[0]}", lacking)
        self._what = what
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [*_limits(), *_walls(readable, devices, devices_all), "--", *_command(command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # read when it has died; it is no matter if it is full
            bufsize=0,
            env=_ENVIRONMENT,
            start_new_session=True,  # no Ctrl-C of the terminal's in the middle of a write
        )

    @property
    def process_id(self) -> int:
        """Of bubblewrap, outside."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def send(self, header: bytes, data: bytes = b"", seconds: float = CALL_SECONDS) -> None:
        """A message into the cage. GuestError when it does not take it; the cage is over then."""
        deadline = time.monotonic() + seconds
        for piece in (struct.pack("<II", len(header), len(data)) + header, data):
            self._write(memoryview(piece), deadline)

    def receive(self, seconds: float = CALL_SECONDS) -> tuple[bytes, bytes]:
        """A message out of it. GuestError when none comes; the cage is over then."""
        deadline = time.monotonic() + seconds
        header, data = struct.unpack("<II", self._read(8, deadline))
        if header > HEADER_MAX or data > DATA_MAX:
            self.kill()
            raise GuestError(
                f"{self._what}: its driver sent a message of {header} and {data} bytes",
                "the volume is damaged, or made to do harm",
            )
        return self._read(header, deadline), self._read(data, deadline)

    def call(
        self, header: bytes, data: bytes = b"", seconds: float = CALL_SECONDS
    ) -> tuple[bytes, bytes]:
        """A message, and the answer to it."""
        with self._lock:
            self.send(header, data, seconds)
            return self.receive(seconds)

    def close(self) -> None:
        """Hang up, and wait until all of it is gone. May be called twice."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_GONE_SECONDS)
        except subprocess.TimeoutExpired:
            self._end()
            process.wait()
        process.stdout.close()
        if process.stderr is not None:
            process.stderr.close()

    def kill(self) -> None:
        """End it at once. May be called twice, and after close()."""
        if self.alive:
            self._end()
        self.close()

    def _end(self) -> None:
        for process in self._inside():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)  # process 1: all others go with it
        self._process.kill()

    def _inside(self) -> list[int]:
        process = self._process.pid
        try:
            with open(f"/proc/{process}/task/{process}/children", encoding="ascii") as file:
                return [int(text) for text in file.read().split()]
        except OSError:
            return []

    def _write(self, left: memoryview, deadline: float) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        if pipe.closed:
            raise self._over()
        os.set_blocking(pipe.fileno(), False)
        while left:
            if not self._wait(pipe.fileno(), select.POLLOUT, deadline):
                raise self._late()
            try:
                left = left[os.write(pipe.fileno(), left[: 1 << 20]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._over() from None

    def _read(self, length: int, deadline: float) -> bytes:
        pipe = self._process.stdout
        assert pipe is not None
        if pipe.closed:
            raise self._over()
        pieces = []
        while length:
            if not self._wait(pipe.fileno(), select.POLLIN, deadline):
                raise self._late()
            piece = os.read(pipe.fileno(), min(length, 1 << 20))
            if not piece:
                raise self._over()
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)

    def _wait(self, fd: int, event: int, deadline: float) -> bool:
        waiting = select.poll()
        waiting.register(fd, event)
        return bool(waiting.poll(max(0, (deadline - time.monotonic()) * 1000)))

    def _late(self) -> GuestError:
        self.kill()
        return GuestError(
            f"{self._what}: its driver gave no answer in time and was ended",
            "the volume is damaged, or the host is overloaded: check it in the guest's system",
        )

    def _over(self) -> GuestError:
        said = self._last_words()
        self.kill()
        return GuestError(
            f"{self._what}: its driver has died{said}",
            "the volume is damaged, or made to do harm, or this host forbids the sandbox",
        )

    def _last_words(self) -> str:
        pipe = self._process.stderr
        if pipe is None or pipe.closed:
            return ""
        os.set_blocking(pipe.fileno(), False)
        try:
            said = os.read(pipe.fileno(), 1 << 16)[-_WORDS_MAX:].decode("utf-8", "backslashreplace")
        except BlockingIOError:
            return ""
        lines = " ".join(said.split())
        return f": {''.join(c if c.isprintable() else '?' for c in lines)}" if lines else ""


def _command(command: Sequence[str]) -> list[str]:
    return [part.replace("{python}", interpreter()[0]) for part in command]


def _limits() -> list[str]:
    return ["prlimit", "--core=0", f"--as={MEMORY_BYTES}", "--nofile=1024"]


def _walls(readable: Mapping[str, str], devices: Sequence[str], devices_all: bool) -> list[str]:
    arguments = ["bwrap", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-pid"]
    arguments += ["--unshare-cgroup-try", "--hostname", "cage", "--as-pid-1", "--new-session"]
    if os.geteuid() != 0:
        arguments += ["--unshare-user", "--uid", "0", "--gid", "0"]
    arguments += ["--cap-drop", "ALL"]
    for capability in CAPABILITIES:
        arguments += ["--cap-add", capability]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            arguments += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            arguments += ["--ro-bind", f"/{name}", f"/{name}"]
    prefix = interpreter()[1]
    if not prefix.startswith("/usr/") and prefix != "/usr":
        arguments += ["--ro-bind", prefix, prefix]
    arguments += ["--dev-bind", "/dev", "/dev"] if devices_all else ["--dev", "/dev"]
    arguments += ["--proc", "/proc"]
    for place in ("/run", "/tmp"):
        arguments += ["--size", str(RUN_BYTES), "--tmpfs", place]
    for device in devices:
        arguments += ["--dev-bind", device, device]
    for inside, path in readable.items():
        arguments += ["--ro-bind", path, inside]
    return arguments
