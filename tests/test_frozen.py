"""Long-term restore points: frozen, given up, failed over to, and cut short at any moment."""

from __future__ import annotations

import contextlib
import errno
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from frozen_life import SIZES, Life, Marked, Model, bytes_of, change, check_long_term
from replicas import checked_by_qemu, rollpoint, seen_by_qemu
from rollpoint import _native, chains, cli, frozen, links, operation, replication, retention
from rollpoint import manifest as manifests
from rollpoint.descriptor_write import new_cid
from rollpoint.disk import OpenDisk, check, open_disk
from rollpoint.errors import (
    CancelledError,
    Error,
    GapError,
    HeldError,
    LockedError,
    StateError,
    StorageError,
)
from rollpoint.manifest import DiskEntry, Gap, Manifest
from rollpoint.replica import Replica
from rollpoint.units import format_time, parse_time
from tools import require_tool

SEEDS = range(1, 4)
BUDGET = 70
LONG_SEEDS = range(100, 130)
LONG_BUDGET = 1500


# ---- what they show ----


def lead(life: Life, seed: int, steps: int) -> None:
    """Let random things happen to a replica, and look at it after each."""
    rng = random.Random(seed)
    for _ in range(steps):
        what = rng.random()
        known = life.replica.manifest.frozen
        if what < 0.5:
            life.write()
            life.mark()
        elif what < 0.75:
            rows = [row for row in life.marked if row.point.id >= life.oldest]
            if rows:
                life.freeze(rng.choice(rows[:3]))
        elif what < 0.8 and known:
            life.pin(rng.choice(known).id)
        elif what < 0.95 and known:
            life.expire(rng.choice(known).id)
        else:
            life.close()
            life.open()
        life.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_long_term_points_stay_exact_whatever_is_frozen_and_expires(seed: int) -> None:
    life = Life(_native.Io.simulate(), "/r", seed)
    lead(life, seed, 40)
    assert life.expired
    life.close()


BASE_TYPES = ["monolithicSparse", "twoGbMaxExtentFlat", "vmfsSparse"]


@pytest.mark.parametrize("base_type", BASE_TYPES)
def test_long_term_points_stay_exact_above_a_base_of_any_type(base_type: str) -> None:
    life = Life(_native.Io.simulate(), "/r", 4, base_type=base_type)
    lead(life, 4, 40)
    assert life.expired
    life.close()


def test_long_term_points_stay_exact_with_the_large_grains_of_large_disks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chains, "GRAIN_BYTES_MAX", 16384)
    monkeypatch.setattr(chains, "TABLES_MAX", 0)
    life = Life(_native.Io.simulate(), "/r", 5)
    assert chains.grain_bytes_of(life.replica.manifest.disks[0]) == 16384
    lead(life, 5, 40)
    assert life.expired
    life.close()


@pytest.mark.parametrize(
    ("terabytes", "grain"), [(0.5, 4096), (1, 4096), (1.5, 8192), (16, 65536), (64, 65536)]
)
def test_the_grains_of_delta_disks_grow_with_the_disk(terabytes: float, grain: int) -> None:
    entry = DiskEntry(
        name="a", size_bytes=int(terabytes * (1 << 40)), base="a.vmdk", journal=None,
        grain_bytes=4096, segment_bytes=1 << 20,
    )  # fmt: skip
    assert chains.grain_bytes_of(entry) == grain


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1040))
def test_long_term_points_stay_exact_in_long_lives(seed: int) -> None:
    life = Life(_native.Io.simulate(), "/r", seed)
    lead(life, seed, 200)
    life.close()


def with_points(io: _native.Io, path: str, seed: int, kept: int = 3) -> tuple[Life, list[Marked]]:
    """A life with long-term points, of which no journal has any, and one point after them."""
    life = Life(io, path, seed)
    made = []
    for _ in range(kept):
        life.write()
        made.append(life.mark())
        life.freeze(made[-1])
    life.write()
    life.destage(life.mark())
    life.write()
    life.mark()
    return life, made


