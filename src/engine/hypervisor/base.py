"""What the operations ask of a hypervisor: start a machine, watch it, freeze its disks, stop it.

Upstream: failover and demo build a Machine from a replica's disks. Downstream: one
module for each hypervisor. A machine is known by its id alone after it was started,
so that another process, or this one after a crash, can stop it or ask for it. Whether
a call that got no answer had its effect is found by asking: every machine carries the
id of the operation that started it.

All hypervisors pass tests/test_hypervisors.py, which is this page as a program.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from ..errors import UsageError
from ..guest.base import BootMode as Firmware
from ..guest.base import Controller as Bus
from ..guest.base import Nic

Accelerator = Literal["tcg", "kvm"]
State = Literal["running", "paused", "off"]
# What a machine that is on already has in common with one that is to be started.
ConflictKind = Literal["uuid", "mac", "address", "disk"]
__all__ = [
    "Accelerator",
    "Bus",
    "Card",
    "Conflict",
    "ConflictKind",
    "Drive",
    "Firmware",
    "Handle",
    "Hypervisor",
    "Machine",
    "State",
    "require_plain_id",
]

_ID = re.compile(r"[^\0-\x20\x7f][^\0-\x1f\x7f]{0,254}")
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", re.IGNORECASE)  # of one station
MEMORY_BYTES_MIN = 1 << 20


def require_plain_id(id: str) -> str:
    """The id, where it has to name a directory: letters, digits, ".", "_" and "-", at most 64.

    Raises:
        UsageError: It has other characters.
    """
    if _PLAIN_ID.fullmatch(id) is None:
        raise UsageError(
            f"{id!r} cannot name a machine here",
            "use letters, digits, dots, underscores and dashes, at most 64",
        )
    return id


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
        network: "none": the card is there, no wire is in it. On QEMU "user": a network
            of this machine alone, with DHCP, from which the hypervisor lets it reach
            others. Elsewhere the name of a network as that hypervisor knows it.
        addresses: That the guest will have there, for the search for duplicates.
    """

    model: Nic
    mac: str
    network: str = "none"
    addresses: tuple[str, ...] = ()

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
        id: Names it for ever after: see require_plain_id; on vSphere also the inventory path
            or the name of a machine that is there.
        name: For people.
        drives: In the order in which the guest sees them.
        memory_bytes: Guest memory, rounded down to whole KiB.
        cpus: Virtual processors.
        bus: The controller all drives hang on. "ide" takes four drives.
        cards: In the order in which the guest sees them. None: no network at all.
        firmware: What boots the first drive.
        accelerator: "kvm" is probed first and refused where it does not prove usable.
        paused: Start it without letting the guest run.
        operation: Id of the operation that starts it; with the replica's name and the
            point it is noted on the machine where the hypervisor can keep notes.
        replica, point: Likewise.
        network: What all its cards are connected to, those that only the hypervisor knows
            of included; None: as each card says.
        uuid: That the guest's firmware shows; "": as the hypervisor chooses.
        agent: Gives the guest's agent a channel, where the hypervisor has none anyway.
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
    operation: str = ""
    replica: str = ""
    point: int | None = None
    network: str | None = None
    uuid: str = ""
    agent: bool = False

    def __post_init__(self) -> None:
        if _ID.fullmatch(self.id) is None:
            raise UsageError(
                f"{self.id!r} cannot name a machine",
                "use at most 255 characters, the first one no space",
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


@dataclass(frozen=True)
class Conflict:
    """Something that runs now and cannot run beside a machine that is to be started.

    Args:
        what: The UUID, the MAC, the IP address, or the file.
        where: Which machine, or station, has it; for people.
    """

    kind: ConflictKind
    what: str
    where: str


class Hypervisor(Protocol):
    """The interface. Every method may be called from any process that can reach the machine.

    Attributes:
        kind: "qemu", "vsphere": as in replica.toml and in the manifest.
        needs_files: Its machines take disks as VMDK files only, not as NBD exports.
        overlay_kind: The kind of overlay that it writes: see interim.KINDS.
    """

    kind: str
    needs_files: bool
    overlay_kind: str

    def start(self, machine: Machine) -> Handle:
        """Power the machine on and return once the hypervisor says that it runs.

        Asked again while it runs with the same drives, it changes nothing and returns
        the facts of the running machine. One that is not known yet is made; one that is
        gets these drives in place of those it had, which let_go gives back.

        Raises:
            HypervisorError: It did not start, with the hypervisor's own words.
            ToolMissingError: The hypervisor is not installed.
            StateError: The id runs already, with other drives.
        """

    def power_on(self, machine_id: str) -> Handle:
        """Power on a machine that the hypervisor knows, as it is. It may be on already.

        Raises:
            NotFoundError: There is no such machine.
            HypervisorError: It did not start.
        """

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        """Wait until the guest is up; returns how that was seen.

        QEMU: the first whole line of the serial console, since power-on, that holds the
        marker. vSphere: VMware Tools run and beat; the marker is the wanted colour of
        the heartbeat, "" takes green or yellow.

        Raises:
            HypervisorError: It was not seen in time, or the machine went off; the
                message holds what was last seen.
        """

    def beats(self, machine_id: str) -> str:
        """Whether VMware Tools, or the guest agent, beat now: how that was seen; "" if not.

        Raises:
            HypervisorError: The machine is off, or not known.
            UnsupportedError: It was started without a way to ask its agent.
        """

    def shut_down(self, machine_id: str, timeout_seconds: float) -> str:
        """Ask the guest to shut down; after the time-out, pull the plug.

        Returns:
            What happened, for people: "shut down", "powered off: ...", "was off".

        Raises:
            HypervisorError: It is still there.
        """

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        """Pull the plug. Returns when the machine no longer has its disks open.

        Asked again, or for a machine that never ran, it changes nothing.

        Raises:
            HypervisorError: It is still there after the time-out and a kill.
        """

    def let_go(self, machine_id: str) -> None:
        """The machine, which is off, has its former disks again, or is forgotten.

        From then on nothing at the hypervisor names the drives that start gave it.
        Asked again, or for a machine that is not known, it changes nothing.

        Raises:
            StateError: It is on.
        """

    def status(self, machine_id: str) -> State:
        """Whether the machine runs now. One that is not known is off."""

    def started_by(self, machine_id: str) -> str:
        """Id of the operation that started the machine, as noted on it; "" when unknown."""

    def is_known(self, machine_id: str) -> bool:
        """Whether there is such a machine, on or off."""

    def isolate(self, machine_id: str) -> str:
        """Pull the wires out of all its network cards; returns what was done.

        Raises:
            NotFoundError: There is no such machine.
            UnsupportedError: The hypervisor cannot.
        """

    def conflicts(self, machine: Machine) -> list[Conflict]:
        """What is on now, is another machine, and has this one's UUID, MAC, address or disks."""

    def freeze(self, machine_id: str, overlays: Mapping[str, str]) -> None:
        """Put empty overlays above the disks of a running machine, all at one cut.

        From then on nothing is written below them. Done already, it changes nothing.

        Args:
            overlays: Path of the disk's present top -> path of its new top, which was
                made by interim.create_interim as a child of it.

        Raises:
            UnsupportedError: The hypervisor makes its overlays itself, or cannot.
        """

    def commit(
        self, machine_id: str, tops: Mapping[str, str], progress: Callable[[int, int], bool]
    ) -> None:
        """Merge the chains of a running machine into their bases, while it runs.

        Returns when the machine writes to the bases and to nothing else.

        Args:
            tops: Path of the disk's present top -> path of its base. None: nothing is
                done, but refused where it could not be.
            progress: Called with bytes done and bytes in all; False gives up, and then
                the machine runs from the chains as before. The whole is told once, at the
                end: the machine stands still, bases and chains hold the same, durably,
                and what the call returns decides which of them are the disks. If it
                raises, nothing is decided: the machine stands still until this is asked
                for again.

        Raises:
            UnsupportedError: The hypervisor cannot; it has to be done while it is off.
            CancelledError: progress gave up.
            HypervisorError: It failed, and the machine runs from the chains as before,
                unless it is off, or had been decided: then it is to be asked for again.
        """
