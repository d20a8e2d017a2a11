"""Runs of plans: begun, driven to their end, asked for changes, and looked up.

A run is begun by writing its first event, which says all that it is to do. Whoever drives it
serves the plan's own queue, where it is supervised, until it has ended. Its process may die at
any moment, and another one drives it on.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from .. import audit, operation_report
from ..errors import Error, StateError, UsageError
from . import file, report, shaping, survey
from .asking import ask
from .events import Event, RunState, fold
from .found import Found, Resolved
from .shape import Shape, Spec
from .store import New, Store
from .supervising import all_events, local_queue
from .tables import FORWARD, Plan, RunKind

if TYPE_CHECKING:
    from .durable import Host
    from .task import OpenHypervisors

POLL_SECONDS = 0.2
DATABASE_ENV = "ROLLPOINT_DATABASE"
STATE_ENV = "ROLLPOINT_STATE"

OnEvents = Callable[[list[Event], RunState], None]


class Settings(NamedTuple):
    """Where runs are kept.

    Attributes:
        state: Directory for databases and reports.
        database: URL; "": a SQLite file for each plan in the state directory.
        hypervisors: Where replicas run, instead of what their replica.toml says.
        gives_up: Asked while the database is away; true ends the waiting with StorageError.
    """

    state: str
    database: str = ""
    hypervisors: OpenHypervisors | None = None
    gives_up: Callable[[], bool] | None = None


class Only(NamedTuple):
    """What of a plan is meant; empty: all of it."""

    groups: Sequence[str] = ()
    replicas: Sequence[str] = ()


def settings(state: str = "", database: str = "") -> Settings:
    """From the command line, else from the environment, else as people expect it."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    state = state or os.environ.get(STATE_ENV) or os.path.join(home, "rollpoint")
    return Settings(os.path.abspath(state), database or os.environ.get(DATABASE_ENV, ""))


@contextlib.contextmanager
def opened(
    plan: str, where: Settings, tell: Callable[[str], None] | None = None
) -> Iterator[Store]:
    """The database of a plan's runs. tell: see Store.open."""
    url = where.database
    if not url:
        folder = os.path.join(where.state, "plans")
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{folder} cannot be made: {error.strerror}",
                f"name another directory with --state, or in {STATE_ENV}",
            ) from None
        url = f"sqlite:///{folder}/{plan}.sqlite"
    store = Store.open(url, tell=tell, gives_up=where.gives_up)
    try:
        yield store
    finally:
        store.close()


# ---- beginning ----


def start(
    path: str,
    kind: RunKind,
    where: Settings,
    *,
    only: Only | None = None,
    reason: str = "",
    skip: Mapping[str, str] | None = None,
    who: str | None = None,
) -> str:
    """Begin a run; its id. Nothing is done before somebody drives it.

    Raises:
        UsageError: The plan file is not right, or names what there is not.
        StateError: A run of this plan has not ended; there is nothing to undo.
        Error: A mount host does not answer; the database cannot be used.
    """
    plan = file.load(path)
    with opened(plan.name, where) as store:
        require_ended(store, plan.name)
        run = new_id()
        of = ""
        if kind in FORWARD:
            shape = _forward(plan, path, kind, run, store, only)
        else:
            former = ended_by(store, plan.name, kind)
            of = former.spec.run
            shape = _ending(plan, kind, store, former, only)
        spec = Spec(
            run=run, kind=kind, plan=plan, plan_path=os.path.abspath(path), shape=shape,
            who=who or audit.who(), host=os.uname().nodename, reason=reason, of=of,
            skip=dict(skip or {}),
        )  # fmt: skip
        store.new_run(plan.name, run, spec)
    return run


def new_id() -> str:
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(2)


def require_ended(store: Store, plan: str) -> None:
    """One run of a plan at a time.

    Raises:
        StateError: It says what to do about the one there is.
    """
    state = current(store, plan)
    if state is None or state.state != "running":
        return
    spec = state.spec
    going = "is going on" if is_driven(store, plan) else "was cut short"
    raise StateError(
        f"run {spec.run} ({spec.kind}) of plan {plan} {going}: begun {state.begun} by {spec.who} "
        f"on {spec.host}",
        f"rollpoint plan status {spec.plan_path} shows it, plan continue goes on with it, "
        "plan cancel ends it",
    )


