"""The journal of a disk: exact at every point, safe after a crash, one writer."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import require_tool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollpoint._native import POINT_CRASH, POINT_END, POINT_LATEST, RUN_DATA, RUN_ZERO, Io
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import (
    CancelledError,
    DamagedError,
    ExistsError,
    FormatError,
    HeldError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    StaleEpochError,
    StateError,
    StorageError,
    UsageError,
)
from rollpoint.journal import OpenJournal, create_journal, open_journal

GRAIN = 4096
SEGMENT = 65536
SIZE = 40 * GRAIN + 512  # the last grain is a short one
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # syncs cost nothing there
SEGMENT_0 = 65536 + SEGMENT  # slot 0 is the empty root


class Bench:
    """A base with random bytes and a journal above it."""

    def __init__(self, folder: Path, *, grain: int = GRAIN, segment: int = SEGMENT) -> None:
        self.folder = folder
        self.io = Io.order(Io.posix())  # stops the process where a write-ahead rule is broken
        self.base = folder / "web.vmdk"
        self.log = folder / "web-journal-log.vmdk"
        self.shown = folder / "web-journal.vmdk"
        create_disk(str(self.base), "monolithicFlat", SIZE)
        self.model = bytearray(random.Random(1).randbytes(SIZE))
        with open_disk(self.base, writable=True) as disk:
            disk.pwrite(self.model, 0)
        self.names = create_journal(
            self.base, "web", grain_bytes=grain, segment_bytes=segment, io=self.io
        )

    def open(
        self, *, writable: bool = True, epoch: int = 0, ring: bool = False
    ) -> OpenJournal:
        return open_journal(
            self.log, self.base, writable=writable, writable_base=ring, epoch=epoch, io=self.io
        )

    def write(self, journal: OpenJournal, offset: int, data: bytes) -> None:
        journal.disk.pwrite(data, offset)
        self.model[offset : offset + len(data)] = data

    def filled(self, writes: int = 30, seed: int = 2) -> None:
        """Some committed writes and two points, over several segments."""
        rng = random.Random(seed)
        with self.open() as journal:
            for number in range(writes):
                grain = rng.randrange(40)
                self.write(journal, grain * GRAIN, rng.randbytes(GRAIN))
                if number in (writes // 3, writes // 2):
                    journal.native.mark(number, number, POINT_CRASH, f"after {number}")
                if number % 4 == 3:
                    journal.native.commit()

    def flip(self, position: int) -> None:
        with open(self.log, "r+b") as file:
            file.seek(position)
            byte = file.read(1)
            file.seek(position)
            file.write(bytes([byte[0] ^ 0x40]))


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Bench(Path(folder))


def read_shown(bench: Bench) -> bytes:
    """What a VMDK reader sees: our own chain of journal and base."""
    with open_disk(bench.shown) as disk:
        return disk.pread(SIZE, 0)


def read_by_qemu(bench: Bench) -> bytes:
    target = bench.folder / "shown.raw"
    subprocess.run(
        [require_tool("qemu-img"), "convert", "-O", "raw", bench.shown, target], check=True
    )
    return target.read_bytes()


# --- exactness ---

STEP = st.one_of(
    st.tuples(
        st.just("write"),
        st.integers(0, SIZE - 1),
        st.integers(1, 3 * GRAIN),
        st.integers(1, 255),
    ),
    st.tuples(st.just("zero"), st.integers(0, SIZE - 1), st.integers(1, 9 * GRAIN)),
    st.tuples(st.just("mark")),
    st.tuples(st.just("commit")),
    st.tuples(st.just("reopen"), st.booleans()),
    st.tuples(st.just("roll"), st.integers(0, 1 << 16)),
    st.tuples(st.just("checkpoint")),
    st.tuples(st.just("destage"), st.integers(0, 1 << 16)),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(st.lists(STEP, min_size=5, max_size=60), st.sampled_from([GRAIN, 8192]))
def test_every_point_shows_the_disk_as_it_was(steps: list[tuple], grain: int) -> None:
    """Model: one copy of the disk for each point."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        bench = Bench(Path(folder), grain=grain)
        points: list[bytes] = []
        oldest = 0
        journal = bench.open(ring=True)
        for step, *values in steps:
            if step == "write":
                offset, length, fill = values
                data = bytes([fill]) * min(length, SIZE - offset)
                bench.write(journal, offset, data)
            elif step == "zero":
                offset, length = values[0], min(values[1], SIZE - values[0])
                journal.disk.zero(length, offset)
                bench.model[offset : offset + length] = bytes(length)
            elif step == "mark":
                journal.native.mark(len(points), len(points) * 10, POINT_CRASH)
                points.append(bytes(bench.model))
            elif step == "commit":
                journal.native.commit()
            elif step == "reopen":
                journal.native.commit()
                journal.close(clean=values[0])
                journal = bench.open(ring=True)
            elif step == "checkpoint":
                journal.native.checkpoint()
                assert read_shown(bench) == bench.model
            elif points:
                wanted = oldest + values[0] % (len(points) - oldest)
                if step == "destage":
                    journal.native.destage(wanted, journal.target)
                    oldest = wanted
                journal.native.roll(wanted)
                assert read_shown(bench) == points[wanted]
            assert journal.disk.pread(SIZE, 0) == bench.model
        journal.native.commit()
        listed = list(range(oldest, len(points)))
        assert [row[0] for row in journal.native.points()] == listed
        for wanted, content in enumerate(points):
            if wanted < oldest:
                with pytest.raises(NotFoundError):
                    journal.native.roll(wanted)
                continue
            assert journal.native.roll(wanted)["point_id"] == wanted
            assert read_shown(bench) == content
        journal.native.roll(POINT_END)
        assert read_shown(bench) == bench.model
        assert journal.verify() == []
        journal.close()


