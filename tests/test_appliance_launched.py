"""The appliance itself: real volumes, opened by its kernel. One launch serves most of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from appliance_disks import BIG, LABEL, ODD, make_disks
from rollpoint.access import appliance_process
from rollpoint.access.appliance import Appliance
from rollpoint.access.warm import Warm, connect
from rollpoint.disk import open_disk
from rollpoint.errors import GuestError, NotFoundError, PathError, UnsupportedError
from rollpoint.mount import Mount
from rollpoint.volumes.base import Volume
from tools import require_tool
from volume_disks import call

pytestmark = pytest.mark.appliance

OPENED = {
    "plain": "ext4",
    "parted:1": "xfs",
    "parted:2": "btrfs",
    "parted:5": "ntfs",
    "parted:6": "vfat",
    "vg-0.x/root": "xfs",
    "vg1/fast": "ext4",  # striped: nobody but the appliance strings it together
}
OWNERLESS = ("ntfs", "vfat")


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    lacking = appliance_process.missing()
    if lacking is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(lacking))
    return make_disks(tmp_path_factory.mktemp("disks"))


@pytest.fixture(scope="module")
def mount(disks: dict[str, Path]) -> Iterator[Mount]:
    with ExitStack() as stack:
        opened = {}
        for name, path in disks.items():
            opened[name] = open_disk(str(path), writable=True, format="raw")
            stack.callback(opened[name].close)
        yield stack.enter_context(Mount(opened))  # which proves that no client is left


@pytest.fixture(scope="module")
def appliance(mount: Mount) -> Iterator[Appliance]:
    made = Appliance(mount.socket_path, mount.volumes, mount.disks)
    yield made
    made.close()
    made.close()


def named(mount: Mount, name: str) -> Volume:
    return next(volume for volume in mount.volumes if volume.name == name)


def until(told: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not told():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_what_it_can_open_and_what_not(mount: Mount, appliance: Appliance) -> None:
    refused = {volume.name: appliance.refusal(volume) for volume in mount.volumes}
    assert {name for name, said in refused.items() if not said} == set(OPENED)
    assert "lvm" in refused["group"]
    with pytest.raises(UnsupportedError, match="lvm"):
        appliance.open(named(mount, "group"), writable=True)
    with pytest.raises(UnsupportedError, match="subvolume"):
        appliance.open(named(mount, "plain"), writable=True, subvolume="x")
    assert appliance.launch_seconds is None  # nothing was launched for that


def test_files_are_listed_and_read_and_no_link_is_followed(
    mount: Mount, appliance: Appliance
) -> None:
    opened = appliance.open(named(mount, "plain"), writable=True)
    etc = opened.list("etc")
    assert set(etc) == {"fstab", "shadow", "absolute", "up", "fifo"}
    assert etc["absolute"].kind == "link"
    assert etc["absolute"].target == "/etc/fstab"
    assert etc["fifo"].kind == "other"
    assert (etc["shadow"].mode, etc["shadow"].kind) == (0o640, "file")
    assert etc["shadow"] == opened.lstat("etc/shadow")
    assert ODD in opened.list("")
    assert opened.read(ODD) == b"odd"
    assert opened.read("big") == BIG
    assert opened.read("big", 1_000_003, 77) == BIG[1_000_003:1_000_080]
    assert opened.read("big", len(BIG) + 5) == b""
    assert opened.lstat("etc/none") is None
    assert opened.lstat("none/none") is None
    for path in ("etc/absolute", "etc/up", "through/fstab", "etc/fifo", "etc", "", "../x", "/x"):
        with pytest.raises(PathError):
            opened.read(path)
    with pytest.raises(PathError):
        opened.replace("etc/absolute", b"")
    with pytest.raises(PathError):
        opened.write("etc/../etc/fstab", b"", 0)
    with pytest.raises(PathError):
        opened.list("through")
    with pytest.raises(NotFoundError):
        opened.read("etc/none")
    opened.close()
    opened.close()
    with pytest.raises(GuestError):
        opened.read("big")


@pytest.mark.parametrize("name", OPENED)
def test_a_file_system_is_changed_and_shows_it(
    mount: Mount, appliance: Appliance, name: str
) -> None:
    found = named(mount, name)
    opened = appliance.open(found, writable=True)
    opened.make_directory("made", 0o750)
    opened.make_directory("made", 0o750)
    opened.replace("made/big", BIG)
    opened.replace("made/small", b"first\n", 0o755)
    opened.replace("made/small", b"second\n", 0o600)
    opened.write("made/small", b"S", 0)
    opened.write("made/small", b"more\n", 7)
    opened.sync()
    opened.close()
    opened = appliance.open(found, writable=True)
    assert opened.read("made/big") == BIG
    assert opened.read("made/small") == b"Second\nmore\n"
    made = opened.lstat("made/small")
    assert made is not None
    if OPENED[name] not in OWNERLESS:
        assert made.mode == 0o755  # of the file that was there
        opened.make_link("made/link", "somewhere")
        opened.make_link("made/link", "/elsewhere")
        assert opened.list("made")["link"].target == "/elsewhere"
        opened.remove("made/link")
    assert set(opened.list("made")) == {"big", "small"}  # nothing is left of what was aside
    with pytest.raises(GuestError):
        opened.remove("made")  # not empty
    space = opened.space()
    assert 0 <= space.bytes_free < space.bytes_total <= found.size_bytes
    opened.remove("made/big")
    opened.remove("made/small")
    opened.remove("made")
    with pytest.raises(NotFoundError):
        opened.remove("made")
    opened.close()


def test_a_new_file_has_the_label_of_its_directory(
    mount: Mount, appliance: Appliance, disks: dict[str, Path]
) -> None:
    opened = appliance.open(named(mount, "plain"), writable=True)
    opened.replace("etc/new", b"new")
    opened.replace("etc/shadow", b"changed")
    opened.close()
    debugfs = [require_tool("debugfs"), "-R", "ea_get etc/new security.selinux", disks["plain"]]
    told = subprocess.run(debugfs, capture_output=True, check=True).stdout
    if os.geteuid() == 0:
        assert LABEL in told


def test_a_full_file_system_says_so_and_keeps_the_file(mount: Mount, appliance: Appliance) -> None:
    opened = appliance.open(named(mount, "vg1/fast"), writable=True)
    with pytest.raises(GuestError, match="No space left"):
        opened.replace("etc/fstab", bytes(16 << 20))
    assert opened.read("etc/fstab") == b"LABEL=x / auto defaults 0 1\n"
    assert not [name for name in opened.list("etc") if name.startswith(".")]
    opened.close()


@contextmanager
def killed(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Killed when the block ends, at the latest."""
    with process:
        try:
            yield process
        finally:
            process.kill()


