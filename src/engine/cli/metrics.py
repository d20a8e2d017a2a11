"""rollpoint metrics."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("metrics")(metrics)


def metrics(
    directories: Annotated[
        list[str],
        typer.Argument(metavar="DIR…", help="Replicas, or directories of replicas."),
    ],
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Serve them at http://HOST:PORT/metrics until SIGTERM."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Errors are JSON; what is printed is OpenMetrics text.")
    ] = False,
) -> None:
    """Show numbers of replicas for monitoring, as OpenMetrics text.

    Nothing is locked and nothing is written. A replica that cannot be read has
    rollpoint_replica_readable 0. There is no password: listen where only scrapers reach it.
    """
    from ..metrics import Exporter, Server, parse_address

    exporter = Exporter(directories)
    if listen is None:
        sys.stdout.write(exporter.text().decode())
        return
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: end.set())
    with Server(parse_address(listen), exporter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        typer.echo(server.url)
        sys.stdout.flush()
        end.wait()
        server.shutdown()
