"""What the commands of this directory share: C programs, built once, run on all cores."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from native_build import NATIVE, PROGRAMS, NativeBuild  # noqa: E402

BUILD = HERE.parent.parent / "build" / "proof"
CORES = os.cpu_count() or 1
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # syncs cost nothing there


def build(folder: Path = BUILD) -> NativeBuild:
    """Compiles into a folder that stays; what is older than a source is made again."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = [*NATIVE.glob("*.h"), *PROGRAMS.glob("*.h")]
    newest = max(path.stat().st_mtime for path in headers)
    for path in folder.glob("*/*"):
        source = NATIVE / f"{path.stem}.c"
        if not source.exists():
            source = PROGRAMS / f"{path.stem}.c"
        # Programs are linked anew each time: that is quick, and they have many sources.
        if path.suffix != ".o" or path.stat().st_mtime < max(
            newest, source.stat().st_mtime if source.exists() else newest + 1
        ):
            path.unlink()
    return NativeBuild(folder)


class Outcome(NamedTuple):
    """How a program ended, what it said, and how long it took."""

    code: int
    out: str
    err: str
    seconds: float


def run(
    command: Iterable[object], environment: Mapping[str, str] | None = None, seconds: float = 3600
) -> Outcome:
    """Run a program in a directory of its own, at most so long (then its code is 124)."""
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            place = {"ROLLPOINT_PLACE": folder}  # what a program that is stopped leaves, goes
            done = subprocess.run(
                [str(word) for word in command],
                env={**os.environ, **place, **(environment or {})},
                capture_output=True, text=True, timeout=seconds, cwd=folder,
            )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return Outcome(124, said, f"not done after {seconds:.0f} s", time.monotonic() - began)
    return Outcome(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def side_by_side(jobs: Iterator[Callable[[], Any]], workers: int = CORES) -> Iterator[Any]:
    """Results of the jobs as they come; a job is taken when there is a core for it."""
    with ThreadPoolExecutor(workers) as pool:
        running: set[Future[Any]] = set()
        while True:
            while len(running) < workers and (job := next(jobs, None)) is not None:
                running.add(pool.submit(job))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def last_line(text: str) -> str:
    return next(iter(reversed(text.strip().splitlines())), "")
