"""One image, two programs: what each test of test_differential_*.py does with qemu-img.

The matrix is types x sizes x patterns x ways:

  theirs          qemu-img makes the image and fills it, we read it
  theirs zeroed   the same, with grains that are marked as zeros
  written         we create it and write it at random, qemu-img reads it
  copied          we convert a raw disk into it, qemu-img reads it

"Equal" means: no byte differs, and our map is that of ``qemu-img map``. QEMU asks
for the state of one grain at a time, so of a large sparse disk it is shown windows
around everything that was written; we look at all of it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from _pytest.mark import ParameterSet
from patterns import (
    BLOCK,
    GIB,
    MIB,
    PATTERNS,
    PIECE,
    SIZES,
    Content,
    Pattern,
    pattern,
    require_same,
    write_all,
)
from rollpoint import disk as disks
from rollpoint.convert import convert
from rollpoint.disk import MapEntry, OpenDisk
from second_readers import require_equal_for_others
from tools import require_tool

WHOLE_GRAINS = 1 << 17  # so many QEMU is asked about at once: it takes a quarter of a second


class Case(NamedTuple):
    """One image."""

    way: str
    type: str
    size: str
    pattern: str
    grain: int | None = None  # of a sparse type, in bytes; None: the default

    def __str__(self) -> str:
        grain = "" if self.grain is None else f"-grain{self.grain}"
        return f"{self.way.replace(' ', '-')}-{self.type}-{self.size}-{self.pattern}{grain}"

    @property
    def split_sectors(self) -> int | None:
        """2.1 TiB are 1076 usual parts, and QEMU opens them at every look."""
        many = self.type.startswith("twoGb") and self.size == "2.1T" and not self.is_long
        return (256 * GIB) // 512 if many else None

    @property
    def is_long(self) -> bool:
        """In 1076 parts: QEMU takes 12 s to make them, and 1 s for each look."""
        usual = self.way == "written" and self.pattern != "sparse"
        return self.type.startswith("twoGb") and self.size == "2.1T" and not usual

    @property
    def check_is_long(self) -> bool:
        """QEMU walks all of 563 million grains."""
        return self.type == "seSparse" and self.size == "2.1T"

    @property
    def what(self) -> Pattern:
        return pattern(self.pattern, SIZES[self.size])


# Grains of hosted sparse images in turn; QEMU's check walks all of them, so few at 2.1 TiB.
GRAINS: dict[str, tuple[int | None, ...]] = {
    "512B": (None, 512, 4096),
    "64K-512": (512, 4096, None),
    "1G+512": (None, 4096, MIB),
    "5G": (None, MIB, 4096),
    "2.1T": (MIB,),
}


def cases(
    ways: Sequence[str],
    types: Sequence[str],
    grains: Mapping[str, Sequence[int | None]] | None = None,
) -> list[Case]:
    """All sizes and patterns; the grains of a size in turn."""
    return [
        Case(way, type, size, name, None if grains is None else grains[size][k % len(grains[size])])
        for way in ways
        for type in types
        for size in SIZES
        for k, name in enumerate(PATTERNS)
    ]


STREAM_GRAINS: dict[str, tuple[int | None, ...]] = {
    "512B": (None, 4096),
    "64K-512": (4096, None, 32768),
    "1G+512": (None, 4096, MIB),
    "5G": (None, MIB, None),
    "2.1T": (MIB,),
}
# ESX's grains have 512 bytes; QEMU asks about one at a time, so larger ones on larger disks.
COWD_GRAINS: dict[str, tuple[int | None, ...]] = {
    "512B": (None,),
    "64K-512": (None, 4096),
    "1G+512": (65536, None, 4096),
    "5G": (65536, MIB, None),
    "2.1T": (None,),
}
OURS = ("written", "copied")

MATRIX: dict[str, list[Case]] = {
    "flat": [
        *cases(["theirs", *OURS], ["monolithicFlat", "twoGbMaxExtentFlat"]),
        *cases(["written"], ["vmfs"]),  # QEMU reads it, and makes none
    ],
    "sparse": [
        *cases(["theirs", "theirs zeroed"], ["monolithicSparse"]),
        *cases(OURS, ["monolithicSparse"], GRAINS),
    ],
    "split": [
        *cases(["theirs"], ["twoGbMaxExtentSparse"]),
        *cases(OURS, ["twoGbMaxExtentSparse"], GRAINS),
    ],
    "stream": [
        *cases(["theirs"], ["streamOptimized"]),
        *cases(["copied"], ["streamOptimized"], STREAM_GRAINS),
    ],
    # QEMU reads these, and makes none
    "sesparse": [*cases(["copied"], ["seSparse"])],
    "cowd": [case for case in cases(OURS, ["vmfsSparse"], COWD_GRAINS) if case.size != "2.1T"],
}


def params(family: str) -> list[Case | ParameterSet]:
    """For parametrize: those that take long are marked so."""
    return [
        pytest.param(case, marks=pytest.mark.long) if case.is_long else case
        for case in MATRIX[family]
    ]


@pytest.fixture(scope="module")
def raws(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the raw disks are, each made when it is first asked for."""
    return tmp_path_factory.mktemp("raws")


