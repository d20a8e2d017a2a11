"""Restore points that are looked at while the replica goes on living: exact, or refused."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from frozen_life import KEEP_SECONDS, SECOND_NS, SIZES, Life, Marked
from replicas import Source, ingesting, wait_until
from rollpoint import (
    _native,
    frozen,
    merging,
    operation,
    replication,
    retaining,
    retention,
    viewers,
)
from rollpoint import view as rollpoint_view
from rollpoint.disk import OpenDisk
from rollpoint.errors import (
    Error,
    GapError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    StateError,
    UsageError,
)
from rollpoint.journal import OpenJournal
from rollpoint.manifest import Gap
from rollpoint.mount import Mount
from rollpoint.replica import Replica
from rollpoint.units import parse_time
from rollpoint.view import View, view
from tools import libnbd


def life_of(seed: int, io: _native.Io | None = None, path: str = "/r") -> Life:
    life = Life(io or _native.Io.simulate(), path, seed)
    life.write()
    life.mark()
    return life


def check_some(shown: View, marked: Marked, rng: random.Random) -> None:
    """A stretch of a disk is what it held at the point, and no hole where it held data."""
    name = rng.choice(list(SIZES))
    disk, size = shown.disks[name], SIZES[name]
    length = rng.randrange(1, size)
    offset = rng.randrange(size - length)
    assert disk.size_bytes == size
    assert disk.pread(length, offset) == marked.model[name][offset : offset + length]
    run, kind, *_ = disk.reading.run(offset, length)
    if kind != _native.RUN_DATA:
        assert not any(marked.model[name][offset : offset + run])


def check_all(shown: View, marked: Marked) -> None:
    for name, size in SIZES.items():
        assert shown.disks[name].pread(size, 0) == marked.model[name]


# ---- exact ----


@pytest.mark.parametrize("seed", range(1, 5))
def test_what_a_view_shows_stays_exact_whatever_goes_on(seed: int) -> None:
    life, views = life_of(seed), dict[int, tuple[View, Marked]]()
    rng = random.Random(seed)
    for _ in range(150):
        what = rng.random()
        if what < 0.35:
            life.write()
        elif what < 0.55:
            life.mark()
        elif what < 0.7 and len(views) < 4:
            marked = rng.choice(life.marked)
            if marked.point.id not in views:
                views[marked.point.id] = view(life.replica, marked.point), marked
        elif what < 0.78:
            in_journals = [row for row in life.marked if row.point.id >= life.oldest]
            row = rng.choice(in_journals[:3])
            (life.freeze if rng.random() < 0.3 else life.destage)(row)
        elif what < 0.84:
            life.close()
            life.open()
        elif what < 0.9 and views:
            views.pop(rng.choice(list(views)))[0].close()
        kept = {row.point.id for row in life.marked}
        for number, (shown, marked) in list(views.items()):
            if number in kept:
                check_some(shown, marked, rng)
                continue
            with contextlib.suppress(NotFoundError):  # nothing was written up to the next
                check_all(shown, marked)
            views.pop(number)[0].close()
    for shown, marked in views.values():
        check_all(shown, marked)
        shown.close()
    life.check()
    life.close()


def test_a_view_goes_on_while_its_point_is_kept_and_ends_with_it() -> None:
    life = life_of(10)
    for _ in range(3):
        life.write(30)
        life.mark()
    first, second = life.marked[1:3]
    one, two = view(life.replica, first.point), view(life.replica, second.point)
    check_all(one, first)
    life.freeze(first)  # shown by a chain from now on
    check_all(one, first)
    life.destage(second)
    life.write(60)  # into what was given back
    check_all(one, first)
    check_all(two, second)
    life.destage(life.marked[-1])
    with pytest.raises(NotFoundError, match="any more"):
        check_all(two, second)
    with pytest.raises(NotFoundError, match="any more"):  # again, and at once
        check_all(two, second)
    check_all(one, first)
    one.close()
    two.close()
    life.close()


def test_two_points_are_seen_at_once_by_what_a_person_calls_them() -> None:
    life = life_of(11)
    life.write()
    second = life.mark()
    life.write()
    with view(life.replica, "1") as one, view(life.replica, second.point.time) as two:
        assert (one.point.id, two.point.id) == (1, 2)
        check_all(one, life.marked[0])
        check_all(two, second)
        assert list(one.disks) == list(SIZES)
    with view(life.replica) as newest:
        assert newest.point.id == 2
    with pytest.raises(StateError, match="closed"):
        _ = newest.disks["a"].reading
    life.close()


def test_nothing_can_be_written_and_no_byte_of_the_replica_changes(tmp_path: Path) -> None:
    life = life_of(12, _native.Io.posix(), str(tmp_path / "r"))
    life.freeze(life.marked[0])
    life.write()
    life.mark()
    life.close()

    def content() -> dict[str, bytes]:
        return {
            path.name: path.read_bytes()
            for path in (tmp_path / "r").iterdir()
            if path.suffix != ".lock"
        }

    before = content()
    for marked in life.marked:
        with view(life.replica, marked.point) as shown:
            check_all(shown, marked)
            for disk in shown.disks.values():
                with pytest.raises(ReadOnlyError):
                    disk.reading.pwrite(b"x", 0)
    assert content() == before


def test_a_long_term_point_stays_while_somebody_looks_at_it() -> None:
    life = life_of(13)
    first = life.marked[0]
    life.freeze(first)
    life.write()
    life.freeze(life.mark())
    now_ns = parse_time(life.replica.manifest.frozen[0].time) + int(KEEP_SECONDS * SECOND_NS) + 1
    with view(life.replica, first.point) as shown:
        assert frozen.expire(life.replica, now_ns, life.journals) == []
        life.write()
        check_all(shown, first)
    assert frozen.expire(life.replica, now_ns, life.journals) == [first.point.id]
    life.close()


def test_clients_of_an_export_read_on_while_the_horizon_moves(tmp_path: Path) -> None:
    life = life_of(14, _native.Io.posix(), str(tmp_path / "r"))
    life.write(20)
    marked = life.mark()
    failures: list[BaseException] = []
    with view(life.replica, marked.point) as shown, Mount(shown.disks, read_only=True) as mount:
        over = threading.Event()

        def read_on(seed: int, client: Any) -> None:
            rng, reads = random.Random(seed), 0
            try:
                while not over.is_set() or reads < 20:
                    length = rng.randrange(1, 40_000)
                    offset = rng.randrange(SIZES["a"] - length)
                    wanted = marked.model["a"][offset : offset + length]
                    assert client.pread(length, offset) == wanted
                    reads += 1
            except BaseException as error:
                failures.append(error)
            finally:
                client.shutdown()

        clients = [libnbd().NBD() for _ in range(2)]
        for client in clients:
            client.connect_uri(mount.uri("a"))
        readers = [threading.Thread(target=read_on, args=row) for row in enumerate(clients)]
        for reader in readers:
            reader.start()
        for _ in range(6):  # up to the point, and into what was given back
            if life.oldest < marked.point.id:
                rows = [row for row in life.marked if life.oldest < row.point.id]
                (life.freeze if life.rng.random() < 0.3 else life.destage)(rows[0])
            life.write(30)
        over.set()
        for reader in readers:
            reader.join()
    assert not failures
    life.close()


def test_a_view_is_closed_while_it_is_being_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    life = life_of(15)
    for _ in range(3):
        life.write(30)
        life.mark()
    shown = view(life.replica, life.marked[-1].point)
    life.destage(life.marked[-2])
    begun, go_on = threading.Event(), threading.Event()
    real = rollpoint_view.open_at
    opened: list[OpenDisk | OpenJournal] = []

    def slow(*arguments: Any) -> OpenDisk | OpenJournal:
        begun.set()
        go_on.wait(30)
        opened.append(real(*arguments))
        return opened[-1]

    monkeypatch.setattr(rollpoint_view, "open_at", slow)

    def read() -> None:
        with contextlib.suppress(Error):
            shown.disks["a"].pread(SIZES["a"], 0)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(begun.is_set, "it is being opened again")
    closer = threading.Thread(target=shown.close)
    closer.start()
    reader.join(30)
    go_on.set()
    closer.join(30)
    assert not reader.is_alive()
    assert not closer.is_alive()
    for each in opened:
        with pytest.raises(StateError):  # it is closed as well
            _ = each.disk if isinstance(each, OpenJournal) else each.reading
    assert opened
    life.close()


# ---- refused ----


def test_a_point_that_is_not_there_is_refused_with_what_there_is() -> None:
    life = life_of(21)
    for _ in range(3):
        life.write()
        life.mark()
    life.destage(life.marked[2])
    with pytest.raises(NotFoundError) as caught:
        view(life.replica, "1")
    assert "3" in caught.value.hint
    with pytest.raises(UsageError):
        view(life.replica, "tomorrow")
    with life.replica.locked() as manifest:
        manifest.gaps = [
            Gap(start=life.marked[0].point.time, end=life.marked[1].point.time, cause="x")
        ]
        manifest.horizon = 4  # it is about to go there
        life.replica.save()
    with pytest.raises(NotFoundError, match="any more"):
        view(life.replica, "3")
    middle = (life.marked[0].point.time_ns + life.marked[1].point.time_ns) // 2
    with pytest.raises(GapError):
        life.replica.points.nearest(middle)
    assert not viewers.present(life.replica.directory)  # nothing is left of a refusal
    life.close()


def test_a_failed_over_replica_can_be_looked_at_but_not_while_it_is_made_permanent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = life_of(22)
    life.write()
    life.mark()
    life.close()
    with Replica.open("/r", life.io) as replica:
        replication.hold(replica)
        operation.failover(replica, "1", power_on=False)
        with view(replica, life.marked[1].point) as shown:
            check_all(shown, life.marked[1])
            with pytest.raises(LockedError, match="looking"):
                operation.permanent(replica)
            check_all(shown, life.marked[1])
        assert replica.manifest.state == "Failover"

        def fail(*_: object) -> int:
            with pytest.raises(LockedError):
                view(replica, "2")
            raise StateError("no", "")

        monkeypatch.setattr(merging, "_merge", fail)
        monkeypatch.setattr("rollpoint.view.LOCK_SECONDS", 0.01)
        with pytest.raises(StateError, match="no"):
            operation.permanent(replica)
        monkeypatch.undo()
        with pytest.raises(StateError, match="permanent"):
            view(replica, "2")
        operation.resume(replica)
        with pytest.raises(StateError, match="Permanent"):
            view(replica, "2")


def test_a_replica_that_was_looked_at_is_removed_whole(tmp_path: Path) -> None:
    life = life_of(23, _native.Io.posix(), str(tmp_path / "r"))
    life.close()
    view(life.replica).close()
    life.replica.remove()
    assert not (tmp_path / "r").exists()


# ---- beside an ingest ----

LOOKER = """
import sys
from rollpoint.replica import Replica
from rollpoint.view import view
with Replica.open(sys.argv[1]) as replica, view(replica) as shown:
    print(shown.point.id, flush=True)
    sys.stdin.read()
