"""What would stop a plan, how ready its replicas are, and how long it is likely to take."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import Plain
from plan_world import Power, make_replica
from replicas import ingesting
from rollpoint import config, hypervisors, operation, rehearsal, replication, trials
from rollpoint.errors import Error, HypervisorError, NotFoundError, UsageError
from rollpoint.hypervisor.base import State
from rollpoint.manifest import Gap, Operation, Step
from rollpoint.plans import checking, file, readiness, running, survey
from rollpoint.plans.events import NodeState, NodeWord, RunState
from rollpoint.plans.found import Problem, Readiness
from rollpoint.plans.shape import Shape, Spec
from rollpoint.plans.tables import Gate, Group, Limits, Plan, RunKind, Script
from rollpoint.rehearsal import Rehearsal
from rollpoint.replica import Replica
from rollpoint.units import format_time
from vcenter import VCenter, certificates, vcenter

__all__ = ["certificates", "vcenter"]


class Source(Plain):
    """Where the protected machine runs. deaf: It does not answer."""

    def __init__(self, *, deaf: bool = False, state: State = "running") -> None:
        self._deaf, self._state, self.asked = deaf, state, 0

    def status(self, machine_id: str) -> State:
        self.asked += 1
        if self._deaf:
            raise HypervisorError("no answer from the source's hypervisor")
        return self._state

    def is_known(self, machine_id: str) -> bool:
        self.status(machine_id)
        return machine_id == "web"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A replica with two points, of which replica.toml asks for no evidence."""
    return make_replica(tmp_path / "r")


def toml(place: Path, text: str) -> None:
    (place / config.FILE_NAME).write_text(text)


def look(
    place: Path,
    kind: RunKind = "unplanned",
    source: Source | None = None,
    target: Plain | None = None,
    **group: Any,
) -> Readiness:
    """One replica, as it comes back from a mount host."""
    said = Group(name="g", replicas=[place.name], **group)
    found = survey.resolve(said, str(place.parent))
    hosts = target or Source(), source or Source()
    (row,) = readiness.look_all(said, found, kind, lambda directory: hosts)
    text = msgspec.json.encode(row)
    again = msgspec.json.decode(text, type=Readiness)
    assert msgspec.json.encode(again) == text
    assert again == row
    return again


def problem(row: Readiness, what: str) -> Problem | None:
    found = [one for one in row.problems if one.what == what]
    assert len(found) <= 1, found
    assert all(one.group == "g" and one.replica in (row.name, "") for one in found)
    return found[0] if found else None


def stops(row: Readiness) -> list[str]:
    return [one.what for one in row.problems if one.stops]


def change(place: Path, **values: Any) -> None:
    with Replica.open(place) as replica, replica.locked() as manifest:
        for name, value in values.items():
            setattr(manifest, name, value)
        replica.save()


def done(kind: Any, seconds: float, **more: Any) -> Operation:
    said = {"id": f"{kind}-{seconds}", "started": format_time(time.time_ns()), **more}
    return Operation(
        kind=kind, found_state="Ready", steps=[Step(name="x")],
        **{"seconds": seconds, "outcome": "done", **said},
    )  # fmt: skip


# ---- one replica ----


def test_a_replica_that_is_ready_is_said_to_be(place: Path, tmp_path: Path) -> None:
    with ingesting(place, tmp_path / "s", rpo_seconds=3600.0):
        with Replica.open(place) as replica:
            newest = replication.mark(replica)
        row = look(place, rpo_target="1h")
    assert stops(row) == []
    assert [one.what for one in row.problems] == ["rehearsal"]
    assert (row.state, row.open, row.held, row.ingest, row.gap) == ("Ready", "", False, True, "")
    assert (row.points, row.newest, row.rpo_target) == (3, newest.time, 3600.0)
    assert row.rpo_seconds is not None
    assert row.needed_bytes == 1 << 20
    assert row.free_bytes is not None
    assert row.hypervisor == "qemu"


