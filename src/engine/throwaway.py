"""Disks that can be written, and nothing of that is kept: for looking, and for rehearsing.

A file system that was cut off by a crash is whole again only when its journal has been
replayed, which writes. Here it writes into a file that has no name, above a disk that is
only read; its space goes back whatever becomes of this process.
"""

from __future__ import annotations

import tempfile
from typing import Protocol

from ._native import OPEN_CREATE, OPEN_EXCLUSIVE, OPEN_WRITE, Disk, File, Io, scratch_disk
from .closing import Closing
from .errors import StateError

_FILE_NAME = "overlay"


class Below(Protocol):
    """A disk that somebody has open."""

    @property
    def reading(self) -> Disk: ...


class Throwaway(Closing):
    """A writable disk above another one. A context manager.

    Args:
        below: What it shows at first. It stays its owner's, and must stay open until
            this is closed.
        scratch_dir: A directory with room for what will be written; by default the one
            for temporary files.
        file: Takes what is written, in place of one without a name. It is empty.

    Raises:
        StorageError: There can be no file as large as the disk in scratch_dir.
    """

    def __init__(
        self, below: Below, scratch_dir: str | None = None, file: File | None = None
    ) -> None:
        self._file = file or nameless_file(scratch_dir)
        try:
            self._native: Disk | None = scratch_disk(below.reading, self._file)
        except BaseException:
            self._file.close()
            raise

    @property
    def reading(self) -> Disk:
        """The native disk, which can be written too; nobody may be in it at the end."""
        if self._native is None:
            raise StateError("the throw-away disk is closed", "make another one")
        return self._native

    @property
    def size_bytes(self) -> int:
        return self.reading.size_bytes

    def pread(self, length: int, offset: int) -> bytes:
        """Return length bytes from offset."""
        return self.reading.pread(length, offset)

    @property
    def written_bytes(self) -> int:
        """What it takes on the host."""
        return self._file.stat().allocated_bytes

    def close(self) -> None:
        """Throw it away. May be called twice."""
        if self._native is not None:
            self._native = None
            self._file.close()


def nameless_file(folder: str | None) -> File:
    """An empty file that is gone when it is closed.

    Raises:
        NotFoundError, StorageError: There is no such directory, or none may be made in it.
    """
    if folder is not None:
        Io.posix().open_dir(folder).close()  # says better what is wrong with it
    with tempfile.TemporaryDirectory(prefix="rollpoint-", dir=folder) as place:
        dir = Io.posix().open_dir(place)
        file = dir.open(_FILE_NAME, OPEN_WRITE | OPEN_CREATE | OPEN_EXCLUSIVE)
        dir.unlink(_FILE_NAME)
        return file
