"""The shape of a run: its tasks, in groups, with what has to come first and what limits them.

It is fixed when the run begins, and part of its first event.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ..structs import prepared
from .tables import OnFailure, Plan, RunKind

NodeKind = Literal["replica", "before", "after"]


class Node(msgspec.Struct, kw_only=True):
    """One task: a replica's, or what a group does once before and after its replicas.

    Attributes:
        key: "GROUP/REPLICA", "GROUP|before", "GROUP|after"; unique in the run.
        queue: Where it is done; "": on the machine that runs the plan.
        datastores: That it works on, for limits.
        directory, name: Of the replica.
        point: What a failover is to go to: an id as text, "latest", or a moment.
        former: Of the run that this one ends: {"run", "kind", "operation"} of this replica.
    """

    key: str
    group: str
    kind: NodeKind
    queue: str = ""
    datastores: list[str] = []
    name: str = ""
    directory: str = ""
    point: str = "latest"
    former: dict[str, Any] = {}


class GroupShape(msgspec.Struct, kw_only=True):
    """One group. after: names of groups that come first. delay_seconds: after those are up.

    nodes: keys of the replicas' tasks. before, after_up: key of the group's own task; ""
    where there is nothing to do.
    """

    name: str
    nodes: list[str]
    after: list[str] = []
    priority: int = 100
    delay_seconds: float = 0.0
    parallelism: int = 0
    on_failure: OnFailure = "stop"
    before: str = ""
    after_up: str = ""


class Shape(msgspec.Struct, kw_only=True):
    """All of it. hosts, datastores: name -> how many at once; "*" for all others.

    A task of a group (before, after) counts against no limit.
    """

    groups: list[GroupShape]
    nodes: dict[str, Node]
    parallelism: int = 0
    hosts: dict[str, int] = {}
    datastores: dict[str, int] = {}

    def group(self, name: str) -> GroupShape:
        return next(group for group in self.groups if group.name == name)


@prepared
class Spec(msgspec.Struct, kw_only=True):
    """What a run is to do: the data of its first event.

    Attributes:
        plan_path: Absolute; plan: what it said then.
        of: The run that this one ends; "": none.
        skip: Checks of each failover that are not run -> why.
        application: Version of the steps, for workers that have another one.
    """

    run: str
    kind: RunKind
    plan: Plan
    plan_path: str
    shape: Shape
    who: str
    host: str
    reason: str = ""
    of: str = ""
    skip: dict[str, str] = {}
    application: str = ""
