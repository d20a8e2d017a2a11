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

LONG_FILES = {"test_native_units.py", "test_fuzz.py", "test_bench.py", "test_proof.py"}


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)
