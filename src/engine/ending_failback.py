"""The second half of a failback: committing it, or taking it back.

  import            what the recovered machine wrote since its restore point goes into the
                    journals, as new writes
  mark              and becomes their newest restore point
  drop interim      the overlays are not needed any more
  roll back         every journal shows its newest restore point
  release           replication goes on, from the recovered machine; if that may have written
                    since the switch, with a gap that a resynchronisation ends
  state             Ready

  power off target  the machine at the target lets go of its disks
  power on          the replica's machine serves again
  state             Failover

What `import` has begun cannot be taken back, only finished: resume does. Before it a commit
that fails leaves Failback.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from . import changed, config, fencing, hypervisors, layering, replication, targets, undoing
from .config import Config
from .disk import open_disk
from .errors import Error, HypervisorError, StateError
from .failing_back import confirm, failback_of, reason_of, start_again
from .manifest import Evidence, Operation, State
from .points import Point, now_text
from .replica import Replica
from .resync import DiskSide, Progress, bring_in_step
from .steps import OnStep, Outcome, Runner, fail, outcome_of
from .units import format_size

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor
    from .journals import Journals

COMMIT_STEPS = ("import", "mark", "drop interim", "roll back", "release", "state")
UNDO_STEPS = ("power off target", "power on", "state")
LABEL = "failback"
FENCED = "source-fenced"  # the check that asks for evidence
RAN = (
    "the recovered machine has run at its new place since the failback was switched over, and "
    "what it wrote there was not replicated"
)
MAY_HAVE_RUN = (
    "whether the recovered machine has written at its new place since the failback was switched "
    "over cannot be told"
)


def run_commit(
    replica: Replica,
    hypervisor: Hypervisor | None,
    on_step: OnStep | None,
    begun: float,
    progress: Progress | None = None,
) -> Outcome:
    """All steps of a commit that are not done. Inside `locked`."""
    runner = Runner(replica, on_step)
    commit = _Commit(replica, runner, hypervisor, progress)
    replica.manifest.state = "Processing"
    try:
        commit.run()
    except Exception as error:
        _stop_at(replica, runner, error, "Failback", safe_before="import")
        raise
    return outcome_of(replica, runner.finish(), begun)


class _Commit:
    def __init__(
        self,
        replica: Replica,
        runner: Runner,
        hypervisor: Hypervisor | None,
        progress: Progress | None,
    ) -> None:
        self._replica = replica
        self._runner = runner
        self._hypervisor = hypervisor
        self._progress = progress

    def run(self) -> None:
        runner = self._runner
        runner.run("import", self._import)
        runner.run("mark", self._mark)
        runner.run("drop interim", self._drop)
        runner.run("roll back", self._roll)
        runner.run("release", self._release)
        runner.run("state", self._state, record=False)

    def _journals(self, *, with_bases: bool = False) -> Journals:
        """Open for writing with a new epoch: whoever was there before is refused."""
        replica = self._replica
        replica.manifest.epoch += 1
        replica.save()
        journals = replica.journals(
            writable=True, with_bases=with_bases, wait_seconds=replication.LOCK_SECONDS
        )
        try:
            for native in journals.natives:
                native.set_epoch(replica.manifest.epoch, False)
        except BaseException:
            journals.close()
            raise
        return journals

    def _import(self) -> str:
        """Write into each journal what differs from the overlays. What is there stays."""
        replica, written = self._replica, 0
        recovered = layering.recovered_of(replica)
        # Closed in order they would show the end of the log, which the overlays do not lie on.
        with contextlib.closing(self._journals(with_bases=True)) as journals:
            for entry, native in zip(replica.manifest.disks, journals.natives, strict=True):
                top = replica.file(layering.layers(replica, entry.name)[-1])
                with open_disk(top, io=replica.directory.io) as disk:
                    done = bring_in_step(
                        entry.name,
                        DiskSide(disk.reading),
                        DiskSide(native.disk()),
                        list(changed.ranges(replica, entry.name, recovered.point)),
                        self._progress,
                    )
                written += done.written_bytes + done.zeroed_bytes
            for native in journals.natives:
                native.set_epoch(replica.manifest.epoch, True)
        return f"{format_size(written)} written into the journals"

    def _mark(self) -> str:
        operation, manifest = self._runner.operation, self._replica.manifest
        with contextlib.closing(self._journals()) as journals:
            point = self._made(journals)
            if point is None:
                operation.point = journals.next_point_id
                manifest.next_point_id = journals.next_point_id + 1
                self._replica.save()
                point = journals.mark("crash", LABEL)
            for native in journals.natives:
                native.set_epoch(manifest.epoch, True)
        return f"point {point.id}, {point.time}"

    def _made(self, journals: Journals) -> Point | None:
        """The point, where an earlier try has made it."""
        wanted = self._runner.operation.point
        return next((each for each in journals.points() if each.id == wanted), None)

    def _drop(self) -> str:
        former = failback_of(self._replica).former
        if former is not None:
            hypervisor = self._hypervisor or hypervisors.of_replica(self._replica)
            hypervisor.let_go(former.machine)
        return undoing.drop_interims(self._replica)

    def _roll(self) -> str:
        return undoing.roll_to_latest(self._replica)

    def _release(self) -> str:
        replica, operation = self._replica, self._runner.operation
        assert operation.point is not None
        point = replica.points.by_id(operation.point)
        replication.close_gap(replica, point.time)
        cause = written_since_switch(replica)
        if cause:
            replication.open_gap(replica, point.time, cause, resync=True)
        replica.save()  # who is let in by the release finds the gap
        epoch = replication.release_locked(replica)
        if not cause:
            return f"epoch {epoch}; nothing was written at the targets since the switch"
        return f"epoch {epoch}; {cause}: resynchronise it, rollpoint replica resync"

    def _state(self) -> str:
        manifest = self._replica.manifest
        manifest.state, manifest.failback = "Ready", None
        return "Ready"


def written_since_switch(replica: Replica) -> str:
    """Why the targets may hold more than was sent; "" where it is known that they do not."""
    failback = failback_of(replica)
    if failback.running is not None:
        return RAN
    try:
        for target in failback.targets.values():
            if not target.stamp:
                return MAY_HAVE_RUN
            if targets.stamp(target.place) != target.stamp:
                return f"{target.place} was written since the failback was switched over"
    except Error:
        return MAY_HAVE_RUN
    return ""


def run_undo(
    replica: Replica,
    hypervisor: Hypervisor | None,
    source: Hypervisor | None,
    on_step: OnStep | None,
    begun: float,
) -> Outcome:
    """All steps of taking a failback back that are not done. Inside `locked`."""
    runner, manifest = Runner(replica, on_step), replica.manifest
    found = runner.operation.found_state
    manifest.state = "Processing"

    def failover() -> str:
        manifest.state, manifest.failback = "Failover", None
        return "Failover"

    try:
        runner.run("power off target", lambda: _power_off_target(replica, source, runner.operation))
        runner.run("power on", lambda: _power_on(replica, hypervisor, source, runner, found))
        runner.run("state", failover, record=False)
    except Exception as error:
        _stop_at(replica, runner, error, found, safe_before="power on")
        raise
    return outcome_of(replica, runner.finish(), begun)


def _power_on(
    replica: Replica,
    hypervisor: Hypervisor | None,
    source: Hypervisor | None,
    runner: Runner,
    found: State,
) -> str:
    confirm(replica, hypervisor)
    recovered = layering.recovered_of(replica)
    if found == "ReadyToSwitch" and recovered.running is not None:
        return "runs"
    if not runner.operation.power_on:
        recovered.running = None
        return "not asked for"
    return start_again(replica, hypervisor, runner, source)


def _stop_at(
    replica: Replica, runner: Runner, error: Exception, found: State, safe_before: str
) -> None:
    """A step failed: the state found while nothing was given up, else Failed."""
    reason = reason_of(runner, error)
    if runner.operation.step(safe_before).state == "pending":
        replica.manifest.state = found
        runner.finish("failed", reason)
    else:
        fail(replica, reason)


def _power_off_target(
    replica: Replica, source: Hypervisor | None, operation: Operation
) -> str:
    """Two machines with one identity must not run: the one at the target goes off first.

    Raises:
        StateError: The source is on, though no failback started it; or nothing tells
            whether it is, and the replica's machine is to be started.
        HypervisorError: It is on still.
    """
    failback = failback_of(replica)
    said = config.load(replica.directory)
    name = said.source.machine if said.source is not None else ""
    if failback.running is not None:
        name = failback.running.machine
    if not name:
        return _unseen(replica, operation, said)
    told, kind = _seen_off(replica, source, name)
    operation.evidence = [
        Evidence(
            kind="powered_off_confirmed",
            time=now_text(),
            says=f"the machine {name} at the target: {told}",
            source=kind,
        )
    ]
    return told


def _unseen(replica: Replica, operation: Operation, said: Config) -> str:
    """No machine at the target can be powered off: who lets ours run beside it?

    Raises:
        StateError: Nothing that [fencing] accepts says that none runs there.
    """
    starts = operation.power_on and failback_of(replica).former is not None
    if not starts or operation.found_state != "Failback":
        return "replica.toml names no machine in [source], which could be asked"
    now_ns, reason = time.time_ns(), operation.skip.get(FENCED, "")
    if reason:
        seen = Evidence(kind="overridden", time=now_text(), says=reason, source=operation.who)
        operation.evidence = [seen]
    else:
        operation.evidence = fencing.collect(said.source, None, said.fencing, now_ns)
    if fencing.sufficient(operation.evidence, said.fencing, now_ns) is None:
        raise StateError(
            f"whether a machine runs at the targets of {replica.name} is not known, and its own "
            f"is to be started: {fencing.told(operation.evidence)}",
            "name it in [source] of replica.toml; or see that it is off, and say how: "
            f"--skip {FENCED}=REASON; or leave this one off: --no-power-on",
        )
    return fencing.told(operation.evidence)


def _seen_off(
    replica: Replica, source: Hypervisor | None, name: str
) -> tuple[str, str]:
    """Power the machine at the target off, and see that; returns what was done, and who said."""
    failback = failback_of(replica)
    source = source or hypervisors.of_source(replica)
    if source is None:
        raise StateError(
            f"the machine {name} was started at the target, and replica.toml has no [source]",
            "write that table again: it says where the machine is to be powered off",
        )
    if failback.running is None:
        if source.status(name) != "off":
            raise StateError(
                f"the machine {name} is on, and no failback started it",
                "shut it down, or commit the failback",
            )
        return "was not on", source.kind
    source.power_off(name)
    if source.status(name) != "off":
        raise HypervisorError(f"the machine {name} is on after it was powered off")
    if any(each.kind != "original" for each in failback.targets.values()):
        source.let_go(name)
    failback.running = None
    return "off", source.kind
