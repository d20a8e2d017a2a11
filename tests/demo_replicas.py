"""Replicas of the demo's machine, which has no file system and starts in a second."""

from __future__ import annotations

import os
from pathlib import Path

from rollpoint import demo_guest
from rollpoint.replica import Replica

SIZES = {"one": demo_guest.DISK_BYTES_MIN, "two": demo_guest.DISK_BYTES_MIN}
MARKER = "ROLLPOINT FOUND"
MACHINE = f'[machine]\nmemory = "32M"\nmarker = "{MARKER}"\ntimeout = "60s"\n'


def make_demo(path: Path) -> None:
    """A replica with two points: at the first it starts, at the second nothing is there."""
    with (
        Replica.create(path, list(SIZES.items())) as replica,
        replica.locked(),
        replica.journals(writable=True, with_bases=True) as journals,
    ):
        journals.natives[0].disk().pwrite(demo_guest.PROGRAM, 0)
        journals.mark("crash")
        journals.natives[0].disk().zero(SIZES["one"], 0)
        journals.mark("crash")
    (path / "replica.toml").write_text(MACHINE)


def processes_below(folder: Path) -> list[int]:
    """Processes whose command line names a place below a directory."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) != os.getpid():
            try:
                words = (place / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in words:
                found.append(int(place.name))
    return found
