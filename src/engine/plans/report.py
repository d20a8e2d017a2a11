"""What a run of a plan came to, for people and programs: RUN.json and RUN.html.

Made of the run's events and nothing else, so that it can be written again at any time, by
whoever has the database. Bytes: docs/formats.md, "Report of a plan's run".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from .._native import Io
from ..operation_report import file_name
from ..points import now_text
from ..units import format_time, parse_duration, parse_time
from .events import Event, NodeState, RunState
from .shape import Node, Spec
from .tables import FORWARD

FORMAT = "rollpoint-plan-run"
VERSION = 1
WORDS = ("paused", "continued", "cancelled", "reopened", "retry", "skip")  # people's
_ENDS = ("done", "failed")

Facts = dict[str, Any]
Row = dict[str, Any]


def write(state: RunState, events: Iterable[Event], folder: str) -> tuple[str, str]:
    """Write both files, each replaced whole. Their paths: JSON and HTML.

    Raises:
        Error: They cannot be written.
    """
    from . import page

    told = facts(state, events)
    shown = page.render(told)
    data = msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n"
    names = [file_name(state.spec.run, ending) for ending in ("json", "html")]
    place = Io.posix().open_dir(folder)
    try:
        for name, content in zip(names, (data, shown.encode()), strict=True):
            place.replace(name, content)
    finally:
        place.close()
    return os.path.join(folder, names[0]), os.path.join(folder, names[1])


def facts(state: RunState, events: Iterable[Event]) -> Facts:
    """The JSON report of a run, ended or not.

    Args:
        events: All of the run, in order.
    """
    spec = state.spec
    told = list(events)
    attempts = _attempts(told)
    tasks = [_task(state, node, attempts.get(key, {})) for key, node in spec.shape.nodes.items()]
    until = state.ended or (told[-1].time if told else state.begun)
    return {
        "format": FORMAT,
        "version": VERSION,
        "written": now_text(),
        "host": os.uname().nodename,
        "plan": {
            "name": spec.plan.name,
            "path": spec.plan_path,
            "rpo_target_seconds": _target(spec, spec.plan.rpo_target),
            "rto_target_seconds": _target(spec, spec.plan.rto_target),
        },
        "run": {
            "id": spec.run,
            "kind": spec.kind,
            "of": spec.of,
            "state": state.state,
            "begun": state.begun,
            "ended": state.ended or None,
            "until": until,
            "seconds": between(state.begun, until),
            "who": spec.who,
            "host": spec.host,
            "reason": spec.reason,
            "skip": spec.skip,
            "reopened": state.reopened,
            "paused": state.paused,
            "asked_to_cancel": state.asked_to_cancel,
        },
        "totals": _totals(tasks),
        "rto": _whole_rto(state, tasks),
        "rpo": _whole_rpo(spec, tasks),
        "groups": _groups(spec, tasks),
        "tasks": tasks,
        "words": [
            {"time": event.time, "kind": event.kind, "key": event.key, **event.data}
            for event in told
            if event.kind in WORDS
        ],
        "workers": [{"time": event.time, **event.data} for event in told if event.kind == "worker"],
    }


def between(begin: str, end: str) -> float:
    """Seconds between two moments; 0 where clocks of two hosts disagree."""
    return max(0, parse_time(end) - parse_time(begin)) / 1e9


def _target(spec: Spec, text: str) -> float | None:
    """Seconds; None: nothing is measured against it, as in runs that end another one."""
    return parse_duration(text) if text and spec.kind in FORWARD else None


# ---- attempts, with all that their events say ----


def _attempts(events: Sequence[Event]) -> dict[str, dict[int, Row]]:
    """Of each task: attempt -> what happened in it. State keeps but the newest.

    As events.fold has it, what is told late, of an attempt that has ended or was given up, is
    not part of the run.
    """
    found: dict[str, dict[int, Row]] = {}
    for event in events:
        if not event.key or event.kind in WORDS:
            continue
        rows = found.setdefault(event.key, {})
        newest = max(rows, default=0)
        if event.kind == "queued" and event.attempt > newest:
            rows[event.attempt] = _attempt(event.attempt)
            newest = event.attempt
        if event.attempt == newest and newest and rows[newest]["state"] in ("queued", "running"):
            _follow(rows[newest], event)
    return found


def _attempt(number: int) -> Row:
    return {
        "attempt": number, "state": "queued", "host": "", "queued": None, "started": None,
        "ended": None, "at": "", "error": "", "hint": "", "parts": [],
    }  # fmt: skip


def _follow(row: Row, event: Event) -> None:
    data = event.data
    if event.kind == "queued":
        row["queued"] = row["queued"] or event.time
    elif event.kind == "started":
        row["state"], row["host"] = "running", data.get("host", "")
        row["started"] = row["started"] or event.time
    elif event.kind in ("script", "gate"):
        _part(row["parts"], event.kind, event.time, data)
    elif event.kind == "operation":
        whole = {"name": "operation", "state": "done", "seconds": data.get("seconds")}
        _part(row["parts"], "operation", event.time, whole)
    elif event.kind in _ENDS:
        row["state"], row["ended"] = event.kind, event.time
        row["at"], row["error"] = data.get("at", ""), data.get("error", "")
        row["hint"] = data.get("hint", "")
        if row["at"] and row["at"] not in {part["name"] for part in row["parts"]}:
            part = "operation" if data.get("operation_failed") else "script"
            _part(row["parts"], part, event.time, {"name": row["at"], "state": "failed"})
            row["parts"][-1]["begun"] = _previous(row) or event.time


def _previous(row: Row) -> str | None:
    """When the part before the last one ended, or the attempt began."""
    ends = [part["ended"] for part in row["parts"][:-1] if part["ended"]]
    began: str | None = row["started"]
    return max(ends, default=began)


def _part(parts: list[Row], part: str, time: str, data: Mapping[str, Any]) -> None:
    """A script, operation or gate: from when to when, and what came of it."""
    row = next((row for row in parts if (row["part"], row["name"]) == (part, data["name"])), None)
    if row is None:
        row = {"part": part, "name": data["name"], "begun": time, "ended": None}
        parts.append(row)
    row |= {key: value for key, value in data.items() if key != "name"}
    if data.get("state") == "looking":
        return
    row["ended"] = time
    if part != "gate" and data.get("seconds") is not None:
        row["begun"] = _earlier(time, data["seconds"])


def _earlier(time: str, seconds: float) -> str:
    return format_time(parse_time(time) - int(seconds * 1e9))


# ---- tasks ----


def _task(state: RunState, node: Node, attempts: dict[int, Row]) -> Row:
    spec, now = state.spec, state.nodes[node.key]
    rows = [attempts[number] for number in sorted(attempts)]
    for row in rows:
        _clip(row)
        if row["ended"] is None and row["attempt"] < now.attempt:
            row["state"] = "given up"
    return {
        "key": node.key,
        "group": node.group,
        "kind": node.kind,
        "name": node.name,
        "directory": node.directory,
        "queue": node.queue,
        "host": now.host,
        "asked_point": node.point if node.kind == "replica" else "",
        "state": now.state,
        "stage": now.stage,
        "error": now.error,
        "hint": now.hint,
        "first_started": now.first_started or None,
        "ended": now.ended or None,
        "rpo": _task_rpo(spec, node, now) if node.kind == "replica" else None,
        "rto": _task_rto(state, node, now) if node.kind == "replica" else None,
        "attempts": rows,
        "outcome": now.outcome,
    }


def _clip(row: Row) -> None:
    """No part of an attempt begins before it: an operation that was asked for again has all
    the seconds that it took."""
    for part in row["parts"]:
        if row["started"] is not None:
            part["begun"] = max(part["begun"], row["started"])


def _task_rpo(spec: Spec, node: Node, now: NodeState) -> Row:
    outcome = now.outcome or {}
    target = _target(spec, _group_text(spec, node, "rpo_target") or spec.plan.rpo_target)
    seconds = outcome.get("rpo_seconds")
    met = None if seconds is None or target is None else seconds <= target
    return {
        "seconds": seconds,
        "says": outcome.get("rpo_says", ""),
        "target_seconds": target,
        "met": met,
    }


def _task_rto(state: RunState, node: Node, now: NodeState) -> Row:
    """seconds: from the first attempt's start until the replica was up, with its gates, its
    scripts and what failed before; operation_seconds: of that the operation's own."""
    outcome = now.outcome or {}
    target = _target(state.spec, _group_text(state.spec, node, "rto_target"))
    up = now.state == "done"
    seconds = between(now.first_started, now.ended) if up and now.first_started else None
    met: bool | None = None
    if target is not None:
        if seconds is not None:
            met = seconds <= target
        elif now.state == "failed":
            met = False
    return {
        "seconds": seconds,
        "operation_seconds": outcome.get("rto_seconds"),
        "since_begun_seconds": between(state.begun, now.ended) if up else None,
        "target_seconds": target,
        "met": met,
    }


