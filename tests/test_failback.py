"""Failback: changes go to the targets, the replica takes its machine back or lets it go."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from fakes import Plain
from replicas import (
    SIZES,
    Source,
    empty_model,
    ingesting,
    make,
    rollpoint,
    seen_by_qemu,
    wait_until,
)
from rollpoint import (
    carrying,
    ending_failback,
    failback,
    failing_back,
    layering,
    operation,
    replication,
    switching_over,
    undoing,
)
from rollpoint.disk import open_disk
from rollpoint.errors import (
    CancelledError,
    Error,
    GapError,
    HypervisorError,
    LockedError,
    NotFoundError,
    StateError,
    UnsupportedError,
    UsageError,
)
from rollpoint.hypervisor.base import Conflict, Handle, Machine, State
from rollpoint.manifest import Step
from rollpoint.replica import Replica
from rollpoint.resync import resync
from tools import require_tool

Snapshot = dict[str, bytes]


class World(Plain):
    """Machines of one place, in a file that outlives processes. The guest writes by `write`."""

    def __init__(self, path: Path, can_freeze: bool = True) -> None:
        self.path = path
        self.can_freeze = can_freeze
        self.deaf = False
        self.on_call: Callable[[str], None] = lambda name: None  # when it had its effect

    def _load(self) -> dict[str, list[str]]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def _store(self, name: str, machine_id: str, paths: list[str] | None) -> None:
        state = self._load()
        if paths is not None:
            state[machine_id] = paths
            state[f"known {machine_id}"] = paths
        else:
            state.pop(machine_id, None)
        self.path.write_text(json.dumps(state))
        self.on_call(name)

    def start(self, machine: Machine) -> Handle:
        paths = [drive.path for drive in machine.drives]
        running = self._load().get(machine.id)
        assert running in (None, paths), "it runs already, with other disks"
        self._store("start", machine.id, paths)
        return Handle(machine.id, 1, 0, "")

    def power_on(self, machine_id: str) -> Handle:
        self._store("power on", machine_id, self._load()[f"known {machine_id}"])
        return Handle(machine_id, 1, 0, "")

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        return marker

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        self._store("power off", machine_id, None)

    def let_go(self, machine_id: str) -> None:
        assert self.status(machine_id) == "off"
        self.path.write_text(
            json.dumps({k: v for k, v in self._load().items() if k != f"known {machine_id}"})
        )

    def status(self, machine_id: str) -> State:
        return "running" if machine_id in self._load() else "off"

    def is_known(self, machine_id: str) -> bool:
        return f"known {machine_id}" in self._load()

    def freeze(self, machine_id: str, overlays: Mapping[str, str]) -> None:
        if not self.can_freeze:
            raise UnsupportedError("it cannot")
        if self.deaf:
            raise HypervisorError("no answer")
        running = self._load().get(machine_id)
        if running is None:
            raise HypervisorError("it is off")
        self._store("freeze", machine_id, [overlays.get(path, path) for path in running])

    def on(self) -> list[str]:
        return sorted(name for name in self._load() if not name.startswith("known "))

    def write(self, machine_id: str, models: dict[str, bytearray], seed: int) -> None:
        """The guest writes to its disks, and to the models of them."""
        rng = random.Random(seed)
        for path, name in zip(self._load()[machine_id], sorted(models), strict=True):
            scribble(path, models[name], rng)


def scribble(
    path: str, model: bytearray, rng: random.Random, times: int = 6, first: bool = False
) -> None:
    with open_disk(path, writable=True) as disk:
        if not first:
            disk.keep_cid()  # a hypervisor changes it at its first write
        for _ in range(times):
            length = rng.randrange(1, 9000)
            offset = rng.randrange(len(model) - length)
            data = b"" if rng.random() < 0.2 else rng.randbytes(length)
            if data:
                disk.pwrite(data, offset)
            else:
                disk.zero(length, offset)
            model[offset : offset + length] = data or bytes(length)


class Life:
    """A replica with three points, and targets with what the source had at the end."""

    def __init__(self, folder: Path, origin: Path, snapshots: list[Snapshot]) -> None:
        self.path = Path(shutil.copytree(origin, folder / "web01"))
        self.snapshots = snapshots
        self.targets = {name: str(folder / f"{name}.img") for name in SIZES}
        for name, place in self.targets.items():
            Path(place).write_bytes(snapshots[-1][name])
        self.models = {name: bytearray(data) for name, data in snapshots[1].items()}
        self.here, self.there = World(folder / "here"), World(folder / "there")
        with Replica.open(self.path) as replica:
            self.machine = replica.manifest.id

    def say(self, text: str) -> None:
        (self.path / "replica.toml").write_text(text)

    def fail_over(self, running: bool = False) -> None:
        """To the second point; something is written since."""
        with Replica.open(self.path) as replica:
            skip = {"source-fenced": "a test"}
            done = operation.failover(
                replica, 2, hypervisor=self.here, power_on=running, skip=skip
            )
        if running:
            self.here.write(self.machine, self.models, 1)
        else:
            rng = random.Random(1)
            for name, overlay in done.interims.items():
                scribble(overlay, self.models[name], rng)

    def seen(self, tmp_path: Path) -> Snapshot:
        """What the replica's overlays hold, as QEMU reads them."""
        with Replica.open(self.path) as replica:
            recovered = replica.manifest.recovered
            assert recovered is not None
            return {
                name: seen_by_qemu(self.path / file, tmp_path)
                for name, file in recovered.interims.items()
            }

    def require_targets(self) -> None:
        for name, place in self.targets.items():
            same = Path(place).read_bytes() == self.models[name]  # no diff of MiBs is wanted
            assert same, name

    def require_ready(self, tmp_path: Path, wanted: Mapping[str, bytes | bytearray]) -> None:
        with Replica.open(self.path) as replica:
            manifest = replica.manifest
            assert (manifest.state, manifest.operation, manifest.held) == ("Ready", None, False)
            assert (manifest.failback, manifest.recovered) == (None, None)
            assert replica.verify()["ok"]
        for name in SIZES:
            same = seen_by_qemu(self.path / f"{name}-journal.vmdk", tmp_path) == wanted[name]
            assert same, name
        assert [each.name for each in self.path.iterdir() if "interim" in each.name] == []


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Snapshot]]:
    """A replica with three points, to be copied by each test."""
    folder = tmp_path_factory.mktemp("fed")
    make(folder / "r")
    snapshots = []
    with ingesting(folder / "r", folder / "s"), Replica.open(folder / "r") as replica:
        source = Source(folder / "s", empty_model(), 11)
        for _ in range(3):
            for _ in range(12):
                source.act()
            replication.mark(replica)
            snapshots.append(source.snapshot())
        source.close()
    return folder / "r", snapshots


