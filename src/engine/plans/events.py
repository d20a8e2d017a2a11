"""What happened in a run, and what the run is thereby.

Every process of a run appends events to the run's database and nothing else; the live table,
`plan status`, the report and the decision what starts next are all made from their fold.
A reader of the stream: docs/plans.md, "Events".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from .shape import Spec

EventKind = Literal[
    # of the run
    "begun", "paused", "continued", "cancelled", "reopened", "ended",
    # asked for by somebody, for one task
    "retry", "skip",
    # of a task, by attempt
    "queued", "started", "step", "operation", "script", "gate", "done", "failed",
    # somebody has to decide about a failed task
    "asking",
    # beside: a process that serves the run came, or went
    "worker",
]  # fmt: skip
NodeWord = Literal["waiting", "queued", "running", "asking", "done", "failed", "skipped"]
RunWord = Literal["running", "done", "failed", "cancelled"]


class Event(msgspec.Struct, kw_only=True):
    """One of them. seq grows in a run from 1; gaps are possible.

    Attributes:
        time: UTC, as restore points have it. key: of the task, "" of the run.
        data: see docs/plans.md.
    """

    seq: int
    time: str
    run: str
    kind: EventKind
    key: str = ""
    attempt: int = 0
    data: dict[str, Any] = {}


class NodeState(msgspec.Struct, kw_only=True):
    """One task, as of the newest event.

    Attributes:
        attempt: 0 before the first one.
        stage: What it is at: "before", the operation's step, "gate ...", "after".
        started, ended: Of the newest attempt; first_started: of the first.
        outcome: What the operation came to (doing.Done as JSON); None: not yet.
        tries: Operations that failed; each gets an id of its own.
        scripts, gates: Newest result of each: {"name", "state", "seconds", "says", "tries"}.
        seen: It failed before the run was opened again: somebody knows, and went on.
    """

    key: str
    state: NodeWord = "waiting"
    attempt: int = 0
    stage: str = ""
    host: str = ""
    started: str = ""
    ended: str = ""
    first_started: str = ""
    outcome: dict[str, Any] | None = None
    tries: int = 0
    steps: list[dict[str, Any]] = []
    scripts: list[dict[str, Any]] = []
    gates: list[dict[str, Any]] = []
    error: str = ""
    hint: str = ""
    failed_at: str = ""
    seen: bool = False


class RunState(msgspec.Struct, kw_only=True):
    """A run, as of the newest event.

    Attributes:
        asked_to_cancel: Nothing new begins; gates are looked at no more.
        ended: "" while it goes on, or waits to be gone on with.
        asked: seq of the newest word about a task: "retry" or "skip".
    """

    spec: Spec
    state: RunWord = "running"
    paused: bool = False
    asked_to_cancel: bool = False
    begun: str = ""
    ended: str = ""
    reopened: int = 0
    nodes: dict[str, NodeState] = {}
    workers: dict[str, dict[str, Any]] = {}
    seq: int = 0
    asked: int = 0


def fold(events: Iterable[Event], state: RunState | None = None) -> RunState:
    """What a run is after these events, which follow those that made state. It is changed.

    Args:
        events: In order; without state they begin with "begun".
    """
    for event in events:
        if event.kind == "begun":
            spec = msgspec.convert(event.data, Spec)
            nodes = {key: NodeState(key=key) for key in spec.shape.nodes}
            state = RunState(spec=spec, begun=event.time, nodes=nodes)
        assert state is not None, "a run begins with its first event"
        state.seq = max(state.seq, event.seq)
        if event.kind in ("retry", "skip"):
            state.asked = event.seq
        if event.key:
            _fold_node(state, state.nodes[event.key], event)
        else:
            _fold_run(state, event)
    assert state is not None, "a run has at least one event"
    return state


def _fold_run(state: RunState, event: Event) -> None:
    if event.kind == "paused":
        state.paused = True
    elif event.kind == "continued":
        state.paused = False
    elif event.kind == "cancelled":
        state.asked_to_cancel = True
    elif event.kind == "reopened":
        state.state, state.ended = "running", ""
        state.asked_to_cancel = state.paused = False
        state.reopened += 1
        for node in state.nodes.values():
            node.seen = node.state == "failed"
    elif event.kind == "ended" and event.data.get("seen", event.seq) >= state.asked:
        # else somebody said to go on before the end, decided upon without that, was written
        state.state, state.ended = event.data["state"], event.time
    elif event.kind == "worker":
        state.workers[event.data["queue"]] = event.data


def _fold_node(state: RunState, node: NodeState, event: Event) -> None:
    if event.kind == "retry":
        if node.state in ("failed", "asking"):
            node.state, node.error, node.hint = "waiting", "", ""
            node.failed_at, node.seen = "", False
        return
    if event.kind == "skip":
        if node.state in ("waiting", "failed", "asking"):
            node.state, node.ended = "skipped", event.time
            node.stage = ""
        return
    if event.kind == "queued":
        if event.attempt > node.attempt:
            node.state, node.attempt, node.stage = "queued", event.attempt, ""
            node.started = node.ended = ""
        return
    if event.attempt != node.attempt:  # of an attempt that was given up
        return
    if event.kind == "asking":
        if node.state == "failed":
            node.state = "asking"
    elif node.state in ("queued", "running"):  # else told late, by a worker that was replaced
        _fold_attempt(node, event)


def _fold_attempt(node: NodeState, event: Event) -> None:
    data = event.data
    if event.kind == "started":
        node.state, node.host = "running", data.get("host", "")
        node.started = node.started or event.time  # by the first of two hosts
        node.first_started = node.first_started or event.time
    elif event.kind == "step":
        node.stage = data["name"]
        _put(node.steps, data)
    elif event.kind == "operation":
        node.outcome = data
    elif event.kind in ("script", "gate"):
        node.stage = data["name"]
        _put(node.scripts if event.kind == "script" else node.gates, data)
    elif event.kind == "done":
        node.state, node.ended, node.stage = "done", event.time, ""
    elif event.kind == "failed":
        node.state, node.ended = "failed", event.time
        node.error, node.hint = data["error"], data.get("hint", "")
        node.failed_at = data.get("at", "")
        node.tries += bool(data.get("operation_failed"))


def _put(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    """The newest row of each name, where the first one stood."""
    for number, row in enumerate(rows):
        if row["name"] == data["name"]:
            rows[number] = data
            return
    rows.append(data)
