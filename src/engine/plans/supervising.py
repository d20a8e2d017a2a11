"""Decides what of a run starts next, again and again, until the run has ended.

It keeps nothing: after a crash it begins anew from the run's events, and what it had handed out
it hands out again under the same ids, which changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from .events import Event, NodeState, RunState, fold
from .order import decide
from .store import New, Store

WAIT_SECONDS = 1.0

Row = dict[str, Any]


class Enqueue(Protocol):
    """Hands work to a queue: see durable.Client."""

    def enqueue(self, workflow: str, queue: str, id: str, *arguments: object) -> None: ...


def local_queue(plan: str) -> str:
    """The queue of the machine that runs a plan; also the name of its life."""
    return f"plan:{plan}"


def all_events(store: Store, run: str) -> list[Event]:
    """Of a run, however many."""
    found: list[Event] = []
    while more := store.events(run, found[-1].seq if found else 0):
        found += more
    return found


def supervise(
    store: Store,
    run: str,
    opening: int,
    client: Enqueue,
    require_staying: Callable[[], None] = lambda: None,
) -> Row:
    """Start tasks until the run ends, or this opening of it has.

    Args:
        require_staying: Raises when this process is to begin nothing more.
    """
    state = fold(all_events(store, run))
    _hand_out(client, state, (n for n in state.nodes.values() if n.state in ("queued", "running")))
    while state.state == "running" and state.reopened == opening:
        decision = decide(state.spec.shape, state, time.time_ns())
        if decision.end is not None:
            store.end(run, decision.end, state.seq)  # unless somebody has asked for something
        rows: list[New] = []
        for key in decision.ask:
            attempt = state.nodes[key].attempt
            rows.append(New("asking", key, attempt, once=f"{key}#{attempt} asking"))
        for key in decision.start:
            attempt = state.nodes[key].attempt + 1
            rows.append(New("queued", key, attempt, once=f"{key}#{attempt} queued"))
        if rows:
            store.append_many(run, rows)
        wait = WAIT_SECONDS if decision.wake_seconds is None else decision.wake_seconds
        asked = rows or decision.end is not None
        require_staying()
        news = store.wait(run, state.seq, 0.0 if asked else min(wait, WAIT_SECONDS))
        state = fold(news, state)
        _hand_out(client, state, (state.nodes[key] for key in decision.start))
    return {"state": state.state}


def _hand_out(client: Enqueue, state: RunState, nodes: Iterable[NodeState]) -> None:
    spec = state.spec
    for node in nodes:
        if node.state not in ("queued", "running"):
            continue
        queue = spec.shape.nodes[node.key].queue or local_queue(spec.plan.name)
        before = {"tries": node.tries, "outcome": node.outcome}
        id = f"{spec.run}/{node.key}/{node.attempt}"
        client.enqueue("perform", queue, id, spec.run, node.key, node.attempt, before)
