"""Files mode: a volume's files through drivers in a cage."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from calendar import timegm
from pathlib import Path
from typing import Literal

import pytest
from guest_volumes import make_volume, served
from rollpoint.access import fat_entries, remote, sandbox
from rollpoint.access.base import FileSystem
from rollpoint.access.choose import Ways
from rollpoint.access.files import Files
from rollpoint.access.host import kernel_has
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


def test_a_hibernated_windows_is_refused_by_every_way(tmp_path: Path) -> None:
    """Its memory holds metadata that the disk lacks: no driver may write there."""
    image = tmp_path / "v.img"
    volume = make_volume(image, "ntfs")
    with served(image) as socket_path:
        files = Files(socket_path)
        fs = files.open(volume, writable=True)
        fs.replace("hiberfil.sys", b"hibr".ljust(4096, b"\0"))
        fs.close()
        before = digest(image)
        with pytest.raises(GuestError, match="hibernated"):
            Ways(socket_path, [volume], ["disk"]).open(volume, writable=True)
        assert digest(image) == before
        fs = files.open(volume, writable=False)
        assert fs.read("hiberfil.sys", 0, 4) == b"hibr"
        files.close()
        wait_until_gone(socket_path)


def test_a_driver_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "v.img"
    volume = make_volume(image, "ext4")
    monkeypatch.setattr(remote, "CALL_SECONDS", 0.2)
    monkeypatch.setattr(remote, "CLOSE_SECONDS", 0.2)
    with served(image) as socket_path:
        files = Files(socket_path)
        for call in (lambda fs: fs.list("etc"), lambda fs: fs.close()):
            fs = files.open(volume, writable=True)
            for process in descendants(fs.process_id):  # type: ignore[attr-defined]
                if _name(process) == "fuse2fs\n":
                    os.kill(process, signal.SIGSTOP)
            with pytest.raises(GuestError, match="no answer in time"):
                call(fs)
            wait_until_gone(socket_path)
        files.close()


@pytest.mark.parametrize("way", ["files", "host"])
def test_a_server_that_hangs_holds_nobody_up(
    tmp_path: Path, way: Literal["files", "host"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exports stop to answer in the middle of a write: an error, and all is gone."""
    if way == "host" and (os.geteuid() != 0 or not kernel_has("ext4")):
        pytest.skip("kernel mounts want root and ext4")
    image = tmp_path / "v.img"
    volume = make_volume(image, "ext4")
    monkeypatch.setattr(remote, "CALL_SECONDS", 0.3)
    with served(image) as socket_path:
        server = [p for p in caged(socket_path) if _name(p) == "nbdkit\n"]
        ways = Ways(socket_path, [volume], ["disk"], mode=way, trust_guest=way == "host")
        fs = ways.open(volume, writable=True)
        try:
            os.kill(server[0], signal.SIGSTOP)
            with pytest.raises(GuestError, match="no answer in time"):
                fs.replace("file", b"x" * 100000)
            wait_until_gone(socket_path)
            assert not [p for p in descendants(os.getpid()) if _name(p) == "nbdfuse\n"]
        finally:
            os.kill(server[0], signal.SIGCONT)
        ways.close()


def test_what_a_driver_says_is_believed_in_its_form_only(tmp_path: Path) -> None:
    """Answers that a driver which was taken over could give."""
    volume = Volume("v", (Piece("disk", 0, 512),), 512, "ext4")
    answers = [
        b"",
        b"[" * 100000,
        b'{"names":{"../../etc/passwd":["file",0,0,0,0,0,1,""]}}',
        b'{"names":{"":["file",0,0,0,0,0,1,""]}}',
        b'{"names":{"a\\u0000b":["file",0,0,0,0,0,1,""]}}',
        b'{"names":{"\\u4e2d":["file",0,0,0,0,0,1,""]}}',
        b'{"names":{"a":["socket",0,0,0,0,0,1,""]}}',
        b'{"names":{"a":["file","0",0,0,0,0,1,""]}}',
        b'{"names":7}',
        b'{"error":"path","message":"a link"}',
        b'{"error":"whatever","message":"\x1b[2J"}',
    ]
    for answer in answers:
        fs = object.__new__(remote.RemoteFileSystem)
        fs._volume, fs._what, fs._mode, fs._writable = volume, "volume v", "files", True
        fs._cage = _Answering(answer)  # type: ignore[assignment]
        with pytest.raises(Error) as caught:
            fs.list("")
        assert "\x1b" not in str(caught.value)


