"""Each call of an operation fails once: it ends well, or with an error of ours, and whole.

Whatever it left is finished or taken back by `resume`, with a disk that works again; then
the replica is in the old state or the new one, with exactly its bytes (G6, G7).
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
from replicas import bytes_of, change
from rollpoint import _native, operation, replication
from rollpoint.disk import open_disk
from rollpoint.errors import Error
from rollpoint.replica import Replica

SIZES = {"a": 48 * 1024 + 512, "b": 32 * 1024}
SEED = 5
Model = dict[str, bytes]


class Template(NamedTuple):
    """A disk to be copied for each try, and what its replica's disks hold."""

    io: _native.Io
    points: list[Model]
    recovered: Model

    def copy(self) -> _native.Io:
        (state,) = self.io.crash_states(budget=1, tear=False, garbage=False)
        return state.io


def make(failed_over: bool) -> Template:
    rng = random.Random(SEED)
    io = _native.Io.simulate()
    model = {name: bytearray(size) for name, size in SIZES.items()}
    points = []
    Replica.create("/r", list(SIZES.items()), segment_bytes=65536, io=io).close()
    with Replica.open("/r", io) as replica, replica.locked():
        with replica.journals(writable=True, with_bases=True) as journals:
            for _ in range(2):
                for name, native in zip(journals.names, journals.natives, strict=True):
                    change(native.disk(), model[name], rng, 4)
                journals.mark("crash")
                points.append({name: bytes(disk) for name, disk in model.items()})
        model = {name: bytearray(disk) for name, disk in points[0].items()}
        if failed_over:
            done = operation.failover(replica, 1, power_on=False)
            for name, interim in done.interims.items():
                with open_disk(interim, writable=True, io=io) as disk:
                    change(disk.writing(), model[name], rng, 4)
    io.settle()
    return Template(io, points, {name: bytes(disk) for name, disk in model.items()})


def check_whole(io: _native.Io, made: Template, number: int) -> str:
    """The replica is in a state that it may be in, with its bytes; returns the state.

    Where it is Ready it can be failed over to that point.
    """
    with Replica.open("/r", io) as replica:
        manifest = replica.manifest
        assert manifest.operation is None
        names = replica.directory.list()
        if manifest.state == "Permanent":
            assert not [name for name in names if "-interim" in name or "-journal" in name]
            for name in SIZES:
                assert bytes_of(f"/r/{name}.vmdk", io) == made.recovered[name]
            return manifest.state
        if manifest.state == "Failover":
            assert replication.is_held(replica)
            for name in SIZES:
                assert bytes_of(f"/r/{name}-interim.vmdk", io) == made.recovered[name]
            operation.undo(replica)
            return "Failover"
        assert (manifest.state, manifest.held, manifest.recovered) == ("Ready", False, None)
        assert not [name for name in names if "-interim" in name]
        for name in SIZES:
            assert bytes_of(f"/r/{name}-journal.vmdk", io) == made.points[1][name]
        done = operation.failover(replica, number, power_on=False)
        for name, interim in done.interims.items():
            assert bytes_of(interim, io) == made.points[number - 1][name]
        return "Ready"


def hold_and_release(replica: Replica) -> None:
    replication.hold(replica)
    replication.release(replica)


def fail_over(replica: Replica) -> None:
    operation.failover(replica, 1, power_on=False)


class Act(NamedTuple):
    """Something that is done to a replica: where it begins, what it comes to."""

    do: Callable[[Replica], object]
    failed_over: bool
    ends: str


ACTS = {
    "hold and release": Act(hold_and_release, False, "Ready"),
    "failover": Act(fail_over, False, "Failover"),
    "undo": Act(operation.undo, True, "Ready"),
    "permanent": Act(operation.permanent, True, "Permanent"),
}

Way = dict[str, object]
WAYS: list[Way] = [
    {"os_errno": errno.EIO},
    {"os_errno": errno.ENOSPC},
    {"os_errno": errno.EIO, "sticky": True},
    {"os_errno": errno.ENOSPC, "sticky": True},
]
EFFECTS: list[Way] = [
    {"os_errno": errno.ENOSPC, "kind": "write", "effect": "partial"},
    {"os_errno": errno.EIO, "kind": "sync", "effect": "lost"},
]


def fails(made: Template, act: Act, call: int, way: Way) -> bool:
    """One run in which that call fails. False: there was no such call."""
    io = made.copy()
    faulty = io.fault(call=call, **way)  # type: ignore[arg-type]
    failed = None
    try:
        with Replica.open("/r", faulty) as replica:
            act.do(replica)
    except Error as error:  # kept, as a program may: no lock may hang on it
        failed = error
    if faulty.calls < call:
        assert failed is None
        return False
    with Replica.open("/r", io) as replica:
        if replica.manifest.operation is not None:
            assert failed is not None
            operation.resume(replica)
        if replica.manifest.state == "Ready" and replication.is_held(replica):
            assert act.do is hold_and_release
            replication.release(replica)
    state = check_whole(io, made, 1 + call % 2)
    assert failed is not None or state == act.ends
    return True


def run_all(act: Act, ways: list[Way]) -> int:
    """Call 1 fails, then call 2, until there is no such call; the ways take turns."""
    made = make(act.failed_over)
    call = 1
    while True:
        way = ways[call % len(ways)]
        try:
            if not fails(made, act, call, way):
                return call - 1
        except Exception as error:
            raise AssertionError(f"call {call}, {way}: {error!r}") from error
        call += 1


@pytest.mark.parametrize("name", ACTS)
def test_an_operation_whose_call_fails_is_whole(name: str) -> None:
    assert run_all(ACTS[name], WAYS) > 100
    for way in EFFECTS:
        assert run_all(ACTS[name], [way]) > 5


@pytest.mark.long
@pytest.mark.parametrize("name", ACTS)
def test_an_operation_whose_call_fails_in_any_way_is_whole(name: str) -> None:
    for way in WAYS:
        assert run_all(ACTS[name], [way]) > 100
