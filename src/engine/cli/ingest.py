"""rollpoint ingest, mark, hold, release."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from typing import Annotated

import typer

from .. import replication
from ..errors import UsageError
from ..replica import Replica
from ..units import format_duration, parse_duration
from .output import print_json

Directory = Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why this is done: for the audit.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (ingest, mark, hold, release):
        app.command(command.__name__)(command)


def ingest(
    directory: Directory,
    socket: Annotated[
        str, typer.Option(metavar="PATH", help="Unix socket to make for the exports, mode 0600.")
    ],
    rpo: Annotated[
        str, typer.Option(metavar="TIME", help="Between restore points while there are writes.")
    ] = "2s",
    ignore_lost: Annotated[
        bool,
        typer.Option(
            "--ignore-lost",
            help="A lost connection begins no gap: a supervisor of the source says gap-open.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve one NBD export for each disk, named like it, until SIGTERM or SIGINT.

    Marks a restore point of all disks at one cut every --rpo in which there were writes.
    """
    from ..ingest import Ingest
    from ..warming import kept_warm

    seconds = parse_duration(rpo)
    with Replica.open(directory) as replica:
        service = Ingest(replica, socket, seconds, ignore_lost=ignore_lost)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: service.stop())
        service.on_warning(lambda text: print(f"rollpoint: warning: {text}", file=sys.stderr))
        service.start()
        names = [disk.name for disk in replica.manifest.disks]
        if as_json:
            print(json.dumps({"socket": socket, "exports": names}))
        else:
            typer.echo(
                f"serving {', '.join(names)} at {socket}; a restore point every "
                f"{format_duration(seconds)} with writes"
            )
            for gap in replica.manifest.gaps:
                if gap.end is None and gap.resync:
                    typer.echo(f"no restore point until the source has caught up: {gap.cause}")
        sys.stdout.flush()
        with kept_warm(replica):
            service.run()


def mark(
    directories: Annotated[
        list[str], typer.Argument(metavar="DIR…", help="Replicas; several are marked at one cut.")
    ],
    app: Annotated[
        bool, typer.Option("--app", help="The application was made quiet: app-consistent.")
    ] = False,
    label: Annotated[str, typer.Option(metavar="TEXT", help="To find it by.")] = "",
    caught_up: Annotated[
        bool,
        typer.Option(
            "--caught-up", help="The source has sent again what may be missing: end the gap."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Mark a restore point of all disks, now. It is durable when this returns."""
    kind = "app" if app else "crash"
    if len(directories) > 1:
        if caught_up:
            raise UsageError(
                "--caught-up ends the gap of one replica", "say it for each, then mark all"
            )
        _mark_group(directories, kind, label, as_json)
        return
    with Replica.open(directories[0]) as replica:
        point = replication.mark(replica, kind, label, caught_up=caught_up)
    if as_json:
        print_json(point.to_json())
    else:
        typer.echo(f"restore point {point.id}, {point.time}")


def _mark_group(directories: list[str], kind: str, label: str, as_json: bool) -> None:
    from .. import groups

    with contextlib.ExitStack() as stack:
        replicas = [stack.enter_context(Replica.open(path)) for path in directories]
        done = groups.mark(replicas, kind, label)
        if as_json:
            print_json(
                {
                    "group": done.group,
                    "time": done.members[0].point.time,
                    "kind": kind,
                    "label": label,
                    "barrier_ms": done.barrier_ms,
                    "replicas": [
                        {
                            "path": member.replica.path,
                            "name": member.replica.name,
                            "id": member.point.id,
                            "barrier_ms": member.barrier_ms,
                        }
                        for member in done.members
                    ],
                }
            )
            return
        for member in done.members:
            typer.echo(f"{member.replica.name}: restore point {member.point.id}")
        typer.echo(
            f"one cut at {done.members[0].point.time}; writers waited "
            f"{done.barrier_ms:.1f} ms at most"
        )


def hold(directory: Directory, reason: Reason = "", as_json: AsJson = False) -> None:
    """Stop and fence replication: from then on no write is acknowledged."""
    with Replica.open(directory) as replica:
        epoch = replication.hold(replica, reason)
        _tell(replica, epoch, True, as_json)


def release(directory: Directory, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let replication go on after a hold."""
    with Replica.open(directory) as replica:
        epoch = replication.release(replica, reason)
        _tell(replica, epoch, False, as_json)


def _tell(replica: Replica, epoch: int, held: bool, as_json: bool) -> None:
    if as_json:
        print_json({"id": replica.manifest.id, "held": held, "epoch": epoch})
    else:
        typer.echo(f"{'on hold' if held else 'released'}, epoch {epoch}")
