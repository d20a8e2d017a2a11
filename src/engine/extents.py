"""The extents of a link: opened beneath its directory, and checked against the descriptor.

Names in a descriptor are untrusted: see ``place``. Nothing here reads or writes
the disk's data.
"""

from __future__ import annotations

from collections.abc import Iterator

from ._native import EXTENT_SPARSE, OPEN_BENEATH, OPEN_READ, OPEN_WRITE, Dir, File, sparse_info
from .descriptor import Extent, short
from .dialects import EMBEDDED, WRITTEN_ONCE, is_flat, kind_of, require_readable
from .errors import DamagedError, FormatError, ReadOnlyError, StateError
from .link import Identity, Link, place
from .units import SECTOR_BYTES

_JOURNAL = b"RPJOURN1"  # superblock of our journal, at 4 KiB and at 8 KiB of its log
_COPY = "convert the disk to another type, or put a child above it, and write that"


def open_extents(link: Link, writable: bool, allow_root: str | None) -> None:
    """Open what the descriptor names, and check it against what it says.

    Raises:
        FormatError, DamagedError: A file is not what its extent line says.
        UnsupportedError: The disk is of a kind that is not read.
        ReadOnlyError: It is to be written, and is of a kind that is only read.
        StateError: It is to be written, and is a replica's journal.
    """
    for extent, _, _, file in open_files(link, writable, allow_root):
        header = check_extent(link, extent, file)
        kind = kind_of(extent, header, link.path, "" if file is None else file.path)
        link.headers.append(header)
        link.kinds.append(kind)
        if writable:
            _require_writable(link, extent, file, kind, header)


def open_files(
    link: Link, writable: bool, allow_root: str | None
) -> Iterator[tuple[Extent, Dir, str, File | None]]:
    """Open what the extent lines name, one after the other, and give it to the link.

    Yields:
        The extent, directory and name of its file, and the file: None where there
        is none. A raw disk has nothing left to open.

    Raises:
        FormatError, UnsupportedError: As ``open_extents``.
    """
    descriptor, own = link.descriptor, link.file
    assert own is not None
    link.file = None
    if descriptor is None:
        return
    if link.room is not None:
        link.extents.append((descriptor.extents[0], own))
    else:
        own.close()
    require_readable(descriptor, link.path, link.room is not None)
    if link.room is not None:
        yield descriptor.extents[0], link.dir, link.name, own
        return
    opened: dict[Identity, File] = {}
    names: dict[str, tuple[Dir, str, File]] = {}
    for extent in descriptor.extents:
        link.extents.append((extent, None))
        if extent.file is None or extent.access == "NOACCESS":
            yield extent, link.dir, link.name, None
            continue
        if extent.file not in names:
            dir, name = place(link, extent.file, "extent", allow_root)
            names[extent.file] = dir, name, _open_file(link, dir, name, writable, opened)
        dir, name, file = names[extent.file]
        link.extents[-1] = (extent, file)
        yield extent, dir, name, file


def _open_file(
    link: Link, dir: Dir, name: str, writable: bool, opened: dict[Identity, File]
) -> File:
    file = dir.open(name, (OPEN_WRITE if writable else OPEN_READ) | OPEN_BENEATH)
    stat = file.stat()
    identity = (stat.device, stat.inode)
    if identity == link.identity:
        file.close()
        raise FormatError(f"{link.path}: it names itself as an extent", "correct the extent line")
    if identity in opened:  # parts of one flat file: one handle, so one lock
        file.close()
    return opened.setdefault(identity, file)


def check_extent(link: Link, extent: Extent, file: File | None) -> dict[str, int] | None:
    """The size a file must have, and the header of a sparse one."""
    if file is None or extent.access == "NOACCESS":
        return None
    if is_flat(extent):
        need = ((extent.offset_sectors or 0) + extent.sectors) * SECTOR_BYTES
        if file.size_bytes < need:
            raise DamagedError(
                f"{file.path} has {file.size_bytes} bytes; {link.path} says {need}",
                "the file was cut short: take another copy",
            )
        return None
    header = sparse_info(file)
    grain = header["grain_sectors"]
    if not extent.sectors <= header["capacity_sectors"] < extent.sectors + grain:
        raise DamagedError(
            f"{link.path} says that {file.path} has {extent.sectors} sectors;"
            f" its header says {header['capacity_sectors']}",
            "the files do not belong together: take another copy",
        )
    return header


def _require_writable(
    link: Link, extent: Extent, file: File | None, kind: int, header: dict[str, int] | None
) -> None:
    what = f"the extent of {link.path}" if file is None else file.path
    written_once = WRITTEN_ONCE.get(kind)
    if written_once is not None:
        raise ReadOnlyError(
            f"{what} is {written_once}, and such files are written only once",
            _COPY,
        )
    if header is not None and header["kind"] == EXTENT_SPARSE and header["version"] > 2:
        raise ReadOnlyError(
            f"{what} is hosted sparse version {header['version']}, which is only read", _COPY
        )
    if extent.access != "RW":
        raise ReadOnlyError(
            f"{link.path}: its extent {short(extent.file or extent.type)} is {extent.access}",
            "change the extent line to RW if the data may be used",
        )
    if link.room is None and link.type in EMBEDDED:
        raise ReadOnlyError(
            f"{link.path} says {link.type}, and such a disk has its descriptor in its extent",
            f"open {what} for writing",
        )
    if file is None or header is None:
        return
    if is_journal(file):
        raise StateError(
            f"{file.path} is a replica's journal, which only the ingest writes",
            "open it read-only, or write an interim overlay above it",
        )


def is_journal(file: File) -> bool:
    """The file is the log of a replica's journal, which shows itself as a sparse extent."""
    return any(file.pread(8, at) == _JOURNAL for at in (4096, 8192))
