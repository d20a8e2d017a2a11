"""The live table stays within its terminal; the stream of events waits for nobody."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from replicas import wait_until
from rich.console import Console
from rollpoint.cli import plan_table
from rollpoint.cli.plan_table import RunView
from rollpoint.errors import LockedError, UsageError
from rollpoint.plans.events import Event, NodeState, RunState, fold
from rollpoint.plans.shape import GroupShape, Node, Shape, Spec
from rollpoint.plans.stream import Stream
from rollpoint.plans.tables import Group, Plan

BEGUN = "2026-11-23T04:00:00.000000Z"
LATER = "2026-11-23T04:01:05.000000Z"
WORDS = ("waiting", "queued", "running", "asking", "done", "failed", "skipped")


def run_of(sizes: list[int], words: Any = None) -> RunState:
    """A run with that many replicas in each group; words: state of each, in order."""
    groups, nodes = [], {}
    for number, size in enumerate(sizes):
        name = f"group{number}"
        keys = [f"{name}/vm{number}-{at:03d}" for at in range(size)]
        for key in keys:
            nodes[key] = Node(
                key=key, group=name, kind="replica", name=key.partition("/")[2], directory="/r"
            )
        after = [f"group{number - 1}"] if number else []
        groups.append(GroupShape(name=name, nodes=keys, after=after))
    spec = Spec(
        run="r1",
        kind="test",
        plan=Plan(version=1, name="shop", group=[Group(name="g", replicas=["*"])]),
        plan_path="/p.toml",
        shape=Shape(groups=groups, nodes=nodes),
        who="me",
        host="here",
    )
    begun = Event(seq=1, time=BEGUN, run="r1", kind="begun", data=msgspec.to_builtins(spec))
    state = fold([begun])
    for key, word in zip(nodes, words or (), strict=False):
        state.nodes[key] = node_of(key, word)
    return state


def node_of(key: str, word: Any) -> NodeState:
    node = NodeState(key=key, state=word, attempt=1)
    if word != "waiting":
        node.started = BEGUN
    if word in ("done", "failed", "asking", "skipped"):
        node.ended = LATER
    if word in ("failed", "asking"):
        node.error, node.failed_at = "the disk\nis \x1b[31mgone, " * 20, "recover"
    if word == "running":
        node.stage = "power-on"
        node.gates = [{"name": "http", "state": "running", "tries": 7, "seconds": 1.0}]
    if word == "done":
        node.outcome = {"rpo_seconds": 2.5, "rpo_says": "at most: the newest point"}
    return node


def drawn(state: RunState, width: int, height: int, prompt: str = "") -> list[str]:
    out = io.StringIO()
    console = Console(
        file=out, width=width, height=height, force_terminal=True, color_system=None
    )
    console.print(RunView(state, prompt=prompt))
    return out.getvalue().splitlines()


def test_200_replicas_fit_and_what_matters_is_there() -> None:
    words = ["done"] * 100 + ["running"] * 8 + ["failed", "asking"] + ["waiting"] * 90
    lines = drawn(run_of([50, 50, 50, 50], words), 100, 24)
    assert len(lines) <= 23
    text = "\n".join(lines)
    assert "shop" in lines[0]
    assert "100 of 200 done" in lines[0]
    for number in range(100, 110):  # eight that run, one failed, one that asks
        assert f"vm2-{number - 100:03d}" in text
    for number in range(4):
        assert f"group{number} " in text
    assert "50 of 50 up" in text
    assert "after group2" in text
    assert "http running, 7×" in text
    assert "more lines" in lines[-1]
    assert "of them run" not in lines[-1]


def test_all_is_shown_where_there_is_room() -> None:
    state = run_of([3, 2], ["done", "failed", "running"])
    lines = drawn(state, 120, 60)
    assert len(lines) == 2 + 2 + 5
    text = "\n".join(lines)
    assert "≤ 2.50 s" in text
    assert "1:05" in text
    assert "failed at recover: the disk" in text
    assert "\x1b[31m" not in text  # what a replica says is no command to the terminal


def test_where_not_even_what_runs_fits_it_says_how_many_are_missing() -> None:
    lines = drawn(run_of([200], ["running"] * 200), 80, 12)
    assert len(lines) <= 11
    assert "192 of them run or failed" in lines[-1]


def test_the_prompt_stays_at_the_end() -> None:
    lines = drawn(run_of([200], ["asking"] * 200), 80, 10, prompt="vm failed: r, s or c?")
    assert len(lines) <= 9
    assert lines[-1] == "vm failed: r, s or c?"


@given(
    some.lists(some.integers(1, 60), min_size=1, max_size=12),
    some.integers(0, 2**32),
    some.integers(2, 70),
    some.integers(20, 200),
)
@settings(max_examples=60, deadline=None)
def test_never_higher_or_wider_than_the_terminal(
    sizes: list[int], seed: int, height: int, width: int
) -> None:
    rng = random.Random(seed)
    weights = [rng.random() for _ in WORDS]
    state = run_of(sizes, rng.choices(WORDS, weights, k=sum(sizes)))
    state.paused, state.asked_to_cancel = rng.random() < 0.3, rng.random() < 0.3
    lines = drawn(state, width, height, prompt="?" if rng.random() < 0.5 else "")
    assert len(lines) <= height - 1 or height == 2
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    all_rows = plan_table.rows(state, 0)
    room = rng.randrange(1, 80)
    shown, left = plan_table.chosen(all_rows, room)
    assert len(shown) + bool(left) <= room
    missing = [row for row in all_rows if row not in shown]
    assert not missing or not shown or max(r.rank for r in shown) <= min(r.rank for r in missing)


# ---- the stream ----


def event(seq: int, **data: Any) -> Event:
    return Event(seq=seq, time=BEGUN, run="r1", kind="step", key="g/vm", attempt=1, data=data)


def read_all(path: Path, into: list[bytes]) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.settimeout(30)
        with client.makefile("rb") as lines:
            into.extend(lines)


def test_a_descriptor_gets_each_event_as_a_line(tmp_path: Path) -> None:
    with (tmp_path / "events.jsonl").open("wb") as file:
        with Stream(f"fd:{file.fileno()}") as stream:
            stream.send([event(1, name="a\nb"), event(2)])
            stream.send([event(3)])
        file.write(b"still open\n")
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=Event).seq for line in lines[:3]] == [1, 2, 3]
    assert json.loads(lines[0])["data"] == {"name": "a\nb"}
    assert lines[3:] == [b"still open"]


def test_many_readers_of_a_socket_get_all_of_it_whenever_they_come(tmp_path: Path) -> None:
    path = tmp_path / "s"
    got: list[list[bytes]] = [[] for _ in range(8)]
    threads = [threading.Thread(target=read_all, args=(path, into)) for into in got]
    with Stream(f"unix:{path}") as stream:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for number, thread in enumerate(threads):
            thread.start()
            stream.send([event(number * 100 + at) for at in range(100)])
        wait_until(lambda: all(got) or _accepted(stream) == 8, "all are there")
    for thread in threads:
        thread.join(30)
    for lines in got:
        assert [json.loads(line)["seq"] for line in lines] == list(range(800))
    assert not path.exists()


def _accepted(stream: Stream) -> int:
    return len(stream._readers)


def test_a_slow_reader_is_dropped_with_a_last_line_and_the_others_get_all(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fast: list[bytes] = []
    with Stream(f"unix:{path}", behind_max=500) as stream:
        slow = socket.socket(socket.AF_UNIX)
        slow.connect(str(path))
        thread = threading.Thread(target=read_all, args=(path, fast))
        thread.start()
        wait_until(lambda: _accepted(stream) == 2, "both are there")
        for seq in range(3000):
            stream.send([event(seq, pad="x" * 1000)])
            wait_until(lambda seq=seq: len(fast) >= seq - 400, "the fast one keeps up")
        slow.settimeout(30)
        with slow.makefile("rb") as lines:
            found = [json.loads(line) for line in lines]
        slow.close()
    thread.join(30)
    assert [json.loads(line)["seq"] for line in fast] == list(range(3000))
    told = found.pop()
    assert told["dropped"]["lines"] == len(found) < 3000
    assert [row["seq"] for row in found] == list(range(len(found)))


def test_a_reader_that_never_reads_does_not_keep_a_run_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rollpoint.plans import stream as room

    monkeypatch.setattr(room, "CLOSE_SECONDS", 0.05)
    ends = os.pipe()
    for target in (f"fd:{ends[1]}", f"unix:{tmp_path / 's'}"):
        with Stream(target) as stream:
            if target.startswith("unix"):
                client = socket.socket(socket.AF_UNIX)
                client.connect(str(tmp_path / "s"))
                wait_until(lambda stream=stream: _accepted(stream) == 1, "it is there")
            stream.send([event(seq, pad="x" * 1000) for seq in range(1000)])
    client.close()
    for end in ends:
        os.close(end)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    ends = os.pipe()
    os.close(ends[0])
    with Stream(f"fd:{ends[1]}") as stream:
        stream.send([event(1)])
        stream.send([event(2)])
    os.close(ends[1])


def test_places_that_are_none_are_refused(tmp_path: Path) -> None:
    for target in ("", "fd:", "fd:x", "fd:-1", "unix:", "tcp:1", "events.jsonl"):
        with pytest.raises(UsageError, match="no place for events"):
            Stream(target)
    with pytest.raises(UsageError, match="nothing can be written there"):
        Stream("fd:9999")
    with pytest.raises(UsageError, match="nothing can be written"), open(os.devnull) as file:
        Stream(f"fd:{file.fileno()}")
    with (
        Stream(f"unix:{tmp_path / 's'}"),
        pytest.raises(LockedError, match="a process listens on"),
    ):
        Stream(f"unix:{tmp_path / 's'}")
