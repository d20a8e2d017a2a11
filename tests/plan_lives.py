"""Random lives of plans in virtual time, beside a plain model of what may start when.

The model is written from the rules, not from order.py: it looks at every task, group and limit
anew for every question, remembers what it was told in dictionaries, and is slow.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

import msgspec
from rollpoint.plans.events import Event, EventKind, RunState, fold
from rollpoint.plans.order import Decision, decide, reverse
from rollpoint.plans.shape import GroupShape, Node, Shape, Spec
from rollpoint.plans.tables import OnFailure, Plan
from rollpoint.units import format_time

SECOND_NS = 1_000_000_000
STEPS_MAX = 3000
T = TypeVar("T")


class Dice:
    """Choices from bytes; when they are used up always the first one, the harmless one."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def pick(self, *options: T) -> T:
        return options[next(self._data, 0) % len(options)]


def tasks(group: GroupShape) -> list[str]:
    return [key for key in (group.before, *group.nodes, group.after_up) if key]


def random_shape(dice: Dice) -> Shape:
    """Up to six groups of up to five replicas, in an order that is none of dependency."""
    groups: list[GroupShape] = []
    nodes: dict[str, Node] = {}

    def add(key: str, group: str, kind: Any, queue: str, datastores: list[str]) -> str:
        nodes[key] = Node(key=key, group=group, kind=kind, queue=queue, datastores=datastores)
        return key

    for number in range(dice.pick(1, 2, 3, 4, 5, 6)):
        name, queue = f"g{number}", dice.pick("", "east", "west")
        shape = GroupShape(
            name=name,
            nodes=[],
            after=[one.name for one in groups if dice.pick(False, False, True)],
            priority=dice.pick(100, 100, 1, 200),
            delay_seconds=dice.pick(0.0, 0.0, 3.0, 7.0, 0.5),
            parallelism=dice.pick(0, 0, 1, 2),
            on_failure=dice.pick(*get_args(OnFailure)),
        )
        if dice.pick(False, False, True):
            shape.before = add(f"{name}|before", name, "before", queue, [])
        for one in range(dice.pick(1, 2, 3, 4, 5)):
            stores = [store for store in ("fast", "slow", "big") if dice.pick(False, False, True)]
            shape.nodes.append(add(f"{name}/r{one}", name, "replica", queue, stores))
        if dice.pick(False, False, True):
            shape.after_up = add(f"{name}|after", name, "after", queue, [])
        groups.insert(dice.pick(len(groups), 0, len(groups) // 2), shape)
    shape = Shape(
        groups=groups,
        nodes=nodes,
        parallelism=dice.pick(0, 1, 2, 3, 5),
        hosts=dice.pick({}, {"*": 1}, {"east": 2}, {"*": 3, "": 1}, {"west": 1, "*": 2}),
        datastores=dice.pick({}, {"*": 1}, {"fast": 1}, {"slow": 2, "*": 1}),
    )
    return reverse(shape) if dice.pick(False, False, True) else shape


class Model:
    """What may start now, by the rules of docs/plans.md; see the head of this file."""

    WORDS = {  # noqa: RUF012
        ("queued", "waiting"): "busy",
        ("done", "busy"): "done",
        ("failed", "busy"): "failed",
        ("asking", "failed"): "asking",
        ("retry", "failed"): "waiting",
        ("retry", "asking"): "waiting",
        ("skip", "waiting"): "skipped",
        ("skip", "failed"): "skipped",
        ("skip", "asking"): "skipped",
    }

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.word = dict.fromkeys(shape.nodes, "waiting")
        self.tries = dict.fromkeys(shape.nodes, 0)
        self.ended_at: dict[str, int] = {}
        self.forgiven: set[str] = set()
        self.paused = self.cancelled = self.closed = False

    def hear(self, now_ns: int, word: str, key: str) -> None:
        if key:
            new = self.WORDS.get((word, self.word[key]), self.word[key])
            if new != self.word[key]:
                self.forgiven.discard(key)
                if new != "asking":
                    self.ended_at[key] = now_ns
                self.tries[key] += new == "busy"
            self.word[key] = new
        elif word in ("paused", "continued"):
            self.paused = word == "paused"
        elif word == "cancelled":
            self.cancelled = True
        elif word == "ended":
            self.closed = True
        elif word == "reopened":
            self.paused = self.cancelled = self.closed = False
            self.forgiven = {key for key, word in self.word.items() if word == "failed"}

    def expected(self, now_ns: int) -> Decision:
        if self.closed:
            return Decision([], [], None, None)
        busy = [key for key, word in self.word.items() if word == "busy"]
        if self.cancelled:
            return Decision([], [], None, None if busy else "cancelled")
        if any(self.stops_all(key) for key in self.word):
            return Decision([], [], None, None if busy else "failed")
        start: list[str] = []
        for group in sorted(self.shape.groups, key=lambda group: group.priority):
            for key in tasks(group):
                start += [key] if self.may_start(key, [*busy, *start], now_ns) else []
        ask = [
            key
            for group in self.shape.groups
            for key in tasks(group)
            if group.on_failure == "ask" and self.word[key] == "failed"
        ]
        waits = [
            self.ready_at(group) - now_ns
            for group in self.shape.groups
            if self.may_begin(group) and not self.up(group) and self.ready_at(group) > now_ns
        ]
        if start or busy or ask or waits:
            if self.paused:
                return Decision([], ask, None, None)
            return Decision(start, ask, min(waits) / SECOND_NS if waits else None, None)
        if "asking" in self.word.values():
            return Decision([], [], None, None)
        good = all(word in ("done", "skipped") for word in self.word.values())
        return Decision([], [], None, "done" if good else "failed")

    def group_of(self, key: str) -> GroupShape:
        return self.shape.group(self.shape.nodes[key].group)

    def stops_all(self, key: str) -> bool:
        failed = self.word[key] == "failed" and key not in self.forgiven
        return failed and self.group_of(key).on_failure == "stop"

    def over(self, key: str) -> bool:
        if self.word[key] == "failed":
            return self.group_of(key).on_failure == "continue"
        return self.word[key] in ("done", "skipped")

    def up(self, group: GroupShape) -> bool:
        if not all(self.up(self.shape.group(name)) for name in group.after):
            return False
        hopeless = group.before and self.word[group.before] == "failed"
        if hopeless and group.on_failure == "continue":
            return all(self.over(key) or self.word[key] == "waiting" for key in tasks(group))
        return all(self.over(key) for key in tasks(group))

    def up_at(self, group: GroupShape) -> int:
        mine = [self.ended_at[key] for key in tasks(group) if self.over(key)]
        return max([0, *mine, *(self.up_at(self.shape.group(name)) for name in group.after)])

    def may_begin(self, group: GroupShape) -> bool:
        return all(self.up(self.shape.group(name)) for name in group.after)

    def ready_at(self, group: GroupShape) -> int:
        if any(self.tries[key] for key in tasks(group)):
            return 0
        since = max([0, *(self.up_at(self.shape.group(name)) for name in group.after)])
        return since + int(group.delay_seconds * SECOND_NS)

    def may_start(self, key: str, busy: list[str], now_ns: int) -> bool:
        group = self.group_of(key)
        if self.word[key] != "waiting" or not self.may_begin(group):
            return False
        if self.ready_at(group) > now_ns:
            return False
        for other in tasks(group):
            if self.word[other] == "asking" or (
                self.word[other] == "failed" and group.on_failure != "continue"
            ):
                return False
        if key == group.before:
            return True
        if group.before and self.word[group.before] not in ("done", "skipped"):
            return False
        if key == group.after_up:
            return all(self.over(other) for other in group.nodes)
        return not over_limit(self.shape, [*busy, key], key)


def over_limit(shape: Shape, busy: list[str], key: str) -> str:
    """The limit that is passed for this task when these run at once; "": none."""
    node = shape.nodes[key]
    if node.kind != "replica":
        return ""
    running = [shape.nodes[other] for other in busy if shape.nodes[other].kind == "replica"]
    if shape.parallelism and len(running) > shape.parallelism:
        return "plan"
    group = shape.group(node.group)
    if group.parallelism and sum(one.group == group.name for one in running) > group.parallelism:
        return "group"
    most = shape.hosts.get(node.queue, shape.hosts.get("*", 10**9))
    if sum(one.queue == node.queue for one in running) > most:
        return "host"
    for name in node.datastores:
        most = shape.datastores.get(name, shape.datastores.get("*", 10**9))
        if sum(name in one.datastores for one in running) > most:
            return "datastore"
    return ""


class Life:
    """One run from its beginning to its end, with everything that operators may do to it."""

    def __init__(self, data: bytes) -> None:
        self.dice = Dice(data)
        self.shape = random_shape(self.dice)
        self.model = Model(self.shape)
        self.events: list[Event] = []
        self.state: RunState | None = None
        self.now_ns = 0
        self.agenda: list[tuple[int, int, EventKind, str, int]] = []
        self.met: Counter[str] = Counter()
        self.endings = 0

    def run(self) -> Counter[str]:
        """Live it; what happened in it, counted.

        Raises:
            AssertionError: decide says something else than the model, or fold depends on
                how the events are handed to it.
        """
        plan = Plan(version=1, group=[])
        spec = Spec(run="r", kind="test", plan=plan, plan_path="", shape=self.shape, who="",
                    host="")  # fmt: skip
        self.tell("begun", data=msgspec.to_builtins(spec))
        for _ in range(self.dice.pick(0, 0, 1, 2, 4)):
            word = self.dice.pick("skip", "retry", "paused", "continued", "skip", "cancelled")
            key = self.dice.pick(*self.shape.nodes) if word in ("skip", "retry") else ""
            self.later(self.dice.pick(0, 1, 2, 4, 8, 16, 32), word, key)
        steps = sum(1 for _ in zip(self.moments(), range(STEPS_MAX), strict=False))
        assert steps < STEPS_MAX, "the run does not come to an end"
        assert self.state == fold(self.events)
        return self.met

    def tell(self, kind: EventKind, key: str = "", attempt: int = 0, **data: Any) -> None:
        event = Event(
            seq=len(self.events) + 1,
            time=format_time(self.now_ns),
            run="r",
            kind=kind,
            key=key,
            attempt=attempt,
            data=data.get("data", {}),
        )
        self.events.append(event)
        self.state = fold([event], self.state)
        self.met[kind] += 1

    def both(self, kind: EventKind, key: str = "", attempt: int = 0, **data: Any) -> None:
        self.tell(kind, key, attempt, **data)
        self.model.hear(self.now_ns, kind, key)

    def later(self, seconds: float, kind: EventKind, key: str, attempt: int = 0) -> None:
        at_ns = self.now_ns + int(seconds * SECOND_NS)
        number = len(self.events) * 100 + len(self.agenda)
        heapq.heappush(self.agenda, (at_ns, number, kind, key, attempt))

    def moments(self) -> Iterator[None]:
        while True:
            assert self.state is not None
            decision = decide(self.shape, self.state, self.now_ns)
            expected = self.model.expected(self.now_ns)
            assert decision == expected, f"{self.now_ns / SECOND_NS} s: {decision} but {expected}"
            if decision.end is not None and not self.end(decision.end):
                return
            for key in decision.ask:
                self.both("asking", key, self.state.nodes[key].attempt)
                word = self.dice.pick("skip", "retry", "retry", "asking", "cancelled")
                self.later(self.dice.pick(0, 1, 5, 30), word, "" if word == "cancelled" else key)
            for key in decision.start:
                self.start(key)
            self.check_limits(decision.start)
            if decision.start or decision.ask or decision.end:
                yield
                continue
            self.sleep(decision.wake_seconds)
            yield

    def start(self, key: str) -> None:
        assert self.state is not None
        attempt = self.state.nodes[key].attempt + 1
        self.both("queued", key, attempt)
        begins = self.dice.pick(0, 0, 1, 3)
        self.later(begins, "started", key, attempt)
        fate: EventKind = self.dice.pick("done", "done", "done", "failed")
        takes = begins + self.dice.pick(1, 0.5, 2, 5, 9, 20)
        self.later(takes, "done" if attempt > 3 else fate, key, attempt)
        if self.dice.pick(False, False, False, True):  # of a worker that had been replaced
            late: EventKind = self.dice.pick("started", "done", "failed")
            self.later(takes + self.dice.pick(0.5, 3, 12), late, key, attempt)

    def end(self, word: str) -> bool:
        """Note it. True: the run is opened again, and somebody says what to do."""
        assert self.state is not None
        self.met[f"end {word}"] += 1
        self.both("ended", data={"state": word, "seen": self.state.seq})
        assert decide(self.shape, self.state, self.now_ns) == Decision([], [], None, None)
        self.endings += 1
        if word == "done" or self.endings > 2 or not self.dice.pick(True, True, False):
            return False
        self.both("reopened")
        for key, node in self.state.nodes.items():
            if node.state in ("failed", "asking"):
                say: EventKind = self.dice.pick("retry", "retry", "skip", "continued")
                self.both(say, "" if say == "continued" else key)
        return True

    def sleep(self, wake_seconds: float | None) -> None:
        """Until the next thing happens, or a delay ends; else somebody says the word."""
        assert self.state is not None
        wake_ns = None if wake_seconds is None else self.now_ns + round(wake_seconds * SECOND_NS)
        if self.agenda and (wake_ns is None or self.agenda[0][0] <= wake_ns):
            self.now_ns, _, kind, key, attempt = heapq.heappop(self.agenda)
            self.happen(kind, key, attempt)
        elif wake_ns is not None:
            self.met["delay"] += 1
            self.now_ns = wake_ns
        elif self.state.paused:
            self.both("continued")
        else:
            asking = [node.key for node in self.state.nodes.values() if node.state == "asking"]
            assert asking, "nothing will ever happen, and nobody is asked"
            self.both(self.dice.pick("retry", "skip"), asking[0])

    def happen(self, kind: EventKind, key: str, attempt: int) -> None:
        assert self.state is not None
        if not attempt:
            self.both(kind, key, self.state.nodes[key].attempt if key else 0)
            return
        node = self.state.nodes[key]
        data = {"error": "no power"} if kind == "failed" else {}
        if node.attempt == attempt and node.state in ("queued", "running"):
            self.both(kind, key, attempt, data=data)
        else:
            self.met["late"] += 1
            self.tell(kind, key, attempt, data=data)

    def check_limits(self, started: list[str]) -> None:
        busy = [key for key, word in self.model.word.items() if word == "busy"]
        for key in started:
            assert over_limit(self.shape, busy, key) == "", key
