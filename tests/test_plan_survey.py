"""What a plan's groups mean on a mount host, and which restore points: with real replicas."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
import pytest
from replicas import ingesting, make
from rollpoint import config, groups, noting, replication
from rollpoint.errors import GapError, NotFoundError, UsageError
from rollpoint.manifest import Gap
from rollpoint.plans import choosing, file, survey
from rollpoint.plans.found import Found, Request, Resolved
from rollpoint.plans.tables import Group, RunKind
from rollpoint.points import Point
from rollpoint.replica import Replica
from rollpoint.units import format_time, parse_time

SIZES = {"a": 64 << 10}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Three replicas of which two have a label, and what is none."""
    root = tmp_path / "site"
    root.mkdir()
    for name, labels in (("db01", '["db", "tier-1"]'), ("web01", '["tier-2"]'), ("web02", "[]")):
        make(root / name, SIZES)
        (root / name / config.FILE_NAME).write_text(f"labels = {labels}\n")
    (root / "notes").mkdir()
    (root / "readme").write_text("no replica")
    return root


def group(*replicas: str, point: str = "latest", same_cut: bool = False) -> Group:
    return Group(name="g", replicas=list(replicas), point=point, same_cut=same_cut)


def names(found: list[Found]) -> list[str]:
    return [one.name for one in found]


def asked_of(request: Request) -> Resolved:
    """As through a queue: JSON both ways."""
    text = survey.answer(msgspec.json.encode(request).decode())
    return msgspec.json.decode(text, type=Resolved)


# ---- which replicas ----


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["web02", "db01"], ["web02", "db01"]),
        (["*"], ["db01", "web01", "web02"]),
        (["web0[12]", "db*"], ["web01", "web02", "db01"]),
        (["web*", "web01"], ["web01", "web02"]),
        (["web02", "*"], ["web02", "db01", "web01"]),
        (["label:db"], ["db01"]),
        (["label:tier-*"], ["db01", "web01"]),
        (["*", "!web01"], ["db01", "web02"]),
        (["!web01", "*"], ["db01", "web02"]),
        (["*", "!label:tier-?"], ["web02"]),
        (["web01", "*", "!db*"], ["web01", "web02"]),
    ],
)
def test_texts_mean_replicas_in_their_order(
    site: Path, texts: list[str], wanted: list[str]
) -> None:
    found = survey.resolve(group(*texts), str(site))
    assert names(found) == wanted
    for one in found:
        with Replica.open(one.directory) as replica:
            assert (one.id, one.name) == (replica.manifest.id, replica.name)
            assert one.directory == str(site / one.name)


@pytest.mark.parametrize(
    ("texts", "bad", "cure"),
    [
        (["web*", "db1"], "db1", "did you mean db01"),
        (["mail*"], "mail*", "there are db01, web01, web02"),
        (["label:mail"], "label:mail", "replica.toml"),
        (["notes"], "notes", "correct the name"),
        (["*", "!mail"], "!mail", "correct the name"),
        (["*", "!label:mail"], "!label:mail", "replica.toml"),
        (["DB01"], "DB01", "correct the name"),
    ],
)
def test_a_text_that_means_nothing_is_named(
    site: Path, texts: list[str], bad: str, cure: str
) -> None:
    with pytest.raises(UsageError) as caught:
        survey.resolve(group(*texts), str(site), [f"x.toml, line {n}" for n in (7, 8)])
    line = 7 + texts.index(bad)
    assert f"x.toml, line {line}: group g:" in caught.value.message
    assert f'"{bad}"' in caught.value.message
    assert cure in caught.value.hint


