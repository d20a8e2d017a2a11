"""One task of a run: what a mount host does for one replica, or once for a group.

  before     scripts
  operation  the replica's own, with an id by which it is asked for again: doing.py
  gates      until the guest, or the service, is seen to be up
  after      scripts

Each of them is a step that is recorded when it has been done, and done again when a crash
came first: an operation goes on where it stopped, a script is told its operation's id.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import msgspec

from ..errors import Error
from ..points import now_text
from . import doing, gates, scripts
from .events import EventKind
from .place import Place
from .shape import Node, Spec
from .tables import Each, Gate, Script

if TYPE_CHECKING:
    from ..hypervisor.base import Hypervisor

Row = dict[str, Any]
OpenHypervisors = Callable[[str], "tuple[Hypervisor | None, Hypervisor | None]"]
FLUSH_SECONDS = 0.2


class Tell(Protocol):
    """Append an event of this task's attempt. once: it is there once, however often told."""

    def __call__(self, kind: EventKind, data: Row, once: str = "") -> None: ...


class Around(NamedTuple):
    """What a task needs of the process that does it.

    Attributes:
        once: Name of a step, and what does it -> what it returned, now or before a crash.
        tell: Appends an event.
        gives_up: Whether the run was cancelled: scripts end.
        stops_looking: The same for gates; raises when this process is to end, and the next
            one looks.
        hypervisors: Directory of a replica -> where to run it, and where its source runs;
            None: as its replica.toml says.
        steps: Shows at which step an operation is.
    """

    once: Callable[[str, Callable[[], Row]], Row]
    tell: Tell
    gives_up: Callable[[], bool]
    stops_looking: Callable[[], bool]
    hypervisors: OpenHypervisors | None
    steps: Steps


class Before(NamedTuple):
    """What earlier attempts left: operations that failed, and what the one came to that did not."""

    tries: int
    outcome: Row | None


class Leaving(BaseException):
    """Ends a task in this process without a result: the next life goes on with it.

    No Exception, which DBOS would take for what the task came to.
    """


class _Failed(Exception):
    """A part of the task failed; it has been told of."""


def operation_id(run: str, key: str, number: int) -> str:
    """Of a task's operation: the same whenever it is asked for again, new after a failure."""
    return f"{run}-{hashlib.sha256(key.encode()).hexdigest()[:8]}-{number}"


def perform(spec: Spec, node: Node, before: Before, attempt: int, around: Around) -> None:
    """Do one attempt of a task, to its end. What came of it is told, never raised."""
    task = _Task(spec, node, before, attempt, around)
    around.tell("started", {"host": os.uname().nodename, "pid": os.getpid()}, "started")
    try:
        task.run()
    except _Failed:
        return
    around.tell("done", {}, "done")


