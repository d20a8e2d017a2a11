"""What is on at the server and cannot run beside a machine that is to be started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyVmomi import vim

from . import vsphere_devices as devices
from .base import Conflict, Machine
from .vsphere_inventory import Found
from .vsphere_session import Session
from .vsphere_wires import NONE

_PATHS = (
    "name",
    "runtime.powerState",
    "config.uuid",
    "config.instanceUuid",
    "config.hardware.device",
    "guest.net",
    "guest.ipAddress",
)


def conflicts(
    session: Session,
    machine: Machine,
    found: Found | None,
    files: Mapping[str, str],
    macs: set[str],
) -> list[Conflict]:
    """See Hypervisor.conflicts. Looks at all machines that the account can see.

    Args:
        found: The machine itself, where it is known.
        files: Datastore path of each of its drives -> the local path.
        macs: That it will have when it is made.
    """
    wanted = _Wanted(machine, found)
    wanted.macs |= macs
    clashes = []
    for vm, values in session.inventory(vim.VirtualMachine, _PATHS):
        if found is not None and vm._moId == found.vm._moId:
            continue
        if values.get("runtime.powerState") == "poweredOff":
            continue
        where = f"machine {values.get('name')} at {session.server}"
        hardware = values.get("config.hardware.device") or []
        chains = {file for disk in devices.disks(hardware) for file in disk.files}
        clashes += [Conflict("uuid", each, where) for each in _uuids(values) & wanted.uuids]
        clashes += [Conflict("mac", each, where) for each in _macs(hardware) & wanted.macs]
        clashes += [Conflict("address", each, where) for each in _ips(values) & wanted.addresses]
        clashes += [Conflict("disk", path, where) for file, path in files.items() if file in chains]
    return clashes


class _Wanted:
    """What the machine will have: as is said, or as it has already."""

    def __init__(self, machine: Machine, found: Found | None) -> None:
        has = [] if found is None else found.devices
        uuids = [machine.uuid]
        if found is not None and not machine.uuid:
            uuids.append(str(found.values.get("config.uuid") or ""))
        self.uuids = {each.lower() for each in uuids if each}
        wired = [card for card in machine.cards if _wire(machine, card.network) != NONE]
        self.macs = {card.mac.lower() for card in wired}
        self.addresses = {each.lower() for card in wired for each in card.addresses}
        if machine.network != NONE and (not machine.cards or wired):
            self.macs |= _macs(has)  # a machine that is there keeps its MACs


def _wire(machine: Machine, said: str) -> str:
    return said if machine.network is None else machine.network


def _uuids(values: Mapping[str, Any]) -> set[str]:
    return {str(values.get(path, "")).lower() for path in ("config.uuid", "config.instanceUuid")}


def _macs(hardware: Sequence[Any]) -> set[str]:
    return {
        str(card.macAddress or "").lower()
        for card in devices.cards(hardware)
        if card.connectable is None or card.connectable.connected
    } - {""}


def _ips(values: Mapping[str, Any]) -> set[str]:
    found = {str(values.get("guest.ipAddress") or "")}
    for card in values.get("guest.net") or []:
        found |= set(card.ipAddress or ())
    return {each.lower() for each in found if each}
