"""Every exception this package raises on purpose, in one tree.

The branches differ in what the person at the console does next, not in which
module noticed. Each carries a message (what went wrong, in which file, where)
and a hint (what to do). All survive pickling.
"""

from __future__ import annotations

import errno
import os


class Error(Exception):
    """Base of the tree. ``code`` is stable and safe to match on.

    Args:
        message: One sentence: what went wrong, in which file, at which offset.
        hint: One sentence: what to do about it. May be empty.
    """

    code = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.hint)


class UsageError(Error, ValueError):
    """The call or command is outside its documented range. Fix the caller. Exit code 2."""

    code = "usage"


class FormatError(Error):
    """A file is not in the format it should be in. Give another file."""

    code = "format"


class UnsupportedError(Error):
    """A file uses a feature that is refused, with the reason. Nothing was changed."""

    code = "unsupported"


class DamagedError(Error):
    """Stored bytes contradict their checksum or format. Do not retry: repair or restore."""

    code = "damaged"


class StorageError(Error, OSError):
    """The operating system refused a file or device operation. Look at the host.

    ``errno`` holds the system's error number.
    """

    code = "storage"

    def __init__(self, message: str, hint: str = "", os_errno: int = 0) -> None:
        super().__init__(message, hint)
        self.errno = os_errno

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.hint, self.errno)


_SYSTEM_HINTS = {
    errno.ENOENT: "check the path",
    errno.EEXIST: "choose another name, or remove it first",
    errno.ENOTDIR: "a directory is wanted there: check the path",
    errno.EISDIR: "a file is wanted there: check the path",
    errno.ENOTEMPTY: "other files are in it: move them away",
    errno.ELOOP: "symbolic links lead in a circle there: correct them",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "make room on the file system, then try again",
    errno.EDQUOT: "raise the quota, or make room",
    errno.EFBIG: "the file system, or the process's limit (ulimit -f), allows no file so large",
    errno.EACCES: "check who owns it and its mode",
    errno.EPERM: "check who owns it and its mode",
    errno.EROFS: "the file system is mounted read-only: mount it for writing, or work elsewhere",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "too many files are open on this host: end what has them open",
    errno.EIO: "look at the host's log for the device",
}


def system_error(doing: str, os_errno: int) -> Error:
    """The error that stands for a refusal of the operating system.

    Args:
        doing: What was being done, to which file.
        os_errno: The system's error number.
    """
    message = f"{os.strerror(os_errno)}: {doing}"
    hint = _SYSTEM_HINTS.get(os_errno, "look at the host's log, and at what the path names")
    if os_errno == errno.ENOENT:
        return NotFoundError(message, hint)
    if os_errno == errno.EEXIST:
        return ExistsError(message, hint)
    return StorageError(message, hint, os_errno)


class FailedError(StorageError):
    """An earlier sync failed, and that is final. Reopen, so that recovery reads the disk."""

    code = "failed"


class ReadOnlyError(Error):
    """A write to something that was opened read-only."""

    code = "read-only"


class NotFoundError(Error):
    """There is no such file, replica, disk or restore point."""

    code = "not-found"


class ExistsError(Error):
    """Something is there already, and nothing is overwritten."""

    code = "exists"


class LockedError(Error):
    """Another process has it open for writing. Stop that one, or wait."""

    code = "locked"


class StaleEpochError(Error):
    """A newer epoch has been set: this writer is fenced off for good."""

    code = "stale-epoch"


class HeldError(Error):
    """Replication is on hold: no write is accepted until it is released."""

    code = "held"


def on_hold(name: str) -> HeldError:
    """The error that a replica of that name is on hold."""
    return HeldError(f"replication of {name} is on hold", "rollpoint release lets it go on")


class StateError(Error):
    """The replica or object is not in a state that allows this operation."""

    code = "state"


class CancelledError(Error):
    """The caller asked for the end of a long operation. What it was making is gone."""

    code = "cancelled"


class GapError(Error):
    """The moment asked for lies in a gap. The message names the nearest points."""

    code = "gap"


class HypervisorError(Error):
    """The hypervisor said no, or the machine did not come up."""

    code = "hypervisor"


class ToolMissingError(Error):
    """A program of the system is missing. The hint says what to install."""

    code = "tool-missing"


class VerificationError(Error):
    """What was read back is not what was written. Nothing was hidden."""

    code = "verification"


class PathError(Error):
    """A path inside a guest goes through a link, out of it, or to something of another kind."""

    code = "path"


class GuestError(Error):
    """Something in the guest stands in the way: a damaged or full file system, no known system."""

    code = "guest"