@pytest.fixture
def life(fed: tuple[Path, list[Snapshot]], tmp_path: Path) -> Life:
    return Life(tmp_path, *fed)


def test_a_replica_that_is_off_goes_back_and_is_ready_again(life: Life, tmp_path: Path) -> None:
    life.fail_over()
    with Replica.open(life.path) as replica:
        done = failback.start(replica, life.targets)
        assert done.state == "ReadyToSwitch"
        done = failback.switch(replica)
        assert done.state == "Failback"
        life.require_targets()
        done = failback.commit(replica)
        assert done.state == "Ready"
        newest = replica.points.latest
        assert (newest.id, newest.label) == (done.point, "failback")
        assert [point.id for point in replica.points] == [1, 2, 3, newest.id]
    life.require_ready(tmp_path, life.models)


def test_points_before_the_failback_stay_what_they_were(life: Life, tmp_path: Path) -> None:
    life.fail_over()
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets)
        failback.switch(replica)
        point = failback.commit(replica).point
        assert point is not None
        for number, wanted in [*enumerate(life.snapshots, 1), (point, life.models)]:
            done = operation.failover(replica, number, power_on=False)
            for name, overlay in done.interims.items():
                assert seen_by_qemu(overlay, tmp_path) == wanted[name], (number, name)
            operation.undo(replica)


@pytest.mark.parametrize("switched", [False, True])
def test_a_failback_that_is_undone_leaves_the_failover(
    life: Life, tmp_path: Path, switched: bool
) -> None:
    life.fail_over()
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets)
        if switched:
            failback.switch(replica)
        done = failback.undo(replica)
        assert (done.state, replica.manifest.failback) == ("Failover", None)
        assert life.seen(tmp_path) == life.models
        assert operation.undo(replica).state == "Ready"
    life.require_ready(tmp_path, life.snapshots[-1])


def test_what_cannot_be_a_target_is_refused_before_anything_is_done(
    life: Life, tmp_path: Path
) -> None:
    small = tmp_path / "small.img"
    small.write_bytes(bytes(4096))
    twice = dict.fromkeys(SIZES, life.targets["b"])
    own = {**life.targets, "a": str(life.path / "a-flat.vmdk")}
    wrong: list[tuple[dict[str, str], type[Error]]] = [
        ({"a": life.targets["a"]}, UsageError),
        ({**life.targets, "a": str(small)}, UsageError),
        ({**life.targets, "a": str(tmp_path / "none.img")}, Error),
        ({**life.targets, "c": str(small)}, Error),
        (twice, UsageError),
        (own, UsageError),
    ]
    with Replica.open(life.path) as replica, pytest.raises(StateError):
        failback.start(replica, life.targets)
    life.fail_over()
    with Replica.open(life.path) as replica:
        for targets, kind in wrong:
            with pytest.raises(kind):
                failback.start(replica, targets)
            replica.refresh()
            assert replica.manifest.operation is None
            assert (replica.manifest.state, replica.manifest.failback) == ("Failover", None)
        assert life.seen(tmp_path) == life.models


