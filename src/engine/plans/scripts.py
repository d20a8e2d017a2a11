"""Commands of the plan file, run on the mount host for a replica or a group.

A script gets a small environment and what its place tells (place.py). It is killed, with all
that it started, when its time is over or the run is cancelled. It may be run again after a
crash of the worker; what the crash left of it is ended first, so that it never runs twice at
once on one host.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import time
from collections.abc import Callable, Mapping
from typing import Any

from .. import commands
from ..errors import UsageError
from ..units import parse_duration
from .place import Place, env, fill, fill_shell
from .tables import Script

OUTPUT_BYTES_MAX = 4 << 10
SHELL = "/bin/sh"
DIRECTORY = "/"  # where it is run, as a daemon is
KEPT = ("PATH", "HOME", "LANG", "TZ")  # of our environment, with LC_*

_HIDDEN = ("PASS", "SECRET", "TOKEN", "KEY", "CREDENTIAL")
_HIDDEN_LENGTH_MIN = 4
_NAME_LENGTH_MAX = 40
_LINE_LENGTH_MAX = 200
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

Row = dict[str, Any]


def run(script: Script, place: Place, *, gives_up: Callable[[], bool]) -> Row:
    """Run it to its end.

    Args:
        gives_up: Whether nobody waits for it any more; asked ten times a second.

    Returns:
        Of an event "script": name, state ("done", "failed", "cancelled"), exit (None: it did
        not end by itself; negative: by a signal), seconds, says (the last 4 KiB that it
        printed) and, when it did not end well, why in one line.
    """
    begun = time.monotonic()
    row: Row = {"name": name_of(script), "state": "failed", "exit": None, "says": ""}
    try:
        seconds = parse_duration(script.timeout)
        done = execute(
            script.command, script.shell, script.env, place, seconds, gives_up, of=script.name
        )
    except UsageError as error:
        row |= {"why": error.message, "hint": error.hint}
    else:
        row |= {"exit": done.code, "says": shown(done.output, script.env)}
        if done.code == 0:
            row["state"] = "done"
        elif done.given_up:
            row["state"] = "cancelled"
        if row["state"] != "done":
            row["why"] = why(done, script.env)
    return row | {"seconds": round(time.monotonic() - begun, 3)}


def execute(
    command: list[str] | str,
    shell: bool,
    given: Mapping[str, str],
    place: Place,
    seconds: float,
    gives_up: Callable[[], bool],
    *,
    of: str = "",
    again: bool = False,
) -> commands.Outcome:
    """Run a command of the plan file.

    Args:
        of: Tells two with the same command apart.
        again: It was run by this process before: nothing of it is left.

    Raises:
        UsageError: It names something that is nothing here.
    """
    words = _words(command, shell, place)
    mark = _mark(command, place, of)
    if not again:
        commands.end_marked(mark)
    return commands.carry_out(
        words,
        seconds,
        env=environment(given, place),
        directory=DIRECTORY,
        mark=mark,
        gives_up=gives_up,
        keep_bytes=OUTPUT_BYTES_MAX,
    )


def environment(given: Mapping[str, str], place: Place) -> dict[str, str]:
    """All that a command gets."""
    kept = {
        name: value for name, value in os.environ.items() if name in KEPT or name.startswith("LC_")
    }
    return {"PATH": os.defpath, **kept, **env(place), **given}


def name_of(script: Script) -> str:
    """Its own, or its program's; never its arguments."""
    if script.name:
        return script.name
    if isinstance(script.command, str):
        return script.command.strip().partition("\n")[0][:_NAME_LENGTH_MAX] or SHELL
    return os.path.basename(script.command[0]) if script.command else ""


def why(done: commands.Outcome, given: Mapping[str, str]) -> str:
    """In one line, how it ended when that was not well, and what it said last."""
    code = done.code or 0
    how = f"a signal ended it: {-code}" if code < 0 else f"exit code {code}"
    said = last_line(done, given)
    return (done.why or how) + (f": {said}" if said else "")


def last_line(done: commands.Outcome, given: Mapping[str, str]) -> str:
    """Of what it printed."""
    lines = shown(done.output, given).strip().splitlines()
    return lines[-1][:_LINE_LENGTH_MAX] if lines else ""


def shown(output: bytes, given: Mapping[str, str]) -> str:
    """What it printed, as it may be kept: no control characters, and none of its secrets.

    A secret is the value of a variable of the plan file whose name says that it is one.
    """
    text = output.decode("utf-8", "replace").replace("\r\n", "\n")
    for name, value in given.items():
        if len(value) >= _HIDDEN_LENGTH_MIN and any(word in name.upper() for word in _HIDDEN):
            text = text.replace(value, "***")
    return text.translate(_CONTROLS)


def _words(command: list[str] | str, shell: bool, place: Place) -> list[str]:
    if shell:
        text = command if isinstance(command, str) else shlex.join(command)
        return [SHELL, "-c", fill_shell(text)]
    vector = [command] if isinstance(command, str) else command
    if not vector or not vector[0]:
        raise UsageError("the command is empty", "give it a program in the plan file")
    return [fill(word, place) for word in vector]


def _mark(command: list[str] | str, place: Place, of: str) -> str:
    """The same for the same command at the same place, in whatever process."""
    facts = (place.plan, place.run, place.kind, place.group, place.replica, of, repr(command))
    return hashlib.sha256("\0".join(facts).encode("utf-8", "replace")).hexdigest()[:32]
