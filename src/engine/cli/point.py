"""rollpoint point …: what is said about a restore point after it was made."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import noting
from ..replica import Replica
from .output import print_json

Directory = Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")]
Which = Annotated[
    str, typer.Argument(metavar="POINT", help="latest, a point's id, its name, or a moment.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="Name, pin and lock restore points.", no_args_is_help=True)
    for command in (name, pin, unpin, lock, show):
        group.command(command.__name__)(command)
    app.add_typer(group, name="point")


def name(
    directory: Directory,
    point: Which,
    name: Annotated[str, typer.Argument(metavar="NAME", help='Its name; "" takes it away.')],
    as_json: AsJson = False,
) -> None:
    """Give a restore point a name, by which it can be asked for."""
    with Replica.open(directory) as replica:
        _tell(noting.set_name(replica, point, name), as_json)


def pin(directory: Directory, point: Which, as_json: AsJson = False) -> None:
    """Keep a restore point until it is unpinned."""
    with Replica.open(directory) as replica:
        _tell(noting.set_pin(replica, point, True), as_json)


def unpin(directory: Directory, point: Which, as_json: AsJson = False) -> None:
    """Let a restore point expire again. A lock stays."""
    with Replica.open(directory) as replica:
        _tell(noting.set_pin(replica, point, False), as_json)


def lock(
    directory: Directory,
    point: Which,
    until: Annotated[
        str, typer.Option(metavar="TIME", help="ISO 8601; not before an earlier lock's.")
    ],
    as_json: AsJson = False,
) -> None:
    """Keep a restore point until a date. A lock can be lengthened, never shortened."""
    with Replica.open(directory) as replica:
        _tell(noting.lock(replica, point, until), as_json)


def show(directory: Directory, point: Which, as_json: AsJson = False) -> None:
    """Show what is known of a restore point."""
    with Replica.open(directory) as replica:
        _tell(noting.show(replica, point), as_json)


def _tell(facts: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    label = f", {facts['label']}" if facts["label"] else ""
    typer.echo(f"restore point {facts['id']}, {facts['time']}, {facts['kind']}{label}")
    if facts["name"]:
        typer.echo(f"name    {facts['name']}")
    if facts["pinned"]:
        typer.echo("pinned  until it is unpinned")
    if facts["locked_until"]:
        over = "" if facts["locked"] else " (over)"
        typer.echo(f"locked  until {facts['locked_until']}{over}")
    if facts["long_term"]:
        typer.echo("long    a long-term point: its disks are VMDKs of their own")
