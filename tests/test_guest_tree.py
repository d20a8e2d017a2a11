"""A guest's tree: links resolved in the guest's namespace, nothing of the host reached."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollpoint.access.local import LocalFileSystem
from rollpoint.access.tree import GuestTree, matches_name
from rollpoint.errors import Error, GuestError, NotFoundError, PathError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "guest"
    (made / "etc").mkdir(parents=True)
    (made / "etc/fstab").write_text("one\n")
    return made


@pytest.fixture
def tree(root: Path) -> Iterator[GuestTree]:
    made = GuestTree({"/": LocalFileSystem(root)})
    yield made
    made.close()


def test_links_stay_in_the_guest(tree: GuestTree, root: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/secret").write_text("of the host")
    (root / "up").symlink_to("../../../../../../etc/fstab")
    (root / "absolute").symlink_to("/etc/fstab")
    (root / "away").symlink_to("../etc/secret")
    (root / "etc/self").symlink_to(".")
    assert tree.read("/up") == b"one\n"
    assert tree.read("/absolute") == b"one\n"
    assert tree.read("/etc/self/self/../etc/self/fstab") == b"one\n"
    assert tree.stat("/away") is None
    assert tree.real("/up") == "/etc/fstab"


def test_circles_and_long_chains_are_refused(tree: GuestTree, root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("/a")
    for number in range(41):
        (root / f"c{number}").symlink_to(f"c{number + 1}")
    (root / "c41").write_text("end")
    for path in ("/a", "/a/x", "/c0"):
        with pytest.raises(PathError, match="40 symbolic links"):
            tree.read(path)
    assert tree.read("/c1") == b"end"
    (root / "wide").symlink_to("/".join(["etc/.."] * 500))
    (root / "wider").symlink_to("/".join(["wide"] * 2 + ["wide"] * 20))
    with pytest.raises(PathError):
        tree.stat("/wider/wide/wide/wide/wide/wide/wide/wide")


def test_what_is_there_and_what_is_not(tree: GuestTree, root: Path) -> None:
    (root / "dangling").symlink_to("etc/none")
    assert tree.stat("/etc/none") is None
    assert tree.stat("/none/none") is None
    assert tree.stat("/etc/fstab/x") is None
    assert not tree.exists("/dangling")
    found = tree.stat("/dangling", follow=False)
    assert found is not None
    assert (found.kind, found.target) == ("link", "etc/none")
    with pytest.raises(NotFoundError):
        tree.read("/etc/none")
    with pytest.raises(NotFoundError):
        tree.replace("/none/file", b"")
    for path in ("etc/fstab", "", "/etc\0x"):
        with pytest.raises(PathError):
            tree.stat(path)


def test_changes_go_through_links_and_are_seen(tree: GuestTree, root: Path) -> None:
    (root / "link").symlink_to("/etc/fstab")
    (root / "etc/fstab").chmod(0o640)
    assert tree.stat("/link") is not None
    tree.replace("/link", b"twice as long\n")
    assert (root / "link").is_symlink()
    assert (root / "etc/fstab").read_text() == "twice as long\n"
    assert (root / "etc/fstab").stat().st_mode & 0o7777 == 0o640
    found = tree.stat("/link")
    assert found is not None
    assert found.size_bytes == 14
    tree.append("/link", b"more\n")
    tree.write("/link", b"T", 0)
    assert tree.read_text("/etc/fstab") == "Twice as long\nmore\n"
    assert tree.read_part("/etc/fstab", 6, 2) == b"as"
    assert tree.stat("/etc/new") is None
    tree.replace("/etc/new", b"x")
    assert (root / "etc/new").stat().st_mode & 0o7777 == 0o644
    assert tree.exists("/etc/new")
    tree.make_directories("/a/b/c")
    tree.make_directories("/a/b/c")
    tree.make_link("/a/b/l", "../..")
    assert tree.read("/a/b/l/etc/new") == b"x"
    tree.remove("/a/b/l")
    tree.remove("/link")
    assert tree.exists("/etc/fstab")
    assert not tree.exists("/a/b/l")
    assert not [name for name in os.listdir(root / "etc") if "rollpoint" in name]
    tree.sync()
    assert tree.space("/etc").bytes_free > 0


def test_what_was_listed_is_remembered_until_it_changes(tree: GuestTree, root: Path) -> None:
    assert list(tree.list("/etc")) == ["fstab"]
    (root / "etc/behind").write_text("the tree's back")
    assert list(tree.list("/etc")) == ["fstab"]
    tree.replace("/etc/fstab", b"longer than before")
    assert tree.list("/etc")["fstab"].size_bytes == 18
    tree.list("/etc").clear()
    tree.make_directories("/etc/a/b")
    assert sorted(tree.list("/etc")) == ["a", "behind", "fstab"]
    assert list(tree.list("/etc/a")) == ["b"]
    tree.remove("/etc/a/b")
    assert tree.list("/etc/a") == {}
    tree.make_link("/etc/a/l", "x")
    assert tree.list("/etc/a")["l"].target == "x"
    tree.make_link("/etc/a/l", "y")
    assert tree.list("/etc/a")["l"].target == "y"
    found = tree.stat("/etc/a/l", follow=False)
    assert found is not None
    assert found.target == "y"


def test_attributes_and_owner_stay(tree: GuestTree, root: Path) -> None:
    path = root / "etc/fstab"
    try:
        os.setxattr(path, "user.label", b"kept")
    except OSError:
        pytest.skip("no extended attributes on this file system")
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    path.chmod(0o4755)
    before = path.stat()
    tree.replace("/etc/fstab", b"two\n")
    after = path.stat()
    assert os.getxattr(path, "user.label") == b"kept"
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )


def test_a_new_file_and_directory_get_the_label_of_their_directory(tmp_path: Path) -> None:
    """An enforcing SELinux lets no service read a file without one."""
    label = b"system_u:object_r:etc_t:s0\0"
    try:
        os.setxattr(tmp_path, "security.selinux", label)
    except OSError as error:
        pytest.skip(f"labels cannot be set here: {error}")
    tree = GuestTree({"/": LocalFileSystem(tmp_path)})
    tree.make_directories("/a/b")
    tree.replace("/a/b/new", b"x")
    for name in ("a", "a/b", "a/b/new"):
        assert os.getxattr(tmp_path / name, "security.selinux") == label


def test_only_regular_files_are_opened(tree: GuestTree, root: Path) -> None:
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    for path in ("/fifo", "/socket", "/etc"):
        with pytest.raises(PathError):
            tree.read(path)
        with pytest.raises(PathError):
            tree.replace(path, b"")
        with pytest.raises(PathError):
            tree.write(path, b"", 0)
    with pytest.raises(PathError):
        tree.list("/fifo")
    with pytest.raises(PathError):
        tree.remove("/etc")  # not empty
    tree.remove("/fifo")


def test_a_file_system_follows_no_link_itself(root: Path) -> None:
    (root / "l").symlink_to("etc")
    (root / "f").symlink_to("etc/fstab")
    fs = LocalFileSystem(root)
    for path in ("l/fstab", "f", "/etc/fstab", "../guest/etc/fstab", "etc/../etc/fstab", "etc/"):
        with pytest.raises(PathError):
            fs.read(path)
    with pytest.raises(PathError):
        fs.replace("f", b"")
    with pytest.raises(PathError):
        fs.list("l")
    fs.close()
    fs.close()


def test_mounts_are_where_the_guest_has_them(tree: GuestTree, root: Path, tmp_path: Path) -> None:
    (root / "boot").mkdir()
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/kernel").write_text("k")
    (tmp_path / "boot/out").symlink_to("/etc/fstab")
    (root / "kernel").symlink_to("boot/kernel")
    tree.mount("/boot", LocalFileSystem(tmp_path / "boot"))
    assert tree.read("/kernel") == b"k"
    assert tree.read("/boot/out") == b"one\n"
    assert tree.resolve("/boot/../boot/kernel")[1] == "kernel"
    assert list(tree.mounts) == ["/", "/boot"]
    with pytest.raises(PathError):
        tree.remove("/boot")
    with pytest.raises(PathError):
        tree.mount("/boot", LocalFileSystem(tmp_path))
    tree.unmount("/boot").close()
    assert not tree.exists("/kernel")


def test_names_keep_their_bytes(tree: GuestTree, root: Path) -> None:
    (Path(os.fsdecode(bytes(root) + b"/caf\xe9"))).write_bytes(b"latin")
    assert "caf\udce9" in tree.list("/")
    assert tree.read("/caf\udce9") == b"latin"
    with pytest.raises(NotFoundError, match=r"\\udce8"):
        tree.read("/caf\udce8")
    with pytest.raises(PathError):
        tree.read("/caf\ud800")


def test_patterns(tree: GuestTree, root: Path) -> None:
    for version in ("6.1", "6.2"):
        (root / "usr/lib/modules" / version).mkdir(parents=True)
        (root / "usr/lib/modules" / version / "modules.dep").write_text("")
    (root / "lib").symlink_to("usr/lib")
    (root / "usr/lib/modules/loop").symlink_to("loop")
    (root / "usr/lib/modules/.hidden").mkdir()
    assert tree.glob("/lib/modules/*/modules.dep") == [
        "/lib/modules/6.1/modules.dep",
        "/lib/modules/6.2/modules.dep",
    ]
    assert tree.glob("/lib/modules/6.?") == ["/lib/modules/6.1", "/lib/modules/6.2"]
    assert tree.glob("/etc/f*b") == ["/etc/fstab"]
    assert tree.glob("/none/*") == []
    assert tree.any_case("/USR/Lib/MODULES/6.1") == "/usr/lib/modules/6.1"
    assert tree.any_case("/USR/no") is None
    assert not matches_name("a" * 5000, "*a" * 50 + "b")


def test_limits_are_kept(tree: GuestTree, root: Path) -> None:
    with open(root / "huge", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(GuestError, match="16777216"):
        tree.read("/huge")
    with pytest.raises(GuestError):
        tree.read("/huge", limit_bytes=1 << 60)
    assert tree.read_part("/huge", 1 << 39, 4) == b"\0\0\0\0"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    targets=st.lists(
        st.text(alphabet="./ab*\x1b", min_size=1, max_size=12).filter(lambda t: t.strip()),
        min_size=2,
        max_size=2,
    ),
    path=st.text(alphabet="/.ab", max_size=12),
)
def test_whatever_links_say_only_errors_of_ours_come_out(
    tmp_path_factory: pytest.TempPathFactory, targets: list[str], path: str
) -> None:
    root = tmp_path_factory.mktemp("hostile") / "in" / "guest"
    root.mkdir(parents=True)
    (root / "a").symlink_to(targets[0])
    (root / "b").symlink_to(targets[1])
    fs = LocalFileSystem(root)
    tree = GuestTree({"/": fs})
    for call in (tree.stat, tree.read, tree.list, lambda p: tree.replace(p, b"x")):
        with contextlib.suppress(Error):
            call("/" + path)
    tree.close()
    assert os.listdir(root.parent) == ["guest"]
    assert os.listdir(root.parent.parent) == ["in"]
