"""Locks of files, in a process that starts programs on other threads.

Between its beginning and its program a child has all that its parent has open, and with it
the locks: one that this process let go of is taken for that moment, of some milliseconds.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from .errors import LockedError

Result = TypeVar("Result")
CHILD_SECONDS = 0.25
LOOK_SECONDS = 0.25  # whoever asks whether a lock is taken has it for a moment
_POLL_SECONDS = 0.002
_sleep = time.sleep


def within(take: Callable[[], Result], seconds: float) -> Result:
    """What take returns, as soon as nobody else has the lock that it wants.

    Raises:
        LockedError: Somebody has had it for so long.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return take()
        except LockedError:
            if time.monotonic() >= deadline:
                raise
        _sleep(_POLL_SECONDS)


def patiently(take: Callable[[], Result]) -> Result:
    """What take returns, where a child may have the lock that it wants: that is waited for.

    Raises:
        LockedError: Somebody has it, for longer than that.
    """
    # Alone, we started no child that is not a program by now.
    return within(take, 0.0 if threading.active_count() == 1 else CHILD_SECONDS)


def settled(paths: Iterable[str]) -> None:
    """Return when no child has the locks of files that we have closed, for who opens them next.

    QEMU waits for no lock. Where somebody keeps one, its own message says so.
    """
    if threading.active_count() == 1:
        return
    deadline = time.monotonic() + CHILD_SECONDS
    for path in paths:
        while _is_locked(path) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _is_locked(path: str) -> bool:
    """Whether somebody has a lock of the file: asked without taking it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        found = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, asked)
        return bool(struct.unpack_from("h", found)[0] != fcntl.F_UNLCK)
    finally:
        os.close(handle)
