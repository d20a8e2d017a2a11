"""What a volume is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol


class Readable(Protocol):
    """A disk, as far as it is read here."""

    @property
    def size_bytes(self) -> int: ...

    def pread(self, length: int, offset: int) -> bytes: ...


class Piece(NamedTuple):
    """A stretch of a disk, in bytes."""

    disk: str
    offset: int
    length: int


@dataclass(frozen=True)
class Partition:
    """Where a partition is listed.

    Attributes:
        number: As Linux counts: MBR logical ones from 5.
        type: MBR: two hex digits. GPT: the type's GUID, lower case.
        uuid: The GPT entry's, or MBR's signature and number as in PARTUUID; lower case.
    """

    disk: str
    table: Literal["mbr", "gpt"]
    number: int
    type: str
    uuid: str = ""
    name: str = ""
    active: bool = False


@dataclass(frozen=True)
class Volume:
    """A part of the disks that holds one thing: a file system, or something else.

    Attributes:
        name: "system" is a whole disk, "system:1" a partition, "vg0/root" a logical volume.
        pieces: Where its bytes lie, in order. Empty: they are not strung together
            (striped, thin, mirrored, with snapshots), and only an appliance can use them:
            it may try when there is no problem; note says what was seen.
        kind: What it holds: ext2, ext3, ext4, xfs, btrfs, ntfs, vfat, exfat, iso9660,
            squashfs, swap, lvm (a physical volume), luks, bitlocker, md, zfs, bcache,
            empty (zeros where all of them have something), unknown.
        uuid, label: Of what it holds, as the guest's blkid prints them; "" without.
        partition: None for whole disks and logical volumes.
        problem: Why it cannot be used, with what was seen; "" when nothing stands against it.
        note: What is odd about it, for a warning: a broken copy of a partition table, a
            hibernated system's memory in a swap area.
    """

    name: str
    pieces: tuple[Piece, ...]
    size_bytes: int
    kind: str
    uuid: str = ""
    label: str = ""
    partition: Partition | None = None
    problem: str = ""
    note: str = ""
