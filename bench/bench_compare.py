"""How fast are two disks found equal, beside qemu-img compare?

Question: comparing a raw disk with the same disk as monolithicSparse should cost little more
          than reading both: at least 2 times qemu-img compare, which asks block by block.
Sketch:   half of the disk is holes on both sides, which the maps tell. Of 1 GiB on each side,
          reading from the page cache takes 0.2 s and comparing 0.1 s, on two cores half of it;
          the interpreter's start adds 0.15 s.
Peer:     cmp, which knows no holes, has two raw disks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from disks import Command, Gallery, files_of, ours, seconds, settle, warm
from harness import Row, take_turns
from tools import require_tool

OURS, QEMU, CMP = "ours", "qemu-img compare", "cmp, raw disks"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    folder = tmp_path_factory.mktemp("compare")
    yield Gallery(folder)
    shutil.rmtree(folder)


def test_equal_disks(benchmark: Any, gallery: Gallery) -> None:
    sparse, copy = gallery.disk("monolithicSparse"), gallery.folder / "copy.raw"
    shutil.copy(gallery.raw, copy)

    def side(name: str, command: Command) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            warm(gallery.raw, copy, *files_of(sparse))
            settle()
            return {name: seconds(command)[0]}

        return run

    qemu = [require_tool("qemu-img"), "compare", "-f", "raw", "-F", "vmdk", gallery.raw, sparse]
    take_turns(
        benchmark,
        sides=[
            side(OURS, ours("compare", gallery.raw, sparse, "--a-format", "raw")),
            side(QEMU, qemu),
            side(CMP, ["cmp", gallery.raw, copy]),
        ],
        rows=[Row("compare: raw and monolithicSparse, equal", OURS, {QEMU: 2.0, CMP: None})],
        verified="each says by its exit code that the disks are equal",
    )