def test_a_replica_that_goes_back_takes_no_other_command(life: Life) -> None:
    life.fail_over()
    with Replica.open(life.path) as replica:
        for act in (failback.switch, failback.commit, failback.undo):
            with pytest.raises(StateError):
                act(replica)
        failback.start(replica, life.targets)
        for step in (failback.switch, None):
            for act in (operation.undo, operation.permanent, operation.failover, failback.start):
                with pytest.raises(StateError, match="its state is"):
                    act(replica)
            if step is not None:
                with pytest.raises(StateError):
                    failback.commit(replica)
                step(replica)


def test_the_command_line_leads_through_a_failback(life: Life) -> None:
    life.fail_over()
    targets = [f"--target={name}={place}" for name, place in life.targets.items()]
    assert rollpoint("failback", life.path, *targets)["state"] == "ReadyToSwitch"
    found = rollpoint("failback", "status", life.path)
    assert (found["state"], found["failback"]["rest_bytes"]) == ("ReadyToSwitch", 0)
    assert set(found["failback"]["targets"]) == set(SIZES)
    assert rollpoint("failback", "switch", life.path)["state"] == "Failback"
    assert rollpoint("failback", "undo", life.path)["state"] == "Failover"
    rollpoint("failback", life.path, *targets, "--restored", "--new", code=2)
    rollpoint("failback", life.path, *targets, "--restored", "--once")
    rollpoint("failback", "switch", life.path, "--at", "2026-01-01T00:00:00Z", code=2)
    rollpoint("failback", "switch", life.path, "--when-rest", "10s")
    assert rollpoint("failback", "commit", life.path)["state"] == "Ready"
    assert rollpoint("failback", "status", life.path)["failback"] is None
    life.require_targets()


def test_targets_that_hold_a_point_get_what_changed_and_nothing_else(life: Life) -> None:
    life.fail_over()
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets, holds=3)
        assert replica.manifest.failback is not None
        for target in replica.manifest.failback.targets.values():
            assert target.lineage == ""
        failback.switch(replica)
    life.require_targets()


def test_after_a_planned_failover_only_what_changed_goes_back_to_the_sources_own_disks(
    life: Life, tmp_path: Path
) -> None:
    places = "".join(f'{name} = "{place}"\n' for name, place in life.targets.items())
    life.say(f'[source]\nmachine = "original"\n[source.disks]\n{places}')
    life.there._store("start", "original", [])
    life.models = {name: bytearray(data) for name, data in life.snapshots[-1].items()}
    with Replica.open(life.path) as replica:
        done = operation.failover(
            replica, hypervisor=life.here, source=life.there, planned=True
        )
        assert life.there.on() == []
        written = 0
        for name, overlay in done.interims.items():
            before = bytes(life.models[name])
            scribble(overlay, life.models[name], random.Random(4), 2)
            written += sum(a != b for a, b in zip(before, life.models[name], strict=True))
        done = failback.start(replica, hypervisor=life.here, source=life.there)
        assert done.steps[0].note == "what the targets hold is known"
        assert replica.manifest.failback is not None
        for target in replica.manifest.failback.targets.values():
            assert (target.kind, target.lineage) == ("original", "")
        sent = sum(each.sent_bytes for each in replica.manifest.failback.targets.values())
        assert sent <= 4 * (written + 65536), "whole grains of 64 KiB, of four writes at most"
        failback.switch(replica, hypervisor=life.here, source=life.there)
        assert life.there.on() == ["original"]
        failback.commit(replica, hypervisor=life.here)
    life.require_targets()
    life.require_ready(tmp_path, life.models)


def test_what_breaks_lineage_is_said_and_both_sides_are_compared(life: Life) -> None:
    life.fail_over()
    with Replica.open(life.path) as replica:
        done = failback.start(replica, life.targets)
        assert "compared: it was restored elsewhere" in done.steps[0].note
        assert replica.manifest.failback is not None
        for target in replica.manifest.failback.targets.values():
            assert "restored elsewhere" in target.lineage
        failback.switch(replica)
    life.require_targets()


def test_new_places_are_made_as_raw_files_or_vmdks(life: Life, tmp_path: Path) -> None:
    life.targets = {"a": str(tmp_path / "new.vmdk"), "b": str(tmp_path / "new.img")}
    life.fail_over()
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets, "new")
        failback.switch(replica)
        assert replica.manifest.failback is not None
        assert replica.manifest.failback.verified
        failback.commit(replica)
        assert all(gap.end is not None or not gap.resync for gap in replica.manifest.gaps)
    assert seen_by_qemu(life.targets["a"], tmp_path) == life.models["a"]
    assert Path(life.targets["b"]).read_bytes() == life.models["b"]


