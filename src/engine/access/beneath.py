"""Files beneath one directory, never through a symbolic link: what every mounted way in uses.

The kernel does the scoping (openat2): no component of a path may be a link, leave the
directory, or cross into another mount. This module runs inside the sandbox as well, so
it knows the standard library alone and raises an exception of its own.

Source: openat2(2), the resolve flags; asm-generic/unistd.h for the call's number, which
every architecture shares.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

ENCODING = ("utf-8", "surrogateescape")
READ_BYTES_MAX = 256 << 20
LIST_MAX = 200_000
_OPENAT2 = 437
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 1, 2, 4, 8
_RESOLVE = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
_LIBC = ctypes.CDLL(None, use_errno=True)
_CHUNK_BYTES = 1 << 20
_PATH_ERRNOS = {
    errno.ELOOP: "a symbolic link is on the way",
    errno.EXDEV: "it leads out of the file system",
    errno.ENOTDIR: "a directory is wanted there",
    errno.EISDIR: "it is a directory",
    errno.ENOTEMPTY: "the directory is not empty",
    errno.EEXIST: "something is there already",
    errno.ENAMETOOLONG: "the path or a name in it is too long",
    errno.EINVAL: "the file system takes no such name",
    errno.ENXIO: "it is no file",
}
_WINDOWS_RIGHTS = ("system.ntfs_acl", "system.ntfs_security")  # ntfs-3g's, ntfs3's; never listed
_RIGHTS_BYTES_MAX = 65536
_LABEL = "security.selinux"
_NO_ATTRIBUTES = (errno.ENOTSUP, errno.ENODATA, errno.ENOSYS)


class Refused(Exception):
    """A call failed. kind: "missing", "path" or "guest", as the engine's errors."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message


class Facts(NamedTuple):
    """What lstat says; the fields of base.Stat."""

    kind: str
    mode: int
    uid: int
    gid: int
    size_bytes: int
    modified_ns: int
    links: int
    target: bytes


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def shown(path: bytes) -> str:
    """A path as a message may print it."""
    text = path.decode("utf-8", "backslashreplace") or "/"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _refused(path: bytes, error: OSError) -> Refused:
    code = error.errno or 0
    if code == errno.ENOENT:
        return Refused("missing", f"there is no {shown(path)}")
    if code in _PATH_ERRNOS:
        return Refused("path", f"{shown(path)}: {_PATH_ERRNOS[code]}")
    return Refused("guest", f"{shown(path)}: {os.strerror(code)}")


