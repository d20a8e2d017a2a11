"""Files mode: a volume's files through drivers in a cage."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from guest_volumes import make_volume, served
from rollpoint.access.base import FileSystem
from rollpoint.access.files import Files
from rollpoint.access.tree import GuestTree
from rollpoint.errors import Error, GuestError, NotFoundError, PathError, UnsupportedError
from rollpoint.volumes.base import Piece, Volume
from tools import require_tool


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def caged(socket_path: str) -> list[int]:
    """Processes that were started with this socket's path, and those below them."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if socket_path.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def wait_until_gone(socket_path: str) -> None:
    deadline = time.monotonic() + 20
    while [p for p in caged(socket_path) if "nbdkit" not in _name(p)]:
        assert time.monotonic() < deadline, caged(socket_path)
        time.sleep(0.01)


def _name(process: int) -> str:
    try:
        return (Path("/proc") / str(process) / "comm").read_text()
    except OSError:
        return "nbdkit"


@pytest.fixture(autouse=True)
def _tools() -> None:
    for name in ("bwrap", "nbdfuse", "e2fsck", "fuse2fs", "ntfs-3g", "mcopy", "nbdkit"):
        require_tool(name)


def use(fs: FileSystem, links: bool) -> None:
    """Every call of the interface."""
    assert fs.lstat("none") is None
    assert fs.lstat("none/none") is None
    root = fs.lstat("")
    assert root is not None
    assert root.kind == "directory"
    fs.make_directory("etc")
    fs.make_directory("etc")
    fs.replace("etc/Hosts file.conf", b"one\n")
    fs.replace("etc/big", bytes(range(256)) * 4096)
    fs.write("etc/big", b"here", 1 << 19)
    fs.write("etc/Hosts file.conf", b"two\n", 4)
    assert fs.read("etc/Hosts file.conf") == b"one\ntwo\n"
    assert fs.read("etc/big", (1 << 19) - 1, 6) == b"\xffhere\x04"
    found = fs.list("etc")
    assert {name: facts.size_bytes for name, facts in found.items()} == {
        "Hosts file.conf": 8,
        "big": 1 << 20,
    }
    assert fs.lstat("etc/big") == found["big"]
    fs.replace("etc/Hosts file.conf", b"")
    assert fs.read("etc/Hosts file.conf") == b""
    for call in (fs.read, fs.remove, fs.list):
        with pytest.raises(NotFoundError):
            call("etc/none")
    for path in ("etc", "", "../etc", "/etc", "etc//big"):
        with pytest.raises(PathError):
            fs.replace(path, b"")
    with pytest.raises(PathError):
        fs.remove("etc")
    with pytest.raises(PathError):
        fs.list("etc/big")
    if links:
        fs.make_link("etc/link", "big")
        link = fs.lstat("etc/link")
        assert link is not None
        assert (link.kind, link.target) == ("link", "big")
        with pytest.raises(PathError):
            fs.read("etc/link")
        fs.remove("etc/link")
    before = fs.space()
    fs.remove("etc/big")
    assert fs.space().bytes_free >= before.bytes_free
    assert before.bytes_total > before.bytes_free > 1 << 20
    fs.remove("etc/Hosts file.conf")
    fs.remove("etc")
    assert fs.lstat("etc") is None
    fs.replace("caf\u00e9", b"last")
    fs.sync()


