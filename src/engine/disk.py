"""VMDK disks: open, read, write, describe, map and check. Creating is in create.py.

Everything here sees a disk as its chain: what the top link does not hold comes
from its parents. Only the top link is ever written.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from ._native import (
    EXTENT_SPARSE,
    OPEN_CREATE,
    OPEN_EXCLUSIVE,
    OPEN_WRITE,
    RUN_DATA,
    Chain,
    File,
    Image,
    Io,
    merge,
    sparse_create,
)
from .check import check
from .create import create_disk
from .descriptor_write import new_cid
from .errors import StateError
from .facts import Info, OvaInfo, describe, describe_ova
from .layouts import TYPES
from .link import Link
from .links import open_links, problems
from .ranges import MapEntry, Run, map_runs
from .units import SECTOR_BYTES

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "TYPES",
    "Info",
    "MapEntry",
    "OpenDisk",
    "OvaInfo",
    "Run",
    "check",
    "create_disk",
    "describe_ova",
    "info",
    "map_ranges",
    "open_disk",
    "open_snapshot",
]

_SCRATCH_GRAIN_SECTORS = 8  # 4 KiB: no copy-up for what guests write


# called with bytes done and bytes in all
Progress = Callable[[int, int], None]


def teller(progress: Progress | None, total: int) -> Callable[[int], bool] | None:
    """What the native side calls; it stops by an exception alone."""
    if progress is None:
        return None

    def told(done: int) -> bool:
        progress(done, total)
        return True

    return told


class OpenDisk:
    """An open disk. Made by ``open_disk``; a context manager.

    Leaving it without an exception flushes it and marks it clean; with one, it is
    let go as a crash would, which loses nothing that was flushed.
    """

    def __init__(
        self, path: str, links: list[Link], chain: Chain, *, writable: bool, scratch: bool = False
    ) -> None:
        self.path = path
        self._links = links
        self._chain: Chain | None = chain
        self._writable = writable
        self._begun = scratch or links[0].descriptor is None
        self._lock = threading.Lock()
        self._old_cid: int | None = None

    def _open_chain(self) -> Chain:
        if self._chain is None:
            raise StateError(f"{self.path} is closed", "open it again")
        return self._chain

    @property
    def size_bytes(self) -> int:
        return self._open_chain().size_bytes

    @property
    def read_only(self) -> bool:
        return not self._writable

    @property
    def links(self) -> list[Link]:
        """The files, top link first."""
        return self._links

    def writing(self) -> Chain:
        """The native disk, about to be written: the content id has changed durably.

        Once for each open, so that children made before know that what they
        read through is not what it was.
        """
        self._open_chain()
        if self._writable and not self._begun:
            self.begin(new_cid())  # no variable has the chain: see merge
        return self._open_chain()

    def _to_write(self, length: int) -> Chain:
        """As ``writing``; but nothing at all is no write, and changes no content id."""
        return self.writing() if length else self._open_chain()

    def begin(self, cid: int) -> None:
        """Give the disk a content id before its first write, unless it has got one."""
        with self._lock:
            if not self._begun:
                descriptor = self._links[0].descriptor
                assert descriptor is not None
                self._links[0].rewrite(cid=cid)
                self._old_cid, self._begun = descriptor.cid, True

    def keep_cid(self) -> None:
        """Nobody can have made a child of it before: it is written with the content id it has."""
        with self._lock:
            self._begun = True

    @property
    def may_be_written(self) -> bool:
        """Whether it is open for writing, and has the content id for that."""
        return self._writable and self._begun

    def unwritten(self) -> None:
        """Nothing has been written through ``native`` after all: the old content id again."""
        with self._lock:
            if self._old_cid is not None:
                self._links[0].rewrite(cid=self._old_cid)
                self._old_cid, self._begun = None, False

    @property
    def native(self) -> Chain:
        """The native disk, for an export or a copy; if it is writable it may be written."""
        return self.writing()

    @property
    def reading(self) -> Chain:
        """The native disk, to be read only: a copy's source, a journal's base."""
        return self._open_chain()

    def pread(self, length: int, offset: int) -> bytes:
        """Return length bytes from offset."""
        return self._open_chain().pread(length, offset)

    def pread_into(self, buffer: Buffer, offset: int) -> None:
        """Fill a writable buffer from offset."""
        self._open_chain().pread_into(buffer, offset)

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write a bytes-like object at offset; durable after ``flush``."""
        self._to_write(memoryview(data).nbytes).pwrite(data, offset)

    def zero(self, length: int, offset: int, may_trim: bool = True) -> None:
        """Make length bytes at offset read as zeros; may_trim lets their space go."""
        self._to_write(length).zero(length, offset, may_trim)

    def flush(self) -> None:
        """Return when everything written before is durable."""
        self._open_chain().flush()

    def finish(self) -> None:
        """Flush and mark clean, also where an earlier writer was cut short; it stays open."""
        chain, at = self._open_chain(), 0
        for (extent, _), header in zip(self._links[0].extents, self._links[0].headers, strict=True):
            stop = at + extent.sectors * SECTOR_BYTES
            if header is not None and header.get("unclean_shutdown"):
                # The mark goes with the end of a writer: be one, of what is there already.
                for run in self.runs(at, stop - at):
                    if run.depth == 0 and run.kind == RUN_DATA:
                        place = run.offset_bytes
                        chain.pwrite(chain.pread(SECTOR_BYTES, place), place)
                        break
            at = stop
        chain.close_clean()

    def run(self, offset: int, length: int) -> Run:
        """The run at offset, cut to length; it may be shorter than the true one."""
        return Run(offset, *self._open_chain().run(offset, length))

    def runs(self, offset: int = 0, length: int | None = None) -> Iterator[Run]:
        """Runs from offset on that cover the range without gap or overlap."""
        stop = self.size_bytes if length is None else offset + length
        while offset < stop:
            run = self.run(offset, stop - offset)
            yield run
            offset += run.length_bytes

    def merge(
        self, count: int, target: OpenDisk, progress: Progress | None = None
    ) -> None:
        """Write into target what the topmost links hold themselves. Asked twice, it happens once.

        Args:
            count: How many links.
            target: A disk that holds the rest already: the link below them, opened
                by itself for writing.
            progress: Called with bytes done and bytes in all.
        """
        # nothing native is left in a variable: an exception that somebody keeps
        # would keep it too, and with it the locks of its files
        told = teller(progress, self.size_bytes)
        merge(self._open_chain(), count, target.writing(), progress=told)

    def info(self) -> Info:
        """What the disk is, as ``info`` says."""
        return describe(self.path, self._links)

    def close(self, clean: bool = True) -> None:
        """Flush, mark clean and let go. May be called twice.

        Args:
            clean: False lets go as a crash would.
        """
        chain, self._chain = self._chain, None
        if chain is None:
            return
        try:
            if clean and self._writable:
                chain.close_clean()
        finally:
            del chain
            for link in self._links:
                link.close()

    def __enter__(self) -> OpenDisk:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(clean=kind is None)


