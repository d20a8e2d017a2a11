"""One replica's operation for a plan: done once, whatever ends the process that does it."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import pytest
from rollpoint import audit, audit_check, operation, trials
from rollpoint.config_tables import HypervisorTable
from rollpoint.errors import Error, HypervisorError, LockedError, StateError, UsageError
from rollpoint.plans import doing
from rollpoint.plans.doing import Deed, Done, act
from rollpoint.plans.tables import RunKind
from rollpoint.replica import Replica
from stage import SOURCE, Stage, read
from worlds import Trouble, World


def staged(folder: Path, needs_files: bool = False) -> Stage:
    """A replica with two restore points, and a source that is on."""
    folder.mkdir(parents=True, exist_ok=True)
    stage, rng = Stage(folder, World(needs_files=needs_files)), random.Random(7)
    for _ in range(2):
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
    again = do(stage, "undo", "later-web-1", former=former("back-web-1", "failback"))
    assert (again.state, again.operation) == ("Failover", "")  # the failover is not its own
    undone = do(stage, "undo", "undo2-web-1", former=former("run-web-1"))
    assert (undone.state, undone.kind, stage.world.on()) == ("Ready", "undo", set())
    again = do(stage, "undo", "later-1", former=former("run-web-1"))
    assert (again.operation, again.state) == ("", "Ready")
    assert "it was not failed over any more" in again.warnings[0]
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


def test_what_a_test_did_cannot_become_permanent(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    with pytest.raises(UsageError, match="was a test failover"):
        do(stage, "permanent", "end-web-1", former=former("run-web-1", "test"))
    with pytest.raises(UsageError, match="cannot be undone"):
        do(stage, "undo", "end-web-1", former=former("run-web-1", "commit"))


def test_a_change_of_the_point_leaves_the_failover_the_plans(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    stage.world.cut_power(SOURCE)
    do(stage, "unplanned", "run-web-1")
    with stage.replica() as replica:
        operation.failover(replica, 1, hypervisor=stage.hypervisor, source=stage.hypervisor)
    assert do(stage, "undo", "undo-web-1", former=former("run-web-1")).state == "Ready"


# ---- tries that fail ----


def refusing(*calls: str) -> Callable[[str, str], Trouble]:
    return lambda call, machine: "refused" if call in calls else ""


def test_a_try_that_failed_says_so_again_and_the_next_one_is_another(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    stage.world.cut_power(SOURCE)
    stage.world.trouble = refusing("start")
    with pytest.raises(HypervisorError, match="out of resources"):
        do(stage, "unplanned", "run-web-1")
    stage.world.trouble = refusing()
    with pytest.raises(StateError, match=r"rolled back: power on: .*resources") as found:
        do(stage, "unplanned", "run-web-1")
    assert "rollpoint plan retry" in found.value.hint
    assert do(stage, "unplanned", "run-web-2").state == "Failover"


def test_a_try_whose_taking_back_failed_is_taken_back_first(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    stage.world.cut_power(SOURCE)
    stage.world.trouble = refusing("start", "power_off")
    with pytest.raises(HypervisorError):
        do(stage, "unplanned", "run-web-1")
    assert stage.manifest.state == "Failed"
    stage.world.trouble = refusing()
    done = do(stage, "unplanned", "run-web-2")
    assert (done.operation, done.state) == ("run-web-2", "Failover")
    assert [one.outcome for one in stage.manifest.history][-2:] == ["rolled back", "done"]


def test_a_try_that_was_killed_is_gone_on_with_by_the_next(tmp_path: Path) -> None:
    life = LIVES["unplanned"]
    with begun(tmp_path / "r", life) as stage:
        assert killed_at(stage, of_life(stage, life), 20)
        done = do(stage, "unplanned", "run-web-2")
        assert (done.operation, done.state) == ("run-web-1", "Failover")
        assert stage.world.starts()["run-web-1"] == 1


def test_a_failover_that_was_killed_can_be_undone(tmp_path: Path) -> None:
    life = LIVES["planned"]
    with begun(tmp_path / "r", life) as stage:
        assert killed_at(stage, of_life(stage, life), 38)
        done = do(stage, "undo", "undo-web-1", former=former("run-web-1", "planned"))
        assert (done.operation, done.state, stage.world.on()) == ("", "Ready", {SOURCE})
        assert stage.manifest.history[-1].outcome == "rolled back"
        assert not stage.manifest.held


def test_a_switch_that_failed_is_tried_again_without_copying_again(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    stage.world.cut_power(SOURCE)
    do(stage, "unplanned", "run-web-1")
    stage.world.trouble = refusing("shut_down")
    with pytest.raises(HypervisorError):
        do(stage, "failback", "back-web-1", former=former("run-web-1"))
    assert stage.manifest.state == "ReadyToSwitch"
    stage.world.trouble = refusing("power_on")
    with pytest.raises(HypervisorError):
        do(stage, "failback", "back-web-2", former=former("run-web-1"))
    assert stage.manifest.state == "Failed"
    stage.world.trouble = refusing()
    done = do(stage, "failback", "back-web-3", former=former("run-web-1"))
    assert (done.operation, done.state) == ("back-web-2", "Failback")
    copies = [one.id for one in stage.manifest.history if one.kind == "failback"]
    assert copies == ["back-web-1.copy"]


def test_a_lock_that_somebody_has_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = staged(tmp_path)
    stage.world.cut_power(SOURCE)
    monkeypatch.setattr(doing, "WAIT_SECONDS", 0.2)
    with stage.replica() as other:
        with other.locked(), pytest.raises(LockedError, match="run-web-1 has not begun"):
            do(stage, "unplanned", "run-web-1")
        monkeypatch.setattr(doing, "WAIT_SECONDS", 30.0)
        sleeps = []

        def sleep(seconds: float) -> None:
            sleeps.append(seconds)
            holding.close()

        holding = contextlib.ExitStack()
        holding.enter_context(other.locked())
        monkeypatch.setattr(doing, "_sleep", sleep)
        assert do(stage, "unplanned", "run-web-1").state == "Failover"
    assert len(sleeps) == 1


# ---- networks, ids, memory ----


def test_a_plan_gives_all_cards_its_network(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    toml = stage.path / "replica.toml"
    toml.write_text(toml.read_text() + '\n[machine]\nnic = "e1000"\nnetwork = "none"\n')
    stage.world.cut_power(SOURCE)
    do(stage, "unplanned", "run-web-1", network="user")
    cards = stage.world.things[stage.machine].machine.cards
    assert [card.network for card in cards] == ["user"]


@pytest.mark.parametrize(
    ("network", "map"), [({"LAN": "DR"}, {"LAN": "DR"}), ("DR", {"*": "DR"})]
)
def test_a_map_of_networks_is_the_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: object, map: dict[str, str]
) -> None:
    stage = staged(tmp_path)
    toml = stage.path / "replica.toml"
    toml.write_text(toml.read_text() + '\n[hypervisor]\nnetworks = {"LAN" = "x", "*" = "y"}\n')
    stage.world.cut_power(SOURCE)
    opened = []

    def opens(table: HypervisorTable, directory: str) -> object:
        opened.append((table.networks, directory))
        return stage.hypervisor

    monkeypatch.setattr("rollpoint.hypervisors.open_hypervisor", opens)
    over = deed(stage, "unplanned", "run-web-1", network=network)
    done = act(over, tell=lambda step, state: None, source=stage.hypervisor)
    assert done.state == "Failover"
    assert opened == [(map, str(stage.path))]


def test_a_plan_says_which_network_is_isolated(tmp_path: Path) -> None:
    stage = Stage(tmp_path, World(kind="vsphere", needs_files=True))
    stage.write(random.Random(1))
    stage.mark()
    toml = stage.path / "replica.toml"
    toml.write_text(toml.read_text() + '\n[machine]\nnic = "e1000"\n')
    done = do(stage, "test", "run-web-1", test_network="lab")
    machine = stage.world.things[done.machine["id"]].machine
    assert [card.network for card in machine.cards] == ["lab"]
    do(stage, "undo", "undo-web-1", former=former("run-web-1", "test"))


def test_an_id_of_any_length_names_a_test(tmp_path: Path) -> None:
    stage, id = staged(tmp_path), "a long name of a plan " * 5 + "-1"
    done = do(stage, "test", id)
    assert done == do(stage, "test", id)
    ended = do(stage, "undo", "undo-web-1", former=former(id, "test"))
    assert (ended.kind, stage.world.on()) == ("undo test", {SOURCE})


def test_what_the_replica_has_forgotten_is_in_its_report(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    stage.world.cut_power(SOURCE)
    done = do(stage, "unplanned", "run-web-1")
    with stage.replica() as replica, replica.locked() as manifest:
        manifest.history = []
        replica.save()
    assert do(stage, "unplanned", "run-web-1") == done


def test_an_operation_knows_its_steps_and_where_the_guest_is(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    toml = stage.path / "replica.toml"
    card = '\n[[guest.network]]\nmac = "52:54:00:00:00:01"\naddresses = ["192.0.2.7/24"]\n'
    toml.write_text(toml.read_text() + card)
    stage.world.cut_power(SOURCE)
    told: list[tuple[str, str]] = []
    done = act(
        deed(stage, "unplanned", "run-web-1", skip={"clock": "no NTP here"}),
        tell=lambda step, state: told.append((step, state)),
        hypervisor=stage.hypervisor,
        source=stage.hypervisor,
    )
    names = [step["name"] for step in done.steps]
    assert told == [(name, state) for name in names for state in ("running", "done")]
    assert done.address == "192.0.2.7"
    skipped = [one["reason"] for one in done.checks if one["state"] == "skipped"]
    assert skipped == ["no NTP here"]
    assert done.audit["lines"] > 0


# ---- many at once ----


def test_many_replicas_at_once_in_one_process(tmp_path: Path) -> None:
    # The disks of a test are files, or served by a process of their own, which takes long.
    stages = [staged(tmp_path / str(number), number % 4 > 0) for number in range(16)]
    start, ending = threading.Barrier(len(stages)), threading.Event()
    problems: list[BaseException] = []

    def life(stage: Stage) -> None:
        start.wait()
        try:
            do(stage, "test", "test-web-1", point="1")
            do(stage, "undo", "undo-web-1", former=former("test-web-1", "test"))
            do(stage, "planned", "run-web-1")
            assert stage.overlays() == stage.now()
            do(stage, "undo", "undo2-web-1", former=former("run-web-1"))
            assert stage.world.violations == []
        except BaseException as error:
            problems.append(error)

    def others() -> None:  # as hypervisors do it: a child has all locks until it is a program
        while not ending.is_set():
            subprocess.run(["true"], check=True)

    forking = threading.Thread(target=others)
    threads = [threading.Thread(target=life, args=(stage,)) for stage in stages]
    for thread in (forking, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    ending.set()
    forking.join()
    if problems:
        raise problems[0]


FIRST_USE = """
import sys, threading
import msgspec
from rollpoint.config import Config
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(16)
def read():
    barrier.wait()
    msgspec.convert({"source": {"disks": {"a": "b"}}, "guest": {"network": []}}, Config)
