"""What starts next in a plan's run: each rule by its name, and random lives beside a model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_lives import Dice, Life, over_limit, random_shape, tasks
from rollpoint.plans.events import NodeState, RunState
from rollpoint.plans.order import Decision, decide, reverse, simulate
from rollpoint.plans.shape import GroupShape, Node, Shape, Spec
from rollpoint.plans.tables import Plan
from rollpoint.units import format_time

SECOND_NS = 1_000_000_000
LIVES = 1000
NOTHING = Decision([], [], None, None)


def group(name: str, *replicas: str, scripts: str = "", **more: Any) -> GroupShape:
    """scripts: "before", "after" or both, for a group that has tasks of its own."""
    made = GroupShape(name=name, nodes=[f"{name}/{one}" for one in replicas], **more)
    made.before = f"{name}|before" if "before" in scripts else ""
    made.after_up = f"{name}|after" if "after" in scripts else ""
    return made


def shape(*groups: GroupShape, queues: str = "", stores: str = "", **limits: Any) -> Shape:
    """queues, stores: a letter for each replica, in the file's order; the last one goes on."""
    nodes: dict[str, Node] = {}
    number = 0
    for one in groups:
        for key in tasks(one):
            kind = "before" if key == one.before else "after" if key == one.after_up else "replica"
            node = Node(key=key, group=one.name, kind=kind)  # type: ignore[arg-type]
            if kind == "replica":
                node.queue = queues[min(number, len(queues) - 1)] if queues else ""
                node.datastores = [stores[min(number, len(stores) - 1)]] if stores else []
                number += 1
            nodes[key] = node
    return Shape(groups=list(groups), nodes=nodes, **limits)


def at(made: Shape, seconds: float = 0.0, **more: Any) -> RunState:
    """A run that began at the moment 0. more: of RunState; words: key -> "word", "word@ended"."""
    words = more.pop("words", {})
    spec = Spec(
        run="r", kind="test", plan=Plan(version=1, group=[]), plan_path="", shape=made, who="",
        host="",
    )  # fmt: skip
    nodes = {key: NodeState(key=key) for key in made.nodes}
    for key, text in words.items():
        word, _, ended = text.partition("@")
        moment = format_time(int(float(ended or seconds) * SECOND_NS))
        over = word in ("done", "failed", "skipped", "asking")
        nodes[key] = NodeState(
            key=key, state=word, attempt=word != "skipped", ended=moment if over else ""
        )
    return RunState(spec=spec, begun=format_time(0), nodes=nodes, **more)


def told(made: Shape, now: float = 0.0, **more: Any) -> Decision:
    words = {key.replace("__", "|").replace("_", "/"): word for key, word in more.items()}
    return decide(made, at(made, words=words), int(now * SECOND_NS))


PAIR = shape(group("a", "x", "y"), group("b", "z", after=["a"]))


def test_a_group_begins_when_all_groups_before_it_are_up() -> None:
    assert told(PAIR) == Decision(["a/x", "a/y"], [], None, None)
    assert told(PAIR, a_x="running", a_y="queued") == NOTHING
    assert told(PAIR, a_x="done", a_y="running") == NOTHING
    assert told(PAIR, a_x="done", a_y="skipped").start == ["b/z"]
    two = shape(group("a", "x"), group("b", "y"), group("c", "z", after=["a", "b"]))
    assert told(two, a_x="done", b_y="running") == NOTHING
    assert told(two, a_x="running", b_y="done") == NOTHING


def test_a_group_is_not_up_while_one_before_it_is_not() -> None:
    """All of b was skipped before it began: c waits for a nevertheless."""
    chain = shape(
        group("a", "x"), group("b", "y", after=["a"]), group("c", "z", after=["b"], delay_seconds=2)
    )
    assert told(chain, a_x="running", b_y="skipped@1") == NOTHING
    assert told(chain, 10, a_x="done@9", b_y="skipped@1") == Decision([], [], 1.0, None)
    assert told(chain, 11, a_x="done@9", b_y="skipped@1").start == ["c/z"]


def test_the_order_of_the_file_need_not_be_that_of_dependency() -> None:
    backwards = shape(group("b", "y", after=["a"]), group("a", "x"))
    assert told(backwards).start == ["a/x"]
    assert told(backwards, a_x="done").start == ["b/y"]


def test_before_comes_first_and_after_up_last() -> None:
    made = shape(group("a", "x", "y", scripts="before after"), group("b", "z", after=["a"]))
    assert told(made).start == ["a|before"]
    assert told(made, a__before="running") == NOTHING
    assert told(made, a__before="done").start == ["a/x", "a/y"]
    assert told(made, a__before="done", a_x="done", a_y="running") == NOTHING
    assert told(made, a__before="skipped", a_x="done", a_y="skipped").start == ["a|after"]
    done = {"a__before": "done", "a_x": "done", "a_y": "done"}
    assert told(made, **done, a__after="running") == NOTHING
    assert told(made, **done, a__after="done").start == ["b/z"]


