"""What every command prints with: JSON for programs, text and tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from .. import units
from ..errors import Error, UsageError


def report_error(error: Error, *, as_json: bool) -> int:
    """Print an error to standard error and return the exit code it stands for."""
    if as_json:
        body = {
            "error": {
                "type": type(error).__name__,
                "message": error.message,
                "hint": error.hint,
            }
        }
        print(json.dumps(body), file=sys.stderr)
    else:
        print(f"rollpoint: {printable(error.message)}", file=sys.stderr)
        if error.hint:
            print(f"  -> {printable(error.hint)}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


def printable(text: str) -> str:
    """Names in it come from untrusted files: no control character reaches the terminal."""
    return units.printable(text, keep="\n")


def print_json(value: object) -> None:
    """Print one JSON document to standard output."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def print_json_list(batches: Iterable[Sequence[object]]) -> None:
    """Print one JSON array to standard output, a batch at a time."""
    before = "["
    for batch in batches:
        for item in batch:
            print(before, json.dumps(item), sep="", end="")
            before = ",\n"
    print("[]" if before == "[" else "]")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table: with rich on a terminal, tab separated in a pipe."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title or None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # a name is no markup
    Console().print(table)


@contextmanager
def progress_bar(title: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal; nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def disk_progress(title: str, quiet: bool) -> Iterator[Callable[[str, int, int], bool] | None]:
    """The same for work that goes from disk to disk, and would stop where this says False."""
    with progress_bar(title, quiet) as bar:
        if bar is None:
            yield None
            return

        def tell(_disk: str, done: int, total: int) -> bool:
            bar(done, total)
            return True

        yield tell
