"""Making a Linux guest start on other hardware."""

from __future__ import annotations

from collections.abc import Sequence

from ..volumes.base import Volume
from . import tables
from .base import Guest, Wanted
from .edits import Edits
from .names import Names


def convert(edits: Edits, guest: Guest, wanted: Wanted, volumes: Sequence[Volume]) -> None:
    """What the new hardware asks of it; its network and its EFI loader are done elsewhere."""
    names = known_names(edits, guest, volumes)
    tables.edit_fstab(edits, names)
    tables.edit_crypttab(edits, names)
    tables.edit_resume(edits, names)


def known_names(edits: Edits, guest: Guest, volumes: Sequence[Volume]) -> Names:
    """Names of the volumes, with what fstab's line for the root tells of the disks' old names."""
    names = Names(volumes)
    root = next((volume for volume in volumes if volume.name == guest.root), None)
    data = edits.read("/etc/fstab")
    for entry in tables.entries(data or b""):
        if entry.at == "/" and root is not None:
            names.learn(entry.spec, root)
    return names
