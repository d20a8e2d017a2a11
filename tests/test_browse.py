"""Looking into restore points and disks: files are listed, printed and copied; nothing changes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_volumes import make_volume
from guests import tiny
from guests.shelf import Shelf
from replicas import digest
from rollpoint import browse as browsing
from rollpoint import cli, operation
from rollpoint.access.base import FileSystem
from rollpoint.access.files import Files
from rollpoint.access.local import LocalFileSystem
from rollpoint.browse import Browser
from rollpoint.cli.output import print_table
from rollpoint.cli.shell import join, unescaped
from rollpoint.disk import open_disk
from rollpoint.errors import GuestError, NotFoundError, UnsupportedError
from rollpoint.manifest import Running
from rollpoint.replica import Replica
from rollpoint.view import view
from rollpoint.volumes.base import Volume
from tools import require_tool


class Directory:
    """A way in that shows a directory of this host as every volume's files."""

    def __init__(self, root: Path, refuse_writable: bool = False) -> None:
        self._root = root
        self._refuse = refuse_writable
        self.opened: list[tuple[str, bool]] = []
        self.closed = False

    def open(self, volume: Volume, *, writable: bool, subvolume: str = "") -> FileSystem:
        self.opened.append((volume.name, writable))
        if volume.kind not in ("ext2", "ext4", "vfat"):
            raise UnsupportedError(f"no {volume.kind}", "")
        if writable and self._refuse:
            raise GuestError("it hibernates", "")
        return LocalFileSystem(self._root, volume=volume, writable=writable)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """The files of a small Linux."""
    root = tmp_path / "guest"
    (root / "etc").mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "etc" / "os-release").write_text('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="A Debian"\n')
    (root / "etc" / "fstab").write_text("LABEL=root / ext4 defaults 0 1\n")
    (root / "etc" / "motd").write_bytes(b"welcome\xff\n")
    (root / "etc" / "evil\x1b]0;x\x07").write_bytes(b"")
    os.symlink("/etc/motd", root / "etc" / "link")
    for name in ("init", "sh"):
        (root / "bin" / name).write_bytes(b"")
    return root


@pytest.fixture
def image(tmp_path: Path, guest: Path) -> Path:
    """The same files in a file system on a disk without partitions."""
    path = tmp_path / "disk.img"
    make_volume(path, "ext4", "-L", "root", "-d", str(guest))
    return path


@pytest.fixture
def ways(guest: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Directory]:
    """The command line takes this way in."""
    made = Directory(guest)
    monkeypatch.setattr(browsing, "ways_in", lambda *_: lambda *_: made)
    yield made
    assert made.closed


@pytest.fixture
def replica(tmp_path: Path, image: Path) -> Path:
    """A replica whose disk has the image at point 1, and garbage at point 2."""
    path = tmp_path / "r"
    data = image.read_bytes()
    with (
        Replica.create(path, [("system", len(data))]) as made,
        made.locked(),
        made.journals(writable=True, with_bases=True) as journals,
    ):
        disk = journals.natives[0].disk()
        for at in range(0, len(data), 1 << 20):
            if piece := data[at : at + (1 << 20)].rstrip(b"\0"):
                disk.pwrite(piece, at)
        journals.mark("crash")
        disk.pwrite(b"\xaa" * (1 << 20), 0)
        journals.mark("crash")
    return path


