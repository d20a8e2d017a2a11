"""Machines of vCenter or of an ESXi host.

A machine is started with its disks swapped for the replica's overlays, at the same
controllers and units. What it had before is noted in its annotation in the same call, so
that any process can give it back. A call without an answer is not a failure and not a
success: the machine is looked at, and only what is missing is done again.

Tried with govmomi's simulator: see docs/vsphere.md for what that does not show.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import HypervisorError, StateError, UnsupportedError, UsageError
from . import vsphere_devices as devices
from .base import Conflict, Handle, Machine, State
from .vsphere_faults import LostError
from .vsphere_inventory import Datastores, Found, Networks, find, look, require
from .vsphere_make import Maker, Site
from .vsphere_note import Former, Note
from .vsphere_reach import Reach
from .vsphere_session import Session
from .vsphere_wires import Wires

if TYPE_CHECKING:
    from .vsphere_template import Hardware

_STATES: dict[str, State] = {
    "poweredOn": "running",
    "poweredOff": "off",
    "suspended": "paused",
}
_UP_PATHS = ("runtime.powerState", "guest.toolsRunningStatus", "guestHeartbeatStatus")


class VSphere:
    """The machines that one server knows.

    Args:
        session: With the server.
        site: Where machines are made, and what is called how there.
    """

    kind = "vsphere"
    needs_files = True
    overlay_kind = "vmfsSparse"

    def __init__(self, session: Session, site: Site) -> None:
        self._session = session
        self._site = site
        self._datastores = Datastores(site.datastores)
        self._networks = Networks(session, site.networks, site.datacenter)
        self._wires = Wires(self._networks)
        self._reach = Reach(session)
        self._maker = Maker(session, site, self._networks)

    def start(self, machine: Machine) -> Handle:
        """See Hypervisor.start."""
        if machine.paused:
            raise UnsupportedError("vSphere cannot start a machine paused", "start it without that")
        files = [self._file(drive.path, drive.format) for drive in machine.drives]
        found = self._find(machine.id)
        if found is None:
            # Looked at before anything is made: whether they can hang anywhere.
            devices.places_for(files, self._maker.disk_places(files), machine.bus)
            found = self._maker.make(machine, files[0])
        if found.is_on:
            if [disk.files[0] for disk in devices.disks(found.devices)] != self._order(
                found, files, machine
            ):
                raise StateError(
                    f"machine {machine.id} ({found.name}) runs already, with other disks",
                    "power it off first",
                )
            return self._handle(machine.id, found)
        called_ns = time.time_ns()
        self._equip(found, machine, files)
        self._reach.turn(found, on=True)
        return Handle(id=machine.id, pid=0, started_ns=called_ns, console="")

    def power_on(self, machine_id: str) -> Handle:
        """See Hypervisor.power_on."""
        found = require(self._find(machine_id), machine_id, self._session)
        self._reach.turn(found, on=True)
        return self._handle(machine_id, self._again(found, machine_id))

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        """See Hypervisor.wait_for. The marker is a colour of the heartbeat, or empty."""
        wanted = {"": ("green", "yellow"), "green": ("green",), "yellow": ("yellow", "green")}
        found = require(self._find(machine_id), machine_id, self._session)
        if marker not in wanted and found.is_on:
            raise UsageError(
                f"{marker!r} is no colour of a heartbeat", "set marker to green, yellow or nothing"
            )
        colours = wanted.get(marker, ())

        def is_decided(values: dict[str, Any]) -> bool:
            return values.get("runtime.powerState") != "poweredOn" or _is_up(values, colours)

        seen, _ = self._session.watch(found.vm, _UP_PATHS, is_decided, timeout_seconds)
        power, said = seen.get("runtime.powerState"), _said(seen)
        if power == "poweredOn" and _is_up(seen, colours):
            return said
        why = f"in {timeout_seconds:g} s" if power == "poweredOn" else f"before it was {power}"
        raise HypervisorError(
            f"the guest of machine {machine_id} ({found.name}) was not up {why}: {said}",
            "look at the machine's console, and whether VMware Tools are installed in it",
        )

    def beats(self, machine_id: str) -> str:
        """See Hypervisor.beats. A yellow heartbeat is one: some beats were missed lately."""
        found = self._find(machine_id)
        if found is None or not found.is_on:
            raise HypervisorError(f"machine {machine_id} does not run", "power it on first")
        values = self._session.properties([found.vm], _UP_PATHS)[0]
        return _said(values) if _is_up(values, ("green", "yellow")) else ""

    def shut_down(self, machine_id: str, timeout_seconds: float) -> str:
        """See Hypervisor.shut_down."""
        found = self._find(machine_id)
        if found is None or not found.is_on:
            return "was off"
        try:
            self._session.tell(
                f"shutting down the guest of {found.name}", lambda _: found.vm.ShutdownGuest()
            )
            why = f"it was not off in {timeout_seconds:g} s"
        except LostError:
            why = f"it was not off in {timeout_seconds:g} s"  # it may have been asked
        except HypervisorError as error:
            if not self._again(found, machine_id).is_on:
                return "was off"
            why = error.message
            timeout_seconds = 0.0
        if timeout_seconds > 0:
            _, off = self._session.watch(
                found.vm,
                ("runtime.powerState",),
                lambda values: values.get("runtime.powerState") == "poweredOff",
                timeout_seconds,
            )
            if off:
                return "shut down"
        self._reach.turn(found, on=False)
        return f"powered off: {why}"

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        """See Hypervisor.power_off."""
        found = self._find(machine_id)
        if found is not None and found.is_on:
            self._reach.turn(found, on=False)

    def let_go(self, machine_id: str) -> None:
        """See Hypervisor.let_go."""
        found = self._find(machine_id)
        if found is None or found.note is None or found.note.is_idle:
            return
        if found.is_on:
            raise StateError(
                f"machine {machine_id} ({found.name}) is on", "power it off before it is let go"
            )
        note = found.note
        if note.made:
            self._maker.forget(found, self._reach.reconfigure)
            return

        def changes(now: Found) -> list[Any]:
            disks = [] if note.former is None else devices.swap(now.devices, note.former)
            return disks + self._wires.former(now.devices, note.cards)

        idle = Note(
            machine=note.machine,
            operation=note.operation,
            replica=note.replica,
            point=note.point,
        )
        self._reach.reconfigure(found, changes, idle, f"giving {found.name} its disks back")

    def status(self, machine_id: str) -> State:
        """See Hypervisor.status."""
        found = self._find(machine_id)
        return "off" if found is None else _STATES[found.power]

    def started_by(self, machine_id: str) -> str:
        """See Hypervisor.started_by."""
        found = self._find(machine_id)
        return found.note.operation if found is not None and found.note is not None else ""

    def is_known(self, machine_id: str) -> bool:
        """See Hypervisor.is_known."""
        return self._find(machine_id) is not None

    def isolate(self, machine_id: str) -> str:
        """See Hypervisor.isolate."""
        found = require(self._find(machine_id), machine_id, self._session)
        count = len(devices.cards(found.devices))
        note = found.note or Note(machine=machine_id)
        note.isolated = True
        note.cards = note.cards or self._wires.remember(found.devices)
        self._reach.reconfigure(
            found,
            lambda now: self._wires.unplug(now.devices, now.is_on),
            note,
            f"pulling the wires out of {found.name}",
        )
        return f"{count} network cards of {found.name} have no wire"

    def conflicts(self, machine: Machine) -> list[Conflict]:
        """See Hypervisor.conflicts."""
        from .vsphere_conflicts import conflicts

        files = {self._file(drive.path, drive.format): drive.path for drive in machine.drives}
        found = self._find(machine.id)
        macs = self._maker.macs(machine) if found is None else set()
        return conflicts(self._session, machine, found, files, macs)

    def freeze(self, machine_id: str, overlays: Mapping[str, str]) -> None:
        """See Hypervisor.freeze. vSphere makes overlays itself, as snapshots."""
        raise UnsupportedError(
            "vSphere puts no overlays of others above the disks of a running machine",
            "what is written meanwhile is sent at the switch",
        )

    def commit(
        self, machine_id: str, tops: Mapping[str, str], progress: Callable[[int, int], bool]
    ) -> None:
        """See Hypervisor.commit."""
        raise UnsupportedError(
            "disks of a machine on vSphere are not merged while it runs",
            "do it while the machine is off: rollpoint permanent without --online",
        )

    def snapshot(self, machine_id: str, name: str, quiesce: bool = False) -> None:
        """A snapshot of the machine's disks, without its memory. There already: nothing is done.

        Raises:
            NotFoundError: There is no such machine.
            HypervisorError: The server refused.
        """
        found = require(self._find(machine_id), machine_id, self._session)
        self._reach.state(
            found.vm,
            f"making snapshot {name!r} of {found.name}",
            lambda: name in self._snapshots(found),
            lambda: found.vm.CreateSnapshot_Task(name, "made by Rollpoint", False, quiesce),
        )

    def remove_snapshot(self, machine_id: str, name: str) -> None:
        """Remove a snapshot and put its disks together; those above it stay. Gone: nothing is done.

        Raises:
            As snapshot.
        """
        found = require(self._find(machine_id), machine_id, self._session)
        self._reach.state(
            found.vm,
            f"removing snapshot {name!r} of {found.name}",
            lambda: name not in self._snapshots(found),
            lambda: self._snapshots(found)[name].RemoveSnapshot_Task(False, True),
        )

    def describe(self, machine_id: str) -> Hardware:
        """The hardware of a machine, as a template for one that is made after it.

        Raises:
            NotFoundError: There is no such machine.
        """
        from . import vsphere_template as template

        found = require(self._find(machine_id), machine_id, self._session)
        more = self._session.properties([found.vm], template.PATHS)[0]
        return template.describe(found, more, self._networks.name_of)

    def require_network(self, name: str) -> None:
        """See that a network is there.

        Raises:
            NotFoundError: It is not; the hint names those that are.
        """
        self._networks.backing(name)

    def close(self) -> None:
        """Log out."""
        self._session.close()

    def _find(self, machine_id: str) -> Found | None:
        return find(self._session, machine_id)

    def _snapshots(self, found: Found) -> dict[str, Any]:
        """Name -> snapshot."""
        info = self._session.properties([found.vm], ("snapshot",))[0].get("snapshot")
        left, by_name = list(info.rootSnapshotList) if info is not None else [], {}
        while left:
            each = left.pop()
            by_name[each.name] = each.snapshot
            left += each.childSnapshotList
        return by_name

    def _again(self, found: Found, machine_id: str) -> Found:
        return require(look(self._session, found.vm), machine_id, self._session)

    def _file(self, path: str, format: str) -> str:
        if format != "vmdk":
            raise UnsupportedError(
                f"vSphere takes VMDK files as disks, and {path} is {format}",
                "give it a VMDK on a datastore",
            )
        return self._datastores.remote(path)

    def _order(self, found: Found, files: list[str], machine: Machine) -> list[str]:
        """The files as the machine's disks would be listed."""
        wanted = devices.places_for(files, self._former(found, files), machine.bus)
        return [each.file for each in devices.in_order(wanted)]

    def _former(self, found: Found, files: list[str]) -> list[Former]:
        """The disks in whose place ours hang, or would."""
        note = found.note
        if note is not None and note.former is not None:
            return note.former
        has = devices.former_of(found.devices)
        if not has and note is not None and note.made:
            return self._maker.disk_places(files)
        return has

    def _equip(self, found: Found, machine: Machine, files: list[str]) -> None:
        """Give a machine that is off its drives, its wires, and the note, in one call."""
        if found.values.get("snapshot") is not None:
            raise StateError(
                f"machine {machine.id} ({found.name}) has snapshots, which hold on to its disks",
                "delete them, then try again",
            )
        devices.refuse_unknown(found.devices, found.name)
        note = found.note
        former = self._former(found, files)
        wanted = devices.places_for(files, former, machine.bus)
        made = note is not None and note.made

        def changes(now: Found) -> list[Any]:
            return devices.swap(now.devices, wanted) + self._wires.wanted(now.devices, machine)

        before = note.cards if note is not None else []
        remembered = self._wires.remember(found.devices)  # wanted() changes what it looks at
        # Kept only where one is changed: made ones have no former network to go back to.
        changed = not made and bool(self._wires.wanted(found.devices, machine))
        new = Note(
            machine=machine.id,
            operation=machine.operation,
            replica=machine.replica,
            point=machine.point,
            made=made,
            former=None if made else former,
            cards=before or (remembered if changed else []),
        )
        self._reach.reconfigure(found, changes, new, f"giving {found.name} its disks")

    def _handle(self, machine_id: str, found: Found) -> Handle:
        booted = found.values.get("summary.runtime.bootTime")
        started_ns = 0 if booted is None else int(booted.timestamp() * 1e9)
        return Handle(id=machine_id, pid=0, started_ns=started_ns, console="")


def _is_up(values: dict[str, Any], colours: tuple[str, ...]) -> bool:
    running = values.get("guest.toolsRunningStatus") == "guestToolsRunning"
    return running and values.get("guestHeartbeatStatus") in colours


def _said(values: dict[str, Any]) -> str:
    return (
        f"VMware Tools {values.get('guest.toolsRunningStatus', 'unknown')},"
        f" heartbeat {values.get('guestHeartbeatStatus', 'unknown')}"
    )
