"""A rehearsal tells what a failover would come to, and leaves nothing behind but what it tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_replicas import MACHINE, SIZES, make_demo, processes_below
from guests import protected
from guests.shelf import Shelf
from replicas import Source, ingesting, rollpoint, wait_until
from rollpoint import operation, rehearsal, replication, viewers
from rollpoint.errors import NotFoundError, ToolMissingError, UsageError
from rollpoint.replica import Replica
from tools import require_tool

TOOLS = ("bwrap", "nbdfuse", "e2fsck", "fuse2fs")


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A replica of a machine without a file system, which starts in a second."""
    path = tmp_path / "r"
    make_demo(path)
    return path


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory of a short name: sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="rp-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def temporary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go: what is left there shows."""
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert sorted(path.name for path in folder.iterdir()) == []


# ---- conversion ----


def test_a_guest_is_converted_on_disks_that_are_thrown_away(
    guests: Shelf, tmp_path: Path, temporary: Path
) -> None:
    for name in TOOLS:
        require_tool(name)
    path = tmp_path / "r"
    protected.protect(path, guests.disk("plain"))
    protected.configure(path)
    before = protected.below(path)
    with Replica.open(path) as replica:
        done = rehearsal.rehearse(replica)
    assert (done.ok, done.error) == (True, "")
    assert done.converted is not None
    assert done.converted.outcome == "changed"
    assert any("initrd" in change.file for change in done.converted.changes)
    assert (done.point, done.converted.mode, done.boot) == (1, "files", None)
    assert 0 < done.written_bytes < 96 << 20
    assert protected.below(path) == before
    shown = rollpoint("replica", "show", path)["rehearsal"]
    assert (shown["ok"], shown["point"]) == (True, 1)
    assert shown["converted"]["changes"] == len(done.converted.changes)
    with Replica.open(path) as replica:
        assert rehearsal.load(replica.directory) == done
        assert not viewers.present(replica.directory)
        assert replica.manifest.state == "Ready"
        assert not (path / "conversion.json").exists()  # that is a failover's
        replica.remove()
    assert not path.exists()


