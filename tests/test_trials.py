"""A test failover disturbs nothing, and nothing of it is left behind, however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_replicas import MACHINE, SIZES, make_demo, processes_below
from fakes import Plain
from guests import protected
from guests.shelf import Shelf
from replicas import (
    Source,
    empty_model,
    ingesting,
    make,
    rollpoint,
    seen_by_qemu,
    wait_until,
)
from rollpoint import (
    audit,
    audit_check,
    noting,
    operation,
    replication,
    retention,
    trial_disks,
    trial_places,
    trials,
    viewers,
)
from rollpoint.errors import (
    ExistsError,
    HypervisorError,
    LockedError,
    NotFoundError,
    StateError,
    UsageError,
)
from rollpoint.hypervisor.base import Handle, Machine, State
from rollpoint.hypervisor.qemu import Qemu
from rollpoint.manifest import Step
from rollpoint.nbd_client import NbdClient, Place
from rollpoint.replica import Replica
from tools import ROOT, require_tool
from trial_crash import World


@pytest.fixture
def demo(tmp_path: Path, temporary: Path) -> Iterator[Path]:
    """A replica of a machine that starts in a second, at its point 1. No process stays."""
    path = tmp_path / "r"
    make_demo(path)
    yield path
    with Replica.open(path) as replica:
        trials.undo(replica)
        assert trial_places.present(replica.directory) == []
        assert not viewers.present(replica.directory)
    assert processes_below(tmp_path) == []


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where sockets go: what is left there shows."""
    with tempfile.TemporaryDirectory(prefix="rp-") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr("tempfile.tempdir", name)
        yield Path(name)
        assert sorted(path.name for path in Path(name).iterdir()) == []


def pid_of(path: Path, id: str) -> int:
    """Of the process that serves a test's disks."""
    with Replica.open(path) as replica:
        facts = trial_places.load_facts(replica.directory, id)
    assert facts is not None
    return facts.pid


def content(path: Path, id: str, disk: str) -> bytes:
    """What a client of a test's export reads."""
    with Replica.open(path) as replica:
        facts = trial_places.load_facts(replica.directory, id)
    assert facts is not None
    with NbdClient(Place(disk, facts.socket), 30.0) as client:
        return b"".join(client.pread(1 << 20, at) for at in range(0, client.size_bytes, 1 << 20))


def audit_is_whole(replica: Replica) -> bool:
    """Whether every start and every end of a test has one intent and one outcome."""
    replica.refresh()
    head = replica.manifest.audit
    assert head is not None
    assert audit_check.check(replica.directory, head).problems == []
    found: dict[str, list[str]] = {}
    for line in audit.lines(replica.directory):
        parsed = audit_check.parse(line)
        assert parsed is not None
        found.setdefault(parsed.entry.operation, []).append(parsed.entry.event)
    assert all(events == ["intent", "outcome"] for events in found.values()), found
    return bool(found) and not head.open


# ---- a life ----


def test_a_machine_of_a_point_runs_while_replication_goes_on(
    demo: Path, tmp_path: Path, temporary: Path
) -> None:
    require_tool("qemu-system-x86_64")
    with ingesting(demo, tmp_path / "s"):
        source = Source(tmp_path / "s", {name: bytearray(size) for name, size in SIZES.items()}, 1)
        marked: list[int] = []
        ended = threading.Event()

        def go_on() -> None:
            with Replica.open(demo) as replica:
                while not ended.is_set() or len(marked) < 3:
                    source.act()
                    marked.append(replication.mark(replica).id)

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            done = rollpoint("failover", demo, "--test", "--to", 1, "--operation-id", "t1")
            (shown,) = rollpoint("replica", "show", demo)["tests"]
            ended_test = rollpoint("undo", demo, "--test", "t1")
        finally:
            ended.set()
            thread.join()
            source.close()
    assert (done["kind"], done["state"], done["point"]) == ("test", "Ready", 1)
    assert [step["name"] for step in done["steps"]] == list(trials.STEPS)
    assert "ROLLPOINT FOUND 0 0" in done["steps"][-1]["note"]
    assert (shown["id"], shown["state"], shown["network"], shown["lost"]) == (
        "t1", "running", "none", False,
    )  # fmt: skip
    assert shown["running"]["machine"].startswith("test-t1-")
    assert [row["operation"] for row in ended_test["tests"]] == ["undo-t1"]
    assert rollpoint("replica", "show", demo)["tests"] == []
    with Replica.open(demo) as replica:
        assert [point.id for point in replica.points][-1] == marked[-1]
        assert audit_is_whole(replica)


