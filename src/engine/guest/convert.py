"""The whole conversion of a guest that was found."""

from __future__ import annotations

from ..errors import GuestError
from . import efi, linux, network, windows
from .base import Wanted
from .edits import Edits
from .inspect import Found

MIB = 1 << 20
# Where something is written, for small files. What is large is asked for where it is made.
FREE_BYTES = {"/": MIB, "/boot": MIB // 4}
FREE_INODES = 50
NO_INODES = ("btrfs", "vfat", "ntfs")  # made as they are wanted


def convert(found: Found, wanted: Wanted) -> Edits:
    """Make a guest start on the hardware that is wanted. A second time, nothing changes.

    Raises:
        GuestError: It cannot be made to: no such driver, no room (with numbers), no loader
            for that firmware. What was changed by then stays: the overlay is to be dropped.
    """
    edits = Edits(found.tree)
    for warning in found.warnings:
        edits.warn(warning)
    _check_firmware(found, wanted, edits)
    _check_space(found)
    if found.guest.os == "linux":
        plans = linux.plan(edits, found.guest, wanted)
        network.convert(edits, found.guest, wanted)  # first: the initramfs gets the cards' names
        linux.convert(edits, found.guest, wanted, found.volumes, plans)
    else:
        network.convert(edits, found.guest, wanted)
        windows.convert(edits, found.guest, wanted)
    efi.convert(edits, found.guest, wanted)
    found.tree.sync()
    return edits


def _check_firmware(found: Found, wanted: Wanted, edits: Edits) -> None:
    boot = found.guest.boot
    if not boot:
        edits.warn("nothing tells whether the guest starts from BIOS or UEFI")
    elif wanted.firmware not in boot:
        raise GuestError(
            f"the machine has {wanted.firmware} firmware, and the guest's disks are prepared for "
            f"{' and '.join(boot)} alone",
            f'set firmware = "{boot[0]}" in [machine] of replica.toml',
        )


def _check_space(found: Found) -> None:
    """Before anything is written: what is free on each file system."""
    for at, wanted in FREE_BYTES.items():
        fs = found.tree.mounts.get(at)
        if fs is None:
            continue
        space = fs.space()
        if space.bytes_free < wanted:
            raise GuestError(
                f"{at} in the guest ({fs.volume.name}) has {space.bytes_free} bytes free of "
                f"{space.bytes_total}; a conversion wants {wanted}",
                "make room in the guest, or fail over to an earlier point",
            )
        inodes = None if fs.volume.kind in NO_INODES else space.inodes_free
        if inodes is not None and inodes < FREE_INODES:
            raise GuestError(
                f"{at} in the guest ({fs.volume.name}) has {inodes} inodes free; "
                f"a conversion wants {FREE_INODES}",
                "remove files in the guest, or fail over to an earlier point",
            )
