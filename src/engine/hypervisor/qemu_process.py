"""QEMU processes: their command line, their start, and how one is told from another.

qemu.py decides; this does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from ..errors import HypervisorError, ToolMissingError
from .base import Drive, Machine
from .qemu_devices import AGENT_PORT, agent_arguments, card_arguments, drive_arguments

# Where Debian's ovmf package puts the firmware and the variables it starts with.
UEFI_CODE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
UEFI_VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd"
# QEMU serves one client of a control socket at a time. So there is one for a short word
# and one for whoever supervises a machine for long; QEMU gets them listening, as these fds.
QMP_FDS = {"qmp.sock": 3, "supervise.sock": 4}
AGENT_SOCKET, AGENT_FD = "agent.sock", 5  # of the guest's agent, where the machine has one


def command_line(machine: Machine, directory: str) -> list[str]:
    """QEMU's arguments. Nothing comes from configuration files or defaults."""
    words = ["-name", "guest=" + machine.name.replace(",", ",,")]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]
    words += ["-accel", machine.accelerator, "-no-reboot"]
    words += _firmware_arguments(machine, directory)
    words += ["-m", f"{machine.memory_bytes >> 10}k", "-smp", str(machine.cpus)]
    words += ["-pidfile", os.path.join(directory, "qemu.pid")]
    for fd in QMP_FDS.values():
        words += ["-chardev", f"socket,id=qmp{fd},fd={fd},server=on,wait=off"]
        words += ["-mon", f"chardev=qmp{fd},mode=control"]
    console = os.path.join(directory, "console.log").replace(",", ",,")
    words += ["-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"]
    # The guest is not trusted: whoever breaks out of it finds no new processes or rights.
    words += [
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]
    if machine.paused:
        words.append("-S")
    if machine.uuid:
        words += ["-uuid", machine.uuid]
    if machine.agent:
        words += agent_arguments(AGENT_FD)
    return words + drive_arguments(machine) + card_arguments(machine)


def _firmware_arguments(machine: Machine, directory: str) -> list[str]:
    if machine.firmware == "bios":
        return ["-machine", "pc"]
    code = {"driver": "file", "filename": UEFI_CODE, "node-name": "code", "read-only": True}
    variables = {"driver": "file", "filename": variables_path(directory), "node-name": "vars"}
    words = ["-machine", "pc,pflash0=code,pflash1=vars"]
    return [*words, "-blockdev", json.dumps(code), "-blockdev", json.dumps(variables)]


def variables_path(directory: str) -> str:
    """Where a machine's UEFI variables are kept, from one power-on to the next."""
    return os.path.join(directory, "uefi-variables.fd")


def prepare_firmware(machine: Machine, directory: str) -> None:
    """Give the machine variables of its own, when it needs some and has none.

    Raises:
        ToolMissingError: The firmware is not installed.
    """
    if machine.firmware == "bios" or os.path.exists(variables_path(directory)):
        return
    if not (os.path.exists(UEFI_CODE) and os.path.exists(UEFI_VARIABLES)):
        raise ToolMissingError(
            f"{UEFI_CODE}: UEFI firmware is not installed",
            "apt-get install --no-install-recommends ovmf",
        )
    fresh = variables_path(directory) + ".new"
    shutil.copyfile(UEFI_VARIABLES, fresh)
    os.replace(fresh, variables_path(directory))


def drives_of(words: list[bytes]) -> list[Drive]:
    """The disks that QEMU was started with, from its command line."""
    nodes = (json.loads(after) for word, after in pairwise(words) if word == b"-blockdev")
    return [_drive(node) for node in nodes if node["node-name"].startswith("disk")]


def _drive(node: dict[str, Any]) -> Drive:
    if node["driver"] == "nbd":
        return Drive(node["server"]["path"], "nbd", node["export"])
    return Drive(node["file"]["filename"], node["driver"])


def cards_of(words: list[bytes]) -> int:
    """How many network cards of ours a command line has."""
    return sum(b",id=card" in word for word in words)


def arguments_of(pid: int) -> list[bytes]:
    """The arguments of a process; empty if it is gone, a zombie, or not ours to read."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")[:-1]
    except OSError:
        return []


def started_ns(pid: int) -> int:
    """When a process was started, to 10 ms, in nanoseconds since 1970 UTC.

    Source: proc(5), /proc/pid/stat field 22, counted behind the program's name.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    booted_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return booted_ns + ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def spawn(program: str, arguments: list[str], directory: str) -> int:
    """Start QEMU in a session of its own; returns when its exec has happened.

    Its control sockets are bound and listening before that, so that connecting needs no
    polling: QEMU answers when it is up, and the socket closes when it fails.
    """
    log = os.path.join(directory, "qemu.log")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, "console.log"))
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    with contextlib.ExitStack() as stack:
        for name, fd in {**QMP_FDS, **_agent_fds(arguments)}.items():
            listener = stack.enter_context(_listen(directory, name))
            # From above all the places they go to, so that none takes another's.
            high = fcntl.fcntl(listener, fcntl.F_DUPFD_CLOEXEC, 64)
            stack.callback(os.close, high)
            actions.append((os.POSIX_SPAWN_DUP2, high, fd))
        try:
            return os.posix_spawn(program, arguments, os.environ, file_actions=actions, setsid=True)
        except OSError as error:
            raise HypervisorError(f"{program} cannot be run: {error.strerror}") from error


def _agent_fds(arguments: list[str]) -> dict[str, int]:
    return {AGENT_SOCKET: AGENT_FD} if has_agent(map(os.fsencode, arguments)) else {}


def has_agent(words: Iterable[bytes]) -> bool:
    """Whether a command line has a channel for the guest's agent."""
    return any(AGENT_PORT.encode() in word for word in words)


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """One start at a time: a second one would take the first one's socket away."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _listen(directory: str, name: str) -> socket.socket:
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX)
    try:
        place = f"/proc/self/fd/{handle}/{name}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)
        listener.bind(place)
        listener.listen(8)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(handle)
    return listener
