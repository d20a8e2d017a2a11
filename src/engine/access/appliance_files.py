"""The files of one volume that an appliance has mounted at a place of its own.

No link is ever followed: a path whose parts are not all directories is refused. The guest
is not running, so what was seen to be a directory stays one until it is changed here.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import stat
from collections.abc import Callable
from typing import Any

from .appliance_guestfs import Entry, Guestfs, GuestfsError

ENTRIES_MAX = 200_000  # of one directory
TEMPORARY = ".rollpoint-"
# Kinds whose files have no owner or mode of their own.
PLAIN = ("vfat", "exfat", "ntfs")
# Kinds that are mounted so that each call is durable when it returns.
# libguestfs's own sync settles udev for every disk: half a second.
SYNCHRONOUS = ("ext2", "ext3", "ext4", "xfs")

Fields = dict[str, Any]
Answer = tuple[Fields, bytes]


class RefusedError(Exception):
    """A call that is answered with an error. kind: path, not-found, guest."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.hint = hint


class FileSystem:
    """A mounted volume at a mount point of its own."""

    def __init__(self, guestfs: Guestfs, at: str, kind: str) -> None:
        self._guestfs = guestfs
        self.at = at
        self._plain = kind in PLAIN
        self._synchronous = kind in SYNCHRONOUS
        self._dirty = False
        self._directories = {""}  # seen to be directories, until something is renamed or removed

    def lstat(self, path: str) -> Answer:
        found = self._look(path)
        if found is None:
            return {"stat": None}, b""
        target = ""
        if stat.S_ISLNK(found.mode):
            target = self._guestfs.readlink(self._whole(path))
        return {"stat": [*found, target]}, b""

    def list(self, path: str) -> Answer:
        self._want(path, stat.S_ISDIR, "a directory")
        whole = self._whole(path)
        names = self._guestfs.names(whole)
        if len(names) > ENTRIES_MAX:
            raise RefusedError("guest", f"{path or '/'} holds {len(names)} names: too many")
        found = self._guestfs.lstat_each(whole, names)
        links = [n for n, e in zip(names, found, strict=True) if stat.S_ISLNK(e.mode)]
        targets = dict(zip(links, self._guestfs.readlink_each(whole, links), strict=True))
        entries = [
            [name, *entry, targets.get(name, "")]
            for name, entry in zip(names, found, strict=True)
            if entry.links >= 0  # gone since: cannot be, with nobody else here
        ]
        return {"entries": entries}, b""

    def read(self, path: str, offset: int, length: int | None, limit: int) -> Answer:
        found = self._want(path, stat.S_ISREG, "a regular file")
        wanted = max(0, found.size_bytes - offset)
        if length is not None:
            wanted = min(wanted, length)
        if wanted > limit:
            raise RefusedError("guest", f"{path} has {wanted} bytes; at most {limit} are read")
        return {}, self._guestfs.read(self._whole(path), offset, wanted)

    def write(self, path: str, offset: int, data: bytes) -> Answer:
        self._want(path, stat.S_ISREG, "a regular file")
        self._dirty = True
        self._guestfs.write(self._whole(path), data, offset)
        return {}, b""

    def replace(self, path: str, mode: int | None, data: bytes) -> Answer:
        there = self._look(path)
        if there is not None and not stat.S_ISREG(there.mode):
            raise RefusedError("path", f"{path} is not a regular file")
        whole, aside = self._whole(path), self._aside(path)
        try:
            self._guestfs.create(aside, data)
            if there is not None:
                self._like(whole, aside)
            else:
                self._own(path, aside)
                self._chmod(aside, 0o644 if mode is None else mode)
            self._dirty = True
            self.sync()  # before the rename, or a crash leaves an empty file
            self._dirty = True
            self._guestfs.rename(aside, whole)
        except GuestfsError:
            with contextlib.suppress(GuestfsError):
                self._guestfs.remove_file(aside)
            raise
        return {}, b""

    def remove(self, path: str) -> Answer:
        found = self._look(path)
        if not path:
            raise RefusedError("path", "the root of a file system cannot be removed")
        if found is None:
            raise RefusedError("not-found", f"there is no {path}")
        self._forget()
        self._dirty = True
        if stat.S_ISDIR(found.mode):
            self._guestfs.remove_directory(self._whole(path))
        else:
            self._guestfs.remove_file(self._whole(path))
        return {}, b""

    def make_directory(self, path: str, mode: int) -> Answer:
        there = self._look(path)
        if there is not None:
            if not stat.S_ISDIR(there.mode):
                raise RefusedError("path", f"{path} is there already, and no directory")
            return {}, b""
        whole = self._whole(path)
        self._dirty = True
        self._guestfs.make_directory(whole, mode)
        self._own(path, whole)
        self._chmod(whole, mode)  # what the appliance's umask took away
        return {}, b""

    def make_link(self, path: str, target: str) -> Answer:
        there = self._look(path)
        if there is not None and stat.S_ISDIR(there.mode):
            raise RefusedError("path", f"{path} is a directory")
        self._forget()
        self._dirty = True
        whole, aside = self._whole(path), self._aside(path)
        self._guestfs.make_link(aside, target)
        try:
            self._own(path, aside)
            self._guestfs.rename(aside, whole)
        except GuestfsError:
            with contextlib.suppress(GuestfsError):
                self._guestfs.remove_file(aside)
            raise
        return {}, b""

    def space(self) -> Answer:
        free = self._guestfs.free(self.at)
        inodes = free.inodes_free if free.inodes_total > 0 else None
        return {"space": [free.bytes_free, free.bytes_total, inodes]}, b""

    def sync(self) -> Answer:
        if self._dirty and not self._synchronous:
            self._guestfs.sync()
        self._dirty = False
        return {}, b""

    def close(self) -> Answer:
        self.sync()
        self._guestfs.unmount(self.at)
        return {}, b""

    def _whole(self, path: str) -> str:
        return f"{self.at}/{path}" if path else self.at

    def _aside(self, path: str) -> str:
        folder = path.rpartition("/")[0]
        name = f"{TEMPORARY}{secrets.token_hex(8)}"
        return self._whole(f"{folder}/{name}" if folder else name)

    def _look(self, path: str) -> Entry | None:
        """lstat, after every directory on the way was seen to be one."""
        parts = path.split("/") if path else []
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise RefusedError("path", f"{path!r} is no path beneath the file system's root")
        for count in range(1, len(parts)):
            parent = "/".join(parts[:count])
            if parent in self._directories:
                continue
            found = self._lstat(parent)
            if found is None:
                return None
            if not stat.S_ISDIR(found.mode):
                what = "a symbolic link" if stat.S_ISLNK(found.mode) else "no directory"
                raise RefusedError("path", f"{path} goes through {parent}, which is {what}")
            self._directories.add(parent)
        return self._lstat(path)

    def _lstat(self, path: str) -> Entry | None:
        try:
            return self._guestfs.lstat(self._whole(path))
        except GuestfsError as error:
            if error.os_errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def _want(self, path: str, kind: Callable[[int], bool], wanted: str) -> Entry:
        found = self._look(path)
        if found is None:
            raise RefusedError("not-found", f"there is no {path or '/'}")
        if not kind(found.mode):
            raise RefusedError("path", f"{path or '/'} is not {wanted}")
        return found

    def _forget(self) -> None:
        self._directories = {""}

    def _like(self, source: str, target: str) -> None:
        if not self._plain:
            self._guestfs.copy_attributes(source, target)

    def _own(self, path: str, made: str) -> None:
        """Owner, group and label of the directory that path is in."""
        if not self._plain:
            folder = self._whole(path.rpartition("/")[0])
            found = self._guestfs.lstat(folder)
            self._guestfs.lchown(made, found.uid, found.gid)
            with contextlib.suppress(GuestfsError):  # without one it has none to give
                self._guestfs.copy_label(folder, made)

    def _chmod(self, made: str, mode: int) -> None:
        if not self._plain:
            self._guestfs.chmod(made, mode)
