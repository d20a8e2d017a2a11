"""Descriptors from strangers open no file outside their directory.

Two watches at once: every open goes through a stand-in for Io that writes it
down, and the kernel (inotify) tells of every access to the files around the
directory, whoever opens them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rollpoint import disk as disks
from rollpoint._native import OPEN_BENEATH, OPEN_READ, Io
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import Error

HEAD = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\n'
CHILD = HEAD.replace("ffffffff", "00000007")
ABOVE_BASE = CHILD + 'parentFileNameHint="base.vmdk"\n'


class Case(NamedTuple):
    """A descriptor: its text, in which {up} is the directory above."""

    id: str
    text: str | bytes


def extent(id: str, name: str, line: str = 'RW 1 FLAT "{}" 0') -> Case:
    return Case(f"extent-{id}", HEAD + line.format(name) + "\n")


def header(id: str, old: str, new: str) -> Case:
    whole = HEAD + 'RW 1 FLAT "good" 0\n'
    assert old in whole
    return Case(id, whole.replace(old, new))


def parent(id: str, hint: str, more: str = "") -> Case:
    text = CHILD + f'parentFileNameHint="{hint}"\n{more}RW 1 FLAT "good" 0\n'
    return Case(f"parent-{id}", text)


OUTSIDE = {
    "absolute": "/etc/passwd",
    "absolute-secret": "{up}/secret",
    "two-slashes": "//etc/passwd",
    "environ": "/proc/self/environ",
    "fd": "/proc/self/fd/0",
    "fd-of-the-directory": "/proc/self/cwd/secret",
    "root-link": "/proc/self/root/etc/passwd",
    "device": "/dev/sda",
    "zeros": "/dev/zero",
    "standard-input": "/dev/stdin",
    "above": "../secret",
    "above-and-back": "../jail/../secret",
    "dot-above": "./../secret",
    "through-a-folder": "folder/../../secret",
    "through-nothing": "nothing/../../secret",
    "three-dots": "folder/.../secret",
    "only-above": "..",
    "only-here": ".",
    "above-with-slash": "../",
    "into-a-folder": "folder/inner",
    "here-by-a-path": "./good",
    "windows-above": "..\\\\secret".replace("\\\\", "\\"),
    "windows-drive": "C:\\secret",
    "windows-share": "\\\\server\\share\\secret",
    "windows-device": "\\\\.\\PhysicalDrive0",
    "windows-mixed": "folder\\../..\\secret",
    "home": "~/secret",
    "variable": "$HOME/secret",
    "url": "file://{up}/secret",
    "web": "https://localhost/secret",
    "datastore": "[datastore1] vm/secret",
    "vsan": "vsan://5c5d0000/secret",
    "vvol": "vvol://5c5d0000/secret",
    "pool": "json:{driver:raw}",
    "percent": "%2e%2e%2fsecret",
    "full-width": "．．／secret",
    "division-slash": "..∕secret",
    "two-dot-leader": "‥/secret",
    "zero-width": "\u200b../secret",
    "turned-around": "dmv.\u202eterces",
    "isolate": "good\u2066",
    "line-separator": "good\u2028",
    "terminal": "good\x1b[2K\x1b[1Gharmless",
    "delete": "good\x7f",
    "c1-control": "good\x9b2J",
    "tab": "\t../secret",
    "blank-before": " good",
    "blank-behind": "good ",
    "long": "n" * 256,
    "long-way": "../" * 2000 + "etc/passwd",
    "link": "link",
    "link-absolute": "link-absolute",
    "link-proc": "link-proc",
    "link-inside": "link-inside",
    "link-loop": "link-loop",
    "link-nowhere": "link-nowhere",
    "link-to-a-folder": "link-folder",
    "fifo": "fifo",
    "socket": "socket",
    "folder": "folder",
    "itself": "evil.vmdk",
    "itself-by-another-name": "evil-too.vmdk",
    "missing": "missing",
    "too-short": "empty",
}  # fmt: skip
CASES = [
    *(extent(id, name) for id, name in OUTSIDE.items()),
    *(
        extent(f"{type.lower()}-{name.strip('./')}", name, f'RW 1 {type} "{{}}"')
        for type in ("VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE", "VMFSRDM", "VMFSRAW")
        for name in ("../secret", "evil.vmdk", "link", "/dev/sda")
    ),
    extent("two-files", "good", 'RW 1 FLAT "{}" 0 "../secret"'),
    extent("nested-quotes", '"../secret"'),
    extent("escaped-quote", 'good\\"../secret'),
    extent("no-quotes", "../secret", "RW 1 FLAT {} 0"),
    extent("single-quotes", "../secret", "RW 1 FLAT '{}' 0"),
    extent("unclosed", "good", 'RW 1 FLAT "{}'),
    extent("typographic-quotes", "good", "RW 1 FLAT “{}” 0"),
    extent("second-line", 'good" 0\nRW 1 FLAT "../secret'),
    extent("lone-return", 'good" 0\rRW 1 FLAT "../secret'),
    extent("partition", "good", 'RW 1 FLAT "{}" 0 5d2c-uuid /dev/sda'),
    extent("no-sectors", "good", 'RW 0 FLAT "{}" 0'),
    extent("minus", "good", 'RW -1 FLAT "{}" 0'),
    extent("minus-offset", "good", 'RW 1 FLAT "{}" -1'),
    extent("plus", "good", 'RW +1 FLAT "{}" 0'),
    extent("hex", "good", 'RW 0x1 FLAT "{}" 0'),
    extent("exponent", "good", 'RW 1e0 FLAT "{}" 0'),
    extent("underscore", "good", 'RW 1_0 FLAT "{}" 0'),
    extent("other-digits", "good", 'RW ١ FLAT "{}" 0'),
    extent("2^63", "good", 'RW 9223372036854775808 FLAT "{}" 0'),
    extent("2^64-and-one", "good", 'RW 18446744073709551617 FLAT "{}" 0'),
    extent("2^55", "good", 'RW 36028797018963968 FLAT "{}" 0'),
    extent("all-digits", "good", "RW " + "9" * 4000 + ' FLAT "{}" 0'),
    extent("offset-wraps", "good", 'RW 1 FLAT "{}" 36028797018963967'),
    extent("sum-wraps", "good", 'RW 18014398509481983 ZERO\nRW 1 FLAT "{}" 0'),
    extent("past-the-end", "good", 'RW 1 FLAT "{}" 1'),
    extent("twice", "good", 'RW 1 FLAT "{0}" 0\nRW 1 FLAT "{0}" 0'),
    extent("access", "good", 'RW;../secret 1 FLAT "{}" 0'),
    extent("type", "good", 'RW 1 ../secret "{}" 0'),
    extent("include", "../secret", 'INCLUDE "{}"'),
    header("cid-twice", "CID=1\n", "CID=1\nCID=2\n"),
    header("cid-long", "CID=1\n", "CID=" + "f" * 5000 + "\n"),
    header("version-4", "version=1", "version=4"),
    header("version-huge", "version=1", "version=" + "9" * 5000),
    header("type-twice", "createType", 'createType="vmfs"\ncreateType'),
    header("type-is-a-path", '"custom"', '"../secret"'),
    header("full-device", '"custom"', '"fullDevice"'),
    header("mapped-device", '"custom"', '"vmfsRDM"'),
    header("encrypted", "CID=1\n", 'CID=1\nencryptionKeys="vmware:key/list/../secret"\n'),
    header("crypt-filter", "CID=1\n", 'CID=1\nddb.iofilters="vmwarevmcrypt"\n'),
    header("tracking-unclosed", "CID=1\n", 'CID=1\nchangeTrackPath="../secret\n'),
    *(
        header(f"encoding-{name}", "CID=1\n", f'CID=1\nencoding="{name}"\n')
        for name in ("utf-7", "utf-16", "unicode_escape", "rot13", "zip", "../secret", "idna")
    ),
    header("zero-byte", '"good" 0', '"good\0/../../secret" 0'),
    Case("not-in-the-encoding", (HEAD + 'RW 1 FLAT "').encode() + b'\xc0\xae\xc0\xae/secret" 0\n'),
    Case("no-extent", HEAD),
    Case("a-megabyte", HEAD + "#" * (1 << 20) + '\nRW 1 FLAT "good" 0\n'),
    Case("many-extents", HEAD + 'RW 1 FLAT "good" 0\n' * 50_000),
    parent("above", "../secret.vmdk"),
    parent("absolute", "{up}/secret.vmdk"),
    parent("above-and-back", "../jail/../secret.vmdk"),
    parent("windows-above", "..\\secret.vmdk"),
    parent("windows-drive", "C:\\vm\\secret.vmdk"),
    parent("esxi", "/vmfs/volumes/5c5d/vm/secret.vmdk"),
    parent("fd", "/proc/self/fd/0"),
    parent("device", "/dev/zero"),
    parent("link", "link-parent"),
    parent("link-by-a-path", "/vm/link-parent"),
    parent("fifo", "fifo"),
    parent("fifo-by-a-path", "../vm/fifo"),
    parent("folder", "folder"),
    parent("flat-file", "good"),
    parent("itself", "evil.vmdk"),
    parent("itself-by-a-path", "/vmfs/volumes/5c5d/base/evil.vmdk"),
    parent("itself-by-another-name", "evil-too.vmdk"),
    parent("empty", ""),
    parent("missing", "missing.vmdk"),
    parent("that-reaches-out", "inner.vmdk"),
    parent("of-another-size", "large.vmdk"),
    parent("of-another-content", "other.vmdk"),
    parent("of-another-content-by-a-path", "/vm/other.vmdk"),
    parent("turned-around", "kdmv.\u202erehto"),
    parent("twice", "base.vmdk", 'parentFileNameHint="../secret.vmdk"\n'),
    Case("parent-without-a-hint", CHILD + 'RW 1 FLAT "good" 0\n'),
    Case("hint-without-a-parent", HEAD + 'parentFileNameHint="../secret.vmdk"\nRW 1 ZERO\n'),
    Case("extent-is-the-parent", ABOVE_BASE + 'RW 1 FLAT "base.vmdk" 0\n'),
    Case("extent-of-the-parent", ABOVE_BASE + 'RW 1 FLAT "base-flat" 0\n'),
]  # fmt: skip

# Named, and never opened: the disk itself is fine.
HARMLESS = [
    header("tracking", "CID=1\n", 'CID=1\nchangeTrackPath="../secret"\n'),
    header("sidecars", "CID=1\n", 'CID=1\nddb.sidecars = "../secret;{up}/secret"\n'),
    header("object-parent", "CID=1\n", 'CID=1\nddb.objectParentUri = "file://{up}/secret"\n'),
    header("native-parent", "CID=1\n", 'CID=1\nddb.nativeParentHint = "../secret.vmdk"\n'),
    header("unknown-key", "CID=1\n", 'CID=1\nsnapshotPath="../secret"\n'),
    header("comment", "CID=1\n", '# RW 1 FLAT "../secret" 0\nCID=1\n'),
    header("no-access", "RW 1 F", 'NOACCESS 1 FLAT "../secret" 0\nRW 1 F'),
    parent("beside-by-a-path", "../secret/../base.vmdk"),
    parent("beside-windows", "D:\\vm\\base.vmdk"),
]


class WatchedIo:
    """Stands in for Io, and writes down what is opened in which directory."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, str, int]] = []
        self._inner = Io.posix()

    def open_dir(self, path: str) -> Any:
        return WatchedDir(self, self._inner.open_dir(path))


