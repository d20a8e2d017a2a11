"""How every benchmark here compares itself with a peer.

Sides run in turn (ours, peer, ours, peer ...) in one process, so that a machine whose
speed drifts slows both alike. What is kept are the figures of all rounds; what is quoted
is the median of the ratios of neighbours, never an absolute time. Each side returns a
figure and must have produced the same bytes: the caller verifies and says how.

Sizes: ROLLPOINT_BENCH=full runs what docs/benchmarks.md quotes; anything else runs a small
version that only shows that the benchmark still works.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

FULL = os.environ.get("ROLLPOINT_BENCH") == "full"
SEED = 20261122


def size(*, smoke: int, full: int) -> int:
    """The full size in a full run, the small one otherwise."""
    return full if FULL else smoke


def rollpoint(*arguments: str | Path, path: str = "") -> str:
    """What a command of ours prints; path comes in front of PATH."""
    environment = os.environ | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    done = subprocess.run(
        [sys.executable, "-m", "rollpoint", *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def running(socket: Path, *command: str | Path) -> Iterator[Path]:
    """A server, from the moment it listens until it has ended in order."""
    socket.unlink(missing_ok=True)
    server = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not socket.exists():
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield socket
    finally:
        server.terminate()
        assert server.wait(120) == 0


def compare(
    benchmark: Any,
    *,
    what: str,
    unit: str,
    ours: Callable[[], float],
    peers: Mapping[str, Callable[[], float]],
    goals: Mapping[str, float],
    higher_is_better: bool,
    cache: str,
    verified: str,
    rounds: int = 5,
) -> dict[str, float]:
    """Run ours and each peer in turn and record figures, ratios and goals.

    Args:
        benchmark: pytest-benchmark's fixture.
        what: What is measured, as the table shows it.
        unit: Of the figures that the sides return, as in "IOPS" or "s".
        goals: Peer name to the ratio aimed at; ours better gives more than 1.
        cache: "cold" or "warm", or a sentence.
        verified: How it was checked that both sides did the same work.
        rounds: Counted rounds of each side in a full run; one otherwise.

    Returns:
        Peer name to the median ratio.
    """
    figures: dict[str, list[float]] = {"ours": [], **{name: [] for name in peers}}

    def run_peers() -> None:
        for name, run in peers.items():
            figures[name].append(run())

    def run_ours() -> None:
        figures["ours"].append(ours())

    benchmark.pedantic(run_ours, setup=run_peers, rounds=rounds if FULL else 1, iterations=1)
    ratios = {}
    for name in peers:
        pairs = zip(figures["ours"], figures[name], strict=True)
        ratios[name] = median(a / b if higher_is_better else b / a for a, b in pairs)
    benchmark.extra_info.update(
        what=what,
        unit=unit,
        higher_is_better=higher_is_better,
        figures=figures,
        ratios=ratios,
        goals=dict(goals),
        cache=cache,
        verified=verified,
        full=FULL,
    )
    return ratios


def single(
    benchmark: Any,
    *,
    what: str,
    unit: str,
    run: Callable[[], float],
    goal: float | None,
    higher_is_better: bool,
    cache: str,
    verified: str,
    rounds: int = 5,
    notes: Mapping[str, float | str] | None = None,
) -> float:
    """Measure a figure that has a goal of its own and no peer. Returns its median."""
    figures: list[float] = []

    def once() -> None:
        figures.append(run())

    benchmark.pedantic(once, rounds=rounds if FULL else 1, iterations=1)
    benchmark.extra_info.update(
        what=what,
        unit=unit,
        higher_is_better=higher_is_better,
        figures={"ours": figures},
        ratios={},
        goals={} if goal is None else {"absolute": goal},
        cache=cache,
        verified=verified,
        full=FULL,
        notes=dict(notes or {}),
    )
    return median(figures)
