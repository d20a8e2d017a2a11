"""Commands of the operator, as replica.toml names them: run without a shell, and with an end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

SAID_LENGTH_MAX = 500  # characters of what it printed, in one line


class Ended(NamedTuple):
    """How a command ended. code: None: it did not, in its time, or could not be run."""

    code: int | None
    said: str


def run(command: Sequence[str], seconds: float) -> Ended:
    """Run it; what it prints is what it says. After its time it is killed, with its children."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return Ended(None, f"it cannot be run: {getattr(error, 'strerror', None) or error}")
    with process:
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return Ended(None, f"it did not end in {seconds:g} s, and was killed")
    text = " ".join(out.decode("utf-8", "replace").split())
    return Ended(process.returncode, text[:SAID_LENGTH_MAX])
