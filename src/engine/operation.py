"""Failover and undo: the operation, step by step, resumable from the manifest.

  hold       replication is stopped and fenced; from here on nothing gets lost or added
  state      Ready -> Failover; the restore point is chosen and recorded
  roll back  every journal shows its disk as of the point; a long-term point needs none
  interim    an empty overlay for every disk, above its journal, or above the link that
             shows the long-term point
  export     the overlays are mounted: served to this host, read at both ends
  convert    the guest gets what its new hardware needs; without one nothing is changed
  close      the exports end; nobody has the disks open any more
  power on   the machine starts from the overlays; every later write lands there

A step that fails is undone together with those before it, and the replica is in the
state it was found in. A crash leaves the record: `resume` goes forward up to power-on,
making the overlays anew, because nothing of value is in them before.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import (
    audit,
    bringing_up,
    checklist,
    config,
    conversion,
    failing_over,
    hypervisors,
    interim,
    replication,
    repointing,
    trial_places,
    undoing,
    viewers,
)
from . import planned as planning
from .errors import StateError, UsageError
from .manifest import Evidence, MachineSettings, Operation
from .points import Point
from .replica import Replica
from .steps import (
    OnStep,
    Outcome,
    Runner,
    begin,
    end,
    give_up,
    known_outcome,
    outcome_of,
    require_chains,
    unrecorded_outcome,
)

if TYPE_CHECKING:
    from . import merging
    from .hypervisor.base import Hypervisor

FAILOVER_STEPS = failing_over.STEPS
FAILBACKS = ("failback", "switch", "commit failback", "undo failback")


def failover(
    replica: Replica,
    to: Point | int | str | None = None,
    *,
    hypervisor: Hypervisor | None = None,
    power_on: bool = True,
    convert: bool = True,
    planned: bool = False,
    source: Hypervisor | None = None,
    skip: Mapping[str, str] | None = None,
    reason: str = "",
    after: tuple[str, float] | None = None,
    settings: MachineSettings | None = None,
    operation_id: str | None = None,
    on_step: OnStep | None = None,
) -> Outcome:
    """Bring the replica up as of a restore point, its writes kept in overlays.

    Args:
        to: A point, its id, "latest", or a moment: the newest point not after it. None is
            the latest. Said of a replica that is failed over already, that is failed
            over to this point instead; what was written since goes when that has worked.
        hypervisor: Where to power it on; by default QEMU on this host.
        power_on: False leaves the disks ready and starts nothing.
        convert: False leaves the guest on the disks as it is.
        planned: The source is shut down first, and nothing is lost: see planned.py.
        source: Where the source runs; by default as replica.toml says.
        skip: Check -> why it is not to be run: see checklist.py.
        reason: Why this is done, for the record.
        after: What ends the failover by itself, "undo" or "permanent", and in how many
            seconds after its end. timers.start begins a process that waits for it.
        settings: Of the machine; by default those of replica.toml, then of the manifest.
        operation_id: Asked again with the same id, the same outcome is returned and
            nothing is done; after a crash it goes on where it stopped.
        on_step: Called when a step begins and when it has been done.

    Raises:
        StateError: The replica is not Ready, nor failed over and `to` said.
        NotFoundError, GapError, UsageError: There is no such point. Nothing was changed.
        ExistsError: A file stands where an overlay would be made. Nothing was changed.
        LockedError: Another operation is going on.
        Error: A step failed. All was undone, or the replica is Failed and says why.
    """
    operation_id = operation_id or str(uuid.uuid4())
    begun = time.perf_counter()
    with replica.locked():
        known = known_outcome(replica, operation_id, "failover", "repoint")
        if known is not None:
            return known
        open_operation = replica.manifest.operation
        if open_operation is not None and open_operation.id == operation_id:
            return _go_on(replica, hypervisor, on_step, begun, source)
        again = to is not None and not planned and replica.manifest.state == "Failover"
        replica.need_state("Failover" if again else "Ready", doing="fail over {}")
        checklist.require_known(skip or {})
        point = _prepare(replica, to, again=again, planned=planned, settings=settings)
        if power_on and hypervisor is None:
            hypervisor = hypervisors.of_replica(replica)
        begin(
            replica,
            "repoint" if again else "failover",
            repointing.STEPS if again else failing_over.steps_of(planned),
            operation_id,
            point=point,
            power_on=power_on,
            convert=convert,
            planned=planned,
            skip=dict(skip or {}),
            reason=reason,
            evidence=_evidence_before(replica),
            auto=after[0] if after else "",
            auto_seconds=after[1] if after else 0.0,
        )
        return _go_on(replica, hypervisor, on_step, begun, source)


def _evidence_before(replica: Replica) -> list[Evidence]:
    """What was seen for the failover that there is: a person's word goes on to count."""
    recovered = replica.manifest.recovered
    return [] if recovered is None else list(recovered.evidence)


