"""The C tests, each built with address and undefined sanitizers (threads tests with TSan too).

Crash tests also run without sanitizers: then they come to far more states.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from native_build import PROGRAMS, NativeBuild

TESTS = sorted(PROGRAMS.glob("*_test.c"))
CRASH_TESTS = [path for path in TESTS if path.name.startswith("crash_")]
STATES_WANTED = 100_000  # of all crash tests together, in a default run
SANITIZED_BUDGET = "2500"  # states of one crash test: sanitizers make them slow


def _run(program: Path, folder: Path, **more: str) -> str:
    environment = os.environ | {
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    done = subprocess.run(
        [program],
        cwd=folder,
        env=more | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    print(done.stdout.strip().splitlines()[-1:] or "")
    return done.stdout


@pytest.mark.parametrize(
    "source",
    # With threads: looked at by the thread sanitizer always, and by this one in .ci/run.
    [
        pytest.param(path, marks=pytest.mark.long if "_threads_" in path.name else ())
        for path in TESTS
    ],
    ids=lambda path: path.stem,
)
def test_under_address_and_undefined_sanitizers(
    source: Path, native: NativeBuild, tmp_path: Path
) -> None:
    _run(native.program(source, "address"), tmp_path, ROLLPOINT_CRASH_BUDGET=SANITIZED_BUDGET)


@pytest.mark.parametrize(
    "source", [path for path in TESTS if "_threads_" in path.name], ids=lambda path: path.stem
)
def test_under_the_thread_sanitizer(source: Path, native: NativeBuild, tmp_path: Path) -> None:
    _run(native.program(source, "thread"), tmp_path)


@pytest.mark.long  # tests/proof/crash is ten times that, and runs in .ci/run
def test_no_crash_state_of_a_hundred_thousand_breaks_a_promise(
    native: NativeBuild, tmp_path: Path
) -> None:
    states = 0
    for source in CRASH_TESTS:
        said = _run(native.program(source, "plain"), tmp_path)
        found = re.search(r"(\d+) distinct states, (\d+) during recovery, 0 violations", said)
        assert found is not None, said
        states += int(found[1])
    assert len(CRASH_TESTS) >= 3
    if "ROLLPOINT_CRASH_BUDGET" not in os.environ:
        assert states >= STATES_WANTED