def test_a_target_is_an_nbd_export(life: Life, tmp_path: Path) -> None:
    place = life.targets["b"]
    socket = tmp_path / "nbd"
    server = subprocess.Popen(
        [require_tool("qemu-nbd"), "-t", "-f", "raw", "-k", str(socket), "-x", "b", place]
    )
    try:
        wait_until(socket.exists, "the export is there")
        uri = f"nbd+unix:///b?socket={socket}"
        life.fail_over()
        with Replica.open(life.path) as replica:
            failback.start(replica, {**life.targets, "b": uri}, holds=3)
            failback.switch(replica)
            failback.commit(replica)
            gap = replica.manifest.gaps[-1]
            assert (gap.end, gap.resync) == (None, True), "nothing tells whether it was written"
    finally:
        server.terminate()
        server.wait(30)
    life.require_targets()


def test_a_target_that_is_written_after_the_switch_has_to_be_resynchronised(life: Life) -> None:
    life.fail_over()
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets)
        failback.switch(replica)
        with open(life.targets["a"], "r+b") as file:
            file.write(b"new")
        life.models["a"][:3] = b"new"
        failback.commit(replica)
        gap = replica.manifest.gaps[-1]
        assert (gap.end, gap.resync) == (None, True)
        assert "was written since" in gap.cause
        done = resync(replica, life.targets)
        assert [each.written_bytes for each in done.disks] == [4096, 0]
        assert replica.manifest.gaps[-1].end is not None
        operation.failover(replica, done.point, power_on=False)
    life.require_targets()


def test_an_ingest_on_hold_goes_on_with_the_gap_that_the_commit_found(
    life: Life, tmp_path: Path
) -> None:
    with ingesting(life.path, tmp_path / "s"):
        life.fail_over()
        with Replica.open(life.path) as replica:
            failback.start(replica, life.targets)
            failback.switch(replica)
            Path(life.targets["a"]).touch()
            failback.commit(replica)
            with pytest.raises(GapError):
                replication.mark(replica)
            done = resync(replica, life.targets)
            assert replication.mark(replica).id > done.point.id
    life.require_ready(tmp_path, life.models)


def test_a_source_that_is_on_gets_nothing_sent_to_its_disks(life: Life) -> None:
    places = "".join(f'{name} = "{place}"\n' for name, place in life.targets.items())
    life.say(f'[source]\nmachine = "original"\n[source.disks]\n{places}')
    life.there._store("start", "original", [])
    life.fail_over()
    with Replica.open(life.path) as replica:
        with pytest.raises(StateError, match="is on"):
            failback.start(replica, source=life.there)
        assert (replica.manifest.state, replica.manifest.failback) == ("Failover", None)
        life.there.power_off("original")
        failback.start(replica, source=life.there)
        life.there.power_on("original")
        with pytest.raises(StateError, match="is on"):
            failback.switch(replica, source=life.there)
        assert replica.manifest.state == "ReadyToSwitch"
        life.there.power_off("original")
        failback.switch(replica, source=life.there)
    life.require_targets()


def test_the_status_tells_how_far_a_copy_is(life: Life) -> None:
    life.fail_over()
    seen = []

    def look(disk: str, done: int, total: int) -> bool:
        if not seen:
            seen.append((total, rollpoint("failback", "status", life.path)))
        return True

    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets, progress=look)
    total, found = seen[0]
    assert (found["operation"], found["step"]) == ("failback", "copy")
    assert 0 < found["failback"]["done_bytes"] <= found["failback"]["total_bytes"] == total
    assert found["failback"]["pass_seconds_left"] >= 0
    assert found["failback"]["rest_seconds"] is None, "nothing was sent yet: it does not guess"


def test_a_copy_that_is_told_to_stop_leaves_the_failover(life: Life, tmp_path: Path) -> None:
    life.fail_over()
    with Replica.open(life.path) as replica:
        with pytest.raises(CancelledError):
            failback.start(replica, life.targets, progress=lambda *told: False)
        assert (replica.manifest.state, replica.manifest.failback) == ("Failover", None)
    assert life.seen(tmp_path) == life.models


