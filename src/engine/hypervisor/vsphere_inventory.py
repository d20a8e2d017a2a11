"""Finding things at the server: machines, networks, and the files behind datastores' names."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from pyVmomi import vim

from ..errors import HypervisorError, NotFoundError, UsageError
from . import vsphere_devices as devices
from . import vsphere_note as notes
from .vsphere_note import Note
from .vsphere_session import Session

NAMESPACE = uuid.UUID("6f0b1c52-52c9-5e0c-9a55-7d2f7a5c3f10")  # of machines' ids that are no UUID
VM_PATHS = (
    "name",
    "parent",
    "config.annotation",
    "config.hardware.device",
    "config.instanceUuid",
    "config.template",
    "config.uuid",
    "config.files.vmPathName",
    "runtime.powerState",
    "snapshot",
    "summary.runtime.bootTime",
)


@dataclass
class Found:
    """A machine as it was when it was looked at. values: by property path."""

    vm: Any
    values: dict[str, Any]
    note: Note | None = field(init=False)

    def __post_init__(self) -> None:
        self.note = notes.read(self.annotation, self.name)

    @property
    def name(self) -> str:
        return str(self.values.get("name", self.vm._moId))

    @property
    def annotation(self) -> str:
        return str(self.values.get("config.annotation") or "")

    @property
    def devices(self) -> list[Any]:
        return list(self.values.get("config.hardware.device") or [])

    @property
    def power(self) -> str:
        return str(self.values["runtime.powerState"])

    @property
    def is_on(self) -> bool:
        return self.power != "poweredOff"


def instance_uuid(machine_id: str) -> str:
    """The instance UUID of a machine that is made under this id."""
    try:
        return str(uuid.UUID(machine_id))
    except ValueError:
        return str(uuid.uuid5(NAMESPACE, machine_id))


def find(session: Session, machine_id: str) -> Found | None:
    """A machine by its instance UUID, its inventory path, the id in its note, or its name.

    Raises:
        UsageError: Two machines have that name, or it is a template.
        HypervisorError: The server cannot be asked.
    """
    vm = session.ask(
        f"looking for machine {machine_id}",
        lambda content: content.searchIndex.FindByUuid(None, instance_uuid(machine_id), True, True),
    )
    if vm is None and "/" in machine_id:
        vm = session.ask(
            f"looking for machine {machine_id}",
            lambda content: content.searchIndex.FindByInventoryPath(machine_id.lstrip("/")),
        )
        if vm is not None and not isinstance(vm, vim.VirtualMachine):
            raise UsageError(f"{machine_id} is no machine at {session.server}", "name a machine")
    if vm is None:
        vm = _by_name(session, machine_id)
    return None if vm is None else look(session, vm)


def look(session: Session, vm: Any) -> Found | None:
    """A machine as it is now; None: it is gone.

    Raises:
        UsageError: It is a template.
        HypervisorError: The server cannot be asked, or does not tell whether it is on.
    """
    try:
        values = session.properties([vm], VM_PATHS)[0]
    except HypervisorError as error:
        if _is_gone(error):
            return None
        raise
    if values.get("config.template"):
        raise UsageError(
            f"{values.get('name')} at {session.server} is a template", "name a machine"
        )
    if "runtime.powerState" not in values:
        raise HypervisorError(
            f"{session.server} does not tell whether {values.get('name', vm._moId)} is on",
            "give the user of replica.toml the privileges System.View and System.Read on it",
        )
    return Found(vm, values)


def require(found: Found | None, machine_id: str, session: Session) -> Found:
    """The machine.

    Raises:
        NotFoundError: There is none.
    """
    if found is None:
        raise NotFoundError(
            f"{session.server} knows no machine {machine_id}",
            "give its instance UUID, its inventory path or its name",
        )
    return found


def _is_gone(error: HypervisorError) -> bool:
    from .vsphere_faults import is_a

    cause = error.__cause__
    return cause is not None and is_a(cause, "ManagedObjectNotFound")


def _by_name(session: Session, machine_id: str) -> Any:
    machines = session.inventory(vim.VirtualMachine, ("name", "config.annotation"))
    key = f'"machine":{msgspec.json.encode(machine_id).decode()}'
    line = re.compile(re.escape(notes.NOTE) + r"\{.*" + re.escape(key))
    noted = [vm for vm, values in machines if line.search(values.get("config.annotation") or "")]
    named = [vm for vm, values in machines if values.get("name") == machine_id]
    for found in (noted, named):
        if len(found) > 1:
            raise UsageError(
                f"{session.server} has {len(found)} machines {machine_id!r}",
                "give the inventory path or the instance UUID of one",
            )
        if found:
            return found[0]
    return None


class Datastores:
    """Which datastore is mounted where on this host.

    Args:
        mounts: Name of the datastore -> directory.
    """

    def __init__(self, mounts: Mapping[str, str]) -> None:
        self._mounts = sorted(
            ((os.path.realpath(place), name) for name, place in mounts.items()),
            key=lambda each: len(each[0]),
            reverse=True,
        )

    def remote(self, path: str) -> str:
        """The server's name of a local file: "[datastore] folder/file".

        Raises:
            UsageError: It lies on no datastore that is known.
        """
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        for place, name in self._mounts:
            if real.startswith(place.rstrip("/") + "/"):
                return f"[{name}] {os.path.relpath(real, place)}"
        known = ", ".join(place for place, _ in self._mounts) or "none"
        raise UsageError(
            f"{path} lies on no datastore that is known (mounted: {known})",
            "say in [hypervisor.datastores] which datastore is mounted there",
        )


class Networks:
    """The networks of a datacenter ("": of all), read when the first one is asked for."""

    def __init__(self, session: Session, mapping: Mapping[str, str], datacenter: str) -> None:
        self._session = session
        self._datacenter = datacenter
        self._mapping = mapping
        self._known: list[tuple[str, Any, str]] | None = None

    def target(self, source: str) -> str:
        """What a network of the source is called here."""
        return self._mapping.get(source, self._mapping.get("*", source))

    def backing(self, name: str) -> Any:
        """The backing of a card in that network: its name, or "dvportgroup:KEY".

        Raises:
            NotFoundError: There is no such network.
        """
        for known, backing, key in self._all():
            if name in (known, f"dvportgroup:{key}"):
                return backing
        names = ", ".join(sorted({known for known, _, _ in self._all()}))
        raise NotFoundError(
            f"{self._session.server} has no network {name!r}",
            f"it has {names}; say in [hypervisor.networks] which one to take",
        )

    def name_of(self, card: Any) -> str:
        """What people call the network of a card."""
        wanted = devices.backing_name(card)
        named = [name for name, _, key in self._all() if wanted == f"dvportgroup:{key}"]
        return named[0] if named else wanted or "none"

    def any(self) -> Any:
        """Some network: a card without a wire needs one to be named."""
        known = sorted(self._all(), key=lambda each: each[0])
        if not known:
            raise NotFoundError(f"{self._session.server} has no network", "make one there")
        return known[0][1]

    def _all(self) -> list[tuple[str, Any, str]]:
        if self._known is None:
            self._known = list(self._read())
        return self._known

    def _read(self) -> Iterable[tuple[str, Any, str]]:
        card = vim.vm.device.VirtualEthernetCard
        root = None
        if self._datacenter:
            centers = self._session.inventory(vim.Datacenter, ("name",))
            named = [(values["name"], center) for center, values in centers]
            root = one_of("datacenter", named, self._datacenter, "datacenter")
        groups = self._session.inventory(
            vim.dvs.DistributedVirtualPortgroup,
            ("name", "key", "config.distributedVirtualSwitch"),
            root,
        )
        switches = [values["config.distributedVirtualSwitch"] for _, values in groups]
        uuids = self._session.properties(switches, ("uuid",))
        for (_, values), switch in zip(groups, uuids, strict=True):
            port = vim.dvs.PortConnection(
                portgroupKey=values["key"], switchUuid=switch.get("uuid", "")
            )
            backing = card.DistributedVirtualPortBackingInfo(port=port)
            yield values["name"], backing, values["key"]
        for network, values in self._session.inventory(vim.Network, ("name",), root):
            if not isinstance(network, vim.dvs.DistributedVirtualPortgroup):
                backing = card.NetworkBackingInfo(deviceName=values["name"], network=network)
                yield values["name"], backing, ""


def files_of(found: Found) -> set[str]:
    """All files of a machine's disks, those below included."""
    return {file for disk in devices.disks(found.devices) for file in disk.files}


def one_of(what: str, choices: Sequence[tuple[str, Any]], wanted: str, setting: str) -> Any:
    """The choice of that name, or the only one there is.

    Raises:
        UsageError: There are several, and none is named.
        NotFoundError: There is none, or none of that name.
    """
    names = ", ".join(sorted(name for name, _ in choices))
    if wanted:
        found = [each for name, each in choices if name == wanted]
        if not found:
            raise NotFoundError(f"there is no {what} {wanted!r} at the server", f"it has {names}")
        if len(found) > 1:
            raise UsageError(f"the server has {len(found)} {what}s {wanted!r}", "rename one")
        return found[0]
    if not choices:
        raise NotFoundError(f"the server has no {what}", "make one there")
    if len(choices) > 1:
        raise UsageError(
            f"the server has more than one {what}: {names}", f"set [hypervisor] {setting}"
        )
    return choices[0][1]
