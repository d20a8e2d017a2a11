"""Looking for damage in a chain: its descriptors, and the tables of every extent of every link.

Goes as far as is safe, also in a disk that is too damaged to be opened: only where
the descriptor itself, or a file that it names, cannot be had is there an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from ._native import (
    EXTENT_COWD,
    EXTENT_FLAT,
    EXTENT_NOACCESS,
    EXTENT_SESPARSE,
    EXTENT_SPARSE,
    EXTENT_STREAM,
    OPEN_READ,
    Dir,
    File,
    Io,
    Repair,
    extent_check,
)
from .descriptor import LIMIT_BYTES, Extent, is_descriptor, parse, text_of
from .descriptor_write import noted_commit
from .dialects import WRITTEN_ONCE, kind_of
from .errors import DamagedError, Error, FormatError, UsageError
from .extents import check_extent, is_journal, open_files
from .link import KDMV, Link, read_link
from .links import open_links, open_parent, problems, require_distinct, split_path
from .ova import split_ova
from .units import SECTOR_BYTES

# kind, extent, position in the file, offset on the disk, length, detail
_Native = tuple[str, int, int, int | None, int, str | None]

BACKUP_SUFFIX = ".repair"  # of an extent's name: what a repair that was cut short had replaced
_EMBEDDED_ROOM = (SECTOR_BYTES, 20 * SECTOR_BYTES)  # where everybody puts a descriptor


class Finding(TypedDict):
    """Something wrong.

    position is a byte of the file, guest_offset one of the disk; length counts from
    guest_offset, or from position where that is None. mendable: ``repair`` mends all
    of it.
    """

    kind: str
    file: str
    position: int | None
    guest_offset: int | None
    length: int | None
    message: str
    mendable: bool


class Report(TypedDict):
    """What a check found; notes are oddities that harm nothing."""

    findings: list[Finding]
    clean: bool
    notes: NotRequired[list[str]]


_WORDS = {
    "leak": "space that no table entry points to",
    "overlap": "two table entries point at one place",
    "outside": "table entries point outside the file or into its metadata",
    "redundant": "the redundant table differs",
    "unclean": "it was not closed cleanly",
    "freesector": "the header's free sector lies inside used space",
    "table": "a grain table cannot be read",
    "short": "the file was cut short",
    "bitmap": "a grain in use is free in the bitmap",
    "backmap": "the backmap names another place of the disk for a grain",
    "freetable": "the header's free table number lies inside used tables",
    "grain": "a compressed grain is not what its table entry says, or does not unpack",
}
_UNREADABLE = frozenset({"outside", "table", "short", "header", "grain"})


@dataclass(frozen=True, slots=True)
class Part:
    """One extent, as far as it could be opened."""

    link: Link
    extent: Extent
    file: File | None
    kind: int
    start_bytes: int  # on the disk
    dir: Dir  # of its file
    name: str
    trouble: Error | None  # what opening the disk would say

    @property
    def may_be_mended(self) -> bool:
        """Of a kind that can be, and ours to write."""
        return (
            self.file is not None
            and self.kind in (EXTENT_SPARSE, EXTENT_COWD)
            and self.extent.access == "RW"
            and not is_journal(self.file)
        )


def read_top(dir: Dir, name: str, flags: int, raw: bool) -> Link:
    """The descriptor of a disk; one inside an extent also where the header is damaged."""
    try:
        return read_link(dir, name, flags=flags, raw=raw)
    except DamagedError:
        file = dir.open(name, flags)
        try:
            head = file.pread(SECTOR_BYTES, 0)
            if head[:4] != KDMV:
                raise
            said = tuple(
                int.from_bytes(head[at : at + 8], "little") * SECTOR_BYTES for at in (28, 36)
            )
            for offset, length in (said, _EMBEDDED_ROOM):
                if not 0 < length <= LIMIT_BYTES or not 0 < offset < file.size_bytes:
                    continue
                text = text_of(file.pread(length, offset))
                if is_descriptor(text):
                    stat = file.stat()
                    return Link(
                        dir, name, file.path, (stat.device, stat.inode),
                        parse(text, file.path), text, (offset, length), file,
                    )  # fmt: skip
            raise
        except BaseException:
            file.close()
            raise


def open_parts(link: Link, allow_root: str | None, writable: bool = False) -> list[Part]:
    """Open the extents of a link, also such that are damaged; the link closes them.

    Raises:
        Error: As ``open_extents``, but for what the check tells of: DamagedError.
    """
    if link.descriptor is None:
        extent, file = link.extents[0]
        return [Part(link, extent, file, EXTENT_FLAT, 0, link.dir, link.name, None)]
    parts: list[Part] = []
    start = 0
    for extent, dir, name, file in open_files(link, writable, allow_root):
        kind, trouble = _judge(link, extent, file)
        parts.append(Part(link, extent, file, kind, start, dir, name, trouble))
        start += extent.sectors * SECTOR_BYTES
    return parts


def _judge(link: Link, extent: Extent, file: File | None) -> tuple[int, Error | None]:
    """What an extent is, and what is wrong with its size or header."""
    path = "" if file is None else file.path
    try:
        return kind_of(extent, check_extent(link, extent, file), link.path, path), None
    except DamagedError as error:
        assert file is not None
        head = file.pread(12, 0)
        kind = {KDMV: EXTENT_SPARSE, b"COWD": EXTENT_COWD}.get(head[:4], EXTENT_FLAT)
        if extent.type in ("FLAT", "VMFS"):
            kind = EXTENT_FLAT
        elif kind == EXTENT_SPARSE and head[10] & 1:  # compressed grains
            kind = EXTENT_STREAM
        elif kind == EXTENT_FLAT:
            kind = EXTENT_SESPARSE
        return kind, error


def _open_chain(
    path: str, format: str | None, io: Io | None, allow_root: str | None, links: list[Link]
) -> tuple[list[list[Part]], list[tuple[str, Error]]]:
    """Fill links, top first; return their parts, and what is wrong between them."""
    if format not in (None, "raw", "vmdk"):
        raise UsageError(f"format {format!r} is not known", "take raw or vmdk")
    if format != "raw" and split_ova(path) is not None:
        links += open_links(path, io=io)
        extent, file = links[0].extents[0]
        kind = links[0].kinds[0]
        return [[Part(links[0], extent, file, kind, 0, links[0].dir, links[0].name, None)]], []
    folder, name = split_path(path)
    dir = (io or Io.posix()).open_dir(folder)
    wrong: list[tuple[str, Error]] = []
    links.append(read_top(dir, name, OPEN_READ, format == "raw"))
    parts = [open_parts(links[0], allow_root)]
    try:
        while (parent := open_parent(links, allow_root)) is not None:
            links.append(parent)
            parts.append(open_parts(parent, allow_root))
    except DamagedError as error:
        wrong.append(("chain", error))
    wrong += [("chain", error) for error in problems(links)]
    try:
        require_distinct(links)
    except FormatError as error:
        wrong.append(("overlap", error))
    return parts, wrong


def check(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    allow_root: str | None = None,
    io: Io | None = None,
    deep: bool = False,
) -> Report:
    """Look for what is wrong with a chain, and change nothing.

    Args:
        deep: Unpack every compressed grain as well.

    Raises:
        Error: The descriptor or a file that it names cannot be had, or the disk is of
            a kind that is not read; as ``open_disk``.
    """
    links: list[Link] = []
    try:
        parts, wrong = _open_chain(os.fspath(path), format, io, allow_root, links)
        findings = [
            _finding(kind, links[0].path, error.message, mendable=False) for kind, error in wrong
        ]
        for depth, own in enumerate(parts):
            findings += _check_descriptor(links[depth], depth)
            for part in own:
                findings += check_part(part, depth, deep)
        notes = [note for link in links for note in _notes(link)]
    finally:
        for link in links:
            link.close()
    report: Report = {"findings": findings, "clean": not findings}
    if notes:
        report["notes"] = notes
    return report


def _finding(
    kind: str, file: str, message: str, *, mendable: bool, place: Sequence[int | None] = ()
) -> Finding:
    position, guest_offset, length = place or (None, None, None)
    return {
        "kind": kind,
        "file": file,
        "position": position,
        "guest_offset": guest_offset,
        "length": length,
        "message": message,
        "mendable": mendable,
    }


def missing_tracking(link: Link) -> str | None:
    """The change tracking file that the descriptor names, where it is not there."""
    name = None if link.descriptor is None else link.descriptor.change_track_path
    if name is None or "/" in name or "\\" in name or link.dir.exists(name):
        return None
    return name


def _check_descriptor(link: Link, depth: int) -> Iterator[Finding]:
    descriptor = link.descriptor
    if descriptor is None:
        return
    if noted_commit(descriptor) is not None:
        message = "a commit was interrupted: finish it with rollpoint disk commit"
        yield _finding("commit", link.path, message, mendable=False)
    name = missing_tracking(link)
    if name is not None:
        message = f"its change tracking file {name} is not there"
        yield _finding("tracking", link.path, message, mendable=depth == 0)


def _notes(link: Link) -> Iterator[str]:
    descriptor = link.descriptor
    if descriptor is None:
        return
    long_id = descriptor.ddb_text("longContentID") or ""
    if len(long_id) == 32 and long_id[-8:].lower() != f"{descriptor.cid:08x}":
        yield (
            f"{link.path}: the tail of ddb.longContentID, {long_id[-8:]}, is not the content id"
            f" {descriptor.cid:08x}"
        )


def check_part(part: Part, depth: int, deep: bool = False) -> list[Finding]:
    """What is wrong with one extent."""
    file = part.file
    if file is None or part.kind == EXTENT_NOACCESS:
        return []
    found = extent_check(
        file,
        kind=part.kind,
        sectors=part.extent.sectors,
        offset_sectors=part.extent.offset_sectors or 0,
        start_bytes=part.start_bytes,
        deep=deep,
    )
    if is_journal(file):  # what its log keeps for other restore points is no leak
        found = [row for row in found if row[0] != "leak"]
    kinds = {row[0] for row in found}
    left = _left_after_repair(part, kinds) if depth == 0 and found else None
    findings = []
    if depth == 0 and part.dir.exists(part.name + BACKUP_SUFFIX):
        message = f"a repair was cut short, and left {part.name}{BACKUP_SUFFIX}"
        mendable = part.may_be_mended
        findings.append(_finding("repair", file.path, message, mendable=mendable))
    if part.trouble is not None and not kinds & {"header", "short", "unsupported"}:
        place = (0, part.start_bytes, part.extent.sectors * SECTOR_BYTES)
        message = part.trouble.message
        findings.append(_finding("header", file.path, message, mendable=False, place=place))
    for row in found:
        kind, _, position, guest, length, detail = row
        mendable = left is not None and not any(_meet(row, other) for other in left)
        message = detail or _WORDS.get(kind, kind)
        if kind in _UNREADABLE and guest is not None:
            message += f"; bytes {guest} to {guest + length} of the disk cannot be read"
        if not mendable and depth > 0:
            message += " (it is a parent, which only a repair of its own mends)"
        elif part.kind in WRITTEN_ONCE:
            message += f" (it is {WRITTEN_ONCE[part.kind]}, and written once: take another copy)"
        where = (position, guest, length or None)
        findings.append(_finding(kind, file.path, message, mendable=mendable, place=where))
    return findings


def _left_after_repair(part: Part, kinds: set[str]) -> list[_Native] | None:
    """What a repair would leave, None where there can be none."""
    if not part.may_be_mended or kinds & {"header", "unsupported"}:
        return None
    assert part.file is not None
    try:
        return Repair(
            part.file,
            kind=part.kind,
            sectors=part.extent.sectors,
            start_bytes=part.start_bytes,
        ).after
    except Error:
        return None


def _meet(a: _Native, b: _Native) -> bool:
    """Two findings of one kind that share some of their range."""
    if a[0] != b[0] or (a[3] is None) != (b[3] is None):
        return False
    (start, stop), (other_start, other_stop) = _range(a), _range(b)
    return start < other_stop and other_start < stop


def _range(row: _Native) -> tuple[int, int]:
    start = row[2] if row[3] is None else row[3]
    return start, start + max(row[4], 1)
