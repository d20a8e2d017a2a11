"""What every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from guests.shelf import Shelf
from native_build import NativeBuild
from postgres import mortal_postgres, postgres
from tools import ROOT, require_tool

__all__ = ["ROOT", "mortal_postgres", "postgres", "require_tool"]

# What takes longest, the longest first.
LONG_FILES = [
    f"test_{name}.py"
    for name in (
        "native_units", "bench", "bad_input", "plan_whole", "vsphere_lost", "operation_crash",
        "failback", "frozen", "plan_store", "resume", "failover", "plan_workers", "fuzz",
        "operation_faults", "demo", "hypervisors", "whole_life", "ingest", "tidy", "trials",
        "windows", "live_merge",
    )
]  # fmt: skip


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeBuild:
    """The C core and its test programs, compiled when they are first asked for."""
    return NativeBuild(shared(tmp_path_factory, "native"))


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Disks of small guests, each made when it is first asked for."""
    return Shelf(shared(tmp_path_factory, "guests"))


def shared(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all workers of this run share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder /= name
    folder.mkdir(exist_ok=True)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """The order below holds for workers, too: xdist would sort files by their number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is alone with one at the end."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