@pytest.mark.parametrize(
    ("state", "kind", "told"),
    [
        ("Failover", "unplanned", "its state is Failover"),
        ("Failover", "planned", "its state is Failover"),
        ("Permanent", "test", "no restore points"),
        ("Permanent", "unplanned", "its state is Permanent"),
        ("Ready", "permanent", "its state is Ready"),
        ("Ready", "failback", "its state is Ready"),
        ("Failover", "commit", "its state is Failover"),
    ],
)
def test_a_state_that_does_not_allow_the_run_stops_it(
    place: Path, state: str, kind: RunKind, told: str
) -> None:
    change(place, state=state)
    found = problem(look(place, kind), "state")
    assert found is not None
    assert found.stops
    assert told in found.says
    assert found.hint


@pytest.mark.parametrize(
    ("state", "kind"),
    [("Ready", "test"), ("Failover", "permanent"), ("Failover", "failback"),
     ("ReadyToSwitch", "failback"), ("Failback", "commit"), ("Failover", "undo"),
     ("Failback", "undo")],
)  # fmt: skip
def test_a_state_that_allows_the_run_does_not(place: Path, state: str, kind: RunKind) -> None:
    change(place, state=state)
    assert problem(look(place, kind), "state") is None


def test_nothing_to_undo_is_told_and_stops_nothing(place: Path) -> None:
    found = problem(look(place, "undo"), "state")
    assert found is not None
    assert not found.stops


def test_an_operation_that_has_not_ended_stops_every_run(place: Path) -> None:
    change(place, operation=done("seed", 0.0, outcome="running"), state="Processing")
    for kind in ("test", "unplanned"):
        row = look(place, kind)
        assert row.open == "seed"
        assert "state" in stops(row)


