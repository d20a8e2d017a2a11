"""Imports point downwards only: the rows of docs/architecture.md, held by a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

ENGINE = ROOT / "src" / "engine"
NATIVE = ROOT / "src" / "_native"

# Lowest first. A module may import from its own row and from the rows before it
# in the same row only where SAME_ROW says so.
ROWS = [
    {"errors", "keeping", "closing", "ousting", "commands", "structs"},
    {"units", "_native", "lags", "locks", "secrets", "stations", "toml_lines"},
    {"records"},
    {"descriptor", "descriptor_write", "layouts", "manifest", "points", "side_by_side",
     "config_tables", "spans"},
    {"retention", "kept", "audit"},
    {"audit_check", "html_report"},
    {"operation_report"},
    {"dialects", "ova", "rpo", "volumes"},
    {"access"},
    {"guest", "copy_out"},
    {"config"},
    {"link"},
    {"extents"},
    {"links"},
    {"create", "facts", "ranges", "check"},
    {"repair"},
    {"disk", "journal", "export"},
    {"convert", "interim", "rollback", "journals", "control", "below", "chains", "digests",
     "viewers", "trial_places"},
    {"seed", "scrub_notes", "nbd_place"},
    {"scrub_base", "scrub_links"},
    {"scrub"},
    {"provision", "showing", "mending"},
    {"replica", "hypervisor", "nbd_client"},
    {"targets", "sending_export", "fencing", "holds"},
    {"sending", "changed", "checklist"},
    {"measuring", "timers"},
    {"replication", "mount", "noting", "frozen", "view", "throwaway"},
    {"rationing", "timeline", "conversion", "machines", "browse",
     "warming", "hypervisors", "layering"},
    {"retaining", "rehearsal", "trial_disks"},
    {"trial_files", "intake", "groups", "resync"},
    {"ingest_group", "ingest_epoch"},
    {"ingest_answers"},
    {"ingest", "steps"},
    {"planned", "trials"},
    {"undoing", "merging", "bringing_up", "carrying"},
    {"failing_over", "repointing", "failing_back", "live_merge"},
    {"switching_over", "ending_failback"},
    {"failback"},
    {"operation"},
    {"report", "demo_guest", "monitoring"},
    {"demo_source", "demo_replica"},
    {"demo", "bench", "metrics"},
    {"plans"},
    {"cli"},
]
SAME_ROW = {
    ("units", "_native"),
    ("descriptor_write", "descriptor"),
    ("points", "manifest"),
    ("journal", "disk"),
}
# Dependencies that one place alone may import.
ONLY = {
    "pyVmomi": "hypervisor",
    "pyVim": "hypervisor",
    "keyring": "secrets",
    "qemu": "hypervisor",
    "typer": "cli",
    "dbos": "plans",
    "sqlalchemy": "plans",
    "prometheus_client": "metrics",
}


def row_of(room: str) -> int:
    for number, rooms in enumerate(ROWS):
        if room in rooms:
            return number
    raise AssertionError(f"{room} stands in no row of tests/test_layers.py: give it one")


def imports(path: Path) -> list[tuple[str, str]]:
    """(kind, room or package) of each import: kind "own" or "foreign"."""
    package = path.relative_to(ENGINE).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level == 0:
                found.append(("foreign", (node.module or "").split(".")[0]))
                continue
            base = list(package[: len(package) - (node.level - 1)])
            for alias in node.names:
                full = base + (node.module.split(".") if node.module else [alias.name])
                found.append(("own", full[0]))
        elif isinstance(node, ast.Import):
            found += [("foreign", alias.name.split(".")[0]) for alias in node.names]
    return found


MODULES = [
    path for path in sorted(ENGINE.rglob("*.py")) if path.name not in ("__init__.py", "__main__.py")
]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ENGINE)))
def test_imports_point_downwards(path: Path) -> None:
    room = path.relative_to(ENGINE).parts[0].removesuffix(".py")
    for kind, name in imports(path):
        if kind == "foreign":
            assert name != "rollpoint", f"{path}: imports inside the package are relative"
            assert ONLY.get(name, room) == room, f"{path}: only {ONLY.get(name)} imports {name}"
        elif name != room:
            down = row_of(name) < row_of(room) or (room, name) in SAME_ROW
            assert down, f"{room} imports {name}, which stands above or beside it"


def test_every_package_folder_is_listed() -> None:
    listed = re.search(r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert listed is not None
    names = set(re.findall(r'"([^"]+)"', listed[1]))
    folders = {p.parent.relative_to(ENGINE) for p in ENGINE.rglob("*.py")}
    wanted = {".".join(("rollpoint", *folder.parts)) for folder in folders}
    assert names == wanted


# C rooms, lowest first; a file's room is its name up to the first underscore.
NATIVE_ROWS = [
    {"status", "bytes", "spans"},
    {"io", "simulate", "disk", "scratch", "sink", "swap", "slice", "marvin"},
    {"sparse", "stream", "sesparse", "extent", "image", "chain", "copy", "journal"},
    {"gate"},
    {"nbd"},
]


@pytest.mark.parametrize(
    "path",
    sorted([*NATIVE.glob("*.c"), *NATIVE.glob("*.h")]),
    ids=lambda p: p.name,
)
def test_includes_point_downwards(path: Path) -> None:
    def row(name: str) -> int:
        room = re.split(r"[_.]", name)[0]
        for number, rooms in enumerate(NATIVE_ROWS):
            if room in rooms:
                return number
        raise AssertionError(f"{name} stands in no row of tests/test_layers.py: give it one")

    for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
        assert row(name) <= row(path.name), f"{path.name} includes {name} above it"