def test_an_unknown_replica_is_told_with_the_line_of_the_plan(site: Path) -> None:
    """Also from a mount host, which does not have the plan's file."""
    path = site / "site.toml"
    path.write_text(
        'version = 1\n\n[[group]]\nname = "db"\nreplicas = [\n  "db01",\n]\n\n'
        '[[group]]\nname = "web"\nreplicas = [\n  "web01",  # the first\n  "web1",\n]\n'
    )
    plan = file.load(str(path))
    asked = survey.request(plan, str(path), plan.group[1], "test")
    with pytest.raises(UsageError, match=r"site\.toml, line 13: group web: \"web1\"") as caught:
        asked_of(asked)
    assert "did you mean web01" in caught.value.hint
    answer = asked_of(survey.request(plan, str(path), plan.group[0], "test"))
    assert names(answer.found) == ["db01"]
    assert answer.points == {"db01": "latest"}


def test_the_place_of_replicas_on_another_host_has_to_be_said(site: Path) -> None:
    path = site / "site.toml"
    path.write_text(
        'version = 1\n[[group]]\nname = "db"\nreplicas = ["db01"]\nqueue = "elsewhere"\n'
    )
    plan = file.load(str(path))
    with pytest.raises(UsageError, match=r"site\.toml, line 5: group db is on another") as caught:
        survey.request(plan, str(path), plan.group[0], "test")
    assert 'root = "/..."' in caught.value.hint
    said = msgspec.structs.replace(plan.group[0], root="/there")
    assert survey.request(plan, str(path), said, "test").root == "/there"


def test_a_moment_without_an_offset_is_meant_where_the_plan_lies(site: Path) -> None:
    path = site / "site.toml"
    path.write_text(
        'version = 1\nrpo_target = "5m"\n'
        '[[group]]\nname = "db"\nreplicas = ["db01"]\npoint = "2026-01-02T03:04:05"\n'
    )
    plan = file.load(str(path))
    asked = survey.request(plan, str(path), plan.group[0], "test")
    assert asked.group.point.endswith("Z")
    assert parse_time(asked.group.point) == parse_time("2026-01-02T03:04:05")
    assert asked.group.rpo_target == "5m"


def test_who_is_left_out_of_everything_is_told(site: Path) -> None:
    with pytest.raises(UsageError, match="leaves out every replica"):
        survey.resolve(group("web*", "!web0?"), str(site))


def test_a_directory_that_is_none_is_told(site: Path) -> None:
    with pytest.raises(UsageError, match="group g: the replicas' directory") as caught:
        survey.resolve(group("*"), str(site / "nowhere"))
    assert "root" in caught.value.hint
    with pytest.raises(UsageError, match="is a replica itself"):
        survey.resolve(group("*"), str(site / "db01"))


def test_a_broken_replica_is_found_by_name_and_labels_are_never_guessed(site: Path) -> None:
    (site / "web01" / "replica.json").write_text("{")
    found = survey.resolve(group("web*"), str(site))
    assert [(one.name, bool(one.id)) for one in found] == [("web01", False), ("web02", True)]
    (site / "web02" / config.FILE_NAME).write_text("labels = 1\n")
    assert names(survey.resolve(group("web*"), str(site))) == ["web01", "web02"]
    with pytest.raises(UsageError, match=r"which labels replica web02 .*line 1") as caught:
        survey.resolve(group("label:db"), str(site))
    assert '"!web02"' in caught.value.hint
    assert names(survey.resolve(group("label:db", "!web02"), str(site))) == ["db01"]
    (site / "db01" / config.FILE_NAME).write_text('labels = ["db"]\n')
    (site / "web01" / config.FILE_NAME).write_text('labels = ["old"]\n')
    found = survey.resolve(group("*", "!label:old", "!web02"), str(site))
    assert names(found) == ["db01"], "who is left out by name need not tell its labels"


