"""rollpoint points."""

from __future__ import annotations

from typing import Annotated

import typer

from ..replica import Replica
from ..units import format_duration
from .output import print_json, print_table

Directory = Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("points")(points)


def points(directory: Directory, as_json: AsJson = False) -> None:
    """List restore points, gaps, and how far back a failover would go now."""
    with Replica.open(directory) as replica:
        found = replica.points
        rpo = replica.rpo(found)
        if as_json:
            print_json(
                {
                    "points": [point.to_json() for point in found],
                    "gaps": [
                        {"start": gap.start, "end": gap.end, "cause": gap.cause}
                        for gap in found.gaps
                    ],
                    "rpo": rpo,
                }
            )
            return
        print_table(
            ("id", "time", "kind", "label"),
            [(str(point.id), point.time, point.kind, point.label) for point in found],
        )
        for gap in found.gaps:
            typer.echo(f"gap from {gap.start} to {gap.end or 'now'}: {gap.cause}")
        lag = rpo["lag_seconds"]
        if isinstance(lag, float):
            typer.echo(f"a failover now would go back {format_duration(lag)}")
