"""A test failover disturbs nothing, and nothing of it is left behind, however it ends."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_replicas import SIZES, make_demo, processes_below
from guests import protected
from replicas import Source, ingesting, rollpoint
from rollpoint import replication, trial_places, trials, viewers
from rollpoint.errors import (
    NotFoundError,
)
from rollpoint.nbd_client import NbdClient, Place
from rollpoint.replica import Replica
from tools import require_tool


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Path]:
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


def test_the_same_request_twice_happens_once(demo: Path, temporary: Path) -> None:
    with Replica.open(demo) as replica:
        first = trials.start(replica, "1", operation_id="t", power_on=False)
        again = trials.start(replica, "2", operation_id="t", power_on=False)
        assert (again.operation, again.point, again.steps) == ("t", 1, first.steps)
        assert len(replica.manifest.tests) == 1
        (ended,) = trials.undo(replica, "t")
        (once,) = trials.undo(replica, "t")
        assert once.operation == ended.operation
        assert trials.start(replica, "1", operation_id="t", power_on=False).point == 1
        assert replica.manifest.tests == []
        with pytest.raises(NotFoundError, match="no test failover 'u'"):
            trials.undo(replica, "u")