def test_other_readers_open_every_long_term_point(tmp_path: Path) -> None:
    life, made = with_points(_native.Io.posix(), str(tmp_path / "r"), 1)
    for row, marked in zip(life.replica.manifest.frozen, made, strict=True):
        for name in SIZES:
            path = tmp_path / "r" / row.links[name]
            assert seen_by_qemu(path, tmp_path) == marked.model[name]
            if row.links[name] != f"{name}.vmdk":
                checked_by_qemu(path)
    assert life.expire(made[0].point.id) == [made[0].point.id]
    for name in SIZES:
        path = tmp_path / "r" / f"{name}.vmdk"
        assert seen_by_qemu(path, tmp_path) == made[1].model[name]
    life.close()
    for name in SIZES:
        path = tmp_path / "r" / f"{name}-journal.vmdk"
        assert seen_by_qemu(path, tmp_path) == bytes(life.model[name])
    with Replica.open(life.path) as replica:
        done = operation.failover(replica, made[2].point.id, power_on=False)
        for name, interim in done.interims.items():
            write = f"write -P 7 4096 {SIZES[name] // 2}"
            subprocess.run([require_tool("qemu-io"), "-c", write, interim], check=True)
            model = bytearray(made[2].model[name])
            model[4096 : 4096 + SIZES[name] // 2] = bytes([7]) * (SIZES[name] // 2)
            assert seen_by_qemu(interim, tmp_path) == bytes(model)
        operation.undo(replica)
        assert replica.verify()["ok"]


def test_points_list_both_kinds_once_and_find_them_by_id_and_by_moment() -> None:
    life, made = with_points(_native.Io.simulate(), "/r", 2)
    points = life.replica.points
    assert [point.id for point in points] == [1, 2, 3, 4, 5]
    assert [point.long_term for point in points] == [True, True, True, False, False]
    assert points.by_id(2) == made[1].point._replace(long_term=True)
    assert points.by_id(2).to_json()["long_term"] is True
    assert "long_term" not in points.by_id(4).to_json()
    between = (made[0].point.time_ns + made[1].point.time_ns) // 2
    assert points.nearest(between).id == 1
    with life.replica.locked() as manifest:
        manifest.gaps = [Gap(start=made[0].point.time, end=made[1].point.time, cause="a cut")]
        life.replica.save()
    with pytest.raises(GapError):
        life.replica.points.nearest(format_time(between))
    life.close()


def test_a_name_of_a_delta_disk_is_not_given_again_while_one_lives() -> None:
    life, made = with_points(_native.Io.simulate(), "/r", 3)
    assert life.replica.manifest.disks[0].top == "a-000003.vmdk"
    assert life.expire(made[0].point.id)
    life.write()
    life.freeze(life.mark())
    assert life.replica.manifest.disks[0].top == "a-000004.vmdk"
    life.expire(made[-1].point.id + 10)
    life.check()
    assert life.replica.manifest.disks[0].top is None
    life.close()


def test_a_chain_is_never_made_longer_than_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    assert retention.LONG_TERM_MAX < frozen.POINTS_MAX < links.LINKS_MAX
    monkeypatch.setattr(frozen, "POINTS_MAX", 3)
    life, _ = with_points(_native.Io.simulate(), "/r", 16)
    marked = life.mark()
    life.destage(marked)
    assert frozen.freeze(life.replica, life.journals, marked.point) is None
    life.check()
    assert life.journals.targets
    life.close()


def test_a_frozen_link_was_closed_cleanly_also_where_an_ingest_was_killed() -> None:
    life, made = with_points(_native.Io.simulate(), "/r", 18)
    life.write(12)
    last = life.mark()
    life.destage(last)
    life.journals.close()  # as a crash would
    assert "unclean" in faults(life, "a-000003.vmdk")
    life.open()
    frozen.freeze(life.replica, life.journals, last.point)
    assert faults(life, "a-000003.vmdk") <= {"leak"}
    life.journals.close()
    assert life.replica.verify()["ok"]
    life.open()
    life.expire(made[1].point.id)
    life.journals.close()
    assert life.replica.verify()["ok"]
    assert faults(life, life.replica.manifest.frozen[0].links["a"]) <= {"leak"}


def faults(life: Life, name: str) -> set[str]:
    return {row["kind"] for row in check(f"/r/{name}", io=life.io)["findings"]}


def test_a_replica_is_removed_with_its_long_term_points(tmp_path: Path) -> None:
    life, _ = with_points(_native.Io.posix(), str(tmp_path / "r"), 4)
    life.close()
    life.replica.remove()
    assert not (tmp_path / "r").exists()


# ---- what is refused ----


def test_nothing_is_frozen_or_given_up_while_it_could_harm() -> None:
    life, made = with_points(_native.Io.simulate(), "/r", 5)
    last = life.marked[-1].point
    with pytest.raises(StateError, match="does not show restore point"):
        frozen.freeze(life.replica, life.journals, last)
    with Replica.open("/r", life.io) as other, other.locked():
        with pytest.raises(LockedError):
            frozen.freeze(life.replica, life.journals, last)
        with pytest.raises(LockedError):
            life.expire(made[0].point.id)
    life.close()
    with Replica.open("/r", life.io) as other:
        replication.hold(other)
    with pytest.raises(HeldError):
        life.expire(made[0].point.id, live=False)
    with Replica.open("/r", life.io) as other:
        operation.failover(other, 2, power_on=False)
    with pytest.raises(StateError):
        life.expire(made[0].point.id, live=False)


def test_a_pinned_point_stays_and_those_around_it_go() -> None:
    life, made = with_points(_native.Io.simulate(), "/r", 6, kept=5)
    life.pin(made[1].point.id)
    life.pin(made[3].point.id)
    gone = life.expire(made[4].point.id)
    assert gone == [made[index].point.id for index in (0, 2, 4)]
    life.check()
    life.close()


def test_a_merge_that_is_ended_leaves_the_point_unlisted_and_goes_on_later() -> None:
    life, made = with_points(_native.Io.simulate(), "/r", 7)
    now_ns = parse_time(made[0].point.time) + 2 * 10**12
    with pytest.raises(CancelledError):
        frozen.expire(life.replica, now_ns, life.journals, lambda done, total: False)
    assert [point.id for point in life.replica.points] == [2, 3, 4, 5]
    with Replica.open("/r", life.io) as other:  # a hold comes in between, as it may
        assert other.manifest.merging is not None
        check_long_term("/r", life.io, {row.point.id: row.model for row in made})
    life.write()
    life.freeze(life.mark())
    assert made[0].point.id in frozen.expire(life.replica, now_ns, life.journals)
    life.marked = [row for row in life.marked if row.point.id >= life.oldest]
    life.check()
    life.close()


def test_an_old_link_that_cannot_be_read_ends_no_ingest_and_is_told() -> None:
    life, made = with_points(_native.Io.simulate(), "/r", 15)
    now_ns = parse_time(made[0].point.time) + 10**12 + 1
    file = life.replica.directory.open("a-000001-delta.vmdk", _native.OPEN_WRITE)
    head = file.pread(512, 0)
    file.pwrite(bytes(512), 0)
    assert frozen.expire(life.replica, now_ns, life.journals) == []
    with Replica.open("/r", life.io) as replica:
        merging = replica.manifest.merging
        assert merging is not None
        assert "a-000001-delta.vmdk" in merging.error
        assert merging.tried == format_time(now_ns)
    file.pwrite(head, 0)
    assert frozen.expire(life.replica, now_ns + 10**9, life.journals) == [], "not at once"
    later_ns = now_ns + frozen.RETRY_SECONDS * 10**9
    assert frozen.expire(life.replica, later_ns, life.journals)[0] == made[0].point.id
    assert life.replica.manifest.merging is None
    life.close()


def test_a_hold_does_not_fail_for_what_lies_below_the_journals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life, _ = with_points(_native.Io.simulate(), "/r", 17)

    def failing(chain: _native.Chain) -> None:
        raise StorageError("the delta disk cannot be flushed")

    broken = type("Broken", (_native.Chain,), {"close_clean": failing})
    with monkeypatch.context() as patch:
        patch.setattr("rollpoint.disk.Chain", broken)
        life.freeze(life.marked[-2])
        life.journals.close_clean()
    life.open()
    life.check()
    life.close()


# ---- failing over to one ----


def fail_over(io: _native.Io, marked: Marked, seed: int) -> Model:
    """Fail over to a long-term point and write into the overlays."""
    model = {name: bytearray(data) for name, data in marked.model.items()}
    with Replica.open("/r", io) as replica:
        done = operation.failover(replica, marked.point.id, power_on=False)
        assert {step.name: step.note for step in done.steps}["roll back"].startswith("not needed")
        for name, interim in done.interims.items():
            assert bytes_of(interim, io) == model[name]
            with open_disk(interim, writable=True, io=io) as disk:
                change(disk.writing(), model[name], random.Random(seed), 5)
    return {name: bytes(disk) for name, disk in model.items()}


def check_overlays(io: _native.Io, model: Model) -> None:
    for name in SIZES:
        assert bytes_of(f"/r/{name}-interim.vmdk", io) == model[name]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_failover_to_a_long_term_point_is_undone(index: int) -> None:
    life, made = with_points(_native.Io.simulate(), "/r", 8 + index)
    life.close()
    check_overlays(life.io, fail_over(life.io, made[index], 1))
    with Replica.open("/r", life.io) as replica:
        assert operation.undo(replica).state == "Ready"
    check_long_term("/r", life.io, {row.point.id: row.model for row in made})
    life.open()
    life.check()
    life.close()


@pytest.mark.parametrize("index", [0, 1, 2, None])
def test_a_failover_is_made_permanent_through_all_links(index: int | None) -> None:
    """None: to the newest point of the journals, which lie on long-term points."""
    life, made = with_points(_native.Io.simulate(), "/r", 11)
    life.pin(made[1].point.id)
    life.close()
    if index is None:
        with Replica.open("/r", life.io) as replica:
            operation.failover(replica, power_on=False)
        model = life.marked[-1].model
    else:
        model = fail_over(life.io, made[index], 2)
    with Replica.open("/r", life.io) as replica:
        operation.permanent(replica)
    check_permanent(life.io, model)


def check_permanent(io: _native.Io, model: Model) -> None:
    with Replica.open("/r", io) as replica:
        assert replica.manifest.state == "Permanent"
        assert (replica.manifest.frozen, replica.manifest.notes) == ([], [])
        wanted = {"replica.json", "replica.lock"}
        for name in SIZES:
            wanted |= {f"{name}.vmdk", f"{name}-flat.vmdk"}
            assert bytes_of(f"/r/{name}.vmdk", io) == model[name]
        # What was done stays to be read.
        told = {"conversion.json", "audit.jsonl", "reports"}
        assert set(replica.directory.list()) - told == wanted


def half_merged(seed: int) -> tuple[Life, list[Marked]]:
    """The first point is given up, and its merge was ended in its first piece."""
    life, made = with_points(_native.Io.simulate(), "/r", seed)
    now_ns = parse_time(made[0].point.time) + 10**12 + 1
    with pytest.raises(CancelledError):
        frozen.expire(life.replica, now_ns, life.journals, lambda done, total: done < 1)
    life.close()
    return life, made


def test_a_failover_while_a_merge_is_half_done_shows_the_right_bytes() -> None:
    life, made = half_merged(12)
    check_overlays(life.io, fail_over(life.io, made[1], 3))
    with Replica.open("/r", life.io) as replica:
        assert operation.resume(replica) is None, "the merge waits until the replica is Ready"
        operation.undo(replica)
        done = operation.resume(replica)
        assert done is not None
        assert (done.kind, done.point) == ("expire", made[0].point.id)
        assert operation.resume(replica) is None
    check_long_term("/r", life.io, {row.point.id: row.model for row in made[1:]})


@pytest.mark.parametrize("index", [1, 2])
def test_a_failover_through_a_half_merged_chain_is_made_permanent(index: int) -> None:
    life, made = half_merged(13)
    model = fail_over(life.io, made[index], 4)
    with Replica.open("/r", life.io) as replica:
        operation.permanent(replica)
    check_permanent(life.io, model)


def test_resume_on_the_command_line_says_what_was_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    life, made = with_points(_native.Io.posix(), str(tmp_path / "r"), 14)
    now_ns = parse_time(made[0].point.time) + 10**12 + 1
    with pytest.raises(CancelledError):
        frozen.expire(life.replica, now_ns, life.journals, lambda done, total: False)
    life.close()
    with pytest.raises(SystemExit):
        cli.main(["resume", life.path])
    assert f"long-term point {made[0].point.id} is given up" in capsys.readouterr().out
    assert rollpoint("resume", life.path)["operation"] is None
    assert rollpoint("replica", "verify", life.path)["ok"]


# ---- power cuts ----


def sweep(
    io: _native.Io, budget: int, seed: int, check: Callable[[_native.CrashState], None]
) -> int:
    states = io.crash_states(budget=budget, seed=seed, garbage=False)
    for state in states:
        try:
            check(state)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}\n{state.explain()}") from error
    return states.distinct