def test_datastores_are_vspheres_names_or_the_mount_point(site: Path) -> None:
    (site / "web01" / config.FILE_NAME).write_text(
        f'[hypervisor.datastores]\nouter = "{site.parent}"\ninner = "{site}"\nother = "/nowhere"\n'
    )
    (site / "web02" / config.FILE_NAME).write_text('[hypervisor.datastores]\nbeside = ".."\n')
    found = survey.resolve(group("*"), str(site))
    assert found[1].datastores == ["inner"]
    assert found[2].datastores == ["beside"]
    (mount,) = found[0].datastores
    assert os.path.ismount(mount)
    assert str(site).startswith(mount)


# ---- which points ----


def marked(path: Path, kind: str = "crash", label: str = "") -> Point:
    with Replica.open(path) as replica:
        return replication.mark(replica, kind, label)


def grouped(site: Path, *who: str, kind: str = "crash", label: str = "") -> dict[str, str]:
    with contextlib.ExitStack() as stack:
        replicas = [stack.enter_context(Replica.open(site / name)) for name in who]
        done = groups.mark(replicas, kind, label)
        return {one.replica.name: str(one.point.id) for one in done.members}


def chosen(site: Path, said: Group, kind: str = "unplanned") -> dict[str, str]:
    asked = Request(
        what="resolve", group=said, root=str(site), kind=msgspec.convert(kind, RunKind), run="R1"
    )
    return asked_of(asked).points


def test_latest_is_left_to_the_failover_which_holds_first(site: Path) -> None:
    assert chosen(site, group("*")) == dict.fromkeys(("db01", "web01", "web02"), "latest")
    assert chosen(site, group("db01", same_cut=True)) == {"db01": "latest"}


def test_a_planned_run_takes_the_last_write_and_an_ending_chooses_nothing(site: Path) -> None:
    assert chosen(site, group("db01", point="app"), "planned") == {"db01": "latest"}
    assert chosen(site, group("db01", point="app"), "undo") == {}


def test_a_moment_is_the_newest_point_not_after_it_in_each(site: Path) -> None:
    first = [marked(site / name) for name in ("db01", "web01")]
    for name in ("db01", "web01"):
        marked(site / name)
    moment = first[1].time  # after db01's first, before both second ones
    assert chosen(site, group("db01", "web01", point=moment)) == {
        "db01": str(first[0].id), "web01": str(first[1].id)
    }  # fmt: skip
    with pytest.raises(NotFoundError, match=r"group g, point .*web02: .*no restore point yet"):
        chosen(site, group("*", point=moment))


@pytest.mark.parametrize("same_cut", [False, True])
def test_a_moment_in_a_gap_of_one_replica_is_refused(site: Path, same_cut: bool) -> None:
    grouped(site, "db01", "web01")
    second = marked(site / "db01")
    with Replica.open(site / "web01") as replica, replica.locked() as manifest:
        start = replica.points.latest.time
        manifest.gaps = [Gap(start=start, end=None, cause="the source was away")]
        replica.save()
    with pytest.raises(GapError, match=r"web01.*the source was away") as caught:
        chosen(site, group("db01", "web01", point=second.time, same_cut=same_cut))
    assert "nearest points" in caught.value.hint


def test_a_common_point_is_the_newest_name_that_all_have(site: Path) -> None:
    old = {name: marked(site / name, label="nightly-1") for name in ("db01", "web01")}
    new = {name: marked(site / name, label="nightly-2") for name in ("db01", "web01")}
    again = marked(site / "db01", label="nightly-2")
    marked(site / "db01", label="nightly-3")
    marked(site / "db01", label="release")
    with Replica.open(site / "web01") as replica:
        noting.set_name(replica, str(marked(site / "web01").id), "release")
        release = replica.points.latest.id
    both = ("db01", "web01")
    nightly = chosen(site, group(*both, point="common:nightly-*"))
    assert nightly == {"db01": str(again.id), "web01": str(new["web01"].id)}
    assert chosen(site, group(*both, point="common:nightly-1")) == {
        name: str(point.id) for name, point in old.items()
    }
    assert chosen(site, group(*both, point="common"))["web01"] == str(release)
    with pytest.raises(NotFoundError, match="no named point is in all of") as caught:
        chosen(site, group("*", point="common"))
    assert "none at all: web02" in caught.value.message
    with pytest.raises(NotFoundError):
        chosen(site, group(*both, point="common:nightly-3"))


