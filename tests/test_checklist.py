"""Before a replica is powered on: named checks, each of which finds what it is there for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import UNFENCED
from killing import FileHypervisor, Snapshot, feed
from rollpoint import _native, checklist, config, manifest, operation, replication
from rollpoint.errors import Error, StateError, UsageError
from rollpoint.hypervisor.base import Conflict, Machine, State
from rollpoint.journal import open_journal
from rollpoint.manifest import Operation, Step
from rollpoint.replica import Replica
from rollpoint.units import parse_time

SOURCE = '[source]\nmachine = "web"\n'


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Snapshot]]:
    return feed(tmp_path_factory.mktemp("fed"))


class Site(FileHypervisor):
    """Where the source runs. then: its states at one look after the other."""

    def __init__(self, path: Path, *then: State) -> None:
        super().__init__(path)
        self.then = list(then)
        self.looks = 0

    def is_known(self, machine_id: str) -> bool:
        return machine_id == "web"

    def status(self, machine_id: str) -> State:
        self.looks += 1
        return self.then.pop(0) if len(self.then) > 1 else self.then[0]


class Crowded(FileHypervisor):
    def conflicts(self, machine: Machine) -> list[Conflict]:
        return [Conflict("mac", "52:54:00:12:34:56", "machine mail")]


@pytest.fixture
def path(fed: tuple[Path, list[Snapshot]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(fed[0], tmp_path / "r"))


def said(path: Path, text: str) -> None:
    (path / "replica.toml").write_text(text)


def failover(path: Path, here: FileHypervisor, **how: Any) -> Operation:
    """Fail over; returns what is recorded of it."""
    with Replica.open(path) as replica:
        operation.failover(replica, hypervisor=here, **how)
        return replica.manifest.history[-1]


def refused(path: Path, here: FileHypervisor, match: str, **how: Any) -> StateError:
    """It is refused, and nothing is other than before."""
    before = Replica.open(path).manifest
    files = sorted(entry.name for entry in path.iterdir())
    with pytest.raises(StateError, match=match) as caught:
        failover(path, here, **how)
    after = Replica.open(path).manifest
    assert (after.state, after.held, after.recovered) == ("Ready", False, None)
    assert after.operation is None
    assert after.history[-1].outcome == "rolled back"
    assert here.starts() == []
    left = {entry.name for entry in path.iterdir()} - set(files)
    assert left <= {"audit.jsonl", "replica.lock", "reports"}, left
    assert after.epoch >= before.epoch
    return caught.value


def states(done: Operation) -> dict[str, str]:
    return {check.name: check.state for check in done.checks}


def test_a_source_of_which_nothing_is_known_is_not_off(path: Path, tmp_path: Path) -> None:
    """Refused before the hold, with what to do; with a reason it goes, and the reason stays."""
    here = FileHypervisor(tmp_path / "here")
    error = refused(path, here, "nothing proves that the source is out of action")
    assert "--skip NAME=REASON" in error.hint
    assert Replica.open(path).manifest.epoch == 1, "replication went on all the time"
    done = failover(path, here, skip={"source-fenced": "its rack has no power"})
    assert [(one.kind, one.says) for one in done.evidence] == [
        ("overridden", "its rack has no power")
    ]
    lines = [json.loads(line) for line in (path / "audit.jsonl").read_text().splitlines()]
    outcome = next(line for line in lines if line["operation"] == done.id and "result" in line)
    assert outcome["evidence"][0]["kind"] == "overridden"
    (check,) = (one for one in outcome["checks"] if one["name"] == "source-fenced")
    assert (check["state"], check["reason"]) == ("skipped", "its rack has no power")


def test_nothing_that_is_powered_on_nothing_to_prove(path: Path, tmp_path: Path) -> None:
    done = failover(path, FileHypervisor(tmp_path / "here"), power_on=False)
    assert states(done) == {"state": "passed", "clock": "passed"}
    assert done.evidence == []


def test_a_source_that_is_off_is_looked_at_again_after_the_hold(
    path: Path, tmp_path: Path
) -> None:
    said(path, SOURCE)
    site = Site(tmp_path / "site", "off")
    done = failover(path, FileHypervisor(tmp_path / "here"), source=site)
    assert set(states(done)) == set(checklist.NAMES)
    assert set(states(done).values()) == {"passed"}
    assert site.looks == 2
    held_ns = done.step("hold").started_ns
    assert held_ns is not None
    seen = [parse_time(one.time) for one in done.evidence]
    assert len(seen) == 2
    # Times of evidence are in whole microseconds.
    assert seen[0] < held_ns <= seen[1] + 1000


@pytest.mark.parametrize("now", ["running", "paused"])
def test_a_source_that_comes_back_meanwhile_stops_it_before_power_on(
    path: Path, tmp_path: Path, now: State
) -> None:
    said(path, SOURCE)
    site = Site(tmp_path / "site", "off", now)
    refused(path, FileHypervisor(tmp_path / "here"), "machine web is not off", source=site)


def test_a_process_that_slept_after_the_checks_looks_again_at_the_call(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RELIABILITY 6.4: paused for ten minutes between the check and the power-on call."""
    said(path, SOURCE)
    site = Site(tmp_path / "site", "off", "off", "running")
    late = 0
    real = checklist.time.time_ns

    def tell(step: Step) -> None:
        nonlocal late
        if step.name == "power on":
            late = 600_000_000_000

    made = checklist.Context

    def context(*arguments: Any, **named: Any) -> checklist.Context:
        return made(*arguments, **named, now_ns=lambda: real() + late)

    monkeypatch.setattr(checklist, "Context", context)
    here = FileHypervisor(tmp_path / "here")
    refused(path, here, "machine web is not off", source=site, on_step=tell)


