"""The devices of a machine as QEMU's arguments: its controllers, disks and network cards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import NamedTuple

from ..errors import UsageError
from .base import Bus, Card, Drive, Machine


class _Controller(NamedTuple):
    """What a bus is on QEMU's PC.

    Args:
        device: The controller to be added; empty where the machine, or each disk, has one.
        place: The disk's device, for the drive of that index.
        drives_max: How many it takes here.
    """

    device: str
    place: Callable[[Machine, int], str]
    drives_max: int


def _world_wide_name(machine: Machine, index: int) -> int:
    """A disk's name that stays the same: 5, a vendor's number, and 36 bits of our own."""
    digest = hashlib.sha256(f"{machine.id}/{index}".encode()).digest()
    return 0x5000C50 << 36 | int.from_bytes(digest[:8], "big") >> 28


# PCI slots bound the disks that bring a controller each: 31, of which the PC uses some.
_CONTROLLERS: dict[Bus, _Controller] = {
    "ide": _Controller("", lambda _, i: f"ide-hd,bus=ide.{i // 2},unit={i % 2}", 4),
    "ahci": _Controller("ahci,id=sata", lambda _, i: f"ide-hd,bus=sata.{i}", 6),
    "nvme": _Controller("", lambda _, i: f"nvme,serial=rollpoint{i}", 20),
    "virtio-blk": _Controller("", lambda _, i: "virtio-blk-pci", 20),
    "virtio-scsi": _Controller(
        "virtio-scsi-pci,id=scsi", lambda _, i: f"scsi-hd,bus=scsi.0,scsi-id={i}", 64
    ),
    "pvscsi": _Controller("pvscsi,id=scsi", lambda _, i: f"scsi-hd,bus=scsi.0,scsi-id={i}", 64),
    # Linux' mptsas finds a disk only by its world-wide name.
    "lsisas": _Controller(
        "mptsas1068,id=scsi",
        lambda m, i: f"scsi-hd,bus=scsi.0,scsi-id={i},wwn={_world_wide_name(m, i):#x}",
        8,
    ),
    "lsi53c895a": _Controller(
        "lsi53c895a,id=scsi", lambda _, i: f"scsi-hd,bus=scsi.0,scsi-id={i}", 7
    ),
}
# Name of the channel by which QEMU's guest agent is found. Source: docs/interop/qemu-ga.rst.
AGENT_PORT = "org.qemu.guest_agent.0"
_CARDS = {
    "vmxnet3": "vmxnet3",
    "e1000": "e1000",
    "e1000e": "e1000e",
    "virtio-net": "virtio-net-pci",
}


def drive_arguments(machine: Machine) -> list[str]:
    """The controller and the disks.

    Raises:
        UsageError: QEMU has no such controller, or it takes fewer disks.
    """
    controller = _CONTROLLERS.get(machine.bus)
    if controller is None:
        raise UsageError(
            f"machine {machine.name!r}: QEMU has no {machine.bus} controller (LSI Logic "
            "53c1030); its lsi53c895a is another one, which wants another driver",
            "use the bus lsisas, lsi53c895a or pvscsi",
        )
    if len(machine.drives) > controller.drives_max:
        raise UsageError(
            f"machine {machine.name!r} has {len(machine.drives)} disks, "
            f"{'IDE' if machine.bus == 'ide' else machine.bus} takes {controller.drives_max}",
            "use the bus virtio-scsi or pvscsi",
        )
    words = ["-device", controller.device] if controller.device else []
    for index, drive in enumerate(machine.drives):
        words += ["-blockdev", json.dumps(_block_node(f"disk{index}", drive))]
        place = controller.place(machine, index)
        words += ["-device", f"{place},id=drive{index},drive=disk{index},bootindex={index}"]
    return words


def _block_node(name: str, drive: Drive) -> dict[str, object]:
    path = os.path.realpath(drive.path)
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(
            f"QEMU cannot open {os.fsencode(path)!r}: its name is not UTF-8", "rename it"
        ) from None
    node: dict[str, object] = {"node-name": name, "driver": drive.format, "discard": "unmap"}
    if drive.format == "nbd":
        return node | {"server": {"type": "unix", "path": path}, "export": drive.export}
    # Image locks stay on: two writers of one disk are refused by QEMU as well.
    return node | {"file": file_node(name, path)}


def file_node(name: str, path: str) -> dict[str, object]:
    """What lies under the block node of that name: its file."""
    named: dict[str, object] = {"driver": "file", "node-name": f"{name}-file", "filename": path}
    return named | {"locking": "on", "discard": "unmap"}


def agent_arguments(fd: int) -> list[str]:
    """The channel of the guest's agent, for a socket that listens as that descriptor."""
    words = ["-chardev", f"socket,id=agent,fd={fd},server=on,wait=off"]
    words += ["-device", "virtio-serial-pci,id=agents"]
    return [*words, "-device", f"virtserialport,bus=agents.0,chardev=agent,name={AGENT_PORT}"]


def card_arguments(machine: Machine) -> list[str]:
    """The network cards. What no wire is in reaches nothing, this host included."""
    words = [] if any(card.network == "user" for card in machine.cards) else ["-nic", "none"]
    for index, card in enumerate(machine.cards):
        words += _card(index, card)
    return words


def _card(index: int, card: Card) -> list[str]:
    # No ROM: a machine of ours starts from its disks, or says that it cannot.
    device = f"{_CARDS[card.model]},id=card{index},mac={card.mac.lower()},romfile="
    if card.network == "none":
        return ["-device", device]
    return ["-netdev", f"user,id=net{index}", "-device", f"{device},netdev=net{index}"]
