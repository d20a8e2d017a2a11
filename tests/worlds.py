"""A simulated hypervisor: a world of machines that outlives the processes that drive it.

`World` is what there is: machines with disks, cards and power, which nobody's crash changes.
`SimulatedHypervisor` is one process' way to it, and does all that hypervisor/base.py says.
`World.trouble` is asked at every call, and may let it fail before its effect, after it, or
without an answer; it may also end the process that calls (`Crash`). What no hypervisor and no
operation may ever do is noted in `World.violations`.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rollpoint.disk import open_disk
from rollpoint.errors import Error, HypervisorError, NotFoundError, StateError, UnsupportedError
from rollpoint.hypervisor.base import Card, Conflict, Drive, Handle, Machine, State

# What becomes of a call. "refused": an error, and nothing was done. "broken": it was done,
# and the connection broke. "silent": it was done, and there was no answer in time.
Trouble = Literal["", "refused", "broken", "silent"]
EFFECTS = ("start", "power_on", "shut_down", "power_off", "let_go", "isolate", "freeze")
_CID = re.compile(rb"^(CID[ \t]*=[ \t]*)([0-9a-fA-F]{8})", re.MULTILINE)
_PARENT = re.compile(rb"^(parentCID[ \t]*=[ \t]*)([0-9a-fA-F]{8})", re.MULTILINE)
_TEXT_BYTES_MAX = 64 << 10


class Crash(BaseException):
    """The process that called ends here, without another word."""


@dataclass
class Thing:
    """A machine as the world knows it.

    Args:
        made: start made it, so let_go forgets it.
        former: What it was before start gave it other drives.
        deaf: Its guest does not heed a request to shut down.
        touched: Drives that were written since power-on: their content id has changed.
        files: Of its drives, as they were at power-on: path -> inode.
    """

    machine: Machine
    made: bool = True
    former: Machine | None = None
    is_on: bool = False
    isolated: bool = False
    deaf: bool = False
    started_ns: int = 0
    pid: int = 0
    touched: set[str] = field(default_factory=set)
    files: dict[str, int] = field(default_factory=dict)


@dataclass
class World:
    """All machines, and what happened to them.

    Args:
        needs_files, overlay_kind, kind: Of the hypervisors that reach it.
        freezes: Whether they can freeze.
        trouble: Asked with the call's name and the machine; see Trouble.
        moment: Told "before" and "after" each effect; may raise Crash.
        rivals: Machines of which one at most may be on: copies of one.
    """

    kind: str = "qemu"
    needs_files: bool = False
    overlay_kind: str = "hosted"
    freezes: bool = True
    things: dict[str, Thing] = field(default_factory=dict)
    rivals: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)  # paths of drives with such a guest
    silent: set[str] = field(default_factory=set)  # machines whose guest does not beat
    log: list[tuple[str, str, str]] = field(default_factory=list)  # effect, machine, operation
    violations: list[str] = field(default_factory=list)
    trouble: Callable[[str, str], Trouble] = lambda call, machine: ""
    moment: Callable[[str, str], None] = lambda when, call: None
    now_ns: int = 1
    pids: int = 1000

    def starts(self) -> Counter[str]:
        """How often each operation has powered a machine on that was off."""
        return Counter(operation for what, _, operation in self.log if what == "on")

    def on(self) -> set[str]:
        """Ids of the machines that are on."""
        return {name for name, thing in self.things.items() if thing.is_on}

    def add(self, machine: Machine, *, on: bool = False) -> None:
        """A machine that is there before anybody asks for it."""
        self.things[machine.id] = Thing(machine, made=False)
        if on:
            self._switch_on(self.things[machine.id])

    def cut_power(self, name: str) -> None:
        """The machine's host fails: nobody asked for that."""
        if name in self.things:
            self.things[name].is_on = False

    # ---- what happens, and cannot be half done ----

    def switch_on(self, name: str) -> None:
        """A machine that is known gets power; on already, nothing changes."""
        thing = self.things[name]
        if not thing.is_on:
            self._switch_on(thing)

    def _switch_on(self, thing: Thing) -> None:
        machine = thing.machine
        for drive in machine.drives:
            _require_usable(drive)
        for other in self.things.values():
            if other is not thing and other.is_on:
                both = _files(other.machine) & _files(machine)
                if both:
                    self.violations.append(
                        f"{machine.id} and {other.machine.id} both write {sorted(both)}"
                    )
        if machine.id in self.rivals:
            for name in sorted(self.rivals & self.on()):
                self.violations.append(f"{machine.id} is powered on while its copy {name} is on")
        self.pids += 1
        self.now_ns += 1
        thing.is_on, thing.pid, thing.started_ns = True, self.pids, self.now_ns
        thing.touched = set()
        thing.files = _inodes(machine)
        self.log.append(("on", machine.id, machine.operation))

    def switch_off(self, name: str) -> None:
        """It lets go of its disks; they have to be there still."""
        thing = self.things.get(name)
        if thing is None or not thing.is_on:
            return
        self.look_at_disks(thing)
        thing.is_on = False
        self.log.append(("off", name, thing.machine.operation))

    def look_at_disks(self, thing: Thing) -> None:
        """Whether somebody took, or replaced, a file that a running machine has open."""
        now = _inodes(thing.machine)
        for path, inode in thing.files.items():
            if now.get(path) != inode:
                what = "gone" if path not in now else "another file"
                self.violations.append(
                    f"{os.path.basename(path)} is {what} while {thing.machine.id} has it open"
                )

    def check(self) -> None:
        """Look at all that runs."""
        for thing in self.things.values():
            if thing.is_on:
                self.look_at_disks(thing)

    def copied_back(self) -> None:
        """The files of all disks were put back from a copy: other inodes, the same content."""
        for thing in self.things.values():
            if thing.is_on:
                now = _inodes(thing.machine)
                thing.files = {path: now.get(path, 0) for path in thing.files}

    def write(self, name: str, disk: int, data: bytes, offset: int) -> None:
        """As the guest does. The content id of a VMDK changes once after power-on."""
        thing = self.things[name]
        assert thing.is_on, "a guest that is off writes nothing"
        drive = thing.machine.drives[disk]
        if drive.format == "raw":
            with open(drive.path, "r+b") as file:
                file.seek(offset)
                file.write(data)
            return
        before = _cid(drive.path)
        with open_disk(drive.path, writable=True) as opened:
            opened.pwrite(data, offset)
        if drive.path in thing.touched and before is not None:
            _set(drive.path, _CID, before)
        thing.touched.add(drive.path)
        thing.files.update(_inodes(replace(thing.machine, drives=(drive,))))  # ours, for this

    def read(self, name: str, disk: int, length: int, offset: int) -> bytes:
        """As the guest does."""
        drive = self.things[name].machine.drives[disk]
        if drive.format == "raw":
            with open(drive.path, "rb") as file:
                file.seek(offset)
                return file.read(length)
        with open_disk(drive.path) as opened:
            return opened.pread(length, offset)

    def give_overlays(self, name: str, overlays: Mapping[str, str]) -> None:
        """All disks at once, or none."""
        thing = self.things.get(name)
        if thing is None or not thing.is_on:
            raise HypervisorError(f"machine {name} is off")
        new = []
        has = {os.path.abspath(drive.path) for drive in thing.machine.drives}
        for top in overlays:
            if os.path.abspath(top) not in has and os.path.abspath(overlays[top]) not in has:
                raise HypervisorError(f"machine {name} has no disk {os.path.basename(top)}")
        for drive in thing.machine.drives:
            path = overlays.get(drive.path, drive.path)
            if path != drive.path:
                cid = _cid(drive.path)
                if cid is not None:
                    _set(path, _PARENT, cid)
            new.append(replace(drive, path=path))
        thing.machine = replace(thing.machine, drives=tuple(new))
        thing.files = _inodes(thing.machine)
        self.log.append(("frozen", name, thing.machine.operation))