def test_tests_run_side_by_side_and_each_sees_its_own_point_and_writes(
    demo: Path, temporary: Path
) -> None:
    before = protected.below(demo)
    with Replica.open(demo) as replica:
        for id, point in (("a", "1"), ("b", "1"), ("c", "2")):
            trials.start(replica, point, operation_id=id, power_on=False)
        assert content(demo, "a", "one") == content(demo, "b", "one")
        assert not any(content(demo, "c", "one"))
        facts = trial_places.load_facts(replica.directory, "a")
        assert facts is not None
        with NbdClient(Place("two", facts.socket), 30.0) as client:
            client.pwrite(b"mine" * 1024, 8192)
        assert content(demo, "a", "two")[8192:12288] == b"mine" * 1024
        assert not any(content(demo, "b", "two"))
        shown = {row["id"]: row for row in replica.show()["tests"]}  # type: ignore[attr-defined]
        assert shown["a"]["written_bytes"] >= 4096
        assert [row.operation for row in trials.undo(replica)] == ["undo-a", "undo-b", "undo-c"]
    assert protected.below(demo) == before


def test_the_same_request_twice_happens_once(demo: Path) -> None:
    with Replica.open(demo) as replica:
        first = trials.start(replica, "1", operation_id="t", power_on=False)
        again = trials.start(replica, "2", operation_id="t", power_on=False)
        assert (again.operation, again.point, again.steps) == ("t", 1, first.steps)
        assert len(replica.manifest.tests) == 1
        with replica.locked() as manifest:
            history, manifest.history = manifest.history, []
            replica.save()
        again = trials.start(replica, "2", operation_id="t", power_on=False)
        assert (again.operation, again.point) == ("t", 1)
        assert trial_places.is_served(replica.directory, "t")
        with replica.locked() as manifest:
            manifest.history = history
            replica.save()
        (ended,) = trials.undo(replica, "t")
        (once,) = trials.undo(replica, "t")
        assert once.operation == ended.operation
        assert trials.start(replica, "1", operation_id="t", power_on=False).point == 1
        assert replica.manifest.tests == []
        with pytest.raises(NotFoundError, match="no test failover 'u'"):
            trials.undo(replica, "u")


# ---- what it stands in the way of, and what it does not ----


def test_a_real_failover_and_its_undo_go_on_beside_tests_and_change_nothing_they_read(
    demo: Path, temporary: Path
) -> None:
    """G5: what a test reads through stays the same, whatever the replica goes through."""
    with Replica.open(demo) as replica:
        for id, point in (("one", "1"), ("two", "2")):
            trials.start(replica, point, operation_id=id, power_on=False)
        seen = {(id, disk): content(demo, id, disk) for id in ("one", "two") for disk in SIZES}
        bases = [protected.below(demo)[f"{disk}-flat.vmdk"] for disk in SIZES]

        def check() -> None:
            assert bases == [protected.below(demo)[f"{disk}-flat.vmdk"] for disk in SIZES]
            for (id, disk), data in seen.items():
                assert content(demo, id, disk) == data, (id, disk)

        operation.failover(replica, "2", power_on=False)
        check()
        operation.failover(replica, "1", power_on=False)  # another point of it
        check()
        trials.start(replica, "1", operation_id="in-failover", power_on=False)
        trials.undo(replica, "in-failover")
        operation.undo(replica)
        check()
        replication.hold(replica)
        replication.release(replica)
        assert replica.verify()["ok"]
        check()


