"""Machines of plans' tests that are files: they outlive every process, and remember who started
them, so that a test sees whether anything happened twice."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fakes import Plain
from rollpoint.errors import HypervisorError, StateError
from rollpoint.hypervisor.base import Handle, Machine, State
from rollpoint.replica import Replica

GRAIN = 4096
DISK_BYTES = 64 * GRAIN


class Power(Plain):
    """A hypervisor. folder: of its machines. trouble: says why a start fails, or "".

    seconds: That a start takes.
    """

    def __init__(
        self,
        folder: Path,
        trouble: Callable[[str], str] = lambda name: "",
        seconds: float = 0.0,
    ) -> None:
        self.folder, self.trouble, self.seconds = folder, trouble, seconds
        folder.mkdir(exist_ok=True)

    def __call__(self, directory: str) -> tuple[Power, None]:
        """As running.Settings.hypervisors: the same for all replicas, and no source."""
        return self, None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _note(self, what: str, machine: str, operation: str = "") -> None:
        with (self.folder / "log").open("a") as log:
            log.write(json.dumps([what, machine, operation]) + "\n")

    def log(self) -> list[list[str]]:
        """[what, machine, operation] of everything that had an effect."""
        try:
            lines = (self.folder / "log").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def starts(self) -> Counter[str]:
        """How often each operation has powered a machine on."""
        return Counter(operation for what, _, operation in self.log() if what == "on")

    def on(self) -> set[str]:
        return {path.name.removesuffix(".on") for path in self.folder.glob("*.on")}

    def start(self, machine: Machine) -> Handle:
        if why := self.trouble(machine.name):
            raise HypervisorError(why)
        time.sleep(self.seconds)
        place = self.folder / f"{machine.id}.on"
        drives = [drive.path for drive in machine.drives]
        with self._locked():
            if place.exists():
                if json.loads(place.read_text()) != drives:
                    raise StateError(f"{machine.id} runs already, with other drives")
            else:
                self._note("on", machine.id, machine.operation)
                place.write_text(json.dumps(drives))
        return Handle(machine.id, 1, time.time_ns(), "")

    def power_on(self, machine_id: str) -> Handle:
        """Of a machine that is there already, with disks of its own."""
        with self._locked():
            if not (self.folder / f"{machine_id}.on").exists():
                self._note("on", machine_id)
                (self.folder / f"{machine_id}.on").write_text("[]")
        return Handle(machine_id, 1, time.time_ns(), "")

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        return marker

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        with self._locked():
            if (self.folder / f"{machine_id}.on").exists():
                self._note("off", machine_id)
                (self.folder / f"{machine_id}.on").unlink()

    def status(self, machine_id: str) -> State:
        return "running" if (self.folder / f"{machine_id}.on").exists() else "off"


def make_replica(path: Path, **toml: Any) -> Path:
    """A small replica with two restore points, which needs no evidence about its source."""
    with (
        Replica.create(path, [("a", DISK_BYTES)], segment_bytes=65536) as replica,
        replica.locked(),
        replica.journals(writable=True, with_bases=True) as journals,
    ):
        for number in (1, 2):
            journals.natives[0].disk().pwrite(bytes([number]) * GRAIN, 0)
            journals.mark("crash")
    labels = json.dumps(toml.get("labels", []))
    reserve = '[checks]\nreserve = "1M"\n'
    (path / "replica.toml").write_text(
        f'labels = {labels}\n[fencing]\naccept = ["none"]\n{reserve}{toml.get("more", "")}'
    )
    return path
