"""libguestfs, as far as the appliance needs it: bound with cffi, called without the GIL.

Names and paths are str here, surrogate escapes for bytes that are no UTF-8. Paths are
absolute in the appliance's tree of mount points. Calls that follow links do so inside
that tree; whoever does not want them followed looks first (appliance_worker.py): the
guest is not running, so nothing changes in between.

Source: guestfs(3). Structures only grow at their end there, so an ABI binding holds.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from .appliance_calls import HEADER

LIBRARY = "libguestfs.so.0"
SECTOR = 512
LABEL = "security.selinux"
CHUNK_BYTES = 2 << 20  # a message of libguestfs holds 4 MiB

_NO_AUTOMATIC_EXIT = 2  # GUESTFS_CREATE_NO_CLOSE_ON_EXIT
_READONLY, _FORMAT, _PROTOCOL, _SERVER, _CACHEMODE = 0, 1, 5, 6, 9
_END = -1
_COPY_ALL = 0
# Host, channel, target and unit of a SCSI disk; disks become targets in order.
_SYSFS = re.compile(r"\d+:\d+:(\d+):\d+/device/block/\w+/(\w+)/(partition|start|size):(\d+)")


class GuestfsError(Exception):
    """What libguestfs said. os_errno: of the appliance's kernel, 0 where it gave none."""

    def __init__(self, message: str, os_errno: int) -> None:
        super().__init__(message)
        self.os_errno = os_errno


class Entry(NamedTuple):
    """lstat's answer."""

    mode: int
    links: int
    uid: int
    gid: int
    size_bytes: int
    modified_ns: int


class Free(NamedTuple):
    """statvfs's answer."""

    bytes_free: int
    bytes_total: int
    inodes_total: int
    inodes_free: int
    read_only: bool


def load() -> tuple[Any, Any]:
    """The binding and the library.

    Raises:
        OSError: It is not installed.
    """
    from cffi import FFI

    ffi = FFI()
    ffi.cdef(HEADER)
    return ffi, ffi.dlopen(LIBRARY)


