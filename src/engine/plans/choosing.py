"""Which restore point each replica of a group is to go to, fixed when the run begins.

A retry, or a worker that takes over, so goes to the same point. "latest" alone stays what it
is: a failover holds replication first, and what came until then is in its latest point.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from .. import control, ending_failback, groups, planned, resync
from ..errors import Error, NotFoundError
from ..groups import CommonPoint
from ..points import Point, Points
from ..replica import Replica
from ..units import parse_time
from .found import Found
from .tables import FORWARD, Group, RunKind

COMMON = "common"
APP = "app"
LATEST = "latest"
RUN_LABEL = "plan run "  # of points that are made here; the run's id follows
OWN_LABELS = (planned.LABEL, ending_failback.LABEL, resync.LABEL)
ASK_SECONDS = 5.0

_Accepts = Callable[[CommonPoint], bool]


def choose(
    group: Group, found: Sequence[Found], kind: RunKind, run: str, *, dry: bool = False
) -> dict[str, str]:
    """Name of each replica -> its point: an id as text, or "latest".

    A planned run takes the last write of each source, whatever the group says. Where all are
    to be at one cut and the latest is wanted, a point of all of them is made now, if each
    has an ingest at work; else the newest that they have is taken.

    Args:
        run: Labels a point that is made; asked again for the same run, that one is taken.
        dry: None is made: what would be one is "latest".

    Raises:
        NotFoundError, GapError: There is no such point, of which replicas is said.
        Error: A replica cannot be looked at.
    """
    if kind not in FORWARD:
        return {}
    one_cut = group.same_cut and len(found) > 1
    if kind == "planned" or (group.point == LATEST and not one_cut):
        return dict.fromkeys((one.name for one in found), LATEST)
    with _opened(found) as replicas:
        if one_cut:
            if dry and group.point == LATEST and all(map(is_ingesting, replicas)):
                return dict.fromkeys((one.name for one in found), LATEST)
            points = _one_cut(group, found, replicas, "" if dry else run)
        elif group.point == COMMON or group.point.startswith(COMMON + ":"):
            points = _common(group, found, replicas)
        else:
            points = _each(group, found, replicas)
    return {one.name: str(point.id) for one, point in zip(found, points, strict=True)}


@contextlib.contextmanager
def _opened(found: Sequence[Found]) -> Iterator[list[Replica]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Replica.open(one.directory)) for one in found]


def is_meant(group: Group, name: str) -> bool:
    """Whether "common" takes a point of that name.

    Without a pattern it is one that somebody gave: what an operation marks on its way has
    the same label in every replica, and nothing else in common.
    """
    pattern = group.point.partition(":")[2]
    if pattern:
        return fnmatchcase(name, pattern)
    return bool(name) and name not in OWN_LABELS and not name.startswith(RUN_LABEL)


# ---- each by itself ----


def _each(group: Group, found: Sequence[Found], replicas: Sequence[Replica]) -> list[Point]:
    points, failures = [], []
    for one, replica in zip(found, replicas, strict=True):
        try:
            points.append(_newest_app(replica) if group.point == APP else _at(replica, group.point))
        except Error as error:
            failures.append((one.name, error))
    if failures:
        raise _told(group, failures)
    return points


def _at(replica: Replica, moment: str) -> Point:
    return replica.points.nearest(moment)


def _newest_app(replica: Replica) -> Point:
    for point in reversed(replica.points):
        if point.kind == APP:
            return point
    raise NotFoundError(
        f"replica {replica.name} has no application-consistent point",
        "mark one with: rollpoint mark --app; or say another point",
    )


def _told(group: Group, failures: Sequence[tuple[str, Error]]) -> Error:
    """One error of all of them: of the first one's kind, so that it means the same to callers."""
    first = failures[0][1]
    says = "; ".join(f"{name}: {error.message}" for name, error in failures)
    hints = "; ".join(dict.fromkeys(error.hint for _, error in failures if error.hint))
    return type(first)(f"group {group.name}, point {group.point}: {says}", hints)


# ---- one name ----


def named(points: Points) -> dict[str, Point]:
    """The newest point of each name: by the label that it was marked with, or named later."""
    found = {point.label: point for point in points if point.label}
    ids = {point.id: point for point in points}
    for name, number in points.names.items():
        if number in ids and (name not in found or found[name].id < number):
            found[name] = ids[number]
    return found


def _common(group: Group, found: Sequence[Found], replicas: Sequence[Replica]) -> list[Point]:
    """The newest named point that all have. Where a name was given again, its newest."""
    known = [named(replica.points) for replica in replicas]
    shared = set.intersection(*(set(names) for names in known))
    wanted = [name for name in shared if is_meant(group, name)]
    if not wanted:
        lacking = [
            one.name
            for one, names in zip(found, known, strict=True)
            if not any(is_meant(group, name) for name in names)
        ]
        says = f"; none at all: {', '.join(lacking)}" if lacking else ""
        raise NotFoundError(
            f"group {group.name}, point {group.point}: no named point is in all of "
            f"{', '.join(one.name for one in found)}{says}",
            "mark one in each with the same label: rollpoint mark --label NAME; or say another "
            "point",
        )
    # How new it is: as its oldest part.
    best = max(wanted, key=lambda name: (min(names[name].time_ns for names in known), name))
    return [names[best] for names in known]


# ---- one cut ----


def _one_cut(
    group: Group, found: Sequence[Found], replicas: Sequence[Replica], run: str
) -> list[Point]:
    accepts = _accepted(group, replicas)
    label = RUN_LABEL + run  # "": nothing is to be made
    if group.point == LATEST:
        made = [one for one in groups.common(replicas) if one.points[0].label == label]
        if made:
            return made[-1].points
        if run and all(is_ingesting(replica) for replica in replicas):
            with contextlib.suppress(Error):  # a gap since: then the newest that there is
                done = groups.mark(replicas, label=label)
                return [member.point for member in done.members]
    usable = [one for one in groups.common(replicas) if accepts(one)]
    if not usable:
        raise NotFoundError(
            f"group {group.name}, point {group.point}: no point is at one cut of "
            f"{', '.join(one.name for one in found)}",
            "mark one of all of them together: rollpoint mark DIR DIR ...; or say same_cut = false",
        )
    return usable[-1].points


def _accepted(group: Group, replicas: Sequence[Replica]) -> _Accepts:
    if group.point == LATEST:
        return lambda _: True
    if group.point == APP:
        return lambda one: all(point.kind == APP for point in one.points)
    if group.point == COMMON or group.point.startswith(COMMON + ":"):
        return lambda one: any(is_meant(group, name) for name in _names(one, replicas))
    for replica in replicas:
        replica.points.nearest(group.point)  # a moment in a gap of one of them is refused
    limit = parse_time(group.point) // 1000
    return lambda one: max(point.time_ns for point in one.points) // 1000 <= limit


def _names(one: CommonPoint, replicas: Sequence[Replica]) -> list[str]:
    """The names that all members of a group's point have."""
    sets = []
    for point, replica in zip(one.points, replicas, strict=True):
        notes = replica.manifest.notes
        sets.append({point.label, *(note.name for note in notes if note.id == point.id)})
    return sorted(set.intersection(*sets))


def is_ingesting(replica: Replica) -> bool:
    """Whether an ingest is at work. Where it may miss something, nothing can be marked."""
    try:
        return bool(control.ask(replica.control_path, "status", ASK_SECONDS))
    except Error:
        return False