def test_a_delay_runs_from_the_end_of_the_last_task_before() -> None:
    made = shape(
        group("a", "x"),
        group("b", "y", after=["a"]),
        group("c", "z", after=["a", "b"], delay_seconds=5),
    )
    words = {"a_x": "done@10", "b_y": "done@12"}
    assert told(made, 13, **words) == Decision([], [], 4.0, None)
    assert told(made, 16.75, **words) == Decision([], [], 0.25, None)
    assert told(made, 17, **words).start == ["c/z"]
    assert told(made, 17, a_x="done@10", b_y="skipped@12.5") == Decision([], [], 0.5, None)


def test_a_delay_of_a_group_that_waits_for_none_runs_from_the_beginning() -> None:
    made = shape(group("a", "x", delay_seconds=5))
    assert told(made, 1) == Decision([], [], 4.0, None)
    assert told(made, 5).start == ["a/x"]


def test_a_group_that_has_begun_does_not_wait_for_its_delay_again() -> None:
    made = shape(group("a", "x"), group("b", "y", "z", after=["a"], delay_seconds=5), parallelism=1)
    words = {"a_x": "done@20", "b_y": "done@15"}
    assert told(made, 20, **words).start == ["b/z"]


def test_of_many_delays_the_first_wakes() -> None:
    made = shape(*(group(f"g{n}", "x", delay_seconds=n) for n in (4, 3, 9)))
    assert told(made, 1) == Decision([], [], 2.0, None)


def test_the_limit_of_the_plan_counts_what_is_queued_or_runs() -> None:
    made = shape(group("a", "1", "2", "3", "4"), parallelism=3)
    assert told(made).start == ["a/1", "a/2", "a/3"]
    assert told(made, a_1="queued", a_2="running").start == ["a/3"]
    assert told(made, a_1="queued", a_2="running", a_3="running") == NOTHING


def test_a_host_has_its_own_limit_or_that_of_all_others() -> None:
    made = shape(group("a", *"123456"), queues="eewwnn", hosts={"e": 2, "*": 1})
    assert told(made).start == ["a/1", "a/2", "a/3", "a/5"]
    assert told(made, a_3="running", a_1="running").start == ["a/2", "a/5"]


def test_a_datastore_has_its_own_limit_or_that_of_all_others() -> None:
    made = shape(group("a", *"12345"), stores="ffssb", datastores={"f": 2, "*": 1})
    assert told(made).start == ["a/1", "a/2", "a/3", "a/5"]


def test_a_replica_on_many_datastores_needs_room_on_each() -> None:
    made = shape(group("a", "1", "2", "3"), datastores={"*": 1})
    made.nodes["a/1"].datastores = ["f"]
    made.nodes["a/2"].datastores = ["f", "s"]
    made.nodes["a/3"].datastores = ["s", "s"]
    assert told(made).start == ["a/1", "a/3"]
    assert told(made, a_2="running") == NOTHING


def test_a_replica_with_two_disks_on_a_datastore_counts_there_once() -> None:
    made = shape(group("a", "1", "2", "3"), datastores={"*": 2})
    for node in made.nodes.values():
        node.datastores = ["s", "s"]
    assert told(made).start == ["a/1", "a/2"]


def test_the_parallelism_of_a_group_is_its_own() -> None:
    made = shape(group("a", "1", "2", "3", parallelism=2), group("b", "4", "5", parallelism=1))
    assert told(made).start == ["a/1", "a/2", "b/4"]
    assert told(made, a_1="running", a_2="running", b_4="running") == NOTHING


def test_tasks_of_groups_count_against_no_limit() -> None:
    made = shape(
        group("a", "1", parallelism=1),
        group("b", "2", scripts="before"),
        group("c", "3", scripts="after"),
        parallelism=1,
        hosts={"*": 1},
    )
    assert told(made, a_1="running").start == ["b|before"]
    assert told(made, b__before="running", c_3="done").start == ["a/1", "c|after"]
    assert told(made, b__before="done", c_3="done", c__after="running").start == ["a/1"]


def test_the_smaller_priority_is_first_then_the_order_of_the_file() -> None:
    made = shape(
        group("d", "1"), group("c", "2", priority=7), group("b", "3"), group("a", "4", priority=7)
    )
    assert told(made).start == ["c/2", "a/4", "d/1", "b/3"]
    made.parallelism = 3
    assert told(made).start == ["c/2", "a/4", "d/1"]


def test_what_finds_no_room_does_not_hold_up_what_does() -> None:
    made = shape(group("a", "1", "2", priority=1), group("b", "3"), queues="eew", hosts={"*": 1})
    assert told(made).start == ["a/1", "b/3"]


