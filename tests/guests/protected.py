"""A guest with a replica: protected, failed over to other hardware, told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from fakes import UNFENCED
from replicas import ingesting
from rollpoint import operation, replication
from rollpoint.guest.base import Controller
from rollpoint.hypervisor.base import Drive
from rollpoint.manifest import Step
from rollpoint.replica import Replica
from rollpoint.steps import Outcome

from . import machines

DISK = "system"


def protect(
    path: Path,
    disk: Path,
    source: Callable[[Drive], AbstractContextManager[None]] = lambda drive: nullcontext(),
) -> None:
    """A replica of a guest's disk with one restore point.

    Args:
        source: Writes the disk, as a drive of its own, while the point is made.
    """
    Replica.create(path, [(DISK, disk.stat().st_size)]).close()
    with Replica.open(path) as replica:
        replica.seed({DISK: disk})
    socket = path.parent / "socket"
    drive = Drive(str(socket), "nbd", DISK)
    with ingesting(path, socket), Replica.open(path) as replica, source(drive):
        replication.mark(replica, "crash", "protected")


def configure(
    path: Path,
    controller: Controller = "pvscsi",
    mode: str = "auto",
    convert: str = "auto",
    firmware: str = "bios",
    marker: str = "TINY-",
    trust_guest: bool | None = None,
) -> None:
    """The replica's replica.toml: the machine that it becomes, and how."""
    (path / "replica.toml").write_text(
        f"""[machine]
memory = "{machines.MEMORY_BYTES}"
controller = "{controller}"
firmware = "{firmware}"
nic = "vmxnet3"
marker = "{marker}"
timeout = "{machines.BOOT_SECONDS_MAX:g}s"

[mount]
mode = "{mode}"
trust_guest = {str(mode == "host" if trust_guest is None else trust_guest).lower()}

[guest]
convert = "{convert}"

[[guest.network]]
mac = "{machines.MAC}"
"""
    )


def below(path: Path) -> dict[str, str]:
    """A digest of every file of the bases and journals: of all bytes."""
    found = {}
    for file in sorted(path.glob("*.vmdk")):
        if "-interim" not in file.name:
            with open(file, "rb") as stream:
                found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


class Done(NamedTuple):
    """What a failover came to.

    Args:
        kept: Whether base and journal had the same bytes from before the export until now.
    """

    outcome: Outcome
    kept: bool

    def step(self, name: str) -> Step:
        return next(step for step in self.outcome.steps if step.name == name)

    @property
    def told(self) -> machines.Told:
        """What the guest printed."""
        return machines.parse(self.step("power on").note)


def fail_over(path: Path, power_on: bool = True) -> Done:
    """To the latest point, as replica.toml says. Digests lie outside what is measured."""
    before: dict[str, str] = {}

    def watch(step: Step) -> None:
        if step.name == "export" and step.state == "running":
            before.update(below(path))

    with Replica.open(path) as replica:
        outcome = operation.failover(replica, skip=UNFENCED, power_on=power_on, on_step=watch)
    assert before
    return Done(outcome, below(path) == before)


def undo(path: Path) -> None:
    with Replica.open(path) as replica:
        assert operation.undo(replica).state == "Ready"
    assert not list(path.glob("*-interim*"))


def conversion(path: Path) -> dict[str, Any]:
    """What the newest failover changed in the guest."""
    found: dict[str, Any] = json.loads((path / "conversion.json").read_bytes())
    return found