def check_newest(life: Life) -> None:
    """What the journals show is what they held when the power went: all was marked."""
    for name in SIZES:
        assert bytes_of(f"/r/{name}-journal.vmdk", life.io) == bytes(life.model[name])


def check_life(life: Life) -> None:
    """An ingest takes it up: all is exact, and it goes on."""
    life.open()
    life.check()
    life.write()
    life.freeze(life.mark())
    life.check()
    life.close()


def sweep_freeze(budget: int, seed: int) -> int:
    life, _ = with_points(_native.Io.simulate(), "/r", seed, kept=2)
    life.close()
    life.open()
    point = next(row for row in life.marked if row.point.id == life.oldest)
    life.io.settle()
    frozen.freeze(life.replica, life.journals, point.point)
    life.io.acknowledge(1)

    def check(state: _native.CrashState) -> None:
        found = life.found(state.io)
        with found.replica.locked() as manifest:
            assert manifest.freezing is None, "it is put right by whoever has the lock"
            known = [row.id for row in manifest.frozen]
            assert point.point.id in known or not state.acknowledged
        check_newest(found)
        found.open()
        found.check()
        frozen.freeze(found.replica, found.journals, point.point)
        assert [row.id for row in found.replica.manifest.frozen] == [1, 2, point.point.id]
        found.close()
        check_life(found)

    return sweep(life.io, budget, seed, check)


