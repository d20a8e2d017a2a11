"""Where runs and their events are kept: one table of events, in SQLite or PostgreSQL.

The number of an event is taken in the transaction that writes it, by raising the counter in
the run's row; that locks the row until the commit. So events of a run become visible in the
order of their numbers, and a reader that has seen N misses nothing by asking for what is
after N.

An event with `once` is there once in its run. One without gets a name of its own from the
call, so that a call made again after the database went away, which cannot know whether it had
committed, adds nothing twice either.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import msgspec
import sqlalchemy as sa

from ..closing import Closing
from ..errors import ExistsError, NotFoundError, StateError
from ..points import now_text
from . import lives
from .database import EVENTS, RUNS, Database, Result
from .events import Event, EventKind, RunWord
from .lives import Holder, Life
from .shape import Spec

POLL_SECONDS = 0.2
EVENTS_MAX = 10_000
KEEP_RUNS = 50


class New(NamedTuple):
    """An event to be. once: nothing is added when the run has one of that name."""

    kind: EventKind
    key: str = ""
    attempt: int = 0
    data: dict[str, Any] | None = None
    once: str = ""


class RunRow(NamedTuple):
    """A run in a list. ended: "" while it is not; of: the run that it ends, or ""."""

    run: str
    plan: str
    kind: str
    of: str
    begun: str
    ended: str
    state: str


class Store(Closing):
    """Runs and their events. Any thread may call anything; after a fork open a new one."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._came = threading.Condition()

    @classmethod
    def open(
        cls,
        url: str,
        *,
        create: bool = True,
        tell: Callable[[str], None] | None = None,
        gives_up: Callable[[], bool] | None = None,
    ) -> Self:
        """Of sqlite:////path or postgresql://user@host:port/database.

        Args:
            create: Make the tables, and SQLite's file, where they are missing.
            tell, gives_up: See Database; for when it goes away later.

        Raises:
            UsageError: The URL is none, or has a password in it.
            StorageError: It cannot be reached, or may not be written.
            NotFoundError: There is nothing, and create is false.
            UnsupportedError: Its schema is newer.
        """
        database = Database(url)
        try:
            database.open(create)
        except BaseException:
            database.close()
            raise
        if tell is not None:
            database.tell = tell
        if gives_up is not None:
            database.gives_up = gives_up
        return cls(database)

    def close(self) -> None:
        self.database.close()

    # ---- runs ----

    def new_run(self, plan: str, run: str, spec: Spec) -> Event:
        """Record that a run begins: its row and its first event, or neither.

        Raises:
            StateError: The plan has an unfinished run.
            ExistsError: There is a run of that id.
        """
        token = uuid.uuid4().hex
        data = _packed(msgspec.to_builtins(spec))

        def work(connection: sa.Connection) -> Event:
            found = connection.execute(sa.select(RUNS.c.said).where(RUNS.c.run == run)).scalar()
            now = now_text()
            if found is None:
                _need_no_other(connection, plan, run)
                row = {
                    "run": run, "plan": plan, "kind": spec.kind, "of": spec.of, "begun": now,
                    "ended": "", "state": "running", "seq": 1, "said": token,
                }  # fmt: skip
                connection.execute(RUNS.insert().values(row))
                first = {
                    "run": run, "seq": 1, "time": now, "kind": "begun", "key": "", "attempt": 0,
                    "data": data, "once": "begun", "said": token,
                }  # fmt: skip
                connection.execute(EVENTS.insert().values(first))
            elif found != token:
                raise ExistsError(f"there is a run {run} already", "give the new one another id")
            wanted = (EVENTS.c.run == run) & (EVENTS.c.seq == 1)
            return _event(connection.execute(sa.select(EVENTS).where(wanted)).mappings().one())

        return self._written(work)

    def runs(self, plan: str = "") -> list[RunRow]:
        """Those of a plan, or of all, the newest first."""
        columns = [RUNS.c[name] for name in RunRow._fields]
        asked = sa.select(*columns).order_by(RUNS.c.begun.desc(), RUNS.c.run.desc())
        if plan:
            asked = asked.where(RUNS.c.plan == plan)
        return self.database.read(
            lambda connection: [RunRow(*row) for row in connection.execute(asked)]
        )

    def prune(self, plan: str, keep: int = KEEP_RUNS) -> int:
        """Forget the plan's oldest runs that have ended. How many.

        Kept are the newest, and those that one of them ends.
        """

        def work(connection: sa.Connection) -> int:
            asked = sa.select(RUNS.c.run, RUNS.c.of, RUNS.c.state).where(RUNS.c.plan == plan)
            rows = connection.execute(asked.order_by(RUNS.c.begun.desc(), RUNS.c.run.desc())).all()
            kept = {row.run for row in rows[:keep]} | {row.of for row in rows[:keep]}
            old = [row.run for row in rows if row.run not in kept and row.state != "running"]
            for run in old:
                connection.execute(EVENTS.delete().where(EVENTS.c.run == run))
                connection.execute(RUNS.delete().where(RUNS.c.run == run))
            return len(old)

        return self.database.write(work)

    # ---- events ----

    def append(
        self,
        run: str,
        kind: EventKind,
        key: str = "",
        attempt: int = 0,
        data: dict[str, Any] | None = None,
        once: str = "",
    ) -> Event | None:
        """Add one; it is durable when this returns. None: there was one of that `once`.

        Raises:
            NotFoundError: There is no such run.
            StateError: It is to be gone on with, and another run of the plan has not ended.
        """
        return self.append_many(run, [New(kind, key, attempt, data, once)])[0]

    def end(self, run: str, word: RunWord, seen: int) -> Event | None:
        """Add the end of a run, if nothing has happened since the event number `seen`.

        Returns:
            The event; None: something has, and it is no end any more.
        """

        def work(connection: sa.Connection) -> Event | None:
            connection.execute(RUNS.update().where(RUNS.c.run == run).values(seq=RUNS.c.seq))
            newest = sa.select(sa.func.max(EVENTS.c.seq)).where(EVENTS.c.run == run)
            if connection.execute(newest).scalar() != seen:
                return None
            new = New("ended", data={"state": word}, once=f"ended {seen}")
            return _append(connection, run, [new], [_packed(new.data)], token)[0]

        token = uuid.uuid4().hex
        return self._written(work)

    def append_many(self, run: str, news: Sequence[New]) -> list[Event | None]:
        """Add all of them, in order and in one transaction; None for each that was there."""
        if not news:
            return []
        token = uuid.uuid4().hex
        packed = [_packed(new.data or {}) for new in news]
        return self._written(lambda connection: _append(connection, run, news, packed, token))

    def events(self, run: str, after: int = 0, limit: int = EVENTS_MAX) -> list[Event]:
        """Those that follow the number `after`, in order; not more than limit."""
        asked = sa.select(EVENTS).where((EVENTS.c.run == run) & (EVENTS.c.seq > after))
        asked = asked.order_by(EVENTS.c.seq).limit(limit)
        return self.database.read(
            lambda connection: [_event(row) for row in connection.execute(asked).mappings()]
        )

    def wait(self, run: str, after: int, seconds: float) -> list[Event]:
        """The same, once there are some; none when the time is up."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.events(run, after)
            left = deadline - time.monotonic()
            if found or left <= 0:
                return found
            with self._came:
                self._came.wait(min(POLL_SECONDS, left))

    def _written(self, work: Callable[[sa.Connection], Result]) -> Result:
        result = self.database.write(work)
        with self._came:
            self._came.notify_all()
        return result

    # ---- lives ----

    def lock(self, name: str, facts: dict[str, Any], take_over: bool = False) -> Life:
        """Be the one life of that name: see lives.begin."""
        return lives.begin(self.database, name, facts, take_over)

    def holder(self, name: str) -> Holder | None:
        """Who has that name, or had it last."""
        return lives.holder(self.database, name)


def _append(
    connection: sa.Connection,
    run: str,
    news: Sequence[New],
    packed: Sequence[str],
    token: str,
) -> list[Event | None]:
    raised = RUNS.update().where(RUNS.c.run == run).values(seq=RUNS.c.seq + len(news))
    last = connection.execute(raised.returning(RUNS.c.seq)).scalar_one_or_none()
    if last is None:
        raise NotFoundError(f"there is no run {run} in the database", "list them with: plan runs")
    names = [new.once or f"{token}/{number}" for number, new in enumerate(news)]
    asked = sa.select(EVENTS).where((EVENTS.c.run == run) & EVENTS.c.once.in_(names))
    there: dict[str, sa.RowMapping | None] = {
        row["once"]: row for row in connection.execute(asked).mappings()
    }
    now, fresh = now_text(), []
    result: list[Event | None] = []
    for number, (new, name) in enumerate(zip(news, names, strict=True)):
        if name in there:
            row = there[name]
            ours = row is not None and row["said"] == token
            result.append(_event(row) if row is not None and ours else None)
            continue
        there[name] = None
        fresh.append({
            "run": run, "seq": last - len(news) + 1 + number, "time": now, "kind": new.kind,
            "key": new.key, "attempt": new.attempt, "data": packed[number], "once": name,
            "said": token,
        })  # fmt: skip
        result.append(_event(fresh[-1]))
        _follow(connection, run, new, now)
    if fresh:
        connection.execute(EVENTS.insert(), fresh)
    return result


def _follow(connection: sa.Connection, run: str, new: New, now: str) -> None:
    """What the run's row says, as events.fold has it."""
    row = RUNS.update().where(RUNS.c.run == run)
    if new.kind == "ended":
        assert new.data is not None
        connection.execute(row.values(state=new.data["state"], ended=now))
    elif new.kind == "reopened":
        plan = connection.execute(sa.select(RUNS.c.plan).where(RUNS.c.run == run)).scalar_one()
        _need_no_other(connection, plan, run)
        connection.execute(row.values(state="running", ended=""))


def _need_no_other(connection: sa.Connection, plan: str, run: str) -> None:
    wanted = (RUNS.c.plan == plan) & (RUNS.c.state == "running") & (RUNS.c.run != run)
    other = connection.execute(sa.select(RUNS.c.run, RUNS.c.begun).where(wanted)).first()
    if other is not None:
        raise StateError(
            f"run {other.run} of plan {plan}, begun {other.begun}, has not ended: a plan has one "
            "run at a time",
            "look at it with: plan status; end it with: plan cancel",
        )


def _event(row: sa.RowMapping | dict[str, Any]) -> Event:
    return Event(
        seq=row["seq"],
        time=row["time"],
        run=row["run"],
        kind=row["kind"],
        key=row["key"],
        attempt=row["attempt"],
        data=msgspec.json.decode(row["data"]),
    )


def _packed(data: Any) -> str:
    """JSON. Half a surrogate, which file names and output of scripts may have, is a "?"."""
    try:
        return msgspec.json.encode(data).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(_clean(data)).decode()


def _clean(data: Any) -> Any:
    if isinstance(data, str):
        return data.encode("utf-8", "replace").decode()
    if isinstance(data, dict):
        return {_clean(key): _clean(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_clean(item) for item in data]
    return data
