"""Operations that die in a step, and machines that outlive who started them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from fakes import Plain
from replicas import Source, empty_model, ingesting, make
from rollpoint import replication
from rollpoint.disk import open_disk
from rollpoint.hypervisor.base import Handle, Machine, State
from rollpoint.manifest import Step
from rollpoint.replica import Replica

KILLED = 9
MOMENTS = ("running", "done")  # of a step: recorded, not begun; done, not recorded
Snapshot = dict[str, bytes]
Action = Callable[[Replica, Callable[[Step], None]], object]


class FileHypervisor(Plain):
    """Machines that outlive the process that started them: one file each, with its starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    def start(self, machine: Machine) -> Handle:
        if self.status(machine.id) == "off":
            (self.path / f".{machine.id}").touch()
            with open(self.path / machine.id, "a") as file:
                file.write("started\n")
        return Handle(machine.id, 1, 0, "")

    def power_on(self, machine_id: str) -> Handle:
        if self.status(machine_id) == "off":
            (self.path / f".{machine_id}").touch()
            (self.path / machine_id).write_text("started\n")
        return Handle(machine_id, 1, 0, "")

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        return marker

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        (self.path / machine_id).unlink(missing_ok=True)

    def status(self, machine_id: str) -> State:
        return "running" if (self.path / machine_id).exists() else "off"

    def is_known(self, machine_id: str) -> bool:
        return (self.path / f".{machine_id}").exists()

    def starts(self) -> list[str]:
        """For each machine that is on: how often it was started since it was last off."""
        return [file.read_text() for file in self.path.iterdir() if file.name[0] != "."]


def feed(folder: Path) -> tuple[Path, list[Snapshot]]:
    """A replica with three points, to be copied by each test, and what its disks had at each."""
    make(folder / "r")
    snapshots = []
    with ingesting(folder / "r", folder / "s"), Replica.open(folder / "r") as replica:
        source = Source(folder / "s", empty_model(), 11)
        for _ in range(3):
            for _ in range(12):
                source.act()
            replication.mark(replica)
            snapshots.append(source.snapshot())
        source.close()
    return folder / "r", snapshots


def killed_at(path: Path, action: Action, name: str, moment: str) -> None:
    """Do the action in a child that dies in that step."""
    child = os.fork()
    if child == 0:

        def die(step: Step) -> None:
            if (step.name, step.state) == (name, moment):
                os._exit(KILLED)

        try:
            with Replica.open(path) as replica:
                action(replica, die)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == KILLED, f"did not come to {name}, {moment}"


def overlay_writes(interims: dict[str, str], models: dict[str, bytearray]) -> None:
    """Random writes into overlays, as a machine would do them, and into the models."""
    rng = random.Random(3)
    for name, interim in interims.items():
        with open_disk(interim, writable=True) as disk:
            for _ in range(8):
                data = rng.randbytes(rng.randrange(1, 70_000))
                offset = rng.randrange(len(models[name]) - len(data))
                disk.pwrite(data, offset)
                models[name][offset : offset + len(data)] = data
