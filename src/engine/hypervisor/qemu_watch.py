"""QEMUs that run: found, whoever started them, watched and ended.

QEMU runs in a session of its own and outlives the process that started it. A process is
ours when its command line names our pid file: a pid alone is never trusted, as it may
have been given to someone else.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from itertools import pairwise
from typing import TYPE_CHECKING

from ..errors import HypervisorError, UnsupportedError
from .base import Handle, State, require_plain_id
from .qemu_process import arguments_of, has_agent, started_ns

if TYPE_CHECKING:
    from .qmp import Qmp

QEMU_PROGRAM = "qemu-system-x86_64"
CONSOLE_TAIL_LINES = 5

_POLL_SECONDS = 0.005


class Watch:
    """The machines whose files lie under one run directory, while they run.

    Args:
        run_directory: It need not be there yet.
        program: QEMU's executable: a name to look up or a path.
    """

    def __init__(self, run_directory: str | os.PathLike[str], program: str = QEMU_PROGRAM) -> None:
        self._root = os.path.realpath(run_directory)
        self._program = program
        self._children: set[int] = set()

    def directory(self, machine_id: str) -> str:
        """Where the machine's files are, whether it runs or not."""
        return os.path.join(self._root, require_plain_id(machine_id))

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        """See Hypervisor.wait_for."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            pid = self._find(machine_id)  # before the console: what it last said counts
            for line in self.console(machine_id).split("\n")[:-1]:
                if marker in line:
                    return line.rstrip("\r")
            late = time.monotonic() >= deadline
            if pid is None or late:
                why = f"in {timeout_seconds:g} s" if late else "before it went off"
                tail = "\n".join(self.console(machine_id).splitlines()[-CONSOLE_TAIL_LINES:])
                raise HypervisorError(
                    f"machine {machine_id} did not print {marker!r} {why}; its console ends "
                    f"with {tail!r}{self._messages(machine_id)}",
                    f"look at {self._file(machine_id, 'console.log')}; once the machine is let go, "
                    "at last-console.log beside its directory",
                )
            time.sleep(_POLL_SECONDS)

    def beats(self, machine_id: str) -> str:
        """See Hypervisor.beats. QEMU's guest agent is asked for a word."""
        from .qemu_agent import answers

        pid = self._find(machine_id)
        if pid is None:
            raise HypervisorError(f"machine {machine_id} does not run", "power it on first")
        if not has_agent(arguments_of(pid)):
            raise UnsupportedError(
                f"machine {machine_id} was started without a channel to its guest's agent",
                "set guest_agent = true in [machine] of replica.toml",
            )
        return "the guest agent answers" if answers(self.directory(machine_id)) else ""

    def console(self, machine_id: str) -> str:
        """Everything that the serial console has printed since power-on."""
        try:
            with open(
                self._file(machine_id, "console.log"),
                encoding="utf-8",
                errors="replace",
                newline="",
            ) as log:
                return log.read()
        except FileNotFoundError:
            return ""

    def status(self, machine_id: str) -> State:
        """See Hypervisor.status."""
        if self._find(machine_id) is None:
            return "off"
        try:
            with self.qmp(machine_id) as qmp:
                return "running" if qmp.execute("query-status")["running"] else "paused"
        except HypervisorError:
            if self._find(machine_id) is None:
                return "off"
            raise

    def handle(self, machine_id: str) -> Handle | None:
        """The facts of a machine that runs now, whoever started it."""
        pid = self._find(machine_id)
        return None if pid is None else self._handle(machine_id, pid, started_ns(pid))

    def qmp(
        self, machine_id: str, timeout_seconds: float = 10.0, *, supervise: bool = False
    ) -> Qmp:
        """A connection to one of the machine's two control sockets.

        Args:
            supervise: Take the socket for long use. Each serves one client at a time,
                and the other one is for calls such as status.

        Raises:
            HypervisorError: It does not run, or does not answer.
        """
        from .qmp import Qmp  # 90 ms of imports, which a failover does after power-on

        name = "supervise.sock" if supervise else "qmp.sock"
        return Qmp(self.directory(machine_id), name, timeout_seconds)

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        """See Hypervisor.power_off. QEMU closes its images in order first, if it can."""
        self._end(machine_id, signal.SIGTERM, timeout_seconds)
        if self._find(machine_id) is not None:
            self._end(machine_id, signal.SIGKILL, timeout_seconds)
        pid = self._find(machine_id)
        if pid is not None:
            raise HypervisorError(
                f"machine {machine_id} (process {pid}) is still there after SIGKILL",
                "its storage may hang: look at the host's kernel log",
            )

    def kill(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        """End the machine as a power cut would: QEMU closes nothing."""
        self._end(machine_id, signal.SIGKILL, timeout_seconds)

    def _end(self, machine_id: str, signal_number: int, timeout_seconds: float) -> None:
        """Signal the machine's process, if there is one, and wait until it is gone."""
        pid = self._find(machine_id)
        if pid is None:
            return
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # The handle pins the process; only now is it sure whose pid it was.
            if not self._is_ours(machine_id, pid):
                return
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal_number)
            select.select([process], [], [], timeout_seconds)
        finally:
            os.close(process)
        self._reap()

    def _find(self, machine_id: str) -> int | None:
        """The pid of the machine's QEMU, from the process table."""
        self._reap()
        with contextlib.suppress(OSError, ValueError):
            with open(self._file(machine_id, "qemu.pid"), encoding="ascii") as file:
                pid = int(file.read())
            if self._is_ours(machine_id, pid):
                return pid
        # No pid file is not yet "off": we may have died right after the power-on call.
        if not os.path.isdir(self.directory(machine_id)):
            return None
        for entry in os.listdir("/proc"):
            if entry.isdigit() and self._is_ours(machine_id, int(entry)):
                return int(entry)
        return None

    def _is_ours(self, machine_id: str, pid: int) -> bool:
        words = arguments_of(pid)
        place = os.fsencode(self._file(machine_id, "qemu.pid"))
        return any(a == b"-pidfile" and b == place for a, b in pairwise(words))

    def _reap(self) -> None:
        """Take the exit status of our own children that ended, or they stay as zombies."""
        for pid in tuple(self._children):
            try:
                ended, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended = pid
            if ended:
                self._children.discard(pid)

    def _handle(self, machine_id: str, pid: int, started_ns: int) -> Handle:
        return Handle(
            id=machine_id,
            pid=pid,
            started_ns=started_ns,
            console=self._file(machine_id, "console.log"),
            qmp_socket=self._file(machine_id, "qmp.sock"),
        )

    def _wait_gone(self, pid: int) -> bool:
        """Whether our child ends within a second: it does when QEMU refuses its arguments."""
        deadline = time.monotonic() + 1.0
        while pid in self._children and time.monotonic() < deadline:
            self._reap()
            time.sleep(_POLL_SECONDS)
        return pid not in self._children

    def _messages(self, machine_id: str) -> str:
        """QEMU's own last messages, ready to be put behind a sentence."""
        with contextlib.suppress(FileNotFoundError):
            with open(
                self._file(machine_id, "qemu.log"), encoding="utf-8", errors="replace"
            ) as log:
                text = " ".join(log.read()[-2000:].split())
            return f": {text}" if text else ""
        return ""

    def _file(self, machine_id: str, name: str) -> str:
        return os.path.join(self._root, machine_id, name)
