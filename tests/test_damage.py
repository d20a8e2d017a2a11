"""Every structure on disk, damaged in four ways: it is told, or it harms nothing.

What nobody tells of must read exactly as it should, at every restore point. What is told
of must be told with its file, and where in it; and a structure that is damaged (other than
data itself) must never make a roll back show wrong data: it fails, or it is right.

One thing is not proven, and cannot be: what a hypervisor writes into the overlay carries
no checksum, as in any VMDK. There it is only shown that nothing else changes.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import xxhash
from rollpoint import below, digests, scrub
from rollpoint import frozen as long_term
from rollpoint import manifest as manifests
from rollpoint.disk import check, open_disk
from rollpoint.errors import Error
from rollpoint.journal import open_journal
from rollpoint.operation import failover
from rollpoint.replica import Replica

SIZE, GRAIN, SEGMENT, HEAD = 256 << 10, 4096, 64 << 10, 64 << 10
LOG, DELTA, FROZEN = "d-journal-log.vmdk", "d-interim-delta.vmdk", "d-000001-delta.vmdk"
SEED = 20261122


class World(NamedTuple):
    """A replica that is Ready, the same earlier, failed over, and what each shows."""

    ready: Path
    earlier: Path
    failed_over: Path
    earlier_over: Path
    frozen: Path  # ready, with two long-term points: 3 and 6
    earlier_frozen: Path
    points: dict[int, bytes]  # at each restore point
    overlaid: bytes  # through the overlay
    log: bytes


def fill(path: Path, rng: random.Random, disk: bytearray, numbers: range) -> dict[int, bytes]:
    """Some writes and a point each; over a third of the disk, so that much is overwritten."""
    shown = {}
    with Replica.open(path) as replica, replica.journals(writable=True, with_bases=True) as all_:
        for number in numbers:
            for _ in range(9):
                at = rng.randrange(0, SIZE // 3, 512)
                data = rng.randbytes(rng.choice((GRAIN, GRAIN, 2 * GRAIN)))
                all_.natives[0].disk().pwrite(data, at)
                disk[at : at + len(data)] = data
            all_.natives[0].disk().zero(GRAIN, 3 * number * GRAIN)
            disk[3 * number * GRAIN : (3 * number + 1) * GRAIN] = bytes(GRAIN)
            assert all_.mark("app", f"point {number}").id == number
            shown[number] = bytes(disk)
        all_.close_clean()
    return shown


def build(folder: Path, seed: int) -> World:
    rng = random.Random(seed)
    ready = folder / "ready"
    image = rng.randbytes(SIZE)
    folder.mkdir()
    (folder / "seed").write_bytes(image)
    with Replica.create(ready, [("d", SIZE)], segment_bytes=SEGMENT) as replica:
        replica.seed({"d": folder / "seed"})
    disk = bytearray(image)
    points = fill(ready, rng, disk, range(1, 4))
    shutil.copytree(ready, folder / "earlier")
    points |= fill(ready, rng, disk, range(4, 10))
    with Replica.open(ready) as replica:
        assert replica.verify()["ok"]  # which digests the base
    over = folder / "over"
    shutil.copytree(ready, over)
    with Replica.open(over) as replica:
        failover(replica, to=4, power_on=False)
    shutil.copytree(over, folder / "earlier_over")
    overlaid = bytearray(points[4])
    with open_disk(over / "d-interim.vmdk", writable=True) as interim:
        for at in range(0, SIZE, 128 << 10):
            data = rng.randbytes(GRAIN)
            interim.pwrite(data, at + 512)
            overlaid[at + 512 : at + 512 + GRAIN] = data
    frozen = freeze(ready, folder)
    log = (ready / LOG).read_bytes()
    return World(
        ready, folder / "earlier", over, folder / "earlier_over", frozen,
        folder / "earlier_frozen", points, bytes(overlaid), log,
    )  # fmt: skip


def freeze(ready: Path, folder: Path) -> Path:
    """Destage up to two points, and keep them for long; a destage beyond goes on top."""
    frozen = folder / "frozen"
    shutil.copytree(ready, frozen)
    for number in (3, 6, 8):
        with Replica.open(frozen) as replica, replica.locked():
            point = replica.points.by_id(number)
            how = {"writable": True, "with_bases": True, "writable_bases": True}
            with replica.journals(**how) as journals:
                below.begin(replica.directory, replica.manifest, journals.below)
                journals.natives[0].destage(number, journals.targets["d"])
                if number < 8:
                    long_term.freeze(replica, journals, point)
                journals.close_clean()
        if number == 3:
            shutil.copytree(frozen, folder / "earlier_frozen")
            (folder / "earlier_frozen" / FROZEN).touch()
    with Replica.open(frozen) as replica:
        report = replica.verify()
        assert report["ok"], report
        assert replica.manifest.frozen[1].digests
    return frozen


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("damage") / "w", SEED)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Another replica of the same shape: where misplaced bytes come from."""
    return build(tmp_path_factory.mktemp("damage") / "s", SEED + 1)


