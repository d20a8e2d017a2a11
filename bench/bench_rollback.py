"""How long does it take to show a restore point half-way through a long log?

Question: rolling 10^7 writes of 4 KiB, over a working set of 50 GiB of a 1 TiB disk, to a point
          in their middle should take a second at most, durable root included: it is the wait
          between the operator's command and the machine's start.
Sketch:   5 * 10^6 entries of 16 bytes are 80 MB of summaries to read in stretches of 260 KB,
          each a random store into 50 MB of tables (about 20 ns with prefetching, 0.1 s); 25,600
          tables of 2 KiB to write and sync, 0.1 to 0.3 s. First touches of memory (15 us a page
          on a guest whose host hands memory out lazily) may double that.
Floor:    the same I/O and nothing else: the summaries read one after the other, and as many
          bytes as the root has written to a file and synced; noted beside the figure.
Log:      laid out by journal_synthesize: headers, entries, summaries are real, grains are holes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest
from harness import FULL, SEED, single, size
from rollpoint._native import (
    OPEN_CREATE,
    OPEN_WRITE,
    POINT_END,
    Io,
    Journal,
    journal_create,
    journal_synthesize,
)

DISK_BYTES = 1 << 40
WORKING_SET_BYTES = size(smoke=1 << 30, full=50 << 30)
GRAIN_BYTES = 4096
SEGMENT_BYTES = 64 << 20
MIDDLE, LAST = 1, 2  # the two points of the log
MEMORY_LIMIT_KIB = 512 * 1024


class Summary(NamedTuple):
    """Where one segment keeps its entries."""

    first_entry: int
    offset: int
    count: int


def make_log(
    folder: Path,
    entries: int,
    disk_bytes: int = DISK_BYTES,
    working_set_bytes: int = WORKING_SET_BYTES,
) -> Path:
    file = Io.posix().open_dir(str(folder)).open("log", OPEN_WRITE | OPEN_CREATE)
    journal_create(file, capacity_bytes=disk_bytes, id=bytes(16), segment_bytes=SEGMENT_BYTES)
    journal_synthesize(
        file, entries=entries, working_set_bytes=working_set_bytes, points=LAST, seed=SEED
    )
    file.close()
    return folder / "log"


def summaries(log: Path) -> list[Summary]:
    """Read from the trailers by hand: docs/formats.md, "Journal log"."""
    found = []
    with open(log, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        for slot in range(65536, end - SEGMENT_BYTES + 1, SEGMENT_BYTES):
            file.seek(slot)
            header = file.read(96)
            file.seek(slot + SEGMENT_BYTES - 4096)
            trailer = file.read(96)
            if header[:8] == b"RPSEGMT1" and trailer[:8] == b"RPTRAIL1":
                words = [int.from_bytes(trailer[at : at + 8], "little") for at in (72, 80)]
                found.append(Summary(int.from_bytes(header[88:96], "little"), *words))
    return sorted(found)


def expected_places(log: Path, entries: int) -> Any:
    """The place of every grain after so many entries, by numpy: the last one counts."""
    numpy = pytest.importorskip("numpy")
    places = numpy.zeros(DISK_BYTES // GRAIN_BYTES, dtype="<u4")
    with open(log, "rb") as file:
        for summary in summaries(log):
            count = min(summary.count, entries - summary.first_entry)
            if count > 0:
                file.seek(summary.offset)
                rows = numpy.frombuffer(file.read(count * 16), dtype="<u4").reshape(-1, 4)
                places[rows[:, 0]] = rows[:, 1]
    return places


def shown_places(log: Path) -> Any:
    """The place of every grain in the root that a VMDK reader follows."""
    numpy = pytest.importorskip("numpy")
    places = numpy.zeros(DISK_BYTES // GRAIN_BYTES, dtype="<u4")
    with open(log, "rb") as file:
        directory_at = int.from_bytes(file.read(512)[56:64], "little") * 512
        file.seek(directory_at)
        directory = numpy.frombuffer(file.read(DISK_BYTES // GRAIN_BYTES // 512 * 4), dtype="<u4")
        for index in numpy.flatnonzero(directory):
            file.seek(int(directory[index]) * 512)
            table = numpy.frombuffer(file.read(2048), dtype="<u4")
            places[index * 512 : index * 512 + 512] = table
    return places


def roll(log: Path, point: int) -> tuple[float, int]:
    """Seconds and bytes of opening the log and rolling it to a point."""
    file = Io.posix().open_dir(str(log.parent)).open("log", OPEN_WRITE)
    start = time.perf_counter()
    journal = Journal(file, None, writable=True)
    done = journal.roll(point)
    seconds = time.perf_counter() - start
    journal.close()
    file.close()
    return seconds, int(done["bytes_written"])


def drop_cache(log: Path) -> None:
    with open(log, "rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def same_io(log: Path, entries: int, target: Path, root_bytes: int) -> float:
    """Seconds of reading the summaries up to the point and writing a root's bytes, durably."""
    wanted = [one for one in summaries(log) if one.first_entry < entries]
    block = bytes(1 << 20)
    drop_cache(log)
    start = time.perf_counter()
    with open(log, "rb", buffering=0) as file:
        for one in wanted:
            os.pread(file.fileno(), one.count * 16, one.offset)
    with open(target, "wb", buffering=0) as file:
        for at in range(0, root_bytes, len(block)):
            file.write(block[: min(len(block), root_bytes - at)])
        os.fdatasync(file.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def memory_of_a_roll(log: Path) -> int:
    """Largest resident size in KiB of a process that rolls the log back."""
    code = (
        "import sys\n"
        "from rollpoint._native import OPEN_WRITE, Io, Journal\n"
        "file = Io.posix().open_dir(sys.argv[1]).open('log', OPEN_WRITE)\n"
        f"Journal(file, None, writable=True).roll({MIDDLE})\n"
        "status = open('/proc/self/status').read()\n"  # ru_maxrss counts the parent, too
        "print(status.split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, log.parent], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.parametrize("entries", [10**5, 10**6, 10**7] if FULL else [10**4])
def test_roll_back_to_the_middle(benchmark: Any, tmp_path: Path, entries: int) -> None:
    log = make_log(tmp_path, entries)
    _, root_bytes = roll(log, MIDDLE)
    assert (shown_places(log) == expected_places(log, entries // 2)).all()
    roll(log, POINT_END)
    assert (shown_places(log) == expected_places(log, entries)).all()
    memory_kib = memory_of_a_roll(log)
    assert memory_kib <= MEMORY_LIMIT_KIB
    floor: list[float] = []

    def ours() -> float:
        floor.append(same_io(log, entries // 2, tmp_path / "floor", root_bytes))
        roll(log, POINT_END)  # shown is the end, so the middle is as far as can be
        drop_cache(log)
        return roll(log, MIDDLE)[0]

    single(
        benchmark,
        what=f"roll back {entries:,} writes of 4 KiB to their middle",
        unit="s",
        run=ours,
        goal=1.0,
        higher_is_better=False,
        cache="cold: the log's pages are dropped before each round",
        verified="every grain's place in the shown root, against the log read by numpy",
        notes={"memory_kib": memory_kib, "root_bytes": root_bytes},
    )
    benchmark.extra_info["notes"]["the same I/O alone, seconds"] = median(floor)
    benchmark.extra_info["curve"] = {"plot": "number of writes", "line": "roll", "x": entries}
