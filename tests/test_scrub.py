"""What `replica verify` finds, where it goes on, and what it mends only because it is proven."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from replicas import Source, empty_model, ingesting, make
from replicas import rollpoint as run
from rollpoint import below, digests, mending, replication, scrub, scrub_base, scrub_notes
from rollpoint._native import Io
from rollpoint.disk import open_disk
from rollpoint.errors import (
    CancelledError,
    DamagedError,
    Error,
    LockedError,
    NotFoundError,
    UsageError,
)
from rollpoint.journal import open_journal
from rollpoint.replica import Replica

SIZES = {"d": 3 << 20}
SEGMENT = 1 << 20
GRAIN = 4096
SEGMENTS_FREED = 15
LOG, FLAT = "d-journal-log.vmdk", "d-flat.vmdk"


@pytest.fixture(autouse=True)
def small_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (digests, scrub_base, mending):
        monkeypatch.setattr(module, "REGION_BYTES", 1 << 20)
    monkeypatch.setattr(scrub_base, "STRETCH", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replica with a seeded base, five segments, six points; and the end as an image."""
    folder = tmp_path_factory.mktemp("scrub")
    image = random.Random(1).randbytes(SIZES["d"])
    (folder / "seed.raw").write_bytes(image)
    make(folder / "r", SIZES)
    run("replica", "seed", folder / "r", "--disk", f"d={folder / 'seed.raw'}")
    model = {"d": bytearray(image)}
    with ingesting(folder / "r", folder / "s"), Replica.open(folder / "r") as replica:
        source = Source(folder / "s", model, 5)
        rng = random.Random(7)
        for _ in range(6):
            for _ in range(200):
                source.write("d", rng.randbytes(GRAIN), rng.randrange(768) * GRAIN)
            replication.mark(replica)
        source.close()
    (folder / "end.raw").write_bytes(model["d"])
    return folder


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "r", tmp_path / "r")
    return tmp_path / "r"


def flip(file: Path, position: int, length: int = 1) -> None:
    with file.open("r+b") as f:
        f.seek(position)
        data = f.read(length)
        f.seek(position)
        f.write(bytes(byte ^ 0x55 for byte in data))


def verify(path: Path, **how: Any) -> list[dict[str, Any]]:
    with Replica.open(path) as replica:
        report: Any = scrub.verify(replica.directory, replica.manifest, **how)
    assert report["ok"] == (not report["disks"][0]["damage"])
    return list(report["disks"][0]["damage"])


def entries(path: Path) -> list[tuple[int, int]]:
    """(grain, byte of its data) of every entry with data of closed segments, as the log goes."""
    log = (path / LOG).read_bytes()
    found = []
    for slot in range(65536, len(log), SEGMENT):
        trailer = log[slot + SEGMENT - 4096 : slot + SEGMENT]
        if log[slot : slot + 8] == b"RPSEGMT1" and trailer[:8] == b"RPTRAIL1":
            at, count = (int.from_bytes(trailer[i : i + 8], "little") for i in (72, 80))
            first = int.from_bytes(log[slot + 88 : slot + 96], "little")
            for i in range(count):
                row = log[at + 16 * i : at + 16 * i + 8]
                grain, place = (int.from_bytes(row[j : j + 4], "little") for j in (0, 4))
                if place > 1:
                    found.append((first + i, grain, place * 512))
    return [(grain, place) for _, grain, place in sorted(found)]


def shown(path: Path, point: int, folder: Path) -> bytes:
    """What a copy of the replica shows of a disk at a point."""
    copy = folder / f"copy{point}"
    shutil.copytree(path, copy)
    with open_journal(copy / LOG, writable=True) as journal:
        journal.native.roll(point)
    with open_disk(copy / "d-journal.vmdk") as disk:
        data = disk.pread(disk.size_bytes, 0)
    shutil.rmtree(copy)
    return data


# ---- finding ----


def test_a_whole_replica_has_no_damage_and_its_bases_are_digested_once(path: Path) -> None:
    assert verify(path) == []
    first = (path / digests.FILE_NAME).read_bytes()
    assert verify(path) == []
    assert (path / digests.FILE_NAME).read_bytes() == first
    assert not (path / scrub_notes.FILE_NAME).exists()


