"""The interim overlay: the child of a journal that takes every write after a failover.

It is made empty and durable, and dropped without a trace. Who writes it between
the two is others' business: the conversion of the guest, then the hypervisor.

Bytes: docs/formats.md, "VMDK files we write".
"""

from __future__ import annotations

import contextlib

from ._native import OPEN_BENEATH, OPEN_READ, Dir
from .create import NewDisk
from .descriptor import LIMIT_BYTES, Descriptor, parse, require_base_name
from .errors import NotFoundError, UsageError
from .manifest import Recovered
from .units import SECTOR_BYTES

# QEMU syncs once for each new grain, so it gets large ones; ESXi is only known
# to use grains of one sector.
KINDS = {
    "hosted": ("twoGbMaxExtentSparse", 65536),
    "vmfsSparse": ("vmfsSparse", SECTOR_BYTES),
}


def interim_name(disk_name: str, number: int = 1) -> str:
    """Name of an overlay's descriptor. A failover makes the first; others count from 2."""
    return f"{disk_name}-interim" + (f"-{number:06d}" if number > 1 else "") + ".vmdk"


def free_number(recovered: Recovered) -> int:
    """The lowest number that no overlay of a failover has."""
    taken = {name for disk in recovered.interims for name in recovered.overlays(disk)}
    for number in range(1, len(taken) + 2):
        if not any(interim_name(disk, number) in taken for disk in recovered.interims):
            return number
    raise AssertionError("unreachable")


def delta_name(descriptor: str) -> str:
    """Name of the extent of the overlay with that descriptor."""
    return descriptor.removesuffix(".vmdk") + "-delta.vmdk"


def create_interim(
    dir: Dir,
    disk_name: str,
    parent_descriptor: str,
    size_bytes: int,
    *,
    kind: str = "hosted",
    number: int = 1,
    name: str | None = None,
    replace: bool = False,
) -> str:
    """Make an empty overlay above a parent; durable and whole, or not there.

    Args:
        dir: The replica's directory, which holds the parent.
        disk_name: Of the disk; the overlay is named after it.
        parent_descriptor: File name of the parent's descriptor.
        size_bytes: Of the disk.
        kind: "hosted" for QEMU: every grain table allocated, as holes, because
            QEMU destroys an image where one is missing; "vmfsSparse" for ESXi.
        number: Of the overlay, among those of the disk.
        name: Of its descriptor, where it is no overlay of a failover.
        replace: Take away first what an earlier try left. Only for a caller whose
            record says that nothing has been written into it.

    Returns:
        File name of the overlay's descriptor.

    Raises:
        ExistsError: One of its files is there, and replace is False.
        StorageError: The system refused; what had been made was removed.
    """
    if kind not in KINDS:
        raise UsageError(f"an interim of kind {kind!r} is not known", f"take one of {list(KINDS)}")
    create_type, grain_bytes = KINDS[kind]
    parent = _read(dir, require_base_name(parent_descriptor, dir.path, "parent"))
    if parent.sectors * SECTOR_BYTES != size_bytes:
        raise UsageError(
            f"{dir.path}/{parent_descriptor} has {parent.sectors * SECTOR_BYTES} bytes, and its"
            f" overlay would have {size_bytes}",
            "give the size of the disk",
        )
    name = name or interim_name(disk_name, number)
    if replace:
        remove_interim(dir, name)
    with NewDisk(
        dir,
        name,
        create_type,
        size_bytes,
        parent=(parent_descriptor, parent.cid),
        grain_bytes=grain_bytes,
        split_sectors=size_bytes // SECTOR_BYTES,
        zero_grains=True,
        redundant=False,  # QEMU would write every table entry twice
        file_names=[delta_name(name)],
    ) as new:
        new.publish()
    return name


def remove_interim(dir: Dir, descriptor: str) -> None:
    """Drop an overlay, durably. Asked twice, or after a crash, it happens once.

    The descriptor goes first: an extent that no descriptor names is no disk.
    """
    for name in (descriptor, delta_name(descriptor)):
        with contextlib.suppress(NotFoundError):
            dir.unlink(name)
        dir.sync()


def _read(dir: Dir, name: str) -> Descriptor:
    file = dir.open(name, OPEN_READ | OPEN_BENEATH)
    try:
        return parse(file.pread(LIMIT_BYTES + 1, 0), file.path)
    finally:
        file.close()