class _Answering:
    """A cage whose program gives one answer."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def call(self, header: bytes, data: bytes, seconds: float) -> tuple[bytes, bytes]:
        return self._answer, b""


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
        assert "Seccomp:\t2" in status
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


@pytest.mark.parametrize("kind", ["vfat", "ext4", "ntfs"])
def test_damage_gives_errors_of_ours_only(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 5: bytes near the start, of tables and directories, are changed at random."""
    seeded = random.Random(5)
    image = tmp_path / "v.img"
    volume = make_volume(image, kind)
    monkeypatch.setattr(remote, "CALL_SECONDS", 5.0)
    with served(image) as socket_path:
        fs = Files(socket_path).open(volume, writable=True)
        fs.make_directory("EFI")
        fs.replace("EFI/grub.cfg and more", b"x" * 5000)
        fs.close()
    good = image.read_bytes()[: 1 << 20]
    for number in range(4):
        with open(image, "r+b") as file:
            file.write(good)
            for _ in range(40):
                file.seek(seeded.choice([seeded.randrange(64), seeded.randrange(1 << 17)]))
                if number % 2:
                    file.seek(seeded.randrange(1 << 12, 1 << 18))  # it mounts more often
                file.write(seeded.randbytes(1))
        with served(image) as socket_path:
            with contextlib.suppress(Error):
                fs = Files(socket_path).open(volume, writable=number > 1)
                for path in ("", "EFI", "EFI/grub.cfg and more"):
                    for call in (fs.list, fs.read, fs.remove):
                        with contextlib.suppress(Error):
                            call(path)
                fs.close()
            wait_until_gone(socket_path)


@pytest.mark.parametrize("kind", ["ext4", "ntfs", "vfat"])
def test_a_full_file_system_keeps_what_it_had(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "v.img"
    volume = make_volume(image, kind, size_mb=10)
    with served(image) as socket_path:
        fs = Files(socket_path).open(volume, writable=True)
        fs.replace("grub.cfg", b"old")
        fs.replace("filler", bytes(max(1, fs.space().bytes_free - (2 << 20))))
        before = fs.list("")
        with pytest.raises(GuestError):
            fs.replace("grub.cfg", b"new" * (1 << 20))
        assert fs.read("grub.cfg") == b"old"
        assert fs.list("").keys() == before.keys()
        fs.replace("grub.cfg", b"newer")
        assert fs.read("grub.cfg") == b"newer"
        fs.close()


def test_labels_and_owners_stay_in_the_cage_as_well(tmp_path: Path) -> None:
    """SELinux's label, capabilities, a user's attribute, an owner without a name here."""
    image = tmp_path / "v.img"
    volume = make_volume(image, "ext4")
    label = "system_u:object_r:etc_t:s0"
    with served(image) as socket_path:
        fs = Files(socket_path).open(volume, writable=True)
        fs.replace("fstab", b"one", 0o640)
        fs.close()
    script = tmp_path / "script"
    script.write_text(
        f"ea_set fstab security.selinux {label}\nea_set fstab user.mine yes\n"
        "sif fstab uid 70123\nsif fstab gid 42\n"
    )
    debugfs = require_tool("debugfs")
    subprocess.run([debugfs, "-w", "-f", script, image], check=True, capture_output=True)
    with served(image) as socket_path:
        fs = Files(socket_path).open(volume, writable=True)
        fs.replace("fstab", b"two")
        found = fs.lstat("fstab")
        fs.close()
    assert found is not None
    if os.geteuid() == 0:
        assert (found.mode, found.uid, found.gid) == (0o640, 70123, 42)
    for name, value in (("security.selinux", label), ("user.mine", "yes")):
        shown = subprocess.run(
            [debugfs, "-R", f"ea_get fstab {name}", image], capture_output=True, text=True
        )
        assert value in shown.stdout, shown.stdout + shown.stderr


REFUSED = """
import sys, types, os, ctypes, socket, subprocess, threading
package = sys.modules["inside"] = types.ModuleType("inside")
package.__path__ = [sys.argv[1]]
from inside.syscalls import REFUSED, refuse_calls
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
refuse_calls()
column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
for name, numbers in REFUSED.items():
    if numbers[column] >= 0:
        assert libc.syscall(numbers[column], -1, 0, 0, 0, 0, 0) == -1, name
        assert ctypes.get_errno() == 1, name
assert libc.unshare(0x10000000) == -1
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET):
    try:
        socket.socket(family, socket.SOCK_DGRAM)
    except PermissionError:
        continue
    raise AssertionError(family)
socket.socket(socket.AF_UNIX).close()
thread = threading.Thread(target=print, args=("threads go",)); thread.start(); thread.join()
print(subprocess.run(["true"]).returncode)
clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
assert libc.syscall(clone, 0x10000000 | 17, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1
print("done")
"""


def test_calls_that_nobody_needs_are_refused_by_the_kernel() -> None:
    if os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("there is no filter for this machine")
    folder = os.path.dirname(remote.__file__)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", REFUSED, folder], capture_output=True, text=True
    )
    assert done.stdout == "threads go\n0\ndone\n", done.stderr


def test_what_runs_in_the_cage_needs_the_standard_library_alone() -> None:
    own = {"worker", "beneath", "drivers", "fat", "fat_entries", "kernel", "syscalls"}
    for name in own:
        path = Path(remote.__file__).with_name(f"{name}.py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert node.module in own, f"{name} imports {node.module}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                for package in names or [str(getattr(node, "module", ""))]:
                    assert package.split(".")[0] in sys.stdlib_module_names, package


AS_A_USER = """
import os, sys
from rollpoint.access import sandbox
from rollpoint.access.files import Files
from rollpoint.access.tree import GuestTree
from rollpoint.errors import Error
from rollpoint.volumes.base import Piece, Volume
sandbox.interpreter = lambda: ("/usr/bin/python3", "/usr")
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
volume = Volume("disk:1", (Piece("disk", 0, 1),), 1, "ext4")
files = Files(sys.argv[1])
tree = GuestTree({"/": files.open(volume, writable=True)})
tree.make_directories("/etc")
tree.replace("/etc/fstab", b"by a user")
found = tree.stat("/etc/fstab")
assert (found.uid, found.gid) == (0, 0), found
try:
    tree.replace("/other", b"of somebody else")
except Error as error:
    assert "as root" in error.message, error
else:
    raise AssertionError("an owner was changed")
assert tree.read("/other") == b"1"
tree.close()
files.close()
print("done")
"""


def test_a_user_without_privileges_can_do_it_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.geteuid() != 0 or not os.path.exists("/usr/bin/python3"):
        pytest.skip("it takes root to become another user, and Debian's python3")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        image = folder / "v.img"
        make_volume(image, "ext4", "-E", "root_owner=0:0")
        (folder / "one").write_text("1")
        (folder / "script").write_text(f"write {folder}/one other\nsif other uid 1000\n")
        debugfs = require_tool("debugfs")
        command = [debugfs, "-w", "-f", folder / "script", image]
        subprocess.run(command, check=True, capture_output=True)
        with served(image) as socket_path:
            os.chmod(socket_path, 0o666)
            # The checkout may lie where another user cannot look.
            code = Path(sandbox.__file__).parents[1]
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(code, folder / "rollpoint", ignore=ignored)
            done = subprocess.run(
                [sys.executable, "-c", AS_A_USER, socket_path],
                capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(folder)},
            )  # fmt: skip
            assert done.stdout == "done\n", done.stderr
            wait_until_gone(socket_path)
        subprocess.run([require_tool("e2fsck"), "-fn", image], check=True)


def test_names_of_fat_are_the_same_in_any_case(tmp_path: Path) -> None:
    image = tmp_path / "v.img"
    volume = make_volume(image, "vfat")
    with served(image) as socket_path:
        tree = GuestTree({"/": Files(socket_path).open(volume, writable=True)})
        assert not tree.exists("/EFI/BOOT/bootx64.efi")
        tree.make_directories("/efi/Boot")
        assert not tree.exists("/EFI/boot/bootx64.efi")
        tree.replace("/EFI/BOOT/BOOTX64.EFI", b"one")
        assert tree.read("/EFI/boot/bootx64.efi") == b"one"
        tree.replace("/efi/boot/BootX64.efi", b"three")
        assert tree.read("/EFI/BOOT/BOOTX64.EFI") == b"three"
        assert list(tree.list("/efi/boot")) == ["BOOTX64.EFI"]
        names = ["grub.cfg", "Grub.cfg2", "shimx64.EFI", "FBX64.efi", "a long name.Txt", "x"]
        for name in names:
            tree.replace(f"/EFI/BOOT/{name}", b"one")
            tree.replace(f"/EFI/BOOT/{name.swapcase()}", b"two")
        assert sorted(tree.list("/efi/boot")) == sorted([*names, "BOOTX64.EFI"])
        tree.remove("/efi/boot/bootx64.EFI")
        assert not tree.exists("/EFI/BOOT/BOOTX64.EFI")
        tree.close()


def test_times_of_fat_are_those_of_the_calendar() -> None:
    for year, month, day in ((1980, 1, 1), (2000, 2, 29), (2024, 3, 1), (2099, 12, 31)):
        found = fat_entries.modified_ns(
            (year - 1980) << 9 | month << 5 | day, 13 << 11 | 5 << 5 | 3
        )
        assert found == timegm((year, month, day, 13, 5, 6)) * 10**9
