"""What a failback has to send is known without reading data."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from replicas import change, make
from rollpoint import changed, interim
from rollpoint.disk import open_disk
from rollpoint.errors import NotFoundError
from rollpoint.manifest import Cut, Recovered, Target
from rollpoint.points import Point
from rollpoint.replica import Replica
from rollpoint.spans import Spans
from rollpoint.targets import stamp

GRAIN = 4096
SIZES = {"a": (1 << 20) + 7 * 512}


def differences(one: bytes, two: bytes) -> Spans:
    return Spans(
        (at, min(at + GRAIN, len(one)))
        for at in range(0, len(one), GRAIN)
        if one[at : at + GRAIN] != two[at : at + GRAIN]
    )


def covers(found: Spans, wanted: Spans) -> bool:
    return found | wanted == found


def lives(path: Path, seed: int, points: int) -> tuple[dict[int, bytes], list[Point]]:
    """A replica with restore points; what disk a held at each of them."""
    make(path, SIZES)
    rng, model = random.Random(seed), bytearray(SIZES["a"])
    held, made = {}, []
    with Replica.open(path) as replica, replica.locked():
        with replica.journals(writable=True, with_bases=True) as journals:
            for _ in range(points):
                change(journals.natives[0].disk(), model, rng, 5)
                made.append(journals.mark("crash"))
                held[made[-1].id] = bytes(model)
            replica.manifest.next_point_id = journals.next_point_id
        replica.save()
    return held, made


def recover(replica: Replica, point: int, cut: Cut | None = None) -> None:
    """As a failover leaves it: the journals show the point, empty overlays lie on top."""
    with replica.journals(writable=True) as journals:
        for name, native in zip(journals.names, journals.natives, strict=True):
            native.roll(point)
            entry = replica.manifest.disk(name)
            interim.create_interim(
                replica.directory, name, entry.journal or "", entry.size_bytes
            )
        journals.close()
    interims = {disk.name: interim.interim_name(disk.name) for disk in replica.manifest.disks}
    replica.manifest.recovered = Recovered(
        operation="1", point=point, interims=interims, cut=cut
    )
    replica.save()


@pytest.mark.parametrize("seed", range(6))
def test_the_ranges_cover_all_differences_and_nothing_that_no_write_touched(
    tmp_path: Path, seed: int
) -> None:
    held, points = lives(tmp_path / "web", seed, 8)
    rng = random.Random(seed)
    for point in points:
        with Replica.open(tmp_path / "web") as replica:
            found = changed.since(replica, "a", point.id)
        newest = held[points[-1].id]
        assert covers(found, differences(held[point.id], newest))
        later = [held[each.id] for each in points if each.id >= point.id]
        touched = Spans()
        for before, after in pairwise(later):
            touched |= differences(before, after)
        # a write of the same bytes again, or of part of a grain, is a write, too
        assert found.total_bytes <= touched.total_bytes + 5 * len(later) * 4 * GRAIN
    target, chosen = rng.choice(points), rng.choice(points)
    with Replica.open(tmp_path / "web") as replica, replica.locked():
        recover(replica, chosen.id)
        model = bytearray(held[chosen.id])
        with open_disk(replica.file("a-interim.vmdk"), writable=True) as top:
            change(top.writing(), model, rng, 3)
        assert covers(
            changed.ranges(replica, "a", target.id), differences(held[target.id], bytes(model))
        )
        rest = changed.ranges(replica, "a", chosen.id, overlays=[])
        assert covers(rest, differences(held[chosen.id], held[points[-1].id]))


def test_a_point_that_is_not_kept_is_said(tmp_path: Path) -> None:
    lives(tmp_path / "web", 1, 2)
    with Replica.open(tmp_path / "web") as replica, pytest.raises(NotFoundError, match="point 77"):
        changed.since(replica, "a", 77)


def test_lineage_is_known_only_with_proof_or_by_what_the_operator_says(tmp_path: Path) -> None:
    held, points = lives(tmp_path / "web", 3, 3)
    place = tmp_path / "source.raw"
    place.write_bytes(held[points[-1].id])
    target = Target(place=str(place), kind="original")
    cut = Cut(
        point=points[-1].id,
        time=points[-1].time,
        digests={"a": "0" * 32},
        sources={"a": str(place)},
        stamps={"a": stamp(str(place))},
    )
    with Replica.open(tmp_path / "web") as replica, replica.locked():
        recover(replica, points[0].id, cut)
        recovered = replica.manifest.recovered
        assert recovered is not None
        assert changed.lineage(replica, "a", target) == ""
        assert changed.held_point(replica) == points[-1].id
        elsewhere = Target(place=str(tmp_path / "copy.raw"), kind="original")
        assert "what was compared" in changed.lineage(replica, "a", elsewhere)
        for kind, word in (("restored", "nobody said"), ("new", "new place")):
            other = Target(place=str(place), kind=kind)  # type: ignore[arg-type]
            assert word in changed.lineage(replica, "a", other)
        restored = Target(place=str(place), kind="restored")
        assert changed.lineage(replica, "a", restored, said=points[1].id) == ""
        assert "point 0" in changed.lineage(replica, "a", restored, said=0)
        cut.digests.clear()
        assert "not compared" in changed.lineage(replica, "a", target)
        cut.digests["a"] = "0" * 32
        cut.stamps["a"] = ""
        assert "nothing tells" in changed.lineage(replica, "a", target)
        cut.stamps["a"] = stamp(str(place))
        with place.open("r+b") as file:
            file.write(b"x")
        assert "was written since" in changed.lineage(replica, "a", target)
        recovered.cut = None
        assert "not planned" in changed.lineage(replica, "a", target)
