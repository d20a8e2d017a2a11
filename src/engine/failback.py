"""Failback: a machine that runs on its replica goes back to its own disks, or to others.

  start    Failover -> ReadyToSwitch: what changed is copied while the replica runs
  switch   ReadyToSwitch -> Failback: it is shut down, the rest sent, and started there
  commit   Failback -> Ready: the recovered machine is the source from now on
  undo     ReadyToSwitch, Failback -> Failover: as if it had not been begun

The steps are in failing_back.py, switching_over.py and ending_failback.py.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from . import changed, config, ending_failback, failing_back, layering, switching_over
from .carrying import Progress, check_targets
from .errors import Error, StateError, UsageError
from .manifest import Failback, Operation, Target
from .records import TargetKind
from .replica import Replica
from .steps import OnStep, Outcome, begin, give_up, known_outcome, outcome_of

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor

ROUND_SECONDS = 60.0  # between rounds while a switch is waited for, at least
STEADY_SECONDS = 10.0  # after a round that left no less than the one before


def start(
    replica: Replica,
    targets: Mapping[str, str] | None = None,
    kind: TargetKind | None = None,
    *,
    once: bool = False,
    holds: int | None = None,
    hypervisor: Hypervisor | None = None,
    source: Hypervisor | None = None,
    operation_id: str | None = None,
    reason: str = "",
    on_step: OnStep | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Copy the replica's disks to targets while its machine runs.

    Args:
        targets: Disk name -> a file, or an NBD URI; by default those of [source.disks].
        kind: What the targets are. "original": the source's own disks; "restored": disks
            restored from a backup; "new": anything else. By default original, where
            they are those of [source.disks].
        once: One round only, however much is written meanwhile.
        holds: Id of the restore point that restored targets hold, and nothing else.
        source: Where the source runs; by default as [source] says.
        operation_id: Asked again with the same id, it is done once.
        progress: Called with disk, bytes done and bytes in all of a round; False stops.

    Raises:
        StateError: The replica is not failed over, or the source is on.
        UsageError: A disk has no target, or one that cannot take it.
        Error: A step failed. The replica is in Failover still.
    """
    operation_id = operation_id or str(uuid.uuid4())
    begun = time.perf_counter()
    with replica.locked():
        known = known_outcome(replica, operation_id, "failback")
        if known is not None:
            return known
        if _is_open(replica, operation_id):
            return failing_back.run(
                replica, hypervisor, source, on_step, begun, progress
            )
        replica.need_state("Failover", doing="fail back {}")
        wanted = _targets(replica, targets or {}, kind)
        check_targets(replica, wanted)
        for name, target in wanted.items():
            target.lineage = changed.lineage(replica, name, target, holds)
        recovered = layering.recovered_of(replica)
        replica.manifest.failback = Failback(
            operation=operation_id, targets=wanted, once=once, holds=holds
        )
        begin(
            replica,
            "failback",
            failing_back.STEPS,
            operation_id,
            point=recovered.point,
            reason=reason,
        )
        return failing_back.run(
                replica, hypervisor, source, on_step, begun, progress
            )


def _is_open(replica: Replica, operation_id: str) -> bool:
    operation = replica.manifest.operation
    return operation is not None and operation.id == operation_id


def _targets(
    replica: Replica, given: Mapping[str, str], kind: TargetKind | None
) -> dict[str, Target]:
    """Disk name -> target, those that were given first.

    Raises:
        UsageError: The kind is none.
    """
    if kind not in (None, "original", "restored", "new"):
        raise UsageError(f"{kind!r} is not a kind of target", "take original, restored or new")
    said = config.load(replica.directory).source
    known = {} if said is None else said.disks
    for name in given:
        replica.manifest.disk(name)
    made = {}
    for disk in replica.manifest.disks:
        place = given.get(disk.name) or known.get(disk.name)
        if place is None:
            raise UsageError(
                f"disk {disk.name} has no target", f"give it one: --target {disk.name}=PLACE"
            )
        own: TargetKind = "original" if place == known.get(disk.name) else "restored"
        made[disk.name] = Target(place=place, kind=kind or own)
    return made


