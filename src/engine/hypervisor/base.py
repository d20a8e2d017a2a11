"""What the operations ask of a hypervisor: start a machine, watch its console, stop it.

Upstream: failover and demo build a Machine from a replica's disks. Downstream: one
module for each hypervisor. A machine is known by its id alone after it was started,
so that another process, or this one after a crash, can stop it or ask for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol

from ..errors import UsageError
from ..guest.base import BootMode as Firmware
from ..guest.base import Controller as Bus
from ..guest.base import Nic

Accelerator = Literal["tcg", "kvm"]
State = Literal["running", "paused", "off"]
__all__ = [
    "Accelerator",
    "Bus",
    "Card",
    "Drive",
    "Firmware",
    "Handle",
    "Hypervisor",
    "Machine",
    "State",
]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", re.IGNORECASE)  # of one station
MEMORY_BYTES_MIN = 1 << 20


@dataclass(frozen=True)
class Drive:
    """One disk of a machine.

    Args:
        path: The file: a VMDK descriptor (or single-file VMDK), or a raw image. Of the
            format "nbd": the Unix socket of the server.
        format: What the file is. It is never guessed from its content.
        export: Name of the NBD export, as its server has it.
    """

    path: str
    format: Literal["vmdk", "raw", "nbd"] = "vmdk"
    export: str = ""


@dataclass(frozen=True)
class Card:
    """One network card of a machine.

    Args:
        mac: Six pairs of hex digits with colons.
        network: "none": the card is there, no wire is in it. "user": a network of this
            machine alone, with DHCP, from which the hypervisor lets it reach others.
    """

    model: Nic
    mac: str
    network: Literal["none", "user"] = "none"

    def __post_init__(self) -> None:
        if _MAC.fullmatch(self.mac) is None:
            raise UsageError(
                f"{self.mac!r} is not the address of a network card",
                "give six pairs of hex digits with colons, the first one even",
            )


@dataclass(frozen=True)
class Machine:
    """A machine to be started. Its first drive boots.

    Args:
        id: Names it for ever after: letters, digits, ".", "_" and "-", at most 64.
        name: For people.
        drives: In the order in which the guest sees them.
        memory_bytes: Guest memory, rounded down to whole KiB.
        cpus: Virtual processors.
        bus: The controller all drives hang on. "ide" takes four drives.
        cards: In the order in which the guest sees them. None: no network at all.
        firmware: What boots the first drive.
        accelerator: "kvm" is probed first and refused where it does not prove usable.
        paused: Start it without letting the guest run.
    """

    id: str
    name: str
    drives: tuple[Drive, ...]
    memory_bytes: int = 256 << 20
    cpus: int = 1
    bus: Bus = "ide"
    cards: tuple[Card, ...] = ()
    firmware: Firmware = "bios"
    accelerator: Accelerator = "tcg"
    paused: bool = False

    def __post_init__(self) -> None:
        if _ID.fullmatch(self.id) is None:
            raise UsageError(
                f"{self.id!r} cannot name a machine",
                "use letters, digits, dots, underscores and dashes, at most 64",
            )
        if not self.drives:
            raise UsageError(f"machine {self.name!r} has no disk", "give it at least one")
        if self.memory_bytes < MEMORY_BYTES_MIN or self.cpus < 1:
            raise UsageError(
                f"machine {self.name!r} needs at least 1 MiB of memory and one processor"
            )


@dataclass(frozen=True)
class Handle:
    """Facts about a machine that runs.

    Args:
        started_ns: When the power-on call was made, in nanoseconds since 1970 UTC.
        console: Path of the file that keeps everything the serial console printed.
        qmp_socket: Path of QEMU's control socket; empty for other hypervisors.
    """

    id: str
    pid: int
    started_ns: int
    console: str
    qmp_socket: str = ""


class Hypervisor(Protocol):
    """The interface. Every method may be called from any process that can reach the machine."""

    def start(self, machine: Machine) -> Handle:
        """Power the machine on and return once the hypervisor says that it runs.

        Asked again while it runs with the same drives, it changes nothing and returns
        the facts of the running machine.

        Raises:
            HypervisorError: It did not start, with the hypervisor's own words.
            ToolMissingError: The hypervisor is not installed.
            StateError: The id runs already, with other drives.
        """

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        """The first whole line of the serial console, since power-on, that holds the marker.

        Raises:
            HypervisorError: It was not printed in time, or the machine went off; the
                message holds the console's last lines.
        """

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        """Pull the plug. Returns when the machine no longer has its disks open.

        Asked again, or for a machine that never ran, it changes nothing.

        Raises:
            HypervisorError: It is still there after the time-out and a kill.
        """

    def status(self, machine_id: str) -> State:
        """Whether the machine runs now."""
