"""The steps of a failover, and what becomes of one that fails; see operation.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import config, conversion, hypervisors, interim, replication, rollback, undoing
from .errors import ExistsError
from .manifest import DiskEntry, Recovered, Running
from .mount import Mount
from .points import Point, now_text
from .replica import Replica
from .side_by_side import side_by_side
from .steps import OnStep, Outcome, Runner, interim_paths, outcome_of
from .warming import warm_place

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor

STEPS = ("hold", "state", "roll back", "interim", "export", "convert", "close", "power on")


def require_room(replica: Replica) -> None:
    """Refuse where a file stands in the place of an overlay.

    Raises:
        ExistsError: It names the file.
    """
    for disk in replica.manifest.disks:
        overlay = interim.interim_name(disk.name)
        for name in (overlay, interim.delta_name(overlay)):
            if replica.directory.exists(name):
                raise ExistsError(
                    f"{replica.file(name)} exists, and no failover of this replica made it",
                    "move it away",
                )


def run(
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
        self._config = config.load(replica.directory)
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
        runner.run("convert", self._convert, again=again, record=False)
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
        long_term = manifest.long_term(point.id)
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
            overlay = interim.interim_name(disk.name)
            left = any(
                directory.exists(name)
                for name in (overlay, interim.delta_name(overlay))
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

    def _convert(self) -> str:
        operation, settings = self._runner.operation, self._replica.manifest.machine
        if not operation.convert or self._config.guest.convert == "never":
            return "left as it is"
        assert self._mount is not None
        wanted = conversion.wanted_on(settings, self._config)
        warm = warm_place(self._replica.path, self._config)
        done = conversion.convert(self._mount, self._config, wanted, warm)
        done.operation, done.point = operation.id, operation.point
        if done.guest is not None:
            conversion.store(self._replica.directory, done)
        return done.tell()

    def _close(self) -> str:
        assert self._mount is not None
        mount, self._mount = self._mount, None
        mount.close()
        return "no client left"

    def _announce_machine(self) -> None:
        """Known before it runs, so that whoever comes after a crash can find it."""
        manifest = self._replica.manifest
        if self._hypervisor is None:
            self._hypervisor = hypervisors.of_replica(self._replica)
        assert manifest.recovered is not None
        manifest.recovered.running = Running(
            hypervisor=type(self._hypervisor).__name__.lower(),
            machine=manifest.id,
            started=now_text(),
        )

    def _power_on(self) -> str:
        from .hypervisor.base import Drive
        from .machines import machine

        manifest, settings = self._replica.manifest, self._replica.manifest.machine
        hypervisor = self._hypervisor
        assert hypervisor is not None
        drives = [Drive(path) for path in self._interim_paths().values()]
        hypervisor.start(
            machine(settings, self._config, drives, id=manifest.id, name=manifest.name)
        )
        if settings.marker is None:
            return "running"
        line = hypervisor.wait_for(manifest.id, settings.marker, settings.timeout_seconds)
        return f"console: {line[:200]}"
