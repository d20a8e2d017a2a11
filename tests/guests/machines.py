"""Small guests on QEMU: started, waited for, told."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rollpoint.errors import HypervisorError
from rollpoint.hypervisor.base import Bus, Card, Drive, Firmware, Machine
from rollpoint.hypervisor.qemu import Qemu

MEMORY_BYTES = 512 << 20
BOOT_SECONDS_MAX = 300.0  # 10 s on a quiet machine
MAC = "52:54:00:aa:00:01"
_POLL_SECONDS = 0.05


class Told(NamedTuple):
    """A guest's line: READY, NOROOT ..., and what it says there."""

    verdict: str
    facts: dict[str, str]


def parse(line: str) -> Told:
    words = line.partition("TINY-")[2].split()  # the firmware may have cleared that line
    return Told(words[0], dict(word.split("=", 1) for word in words[1:] if "=" in word))


@contextlib.contextmanager
def qemu_under(folder: Path) -> Iterator[Qemu]:
    """Machines that are gone afterwards, whatever happens."""
    qemu = Qemu(folder / "run")
    try:
        yield qemu
    finally:
        for name in os.listdir(folder / "run") if (folder / "run").exists() else []:
            qemu.kill(name)


def boot(
    qemu: Qemu,
    disk: Path | Drive,
    bus: Bus,
    firmware: Firmware = "bios",
    marker: str = "TINY-",
    ends: bool = True,
) -> str:
    """Start a guest from a raw image or a drive, and wait for its line.

    Args:
        ends: It powers off by itself, which is waited for.
    """
    drive = disk if isinstance(disk, Drive) else Drive(str(disk), "raw")
    card = Card("vmxnet3", MAC)
    machine = Machine(
        "guest", "guest", (drive,), MEMORY_BYTES, bus=bus, firmware=firmware, cards=(card,)
    )
    try:
        qemu.start(machine)
        line = qemu.wait_for("guest", marker, BOOT_SECONDS_MAX)
    except HypervisorError:
        # Seen once in 55 boots under TCG: a panic before the kernel has its timer.
        if "Kernel panic" not in qemu.console("guest"):
            raise
        qemu.kill("guest")
        qemu.start(machine)
        line = qemu.wait_for("guest", marker, BOOT_SECONDS_MAX)
    if ends:
        wait_off(qemu, "guest")
    return line


def wait_off(qemu: Qemu, machine_id: str) -> None:
    deadline = time.monotonic() + BOOT_SECONDS_MAX
    while qemu.handle(machine_id) is not None:
        assert time.monotonic() < deadline, "the guest did not power off"
        time.sleep(_POLL_SECONDS)
