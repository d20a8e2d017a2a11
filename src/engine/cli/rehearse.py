"""rollpoint replica rehearse."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ..errors import GuestError
from ..replica import Replica
from ..units import format_size
from .output import print_json, printable

if TYPE_CHECKING:
    from ..rehearsal import Rehearsal


def rehearse(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")],
    at: Annotated[
        str, typer.Option(metavar="POINT", help="latest, an id, a name, or a moment.")
    ] = "latest",
    boot: Annotated[
        bool, typer.Option("--boot", help="Start the machine too, without a network.")
    ] = False,
    scratch: Annotated[
        str | None,
        typer.Option("--scratch", metavar="DIR", help="With room for what is written and dropped."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Try a failover's conversion on disks that are thrown away. Replication goes on."""

    def tell(step: str) -> None:
        if not as_json and sys.stdout.isatty():
            typer.echo(f"{step} ...")

    from .. import rehearsal  # other commands of the group do without

    with Replica.open(directory) as replica:
        done = rehearsal.rehearse(replica, at, boot=boot, scratch_dir=scratch, on_step=tell)
        if as_json:
            print_json(msgspec.to_builtins(done))
        else:
            _print(done)
        if not done.ok:
            raise GuestError(
                f"replica {replica.name} cannot be failed over to restore point {done.point} "
                f"as it is set up: {done.error}",
                done.hint or "see rollpoint replica show",
            )


def _print(done: Rehearsal) -> None:
    typer.echo(f"restore point {done.point}, {done.point_time}")
    converted = done.converted
    if converted is not None:
        typer.echo(converted.tell())
        for change in converted.changes:
            typer.echo(f"  {printable(change.file)}: {printable(change.what)}")
        for warning in converted.warnings:
            typer.echo(f"warning {printable(warning)}")
    if done.boot is not None:
        reached = "reached" if done.boot.reached else "NOT reached"
        typer.echo(f"start {reached} in {done.boot.seconds:.1f} s: {printable(done.boot.said)}")
    typer.echo(f"{done.seconds:.2f} s, {format_size(done.written_bytes)} written and dropped")
