"""The gate of a replica, with real journals behind real NBD clients."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nbd_peers import DISC, ESHUTDOWN, FUA, WRITE, Raw, flat_disk
from rollpoint import _native
from rollpoint._native import Chain, Disk, Gate, Image, Io, Journal, journal_create
from rollpoint.errors import HeldError, StateError, UsageError
from rollpoint.export import Export, Server, serve

SIZE = 1 << 20
WRITERS = 8
CUTS = 60
HOLDS = 200
CRASH = _native.POINT_CRASH


def make_journal(folder: Path, name: str) -> Journal:
    base = flat_disk(folder, SIZE, f"{name}.img")
    make = _native.OPEN_WRITE | _native.OPEN_CREATE
    file = Io.posix().open_dir(str(folder)).open(f"{name}-log.vmdk", make)
    journal_create(file, capacity_bytes=SIZE, segment_bytes=1 << 20, id=name.encode() * 16)
    return Journal(file, base, writable=True)


class Pair:
    """Two disks with journals, behind one gate and one socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = Gate()
        self.journals = [make_journal(folder, name) for name in "ab"]
        self.disks: list[Disk] = [journal.disk() for journal in self.journals]
        self.path = folder / "s"
        exports = [
            Export(name, disk, self.gate) for name, disk in zip("ab", self.disks, strict=True)
        ]
        self.server: Server = serve(exports, socket=self.path)

    def as_of(self, index: int, point: int) -> Chain:
        """A disk at a restore point, read as any VMDK reader would."""
        self.journals[index].roll(point)
        name = "ab"[index]
        folder = Io.posix().open_dir(str(self.folder))
        log = folder.open(f"{name}-log.vmdk", _native.OPEN_READ)
        base = folder.open(f"{name}.img", _native.OPEN_READ)
        sectors = SIZE // 512
        top = Image([(_native.EXTENT_SPARSE, sectors, log, 0)])
        return Chain([top, Image([(_native.EXTENT_FLAT, sectors, base, 0)])])


def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(100_000):
        if condition():
            return True
        time.sleep(0.0002)
    return False


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    with pair.server:
        yield pair


def test_a_hold_waits_for_who_is_inside_and_refuses_who_comes_later() -> None:
    gate = Gate()
    gate.enter()
    holding = threading.Thread(target=gate.hold)
    holding.start()
    while not gate.held:
        pass
    assert holding.is_alive()
    with pytest.raises(HeldError):
        gate.enter()
    assert holding.is_alive()
    gate.leave()
    holding.join()
    gate.hold()  # asked twice it is as held
    gate.release()
    assert not gate.held
    gate.enter()
    gate.leave()


def test_a_cut_is_a_point_in_every_journal_and_leaves_a_hold_as_it_was(pair: Pair) -> None:
    assert pair.gate.cut(pair.journals, 1, 1000, CRASH, "one") >= 0
    pair.gate.hold()
    pair.gate.cut(pair.journals, 2, 2000, CRASH)
    assert pair.gate.held
    pair.gate.release()
    for journal in pair.journals:
        assert journal.points() == [(1, 1000, CRASH, "one"), (2, 2000, CRASH, "")]


def test_a_cut_that_fails_opens_the_gate_again(pair: Pair) -> None:
    pair.gate.cut(pair.journals, 5, 1000, CRASH)
    with pytest.raises(UsageError):
        pair.gate.cut(pair.journals, 5, 2000, CRASH)  # ids rise
    with pytest.raises(UsageError):
        pair.gate.cut(pair.journals, 6, 2000, CRASH, "x" * 256)
    with pytest.raises(TypeError):
        pair.gate.cut([pair.journals[0], None], 6, 2000, CRASH)  # type: ignore[list-item]
    pair.gate.enter()
    pair.gate.leave()
    pair.gate.cut(pair.journals, 6, 2000, CRASH)
    assert [point[0] for point in pair.journals[1].points()] == [5, 6]


def test_a_cut_in_steps_spans_gates(pair: Pair) -> None:
    other = Gate()
    pair.gate.begin(1000)
    other.begin(1000)
    pair.gate.mark(pair.journals, 1, 1000, CRASH, "both")
    assert pair.gate.end() > 0
    assert other.end() > 0
    assert pair.journals[0].points() == []  # not durable yet
    for journal in pair.journals:
        journal.commit()
        assert journal.points() == [(1, 1000, CRASH, "both")]
    with pytest.raises(StateError, match="no cut has begun"):
        pair.gate.mark(pair.journals, 2, 2000, CRASH)
    assert pair.gate.end() == 0
    other.begin(1000)
    with pytest.raises(StateError, match="did not end in 5 ms"):
        other.begin(5)
    other.end()
    other.begin(5)
    other.end()


def test_the_time_of_a_point_is_when_the_gate_had_closed(pair: Pair) -> None:
    """A write that gets in while a cut waits is not younger than the point that has it."""
    told: list[tuple[int, int]] = []

    def cut() -> None:
        told.append(pair.gate.cut_now(pair.journals, 1, 0, CRASH))

    pair.gate.enter()
    cutting = threading.Thread(target=cut)
    cutting.start()
    pair.disks[0].pwrite(b"inside", 0)
    written_ns = time.time_ns()
    pair.gate.leave()
    cutting.join()
    ((barrier_ns, time_ns),) = told
    assert barrier_ns >= 0
    assert time_ns % 1000 == 0
    assert written_ns - 1000 < time_ns <= time.time_ns()
    assert pair.journals[0].points() == []  # the caller commits
    least = time_ns + 3_600_000_000_000
    assert pair.gate.cut_now(pair.journals, 2, least, CRASH)[1] == least
    for journal in pair.journals:
        journal.commit()
        assert [point[:2] for point in journal.points()] == [(1, time_ns), (2, least)]


