"""From a restore point to a machine that runs: what failing over and changing the point share.

  roll back  every journal shows its disk as of the point; a long-term point needs none
  interim    an empty overlay for every disk, above its journal, or above the link that
             shows the long-term point
  export     the overlays are mounted: served to this host, read at both ends
  convert    the guest gets what its new hardware needs; without one nothing is changed
  close      the exports end; nobody has the disks open any more
  check again  what must be so right before the power-on call: checklist.py
  power on   the machine starts from the overlays; every later write lands there

`run` does those that are not done; each may be done again after a crash.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import checklist, config, conversion, hypervisors, interim, replication, rollback
from .errors import ExistsError
from .manifest import CheckResult, DiskEntry, Recovered, Running
from .mount import Mount
from .points import Point, Points, now_text
from .replica import Replica
from .side_by_side import side_by_side
from .steps import Runner, interim_paths
from .warming import warm_place

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor, Machine


STEPS = (
    "roll back",
    "interim",
    "export",
    "convert",
    "close",
    "check again",
    "power on",
)


def require_room(replica: Replica, number: int = 1) -> None:
    """Refuse where a file stands in the place of an overlay of that number.

    Raises:
        ExistsError: It names the file.
    """
    for disk in replica.manifest.disks:
        overlay = interim.interim_name(disk.name, number)
        for name in (overlay, interim.delta_name(overlay)):
            if replica.directory.exists(name):
                raise ExistsError(
                    f"{replica.file(name)} exists, and no failover of this replica made it",
                    "move it away",
                )


class BringUp:
    """The replica's disks and its machine, as the manifest's `recovered` is to have them.

    Args:
        runner: Of the operation in progress. Inside `locked`.
        hypervisor: None: the one that replica.toml names, when it is needed.
        number: Of the overlays.
        source: Where the source runs; None: as replica.toml says.
    """

    def __init__(
        self,
        replica: Replica,
        runner: Runner,
        hypervisor: Hypervisor | None,
        number: int = 1,
        source: Hypervisor | None = None,
    ) -> None:
        self._replica = replica
        self._runner = runner
        self._hypervisor = hypervisor
        self._source = source
        self._number = number
        self.config = config.load(replica.directory)
        self._point: Point | None = None
        self.points: Points | None = None  # as `point` found them
        self._mount: Mount | None = None

    @property
    def hypervisor(self) -> Hypervisor:
        """Where the machine runs; connected to when it is first asked for."""
        if self._hypervisor is None:
            self._hypervisor = hypervisors.of_replica(self._replica)
        return self._hypervisor

    @property
    def known_hypervisor(self) -> Hypervisor | None:
        """The same, where there is one by now."""
        return self._hypervisor

    @property
    def source(self) -> Hypervisor | None:
        """Where the source runs; None: nothing is said of it."""
        if self._source is None:
            self._source = hypervisors.of_source(self._replica)
        return self._source

    def check(self) -> str:
        """What is to be seen before anything is done: see checklist.py."""
        return _told(checklist.before(self._context()))

    def check_again(self) -> str:
        """What is to be seen right before the power-on call."""
        return _told(checklist.at_power_on(self._context()))

    def _context(self) -> checklist.Context:
        operation = self._runner.operation
        held = [step for step in operation.steps if step.name == "hold"]
        return checklist.Context(
            self._replica,
            self.config,
            operation,
            hypervisor=self.hypervisor if operation.power_on else None,
            machine=self.machine(self._paths_to_be()) if operation.power_on else None,
            open_source=lambda: self.source,
            held_ns=held[0].started_ns or 0 if held and not operation.found_held else 0,
        )

    def abandon(self) -> None:
        """A step failed: let go of the disks."""
        if self._mount is not None:
            self._mount.abandon()

    def point(self) -> Point:
        """The point, looked up once; "latest" means what the hold left as the latest."""
        if self._point is None:
            operation, points = self._runner.operation, self._replica.points
            self.points = points
            number = operation.point
            self._point = points.latest if number is None else points.by_id(number)
            operation.point, operation.point_time = self._point.id, self._point.time
        return self._point

    def recovered(self) -> Recovered:
        """What the manifest is to say of it from before the first overlay is made."""
        manifest, point = self._replica.manifest, self.point()
        long_term = manifest.long_term(point.id)
        return Recovered(
            operation=self._runner.operation.id,
            point=point.id,
            interims={
                disk.name: interim.interim_name(disk.name, self._number)
                for disk in manifest.disks
            },
            parents={} if long_term is None else dict(long_term.links),
            cut=self._runner.operation.cut,
            evidence=list(self._runner.operation.evidence),
        )

    def run(self) -> None:
        """All of the steps of this page that are not done, in their order."""
        runner, operation = self._runner, self._runner.operation
        runner.run("roll back", self.roll)
        # A crash before "close" was done may have left half of a conversion behind.
        again = operation.step("close").state != "done"
        runner.run("interim", self.make_interims, again=again, record=False)
        runner.run("export", self.export, again=again, record=False)
        runner.run("convert", self.convert, again=again, record=False)
        runner.run("close", self.close, record=False)
        if not operation.power_on:
            runner.skip("check again", "nothing is powered on")
            runner.skip("power on", "not asked for")
            return
        on = operation.step("power on").state == "done"
        runner.run("check again", self.check_again, again=not on, record=False)
        self.announce_machine()
        runner.run("power on", self.power_on)

    def roll(self) -> str:
        point = self.point()
        if self._parents():
            return "not needed: a long-term point"
        walked, tables = roll_journals(self._replica, point)
        return f"{walked} writes walked, {tables} tables written"

    def make_interims(self) -> str:
        directory, parents = self._replica.directory, self._parents()
        kind = hypervisors.OVERLAY_KINDS[self.config.hypervisor.kind]
        if self._hypervisor is not None:
            kind = self._hypervisor.overlay_kind

        def create(disk: DiskEntry) -> None:
            parent = parents.get(disk.name, disk.journal)
            assert parent is not None
            overlay = interim.interim_name(disk.name, self._number)
            left = any(
                directory.exists(name) for name in (overlay, interim.delta_name(overlay))
            )
            interim.create_interim(
                directory,
                disk.name,
                parent,
                disk.size_bytes,
                kind=kind,
                number=self._number,
                replace=left,
            )

        side_by_side(create, self._replica.manifest.disks)
        return f"{len(self._replica.manifest.disks)} disk(s)"

    def export(self) -> str:
        self._mount = Mount(interim_paths(self._replica), self._replica.directory.io)
        self._mount.check()
        return "read at both ends"

    def convert(self) -> str:
        operation, settings = self._runner.operation, self._replica.manifest.machine
        if not operation.convert or self.config.guest.convert == "never":
            return "left as it is"
        assert self._mount is not None
        wanted = conversion.wanted_on(settings, self.config)
        warm = warm_place(self._replica.path, self.config)
        done = conversion.convert(self._mount, self.config, wanted, warm)
        done.operation, done.point = operation.id, operation.point
        if done.guest is not None:
            conversion.store(self._replica.directory, done)
        return done.tell()

    def close(self) -> str:
        assert self._mount is not None
        mount, self._mount = self._mount, None
        mount.close()
        return "no client left"

    def announce_machine(self) -> None:
        """Known before it runs, so that whoever comes after a crash can find it."""
        recovered = self._replica.manifest.recovered
        assert recovered is not None
        recovered.running = Running(
            hypervisor=self.hypervisor.kind,
            machine=hypervisors.machine_id(self._replica),
            started=now_text(),
        )

    def _paths_to_be(self) -> list[str]:
        """Of the overlays that this operation makes."""
        return [
            self._replica.file(interim.interim_name(disk.name, self._number))
            for disk in self._replica.manifest.disks
        ]

    def machine(self, overlays: Sequence[str] | None = None) -> Machine:
        """What is to be started.

        Args:
            overlays: Its disks; None: those that the manifest has.
        """
        from .hypervisor.base import Drive
        from .machines import machine

        manifest, operation = self._replica.manifest, self._runner.operation
        if overlays is None:
            overlays = list(interim_paths(self._replica).values())
        drives = [Drive(path) for path in overlays]
        return machine(
            manifest.machine,
            self.config,
            drives,
            id=hypervisors.machine_id(self._replica),
            name=manifest.name,
            operation=operation.id,
            point=operation.point,
        )

    def power_on(self) -> str:
        checklist.at_the_call(self._context())
        return self.power_on_again()

    def power_on_again(self) -> str:
        """Without a look at the source: a failback, which has its own evidence, goes back."""
        settings, machine = self._replica.manifest.machine, self.machine()
        self.hypervisor.start(machine)
        if settings.marker is None:
            return "running"
        line = self.hypervisor.wait_for(machine.id, settings.marker, settings.timeout_seconds)
        return f"console: {line[:200]}"

    def _parents(self) -> dict[str, str]:
        """Disk name -> what its overlay lies on, unless that is its journal."""
        recovered = self._replica.manifest.recovered
        assert recovered is not None
        return recovered.parents


def _told(results: Sequence[CheckResult]) -> str:
    """In a line: what passed, and what was skipped and why."""
    passed = ", ".join(one.name for one in results if one.state == "passed")
    skipped = [f"{one.name} skipped: {one.reason}" for one in results if one.state == "skipped"]
    return "; ".join([*([f"{passed} passed"] if passed else []), *skipped])


def roll_journals(replica: Replica, point: Point) -> tuple[int, int]:
    """Have all journals show a point; returns writes walked and tables written. Locked."""
    journals = replica.journals(writable=True, wait_seconds=replication.LOCK_SECONDS)
    with contextlib.closing(journals):  # closed in order it would show the end of the log again
        done = side_by_side(
            lambda row: rollback.roll_back(dict([row]), point),
            list(zip(journals.names, journals.natives, strict=True)),
        )
    walked = sum(report.entries_walked for reports in done for report in reports)
    tables = sum(report.tables_written for reports in done for report in reports)
    return walked, tables
