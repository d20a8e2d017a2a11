"""rollpoint demo."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from ..errors import Error, ExistsError
from .output import print_json


def register(app: typer.Typer) -> None:
    """Add `demo`."""
    app.command()(demo)


def demo(
    workspace: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to work: an empty or new directory. Default: a temporary one.",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the workspace there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replicate a small guest, lose it, fail over, undo, fail over, keep it.

    Takes about 15 seconds, needs QEMU and no rights. Everything is compared with what
    the source's own disks and the guest's console say; anything wrong ends with exit
    code 1.
    """
    from ..demo import Demo
    from ..report import Step, steps_json, steps_table

    def show(step: Step) -> None:
        if sys.stderr.isatty() and not json:
            print(f"  {step.seconds:6.2f} s  {step.name}", file=sys.stderr)

    # So that a polite end of this process ends the machines and the ingest, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    place, made = _workspace(workspace)
    told = Demo(place, show)
    began = time.perf_counter()
    error: Error | None = None
    try:
        told.run()
    except Error as wrong:
        error = wrong
    finally:
        if not keep:
            _remove(place, made)
    seconds = time.perf_counter() - began
    if json:
        body: dict[str, object] = {"verified": error is None, "seconds": seconds}
        print_json(body | {"workspace": place if keep else None, "steps": steps_json(told.steps)})
    elif told.steps:
        print(steps_table(told.steps))
    if error is not None:
        raise error
    if not json:
        print(f"\nAll verified in {seconds:.1f} s." + (f" Workspace: {place}" if keep else ""))


def _workspace(wanted: Path | None) -> tuple[str, bool]:
    """The directory to work in, and whether it was made by us."""
    if wanted is None:
        return tempfile.mkdtemp(prefix="rollpoint-demo-"), True
    place = os.path.realpath(wanted)
    if os.path.isdir(place) and not os.listdir(place):
        return place, False
    if os.path.lexists(place):
        raise ExistsError(f"{place} is there, and not an empty directory", "name a new directory")
    os.makedirs(place, mode=0o700)
    return place, True


def _remove(place: str, made: bool) -> None:
    """Everything in the workspace; the directory too, if we made it."""
    if made:
        shutil.rmtree(place)
        return
    for name in os.listdir(place):
        path = os.path.join(place, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
