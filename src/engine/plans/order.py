"""What starts next: a pure function of a run's shape, its state and the time.

    group   up when all its tasks are over and all groups in its `after` are up
    over    done; skipped; failed in a group that continues
    begins  when all groups in `after` are up, `delay` after the last of their tasks ended
    inside  `before`, then the replicas, then `after_up`: each when what precedes it is over
    stop    a failure there lets nothing new start in the whole run
    ask     a failure there lets nothing new start in its group until somebody has decided

Nothing is remembered between two calls: a supervisor that died and another one that goes on
in its place decide the same. A task that was queued is never taken back.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from typing import NamedTuple

from ..units import format_time, parse_time
from .events import NodeState, RunState, RunWord
from .shape import GroupShape, Node, Shape, Spec
from .tables import Plan

_SECOND_NS = 1_000_000_000
_BUSY = ("queued", "running")
_OVER = ("done", "skipped")
_STUCK = ("failed", "asking")


class Decision(NamedTuple):
    """What is to be done now.

    Attributes:
        start: Keys of tasks, in order; all of them may start now, together.
        ask: Keys of tasks that failed, about which somebody has to be asked.
        wake_seconds: After which a delay ends; None: only an event can change anything.
        end: What the run has come to; None: it goes on, or waits for somebody's word.
    """

    start: list[str]
    ask: list[str]
    wake_seconds: float | None
    end: RunWord | None


def decide(shape: Shape, state: RunState, now_ns: int) -> Decision:
    """What to start, what to ask, when to look again, and whether this is the end.

    Of what could start, groups of the smaller priority come first, then the order of the
    file. A task for which a limit leaves no room is passed over: a later one on another host
    or datastore does not wait for it.

    A group that continues and whose `before` failed is given up: none of its replicas
    starts, and groups after it go on. A group that has begun does not wait for its delay
    again when a task of a group before it is tried again, but for that task.

    A failure that was there when the run was opened again stops no more than its own group:
    somebody has seen it, and wanted to go on.

    Args:
        now_ns: Nanoseconds since 1970 UTC, by the clock that the events' times are of.
    """
    if state.ended:
        return Decision([], [], None, None)
    nodes = state.nodes
    active = any(node.state in _BUSY for node in nodes.values())
    if state.asked_to_cancel:
        return Decision([], [], None, None if active else "cancelled")
    if any(_stops(group, nodes) for group in shape.groups):
        return Decision([], [], None, None if active else "failed")
    ask = [key for group in shape.groups for key in _to_ask_about(group, nodes)]
    begun, wake_ns = _begun(shape, state, now_ns)
    start = _start(shape, nodes, begun)
    if active or ask or start or wake_ns is not None:
        wake = None if wake_ns is None else max(0, wake_ns - now_ns) / _SECOND_NS
        return Decision([], ask, None, None) if state.paused else Decision(start, ask, wake, None)
    if any(node.state == "asking" for node in nodes.values()):
        return Decision([], [], None, None)
    failed = any(node.state not in _OVER for node in nodes.values())
    return Decision([], [], None, "failed" if failed else "done")


def reverse(shape: Shape) -> Shape:
    """The same tasks from the end to the beginning: what depends on others goes first.

    The edges are turned round, and priorities and the file's order with them. A group's
    `before` still comes before its replicas: scripts name the kinds of runs they are for.
    There are no delays, which let settle what has come up.
    """
    after: dict[str, list[str]] = {group.name: [] for group in shape.groups}
    for group in reversed(shape.groups):
        for name in group.after:
            after[name].append(group.name)
    groups = [
        GroupShape(
            name=group.name,
            nodes=group.nodes[::-1],
            after=after[group.name],
            priority=-group.priority,
            parallelism=group.parallelism,
            on_failure=group.on_failure,
            before=group.before,
            after_up=group.after_up,
        )
        for group in reversed(shape.groups)
    ]
    return Shape(
        groups=groups,
        nodes=shape.nodes,
        parallelism=shape.parallelism,
        hosts=shape.hosts,
        datastores=shape.datastores,
    )


def simulate(shape: Shape, seconds: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """When each task would begin and end, in seconds from the run's beginning.

    Args:
        seconds: That each task takes, by key; one that is not there takes none.
    """
    state = _fresh(shape)
    times: dict[str, tuple[float, float]] = {}
    running: list[tuple[int, str]] = []
    now_ns = 0
    while True:
        decision = decide(shape, state, now_ns)
        for key in decision.start:
            end_ns = now_ns + int(seconds.get(key, 0.0) * 1_000_000) * 1000
            state.nodes[key] = NodeState(key=key, state="running", attempt=1)
            heapq.heappush(running, (end_ns, key))
            times[key] = (now_ns / _SECOND_NS, end_ns / _SECOND_NS)
        wake_ns = None
        if decision.wake_seconds is not None:
            wake_ns = now_ns + round(decision.wake_seconds * _SECOND_NS)
        if running and (wake_ns is None or running[0][0] <= wake_ns):
            now_ns = running[0][0]
        elif wake_ns is not None:
            now_ns = wake_ns
        else:
            return times
        while running and running[0][0] <= now_ns:
            key = heapq.heappop(running)[1]
            state.nodes[key].state = "done"
            state.nodes[key].ended = format_time(now_ns)


def _fresh(shape: Shape) -> RunState:
    """A run of this shape at the moment 0, in which nothing has happened."""
    spec = Spec(
        run="", kind="test", plan=Plan(version=1, group=[]), plan_path="", shape=shape, who="",
        host="",
    )  # fmt: skip
    nodes = {key: NodeState(key=key) for key in shape.nodes}
    return RunState(spec=spec, begun=format_time(0), nodes=nodes)


def _keys(group: GroupShape) -> Iterator[str]:
    if group.before:
        yield group.before
    yield from group.nodes
    if group.after_up:
        yield group.after_up


def _stops(group: GroupShape, nodes: Mapping[str, NodeState]) -> bool:
    if group.on_failure != "stop":
        return False
    return any(nodes[key].state == "failed" and not nodes[key].seen for key in _keys(group))


def _to_ask_about(group: GroupShape, nodes: Mapping[str, NodeState]) -> list[str]:
    if group.on_failure != "ask":
        return []
    return [key for key in _keys(group) if nodes[key].state == "failed"]


def _over(node: NodeState, group: GroupShape) -> bool:
    return node.state in _OVER or (node.state == "failed" and group.on_failure == "continue")


def _ended(group: GroupShape, nodes: Mapping[str, NodeState]) -> str | None:
    """When the last of its tasks ended; "" where it has none; None: there is more to come."""
    mine = [nodes[key] for key in _keys(group)]
    given_up = bool(group.before) and nodes[group.before].state == "failed"
    if given_up and group.on_failure == "continue":
        mine = [node for node in mine if node.state != "waiting"]
    if not all(_over(node, group) for node in mine):
        return None
    return max((node.ended for node in mine), default="")


def _begun(shape: Shape, state: RunState, now_ns: int) -> tuple[list[GroupShape], int | None]:
    """Groups whose tasks may start, the most important first; and when the next delay ends."""
    nodes = state.nodes
    by_name = {group.name: group for group in shape.groups}
    up: dict[str, str] = {}  # name -> when its last task, or one of a group before it, ended
    begun = set()
    wake_ns: int | None = None
    edges = {group.name: group.after for group in shape.groups}
    for name in TopologicalSorter(edges).static_order():
        group = by_name[name]
        if any(other not in up for other in group.after):
            continue
        since = max((up[other] for other in group.after), default=state.begun)
        ended = _ended(group, nodes)
        if ended is not None:
            up[name] = max(since, ended)
            continue
        if group.delay_seconds > 0 and not any(nodes[key].attempt for key in _keys(group)):
            ready_ns = parse_time(since) + round(group.delay_seconds * _SECOND_NS)
            if ready_ns > now_ns:
                wake_ns = ready_ns if wake_ns is None else min(wake_ns, ready_ns)
                continue
        begun.add(name)
    groups = [group for group in shape.groups if group.name in begun]
    return sorted(groups, key=lambda group: group.priority), wake_ns


def _start(shape: Shape, nodes: Mapping[str, NodeState], begun: list[GroupShape]) -> list[str]:
    room = _Room(shape, nodes)
    start: list[str] = []
    for group in begun:
        if any(nodes[key].state in _STUCK and not _over(nodes[key], group) for key in _keys(group)):
            continue
        if group.before and nodes[group.before].state not in _OVER:
            if nodes[group.before].state == "waiting":
                start.append(group.before)
            continue
        waiting = [key for key in group.nodes if nodes[key].state == "waiting"]
        busy = sum(nodes[key].state in _BUSY for key in group.nodes)
        free = group.parallelism - busy if group.parallelism else len(waiting)
        for key in waiting:
            if free <= 0:
                break
            if room.take(shape.nodes[key]):
                start.append(key)
                free -= 1
        if (
            group.after_up
            and nodes[group.after_up].state == "waiting"
            and all(_over(nodes[key], group) for key in group.nodes)
        ):
            start.append(group.after_up)
    return start


class _Room:
    """What the limits of the plan, of hosts and of datastores leave, by replicas' tasks."""

    def __init__(self, shape: Shape, nodes: Mapping[str, NodeState]) -> None:
        self._shape = shape
        self._all = 0
        self._hosts: Counter[str] = Counter()
        self._datastores: Counter[str] = Counter()
        for key, node in shape.nodes.items():
            if node.kind == "replica" and nodes[key].state in _BUSY:
                self._count(node)

    def take(self, node: Node) -> bool:
        """Whether it may start; it is counted then."""
        shape = self._shape
        if shape.parallelism and self._all >= shape.parallelism:
            return False
        if self._hosts[node.queue] >= _limit(shape.hosts, node.queue):
            return False
        for name in node.datastores:
            if self._datastores[name] >= _limit(shape.datastores, name):
                return False
        self._count(node)
        return True

    def _count(self, node: Node) -> None:
        self._all += 1
        self._hosts[node.queue] += 1
        for name in set(node.datastores):
            self._datastores[name] += 1


def _limit(limits: Mapping[str, int], name: str) -> float:
    return limits.get(name, limits.get("*", float("inf")))
