"""What every test shares."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import ROOT, require_tool

__all__ = ["ROOT", "require_tool"]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT
