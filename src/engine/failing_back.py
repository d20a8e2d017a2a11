"""The first phase of a failback: copy while the replica runs.

  check        every disk has a target that can take it
  copy         rounds, each of what was written during the one before; the overlays that
               the machine writes are frozen first
  state        ReadyToSwitch

Nothing of the replica is given up. A copy that fails leaves Failover; only where it cannot be
told what the machine writes now, the replica is Failed, and resume goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import config, hypervisors, layering, undoing
from .bringing_up import BringUp
from .carrying import Carrier, Progress, check_targets
from .errors import Error, StateError
from .manifest import Failback
from .replica import Replica
from .steps import OnStep, Outcome, Runner, fail, outcome_of
from .units import format_size, parse_duration

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor

STEPS = ("check", "copy", "state")
CANNOT_FREEZE = "the running machine's disks cannot be frozen: all is sent at the switch"


def failback_of(replica: Replica) -> Failback:
    """The failback that goes on."""
    failback = replica.manifest.failback
    assert failback is not None, "no failback goes on"
    return failback


def run(
    replica: Replica,
    hypervisor: Hypervisor | None,
    source: Hypervisor | None,
    on_step: OnStep | None,
    begun: float,
    progress: Progress | None = None,
) -> Outcome:
    """All steps of phase 1 that are not done; on failure back to Failover. Locked."""
    runner = Runner(replica, on_step)
    manifest = replica.manifest

    def ready() -> str:
        manifest.state = "ReadyToSwitch"
        return "ReadyToSwitch"

    try:
        runner.run("check", lambda: _check(replica, source), record=False)
        runner.run("copy", lambda: copy(replica, hypervisor, progress))
        runner.run("state", ready)
    except Exception as error:
        reason = reason_of(runner, error)
        try:
            confirm(replica, hypervisor)
        except Error as second:
            fail(replica, f"{reason}; and what the machine writes is not known: {second.message}")
        else:
            undoing.drop_unnamed(replica)
            manifest.state, manifest.failback = "Failover", None
            runner.finish("failed", reason)
        raise
    return outcome_of(replica, runner.finish(), begun)


def confirm(replica: Replica, hypervisor: Hypervisor | None) -> None:
    """What the manifest says of the overlays is true of the machine as well. Inside `locked`.

    Raises:
        HypervisorError: That is not known.
    """
    recovered = layering.recovered_of(replica)
    if not recovered.frozen:
        return
    if recovered.running is None:
        layering.settle(replica)
    else:
        layering.confirm(replica, hypervisor or hypervisors.of_replica(replica))


def _check(replica: Replica, source: Hypervisor | None) -> str:
    require_source_off(replica, source)
    targets = failback_of(replica).targets
    told = check_targets(replica, targets)
    told += [
        f"both sides of disk {name} are compared: {each.lineage}"
        for name, each in targets.items()
        if each.lineage
    ]
    return "; ".join(told) or "what the targets hold is known"


def copy(replica: Replica, hypervisor: Hypervisor | None, progress: Progress | None) -> str:
    """Rounds of phase 1, until little is left to send. Inside `locked`."""
    failback = failback_of(replica)
    table = config.load(replica.directory).failback
    least = parse_duration(table.rest)
    rounds = 1 if failback.once else max(1, table.rounds)
    while True:
        if not round_of(replica, hypervisor, progress):
            return CANNOT_FREEZE
        rest = rest_seconds(failback)
        if failback.rounds >= rounds or (rest is not None and rest <= least):
            break
    sent = sum(target.sent_bytes for target in failback.targets.values())
    return (
        f"{failback.rounds} round(s), {format_size(sent)} sent, "
        f"{format_size(failback.rest_bytes)} left"
    )


def round_of(
    replica: Replica, hypervisor: Hypervisor | None, progress: Progress | None
) -> bool:
    """Freeze what is written now, and send it; durable on return. Inside `locked`.

    Returns:
        False where the running machine's disks cannot be frozen: nothing was sent.
    """
    failback = failback_of(replica)
    recovered = layering.recovered_of(replica)
    if recovered.running is not None and hypervisor is None:
        hypervisor = hypervisors.of_replica(replica)
    on = layering.runs(replica, hypervisor)
    confirm(replica, hypervisor)  # a crash may have come before it was told
    carrier = Carrier(replica, progress)
    if on:
        assert hypervisor is not None
        if failback.layers == len(recovered.frozen) > 0:
            measure(replica)
            if failback.rest_bytes == 0:
                return True  # nothing was written since
        if not layering.freeze(replica, hypervisor):
            return False
    stop = len(recovered.frozen) + (0 if on else 1)
    carrier.send(stop)
    if config.load(replica.directory).failback.verify != "never":
        carrier.verify(stop)
    carrier.settle(stop)
    failback.rounds += 1
    failback.rest_bytes = carrier.left_bytes()
    replica.save()
    return True


def measure(replica: Replica) -> None:
    """How much is left to send now, as tables say; a machine that runs writes on."""
    failback = failback_of(replica)
    if failback.layers:
        failback.rest_bytes = Carrier(replica).left_bytes()


def rest_seconds(failback: Failback) -> float | None:
    """How long the rest would take, at the rate of what was sent; None: not known yet."""
    if failback.rest_bytes == 0 and failback.layers:
        return 0.0
    sent = sum(each.sent_bytes for each in failback.targets.values())
    if not sent or not failback.seconds or not failback.layers:
        return None
    return failback.rest_bytes * failback.seconds / sent


# ---- for both halves ----


def require_source_off(replica: Replica, source: Hypervisor | None) -> None:
    """Nobody may write the source's own disks while they are sent to. Inside `locked`.

    Raises:
        StateError: The source is on.
        HypervisorError: It cannot be asked.
    """
    said = config.load(replica.directory).source
    own = any(each.kind == "original" for each in failback_of(replica).targets.values())
    if said is None or not said.machine or not own:
        return
    source = source or hypervisors.of_source(replica)
    if source is not None and source.status(said.machine) != "off":
        raise StateError(
            f"the source {said.machine} is on, and its disks are the targets",
            "shut it down first",
        )


def start_again(
    replica: Replica,
    hypervisor: Hypervisor | None,
    runner: Runner,
    source: Hypervisor | None = None,
) -> str:
    """The replica's machine runs as before the switch. Asked again, it runs once. Locked."""
    failback, recovered = failback_of(replica), layering.recovered_of(replica)
    if failback.former is None:
        return "was off before"
    # It writes its top overlay again, so that one is not sent.
    failback.layers = min(failback.layers, len(recovered.frozen))
    failback.verified = False
    runner.operation.point = recovered.point
    up = BringUp(replica, runner, hypervisor, source=source)
    up.announce_machine()
    replica.save()
    return up.power_on_again()


def reason_of(runner: Runner, error: Exception) -> str:
    """Which step failed, and why."""
    failed = next((step.name for step in runner.operation.steps if step.state == "failed"), "")
    return f"{failed}: {getattr(error, 'message', error)}"
