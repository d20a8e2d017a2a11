"""rollpoint replica verify."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import DamagedError
from ..replica import Replica
from .output import print_json

Directory = Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def verify(directory: Directory, as_json: AsJson = False) -> None:
    """Read journals and bases again, every byte against its checksum. Damage: exit 1."""
    with Replica.open(directory) as replica:
        report = replica.verify()
        if as_json:
            print_json(report)
        else:
            for disk in report["disks"]:  # type: ignore[attr-defined]
                for damage in disk["damage"]:
                    typer.echo(f"{disk['name']}: {damage['where']}: {damage['message']}")
        if not report["ok"]:
            raise DamagedError(
                f"replica {replica.name} is damaged",
                "restore points before the damage may still be good: fail over to one",
            )
        if not as_json:
            typer.echo("no damage")