def test_damage_of_data_names_disk_file_place_range_and_exactly_the_points_that_read_it(
    path: Path, tmp_path: Path
) -> None:
    """Held against what each point shows: the ones named change, and no other."""
    data = entries(path)
    rng = random.Random(3)
    chosen = sorted(rng.sample(range(len(data)), 6))
    before = {number: shown(path, number, tmp_path) for number in range(1, 7)}
    for i in chosen:
        flip(path / LOG, data[i][1] + 77)
    rows = verify(path)
    after = {number: shown(path, number, tmp_path) for number in range(1, 7)}
    assert [(row["guest_offset"], row["position"]) for row in rows] == [
        (data[i][0] * GRAIN, data[i][1]) for i in chosen
    ]
    for row in rows:
        assert (row["where"], row["file"], row["length"]) == ("journal", LOG, GRAIN)
        at = slice(row["guest_offset"], row["guest_offset"] + 78)
        changed = [number for number in before if before[number][at] != after[number][at]]
        same_grain = sum(other["guest_offset"] == row["guest_offset"] for other in rows)
        if same_grain == 1:
            assert row["points"] == ((changed[0], changed[-1]) if changed else None)


def test_a_lost_batch_header_is_damage_and_its_data_is_still_judged(path: Path) -> None:
    position = entries(path)[0][1]
    flip(path / LOG, position - GRAIN + 30)
    flip(path / LOG, position)
    rows = verify(path)
    assert [row["position"] for row in rows] == [position - GRAIN, position]
    assert rows[0]["guest_offset"] is None
    assert rows[1]["guest_offset"] is not None


def test_bit_rot_in_the_base_is_found_once_it_was_digested(path: Path) -> None:
    flip(path / FLAT, (1 << 20) + 5)
    assert verify(path) == []  # nobody knows better
    flip(path / FLAT, (2 << 20) + 5)
    rows = verify(path)
    assert [(row["where"], row["guest_offset"], row["length"]) for row in rows] == [
        ("base", 2 << 20, 1 << 20)
    ]
    assert rows[0]["file"] == FLAT
    assert rows[0]["position"] == 2 << 20
    assert rows[0]["points"] == (1, 6)


def test_a_base_that_an_operation_writes_is_not_judged(path: Path) -> None:
    assert verify(path) == []
    flip(path / FLAT, 5)
    with Replica.open(path) as replica, replica.locked() as manifest:
        manifest.begin("seed", "2026-11-22T10:00:00.000000Z")
        replica.save()
    assert verify(path) == []
    with Replica.open(path) as replica, replica.locked() as manifest:
        manifest.remember(manifest.end("Ready"))
        replica.save()
    assert [row["where"] for row in verify(path)] == ["base"]


def test_removing_a_replica_takes_what_a_scrub_left(path: Path) -> None:
    assert verify(path) == []
    with pytest.raises(CancelledError):
        verify(path, progress=stopping(1))
    for name in (scrub_notes.FILE_NAME, digests.FILE_NAME):
        (path / f"{name}.new").write_bytes(b"cut short")
    with Replica.open(path) as replica:
        replica.remove()
    assert not path.exists()


def test_digests_of_another_content_say_nothing(path: Path) -> None:
    assert verify(path) == []
    before = (path / digests.FILE_NAME).read_bytes()
    text = (path / "d.vmdk").read_bytes()
    at = text.index(b"CID=") + 4
    cid = b"1234abcd"
    (path / "d.vmdk").write_bytes(text[:at] + cid + text[at + 8 :])
    journal = (path / "d-journal.vmdk").read_bytes()
    at = journal.index(b"parentCID=") + 10
    (path / "d-journal.vmdk").write_bytes(journal[:at] + cid + journal[at + 8 :])
    flip(path / FLAT, 5)
    assert verify(path) == []
    assert (path / digests.FILE_NAME).read_bytes() != before
    flip(path / FLAT, 6)
    assert [row["where"] for row in verify(path)] == ["base"]


def test_a_damaged_file_of_digests_is_told_and_made_anew(path: Path) -> None:
    assert verify(path) == []
    flip(path / digests.FILE_NAME, 90)
    assert [row["where"] for row in verify(path)] == ["digests"]
    assert verify(path) == []