class WatchedDir:
    """Stands in for a Dir."""

    def __init__(self, io: WatchedIo, inner: Any) -> None:
        self.io, self._inner = io, inner

    def open(self, name: str, flags: int = OPEN_READ, mode: int = 0o600) -> Any:
        self.io.opened.append((os.path.realpath(self._inner.path), name, flags))
        return self._inner.open(name, flags, mode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


IN_ACCESS, IN_MODIFY, IN_OPEN = 0x1, 0x2, 0x20


class Canaries:
    """Files that the kernel tells about: any access to one is seen."""

    def __init__(self, paths: list[Path]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0
        self._names = {}
        for path in paths:
            watch = libc.inotify_add_watch(
                self._fd, os.fsencode(path), IN_ACCESS | IN_MODIFY | IN_OPEN
            )
            assert watch >= 0
            self._names[watch] = path

    def seen(self) -> list[str]:
        found: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, 65536):
                at = 0
                while at < len(data):
                    watch, mask, _, length = struct.unpack_from("iIII", data, at)
                    found.append(f"{self._names[watch].name} mask {mask:#x}")
                    at += 16 + length
        return found

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture(scope="module")
def jail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Canaries]]:
    """A directory full of traps, and secrets around it that no descriptor in it may reach."""
    up = tmp_path_factory.mktemp("world")
    (up / "secret").write_bytes(b"s" * 4096)
    create_disk(str(up / "secret.vmdk"), "monolithicFlat", 512)
    text = (up / "secret.vmdk").read_text()
    cid = disks.info(up / "secret.vmdk")["cid"]
    (up / "secret.vmdk").write_text(text.replace(f"CID={cid}", "CID=00000007"))
    jail = up / "jail"
    jail.mkdir()
    (jail / "good").write_bytes(b"g" * 512)
    (jail / "empty").write_bytes(b"")
    (jail / "folder").mkdir()
    (jail / "folder" / "inner").write_bytes(b"i" * 512)
    for name, target in (
        ("link", "../secret"),
        ("link-absolute", "/etc/passwd"),
        ("link-proc", "/proc/self/environ"),
        ("link-inside", "good"),
        ("link-loop", "link-loop"),
        ("link-nowhere", "nowhere"),
        ("link-folder", "folder"),
        ("link-parent", "../secret.vmdk"),
    ):
        (jail / name).symlink_to(target)
    os.mkfifo(jail / "fifo")
    where = os.getcwd()
    os.chdir(jail)  # a socket's path has little room
    try:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("socket")
    finally:
        os.chdir(where)
    (jail / "base-flat").write_bytes(b"b" * 512)
    (jail / "base.vmdk").write_text(HEAD.replace("CID=1\n", "CID=7\n") + 'RW 1 VMFS "base-flat"\n')
    (jail / "other.vmdk").write_text(HEAD + 'RW 1 VMFS "base-flat"\n')
    (jail / "large.vmdk").write_text(HEAD.replace("CID=1\n", "CID=7\n") + "RW 2 ZERO\n")
    inner = HEAD.replace("CID=1\n", "CID=7\n") + 'RW 1 FLAT "../secret" 0\n'
    (jail / "inner.vmdk").write_text(inner)
    canaries = Canaries([up / "secret", up / "secret.vmdk", up / "secret-flat.vmdk"])
    yield jail, canaries
    canaries.close()
    listener.close()