@contextlib.contextmanager
def _doing(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refused(path, error) from None


def _checked(path: bytes) -> bytes:
    if path.startswith(b"/") or b"\0" in path or path.endswith(b"/"):
        raise Refused("path", f"{shown(path)}: no path beneath a file system's root")
    if any(part in (b"", b".", b"..") for part in path.split(b"/")) and path:
        raise Refused("path", f"{shown(path)}: an empty, . or .. part")
    return path


class Beneath:
    """The files beneath a directory.

    Paths are bytes, relative; b"" is the directory itself. Every call raises Refused.

    Args:
        root: Descriptor of the directory. It is kept, and closed by close().
        direct: Write past the page cache. A FUSE driver with an old protocol gets every
            page by itself otherwise (ntfs-3g: 8 times slower); no alignment is asked for there.
    """

    def __init__(self, root: int, *, direct: bool = False) -> None:
        self._root = root
        self._direct = os.O_DIRECT if direct else 0

    def close(self) -> None:
        """Let go of the directory."""
        if self._root >= 0:
            os.close(self._root)
        self._root = -1

    def _open(self, path: bytes, flags: int) -> int:
        """A descriptor of what is there, the kernel refusing any link on the way."""
        quietly = 0 if flags & os.O_PATH else os.O_NOCTTY
        how = _OpenHow(flags | os.O_CLOEXEC | quietly, 0, _RESOLVE)
        while True:
            found: int = _LIBC.syscall(
                ctypes.c_long(_OPENAT2),
                ctypes.c_int(self._root),
                ctypes.c_char_p(_checked(path) or b"."),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
            )
            if found >= 0:
                return found
            code = ctypes.get_errno()
            if code not in (errno.EINTR, errno.EAGAIN):  # EAGAIN: a rename raced with it
                raise OSError(code, os.strerror(code))

    @contextlib.contextmanager
    def _opened(self, path: bytes, flags: int) -> Iterator[int]:
        found = self._open(path, flags)
        try:
            yield found
        finally:
            os.close(found)

    @contextlib.contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The directory that a path is in, and its name there."""
        folder, _, name = _checked(path).rpartition(b"/")
        if not name:
            raise Refused("path", "the root of a file system cannot be changed")
        with self._opened(folder, os.O_PATH | os.O_DIRECTORY) as found:
            yield found, name

    @contextlib.contextmanager
    def _file(self, path: bytes, flags: int) -> Iterator[int]:
        """A regular file, opened. Nothing else is ever opened: a FIFO would block."""
        with self._opened(path, os.O_PATH | os.O_NOFOLLOW) as place:
            _regular(path, os.stat(place))
        with self._opened(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK) as found:
            _regular(path, os.stat(found))
            yield found

    def lstat(self, path: bytes) -> Facts | None:
        """What is there; None when nothing is."""
        try:
            with self._opened(path, os.O_PATH | os.O_NOFOLLOW) as place:
                facts = os.stat(place)
                target = os.readlink(b"", dir_fd=place) if stat.S_ISLNK(facts.st_mode) else b""
                return _facts(facts, target)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise _refused(path, error) from None

    def list(self, path: bytes) -> dict[bytes, Facts]:
        """What a directory holds, and what each of it is."""
        found: dict[bytes, Facts] = {}
        with _doing(path), self._opened(path, os.O_RDONLY | os.O_DIRECTORY) as folder:
            names = os.scandir(folder)
            with names:
                for entry in names:
                    name = os.fsencode(entry.name)
                    if len(found) >= LIST_MAX:
                        raise Refused("guest", f"{shown(path)}: more than {LIST_MAX} files")
                    with contextlib.suppress(FileNotFoundError):
                        facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
                        linked = stat.S_ISLNK(facts.st_mode)
                        target = os.readlink(name, dir_fd=folder) if linked else b""
                        found[name] = _facts(facts, target)
        return found

    def read(self, path: bytes, offset: int, length: int | None) -> bytes:
        """Bytes of a regular file, up to its end."""
        with _doing(path), self._file(path, os.O_RDONLY) as found:
            size_bytes = os.stat(found).st_size
            wanted = max(0, size_bytes - offset) if length is None else length
            if wanted > READ_BYTES_MAX:
                limit = f"{READ_BYTES_MAX} bytes are read at most"
                raise Refused("guest", f"{shown(path)}: {wanted} bytes, and {limit}")
            pieces = []
            while wanted > 0:
                piece = os.pread(found, min(wanted, _CHUNK_BYTES), offset)
                if not piece:
                    break
                pieces.append(piece)
                wanted -= len(piece)
                offset += len(piece)
        return b"".join(pieces)

    def write(self, path: bytes, data: bytes, offset: int) -> None:
        """Overwrite or extend a regular file in place."""
        with _doing(path), self._file(path, os.O_WRONLY | self._direct) as found:
            _write(found, data, offset)

    def replace(self, path: bytes, data: bytes, mode: int | None) -> None:
        """A new content under the same name, owner, mode and attributes, atomically."""
        old = self.lstat(path)
        if old is not None and old.kind != "file":
            raise Refused("path", f"{shown(path)}: a {old.kind}, not a file")
        with _doing(path), self._parent(path) as (folder, name):
            spare = _spare_name()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            new = os.open(spare, flags | self._direct, 0o600, dir_fd=folder)
            try:
                try:
                    _write(new, data, 0)
                    self._dress(path, new, old, os.stat(folder), mode)
                    os.fsync(new)
                finally:
                    os.close(new)
                os.rename(spare, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(spare, dir_fd=folder)
                raise
        self._sync_directory(path.rpartition(b"/")[0])

    def _dress(
        self, path: bytes, new: int, old: Facts | None, folder: os.stat_result, mode: int | None
    ) -> None:
        """Owner, attributes and mode of what was there; the mode late, chown takes bits away.

        On NTFS the rights as well; a new file gets its directory's, or everybody could
        write to what the guest's system runs.
        """
        owner = (old.uid, old.gid) if old else (folder.st_uid, folder.st_gid)
        facts = os.stat(new)
        if owner != (facts.st_uid, facts.st_gid):
            _chown(path, new, owner)
        if old is not None:
            with self._file(path, os.O_RDONLY) as was:
                _copy_attributes(path, was, new)
        wanted = mode if mode is not None else old.mode if old else 0o644
        if stat.S_IMODE(os.stat(new).st_mode) != wanted:
            os.chmod(new, wanted)
        with self._opened(path if old else path.rpartition(b"/")[0], os.O_RDONLY) as model:
            _copy_rights(model, new)
            if old is None:
                _inherit_label(model, new)

    def remove(self, path: bytes) -> None:
        """A file, a link, a device node, or an empty directory."""
        with _doing(path), self._parent(path) as (folder, name):
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)

    def make_directory(self, path: bytes, mode: int) -> None:
        """A directory owned like the one it is in. One that is there stays as it is."""
        with _doing(path), self._parent(path) as (folder, name):
            try:
                os.mkdir(name, 0o700, dir_fd=folder)
            except FileExistsError:
                facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISDIR(facts.st_mode):
                    return
                raise
            above = os.stat(folder)
            with self._opened(path, os.O_RDONLY | os.O_DIRECTORY) as new:
                facts = os.stat(new)
                if (above.st_uid, above.st_gid) != (facts.st_uid, facts.st_gid):
                    os.chown(new, above.st_uid, above.st_gid)
                if stat.S_IMODE(facts.st_mode) != mode:
                    os.chmod(new, mode)
                folder_path = path.rpartition(b"/")[0]
                with self._opened(folder_path, os.O_RDONLY | os.O_DIRECTORY) as model:
                    _copy_rights(model, new)
                    _inherit_label(model, new)

    def make_link(self, path: bytes, target: bytes) -> None:
        """A symbolic link, in place of a file or link that is there."""
        if not target or b"\0" in target:
            raise Refused("path", f"{shown(path)}: a link needs a target")
        with _doing(path), self._parent(path) as (folder, name):
            with contextlib.suppress(FileNotFoundError):
                facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISDIR(facts.st_mode):
                    raise Refused("path", f"{shown(path)}: a directory is there")
            above = os.stat(folder)
            spare = _spare_name()
            os.symlink(target, spare, dir_fd=folder)
            try:
                facts = os.stat(spare, dir_fd=folder, follow_symlinks=False)
                if (above.st_uid, above.st_gid) != (facts.st_uid, facts.st_gid):
                    os.chown(
                        spare, above.st_uid, above.st_gid, dir_fd=folder, follow_symlinks=False
                    )
                os.rename(spare, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(spare, dir_fd=folder)
                raise

    def space(self) -> tuple[int, int, int | None]:
        """Free bytes, all bytes, free inodes (None where they are not counted)."""
        with _doing(b""):
            facts = os.statvfs(self._root)
        unit = facts.f_frsize or facts.f_bsize
        inodes = facts.f_ffree if facts.f_files else None
        return facts.f_bfree * unit, facts.f_blocks * unit, inodes

    def sync(self) -> None:
        """All that was written, down to the disk below."""
        with _doing(b""), self._opened(b"", os.O_RDONLY | os.O_DIRECTORY) as folder:
            if _LIBC.syncfs(ctypes.c_int(folder)) != 0:
                raise OSError(ctypes.get_errno(), "")
        self._sync_directory(b"")

    def _sync_directory(self, path: bytes) -> None:
        """What makes a FUSE driver write out what it holds: the kernel's syncfs does not."""
        with _doing(path), self._opened(path, os.O_RDONLY | os.O_DIRECTORY) as folder:
            try:
                os.fsync(folder)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                    raise


def _regular(path: bytes, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise Refused("path", f"{shown(path)}: a {_kind(facts.st_mode)}, not a file")


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


def _facts(facts: os.stat_result, target: bytes) -> Facts:
    return Facts(
        _kind(facts.st_mode),
        stat.S_IMODE(facts.st_mode),
        facts.st_uid,
        facts.st_gid,
        facts.st_size,
        facts.st_mtime_ns,
        facts.st_nlink,
        target,
    )


def _spare_name() -> bytes:
    return b".rollpoint-" + os.urandom(8).hex().encode()


def _write(target: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        done = os.pwrite(target, left[:_CHUNK_BYTES], offset)
        left = left[done:]
        offset += done


def _chown(path: bytes, target: int, owner: tuple[int, int]) -> None:
    try:
        os.chown(target, *owner)
    except OSError as error:
        said = f"its owner {owner[0]}:{owner[1]} cannot be kept: {os.strerror(error.errno or 0)}"
        raise Refused("guest", f"{shown(path)}: {said}: do it as root") from None


def _copy_attributes(path: bytes, source: int, target: int) -> None:
    """Extended attributes: security labels, access lists, those of users."""
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return
        raise
    for name in names:
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTES:
                said = f"its attribute {shown(os.fsencode(name))} cannot be kept"
                reason = os.strerror(error.errno or 0)
                raise Refused("guest", f"{shown(path)}: {said}: {reason}") from None


def _copy_rights(source: int, target: int) -> None:
    """Windows' security descriptor, where the file system has them.

    Not by os.getxattr: it tries a small buffer first, and ntfs-3g calls that an I/O error.
    """
    buffer = ctypes.create_string_buffer(_RIGHTS_BYTES_MAX)
    for name in _WINDOWS_RIGHTS:
        length = _LIBC.fgetxattr(
            ctypes.c_int(source), name.encode(), buffer, ctypes.c_size_t(_RIGHTS_BYTES_MAX)
        )
        if length > 0:
            os.setxattr(target, name, buffer.raw[:length])


def _inherit_label(folder: int, new: int) -> None:
    """SELinux's label, as its kernel gives it to a new file unless a rule says otherwise.

    Without one an enforcing guest's services may not read the file.
    """
    with contextlib.suppress(OSError):
        os.setxattr(new, _LABEL, os.getxattr(folder, _LABEL))
