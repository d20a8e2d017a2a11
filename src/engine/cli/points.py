"""rollpoint points."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from .. import timeline
from ..manifest import Gap
from ..replica import Replica
from ..timeline import Bucket, Entry, Timeline
from ..units import format_duration, format_size, format_time
from .output import print_json, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

BUCKETS_MAX = 24
EACH_MAX = 20  # so many points are listed one by one
NOTABLE_MAX = 15
GAPS_MAX = 8
BAR_CELLS = 14
EIGHTHS = " ▏▎▍▌▋▊▉█"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("points")(points)


def points(
    directories: Annotated[
        list[str],
        typer.Argument(metavar="DIR…", help="A replica; of several, the points at one cut."),
    ],
    as_json: AsJson = False,
) -> None:
    """Show restore points and gaps over time, and how far back a failover would go now.

    On a terminal a picture of them; in a pipe a line for each point (id, time, kind,
    label, bytes written since the one before, what was said about it), then the gaps.
    """
    if len(directories) > 1:
        _common(directories, as_json)
        return
    with Replica.open(directories[0]) as replica:
        found = timeline.of(replica)
        rpo: dict[str, Any] = replica.rpo(found.points)
        if as_json:
            print_json(
                {
                    "points": [entry.to_json() for entry in found.entries],
                    "gaps": [msgspec.to_builtins(gap) for gap in found.gaps],
                    "rpo": rpo,
                }
            )
        elif sys.stdout.isatty():
            from rich.console import Console

            show(Console(), replica.name, found, rpo)
        else:
            _list(found, rpo)


# ---- in a pipe ----


def _list(found: Timeline, rpo: dict[str, Any]) -> None:
    for entry in found.entries:
        point, written = entry.point, entry.written_bytes
        cells = [str(point.id), point.time, point.kind, point.label,
                 "" if written is None else str(written), ", ".join(entry.marks)]  # fmt: skip
        print("\t".join(printable(cell) for cell in cells))
    for gap in found.gaps:
        print(_gap_text(gap))
    for line in _rpo_lines(rpo):
        print(line)


def _gap_text(gap: Gap) -> str:
    return f"gap from {gap.start} to {gap.end or 'now'}: {printable(gap.cause)}"


def _rpo_lines(rpo: dict[str, Any]) -> list[str]:
    lines = []
    if rpo["lag_seconds"] is not None:
        lines.append(f"a failover now would go back {format_duration(rpo['lag_seconds'])}")
    recent = rpo["group"]["recent"]
    if recent["points"]:
        told = ", ".join(
            f"{name} {format_duration(recent[f'{name}_seconds'])}" for name in ("p50", "p99", "max")
        )
        lines.append(
            f"lag of the last {recent['points']} points: {told}; "
            f"max ever {format_duration(rpo['group']['max_seconds'])}"
        )
    if rpo["target_seconds"] is not None:
        target = format_duration(rpo["target_seconds"])
        lines.append(f"a point every {target} was asked for, and missed {rpo['missed']} times")
    return lines


# ---- on a terminal ----


def show(console: Console, name: str, found: Timeline, rpo: dict[str, Any]) -> None:
    """Draw it, in as many lines for fifty thousand points as for fifty."""
    entries = found.entries
    journal = [entry for entry in entries if not entry.point.long_term]
    head = f"{name}: {len(entries)} restore points"
    if len(entries) > len(journal):
        head += f", {len(entries) - len(journal)} of them long-term"
    console.print(head, style="bold", markup=False, highlight=False)
    if len(journal) > EACH_MAX:
        console.print(_picture(console, timeline.buckets(entries, found.gaps, BUCKETS_MAX)))
        notable = [entry for entry in entries if entry.is_notable]
    else:
        notable = list(entries)
    if notable:
        _more(console, len(notable) - NOTABLE_MAX, "earlier ones: --json lists them all")
        console.print(_table(console, notable[-NOTABLE_MAX:]))
    _more(console, len(found.gaps) - GAPS_MAX, "earlier gaps: --json lists them all")
    for gap in found.gaps[-GAPS_MAX:]:
        style = "red" if gap.end is None else "yellow"
        console.print(_gap_text(gap), style=style, markup=False, highlight=False)
    for line in _rpo_lines(rpo):
        console.print(line, markup=False, highlight=False)


def _more(console: Console, count: int, what: str) -> None:
    if count > 0:
        console.print(f"… and {count} {what}", style="dim", markup=False, highlight=False)


def _grid(console: Console, *columns: tuple[str, int]) -> Table:
    """A table without lines: (title, cells), numbers to the right where cells is below 0.

    What is left of the terminal's width is a last column, for words.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    left = console.width
    for title, cells in columns:
        table.add_column(title, justify="right" if cells < 0 else "left", no_wrap=True,
                         width=abs(cells))  # fmt: skip
        left -= abs(cells) + 1
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=max(1, left))
    return table


