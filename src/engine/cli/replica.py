"""rollpoint replica …"""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError
from ..replica import Replica, list_replicas
from ..units import format_size, parse_size
from .output import print_json, print_table
from .verify import verify

Directory = Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Grain = Annotated[
    str, typer.Option(metavar="SIZE", help="The least that the journals log: 4K to 64K.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="Make, look at and remove replicas.", no_args_is_help=True)
    for command in (create, adopt, seed, show, verify, remove):
        group.command(command.__name__)(command)
    group.command("list")(list_all)
    app.add_typer(group, name="replica")


def pairs(options: list[str], what: str) -> list[tuple[str, str]]:
    """NAME=VALUE options as pairs.

    Raises:
        UsageError: One has no "=", or nothing on a side of it, or a name comes twice.
    """
    made = []
    for option in options:
        name, found, value = option.partition("=")
        if not (name and found and value):
            raise UsageError(f"--disk {option!r} is not NAME={what}", f"as in --disk root={what}")
        made.append((name, value))
    if len({name for name, _ in made}) != len(made):
        raise UsageError("a disk is named twice", "give every --disk its own name")
    return made


def create(
    directory: Directory,
    disk: Annotated[
        list[str], typer.Option(metavar="NAME=SIZE", help="For every disk, as in system=40G.")
    ],
    grain: Grain = "4K",
    as_json: AsJson = False,
) -> None:
    """Make a replica with empty disks, in a directory that is missing or empty."""
    sizes = [(name, parse_size(size)) for name, size in pairs(disk, "SIZE")]
    with Replica.create(directory, sizes, grain_bytes=parse_size(grain)) as replica:
        _show(replica, as_json)


def adopt(
    directory: Directory,
    disk: Annotated[
        list[str], typer.Option(metavar="NAME=FILE", help="For every disk: a VMDK that is in DIR.")
    ],
    grain: Grain = "4K",
    as_json: AsJson = False,
) -> None:
    """Make a replica of VMDKs that are in its directory. Not one byte of them changes."""
    files = dict(pairs(disk, "FILE"))
    with Replica.adopt(directory, files, grain_bytes=parse_size(grain)) as replica:
        _show(replica, as_json)


def seed(
    directory: Directory,
    disk: Annotated[
        list[str],
        typer.Option(metavar="NAME=FILE", help="A .vmdk; by any other name it is read as raw."),
    ],
    as_json: AsJson = False,
) -> None:
    """Copy first images into the bases, before anything was journaled."""
    with Replica.open(directory) as replica:
        replica.seed(dict(pairs(disk, "FILE")))
        _show(replica, as_json)


def show(directory: Directory, as_json: AsJson = False) -> None:
    """Show a replica: its disks, state, and the operation in progress."""
    with Replica.open(directory) as replica:
        _show(replica, as_json)


def _show(replica: Replica, as_json: bool) -> None:
    facts = replica.show()
    if as_json:
        print_json(facts)
        return
    manifest = replica.manifest
    typer.echo(f"replica {manifest.name} ({manifest.id})")
    held = ", on hold" if manifest.held else ""
    typer.echo(f"state   {manifest.state}{held}, epoch {manifest.epoch}")
    for disk in manifest.disks:
        journal = f", journal {disk.journal}" if disk.journal else ""
        size = format_size(disk.size_bytes)
        typer.echo(f"disk    {disk.name}: {size}, base {disk.base}{journal}")
    if manifest.ingest is not None:
        error = f", failed: {manifest.ingest.error}" if manifest.ingest.error else ""
        typer.echo(f"ingest  process {manifest.ingest.pid} at {manifest.ingest.socket}{error}")
    if manifest.recovered is not None:
        typer.echo(f"runs as of restore point {manifest.recovered.point}")
    if manifest.operation is not None:
        operation = manifest.operation
        why = f": {operation.error}" if operation.error else ""
        typer.echo(f"open    {operation.kind}, begun {operation.started}{why}")


def list_all(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A directory of replicas.")],
    as_json: AsJson = False,
) -> None:
    """List the replicas directly under a directory."""
    found = list_replicas(directory)
    if as_json:
        print_json({"replicas": found})
        return
    print_table(
        ("name", "state", "disks", "size"),
        [
            (
                str(row["name"]),
                str(row["state"] or row["error"]),
                str(row["disks"] or ""),
                format_size(row["size_bytes"]) if isinstance(row["size_bytes"], int) else "",
            )
            for row in found
        ],
    )


def remove(
    directory: Directory,
    force: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The replica's name: remove it whatever its state is."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove a replica. Adopted bases, and those of a Permanent one, stay."""
    with Replica.open(directory) as replica:
        kept = replica.remove(force)
        if as_json:
            print_json({"removed": replica.name, "kept": [replica.file(name) for name in kept]})
        else:
            typer.echo(f"removed {replica.name}" + (f"; kept {', '.join(kept)}" if kept else ""))
