"""Copying files out of a guest, onto this host.

What is read belongs to whoever wrote the guest's disks. No link is followed, in the guest
nor here: links arrive as links. Every name is made new (nothing is overwritten), beneath
an open directory, so nothing outside of the target is touched whatever the guest holds.
Permission bits and times come along; owners do not, nor set-user-id and set-group-id bits.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field

from .access.base import FileSystem, Stat
from .access.tree import GuestTree
from .errors import Error, ExistsError, GuestError, NotFoundError, UsageError, system_error
from .units import printable

DEPTH_MAX = 200  # of directories: damaged ones may contain themselves
CHUNK_BYTES = 4 << 20
SKIPPED_MAX = 1000  # that are named
_MODE_BITS = 0o777
_NAME_ERRORS = {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}


@dataclass
class Copied:
    """What was copied, and what was not.

    skipped: path in the guest, as it may be printed, and why; the first SKIPPED_MAX of
        skipped_count.
    """

    files: int = 0
    directories: int = 0
    links: int = 0
    size_bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    skipped_count: int = 0

    def skip(self, path: str, why: str) -> None:
        """Something stays behind."""
        self.skipped_count += 1
        if len(self.skipped) < SKIPPED_MAX:
            self.skipped.append((printable(path), why))


def copy_out(tree: GuestTree, path: str, target: str) -> Copied:
    """Copy a file, a link itself, or a directory with all that is in it.

    Args:
        path: In the guest, absolute. Links on the way to its last part are the guest's.
        target: What it becomes; where that is a directory, it is put into it.

    Returns:
        What was copied. What cannot be read, or is no file, directory or link, is left
        out and named.

    Raises:
        NotFoundError: There is no such path, or the directory of the target is not there.
        ExistsError: Something is in the place of the target.
        PathError: The path leads nowhere.
        GuestError: The one file that was asked for cannot be read.
        StorageError: This host's file system refused something, or is full.
    """
    place = tree.real(path, follow_last=False)
    facts = tree.stat(path, follow=False)
    if facts is None:
        raise NotFoundError(f"there is no {printable(path)} in the guest", "check the path")
    if os.path.isdir(target):
        folder, name = target, os.path.basename(place)
    else:
        folder, name = os.path.split(target.rstrip("/"))
    if not _is_name(name):
        raise UsageError(
            f"{printable(target)!r} cannot be the copy of {printable(path)}",
            "name a file that is not there",
        )
    copied = Copied()
    try:
        at = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"there is no directory {printable(folder)}", "make it first") from None
    except OSError as error:
        raise system_error(f"opening {printable(folder or '.')}", error.errno or 0) from None
    try:
        _Copy(tree, copied).one(place, facts, at, name, 0)
    except FileExistsError:
        raise ExistsError(
            f"{printable(os.path.join(folder, name))} exists",
            "name another target, or move it away",
        ) from None
    except OSError as error:
        if isinstance(error, Error):
            raise
        raise system_error(f"writing below {printable(folder or '.')}", error.errno or 0) from None
    finally:
        os.close(at)
    if copied.skipped and not (copied.files or copied.directories or copied.links):
        raise GuestError(f"{copied.skipped[0][0]}: {copied.skipped[0][1]}", "")
    return copied


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


class _Copy:
    def __init__(self, tree: GuestTree, copied: Copied) -> None:
        self._tree = tree
        self._copied = copied

    def one(self, path: str, facts: Stat, at: int, name: str, depth: int) -> None:
        """Make name in the directory at.

        Raises:
            OSError: This host refused it.
        """
        try:
            if facts.kind == "file":
                self._file(path, facts, at, name)
            elif facts.kind == "directory":
                self._directory(path, facts, at, name, depth)
            elif facts.kind == "link":
                os.symlink(facts.target, os.fsencode(name), dir_fd=at)
                self._copied.links += 1
            else:
                self._copied.skip(path, "it is a device, a pipe or a socket")
        except ValueError:  # a NUL in a name or a link
            self._copied.skip(path, "it has a name or a target that no file can have")
        except OSError as error:
            known = error.errno in _NAME_ERRORS or (depth and error.errno == errno.EEXIST)
            if isinstance(error, Error) or not known:
                raise
            self._copied.skip(path, f"this host cannot have it: {error.strerror}")

    def _file(self, path: str, facts: Stat, at: int, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(os.fsencode(name), flags, 0o600, dir_fd=at)
        try:
            fs, relative = self._tree.resolve(path, follow_last=False)
            size = _fill(handle, fs, relative)
            _take_after(handle, facts)
            self._copied.files += 1
            self._copied.size_bytes += size
        except BaseException as error:
            os.unlink(os.fsencode(name), dir_fd=at)  # half a file is worse than none
            if not isinstance(error, Error):
                raise
            self._copied.skip(path, error.message)
        finally:
            os.close(handle)

    def _directory(self, path: str, facts: Stat, at: int, name: str, depth: int) -> None:
        os.mkdir(os.fsencode(name), 0o700, dir_fd=at)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(os.fsencode(name), flags, dir_fd=at)
        try:
            self._copied.directories += 1
            if depth >= DEPTH_MAX:
                self._copied.skip(path, f"more than {DEPTH_MAX} directories in one another")
                return
            try:
                names = sorted(self._tree.list(path))
            except Error as error:
                self._copied.skip(path, error.message)
                return
            for inner in names:
                self._inner(f"{path.rstrip('/')}/{inner}", handle, inner, depth + 1)
            _take_after(handle, facts)
        finally:
            os.close(handle)

    def _inner(self, path: str, at: int, name: str, depth: int) -> None:
        if not _is_name(name):
            self._copied.skip(path, "no file can be called that")
            return
        try:
            facts = self._tree.stat(path, follow=False)
        except Error as error:
            self._copied.skip(path, error.message)
            return
        if facts is not None:
            self.one(path, facts, at, name, depth)


def _fill(handle: int, fs: FileSystem, relative: str) -> int:
    """The bytes of a file; stretches of zeros become holes. Returns how many."""
    at = 0
    while data := fs.read(relative, at, CHUNK_BYTES):
        if data.count(0) != len(data):
            left = memoryview(data)
            os.lseek(handle, at, os.SEEK_SET)
            while left:
                left = left[os.write(handle, left) :]
        at += len(data)
        if len(data) < CHUNK_BYTES:
            break
    os.ftruncate(handle, at)
    return at


def _take_after(handle: int, facts: Stat) -> None:
    os.fchmod(handle, facts.mode & _MODE_BITS)
    with contextlib.suppress(OverflowError, OSError):  # a time that no file here can have
        os.utime(handle, ns=(facts.modified_ns, facts.modified_ns))