def sweep_expire(budget: int, seed: int) -> int:
    """Two points go, the first into the base, the last with the newest delta disk."""
    life, made = with_points(_native.Io.simulate(), "/r", seed)
    life.pin(made[1].point.id)
    life.close()
    life.open()
    life.io.settle()
    assert life.expire(made[2].point.id) == [1, 3]
    life.io.acknowledge(1)

    def check(state: _native.CrashState) -> None:
        found = life.found(state.io)
        with found.replica.locked() as manifest:
            known = {row.id for row in manifest.frozen}
            assert known >= {2}
            assert known == {2} or not state.acknowledged
        found.marked = [row for row in [*made, *life.marked[1:]] if row.point.id in known | {4, 5}]
        check_newest(found)
        found.open()
        found.check()
        found.expire(3)
        assert [row.id for row in found.replica.manifest.frozen] == [2]
        found.check()
        found.close()
        check_life(found)

    return sweep(life.io, budget, seed, check)


def sweep_move(budget: int, seed: int) -> int:
    """The horizon moves, a point is frozen, an old one given up, and the horizon moves on."""
    life, made = with_points(_native.Io.simulate(), "/r", seed, kept=2)
    life.close()
    life.io.settle()
    life.open()
    life.write()
    life.freeze(life.marked[-1])
    life.io.acknowledge(1)
    assert life.expire(1) == [1]
    life.io.acknowledge(2)
    life.write()
    life.destage(life.mark())
    life.io.acknowledge(3)
    rows = {row.point.id: row for row in [*made, *life.marked]}

    def check(state: _native.CrashState) -> None:
        found = life.found(state.io)
        with found.replica.locked():
            pass
        listed = [point.id for point in found.replica.points]
        assert set(listed) >= [{2, 4}, {2, 4}, {2, 4}, {2, 4, 5}][len(state.acknowledged)]
        assert 1 not in listed or len(state.acknowledged) < 2
        found.marked = [rows[number] for number in listed if number in rows]
        check_rolled(found)
        for name, native in zip(SIZES, found.open().natives, strict=True):
            found.model[name] = bytearray(native.disk().pread(SIZES[name], 0))  # unmarked
        check_long_term("/r", state.io, {row.point.id: row.model for row in found.marked})
        found.write()
        found.freeze(found.mark())
        found.expire(4)
        found.close()
        check_newest(found)
        check_long_term("/r", state.io, {row.point.id: row.model for row in found.marked})

    return sweep(life.io, budget, seed, check)