def _forward(
    plan: Plan, path: str, kind: RunKind, run: str, store: Store, only: Only | None
) -> Shape:
    found: dict[str, list[Found]] = {}
    points: dict[str, str] = {}
    for group in plan.group:
        request = survey.request(plan, path, group, kind, run=run)
        answer = msgspec.json.decode(ask(store, request), type=Resolved)
        found[group.name] = answer.found
        points |= {f"{group.name}/{name}": point for name, point in answer.points.items()}
    return shaping.build(plan, kind, found, points, only=only)


# ---- what an earlier run left ----


def ended_by(store: Store, plan: str, kind: RunKind) -> RunState:
    """The newest run whose replicas such a run can end.

    Raises:
        StateError: There is none.
    """
    for row in store.runs(plan):
        if row.kind in FORWARD and (kind == "undo" or row.kind != "test"):
            return fold(all_events(store, row.run))
    raise StateError(
        f"no run of plan {plan} is there to {kind}",
        "rollpoint plan runs lists those that there are",
    )


def _ending(
    plan: Plan, kind: RunKind, store: Store, former: RunState, only: Only | None
) -> Shape:
    """The shape of a run that ends what another began: the replicas that came that far."""
    over = {
        key
        for row in store.runs(plan.name)
        if row.of == former.spec.run and row.kind != "failback"
        for key, node in fold(all_events(store, row.run)).nodes.items()
        if node.state == "done"
    }
    found: dict[str, list[Found]] = {}
    formers: dict[str, dict[str, Any]] = {}
    queues = {group.name: group.queue for group in former.spec.plan.group}
    for key, node in former.spec.shape.nodes.items():
        outcome = former.nodes[key].outcome
        if node.kind != "replica" or outcome is None or key in over:
            continue
        one = Found(
            name=node.name, directory=node.directory, datastores=node.datastores
        )
        found.setdefault(node.group, []).append(one)
        formers[key] = {
            "run": former.spec.run, "kind": former.spec.kind, "operation": outcome["operation"]
        }  # fmt: skip
    if not found:
        raise StateError(
            f"run {former.spec.run} of plan {plan.name} left nothing to {kind}",
            "each replica of it was ended already: rollpoint plan runs",
        )
    now = {group.name: group.queue for group in plan.group}
    for name in found:
        if now.get(name) != queues[name]:
            raise UsageError(
                f"group {name} of run {former.spec.run} is not in the plan any more, or on another "
                "queue", "put it back: it has replicas that are failed over",
            )  # fmt: skip
    return shaping.build(plan, kind, found, {}, formers, only=only)


# ---- driving ----


def drive(
    plan: str,
    run: str,
    where: Settings,
    *,
    on_events: OnEvents | None = None,
    stop: threading.Event | None = None,
    take_over: bool = False,
    tell: Callable[[str], None] | None = None,
) -> RunState:
    """Carry a run out to its end, or until `stop` is set; a report is written at its end.

    Args:
        tell: Called when the database goes away, and with "" when it is back.

    Raises:
        LockedError: Another process drives it.
        Error: The database cannot be used.
    """
    from .durable import Host

    with opened(plan, where, tell) as store:
        name = local_queue(plan)
        with store.lock(name, {"run": run}, take_over) as life:
            host = Host(store, life, [name], where.hypervisors)
            try:
                state = _watch(host, run, on_events, stop)
                _tidy(host, plan, run)
            finally:
                host.close()
        if state.ended:
            try:
                write_report(store, state, where)
            except (Error, OSError) as error:  # the run is what it is without one
                says = getattr(error, "message", str(error))
                if tell is not None:
                    tell(f"no report was written: {says}; rollpoint plan report writes it again")
    return state


def _tidy(host: Host, plan: str, run: str) -> None:
    """Of runs that have ended, but for this one: of the oldest ones nothing stays."""
    ended = [row.run for row in host.store.runs(plan) if row.ended and row.run != run]
    host.client.forget(ended)
    host.store.prune(plan)


