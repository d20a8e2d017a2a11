"""Reading the base of a disk again, and whether it still reads as it did before."""

from __future__ import annotations

import contextlib
import os

from . import digests
from . import manifest as manifests
from ._native import OPEN_WRITE, Dir
from .digests import REGION_BYTES, BaseDigests, Region
from .disk import OpenDisk, open_disk
from .errors import DamagedError, Error
from .points import now_text
from .scrub_notes import BaseNotes, Damage, Notes, Place, id_of

_WRITE_BASES = ("create", "adopt", "seed", "permanent", "remove")
STRETCH = 16  # regions of a base between two looks at whether it changes


def content_of(place: Place, base: OpenDisk) -> str | None:
    """Which bytes the base holds now: equal texts, equal bytes. None: it is being written.

    A content id changes once for each open, so where a journal writes its base while it
    goes on, how far it has done that is needed too.
    """
    with open_disk(base.path, io=place.directory.io) as again:  # its descriptor, as it is now
        descriptor = again.links[0].descriptor
    assert descriptor is not None
    content = f"{descriptor.cid:08x}"
    now = manifests.load(place.directory)
    if now.operation is not None and now.operation.kind in _WRITE_BASES:
        return None
    if now.merging is not None and place.entry.base in now.merging.into.values():
        return None
    entry = now.disk(place.entry.name)
    if entry.journal is None or entry.below != entry.base:
        return content
    try:
        with place.log() as journal:
            info, id = journal.native.info(), id_of(journal)
    except Error:  # which is reported where the log is read
        return None
    based, horizon = info.get("based_entry", 0), info.get("horizon_entry", 0)
    return f"{content}-{id}-{based!r}" if based == horizon else None


def rotten(place: Place) -> list[Damage]:
    """Regions of the base that read otherwise than when they were read before."""
    found: list[Damage] = []
    try:
        known = digests.load(place.directory)
    except DamagedError as error:
        known = {}
        found.append(
            Damage(where="digests", message=error.message, file=digests.FILE_NAME)
        )
    try:
        with open_disk(place.path(place.entry.base), io=place.directory.io) as base:
            content = content_of(place, base)
            regions = None if content is None else _read_base(place, base, content)
            if content is None or regions is None or content_of(place, base) != content:
                return found  # it is being written, so that nothing can be said
            before = known.get(place.entry.name)
            if before is not None and not before.is_of(content, len(regions)):
                before = None
            found += _differences(place, base, before, regions)
    except Error as error:
        if error.code == "cancelled":
            raise
        return [*found, Damage(where="base", message=error.message, file=place.entry.base)]
    if before is None:
        disk = place.notes.disk(place.entry.name)
        disk.fresh = BaseDigests.of(content, now_text(), regions)
    return found


def record(directory: Dir, notes: Notes) -> None:
    """Keep the digests that were taken for the first time, unless an operation is going on.

    Where they cannot be kept, as on a file system that is read-only, nothing is lost.
    """
    fresh = {
        name: disk.fresh for name, disk in notes.state.disks.items() if disk.fresh is not None
    }
    if not fresh:
        return
    with contextlib.suppress(Error):
        lock = directory.open(manifests.LOCK_NAME, OPEN_WRITE)
        try:
            lock.lock()
            known: dict[str, BaseDigests] = {}
            with contextlib.suppress(DamagedError):
                known = digests.load(directory)
            digests.store(directory, known | fresh)
        finally:
            lock.close()


def _read_base(place: Place, base: OpenDisk, content: str) -> list[Region] | None:
    """All regions; None where the base is written meanwhile."""
    disk = place.notes.disk(place.entry.name)
    if disk.base is None or disk.base.content != content:
        disk.base = BaseNotes(content=content)
    regions = disk.base.regions
    count = digests.region_count(base.size_bytes)
    log_bytes = disk.log.total_bytes if disk.log is not None else 0

    def tell(done: int) -> bool:
        return place.tell(log_bytes + done, log_bytes + base.size_bytes)

    while len(regions) < count:
        stretch = min(STRETCH, count - len(regions))
        taken = digests.take(base, len(regions), stretch, tell)
        if content_of(place, base) != content:
            disk.base = None
            return None
        regions += taken
    return regions


def _differences(
    place: Place, base: OpenDisk, before: BaseDigests | None, regions: list[Region]
) -> list[Damage]:
    wanted = [None] * len(regions) if before is None else before.regions()
    found: list[Damage] = []
    points = None  # each reads what no write has replaced
    for number, (region, digest) in enumerate(zip(regions, wanted, strict=True)):
        if isinstance(region, str):
            message = region
        elif digest is not None and region != digest:
            assert before is not None
            message = f"its bytes are not what they were at {before.taken}"
        else:
            continue
        points = points if found else place.points()
        offset = number * REGION_BYTES
        length = min(REGION_BYTES, base.size_bytes - offset)
        file, position = _first_data(base, offset, length)
        found.append(
            Damage(
                where="base",
                message=f"{place.entry.base}: {message}",
                file=file or place.entry.base,
                position=position,
                guest_offset=offset,
                length=length,
                region=number,
                digest=None if digest is None else f"{digest:016x}",
                points=points,
                end=True,
            )
        )
    return found


def _first_data(base: OpenDisk, offset: int, length: int) -> tuple[str | None, int | None]:
    """The file, and the byte in it, where the data of a range begins."""
    with contextlib.suppress(Error):  # what cannot be read may have no map, either
        for run in base.runs(offset, length):
            if run.file is not None:
                return os.path.basename(run.file), run.file_offset_bytes
    return None, None