def check_rolled(life: Life) -> None:
    """Every point that the journals list is what any reader sees when they show it."""
    for row in life.marked:
        with (
            life.replica.locked(),
            life.replica.journals(writable=True) as journals,
        ):
            if row.point.id not in [point.id for point in journals.points()]:
                continue
            for native in journals.natives:
                native.roll(row.point.id)
            journals.close()
        for name in SIZES:
            assert bytes_of(f"/r/{name}-journal.vmdk", life.io) == row.model[name], row.point


def sweep_resume(budget: int, seed: int) -> int:
    """Without an ingest, `resume` finishes what is begun."""
    life, made = with_points(_native.Io.simulate(), "/r", seed, kept=2)
    life.close()
    life.io.settle()
    life.expire(made[1].point.id, live=False)
    life.io.acknowledge(1)

    def check(state: _native.CrashState) -> None:
        found = life.found(state.io)
        operation.resume(found.replica)
        assert found.replica.manifest.merging is None
        known = {row.id for row in found.replica.manifest.frozen}
        assert not known or not state.acknowledged
        found.marked = [row for row in [*made, *life.marked] if row.point.id in known | {3, 4}]
        check_newest(found)
        check_life(found)

    return sweep(life.io, budget, seed, check)


def sweep_failover(budget: int, seed: int) -> int:
    life, made = with_points(_native.Io.simulate(), "/r", seed)
    life.close()
    life.io.settle()
    with Replica.open("/r", life.io) as replica:
        operation.failover(replica, 2, power_on=False, operation_id="one")
    life.io.acknowledge(1)

    def check(state: _native.CrashState) -> None:
        with Replica.open("/r", state.io) as replica:
            if operation.resume(replica) is None and replica.manifest.state == "Ready":
                assert not state.acknowledged
                operation.failover(replica, 2, power_on=False, operation_id="one")
            assert (replica.manifest.state, replica.manifest.operation) == ("Failover", None)
        check_overlays(state.io, made[1].model)
        with Replica.open("/r", state.io) as replica:
            operation.undo(replica)
        check_life(life.found(state.io))

    return sweep(life.io, budget, seed, check)


