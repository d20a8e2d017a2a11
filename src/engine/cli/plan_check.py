"""rollpoint plan check: whether a run would come through, and how long it is likely to take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import typer

from ..units import format_duration, format_size
from .output import print_json, print_table, printable

if TYPE_CHECKING:
    from ..plans.checking import Report, Row
    from ..plans.found import Problem
    from ..plans.running import Only, Settings
    from ..plans.tables import RunKind

COLUMNS = ("group", "replica", "state", "RPO", "target", "rehearsed", "free", "evidence", "takes")


def show(file: str, kind: RunKind, where: Settings, only: Only | None, as_json: bool) -> int:
    """Check, and print it. Returns the exit code: 1 where something would stop the run.

    Raises:
        UsageError: The plan file is not right.
        Error: The database cannot be used, so that no run could begin.
    """
    from ..plans import checking, running
    from ..plans import file as files

    plan = files.load(file)
    with running.opened(plan.name, where) as store:
        report = checking.check(
            plan,
            file,
            kind,
            survey=checking.hosts(plan, file, kind, store, where.hypervisors),
            history=running.states(store, plan.name),
            only=only,
        )
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _text(report)
    return 1 if report.stops else 0


def _text(report: Report) -> None:
    print_table(COLUMNS, [_cells(row) for row in report.rows])
    for problem in report.problems:
        _problem(problem)
    if report.predicted_seconds is not None:
        whole = "at least " if report.unknown else ""
        asked = report.rto_target
        target = "" if asked is None else f" ({format_duration(asked)} asked)"
        typer.echo(f"RTO {whole}{format_duration(report.predicted_seconds)}{target}")
    if report.predicted_says:
        typer.echo(f"    {printable(report.predicted_says)}")
    ends = "would be stopped" if report.stops else "nothing would stop it"
    typer.echo(f"plan {report.plan} ({report.kind}): {ends}")


def _problem(problem: Problem) -> None:
    where = "/".join(part for part in (problem.group, problem.replica) if part)
    word = "STOPS" if problem.stops else "warning"
    typer.echo(f"{word:<8}{printable(f'{where}: ' if where else '')}{printable(problem.says)}")
    if problem.hint:
        typer.echo(f"        -> {printable(problem.hint)}")


def _cells(row: Row) -> tuple[str, ...]:
    one = row.readiness
    free = "" if one.free_bytes is None else format_size(one.free_bytes)
    return tuple(
        printable(cell)
        for cell in (
            one.group,
            one.name,
            f"{one.state}, on hold" if one.held else one.state,
            "" if one.rpo_seconds is None else format_duration(one.rpo_seconds),
            "" if one.rpo_target is None else format_duration(one.rpo_target),
            _rehearsed(row),
            free,
            ", ".join(one.proof.kinds) or "none",
            "?" if row.seconds is None else format_duration(row.seconds),
        )
    )


def _rehearsed(row: Row) -> str:
    found = row.readiness.rehearsal
    if found is None:
        return "never"
    return f"{format_duration(found.age_seconds)} ago: {'came through' if found.ok else 'FAILED'}"
