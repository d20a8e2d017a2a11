"""A worker: it serves a queue of a mount host until it is told to end.

One life has a queue at a time. What a dead one had begun, its next life goes on with: DBOS
starts again from the step that was not recorded as done, and each step may be done again.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple

from ..errors import LockedError, StateError, UsageError
from .lives import Life
from .running import Settings
from .store import Store

QUEUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOOK_SECONDS = 0.2


class Serving(NamedTuple):
    """A worker that has its queue. database: without a password."""

    queue: str
    host: str
    pid: int
    database: str


def serve(
    queue: str,
    where: Settings,
    stop: threading.Event,
    *,
    take_over: bool = False,
    on_ready: Callable[[Serving], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> None:
    """Take tasks from a queue until stop is set, and end the steps that are under way then.

    Args:
        take_over: Though the queue's last life was on another host, which is dead.
        on_ready: Called when tasks are taken.
        tell: Called when the database goes away, and with "" when it is back.

    Raises:
        UsageError: There is no queue of that name, or no database is given.
        LockedError: A life has the queue; or another one has taken it from this one.
        StateError: Its last life was on another host.
        Error: The database cannot be used.
    """
    if not QUEUE.fullmatch(queue):
        raise UsageError(
            f"{queue!r} is no name of a queue",
            "give up to 64 letters, digits, dots, dashes and underscores, as in the plan file",
        )
    if not where.database:
        raise UsageError(
            "a worker needs the database that the plans are run with",
            "give --database postgresql://user@host/database, or put it in ROLLPOINT_DATABASE",
        )
    from .durable import Host

    with (
        Store.open(where.database, tell=tell, gives_up=stop.is_set) as store,
        _life(store, queue, take_over) as life,
    ):
        here = Serving(queue, socket.gethostname(), os.getpid(), store.database.name)
        host = Host(store, life, [queue], where.hypervisors)
        try:
            _tell_runs(store, here, "came")
            if on_ready is not None:
                on_ready(here)
            while not stop.wait(LOOK_SECONDS) and not life.lost():
                host.require_no_trouble()
        finally:
            host.close()
        life.check()
        _tell_runs(store, here, "went")


def _life(store: Store, queue: str, take_over: bool) -> Life:
    try:
        return store.lock(queue, {"queue": queue}, take_over)
    except LockedError as error:
        raise LockedError(
            f"a worker serves the queue already: {error.message}",
            "end that one first; a queue has one worker",
        ) from None
    except StateError as error:
        raise StateError(f"queue {error.message}", error.hint) from None


def _tell_runs(store: Store, here: Serving, state: str) -> None:
    """Of runs that go on, those that have tasks for this queue show who serves it."""
    for row in store.runs():
        if row.state != "running":
            continue
        first = store.events(row.run, limit=1)[0]
        nodes = first.data["shape"]["nodes"].values()
        if any(node.get("queue") == here.queue for node in nodes):
            data = {"queue": here.queue, "host": here.host, "pid": here.pid, "state": state}
            store.append(row.run, "worker", data=data)
