"""Mending damaged disks: what could be read reads the same, and a second check finds nothing."""

from __future__ import annotations

import errno
import json
import random
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import require_tool
from extents import write_at_random
from hostile import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollpoint import _native
from rollpoint.check import check
from rollpoint.create import NewDisk, create_disk
from rollpoint.descriptor import parse
from rollpoint.disk import open_disk
from rollpoint.errors import DamagedError, LockedError, ReadOnlyError, StorageError
from rollpoint.repair import Outcome, repair
from rollpoint.replica import Replica

KIB, MIB = 1 << 10, 1 << 20
PRIMARY, REDUNDANT = "directory_sector", "redundant_directory_sector"
UNCLEAN_AT = {_native.EXTENT_SPARSE: 72, _native.EXTENT_COWD: 1648}


class Tables:
    """The tables of one sparse file, to be changed behind the engine's back."""

    def __init__(self, file: _native.File) -> None:
        self.file = file
        self.info = _native.sparse_info(file)

    @classmethod
    def of(cls, path: str, io: _native.Io | None = None) -> Tables:
        folder, _, name = path.rpartition("/")
        dir = (io or _native.Io.posix()).open_dir(folder or "/")
        return cls(dir.open(name, _native.OPEN_WRITE))

    @property
    def kind(self) -> int:
        return self.info["kind"]

    @property
    def entries(self) -> int:
        """In one table."""
        return self.info["entries_per_table"]

    @property
    def grain(self) -> int:
        return self.info["grain_sectors"] * 512

    @property
    def redundant(self) -> bool:
        return self.kind == _native.EXTENT_SPARSE and bool(self.info["flags"] & 2)

    def at(self, grain: int, which: str = PRIMARY) -> int:
        """Byte of the entry of a grain."""
        table = self.load(self.directory_at(grain // self.entries, which))
        return table * 512 + 4 * (grain % self.entries)

    def directory_at(self, table: int, which: str = PRIMARY) -> int:
        return self.info[which] * 512 + 4 * table

    def load(self, at: int) -> int:
        found: int = struct.unpack("<I", self.file.pread(4, at))[0]
        return found

    def store(self, at: int, value: int) -> None:
        self.file.pwrite(struct.pack("<I", value), at)

    def set(self, grain: int, value: int, *whiches: str) -> None:
        for which in whiches or ((PRIMARY, REDUNDANT) if self.redundant else (PRIMARY,)):
            self.store(self.at(grain, which), value)

    def used(self) -> list[int]:
        """Grains that have data."""
        grains = -(-self.info["capacity_sectors"] * 512 // self.grain)
        return [
            grain
            for grain in range(grains)
            if self.load(self.directory_at(grain // self.entries))
            and self.load(self.at(grain)) > 1
        ]

    def mark_unclean(self) -> None:
        self.file.pwrite(b"\1", UNCLEAN_AT[self.kind])


def seen(path: str, io: _native.Io | None = None, step: int = 512) -> list[bytes | None]:
    """What the disk shows, step by step; None where it cannot be read."""
    found: list[bytes | None] = []
    with open_disk(path, io=io) as disk:
        for at in range(0, disk.size_bytes, step):
            try:
                found.append(disk.pread(min(step, disk.size_bytes - at), at))
            except DamagedError:
                found.append(None)
    return found


def kinds(outcome: Outcome, when: str = "before") -> list[str]:
    return sorted({finding["kind"] for finding in outcome[when]})  # type: ignore[literal-required]


def made(folder: Path, type: str = "monolithicSparse", **how: object) -> str:
    """A disk of 40 MiB with data in both of its first two tables."""
    path = str(folder / "a.vmdk")
    create_disk(path, type, 40 * MIB, **how)  # type: ignore[arg-type]
    with open_disk(path, writable=True) as disk:
        for number in range(6):
            disk.pwrite(bytes([number + 1]) * 65536, number * 65536)
        disk.pwrite(b"far" * 1000, 33 * MIB)
    return path


# ---- the property ----

SHAPES = {
    "hosted": ("monolithicSparse", 4096, True, False),
    "hosted, zero grains": ("monolithicSparse", 4096, True, True),
    "hosted, plain": ("monolithicSparse", 512, False, True),
    "split": ("twoGbMaxExtentSparse", 4096, True, False),
    "COWD": ("vmfsSparse", 512, False, False),
}


class Victim:
    """A random disk with random damage of the kinds that can be mended."""

    def __init__(self, shape: str, seed: int) -> None:
        self.io, self.rng = _native.Io.simulate(), random.Random(seed)
        type, grain, redundant, zero_grains = SHAPES[shape]
        span = grain * (4096 if type == "vmfsSparse" else 512)
        self.size = 2 * span + grain * self.rng.randrange(1, 20)
        folder = self.io.open_dir("/")
        with NewDisk(
            folder, "d.vmdk", type, self.size, grain_bytes=grain, redundant=redundant,
            zero_grains=zero_grains, split_sectors=span // 512 if type[0] == "t" else None,
        ) as new:  # fmt: skip
            for table in range(3):
                for _ in range(self.rng.randrange(12)):
                    at = table * span + self.rng.randrange(16) * grain
                    if at < self.size:
                        new.pwrite(self.rng.randbytes(min(grain, self.size - at)), at)
            new.publish()
        self.grain = grain
        self.wanted = seen("/d.vmdk", self.io, grain)
        names = [name for name in folder.list() if name != "d.vmdk"] or ["d.vmdk"]
        starts = [0, span, 2 * span] if len(names) > 1 else [0]
        for name, start in zip(sorted(names), starts, strict=True):
            self.harm(Tables.of(f"/{name}", self.io), start // grain)
        shown = seen("/d.vmdk", self.io, grain)
        self.wanted = [
            now if number in self.as_shown else was
            for number, (was, now) in enumerate(zip(self.wanted, shown, strict=True))
        ]

    as_shown: set[int]

    def harm(self, tables: Tables, first: int) -> None:
        """At most one kind of damage for each table, and some for the file."""
        rng = self.rng
        self.as_shown = getattr(self, "as_shown", set())
        used = tables.used()
        rng.shuffle(used)
        good = used[: len(used) // 2]  # what others may be made to point at
        values = [tables.load(tables.at(grain)) for grain in good]
        for table in sorted({grain // tables.entries for grain in used}):
            grains = [g for g in used if g // tables.entries == table and g not in good]
            self.harm_table(tables, table, grains, values, first)
        if rng.random() < 0.5:
            tables.mark_unclean()
        if rng.random() < 0.3:
            tables.file.truncate(tables.file.size_bytes + rng.randrange(1, 100_000))
        if tables.kind == _native.EXTENT_COWD and rng.random() < 0.3:
            tables.store(28, rng.randrange(tables.info["free_sector"]))

    def harm_table(
        self, tables: Tables, table: int, grains: list[int], values: list[int], first: int
    ) -> None:
        rng = self.rng
        what = rng.choice(
            ["nothing", "leak", "shared"]
            + ["outside", "shared primary", "redundant", "directory", "redundant directory"]
            * tables.redundant
        )
        if what == "directory":
            tables.store(tables.directory_at(table), rng.choice([0, 1, 0xFFFFFF00]))
        elif what == "redundant directory":
            tables.store(tables.directory_at(table, REDUNDANT), rng.choice([0, 1, 0xFFFFFF00]))
        for grain in grains:
            if what == "leak":
                tables.set(grain, 0)
                self.as_shown.add(first + grain)
            elif what == "outside":
                tables.set(grain, rng.choice([2, 3, 0x7FFFFFF0]), PRIMARY)
            elif what == "redundant":
                tables.set(grain, rng.choice([0, 3, 0x7FFFFFF0]), REDUNDANT)
            elif what == "shared" and values:
                tables.set(grain, rng.choice(values))
                self.as_shown.add(first + grain)
            elif what == "shared primary" and values:
                tables.set(grain, rng.choice(values), PRIMARY)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(shape=st.sampled_from(sorted(SHAPES)), seed=st.integers(0, 1 << 32))
def test_whatever_can_be_mended_is_mended_and_reads_as_before(shape: str, seed: int) -> None:
    victim = Victim(shape, seed)
    found = check("/d.vmdk", io=victim.io)
    assert all(finding["mendable"] for finding in found["findings"]), found["findings"]
    outcome = repair("/d.vmdk", io=_native.Io.order(victim.io))

    assert outcome["before"] == found["findings"]
    assert outcome["after"] == []
    assert bool(outcome["done"]) == bool(outcome["before"])
    assert seen("/d.vmdk", victim.io, victim.grain) == victim.wanted
    assert not [name for name in victim.io.open_dir("/").list() if "repair" in name]
    with open_disk("/d.vmdk", writable=True, io=victim.io) as disk:  # and it can be written
        disk.pwrite(b"again", victim.size - 5)
    assert check("/d.vmdk", io=victim.io)["findings"] == []


# ---- one by one ----


def test_a_damaged_directory_is_mended_from_the_redundant_one(tmp_path: Path) -> None:
    path = made(tmp_path)
    before = seen(path, step=65536)
    tables = Tables.of(path)
    tables.store(tables.directory_at(1), 1 << 31)
    assert None in seen(path, step=65536)
    (finding,) = (f for f in check(path)["findings"] if f["kind"] == "table")
    assert (finding["guest_offset"], finding["length"]) == (32 * MIB, 8 * MIB)
    assert "bytes 33554432 to 41943040 of the disk cannot be read" in finding["message"]
    outcome = repair(path)
    assert outcome["clean"]
    assert [done["what"] for done in outcome["done"]] == ["tables"]
    assert seen(path, step=65536) == before


def test_a_directory_entry_that_points_at_data_is_mended(tmp_path: Path) -> None:
    path = made(tmp_path)
    before = seen(path, step=65536)
    tables = Tables.of(path)
    tables.store(tables.directory_at(1), tables.load(tables.at(2)))
    assert repair(path)["clean"]
    assert seen(path, step=65536) == before


def test_nothing_is_guessed(tmp_path: Path) -> None:
    """Both copies are wrong: the ranges are named, and nothing is freed that may be theirs."""
    path = made(tmp_path)
    tables = Tables.of(path)
    tables.set(2, 1 << 31)
    tables.set(3, 5)
    tables.mark_unclean()
    data = Path(path).read_bytes()
    outcome = repair(path)
    assert not outcome["clean"]
    assert outcome["done"] == []
    assert Path(path).read_bytes() == data
    lost = [f for f in outcome["after"] if f["kind"] == "outside"]
    assert [(f["guest_offset"], f["length"]) for f in lost] == [(2 * 65536, 2 * 65536)]
    assert not any(finding["mendable"] for finding in outcome["after"])


def test_what_can_be_mended_beside_what_cannot_is_mended(tmp_path: Path) -> None:
    path = made(tmp_path)
    tables = Tables.of(path)
    tables.set(2, 1 << 31)
    tables.set(4, 7, PRIMARY)
    tables.mark_unclean()
    before = seen(path, step=65536)
    outcome = repair(path)
    assert kinds(outcome, "after") == ["leak", "outside", "unclean"]
    assert [done["what"] for done in outcome["done"]] == ["entries"]
    after = seen(path, step=65536)
    assert after[4] == b"\5" * 65536
    assert [x for i, x in enumerate(after) if i != 4] == [x for i, x in enumerate(before) if i != 4]


def test_data_that_only_the_redundant_table_knows_is_not_given_up_unasked(tmp_path: Path) -> None:
    path = made(tmp_path)
    tables = Tables.of(path)
    tables.set(2, 0, PRIMARY)
    assert kinds(repair(path), "after") == ["leak", "redundant"]
    tables.mark_unclean()  # a writer was cut short: it writes the redundant one first
    assert repair(path)["clean"]
    tables.set(3, 0, PRIMARY)
    outcome = repair(path, trust_primary=True)
    assert outcome["clean"]
    assert seen(path, step=65536)[2:4] == [bytes(65536)] * 2


def test_space_is_given_back(tmp_path: Path) -> None:
    path = made(tmp_path)
    tables = Tables.of(path)
    size = tables.file.size_bytes
    for grain in (1, 2):
        tables.set(grain, 0)
    tables.file.truncate(size + MIB)
    allocated = tables.file.stat().allocated_bytes
    outcome = repair(path)
    assert outcome["clean"]
    assert outcome["done"][0]["count"] == MIB + 2 * 65536
    assert tables.file.size_bytes == size
    assert tables.file.stat().allocated_bytes < allocated - 65536


def test_a_parent_is_looked_at_and_not_written(tmp_path: Path) -> None:
    base = made(tmp_path)
    child = str(tmp_path / "child.vmdk")
    create_disk(child, "vmfsSparse", parent=base)
    with open_disk(child, writable=True) as disk:
        disk.pwrite(b"child", 0)
    Tables.of(base).mark_unclean()
    Tables.of(str(tmp_path / "child-delta.vmdk")).mark_unclean()
    content = Path(base).read_bytes()
    outcome = repair(child)
    assert [f["file"] for f in outcome["after"]] == [base]
    assert "a repair of its own" in outcome["after"][0]["message"]
    assert Path(base).read_bytes() == content
    cid = Path(child).read_bytes()
    assert repair(base)["clean"]  # and the child goes on reading through it
    assert repair(child)["clean"]
    assert Path(child).read_bytes() == cid
    assert seen(child, step=65536)[0][:5] == b"child"  # type: ignore[index]


def test_a_disk_that_somebody_writes_is_left_alone(tmp_path: Path) -> None:
    path = made(tmp_path)
    with open_disk(path, writable=True) as disk:
        disk.pwrite(b"x", 0)
        with pytest.raises(LockedError):
            repair(path)
    assert repair(path)["done"] == []


def test_backups_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    path = made(tmp_path)
    Tables.of(path).mark_unclean()
    outcome = repair(path, keep_backup=True)
    assert outcome["kept"] == [f"{path}.repair-kept"]
    head = Path(outcome["kept"][0]).read_bytes()
    assert head.startswith(b"RPREPAIR")
    assert head[1024 + 72] == 1  # header, index, and the sector as it was


def test_change_tracking_without_its_file_is_forgotten(tmp_path: Path) -> None:
    path = made(tmp_path, "vmfsSparse")
    text = Path(path).read_bytes().replace(b"version=1", b"version=3")
    title = b'# Change Tracking File\nchangeTrackPath="a-ctk.vmdk"\n\n# The Disk'
    Path(path).write_bytes(text.replace(b"# The Disk", title))
    (tmp_path / "a-ctk.vmdk").write_bytes(b"")
    assert check(path)["clean"]
    (tmp_path / "a-ctk.vmdk").unlink()
    assert kinds(repair(path)) == ["tracking"]
    found = parse(Path(path).read_bytes(), path)
    assert (found.version, found.change_track_path) == (1, None)


def test_an_odd_long_content_id_is_a_note(tmp_path: Path) -> None:
    path = made(tmp_path, "vmfsSparse")
    text = Path(path).read_bytes()
    cid = parse(text, path).cid
    Path(path).write_bytes(text.replace(b"%08x\"" % cid, b"00000000\""))
    found = check(path)
    assert found["clean"]
    assert "longContentID" in found["notes"][0]


def test_a_compressed_stream_is_only_checked(tmp_path: Path) -> None:
    path = str(tmp_path / "s.vmdk")
    dir = _native.Io.posix().open_dir(str(tmp_path))
    with NewDisk(dir, "s.vmdk", "streamOptimized", MIB) as new:
        new.publish()
    with open(path, "r+b") as file:
        file.seek(72)
        file.write(b"\1")
    outcome = repair(path)
    assert outcome["done"] == []
    assert all("written once" in finding["message"] for finding in outcome["after"])


# ---- the command ----


def test_the_command_mends_and_says_what_it_did(tmp_path: Path) -> None:
    path = made(tmp_path)
    tables = Tables.of(path)
    tables.set(4, 7, PRIMARY)
    found = run("disk", "check", path)
    assert found.code == 1
    assert "\tyes\ttable entries point outside" in found.out
    found = run("disk", "check", path, "--repair")
    assert (found.code, found.out.splitlines()) == (
        0, [f"{path}: 1 table entries taken from the redundant tables", "clean"]
    )  # fmt: skip
    tables.set(4, 7)
    found = run("disk", "check", path, "--repair", "--json")
    assert found.code == 1
    assert list(json.loads(found.out)) == ["before", "done", "after", "kept", "clean"]
    assert run("disk", "check", path, "--keep-backup").code == 2


# ---- accidents ----


def fits(was: bytes | None, now: bytes | None, wanted: bytes | None) -> bool:
    """As before the repair, or as after it."""
    return now in (was, wanted)


def test_a_repair_that_is_refused_by_the_storage_can_be_asked_again() -> None:
    """Each call of the storage fails once."""
    call = 0
    while True:
        call += 1
        victim = Victim("hosted", 5)
        shown = seen("/d.vmdk", victim.io, 4096)
        try:
            repair("/d.vmdk", io=victim.io.fault(call=call, os_errno=errno.ENOSPC))
        except StorageError:
            now = seen("/d.vmdk", victim.io, 4096)
            assert all(map(fits, shown, now, victim.wanted)), call
            assert repair("/d.vmdk", io=victim.io)["clean"], call
            assert seen("/d.vmdk", victim.io, 4096) == victim.wanted, call
            continue
        break
    assert call > 20


@pytest.mark.parametrize("shape", ["split", "COWD"])
def test_a_repair_whose_power_is_cut_is_asked_again(shape: str) -> None:
    """Several extents, each with a backup of its own; the native sweep has the details."""
    victim = Victim(shape, 17)
    victim.io.settle()
    shown = seen("/d.vmdk", victim.io, victim.grain)
    assert repair("/d.vmdk", io=victim.io)["clean"]
    sweep = victim.io.crash_states(budget=60, seed=3, garbage=False)
    for state in sweep:
        now = seen("/d.vmdk", state.io, victim.grain)
        assert all(map(fits, shown, now, victim.wanted)), state.explain()
        assert repair("/d.vmdk", io=state.io)["clean"], state.explain()
        assert seen("/d.vmdk", state.io, victim.grain) == victim.wanted, state.explain()
    assert sweep.distinct > 10


def test_a_backup_of_a_disk_that_was_written_since_is_set_aside(tmp_path: Path) -> None:
    path = made(tmp_path)
    Tables.of(path).mark_unclean()
    kept = repair(path, keep_backup=True)["kept"][0]
    shutil.copy(kept, f"{path}.repair")
    assert "repair" in {finding["kind"] for finding in check(path)["findings"]}
    with open_disk(path, writable=True) as disk:
        disk.pwrite(b"newer", 0)
    outcome = repair(path)
    assert [done["what"] for done in outcome["done"]] == ["recovered"]
    assert outcome["kept"] == [f"{path}.repair-stale"]
    assert outcome["clean"]
    with open_disk(path) as disk:
        assert disk.pread(5, 0) == b"newer"


@pytest.mark.parametrize("harm", [lambda data: data[:700], lambda data: b"\0" * 512 + data[512:]])
def test_a_backup_that_is_not_whole_was_never_used(
    harm: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = made(tmp_path)
    Tables.of(path).mark_unclean()
    kept = Path(repair(path, keep_backup=True)["kept"][0])
    Path(f"{path}.repair").write_bytes(harm(kept.read_bytes()))
    assert repair(path)["clean"]
    assert not Path(f"{path}.repair").exists()


def test_what_lies_in_an_ova_is_not_mended(tmp_path: Path) -> None:
    path = made(tmp_path)
    with tarfile.open(tmp_path / "vm.ova", "w") as archive:
        archive.add(path, "a.vmdk")
    with pytest.raises(ReadOnlyError, match="OVA"):
        repair(str(tmp_path / "vm.ova:a.vmdk"))


# ---- beside QEMU ----


def qemu_check(path: str) -> tuple[int, str]:
    done = subprocess.run(
        [require_tool("qemu-img"), "check", "-f", "vmdk", path], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_what_qemu_finds_we_find_and_mend(tmp_path: Path) -> None:
    """It finds primary entries past the end of the file, and nothing of the rest."""
    path = made(tmp_path)
    good = Path(path).read_bytes()
    for harm, found_by_qemu in (
        (lambda tables: tables.set(2, 1 << 24, PRIMARY), True),
        (lambda tables: tables.set(2, 3, PRIMARY), False),
        (lambda tables: tables.set(2, tables.load(tables.at(4)), PRIMARY), False),
        (lambda tables: tables.set(2, 0, REDUNDANT), False),
        (lambda tables: tables.mark_unclean(), False),
        (lambda tables: tables.file.truncate(tables.file.size_bytes + MIB), False),
    ):
        Path(path).write_bytes(good)
        harm(Tables.of(path))
        assert (qemu_check(path)[0] != 0) == found_by_qemu
        assert not check(path)["clean"]
        assert repair(path)["clean"]
        assert qemu_check(path)[0] == 0
    with open_disk(path) as disk:
        assert disk.pread(6 * 65536, 0) == b"".join(bytes([n + 1]) * 65536 for n in range(6))


# ---- what a writer leaves ----


def new_disk(folder: Path, shape: str, child: bool) -> str:
    type, grain, redundant, zero_grains = SHAPES[shape]
    size, span = 5 * MIB + 512, 2 * MIB
    dir = _native.Io.posix().open_dir(str(folder))
    parent = None
    if child:
        create_disk(str(folder / "base.vmdk"), "monolithicSparse", size)
        with open_disk(folder / "base.vmdk", writable=True) as disk:
            disk.pwrite(random.Random(1).randbytes(3 * MIB), 4096)
        text = (folder / "base.vmdk").read_bytes()[512:4096].rstrip(b"\0")
        parent = ("base.vmdk", parse(text, "base").cid)
    with NewDisk(
        dir, "d.vmdk", type, size, grain_bytes=grain, redundant=redundant, parent=parent,
        zero_grains=zero_grains, split_sectors=span // 512 if type[0] == "t" else None,
    ) as new:  # fmt: skip
        new.publish()
    return str(folder / "d.vmdk")


@pytest.mark.parametrize("child", [False, True], ids=["full", "child"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_writer_leaves_sound_tables_at_every_moment(
    shape: str, child: bool, tmp_path: Path
) -> None:
    """Let go at random: unclean, and at most space that was reserved; clean after a close."""
    path = new_disk(tmp_path, shape, child)
    with open_disk(path) as disk:
        model = bytearray(disk.pread(disk.size_bytes, 0))
    rng = random.Random(f"{shape} {child}")
    for life in range(6):
        disk = open_disk(path, writable=True)
        for _ in range(rng.randrange(1, 8)):
            write_at_random(disk.native, model, rng, 4)
            if rng.random() < 0.5:
                disk.flush()
                found = {finding["kind"] for finding in check(path)["findings"]}
                assert found <= {"unclean", "leak"}, (life, found)
        if life % 2:
            disk.close()
            found = {finding["kind"] for finding in check(path)["findings"]}
            # a part that nobody has written since the last life keeps its mark
            assert found <= {"leak", "unclean"} if shape == "split" else found <= {"leak"}
            assert qemu_check(path)[0] == 0
        else:
            disk.close(clean=False)
            found = {finding["kind"] for finding in check(path)["findings"]}
            assert {"unclean"} <= found <= {"unclean", "leak"}, life
            with open_disk(path) as disk:
                model[:] = disk.pread(disk.size_bytes, 0)
            if life == 4:
                assert repair(path)["clean"]
        with open_disk(path) as disk:
            assert disk.pread(len(model), 0) == model
    assert repair(path)["clean"]
    assert qemu_check(path)[0] == 0
    with open_disk(path) as disk:
        assert disk.pread(len(model), 0) == model


@pytest.mark.parametrize("shape", ["hosted", "COWD"])
def test_the_mark_is_set_before_the_first_write_and_cleared_last(
    shape: str, tmp_path: Path
) -> None:
    path = new_disk(tmp_path, shape, False)
    io = _native.Io.record(_native.Io.posix())
    with open_disk(path, writable=True, io=io) as disk:
        begun = len(io.operations())
        disk.pwrite(b"x" * 10_000, 0)
        disk.flush()
        disk.pwrite(b"y" * 10_000, MIB)
    name = "d-delta.vmdk" if shape == "COWD" else "d.vmdk"
    at = UNCLEAN_AT[_native.EXTENT_COWD if shape == "COWD" else _native.EXTENT_SPARSE]
    length = 4 if shape == "COWD" else 1
    mark, sync = f"write {tmp_path}/{name} [{at}, {at + length})", f"sync {tmp_path}/{name}"
    done = [line for line in io.operations()[begun:] if line.startswith(("write", "sync"))]
    data = [number for number, line in enumerate(done) if line.startswith("write") and name in line]
    marks = [number for number in data if done[number] == mark]
    assert len(marks) == 2
    assert done[marks[0] + 1] == sync
    assert marks[-1] == data[-1]
    assert sync in done[marks[-1] :]
    # COWD's freeSector may be lowered together with it
    before = [number for number in data[:-1] if not done[number].endswith("[28, 32)")]
    assert sync in done[before[-1] : marks[-1]]


# ---- what cannot be opened, and what is no table ----


def test_a_disk_that_cannot_be_opened_is_told_of(tmp_path: Path) -> None:
    path = made(tmp_path)
    with open(path, "r+b") as file:
        file.seek(56)
        file.write(struct.pack("<Q", 1 << 40))  # the directory lies outside the file
    with pytest.raises(DamagedError):
        open_disk(path)
    (finding,) = check(path)["findings"]
    assert (finding["kind"], finding["mendable"]) == ("header", False)
    assert "grain directory" in finding["message"]
    assert repair(path)["done"] == []


def test_flat_files_are_checked_for_their_size_and_for_sharing(tmp_path: Path) -> None:
    path = str(tmp_path / "f.vmdk")
    create_disk(path, "twoGbMaxExtentFlat", 2 * MIB, split_sectors=2048)
    assert check(path)["clean"]
    with open(tmp_path / "f-f002.vmdk", "r+b") as file:
        file.truncate(MIB - 4096)
    (finding,) = check(path)["findings"]
    assert (finding["kind"], finding["guest_offset"], finding["length"]) == (
        "short", 2 * MIB - 4096, 4096
    )  # fmt: skip
    text = Path(path).read_bytes().replace(b'"f-f002.vmdk" 0', b'"f-f001.vmdk" 8')
    Path(path).write_bytes(text)
    assert {f["kind"] for f in check(path)["findings"]} == {"overlap", "short"}


def test_a_journal_is_not_mended(tmp_path: Path) -> None:
    """Its log keeps what other restore points show: no leak, and nothing to give back."""
    with (
        Replica.create(str(tmp_path / "r"), [("a", MIB)]) as replica,
        replica.locked(),
        replica.journals(writable=True, with_bases=True) as journals,
    ):
        for data in (b"x", b"y"):
            journals.natives[0].disk().pwrite(data * 9000, 0)
            journals.mark("crash")
    content = (tmp_path / "r" / "a-journal-log.vmdk").read_bytes()
    path = str(tmp_path / "r" / "a-journal.vmdk")
    assert "leak" not in {finding["kind"] for finding in check(path)["findings"]}
    assert repair(path)["done"] == []
    assert (tmp_path / "r" / "a-journal-log.vmdk").read_bytes() == content