def _picture(console: Console, rows: Sequence[Bucket]) -> Table:
    from rich.text import Text

    several_days = format_time(rows[0].start_ns)[:10] != format_time(rows[-1].start_ns)[:10]
    highest = max((row.rate or 0.0 for row in rows), default=0.0)
    table = _grid(
        console, ("from (UTC)", 11), ("written", BAR_CELLS), ("a second", -10), ("points", -6)
    )
    for row in rows:
        rate = row.rate
        moment = format_time(row.start_ns)
        table.add_row(
            Text(moment[5:16].replace("T", " ") if several_days else moment[11:19]),
            Text(_bar(rate or 0.0, highest, console.encoding), style="cyan"),
            Text("" if rate is None else format_size(round(rate))),
            Text(str(len(row.entries)) if row.entries else "-"),
            _remarks(row),
        )
    return table


def _remarks(row: Bucket) -> Any:
    """A gap, and the marks of the bucket's points: what is cut off stands in the table below."""
    from rich.text import Text

    text = Text("gap " if row.gap else "", style="red")
    app = sum(entry.point.kind == "app" for entry in row.entries)
    if app:
        text.append(f"{app} app ", style="green")
    words = [" ".join([*entry.marks, entry.point.label]) for entry in row.entries]
    told = [printable(word.strip()) for word in words if word.strip()]
    if told:
        rest = f" +{len(told) - 2}" if len(told) > 2 else ""
        text.append("; ".join(told[:2]) + rest, style="yellow")
    return text


def _bar(rate: float, highest: float, encoding: str) -> str:
    eighths = round(rate / highest * BAR_CELLS * 8) if highest else 0
    if rate and not eighths:
        eighths = 1  # something is not nothing
    if "utf" not in encoding:
        return "#" * -(-eighths // 8)
    full, part = divmod(eighths, 8)
    return EIGHTHS[8] * full + (EIGHTHS[part] if part else "")


def _table(console: Console, entries: Sequence[Entry]) -> Table:
    from rich.text import Text

    digits = max(len(str(entry.point.id)) for entry in entries)
    table = _grid(console, ("id", -max(2, digits)), ("time", 27), ("kind", 5), ("written", -10))
    for entry in entries:
        point, written = entry.point, entry.written_bytes
        words = ", ".join([*entry.marks, *([point.label] if point.label else [])])
        table.add_row(
            Text(str(point.id)),
            Text(point.time),
            Text(point.kind, style="green" if point.kind == "app" else ""),
            Text("" if written is None else format_size(written)),
            Text(printable(words), style="yellow"),
        )
    return table


# ---- of several replicas ----


def _common(directories: Sequence[str], as_json: bool) -> None:
    from .. import groups

    with contextlib.ExitStack() as stack:
        replicas = [stack.enter_context(Replica.open(path)) for path in directories]
        found = groups.common(replicas)
        if as_json:
            rows = [
                {
                    "group": one.group,
                    "time": one.points[0].time,
                    "kind": one.points[0].kind,
                    "label": one.points[0].label,
                    "points": [
                        {"path": replica.path, "id": point.id}
                        for replica, point in zip(replicas, one.points, strict=True)
                    ],
                }
                for one in found
            ]
            print_json({"groups": rows})
            return
        for one in found:
            point = one.points[0]
            ids = " ".join(str(each.id) for each in one.points)
            print("\t".join([point.time, point.kind, printable(point.label), ids]))
