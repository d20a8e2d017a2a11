"""Failing over to another restore point, without undoing the failover that there is first.

  power off    the machine that runs lets go of its disks
  state        what there was is set aside, and the new point chosen
  roll back .. close, power on   as of a failover: bringing_up.py, into overlays of another number
  drop former  the machine runs from the new point: what was written since the former one goes

Until the last step nothing of the former failover is given up. Where a step fails, or resume
finds a failed one, the journals show the former point again and its machine is started again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import bringing_up, hypervisors, interim, measuring, timers, undoing
from .bringing_up import BringUp
from .errors import Error
from .manifest import Recovered, Running
from .points import now_text
from .replica import Replica
from .steps import OnStep, Outcome, Runner, end, fail, interim_paths, outcome_of, turn_back

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor

STEPS = ("check", "power off", "state", *bringing_up.STEPS, "drop former")


def run(
    replica: Replica,
    hypervisor: Hypervisor | None,
    on_step: OnStep | None,
    begun: float,
    source: Hypervisor | None = None,
) -> Outcome:
    """All steps that are not done; on failure back to the failover that there was. Locked.

    Args:
        source: Where the source runs; None: as replica.toml says.
    """
    runner = Runner(replica, on_step)
    steps = _Repoint(replica, runner, hypervisor, source)
    try:
        steps.run()
    except Exception as error:
        steps.abandon()
        if runner.operation.step("drop former").state != "pending":
            undoing.stop_at(replica, runner, error, safe_before="drop former")
        else:
            go_back(replica, hypervisor, str(getattr(error, "message", error)))
        raise
    replica.manifest.state = "Failover"  # where it had failed after the machine was on
    measuring.duration(runner.operation, begun)
    timers.begin(replica.manifest, runner.operation)
    return outcome_of(replica, runner.finish(), begun)


class _Repoint:
    def __init__(
        self,
        replica: Replica,
        runner: Runner,
        hypervisor: Hypervisor | None,
        source: Hypervisor | None,
    ) -> None:
        self._replica = replica
        self._runner = runner
        manifest = replica.manifest
        present = manifest.former or manifest.recovered
        assert present is not None
        self._up = BringUp(replica, runner, hypervisor, interim.free_number(present), source)

    def run(self) -> None:
        runner, up = self._runner, self._up
        runner.run("check", up.check, record=False)
        runner.run("power off", self._power_off)
        runner.run("state", self._state, record=False)
        up.run()
        runner.run("drop former", self._drop_former)

    def abandon(self) -> None:
        self._up.abandon()

    def _power_off(self) -> str:
        manifest = self._replica.manifest
        if manifest.former is not None or manifest.recovered is None:
            return "off"
        if manifest.recovered.running is not None:
            self._runner.operation.was_running = True
        return undoing.power_off(self._replica, self._up.known_hypervisor)

    def _state(self) -> str:
        manifest = self._replica.manifest
        if manifest.former is None:
            manifest.former = manifest.recovered
        assert manifest.former is not None
        manifest.recovered = self._up.recovered()
        manifest.recovered.timer = manifest.former.timer
        manifest.state = "Failover"
        point = self._up.point()
        measuring.loss_again(manifest, manifest.former.operation)
        return f"point {point.id}, {point.time}"

    def _drop_former(self) -> str:
        manifest = self._replica.manifest
        dropped = undoing.drop_overlays(self._replica, manifest.former)
        manifest.former = None
        return dropped


def go_back(replica: Replica, hypervisor: Hypervisor | None, why: str) -> None:
    """A change of the point failed: what there was before is there again. Locked.

    Raises:
        Error: That failed too: the replica is Failed, and resume tries again.
    """
    manifest = replica.manifest
    operation = manifest.operation
    assert operation is not None
    failed = next((step.name for step in operation.steps if step.state == "failed"), "")
    operation.error = operation.error or f"{failed}: {why}"
    try:
        turn_back(replica, operation.error)
        _take_back(replica, hypervisor)
    except Error as second:
        fail(replica, f"{operation.error}; and going back to the former point: {second.message}")
        raise
    manifest.state = "Failover"
    end(replica, "rolled back", operation.error)


def _take_back(replica: Replica, hypervisor: Hypervisor | None) -> None:
    """The former point, overlays and machine. Each part may have been done."""
    manifest = replica.manifest
    operation = manifest.operation
    assert operation is not None
    if manifest.former is not None:
        undoing.power_off(replica, hypervisor)
        undoing.drop_overlays(replica, manifest.recovered)
        former = manifest.former
        if not former.parents:
            bringing_up.roll_journals(replica, replica.points.by_id(former.point))
        manifest.recovered, manifest.former = former, None
        manifest.state = "Failover"
        replica.save()
    recovered = manifest.recovered
    assert recovered is not None
    if operation.was_running:
        _start_again(replica, hypervisor, recovered)


def _start_again(
    replica: Replica, hypervisor: Hypervisor | None, recovered: Recovered
) -> None:
    from .config import load
    from .hypervisor.base import Drive
    from .machines import machine

    hypervisor = hypervisor or hypervisors.of_replica(replica)
    name = hypervisors.machine_id(replica)
    recovered.running = Running(
        hypervisor=hypervisor.kind, machine=name, started=now_text()
    )
    replica.save()
    hypervisor.start(
        machine(
            replica.manifest.machine,
            load(replica.directory),
            [Drive(path) for path in interim_paths(replica).values()],
            id=name,
            name=replica.name,
            operation=recovered.operation,
            point=recovered.point,
        )
    )
