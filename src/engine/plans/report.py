"""What a run came to, as a file for programs."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from .._native import Io
from .events import Event, RunState

Facts = dict[str, object]


def facts(state: RunState, events: Sequence[Event]) -> Facts:
    """The report, as JSON."""
    return {"format": "rollpoint-plan-run", "version": 1, "run": msgspec.to_builtins(state)}


def write(state: RunState, events: Sequence[Event], folder: str) -> tuple[str, str]:
    """Write it; the paths of the JSON file and of the page."""
    data = msgspec.json.format(msgspec.json.encode(facts(state, events)), indent=2)
    directory = Io.posix().open_dir(folder)
    try:
        directory.replace(f"{state.spec.run}.json", data + b"\n")
    finally:
        directory.close()
    return os.path.join(folder, f"{state.spec.run}.json"), ""
