"""The mount: disks and their volumes over NBD, and nothing left behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import lvm_maker
import pytest
import rollpoint
from conftest import ROOT
from rollpoint.disk import open_disk, open_snapshot
from rollpoint.errors import ReadOnlyError, StateError, UsageError, VerificationError
from rollpoint.mount import FOLDER_PREFIX, Mount, read_export
from tools import libnbd
from volume_disks import MIB, SECTOR, call, empty_file

PARTITIONS = "label: dos\nstart=2048, size=2048\nstart=8192, size=4096\n"


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Mounts make their directories here: its path is short, as that of a socket has to be."""
    with tempfile.TemporaryDirectory(prefix="rp-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_a_long_name_of_the_place_for_temporary_files_is_in_nobodys_way(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ("long" * 30)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with Mount({"system": str(chain)}) as mount:
        mount.check()


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A partitioned disk with a child; the first sector of each partition tells its name."""
    raw = empty_file(tmp_path / "raw", 8 * MIB).path
    call("sfdisk", "-q", raw, stdin=PARTITIONS)
    with open(raw, "r+b") as file:
        for number, sector in ((1, 2048), (2, 8192)):
            file.seek(sector * SECTOR)
            file.write(b"partition %d" % number)
    base, child = tmp_path / "base.vmdk", tmp_path / "child.vmdk"
    call("qemu-img", "convert", "-O", "vmdk", raw, base)
    call("qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", child)
    return child


def write(mount: Mount, name: str, data: bytes, offset: int) -> None:
    handle = libnbd().NBD()
    handle.connect_uri(mount.uri(name))
    handle.pwrite(data, offset)
    handle.shutdown()


def test_a_partition_is_an_export_of_its_own(chain: Path, temporary: Path) -> None:
    with Mount({"system": str(chain)}) as mount:
        mount.check()
        assert mount.disks == ("system",)
        assert [volume.name for volume in mount.volumes] == ["system:1", "system:2"]
        for number, size in ((1, MIB), (2, 2 * MIB)):
            place = mount.uri(f"system:{number}")
            assert int(call("nbdinfo", "--size", place)) == size
            size_bytes, (data,) = read_export(mount.socket_path, f"system:{number}", 11, [0])
            assert (size_bytes, data) == (size, b"partition %d" % number)
        write(mount, "system:2", b"changed", 2 * MIB - 7)
        _, (data,) = read_export(mount.socket_path, "system", 7, [6 * MIB - 7])
        assert data == b"changed"
    assert list(temporary.iterdir()) == []
    with open_disk(chain) as disk:
        assert disk.pread(7, 6 * MIB - 7) == b"changed"
    with open_disk(chain.parent / "base.vmdk") as disk:
        assert disk.pread(7, 6 * MIB - 7) == bytes(7)


def test_a_mount_for_reading_takes_no_write_and_changes_no_byte(
    chain: Path, temporary: Path
) -> None:
    before = chain.read_bytes()
    with Mount({"system": str(chain)}, read_only=True) as mount:
        mount.check()
        for name in ("system", "system:1"):
            handle = libnbd().NBD()
            handle.connect_uri(mount.uri(name))
            assert handle.is_read_only()
            handle.shutdown()
    assert chain.read_bytes() == before


def test_a_disk_that_was_given_open_stays_its_owners(chain: Path) -> None:
    with open_snapshot(str(chain)) as disk:
        with Mount({"system": disk}) as mount:
            write(mount, "system:1", b"scratch", 0)
        assert disk.pread(7, MIB) == b"scratch"
        again = Mount({"system": disk})
        again.abandon()
        again.abandon()
        again.close()
    with open_disk(chain) as kept:
        assert kept.pread(9, MIB) == b"partition"


def test_a_disk_for_reading_is_exported_so(chain: Path) -> None:
    with open_disk(chain) as disk, Mount({"system": disk}) as mount:
        handle = libnbd().NBD()
        handle.connect_uri(mount.uri("system:1"))
        assert handle.is_read_only()
        handle.shutdown()


def test_there_are_only_the_exports_that_there_are(chain: Path) -> None:
    with Mount({"a b": str(chain)}) as mount:
        assert mount.uri("a b:1").startswith("nbd+unix:///a%20b%3A1?socket=")
        with pytest.raises(UsageError, match="there is no export 'a b:3'"):
            mount.uri("a b:3")


def test_the_socket_is_for_nobody_else(chain: Path) -> None:
    with Mount({"system": str(chain)}) as mount:
        folder = os.path.dirname(mount.socket_path)
        assert os.stat(folder).st_mode & 0o777 == 0o700
        assert os.stat(mount.socket_path).st_mode & 0o777 == 0o600


def test_a_client_that_is_left_is_told_and_the_disks_are_closed(
    chain: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollpoint.mount.GONE_SECONDS", 0.01)
    mount = Mount({"system": str(chain)})
    handle = libnbd().NBD()
    handle.connect_uri(mount.uri("system:2"))
    with pytest.raises(StateError, match=r"1 client\(s\) had recovered disks open"):
        mount.close()
    mount.close()
    assert list(temporary.iterdir()) == []
    with open_disk(chain, writable=True):
        pass  # nothing has it locked


def test_a_disk_that_cannot_be_read_leaves_nothing_behind(
    chain: Path, temporary: Path
) -> None:
    with pytest.raises(rollpoint.Error) as kept:
        Mount({"system": str(chain), "data": str(chain.parent / "none.vmdk")})
    assert list(temporary.iterdir()) == []
    with open_disk(chain, writable=True):
        assert kept.value.code == "not-found"


def test_an_error_that_is_kept_keeps_no_disk_open(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> tuple[int, list[bytes]]:
        return 0, []

    monkeypatch.setattr("rollpoint.mount.read_export", wrong)
    mount = Mount({"system": str(chain)})
    with pytest.raises(VerificationError) as kept:
        mount.check()
    mount.abandon()
    with open_disk(chain, writable=True) as disk:
        assert kept.value.code == "verification"
        assert not disk.read_only


def test_a_chain_that_is_opened_for_reading_can_have_other_readers(chain: Path) -> None:
    with (
        Mount({"system": str(chain)}, read_only=True),
        open_disk(chain) as disk,
        pytest.raises(ReadOnlyError),
    ):
        disk.pwrite(b"x", 0)


def test_nothing_of_a_mount_lives_on_after_it(chain: Path) -> None:
    with open_snapshot(str(chain)) as disk:
        mount = Mount({"system": disk})
        gone = weakref.ref(mount)
        mount.close()
        del mount
        assert gone() is None


def test_a_logical_volume_over_two_disks_is_one_export(tmp_path: Path) -> None:
    """A file system made through it lies on both disks, in their overlays alone."""
    data = lvm_maker.text(lvm_maker.logical("root", "100 pv1 20; 60 pv0 0; 70 pv1 120"), 2)
    paths = {}
    for number, name in enumerate(("system", "data")):
        made = lvm_maker.physical(number, data)
        raw = empty_file(tmp_path / "raw", made.size_bytes).path
        with open(raw, "r+b") as file:
            file.write(made.pread(2 * MIB, 0))
        base = tmp_path / f"{name}.vmdk"
        paths[name] = tmp_path / f"{name}-child.vmdk"
        call("qemu-img", "convert", "-O", "vmdk", raw, base)
        backing = ("-b", base.name, "-F", "vmdk")
        call("qemu-img", "create", "-q", "-f", "vmdk", *backing, paths[name])
    bases = [(tmp_path / f"{name}.vmdk").read_bytes() for name in paths]
    plain = empty_file(tmp_path / "plain", 230 * 65536).path
    call("mkfs.ext4", "-q", "-L", "spread", plain)
    with Mount({name: str(path) for name, path in paths.items()}) as mount:
        assert [v.name for v in mount.volumes] == ["system", "data", "vg0/root"]
        call("nbdcopy", plain, mount.uri("vg0/root"))
        mount.check()
    with Mount({name: str(path) for name, path in paths.items()}, read_only=True) as mount:
        root = mount.volumes[2]
        assert (root.kind, root.label) == ("ext4", "spread")
        assert {piece.disk for piece in root.pieces} == {"system", "data"}
        copy = tmp_path / "copy"
        call("nbdcopy", mount.uri("vg0/root"), copy)
        assert copy.read_bytes() == plain.read_bytes()
    assert [(tmp_path / f"{name}.vmdk").read_bytes() for name in paths] == bases


VICTIM = """
import sys
from rollpoint.mount import Mount
mount = Mount({"system": sys.argv[1]})
print(mount.uri("system:1"), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("moment", ["idle", "client"])
def test_after_kill_9_nothing_is_left(chain: Path, temporary: Path, moment: str) -> None:
    """The next mount takes the disk, and sweeps the directory of the killed one away."""
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, chain],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert victim.stdout is not None
    uri = victim.stdout.readline().strip()
    handle = libnbd().NBD()
    if moment == "client":
        handle.connect_uri(uri)
        handle.pwrite(b"written", 4096)
        handle.flush()
        handle.pwrite(b"perhaps", 8192)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert [path.name[: len(FOLDER_PREFIX)] for path in temporary.iterdir()] == [FOLDER_PREFIX]
    with Mount({"system": str(chain)}) as mount:
        mount.check()
        assert [str(path) for path in temporary.iterdir()] == [os.path.dirname(mount.socket_path)]
        _, (data,) = read_export(mount.socket_path, "system:1", 7, [4096])
        assert data == (b"written" if moment == "client" else bytes(7))
    call("qemu-img", "check", "-q", chain)
    assert list(temporary.iterdir()) == []


DYING = """
import os, sys
from rollpoint import mount

def die(*_, **__):
    os.kill(os.getpid(), 9)

setattr(*{
    "locking": (mount, "_locked", die),
    "opening": (mount, "open_disk", die),
    "looking": (mount, "find", die),
    "serving": (mount, "listen", die),
    "checking": (mount, "read_export", die),
    "ending": (mount.Mount, "_clients_left", die),
    "closing": (mount, "side_by_side", die),
}[sys.argv[2]])
one = mount.Mount({"system": sys.argv[1]})
one.check()
one.close()
"""


@pytest.mark.parametrize(
    "moment", ["locking", "opening", "looking", "serving", "checking", "ending", "closing"]
)
def test_after_kill_9_at_any_step_nothing_is_left(
    chain: Path, temporary: Path, moment: str
) -> None:
    before = [path.read_bytes() for path in sorted(chain.parent.glob("*.vmdk"))]
    environment = os.environ | {"TMPDIR": str(temporary)}
    command = [sys.executable, "-c", DYING, chain, moment]
    victim = subprocess.run(command, env=environment, cwd=ROOT)
    assert victim.returncode == -signal.SIGKILL
    assert [path.read_bytes() for path in sorted(chain.parent.glob("*.vmdk"))] == before
    assert len(list(temporary.iterdir())) == 1
    with Mount({"system": str(chain)}) as mount:
        mount.check()
        assert len(list(temporary.iterdir())) == 1
    assert list(temporary.iterdir()) == []


def test_a_mount_that_lives_is_not_swept_away(chain: Path, tmp_path: Path) -> None:
    with Mount({"system": str(chain)}, read_only=True) as one:
        with Mount({"system": str(chain)}, read_only=True) as two:
            one.check()
            two.check()
        one.check()