@pytest.mark.parametrize("seed", range(3))
def test_qemu_reads_every_point_as_we_do(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    points = {}
    with bench.open() as journal:
        for number in range(1, 4):
            for _ in range(12):
                offset = rng.randrange(SIZE)
                length = min(rng.choice((512, 700, GRAIN, 10000)), SIZE - offset)
                bench.write(journal, offset, rng.randbytes(length))
            start = rng.randrange(30) * GRAIN
            journal.disk.zero(3 * GRAIN, start)
            bench.model[start : start + 3 * GRAIN] = bytes(3 * GRAIN)
            journal.native.mark(number, number, POINT_CRASH)
            points[number] = bytes(bench.model)
        for number in rng.sample(sorted(points), 3):
            journal.native.roll(number)
            assert read_by_qemu(bench) == points[number]
    check = subprocess.run(
        [require_tool("qemu-img"), "check", bench.shown], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_a_new_journal_is_an_empty_child_of_its_base(bench: Bench) -> None:
    assert read_by_qemu(bench) == bench.model
    assert read_shown(bench) == bench.model
    with pytest.raises(ExistsError):
        create_journal(bench.base, "web")


def test_a_log_that_a_crash_left_without_descriptor_is_replaced(bench: Bench) -> None:
    bench.shown.unlink()
    create_journal(bench.base, "web", segment_bytes=SEGMENT)
    assert read_shown(bench) == bench.model


def test_rolling_to_what_is_shown_writes_nothing(bench: Bench) -> None:
    bench.filled()
    with bench.open() as journal:
        assert journal.native.roll(15)["bytes_written"] > 0
        before = bench.log.read_bytes()
        assert journal.native.roll(15)["bytes_written"] == 0
        assert journal.native.roll(POINT_LATEST)["bytes_written"] == 0
    assert bench.log.read_bytes() == before


def test_a_roll_back_changes_no_logged_byte(bench: Bench) -> None:
    bench.filled()
    with bench.open() as journal:
        end = journal.native.info()["segment_count"]
        slots = [SEGMENT_0 + index * SEGMENT for index in range(int(end))]
        before = bench.log.read_bytes()
        journal.native.roll(10)
        after = bench.log.read_bytes()
    for slot in slots:
        assert after[slot : slot + SEGMENT] == before[slot : slot + SEGMENT]


def test_the_nearest_known_map_is_walked_from(bench: Bench) -> None:
    bench.filled(writes=36)  # points after 13 and 19 entries
    with bench.open() as journal:
        first = journal.native.roll(12)
        assert (first["backwards"], first["entries_walked"]) == (False, 13)
        last = journal.native.roll(POINT_END)
        assert (last["backwards"], last["entries_walked"]) == (False, 23)
        back = journal.native.roll(18)
        assert (back["backwards"], back["entries_walked"]) == (True, 17)
        assert read_by_qemu(bench) != bench.model


def test_an_unwritten_terabyte_is_trimmed_with_one_entry(tmp_path: Path) -> None:
    create_disk(str(tmp_path / "big.vmdk"), "monolithicFlat", 1 << 40)
    create_journal(tmp_path / "big.vmdk", "big")
    log = tmp_path / "big-journal-log.vmdk"
    with open_journal(log, tmp_path / "big.vmdk", writable=True) as journal:
        journal.disk.zero(1 << 40, 0)
        journal.disk.pwrite(b"x" * GRAIN, 1 << 39)
        journal.native.commit()
        assert journal.native.info()["entry_count"] == 2
        assert journal.disk.run(0, 1 << 40)[:3] == (1 << 39, RUN_ZERO, 0)
        assert journal.disk.run(1 << 39, 1 << 39)[:3] == (GRAIN, RUN_DATA, 0)


# --- the ring ---


def write_some(bench: Bench, journal: OpenJournal, seed: int, count: int = 40) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        bench.write(journal, rng.randrange(40) * GRAIN, rng.randbytes(GRAIN))


def test_a_destaged_point_is_the_base_and_later_ones_are_exact(bench: Bench) -> None:
    contents = {}
    with bench.open(ring=True) as journal:
        for number in range(1, 5):
            write_some(bench, journal, number)
            bench.write(journal, SIZE - 100, bytes([number]) * 100)  # the short last grain
            journal.native.mark(number, number, POINT_CRASH)
            contents[number] = bytes(bench.model)
        before = journal.native.info()
        done = journal.native.destage(3, journal.target)
        info = journal.native.info()
        assert done["entries"] == info["based_entry"] == info["horizon_entry"]
        assert done["freed_bytes"] == before["used_bytes"] - info["used_bytes"] > 0
        assert done["bytes_written"] <= SIZE < done["entries"] * GRAIN
        assert [row[0] for row in journal.native.points()] == [3, 4]
        with open_disk(bench.base) as base:
            assert base.pread(SIZE, 0) == contents[3]
        for number in (3, 4):
            journal.native.roll(number)
            assert read_by_qemu(bench) == contents[number]
        assert journal.verify() == []
    with bench.open() as journal:
        assert [row[0] for row in journal.native.points()] == [3, 4]
        assert journal.disk.pread(SIZE, 0) == bench.model


def test_a_destage_that_is_stopped_harms_nothing_and_can_be_asked_for_again(
    bench: Bench,
) -> None:
    with bench.open(ring=True) as journal:
        write_some(bench, journal, 1)
        journal.native.mark(1, 1, POINT_CRASH)
        at_one = bytes(bench.model)
        entries = int(journal.native.info()["entry_count"])
        write_some(bench, journal, 2)
        said: list[tuple[int, int]] = []

        def stop(done: int, total: int) -> bool:
            said.append((done, total))
            return False

        def fail(done: int, total: int) -> bool:
            raise KeyError("a bug of the caller")

        with pytest.raises(CancelledError):
            journal.native.destage(1, journal.target, stop)
        assert said == [(0, entries * GRAIN)]
        with pytest.raises(KeyError):
            journal.native.destage(1, journal.target, fail)
        info = journal.native.info()
        assert (info["based_entry"], info["horizon_entry"]) == (0, entries)
    with bench.open(ring=True) as journal:
        assert journal.native.info()["horizon_entry"] == entries
        journal.native.roll(1)
        assert read_shown(bench) == at_one
        assert journal.native.destage(1, journal.target, lambda *_: True)["entries"] == entries
        assert journal.native.destage(1, journal.target)["entries"] == 0
        assert journal.disk.pread(SIZE, 0) == bench.model


def test_a_checkpoint_is_shown_and_costs_nothing_twice(bench: Bench) -> None:
    with bench.open() as journal:
        write_some(bench, journal, 1)
        done = journal.native.checkpoint()
        info = journal.native.info()
        assert done["entries_since"] == info["entry_count"] == info["root_entry"] > 0
        assert done["bytes_written"] > 0
        assert read_by_qemu(bench) == bench.model
        again = journal.native.checkpoint()
        assert again == done | {"entries_since": 0, "bytes_written": 0}
    with bench.open(writable=False) as reader, pytest.raises(ReadOnlyError):
        reader.native.checkpoint()


def test_a_full_journal_refuses_and_a_destage_makes_room(bench: Bench) -> None:
    limit = 8 * SEGMENT
    with bench.open(ring=True) as journal:
        journal.native.set_limit(limit, wait=False)
        refused = 0
        for number in range(300):
            data = number.to_bytes(4, "little") * (GRAIN // 4)
            try:
                bench.write(journal, number % 40 * GRAIN, data)
            except StorageError:
                refused += 1
                with pytest.raises(StorageError, match="the journal is full"):
                    journal.disk.pwrite(data, number % 40 * GRAIN)
                journal.native.mark(number, number, POINT_CRASH)
                assert journal.native.destage(number, journal.target)["freed_bytes"] > 0
            assert int(journal.native.info()["used_bytes"]) <= limit
            assert not journal.native.info()["failed"]
        assert refused > 3
        assert journal.disk.pread(SIZE, 0) == bench.model
        journal.native.set_limit(0, wait=False)
        write_some(bench, journal, 1, 150)
        assert int(journal.native.info()["used_bytes"]) > limit


@pytest.mark.parametrize("how", ["destage", "limit", "refuse", "hold"])
def test_a_writer_at_the_limit_waits_until_there_is_room_or_no_hope(
    bench: Bench, how: str
) -> None:
    with bench.open(ring=True) as journal, ThreadPoolExecutor(1) as pool:
        journal.native.set_limit(8 * SEGMENT, wait=True)
        written = []

        def write() -> str:
            try:
                for number in range(120):
                    bench.write(journal, number % 40 * GRAIN, bytes([number + 1]) * GRAIN)
                    written.append(number)
            except (HeldError, StorageError) as error:
                return type(error).__name__
            return "all written"

        writing = pool.submit(write)
        while not writing.done() and int(journal.native.info()["used_bytes"]) < 7 * SEGMENT:
            pass
        if how == "destage":
            for number in range(1, 1000):
                if writing.done():
                    break
                journal.native.mark(number, number, POINT_CRASH)
                journal.native.destage(number, journal.target)
        elif how == "limit":
            journal.native.set_limit(0, wait=True)
        elif how == "refuse":
            journal.native.set_limit(8 * SEGMENT, wait=False)
        else:
            journal.native.set_epoch(2, held=True)
        expected = {"refuse": "StorageError", "hold": "HeldError"}
        assert writing.result(timeout=60) == expected.get(how, "all written")
        assert journal.disk.pread(SIZE, 0) == bench.model


def test_no_point_is_missing_from_a_list_made_while_the_horizon_moves(bench: Bench) -> None:
    with bench.open(ring=True) as journal, ThreadPoolExecutor(1) as pool:
        for number in range(400):
            journal.native.mark(number, number, POINT_CRASH)
        journal.native.commit()

        def move() -> None:
            for number in range(0, 390, 3):
                journal.native.destage(number, journal.target)

        moving = pool.submit(move)
        while not moving.done():
            ids = [row[0] for row in journal.native.points()]
            assert ids == list(range(ids[0], 400))
            assert len(journal.native.point_cuts()) <= len(ids)
        moving.result()


def test_what_is_no_target_is_refused(bench: Bench) -> None:
    with bench.open(ring=True) as journal:
        write_some(bench, journal, 1)
        journal.native.mark(1, 1, POINT_CRASH)
        with pytest.raises(UsageError):
            journal.native.destage(1, journal.disk)
        with pytest.raises(UsageError):
            journal.native.destage(POINT_END, journal.target)
        with pytest.raises(NotFoundError):
            journal.native.destage(2, journal.target)
        assert journal.native.info()["horizon_entry"] == 0


def test_damaged_data_does_not_reach_the_base(bench: Bench) -> None:
    with bench.open(ring=True) as journal:
        bench.write(journal, 5 * GRAIN, b"x" * GRAIN)
        journal.native.mark(1, 1, POINT_CRASH)
        journal.native.commit()
        before = bench.base.with_name("web-flat.vmdk").read_bytes()
        bench.flip(SEGMENT_0 + 2 * GRAIN + 7)
        with pytest.raises(DamagedError, match=rf"{bench.log}: 4096 bytes at \d+, .* 20480 on"):
            journal.native.destage(1, journal.target)
    assert bench.base.with_name("web-flat.vmdk").read_bytes() == before


def test_a_reader_whom_the_horizon_has_passed_is_told(bench: Bench) -> None:
    with bench.open(ring=True) as journal:
        write_some(bench, journal, 1)
        journal.native.commit()
        with bench.open(writable=False) as reader:
            assert reader.disk.pread(SIZE, 0) == bench.model
            write_some(bench, journal, 2)
            journal.native.mark(1, 1, POINT_CRASH)
            journal.native.destage(1, journal.target)
            with pytest.raises(StateError, match="since it was opened"):
                reader.disk.pread(SIZE, 0)
        with bench.open(writable=False) as reader:
            assert reader.disk.pread(SIZE, 0) == bench.model


def test_a_log_of_the_first_version_is_read_and_becomes_a_ring(bench: Bench) -> None:
    import xxhash

    bench.filled()
    with open(bench.log, "r+b") as file:  # what differs is in the superblock alone
        for copy in (4096, 8192):
            file.seek(copy)
            page = bytearray(file.read(4096))
            assert page[32] == 2
            page[32] = 1
            page[88:144] = bytes(56)
            page[8:16] = xxhash.xxh3_64_intdigest(bytes(page[16:])).to_bytes(8, "little")
            file.seek(copy)
            file.write(page)
    with bench.open(ring=True) as journal:
        assert journal.native.info()["horizon_entry"] == 0
        assert journal.disk.pread(SIZE, 0) == bench.model
        journal.native.destage(10, journal.target)
    with bench.open() as journal:
        assert [row[0] for row in journal.native.points()] == [10, 15]
        assert journal.disk.pread(SIZE, 0) == bench.model


# --- what a crash leaves ---


def test_what_was_not_committed_is_gone_and_what_was_is_there(bench: Bench) -> None:
    journal = bench.open()
    bench.write(journal, 100, b"committed")
    journal.native.mark(1, 1, POINT_CRASH)
    journal.native.commit()
    journal.disk.pwrite(b"lost", 5000)
    journal.native.mark(2, 2, POINT_CRASH)
    assert [row[0] for row in journal.native.points()] == [1]  # 2 is not durable yet
    journal.close()
    with bench.open() as again:
        assert again.disk.pread(SIZE, 0) == bench.model
        assert [row[0] for row in again.native.points()] == [1]


@pytest.mark.parametrize("cut", [1, 511, 512, 4000, 5000, 9000])
def test_a_torn_tail_is_dropped_without_a_word(bench: Bench, cut: int) -> None:
    """The bytes of the last commit, in part or in whole, are not there."""
    with bench.open() as journal:
        bench.write(journal, 0, b"a" * 3 * GRAIN)
        journal.native.commit()
        before = bytes(bench.model)
        bench.write(journal, GRAIN, b"b" * 2 * GRAIN)
        journal.native.commit()
    start = SEGMENT_0 + GRAIN + 4 * GRAIN  # header page, first batch
    with open(bench.log, "r+b") as file:
        file.seek(start + 3 * GRAIN - cut)
        file.write(bytes(cut))
    with bench.open() as again:
        assert again.disk.pread(SIZE, 0) == before
        bench.model[:] = before
        bench.write(again, 7, b"goes on")
        again.native.commit()
    with bench.open() as third:
        assert third.disk.pread(SIZE, 0) == bench.model
        assert third.verify() == []


def test_a_reader_beside_a_writer_sees_what_was_committed(bench: Bench) -> None:
    with bench.open() as writer:
        bench.write(writer, 0, b"x" * 9000)
        writer.native.mark(3, 4, POINT_CRASH, "now")
        writer.native.commit()
        with bench.open(writable=False) as reader:
            assert reader.native.points() == [(3, 4, POINT_CRASH, "now")]
            assert reader.disk.pread(SIZE, 0) == bench.model
            with pytest.raises(ReadOnlyError):
                reader.disk.pwrite(b"no", 0)
            with pytest.raises(ReadOnlyError):
                reader.native.mark(4, 5, POINT_CRASH)


def test_a_reader_may_look_at_any_moment_of_a_writer(bench: Bench) -> None:
    stop = threading.Event()
    committed = [0]

    def write() -> None:
        rng = random.Random(4)
        while not stop.is_set():
            number = committed[0] + 1
            journal.disk.pwrite(rng.randbytes(GRAIN * 3), rng.randrange(30) * GRAIN)
            journal.native.mark(number, number, POINT_CRASH)
            journal.native.commit()
            committed[0] = number

    with bench.open() as journal, ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        for _ in range(60):
            before = committed[0]
            with bench.open(writable=False) as reader:
                assert len(reader.native.points()) >= before
                reader.disk.pread(SIZE, 0)
        stop.set()
        writing.result()


def test_what_waits_for_a_commit_is_bounded(bench: Bench) -> None:
    folder = bench.folder
    create_disk(str(folder / "big.vmdk"), "monolithicFlat", 48 << 20)
    names = create_journal(folder / "big.vmdk", "big", segment_bytes=4 << 20)
    journal = open_journal(folder / names.log, folder / "big.vmdk", writable=True)
    journal.disk.pwrite(bytes(range(256)) * (40 << 12), 0)
    assert journal.native.pending_bytes < 34 << 20
    assert journal.native.info()["durable_sequence"] > 0
    assert journal.disk.pread(40 << 20, 0) == bytes(range(256)) * (40 << 12)
    journal.close()


def test_closing_in_order_leaves_nothing_to_walk(bench: Bench) -> None:
    bench.filled()
    bench.open().close(clean=True)
    with bench.open() as journal:
        info = journal.native.info()
        assert info["closed_clean"]
        assert info["root_sequence"] == info["durable_sequence"]
    assert read_by_qemu(bench) == bench.model


# --- damage ---

DAMAGES: dict[str, tuple[Callable[[dict], int], str]] = {
    "sparse header": (lambda at: 70, "open"),
    "shown root, header": (lambda at: at["root"] - 4000, "open"),
    "shown root, directory": (lambda at: at["root"] + 1, "map"),
    "shown root, a table": (lambda at: at["root"] + 4096 + 17, "map"),
    "first batch, magic": (lambda at: at["batch"] + 2, "verify"),
    "first batch, header": (lambda at: at["batch"] + 50, "verify"),
    "first batch, entry": (lambda at: at["batch"] + 128 + 5, "verify"),
    "first grain": (lambda at: at["batch"] + GRAIN + 1000, "verify"),
    "segment header": (lambda at: at["segment"] + 33, "open"),
    "summary, entries": (lambda at: at["summary"] + 3, "roll"),
    "trailer": (lambda at: at["segment"] + SEGMENT - 4096 + 41, "verify-closed"),
    "last segment, header": (lambda at: at["last"] + 33, "open"),
    "last segment, first batch": (lambda at: at["last"] + GRAIN + 60, "open"),
    "last segment, a grain": (lambda at: at["last"] + 2 * GRAIN + 60, "verify"),
}


def places(bench: Bench) -> dict[str, int]:
    """Where things are in the log of ``filled``, closed in order."""
    with bench.open(writable=False) as journal:
        info = journal.native.info()
    segments = int(info["segment_count"])
    log = bench.log.read_bytes()
    trailer = SEGMENT_0 + SEGMENT - 4096
    last = max(
        position
        for position in range(SEGMENT_0, len(log), SEGMENT)
        if log[position : position + 8] == b"RPSEGMT1"
    )
    assert segments >= 3
    return {
        "root": int(info["root_sector"]) * 512,
        "segment": SEGMENT_0,
        "batch": SEGMENT_0 + GRAIN,
        "summary": int.from_bytes(log[trailer + 72 : trailer + 80], "little"),
        "last": last,
    }


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_an_error_that_names_file_and_place(bench: Bench, what: str) -> None:
    where, seen = DAMAGES[what]
    bench.filled(writes=40)
    bench.open().close(clean=True)
    position = where(places(bench))
    bench.flip(position)

    if seen == "open":
        with pytest.raises(DamagedError, match=rf"{bench.log}.* \d+"):
            bench.open()
        return
    journal = bench.open()
    if seen == "map":
        with pytest.raises(DamagedError, match=rf"{bench.log}.*root at \d+"):
            journal.disk.pread(1, 0)
    elif seen == "roll":
        with pytest.raises(DamagedError, match=rf"{bench.log}.*summary of segment 0.* at \d+"):
            journal.native.roll(13)
    found = journal.verify()
    journal.close()
    if seen == "verify-closed":  # its batches say the same as the summary did
        assert found == []
        return
    assert found
    first = found[0]
    assert first.position - GRAIN <= position < first.position + max(first.length_bytes, GRAIN)
    assert (first.guest_offset_bytes is not None) == ("grain" in what)


@pytest.mark.parametrize("copy", [0, 1])
def test_one_damaged_superblock_costs_nothing(bench: Bench, copy: int) -> None:
    bench.filled()
    with bench.open() as journal:
        journal.native.set_epoch(7, held=False)
    bench.flip(4096 * (1 + copy) + 60)
    with bench.open() as journal:
        assert journal.native.info()["epoch"] == 7
        assert [damage.position for damage in journal.verify()] == [4096 * (1 + copy)]
        journal.native.set_epoch(8, held=False)
        assert journal.verify() == []


def test_two_damaged_superblocks_are_an_error(bench: Bench) -> None:
    bench.flip(4096 + 60)
    bench.flip(8192 + 60)
    with pytest.raises(DamagedError, match="superblock"):
        bench.open()


@pytest.mark.parametrize(
    ("offset", "length", "value"),
    [
        (48, 4, 0),  # grain
        (48, 4, 512),
        (52, 4, 0),  # segment
        (52, 4, 4096),
        (52, 4, SEGMENT + 512),
        (40, 8, 0),  # capacity
        (88, 8, 1 << 40),  # horizon entry
        (96, 8, 5),  # horizon sequence
        (104, 8, 1 << 63),  # based entry
        (112, 8, 1),  # first number
        (136, 8, (1 << 64) - 1),  # first entry
    ],
)
def test_a_superblock_with_wrong_numbers_is_an_error_though_its_checksum_holds(
    bench: Bench, offset: int, length: int, value: int
) -> None:
    import xxhash

    bench.filled()
    with open(bench.log, "r+b") as file:
        for copy in (4096, 8192):
            file.seek(copy)
            page = bytearray(file.read(4096))
            page[offset : offset + length] = value.to_bytes(length, "little")
            page[8:16] = xxhash.xxh3_64_intdigest(bytes(page[16:])).to_bytes(8, "little")
            file.seek(copy)
            file.write(page)
    for writable in (False, True):
        with pytest.raises(DamagedError, match=str(bench.log)):
            bench.open(writable=writable)


def test_a_wrong_entry_of_the_root_is_found_though_its_checksum_holds(bench: Bench) -> None:
    """The planted bug: a roll back that got one grain wrong, and wrote it well."""
    import xxhash

    bench.filled()
    bench.open().close(clean=True)
    log = bytearray(bench.log.read_bytes())
    root = places(bench)["root"]
    table = root + 4096
    used = next(i for i in range(512) if int.from_bytes(log[table + 4 * i :][:4], "little") > 1)
    log[table + 4 * used : table + 4 * used + 4] = bytes(4)
    header = root - 4096
    content = xxhash.xxh3_64_intdigest(bytes(log[root : root + 4096 + 2048]))
    log[header + 80 : header + 88] = content.to_bytes(8, "little")
    page = xxhash.xxh3_64_intdigest(bytes(log[header + 16 : header + 4096]))
    log[header + 8 : header + 16] = page.to_bytes(8, "little")
    bench.log.write_bytes(log)
    with bench.open() as journal:
        assert any("differs from the log" in damage.message for damage in journal.verify())


def test_files_that_are_no_logs_are_refused(bench: Bench, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for content in (b"", b"text" * 40000, b"KDMV" + bytes(200000)):
        other.write_bytes(content)
        with pytest.raises(FormatError, match=str(other)):
            open_journal(other)
    with pytest.raises(NotFoundError):
        open_journal(tmp_path / "missing")


# --- one writer, in its epoch ---


def test_a_second_writer_is_refused_in_this_process_and_in_another(bench: Bench) -> None:
    code = (
        "import sys\n"
        "from rollpoint.errors import LockedError\n"
        "from rollpoint.journal import open_journal\n"
        "try:\n"
        "    open_journal(sys.argv[1], writable=True)\n"
        "except LockedError:\n"
        "    sys.exit(7)\n"
    )
    with bench.open() as first:
        with pytest.raises(LockedError):
            bench.open()
        other = subprocess.run([sys.executable, "-c", code, bench.log])
        assert other.returncode == 7
        first.native.commit()
    bench.open().close()


def test_a_newer_epoch_fences_the_writer_off_for_good(bench: Bench) -> None:
    with bench.open() as journal:
        journal.native.set_epoch(5, held=False)
    with pytest.raises(StaleEpochError):
        bench.open(epoch=4)
    stale = bench.open(epoch=5)
    bench.write(stale, 0, b"in time")
    stale.native.commit()
    stale.disk.pwrite(b"too late", 100)
    raise_epoch_behind_its_back(bench, 6)
    for _ in range(2):
        with pytest.raises(StaleEpochError):
            stale.native.commit()
    with pytest.raises(StaleEpochError):
        stale.disk.pwrite(b"no", 0)
    stale.close()
    with bench.open() as journal:
        assert journal.disk.pread(SIZE, 0) == bench.model
        assert journal.native.info()["epoch"] == 6


def raise_epoch_behind_its_back(bench: Bench, epoch: int) -> None:
    """What another host that does not see our lock could do."""
    import xxhash

    with open(bench.log, "r+b") as file:
        for copy in (4096, 8192):
            file.seek(copy)
            page = bytearray(file.read(4096))
            page[56:64] = epoch.to_bytes(8, "little")
            page[64:72] = (int.from_bytes(page[64:72], "little") + 1).to_bytes(8, "little")
            page[8:16] = xxhash.xxh3_64_intdigest(bytes(page[16:])).to_bytes(8, "little")
            file.seek(copy)
            file.write(page)


def test_a_held_journal_takes_marks_but_no_writes(bench: Bench) -> None:
    journal = bench.open()
    bench.write(journal, 0, b"before")
    journal.native.set_epoch(2, held=True)
    with pytest.raises(HeldError):
        journal.disk.pwrite(b"after", 0)
    with pytest.raises(HeldError):
        journal.disk.zero(512, 0)
    journal.native.mark(1, 1, POINT_CRASH)
    journal.native.commit()
    journal.close()
    journal = bench.open()
    assert journal.native.info()["held"]
    with pytest.raises(HeldError):
        journal.disk.pwrite(b"after", 0)
    journal.native.set_epoch(2, held=False)
    bench.write(journal, 10, b"released")
    assert journal.disk.pread(SIZE, 0) == bench.model
    with pytest.raises(UsageError):
        journal.native.set_epoch(1, held=False)
    journal.close()


# --- misuse ---


def test_ids_rise_and_labels_fit(bench: Bench) -> None:
    with bench.open() as journal:
        journal.native.mark(5, 1, POINT_CRASH, "é" * 127)
        for number in (5, 4):
            with pytest.raises(UsageError):
                journal.native.mark(number, 1, POINT_CRASH)
        with pytest.raises(UsageError):
            journal.native.mark(6, 1, POINT_CRASH, "x" * 256)
        with pytest.raises(UsageError):
            journal.native.mark(6, 1, 9)
        journal.native.commit()
        assert journal.native.points() == [(5, 1, POINT_CRASH, "é" * 127)]
        with pytest.raises(NotFoundError):
            journal.native.roll(4)


def test_without_its_base_a_journal_has_points_but_no_data(bench: Bench) -> None:
    bench.filled()
    with open_journal(bench.log, writable=True) as journal:
        assert len(journal.native.points()) == 2
        journal.native.roll(POINT_LATEST)
        assert journal.verify() == []
        with pytest.raises(StateError):
            journal.disk.pread(SIZE, 0)


def test_a_closed_journal_says_so(bench: Bench) -> None:
    journal = bench.open()
    native = journal.native
    journal.close()
    journal.close()
    for call in (native.commit, native.points, native.info, native.disk):
        with pytest.raises(StateError):
            call()
    with pytest.raises(StateError):
        _ = journal.disk


@pytest.mark.parametrize(
    ("grain", "segment"), [(512, SEGMENT), (6000, SEGMENT), (4096, 4096), (4096, 70000)]
)
def test_sizes_outside_their_range_are_refused(tmp_path: Path, grain: int, segment: int) -> None:
    create_disk(str(tmp_path / "d.vmdk"), "monolithicFlat", SIZE)
    with pytest.raises(UsageError):
        create_journal(tmp_path / "d.vmdk", "d", grain_bytes=grain, segment_bytes=segment)
    assert not (tmp_path / "d-journal-log.vmdk").exists()
