"""What disks hashed to, so that bit rot in them is seen.

Of the base of each disk region by region; of a delta disk all that it holds itself.
`.digests.json` beside the manifest says for each disk what its base read as when it was
last read whole, and at which content: digests of another content say nothing.

Bytes: docs/formats.md, "Digests of the bases".
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import xxhash

from ._native import RUN_HOLE, RUN_ZERO, Dir, digest_regions
from .disk import OpenDisk, open_disk
from .errors import CancelledError, DamagedError, NotFoundError

FILE_NAME = ".digests.json"
VERSION = 1
REGION_BYTES = 64 << 20
LIMIT_BYTES = 64 << 20  # of the file: 5 MiB for 16 TiB
_PIECE_BYTES = 1 << 20

Region = int | str  # what it reads as; or what keeps it from being read


class BaseDigests(msgspec.Struct, kw_only=True):
    """Of one base. content: which bytes were digested, see scrub_base.content_of."""

    content: str
    region_bytes: int
    taken: str
    digests: str  # 16 hex digits a region

    @classmethod
    def of(cls, content: str, taken: str, regions: list[Region]) -> BaseDigests | None:
        """None where some region cannot be read."""
        text = "".join(f"{one:016x}" for one in regions if isinstance(one, int))
        if len(text) != len(regions) * 16:
            return None
        return cls(content=content, region_bytes=REGION_BYTES, taken=taken, digests=text)

    def is_of(self, content: str, count: int) -> bool:
        """Whether it says what the regions of a base with that content read as."""
        same = self.content == content and self.region_bytes == REGION_BYTES
        return same and len(self.digests) == count * 16

    def regions(self) -> list[int]:
        """The digests as numbers."""
        return [int(self.digests[at : at + 16], 16) for at in range(0, len(self.digests), 16)]


class _File(msgspec.Struct, kw_only=True):
    version: int
    disks: dict[str, BaseDigests]
    checksum: str = ""


def _checksum(disks: dict[str, BaseDigests]) -> str:
    return xxhash.xxh3_64_hexdigest(msgspec.json.encode(disks, order="sorted"))


def load(directory: Dir) -> dict[str, BaseDigests]:
    """The digests of a replica's bases, by disk; nothing where none were taken yet.

    Raises:
        DamagedError: The file is not what was written.
    """
    try:
        data = directory.read(FILE_NAME, LIMIT_BYTES)
    except NotFoundError:
        return {}
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        file = None
    if file is None or file.version != VERSION or file.checksum != _checksum(file.disks):
        raise DamagedError(
            f"{directory.path}/{FILE_NAME} is damaged: what the bases read as earlier is not known",
            "it is made anew; compare the bases with a copy",
        )
    return file.disks


def store(directory: Dir, disks: dict[str, BaseDigests]) -> None:
    """Replace them all, durably."""
    file = _File(version=VERSION, disks=disks, checksum=_checksum(disks))
    directory.replace(FILE_NAME, msgspec.json.encode(file) + b"\n")


def region_count(size_bytes: int) -> int:
    """How many regions a disk has; the last may be shorter."""
    return -(-size_bytes // REGION_BYTES)


def take(
    disk: OpenDisk, first: int, count: int, tell: Callable[[int], bool] | None = None
) -> list[Region]:
    """Digest some regions, on all cores; tell gets the bytes of the disk that are done."""
    return digest_regions(disk.reading, REGION_BYTES, first, count, progress=tell)


# ---- delta disks ----


def link_digest(
    directory: Dir, name: str, progress: Callable[[int, int], bool] | None = None
) -> str:
    """XXH3 (128 bits) of what a delta disk holds itself, and where: see docs/formats.md.

    Raises:
        CancelledError: progress said so.
        Error: The link cannot be read.
    """
    digest = xxhash.xxh3_128()
    end = -1  # of the range before
    with open_disk(f"{directory.path}/{name}", io=directory.io) as disk:
        for run in disk.runs():
            stop = run.offset_bytes + run.length_bytes
            if progress is not None and not progress(stop, disk.size_bytes):
                raise CancelledError(f"reading {directory.path}/{name} was stopped")
            if run.depth != 0 or run.kind == RUN_HOLE:
                continue
            if run.offset_bytes != end:
                digest.update(_at(end) + _at(run.offset_bytes))
            for at in range(run.offset_bytes, stop, _PIECE_BYTES):
                length = min(_PIECE_BYTES, stop - at)
                zeros = run.kind == RUN_ZERO
                digest.update(bytes(length) if zeros else disk.pread(length, at))
            end = stop
    digest.update(_at(end))
    return digest.hexdigest()


def _at(offset: int) -> bytes:
    return offset.to_bytes(8, "little", signed=True)
