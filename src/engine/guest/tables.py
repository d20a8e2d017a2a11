"""fstab and crypttab: what they say, and the lines of them that have to change.

Read as bytes, line by line; a line that is changed keeps its other fields, its blanks, its
comment and its end byte for byte.

Source: fstab(5), crypttab(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ..volumes.base import Volume
from .edits import Edits
from .names import Names, hardware_name

LINES_MAX = 20_000
ENTRIES_MAX = 2000  # of a table that are looked at
UNITS_MAX = 200
_FIELD = re.compile(rb"[^ \t\r\n]+")
_SPECIAL = re.compile(r"\\(040|011|012|134)")


class Entry(NamedTuple):
    """A line of fstab.

    start, stop: Of its first field in the line.
    """

    number: int
    spec: str
    at: str
    kind: str
    options: tuple[str, ...]
    start: int
    stop: int


def lines_of(data: bytes) -> list[bytes]:
    """With their ends."""
    return data.splitlines(keepends=True)


def fields_of(line: bytes) -> list[re.Match[bytes]]:
    """At most seven; none for a comment or an empty line."""
    if line.lstrip(b" \t").startswith(b"#"):
        return []
    found = []
    for field in _FIELD.finditer(line):
        found.append(field)
        if len(found) == 7:
            break
    return found


def entries(data: bytes) -> Iterator[Entry]:
    """The lines of an fstab that mount something."""
    found = 0
    for number, line in enumerate(lines_of(data)[:LINES_MAX]):
        fields = fields_of(line)
        if len(fields) < 2:
            continue
        texts = [_octal(text(field[0])) for field in fields]
        at = texts[1] if texts[1] == "/" else texts[1].rstrip("/")
        kind = texts[2] if len(texts) > 2 else ""
        options = tuple(texts[3].split(",")) if len(texts) > 3 else ()
        start, stop = fields[0].span()
        found += 1
        if found > ENTRIES_MAX:
            return
        yield Entry(number, texts[0], at, kind, options, start, stop)


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def raw(data: str) -> bytes:
    return data.encode("utf-8", "surrogateescape")


def _octal(field: str) -> str:
    return _SPECIAL.sub(lambda m: chr(int(m[1], 8)), field)


def edit_fstab(edits: Edits, names: Names, root: str) -> None:
    """Names that the old hardware gave become UUIDs.

    Args:
        root: Name of the root's volume, which is known.
    """
    path = "/etc/fstab"
    data = edits.read(path)
    if data is None:
        return
    lines = lines_of(data)
    table = list(entries(data))
    taken = {root}
    for entry in table:
        if hardware_name(entry.spec) is None and (volume := names.volume(entry.spec)):
            taken.add(volume.name)
    meant: dict[str, Volume | None] = {}
    for entry in sorted(table, key=lambda entry: entry.at != "/"):
        if hardware_name(entry.spec) is None:
            continue
        here = taken - {root} if entry.at == "/" else taken
        volume = meant.setdefault(entry.spec, names.volume(entry.spec, entry.kind, here))
        new = names.lasting_of(volume) if volume else None
        if volume is None or new is None:
            edits.warn(
                f"{path}: no volume is known to be {entry.spec} (mounted at {entry.at}): "
                "the line stays as it is"
            )
            continue
        taken.add(volume.name)
        names.learn(entry.spec, volume)
        line = lines[entry.number]
        lines[entry.number] = line[: entry.start] + raw(new) + line[entry.stop :]
    edits.replace(path, b"".join(lines), "names of the old hardware become UUIDs")


def edit_crypttab(edits: Edits, names: Names) -> None:
    """Its second field, likewise; of a partition that is encrypted anew at each boot, too."""
    path = "/etc/crypttab"
    data = edits.read(path)
    if data is None:
        return
    lines = lines_of(data)
    for number, line in enumerate(lines[:ENTRIES_MAX]):
        fields = fields_of(line)
        if len(fields) < 2 or hardware_name(spec := text(fields[1][0])) is None:
            continue
        keyed = len(fields) < 3 or not text(fields[2][0]).startswith("/dev/")
        new = names.lasting(spec, partition=not keyed)
        if new is None:
            edits.warn(f"{path}: no volume is known to be {spec}: the line stays as it is")
            continue
        if new.startswith("PARTUUID="):  # older crypttabs know UUID= alone
            new = "/dev/disk/by-partuuid/" + new.removeprefix("PARTUUID=")
        start, stop = fields[1].span()
        lines[number] = line[:start] + raw(new) + line[stop:]
    edits.replace(path, b"".join(lines), "names of the old hardware become UUIDs")


def edit_resume(edits: Edits, names: Names) -> None:
    """initramfs-tools' own note of the volume that the machine was suspended to."""
    for path in edits.tree.glob("/etc/initramfs-tools/conf.d/*"):
        lines = lines_of(edits.read(path) or b"")
        for number, line in enumerate(lines[:LINES_MAX]):
            found = re.match(rb"[ \t]*(?:export[ \t]+)?RESUME=[\"']?([^\s\"'#]+)", line)
            if found is None or hardware_name(spec := text(found[1])) is None:
                continue
            new = names.lasting(spec, "swap")
            if new is None:
                edits.warn(f"{path}: no volume is known to be {spec}: the line stays as it is")
                continue
            start, stop = found.span(1)
            lines[number] = line[:start] + raw(new) + line[stop:]
        if lines:
            edits.replace(path, b"".join(lines), "the resume device by its UUID")


def warn_of_units(edits: Edits) -> None:
    """Units of systemd that mount what the old hardware named: their own names hold it, too."""
    for pattern in ("/etc/systemd/system/*.mount", "/etc/systemd/system/*.swap"):
        for path in edits.tree.glob(pattern)[:UNITS_MAX]:
            for line in lines_of(edits.read(path, 1 << 16) or b""):
                key, _, value = text(line).partition("=")
                if key.strip() == "What" and hardware_name(value.strip()) is not None:
                    edits.warn(f"{path}: {value.strip()} has another name on the new hardware")