def test_a_policy_may_take_no_override(path: Path, tmp_path: Path) -> None:
    said(path, '[fencing]\naccept = ["powered_off_confirmed"]\n')
    here = FileHypervisor(tmp_path / "here")
    refused(path, here, "accepts no override", skip=UNFENCED)


def test_all_that_fail_are_told_at_once(path: Path, tmp_path: Path) -> None:
    said(path, '[checks]\nreserve = "900T"\n')
    here = Crowded(tmp_path / "here")
    error = refused(path, here, "900 TiB are to be kept")
    for what in ("room: ", "duplicates: mac 52:54:00:12:34:56 is at machine mail",
                 "source-fenced: "):  # fmt: skip
        assert what in error.message
    skip = {**UNFENCED, "room": "it is growing", "duplicates": "mail is a stand-in"}
    done = failover(path, here, skip=skip)
    assert {name for name, state in states(done).items() if state == "skipped"} == set(skip)
    assert {one.name: one.reason for one in done.checks if one.reason} == skip


def test_a_standing_skip_of_the_configuration_counts_with_its_reason(
    path: Path, tmp_path: Path
) -> None:
    said(path, '[checks.skip]\nsource-fenced = "a laboratory"\n')
    done = failover(path, FileHypervisor(tmp_path / "here"))
    assert done.evidence[0].says == "a laboratory"


@pytest.mark.parametrize("skip", [{"fenced": "x"}, {"source-fenced": " "}])
def test_only_a_check_that_there_is_is_skipped_and_only_with_a_reason(
    path: Path, tmp_path: Path, skip: dict[str, str]
) -> None:
    with pytest.raises(UsageError):
        failover(path, FileHypervisor(tmp_path / "here"), skip=skip)
    with Replica.open(path) as replica:
        assert (replica.manifest.state, replica.manifest.epoch) == ("Ready", 1)


def test_a_clock_behind_the_newest_point_is_found(path: Path) -> None:
    with Replica.open(path) as replica:
        newest_ns = replica.points.latest.time_ns
        asked = Operation(id="x", kind="failover", started="", found_state="Ready", steps=[])
        context = checklist.Context(replica, config.load(replica.directory), asked)
        context.now_ns = lambda: newest_ns - 29 * 10**9
        checklist.before(context)
        context.now_ns = lambda: newest_ns - 31 * 10**9
        with pytest.raises(StateError, match=r"clock is 31\.00 s behind"):
            checklist.before(context)


# ---- right before the power-on call: somebody does something in the last moment ----


def newer_epoch(path: Path) -> None:
    directory = _native.Io.posix().open_dir(str(path))
    found = manifest.load(directory)
    found.epoch += 1
    manifest.store(directory, found)


def other_operation(path: Path) -> None:
    directory = _native.Io.posix().open_dir(str(path))
    found = manifest.load(directory)
    assert found.operation is not None
    found.operation.id = "another"
    manifest.store(directory, found)


def released(path: Path) -> None:
    with Replica.open(path) as replica, replica.journals() as journals:
        epoch = journals.epoch
    opened = open_journal(str(path / "b-journal-log.vmdk"), None, writable=True, epoch=epoch)
    opened.native.set_epoch(epoch, False)
    opened.close(clean=False)


def unrolled(path: Path) -> None:
    with Replica.open(path) as replica, replica.journals() as journals:
        epoch = journals.epoch
    opened = open_journal(str(path / "b-journal-log.vmdk"), None, writable=True, epoch=epoch)
    opened.native.roll(_native.POINT_LATEST)
    opened.close(clean=False)


def overlay_elsewhere(path: Path) -> None:
    overlay = path / "a-interim.vmdk"
    text = overlay.read_bytes()
    overlay.write_bytes(text.replace(b"a-journal.vmdk", b"b-journal.vmdk"))


@pytest.mark.parametrize(
    ("name", "meanwhile"),
    [
        ("epoch", newer_epoch),
        ("epoch", other_operation),
        ("hold", released),
        ("point", unrolled),
        ("overlay", overlay_elsewhere),
    ],
)
def test_what_changed_in_the_last_moment_is_seen_at_power_on(
    path: Path, tmp_path: Path, name: str, meanwhile: Callable[[Path], None]
) -> None:
    here = FileHypervisor(tmp_path / "here")

    def tell(step: Step) -> None:
        if (step.name, step.state) == ("check again", "running"):
            meanwhile(path)

    with Replica.open(path) as replica:
        points = replica.points
        first = points.by_id(points.latest.id - 1)
        with pytest.raises(Error) as caught:
            operation.failover(replica, first, hypervisor=here, skip=UNFENCED, on_step=tell)
        assert f"{name}: " in caught.value.message
    assert here.starts() == []


def test_a_hold_without_a_release_stays_after_a_refused_failover(
    path: Path, tmp_path: Path
) -> None:
    with Replica.open(path) as replica:
        replication.hold(replica)
    with pytest.raises(StateError):
        failover(path, FileHypervisor(tmp_path / "here"))
    with Replica.open(path) as replica:
        assert replication.is_held(replica)
