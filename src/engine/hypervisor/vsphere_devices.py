"""A machine's virtual hardware: which disk hangs where, and the changes that swap disks and wires.

Nothing here calls the server: it reads the devices that were fetched, and makes the parts
of a ConfigSpec. Disks are known by controller and unit, as their keys and their order change.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pyVmomi import vim

from ..errors import StateError, UnsupportedError
from .base import Bus
from .vsphere_note import Former, Place

_device = vim.vm.device
# Family, class, units, and the unit that the controller itself takes.
CONTROLLERS: dict[str, tuple[str, Any, int, int | None]] = {
    "pvscsi": ("scsi", _device.ParaVirtualSCSIController, 16, 7),
    "lsilogic": ("scsi", _device.VirtualLsiLogicController, 16, 7),
    "lsisas": ("scsi", _device.VirtualLsiLogicSASController, 16, 7),
    "buslogic": ("scsi", _device.VirtualBusLogicController, 16, 7),
    "ahci": ("sata", _device.VirtualAHCIController, 30, None),
    "nvme": ("nvme", _device.VirtualNVMEController, 15, None),
    "ide": ("ide", _device.VirtualIDEController, 2, None),
}
BUSES = {"scsi": 4, "sata": 4, "nvme": 4, "ide": 2}
CARDS: dict[str, Any] = {
    "vmxnet3": _device.VirtualVmxnet3,
    "e1000": _device.VirtualE1000,
    "e1000e": _device.VirtualE1000e,
}
_Spec = _device.VirtualDeviceSpec
_ORDER = ("scsi", "sata", "nvme", "ide")


class Disk(NamedTuple):
    """A disk that a machine has. files: its chain, the newest first."""

    place: Place
    files: tuple[str, ...]
    device: Any


def kind_of(controller: Any) -> str:
    """Our name of a controller's kind; "" for what holds no disks."""
    for name, (_, kind, _, _) in CONTROLLERS.items():
        if type(controller) is kind:
            return name
    return ""


def controllers(devices: Sequence[Any]) -> dict[tuple[str, int], Any]:
    """(family, bus) -> controller."""
    return {
        (CONTROLLERS[kind][0], each.busNumber): each for each in devices if (kind := kind_of(each))
    }


def chain_of(device: Any) -> tuple[str, ...]:
    """The files of a disk, the newest first. Empty for a disk that is no file."""
    files, backing = [], device.backing
    while backing is not None:
        if name := getattr(backing, "fileName", None):
            files.append(str(name))
        backing = getattr(backing, "parent", None)
    return tuple(files)


def disks(devices: Sequence[Any]) -> list[Disk]:
    """All disks, as a guest sees them: by controller, bus and unit."""
    by_key = {each.key: place for place, each in controllers(devices).items()}
    found = []
    for each in devices:
        if isinstance(each, _device.VirtualDisk) and each.controllerKey in by_key:
            family, bus = by_key[each.controllerKey]
            place = Place(family, bus, each.unitNumber or 0)
            found.append(Disk(place, chain_of(each), each))
    return sorted(found, key=lambda disk: _rank(disk.place))


def former_of(devices: Sequence[Any]) -> list[Former]:
    """The disks that a machine has, so that it can have them again."""
    kinds = {place: kind_of(each) for place, each in controllers(devices).items()}
    return [
        Former(
            disk.place,
            disk.files[0] if disk.files else "",
            getattr(disk.device.backing, "diskMode", None) or "persistent",
            kinds[disk.place.family, disk.place.bus],
        )
        for disk in disks(devices)
    ]


def places_for(files: Sequence[str], had: Sequence[Former], bus: Bus) -> list[Former]:
    """Where each file is to hang: where its disk hung, or else on the next free unit.

    A file takes the place of the disk that it is named after (web.vmdk for
    web-interim.vmdk, in one folder) where each has one; otherwise they go by their order.

    Raises:
        UnsupportedError: There is no such controller on vSphere, or no unit is left.
    """
    named = [
        next((disk for disk in had if _is_named_after(file, disk.file)), None) for file in files
    ]
    if all(named) and len({disk.place for disk in named if disk}) == len(files):
        return [
            Former(disk.place, file, "persistent", disk.kind)
            for disk, file in zip(named, files, strict=True)
            if disk is not None
        ]
    free = _units(had, bus)
    found = []
    for number, file in enumerate(files):
        if number < len(had):
            found.append(Former(had[number].place, file, "persistent", had[number].kind))
            continue
        spot = next(free, None)
        if spot is None:
            raise UnsupportedError(f"no unit is left for {file}", "use another controller")
        found.append(Former(spot[1], file, "persistent", spot[0]))
    return found


def in_order(wanted: Sequence[Former]) -> list[Former]:
    """As disks() would list them."""
    return sorted(wanted, key=lambda each: _rank(each.place))


def swap(devices: Sequence[Any], wanted: Sequence[Former]) -> list[Any]:
    """Changes after which the machine has these disks and no others. No file is removed.

    Empty: it has them.
    """
    there = controllers(devices)
    has = {disk.place: disk for disk in disks(devices)}
    by_place = {each.place: each for each in wanted}
    changes = [
        _Spec(operation=_Spec.Operation.remove, device=disk.device)
        for place, disk in has.items()
        if place not in by_place or disk.files[:1] != (by_place[place].file,)
    ]
    keys = {place: each.key for place, each in there.items()}
    for number, each in enumerate(wanted):
        before = has.get(each.place)
        if before is not None and before.files[:1] == (each.file,):
            continue
        spot = (each.place.family, each.place.bus)
        if spot not in keys:
            keys[spot] = -100 - len(keys)
            changes.append(_new_controller(each, keys[spot]))
        disk = _device.VirtualDisk(
            key=-200 - number,
            controllerKey=keys[spot],
            unitNumber=each.place.unit,
            capacityInKB=before.device.capacityInKB if before else 0,
            backing=_device.VirtualDisk.FlatVer2BackingInfo(fileName=each.file, diskMode=each.mode),
        )
        changes.append(_Spec(operation=_Spec.Operation.add, device=disk))
    return changes


