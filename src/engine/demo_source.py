"""The machine that the demo protects, and everything that is known about it from outside.

What the replica must hold is never taken from the replica's own tools: it is read from
the source's raw disks and from what the guest prints.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from . import control, demo_guest
from .errors import VerificationError
from .hypervisor.base import Drive, Machine
from .hypervisor.qemu import Qemu
from .hypervisor.qemu_source import SourceMirror, Target
from .units import SECTOR_BYTES

# Name and size, the boot disk first. The odd size is no multiple of any grain.
DISKS = {"system": 32 << 20, "data": (16 << 20) + 3 * SECTOR_BYTES}
MEMORY_BYTES = 16 << 20
MACHINE_ID = "source"
BOOT_SECONDS_MAX = 30.0
COPY_SECONDS_MAX = 30.0
QMP_SECONDS_MAX = 30.0  # longer than the mirror waits for an ingest that is away

_SEED = 20261122
_RING_BEGIN = demo_guest.RING_SECTOR * SECTOR_BYTES
_PAYLOAD_END = 8 << 20  # from the ring on; zeroes follow


class Known(NamedTuple):
    """What the disks hold at one moment.

    Args:
        counters: Newest record of each disk.
        images: Copies of the disks, by name.
    """

    counters: tuple[int, int]
    images: dict[str, str]


class Source:
    """The protected machine.

    Args:
        directory: Gets the disks and QEMU's files.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._qemu = Qemu(os.path.join(directory, "run"))
        self._mirror: SourceMirror | None = None
        self.disks = {name: os.path.join(directory, f"{name}.raw") for name in DISKS}

    def make_disks(self) -> None:
        """The guest's program, an empty ring of records, and other data around it."""
        os.makedirs(self._directory, exist_ok=True)
        rng = random.Random(_SEED)
        for number, (name, size_bytes) in enumerate(DISKS.items()):
            image = bytearray(rng.randbytes(_PAYLOAD_END))
            image[:_RING_BEGIN] = bytes(_RING_BEGIN)
            if number == 0:
                image[: len(demo_guest.PROGRAM)] = demo_guest.PROGRAM
            for counter in range(demo_guest.SLOTS):
                place = demo_guest.place_bytes(counter)
                image[place : place + SECTOR_BYTES] = bytes(SECTOR_BYTES)
            with open(self.disks[name], "wb") as file:
                file.write(image)
                file.truncate(size_bytes)

    def table(self) -> str:
        """What a replica's replica.toml says of it."""
        run = json.dumps(os.path.join(self._directory, "run"))
        return f'[source]\nkind = "qemu"\nrun = {run}\nmachine = "{MACHINE_ID}"\n'

    def start(self) -> None:
        """Power it on, without letting it run yet."""
        drives = tuple(Drive(path, "raw") for path in self.disks.values())
        machine = Machine(MACHINE_ID, "demo source", drives, MEMORY_BYTES, paused=True)
        self._qemu.start(machine)
        self._qmp = self._qemu.qmp(MACHINE_ID, QMP_SECONDS_MAX, supervise=True)

    def protect(self, socket_path: str, control_path: str) -> None:
        """Mirror both disks to the ingest; returns when they are in step."""
        targets = [Target(f"disk{number}", name) for number, name in enumerate(DISKS)]
        tell, session = ingest_listener(control_path)
        self._mirror = SourceMirror(self._qmp, socket_path, targets, tell=tell, session=session)
        self._mirror.start()
        self.wait_in_step()

    def wait_in_step(self) -> None:
        """Returns when the mirror has caught up.

        Raises:
            HypervisorError: It does not.
        """
        assert self._mirror is not None
        self._mirror.wait_in_step(COPY_SECONDS_MAX)

    def gap_count(self) -> int:
        """How often it was out of step, the first copy included."""
        assert self._mirror is not None
        return len(self._mirror.gaps())

    def run(self) -> None:
        """Let the guest run, on from where it is."""
        self._qmp.execute("cont")

    def freeze(self) -> None:
        """Stop the guest between two instructions. Nothing it wrote is in flight then."""
        self._qmp.execute("stop")

    def wait_for(self, marker: str) -> str:
        """The first line on its console that holds the marker."""
        return self._qemu.wait_for(MACHINE_ID, marker, BOOT_SECONDS_MAX)

    def printed_count(self) -> int:
        """The newest count on its console, 0 before the first."""
        return printed_count(self._qemu.console(MACHINE_ID))

    def next_count(self) -> int:
        """The next count that it prints."""
        return next_count(self.printed_count, BOOT_SECONDS_MAX)

    def check_in_step(self) -> None:
        """There must have been no gap but the first copy.

        Raises:
            VerificationError: The machine ran unprotected for a while.
        """
        assert self._mirror is not None
        if not self._mirror.in_step or len(self._mirror.gaps()) != 1:
            raise VerificationError(
                f"the mirror was out of step while the guest ran: {self._mirror.describe()}"
            )

    def known(self, label: str) -> Known:
        """Copies of the disks as they are now, and their counters. It must not be running.

        Raises:
            VerificationError: The guest's own disks are not in order.
        """
        images = {}
        for name, path in self.disks.items():
            images[name] = os.path.join(self._directory, f"{label}-{name}.raw")
            shutil.copyfile(path, images[name])
        return Known(counters_of(images, f"the source's disk at {label!r}"), images)

    def kill(self) -> None:
        """What happens to it in the disaster: SIGKILL."""
        self._qemu.kill(MACHINE_ID)

    def close(self) -> None:
        """End everything, whatever state it is in."""
        self._qemu.kill(MACHINE_ID)
        if self._mirror is not None:
            self._mirror.close()
        if hasattr(self, "_qmp"):
            self._qmp.close()


