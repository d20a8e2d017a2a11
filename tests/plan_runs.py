"""Runs of plans that were never carried out: their events, made up, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from rollpoint.plans.events import Event, EventKind, RunState, fold
from rollpoint.plans.shape import GroupShape, Node, Shape, Spec
from rollpoint.plans.tables import Group, Plan, RunKind
from rollpoint.units import format_time, parse_time

BEGUN = "2026-11-23T10:00:00.000000Z"
HASH = "ab" * 32


class Story:
    """Events of one run, told one after another; `at` is in seconds after it was begun."""

    def __init__(
        self,
        groups: Mapping[str, list[str]],
        kind: RunKind = "unplanned",
        name: str = "site",
        **of_groups: Any,
    ) -> None:
        """of_groups: fields of every group, or of the plan where they begin with plan_."""
        fields = {key: value for key, value in of_groups.items() if not key.startswith("plan_")}
        whole = {key[5:]: value for key, value in of_groups.items() if key.startswith("plan_")}
        nodes: dict[str, Node] = {}
        shapes: list[GroupShape] = []
        for group, replicas in groups.items():
            keys = [f"{group}/{replica}" for replica in replicas]
            for key, replica in zip(keys, replicas, strict=True):
                nodes[key] = Node(
                    key=key, group=group, kind="replica", name=replica, queue="east",
                    directory=f"/replicas/{replica}",
                )
            before, after = f"{group}|before", f"{group}|after"
            nodes[before] = Node(key=before, group=group, kind="before")
            nodes[after] = Node(key=after, group=group, kind="after")
            shapes.append(
                GroupShape(
                    name=group, nodes=keys, after=[shapes[-1].name] if shapes else [],
                    before=before, after_up=after,
                )
            )
        plan = Plan(
            version=1, name=name, **whole,
            group=[Group(name=name, replicas=list(rows), **fields)
                   for name, rows in groups.items()],
        )  # fmt: skip
        spec = Spec(
            run="20261123-100000-ab12", kind=kind, plan=plan, plan_path="/etc/site.toml",
            shape=Shape(groups=shapes, nodes=nodes), who="ops", host="tower",
            reason="the site is dark",
        )  # fmt: skip
        self.events: list[Event] = []
        self.tell(0, "begun", data=msgspec.to_builtins(spec))

    def tell(
        self,
        at: float,
        kind: EventKind,
        key: str = "",
        attempt: int = 0,
        data: dict[str, Any] | None = None,
    ) -> None:
        time = format_time(parse_time(BEGUN) + int(at * 1e9))
        self.events.append(
            Event(
                seq=len(self.events) + 1, time=time, run="20261123-100000-ab12", kind=kind,
                key=key, attempt=attempt, data=data or {},
            )
        )

    def told(self) -> tuple[RunState, list[Event]]:
        """In order of time, as a database has them; ended ones last."""
        self.events.sort(key=lambda event: event.time)
        for number, event in enumerate(self.events, 1):
            event.seq = number
        return fold(self.events), self.events

    # ---- what tasks do ----

    def starts(self, at: float, key: str, attempt: int = 1) -> None:
        self.tell(at, "queued", key, attempt)
        self.tell(at, "started", key, attempt, {"host": "east-1", "pid": 7})

    def operates(self, end: float, key: str, seconds: float, attempt: int = 1, **of: Any) -> None:
        name = key.partition("/")[2]
        data: dict[str, Any] = {
            "operation": f"20261123-100000-ab12-{name}-0", "kind": "failover",
            "state": "Failover", "point": 41, "point_time": "2026-11-23T09:59:58.000000Z",
            "rpo_seconds": 2.0, "rpo_says": "as of the hold", "rto_seconds": seconds,
            "seconds": seconds, "steps": [], "report": None, "machine": {}, "address": None,
            "evidence": [{"kind": "overridden", "time": BEGUN, "says": "it is dark",
                          "source": "ops"}],
            "checks": [{"name": "source-fenced", "state": "skipped", "says": "not known",
                        "reason": "it is dark"}],
            "audit": {"lines": 12, "hash": HASH}, "warnings": [], **of,
        }  # fmt: skip
        self.tell(end, "operation", key, attempt, data)

    def passes(
        self, begin: float, end: float, key: str, state: str = "passed", attempt: int = 1
    ) -> None:
        """A gate."""
        row = {"name": "gate ssh", "kind": "tcp", "state": "looking"}
        self.tell(begin, "gate", key, attempt, row)
        row = {**row, "state": state, "tries": 3, "seconds": end - begin, "says": "connected"}
        self.tell(end, "gate", key, attempt, row)

    def scripts(
        self, end: float, key: str, seconds: float, state: str = "done", attempt: int = 1
    ) -> None:
        row = {"name": "before: dns", "state": state, "exit": 0 if state == "done" else 1,
               "seconds": seconds, "says": "moved"}  # fmt: skip
        self.tell(end, "script", key, attempt, row)

    def recovers(self, at: float, key: str, attempt: int = 1, **of: Any) -> float:
        """A whole task of a replica, 10 s: script 2, operation 5, gate 3. When it ended."""
        self.starts(at, key, attempt)
        self.scripts(at + 2, key, 2, attempt=attempt)
        self.operates(at + 7, key, 5, attempt=attempt, **of)
        self.passes(at + 7, at + 10, key, attempt=attempt)
        self.tell(at + 10, "done", key, attempt)
        return at + 10

    def around(self, at: float, key: str) -> float:
        """A task of a group: one script of a second."""
        self.starts(at, key)
        self.scripts(at + 1, key, 1)
        self.tell(at + 1, "done", key, 1)
        return at + 1

    def fails(self, at: float, key: str, error: str = "no such host", attempt: int = 1) -> float:
        """A task whose operation fails after 4 s."""
        self.starts(at, key, attempt)
        data = {"at": "operation", "error": error, "hint": "look for it", "operation_failed": True}
        self.tell(at + 4, "failed", key, attempt, data)
        return at + 4


def all_up(count: int, groups: int = 1, kind: RunKind = "unplanned", **of: Any) -> Story:
    """Groups one after another, their replicas at once: 13 seconds for each group."""
    names = [f"vm-{number:03d}" for number in range(count)]
    story = Story(
        {f"group-{number}": names[number::groups] for number in range(groups)}, kind, **of
    )
    at = 0.0
    for number in range(groups):
        at = recover(story, f"group-{number}", names[number::groups], at)
    story.tell(at, "ended", data={"state": "done"})
    return story


def recover(story: Story, group: str, names: list[str], at: float) -> float:
    begin = story.around(at, f"{group}|before")
    for name in names:
        story.recovers(begin, f"{group}/{name}")
    return story.around(begin + 10, f"{group}|after")


def troubled(count: int = 12) -> Story:
    """Four groups: one with a failure and its retry, one skipped, one that failed at a gate,
    and one that was never begun."""
    names = [f"vm-{number:03d}" for number in range(count)]
    part = count // 4
    groups = {f"group-{n}": names[n * part : (n + 1) * part] for n in range(4)}
    story = Story(groups, rto_target="20s", rpo_target="5s", plan_rto_target="10m")
    rows = list(groups.items())
    story.tell(0.5, "worker", data={"queue": "east", "host": "east-1", "pid": 7})
    recover(story, *rows[0], 0)
    story.around(12, "group-1|before")
    again, *others = rows[1][1]
    story.fails(13, f"group-1/{again}")
    story.tell(20, "retry", f"group-1/{again}", 1, {"who": "eve", "host": "tower"})
    story.recovers(60, f"group-1/{again}", attempt=2, rpo_seconds=9.0)
    for name in others:
        story.recovers(13, f"group-1/{name}")
    story.around(70, "group-1|after")
    story.around(71, "group-2|before")
    skipped, broken, *others = rows[2][1]
    story.tell(71.5, "skip", f"group-2/{skipped}", 0, {"who": "eve", "reason": "retired"})
    story.starts(72, f"group-2/{broken}")
    story.operates(80, f"group-2/{broken}", 8)
    story.passes(80, 110, f"group-2/{broken}", "failed")
    wrong = {"at": "gate ssh", "error": "gate ssh: refused", "hint": "look at its console"}
    story.tell(110, "failed", f"group-2/{broken}", 1, wrong)
    for name in others:
        story.recovers(72, f"group-2/{name}")
    story.tell(110, "ended", data={"state": "failed"})
    return story