def test_stop_starts_nothing_new_anywhere_and_ends_when_all_is_quiet() -> None:
    made = shape(group("a", "1", "2"), group("b", "3", on_failure="continue"))
    assert told(made, a_1="failed") == Decision([], [], None, "failed")
    assert told(made, a_1="failed", b_3="running") == NOTHING
    assert told(made, a_1="failed", a_2="done", b_3="done").end == "failed"
    own = shape(group("a", "1", scripts="before after"), group("b", "3"))
    assert told(own, a__before="failed").end == "failed"
    assert told(own, a__before="done", a_1="done", a__after="failed").end == "failed"


def test_stop_asks_nobody() -> None:
    made = shape(group("a", "1"), group("b", "2", on_failure="ask"), group("c", "3"))
    assert told(made, a_1="failed", b_2="failed", c_3="running") == NOTHING
    assert told(made, a_1="failed", b_2="asking").end == "failed"


def test_continue_counts_the_failed_one_as_up_but_the_run_has_failed() -> None:
    made = shape(
        group("a", "1", "2", on_failure="continue", scripts="after"), group("b", "3", after=["a"])
    )
    assert told(made, a_1="failed", a_2="running") == NOTHING
    assert told(made, a_1="failed", a_2="done").start == ["a|after"]
    words = {"a_1": "failed", "a_2": "done", "a__after": "failed"}
    assert told(made, **words).start == ["b/3"]
    assert told(made, **words, b_3="done").end == "failed"


def test_a_before_that_failed_gives_up_its_group() -> None:
    def made(word: Any) -> Shape:
        first = group("a", "1", on_failure=word, scripts="before after")
        return shape(first, group("b", "2", after=["a"]), group("c", "3"))

    going = {"a__before": "failed", "c_3": "done"}
    assert told(made("stop"), **going).end == "failed"
    assert told(made("ask"), **going) == Decision([], ["a|before"], None, None)
    assert told(made("continue"), **going).start == ["b/2"]
    assert told(made("continue"), **going, b_2="done").end == "failed"


def test_ask_holds_its_group_and_those_after_it_alone() -> None:
    made = shape(
        group("a", "1", "2", on_failure="ask", parallelism=1),
        group("b", "3", after=["a"]),
        group("c", "4"),
        group("d", "5", after=["c"]),
    )
    assert told(made, a_1="failed") == Decision(["c/4"], ["a/1"], None, None)
    assert told(made, a_1="asking", c_4="done").start == ["d/5"]
    assert told(made, a_1="asking", c_4="done", d_5="done") == NOTHING
    assert told(made, a_1="skipped", c_4="done", d_5="done").start == ["a/2"]


def test_a_pause_starts_nothing_and_still_asks() -> None:
    made = shape(group("a", "1", on_failure="ask"), group("b", "2"), group("c", "3", after=["b"]))
    state = at(made, words={"a/1": "failed", "b/2": "done"}, paused=True)
    assert decide(made, state, 0) == Decision([], ["a/1"], None, None)
    waiting = at(made, words={"a/1": "done", "b/2": "done"}, paused=True)
    assert decide(made, waiting, 0) == NOTHING


def test_a_paused_run_that_has_nothing_left_to_do_ends() -> None:
    made = shape(group("a", "1"))
    assert decide(made, at(made, words={"a/1": "done"}, paused=True), 0).end == "done"


def test_a_delay_that_ends_in_a_pause_wakes_nobody() -> None:
    made = shape(group("a", "1", delay_seconds=5))
    assert decide(made, at(made, paused=True), 0) == NOTHING


def test_cancel_starts_nothing_asks_nothing_and_ends_when_all_is_quiet() -> None:
    made = shape(group("a", "1", "2", on_failure="ask"), group("b", "3"))
    busy = at(made, words={"a/1": "failed", "a/2": "running"}, asked_to_cancel=True)
    assert decide(made, busy, 0) == NOTHING
    quiet = at(made, words={"a/1": "failed", "a/2": "done"}, asked_to_cancel=True)
    assert decide(made, quiet, 0).end == "cancelled"


def test_all_up_is_done_also_when_some_were_skipped() -> None:
    assert told(PAIR, a_x="done", a_y="skipped", b_z="done").end == "done"


def test_a_run_that_has_ended_wants_nothing() -> None:
    assert decide(PAIR, at(PAIR, ended=format_time(1), state="failed"), 0) == NOTHING


def test_a_failure_from_before_a_reopening_stops_only_its_own_group() -> None:
    made = shape(group("a", "1", "2", "3"), group("b", "4"), group("c", "5", after=["a"]))
    state = at(made, words={"a/1": "failed", "a/2": "failed"})
    state.nodes["a/1"].seen = True
    assert decide(made, state, 0).end == "failed"
    state.nodes["a/2"].state = "running"
    assert decide(made, state, 0).start == ["b/4"]
    for key in ("a/2", "a/3", "b/4"):
        state.nodes[key].state = "done"
    assert decide(made, state, 0).end == "failed"


