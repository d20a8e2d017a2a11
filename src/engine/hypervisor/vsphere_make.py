"""Registering a machine for a replica that has none, and forgetting it.

It is made empty, with its note, under an instance UUID that follows from its id: asked
again after a lost answer, the one that was made is found. Its disks come with the start.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim

from ..errors import HypervisorError, NotFoundError
from . import vsphere_devices as devices
from . import vsphere_faults as faults
from . import vsphere_note as notes
from . import vsphere_template as template
from .base import Machine
from .vsphere_faults import LostError
from .vsphere_inventory import Found, Networks, find, instance_uuid, look, one_of
from .vsphere_note import Former, Note, Place
from .vsphere_session import Session
from .vsphere_template import Hardware
from .vsphere_wires import NONE, Wires

MAKE_TRIES = 3
NAMES_TRIED = 2  # the machine's own, then one with its id

Changes = Callable[[Found], list[Any]]
Reconfigure = Callable[[Found, Changes, Note, str], None]


@dataclass(frozen=True)
class Site:
    """Where machines are made, and what is called how there. See config_tables."""

    datastores: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)
    datacenter: str = ""
    folder: str = ""
    pool: str = ""
    host: str = ""
    keep_macs: bool = True
    hardware: str = ""  # path of a template


class Maker:
    """Makes and forgets machines at one site."""

    def __init__(self, session: Session, site: Site, networks: Networks) -> None:
        self._session = session
        self._site = site
        self._networks = networks
        self._wires = Wires(networks)

    def make(self, machine: Machine, file: str) -> Found:
        """A machine for this id, off and without disks; the one there is, if there is one.

        Args:
            file: One of its disks: the machine's own files go to the same datastore.

        Raises:
            HypervisorError: The server refused.
            UsageError, NotFoundError: It is not said, or not there, where to make it.
        """
        hardware = self._hardware()
        folder, pool, host = self._places()
        doing = f"making machine {machine.name}"
        failed: HypervisorError | None = None
        number = 0
        for _ in range(MAKE_TRIES + NAMES_TRIED):
            found = find(self._session, machine.id) if failed is not None else None
            if found is not None:
                return found
            spec = self._spec(machine, hardware, file.partition("]")[0] + "]", number)
            try:
                task = self._session.tell(
                    doing,
                    lambda _: folder.CreateVM_Task(spec, pool, host),  # noqa: B023
                )
                vm = self._session.finish(task, doing, self._session.server.timeout_seconds)
            except LostError as error:
                failed = error
                continue
            except HypervisorError as error:
                cause = error.__cause__
                taken = cause is not None and faults.is_a(
                    cause, "DuplicateName", "FileAlreadyExists"
                )
                if not taken or number + 1 >= NAMES_TRIED:
                    raise
                failed, number = error, number + 1
                continue
            made = look(self._session, vm)
            if made is not None:
                return made
        raise failed or HypervisorError(f"{self._session.server} made no machine {machine.name}")

    def forget(self, found: Found, reconfigure: Reconfigure) -> None:
        """Take the disks off a machine that was made here, and the machine away.

        Its own files go, too. No disk can: it has none by then.
        """
        note = found.note
        assert note is not None
        doing = f"removing machine {found.name}"
        reconfigure(
            found,
            lambda now: devices.swap(now.devices, ()),
            note,
            f"taking the disks off {found.name}",
        )
        now = look(self._session, found.vm)
        for _ in range(MAKE_TRIES):
            if now is None:
                return
            if devices.disks(now.devices):
                raise HypervisorError(
                    f"machine {found.name} has disks again", "look at who gave them to it"
                )
            try:
                task = self._session.tell(doing, lambda _: found.vm.Destroy_Task())
                self._session.finish(task, doing, self._session.server.timeout_seconds)
            except LostError:
                pass
            except HypervisorError as error:
                if error.__cause__ is None or not faults.is_a(
                    error.__cause__, "ManagedObjectNotFound"
                ):
                    raise
            now = look(self._session, found.vm)
        raise HypervisorError(f"machine {found.name} is still there", "remove it at the server")

    def macs(self, machine: Machine) -> set[str]:
        """What the plugged cards of a machine that is made would have."""
        cards = self._said(machine, self._hardware())
        return {mac.lower() for _, mac, name in cards if mac and name != NONE}

    def _hardware(self) -> Hardware:
        return template.load(self._site.hardware) if self._site.hardware else Hardware()

    def disk_places(self, files: list[str]) -> list[Former]:
        """Where the template hangs the disks; empty without one."""
        return [
            Former(
                Place(devices.CONTROLLERS[disk.controller][0], disk.bus, disk.unit),
                file,
                "persistent",
                disk.controller,
            )
            for disk, file in zip(self._hardware().disks, files, strict=False)
        ]

    def _spec(self, machine: Machine, hardware: Hardware, datastore: str, number: int) -> Any:
        note = Note(
            machine=machine.id,
            operation=machine.operation,
            replica=machine.replica,
            point=machine.point,
            made=True,
        )
        uuid = instance_uuid(machine.id)
        name = machine.name if number == 0 else f"{machine.name} ({uuid[:8]})"
        firmware = hardware.firmware or machine.firmware
        spec = vim.vm.ConfigSpec(
            name=name,
            instanceUuid=uuid,
            annotation=notes.write("", note),
            guestId=hardware.guest,
            memoryMB=_whole_mib(hardware.memory_bytes or machine.memory_bytes),
            numCPUs=hardware.cpus or machine.cpus,
            firmware="efi" if firmware == "uefi" else "bios",
            # A folder of its own: what is removed with the machine holds no disk.
            files=vim.vm.FileInfo(
                vmPathName=f"{datastore} rollpoint-{uuid}/{_file_name(name)}.vmx"
            ),
            deviceChange=self._cards(machine, hardware),
            extraConfig=[
                vim.option.OptionValue(key=key, value=value)
                for key, value in hardware.extra.items()
            ],
        )
        if machine.uuid:
            spec.uuid = machine.uuid
        if hardware.version:
            spec.version = hardware.version
        if hardware.cores_per_socket:
            spec.numCoresPerSocket = hardware.cores_per_socket
        if hardware.secure_boot:
            spec.bootOptions = vim.vm.BootOptions(efiSecureBootEnabled=True)
        return spec

    def _cards(self, machine: Machine, hardware: Hardware) -> list[Any]:
        made = []
        for number, (model, mac, name) in enumerate(self._said(machine, hardware)):
            plugged = name != NONE
            backing = self._networks.backing(name) if plugged else self._networks.any()
            made.append(devices.new_card(number, model, mac, backing, plugged))
        return made

    def _said(self, machine: Machine, hardware: Hardware) -> list[tuple[str, str, str]]:
        """Model, MAC and network of the machine's own cards; without, of the template's."""
        cards = [(card.model, card.mac, card.network) for card in machine.cards]
        cards = cards or [(card.model, card.mac, card.network) for card in hardware.cards]
        return [
            (model, mac if self._site.keep_macs else "", self._wires.network(machine, said))
            for model, mac, said in cards
        ]

    def _places(self) -> tuple[Any, Any, Any]:
        """Folder, resource pool, and host (None: as the server chooses)."""
        session, site = self._session, self._site
        centers = session.inventory(vim.Datacenter, ("name", "vmFolder", "hostFolder"))
        values = one_of(
            "datacenter",
            [(values["name"], values) for _, values in centers],
            site.datacenter,
            "datacenter",
        )
        folder = values["vmFolder"]
        if site.folder:
            path = f"{values['name']}/vm/{site.folder.strip('/')}"
            folder = session.ask(
                f"looking for folder {path}",
                lambda content: content.searchIndex.FindByInventoryPath(path),
            )
            if not isinstance(folder, vim.Folder):
                raise NotFoundError(
                    f"{session.server} has no folder {path}", "make it, or set [hypervisor] folder"
                )
        root = values["hostFolder"]
        host = None
        computers = session.inventory(vim.ComputeResource, ("name", "resourcePool"), root)
        if site.host:
            hosts = session.inventory(vim.HostSystem, ("name", "parent"), root)
            found = one_of(
                "host", [(each["name"], (vm, each)) for vm, each in hosts], site.host, "host"
            )
            host, parent = found[0], found[1]["parent"]
            computers = [each for each in computers if each[0]._moId == parent._moId]
        pools = [(each["name"], each["resourcePool"]) for _, each in computers]
        if site.pool and site.pool not in [name for name, _ in pools]:
            more = session.inventory(vim.ResourcePool, ("name",), root)
            pools = [(each["name"], pool) for pool, each in more]
        return folder, one_of("resource pool or cluster", pools, site.pool, "pool"), host


def _whole_mib(memory_bytes: int) -> int:
    """vSphere takes multiples of 4 MiB."""
    return -(-memory_bytes // (4 << 20)) * 4


def _file_name(name: str) -> str:
    return posixpath.basename("".join(c if c.isalnum() or c in "._-" else "_" for c in name))
