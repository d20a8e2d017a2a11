"""Failover and undo: the operation, step by step, resumable from the manifest.

  hold       replication is stopped and fenced; from here on nothing gets lost or added
  state      Ready -> Failover; the restore point is chosen and recorded
  roll back  every journal shows its disk as of the point; a long-term point needs none
  interim    an empty overlay for every disk, above its journal, or above the link that
             shows the long-term point
  export     the overlays are mounted: served to this host, read at both ends
  convert    the guest gets what its new hypervisor needs (left as it is, for now)
  close      the exports end; nobody has the disks open any more
  power on   the machine starts from the overlays; every later write lands there

A step that fails is undone together with those before it, and the replica is in the
state it was found in. A crash leaves the record: `resume` goes forward up to power-on,
making the overlays anew, because nothing of value is in them before.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from . import interim, merging, replication, rollback, undoing
from .errors import ExistsError, StateError
from .manifest import DiskEntry, MachineSettings, Recovered, Running
from .mount import Mount
from .points import Point, now_text
from .replica import Replica
from .side_by_side import side_by_side
from .steps import (
    OnStep,
    Outcome,
    Runner,
    begin,
    interim_paths,
    known_outcome,
    outcome_of,
    require_chains,
    unrecorded_outcome,
)

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor

FAILOVER_STEPS = (
    "hold", "state", "roll back", "interim", "export", "convert", "close", "power on",
)  # fmt: skip


def failover(
    replica: Replica,
    to: Point | int | str = "latest",
    *,
    hypervisor: Hypervisor | None = None,
    power_on: bool = True,
    settings: MachineSettings | None = None,
    operation_id: str | None = None,
    on_step: OnStep | None = None,
) -> Outcome:
    """Bring the replica up as of a restore point, its writes kept in overlays.

    Args:
        to: A point, its id, "latest", or a moment: the newest point not after it.
        hypervisor: Where to power it on; by default QEMU on this host.
        power_on: False leaves the disks ready and starts nothing.
        settings: Of the machine; by default those of the manifest.
        operation_id: Asked again with the same id, the same outcome is returned and
            nothing is done; after a crash it goes on where it stopped.
        on_step: Called when a step begins and when it has been done.

    Raises:
        StateError: The replica is not Ready.
        NotFoundError, GapError, UsageError: There is no such point. Nothing was changed.
        ExistsError: A file stands where an overlay would be made. Nothing was changed.
        LockedError: Another operation is going on.
        Error: A step failed. All was undone, or the replica is Failed and says why.
    """
    operation_id = operation_id or str(uuid.uuid4())
    begun = time.perf_counter()
    with replica.locked():
        known = known_outcome(replica, operation_id, "failover")
        if known is not None:
            return known
        open_operation = replica.manifest.operation
        if open_operation is not None and open_operation.id == operation_id:
            return _go_on(replica, hypervisor, on_step, begun)
        replica.need_state("Ready", doing="fail over {}")
        point = _choose(replica, to)  # again after the hold, which may mark a last one
        require_chains(replica)
        _require_room_for_interims(replica)
        if settings is not None:
            replica.manifest.machine = settings
        if power_on and hypervisor is None:
            hypervisor = undoing.local_hypervisor(replica)
        begin(
            replica,
            "failover",
            FAILOVER_STEPS,
            operation_id,
            point=None if point is None else point.id,
            power_on=power_on,
        )
        return _go_on(replica, hypervisor, on_step, begun)


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
        if replica.manifest.state == "Failed" and failed is not None:
            if failed.kind == "failover":
                return undoing.finish_rolling_back(replica, hypervisor, begun)
            if failed.kind == "permanent" and failed.step("merge").state != "pending":
                raise StateError(
                    f"cannot undo: making replica {replica.name} permanent has begun to change "
                    "its base",
                    "rollpoint resume goes on with it",
                )
            replica.manifest.remember(failed)
            replica.manifest.state = "Failover"
        replica.need_state("Failover", doing="undo the failover of {}")
        # The overlays are dropped before the journals are rolled: nothing may be given
        # up for journals that cannot be.
        replica.journals().close()
        begin(replica, "undo", undoing.STEPS, operation_id)
        return undoing.run(replica, hypervisor, on_step, begun)


def resume(
    replica: Replica, *, hypervisor: Hypervisor | None = None, on_step: OnStep | None = None
) -> Outcome | None:
    """Finish, or roll back, what a crash or a failure left. None: there was nothing.

    Raises:
        LockedError: The operation is going on: it did not crash.
        Error: It failed again; the replica says why.
    """
    begun = time.perf_counter()
    with replica.locked():
        operation = replica.manifest.operation
        if operation is None:
            return _finish_beside(replica, begun)
        if operation.kind in ("create", "adopt", "seed", "remove"):
            from . import provision

            provision.resume(replica.directory, replica.manifest)
            return outcome_of(replica, operation, begun)
        if operation.kind == "undo":
            return undoing.run(replica, hypervisor, on_step, begun)
        if operation.kind == "permanent":
            return _permanent(replica, hypervisor, on_step, begun)
        if replica.manifest.state == "Failed":
            return undoing.finish_rolling_back(replica, hypervisor, begun)
        return _go_on(replica, hypervisor, on_step, begun)


def _finish_beside(replica: Replica, begun: float) -> Outcome | None:
    """What an ingest does beside operations, and did not come to the end of."""
    from . import frozen, retaining  # a failover does without

    destaged = retaining.finish(replica)
    gone = frozen.finish(replica)
    if gone is not None:
        return unrecorded_outcome(replica, "expire", gone, begun)
    if destaged:
        return unrecorded_outcome(replica, "destage", replica.manifest.horizon, begun)
    return None


def permanent(
    replica: Replica,
    *,
    hypervisor: Hypervisor | None = None,
    operation_id: str | None = None,
    on_step: OnStep | None = None,
    progress: merging.Progress | None = None,
) -> Outcome:
    """End a failover by merging everything into the base. It is no replica afterwards.

    The machine is powered off. All restore points are gone when this returns.

    Raises:
        StateError: The replica is not failed over.
        Error: A step failed; before the merge the replica is in Failover still, and
            after it Failed: resume goes on, there is no way back.
    """
    operation_id = operation_id or str(uuid.uuid4())
    begun = time.perf_counter()
    with replica.locked():
        known = known_outcome(replica, operation_id, "permanent")
        if known is not None:
            return known
        replica.need_state("Failover", doing="make {} permanent")
        replica.journals().close()
        require_chains(replica)
        begin(replica, "permanent", merging.STEPS, operation_id)
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
        return rollback.choose(points, to)
    if not len(points) and not replication.has_writes(replica):
        rollback.choose(points, to)  # says so
    return None


def _require_room_for_interims(replica: Replica) -> None:
    for disk in replica.manifest.disks:
        for name in (interim.interim_name(disk.name), interim.delta_name(disk.name)):
            if replica.directory.exists(name):
                raise ExistsError(
                    f"{replica.file(name)} exists, and no failover of this replica made it",
                    "move it away",
                )


def _go_on(
    replica: Replica, hypervisor: Hypervisor | None, on_step: OnStep | None, begun: float
) -> Outcome:
    """All steps of a failover that are not done; on failure back to where it began."""
    runner = Runner(replica, on_step)
    steps = _Failover(replica, runner, hypervisor)
    try:
        steps.run()
    except Exception as error:
        steps.abandon()
        undoing.roll_back(replica, hypervisor, str(getattr(error, "message", error)))
        raise
    operation = runner.finish()
    return outcome_of(replica, operation, begun)


class _Failover:
    """The steps of one failover.

    Three saves come before the power-on call: the intent (with the new epoch), what may
    be found from then on (state, overlays), and the machine that is about to run. What
    lies between them is done again after a crash.
    """

    def __init__(
        self, replica: Replica, runner: Runner, hypervisor: Hypervisor | None
    ) -> None:
        self._replica = replica
        self._runner = runner
        self._hypervisor = hypervisor
        self._point: Point | None = None
        self._mount: Mount | None = None

    def run(self) -> None:
        runner = self._runner
        operation = runner.operation
        runner.run("hold", self._hold, record=False)  # it saves the intent itself
        runner.run("state", self._state, record=False)
        runner.run("roll back", self._roll)
        # A crash before "close" was done may have left half of a conversion behind.
        again = operation.step("close").state != "done"
        runner.run("interim", self._interim, again=again, record=False)
        runner.run("export", self._export, again=again, record=False)
        runner.run("convert", lambda: "left as it is", again=again, record=False)
        runner.run("close", self._close, record=False)
        if operation.power_on:
            self._announce_machine()
            runner.run("power on", self._power_on)
        else:
            runner.skip("power on", "not asked for")

    def abandon(self) -> None:
        if self._mount is not None:
            self._mount.abandon()

    def _hold(self) -> str:
        return f"epoch {replication.hold_locked(self._replica)}"

    def _chosen(self) -> Point:
        """The point, looked up once; "latest" means what the hold left as the latest."""
        if self._point is None:
            operation, points = self._runner.operation, self._replica.points
            number = operation.point
            self._point = points.latest if number is None else points.by_id(number)
            operation.point = self._point.id
        return self._point

    def _state(self) -> str:
        manifest, point = self._replica.manifest, self._chosen()
        long_term = next((row for row in manifest.frozen if row.id == point.id), None)
        manifest.state = "Failover"
        manifest.recovered = Recovered(
            operation=self._runner.operation.id,
            point=point.id,
            interims={disk.name: interim.interim_name(disk.name) for disk in manifest.disks},
            parents={} if long_term is None else dict(long_term.links),
        )
        return f"point {point.id}, {point.time}"

    def _parents(self) -> dict[str, str]:
        """Disk name -> what its overlay lies on, unless that is its journal."""
        recovered = self._replica.manifest.recovered
        assert recovered is not None
        return recovered.parents

    def _roll(self) -> str:
        point = self._chosen()
        if self._parents():
            return "not needed: a long-term point"
        journals = self._replica.journals(writable=True, wait_seconds=replication.LOCK_SECONDS)
        try:
            done = side_by_side(
                lambda row: rollback.roll_back(dict([row]), point),
                list(zip(journals.names, journals.natives, strict=True)),
            )
        finally:
            journals.close()  # in order would show the end of the log again
        walked = sum(report.entries_walked for reports in done for report in reports)
        tables = sum(report.tables_written for reports in done for report in reports)
        return f"{walked} writes walked, {tables} tables written"

    def _interim(self) -> str:
        directory, parents = self._replica.directory, self._parents()

        def create(disk: DiskEntry) -> None:
            parent = parents.get(disk.name, disk.journal)
            assert parent is not None
            left = any(
                directory.exists(name)
                for name in (interim.interim_name(disk.name), interim.delta_name(disk.name))
            )
            interim.create_interim(
                directory, disk.name, parent, disk.size_bytes, replace=left
            )

        side_by_side(create, self._replica.manifest.disks)
        return f"{len(self._replica.manifest.disks)} disk(s)"

    def _interim_paths(self) -> dict[str, str]:
        return interim_paths(self._replica)

    def _export(self) -> str:
        self._mount = Mount(self._interim_paths(), self._replica.directory.io)
        self._mount.check()
        return "read at both ends"

    def _close(self) -> str:
        assert self._mount is not None
        mount, self._mount = self._mount, None
        mount.close()
        return "no client left"

    def _announce_machine(self) -> None:
        """Known before it runs, so that whoever comes after a crash can find it."""
        manifest = self._replica.manifest
        if self._hypervisor is None:
            self._hypervisor = undoing.local_hypervisor(self._replica)
        assert manifest.recovered is not None
        manifest.recovered.running = Running(
            hypervisor=type(self._hypervisor).__name__.lower(),
            machine=manifest.id,
            started=now_text(),
        )

    def _power_on(self) -> str:
        from .hypervisor.base import Drive, Machine

        manifest, settings = self._replica.manifest, self._replica.manifest.machine
        hypervisor = self._hypervisor
        assert hypervisor is not None
        hypervisor.start(
            Machine(
                id=manifest.id,
                name=manifest.name,
                drives=tuple(Drive(path) for path in self._interim_paths().values()),
                memory_bytes=settings.memory_bytes,
                accelerator="kvm" if settings.accelerator == "kvm" else "tcg",
            )
        )
        if settings.marker is None:
            return "running"
        line = hypervisor.wait_for(manifest.id, settings.marker, settings.timeout_seconds)
        return f"console: {line[:200]}"


# ---- undo and permanent ----


def _permanent(
    replica: Replica,
    hypervisor: Hypervisor | None,
    on_step: OnStep | None,
    begun: float,
    progress: merging.Progress | None = None,
) -> Outcome:
    runner = Runner(replica, on_step)
    merged = runner.operation.step("state").state == "done"
    replica.manifest.state = "Permanent" if merged else "Processing"
    try:
        runner.run("power off", lambda: undoing.power_off(replica, hypervisor))
        merging.run(replica, runner, progress)
    except Exception as error:
        undoing.stop_at(replica, runner, error, safe_before="merge")
        raise
    return outcome_of(replica, runner.finish(), begun)
