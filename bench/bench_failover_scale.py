"""Does the engine's part of a failover stay below a second, whatever the disk and the log hold?

Question: from the call to the hypervisor's start, everything durable, a failover to a point in
          the middle of the log should take a second at most, at the 99th percentile, from 10 GiB
          and 10^4 writes to 16 TiB and 10^7 writes, and be flat in the disk's size; and a hundred
          replicas at once on two cores should each get their share and no less.
Sketch:   Roll back: bench_rollback.py. Five durable saves of 1 to 3 ms, an overlay of holes, one
          mount that reads both ends. What grows with the disk are grain directories: 32 MiB of
          the journal's root at 16 TiB, read once to open it, 10 to 30 ms.
Log:      laid out by journal_synthesize; the writes lie in the same 5 GiB on every disk.
Observer: a hypervisor that notes when it is called, and starts nothing.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest
from fakes import Plain
from harness import FULL, SEED, single, size
from rollpoint import operation
from rollpoint._native import OPEN_WRITE, Io, journal_synthesize
from rollpoint.hypervisor.base import Handle, Machine, State
from rollpoint.journal import journal_names
from rollpoint.replica import Replica

MIDDLE = 1  # of the log's two points
GIB = 1 << 30
WORKING_SET_BYTES = 5 * GIB
# The largest file of ext4 is a little smaller than 16 TiB.
SIZES = [10 * GIB, 100 * GIB, 1 << 40, (16 << 40) - (1 << 20)]
REPLICAS = size(smoke=4, full=100)


class Observer(Plain):
    """Notes when the power-on call comes."""

    def __init__(self) -> None:
        self.called: dict[str, float] = {}

    def start(self, machine: Machine) -> Handle:
        self.called[machine.id] = time.perf_counter()
        return Handle(machine.id, 1, 0, "")

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        return marker

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        self.called.pop(machine_id, None)

    def status(self, machine_id: str) -> State:
        return "running" if machine_id in self.called else "off"


def make(path: Path, disk_bytes: int, entries: int) -> Path:
    Replica.create(path, [("a", disk_bytes)]).close()
    log = Io.posix().open_dir(str(path)).open(journal_names("a").log, OPEN_WRITE)
    journal_synthesize(
        log, entries=entries, working_set_bytes=WORKING_SET_BYTES, points=2, seed=SEED
    )
    log.close()
    return path


def fail_over(path: Path) -> float:
    """Seconds from the call to the hypervisor's start; undone again."""
    observer = Observer()
    with Replica.open(path) as replica:
        begun = time.perf_counter()
        operation.failover(
            replica, MIDDLE, hypervisor=observer, skip={"source-fenced": "a benchmark"}
        )
        seconds = observer.called[replica.manifest.id] - begun
        operation.undo(replica, hypervisor=observer)
    return seconds


def name_of(disk_bytes: int) -> str:
    return f"{round(disk_bytes / GIB):,} GiB"


@pytest.mark.parametrize("entries", [10**4, 10**5, 10**6, 10**7] if FULL else [10**3])
@pytest.mark.parametrize("disk_bytes", SIZES if FULL else SIZES[::3], ids=name_of)
def test_engine_part(benchmark: Any, tmp_path: Path, disk_bytes: int, entries: int) -> None:
    path = make(tmp_path / "r", disk_bytes, entries)
    fail_over(path)
    found: list[float] = []

    def once() -> float:
        found.append(fail_over(path))
        return found[-1]

    single(
        benchmark,
        what=f"failover: engine part, {name_of(disk_bytes)}, {entries:,} writes",
        unit="s",
        run=once,
        goal=1.0,
        higher_is_better=False,
        cache="warm",
        verified="the hypervisor was called, after everything was durable",
        rounds=20,
    )
    benchmark.extra_info["notes"] = {"99th percentile, seconds": worst(found)}
    benchmark.extra_info["curve"] = {
        "plot": "size of the disk, bytes", "line": f"failover, {entries:,} writes", "x": disk_bytes,
    }  # fmt: skip


def worst(seconds: list[float]) -> float:
    """The 99th percentile."""
    return quantiles(seconds, n=100, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]


def test_many_at_once(benchmark: Any, tmp_path: Path) -> None:
    """All are asked at one moment; the figure is when the last one's machine is started."""
    paths = [make(tmp_path / str(n), 10 * GIB, 10**4 if FULL else 10**3) for n in range(REPLICAS)]
    alone: list[float] = []

    def all_at_once() -> float:
        alone.append(fail_over(paths[0]))
        with ThreadPoolExecutor(len(paths)) as pool:
            begun = time.perf_counter()
            list(pool.map(fail_over, paths))
            return time.perf_counter() - begun

    single(
        benchmark,
        what=f"failover: engine part and undo, {REPLICAS} replicas at once",
        unit="s",
        run=all_at_once,
        goal=None,
        higher_is_better=False,
        cache="warm",
        verified="every hypervisor was called",
    )
    benchmark.extra_info["notes"] = {"one alone, seconds": median(alone)}
