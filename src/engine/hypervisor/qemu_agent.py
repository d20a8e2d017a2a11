"""Asking QEMU's guest agent for a word, over the machine's agent socket.

QEMU passes bytes on and knows nothing of them. The agent may be starting, stuck, or not
there; then nothing answers. What it says late, to somebody who has gone, is read by the next
one: only the answer to a number that nobody asked before counts.
Source: QEMU, docs/interop/qemu-ga-ref, guest-sync-delimited.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time

from .qemu_process import AGENT_SOCKET

ANSWER_SECONDS_MAX = 2.0

_ANSWER_BYTES_MAX = 64 << 10
_DELIMITER = b"\xff"  # makes the agent forget half a request, and us half an answer


def answers(directory: str) -> bool:
    """Whether the agent of the machine whose files are in the directory answers in its time."""
    deadline = time.monotonic() + ANSWER_SECONDS_MAX
    number = secrets.randbits(31)
    request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(ANSWER_SECONDS_MAX)
            channel.connect(f"/proc/self/fd/{handle}/{AGENT_SOCKET}")
            channel.sendall(_DELIMITER + json.dumps(request).encode() + b"\n")
            return _is_answered(channel, number, deadline)
    except OSError:  # it went away, or nothing came in time
        return False
    finally:
        os.close(handle)


def _is_answered(channel: socket.socket, number: int, deadline: float) -> bool:
    """Read answers, which the guest makes and which need not be any, until ours is there."""
    pending = b""
    while (left := deadline - time.monotonic()) > 0:
        channel.settimeout(left)
        data = channel.recv(4096)
        if not data:
            return False
        *lines, pending = (pending + data).split(b"\n")
        if any(_number_of(line) == number for line in lines):
            return True
        pending = pending[-_ANSWER_BYTES_MAX:]
    return False


def _number_of(line: bytes) -> object:
    try:
        said = json.loads(line.rpartition(_DELIMITER)[2])
    except (ValueError, RecursionError):
        return None
    return said.get("return") if isinstance(said, dict) else None