def test_no_point_a_gap_a_hold_and_no_ingest(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    Replica.create(empty, [("a", 64 << 10)], segment_bytes=65536).close()
    found = problem(look(empty), "point")
    assert found is not None
    assert found.stops
    place = make_replica(tmp_path / "r")
    found = problem(look(place), "ingest")
    assert found is not None
    assert not found.stops
    change(place, held=True)
    row = look(place)
    assert row.held
    assert [one.what for one in row.problems if not one.stops] == ["held", "rehearsal"]
    change(place, gaps=[Gap(start="2026-01-01T00:00:00Z", end=None, cause="the link was cut")])
    row = look(place)
    found = problem(row, "gap")
    assert row.gap == "the link was cut"
    assert found is not None
    assert "since 2026-01-01T00:00:00Z: the link was cut" in found.says
    assert problem(row, "held") is None
    assert stops(row) == []


def test_a_replica_that_is_too_late_is_told_and_stops_nothing(place: Path) -> None:
    assert problem(look(place, rpo_target="1h"), "rpo") is None
    assert problem(look(place), "rpo") is None
    found = problem(look(place, rpo_target="1ms"), "rpo")
    assert found is not None
    assert not found.stops
    assert "target is 1 ms" in found.says


def test_a_point_that_a_group_wants_and_does_not_have(place: Path) -> None:
    found = problem(look(place, point="app"), "point")
    assert found is not None
    assert found.stops
    assert "no application-consistent point" in found.says


def rehearsed(place: Path, ok: bool, days: float = 0.0) -> None:
    moment = format_time(time.time_ns() - int(days * 86400e9))
    with Replica.open(place) as replica:
        rehearsal.store(
            replica.directory,
            Rehearsal(
                time=moment,
                point=1,
                point_time=moment,
                ok=ok,
                seconds=40.0,
                error="" if ok else "no boot loader",
                hint="" if ok else "give it one",
            ),
        )


def test_a_rehearsal_that_failed_stops_unless_it_has_worked_since(place: Path) -> None:
    found = problem(look(place), "rehearsal")
    assert found is not None
    assert (found.stops, "never" in found.says or "ever" in found.says) == (False, True)
    rehearsed(place, False, days=2)
    row = look(place)
    found = problem(row, "rehearsal")
    assert found is not None
    assert (found.stops, found.hint) == (True, "give it one")
    assert "no boot loader" in found.says
    assert row.rehearsal is not None
    assert not row.rehearsal.ok
    assert row.rehearsal.age_seconds == pytest.approx(2 * 86400, rel=0.01)
    old = done("test", 5.0, started="2020-01-01T00:00:00.000000Z")
    change(place, history=[old, done("undo", 5.0), done("failover", 5.0, outcome="rolled back")])
    assert "rehearsal" in stops(look(place))
    change(place, history=[old, done("test", 5.0)])
    assert "rehearsal" not in stops(look(place))
    rehearsed(place, True)
    assert problem(look(place), "rehearsal") is None
    rehearsed(place, True, days=120)
    found = problem(look(place), "rehearsal")
    assert found is not None
    assert not found.stops


def test_a_rehearsal_that_cannot_be_read_does_not_hide_the_rest(place: Path) -> None:
    (place / "rehearsal.json").write_text("{")
    row = look(place)
    assert problem(row, "rehearsal") is not None
    assert row.points == 2


@pytest.mark.parametrize(
    ("reserve", "skip", "stopped"),
    [("1M", {}, False), ("1000000T", {}, True), ("1000000T", {"room": "a test"}, False),
     ("5%", {}, False), ("five%", {}, True)],
)  # fmt: skip
def test_room(place: Path, reserve: str, skip: dict[str, str], stopped: bool) -> None:
    said = f'[fencing]\naccept = ["none"]\n[checks]\nreserve = "{reserve}"\n'
    if reserve == "1000000T":
        said = said.replace("1000000T", "4000000T")  # 4 EiB
    toml(place, said)
    row = look(place, skip=skip)
    assert ("room" in stops(row)) is stopped
    assert problem(look(place, "undo"), "room") is None


def test_what_replica_toml_says_wrong_is_told_with_its_line(place: Path) -> None:
    toml(place, "[machine]\ncpus = 1\nnick = 2\n")
    found = problem(look(place), "replica.toml")
    assert found is not None
    assert found.stops
    assert "line 3" in found.says


def test_a_replica_that_cannot_be_opened_is_a_row_with_a_problem(place: Path) -> None:
    (place / "replica.json").write_text("{")
    row = look(place)
    assert row.name == "r"
    assert stops(row) == ["state"]


# ---- evidence ----

FENCE = 'fence = ["/bin/false"]\n'
MACHINE = 'machine = "web"\n'


@pytest.mark.parametrize(
    ("text", "deaf", "skip", "kinds", "stopped"),
    [
        ("", False, {}, [], True),
        (f"[source]\n{MACHINE}", False, {}, ["powered_off_confirmed"], False),
        (f"[source]\n{MACHINE}", True, {}, ["powered_off_confirmed"], True),
        (f"[source]\n{MACHINE}{FENCE}", True, {}, ["powered_off_confirmed", "host_fenced"], False),
        (f"[source]\n{FENCE}", False, {}, ["host_fenced"], False),
        (f"[source]\n{FENCE}[fencing]\naccept = ['storage_fenced']", False, {}, [], True),
        ("[source]\nprobe = ['/bin/false']\n", False, {}, [], True),
        (
            "[source]\nprobe = ['/bin/false']\n[fencing]\naccept = ['unreachable']\n",
            False, {}, ["unreachable"], False,
        ),
        ("", False, {"source-fenced": "it burned"}, ["overridden"], False),
        ("[fencing]\naccept = ['host_fenced']", False, {"source-fenced": "it burned"}, [], True),
        ("[fencing]\naccept = ['none']", False, {}, [], False),
    ],
)  # fmt: skip
def test_evidence_that_will_be_there(
    place: Path, text: str, deaf: bool, skip: dict[str, str], kinds: list[str], stopped: bool
) -> None:
    toml(place, text)
    row = look(place, source=Source(deaf=deaf), skip=skip)
    assert row.proof.kinds == kinds
    assert ("source" in stops(row)) is stopped
    assert row.proof.answers == (None if "machine" not in text else not deaf)
    assert "source" not in stops(look(place, "test", source=Source(deaf=deaf)))


def test_a_fence_is_never_run_by_a_check(place: Path, tmp_path: Path) -> None:
    mark = tmp_path / "fenced"
    toml(place, f'[source]\nfence = ["/bin/touch", "{mark}"]\nprobe = ["/bin/touch", "{mark}"]\n')
    assert stops(look(place)) == []
    assert not mark.exists()


def test_a_source_alone_that_can_be_lost_with_its_host_is_told(place: Path) -> None:
    toml(place, f"[source]\n{MACHINE}")
    row = look(place)
    found = problem(row, "source")
    assert found is not None
    assert not found.stops
    assert "where that is lost too" in found.says
    assert row.proof.says == "machine web is running"


@pytest.mark.parametrize(
    ("text", "deaf", "told"),
    [
        ("", False, "replica.toml does not say what that is"),
        (f"[source]\n{MACHINE}", True, "no answer from the source's hypervisor"),
        ('[source]\nmachine = "db"\n', False, "knows no machine db"),
    ],
)
def test_a_planned_run_needs_the_source(place: Path, text: str, deaf: bool, told: str) -> None:
    toml(place, text)
    found = problem(look(place, "planned", Source(deaf=deaf)), "source")
    assert found is not None
    assert found.stops
    assert told in found.says


@pytest.mark.parametrize(
    ("more", "stopped"), [("", True), (FENCE, False), ("[fencing]\naccept = ['none']\n", False)]
)
def test_a_source_that_nobody_knows_proves_nothing(place: Path, more: str, stopped: bool) -> None:
    toml(place, f'[source]\nmachine = "db"\n{more}')
    row = look(place)
    assert row.proof.answers
    assert row.proof.says == "qemu knows no machine db"
    assert ("source" in stops(row)) is stopped
    assert "source" not in stops(look(place, "test"))


def test_a_planned_run_with_its_source_needs_no_evidence(place: Path) -> None:
    toml(place, f"[source]\n{MACHINE}[fencing]\naccept = ['host_fenced']\n")
    assert stops(look(place, "planned")) == []


# ---- where it is to run ----


@pytest.mark.parametrize(
    ("kind", "text", "group", "stopped", "networks"),
    [
        ("unplanned", 'nic = "e1000"\nnetwork = "user"', {}, False, {"user": "user"}),
        ("unplanned", 'nic = "e1000"', {"network": "lan"}, True, {"*": "lan"}),
        ("unplanned", 'nic = "e1000"\nnetwork = "lan"', {}, True, {"lan": "lan"}),
        ("unplanned", 'network = "lan"', {}, False, {}),
        ("test", 'nic = "e1000"\nnetwork = "user"', {}, False, {"*": "none"}),
        ("test", "", {"test_network": "user"}, True, {"*": "user"}),
        ("unplanned", 'nic = "e1000"', {"network": "lan", "skip": {"network": "x"}}, False,
         {"*": "lan"}),
    ],
)  # fmt: skip
def test_networks_on_qemu(
    place: Path, kind: RunKind, text: str, group: Any, stopped: bool, networks: dict[str, str]
) -> None:
    toml(place, f'[machine]\n{text}\n[fencing]\naccept = ["none"]\n')
    row = look(place, kind, **group)
    assert ("network" in stops(row)) is stopped
    assert row.networks == networks


VSPHERE = '[hypervisor]\nkind = "vsphere"\nserver = "vc"\nuser = "u"\n'


@pytest.mark.parametrize(
    ("kind", "text", "gate", "stopped"),
    [
        ("unplanned", "[machine]\nguest_agent = true\n", {"kind": "heartbeat"}, False),
        ("unplanned", "", {"kind": "heartbeat"}, True),
        ("test", "", {"kind": "heartbeat"}, True),
        ("test", "", {"kind": "heartbeat", "on": ["unplanned"]}, False),
        ("undo", "", {"kind": "heartbeat"}, False),
        ("unplanned", "", {"kind": "marker", "marker": "login:"}, False),
        ("unplanned", VSPHERE, {"kind": "heartbeat"}, False),
        ("unplanned", VSPHERE, {"kind": "marker", "marker": "login:"}, True),
    ],
)
def test_a_gate_that_nothing_can_open_stops_it(
    place: Path, kind: RunKind, text: str, gate: dict[str, Any], stopped: bool
) -> None:
    toml(place, f'{text}[fencing]\naccept = ["none"]\n')
    found = problem(look(place, kind, gate=[Gate(**gate)]), "gate")
    assert (found is not None and found.stops) is stopped
    assert found is None or found.hint


class Server(Source):
    """A vSphere that has one network."""

    kind = "vsphere"

    def require_network(self, name: str) -> None:
        if self._deaf:
            raise HypervisorError("no answer")
        if name != "lan":
            raise NotFoundError(f"there is no network {name}", "there is lan")


def vsphere(place: Path, more: str = "") -> None:
    toml(
        place,
        '[fencing]\naccept = ["none"]\n[machine]\nnetwork = "prod"\n'
        '[hypervisor]\nkind = "vsphere"\n'
        f'server = "nowhere"\nuser = "u"\ndatastores = {{ here = "{place.parent}" }}\n{more}',
    )


@pytest.mark.parametrize(
    ("kind", "more", "group", "missing"),
    [
        ("unplanned", "", {}, "prod"),
        ("unplanned", 'networks = { prod = "lan" }', {}, ""),
        ("unplanned", 'networks = { prod = "lan", dmz = "wan" }', {}, "wan"),
        ("unplanned", 'networks = { prod = "wan" }', {"network": {"*": "lan"}}, ""),
        ("unplanned", 'networks = { prod = "lan" }', {"network": "wan"}, "wan"),
        ("test", "", {}, ""),
        ("test", 'test_network = "bubble"', {}, "bubble"),
        ("test", 'test_network = "bubble"', {"test_network": "lan"}, ""),
    ],
)
def test_networks_are_asked_for_at_vsphere(
    place: Path, kind: RunKind, more: str, group: Any, missing: str
) -> None:
    vsphere(place, more)
    row = look(place, kind, target=Server(), **group)
    found = problem(row, "network")
    assert (found.says if found else "") == (missing and f"there is no network {missing}")
    assert row.datastores == ["here"]


def test_a_machine_and_a_datastore_that_vsphere_does_not_know(place: Path) -> None:
    vsphere(place, 'machine = "web"\nnetworks = { prod = "lan" }')
    assert stops(look(place, target=Server())) == []
    vsphere(place, 'machine = "db"\nnetworks = { prod = "lan" }')
    assert stops(look(place, target=Server())) == ["hypervisor"]
    text = (place / config.FILE_NAME).read_text().replace(str(place.parent), "/nowhere")
    toml(place, text)
    assert stops(look(place, target=Server())) == ["datastore", "hypervisor"]


def test_a_server_that_does_not_answer_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 replicas at one dead vCenter must not wait 200 times for it."""
    opened, deaf = [], Server(deaf=True)

    def open_hypervisor(table: Any, directory: str) -> Server:
        opened.append((table.timeout, directory))
        return deaf

    monkeypatch.setattr(hypervisors, "open_hypervisor", open_hypervisor)
    (tmp_path / "site").mkdir()
    for name in "abc":
        place = make_replica(tmp_path / "site" / name)
        vsphere(place, 'machine = "web"\nnetworks = { prod = "lan" }')
    group = Group(name="g", replicas=["*"])
    found = survey.resolve(group, str(tmp_path / "site"))
    rows = readiness.look_all(group, found, "unplanned")
    assert [stops(row) for row in rows] == [["hypervisor"]] * 3
    assert len(opened) == 1
    assert opened[0][0] == "10s", "not as long as a failover would wait"
    assert deaf.asked == 1


def test_at_a_real_server(vcenter: VCenter) -> None:
    """govmomi's simulator: a network that is there and one that is not, a machine likewise."""
    place = make_replica(Path(vcenter.datastores["LocalDS_0"]) / "checked")
    table = vcenter.table()
    said = (
        '[fencing]\naccept = ["none"]\n[machine]\nnetwork = "prod"\n[hypervisor]\n'
        f'kind = "vsphere"\nserver = "{table.server}"\nport = {table.port}\nuser = "{table.user}"\n'
        f'password_file = "{table.password_file}"\nca_file = "{table.ca_file}"\n'
        f'datastores = {{ LocalDS_0 = "{table.datastores["LocalDS_0"]}" }}\n'
    )
    toml(place, f'{said}networks = {{ prod = "VM Network" }}\nmachine = "nobody"\n')
    group = Group(name="g", replicas=["checked"])
    found = survey.resolve(group, str(place.parent))
    assert found[0].datastores == ["LocalDS_0"]
    (row,) = readiness.look_all(group, found, "unplanned")
    assert stops(row) == ["hypervisor"]
    toml(place, f'{said}networks = {{ prod = "no such" }}\n')
    (row,) = readiness.look_all(group, found, "unplanned")
    assert stops(row) == ["network"]
    (network,) = (one for one in row.problems if one.what == "network")
    assert "VM Network" in network.hint


# ---- the whole plan ----


def ready(group: Group, *names: str, **values: Any) -> list[Readiness]:
    return [
        Readiness(name=name, directory=f"/r/{name}", group=group.name, **values) for name in names
    ]


def plan_of(*groups: Group, **values: Any) -> Plan:
    return Plan(version=1, name="p", group=list(groups), **values)


def check(plan: Plan, rows: dict[str, list[Readiness]], **more: Any) -> checking.Report:
    kind = more.pop("kind", "unplanned")
    report = checking.check(
        plan, "p.toml", kind, survey=lambda group: rows[group.name], **more
    )
    text = msgspec.json.encode(report)
    assert msgspec.json.encode(msgspec.json.decode(text, type=checking.Report)) == text
    return report


def test_the_time_of_a_run_is_told_from_what_its_replicas_took() -> None:
    """db: 10 s and 30 s together; then 5 s; then web, one at a time."""
    db = Group(name="db", replicas=["*"], rto_target="20s")
    web = Group(name="web", replicas=["*"], after=["db"], delay="5s", parallelism=1)
    rows = {
        "db": ready(db, "a", seconds={"unplanned": [4.0, 10.0, 90.0]})
        + ready(db, "b", seconds={"test": [20.0, 40.0], "rehearsal": [1.0], "planned": [2.0]}),
        "web": ready(web, "c", "d", seconds={"rehearsal": [7.0]}),
    }
    report = check(plan_of(db, web, rto_target="48s"), rows)
    assert report.predicted_seconds == pytest.approx(30 + 5 + 7 + 7)
    assert [(row.seconds, row.begins, row.ends) for row in report.rows] == [
        (10.0, 0.0, 10.0), (30.0, 0.0, 30.0), (7.0, 35.0, 42.0), (7.0, 42.0, 49.0)
    ]  # fmt: skip
    assert [row.based_on for row in report.rows] == [
        "median of 3 unplanned failovers",
        "2 test failovers, which is like it",
        "1 rehearsal, which is like it",
        "1 rehearsal, which is like it",
    ]
    late = [(one.replica, one.says) for one in report.problems]
    assert [name for name, _ in late] == ["b", ""]
    assert "30.00 s, and the target is 20.00 s" in late[0][1]
    assert "49.00 s, and the target is 48.00 s" in late[1][1]
    assert not report.stops, "a target is no reason to stop"
    assert report.predicted_says == "4 replicas from operations of their own"


def test_limits_and_groups_narrow_a_prediction() -> None:
    db = Group(name="db", replicas=["*"])
    rows = {"db": ready(db, *"abcd", seconds={"unplanned": [10.0]})}
    plan = plan_of(db, limits=Limits(plan=2))
    assert check(plan, rows).predicted_seconds == pytest.approx(20)
    some = running.Only(replicas=["a"])
    report = check(plan, rows, only=some)
    assert [row.readiness.name for row in report.rows] == ["a"]
    assert report.predicted_seconds == pytest.approx(10)
    with pytest.raises(UsageError, match="no group of the plan has a replica z"):
        check(plan, rows, only=running.Only(replicas=["z"]))
    two = plan_of(db, Group(name="web", replicas=["*"]))
    report = check(two, rows, only=running.Only(groups=["db"]))  # the other one is not asked
    assert len(report.rows) == 4
    assert not report.stops


def test_nothing_is_invented_where_nothing_is_known() -> None:
    db = Group(name="db", replicas=["*"])
    report = check(plan_of(db), {"db": ready(db, "a", "b")})
    assert report.predicted_seconds is None
    assert report.unknown == ["db/a", "db/b"]
    assert {row.based_on for row in report.rows} == {"unknown: nothing like it was ever done"}
    rows = {"db": ready(db, "a") + ready(db, "b", seconds={"unplanned": [3.0], "undo": [1.0]})}
    report = check(plan_of(db), rows)
    assert report.predicted_seconds == pytest.approx(3)
    assert "not counted, because nothing is known of it: db/a" in report.predicted_says
    assert [(row.begins, row.ends) for row in report.rows] == [(None, None)] * 2
    for kind in ("permanent", "failback", "commit"):
        assert check(plan_of(db), rows, kind=kind).predicted_seconds is None


def test_what_ends_a_run_is_told_from_what_ended_others() -> None:
    db = Group(name="db", replicas=["*"], rto_target="1ms")
    seconds = {"undo test": [2.0], "failback": [100.0], "switch": [20.0], "commit": [3.0]}
    rows = {"db": ready(db, "a", seconds=seconds)}
    times = {kind: check(plan_of(db), rows, kind=kind) for kind in ("undo", "failback", "commit")}
    assert {kind: report.predicted_seconds for kind, report in times.items()} == {
        "undo": pytest.approx(2), "failback": pytest.approx(120), "commit": pytest.approx(3)
    }  # fmt: skip
    assert not any(report.problems for report in times.values()), "RTO is of what brings up"
    assert times["undo"].rows[0].based_on == "1 undo of a test, which is like it"


def run_of(kind: RunKind, *nodes: tuple[str, str, int]) -> RunState:
    """A run that has ended: (key, state, seconds)."""
    spec = Spec(
        run="r", kind=kind, plan=plan_of(), plan_path="", shape=Shape(groups=[], nodes={}), who="",
        host="",
    )  # fmt: skip
    states = {
        key: NodeState(
            key=key, state=msgspec.convert(state, NodeWord), started=format_time(10**18),
            ended=format_time(10**18 + seconds * 10**9),
        )
        for key, state, seconds in nodes
    }  # fmt: skip
    return RunState(spec=spec, nodes=states)


def test_earlier_runs_count_for_more_with_their_gates_and_scripts() -> None:
    script = Script(command=["/bin/true"], each="group")
    db = Group(name="db", replicas=["*"], before=[script], after_up=[Script(command=["/bin/true"])])
    rows = {"db": ready(db, "a", "b", seconds={"unplanned": [3.0]})}
    history = [
        run_of("unplanned", ("db/a", "done", 10), ("db|before", "done", 4)),
        run_of("test", ("db/a", "done", 999), ("db|before", "done", 999)),
        run_of("unplanned", ("db/a", "failed", 500), ("db|before", "done", 6)),
        run_of("unplanned", ("db/a", "done", 20), ("db/b", "skipped", 500)),
    ]
    report = check(plan_of(db), rows, history=history)
    assert report.predicted_seconds == pytest.approx(5 + 15)
    assert [(row.seconds, row.based_on) for row in report.rows] == [
        (15.0, "2 unplanned runs of the plan"), (3.0, "1 unplanned failover")
    ]  # fmt: skip
    assert report.predicted_says == (
        "1 replica from 3 earlier runs; 1 replica from operations of its own; gates and scripts "
        "of those are not counted"
    )


def test_a_host_that_is_away_and_a_plan_that_is_wrong_stop_it() -> None:
    db, web = Group(name="db", replicas=["*"]), Group(name="web", replicas=["*"])
    rows = ready(db, "a", seconds={"unplanned": [3.0]})

    def asked(group: Group) -> list[Readiness]:
        if group.name == "web":
            raise errors.pop()
        return rows

    errors: list[Error] = [NotFoundError("no worker serves the queue", "start one")]
    report = checking.check(plan_of(db, web), "p.toml", "unplanned", survey=asked)
    assert report.stops
    (one,) = report.problems
    assert (one.what, one.group, one.hint) == ("host", "web", "start one")
    assert len(report.rows) == 1
    assert report.unknown == ["web"]
    assert "not counted, because nothing is known of it: web" in report.predicted_says
    errors = [UsageError('p.toml, line 3: group web: "x" means nothing')]
    report = checking.check(plan_of(db, web), "p.toml", "unplanned", survey=asked)
    assert [one.what for one in report.problems] == ["plan"]
    errors = [NotFoundError("no worker")]
    some = running.Only(replicas=["c"])
    assert checking.check(plan_of(db, web), "p.toml", "unplanned", survey=asked, only=some).stops


def test_problems_that_stop_come_first() -> None:
    db = Group(name="db", replicas=["*"])
    rows = ready(db, "a", "b", problems=[Problem(what="rpo", says="late", stops=False)])
    rows[1].problems = [*rows[1].problems, Problem(what="room", says="full")]
    report = check(plan_of(db), {"db": rows})
    assert [one.what for one in report.problems] == ["room", "rpo", "rpo"]
    assert report.stops


# ---- with real replicas ----


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "replicas").mkdir()
    for name in ("db-1", "web-1", "web-2"):
        make_replica(tmp_path / "replicas" / name)
    path = tmp_path / "site.toml"
    path.write_text(
        'version = 1\nreplicas = "replicas"\nrpo_target = "1h"\n\n'
        '[[group]]\nname = "db"\nreplicas = ["db-*"]\n\n'
        '[[group]]\nname = "web"\nreplicas = ["web-*"]\nafter = ["db"]\n'
    )
    return path


