"""Test failovers: a machine of a restore point, in an isolated network, while replication goes on.

Nothing is held, and nothing of the replica is written: each test has disks of its own above
the point, which retention keeps for as long. Any number run side by side, beside an ingest,
beside a failover. They are no operations that the replica waits for: the manifest lists them
in `tests`, and its lock is taken for moments only.

  point     the restore point is chosen, recorded, and kept from then on
  disks     each disk shows it, and takes what is written: see trial_disks.py
  convert   the guest gets what its new hardware needs, on those disks
  power on  the machine starts, with no wire to anything that others use

A start that fails takes back what it did. One that was killed leaves a record that nobody
is at work on: the next test, `undo` and `resume` clear such leftovers away, and so a test
whose disks' process has died. Everything else of a test stays until `undo`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from . import (
    audit,
    config,
    conversion,
    hypervisors,
    operation_report,
    trial_disks,
    trial_files,
    trial_places,
)
from .errors import Error, HypervisorError, LockedError, NotFoundError, StateError, UsageError
from .manifest import MachineSettings, Manifest, Operation, Running, Step, Trial
from .points import Point, now_text
from .rationing import free_bytes
from .replica import Replica
from .steps import OnStep, Outcome, known_outcome, outcome_of
from .trial_places import Facts
from .units import format_size, parse_size
from .view import choose, require_readable

if TYPE_CHECKING:
    from ._native import Dir
    from .config import Config
    from .hypervisor.base import Drive, Hypervisor

STEPS = ("point", "disks", "convert", "power on")
UNDO_STEPS = ("power off", "disks")
ALL = "all"
LOCK_SECONDS = 10.0  # an ingest or an operation has the replica's lock


def start(
    replica: Replica,
    to: Point | str = "latest",
    *,
    network: str | None = None,
    isolated: bool = False,
    hypervisor: Hypervisor | None = None,
    power_on: bool = True,
    convert: bool = True,
    settings: MachineSettings | None = None,
    reason: str = "",
    operation_id: str | None = None,
    on_step: OnStep | None = None,
) -> Outcome:
    """Start a test failover; it goes on until ``undo``.

    Args:
        to: The point, or what Points.find takes.
        network: What its cards are connected to, known to be isolated: "none", or the
            test_network of replica.toml, which is also the default.
        isolated: The caller knows that the network is isolated: a plan says so.
        hypervisor: Where to power it on; by default what replica.toml names.
        power_on: False leaves the disks ready and starts nothing.
        convert: False leaves the guest on the disks as it is.
        settings: Of the machine; by default those of replica.toml, then of the manifest.
        reason: Why it is done, for the record.
        operation_id: Names the test. Asked again with it, the same outcome is returned
            and nothing is done.
        on_step: Called when a step begins and when it has been done.

    Raises:
        NotFoundError, GapError, UsageError: There is no such point, or the network is not
            known to be isolated. Nothing was changed.
        StateError, LockedError: The replica cannot be looked at now.
        Error: A step failed. What it had done was taken back.
    """
    id = trial_places.check_id(operation_id or secrets.token_hex(4))
    said = config.load(replica.directory)  # with a mistake in it nothing begins
    wire = _network(said, network, hypervisor, isolated)
    settings = settings or config.machine_of(said, replica.manifest.machine)
    conversion.wanted_on(settings, said)
    _require_room(replica, said)
    if hypervisor is None and power_on:
        hypervisor = hypervisors.of_replica(replica)
    sweep(replica, hypervisor)
    with trial_places.used(replica.directory, id) as place:
        test = _Test(replica, id, place, hypervisor, reason, on_step)
        try:
            known = test.begin(to, wire)
            if known is not None:
                test.forget_place()
                return known
            test.run(said, settings, convert and said.guest.convert != "never", power_on)
            return test.succeed()
        except BaseException as error:
            test.fail(str(getattr(error, "message", error)))
            raise


def _network(
    said: Config, wanted: str | None, hypervisor: Hypervisor | None, isolated: bool
) -> str:
    """The network of a test's cards.

    Raises:
        UsageError: It is not known to be isolated.
    """
    known = said.hypervisor.test_network or "none"
    network = known if wanted is None else wanted
    local = (said.hypervisor.kind if hypervisor is None else hypervisor.kind) == "qemu"
    if local and network != "none":
        raise UsageError(
            f"a test failover cannot use the network {network!r}: on QEMU no network is isolated",
            "leave it out: the cards are there, with no wire in them",
        )
    if network not in (known, "none") and not isolated:
        raise UsageError(
            f"the network {network!r} is not known to be isolated, and a test failover uses no "
            "other",
            'where it is, say so in replica.toml: [hypervisor] test_network = "..."',
        )
    return network


def _require_room(replica: Replica, said: Config) -> None:
    """What a test writes must not take the room that replication needs.

    Raises:
        StateError: Less is free than [checks] wants.
        UsageError: What it wants is neither a size nor a share.
    """
    if "room" in said.checks.skip:
        return
    text, free = said.checks.reserve, free_bytes(replica.path)
    if text.endswith("%"):
        try:
            share = float(text[:-1]) / 100
        except ValueError:
            raise UsageError(f"[checks] reserve = {text!r} is no share", 'as in "5%"') from None
        wanted = int(sum(disk.size_bytes for disk in replica.manifest.disks) * share)
    else:
        wanted = parse_size(text)
    if free is not None and free < wanted:
        raise StateError(
            f"{replica.path} has {format_size(free)} free, and a test failover wants "
            f"{format_size(wanted)}: the journals would have no room for what replication brings",
            "make room, or ask for less in replica.toml: [checks] reserve",
        )


class _Test:
    """One test while it is started. Whoever has it uses its place."""

    def __init__(
        self,
        replica: Replica,
        id: str,
        place: Dir,
        hypervisor: Hypervisor | None,
        reason: str,
        on_step: OnStep | None,
    ) -> None:
        self._replica = replica
        self._id = id
        self._place = place
        self._hypervisor = hypervisor
        self._on_step = on_step or (lambda step: None)
        self._begun = time.perf_counter()
        self._operation = Operation(
            id=id,
            kind="test",
            started=now_text(),
            found_state=replica.manifest.state,
            reason=reason,
            steps=[Step(name=name) for name in STEPS],
        )
        self._served: trial_disks.Served | None = None
        self._is_recorded = False

    # ---- its record ----

    def begin(self, to: Point | str, network: str) -> Outcome | None:
        """Choose the point and record the test; or the outcome, where it has been done."""
        replica = self._replica
        with replica.locked(LOCK_SECONDS) as manifest:
            known = known_outcome(replica, self._id, "test")
            if known is not None:
                return known
            there = _find(manifest, self._id)
            if there is not None and there.state == "starting":
                # We use its place, so nobody starts it: it is a leftover, and the sweep saw a
                # lock that a child of this process had for the moment before it was a program.
                raise LockedError(
                    f"what was left of test failover {self._id} was not cleared away", "try again"
                )
            if there is not None:  # so long that the history has forgotten it
                self._operation.point, self._operation.started = there.point, there.started
                return outcome_of(replica, self._operation, None)._replace(steps=())
            require_readable(manifest)
            step = self._begin("point")
            point = choose(replica, to)
            _note(self._operation, manifest, point.id, point.time)
            manifest.tests = [
                *manifest.tests,
                Trial(id=self._id, point=point.id, started=now_text(), network=network),
            ]
            audit.begin_beside(manifest, self._operation)
            self._is_recorded = True
            replica.save()
            self._end(step, f"{point.id}, {point.time}")
        return None

    def succeed(self) -> Outcome:
        """The test runs: from the manifest's record on it is no leftover."""
        with self._replica.locked(LOCK_SECONDS) as manifest:
            trial = self._trial(manifest)
            if not trial.files and not trial_places.is_served(self._replica.directory, self._id):
                raise HypervisorError(
                    "the process that serves the disks of the test failover was ended",
                    "try again",
                )
            trial.state = "running"
            _remember(self._replica, self._operation, "done")
        self._let_go()
        return outcome_of(self._replica, self._operation, self._begun)._replace(interims={})

    def fail(self, why: str) -> None:
        """Take everything back. Where that fails, it is a leftover: asked for later."""
        if not self._is_recorded:
            self.forget_place()
            return
        failed = next((row for row in self._operation.steps if row.state == "running"), None)
        if failed is not None:
            failed.state = "failed"
        self._let_go()
        with contextlib.suppress(Error):
            self._replica.refresh()
            trial = _find(self._replica.manifest, self._id)
            if trial is not None:
                self._operation.error = f"{failed.name}: {why}" if failed is not None else why
                _take_down(self._replica, trial, self._hypervisor, lambda name, note: None)
                _drop(self._replica, trial, self._operation, "rolled back")

    def forget_place(self) -> None:
        """Nothing was begun: leave no directory behind."""
        with contextlib.suppress(Error):
            self._replica.refresh()
            if _find(self._replica.manifest, self._id) is None:
                trial_places.purge(self._replica.directory, self._id)

    def _let_go(self) -> None:
        served, self._served = self._served, None
        if served is not None:
            served.close()

    def _trial(self, manifest: Manifest) -> Trial:
        trial = _find(manifest, self._id)
        if trial is None:
            raise NotFoundError(f"test failover {self._id} is not recorded any more")
        return trial

    # ---- its steps ----

    def run(self, said: Config, settings: MachineSettings, convert: bool, power_on: bool) -> None:
        """Everything after the point was chosen."""
        from .hypervisor.base import Drive

        if self._needs_files(said):
            paths = self._make_files(said, settings, convert)
            drives = [Drive(path) for path in paths.values()]
        else:
            facts = self._serve(settings, convert)
            drives = [Drive(facts.socket, "nbd", disk) for disk in facts.disks]
        if not convert:
            self._skip("convert", "left as it is")
        if not power_on:
            self._skip("power on", "not asked for")
            return
        step = self._begin("power on")
        self._end(step, self._power_on(said, settings, drives))
        self._operation.rto_seconds = time.perf_counter() - self._begun

    def _needs_files(self, said: Config) -> bool:
        if self._hypervisor is not None:
            return self._hypervisor.needs_files
        return said.hypervisor.kind != "qemu"

    def _make_files(
        self, said: Config, settings: MachineSettings, convert: bool
    ) -> dict[str, str]:
        """The disks as files, the guest on them converted; their paths."""
        from .mount import Mount

        replica = self._replica
        step = self._begin("disks")
        for made in (False, True):  # nothing new is begun; and nothing at all is done
            with replica.locked(LOCK_SECONDS) as manifest:
                trial = self._trial(manifest)
                trial.files = True
                if made:
                    trial.disks = trial_files.names(replica.directory, manifest, self._id)
                replica.save()
            trial_files.wait_until_still(replica)
        kind = hypervisors.OVERLAY_KINDS[said.hypervisor.kind]
        if self._hypervisor is not None:
            kind = self._hypervisor.overlay_kind
        point = choose(replica, str(trial.point))
        self._end(step, trial_files.make(replica, trial, point, kind))
        paths = {disk: replica.file(name) for disk, name in trial.disks.items()}
        if convert:
            step = self._begin("convert")
            with Mount(paths, replica.directory.io) as mount:
                mount.check()
                wanted = conversion.wanted_on(settings, said)
                note = conversion.convert(mount, said, wanted).tell()
            self._end(step, note)
        return paths

    def _serve(self, settings: MachineSettings, convert: bool) -> Facts:
        point = self._operation.point
        assert point is not None
        wish = trial_disks.Wish(point=point, settings=settings, convert=convert)
        self._served = trial_disks.Served(self._replica, self._id, self._place, wish)
        while True:
            news = self._served.news()
            if news.facts is not None:
                return news.facts
            if news.seconds is None:
                step = self._begin(news.step)
            else:
                self._end(step, news.note, news.seconds)

    def _power_on(self, said: Config, settings: MachineSettings, drives: Sequence[Drive]) -> str:
        from .machines import machine

        replica, hypervisor = self._replica, self._hypervisor
        assert hypervisor is not None
        machine_id = f"test-{self._id}-{replica.manifest.id[:8]}"
        with replica.locked(LOCK_SECONDS) as manifest:  # known before it runs
            trial = self._trial(manifest)
            trial.running = Running(
                hypervisor=hypervisor.kind, machine=machine_id, started=now_text()
            )
            replica.save()
        wanted = machine(
            settings,
            said,
            drives,
            id=machine_id,
            name=replica.name,
            network=trial.network,
            operation=self._id,
            point=trial.point,
        )
        name = f"{replica.name} test {self._id}"
        wanted = dataclasses.replace(wanted, name=name)
        hypervisor.start(wanted)
        if settings.marker is None:
            return "running"
        line = hypervisor.wait_for(machine_id, settings.marker, settings.timeout_seconds)
        return f"console: {conversion.printable(line, 200)}"

    def _begin(self, name: str) -> Step:
        step = self._operation.step(name)
        step.state, step.started_ns = "running", time.time_ns()
        self._on_step(step)
        return step

    def _end(self, step: Step, note: str, seconds: float | None = None) -> None:
        assert step.started_ns is not None
        step.seconds = (time.time_ns() - step.started_ns) / 1e9 if seconds is None else seconds
        step.note, step.state = note, "done"
        self._on_step(step)

    def _skip(self, name: str, note: str) -> None:
        step = self._operation.step(name)
        step.state, step.seconds, step.note = "skipped", 0.0, note


