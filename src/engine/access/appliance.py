"""The appliance: a volume opened by a kernel of its own, in a virtual machine of its own.

libguestfs runs it, in a sandboxed process (appliance_process.py). It opens what user-space
file systems do not: xfs, btrfs, volume groups of any layout. Slow to launch (half a
minute where the host has no usable KVM), so it can be launched ahead (Warm) on stand-ins
of the disks' sizes; it serves one guest, once, and ends.

Read-only opens get an appliance of their own whose writes are thrown away: a dirty journal
is replayed there, so that the files are what a mount would show, and no byte of the disks
changes.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from typing import Any

from ..errors import Error, GuestError, ToolMissingError, UnsupportedError
from ..volumes.base import Volume
from . import appliance_process, warm
from .appliance_nbd import FLAGS, READ_ONLY, Export, RefusedError, enter, leave
from .appliance_process import LAUNCH_SECONDS, Process, launching
from .base import READ_BYTES_MAX, Kind, Lacking, Mode, Space, Stat

# Kind of a volume: the driver in the appliance, and its mount options.
DRIVERS = {
    "ext2": ("ext4", "errors=remount-ro,sync"),
    "ext3": ("ext4", "errors=remount-ro,sync"),
    "ext4": ("ext4", "errors=remount-ro,sync"),
    "xfs": ("xfs", "nouuid,sync,wsync"),
    "btrfs": ("btrfs", "sync"),
    "ntfs": ("ntfs-3g", "permissions,inherit"),
    "vfat": ("vfat", "utf8,shortname=mixed"),
    "exfat": ("exfat", ""),
    "iso9660": ("iso9660", "ro"),
    "squashfs": ("squashfs", "ro"),
}
_SAFE = "nosuid,nodev,noexec"
_LOGICAL = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*/[A-Za-z0-9+_.][A-Za-z0-9+_.-]*")
_SUBVOLUME = re.compile(r"[^,\n\\]*")
_TYPES: dict[int, Kind] = {0o100000: "file", 0o040000: "directory", 0o120000: "link"}


class Appliance:
    """The way in for every volume that the appliance's kernel can mount.

    Args:
        socket_path: Of the mount's exports.
        volumes: All that were found: it is known from them what has to be looked for.
        disks: Names of the exports that are whole disks, in order.
        warm: The socket of an appliance that was launched ahead. One that is gone,
            taken or has other sizes is done without.

    Attributes:
        launch_seconds: How long the launch took, whenever it was; None without one.
        waited_seconds: How long this object waited for a launch.
        warm: Whether it was launched ahead.
    """

    mode: Mode = "appliance"

    def __init__(
        self,
        socket_path: str,
        volumes: Sequence[Volume],
        disks: Sequence[str],
        warm: str | None = None,
    ) -> None:
        self._socket_path = socket_path
        self._volumes = tuple(volumes)
        self._disks = tuple(disks)
        self._warm_path = warm
        self._running: dict[bool, Process] = {}
        self.launch_seconds: float | None = None
        self.waited_seconds = 0.0
        self.warm = False

    def refusal(self, volume: Volume) -> str:
        """Why it cannot open that volume here; "" when it can."""
        if volume.problem:
            return volume.problem
        # What nobody but the appliance can string together, it looks into itself.
        if volume.kind not in DRIVERS and (volume.pieces or volume.kind != "unknown"):
            return f"{volume.name} holds no file system ({volume.kind})"
        lacking = appliance_process.missing()
        if lacking is not None:
            return Lacking(lacking)
        if self._device(volume) is None:
            return f"{volume.name} is no name that the appliance can look for"
        return ""

    def _device(self, volume: Volume) -> tuple[int | None, str] | None:
        """Number of the disk and what comes after its name, or a name beneath /dev."""
        partition = volume.partition
        if partition is not None and partition.disk in self._disks:
            return self._disks.index(partition.disk), str(partition.number)
        if volume.name in self._disks:
            return self._disks.index(volume.name), ""
        return (None, volume.name) if _LOGICAL.fullmatch(volume.name) else None

    def open(self, volume: Volume, *, writable: bool, subvolume: str = "") -> ApplianceFileSystem:
        """Mount it; the first one launches the appliance."""
        lacking = appliance_process.missing()
        if lacking is not None:
            raise ToolMissingError(f"{lacking.what} is missing", f"install {lacking.package}")
        refused = self.refusal(volume)
        device = self._device(volume)
        if refused or device is None:
            raise UnsupportedError(refused)
        if writable and DRIVERS.get(volume.kind, ("", ""))[1] == "ro":
            raise UnsupportedError(f"{volume.name} holds {volume.kind}, which cannot be written")
        options = _SAFE
        if subvolume:
            if volume.kind != "btrfs" or not _SUBVOLUME.fullmatch(subvolume):
                raise UnsupportedError(f"{volume.name} has no subvolume {subvolume!r}")
            options += f",subvol=/{subvolume.lstrip('/')}"
        process = self._process(writable)
        said, _ = process.ask(
            "open",
            {
                "disk": device[0],
                "name": device[1],
                "offset": volume.pieces[0].offset if volume.pieces else 0,
                "size_bytes": volume.size_bytes,
                "kind": volume.kind,
                "drivers": DRIVERS,
                "options": options,
                "writable": writable,
            },
        )
        return ApplianceFileSystem(process, int(said["fs"]), volume, writable)

    def close(self) -> None:
        """End what is running. May be called twice.

        Raises:
            GuestError: Not everything could be written.
        """
        running, self._running = self._running, {}
        with contextlib.ExitStack() as stack:
            for process in running.values():
                stack.callback(process.close)

    def _process(self, writable: bool) -> Process:
        """The appliance that takes writes, or the one that throws them away."""
        running = self._running.get(writable)
        if running is not None:
            return running
        process = self._attach_warm() if writable and self._warm_path else None
        if process is None:
            process = self._launch(writable)
        self._running[writable] = process
        return process

    def _attach_warm(self) -> Process | None:
        """The one that was launched ahead, if it is there and fits."""
        assert self._warm_path is not None
        connection = warm.connect(self._warm_path)
        if connection is None:
            return None
        process = Process(connection)
        started = time.monotonic()
        try:
            said = self._attach(process, LAUNCH_SECONDS)
        except Error:
            process.kill()
            return None
        self.warm = True
        self.launch_seconds = float(said["launch_seconds"])
        self.waited_seconds += time.monotonic() - started - float(said["seconds"])
        return process

    def _launch(self, writable: bool) -> Process:
        sizes = []
        for name in self._disks:
            export = self._enter(name)
            leave(export.connection)
            sizes.append(export.size_bytes)
        started = time.monotonic()
        process = Process()
        try:
            kinds = {volume.kind for volume in self._volumes}
            process.ask("launch", launching(sizes, kinds, not writable), seconds=LAUNCH_SECONDS)
            self.launch_seconds = time.monotonic() - started
            self.waited_seconds += self.launch_seconds
            self._attach(process, appliance_process.CALL_SECONDS)
        except BaseException:
            process.kill()
            raise
        return process

    def _attach(self, process: Process, seconds: float) -> dict[str, Any]:
        """Hand it connections to the disks, and have it look at them."""
        exports: list[Export] = []
        try:
            for name in self._disks:
                exports.append(self._enter(name))
            said, _ = process.ask(
                "attach",
                {
                    "sizes": [export.size_bytes for export in exports],
                    "partitions": self._partitions(),
                    "groups": any(volume.kind == "lvm" for volume in self._volumes),
                },
                descriptors=[export.connection.fileno() for export in exports],
                seconds=seconds,
            )
        finally:
            for export in exports:
                export.connection.close()
        return said

    def _partitions(self) -> list[list[int]]:
        """Number of the disk and of the partition, offset and length, of each that is known."""
        return [
            [
                self._disks.index(v.partition.disk),
                v.partition.number,
                v.pieces[0].offset,
                v.size_bytes,
            ]
            for v in self._volumes
            if v.partition is not None and v.pieces and v.partition.disk in self._disks
        ]

    def _enter(self, name: str) -> Export:
        try:
            export = enter(self._socket_path, name)
        except (OSError, RefusedError) as error:
            raise GuestError(f"the export of {name} cannot be reached: {error}") from error
        if export.flags & FLAGS != FLAGS and not export.flags & READ_ONLY:
            export.connection.close()
            raise GuestError(f"the export of {name} lacks what QEMU may use: {export.flags:#x}")
        return export


class ApplianceFileSystem:
    """A volume that the appliance has mounted at a place of its own."""

    mode: Mode = "appliance"

    def __init__(self, process: Process, number: int, volume: Volume, writable: bool) -> None:
        self._process = process
        self._number = number
        self._open = True
        self.volume = volume
        self.writable = writable

    def lstat(self, path: str) -> Stat | None:
        """None: there is nothing of that name."""
        said, _ = self._ask("lstat", path=path)
        return None if said["stat"] is None else _stat(said["stat"])

    def list(self, path: str) -> dict[str, Stat]:
        """What a directory holds, in one round trip."""
        said, _ = self._ask("list", path=path)
        return {str(entry[0]): _stat(entry[1:]) for entry in said["entries"]}

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """A regular file's bytes."""
        limit = READ_BYTES_MAX
        _, data = self._ask("read", path=path, offset=offset, length=length, limit=limit)
        return data

    def write(self, path: str, data: bytes, offset: int) -> None:
        """Overwrite, or extend, an existing regular file in place."""
        self._change("write", data, path=path, offset=offset)

    def replace(self, path: str, data: bytes, mode: int | None = None) -> None:
        """A new content, atomically."""
        self._change("replace", data, path=path, mode=mode)

    def remove(self, path: str) -> None:
        """A file or a link, or an empty directory."""
        self._change("remove", path=path)

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        """It may be there already."""
        self._change("make_directory", path=path, mode=mode)

    def make_link(self, path: str, target: str) -> None:
        """A symbolic link; what was there is replaced unless it is a directory."""
        self._change("make_link", path=path, target=target)

    def space(self) -> Space:
        """What is free."""
        said, _ = self._ask("space")
        free, total, inodes = said["space"]
        return Space(int(free), int(total), None if inodes is None else int(inodes))

    def sync(self) -> None:
        """Durable as far as the disk below makes it durable."""
        self._ask("sync")

    def close(self) -> None:
        """Sync and unmount. May be called twice."""
        if self._open:
            self._open = False
            self._process.ask("unmount", {"fs": self._number})

    def _change(self, call: str, data: bytes = b"", **fields: Any) -> None:
        if not self.writable:
            raise GuestError(
                f"{self.volume.name} was opened read-only", "open it for writing instead"
            )
        self._ask(call, data, **fields)

    def _ask(self, call: str, data: bytes = b"", **fields: Any) -> tuple[dict[str, Any], bytes]:
        if not self._open:
            raise GuestError(f"{self.volume.name} is closed")
        return self._process.ask(call, {"fs": self._number, **fields}, data)


def _stat(told: Sequence[Any]) -> Stat:
    """A Stat from [mode, links, uid, gid, size, modified_ns, target] of the worker."""
    mode, links, uid, gid, size_bytes, modified_ns = (int(number) for number in told[:6])
    kind = _TYPES.get(mode & 0o170000, "other")
    target = str(told[6])
    return Stat(kind, mode & 0o7777, uid, gid, size_bytes, modified_ns, links, target)
