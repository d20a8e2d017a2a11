"""Steps of an operation, each recorded in the manifest before it is done.

A step that is found "running" after a crash may have been done, in part or in whole;
so every step can be done again. What is recorded as done is never done twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from . import audit, timers
from .disk import open_disk
from .errors import DamagedError, StateError, UsageError
from .manifest import Kind, Operation, Step
from .points import now_text
from .replica import Replica

OnStep = Callable[[Step], None]
Ended = Literal["done", "rolled back", "failed"]


class Runner:
    """Runs the steps of the operation in progress of a replica. Inside `locked`.

    Args:
        on_step: Called with each step when it begins (its state is "running") and when
            it has been done ("done"), before that is recorded.
    """

    def __init__(self, replica: Replica, on_step: OnStep | None = None) -> None:
        self._replica = replica
        self._on_step = on_step or (lambda step: None)

    @property
    def operation(self) -> Operation:
        operation = self._replica.manifest.operation
        assert operation is not None, "no operation is in progress"
        return operation

    def run(
        self,
        name: str,
        action: Callable[[], str | None],
        *,
        again: bool = False,
        record: bool = True,
    ) -> None:
        """Do a step, unless it is done. What the action returns becomes its note.

        Its end is recorded together with the next record: a crash in between makes it
        run again, which every step allows.

        Args:
            again: Do it even when it is recorded as done (its effect was lost).
            record: Save that it begins. Not for a step of milliseconds that a resume
                does again anyway: a save is two syncs of a failover's time.
        """
        step = self.operation.step(name)
        if step.state in ("done", "skipped") and not again:
            return
        step.state = "running"
        step.started_ns = time.time_ns()
        if record:
            self._replica.save()
        begun = time.perf_counter()
        try:
            self._on_step(step)
            step.note = action() or ""
            step.seconds = time.perf_counter() - begun
            step.state = "done"
            self._on_step(step)
        except BaseException:
            step.state = "failed"
            step.seconds = time.perf_counter() - begun
            raise

    def skip(self, name: str, note: str) -> None:
        """Record that a step is not needed."""
        step = self.operation.step(name)
        if step.state == "pending":
            step.state, step.seconds, step.note = "skipped", 0.0, note

    def finish(self, outcome: Ended = "done", error: str | None = None) -> Operation:
        """End the operation; see end."""
        return end(self._replica, outcome, error)


def begin(
    replica: Replica, kind: Kind, names: Sequence[str], operation_id: str, **facts: object
) -> Operation:
    """Put a new operation into the manifest; the first step's record makes it durable,
    and with it the intent for audit.jsonl.

    This and `end` are the only ways into and out of an operation that has steps.
    """
    operation = Operation(
        id=operation_id,
        kind=kind,
        started=now_text(),
        found_state=replica.manifest.state,
        found_held=replica.manifest.held,
        steps=[Step(name=name) for name in names],
        **facts,  # type: ignore[arg-type]
    )
    timer = timers.of(replica.manifest)
    if timer is not None and kind != "repoint" and timer.operation != operation_id:
        timers.end(replica.manifest, f"{kind} {operation_id} was begun")
    audit.begin(replica.manifest, operation)
    return operation


def end(replica: Replica, outcome: Ended, error: str | None = None) -> Operation:
    """End the operation in progress: into the history, with everything else of the manifest,
    and the outcome into audit.jsonl. The manifest's state is what it is to be from now on.
    """
    operation = replica.manifest.operation
    assert operation is not None, "no operation is in progress"
    operation.outcome = outcome
    operation.error = error
    operation.seconds = sum(step.seconds or 0.0 for step in operation.steps)
    audit.end(replica.manifest, operation)
    replica.save(sync_audit=True)
    _report(replica, operation)
    return operation


def _report(replica: Replica, operation: Operation) -> None:
    from . import operation_report  # not before the machine is on

    told = operation_report.write(replica.directory, replica.manifest, operation)
    replica.warnings = [told] if told else []
    told = audit.not_written(replica.directory, replica.manifest)
    replica.warnings += [told] if told else []


def fail(replica: Replica, error: str) -> None:
    """The operation in progress can go neither on nor back for now: the replica is Failed.
    It has not ended: resume, or undo, takes it up again.
    """
    operation = replica.manifest.operation
    assert operation is not None, "no operation is in progress"
    operation.error = error
    operation.outcome = "failed"
    replica.manifest.state = "Failed"
    audit.tell(replica.manifest, operation, "failed for now")
    replica.save()
    _report(replica, operation)


def turn_back(replica: Replica, error: str) -> None:
    """The operation in progress goes back from here on; recorded before anything is taken back.

    Without that a crash half way back would let resume go forward, over what is gone already.
    """
    operation = replica.manifest.operation
    assert operation is not None, "no operation is in progress"
    operation.error = error
    operation.outcome = "failed"
    replica.manifest.state = "Failed"
    replica.save()


def give_up(replica: Replica) -> None:
    """An operation that failed is left as it is, for another that begins now and saves."""
    operation = replica.manifest.operation
    assert operation is not None, "no operation is in progress"
    audit.end(replica.manifest, operation)


class Outcome(NamedTuple):
    """What an operation came to."""

    operation: str
    kind: str
    state: str
    point: int | None
    interims: Mapping[str, str]  # disk name -> absolute path of its overlay
    bases: Mapping[str, str]
    steps: tuple[Step, ...]
    seconds: float
    rpo_seconds: float | None = None
    rto_seconds: float | None = None
    rpo_says: str = ""
    report: str | None = None  # absolute path of the report for people
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As `failover --json` prints it."""
        return {
            "operation": self.operation,
            "kind": self.kind,
            "state": self.state,
            "point": self.point,
            "disks": [
                {"name": name, "base": base, "interim": self.interims.get(name)}
                for name, base in self.bases.items()
            ],
            "steps": [
                {"name": step.name, "seconds": step.seconds or 0.0, "note": step.note}
                for step in self.steps
            ],
            "seconds": self.seconds,
            "rpo_seconds": self.rpo_seconds,
            "rpo_says": self.rpo_says,
            "rto_seconds": self.rto_seconds,
            "report": self.report,
            "warnings": list(self.warnings),
        }


