"""Builds the C core and its test programs: once for each way, shared by a session's processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tools import ROOT, require_tool

NATIVE = ROOT / "src" / "_native"
PROGRAMS = ROOT / "tests" / "native"
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
    f"-I{PROGRAMS}",
    "-pthread",
]
WAYS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
    "plain": ["-O2"],
}


class NativeBuild:
    """Objects and programs in a folder of their own; compiled when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._gcc = require_tool("gcc")

    def core(
        self, way: str, defines: tuple[str, ...] = (), only: tuple[str, ...] = ()
    ) -> list[str]:
        """Objects of the C core; with defines, those of `only` are compiled apart."""
        plain = self._compile(sorted(NATIVE.glob("*.c")), way, (), way)
        if not defines:
            return plain
        apart = self._compile(
            [NATIVE / name for name in only], way, defines, f"{way}{''.join(defines)}"
        )
        replaced = {Path(path).name for path in apart}
        return [path for path in plain if Path(path).name not in replaced] + apart

    def program(
        self, source: Path, way: str, defines: tuple[str, ...] = (), only: tuple[str, ...] = ()
    ) -> Path:
        """A test program, linked with the core."""
        target = self._folder / f"{way}{''.join(defines)}" / source.stem
        objects = [*self._compile([source], way, (), way), *self.core(way, defines, only)]
        with _alone(target.parent):
            if not target.exists():
                command = [self._gcc, *FLAGS, *WAYS[way], "-o", target, *objects, "-ldeflate"]
                subprocess.run([*command, *_wraps(source)], check=True)
        return target

    def _compile(
        self, sources: list[Path], way: str, defines: tuple[str, ...], name: str
    ) -> list[str]:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        with _alone(folder):
            return self._compile_alone(sources, way, defines, folder)

    def _compile_alone(
        self, sources: list[Path], way: str, defines: tuple[str, ...], folder: Path
    ) -> list[str]:
        targets = [folder / f"{source.stem}.o" for source in sources]
        running: list[subprocess.Popen[str]] = []
        for source, target in zip(sources, targets, strict=True):
            if target.exists():
                continue
            command = [self._gcc, *FLAGS, *WAYS[way], *defines, "-c", "-o", target, source]
            running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
            if len(running) >= (os.cpu_count() or 1):
                _finish(running.pop(0))
        for process in running:
            _finish(process)
        return [str(target) for target in targets]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Other processes of the session wait, and find what was built."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _wraps(source: Path) -> list[str]:
    """Flags for the calls that a program takes for itself: what its comments call "wraps:"."""
    text = source.read_text()
    for header in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE):
        if (PROGRAMS / header).exists():
            text += (PROGRAMS / header).read_text()
    lists: list[str] = re.findall(r"^ \* wraps: (.*)$", text, re.MULTILINE)
    return [f"-Wl,--wrap={name}" for line in lists for name in line.split()]


def _finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors
