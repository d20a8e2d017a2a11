"""The report of a plan's run: the truth of its events, whole, and harmless."""

from __future__ import annotations

import json
import random
import re
import stat
from pathlib import Path
from typing import Any

import plan_runs
import pytest
from rollpoint.errors import Error
from rollpoint.plans import page, picture, report
from rollpoint.plans.events import fold
from rollpoint.units import parse_time
from test_operation_report import HOSTILE, harmless


def facts(story: plan_runs.Story) -> dict[str, Any]:
    return report.facts(*story.told())


def tasks(told: dict[str, Any]) -> dict[str, Any]:
    return {task["key"]: task for task in told["tasks"]}


# ---- what it says ----


@pytest.mark.parametrize(("count", "groups"), [(3, 1), (12, 4), (200, 4)])
def test_a_run_in_which_all_went_well(count: int, groups: int) -> None:
    told = facts(plan_runs.all_up(count, groups, rto_target="10s", plan_rto_target="1h"))
    assert told["run"]["state"] == "done"
    assert told["totals"] == {
        "replicas": count, "up": count, "failed": 0, "skipped": 0, "other": 0,
        "gates": count, "gates_passed": count, "failed_attempts": 0,
    }  # fmt: skip
    assert told["rto"] == {
        "seconds": groups * 12.0, "last": f"group-{groups - 1}|after", "missing_replicas": 0,
        "missing_groups": 0, "target_seconds": 3600.0, "met": True,
    }  # fmt: skip
    for task in told["tasks"]:
        if task["kind"] == "replica":
            assert task["rto"]["seconds"] == 10.0
            assert task["rto"]["met"]
            assert task["rto"]["operation_seconds"] == 5.0
            assert [part["part"] for part in task["attempts"][0]["parts"]] == [
                "script", "operation", "gate"
            ]  # fmt: skip
    seen = harmless(page.render(told))
    for number in range(count):
        assert f"vm-{number:03d}" in seen.texts
    assert f"{count} of {count}" in seen.texts
    assert f"12:{plan_runs.HASH}" in seen.texts


def test_parts_of_an_attempt_lie_where_their_events_say() -> None:
    task = tasks(facts(plan_runs.all_up(1)))["group-0/vm-000"]
    begun = parse_time(plan_runs.BEGUN)
    places = [
        (part["part"], (parse_time(part["begun"]) - begun) / 1e9,
         (parse_time(part["ended"]) - begun) / 1e9)
        for part in task["attempts"][0]["parts"]
    ]  # fmt: skip
    assert places == [("script", 1, 3), ("operation", 3, 8), ("gate", 8, 11)]


def test_failures_retries_and_skips_are_told() -> None:
    told = facts(plan_runs.troubled())
    by_key = tasks(told)
    assert told["totals"]["up"] == 7
    assert (told["totals"]["failed"], told["totals"]["skipped"], told["totals"]["other"]) == (
        1, 1, 3
    )  # fmt: skip
    again = by_key["group-1/vm-003"]
    assert [row["state"] for row in again["attempts"]] == ["failed", "done"]
    assert again["attempts"][0]["error"] == "no such host"
    assert again["rto"]["seconds"] == 57.0, "what failed before counts"
    assert again["rto"]["met"] is False
    assert (again["rpo"]["seconds"], again["rpo"]["met"]) == (9.0, False)
    broken = by_key["group-2/vm-007"]
    assert (broken["state"], broken["rto"]["seconds"], broken["rto"]["met"]) == (
        "failed", None, False
    )  # fmt: skip
    assert [word["kind"] for word in told["words"]] == ["retry", "skip"]
    assert (told["rto"]["met"], told["rto"]["missing_replicas"]) == (False, 5)
    assert told["rpo"] == {
        "seconds": 9.0, "worst": "group-1/vm-003", "unknown": 4, "target_seconds": None,
        "met": None,
    }  # fmt: skip
    groups = {group["name"]: group for group in told["groups"]}
    assert [groups[f"group-{n}"]["missed_targets"] for n in range(4)] == [0, 2, 1, 0]
    seen = harmless(page.render(told)).text
    for words in ("no such host", "tried again", "gate ssh: refused", "look at its console",
                  "retired", "9.00 s (target 5.00 s)"):  # fmt: skip
        assert words in seen


@pytest.mark.parametrize(
    ("target", "lost", "met"),
    [("1s", 2.0, False), ("2s", 2.0, True), ("2s", None, None), ("", 2.0, None)],
)
def test_the_worst_loss_is_measured_against_the_target(
    target: str, lost: float | None, met: bool | None
) -> None:
    story = plan_runs.Story({"g": ["a", "b"]}, plan_rpo_target=target)
    story.recovers(0, "g/a", rpo_seconds=1.0)
    story.recovers(0, "g/b", rpo_seconds=lost)
    told = facts(story)
    assert told["rpo"]["met"] is met
    assert tasks(told)["g/b"]["rpo"]["met"] is met


def test_a_target_of_time_is_missed_by_gates_too() -> None:
    """An operation of 5 s in a run whose gates need another 3 s."""
    for target, met in (("9s", False), ("11s", False), ("12s", True)):
        told = facts(plan_runs.all_up(3, rto_target="9s", plan_rto_target=target))
        assert told["rto"]["met"] is met
        assert all(task["rto"]["met"] is False for task in told["tasks"] if task["rto"])


def test_a_run_is_not_in_time_when_one_was_left_out() -> None:
    story = plan_runs.Story({"g": ["a", "b"]}, plan_rto_target="1h")
    story.around(0, "g|before")
    story.recovers(1, "g/a")
    story.tell(2, "skip", "g/b", 0, {"who": "eve"})
    story.around(11, "g|after")
    assert facts(story)["rto"]["met"] is None, "while it goes on nothing is decided"
    story.tell(12, "ended", data={"state": "done"})
    told = facts(story)
    assert (told["rto"]["met"], told["rto"]["seconds"]) == (False, 12.0)


@pytest.mark.parametrize("kind", ["undo", "permanent", "failback", "commit"])
def test_what_ends_another_run_has_no_targets(kind: Any) -> None:
    told = facts(plan_runs.all_up(3, 1, kind, rto_target="1s", rpo_target="1s",
                                  plan_rto_target="1s", plan_rpo_target="1s"))  # fmt: skip
    assert (told["rto"]["met"], told["rpo"]["met"]) == (None, None)
    assert "RTO)" not in harmless(page.render(told)).text


def test_a_report_can_be_made_at_every_moment_of_a_run() -> None:
    """Of each beginning of the events: it renders, and nothing of it is in the future."""
    _, events = plan_runs.troubled().told()
    for count in range(1, len(events) + 1):
        some = events[:count]
        told = report.facts(fold(some), some)
        for task in told["tasks"]:
            for attempt in task["attempts"]:
                for part in attempt["parts"]:
                    assert part["begun"] <= (part["ended"] or told["run"]["until"])
                    assert part["begun"] >= told["run"]["begun"]
        harmless(page.render(told))


def test_an_attempt_that_was_given_up_is_told() -> None:
    """A worker died; another one began again."""
    story = plan_runs.Story({"g": ["a"]})
    story.starts(1, "g/a")
    story.passes(2, 3, "g/a", "looking")
    story.recovers(9, "g/a", attempt=2)
    first, second = tasks(facts(story))["g/a"]["attempts"]
    assert (first["state"], first["ended"]) == ("given up", None)
    assert second["state"] == "done"


def test_attempts_are_what_the_fold_says_of_them_whatever_is_told_late() -> None:
    """Random events, of workers that were replaced too: the newest attempt is the task's."""
    for seed in range(400):
        rng = random.Random(seed)
        story = plan_runs.Story({"g": ["a"]})
        newest = 0
        for at in range(1, rng.randrange(2, 25)):
            newest += rng.random() < 0.2
            kind: Any = rng.choice(["queued", "started", "done", "failed", "gate", "operation",
                                    "retry", "skip", "asking"])  # fmt: skip
            attempt = rng.choice([newest, newest, max(newest - 1, 0)])
            data = {
                "failed": {"error": "x", "at": "operation", "operation_failed": True},
                "gate": {"name": "gate", "state": rng.choice(["looking", "passed"])},
                "operation": {"operation": "x", "seconds": 0.5},
            }.get(kind, {})
            story.tell(at, kind, "g/a", attempt, data)
        state, events = story.told()
        node, task = state.nodes["g/a"], tasks(report.facts(state, events))["g/a"]
        rows = task["attempts"]
        assert (rows[-1]["attempt"] if rows else 0) == node.attempt, seed
        if rows:
            last = rows[-1]
            assert (last["started"] or "") == node.started, seed
            if node.state in ("done", "failed", "asking"):
                wanted = "done" if node.state == "done" else "failed"
                assert (last["state"], last["ended"]) == (wanted, node.ended), seed
            if node.state in ("queued", "running"):
                assert last["state"] == node.state, seed
            assert all(row["state"] in ("failed", "done", "given up") for row in rows[:-1]), seed
        page.render(report.facts(state, events))


