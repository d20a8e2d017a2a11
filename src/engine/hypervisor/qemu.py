"""Machines as QEMU processes on this host.

Each machine has a directory `<run directory>/<id>/` (0700) with its record (machine.json),
its console's log, QEMU's own messages, its pid file and its control sockets. QEMU runs in
a session of its own and outlives the process that started it: see qemu_watch.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import (
    CancelledError,
    HypervisorError,
    NotFoundError,
    StateError,
    ToolMissingError,
)
from ..manifest import LAST_LOG_NAMES
from . import qemu_records
from .base import Conflict, Drive, Handle, Machine
from .qemu_process import (
    arguments_of,
    cards_of,
    command_line,
    drives_of,
    locked,
    prepare_firmware,
    spawn,
    started_ns,
)
from .qemu_watch import QEMU_PROGRAM as QEMU_PROGRAM
from .qemu_watch import Watch

if TYPE_CHECKING:
    from .qemu_merge import Merge
    from .qmp import Qmp

INSTALL_HINT = "apt-get install --no-install-recommends qemu-system-x86 qemu-utils"
START_SECONDS_MAX = 30.0
BLOCK_SECONDS_MAX = 60.0  # of one command that changes the disks of a running machine

_POLL_SECONDS = 0.005


class Qemu(Watch):
    """The machines whose files live under one run directory.

    Args:
        run_directory: Created (0700) when the first machine starts. A replica uses
            `<replica>/run`.
        program: QEMU's executable: a name to look up or a path.
    """

    kind = "qemu"
    needs_files = False
    overlay_kind = "hosted"

    def start(self, machine: Machine) -> Handle:
        """See Hypervisor.start. The exec of QEMU is the power-on call."""
        program = self._executable()
        directory = self.directory(machine.id)
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with locked(directory):
            running = self._find(machine.id)
            if running is not None:
                return self._already_running(machine, running)
            return self._launch(program, qemu_records.lent(machine, self._known(machine.id)))

    def power_on(self, machine_id: str) -> Handle:
        """See Hypervisor.power_on."""
        program = self._executable()
        if not self.is_known(machine_id):
            raise self._unknown(machine_id)
        with locked(self.directory(machine_id)):
            running = self._find(machine_id)
            if running is not None:
                return self._handle(machine_id, running, started_ns(running))
            known = self._known(machine_id)
            if known is None:
                raise self._unknown(machine_id)
            return self._launch(program, known)

    def add(self, machine: Machine) -> None:
        """Make a machine known without starting it: let_go never forgets this one.

        Raises:
            StateError: There is one of that id.
        """
        directory = self.directory(machine.id)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with locked(directory):
            if self.is_known(machine.id):
                raise StateError(f"there is a machine {machine.id} already", "use another id")
            qemu_records.store(directory, qemu_records.Record(machine=machine, made=False))

    def _launch(self, program: str, record: qemu_records.Record) -> Handle:
        """Start QEMU and wait until it says that it runs. Inside the directory's lock."""
        machine = record.as_started()
        directory = self.directory(machine.id)
        if machine.accelerator == "kvm":
            from .qemu_kvm import require_kvm

            require_kvm(program)
        prepare_firmware(machine, directory)
        arguments = command_line(machine, directory)
        record.halted = False
        qemu_records.store(directory, record)
        called_ns = time.time_ns()
        pid = spawn(program, [program, *arguments], directory)
        self._children.add(pid)
        handle = self._handle(machine.id, pid, called_ns)
        self._wait_until_up(machine, handle)
        return handle

    def started_by(self, machine_id: str) -> str:
        """See Hypervisor.started_by."""
        known = self._known(machine_id)
        return "" if known is None else known.machine.operation

    def is_known(self, machine_id: str) -> bool:
        """See Hypervisor.is_known."""
        return self._known(machine_id) is not None or self._find(machine_id) is not None

    def shut_down(self, machine_id: str, timeout_seconds: float) -> str:
        """See Hypervisor.shut_down. The guest is told by ACPI's power button."""
        pid = self._find(machine_id)
        if pid is None:
            return "was off"
        why = f"the guest did not shut down in {timeout_seconds:g} s"
        deadline = time.monotonic() + timeout_seconds
        try:
            with self.qmp(machine_id) as qmp:
                qmp.execute("system_powerdown")
        except HypervisorError as error:
            why, deadline = error.message, 0.0
        while self._find(machine_id) is not None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if self._find(machine_id) is None:
            return "shut down"
        self.power_off(machine_id)
        return f"powered off: {why}"

    def let_go(self, machine_id: str) -> None:
        """See Hypervisor.let_go. Of one that is forgotten only the last words stay."""
        directory = self.directory(machine_id)
        if not os.path.isdir(directory):
            return
        with locked(directory):
            if self._find(machine_id) is not None:
                raise StateError(f"machine {machine_id} is on", "power it off first")
            known = self._known(machine_id)
            left = None if known is None else qemu_records.given_back(known)
            if left is not None:
                qemu_records.store(directory, left)
                return
            qemu_records.forget(directory)
            for name in LAST_LOG_NAMES:
                with contextlib.suppress(OSError):
                    log = os.path.join(directory, name.removeprefix("last-"))
                    os.replace(log, os.path.join(self._root, name))
            shutil.rmtree(directory, ignore_errors=True)

    def isolate(self, machine_id: str) -> str:
        """See Hypervisor.isolate. It stays so when the machine is powered on again."""
        if not self.is_known(machine_id):
            raise self._unknown(machine_id)
        directory = self.directory(machine_id)
        with locked(directory):
            known = self._known(machine_id)
            if known is not None and not known.isolated:
                known.isolated = True
                qemu_records.store(directory, known)
            running = self._find(machine_id)
            cards = 0 if running is None else cards_of(arguments_of(running))
            if cards:
                with self.qmp(machine_id) as qmp:
                    for number in range(cards):
                        qmp.execute("set_link", name=f"card{number}", up=False)
        return f"the wires of {cards} network card(s) are out" if running else "it is off"

    def conflicts(self, machine: Machine) -> list[Conflict]:
        """See Hypervisor.conflicts. All QEMUs of this host are looked at."""
        from .qemu_conflicts import conflicts

        return conflicts(machine, self.directory(machine.id))

    def freeze(self, machine_id: str, overlays: Mapping[str, str]) -> None:
        """See Hypervisor.freeze. The guest stands still for some milliseconds."""
        from . import qemu_blocks

        with self._changing(machine_id) as qmp:
            halted = self._halt(machine_id, qmp)
            try:
                qemu_blocks.freeze(qmp, overlays)
            finally:
                self._note_drives(machine_id, qmp)
                self._go_on(machine_id, qmp, halted)

    def commit(
        self, machine_id: str, tops: Mapping[str, str], progress: Callable[[int, int], bool]
    ) -> None:
        """See Hypervisor.commit. The guest stands still while progress is told the whole."""
        from .qemu_merge import Merge

        if not tops:
            return
        with self._changing(machine_id) as qmp:
            merge = Merge(qmp, tops, self._file(machine_id, "qemu.log"))
            try:
                merge.begin()
                merge.copy(progress)
                halted = self._halt(machine_id, qmp)
                merged = merge.level()
            except BaseException:
                self._give_up(machine_id, qmp, merge)
                raise
            # An error here leaves open what was decided: the machine stands still until
            # it is asked for again.
            if not progress(merged, merged):
                self._give_up(machine_id, qmp, merge)
                raise CancelledError("the merge was given up")
            self._note_drives(machine_id, qmp, tops)
            merge.finish()
            self._go_on(machine_id, qmp, halted)

    def _already_running(self, machine: Machine, pid: int) -> Handle:
        wanted = [_comparable(drive) for drive in machine.drives]
        has = drives_of(arguments_of(pid))
        if [_comparable(drive) for drive in has] != wanted:
            with self.qmp(machine.id) as qmp:  # since its start it may have got others
                from . import qemu_blocks

                has = qemu_blocks.drives_now(qmp, has)
        if [_comparable(drive) for drive in has] != wanted:
            raise StateError(
                f"machine {machine.id} runs already (process {pid}), with other disks",
                "power it off first",
            )
        return self._handle(machine.id, pid, started_ns(pid))

    @contextlib.contextmanager
    def _changing(self, machine_id: str) -> Iterator[Qmp]:
        """A connection for long use, so that others can ask for the machine meanwhile."""
        if self._find(machine_id) is None:
            raise HypervisorError(f"machine {machine_id} does not run", "power it on first")
        with self.qmp(machine_id, BLOCK_SECONDS_MAX, supervise=True) as qmp:
            yield qmp

    def _halt(self, machine_id: str, qmp: Qmp) -> bool:
        """Have the guest stand still; returns whether it has to go on afterwards.

        That is noted, as we may not live to do it.
        """
        known = self._known(machine_id)
        if qmp.execute("query-status")["running"]:
            self._note(machine_id, halted=True)
            qmp.execute("stop")
            return True
        return known is not None and known.halted

    def _go_on(self, machine_id: str, qmp: Qmp, halted: bool) -> None:
        if halted:
            qmp.execute("cont")
            self._note(machine_id, halted=False)

    def _give_up(self, machine_id: str, qmp: Qmp, merge: Merge) -> None:
        """The machine goes on with its chains, unless it is gone."""
        with contextlib.suppress(HypervisorError):
            halted = self._halt(machine_id, qmp)
            merge.give_up()
            self._go_on(machine_id, qmp, halted)

    def _note_drives(
        self, machine_id: str, qmp: Qmp, coming: Mapping[str, str] | None = None
    ) -> None:
        """Let the record name the disks that the machine has now, or is about to have."""
        from . import qemu_blocks

        known, pid = self._known(machine_id), self._find(machine_id)
        if known is not None and pid is not None:
            drives = [
                replace(drive, path=(coming or {}).get(drive.path, drive.path))
                for drive in qemu_blocks.drives_now(qmp, drives_of(arguments_of(pid)))
            ]
            self._note(machine_id, machine=replace(known.machine, drives=tuple(drives)))

    def _note(self, machine_id: str, **facts: Any) -> None:
        """Change the record, if there is one."""
        directory = self.directory(machine_id)
        with locked(directory):
            known = self._known(machine_id)
            if known is not None:
                qemu_records.store(directory, msgspec.structs.replace(known, **facts))

    def _known(self, machine_id: str) -> qemu_records.Record | None:
        return qemu_records.load(self.directory(machine_id))

    def _unknown(self, machine_id: str) -> NotFoundError:
        return NotFoundError(
            f"there is no machine {machine_id} in {self._root}", "name one that was started here"
        )

    def _executable(self) -> str:
        program = shutil.which(self._program)
        if program is None:
            raise ToolMissingError(f"{self._program} is not installed", INSTALL_HINT)
        return program

    def _wait_until_up(self, machine: Machine, handle: Handle) -> None:
        try:
            with self.qmp(machine.id, START_SECONDS_MAX) as qmp:
                status = qmp.execute("query-status")
        except HypervisorError as error:
            process_gone = self._wait_gone(handle.pid)
            if not process_gone:
                self._end(machine.id, signal.SIGKILL, START_SECONDS_MAX)
            raise HypervisorError(
                f"machine {machine.name!r} did not start"
                f"{self._messages(machine.id) or f': {error.message}'}",
                "see QEMU's message" if process_gone else "QEMU did not answer and was ended",
            ) from error
        if status["running"] == machine.paused:
            raise HypervisorError(f"machine {machine.name!r} is {status['status']} after power-on")


def _comparable(drive: Drive) -> Drive:
    return replace(drive, path=os.path.realpath(drive.path))
