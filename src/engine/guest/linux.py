"""Making a Linux guest start on other hardware."""

from __future__ import annotations

from collections.abc import Sequence

from ..volumes.base import Volume
from . import booting, loaders, loading, tables
from .base import Guest, Wanted
from .edits import Edits
from .names import Names

LVM_DEVICES = "/etc/lvm/devices/system.devices"


def plan(edits: Edits, guest: Guest, wanted: Wanted) -> list[booting.Plan]:
    """What its kernels need, before anything is written.

    Raises:
        GuestError: It has no driver for the controller, or no room (with numbers).
    """
    plans = booting.plan(edits, guest, wanted)
    booting.check_space(edits, plans)
    return plans


def convert(
    edits: Edits,
    guest: Guest,
    wanted: Wanted,
    volumes: Sequence[Volume],
    plans: Sequence[booting.Plan],
) -> None:
    """What the new hardware asks of it; its network and its EFI loader are done elsewhere."""
    names = known_names(edits, guest, volumes)
    tables.edit_fstab(edits, names, guest.root)
    tables.edit_crypttab(edits, names)
    tables.edit_resume(edits, names)
    booting.write(edits, plans)  # a changed file may have to be in the initramfs, too
    loaders.convert(edits, guest, wanted, names)
    _edit_lvm(edits)
    tables.warn_of_units(edits)


def known_names(edits: Edits, guest: Guest, volumes: Sequence[Volume]) -> Names:
    """Names of the volumes, with what the lines for the root tell of the disks' old names."""
    names = Names(volumes)
    root = next((volume for volume in volumes if volume.name == guest.root), None)
    if root is None:
        return names
    data = edits.read("/etc/fstab")
    for entry in tables.entries(data or b""):
        if entry.at == "/":
            names.learn(entry.spec, root)
    for loaded in loading.load(edits.tree)[:1]:  # the default one, which starts this root
        names.learn(loading.argument(loaded.options, "root"), root)
    return names


def _edit_lvm(edits: Edits) -> None:
    """RHEL 9's list of the disks that LVM may use names them by the old hardware's ids.

    Without the list LVM looks at all disks, as it did before there was one.
    """
    stat = edits.tree.stat(LVM_DEVICES, follow=False)
    if stat is not None and stat.kind == "file":
        edits.remove(LVM_DEVICES, "lists disks by ids that the new hardware does not have")
    for line in tables.lines_of(edits.read("/etc/lvm/lvm.conf") or b""):
        words = line.strip()
        if words.startswith((b"filter", b"global_filter")) and b"/dev/" in words:
            shown = tables.text(words)[:200]
            edits.warn(f"/etc/lvm/lvm.conf: {shown}: see that the new disks are allowed")
