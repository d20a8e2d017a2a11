"""Writing VMDK descriptors: new ones, and small edits of ones that others wrote. No I/O.

A new one is written with every comment title that some reader insists on. An
edit changes the bytes it must change and keeps the rest as it is: order,
comments, line ends and keys of products we do not know.

Source: "VMware Virtual Disk Format 5.0" (descriptor file, content ids).
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Sequence

from .descriptor import LIMIT_BYTES, NO_PARENT, Descriptor, Extent, codec_of, short
from .errors import FormatError, UsageError

TITLE = "# Disk DescriptorFile"
TITLE_EXTENTS = "# Extent description"
TITLE_TRACKING = "# Change Tracking File"
TITLE_DDB = "# The Disk Data Base"
ADAPTERS = frozenset({"ide", "lsilogic", "buslogic", "legacyESX"})
# ddb key of a child whose commit into its parent has begun: the content id that
# the parent gets. Removed at the end of the commit.
COMMIT_KEY = "ddb.rollpoint.commit"

_NEVER_WRITTEN = 0xFFFFFFFE  # VMware's content id of a disk that nobody has written


def format_descriptor(descriptor: Descriptor) -> bytes:
    """The text of a descriptor, with the titles that other readers look for.

    ``parse`` of it gives an equal descriptor.

    Raises:
        UsageError: A name has a quote or another character that the format or
            the encoding cannot express, or the text is larger than 1 MiB.
    """
    codec = codec_of(descriptor.encoding)
    if codec is None:
        raise UsageError(f"encoding {descriptor.encoding!r} is not known", "take UTF-8")
    lines = [TITLE, f"version={descriptor.version}"]
    if descriptor.encoding is not None:
        lines.append(f"encoding={quoted(descriptor.encoding)}")
    lines += [f"CID={descriptor.cid:08x}", f"parentCID={descriptor.parent_cid:08x}"]
    lines += [f"{key}={value}" for key, value in descriptor.other]
    lines.append(f"createType={quoted(descriptor.create_type)}")
    if descriptor.parent_hint is not None:
        lines.append(f"parentFileNameHint={quoted(descriptor.parent_hint)}")
    lines += ["", TITLE_EXTENTS, *map(_format_extent, descriptor.extents), ""]
    if descriptor.change_track_path is not None:
        lines += [TITLE_TRACKING, f"changeTrackPath={quoted(descriptor.change_track_path)}", ""]
    lines += [TITLE_DDB, "#DDB", ""]
    lines += [f"{key} = {value}" for key, value in descriptor.ddb]
    try:
        data = ("\n".join(lines) + "\n").encode(codec)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{short(error.object[error.start : error.end])} cannot be written in the"
            f" descriptor's encoding {descriptor.encoding or 'UTF-8'}",
            "choose another name",
        ) from None
    if len(data) > LIMIT_BYTES:
        raise UsageError("the descriptor would be larger than 1 MiB", "use fewer, larger extents")
    return data


def _format_extent(extent: Extent) -> str:
    line = f"{extent.access} {extent.sectors} {extent.type}"
    if extent.file is not None:
        line += f" {quoted(extent.file)}"
    if extent.offset_sectors is not None:
        line += f" {extent.offset_sectors}"
    return f"{line} {extent.rest}" if extent.rest else line


def quoted(text: str) -> str:
    """Text in quotes.

    Raises:
        UsageError: It has a quote, a line end or a NUL; the format has no escape.
    """
    if any(character in text for character in '"\r\n\0'):
        raise UsageError(
            f"{short(text)} has a quote, a line end or a NUL, which a descriptor cannot hold",
            "choose another name",
        )
    return f'"{text}"'


def new_cid() -> int:
    """A random content id; never the two values that mean "none" and "never written"."""
    while True:
        cid = int.from_bytes(os.urandom(4))  # secrets takes 5 ms to import
        if cid not in (NO_PARENT, _NEVER_WRITTEN, 0):
            return cid


def geometry(sectors: int, adapter: str) -> tuple[int, int, int]:
    """Cylinders, heads and sectors a track to write for a disk.

    IDE: 16 heads, 63 sectors, at most 16383 cylinders. SCSI: 255 and 63, below
    1 GiB 64 and 32, at most 65535 cylinders.
    """
    if adapter == "ide":
        return min(max(sectors // (16 * 63), 1), 16383), 16, 63
    heads, track = (64, 32) if sectors < 1 << 21 else (255, 63)
    return min(max(sectors // (heads * track), 1), 65535), heads, track


def new_descriptor(
    create_type: str,
    extents: Sequence[Extent],
    *,
    parent: tuple[str, int] | None = None,
    adapter: str = "lsilogic",
    ddb: Sequence[tuple[str, str]] = (),
) -> Descriptor:
    """A descriptor for new files, with a random content id.

    Args:
        parent: File name and content id of the parent.
        ddb: Further lines of the disk data base: key without "ddb.", value.

    Raises:
        UsageError: The adapter is unknown, or a name cannot be written.
    """
    if adapter not in ADAPTERS:
        raise UsageError(f"adapter {adapter!r} is not known", f"take one of {sorted(ADAPTERS)}")
    cid = new_cid()
    cylinders, heads, track = geometry(sum(extent.sectors for extent in extents), adapter)
    pairs = [
        ("adapterType", adapter),
        ("geometry.cylinders", str(cylinders)),
        ("geometry.heads", str(heads)),
        ("geometry.sectors", str(track)),
        ("longContentID", f"{os.urandom(12).hex()}{cid:08x}"),
        ("virtualHWVersion", "4"),
        *ddb,
    ]
    return Descriptor(
        create_type=create_type,
        cid=cid,
        extents=tuple(extents),
        parent_cid=NO_PARENT if parent is None else parent[1],
        parent_hint=None if parent is None else parent[0],
        ddb=tuple((f"ddb.{key}", quoted(value)) for key, value in pairs),
    )


def noted_commit(descriptor: Descriptor) -> int | None:
    """The content id that a commit which has begun gives to the parent, or None."""
    text = descriptor.ddb_text(COMMIT_KEY.removeprefix("ddb."))
    return int(text, 16) if text is not None and re.fullmatch("[0-9a-f]{8}", text) else None


def edit(
    data: bytes,
    *,
    cid: int | None = None,
    parent_cid: int | None = None,
    parent_hint: str | None = None,
    commit: int | None = None,
    end_commit: bool = False,
    drop_tracking: bool = False,
) -> bytes:
    """A descriptor's text with some values changed and every other byte kept.

    Args:
        data: A text that ``parse`` accepts, without padding.
        cid: The new content id; the tail of ddb.longContentID follows it.
        parent_cid: The new content id of the parent.
        parent_hint: The new file name of the parent, of a child.
        commit: Note that a commit has begun, and the content id the parent gets.
        end_commit: Take that note away.
        drop_tracking: Take the change tracking file out: it is stale as soon as
            anybody else writes the disk.

    Raises:
        FormatError: A line to change is not there.
    """
    if cid is not None:
        data = _set(data, rb"CID", b"%08x" % cid)
        data = re.sub(
            rb'(?im)^([ \t]*ddb\.longContentID[ \t]*=[ \t]*"?[0-9a-f]{24})[0-9a-f]{8}',
            lambda match: match[1] + b"%08x" % cid,
            data,
        )
    if parent_cid is not None:
        data = _set(data, rb"parentCID", b"%08x" % parent_cid)
    if parent_hint is not None:
        data = _set_text(data, b"parentFileNameHint", quoted(parent_hint).encode())
    if commit is not None or end_commit:
        key = re.escape(COMMIT_KEY.encode())
        data = re.sub(rb"(?im)^[ \t]*%s[ \t]*=[^\n]*(?:\n|\Z)" % key, b"", data)
    if commit is not None:
        gap = b"" if data.endswith(b"\n") else b"\n"
        data += gap + b'%s = "%08x"\n' % (COMMIT_KEY.encode(), commit)
    if drop_tracking:
        data = re.sub(rb"(?im)^[ \t]*changeTrackPath[ \t]*=[^\n]*(?:\n|\Z)", b"", data)
        data = re.sub(rb"(?m)^# Change Tracking File[ \t\r]*(?:\n|\Z)", b"", data)
        bom = codecs.BOM_UTF8
        data = re.sub(rb'(?im)^((?:%s)?[ \t]*version[ \t]*=[ \t]*"?)3' % bom, rb"\g<1>1", data)
    return data


def _set(data: bytes, key: bytes, value: bytes) -> bytes:
    return _replace(data, key, rb"(?im)^([ \t]*%s[ \t]*=[ \t]*\"?)[0-9a-f]{1,8}" % key, value)


def _set_text(data: bytes, key: bytes, value: bytes) -> bytes:
    return _replace(data, key, rb"(?im)^([ \t]*%s[ \t]*=[ \t]*)[^\r\n]*" % key, value)


def _replace(data: bytes, key: bytes, pattern: bytes, value: bytes) -> bytes:
    changed, count = re.subn(pattern, lambda match: match[1] + value, data, count=1)
    if count != 1:
        raise FormatError(f"the descriptor has no {key.decode()} line", "take another copy")
    return changed
