"""The first half of a failback: copy while the replica runs, then switch over.

  check        every disk has a target that can take it
  copy         rounds, each of what was written during the one before; the overlays that
               the machine writes are frozen first
  state        ReadyToSwitch

  shut down    the guest goes down in order; after its time the plug is pulled
  send rest    what no round has sent
  verify       the targets are read back
  start        the machine at the target is powered on, where that is known
  state        Failback

Nothing of the replica is given up. A copy that fails leaves Failover, a switch that fails
before `start` leaves ReadyToSwitch with the replica's machine on again; from there on the
replica is Failed, and resume goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import config, hypervisors, layering, nbd_client
from .bringing_up import BringUp
from .carrying import Carrier, Progress, check_targets, stamp_targets
from .config import Config
from .errors import Error, HypervisorError, StateError
from .manifest import Evidence, Failback, Running
from .points import now_text
from .replica import Replica
from .seed import image_format
from .steps import OnStep, Outcome, Runner, fail, outcome_of
from .units import format_size, parse_duration

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor, Machine

COPY_STEPS = ("check", "copy", "state")
SWITCH_STEPS = ("shut down", "send rest", "verify", "start", "state")
CANNOT_FREEZE = "the running machine's disks cannot be frozen: all is sent at the switch"


def failback_of(replica: Replica) -> Failback:
    """The failback that goes on."""
    failback = replica.manifest.failback
    assert failback is not None, "no failback goes on"
    return failback


# ---- phase 1 ----


def run_copy(
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
    if on:
        assert hypervisor is not None
        if not layering.freeze(replica, hypervisor):
            return False
    carrier, stop = Carrier(replica, progress), len(recovered.frozen) + (0 if on else 1)
    carrier.send(stop)
    if config.load(replica.directory).failback.verify != "never":
        carrier.verify(stop)
    carrier.settle(stop)
    failback.rounds += 1
    failback.rest_bytes = carrier.left_bytes()
    replica.save()
    return True


def rest_seconds(failback: Failback) -> float | None:
    """How long the rest would take, at the rate of what was sent; None: not known yet."""
    if failback.rest_bytes == 0 and failback.layers:
        return 0.0
    sent = sum(each.sent_bytes for each in failback.targets.values())
    if not sent or not failback.seconds or not failback.layers:
        return None
    return failback.rest_bytes * failback.seconds / sent


# ---- the switch ----


def run_switch(
    replica: Replica,
    hypervisor: Hypervisor | None,
    source: Hypervisor | None,
    on_step: OnStep | None,
    begun: float,
    progress: Progress | None = None,
) -> Outcome:
    """All steps of the switch that are not done. Inside `locked`."""
    runner = Runner(replica, on_step)
    switch = _Switch(replica, runner, hypervisor, source, progress)
    replica.manifest.state = "Processing"
    try:
        switch.run()
    except Exception as error:
        reason = reason_of(runner, error)
        if runner.operation.step("start").state == "pending":
            take_switch_back(replica, hypervisor, reason)
        else:
            fail(replica, reason)
        raise
    return outcome_of(replica, runner.finish(), begun)


class _Switch:
    def __init__(
        self,
        replica: Replica,
        runner: Runner,
        hypervisor: Hypervisor | None,
        source: Hypervisor | None,
        progress: Progress | None,
    ) -> None:
        self._replica = replica
        self._runner = runner
        self._hypervisor = hypervisor
        self._source = source
        self._carrier = Carrier(replica, progress)
        self._said: Config = config.load(replica.directory)

    def run(self) -> None:
        runner, failback = self._runner, failback_of(self._replica)
        recovered = layering.recovered_of(self._replica)
        if recovered.running is not None:
            failback.former = recovered.running
        runner.run("shut down", self._shut_down)
        runner.run("send rest", self._send_rest)
        runner.run("verify", self._verify)
        why = self._announce()
        if why:
            runner.skip("start", why)
        runner.run("start", self._start)
        runner.run("state", self._state)

    def _shut_down(self) -> str:
        recovered = layering.recovered_of(self._replica)
        former = failback_of(self._replica).former
        if former is None:
            return "was off"
        hypervisor = self._hypervisor or hypervisors.of_replica(self._replica)
        layering.confirm(self._replica, hypervisor)
        told = hypervisor.shut_down(
            former.machine, parse_duration(self._said.failback.shutdown)
        )
        if hypervisor.status(former.machine) != "off":
            raise HypervisorError(
                f"the machine {former.machine} was shut down, and is on", "see who started it"
            )
        recovered.running = None
        layering.settle(self._replica)
        self._runner.operation.evidence = [
            Evidence(
                kind="powered_off_confirmed",
                time=now_text(),
                says=f"the replica's machine {former.machine}: {told}",
                source=hypervisor.kind,
            )
        ]
        return told

    def _send_rest(self) -> str:
        require_source_off(self._replica, self._source)
        return f"{format_size(self._carrier.send(self._stop))} sent"

    @property
    def _stop(self) -> int:
        return len(layering.recovered_of(self._replica).frozen) + 1

    def _verify(self) -> str:
        failback, how = failback_of(self._replica), self._said.failback.verify
        told = "not asked for"
        if how != "never":
            same = self._carrier.verify(self._stop, everything=how == "all")
            failback.verified = True
            told = f"{format_size(same)} are the same on both sides"
        self._carrier.settle(self._stop)
        failback.rest_bytes = 0
        stamp_targets(failback)
        return told

    def _announce(self) -> str:
        """Known before it runs, so that it can be found; or why nothing is started."""
        if not self._runner.operation.power_on:
            return "not asked for"
        if self._said.source is None or not self._said.source.machine:
            return "replica.toml names no machine in [source]: start it by hand"
        self._source = self._source or hypervisors.of_source(self._replica)
        assert self._source is not None
        failback_of(self._replica).running = Running(
            hypervisor=self._source.kind,
            machine=self._said.source.machine,
            started=now_text(),
        )
        return ""

    def _start(self) -> str:
        source, failback = self._source, failback_of(self._replica)
        assert source is not None
        assert failback.running is not None
        name = failback.running.machine
        known = source.is_known(name)
        if known and all(each.kind == "original" for each in failback.targets.values()):
            source.power_on(name)
            return f"{name} is on"
        source.start(self._machine(name))
        return f"{name} is on, with the targets as its disks"

    def _machine(self, name: str) -> Machine:
        """A machine whose disks are the targets."""
        from .hypervisor.base import Drive
        from .machines import machine

        manifest, drives = self._replica.manifest, []
        for entry in manifest.disks:
            place = failback_of(self._replica).targets[entry.name].place
            if nbd_client.is_uri(place):
                at = nbd_client.parse_uri(place)
                if at.socket_path is None:
                    raise HypervisorError(
                        f"{place} cannot be a disk of a machine on this host",
                        "start it at the target by hand: rollpoint failback switch --no-power-on",
                    )
                drives.append(Drive(at.socket_path, "nbd", at.export))
            else:
                raw = image_format(place) == "raw"
                drives.append(Drive(place, "raw" if raw else "vmdk"))
        return machine(
            manifest.machine,
            self._said,
            drives,
            id=name,
            name=manifest.name,
            operation=self._runner.operation.id,
        )

    def _state(self) -> str:
        self._replica.manifest.state = "Failback"
        return "Failback"


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


def take_switch_back(replica: Replica, hypervisor: Hypervisor | None, reason: str) -> None:
    """A switch failed before anything ran at the target: the replica serves again. Locked.

    Raises:
        Error: That failed too: the replica is Failed, and resume tries again.
    """
    runner = Runner(replica)
    try:
        start_again(replica, hypervisor, runner)
    except Error as second:
        fail(replica, f"{reason}; and starting the replica again: {second.message}")
        raise
    replica.manifest.state = "ReadyToSwitch"
    runner.finish("failed", reason)


def start_again(
    replica: Replica, hypervisor: Hypervisor | None, runner: Runner
) -> str:
    """The replica's machine runs as before the switch. Asked again, it runs once. Locked."""
    failback, recovered = failback_of(replica), layering.recovered_of(replica)
    if failback.former is None:
        return "was off before"
    # It writes its top overlay again, so that one is not sent.
    failback.layers = min(failback.layers, len(recovered.frozen))
    failback.verified = False
    runner.operation.point = recovered.point
    up = BringUp(replica, runner, hypervisor)
    up.announce_machine()
    replica.save()
    return up.power_on()


def reason_of(runner: Runner, error: Exception) -> str:
    """Which step failed, and why."""
    failed = next((step.name for step in runner.operation.steps if step.state == "failed"), "")
    return f"{failed}: {getattr(error, 'message', error)}"