def sweep_permanent(budget: int, seed: int) -> int:
    life, made = with_points(_native.Io.simulate(), "/r", seed)
    life.close()
    model = fail_over(life.io, made[2], seed)
    life.io.settle()
    with Replica.open("/r", life.io) as replica:
        operation.permanent(replica)
    life.io.acknowledge(1)

    def check(state: _native.CrashState) -> None:
        with Replica.open("/r", state.io) as replica:
            if operation.resume(replica) is None and replica.manifest.state == "Failover":
                assert not state.acknowledged
                check_overlays(state.io, model)
                operation.permanent(replica)
        check_permanent(state.io, model)

    return sweep(life.io, budget, seed, check)


SWEEPS = [
    sweep_freeze, sweep_expire, sweep_move, sweep_resume, sweep_failover, sweep_permanent,
]  # fmt: skip


@pytest.mark.parametrize("room", SWEEPS, ids=lambda room: room.__name__[6:])
def test_a_power_cut_at_any_moment_is_put_right(room: Callable[[int, int], int]) -> None:
    print(f"{room.__name__}: {room(BUDGET, 1)} distinct states")


@pytest.mark.long
@pytest.mark.parametrize("room", SWEEPS, ids=lambda room: room.__name__[6:])
def test_thousands_of_power_cuts_are_put_right(room: Callable[[int, int], int]) -> None:
    print(f"{room.__name__}: {sum(room(LONG_BUDGET, seed) for seed in LONG_SEEDS)} distinct states")


def kept_apart(io: _native.Io, seed: int) -> tuple[Life, list[Marked]]:
    """As with_points, closed, with the point in the middle pinned."""
    life, made = with_points(io, "/r", seed)
    life.pin(made[1].point.id)
    life.close()
    return life, made


