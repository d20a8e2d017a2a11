"""How long does it take to open a log again, and does the size of the disk matter?

Question: opening a log and reading from it should cost what came after its last checkpoint,
          and rolling back what was written, both whatever the size of the disk: within 20 %
          from 1 GiB to 16 TiB. With a tail of 1 GiB without a checkpoint 2 s at most.
Sketch:   opening reads a header and a trailer a segment (16 for each GiB), the shown root (2 KiB
          for each 2 MiB of the disk that was written), and the entries behind it: 4 MiB for a
          GiB of tail, and the batches of the last segment one by one. The grain directory has
          4 bytes for each 2 MiB of the disk, 32 MiB at 16 TiB, but only its pages that name a
          table are written and read; the others are holes.
Logs:     laid out by journal_synthesize (headers, entries, summaries are real, grains are holes),
          but for the tail, whose every byte was written.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bench_rollback import (
    DISK_BYTES,
    MIDDLE,
    SEGMENT_BYTES,
    drop_cache,
    expected_places,
    make_log,
    roll,
    shown_places,
    summaries,
)
from harness import FULL, SEED, Row, single, size, take_turns
from rollpoint._native import (
    EXTENT_ZERO,
    OPEN_CREATE,
    OPEN_WRITE,
    POINT_END,
    Chain,
    File,
    Image,
    Io,
    Journal,
    journal_create,
)
from rollpoint.units import format_size

GIB = 1 << 30
GRAIN_BYTES = 4096
WRITES = [10**5, 10**6, 10**7] if FULL else [10**4]
DISKS = [1 * GIB, 64 * GIB, 1024 * GIB, 16384 * GIB] if FULL else [1 * GIB, 64 * GIB]
DISK_WRITES = size(smoke=10**4, full=10**6)
TAIL_BYTES = size(smoke=8 << 20, full=GIB)
FLAT = 1 / 1.2  # the goal: at most 20 % slower than on the smallest disk
COLD = "cold: the log's pages are dropped before each round"
AGAINST_WRITES, AGAINST_DISK = "number of writes", "size of the disk, bytes"


def base_of(disk_bytes: int) -> Chain:
    """A base that shows zeros."""
    return Chain([Image([(EXTENT_ZERO, disk_bytes // 512, None, 0)])])


def open_log(log: Path) -> File:
    return Io.posix().open_dir(str(log.parent)).open(log.name, OPEN_WRITE)


def reopen(log: Path, disk_bytes: int) -> float:
    """Seconds from opening the log for writing until the first byte of the disk was read."""
    base = base_of(disk_bytes)
    drop_cache(log)
    file = open_log(log)
    start = time.perf_counter()
    journal = Journal(file, base, writable=True)
    journal.disk().pread(1, 0)
    seconds = time.perf_counter() - start
    journal.close()
    file.close()
    return seconds


def require_shown(log: Path, entries: int, disk_bytes: int) -> None:
    """As bench_rollback has it, for disks too large to have a number for each grain."""
    numpy = pytest.importorskip("numpy")
    with open(log, "rb") as file:
        rows = []
        for summary in summaries(log):
            count = min(summary.count, entries - summary.first_entry)
            if count > 0:
                file.seek(summary.offset)
                rows.append(numpy.frombuffer(file.read(count * 16), dtype="<u4").reshape(-1, 4))
        written = numpy.concatenate(rows)[::-1]  # the last one of each grain counts
        grains, first = numpy.unique(written[:, 0], return_index=True)
        file.seek(0)
        file.seek(int.from_bytes(file.read(512)[56:64], "little") * 512)
        tables = -(-disk_bytes // GRAIN_BYTES // 512)
        directory = numpy.frombuffer(file.read(tables * 4), dtype="<u4")
        found = []
        for index in numpy.flatnonzero(directory):
            file.seek(int(directory[index]) * 512)
            table = numpy.frombuffer(file.read(2048), dtype="<u4")
            used = numpy.flatnonzero(table)
            found.append(numpy.stack((used + int(index) * 512, table[used].astype("i8")), axis=1))
    shown = numpy.concatenate(found)
    assert (shown[:, 0] == grains).all()
    assert (shown[:, 1] == written[first, 1]).all()


def curve(plot: str, line: str, x: int) -> dict[str, object]:
    return {"plot": plot, "line": line, "x": x}


@pytest.mark.parametrize("entries", WRITES)
def test_reopen_against_the_number_of_writes(
    benchmark: Any, tmp_path: Path, entries: int
) -> None:
    """The log ends with a checkpoint, as a clean end leaves it."""
    log = make_log(tmp_path, entries)
    roll(log, POINT_END)
    assert (shown_places(log) == expected_places(log, entries)).all()
    single(
        benchmark,
        what=f"reopen a log of {entries:,} writes of 4 KiB, with a checkpoint",
        unit="s",
        run=lambda: reopen(log, DISK_BYTES),
        goal=None,
        higher_is_better=False,
        cache=COLD,
        verified="every grain's place in the shown root, against the log read by numpy",
    )
    benchmark.extra_info["curve"] = curve(AGAINST_WRITES, "reopen", entries)


Side = Callable[[], Mapping[str, float]]


def on_disks(
    benchmark: Any, folder: Path, what: str, measure: Callable[[Path, int], float]
) -> None:
    """Measure on disks of all sizes, in turn; one row beside the smallest for each other."""

    def side(disk_bytes: int) -> Side:
        place = folder / str(disk_bytes)
        place.mkdir()
        log = make_log(place, DISK_WRITES, disk_bytes, GIB)
        roll(log, MIDDLE)
        require_shown(log, DISK_WRITES // 2, disk_bytes)
        return lambda: {name_of(disk_bytes): measure(log, disk_bytes)}

    smallest, *others = DISKS
    take_turns(
        benchmark,
        sides=[side(disk_bytes) for disk_bytes in DISKS],
        rows=[
            Row(
                f"{what} on a disk of {format_size(disk_bytes)}",
                name_of(disk_bytes),
                {name_of(smallest): FLAT},
                cache=COLD,
            )
            for disk_bytes in others
        ],
        verified="every grain's place in the shown root, against the log read by numpy",
    )
    line = what.split()[0]
    for row, disk_bytes in zip(benchmark.extra_info["rows"], others, strict=True):
        row["curve"] = curve(AGAINST_DISK, line, disk_bytes)
        row["curve"]["first"] = {"x": smallest, "figures": row["figures"][name_of(smallest)]}


def name_of(disk_bytes: int) -> str:
    return f"disk of {format_size(disk_bytes)}"


def test_roll_back_against_the_size_of_the_disk(benchmark: Any, tmp_path: Path) -> None:
    def measure(log: Path, _disk_bytes: int) -> float:
        roll(log, POINT_END)
        drop_cache(log)
        return roll(log, MIDDLE)[0]

    on_disks(benchmark, tmp_path, f"roll back {DISK_WRITES:,} writes to their middle", measure)


def test_reopen_against_the_size_of_the_disk(benchmark: Any, tmp_path: Path) -> None:
    """The shown root is that of the middle, so half of the entries are walked."""
    on_disks(benchmark, tmp_path, f"reopen a log of {DISK_WRITES:,} writes", reopen)


class Written(NamedTuple):
    """What was written into a log: grain -> where in the pool of random bytes its data begins."""

    log: Path
    pool: bytes
    grains: dict[int, int]

    def data(self, grain: int) -> bytes:
        return self.pool[self.grains[grain] : self.grains[grain] + GRAIN_BYTES]


def write_log(folder: Path, length: int) -> Written:
    """Random writes through a journal, which is let go as in a crash, without a checkpoint."""
    file = Io.posix().open_dir(str(folder)).open("log", OPEN_WRITE | OPEN_CREATE)
    journal_create(file, capacity_bytes=DISK_BYTES, id=bytes(16), segment_bytes=SEGMENT_BYTES)
    journal = Journal(file, base_of(DISK_BYTES), writable=True)
    rng = random.Random(SEED)
    made = Written(folder / "log", rng.randbytes(1 << 20), {})
    for i in range(length // GRAIN_BYTES):
        grain = rng.randrange(50 * GIB // GRAIN_BYTES)
        made.grains[grain] = rng.randrange(len(made.pool) - GRAIN_BYTES)
        journal.disk().pwrite(made.data(grain), grain * GRAIN_BYTES)
        if i % 8192 == 0:
            journal.commit()
    journal.commit()
    journal.close()
    file.close()
    return made


def test_reopen_with_a_tail_without_a_checkpoint(benchmark: Any, tmp_path: Path) -> None:
    """What a crash leaves of an ingest that never took a checkpoint."""
    written = write_log(tmp_path, TAIL_BYTES)
    single(
        benchmark,
        what=f"reopen after a crash, with {format_size(TAIL_BYTES)} of writes since the checkpoint",
        unit="s",
        run=lambda: reopen(written.log, DISK_BYTES),
        goal=2.0,
        higher_is_better=False,
        cache=COLD,
        verified="a thousand of the writes read back",
    )
    file = open_log(written.log)
    again = Journal(file, base_of(DISK_BYTES), writable=True)
    assert int(again.info()["root_entry"]) == 0
    some = random.Random(SEED).sample(sorted(written.grains), min(1000, len(written.grains)))
    for grain in some:
        assert again.disk().pread(GRAIN_BYTES, grain * GRAIN_BYTES) == written.data(grain)
    again.close()
    file.close()
