"""The journal of a replica disk as files: `<disk>-journal.vmdk` and its log.

The descriptor makes the log a VMDK child of the base, so that any reader of
VMDK sees the disk as of the point that the log shows. What is in the log is
the native side's: see src/_native/journal.h.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from types import TracebackType
from typing import NamedTuple

from ._native import (
    OPEN_CREATE,
    OPEN_EXCLUSIVE,
    OPEN_READ,
    OPEN_WRITE,
    Dir,
    Disk,
    File,
    Io,
    Journal,
    Swap,
    journal_create,
)
from .descriptor import Extent, require_base_name
from .descriptor_write import format_descriptor, new_descriptor
from .disk import OpenDisk, open_disk
from .errors import Error, ExistsError, StateError
from .units import SECTOR_BYTES

GRAIN_BYTES = 4096
SEGMENT_BYTES = 64 << 20


class JournalNames(NamedTuple):
    """File names of a disk's journal, in the directory of its base."""

    descriptor: str
    log: str


def journal_names(disk: str) -> JournalNames:
    """The names for a disk called ``disk`` (without ``.vmdk``)."""
    return JournalNames(f"{disk}-journal.vmdk", f"{disk}-journal-log.vmdk")


class Damage(NamedTuple):
    """One thing that ``OpenJournal.verify`` found."""

    position: int  # byte in the log
    guest_offset_bytes: int | None  # None: it is not about data of the disk
    length_bytes: int
    message: str


