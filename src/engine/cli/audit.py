"""rollpoint audit verify, audit show."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Annotated

import typer

from .. import audit as room
from .. import audit_check
from .._native import Io
from ..errors import DamagedError, LockedError, NotFoundError, UsageError
from ..replica import Replica
from ..units import format_duration
from .output import print_json, print_json_list, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..audit_check import Verdict

Place = Annotated[
    str, typer.Argument(metavar="DIR", help="The replica's directory, or a copy of its log.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="The record of who did what to a replica.", no_args_is_help=True)
    group.command("verify")(verify)
    group.command("show")(show)
    app.add_typer(group, name="audit")


def verify(
    place: Place,
    expect: Annotated[
        str | None,
        typer.Option(metavar="LINES:HASH", help="What an earlier verify said: is it there still?"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """See whether any line was altered, removed, added or moved. Then: exit 1."""
    expected = None if expect is None else _expected(expect)
    if os.path.isfile(place):
        folder, name = os.path.split(os.path.abspath(place))
        verdict = audit_check.check(
            Io.posix().open_dir(folder), None, expected=expected, name=name
        )
    else:
        with Replica.open(place) as replica:
            verdict = _verify(replica, expected)
    if as_json:
        print_json(
            {
                "ok": not verdict.problems,
                "lines": verdict.lines,
                "hash": verdict.hash,
                "problems": list(verdict.problems),
            }
        )
    else:
        for problem in verdict.problems:
            typer.echo(printable(problem))
        typer.echo(f"{verdict.lines}:{verdict.hash}")
    if verdict.problems:
        raise DamagedError(
            f"the audit log of {place} is not what was written",
            "compare it with a copy; what to think of each finding: docs/audit.md",
        )


def _expected(text: str) -> tuple[int, str]:
    lines, _, hash = text.partition(":")
    if not lines.isascii() or not lines.isdigit() or len(hash) != 64:
        raise UsageError(f"--expect {text!r} is not LINES:HASH", "as verify printed it")
    return int(lines), hash.lower()


def _verify(replica: Replica, expected: tuple[int, str] | None) -> Verdict:
    verdict = audit_check.check(replica.directory, replica.manifest.audit, expected=expected)
    if verdict.problems:
        # An operation may just be between the manifest and the log.
        with contextlib.suppress(LockedError), replica.locked() as manifest:
            verdict = audit_check.check(replica.directory, manifest.audit, expected=expected)
    return verdict


def show(
    place: Place,
    last: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="Only the last so many.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the entries, oldest first."""
    found = list(_entries(place))[-(last or 0) :]
    if as_json:
        import msgspec

        print_json_list([[msgspec.to_builtins(entry) for entry in found]])
        return
    for entry in found:
        typer.echo(printable(_line(entry)))


def _entries(place: str) -> Iterator[room.Entry]:
    """Of the file, and behind them those that only the manifest has so far."""
    if os.path.isfile(place):
        folder, name = os.path.split(os.path.abspath(place))
        yield from _parsed(room.lines(Io.posix().open_dir(folder), name))
        return
    with Replica.open(place) as replica:
        head, last = replica.manifest.audit, 0
        try:
            for entry in _parsed(room.lines(replica.directory)):
                last = entry.seq
                yield entry
        except NotFoundError:
            pass
        pending = [] if head is None else head.pending
        for entry in _parsed(line.encode() + b"\n" for line in pending):
            if entry.seq > last:
                yield entry


def _parsed(lines: Iterable[bytes]) -> Iterator[room.Entry]:
    for number, line in enumerate(lines, 1):
        parsed = audit_check.parse(line)
        if parsed is None:
            typer.echo(f"line {number} is not as it was written: audit verify", err=True)
        else:
            yield parsed.entry


def _line(entry: room.Entry) -> str:
    told = [entry.time, entry.who, entry.kind, entry.event]
    if entry.event == "outcome":
        told.append(entry.result)
    facts = [
        f"{entry.before} ->" if entry.before else "",
        f"-> {entry.after}" if entry.after else "",
        f"point {entry.point}" if entry.point is not None else "",
        f"{format_duration(entry.point_age_seconds)} old"
        if entry.point_age_seconds is not None
        else "",
        entry.says,
        entry.error,
        f"because: {entry.reason}" if entry.reason else "",
        *(f"evidence {found.kind}: {found.says}" for found in entry.evidence),
        *(f"check {row.name} {row.state}: {row.says} {row.reason}".rstrip()
          for row in entry.checks if row.state != "passed"),
    ]  # fmt: skip
    return "  ".join([*told, "; ".join(filter(None, facts))])
