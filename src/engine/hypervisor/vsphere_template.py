"""The hardware of a machine as a file: what a replica's machine is made from.

TOML or JSON, by the file's ending; describe() makes one of a machine that exists.

Source: our own; docs/vsphere.md, "The template".
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec
from pyVmomi import vim

from ..errors import UsageError, system_error
from ..structs import prepared
from ..units import format_size, parse_size
from . import vsphere_devices as devices
from .vsphere_inventory import Found

LIMIT_BYTES = 1 << 20
PATHS = (  # that describe() reads besides those of a machine that was found
    "config.guestId",
    "config.version",
    "config.firmware",
    "config.bootOptions",
    "config.hardware.memoryMB",
    "config.hardware.numCPU",
    "config.hardware.numCoresPerSocket",
)
Controller = Literal["pvscsi", "lsilogic", "lsisas", "buslogic", "ahci", "nvme", "ide"]
CardModel = Literal["vmxnet3", "e1000", "e1000e"]


class DiskPlace(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where a disk hangs."""

    controller: Controller = "pvscsi"
    bus: int = 0
    unit: int = 0


class TemplateCard(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A network card of the source, in a network of the source. mac: "": the server chooses."""

    model: CardModel = "vmxnet3"
    mac: str = ""
    network: str = "none"


@prepared
class Hardware(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a machine is made of. What is left out is as the replica's settings say.

    Attributes:
        guest: vSphere's id of the guest's system, as in "debian11_64Guest".
        version: Of the hardware, as in "vmx-19"; "": what the server makes.
        memory: As in "4 GiB".
        disks: In the order of the replica's disks.
        extra: Of the .vmx file.
    """

    guest: str = "otherGuest64"
    version: str = ""
    memory: str = ""
    cpus: int = 0
    cores_per_socket: int = 0
    firmware: Literal["", "bios", "uefi"] = ""
    secure_boot: bool = False
    disks: list[DiskPlace] = []
    cards: list[TemplateCard] = []
    extra: dict[str, str] = {}

    @property
    def memory_bytes(self) -> int:
        """0: not said."""
        return parse_size(self.memory) if self.memory else 0


# Made here, by the one thread that imports this: see plans/durable.py, _know_types.
_DECODER = msgspec.json.Decoder(Hardware)


def load(path: str) -> Hardware:
    """Read a template.

    Raises:
        NotFoundError, StorageError: It cannot be read.
        UsageError: It is none.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise system_error(f"reading the hardware template {path}", error.errno or 0) from None
    if len(data) > LIMIT_BYTES:
        raise UsageError(f"{path} is too large for a hardware template", "see docs/vsphere.md")
    try:
        if path.endswith(".json"):
            hardware = _DECODER.decode(data)
        else:
            import tomllib

            hardware = msgspec.convert(tomllib.loads(data.decode()), Hardware)
        _check(hardware)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", error.hint or "see docs/vsphere.md") from None
    except (ValueError, RecursionError) as error:  # of all three decoders
        raise UsageError(
            f"{path} is no hardware template: {error}", "see docs/vsphere.md"
        ) from None
    return hardware


def encode(hardware: Hardware) -> bytes:
    """As a JSON file."""
    return msgspec.json.format(msgspec.json.encode(hardware), indent=2) + b"\n"


def describe(found: Found, more: dict[str, Any], network_of: Any) -> Hardware:
    """The template of a machine that exists.

    Args:
        more: Its properties of PATHS.
        network_of: Name of the network that a card is in.
    """
    boot = more.get("config.bootOptions")
    return Hardware(
        guest=str(more.get("config.guestId") or "otherGuest64"),
        version=str(more.get("config.version") or ""),
        memory=format_size(int(more.get("config.hardware.memoryMB", 0)) << 20),
        cpus=int(more.get("config.hardware.numCPU", 0)),
        cores_per_socket=int(more.get("config.hardware.numCoresPerSocket") or 0),
        firmware="uefi" if more.get("config.firmware") == "efi" else "bios",
        secure_boot=bool(boot is not None and boot.efiSecureBootEnabled),
        disks=[
            DiskPlace(
                controller=msgspec.convert(each.kind, Controller),
                bus=each.place.bus,
                unit=each.place.unit,
            )
            for each in devices.former_of(found.devices)
        ],
        cards=[
            TemplateCard(
                model=_model(card),
                mac=str(card.macAddress or "").lower(),
                network=network_of(card),
            )
            for card in devices.cards(found.devices)
        ],
    )


def _model(card: Any) -> CardModel:
    names: dict[Any, CardModel] = {
        vim.vm.device.VirtualE1000: "e1000",
        vim.vm.device.VirtualE1000e: "e1000e",
    }
    return names.get(type(card), "vmxnet3")


def _check(hardware: Hardware) -> None:
    for card in hardware.cards:
        if card.mac and not re.fullmatch(r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}", card.mac):
            raise UsageError(f"{card.mac!r} is not the address of a network card")
    taken = set()
    for disk in hardware.disks:
        family, _, units, reserved = devices.CONTROLLERS[disk.controller]
        place = (family, disk.bus, disk.unit)
        if disk.unit == reserved or not 0 <= disk.unit < units or place in taken:
            raise UsageError(f"no disk can hang at {disk.controller} {disk.bus}:{disk.unit}")
        if not 0 <= disk.bus < devices.BUSES[family]:
            raise UsageError(f"there is no bus {disk.bus} of {disk.controller}")
        taken.add(place)
    kinds: dict[tuple[str, int], str] = {}
    for disk in hardware.disks:
        spot = (devices.CONTROLLERS[disk.controller][0], disk.bus)
        if kinds.setdefault(spot, disk.controller) != disk.controller:
            raise UsageError(f"bus {disk.bus} is of {kinds[spot]} and of {disk.controller}")
    if hardware.memory_bytes % (1 << 20) or hardware.cpus < 0 or hardware.cores_per_socket < 0:
        raise UsageError("memory is a whole number of MiB, and no count is negative")
