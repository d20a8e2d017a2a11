"""kill -9 at each step of each operation: resume finishes it, and it has happened once.

A forked child does the operation and dies inside a step: before its effect, or after
its effect and before it is recorded. Nothing native is open when we fork.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import UNFENCED
from killing import (
    KILLED,
    MOMENTS,
    FileHypervisor,
    Snapshot,
    feed,
    killed_at,
    overlay_writes,
)
from replicas import SIZES, checked_by_qemu, seen_by_qemu
from rollpoint import merging, operation, replication, undoing
from rollpoint.errors import Error, StateError
from rollpoint.manifest import Step
from rollpoint.replica import Replica


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Snapshot]]:
    return feed(tmp_path_factory.mktemp("fed"))


# Nothing is recorded before the hold has an effect.
NOT_BEGUN = {("check", "running"), ("check", "done"), ("hold", "running")}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", operation.FAILOVER_STEPS)
def test_a_killed_failover_is_finished_and_the_machine_is_started_once(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path, step: str, moment: str
) -> None:
    origin, snapshots = fed
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    hypervisor = FileHypervisor(tmp_path / "machines")
    killed_at(
        path,
        lambda replica, die: operation.failover(
            replica, 2, skip=UNFENCED, hypervisor=hypervisor, operation_id="one", on_step=die
        ),
        step,
        moment,
    )
    with Replica.open(path) as replica:
        if (step, moment) in NOT_BEGUN:
            assert operation.resume(replica) is None
            assert (replica.manifest.state, replica.manifest.epoch) == ("Ready", 1)
            return
        for refused in (operation.undo, operation.permanent, replication.mark, Replica.remove):
            with pytest.raises(StateError, match="rollpoint resume") as caught:
                refused(replica)  # type: ignore[operator]
            assert "failover one" in caught.value.message
        done = operation.resume(replica, hypervisor=hypervisor)
        assert done is not None
        assert (done.state, done.point, done.operation) == ("Failover", 2, "one")
        assert hypervisor.starts() == ["started\n"]
        for name, interim in done.interims.items():
            checked_by_qemu(interim)
            assert seen_by_qemu(interim, tmp_path) == snapshots[1][name]
        assert operation.resume(replica, hypervisor=hypervisor) is None
        again = operation.failover(
            replica, 2, skip=UNFENCED, hypervisor=hypervisor, operation_id="one"
        )
        assert again.interims == done.interims
        assert hypervisor.starts() == ["started\n"]
        assert operation.undo(replica, hypervisor=hypervisor).state == "Ready"
        assert replication.mark(replica).id == 4


def test_the_same_id_goes_on_after_a_kill_without_resume(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(fed[0], tmp_path / "r"))
    hypervisor = FileHypervisor(tmp_path / "machines")

    def go(replica: Replica, die: Callable[[Step], None] | None) -> operation.Outcome:
        return operation.failover(
            replica, skip=UNFENCED, hypervisor=hypervisor, operation_id="one", on_step=die
        )

    killed_at(path, go, "interim", "done")
    with Replica.open(path) as replica:
        assert go(replica, None).state == "Failover"
        assert len(replica.manifest.history) == 2


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", undoing.STEPS)
def test_a_killed_undo_is_finished(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path, step: str, moment: str
) -> None:
    origin, snapshots = fed
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    hypervisor = FileHypervisor(tmp_path / "machines")
    with Replica.open(path) as replica:
        done = operation.failover(replica, 2, skip=UNFENCED, hypervisor=hypervisor)
        overlay_writes(dict(done.interims), {n: bytearray(d) for n, d in snapshots[1].items()})
    killed_at(
        path,
        lambda replica, die: operation.undo(replica, hypervisor=hypervisor, on_step=die),
        step,
        moment,
    )
    with Replica.open(path) as replica:
        done = operation.resume(replica, hypervisor=hypervisor)
        assert done is not None
        assert done.state == "Ready"
        assert (replica.manifest.held, replica.manifest.recovered) == (False, None)
        assert hypervisor.starts() == []
        assert not list(path.glob("*-interim*"))
        for name in SIZES:
            assert seen_by_qemu(path / f"{name}-journal.vmdk", tmp_path) == snapshots[2][name]
        again = operation.failover(replica, 1, power_on=False)
        for name, interim in again.interims.items():
            assert seen_by_qemu(interim, tmp_path) == snapshots[0][name]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", merging.STEPS)
def test_a_killed_permanent_is_finished(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path, step: str, moment: str
) -> None:
    origin, snapshots = fed
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    hypervisor = FileHypervisor(tmp_path / "machines")
    models = {name: bytearray(data) for name, data in snapshots[1].items()}
    with Replica.open(path) as replica:
        done = operation.failover(replica, 2, skip=UNFENCED, hypervisor=hypervisor)
        overlay_writes(dict(done.interims), models)
    killed_at(
        path,
        lambda replica, die: operation.permanent(replica, hypervisor=hypervisor, on_step=die),
        step,
        moment,
    )
    finish_permanent(path, hypervisor, models, tmp_path)


def finish_permanent(
    path: Path, hypervisor: FileHypervisor, models: dict[str, bytearray], tmp_path: Path
) -> None:
    with Replica.open(path) as replica:
        done = operation.resume(replica, hypervisor=hypervisor)
        assert done is not None
        assert done.state == "Permanent"
        for name, base in done.bases.items():
            assert seen_by_qemu(base, tmp_path) == models[name]
        assert not [file for file in path.iterdir() if "-interim" in file.name]
        assert not [file for file in path.iterdir() if "-journal" in file.name]
        assert hypervisor.starts() == []


@pytest.mark.parametrize("disk", sorted(SIZES))
def test_a_merge_that_was_killed_in_the_middle_is_done_again(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path, disk: str
) -> None:
    """The base is half old, half new: overlay and journal still hold all that it gets."""
    origin, snapshots = fed
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    hypervisor = FileHypervisor(tmp_path / "machines")
    models = {name: bytearray(data) for name, data in snapshots[1].items()}
    with Replica.open(path) as replica:
        done = operation.failover(replica, 2, skip=UNFENCED, hypervisor=hypervisor)
        overlay_writes(dict(done.interims), models)

    def merge(replica: Replica, die: Callable[[Step], None]) -> object:
        def stop(name: str, done_bytes: int, total_bytes: int) -> bool:
            if name == disk and done_bytes:
                os._exit(KILLED)
            return True

        return operation.permanent(replica, hypervisor=hypervisor, progress=stop)

    killed_at(path, merge, "merge", "in the middle")
    with Replica.open(path) as replica, pytest.raises(StateError):
        operation.undo(replica, hypervisor=hypervisor)
    finish_permanent(path, hypervisor, models, tmp_path)


@pytest.mark.parametrize("seed", range(6))
def test_killed_again_and_again_it_comes_to_the_same(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path, seed: int
) -> None:
    """Pairs and triples of kills: in the operation, then in its resume."""
    origin, snapshots = fed
    rng = random.Random(seed)
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    hypervisor = FileHypervisor(tmp_path / "machines")
    steps = list(operation.FAILOVER_STEPS)
    first = rng.randrange(1, len(steps))
    killed_at(
        path,
        lambda replica, die: operation.failover(
            replica, 2, skip=UNFENCED, hypervisor=hypervisor, on_step=die
        ),
        steps[first],
        rng.choice(MOMENTS) if first > 1 else "done",
    )
    for _ in range(2):
        first = rng.randrange(first, len(steps))
        killed_at(
            path,
            lambda replica, die: operation.resume(replica, hypervisor=hypervisor, on_step=die),
            steps[first],
            rng.choice(MOMENTS),
        )
    with Replica.open(path) as replica:
        done = operation.resume(replica, hypervisor=hypervisor)
        assert done is not None
        assert hypervisor.starts() == ["started\n"]
        for name, interim in done.interims.items():
            assert seen_by_qemu(interim, tmp_path) == snapshots[1][name]


def test_two_at_once_one_is_told_to_wait(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path
) -> None:
    """While an operation goes on, everybody else is refused: also resume."""
    path = Path(shutil.copytree(fed[0], tmp_path / "r"))
    refused: list[str] = []

    def meanwhile(step: Step) -> None:
        with Replica.open(path) as other:
            for attempt in (operation.resume, operation.undo, operation.failover):
                try:
                    attempt(other)  # type: ignore[operator]
                except Error as error:
                    refused.append(type(error).__name__)

    with Replica.open(path) as replica:
        operation.failover(replica, power_on=False, on_step=meanwhile)
    assert set(refused) == {"LockedError"}
    assert len(refused) == 3 * 2 * 8