def _prepare(
    replica: Replica,
    to: Point | int | str | None,
    *,
    again: bool,
    planned: bool,
    settings: MachineSettings | None,
) -> int | None:
    """See that everything can begin; returns the id of the point, None for the latest.

    Raises:
        As failover. Nothing was changed.
    """
    if planned and to not in (None, "latest"):
        raise UsageError(
            "a planned failover is to the last write of the source, to no other point",
            "leave out --to, or leave out --planned",
        )
    # Again after the hold, which may mark a last one.
    point = _choose(replica, "latest" if to is None else to)
    require_chains(replica)
    number = 1
    if again:
        assert replica.manifest.recovered is not None
        number = interim.free_number(replica.manifest.recovered)
        point = point or replica.points.latest
    bringing_up.require_room(replica, number)
    said = config.load(replica.directory)  # with a mistake in it nothing begins
    machine = settings or config.machine_of(said, replica.manifest.machine)
    conversion.wanted_on(machine, said)
    if planned:
        planning.check(replica, said)
    replica.manifest.machine = machine
    return None if point is None else point.id


def _go_on(
    replica: Replica,
    hypervisor: Hypervisor | None,
    on_step: OnStep | None,
    begun: float,
    source: Hypervisor | None,
) -> Outcome:
    """With the failover, or the change of its point, that is in progress. Locked."""
    operation = replica.manifest.operation
    assert operation is not None
    if replica.manifest.state == "Failed" and _goes_back(operation):
        if operation.kind == "repoint":
            repointing.go_back(replica, hypervisor, "it failed before")
        else:
            undoing.roll_back(replica, hypervisor, "it failed before", source)
        known_outcome(replica, operation.id, operation.kind)  # says so
    if operation.kind == "repoint":
        return repointing.run(replica, hypervisor, on_step, begun, source)
    return failing_over.run(replica, hypervisor, on_step, begun, source)


def undo(
    replica: Replica,
    *,
    hypervisor: Hypervisor | None = None,
    operation_id: str | None = None,
    on_step: OnStep | None = None,
) -> Outcome:
    """End a failover by dropping everything that was written since.

    Raises:
        StateError: The replica is not failed over.
        Error: A step failed; the replica is in Failover still, or Failed and says why.
    """
    operation_id = operation_id or str(uuid.uuid4())
    begun = time.perf_counter()
    with replica.locked():
        known = known_outcome(replica, operation_id, "undo")
        if known is not None:
            return known
        failed = replica.manifest.operation
        if failed is not None and (failed.id, failed.kind) == (operation_id, "undo"):
            return undoing.run(replica, hypervisor, on_step, begun)
        if replica.manifest.state == "Failed" and failed is not None:
            if failed.kind in FAILBACKS[:-1]:
                raise StateError(
                    f"cannot undo: a failback of replica {replica.name} has begun",
                    "rollpoint resume goes on with it, rollpoint failback undo takes it back",
                )
            if failed.kind == "repoint":
                raise StateError(
                    f"cannot undo: replica {replica.name} is between two restore points",
                    "rollpoint resume goes back to the former one, or on to the new one",
                )
            if failed.kind == "failover":
                undoing.finish_rolling_back(replica, hypervisor, begun)
                begin(replica, "undo", (), operation_id)  # so that its id is known
                return outcome_of(replica, end(replica, "done"), begun)
            if failed.kind == "permanent" and failed.step("merge").state != "pending":
                raise StateError(
                    f"cannot undo: making replica {replica.name} permanent has begun to change "
                    "its base",
                    "rollpoint resume goes on with it",
                )
            replica.manifest.state = "Failover"
            give_up(replica)
        replica.need_state("Failover", doing="undo the failover of {}")
        # The overlays are dropped before the journals are rolled: nothing may be given
        # up for journals that cannot be.
        replica.journals().close()
        begin(replica, "undo", undoing.STEPS, operation_id)
        return undoing.run(replica, hypervisor, on_step, begun)


def resume(
    replica: Replica,
    *,
    hypervisor: Hypervisor | None = None,
    source: Hypervisor | None = None,
    on_step: OnStep | None = None,
) -> Outcome | None:
    """Finish, or roll back, what a crash or a failure left. None: there was nothing.

    Args:
        hypervisor, source: As of failover.

    Raises:
        LockedError: The operation is going on: it did not crash.
        Error: It failed again; the replica says why.
    """
    begun = time.perf_counter()
    with replica.locked():
        operation = replica.manifest.operation
        if operation is None:
            head = replica.manifest.audit
            if audit.settle(replica.manifest):
                replica.save(sync_audit=True)
            elif head is not None and head.pending:
                audit.write(replica.directory, head, sync=True)  # what a crash left out
            return _finish_beside(replica, hypervisor, begun)
        audit.tell(replica.manifest, operation, "resumed")
        if operation.kind in ("create", "adopt", "seed", "remove"):
            from . import provision

            provision.resume(replica.directory, replica.manifest)
            return outcome_of(replica, operation, begun)
        if operation.kind == "undo":
            return undoing.run(replica, hypervisor, on_step, begun)
        if operation.kind == "permanent":
            viewers.require_none(replica.directory, "rewrite the bases in {}")
            return _permanent(replica, hypervisor, on_step, begun)
        if operation.kind in FAILBACKS:
            from . import failback

            return failback.resume(replica, hypervisor, source, on_step, begun)
        if operation.kind == "repoint":
            return _resume_repoint(replica, hypervisor, source, on_step, begun)
        if replica.manifest.state == "Failed":
            return undoing.finish_rolling_back(replica, hypervisor, begun, source)
        return failing_over.run(replica, hypervisor, on_step, begun, source)


