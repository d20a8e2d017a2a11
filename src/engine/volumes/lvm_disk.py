"""LVM2: what lies on a physical volume: its label, and copies of its group's metadata.

Source: lib/format_text of LVM2 (layout.h: label, physical volume header, metadata area).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import FormatError
from ..units import SECTOR_BYTES
from .lvm_text import TEXT_BYTES_MAX, Section, parse_text
from .window import Window

READ_BYTES_MAX = 64 << 20  # of all copies of a machine's metadata together
PARSED_BYTES_MAX = 8 << 20  # of those that differ
_CHUNK_BYTES = 1 << 20
_AREA_MAGIC = b" LVM2 x[5A%r0N*>"
_AREA_HEADER_BYTES = 512
_IGNORED = 1


class Area(NamedTuple):
    offset: int
    length: int


class Text(NamedTuple):
    """One copy of a group's metadata."""

    physical: str
    seqno: int
    group: str
    section: Section


@dataclass
class Physical:
    """A physical volume by its label."""

    name: str
    id: str
    size_bytes: int
    areas: tuple[Area, ...] = ()
    group_id: str = ""  # by its own metadata; "" where it has none


@dataclass
class Texts:
    """The copies of a machine's metadata, by the id of their group. A hostile machine has
    no end of them: there is a limit."""

    groups: dict[str, list[Text]] = field(default_factory=dict)
    _parsed: dict[bytes, Section] = field(default_factory=dict)
    _read_bytes: int = 0
    _parsed_bytes: int = 0

    def room(self, length: int) -> None:
        """Before length bytes are read.

        Raises:
            FormatError: There are too many.
        """
        self._read_bytes += length
        if self._read_bytes > READ_BYTES_MAX:
            raise FormatError(f"there are more than {READ_BYTES_MAX} bytes of LVM's metadata")

    def parsed(self, data: bytes) -> Section:
        """The text's section; equal texts are parsed once."""
        found = self._parsed.get(data)
        if found is None:
            self._parsed_bytes += len(data)
            if self._parsed_bytes > PARSED_BYTES_MAX:
                raise FormatError(
                    f"there are more than {PARSED_BYTES_MAX} bytes of LVM's metadata that differ"
                )
            found = self._parsed[data] = parse_text(data)
        return found


def lvm_crc(data: bytes) -> int:
    """CRC-32 as LVM begins and ends it."""
    return zlib.crc32(data, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def read_label(name: str, window: Window) -> Physical:
    said = "there is no label of LVM in its first sectors"
    for at in range(0, 4 * SECTOR_BYTES, SECTOR_BYTES):
        sector = window.at(at, SECTOR_BYTES)
        if sector[:8] != b"LABELONE" or sector[24:32] != b"LVM2 001":
            continue
        number, crc, offset = struct.unpack_from("<QII", sector, 8)
        if number != at // SECTOR_BYTES:
            said = f"the label of LVM in sector {at // SECTOR_BYTES} belongs elsewhere"
        elif lvm_crc(sector[20:]) != crc:
            said = f"the checksum of the label of LVM in sector {at // SECTOR_BYTES} is wrong"
        elif not 32 <= offset <= SECTOR_BYTES - 40:
            said = f"the label of LVM points to byte {offset}"
        else:
            lists = _area_lists(sector[offset + 40 :])
            uuid = sector[offset : offset + 32].decode("latin-1")
            return Physical(name, uuid, window.size_bytes, lists[1])
    raise FormatError(said)


def _area_lists(data: bytes) -> tuple[tuple[Area, ...], tuple[Area, ...]]:
    """Data areas and metadata areas; each list ends with zeros."""
    lists: list[list[Area]] = [[], []]
    which = 0
    for at in range(0, len(data) - 15, 16):
        area = Area(*struct.unpack_from("<QQ", data, at))
        if area.offset == 0:
            which += 1
            if which == 2:
                break
        else:
            lists[which].append(area)
    return tuple(lists[0]), tuple(lists[1])


def read_areas(label: Physical, window: Window, texts: Texts) -> list[str]:
    """Collect the copies on a physical volume; returns what was wrong."""
    wrong = []
    for area in label.areas:
        try:
            data = _read_text(area, window, texts)
            if data is None:
                continue
            text = _understood(label.name, texts.parsed(data))
        except FormatError as error:
            wrong.append(error.message)
            continue
        group_id = text.section["id"]
        assert isinstance(group_id, str)
        label.group_id = group_id
        texts.groups.setdefault(group_id, []).append(text)
    return wrong


def _read_text(area: Area, window: Window, texts: Texts) -> bytes | None:
    """The text that a metadata area holds; None for none."""
    header = window.at(area.offset, _AREA_HEADER_BYTES)
    place = f"the metadata area at byte {area.offset}"
    if not header or header[4:20] != _AREA_MAGIC:
        raise FormatError(f"{place} has no header")
    crc, version, start, size = struct.unpack_from("<I16xIQQ", header)
    if lvm_crc(header[4:]) != crc:
        raise FormatError(f"the checksum of {place} is wrong")
    if version != 1 or start != area.offset:
        raise FormatError(f"{place} is of version {version} and for byte {start}")
    offset, length, text_crc, flags = struct.unpack_from("<QQII", header, 40)
    if not offset or flags & _IGNORED:
        return None
    if (
        not _AREA_HEADER_BYTES < size <= window.size_bytes
        or not _AREA_HEADER_BYTES <= offset < size
        or not 0 < length <= min(size - _AREA_HEADER_BYTES, TEXT_BYTES_MAX)
    ):
        raise FormatError(f"{place} has {length} bytes of text at {offset} of {size}")
    texts.room(length)
    first = min(length, size - offset)  # it is a ring
    data = _read(window, start + offset, first)
    data += _read(window, start + _AREA_HEADER_BYTES, length - first)
    if len(data) != length:
        raise FormatError(f"{place} ends outside its disk")
    if lvm_crc(data) != text_crc:
        raise FormatError(f"the checksum of the text in {place} is wrong")
    return data


def _read(window: Window, offset: int, length: int) -> bytes:
    parts = []
    for done in range(0, length, _CHUNK_BYTES):
        parts.append(window.at(offset + done, min(_CHUNK_BYTES, length - done)))
    return b"".join(parts)


def _understood(physical: str, outer: Section) -> Text:
    """The one section that is a volume group."""
    groups = {name: value for name, value in outer.items() if isinstance(value, dict)}
    if len(groups) != 1:
        raise FormatError(f"the metadata of LVM tells of {len(groups)} volume groups")
    ((name, section),) = groups.items()
    seqno = section.get("seqno")
    if not isinstance(section.get("id"), str) or not isinstance(seqno, int):
        raise FormatError("the metadata of LVM has no id or number")
    return Text(physical, seqno, name, section)
