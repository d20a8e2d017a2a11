"""What lies below the journals: the disks that a destage writes, and their content ids.

A disk gets a new content id before its first write, so that children made before know
that what they read through is not what it was. The journal is such a child, and one that
loses nothing: it holds all that is written. So its descriptor follows, in steps that are
each durable before the next: (1) the manifest notes the coming content ids, (2) the disks
below get them, (3) the journals name them, (4) the note goes. Between (2) and (3) the
chain is refused by everybody; after a crash whoever takes the replica's lock next does
(3) and (4), by `mend`.
"""

from __future__ import annotations

from . import manifest as manifests
from ._native import Dir
from .descriptor_write import new_cid
from .disk import OpenDisk
from .errors import StateError
from .link import read_beside
from .manifest import Manifest


def begin(directory: Dir, manifest: Manifest, below: dict[str, OpenDisk]) -> None:
    """Give every disk below a journal a new content id, durably. Inside the lock.

    Args:
        below: Disk name and what is below its journal, open for writing.
    """
    for disk in manifest.disks:
        disk.below_cid = new_cid()
    manifests.store(directory, manifest)
    for disk in manifest.disks:
        assert disk.below_cid is not None
        below[disk.name].begin(disk.below_cid)
    mend(directory, manifest)


def mend(directory: Dir, manifest: Manifest) -> None:
    """Let the journals follow what a note in the manifest says. Inside the lock.

    Where the disk below has not got the noted content id, nothing has happened yet.

    Raises:
        StateError: A journal's descriptor names no parent.
        Error: A descriptor cannot be read or replaced.
    """
    noted = [disk for disk in manifest.disks if disk.below_cid is not None]
    for disk in noted:
        if disk.journal is not None:
            follow(directory, disk.journal, disk.below_cid)
    for disk in noted:
        disk.below_cid = None
    if noted:
        manifests.store(directory, manifest)


def follow(directory: Dir, child_name: str, wanted: int | None = None) -> None:
    """Let a child name the content id that its parent has. Only for who knows why it changed.

    Args:
        wanted: Only where the parent has this one.

    Raises:
        StateError: The child's descriptor names no parent.
        Error: A descriptor cannot be read or replaced.
    """
    child = read_beside(directory, child_name)
    try:
        assert child.descriptor is not None
        if child.descriptor.parent_hint is None:
            raise StateError(
                f"{child.path} names no parent", "restore it from a copy of the datastore"
            )
        parent = read_beside(directory, child.descriptor.parent_hint)
        try:
            assert parent.descriptor is not None
            has = parent.descriptor.cid
        finally:
            parent.close()
        if wanted in (None, has) and child.descriptor.parent_cid != has:
            child.rewrite(parent_cid=has)
    finally:
        child.close()