def _find(manifest: Manifest, id: str) -> Trial | None:
    return next((trial for trial in manifest.tests if trial.id == id), None)


def _note(operation: Operation, manifest: Manifest, point: int, time: str = "") -> None:
    operation.point, operation.point_time = point, time
    operation.found_state, operation.found_held = manifest.state, manifest.held


def _remember(
    replica: Replica, operation: Operation, outcome: Literal["done", "rolled back"]
) -> None:
    """Into the history, the audit and a report, whatever operation on the replica is open."""
    manifest = replica.manifest
    operation.outcome = outcome
    operation.seconds = sum(step.seconds or 0.0 for step in operation.steps)
    audit.end_beside(manifest, operation)
    in_progress = manifest.operation
    manifest.remember(operation)
    manifest.operation = in_progress
    replica.save(sync_audit=True)
    told = operation_report.write(replica.directory, manifest, operation)
    replica.warnings = [told] if told else []


# ---- the end of a test ----


def undo(
    replica: Replica,
    which: str = ALL,
    *,
    hypervisor: Hypervisor | None = None,
    on_step: OnStep | None = None,
) -> list[Outcome]:
    """End test failovers: power off, drop what was written, keep the point no longer.

    Asked again for one that has ended, it changes nothing and says the same.

    Args:
        which: The id of one, or "all": leftovers of crashes, too.

    Raises:
        NotFoundError: There is no such test.
        LockedError: It is being started, or ended, at this moment.
        Error: The machine, or the disks' process, is still there; so is the test.
    """
    replica.refresh()
    wanted = [trial.id for trial in replica.manifest.tests] if which == ALL else [which]
    done = [_undo_one(replica, id, hypervisor, on_step) for id in wanted]
    if which == ALL:
        sweep(replica, hypervisor)
    return done