def test_a_directory_with_the_name_of_a_command_is_named_with_its_place(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.fail_over()
    life.path.rename(life.path.parent / "switch")
    monkeypatch.chdir(life.path.parent)
    targets = [f"--target={name}={place}" for name, place in life.targets.items()]
    assert rollpoint("failback", *targets, "./switch")["state"] == "ReadyToSwitch"
    assert rollpoint("failback", "switch", "switch")["state"] == "Failback"


# ---- the machine runs meanwhile ----


def test_a_machine_that_runs_is_copied_in_rounds_and_switched_over(
    life: Life, tmp_path: Path
) -> None:
    life.say('[source]\nmachine = "original"\n[failback]\nrounds = 3\nrest = "0s"\n')
    life.fail_over(running=True)
    seeds = iter(range(100, 200))

    def writes_on(name: str) -> None:
        if name == "freeze":
            life.here.write(life.machine, life.models, next(seeds))

    life.here.on_call = writes_on
    with Replica.open(life.path) as replica:
        done = failback.start(replica, life.targets, hypervisor=life.here)
        assert done.state == "ReadyToSwitch"
        assert replica.manifest.failback is not None
        assert replica.manifest.failback.rounds == 3
        assert replica.manifest.failback.rest_bytes > 0
        life.here.write(life.machine, life.models, 2)
        done = failback.switch(replica, hypervisor=life.here, source=life.there)
        assert (life.here.on(), life.there.on()) == ([], ["original"])
        life.require_targets()
        assert life.there._load()["original"] == list(life.targets.values())
        failback.commit(replica, hypervisor=life.here)
        assert not life.here.is_known(life.machine)
        gap = replica.manifest.gaps[-1]
        assert (gap.end, gap.resync) == (None, True)
    life.require_ready(tmp_path, life.models)


def test_where_disks_cannot_be_frozen_all_is_sent_at_the_switch(
    life: Life, tmp_path: Path
) -> None:
    life.here.can_freeze = False
    life.fail_over(running=True)
    with Replica.open(life.path) as replica:
        done = failback.start(replica, life.targets, hypervisor=life.here)
        assert "at the switch" in done.steps[1].note
        assert replica.manifest.recovered is not None
        assert replica.manifest.recovered.frozen == []
        assert life.here._load()[life.machine] == list(done.interims.values())
        life.here.write(life.machine, life.models, 2)
        failback.switch(replica, hypervisor=life.here)
    life.require_targets()


def test_undoing_a_failback_starts_the_machine_again_and_stops_the_other(
    life: Life, tmp_path: Path
) -> None:
    life.say('[source]\nmachine = "original"\n')
    life.fail_over(running=True)
    with Replica.open(life.path) as replica:
        for switched in (False, True):
            failback.start(replica, life.targets, hypervisor=life.here, once=True)
            life.here.write(life.machine, life.models, 2)
            if switched:
                failback.switch(replica, hypervisor=life.here, source=life.there)
                assert (life.here.on(), life.there.on()) == ([], ["original"])
            failback.undo(replica, hypervisor=life.here, source=life.there)
            assert (life.here.on(), life.there.on()) == ([life.machine], [])
            life.here.write(life.machine, life.models, 3)
            assert life.seen(tmp_path) == life.models
        operation.undo(replica, hypervisor=life.here)
    life.require_ready(tmp_path, life.snapshots[-1])


def test_permanent_merges_what_an_undone_failback_froze(life: Life, tmp_path: Path) -> None:
    life.fail_over(running=True)
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets, hypervisor=life.here, once=True)
        life.here.write(life.machine, life.models, 2)
        failback.undo(replica, hypervisor=life.here)
        life.here.write(life.machine, life.models, 3)
        done = operation.permanent(replica, hypervisor=life.here)
        assert done.state == "Permanent"
    for name in SIZES:
        assert seen_by_qemu(life.path / f"{name}.vmdk", tmp_path) == life.models[name]
    assert [each.name for each in life.path.iterdir() if "interim" in each.name] == []


def test_without_evidence_that_the_target_is_off_the_replica_is_not_started_again(
    life: Life,
) -> None:
    life.fail_over(running=True)
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets, hypervisor=life.here)
        failback.switch(replica, hypervisor=life.here)
        with pytest.raises(StateError, match="is not known"):
            failback.undo(replica, hypervisor=life.here)
        assert (replica.manifest.state, life.here.on()) == ("Failback", [])
        skip = {"source-fenced": "its host burned down"}
        failback.undo(replica, hypervisor=life.here, skip=skip)
        assert (replica.manifest.state, life.here.on()) == ("Failover", [life.machine])
        said = replica.manifest.history[-1].evidence
        assert [(each.kind, each.says) for each in said] == [
            ("overridden", "its host burned down")
        ]


def test_a_switch_that_fails_leaves_the_machine_running(life: Life) -> None:
    life.fail_over(running=True)
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets, hypervisor=life.here)
        place = Path(life.targets["b"])
        place.rename(place.with_suffix(".away"))
        with pytest.raises(Error):
            failback.switch(replica, hypervisor=life.here)
        assert (replica.manifest.state, replica.manifest.operation) == ("ReadyToSwitch", None)
        assert life.here.on() == [life.machine]
        life.here.write(life.machine, life.models, 9)
        place.with_suffix(".away").rename(place)
        failback.switch(replica, hypervisor=life.here)
    life.require_targets()