def test_what_cannot_be_converted_is_told_kept_and_shown(
    demo: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (demo / "replica.toml").write_text('[guest]\nconvert = "always"\n')
    error = rollpoint_fails("replica", "rehearse", str(demo), "--json")
    assert error["type"] == "GuestError"
    assert "restore point 2" in error["message"]
    assert "nothing that is known" in error["message"]
    shown = rollpoint("replica", "show", demo)["rehearsal"]
    assert not shown["ok"]
    assert "nothing that is known" in shown["error"]
    with Replica.open(demo) as replica:
        assert replica.manifest.state == "Ready"


def rollpoint_fails(*words: str) -> dict[str, str]:
    """The error of a command that also prints what it found."""
    done = subprocess.run(
        [sys.executable, "-m", "rollpoint", *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["ok"] is False
    error: dict[str, str] = json.loads(done.stderr)["error"]
    return error


def test_replication_goes_on_meanwhile(demo: Path, tmp_path: Path, temporary: Path) -> None:
    with ingesting(demo, tmp_path / "s"):
        source = Source(tmp_path / "s", {name: bytearray(size) for name, size in SIZES.items()}, 1)
        ended = threading.Event()
        marked: list[int] = []

        def go_on() -> None:
            with Replica.open(demo) as replica:
                while not ended.is_set() or len(marked) < 3:
                    source.act()
                    marked.append(replication.mark(replica).id)

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            with Replica.open(demo) as replica:
                done = rehearsal.rehearse(replica, "1")
        finally:
            ended.set()
            thread.join()
            source.close()
    assert done.ok
    assert done.converted is not None
    assert done.converted.outcome == "no guest"
    with Replica.open(demo) as replica:
        assert [point.id for point in replica.points][-1] == marked[-1]


def test_a_failed_over_replica_can_be_rehearsed_at_another_point(
    demo: Path, temporary: Path
) -> None:
    with Replica.open(demo) as replica:
        operation.failover(replica, "2", power_on=False)
        assert rehearsal.rehearse(replica, "1").ok
        assert replica.manifest.state == "Failover"


def test_what_cannot_be_tried_is_refused_and_nothing_is_kept(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Replica.open(demo) as replica:
        with pytest.raises(NotFoundError):
            rehearsal.rehearse(replica, "9")
        with monkeypatch.context() as patch:
            patch.setenv("PATH", "")
            with pytest.raises(ToolMissingError, match="qemu"):
                rehearsal.rehearse(replica, "1", boot=True)
        (demo / "replica.toml").write_text("[machine]\nmemory = 7\n")
        with pytest.raises(UsageError):
            rehearsal.rehearse(replica, "1")
    assert not (demo / "rehearsal.json").exists()


def test_a_damaged_record_is_told_and_hides_nothing_else(demo: Path) -> None:
    (demo / "rehearsal.json").write_text("{")
    facts = rollpoint("replica", "show", demo)
    assert "rehearsal.json" in facts["rehearsal"]["error"]
    assert facts["state"] == "Ready"


# ---- the machine ----


def test_the_machine_starts_from_the_thrown_away_disks(demo: Path, temporary: Path) -> None:
    require_tool("qemu-system-x86_64")
    before = protected.below(demo)
    with Replica.open(demo) as replica:
        done = rehearsal.rehearse(replica, "1", boot=True)
    assert done.boot is not None
    assert (done.ok, done.error) == (True, ""), done.boot
    assert done.boot.said.startswith("ROLLPOINT FOUND 0 0")
    assert protected.below(demo) == before
    shown = rollpoint("replica", "show", demo)["rehearsal"]
    assert shown["boot"]["reached"]


def test_a_machine_that_does_not_start_is_a_rehearsal_that_failed(
    demo: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_tool("qemu-system-x86_64")
    (demo / "replica.toml").write_text(MACHINE.replace("60s", "1s"))
    with Replica.open(demo) as replica:  # at point 2 there is nothing to start from
        done = rehearsal.rehearse(replica, "2", boot=True)
        assert done.boot is not None
        assert not done.ok
        assert "ROLLPOINT FOUND" in done.error
        (demo / "replica.toml").write_text(MACHINE.replace('marker = "ROLLPOINT FOUND"\n', ""))
        monkeypatch.setattr(rehearsal, "STAYS_ON_SECONDS", 0.3)
        done = rehearsal.rehearse(replica, "1", boot=True)
        assert done.ok
        assert done.boot is not None
        assert "marker" in done.boot.said


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param("rollpoint-mount-*", marks=pytest.mark.long),
        pytest.param("rollpoint-rehearsal-*", marks=pytest.mark.long),
        "rollpoint-rehearsal-*/*/console.log",
    ],
)
def test_killed_at_any_moment_it_leaves_no_process_and_no_file(
    demo: Path, folder: Path, sign: str
) -> None:
    require_tool("qemu-system-x86_64")
    (demo / "replica.toml").write_text(MACHINE.replace("FOUND", "NEVER"))
    before = protected.below(demo)
    process = subprocess.Popen(
        [sys.executable, "-m", "rollpoint", "replica", "rehearse", demo, "--at", "1", "--boot"],
        env=os.environ | {"TMPDIR": str(folder)},
    )

    def shows() -> bool:
        assert process.poll() is None
        found = list(folder.glob(sign))
        return any(path.is_dir() or "ROLLPOINT" in path.read_text() for path in found)

    wait_until(shows, f"{sign} is there")
    process.kill()
    process.wait(30)
    wait_until(lambda: not processes_below(folder), "nothing runs")
    wait_until(lambda: not list(folder.glob("rollpoint-rehearsal-*")), "its files are gone")
    assert protected.below(demo) == before
    with Replica.open(demo) as replica:
        assert not viewers.present(replica.directory)
        assert rehearsal.rehearse(replica, "1").ok


@pytest.mark.boots
def test_a_guest_of_other_hardware_starts_after_the_rehearsed_conversion(
    guests: Shelf, tmp_path: Path, temporary: Path
) -> None:
    path = tmp_path / "r"
    protected.protect(path, guests.disk("plain"))
    before = protected.below(path)
    with Replica.open(path) as replica:
        protected.configure(path, marker="TINY-READY")  # TINY-NOROOT, unconverted: test_guests.py
        done = rehearsal.rehearse(replica, boot=True)
        assert (done.ok, done.error) == (True, "")
    assert protected.below(path) == before


def test_time_is_told(demo: Path) -> None:
    begun = time.perf_counter()
    with Replica.open(demo) as replica:
        done = rehearsal.rehearse(replica, "1")
    assert 0 < done.seconds <= time.perf_counter() - begun
