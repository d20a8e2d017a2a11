"""How every benchmark here compares itself with a peer.

Sides run in turn (ours, peer, ours, peer ...) in one process, so that a machine whose
speed drifts slows both alike. What is kept are the figures of all rounds; what is quoted
is a ratio, never an absolute time: the median of the ratios of neighbours (compare), or
the ratio of the medians where several sides share the rounds (take_turns). Each side
returns a figure and must have produced the same bytes: the caller verifies and says how.

Sizes: ROLLPOINT_BENCH=full runs what docs/benchmarks.md quotes; anything else runs a small
version that only shows that the benchmark still works.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tools import listens

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
        while not listens(socket):
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


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison among the figures of take_turns: ours beside some of the others.

    goals has every peer to be shown: None where nothing is aimed at.
    """

    what: str
    ours: str
    goals: Mapping[str, float | None]
    unit: str = "s"
    cache: str = "warm"


def take_turns(
    benchmark: Any,
    *,
    sides: Sequence[Callable[[], Mapping[str, float]]],
    rows: Sequence[Row],
    verified: str,
    rounds: int = 5,
    warm_up: bool = True,
) -> dict[str, float]:
    """Run all sides, round after round, and record a row for each comparison among them.

    A full run begins with a round that does not count, and every other round goes backwards.
    All figures are better when they are smaller.

    Args:
        benchmark: pytest-benchmark's fixture.
        sides: Each returns one or more figures by name, the same names every time.
        rows: What is compared with what; the ratio is that of the medians.
        verified: How it was checked that all sides did the same work.
        rounds: Counted rounds in a full run; one otherwise.
        warm_up: False: the first round counts as well, where rounds are very long.

    Returns:
        The median of each figure.
    """
    figures: dict[str, list[float]] = {}

    def run() -> None:
        first = 0 if FULL and warm_up else 1
        for number in range(first, rounds + 1 if FULL else 2):
            for side in sides if number % 2 else reversed(sides):
                for name, figure in side().items():
                    if number > 0:
                        figures.setdefault(name, []).append(figure)

    benchmark.pedantic(run, rounds=1, iterations=1)
    medians = {name: median(values) for name, values in figures.items()}
    benchmark.extra_info["rows"] = [
        {
            "what": row.what,
            "unit": row.unit,
            "higher_is_better": False,
            "figures": {"ours": figures[row.ours], **{peer: figures[peer] for peer in row.goals}},
            "ratios": {peer: medians[peer] / medians[row.ours] for peer in row.goals},
            "goals": {peer: goal for peer, goal in row.goals.items() if goal is not None},
            "cache": row.cache,
            "verified": verified,
            "full": FULL,
        }
        for row in rows
    ]
    return medians


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
