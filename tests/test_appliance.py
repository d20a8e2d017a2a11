"""The appliance without its launch: messages, stand-ins for disks, paths, and what is missing."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rollpoint.access import appliance_process, kvm
from rollpoint.access.appliance import Appliance
from rollpoint.access.appliance_files import FileSystem, RefusedError
from rollpoint.access.appliance_guestfs import Entry, GuestfsError
from rollpoint.access.appliance_messages import HEAD, HungUpError, Message, receive, send
from rollpoint.access.appliance_nbd import FLAGS, StandIns, enter, leave
from rollpoint.access.warm import connect, place
from rollpoint.disk import open_disk
from rollpoint.errors import GuestError, ToolMissingError
from rollpoint.mount import Mount
from rollpoint.volumes.base import Piece, Volume
from tools import require_tool
from volume_disks import MIB, empty_file

# --- messages ---


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


def test_a_message_arrives_as_it_was_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    odd = os.fsdecode(b"name \xff \n")
    data = bytes(range(256)) * 8000
    reading, writing = os.pipe()
    message = Message({"path": odd, "offset": 1 << 62}, data, (writing,))
    sender = threading.Thread(target=send, args=(ours, message))
    sender.start()
    came = receive(theirs, 10.0)
    sender.join()
    assert (came.fields, came.data, len(came.descriptors)) == (message.fields, data, 1)
    os.close(writing)
    os.write(came.descriptors[0], b"x")
    assert os.read(reading, 1) == b"x"
    os.close(came.descriptors[0])
    os.close(reading)


@pytest.mark.parametrize(
    "data",
    [
        HEAD.pack(1 << 31, 0),
        HEAD.pack(2, 1 << 40) + b"{}",
        HEAD.pack(2, 0) + b"[]",
        HEAD.pack(2, 0) + b"{x",
        HEAD.pack(100_000, 0) + b"[" * 100_000,
        HEAD.pack(9, 0) + b"{}",
        b"\0",
        b"",
    ],
)
def test_what_is_no_message_ends_the_conversation(
    pair: tuple[socket.socket, socket.socket], data: bytes
) -> None:
    ours, theirs = pair
    sender = threading.Thread(target=lambda: (ours.sendall(data), ours.shutdown(socket.SHUT_WR)))
    sender.start()
    with pytest.raises(HungUpError):
        receive(theirs, 10.0)
    theirs.close()
    sender.join()


def test_a_message_that_does_not_come_is_not_waited_for(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    ours.sendall(HEAD.pack(100, 0) + b"{")
    with pytest.raises(TimeoutError):
        receive(theirs, 0.01)


# --- stand-ins for disks ---


def ask(on: socket.socket, kind: int, offset: int, length: int, data: bytes = b"") -> bytes | int:
    """One NBD request: the bytes that were read, or its error."""
    on.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 7, offset, length) + data)
    magic, error, cookie = struct.unpack(">IIQ", on.recv(16, socket.MSG_WAITALL))
    assert (magic, cookie) == (0x67446698, 7)
    if error or kind != 0:
        return int(error)
    return on.recv(length, socket.MSG_WAITALL)


def test_a_stand_in_reads_as_zeros_until_the_disk_comes(tmp_path: Path) -> None:
    """Requests from then on reach the disk, on the connection that was there before."""
    path = empty_file(tmp_path / "disk", 4 * MIB).path
    path.write_bytes(b"guest" * (4 * MIB // 5) + b"!!!!")
    stand_ins = StandIns(str(tmp_path / "s"), [4 * MIB, 8 * MIB])
    first, second = (enter(str(tmp_path / "s"), name) for name in "01")
    assert [(e.size_bytes, e.flags) for e in (first, second)] == [
        (4 * MIB, FLAGS),
        (8 * MIB, FLAGS),
    ]
    on = first.connection
    assert ask(on, 0, 5, 10) == bytes(10)
    assert ask(on, 1, 0, 4, b"nono") == errno.EPERM
    assert ask(on, 3, 0, 0) == 0
    disk = open_disk(str(path), writable=True, format="raw")
    with Mount({"disk": disk}) as mount:
        real = enter(mount.socket_path, "disk")
        assert real.flags & FLAGS == FLAGS, "the mount's exports have what QEMU may use"
        assert real.size_bytes == 4 * MIB
        stand_ins.attach([real.connection, second.connection])
        assert ask(on, 0, 5, 10) == b"guestguest"
        assert ask(on, 1, 5, 5, b"write") == 0
        assert ask(on, 0, 0, 12) == b"guestwritegu"
        leave(on)
    disk.close()
    assert path.read_bytes()[:12] == b"guestwritegu"


def test_a_stand_in_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    StandIns(str(tmp_path / "s"), [MIB])
    with pytest.raises(Exception, match="refused export 1"):
        enter(str(tmp_path / "s"), "1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hostile:
        hostile.connect(str(tmp_path / "s"))
        hostile.recv(18, socket.MSG_WAITALL)
        hostile.sendall(bytes(4) + b"IHAVEOPT" + struct.pack(">II", 7, 1 << 31))
        assert hostile.recv(1) == b""
    good = enter(str(tmp_path / "s"), "0")
    good.connection.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 0, 1 << 31))
    assert good.connection.recv(1) == b""
    good.connection.close()


# --- paths ---


class Tree:
    """Looks like libguestfs with one directory, one link and one file; counts what is changed."""

    modes = {  # noqa: RUF012 - read alone
        "/v": stat.S_IFDIR | 0o755,
        "/v/etc": stat.S_IFDIR | 0o755,
        "/v/link": stat.S_IFLNK | 0o777,
        "/v/etc/file": stat.S_IFREG | 0o644,
        "/v/etc/fifo": stat.S_IFIFO | 0o644,
        "/v/etc/disk": stat.S_IFBLK | 0o644,
    }

    def __init__(self) -> None:
        self.done: list[str] = []

    def lstat(self, path: str) -> Entry:
        if path not in self.modes:
            raise GuestfsError("lstatns: no such file", errno.ENOENT)
        return Entry(self.modes[path], 1, 0, 0, 3, 0)

    def readlink(self, path: str) -> str:
        return "/etc"

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.done.append(name)


HOSTILE = [
    *("..", "../etc", "etc/..", "etc/../../x", ".", "etc/./file", "/etc/file", "etc//file"),
    *("etc/file/", "link/file", "link/..", "etc/file/x", "etc/fifo/x", "etc/\0", "\0"),
]


@pytest.mark.parametrize("path", HOSTILE)
def test_no_call_leaves_the_file_system_or_goes_through_a_link(path: str) -> None:
    tree = Tree()
    files = FileSystem(tree, "/v", "ext4")  # type: ignore[arg-type]
    calls = [
        lambda: files.lstat(path),
        lambda: files.list(path),
        lambda: files.read(path, 0, None, 100),
        lambda: files.write(path, 0, b"x"),
        lambda: files.replace(path, None, b"x"),
        lambda: files.remove(path),
        lambda: files.make_directory(path, 0o755),
        lambda: files.make_link(path, "x"),
    ]
    for call in calls:
        with pytest.raises(RefusedError) as refused:
            call()
        assert refused.value.kind == "path"
    assert tree.done == []


@pytest.mark.parametrize("path", ["link", "etc/fifo", "etc/disk", "etc", ""])
def test_only_regular_files_are_read_and_written(path: str) -> None:
    tree = Tree()
    files = FileSystem(tree, "/v", "ext4")  # type: ignore[arg-type]
    for call in (
        lambda: files.read(path, 0, None, 100),
        lambda: files.write(path, 0, b"x"),
        lambda: files.replace(path, None, b"x"),
    ):
        with pytest.raises(RefusedError):
            call()
    assert tree.done == []


def test_a_file_longer_than_the_limit_is_not_read() -> None:
    files = FileSystem(Tree(), "/v", "ext4")  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="3 bytes; at most 2"):
        files.read("etc/file", 0, None, 2)


# --- what is missing ---


@pytest.fixture
def equipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A host that has everything."""
    (tmp_path / "supermin.d").mkdir()
    monkeypatch.setattr(appliance_process, "_library", lambda: True)
    monkeypatch.setattr(appliance_process.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(appliance_process, "_kernels", lambda: [Path("/boot/vmlinuz-1")])
    monkeypatch.setattr(appliance_process, "_place", lambda: tmp_path)
    return monkeypatch


VOLUME = Volume("disk", (Piece("disk", 0, MIB),), MIB, "xfs")


def refusal() -> str:
    return Appliance("/nowhere", [VOLUME], ["disk"]).refusal(VOLUME)


def test_nothing_is_missing_on_an_equipped_host(equipped: pytest.MonkeyPatch) -> None:
    assert refusal() == ""


@pytest.mark.parametrize(
    ("program", "package"),
    [
        ("bwrap", "bubblewrap"),
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("qemu-img", "qemu-utils"),
        ("supermin", "supermin"),
    ],
)
def test_a_missing_program_is_named_with_its_package(
    equipped: pytest.MonkeyPatch, program: str, package: str
) -> None:
    equipped.setattr(appliance_process.platform, "machine", lambda: "x86_64")
    equipped.setattr(
        appliance_process.shutil, "which", lambda name: None if name == program else f"/{name}"
    )
    assert f"{program} is missing" in refusal()
    assert refusal().endswith(f" {package}")
    with pytest.raises(ToolMissingError, match=program):
        Appliance("/nowhere", [VOLUME], ["disk"]).open(VOLUME, writable=True)


@pytest.mark.parametrize(
    ("name", "value", "package"),
    [
        ("_library", False, "libguestfs0"),
        ("_place", None, "libguestfs0"),
        ("_kernels", [], "linux-image-cloud-amd64"),
    ],
)
def test_a_missing_part_is_named_with_its_package(
    equipped: pytest.MonkeyPatch, name: str, value: object, package: str
) -> None:
    equipped.setattr(appliance_process, name, lambda: value)
    assert refusal().endswith(f" {package}")


def test_an_export_that_is_gone_is_told(equipped: pytest.MonkeyPatch) -> None:
    with pytest.raises(GuestError, match="export of disk cannot be reached"):
        Appliance("/nowhere", [VOLUME], ["disk"]).open(VOLUME, writable=True)


# --- KVM ---


def test_kvm_is_proved_by_what_runs_and_not_by_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tool("qemu-system-x86_64")
    assert kvm.counts("tcg", 60.0), "the boot sector counts and exits"
    assert not kvm.counts("tcg", 0.001), "and is not waited for"
    assert not kvm.counts("no-such-accelerator", 60.0)
    kvm.usable.cache_clear()
    monkeypatch.setattr(kvm, "counts", lambda *_: False)
    assert not kvm.usable()
    assert appliance_process.launching([1], [], False)["settings"] == ["force_tcg"]
    kvm.usable.cache_clear()


# --- warm ---


def test_the_place_of_a_warm_appliance_is_this_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    (tmp_path / "link").symlink_to(tmp_path)
    assert place(str(tmp_path)) == place(str(tmp_path / "link"))
    assert place(str(tmp_path)) != place(str(folder))
    folder.chmod(0o755)
    with pytest.raises(GuestError, match="not this user's alone"):
        place(str(tmp_path))


def test_no_warm_appliance_is_no_error(tmp_path: Path) -> None:
    assert connect(str(tmp_path / "none" / "s")) is None
    (tmp_path / ("long" * 30)).mkdir()
    path = tmp_path / ("long" * 30) / "s"
    assert connect(str(path)) is None
