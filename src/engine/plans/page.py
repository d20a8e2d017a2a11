"""The report of a plan's run as one HTML file: nothing is loaded, no script runs.

All of it comes from the JSON report (report.py). It is as good with three replicas as with
two hundred: what is long is folded, and what failed stands before all else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..html_report import card, cards, cell, document, line, number, section, table, text
from ..units import format_duration
from . import picture
from .tables import FORWARD

Row = Mapping[str, Any]

_STYLE = """
section { overflow-x: auto; }
td.kept { white-space: nowrap; }
td.long { overflow-wrap: anywhere; min-width: 16ch; }
details summary { cursor: pointer; color: var(--soft); }
@media print { section { overflow-x: visible; } td { overflow-wrap: anywhere; }
  details::details-content { content-visibility: visible; height: auto; } }
"""
_TITLES = {"test": "Test run", "planned": "Planned failover", "unplanned": "Failover",
           "undo": "Undo", "permanent": "Making permanent", "failback": "Failback",
           "commit": "Commit of the failback"}  # fmt: skip
_LOOKS = {"done": "good", "passed": "good", "failed": "bad", "asking": "bad", "cancelled": "bad"}
_SHOWN_MAX = 40  # rows of a table that is not folded
_KEPT_MAX = 36  # letters
_UP = {"undo": "undone", "permanent": "made permanent", "failback": "failed back",
       "commit": "committed"}  # fmt: skip


def render(facts: Mapping[str, Any]) -> str:
    """The page of a JSON report."""
    run, plan = facts["run"], facts["plan"]
    title = f"{_TITLES.get(run['kind'], run['kind'])} of plan {plan['name']}"
    word = run["state"] if run["ended"] or not run["paused"] else "paused"
    until = _short(run["ended"] or run["until"])
    places = {group["name"]: place for place, group in enumerate(facts["groups"])}
    tasks = sorted(facts["tasks"], key=lambda task: places[task["group"]])
    replicas = [task for task in tasks if task["kind"] == "replica"]
    parts = [
        f"<h1>{text(title)}: "
        f'<span class="{_LOOKS.get(word, "soft")}">{text(word)}</span></h1>',
        f'<p class="soft">Run {text(run["id"])}. Begun {_short(run["begun"])} by '
        f"{text(run['who'])} on {text(run['host'])}, "
        f"{'ended' if run['ended'] else 'going on at'} {until} (all times are UTC)</p>",
        line("Because", run["reason"]),
        line("It ends what was begun by run", run["of"]),
        cards(_figures(facts)),
        section("What failed", _failures(tasks)),
        section("Timeline", picture.draw(facts)),
        section("Groups", _groups(facts["groups"], _UP.get(run["kind"], "up"))),
        section("Replicas", _replicas(replicas, run["kind"] in FORWARD)),
        section("Gates", _parts(tasks, "gate")),
        section("Scripts", _parts(tasks, "script")),
        section("Evidence that the sources are fenced", _evidence(replicas)),
        section("Checks", _checks(replicas)),
        section("What people decided", _words(facts["words"])),
        section("Record of each replica", _record(replicas)),
        section("Record of the run", _run(facts)),
    ]
    return document(title, parts, _STYLE + picture.STYLE)


# ---- figures ----


def _figures(facts: Row) -> Iterable[str]:
    run, totals, rto, rpo = facts["run"], facts["totals"], facts["rto"], facts["rpo"]
    forward = run["kind"] in FORWARD
    left = [
        f"{totals[key]} {name}"
        for key, name in (("failed", "failed"), ("skipped", "skipped"), ("other", "not begun"))
        if totals[key]
    ]
    yield card(
        f"Replicas {_UP.get(run['kind'], 'up')}",
        f"{totals['up']} of {totals['replicas']}",
        ", ".join(left) or "all of them",
        "bad" if totals["failed"] else "",
    )
    if forward:
        missing = f"{rto['missing_replicas']} are not up; " if rto["missing_replicas"] else ""
        yield card(
            "Time to recover (RTO)",
            _duration(rto["seconds"], "none is up"),
            f"{missing}until the last one was up. {_target(rto)}",
            _met(rto["met"]),
        )
        unknown = f"of {rpo['unknown']} it is not known; " if rpo["unknown"] else ""
        worst = f"{unknown}the worst is {rpo['worst']}. " if rpo["worst"] else ""
        yield card(
            "Data lost (RPO)",
            _duration(rpo["seconds"], "not known"),
            f"{worst}{_target(rpo)}",
            _met(rpo["met"]),
        )
    yield card(
        "The run took",
        format_duration(run["seconds"]),
        f"from begin to end{_again(run['reopened'])}",
    )
    if totals["gates"]:
        yield card("Gates passed", f"{totals['gates_passed']} of {totals['gates']}", "in all tries")


def _again(reopened: int) -> str:
    if not reopened:
        return ""
    return f", opened again {'once' if reopened == 1 else f'{reopened} times'}"


def _duration(seconds: float | None, without: str = "") -> str:
    return without if seconds is None else format_duration(seconds)


def _met(met: bool | None) -> str:
    return "" if met is None else ("good" if met else "bad")


def _target(measured: Row) -> str:
    if measured["target_seconds"] is None:
        return "No target"
    word = {True: "met", False: "missed", None: "not measured"}[measured["met"]]
    return f"Target {format_duration(measured['target_seconds'])}: {word}"


def _measured(row: Row | None) -> str:
    """A cell: the time, and where it was too long, what it should have been."""
    if row is None or (row["seconds"] is None and row["met"] is None):
        return number("")
    told = _duration(row["seconds"], "none")
    if row["met"] is False:
        told += f" (target {format_duration(row['target_seconds'])})"
    return number(told, _met(row["met"]))


# ---- tables ----


def _folded(shown: str, rows: int, told: str) -> str:
    """What is long is shown when asked for, and printed."""
    if not shown:
        return ""
    if rows <= _SHOWN_MAX:
        return shown
    return f"<details>\n<summary>{text(told)}</summary>\n{shown}\n</details>"


def _named(task: Row) -> str:
    """Whose row it is: on one line, unless it would take half of the page."""
    return _name(task["key"])


def _name(name: str) -> str:
    return cell(name, "kept" if len(name) <= _KEPT_MAX else "long")


def _short(time: str | None) -> str:
    """A moment to the second, UTC; the JSON report has all of it."""
    return f"{time[:10]} {time[11:19]}" if time else ""


def _failures(tasks: Sequence[Row]) -> str:
    rows = [
        (
            _named(task),
            number(attempt["attempt"]),
            cell(_short(attempt["ended"]), "kept"),
            cell(attempt["at"]),
            cell(attempt["error"], "bad"),
            cell(attempt["hint"]),
            cell(_since(task, attempt)),
        )
        for task in tasks
        for attempt in task["attempts"]
        if attempt["state"] == "failed"
    ]
    head = ("Task", "Try", "When", "At", "What went wrong", "What helps", "Then")
    return table(head, rows)


def _since(task: Row, attempt: Row) -> str:
    """What has become of the task since that attempt failed."""
    if attempt is not task["attempts"][-1]:
        return "tried again"
    return "waits for a word" if task["state"] == "asking" else str(task["state"])


def _groups(groups: Sequence[Row], up: str) -> str:
    return table(
        ("Group", "After", up.capitalize(), "Failed", "Skipped", "Begun", "Time", "Targets missed"),
        (
            (
                _name(group["name"]),
                cell(", ".join(group["after"])),
                number(f"{group['up']} of {group['replicas']}"),
                number(group["failed"] or "", "bad"),
                number(group["skipped"] or ""),
                cell(_short(group["begun"]) or "not begun", "kept"),
                number(_duration(group["seconds"])),
                number(group["missed_targets"] or "", "bad"),
            )
            for group in groups
        ),
    )


def _replicas(replicas: Sequence[Row], forward: bool) -> str:
    head = ("Restore point", "RPO", "RTO") if forward else ("Time",)
    return table(
        ("Replica", "", "Host", *head, "Tries"),
        (
            (
                _named(task),
                cell(task["state"], _LOOKS.get(task["state"], "soft")),
                cell(task["host"]),
                *((cell(_point(task)), _measured(task["rpo"])) if forward else ()),
                _measured(task["rto"]),
                number(len(task["attempts"])),
            )
            for task in replicas
        ),
    )


def _point(task: Row) -> str:
    outcome = task["outcome"] or {}
    if outcome.get("point") is None:
        return ""
    return f"{outcome['point']}, {_short(outcome.get('point_time'))}".removesuffix(", ")


def _parts(tasks: Sequence[Row], kind: str) -> str:
    found = [
        (task, attempt, part)
        for task in tasks
        for attempt in task["attempts"]
        for part in attempt["parts"]
        if part["part"] == kind
    ]
    good = sum(part["state"] in ("passed", "done") for _, _, part in found)
    shown = table(
        ("Task", "Try", kind.capitalize(), "", "Looks" if kind == "gate" else "Exit",
         "Time", "What was seen"),
        (
            (
                _named(task),
                number(attempt["attempt"]),
                cell(part["name"]),
                cell(part["state"], _LOOKS.get(part["state"], "soft")),
                number(_known(part.get("tries") if kind == "gate" else part.get("exit"))),
                number(_duration(part.get("seconds"))),
                _said(part.get("says") or ""),
            )
            for task, attempt, part in found
        ),
    )  # fmt: skip
    return _folded(shown, len(found), f"{len(found)} {kind}s, {good} of them passed")


def _said(says: str) -> str:
    """What a script wrote, line by line."""
    return f"<td>{'<br>'.join(text(row) for row in says.strip().splitlines())}</td>"


def _known(value: object) -> object:
    return "" if value is None else value


def _outcomes(replicas: Sequence[Row], name: str) -> list[tuple[Row, Row]]:
    return [
        (task, row) for task in replicas for row in (task["outcome"] or {}).get(name) or []
    ]


def _evidence(replicas: Sequence[Row]) -> str:
    found = _outcomes(replicas, "evidence")
    shown = table(
        ("Replica", "Kind", "Seen at", "By", "What was seen"),
        (
            (_named(task), *(cell(row.get(name) or "") for name in
             ("kind", "time", "source", "says")))
            for task, row in found
        ),
    )  # fmt: skip
    return _folded(shown, len(found), f"{len(found)} pieces of evidence")


def _checks(replicas: Sequence[Row]) -> str:
    found = _outcomes(replicas, "checks")
    looks = {"passed": "good", "failed": "bad", "skipped": "bad"}
    words = [str(row.get("state")) for _, row in found]
    shown = table(
        ("Replica", "Check", "", "What was found", "Skipped because"),
        (
            (
                _named(task),
                cell(row.get("name") or ""),
                cell(row.get("state") or "", looks.get(row.get("state") or "", "")),
                cell(row.get("says") or ""),
                cell(row.get("reason") or ""),
            )
            for task, row in found
        ),
    )
    told = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    return _folded(shown, len(found), f"{len(found)} checks: {told}")


def _words(words: Sequence[Row]) -> str:
    return table(
        ("When", "What", "Of", "Who", "Because"),
        (
            (
                cell(_short(row["time"]), "kept"),
                cell(row["kind"]),
                cell(row["key"] or "the run"),
                cell(f"{row.get('who') or ''} on {row.get('host') or ''}".removesuffix(" on ")),
                cell(row.get("reason") or ""),
            )
            for row in words
        ),
    )


def _record(replicas: Sequence[Row]) -> str:
    rows = []
    for task in replicas:
        outcome = task["outcome"]
        if not outcome:
            continue
        log = outcome.get("audit") or {}
        head = f"{log['lines']}:{log['hash']}" if log else ""
        rows.append((
            _named(task),
            cell(outcome.get("state") or ""),
            f"<td><code>{text(outcome.get('operation') or '')}</code></td>",
            f"<td><code>{text(head)}</code></td>",
        ))  # fmt: skip
    shown = table(("Replica", "State", "Operation", "Audit log"), rows)
    told = "rollpoint audit verify DIR --expect says whether a replica's log still has that line."
    return shown + (f'\n<p class="soft">{text(told)}</p>' if rows else "")


def _run(facts: Row) -> str:
    run, plan = facts["run"], facts["plan"]
    hosts = dict.fromkeys(
        f"{attempt['host']} (queue {task['queue']})" if task["queue"] else str(attempt["host"])
        for task in facts["tasks"]
        for attempt in task["attempts"]
        if attempt["host"]
    )
    skipped = ", ".join(f"{name} ({why})" for name, why in run["skip"].items())
    rows = [
        ("Plan", plan["path"]),
        ("Run", run["id"]),
        ("Done on", ", ".join(hosts)),
        ("Checks left out", skipped),
        ("Written", f"{facts['written']} on {facts['host']}"),
    ]
    return table(
        ("", ""),
        ((cell(name), f"<td><code>{text(value)}</code></td>") for name, value in rows if value),
    )
