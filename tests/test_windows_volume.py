"""A Windows guest on a real NTFS volume, through the user-space driver in its cage."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest
from guest_volumes import make_volume, served
from guests.protected import below, protect
from rollpoint import operation
from rollpoint.access.base import FileSystem
from rollpoint.access.files import Files
from rollpoint.errors import GuestError
from rollpoint.guest.base import Wanted
from rollpoint.guest.convert import convert
from rollpoint.guest.inspect import inspect
from rollpoint.replica import Replica
from rollpoint.volumes.base import Volume
from tools import require_tool
from windows_guests import build, opened, supplied

CLUSTER = 4096


class Disk:
    """An NTFS volume with a Windows on it."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "v.img"
        self.volume = make_volume(self.image, "ntfs")
        self.host = folder / "tree"
        self.host.mkdir()
        build(self.host)

    def fill(self, socket_path: str, drivers: str = "System32/drivers") -> None:
        files = Files(socket_path)
        fs = files.open(self.volume, writable=True)
        for path in sorted(self.host.rglob("*")):
            name = str(path.relative_to(self.host)).replace("System32/drivers", drivers)
            if path.is_dir():
                fs.make_directory(name)
            else:
                fs.replace(name, path.read_bytes())
        files.close()

    def converted(self, socket_path: str, wanted: Wanted) -> list[str]:
        files = Files(socket_path)

        def opener(volume: Volume, subvolume: str = "") -> FileSystem:
            return files.open(volume, writable=True)

        try:
            found = inspect([self.volume], opener)
            edits = convert(found, wanted)
            found.tree.close()
        finally:
            files.close()
        return [change.file for change in edits.changes]

    def log_at(self) -> int:
        """Where the log is: the longest run of the bytes that an empty one has."""
        data = self.image.read_bytes()
        best = start = 0
        longest = 0
        for at in range(0, len(data) + 1, CLUSTER):
            if data[at : at + CLUSTER] != b"\xff" * CLUSTER:
                if at - start > longest:
                    best, longest = start, at - start
                start = at + CLUSTER
        assert longest >= 1 << 20
        return best


@pytest.fixture(autouse=True)
def _tools() -> None:
    for name in ("bwrap", "nbdfuse", "ntfs-3g", "nbdkit", "mkntfs"):
        require_tool(name)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_a_windows_on_ntfs_is_converted_once(disk: Disk, tmp_path: Path) -> None:
    drivers = supplied(tmp_path / "given", "pvscsi", "VEN_15AD&DEV_07C0")
    wanted = Wanted(controller="pvscsi", nic="e1000e", drivers=str(drivers))
    with served(disk.image) as socket_path:
        disk.fill(socket_path, drivers="System32/Drivers")
        changed = disk.converted(socket_path, wanted)
        # In the directory as it is spelled: NTFS would take another one beside it.
        assert "/Windows/System32/Drivers/pvscsi.sys" in changed
        assert disk.converted(socket_path, wanted) == []
        files = Files(socket_path)
        fs = files.open(disk.volume, writable=False)
        assert "drivers" not in fs.list("Windows/System32")
        saved = disk.host / "Windows/System32/config/SYSTEM"
        saved.write_bytes(fs.read("Windows/System32/config/SYSTEM"))
        files.close()
    with opened(disk.host) as system:
        assert system.number(("ControlSet001", "Services", "pvscsi"), "Start") == 0
    subprocess.run(["ntfsfix", "-n", disk.image], check=True, stdout=subprocess.DEVNULL)
    # Owned by the system, as the volume's root is, from which it came down; not ntfs-3g's own.
    rights = subprocess.run(
        ["ntfssecaudit", disk.image, "Windows/System32/Drivers/pvscsi.sys"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "owner S-1-5-18" in rights.stdout


def on_a_disk(disk: Disk, target: Path) -> None:
    """The volume as the active partition of a disk."""
    sectors = disk.volume.size_bytes // 512
    entry = struct.pack("<B3sB3sII", 0x80, bytes(3), 7, bytes(3), 2048, sectors)
    head = (bytes(440) + b"WIN!" + bytes(2) + entry).ljust(510, b"\0") + b"\x55\xaa"
    target.write_bytes(head.ljust(1 << 20, b"\0") + disk.image.read_bytes())


def test_a_failover_converts_it_in_the_overlay_alone(disk: Disk, tmp_path: Path) -> None:
    with served(disk.image) as socket_path:
        disk.fill(socket_path)
    on_a_disk(disk, tmp_path / "disk.raw")
    path = tmp_path / "r"
    protect(path, tmp_path / "disk.raw")
    (path / "replica.toml").write_text('[machine]\ncontroller = "ahci"\nnic = "e1000e"\n')
    before = below(path)
    with Replica.open(path) as replica:
        outcome = operation.failover(replica, power_on=False)
        note = next(step.note for step in outcome.steps if step.name == "convert")
        operation.undo(replica)
    assert note.startswith("Windows Server 2022 Standard: ")
    assert "files mode" in note
    said = json.loads((path / "conversion.json").read_text())
    assert (said["outcome"], said["guest"]["root"]) == ("changed", "system:1")
    assert {change["file"] for change in said["changes"]} == {"/Windows/System32/config/SYSTEM"}
    changed = {name for name, digest in below(path).items() if digest != before[name]}
    assert changed <= {"system-journal-log.vmdk"}, "the epoch alone, of the hold and its release"


def test_a_hibernated_windows_is_refused_and_stays_as_it_is(disk: Disk) -> None:
    (disk.host / "hiberfil.sys").write_bytes(b"hibr" + bytes(8188))
    with served(disk.image) as socket_path:
        disk.fill(socket_path)
        before = disk.image.read_bytes()
        with pytest.raises(GuestError, match="hibernat"):
            disk.converted(socket_path, Wanted(controller="ahci", nic="e1000e"))
    assert disk.image.read_bytes() == before


def test_a_log_that_cannot_be_replayed_has_windows_check_the_volume(disk: Disk) -> None:
    with served(disk.image) as socket_path:
        disk.fill(socket_path)
        with open(disk.image, "r+b") as file:
            file.seek(disk.log_at())
            file.write(b"RSTR" + bytes(range(256)) * 15)
        assert disk.converted(socket_path, Wanted(controller="ahci", nic="e1000e"))
    done = subprocess.run(
        ["ntfsinfo", "-m", disk.image], capture_output=True, text=True, check=False
    )
    assert "scheduled for check" in done.stdout + done.stderr
