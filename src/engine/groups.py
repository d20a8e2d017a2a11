"""Restore points that several replicas have at one cut.

Everything runs on this host, so one process leads: it tells the ingest of each replica
to get ready, then all to close their gates; when no write is under way in any of them,
all mark, and then all open. A write that came after another was acknowledged, be it in
another replica, is so never in the point without it. A replica without an ingest has
no writers; its journals are held open here meanwhile.

That the point belongs to a group is written into each manifest (`groups`) only when the
point is durable in every member: what a crash, a slow ingest or a full disk leaves in
some of them is a point of those replicas alone.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast

from . import control, replication
from .errors import Error, LockedError, UsageError
from .journals import Journals
from .manifest import GroupPoint
from .points import Point
from .replica import Replica

STEP_SECONDS = 5.0  # for an answer to a step, the commit at the end aside
TRY_SECONDS = 10.0  # when another group is at one of the replicas
LOCK_SECONDS = 10.0
GROUPS_KEPT = 1000  # in a manifest, the newest ones

Answer = dict[str, object]


class Member(NamedTuple):
    """What one replica has of it. barrier_ms: how long its writers waited."""

    replica: Replica
    point: Point
    barrier_ms: float


class GroupMark(NamedTuple):
    """A point of several replicas. barrier_ms: from the first gate closed to the last opened."""

    group: str
    members: list[Member]
    barrier_ms: float


class CommonPoint(NamedTuple):
    """A group's point that all replicas asked about have."""

    group: str
    points: list[Point]  # in the order of the replicas


def mark(replicas: Sequence[Replica], kind: str = "crash", label: str = "") -> GroupMark:
    """A restore point of all disks of all these replicas at one cut, now. It is durable.

    Raises:
        UsageError: A replica is named twice, or there is none.
        GapError, HeldError, StateError: One of them cannot be marked. No group point is made.
        LockedError: Another group, or an operation, has one of them.
        NotRunningError, StorageError: An ingest died or hangs; its writers wait no longer
            than two seconds. No group point is made.
    """
    replication.check_kind(kind)
    replication.check_label(label)
    # In one order, whoever asks: so two groups that share members cannot wait in a ring.
    ordered = sorted(replicas, key=lambda replica: replica.manifest.id)
    if not replicas or len({replica.manifest.id for replica in ordered}) != len(ordered):
        raise UsageError("a replica is named twice, or none is", "name each one once")
    give_up = time.monotonic() + TRY_SECONDS
    while True:
        try:
            done = _try(ordered, str(uuid.uuid4()), kind, label)
            break
        except LockedError:
            if time.monotonic() >= give_up:
                raise
        time.sleep(random.uniform(0.01, 0.1))  # the other one is not to come back at once, too
    for member in done.members:
        _record(member, done)
    order = {replica.manifest.id: place for place, replica in enumerate(replicas)}
    done.members.sort(key=lambda member: order[member.replica.manifest.id])
    return done


def common(replicas: Sequence[Replica]) -> list[CommonPoint]:
    """The group points that every one of these replicas still has, oldest first."""
    known: list[dict[str, Point]] = []
    for replica in replicas:
        present = {point.id: point for point in replica.points}
        known.append(
            {
                record.group: present[record.id]
                for record in replica.manifest.groups
                if record.id in present
            }
        )
    shared = set.intersection(*(set(groups) for groups in known)) if known else set()
    found = [CommonPoint(group, [groups[group] for groups in known]) for group in shared]
    return sorted(found, key=lambda one: one.points[0].time_ns)