def _undo_one(
    replica: Replica, id: str, hypervisor: Hypervisor | None, on_step: OnStep | None
) -> Outcome:
    begun = time.perf_counter()
    trial_places.check_id(id)
    if _find(replica.manifest, id) is None:
        return _known_end(replica, id)
    with trial_places.used(replica.directory, id):
        operation = _begin_end(replica, id, "")
        if operation is None:  # another one was quicker
            trial_places.purge(replica.directory, id)
            return _known_end(replica, id)
        _end(replica, id, operation, hypervisor, on_step)
    return outcome_of(replica, operation, begun)._replace(interims={})


def _known_end(replica: Replica, id: str) -> Outcome:
    known = known_outcome(replica, f"undo-{id}", "undo test")
    if known is None:
        raise _no_such_test(replica, id)
    return known._replace(interims={})


def _no_such_test(replica: Replica, id: str) -> NotFoundError:
    known = ", ".join(trial.id for trial in replica.manifest.tests) or "none"
    return NotFoundError(
        f"replica {replica.name} has no test failover {id!r}", f"there are: {known}"
    )


def _begin_end(replica: Replica, id: str, reason: str) -> Operation | None:
    """The end of a test goes on from here: recorded, and never taken back.

    None: there is no such test any more. By who uses its place.
    """
    with replica.locked(LOCK_SECONDS) as manifest:
        trial = _find(manifest, id)
        if trial is None:
            return None
        operation = Operation(
            id=f"undo-{id}",
            kind="undo test",
            started=now_text(),
            found_state=manifest.state,
            reason=reason,
            steps=[Step(name=name) for name in UNDO_STEPS],
        )
        _note(operation, manifest, trial.point)
        if trial.state == "starting":  # it never came to run
            audit.end_act(manifest, id, "cut short")
        was_ending, trial.state = trial.state == "ending", "ending"
        if not was_ending:
            audit.begin_beside(manifest, operation)
        replica.save()
        return operation


