"""Chains of two and three links, both ways beside qemu-img: see differential.py."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from differential import (
    Case,
    grain_of,
    qemu,
    qemu_writes,
    raws,
    require_equal_for_qemu,
    require_same_map,
    they_make,
    we_make,
)
from patterns import BLOCK, SIZES, Content, Pattern, pattern, require_same, write_all
from rollpoint import disk as disks
from rollpoint.convert import commit

__all__ = ["raws"]


class Chain(NamedTuple):
    """Types of the links, the base first, and what is written into each."""

    size: str
    types: tuple[str, ...]
    patterns: tuple[str, ...] = ("full", "zeros", "sparse")
    grains: tuple[int | None, ...] = (None, None, None)
    zero_grains: bool = False

    def __str__(self) -> str:
        zeroed = "-zeroed" if self.zero_grains else ""
        return f"{self.size}-{'-'.join(self.types)}-{self.patterns[0]}{zeroed}"


SOME = ("64K-512", "1G+512", "5G")
THEIRS = [
    Chain(size, types, patterns, zero_grains=zeroed)
    for size in SOME
    for types, patterns, zeroed in [
        (("monolithicFlat", "monolithicSparse"), ("random", "zeros"), True),
        (("twoGbMaxExtentFlat", "streamOptimized"), ("full", "grains"), False),
        (
            ("monolithicSparse", "monolithicSparse", "twoGbMaxExtentSparse"),
            ("full", "zeros", "sparse"),
            True,
        ),
        (
            ("twoGbMaxExtentSparse", "twoGbMaxExtentSparse", "monolithicSparse"),
            ("random", "sparse", "zeros"),
            False,
        ),
        (
            ("streamOptimized", "monolithicSparse", "streamOptimized"),
            ("full", "zeros", "grains"),
            False,
        ),
        (
            ("monolithicFlat", "streamOptimized", "monolithicSparse"),
            ("sparse", "grains", "random"),
            True,
        ),
    ]
]
OURS = [
    Chain(size, types, patterns, grains, zeroed)
    for size in SOME
    for types, patterns, grains, zeroed in [
        (
            ("vmfs", "vmfsSparse", "vmfsSparse"),
            ("full", "sparse", "zeros"),
            (None, 65536, None),
            False,
        ),
        (("monolithicFlat", "twoGbMaxExtentSparse"), ("full", "sparse"), (None, None), False),
        (
            ("monolithicFlat", "monolithicSparse", "twoGbMaxExtentSparse"),
            ("random", "zeros", "sparse"),
            (None, 4096, 65536),
            True,
        ),
        (
            ("twoGbMaxExtentSparse", "monolithicSparse"),
            ("full", "zeros"),
            (65536, 512),
            True,
        ),
        (
            ("seSparse", "vmfsSparse", "monolithicSparse"),
            ("full", "random", "zeros"),
            (None, 65536, 65536),
            False,
        ),
        (
            ("monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse"),
            ("sparse", "full", "zeros"),
            (1 << 20, 4096, 4096),
            True,
        ),
        (("streamOptimized", "monolithicSparse"), ("full", "zeros"), (None, None), False),
    ]
] + [
    Chain("2.1T", ("monolithicFlat", "monolithicSparse"), ("full", "zeros"), (None, 1 << 20), True),
]


def grains_once(size: int) -> Pattern:
    """Whole grains, each once: all that QEMU writes into a stream."""
    found = pattern("random", size)
    last = {offset: write for write in found.writes if (offset := write.offset) % BLOCK == 0}
    return Pattern("grains", size, tuple(w for w in last.values() if w.length == BLOCK))


def layers(chain: Chain) -> list[tuple[str, Pattern]]:
    size = SIZES[chain.size]
    return [
        (type, grains_once(size) if name == "grains" else pattern(name, size))
        for type, name in zip(chain.types, chain.patterns, strict=True)
    ]


def apply(content: Content, what: Pattern) -> None:
    for offset, data, length in what.writes:
        content.write(bytes(length) if data is None else data, offset)


def require_equal(path: Path, content: Content, check: bool) -> int:
    """For us: bytes, and the map of qemu-img. Returns the smallest grain."""
    with disks.open_disk(path) as disk:
        require_same(disk, content)
        grain = grain_of(disk)
    require_same_map(path, content, grain)
    if check:
        assert disks.check(path)["findings"] == []
    return grain


@pytest.mark.parametrize("chain", THEIRS, ids=str)
def test_we_read_and_commit_a_chain_that_qemu_made(
    chain: Chain, tmp_path: Path, raws: Path
) -> None:
    content, parent = Content(SIZES[chain.size]), ""
    for number, (type, what) in enumerate(layers(chain)):
        path = tmp_path / f"{number}.vmdk"
        if not parent:
            they_make(Case("theirs", type, chain.size, what.name), path, raws)
        else:
            zeroed = "on" if chain.zero_grains and type != "streamOptimized" else "off"
            how = f"subformat={type},zeroed_grain={zeroed}"
            qemu(
                "qemu-img", "create", "-q", "-f", "vmdk", "-b", parent, "-F", "vmdk", "-o", how,
                path.name, folder=tmp_path,
            )  # fmt: skip
            qemu_writes(path, what)
        apply(content, what)
        parent = path.name
    require_equal(path, content, check=False)
    if "streamOptimized" in chain.types[-2:]:
        return  # cannot be written: neither a parent, nor the note that a commit leaves in a child
    parent_path = Path(commit(path))
    assert parent_path == tmp_path / f"{len(chain.types) - 2}.vmdk"
    raw = tmp_path / "raw"
    content.save(raw)
    for link in (path, parent_path):
        grain = require_equal(link, content, check=False)
        require_equal_for_qemu(link, raw, content, grain)
    qemu("qemu-img", "check", "-f", "vmdk", parent_path)


@pytest.mark.parametrize("chain", OURS, ids=str)
def test_qemu_reads_a_chain_that_we_made(chain: Chain, tmp_path: Path, raws: Path) -> None:
    content, parent = Content(SIZES[chain.size]), ""
    for number, (type, what) in enumerate(layers(chain)):
        path = tmp_path / f"{number}.vmdk"
        if not parent:
            way = "copied" if type in ("seSparse", "streamOptimized") else "written"
            we_make(Case(way, type, chain.size, what.name, chain.grains[0]), path, raws)
        else:
            disks.create_disk(
                str(path),
                type,
                parent=parent,
                grain_bytes=chain.grains[number],
                zero_grains=chain.zero_grains and type != "vmfsSparse",
            )
            with disks.open_disk(path, writable=True) as disk:
                write_all(disk, what)
        apply(content, what)
        parent = str(path)
    grain = require_equal(path, content, check=True)
    raw = tmp_path / "raw"
    content.save(raw)
    require_equal_for_qemu(path, raw, content, grain)
    qemu("qemu-img", "check", "-f", "vmdk", path)
