"""rollpoint plan …

DBOS and SQLAlchemy are imported by the commands that need them, when they are called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import UsageError
from ..plans.tables import RunKind
from . import plan_look
from .failover import skipped
from .plan_options import (
    AsJson,
    Database,
    EventsTo,
    File,
    Groups,
    Names,
    Planned,
    Reason,
    Replicas,
    State,
    Test,
    Unplanned,
    kind_of,
    only,
    run_of,
    settings,
    stored,
)

if TYPE_CHECKING:
    from ..plans.running import Only, Settings
    from ..plans.stream import Stream

_ENDINGS: dict[RunKind, str] = {
    "undo": "End what the newest run brought up, in reverse order: back to replication.",
    "permanent": "Merge what the newest run failed over into the bases. No restore point stays.",
    "failback": "Bring what the newest run failed over back to its sources; commit ends it.",
    "commit": "End a failback: replication goes on, from the sources.",
}


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="Fail many replicas over, in order.", no_args_is_help=True)
    commands: dict[str, Callable[..., None]] = {
        "check": plan_look.check,
        "run": run,
        "status": plan_look.status,
        "pause": pause,
        "continue": go_on,
        "retry": retry,
        "skip": skip,
        "cancel": cancel,
        **{kind: _ending(kind, says) for kind, says in _ENDINGS.items()},
        "report": plan_look.report,
        "events": plan_look.events,
        "runs": plan_look.runs,
    }
    for name, command in commands.items():
        group.command(name)(command)
    app.add_typer(group, name="plan")


# ---- commands that carry a run out ----


def run(
    file: File,
    test: Test = False,
    planned: Planned = False,
    unplanned: Unplanned = False,
    group: Groups = None,
    replica: Replicas = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK=REASON", help="Do not run that check. May be repeated."),
    ] = None,
    reason: Reason = "",
    events: EventsTo = "",
    database: Database = "",
    state: State = "",
    as_json: AsJson = False,
) -> None:
    """Begin a run, and carry it out: --test, --planned or --unplanned.

    Ends with 0 when all is up, 1 when something failed or the run was cancelled, 2 when
    nothing was begun because the plan or the command is wrong. Ctrl-C pauses the run.
    """
    kind = kind_of(test, planned, unplanned)
    if kind is None:
        raise UsageError("a run is --test, --planned or --unplanned", "say which one")
    _begin(file, kind, settings(state, database), only(group, replica), reason, events,
           as_json, skipped(skip or []))  # fmt: skip


def _ending(kind: RunKind, says: str) -> Callable[..., None]:
    """The command that ends what the newest run did, in that way."""

    def command(
        file: File,
        group: Groups = None,
        replica: Replicas = None,
        reason: Reason = "",
        events: EventsTo = "",
        database: Database = "",
        state: State = "",
        as_json: AsJson = False,
    ) -> None:
        where = settings(state, database)
        _begin(file, kind, where, only(group, replica), reason, events, as_json)

    command.__doc__ = says
    return command


def _begin(
    file: str,
    kind: RunKind,
    where: Settings,
    meant: Only,
    reason: str,
    events: str,
    as_json: bool,
    skip: dict[str, str] | None = None,
) -> None:
    from ..plans import file as files
    from ..plans import running
    from .plan_drive import streaming

    plan = files.load(file).name
    with streaming(events) as stream:  # before anything is begun: it may be no place for them
        begun = running.start(file, kind, where, only=meant, reason=reason, skip=skip)
        _carry_out(plan, begun, where, as_json, stream)


def _carry_out(
    plan: str,
    run: str,
    where: Settings,
    as_json: bool,
    stream: Stream | None,
    take_over: bool = False,
) -> None:
    from ..plans import running
    from . import plan_drive, plan_tell

    state, code = plan_drive.drive(
        plan, run, where, as_json=as_json, stream=stream, take_over=take_over
    )
    page = running.report_page(state, where) if state.ended else ""
    plan_tell.tell(state, as_json, report=page, driven=None if state.ended else False)
    raise typer.Exit(code)


# ---- commands that ask for something ----


def pause(
    file: File,
    reason: Reason = "",
    database: Database = "",
    state: State = "",
    as_json: AsJson = False,
) -> None:
    """Begin nothing new in the run that goes on; what has begun is finished."""
    _ask(file, "paused", (), settings(state, database), reason, as_json)


def go_on(
    file: File,
    reason: Reason = "",
    events: EventsTo = "",
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="The run's machine is dead: its work is ours now."),
    ] = False,
    database: Database = "",
    state: State = "",
    as_json: AsJson = False,
) -> None:
    """Go on with a run that is paused, or whose process has died: then it is carried out here."""
    where = settings(state, database)
    _ask(file, "continued", (), where, reason, as_json, events=events, take_over=take_over)


def retry(
    file: File,
    names: Names = None,
    reason: Reason = "",
    events: EventsTo = "",
    database: Database = "",
    state: State = "",
    as_json: AsJson = False,
) -> None:
    """Try what failed again; a run that has ended with failures goes on, here."""
    where = settings(state, database)
    _ask(file, "retry", names or (), where, reason, as_json, events=events)


def skip(
    file: File,
    names: Names = None,
    reason: Reason = "",
    events: EventsTo = "",
    database: Database = "",
    state: State = "",
    as_json: AsJson = False,
) -> None:
    """Leave what failed, or has not begun, and count it as up."""
    where = settings(state, database)
    _ask(file, "skip", names or (), where, reason, as_json, events=events)


def cancel(
    file: File,
    reason: Reason = "",
    events: EventsTo = "",
    database: Database = "",
    state: State = "",
    as_json: AsJson = False,
) -> None:
    """End the run: what has begun is finished, gates are waited for no more."""
    _ask(file, "cancelled", (), settings(state, database), reason, as_json, events=events)


def _ask(
    file: str,
    kind: Literal["paused", "continued", "cancelled", "retry", "skip"],
    names: list[str] | tuple[()],
    where: Settings,
    reason: str,
    as_json: bool,
    *,
    events: str = "",
    take_over: bool = False,
) -> None:
    """Ask, and where no process carries the run out do that here."""
    from ..plans import running
    from . import plan_tell
    from .plan_drive import streaming

    with stored(file, where) as (plan, store):
        known = run_of(store, plan)
        if kind != "continued" or known.paused or known.ended:
            running.request(store, known, kind, names, reason=reason)
            known = run_of(store, plan)
        is_driven = running.is_driven(store, plan)
    if is_driven or kind == "paused":
        plan_tell.tell(known, as_json, driven=is_driven)
    else:
        with streaming(events) as stream:
            _carry_out(plan, known.spec.run, where, as_json, stream, take_over)