threads = [threading.Thread(target=read) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_sixteen_threads_may_read_their_first_table_at_once() -> None:
    for _ in range(3):  # without structs.prepared, three of ten die by a segmentation fault
        done = subprocess.run([sys.executable, "-c", FIRST_USE], env=os.environ, check=False)
        assert done.returncode == 0


# ---- kill -9 ----


@dataclass
class Life:
    """One deed, and how things have to be when it has been done, whatever ended it before.

    Args:
        on: Machines that run then; "replica" and "test" stand for those.
    """

    kind: RunKind
    state: str
    on: set[str]
    former: str = ""  # kind of run
    before: tuple[RunKind, ...] = ()
    needs_files: bool = False


LIVES = {
    "unplanned": Life("unplanned", "Failover", {"replica"}),
    "planned": Life("planned", "Failover", {"replica"}),
    "undo": Life("undo", "Ready", set(), "unplanned", ("unplanned",)),
    "permanent": Life("permanent", "Permanent", set(), "unplanned", ("unplanned",)),
    "failback": Life("failback", "Failback", {SOURCE}, "unplanned", ("unplanned",)),
    "undo failback": Life(
        "undo", "Failover", {"replica"}, "failback", ("unplanned", "failback")
    ),
    "commit": Life("commit", "Ready", {SOURCE}, "failback", ("unplanned", "failback")),
    "test": Life("test", "Ready", {SOURCE, "test"}),
    "test of files": Life("test", "Ready", {SOURCE, "test"}, needs_files=True),
    "undo test": Life("undo", "Ready", {SOURCE}, "test", ("test",)),
    "undo test of files": Life("undo", "Ready", {SOURCE}, "test", ("test",), needs_files=True),
}
KEPT_OF_WORLD = [one.name for one in fields(World) if one.name not in ("trouble", "moment")]


def prepared(folder: Path, life: Life) -> Stage:
    """Where the life begins."""
    folder.mkdir()
    stage, rng = Stage(folder, World(needs_files=life.needs_files)), random.Random(7)
    for _ in range(2):
        stage.write(rng)
        stage.mark()
    if life.kind != "planned" and "test" not in (life.kind, life.former):
        stage.world.cut_power(SOURCE)
    id = ""
    for kind in life.before:
        done = do(stage, kind, f"{kind}-web-1", former=former(id))
        id = done.operation
        if kind == "unplanned":
            model = {name: bytearray(data) for name, data in stage.overlays().items()}
            stage.write_in_guest(rng, model)
    return stage


def of_life(stage: Stage, life: Life) -> Deed:
    said = {"former": former(f"{life.before[-1]}-web-1", life.former)} if life.before else {}
    return deed(stage, life.kind, "run-web-1", **said)


def do_again(stage: Stage, life: Life) -> Done:
    """As another process does it."""
    return act(
        of_life(stage, life),
        tell=lambda step, state: None,
        hypervisor=stage.hypervisor,
        source=stage.hypervisor,
    )


class Moments:
    """Before and after all that leaves a trace; at one of them the process is killed."""

    def __init__(self, stage: Stage, wanted: int, kept: Path) -> None:
        self._stage, self._wanted, self._kept = stage, wanted, kept
        self.passed = 0

    def pass_one(self, *_: object) -> None:
        if self.passed == self._wanted:
            self._keep()
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def _keep(self) -> None:
        """The world outlives the process."""
        world = self._stage.world
        self._kept.write_bytes(
            pickle.dumps({name: getattr(world, name) for name in KEPT_OF_WORLD})
        )

    def watched(self, call: Callable[..., object]) -> Callable[..., object]:
        def watching(*arguments: object, **named: object) -> object:
            self.pass_one()
            result = call(*arguments, **named)
            self.pass_one()
            return result

        return watching

    def live(self, deed: Deed) -> None:
        """Does the deed, and tells at its end how many moments it had."""
        self._stage.world.moment = self.pass_one
        Replica.save = self.watched(Replica.save)  # type: ignore[method-assign]
        act(
            deed,
            tell=self.pass_one,
            hypervisor=self._stage.hypervisor,
            source=self._stage.hypervisor,
        )
        self._keep()
        self._kept.with_name("moments").write_text(str(self.passed))


def killed_at(stage: Stage, deed: Deed, moment: int) -> bool:
    """Whether it came to that moment, and was killed there; the world is as it left it."""
    kept = stage.folder / "world"
    child = os.fork()
    if child == 0:
        try:
            Moments(stage, moment, kept).live(deed)
        finally:
            os._exit(0 if kept.with_name("moments").exists() else 1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the deed failed at moment {moment}"
    for name, value in pickle.loads(kept.read_bytes()).items():
        setattr(stage.world, name, value)
    return code != 0


def content(stage: Stage, life: Life) -> object:
    """What there is for people to lose: of all disks, wherever they are used now."""
    manifest = stage.manifest
    targets = {name: Path(place).read_bytes() for name, place in stage.files.items()}
    if manifest.state == "Permanent":
        return targets, {disk.name: read(stage.path / disk.base) for disk in manifest.disks}
    if manifest.recovered is not None:
        return targets, stage.overlays()
    with stage.replica() as replica:
        ids = [point.id for point in replica.points]
    shown = [stage.at(id) for id in ids]
    return targets, [now for before, now in pairwise([None, *shown]) if now != before]


def switched(stage: Stage) -> list[tuple[str, bool]]:
    """What was switched on and off in this world: the effects that people feel."""
    log = stage.world.log
    return [(what, name == SOURCE) for what, name, _ in log if what in ("on", "off")]


def check_life(
    stage: Stage, life: Life, first: Done, wanted: object, powers: list[tuple[str, bool]]
) -> None:
    """It was done once, whole, and its record says so."""
    done = do_again(stage, life)
    assert (done.operation, done.kind, done.state) == (first.operation, first.kind, life.state)
    assert (done.evidence == []) == (first.evidence == [])
    if life.kind not in ("planned", "commit"):  # what they mark, they may mark twice
        assert done.point == first.point
    assert [step["name"] for step in done.steps] == [step["name"] for step in first.steps]
    trial = f"test-run-web-1-{stage.machine[:8]}"
    assert stage.world.on() == {
        {"replica": stage.machine, "test": trial}.get(name, name) for name in life.on
    }
    assert stage.world.violations == []
    if life.kind != "test":  # whose start, cut short, is cleared away and begun again
        assert switched(stage) == powers
    assert content(stage, life) == wanted
    manifest = stage.manifest
    assert manifest.operation is None
    assert [one.id for one in manifest.history].count(done.operation) == 1
    with stage.replica() as replica:
        lines = [audit_check.parse(line) for line in audit.lines(replica.directory)]
    said = [one.entry.event for one in lines if one and one.entry.operation == done.operation]
    assert said.count("intent") == said.count("outcome")
    assert said.count("intent") <= (2 if life.kind == "test" else 1)
    again = act(
        of_life(stage, life),
        tell=lambda step, state: pytest.fail(f"{step} was done again"),
        hypervisor=stage.hypervisor,
        source=stage.hypervisor,
    )
    assert again == done


@contextlib.contextmanager
def begun(folder: Path, life: Life) -> Iterator[Stage]:
    """A stage of which no process stays."""
    stage = prepared(folder, life)
    try:
        yield stage
    finally:
        stage.world.moment = lambda when, call: None
        with stage.replica() as replica:
            trials.undo(replica, hypervisor=stage.hypervisor)


def killed_everywhere(folder: Path, life: Life, moments_of: Callable[[int], list[int]]) -> None:
    with begun(folder / "whole", life) as stage:
        assert not killed_at(stage, of_life(stage, life), -1)
        moments = int((stage.folder / "moments").read_text())
        first, wanted = do_again(stage, life), content(stage, life)
        powers = switched(stage)
        check_life(stage, life, first, wanted, powers)
    for moment in moments_of(moments):
        with begun(folder / str(moment), life) as stage:
            assert killed_at(stage, of_life(stage, life), moment)
            try:
                check_life(stage, life, first, wanted, powers)
            except (AssertionError, Error) as error:
                raise AssertionError(f"killed at moment {moment} of {moments}") from error


@pytest.mark.parametrize("name", LIVES)
def test_a_kill_at_some_moments_changes_nothing(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    killed_everywhere(tmp_path, LIVES[name], lambda count: rng.sample(range(count), 2))


@pytest.mark.long
@pytest.mark.parametrize("name", LIVES)
def test_a_kill_at_any_moment_changes_nothing(tmp_path: Path, name: str) -> None:
    killed_everywhere(tmp_path, LIVES[name], lambda count: list(range(count)))