class _Task:
    def __init__(
        self, spec: Spec, node: Node, before: Before, attempt: int, around: Around
    ) -> None:
        self._spec, self._node, self._before = spec, node, before
        self._attempt, self._around = attempt, around
        self._group = next(group for group in spec.plan.group if group.name == node.group)
        self._operation = operation_id(spec.run, node.key, before.tries)
        self._outcome = before.outcome or {}

    def run(self) -> None:
        each: Each = "replica" if self._node.kind == "replica" else "group"
        group = self._group
        if self._node.kind == "before" or (each == "replica" and not self._outcome):
            self._scripts("before", group.before, each)
        if each == "replica":
            self._operate()
        if self._node.kind != "before":
            self._gates(group.gate, each)
            self._scripts("after", group.after_up, each)

    # ---- its parts ----

    def _scripts(self, when: str, rows: list[Script], each: Each) -> None:
        wanted = [row for row in rows if row.each == each and self._spec.kind in row.on]
        for number, script in enumerate(wanted, 1):
            name = f"{when}: {script.name or number}"

            def do(script: Script = script) -> Row:
                return scripts.run(script, self._place(), gives_up=self._around.gives_up)

            row = {**self._around.once(name, self._caught(do)), "name": name}
            self._came_of("script", name, row)

    def _gates(self, rows: list[Gate], each: Each) -> None:
        wanted = [row for row in rows if row.each == each and self._spec.kind in row.on]
        for number, gate in enumerate(wanted, 1):
            name = f"gate {gate.name or f'{number} ({gate.kind})'}"

            def do(gate: Gate = gate, name: str = name) -> Row:
                self._around.tell("gate", {"name": name, "kind": gate.kind, "state": "looking"})
                hypervisor, _ = self._hypervisors()
                if hypervisor is None and gate.kind in ("heartbeat", "marker"):
                    hypervisor = doing.hypervisor_of(self._node.directory)
                return gates.wait(
                    gate,
                    self._place(),
                    hypervisor=hypervisor,
                    gives_up=self._around.stops_looking,
                    tell=lambda seen: self._around.tell("gate", {**seen, "name": name}),
                )

            row = {**self._around.once(name, self._caught(do)), "name": name}
            self._came_of("gate", name, row)

    def _operate(self) -> None:
        spec, node, group = self._spec, self._node, self._group
        deed = doing.Deed(
            kind=spec.kind,
            directory=node.directory,
            operation=self._operation,
            point=node.point,
            network=group.network,
            test_network=group.test_network,
            reason=spec.reason or f"plan {spec.plan.name}, run {spec.run}",
            skip={**group.skip, **spec.skip},
            former=node.former,
        )

        def do() -> Row:
            hypervisor, source = self._hypervisors()
            with self._around.steps.of(node.key, self._attempt, self._around.tell) as tell:
                done = doing.act(deed, tell=tell, hypervisor=hypervisor, source=source)
            made: Row = msgspec.to_builtins(done)
            self._around.tell("operation", made, "operation")
            return made

        row = self._around.once("operation", self._caught(do))
        if "error" in row:
            self._fail("operation", row, operation_failed=True)
        self._outcome = row

    # ---- what they share ----

    def _hypervisors(self) -> tuple[Hypervisor | None, Hypervisor | None]:
        opened = self._around.hypervisors
        return (None, None) if opened is None else opened(self._node.directory)

    def _caught(self, do: Callable[[], Row]) -> Callable[[], Row]:
        """A failure is a result like others, and recorded like them."""

        def caught() -> Row:
            try:
                return do()
            except Error as error:
                return {"error": error.message, "hint": error.hint, "code": error.code}
            except Exception as error:  # a defect ends this task, and not the run
                return {
                    "error": f"{type(error).__name__}: {error}",
                    "hint": "this is a defect of Rollpoint: please report it",
                    "code": "defect",
                }

        return caught

    def _came_of(self, kind: Literal["script", "gate"], name: str, row: Row) -> None:
        if "error" in row:
            self._fail(name, row)
        self._around.tell(kind, row, f"{kind} {name}")
        if row["state"] not in ("passed", "done"):
            why = row.get("why") or row.get("says") or row["state"]
            self._fail(name, {"error": f"{name}: {why}", "hint": row.get("hint", "")})

    def _fail(self, at: str, row: Row, *, operation_failed: bool = False) -> None:
        data = {"at": at, "error": row["error"], "hint": row.get("hint", "")}
        if operation_failed:
            data["operation_failed"] = True
        self._around.tell("failed", data, "failed")
        raise _Failed

    def _place(self) -> Place:
        spec, node, outcome = self._spec, self._node, self._outcome
        return Place(
            replica=node.name,
            directory=node.directory,
            group=node.group,
            plan=spec.plan.name,
            run=spec.run,
            kind=spec.kind,
            operation=self._operation if node.kind == "replica" else "",
            point=str(outcome.get("point") or ""),
            address=outcome.get("address") or "",
            machine=(outcome.get("machine") or {}).get("id", ""),
        )


class Steps:
    """Tells at which step operations are, where a step lasts: most are over before anybody
    could look, and each event is a sync."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._now: dict[str, tuple[Tell, Row]] = {}
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
        self._thread.start()

    def of(self, key: str, attempt: int, tell: Tell) -> _Stepping:
        return _Stepping(self, f"{key}#{attempt}", tell)

    def close(self) -> None:
        self._stop = True
        self._wake.set()
        self._thread.join()

    def put(self, name: str, tell: Tell, row: Row | None) -> None:
        with self._lock:
            if row is None:
                self._now.pop(name, None)
            else:
                self._now[name] = (tell, row)

    def _run(self) -> None:
        while not self._stop:
            self._wake.wait(FLUSH_SECONDS)
            with self._lock:
                lasting = list(self._now.items())
            now = time.monotonic()
            for name, (tell, row) in lasting:
                if now - row["since"] < FLUSH_SECONDS:
                    continue
                with contextlib.suppress(Leaving):
                    tell("step", {"name": row["name"], "state": "running", "time": row["time"]})
                with self._lock:
                    if self._now.get(name) == (tell, row):
                        del self._now[name]


class _Stepping:
    def __init__(self, steps: Steps, name: str, tell: Tell) -> None:
        self._steps, self._name, self._tell = steps, name, tell

    def __enter__(self) -> Callable[[str, str], None]:
        return self._step

    def __exit__(self, *exception: object) -> None:
        self._steps.put(self._name, self._tell, None)

    def _step(self, name: str, state: str) -> None:
        row = {"name": name, "time": now_text(), "since": time.monotonic()}
        self._steps.put(self._name, self._tell, row if state == "running" else None)
