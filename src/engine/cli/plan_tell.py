"""What plan commands print of a run: one JSON document, or text for people and pipes."""

from __future__ import annotations

import sys
import time
from typing import Any

import msgspec
import typer

from ..plans.events import NodeState, RunState
from ..units import format_duration, parse_time
from .output import print_json, print_table, printable

FAILED_MAX = 20  # that are told one by one under a result


def tell(state: RunState, as_json: bool, *, report: str = "", driven: bool | None = None) -> int:
    """Print what a run came to, or stands at. Returns the exit code.

    Args:
        report: Path of its page; "": there is none.
        driven: Whether a process carries it out now; None: does not matter.
    """
    if as_json:
        print_json(facts(state, report=report, driven=driven))
    else:
        _text(state, report, driven)
    return 0 if state.state in ("done", "running") else 1


def facts(state: RunState, *, report: str = "", driven: bool | None = None) -> dict[str, Any]:
    """As --json prints it."""
    spec = state.spec
    return {
        "plan": spec.plan.name,
        "run": spec.run,
        "kind": spec.kind,
        "of": spec.of or None,
        "state": state.state,
        "paused": state.paused,
        "cancelling": state.asked_to_cancel and not state.ended,
        "driven": driven,
        "begun": state.begun,
        "ended": state.ended or None,
        "seconds": seconds_of(state),
        "rpo_seconds": worst[0] if (worst := worst_rpo(state)) else None,
        "who": spec.who,
        "host": spec.host,
        "reason": spec.reason,
        "report": report or None,
        "counts": counts(state),
        "tasks": [
            {
                "group": spec.shape.nodes[key].group,
                "replica": spec.shape.nodes[key].name or None,
                **msgspec.to_builtins(node),
            }
            for key, node in state.nodes.items()
        ],
    }


def counts(state: RunState) -> dict[str, int]:
    """How many tasks are in each state."""
    made: dict[str, int] = {}
    for node in state.nodes.values():
        made[node.state] = made.get(node.state, 0) + 1
    return made


def seconds_of(state: RunState) -> float:
    """From its beginning to its end, or to now."""
    last_ns = parse_time(state.ended) if state.ended else time.time_ns()
    return max(0, last_ns - parse_time(state.begun)) / 1e9


def worst_rpo(state: RunState) -> tuple[float, str, str] | None:
    """The most that a replica lost, in time, which one that was, and what says so."""
    found = [
        (float(outcome["rpo_seconds"]), key, str(outcome.get("rpo_says", "")))
        for key, node in state.nodes.items()
        if (outcome := node.outcome) is not None and outcome.get("rpo_seconds") is not None
    ]
    return max(found, default=None)


def _text(state: RunState, report: str, driven: bool | None) -> None:
    spec = state.spec
    told = ", ".join(f"{number} {word}" for word, number in counts(state).items())
    word: str = state.state
    if word == "running":
        word = "cancelling" if state.asked_to_cancel else "paused" if state.paused else "going on"
    typer.echo(
        f"run {spec.run} of plan {spec.plan.name} ({spec.kind}): {word} after "
        f"{format_duration(seconds_of(state))}; {told}"
    )
    if state.state == "running" and driven is False:
        typer.echo(f"no process carries it out now: {go_on(state)}")
    if worst := worst_rpo(state):
        seconds, key, says = worst
        most = "at most " if says.startswith("at most") else ""
        typer.echo(f"RPO {most}{format_duration(seconds)} at worst: {printable(key)}")
    failed = [node for node in state.nodes.values() if node.state in ("failed", "asking")]
    for node in failed[:FAILED_MAX]:
        _failed(node)
    if len(failed) > FAILED_MAX:
        typer.echo(f"and {len(failed) - FAILED_MAX} more: rollpoint plan status {spec.plan_path}")
    if failed and state.ended:
        typer.echo(f"rollpoint plan retry {spec.plan_path} tries them again, plan skip leaves them")
    if report:
        typer.echo(f"report: {report}")


def _failed(node: NodeState) -> None:
    at = f" at {node.failed_at}" if node.failed_at else ""
    typer.echo(f"{printable(node.key)} {node.state}{at}: {printable(node.error)}")
    if node.hint:
        typer.echo(f"  -> {printable(node.hint)}")


def go_on(state: RunState) -> str:
    """What goes on with it."""
    return f"rollpoint plan continue {state.spec.plan_path}"


def show(state: RunState, driven: bool) -> None:
    """All tasks: a table on a terminal, a line each in a pipe."""
    from .plan_table import RunView, gate_of, rpo_of, step_of

    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(RunView(state, height=2 * len(state.nodes) + 4))
    else:
        nodes = state.spec.shape.nodes
        print_table(
            ("group", "task", "state", "step", "RPO", "gate"),
            [
                tuple(
                    printable(cell).replace("\t", " ").replace("\n", " ")
                    for cell in (
                        nodes[key].group,
                        nodes[key].name or key,
                        node.state,
                        step_of(node),
                        rpo_of(node),
                        gate_of(node),
                    )
                )
                for key, node in state.nodes.items()
            ],
        )
    if state.state == "running" and not driven:
        typer.echo(f"no process carries it out now: {go_on(state)}", err=True)
