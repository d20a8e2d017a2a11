"""Where a disk is failed back to: a file, a VMDK, or an NBD export, as one thing to write.

A place is a path (a VMDK by its name, else a raw disk) or an NBD URI. It may be larger
than the disk, which is said; a smaller one is refused. Nothing behind the disk's end is
ever written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat as modes
import struct
from functools import partial
from typing import TYPE_CHECKING

import xxhash

from . import locks, nbd_client
from ._native import RUN_DATA, Disk
from .closing import Closing
from .disk import OpenDisk, create_disk, open_disk
from .errors import LockedError, StateError, UnsupportedError, UsageError, system_error
from .links import open_links
from .nbd_client import NbdClient
from .seed import image_format
from .units import format_size

if TYPE_CHECKING:
    from typing_extensions import Buffer

NEW_VMDK_TYPE = "monolithicSparse"
NEW_RAW_TYPE = "raw"


class Target(Closing):
    """A place that is written, or read back. Made by `open_target`; a context manager.

    Leaving it without an error does not flush: `flush` does.

    Attributes:
        place: As it was given.
        size_bytes: Of the disk that it holds.
        note: What is to be said of it; "": nothing.
    """

    def __init__(
        self, place: str, size_bytes: int, opened: OpenDisk | NbdClient, *, writable: bool
    ) -> None:
        self.place = place
        self.size_bytes = size_bytes
        self.note = ""
        self._writable = writable
        self._opened: OpenDisk | NbdClient | None = opened
        if opened.size_bytes < size_bytes:
            raise UsageError(
                f"{place} has {opened.size_bytes} bytes, the disk has {size_bytes}: it does "
                "not fit",
                "give a target that is at least as large",
            )
        if opened.size_bytes > size_bytes:
            rest = opened.size_bytes - size_bytes
            self.note = (
                f"{place} is larger than the disk: its last {format_size(rest)} "
                f"({rest} bytes) stay as they are"
            )

    def _open(self) -> OpenDisk | NbdClient:
        if self._opened is None:
            raise StateError(f"{self.place} is closed", "open it again")
        return self._opened

    @property
    def native(self) -> Disk | None:
        """The native disk, about to be written if it is open for that; None: it is an export."""
        opened = self._open()
        if isinstance(opened, NbdClient):
            return None
        return opened.writing() if self._writable else opened.reading

    @property
    def client(self) -> NbdClient | None:
        """The connection to an export; None: it is a file."""
        opened = self._open()
        return opened if isinstance(opened, NbdClient) else None

    def pread(self, length: int, offset: int) -> bytes:
        """Return length bytes from offset."""
        return self._open().pread(length, offset)

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write data at offset; durable after `flush`."""
        opened = self._open()
        if isinstance(opened, NbdClient):
            opened.pwrite(bytes(data), offset)
        else:
            opened.pwrite(data, offset)

    def zero(self, length: int, offset: int) -> None:
        """Make length bytes at offset read as zeros; their space may go."""
        self._open().zero(length, offset)

    def run(self, offset: int, length: int) -> tuple[int, bool]:
        """How many bytes from offset on, at most length, have one answer; whether it is zeros."""
        opened = self._open()
        if isinstance(opened, NbdClient):
            return opened.run(offset, length)
        found = opened.run(offset, length)
        return found.length_bytes, found.kind != RUN_DATA

    def flush(self) -> None:
        """Return when everything written before is durable."""
        self._open().flush()

    def close(self) -> None:
        """Let it go: a VMDK is marked clean. May be called twice."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()


def open_target(
    place: str, size_bytes: int, *, create: bool = False, writable: bool = True
) -> Target:
    """Open a place that a disk of that size is failed back to.

    Args:
        create: Make a file that is not there: a raw file of holes, or a monolithicSparse
            VMDK where its name ends so. It then reads as zeros.
        writable: False opens it to be read back.

    Raises:
        UsageError: It is smaller than the disk, or takes no writes.
        NotFoundError: It is not there.
        LockedError: Another process of this project writes it, or QEMU has it open.
        UnsupportedError: It is a block device.
        FormatError, StorageError, ...: It cannot be opened.
    """
    opened: OpenDisk | NbdClient
    if nbd_client.is_uri(place):
        opened = NbdClient(nbd_client.parse_uri(place))
    else:
        if create and not os.path.lexists(place):
            type = NEW_RAW_TYPE if image_format(place) == "raw" else NEW_VMDK_TYPE
            create_disk(place, type, size_bytes)
        _require_no_device(place)
        if writable:
            for path in _files(place):
                locks.patiently(partial(_require_unused_by_qemu, path))
        opened = open_disk(place, writable=writable, format=image_format(place))
    try:
        if writable and opened.read_only:
            raise UsageError(f"{place} takes no writes", "export it for writing")
        return Target(place, size_bytes, opened, writable=writable)
    except BaseException:
        opened.close()
        raise


def _require_no_device(place: str) -> None:
    with contextlib.suppress(OSError):
        if modes.S_ISBLK(os.stat(place).st_mode):
            raise UnsupportedError(
                f"{place} is a block device, which is not written directly",
                f"export it: nbdkit --unix /run/target.sock file {place}; and give "
                "nbd+unix:///?socket=/run/target.sock",
            )


# QEMU locks a byte of each image for each thing that it does there (from 100 on), and for
# each that nobody else may do (from 200 on); the second of each is writing.
# Source: QEMU, block/file-posix.c, RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE, BLK_PERM_WRITE.
_QEMU_WRITES = (101, 201)


def _require_unused_by_qemu(path: str) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise system_error(f"opening {path}", error.errno or 0) from None
    try:
        for byte in _QEMU_WRITES:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            found = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, asked)
            if struct.unpack_from("h", found)[0] != fcntl.F_UNLCK:
                raise LockedError(
                    f"a QEMU process has {path} open",
                    "shut that machine down, or end what exports the file",
                )
    finally:
        os.close(handle)


def is_new(place: str) -> bool:
    """Whether open_target would make it."""
    return not nbd_client.is_uri(place) and not os.path.lexists(place)


def same_place(one: str, other: str) -> bool:
    """Whether two places are one: the same export, or the same file, whatever leads there."""
    if not one or not other:
        return False
    if nbd_client.is_uri(one) or nbd_client.is_uri(other):
        if not (nbd_client.is_uri(one) and nbd_client.is_uri(other)):
            return False
        return nbd_client.parse_uri(one) == nbd_client.parse_uri(other)
    return os.path.realpath(one) == os.path.realpath(other)


def stamp(place: str) -> str:
    """What changes whenever the place is written; "" where nothing can tell.

    Of a disk that is files: their names, inodes, sizes, and times of the last change of
    content and of anything at all. An export, or a block device, tells nothing.

    Raises:
        NotFoundError, FormatError, StorageError: It cannot be looked at.
    """
    if nbd_client.is_uri(place):
        return ""
    digest = xxhash.xxh3_128()
    for path in _files(place):
        try:
            facts = os.stat(path)
        except OSError as error:
            raise system_error(f"looking at {path}", error.errno or 0) from None
        if not modes.S_ISREG(facts.st_mode):
            return ""
        name = os.path.basename(path)
        digest.update(
            f"{name}\0{facts.st_ino}\0{facts.st_size}\0{facts.st_mtime_ns}\0"
            f"{facts.st_ctime_ns}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


def _files(place: str) -> list[str]:
    """All files of a disk, the descriptor among them, and those of its parents."""
    if image_format(place) == "raw":
        return [place]
    links = open_links(place)
    try:
        found: dict[str, None] = {}
        for link in links:
            found[link.path] = None
            found.update((file.path, None) for file in link.files())
        return list(found)
    finally:
        for link in links:
            link.close()
