"""What has to be right of a plan's groups and limits before any replica is looked at."""

from __future__ import annotations

import re

from .. import checklist
from ..config import LABEL
from ..errors import UsageError
from ..toml_lines import Document, Keys, cut, nearest
from ..units import parse_duration, parse_time
from .tables import Group, Limits, Plan

NAME = LABEL
NAME_HINT = "letters, digits, . _ and -, 64 at most, the first a letter or a digit"
COUNT_MAX = 1_000_000
_LABEL_PATTERN = re.compile(r"[A-Za-z0-9._*?\[\]!-]{1,200}")
_POINT_HINT = 'take latest, app, common, common:GLOB, or a moment as in "2026-11-22T10:15:00Z"'


def check(document: Document, plan: Plan) -> None:
    """All groups, then what they say of each other.

    Raises:
        UsageError: The first thing that is wrong, with its line.
    """
    seen: dict[str, int] = {}
    for number, group in enumerate(plan.group):
        keys = ("group", number)
        if not NAME.fullmatch(group.name):
            raise document.error(
                (*keys, "name"), f"{cut(repr(group.name))} cannot name a group", NAME_HINT
            )
        if group.name in seen:
            line = document.line(("group", seen[group.name], "name"))
            raise document.error(
                (*keys, "name"),
                f"a second group {group.name}; the first is in line {line}",
                "give each a name of its own",
            )
        seen[group.name] = number
        _check_group(document, keys, group)
    _check_owners(document, plan)
    _check_order(document, plan, seen)
    _check_limits(document, plan.limits, {group.queue for group in plan.group})


def _check_group(document: Document, keys: Keys, group: Group) -> None:
    if group.queue and not NAME.fullmatch(group.queue):
        raise document.error(
            (*keys, "queue"), f"{cut(repr(group.queue))} cannot name a queue", NAME_HINT
        )
    _check_replicas(document, (*keys, "replicas"), group.replicas)
    require_duration(document, (*keys, "delay"), group.delay)
    require_count(document, (*keys, "priority"), group.priority, -COUNT_MAX, COUNT_MAX)
    require_count(document, (*keys, "parallelism"), group.parallelism, 0, COUNT_MAX)
    require_targets(document, keys, group.rpo_target, group.rto_target)
    _check_point(document, (*keys, "point"), group.point)
    networks = group.network if isinstance(group.network, dict) else {}
    for source, here in networks.items():
        if not source.strip() or not here.strip():
            raise document.error(
                (*keys, "network", source),
                "the name of a network is empty",
                "write network at the source = network here",
            )
    for name, reason in group.skip.items():
        try:
            checklist.require_known({name: reason})
        except UsageError as error:
            raise document.error((*keys, "skip", name), error.message, error.hint) from None


def _check_replicas(document: Document, keys: Keys, patterns: list[str]) -> None:
    if not patterns:
        raise document.error(
            keys, "the group has no replicas", 'name them, or write replicas = ["*"] for all'
        )
    seen: dict[str, int] = {}
    for number, pattern in enumerate(patterns):
        at = (*keys, number)
        problem = _problem(pattern.removeprefix("!"))
        if problem:
            raise document.error(at, f"{cut(repr(pattern))}: {problem[0]}", problem[1])
        opposite = pattern[1:] if pattern.startswith("!") else f"!{pattern}"
        if pattern in seen:
            line = document.line((*keys, seen[pattern]))
            raise document.error(
                at,
                f"{cut(pattern)} is there twice; the first is in line {line}",
                "take one of them out, or correct its name",
            )
        if opposite in seen:
            raise document.error(
                at, f"{cut(pattern)} and {cut(opposite)}: asked for and left out", "decide for one"
            )
        seen[pattern] = number
    if all(pattern.startswith("!") for pattern in patterns):
        raise document.error(
            keys, "replicas only leaves out", 'say of which: replicas = ["*", "!..."]'
        )


def _problem(pattern: str) -> tuple[str, str] | None:
    """What is wrong with one text of `replicas`, without "!", and the cure."""
    if pattern.startswith("label:"):
        label = pattern.removeprefix("label:")
        if not _LABEL_PATTERN.fullmatch(label):
            return "no label is like that", f'write "label:NAME": {NAME_HINT}'
    if not pattern.strip() or pattern != pattern.strip():
        return "blanks are no part of a replica's name", 'write a name, a pattern or "label:NAME"'
    if "/" in pattern or pattern in (".", ".."):
        return (
            "a replica is named by its directory's name, without a path",
            "say the path in root, or in replicas at the top",
        )
    if not _closed(pattern):
        return "a [ that is never closed", "write [abc] for one of them, [[] for the character ["
    return None


def _closed(pattern: str) -> bool:
    """Whether each "[" of a glob has its "]", as fnmatch reads it."""
    at = pattern.find("[")
    while at >= 0:
        at += 2 if pattern.startswith("!", at + 1) else 1
        end = pattern.find("]", at + 1)  # a "]" that stands first is one of the characters
        if end < 0:
            return False
        at = pattern.find("[", end)
    return True


