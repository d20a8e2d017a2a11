"""A VMDK chain: its links found and opened, the child first, and checked against each other.

Nothing here reads or writes the disk's data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from . import locks
from ._native import OPEN_BENEATH, OPEN_READ, OPEN_WRITE, Dir, File, Io
from .descriptor import require_base_name, short
from .descriptor_write import noted_commit
from .dialects import is_flat
from .errors import (
    DamagedError,
    Error,
    FormatError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
    UsageError,
)
from .extents import open_extents
from .link import Identity, Link, link_of, place, read_link, text_now
from .ova import open_member, split_ova

LINKS_MAX = 1000  # a link a long-term point; VMware documents 32 snapshots
_PARENT = OPEN_READ | OPEN_BENEATH


def split_path(path: str) -> tuple[str, str]:
    """Directory and name of a path that the user gave.

    Raises:
        UsageError: It has no name.
    """
    if os.path.islink(path):  # what a descriptor names lies beside the real one
        path = os.path.realpath(path)
    folder, name = os.path.split(path)
    if name in ("", ".", "..") or "\0" in path:
        raise UsageError(f"{path!r} does not name a file", "give the path of a disk")
    return folder or ".", name


def open_links(
    path: str,
    *,
    writable: bool = False,
    format: str | None = None,
    io: Io | None = None,
    allow_root: str | None = None,
) -> list[Link]:
    """Open a disk and its parents, the child first; only the child is writable, and locked.

    Whether the links fit together is another question: see ``problems``.

    Raises:
        FormatError, UnsupportedError, DamagedError: A file is not what it should be,
            or the chain names itself, or is deeper than 1000 links.
        LockedError: Somebody has the child open for writing.
    """
    if format not in (None, "raw", "vmdk"):
        raise UsageError(f"format {format!r} is not known", "take raw or vmdk")
    ova = split_ova(path) if format != "raw" else None
    if ova is not None:
        return [_open_member(path, *ova, writable, io or Io.posix())]
    folder, name = split_path(path)
    dir = (io or Io.posix()).open_dir(folder)
    links: list[Link] = []
    try:
        links.append(_open_top(dir, name, writable, format == "raw", allow_root))
        while (link := open_parent(links, allow_root)) is not None:
            links.append(link)
            open_extents(link, False, allow_root)
        require_distinct(links)
    except BaseException:
        for link in links:
            link.close()
        raise
    return links


def _open_member(path: str, archive: str, member: str | None, writable: bool, io: Io) -> Link:
    """A disk in an OVA: one file, for reading."""
    if writable:
        raise ReadOnlyError(f"{path} is a disk in an OVA, which is only read", "convert the disk")
    folder, name = split_path(archive)
    dir = io.open_dir(folder)
    whole = dir.open(name)
    try:
        file = open_member(whole, member)
    finally:
        whole.close()
    return open_packed(dir, f"{name}:{file.name}", file)


def open_packed(dir: Dir, name: str, file: File) -> Link:
    """A disk that is one file, in an archive, with its extent open; the link closes the file.

    Raises:
        UnsupportedError: It has further files, or a parent.
        Error: As ``open_links``.
    """
    link = link_of(dir, name, file, raw=False)
    try:
        if link.room is None:
            raise UnsupportedError(
                f"{link.path} is a descriptor, whose disk has further files",
                "unpack the OVA with tar -xf, and open the descriptor",
            )
        assert link.descriptor is not None
        if link.descriptor.parent_hint is not None:
            raise UnsupportedError(
                f"{link.path} is a child of {short(link.descriptor.parent_hint)}",
                "unpack the OVA with tar -xf, and open the child",
            )
        open_extents(link, False, None)
        return link
    except BaseException:
        link.close()
        raise


def _open_top(dir: Dir, name: str, writable: bool, raw: bool, allow_root: str | None) -> Link:
    for _ in range(3):
        link = read_link(dir, name, flags=OPEN_WRITE if writable else OPEN_READ, raw=raw)
        try:
            open_extents(link, writable, allow_root)
            if not writable:
                return link
            for file in link.files():
                locks.patiently(file.lock)
            # who had the lock before us may have changed the descriptor
            if raw or text_now(link) == link.text:
                return link
        except BaseException:
            link.close()
            raise
        link.close()
    raise LockedError(f"{link.path} keeps changing", "stop the process that writes it")


def open_parent(links: list[Link], allow_root: str | None) -> Link | None:
    """The descriptor of the last link's parent, or None where there is none."""
    child = links[-1]
    if child.descriptor is None or child.descriptor.parent_hint is None:
        return None
    if len(links) == LINKS_MAX:
        raise FormatError(
            f"{links[0].path}: the chain has more than {LINKS_MAX} links",
            "consolidate the snapshots, or look whether the parents go in a circle",
        )
    hint = child.descriptor.parent_hint
    try:
        link = read_link(*place(child, hint, "parent", allow_root), flags=_PARENT, raw=False)
    except (UnsupportedError, NotFoundError):
        beside = _parent_beside(links, hint)
        if beside is None:
            raise
        return beside
    for seen in links:
        if seen.identity == link.identity:
            link.close()
            raise FormatError(
                f"{child.path}: its parent {link.name} is {seen.path} again",
                "correct parentFileNameHint: the chain goes in a circle",
            )
    return link


