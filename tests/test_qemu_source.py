"""A QEMU source mirrored to NBD exports: in step, through outages, and honest about gaps."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import require_tool
from rollpoint import demo_guest
from rollpoint.errors import HypervisorError, StorageError, UsageError
from rollpoint.hypervisor.base import Drive, Machine
from rollpoint.hypervisor.qemu import Qemu
from rollpoint.hypervisor.qemu_source import SourceMirror, Target

DISK_BYTES = 8 << 20
TARGETS = (Target("disk0", "system"), Target("disk1", "data"))


class Exports:
    """QEMU's own storage daemon as the other end: two files behind one socket."""

    def __init__(self, directory: Path) -> None:
        self.daemon = require_tool("qemu-storage-daemon")
        self.socket = directory / "n.sock"
        self.pid_file = directory / "daemon.pid"
        self.paths = [directory / "system.copy", directory / "data.copy"]
        for path in self.paths:
            path.write_bytes(bytes(DISK_BYTES))
        self.pid = 0

    def start(self, names: tuple[str, str] = ("system", "data")) -> None:
        self.socket.unlink(missing_ok=True)
        command = [self.daemon, "--daemonize", "--pidfile", str(self.pid_file)]
        for index, path in enumerate(self.paths):
            command += ["--blockdev", f"driver=file,node-name=f{index},filename={path}"]
        command += ["--nbd-server", f"addr.type=unix,addr.path={self.socket}"]
        for index, name in enumerate(names):
            export = f"type=nbd,id=e{index},node-name=f{index},name={name},writable=on"
            command += ["--export", export]
        subprocess.run(command, check=True)
        self.pid = int(self.pid_file.read_text())

    def kill(self) -> None:
        if self.pid:
            process = os.pidfd_open(self.pid)
            os.kill(self.pid, signal.SIGKILL)
            select.select([process], [], [], 30)  # until it is gone it has its pid file
            os.close(process)
            self.pid = 0