def ingest_listener(
    control_path: str,
) -> tuple[Callable[[str, str], None], Callable[[], str]]:
    """`tell` and `session` of a SourceMirror, for the ingest at this control socket."""

    def tell(kind: str, cause: str) -> None:
        if kind == "gap":
            control.ask(control_path, "gap-open", cause=cause)
        else:
            control.ask(control_path, "gap-close")

    def session() -> str:
        return str(control.ask(control_path, "status")["pid"])

    return tell, session


def printed_count(console: str) -> int:
    """The newest counter in a console's whole COUNT lines, 0 if there is none."""
    for line in reversed(console.split("\n")[:-1]):
        if line.startswith(demo_guest.COUNT_MARKER):
            return int(line.removeprefix(demo_guest.COUNT_MARKER))
    return 0


def counters_of(images: Mapping[str, str], what: str) -> tuple[int, int]:
    """Newest record of each disk, read from raw images without the guest.

    Raises:
        VerificationError: Records are damaged or missing, or out of order.
    """
    newest = []
    for number, path in enumerate(images.values()):
        with open(path, "rb") as file:

            def read(length: int, offset: int, fd: int = file.fileno()) -> bytes:
                return os.pread(fd, length, offset)

            found = demo_guest.examine(read, number)
        if found.problem:
            raise VerificationError(
                f"{what}: records of disk {number} are {found.problem}, "
                f"the newest is {found.newest}"
            )
        newest.append(found.newest)
    first, second = newest
    if first - second not in (0, 1):
        raise VerificationError(f"{what}: write order is broken, {first} and {second}")
    return first, second


def next_count(console: Callable[[], int], seconds: float) -> int:
    """The next count that is printed from now on.

    Raises:
        VerificationError: None is, in that time.
    """
    now = console()
    deadline = time.monotonic() + seconds
    while (later := console()) == now:
        if time.monotonic() >= deadline:
            raise VerificationError(f"the guest stopped counting at {now}")
        time.sleep(0.01)
    return later


def first_difference(a_path: str, b_path: str, *, but_records: bool = False) -> int | None:
    """Offset of the first byte in which two raw images differ; None if they do not.

    Args:
        but_records: Leave out the sectors in which the guest keeps its records.
    """
    with open(a_path, "rb") as file:
        a = bytearray(file.read())
    with open(b_path, "rb") as file:
        b = bytearray(file.read())
    if but_records:
        for counter in range(demo_guest.SLOTS):
            place = demo_guest.place_bytes(counter)
            a[place : place + SECTOR_BYTES] = b[place : place + SECTOR_BYTES]
    if a == b:
        return None
    length = min(len(a), len(b))
    step = 64 << 10
    for offset in range(0, length, step):
        if a[offset : offset + step] != b[offset : offset + step]:
            stop = min(offset + step, length)
            return next((i for i in range(offset, stop) if a[i] != b[i]), length)
    return length
