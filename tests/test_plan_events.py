"""What a run is, from its events: each kind by what it changes, and what comes too late."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_lives import Life
from rollpoint.plans.events import Event, EventKind, NodeState, RunState, fold
from rollpoint.plans.shape import GroupShape, Node, Shape, Spec
from rollpoint.plans.tables import Plan
from rollpoint.units import format_time

KEY = "a/x"


def spec() -> Spec:
    nodes = {key: Node(key=key, group="a", kind="replica") for key in (KEY, "a/y")}
    shape = Shape(groups=[GroupShape(name="a", nodes=list(nodes))], nodes=nodes)
    return Spec(
        run="r", kind="unplanned", plan=Plan(version=1, group=[]), plan_path="/p", shape=shape,
        who="w", host="h",
    )  # fmt: skip


class Run:
    """Events one second after another, folded as they come."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.state: RunState | None = None
        self.add("begun", "", 0, msgspec.to_builtins(spec()))

    def say(self, kind: EventKind, key: str = KEY, attempt: int = 1, **data: Any) -> NodeState:
        return self.add(kind, key, attempt, data).nodes[key]

    def tell(self, kind: EventKind, **data: Any) -> RunState:
        return self.add(kind, "", 0, data)

    def add(self, kind: EventKind, key: str, attempt: int, data: dict[str, Any]) -> RunState:
        seq = len(self.events) + 1
        time = moment(seq)
        event = Event(seq=seq, time=time, run="r", kind=kind, key=key, attempt=attempt, data=data)
        self.events.append(event)
        self.state = fold([event], self.state)
        return self.state


def moment(seq: int) -> str:
    return format_time(seq * 1_000_000_000)


@pytest.fixture
def run() -> Run:
    return Run()


def test_a_run_begins_with_all_its_tasks_waiting(run: Run) -> None:
    state = run.state
    assert state is not None
    assert state.spec == spec()
    assert (state.state, state.begun, state.ended, state.seq) == ("running", moment(1), "", 1)
    assert [node.state for node in state.nodes.values()] == ["waiting", "waiting"]


def test_an_attempt_from_queue_to_end(run: Run) -> None:
    assert run.say("queued").state == "queued"
    node = run.say("started", host="east")
    assert (node.state, node.host, node.started, node.attempt) == ("running", "east", moment(3), 1)
    assert run.say("step", name="boot", state="running").stage == "boot"
    assert run.say("script", name="dns", state="done").stage == "dns"
    assert run.say("gate", name="port", state="passed", tries=3).stage == "port"
    assert run.say("operation", rto_seconds=1.5).outcome == {"rto_seconds": 1.5}
    node = run.say("done")
    assert (node.state, node.ended, node.stage) == ("done", moment(8), "")
    assert [len(node.steps), len(node.scripts), len(node.gates)] == [1, 1, 1]
    assert run.state is not None
    assert run.state.nodes["a/y"] == NodeState(key="a/y")


def test_the_newest_row_of_each_name_stands_where_its_first_one_stood(run: Run) -> None:
    run.say("queued")
    run.say("started")
    for name, word in (("fence", "running"), ("boot", "running"), ("fence", "done")):
        run.say("step", name=name, state=word)
    node = run.say("gate", name="fence", state="failed")
    assert node.steps == [
        {"name": "fence", "state": "done"},
        {"name": "boot", "state": "running"},
    ]
    assert node.gates == [{"name": "fence", "state": "failed"}]


def test_a_failure_says_what_why_and_where(run: Run) -> None:
    run.say("queued")
    run.say("started")
    run.say("step", name="boot", state="running")
    node = run.say("failed", error="no", hint="look", at="boot", operation_failed=True)
    assert (node.state, node.error, node.hint, node.failed_at) == ("failed", "no", "look", "boot")
    assert (node.tries, node.ended) == (1, moment(5))
    assert run.say("asking").state == "asking"


def test_only_an_operation_that_failed_counts_as_a_try(run: Run) -> None:
    run.say("queued")
    assert run.say("failed", error="a gate").tries == 0
    run.say("retry")
    run.say("queued", attempt=2)
    assert run.say("failed", attempt=2, error="no", operation_failed=True).tries == 1


@pytest.mark.parametrize("asked", [False, True])
def test_a_retry_lets_it_wait_and_the_next_attempt_begin_anew(run: Run, asked: bool) -> None:
    run.say("queued")
    run.say("started")
    run.say("operation", operation="r-1")
    run.say("failed", error="no", hint="look", at="boot")
    if asked:
        run.say("asking")
    node = run.say("retry")
    assert (node.state, node.error, node.hint, node.failed_at) == ("waiting", "", "", "")
    node = run.say("queued", attempt=2)
    assert (node.state, node.attempt, node.started, node.ended) == ("queued", 2, "", "")
    assert node.outcome == {"operation": "r-1"}
    node = run.say("started", attempt=2)
    assert node.first_started == moment(3) < node.started


@pytest.mark.parametrize("words", [[], ["queued", "failed"], ["queued", "failed", "asking"]])
def test_what_waits_or_failed_can_be_skipped(run: Run, words: list[EventKind]) -> None:
    for word in words:
        run.say(word, error="no")
    node = run.say("skip")
    assert (node.state, node.ended, node.stage) == ("skipped", moment(len(words) + 2), "")
    assert run.say("retry").state == "skipped"
    assert run.say("asking").state == "skipped"


