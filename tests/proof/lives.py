"""A random life of a replica: operations, killed and raced, on a hypervisor with faults.

`Life` does one from a seed, and looks after each event at what was promised (G4 to G7, G9 of
docs/guarantees.md); in the end all faults are off, and everything has to come to rest.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
from clock import CLOCK  # before the engine is imported
from moments import HOOKS, Plan, planned
from rollpoint import audit, audit_check, failback, operation, replication, trials
from rollpoint.audit import Entry
from rollpoint.errors import Error, LockedError
from rollpoint.journals import Journals
from rollpoint.manifest import Manifest, Operation
from rollpoint.replica import Replica
from rollpoint.steps import Outcome
from stage import SIZES, SOURCE, Content, Stage, piece, read
from worlds import EFFECTS, Trouble, World

EVENTS = 12
RESUMES_MAX = 6
AGAIN = {"failover", "repoint", "undo", "permanent", "failback", "switch", "commit failback",
         "undo failback"}  # fmt: skip
Call = Callable[[Replica, str, Callable[..., None]], object]


class ViolationError(AssertionError):
    """Something that was promised is not so."""


class Life:
    """One life.

    Attributes:
        told: What happened, for people.
    """

    def __init__(self, seed: int, folder: Path, files: bool | None = None) -> None:
        self.rng = random.Random(seed)
        self.told: list[str] = []
        files = self.rng.random() < 0.5 if files is None else files
        self.stage = Stage(
            folder,
            World(
                needs_files=files,
                overlay_kind="vmfsSparse" if files else "hosted",
                freezes=self.rng.random() < 0.7,
            ),
        )
        self.site = {name: bytearray(size) for name, size in SIZES.items()}
        self.overlays: dict[str, dict[str, bytearray]] = {}  # failover's operation -> content
        self.done: list[tuple[Call, str, Outcome]] = []  # requests that have an outcome
        self.epochs = {self.stage.manifest.epoch}
        self.open_epoch = self.stage.manifest.epoch  # the last one that a writer may have
        self.base = self._hash("*-flat.vmdk")
        self.below: tuple[str, str] | None = None  # operation, hash of bases and journals
        self.trials = 0
        self.clean = True  # nothing was in the way of the event that was last
        self.counts: Counter[str] = Counter()
        CLOCK.ahead_ns = 0
        self.newest_ns = 0  # how far ahead the clock has been
        self.woken = False  # the source came back during the operation that was last
        for _ in range(self.rng.randrange(1, 4)):
            self._source_writes()
            self.stage.mark()

    # ---- checks ----

    def need(self, condition: object, what: str) -> None:
        if not condition:
            raise ViolationError(what)

    def _hash(self, *patterns: str) -> str:
        digest = hashlib.sha256()
        for pattern in patterns:
            for path in sorted(self.stage.path.glob(pattern)):
                digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def look(self) -> Manifest:
        """Everything that has to be so at any moment, seen by another process."""
        stage = self.stage
        manifest = stage.manifest
        stage.world.check()
        self.need(not stage.world.violations, "; ".join(stage.world.violations))
        self.need(manifest.epoch >= max(self.epochs), "the epoch went back")
        self.epochs.add(manifest.epoch)
        if manifest.operation is None and not manifest.held:
            self.open_epoch = manifest.epoch
        elif manifest.operation is None:
            self.need(manifest.epoch > self.open_epoch, "held, with the epoch of writers (G4)")
        self._look_at_audit(manifest)
        self._look_at_starts(manifest)
        if manifest.state == "Permanent" and manifest.operation is None:
            self._look_at_permanent(manifest)
            return manifest
        merging = manifest.operation is not None and manifest.operation.kind == "permanent"
        if not merging:
            self.need(self._hash("*-flat.vmdk") == self.base, "a base has changed (G5)")
            self._look_at_points(manifest)
        if manifest.operation is None:
            self._look_at_rest(manifest)
        return manifest

    def _look_at_audit(self, manifest: Manifest) -> None:
        with self.stage.replica() as replica:
            replica.manifest = manifest
            directory = replica.directory
            pending = set() if manifest.audit is None else set(manifest.audit.pending)
            if not pending or manifest.operation is None:
                said = audit_check.check(directory, manifest.audit).problems
                self.need(not said or pending, f"the audit: {said}")
            lines = [line.decode().rstrip("\n") for line in audit.lines(directory)]
        lines += [line for line in (manifest.audit.pending if manifest.audit else [])
                  if line not in lines]  # fmt: skip
        entries = [msgspec.json.decode(line, type=Entry) for line in lines]
        intents = Counter(row.operation for row in entries if row.event == "intent")
        outcomes = Counter(row.operation for row in entries if row.event == "outcome")
        self.kinds = {row.operation: row.kind for row in entries if row.event == "intent"}
        for id, times in intents.items():
            # A test that a kill cut short has its outcome; asked for again it begins anew.
            anew = outcomes[id] if self.kinds[id] in ("test", "undo test") else 0
            self.need(times == 1 or times <= 1 + anew, f"{id} has {times} intents (G7)")
        for id, times in outcomes.items():
            self.need(times <= intents[id], f"{id} has {times} outcomes (G7)")
        history = Counter(
            row.id for row in manifest.history if row.kind not in ("test", "undo test")
        )
        self.need(max(history.values(), default=1) == 1, f"in the history twice: {history}")
        ended = {row.operation: row for row in entries if row.event == "outcome"}
        for row in manifest.history:
            if row.id in intents:
                self.need(row.id in ended, f"{row.kind} has ended without an outcome")
        if manifest.operation is None and not manifest.tests:
            going_on = set(manifest.audit.open) if manifest.audit else set()
            loose = set(intents) - set(outcomes) - going_on
            self.need(not loose, f"intents without an outcome: {loose}")

    def _look_at_starts(self, manifest: Manifest) -> None:
        """A failover powers on once; others that stop its machine may start it again."""
        again = sum(kind in ("repoint", "switch", "undo failback") for kind in self.kinds.values())
        for id, times in self.stage.world.starts().items():
            if id and self.kinds.get(id) != "test":
                self.need(times <= 1 + again, f"{id} powered on {times} times (G7)")

    def _look_at_points(self, manifest: Manifest) -> None:
        with self.stage.replica() as replica:
            found = {point.id: point.label for point in replica.points}
        for id, label in found.items():
            if id in self.stage.points:
                continue
            if label == "failback":
                if manifest.state == "Ready" and manifest.operation is None:
                    self.stage.points[id] = self._committed(manifest)
                continue
            self.stage.points[id] = self.stage.now()
        missing = set(self.stage.points) - set(found)
        self.need(not missing, f"points {sorted(missing)} are gone")

    def _committed(self, manifest: Manifest) -> Content:
        last = list(self.overlays)[-1]
        content = {name: bytes(data) for name, data in self.overlays[last].items()}
        self.stage.content = {name: bytearray(data) for name, data in content.items()}
        return content

    def _look_at_rest(self, manifest: Manifest) -> None:
        """In a state, and no operation is open."""
        stage = self.stage
        state = manifest.state
        self.need(
            state in ("Ready", "Failover", "ReadyToSwitch", "Failback"), f"at rest in {state}"
        )
        on = stage.machine in stage.world.on()
        if state == "Ready":
            self.need(manifest.recovered is None, "Ready, and failed over")
            self.need(not on, "Ready, and the replica's machine is on")
            self.need(not list(stage.path.glob("*-interim*")), "Ready, and overlays are there")
            self.below = None
            self._look_at_point(self.rng.choice(sorted(stage.points)))
            with stage.replica() as replica, replica.journals() as journals:
                self.need(journals.held == manifest.held, "held in one place only")
                for native in journals.natives:
                    newest = max(native.point_cuts(), default=0)
                    self.need(native.info()["root_entry"] >= newest, "Ready, and rolled back")
            return
        recovered = manifest.recovered
        assert recovered is not None
        self.need(manifest.held, f"{state}, and not held (G4)")
        if recovered.operation not in self.overlays:
            point = stage.points[recovered.point]
            self.overlays[recovered.operation] = {k: bytearray(v) for k, v in point.items()}
        wanted = {k: bytes(v) for k, v in self.overlays[recovered.operation].items()}
        self.need(stage.overlays() == wanted, f"the overlays of {state} have other bytes")
        # One that is off may have gone by itself, or by a call that got no answer.
        self.need(not on or recovered.running is not None, f"{state}: on, and nobody knows")
        names = {file for disk in recovered.interims for file in recovered.overlays(disk)}
        left = {path.name for path in stage.path.glob("*-interim*.vmdk")} - names
        left = {name for name in left if not name.endswith("-delta.vmdk")}
        self.need(not left, f"overlays of nobody: {left}")
        now = self._hash("*-flat.vmdk", "*-journal*.vmdk")
        if self.below is not None and self.below[0] == recovered.operation:
            self.need(self.below[1] == now, "bases or journals changed below an overlay (G5)")
        self.below = (recovered.operation, now)
        if state == "Failback":
            held = {name: Path(place).read_bytes() for name, place in stage.files.items()}
            if SOURCE not in stage.world.on() or not self.site_written:
                self.need(held == wanted, "the targets have not all that was written")
            self.need(not on, "both are on")

    def _look_at_point(self, number: int) -> None:
        self.need(
            self.stage.at(number) == self.stage.points[number],
            f"restore point {number} has other bytes (G6)",
        )

    def _look_at_permanent(self, manifest: Manifest) -> None:
        last = {k: bytes(v) for k, v in self.overlays[list(self.overlays)[-1]].items()}
        bases = {disk.name: read(self.stage.path / disk.base) for disk in manifest.disks}
        self.need(bases == last, "Permanent, and the bases have other bytes (G6)")
        self.need(not list(self.stage.path.glob("*-interim*")), "Permanent, with overlays")

    # ---- what goes on beside operations ----

    site_written = False  # since the switch

    def _source_writes(self) -> None:
        self.stage.write(self.rng)
        self.site = {name: bytearray(data) for name, data in self.stage.content.items()}

    def _source(self, manifest: Manifest) -> None:
        """It writes; what it cannot replicate is not acknowledged."""
        ready = manifest.state == "Ready" and manifest.operation is None and not manifest.held
        if ready and SOURCE not in self.stage.world.on():
            self._source_returns()
        if not ready:
            self._stale_writer(manifest)
            return
        if has_gap(manifest):
            self._catch_up()
        self._source_writes()

    def _source_returns(self) -> None:
        """Its host is up again: with the disks that the replica has."""
        for name, place in self.stage.files.items():
            Path(place).write_bytes(self.stage.content[name])
        self.stage.world.switch_on(SOURCE)

    def _catch_up(self) -> None:
        """It sends everything again."""
        site = {k: Path(place).read_bytes() for k, place in self.stage.files.items()}
        with (
            self.stage.replica() as replica,
            replica.locked(),
            replica.journals(writable=True, with_bases=True) as journals,
        ):
            for name, native in zip(journals.names, journals.natives, strict=True):
                native.disk().pwrite(site[name], 0)
                self.stage.content[name][:] = site[name]
        self.stage.mark(caught_up=True)

    def _stale_writer(self, manifest: Manifest) -> None:
        """Who had the journals before the hold, and wakes up late."""
        old = [epoch for epoch in self.epochs if epoch < manifest.epoch]
        if not old or manifest.state == "Permanent":
            return
        data, offset = piece(self.rng, SIZES["a"])
        with self.stage.replica() as replica, replica.journals() as seen:
            fenced = seen.all_held and seen.epoch == manifest.epoch
        try:
            with Replica.open(self.stage.path) as replica:
                journals = Journals(
                    replica.directory,
                    manifest,
                    writable=True,
                    epoch=self.rng.choice(old),
                    with_bases=True,
                )
                try:
                    journals.natives[0].disk().pwrite(data, offset)
                    journals.commit()
                finally:
                    journals.close()
        except Error:
            return
        self.need(
            manifest.operation is not None and not fenced,
            "a write of an old epoch was acknowledged (G4, G9)",
        )
        # The hold had not returned: the write came before, and has to be in its cut.
        self.stage.content["a"][offset : offset + len(data)] = data
        Path(self.stage.files["a"]).write_bytes(self.stage.content["a"])

    def _guest(self, manifest: Manifest) -> None:
        recovered = manifest.recovered
        if (
            recovered is None
            or self.stage.machine not in self.stage.world.on()
            or recovered.operation not in self.overlays
            or manifest.operation is not None
        ):
            return
        self.stage.write_in_guest(self.rng, self.overlays[recovered.operation])

    # ---- operations ----

    def act(self, name: str, call: Call, must: bool = False, id: str = "") -> None:
        """One request, with what may be in its way.

        Args:
            must: It is allowed; when nothing is in its way it has to work.
        """
        rng, stage = self.rng, self.stage
        id = id or f"op-{rng.getrandbits(64):016x}"
        die_at = rng.randrange(1, 36) if rng.random() < 0.4 else 0
        visit_at = rng.randrange(1, 30) if "test" not in name and rng.random() < 0.15 else 0
        visit: Callable[[], None] = self._visitor
        self.woken = False
        if name == "failover" and rng.random() < 0.2:
            visit_at, visit = rng.randrange(1, 26), lambda: self._source_wakes(plan)
        jam_at = rng.randrange(1, 5) if rng.random() < 0.1 else 0
        plan = Plan(stage, die_at, visit_at, visit, jam_at)
        trouble: list[str] = []
        if rng.random() < 0.25:
            self._plan_trouble(trouble)
        self.told.append(f"{name} {id}")
        if name.split()[0] in ("repoint", "resume"):
            self.below = None  # the journals may be rolled there and back
        try:
            with planned(stage, plan), stage.replica() as replica:
                outcome = call(replica, id, plan.on_step)
                if isinstance(outcome, Outcome) and name in AGAIN:
                    self.done.append((call, id, outcome))
        except ViolationError:
            raise
        except Error as error:
            self.told[-1] += f": {type(error).__name__}: {error.message}"
            self.counts["failed"] += 1
            late = "clock: " in error.message and self.newest_ns > CLOCK.ahead_ns
            in_the_way = trouble or plan.jammed or late or self.woken or SOURCE in stage.world.on()
            self.need(in_the_way or not must, f"{name} is allowed, and: {error.message}")
        if trouble or plan.jammed:
            self.told[-1] += f" [{', '.join(trouble)}{' storage' if plan.jammed else ''}]"
        if self.woken and self.stage.machine not in self.stage.world.on():
            stage.world.things[SOURCE].is_on = rng.random() < 0.5
        if plan.saved is not None:
            self.told[-1] += f" KILLED at {plan.passed[-1]} ({len(plan.passed)})"
            self.counts["killed"] += 1
            self.look()
            if rng.random() < 0.5:
                self.act(f"{name} again", call, id=id)
                return
        self.counts[name.replace(" again", "")] += 1

    def _plan_trouble(self, told: list[str]) -> None:
        at = self.rng.randrange(1, 9)
        kind: Trouble = self.rng.choice(("refused", "broken", "silent"))
        lasting = self.rng.random() < 0.3
        calls = 0

        def trouble(call: str, machine: str) -> Trouble:
            nonlocal calls
            calls += 1
            if calls == at or (lasting and calls > at):
                told.append(f"{kind} {call}")
                return kind if call in EFFECTS else "refused"
            return ""

        self.stage.world.trouble = trouble

    def _source_wakes(self, plan: Plan) -> None:
        """This orchestrator stood still for a minute, and the source is there again.

        Right before the call itself nobody can know, and after it it is too late.
        """
        if plan.passed[-1] == "before start" or self.stage.machine in self.stage.world.on():
            return
        CLOCK.ahead_ns += 60 * 10**9
        self.newest_ns = max(self.newest_ns, CLOCK.ahead_ns)
        self.stage.world.things[SOURCE].is_on = self.woken = True
        self.told.append(f"  the source wakes up at {plan.passed[-1]}")

    def _visitor(self) -> None:
        """Another orchestrator, at the same moment: it is told, and changes nothing."""
        stage, calls = self.stage, len(self.stage.world.log)
        id = f"visitor-{self.rng.getrandbits(32):x}"
        name, call = self.rng.choice(
            [("failover", self._failover(None)), ("undo", self._undo),
             ("permanent", self._permanent), ("switch", self._switch), ("resume", self._resume),
             ("hold", lambda replica, id, on_step: replication.hold(replica))]
        )  # fmt: skip
        HOOKS.patient = False
        trouble, stage.world.trouble = stage.world.trouble, World.trouble
        try:
            with stage.replica() as replica:
                call(replica, id, lambda step: None)
        except LockedError:
            self.counts["raced"] += 1
            return
        except Error as error:
            raise ViolationError(f"a {name} in between: {error.message}") from error
        finally:
            HOOKS.patient = True
            stage.world.trouble = trouble
            self.need(len(stage.world.log) == calls, f"a {name} in between had an effect")
        raise ViolationError(f"a {name} in between was done (G9)")

    def _failover(self, to: int | None, **said: object) -> Call:
        def call(replica: Replica, id: str, on_step: Callable[..., None]) -> object:
            return operation.failover(
                replica, to, hypervisor=self.stage.hypervisor, source=self.stage.hypervisor,
                operation_id=id, on_step=on_step, **said,  # type: ignore[arg-type]
            )  # fmt: skip

        return call

    def _switch(self, replica: Replica, id: str, on_step: Callable[..., None]) -> object:
        return failback.switch(
            replica, hypervisor=self.stage.hypervisor, source=self.stage.hypervisor,
            operation_id=id, on_step=on_step,
        )  # fmt: skip

    def _resume(self, replica: Replica, id: str, on_step: Callable[..., None]) -> object:
        return operation.resume(
            replica, hypervisor=self.stage.hypervisor, source=self.stage.hypervisor,
            on_step=on_step,
        )  # fmt: skip

    def _failback(self, replica: Replica, id: str, on_step: Callable[..., None]) -> object:
        return failback.start(
            replica, hypervisor=self.stage.hypervisor, operation_id=id, on_step=on_step
        )

    def _undo_failback(self, replica: Replica, id: str, on_step: Callable[..., None]) -> object:
        return failback.undo(
            replica, hypervisor=self.stage.hypervisor, source=self.stage.hypervisor,
            operation_id=id, on_step=on_step,
        )  # fmt: skip

    # ---- events ----

    def event(self) -> None:
        """One of those that make sense now; at times one that does not."""
        manifest = self.look()
        rng, stage = self.rng, self.stage
        if manifest.operation is not None:
            self._event_cut_short(manifest.operation)
        elif rng.random() < 0.08:
            self._event_refused(manifest)
        elif rng.random() < 0.1 and self.done:
            self._event_again()
        elif rng.random() < 0.06:
            CLOCK.ahead_ns += int(rng.choice((-3600, -5, 7, 86400)) * 1e9)
            self.newest_ns = max(self.newest_ns, CLOCK.ahead_ns)
            self.told.append(f"the clock is {CLOCK.ahead_ns / 1e9:g} s ahead")
        elif rng.random() < 0.12 and stage.world.needs_files and manifest.state != "Permanent":
            self._event_test(manifest)
        elif manifest.state == "Ready":
            self._event_ready(manifest)
        elif manifest.state == "Failover":
            self._event_failover(manifest)
        elif manifest.state in ("ReadyToSwitch", "Failback"):
            self._event_failback(manifest)
        else:
            self._event_refused(manifest)

    def _event_cut_short(self, open_operation: Operation) -> None:
        if self.rng.random() < 0.2:
            self._source(self.stage.manifest)
        if open_operation.outcome == "failed" and self.rng.random() < 0.3:
            self.act("undo", self._undo)
        else:
            self.act("resume", self._resume)

    def _undo(self, replica: Replica, id: str, on_step: Callable[..., None]) -> object:
        return operation.undo(
            replica, hypervisor=self.stage.hypervisor, operation_id=id, on_step=on_step
        )

    def _permanent(self, replica: Replica, id: str, on_step: Callable[..., None]) -> object:
        return operation.permanent(
            replica, hypervisor=self.stage.hypervisor, operation_id=id, on_step=on_step
        )

    def _event_ready(self, manifest: Manifest) -> None:
        rng, stage = self.rng, self.stage
        gap = has_gap(manifest)
        what = rng.random()
        if what < 0.25:
            self._source(manifest)
        elif what < 0.35:
            if manifest.held or gap:
                self._refused("mark", lambda replica: replication.mark(replica))
            else:
                stage.mark()
        elif what < 0.45:
            act = replication.release if manifest.held else replication.hold
            self.act(act.__name__, lambda replica, id, on_step: act(replica, "for a while"))
        elif what < 0.6 and not gap:
            if SOURCE not in stage.world.on():
                self._source_returns()
            self.act("planned", self._failover(None, planned=True), must=not manifest.held)
        else:
            stage.world.cut_power(SOURCE)
            to = rng.choice([None, None, *stage.points])
            power_on = rng.random() < 0.85
            self.act("failover", self._failover(to, power_on=power_on), must=True)

    def _event_failover(self, manifest: Manifest) -> None:
        rng, stage = self.rng, self.stage
        what = rng.random()
        if what < 0.3:
            self._guest(manifest)
            self.told.append("the guest writes")
        elif what < 0.45:
            point = rng.choice(sorted(stage.points))
            self.act("repoint", self._failover(point), must=True)
        elif what < 0.6:
            self._source(manifest)
        elif what < 0.75:
            self.act("undo", self._undo, must=True)
        elif what < 0.8 and not manifest.tests:
            self.act("permanent", self._permanent, must=True)
        else:
            stage.world.cut_power(SOURCE)
            self.act("failback", self._failback, must=True)

    def _event_failback(self, manifest: Manifest) -> None:
        rng = self.rng
        what = rng.random()
        if manifest.state == "ReadyToSwitch" and what < 0.25:
            self._guest(manifest)
        elif what < 0.35:
            self._source(manifest)
        elif what < 0.5:
            self.act("undo failback", self._undo_failback, must=True)
        elif manifest.state == "ReadyToSwitch":
            self.act("switch", self._switch, must=True)
        else:
            self.act(
                "commit failback",
                lambda replica, id, on_step: failback.commit(
                    replica, hypervisor=self.stage.hypervisor, operation_id=id, on_step=on_step
                ),
                must=True,
            )

    def _event_test(self, manifest: Manifest) -> None:
        if manifest.tests and self.rng.random() < 0.5:
            self.act(
                "undo test",
                lambda replica, id, on_step: trials.undo(
                    replica, hypervisor=self.stage.hypervisor, on_step=on_step
                ),
                must=True,
            )
            return
        self.trials += 1
        id = f"t{self.trials}"
        self.act(
            "test",
            lambda replica, _, on_step: trials.start(
                replica, hypervisor=self.stage.hypervisor, operation_id=id, on_step=on_step
            ),
            id=id,
        )

    def _event_refused(self, manifest: Manifest) -> None:
        """Something that is not allowed in this state: refused, and nothing happens."""
        wrong: dict[str, list[tuple[str, Call]]] = {
            "Ready": [("undo", self._undo), ("permanent", self._permanent),
                      ("switch", self._switch), ("undo failback", self._undo_failback)],
            "Failover": [("failover", self._failover(None)), ("switch", self._switch)],
            "ReadyToSwitch": [("undo", self._undo), ("permanent", self._permanent),
                              ("failover", self._failover(1))],
            "Failback": [("undo", self._undo), ("switch", self._switch),
                         ("failback", self._failback)],
            "Permanent": [("failover", self._failover(None)), ("undo", self._undo)],
        }  # fmt: skip
        name, call = self.rng.choice(wrong[manifest.state])
        self._refused(name, lambda replica: call(replica, "no", lambda step: None))

    def _refused(self, name: str, call: Callable[[Replica], object]) -> None:
        self.told.append(f"{name} is refused")
        before, calls = (self.stage.path / "replica.json").read_bytes(), len(self.stage.world.log)
        try:
            with self.stage.replica() as replica:
                call(replica)
        except Error as error:
            self.need(error.hint, f"{name} is refused without a hint")
        else:
            raise ViolationError(f"{name} was done, and is not allowed")
        now = (self.stage.path / "replica.json").read_bytes()
        self.need(before == now or has_noted(now), f"{name} was refused, and changed something")
        self.need(calls == len(self.stage.world.log), f"{name} was refused, and had an effect")

    def _event_again(self) -> None:
        """The same request, later: the same answer, and nothing happens (G7)."""
        call, id, first = self.rng.choice(self.done)
        calls = len(self.stage.world.log)
        before = (self.stage.path / "replica.json").read_bytes()
        self.told.append(f"{first.kind} {id} is asked for once more")
        try:
            with self.stage.replica() as replica:
                outcome = call(replica, id, lambda step: None)
        except Error as error:
            raise ViolationError(f"{first.kind} {id} asked again: {error.message}") from error
        assert isinstance(outcome, Outcome)
        self.need((outcome.kind, outcome.point) == (first.kind, first.point), "another answer")
        self.need(calls == len(self.stage.world.log), f"{first.kind} {id} happened twice (G7)")
        now = (self.stage.path / "replica.json").read_bytes()
        self.need(before == now, f"{first.kind} {id} asked again changed something (G7)")

    # ---- all of it ----

    def live(self, events: int = EVENTS) -> None:
        """So many events; then everything works, and everything comes to rest.

        Raises:
            ViolationError: Something that was promised is not so.
        """
        for _ in range(events):
            self.event()
        self.come_to_rest()

    def come_to_rest(self) -> None:
        """No more faults: whatever is open can be finished, and is what was promised."""
        self.told.append("faults off")
        stage = self.stage
        for _ in range(RESUMES_MAX):
            self._calmly("resume", self._resume)
            if self.look().operation is None:
                break
        manifest = stage.manifest
        self.need(manifest.operation is None, "resume does not end")
        if manifest.tests:
            self._calmly(
                "undo test",
                lambda replica, id, on_step: trials.undo(replica, hypervisor=stage.hypervisor),
            )
            manifest = self.look()
        self.need(not manifest.tests, "test failovers are left")
        self.need(not [m for m in stage.world.on() if m.startswith("test-")], "a test runs on")
        if manifest.state in ("ReadyToSwitch", "Failback"):
            self._calmly("undo failback", self._undo_failback)
            manifest = self.look()
        if manifest.state == "Failover":
            self._calmly("undo", self._undo)
            manifest = self.look()
        if manifest.state == "Ready":
            for number in stage.points:
                self._look_at_point(number)
        with stage.replica() as replica:
            found = audit_check.check(replica.directory, stage.manifest.audit).problems
            self.need(not found, f"the audit: {found}")

    def _calmly(self, name: str, call: Call) -> None:
        self.told.append(f"{name}, calmly")
        try:
            with self.stage.replica() as replica:
                call(replica, f"calm-{len(self.told)}", lambda step: None)
        except Error as error:
            raise ViolationError(f"with all faults off, {name}: {error.message}") from error


def has_gap(manifest: Manifest) -> bool:
    return any(gap.end is None for gap in manifest.gaps)


def has_noted(data: bytes) -> bool:
    """A refused mark notes that there is a gap."""
    return b'"resync": true' in data
