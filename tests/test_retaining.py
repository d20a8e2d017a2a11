"""The ring's driver: what is kept is exact, what is not is refused, the log stays in its limit."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec import structs
from replicas import Source, ingesting, rollpoint, seen_by_qemu, wait_until
from rollpoint import (
    _native,
    chains,
    control,
    noting,
    operation,
    rationing,
    replication,
    retaining,
    retention,
)
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import DamagedError, Error, GapError, NotFoundError, StorageError
from rollpoint.replica import Replica
from tools import libnbd

SIZES = {"a": 512 * 1024 + 512, "b": 256 * 1024}
SEGMENT = 65536
LIMIT = 48 * SEGMENT
Snapshot = dict[str, bytes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make(tmp_path / "r")
    return tmp_path / "r"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds and steps of a driver that are made for hours, in a test of a second."""
    monkeypatch.setattr(retaining, "ROUND_SECONDS", 0.02)
    monkeypatch.setattr(retention, "STEP_SECONDS_MIN", 0.01)
    monkeypatch.setattr(retention, "STRIDES_IN_WINDOW", 1e-6)


def make(path: Path, io: _native.Io | None = None) -> None:
    Replica.create(path, list(SIZES.items()), segment_bytes=SEGMENT, io=io).close()


def keep(path: Path | str, io: _native.Io | None = None, **settings: object) -> None:
    """Set what a replica keeps, also what no operator may ask for."""
    with Replica.open(path, io) as replica, replica.locked() as manifest:
        manifest.retention = structs.replace(manifest.retention, **settings)
        replica.save()


def source_of(socket: Path, seed: int) -> Source:
    return Source(socket, {name: bytearray(size) for name, size in SIZES.items()}, seed)


def horizon(path: Path) -> int:
    with Replica.open(path) as replica:
        return replica.manifest.horizon


def is_based(path: Path) -> bool:
    """Whether every journal has brought down what lies before its horizon."""
    with Replica.open(path) as replica, replica.journals() as journals:
        infos = [native.info() for native in journals.natives]
        return all(info["based_entry"] == info["horizon_entry"] for info in infos) and all(
            native.points()[0][0] >= replica.manifest.horizon for native in journals.natives
        )


def ask(path: Path, command: str, **values: object) -> dict[str, object]:
    return control.ask(str(path / ".control.sock"), command, **values)


def check_points(path: Path, snapshots: dict[int, Snapshot], least: int = 1) -> list[int]:
    """Every point that is listed recovers exactly; of many, the first, the last and some.

    Those that the ingest marked by itself, at a moment that we do not know, are left out.
    Returns the ids of all others.
    """
    with Replica.open(path) as replica:
        kept = [point.id for point in replica.points if point.id in snapshots]
        assert len(kept) >= least
        some = kept if len(kept) < 6 else random.Random(len(kept)).sample(kept[1:-1], 3)
        for number in sorted({kept[0], *some, kept[-1]}):
            done = operation.failover(replica, number, power_on=False)
            for name, interim in done.interims.items():
                with open_disk(interim) as disk:
                    assert disk.pread(disk.size_bytes, 0) == snapshots[number][name], number
            operation.undo(replica)
    return kept


def feed(
    path: Path, source: Source, snapshots: dict[int, Snapshot], rounds: int, writes: int = 10
) -> None:
    with Replica.open(path) as replica:
        for _ in range(rounds):
            for _ in range(writes):
                source.act()
            snapshots[replication.mark(replica).id] = source.snapshot()


# ---- the window ----


def test_points_in_the_window_are_exact_and_older_ones_are_refused(
    path: Path, tmp_path: Path, quick: None
) -> None:
    snapshots: dict[int, Snapshot] = {}
    keep(path, window_seconds=0.1)
    with ingesting(path, tmp_path / "s"):
        source = source_of(tmp_path / "s", 1)
        while horizon(path) < 5:
            feed(path, source, snapshots, 1)
        keep(path, window_seconds=3600)
        feed(path, source, snapshots, 5)
        source.close()
    oldest = horizon(path)
    kept = check_points(path, snapshots, least=5)
    assert kept[0] == oldest >= 5
    with Replica.open(path) as replica:
        for wanted in ("1", replica.manifest.created):
            with pytest.raises(NotFoundError) as caught:
                operation.failover(replica, wanted, power_on=False)
            assert str(oldest) in caught.value.hint
            assert replica.points[0].time in caught.value.hint
        done = operation.failover(replica, oldest, power_on=False)
        for name, interim in done.interims.items():
            assert seen_by_qemu(interim, tmp_path) == snapshots[oldest][name]