def refuse_unknown(devices: Sequence[Any], name: str) -> None:
    """A disk that is no file could not be given back.

    Raises:
        StateError: There is one.
    """
    known = {disk.device.key for disk in disks(devices) if disk.files}
    for each in devices:
        if isinstance(each, _device.VirtualDisk) and each.key not in known:
            raise StateError(
                f"machine {name} has a disk that is no file on a datastore (key {each.key})",
                "remove it from the machine, or name another machine",
            )


def backing_name(card: Any) -> str:
    """The network of a card: its name, or "dvportgroup:KEY"; "" for none."""
    port = getattr(card.backing, "port", None)
    if port is not None:
        return f"dvportgroup:{port.portgroupKey}"
    return str(getattr(card.backing, "deviceName", None) or "")


def cards(devices: Sequence[Any]) -> list[Any]:
    """The network cards, as the guest sees them."""
    found = [each for each in devices if isinstance(each, _device.VirtualEthernetCard)]
    return sorted(found, key=lambda each: (each.unitNumber or 0, each.key))


def rewire(card: Any, backing: Any, connected: bool, start_connected: bool, running: bool) -> Any:
    """A change of a card's network and of its wire; None where it has both so."""
    wire = card.connectable
    same = (
        wire is not None
        and wire.startConnected == start_connected
        and (not running or wire.connected == connected)
    )
    if same and (backing is None or same_backing(card.backing, backing)):
        return None
    if backing is not None:
        card.backing = backing
    card.connectable = _device.VirtualDevice.ConnectInfo(
        connected=connected,
        startConnected=start_connected,
        allowGuestControl=start_connected,
    )
    return _Spec(operation=_Spec.Operation.edit, device=card)


def new_card(number: int, model: str, mac: str, backing: Any, connected: bool) -> Any:
    """A change that adds a network card. mac: "" for a new one, which the server chooses.

    Raises:
        UnsupportedError: vSphere has no such card.
    """
    if model not in CARDS:
        raise UnsupportedError(
            f"vSphere has no network card {model}", f"take one of {', '.join(CARDS)}"
        )
    card = CARDS[model](
        key=-300 - number,
        backing=backing,
        addressType=_address_type(mac),
        wakeOnLanEnabled=False,
        connectable=_device.VirtualDevice.ConnectInfo(
            connected=connected, startConnected=connected, allowGuestControl=connected
        ),
    )
    if mac:
        card.macAddress = mac
    return _Spec(operation=_Spec.Operation.add, device=card)


def same_backing(first: Any, second: Any) -> bool:
    """Whether two backings of cards are the same network."""
    one, two = getattr(first, "port", None), getattr(second, "port", None)
    if one is not None or two is not None:
        return getattr(one, "portgroupKey", "") == getattr(two, "portgroupKey", None)
    return getattr(first, "deviceName", "") == getattr(second, "deviceName", None)


def rank_by_mac(has: Sequence[Any], wanted: Mapping[int, str]) -> dict[int, Any]:
    """Which card is which wanted one: by MAC, the rest by their order."""
    left = list(has)
    found: dict[int, Any] = {}
    for number, mac in wanted.items():
        card = next((each for each in left if (each.macAddress or "").lower() == mac.lower()), None)
        if card is not None:
            left.remove(card)
            found[number] = card
    for number in wanted:
        if number not in found and left:
            found[number] = left.pop(0)
    return found


def _address_type(mac: str) -> str:
    if not mac:
        return "generated"
    # vCenter's own range, which it does not take as set by hand.
    octets = [int(part, 16) for part in mac.split(":")]
    return "assigned" if octets[:3] == [0, 0x50, 0x56] and octets[3] > 0x3F else "manual"


def _new_controller(wanted: Former, key: int) -> Any:
    _, make, _, _ = CONTROLLERS[wanted.kind]
    controller = make(key=key, busNumber=wanted.place.bus)
    if wanted.place.family == "scsi":
        controller.sharedBus = _device.VirtualSCSIController.Sharing.noSharing
    return _Spec(operation=_Spec.Operation.add, device=controller)


def _units(had: Sequence[Former], bus: Bus) -> Iterator[tuple[str, Place]]:
    """Free units: on the controllers that have disks, then on those of that bus."""
    taken = {disk.place for disk in had}
    kinds = {(disk.place.family, disk.place.bus): disk.kind for disk in had}
    if not kinds:
        if bus not in CONTROLLERS:
            raise UnsupportedError(
                f"vSphere has no controller {bus}",
                f"take one of {', '.join(CONTROLLERS)} as [machine] controller",
            )
        kinds = {(CONTROLLERS[bus][0], number): bus for number in range(BUSES[CONTROLLERS[bus][0]])}
    for (family, number), kind in kinds.items():
        _, _, units, reserved = CONTROLLERS[kind]
        for unit in range(units):
            if unit != reserved and Place(family, number, unit) not in taken:
                yield kind, Place(family, number, unit)


def _is_named_after(file: str, former: str) -> bool:
    folder, _, name = file.rpartition("/") if "/" in file else file.rpartition(" ")
    folder2, _, name2 = former.rpartition("/") if "/" in former else former.rpartition(" ")
    stem = posixpath.splitext(name2)[0]
    return folder == folder2 and bool(stem) and name.startswith(f"{stem}-interim")


def _rank(place: Place) -> tuple[int, int, int]:
    return _ORDER.index(place.family), place.bus, place.unit
