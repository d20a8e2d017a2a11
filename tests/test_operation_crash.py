"""Power cuts during whole operations: every state that the disk may be in is resumed.

The operations run on the simulated disk, which yields what a power cut at any moment may
leave of manifests, journals, overlays and bases. Whatever it is, `resume` (or asking
again) ends in the new state or the old one, with exactly its bytes (G6, G7).
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable

import pytest
from replicas import bytes_of, change
from rollpoint import _native, merging, operation, replication, steps, undoing
from rollpoint import manifest as manifests
from rollpoint.disk import open_disk
from rollpoint.errors import Error, ExistsError, NotFoundError
from rollpoint.journals import Journals
from rollpoint.replica import Replica

SIZES = {"a": 96 * 1024 + 512, "b": 64 * 1024}
BUDGET = 120
LONG_SEEDS = range(100, 160)
LONG_BUDGET = 2000

Model = dict[str, bytes]


def make(io: _native.Io, seed: int) -> list[Model]:
    """A replica with two points at /r, and what its disks hold at each."""
    rng = random.Random(seed)
    model = {name: bytearray(size) for name, size in SIZES.items()}
    snapshots = []
    Replica.create("/r", list(SIZES.items()), segment_bytes=65536, io=io).close()
    with (
        Replica.open("/r", io) as replica,
        replica.locked(),
        replica.journals(writable=True, with_bases=True) as journals,
    ):
        for _ in range(2):
            for name, native in zip(journals.names, journals.natives, strict=True):
                change(native.disk(), model[name], rng, 6)
            journals.mark("crash")
            snapshots.append({name: bytes(disk) for name, disk in model.items()})
    return snapshots


def failed_over(io: _native.Io, snapshots: list[Model], seed: int) -> Model:
    """Fail over to the first point and write into the overlays."""
    rng = random.Random(seed + 1)
    model = {name: bytearray(data) for name, data in snapshots[0].items()}
    with Replica.open("/r", io) as replica:
        done = operation.failover(replica, 1, power_on=False)
        for name, interim in done.interims.items():
            with open_disk(interim, writable=True, io=io) as disk:
                change(disk.writing(), model[name], rng, 5)
    return {name: bytes(disk) for name, disk in model.items()}


def check_failover(io: _native.Io, model: Model) -> None:
    with Replica.open("/r", io) as replica:
        assert (replica.manifest.state, replica.manifest.operation) == ("Failover", None)
        for name in SIZES:
            assert bytes_of(f"/r/{name}-interim.vmdk", io) == model[name]


def check_ready(io: _native.Io, latest: Model) -> None:
    with Replica.open("/r", io) as replica:
        manifest = replica.manifest
        assert (manifest.state, manifest.operation, manifest.held) == ("Ready", None, False)
        left = [name for name in replica.directory.list() if "-interim" in name]
        assert left == []
        for name in SIZES:
            assert bytes_of(f"/r/{name}-journal.vmdk", io) == latest[name]
        assert replication.mark(replica).id == 3


def sweep(
    io: _native.Io, budget: int, seed: int, check: Callable[[_native.CrashState], None]
) -> int:
    # A sector is written whole or not at all: the flip of a log's root counts on that.
    states = io.crash_states(budget=budget, seed=seed, garbage=False)
    for state in states:
        try:
            check(state)
        except Exception as error:
            raise AssertionError(f"{error!r}\n{state.explain()}") from error
    return states.distinct


def sweep_failover(budget: int, seed: int) -> int:
    io = _native.Io.simulate()
    snapshots = make(io, seed)
    io.settle()
    with Replica.open("/r", io) as replica:
        operation.failover(replica, 1, power_on=False, operation_id="one")
    io.acknowledge(1)

    def check(state: _native.CrashState) -> None:
        with Replica.open("/r", state.io) as replica:
            if operation.resume(replica) is None and replica.manifest.state == "Ready":
                assert not state.acknowledged
                operation.failover(replica, 1, power_on=False, operation_id="one")
        check_failover(state.io, snapshots[0])
        with Replica.open("/r", state.io) as replica:
            operation.undo(replica)
        check_ready(state.io, snapshots[1])

    return sweep(io, budget, seed, check)


def sweep_undo(budget: int, seed: int) -> int:
    io = _native.Io.simulate()
    snapshots = make(io, seed)
    model = failed_over(io, snapshots, seed)
    io.settle()
    with Replica.open("/r", io) as replica:
        operation.undo(replica)
    io.acknowledge(1)

    def check(state: _native.CrashState) -> None:
        with Replica.open("/r", state.io) as replica:
            if operation.resume(replica) is None and replica.manifest.state == "Failover":
                assert not state.acknowledged
                check_failover(state.io, model)
                operation.undo(replica)
        check_ready(state.io, snapshots[1])

    return sweep(io, budget, seed, check)


def sweep_permanent(budget: int, seed: int) -> int:
    io = _native.Io.simulate()
    snapshots = make(io, seed)
    model = failed_over(io, snapshots, seed)
    io.settle()
    with Replica.open("/r", io) as replica:
        operation.permanent(replica)
    io.acknowledge(1)

    def check(state: _native.CrashState) -> None:
        with Replica.open("/r", state.io) as replica:
            if operation.resume(replica) is None and replica.manifest.state == "Failover":
                assert not state.acknowledged
                check_failover(state.io, model)
                operation.permanent(replica)
            assert replica.manifest.state == "Permanent"
            left = [name for name in replica.directory.list() if "-interim" in name]
            assert left + [n for n in replica.directory.list() if "-journal" in n] == []
        for name in SIZES:
            assert bytes_of(f"/r/{name}.vmdk", state.io) == model[name]

    return sweep(io, budget, seed, check)


def sweep_hold(budget: int, seed: int) -> int:
    """A hold that was acknowledged holds; one that was cut short can be asked for again."""
    io = _native.Io.simulate()
    snapshots = make(io, seed)
    io.settle()
    with Replica.open("/r", io) as replica:
        assert replication.hold(replica) == 2
    io.acknowledge(1)

    def check(state: _native.CrashState) -> None:
        with Replica.open("/r", state.io) as replica:
            with replica.journals() as journals:
                assert journals.epoch <= replica.manifest.epoch
                if state.acknowledged:
                    assert journals.all_held
                    assert (journals.epoch, replica.manifest.epoch) == (2, 2)
            assert replication.hold(replica) in (2, 3)
            assert replica.manifest.held
            replication.release(replica)
        check_ready(state.io, snapshots[1])

    return sweep(io, budget, seed, check)


def sweep_release(budget: int, seed: int) -> int:
    """A release that was acknowledged lets writes in; the epoch never goes back."""
    io = _native.Io.simulate()
    snapshots = make(io, seed)
    with Replica.open("/r", io) as replica:
        replication.hold(replica)
        io.settle()
        replication.release(replica)
    io.acknowledge(1)

    def check(state: _native.CrashState) -> None:
        with Replica.open("/r", state.io) as replica:
            with replica.journals() as journals:
                assert (journals.epoch, replica.manifest.epoch) == (2, 2)
                assert not (state.acknowledged and journals.held)
            replication.release(replica)
        check_ready(state.io, snapshots[1])

    return sweep(io, budget, seed, check)


def sweep_create(budget: int, seed: int) -> int:
    io = _native.Io.simulate()
    io.settle()
    Replica.create("/r", list(SIZES.items()), segment_bytes=65536, io=io).close()
    io.acknowledge(1)

    def check(state: _native.CrashState) -> None:
        try:
            replica = Replica.open("/r", state.io)
        except NotFoundError:
            assert not state.acknowledged
            replica = Replica.create("/r", [("c", 4096)], segment_bytes=65536, io=state.io)
        if replica.manifest.operation is not None:
            assert not state.acknowledged
            replica = Replica.create("/r", [("c", 4096)], segment_bytes=65536, io=state.io)
        assert replica.manifest.state == "Ready"
        assert replica.verify()["ok"]

    return sweep(io, budget, seed, check)


SWEEPS = [
    sweep_failover, sweep_undo, sweep_permanent, sweep_hold, sweep_release, sweep_create,
]  # fmt: skip


# ---- failing calls ----


def fail_each_call(
    act: Callable[[_native.Io], object],
    prepare: Callable[[_native.Io], list[Model]],
    settled: Callable[[_native.Io, list[Model]], None],
    sticky: bool,
) -> int:
    """Fail every single call of an operation, one run each; returns how many there were.

    Whatever the failed run left, the healthy disk resumes it, and `settled` looks.
    """
    # A disk that stays full is tried at every third call: it costs twice the time.
    for call in range(1, 2000, 3 if sticky else 1):
        io = _native.Io.simulate()
        snapshots = prepare(io)
        faulty = io.fault(call=call, os_errno=errno.ENOSPC, sticky=sticky)
        try:
            act(faulty)
        except Error:
            pass
        else:
            if faulty.calls < call:
                return call - 1
        try:
            with Replica.open("/r", io) as replica:
                operation.resume(replica)
            settled(io, snapshots)
        except Exception as error:
            raise AssertionError(f"call {call}, sticky {sticky}: {error!r}") from error
    raise AssertionError("the operation has no end")


def failed_over_first(io: _native.Io) -> list[Model]:
    snapshots = make(io, 7)
    return [*snapshots, failed_over(io, snapshots, 7)]


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
def test_a_full_disk_at_any_call_of_a_failover_is_survived(sticky: bool) -> None:
    def act(io: _native.Io) -> object:
        with Replica.open("/r", io) as replica:
            return operation.failover(replica, 1, power_on=False)

    def settled(io: _native.Io, snapshots: list[Model]) -> None:
        with Replica.open("/r", io) as replica:
            if replica.manifest.state == "Failover":
                check_failover(io, snapshots[0])
                operation.undo(replica)
        check_ready(io, snapshots[1])

    assert fail_each_call(act, lambda io: make(io, 7), settled, sticky) > 50


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
def test_a_full_disk_at_any_call_of_an_undo_is_survived(sticky: bool) -> None:
    def act(io: _native.Io) -> object:
        with Replica.open("/r", io) as replica:
            return operation.undo(replica)

    def settled(io: _native.Io, snapshots: list[Model]) -> None:
        with Replica.open("/r", io) as replica:
            if replica.manifest.state == "Failover":
                check_failover(io, snapshots[2])
                operation.undo(replica)
        check_ready(io, snapshots[1])

    assert fail_each_call(act, failed_over_first, settled, sticky) > 30


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
def test_a_full_disk_at_any_call_of_a_permanent_is_survived(sticky: bool) -> None:
    def act(io: _native.Io) -> object:
        with Replica.open("/r", io) as replica:
            return operation.permanent(replica)

    def settled(io: _native.Io, snapshots: list[Model]) -> None:
        with Replica.open("/r", io) as replica:
            if replica.manifest.state == "Failover":
                check_failover(io, snapshots[2])
                operation.permanent(replica)
            assert replica.manifest.state == "Permanent"
        for name in SIZES:
            assert bytes_of(f"/r/{name}.vmdk", io) == snapshots[2][name]

    assert fail_each_call(act, failed_over_first, settled, sticky) > 30


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
def test_a_full_disk_at_any_call_of_a_creation_leaves_nothing_in_the_way(sticky: bool) -> None:
    for call in range(1, 2000):
        io = _native.Io.simulate()
        faulty = io.fault(call=call, os_errno=errno.ENOSPC, sticky=sticky)
        try:
            Replica.create("/r", list(SIZES.items()), segment_bytes=65536, io=faulty).close()
        except Error:
            pass
        else:
            if faulty.calls < call:
                break
            continue
        # Where the failure was behind the last step, it is there, whole.
        with contextlib.suppress(ExistsError):
            Replica.create("/r", [("c", 4096)], segment_bytes=65536, io=io).close()
        with Replica.open("/r", io) as replica:
            assert replica.manifest.state == "Ready", call
            assert replica.verify()["ok"], call
    assert call > 30


# ---- power cuts ----


@pytest.mark.parametrize("room", SWEEPS, ids=lambda room: room.__name__[6:])
def test_a_power_cut_at_any_moment_is_resumed(room: Callable[[int, int], int]) -> None:
    for seed in (1, 2):
        print(f"{room.__name__}: {room(BUDGET, seed)} distinct states, seed {seed}")


@pytest.mark.long
@pytest.mark.parametrize("room", SWEEPS, ids=lambda room: room.__name__[6:])
def test_thousands_of_power_cuts_are_resumed(room: Callable[[int, int], int]) -> None:
    found = sum(room(LONG_BUDGET, seed) for seed in LONG_SEEDS)
    print(f"{room.__name__}: {found} distinct states, seeds {LONG_SEEDS}")


# ---- the sweeps can fail: planted bugs ----


def store_without_sync(directory: _native.Dir, manifest: manifests.Manifest) -> None:
    """A manifest that is renamed into place before its bytes are durable."""
    file = directory.open("replica.json.new", _native.OPEN_WRITE | _native.OPEN_CREATE)
    data = manifests.encode(manifest)
    file.truncate(0)
    file.pwrite(data, 0)
    file.close()
    directory.rename("replica.json.new", "replica.json")
    directory.sync()


def merge_without_sync(
    directory: _native.Dir, disk: manifests.DiskEntry, above: list[str], *_: object
) -> int:
    """A merge that counts on the kernel to write the base some day."""
    with open_disk(f"{directory.path}/{above[0]}", io=directory.io) as top:
        data = top.pread(top.size_bytes, 0)
    file = directory.open(f"{disk.name}-flat.vmdk", _native.OPEN_WRITE)
    file.pwrite(data, 0)
    file.close()
    return len(data)


def clean_up_early(replica: Replica, runner: steps.Runner, progress: object) -> None:
    """Journal and overlay go before the manifest says that they are not needed."""
    runner.run("stop ingest", lambda: None)
    runner.run("merge", lambda: merging.merge_all(replica, False, None))
    replica.manifest.state = "Permanent"
    runner.run("clean up", lambda: merging.clean_up(replica))
    runner.run("state", lambda: None)


def fence_in_memory(self: Journals, epoch: int, consistent: bool = True) -> None:
    """A hold that only this process knows of."""
    self.gate.hold()


def keep_overlays(replica: Replica) -> str:
    """An undo that forgets what it has to drop."""
    return "forgotten"


PLANTED: list[tuple[Callable[[int, int], int], object, str, object]] = [
    (sweep_failover, manifests, "store", store_without_sync),
    (sweep_permanent, merging, "_merge", merge_without_sync),
    (sweep_permanent, merging, "run", clean_up_early),
    (sweep_hold, Journals, "fence", fence_in_memory),
    (sweep_undo, undoing, "drop_interims", keep_overlays),
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