def test_an_idle_replica_keeps_its_newest_point(path: Path, tmp_path: Path, quick: None) -> None:
    snapshots: dict[int, Snapshot] = {}
    keep(path, window_seconds=0.05)
    with ingesting(path, tmp_path / "s"):
        source = source_of(tmp_path / "s", 2)
        feed(path, source, snapshots, 6)
        source.close()
        wait_until(lambda: horizon(path) == 6, "all others were given up")
        wait_until(lambda: is_based(path), "they were destaged")
    assert check_points(path, snapshots) == [6]


def test_a_pinned_or_locked_point_stops_the_horizon_until_it_is_free(
    path: Path, tmp_path: Path, quick: None
) -> None:
    snapshots: dict[int, Snapshot] = {}
    keep(path, window_seconds=3600)
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        source = source_of(tmp_path / "s", 3)
        feed(path, source, snapshots, 8)
        noting.set_pin(replica, "3", True)
        noting.lock(replica, "5", "2999-01-01")
        keep(path, window_seconds=0.01)
        wait_until(lambda: horizon(path) == 3, "the pin stopped it")
        feed(path, source, snapshots, 2)
        noting.set_pin(replica, "3", False)
        wait_until(lambda: horizon(path) == 5, "the lock stopped it")
        feed(path, source, snapshots, 2)
        assert horizon(path) == 5
        source.close()
    kept = check_points(path, snapshots)
    assert kept == list(range(5, 13))
    with Replica.open(path) as replica:
        assert [note.id for note in replica.manifest.notes] == [5], "3 is only a number now"


def test_the_notes_of_points_that_are_gone_are_forgotten(
    path: Path, tmp_path: Path, quick: None
) -> None:
    keep(path, window_seconds=3600)
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        source = source_of(tmp_path / "s", 4)
        feed(path, source, {}, 4)
        noting.set_name(replica, "1", "first-one")
        noting.set_name(replica, "4", "last-one")
        keep(path, window_seconds=0.01)
        wait_until(lambda: horizon(path) == 4, "all but the newest went")
        source.close()
        replica.refresh()
        assert [note.name for note in replica.manifest.notes] == ["last-one"]
        noting.set_name(replica, "4", "first-one")


def test_a_pin_that_comes_while_a_move_is_decided_is_seen(path: Path) -> None:
    """What is decided without the lock is decided again with it."""
    clock = Clock()
    with Replica.open(path) as replica, replica.locked():
        for _ in range(5):
            replication.mark(replica)
    keep(path, window_seconds=60.0)
    with Replica.open(path) as replica:
        with replica.locked():
            journals = replica.journals(writable=True, with_bases=True, writable_bases=True)
        session = retaining._Session(replica, journals, clock)
        clock.ahead_seconds = 1e6
        decided = session._next(replica.manifest)
        assert decided is not None
        assert decided.point.id > 2
        noting.set_pin(replica, "2", True)
        moved = session._announce()
        assert moved is not None
        assert moved.point.id == 2
        session.let_go()
        journals.close()
    assert horizon(path) == 2


# ---- the limit ----


def test_the_log_stays_in_its_limit_while_many_times_more_is_written(
    path: Path, tmp_path: Path, quick: None
) -> None:
    keep(path, limit_bytes=LIMIT)
    snapshots: dict[int, Snapshot] = {}
    rng = random.Random(5)
    written = 0
    with ingesting(path, tmp_path / "s", rpo_seconds=0.1):
        source = source_of(tmp_path / "s", 5)
        while written < 3 * LIMIT:
            for _ in range(20):
                source.write("ab"[written % 3 > 0], rng.randbytes(16384), rng.randrange(60) * 4096)
                written += 16384
            used = ask(path, "status")["retention"]["used_bytes"]  # type: ignore[index]
            assert used <= LIMIT
            feed(path, source, snapshots, 1, writes=1)
        source.close()
        shown = rollpoint("replica", "show", path)["retention"]
        assert shown["used_bytes"] <= LIMIT
        assert shown["kept_seconds"] < shown["window_seconds"]
    blocks = sum((path / f"{name}-journal-log.vmdk").stat().st_blocks for name in SIZES)
    assert blocks * 512 <= LIMIT + len(SIZES) * 2 * SEGMENT, "with the heads, and the last root"
    check_points(path, snapshots)


def limit(path: Path) -> int:
    status = ask(path, "status")["retention"]
    assert isinstance(status, dict)
    return int(status["limit_bytes"])


def fill(source: Source, rng: random.Random, most: int = 4 * LIMIT) -> int:
    """Write until it is refused; the errno."""
    for _ in range(most // 4096):
        try:
            source.write("a", rng.randbytes(4096), rng.randrange(120) * 4096)
        except libnbd().Error as error:
            return int(error.errnum)
    raise AssertionError("nothing was refused")


def test_a_full_journal_that_refuses_says_so_and_goes_on_when_there_is_room(
    path: Path, tmp_path: Path, quick: None
) -> None:
    keep(path, limit_bytes=LIMIT, at_limit="refuse")
    rng = random.Random(6)
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        source = source_of(tmp_path / "s", 6)
        source.write("b", b"before", 0)
        replication.mark(replica)
        snapshots = {1: source.snapshot()}
        assert fill(source, rng) == errno.ENOSPC
        with pytest.raises(GapError):
            replication.mark(replica)
        full = replica.points.latest  # what was acknowledged before the refusal
        snapshots[full.id] = source.snapshot()
        wait_until(lambda: bool(rollpoint("points", path)["gaps"]), "the gap is in the manifest")
        gap = rollpoint("points", path)["gaps"][0]
        assert (gap["end"], "were refused" in gap["cause"]) == (None, True)
        assert (gap["start"], full.id) == (full.time, 2)
        wait_until(
            lambda: "writes are refused" in str(rollpoint("replica", "show", path)["retention"]),
            "it is shown",
        )
        rollpoint("replica", "set", path, "--journal-limit", 4 * LIMIT)
        wait_until(lambda: limit(path) == 4 * LIMIT, "there is room again")
        for name, disk in source.model.items():  # the source sends everything again
            for at in range(0, len(disk), 65536):
                source.write(name, bytes(disk[at : at + 65536]), at)
        again = replication.mark(replica, caught_up=True)
        snapshots[again.id] = source.snapshot()
        source.close()
    assert rollpoint("points", path)["gaps"][0]["end"] == again.time
    assert check_points(path, snapshots) == [1, 2, 3]


def test_marks_that_find_no_room_are_told_and_end_nothing(
    path: Path, tmp_path: Path, quick: None
) -> None:
    keep(path, limit_bytes=LIMIT, at_limit="refuse")
    rng = random.Random(16)
    snapshots: dict[int, Snapshot] = {}
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        source = source_of(tmp_path / "s", 16)
        assert fill(source, rng) == errno.ENOSPC
        wait_until(lambda: ask(path, "status")["gap"] is not None, "the gap has begun")
        refused = 0
        while not refused:
            try:  # nothing was lost: who was refused holds on to it
                snapshots[replication.mark(replica, caught_up=True).id] = source.snapshot()
            except StorageError as error:
                refused += "full" in error.message or "room" in error.message
        rollpoint("replica", "set", path, "--journal-limit", 4 * LIMIT)
        wait_until(lambda: limit(path) == 4 * LIMIT, "there is room again")
        source.write("a", b"goes on", 0)
        snapshots[replication.mark(replica, caught_up=True).id] = source.snapshot()
        source.close()
    check_points(path, snapshots)


def test_shortening_refuses_where_a_pinned_point_leaves_nothing_to_give_up(
    path: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rationing, "STUCK_LOOKS", 2)
    keep(path, limit_bytes=LIMIT)
    rng = random.Random(7)
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        source = source_of(tmp_path / "s", 7)
        source.write("b", b"before", 0)
        replication.mark(replica)
        before = source.snapshot()
        noting.set_pin(replica, "1", True)
        assert fill(source, rng) == errno.ENOSPC
        wait_until(
            lambda: "pinned, locked or tested points stop" in str(ask(path, "status")["retention"]),
            "it says why",
        )
        noting.set_pin(replica, "1", False)
        wait_until(lambda: bool(ask(path, "status")["gap"]), "the gap has begun")
        source.close()
    with Replica.open(path) as replica:
        assert replica.manifest.gaps[-1].resync
        done = operation.failover(replica, 1, power_on=False)
        with open_disk(done.interims["b"]) as disk:
            assert disk.pread(disk.size_bytes, 0) == before["b"]


def test_a_point_is_marked_early_where_only_that_makes_room(
    path: Path, tmp_path: Path, quick: None
) -> None:
    """Nobody marks for an hour, and more is written than the limit allows: nothing is refused."""
    keep(path, limit_bytes=2 * LIMIT)
    rng = random.Random(8)
    with ingesting(path, tmp_path / "s", rpo_seconds=3600.0), Replica.open(path) as replica:
        source = source_of(tmp_path / "s", 8)
        for _ in range(3 * LIMIT // 4096):
            source.write("a", rng.randbytes(4096), rng.randrange(100) * 4096)
            if rng.random() < 0.02:
                source.write("b", b"x", 0)
                time.sleep(0.001)
        assert len(replica.points) > 0
        assert ask(path, "status")["gap"] is None
        source.close()


def test_a_warning_is_told_before_the_limit_is_reached(
    path: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rationing, "LOOKS_A_SECOND", 1)
    keep(path, limit_bytes=2 * LIMIT, window_seconds=3600)
    told: list[str] = []
    rng = random.Random(9)
    with ingesting(path, tmp_path / "s", rpo_seconds=0.1) as ingest, Replica.open(path) as replica:
        ingest.on_warning(told.append)
        source = source_of(tmp_path / "s", 9)
        replication.mark(replica)
        deadline = time.monotonic() + 30
        while not any("90 %" in text or "75 %" in text for text in told):
            assert time.monotonic() < deadline, told
            source.write("a", rng.randbytes(16384), rng.randrange(30) * 16384)
            time.sleep(0.005)
        wait_until(
            lambda: rollpoint("replica", "show", path)["retention"]["warnings"] != [], "it shows"
        )
        source.close()
    with Replica.open(path) as replica:
        assert any("of the window that can still be kept" in text for text in told)


def test_the_command_prints_warnings_for_its_operator(path: Path, tmp_path: Path) -> None:
    keep(path, limit_bytes=LIMIT, at_limit="refuse")
    socket = tmp_path / "s"
    words = [sys.executable, "-m", "rollpoint", "ingest", str(path), "--socket", str(socket)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        source = source_of(socket, 18)
        assert fill(source, random.Random(18)) == errno.ENOSPC
        told = process.stderr.readline().decode()
        source.close()
        process.terminate()
        process.communicate(timeout=30)
    assert told.startswith("rollpoint: warning: the journals are full")
    assert "--at-limit refuse" in told


# ---- holds, ends and failures ----


def test_a_hold_cancels_a_destage_and_a_release_finishes_it(
    path: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "busy_share", lambda view, use: 1e-9)
    monkeypatch.setattr(retaining, "PAUSE_SECONDS_MAX", 3600.0)
    snapshots: dict[int, Snapshot] = {}
    keep(path, window_seconds=3600)
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        source = source_of(tmp_path / "s", 10)
        feed(path, source, snapshots, 6, writes=30)
        keep(path, window_seconds=0.01)
        wait_until(lambda: destaging(path), "it is at it, and sleeps for an hour")
        replication.hold(replica)
        assert not is_based(path)
        assert ask(path, "status")["retention"] is None
        source.close()
        check_points(path, snapshots | {7: source.snapshot()})
        monkeypatch.setattr(retention, "busy_share", lambda view, use: 1.0)
        replication.release(replica)
        wait_until(lambda: is_based(path), "it was finished")
    check_points(path, snapshots | {7: source.snapshot(), 8: source.snapshot()})


def destaging(path: Path) -> bool:
    status = ask(path, "status")["retention"]
    return isinstance(status, dict) and status["destaging"] is not None


def test_damage_that_a_destage_meets_ends_the_ingest_and_is_told(
    path: Path, tmp_path: Path, quick: None
) -> None:
    keep(path, window_seconds=3600)
    rng = random.Random(11)
    marks = [rng.randbytes(4096) for _ in range(40)]
    log = path / "a-journal-log.vmdk"

    def meet_damage() -> None:
        with ingesting(path, tmp_path / "s"):
            source = source_of(tmp_path / "s", 11)
            for index, data in enumerate(marks):
                source.write("a", data, index * 4096)
            rollpoint("mark", path)
            with open(log, "r+b") as file:
                file.seek(log.read_bytes().index(marks[3]) + 100)
                file.write(b"\xff" * 8)
            keep(path, window_seconds=0.01)
            wait_until(lambda: not (path / ".control.sock").exists(), "the ingest ended")

    with pytest.raises(DamagedError):
        meet_damage()
    with Replica.open(path) as replica:
        assert replica.manifest.ingest is not None
        assert "does not go into the base" in str(replica.manifest.ingest.error)


def test_an_error_that_nobody_foresaw_ends_the_ingest_as_well(
    path: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(retention, "next_move", fail)
    with pytest.raises(Error, match="a bug"), ingesting(path, tmp_path / "s"):
        wait_until(lambda: not (path / ".control.sock").exists(), "the ingest ended")


CHILD = """
import os, signal, sys
from rollpoint import retaining, retention
from rollpoint.ingest import Ingest
from rollpoint.replica import Replica

path, socket, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
retaining.ROUND_SECONDS = retention.STEP_SECONDS_MIN = 0.01
retention.STRIDES_IN_WINDOW = 1e-6
seen = 0

def die(session, done, total):
    global seen
    seen += 1
    if seen == calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return True

retaining._Session._progress = die
with Replica.open(path) as replica:
    ingest = Ingest(replica, socket, 3600.0)
    ingest.start()
    ingest.run()
"""


@pytest.mark.parametrize("calls", [1, 2, 3, 5])
def test_an_ingest_that_is_killed_in_a_destage_goes_on_with_it(
    path: Path, tmp_path: Path, quick: None, calls: int
) -> None:
    snapshots: dict[int, Snapshot] = {}
    with ingesting(path, tmp_path / "s"):
        source = source_of(tmp_path / "s", 12)
        for _ in range(6):
            for at in range(0, SIZES["a"] - 65536, 65536):
                source.write("a", source.rng.randbytes(65536), at)
            feed(path, source, snapshots, 1)
        source.close()
    keep(path, window_seconds=0.01)
    killed_in_a_destage(path, tmp_path, calls)
    keep(path, window_seconds=3600)
    assert horizon(path) == 6
    check_points(path, snapshots)  # also while it is not finished
    with ingesting(path, tmp_path / "s"):
        wait_until(lambda: is_based(path), "it was finished")
    assert check_points(path, snapshots) == [6]


def test_a_sparse_base_that_was_adopted_is_written_and_survives_a_kill(
    tmp_path: Path, quick: None
) -> None:
    path = tmp_path / "old"
    path.mkdir()
    for name, size in SIZES.items():
        create_disk(str(path / f"{name}.vmdk"), "monolithicSparse", size)
    disks = {name: path / f"{name}.vmdk" for name in SIZES}
    Replica.adopt(path, disks, segment_bytes=SEGMENT).close()
    before = {name: file.read_bytes() for name, file in disks.items()}
    snapshots: dict[int, Snapshot] = {}
    with ingesting(path, tmp_path / "s"):
        source = source_of(tmp_path / "s", 17)
        feed(path, source, snapshots, 4, writes=40)
        source.close()
    assert before == {name: file.read_bytes() for name, file in disks.items()}, "not yet"
    keep(path, window_seconds=0.01)
    killed_in_a_destage(path, tmp_path, 2)
    assert rollpoint("replica", "verify", path)["ok"]
    with ingesting(path, tmp_path / "s"):
        wait_until(lambda: is_based(path), "it was finished")
    assert rollpoint("replica", "verify", path)["ok"]
    assert check_points(path, snapshots) == [4]


def killed_in_a_destage(path: Path, tmp_path: Path, calls: int) -> None:
    """By SIGKILL, when it says for the calls'th time how far it is."""
    words = [sys.executable, "-c", CHILD, path, tmp_path / "s", str(calls)]
    done = subprocess.run(words, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def test_resume_finishes_a_destage_without_an_ingest(
    path: Path, tmp_path: Path, quick: None
) -> None:
    snapshots: dict[int, Snapshot] = {}
    with ingesting(path, tmp_path / "s"):
        source = source_of(tmp_path / "s", 13)
        feed(path, source, snapshots, 5, writes=40)
        source.close()
    keep(path, window_seconds=0.01)
    killed_in_a_destage(path, tmp_path, 1)
    assert not is_based(path)
    rollpoint("resume", path)
    assert is_based(path)
    assert check_points(path, snapshots) == [5]
    rollpoint("resume", path)


def test_checkpoints_come_with_what_is_written(
    path: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retaining, "CHECKPOINT_BYTES", 1 << 20)

    def since_root() -> list[int]:
        with Replica.open(path) as replica, replica.journals() as journals:
            infos = [native.info() for native in journals.natives]
            return [int(info["entry_count"]) - int(info["root_entry"]) for info in infos]

    with ingesting(path, tmp_path / "s"):
        source = source_of(tmp_path / "s", 19)
        for turn in range(600):
            source.write("a", source.rng.randbytes(4096), turn % 100 * 4096)
        wait_until(lambda: 0 <= since_root()[0] < 256, "a root was shown of nearly the end")
        source.write("b", b"little", 0)
        source.close()
        assert since_root()[1] <= 2, "that is not worth one"


# ---- long-term points ----


def test_the_schedule_keeps_points_for_long_and_gives_them_up(
    path: Path, tmp_path: Path, quick: None
) -> None:
    snapshots: dict[int, Snapshot] = {}
    keep(path, window_seconds=0.1, every_seconds=0.05, keep_seconds=3600.0)
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        source = source_of(tmp_path / "s", 14)
        deadline = time.monotonic() + 60
        while len(replica.manifest.frozen) < 3:
            assert time.monotonic() < deadline
            feed(path, source, snapshots, 1, writes=4)
            replica.refresh()
        keep(path, window_seconds=3600.0, every_seconds=0.0)
        feed(path, source, snapshots, 2)
        long_term = [row.id for row in replica.manifest.frozen]
        source.close()
    listed = [row["id"] for row in rollpoint("points", path)["points"] if row.get("long_term")]
    assert set(long_term) <= set(listed)
    chosen = [*long_term, *sorted(snapshots)[-3:]]
    check_points(path, {number: snapshots[number] for number in chosen}, least=4)
    keep(path, keep_seconds=0.001, every_seconds=0.001)
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        wait_until(lambda: len(frozen_of(replica)) <= 1, "they expired")
        keep(path, keep_seconds=3600.0)
    check_points(path, {number: snapshots[number] for number in sorted(snapshots)[-3:]})


def test_a_pinned_point_that_is_long_term_does_not_hold_the_log(
    path: Path, tmp_path: Path, quick: None
) -> None:
    snapshots: dict[int, Snapshot] = {}
    keep(path, window_seconds=0.1, every_seconds=0.05, keep_seconds=3600.0)
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        source = source_of(tmp_path / "s", 15)
        feed(path, source, snapshots, 1)
        wait_until(lambda: frozen_of(replica) == [1], "it was kept for long")
        noting.set_pin(replica, "1", True)
        keep(path, every_seconds=0.0)
        deadline = time.monotonic() + 60
        while horizon(path) <= 1:
            assert time.monotonic() < deadline
            feed(path, source, snapshots, 1, writes=4)
        keep(path, window_seconds=3600.0)
        feed(path, source, snapshots, 1)
        source.close()
    assert 1 in check_points(path, snapshots, least=2)


def test_a_long_term_point_that_cannot_be_merged_away_is_warned_of(
    path: Path, tmp_path: Path, quick: None
) -> None:
    snapshots: dict[int, Snapshot] = {}
    keep(path, window_seconds=0.1, every_seconds=0.05, keep_seconds=3600.0)
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        source = source_of(tmp_path / "s", 16)
        deadline = time.monotonic() + 60
        while len(frozen_of(replica)) < 2:
            assert time.monotonic() < deadline
            feed(path, source, snapshots, 1, writes=20)
        (link,) = {replica.manifest.frozen[1].links["a"]}
        source.close()
    spoil_table(path / chains.extent_name(link))
    keep(path, every_seconds=0.0, keep_seconds=0.001)
    with ingesting(path, tmp_path / "s"):
        wait_until(lambda: "merged away" in str(ask(path, "status")["retention"]), "it was told")


def spoil_table(path: Path) -> None:
    """Let the first grain of a sparse extent that has data lie in the extent's metadata."""
    data = bytearray(path.read_bytes())
    directory = int.from_bytes(data[56:64], "little") * 512
    table = int.from_bytes(data[directory : directory + 4], "little") * 512
    for at in range(table, len(data), 4):
        if int.from_bytes(data[at : at + 4], "little") > 1:
            data[at : at + 4] = (2).to_bytes(4, "little")
            break
    path.write_bytes(data)


def frozen_of(replica: Replica) -> list[int]:
    replica.refresh()
    return [row.id for row in replica.manifest.frozen]


# ---- everything at once ----


def random_life(path: Path, socket: Path, seed: int, steps: int) -> int:
    """Settings, pins, holds, failovers and restarts, while points come and go; exact at each.

    Returns how many points were looked at.
    """
    rng = random.Random(seed)
    snapshots: dict[int, Snapshot] = {}
    source_model = {name: bytearray(size) for name, size in SIZES.items()}
    looked = 0
    while steps > 0:
        with ingesting(path, socket), Replica.open(path) as replica:
            source = Source(socket, source_model, rng.randrange(1 << 30))
            if snapshots:
                caught_up = replication.mark(replica, caught_up=True)
                snapshots[caught_up.id] = source.snapshot()
            for _ in range(rng.randrange(5, 15)):
                steps -= 1
                what = rng.random()
                if what < 0.6:
                    feed(path, source, snapshots, rng.randrange(1, 4), rng.randrange(1, 20))
                elif what < 0.75:
                    keep(
                        path,
                        window_seconds=rng.choice((0.02, 0.3, 3600.0)),
                        # With a pin, and no room, writes are refused: not here.
                        limit_bytes=0 if is_pinned(path) else rng.choice((0, 2 * LIMIT)),
                        every_seconds=rng.choice((0.0, 0.0, 0.1)),
                        keep_seconds=rng.choice((0.5, 3600.0)),
                    )
                elif what < 0.85 and len(replica.points) and limit(path) == 0:
                    point = rng.choice(replica.points)
                    with contextlib.suppress(NotFoundError):  # it went meanwhile
                        noting.set_pin(replica, str(point.id), rng.random() < 0.5)
                else:
                    source.close()
                    looked += look_at_one(path, snapshots, rng)
                    source = Source(socket, source_model, rng.randrange(1 << 30))
                    mark = replication.mark(replica, caught_up=True)
                    snapshots[mark.id] = source.snapshot()
            source.close()
        looked += len(check_points(path, snapshots))
    return looked


def is_pinned(path: Path) -> bool:
    with Replica.open(path) as replica:
        return any(note.pinned for note in replica.manifest.notes)


def look_at_one(path: Path, snapshots: dict[int, Snapshot], rng: random.Random) -> int:
    """Fail over beside the ingest, to a point that we know, and back."""
    with Replica.open(path) as replica:
        replication.hold(replica)  # so that none goes meanwhile
        known = [point.id for point in replica.points if point.id in snapshots]
        for number in known and [rng.choice(known)]:
            done = operation.failover(replica, number, power_on=False)
            for name, interim in done.interims.items():
                with open_disk(interim) as disk:
                    assert disk.pread(disk.size_bytes, 0) == snapshots[number][name], number
            operation.undo(replica)
        replication.release(replica)
    return len(known)


def test_a_random_life_with_everything_in_it(path: Path, tmp_path: Path, quick: None) -> None:
    assert random_life(path, tmp_path / "s", 31, 20) > 3


@pytest.mark.long
@pytest.mark.parametrize("seed", range(40, 52))
def test_random_lives_with_everything_in_them(
    path: Path, tmp_path: Path, quick: None, seed: int
) -> None:
    print(f"seed {seed}:", random_life(path, tmp_path / "s", seed, 120), "points")


# ---- power cuts ----


class Clock:
    """Ours plus what a test adds."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def __call__(self) -> int:
        return time.time_ns() + int(self.ahead_seconds * 1e9)


def rounds(replica: Replica, clock: Clock) -> None:
    """What the driver's threads do, by this one; then it ends as in a crash."""
    with replica.locked():
        journals = replica.journals(writable=True, with_bases=True, writable_bases=True)
    try:
        session = retaining._Session(replica, journals, clock)
        try:
            session._look()
            session._round()
        finally:
            session.let_go()
    finally:
        journals.close()


def life(path: Path, io: _native.Io | None, seed: int) -> dict[int, Snapshot]:
    """A replica with points 1 to 5."""
    rng = random.Random(seed)
    model = {name: bytearray(size) for name, size in SIZES.items()}
    snapshots: dict[int, Snapshot] = {}
    make(path, io)
    with (
        Replica.open(path, io) as replica,
        replica.locked(),
        replica.journals(writable=True, with_bases=True) as journals,
    ):
        for _ in range(5):
            for name, native in zip(journals.names, journals.natives, strict=True):
                for _ in range(5):
                    length = rng.randrange(1, 20_000)
                    offset = rng.randrange(len(model[name]) - length)
                    data = rng.randbytes(length) if rng.random() < 0.8 else bytes(length)
                    native.disk().pwrite(data, offset)
                    model[name][offset : offset + length] = data
            number = journals.mark("crash").id
            snapshots[number] = {name: bytes(disk) for name, disk in model.items()}
    return snapshots


def exact(
    io: _native.Io, snapshots: dict[int, Snapshot], chosen: Callable[[list[int]], list[int]]
) -> list[int]:
    with Replica.open("/r", io) as replica:
        kept = [point.id for point in replica.points]
        for number in chosen(kept):
            done = operation.failover(replica, number, power_on=False)
            for name, interim in done.interims.items():
                with open_disk(interim, io=io) as disk:
                    assert disk.pread(disk.size_bytes, 0) == snapshots[number][name], number
            operation.undo(replica)
    return kept


def sweep_move(budget: int, seed: int) -> int:
    """Cut the power in a move of the horizon by a new opening; distinct states that were met."""
    io = _native.Io.simulate()
    snapshots = life(Path("/r"), io, seed)
    clock = Clock()
    keep("/r", io, window_seconds=1000.0)
    io.settle()
    clock.ahead_seconds = 1000.5
    with Replica.open("/r", io) as replica:
        rounds(replica, clock)
    states = io.crash_states(budget=budget, seed=seed, garbage=False)
    for state in states:
        try:
            kept = exact(state.io, snapshots, lambda kept: [kept[0], kept[-1]])
            assert kept[-1] == 5
            with Replica.open("/r", state.io) as replica:
                rounds(replica, clock)
            assert exact(state.io, snapshots, lambda kept: kept)[-1] == 5
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}\n{state.explain()}") from error
    return states.distinct


def test_a_power_cut_at_any_moment_of_a_move_leaves_every_kept_point_exact() -> None:
    assert sweep_move(60, 21) > 40


@pytest.mark.long
def test_thousands_of_power_cuts_in_moves_leave_every_kept_point_exact() -> None:
    print(sum(sweep_move(300, seed) for seed in range(30, 42)), "distinct states")


# ---- storage that fails ----


def fail_moves(tmp_path: Path, step: int) -> int:
    """Each step'th call of a move fails, once or for ever; then it is done again, and exact."""
    origin, clock = tmp_path / "origin", Clock()
    snapshots = life(origin, None, 23)
    keep(origin, window_seconds=1000.0)
    clock.ahead_seconds = 1000.5
    failed = 0
    for number in range(10_000):
        path = Path(shutil.copytree(origin, tmp_path / str(number)))
        call = 1 + number * step
        io = _native.Io.posix().fault(
            call=call, os_errno=(errno.EIO, errno.ENOSPC)[number % 2], sticky=number % 3 == 0
        )
        try:
            with Replica.open(path, io) as replica:
                rounds(replica, clock)
        except Error:
            failed += 1
        if io.calls < call:
            break
        with Replica.open(path) as replica:
            rounds(replica, clock)
        assert check_points(path, snapshots)[-1] == 5, call
        shutil.rmtree(path)
    return failed


def test_a_move_whose_storage_fails_is_done_again_and_every_kept_point_is_exact(
    tmp_path: Path,
) -> None:
    assert fail_moves(tmp_path, 31) > 5


@pytest.mark.long
def test_a_move_may_fail_at_each_of_its_calls(tmp_path: Path) -> None:
    assert fail_moves(tmp_path, 1) > 200


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    import threading

    before = threading.active_count()
    yield
    assert threading.active_count() <= before
