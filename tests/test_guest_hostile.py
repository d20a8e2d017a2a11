"""Hostile guest roots: whatever lies in a guest, nothing of this host is read, changed or opened.

Each of the roots has one trap, and every call of the tree goes to every path of it. Around
the root lies a pretended host whose secret must never come out, and whose files must
stay as they are.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from guest_volumes import make_volume, served
from rollpoint.access.choose import Ways
from rollpoint.access.host import kernel_has
from rollpoint.access.local import LocalFileSystem
from rollpoint.access.tree import GuestTree
from rollpoint.errors import Error
from tools import require_tool

SECRET = b"secret of the host\n"
Trap = Callable[[Path, Path], None]  # root of the guest, directory of the host


def link(path: str, target: str) -> Trap:
    """A symbolic link; {host} stands for the host's directory, {root} for the guest's."""

    def make(root: Path, host: Path) -> None:
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.format(host=host, root=root))

    return make


def chain(*links: tuple[str, str]) -> Trap:
    def make(root: Path, host: Path) -> None:
        for path, target in links:
            link(path, target)(root, host)

    return make


def node(path: str, kind: int, major: int = 1, minor: int = 3) -> Trap:
    def make(root: Path, host: Path) -> None:
        try:
            os.mknod(root / path, kind | 0o666, os.makedev(major, minor))
        except PermissionError:
            pytest.skip("device nodes want root")

    return make


def hard_link(path: str) -> Trap:
    """Of a file of the guest's own: a replaced one is a new file, its twin keeps the content."""

    def make(root: Path, host: Path) -> None:
        (root / "twin").write_bytes(b"twin")
        os.link(root / "twin", root / path)

    return make


def bound(path: str) -> Trap:
    def make(root: Path, host: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(root / path))

    return make


def wide(path: str) -> Trap:
    def make(root: Path, host: Path) -> None:
        (root / path).mkdir()
        for number in range(300):
            (root / path / f"{number:x}").symlink_to(f"{number + 1:x}")

    return make


def deep(path: str) -> Trap:
    def make(root: Path, host: Path) -> None:
        here = root / path
        for _ in range(60):
            here = here / "d"
        here.mkdir(parents=True)
        (here / "up").symlink_to("/".join([".."] * 90) + str(host / "secret"))

    return make


def mode(path: str, bits: int, size: int = 0) -> Trap:
    def make(root: Path, host: Path) -> None:
        with open(root / path, "wb") as file:
            file.truncate(size)
        (root / path).chmod(bits)

    return make


UP = "/".join([".."] * 40)
PLACES = ["etc/fstab", "boot/grub/grub.cfg", "etc/initramfs-tools/modules"]
TRAPS: dict[str, Trap] = {}
for _place in PLACES:
    TRAPS |= {
        f"absolute link {_place}": link(_place, "{host}/secret"),
        f"climbing link {_place}": link(_place, UP + "{host}/secret"),
        f"link to a directory of the host {_place}": link(
            _place.rpartition("/")[0] or "etc", "{host}"
        ),
        f"climbing directory {_place}": link(_place.rpartition("/")[0] or "etc", UP + "{host}"),
        f"dangling link {_place}": link(_place, "{host}/new"),
        f"magic link {_place}": link(_place, "/proc/self/root{host}/secret"),
        f"magic cwd {_place}": link(_place, "/proc/self/cwd/secret"),
        f"loop {_place}": link(_place, "/" + _place),
        f"empty-looking {_place}": link(_place, "./."),
    }
