"""Who looks at restore points of a replica now: a lock that they share, `views.lock`.

While anybody has it, what is below the journals is not rewritten, except by destages that
a view can follow (view.py): a long-term point is not given up, a failover is not made
permanent, and the horizon moves only where the journals would grow over their limit.
The lock of a process that was killed goes with it.
"""

from __future__ import annotations

import time

from ._native import OPEN_CREATE, OPEN_WRITE, Dir, File
from .errors import LockedError, NotFoundError

FILE_NAME = "views.lock"
WAIT_SECONDS = 2.0
_ASK_SECONDS = 0.05  # two may ask at one moment, and have the lock for that long
_POLL_SECONDS = 0.01


def register(directory: Dir) -> File:
    """Look at a replica from now on, until the file is closed.

    What is looked at is opened inside the replica's lock, after this.

    Raises:
        StorageError: The directory cannot be written.
    """
    file = directory.open(FILE_NAME, OPEN_WRITE | OPEN_CREATE, 0o600)
    try:
        _lock_within(file, False, WAIT_SECONDS)
    except BaseException:
        file.close()
        raise
    return file


def present(directory: Dir) -> bool:
    """Whether anybody looks at the replica. Ask inside its lock: then nobody begins either."""
    try:
        file = directory.open(FILE_NAME, OPEN_WRITE)
    except NotFoundError:
        return False
    try:
        _lock_within(file, True, _ASK_SECONDS)
    except LockedError:
        return True
    finally:
        file.close()
    return False


def require_none(directory: Dir, doing: str) -> None:
    """Refuse while anybody looks. Inside the replica's lock.

    Args:
        doing: What is wanted, with {} for the replica's directory.

    Raises:
        LockedError: Somebody does.
    """
    if present(directory):
        raise LockedError(
            f"cannot {doing.format(directory.path)}: somebody is looking at a restore point",
            "end what browses, mounts or rehearses it, then try again",
        )


def _lock_within(file: File, exclusive: bool, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            file.lock(exclusive=exclusive)
            return
        except LockedError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_SECONDS)
