"""One link of a VMDK chain, a descriptor and its extents: opened safely, checked, let go.

Names
in a descriptor are untrusted: they are opened beneath the descriptor's own
directory, one plain component and no symbolic link, unless the caller allows a
root (CVE-2022-47951). Nothing here reads or writes the disk's data.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ._native import (
    EXTENT_COWD,
    EXTENT_FLAT,
    EXTENT_SPARSE,
    EXTENT_ZERO,
    OPEN_BENEATH,
    OPEN_READ,
    OPEN_WRITE,
    Dir,
    File,
    Image,
    sparse_info,
)
from .descriptor import LIMIT_BYTES, RAW_HINT, Descriptor, Extent, parse, require_base_name, text_of
from .descriptor_write import edit
from .errors import (
    DamagedError,
    FormatError,
    ReadOnlyError,
    StateError,
    UnsupportedError,
)
from .units import SECTOR_BYTES

KDMV = b"KDMV"
COWD = b"COWD"
_SESPARSE = bytes.fromhex("bebafeca00000000")
_CHANGE_TRACKING = bytes.fromhex("a27219f6")
_JOURNAL = b"RPJOURN1"  # superblock of our journal, at 4 KiB and at 8 KiB of its log
_COMPRESSED = 1 << 16  # of a hosted sparse header's flags

_VMFS_FLAT = frozenset({"VMFS", "FLAT", "ZERO"})
# createType -> the extent types it may have, in a descriptor that is a file of its own
READABLE = {
    "monolithicFlat": frozenset({"FLAT", "ZERO"}),
    "twoGbMaxExtentFlat": frozenset({"FLAT", "ZERO"}),
    "twoGbMaxExtentSparse": frozenset({"SPARSE", "ZERO"}),
    "vmfs": _VMFS_FLAT,
    "vmfsPreallocated": _VMFS_FLAT,
    "vmfsEagerZeroedThick": _VMFS_FLAT,
    "vmfsThin": _VMFS_FLAT,
    "vmfsThick": _VMFS_FLAT,
    "vmfsSparse": frozenset({"VMFSSPARSE"}),
}
_KINDS = {
    "FLAT": EXTENT_FLAT,
    "VMFS": EXTENT_FLAT,
    "ZERO": EXTENT_ZERO,
    "SPARSE": EXTENT_SPARSE,
    "VMFSSPARSE": EXTENT_COWD,
}
_TO_FLAT = "export it as another type: vmkfstools -i on an ESXi host, or qemu-img convert -O vmdk"
_ON_HOST = "copy it on the ESXi host: vmkfstools -i SOURCE TARGET"
_REASONS = {
    "streamOptimized": ("its grains are compressed", _TO_FLAT),
    "seSparse": ("it is a space-efficient sparse snapshot", _TO_FLAT),
    "custom": ("it mixes extents by hand", _TO_FLAT),
    "fullDevice": ("it names a whole device", "copy the device into a file and open that"),
    "partitionedDevice": ("it names a device", "copy the device into a file and open that"),
    "monolithicSparse": (
        "a monolithicSparse descriptor lies inside its extent, and this one is a file",
        "open the .vmdk file that holds the data",
    ),
    "vmfsRawDeviceMap": ("its data lies on a mapped device", _ON_HOST),
    "vmfsPassthroughRawDeviceMap": ("its data lies on a mapped device", _ON_HOST),
    "vmfsRaw": ("its data lies on a device", _ON_HOST),
    "vsanSparse": ("its data lies in vSAN objects", _ON_HOST),
}

Identity = tuple[int, int]  # device and inode


def is_flat(extent: Extent) -> bool:
    """The bytes of the disk lie in its file one after the other."""
    return _KINDS[extent.type] == EXTENT_FLAT


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
    headers: list[dict[str, int] | None] = field(default_factory=list)

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
            (_KINDS[extent.type], extent.sectors, file, extent.offset_sectors or 0)
            for extent, file in self.extents
        ]
        return Image(specs, writable)

    def rewrite(
        self,
        *,
        cid: int | None = None,
        parent_cid: int | None = None,
        commit: int | None = None,
        end_commit: bool = False,
    ) -> None:
        """Change the descriptor, durably; the old or the new one is there at any crash.

        A change tracking file, which our writes make stale, is taken out with a
        new content id.
        """
        assert self.descriptor is not None, "a raw disk has no descriptor"
        text = edit(
            self.text,
            cid=cid,
            parent_cid=parent_cid,
            commit=commit,
            end_commit=end_commit,
            drop_tracking=cid is not None,
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
    file = dir.open(name, flags)
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
            return link
        head = file.pread(16, 0)
        if head[:4] == KDMV:
            header = _header(file)
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
    if head.startswith((COWD, _SESPARSE)):
        raise FormatError(
            f"{path} is one extent of a disk, not a disk",
            "open the descriptor, which names it",
        )
    if head.startswith(_CHANGE_TRACKING):
        raise FormatError(f"{path} is a change tracking file, not a disk", "open the descriptor")


def _header(file: File) -> dict[str, int]:
    """The header of a sparse extent, validated."""
    head = file.pread(12, 0)
    if head[:4] == KDMV and int.from_bytes(head[8:12], "little") & _COMPRESSED:
        reason, hint = _REASONS["streamOptimized"]
        raise UnsupportedError(f"{file.path} is streamOptimized: {reason}", hint)
    return sparse_info(file)


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


def open_extents(link: Link, writable: bool, allow_root: str | None) -> None:
    """Open what the descriptor names, and check it against what it says."""
    descriptor, file = link.descriptor, link.file
    assert file is not None
    link.file = None
    if descriptor is None:
        return
    if link.room is not None:
        link.extents.append((descriptor.extents[0], file))
    else:
        file.close()
    _refuse_type(link, descriptor)
    opened: dict[Identity, File] = {}
    for extent in descriptor.extents:
        if extent.access == "NOACCESS" or (writable and extent.access != "RW"):
            kind = UnsupportedError if extent.access == "NOACCESS" else ReadOnlyError
            raise kind(
                f"{link.path}: its extent {extent.file} is {extent.access}",
                "change the extent line to RW if the data may be used",
            )
        if link.room is None:
            link.extents.append((extent, None))
            if extent.file is not None:
                part = _open_extent(link, extent, writable, allow_root, opened)
                link.extents[-1] = (extent, part)
        link.headers.append(_check_extent(link, *link.extents[-1], writable))


def _open_extent(
    link: Link,
    extent: Extent,
    writable: bool,
    allow_root: str | None,
    opened: dict[Identity, File],
) -> File:
    assert extent.file is not None
    folder, base = place(link, extent.file, "extent", allow_root)
    file = folder.open(base, (OPEN_WRITE if writable else OPEN_READ) | OPEN_BENEATH)
    stat = file.stat()
    identity = (stat.device, stat.inode)
    if identity == link.identity:
        file.close()
        raise FormatError(f"{link.path}: it names itself as an extent", "correct the extent line")
    if identity in opened:  # parts of one flat file: one handle, so one lock
        file.close()
    return opened.setdefault(identity, file)


def _refuse_type(link: Link, descriptor: Descriptor) -> None:
    create_type = descriptor.create_type
    embedded = link.room is not None
    if embedded and create_type == "monolithicSparse":
        if [extent.type for extent in descriptor.extents] != ["SPARSE"]:
            raise FormatError(
                f"{link.path}: monolithicSparse has one extent of type SPARSE", "take another copy"
            )
    elif embedded or create_type not in READABLE:
        outside = (f"a {create_type} disk keeps its descriptor in a file", "take another copy")
        reason, hint = _REASONS.get(create_type, outside)
        raise UnsupportedError(f"{link.path} is {create_type}: {reason}", hint)
    else:
        for extent in descriptor.extents:
            if extent.type not in READABLE[create_type]:
                raise UnsupportedError(
                    f"{link.path} is {create_type} and has an extent of type {extent.type}",
                    _TO_FLAT,
                )
    if any(descriptor.other_text(key) for key in ("keyID", "encryptionKeys")):
        raise UnsupportedError(
            f"{link.path} is encrypted", "decrypt it where its keys are: change its storage policy"
        )
    native = (descriptor.other_text("isNativeSnapshot") or "no").lower()
    if native != "no" and descriptor.parent_hint is not None:
        raise UnsupportedError(
            f"{link.path} is a snapshot inside the storage array", "consolidate the snapshots"
        )


def _check_extent(
    link: Link, extent: Extent, file: File | None, writable: bool
) -> dict[str, int] | None:
    """The size a file must have, and the header of a sparse one."""
    if file is None:
        return None
    if is_flat(extent):
        need = ((extent.offset_sectors or 0) + extent.sectors) * SECTOR_BYTES
        if file.size_bytes < need:
            raise DamagedError(
                f"{file.path} has {file.size_bytes} bytes; {link.path} says {need}",
                "the file was cut short: take another copy",
            )
        return None
    header = _header(file)
    if header["kind"] != _KINDS[extent.type]:
        raise FormatError(
            f"{file.path} is not the {extent.type} extent that {link.path} says",
            "the files do not belong together: take another copy",
        )
    grain = header["grain_sectors"]
    if not extent.sectors <= header["capacity_sectors"] < extent.sectors + grain:
        raise DamagedError(
            f"{link.path} says that {file.path} has {extent.sectors} sectors;"
            f" its header says {header['capacity_sectors']}",
            "the files do not belong together: take another copy",
        )
    if writable and any(file.pread(8, at) == _JOURNAL for at in (4096, 8192)):
        raise StateError(
            f"{file.path} is a replica's journal, which only the ingest writes",
            "open it read-only, or write an interim overlay above it",
        )
    return header