def _files(machine: Machine) -> set[str]:
    return {f"{drive.path}:{drive.export}" for drive in machine.drives}


def _inodes(machine: Machine) -> dict[str, int]:
    found = {}
    for drive in machine.drives:
        delta = drive.path.removesuffix(".vmdk") + "-delta.vmdk"
        for path in (drive.path, delta) if drive.format == "vmdk" else ():
            with contextlib.suppress(FileNotFoundError):
                found[path] = os.stat(path).st_ino
    return found


def _require_usable(drive: Drive) -> None:
    if drive.format == "nbd":
        return
    if not os.path.exists(drive.path):
        raise HypervisorError(f"could not open {drive.path}: no such file")
    if drive.format == "vmdk":
        try:
            open_disk(drive.path).close()
        except Error as error:
            raise HypervisorError(f"could not open {drive.path}: {error.message}") from error


def _text(path: str) -> bytes | None:
    with open(path, "rb") as file:
        data = file.read(_TEXT_BYTES_MAX)
    return data if data.startswith(b"# Disk") else None


def _cid(path: str) -> bytes | None:
    text = _text(path)
    found = None if text is None else _CID.search(text)
    return None if found is None else found[2]


def _set(path: str, pattern: re.Pattern[bytes], value: bytes) -> None:
    """In place: the file stays the one that it is."""
    found = pattern.search(_text(path) or b"")
    assert found is not None, path
    with open(path, "r+b") as file:
        file.seek(found.start(2))
        file.write(value)