# ---- where things are ----


class Span(NamedTuple):
    file: str
    start: int
    length: int


def word(data: bytes, at: int, bytes_: int = 8) -> int:
    return int.from_bytes(data[at : at + bytes_], "little")


def closed_segments(log: bytes) -> list[int]:
    """Slots of closed segments, as the log goes."""
    found = [
        (word(log, slot + 32), slot)
        for slot in range(HEAD, len(log), SEGMENT)
        if log[slot : slot + 8] == b"RPSEGMT1"
        and log[slot + SEGMENT - GRAIN :][:8] == b"RPTRAIL1"
    ]
    return [slot for _, slot in sorted(found)]


def of_the_log(log: bytes) -> dict[str, Span]:
    slot = closed_segments(log)[1]
    trailer = slot + SEGMENT - GRAIN
    summary, entries = word(log, trailer + 72), word(log, trailer + 80)
    first = next(
        at
        for at in range(slot + GRAIN, slot + SEGMENT, GRAIN)
        if log[at : at + 8] == b"RPBATCH1" and word(log, at + 100, 4) > 0
    )
    directory = word(log, 56) * 512
    table = word(log, directory, 4) * 512
    return {
        "sparse header": Span(LOG, 0, 512),
        "superblock 1": Span(LOG, 4096, GRAIN),
        "superblock 2": Span(LOG, 8192, GRAIN),
        "segment header": Span(LOG, slot, GRAIN),
        "batch header": Span(LOG, first, 128 + 16 * word(log, first + 96, 4)),
        "grain data": Span(LOG, first + GRAIN, GRAIN),
        "summary entries": Span(LOG, summary, entries * 16),
        "summary points": Span(LOG, summary + entries * 16, 296 * word(log, trailer + 88)),
        "trailer": Span(LOG, trailer, GRAIN),
        "root header": Span(LOG, directory - GRAIN, GRAIN),
        "root directory": Span(LOG, directory, 4),
        "root table": Span(LOG, table, 256),
    }


def whole(path: Path, name: str) -> Span:
    return Span(name, 0, (path / name).stat().st_size)


def of_the_files(path: Path) -> dict[str, Span]:
    return {
        "manifest": whole(path, manifests.FILE_NAME),
        "journal descriptor": whole(path, "d-journal.vmdk"),
        "base descriptor": whole(path, "d.vmdk"),
        "base data": Span("d-flat.vmdk", 96 << 10, GRAIN),
    }


def of_a_delta(path: Path, name: str, kind: str) -> dict[str, Span]:
    delta = (path / name).read_bytes()
    directory = word(delta, 56) * 512
    table = word(delta, directory, 4) * 512
    grain = next(word(delta, table + 4 * i, 4) for i in range(512) if word(delta, table + 4 * i, 4))
    return {
        f"{kind} header": Span(name, 0, 512),
        f"{kind} directory": Span(name, directory, 4),
        f"{kind} table": Span(name, table, 256),
        f"{kind} data": Span(name, grain * 512, GRAIN),
    }


LOG_STRUCTURES = (
    "sparse header", "superblock 1", "superblock 2", "segment header", "batch header",
    "grain data", "summary entries", "summary points", "trailer", "root header",
    "root directory", "root table",
)  # fmt: skip
FILE_STRUCTURES = ("manifest", "journal descriptor", "base descriptor", "base data")
FROZEN_STRUCTURES = ("frozen header", "frozen directory", "frozen table", "frozen data")
OVERLAY_STRUCTURES = ("interim header", "interim directory", "interim table", "interim data")
DATA = ("grain data", "base data")  # what is damaged is what is read


