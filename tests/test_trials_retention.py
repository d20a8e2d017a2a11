"""What a test failover reads stays the same while an ingest runs out of room, and refuses."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from replicas import Source, ingesting, seen_by_qemu, wait_until
from rollpoint import control, rationing, replication, retaining, retention, trials
from rollpoint.nbd_client import NbdClient, Place
from rollpoint.replica import Replica
from rollpoint.trial_places import load_facts
from tools import libnbd
from trial_crash import World

SIZES = {"a": 256 << 10}
SEGMENT = 65536


class Kept(World):
    """It keeps the machines that it was given."""

    machines: list[Any]

    def start(self, machine: Any) -> Any:
        self.machines = [machine]
        return super().start(machine)


def make(path: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    monkeypatch.setattr(retaining, "ROUND_SECONDS", 0.02)
    monkeypatch.setattr(retaining, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(rationing, "STUCK_LOOKS", 5)
    monkeypatch.setattr(retention, "STEP_SECONDS_MIN", 0.01)
    monkeypatch.setattr(retention, "STRIDES_IN_WINDOW", 1e-6)
    Replica.create(path, list(SIZES.items()), segment_bytes=SEGMENT).close()
    with Replica.open(path) as replica, replica.locked() as manifest:
        for name, value in settings.items():
            setattr(manifest.retention, name, value)
        replica.save()


def feed(path: Path, source: Source, rounds: int) -> None:
    with Replica.open(path) as replica:
        for _ in range(rounds):
            for _ in range(8):
                source.act()
            replication.mark(replica)


def horizon(path: Path) -> int:
    with Replica.open(path) as replica:
        return replica.manifest.horizon


def seen(replica: Replica, world: Kept, tmp_path: Path) -> bytes:
    """What a test's machine reads."""
    if world.needs_files:
        return seen_by_qemu(world.machines[0].drives[0].path, tmp_path)
    facts = load_facts(replica.directory, "t")
    assert facts is not None
    with NbdClient(Place("a", facts.socket), 30.0) as client:
        return client.pread(client.size_bytes, 0)


@pytest.mark.parametrize("kind", ["nbd", "files"])
def test_where_room_runs_out_writes_are_refused_and_a_test_reads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "r"
    make(path, monkeypatch, limit_bytes=32 * SEGMENT)
    world = Kept(tmp_path / "world", kind == "files")
    with (
        ingesting(path, tmp_path / "s"),
        Replica.open(path) as replica,
        contextlib.ExitStack() as at_end,
    ):
        at_end.callback(lambda: trials.undo(replica, hypervisor=world))
        source = Source(tmp_path / "s", {name: bytearray(size) for name, size in SIZES.items()}, 3)
        feed(path, source, 40)  # the horizon has gone on
        held = source.snapshot()["a"]
        done = trials.start(replica, operation_id="t", hypervisor=world)
        base = (path / "a-flat.vmdk").read_bytes()
        stays = horizon(path)
        assert seen(replica, world, tmp_path) == held

        with pytest.raises(libnbd().Error):
            feed(path, source, 400)
        assert done.point is not None
        assert horizon(path) <= done.point
        if kind == "files":
            assert horizon(path) == stays
            assert (path / "a-flat.vmdk").read_bytes() == base
        assert seen(replica, world, tmp_path) == held
        wait_until(
            lambda: "or tested" in str(control.ask(replica.control_path, "status")["retention"]),
            "the warning names what stops the horizon",
        )

        stopped = horizon(path)
        trials.undo(replica, hypervisor=world)
        wait_until(lambda: horizon(path) > stopped, "the horizon goes on")
        source.close()


def test_old_writes_that_go_into_the_base_are_waited_for_and_files_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many tests, one after the other, at points that are about to go."""
    path = tmp_path / "r"
    make(path, monkeypatch, window_seconds=0.05)
    world = Kept(tmp_path / "world", True)
    with (
        ingesting(path, tmp_path / "s"),
        Replica.open(path) as replica,
        contextlib.ExitStack() as at_end,
    ):
        at_end.callback(lambda: trials.undo(replica, hypervisor=world))
        source = Source(tmp_path / "s", {name: bytearray(size) for name, size in SIZES.items()}, 4)
        for number in range(8):
            feed(path, source, 4)
            held = source.snapshot()["a"]
            trials.start(replica, operation_id=f"t{number}", hypervisor=world)
            base = (path / "a-flat.vmdk").read_bytes()
            feed(path, source, 4)
            assert seen(replica, world, tmp_path) == held
            assert (path / "a-flat.vmdk").read_bytes() == base
            trials.undo(replica, hypervisor=world)
        wait_until(lambda: horizon(path) > 30, "the horizon goes on")
        source.close()