class Guestfs:
    """One appliance. One call at a time."""

    def __init__(self) -> None:
        self._ffi, self._lib = load()
        self._g = self._lib.guestfs_create_flags(self._ffi.cast("unsigned", _NO_AUTOMATIC_EXIT))
        if not self._g:
            raise GuestfsError("libguestfs gave no handle", errno.ENOMEM)
        self._lib.guestfs_set_error_handler(self._g, self._ffi.NULL, self._ffi.NULL)

    def close(self) -> None:
        """End the appliance, without asking it for anything."""
        if self._g:
            self._lib.guestfs_close(self._g)
            self._g = None

    # Before the launch.

    def prepare(self, settings: list[str], path: str) -> None:
        """Backend settings, and where the appliance lies."""
        self._do("set_backend", "direct")
        self._do("set_backend_settings", settings)
        self._do("set_path", path)
        # Every process of this appliance ends with our process namespace.
        self._do("set_recovery_proc", 0)
        # Syncing is asked for: the automatic one settles udev for every device.
        self._do("set_autosync", 0)

    def add_export(self, socket_path: str, export: str, snapshot: bool) -> None:
        """An NBD export on a Unix socket. snapshot: writes are thrown away."""
        server = [f"unix:{socket_path}"]
        self._do(
            "add_drive_opts",
            export,
            *self._option(_READONLY, int(snapshot)),
            *self._option(_FORMAT, "raw"),
            *self._option(_PROTOCOL, "nbd"),
            *self._option(_SERVER, server),
            *self._option(_CACHEMODE, "writeback"),
            self._ffi.cast("int", _END),
        )

    def launch(self) -> None:
        self._do("launch")

    def shut_down(self) -> None:
        """Quit the appliance, and hear whether QEMU could write everything."""
        self._do("shutdown")

    # Devices.

    def devices(self) -> list[str]:
        """Disks, in the order in which they were added."""
        return self._take_strings(self._ok("list_devices"))

    def kind(self, device: str) -> str:
        """What it holds, as blkid names it; "" where that knows nothing of it."""
        return self._take_string(self._ok("vfs_type", device))

    def read_partitions_again(self, device: str) -> None:
        self._do("blockdev_rereadpt", device)

    def scan_volume_groups(self) -> None:
        self._do("lvm_scan", 1)

    def drop_caches(self) -> None:
        """What the appliance's kernel has read and not changed."""
        self._do("drop_caches", 3)

    def load_module(self, name: str) -> None:
        """A module of the appliance's kernel, with all that it needs."""
        self._do("modprobe", name)

    def partitions(self) -> dict[tuple[int, int], tuple[int, int]]:
        """What the appliance's kernel sees, by numbers of the disk, as added, and the partition.

        Offset and length in bytes. The names that the kernel gives may be in another order
        than those of libguestfs. Its debug call is the only one that tells all this at
        once; the others settle udev for each partition.
        """
        below = "*/device/block/*/*/"
        files = " ".join(f"{below}{name}" for name in ("partition", "start", "size"))
        words = [f"cd /sys/class/scsi_disk && grep -s . {files}; true"]
        told: dict[tuple[int, str], dict[str, int]] = {}
        for line in self._take_string(self._ok("debug", "sh", words)).splitlines():
            found = _SYSFS.fullmatch(line)
            if found is not None:
                entry = told.setdefault((int(found[1]), found[2]), {})
                entry[found[3]] = int(found[4])
        return {
            (target, entry["partition"]): (entry["start"] * SECTOR, entry["size"] * SECTOR)
            for (target, _), entry in told.items()
            if len(entry) == 3
        }

    def kernel_log(self) -> str:
        return self._take_string(self._ok("dmesg"))

    def mount(self, device: str, kind: str, options: str, at: str) -> None:
        self._do("mkmountpoint", at)
        try:
            self._do("mount_vfs", options, kind, device, at)
        except GuestfsError:
            self._do("rmmountpoint", at)
            raise

    def unmount(self, at: str) -> None:
        self._do("umount", at)
        self._do("rmmountpoint", at)

    # Files.

    def lstat(self, path: str) -> Entry:
        found = self._ok("lstatns", path)
        try:
            return _entry(found)
        finally:
            self._lib.guestfs_free_statns(found)

    def readlink(self, path: str) -> str:
        return self._take_string(self._ok("readlink", path))

    def names(self, path: str) -> list[str]:
        return self._take_strings(self._ok("ls", path))

    def lstat_each(self, path: str, names: list[str]) -> list[Entry]:
        found = self._ok("lstatnslist", path, names)
        try:
            return [_entry(found.val[index]) for index in range(found.len)]
        finally:
            self._lib.guestfs_free_statns_list(found)

    def readlink_each(self, path: str, names: list[str]) -> list[str]:
        if not names:
            return []
        return self._take_strings(self._ok("readlinklist", path, names))

    def read(self, path: str, offset: int, length: int) -> bytes:
        """At most length bytes; fewer only where the file ends."""
        data = bytearray()
        while len(data) < length:
            piece = self._read_chunk(path, offset + len(data), length - len(data))
            if not piece:
                break
            data += piece
        return bytes(data)

    def _read_chunk(self, path: str, offset: int, length: int) -> bytes:
        got = self._ffi.new("size_t *")
        data = self._ok("pread", path, min(length, CHUNK_BYTES), offset, got)
        try:
            return bytes(self._ffi.buffer(data, got[0]))
        finally:
            self._lib.free(data)

    def write(self, path: str, data: bytes, offset: int) -> None:
        """Into an existing file, which grows where that is needed.

        Large files too go in chunks of this size: uploads are written 8 KiB at a time, and
        each is waited for on a file system that is mounted with sync.
        """
        done = 0
        while done < len(data):
            piece = data[done : done + CHUNK_BYTES]
            count = self._do("pwrite", path, piece, len(piece), offset + done)
            if count == 0:
                raise GuestfsError(f"nothing more could be written to {path}", errno.EIO)
            done += count

    def create(self, path: str, data: bytes) -> None:
        """A new file. The caller has seen that there is none."""
        first = data[:CHUNK_BYTES]
        self._do("write", path, first, len(first))
        self.write(path, data[len(first) :], len(first))

    def copy_attributes(self, source: str, target: str) -> None:
        """Mode, owner, group and extended attributes."""
        yes = self._option(_COPY_ALL, 1)
        self._do("copy_attributes", source, target, *yes, self._ffi.cast("int", _END))

    def copy_label(self, source: str, target: str) -> None:
        """SELinux's label. It is text: libguestfs cuts other values at their first zero."""
        got = self._ffi.new("size_t *")
        value = self._ok("lgetxattr", source, LABEL, got)
        try:
            label = bytes(self._ffi.buffer(value, got[0]))
        finally:
            self._lib.free(value)
        text = label.rstrip(b"\0")
        if b"\0" not in text:
            self._do("lsetxattr", LABEL, text, min(len(label), len(text) + 1), target)

    def chmod(self, path: str, mode: int) -> None:
        self._do("chmod", mode, path)

    def lchown(self, path: str, uid: int, gid: int) -> None:
        self._do("lchown", uid, gid, path)

    def rename(self, source: str, target: str) -> None:
        self._do("rename", source, target)

    def remove_file(self, path: str) -> None:
        self._do("rm", path)

    def remove_directory(self, path: str) -> None:
        self._do("rmdir", path)

    def make_directory(self, path: str, mode: int) -> None:
        self._do("mkdir_mode", path, mode)

    def make_link(self, path: str, target: str) -> None:
        self._do("ln_s", target, path)

    def free(self, path: str) -> Free:
        found = self._ok("statvfs", path)
        try:
            return Free(
                found.bavail * found.frsize,
                found.blocks * found.frsize,
                found.files,
                found.favail,
                bool(found.flag & os.ST_RDONLY),
            )
        finally:
            self._lib.guestfs_free_statvfs(found)

    def sync(self) -> None:
        self._do("sync")

    # How every call is made.

    def _do(self, name: str, *arguments: object) -> int:
        answer = self._call(name, arguments)
        if answer == -1:
            raise self._error(name)
        return int(answer)

    def _ok(self, name: str, *arguments: object) -> Any:
        answer = self._call(name, arguments)
        if not answer:
            raise self._error(name)
        return answer

    def _call(self, name: str, arguments: tuple[object, ...]) -> Any:
        kept: list[Any] = []  # cffi frees what nobody holds
        ready = [self._as_c(argument, kept) for argument in arguments]
        return getattr(self._lib, f"guestfs_{name}")(self._g, *ready)

    def _as_c(self, argument: object, kept: list[Any]) -> Any:
        """str and lists of str as C has them; all else is left as it is."""
        if isinstance(argument, str):
            made = self._ffi.new("char[]", _encoded(argument))
        elif isinstance(argument, list):
            strings = [self._as_c(text, kept) for text in argument]
            array = self._ffi.new("char *[]", [*strings, self._ffi.NULL])
            kept.append(array)
            return self._ffi.cast("char **", array)
        else:
            return argument
        kept.append(made)
        return made

    def _option(self, number: int, value: object) -> Iterator[object]:
        """One of a call's optional arguments: its number, then its value."""
        yield self._ffi.cast("int", number)
        yield self._ffi.cast("int", value) if isinstance(value, int) else value

    def _error(self, name: str) -> GuestfsError:
        said = self._lib.guestfs_last_error(self._g)
        message = _decoded(self._ffi.string(said)) if said else f"{name} failed"
        return GuestfsError(message, int(self._lib.guestfs_last_errno(self._g)))

    def _take_string(self, said: Any) -> str:
        text = _decoded(self._ffi.string(said))
        self._lib.free(said)
        return text

    def _take_strings(self, said: Any) -> list[str]:
        texts: list[str] = []
        while said[len(texts)]:
            texts.append(self._take_string(said[len(texts)]))
        self._lib.free(said)
        return texts


def _encoded(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise GuestfsError("a name with a zero byte in it", errno.EINVAL)
    return data


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _entry(found: Any) -> Entry:
    return Entry(
        found.st_mode,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_size,
        found.st_mtime_sec * 1_000_000_000 + found.st_mtime_nsec,
    )