# ---- the four ways ----


def flipped(was: bytes, rng: random.Random, **_: bytes) -> bytes:
    used = [at for at, byte in enumerate(was) if byte] or [0]
    at = rng.choice(used)
    return was[:at] + bytes([was[at] ^ 1 << rng.randrange(8)]) + was[at + 1 :]


def zeroed(was: bytes, **_: Any) -> bytes:
    return bytes(len(was))


def stale(was: bytes, old: bytes, name: str, **_: Any) -> bytes:
    """What was there before; in a log that went round, that is an older structure, whole."""
    if old.strip(b"\0") and old != was:
        return old[: len(was)].ljust(len(was), b"\0")
    made = bytearray(was)
    magic = bytes(made[:8])
    if magic in (b"RPSEGMT1", b"RPTRAIL1"):
        made[32:40] = struct.pack("<Q", word(was, 32) - 1)  # number of an earlier segment
    elif magic == b"RPBATCH1":
        made[32:40] = struct.pack("<Q", word(was, 32) - 1)
        made[88:96] = struct.pack("<Q", word(was, 88) - 1)
    else:  # no checksum of its own: other content of the same kind
        step = {"summary entries": 16, "summary points": 296}.get(name, 1)
        return was[step:] + was[:step]
    made[8:16] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(made[16:])))
    return bytes(made)


def misplaced(was: bytes, other: bytes, **_: Any) -> bytes:
    return other[: len(was)].ljust(len(was), b"\0")


KINDS: dict[str, Callable[..., bytes]] = {
    "bit flip": flipped, "zeroed": zeroed, "stale copy": stale, "misplaced": misplaced,
}  # fmt: skip


def read(path: Path, span: Span) -> bytes:
    with (path / span.file).open("rb") as file:
        file.seek(span.start)
        return file.read(span.length)


def harm(
    path: Path, span: Span, name: str, kind: str, earlier: Path, donor: tuple[Path, Span]
) -> None:
    was = read(path, span)
    now = KINDS[kind](
        was=was, old=read(earlier, span), other=read(*donor), name=name,
        rng=random.Random(f"{SEED} {name} {kind}"),
    )  # fmt: skip
    if now == was:  # as zero entries that are zeroed
        now = bytes([was[0] ^ 1]) + was[1:]
    with (path / span.file).open("r+b") as file:
        file.seek(span.start)
        file.write(now)
    if name in FILE_STRUCTURES[:3] and kind in ("stale copy", "misplaced"):
        source = earlier if kind == "stale copy" else donor[0]
        shutil.copy(source / span.file, path / span.file)


# ---- the judges ----


def told(path: Path) -> list[dict[str, Any]]:
    """What opening and verifying tell of."""
    try:
        with Replica.open(path) as replica:
            report: Any = scrub.verify(replica.directory, replica.manifest)
    except Error as error:
        return [{"message": error.message, "file": None, "position": None}]
    return [row for disk in report["disks"] for row in disk["damage"]]


def require_told_well(rows: list[dict[str, Any]], span: Span) -> None:
    assert span.file in json.dumps(rows), rows
    if span.file != LOG:
        return
    near = any(
        row["position"] - GRAIN <= span.start + span.length
        and span.start <= row["position"] + row["length"]
        for row in rows
        if row["position"] is not None
    )
    refusals = [row["message"] for row in rows if row["position"] is None]
    place = re.compile(r"\bat \d+|it starts with")
    assert near or any(place.search(text) for text in refusals), rows


def at_point(path: Path, number: int) -> bytes | None:
    """What a roll back to a point shows; None where it is refused."""
    try:
        with open_journal(path / LOG, writable=True) as journal:
            journal.native.roll(number)
        return through(path / "d-journal.vmdk")
    except Error:
        return None


def through(descriptor: Path) -> bytes:
    with open_disk(descriptor) as disk:
        return disk.pread(SIZE, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*LOG_STRUCTURES, *FILE_STRUCTURES])
