"""Trim and write-zeroes are recorded as such, cost no data, and are exact at every point."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from nbd_peers import DISC, FUA, NO_HOLE, TRIM, ZEROES, Raw
from replicas import SEGMENT_BYTES, ingesting, make, rollpoint, seen_by_qemu
from rollpoint import operation
from rollpoint.nbd_client import NbdClient, Place
from rollpoint.replica import Replica

DATA_BYTES = 4 << 20
KINDS = [(TRIM, 0), (TRIM, FUA), (ZEROES, 0), (ZEROES, NO_HOLE)]
NAMES = ["trim", "trim, FUA", "zeroes", "zeroes, no hole"]


def log_of(path: Path) -> dict[str, int | bool | bytes]:
    with Replica.open(path) as replica, replica.journals() as journals:
        return journals.natives[0].info()


@pytest.mark.parametrize(("kind", "flags"), KINDS, ids=NAMES)
def test_over_nothing_it_costs_an_entry_and_over_data_an_entry_a_grain(
    tmp_path: Path, kind: int, flags: int
) -> None:
    path = tmp_path / "r"
    make(path, {"d": 1 << 40})
    data = random.Random(1).randbytes(DATA_BYTES)
    with ingesting(path, tmp_path / "s"), Raw(tmp_path / "s").enter("d") as client:
        assert client.error(kind, 1 << 39, 1 << 30, flags=flags) == 0
        rollpoint("mark", path)
        nothing = log_of(path)
        assert nothing["entry_count"] <= 32, "a gibibyte in slices"
        assert nothing["segment_count"] == 1
        with NbdClient(Place("d", str(tmp_path / "s"))) as writer:
            writer.pwrite(data, 0)
        rollpoint("mark", path)
        full = log_of(path)
        assert int(full["segment_count"]) * SEGMENT_BYTES > DATA_BYTES
        assert client.error(kind, 0, DATA_BYTES, flags=flags) == 0
        rollpoint("mark", path)
        empty = log_of(path)
        assert int(empty["entry_count"]) - int(full["entry_count"]) == DATA_BYTES // 4096
        assert int(empty["segment_count"]) <= int(full["segment_count"]) + 1
        assert client.error(kind, 0, DATA_BYTES, flags=flags) == 0, "asked twice"
        rollpoint("mark", path)
        assert log_of(path)["entry_count"] == empty["entry_count"]
        with NbdClient(Place("d", str(tmp_path / "s"))) as reader:
            assert reader.run(0, DATA_BYTES) == (DATA_BYTES, True), "a reader is told of it"
            assert reader.pread(DATA_BYTES, 0) == bytes(DATA_BYTES)
        client.request(DISC)
    with Replica.open(path) as replica:
        replica_points = [point.id for point in replica.points]
    assert replica_points == [1, 2, 3, 4]


def test_the_parts_of_grains_at_its_ends_are_exact_at_every_point(tmp_path: Path) -> None:
    path, rng, size = tmp_path / "r", random.Random(2), 300_032
    make(path, {"d": size})
    model, wanted = bytearray(size), []
    with ingesting(path, tmp_path / "s"), Raw(tmp_path / "s").enter("d") as client:
        for _ in range(12):
            with NbdClient(Place("d", str(tmp_path / "s"))) as writer:
                at = rng.randrange(size - 9000)
                piece = rng.randbytes(9000)
                writer.pwrite(piece, at)
            model[at : at + 9000] = piece
            kind, flags = rng.choice(KINDS)
            length = rng.choice((1, 511, 4096, 20_001))
            at = rng.randrange(size - length)
            assert client.error(kind, at, length, flags=flags) == 0
            model[at : at + length] = bytes(length)
            rollpoint("mark", path)
            wanted.append(bytes(model))
        client.request(DISC)
    with Replica.open(path) as replica:
        for number in (1, 5, 12):
            done = operation.failover(replica, number, power_on=False)
            assert seen_by_qemu(done.interims["d"], tmp_path) == wanted[number - 1], number
            operation.undo(replica)