def _try(replicas: Sequence[Replica], group: str, kind: str, label: str) -> GroupMark:
    with contextlib.ExitStack() as stack:
        parts: list[_Part] = []
        try:
            for replica in replicas:
                part = _part(replica, group, stack)
                parts.append(part)
                part.send("group-prepare")
                part.receive()
            closed = _all(parts, "group-close")
            # All gates are closed: what was acknowledged before now is in, in all of them.
            time_ns = max(cast(int, answer["time_ns"]) for answer in closed)
            _all(parts, "group-mark", time_ns=time_ns, kind=kind, label=label)
            ended = _all(parts, "group-end")
        except BaseException:
            for part in parts:
                with contextlib.suppress(Error):
                    part.send("group-abort")
            raise
    members = [
        Member(replica, replication.point_of(answer), cast(float, answer["barrier_ms"]))
        for replica, answer in zip(replicas, ended, strict=True)
    ]
    first = min(cast(float, answer["closed_seconds"]) for answer in ended)
    last = max(cast(float, answer["opened_seconds"]) for answer in ended)
    return GroupMark(group, members, (last - first) * 1000)


def _all(parts: Sequence[_Part], command: str, **values: object) -> list[Answer]:
    """The same step in all of them at once; every answer is waited for."""
    for part in parts:
        part.send(command, **values)
    answers: list[Answer] = []
    failure: Error | None = None
    for part in parts:
        try:
            answers.append(part.receive())
        except Error as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return answers


def _record(member: Member, done: GroupMark) -> None:
    """Write into a manifest that its point is the group's. Every member has it durably."""
    members = sorted(each.replica.manifest.id for each in done.members)
    record = GroupPoint(id=member.point.id, group=done.group, members=members)
    with member.replica.locked(LOCK_SECONDS) as manifest:
        manifest.groups = [*manifest.groups, record][-GROUPS_KEPT:]
        member.replica.save()


class _Part(Protocol):
    """One replica's part: a step is sent to it, and then its answer taken."""

    def send(self, command: str, **values: object) -> None: ...
    def receive(self) -> Answer: ...


def _part(replica: Replica, group: str, stack: contextlib.ExitStack) -> _Part:
    try:
        connection = stack.enter_context(
            control.Connection(replica.control_path, STEP_SECONDS)
        )
    except control.NotRunningError:
        return _Quiet(replica, stack)
    return _Running(connection, group)


class _Running:
    """A replica whose ingest does the steps."""

    def __init__(self, connection: control.Connection, group: str) -> None:
        self._connection = connection
        self._group = group

    def send(self, command: str, **values: object) -> None:
        self._connection.send(command, group=self._group, **values)
        if command == "group-end":
            self._connection.wait_at_most(control.ANSWER_SECONDS)  # it commits

    def receive(self) -> Answer:
        return self._connection.receive()


class _Quiet:
    """A replica without an ingest: nobody writes, and nobody can begin to."""

    def __init__(self, replica: Replica, stack: contextlib.ExitStack) -> None:
        self._replica = replica
        self._stack = stack
        self._journals: Journals | None = None
        self._point: Point | None = None
        self._result: Answer | Error = {}
        self._steps: dict[str, Callable[..., Answer]] = {
            "group-prepare": self._prepare,
            "group-close": self._close,
            "group-mark": self._mark,
            "group-end": self._end,
            "group-abort": lambda: {},
        }

    def send(self, command: str, **values: object) -> None:
        try:
            self._result = self._steps[command](**values)
        except Error as error:
            self._result = error

    def receive(self) -> Answer:
        if isinstance(self._result, Error):
            raise self._result
        return self._result

    def _prepare(self) -> Answer:
        self._journals = self._stack.enter_context(replication.to_mark(self._replica))
        return {}

    def _close(self) -> Answer:
        assert self._journals is not None
        return {"time_ns": self._journals.point_time_ns()}

    def _mark(self, time_ns: int, kind: str, label: str) -> Answer:
        assert self._journals is not None
        self._point = self._journals.mark(kind, label, time_ns)
        return {}

    def _end(self) -> Answer:
        assert self._point is not None
        now = time.monotonic()
        return {
            **self._point.to_json(), "barrier_ms": 0.0, "closed_seconds": now, "opened_seconds": now
        }  # fmt: skip
