"""From a plan's tables, and the replicas that its groups mean, to the shape of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from ..errors import UsageError
from ..units import parse_duration
from .order import reverse
from .shape import GroupShape, Node, Shape
from .tables import Gate, Group, Plan, RunKind, Script

BACKWARD: tuple[RunKind, ...] = ("undo",)


class Replica(Protocol):
    """A replica that a group means: what survey.py finds. id: "" where it is not known."""

    @property
    def name(self) -> str: ...
    @property
    def directory(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def datastores(self) -> Sequence[str]: ...


class Some(Protocol):
    """A part of a plan: these groups, and these replicas ("NAME" or "GROUP/NAME")."""

    @property
    def groups(self) -> Collection[str]: ...
    @property
    def replicas(self) -> Collection[str]: ...


def build(
    plan: Plan,
    kind: RunKind,
    found: Mapping[str, Sequence[Replica]],
    points: Mapping[str, str],
    former: Mapping[str, dict[str, Any]] | None = None,
    only: Some | None = None,
) -> Shape:
    """The shape of a run of this kind.

    An undo takes groups and replicas in reverse order: nothing runs without what it depends
    on. The others keep the order of the file. A failback brings machines up at the source,
    which needs the order that a failover needs here. permanent and commit bring nothing up
    and take nothing down, so that nothing depends on their order, and what matters most is
    settled first.

    A group that is left out, or that means no replica, counts as up; groups after it wait
    for the groups that it waits for. A delay after groups that are all left out is over.

    Args:
        found: Name of a group -> its replicas.
        points: Key of a task -> where it is to go. One that is not there: "latest".
        former: Key -> what the run did that this one ends.
        only: What to take; all groups in whole, and all replicas. None: everything.

    Raises:
        UsageError: Two groups, or one twice, mean a replica. only names what is not there.
            There is nothing to do.
    """
    _check_once(plan, found)
    chosen = {group.name: list(found.get(group.name, ())) for group in plan.group}
    if only is not None and (only.groups or only.replicas):
        chosen = _narrow(chosen, only)
    nodes: dict[str, Node] = {}
    groups = []
    for group in plan.group:
        if not chosen[group.name]:
            continue
        mine = _nodes(group, kind, chosen[group.name], points, former or {})
        nodes.update((node.key, node) for node in mine)
        after = _after(group, plan, chosen)
        groups.append(
            GroupShape(
                name=group.name,
                nodes=[node.key for node in mine if node.kind == "replica"],
                after=after,
                priority=group.priority,
                delay_seconds=parse_duration(group.delay) if after or not group.after else 0.0,
                parallelism=group.parallelism,
                on_failure=group.on_failure,
                before=next((node.key for node in mine if node.kind == "before"), ""),
                after_up=next((node.key for node in mine if node.kind == "after"), ""),
            )
        )
    if not groups:
        raise UsageError(
            f"there is no replica in what is to be done ({kind})",
            "plan check tells what each group means",
        )
    shape = Shape(
        groups=groups,
        nodes=nodes,
        parallelism=plan.limits.plan,
        hosts=plan.limits.hosts,
        datastores=plan.limits.datastores,
    )
    return reverse(shape) if kind in BACKWARD else shape


def _nodes(
    group: Group,
    kind: RunKind,
    replicas: list[Replica],
    points: Mapping[str, str],
    former: Mapping[str, dict[str, Any]],
) -> list[Node]:
    """The tasks of a group, in order."""
    nodes = []
    if any(script.each == "group" and kind in script.on for script in group.before):
        key = f"{group.name}|before"
        nodes.append(Node(key=key, group=group.name, kind="before", queue=group.queue))
    for replica in replicas:
        key = f"{group.name}/{replica.name}"
        nodes.append(
            Node(
                key=key,
                group=group.name,
                kind="replica",
                queue=group.queue,
                datastores=list(replica.datastores),
                name=replica.name,
                directory=replica.directory,
                point=points.get(key, "latest"),
                former=former.get(key, {}),
            )
        )
    after: list[Gate | Script] = [*group.gate, *group.after_up]
    if any(each.each == "group" and kind in each.on for each in after):
        key = f"{group.name}|after"
        nodes.append(Node(key=key, group=group.name, kind="after", queue=group.queue))
    return nodes


def _check_once(plan: Plan, found: Mapping[str, Sequence[Replica]]) -> None:
    """Each replica is in one group: two tasks would fight for it.

    One path on two mount hosts is two replicas, unless the same one is seen there by both.
    """
    owners: dict[tuple[str, str], str] = {}
    for group in plan.group:
        names = set()
        for replica in found.get(group.name, ()):
            place = (replica.directory, replica.id or group.queue)
            if place in owners and owners[place] != group.name:
                raise UsageError(
                    f"the groups {owners[place]} and {group.name} both name the replica"
                    f" {replica.name} ({replica.directory})",
                    'leave it to one of them; "!" before a name leaves it out of a group',
                )
            if place in owners or replica.name in names:
                raise UsageError(
                    f"the group {group.name} names two replicas {replica.name},"
                    f" one of them {replica.directory}",
                    "give replicas names of their own, or put them into different groups",
                )
            owners[place] = group.name
            names.add(replica.name)


def _narrow(chosen: Mapping[str, list[Replica]], only: Some) -> dict[str, list[Replica]]:
    for name in only.groups:
        if name not in chosen:
            raise UsageError(f"the plan has no group {name}", f"its groups are {', '.join(chosen)}")
    keys = {f"{group}/{one.name}" for group, replicas in chosen.items() for one in replicas}
    names = {one.name for replicas in chosen.values() for one in replicas}
    for name in only.replicas:
        if name not in names and name not in keys:
            raise UsageError(
                f"no group of the plan has a replica {name}",
                "plan status lists them; write NAME, or GROUP/NAME",
            )
    return {
        group: replicas
        if group in only.groups
        else [
            one
            for one in replicas
            if one.name in only.replicas or f"{group}/{one.name}" in only.replicas
        ]
        for group, replicas in chosen.items()
    }


def _after(group: Group, plan: Plan, chosen: Mapping[str, list[Replica]]) -> list[str]:
    """The groups of the run that come first; through one that is left out, those before it."""
    by_name = {other.name: other for other in plan.group}
    after: dict[str, None] = {}
    passed = set()
    ahead = list(reversed(group.after))
    while ahead:
        name = ahead.pop()
        if chosen[name]:
            after[name] = None
        elif name not in passed:
            passed.add(name)
            ahead += reversed(by_name[name].after)
    return list(after)