def create_journal(
    base_path: str | os.PathLike[str],
    disk: str,
    *,
    grain_bytes: int = GRAIN_BYTES,
    segment_bytes: int = SEGMENT_BYTES,
    epoch: int = 1,
    io: Io | None = None,
) -> JournalNames:
    """Make an empty journal above a base, beside it. Durable on return.

    It appears with one step, its descriptor's rename; a log that a crash left
    without a descriptor is in nobody's way and is replaced.

    Args:
        base_path: The base's VMDK descriptor (or its one file).
        disk: The disk's name, which the files get.
        grain_bytes: 4096 to 65536, a power of two.
        segment_bytes: 64 KiB to 1 GiB.

    Raises:
        ExistsError: The disk has a journal already.
        UsageError: A size is outside its range.
        StorageError: The file system refused something.
    """
    names = journal_names(disk)
    with open_disk(base_path, io=io) as base:
        link = base.links[0]
        descriptor = link.descriptor
        if descriptor is None:
            raise StateError(
                f"{base.path} is a raw disk, which no child can name as its parent",
                "give it a descriptor: rollpoint disk convert",
            )
        require_base_name(names.log, base.path, "disk")
        text = format_descriptor(
            new_descriptor(
                "twoGbMaxExtentSparse",
                [Extent("RW", base.size_bytes // SECTOR_BYTES, "SPARSE", names.log)],
                parent=(link.name, descriptor.cid),
            )
        )
        _make(link.dir, names, text, base.size_bytes, grain_bytes, segment_bytes, epoch)
    return names


def _make(
    dir: Dir,
    names: JournalNames,
    text: bytes,
    capacity_bytes: int,
    grain_bytes: int,
    segment_bytes: int,
    epoch: int,
) -> None:
    if dir.exists(names.descriptor):
        raise ExistsError(f"{dir.path}/{names.descriptor} exists", "remove the replica first")
    if dir.exists(names.log):
        dir.unlink(names.log)
    file = dir.open(names.log, OPEN_WRITE | OPEN_CREATE | OPEN_EXCLUSIVE)
    try:
        journal_create(
            file,
            capacity_bytes=capacity_bytes,
            grain_bytes=grain_bytes,
            segment_bytes=segment_bytes,
            id=secrets.token_bytes(16),
            epoch=epoch,
        )
    except BaseException:
        dir.unlink(names.log)
        raise
    finally:
        file.close()
    dir.sync()  # the log's name is durable before the descriptor names it
    dir.replace(names.descriptor, text)


class OpenJournal:
    """An open journal. Made by ``open_journal``; a context manager.

    Leaving it without an exception commits what was written. With an exception
    it is let go as in a crash. What the log shows changes only by a roll back,
    and by ``close(clean=True)``.
    """

    def __init__(
        self,
        path: str,
        native: Journal,
        file: File,
        base: OpenDisk | None,
        writable: bool,
        swap: Swap | None = None,
    ) -> None:
        self.path = path
        self.base = base
        self.writable = writable
        self._file = file
        self._native: Journal | None = native
        self._swap = swap

    @property
    def native(self) -> Journal:
        """The native journal: commit, mark, roll, points, info."""
        if self._native is None:
            raise StateError(f"{self.path} is closed", "open it again")
        return self._native

    @property
    def disk(self) -> Disk:
        """The newest state of the disk; what is written to it is logged."""
        return self.native.disk()

    @property
    def target(self) -> Disk:
        """The base as the journal has it, to be written by a destage; see open_journal."""
        if self._swap is None:
            raise StateError(f"the base of {self.path} is open for reading", "open it for writing")
        return self._swap

    def put_base(self, base: OpenDisk) -> OpenDisk:
        """Read through another chain from now on, which shows the same where this one has
        nothing; returns the one before, which nobody is in any more, for the caller to close.
        """
        if self._swap is None or self.base is None:
            raise StateError(f"the base of {self.path} is open for reading", "open it for writing")
        self._swap.put(base.reading)
        before, self.base = self.base, base
        return before

    def verify(self) -> list[Damage]:
        """Re-read everything against its checksum; what was found."""
        found: list[tuple[int | None, int, int | None, int, str]] = []
        self.native.scrub(found)
        return [Damage(*row[1:]) for row in found]

    def sync(self) -> None:
        """Make durable what was written past the log's own appending, as by a mend."""
        self._file.sync()

    def read_file(self, length: int, offset: int) -> bytes:
        """Bytes of the log as they lie in its file; fewer where it ends."""
        return self._file.pread(length, offset)

    def close(self, clean: bool = False) -> None:
        """Let it go, with its lock, as in a crash. May be called twice.

        Args:
            clean: Close in order first, as the last act of a writer: commit, show
                the end of the log, and say so in it. The next open is quick then.
        """
        native, self._native = self._native, None
        if native is None:
            return
        try:
            if clean:
                native.close_clean()
        finally:
            native.close()
            del native
            self._swap = None
            self._file.close()
            if self.base is not None:
                # What it has not got durably, the log still has.
                with contextlib.suppress(Error):
                    self.base.close(clean=clean and self.base.may_be_written)

    def __enter__(self) -> OpenJournal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self.writable and self._native is not None:
                self._native.commit()
        finally:
            self.close()


def open_journal(
    log_path: str | os.PathLike[str],
    base_path: str | os.PathLike[str] | None = None,
    *,
    writable: bool = False,
    writable_base: bool = False,
    epoch: int = 0,
    io: Io | None = None,
) -> OpenJournal:
    """Open a journal by its log file.

    Args:
        log_path: ``<disk>-journal-log.vmdk``.
        base_path: The descriptor of what is below it; None where neither data is read
            nor written (points, roll back, verify).
        writable: Takes the lock and recovers the end of the log.
        writable_base: The base is locked too: ``target`` may be written, which is for who
            lets the journal follow its content id, and ``put_base`` exchange it.
        epoch: The writer's; 0 takes the one on disk.

    Raises:
        NotFoundError, StorageError, FormatError: No such log, or it is none.
        DamagedError: Something that had been synced is not there any more.
        LockedError: Another process has it open for writing.
        StaleEpochError: The epoch on disk is newer.
    """
    path = os.fspath(log_path)
    folder, name = os.path.split(path)
    base = None if base_path is None else open_disk(base_path, writable=writable_base, io=io)
    file: File | None = None
    try:
        dir = (io or Io.posix()).open_dir(folder or ".")
        file = dir.open(name, OPEN_WRITE if writable else OPEN_READ)
        below = None if base is None else base.reading
        swap = Swap(below) if writable_base and below is not None else None
        native = Journal(file, swap or below, writable=writable, epoch=epoch)
        return OpenJournal(path, native, file, base, writable, swap)
    except BaseException:
        if file is not None:
            file.close()
        if base is not None:
            base.close(clean=False)
        raise