def plant(jail: Path, case: Case) -> Path:
    path = jail / "evil.vmdk"
    for name in ("evil.vmdk", "evil-too.vmdk"):
        (jail / name).unlink(missing_ok=True)
    text = case.text
    if isinstance(text, str):
        text = text.replace("{up}", str(jail.parent)).encode()
    path.write_bytes(text)
    (jail / "evil-too.vmdk").hardlink_to(path)
    return path


WAYS: list[Callable[[Path, Any], object]] = [
    lambda path, io: open_disk(path, io=io),
    lambda path, io: open_disk(path, io=io, writable=True),
]


def require_inside(jail: Path, io: WatchedIo, canaries: Canaries) -> None:
    """Only plain names in the directory were opened, and those of descriptors beneath it."""
    for folder, name, flags in io.opened:
        assert folder == str(jail), (folder, name)
        assert "/" not in name
        assert name == "evil.vmdk" or flags & OPEN_BENEATH, name
    assert canaries.seen() == []


def test_there_are_a_hundred() -> None:
    assert len({case.text for case in CASES}) >= 100
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_it_is_refused_and_nothing_outside_is_opened(
    case: Case, jail: tuple[Path, Canaries]
) -> None:
    folder, canaries = jail
    path = plant(folder, case)
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.name in KEPT}
    canaries.seen()
    for way in WAYS:
        io = WatchedIo()
        with pytest.raises(Error) as caught:
            way(path, io)
        assert io.opened, "the descriptor itself was opened"
        require_inside(folder, io, canaries)
        assert len(caught.value.message) < 1000
        assert caught.value.hint
    for look in (disks.info, disks.check):
        io = WatchedIo()
        with contextlib.suppress(Error):  # they describe a chain that does not fit together
            look(path, io=io)  # type: ignore[arg-type]
        require_inside(folder, io, canaries)
    assert before == {
        file.name: file.read_bytes() for file in folder.iterdir() if file.name in KEPT
    }


