"""The way in by this host's kernel, for guests that the operator trusts.

A kernel is no match for a file system that was made to attack it: this way is refused
unless trust_guest says otherwise. The mount is in a mount namespace of its own (nosuid,
nodev, noexec, links never followed), of the type that was found and no other, on a loop
device that clears itself; it is gone with the last process in its cage.
"""

from __future__ import annotations

import os

from ..errors import ToolMissingError, UnsupportedError
from ..volumes.base import Volume
from .base import FileSystem, Lacking, Mode, close_all
from .kernel import DRIVERS, NEVER_WRITTEN
from .remote import RemoteFileSystem
from .sandbox import missing_tools

_KERNEL = "linux-image-amd64 (Debian), linux-modules-extra (Ubuntu) or kernel-modules (RHEL)"


class Host:
    """The backend "host".

    Args:
        socket_path: Of the server that exports every volume under its name.
        trust_guest: The operator's word that this guest is not hostile.
    """

    def __init__(self, socket_path: str, *, trust_guest: bool = False) -> None:
        self._socket_path = socket_path
        self._trust_guest = trust_guest
        self._open: list[RemoteFileSystem] = []

    @property
    def mode(self) -> Mode:
        """Its name."""
        return "host"

    def refusal(self, volume: Volume) -> str:
        """Why it cannot open a volume here; "" when it can."""
        if not self._trust_guest:
            return "the host's kernel opens only guests that are trusted: mount.trust_guest = true"
        if os.geteuid() != 0:
            return "only root can mount with the host's kernel"
        if volume.problem:
            return volume.problem
        if not volume.pieces:
            return f"volume {volume.name} is not in one run of bytes: only an appliance reads it"
        if volume.kind not in DRIVERS:
            return f"no kernel file system is used for {volume.kind} (volume {volume.name})"
        return _lacking(DRIVERS[volume.kind][0])

    def open(self, volume: Volume, *, writable: bool, subvolume: str = "") -> FileSystem:
        """Mount it."""
        refusal = self.refusal(volume)
        if refusal:
            kind = ToolMissingError if isinstance(refusal, Lacking) else UnsupportedError
            raise kind(refusal, "use another mount.mode, or put right what is named")
        opened = RemoteFileSystem(
            self._socket_path,
            volume,
            "host",
            writable=writable and volume.kind not in NEVER_WRITTEN,
            subvolume=subvolume,
        )
        self._open.append(opened)
        return opened

    def close(self) -> None:
        """Close what is open."""
        opened, self._open = self._open, []
        close_all(opened)


def _lacking(driver: str) -> str:
    """What this host has not got, with the package that brings it."""
    tools = missing_tools(["bwrap", "prlimit", "nbdfuse"])
    if tools:
        return tools
    if not os.path.exists("/dev/fuse"):
        what = f"load the module fuse, of the kernel's package {_KERNEL}"
        return Lacking(f"/dev/fuse is missing: {what}")
    if not os.path.exists("/dev/loop-control"):
        return Lacking(f"loop devices are missing: load the module loop, of {_KERNEL}")
    if not kernel_has(driver):
        return Lacking(f"{driver} in this host's kernel is missing: install {_KERNEL}")
    return ""


def kernel_has(driver: str) -> bool:
    """Whether the running kernel has a file system, or a module of it that can be loaded."""
    with open("/proc/filesystems", encoding="ascii") as file:
        if driver in (line.split()[-1] for line in file if line.strip()):
            return True
    modules = f"/lib/modules/{os.uname().release}/modules.dep"
    try:
        with open(modules, encoding="utf-8", errors="replace") as file:
            return any(f"/{driver}.ko" in line.partition(":")[0] for line in file)
    except OSError:
        return False
