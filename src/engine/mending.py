"""Writing again what a scrub found damaged, where the good bytes can be proven.

Proven is a grain of the log that hashes to its entry, the header of a batch that is chained
to those around it, the summary of a segment that hashes to its trailer, and a region of the
base that reads as it did when its digest was taken. What a source offers beside that is
not used, and nothing is guessed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from . import digests, scrub
from ._native import Dir, Disk
from .digests import REGION_BYTES
from .disk import OpenDisk, open_disk
from .errors import DamagedError, Error, NotFoundError, UsageError
from .journal import OpenJournal, journal_names, open_journal
from .manifest import DiskEntry, Manifest
from .scrub_notes import Damage, Progress, Row
from .seed import image_format

BASE = "base"  # as a source: the disk's own base
_CHUNK_BYTES = 1 << 20


class Source(NamedTuple):
    """Where good bytes may be: an image of the disk, or another copy of the replica."""

    path: str
    is_copy: bool


def sources(
    manifest: Manifest, directory: str, asked: Sequence[tuple[str | None, str]]
) -> dict[str, list[Source]]:
    """What to look in for each disk, in the order asked.

    Args:
        asked: Disk (None: all of them) and where: "base", a directory that holds a copy
            of the replica, or an image: a .vmdk, or by any other name raw.

    Raises:
        UsageError: One image is given for several disks.
        NotFoundError: There is no such disk, file or directory.
    """
    found: dict[str, list[Source]] = {entry.name: [] for entry in manifest.disks}
    for disk, path in asked:
        entries = manifest.disks if disk is None else [manifest.disk(disk)]
        if path != BASE and not os.path.exists(path):
            raise NotFoundError(f"there is no {path} to repair from", "check the path")
        is_copy = path != BASE and os.path.isdir(path)
        if path != BASE and not is_copy and len(entries) > 1:
            raise UsageError(
                f"{path} is an image, and the replica has {len(entries)} disks",
                "say which disk it shows: NAME=FILE",
            )
        for entry in entries:
            place = os.path.join(directory, entry.base) if path == BASE else os.path.abspath(path)
            found[entry.name].append(Source(place, is_copy))
    return found


def verify_and_mend(
    directory: Dir,
    manifest: Manifest,
    progress: Progress | None,
    wanted: Mapping[str, Sequence[Source]],
    *,
    restart: bool = False,
) -> dict[str, object]:
    """As scrub.verify, then mend what can be. Locked; no ingest may run.

    Each damage says whether it was `mended`: it was written, synced, read again, and is
    right. ok: no damage remains.

    Raises:
        LockedError: A log or base that needs mending is open for writing.
    """
    report, resumed = scrub.examine(directory, manifest, progress, restart=restart)
    for entry in manifest.disks:
        found = report[entry.name]
        if any(damage.segment is not None for damage in found):
            _mend_log(directory, entry, found, wanted[entry.name])
        if any(damage.digest is not None for damage in found):
            _mend_base(directory, entry, found, wanted[entry.name])
    return scrub.told(manifest, report, resumed)


# ---- the log ----


def _mend_log(
    directory: Dir, entry: DiskEntry, found: Sequence[Damage], wanted: Sequence[Source]
) -> None:
    """Mend grains and summaries, sync, and read their segments again."""
    log = f"{directory.path}/{journal_names(entry.name).log}"
    hurt = [damage for damage in found if damage.segment is not None]
    with open_journal(log, writable=True, io=directory.io) as journal:
        grain_bytes = int(journal.native.info()["grain_bytes"])
        for damage in hurt:
            if damage.guest_offset is None:
                _try(journal, damage, None)  # a summary
        with contextlib.ExitStack() as stack:
            readers = [
                reader
                for source in wanted
                for reader in _log_readers(stack, directory, entry, journal, source)
            ]
            for damage in hurt:
                _mend_unit(journal, damage, grain_bytes, readers)
        journal.sync()
        left: list[Row] = []
        for number in sorted({damage.segment for damage in hurt if damage.segment is not None}):
            journal.native.scrub(left, from_segment=number, segment_count=1)
    still = {(row[0], row[1]) for row in left}
    for damage in hurt:
        damage.mended = (damage.segment, damage.position) not in still


# Called with the damage and the length of a grain; None: it has nothing for this one
_Reader = Callable[[Damage, int], bytes | None]


def _mend_unit(
    journal: OpenJournal, damage: Damage, grain_bytes: int, readers: Sequence[_Reader]
) -> None:
    for read in readers:
        try:
            data = read(damage, grain_bytes)
        except Error:  # as it is damaged there, too
            continue
        if data is not None and _try(journal, damage, data.ljust(grain_bytes, b"\0")):
            return


def _try(journal: OpenJournal, damage: Damage, data: bytes | None) -> bool:
    assert damage.segment is not None
    assert damage.position is not None
    try:
        journal.native.mend(damage.segment, damage.position, data)
    except (DamagedError, NotFoundError):  # not proven, or nothing that could be mended so
        return False
    return True


def _log_readers(
    stack: contextlib.ExitStack,
    directory: Dir,
    entry: DiskEntry,
    journal: OpenJournal,
    source: Source,
) -> Iterator[_Reader]:
    """How to read what a source has in the place of a damaged grain or header."""
    if source.is_copy:
        other = stack.enter_context(
            open_journal(f"{source.path}/{journal_names(entry.name).log}", io=directory.io)
        )
        if other.native.info()["id"] == journal.native.info()["id"]:
            yield lambda damage, length: other.read_file(length, damage.position or 0)
        return
    image = stack.enter_context(
        open_disk(source.path, format=image_format(source.path), io=directory.io)
    )

    def read(damage: Damage, length: int) -> bytes | None:
        offset = damage.guest_offset
        if offset is None:  # no data of the disk
            return None
        return image.pread(min(length, max(0, image.size_bytes - offset)), offset)

    yield read


# ---- the base ----


def _mend_base(
    directory: Dir, entry: DiskEntry, found: Sequence[Damage], wanted: Sequence[Source]
) -> None:
    """Mend regions whose digest is known, and digest them again.

    The content id stays: the base becomes what it was when it got it.
    """
    path = f"{directory.path}/{entry.base}"
    hurt = [damage for damage in found if damage.digest is not None]
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(open_disk(path, writable=True, io=directory.io))
        images = [
            stack.enter_context(image)
            for image in (_image(directory, entry, source) for source in wanted)
            if image is not None
        ]
        for damage in hurt:
            for image in images:
                if image.size_bytes == base.size_bytes and _is_right(image, damage):
                    assert damage.region is not None
                    _copy_region(image.reading, base.reading, damage.region)
                    break
        base.flush()
    with open_disk(path, io=directory.io) as base:
        for damage in hurt:
            damage.mended = _is_right(base, damage)


def _is_right(disk: OpenDisk, damage: Damage) -> bool:
    """Whether the region reads as it did when its digest was taken."""
    assert damage.region is not None
    assert damage.digest is not None
    return digests.take(disk, damage.region, 1) == [int(damage.digest, 16)]


def _image(directory: Dir, entry: DiskEntry, source: Source) -> OpenDisk | None:
    """The disk that a source shows; None where that is the base itself."""
    path = os.path.join(source.path, entry.base) if source.is_copy else source.path
    if os.path.realpath(path) == os.path.realpath(f"{directory.path}/{entry.base}"):
        return None
    return open_disk(path, format=image_format(path), io=directory.io)


def _copy_region(source: Disk, target: Disk, region: int) -> None:
    """Write what differs."""
    offset = region * REGION_BYTES
    stop = min(offset + REGION_BYTES, source.size_bytes)
    while offset < stop:
        length = min(_CHUNK_BYTES, stop - offset)
        good = source.pread(length, offset)
        try:
            same = target.pread(length, offset) == good
        except Error:  # it cannot be read, which is why we are here
            same = False
        if not same:
            target.pwrite(good, offset)
        offset += length