def test_damage_is_told_or_harms_nothing(
    name: str, kind: str, world: World, stranger: World, tmp_path: Path
) -> None:
    path = tmp_path / "r"
    shutil.copytree(world.ready, path)
    span = (of_the_log(world.log) | of_the_files(world.ready))[name]
    theirs = (of_the_log(stranger.log) | of_the_files(stranger.ready))[name]
    harm(path, span, name, kind, world.earlier, (stranger.ready, theirs))
    rows = told(path)
    for number, wanted in reversed(world.points.items()):
        seen = at_point(path, number)
        if rows and name in DATA:
            break
        assert seen == wanted or (rows and seen is None), (number, rows)
    if rows:
        require_told_well(rows, span)


FLIPS = 60


def test_a_bit_flipped_anywhere_is_told_or_harms_nothing(world: World, tmp_path: Path) -> None:
    """Where the matrix does not look: any byte of a log, of its descriptors, and of a base."""
    path = tmp_path / "r"
    rng = random.Random(SEED)
    log_bytes = [at for at, byte in enumerate(world.log) if byte]
    harmless = 0
    for turn in range(FLIPS):
        shutil.copytree(world.ready, path)
        name = rng.choice((LOG, LOG, LOG, "d-flat.vmdk", "d-journal.vmdk", "replica.json"))
        size = (path / name).stat().st_size
        at = rng.choice(log_bytes) if name == LOG else rng.randrange(size)
        with (path / name).open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0] ^ 1 << rng.randrange(8)
            file.seek(at)
            file.write(bytes([byte]))
        if not told(path):
            harmless += 1
            for number in (9, 5, 1):
                assert at_point(path, number) == world.points[number], (turn, name, at)
        shutil.rmtree(path)
    assert 0 < harmless < FLIPS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FROZEN_STRUCTURES)
def test_damage_of_a_long_term_point_is_told_or_harms_nothing(
    name: str, kind: str, world: World, stranger: World, tmp_path: Path
) -> None:
    path = tmp_path / "r"
    shutil.copytree(world.frozen, path)
    span = of_a_delta(world.frozen, FROZEN, "frozen")[name]
    theirs = of_a_delta(stranger.frozen, FROZEN, "frozen")[name]
    harm(path, span, name, kind, world.earlier_frozen, (stranger.frozen, theirs))
    rows = told(path)
    if not rows:
        assert through(path / "d-000001.vmdk") == world.points[6]
        for number in (9, 8):
            assert at_point(path, number) == world.points[number]
        return
    assert "d-000001" in json.dumps(rows)
    assert through(path / "d.vmdk") == world.points[3]  # which does not need it


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OVERLAY_STRUCTURES)
def test_damage_of_an_overlay_is_told_or_harms_nothing(
    name: str, kind: str, world: World, stranger: World, tmp_path: Path
) -> None:
    path = tmp_path / "r"
    shutil.copytree(world.failed_over, path)
    span = of_a_delta(world.failed_over, DELTA, "interim")[name]
    theirs = of_a_delta(stranger.failed_over, DELTA, "interim")[name]
    harm(path, span, name, kind, world.earlier_over, (stranger.failed_over, theirs))
    rows: list[Any] = []
    seen = None
    try:
        rows += check(path / "d-interim.vmdk")["findings"]
        seen = through(path / "d-interim.vmdk")
    except Error as error:
        rows.append({"message": error.message, "file": "", "position": None})
    if name == "interim data":
        assert seen is not None
        changed = [at for at in range(SIZE) if seen[at] != world.overlaid[at]]
        assert max(changed) - min(changed) < GRAIN
    elif rows:
        assert DELTA in json.dumps(rows)
    else:
        assert seen == world.overlaid


def test_the_worlds_are_what_the_matrix_needs(world: World) -> None:
    assert told(world.ready) == []
    assert len(closed_segments(world.log)) >= 3
    copy = world.ready.parent / "copy"
    shutil.copytree(world.ready, copy)
    for number, wanted in world.points.items():
        assert at_point(copy, number) == wanted
    assert through(world.failed_over / "d-interim.vmdk") == world.overlaid
    assert told(world.failed_over) == []
    assert told(world.frozen) == []
    assert through(world.frozen / "d.vmdk") == world.points[3]
    assert through(world.frozen / "d-000001.vmdk") == world.points[6]
    assert (world.ready / digests.FILE_NAME).exists()