def test_what_is_cut_off_does_not_end_the_scrub(path: Path) -> None:
    data = entries(path)
    (path / FLAT).write_bytes((path / FLAT).read_bytes()[: 2 << 20])
    flip(path / LOG, data[3][1])
    found = verify(path)
    assert {row["where"] for row in found} == {"base", "chain", "journal"}


def test_grains_are_read_in_large_pieces(path: Path) -> None:
    io = Io.posix().fault(call=0, os_errno=5, kind="read")  # fails nothing, and counts
    with open_journal(path / LOG, io=io) as journal:
        segments = int(journal.native.info()["segment_count"])
        before = io.calls
        journal.native.scrub([])
        calls = io.calls - before
    assert len(entries(path)) > 900
    assert calls <= 8 * segments + 16


def test_a_disk_that_fails_is_never_called_whole(path: Path) -> None:
    """Every read of a scrub fails for ever in turn: it says so, or the scrub is refused."""
    counting = Io.posix().fault(call=0, os_errno=5, kind="read")
    with open_journal(path / LOG, io=counting) as journal:
        first = counting.calls + 1
        journal.native.scrub([])
        last = counting.calls
    for call in range(first, last + 1):
        io = Io.posix().fault(call=call, os_errno=5, sticky=True, kind="read")
        found: list[Any] = []
        with open_journal(path / LOG, io=io) as journal, contextlib.suppress(Error):
            journal.native.scrub(found)
            assert found, call
    assert last > first


# ---- going on ----


def stopping(after: int) -> Callable[[str, int, int], bool]:
    calls = []

    def tell(_disk: str, done: int, _total: int) -> bool:
        calls.append(done)
        return len(calls) <= after

    return tell


def test_a_cancelled_scrub_goes_on_where_it_was(path: Path) -> None:
    data = entries(path)
    flip(path / LOG, data[0][1])
    with pytest.raises(CancelledError):
        verify(path, progress=stopping(1))  # the log was read, the base was not
    noted = (path / scrub_notes.FILE_NAME).read_bytes()
    flip(path / LOG, data[0][1])  # as it was: but it was read already
    flip(path / LOG, data[1][1])
    assert [row["position"] for row in verify(path)] == [data[1][1]]  # looked at again
    assert not (path / scrub_notes.FILE_NAME).exists()
    flip(path / LOG, data[1][1])
    (path / scrub_notes.FILE_NAME).write_bytes(noted)
    assert verify(path) == []
    flip(path / LOG, data[1][1])
    (path / scrub_notes.FILE_NAME).write_bytes(noted)
    assert [row["position"] for row in verify(path, restart=True)] == [data[1][1]]


def test_a_scrub_that_goes_on_reads_no_closed_segment_again(path: Path) -> None:
    with pytest.raises(CancelledError):
        verify(path, progress=stopping(1))
    flip(path / LOG, entries(path)[0][1])
    assert verify(path) == []
    assert len(verify(path)) == 1  # that one began anew


def test_notes_of_another_log_or_that_are_not_whole_are_not_used(path: Path) -> None:
    with pytest.raises(CancelledError):
        verify(path, progress=stopping(1))
    noted = (path / scrub_notes.FILE_NAME).read_bytes()
    flip(path / LOG, entries(path)[0][1])
    (path / scrub_notes.FILE_NAME).write_bytes(noted.replace(b'"chain":"', b'"chain":"1'))
    assert len(verify(path)) == 1
    state = json.loads(noted.partition(b"\n")[2])
    state["disks"]["d"]["log"]["chain"] = "1234"  # a tail that was dropped, and written anew
    import xxhash

    body = json.dumps(state).encode()
    head = xxhash.xxh3_64_hexdigest(body).encode()
    (path / scrub_notes.FILE_NAME).write_bytes(head + b"\n" + body)
    assert len(verify(path)) == 1


def test_a_killed_scrub_has_noted_how_far_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub_notes, "SAVE_SECONDS", 0.0)
    seen = []

    def tell(_disk: str, _done: int, _total: int) -> bool:
        seen.append((path / scrub_notes.FILE_NAME).exists())
        return True

    assert verify(path, progress=tell) == []
    assert all(seen)
    assert len(seen) >= 4


# ---- beside a writer ----


