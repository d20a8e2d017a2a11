"""A program that starts or ends a test failover, and is killed at a moment of it.

    python trial_crash.py DIR WORLD start|undo nbd|files MOMENT

A moment is before, or after, a call that has an effect. It prints how many it went through,
where it came to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import Plain
from rollpoint import interim, trial_disks, trial_files, trial_places, trials
from rollpoint.errors import NotFoundError
from rollpoint.hypervisor.base import Handle, Machine, State
from rollpoint.replica import Replica


class World(Plain):
    """A hypervisor whose machines are files in a directory: they outlive who started them."""

    def __init__(self, folder: Path, needs_files: bool) -> None:
        self._folder = folder
        self.needs_files = needs_files
        self.kind = "vsphere" if needs_files else "qemu"
        folder.mkdir(exist_ok=True)

    def start(self, machine: Machine) -> Handle:
        (self._folder / machine.id).write_text("on")
        return Handle(machine.id, 1, 0, "")

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        if (self._folder / machine_id).exists():
            (self._folder / machine_id).write_text("off")

    def let_go(self, machine_id: str) -> None:
        (self._folder / machine_id).unlink(missing_ok=True)

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        return marker

    def status(self, machine_id: str) -> State:
        try:
            return "running" if (self._folder / machine_id).read_text() == "on" else "off"
        except FileNotFoundError:
            raise NotFoundError(machine_id) from None


class Moments:
    """Counts the moments of a life, and ends it at one."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.passed = 0

    def pass_one(self) -> None:
        if self.passed == self.wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def watch(self, place: Any, name: str) -> None:
        """Before and after each call of that is a moment."""
        real: Callable[..., Any] = getattr(place, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            self.pass_one()
            result = real(*arguments, **named)
            self.pass_one()
            return result

        setattr(place, name, watched)


def main(path: str, world: str, action: str, kind: str, moment: str) -> None:
    """See the module."""
    moments = Moments(int(moment))
    for place, names in (
        (Replica, ("save",)),
        (trial_disks, ("Served", "end")),
        (trial_files, ("wait_until_still", "make", "remove")),
        (interim, ("create_interim",)),
        (trial_places, ("make", "purge")),
        (World, ("start", "power_off", "let_go")),
    ):
        for name in names:
            moments.watch(place, name)
    hypervisor = World(Path(world), kind == "files")
    with Replica.open(path) as replica:
        if action == "start":
            trials.start(replica, "1", operation_id="t", hypervisor=hypervisor)
        else:
            trials.undo(replica, "t", hypervisor=hypervisor)
    print(moments.passed)


if __name__ == "__main__":
    main(*sys.argv[1:])