def test_point_cuts_count_the_entries_before_each_point(pair: Pair) -> None:
    journal = pair.journals[0]
    for number, grains in enumerate((0, 3, 1), 1):
        for grain in range(grains):
            pair.disks[0].pwrite(bytes([number]) * 4096, grain * 4096)
        pair.gate.cut(pair.journals, number, number * 1000, CRASH)
    assert journal.point_cuts() == [0, 3, 4]
    assert pair.journals[1].point_cuts() == [0, 0, 0]


def leave(pair: Pair, how: str, *, write: bool) -> None:
    client = Raw(pair.path).enter("b")
    if write:
        assert client.error(WRITE, 0, 4, data=b"last") == 0
    else:
        assert client.read(8192, 4) == bytes(4)
    if how == "disc":
        client.request(DISC)
        assert client.closed()
    client.socket.close()


def test_a_writer_that_leaves_without_a_word_raises_the_alarm(pair: Pair) -> None:
    pair.gate.watch(True)
    for how, write in (("disc", True), ("disc", False), ("gone", False)):
        leave(pair, how, write=write)
    assert eventually(lambda: pair.server.stats()["connections_open"] == 0)
    assert (pair.gate.alarmed, pair.gate.alarms) == (False, 0)
    leave(pair, "gone", write=True)
    assert eventually(lambda: pair.gate.alarmed)
    other = Raw(pair.path).enter("a")
    other.request(WRITE, 0, 4, data=b"more")
    # Just what was there at the loss, and of that time.
    alarm_ns = pair.gate.alarm_time_ns
    assert pair.gate.cut_now(pair.journals, 1, 0, CRASH)[1] == alarm_ns - alarm_ns % 1000
    for journal in pair.journals:
        journal.commit()
    assert pair.disks[0].pread(4, 0) == bytes(4)
    pair.gate.heed()
    assert other.simple() == 0
    assert [journal.info()["entries_since_point"] for journal in pair.journals] == [1, 0]
    other.socket.close()
    assert eventually(lambda: pair.gate.alarmed)
    pair.gate.watch(False)
    assert (pair.gate.alarmed, pair.gate.alarms) == (False, 2)


class Writer(threading.Thread):
    """Counts up its own sector: on disk a first, and on disk b once a has acknowledged."""

    def __init__(self, pair: Pair, number: int) -> None:
        super().__init__()
        self.clients = [Raw(pair.path).enter(name) for name in "ab"]
        self.offset = number * 512
        self.flags = FUA if number % 4 == 3 else 0
        self.sent = self.acknowledged = self.refused = 0
        self.finished = False

    def run(self) -> None:
        while not self.finished:
            self.sent = self.acknowledged + 1
            data = struct.pack("<Q", self.sent)
            for client in self.clients:
                while True:
                    error = client.error(WRITE, self.offset, 8, flags=self.flags, data=data)
                    if error == 0:
                        break
                    assert error == ESHUTDOWN
                    self.refused += 1
                    if self.finished:
                        return
            self.acknowledged = self.sent


@pytest.fixture
def writers(pair: Pair) -> Iterator[list[Writer]]:
    writers = [Writer(pair, number) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    yield writers
    for writer in writers:
        writer.finished = True
    for writer in writers:
        writer.join()
        for client in writer.clients:
            client.socket.close()


def counters(disk: Disk) -> list[int]:
    data = disk.pread(WRITERS * 512, 0)
    return [struct.unpack_from("<Q", data, number * 512)[0] for number in range(WRITERS)]


def test_all_disks_share_one_cut(pair: Pair, writers: list[Writer]) -> None:
    """At every point disk a is at most one write ahead of b, and never behind; and the
    point holds what was acknowledged before it, and nothing that was sent after it."""
    spans = []
    for cut in range(1, CUTS + 1):
        before = [writer.acknowledged for writer in writers]
        pair.gate.cut(pair.journals, cut, cut, CRASH)
        spans.append((before, [writer.sent for writer in writers]))
    for writer in writers:
        writer.finished = True
        writer.join()
    pair.server.stop()
    for cut, (before, after) in enumerate(spans, 1):
        a, b = (counters(pair.as_of(index, cut)) for index in (0, 1))
        for number in range(WRITERS):
            assert b[number] <= a[number] <= b[number] + 1, (cut, number)
            assert before[number] <= b[number], (cut, number)
            assert a[number] <= after[number], (cut, number)
    assert spans[-1][0] > spans[0][0]  # they did write


def test_after_a_hold_no_write_is_acknowledged_or_applied(
    pair: Pair, writers: list[Writer]
) -> None:
    """8 writers in flight. The exact count of 10,000 holds is in nbd_threads_test.c."""
    for _ in range(HOLDS):
        progress = sum(writer.acknowledged for writer in writers)
        assert eventually(lambda p=progress: sum(w.acknowledged for w in writers) > p)  # type: ignore[misc]
        pair.gate.hold()
        applied = [counters(disk) for disk in pair.disks]
        refused = [writer.refused for writer in writers]
        assert eventually(
            lambda refused=refused: all(  # type: ignore[misc]
                writer.refused > seen for writer, seen in zip(writers, refused, strict=True)
            )
        )
        assert [counters(disk) for disk in pair.disks] == applied
        for writer, value in zip(writers, applied[1], strict=True):
            assert writer.acknowledged <= value
        pair.gate.release()
    assert eventually(lambda: all(writer.acknowledged for writer in writers))
