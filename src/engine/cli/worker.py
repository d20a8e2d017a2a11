"""rollpoint worker: do the tasks of plans that are this mount host's."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from .output import print_json, printable

if TYPE_CHECKING:
    from ..plans.working import Serving


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("worker")(worker)


def worker(
    queue: Annotated[
        str, typer.Option(metavar="NAME", help="The mount host's queue, as plan files name it.")
    ],
    database: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="postgresql://user@host:port/database; else what ROLLPOINT_DATABASE says. "
            "A password belongs in PGPASSWORD or ~/.pgpass.",
        ),
    ] = "",
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Go on with the work of a worker that was on another host, which is dead. "
            "Refused while it lives.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Serve a queue until SIGTERM or Ctrl-C; the steps under way are ended first.

    A second signal ends it at once: the next worker of the queue does that step again.
    """
    from ..plans import running, working

    stop = threading.Event()

    def asked(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    former = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}

    def ready(here: Serving) -> None:
        if as_json:
            print_json(here._asdict())
        else:
            print(f"serving queue {here.queue} on host {here.host} as process {here.pid}")
        sys.stdout.flush()

    def tell(says: str) -> None:
        print(
            f"rollpoint: {printable(says or 'the database is back')}", file=sys.stderr, flush=True
        )

    try:
        where = running.settings("", database)
        working.serve(queue, where, stop, take_over=take_over, on_ready=ready, tell=tell)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
