"""rollpoint timer: what ends a failover by itself."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

from .. import timers
from ..errors import Error, LockedError, UsageError
from ..replica import Replica
from ..units import parse_duration
from .output import print_json, printable

if TYPE_CHECKING:
    from ..records import Timer

Directory = Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("timer")(timer)


def timer(
    directory: Directory,
    cancel: Annotated[bool, typer.Option("--cancel", help="Take the timer away.")] = False,
    auto_undo: Annotated[
        str | None, typer.Option(metavar="TIME", help="Undo the failover after that time.")
    ] = None,
    auto_permanent: Annotated[
        str | None, typer.Option(metavar="TIME", help="Make it permanent after that time.")
    ] = None,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why this is done: for the audit.")
    ] = "",
    wait: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Show the timer of a failover, see that a process waits for it; or set it, or cancel it."""
    chosen = after(auto_undo, auto_permanent)
    if cancel and chosen is not None:
        raise UsageError("--cancel and a new timer say different things", "give one of them")
    with Replica.open(directory) as replica:
        if wait is not None:
            _wait(replica, wait)
            return
        if cancel:
            timers.cancel(replica, reason)
        elif chosen is not None:
            timers.arm(replica, *chosen)
        started = timers.start(replica)
        facts = timers.show(replica.directory, replica.manifest)
        if facts is not None and started is not None:
            facts["waiting"] = True  # it is on its way
        if as_json:
            print_json({"timer": facts})
        else:
            typer.echo("no timer" if facts is None else timers.sentence(facts))


def after(auto_undo: str | None, auto_permanent: str | None) -> tuple[str, float] | None:
    """What the two options say: the action, and in how many seconds.

    Raises:
        UsageError: Both, or no time.
    """
    if auto_undo is not None and auto_permanent is not None:
        raise UsageError("a failover ends one way only", "give --auto-undo or --auto-permanent")
    for action, said in (("undo", auto_undo), ("permanent", auto_permanent)):
        if said is not None:
            seconds = parse_duration(said)
            if seconds < timers.SECONDS_MIN:
                raise UsageError(f"{said} is too short for a timer", "write it as in 30m")
            return action, seconds
    return None


def _wait(replica: Replica, operation_id: str) -> None:
    """The process of its own: its output is run/timer.log."""
    _log(f"waiting, as process {os.getpid()}")
    try:
        _log(timers.wait(replica, operation_id, lambda due: _act(replica, due)))
    except LockedError as error:
        _log(error.message)
        raise typer.Exit(1) from None
    except Error as error:
        _log(f"{type(error).__name__}: {error}")
        raise typer.Exit(1) from None


def _act(replica: Replica, due: Timer) -> None:
    """A machine that runs is not powered off to be made permanent: nobody sits there."""
    from .. import operation

    _log(f"{due.action}, due at {due.due}")
    if due.action == "undo":
        outcome = operation.undo(replica, operation_id=due.operation)
    else:
        online = _runs(replica)
        outcome = operation.permanent(replica, operation_id=due.operation, online=online)
    _log(f"the replica is {outcome.state}")


def _runs(replica: Replica) -> bool:
    from .. import hypervisors

    recovered = replica.manifest.recovered
    if recovered is None or recovered.running is None:
        return False
    return hypervisors.of_replica(replica).status(recovered.running.machine) != "off"


def _log(text: str) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    typer.echo(f"{now} {printable(text)}")
