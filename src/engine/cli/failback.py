"""rollpoint failback DIR, and failback switch|commit|undo|status DIR."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..errors import UsageError
from ..replica import Replica
from ..units import format_duration, format_size, parse_duration, parse_time
from .output import disk_progress, print_json

if TYPE_CHECKING:
    from ..manifest import Step
    from ..records import TargetKind
    from ..steps import Outcome

Directory = Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OperationId = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Asked again with the same id, it is done once."),
]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why, for the audit log.")]
NoPowerOn = Annotated[bool, typer.Option("--no-power-on", help="Start nothing.")]
WORDS = ("start", "switch", "commit", "undo", "status")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(
        help="Go back from a replica to the source's disks, or to others. "
        "The word start may be left out: rollpoint failback DIR --target DISK=PLACE ...",
        no_args_is_help=True,
        cls=_Group,
    )
    for command in (start, switch, commit, undo, status):
        group.command(command.__name__)(command)
    app.add_typer(group, name="failback")


class _Group(typer.core.TyperGroup):
    """`failback DIR` is `failback start DIR`; a directory of another word's name is ./switch."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in (*WORDS, "--help"):
            args = ["start", *args]
        return super().parse_args(ctx, args)


def start(
    directory: Directory,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DISK=PLACE",
            help="A .vmdk, a raw file by any other name, or an NBD URI, for every disk; "
            "by default those of [source.disks].",
        ),
    ] = None,
    original: Annotated[
        bool, typer.Option("--original", help="The targets are the source's own disks.")
    ] = False,
    restored: Annotated[
        bool, typer.Option("--restored", help="They were restored from a backup.")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="They are new.")] = False,
    once: Annotated[
        bool, typer.Option("--once", help="One round, however much is written meanwhile.")
    ] = False,
    holds: Annotated[
        int | None,
        typer.Option(metavar="POINT", help="Id of the restore point that restored disks hold."),
    ] = None,
    reason: Reason = "",
    operation_id: OperationId = None,
    as_json: AsJson = False,
) -> None:
    """Copy what changed to the targets while the replica runs, ready to be switched over."""
    from .. import failback as room
    from .replica import pairs

    kinds = [
        name
        for name, said in (("original", original), ("restored", restored), ("new", new))
        if said
    ]
    if len(kinds) > 1:
        raise UsageError(f"the targets are {' and '.join(kinds)}", "say one of them")
    kind = cast("TargetKind | None", kinds[0] if kinds else None)
    targets = dict(pairs(target or [], "PLACE", "--target"))
    with Replica.open(directory) as replica, disk_progress("failback", as_json) as tell:
        outcome = room.start(
            replica,
            targets,
            kind,
            once=once,
            holds=holds,
            reason=reason,
            operation_id=operation_id,
            on_step=_teller(as_json),
            progress=tell,
        )
    _tell(outcome, as_json)


def switch(
    directory: Directory,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="At that moment; until then rounds go on.")
    ] = None,
    when_rest: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="As soon as the rest takes no longer, as in 10s."),
    ] = None,
    no_power_on: NoPowerOn = False,
    reason: Reason = "",
    operation_id: OperationId = None,
    as_json: AsJson = False,
) -> None:
    """Shut the replica down, send the rest, and start the machine at the target."""
    from .. import failback as room

    if at is not None and when_rest is not None:
        raise UsageError("--at and --when-rest say two moments", "say one of them")
    until = None if at is None else parse_time(at) / 1e9
    if until is not None and until < time.time():
        raise UsageError(f"--at {at} is over", "name a moment to come, or leave it out")
    rest = None if when_rest is None else parse_duration(when_rest)
    with Replica.open(directory) as replica, disk_progress("failback", as_json) as tell:
        if until is not None or rest is not None:
            if not as_json:
                moment = at if at is not None else f"no more is left than takes {when_rest}"
                typer.echo(f"waiting until {moment}; rounds go on")
            room.wait(replica, until=until, rest_seconds=rest, progress=tell)
        outcome = room.switch(
            replica,
            power_on=not no_power_on,
            reason=reason,
            operation_id=operation_id,
            on_step=_teller(as_json),
            progress=tell,
        )
    _tell(outcome, as_json)


def commit(
    directory: Directory,
    reason: Reason = "",
    operation_id: OperationId = None,
    as_json: AsJson = False,
) -> None:
    """Take the recovered machine as the source; the replica protects it from now on."""
    from .. import failback as room

    with Replica.open(directory) as replica, disk_progress("commit", as_json) as tell:
        outcome = room.commit(
            replica,
            reason=reason,
            operation_id=operation_id,
            on_step=_teller(as_json),
            progress=tell,
        )
    _tell(outcome, as_json)


def undo(
    directory: Directory,
    no_power_on: NoPowerOn = False,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHECK=REASON",
            help="source-fenced: why no machine can run at the target, where none can be asked.",
        ),
    ] = None,
    reason: Reason = "",
    operation_id: OperationId = None,
    as_json: AsJson = False,
) -> None:
    """Give the failback up: the replica serves again, as before it."""
    from .. import failback as room
    from .replica import pairs

    skipped = dict(pairs(skip or [], "REASON", "--skip"))
    if set(skipped) - {"source-fenced"}:
        raise UsageError("an undo looks at source-fenced alone", "skip nothing else")
    with Replica.open(directory) as replica:
        outcome = room.undo(
            replica,
            power_on=not no_power_on,
            skip=skipped,
            reason=reason,
            operation_id=operation_id,
            on_step=_teller(as_json),
        )
    _tell(outcome, as_json)


def status(directory: Directory, as_json: AsJson = False) -> None:
    """Where a failback stands, and how long the rest would take."""
    from .. import failback as room

    with Replica.open(directory) as replica:
        found = room.status(replica)
    if as_json:
        print_json(found)
        return
    failback = cast("dict[str, Any] | None", found["failback"])
    if failback is None:
        typer.echo(f"no failback goes on; the state is {found['state']}")
        return
    doing = f", {found['operation']}: {found['step']}" if found["operation"] else ""
    typer.echo(f"{found['state']}{doing}; {failback['rounds']} round(s)")
    for name, each in failback["targets"].items():
        why = each["lineage"] or "what it had is known"
        typer.echo(
            f"{name}: {each['place']} ({each['kind']}), {format_size(each['sent_bytes'])} sent, "
            f"{format_size(each['read_bytes'])} read; {why}"
        )
    if found["operation"]:
        left = failback["pass_seconds_left"]
        typer.echo(
            f"now: {format_size(failback['done_bytes'])} of {format_size(failback['total_bytes'])}"
            + ("" if left is None else f", {format_duration(left)} left")
        )
    rest = failback["rest_seconds"]
    takes = "how long that takes is not known yet" if rest is None else format_duration(rest)
    typer.echo(f"left: {format_size(failback['rest_bytes'])}, {takes}")
    if found["error"]:
        typer.echo(f"error: {found['error']}")


def _teller(as_json: bool) -> Callable[[Step], None] | None:
    if as_json:
        return None

    def tell(step: Step) -> None:
        if step.state == "done":
            spent = format_duration(step.seconds or 0.0)
            sys.stdout.write(f"{step.name:<16}  {spent:>9}  {step.note}\n")
            sys.stdout.flush()

    return tell


def _tell(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print_json(outcome.to_json())
    else:
        typer.echo(f"{outcome.state}, after {format_duration(outcome.seconds)}")
        if outcome.report is not None:
            typer.echo(f"report: {outcome.report}")