KEPT = ("evil.vmdk", "good", "base-flat", "base.vmdk", "inner.vmdk")


@pytest.mark.parametrize("case", HARMLESS, ids=lambda case: case.id)
def test_what_is_only_named_is_not_opened(case: Case, jail: tuple[Path, Canaries]) -> None:
    folder, canaries = jail
    path = plant(folder, case)
    canaries.seen()
    io = WatchedIo()
    with open_disk(path, io=io) as disk:  # type: ignore[arg-type]
        with contextlib.suppress(Error):  # NOACCESS
            disk.pread(disk.size_bytes, 0)
        disk.info()
    require_inside(folder, io, canaries)


def test_the_watches_see_what_they_should(jail: tuple[Path, Canaries]) -> None:
    """An opening outside is seen by both, or the other tests prove nothing."""
    folder, canaries = jail
    canaries.seen()
    path = plant(folder, extent("above", "../secret", 'RW 8 FLAT "{}" 0'))
    io = WatchedIo()
    with open_disk(path, io=io, allow_root=str(folder.parent)) as disk:  # type: ignore[arg-type]
        assert disk.pread(1, 0) == b"s"
    assert any("secret" in line for line in canaries.seen())
    with pytest.raises(AssertionError):
        require_inside(folder, io, canaries)