def _watch(
    host: Host, run: str, on_events: OnEvents | None, stop: threading.Event | None
) -> RunState:
    store = host.store
    events = all_events(store, run)
    state = fold(events)
    id = f"{run}/supervise/{state.reopened}"
    host.client.enqueue("supervise", local_queue(state.spec.plan.name), id, run, state.reopened)
    if on_events is not None:
        on_events(events, state)
    while state.state == "running":
        if stop is not None and stop.is_set():
            break
        events = store.wait(run, state.seq, POLL_SECONDS)
        if events:
            state = fold(events, state)
        else:
            host.require_no_trouble()
            host.client.require_alive(id)
        if on_events is not None:
            on_events(events, state)
    return state


def write_report(store: Store, state: RunState, where: Settings) -> tuple[str, str]:
    """Paths of the report's two files, JSON and HTML."""
    folder = _reports(state, where)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return report.write(state, all_events(store, state.spec.run), folder)


def report_page(state: RunState, where: Settings) -> str:
    """Path of the page that `drive` wrote."""
    return os.path.join(_reports(state, where), operation_report.file_name(state.spec.run, "html"))


def _reports(state: RunState, where: Settings) -> str:
    return os.path.join(where.state, "reports", state.spec.plan.name)


# ---- asking for changes, and looking ----


def request(
    store: Store,
    state: RunState,
    kind: Literal["paused", "continued", "cancelled", "retry", "skip"],
    names: Iterable[str] = (),
    who: str | None = None,
    reason: str = "",
) -> list[str]:
    """Ask for a change of a run: paused, continued, cancelled, retry, skip. The tasks meant.

    A run that ended failed or cancelled is opened again by retry and skip.

    Raises:
        UsageError: No task is meant by a name, or one of which that cannot be asked.
        StateError: The run has ended.
    """
    data = {"who": who or audit.who(), "host": os.uname().nodename, "reason": reason}
    run, asked = state.spec.run, list[New]()
    if kind in ("retry", "skip"):
        keys = _keys(state, list(names), kind)
        if state.ended:
            if state.state == "done":
                raise StateError(f"run {run} has ended, and nothing of it failed")
            once = f"reopened {state.reopened + 1}"
            asked.append(New("reopened", data=data, once=once))
        asked += [New(kind, key, state.nodes[key].attempt, data) for key in keys]
        store.append_many(run, asked)
        return keys
    if state.ended:
        hint = "begin another one: rollpoint plan run"
        if state.state != "done":
            hint = f"rollpoint plan retry goes on with it; or {hint}"
        raise StateError(f"run {run} has ended: {state.state}", hint)
    store.append(run, kind, data=data)
    return []


def _keys(state: RunState, names: list[str], kind: str) -> list[str]:
    may = ("failed", "asking") if kind == "retry" else ("failed", "asking", "waiting")
    if not names:
        found = [key for key, node in state.nodes.items() if node.state in ("failed", "asking")]
        if not found and not (kind == "retry" and state.state == "cancelled"):
            raise UsageError(f"nothing of run {state.spec.run} failed", "name what is meant")
        return found
    keys = []
    for name in names:
        meant = [
            key
            for key, node in state.spec.shape.nodes.items()
            if name in (key, node.name or key, node.group)
            and state.nodes[key].state in may
        ]
        if not meant:
            words = ", ".join(may)
            raise UsageError(
                f"no task {name!r} of run {state.spec.run} is {words}", "see plan status"
            )
        keys += meant
    return list(dict.fromkeys(keys))


def states(store: Store, plan: str) -> Iterator[RunState]:
    """The runs of a plan, newest first."""
    for row in store.runs(plan):
        yield fold(all_events(store, row.run))


def current(store: Store, plan: str) -> RunState | None:
    """The newest run of a plan; None: there was none."""
    return next(states(store, plan), None)


def is_driven(store: Store, plan: str) -> bool:
    """Whether a process drives the plan's run now."""
    holder = store.holder(local_queue(plan))
    return holder is not None and holder.alive
