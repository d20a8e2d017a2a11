"""Copying out of a guest: what there is arrives; what is hostile touches nothing of this host."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from rollpoint.access.base import Stat
from rollpoint.access.local import LocalFileSystem
from rollpoint.access.tree import GuestTree
from rollpoint.copy_out import CHUNK_BYTES, DEPTH_MAX, copy_out
from rollpoint.errors import ExistsError, GuestError, NotFoundError, PathError, StorageError
from rollpoint.volumes.base import Volume

SECOND_NS = 1_000_000_000


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    (tmp_path / "guest" / "etc" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "guest" / "etc" / "motd").write_bytes(b"welcome\n")
    (tmp_path / "guest" / "etc" / "deep" / "er" / "file").write_bytes(b"x" * 5000)
    return tmp_path / "guest"


def tree_of(guest: Path) -> GuestTree:
    return GuestTree({"/": LocalFileSystem(guest)})


def everything(path: Path) -> dict[str, object]:
    """What lies below a directory, without following anything."""
    found: dict[str, object] = {}
    for folder, directories, files in os.walk(path):
        for name in (*directories, *files):
            place = Path(folder) / name
            facts = place.lstat()
            if stat.S_ISLNK(facts.st_mode):
                found[str(place.relative_to(path))] = os.readlink(place)
            elif stat.S_ISREG(facts.st_mode):
                found[str(place.relative_to(path))] = place.read_bytes()
            else:
                found[str(place.relative_to(path))] = stat.S_IFMT(facts.st_mode)
    return found


# ---- what arrives ----


def test_a_directory_arrives_with_all_that_is_in_it_its_modes_and_times(
    guest: Path, tmp_path: Path
) -> None:
    (guest / "etc" / "motd").chmod(0o640)
    (guest / "etc" / "deep").chmod(0o751)
    (guest / "etc" / "tool").write_bytes(b"#!")
    (guest / "etc" / "tool").chmod(0o6755)  # not here: it would be ours
    os.utime(guest / "etc" / "motd", ns=(5 * SECOND_NS, 7 * SECOND_NS))
    os.symlink("../../../etc/passwd", guest / "etc" / "up")
    os.symlink("motd", guest / "etc" / "near")
    wanted = everything(guest / "etc")
    copied = copy_out(tree_of(guest), "/etc", str(tmp_path / "out"))
    made = tmp_path / "out" / "etc"
    assert everything(made) == wanted
    assert (copied.files, copied.directories, copied.links) == (3, 3, 2)
    assert copied.size_bytes == 8 + 5000 + 2
    assert not copied.skipped
    assert stat.S_IMODE((made / "motd").stat().st_mode) == 0o640
    assert stat.S_IMODE((made / "deep").stat().st_mode) == 0o751
    assert stat.S_IMODE((made / "tool").stat().st_mode) == 0o755
    assert (made / "motd").stat().st_mtime_ns == 7 * SECOND_NS


def test_one_file_is_named_as_asked_and_a_link_stays_a_link(guest: Path, tmp_path: Path) -> None:
    os.symlink("/etc/motd", guest / "link")
    os.symlink("etc", guest / "way")
    tree = tree_of(guest)
    copy_out(tree, "/way/motd", str(tmp_path / "out" / "mine"))  # a link on the way: the guest's
    assert (tmp_path / "out" / "mine").read_bytes() == b"welcome\n"
    copy_out(tree, "/link", str(tmp_path / "out" / "as it is"))
    assert os.readlink(tmp_path / "out" / "as it is") == "/etc/motd"
    copy_out(tree, "/", str(tmp_path / "whole"))
    assert everything(tmp_path / "whole") == everything(guest)


def test_stretches_of_zeros_become_holes(guest: Path, tmp_path: Path) -> None:
    with (guest / "sparse").open("wb") as file:
        file.truncate(5 * CHUNK_BYTES)
        file.seek(2 * CHUNK_BYTES + 17)
        file.write(b"here")
    copied = copy_out(tree_of(guest), "/sparse", str(tmp_path / "out"))
    made = tmp_path / "out" / "sparse"
    assert made.read_bytes() == (guest / "sparse").read_bytes()
    assert copied.size_bytes == made.stat().st_size
    assert made.stat().st_blocks * 512 <= 2 * CHUNK_BYTES


# ---- what is hostile ----


def test_names_that_are_no_text_arrive_byte_for_byte(guest: Path, tmp_path: Path) -> None:
    names = [b"\xff\xfe", b"a\nb", b"\x1b[31m", b"-rf", b"caf\xc3\xa9", b" ", b"a\\x41"]
    for name in names:
        (guest / "etc" / os.fsdecode(name)).write_bytes(name)
    copy_out(tree_of(guest), "/etc", str(tmp_path / "out"))
    for name in names:
        assert (tmp_path / "out" / "etc" / os.fsdecode(name)).read_bytes() == name


def test_what_is_no_file_directory_or_link_is_left_out_and_named(
    guest: Path, tmp_path: Path
) -> None:
    os.mkfifo(guest / "etc" / "pipe\x1b")
    copied = copy_out(tree_of(guest), "/etc", str(tmp_path / "out"))
    assert copied.skipped == [("/etc/pipe\\x1b", "it is a device, a pipe or a socket")]
    assert not (tmp_path / "out" / "etc" / "pipe\x1b").exists()
    with pytest.raises(GuestError, match="pipe"):
        copy_out(tree_of(guest), "/etc/pipe\x1b", str(tmp_path / "out"))


def test_nothing_is_overwritten_nor_written_through_a_link_that_is_there(
    guest: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "motd").write_bytes(b"precious")
    out = tmp_path / "out"
    os.symlink(tmp_path / "precious", out / "etc")
    os.symlink(tmp_path / "precious" / "motd", out / "motd")
    for path in ("/etc", "/etc/motd"):
        with pytest.raises(ExistsError):
            copy_out(tree_of(guest), path, str(out))
    os.symlink(tmp_path / "precious" / "new", out / "dangling")
    with pytest.raises(ExistsError):
        copy_out(tree_of(guest), "/etc/motd", str(out / "dangling"))
    assert everything(tmp_path / "precious") == {"motd": b"precious"}


class Hostile:
    """A file system that lists whatever it likes."""

    mode, writable = "files", False
    volume = Volume("hostile", (), 0, "ext4")

    def __init__(self, names: dict[str, str], target: str = "/etc/passwd") -> None:
        self._names = names
        self._target = target

    def _stat(self, kind: str) -> Stat:
        return Stat(kind, 0o7777, 0, 0, 1 << 62, 1 << 80, 1, self._target)  # type: ignore[arg-type]

    def lstat(self, path: str) -> Stat:
        kind = self._names.get(path.rpartition("/")[2], "directory")
        return self._stat(kind if path else "directory")

    def list(self, path: str) -> dict[str, Stat]:
        return {name: self._stat(kind) for name, kind in self._names.items()}

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        if path.endswith("broken"):
            raise GuestError("the driver died", "")
        return b"short" if offset == 0 else b""

    def close(self) -> None: ...


def hostile(names: dict[str, str], target: str = "/etc/passwd") -> GuestTree:
    return GuestTree({"/": Hostile(names, target)})  # type: ignore[dict-item]


def test_names_that_lead_out_of_their_directory_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    names = dict.fromkeys(
        ["../up", "..", ".", "", "a/b", "/abs", "nul\0", "x" * 300], "file"
    ) | {"good": "file"}
    copied = copy_out(hostile(names), "/", str(tmp_path / "out" / "made"))
    assert everything(tmp_path / "out") == {"made": stat.S_IFDIR, "made/good": b"short"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert copied.skipped_count == len(names) - 1


def test_what_cannot_be_read_is_named_and_the_rest_arrives(tmp_path: Path) -> None:
    names = {"broken": "file", "good": "file", "l": "link"}
    copied = copy_out(hostile(names, "a\0b"), "/", str(tmp_path / "made"))
    assert everything(tmp_path / "made") == {"good": b"short"}
    assert [path for path, _ in copied.skipped] == ["/broken", "/l"]
    assert "driver died" in copied.skipped[0][1]


def test_a_directory_that_contains_itself_comes_to_an_end(tmp_path: Path) -> None:
    copied = copy_out(hostile({"d": "directory"}), "/", str(tmp_path / "made"))
    assert copied.directories == DEPTH_MAX + 1
    assert copied.skipped_count == 1


# ---- what is refused ----


def test_what_is_not_there_is_said_so(guest: Path, tmp_path: Path) -> None:
    tree = tree_of(guest)
    with pytest.raises(NotFoundError, match="/none"):
        copy_out(tree, "/none", str(tmp_path / "out"))
    with pytest.raises(NotFoundError, match="nowhere"):
        copy_out(tree, "/etc/motd", str(tmp_path / "nowhere" / "x"))
    with pytest.raises(PathError):
        copy_out(tree, "etc/motd", str(tmp_path / "out"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        copy_out(tree, "/etc/motd", str(tmp_path / "file" / "x"))