@pytest.mark.parametrize("kind", ["ext2", "ext4", "ntfs", "vfat"])
def test_every_call_works_and_the_file_system_stays_whole(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "v.img"
    volume = make_volume(image, kind)
    with served(image) as socket_path:
        files = Files(socket_path)
        fs = files.open(volume, writable=True)
        use(fs, links=kind != "vfat")
        fs.close()
        fs.close()
        fs = files.open(volume, writable=False)
        assert fs.read("caf\u00e9") == b"last"
        with pytest.raises(GuestError):
            fs.replace("more", b"")
        files.close()
        wait_until_gone(socket_path)
    checkers = {
        "ext2": ["e2fsck", "-fn"],
        "ext4": ["e2fsck", "-fn"],
        "ntfs": ["ntfsfix", "-n"],
        "vfat": ["fsck.fat", "-n"],
    }
    done = subprocess.run([*checkers[kind], image], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["ext4", "ntfs", "vfat"])
def test_reading_changes_no_byte(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "v.img"
    volume = make_volume(image, kind)
    if kind == "ext4":
        make_dirty(image)
    before = digest(image)
    with served(image) as socket_path:
        fs = Files(socket_path).open(volume, writable=False)
        fs.list("")
        fs.space()
        fs.sync()
        fs.close()
    assert digest(image) == before


def make_dirty(image: Path) -> None:
    """A committed transaction in the journal that was not written out: as after a power cut."""
    work = image.parent
    (work / "old").write_bytes(b"old".ljust(1024, b"\n"))
    debugfs = require_tool("debugfs")
    subprocess.run([debugfs, "-w", "-R", f"write {work}/old file", image], check=True)
    shown = subprocess.run([debugfs, "-R", "blocks /file", image], capture_output=True, text=True)
    (work / "new").write_bytes(b"new".ljust(1024, b"\n"))
    (work / "script").write_text(f"jo\njw -b {shown.stdout.split()[0]} {work}/new\njc\n")
    subprocess.run([debugfs, "-w", "-f", work / "script", image], check=True)
    shown = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True)
    assert "needs_recovery" in shown.stdout


def test_a_dirty_journal_is_replayed_first(tmp_path: Path) -> None:
    image = tmp_path / "v.img"
    volume = make_volume(image, "ext4", "-b", "1024")
    make_dirty(image)
    with served(image) as socket_path:
        files = Files(socket_path)
        fs = files.open(volume, writable=False)
        assert fs.read("file")[:3] == b"old"
        fs.close()
        fs = files.open(volume, writable=True)
        assert fs.read("file")[:3] == b"new"
        fs.replace("file", b"newer")
        files.close()
    subprocess.run([require_tool("e2fsck"), "-fn", image], check=True)


def test_what_it_cannot_open_it_says(tmp_path: Path) -> None:
    image = tmp_path / "v.img"
    volume = make_volume(image, "ext4")
    files = Files("nowhere")
    strung = Volume("vg/thin", (), 1 << 20, "ext4")
    broken = Volume("disk:2", (Piece("disk", 0, 512),), 512, "luks", problem="LUKS 2 was seen")
    other = Volume("disk:3", (Piece("disk", 0, 512),), 512, "xfs")
    assert "appliance" in files.refusal(strung)
    assert files.refusal(broken) == "LUKS 2 was seen"
    assert "xfs" in files.refusal(other)
    assert files.refusal(volume) == ""
    for refused in (strung, broken, other):
        with pytest.raises(UnsupportedError):
            files.open(refused, writable=False)
    image.write_bytes(bytes(1 << 20))
    with served(image) as socket_path:
        with pytest.raises(GuestError, match=r"fuse2fs|e2fsck"):
            Files(socket_path).open(volume, writable=True)
        wait_until_gone(socket_path)


def test_a_killed_driver_is_an_error_and_nothing_is_left(tmp_path: Path) -> None:
    image = tmp_path / "v.img"
    volume = make_volume(image, "ext4")
    with served(image) as socket_path:
        files = Files(socket_path)
        for name in ("fuse2fs", "nbdfuse", "bwrap"):
            fs = files.open(volume, writable=True)
            victims = [p for p in descendants(fs.process_id) if _name(p) == f"{name}\n"]
            assert victims, name
            os.kill(victims[-1], signal.SIGKILL)
            if name != "bwrap":
                with pytest.raises(GuestError):
                    fs.replace("file", b"x" * 100000)
                with pytest.raises(GuestError):
                    fs.close()
            fs.close()
            wait_until_gone(socket_path)
        files.close()


def test_the_cage_has_nothing_of_this_host(tmp_path: Path) -> None:
    """Seen from outside: the driver's namespaces, its users, and its mounts."""
    image = tmp_path / "v.img"
    volume = make_volume(image, "ext4")
    with served(image) as socket_path:
        files = Files(socket_path)
        tree = GuestTree({"/": files.open(volume, writable=True)})
        drivers = [p for p in descendants(tree.mounts["/"].process_id) if _name(p) == "fuse2fs\n"]
        assert len(drivers) == 1
        status = (Path("/proc") / str(drivers[0]) / "status").read_text()
        mounts = (Path("/proc") / str(drivers[0]) / "mountinfo").read_text()
        for kind in ("net", "pid", "mnt", "user", "ipc", "uts"):
            ours = os.readlink(f"/proc/self/ns/{kind}")
            assert os.readlink(f"/proc/{drivers[0]}/ns/{kind}") != ours, kind
        if os.geteuid() == 0:
            uids = [int(text) for text in status.split("Uid:")[1].split()[:4]]
            assert min(uids) >= 1 << 31
        assert "NoNewPrivs:\t1" in status
        kinds = {"tmpfs", "devtmpfs", "devpts", "proc", "fuse", "fuse.ext4"}
        for line in mounts.splitlines():
            fields = line.split()
            kind = fields[fields.index("-") + 1]
            assert kind in kinds or fields[5].startswith("ro,"), line
        tree.close()
        files.close()


def descendants(process: int) -> list[int]:
    found = [process]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += [int(text) for text in (task / "children").read_text().split()]
    return found


def test_damage_gives_errors_of_ours_only(tmp_path: Path) -> None:
    """Seed 5: bytes of FAT's boot sector, tables and directories are changed at random."""
    import random

    seeded = random.Random(5)
    image = tmp_path / "v.img"
    volume = make_volume(image, "vfat")
    with served(image) as socket_path:
        fs = Files(socket_path).open(volume, writable=True)
        fs.make_directory("EFI")
        fs.replace("EFI/grub.cfg and more", b"x" * 5000)
        fs.close()
    good = image.read_bytes()[: 1 << 20]
    for _ in range(6):
        with open(image, "r+b") as file:
            file.write(good)
            for _ in range(40):
                file.seek(seeded.choice([seeded.randrange(64), seeded.randrange(1 << 17)]))
                file.write(seeded.randbytes(1))
        with served(image) as socket_path:
            try:
                fs = Files(socket_path).open(volume, writable=False)
            except Error:
                continue
            for path in ("", "EFI", "EFI/grub.cfg and more"):
                for call in (fs.list, fs.read):
                    with contextlib.suppress(Error):
                        call(path)
            fs.close()
