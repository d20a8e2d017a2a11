"""Reading again what lies below a journal: the structure of its links, what frozen ones
hold, and whether the chain opens."""

from __future__ import annotations

import contextlib
import os
import time

from . import digests
from . import manifest as manifests
from ._native import Dir
from .check import Finding
from .disk import check, open_disk
from .errors import CancelledError, Error
from .manifest import DiskEntry, Frozen, Manifest
from .scrub_notes import Damage, Place

_LOOKS = 4  # at what somebody may be changing just now
_LOOK_SECONDS = 0.05
# What a disk that is being written may look like at any moment.
_WRITTEN = frozenset({"unclean", "freesector", "redundant"})


def structure(directory: Dir, entry: DiskEntry, written: bool = False) -> list[Damage]:
    """What is wrong with the structure of what is below a journal, down to the base.

    Args:
        written: It may be written meanwhile, by an ingest: what is gone at another look
            is none.
    """
    found: list[Finding] = []
    for look in range(_LOOKS if written else 1):
        try:
            now = check(f"{directory.path}/{entry.below}", io=directory.io)["findings"]
        except Error as error:
            if written and look < _LOOKS - 1:
                continue
            return [Damage(where="base", message=error.message, file=entry.below)]
        # What a crash leaves of a disk that was being written; the next writer mends it.
        cut_short = {row["file"] for row in now if row["kind"] == "unclean"}
        now = [
            row
            for row in now
            if row["kind"] != "leak"
            and not (row["file"] in cut_short and row["kind"] in _WRITTEN)
        ]
        if written:
            now = [row for row in now if row["kind"] not in _WRITTEN]
        found = [row for row in now if look == 0 or row in found]
        if not found:
            return []
    return [
        Damage(
            where="base",
            message=f"{row['file']}: {row['message']}",
            file=os.path.basename(row["file"]),
            position=row["position"],
            guest_offset=row["guest_offset"],
            length=row["length"],
        )
        for row in found
    ]


def may_be_written(place: Place) -> bool:
    """Whether an ingest has the journal, or had it when it died."""
    with contextlib.suppress(Error), place.log() as journal:
        return not journal.native.info()["closed_clean"]
    return False


def chain_damage(place: Place) -> list[Damage]:
    """Does the journal still fit what is below it?"""
    assert place.entry.journal is not None
    for look in range(_LOOKS):
        try:
            open_disk(place.path(place.entry.journal), io=place.directory.io).close()
            return []
        except Error as error:
            if _is_unsettled(place):
                return []  # who takes the replica's lock next finishes that
            if look == _LOOKS - 1 or not may_be_written(place):
                return [Damage(where="chain", message=error.message, file=place.entry.journal)]
        time.sleep(_LOOK_SECONDS)
    return []


def _is_unsettled(place: Place) -> bool:
    """Whether a content id, or a link, is being changed, or was when a crash came."""
    with contextlib.suppress(Error):
        now = manifests.load(place.directory)
        noted = any(disk.below_cid is not None for disk in now.disks)
        return noted or now.freezing is not None or now.merging is not None
    return False


def frozen_damage(place: Place) -> list[Damage]:
    """Delta disks that show long-term points and do not hold what they did."""
    found = []
    done = place.notes.disk(place.entry.name).links
    for point in _frozen(place.manifest):
        name, wanted = point.links[place.entry.name], point.digests.get(place.entry.name)
        if wanted is None or f"{name} {wanted}" in done:
            continue
        try:
            message = None
            if digests.link_digest(place.directory, name, place.tell) != wanted:
                message = f"{name} does not hold what it did when restore point {point.id} was kept"
        except CancelledError:
            raise
        except Error as error:
            message = error.message
        if message is None:
            done.append(f"{name} {wanted}")
        elif _still(place, point, name, wanted):
            found.append(
                Damage(
                    where="link",
                    message=message,
                    file=name,
                    guest_offset=0,
                    length=place.entry.size_bytes,
                    points=(point.id, (place.points() or (0, point.id))[1]),
                    end=True,
                )
            )
    return found


def _frozen(manifest: Manifest) -> list[Frozen]:
    """But for what a merge is changing."""
    changing: set[str] = set()
    if manifest.merging is not None:
        changing = {*manifest.merging.into.values(), *manifest.merging.away.values()}
    return [point for point in manifest.frozen if not changing & set(point.links.values())]


def _still(place: Place, point: Frozen, name: str, wanted: str) -> bool:
    """Whether the manifest says so now: a merge may have begun meanwhile."""
    now = manifests.load(place.directory)
    return any(
        other.id == point.id
        and other.links.get(place.entry.name) == name
        and other.digests.get(place.entry.name) == wanted
        for other in _frozen(now)
    )
