"""Drivers for a guest's initramfs, put behind its end as a further archive.

Linux unpacks any number of archives that follow each other in one initrd, whatever each is
compressed with; of two files with one name the later wins. So nothing of the old archive is
unpacked or made again, and nothing of the guest is run.

    | the guest's own initrd | zeros | newc archive: modules, index, load lists | tail |

Rules that boots have shown (each breaks the boot when it is not kept):
- An archive begins at a multiple of 4 bytes; behind lz4 there are at least 4 zeros.
- No entry for the directory "lib": it is a link to usr/lib in many, and would take its place.
  A file below it goes through the link.
- Files that are there are not written again, except the module index, which is the guest's
  own, complete one: entries for modules that are not there do no harm.

The load lists only add: a file in a directory of such files. initramfs-tools sources
conf/conf.d/*, dracut reads etc/cmdline.d/*.conf; udev loads by the index's aliases anyhow.

The tail is an archive of its own of 512 bytes, the file's last, and holds the digest of what
is before it: a second conversion finds it and changes nothing.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst; init/initramfs.c;
initramfs-tools' init; dracut's parse-kernel.sh.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import xxhash

from ..access.tree import GuestTree
from ..errors import GuestError
from .drivers import Drivers, is_file

INDEX = (
    "modules.dep",
    "modules.dep.bin",
    "modules.alias",
    "modules.alias.bin",
    "modules.softdep",
)
BLOCK_BYTES = 512
FILE_BYTES_MAX = 32 << 20
SEGMENT_BYTES_MAX = 96 << 20
TAIL_NAME = ".rollpoint-drivers"
INITRAMFS_TOOLS = "conf/conf.d/rollpoint"
DRACUT = "etc/cmdline.d/90-rollpoint.conf"
_FILE, _DIRECTORY = 0o100644, 0o040755
_NEVER = {"lib"}


class Archive:
    """Writes newc. The same entries give the same bytes: no times, no owners, own numbers."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._number = 0
        self._directories: set[str] = set(_NEVER)
        self.size_bytes = 0

    def add(self, path: str, data: bytes) -> None:
        """A file, with the directories it is in."""
        parts = path.split("/")
        for count in range(1, len(parts)):
            directory = "/".join(parts[:count])
            if directory not in self._directories:
                self._directories.add(directory)
                self._entry(directory, b"", _DIRECTORY)
        self._entry(path, data, _FILE)

    def end(self) -> bytes:
        """The archive, filled up to whole blocks."""
        self._entry("TRAILER!!!", b"", 0)
        data = b"".join(self._parts)
        return data + bytes(-len(data) % BLOCK_BYTES)

    def _entry(self, name: str, data: bytes, mode: int) -> None:
        self._number += 1
        raw = name.encode("utf-8", "surrogateescape") + b"\0"
        links = 2 if mode == _DIRECTORY else 1
        fields = (self._number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
        entry = head + bytes(-len(head) % 4) + data
        self._parts.append(entry + bytes(-len(entry) % 4))
        self.size_bytes += len(self._parts[-1])
        if self.size_bytes > SEGMENT_BYTES_MAX:
            raise GuestError(
                f"the drivers for the initramfs are larger than {SEGMENT_BYTES_MAX} bytes",
                "no kernel has such modules: look at the guest's /lib/modules",
            )


def segment(
    drivers: Drivers,
    names: Iterable[str],
    early: Iterable[str],
    others: Mapping[str, bytes],
) -> bytes:
    """The bytes to put behind an initramfs, tail included; b"" where there is nothing to add.

    Args:
        names: The modules that it is to hold; all that they need comes with them.
        early: Those of them that are loaded whether anything asks for them or not.
        others: Further files, by their paths.
    """
    archive = Archive()
    top = drivers.directory.lstrip("/")
    paths = drivers.files(names)
    if not paths:
        return b""
    for path in [*paths, *INDEX]:
        source = f"{drivers.directory}/{path}"
        if path in INDEX and not is_file(drivers.tree, source):
            continue
        archive.add(f"{top}/{path}", drivers.tree.read(source, FILE_BYTES_MAX))
    loaded = list(early)
    if loaded:
        lines = " ".join(loaded)
        script = f"{{ echo; printf '%s\\n' {lines}; }} >>/conf/modules\n"
        archive.add(INITRAMFS_TOOLS, script.encode())
        archive.add(DRACUT, f"rd.driver.pre={','.join(loaded)}\n".encode())
    for path, data in others.items():
        archive.add(path, data)
    body = archive.end()
    return body + tail(body)


def tail(body: bytes) -> bytes:
    """The last block: what a later conversion knows it by."""
    archive = Archive()
    digest = xxhash.xxh3_128_hexdigest(body)
    archive.add(TAIL_NAME, f"rollpoint 1 {len(body)} {digest}\n".encode())
    data = archive.end()
    assert len(data) == BLOCK_BYTES, len(data)
    return data


def padding(size_bytes: int) -> int:
    """Zeros between an initrd of that size and a segment: at least one block, to whole blocks."""
    return -size_bytes % BLOCK_BYTES + BLOCK_BYTES


def size_of(drivers: Drivers, names: Iterable[str]) -> int:
    """About how long the segment of these modules is; rather more than less."""
    total = 1 << 16  # small files
    for path in (*drivers.files(names), *INDEX):
        stat = drivers.tree.stat(f"{drivers.directory}/{path}")
        total += 512 + (stat.size_bytes if stat is not None else 0)
    return total


def has(tree: GuestTree, initrd: str, wanted: bytes) -> bool:
    """Whether that segment is the last thing in an initrd already."""
    return _last_block(tree, initrd) == wanted[-BLOCK_BYTES:]


def has_one(tree: GuestTree, initrd: str) -> bool:
    """Whether a segment of ours is the last thing in an initrd, of whatever modules."""
    return b"\0rollpoint 1 " in _last_block(tree, initrd)


def _last_block(tree: GuestTree, initrd: str) -> bytes:
    stat = tree.stat(initrd)
    if stat is None or stat.size_bytes < BLOCK_BYTES:
        return b""
    return tree.read_part(initrd, stat.size_bytes - BLOCK_BYTES, BLOCK_BYTES)
