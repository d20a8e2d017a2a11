"""A VMDK chain: its links found and opened, the child first, and checked against each other.

Nothing here reads or writes the disk's data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise

from ._native import OPEN_BENEATH, OPEN_READ, OPEN_WRITE, Dir, Io
from .descriptor_write import noted_commit
from .errors import DamagedError, Error, FormatError, LockedError, UsageError
from .link import Identity, Link, is_flat, open_extents, place, read_link, text_now

LINKS_MAX = 64  # VMware documents 32 snapshots


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
            or the chain names itself, or is deeper than 64 links.
        LockedError: Somebody has the child open for writing.
    """
    if format not in (None, "raw", "vmdk"):
        raise UsageError(f"format {format!r} is not known", "take raw or vmdk")
    folder, name = split_path(path)
    dir = (io or Io.posix()).open_dir(folder)
    links: list[Link] = []
    try:
        links.append(_open_top(dir, name, writable, format == "raw", allow_root))
        while (parent := _parent_place(links[-1], allow_root)) is not None:
            if len(links) == LINKS_MAX:
                raise FormatError(
                    f"{path}: the chain has more than {LINKS_MAX} links",
                    "consolidate the snapshots, or look whether the parents go in a circle",
                )
            link = read_link(*parent, flags=OPEN_READ | OPEN_BENEATH, raw=False)
            for seen in links:
                if seen.identity == link.identity:
                    link.close()
                    raise FormatError(
                        f"{links[-1].path}: its parent {link.name} is {seen.path} again",
                        "correct parentFileNameHint: the chain goes in a circle",
                    )
            links.append(link)
            open_extents(link, False, allow_root)
        _require_distinct(links)
    except BaseException:
        for link in links:
            link.close()
        raise
    return links


def _open_top(dir: Dir, name: str, writable: bool, raw: bool, allow_root: str | None) -> Link:
    for _ in range(3):
        link = read_link(dir, name, flags=OPEN_WRITE if writable else OPEN_READ, raw=raw)
        try:
            open_extents(link, writable, allow_root)
            if not writable:
                return link
            for file in link.files():
                file.lock(exclusive=True)
            # who had the lock before us may have changed the descriptor
            if raw or text_now(link) == link.text:
                return link
        except BaseException:
            link.close()
            raise
        link.close()
    raise LockedError(f"{link.path} keeps changing", "stop the process that writes it")


def _parent_place(link: Link, allow_root: str | None) -> tuple[Dir, str] | None:
    if link.descriptor is None or link.descriptor.parent_hint is None:
        return None
    return place(link, link.descriptor.parent_hint, "parent", allow_root)


def _require_distinct(links: list[Link]) -> None:
    """No two extents may lie on the same bytes: a write to one would change the other."""
    taken: dict[Identity, list[tuple[int, int, str]]] = {}
    for link in links:
        for extent, file in link.extents:
            if file is None:
                continue
            stat = file.stat()
            start, stop = 0, 1 << 63
            if is_flat(extent):
                start = extent.offset_sectors or 0
                stop = start + extent.sectors
            spans = taken.setdefault((stat.device, stat.inode), [])
            for other_start, other_stop, other in spans:
                if start < other_stop and other_start < stop:
                    raise FormatError(
                        f"{link.path}: its extent {extent.file} is also an extent of {other}",
                        "correct the extent lines: two extents lie on the same bytes",
                    )
            spans.append((start, stop, link.path))


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
