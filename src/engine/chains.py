"""The chain below a journal: base, then delta disks, each a child of the one before.

  base <- disk-000001.vmdk <- disk-000002.vmdk <- journal

A delta disk is an ordinary VMDK child. What a destage writes is the newest link; all
others are frozen: each shows a long-term restore point. Here are the steps in which the
chain gets a new link on top, and in which two of its links become one. The manifest says
what is under way (`freezing`, `merging`), and after every step the chain below the journal
opens and shows the same, but for one moment that `settle` ends: when the content id of a
link has changed and its child does not name it yet. When to do what is said in frozen.py.

Bytes: docs/formats.md, "Long-term restore points".
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

from . import manifest as manifests
from ._native import Dir
from .create import NewDisk
from .descriptor import Descriptor
from .descriptor_write import new_cid
from .disk import OpenDisk
from .errors import DamagedError, NotFoundError
from .link import read_beside
from .manifest import DiskEntry, Manifest
from .side_by_side import side_by_side
from .units import SECTOR_BYTES

DELTA_TYPE = "twoGbMaxExtentSparse"  # beside its descriptor, which is replaced whole
TABLES_MAX = 1 << 19  # of a delta disk: each takes 12 bytes of memory while a link is open
GRAIN_BYTES_MAX = 65536
_TABLE_ENTRIES = 512
_NUMBER = re.compile(r"-(\d{6,})\.vmdk\Z")


def target_names(manifest: Manifest) -> dict[str, str]:
    """Disk name -> file name of what is below its journal, and what a destage writes."""
    return {disk.name: disk.below for disk in manifest.disks}


def extent_name(delta: str) -> str:
    """Name of the extent of a delta disk, by the name of its descriptor."""
    return f"{delta.removesuffix('.vmdk')}-delta.vmdk"


def links_of(manifest: Manifest, disk: DiskEntry) -> list[str]:
    """All links that the manifest knows of a disk, the base among them; in no order."""
    names = {disk.base: None, disk.below: None}
    for frozen in manifest.frozen:
        names[frozen.links[disk.name]] = None
    if manifest.freezing is not None:
        names[manifest.freezing.tops[disk.name]] = None
        names[manifest.freezing.point.links[disk.name]] = None
    if manifest.merging is not None:
        names[manifest.merging.away[disk.name]] = None
        names[manifest.merging.into[disk.name]] = None
    return list(names)


def remove_links(directory: Dir, manifest: Manifest, disk: DiskEntry) -> None:
    """Remove every delta disk of a disk. Asked twice, it happens once."""
    for name in links_of(manifest, disk):
        if name != disk.base:
            remove_delta(directory, name)


def new_names(directory: Dir, manifest: Manifest) -> dict[str, str]:
    """Disk name -> name for its next delta disk: above the numbers of all that live."""
    names = {}
    for disk in manifest.disks:
        found = (_NUMBER.search(name) for name in links_of(manifest, disk) if name != disk.base)
        number = 1 + max([0, *(int(match[1]) for match in found if match is not None)])
        while any(directory.exists(file) for file in _files(f"{disk.name}-{number:06}.vmdk")):
            number += 1
        names[disk.name] = f"{disk.name}-{number:06}.vmdk"
    return names


def _files(delta: str) -> tuple[str, str]:
    return delta, extent_name(delta)


def grain_bytes_of(disk: DiskEntry) -> int:
    """Of a disk's delta disks: the journal's, so that a destage copies nothing up.

    Above 1 TiB they are larger: a chain has many links, and each has the tables of the
    whole disk.
    """
    grain = disk.grain_bytes
    while grain < GRAIN_BYTES_MAX and disk.size_bytes > TABLES_MAX * _TABLE_ENTRIES * grain:
        grain *= 2
    return grain


def make_delta(directory: Dir, disk: DiskEntry, name: str, parent: str) -> None:
    """Make an empty delta disk above a link; one that is there is whole, and stays.

    Raises:
        StorageError: The system refused; what had been made was removed.
    """
    if directory.exists(name):
        return
    remove_delta(directory, name)
    with NewDisk(
        directory,
        name,
        DELTA_TYPE,
        disk.size_bytes,
        parent=(parent, read_descriptor(directory, parent).cid),
        grain_bytes=grain_bytes_of(disk),
        split_sectors=disk.size_bytes // SECTOR_BYTES,
        zero_grains=True,
        redundant=False,
        file_names=[extent_name(name)],
    ) as new:
        new.publish()


def remove_delta(directory: Dir, name: str) -> None:
    """Remove a delta disk, its descriptor first. Asked twice, it happens once."""
    for file in (name, f"{name}.new", extent_name(name)):
        with contextlib.suppress(NotFoundError):
            directory.unlink(file)
    directory.sync()


def read_descriptor(directory: Dir, name: str) -> Descriptor:
    """What a file of the replica says about its disk."""
    link = read_beside(directory, name)
    link.close()
    assert link.descriptor is not None
    return link.descriptor


def _rewrite(
    directory: Dir, name: str, *, parent_cid: int, parent_hint: str | None = None
) -> None:
    """Let a journal or delta disk name its parent's content id, or another parent."""
    link = read_beside(directory, name)
    try:
        link.rewrite(parent_cid=parent_cid, parent_hint=parent_hint)
    finally:
        link.close()


