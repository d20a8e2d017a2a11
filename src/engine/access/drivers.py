"""What opens a volume inside the cage: nbdfuse and the drivers of file systems.

Standard library alone, as worker.py says.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any, Protocol

from .beneath import Beneath, Facts, Refused
from .fat import Fat
from .kernel import mount_volume, unmount, wait_cleared

DISK = "/run/disk"  # nbdfuse's mount point in the cage
VOLUME = f"{DISK}/volume"
ROOT = "/run/root"
WORDS_MAX = 1500
_READY_SECONDS = 30.0
_END_SECONDS = 60.0
_POLL_SECONDS = 0.002
_EXT = ("ext2", "ext3", "ext4")


class Files(Protocol):
    """What worker.py calls; beneath.Beneath says what each does."""

    def lstat(self, path: bytes) -> Facts | None: ...
    def list(self, path: bytes) -> dict[bytes, Facts]: ...
    def read(self, path: bytes, offset: int, length: int | None) -> bytes: ...
    def write(self, path: bytes, data: bytes, offset: int) -> None: ...
    def replace(self, path: bytes, data: bytes, mode: int | None) -> None: ...
    def remove(self, path: bytes) -> None: ...
    def make_directory(self, path: bytes, mode: int) -> None: ...
    def make_link(self, path: bytes, target: bytes) -> None: ...
    def space(self) -> tuple[int, int, int | None]: ...
    def sync(self) -> None: ...


Finish = Callable[[], None]


def words(said: bytes) -> str:
    """What a driver printed, as a message may carry it: short, printable, in one line."""
    text = said[-WORDS_MAX:].decode("utf-8", "backslashreplace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "".join(c if c.isprintable() else "?" for c in "; ".join(lines)) or "it said nothing"


class Driver:
    """A program that serves a mount until it is unmounted."""

    def __init__(self, command: list[str]) -> None:
        self.name = command[0]
        self._said = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said
            )
        except FileNotFoundError:
            raise Refused("guest", f"{self.name} is missing") from None

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Poll until it serves."""
        deadline = time.monotonic() + _READY_SECONDS
        while not ready():
            if self._process.poll() is not None:
                raise Refused("guest", f"{self.name} refused the volume: {self.said()}")
            if time.monotonic() > deadline:
                self._process.kill()
                raise Refused("guest", f"{self.name} did not come up: {self.said()}")
            time.sleep(_POLL_SECONDS)

    def wait(self) -> None:
        """Until it has ended by itself, having written everything."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise Refused("guest", f"{self.name} did not end") from None
        if code != 0:
            raise Refused("guest", f"{self.name} ended with {code}: {self.said()}")

    def said(self) -> str:
        """Its output."""
        return words(os.pread(self._said, 1 << 20, 0))


def run(command: list[str], data: bytes = b"") -> tuple[int, bytes]:
    """A program's exit code and what it printed; data is its standard input."""
    try:
        done = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError:
        raise Refused("guest", f"{command[0]} is missing") from None
    return done.returncode, done.stdout


def _mounted(target: str, before: int) -> bool:
    try:
        return os.stat(target).st_dev != before
    except OSError:
        return False


def show_volume(config: dict[str, Any]) -> None:
    """The volume as a file of the cage, read-only when it is not to be written."""
    os.makedirs(DISK, exist_ok=True)
    os.makedirs(ROOT, exist_ok=True)
    os.chmod("/tmp", 0o1777)
    command = ["nbdfuse", "-o", "allow_other", "-P", "/run/nbdfuse.pid"]
    if not config["writable"]:
        command.append("-r")
    shows = Driver([*command, VOLUME, config["uri"]])
    shows.wait_until(lambda: os.path.exists("/run/nbdfuse.pid"))


def _served(command: list[str], writable: bool) -> tuple[Files, Finish]:
    """The files of a FUSE driver's mount at ROOT."""
    before = os.stat(ROOT).st_dev
    driver = Driver(command)
    driver.wait_until(lambda: _mounted(ROOT, before))
    if writable and os.statvfs(ROOT).f_flag & os.ST_RDONLY:
        unmount(ROOT)
        raise Refused("guest", f"it can only be read: {driver.name}: {driver.said()}")
    root = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    files = Beneath(root, direct=driver.name == "ntfs-3g")

    def finish() -> None:
        files.sync()
        files.close()
        unmount(ROOT)
        driver.wait()
        _flush_volume()

    return files, finish


def _flush_volume() -> None:
    """NBD's flush: what the driver wrote is in the overlay."""
    volume = os.open(VOLUME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(volume)
    finally:
        os.close(volume)


def _open_ext(writable: bool) -> tuple[Files, Finish]:
    if writable:
        # fuse2fs 1.47 cannot go on from a dirty journal: this replays it, and nothing else.
        code, said = run(["e2fsck", "-y", "-E", "journal_only", VOLUME])
        if code not in (0, 1):
            raise Refused("guest", f"its journal cannot be replayed: e2fsck: {words(said)}")
    # hard_remove: FUSE hears late that a file was closed, and would keep it under another name.
    options = "big_writes,hard_remove" if writable else "ro,norecovery"
    return _served(["fuse2fs", "-f", "-o", f"allow_other,{options}", VOLUME, ROOT], writable)


def _open_ntfs(writable: bool) -> tuple[Files, Finish]:
    options = "no_detach,allow_other,big_writes,streams_interface=none"
    if writable:
        _replay_ntfs()
    else:
        options += ",ro,norecover"
    return _served(["ntfs-3g", "-o", options, VOLUME, ROOT], writable)


def _replay_ntfs() -> None:
    """Redo what Windows had logged: ntfs-3g throws away the log of a volume that was in use.

    Where that cannot be done, Windows checks the volume on its next start.
    """
    code, said = run(["ntfsrecover", VOLUME])
    if code == 0 or b"has been wiped out" in said:  # as ntfs-3g itself leaves it
        return
    if b"ast restart mode" in said:
        raise Refused(
            "guest",
            "Windows was shut down with fast startup, or hibernates, and keeps a part of what "
            "this volume holds in a file: take a point from while it was running",
        )
    code, said = run(["ntfsfix", VOLUME])
    if code != 0:
        raise Refused("guest", f"its log cannot be replayed: ntfsfix: {words(said)}")


def _open_fat() -> tuple[Files, Finish]:
    files = Fat(VOLUME, run, words)

    def finish() -> None:
        files.sync()
        files.close()

    return files, finish


def _open_kernel(kind: str, writable: bool, subvolume: str) -> tuple[Files, Finish]:
    loop = mount_volume(VOLUME, ROOT, kind, writable, subvolume)
    files = Beneath(os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def finish() -> None:
        files.sync()
        files.close()
        unmount(ROOT)
        wait_cleared(loop)
        _flush_volume()

    return files, finish


def open_files(config: dict[str, Any]) -> tuple[Files, Finish]:
    """The files of the volume, and what ends them in order."""
    kind, writable = config["kind"], config["writable"]
    if config["mode"] == "host":
        return _open_kernel(kind, writable, config["subvolume"])
    if kind in _EXT:
        return _open_ext(writable)
    if kind == "ntfs":
        return _open_ntfs(writable)
    if kind == "vfat":
        return _open_fat()
    raise Refused("guest", f"no driver for {kind}")
