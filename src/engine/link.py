"""One link of a VMDK chain, a descriptor and its extents: opened safely, checked, let go.

Names in a descriptor are untrusted: they are opened beneath the descriptor's own
directory, one plain component and no symbolic link, unless the caller allows a
root (CVE-2022-47951). Nothing here reads or writes the disk's data.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ._native import (
    EXTENT_FLAT,
    EXTENT_NOACCESS,
    OPEN_BENEATH,
    OPEN_READ,
    Dir,
    File,
    Image,
    sparse_info,
)
from .descriptor import LIMIT_BYTES, RAW_HINT, Descriptor, Extent, parse, require_base_name, text_of
from .descriptor_write import edit
from .errors import FormatError, UnsupportedError
from .units import SECTOR_BYTES

KDMV = b"KDMV"
_COWD = b"COWD"
_SESPARSE = bytes.fromhex("bebafeca00000000")
_CHANGE_TRACKING = bytes.fromhex("a27219f6")

Identity = tuple[int, int]  # device and inode


@dataclass(slots=True)
class Link:
    """One link with its files open. Close it once."""

    dir: Dir
    name: str
    path: str
    identity: Identity
    descriptor: Descriptor | None  # None: a raw disk
    text: bytes  # of the descriptor, without padding
    room: tuple[int, int] | None  # offset and length in bytes of an embedded descriptor
    file: File | None  # the descriptor's, until the extents are open
    extents: list[tuple[Extent, File | None]] = field(default_factory=list)
    headers: list[dict[str, int] | None] = field(default_factory=list)  # of sparse extents
    kinds: list[int] = field(default_factory=list)  # what each extent's file is

    @property
    def type(self) -> str:
        return "raw" if self.descriptor is None else self.descriptor.create_type

    @property
    def size_bytes(self) -> int:
        return sum(extent.sectors for extent, _ in self.extents) * SECTOR_BYTES

    def files(self) -> list[File]:
        """The files of the extents, each once."""
        return list({id(file): file for _, file in self.extents if file is not None}.values())

    def image(self, writable: bool) -> Image:
        """The native side of this link; it keeps the files open by itself."""
        specs = [
            (
                kind,
                extent.sectors,
                None if kind == EXTENT_NOACCESS else file,
                extent.offset_sectors or 0,
            )
            for (extent, file), kind in zip(self.extents, self.kinds, strict=True)
        ]
        return Image(specs, writable)

    def rewrite(
        self,
        *,
        cid: int | None = None,
        parent_cid: int | None = None,
        parent_hint: str | None = None,
        commit: int | None = None,
        end_commit: bool = False,
        drop_tracking: bool = False,
    ) -> None:
        """Change the descriptor, durably; the old or the new one is there at any crash.

        A change tracking file, which our writes make stale, is taken out with a
        new content id.
        """
        assert self.descriptor is not None, "a raw disk has no descriptor"
        self.text = text_now(self)  # another handle may have given it another parent
        text = edit(
            self.text,
            cid=cid,
            parent_cid=parent_cid,
            parent_hint=parent_hint,
            commit=commit,
            end_commit=end_commit,
            drop_tracking=drop_tracking or cid is not None,
        )
        descriptor = parse(text, self.path)
        if self.room is None:
            self.dir.replace(self.name, text, self.dir.stat(self.name).mode or 0o600)
        else:
            self._rewrite_inside(text, *self.room)
        self.text, self.descriptor = text, descriptor

    def _rewrite_inside(self, text: bytes, offset: int, length: int) -> None:
        """Write the sectors that differ, in an order in which a line is never half there.

        Each sector is written whole by the disk, and a text ends at its first
        zero: so what a text gets at its end is written before the sector that it
        begins in, and what it loses after it. (A change of length further in, as
        by a content id of fewer digits, is only as safe as one write.)
        """
        if len(text) > length:
            raise UnsupportedError(
                f"{self.path}: its descriptor has no room for another line",
                "convert the disk, which gives it a descriptor of 20 sectors",
            )
        _, file = self.extents[0]
        assert file is not None
        old, new = self.text.ljust(length, b"\0"), text.ljust(length, b"\0")
        ends = [(at, at + SECTOR_BYTES) for at in range(0, length, SECTOR_BYTES)]
        changed = [at for at, end in ends if old[at:end] != new[at:end]]
        if not changed:
            return
        spans = [(changed[0], changed[-1] + SECTOR_BYTES)]
        if len(changed) > 1 and (text.startswith(self.text) or self.text.startswith(text)):
            spans = [(changed[0], changed[0] + SECTOR_BYTES), (changed[1], spans[0][1])]
            if len(text) > len(self.text):
                spans.reverse()
        for start, stop in spans:
            file.pwrite(new[start:stop], offset + start)
            file.sync()

    def close(self) -> None:
        """Close the files, and let their locks go. May be called twice."""
        for file in self.files():
            file.close()
        if self.file is not None:
            self.file.close()


def text_now(link: Link) -> bytes:
    if link.room is not None:
        _, file = link.extents[0]
        assert file is not None
        return text_of(file.pread(link.room[1], link.room[0]))
    file = link.dir.open(link.name, OPEN_READ)
    try:
        return text_of(file.pread(LIMIT_BYTES + 1, 0))
    finally:
        file.close()


def read_link(dir: Dir, name: str, *, flags: int, raw: bool) -> Link:
    """Open the file that holds the descriptor, and read it."""
    return link_of(dir, name, dir.open(name, flags), raw=raw)


def read_beside(dir: Dir, name: str) -> Link:
    """The same by a name that came from a file beside it: it follows no symbolic link."""
    return read_link(dir, name, flags=OPEN_READ | OPEN_BENEATH, raw=False)


def link_of(dir: Dir, name: str, file: File, *, raw: bool) -> Link:
    """Read the descriptor in a file, which the link closes at its end."""
    try:
        stat = file.stat()
        link = Link(
            dir, name, file.path, (stat.device, stat.inode), None, b"", None, file
        )
        if raw:
            if stat.size_bytes == 0 or stat.size_bytes % SECTOR_BYTES:
                raise FormatError(
                    f"{file.path} has {stat.size_bytes} bytes; a raw disk has whole sectors of 512",
                    "fill it up with zeros: truncate -s %512",
                )
            sectors = stat.size_bytes // SECTOR_BYTES
            link.extents.append((Extent("RW", sectors, "FLAT", name, 0), file))
            link.headers.append(None)
            link.kinds.append(EXTENT_FLAT)
            return link
        head = file.pread(16, 0)
        if head[:4] == KDMV:
            header = sparse_info(file)
            link.room = (
                header["descriptor_offset_sectors"] * SECTOR_BYTES,
                header["descriptor_sectors"] * SECTOR_BYTES,
            )
            if 0 in link.room:
                raise FormatError(
                    f"{file.path} is one extent of a disk, not a disk",
                    "open the descriptor, which names all extents",
                )
            if link.room[1] > LIMIT_BYTES:
                raise FormatError(f"{file.path}: its descriptor is larger than 1 MiB", "")
            link.text = text_of(file.pread(link.room[1], link.room[0]))
        else:
            _refuse_other_files(head, file.path)
            if stat.size_bytes > LIMIT_BYTES:
                raise FormatError(f"{file.path} is not a VMDK descriptor", RAW_HINT)
            link.text = text_of(file.pread(LIMIT_BYTES, 0))
        link.descriptor = parse(link.text, file.path)
        return link
    except BaseException:
        file.close()
        raise


def _refuse_other_files(head: bytes, path: str) -> None:
    if head.startswith((_COWD, _SESPARSE)):
        raise FormatError(
            f"{path} is one extent of a disk, not a disk",
            "open the descriptor, which names it",
        )
    if head.startswith(_CHANGE_TRACKING):
        raise FormatError(f"{path} is a change tracking file, not a disk", "open the descriptor")


def place(link: Link, name: str, what: str, allow_root: str | None) -> tuple[Dir, str]:
    """Directory and plain name of a file that a descriptor names."""
    if allow_root is None:
        return link.dir, require_base_name(name, link.path, what)
    full = os.path.normpath(os.path.join(link.dir.path, name))
    base = require_base_name(os.path.basename(full), link.path, what)
    folder, root = os.path.realpath(os.path.dirname(full)), os.path.realpath(allow_root)
    if os.path.commonpath([folder, root]) != root:
        raise UnsupportedError(
            f"{link.path}: the {what} {name!r} lies outside {allow_root}",
            "allow a directory that holds all files of the disk",
        )
    if folder == os.path.realpath(link.dir.path):
        return link.dir, base
    return link.dir.io.open_dir(folder), base