# ---- files ----


def test_both_files_are_written_and_written_again(tmp_path: Path) -> None:
    state, events = plan_runs.troubled().told()
    first = report.write(state, events, str(tmp_path))
    assert [Path(path).name for path in first] == [
        "20261123-100000-ab12.json", "20261123-100000-ab12.html"
    ]  # fmt: skip
    told = json.loads(Path(first[0]).read_text())
    assert (told["format"], told["version"]) == ("rollpoint-plan-run", 1)
    wanted = {**report.facts(state, events), "written": told["written"]}
    assert told == json.loads(json.dumps(wanted))
    assert Path(first[1]).read_text() == page.render(told)
    assert report.write(state, events, str(tmp_path)) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        Path(path).name for path in first
    )
    for path in first:
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600


def test_where_no_report_can_be_written_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(Error, match="nowhere"):
        report.write(*plan_runs.all_up(1).told(), str(tmp_path / "nowhere"))


def test_what_others_wrote_is_text_and_nothing_else(tmp_path: Path) -> None:
    story = plan_runs.Story({HOSTILE: [HOSTILE]}, name=HOSTILE)
    key = f"{HOSTILE}/{HOSTILE}"
    story.tell(0, "worker", data={"queue": HOSTILE, "host": HOSTILE})
    story.starts(1, key)
    story.fails(2, key, HOSTILE)
    story.tell(3, "retry", key, 1, {"who": HOSTILE, "host": HOSTILE, "reason": HOSTILE})
    row = {name: HOSTILE for name in ("kind", "time", "says", "source", "name", "state", "reason")}
    story.recovers(9, key, 2, evidence=[{**row, "time": plan_runs.BEGUN}], checks=[row],
                   operation=HOSTILE, state=HOSTILE)  # fmt: skip
    told = facts(story)
    shown = page.render(told)
    seen = harmless(shown)
    assert seen.text.count("<script>alert(2)</script>") >= 15
    for mark in ("\x00", "\x1b", "\u202e"):
        assert mark not in shown


# ---- the picture ----


def test_a_bar_never_leaves_the_picture() -> None:
    """Random spans, also ones that begin before the run does: clocks of hosts disagree."""
    rng = random.Random(7)
    for _ in range(300):
        spans = []
        for _ in range(rng.randrange(1, 8)):
            begin = rng.randrange(0, 10 ** rng.randrange(1, 18))
            spans.append((begin, begin + rng.randrange(0, 10 ** rng.randrange(1, 15))))
        axis = picture.Axis(1000, spans)
        places = [axis.x(1000 + moment) for moment in sorted({0, *(a for a, _ in spans)})]
        assert places == sorted(places), "later is further to the right"
        for moment in (-(10**9), 0, *(end for _, end in spans), 10**20):
            assert picture.LEFT <= axis.x(1000 + moment) <= picture.LEFT + picture.WIDTH + 1e-6


def test_a_long_pause_is_cut_and_said() -> None:
    """A run that failed, and was gone on with after a night."""
    story = plan_runs.Story({"g": ["a"]})
    story.fails(0, "g/a")
    story.tell(5, "ended", data={"state": "failed"})
    story.tell(40_000, "reopened", data={"who": "eve"})
    story.tell(40_000, "retry", "g/a", 1, {"who": "eve"})
    story.recovers(40_001, "g/a", attempt=2)
    told = facts(story)
    assert tasks(told)["g/a"]["rto"]["seconds"] == 40_011.0
    shown = picture.draw(told)
    assert "Pauses" in shown
    assert 'class="pause"' in shown
    widths = [float(found) for found in re.findall(r'width="([0-9.]+)" height="12">', shown)]
    assert max(widths) > picture.WIDTH / 5
    assert "11 h 6 m" in shown, "the axis tells the time that really passed"
    assert "Pauses" not in picture.draw(facts(plan_runs.all_up(3)))