def run(*words: object, code: int = 0, feed: str = "") -> tuple[str, str]:
    """The command line in this process; what it printed."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape"), io.StringIO()
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(feed), out, err
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
    assert int(ended.value.code or 0) == code, err.getvalue()
    out.flush()
    return out.buffer.getvalue().decode("utf-8", "surrogateescape"), err.getvalue()


# ---- the library ----


def test_a_system_is_found_and_shown_as_it_mounts_its_disks(image: Path, guest: Path) -> None:
    ways = Directory(guest)
    with open_disk(image, format="raw") as disk, Browser({"a": disk}, lambda *_: ways) as browser:
        assert [(volume.name, volume.kind) for volume in browser.volumes] == [("a", "ext4")]
        assert ways.opened == []  # nothing is opened before it is asked for
        assert sorted(browser.list("/etc")) == sorted(os.listdir(guest / "etc"))
        assert browser.guest is not None
        assert browser.guest.distribution == "debian"
        assert browser.read("/etc/link") == b"welcome\xff\n"
        assert ways.opened == [("a", True)]
        assert list(browser.list("/etc/motd")) == ["motd"]
        with pytest.raises(NotFoundError):
            browser.list("/none")
    assert ways.closed


def test_where_no_system_is_a_single_volume_is_shown_and_of_several_one_must_be_named(
    tmp_path: Path, image: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(b"data")
    ways = Directory(tmp_path / "data")
    with open_disk(image, format="raw") as disk:
        with Browser({"a": disk}, lambda *_: ways) as browser:
            assert browser.read("/file") == b"data"
            assert browser.guest is None
            assert "no operating system" in browser.notes[0]
        with Browser({"a": disk, "b": disk}, lambda *_: ways) as browser:
            with pytest.raises(GuestError) as caught:
                browser.list("/")
            assert "--volume: a, b" in caught.value.hint
        with Browser({"a": disk, "b": disk}, lambda *_: ways, volume="b") as browser:
            assert browser.read("/file") == b"data"
        with pytest.raises(NotFoundError, match="'c'"):
            Browser({"a": disk}, lambda *_: ways, volume="c")


def test_what_cannot_be_made_whole_is_shown_as_it_lies(image: Path, guest: Path) -> None:
    ways = Directory(guest, refuse_writable=True)
    with open_disk(image, format="raw") as disk, Browser({"a": disk}, lambda *_: ways) as browser:
        assert browser.read("/etc/motd") == b"welcome\xff\n"
        assert "as it lies: it hibernates" in browser.notes[0]


def test_a_restore_point_is_looked_into_through_a_real_file_system(
    replica: Path, guest: Path, tmp_path: Path
) -> None:
    for name in ("bwrap", "nbdfuse", "e2fsck", "fuse2fs"):
        require_tool(name)
    files = sorted(path for path in replica.iterdir() if path.suffix == ".vmdk")
    before = [digest(path) for path in files]
    with (
        Replica.open(replica) as opened,
        view(opened, "1") as shown,
        Browser(shown.disks, lambda socket, *_: Files(socket)) as browser,
    ):
        assert browser.read("/etc/link") == b"welcome\xff\n"
        copied = browser.copy_out("/etc", str(tmp_path / "etc"))
        assert (tmp_path / "etc" / "motd").read_bytes() == b"welcome\xff\n"
        assert (copied.files, copied.links) == (4, 1)
    assert [digest(path) for path in files] == before


def test_what_a_crash_cut_off_is_shown_as_the_guest_would_find_it(guests: Shelf) -> None:
    """A transaction that lies in the journal alone has happened."""
    for name in ("bwrap", "nbdfuse", "e2fsck", "fuse2fs"):
        require_tool(name)
    disk = guests.disk("plain")
    before = digest(disk)
    with (
        open_disk(disk, format="raw") as opened,
        Browser({"system": opened}, lambda socket, *_: Files(socket)) as browser,
    ):
        assert browser.read("/var/log/counter") == f"{tiny.BOOTS_REPLAYED}\n".encode()
        assert browser.guest is not None
        assert browser.guest.kernels
    assert digest(disk) == before


# ---- the command line ----


def test_the_command_line_lists_prints_and_copies(
    replica: Path, ways: Directory, tmp_path: Path
) -> None:
    out, _ = run("replica", "browse", replica, "--at", "1", "--list", "/etc", "--json")
    answer = json.loads(out)
    assert (answer["point"], answer["path"]) == (1, "/etc")
    rows = {row["name"]: row for row in answer["entries"]}
    assert rows["link"]["target"] == "/etc/motd"
    assert rows["motd"]["size_bytes"] == 9
    out, _ = run("replica", "browse", replica, "--at", "1", "--cat", "/etc/motd")
    assert out == "welcome\udcff\n"
    out, _ = run(
        "replica", "browse", replica, "--at", "1", "--get", "/etc/motd", tmp_path / "x", "--json"
    )
    assert json.loads(out)["files"] == 1
    assert (tmp_path / "x").read_bytes() == b"welcome\xff\n"
    out, _ = run("replica", "browse", replica, "--at", "1", "--json")
    answer = json.loads(out)
    assert (answer["guest"]["name"], answer["volumes"][0]["label"]) == ("A Debian", "root")


def test_no_name_of_a_guest_reaches_the_terminal_as_it_is(replica: Path, ways: Directory) -> None:
    out, err = run("replica", "browse", replica, "--at", "1", "--list", "/etc")
    assert "\x1b" not in out + err
    assert "evil\\x1b]0;x\\x07" in out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_name_of_a_guest_is_taken_for_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    print_table(("name",), [["[link=http://x][red]a[/red][/link]"], ["[/]"]])
    assert "[link=http://x][red]a[/red][/link]" in terminal.getvalue()
    assert "\x1b]8" not in terminal.getvalue()


def test_lines_of_a_pipe_are_commands_and_the_first_error_ends_it(
    replica: Path, ways: Directory, tmp_path: Path
) -> None:
    feed = f"cd etc\npwd\ncat ../etc/./motd\nget 'evil\\x1b]0;x\\x07' {tmp_path}/got\nexit\nls\n"
    out, err = run("replica", "browse", replica, "--at", "1", feed=feed)
    assert out.splitlines()[:2] == ["/etc", "welcome\udcff"], err
    assert (tmp_path / "got").exists()
    out, err = run("replica", "browse", replica, "--at", "1", feed="pwd\ncat none\npwd\n", code=1)
    assert out == "/\n"
    assert "/none" in err
    _, err = run("replica", "browse", replica, "--at", "1", feed="rm -rf /\n", code=2)
    assert "'rm'" in err


def test_a_disk_of_a_replica_is_shown_as_of_a_point_and_any_other_as_it_is(
    replica: Path, image: Path, ways: Directory
) -> None:
    for name in ("system.vmdk", "system-journal.vmdk"):
        out, _ = run("disk", "mount", replica / name, "--at", "1", "--list", "/", "--json")
        assert (json.loads(out)["disk"], json.loads(out)["point"]) == ("system", 1)
    out, _ = run("disk", "mount", image, "--format", "raw", "--json")
    assert json.loads(out)["volumes"][0]["kind"] == "ext4"
    subprocess.run(
        [require_tool("qemu-img"), "convert", "-O", "vmdk", image, image.with_suffix(".vmdk")],
        check=True,
    )
    out, _ = run("disk", "mount", image.with_suffix(".vmdk"), "--cat", "/etc/motd")
    assert out == "welcome\udcff\n"
    _, err = run("disk", "mount", image.with_suffix(".vmdk"), "--at", "1", code=1)
    assert "no disk of a replica" in err


def test_an_overlay_is_shown_unless_a_machine_runs_from_it(
    replica: Path, ways: Directory
) -> None:
    with Replica.open(replica) as opened:
        operation.failover(opened, "1", power_on=False, convert=False)
        place = replica / "system-interim.vmdk"
        out, _ = run("disk", "mount", place, "--cat", "/etc/motd")
        assert out == "welcome\udcff\n"
        with opened.locked() as manifest:
            assert manifest.recovered is not None
            manifest.recovered.running = Running(hypervisor="qemu", machine="m", started="now")
            opened.save()
    _, err = run("disk", "mount", place, "--cat", "/etc/motd", code=1)
    assert "a machine runs from system-interim.vmdk" in err


def test_the_way_that_serves_is_found_without_being_named(image: Path) -> None:
    for name in ("bwrap", "nbdfuse", "e2fsck", "fuse2fs"):
        require_tool(name)
    before = digest(image)
    out, err = run("disk", "mount", image, "--format", "raw", "--cat", "/etc/motd")
    assert (out, err) == ("welcome\udcff\n", "")
    assert digest(image) == before


def test_what_makes_no_sense_is_refused(replica: Path) -> None:
    run("replica", "browse", replica, "--mode", "magic", "--list", "/", code=2)
    run("replica", "browse", replica, "--at", "7", "--list", "/", code=1)
    _, err = run("replica", "browse", replica, "--list", "/", "--cat", "/x", code=2)
    assert "one of" in err


@pytest.mark.parametrize(
    ("here", "text", "path"),
    [
        ("/", "a", "/a"),
        ("/a/b", "..", "/a"),
        ("/a", "../../..", "/"),
        ("/a", "/x//./y/", "/x/y"),
        ("/a", "", "/a"),
    ],
)
def test_paths_are_joined_as_they_are_written(here: str, text: str, path: str) -> None:
    assert join(here, text) == path


def test_a_name_is_typed_as_it_is_printed() -> None:
    assert unescaped(r"a\x1bb\udcff\n\q") == "a\x1bb\udcff\n\\q"