def freeze_next(life: Life) -> None:
    frozen.freeze(life.replica, life.journals, life.marked[-2].point)


def expire_others(life: Life) -> None:
    life.expire(3)


# What is done to a replica of `kept_apart`, and its long-term points then.
ACTS: dict[str, tuple[Callable[[Life], None], list[int]]] = {
    "freeze": (freeze_next, [1, 2, 3, 4]),
    "expire": (expire_others, [2]),
}


def finish(life: Life, what: str, models: dict[int, Model]) -> None:
    """An ingest takes it up on sound storage, and it comes to its end."""
    act, wanted = ACTS[what]
    life.open()
    check_long_term("/r", life.io, models)
    act(life)
    assert [row.id for row in life.replica.manifest.frozen] == wanted
    life.close()
    check_newest(life)
    check_long_term("/r", life.io, models)


@pytest.mark.parametrize("what", ACTS)
def test_a_cut_of_what_puts_a_cut_right_is_put_right(what: str) -> None:
    """The power goes while a point is frozen or given up, and again while that is finished."""
    life, made = kept_apart(_native.Io.simulate(), 21)
    models = {row.point.id: row.model for row in [*made, *life.marked]}
    life.io.settle()
    finish(life.found(life.io), what, models)
    found = 0
    for cut in life.io.crash_states(budget=12, seed=1, garbage=False):
        finish(life.found(cut.io), what, models)
        found += sweep(
            cut.io, 6, 1, lambda state: finish(life.found(state.io), what, models)
        )
    assert found > 20


# ---- the sweeps can fail: planted bugs ----


def relink_at_once(directory: _native.Dir, manifest: Manifest) -> None:
    """Links are named anew before it is written down that no data may move any more."""
    merging = manifest.merging
    assert merging is not None
    chains.relink(directory, manifest)


def record_first(directory: _native.Dir, manifest: Manifest) -> None:
    """A point is called long-term before a new link lies above what shows it."""
    freezing = manifest.freezing
    assert freezing is not None
    manifest.frozen = [*manifest.frozen, freezing.point]
    for disk in manifest.disks:
        disk.top = freezing.tops[disk.name]
    manifest.freezing = None
    manifests.store(directory, manifest)
    for disk in manifest.disks:
        name = freezing.tops[disk.name]
        chains.make_delta(directory, disk, name, freezing.point.links[disk.name])
        cid = chains.read_descriptor(directory, name).cid
        assert disk.journal is not None
        chains._rewrite(directory, disk.journal, parent_cid=cid, parent_hint=name)


def follow_later(
    directory: _native.Dir, manifest: Manifest, into: dict[str, OpenDisk]
) -> None:
    """The lower links get content ids of which nothing is written down."""
    merging = manifest.merging
    assert merging is not None
    for disk, lower in into.items():
        lower.begin(new_cid())
        cid = chains.read_descriptor(directory, merging.into[disk]).cid
        chains._rewrite(directory, merging.away[disk], parent_cid=cid)


def move_without_sync(upper: str, target: OpenDisk, progress: object) -> None:
    """A merge that counts on the kernel to write the lower link some day."""
    with open_disk(upper, io=target.links[0].dir.io) as disk:
        native = target.writing()
        for run in disk.runs():
            if run.depth == 0:
                native.pwrite(disk.pread(run.length_bytes, run.offset_bytes), run.offset_bytes)


PLANTED: list[tuple[Callable[[int, int], int], object, str, object]] = [
    (sweep_resume, chains, "finish_merging", relink_at_once),
    (sweep_freeze, chains, "finish_freezing", record_first),
    (sweep_expire, chains, "begin_merging", follow_later),
    (sweep_resume, frozen, "_move", move_without_sync),
]


@pytest.mark.parametrize(
    ("room", "owner", "name", "bug"), PLANTED, ids=[bug.__name__ for *_, bug in PLANTED]  # type: ignore[attr-defined]
)
def test_a_planted_bug_is_found(
    room: Callable[[int, int], int],
    owner: object,
    name: str,
    bug: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, bug)
    with pytest.raises(AssertionError):
        room(LONG_BUDGET, 1)


