"""rollpoint disk check: look for damage, and mend it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from ..check import Finding, check
from ..errors import UsageError
from .disk import AllowRoot, AsJson, File, Format
from .output import print_json, print_table


def run_check(
    file: File,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended without guessing.")
    ] = False,
    keep_backup: Annotated[
        bool, typer.Option("--keep-backup", help="Keep the old tables, as NAME.repair-kept.")
    ] = False,
    trust_primary: Annotated[
        bool,
        typer.Option(
            "--trust-primary",
            help="Give up data that only redundant tables know, and that no reader shows.",
        ),
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Unpack every compressed grain.")] = False,
    format: Format = None,
    allow_root: AllowRoot = None,
    as_json: AsJson = False,
) -> None:
    """Look for damage, and with --repair mend it. Exit code 1 where something is wrong."""
    if not repair and (keep_backup or trust_primary):
        raise UsageError("--keep-backup and --trust-primary go with --repair", "add --repair")
    if repair and deep:
        raise UsageError("--deep goes without --repair", "leave one of them out")
    if repair:
        _repair(file, format, allow_root, keep_backup, trust_primary, as_json)
        return
    found = check(file, format=format, allow_root=allow_root, deep=deep)
    if as_json:
        print_json(found)
    else:
        _print_findings(found["findings"])
        for note in found.get("notes", ()):
            typer.echo(f"note: {note}", err=True)
    if not found["clean"]:
        raise typer.Exit(1)


def _repair(
    file: str,
    format: str | None,
    allow_root: str | None,
    keep_backup: bool,
    trust_primary: bool,
    as_json: bool,
) -> None:
    from ..repair import repair

    outcome = repair(
        file,
        format=format,
        allow_root=allow_root,
        keep_backup=keep_backup,
        trust_primary=trust_primary,
    )
    if as_json:
        print_json(outcome)
    else:
        for done in outcome["done"]:
            typer.echo(f"{done['file']}: {done['count']} {done['message']}")
        for kept in outcome["kept"]:
            typer.echo(f"kept {kept}")
        _print_findings(outcome["after"])
    if not outcome["clean"]:
        raise typer.Exit(1)


def _print_findings(findings: Sequence[Finding]) -> None:
    if not findings:
        typer.echo("clean")
        return
    rows = [
        [finding["kind"], finding["file"],
         "-" if finding["position"] is None else str(finding["position"]),
         "-" if finding["guest_offset"] is None else str(finding["guest_offset"]),
         "-" if finding["length"] is None else str(finding["length"]),
         "yes" if finding["mendable"] else "no", finding["message"]]
        for finding in findings
    ]  # fmt: skip
    columns = ["kind", "file", "position", "guest offset", "length", "mendable", "what"]
    print_table(columns, rows)
