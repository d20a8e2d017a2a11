"""A replica whose horizon moves and whose points are frozen and expire, beside a model of it."""

from __future__ import annotations

import copy
import os
import random
from typing import NamedTuple

from replicas import bytes_of, change
from rollpoint import _native, below, chains, frozen
from rollpoint.digests import link_digest
from rollpoint.disk import create_disk, open_disk
from rollpoint.journals import Journals
from rollpoint.manifest import PointNote
from rollpoint.points import Point
from rollpoint.replica import Replica
from rollpoint.units import parse_time

SIZES = {"a": 96 * 1024 + 512, "b": 64 * 1024}
KEEP_SECONDS = 1000.0
SECOND_NS = 1_000_000_000
Model = dict[str, bytes]


class Marked(NamedTuple):
    point: Point
    model: Model


class Life:
    """One replica at `path`, its journals open as an ingest has them, and what it should hold."""

    def __init__(
        self,
        io: _native.Io,
        path: str,
        seed: int,
        sizes: dict[str, int] = SIZES,
        base_type: str | None = None,
    ) -> None:
        self.io, self.path, self.rng = io, path, random.Random(seed)
        self.model = {name: bytearray(size) for name, size in sizes.items()}
        self.marked: list[Marked] = []  # those that journals or chains show
        self.expired: list[int] = []
        if base_type is None:
            Replica.create(path, list(sizes.items()), segment_bytes=65536, io=io).close()
        else:
            self._adopt(sizes, base_type)
        self.replica = Replica.open(path, io)
        with self.replica.locked() as manifest:
            manifest.retention.keep_seconds = KEEP_SECONDS
            self.replica.save()
        self.journals = self.open()

    def _adopt(self, sizes: dict[str, int], base_type: str) -> None:
        """Bases of another type, with something in them."""
        parent = self.io.open_dir(os.path.dirname(self.path) or "/")
        parent.make_dir(os.path.basename(self.path))
        bases = {name: f"{self.path}/{name}.vmdk" for name in sizes}
        for name, base in bases.items():
            create_disk(base, base_type, sizes[name], io=self.io)
            with open_disk(base, writable=True, io=self.io) as disk:
                change(disk.writing(), self.model[name], self.rng, 6)
        Replica.adopt(self.path, bases, segment_bytes=65536, io=self.io).close()

    def found(self, io: _native.Io) -> Life:
        """The same life on what a crash left of its disk; the journals are not open."""
        life = copy.copy(self)
        life.io, life.replica = io, Replica.open(self.path, io)
        life.marked, life.expired = list(self.marked), list(self.expired)
        life.model = {name: bytearray(disk) for name, disk in self.model.items()}
        return life

    def open(self) -> Journals:
        with self.replica.locked():
            self.journals = self.replica.journals(
                writable=True, with_bases=True, writable_bases=True
            )
        self.begun = False
        return self.journals

    def close(self) -> None:
        self.journals.close_clean()

    # ---- what happens to it ----

    def write(self, times: int = 4) -> None:
        for name, native in zip(self.journals.names, self.journals.natives, strict=True):
            change(native.disk(), self.model[name], self.rng, times)

    def mark(self) -> Marked:
        point = self.journals.mark(self.rng.choice(("crash", "app")), "a label")
        self.marked.append(Marked(point, {k: bytes(v) for k, v in self.model.items()}))
        return self.marked[-1]

    def destage(self, marked: Marked) -> None:
        """The horizon moves to a point; those before it are gone unless they are frozen."""
        if not self.begun:
            with self.replica.locked() as manifest:
                below.begin(self.replica.directory, manifest, self.journals.below)
            self.begun = True
        for name, native in zip(self.journals.names, self.journals.natives, strict=True):
            native.destage(marked.point.id, self.journals.targets[name])
        kept = {row.id for row in self.replica.manifest.frozen}
        self.marked = [
            row for row in self.marked if row.point.id >= marked.point.id or row.point.id in kept
        ]

    def freeze(self, marked: Marked) -> None:
        self.destage(marked)
        made = frozen.freeze(self.replica, self.journals, marked.point)
        assert made is not None
        assert (made.id, made.kind, made.label) == (marked.point.id, marked.point.kind, "a label")

    def pin(self, number: int) -> None:
        with self.replica.locked() as manifest:
            manifest.notes = [*manifest.notes, PointNote(id=number, pinned=True)]
            self.replica.save()

    def expire(self, up_to: int, live: bool = True) -> list[int]:
        """Give up what is not pinned of the long-term points up to an id."""
        times = [row.time for row in self.replica.manifest.frozen if row.id <= up_to]
        now_ns = parse_time(times[-1]) + int(KEEP_SECONDS * SECOND_NS) + 1 if times else 0
        merging = self.replica.manifest.merging
        if merging is not None and merging.tried is not None:
            now_ns = max(now_ns, parse_time(merging.tried) + frozen.RETRY_SECONDS * SECOND_NS)
        gone = frozen.expire(self.replica, now_ns, self.journals if live else None)
        first = self.oldest
        self.marked = [
            row for row in self.marked if row.point.id not in gone or row.point.id >= first
        ]
        self.expired += gone
        return gone

    # ---- what it should be ----

    @property
    def oldest(self) -> int:
        """Id of the oldest point that the journals have."""
        with self.replica.journals() as journals:
            return journals.natives[0].points()[0][0]

    def check(self) -> None:
        """Every point that should be there is listed, and every long-term one is exact."""
        assert [row.point.id for row in self.marked] == [p.id for p in self.replica.points]
        for name, native in zip(self.journals.names, self.journals.natives, strict=True):
            assert native.disk().pread(SIZES[name], 0) == self.model[name]
        check_long_term(self.path, self.io, {row.point.id: row.model for row in self.marked})


def check_long_term(path: str, io: _native.Io, models: dict[int, Model]) -> None:
    """What each long-term point shows is what the disks held; no file is there in vain."""
    with Replica.open(path, io) as replica:
        manifest = replica.manifest
        for row in manifest.frozen:
            for name in SIZES:
                assert bytes_of(f"{path}/{row.links[name]}", io) == models[row.id][name], row
                digest = row.digests.get(name)
                assert digest in (None, link_digest(replica.directory, row.links[name]))
        wanted = {
            file
            for disk in manifest.disks
            for link in chains.links_of(manifest, disk)
            if link != disk.base
            for file in (link, chains.extent_name(link))
        }
        # A crash may leave the beginning of a small file that was being replaced.
        found = {name.removesuffix(".new") for name in replica.directory.list() if "-0" in name}
        assert found == wanted
