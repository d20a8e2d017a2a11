"""Taking a failover back: by `undo`, or because one of its steps failed.

  power off     the machine lets go of its disks, and has its former ones again, or is forgotten
  drop interim  what was written since the failover is gone
  roll back     every journal shows its latest restore point again
  release       the hold ends: replication goes on
  state         Ready

Each step can be done again after a crash. Nothing of the base or of the log changes.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from . import hypervisors, interim, planned, replication
from ._native import POINT_LATEST
from .errors import Error, NotFoundError
from .manifest import Recovered
from .replica import Replica
from .steps import OnStep, Outcome, Runner, end, fail, outcome_of, turn_back

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor

STEPS = ("power off", "drop interim", "roll back", "release", "state")


def run(
    replica: Replica, hypervisor: Hypervisor | None, on_step: OnStep | None, begun: float
) -> Outcome:
    """The steps that are not done yet of the undo in progress. Inside `locked`."""
    runner = Runner(replica, on_step)
    replica.manifest.state = "Processing"

    def ready() -> str:
        replica.manifest.state = "Ready"
        return "Ready"

    try:
        runner.run("power off", lambda: let_go(replica, hypervisor))
        runner.run("drop interim", lambda: drop_interims(replica))
        runner.run("roll back", lambda: roll_to_latest(replica))
        runner.run("release", lambda: release(replica))
        runner.run("state", ready)
    except Exception as error:
        stop_at(replica, runner, error, safe_before="drop interim")
        raise
    return outcome_of(replica, runner.finish(), begun)


def roll_back(
    replica: Replica,
    hypervisor: Hypervisor | None,
    why: str,
    source: Hypervisor | None = None,
) -> str:
    """Undo a failover that failed. Where that fails too, the replica is Failed. Locked.

    Args:
        source: Where the source runs; None: as replica.toml says.

    Returns:
        What is not as it was found, nevertheless; mostly "".
    """
    manifest = replica.manifest
    operation = manifest.operation
    assert operation is not None
    failed = next((step.name for step in operation.steps if step.state == "failed"), "")
    operation.error = operation.error or f"{failed}: {why}"
    try:
        turn_back(replica, operation.error)
        _take_back(replica, hypervisor)
        if not operation.found_held and replication.is_held(replica):
            release(replica)
        elif not operation.found_held:
            _release_outside(replica)
    except Error as second:
        fail(replica, f"{operation.error}; and undoing it: {second.message}")
        raise
    note = planned.start_source_again(replica, operation, source)
    operation.error += note
    manifest.state = operation.found_state
    end(replica, "rolled back", operation.error)
    return note


def finish_rolling_back(
    replica: Replica,
    hypervisor: Hypervisor | None,
    begun: float,
    source: Hypervisor | None = None,
) -> Outcome:
    """Try again to take back a failover whose taking back failed. Locked."""
    operation = replica.manifest.operation
    assert operation is not None
    roll_back(replica, hypervisor, "it failed before", source)
    return outcome_of(replica, operation, begun)


def release(replica: Replica) -> str:
    """End the hold: here, and of an external replicator. Locked."""
    epoch = replication.release_locked(replica)
    return f"epoch {epoch}{replication.release_outside(replica)}"


def _release_outside(replica: Replica) -> None:
    """A hold that failed may have held the external replicator, nevertheless."""
    operation = replica.manifest.operation
    assert operation is not None
    if operation.step("hold").state != "pending":
        with contextlib.suppress(Error):
            replication.release_outside(replica)


def _take_back(replica: Replica, hypervisor: Hypervisor | None) -> None:
    """Power off, drop the overlays, show the latest point. Each may have been done."""
    let_go(replica, hypervisor)
    drop_interims(replica)
    roll_to_latest(replica)


def power_off(replica: Replica, hypervisor: Hypervisor | None) -> str:
    """Pull the recovered machine's plug, if it was powered on here."""
    recovered = replica.manifest.recovered
    if recovered is None or recovered.running is None:
        return "was not on"
    hypervisor = hypervisor or hypervisors.of_replica(replica)
    hypervisor.power_off(recovered.running.machine)
    recovered.running = None
    return "off"


def let_go(replica: Replica, hypervisor: Hypervisor | None) -> str:
    """The same, and the machine has its former disks again, or is forgotten: these go."""
    recovered = replica.manifest.recovered
    running = None if recovered is None else recovered.running
    told = power_off(replica, hypervisor)
    if running is not None:
        (hypervisor or hypervisors.of_replica(replica)).let_go(running.machine)
    return told


def drop_interims(replica: Replica) -> str:
    """Remove the overlays of the failover, if it had come to making them."""
    drop_unnamed(replica)
    return drop_overlays(replica, replica.manifest.recovered)


def drop_unnamed(replica: Replica) -> None:
    """Remove what a kill left of overlays that were to be frozen under: no manifest names them."""
    recovered = replica.manifest.recovered
    if recovered is None or replica.manifest.former is not None:
        return
    number = interim.free_number(recovered)
    for disk in recovered.interims:
        name = interim.interim_name(disk, number)
        if any(replica.directory.exists(each) for each in (name, interim.delta_name(name))):
            interim.remove_interim(replica.directory, name)


def drop_overlays(replica: Replica, recovered: Recovered | None) -> str:
    """Remove all overlays of that."""
    if recovered is None:
        return "there were none"
    overlays = [each for name in recovered.interims for each in recovered.overlays(name)]
    for descriptor in overlays:
        interim.remove_interim(replica.directory, descriptor)
        with contextlib.suppress(NotFoundError):  # it was being made when the power went
            replica.directory.unlink(f"{descriptor}.new")
    return f"{len(overlays)} dropped"


def roll_to_latest(replica: Replica) -> str:
    """Every journal shows its newest restore point; there is no failover any more."""
    if replica.manifest.recovered is None:
        return "was not rolled back"
    journals = replica.journals(writable=True, wait_seconds=replication.LOCK_SECONDS)
    try:
        for journal in journals.natives:
            journal.roll(POINT_LATEST)
    finally:
        journals.close()
    replica.manifest.recovered = None
    return "latest"


def stop_at(replica: Replica, runner: Runner, error: Exception, safe_before: str) -> None:
    """A step failed: back to the state found while nothing was given up, else Failed."""
    operation = runner.operation
    failed = next((step.name for step in operation.steps if step.state == "failed"), "")
    reason = f"{failed}: {getattr(error, 'message', error)}"
    if operation.step(safe_before).state == "pending":
        replica.manifest.state = "Failover"
        runner.finish("failed", reason)
        return
    fail(replica, reason)
