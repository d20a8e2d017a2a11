"""One replica's operation for a plan: done once, whatever ends the process that does it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from rollpoint import operation
from rollpoint.errors import StateError
from rollpoint.plans.doing import Deed, Done, act
from rollpoint.plans.tables import RunKind
from stage import SOURCE, Stage, read


def staged(folder: Path, points: int = 2) -> Stage:
    """A replica with restore points, and a source that is on."""
    folder.mkdir(parents=True, exist_ok=True)
    stage, rng = Stage(folder), random.Random(7)
    for _ in range(points):
        stage.write(rng)
        stage.mark()
    return stage


def deed(stage: Stage, kind: RunKind, operation: str, **said: object) -> Deed:
    return Deed(kind=kind, directory=str(stage.path), operation=operation, **said)  # type: ignore[arg-type]


def do(stage: Stage, kind: RunKind, id: str, **said: object) -> Done:
    return act(
        deed(stage, kind, id, **said),
        tell=lambda step, state: None,
        hypervisor=stage.hypervisor,
        source=stage.hypervisor,
    )


def former(id: str, kind: str = "unplanned") -> dict[str, str]:
    return {"run": "run", "kind": kind, "operation": id}


def test_a_site_goes_over_and_back(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    stage.world.cut_power(SOURCE)
    over = do(stage, "unplanned", "run-web-1", point="1")
    assert (over.state, over.kind, over.point) == ("Failover", "failover", 1)
    assert over.machine == {"hypervisor": "qemu", "id": stage.machine, "console": ""}
    assert over.evidence
    assert over.checks
    assert over.point_time
    assert over.report
    assert stage.overlays() == stage.points[1]
    assert over == do(stage, "unplanned", "run-web-1", point="1")
    back = do(stage, "failback", "back-web-1", former=former("run-web-1"))
    assert (back.state, back.kind, stage.world.on()) == ("Failback", "switch", {SOURCE})
    assert {name: Path(place).read_bytes() for name, place in stage.files.items()} == (
        stage.points[1]
    )
    ended = do(stage, "commit", "commit-web-1", former=former("back-web-1", "failback"))
    assert (ended.state, ended.kind, ended.machine) == ("Ready", "commit failback", {})
    assert stage.world.violations == []


def test_an_undo_takes_back_what_is_there(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    stage.world.cut_power(SOURCE)
    do(stage, "unplanned", "run-web-1")
    do(stage, "failback", "back-web-1", former=former("run-web-1"))
    undone = do(stage, "undo", "undo-web-1", former=former("back-web-1", "failback"))
    assert (undone.state, undone.kind) == ("Failover", "undo failback")
    assert undone.machine["id"] == stage.machine
    assert stage.world.on() == {stage.machine}
    undone = do(stage, "undo", "undo2-web-1", former=former("run-web-1"))
    assert (undone.state, undone.kind, stage.world.on()) == ("Ready", "undo", set())
    again = do(stage, "undo", "later-1", former=former("run-web-1"))
    assert (again.operation, again.warnings) == (
        "",
        [f"replica {stage.manifest.name} was not failed over any more"],
    )
    assert stage.world.violations == []


def test_a_failover_becomes_permanent(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    stage.world.cut_power(SOURCE)
    do(stage, "unplanned", "run-web-1", point="1")
    done = do(stage, "permanent", "perm-web-1", former=former("run-web-1"))
    assert (done.state, done.kind) == ("Permanent", "permanent")
    for disk in stage.manifest.disks:
        assert read(stage.path / disk.base) == stage.points[1][disk.name]
    assert done == do(stage, "permanent", "perm-web-1", former=former("run-web-1"))


def test_a_planned_failover_loses_nothing(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    stage.write(random.Random(8))
    done = do(stage, "planned", "run-web-1")
    assert (done.state, done.rpo_seconds) == ("Failover", 0.0)
    assert stage.overlays() == stage.now()
    assert stage.world.on() == {stage.machine}


def test_a_test_begins_and_ends(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    done = do(stage, "test", "run-web-1", point="1")
    assert (done.kind, done.state, done.point) == ("test", "Ready", 1)
    assert done.machine["id"] in stage.world.on()
    assert SOURCE in stage.world.on()
    assert done == do(stage, "test", "run-web-1", point="1")
    ended = do(stage, "undo", "undo-web-1", former=former("run-web-1", "test"))
    assert (ended.kind, stage.world.on()) == ("undo test", {SOURCE})
    assert ended == do(stage, "undo", "undo-web-1", former=former("run-web-1", "test"))


def test_what_another_operation_has_failed_over_is_left_alone(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    stage.world.cut_power(SOURCE)
    with stage.replica() as replica:
        operation.failover(
            replica,
            hypervisor=stage.hypervisor,
            source=stage.hypervisor,
            operation_id="by-hand",
        )
    before = stage.manifest
    with pytest.raises(StateError, match="already, by operation by-hand"):
        do(stage, "unplanned", "run-web-1", point="1")
    for kind in ("undo", "permanent", "failback"):
        with pytest.raises(StateError, match="by operation by-hand, which is none of"):
            do(stage, kind, "end-web-1", former=former("run-web-1"))  # type: ignore[arg-type]
    assert stage.manifest == before
