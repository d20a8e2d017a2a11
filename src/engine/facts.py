"""What can be said of a disk from its files: its links and extents, and what is wrong with it."""

from __future__ import annotations

import os
from typing import NotRequired, TypedDict

from ._native import Io
from .descriptor import NO_PARENT
from .descriptor_write import noted_commit
from .link import Link
from .links import open_links, problems
from .units import SECTOR_BYTES


class ExtentInfo(TypedDict):
    """One extent; the last four only of a sparse one."""

    type: str
    file: str | None
    access: str
    sectors: int
    offset_sectors: int
    allocated_bytes: int
    grain_bytes: NotRequired[int]
    version: NotRequired[int]
    flags: NotRequired[int]
    unclean: NotRequired[bool]


class LinkInfo(TypedDict):
    """One link of a chain."""

    path: str
    type: str
    size_bytes: int
    cid: str | None
    parent_cid: str | None
    parent: str | None
    adapter: str | None
    extents: list[ExtentInfo]


class Info(TypedDict):
    """A disk; chain has the top link first."""

    path: str
    format: str
    type: str
    size_bytes: int
    allocated_bytes: int
    cid: str | None
    parent_cid: str | None
    chain: list[LinkInfo]


class Finding(TypedDict):
    """Something wrong; position is a byte of the file, guest_offset one of the disk."""

    kind: str
    file: str
    position: int | None
    guest_offset: int | None
    message: str


class Report(TypedDict):
    """What a check found."""

    findings: list[Finding]
    clean: bool


_FINDINGS = {
    "leak": "space that no table entry points to",
    "overlap": "two table entries point at one grain",
    "outside": "a table entry points outside the file or into its metadata",
    "redundant": "the redundant table differs",
    "unclean": "it was not closed cleanly",
    "freesector": "the header's free sector lies inside used space",
    "table": "a grain table cannot be read",
    "bitmap": "a grain in use is free in the bitmap",
    "backmap": "the backmap names another place of the disk for a grain",
    "freetable": "the header's free table number lies inside used tables",
}


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
        "chain": chain,
    }


def _describe_link(link: Link) -> LinkInfo:
    descriptor = link.descriptor
    parent = descriptor is not None and descriptor.parent_cid != NO_PARENT
    extents: list[ExtentInfo] = []
    for (extent, file), header in zip(link.extents, link.headers, strict=True):
        entry: ExtentInfo = {
            "type": extent.type,
            "file": None if file is None else file.path,
            "access": extent.access,
            "sectors": extent.sectors,
            "offset_sectors": extent.offset_sectors or 0,
            "allocated_bytes": 0 if file is None else file.stat().allocated_bytes,
        }
        if header is not None:
            entry["grain_bytes"] = header["grain_sectors"] * SECTOR_BYTES
            entry["version"], entry["flags"] = header["version"], header["flags"]
            entry["unclean"] = bool(header["unclean_shutdown"])
        extents.append(entry)
    return {
        "path": link.path,
        "type": link.type,
        "size_bytes": link.size_bytes,
        "cid": None if descriptor is None else f"{descriptor.cid:08x}",
        "parent_cid": f"{descriptor.parent_cid:08x}" if descriptor and parent else None,
        "parent": None if descriptor is None else descriptor.parent_hint,
        "adapter": None if descriptor is None else descriptor.ddb_text("adapterType"),
        "extents": extents,
    }


def check(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    allow_root: str | None = None,
    io: Io | None = None,
) -> Report:
    """Look for what is wrong with a chain, and change nothing.

    Raises:
        Error: It cannot be opened at all; as ``open_disk``.
    """
    links = open_links(os.fspath(path), format=format, allow_root=allow_root, io=io)
    findings: list[Finding] = []

    def found(kind: str, file: str, message: str, at: int | None, guest: int | None) -> None:
        findings.append(
            {"kind": kind, "file": file, "position": at, "guest_offset": guest, "message": message}
        )

    try:
        for error in problems(links):
            found("chain", links[0].path, error.message, None, None)
        for link in links:
            if link.descriptor is not None and noted_commit(link.descriptor) is not None:
                found("commit", link.path, "a commit was interrupted", None, None)
            for kind, extent, position, guest in link.image(False).check():
                file = link.extents[extent][1]
                where = link.path if file is None else file.path
                found(kind, where, _FINDINGS.get(kind, kind), position, guest)
    finally:
        for link in links:
            link.close()
    return {"findings": findings, "clean": not findings}
