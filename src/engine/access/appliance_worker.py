"""The process that holds an appliance: libguestfs, the stand-ins for its disks, QEMU as its child.

It runs in a sandbox (appliance_process.py) and serves one client over one connection:
whoever launched it, or for a warm one the first who connects to the listening socket it
was given. When that client goes away without saying goodbye, the process ends at once, and
with it everything in its process namespace, whatever a call is waiting for.

Nothing here decides anything, and nothing is followed: a path whose parts are not all
directories is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import secrets
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from .appliance_guestfs import Entry, Guestfs, GuestfsError
from .appliance_messages import HungUpError, Message, close_all, receive, send
from .appliance_nbd import StandIns

LOOKS = 3  # at the disks, until their partitions are there
ENTRIES_MAX = 200_000  # of one directory
TEMPORARY = ".rollpoint-"
# Kinds whose files have no owner or mode of their own.
PLAIN = ("vfat", "exfat", "ntfs")
# Kinds that are mounted so that each call is durable when it returns.
# libguestfs's own sync settles udev for every disk: half a second.
SYNCHRONOUS = ("ext2", "ext3", "ext4", "xfs")
_APPLIANCE = "/appliance"
_SOCKET = "/tmp/disks"
_GONE = select.POLLHUP | select.POLLRDHUP | select.POLLERR

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
        """Owner and group of the directory that path is in."""
        if not self._plain:
            folder = self._guestfs.lstat(self._whole(path.rpartition("/")[0]))
            self._guestfs.lchown(made, folder.uid, folder.gid)

    def _chmod(self, made: str, mode: int) -> None:
        if not self._plain:
            self._guestfs.chmod(made, mode)


class Worker:
    """One appliance and its one client."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._guestfs = Guestfs()
        self._stand_ins: StandIns | None = None
        self._launch_seconds = 0.0
        self._sizes: list[int] = []
        self._devices: list[str] = []
        self._partitions: dict[str, tuple[int, int]] = {}
        self._mounted: dict[int, FileSystem] = {}
        self._numbers = 0
        self._done = False

    def run(self) -> None:
        """Answer until the client says goodbye."""
        self._watch(self._client)
        while not self._done:
            try:
                message = receive(self._client)
            except HungUpError:
                os._exit(1)
            fields, data = self._answered(message)
            send(self._client, Message(fields, data))
            if message.descriptors and message.fields.get("call") == "launch":
                self._wait_for_client(message.descriptors[0])

    def _watch(self, client: socket.socket) -> None:
        """End everything when the client is gone, even inside a call that hangs."""

        def wait() -> None:
            poll = select.poll()
            poll.register(client, select.POLLRDHUP)
            while not any(event & _GONE for _, event in poll.poll()):
                pass
            if self._client is client and not self._done:
                os._exit(1)

        threading.Thread(target=wait, daemon=True).start()

    def _wait_for_client(self, listening: int) -> None:
        """Warm: the first who connects is the client from now on."""
        with socket.socket(fileno=listening) as listener:
            taker, _ = listener.accept()
        keeper, self._client = self._client, taker
        self._watch(taker)
        keeper.close()  # which tells it that the appliance was taken

    def _answered(self, message: Message) -> Answer:
        fields = dict(message.fields)
        try:
            call = str(fields.pop("call"))
            if call in _OF_WORKER:
                return getattr(self, f"_{call}")(message, **fields)  # type: ignore[no-any-return]
            mounted = self._mounted.get(fields.pop("fs"))
            if mounted is None or call not in _OF_FILE_SYSTEM:
                raise RefusedError("guest", "the file system is closed")
            if call in ("write", "replace"):
                fields["data"] = message.data
            answer: Answer = getattr(mounted, call)(**fields)
            return answer
        except RefusedError as error:
            return {"error": error.kind, "message": str(error), "hint": error.hint}, b""
        except GuestfsError as error:
            kind = "not-found" if error.os_errno == errno.ENOENT else "guest"
            return {"error": kind, "message": str(error), "errno": error.os_errno}, b""

    def _launch(
        self,
        message: Message,
        sizes: list[int],
        snapshot: bool,
        settings: list[str],
        modules: list[str],
    ) -> Answer:
        """With a descriptor: it listens there for the client that is to come."""
        started = time.monotonic()
        self._sizes = sizes
        self._stand_ins = StandIns(_SOCKET, sizes)
        self._guestfs.prepare(settings, _APPLIANCE)
        for number in range(len(sizes)):
            self._guestfs.add_export(_SOCKET, str(number), snapshot)
        self._guestfs.launch()
        for name in modules:
            with contextlib.suppress(GuestfsError):  # it is part of the kernel, or missing
                self._guestfs.load_module(name)
        self._devices = self._guestfs.devices()
        if len(self._devices) != len(sizes):
            raise RefusedError("guest", f"the appliance shows {self._devices} for {sizes}")
        self._launch_seconds = time.monotonic() - started
        return {"seconds": self._launch_seconds}, b""

    def _attach(
        self, message: Message, sizes: list[int], groups: bool, partitions: list[list[int]]
    ) -> Answer:
        """With a descriptor for each disk: a connection to its export.

        partitions: number of the disk and of the partition, offset and length in bytes.
        """
        if self._stand_ins is None or sizes != self._sizes:
            close_all(message.descriptors)
            raise RefusedError("guest", f"it was launched for disks of {self._sizes} bytes")
        self._stand_ins.attach([socket.socket(fileno=fd) for fd in message.descriptors])
        wanted = {
            f"{self._devices[disk]}{number}": (offset, length)
            for disk, number, offset, length in partitions
        }
        for _ in range(LOOKS):
            for device in self._devices:  # also forgets the zeros that were read before
                self._guestfs.read_partitions_again(device)
            self._partitions = self._guestfs.partitions()
            if wanted.items() <= self._partitions.items():
                break
            self._guestfs.drop_caches()  # a page that was in use just then is kept
        if groups:
            self._guestfs.scan_volume_groups()
        return {"launch_seconds": self._launch_seconds}, b""

    def _open(
        self,
        message: Message,
        device: str,
        disk: int | None,
        offset: int,
        size_bytes: int,
        kind: str,
        driver: str,
        options: str,
        writable: bool,
    ) -> Answer:
        """device: a name after the disk's, or with no disk a path beneath /dev."""
        path = f"{self._devices[disk]}{device}" if disk is not None else f"/dev/{device}"
        if disk is not None and device:
            found = self._partitions.get(path)
            if found != (offset, size_bytes):
                raise RefusedError(
                    "guest",
                    f"the appliance's kernel has {found} as offset and size of {path}, "
                    f"not {(offset, size_bytes)}{self._kernel_said(self._devices[disk])}",
                )
        self._numbers += 1
        at = f"/volume{self._numbers}"
        try:
            self._guestfs.mount(path, driver, options, at)
        except GuestfsError as error:
            raise RefusedError("guest", f"{error}{self._kernel_said(path)}") from error
        if writable and self._guestfs.free(at).read_only:
            self._guestfs.unmount(at)
            raise RefusedError(
                "guest", "its driver mounts it read-only: it is hibernated or damaged"
            )
        self._mounted[self._numbers] = FileSystem(self._guestfs, at, kind)
        return {"fs": self._numbers}, b""

    def _kernel_said(self, device: str) -> str:
        """The last line of the appliance's kernel about a device."""
        name = os.path.basename(device)
        with contextlib.suppress(GuestfsError):
            lines = self._guestfs.kernel_log().splitlines()
            about = [line for line in lines[-20:] if name in line]
            if about:
                return f"; its kernel says: {about[-1].partition('] ')[2]}"
        return ""

    def _unmount(self, message: Message, fs: int) -> Answer:
        mounted = self._mounted.pop(fs, None)
        return mounted.close() if mounted is not None else ({}, b"")

    def _end(self, message: Message) -> Answer:
        for mounted in self._mounted.values():
            mounted.close()
        self._mounted = {}
        self._done = True
        try:
            self._guestfs.shut_down()
        finally:
            self._guestfs.close()
        return {}, b""


_OF_WORKER = ("launch", "attach", "open", "unmount", "end")
_OF_FILE_SYSTEM = (
    "lstat",
    "list",
    "read",
    "write",
    "replace",
    "remove",
    "make_directory",
    "make_link",
    "space",
    "sync",
)


def main() -> None:
    """Serve the client whose socket is the descriptor of that number."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Worker(socket.socket(fileno=int(sys.argv[1]))).run()