TRAPS |= {
    "loop of two": chain(("etc/fstab", "mtab"), ("etc/mtab", "fstab")),
    "loop of directories": chain(("a/b", "../c/d"), ("c/d", "../a/b")),
    "self directory": chain(("etc/self", "."), ("etc/fstab", "self/self/self/../../../etc/none")),
    "root is a link": chain(("boot", "/"), ("etc", UP)),
    "descriptor": link("etc/fstab", "/proc/self/fd/0"),
    "standard input": link("etc/fstab", "/dev/stdin"),
    "every descriptor": chain(*((f"etc/{n}", f"/proc/self/fd/{n}") for n in range(20))),
    "link with a newline": link("etc/fstab", "{host}/secret\n"),
    "link with escapes": link("etc/fstab", "\x1b[2J{host}/secret"),
    "link to itself through ..": link("etc/fstab", "../etc/../etc/fstab"),
    "long target": link("etc/fstab", "/" + "a/" * 2000),
    "long climbing target": link("etc/fstab", "../" * 1200 + "etc"),
    "forty links": chain(*((f"etc/l{n}", f"l{n + 1}") for n in range(50))),
    "wide chain": wide("etc"),
    "deep tree": deep("etc"),
    "null device": node("etc", stat.S_IFCHR),
    "zero device": node("fstab", stat.S_IFCHR, 1, 5),
    "memory device": node("fstab", stat.S_IFCHR, 1, 1),
    "console": node("fstab", stat.S_IFCHR, 5, 1),
    "block device": node("fstab", stat.S_IFBLK, 7, 0),
    "unknown device": node("fstab", stat.S_IFBLK, 254, 250),
    "fifo": node("fstab", stat.S_IFIFO),
    "fifo for a directory": node("boot", stat.S_IFIFO),
    "socket": bound("fstab"),
    "hard link": hard_link("fstab"),
    "setuid": mode("fstab", 0o6755),
    "no rights": mode("fstab", 0o000),
    "huge and sparse": mode("fstab", 0o644, 1 << 42),
    "link named as our spare": link(".rollpoint-0000000000000000", "{host}/secret"),
    "parent swapped for a link": chain(("new", "{host}"), ("etc/new", "/new")),
    "link to the root's parent": link("out", "{root}/.."),
    "link to the root's twin": link("out", "{root}2"),
    "link to the root by name": link("out", "{root}"),
    "backslashes": link("etc\\..\\..", "{host}/secret"),
    "link with a blank": link("etc/fstab", " {host}/secret"),
    "names of only dots": chain(("...", "{host}"), ("etc/....", "../../secret")),
}


@pytest.fixture
def host(tmp_path: Path) -> Path:
    made = tmp_path / "host"
    (made / "guest").mkdir(parents=True)
    (made / "guest2").mkdir()
    for name in ("secret", "fstab", "guest2/secret", "grub.cfg", "modules"):
        (made / name).write_bytes(SECRET)
    return made


def state(host: Path) -> dict[str, object]:
    """Every file of the host but the guest's, with content and what may not change."""
    found: dict[str, object] = {}
    for folder, names, files in os.walk(host):
        if folder == str(host):
            names.remove("guest")
        for name in [*names, *files]:
            path = Path(folder) / name
            facts = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (facts.st_mode, facts.st_uid, facts.st_mtime_ns, content)
    return found


def paths_of(root: Path) -> list[str]:
    found = ["/etc/fstab", "/fstab", "/boot/grub/grub.cfg", "/etc/initramfs-tools/modules"]
    for folder, names, files in os.walk(root):
        found += [f"{folder}/{n}".removeprefix(str(root)) for n in [*names, *files]][:12]
    return [*found[:40], "/out/secret", "/new/secret", "/etc/secret", "/boot/secret", "/out/x/../y"]


def attack(tree: GuestTree, path: str) -> None:
    """Every call; errors of ours are fine, blocking and the host's secret are not."""
    calls: list[Callable[[], object]] = [
        lambda: tree.stat(path),
        lambda: tree.list(path),
        lambda: tree.glob(path + "/*"),
        lambda: tree.any_case(path.upper()),
        lambda: tree.read(path),
        lambda: tree.read_part(path, 0, 64),
        lambda: tree.append(path, b"more"),
        lambda: tree.write(path, b"over", 0),
        lambda: tree.replace(path, b"new", 0o600),
        lambda: tree.make_directories(path + "/a/b"),
        lambda: tree.make_link(path + "/l", "x"),
        lambda: tree.space(path),
        lambda: tree.remove(path),
    ]
    for call in calls:
        with contextlib.suppress(Error):
            answer = call()
            assert not isinstance(answer, bytes) or SECRET not in answer, path


