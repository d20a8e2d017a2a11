"""The program in the cage: opens one volume and answers calls on its files.

Standard library and its neighbours (beneath, drivers, fat) alone; started by sandbox.py
with a Python that has no site-packages. Process 1 of the cage shows the volume as a file
(nbdfuse) and waits; its child, in a user namespace of its own whose users own nothing of
this host, runs the file system's driver and answers. Process 1 ends when its standard
input hangs up, that is when who started it is gone, and the kernel ends everything else
in the cage with it.

A message is two lengths (header, data; 32 bits each, little endian), the header in JSON,
then the data. Byte strings in the header are written as Latin-1.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
from typing import Any

from .beneath import Facts, Refused
from .drivers import DISK, Files, open_files, show_volume
from .kernel import PRIVATE_BELOW, mount, unmount
from .syscalls import refuse_calls

FIRST_ID = 1 << 31  # ids of this host that nobody has: 2^31 of them
IDS = (1 << 31) - 2
HEADER_MAX = 64 << 20
DATA_MAX = (256 << 20) + 4096
_PROCESSES_MAX = 1024  # of all cages together: their users are the same
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_PR_CAPBSET_DROP, _CAP_LAST = 24, 63
# What file system drivers and edits need, inside their own user namespace:
# CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, SYS_ADMIN.
_KEPT_CAPABILITIES = {0, 1, 2, 3, 4, 6, 7, 21}


def _read_exactly(length: int) -> bytes:
    pieces = []
    while length:
        piece = os.read(0, min(length, 1 << 20))
        if not piece:
            os._exit(0)
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def receive() -> tuple[dict[str, Any], bytes]:
    """The next call."""
    header, data = struct.unpack("<II", _read_exactly(8))
    if header > HEADER_MAX or data > DATA_MAX:
        os._exit(1)
    return json.loads(_read_exactly(header)), _read_exactly(data)


def send(answer: dict[str, Any], data: bytes = b"") -> None:
    """An answer."""
    header = json.dumps(answer, separators=(",", ":")).encode()
    left = memoryview(struct.pack("<II", len(header), len(data)) + header + data)
    while left:
        left = left[os.write(1, left) :]


def _facts(facts: Facts) -> list[object]:
    return [*facts[:7], facts.target.decode("latin-1")]


def _answer(files: Files, call: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    path = call.get("path", "").encode("latin-1")
    match call["call"]:
        case "lstat":
            found = files.lstat(path)
            return {"facts": None if found is None else _facts(found)}, b""
        case "list":
            names = {n.decode("latin-1"): _facts(f) for n, f in files.list(path).items()}
            return {"names": names}, b""
        case "read":
            return {}, files.read(path, call["offset"], call["length"])
        case "write":
            files.write(path, data, call["offset"])
        case "replace":
            files.replace(path, data, call["mode"])
        case "remove":
            files.remove(path)
        case "make_directory":
            files.make_directory(path, call["mode"])
        case "make_link":
            files.make_link(path, data)
        case "space":
            return {"space": list(files.space())}, b""
        case "sync":
            files.sync()
        case other:
            raise Refused("guest", f"no call {other}")
    return {}, b""


def _serve(config: dict[str, Any]) -> None:
    """Open the volume, answer until "close" or the end of input."""
    try:
        files, finish = open_files(config)
    except Refused as refused:
        send({"error": refused.kind, "message": refused.message})
        return
    except Exception as error:
        send({"error": "guest", "message": f"in the sandbox: {error!r}"})
        return
    send({})
    while True:
        call, data = receive()
        try:
            if call["call"] == "close":
                finish()
                send({})
                return
            answer, data = _answer(files, call, data)
        except Refused as refused:
            answer, data = {"error": refused.kind, "message": refused.message}, b""
        except Exception as error:
            answer, data = {"error": "guest", "message": f"in the sandbox: {error!r}"}, b""
        send(answer, data)


def _drop_capabilities() -> None:
    for capability in range(_CAP_LAST + 1):
        if capability not in _KEPT_CAPABILITIES:
            _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def _enter_own_users(ready: int, mapped: int) -> None:
    """In the child: a user namespace whose maps process 1 writes."""
    if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
        error = os.strerror(ctypes.get_errno())
        reason = "this kernel's CONFIG_USER_NS or user.max_user_namespaces"
        raise Refused("guest", f"no user namespace can be made: {error}: look at {reason}")
    os.write(ready, b"u")
    if os.read(mapped, 1) != b"m":
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_NPROC, (_PROCESSES_MAX, _PROCESSES_MAX))
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _drop_capabilities()


def _enter_own_mounts() -> None:
    """In the child: mounts that nbdfuse does not have.

    Whoever dies as the last one of a mount namespace unmounts what is in it. A kernel
    file system above nbdfuse's file must not wait for nbdfuse to do that: it would wait
    for itself.
    """
    if _LIBC.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", "", PRIVATE_BELOW, "")


def _map_users(child: int) -> None:
    for kind in ("uid_map", "gid_map"):
        with open(f"/proc/{child}/{kind}", "w", encoding="ascii") as file:
            file.write(f"0 {FIRST_ID} {IDS}\n")


def _child(config: dict[str, Any], ready: int, mapped: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        if config["own_users"]:
            _enter_own_users(ready, mapped)
        else:
            _enter_own_mounts()
        refuse_calls()
        _serve(config)
    except Refused as refused:
        send({"error": refused.kind, "message": refused.message})
    except OSError as error:
        send({"error": "guest", "message": f"in the sandbox: {error}"})


def main() -> None:
    """Process 1."""
    config: dict[str, Any] = json.loads(sys.argv[1])
    try:
        show_volume(config)
    except Refused as refused:
        send({"error": refused.kind, "message": refused.message})
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    ended, alive = os.pipe()
    ready, tell_ready = os.pipe()
    mapped, tell_mapped = os.pipe()
    child = os.fork()
    if child == 0:
        for unused in (ended, ready, tell_mapped):
            os.close(unused)
        try:
            _child(config, tell_ready, mapped)
        finally:
            os._exit(0)
    for unused in (alive, tell_ready, mapped, 1):
        os.close(unused)
    if config["own_users"] and os.read(ready, 1) == b"u":
        _map_users(child)
        os.write(tell_mapped, b"m")
    waiting = select.poll()
    waiting.register(0, 0)  # POLLHUP alone
    waiting.register(ended, 0)
    if not any(fd == 0 for fd, _ in waiting.poll()):
        unmount(DISK)  # nbdfuse says good-bye to the server
    os._exit(0)
