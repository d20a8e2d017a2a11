"""A directory of this host as a guest's file system: for tests, and for what is mounted here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NoReturn, cast

from ..errors import Error, GuestError, NotFoundError, PathError
from ..volumes.base import Volume
from .base import Kind, Mode, Space, Stat
from .beneath import ENCODING, Beneath, Facts, Refused

_NOWHERE = Volume("local", (), 0, "ext4")
_ERRORS: dict[str, tuple[type[Error], str]] = {
    "missing": (NotFoundError, "check the path"),
    "path": (PathError, "the guest's files are not as they should be there: look at them"),
    "guest": (GuestError, "look at the guest's file system"),
}


class LocalFileSystem:
    """The files beneath a directory of this host.

    Args:
        root: The directory: its path, or a descriptor, which is kept.
        volume, mode, writable: What to answer for them.

    Raises:
        NotFoundError: There is no such directory.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | int,
        *,
        volume: Volume = _NOWHERE,
        mode: Mode = "host",
        writable: bool = True,
    ) -> None:
        if not isinstance(root, int):
            try:
                root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise NotFoundError(f"there is no directory {root}", "check the path") from None
        self._beneath = Beneath(root)
        self._volume = volume
        self._mode: Mode = mode
        self._writable = writable

    @property
    def volume(self) -> Volume:
        """What it lies on."""
        return self._volume

    @property
    def mode(self) -> Mode:
        """How it is reached."""
        return self._mode

    @property
    def writable(self) -> bool:
        """Whether it takes changes."""
        return self._writable

    def lstat(self, path: str) -> Stat | None:
        """None: there is nothing of that name."""
        with _translated():
            facts = self._beneath.lstat(raw(path))
        return None if facts is None else stat_of(facts)

    def list(self, path: str) -> dict[str, Stat]:
        """What a directory holds."""
        with _translated():
            found = self._beneath.list(raw(path))
        return {name.decode(*ENCODING): stat_of(facts) for name, facts in found.items()}

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """A regular file's bytes."""
        with _translated():
            return self._beneath.read(raw(path), offset, length)

    def write(self, path: str, data: bytes, offset: int) -> None:
        """Overwrite or extend a regular file in place."""
        self._want_writable(path)
        with _translated():
            self._beneath.write(raw(path), data, offset)

    def replace(self, path: str, data: bytes, mode: int | None = None) -> None:
        """A new content, atomically."""
        self._want_writable(path)
        with _translated():
            self._beneath.replace(raw(path), data, mode)

    def remove(self, path: str) -> None:
        """A file, a link, or an empty directory."""
        self._want_writable(path)
        with _translated():
            self._beneath.remove(raw(path))

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        """It may be there already."""
        self._want_writable(path)
        with _translated():
            self._beneath.make_directory(raw(path), mode)

    def make_link(self, path: str, target: str) -> None:
        """A symbolic link, in place of a file or link."""
        self._want_writable(path)
        with _translated():
            self._beneath.make_link(raw(path), raw(target))

    def space(self) -> Space:
        """What is free."""
        with _translated():
            return Space(*self._beneath.space())

    def sync(self) -> None:
        """Write out what is held back."""
        with _translated():
            self._beneath.sync()

    def close(self) -> None:
        """Let go of the directory."""
        self._beneath.close()

    def _want_writable(self, path: str) -> None:
        if not self._writable:
            raise GuestError(
                f"{path} on {self._volume.name} is open read-only", "open it for writing"
            )


def raw(path: str) -> bytes:
    """The bytes of a name or path in the guest.

    Raises:
        PathError: It holds a character that stands for no bytes.
    """
    try:
        return path.encode(*ENCODING)
    except UnicodeEncodeError:
        raise PathError(f"{path!r} is no path", "check the path") from None


def stat_of(facts: Facts) -> Stat:
    """The engine's form of what was found."""
    return Stat(cast(Kind, facts.kind), *facts[1:7], facts.target.decode(*ENCODING))


def raise_refused(kind: str, message: str) -> NoReturn:
    """The engine's error for a refusal."""
    error, hint = _ERRORS.get(kind, _ERRORS["guest"])
    raise error(message, hint)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        raise_refused(refused.kind, refused.message)
