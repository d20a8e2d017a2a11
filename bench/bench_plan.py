"""What does a plan cost, beyond the failovers that it is made of?

Question: 200 replicas failed over by a plan, 20 at once, in four groups that follow each other:
          how much longer than the same 200 failovers called one after the other by 20 threads?
          Goal: 50 ms for each replica. And does memory stay bounded?
Sketch:   For each replica three small transactions of DBOS and four events, each a sync of
          SQLite's log: 10 to 15 ms on a disk that syncs in 1 ms.
Observer: a hypervisor that notes when it is called, and starts nothing.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from bench_failover_scale import Observer, make
from harness import compare, size
from rollpoint import operation
from rollpoint.plans import running
from rollpoint.replica import Replica

REPLICAS = size(smoke=8, full=200)
GROUPS, AT_ONCE = 4, 20
GIB = 1 << 30
PLAN = """version = 1
name = "site"
replicas = "{root}"
limits = {{ plan = {at_once}, hosts = {{ "*" = {at_once} }} }}
"""
GROUP = """
[[group]]
name = "g{number}"
replicas = ["g{number}-*"]
after = [{after}]
skip = {{ source-fenced = "a benchmark" }}
"""


class Observers:
    """A hypervisor for each replica, by its directory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, Observer] = {}

    def __call__(self, directory: str) -> tuple[Observer, None]:
        with self._lock:
            return self._made.setdefault(directory, Observer()), None


def write_plan(path: Path, root: Path) -> Path:
    text = PLAN.format(root=root, at_once=AT_ONCE)
    for number in range(GROUPS):
        after = f'"g{number - 1}"' if number else ""
        text += GROUP.format(number=number, after=after)
    path.write_text(text)
    return path


def memory_bytes() -> int:
    """Resident now."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def test_cost_of_a_plan(benchmark: Any, tmp_path: Path) -> None:
    root = tmp_path / "replicas"
    root.mkdir()
    paths = [make(root / f"g{n % GROUPS}-{n:03}", 10 * GIB, 1000) for n in range(REPLICAS)]
    plan = write_plan(tmp_path / "site.toml", root)
    observers = Observers()
    where = running.Settings(str(tmp_path / "state"), hypervisors=observers)
    grown: list[int] = []

    def fail_over(path: Path) -> None:
        with Replica.open(path) as replica:
            operation.failover(
                replica, hypervisor=observers(str(path))[0], skip={"source-fenced": "a benchmark"}
            )

    def undo(path: Path) -> None:
        with Replica.open(path) as replica:
            operation.undo(replica, hypervisor=observers(str(path))[0])

    def alone() -> float:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            begun = time.perf_counter()
            for number in range(GROUPS):
                list(pool.map(fail_over, paths[number::GROUPS]))
            seconds = time.perf_counter() - begun
            list(pool.map(undo, paths))
        return seconds / REPLICAS

    def by_plan() -> float:
        before = memory_bytes()
        begun = time.perf_counter()
        run = running.start(str(plan), "unplanned", where)
        state = running.drive("site", run, where)
        seconds = time.perf_counter() - begun
        assert state.state == "done", [node.error for node in state.nodes.values()]
        assert len(state.nodes) == REPLICAS
        grown.append(memory_bytes() - before)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(undo, paths))
        return seconds / REPLICAS

    pairs: list[tuple[float, float]] = []

    def ours() -> float:
        pairs.append((by_plan(), last[0]))
        return pairs[-1][0]

    last = [0.0]

    def peer() -> float:
        last[0] = alone()
        return last[0]

    compare(
        benchmark,
        what=f"plan of {REPLICAS} replicas, seconds for each",
        unit="s",
        ours=ours,
        peers={"the same failovers from 20 threads": peer},
        goals={},
        higher_is_better=False,
        cache="warm",
        verified="each replica was failed over, its hypervisor called, and the run is done",
    )
    benchmark.extra_info["notes"] = {
        "beyond the failover, ms for each replica (goal 50)": 1000
        * median(plan - own for plan, own in pairs),
        "memory grown by a run, MiB": max(grown) / (1 << 20),
    }