def _end(
    replica: Replica,
    id: str,
    operation: Operation,
    hypervisor: Hypervisor | None,
    on_step: OnStep | None = None,
) -> None:
    """Bring it to its end. By who uses its place."""

    def tell(name: str, note: str) -> None:
        step = operation.step(name)
        step.state, step.note = "done", note
        if on_step is not None:
            on_step(step)

    trial = _find(replica.manifest, id)
    assert trial is not None, "a test ends whose record is gone"
    _take_down(replica, trial, hypervisor, tell)
    _drop(replica, trial, operation, "done")


def _take_down(
    replica: Replica,
    trial: Trial,
    hypervisor: Hypervisor | None,
    tell: Callable[[str, str], None],
) -> None:
    """Nothing runs, and nothing is on disk any more, but the record. Each may have been done."""
    if trial.running is not None:
        hypervisor = hypervisor or hypervisors.of_replica(replica)
        if hypervisor.kind != trial.running.hypervisor:
            raise StateError(
                f"test failover {trial.id} was started on {trial.running.hypervisor}, and "
                f"replica.toml names {hypervisor.kind}",
                "name the former one there until the test has ended",
            )
        hypervisor.power_off(trial.running.machine)
        hypervisor.let_go(trial.running.machine)
        tell("power off", "off")
    else:
        tell("power off", "was not on")
    if trial.files:
        trial_files.remove(replica.directory, trial.disks)
        tell("disks", "dropped")
        return
    served = trial_disks.end(replica.directory, trial.id)
    tell("disks", "dropped" if served else "were gone")