def _group_text(spec: Spec, node: Node, name: str) -> str:
    group = next((group for group in spec.plan.group if group.name == node.group), None)
    return "" if group is None else str(getattr(group, name))


# ---- all of it ----


def _totals(tasks: Sequence[Row]) -> Row:
    """Replicas by state; gates, scripts and attempts that failed."""
    replicas = [task["state"] for task in tasks if task["kind"] == "replica"]
    parts = [
        (part["part"], part["state"])
        for task in tasks
        for row in task["attempts"]
        for part in row["parts"]
    ]
    gates = [state for part, state in parts if part == "gate"]
    return {
        "replicas": len(replicas),
        "up": replicas.count("done"),
        "failed": replicas.count("failed") + replicas.count("asking"),
        "skipped": replicas.count("skipped"),
        "other": sum(word in ("waiting", "queued", "running") for word in replicas),
        "gates": len(gates),
        "gates_passed": gates.count("passed"),
        "failed_attempts": sum(
            row["state"] == "failed" for task in tasks for row in task["attempts"]
        ),
    }


def _whole_rto(state: RunState, tasks: Sequence[Row]) -> Row:
    """From when the run was begun until the last one was up, its group's gates too.

    It is met by a run in which all came up, and in time; a failed or skipped replica is not
    recovered, however fast the others were.
    """
    target = _target(state.spec, state.spec.plan.rto_target)
    wanted = [task for task in tasks if task["kind"] != "before"]
    up = [task for task in wanted if task["state"] == "done"]
    seconds = max((between(state.begun, task["ended"]) for task in up), default=None)
    missing = [task["kind"] for task in wanted if task["state"] != "done"]
    met: bool | None = None
    if target is not None:
        late = seconds is not None and seconds > target
        if late or (state.ended and missing):
            met = False
        elif not missing:
            met = True
    last = max(up, key=lambda task: parse_time(task["ended"]), default=None)
    return {
        "seconds": seconds,
        "last": None if last is None else last["key"],
        "missing_replicas": missing.count("replica"),
        "missing_groups": missing.count("after"),
        "target_seconds": target,
        "met": met,
    }


