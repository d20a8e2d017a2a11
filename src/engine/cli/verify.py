"""rollpoint replica verify."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..errors import DamagedError
from ..replica import Replica
from .output import disk_progress, print_json

Directory = Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def verify(
    directory: Directory,
    repair_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Mend what can be proven: another copy of the replica, an image (NAME=FILE "
            'where there are several disks), or "base": the disk\'s own.',
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, not where an earlier one ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read journals and bases again, every byte against its checksum. Damage: exit 1."""
    with Replica.open(directory) as replica:
        report: Any
        with disk_progress("verify", as_json) as tell:
            if repair_from:
                report = _repair(replica, repair_from, tell, restart)
            else:
                from ..scrub import verify as scrub

                report = scrub(replica.directory, replica.manifest, tell, restart=restart)
        if as_json:
            print_json(report)
        else:
            _show(report)
        if not report["ok"]:
            raise DamagedError(
                f"replica {replica.name} is damaged",
                "restore points before the damage may still be good: fail over to one",
            )


def _repair(
    replica: Replica,
    asked: list[str],
    tell: Callable[[str, int, int], bool] | None,
    restart: bool,
) -> dict[str, object]:
    from .. import mending

    with replica.locked() as manifest:
        names = {entry.name for entry in manifest.disks}
        wanted = []
        for option in asked:
            name, found, path = option.partition("=")
            wanted.append((name, path) if found and name in names else (None, option))
        return mending.verify_and_mend(
            replica.directory,
            manifest,
            tell,
            mending.sources(manifest, replica.path, wanted),
            restart=restart,
        )


def _show(report: Any) -> None:
    if report["resumed"]:
        typer.echo(f"went on with what was begun at {report['resumed']}")
    rows = [(disk["name"], row) for disk in report["disks"] for row in disk["damage"]]
    for name, row in rows:
        mended = " (mended)" if row["mended"] else ""
        typer.echo(f"{name}: {row['where']}: {row['message']}{_place(row)}{mended}")
    if not rows:
        typer.echo("no damage")
    elif report["ok"]:
        typer.echo("all of it is mended")


def _place(row: Any) -> str:
    """Where it is, and whom it harms, as far as that is known."""
    text = ""
    if row["position"] is not None:
        text += f"; {row['file']} at {row['position']}"
    if row["guest_offset"] is not None:
        stop = row["guest_offset"] + row["length"]
        text += f"; bytes {row['guest_offset']} to {stop} of the disk"
    if row["points"] is not None:
        text += f"; restore points {row['points'][0]} to {row['points'][1]}"
    if row["end"]:
        text += "; the newest state"
    return text
