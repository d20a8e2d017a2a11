"""Failing over to another point without undo: all of the new one, or all of the former one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fakes import UNFENCED
from killing import (
    MOMENTS,
    FileHypervisor,
    Snapshot,
    feed,
    killed_at,
    overlay_writes,
)
from replicas import checked_by_qemu, seen_by_qemu
from rollpoint import operation, replication, repointing, undoing
from rollpoint.disk import open_disk
from rollpoint.errors import HypervisorError, NotFoundError, StateError
from rollpoint.hypervisor.base import Conflict, Handle, Machine
from rollpoint.replica import Replica
from rollpoint.steps import Outcome, interim_paths


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Snapshot]]:
    return feed(tmp_path_factory.mktemp("fed"))


def failed_over(path: Path, snapshots: list[Snapshot], hypervisor: FileHypervisor) -> Snapshot:
    """To point 2, with writes since; returns what its disks have."""
    models = {name: bytearray(data) for name, data in snapshots[1].items()}
    with Replica.open(path) as replica:
        done = operation.failover(replica, 2, skip=UNFENCED, hypervisor=hypervisor)
        overlay_writes(dict(done.interims), models)
    return {name: bytes(model) for name, model in models.items()}


def shows(path: Path, wanted: Snapshot, tmp_path: Path) -> None:
    with Replica.open(path) as replica:
        assert replica.manifest.state == "Failover"
        for name, interim in interim_paths(replica).items():
            checked_by_qemu(interim)
            assert seen_by_qemu(interim, tmp_path) == wanted[name]


def to_point(number: int, hypervisor: FileHypervisor, replica: Replica) -> Outcome:
    return operation.failover(
        replica, number, skip=UNFENCED, hypervisor=hypervisor, operation_id="again"
    )


def test_from_point_to_point_and_back_each_time_with_fresh_overlays(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path
) -> None:
    origin, snapshots = fed
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    hypervisor = FileHypervisor(tmp_path / "machines")
    failed_over(path, snapshots, hypervisor)
    for number in (3, 1, 2, 2):
        with Replica.open(path) as replica:
            done = operation.failover(replica, number, skip=UNFENCED, hypervisor=hypervisor)
            assert (done.kind, done.state, done.point) == ("repoint", "Failover", number)
        shows(path, snapshots[number - 1], tmp_path)
        assert hypervisor.starts() == ["started\n"]
        assert len(list(path.glob("*-interim*"))) == 4, "two disks, one overlay each"
        with Replica.open(path) as replica:
            for interim in done.interims.values():
                with open_disk(interim, writable=True) as disk:
                    disk.pwrite(b"written since", 700)
    with Replica.open(path) as replica:
        assert operation.undo(replica, hypervisor=hypervisor).state == "Ready"
        assert not list(path.glob("*-interim*"))
        assert replication.mark(replica).id == 4


def test_it_is_asked_for_by_naming_a_point(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path
) -> None:
    origin, snapshots = fed
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    hypervisor = FileHypervisor(tmp_path / "machines")
    wanted = failed_over(path, snapshots, hypervisor)
    with Replica.open(path) as replica:
        with pytest.raises(StateError, match="its state is Failover") as caught:
            operation.failover(replica, skip=UNFENCED, hypervisor=hypervisor)
        assert "--to" in caught.value.hint
        with pytest.raises(NotFoundError):
            operation.failover(replica, 77, skip=UNFENCED, hypervisor=hypervisor)
    shows(path, wanted, tmp_path)
    with Replica.open(path) as replica:
        first = to_point(3, hypervisor, replica)
        assert to_point(3, hypervisor, replica).interims == first.interims
        assert len(replica.manifest.history) == 3


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", repointing.STEPS)
def test_killed_it_comes_to_the_new_point(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path, step: str, moment: str
) -> None:
    origin, snapshots = fed
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    hypervisor = FileHypervisor(tmp_path / "machines")
    former = failed_over(path, snapshots, hypervisor)
    killed_at(
        path,
        lambda replica, die: operation.failover(
            replica, 3, skip=UNFENCED, hypervisor=hypervisor, operation_id="again", on_step=die
        ),
        step,
        moment,
    )
    with Replica.open(path) as replica:
        done = operation.resume(replica, hypervisor=hypervisor)
        if step == "check":  # before anything is done or recorded
            assert done is None
            shows(path, former, tmp_path)
            return
        assert done is not None
        assert (done.operation, done.point, done.state) == ("again", 3, "Failover")
        assert replica.manifest.former is None
    shows(path, snapshots[2], tmp_path)
    assert hypervisor.starts() == ["started\n"]
    assert len(list(path.glob("*-interim*"))) == 4


class Refusing(FileHypervisor):
    """Starts no machine of one point."""

    point: int | None = 3

    def start(self, machine: Machine) -> Handle:
        if machine.point == self.point:
            raise HypervisorError("no memory for it")
        return super().start(machine)


def test_where_the_new_point_does_not_come_up_the_former_one_is_back(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path
) -> None:
    origin, snapshots = fed
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    hypervisor = Refusing(tmp_path / "machines")
    wanted = failed_over(path, snapshots, hypervisor)
    with Replica.open(path) as replica:
        with pytest.raises(HypervisorError, match="no memory"):
            to_point(3, hypervisor, replica)
        manifest = replica.manifest
        assert (manifest.operation, manifest.former) == (None, None)
        assert (manifest.history[-1].kind, manifest.history[-1].outcome) == (
            "repoint",
            "rolled back",
        )
        with pytest.raises(StateError, match="no memory"):
            to_point(3, hypervisor, replica)
    shows(path, wanted, tmp_path)
    assert hypervisor.starts() == ["started\n"], "the former machine runs again"
    assert len(list(path.glob("*-interim*"))) == 4


def test_where_nothing_can_be_started_resume_tries_again(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path
) -> None:
    origin, snapshots = fed
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    hypervisor = Refusing(tmp_path / "machines")
    hypervisor.point = None
    wanted = failed_over(path, snapshots, hypervisor)

    class Down(FileHypervisor):
        def start(self, machine: Machine) -> Handle:
            raise HypervisorError("the host is down")

    with Replica.open(path) as replica:
        with pytest.raises(HypervisorError, match="the host is down"):
            to_point(3, Down(tmp_path / "machines"), replica)
        assert replica.manifest.state == "Failed"
        with pytest.raises(StateError, match="between two restore points"):
            operation.undo(replica, hypervisor=hypervisor)
        done = operation.resume(replica, hypervisor=hypervisor)
        assert done is not None
        assert (done.state, replica.manifest.recovered.point) == ("Failover", 2)  # type: ignore[union-attr]
    shows(path, wanted, tmp_path)
    assert hypervisor.starts() == ["started\n"]


class Unreachable(FileHypervisor):
    """Cannot say what is on."""

    def conflicts(self, machine: Machine) -> list[Conflict]:
        raise HypervisorError("the connection broke")


def test_once_the_new_machine_is_on_nothing_is_checked_again(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path
) -> None:
    """Found by random lives: the check failed, and the replica stayed Failed for good."""
    origin, snapshots = fed
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    hypervisor = FileHypervisor(tmp_path / "machines")
    failed_over(path, snapshots, hypervisor)
    killed_at(
        path,
        lambda replica, die: operation.failover(
            replica, 3, skip=UNFENCED, hypervisor=hypervisor, on_step=die
        ),
        "drop former",
        "running",
    )
    with Replica.open(path) as replica:
        done = operation.resume(replica, hypervisor=Unreachable(tmp_path / "machines"))
        assert done is not None
        assert (done.state, done.point) == ("Failover", 3)
    shows(path, snapshots[2], tmp_path)


def test_what_failed_after_the_new_machine_was_on_is_finished(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, snapshots = fed
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    hypervisor = FileHypervisor(tmp_path / "machines")
    failed_over(path, snapshots, hypervisor)

    def fail(*_: object) -> str:
        raise StateError("the storage is away")

    with Replica.open(path) as replica:
        with monkeypatch.context() as away:
            away.setattr(undoing, "drop_overlays", fail)
            with pytest.raises(StateError, match="is away"):
                to_point(3, hypervisor, replica)
        assert replica.manifest.state == "Failed"
        done = operation.resume(replica, hypervisor=hypervisor)
        assert done is not None
        assert (done.state, done.point) == ("Failover", 3)
    shows(path, snapshots[2], tmp_path)
    assert len(list(path.glob("*-interim*"))) == 4
