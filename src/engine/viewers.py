"""Who looks at restore points of a replica now: a lock that they share, `views.lock`.

While anybody has it, what is below the journals is not rewritten, except by destages that
a view can follow (view.py): a long-term point is not given up, a failover is not made
permanent, and the horizon moves only where the journals would grow over their limit.
The lock of a process that was killed goes with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from ._native import OPEN_CREATE, OPEN_WRITE, Dir, File
from .errors import LockedError

FILE_NAME = "views.lock"
WAIT_SECONDS = 2.0  # whoever asks whether somebody looks has it for moments
_POLL_SECONDS = 0.01


def register(directory: Dir) -> File:
    """Look at a replica from now on, until the file is closed.

    Raises:
        LockedError: What its points are read through is being rewritten.
        StorageError: The directory cannot be written.
    """
    file = directory.open(FILE_NAME, OPEN_WRITE | OPEN_CREATE, 0o600)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            file.lock(exclusive=False)
            return file
        except LockedError:
            if time.monotonic() >= deadline:
                file.close()
                raise LockedError(
                    f"the base disks in {directory.path} are being rewritten",
                    "see with rollpoint replica show what is being done, and wait for its end",
                ) from None
        except BaseException:
            file.close()
            raise
        time.sleep(_POLL_SECONDS)


def present(directory: Dir) -> bool:
    """Whether anybody looks at the replica. Ask inside its lock: then nobody begins either."""
    if not directory.exists(FILE_NAME):
        return False
    try:
        with kept_out(directory, ""):
            return False
    except LockedError:
        return True


@contextlib.contextmanager
def kept_out(directory: Dir, doing: str) -> Iterator[None]:
    """Nobody looks, and nobody begins to.

    Args:
        doing: What that is for, with {} for the replica's directory.

    Raises:
        LockedError: Somebody does.
    """
    file = directory.open(FILE_NAME, OPEN_WRITE | OPEN_CREATE, 0o600)
    try:
        try:
            file.lock()
        except LockedError:
            raise LockedError(
                f"cannot {doing.format(directory.path)}: somebody is looking at a restore point",
                "end what browses, mounts or rehearses it, then try again",
            ) from None
        yield
    finally:
        file.close()
