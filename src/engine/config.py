"""`replica.toml`: what the operator says of a replica's machine, its guest, where it runs and
what guards its failover.

It lies in the replica's directory, is optional, and is read at every use. What it does
not say keeps its default; what nobody knows is an error with its line.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from . import toml_lines
from ._native import Dir
from .config_tables import (
    ChecksTable,
    FailbackTable,
    FencingTable,
    HoldTable,
    HypervisorTable,
    SourceTable,
)
from .errors import UsageError
from .guest.base import BootMode, Controller, Network, Nic, Target, Wanted
from .manifest import MachineSettings
from .structs import prepared
from .units import parse_duration, parse_size

FILE_NAME = "replica.toml"
LIMIT_BYTES = 1 << 20
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # also names of plans, groups and queues

Mode = Literal["auto", "files", "appliance", "host"]
Convert = Literal["auto", "always", "never"]

# Of [machine], what a machine's settings have under the same name.
_AS_SAID = ("cpus", "accelerator", "firmware", "controller", "nic", "network", "guest_agent")


class MachineTable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a failover starts. None: as the replica was failed over before, or the default.

    memory, timeout: As people write them: "2G", "90s".
    network: What the cards are connected to: none; user (behind this host's address) on
        qemu; elsewhere the name of a network there.
    guest_agent: qemu: a channel for QEMU's guest agent, by which its heartbeat is seen.
    """

    memory: str | None = None
    cpus: int | None = None
    accelerator: Literal["tcg", "kvm"] | None = None
    firmware: BootMode | None = None
    controller: Controller | None = None
    nic: Nic | None = None
    network: str | None = None
    marker: str | None = None
    timeout: str | None = None
    guest_agent: bool | None = None


class MountTable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How the guest's file systems are reached.

    Attributes:
        mode: auto takes the first that serves.
        trust_guest: Lets this host's kernel mount file systems that the guest made.
        warm: Keep an appliance launched while the replica is ready.
    """

    mode: Mode = "auto"
    trust_guest: bool = False
    warm: bool = False


class GuestTable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What becomes of the guest.

    Attributes:
        convert: auto leaves disks alone on which nothing is known to be; always refuses them.
        network: A table for each card: see guest.base.Network.
    """

    convert: Convert = "auto"
    target: Target = "qemu"
    serial_console: bool = False
    hostname: str = ""
    dns: list[str] = []
    network: list[Network] = []
    drivers: str = ""
    first_boot: str = ""


@prepared
class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        labels: Of the replica; plans choose by them.
    """

    labels: list[str] = []
    machine: MachineTable = msgspec.field(default_factory=MachineTable)
    mount: MountTable = msgspec.field(default_factory=MountTable)
    guest: GuestTable = msgspec.field(default_factory=GuestTable)
    hypervisor: HypervisorTable = msgspec.field(default_factory=HypervisorTable)
    source: SourceTable | None = None
    hold: HoldTable | None = None
    fencing: FencingTable = msgspec.field(default_factory=FencingTable)
    checks: ChecksTable = msgspec.field(default_factory=ChecksTable)
    failback: FailbackTable = msgspec.field(default_factory=FailbackTable)

    def machine_settings(self) -> dict[str, Any]:
        """What it says of manifest.MachineSettings.

        Raises:
            UsageError: A size or a duration is none.
        """
        table = self.machine
        said = {
            name: getattr(table, name)
            for name in _AS_SAID
            if getattr(table, name) is not None
        }
        if table.memory is not None:
            said["memory_bytes"] = parse_size(table.memory)
        if table.timeout is not None:
            said["timeout_seconds"] = parse_duration(table.timeout)
        if table.marker is not None:
            said["marker"] = table.marker or None
        return said

    def wanted(self, controller: Controller, nic: Nic, firmware: BootMode) -> Wanted:
        """What a conversion is to make of the guest on such a machine."""
        guest = self.guest
        return Wanted(
            target=guest.target,
            controller=controller,
            nic=nic,
            firmware=firmware,
            serial_console=guest.serial_console,
            hostname=guest.hostname,
            dns=guest.dns,
            networks=guest.network,
            drivers=guest.drivers,
            first_boot=guest.first_boot,
        )


def machine_of(config: Config, before: MachineSettings) -> MachineSettings:
    """A machine's settings with what the file says instead."""
    return msgspec.structs.replace(before, **config.machine_settings())


def load(directory: Dir) -> Config:
    """The configuration of the replica in directory; the defaults without a file.

    Raises:
        UsageError: It is no TOML, or says what nobody knows: with the line.
    """
    if not directory.exists(FILE_NAME):
        return Config()
    return parse(directory.read(FILE_NAME, LIMIT_BYTES), f"{directory.path}/{FILE_NAME}")


def parse(data: bytes, where: str) -> Config:
    """As load, of the bytes of a file that messages call where."""
    document = toml_lines.parse(data, where, "see docs/guests.md")
    config = document.convert(Config)
    for name, read in (("memory", parse_size), ("timeout", parse_duration)):
        said = getattr(config.machine, name)
        try:
            if said is not None:
                read(said)
        except UsageError as error:
            keys = ("machine", name)
            raise document.error(keys, f"machine.{name}: {error.message}", error.hint) from None
    for number, label in enumerate(config.labels):
        if LABEL.fullmatch(label) is None:
            raise document.error(
                ("labels", number),
                f"{toml_lines.cut(repr(label))} is no label",
                "letters, digits, . _ and -, 64 at most, the first a letter or a digit",
            )
    return config
