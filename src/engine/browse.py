"""Looking into a guest's disks: what lies on them, its files, copies of them.

Nothing that is looked at changes. A file system that was cut off by a crash, as every
restore point is, shows its files as they were only when its journal has been replayed: that
happens on disks that are thrown away (throwaway.py), served by a mount of their own
(mount.py), in the ways that conversions take (access/).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from .access.base import READ_BYTES_MAX, FileSystem, Stat
from .access.tree import GuestTree
from .closing import Closing
from .config import Mode
from .copy_out import Copied, copy_out
from .errors import Error, GuestError, NotFoundError
from .guest.base import Guest
from .guest.inspect import inspect
from .mount import Mount
from .throwaway import Below, Throwaway
from .units import printable
from .volumes.base import Volume

# Kinds that hold files, as far as is known.
_FILES = ("ext2", "ext3", "ext4", "xfs", "btrfs", "ntfs", "vfat", "exfat", "iso9660", "squashfs")


class WaysIn(Protocol):
    """What access.choose.Ways is."""

    def open(self, volume: Volume, *, writable: bool, subvolume: str = "") -> FileSystem: ...

    def close(self) -> None: ...


Chooser = Callable[[str, tuple[Volume, ...], tuple[str, ...]], WaysIn]


def ways_in(mode: Mode = "auto", trust_guest: bool = False) -> Chooser:
    """What makes the ways into a mount's volumes.

    Args:
        mode: Which one; auto takes the first that serves.
        trust_guest: This host's kernel may mount what the guest wrote.
    """

    def choose(socket_path: str, volumes: tuple[Volume, ...], disks: tuple[str, ...]) -> WaysIn:
        from .access.choose import Ways

        return Ways(socket_path, volumes, disks, mode=mode, trust_guest=trust_guest)

    return choose


class Browser(Closing):
    """A guest's disks, to be looked into. A context manager.

    Args:
        disks: By name, in the machine's order; they must stay open until this is closed.
        choose: Of the ways in.
        volume: Look at that volume alone, and not at the system as it mounts them.
        subvolume: Of it, where it is btrfs.

    Raises:
        NotFoundError: There is no such volume.
    """

    def __init__(
        self,
        disks: Mapping[str, Below],
        choose: Chooser,
        *,
        volume: str = "",
        subvolume: str = "",
        scratch_dir: str | None = None,
    ) -> None:
        self.guest: Guest | None = None  # once its files were asked for
        self.notes: list[str] = []  # what is not as it should be
        self._above: dict[str, Throwaway] = {}
        self._mount: Mount | None = None
        self._ways: WaysIn | None = None
        self._tree: GuestTree | None = None
        self._choose = choose
        self._subvolume = subvolume
        try:
            for name, disk in disks.items():
                self._above[name] = Throwaway(disk, scratch_dir)
            self._mount = Mount(self._above)
            self.volumes = self._mount.volumes
            self._only = self._find(volume) if volume else None
        except BaseException:
            self.close()
            raise

    def _find(self, name: str) -> Volume:
        for volume in self.volumes:
            if volume.name == name:
                return volume
        known = ", ".join(printable(volume.name) for volume in self.volumes)
        raise NotFoundError(f"there is no volume {printable(name)!r}", f"there are {known}")

    # ---- the files ----

    @property
    def tree(self) -> GuestTree:
        """The guest's files; found and opened when they are first asked for.

        Raises:
            GuestError: No system is known on the disks, or it cannot be told which of
                several volumes is meant.
            Error: As access.base.Backend.open.
        """
        if self._tree is None:
            self._tree = self._open_tree()
        return self._tree

    def _open_tree(self) -> GuestTree:
        if self._only is not None:
            return GuestTree({"/": self._open(self._only, self._subvolume)})
        try:
            found = inspect(self.volumes, self._open)
        except GuestError as error:
            with_files = [v for v in self.volumes if v.kind in _FILES and not v.problem]
            if len(with_files) == 1:  # a disk of data
                self.notes.append(error.message)
                return GuestTree({"/": self._open(with_files[0])})
            names = ", ".join(printable(volume.name) for volume in with_files)
            raise GuestError(
                error.message, f"look at one volume alone, with --volume: {names}"
            ) from None
        self.guest = found.guest
        self.notes += found.warnings
        self._mount_others(found.tree, found.guest)
        return found.tree

    def _mount_others(self, tree: GuestTree, guest: Guest) -> None:
        """What a conversion does not need, but the system mounts."""
        open_already = {fs.volume.name for fs in tree.mounts.values()}
        for at, name in sorted(guest.mounts.items(), key=lambda item: item[0].count("/")):
            if at in tree.mounts:
                continue
            if name in open_already:
                self.notes.append(
                    f"{printable(at)} is another part of {printable(name)}: see --volume"
                )
                continue
            try:
                fs = self._open(self._find(name), guest.subvolumes.get(at, ""))
                open_already.add(name)
            except Error as error:
                self.notes.append(f"{printable(at)} cannot be looked into: {error.message}")
                continue
            try:
                tree.mount(at, fs)
            except Error as error:
                fs.close()
                self.notes.append(f"{printable(at)}: {error.message}")

    def _open(self, volume: Volume, subvolume: str = "") -> FileSystem:
        """With its journal replayed, or as it lies where that cannot be done."""
        assert self._mount is not None
        if self._ways is None:
            mount = self._mount
            self._ways = self._choose(mount.socket_path, mount.volumes, mount.disks)
        try:
            return self._ways.open(volume, writable=True, subvolume=subvolume)
        except GuestError as error:
            fs = self._ways.open(volume, writable=False, subvolume=subvolume)
            self.notes.append(f"{printable(volume.name)} is shown as it lies: {error.message}")
            return fs

    def list(self, path: str) -> dict[str, Stat]:
        """What a directory holds, by name; or what a file or link itself is, by its name.

        Raises:
            NotFoundError: There is nothing.
        """
        if self.tree.is_directory(path):
            return dict(sorted(self.tree.list(path).items()))
        facts = self.tree.stat(path, follow=False)
        if facts is None:
            raise NotFoundError(f"there is no {printable(path)} in the guest", "check the path")
        return {path.rstrip("/").rpartition("/")[2]: facts}

    def read(self, path: str, limit_bytes: int = READ_BYTES_MAX) -> bytes:
        """A file's bytes; links are followed in the guest."""
        return self.tree.read(path, limit_bytes)

    def copy_out(self, path: str, target: str) -> Copied:
        """See copy_out.copy_out."""
        return copy_out(self.tree, path, target)

    # ---- the end ----

    def close(self) -> None:
        """Let everything go. May be called twice.

        Raises:
            Error: Something could not be ended in order. It is gone all the same.
        """
        with contextlib.ExitStack() as stack:  # last first, whatever fails
            above, self._above = self._above, {}
            for disk in above.values():
                stack.callback(disk.close)
            mount, self._mount = self._mount, None
            if mount is not None:
                stack.callback(mount.abandon)
            ways, self._ways = self._ways, None
            if ways is not None:
                stack.callback(ways.close)
            tree, self._tree = self._tree, None
            if tree is not None:
                stack.callback(tree.close)


def volume_facts(volumes: Sequence[Volume]) -> list[dict[str, object]]:
    """What `disk mount --json` prints of volumes."""
    return [
        {
            "name": volume.name,
            "size_bytes": volume.size_bytes,
            "kind": volume.kind,
            "uuid": volume.uuid,
            "label": volume.label,
            "problem": volume.problem,
        }
        for volume in volumes
    ]
