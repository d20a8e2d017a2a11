"""Host mode and the choice of a way: kernel mounts that leave nothing behind."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guest_volumes import make_volume, served
from rollpoint.access import host as host_room
from rollpoint.access.choose import Ways
from rollpoint.access.host import Host
from rollpoint.access.kernel import DRIVERS
from rollpoint.errors import GuestError, PathError, ToolMissingError, UnsupportedError
from rollpoint.volumes.base import Piece, Volume
from test_access_files import descendants, use, wait_until_gone
from tools import require_tool

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="kernel mounts want root")


def loops() -> set[str]:
    """Files that loop devices have open."""
    return {path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")}


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def need_kernel(driver: str) -> None:
    if not host_room.kernel_has(driver):
        pytest.skip(f"this kernel has no {driver}")


def wait_for_no_loops(before: set[str]) -> None:
    deadline = time.monotonic() + 20
    while {name for name in loops() - before if name.startswith("/run/disk")}:
        assert time.monotonic() < deadline, loops()
        time.sleep(0.01)


@needs_root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_every_call_works_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    for name in ("bwrap", "nbdfuse", "nbdkit"):
        require_tool(name)
    need_kernel(kind)
    image = tmp_path / "v.img"
    volume = make_volume(image, kind)
    seen, before = mounts(), loops()
    with served(image) as socket_path:
        host = Host(socket_path, trust_guest=True)
        fs = host.open(volume, writable=True)
        use(fs, links=True)
        fs.make_link("link", "/etc/passwd")
        with pytest.raises(PathError):
            fs.read("link")
        assert mounts() == seen
        assert not [
            process
            for process in descendants(os.getpid())
            if Path(f"/proc/{process}/comm").read_text() == "nbdfuse\n"
            and "/run/root" in Path(f"/proc/{process}/mounts").read_text()
        ], "nbdfuse must never have to unmount what it serves"
        fs.close()
        fs = host.open(volume, writable=False)
        assert fs.read("caf\u00e9") == b"last"
        host.close()
        wait_until_gone(socket_path)
        wait_for_no_loops(before)
    assert mounts() == seen
    checkers = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"], "btrfs": ["btrfs", "check"]}
    done = subprocess.run([*checkers[kind], image], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_reading_changes_no_byte(tmp_path: Path, kind: str) -> None:
    need_kernel(kind)
    image = tmp_path / "v.img"
    volume = make_volume(image, kind)
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    with served(image) as socket_path:
        fs = Host(socket_path, trust_guest=True).open(volume, writable=False)
        fs.list("")
        fs.sync()
        fs.close()
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before


@needs_root
def test_a_subvolume_of_btrfs_is_a_root_of_its_own(tmp_path: Path) -> None:
    need_kernel("btrfs")
    image = tmp_path / "v.img"
    volume = make_volume(image, "btrfs")
    with served(image) as socket_path:
        host = Host(socket_path, trust_guest=True)
        for subvolume in ("none", "a,device=/dev/sda", "../x"):
            with pytest.raises(GuestError):
                host.open(volume, writable=True, subvolume=subvolume)
        host.close()


def test_the_host_kernel_is_refused_without_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume("disk:1", (Piece("disk", 0, 1 << 20),), 1 << 20, "ext4")
    refused = Host("nowhere").refusal(volume)
    assert "trust_guest" in refused
    with pytest.raises(UnsupportedError, match="trust_guest"):
        Host("nowhere").open(volume, writable=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in Host("nowhere", trust_guest=True).refusal(volume)


def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume("disk:1", (Piece("disk", 0, 1 << 20),), 1 << 20, "xfs")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host_room, "kernel_has", lambda driver: False)
    monkeypatch.setattr(host_room, "missing_tools", lambda names: "")
    assert "linux-image-amd64" in Host("nowhere", trust_guest=True).refusal(volume)
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("rollpoint.access.sandbox._SEARCHED", "/nowhere")
    assert "bubblewrap" in Host("nowhere", trust_guest=True).refusal(volume)
    for kind, package in (("ext4", "fuse2fs"), ("ntfs", "ntfs-3g"), ("vfat", "mtools")):
        other = Volume("disk:1", (Piece("disk", 0, 1 << 20),), 1 << 20, kind)
        with pytest.raises(ToolMissingError) as caught:
            Ways("nowhere", [other], ["disk"], mode="files").open(other, writable=True)
        assert package in str(caught.value)
        assert "libnbd-bin" in str(caught.value)


def test_a_volume_of_which_a_part_is_missing_is_no_matter_of_installing() -> None:
    volume = Volume("group/root", (), 1 << 20, "unknown", problem="physical volume a is missing")
    with pytest.raises(UnsupportedError, match="a is missing") as caught:
        Ways("nowhere", [volume], ["disk"]).open(volume, writable=True)
    assert "install" not in caught.value.hint


def test_the_first_way_that_serves_is_taken(tmp_path: Path) -> None:
    for name in ("bwrap", "nbdfuse", "fuse2fs", "nbdkit"):
        require_tool(name)
    image = tmp_path / "v.img"
    volume = make_volume(image, "ext4")
    luks = Volume("disk:2", (Piece("disk", 0, 512),), 512, "luks", problem="LUKS 2 was seen")
    with served(image) as socket_path:
        ways = Ways(socket_path, [volume], ["disk"])
        assert ways.mode_used == ""
        fs = ways.open(volume, writable=True)
        assert fs.mode == ways.mode_used == "files"
        fs.replace("a", b"b")
        with pytest.raises(UnsupportedError, match="LUKS 2"):
            ways.open(luks, writable=True)
        ways.close()
        ways.close()
        wait_until_gone(socket_path)
        if os.geteuid() == 0 and host_room.kernel_has("ext4"):
            ways = Ways(socket_path, [volume], ["disk"], mode="host", trust_guest=True)
            assert ways.open(volume, writable=False).read("a") == b"b"
            assert ways.mode_used == "host"
            ways.close()
        with pytest.raises(UnsupportedError):
            Ways(socket_path, [volume], ["disk"], mode="host")


LIFE = """
import sys
from rollpoint.access.choose import Ways
from rollpoint.volumes.base import Piece, Volume
socket_path, mode, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
volume = Volume("disk:1", (Piece("disk", 0, size),), size, "ext4")
print("start", flush=True)
while True:
    ways = Ways(socket_path, [volume], ["disk"], mode=mode, trust_guest=True)
    fs = ways.open(volume, writable=True)
    fs.replace("file", b"x" * 100000)
    fs.make_directory("directory")
    fs.sync()
    ways.close()
    print("round", flush=True)