def checked(path: Path, kind: RunKind, power: Power) -> checking.Report:
    plan = file.load(str(path))
    asks = checking.hosts(plan, str(path), kind, None, lambda directory: (power, None))
    return checking.check(plan, str(path), kind, survey=asks)


def test_a_plan_of_replicas_that_are_ready_would_run(site: Path, tmp_path: Path) -> None:
    power = Power(tmp_path / "power")
    report = checked(site, "unplanned", power)
    assert not report.stops, report.problems
    assert [row.readiness.name for row in report.rows] == ["db-1", "web-1", "web-2"]
    assert {row.readiness.rpo_target for row in report.rows} == {3600.0}
    assert report.predicted_seconds is None
    for name in ("db-1", "web-1", "web-2"):
        with Replica.open(tmp_path / "replicas" / name) as replica:
            operation.failover(replica, hypervisor=power, convert=False)
            if name == "web-1":
                operation.undo(replica, hypervisor=power)
    report = checked(site, "unplanned", power)
    assert [(one.what, one.replica) for one in report.problems if one.stops] == [
        ("state", "db-1"), ("state", "web-2")
    ]  # fmt: skip
    assert [row.based_on for row in report.rows] == ["1 unplanned failover"] * 3
    (web,) = (row for row in report.rows if row.readiness.name == "web-1")
    found = survey.resolve(Group(name="g", replicas=["web-1"]), str(tmp_path / "replicas"))
    history = survey.history(found[0])
    assert sorted(history) == ["undo", "unplanned"]
    assert history == web.readiness.seconds
    assert [web.seconds] == history["unplanned"]
    assert report.predicted_seconds is not None
    undo = checked(site, "undo", power)
    assert not undo.stops
    assert [one.replica for one in undo.problems] == ["web-1"], "which is undone already"


