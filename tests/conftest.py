"""What every test shares."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_build import NativeBuild
from tools import ROOT, require_tool

__all__ = ["ROOT", "require_tool"]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeBuild:
    """The C core and its test programs, compiled when they are first asked for."""
    return NativeBuild(tmp_path_factory.mktemp("native"))