"""


@pytest.mark.parametrize("mode", ["files", pytest.param("host", marks=needs_root)])
@pytest.mark.parametrize("steps", [(0, 3, 5), pytest.param(range(12), marks=pytest.mark.long)])
def test_killed_at_any_moment_nothing_is_left(
    tmp_path: Path, mode: str, steps: tuple[int, ...]
) -> None:
    """kill -9 of the program at moments all over a round: no process, mount, or loop device."""
    for name in ("bwrap", "nbdfuse", "fuse2fs", "nbdkit", "e2fsck"):
        require_tool(name)
    if mode == "host":
        need_kernel("ext4")
    image = tmp_path / "v.img"
    volume = make_volume(image, "ext4")
    seen, before = mounts(), loops()
    with served(image) as socket_path:
        for step in steps:
            life = subprocess.Popen(
                [sys.executable, "-c", LIFE, socket_path, mode, str(volume.size_bytes)],
                stdout=subprocess.PIPE,
            )
            assert life.stdout is not None
            assert life.stdout.readline() == b"start\n"
            if step % 2:
                life.stdout.readline()
            deadline = time.monotonic() + 0.02 * step
            while time.monotonic() < deadline and not (
                step in (3, 6) and len(descendants(life.pid)) > step
            ):
                time.sleep(0.002)
            life.kill()
            life.wait()
            life.stdout.close()
            wait_until_gone(socket_path)
            wait_for_no_loops(before)
            assert mounts() == seen
            done = subprocess.run(
                [require_tool("e2fsck"), "-fy", image], capture_output=True, text=True
            )
            assert done.returncode in (0, 1), done.stdout


@needs_root
def test_what_one_driver_refuses_is_tried_by_the_next_way(tmp_path: Path) -> None:
    """A volume that is said to be ext4 and is none: each way's words are in the error."""
    for name in ("bwrap", "nbdfuse", "fuse2fs", "nbdkit", "e2fsck"):
        require_tool(name)
    need_kernel("ext4")
    image = tmp_path / "v.img"
    volume = make_volume(image, "ext4")
    image.write_bytes(bytes(volume.size_bytes))
    with served(image) as socket_path:
        ways = Ways(socket_path, [volume], ["disk"], trust_guest=True)
        ways._allowed = ("files", "host")  # without an appliance's launch
        with pytest.raises(GuestError, match=r"files: .*e2fsck.*; host: .*kernel"):
            ways.open(volume, writable=True)
        assert ways.mode_used == ""
        ways.close()
        wait_until_gone(socket_path)


def test_every_kind_has_fixed_options() -> None:
    for driver, *options in DRIVERS.values():
        assert driver
        assert not any("suid" in option or "dev" in option for option in options)
