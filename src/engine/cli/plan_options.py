"""Options that the plan commands share, and how they find the run that is meant."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import NotFoundError, UsageError
from ..plans.tables import RunKind

if TYPE_CHECKING:
    from ..plans.events import RunState
    from ..plans.running import Only, Settings
    from ..plans.store import Store

File = Annotated[str, typer.Argument(metavar="FILE", help="The plan; once run, its name will do.")]
Groups = Annotated[
    list[str] | None, typer.Option("--group", metavar="NAME", help="Only that. May be repeated.")
]
Replicas = Annotated[
    list[str] | None, typer.Option("--replica", metavar="NAME", help="Only that. May be repeated.")
]
Database = Annotated[
    str,
    typer.Option(metavar="URL", help="As in postgresql://user@host/name; SQLite without it."),
]
State = Annotated[
    str, typer.Option("--state", metavar="DIR", help="Where runs and reports are kept.")
]
Reason = Annotated[
    str, typer.Option(metavar="TEXT", help="Why: for the audit of each replica, and the report.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EventsTo = Annotated[
    str, typer.Option("--events", metavar="PLACE", help="Events as JSON lines: fd:N or unix:PATH.")
]
Run = Annotated[str, typer.Option("--run", metavar="ID", help="Not the newest, but that one.")]
Test = Annotated[bool, typer.Option("--test", help="Isolated, beside replication.")]
Planned = Annotated[bool, typer.Option("--planned", help="Sources are shut down first.")]
Unplanned = Annotated[bool, typer.Option("--unplanned", help="The disaster.")]
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]…", help="Replicas or groups; without, all that failed."),
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def kind_of(test: bool, planned: bool, unplanned: bool) -> RunKind | None:
    """The one that was said.

    Raises:
        UsageError: More than one was.
    """
    kinds: dict[RunKind, bool] = {"test": test, "planned": planned, "unplanned": unplanned}
    said = [kind for kind, is_said in kinds.items() if is_said]
    if len(said) > 1:
        raise UsageError(
            f"--{said[0]} and --{said[1]} do not go together",
            "a test touches no source, planned shuts it down first, unplanned goes without it",
        )
    return said[0] if said else None


def settings(state: str, database: str) -> Settings:
    from ..plans import running

    return running.settings(state, database)


def only(groups: list[str] | None, replicas: list[str] | None) -> Only:
    from ..plans.running import Only

    return Only(tuple(groups or ()), tuple(replicas or ()))


@contextlib.contextmanager
def stored(file: str, where: Settings) -> Iterator[tuple[str, Store]]:
    """The plan's name, and where its runs are.

    Raises:
        UsageError: There is no such plan file, and no runs of a plan of that name.
    """
    from ..plans import file as files
    from ..plans import running

    try:
        name = files.load(file).name
    except UsageError:
        # A run must be paused also when its file was lost, or spoilt, meanwhile.
        name = os.path.basename(file).removesuffix(".toml")
        place = os.path.join(where.state, "plans", f"{name}.sqlite")
        if not _NAME.fullmatch(name) or not (where.database or os.path.exists(place)):
            raise
    with running.opened(name, where) as store:
        yield name, store


def run_of(store: Store, plan: str, run: str = "") -> RunState:
    """The newest run of a plan, or that one.

    Raises:
        NotFoundError: There is none.
    """
    from ..plans import running
    from ..plans.events import fold
    from ..plans.supervising import all_events

    if not run:
        known = running.current(store, plan)
        if known is not None:
            return known
        raise NotFoundError(f"plan {plan} was never run", "rollpoint plan run begins a run")
    if any(row.run == run for row in store.runs(plan)):
        return fold(all_events(store, run))
    raise NotFoundError(f"plan {plan} has no run {run}", "rollpoint plan runs lists them")
