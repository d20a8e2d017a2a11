"""What a failback has to send: the parts of a disk that its target may hold otherwise.

A target that holds what the replica held at restore point H differs from the recovered
disk, which was rolled back to point P and written since, only where

  the journal has entries newer than the older one of H and P, or, where that is a
  long-term point, the delta disks above it hold something; or
  an overlay of the failover holds something.

All of that is read out of entries and grain tables: no data, and no digest. What breaks
this is said by `lineage`, with the reason; then both sides have to be compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import targets
from ._native import RUN_HOLE, Chain
from .errors import Error, NotFoundError
from .journal import journal_names, open_journal
from .links import open_links
from .manifest import DiskEntry, Manifest, Recovered, Target
from .spans import Spans

if TYPE_CHECKING:
    from .replica import Replica

_BASE = 0  # of Journal.written_since: all that is not below the journal yet


def lineage(replica: Replica, disk: str, target: Target, said: int | None = None) -> str:
    """"" while it is known what the target holds, else why not, as a sentence's end.

    To be asked before anything is written to the target, and kept: afterwards its stamp
    is another one.

    Args:
        said: Id of the restore point whose content the operator says the target holds;
            None: nothing is said, so only a planned failover's proof can tell.
    """
    recovered = replica.manifest.recovered
    if recovered is None:
        return "the replica is not failed over"
    if target.kind == "new":
        return "it is a new place"
    held = said
    if held is None:
        why = _doubt(replica.manifest, recovered, disk, target)
        if why:
            return why
        assert recovered.cut is not None
        held = recovered.cut.point
    try:
        since(replica, disk, min(held, recovered.point))
    except NotFoundError:
        return f"the replica does not keep restore point {min(held, recovered.point)} any more"
    return ""


def held_point(replica: Replica, said: int | None = None) -> int:
    """Id of the point that a target with unbroken lineage holds."""
    recovered = _recovered(replica)
    if said is not None:
        return said
    assert recovered.cut is not None, "its lineage is broken"
    return recovered.cut.point


def ranges(
    replica: Replica, disk: str, held: int, overlays: Sequence[str] | None = None
) -> Spans:
    """Where the recovered disk may differ from what it held at a point. No data is read.

    Args:
        held: Id of the point: what the target holds; see held_point.
        overlays: Descriptors of the failover's overlays that count; all by default. One
            that a running machine writes must not be among them.

    Raises:
        NotFoundError: The replica does not keep that point, or its own, any more.
        DamagedError, StorageError: A journal's entries, or an overlay's tables, cannot be
            read.
    """
    recovered = _recovered(replica)
    found = since(replica, disk, min(held, recovered.point))
    for name in recovered.overlays(disk) if overlays is None else overlays:
        found |= overlay(replica, name)
    return found


def since(replica: Replica, disk: str, point: int) -> Spans:
    """What was written to a disk after a restore point, as its source wrote it.

    Raises:
        NotFoundError: The replica does not keep the point.
        DamagedError, StorageError: Its journal's entries cannot be read.
    """
    manifest = replica.manifest
    entry = manifest.disk(disk)
    log = f"{replica.path}/{journal_names(disk).log}"
    with open_journal(log, io=replica.directory.io) as journal:
        if any(row[0] == point for row in journal.native.points()):
            return Spans.unpack(journal.native.written_since(point))
        long_term = manifest.long_term(point)
        if long_term is None:
            raise NotFoundError(
                f"replica {manifest.name} does not keep restore point {point} of disk {disk}",
                "rollpoint points lists what it keeps",
            )
        newer = Spans.unpack(journal.native.written_since(_BASE))
    return newer | _links_above(replica, entry, long_term.links[disk])


def overlay(replica: Replica, descriptor: str) -> Spans:
    """What one overlay holds itself: data and zeros, in its own grains. Not one in use."""
    return _held_by(replica, descriptor, 1)


def allocated(replica: Replica, descriptor: str) -> Spans:
    """Where a disk of the replica holds anything, in any link: the rest reads as zeros."""
    return _held_by(replica, descriptor, None)


def prove(replica: Replica, disk: str, spans: Spans, overlays: Sequence[str]) -> None:
    """See that what the journal shows in these ranges is what was written there.

    VMDK links have no checksums: read through a chain, rot in the journal would go back
    to the source's own disks. What overlays hold has none anywhere.

    Args:
        overlays: Descriptors of those above the restore point.

    Raises:
        DamagedError: It is not; it names the place in the log, and on the disk.
    """
    recovered = _recovered(replica)
    if disk in recovered.parents:
        return  # a long-term point: the journal is not in that chain
    for name in overlays:
        spans -= overlay(replica, name)
    if not spans:
        return
    log = f"{replica.path}/{journal_names(disk).log}"
    with open_journal(log, io=replica.directory.io) as journal:
        journal.native.view(recovered.point)
        journal.native.prove(spans.packed)


def _links_above(replica: Replica, entry: DiskEntry, shown: str) -> Spans:
    """What the delta disks hold that lie between a journal and a long-term point."""
    links = open_links(replica.file(entry.below), io=replica.directory.io)
    try:
        names = [link.name for link in links]
    finally:
        for link in links:
            link.close()
    if shown not in names:
        raise NotFoundError(
            f"{replica.file(shown)} is not below the journal of disk {entry.name}",
            "rollpoint replica verify tells what is wrong",
        )
    count = names.index(shown)
    return _held_by(replica, entry.below, count) if count else Spans()


def _held_by(replica: Replica, descriptor: str, count: int | None) -> Spans:
    """What the topmost links of a disk hold; all of them: None. Their tables are read."""
    links = open_links(replica.file(descriptor), io=replica.directory.io)
    try:
        chain = Chain([link.image(False) for link in itertools.islice(links, count)])
        found, at, size = [], 0, chain.size_bytes
        while at < size:
            length, kind = chain.run(at, size - at)[:2]
            if kind != RUN_HOLE:
                found.append((at, at + length))
            at += length
        del chain  # and with it the locks of its files
        return Spans(found)
    finally:
        for link in links:
            link.close()


def _recovered(replica: Replica) -> Recovered:
    recovered = replica.manifest.recovered
    assert recovered is not None, "the replica is not failed over"
    return recovered


def _doubt(manifest: Manifest, recovered: Recovered, disk: str, target: Target) -> str:
    """Why the proof of the failover does not tell what the target holds; "": it does."""
    cut = recovered.cut
    if target.kind == "restored":
        return "it was restored elsewhere, and nobody said which restore point it holds"
    if cut is None:
        return "the failover was not planned: the source may have written after its last write here"
    if not cut.digests.get(disk):
        return f"source and replica were not compared at restore point {cut.point}"
    for gap in manifest.gaps:
        if gap.end is None and (not gap.disks or disk in gap.disks):
            return f"the replica missed writes from {gap.start} on: {gap.cause}"
    place = cut.sources.get(disk, "")
    if not targets.same_place(place, target.place):
        return f"what was compared at restore point {cut.point} is {place or 'not known'}"
    then = cut.stamps.get(disk, "")
    if not then:
        return f"nothing tells whether {target.place} was written since {cut.time}"
    try:
        now = targets.stamp(target.place)
    except Error as error:
        return f"{target.place} cannot be looked at: {error.message}"
    return "" if now == then else f"{target.place} was written since {cut.time}"