def test_nothing_at_all_is_done() -> None:
    assert decide(shape(), at(shape()), 0).end == "done"


def test_reverse_turns_the_edges_the_file_and_the_priorities_round() -> None:
    made = shape(
        group("db", "1", "2", priority=1, delay_seconds=9),
        group("web", "3", after=["db"], scripts="before after", parallelism=1, on_failure="ask"),
        group("mail", "4", after=["db"], priority=5),
        parallelism=3,
        hosts={"*": 2},
        datastores={"f": 1},
    )
    back = reverse(made)
    assert [one.name for one in back.groups] == ["mail", "web", "db"]
    assert back.group("db").after == ["mail", "web"]
    assert back.group("db").nodes == ["db/2", "db/1"]
    assert back.group("web").after == back.group("mail").after == []
    web = back.group("web")
    assert (web.before, web.after_up) == ("web|before", "web|after")
    assert (web.parallelism, web.on_failure) == (1, "ask")
    assert (back.nodes, back.parallelism) == (made.nodes, 3)
    assert (back.hosts, back.datastores) == ({"*": 2}, {"f": 1})
    assert [one.delay_seconds for one in back.groups] == [0.0, 0.0, 0.0]
    assert told(back).start == ["web|before", "mail/4"]
    assert {one.name: one.after for one in reverse(back).groups} == {
        "db": [], "web": ["db"], "mail": ["db"],
    }  # fmt: skip


def test_simulate_tells_when_each_task_begins_and_ends() -> None:
    made = shape(
        group("a", "1", "2", "3", parallelism=2, scripts="after"),
        group("b", "4", after=["a"], delay_seconds=2.5),
    )
    seconds = {"a/1": 4.0, "a/2": 6.0, "a/3": 1.5, "a|after": 1.0, "b/4": 0.25}
    assert simulate(made, seconds) == {
        "a/1": (0.0, 4.0),
        "a/2": (0.0, 6.0),
        "a/3": (4.0, 5.5),
        "a|after": (6.0, 7.0),
        "b/4": (9.5, 9.75),
    }
    assert set(simulate(made, {}).values()) == {(0.0, 0.0), (2.5, 2.5)}


def test_a_simulated_delay_ends_while_others_run() -> None:
    made = shape(group("a", "1"), group("b", "2", delay_seconds=3), group("c", "3", after=["b"]))
    times = simulate(made, {"a/1": 60.0, "b/2": 1.0, "c/3": 1.0})
    assert times == {"a/1": (0.0, 60.0), "b/2": (3.0, 4.0), "c/3": (4.0, 5.0)}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(min_size=200, max_size=200))
def test_a_simulated_timeline_keeps_order_delays_and_limits(data: bytes) -> None:
    dice = Dice(data)
    made = random_shape(dice)
    seconds = {key: dice.pick(1.0, 0.25, 2.5, 30.0) for key in made.nodes}
    times = simulate(made, seconds)
    assert times.keys() == made.nodes.keys()
    for one in made.groups:
        ends = [times[key][1] for name in one.after for key in tasks(made.group(name))]
        begins = [times[key][0] for key in tasks(one)]
        assert min(begins) >= max(ends, default=0.0) + one.delay_seconds
    for key, (begin, end) in times.items():
        assert end - begin == pytest.approx(seconds[key])
        mine = made.group(made.nodes[key].group)
        if mine.before and key != mine.before:
            assert begin >= times[mine.before][1]
        if mine.after_up and key != mine.after_up:
            assert end <= times[mine.after_up][0]
        busy = [other for other, (b, e) in times.items() if b <= begin < e]
        assert over_limit(made, [*busy, *([] if key in busy else [key])], key) == ""


# Lives in which each of these happens at least once, of the thousand: else it is no proof.
MET = {
    "failed": 300, "asking": 100, "retry": 100, "skip": 100, "paused": 50, "cancelled": 50,
    "reopened": 100, "late": 100, "delay": 100, "end done": 200, "end failed": 100,
    "end cancelled": 50,
}  # fmt: skip


def test_a_thousand_random_plans_go_as_a_plain_model_says() -> None:
    """Order, limits, asks, ends and wakes at every moment, whatever fails and is asked for."""
    lives: Counter[str] = Counter()

    @settings(
        max_examples=LIVES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.binary(min_size=300, max_size=300))
    def live(data: bytes) -> None:
        lives.update(set(Life(data).run()))

    live()
    assert {word: lives[word] for word, least in MET.items() if lives[word] < least} == {}
