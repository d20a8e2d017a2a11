"""The second phase of a failback: switching over.

  shut down    the guest goes down in order; after its time the plug is pulled
  send rest    what no round has sent
  verify       the targets are read back
  start        the machine at the target is powered on, where that is known
  state        Failback

Nothing of the replica is given up. Where a step before `start` fails, it is ReadyToSwitch, with
its machine on again; from there on it is Failed, and resume goes on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from . import config, hypervisors, layering, nbd_client
from .carrying import Carrier, Progress
from .config import Config
from .errors import Error, HypervisorError, StateError, UsageError
from .failing_back import failback_of, reason_of, require_source_off, start_again
from .manifest import Evidence, Running
from .points import now_text
from .replica import Replica
from .seed import image_format
from .steps import OnStep, Outcome, Runner, fail, outcome_of, turn_back
from .units import format_duration, format_size, parse_duration

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor, Machine

STEPS = ("shut down", "send rest", "verify", "start", "state")


def run(
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
            take_back(replica, hypervisor, reason, source)
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
        if runner.operation.step("shut down").state == "pending":
            self._look_ahead()
        runner.run("shut down", self._shut_down)
        runner.run("send rest", self._send_rest)
        runner.run("verify", self._verify)
        why = self._cannot_start()
        if why:
            runner.skip("start", why)
        elif runner.operation.step("start").state == "pending":
            self._announce()
        runner.run("start", self._start)
        runner.run("state", self._state)

    def _shut_down(self) -> str:
        recovered = layering.recovered_of(self._replica)
        former = failback_of(self._replica).former
        if former is None:
            return "was off"
        hypervisor = self._hypervisor or hypervisors.of_replica(self._replica)
        layering.confirm(self._replica, hypervisor)
        if hypervisor.status(former.machine) != "off":  # by hand, since it was off for a round
            failback = failback_of(self._replica)
            failback.layers = min(failback.layers, len(recovered.frozen))
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
        self._require_no_conflicts()
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
        return told

    def _require_no_conflicts(self) -> None:
        """Nothing that runs at the target has what the machine there is to have."""
        if self._cannot_start() or self._runner.operation.step("start").state != "pending":
            return
        source, machine = self._there()
        found = [] if machine is None else source.conflicts(machine)
        if found:
            raise StateError(
                "a machine at the target has already "
                + "; ".join(f"the {each.kind} {each.what}: {each.where}" for each in found),
                "power it off; or start it there by hand: rollpoint failback switch --no-power-on",
            )

    def _look_ahead(self) -> None:
        """Nothing is shut down for a machine that cannot be started at the target.

        Raises:
            UsageError: Its hypervisor does not take the targets as disks.
            StateError: It is on.
            HypervisorError: It cannot be asked.
        """
        if self._cannot_start():
            return
        source, machine = self._there()
        assert self._said.source is not None
        if source.status(self._said.source.machine) != "off":
            raise StateError(
                f"the machine {self._said.source.machine} of [source] is on, and is to be started "
                "with the targets",
                "shut it down; or rollpoint failback switch --no-power-on",
            )
        if machine is not None and source.needs_files:
            for drive in machine.drives:
                if drive.format != "vmdk":
                    raise UsageError(
                        f"{drive.path} cannot be a disk of a machine on {source.kind}, which "
                        "takes VMDK files",
                        "fail back to those; or rollpoint failback switch --no-power-on",
                    )

    def _cannot_start(self) -> str:
        """Why nothing is started at the target; "": something is."""
        if not self._runner.operation.power_on:
            return "not asked for"
        if self._said.source is None or not self._said.source.machine:
            return "replica.toml names no machine in [source]: start it by hand"
        return ""

    def _there(self) -> tuple[Hypervisor, Machine | None]:
        """Where the machine is started, and what it is to be; None: as it is known there."""
        assert self._said.source is not None
        self._source = self._source or hypervisors.of_source(self._replica)
        assert self._source is not None
        name, targets = self._said.source.machine, failback_of(self._replica).targets.values()
        own = all(each.kind == "original" for each in targets)
        if own and self._source.is_known(name):
            return self._source, None
        return self._source, self._machine(name)

    def _announce(self) -> None:
        """Known before it runs, so that it can be found."""
        source, _ = self._there()
        assert self._said.source is not None
        failback_of(self._replica).running = Running(
            hypervisor=source.kind, machine=self._said.source.machine, started=now_text()
        )

    def _start(self) -> str:
        assert self._said.source is not None
        name = self._said.source.machine
        source, machine = self._there()
        if machine is None:
            source.power_on(name)
            return f"{name} is on"
        source.start(machine)
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
        begun = self._runner.operation.step("shut down").started_ns
        if failback_of(self._replica).running is None or begun is None:
            return "Failback"
        return f"Failback; nothing ran for {format_duration((time.time_ns() - begun) / 1e9)}"


def take_back(
    replica: Replica,
    hypervisor: Hypervisor | None,
    reason: str,
    source: Hypervisor | None = None,
) -> None:
    """A switch failed before anything ran at the target: the replica serves again. Locked.

    Raises:
        Error: That failed too: the replica is Failed, and resume tries again.
    """
    runner = Runner(replica)
    try:
        turn_back(replica, reason)  # or resume would start the target beside what runs again
        if runner.operation.step("shut down").state != "pending":
            start_again(replica, hypervisor, runner, source)
    except Error as second:
        fail(replica, f"{reason}; and starting the replica again: {second.message}")
        raise
    replica.manifest.state = "ReadyToSwitch"
    runner.finish("failed", reason)