@pytest.mark.parametrize("name", TRAPS)
def test_nothing_of_the_host_is_touched(host: Path, name: str) -> None:
    root = host / "guest"
    TRAPS[name](root, host)
    before = state(host)
    tree = GuestTree({"/": LocalFileSystem(root)})
    here = os.getcwd()
    os.chdir(host)
    try:
        for path in paths_of(root):
            attack(tree, path)
    finally:
        os.chdir(here)
        tree.close()
    assert state(host) == before


def test_there_are_sixty_of_them() -> None:
    assert len(TRAPS) >= 60


def test_a_directory_that_turns_into_a_link_meanwhile(host: Path) -> None:
    """What no look beforehand can find: names change between two system calls."""
    root = host / "guest"
    (root / "etc").mkdir()
    (root / "kept").mkdir()
    (root / "link").symlink_to(host)
    (root / "kept/fstab").write_bytes(b"of the guest")
    before = state(host)
    done = threading.Event()

    def swap() -> None:
        """The link and a directory change places all the time."""
        while not done.is_set():
            for first, second in (
                ("etc", "spare"),
                ("link", "etc"),
                ("etc", "link"),
                ("spare", "etc"),
            ):
                with contextlib.suppress(OSError):
                    os.rename(root / first, root / second)

    thread = threading.Thread(target=swap)
    thread.start()
    fs = LocalFileSystem(root)
    read = 0
    try:
        for _ in range(600):
            for call in (
                lambda: fs.read("etc/secret"),
                lambda: fs.replace("etc/fstab", b"new"),
                lambda: fs.replace("etc/new", b"new"),
                lambda: fs.write("etc/secret", b"over", 0),
                lambda: fs.list("etc"),
                lambda: fs.remove("etc/fstab"),
            ):
                with contextlib.suppress(Error):
                    answer = call()
                    assert answer != SECRET
                    read += 1
    finally:
        done.set()
        thread.join()
        fs.close()
    assert read
    assert state(host) == before


@pytest.mark.parametrize("way", ["files", "host"])
def test_traps_on_a_real_volume_reach_nothing_either(
    host: Path, tmp_path: Path, way: Literal["files", "host"]
) -> None:
    """The same through a driver in its cage, whose /etc and /dev are none of this host's."""
    if os.geteuid() != 0:
        pytest.skip("device nodes want root")
    if way == "host" and not kernel_has("ext4"):
        pytest.skip("this kernel has no ext4")
    for name in ("bwrap", "nbdfuse", "fuse2fs", "nbdkit", "mke2fs"):
        require_tool(name)
    root = host / "guest"
    (root / "etc").mkdir()
    for number, target in enumerate(("/etc/passwd", "../../../etc/passwd", "/dev/zero", "{host}")):
        link(f"etc/l{number}", target)(root, host)
    for number, kind in enumerate((stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK)):
        node(f"etc/n{number}", kind, 1, 5)(root, host)
    mode("etc/huge", 0o644, 1 << 30)(root, host)
    volume = make_volume(tmp_path / "v.img", "ext4", "-d", str(root))
    before = state(host)
    with served(tmp_path / "v.img") as socket_path:
        ways = Ways(socket_path, [volume], ["disk"], mode=way, trust_guest=way == "host")
        tree = GuestTree({"/": ways.open(volume, writable=True)})
        for name in ["l0", "l1", "l2", "l3", "n0", "n1", "n2"]:
            with pytest.raises(Error):
                tree.read(f"/etc/{name}")
            with pytest.raises(Error):
                tree.write(f"/etc/{name}", b"over", 0)
        for name in [*tree.list("/etc"), "l3/secret", "n0/x"]:
            attack(tree, f"/etc/{name}")
        tree.close()
        ways.close()
    assert state(host) == before
