"""Having a machine at the server as it is to be, whatever becomes of the calls.

A call without an answer is not a failure and not a success: the tasks that are under way
are waited for, the machine is looked at, and only what is missing is done again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyVmomi import vim

from ..errors import HypervisorError, NotFoundError
from . import vsphere_faults as faults
from . import vsphere_note as notes
from .vsphere_faults import LostError
from .vsphere_inventory import Found, look, require
from .vsphere_make import Changes
from .vsphere_note import Note
from .vsphere_session import Session

REACH_TRIES = 4
SETTLE_STATES = ("queued", "running")


class Reach:
    """Changes of machines at one server."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def reconfigure(self, found: Found, changes: Changes, note: Note, doing: str) -> None:
        """One change of a machine, note included: done once, however often it is tried.

        Args:
            changes: What is to be done to a machine as it is then; nothing: it is done.
        """
        annotation = notes.write(found.annotation, note)
        left: list[Any] = []

        def is_there() -> bool:
            now = require(look(self._session, found.vm), found.name, self._session)
            left[:] = changes(now)
            return now.annotation == annotation and not left

        def act() -> Any:
            spec = vim.vm.ConfigSpec(annotation=annotation, deviceChange=left)
            return found.vm.ReconfigVM_Task(spec)

        self.state(found.vm, doing, is_there, act)

    def turn(self, found: Found, on: bool) -> None:
        """Have a machine on, or off."""
        wanted = "poweredOn" if on else "poweredOff"

        def is_there() -> bool:
            now = require(look(self._session, found.vm), found.name, self._session)
            return now.power == wanted

        self.state(
            found.vm,
            f"powering {found.name} {'on' if on else 'off'}",
            is_there,
            lambda: found.vm.PowerOnVM_Task(None) if on else found.vm.PowerOffVM_Task(),
        )

    def state(
        self, vm: Any, doing: str, is_there: Callable[[], bool], act: Callable[[], Any]
    ) -> None:
        """Have a machine as it is to be: ask, act where it is not, wait, ask again.

        Raises:
            HypervisorError: The server refused, or it is not so after some tries.
        """
        timeout = self._session.server.timeout_seconds
        deadline = self._session.clock() + timeout
        failed: HypervisorError | None = None
        for _ in range(REACH_TRIES):
            if failed is not None:
                left = deadline - self._session.clock()
                if left <= 0:
                    break
                self._settle(vm, left)
            if is_there():
                return
            try:
                task = self._session.tell(doing, lambda _: act())
                self._session.finish(task, doing, timeout)
            except LostError as error:
                failed = error  # asked again: it may have been done, or be under way
                continue
            except HypervisorError as error:
                cause = error.__cause__
                if cause is None or not faults.is_a(
                    cause, "InvalidPowerState", "TaskInProgress", "ConcurrentAccess"
                ):
                    raise
                failed = error
                continue
            return
        if is_there():
            return
        assert failed is not None
        raise self._asked(vm, doing) or failed

    def _asked(self, vm: Any, doing: str) -> HypervisorError | None:
        """A machine can wait for the answer to a question: then nothing ends until it has one."""
        question = self._session.properties([vm], ("runtime.question",))[0].get("runtime.question")
        if question is None:
            return None
        text = " ".join(question.text.split())[:300]
        return HypervisorError(
            f"{doing}: the machine waits for an answer to {text!r}",
            "answer it at the server, then try again",
        )

    def _settle(self, vm: Any, timeout_seconds: float) -> None:
        """Wait for the tasks that are under way on a machine, whoever began them."""
        for task in self._session.properties([vm], ("recentTask",))[0].get("recentTask", ()):
            try:
                self._session.watch(
                    task,
                    ("info.state",),
                    lambda values: values.get("info.state") not in SETTLE_STATES,
                    timeout_seconds,
                )
            except NotFoundError:
                continue
            except HypervisorError as error:
                cause = error.__cause__
                if cause is None or not faults.is_a(cause, "ManagedObjectNotFound"):
                    raise