def poll(done: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


class Source:
    """The demo's guest on two raw disks, started but not running yet."""

    def __init__(self, directory: Path) -> None:
        require_tool("qemu-system-x86_64")
        self.qemu = Qemu(directory / "run")
        self.paths = [directory / "system.raw", directory / "data.raw"]
        self.paths[0].write_bytes(demo_guest.PROGRAM.ljust(DISK_BYTES - 512, b"\xab") + bytes(512))
        self.paths[1].write_bytes(bytes(DISK_BYTES))
        drives = tuple(Drive(str(path), "raw") for path in self.paths)
        ring = demo_guest.place_bytes(0)
        with self.paths[0].open("r+b") as file:  # the ring begins empty
            file.seek(ring)
            file.write(bytes(2 << 20))
        self.qemu.start(Machine("source", "source", drives, 16 << 20, paused=True))
        self.qmp = self.qemu.qmp("source", 60, supervise=True)

    def count(self) -> int:
        text = self.qemu.console("source")
        counts = [line for line in text.splitlines(True) if line.startswith("COUNT ")]
        return int(counts[-1][6:]) if counts and counts[-1].endswith("\n") else 0

    def wait_for_more(self) -> None:
        before = self.count()
        poll(lambda: self.count() > before)


@pytest.fixture
def exports(tmp_path: Path) -> Iterator[Exports]:
    exports = Exports(tmp_path)
    exports.start()
    yield exports
    exports.kill()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    source = Source(tmp_path)
    yield source
    source.qmp.close()
    source.qemu.kill("source")


def same(source: Source, exports: Exports) -> bool:
    return all(
        a.read_bytes() == b.read_bytes() for a, b in zip(source.paths, exports.paths, strict=True)
    )


def test_when_it_stops_both_sides_are_the_same(source: Source, exports: Exports) -> None:
    events: list[str] = []
    mirror = SourceMirror(
        source.qmp, exports.socket, TARGETS, tell=lambda kind, _: events.append(kind)
    )
    mirror.start()
    mirror.wait_in_step(30)
    assert same(source, exports)  # the first full copy
    for _ in range(3):
        source.qmp.execute("cont")
        source.wait_for_more()
        source.qmp.execute("stop")
        assert same(source, exports)
    assert demo_guest.examine(reader(exports.paths[1]), 1).newest >= 32
    assert mirror.in_step
    assert events == ["gap", "in-step"]
    mirror.close()
    mirror.close()


def reader(path: Path) -> Callable[[int, int], bytes]:
    data = path.read_bytes()
    return lambda length, offset: data[offset : offset + length]


def test_a_killed_source_leaves_at_most_one_write_between_the_sides(
    source: Source, exports: Exports
) -> None:
    mirror = SourceMirror(source.qmp, exports.socket, TARGETS)
    mirror.start()
    mirror.wait_in_step(30)
    source.qmp.execute("cont")
    source.wait_for_more()
    source.qemu.kill("source")
    found = [
        [demo_guest.examine(reader(path), disk) for disk, path in enumerate(side.paths)]
        for side in (source, exports)
    ]
    for system, data in found:
        assert (system.problem, data.problem) == ("", "")
        assert system.newest - data.newest in (0, 1)
    assert abs(found[0][0].newest - found[1][0].newest) <= 1
    poll(lambda: not mirror.in_step)
    with pytest.raises(HypervisorError, match="not in step"):
        mirror.wait_in_step(0)
    mirror.close()


def test_an_outage_shorter_than_the_delay_is_no_gap(source: Source, exports: Exports) -> None:
    """The guest's writes wait for the server; none is lost and none goes unprotected."""
    mirror = SourceMirror(source.qmp, exports.socket, TARGETS, reconnect_seconds=30)
    mirror.start()
    mirror.wait_in_step(30)
    source.qmp.execute("cont")
    source.wait_for_more()
    exports.kill()
    exports.start()
    source.wait_for_more()
    assert mirror.in_step
    source.qmp.execute("stop")
    assert same(source, exports)
    assert len(mirror.gaps()) == 1
    mirror.close()


def test_a_longer_outage_is_a_gap_that_ends_when_all_is_copied(
    source: Source, exports: Exports
) -> None:
    mirror = SourceMirror(source.qmp, exports.socket, TARGETS, reconnect_seconds=1)
    mirror.start()
    mirror.wait_in_step(30)
    source.qmp.execute("cont")
    source.wait_for_more()
    killed_ns = time.time_ns()
    exports.kill()
    poll(lambda: not mirror.in_step)
    source.wait_for_more()  # it runs on, unprotected
    assert mirror.gaps()[-1].end_ns is None
    assert "failed" in mirror.describe()
    with pytest.raises(HypervisorError, match="not in step"):
        mirror.wait_in_step(0.01)
    exports.start()
    started_ns = time.time_ns()
    mirror.wait_in_step(60)
    source.wait_for_more()
    source.qmp.execute("stop")
    assert same(source, exports)
    first, outage = mirror.gaps()
    assert first.end_ns is not None
    assert first.end_ns < killed_ns < outage.begin_ns < started_ns
    assert outage.end_ns is not None
    assert outage.end_ns > started_ns
    mirror.close()


def test_a_job_that_ended_is_begun_anew(source: Source, exports: Exports) -> None:
    mirror = SourceMirror(source.qmp, exports.socket, TARGETS)
    mirror.start()
    mirror.wait_in_step(30)
    source.qmp.execute("block-job-cancel", device="mirror-data-1", force=True)
    poll(lambda: len(mirror.gaps()) == 2)
    source.qmp.execute("cont")
    mirror.wait_in_step(30)
    source.wait_for_more()
    source.qmp.execute("stop")
    assert same(source, exports)
    mirror.close()


def test_a_server_that_died_gets_a_full_copy(source: Source, exports: Exports) -> None:
    """What it had acknowledged and not yet made durable is gone; only a copy finds it."""
    session = "first run"
    told: list[str] = []
    mirror = SourceMirror(
        source.qmp,
        exports.socket,
        TARGETS,
        tell=lambda kind, _: told.append(f"{kind} in the {session}"),
        session=lambda: session,
    )
    mirror.start()
    mirror.wait_in_step(30)
    source.qmp.execute("cont")
    source.wait_for_more()
    exports.kill()
    exports.paths[1].write_bytes(bytes(DISK_BYTES))  # all that was written is lost
    exports.start()
    session = "second run"
    poll(lambda: len(mirror.gaps()) == 2)
    mirror.wait_in_step(30)
    source.wait_for_more()
    source.qmp.execute("stop")
    assert same(source, exports)
    assert told == [
        "gap in the first run",
        "in-step in the first run",
        "gap in the second run",
        "in-step in the second run",
    ]
    mirror.close()


def test_a_gap_is_told_before_the_job_goes_on(source: Source, exports: Exports) -> None:
    """Nobody may mark a restore point while a bitmap is copied: so tell first, until heard."""
    told: list[str] = []
    deaf = True

    def tell(kind: str, cause: str) -> None:
        if kind == "gap" and told and deaf:
            raise StorageError("nobody listens")
        told.append(f"{kind}: {cause}")

    mirror = SourceMirror(source.qmp, exports.socket, TARGETS, tell=tell)
    mirror.start()
    mirror.wait_in_step(30)
    source.qmp.execute("block-job-cancel", device="mirror-data-1", force=True)
    poll(lambda: len(mirror.gaps()) == 2)
    with pytest.raises(HypervisorError, match=r"data lost.*nobody listens"):
        mirror.wait_in_step(0.5)
    assert not source.qmp.execute("query-block-jobs")[1:]
    deaf = False
    mirror.wait_in_step(30)
    assert [line.split(":")[0] for line in told] == ["gap", "in-step", "gap", "in-step"]
    mirror.close()


def test_an_export_that_is_missing_or_too_small_is_refused(
    source: Source, exports: Exports
) -> None:
    wrong = (Target("disk0", "system"), Target("disk1", "nothing"))
    with pytest.raises(HypervisorError, match="export"):
        SourceMirror(source.qmp, exports.socket, wrong).start()
    exports.kill()
    exports.paths[1].write_bytes(bytes(DISK_BYTES // 2))
    exports.start(("system", "small"))
    small = (Target("disk1", "small"),)
    with pytest.raises(HypervisorError, match=r"small has 4194304 bytes.*8388608"):
        SourceMirror(source.qmp, exports.socket, small).start()


def test_a_socket_path_that_qemu_cannot_take_is_refused(source: Source, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at most 107 bytes"):
        SourceMirror(source.qmp, tmp_path / ("n" * 100), TARGETS)
