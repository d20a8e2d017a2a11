"""What a failback has to send is known without reading data."""

from __future__ import annotations

import os
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from replicas import change, make, recover
from rollpoint import _native, changed, sending
from rollpoint.disk import open_disk
from rollpoint.errors import DamagedError, NotFoundError
from rollpoint.journals import Journals
from rollpoint.manifest import Cut, Target
from rollpoint.points import Point
from rollpoint.replica import Replica
from rollpoint.spans import Spans, whole
from rollpoint.targets import open_target, stamp

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


def test_rot_in_the_journal_is_found_before_it_goes_back_to_the_source(tmp_path: Path) -> None:
    _, points = lives(tmp_path / "web", 11, 4)
    overlays = ["a-interim.vmdk"]
    with Replica.open(tmp_path / "web") as replica, replica.locked():
        recover(replica, points[1].id)
        spans = changed.ranges(replica, "a", points[3].id)
        changed.prove(replica, "a", spans, overlays)
        with open_disk(replica.file("a-interim.vmdk")) as disk:
            held = [
                run for run in disk.runs()
                if run.depth == 1 and run.kind == _native.RUN_DATA and run.file is not None
            ]  # fmt: skip
        log = tmp_path / "web" / "a-journal-log.vmdk"
        content = log.read_bytes()
        for run in held:
            where = Spans([(run.offset_bytes, run.offset_bytes + run.length_bytes)])
            log.write_bytes(
                content[: run.file_offset_bytes]
                + bytes([content[run.file_offset_bytes] ^ 1])
                + content[run.file_offset_bytes + 1 :]
            )
            with pytest.raises(DamagedError, match=f"byte {run.offset_bytes} of the disk"):
                changed.prove(replica, "a", where, overlays)
            changed.prove(replica, "a", whole(SIZES["a"]) - where, overlays)
        with open_disk(replica.file("a-interim.vmdk"), writable=True) as top:
            top.pwrite(bytes(run.length_bytes), run.offset_bytes)
        changed.prove(replica, "a", where, overlays)  # it is not sent any more


# ---- 100 GiB, of which 200 MiB changed ----

BIG = 100 << 30
PIECE = 64 << 10  # the overlay's grain, so what is written there is what it holds
COUNT = (100 << 20) // PIECE  # pieces that changed, in the journal and in the overlay each


def block(number: int, version: int) -> bytes:
    return random.Random(number << 8 | version).randbytes(64) * (PIECE // 64)


def reads_of(io: _native.Io) -> dict[str, Spans]:
    """File name -> what was read of it."""
    found: dict[str, list[tuple[int, int]]] = {}
    for line in io.operations():
        said = re.fullmatch(r"read (.*) \[(\d+), (\d+)\)", line)
        if said is not None:
            name = os.path.basename(said[1])
            found.setdefault(name, []).append((int(said[2]), int(said[3])))
    return {name: Spans(pairs) for name, pairs in found.items()}


def places_of(path: str, spans: Spans) -> dict[str, Spans]:
    """File name -> where the data of a disk lies that is outside of these ranges."""
    found: dict[str, list[tuple[int, int]]] = {}
    with open_disk(path) as disk:
        for run in disk.runs():
            if run.kind != _native.RUN_DATA or run.file is None:
                continue
            stop = run.offset_bytes + run.length_bytes
            inside = Spans(
                (max(start, run.offset_bytes), min(end, stop))
                for start, end in spans
                if start < stop and run.offset_bytes < end
            )
            at = run.offset_bytes
            for start, end in [*inside, (stop, stop)]:
                if at < start:
                    shift = run.file_offset_bytes - run.offset_bytes
                    name = os.path.basename(run.file)
                    found.setdefault(name, []).append((at + shift, start + shift))
                at = end
    return {name: Spans(pairs) for name, pairs in found.items()}


def write(journals: Journals, numbers: list[int], version: int) -> None:
    disk = journals.natives[0].disk()
    for number in numbers:
        disk.pwrite(block(number, version), number * PIECE)


def big_life(path: Path) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """What the source held at its end, and the recovered disk: offset -> bytes."""
    rng = random.Random(20261122)
    places = rng.sample(range(BIG // PIECE), 2 * COUNT + 400)
    kept, ours, theirs = places[:400], places[400 : 400 + COUNT], places[400 + COUNT :]
    Replica.create(path, [("big", BIG)]).close()
    with Replica.open(path) as replica, replica.locked():
        with replica.journals(writable=True, with_bases=True, writable_bases=True) as journals:
            write(journals, kept[:200], 1)
            first = journals.mark("crash")
            # data that lies in the base
            journals.natives[0].destage(first.id, journals.targets["big"])
            write(journals, kept[200:], 1)
            write(journals, ours, 1)
            wanted = journals.mark("crash")
            write(journals, ours, 2)
            cut = journals.mark("app")
            replica.manifest.next_point_id = journals.next_point_id
        recover(replica, wanted.id, Cut(point=cut.id, time=cut.time))
        with open_disk(replica.file("big-interim.vmdk"), writable=True) as top:
            for number in theirs:
                top.pwrite(block(number, 3), number * PIECE)
    source = {number * PIECE: block(number, 1) for number in kept}
    recovered = dict(source)
    for number in ours:
        source[number * PIECE], recovered[number * PIECE] = block(number, 2), block(number, 1)
    recovered.update((number * PIECE, block(number, 3)) for number in theirs)
    return source, recovered


def test_of_100_gib_only_what_changed_is_read_and_sent(tmp_path: Path) -> None:
    """Must show 3: at most 1.05 times the changed grains, and no unchanged grain is read."""
    source, recovered = big_life(tmp_path / "web")
    place = tmp_path / "source.raw"
    with place.open("wb") as file:
        file.truncate(BIG)
        for offset, data in source.items():
            file.seek(offset)
            file.write(data)
    changed_bytes = 2 * COUNT * PIECE
    assert changed_bytes == 200 << 20
    io = _native.Io.record(_native.Io.posix(), reads=True)
    with Replica.open(tmp_path / "web", io) as replica:
        spans = changed.ranges(replica, "big", changed.held_point(replica))
        assert spans.total_bytes == changed_bytes
        changed.prove(replica, "big", spans, ["big-interim.vmdk"])
        with (
            open_disk(replica.file("big-interim.vmdk"), io=io) as disk,
            open_target(str(place), BIG) as target,
        ):
            sent = sending.send(disk.reading, target, spans)
    assert sent.sent_bytes + sent.zeroed_bytes <= 1.05 * changed_bytes
    assert sent.read_bytes == changed_bytes
    read = reads_of(io)
    elsewhere = places_of(str(tmp_path / "web" / "big-interim.vmdk"), spans)
    assert set(elsewhere) == {"big-flat.vmdk", "big-journal-log.vmdk"}
    for name, unchanged in elsewhere.items():
        both = read.get(name, Spans())
        apart = both.total_bytes + unchanged.total_bytes
        assert (both | unchanged).total_bytes == apart, f"{name}: unchanged grains were read"
    everything = sum(each.total_bytes for each in read.values())
    # entries and tables; and the rest of the last segment, where the log may go on
    assert everything <= changed_bytes + (16 << 20) + (64 << 20)
    with place.open("rb") as file:
        for offset, data in recovered.items():
            file.seek(offset)
            assert file.read(len(data)) == data, offset
    assert place.stat().st_blocks * 512 <= len(recovered) * PIECE * 1.05
    with (
        open_disk(tmp_path / "web" / "big-interim.vmdk") as disk,
        open_target(str(place), BIG, writable=False) as target,
    ):
        assert not sending.differing(disk.reading, target)