def test_permanent_and_remove_are_refused_while_a_test_is_there(
    demo: Path, temporary: Path
) -> None:
    with Replica.open(demo) as replica:
        trials.start(replica, "1", operation_id="t", power_on=False)
        with pytest.raises(StateError, match="test failovers of it are there: t"):
            replica.remove(replica.name)
        operation.failover(replica, "2", power_on=False)
        with pytest.raises(StateError, match="test failovers of it are there: t"):
            operation.permanent(replica)
        assert replica.manifest.state == "Failover"
        assert not any(content(demo, "t", "two"))
        operation.undo(replica)


def test_a_removed_replica_leaves_nothing_of_its_tests(tmp_path: Path) -> None:
    make_demo(tmp_path / "r")
    with Replica.open(tmp_path / "r") as replica:
        trials.start(replica, "1", operation_id="t", power_on=False)
        trials.undo(replica)
        (tmp_path / "r" / "run").mkdir()  # as QEMU makes it for its machines
        trial_places.make(replica.directory, "stray").close()
        replica.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_point_of_a_test_is_kept_as_if_it_were_pinned(demo: Path) -> None:
    with Replica.open(demo) as replica:
        trials.start(replica, "1", operation_id="t", power_on=False)
        assert retention.kept_now(replica.manifest, 0) == {1}
        assert noting.show(replica, "1")["kept"]
        trials.undo(replica)
        assert retention.kept_now(replica.manifest, 0) == set()


def test_what_is_not_known_to_be_isolated_is_no_network_for_a_test(demo: Path) -> None:
    with Replica.open(demo) as replica:
        for name in ("user", "lan", ""):
            with pytest.raises(UsageError, match="no network is isolated"):
                trials.start(replica, "1", network=name)
        fake = Files()
        with pytest.raises(UsageError, match="'lan' is not known to be isolated"):
            trials.start(replica, "1", network="lan", hypervisor=fake)
        (demo / "replica.toml").write_text('[hypervisor]\ntest_network = "lab"\n')
        for wanted, network in ((None, "lab"), ("lab", "lab"), ("none", "none")):
            trials.start(replica, "1", network=wanted, hypervisor=fake)
            assert replica.manifest.tests[-1].network == network
        assert fake.running
        trials.undo(replica, hypervisor=fake)
        assert not fake.running
    assert rollpoint("failover", demo, "--network", "none", code=2)["type"] == "UsageError"
    assert rollpoint("failover", demo, "--test", "--planned", code=2)["type"] == "UsageError"


def test_what_cannot_be_tested_is_refused_and_leaves_nothing(demo: Path) -> None:
    before = set(demo.iterdir())
    with Replica.open(demo) as replica:
        with pytest.raises(NotFoundError):
            trials.start(replica, "9")
        with pytest.raises(UsageError, match="cannot name"):
            trials.start(replica, "1", operation_id="../x")
        (demo / "replica.toml").write_text("[machine]\nmemory = 7\n")
        with pytest.raises(UsageError):
            trials.start(replica, "1")
        assert replica.manifest.tests == []
        assert trial_places.present(replica.directory) == []
    assert set(demo.iterdir()) - before <= {demo / "tests", demo / "run", demo / "audit.jsonl"}


# ---- files ----


class Files(Plain):
    """A hypervisor that takes files only. It keeps its machines, and writes what a test says."""

    kind = "vsphere"
    needs_files = True

    def __init__(self, overlay_kind: str = "vmfsSparse", refuse: str = "") -> None:
        self.overlay_kind = overlay_kind
        self.refuse = refuse
        self.running: dict[str, Machine] = {}

    def start(self, machine: Machine) -> Handle:
        self.running[machine.id] = machine
        if self.refuse == "start":
            raise HypervisorError("no")
        return Handle(machine.id, 1, 0, "")

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        return marker

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        if self.refuse == "power off":
            raise HypervisorError("no")
        self.running.pop(machine_id, None)

    def status(self, machine_id: str) -> State:
        return "running" if machine_id in self.running else "off"


