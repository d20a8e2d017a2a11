"""What is sent arrives, nothing else is touched, and what differs is found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from replicas import change
from rollpoint import sending
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import CancelledError, UsageError, VerificationError
from rollpoint.spans import Spans, whole
from rollpoint.targets import is_new, open_target, same_place, stamp

SIZE = (3 << 20) + 5 * 512


def source_disk(path: Path, seed: int) -> bytes:
    """A disk with data, zeros and holes."""
    create_disk(str(path), "monolithicSparse", SIZE, zero_grains=True)
    rng, model = random.Random(seed), bytearray(SIZE)
    with open_disk(path, writable=True) as disk:
        change(disk.writing(), model, rng, 40)
        data = rng.randbytes(64 << 10) + bytes(128 << 10) + rng.randbytes(64 << 10)
        disk.pwrite(data, 1 << 20)
        model[1 << 20 : (1 << 20) + len(data)] = data
        disk.zero(100_000, 2 << 20)
        model[2 << 20 : (2 << 20) + 100_000] = bytes(100_000)
    return bytes(model)


def random_spans(rng: random.Random) -> Spans:
    starts = [rng.randrange(SIZE - 70_000) for _ in range(12)]
    return Spans((start, start + rng.randrange(1, 70_000)) for start in starts)


@pytest.mark.parametrize("name", ["target.raw", "target.vmdk"])
@pytest.mark.parametrize("seed", range(4))
def test_ranges_arrive_and_nothing_else_changes(tmp_path: Path, name: str, seed: int) -> None:
    model = source_disk(tmp_path / "source.vmdk", seed)
    rng = random.Random(seed)
    place = str(tmp_path / name)
    assert is_new(place)
    before = bytearray(rng.randbytes(SIZE))
    with open_target(place, SIZE, create=True) as target:
        target.pwrite(before, 0)
    spans = random_spans(rng)
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> bool:
        told.append((done, total))
        return True

    with open_disk(tmp_path / "source.vmdk") as disk, open_target(place, SIZE) as target:
        assert target.note == ""
        done = sending.send(disk.reading, target, spans, tell)
        for start, stop in spans:
            before[start:stop] = model[start:stop]
        assert target.pread(SIZE, 0) == bytes(before)
        assert done.sent_bytes + done.zeroed_bytes == spans.total_bytes
        assert done.sent_bytes <= done.read_bytes <= spans.total_bytes
        assert told[-1] == (spans.total_bytes, spans.total_bytes)
        assert told == sorted(told)
        assert sending.verify(disk.reading, target, spans) == spans.total_bytes
        again = sending.send(disk.reading, target, spans)
        assert again[:3] == done[:3]
        rest = sending.differing(disk.reading, target)
        assert rest.total_bytes > 0
        assert all(start % 4096 == 0 for start, _ in rest)
        sending.send(disk.reading, target, rest)
        assert target.pread(SIZE, 0) == model
        assert not sending.differing(disk.reading, target)


def test_differences_are_found_to_the_unit(tmp_path: Path) -> None:
    model = bytearray(source_disk(tmp_path / "source.vmdk", 9))
    place = tmp_path / "target.raw"
    for at in (5000, (1 << 20) + 70_000, SIZE - 1):
        model[at] ^= 1
    place.write_bytes(model)
    with (
        open_disk(tmp_path / "source.vmdk") as disk,
        open_target(str(place), SIZE, writable=False) as target,
    ):
        found = sending.differing(disk.reading, target)
        assert list(found) == [
            (4096, 8192),
            (((1 << 20) + 70_000) // 4096 * 4096, ((1 << 20) + 70_000) // 4096 * 4096 + 4096),
            (SIZE // 4096 * 4096, SIZE),
        ]
        with pytest.raises(VerificationError, match="first in the 4096 bytes from 4096"):
            sending.verify(disk.reading, target)


def test_sending_stops_when_told_to(tmp_path: Path) -> None:
    source_disk(tmp_path / "source.vmdk", 2)
    place = str(tmp_path / "target.raw")
    with (
        open_disk(tmp_path / "source.vmdk") as disk,
        open_target(place, SIZE, create=True) as target,
        pytest.raises(CancelledError, match=r"target\.raw"),
    ):
        sending.send(disk.reading, target, whole(SIZE), lambda done, total: False)


def test_a_target_is_as_large_as_the_disk_at_least(tmp_path: Path) -> None:
    small, large = tmp_path / "small.raw", tmp_path / "large.raw"
    small.write_bytes(bytes(SIZE - 512))
    large.write_bytes(b"\1" * (SIZE + 1024))
    with pytest.raises(UsageError, match=r"small\.raw has .* does not fit"):
        open_target(str(small), SIZE)
    source_disk(tmp_path / "source.vmdk", 4)
    with open_disk(tmp_path / "source.vmdk") as disk, open_target(str(large), SIZE) as target:
        assert "1024 bytes" in target.note
        sending.send(disk.reading, target, whole(SIZE))
        assert not sending.differing(disk.reading, target)
        with pytest.raises(UsageError, match="another disk"):
            sending.send(disk.reading, target, whole(SIZE + 512))
    assert large.read_bytes()[SIZE:] == b"\1" * 1024


@pytest.mark.parametrize("name", ["disk.raw", "disk.vmdk"])
def test_a_stamp_changes_with_any_write_and_with_nothing_else(tmp_path: Path, name: str) -> None:
    place = str(tmp_path / name)
    open_target(place, SIZE, create=True).close()
    first = stamp(place)
    with open_target(place, SIZE, writable=False) as target:
        target.pread(SIZE, 0)
    assert stamp(place) == first
    with open_target(place, SIZE) as target:
        target.pwrite(b"x", 5)
        target.flush()
    assert stamp(place) != first
    assert stamp("nbd://host/export") == ""


def test_places_are_the_same_whatever_leads_there(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").touch()
    (tmp_path / "link.raw").symlink_to("disk.raw")
    assert same_place(str(tmp_path / "link.raw"), str(tmp_path / "disk.raw"))
    assert same_place("nbd://host/a", "nbd://host:10809/a")
    assert not same_place("nbd://host/a", "nbd://host/b")
    assert not same_place("", "")
