"""How fast is a child merged into its parent, beside qemu-img commit?

Question: 512 MiB in grains of 64 KiB, at random places of the disk, should reach the parent at
          the disk's own speed: at least 3 times qemu-img commit.
Sketch:   reading 512 MiB from the page cache takes 0.1 s, writing them there 0.2 s, and making
          them durable what the disk needs, which is most of it. qemu-img flushes at its end as
          well; in a sparse parent it also syncs once for each new grain.
Promises: durable at the end on both sides. Ours is also all or nothing at any crash.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from disks import (
    DISK_BYTES,
    Command,
    files_of,
    ours,
    qemu_convert,
    require_equal,
    run,
    seconds,
    settle,
    warm,
)
from harness import SEED, Row, size, take_turns
from mixed import MIB, write_mixed_disk
from rollpoint.disk import open_disk
from tools import require_tool

GRAIN_BYTES = 65536
CHILD_BYTES = size(smoke=2 * MIB, full=512 * MIB)
OURS, QEMU = "ours", "qemu-img commit"


class Family:
    """A parent and its child as they are before, and the disk that the parent must become."""

    def __init__(self, folder: Path, type: str) -> None:
        self.after = folder / "after.raw"
        self.before, self.now = folder / "before", folder / "now"
        self.before.mkdir()
        write_mixed_disk(self.after, DISK_BYTES, SEED)
        run(qemu_convert(self.after, self.before / "parent.vmdk", type))
        child = self.before / "child.vmdk"
        run(ours("create", child, "--parent", self.before / "parent.vmdk", "--grain", "64K"))
        rng = random.Random(SEED)
        places = rng.sample(range(DISK_BYTES // GRAIN_BYTES), CHILD_BYTES // GRAIN_BYTES)
        with open_disk(child, writable=True) as disk, self.after.open("r+b") as after:
            for place in places:
                data = rng.randbytes(GRAIN_BYTES)
                disk.pwrite(data, place * GRAIN_BYTES)
                after.seek(place * GRAIN_BYTES)
                after.write(data)

    def restore(self) -> None:
        shutil.rmtree(self.now, ignore_errors=True)
        run(["cp", "--sparse=always", "-r", self.before, self.now])


@pytest.mark.parametrize("type", ["monolithicSparse", "monolithicFlat"])
def test_commit(benchmark: Any, tmp_path: Path, type: str) -> None:
    family = Family(tmp_path, type)
    parent, child = family.now / "parent.vmdk", family.now / "child.vmdk"

    def side(name: str, command: Command) -> Callable[[], Mapping[str, float]]:
        def once() -> Mapping[str, float]:
            family.restore()
            warm(*files_of(parent), *files_of(child))
            settle()
            figure = seconds(command)[0]
            require_equal(family.after, parent)
            return {name: figure}

        return once

    # -d: it does not have to empty the child either
    theirs = [require_tool("qemu-img"), "commit", "-q", "-d", "-f", "vmdk", child]
    what = f"commit: {CHILD_BYTES // MIB} MiB in 64 KiB grains into {type}"
    take_turns(
        benchmark,
        sides=[side(OURS, ours("commit", child)), side(QEMU, theirs)],
        rows=[Row(what, OURS, {QEMU: 3.0}, cache="warm; durable at the end")],
        verified="the parent, every round: qemu-img compare with a plain model",
        rounds=3,
    )