def switch(
    replica: Replica,
    *,
    power_on: bool = True,
    hypervisor: Hypervisor | None = None,
    source: Hypervisor | None = None,
    operation_id: str | None = None,
    reason: str = "",
    on_step: OnStep | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Shut the replica's machine down, send the rest, and start the one at the target.

    Args:
        power_on: False starts nothing there.
        source: Where it is started; by default as [source] says.

    Raises:
        StateError: The replica is not ready to switch.
        Error: A step failed. Before the start the replica's machine runs again, and it is
            ReadyToSwitch; from there on it is Failed, and resume goes on.
    """
    operation_id = operation_id or str(uuid.uuid4())
    begun = time.perf_counter()
    with replica.locked():
        known = known_outcome(replica, operation_id, "switch")
        if known is not None:
            return known
        if _is_open(replica, operation_id) and _goes_back(replica):
            switching_over.take_back(replica, hypervisor, _why(replica), source)
            known_outcome(replica, operation_id, "switch")  # says so
        if not _is_open(replica, operation_id):
            replica.need_state("ReadyToSwitch", doing="switch {} over")
            begin(
                replica,
                "switch",
                switching_over.STEPS,
                operation_id,
                point=layering.recovered_of(replica).point,
                power_on=power_on,
                reason=reason,
            )
        return switching_over.run(replica, hypervisor, source, on_step, begun, progress)


def _goes_back(replica: Replica) -> bool:
    """Whether the switch in progress failed before anything was started at the target."""
    operation = replica.manifest.operation
    assert operation is not None
    return replica.manifest.state == "Failed" and operation.step("start").state == "pending"


def _why(replica: Replica) -> str:
    operation = replica.manifest.operation
    assert operation is not None
    return operation.error or "it failed before"


def wait(
    replica: Replica,
    *,
    until: float | None = None,
    rest_seconds: float | None = None,
    hypervisor: Hypervisor | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Wait for the moment of a switch; rounds go on meanwhile.

    Args:
        until: That moment, seconds since 1970; or
        rest_seconds: as soon as no more is left to send than takes so long.

    Raises:
        StateError: The replica is not ready to switch, or its machine's disks cannot be
            frozen and so the rest never gets small.
    """
    rest = failing_back.rest_seconds
    while until is None or clock() < until:
        with replica.locked():
            replica.need_state("ReadyToSwitch", doing="switch {} over")
            failback = failing_back.failback_of(replica)
            failing_back.measure(replica)
            before = rest(failback)
            if until is None and before is not None and before <= (rest_seconds or 0.0):
                return
            went = failing_back.round_of(replica, hypervisor, progress)
            after = rest(failback)
        if until is not None:
            sleep(min(max(ROUND_SECONDS, (until - clock()) / 4), max(0.0, until - clock())))
        elif not went:
            raise StateError(
                f"cannot wait for replica {replica.name}: {failing_back.CANNOT_FREEZE}",
                "switch now, or at a time",
            )
        elif after is None or (before is not None and after >= before):
            sleep(STEADY_SECONDS)


def commit(
    replica: Replica,
    *,
    hypervisor: Hypervisor | None = None,
    operation_id: str | None = None,
    reason: str = "",
    on_step: OnStep | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Take the recovered machine as the source: the replica protects it from now on.

    Raises:
        StateError: The replica is not switched over.
        Error: A step failed. Before `import` it is in Failback still; from there on it is
            Failed, and resume goes on.
    """
    operation_id = operation_id or str(uuid.uuid4())
    begun = time.perf_counter()
    with replica.locked():
        known = known_outcome(replica, operation_id, "commit failback")
        if known is not None:
            return known
        if not _is_open(replica, operation_id):
            replica.need_state("Failback", doing="commit the failback of {}")
            replica.journals(with_bases=True).close()  # nothing begins where they do not open
            begin(
                replica,
                "commit failback",
                ending_failback.COMMIT_STEPS,
                operation_id,
                reason=reason,
            )
        return ending_failback.run_commit(replica, hypervisor, on_step, begun, progress)


def undo(
    replica: Replica,
    *,
    power_on: bool = True,
    hypervisor: Hypervisor | None = None,
    source: Hypervisor | None = None,
    skip: Mapping[str, str] | None = None,
    operation_id: str | None = None,
    reason: str = "",
    on_step: OnStep | None = None,
) -> Outcome:
    """Give a failback up: the replica's machine serves again. What was sent stays there.

    Args:
        power_on: False leaves the replica's machine off.
        skip: "source-fenced" -> why no machine can be running at the target, where
            nobody can be asked.

    Raises:
        StateError: There is no failback, or its commit has begun.
        Error: A step failed; see the replica's state.
    """
    operation_id = operation_id or str(uuid.uuid4())
    begun = time.perf_counter()
    with replica.locked():
        known = known_outcome(replica, operation_id, "undo failback")
        if known is not None:
            return known
        if not _is_open(replica, operation_id):
            _give_up(replica)
            replica.need_state("ReadyToSwitch", "Failback", doing="undo the failback of {}")
            begin(
                replica,
                "undo failback",
                ending_failback.UNDO_STEPS,
                operation_id,
                point=layering.recovered_of(replica).point,
                power_on=power_on,
                skip=dict(skip or {}),
                reason=reason,
            )
        return ending_failback.run_undo(replica, hypervisor, source, on_step, begun)


def _give_up(replica: Replica) -> None:
    """A copy or a switch that was cut short, or failed, can be taken back as it stands:
    nothing of the replica was given up.
    """
    manifest = replica.manifest
    cut_short = manifest.operation
    if cut_short is not None and cut_short.kind in ("failback", "switch"):
        switching = cut_short.kind == "switch"
        started = switching and cut_short.step("start").state not in ("pending", "skipped")
        manifest.state = "Failback" if started else "ReadyToSwitch"
        cut_short.outcome = "failed"
        cut_short.error = cut_short.error or "it was cut short, and given up"
        give_up(replica)


def resume(
    replica: Replica,
    hypervisor: Hypervisor | None,
    source: Hypervisor | None,
    on_step: OnStep | None,
    begun: float,
) -> Outcome:
    """Go on with what of a failback a crash or a failure left. Inside `locked`."""
    operation = replica.manifest.operation
    assert operation is not None
    if operation.kind == "failback":
        return failing_back.run(replica, hypervisor, source, on_step, begun)
    if operation.kind == "switch":
        if _goes_back(replica):
            switching_over.take_back(replica, hypervisor, _why(replica), source)
            return outcome_of(replica, operation, begun)
        return switching_over.run(replica, hypervisor, source, on_step, begun)
    if operation.kind == "commit failback":
        return ending_failback.run_commit(replica, hypervisor, on_step, begun)
    return ending_failback.run_undo(replica, hypervisor, source, on_step, begun)


def status(replica: Replica) -> dict[str, object]:
    """Where a failback stands, as `failback status --json` prints it. Changes nothing."""
    replica.refresh()
    manifest, failback = replica.manifest, replica.manifest.failback
    operation = manifest.operation
    made: dict[str, object] = {
        "state": manifest.state,
        "operation": None if operation is None else operation.kind,
        "step": _present_step(operation),
        "error": None if operation is None else operation.error,
        "failback": None,
    }
    if failback is None:
        return made
    if manifest.state == "ReadyToSwitch" and operation is None:
        with contextlib.suppress(Error):  # an operation that has just begun changes it
            failing_back.measure(replica)
    speed = None
    sent = sum(each.sent_bytes for each in failback.targets.values())
    if failback.seconds and sent:
        speed = sent / failback.seconds
    made["failback"] = {
        "id": failback.operation,
        "targets": {
            name: {
                "place": each.place,
                "kind": each.kind,
                "lineage": each.lineage,
                "sent_bytes": each.sent_bytes,
                "read_bytes": each.read_bytes,
            }
            for name, each in failback.targets.items()
        },
        "rounds": failback.rounds,
        "done_bytes": failback.done_bytes,
        "total_bytes": failback.total_bytes,
        "pass_seconds_left": _pass_seconds_left(failback) if operation is not None else None,
        "rest_bytes": failback.rest_bytes,
        "rest_seconds": failing_back.rest_seconds(failback),
        "bytes_per_second": speed,
        "seconds": failback.seconds,
        "verified": failback.verified,
        "running": None if failback.running is None else failback.running.machine,
    }
    return made


def _pass_seconds_left(failback: Failback) -> float | None:
    """Of the pass that goes on, at its own rate; None: it has only begun."""
    left = failback.total_bytes - failback.done_bytes
    if left == 0:
        return 0.0
    return left * failback.pass_seconds / failback.done_bytes if failback.done_bytes else None


def _present_step(operation: Operation | None) -> str | None:
    ended = ("done", "skipped")
    steps = operation.steps if operation is not None else []
    return next((each.name for each in steps if each.state not in ended), None)
