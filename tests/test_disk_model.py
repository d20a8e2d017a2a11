"""Random lives of disks equal a bytearray (hypothesis, stateful).

A life: reads, unaligned writes, zeroes and trims, flushes, closing and opening again
(also without closing cleanly, after a flush), snapshots up to four links deep,
commits, throw-away writes above the disk, checks. After every step of a chain
everything is compared, `check` is clean, and no byte of a parent has changed; at the
end the disk is converted to another type and compared once more.

The usual run tries the same lives each time. ROLLPOINT_MODEL_EXAMPLES=N tries N random
lives of each type instead, for hours if N is large; what fails is kept in .hypothesis
and tried first the next time:

    ROLLPOINT_MODEL_EXAMPLES=20000 python -m pytest -n 2 tests/test_disk_model.py
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from rollpoint import disk as disks
from rollpoint._native import OPEN_READ, RUN_DATA, Io
from rollpoint.convert import commit, compare, convert
from rollpoint.create import create_disk
from rollpoint.disk import OpenDisk, open_disk, open_snapshot
from rollpoint.errors import ReadOnlyError, UnsupportedError

SECTOR = 512
EXAMPLES = int(os.environ.get("ROLLPOINT_MODEL_EXAMPLES", "0"))
USUAL = 14  # lives of each type in the usual run
STEPS = 30
LINKS_MAX = 4
CHILDREN = ("monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse")
WRITABLE = ("raw", "monolithicFlat", "twoGbMaxExtentFlat", "vmfs", "vmfsThin", *CHILDREN)
APPEND_ONLY = ("seSparse", "streamOptimized")
# none of them a multiple of 64 KiB but the first two
SECTORS = (128, 4096, 1, 127, 129, 1000, 2047, 3001, 4095)
GRAINS = (512, 1024, 4096, 65536, 1 << 20)
PART_SECTORS = (4096, 1000, 333, 128)

lengths = st.sampled_from([1, 511, 512, 513, 4096, 5000, 65536, 66_000, 300_000])
# as parts of the disk, so that they mean something on any size; small ones and
# those of a power of two lie near the borders of grains
places = st.one_of(st.integers(0, (1 << 21) - 1), st.integers(0, 64).map(lambda n: n * 32768))
nudges = st.sampled_from([0, 0, -1, 1, -511, 512])


class Kept(NamedTuple):
    """A link that has children: it must not change any more."""

    path: str
    content: bytes
    files: dict[str, bytes]


class Life(RuleBasedStateMachine):
    """A chain of disks and the bytes that it must show."""

    base_type = "monolithicSparse"

    @initialize(
        sectors=st.sampled_from(SECTORS),
        grain=st.sampled_from(GRAINS),
        part=st.sampled_from(PART_SECTORS),
        zero_grains=st.booleans(),
        io=st.sampled_from(["memory", "memory, ordered"] * 2 + ["files"]),
        last_type=st.sampled_from(disks.TYPES),
    )
    def begin(
        self, sectors: int, grain: int, part: int, zero_grains: bool, io: str, last_type: str
    ) -> None:
        self.last_type = last_type
        self.folder = tempfile.mkdtemp(prefix="rollpoint-model-") if io == "files" else "/"
        self.io = Io.posix() if io == "files" else Io.simulate()
        if io == "memory, ordered":
            self.io = Io.order(self.io)  # stops the process where a write-ahead rule is broken
        self.number = 0
        self.below: list[Kept] = []
        self.model = bytearray(sectors * SECTOR)
        self.leaks = False  # once a link was let go without a close
        self.unclean: set[str] = set()  # the files of which that was the last write
        self.disk: OpenDisk | None = None
        if self.base_type in APPEND_ONLY:
            self._begin_above_another(grain, part, zero_grains)
        else:
            self.path = self._new(self.base_type, grain, part, zero_grains)
        self._open()

    def _begin_above_another(self, grain: int, part: int, zero_grains: bool) -> None:
        """The base is made by a conversion, and a child takes the writes."""
        raw = self._new("raw", grain, part, False)
        rng = random.Random(len(self.model) + grain)
        with open_disk(raw, writable=True, format="raw", io=self.io) as disk:
            for _ in range(5):
                data = rng.randbytes(rng.choice([1, 512, 70_000]))[: len(self.model)]
                at = rng.randrange(len(self.model) - len(data) + 1)
                disk.pwrite(data, at)
                self.model[at : at + len(data)] = data
        self.path = os.path.join(self.folder, "base.vmdk")
        convert(raw, self.path, self.base_type, source_format="raw", io=self.io)
        assert self._seen(self.path) == self.model
        self._keep(self.path)
        self.path = self._new(CHILDREN[part % 3], grain, part, zero_grains, self.path)

    def _keep(self, path: str) -> None:
        files = {name: self._bytes(name) for name in self._files(path)}
        self.below.append(Kept(path, bytes(self.model), files))

    # --- what a life is made of ---

    @rule(place=places, nudge=nudges, length=lengths, seed=st.integers(0, 2**32), kind=nudges)
    def write(self, place: int, nudge: int, length: int, seed: int, kind: int) -> None:
        at, length = self._range(place + nudge, length)
        data = random.Random(seed).randbytes(length) if kind else bytes([seed % 256]) * length
        self._disk.pwrite(data, at)
        self.model[at : at + length] = data
        self.written = True

    @rule(place=places, nudge=nudges, length=lengths, trim=st.booleans())
    def zero(self, place: int, nudge: int, length: int, trim: bool) -> None:
        at, length = self._range(place + nudge, length)
        self._disk.zero(length, at, may_trim=trim)
        self.model[at : at + length] = bytes(length)
        self.written = True

    @rule(place=places, nudge=nudges, length=st.one_of(lengths, st.just(0)))
    def read(self, place: int, nudge: int, length: int) -> None:
        at, length = self._range(place + nudge, length)
        assert self._disk.pread(length, at) == self.model[at : at + length]

    @rule()
    def flush(self) -> None:
        self._disk.flush()

    @rule(clean=st.sampled_from([True, True, False]))
    def reopen(self, clean: bool) -> None:
        if not clean:
            self._disk.flush()
        self._close(clean)
        self._inspect(clean)
        self._open()

    @precondition(lambda self: len(self.below) < LINKS_MAX - 1 and self.base_type != "raw")
    @rule(
        type=st.sampled_from(CHILDREN),
        grain=st.sampled_from(GRAINS),
        part=st.sampled_from(PART_SECTORS),
        zero_grains=st.booleans(),
    )
    def snapshot(self, type: str, grain: int, part: int, zero_grains: bool) -> None:
        """A child on top, which takes the writes from here on."""
        self._close()
        self._keep(self.path)
        self.path = self._new(type, grain, part, zero_grains, self.path)
        self._open()

    @precondition(lambda self: self.below)
    @rule(stay=st.booleans())
    def commit(self, stay: bool) -> None:
        """The child goes into its parent; then either of them is used on."""
        self._close()
        if len(self.below) == 1 and self.base_type in APPEND_ONLY:
            with pytest.raises((ReadOnlyError, UnsupportedError)):
                commit(self.path, io=self.io)
            self._inspect()
            self._open()
            return
        parent = self.below.pop()
        assert os.path.normpath(commit(self.path, io=self.io)) == parent.path
        assert self._seen(parent.path) == self.model
        assert self._seen(self.path) == self.model
        if stay:
            self._keep(parent.path)
        else:
            dir = self.io.open_dir(self.folder)
            for name in self._files(self.path):
                dir.unlink(name)
            self.path = parent.path
        self._inspect()
        self._open()

    @precondition(lambda self: self.folder != "/")
    @rule(place=places, length=lengths)
    def scribble_above(self, place: int, length: int) -> None:
        """Writes that nobody keeps."""
        self._close()
        at, length = self._range(place, length)
        before = {name: self._bytes(name) for name in self._files(self.path)}
        with open_snapshot(self.path, scratch_dir=self.folder, format=self._format) as disk:
            disk.pwrite(b"#" * length, at)
            assert disk.pread(length, at) == b"#" * length
            assert disk.pread(at, 0) == self.model[:at]
        assert {name: self._bytes(name) for name in before} == before
        self._open()

    @invariant()
    def the_size_stays(self) -> None:
        assert self._disk.size_bytes == len(self.model)

    def teardown(self) -> None:
        if not hasattr(self, "disk"):
            return  # it never began
        try:
            if self.disk is None:
                return  # a rule failed
            self._close()
            self._inspect()
            self._convert(self.last_type)
        finally:
            if self.disk is not None:
                self.disk.close(clean=False)
            if self.folder != "/":
                shutil.rmtree(self.folder)

    # --- how ---

    @property
    def _disk(self) -> OpenDisk:
        assert self.disk is not None
        return self.disk

    @property
    def _format(self) -> str | None:
        return "raw" if self.base_type == "raw" else None

    def _new(
        self, type: str, grain: int, part: int, zero_grains: bool, parent: str | None = None
    ) -> str:
        self.number += 1
        path = os.path.join(self.folder, f"{self.number}.vmdk")
        create_disk(
            path,
            type,
            len(self.model),
            parent=parent,
            grain_bytes=grain if type in CHILDREN else None,
            split_sectors=part,
            zero_grains=zero_grains,
            io=self.io,
        )
        return path

    def _open(self) -> None:
        self.disk = open_disk(self.path, writable=True, format=self._format, io=self.io)
        self.cid = self.disk.info()["cid"]
        self.written = False

    def _close(self, clean: bool = True) -> None:
        disk, self.disk = self._disk, None
        disk.close(clean)
        self.leaks = self.leaks or not clean
        if self._format is None:
            changed = disks.info(self.path, io=self.io)["cid"] != self.cid
            assert changed == self.written  # children made before know by it

    def _inspect(self, clean: bool = True) -> None:
        """The whole of it: every byte by reads and by the map, check, and the parents."""
        assert self._seen(self.path) == self.model
        found = disks.check(self.path, format=self._format, io=self.io)["findings"]
        unclean = {finding["file"] for finding in found if finding["kind"] == "unclean"}
        assert not clean or unclean <= self.unclean
        self.unclean = unclean
        allowed = {"unclean", "leak"} if self.leaks else {"unclean"}
        assert {finding["kind"] for finding in found} <= allowed, found
        for kept in self.below:
            assert {name: self._bytes(name) for name in kept.files} == kept.files
            assert self._seen(kept.path) == kept.content

    def _seen(self, path: str, format: str | None = None) -> bytes:
        with open_disk(path, format=format or self._format, io=self.io) as disk:
            content = disk.pread(disk.size_bytes, 0)
            stop = 0
            for run in disk.runs():
                assert run.offset_bytes == stop
                stop += run.length_bytes
                if run.kind != RUN_DATA:
                    assert content[run.offset_bytes : stop] == bytes(run.length_bytes), run
            assert stop == len(content)
        return content

    def _convert(self, to: str) -> None:
        target = os.path.join(self.folder, "target")
        convert(self.path, target, to, source_format=self._format, io=self.io)
        format = "raw" if to == "raw" else None
        assert self._seen(target, format or "vmdk") == self.model
        assert disks.check(target, format=format, io=self.io)["clean"]
        if self.folder != "/":
            assert compare(self.path, target, a_format=self._format, b_format=format).equal

    def _range(self, place: int, length: int) -> tuple[int, int]:
        at = max(place, 0) % len(self.model)
        return at, min(length, len(self.model) - at)

    def _files(self, path: str) -> list[str]:
        """Names of the files of one link."""
        stem = os.path.basename(path).removesuffix(".vmdk")
        names = self.io.open_dir(self.folder).list()
        return [name for name in names if name.partition(".")[0].partition("-")[0] == stem]

    def _bytes(self, name: str) -> bytes:
        file = self.io.open_dir(self.folder).open(name, OPEN_READ)
        try:
            return file.pread(file.size_bytes, 0)
        finally:
            file.close()


@pytest.mark.parametrize("type", [*WRITABLE, *APPEND_ONLY])
def test_a_disk_and_its_children_equal_a_bytearray(type: str) -> None:
    life = type_of_life(type)
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=EXAMPLES or USUAL,
            stateful_step_count=STEPS,
            derandomize=not EXAMPLES,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # what fails in the usual run has a blob to repeat it; shrinking takes minutes
            phases=[Phase.explicit, Phase.reuse, Phase.generate] + [Phase.shrink] * bool(EXAMPLES),
            print_blob=True,
        ),
    )


def type_of_life(base_type: str) -> type[Life]:
    return type(f"Life_{base_type}", (Life,), {"base_type": base_type})