def qemu(tool: str, *arguments: object, folder: Path | None = None) -> str:
    done = subprocess.run(
        [require_tool(tool), *map(str, arguments)], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def raw_disk(folder: Path, what: Pattern) -> Path:
    """The pattern as a raw disk, made when it is first asked for."""
    path = folder / f"{what.name}-{what.size_bytes}.raw"
    if not path.exists():
        what.content().save(path)
    return path


def qemu_writes(path: Path, what: Pattern) -> None:
    """The writes of a pattern by qemu-io, in their order."""
    commands: list[str] = []
    for number, (offset, data, length) in enumerate(what.writes):
        if data is None:
            commands += ["-c", f"write -q -z {offset} {length}"]
        else:
            source = path.with_name(f"write{number}")
            source.write_bytes(data)
            commands += ["-c", f"write -q -s {source} {offset} {length}"]
    if commands:
        # unsafe: else QEMU syncs once for each new grain
        said = qemu("qemu-io", "-t", "unsafe", "-f", "vmdk", *commands, path)
        assert "failed" not in said, said


def windows(content: Content, grain: int) -> list[tuple[int, int]]:
    """What QEMU is shown of a disk: offset and length, all of it where that is quick."""
    size = content.size_bytes
    if size // grain <= WHOLE_GRAINS:
        return [(0, size)]
    places = [(0, BLOCK), *content.written(), (size - 512, size)]
    spans: list[tuple[int, int]] = []
    for start, stop in places:
        first = max(start - MIB, 0) // MIB * MIB
        last = min((stop + 2 * MIB) // MIB * MIB, size)
        if spans and first <= spans[-1][1] + 4 * MIB:
            spans[-1] = (spans[-1][0], max(last, spans[-1][1]))
        else:
            spans.append((first, last))
    return [(first, last - first) for first, last in spans]


def require_equal_for_qemu(path: Path, raw: Path, content: Content, grain: int = BLOCK) -> None:
    """QEMU sees no byte that differs from the raw disk, which holds the content.

    Not with a window of its raw driver laid over the disk: QEMU 7.2 then says of
    what a child does not hold that it is zeros, whatever the parents hold.
    """
    for offset, length in windows(content, grain):
        if length == content.size_bytes:
            qemu("qemu-img", "compare", "-f", "vmdk", "-F", "raw", path, raw)
            continue
        seen = path.with_name("window")
        last = offset + length == content.size_bytes
        count = [] if last else [f"count={(offset + length) // MIB}"]  # where it stops
        qemu(
            "qemu-img", "dd", "-f", "vmdk", "-O", "raw", f"if={path}", f"of={seen}",
            f"bs={MIB}", f"skip={offset // MIB}", *count,
        )  # fmt: skip
        assert seen.stat().st_size == length
        with open(seen, "rb") as file:
            for at in range(offset, offset + length, PIECE):
                size = min(PIECE, offset + length - at)
                same = file.read(size) == content.read(size, at)
                assert same, f"QEMU sees something else in {size} bytes from {at}"


def require_same_map(path: Path, content: Content, grain: int = BLOCK) -> None:
    """Our map is that of qemu-img, in every window."""
    with disks.open_disk(path) as disk:
        ours = list(disks.map_ranges(disk))
    for offset, length in windows(content, grain):
        said = qemu(
            "qemu-img", "map", "--output=json", "-f", "vmdk", f"--start-offset={offset}",
            f"--max-length={length}", path,
        )  # fmt: skip
        theirs = json.loads(said)
        mine = list(clip(ours, offset, offset + length))
        assert joined(mine) == joined(theirs), (offset, length)


def clip(entries: Iterable[MapEntry], start: int, stop: int) -> Iterator[MapEntry]:
    for entry in entries:
        first = max(entry["start"], start)
        last = min(entry["start"] + entry["length"], stop)
        if first < last:
            part = entry.copy()
            part["start"], part["length"] = first, last - first
            if "offset" in part:
                part["offset"] += first - entry["start"]
            yield part


_PLACES = ("start", "length", "offset")
_SAID = ("start", "length", "depth", "present", "zero", "data", "offset")  # by QEMU 7.2


def joined(entries: Iterable[MapEntry]) -> list[dict[str, object]]:
    """Neighbours that go on from each other as one: QEMU cuts them where it likes."""
    out: list[dict[str, object]] = []
    for entry in entries:
        new = {key: value for key, value in entry.items() if key in _SAID}
        if out:
            last = out[-1]
            same = {k: v for k, v in last.items() if k not in _PLACES} == {
                k: v for k, v in new.items() if k not in _PLACES
            }
            goes_on = ("offset" in last) == ("offset" in new) and (
                "offset" not in last or last["offset"] + last["length"] == new["offset"]  # type: ignore[operator]
            )
            if same and goes_on:
                last["length"] += new["length"]  # type: ignore[operator]
                continue
        out.append(new)
    return out


def they_make(case: Case, path: Path, raws: Path) -> None:
    """An image by QEMU: some patterns by a conversion, others by writes."""
    what = case.what
    how = f"subformat={case.type}" + (",zeroed_grain=on" if case.way == "theirs zeroed" else "")
    if case.pattern in ("full", "sparse") or case.type == "streamOptimized":
        raw = raw_disk(raws, what)
        qemu("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", how, raw, path)
    else:
        qemu("qemu-img", "create", "-q", "-f", "vmdk", "-o", how, path, what.size_bytes)
        qemu_writes(path, what)


def we_make(case: Case, path: Path, raws: Path) -> None:
    """An image by us, by writes at random or by a conversion of a raw disk."""
    what = case.what
    if case.way == "written":
        disks.create_disk(
            str(path),
            case.type,
            what.size_bytes,
            grain_bytes=case.grain,
            split_sectors=case.split_sectors,
        )
        with disks.open_disk(path, writable=True) as disk:
            write_all(disk, what)
    else:
        raw = raw_disk(raws, what)
        convert(raw, path, case.type, source_format="raw", grain_bytes=case.grain)


def compare_both(case: Case, folder: Path, raws: Path) -> None:
    """Make the image; both programs see the same bytes and the same map, and no damage."""
    path, content = folder / "a.vmdk", case.what.content()
    if case.way.startswith("theirs"):
        they_make(case, path, raws)
    else:
        we_make(case, path, raws)
    with disks.open_disk(path) as disk:
        require_same(disk, content)
        grain = grain_of(disk)
    require_same_map(path, content, grain)
    found = disks.check(path)["findings"]
    if case.way.startswith("theirs"):
        # QEMU forgets where the grains lay that it zeroes
        assert {finding["kind"] for finding in found} <= {"leak"}
    else:
        assert found == []
        if not case.check_is_long:
            qemu("qemu-img", "check", "-f", "vmdk", path)
        require_equal_for_qemu(path, raw_disk(raws, case.what), content, grain)
        require_equal_for_others(path, case.type, grain, content)
    shutil.rmtree(folder)  # hundreds of images: only those that failed are kept


def grain_of(disk: OpenDisk) -> int:
    """The smallest grain of a chain: QEMU asks about one at a time."""
    extents = [extent for link in disk.info()["chain"] for extent in link["extents"]]
    return min(extent.get("grain_bytes", GIB) for extent in extents)