def test_what_operations_mark_on_their_way_is_no_common_name(site: Path) -> None:
    both = ("db01", "web01")
    wanted = {name: str(marked(site / name, label="release").id) for name in both}
    for label in ("planned failover", "failback", "resynchronised", "plan run R0", ""):
        for name in both:
            marked(site / name, label=label)
    assert chosen(site, group(*both, point="common")) == wanted
    back = chosen(site, group(*both, point="common:failback"))
    assert all(int(back[name]) > int(wanted[name]) for name in both)


def test_app_is_the_newest_application_consistent_point_of_each(site: Path) -> None:
    marked(site / "db01", "app")
    wanted = marked(site / "db01", "app")
    marked(site / "db01")
    assert chosen(site, group("db01", point="app")) == {"db01": str(wanted.id)}
    marked(site / "web01")
    with pytest.raises(NotFoundError, match=r"web01 has no application-consistent.*web02 has no"):
        chosen(site, group("*", point="app"))


def test_one_cut_is_a_point_of_the_group_whatever_came_later(site: Path) -> None:
    both = ("db01", "web01")
    for label in ("nightly-1", "nightly-2"):
        for name in both:
            marked(site / name, label=label)  # the same name is not the same cut
    with pytest.raises(NotFoundError, match="no point is at one cut") as caught:
        chosen(site, group(*both, same_cut=True))
    assert "rollpoint mark DIR DIR" in caught.value.hint
    app = grouped(site, *both, kind="app", label="nightly-1")
    crash = grouped(site, *both, label="nightly-2")
    time_ns = Replica.open(site / "db01").points.by_id(int(app["db01"])).time_ns
    grouped(site, *both, "web02")
    last = grouped(site, *both)
    for name in both:
        marked(site / name, "app", "nightly-1")
    assert chosen(site, group(*both, same_cut=True)) == last
    assert chosen(site, group(*both, same_cut=True, point="app")) == app
    assert chosen(site, group(*both, same_cut=True, point="common:*-1")) == app
    assert chosen(site, group(*both, same_cut=True, point="common")) == crash
    moment = format_time(time_ns)
    assert chosen(site, group(*both, same_cut=True, point=moment)) == app


def test_one_cut_is_made_now_where_all_ingests_are_at_work(site: Path, tmp_path: Path) -> None:
    both = ("db01", "web01")
    old = grouped(site, *both)
    with ingesting(site / "db01", tmp_path / "s0"):
        # web01's writers, if it has any, are nowhere to be seen.
        assert chosen(site, group(*both, same_cut=True)) == old
        with ingesting(site / "web01", tmp_path / "s1"):
            made = chosen(site, group(*both, same_cut=True))
            assert all(int(made[name]) > int(old[name]) for name in both)
            assert chosen(site, group(*both, same_cut=True), "test") == made, "once for each run"
    with Replica.open(site / "db01") as db, Replica.open(site / "web01") as web:
        common = groups.common([db, web])[-1]
        assert [str(point.id) for point in common.points] == [made[name] for name in both]
        assert {point.label for point in common.points} == {"plan run R1"}
    with pytest.raises(NotFoundError):  # nobody gave it a name
        chosen(site, group(*both, same_cut=True, point="common"))
    run = chosen(site, group(*both, same_cut=True, point="common:plan run *"))
    assert run == made


def test_a_replica_that_cannot_be_opened_is_named(site: Path) -> None:
    (site / "web01" / "replica.json").write_text("{")
    with pytest.raises(Exception, match=r"web01/replica\.json"):
        choosing.choose(
            group("*", point="app"), survey.resolve(group("*"), str(site)), "test", "R1"
        )
