"""From a plan's tables to the shape of a run, for each kind of run."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import pytest
from rollpoint.errors import UsageError
from rollpoint.plans.shape import Shape
from rollpoint.plans.shaping import build
from rollpoint.plans.tables import FORWARD, Gate, Group, Limits, Plan, RunKind, Script

KINDS = get_args(RunKind)


class Found(NamedTuple):
    name: str
    directory: str
    datastores: list[str]
    id: str = ""


class Only(NamedTuple):
    groups: list[str]
    replicas: list[str]


def found(*names: str, root: str = "/r") -> list[Found]:
    return [Found(name, f"{root}/{name}", [f"on {name}"]) for name in names]


def group(name: str, **more: Any) -> Group:
    return Group(name=name, replicas=["*"], **more)


def plan(*groups: Group, **more: Any) -> Plan:
    return Plan(version=1, group=list(groups), **more)


SITE = plan(
    group("db", priority=1, parallelism=2, on_failure="ask", queue="east"),
    group("app", after=["db"], delay="90s"),
    group("web", after=["app"], delay="2m"),
    limits=Limits(plan=7, hosts={"": 3}, datastores={"*": 2}),
)
FOUND = {"db": found("d1", "d2"), "app": found("a1"), "web": found("w1", "w2")}


def order(shape: Shape) -> dict[str, list[str]]:
    return {one.name: one.after for one in shape.groups}


def test_a_forward_run_takes_groups_and_limits_as_the_plan_has_them() -> None:
    shape = build(SITE, "unplanned", FOUND, {"db/d2": "17"})
    assert order(shape) == {"db": [], "app": ["db"], "web": ["app"]}
    db = shape.group("db")
    assert (db.nodes, db.priority, db.parallelism) == (["db/d1", "db/d2"], 1, 2)
    assert (db.on_failure, db.before, db.after_up) == ("ask", "", "")
    assert [one.delay_seconds for one in shape.groups] == [0.0, 90.0, 120.0]
    assert (shape.parallelism, shape.hosts, shape.datastores) == (7, {"": 3}, {"*": 2})
    assert list(shape.nodes) == ["db/d1", "db/d2", "app/a1", "web/w1", "web/w2"]
    node = shape.nodes["db/d2"]
    assert (node.key, node.group, node.kind, node.queue) == ("db/d2", "db", "replica", "east")
    assert (node.name, node.directory, node.datastores) == ("d2", "/r/d2", ["on d2"])
    assert (node.point, node.former) == ("17", {})
    assert shape.nodes["db/d1"].point == "latest"


@pytest.mark.parametrize("kind", KINDS)
def test_only_an_undo_goes_backwards(kind: RunKind) -> None:
    shape = build(SITE, kind, FOUND, {})
    if kind == "undo":
        assert order(shape) == {"web": [], "app": ["web"], "db": ["app"]}
        assert shape.group("web").nodes == ["web/w2", "web/w1"]
    else:
        assert order(shape) == {"db": [], "app": ["db"], "web": ["app"]}


def test_what_the_former_run_did_goes_to_its_replica() -> None:
    former = {"web/w1": {"run": "r1", "kind": "test", "operation": "r1-7-0"}}
    shape = build(SITE, "undo", FOUND, {}, former)
    assert shape.nodes["web/w1"].former == former["web/w1"]
    assert shape.nodes["web/w2"].former == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_has_tasks_of_its_own_for_the_kinds_that_its_scripts_name(kind: RunKind) -> None:
    script = Script(command=["true"], each="group")
    undoing = Script(command=["true"], each="group", on=["undo"])
    gate = Gate(kind="tcp", each="group", on=["failback"])
    made = plan(
        group("a", before=[script], after_up=[undoing], queue="east"), group("b", gate=[gate])
    )
    shape = build(made, kind, {"a": found("x"), "b": found("y")}, {})
    assert shape.group("a").before == ("a|before" if kind in FORWARD else "")
    assert shape.group("a").after_up == ("a|after" if kind == "undo" else "")
    assert shape.group("b").after_up == ("b|after" if kind == "failback" else "")
    own = {key: node for key, node in shape.nodes.items() if "|" in key}
    named = [one.before or one.after_up for one in shape.groups]
    assert sorted(own) == sorted(filter(None, named))
    for key, node in own.items():
        name, _, kind_of_node = key.partition("|")
        assert (node.key, node.group, node.kind) == (key, name, kind_of_node)
        assert node.queue == ("east" if name == "a" else "")
        assert (node.datastores, node.name, node.directory) == ([], "", "")


def test_what_is_done_for_each_replica_makes_no_task_of_the_group() -> None:
    made = plan(group("a", before=[Script(command="x")], gate=[Gate(kind="tcp")]))
    shape = build(made, "test", {"a": found("x")}, {})
    assert list(shape.nodes) == ["a/x"]


def test_a_replica_that_two_groups_name_is_refused_with_both_names() -> None:
    both = {"db": found("one", "two"), "app": found("two"), "web": found("w1")}
    made = plan(group("db"), group("app", after=["db"]), group("web"))
    with pytest.raises(UsageError, match=r"groups db and app both name the replica two \(/r/two\)"):
        build(made, "test", both, {})
    with pytest.raises(UsageError, match="db and app"):
        build(made, "test", both, {}, only=Only(["web"], []))


def test_one_path_on_two_hosts_is_two_replicas_unless_both_see_the_same_one() -> None:
    made = plan(group("a", queue="east"), group("b", queue="west"))
    shape = build(made, "test", {"a": found("x"), "b": found("x")}, {})
    assert list(shape.nodes) == ["a/x", "b/x"]
    one, other = (Found("x", "/r/x", [], id=id) for id in ("1", "2"))
    assert list(build(made, "test", {"a": [one], "b": [other]}, {}).nodes) == ["a/x", "b/x"]
    with pytest.raises(UsageError, match="a and b both name the replica x"):
        build(made, "test", {"a": [one], "b": [one]}, {})


def test_a_group_in_which_two_replicas_have_one_name_is_refused() -> None:
    twice = [*found("x"), *found("x", root="/elsewhere")]
    with pytest.raises(UsageError, match=r"group a names two replicas x.*/elsewhere/x"):
        build(plan(group("a")), "test", {"a": twice}, {})
    with pytest.raises(UsageError, match="group a names two replicas x"):
        build(plan(group("a")), "test", {"a": found("x", "x")}, {})


def test_a_part_of_a_plan_keeps_the_order_through_what_is_left_out() -> None:
    shape = build(SITE, "test", FOUND, {}, only=Only(["db", "web"], []))
    assert order(shape) == {"db": [], "web": ["db"]}
    assert shape.group("web").delay_seconds == 120.0
    back = build(SITE, "undo", FOUND, {}, only=Only(["db", "web"], []))
    assert order(back) == {"web": [], "db": ["web"]}


def test_what_is_left_out_counts_as_up_and_its_delay_as_over() -> None:
    shape = build(SITE, "test", FOUND, {}, only=Only(["web"], []))
    assert order(shape) == {"web": []}
    assert shape.group("web").delay_seconds == 0.0
    assert list(shape.nodes) == ["web/w1", "web/w2"]


def test_a_delay_of_a_group_that_waits_for_none_is_kept() -> None:
    shape = build(plan(group("a", delay="3s")), "test", {"a": found("x")}, {})
    assert shape.group("a").delay_seconds == 3.0


def test_replicas_are_named_alone_or_with_their_group() -> None:
    for names in (["w2"], ["web/w2"]):
        shape = build(SITE, "test", FOUND, {}, only=Only([], names))
        assert list(shape.nodes) == ["web/w2"]
    shape = build(SITE, "test", FOUND, {}, only=Only(["db"], ["w1"]))
    assert list(shape.nodes) == ["db/d1", "db/d2", "web/w1"]
    assert build(SITE, "test", FOUND, {}, only=Only([], [])) == build(SITE, "test", FOUND, {})


def test_a_part_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no group mail") as caught:
        build(SITE, "test", FOUND, {}, only=Only(["mail"], []))
    assert caught.value.hint == "its groups are db, app, web"
    for name in ("w9", "db/w1"):
        with pytest.raises(UsageError, match=f"no group of the plan has a replica {name}"):
            build(SITE, "test", FOUND, {}, only=Only([], [name]))


def test_a_group_without_replicas_counts_as_up() -> None:
    shape = build(SITE, "undo", FOUND | {"app": []}, {})
    assert order(shape) == {"web": [], "db": ["web"]}
    assert order(build(SITE, "commit", {"web": FOUND["web"]}, {})) == {"web": []}


def test_a_run_without_a_replica_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no replica in what is to be done \(undo\)"):
        build(SITE, "undo", {}, {})
    with pytest.raises(UsageError, match="no replica"):
        build(SITE, "undo", FOUND | {"db": []}, {}, only=Only(["db"], []))


def test_groups_that_share_what_comes_before_wait_for_it_once() -> None:
    made = plan(
        group("a"), group("b", after=["a"]), group("c", after=["a"]), group("d", after=["b", "c"])
    )
    shape = build(made, "test", {"a": found("x"), "d": found("y")}, {})
    assert order(shape) == {"a": [], "d": ["a"]}
