"""A hold against an ingest that cannot be asked: on another host, or hanging."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replicas import (
    SIZES,
    Source,
    empty_model,
    ingest_process,
    make,
    rollpoint,
    seen_by_qemu,
    wait_until,
)
from rollpoint import control, replication
from rollpoint.errors import LockedError
from rollpoint.ingest_epoch import GRACE_SECONDS, LOOK_SECONDS, EpochWatch
from rollpoint.intake import Intake
from rollpoint.ousting import oust
from rollpoint.replica import Replica
from tools import libnbd


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make(tmp_path / "r")
    return tmp_path / "r"


def connect(where: Path, name: str) -> Any:
    client = libnbd().NBD()
    client.connect_uri(f"nbd+unix:///{name}?socket={where}")
    return client


def takes_writes(where: Path) -> bool:
    try:
        connect(where, "a").pwrite(b"x", 0)
    except Exception:
        return False
    return True


def status(path: Path) -> dict[str, object]:
    return control.ask(str(path / ".control.sock"), "status")


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Processes that hang: they go on at the end, so that they can end."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_an_ingest_on_another_host_is_held_and_released_through_the_manifest(
    path: Path, tmp_path: Path
) -> None:
    """All it acknowledged is in the last point, the source is refused, and no copy is doubted."""
    model, where = empty_model(), tmp_path / "s"
    with ingest_process(path, where, "--rpo", "1h") as process:
        source = Source(where, model, seed=61)
        for _ in range(50):
            source.act()
        (path / ".control.sock").rename(tmp_path / "away")  # as on a host where nobody listens
        with Replica.open(path) as replica:
            epoch = replication.hold(replica, "the site is lost")
            with replica.journals() as journals:
                assert journals.all_held
                assert journals.epoch == epoch == 2
                assert not journals.has_news
            assert not takes_writes(where)
            with pytest.raises(libnbd().Error):
                source.write("a", b"late", 0)
            assert process.poll() is None, "it waits for the release"
            assert not replication.needs_resync(replica), "the cut is known"
            for name in SIZES:
                seen = seen_by_qemu(path / f"{name}-journal.vmdk", tmp_path)
                assert seen == bytes(model[name])
            replication.release(replica)
            wait_until(lambda: takes_writes(where), "the ingest goes on")
            replica.refresh()
            assert replica.manifest.ingest is not None
            assert replica.manifest.ingest.pid == process.pid
            assert not replication.needs_resync(replica)
        (tmp_path / "away").rename(path / ".control.sock")
        assert status(path)["epoch"] == 2


def test_an_ingest_of_this_host_that_hangs_is_ended_for_a_hold(
    path: Path, tmp_path: Path, stopped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may have taken with it is a gap, and the audit says what was done."""
    monkeypatch.setattr(replication, "HOLD_SECONDS", 0.2)
    monkeypatch.setattr(control, "STATUS_SECONDS", 0.2)
    monkeypatch.setattr(replication, "LOCK_SECONDS", 3.0)
    where = tmp_path / "s"
    with ingest_process(path, where) as process, Replica.open(path) as replica:
        connect(where, "a").pwrite(b"y" * 512, 0)
        stopped.append(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        assert replication.hold(replica) == 2
        assert process.wait(10) == -signal.SIGKILL
        with replica.journals() as journals:
            assert journals.all_held
        assert replication.needs_resync(replica)
    notes = [line for line in (path / "audit.jsonl").read_text().splitlines() if "killed" in line]
    assert [json.loads(line)["event"] for line in notes] == ["note"]


def test_one_that_hangs_elsewhere_is_not_called_held_and_fences_itself_when_it_wakes(
    path: Path, tmp_path: Path, stopped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "HOLD_SECONDS", 0.2)
    monkeypatch.setattr(control, "STATUS_SECONDS", 0.2)
    monkeypatch.setattr(replication, "LOCK_SECONDS", 0.3)
    where = tmp_path / "s"
    with ingest_process(path, where) as process, Replica.open(path) as replica:
        with replica.locked() as manifest:
            assert manifest.ingest is not None
            manifest.ingest.pid, manifest.ingest.host = os.getpid(), "far"
            replica.save()
        stopped.append(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(LockedError, match=r"on far.*has not heeded epoch 2"):
            replication.hold(replica)
        replica.refresh()
        assert not replica.manifest.held
        assert process.poll() is None
        os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: status(path)["state"] == "held", "it has seen the epoch")
        assert status(path)["epoch"] == 2
        assert not takes_writes(where)
        # A hold that nobody carried through is one, until somebody releases it.
        wait_until(lambda: Replica.open(path).manifest.held, "the manifest says so")
        assert rollpoint("hold", path, "--reason", "again")["epoch"] == 2
        rollpoint("release", path)
        assert takes_writes(where)


def test_a_failover_goes_on_past_an_ingest_on_another_host(path: Path, tmp_path: Path) -> None:
    where = tmp_path / "s"
    with ingest_process(path, where, "--rpo", "1h") as process:
        client = connect(where, "a")
        client.pwrite(b"y" * 4096, 8192)
        rollpoint("mark", path)
        client.pwrite(b"z" * 4096, 8192)
        (path / ".control.sock").rename(tmp_path / "away")
        assert rollpoint("failover", path, "--no-power-on")["state"] == "Failover"
        seen = seen_by_qemu(path / "a-interim.vmdk", tmp_path)
        assert seen[8192:12288] == b"z" * 4096
        assert not takes_writes(where)
        assert process.poll() is None
        rollpoint("undo", path)
        wait_until(lambda: takes_writes(where), "the ingest goes on")


def test_only_who_has_the_journals_is_killed(path: Path) -> None:
    log = str(path / "a-journal-log.vmdk")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not oust(child.pid, [log])
        assert not oust(child.pid, [])
        assert child.poll() is None
        with open(log, "rb"):
            assert not oust(os.getpid(), [log]), "never this one"
        assert not oust(2**22 + 1, [log])
    finally:
        child.communicate(timeout=10)


def test_a_gap_that_the_manifest_lacks_outlives_a_hold_that_nobody_told_of(path: Path) -> None:
    with Replica.open(path) as replica:
        with replica.locked() as manifest:
            intake = Intake(replica, 3600.0)
            journals = intake.take_journals()
            journals.natives[0].disk().pwrite(b"x" * 512, 0)
            intake.record.begin_gap("the source was lost", resync=True)
            manifest.epoch += 1
            replica.save()
        intake.hold(2, told=False)
        with replica.journals() as journals:
            assert journals.all_held
            assert not journals.were_clean


def test_who_holds_on_this_host_is_given_time_to_say_so(path: Path) -> None:
    """Notes are handed over only to who asks: the manifest alone counts later."""
    now = 0.0
    with Replica.open(path) as replica:
        with replica.locked() as manifest:
            intake = Intake(replica, 3600.0)
            intake.take_journals()
            manifest.epoch += 1
            replica.save()
        watch = EpochWatch(intake, lambda: None, lambda: now)
        now += LOOK_SECONDS
        watch.look()
        now += GRACE_SECONDS - LOOK_SECONDS / 2
        watch.look()
        assert intake.journals is not None
        now += LOOK_SECONDS
        watch.look()
        assert intake.journals is None
        assert intake.epoch == 2


def test_a_manifest_that_cannot_be_read_for_a_moment_is_no_hold(path: Path) -> None:
    now = 0.0
    with Replica.open(path) as replica:
        with replica.locked():
            intake = Intake(replica, 3600.0)
            intake.take_journals()
        watch = EpochWatch(intake, lambda: None, lambda: now)
        (path / "replica.json").rename(path / "away")
        for _ in range(5):
            now += 10.0
            watch.look()
        assert intake.journals is not None
        (path / "away").rename(path / "replica.json")
        intake.close()
