"""The report of an operation as one HTML file: nothing is loaded, no script runs.

All of it comes from the JSON report (operation_report.py). Every text is escaped, for names,
reasons and consoles are other people's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .units import format_duration, format_size, printable

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #5b6470; --line: #d6dae0;
  --page: #ffffff; --card: #f5f6f8; --bar: #3366b8; --good: #1d7a46; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a2aab5;
  --line: #3b424c; --page: #15181c; --card: #1e2228; --bar: #7aa7f0; --good: #6fce97;
  --bad: #ff8a80; } }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --card: #fff;
  --bar: #3366b8; --good: #1d7a46; --bad: #b3261e; } body { max-width: none; }
  section, tr { break-inside: avoid; } }
* { box-sizing: border-box; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1.25rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1, p, .figures div { overflow-wrap: anywhere; min-width: 0; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr));
  gap: .75rem; margin: 1.25rem 0; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .7rem .9rem; }
.figures b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.figures small { color: var(--soft); display: block; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 600; } td.number { font-variant-numeric: tabular-nums;
  white-space: nowrap; text-align: right; padding-right: 1.2rem; }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg .soft { fill: var(--soft); } svg .grid { stroke: var(--line); }
svg .bar { fill: var(--bar); } svg .bar.failed { fill: var(--bad); }
""".strip()

_KINDS = {
    "repoint": "change of the restore point",
    "switch": "switch of the failback",
    "commit failback": "commit of the failback",
    "undo failback": "undo of the failback",
    "test": "test failover",
    "undo test": "end of a test failover",
}
_LOOKS = {"done": "good", "rolled back": "bad", "failed": "bad"}
NAME_MAX = 18  # characters of a step's name beside its bar; the table has all of it
_LEFT, _WIDTH, _RIGHT, _ROW = 120, 560, 120, 26
_PAUSES = 20  # where the whole took so many times what its steps took, pauses are left out


def text(value: object) -> str:
    """A value as text of the page: nothing in it is markup, or invisible."""
    return escape(printable(str(value)), quote=True)


def render(facts: Mapping[str, Any]) -> str:
    """The page of a JSON report."""
    operation, replica = facts["operation"], facts["replica"]
    word = operation["outcome"]
    look = _LOOKS.get(word, "soft")
    kind = _KINDS.get(operation["kind"], operation["kind"])
    if operation["planned"]:
        kind = f"planned {kind}"
    title = f"{kind} of {replica['name']}"
    parts = [
        f"<h1>{text(title[:1].upper() + title[1:])}: "
        f'<span class="{look}">{text(word)}</span></h1>',
        f'<p class="soft">Begun {text(operation["started"])} by {text(operation["who"])}, '
        f"ended {text(facts['ended'] or 'before its first step')}, on {text(facts['host'])}</p>",
        line("Because", operation["reason"]),
        line("What went wrong", operation["error"], "bad"),
        _figures(facts, operation),
        section("Timeline", _timeline(operation["steps"])),
        section("Steps", _steps(operation["steps"])),
        section("Checks", _checks(operation)),
        section("Evidence that the source is fenced", _evidence(operation["evidence"])),
        section("Comparison of source and replica", _cut(operation["cut"])),
        section("What was sent", _failback(facts["failback"])),
        section("Record", _record(facts, operation)),
    ]
    return document(title, parts)


def document(title: str, parts: Iterable[str], style: str = "") -> str:
    """A whole page of parts that are markup already. Nothing is loaded, no script runs.

    Args:
        style: Rules beside those that all pages have.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>\n{STYLE}{style}\n</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body>\n</html>\n"
    )


def line(name: str, value: str | None, look: str = "") -> str:
    """A line of text under a name, where there is any."""
    return f'<p class="{look}"><b>{text(name)}:</b> {text(value)}</p>' if value else ""


def section(title: str, body: str) -> str:
    """A part of the page under its title, where there is anything in it."""
    return f"<section>\n<h2>{text(title)}</h2>\n{body}\n</section>" if body else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are markup already."""
    lines = ["<tr>" + "".join(row) + "</tr>" for row in rows]
    if not lines:
        return ""
    names = "".join(f"<th>{text(name)}</th>" for name in head)
    head_row = f"<thead><tr>{names}</tr></thead>" if any(head) else ""
    return "\n".join(("<table>", head_row, "<tbody>", *lines, "</tbody>", "</table>"))


def cell(value: object, look: str = "") -> str:
    """A cell of a table: good, bad, soft, or as all others."""
    return f'<td class="{look}">{text(value)}</td>' if look else f"<td>{text(value)}</td>"


def number(value: object, look: str = "") -> str:
    return f'<td class="{f"number {look}".strip()}">{text(value)}</td>'


def card(name: str, value: object, told: str, look: str = "") -> str:
    """A figure that is to be seen first."""
    return (
        f'<div>{text(name)}<b class="{look}">{text(value)}</b><small>{text(told)}</small></div>'
    )


def cards(all_of_them: Iterable[str]) -> str:
    return '<div class="figures">\n' + "\n".join(all_of_them) + "\n</div>"


def _figures(facts: Mapping[str, Any], operation: Mapping[str, Any]) -> str:
    rows = []
    if operation["rpo_seconds"] is not None:
        told = operation["rpo_says"]
        most = "at most " if told.startswith("at most: ") else ""
        lost = format_duration(operation["rpo_seconds"])
        rows.append(card("Data lost (RPO)", f"{most}{lost}", told.removeprefix("at most: ")))
    if operation["rto_seconds"] is not None:
        took = format_duration(operation["rto_seconds"])
        since = "from the command until the machine was on"
        rows.append(card("Time to recover (RTO)", took, since))
    if operation["point"] is not None:
        age = facts["point_age_seconds"]
        old = "" if age is None else f", {format_duration(age)} old when it began"
        rows.append(card("Restore point", operation["point"], f"{operation['point_time']}{old}"))
    if operation["seconds"] is not None:
        rows.append(card("Steps took", format_duration(operation["seconds"]), "all together"))
    rows.append(card("State", facts["state"]["after"], f"was {facts['state']['before']}"))
    return cards(rows)