def test_what_is_under_way_or_done_is_neither_skipped_nor_tried_again(run: Run) -> None:
    for word in ("queued", "started", "done"):
        before = run.say(word).state  # type: ignore[arg-type]
        assert run.say("skip").state == before
        assert run.say("retry").state == before


def test_a_skip_that_comes_before_the_queue_has_heard_of_it_is_too_late(run: Run) -> None:
    """The task is on its way: what it does must not be shown as skipped."""
    run.say("skip")
    assert run.say("queued").state == "queued"


def test_somebody_is_asked_about_a_failure_alone(run: Run) -> None:
    assert run.say("asking", attempt=0).state == "waiting"
    run.say("queued")
    assert run.say("asking").state == "queued"
    run.say("failed", error="no")
    run.say("retry")
    assert run.say("asking").state == "waiting"


LATE: list[EventKind] = ["queued", "started", "step", "operation", "script", "gate", "done",
                         "failed"]  # fmt: skip


@pytest.mark.parametrize("kind", LATE)
@pytest.mark.parametrize(
    "words", [["done"], ["failed"], ["failed", "retry"], ["failed", "skip"], ["failed", "asking"]]
)
def test_what_is_told_of_an_attempt_after_its_end_changes_nothing(
    run: Run, kind: EventKind, words: list[EventKind]
) -> None:
    """By a worker that was replaced, and did not know yet."""
    for word in ("queued", "started", *words):
        run.say(word, error="no", host="east")  # type: ignore[arg-type]
    before = msgspec.to_builtins(run.state)
    run.say(kind, name="boot", error="late", host="west", operation_failed=True)
    assert msgspec.to_builtins(run.state) == before | {"seq": before["seq"] + 1}


@pytest.mark.parametrize("kind", LATE)
def test_what_is_told_of_an_older_attempt_changes_nothing(run: Run, kind: EventKind) -> None:
    for word in ("queued", "failed", "retry"):
        run.say(word, error="no")  # type: ignore[arg-type]
    run.say("queued", attempt=2)
    before = msgspec.to_builtins(run.state)
    run.say(kind, name="boot", error="late")
    assert msgspec.to_builtins(run.state) == before | {"seq": before["seq"] + 1}


def test_a_second_host_that_takes_an_attempt_over_does_not_shorten_it(run: Run) -> None:
    run.say("queued")
    run.say("started", host="east")
    node = run.say("started", host="west")
    assert (node.host, node.started, node.first_started) == ("west", moment(3), moment(3))


def test_pause_continue_and_cancel(run: Run) -> None:
    assert run.tell("paused").paused
    assert not run.tell("continued").paused
    assert run.tell("cancelled").asked_to_cancel
    state = run.tell("continued")
    assert state.asked_to_cancel
    assert state.state == "running"


def test_an_end_and_an_opening_again(run: Run) -> None:
    run.say("queued")
    run.say("failed", error="no")
    run.tell("paused")
    run.tell("cancelled")
    state = run.tell("ended", state="cancelled")
    assert (state.state, state.ended, state.reopened) == ("cancelled", moment(6), 0)
    state = run.tell("reopened")
    assert (state.state, state.ended, state.reopened) == ("running", "", 1)
    assert not state.paused
    assert not state.asked_to_cancel
    assert [node.seen for node in state.nodes.values()] == [True, False]
    assert state.nodes[KEY].state == "failed"
    run.say("retry")
    assert not state.nodes[KEY].seen


def test_an_end_that_did_not_see_a_word_about_a_task_is_none(run: Run) -> None:
    run.say("queued")
    run.say("failed", error="no")
    run.say("retry")
    assert run.tell("ended", state="failed", seen=3).ended == ""
    run.say("queued", attempt=2)
    run.say("failed", attempt=2, error="no")
    assert run.tell("ended", state="failed", seen=7).state == "failed"


def test_a_failure_after_the_opening_is_a_new_one(run: Run) -> None:
    run.say("queued")
    run.say("failed", error="no")
    run.tell("ended", state="failed")
    run.tell("reopened")
    run.say("retry")
    run.say("queued", attempt=2)
    node = run.say("failed", attempt=2, error="again")
    assert (node.state, node.error, node.seen) == ("failed", "again", False)


def test_a_worker_is_known_by_its_queue(run: Run) -> None:
    run.tell("worker", queue="east", state="came")
    state = run.tell("worker", queue="east", state="went")
    assert state.workers == {"east": {"queue": "east", "state": "went"}}


def test_numbers_may_have_gaps(run: Run) -> None:
    event = Event(seq=40, time=moment(9), run="r", kind="paused")
    assert fold([event], run.state).seq == 40


def test_two_runs_share_nothing() -> None:
    one, other = Run(), Run()
    one.say("queued")
    one.say("step", name="boot", state="running")
    one.tell("worker", queue="east")
    assert other.state == Run().state


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.binary(min_size=150, max_size=150), st.integers(1, 200))
def test_a_fold_of_parts_and_of_events_that_were_stored_is_the_same(data: bytes, at: int) -> None:
    life = Life(data)
    life.run()
    stored = msgspec.json.decode(msgspec.json.encode(life.events), type=list[Event])
    whole = fold(stored)
    assert whole == life.state
    cut = min(at, len(stored) - 1)
    assert fold(stored[cut:], fold(stored[:cut])) == whole
    shown = msgspec.json.encode(whole)
    assert msgspec.json.decode(shown, type=RunState) == whole
