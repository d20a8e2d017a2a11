"""What ends a failover by itself: in its time, once, and not when it was cancelled."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from replicas import rollpoint, wait_until
from rollpoint import _native, audit, hypervisors, operation, replication, timers
from rollpoint.errors import HypervisorError, LockedError, StateError
from rollpoint.hypervisor.qemu import Qemu
from rollpoint.records import Running, Timer
from rollpoint.replica import Replica
from tools import require_tool


class Clock:
    """A boot clock that stands still until somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def make(path: Path) -> None:
    Replica.create(path, [("d", 64 << 10)], segment_bytes=65536).close()
    with Replica.open(path) as replica:
        replication.mark(replica)


def armed(path: Path, action: str = "undo", seconds: float = 1800.0) -> Timer:
    make(path)
    with Replica.open(path) as replica:
        operation.failover(replica, power_on=False, after=(action, seconds))
        timer = timers.of(replica.manifest)
        assert timer is not None
        return timer


def waits(path: Path, timer: Timer, clock: Clock) -> str:
    with Replica.open(path) as replica:
        def act(due: Timer) -> None:
            getattr(operation, due.action)(replica, operation_id=due.operation)

        return timers.wait(replica, timer.operation, act, clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize(("action", "state"), [("undo", "Ready"), ("permanent", "Permanent")])
def test_a_timer_ends_the_failover_when_it_is_due(
    tmp_path: Path, action: str, state: str
) -> None:
    timer, clock = armed(tmp_path / "r", action), Clock()
    assert waits(tmp_path / "r", timer, clock) == f"done: {action}"
    assert 1700 < sum(clock.slept) <= 1800
    with Replica.open(tmp_path / "r") as replica:
        assert replica.manifest.state == state
        assert replica.manifest.history[-1].id == timer.operation
    # Another process that waited as well, and comes late.
    assert waits(tmp_path / "r", timer, Clock()) == "it was cancelled"


def test_an_end_that_is_asked_for_takes_the_timer_away(tmp_path: Path) -> None:
    timer, clock = armed(tmp_path / "r"), Clock()

    def undone(seconds: float) -> None:
        clock.sleep(seconds)
        with Replica.open(tmp_path / "r") as replica:
            if replica.manifest.state == "Failover":
                operation.undo(replica)

    with Replica.open(tmp_path / "r") as replica:
        done = timers.wait(replica, timer.operation, pytest.fail, clock=clock, sleep=undone)
    assert done == "it was cancelled"
    with Replica.open(tmp_path / "r") as replica:
        rows = [json.loads(line) for line in audit.lines(replica.directory)]
    notes = [row["says"] for row in rows if row["kind"] == "timer"]
    assert notes[0].startswith("armed: undo")
    assert notes[1].startswith("cancelled: undo")
    assert "was begun" in notes[1]


def test_setting_the_clock_of_the_host_does_not_bring_the_end_nearer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer, clock = armed(tmp_path / "r"), Clock()

    def jump(seconds: float) -> None:
        clock.sleep(seconds)
        monkeypatch.setattr(timers, "seconds_left", lambda _: -1e6)

    with Replica.open(tmp_path / "r") as replica:
        timers.wait(replica, timer.operation, lambda _: None, clock=clock, sleep=jump)
    assert sum(clock.slept) > 1700


def test_a_timer_waits_while_another_operation_goes_on(tmp_path: Path) -> None:
    timer, clock = armed(tmp_path / "r"), Clock()
    tries = []

    def busy(due: Timer) -> None:
        tries.append(due)
        if len(tries) < 4:
            raise LockedError("another operation goes on")

    with Replica.open(tmp_path / "r") as replica:
        done = timers.wait(replica, timer.operation, busy, clock=clock, sleep=clock.sleep)
    assert (done, len(tries)) == ("done: undo", 4)
    with Replica.open(tmp_path / "r") as replica, pytest.raises(LockedError):
        timers.wait(
            replica, timer.operation, lambda _: busy(tries.clear() or timer),  # type: ignore[func-returns-value]
            clock=clock, sleep=clock.sleep,
        )  # fmt: skip


def test_two_processes_do_not_wait_for_one_timer(tmp_path: Path) -> None:
    timer, clock = armed(tmp_path / "r"), Clock()

    def second(_: float) -> None:
        clock.sleep(2000)
        with Replica.open(tmp_path / "r") as replica:
            assert timers.is_waited_for(replica.directory, timer)
            assert timers.start(replica) is None
            with pytest.raises(LockedError):
                timers.wait(replica, timer.operation, pytest.fail, clock=clock)

    with Replica.open(tmp_path / "r") as replica:
        timers.wait(replica, timer.operation, lambda _: None, clock=clock, sleep=second)
        assert not timers.is_waited_for(replica.directory, timer)


def test_a_failover_that_the_power_cut_has_its_timer_if_it_has_ended() -> None:
    io = _native.Io.simulate()
    Replica.create("/r", [("d", 64 << 10)], segment_bytes=65536, io=io).close()
    with Replica.open("/r", io) as replica:
        replication.mark(replica)
    io.settle()
    with Replica.open("/r", io) as replica:
        operation.failover(replica, 1, power_on=False, after=("undo", 60.0))
    for state in io.crash_states(budget=60, seed=5, garbage=False):
        with Replica.open("/r", state.io) as replica:
            operation.resume(replica)
            ended = replica.manifest.state == "Failover"
            assert (timers.of(replica.manifest) is not None) == ended
            if ended:
                operation.undo(replica)
            assert timers.of(replica.manifest) is None


def test_a_change_of_the_point_keeps_the_timer(tmp_path: Path) -> None:
    timer = armed(tmp_path / "r")
    with Replica.open(tmp_path / "r") as replica:
        operation.failover(replica, 1, power_on=False)
        assert timers.of(replica.manifest) == timer
        operation.failover(replica, 1, power_on=False, after=("permanent", 60.0))
        kept = timers.of(replica.manifest)
        assert kept is not None
        assert (kept.action, kept.operation == timer.operation) == ("permanent", False)


def test_a_timer_is_of_a_failover_only(tmp_path: Path) -> None:
    make(tmp_path / "r")
    with Replica.open(tmp_path / "r") as replica:
        with pytest.raises(StateError, match="set a timer"):
            timers.arm(replica, "undo", 60.0)
        assert timers.cancel(replica) is None
        assert timers.start(replica) is None


def test_the_command_line_sets_shows_and_cancels(tmp_path: Path) -> None:
    """With a process that really waits, and is seen to."""
    path = tmp_path / "r"
    make(path)
    rollpoint("failover", path, "--no-power-on", "--auto-undo", "30m")
    wait_until(lambda: rollpoint("timer", path)["timer"]["waiting"], "a process waits")
    shown = rollpoint("replica", "show", path)["timer"]
    assert (shown["action"], shown["overdue"]) == ("undo", False)
    wait_until(lambda: "waiting" in (path / "run" / "timer.log").read_text(), "it says so")
    pid = int((path / "run" / "timer.log").read_text().split("process ")[1].split()[0])
    assert os.getsid(pid) == pid  # not of our session: it outlives the terminal
    assert rollpoint("timer", path, "--cancel")["timer"] is None
    os.kill(pid, signal.SIGTERM)  # it would look within seconds
    os.waitpid(pid, 0)
    rollpoint("timer", path, "--auto-undo", "30m", "--auto-permanent", "1h", code=2)
    rollpoint("timer", path, "--auto-undo", "0s", code=2)
    rollpoint("undo", path)
    rollpoint("timer", path, "--auto-undo", "30m", code=1)


def test_an_end_that_failed_is_tried_again_when_somebody_says_so(tmp_path: Path) -> None:
    path = tmp_path / "r"
    timer = armed(path)
    with Replica.open(path) as replica:
        with replica.locked() as manifest:
            assert manifest.recovered is not None
            manifest.recovered.running = Running(
                hypervisor="qemu", machine=manifest.id, started=timer.armed
            )
            replica.save()

        class Broken:
            def power_off(self, machine: str) -> None:
                raise HypervisorError(f"{machine} does not answer")

        def act(due: Timer) -> None:
            broken: Any = Broken()
            operation.undo(replica, hypervisor=broken, operation_id=due.operation)

        clock = Clock()
        with pytest.raises(HypervisorError):
            timers.wait(replica, timer.operation, act, clock=clock, sleep=clock.sleep)
        assert replica.manifest.state == "Failover"
        assert timers.of(replica.manifest) == timer
        again = timers._again(replica)
        assert again is not None
        assert (again.due, again.operation == timer.operation) == (timer.due, False)
        with replica.locked() as manifest:
            assert manifest.recovered is not None
            manifest.recovered.running = None
            replica.save()
    assert waits(path, again, Clock()) == "done: undo"


def test_an_overdue_timer_is_told_of_and_resume_sees_to_it(tmp_path: Path) -> None:
    """As after a reboot: the moment has passed, and nobody waits."""
    path = tmp_path / "r"
    armed(path)
    with Replica.open(path) as replica, replica.locked() as manifest:
        assert manifest.recovered is not None
        assert manifest.recovered.timer is not None
        manifest.recovered.timer.due = "2026-01-01T00:00:00.000000Z"
        replica.save()
    shown = rollpoint("replica", "show", path)["timer"]
    assert (shown["overdue"], shown["waiting"]) == (True, False)
    assert "NO PROCESS" in timers.sentence(shown)
    rollpoint("resume", path)

    def is_ready() -> bool:
        with Replica.open(path) as replica:
            return replica.manifest.state == "Ready" and replica.manifest.operation is None

    wait_until(is_ready, "the process that resume started has undone it")
    log = path / "run" / "timer.log"
    wait_until(lambda: "done: undo" in log.read_text(), "it says so")
    wait_until(lambda: not list((path / "run").glob("*.lock")), "it has ended")
    rollpoint("replica", "remove", path)
    assert not path.exists()


@pytest.mark.parametrize(("action", "state"), [("undo", "Ready"), ("permanent", "Permanent")])
def test_the_timer_of_a_machine_that_runs(tmp_path: Path, action: str, state: str) -> None:
    """By real processes: undo ends the machine, permanent merges while it runs on."""
    require_tool("qemu-system-x86_64")
    path = tmp_path / "r"
    make(path)
    rollpoint("failover", path, f"--auto-{action}", "1s", "--memory", "32M",
              "--skip", "source-fenced=a test")  # fmt: skip
    try:
        log = path / "run" / "timer.log"
        wait_until(lambda: log.exists() and f"done: {action}" in log.read_text(), "it has ended")
        with Replica.open(path) as replica:
            assert replica.manifest.state == state
            machine = Qemu(path / "run")
            runs = machine.status(hypervisors.machine_id(replica)) != "off"
            assert runs == (action == "permanent")
    finally:
        with Replica.open(path) as replica:
            Qemu(path / "run").power_off(hypervisors.machine_id(replica))
