"""How fast does a disk go back to where it came from, beside copying it whole?

Question: a disk of which 200 MiB changed should be back in the time that 200 MiB take: at
          least 5 times as fast as qemu-img convert and nbdcopy, which copy all of it. Where it
          is not known what the target holds, both sides are read and compared; that should not
          take longer than the copy of everything that it spares.
Sketch:   reading and writing 200 MiB in the page cache takes 0.15 s, making them durable what the
          disk needs. The peers read and write 4 GiB. Comparing reads 4 GiB twice.
Promises: durable at the end on all sides. The peers need the replica's machine off all the while.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from disks import Command, run, seconds, settle, warm
from harness import SEED, Row, running, size, take_turns
from mixed import MIB
from replicas import recover
from rollpoint.disk import open_disk
from rollpoint.manifest import Cut
from rollpoint.replica import Replica
from tools import require_tool

DISK_BYTES = size(smoke=32 * MIB, full=8192 * MIB)
CHANGED_BYTES = size(smoke=2 * MIB, full=200 * MIB)
GRAIN_BYTES = 65536
ONCE = Path(__file__).with_name("sending_once.py")
KNOWN, COMPARED, QEMU, NBDCOPY = "known", "compared", "qemu-img convert", "nbdcopy"
EXPORT_KNOWN, EXPORT_QEMU = "to an export", "qemu-img convert to an export"


class Story:
    """A replica that is failed over, and what its source has: half of the disk is data.

    Half of what changed was written by the source after the point that the replica went back
    to, the other half by the recovered machine.
    """

    def __init__(self, folder: Path) -> None:
        self.replica, self.target = folder / "web", folder / "target.raw"
        self.source, self.after = folder / "source.raw", folder / "after.raw"
        self._rng = random.Random(SEED)
        with self.source.open("wb") as file:
            file.truncate(DISK_BYTES)
            for at in range(0, DISK_BYTES, 2 * MIB):
                file.seek(at)
                file.write(self._rng.randbytes(MIB))
        run(["cp", "--sparse=always", self.source, self.after])
        Replica.create(self.replica, [("disk", DISK_BYTES)]).close()
        with Replica.open(self.replica) as replica:
            replica.seed({"disk": self.source})
            with replica.locked():
                self._live(replica)
        self.top = self.replica / "disk-interim.vmdk"

    def _live(self, replica: Replica) -> None:
        count = CHANGED_BYTES // GRAIN_BYTES
        places = self._rng.sample(range(DISK_BYTES // GRAIN_BYTES), count)
        with replica.journals(writable=True, with_bases=True) as journals:
            wanted = journals.mark("crash")
            self._write(journals.natives[0].disk(), self.source, places[: count // 2])
            cut = journals.mark("app")
            replica.manifest.next_point_id = journals.next_point_id
        recover(replica, wanted.id, Cut(point=cut.id, time=cut.time))
        with open_disk(replica.file("disk-interim.vmdk"), writable=True) as top:
            self._write(top, self.after, places[count // 2 :])

    def _write(self, disk: Any, model: Path, places: list[int]) -> None:
        with model.open("r+b") as file:
            for place in places:
                data = self._rng.randbytes(GRAIN_BYTES)
                disk.pwrite(data, place * GRAIN_BYTES)
                file.seek(place * GRAIN_BYTES)
                file.write(data)

    def restore(self) -> None:
        """The target has what the source had; all that will be read is in the page cache."""
        self.target.unlink(missing_ok=True)
        run(["cp", "--sparse=always", self.source, self.target])
        warm(self.target, *self.replica.glob("disk*"))
        settle()


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def test_failback(benchmark: Any, story: Story, tmp_path: Path) -> None:
    def side(name: str, *commands: Command) -> Callable[[], Mapping[str, float]]:
        def once() -> Mapping[str, float]:
            story.restore()
            figure = seconds(*commands)[-1]
            run(["cmp", story.after, story.target])
            return {name: figure}

        return once

    def ours(lineage: str, place: str | Path = story.target) -> Command:
        return [sys.executable, ONCE, story.replica, place, lineage]

    qemu = [
        require_tool("qemu-img"), "convert", "-n", "-m", "16", "-W", "-t", "writeback",
        "-f", "vmdk", "-O", "raw", story.top,
    ]  # fmt: skip
    served = tmp_path / "ours"
    copy = [require_tool("nbdcopy"), "--flush", f"nbd+unix:///?socket={served}", story.target]

    def by_nbdcopy() -> Mapping[str, float]:
        story.restore()
        serve = [sys.executable, "-m", "rollpoint", "disk", "serve", story.top]
        with running(served, *serve, "--socket", served, "--read-only"):
            figure = seconds(copy)[0]
        run(["cmp", story.after, story.target])
        return {NBDCOPY: figure}

    def to_export(name: str, command: Callable[[str], Command]) -> Mapping[str, float]:
        story.restore()
        place = tmp_path / "target"
        server = [require_tool("qemu-nbd"), "-t", "-f", "raw", "-k", place, story.target]
        with running(place, *server):
            figure = seconds(command(f"nbd+unix:///?socket={place}"))[0]
        run(["cmp", story.after, story.target])
        return {name: figure}

    changed = f"failback: {CHANGED_BYTES // MIB} MiB changed of {DISK_BYTES // MIB} MiB"
    take_turns(
        benchmark,
        sides=[
            side(KNOWN, ours("known")),
            side(COMPARED, ours("compared")),
            side(QEMU, [*qemu, story.target]),
            by_nbdcopy,
            lambda: to_export(EXPORT_KNOWN, lambda uri: ours("known", uri)),
            lambda: to_export(EXPORT_QEMU, lambda uri: [*qemu, uri]),
        ],
        rows=[
            Row(f"{changed}, to a file", KNOWN, {QEMU: 5.0, NBDCOPY: 5.0}),
            Row(f"{changed}, both sides compared", COMPARED, {QEMU: 1.0, NBDCOPY: 1.0}),
            Row(f"{changed}, to an NBD export", EXPORT_KNOWN, {EXPORT_QEMU: 5.0}),
        ],
        verified="the target, every round: cmp with a plain model",
        rounds=3,
    )
