"""rollpoint failover, undo, permanent, resume.

A failover's time counts from the key press: nothing heavy is imported here, and rich
is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from .. import timers
from ..errors import Error, UsageError
from ..replica import Replica
from ..units import format_duration, parse_duration, parse_size
from .output import print_json, printable

if TYPE_CHECKING:
    from ..manifest import MachineSettings, Step
    from ..steps import Outcome

Directory = Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[
    str, typer.Option(metavar="TEXT", help="Why this is done: for the audit and the report.")
]
OperationId = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Asked again with the same id, it is done once."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (failover, undo, permanent, resume):
        app.command(command.__name__)(command)


def failover(
    directory: Directory,
    to: Annotated[
        str | None,
        typer.Option(metavar="POINT", help="latest, a point's id or name, or a moment."),
    ] = None,
    no_power_on: Annotated[
        bool, typer.Option("--no-power-on", help="Leave the disks ready; start nothing.")
    ] = False,
    no_convert: Annotated[
        bool, typer.Option("--no-convert", help="Start the guest as it is on the disks.")
    ] = False,
    planned: Annotated[
        bool,
        typer.Option("--planned", help="Shut the source down first: nothing is lost."),
    ] = False,
    test: Annotated[
        bool,
        typer.Option("--test", help="Beside replication, without a wire; ends with undo --test."),
    ] = False,
    network: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a test: an isolated network, or none."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK=REASON", help="Do not run that check. May be repeated."),
    ] = None,
    reason: Reason = "",
    auto_undo: Annotated[
        str | None, typer.Option(metavar="TIME", help="Undo it after that time, by itself.")
    ] = None,
    auto_permanent: Annotated[
        str | None, typer.Option(metavar="TIME", help="Make it permanent after that time.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of the machine, as in 256M.")
    ] = None,
    accel: Annotated[
        str | None, typer.Option(metavar="NAME", help="tcg, or kvm where it proves usable.")
    ] = None,
    marker: Annotated[
        str | None, typer.Option(metavar="TEXT", help="On the serial console: says that it is up.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long to wait for the marker.")
    ] = None,
    operation_id: OperationId = None,
    as_json: AsJson = False,
) -> None:
    """Bring the replica up as of a restore point; its writes go into overlays."""
    _require_fitting(test, network, planned or bool(skip))
    if test:
        with Replica.open(directory) as replica:
            settings = _settings(replica, memory, accel, marker, timeout)
            how = network, no_power_on, no_convert
            _test(replica, to, how, settings, reason, operation_id, as_json)
        return
    from .. import operation as room

    with Replica.open(directory) as replica:
        outcome = room.failover(
            replica,
            to,
            power_on=not no_power_on,
            convert=not no_convert,
            planned=planned,
            skip=skipped(skip or []),
            reason=reason,
            after=_after(auto_undo, auto_permanent),
            settings=_settings(replica, memory, accel, marker, timeout),
            operation_id=operation_id,
            on_step=_teller(as_json),
        )
        _tell(outcome, as_json, _watch(replica))


def _after(auto_undo: str | None, auto_permanent: str | None) -> tuple[str, float] | None:
    if auto_undo is None and auto_permanent is None:
        return None
    from .timer import after

    return after(auto_undo, auto_permanent)


def _watch(replica: Replica) -> str:
    """Start the process that waits for the timer, if there is one. What is said of it."""
    timer = timers.of(replica.manifest)
    if timer is None:
        return ""
    try:
        timers.start(replica)
    except Error as error:
        return f"{error.message} ({error.hint})"
    return f"{timer.action} by itself at {timer.due}; rollpoint timer --cancel takes that back"


def _require_fitting(test: bool, network: str | None, for_real: bool) -> None:
    """Options of test failovers and of real ones are not mixed.

    Raises:
        UsageError: They are.
    """
    if test and for_real:
        raise UsageError(
            "--test goes with neither --planned nor --skip",
            "a test touches no source, and nothing is looked for before it",
        )
    if network is not None and not test:
        raise UsageError(
            "--network goes with --test",
            'elsewhere it is said in replica.toml: [machine] network = "..."',
        )


def _test(
    replica: Replica,
    to: str | None,
    how: tuple[str | None, bool, bool],
    settings: MachineSettings,
    reason: str,
    operation_id: str | None,
    as_json: bool,
) -> None:
    from .. import trials

    network, no_power_on, no_convert = how
    outcome = trials.start(
        replica,
        to or "latest",
        network=network,
        power_on=not no_power_on,
        convert=not no_convert,
        settings=settings,
        reason=reason,
        operation_id=operation_id,
        on_step=_teller(as_json),
    )
    _tell(outcome, as_json)


def skipped(words: list[str]) -> dict[str, str]:
    """Check -> reason, of CHECK=REASON.

    Raises:
        UsageError: One has no reason.
    """
    skip = {}
    for word in words:
        name, _, reason = word.partition("=")
        if not reason.strip():
            raise UsageError(
                f"--skip {word!r} does not say why",
                'write the check and the reason: --skip source-fenced="its rack has no power"',
            )
        skip[name.strip()] = reason.strip()
    return skip


def _settings(
    replica: Replica,
    memory: str | None,
    accel: str | None,
    marker: str | None,
    timeout: str | None,
) -> MachineSettings:
    """The machine's settings with what the command line says instead."""
    from .. import config

    settings = config.machine_of(config.load(replica.directory), replica.manifest.machine)
    if memory is not None:
        settings.memory_bytes = parse_size(memory)
        if not 1 << 20 <= settings.memory_bytes <= 4 << 40:
            raise UsageError(
                f"--memory {memory}: a machine has 1M to 4T of memory", "write it as in 256M"
            )
    if accel is not None:
        if accel not in ("tcg", "kvm"):
            raise UsageError(f"--accel {accel!r} is not an accelerator", "take tcg or kvm")
        settings.accelerator = accel
    if marker is not None:
        settings.marker = marker or None
    if timeout is not None:
        settings.timeout_seconds = parse_duration(timeout)
    return settings