@pytest.mark.parametrize("dies", [False, True])
def test_a_freeze_without_an_answer_is_found_out_later(
    life: Life, tmp_path: Path, dies: bool
) -> None:
    """The machine writes its former top on, for the first time since it was started."""
    life.fail_over(running=True)
    with Replica.open(life.path) as replica:
        life.here.deaf = True
        with pytest.raises(HypervisorError):
            failback.start(replica, life.targets, hypervisor=life.here)
        assert replica.manifest.state == "Failed"
        with pytest.raises(StateError):
            operation.undo(replica, hypervisor=life.here)
        rng = random.Random(77)
        for path, name in zip(life.here._load()[life.machine], sorted(life.models), strict=True):
            scribble(path, life.models[name], rng, first=True)
        life.here.deaf = False
        if dies:
            life.here.power_off(life.machine)
        else:  # as QEMU does it: the overlay takes up the content id before it is used
            layering.settle(replica)
        operation.resume(replica, hypervisor=life.here)
        assert replica.manifest.state == "ReadyToSwitch"
        failback.switch(replica, hypervisor=life.here)
        life.require_targets()
        skip = {"source-fenced": "a test"}
        failback.undo(replica, hypervisor=life.here, skip=skip)
        life.here.write(life.machine, life.models, 3)
        assert life.seen(tmp_path) == life.models


def test_a_machine_at_the_target_with_the_same_identity_is_in_the_way(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.say('[source]\nmachine = "original"\n')
    life.fail_over(running=True)
    taken = [Conflict("mac", "52:54:00:00:00:01", "the machine other")]
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets, hypervisor=life.here)
        with monkeypatch.context() as busy:
            busy.setattr(life.there, "conflicts", lambda machine: taken)
            with pytest.raises(StateError, match="machine other"):
                failback.switch(replica, hypervisor=life.here, source=life.there)
        assert (replica.manifest.state, life.here.on()) == ("ReadyToSwitch", [life.machine])
        life.there._store("start", "original", [])
        with pytest.raises(StateError, match="is on"):
            failback.switch(replica, hypervisor=life.here, source=life.there)
        assert (replica.manifest.state, life.here.on()) == ("ReadyToSwitch", [life.machine])
        life.there.power_off("original")
        failback.switch(replica, hypervisor=life.here, source=life.there)
    life.require_targets()


def test_nothing_is_shut_down_for_a_machine_that_cannot_be_started_at_the_target(
    life: Life,
) -> None:
    life.say('[source]\nmachine = "original"\n')
    life.fail_over(running=True)
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets, hypervisor=life.here)
        life.there.needs_files = True
        life.here.on_call = lambda name: pytest.fail(f"{name} was called")
        with pytest.raises(UsageError, match="VMDK"):
            failback.switch(replica, hypervisor=life.here, source=life.there)
        assert life.here.on() == [life.machine]
        assert replica.manifest.state == "ReadyToSwitch"


@pytest.mark.parametrize("how", ["written", "replaced", "gone"])
def test_a_target_that_changes_between_rounds_is_compared_again(life: Life, how: str) -> None:
    """As when a file system is not mounted any more, and another file is found in its place."""
    life.fail_over(running=True)
    kind = "new" if how == "gone" else "restored"
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets, kind, hypervisor=life.here)
        place = Path(life.targets["a"])
        size = place.stat().st_size
        if how == "gone":
            place.unlink()
            with pytest.raises(NotFoundError):
                failback.switch(replica, hypervisor=life.here)
            assert not place.exists(), "an empty one would miss what was sent before"
        if how == "written":
            with open(place, "r+b") as file:
                file.write(b"not ours")
        else:
            place.unlink(missing_ok=True)
            place.write_bytes(bytes(size))
        life.here.write(life.machine, life.models, 9)
        failback.switch(replica, hypervisor=life.here)
        assert replica.manifest.failback is not None
        assert "not by us" in replica.manifest.failback.targets["a"].lineage
        assert "not by us" not in replica.manifest.failback.targets["b"].lineage
    life.require_targets()


def test_a_machine_that_goes_off_meanwhile_is_copied_as_it_stands(life: Life) -> None:
    life.say('[failback]\nrest = "0s"\n')
    life.fail_over(running=True)

    def dies(name: str) -> None:
        life.here.on_call = lambda name: None
        life.here.write(life.machine, life.models, 7)
        life.here.power_off(life.machine)

    life.here.on_call = dies
    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets, hypervisor=life.here)
        life.require_targets()
        life.here.power_on(life.machine)  # by hand
        life.here.write(life.machine, life.models, 8)
        failback.switch(replica, hypervisor=life.here)
    life.require_targets()


def test_a_switch_waits_for_its_time_while_rounds_go_on(life: Life) -> None:
    life.fail_over(running=True)
    now = [1000.0]
    seeds = iter(range(100, 200))

    def sleep(seconds: float) -> None:
        now[0] += seconds
        life.here.write(life.machine, life.models, next(seeds))

    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets, hypervisor=life.here, once=True)
        failback.wait(
            replica, until=1300.0, hypervisor=life.here, clock=lambda: now[0], sleep=sleep
        )
        assert now[0] == 1300.0
        assert replica.manifest.failback is not None
        assert 3 < replica.manifest.failback.rounds < 10
        failback.wait(replica, rest_seconds=3600.0, hypervisor=life.here, sleep=sleep)
        failback.wait(replica, rest_seconds=0.0, hypervisor=life.here, sleep=sleep)
        assert replica.manifest.recovered is not None
        layers = len(replica.manifest.recovered.frozen)
        failback.wait(
            replica,
            until=now[0] + 3600.0,
            hypervisor=life.here,
            clock=lambda: now[0],
            sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
        )
        assert len(replica.manifest.recovered.frozen) == layers, "nothing was written: no rounds"
        life.here.write(life.machine, life.models, 6)
        failback.switch(replica, hypervisor=life.here)
    life.require_targets()


