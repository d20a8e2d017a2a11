"""The C tests, each built with address and undefined sanitizers (threads tests with TSan too)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, require_tool

NATIVE = ROOT / "src" / "_native"
TESTS = sorted((ROOT / "tests" / "native").glob("*_test.c"))
FLAGS = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-g",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fno-omit-frame-pointer",
    f"-I{NATIVE}",
    f"-I{ROOT / 'tests' / 'native'}",
    "-pthread",
]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}


@pytest.fixture(scope="session")
def core_objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The C core, compiled once for each sanitizer."""
    gcc = require_tool("gcc")
    built: dict[str, list[str]] = {}
    for kind, flags in SANITIZERS.items():
        folder = tmp_path_factory.mktemp(kind)
        running = []
        built[kind] = []
        for source in sorted(NATIVE.glob("*.c")):
            target = folder / f"{source.stem}.o"
            command = [gcc, *FLAGS, *flags, "-c", "-o", str(target), str(source)]
            running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
            built[kind].append(str(target))
            if len(running) >= (os.cpu_count() or 1):
                _finish(running.pop(0))
        for process in running:
            _finish(process)
    return built


def _finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def _run(source: Path, kind: str, objects: list[str], folder: Path) -> None:
    program = folder / source.stem
    subprocess.run(
        [require_tool("gcc"), *FLAGS, *SANITIZERS[kind], "-o", program, source, *objects],
        check=True,
    )
    environment = os.environ | {
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    done = subprocess.run(
        [program], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    print(done.stdout.strip().splitlines()[-1:] or "")


@pytest.mark.parametrize("source", TESTS, ids=lambda path: path.stem)
def test_under_address_and_undefined_sanitizers(
    source: Path, core_objects: dict[str, list[str]], tmp_path: Path
) -> None:
    _run(source, "address", core_objects["address"], tmp_path)


@pytest.mark.parametrize(
    "source", [path for path in TESTS if "_threads_" in path.name], ids=lambda path: path.stem
)
def test_under_the_thread_sanitizer(
    source: Path, core_objects: dict[str, list[str]], tmp_path: Path
) -> None:
    _run(source, "thread", core_objects["thread"], tmp_path)
