"""rollpoint bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import bench
from .output import print_json


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("bench")(run)


def run(
    groups: Annotated[
        list[str] | None, typer.Argument(help=f"Any of {', '.join(bench.GROUPS)}; none: all.")
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for bench.json, bench.md and pictures.")
    ] = Path("bench/results"),
    checkout: Annotated[
        Path, typer.Option("--from", metavar="DIR", help="In the checkout that holds bench/.")
    ] = Path(),
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Tiny sizes: shows that it runs, measures nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Run the benchmarks beside their peers; leave a table, JSON and a picture."""
    bench.require_groups(groups or [])
    rows = bench.run(
        bench.find_bench(checkout.resolve()), groups or [], output.resolve(), full=not smoke
    )
    if as_json:
        print_json({"rows": rows, "output": str(output.resolve())})
        return
    typer.echo(bench.table(rows))
    typer.echo(f"{output}/bench.json, bench.md, bench.png, bench-curves.png")
