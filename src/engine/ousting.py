"""Ending an ingest of this host that holds the journals and does not answer any more."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence


def oust(pid: int, files: Sequence[str]) -> bool:
    """Kill the process of that id, if it is the one that has all these files open.

    A process id is used again, and another host has one like it: so what tells is what
    the process has open now. Its locks are free when the kernel has taken it away.

    Returns:
        Whether it was killed.
    """
    try:
        handle = os.pidfd_open(pid)  # first, so that what is looked at is what is killed
    except (OSError, OverflowError):
        return False
    try:
        wanted = {_identity(os.stat(path)) for path in files}
        if not wanted or pid == os.getpid() or not wanted <= _open_files(pid):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except OSError:
        return False  # it has gone, or is not ours to look at
    finally:
        os.close(handle)


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _open_files(pid: int) -> set[tuple[int, int]]:
    found = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.add(_identity(entry.stat()))
    return found