def _goes_back(operation: Operation) -> bool:
    """Whether a failover, or a change of its point, that failed is taken back."""
    return operation.kind == "failover" or operation.step("drop former").state == "pending"


def _resume_repoint(
    replica: Replica,
    hypervisor: Hypervisor | None,
    source: Hypervisor | None,
    on_step: OnStep | None,
    begun: float,
) -> Outcome:
    operation = replica.manifest.operation
    assert operation is not None
    if replica.manifest.state == "Failed" and _goes_back(operation):
        repointing.go_back(replica, hypervisor, "it failed before")
        return outcome_of(replica, operation, begun)
    return repointing.run(replica, hypervisor, on_step, begun, source)


def _finish_beside(
    replica: Replica, hypervisor: Hypervisor | None, begun: float
) -> Outcome | None:
    """What is done beside operations, and did not come to the end: by tests, and an ingest."""
    from . import frozen, retaining, trials  # a failover does without

    swept = trials.sweep(replica, hypervisor)
    destaged = retaining.finish(replica)
    gone = frozen.finish(replica)
    if gone is not None:
        return unrecorded_outcome(replica, "expire", gone, begun)
    if destaged:
        return unrecorded_outcome(replica, "destage", replica.manifest.horizon, begun)
    if swept:
        return unrecorded_outcome(replica, "sweep", None, begun)
    return None


def permanent(
    replica: Replica,
    *,
    hypervisor: Hypervisor | None = None,
    operation_id: str | None = None,
    on_step: OnStep | None = None,
    progress: merging.Progress | None = None,
    force_name: str | None = None,
    online: bool = False,
) -> Outcome:
    """End a failover by merging everything into the base. It is no replica afterwards.

    The machine is powered off. All restore points are gone when this returns.

    Args:
        force_name: The replica's name, to give up locked points too.
        online: The machine runs on, and its hypervisor merges; see live_merge.py.

    Raises:
        StateError: The replica is not failed over, or has a locked point and is not forced;
            online: its machine does not run.
        UnsupportedError: Online: the hypervisor, or the type of a base, allows it offline
            only. Nothing was changed.
        UsageError: force_name is not its name.
        LockedError: Somebody is looking at a restore point.
        Error: A step failed; before the merge the replica is in Failover still, and
            after it Failed: resume goes on, there is no way back.
    """
    from . import live_merge, merging, retention  # a failover does without

    operation_id = operation_id or str(uuid.uuid4())
    begun = time.perf_counter()
    forced = replica.is_forced(force_name)
    with replica.locked():
        known = known_outcome(replica, operation_id, "permanent")
        if known is not None:
            return known
        there = replica.manifest.operation
        if there is not None and (there.id, there.kind) == (operation_id, "permanent"):
            viewers.require_none(replica.directory, "rewrite the bases in {}")
            return _permanent(replica, hypervisor, on_step, begun, progress)
        replica.need_state("Failover", doing="make {} permanent")
        if not forced:
            retention.refuse_locked(replica.manifest, time.time_ns(), "make {} permanent")
        replica.journals().close()
        require_chains(replica)
        trial_places.refuse(replica.manifest, "make {} permanent")
        viewers.require_none(replica.directory, "rewrite the bases in {}")
        if online:
            live_merge.require_running(replica, hypervisor)
        names = live_merge.STEPS if online else merging.STEPS
        begin(replica, "permanent", names, operation_id)
        return _permanent(replica, hypervisor, on_step, begun, progress)


# ---- failover ----


def _choose(replica: Replica, to: Point | int | str) -> Point | None:
    """The point that was asked for; None for the latest, which the hold may still make.

    Raises:
        NotFoundError, GapError, UsageError: There is none like that.
    """
    points = replica.points
    if isinstance(to, Point):
        return points.by_id(to.id)
    if isinstance(to, int):
        return points.by_id(to)
    if to.strip() != "latest":
        return points.find(to)
    if not len(points) and not replication.has_writes(replica):
        points.find(to)  # says so
    return None


# ---- undo and permanent ----


def _permanent(
    replica: Replica,
    hypervisor: Hypervisor | None,
    on_step: OnStep | None,
    begun: float,
    progress: merging.Progress | None = None,
) -> Outcome:
    from . import live_merge, merging  # a failover does without

    runner = Runner(replica, on_step)
    merged = runner.operation.step("state").state == "done"
    replica.manifest.state = "Permanent" if merged else "Processing"
    try:
        if live_merge.is_live(runner.operation):
            live_merge.run(replica, runner, hypervisor, progress)
        else:
            runner.run("power off", lambda: undoing.let_go(replica, hypervisor))
            merging.run(replica, runner, progress)
    except Exception as error:
        undoing.stop_at(replica, runner, error, safe_before="merge")
        raise
    return outcome_of(replica, runner.finish(), begun)
