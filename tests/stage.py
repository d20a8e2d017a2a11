"""A replica, its source and the hypervisor of both, in a folder: where operations are tried.

The source is the machine "web" with raw files; what it writes goes into these and, as an
ingest would write it, into the journals. One simulated world has the source's machine and
the replica's, which must never be on together.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rollpoint import operation, replication
from rollpoint.disk import open_disk
from rollpoint.hypervisor.base import Drive, Machine
from rollpoint.manifest import Manifest
from rollpoint.manifest import load as load_manifest
from rollpoint.replica import Replica
from rollpoint.steps import Outcome
from rollpoint.view import view
from worlds import Saved, SimulatedHypervisor, World

SIZES = {"a": 96 * 1024 + 512, "b": 64 * 1024}
SEGMENT_BYTES = 1 << 16
SOURCE = "web"
Content = dict[str, bytes]
TOML = """[source]
kind = "qemu"
machine = "web"

[source.disks]
a = "{a}"
b = "{b}"

[checks]
reserve = "0%"
probe_addresses = false
"""


class Stage:
    """See above.

    Attributes:
        path: The replica's directory.
        content: What the source has on its disks.
        points: What they had at each restore point, by its id.
    """

    def __init__(self, folder: Path, world: World | None = None) -> None:
        self.folder, self.path = folder, folder / "r"
        self.world = world or World()
        self.content = {name: bytearray(size) for name, size in SIZES.items()}
        self.points: dict[int, Content] = {}
        self.files = {name: str(folder / f"{name}.img") for name in SIZES}
        for name, place in self.files.items():
            Path(place).write_bytes(self.content[name])
        drives = tuple(Drive(place, "raw") for place in self.files.values())
        self.world.add(Machine(SOURCE, "the source", drives), on=True)
        with Replica.create(
            self.path, list(SIZES.items()), segment_bytes=SEGMENT_BYTES
        ) as replica:
            self.machine = replica.manifest.id
        self.world.rivals = {SOURCE, self.machine}
        (self.path / "replica.toml").write_text(TOML.format_map(self.files))
        self._saves = 0

    @property
    def hypervisor(self) -> SimulatedHypervisor:
        """A new way to the world, as each process has its own."""
        return SimulatedHypervisor(self.world)

    @contextmanager
    def replica(self) -> Iterator[Replica]:
        """The replica, as another process finds it."""
        with Replica.open(self.path) as replica:
            yield replica

    @property
    def manifest(self) -> Manifest:
        with self.replica() as replica:
            return load_manifest(replica.directory)

    # ---- the source ----

    def write(self, rng: random.Random, times: int = 4) -> None:
        """Random writes of the source, replicated as they come."""
        assert SOURCE in self.world.on(), "a source that is off writes nothing"
        with (
            Replica.open(self.path) as replica,
            replica.locked(),
            replica.journals(writable=True, with_bases=True) as journals,
        ):
            for name, native in zip(journals.names, journals.natives, strict=True):
                disk = native.disk()
                for _ in range(times):
                    data, offset = piece(rng, SIZES[name])
                    disk.pwrite(data, offset)
                    self.content[name][offset : offset + len(data)] = data
                Path(self.files[name]).write_bytes(self.content[name])

    def mark(self, *, caught_up: bool = False) -> int:
        """A restore point of what the source has now."""
        with self.replica() as replica:
            point = replication.mark(replica, caught_up=caught_up)
        self.points[point.id] = self.now()
        return point.id

    def now(self) -> Content:
        """What the source has."""
        return {name: bytes(data) for name, data in self.content.items()}

    # ---- the replica ----

    def fail_over(self, to: int | None = None, **said: object) -> Outcome:
        """The source's host fails, and the replica takes over."""
        self.world.cut_power(SOURCE)
        with self.replica() as replica:
            return operation.failover(
                replica, to, hypervisor=self.hypervisor, source=self.hypervisor, **said
            )  # type: ignore[arg-type]

    def overlays(self) -> Content:
        """What the failed-over disks hold."""
        recovered = self.manifest.recovered
        assert recovered is not None
        return {name: read(self.path / file) for name, file in recovered.interims.items()}

    def at(self, point: int) -> Content:
        """What a restore point shows, without touching it."""
        with self.replica() as replica, view(replica, str(point)) as seen:
            return {name: disk.pread(SIZES[name], 0) for name, disk in seen.disks.items()}

    def write_in_guest(self, rng: random.Random, model: dict[str, bytearray]) -> None:
        """Random writes of the replica's machine, which is on."""
        for number, name in enumerate(SIZES):
            data, offset = piece(rng, SIZES[name])
            self.world.write(self.machine, number, data, offset)
            model[name][offset : offset + len(data)] = data

    # ---- what other processes find ----

    def save(self) -> Saved:
        """The replica and the world as they are at this moment."""
        self._saves += 1
        return Saved(self.path, self.world, self.folder / f"saved{self._saves}")


def piece(rng: random.Random, size: int) -> tuple[bytes, int]:
    """What a random write writes, and where."""
    length = rng.choice((1, 511, 512, 4096, rng.randrange(1, 9000)))
    return rng.randbytes(length), rng.randrange(size - length)


def read(path: os.PathLike[str] | str) -> bytes:
    """All of a disk."""
    with open_disk(path) as disk:
        return disk.pread(disk.size_bytes, 0)