ENGINE = """
import sys, time
from rollpoint.access.appliance import Appliance
from rollpoint.disk import open_disk
from rollpoint.mount import Mount
disks = {}
for text in sys.argv[2:]:
    name, _, path = text.partition("=")
    disks[name] = open_disk(path, writable=True, format="raw")
mount = Mount(disks)
appliance = Appliance(mount.socket_path, mount.volumes, mount.disks, warm=sys.argv[1])
volume = next(v for v in mount.volumes if v.name == "parted:1")
opened = appliance.open(volume, writable=True)
opened.replace("durable", b"written before the kill")
print(appliance.warm, appliance.launch_seconds, appliance.waited_seconds, flush=True)
time.sleep(600)
"""


def test_a_warm_appliance_serves_one_and_a_kill_leaves_nothing_but_a_journal(
    disks: dict[str, Path], tmp_path: Path
) -> None:
    """Then a read-only open shows what the journal holds, and changes no byte of the disk."""
    disk = tmp_path / "disk"
    call("cp", "--sparse=always", disks["parted"], disk)
    path = str(tmp_path / "warm.sock")
    others = appliances()  # another test's may be there
    warm = Warm(path, [disk.stat().st_size])
    assert warm.state() == "launching"
    assert until(lambda: warm.state(0.5) != "launching", 300.0)
    assert (warm.state(), warm.problem) == ("ready", "")
    command = [sys.executable, "-c", ENGINE, path, f"parted={disk}"]
    with killed(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as engine:
        assert engine.stdout is not None
        was_warm, launched, waited = engine.stdout.readline().split()
        assert was_warm == "True"
        assert float(launched) == warm.launch_seconds
        assert float(waited) < float(launched)
        assert until(lambda: warm.state() == "gone")
        assert warm.problem == ""
        assert connect(path) is None
        inside = appliances() - others
        assert inside
        engine.kill()
    assert until(lambda: not inside & appliances()), "the appliance outlived the engine"
    warm.close()
    before = hashlib.sha256(disk.read_bytes()).hexdigest()
    opened = open_disk(str(disk), writable=False, format="raw")
    with Mount({"parted": opened}, read_only=True) as mount:
        appliance = Appliance(mount.socket_path, mount.volumes, mount.disks)
        root = appliance.open(named(mount, "parted:1"), writable=False)
        assert root.read("durable") == b"written before the kill"
        with pytest.raises(GuestError, match="read-only"):
            root.remove("durable")
        appliance.close()
    opened.close()
    assert hashlib.sha256(disk.read_bytes()).hexdigest() == before


KEEPER = """
import sys
from rollpoint.access.warm import Warm
warm = Warm(sys.argv[1], [1 << 20])
print("kept", flush=True)
sys.stdin.read()
"""


def test_a_killed_keeper_leaves_no_appliance(tmp_path: Path) -> None:
    """Killed while it is launched: the process, its sandbox and QEMU are gone."""
    before = appliances()
    path = tmp_path / "warm.sock"
    command = [sys.executable, "-c", KEEPER, str(path)]
    pipe = subprocess.PIPE
    with killed(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "kept\n"
        assert until(lambda: bool(appliances() - before))
        inside = appliances() - before
        keeper.kill()
    assert until(lambda: not inside & appliances()), "the appliance outlived its keeper"
    assert connect(str(path)) is None


def appliances() -> set[int]:
    """Processes of this user that hold an appliance: QEMU, or the worker in its sandbox."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"appliance_worker" in command or b"/appliance/root" in command:
                found.add(int(entry.name))
    return found
