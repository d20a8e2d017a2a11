"""Several replicas, one cut: write order holds across disks and replicas at every point."""

from __future__ import annotations

import contextlib
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_peers import DISC, WRITE, Raw
from replicas import ingest_process, ingesting, make, rollpoint, wait_until
from rollpoint import control, groups, ingest_group, replication
from rollpoint.disk import open_disk
from rollpoint.errors import (
    Error,
    GapError,
    HeldError,
    LockedError,
    StateError,
    StorageError,
    UsageError,
)
from rollpoint.replica import Replica

DISKS = {name: 1 << 20 for name in "abcd"}
WRITERS = 4
CUTS = 12


def begin(path: Path) -> control.Connection:
    return control.Connection(str(path / ".control.sock"))


def step(connection: control.Connection, command: str, **values: object) -> dict[str, object]:
    connection.send(command, **{"group": "g", **values})
    return connection.receive()


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "r0", tmp_path / "r1"]
    for path in paths:
        make(path, DISKS)
    return paths


@pytest.fixture
def running(pair: list[Path], tmp_path: Path) -> Iterator[list[Replica]]:
    """Both replicas, ingesting on threads of this process."""
    with contextlib.ExitStack() as stack:
        for number, path in enumerate(pair):
            stack.enter_context(ingesting(path, tmp_path / f"s{number}"))
        yield [stack.enter_context(Replica.open(path)) for path in pair]


class Writer(threading.Thread):
    """Counts up its own sector on one disk after the other, each once the one before has it."""

    def __init__(self, exports: list[tuple[Path, str]], number: int) -> None:
        super().__init__()
        self.clients = [Raw(path).enter(name) for path, name in exports]
        self.offset = number * 512
        self.acknowledged = 0
        self.finished = False

    def run(self) -> None:
        while not self.finished:
            data = struct.pack("<Q", self.acknowledged + 1)
            for client in self.clients:
                assert client.error(WRITE, self.offset, 8, data=data) == 0
            self.acknowledged += 1


def counters_at(path: Path, point: int) -> list[list[int]]:
    """For each disk of a replica as of a point, what each writer had put there."""
    with Replica.open(path) as replica, replica.locked():
        with replica.journals(writable=True) as journals:
            for native in journals.natives:
                native.roll(point)
            found = []
            for name in DISKS:
                with open_disk(path / f"{name}-journal.vmdk") as disk:
                    data = disk.pread(WRITERS * 512, 0)
                found.append(
                    [struct.unpack_from("<Q", data, each * 512)[0] for each in range(WRITERS)]
                )
        return found


