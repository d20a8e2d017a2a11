"""Builds the fuzz targets and runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
NATIVE = HERE.parent.parent / "src" / "_native"
# What no target reaches stays out: it would only cost time to compile.
LEFT_OUT = re.compile(r"(nbd_\w+|gate|journal\w*|io_(posix|record|order|slice))\.c")
FLAGS = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-gline-tables-only",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fno-omit-frame-pointer",
    f"-I{NATIVE}",
    f"-I{HERE}",
    "-pthread",
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# Without the tracing of comparisons: it takes more than half of the time, and
# mutate.c knows the magic numbers. Not for our own code here: its paths are no news.
COVERAGE = ["-O1", *SANITIZERS, "-fsanitize-coverage=inline-8bit-counters,pc-table"]
DESCRIPTOR = "descriptor"
LIMITS = ["-timeout=10", "-rss_limit_mb=1024", "-max_len=16384", "-print_final_stats=1"]
ENVIRONMENT = {"ASAN_OPTIONS": "quarantine_size_mb=4"}


class Outcome(NamedTuple):
    """What a run of one target showed."""

    target: str
    executions: int
    per_second: int
    features: int
    failed: bool
    findings: tuple[Path, ...]
    log: str


def names() -> list[str]:
    """The targets that are built; the descriptor's is Python."""
    return sorted(path.stem for path in (HERE / "targets").glob("*.c"))


def build(folder: Path, clang: str, targets: Sequence[str], jobs: int = 2) -> dict[str, Path]:
    """Compile what has changed, link each target; the programs by their targets."""
    core = [path for path in sorted(NATIVE.glob("*.c")) if not LEFT_OUT.fullmatch(path.name)]
    sources = {
        **{path: folder / "core" / f"{path.stem}.o" for path in core},
        **{path: folder / "common" / f"{path.stem}.o" for path in sorted(HERE.glob("*.c"))},
        **{HERE / "targets" / f"{name}.c": folder / f"{name}.o" for name in targets},
    }
    newest = max(path.stat().st_mtime for path in [*NATIVE.glob("*.h"), *HERE.glob("*.h")])
    commands = []
    for source, target in sources.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.stat().st_mtime > max(newest, source.stat().st_mtime):
            continue
        way = COVERAGE if source.parent == NATIVE else ["-O2", "-fsanitize=address"]
        commands.append([clang, *FLAGS, *way, "-c", "-o", str(target), str(source)])
    _run_all(commands, jobs)
    shared = [str(path) for path in sources.values() if path.parent != folder]
    link = [clang, *SANITIZERS, "-fsanitize=fuzzer", *shared, "-ldeflate", "-lxxhash"]
    programs = {name: folder / name for name in targets}
    _run_all([[*link, f"{path}.o", "-o", str(path)] for path in programs.values()], jobs)
    return programs


def _run_all(commands: list[list[str]], jobs: int) -> None:
    running: list[subprocess.Popen[str]] = []
    for command in commands:
        if len(running) >= jobs:
            _finish(running.pop(0))
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for process in running:
        _finish(process)


def _finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(errors)


def run(
    program: Path,
    corpora: Sequence[Path],
    findings: Path,
    *,
    seconds: int = 0,
    runs: int = -1,
    seed: int = 0,
) -> Outcome:
    """Run one target; what it finds new goes to the first corpus.

    Args:
        seconds: For so long; 0: until the runs are done.
        runs: So many executions; -1: no limit, 0: the corpora alone.
        seed: Of the random numbers; 0: a new one.
    """
    findings.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    dictionary = HERE / f"{program.name}.dict"
    command = [
        str(program),
        *LIMITS,
        *([f"-dict={dictionary}"] if dictionary.exists() else []),
        f"-artifact_prefix={findings}{os.sep}{program.name}-",
        f"-max_total_time={seconds}",
        f"-runs={runs}",
        f"-seed={seed}",
        *map(str, corpora),
    ]
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, errors="replace"
    )
    return _outcome(program.name, done, tuple(sorted(set(findings.iterdir()) - before)))


def run_descriptor(
    findings: Path, *, seconds: int = 0, runs: int = -1, seed: int = 0
) -> Outcome:
    """The same for the descriptor parser."""
    findings.mkdir(parents=True, exist_ok=True)
    before = set(findings.glob("*crash*"))
    command = [sys.executable, str(HERE / f"{DESCRIPTOR}.py"), "--findings", str(findings)]
    command += ["--seconds", str(seconds), "--runs", str(runs), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    return _outcome(DESCRIPTOR, done, tuple(sorted(set(findings.glob("*crash*")) - before)))


def _outcome(
    target: str, done: subprocess.CompletedProcess[str], findings: tuple[Path, ...]
) -> Outcome:
    def last(pattern: str) -> int:
        found = re.findall(pattern, done.stderr)
        return int(found[-1]) if found else 0

    return Outcome(
        target=target,
        executions=last(r"stat::number_of_executed_units: *(\d+)"),
        per_second=last(r"stat::average_exec_per_sec: *(\d+)"),
        features=last(r" ft: (\d+)"),
        failed=done.returncode != 0,
        findings=findings,
        log=done.stderr,
    )


def find_clang() -> str | None:
    for name in ("clang-14", "clang"):
        found = shutil.which(name)
        if found is not None:
            return found
    return None


def say(outcome: Outcome) -> None:
    print(
        f"{outcome.target:12} {outcome.executions:>12,} executions {outcome.per_second:>8,}/s"
        f" {outcome.features:>6} features {len(outcome.findings)} findings",
        flush=True,
    )
    if outcome.failed:
        print(outcome.log[-6000:], file=sys.stderr, flush=True)
