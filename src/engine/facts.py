"""What can be said of a disk from its files: its links and extents. Damage is in check.py."""

from __future__ import annotations

import os
from typing import NotRequired, TypedDict

from ._native import (
    EXTENT_COWD,
    EXTENT_FLAT,
    EXTENT_NOACCESS,
    EXTENT_SESPARSE,
    EXTENT_SPARSE,
    EXTENT_STREAM,
    EXTENT_ZERO,
    Dir,
    File,
    Io,
)
from .descriptor import NO_PARENT, Extent
from .errors import Error
from .link import Link
from .links import ddb_text, open_packed, split_path
from .ova import Member, members, slice_of
from .units import SECTOR_BYTES


class ExtentInfo(TypedDict):
    """One extent.

    type: as the extent line says. format: what the file is: flat, hosted,
    compressed, cowd, sesparse, or zero and noaccess, which have none. name: as
    in the extent line. From grain_bytes on only of a sparse one; from markers on
    only of a compressed one.
    """

    type: str
    format: str
    name: str | None
    file: str | None
    access: str
    sectors: int
    offset_sectors: int
    allocated_bytes: int
    grain_bytes: NotRequired[int]
    version: NotRequired[int]
    flags: NotRequired[int]
    unclean: NotRequired[bool]
    redundant_tables: NotRequired[bool]
    zero_grains: NotRequired[bool]
    markers: NotRequired[bool]
    footer: NotRequired[bool]


class LinkInfo(TypedDict):
    """One link of a chain: of its descriptor what it says, None where it does not.

    parent: the hint as it stands there; where the parent was found, the next link tells.
    """

    path: str
    type: str
    size_bytes: int
    cid: str | None
    parent_cid: str | None
    parent: str | None
    version: int | None
    encoding: str | None
    long_content_id: str | None
    adapter: str | None
    hardware_version: str | None
    change_tracking: str | None
    extents: list[ExtentInfo]


class Info(TypedDict):
    """A disk; chain has the top link first.

    adapter and hardware_version: of the first link that says one.
    """

    path: str
    format: str
    type: str
    size_bytes: int
    allocated_bytes: int
    cid: str | None
    parent_cid: str | None
    adapter: str | None
    hardware_version: str | None
    chain: list[LinkInfo]


class MemberInfo(TypedDict):
    """A disk in an OVA: where its file lies in it, and what it is, or why it is not read."""

    name: str
    offset_bytes: int
    length_bytes: int
    type: str | None
    size_bytes: int | None
    error: str | None


class OvaInfo(TypedDict):
    """An OVA; ovf is the name of the machine's description."""

    path: str
    format: str
    ovf: str | None
    disks: list[MemberInfo]


_FORMATS = {
    EXTENT_FLAT: "flat",
    EXTENT_ZERO: "zero",
    EXTENT_SPARSE: "hosted",
    EXTENT_COWD: "cowd",
    EXTENT_STREAM: "compressed",
    EXTENT_SESPARSE: "sesparse",
    EXTENT_NOACCESS: "noaccess",
}
# of a hosted sparse header's flags
_REDUNDANT, _ZERO_GRAINS, _MARKERS = 1 << 1, 1 << 2, 1 << 17


def describe(path: str, links: list[Link]) -> Info:
    """What ``rollpoint disk info`` shows of a chain."""
    top = links[0]
    chain = [_describe_link(link) for link in links]
    files = [file for link in links for file in link.files()]
    return {
        "path": os.path.abspath(path),
        "format": "raw" if top.descriptor is None else "vmdk",
        "type": top.type,
        "size_bytes": top.size_bytes,
        "allocated_bytes": sum(file.stat().allocated_bytes for file in files),
        "cid": chain[0]["cid"],
        "parent_cid": chain[0]["parent_cid"],
        "adapter": ddb_text(links, "adapterType"),
        "hardware_version": ddb_text(links, "virtualHWVersion"),
        "chain": chain,
    }


def _describe_link(link: Link) -> LinkInfo:
    descriptor = link.descriptor
    parent = descriptor is not None and descriptor.parent_cid != NO_PARENT
    parts = zip(link.extents, link.kinds, link.headers, strict=True)
    return {
        "path": link.path,
        "type": link.type,
        "size_bytes": link.size_bytes,
        "cid": None if descriptor is None else f"{descriptor.cid:08x}",
        "parent_cid": f"{descriptor.parent_cid:08x}" if descriptor and parent else None,
        "parent": None if descriptor is None else descriptor.parent_hint,
        "version": None if descriptor is None else descriptor.version,
        "encoding": None if descriptor is None else descriptor.encoding,
        "long_content_id": None if descriptor is None else descriptor.ddb_text("longContentID"),
        "adapter": None if descriptor is None else descriptor.ddb_text("adapterType"),
        "hardware_version": None if descriptor is None else descriptor.ddb_text("virtualHWVersion"),
        "change_tracking": None if descriptor is None else descriptor.change_track_path,
        "extents": [_describe_extent(*part, kind, header) for part, kind, header in parts],
    }


def _describe_extent(
    extent: Extent, file: File | None, kind: int, header: dict[str, int] | None
) -> ExtentInfo:
    entry: ExtentInfo = {
        "type": extent.type,
        "format": _FORMATS[kind],
        "name": extent.file,
        "file": None if file is None else file.path,
        "access": extent.access,
        "sectors": extent.sectors,
        "offset_sectors": extent.offset_sectors or 0,
        "allocated_bytes": 0 if file is None else file.stat().allocated_bytes,
    }
    if header is None or file is None:
        return entry
    entry["grain_bytes"] = header["grain_sectors"] * SECTOR_BYTES
    entry["version"], entry["flags"] = header["version"], header["flags"]
    entry["unclean"] = bool(header["unclean_shutdown"])
    if kind in (EXTENT_SPARSE, EXTENT_STREAM):
        entry["redundant_tables"] = bool(header["flags"] & _REDUNDANT)
        entry["zero_grains"] = bool(header["flags"] & _ZERO_GRAINS)
    if kind == EXTENT_STREAM:
        entry["markers"] = bool(header["flags"] & _MARKERS)
        entry["footer"] = file.pread(8, 56) == b"\xff" * 8  # where the directory is: at the end
    return entry


def describe_ova(path: str | os.PathLike[str], *, io: Io | None = None) -> OvaInfo:
    """What lies in an OVA, and of its disks what they are.

    Raises:
        Error: As ``ova.members``; a disk that cannot be read is listed with the reason.
    """
    path = os.fspath(path)
    folder, name = split_path(path)
    dir = (io or Io.posix()).open_dir(folder)
    file = dir.open(name)
    try:
        found = members(file)
        described = [_describe_member(dir, file, disk) for disk in found if disk.is_disk]
    finally:
        file.close()
    ovf = [member.name for member in found if member.name.lower().endswith(".ovf")]
    return {
        "path": os.path.abspath(path),
        "format": "ova",
        "ovf": ovf[0] if ovf else None,
        "disks": described,
    }


def _describe_member(dir: Dir, archive: File, member: Member) -> MemberInfo:
    entry: MemberInfo = {
        "name": member.name,
        "offset_bytes": member.offset_bytes,
        "length_bytes": member.size_bytes,
        "type": None,
        "size_bytes": None,
        "error": None,
    }
    try:
        link = open_packed(dir, f"{archive.name}:{member.name}", slice_of(archive, member))
        entry["type"], entry["size_bytes"] = link.type, link.size_bytes
        link.close()
    except Error as error:
        entry["error"] = error.message
    return entry