# ---- kill -9 at every step ----

KILLED = 9
ACTIONS: dict[str, Callable[..., object]] = {
    "start": lambda life, **more: failback.start(
        targets=life.targets,
        hypervisor=life.here,
        source=life.there,
        operation_id="start",
        **more,
    ),
    "switch": lambda life, **more: failback.switch(
        hypervisor=life.here, source=life.there, operation_id="switch", **more
    ),
    "commit": lambda life, **more: failback.commit(
        hypervisor=life.here, operation_id="commit", **more
    ),
    "undo": lambda life, **more: failback.undo(
        hypervisor=life.here, source=life.there, operation_id="undo", **more
    ),
}
STEPS = {
    "start": failing_back.STEPS,
    "switch": switching_over.STEPS,
    "commit": ending_failback.COMMIT_STEPS,
    "undo": ending_failback.UNDO_STEPS,
}
BEFORE = {"start": (), "switch": ("start",), "commit": ("start", "switch"),
          "undo": ("start", "switch")}  # fmt: skip
AFTER = {"start": "ReadyToSwitch", "switch": "Failback", "commit": "Ready", "undo": "Failover"}


def killed(life: Life, action: str, on_step: Callable[[Step], None]) -> None:
    """Do it in a child that dies."""
    child = os.fork()
    if child == 0:
        try:
            with Replica.open(life.path) as replica:
                ACTIONS[action](life, replica=replica, on_step=on_step)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == KILLED, f"{action} did not die"


def require_resumed(life: Life, action: str, tmp_path: Path) -> None:
    """Once more the same request, or resume: it has happened, once; and the rest works."""
    with Replica.open(life.path) as replica:
        if replica.manifest.operation is not None:
            operation.resume(replica, hypervisor=life.here, source=life.there)
        ACTIONS[action](life, replica=replica)
        assert replica.manifest.state == AFTER[action]
        assert replica.manifest.operation is None
        here, there = life.here.on(), life.there.on()
        if action in ("start", "undo"):
            assert (here, there) == ([life.machine], [])
        else:
            assert (here, there) == ([], ["original"])
        if action == "start":
            life.here.write(life.machine, life.models, 5)
            ACTIONS["switch"](life, replica=replica)
        if action == "undo":
            life.here.write(life.machine, life.models, 6)
            assert life.seen(tmp_path) == life.models
            operation.undo(replica, hypervisor=life.here)
            life.require_ready(tmp_path, life.snapshots[-1])
            return
        life.require_targets()
        if action != "commit":
            ACTIONS["commit"](life, replica=replica)
        assert [point.id for point in replica.points] == [1, 2, 3, 4]
    life.require_ready(tmp_path, life.models)


@pytest.mark.parametrize("moment", [pytest.param("running", marks=pytest.mark.long), "done"])
@pytest.mark.parametrize(
    ("action", "step"), [(action, step) for action, steps in STEPS.items() for step in steps]
)
def test_killed_at_any_step_it_is_finished_and_has_happened_once(
    life: Life, tmp_path: Path, action: str, step: str, moment: str
) -> None:
    """running: the step is recorded, not begun; done: it has been done, and is not recorded."""
    life.say('[source]\nmachine = "original"\n[failback]\nrounds = 2\n')
    life.fail_over(running=True)
    with Replica.open(life.path) as replica:
        for before in BEFORE[action]:
            ACTIONS[before](life, replica=replica)
            if before == "start":
                life.here.write(life.machine, life.models, 4)

    def die(each: Step) -> None:
        if (each.name, each.state) == (step, moment):
            os._exit(KILLED)

    killed(life, action, die)
    require_resumed(life, action, tmp_path)


def pairs_of_kills() -> list[tuple[str, str, str]]:
    return [
        (action, first, second)
        for action, steps in STEPS.items()
        for index, first in enumerate(steps)
        for second in steps[index:]
    ]


def test_killed_again_while_it_is_resumed(life: Life, tmp_path: Path) -> None:
    """One pair; all of them with -m long."""
    killed_twice(life, tmp_path, *random.Random(5).choice(pairs_of_kills()))


@pytest.mark.long
@pytest.mark.parametrize(("action", "first", "second"), pairs_of_kills())
def test_killed_at_every_pair_of_steps(
    life: Life, tmp_path: Path, action: str, first: str, second: str
) -> None:
    killed_twice(life, tmp_path, action, first, second)