def _timeline(steps: Sequence[Mapping[str, Any]]) -> str:
    """A bar for each step that ran, on one axis of time."""
    ran = [step for step in steps if step["started_ns"] is not None]
    if not ran:
        return ""
    taken = [step["seconds"] or 0.0 for step in ran]
    first = ran[0]["started_ns"]
    begins = [max(0.0, (step["started_ns"] - first) / 1e9) for step in ran]
    whole = max(begin + seconds for begin, seconds in zip(begins, taken, strict=True))
    note = ""
    if whole > _PAUSES * max(sum(taken), 1e-9):
        begins = [sum(taken[:number]) for number in range(len(ran))]
        note = f"It was resumed: {format_duration(whole)} passed in all; pauses are not drawn."
        whole = sum(taken)
    whole = max(whole, 1e-9)
    height = _ROW * len(ran) + 28
    rows = [_grid(whole, height)]
    for number, step in enumerate(ran):
        top = _ROW * number + 24
        left = _LEFT + begins[number] / whole * _WIDTH
        width = max(2.0, taken[number] / whole * _WIDTH)
        failed = " failed" if step["state"] == "failed" else ""
        told = format_duration(taken[number]) + (", failed" if failed else "")
        rows.append(
            f'<text x="0" y="{top + 13}">{text(step["name"][:NAME_MAX])}</text>'
            f'<rect class="bar{failed}" x="{left:.1f}" y="{top}" width="{width:.1f}" '
            f'height="16" rx="2"></rect>'
            f'<text class="soft" x="{min(left + width, _LEFT + _WIDTH) + 6:.1f}" '
            f'y="{top + 13}">{text(told)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {_LEFT + _WIDTH + _RIGHT} {height}" role="img">'
        f"<title>When each step ran, and for how long</title>\n" + "\n".join(rows) + "\n</svg>"
        + (f'<p class="soft">{text(note)}</p>' if note else "")
    )


def _grid(whole: float, height: int) -> str:
    lines = []
    for part in range(5):
        x = _LEFT + _WIDTH * part / 4
        lines.append(
            f'<line class="grid" x1="{x:.1f}" y1="18" x2="{x:.1f}" y2="{height}"></line>'
            f'<text class="soft" x="{x:.1f}" y="12" text-anchor="middle">'
            f"{text(format_duration(whole * part / 4))}</text>"
        )
    return "\n".join(lines)


def _steps(steps: Sequence[Mapping[str, Any]]) -> str:
    return table(
        ("Step", "", "Time", "What came of it"),
        (
            (
                cell(step["name"]),
                cell(step["state"]),
                number("" if step["seconds"] is None else format_duration(step["seconds"])),
                cell(step["note"]),
            )
            for step in steps
        ),
    )


def _checks(operation: Mapping[str, Any]) -> str:
    looks = {"passed": "good", "failed": "bad", "skipped": "bad"}
    return table(
        ("Check", "", "What was found", "Skipped because"),
        (
            (
                cell(check["name"]),
                f'<td class="{looks.get(check["state"], "")}">{text(check["state"])}</td>',
                cell(check["says"]),
                cell(check["reason"]),
            )
            for check in operation["checks"]
        ),
    )


def _evidence(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(
        ("Kind", "Seen at", "By", "What was seen"),
        (
            (cell(row["kind"]), cell(row["time"]), cell(row["source"]), cell(row["says"]))
            for row in rows
        ),
    )


def _cut(cut: Mapping[str, Any] | None) -> str:
    if cut is None or not cut["digests"]:
        return ""
    shown = table(
        ("Disk", "XXH3-128 of both sides", "Where the source's was read"),
        (
            (cell(disk), f"<td><code>{text(digest)}</code></td>", cell(cut["sources"].get(disk)))
            for disk, digest in cut["digests"].items()
        ),
    )
    return f"<p>At restore point {text(cut['point'])} they were the same.</p>\n{shown}"


def _failback(going_on: Mapping[str, Any] | None) -> str:
    """Where each disk was sent, and how much of it."""
    if going_on is None:
        return ""
    return table(
        ("Disk", "To", "Sent", "Read", "Compared, because"),
        (
            (
                cell(disk),
                cell(f"{target['place']} ({target['kind']})"),
                number(format_size(target["sent_bytes"])),
                number(format_size(target["read_bytes"])),
                cell(target["lineage"] or "not needed: it was known what it has"),
            )
            for disk, target in going_on["targets"].items()
        ),
    )


def _record(facts: Mapping[str, Any], operation: Mapping[str, Any]) -> str:
    replica, log = facts["replica"], facts["audit"]
    rows = [
        ("Operation", operation["id"]),
        ("Replica", f"{replica['name']}, {replica['id']}, epoch {replica['epoch']}"),
        ("Disks", ", ".join(
            f"{disk['name']} ({format_size(disk['size_bytes'])})" for disk in facts["disks"]
        )),
        ("Audit log", "" if log is None else f"{log['lines']}:{log['hash']}"),
        ("Written", facts["written"]),
    ]  # fmt: skip
    shown = table(
        ("", ""),
        ((cell(name), f"<td><code>{text(value)}</code></td>") for name, value in rows if value),
    )
    told = "rollpoint audit verify DIR --expect says whether the log still has that line."
    return shown + (f'\n<p class="soft">{text(told)}</p>' if log is not None else "")

