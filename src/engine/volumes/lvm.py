"""LVM2: which bytes of which physical volumes a logical volume is.

The labels and the metadata are read from the disks, never from the guest's /etc/lvm. Of
several copies the newest intact one counts. Linear volumes get their pieces; for others it
is said what they are, so that somebody can ask an appliance. A guest that makes volumes
overlap, or lie over their own metadata, gets none of them.

Source: lib/format_text/export.c of LVM2 for what the text holds; lvm_disk.py reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from ..errors import FormatError
from ..units import SECTOR_BYTES
from .base import Readable
from .lvm_disk import Physical, Text, Texts, read_areas, read_label
from .lvm_text import Section, sections, shown, whole, words
from .window import Window

LOGICAL_MAX = 1024
_SEGMENTS_MAX = 65536
_GLIMPSE_BYTES = 4 << 20
_STRIPE_BYTES_MIN = 4096
_NESTED_MAX = 4
_NAME = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}")
_POOLS = ("thin-pool", "cache-pool", "vdo-pool")


class Extent(NamedTuple):
    """A stretch of a physical volume, in bytes."""

    physical: str  # name of the volume that it lies on
    offset: int
    length: int


@dataclass(frozen=True)
class Logical:
    """A logical volume; fields as in base.Volume.

    Attributes:
        readable: Without extents: where its first bytes can be read, to see what it
            holds. Nobody may write there.
    """

    name: str
    extents: tuple[Extent, ...]
    size_bytes: int
    problem: str = ""
    note: str = ""
    readable: tuple[Extent, ...] = ()


class Found(NamedTuple):
    """Logical volumes, at most LOGICAL_MAX; what is wrong with physical ones."""

    logical: tuple[Logical, ...]
    problems: dict[str, str]
    notes: dict[str, str]


@dataclass
class _Group:
    """A volume group as its newest metadata has it."""

    name: str
    id: str
    section: Section
    extent_bytes: int
    volumes: dict[str, Section]
    physical: dict[str, _Placed] = field(default_factory=dict)  # by the name in the text


class _Placed(NamedTuple):
    """A physical volume of a group; where is "" for one that is not on these disks."""

    where: str
    id: str
    start: int
    extents: int


def find_logical(disks: Mapping[str, Readable]) -> Found:
    """The logical volumes on physical volumes.

    Args:
        disks: Volumes that were seen to be physical volumes, by name.

    Raises:
        Error: A disk cannot be read. What is wrong on it is a problem or a note instead.
    """
    problems: dict[str, str] = {}
    notes: dict[str, str] = {}
    labels: list[Physical] = []
    texts = Texts()
    for name, disk in disks.items():
        window = Window(disk)
        try:
            label = read_label(name, window)
        except FormatError as error:
            problems[name] = error.message
            continue
        labels.append(label)
        wrong = read_areas(label, window, texts)
        if wrong and not label.group_id:
            problems[name] = f"no copy of its group's metadata is intact: {wrong[0]}"
        elif wrong:
            notes[name] = wrong[0]
    logical: list[Logical] = []
    by_id: dict[str, list[Physical]] = {}
    for label in labels:
        by_id.setdefault(label.id, []).append(label)
    for copies in texts.groups.values():
        if len(logical) < LOGICAL_MAX:
            logical += _of_group(copies, by_id)
    return Found(_unique(logical[:LOGICAL_MAX]), problems, notes)


def _of_group(copies: list[Text], labels: dict[str, list[Physical]]) -> list[Logical]:
    newest = max(copies, key=lambda copy: copy.seqno)
    try:
        group = _group(newest, labels)
        problem = _used(group, labels)
    except FormatError as error:
        name = newest.group if _NAME.fullmatch(newest.group) else "?"
        return [Logical(f"{name}/?", (), 0, error.message)]
    if any(c.seqno == newest.seqno and c.section != newest.section for c in copies):
        problem = f"its group's metadata number {newest.seqno} has two copies that differ"
    names, snapshots = list(group.volumes)[:LOGICAL_MAX], _snapshots(group.volumes)
    found = [_logical(group, name, snapshots, problem) for name in names]
    return [logical for logical in found if logical is not None]


def _group(text: Text, labels: dict[str, list[Physical]]) -> _Group:
    section = text.section
    sectors = whole(section, "extent_size", 1, 1 << 40)
    if section.get("format", "lvm2") != "lvm2":
        raise FormatError(f"its group's metadata is of format {shown(section['format'])}")
    if _NAME.fullmatch(text.group) is None:
        raise FormatError("its group has a name that LVM does not allow")
    group = _Group(
        text.group,
        str(section["id"]),
        section,
        sectors * SECTOR_BYTES,
        sections(section, "logical_volumes"),
    )
    for name, values in sections(section, "physical_volumes").items():
        uuid = values.get("id")
        uuid = uuid.replace("-", "") if isinstance(uuid, str) else ""
        here = [label for label in labels.get(uuid, ()) if label.group_id in ("", group.id)]
        if len(here) > 1:
            both = f"{here[0].name} and {here[1].name}"
            raise FormatError(f"{both} are the same physical volume, copied: attach one of them")
        for label in here:
            label.group_id = group.id  # no other group can have it as well
        group.physical[name] = _Placed(
            here[0].name if here else "",
            shown(values.get("id")),
            whole(values, "pe_start", 0, 1 << 50) * SECTOR_BYTES,
            whole(values, "pe_count", 0, 1 << 40),
        )
    return group


def _segments(section: Section) -> list[Section]:
    """In order; they must follow each other without a gap."""
    found = [value for key, value in section.items() if key.startswith("segment")]
    segments = [value for value in found if isinstance(value, dict)]
    if not segments or len(segments) > _SEGMENTS_MAX:
        raise FormatError(f"it has {len(segments)} segments")
    segments.sort(key=lambda segment: whole(segment, "start_extent", 0, 1 << 40))
    at = 0
    for segment in segments:
        if segment["start_extent"] != at:
            raise FormatError(f"its extents from {at} on are in no segment, or in two")
        at += whole(segment, "extent_count", 1, 1 << 40)
    return segments


def _stripes(segment: Section) -> list[tuple[str, int]]:
    """Where the stripes of a segment begin: name of a physical volume (or another), extent."""
    listed = segment.get("stripes", [])
    if not isinstance(listed, list) or len(listed) % 2:
        raise FormatError("its stripes cannot be read")
    pairs = []
    for name, start in zip(listed[::2], listed[1::2], strict=True):
        if not isinstance(name, str) or not isinstance(start, int) or not 0 <= start <= 1 << 40:
            raise FormatError("its stripes cannot be read")
        pairs.append((name, start))
    return pairs


def _snapshots(volumes: dict[str, Section]) -> dict[str, list[str]]:
    """Name of a volume with snapshots, or that is one -> what is said of it."""
    found: dict[str, list[str]] = {}
    for section in volumes.values():
        for segment in section.values():
            if not isinstance(segment, dict) or segment.get("type") != "snapshot":
                continue
            origin, store = segment.get("origin"), segment.get("cow_store")
            store = store or segment.get("merging_store")
            if isinstance(origin, str) and isinstance(store, str):
                found.setdefault(origin, []).append(f"it has the snapshot {shown(store)}")
                found.setdefault(store, []).append(f"it is a snapshot of {shown(origin)}")
    return found


def _logical(
    group: _Group, name: str, snapshots: dict[str, list[str]], problem: str
) -> Logical | None:
    """A volume as the guest's administrator sees it; None for what LVM keeps to itself.

    problem: What is wrong with the group as a whole; "" for nothing.
    """
    section = group.volumes[name]
    if "VISIBLE" not in words(section, "status"):
        return None
    size_bytes, title = 0, f"{group.name}/{name}"
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        return Logical(f"{group.name}/?", (), 0, "it has a name that LVM does not allow")
    try:
        segments = _segments(section)
        kinds = {shown(segment.get("type")) for segment in segments}
        if "snapshot" in kinds or kinds & set(_POOLS):
            return None
        count = sum(whole(segment, "extent_count", 1, 1 << 40) for segment in segments)
        size_bytes = count * group.extent_bytes
        if problem:
            raise FormatError(problem)
        extents = _linear(group, segments, kinds)
    except FormatError as error:
        return Logical(title, (), size_bytes, error.message)
    exported = "EXPORTED" in words(group.section, "status")
    notes = ["its volume group is exported"] if exported else []
    if extents is None:
        notes.append(f"it is not linear: {', '.join(sorted(kinds))}")
        seen = _glimpse(group, name)
        return Logical(title, (), size_bytes, note="; ".join(notes), readable=seen)
    told = snapshots.get(name)
    if told is not None:
        origin = any(text.startswith("it has") for text in told)
        notes.append(f"{told[0]}, which a write from outside would break")
        kept = extents if origin else ()
        return Logical(title, (), size_bytes, note="; ".join(notes), readable=kept)
    return Logical(title, extents, size_bytes, note="; ".join(notes))


def _linear(
    group: _Group, segments: list[Section], kinds: set[str]
) -> tuple[Extent, ...] | None:
    """The stretches of a linear volume, joined where they touch; None for another one."""
    if not kinds <= {"striped", "linear"}:
        return None
    found: list[Extent] = []
    for segment in segments:
        stripes = _stripes(segment)
        if len(stripes) != 1 or stripes[0][0] not in group.physical:
            return None
        place = group.physical[stripes[0][0]]
        if not place.where:
            raise FormatError(f"its physical volume {place.id} is not on these disks")
        count = whole(segment, "extent_count", 1, 1 << 40)
        offset = place.start + stripes[0][1] * group.extent_bytes
        length = count * group.extent_bytes
        if found and found[-1].physical == place.where:
            last = found[-1]
            if last.offset + last.length == offset:
                found[-1] = last._replace(length=last.length + length)
                continue
        found.append(Extent(place.where, offset, length))
    return tuple(found)


def _glimpse(group: _Group, name: str) -> tuple[Extent, ...]:
    """Where a volume that is not linear begins, if that can be told; () if not.

    A mirror's or a cache's data lie in another volume, which LVM keeps to itself.
    """
    for _ in range(_NESTED_MAX):
        try:
            segment = _first_segment(group.volumes[name])
            if segment.get("type") in ("striped", "linear"):
                return _first_stripes(group, segment)
        except (FormatError, KeyError):
            return ()
        raids, mirrors = words(segment, "raids"), words(segment, "mirrors")
        if segment.get("type") == "raid1" and len(raids) > 1:
            name = raids[1]  # each pair: metadata, data
        elif segment.get("type") == "mirror" and mirrors:
            name = mirrors[0]
        else:
            name = str(segment.get("origin"))
    return ()


def _first_segment(section: Section) -> Section:
    for key, value in section.items():
        if key.startswith("segment") and isinstance(value, dict) and value.get("start_extent") == 0:
            return value
    raise FormatError("it has no first segment")


def _first_stripes(group: _Group, segment: Section) -> tuple[Extent, ...]:
    stripes, found = _stripes(segment), []
    places = [(group.physical[name], start) for name, start in stripes]
    if not places or not all(place.where for place, _ in places):
        return ()
    length = whole(segment, "extent_count", 1, 1 << 40) * group.extent_bytes
    chunk = length
    if len(places) > 1:
        chunk = whole(segment, "stripe_size", 1, 1 << 30) * SECTOR_BYTES
        if chunk < _STRIPE_BYTES_MIN or group.extent_bytes % chunk:
            return ()
    for number in range(-(-min(_GLIMPSE_BYTES, length) // chunk)):
        row, column = divmod(number, len(places))
        place, start = places[column]
        offset = place.start + start * group.extent_bytes + row * chunk
        found.append(Extent(place.where, offset, chunk))
    return tuple(found)


def _used(group: _Group, labels: dict[str, list[Physical]]) -> str:
    """What is wrong with the places of a group's volumes as a whole: "" for nothing.

    One look at all segments of all volumes, those that LVM keeps to itself included.
    """
    taken: dict[str, list[tuple[int, int]]] = {}
    segments = 0
    for section in group.volumes.values():
        for segment in section.values():
            if not isinstance(segment, dict):
                continue
            segments += 1
            if segments > _SEGMENTS_MAX:
                return f"its group has more than {_SEGMENTS_MAX} segments"
            stripes = _stripes(segment)
            if stripes:
                count = -(-whole(segment, "extent_count", 1, 1 << 40) // len(stripes))
                for name, start in stripes:
                    taken.setdefault(name, []).append((start, start + count))
    sizes = {label.name: label for here in labels.values() for label in here}
    for name, spans in taken.items():
        place = group.physical.get(name)
        if place is None:
            continue
        spans.sort()
        for (_, stop), (start, _) in pairwise(spans):
            if start < stop:
                return f"two volumes of its group lie on extent {start} of {place.id}"
        if spans[-1][1] > place.extents:
            return f"its group uses extent {spans[-1][1] - 1} of {place.id}, which ends before"
        if place.where:
            said = _over_metadata(group, place, spans, sizes[place.where])
            if said:
                return said
    return ""


def _over_metadata(
    group: _Group, place: _Placed, spans: list[tuple[int, int]], label: Physical
) -> str:
    first = place.start + spans[0][0] * group.extent_bytes
    stop = place.start + spans[-1][1] * group.extent_bytes
    if stop > label.size_bytes:
        return f"{label.name} has {label.size_bytes} bytes, and its group uses {stop}"
    if first < 4 * SECTOR_BYTES:
        return f"a volume of its group lies over the label of {label.name}"
    for area in label.areas:
        for start, end in spans:
            begin = place.start + start * group.extent_bytes
            if begin < area.offset + area.length and area.offset < (
                place.start + end * group.extent_bytes
            ):
                return f"a volume of its group lies over the metadata of {label.name}"
    return ""


def _unique(found: list[Logical]) -> tuple[Logical, ...]:
    """Where two have a name, neither can be used, and the second's is changed."""
    count: dict[str, int] = {}
    for logical in found:
        count[logical.name] = count.get(logical.name, 0) + 1
    seen: dict[str, int] = {}
    result = []
    for logical in found:
        name, number = logical.name, seen.get(logical.name, 0) + 1
        seen[name] = number
        if count[name] > 1:
            said = logical.problem or f"there are {count[name]} volumes of that name"
            shown = name if number == 1 else f"{name}~{number}"
            logical = Logical(shown, (), logical.size_bytes, said, logical.note)
        result.append(logical)
    return tuple(result)