def _parent_beside(links: list[Link], hint: str) -> Link | None:
    """The file beside the child that has the last name of the hint, if it is the parent.

    Hints name directories of the host that made the child, which say nothing here.
    A file of that name is taken only where it has the content id that the child
    wants, which no other disk has: a hint alone opens nothing outside.
    """
    child = links[-1]
    name = re.split(r"[/\\]", hint)[-1]
    if name == hint:
        return None
    try:
        link = read_link(
            child.dir, require_base_name(name, child.path, "parent"), flags=_PARENT, raw=False
        )
    except Error:
        return None
    assert child.descriptor is not None
    assert link.descriptor is not None
    known = any(seen.identity == link.identity for seen in links)
    if known or link.descriptor.cid != child.descriptor.parent_cid:
        link.close()
        return None
    return link


def require_distinct(links: list[Link]) -> None:
    """No two extents may lie on the same bytes: a write to one would change the other."""
    taken: dict[Identity, list[tuple[int, int, str, str]]] = {}
    for link in links:
        if link.room is None and link.descriptor is not None:
            taken.setdefault(link.identity, []).append((0, 1 << 63, link.path, link.name))
        for extent, file in link.extents:
            if file is None:
                continue
            stat = file.stat()
            start, stop = 0, 1 << 63
            if is_flat(extent):
                start = extent.offset_sectors or 0
                stop = start + extent.sectors
            spans = taken.setdefault((stat.device, stat.inode), [])
            spans.append((start, stop, link.path, extent.file or link.name))
    for spans in taken.values():
        for (_, stop, other, _), (start, _, path, name) in pairwise(sorted(spans)):
            if start < stop:
                raise FormatError(
                    f"{path}: its extent {name} is also an extent of {other}",
                    "correct the extent lines: two extents lie on the same bytes",
                )


def ddb_text(links: Sequence[Link], key: str) -> str | None:
    """Value of ``ddb.<key>`` of a disk: what its own descriptor leaves out its parents' say.

    Source: "VMware Virtual Disk Format 5.0", "The Disk Database".
    """
    for link in links:
        found = None if link.descriptor is None else link.descriptor.ddb_text(key)
        if found is not None:
            return found
    return None


def problems(links: list[Link], *, expect_cid: int | None = None) -> Iterator[Error]:
    """What does not fit between the links: content ids and sizes.

    Args:
        expect_cid: A content id that the top link's parent may also have (a
            commit that was interrupted).
    """
    for child, parent in pairwise(links):
        if parent.size_bytes != child.size_bytes:
            yield DamagedError(
                f"{child.path} has {child.size_bytes} bytes, its parent {parent.path}"
                f" {parent.size_bytes}",
                "the links of a chain have one size: put the right parent in its place",
            )
        assert child.descriptor is not None
        assert parent.descriptor is not None
        if parent.descriptor.cid == child.descriptor.parent_cid:
            continue
        if child is links[0] and parent.descriptor.cid == expect_cid:
            continue
        yield DamagedError(
            f"{child.path} was made above content id {child.descriptor.parent_cid:08x}, and its"
            f" parent {parent.path} has {parent.descriptor.cid:08x}",
            f"a commit was interrupted: finish it with rollpoint disk commit {child.path}"
            if noted_commit(child.descriptor) == parent.descriptor.cid
            else "the parent was written since: restore it, or give the child up",
        )
