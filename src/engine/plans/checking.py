"""What would stop a plan, and how long it is likely to take, before anything is done.

Mount hosts are asked how their replicas are (readiness.py); how long each task takes is told
from what it took before, in earlier runs of the plan or of the replica alone; and the whole
from the same decisions that a run makes (order.simulate).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ..errors import Error, UsageError
from ..structs import prepared
from ..units import format_duration, parse_duration, parse_time
from . import order, shaping
from . import survey as survey_of
from .events import RunState
from .found import Problem, Readiness
from .servers import Opens
from .shape import Shape
from .tables import FORWARD, Gate, Group, Plan, RunKind, Script

if TYPE_CHECKING:
    from .store import Store

RUNS_MAX = 10  # earlier runs that are looked at
# Without a run of its own kind: what is most like it.
_LIKE: dict[RunKind, tuple[str, ...]] = {
    "test": ("test", "unplanned", "rehearsal", "planned"),
    "unplanned": ("unplanned", "test", "planned", "rehearsal"),
    "planned": ("planned", "unplanned", "test", "rehearsal"),
    "undo": ("undo", "undo test"),
    "permanent": ("permanent",),
    "failback": ("failback", "switch"),  # both
    "commit": ("commit",),
}
_CALLED = {
    "unplanned": "unplanned failover",
    "planned": "planned failover",
    "test": "test failover",
    "undo test": "undo of a test",
}


class Row(msgspec.Struct, kw_only=True):
    """One replica, in the order of the file.

    Attributes:
        seconds: That its task is likely to take; None: unknown. based_on: In words.
        begins, ends: In seconds from the run's beginning, as predicted; None: unknown.
    """

    readiness: Readiness
    seconds: float | None = None
    based_on: str = "unknown: nothing like it was ever done"
    begins: float | None = None
    ends: float | None = None


@prepared
class Report(msgspec.Struct, kw_only=True):
    """What a check came to.

    Attributes:
        problems: Of the plan, of mount hosts and of replicas; those that stop a run first.
        predicted_seconds: For the whole run; None: unknown. Where something in it is
            unknown it takes longer, and predicted_says says so.
        predicted_says: What the number is based on, and what it leaves out.
        unknown: Keys of tasks of which it is not known how long they take, and groups that
            could not be looked at.
        rto_target: Of the plan, in seconds.
        stops: Something would stop the run.
    """

    plan: str
    kind: RunKind
    rows: list[Row]
    problems: list[Problem]
    predicted_seconds: float | None = None
    predicted_says: str = ""
    unknown: list[str] = []
    rto_target: float | None = None
    stops: bool = False


class _Guess(NamedTuple):
    """How long one task takes, and by what that is told."""

    seconds: float
    says: str


def hosts(
    plan: Plan, plan_path: str, kind: RunKind, store: Store | None, opens: Opens | None = None
) -> Callable[[Group], list[Readiness]]:
    """What asks the mount host of a group, for check.

    Args:
        store: To reach other mount hosts than this one.
        opens: Where replicas of this one run, instead of what replica.toml says.
    """
    from . import asking

    def look(group: Group) -> list[Readiness]:
        request = survey_of.request(plan, plan_path, group, kind, what="look")
        if group.queue:
            said = asking.ask(store, request)
        else:
            said = survey_of.answer(msgspec.json.encode(request).decode(), opens)
        return msgspec.json.decode(said, type=list[Readiness])

    return look


def check(
    plan: Plan,
    plan_path: str,
    kind: RunKind,
    *,
    survey: Callable[[Group], list[Readiness]],
    history: Iterable[RunState] = (),
    only: shaping.Some | None = None,
) -> Report:
    """Look at everything that a run of this kind needs.

    Args:
        survey: How ready a group's replicas are; asked of their mount host.
        history: Earlier runs of the plan, newest first; a few of them are taken.
        only: The groups and replicas that the run is to have; None: all.

    Raises:
        UsageError: only names what the plan does not have.
    """
    found: dict[str, list[Readiness]] = {}
    problems: list[Problem] = []
    names = None if only is None or only.replicas else set(only.groups) or None
    for group in plan.group:
        if names is not None and group.name not in names:
            continue
        try:
            found[group.name] = survey(group)
        except Error as error:
            what = "plan" if isinstance(error, UsageError) else "host"
            problems.append(
                Problem(what=what, says=error.message, hint=error.hint, group=group.name)
            )
    report = Report(plan=plan.name, kind=kind, rows=[], problems=problems)
    report.rto_target = parse_duration(plan.rto_target) if plan.rto_target else None
    missing = [problem.group for problem in problems]
    shape = _shape(plan, plan_path, kind, found, problems, only)
    rows = [
        Row(readiness=one)
        for group in plan.group
        for one in found.get(group.name, ())
        if shape is None or f"{group.name}/{one.name}" in shape.nodes
    ]
    report.rows = rows
    problems += [problem for row in rows for problem in row.readiness.problems]
    if shape is not None:
        _predict(plan, report, shape, history, missing)
    problems.sort(key=lambda problem: not problem.stops)
    report.stops = any(problem.stops for problem in problems)
    return report


def _shape(
    plan: Plan,
    path: str,
    kind: RunKind,
    found: Mapping[str, Sequence[Readiness]],
    problems: list[Problem],
    only: shaping.Some | None,
) -> Shape | None:
    """The shape of the run; None: it has none, which is among the problems then."""
    try:
        whole = shaping.build(plan, kind, found, {})
    except UsageError as error:
        where = survey_of.place(path, ("group", _second(plan, found), "replicas"))
        says = f"{where}: {error.message}"
        problems.append(Problem(what="plan", says=says, hint=error.hint))
        return None
    if only is None:
        return whole
    try:
        return shaping.build(plan, kind, found, {}, only=only)
    except UsageError:
        if not problems:
            raise
        return None  # it may be in a group that could not be looked at


def _second(plan: Plan, found: Mapping[str, Sequence[Readiness]]) -> int:
    """The group that names what is named already."""
    seen: set[tuple[str, str]] = set()
    for number, group in enumerate(plan.group):
        mine = [(group.queue, one.directory) for one in found.get(group.name, ())]
        if seen & set(mine):
            return number
        seen |= set(mine)
    return 0


# ---- how long it takes ----


def _predict(
    plan: Plan, report: Report, shape: Shape, history: Iterable[RunState], missing: Sequence[str]
) -> None:
    runs = list(itertools.islice((s for s in history if s.spec.kind == report.kind), RUNS_MAX))
    known: dict[str, _Guess] = {}
    rows = {f"{row.readiness.group}/{row.readiness.name}": row for row in report.rows}
    for key in shape.nodes:
        guess = _of_runs(key, runs)
        if guess is None and key in rows:
            guess = _of_replica(rows[key].readiness, report.kind)
        if guess is not None:
            known[key] = guess
    # Of a group that could not be looked at not even the replicas are known.
    report.unknown = [*missing, *(key for key in shape.nodes if key not in known)]
    times = order.simulate(shape, {key: guess.seconds for key, guess in known.items()})
    certain = not report.unknown
    for key, row in rows.items():
        if key in known:
            row.seconds, row.based_on = known[key]
        if certain and key in times:
            row.begins, row.ends = times[key]
        _against_target(plan, row, report)
    if any(key in known for key in rows):
        report.predicted_seconds = max(end for _, end in times.values())
    report.predicted_says = _told(plan, report, known, runs)
    seconds, target = report.predicted_seconds, report.rto_target
    if seconds is not None and target is not None and seconds > target and report.kind in FORWARD:
        report.problems.append(
            Problem(
                what="rto",
                says=f"the run is likely to take {format_duration(seconds)}, and the target is "
                f"{format_duration(target)}",
                hint="raise the limits, or shorten what the groups wait for",
                stops=False,
            )
        )


def _of_runs(key: str, runs: Sequence[RunState]) -> _Guess | None:
    """From earlier runs of the plan: the whole task, with its scripts and gates."""
    taken = []
    for state in runs:
        node = state.nodes.get(key)
        if node is not None and node.state == "done" and node.started and node.ended:
            taken.append(max(0, parse_time(node.ended) - parse_time(node.started)) / 1e9)
    if not taken:
        return None
    kind = runs[0].spec.kind
    return _Guess(median(taken), f"{_count(len(taken), f'{kind} run')} of the plan")


def _of_replica(row: Readiness, kind: RunKind) -> _Guess | None:
    """From what was done with the replica alone: its operation, without scripts and gates."""
    if kind == "failback":
        both = [row.seconds.get(part, []) for part in _LIKE["failback"]]
        if not all(both):
            return None
        count = min(len(part) for part in both)
        return _Guess(sum(median(part) for part in both), _count(count, "failback"))
    for like in _LIKE[kind]:
        taken = row.seconds.get(like, [])
        if taken:
            says = _count(len(taken), _CALLED.get(like, like))
            return _Guess(median(taken), says if like == kind else f"{says}, which is like it")
    return None


def _count(count: int, what: str) -> str:
    middle = "median of " if count > 2 else ""
    plural = what if count == 1 else what.replace("undo", "undos") if "undo" in what else f"{what}s"
    return f"{middle}{count} {plural}"


def _against_target(plan: Plan, row: Row, report: Report) -> None:
    one = row.readiness
    group = next(group for group in plan.group if group.name == one.group)
    if not group.rto_target or row.seconds is None or report.kind not in FORWARD:
        return
    target = parse_duration(group.rto_target)
    if row.seconds > target:
        report.problems.append(
            Problem(
                what="rto",
                says=f"it is likely to take {format_duration(row.seconds)}, and the target is "
                f"{format_duration(target)}",
                hint="see the steps in its reports: rollpoint replica show",
                stops=False,
                group=one.group,
                replica=one.name,
            )
        )


def _told(
    plan: Plan,
    report: Report,
    known: Mapping[str, _Guess],
    runs: Sequence[RunState],
) -> str:
    """What the prediction is based on, and what it leaves out."""
    replicas = [f"{row.readiness.group}/{row.readiness.name}" for row in report.rows]
    whole = [key for key in replicas if _of_runs(key, runs) is not None]
    alone = [key for key in replicas if key in known and key not in whole]
    parts = []
    if whole:
        earlier = "1 earlier run" if len(runs) == 1 else f"{len(runs)} earlier runs"
        parts.append(f"{_replicas(len(whole))} from {earlier}")
    if alone:
        parts.append(f"{_replicas(len(alone))} from operations of {_its(len(alone))} own")
        groups = {key.partition("/")[0] for key in alone}
        if any(_has_more(group, report.kind) for group in plan.group if group.name in groups):
            parts.append("gates and scripts of those are not counted")
    if report.unknown:
        shown = ", ".join(report.unknown[:5]) + (", ..." if len(report.unknown) > 5 else "")
        parts.append(f"not counted, because nothing is known of it: {shown}")
    return "; ".join(parts)


def _replicas(count: int) -> str:
    return f"{count} replica" if count == 1 else f"{count} replicas"


def _its(count: int) -> str:
    return "its" if count == 1 else "their"


def _has_more(group: Group, kind: RunKind) -> bool:
    more: list[Script | Gate] = [*group.before, *group.gate, *group.after_up]
    return any(each.each == "replica" and kind in each.on for each in more)