def written(path: Path, socket: Path, points: int, seed: int) -> dict[int, dict[str, bytes]]:
    """A replica, and what its disks held at each point."""
    make(path)
    history = {}
    with ingesting(path, socket), Replica.open(path) as replica:
        source = Source(socket, empty_model(), seed)
        for _ in range(points):
            for _ in range(25):
                source.act()
            history[replication.mark(replica).id] = source.snapshot()
        source.close()
    return history


@pytest.mark.parametrize("kind", ["vmfsSparse", "hosted"])
def test_files_show_the_point_to_a_reader_of_its_own(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r"
    history = written(path, tmp_path / "s", 4, 20261123)
    before = protected.below(path)
    fake = Files(kind)
    with Replica.open(path) as replica:
        for number in (1, 3, 4):
            trials.start(replica, str(number), operation_id=f"t{number}", hypervisor=fake)
        for number in (1, 3, 4):
            (machine,) = (m for m in fake.running.values() if m.point == number)
            for name, drive in zip(names_of(replica), machine.drives, strict=True):
                assert drive.format == "vmdk"
                assert seen_by_qemu(drive.path, tmp_path) == history[number][name]
        operation.failover(replica, "2", power_on=False)
        with pytest.raises(StateError, match="test failovers"):
            operation.permanent(replica)
        operation.undo(replica)
        trials.undo(replica, hypervisor=fake)
        assert not fake.running
    after = protected.below(path)
    assert {name: after[name] for name in before if "log" not in name} == {
        name: before[name] for name in before if "log" not in name
    }
    assert not [file.name for file in path.iterdir() if "-test-" in file.name]


def names_of(replica: Replica) -> list[str]:
    return [disk.name for disk in replica.manifest.disks]


def test_a_test_wants_room_that_replication_does_not_need(demo: Path) -> None:
    with Replica.open(demo) as replica:
        for reserve, error in (("900000T", StateError), ("x%", UsageError), ("x", UsageError)):
            (demo / "replica.toml").write_text(f'[checks]\nreserve = "{reserve}"\n')
            with pytest.raises(error):
                trials.start(replica, "1", power_on=False)
        assert replica.manifest.tests == []
        (demo / "replica.toml").write_text(
            '[checks]\nreserve = "900000T"\n[checks.skip]\nroom = "it is thin"\n'
        )
        trials.start(replica, "1", power_on=False)


def test_a_start_that_is_interrupted_is_taken_back(demo: Path) -> None:
    for moment in (("point", "running"), ("point", "done"), ("convert", "running")):

        def stop(step: Step, at: tuple[str, str] = moment) -> None:
            if (step.name, step.state) == at:
                raise KeyboardInterrupt

        with Replica.open(demo) as replica:
            with pytest.raises(KeyboardInterrupt):
                trials.start(replica, "1", power_on=False, on_step=stop)
            assert replica.manifest.tests == []
            assert trial_places.present(replica.directory) == []
            assert replica.manifest.audit is None or audit_is_whole(replica)


def test_a_test_is_ended_where_it_was_started(demo: Path) -> None:
    fake = Files()
    with Replica.open(demo) as replica:
        trials.start(replica, "1", operation_id="t", hypervisor=fake)
        with pytest.raises(StateError, match=r"on vsphere, and replica\.toml names qemu"):
            trials.undo(replica, "t")
        assert fake.running
        trials.undo(replica, "t", hypervisor=fake)
        assert not fake.running


@pytest.mark.parametrize("refuse", ["start", "power off"])
def test_a_start_or_an_end_that_fails_leaves_nothing_or_is_asked_again(
    tmp_path: Path, refuse: str
) -> None:
    path = tmp_path / "r"
    written(path, tmp_path / "s", 1, 1)
    fake = Files(refuse=refuse)
    with Replica.open(path) as replica:
        if refuse == "start":
            with pytest.raises(HypervisorError):
                trials.start(replica, "1", operation_id="t", hypervisor=fake)
            assert replica.manifest.history[-1].outcome == "rolled back"
        else:
            trials.start(replica, "1", operation_id="t", hypervisor=fake)
            with pytest.raises(HypervisorError):
                trials.undo(replica, hypervisor=fake)
            assert [trial.state for trial in replica.manifest.tests] == ["ending"]
            fake.refuse = ""
            done = operation.resume(replica, hypervisor=fake)
            assert done is not None
            assert done.kind == "sweep"
        assert replica.manifest.tests == []
        assert not fake.running
        assert audit_is_whole(replica)
    assert not [file.name for file in path.iterdir() if "-test-" in file.name]


def test_a_file_in_the_place_of_a_tests_disk_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "r"
    written(path, tmp_path / "s", 1, 1)
    (path / "a-test-t-delta.vmdk").write_bytes(b"mine")
    with Replica.open(path) as replica:
        with pytest.raises(ExistsError, match="move it away"):
            trials.start(replica, "1", operation_id="t", hypervisor=Files())
        assert replica.manifest.tests == []
    assert (path / "a-test-t-delta.vmdk").read_bytes() == b"mine"


# ---- killed ----


def crash(path: Path, action: str, kind: str, moment: int) -> int | None:
    """A start or an end that is killed at that moment; None: it was. Else how many there are."""
    done = subprocess.run(
        [sys.executable, "tests/trial_crash.py", path, path.parent / "world", action, kind,
         str(moment)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def clear_up(replica: Replica, how: int, world: World) -> None:
    """Each of the ways in which leftovers go."""
    if how == 0:
        trials.start(replica, "2", operation_id="next", hypervisor=world, power_on=False)
        trials.undo(replica, "next", hypervisor=world)
    elif how == 1:
        operation.resume(replica, hypervisor=world)
    trials.undo(replica, hypervisor=world)


@pytest.mark.parametrize(
    ("action", "kind", "stride"),
    [
        ("start", "files", 13),
        ("undo", "nbd", 13),
        *(
            pytest.param(action, kind, 1, marks=pytest.mark.long)
            for action in ("start", "undo")
            for kind in ("nbd", "files")
        ),
    ],
)
def test_killed_at_any_moment_a_test_is_as_before_or_done_or_cleared_away(
    tmp_path: Path, temporary: Path, action: str, kind: str, stride: int
) -> None:
    template, path = tmp_path / "template", tmp_path / "r"
    make_demo(template)
    world = World(tmp_path / "world", kind == "files")
    moment, count = 0, None
    while count is None:
        shutil.copytree(template, path)
        bases = protected.below(path)
        if action == "undo":
            assert crash(path, "start", kind, -1)
        count = crash(path, action, kind, moment)
        with Replica.open(path) as replica:
            running = [trial for trial in replica.manifest.tests if trial.state == "running"]
            if running and kind == "nbd":
                assert trial_places.is_served(replica.directory, "t")
            clear_up(replica, moment % 3, world)
            assert replica.manifest.tests == []
            assert trial_places.present(replica.directory) == [], moment
            assert not list((tmp_path / "world").iterdir()), moment
            wait_until(lambda: not processes_below(path), f"nothing runs: {moment}")
            assert not viewers.present(replica.directory)
            assert ends_once(replica), moment
            after = protected.below(path)
            assert {name: after.get(name) for name in bases} == bases
            assert sorted(after) == sorted(bases)
        shutil.rmtree(path)
        moment += stride
    assert count > 8
    with Replica.open(template) as replica:  # what a killed process left goes with the next
        trials.start(replica, "1", power_on=False)
        trials.undo(replica)


def ends_once(replica: Replica) -> bool:
    """Whether every intent has one outcome: whatever was killed."""
    head = replica.manifest.audit
    if head is None:
        return True
    found: dict[str, list[str]] = {}
    assert audit_check.check(replica.directory, head).problems == []
    for line in audit.lines(replica.directory):
        parsed = audit_check.parse(line)
        assert parsed is not None
        found.setdefault(parsed.entry.operation, []).append(parsed.entry.event)
    return not head.open and all(each == ["intent", "outcome"] for each in found.values())


def test_a_test_whose_disks_process_is_killed_is_lost_and_can_be_ended(demo: Path) -> None:
    with Replica.open(demo) as replica:
        trials.start(replica, "1", operation_id="t", power_on=False)
        os.kill(pid_of(demo, "t"), signal.SIGKILL)
        wait_until(lambda: not trial_places.is_served(replica.directory, "t"), "it is gone")
        (shown,) = rollpoint("replica", "show", demo)["tests"]
        assert (shown["state"], shown["lost"]) == ("running", True)
        trials.start(replica, "1", operation_id="u", power_on=False)
        assert [trial.id for trial in replica.manifest.tests] == ["u"]
        trials.undo(replica, "u")
        assert audit_is_whole(replica)


def test_two_that_start_one_test_are_one_and_one_that_is_told(demo: Path) -> None:
    with (
        Replica.open(demo) as replica,
        trial_places.used(replica.directory, "t"),
        Replica.open(demo) as other,
        pytest.raises(LockedError, match="being started, or ended"),
    ):
        trials.start(other, "1", operation_id="t", power_on=False)


def test_a_replica_that_is_busy_costs_no_test_its_disks(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "LOCK_SECONDS", 0.01)
    with Replica.open(demo) as replica, Replica.open(demo) as other:
        trials.start(replica, "1", operation_id="t", power_on=False)
        for asking in (replica, Replica.open(demo)):
            with other.locked(), pytest.raises(LockedError):
                trials.start(asking, "1", operation_id="t", power_on=False)
            with other.locked(), pytest.raises(LockedError):
                trials.undo(asking, "t")
        assert trial_places.is_served(replica.directory, "t")
        assert not any(content(demo, "t", "two"))
        trials.undo(replica, "t")


@pytest.mark.parametrize(
    "when",
    [
        "before its machine is on",
        pytest.param("before its disks are there", marks=pytest.mark.long),
    ],
)
def test_a_start_whose_disks_process_is_killed_fails_and_leaves_nothing(
    demo: Path, tmp_path: Path, when: str
) -> None:
    class Killer(World):
        def start(self, machine: Machine) -> Handle:
            kill()
            return super().start(machine)

    def kill() -> None:
        os.kill(pid_of(demo, "t"), signal.SIGKILL)
        with Replica.open(demo) as other:
            wait_until(lambda: not trial_places.is_served(other.directory, "t"), "it is gone")

    def watch(step: Step) -> None:
        if when.startswith("before its disks") and (step.name, step.state) == ("disks", "running"):
            kill()

    world = Killer(tmp_path / "world", False)
    with Replica.open(demo) as replica:
        with pytest.raises(HypervisorError, match="disks of the test failover"):
            trials.start(replica, "1", operation_id="t", hypervisor=world, on_step=watch)
        assert replica.manifest.tests == []
        assert replica.manifest.history[-1].outcome == "rolled back"
        assert trial_places.present(replica.directory) == []
        assert not list((tmp_path / "world").iterdir())
        assert audit_is_whole(replica)
        trials.start(replica, "1", power_on=False)  # sweeps what the killed one left elsewhere


@pytest.mark.long
def test_many_commands_at_once_start_and_end_tests_while_replication_goes_on(
    demo: Path, tmp_path: Path
) -> None:
    def command(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "rollpoint", *words, "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ended(process: subprocess.Popen[str]) -> int:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        return process.returncode

    with ingesting(demo, tmp_path / "s", 0.1):
        source = Source(tmp_path / "s", {name: bytearray(size) for name, size in SIZES.items()}, 1)
        begun = [
            command("failover", str(demo), "--test", "--to", "1", "--no-power-on",
                    "--operation-id", f"t{number}")
            for number in range(4)
        ]  # fmt: skip
        while any(process.poll() is None for process in begun):
            source.act()
        assert [ended(process) for process in begun] == [0] * 4
        shown = rollpoint("replica", "show", demo)["tests"]
        assert [(row["state"], row["lost"]) for row in shown] == [("running", False)] * 4
        over = [command("undo", str(demo), "--test", f"t{number}") for number in range(4)]
        assert [ended(process) for process in over] == [0] * 4
        source.close()
    with Replica.open(demo) as replica:
        assert replica.manifest.tests == []
        assert audit_is_whole(replica)


@pytest.mark.parametrize(
    "what", ["the command", pytest.param("the machine", marks=pytest.mark.long)]
)
def test_a_machine_that_is_on_goes_whoever_was_killed(demo: Path, what: str) -> None:
    require_tool("qemu-system-x86_64")
    if what == "the command":
        (demo / "replica.toml").write_text(MACHINE.replace("FOUND", "NEVER"))
    process = subprocess.Popen(
        [sys.executable, "-m", "rollpoint", "failover", demo, "--test", "--to", "1",
         "--operation-id", "t"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    if what == "the command":
        wait_until(
            lambda: any("ROLLPOINT" in log.read_text() for log in demo.glob("run/*/console.log")),
            "the machine runs",
        )
        process.kill()
    process.wait(60)
    with Replica.open(demo) as replica:
        running = replica.manifest.tests[0].running
        assert running is not None
        if what == "the machine":
            Qemu(demo / "run").kill(running.machine)
            (shown,) = rollpoint("replica", "show", demo)["tests"]
            assert not shown["lost"]  # it may be started again; until undo
            trials.undo(replica, "t")
        else:
            assert Qemu(demo / "run").status(running.machine) == "running"
            done = operation.resume(replica)
            assert done is not None
            assert done.kind == "sweep"
        assert replica.manifest.tests == []
    wait_until(lambda: not processes_below(demo), "nothing runs")
    assert not [place for place in (demo / "run").iterdir() if place.is_dir()]


# ---- guests ----


@pytest.fixture
def guest(guests: Shelf, tmp_path: Path, temporary: Path) -> Iterator[Path]:
    """A replica of a small Linux guest, made for other hardware."""
    path = tmp_path / "g"
    protected.protect(path, guests.disk("plain"))
    protected.configure(path, marker="TINY-READY")
    before = protected.below(path)
    yield path
    with Replica.open(path) as replica:
        trials.undo(replica)
    assert protected.below(path) == before


def test_the_guest_is_converted_on_the_disks_of_the_test_alone(guest: Path) -> None:
    for name in ("bwrap", "nbdfuse", "e2fsck", "fuse2fs"):
        require_tool(name)
    with Replica.open(guest) as replica:
        done = trials.start(replica, power_on=False)
        note = {step.name: step.note for step in done.steps}["convert"]
        assert "changes in" in note
        assert "files mode" in note
        assert not (guest / "conversion.json").exists()  # that is a failover's


@pytest.mark.boots
@pytest.mark.parametrize("kind", ["nbd", "files"])
def test_a_guest_of_other_hardware_starts_in_a_test(guest: Path, kind: str) -> None:
    hypervisor = Qemu(guest / "run")
    if kind == "files":
        hypervisor.needs_files = True
    with Replica.open(guest) as replica:
        done = trials.start(replica, hypervisor=hypervisor)
        assert "TINY-READY" in done.steps[-1].note
        trials.undo(replica, hypervisor=hypervisor)


def test_disks_are_served_only_for_a_test_that_somebody_knows_of(demo: Path) -> None:
    with Replica.open(demo) as replica:
        assert not trial_disks._is_running(replica, "t")
        trials.start(replica, "1", operation_id="t", power_on=False)
        assert trial_disks._is_running(replica, "t")
        trials.undo(replica)
        assert not trial_disks._is_running(replica, "t")
        (demo / "replica.json").rename(demo / "away")  # as where all of it was taken away
        assert not trial_disks._is_running(replica, "t")
        (demo / "away").write_bytes((demo / "away").read_bytes()[:-9])
        (demo / "away").rename(demo / "replica.json")
        assert trial_disks._is_running(replica, "t")  # nobody can tell
    shutil.rmtree(demo)
    make_demo(demo)  # for the fixture, which looks at it once more