class SimulatedHypervisor:
    """One process' way to a world. See hypervisor/base.py."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kind = world.kind
        self.needs_files = world.needs_files
        self.overlay_kind = world.overlay_kind

    def _call(self, name: str, machine_id: str, effect: Callable[[], None]) -> None:
        """One call with an effect, and whatever may become of it."""
        self.world.moment("before", name)
        trouble = self.world.trouble(name, machine_id)
        if trouble == "refused":
            raise HypervisorError(f"{name} of {machine_id}: out of resources", "try again")
        effect()
        self.world.moment("after", name)
        if trouble == "broken":
            raise HypervisorError(f"{name} of {machine_id}: the connection broke", "ask again")
        if trouble == "silent":
            raise HypervisorError(f"{name} of {machine_id}: no answer in 300 s", "ask again")

    def _ask(self, name: str, machine_id: str) -> None:
        """One call without an effect."""
        if self.world.trouble(name, machine_id):
            raise HypervisorError(f"{name} of {machine_id}: the connection broke", "ask again")

    def _handle(self, machine_id: str) -> Handle:
        thing = self.world.things[machine_id]
        return Handle(machine_id, thing.pid, thing.started_ns, "")

    def start(self, machine: Machine) -> Handle:
        def effect() -> None:
            world = self.world
            thing = world.things.get(machine.id)
            if thing is not None and thing.is_on:
                if thing.machine.drives != machine.drives:
                    raise StateError(f"machine {machine.id} runs already, with other disks")
                return
            deaf = any(drive.path in world.deaf for drive in machine.drives)
            if thing is None or thing.made:
                new = Thing(machine, deaf=deaf)
            else:
                former = thing.former
                if former is None and thing.machine.drives != machine.drives:
                    former = thing.machine
                new = Thing(machine, made=False, former=former, deaf=deaf)
            world._switch_on(new)
            world.things[machine.id] = new

        self._call("start", machine.id, effect)
        return self._handle(machine.id)

    def power_on(self, machine_id: str) -> Handle:
        if machine_id not in self.world.things:
            raise NotFoundError(f"there is no machine {machine_id}")
        self._call("power_on", machine_id, lambda: self.world.switch_on(machine_id))
        return self._handle(machine_id)

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        self._ask("wait_for", machine_id)
        if machine_id not in self.world.on():
            raise HypervisorError(f"machine {machine_id} did not print {marker!r}: it is off")
        return marker

    def beats(self, machine_id: str) -> str:
        self._ask("beats", machine_id)
        if machine_id not in self.world.on():
            raise HypervisorError(f"machine {machine_id} is off")
        return "" if machine_id in self.world.silent else "it beats"

    def shut_down(self, machine_id: str, timeout_seconds: float) -> str:
        thing = self.world.things.get(machine_id)
        if thing is None or not thing.is_on:
            return "was off"
        self._call("shut_down", machine_id, lambda: self.world.switch_off(machine_id))
        return "powered off: the guest is deaf" if thing.deaf else "shut down"

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        self._call("power_off", machine_id, lambda: self.world.switch_off(machine_id))

    def let_go(self, machine_id: str) -> None:
        def effect() -> None:
            things = self.world.things
            thing = things.get(machine_id)
            if thing is None:
                return
            if thing.is_on:
                raise StateError(f"machine {machine_id} is on", "power it off first")
            if thing.made:
                del things[machine_id]
            else:
                thing.machine, thing.former = thing.former or thing.machine, None

        self._call("let_go", machine_id, effect)

    def status(self, machine_id: str) -> State:
        self._ask("status", machine_id)
        return "running" if machine_id in self.world.on() else "off"

    def started_by(self, machine_id: str) -> str:
        self._ask("started_by", machine_id)
        thing = self.world.things.get(machine_id)
        return "" if thing is None else thing.machine.operation

    def is_known(self, machine_id: str) -> bool:
        self._ask("is_known", machine_id)
        return machine_id in self.world.things

    def isolate(self, machine_id: str) -> str:
        def effect() -> None:
            self.world.things[machine_id].isolated = True

        if machine_id not in self.world.things:
            raise NotFoundError(f"there is no machine {machine_id}")
        self._call("isolate", machine_id, effect)
        return "the wires are out"

    def conflicts(self, machine: Machine) -> list[Conflict]:
        self._ask("conflicts", machine.id)
        found = []
        stations = {card.mac.lower(): card for card in machine.cards if card.network != "none"}
        addresses = {address for card in stations.values() for address in card.addresses}
        for other in self.world.things.values():
            if not other.is_on or other.machine.id == machine.id:
                continue
            where = f"machine {other.machine.id}"
            if machine.uuid and machine.uuid.lower() == other.machine.uuid.lower():
                found.append(Conflict("uuid", machine.uuid, where))
            for card in wired(other):
                if card.mac.lower() in stations:
                    found.append(Conflict("mac", card.mac.lower(), where))
                for address in addresses & set(card.addresses):
                    found.append(Conflict("address", address, where))
            theirs = {drive.path for drive in other.machine.drives}
            for drive in machine.drives:
                if drive.path in theirs and drive.format != "nbd":
                    found.append(Conflict("disk", drive.path, where))
        return found

    def freeze(self, machine_id: str, overlays: Mapping[str, str]) -> None:
        if not self.world.freezes:
            raise UnsupportedError("this world freezes nothing", "do it at the switch")
        self._call("freeze", machine_id, lambda: self.world.give_overlays(machine_id, overlays))

    def commit(
        self, machine_id: str, tops: Mapping[str, str], progress: Callable[[int, int], bool]
    ) -> None:
        raise UnsupportedError("this world merges nothing that runs", "power it off first")


def wired(thing: Thing) -> list[Card]:
    """Its cards that are on a network."""
    if thing.isolated:
        return []
    return [card for card in thing.machine.cards if card.network != "none"]


class Saved:
    """A directory and a world as they were; put back as often as wanted, at the same place.

    It is what other processes would find after a kill -9 at that moment.
    """

    def __init__(self, path: Path, world: World, kept: Path) -> None:
        self._path, self._kept = path, kept
        shutil.copytree(path, kept, symlinks=True, ignore=_sockets)
        self._world = copy.deepcopy(_bare(world))

    def put_back(self, *, once: bool = False) -> World:
        """The directory is there as it was; returns the world."""
        if self._path.exists():
            shutil.rmtree(self._path)
        if once:
            os.rename(self._kept, self._path)
        else:
            shutil.copytree(self._kept, self._path, symlinks=True)
        world = copy.deepcopy(self._world)
        world.copied_back()
        return world


def _bare(world: World) -> World:
    """Without what the test has hooked into it."""
    return replace(world, trouble=lambda call, machine: "", moment=lambda when, call: None)


def _sockets(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name.endswith(".sock") or ".sock." in name}