def undo(
    directory: Directory,
    test: Annotated[
        str | None,
        typer.Option("--test", metavar="ID", help="End that test failover, or all of them."),
    ] = None,
    operation_id: OperationId = None,
    as_json: AsJson = False,
) -> None:
    """End a failover: power off, drop what was written since, replicate again."""
    if test is not None:
        _undo_tests(directory, test, as_json)
        return
    from .. import operation as room

    with Replica.open(directory) as replica:
        outcome = room.undo(replica, operation_id=operation_id, on_step=_teller(as_json))
        _tell(outcome, as_json)


def _undo_tests(directory: str, which: str, as_json: bool) -> None:
    from .. import trials

    with Replica.open(directory) as replica:
        done = trials.undo(replica, which)
        if as_json:
            print_json({"tests": [outcome.to_json() for outcome in done]})
            return
        for outcome in done:
            _tell(outcome, as_json)
        if not done:
            typer.echo("there is no test failover")


def permanent(
    directory: Directory,
    operation_id: OperationId = None,
    force: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The replica's name: give up locked points too."),
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="While the machine runs; it is not powered off.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """End a failover: merge everything into the base. No restore point stays."""
    from .. import operation as room

    with Replica.open(directory) as replica:
        outcome = room.permanent(
            replica,
            operation_id=operation_id,
            on_step=_teller(as_json),
            force_name=force,
            online=online,
        )
        _tell(outcome, as_json)


def resume(directory: Directory, as_json: AsJson = False) -> None:
    """Finish, or roll back, what a crash left."""
    from .. import operation as room

    with Replica.open(directory) as replica:
        outcome = room.resume(replica, on_step=_teller(as_json))
        timer = _watch(replica)
        if outcome is not None:
            _tell(outcome, as_json, timer)
        elif as_json:
            print_json({"state": replica.manifest.state, "operation": None})
        else:
            typer.echo(f"nothing to resume; the state is {replica.manifest.state}")
            if timer:
                typer.echo(timer)


def _teller(as_json: bool) -> Callable[[Step], None] | None:
    if as_json:
        return None

    waiting: list[str] = []  # nothing was done yet: what passed is told with the first that was

    def tell(step: Step) -> None:
        if step.state == "done":
            time = format_duration(step.seconds or 0.0)
            waiting.append(f"{step.name:<12}  {time:>9}  {step.note}\n")
            if step.name != "check":
                sys.stdout.write("".join(waiting))
                sys.stdout.flush()
                waiting.clear()

    return tell


def _tell(outcome: Outcome, as_json: bool, timer: str = "") -> None:
    if as_json:
        print_json(outcome.to_json())
        return
    point = f" as of restore point {outcome.point}" if outcome.point is not None else ""
    beside = {
        "expire": f"long-term point {outcome.point} is given up",
        "test": f"test failover {outcome.operation} runs{point}",
        "undo test": f"test failover {outcome.operation.removeprefix('undo-')} has ended",
        "sweep": "what test failovers had left behind is removed",
        "destage": f"what lies before restore point {outcome.point} is given up",
    }
    done = beside.get(outcome.kind, f"{outcome.state}{point}")
    typer.echo(f"{done}, after {format_duration(outcome.seconds)}")
    for name, path in outcome.interims.items():
        typer.echo(f"{name}: {path}")
    if outcome.rpo_seconds is not None:
        told = printable(outcome.rpo_says)
        most = "at most " if told.startswith("at most: ") else ""
        told = told.removeprefix("at most: ")
        typer.echo(f"RPO {most}{format_duration(outcome.rpo_seconds)}: {told}")
    if outcome.rto_seconds is not None:
        typer.echo(f"RTO {format_duration(outcome.rto_seconds)}, until the machine was on")
    if outcome.report is not None:
        typer.echo(f"report: {outcome.report}")
    if timer:
        typer.echo(timer)
    for warning in outcome.warnings:
        typer.echo(f"warning: {printable(warning)}", err=True)