def test_write_order_holds_across_disks_and_replicas_at_every_group_point(
    pair: list[Path], tmp_path: Path
) -> None:
    """Eight disks of two replicas under load; the widest barrier is printed, not judged."""
    sockets = [tmp_path / "s0", tmp_path / "s1"]
    exports = [(socket, name) for name in DISKS for socket in sockets]  # replicas in turn
    done = []
    with contextlib.ExitStack() as stack:
        for path, socket in zip(pair, sockets, strict=True):
            stack.enter_context(ingest_process(path, socket, "--rpo", "300ms"))
        replicas = [stack.enter_context(Replica.open(path)) for path in pair]
        writers = [Writer(exports, number) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        for number in range(CUTS):
            before = [writer.acknowledged for writer in writers]
            marked = groups.mark(replicas, label=f"cut {number}")
            done.append((before, marked, [writer.acknowledged + 1 for writer in writers]))
            seen = sum(writer.acknowledged for writer in writers)
            wait_until(
                lambda seen=seen: sum(w.acknowledged for w in writers) > seen, "they write on"
            )
        for writer in writers:
            writer.finished = True
        for writer in writers:
            writer.join()
            for client in writer.clients:
                client.request(DISC)
                client.socket.close()
    widest = max(marked.barrier_ms for _, marked, _ in done)
    print(f"the widest of {CUTS} barriers over 8 disks of 2 replicas: {widest:.1f} ms")
    for before, marked, after in done:
        assert marked.barrier_ms >= max(member.barrier_ms for member in marked.members) > 0
        assert len({member.point.time_ns for member in marked.members}) == 1
        by_replica = [counters_at(Path(m.replica.path), m.point.id) for m in marked.members]
        for number in range(WRITERS):
            chain = [by_replica[r][d][number] for d in range(len(DISKS)) for r in (0, 1)]
            assert chain == sorted(chain, reverse=True), (number, chain)
            assert chain[0] <= chain[-1] + 1, (number, chain)
            assert before[number] <= chain[-1], "what was acknowledged before is in"
            assert chain[0] <= after[number], "and nothing that came after"
    for path in pair:
        with Replica.open(path) as replica:
            assert [record.group for record in replica.manifest.groups] == [
                marked.group for _, marked, _ in done
            ]


def test_the_command_line_marks_and_lists_what_all_have(
    pair: list[Path], tmp_path: Path
) -> None:
    rollpoint("mark", pair[0])
    with ingesting(pair[0], tmp_path / "s"):  # the other one has no ingest
        told = rollpoint("mark", *pair, "--app", "--label", "both")
        alone = rollpoint("mark", pair[1])
    assert set(told) == {"group", "time", "kind", "label", "barrier_ms", "replicas"}
    assert [each["id"] for each in told["replicas"]] == [2, 1]
    assert [each["path"] for each in told["replicas"]] == [str(path) for path in pair]
    assert (told["kind"], told["label"]) == ("app", "both")
    with Replica.open(pair[0]) as first, Replica.open(pair[1]) as second:
        found = groups.common([first, second])
        assert [(one.group, [p.id for p in one.points]) for one in found] == [
            (told["group"], [2, 1])
        ]
        assert {point.time for point in found[0].points} == {told["time"]}
        assert second.points.by_id(alone["id"]).time > told["time"]
    assert rollpoint("mark", pair[0], pair[0], code=2)["type"] == "UsageError"
    assert rollpoint("mark", *pair, "--caught-up", code=2)["type"] == "UsageError"


def test_a_member_that_cannot_be_marked_leaves_all_as_they_were(running: list[Replica]) -> None:
    other = running[1]
    replication.hold(other)
    with pytest.raises(HeldError):
        groups.mark(running)
    replication.release(other)
    control.ask(other.control_path, "gap-open", cause="the link is down")
    with pytest.raises(GapError):
        groups.mark(running)
    control.ask(other.control_path, "gap-close")
    for replica in running:
        with replica.locked() as manifest:
            assert manifest.groups == []
    assert len(running[0].points) == 0
    assert len(groups.mark(running).members) == 2
    with pytest.raises(UsageError):
        groups.mark([])


def test_a_leader_that_dies_holds_writers_up_for_a_moment_only(
    running: list[Replica], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_group, "PATIENCE_SECONDS", 0.2)
    client = Raw(tmp_path / "s0").enter("a")
    with begin(Path(running[0].path)) as leader:
        step(leader, "group-prepare")
        step(leader, "group-close")
        client.request(WRITE, 0, 4, data=b"late")
        assert client.simple() == 0  # let in after the deadline, by the ingest itself
        with pytest.raises(StateError, match="given this group's cut up"):
            step(leader, "group-mark", time_ns=1)
        step(leader, "group-prepare")
        time_ns = step(leader, "group-close")["time_ns"]
        step(leader, "group-mark", time_ns=time_ns)
        # It dies between mark and end: a point of this replica, and of no group.
    wait_until(lambda: len(running[0].points) == 1, "the point is durable")
    assert client.error(WRITE, 0, 4, data=b"more") == 0
    running[0].refresh()
    assert running[0].manifest.groups == []
    client.socket.close()


@pytest.mark.parametrize("between", ["mark", "hold", "stop"])
def test_what_comes_between_ends_the_cut_and_is_done(
    running: list[Replica], tmp_path: Path, between: str
) -> None:
    path = Path(running[0].path)
    with Raw(tmp_path / "s0").enter("a") as client, begin(path) as leader:
        step(leader, "group-prepare")
        step(leader, "group-close")
        client.request(WRITE, 0, 4, data=b"late")
        if between == "mark":
            assert replication.mark(running[0]).id == 1
        elif between == "hold":
            replication.hold(running[0])
            replication.release(running[0])
        else:
            with running[0].locked():
                control.ask(running[0].control_path, "stop")
            wait_until(lambda: not (path / ".control.sock").exists(), "it ended")
            return
        with pytest.raises(StateError):
            step(leader, "group-end")


def test_steps_out_of_order_are_refused(running: list[Replica]) -> None:
    with begin(Path(running[0].path)) as leader, begin(Path(running[0].path)) as rival:
        for command in ("group-close", "group-mark", "group-end"):
            with pytest.raises(StateError):
                step(leader, command, time_ns=1)
        step(leader, "group-prepare")
        with pytest.raises(LockedError, match="another group"):
            step(rival, "group-prepare", group="h")
        with pytest.raises(StateError, match="after the gate was closed"):
            step(leader, "group-mark", time_ns=1)
        with pytest.raises(StateError):
            step(rival, "group-close", group="h")
        step(rival, "group-abort", group="h")
        time_ns = step(leader, "group-close")["time_ns"]
        with pytest.raises(StateError, match="nothing was marked"):
            step(leader, "group-end")
        step(leader, "group-mark", time_ns=time_ns)
        with pytest.raises(StateError, match="once"):
            step(leader, "group-mark", time_ns=time_ns)
        step(leader, "group-end")
        step(leader, "group-prepare")
        step(leader, "group-close")
        with pytest.raises(StateError, match="would not be newer"):
            step(leader, "group-mark", time_ns=1)
        step(leader, "group-abort")
    assert len(running[0].points) == 1


def test_an_ingest_that_hangs_is_no_member_and_holds_nobody_up(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "STEP_SECONDS", 0.3)
    with (
        ingesting(pair[0], tmp_path / "s0"),
        ingest_process(pair[1], tmp_path / "s1") as process,
        Replica.open(pair[0]) as first,
        Replica.open(pair[1]) as second,
    ):
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(StorageError, match="did not answer group-prepare"):
            groups.mark([first, second])
        with Raw(tmp_path / "s0").enter("a") as client:
            assert client.error(WRITE, 0, 4, data=b"free") == 0
            client.request(DISC)
        process.send_signal(signal.SIGCONT)
        assert len(groups.mark([first, second]).members) == 2


def test_groups_that_share_members_take_turns(running: list[Replica]) -> None:
    failures: list[Error] = []

    def mark_some(order: int) -> None:
        replicas = [Replica.open(replica.path) for replica in running[::order]]
        try:
            for _ in range(5):
                groups.mark(replicas)
        except Error as error:
            failures.append(error)

    threads = [threading.Thread(target=mark_some, args=(order,)) for order in (1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(groups.common([Replica.open(replica.path) for replica in running])) == 10
