"""What makes a run durable: DBOS, which hands tasks to the queues of the mount hosts.

A process serves queues under one name, its executor's; when it has died, the next one of that
name goes on with what it had begun. Whoever does so first makes certain that the former one
is dead: see Store.lock. Two kinds of workflows: `supervise`, one for each opening of a run,
which decides from the run's events what starts next, and `perform`, one for each attempt of a
task. Neither keeps anything in memory that is not in the database as well.

Source: DBOS Transact for Python 3.4: recovery is by executor id and application version, both
of which it would make up; queues are polled.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from dbos import DBOS, DBOSClient, DBOSConfig

from ..errors import Error, FailedError, NotFoundError, StorageError
from . import asking, supervising, task
from .events import EventKind
from .lives import Life
from .shape import Spec
from .store import Store
from .task import Leaving

APPLICATION = "rollpoint-plans-1"  # goes up when the steps of a task change their meaning
POLL_SECONDS = 0.05
LOOK_SECONDS = 1.0  # how soon a gate knows that its run was cancelled
_NAME = "rollpoint"
_DEAD = ("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")

Row = dict[str, Any]


class Host:
    """This process, which serves queues until it is closed. DBOS allows one in a process.

    Args:
        life: Of the executor's name, held by whoever calls this.
        queues: To take tasks from.
        hypervisors: See task.Around.
    """

    def __init__(
        self,
        store: Store,
        life: Life,
        queues: Sequence[str],
        hypervisors: task.OpenHypervisors | None = None,
    ) -> None:
        global _host
        if _host is not None:
            raise FailedError("this process serves the queues of plans already")
        self.store, self.life, self.hypervisors = store, life, hypervisors
        self._client: Client | None = None
        self._trouble: Error | None = None
        self._ready = threading.Event()
        self._leaving = threading.Event()
        self._idle = threading.Condition()
        self._under_way = 0
        self.steps = task.Steps()
        self._specs: dict[str, Spec] = {}
        logging.getLogger("dbos").setLevel(logging.CRITICAL)
        config: DBOSConfig = {
            "name": _NAME,
            "system_database_url": store.database.whole_url,
            "application_version": APPLICATION,
            "executor_id": life.name,
            "log_level": "CRITICAL",
            "enable_otlp": False,
            "notification_listener_polling_interval_sec": POLL_SECONDS,
        }
        DBOS(config=config)
        DBOS.listen_queues(list(queues))
        _host = self
        try:
            DBOS.launch()
            for queue in queues:
                DBOS.register_queue(queue, polling_interval_sec=POLL_SECONDS)
            self._client = Client(store)
            self._ready.set()
        except Error:
            self.close()
            raise
        except Exception as error:  # of whatever kind DBOS, or its driver, has for it
            self.close()
            says = " ".join(str(error).split())[:300]
            raise StorageError(
                f"DBOS cannot use the database {store.database.name}: {says}",
                "see that its role may make the schema dbos; or that this Rollpoint is as new as "
                "the others that use the database",
            ) from None

    @property
    def client(self) -> Client:
        """Hands tasks to queues, this process's own among them."""
        assert self._client is not None
        return self._client

    def spec(self, run: str) -> Spec:
        """What a run is to do."""
        if run not in self._specs:
            first = self.store.events(run, limit=1)
            if not first:
                raise NotFoundError(f"run {run} is not in the database of this worker")
            self._specs[run] = msgspec.convert(first[0].data, Spec)
        return self._specs[run]

    def step(self, name: str, do: Callable[[], Row]) -> Row:
        """What a step of the workflow came to, now or before a crash.

        Raises:
            Leaving: This process is to begin nothing more.
        """
        self.require_staying()
        with self._idle:
            self._under_way += 1
        try:
            with self.recording():
                self.life.check()  # another process may have taken the name
            made: Row = DBOS.run_step({"name": name}, do)
            return made
        finally:
            with self._idle:
                self._under_way -= 1
                self._idle.notify_all()

    def require_staying(self) -> None:
        if self._leaving.is_set():
            raise Leaving

    def require_ready(self) -> None:
        """DBOS begins with what a former life left before the queues are known."""
        self._ready.wait()
        self.require_staying()

    def require_no_trouble(self) -> None:
        """For whoever waits for the end of a run.

        Raises:
            Error: Runs cannot be recorded any more, or another life has the name.
        """
        if self._trouble is not None:
            raise self._trouble

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Around what needs the run's database: where it fails this process leaves.

        An error would be taken for what the task came to, though that cannot be written.
        """
        try:
            yield
        except Error as error:
            self._trouble = self._trouble or error
            self._leaving.set()
            raise Leaving from None

    def leave(self) -> None:
        """Begin no step any more; those that are under way end. Does not wait for them."""
        self._leaving.set()
        self._ready.set()

    def close(self) -> None:
        """Stop serving, once each task has ended the step that it is in."""
        global _host
        self.leave()
        with self._idle:
            while self._under_way:
                self._idle.wait()
        with contextlib.suppress(Exception):
            DBOS.destroy()
        if self._client is not None:
            self._client.close()
        self.steps.close()
        _host = None


_host: Host | None = None  # DBOS finds workflows by their names, and they their process here


class Client:
    """Hands work to whoever serves a queue."""

    def __init__(self, store: Store) -> None:
        self._dbos = DBOSClient(system_database_url=store.database.whole_url)

    def enqueue(self, workflow: str, queue: str, id: str, *arguments: object) -> None:
        """Once for each id, however often it is asked for."""
        self._dbos.enqueue(
            {
                "workflow_name": workflow,
                "queue_name": queue,
                "workflow_id": id,
                "app_version": APPLICATION,
            },
            *arguments,
        )

    def result(self, id: str, timeout_seconds: float) -> Any:
        """What a workflow returned; None: nothing in that time."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            if self.require_alive(id) == "SUCCESS":
                return self._dbos.retrieve_workflow(id).get_result()
            if time.monotonic() > deadline:
                self._dbos.cancel_workflow(id)
                return None
            time.sleep(POLL_SECONDS)

    def require_alive(self, id: str) -> str:
        """What DBOS says of a workflow, unless that has died.

        Raises:
            FailedError: With its last words.
        """
        status = self._dbos.retrieve_workflow(id).get_status()
        if status.status in _DEAD:
            raise FailedError(f"{id} ended: {status.status}: {status.error}")
        return str(status.status)

    def forget(self, runs: Sequence[str]) -> None:
        """Remove what DBOS keeps of runs that have ended: their events tell all of it."""
        prefixes = [f"{run}/" for run in runs]
        if prefixes:
            found = self._dbos.list_workflows(
                workflow_id_prefix=prefixes, load_input=False, load_output=False
            )
            self._dbos.delete_workflows([one.workflow_id for one in found])

    def close(self) -> None:
        self._dbos.destroy()


