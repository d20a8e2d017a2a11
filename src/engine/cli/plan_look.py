"""rollpoint plan check, status, report, events, runs: commands that only look."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from .output import print_json, print_table
from .plan_options import (
    AsJson,
    Database,
    EventsTo,
    File,
    Groups,
    Planned,
    Replicas,
    Run,
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
    from ..plans.events import RunState
    from ..plans.store import Store


def check(
    file: File,
    test: Test = False,
    planned: Planned = False,
    unplanned: Unplanned = False,
    group: Groups = None,
    replica: Replicas = None,
    database: Database = "",
    state: State = "",
    as_json: AsJson = False,
) -> None:
    """Look whether a run would come through, and how long it is likely to take.

    Ends with 1 when something would stop it. Without a kind it is checked as --unplanned.
    """
    from .plan_check import show

    kind = kind_of(test, planned, unplanned) or "unplanned"
    meant = only(group, replica) if group or replica else None
    raise typer.Exit(show(file, kind, settings(state, database), meant, as_json))


def status(
    file: File,
    run: Run = "",
    watch: Annotated[
        bool, typer.Option("--watch", help="Until it ends; prompts are answered here, too.")
    ] = False,
    events: EventsTo = "",
    database: Database = "",
    state: State = "",
    as_json: AsJson = False,
) -> None:
    """Show the run that goes on, or the newest: each replica, and what it is at."""
    from ..plans import running
    from . import plan_drive, plan_tell

    where = settings(state, database)
    with stored(file, where) as (plan, store):
        known = run_of(store, plan, run)
        is_driven = not known.ended and running.is_driven(store, plan)
    if watch or events:
        known = plan_drive.watch(plan, known, where, live=watch and not as_json, events=events)
    if as_json:
        plan_tell.tell(known, True, driven=is_driven)
    else:
        plan_tell.show(known, is_driven)


def report(
    file: File, run: Run = "", database: Database = "", state: State = "", as_json: AsJson = False
) -> None:
    """Write the report of a run again, as JSON and as a page, and say where."""
    from ..plans import running

    where = settings(state, database)
    with stored(file, where) as (plan, store):
        known = run_of(store, plan, run)
        data, page = running.write_report(store, known, where)
    if as_json:
        print_json({"run": known.spec.run, "json": data, "html": page})
    else:
        typer.echo(f"{data}\n{page}")


def events(
    file: File,
    run: Run = "",
    follow: Annotated[
        bool, typer.Option("--follow", help="Until the run ends, as they come.")
    ] = False,
    database: Database = "",
    state: State = "",
    as_json: AsJson = False,
) -> None:
    """Print all that happened in a run: a JSON line for each event, with or without --json."""
    with stored(file, settings(state, database)) as (plan, store):
        known = run_of(store, plan, run)
        seq, at_end = 0, False
        while not at_end:
            found = store.wait(known.spec.run, seq, 1.0 if follow else 0.0)
            for event in found:
                print(msgspec.json.encode(event).decode())
                seq = event.seq
            sys.stdout.flush()
            at_end = not found if not follow else _has_ended(store, known)
            at_end = at_end and not store.events(known.spec.run, seq, 1)


def _has_ended(store: Store, known: RunState) -> bool:
    return any(row.ended for row in store.runs(known.spec.plan.name) if row.run == known.spec.run)


def runs(
    file: File, database: Database = "", state: State = "", as_json: AsJson = False
) -> None:
    """List the runs of a plan, the newest first."""
    with stored(file, settings(state, database)) as (plan, store):
        found = store.runs(plan)
    if as_json:
        print_json({"plan": plan, "runs": [row._asdict() for row in found]})
        return
    print_table(
        ("run", "kind", "state", "begun", "ended", "ends"),
        [(row.run, row.kind, row.state, row.begun, row.ended, row.of) for row in found],
    )
