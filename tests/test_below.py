"""The content ids below the journals: changed once, followed by the journals, at any crash."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from replicas import SIZES, make
from rollpoint import _native, below, operation, replication
from rollpoint import manifest as manifests
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import DamagedError, Error
from rollpoint.replica import Replica

BUDGET = 150


def change_ids(replica: Replica) -> None:
    with (
        replica.locked() as manifest,
        replica.journals(writable=True, with_bases=True, writable_bases=True) as journals,
    ):
        below.begin(replica.directory, manifest, journals.below)


def cids(path: str, io: _native.Io | None = None) -> list[int]:
    with open_disk(path, io=io) as disk:
        return [link.descriptor.cid for link in disk.links if link.descriptor is not None]


def test_the_base_has_a_new_content_id_and_the_chain_opens(tmp_path: Path) -> None:
    make(tmp_path / "r")
    with Replica.open(tmp_path / "r") as replica:
        replication.mark(replica)
        before = {name: cids(f"{tmp_path}/r/{name}-journal.vmdk") for name in SIZES}
        change_ids(replica)
        for name in SIZES:
            journal, base = cids(f"{tmp_path}/r/{name}-journal.vmdk")
            assert journal == before[name][0], "overlays above the journal stay valid"
            assert base != before[name][1]
        assert all(disk.below_cid is None for disk in replica.manifest.disks)
        assert operation.failover(replica, 1, power_on=False).state == "Failover"


@pytest.mark.parametrize("kind", ["monolithicFlat", "monolithicSparse", "twoGbMaxExtentSparse"])
def test_a_power_cut_at_any_moment_leaves_chains_that_open(kind: str) -> None:
    io = _native.Io.simulate()
    setup = io.open_dir("/")
    setup.make_dir("r")
    for name in ("a", "b"):
        create_disk(f"/r/{name}.vmdk", kind, 65536, io=io)
    disks = {name: f"/r/{name}.vmdk" for name in ("a", "b")}
    data = random.Random(1).randbytes(9000)
    Replica.adopt("/r", disks, segment_bytes=65536, io=io).close()
    with Replica.open("/r", io) as replica:
        with (
            replica.locked(),
            replica.journals(writable=True, with_bases=True) as journals,
        ):
            for native in journals.natives:
                native.disk().pwrite(data, 100)
            journals.mark("crash")
        io.settle()
        change_ids(replica)
    refused = finished = 0
    states = io.crash_states(budget=BUDGET, seed=1, garbage=False)
    for state in states:
        noted = [disk.below_cid for disk in manifests.load(state.io.open_dir("/r")).disks]
        for name in disks:
            try:
                open_disk(f"/r/{name}-journal.vmdk", io=state.io).close()
            except DamagedError:
                refused += 1
        with Replica.open("/r", state.io) as replica:
            assert [disk.below_cid for disk in replica.manifest.disks] == [None, None]
            finished += any(noted)
            for name in disks:
                with open_disk(f"/r/{name}-journal.vmdk", io=state.io) as disk:
                    assert disk.pread(len(data), 100) == data, state.explain()
            operation.failover(replica, 1, power_on=False)
            operation.undo(replica)
    assert states.distinct > 10
    assert refused, "a cut between the two descriptors was among them"
    assert finished


def test_a_failure_half_way_is_finished_by_whoever_has_the_lock_next(tmp_path: Path) -> None:
    """The journal's descriptor cannot be replaced: the base has its new id all the same."""
    make(tmp_path / "r", {"d": 65536})
    with Replica.open(tmp_path / "r") as replica:
        replication.mark(replica)
    failed = 0
    for call in range(1, 400):
        io = _native.Io.posix().fault(call=call, os_errno=5)
        try:
            with Replica.open(tmp_path / "r", io) as replica:
                change_ids(replica)
        except (Error, MemoryError):
            failed += 1
            with Replica.open(tmp_path / "r") as replica, replica.locked() as manifest:
                assert [disk.below_cid for disk in manifest.disks] == [None]
            assert len(cids(f"{tmp_path}/r/d-journal.vmdk")) == 2
        else:
            break
    assert failed > 20