def _child_of(directory: Dir, disk: DiskEntry, wanted: str) -> str | None:
    """The name of what names a link as its parent, in the chain of a disk's journal."""
    assert disk.journal is not None
    name = disk.journal
    for _ in range(1 << 16):
        parent = read_descriptor(directory, name).parent_hint
        if parent is None or parent == wanted:
            return None if parent is None else name
        name = parent
    raise DamagedError(
        f"{directory.path}/{disk.journal}: its parents go in a circle",
        "correct parentFileNameHint",
    )


# ---- putting right what a crash left ----


def settle(directory: Dir, manifest: Manifest) -> None:
    """Finish what a crash cut off and is done in a moment. Inside the lock; saves.

    A long-term point that was being made is made. Where the content id of a link has
    changed, its child names it. What nobody needs any more after a merge is removed.

    Raises:
        StorageError, DamagedError: A file cannot be made, replaced or removed.
    """
    if manifest.freezing is not None:
        finish_freezing(directory, manifest)
    merging = manifest.merging
    if merging is None:
        return
    if merging.stage != "data":
        relink(directory, manifest)
        drop_merged(directory, manifest)
        return
    for disk, cid in merging.cids.items():
        away = merging.away[disk]
        if (
            read_descriptor(directory, merging.into[disk]).cid == cid
            and read_descriptor(directory, away).parent_cid != cid
        ):
            _rewrite(directory, away, parent_cid=cid)


# ---- a new link on top ----


def finish_freezing(directory: Dir, manifest: Manifest) -> None:
    """Put a new delta disk on top of every chain, and record the point. Inside the lock.

    Nothing has been written to the links that show the point since its record was made,
    and nothing to the new ones before this returns: so however often it is cut short,
    every chain shows the same with its new link and without.
    """
    freezing = manifest.freezing
    assert freezing is not None

    def put_on_top(disk: DiskEntry) -> None:
        name = freezing.tops[disk.name]
        make_delta(directory, disk, name, freezing.point.links[disk.name])
        assert disk.journal is not None
        if read_descriptor(directory, disk.journal).parent_hint != name:
            cid = read_descriptor(directory, name).cid
            _rewrite(directory, disk.journal, parent_cid=cid, parent_hint=name)

    side_by_side(put_on_top, manifest.disks)
    manifest.frozen = [*manifest.frozen, freezing.point]
    for disk in manifest.disks:
        disk.top = freezing.tops[disk.name]
    manifest.freezing = None
    manifests.store(directory, manifest)


# ---- two links become one ----


def begin_merging(directory: Dir, manifest: Manifest, into: Mapping[str, OpenDisk]) -> None:
    """Give the lower links of a merge new content ids, which their children name. Locked.

    Args:
        into: Disk name -> the lower link, open for writing.
    """
    merging = manifest.merging
    assert merging is not None
    merging.cids = {disk: new_cid() for disk in into}
    manifests.store(directory, manifest)
    for disk, lower in into.items():
        lower.begin(merging.cids[disk])
        _rewrite(directory, merging.away[disk], parent_cid=merging.cids[disk])


def finish_merging(directory: Dir, manifest: Manifest) -> None:
    """All data of the upper links lies in the lower ones, durably. Inside the lock.

    From here on nothing of it may move again: some links may name the lower ones already.
    """
    merging = manifest.merging
    assert merging is not None
    merging.stage = "links"
    manifests.store(directory, manifest)
    relink(directory, manifest)


def relink(directory: Dir, manifest: Manifest) -> None:
    """Nothing names the upper links of a merge any more after this. Inside the lock."""
    merging = manifest.merging
    assert merging is not None
    if merging.stage == "files":
        return
    for disk in manifest.disks:
        away, into = merging.away[disk.name], merging.into[disk.name]
        child = _child_of(directory, disk, away)
        if child is not None:
            cid = read_descriptor(directory, into).cid
            _rewrite(directory, child, parent_cid=cid, parent_hint=into)
        for frozen in manifest.frozen:
            if frozen.links[disk.name] == away:
                frozen.links[disk.name] = into
                frozen.digests.pop(disk.name, None)
        if disk.top == away:
            disk.top = None if into == disk.base else into
    merging.stage = "files"
    manifests.store(directory, manifest)


def drop_merged(directory: Dir, manifest: Manifest) -> None:
    """Remove the upper links of a merge, which nothing names any more. Inside the lock."""
    merging = manifest.merging
    assert merging is not None
    assert merging.stage == "files"
    for name in merging.away.values():
        remove_delta(directory, name)
    manifest.merging = None
    manifests.store(directory, manifest)