def _here() -> Host:
    if _host is None:  # it has just been closed
        raise Leaving
    _host.require_ready()
    return _host


@DBOS.workflow(name="supervise")
def supervise(run: str, opening: int) -> None:
    """Start what may start, until the run has ended."""
    host = _here()

    def do() -> Row:
        with host.recording():
            return supervising.supervise(
                host.store, run, opening, host.client, host.require_staying
            )

    host.step("supervise", do)


@DBOS.workflow(name="perform")
def perform(run: str, key: str, attempt: int, before: Row) -> None:
    """One attempt of a task; before: what earlier attempts left, see supervising.py."""
    host = _here()
    with host.recording():
        spec, watch = host.spec(run), _Watch(host, run)
    around = task.Around(
        once=host.step,
        tell=_Teller(host, run, key, attempt),
        gives_up=watch,
        stops_looking=watch.stops_looking,
        hypervisors=host.hypervisors,
        steps=host.steps,
    )
    task.perform(spec, spec.shape.nodes[key], task.Before(**before), attempt, around)


class _Teller:
    """Appends the events of an attempt; see task.Tell."""

    def __init__(self, host: Host, run: str, key: str, attempt: int) -> None:
        self._host, self._run, self._key, self._attempt = host, run, key, attempt

    def __call__(self, kind: EventKind, data: Row, once: str = "") -> None:
        name = f"{self._key}#{self._attempt} {once}" if once else ""
        with self._host.recording():
            self._host.store.append(self._run, kind, self._key, self._attempt, data, name)


class _Watch:
    """Whether a run was cancelled; looks now and then."""

    def __init__(self, host: Host, run: str) -> None:
        self._host, self._run = host, run
        self._seq = 0
        self._looked = 0.0
        self._cancelled = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            with self._host.recording():
                events = self._host.store.events(self._run, self._seq)
            for event in events:
                self._seq = event.seq
                if event.kind in ("cancelled", "reopened"):
                    self._cancelled = event.kind == "cancelled"
        return self._cancelled

    def stops_looking(self) -> bool:
        """The same; raises Leaving when this process is to end."""
        self._host.require_staying()
        return self()


@DBOS.workflow(name="survey")
def look(request: str) -> str:
    """What a mount host knows of replicas; the request and the answer are JSON."""
    return DBOS.run_step({"name": "survey"}, lambda: asking.reply(request))