def test_past_tests_tell_how_long_the_next_takes(site: Path, tmp_path: Path) -> None:
    power = Power(tmp_path / "power")
    with Replica.open(tmp_path / "replicas" / "db-1") as replica:
        trials.start(replica, hypervisor=power, convert=False, operation_id="t")
        trials.undo(replica, "t", hypervisor=power)
    report = checked(site, "test", power)
    assert report.rows[0].based_on == "1 test failover"
    assert report.rows[0].readiness.tests == 0
    assert report.unknown == ["web/web-1", "web/web-2"]


def test_mistakes_of_the_plan_are_told_with_their_place(site: Path, tmp_path: Path) -> None:
    power = Power(tmp_path / "power")
    text = site.read_text()
    site.write_text(text.replace('"web-*"', '"web-*", "db-1"'))
    report = checked(site, "test", power)
    (wrong,) = (one for one in report.problems if one.stops)
    assert wrong.what == "plan"
    assert wrong.says.startswith(f"{site}, line 11: "), "where the second one is"
    assert "the groups db and web both name the replica db-1" in wrong.says
    site.write_text(text.replace('"web-*"', '"web-*",\n  "web-3"'))
    report = checked(site, "test", power)
    (wrong,) = (one for one in report.problems if one.stops)
    assert 'site.toml, line 12: group web: "web-3" means nothing' in wrong.says
    with pytest.raises(UsageError, match=r"site\.toml, line 12: group web: .web-3") as caught:
        running.start(str(site), "test", running.Settings(str(tmp_path / "state")))
    assert caught.value.hint == wrong.hint, "a run does not begin, for the same reason"
    assert "did you mean web-1" in wrong.hint or "did you mean web-2" in wrong.hint
    site.write_text(text.replace('after = ["db"]', 'after = ["db"]\nsame_cut = true'))
    (wrong,) = (one for one in checked(site, "test", power).problems if one.stops)
    assert wrong.what == "point"
    assert "no point is at one cut of web-1, web-2" in wrong.says
    assert wrong.group == "web"


