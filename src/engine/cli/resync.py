"""rollpoint replica resync."""

from __future__ import annotations

from typing import Annotated

import typer

from ..replica import Replica
from ..units import format_size
from .output import disk_progress, print_json


def resync(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")],
    disk: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=SOURCE",
            help="A .vmdk, a raw file by any other name, or an NBD URI; it stands still.",
        ),
    ],
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help='Compare only these: JSON, [{"start": BYTES, "length": BYTES}, …].',
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare disks with their sources after a disconnect, write what differs, end the gap."""
    from .. import resync as room
    from .replica import pairs  # which imports us, for its group

    sources = dict(pairs(disk, "SOURCE"))
    files = pairs(ranges or [], "FILE", "--ranges")
    wanted = {name: room.read_ranges(path) for name, path in files}
    with Replica.open(directory) as replica, disk_progress("resync", as_json) as tell:
        done = room.resync(replica, sources, wanted, tell)
    if as_json:
        print_json(
            {"disks": [each._asdict() for each in done.disks], "point": done.point.to_json()}
        )
        return
    for each in done.disks:
        typer.echo(
            f"{each.name}: {format_size(each.compared_bytes)} compared, "
            f"{format_size(each.written_bytes)} written, {format_size(each.zeroed_bytes)} zeroed"
        )
    typer.echo(f"restore point {done.point.id}, {done.point.time}")
