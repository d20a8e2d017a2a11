"""Commands of the operator, as replica.toml and plans name them: bounded, and with an end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

SAID_LENGTH_MAX = 500  # characters of what it printed, in one line
OUTPUT_BYTES_MAX = 1 << 20
MARK = "ROLLPOINT_MARK"  # in the environment of a command: whose child a process is
GRACE_SECONDS = 2.0  # from SIGTERM to SIGKILL
KILL_SECONDS = 5.0  # for what SIGKILL does not end at once

_ASK_SECONDS = 0.1
_POLL_SECONDS = 0.02
_PIECE_BYTES = 64 << 10  # what a pipe holds
_PIECES_MAX = 16  # after its end: something that it left behind may print for ever


class Ended(NamedTuple):
    """How a command ended. code: None: it did not, in its time, or could not be run."""

    code: int | None
    said: str


class Outcome(NamedTuple):
    """How a command ended, in more words.

    Attributes:
        code: Negative: a signal ended it. None: it did not end by itself; why says so.
        output: The end of what it printed.
        given_up: It was killed because the caller gave up.
    """

    code: int | None
    why: str
    output: bytes
    given_up: bool = False


def run(command: Sequence[str], seconds: float) -> Ended:
    """Run it; what it prints is what it says. After its time it is killed, with its children."""
    done = carry_out(command, seconds)
    if done.code is None:
        return Ended(None, done.why)
    text = " ".join(done.output.decode("utf-8", "replace").split())
    return Ended(done.code, text[:SAID_LENGTH_MAX])


def carry_out(
    command: Sequence[str],
    seconds: float,
    *,
    env: Mapping[str, str] | None = None,
    directory: str | None = None,
    mark: str = "",
    gives_up: Callable[[], bool] | None = None,
    keep_bytes: int = OUTPUT_BYTES_MAX,
) -> Outcome:
    """Run a command in a session of its own until it ends, its time is over, or we give up.

    In the last two cases it is killed with all that it started, in its own session or not.
    When it ends by itself what it left behind goes on, and is not waited for.

    Args:
        env: All of its environment; None: as ours.
        mark: Names it among all processes; what still carries it can be ended by
            end_marked. "": one that nobody else has.
        keep_bytes: Of its output, the last ones.
    """
    mark = mark or os.urandom(8).hex()
    try:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**(os.environ if env is None else env), MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        return Outcome(None, f"it cannot be run: {said}", b"")
    output = bytearray()
    assert process.stdout is not None
    ended = os.pidfd_open(process.pid)
    why: str | None = None
    try:
        why = _follow(process.stdout.fileno(), ended, seconds, gives_up, output, keep_bytes)
    finally:
        if why != "":
            _kill(process.pid, ended, mark)
        process.stdout.close()
        _reap(process, ended)
        os.close(ended)
    if why:
        return Outcome(None, why, bytes(output), why == _GIVEN_UP)
    return Outcome(process.returncode, "", bytes(output))


_GIVEN_UP = "it was given up, and killed"


def _follow(
    pipe: int,
    ended: int,
    seconds: float,
    gives_up: Callable[[], bool] | None,
    output: bytearray,
    keep_bytes: int,
) -> str:
    """Take what it prints until it ends: then "". Otherwise why it is not waited for."""
    os.set_blocking(pipe, False)
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.register(ended, select.POLLIN)
    deadline = time.monotonic() + seconds
    ask_at = 0.0
    while True:
        now = time.monotonic()
        if gives_up is not None and now >= ask_at:
            ask_at = now + _ASK_SECONDS
            if gives_up():
                return _GIVEN_UP
        left = deadline - now
        wait = left if gives_up is None else min(left, _ASK_SECONDS)
        ready = [fd for fd, _ in poll.poll(max(wait, 0.0) * 1000)]
        if pipe in ready and not _take(pipe, output, keep_bytes, 1):
            poll.unregister(pipe)
        if ended in ready:
            _take(pipe, output, keep_bytes, _PIECES_MAX)
            return ""
        if left <= 0:
            return f"it did not end in {seconds:g} s, and was killed"


def _take(pipe: int, output: bytearray, keep_bytes: int, pieces: int) -> bool:
    """Read what is there; whether more may come."""
    for _ in range(pieces):
        try:
            data = os.read(pipe, _PIECE_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        output += data
        del output[: max(0, len(output) - keep_bytes)]
    return True


def _kill(leader: int, ended: int, mark: str) -> None:
    """End a command and all that it started. It has not been waited for: its pid is its own."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, number)
        _end_marked(mark, number, seconds)
    select.select([ended], [], [], KILL_SECONDS)


def _reap(process: subprocess.Popen[bytes], ended: int) -> None:
    """Take its exit status; later, of one that storage that hangs keeps from ending."""
    if select.select([ended], [], [], 0)[0]:
        process.wait()
    else:
        threading.Thread(target=process.wait, daemon=True).start()


def end_marked(mark: str) -> int:
    """Kill all processes that carry the mark; returns how many there were."""
    count = len(_marked(mark))
    if count:
        _end_marked(mark, signal.SIGKILL, KILL_SECONDS)
    return count


def _end_marked(mark: str, number: int, seconds: float) -> None:
    """Send a signal to each of them, once, until none is left or the time is over."""
    deadline = time.monotonic() + seconds
    told: set[int] = set()
    while True:
        left = _marked(mark)
        for pid in left:
            if pid not in told or number == signal.SIGKILL:
                told.add(pid)
                _send(pid, mark, number)
        if not left or time.monotonic() >= deadline:
            return
        time.sleep(_POLL_SECONDS)


def _send(pid: int, mark: str, number: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # The handle pins the process; only now is it sure whose pid it was.
        if _carries(pid, mark):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(process, number)
    finally:
        os.close(process)


def _marked(mark: str) -> list[int]:
    own = os.getpid()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if pid != own and _carries(pid, mark)]


def _carries(pid: int, mark: str) -> bool:
    """Whether a process was started with that mark. One that has ended carries nothing.

    Source: proc(5), /proc/pid/environ: as it was at the exec.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{MARK}={mark}".encode() in file.read().split(b"\0")
    except OSError:
        return False