def test_a_scrub_beside_an_ingest_is_not_in_its_way(tmp_path: Path) -> None:
    path = tmp_path / "r"
    make(path)
    with ingesting(path, tmp_path / "s", rpo_seconds=0.1):
        busy = threading.Event()

        def write() -> None:
            source = Source(tmp_path / "s", empty_model(), 12)
            while not busy.is_set():
                source.act()
            source.close()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(12):
                with Replica.open(path) as replica:
                    assert replica.verify()["ok"]
        finally:
            busy.set()
            thread.join()


def test_segments_that_the_ring_gives_back_meanwhile_are_no_damage(tmp_path: Path) -> None:
    """A writer that destages all the time, so that slots are freed and used again."""
    path = tmp_path / "r"
    Replica.create(path, [("d", 1 << 20)], segment_bytes=64 << 10).close()
    with Replica.open(path) as replica, replica.locked():
        how = {"writable": True, "with_bases": True, "writable_bases": True}
        with replica.journals(**how) as journals:
            below.begin(replica.directory, replica.manifest, journals.below)
            native, target = journals.natives[0], journals.targets["d"]
            ended = threading.Event()
            freed = []

            def write() -> None:
                rng = random.Random(8)
                while not ended.is_set():
                    for _ in range(30):
                        native.disk().pwrite(rng.randbytes(GRAIN), rng.randrange(256) * GRAIN)
                    point = journals.mark("crash")
                    if point.id > 2:
                        freed.append(native.destage(point.id - 2, target)["freed_bytes"])

            thread = threading.Thread(target=write)
            thread.start()
            try:
                looks = 0
                while looks < 15 or (sum(freed) < SEGMENTS_FREED * (64 << 10) and looks < 500):
                    assert verify(path) == []
                    looks += 1
            finally:
                ended.set()
                thread.join()
            assert sum(freed) >= SEGMENTS_FREED * (64 << 10)
            journals.close_clean()
    assert verify(path) == []


def test_a_replica_whose_base_was_destaged_to_is_digested_again(path: Path) -> None:
    assert verify(path) == []
    first = (path / digests.FILE_NAME).read_bytes()
    with Replica.open(path) as replica, replica.locked():
        how = {"writable": True, "with_bases": True, "writable_bases": True}
        with replica.journals(**how) as journals:
            below.begin(replica.directory, replica.manifest, journals.below)
            journals.natives[0].destage(3, journals.targets["d"])
            journals.close_clean()
    assert verify(path) == []
    assert (path / digests.FILE_NAME).read_bytes() != first
    flip(path / FLAT, 5)
    rows = verify(path)
    assert [(row["where"], row["guest_offset"]) for row in rows] == [("base", 0)]
    assert rows[0]["points"] == (3, 6)


# ---- mending ----


def repair(path: Path, *sources: str | Path, code: int = 0) -> list[dict[str, Any]]:
    with Replica.open(path) as replica, replica.locked() as manifest:
        wanted = mending.sources(manifest, replica.path, [(None, str(one)) for one in sources])
        report: Any = mending.verify_and_mend(replica.directory, manifest, None, wanted)
    assert report["ok"] == (code == 0)
    return list(report["disks"][0]["damage"])


def test_grains_are_mended_from_a_copy_and_from_an_image_that_has_the_bytes(
    path: Path, made: Path
) -> None:
    good, end = (path / LOG).read_bytes(), (made / "end.raw").read_bytes()
    data = entries(path)
    newest = dict(data)
    places = [
        next(place for grain, place in data if newest[grain] != place),
        # the last writes of the log are in a segment that is not closed: an older one
        next(place for place in newest.values() if good[place : place + GRAIN] in end),
    ]
    for place in places:
        flip(path / LOG, place, GRAIN)
    rows = repair(path, made / "end.raw", code=1)  # it has the newest bytes alone
    assert {row["position"]: row["mended"] for row in rows} == {
        places[0]: False, places[1]: True,
    }  # fmt: skip
    rows = repair(path, made / "end.raw", made / "r")
    assert [row["mended"] for row in rows] == [True]
    assert (path / LOG).read_bytes() == good
    assert verify(path) == []


