"""Copy a disk into another type, compare two disks, merge a child into its parent.

Each stops where it is when its progress callback raises; a conversion then
leaves nothing, and a commit can be asked for again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ._native import Chain, Disk, Io, copy, disk_sink
from ._native import compare as native_compare
from .create import UNIT_BYTES_MIN, NewDisk
from .descriptor_write import new_cid, noted_commit
from .disk import OpenDisk, Progress, open_disk, teller
from .errors import UsageError
from .layouts import require_level
from .links import open_links, problems, split_path


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str,
    *,
    source_format: str | None = None,
    grain_bytes: int | None = None,
    adapter: str = "lsilogic",
    allow_root: str | None = None,
    io: Io | None = None,
    sync: bool = True,
    compress_level: int | None = None,
    workers: int = 0,
    memory_bytes: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write what a disk shows, its parents included, as a new disk of another type.

    Holes and zeros take no space in the target. The target appears when all of
    it is durable; a failure leaves nothing.

    Args:
        to: One of ``disk.TYPES``.
        source_format: "raw" where the source is a raw disk.
        grain_bytes: Of a sparse target.
        sync: False leaves the target to the kernel, as cp does: faster, and no longer
            whole for certain if the machine crashes in the next minute. Ignored with ``io``.
        compress_level: Of a streamOptimized target: 0 stores, 1 is the fastest and
            12 the smallest.
        workers: Threads; as many as the machine has cores by default.
        memory_bytes: Most for what is on its way; 64 MiB by default.

    Raises:
        ExistsError: The target exists. Nothing was changed.
        Error: As ``open_disk`` for the source, ``create_disk`` for the target.
    """
    require_level(to, compress_level)
    folder, name = split_path(os.fspath(target))
    io = io or (Io.posix() if sync else Io.posix_unsynced())
    with (
        open_disk(source, format=source_format, allow_root=allow_root, io=io) as disk,
        NewDisk(
            io.open_dir(folder),
            name,
            to,
            disk.size_bytes,
            grain_bytes=grain_bytes,
            adapter=adapter,
        ) as new,
    ):
        copy(
            disk.reading,
            new.sink(compress_level),
            workers=workers,
            memory_bytes=memory_bytes,
            progress=teller(progress, disk.size_bytes),
        )
        new.publish()


def copy_data(source: OpenDisk, target: Disk, progress: Progress | None = None) -> None:
    """Write the data of one disk into another of its size that reads as zeros, and flush it."""
    sink = disk_sink(target, UNIT_BYTES_MIN)
    copy(source.reading, sink, progress=teller(progress, source.size_bytes))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What ``compare`` found. ``offset_bytes`` is the first byte that differs."""

    equal: bool
    offset_bytes: int | None
    reason: str  # "" | "data" | "size": one disk ends there, all before is equal


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    a_format: str | None = None,
    b_format: str | None = None,
    allow_root: str | None = None,
    workers: int = 0,
    memory_bytes: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare what two disks show. Holes are zeros, and common holes are not read."""
    with (
        open_disk(a, format=a_format, allow_root=allow_root) as left,
        open_disk(b, format=b_format, allow_root=allow_root) as right,
    ):
        common = min(left.size_bytes, right.size_bytes)
        at = native_compare(
            left.reading,
            right.reading,
            common,
            workers=workers,
            memory_bytes=memory_bytes,
            progress=teller(progress, common),
        )
        if at < common:
            return Comparison(False, at, "data")
        if left.size_bytes != right.size_bytes:
            return Comparison(False, common, "size")
        return Comparison(True, None, "")


def commit(
    child: str | os.PathLike[str],
    *,
    allow_root: str | None = None,
    io: Io | None = None,
    progress: Progress | None = None,
) -> str:
    """Merge what a child holds into its parent, and return the parent's path.

    The child reads the same before, during and after it, and keeps its data: it
    can be removed then, or written on. Other children of the parent lose their
    ground and are refused from then on, as after any write to a parent.

    It is done in steps, each durable before the next, so that it can be asked
    for again after a crash anywhere: (1) note the parent's coming content id in
    the child, (2) give it to the parent, (3) name it in the child, (4) merge and
    sync, (5) take the note away.

    All or nothing: the parent by itself is neither old nor new while (4) lasts, but
    the child, which is never changed but for its descriptor, covers all that is
    merged. So the chain reads the same at every moment; between (2) and (3) opening
    it is refused, with the advice to ask for the commit again. Asked again, it
    merges from the start and comes to the same.

    Raises:
        UsageError: It has no parent.
        StateError: The parent is a replica's journal.
        LockedError: One of the two is open for writing.
    """
    path = os.fspath(child)
    links = open_links(path, writable=True, io=io, allow_root=allow_root)
    top: OpenDisk | None = None
    try:
        above = links[0].descriptor
        noted = None if above is None else noted_commit(above)
        for problem in problems(links, expect_cid=noted):
            raise problem
        if len(links) == 1:
            raise UsageError(f"{path} has no parent to be merged into", "name a child")
        below, parent_path = links[1].descriptor, links[1].path
        assert above is not None
        assert below is not None
        top = OpenDisk(path, links, Chain([link.image(False) for link in links]), writable=False)
        with open_disk(parent_path, writable=True, io=io, allow_root=allow_root) as parent:
            if above.parent_cid == below.cid:
                noted = new_cid()
                links[0].rewrite(commit=noted)
            assert noted is not None
            parent.begin(noted)
            links[0].rewrite(parent_cid=noted)
            top.merge(1, parent, progress)
        links[0].rewrite(end_commit=True)
        return parent_path
    finally:
        if top is not None:
            top.close()
        for link in links:
            link.close()