def known_outcome(replica: Replica, operation_id: str, *kinds: str) -> Outcome | None:
    """The outcome of an operation that ended already.

    Raises:
        UsageError: The id was another operation's, or this one's that failed.
    """
    operation = replica.manifest.remembered(operation_id)
    if operation is None:
        return None
    if operation.kind not in kinds:
        raise UsageError(
            f"operation {operation_id} was {operation.kind}, not {kinds[0]}", "use a new id"
        )
    if operation.outcome != "done":
        raise StateError(
            f"operation {operation_id} ended {operation.outcome}: {operation.error}",
            "begin another one, with a new id",
        )
    return outcome_of(replica, operation, None)


def outcome_of(replica: Replica, operation: Operation, begun: float | None) -> Outcome:
    from . import operation_report

    seconds = operation.seconds or 0.0
    return Outcome(
        operation=operation.id,
        kind=operation.kind,
        state=replica.manifest.state,
        point=operation.point,
        interims=interim_paths(replica),
        bases={disk.name: replica.file(disk.base) for disk in replica.manifest.disks},
        steps=tuple(operation.steps),
        seconds=seconds if begun is None else time.perf_counter() - begun,
        rpo_seconds=operation.rpo_seconds,
        rto_seconds=operation.rto_seconds,
        rpo_says=operation.rpo_says,
        report=operation_report.place_of(replica.directory, operation.id),
        warnings=tuple(replica.warnings),
    )


def unrecorded_outcome(replica: Replica, kind: str, point: int | None, begun: float) -> Outcome:
    """Of what is no operation, and was finished beside them: restore points given up."""
    return Outcome(
        operation="",
        kind=kind,
        state=replica.manifest.state,
        point=point,
        interims=interim_paths(replica),
        bases={disk.name: replica.file(disk.base) for disk in replica.manifest.disks},
        steps=(),
        seconds=time.perf_counter() - begun,
    )


def interim_paths(replica: Replica) -> dict[str, str]:
    """Disk name and absolute path of each overlay; empty when it is not failed over."""
    recovered = replica.manifest.recovered
    if recovered is None:
        return {}
    return {name: replica.file(file) for name, file in recovered.interims.items()}


def require_chains(replica: Replica) -> None:
    """Open every chain that the operation will work on: refuse before the first step.

    Raises:
        DamagedError: One is not whole, or is not what the manifest says.
        Error: One cannot be opened.
    """
    recovered = replica.manifest.recovered
    for disk in replica.manifest.disks:
        wanted = [disk.journal or disk.base]
        if recovered is not None:
            parent = recovered.parents.get(disk.name, wanted[0])
            wanted = [*recovered.overlays(disk.name), parent]
        with open_disk(replica.file(wanted[0]), io=replica.directory.io) as chain:
            names = [link.name for link in chain.links]
        if names[: len(wanted)] != wanted:
            raise DamagedError(
                f"{replica.file(wanted[0])}: its chain is {', '.join(names)}",
                f"it should begin with {', '.join(wanted)}: another program changed it",
            )