def open_disk(
    path: str | os.PathLike[str],
    *,
    writable: bool = False,
    format: str | None = None,
    io: Io | None = None,
    allow_root: str | None = None,
) -> OpenDisk:
    """Open a VMDK chain, or a raw disk where the caller says that it is one.

    Args:
        path: Of the descriptor, or of the one file of a disk that has it inside; or of
            a disk in an OVA: ``vm.ova:disk1.vmdk``, or ``vm.ova`` where it has only one.
        writable: The top link may be written. It is locked until close.
        format: "raw" for a raw disk. Nothing is ever guessed to be raw: its first
            bytes belong to a guest, who could make them say anything.
        io: Where the files are; the file system by default.
        allow_root: A directory in which extents and parents may lie. By default
            they are plain names in the directory of the file that names them.

    Raises:
        NotFoundError, StorageError: A file is missing, or the system refuses it.
        FormatError: A file is not a VMDK, or names nonsense.
        UnsupportedError: It is of a kind that is not read; the message says why.
        DamagedError: The links of the chain do not belong together.
        LockedError: Another process has it open for writing.
    """
    path = os.fspath(path)
    links = open_links(path, writable=writable, format=format, io=io, allow_root=allow_root)
    try:
        for problem in problems(links):
            raise problem
        chain = Chain([link.image(writable and link is links[0]) for link in links])
        return OpenDisk(path, links, chain, writable=writable)
    except BaseException:
        for link in links:
            link.close()
        raise


def open_snapshot(
    path: str | os.PathLike[str],
    *,
    scratch_dir: str | None = None,
    format: str | None = None,
    allow_root: str | None = None,
) -> OpenDisk:
    """Open a chain so that it can be written, and nothing of that is kept.

    Args:
        scratch_dir: A directory with room for what will be written; by default
            the one for temporary files. The file in it has no name, so its space
            goes back whatever becomes of this process.
    """
    path = os.fspath(path)
    links = open_links(path, format=format, allow_root=allow_root)
    try:
        for problem in problems(links):
            raise problem
        sectors = links[0].size_bytes // SECTOR_BYTES
        scratch = _scratch_file(sectors, scratch_dir)
        top = Image([(EXTENT_SPARSE, sectors, scratch, 0)], True)
        chain = Chain([top, *(link.image(False) for link in links)])
        return OpenDisk(path, links, chain, writable=True, scratch=True)
    except BaseException:
        for link in links:
            link.close()
        raise


def _scratch_file(sectors: int, scratch_dir: str | None) -> File:
    if scratch_dir is not None:
        Io.posix().open_dir(scratch_dir)  # says better what is wrong with it
    with tempfile.TemporaryDirectory(prefix="rollpoint-", dir=scratch_dir) as folder:
        dir = Io.posix().open_dir(folder)
        file = dir.open("overlay", OPEN_WRITE | OPEN_CREATE | OPEN_EXCLUSIVE)
        sparse_create(
            file,
            kind=EXTENT_SPARSE,
            capacity_sectors=sectors,
            grain_sectors=_SCRATCH_GRAIN_SECTORS,
            zero_grains=True,
        )
        dir.unlink("overlay")
        return file


def info(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    allow_root: str | None = None,
    io: Io | None = None,
) -> Info:
    """What a disk is: type, sizes, content ids, and each link of its chain with its extents."""
    path = os.fspath(path)
    links = open_links(path, format=format, allow_root=allow_root, io=io)
    try:
        return describe(path, links)
    finally:
        for link in links:
            link.close()


def map_ranges(disk: OpenDisk) -> Iterator[MapEntry]:
    """The allocated ranges, as ``qemu-img map --output=json`` says them, one by one."""
    return map_runs(disk.runs(), disk.links[-1])
