"""The appliance itself: real volumes, opened by its kernel. One launch serves most of it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rollpoint.access import appliance_process
from rollpoint.access.appliance import Appliance
from rollpoint.errors import GuestError, NotFoundError, PathError
from rollpoint.volumes.base import Partition, Piece, Volume
from tools import listens, require_tool

pytestmark = pytest.mark.appliance
MIB = 1 << 20
BIG = bytes(range(256)) * 20_000  # more than one message of libguestfs holds


def make_tree(folder: Path) -> None:
    """What every file system of these tests holds."""
    etc = folder / "etc"
    etc.mkdir(parents=True)
    (etc / "fstab").write_bytes(b"LABEL=x / auto defaults 0 1\n")
    (etc / "shadow").write_bytes(b"root:*:\n")
    (etc / "shadow").chmod(0o640)
    (etc / "absolute").symlink_to("/etc/fstab")
    (etc / "up").symlink_to("../../../etc/fstab")
    (folder / "through").symlink_to("etc")
    os.mkfifo(etc / "fifo")
    (folder / os.fsdecode(b"odd \xff\nname")).write_bytes(b"odd")
    (folder / "big").write_bytes(BIG)


def volume(disk: str, size: int, kind: str, number: int = 0, offset: int = 0) -> Volume:
    partition = Partition(disk, "mbr", number, "83") if number else None
    name = f"{disk}:{number}" if number else disk
    return Volume(name, (Piece(disk, offset, size),), size, kind, partition=partition)


VOLUMES = [
    volume("one", 64 * MIB, "ext4"),
    volume("two", 320 * MIB, "xfs", 1, MIB),
    volume("two", 40 * MIB, "vfat", 5, 323 * MIB),
]


def make_disks(folder: Path, disks: Path) -> None:
    """A whole disk of ext4; a disk with xfs in a partition, and vfat in a logical one."""
    tree = folder / "tree"
    make_tree(tree)
    with open(disks / "one", "wb") as file:
        file.truncate(64 * MIB)
    run("mkfs.ext4", "-q", "-d", tree, disks / "one")
    for name, size in (("xfs", 320), ("vfat", 40)):
        with open(folder / name, "wb") as file:
            file.truncate(size * MIB)
    run("mkfs.xfs", "-q", folder / "xfs")
    run("mkfs.vfat", folder / "vfat")
    with open(disks / "two", "wb") as file:
        file.truncate(512 * MIB)
        file.flush()
        table = "label: dos\n1M,320M,83\n322M,100M,5\n"
        table += f"{disks / 'two'}5 : start=323M, size=40M, type=c\n"
        run("sfdisk", "-q", disks / "two", input=table.encode())
    for name, seek in (("xfs", 1), ("vfat", 323)):
        run(
            "dd",
            f"if={folder / name}",
            f"of={disks / 'two'}",
            "bs=1M",
            f"seek={seek}",
            "conv=notrunc,sparse",
            "status=none",
        )


def run(program: str, *arguments: object, input: bytes | None = None) -> None:
    command = [require_tool(program), *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, input=input)


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    lacking = appliance_process.missing()
    if lacking is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(lacking))
    folder = tmp_path_factory.mktemp("appliance")
    (folder / "disks").mkdir()
    make_disks(folder, folder / "disks")
    path = folder / "s"
    command = [require_tool("nbdkit"), "-f", "-U", path, "file", f"dir={folder / 'disks'}"]
    with subprocess.Popen(command) as server:
        deadline = time.monotonic() + 10
        while not listens(path) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield str(path)
        server.terminate()


@pytest.fixture(scope="module")
def appliance(socket_path: str) -> Iterator[Appliance]:
    made = Appliance(socket_path, VOLUMES, ["one", "two"])
    assert [made.refusal(found) for found in VOLUMES] == ["", "", ""]
    yield made
    made.close()
    made.close()


def test_files_are_listed_and_read_and_no_link_is_followed(appliance: Appliance) -> None:
    opened = appliance.open(VOLUMES[0], writable=True)
    assert appliance.launch_seconds is not None
    etc = opened.list("etc")
    assert set(etc) == {"fstab", "shadow", "absolute", "up", "fifo"}
    assert etc["absolute"].kind == "link"
    assert etc["absolute"].target == "/etc/fstab"
    assert etc["fifo"].kind == "other"
    assert (etc["shadow"].mode, etc["shadow"].kind) == (0o640, "file")
    assert etc["shadow"] == opened.lstat("etc/shadow")
    odd = os.fsdecode(b"odd \xff\nname")
    assert odd in opened.list("")
    assert opened.read(odd) == b"odd"
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


@pytest.mark.parametrize("found", VOLUMES, ids=lambda v: v.kind)
def test_a_file_system_is_changed_and_shows_it(appliance: Appliance, found: Volume) -> None:
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
    if found.kind != "vfat":
        assert made.mode == 0o755  # of the file that was there
        opened.make_link("made/link", "somewhere")
        opened.make_link("made/link", "/elsewhere")
        assert opened.list("made")["link"].target == "/elsewhere"
        opened.remove("made/link")
    assert set(opened.list("made")) == {"big", "small"}  # nothing is left of what was aside
    with pytest.raises(GuestError):
        opened.remove("made")  # not empty
    space = opened.space()
    assert len(BIG) < space.bytes_free < space.bytes_total <= found.size_bytes
    assert (space.inodes_free is None) == (found.kind == "vfat")
    opened.remove("made/big")
    opened.remove("made/small")
    opened.remove("made")
    with pytest.raises(NotFoundError):
        opened.remove("made")
    opened.close()