def killed_twice(life: Life, tmp_path: Path, action: str, first: str, second: str) -> None:
    life.say('[source]\nmachine = "original"\n[failback]\nrounds = 2\n')
    life.fail_over(running=True)
    with Replica.open(life.path) as replica:
        for before in BEFORE[action]:
            ACTIONS[before](life, replica=replica)

    def die_in(name: str, moment: str) -> Callable[[Step], None]:
        def die(each: Step) -> None:
            if (each.name, each.state) == (name, moment):
                os._exit(KILLED)

        return die

    killed(life, action, die_in(first, "running" if first == second else "done"))
    killed(life, action, die_in(second, "done"))
    require_resumed(life, action, tmp_path)


def test_two_orchestrators_do_not_work_at_once(life: Life) -> None:
    life.fail_over()
    refused = []

    def another(step: Step) -> None:
        if step.name == "copy" and step.state == "running":
            for act in (failback.undo, failback.switch, operation.undo, operation.resume):
                with Replica.open(life.path) as other, pytest.raises(LockedError):
                    act(other)
                refused.append(act)

    with Replica.open(life.path) as replica:
        failback.start(replica, life.targets, on_step=another)
    assert len(refused) == 4


@pytest.mark.parametrize(("action", "step"), [("start", "copy"), ("switch", "verify")])
def test_what_was_cut_short_can_be_given_up(
    life: Life, tmp_path: Path, action: str, step: str
) -> None:
    life.fail_over(running=True)
    with Replica.open(life.path) as replica:
        for before in BEFORE[action]:
            ACTIONS[before](life, replica=replica)
    killed(life, action, lambda each: os._exit(KILLED) if each.name == step else None)
    with Replica.open(life.path) as replica:
        ACTIONS["undo"](life, replica=replica)
        assert (replica.manifest.state, replica.manifest.failback) == ("Failover", None)
        assert (life.here.on(), life.there.on()) == ([life.machine], [])
        assert [each.kind for each in replica.manifest.history[-2:]] == [
            {"start": "failback"}.get(action, action), "undo failback",
        ]  # fmt: skip
    assert life.seen(tmp_path) == life.models


@pytest.mark.parametrize(
    ("action", "call"),
    [("start", "freeze"), ("switch", "power off"), ("switch", "start"), ("undo", "power off"),
     ("undo", "start")],
)  # fmt: skip
def test_killed_when_a_call_had_its_effect_it_is_finished(
    life: Life, tmp_path: Path, action: str, call: str
) -> None:
    life.say('[source]\nmachine = "original"\n[failback]\nrounds = 2\n')
    life.fail_over(running=True)
    with Replica.open(life.path) as replica:
        for before in BEFORE[action]:
            ACTIONS[before](life, replica=replica)
    present = os.getpid()

    def die(name: str) -> None:
        if name == call and os.getpid() != present:
            os._exit(KILLED)

    life.here.on_call = life.there.on_call = die
    killed(life, action, lambda step: None)
    if action == "start":
        life.here.write(life.machine, life.models, 8)
    require_resumed(life, action, tmp_path)


# ---- planted mistakes: what kills find ----


def drop_what_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that drops the overlays before their content is marked in the journals."""
    real = ending_failback._Commit._import

    def dropping(self: ending_failback._Commit) -> str:
        real(self)
        undoing.drop_interims(self._replica)
        os._exit(KILLED)

    monkeypatch.setattr(ending_failback._Commit, "_import", dropping)


def tell_before_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A freeze that the manifest does not know of when it has its effect."""
    monkeypatch.setattr(Replica, "save", lambda self: None)
    real = World.freeze

    def freezing(self: World, machine_id: str, overlays: Mapping[str, str]) -> None:
        real(self, machine_id, overlays)
        os._exit(KILLED)

    monkeypatch.setattr(World, "freeze", freezing)


def count_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that is noted as sent when it begins."""

    def early(self: carrying.Carrier, stop: int) -> int:
        self.settle(stop)
        self._replica.save()
        os._exit(KILLED)

    monkeypatch.setattr(carrying.Carrier, "send", early)


@pytest.mark.parametrize(
    ("plant", "action"),
    [(drop_what_is_imported, "commit"), (tell_before_it_is_known, "start"),
     (count_before_it_is_sent, "start")],
)  # fmt: skip
def test_a_planted_mistake_is_found_by_a_kill(
    life: Life,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    action: str,
) -> None:
    life.say('[source]\nmachine = "original"\n[failback]\nrounds = 2\n')
    life.fail_over(running=True)
    with Replica.open(life.path) as replica:
        for before in BEFORE[action]:
            ACTIONS[before](life, replica=replica)
    with monkeypatch.context() as planted:
        plant(planted)
        killed(life, action, lambda step: None)
    if action == "start":
        life.here.write(life.machine, life.models, 8)
    with pytest.raises((AssertionError, Error)):
        require_resumed(life, action, tmp_path)