def _whole_rpo(spec: Spec, tasks: Sequence[Row]) -> Row:
    """The worst of all; unknown: replicas of which it is not known."""
    target = _target(spec, spec.plan.rpo_target)
    replicas = [task for task in tasks if task["kind"] == "replica"]
    known = [task for task in replicas if task["rpo"]["seconds"] is not None]
    worst = max(known, key=lambda task: float(task["rpo"]["seconds"]), default=None)
    seconds = None if worst is None else worst["rpo"]["seconds"]
    unknown = len(replicas) - len(known)
    met: bool | None = None
    if target is not None and seconds is not None:
        met = False if seconds > target else (None if unknown else True)
    return {
        "seconds": seconds,
        "worst": None if worst is None else worst["key"],
        "unknown": unknown,
        "target_seconds": target,
        "met": met,
    }


def _groups(spec: Spec, tasks: Sequence[Row]) -> list[Row]:
    by_group: dict[str, list[Row]] = {group.name: [] for group in spec.shape.groups}
    for task in tasks:
        by_group[task["group"]].append(task)
    rows = []
    for group in spec.shape.groups:
        mine = by_group[group.name]
        begins = [task["first_started"] for task in mine if task["first_started"]]
        ends = [task["ended"] for task in mine if task["ended"]]
        begun, ended = min(begins, default=None), max(ends, default=None)
        rows.append(
            {
                "name": group.name,
                "after": group.after,
                "on_failure": group.on_failure,
                "begun": begun,
                "ended": ended,
                "seconds": between(begun, ended) if begun and ended else None,
                **_totals(mine),
                "missed_targets": sum(
                    (task[name] or {}).get("met") is False
                    for task in mine
                    for name in ("rpo", "rto")
                ),
            }
        )
    return rows
