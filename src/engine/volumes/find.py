"""Everything that lies on a machine's disks.

Upstream: disks that can be read, by their names. Downstream: what mounts, inspects and
converts. Reading alone; whatever is odd is a volume's problem or note, not an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .base import Piece, Readable, Volume
from .lvm import Extent, find_logical
from .probe import probe, probe_boot_sector
from .seen import Seen
from .table import Entry, Table, read_table
from .window import Strung

# Partitions that hold something, but no file system.
_RAW_TYPES = {
    "21686148-6449-6e6f-744e-656564454649": "the space of a BIOS boot loader",
    "9e1a2d38-c612-4316-aa26-8b49521e5a8b": "a PowerPC boot loader",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft's reserved space",
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "the metadata of Windows dynamic disks",
    "af9b60a0-1431-4f62-bc68-3311714a69ad": "the data of Windows dynamic disks",
    "42": "a Windows dynamic disk",
}


def find(disks: Mapping[str, Readable]) -> tuple[Volume, ...]:
    """The volumes of a machine.

    Args:
        disks: By name, in the machine's order.

    Returns:
        In order: for each disk its partitions, or itself where it has no partition table;
        then the logical volumes. Names are unique.

    Raises:
        Error: A disk cannot be read. Nothing that stands on one raises.
    """
    found: list[Volume] = []
    for name, disk in disks.items():
        found += _of_disk(name, disk, disks)
    return tuple(_with_logical(found, disks))


def _of_disk(name: str, disk: Readable, disks: Mapping[str, Readable]) -> list[Volume]:
    whole = Piece(name, 0, disk.size_bytes)
    boot = probe_boot_sector(disk) if disk.size_bytes else None
    table = read_table(name, disk) if boot is None else None
    if table is None:
        seen = boot or (probe(disk) if disk.size_bytes else Seen("empty"))
        return [_volume(name, (whole,), disk.size_bytes, seen)]
    if table.problem:
        return [Volume(name, (whole,), disk.size_bytes, "unknown", problem=table.problem)]
    return [_of_entry(name, entry, table, disks) for entry in table.entries]


def _of_entry(name: str, entry: Entry, table: Table, disks: Mapping[str, Readable]) -> Volume:
    title = f"{name}:{entry.partition.number}"
    if entry.problem or not entry.length:
        said = entry.problem or "it has no length"
        return Volume(
            title, (), 0, "unknown", partition=entry.partition, problem=said, note=table.note
        )
    pieces = (Piece(name, entry.offset, entry.length),)
    seen = probe(Strung(disks, pieces))
    raw = _RAW_TYPES.get(entry.partition.type)
    if raw is not None and seen.kind in ("unknown", "empty"):
        seen = Seen("unknown", problem=f"it is {raw}")
    volume = _volume(title, pieces, entry.length, seen, table.note)
    return replace(volume, partition=entry.partition)


def _volume(
    name: str, pieces: tuple[Piece, ...], size_bytes: int, seen: Seen, note: str = ""
) -> Volume:
    notes = "; ".join(text for text in (note, seen.note) if text)
    return Volume(
        name, pieces, size_bytes, seen.kind, seen.uuid, seen.label, None, seen.problem, notes
    )


def _with_logical(found: list[Volume], disks: Mapping[str, Readable]) -> list[Volume]:
    """The volumes, and those that LVM makes of the physical ones among them."""
    physical = {v.name: v for v in found if v.kind == "lvm" and v.pieces}
    if not physical:
        return found
    lvm = find_logical({name: Strung(disks, v.pieces) for name, v in physical.items()})
    result = []
    for volume in found:
        problem = volume.problem or lvm.problems.get(volume.name, "")
        notes = "; ".join(text for text in (volume.note, lvm.notes.get(volume.name)) if text)
        result.append(replace(volume, problem=problem, note=notes))
    for logical in lvm.logical:
        pieces = _pieces(logical.extents, physical)
        readable = pieces or _pieces(logical.readable, physical)
        seen = probe(Strung(disks, readable)) if readable else Seen("unknown")
        if not pieces and seen.kind in ("unknown", "empty"):
            seen = Seen("unknown")  # not all of it was seen
        volume = _volume(logical.name, pieces, logical.size_bytes, seen, logical.note)
        result.append(replace(volume, problem=logical.problem or seen.problem))
    return result


def _pieces(extents: tuple[Extent, ...], physical: Mapping[str, Volume]) -> tuple[Piece, ...]:
    """Where stretches of physical volumes lie on the disks: each of those is one piece."""
    found = []
    for extent in extents:
        (piece,) = physical[extent.physical].pieces
        assert extent.offset + extent.length <= piece.length
        found.append(Piece(piece.disk, piece.offset + extent.offset, extent.length))
    return tuple(found)
