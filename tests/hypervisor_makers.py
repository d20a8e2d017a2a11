"""A hypervisor of each kind for tests/test_hypervisors.py, and what it needs beside it.

To add one: a subclass of Maker, and its name in test_hypervisors.MAKERS.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rollpoint._native import Io
from rollpoint.create import create_disk
from rollpoint.disk import open_disk
from rollpoint.hypervisor.base import Card, Drive, Hypervisor, Machine
from rollpoint.hypervisor.qemu import Qemu
from rollpoint.interim import create_interim
from tools import require_tool
from worlds import SimulatedHypervisor, World, wired

SIZE_BYTES = 1 << 20


class Maker:
    """One hypervisor with a place for disks. Every new() is what another process would have.

    Attributes:
        supports: Of "freeze", "commit", "isolate", "conflicts": what may not raise
            UnsupportedError. Of "shutdown": its guests can shut down by themselves.
            Of "beat": they can be made to have a heartbeat.
        marker: What wait_for is given.
        wire: Name of a network that a card can be on.
    """

    supports: frozenset[str] = frozenset()
    marker = ""
    wire = "user"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def new(self) -> Hypervisor:
        raise NotImplementedError

    def close(self) -> None:
        """End all that runs."""

    def drive(self, name: str, *, deaf: bool = False) -> Drive:
        """A disk whose guest comes up; deaf: and does not heed a request to shut down."""
        raise NotImplementedError

    def machine(self, *drives: Drive, id: str = "vm", **said: object) -> Machine:
        return replace(Machine(id, f"the machine {id}", drives, 16 << 20), **said)  # type: ignore[arg-type]

    def add(self, machine: Machine) -> None:
        """A machine that is there before Rollpoint comes, off."""
        raise NotImplementedError

    def drives(self, machine_id: str) -> list[str]:
        """Paths of the disks of a machine that is known, on or off."""
        raise NotImplementedError

    def wires(self, machine_id: str) -> int:
        """How many cards of a running machine are on a network."""
        raise NotImplementedError

    def silence(self, machine_id: str) -> None:
        """The guest of a machine that is about to be started does not beat."""

    def beat(self, machine_id: str) -> None:
        """The guest of a running machine beats from now on."""
        raise NotImplementedError

    def write(self, machine_id: str, disk: int, byte: int, offset: int, length: int) -> None:
        """As the guest would."""
        raise NotImplementedError

    def reads(self, machine_id: str, disk: int, byte: int, offset: int, length: int) -> bool:
        """Whether the guest would read that, running."""
        raise NotImplementedError

    def overlay(self, path: str, number: int) -> str:
        """An empty child of a disk that drive() made, or of such a child."""
        raise NotImplementedError

    def chain(self, name: str) -> tuple[str, str]:
        """A base and an empty overlay of it: paths of both."""
        raise NotImplementedError


class QemuMaker(Maker):
    supports = frozenset({"freeze", "commit", "isolate", "conflicts", "shutdown"})
    marker = "READY"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        require_tool("qemu-system-x86_64")

    def new(self) -> Qemu:
        return Qemu(self.folder / "run")

    def close(self) -> None:
        root = self.folder / "run"
        for name in os.listdir(root) if root.exists() else []:
            self.new().kill(name)

    def drive(self, name: str, *, deaf: bool = False) -> Drive:
        path = self.folder / f"{name}.raw"
        path.write_bytes(boot_sector(deaf).ljust(SIZE_BYTES, b"\0"))
        return Drive(str(path), "raw")

    def add(self, machine: Machine) -> None:
        self.new().add(machine)

    def drives(self, machine_id: str) -> list[str]:
        record = json.loads((self.folder / "run" / machine_id / "machine.json").read_text())
        return [drive["path"] for drive in record["machine"]["drives"]]

    def wires(self, machine_id: str) -> int:
        """Of e1000 cards. Source: 82540EM, register STATUS at 8, bit 1: the link is up."""
        self.new().wait_for(machine_id, self.marker, 20)  # by then the BIOS has placed them
        up = 0
        with self.new().qmp(machine_id) as qmp:
            monitor = "human-monitor-command"
            wired = "type=user" in qmp.execute(monitor, command_line="info network")
            for place in re.findall(
                r"PCI device 8086:100e.*?BAR0: 32 bit memory at (0x[0-9a-f]+)",
                qmp.execute(monitor, command_line="info pci"),
                re.DOTALL,
            ):
                told = qmp.execute(monitor, command_line=f"xp /1wx {int(place, 16) + 8:#x}")
                up += wired and bool(int(told.split()[-1], 16) & 2)
        return up

    def write(self, machine_id: str, disk: int, byte: int, offset: int, length: int) -> None:
        told = self.io(machine_id, disk, f"write -P {byte} {offset} {length}")
        assert f"wrote {length}/{length} bytes" in told, told

    def reads(self, machine_id: str, disk: int, byte: int, offset: int, length: int) -> bool:
        told = self.io(machine_id, disk, f"read -P {byte} {offset} {length}")
        return f"read {length}/{length} bytes" in told and "failed" not in told

    def io(self, machine_id: str, disk: int, command: str) -> str:
        """One command of qemu-io on a drive of a machine on IDE."""
        log = self.folder / "run" / machine_id / "qemu.log"  # where its words go
        before = len(log.read_text())
        with self.new().qmp(machine_id) as qmp:
            qmp.execute("human-monitor-command", command_line=f'qemu-io -d drive{disk} "{command}"')
        return log.read_text()[before:]

    def overlay(self, path: str, number: int) -> str:
        folder, name = os.path.split(path)
        place = Io.posix().open_dir(folder)
        with contextlib.closing(place):
            disk = name.removesuffix(".vmdk").partition("-interim")[0]
            with open_disk(path) as parent:
                size_bytes = parent.size_bytes
            made = create_interim(place, disk, name, size_bytes, number=number)
        return os.path.join(folder, made)

    def chain(self, name: str) -> tuple[str, str]:
        base = str(self.folder / f"{name}.vmdk")
        create_disk(base, "monolithicFlat", SIZE_BYTES)
        with open_disk(base, writable=True) as disk:
            disk.pwrite(boot_sector(False), 0)
        return base, self.overlay(base, 1)


def boot_sector(deaf: bool) -> bytes:
    """Prints READY; then, unless it is deaf, waits for ACPI's power button and goes off.

    Ports of the PC that QEMU and SeaBIOS make: PM1 status 0x600, enable 0x602, control 0x604.
    """
    text = b"READY\r\n\0"
    say = bytearray.fromhex("be0000baf8032eac84c07403eeebf7")
    listen = bytes.fromhex("ba0206b80001efba0006edf6c40174f7ba0406b80020ef")
    code = bytes(say) + (b"" if deaf else listen) + bytes.fromhex("f4ebfd")
    place = (0x7C00 + len(code)).to_bytes(2, "little")
    return (code[:1] + place + code[3:] + text).ljust(510, b"\0") + b"\x55\xaa"


def cards(
    maker: Maker, mac: str, *addresses: str, network: str | None = None
) -> Mapping[str, object]:
    """For machine(): one card."""
    wire = maker.wire if network is None else network
    return {"cards": (Card("e1000", mac, wire, addresses),)}


class SimulatedMaker(Maker):
    """tests/worlds.py."""

    supports = frozenset({"freeze", "isolate", "conflicts", "shutdown", "beat"})
    marker = "READY"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.world = World()

    def new(self) -> SimulatedHypervisor:
        return SimulatedHypervisor(self.world)

    def close(self) -> None:
        assert self.world.violations == []

    def drive(self, name: str, *, deaf: bool = False) -> Drive:
        path = self.folder / f"{name}.raw"
        path.write_bytes(bytes(SIZE_BYTES))
        if deaf:
            self.world.deaf.add(str(path))
        return Drive(str(path), "raw")

    def add(self, machine: Machine) -> None:
        self.world.add(machine)

    def silence(self, machine_id: str) -> None:
        self.world.silent.add(machine_id)

    def beat(self, machine_id: str) -> None:
        self.world.silent.discard(machine_id)

    def drives(self, machine_id: str) -> list[str]:
        return [drive.path for drive in self.world.things[machine_id].machine.drives]

    def wires(self, machine_id: str) -> int:
        return len(wired(self.world.things[machine_id]))

    def write(self, machine_id: str, disk: int, byte: int, offset: int, length: int) -> None:
        self.world.write(machine_id, disk, bytes([byte]) * length, offset)

    def reads(self, machine_id: str, disk: int, byte: int, offset: int, length: int) -> bool:
        return self.world.read(machine_id, disk, length, offset) == bytes([byte]) * length

    overlay = QemuMaker.overlay
    chain = QemuMaker.chain
