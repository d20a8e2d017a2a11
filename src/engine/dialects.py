"""Which VMDKs are read: what a type may consist of, and why the others are refused. No I/O.

Source: "VMware Virtual Disk Format 5.0"; for what real files have beside it, see
docs/formats.md, "What is read".
"""

from __future__ import annotations

from ._native import (
    EXTENT_COWD,
    EXTENT_FLAT,
    EXTENT_NOACCESS,
    EXTENT_SESPARSE,
    EXTENT_SPARSE,
    EXTENT_STREAM,
    EXTENT_ZERO,
)
from .descriptor import Descriptor, Extent, short
from .errors import FormatError, UnsupportedError

# extent type -> what its file may turn out to be. What a header says counts, not
# the word: streams stand behind SPARSE, and so do COWD files of other writers.
_KINDS = {
    "FLAT": (EXTENT_FLAT,),
    "VMFS": (EXTENT_FLAT,),
    "ZERO": (EXTENT_ZERO,),
    "SPARSE": (EXTENT_SPARSE, EXTENT_STREAM, EXTENT_COWD),
    "VMFSSPARSE": (EXTENT_COWD,),
    "SESPARSE": (EXTENT_SESPARSE,),
}
WRITTEN_ONCE = {EXTENT_STREAM: "compressed", EXTENT_SESPARSE: "seSparse"}

_FLAT = frozenset({"FLAT", "ZERO"})
_SPARSE = frozenset({"SPARSE", "ZERO"})
_VMFS = frozenset({"VMFS", "FLAT", "ZERO"})
# createType -> the extent types it may have, in a descriptor that is a file of its own
_READABLE = {
    "monolithicFlat": _FLAT,
    "twoGbMaxExtentFlat": _FLAT,
    "monolithicSparse": _SPARSE,
    "twoGbMaxExtentSparse": _SPARSE,
    "streamOptimized": _SPARSE,
    "vmfs": _VMFS,
    "vmfsPreallocated": _VMFS,
    "vmfsEagerZeroedThick": _VMFS,
    "vmfsThin": _VMFS,
    "vmfsThick": _VMFS,
    "vmfsSparse": frozenset({"VMFSSPARSE", "ZERO"}),
    "seSparse": frozenset({"SESPARSE", "ZERO"}),
    "custom": frozenset(_KINDS),
}
EMBEDDED = ("monolithicSparse", "streamOptimized")  # their descriptor lies in their extent

_COPY_DEVICE = "copy the device into a file and open that"
_ON_HOST = "copy it on the ESXi host: vmkfstools -i SOURCE TARGET"
_MAPPED = ("its data lies on a mapped device", _ON_HOST)
_REASONS = {
    "fullDevice": ("its data lies on a device", _COPY_DEVICE),
    "partitionedDevice": ("its data lies on a device", _COPY_DEVICE),
    "vmfsRawDeviceMap": _MAPPED,
    "vmfsPassthroughRawDeviceMap": _MAPPED,
    "vmfsRaw": ("its data lies on a device", _ON_HOST),
    "vsanSparse": ("its data lies in vSAN objects", _ON_HOST),
}
_DEVICE_EXTENTS = {"VMFSRDM": _MAPPED, "VMFSRAW": ("its data lies on a device", _ON_HOST)}
_OBJECTS = ("vsan://", "vvol://")  # extents that are no files
_ENCRYPTED_KEYS = ("keyid", "keysafe", "encryption")
_DECRYPT = "decrypt it where its keys are: change its storage policy"


def require_readable(descriptor: Descriptor, path: str, embedded: bool) -> None:
    """The disk is of a kind that is read.

    Args:
        path: Of the descriptor, for messages.
        embedded: The descriptor lies inside an extent.

    Raises:
        UnsupportedError: It is not; the message says why, and the hint what to do.
        FormatError: Its extents do not go with its type.
    """
    _refuse_device(descriptor, path)
    _refuse_encrypted(descriptor, path)
    native = (descriptor.other_text("isNativeSnapshot") or "no").lower()
    if native != "no" and descriptor.parent_hint is not None:
        raise UnsupportedError(
            f"{path} is a snapshot inside the storage array", "consolidate the snapshots"
        )
    create_type = descriptor.create_type
    types = [extent.type for extent in descriptor.extents]
    if embedded:
        if create_type not in EMBEDDED or types != ["SPARSE"]:
            raise FormatError(
                f"{path}: its descriptor lies inside an extent and says {create_type} with"
                f" {len(types)} extent{'' if len(types) == 1 else 's'} of type {types[0]}",
                "such a disk is monolithicSparse or streamOptimized: take another copy",
            )
        return
    for type in types:
        if type not in _READABLE[create_type]:
            raise UnsupportedError(
                f"{path} is {create_type} and has an extent of type {type}",
                "if that is so, say createType=\"custom\" in the descriptor",
            )


def _refuse_device(descriptor: Descriptor, path: str) -> None:
    if descriptor.create_type in _REASONS:
        reason, hint = _REASONS[descriptor.create_type]
        raise UnsupportedError(f"{path} is {descriptor.create_type}: {reason}", hint)
    for extent in descriptor.extents:
        if extent.type in _DEVICE_EXTENTS:
            reason, hint = _DEVICE_EXTENTS[extent.type]
            raise UnsupportedError(f"{path} has an extent of type {extent.type}: {reason}", hint)
        if extent.file is not None and extent.file.lower().startswith(_OBJECTS):
            raise UnsupportedError(
                f"{path}: its extent {short(extent.file)} is an object of a storage system,"
                " not a file",
                _ON_HOST,
            )


def _refuse_encrypted(descriptor: Descriptor, path: str) -> None:
    for key, _ in descriptor.other:
        if key.lower().startswith(_ENCRYPTED_KEYS) and descriptor.other_text(key):
            raise UnsupportedError(f"{path} is encrypted: it has a line {key}", _DECRYPT)
    for key, value in descriptor.ddb:
        if key.lower() == "ddb.iofilters" and "crypt" in value.lower():
            raise UnsupportedError(f"{path} is encrypted: its {key} is {short(value)}", _DECRYPT)


def kind_of(extent: Extent, header: dict[str, int] | None, path: str, file: str) -> int:
    """What the native side reads an extent as.

    Args:
        header: Of its file, where it is sparse.
        path: Of the descriptor, for messages; file: of the extent.

    Raises:
        FormatError: The file is something else than the extent line says.
    """
    if extent.access == "NOACCESS":
        return EXTENT_NOACCESS
    kinds = _KINDS[extent.type]
    if header is None:
        return kinds[0]
    if header["kind"] not in kinds:
        raise FormatError(
            f"{file} is not the {extent.type} extent that {path} says",
            "the files do not belong together: take another copy",
        )
    return header["kind"]


def is_flat(extent: Extent) -> bool:
    """The bytes of the disk lie in its file one after the other."""
    return _KINDS[extent.type][0] == EXTENT_FLAT