def _check_point(document: Document, keys: Keys, point: str) -> None:
    if point in ("latest", "app", "common"):
        return
    if point.startswith("common:"):
        label = point.removeprefix("common:")
        if not label.strip():
            raise document.error(keys, "common: without a name", 'write "common:nightly-*"')
        if not _closed(label):
            raise document.error(
                keys, f"{cut(repr(point))}: a [ that is never closed", "write [abc] for one of them"
            )
        return
    if point.strip().isdigit():
        raise document.error(
            keys,
            f"{cut(repr(point))} would be the number of a point, and those are each replica's own",
            _POINT_HINT,
        )
    try:
        parse_time(point)
    except UsageError as error:
        says = f"{cut(repr(point))} is no choice of a point"
        message = says if "is not a moment" in error.message else error.message
        raise document.error(keys, message, _POINT_HINT) from None


def _check_owners(document: Document, plan: Plan) -> None:
    """No replica that is named is in two groups."""
    owners: dict[tuple[str, str, str], tuple[int, int]] = {}
    for group_number, group in enumerate(plan.group):
        for number, name in enumerate(group.replicas):
            if name.startswith(("!", "label:")) or re.search(r"[*?\[]", name):
                continue
            place = (group.queue, group.root or plan.replicas, name)
            first = owners.setdefault(place, (group_number, number))
            if first[0] != group_number:
                line = document.line(("group", first[0], "replicas", first[1]))
                raise document.error(
                    ("group", group_number, "replicas", number),
                    f"{name} is in group {plan.group[first[0]].name} already (line {line})",
                    "a replica belongs to one group",
                )


def _check_order(document: Document, plan: Plan, numbers: dict[str, int]) -> None:
    for number, group in enumerate(plan.group):
        for place, name in enumerate(group.after):
            keys = ("group", number, "after", place)
            if name not in numbers:
                says = f"there is no group {cut(repr(name))}"
                raise document.error(keys, says, nearest(name, numbers))
            if name in group.after[:place]:
                raise document.error(keys, f"{name} is there twice", "take one of them out")
    circle = _circle({group.name: group.after for group in plan.group})
    if circle:
        first = numbers[circle[0]]
        place = plan.group[first].after.index(circle[1])
        raise document.error(
            ("group", first, "after", place),
            f"groups wait for each other: {' -> '.join(cut(name) for name in circle)}",
            "take one of them out of the other's after",
        )


def _circle(after: dict[str, list[str]]) -> list[str]:
    """Names of groups, each of which waits for the next, the last being the first; [] if none."""
    done: set[str] = set()
    for start in after:
        path: dict[str, None] = {}  # in the order in which they were come to
        todo = [] if start in done else [iter([start])]
        while todo:
            name = next(todo[-1], None)
            if name is None:
                todo.pop()
                if path:
                    done.add(path.popitem()[0])
            elif name in path:
                names = list(path)
                return [*names[names.index(name) :], name]
            elif name not in done:
                path[name] = None
                todo.append(iter(after[name]))
    return []


def _check_limits(document: Document, limits: Limits, queues: set[str]) -> None:
    require_count(document, ("limits", "plan"), limits.plan, 1, COUNT_MAX)
    for name, number in limits.hosts.items():
        keys = ("limits", "hosts", name)
        require_count(document, keys, number, 1, COUNT_MAX)
        if name not in queues | {"*", ""}:
            raise document.error(
                keys,
                f"no group has the queue {cut(repr(name))}",
                nearest(name, sorted(queues - {""})) or 'the only one is "", this machine',
            )
    for name, number in limits.datastores.items():
        keys = ("limits", "datastores", name)
        require_count(document, keys, number, 1, COUNT_MAX)
        if not name.strip():
            raise document.error(keys, "the name of a datastore is empty", 'name it, or write "*"')


def require_count(document: Document, keys: Keys, number: int, low: int, high: int) -> None:
    if not low <= number <= high:
        shown = cut(number)
        raise document.error(
            keys, f"{keys[-1]} is {shown}, out of range", f"take one from {low} to {high}"
        )


def require_targets(document: Document, keys: Keys, rpo: str, rto: str) -> None:
    """What the report measures against is nothing, or a duration that can be met."""
    for name, text in (("rpo_target", rpo), ("rto_target", rto)):
        if text:
            require_duration(document, (*keys, name), text, positive=True)


def require_duration(document: Document, keys: Keys, text: str, *, positive: bool = False) -> None:
    try:
        seconds = parse_duration(text)
    except UsageError as error:
        raise document.error(keys, f"{keys[-1]}: {error.message}", error.hint) from None
    if positive and seconds <= 0:
        raise document.error(keys, f"{keys[-1]} is {text}", "it has to be more than nothing")
