"""Ranges of a disk, and how ``qemu-img map`` says them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple, NotRequired, TypedDict

from ._native import RUN_DATA, RUN_HOLE
from .dialects import is_flat
from .link import Link
from .units import SECTOR_BYTES


class Run(NamedTuple):
    """Bytes of a disk that share one answer."""

    offset_bytes: int
    length_bytes: int
    kind: int  # RUN_HOLE, RUN_ZERO or RUN_DATA
    depth: int  # 0: the top link holds it, 1: its parent, ...
    file: str | None  # where data lies
    file_offset_bytes: int


class MapEntry(TypedDict):
    """A range of a disk.

    depth counts links from the top. present: some link holds it; offset: where it
    lies in its file, if it does in one.
    """

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    offset: NotRequired[int]


def map_runs(runs: Iterable[Run], base: Link) -> Iterator[MapEntry]:
    """Entries in the words of ``qemu-img map --output=json``, neighbours joined.

    One after the other: a large disk has more than memory should hold.

    Args:
        base: The last link. Of a flat one QEMU says that its holes are present,
            and lie in the file; of a flat VMDK also that they are data.
    """
    starts: list[int] = []  # byte of the disk at which each extent of the base begins
    at = 0
    for extent, _ in base.extents:
        starts.append(at)
        at += extent.sectors * SECTOR_BYTES
    last: MapEntry | None = None
    for run in runs:
        for entry in _entries(run, base, starts):
            if last is None:
                last = entry
            elif _continues(last, entry):
                last["length"] += entry["length"]
            else:
                yield last
                last = entry
    if last is not None:
        yield last


def _continues(a: MapEntry, b: MapEntry) -> bool:
    for key in ("depth", "present", "zero", "data"):
        if a[key] != b[key]:
            return False
    if ("offset" in a) != ("offset" in b):
        return False
    return "offset" not in a or a["offset"] + a["length"] == b["offset"]


def _entries(run: Run, base: Link, starts: list[int]) -> Iterator[MapEntry]:
    if run.kind == RUN_HOLE:
        yield from _hole_entries(run, base, starts)
        return
    entry: MapEntry = {
        "start": run.offset_bytes,
        "length": run.length_bytes,
        "depth": run.depth,
        "present": True,
        "zero": run.kind != RUN_DATA,
        "data": run.kind == RUN_DATA,
    }
    if run.file is not None:
        entry["offset"] = run.file_offset_bytes
    yield entry


def _hole_entries(run: Run, base: Link, starts: list[int]) -> Iterator[MapEntry]:
    """A hole lies in the extents of the base, each of which says of it what it can."""
    at, stop = run.offset_bytes, run.offset_bytes + run.length_bytes
    index = bisect_right(starts, at) - 1
    while at < stop:
        extent, file = base.extents[index]
        end = min(stop, starts[index] + extent.sectors * SECTOR_BYTES)
        flat = file is not None and is_flat(extent)
        entry: MapEntry = {
            "start": at,
            "length": end - at,
            "depth": run.depth,
            "present": flat,
            "zero": True,
            "data": flat and base.descriptor is not None,
        }
        if flat:
            entry["offset"] = (extent.offset_sectors or 0) * SECTOR_BYTES + at - starts[index]
        yield entry
        at, index = end, index + 1
