"""The way in without privileges: user-space file systems in a cage for each volume.

ext2/3/4 by fuse2fs (its journal replayed by e2fsck), NTFS by ntfs-3g, FAT by a reader of
ours and mtools. The host's kernel parses nothing of the guest's but what FUSE hands it.
"""

from __future__ import annotations

import os

from ..errors import ToolMissingError, UnsupportedError
from ..volumes.base import Volume
from .base import FileSystem, Lacking, Mode, close_all
from .remote import RemoteFileSystem
from .sandbox import missing_tools

TOOLS = {
    "ext2": ("e2fsck", "fuse2fs"),
    "ext3": ("e2fsck", "fuse2fs"),
    "ext4": ("e2fsck", "fuse2fs"),
    "ntfs": ("ntfs-3g", "ntfsrecover", "ntfsfix"),
    "vfat": ("mcopy",),
}


class Files:
    """The backend "files".

    Args:
        socket_path: Of the server that exports every volume under its name.
    """

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._open: list[RemoteFileSystem] = []

    @property
    def mode(self) -> Mode:
        """Its name."""
        return "files"

    def refusal(self, volume: Volume) -> str:
        """Why it cannot open a volume here; "" when it can."""
        if volume.problem:
            return volume.problem
        if not volume.pieces:
            return f"volume {volume.name} is not in one run of bytes: only an appliance reads it"
        if volume.kind not in TOOLS:
            return f"there is no user-space file system for {volume.kind} (volume {volume.name})"
        return missing_tools(["bwrap", "prlimit", "nbdfuse", *TOOLS[volume.kind]]) or (
            ""
            if os.path.exists("/dev/fuse")
            else Lacking("/dev/fuse is missing: load the kernel's fuse")
        )

    def open(self, volume: Volume, *, writable: bool, subvolume: str = "") -> FileSystem:
        """Mount it in a cage."""
        refusal = self.refusal(volume)
        if refusal:
            kind = ToolMissingError if isinstance(refusal, Lacking) else UnsupportedError
            raise kind(refusal, "use another mount.mode, or install what is named")
        if subvolume:
            raise UnsupportedError(
                f"volume {volume.name} ({volume.kind}) has no subvolume {subvolume!r}",
                "look at the guest's fstab",
            )
        opened = RemoteFileSystem(self._socket_path, volume, "files", writable=writable)
        self._open.append(opened)
        return opened

    def close(self) -> None:
        """Close what is open."""
        opened, self._open = self._open, []
        close_all(opened)