def test_bytes_that_are_not_proven_are_never_written(path: Path, made: Path) -> None:
    flip(path / LOG, entries(path)[0][1])
    damaged = (path / LOG).read_bytes()
    other = path.parent / "other"
    shutil.copytree(made / "r", other)
    flip(other / LOG, entries(path)[0][1] + 9)
    zeros = path.parent / "zeros.raw"
    zeros.write_bytes(bytes(SIZES["d"]))
    rows = repair(path, other, zeros, "base", code=1)
    assert [row["mended"] for row in rows] == [False]
    assert (path / LOG).read_bytes() == damaged


def test_a_summary_is_mended_from_its_own_batches(path: Path) -> None:
    good = (path / LOG).read_bytes()
    trailer = good.index(b"RPTRAIL1")
    summary = int.from_bytes(good[trailer + 72 : trailer + 80], "little")
    flip(path / LOG, summary + 20, 64)
    rows = repair(path, "base")
    assert [row["mended"] for row in rows] == [True]
    assert (path / LOG).read_bytes() == good


def test_a_header_is_mended_from_a_copy_where_its_chain_proves_it(
    path: Path, made: Path
) -> None:
    good = (path / LOG).read_bytes()
    header = entries(path)[9][1] - GRAIN
    while good[header : header + 8] != b"RPBATCH1":
        header -= GRAIN
    flip(path / LOG, header + 40)
    other = path.parent / "other"
    shutil.copytree(made / "r", other)
    flip(other / LOG, header + 130)
    assert [row["mended"] for row in repair(path, made / "end.raw", other, code=1)] == [False]
    assert [row["mended"] for row in repair(path, made / "r")] == [True]
    assert (path / LOG).read_bytes() == good


def test_a_region_of_the_base_is_mended_where_its_digest_proves_the_source(
    path: Path, made: Path
) -> None:
    assert verify(path) == []
    good = (path / FLAT).read_bytes()
    cid = (path / "d.vmdk").read_bytes()
    flip(path / FLAT, 4096, 9000)
    assert [row["mended"] for row in repair(path, made / "end.raw", code=1)] == [False]
    assert [row["mended"] for row in repair(path, made / "seed.raw")] == [True]
    assert (path / FLAT).read_bytes() == good
    assert (path / "d.vmdk").read_bytes() == cid
    flip(path / FLAT, (2 << 20) + 1)
    assert [row["mended"] for row in repair(path, made / "r")] == [True]
    assert verify(path) == []


def test_nothing_is_mended_while_an_ingest_has_the_log(path: Path, made: Path) -> None:
    flip(path / LOG, entries(path)[0][1])
    with ingesting(path, path.parent / "t"), pytest.raises(LockedError):
        repair(path, made / "r")


def test_misuse_of_repair_from(path: Path, tmp_path: Path) -> None:
    run("replica", "verify", path, "--repair-from", "nowhere", code=1)
    two = tmp_path / "two"
    make(two)
    (tmp_path / "x.raw").write_bytes(bytes(512))
    error = run("replica", "verify", two, "--repair-from", tmp_path / "x.raw", code=2)
    assert "NAME=FILE" in error["hint"]
    with Replica.open(two) as replica, pytest.raises(UsageError):
        mending.sources(replica.manifest, replica.path, [(None, str(tmp_path / "x.raw"))])
    with Replica.open(two) as replica, pytest.raises(NotFoundError):
        mending.sources(replica.manifest, replica.path, [("nobody", "base")])


def test_the_command_mends_and_says_so(
    path: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(path / LOG, entries(path)[0][1])
    assert run("replica", "verify", path, code=1)["type"] == "DamagedError"
    found = run("replica", "verify", path, "--repair-from", f"d={made / 'r'}")
    assert found["ok"]
    assert found["disks"][0]["damage"][0]["mended"]
    assert run("replica", "verify", path)["disks"][0]["damage"] == []


def test_what_a_mend_is_offered_is_checked_in_the_core(path: Path) -> None:
    grain, place = entries(path)[0]
    del grain
    with open_journal(path / LOG, writable=True) as journal:
        with pytest.raises(DamagedError, match="not what was written there"):
            journal.native.mend(0, place, bytes(GRAIN))
        with pytest.raises(NotFoundError):
            journal.native.mend(0, place + 512, bytes(GRAIN))
        with pytest.raises(NotFoundError):
            journal.native.mend(99, place, bytes(GRAIN))
        with pytest.raises(UsageError):
            journal.native.mend(0, place, b"short")