# ---- failing calls ----


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("what", ACTS)
def test_a_full_disk_is_survived(what: str, sticky: bool) -> None:
    fail_calls(what, sticky, 31 if sticky else 13)


@pytest.mark.long
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("what", ACTS)
def test_a_full_disk_at_any_call_is_survived(what: str, sticky: bool) -> None:
    fail_calls(what, sticky, 3 if sticky else 1)


def fail_calls(what: str, sticky: bool, stride: int) -> None:
    """Whatever it left, it is asked for again: by the same ingest, and by the next one."""
    for call in range(1, 3000, stride):
        life, made = kept_apart(_native.Io.simulate(), 31)
        models = {row.point.id: row.model for row in [*made, *life.marked]}
        faulty = life.io.fault(call=call, os_errno=errno.ENOSPC, sticky=sticky)
        try:
            again = fail_once(life, faulty, ACTS[what][0])
            if not again and faulty.calls < call:
                assert call > 60
                return
            finish(life.found(life.io), what, models)
        except Exception as error:
            raise AssertionError(f"call {call}, sticky {sticky}: {error!r}") from error
    raise AssertionError("it has no end")


def fail_once(life: Life, faulty: _native.Io, act: Callable[[Life], None]) -> bool:
    """Do it on failing storage, and once more where it failed; whether it did."""
    failed = False
    try:
        failing = life.found(faulty)
        failing.open()
    except Error:
        return True
    for _ in range(2):
        try:
            act(failing)
            merging = failing.replica.manifest.merging
            failed |= merging is not None
            if merging is None:
                break
        except Error:
            failed = True
            if failing.journals.unsettled:
                with pytest.raises(StateError):
                    _ = failing.journals.targets
    with contextlib.suppress(Error):  # the storage may fail now
        for name, native in zip(failing.journals.names, failing.journals.natives, strict=True):
            shown = native.disk().pread(SIZES[name], 0)
            assert shown == bytes(life.model[name])
    failing.journals.close()
    return failed


# ---- beside writers and readers ----


@pytest.mark.parametrize("base_type", [None, "monolithicSparse"])
def test_points_are_frozen_and_given_up_beside_writers_and_readers(
    base_type: str | None, tmp_path: Path
) -> None:
    """What nobody writes reads the same at every moment, and what is written is not lost."""
    io, path = _native.Io.posix_unsynced(), str(tmp_path / "r")
    life = Life(io, path, 41, {"a": 2 << 20}, base_type)
    still = life.rng.randbytes(1 << 20)
    over = threading.Event()
    errors: list[BaseException] = []
    (native,) = life.journals.natives
    for at in range(0, len(still), 1 << 18):
        native.disk().pwrite(still[at : at + (1 << 18)], at)
        life.freeze(life.mark())

    def read(seed: int) -> None:
        rng = random.Random(seed)
        while not over.is_set():
            length = rng.randrange(1, 200_000)
            at = rng.randrange(len(still) - length)
            assert native.disk().pread(length, at) == still[at : at + length]

    def write(seed: int) -> None:
        rng = random.Random(seed)
        model = life.model["a"]
        for _ in range(1000):
            if over.is_set():
                break
            data = rng.randbytes(rng.randrange(1, 9000))
            at = rng.randrange(len(still), len(model) - len(data))
            native.disk().pwrite(data, at)
            model[at : at + len(data)] = data

    def guarded(act: Callable[[int], None], seed: int) -> None:
        try:
            act(seed)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=guarded, args=(act, seed))
        for seed, act in enumerate((read, read, write))
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # the threads shall not keep the interpreter for long
    for thread in threads:
        thread.start()
    try:
        for turn in range(3):
            point = life.journals.mark("crash")
            native.destage(point.id, life.journals.targets["a"])
            frozen.freeze(life.replica, life.journals, point)
            if turn % 2 == 0:
                for row in life.replica.manifest.frozen[: 4 + turn % 2]:
                    life.expire(row.id)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert errors == []
    wanted = still + bytes(life.model["a"][len(still) :])
    assert native.disk().pread(len(wanted), 0) == wanted
    life.close()
    assert bytes_of(f"{life.path}/a-journal.vmdk", life.io) == wanted
