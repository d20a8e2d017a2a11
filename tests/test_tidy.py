"""House rules that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, require_tool

NATIVE = sorted([*(ROOT / "src" / "_native").glob("*.c"), *(ROOT / "src" / "_native").glob("*.h")])
ENGINE = sorted((ROOT / "src" / "engine").rglob("*.py"))
FUNCTION_LINES_MAX = 75
BANNED = {
    r"\b(strcpy|strcat|sprintf|gets|strtok)\b *\(": "no bound on the target",
    r"\bassert *\(": "vanishes under -DNDEBUG; use RP_CHECK",
    r"\b(TODO|FIXME|XXX)\b": "finish it or file it",
}
# Only io_posix.c may touch persistent storage.
PERSISTENT = re.compile(
    r"(?<![\w>.])(open|openat|pread|pwrite|preadv|pwritev|fsync|fdatasync|ftruncate|fallocate|"
    r"rename|renameat|unlink|unlinkat|mkdirat|mmap)64? *\("
)


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: p.name)
def test_c_keeps_the_house_rules(path: Path) -> None:
    for number, line in enumerate(without_comments(path.read_text()).splitlines(), 1):
        for pattern, why in BANNED.items():
            assert not re.search(pattern, line), f"{path.name}:{number}: {why}: {line}"
        if path.name != "io_posix.c":
            assert not PERSISTENT.search(line), f"{path.name}:{number}: use struct rp_io: {line}"


def test_the_core_calls_the_kernel_for_persistent_data_in_one_place(tmp_path: Path) -> None:
    """What the linker sees: no object but io_posix.o wants write, sync, rename and the like."""
    gcc = require_tool("gcc")
    wanted = re.compile(
        r" U (open|openat|pread|pwrite|pwritev|preadv|fsync|fdatasync|ftruncate|fallocate|"
        r"rename|renameat|renameat2|unlink|unlinkat|mkdirat|mmap)(64)?$",
        re.MULTILINE,
    )
    for path in NATIVE:
        if path.suffix != ".c" or path.name == "io_posix.c":
            continue
        target = tmp_path / f"{path.stem}.o"
        subprocess.run(
            [gcc, "-std=c11", "-D_GNU_SOURCE", "-O0", "-c", "-o", target, path], check=True
        )
        symbols = subprocess.run(["nm", "-u", target], capture_output=True, text=True, check=True)
        found = wanted.search(symbols.stdout)
        assert found is None, f"{path.name} calls {found and found[1]}"


@pytest.mark.parametrize("path", ENGINE, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_functions_fit_on_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{path.name}:{node.lineno} {node.name}: {lines}"


def test_structs_that_are_read_are_ready_for_threads() -> None:
    """See structs.prepared: two threads that read the first one of a class crash the process."""
    texts = [path.read_text() for path in ENGINE]
    read = {
        name
        for text in texts
        for pattern in (
            r"msgspec\.json\.decode\([^()]*(?:\([^()]*\)[^()]*)*, type=([A-Z]\w+)\)",
            r"msgspec\.convert\(head, (\w+)\)",
            r"\.convert\((Config|Plan)\)",
        )
        for name in re.findall(pattern, text)
    }
    prepared = {
        name for text in texts for name in re.findall(r"^@prepared\nclass (\w+)\(", text, re.M)
    }
    assert len(read) > 10
    assert read <= prepared


def test_ruff_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_mypy_strict_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "src/engine"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_stub_page_tells_what_the_module_has(tmp_path: Path) -> None:
    """Each public name of the compiled module is in _native.pyi, and the other way round."""
    from rollpoint import _native

    stub = ast.parse((ROOT / "src" / "engine" / "_native.pyi").read_text())
    declared: dict[str, set[str] | None] = {}
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            declared[node.name] = {
                item.name
                for item in node.body
                if isinstance(item, ast.FunctionDef) and not item.name.startswith("__")
            } | {
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
        elif isinstance(node, ast.FunctionDef):
            declared[node.name] = None
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            declared[node.target.id] = None
    present = {
        name
        for name, value in vars(_native).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "") != "types"
        and type(value).__name__ != "module"
    }
    assert present == set(declared)
    for name, members in declared.items():
        if members is not None:
            has = {m for m in vars(getattr(_native, name)) if not m.startswith("_")}
            assert members <= has | set(dir(getattr(_native, name))), name
            assert has <= members, f"{name} has more than the stub says: {has - members}"


def test_nothing_names_this_or_that_machine() -> None:
    """No path of a build machine and no address of a package registry in what is committed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    places = re.compile("/" + r"work/(main|wt|dev|shared|venv)|pypi\.org|deb\.debian\.org")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".c", ".h", ".pxi", ".toml", ".sh", ""}:
            found = places.search(path.read_text(errors="replace"))
            assert found is None, f"{name} names {found and found[0]}"