"""
INGEST_SIZES = {"a": 256 << 10}
SEGMENT = 65536


def horizon(path: Path) -> int:
    with Replica.open(path) as replica:
        return replica.manifest.horizon


def quickened(monkeypatch: pytest.MonkeyPatch, path: Path, **settings: object) -> None:
    monkeypatch.setattr(retaining, "ROUND_SECONDS", 0.02)
    monkeypatch.setattr(retention, "STEP_SECONDS_MIN", 0.01)
    monkeypatch.setattr(retention, "STRIDES_IN_WINDOW", 1e-6)
    Replica.create(path, list(INGEST_SIZES.items()), segment_bytes=SEGMENT).close()
    with Replica.open(path) as replica, replica.locked() as manifest:
        for name, value in settings.items():
            setattr(manifest.retention, name, value)
        replica.save()


def feed(path: Path, source: Source, rounds: int) -> None:
    with Replica.open(path) as replica:
        for _ in range(rounds):
            for _ in range(8):
                source.act()
            replication.mark(replica)


def test_the_horizon_waits_for_who_looks_and_goes_on_when_that_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r"
    quickened(monkeypatch, path, window_seconds=0.1)
    with ingesting(path, tmp_path / "s"):
        source = Source(tmp_path / "s", {k: bytearray(v) for k, v in INGEST_SIZES.items()}, 1)
        feed(path, source, 3)
        looker = subprocess.Popen(
            [sys.executable, "-c", LOOKER, str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert looker.stdout is not None
        seen = int(looker.stdout.readline())
        with Replica.open(path) as replica:
            assert viewers.present(replica.directory)
        stays = horizon(path)
        feed(path, source, 30)
        assert horizon(path) == stays <= seen
        looker.kill()
        looker.communicate(timeout=30)
        wait_until(lambda: horizon(path) > seen, "the horizon goes on")
        source.close()


def test_where_room_runs_out_the_limit_wins_and_the_view_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r"
    quickened(monkeypatch, path, limit_bytes=32 * SEGMENT)
    with ingesting(path, tmp_path / "s"):
        source = Source(tmp_path / "s", {k: bytearray(v) for k, v in INGEST_SIZES.items()}, 2)
        feed(path, source, 3)
        held = source.snapshot()["a"]
        with Replica.open(path) as replica, view(replica) as shown:
            assert shown.disks["a"].pread(len(held), 0) == held
            while horizon(path) <= shown.point.id:
                feed(path, source, 1)
            disk = shown.disks["a"]

            def ended() -> bool:
                with contextlib.suppress(NotFoundError):
                    assert disk.pread(len(held), 0) == held
                return isinstance(disk.error, NotFoundError)

            wait_until(ended, "the view ends")
            assert "any more" in str(disk.error)
        source.close()
