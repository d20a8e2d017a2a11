"""One file system of a guest, and how it is reached.

Paths here are relative to the root of that file system: "" is the root itself, "a/b" a
file in it. Names are str; bytes that are no UTF-8 are surrogate escapes. No call ever
follows a symbolic link, in the last part or before: it is refused (PathError). Whoever
wants links followed resolves them in the guest's own tree: tree.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

from ..volumes.base import Volume

Mode = Literal["files", "appliance", "host"]
Kind = Literal["file", "directory", "link", "other"]
READ_BYTES_MAX = 256 << 20  # more than any file that is converted; a limit for hostile ones


class Stat(NamedTuple):
    """What lstat says of a file.

    target: Of a symbolic link, otherwise "".
    """

    kind: Kind
    mode: int  # permission bits alone
    uid: int
    gid: int
    size_bytes: int
    modified_ns: int
    links: int
    target: str = ""


class Space(NamedTuple):
    """What is free; inodes_free is None where the file system does not count them."""

    bytes_free: int
    bytes_total: int
    inodes_free: int | None


class FileSystem(Protocol):
    """A mounted volume.

    Raises, in every call:
        NotFoundError: There is no such file.
        PathError: The path goes through a link, leaves the file system, or is of another
            kind than the call wants (a FIFO is never opened).
        GuestError: The file system is damaged, full, read-only, or its driver died.
    """

    @property
    def volume(self) -> Volume: ...

    @property
    def mode(self) -> Mode: ...

    @property
    def writable(self) -> bool: ...

    def lstat(self, path: str) -> Stat | None:
        """None: there is nothing of that name."""

    def list(self, path: str) -> dict[str, Stat]:
        """What a directory holds, without "." and "..", in one round trip."""

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """A regular file's bytes; None: to its end. Longer than READ_BYTES_MAX is refused."""

    def write(self, path: str, data: bytes, offset: int) -> None:
        """Overwrite, or extend, an existing regular file in place."""

    def replace(self, path: str, data: bytes, mode: int | None = None) -> None:
        """A new content, atomically: a new file beside it, synced, renamed over it.

        Mode, owner, group and extended attributes (labels) are those of the file that was
        there. A new file gets mode (0644), and the owner and group of its directory.
        """

    def remove(self, path: str) -> None:
        """A file or a link, or an empty directory."""

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        """Owner and group are those of the directory it is in. It may be there already."""

    def make_link(self, path: str, target: str) -> None:
        """A symbolic link; what was there is replaced unless it is a directory."""

    def space(self) -> Space: ...

    def sync(self) -> None:
        """Durable as far as the disk below makes it durable."""

    def close(self) -> None:
        """Sync, unmount, end what served it. May be called twice."""


class Lacking(str):
    """A refusal that ends when something is installed, or loaded, on this host."""


class Backend(Protocol):
    """One way in."""

    @property
    def mode(self) -> Mode: ...

    def refusal(self, volume: Volume) -> str:
        """Why it cannot open that volume here ("" when it can): kind, trust; or what is Lacking."""

    def open(self, volume: Volume, *, writable: bool, subvolume: str = "") -> FileSystem:
        """Mount it. A dirty journal is replayed first when writable.

        Raises:
            UnsupportedError, ToolMissingError: As refusal says.
            GuestError: The file system's driver refused it, with its words.
        """

    def close(self) -> None:
        """Close what is open, end every process. May be called twice, and after failures."""


class Closable(Protocol):
    """What has an end."""

    def close(self) -> None: ...


def close_all(opened: Iterable[Closable]) -> None:
    """Close every one; the first error is raised when all are closed."""
    failed: Exception | None = None
    for one in opened:
        try:
            one.close()
        except Exception as error:
            failed = failed or error
    if failed is not None:
        raise failed
