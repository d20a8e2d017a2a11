"""Locks of files, in a process that starts programs on other threads.

Between its beginning and its program a child has all that its parent has open, and with it
the locks: one that this process let go of is taken for that moment, of some milliseconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from .errors import LockedError

Result = TypeVar("Result")
CHILD_SECONDS = 0.25
_POLL_SECONDS = 0.002


def patiently(take: Callable[[], Result]) -> Result:
    """What take returns, where a child may have the lock that it wants: that is waited for.

    Raises:
        LockedError: Somebody has it, for longer than that.
    """
    deadline = time.monotonic() + CHILD_SECONDS
    while True:
        try:
            return take()
        except LockedError:
            # Alone, we started no child that is not a program by now.
            if threading.active_count() == 1 or time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_SECONDS)