def _drop(
    replica: Replica, trial: Trial, operation: Operation, outcome: Literal["done", "rolled back"]
) -> None:
    """The record goes, then the directory: without a record it is anybody's to remove."""
    with replica.locked(LOCK_SECONDS) as manifest:
        manifest.tests = [row for row in manifest.tests if row.id != trial.id]
        _remember(replica, operation, outcome)
    trial_places.purge(replica.directory, trial.id)


def sweep(replica: Replica, hypervisor: Hypervisor | None = None) -> list[str]:
    """Clear away what crashes have left of test failovers; returns the ids.

    Raises:
        Error: A machine, or a process, is still there.
    """
    replica.refresh()
    directory = replica.directory
    left = [trial.id for trial in replica.manifest.tests if _is_left(directory, trial)]
    known = {trial.id for trial in replica.manifest.tests}
    strays = [id for id in trial_places.present(directory) if id not in known]
    gone = []
    for id in left + strays:
        with contextlib.suppress(LockedError), trial_places.used(directory, id):
            replica.refresh()
            trial = _find(replica.manifest, id)
            if trial is None:
                if not trial_places.is_served(directory, id):
                    trial_places.purge(directory, id)
                    gone.append(id)
            elif _is_left(directory, trial, mine=True):
                operation = _begin_end(replica, id, "left behind by a crash")
                if operation is not None:
                    _end(replica, id, operation, hypervisor)
                    gone.append(id)
    return gone


def _is_left(directory: Dir, trial: Trial, *, mine: bool = False) -> bool:
    """Whether a crash left it: nobody starts it, or nobody serves its disks any more.

    Args:
        mine: The caller uses its place.
    """
    if not mine and trial_places.is_used(directory, trial.id):
        return False
    if trial.state != "running":
        return True
    return not trial.files and not trial_places.is_served(directory, trial.id)
