"""Interim overlays: empty and whole or not there; QEMU can write the hosted kind."""

from __future__ import annotations

import errno
import random
import subprocess
from pathlib import Path

import pytest
from conftest import require_tool
from rollpoint import disk as disks
from rollpoint._native import POINT_CRASH, Dir, Io
from rollpoint.convert import commit
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import (
    Error,
    ExistsError,
    NotFoundError,
    StateError,
    UnsupportedError,
    UsageError,
)
from rollpoint.interim import KINDS, create_interim, delta_name, interim_name, remove_interim
from rollpoint.journal import create_journal, open_journal

MIB = 1 << 20
SIZE = 40 * MIB + 512  # two grain tables


@pytest.fixture
def replica(tmp_path: Path) -> Dir:
    """A directory with a parent that has data."""
    create_disk(str(tmp_path / "web.vmdk"), "vmfs", SIZE)
    with open_disk(tmp_path / "web.vmdk", writable=True) as disk:
        disk.pwrite(random.Random(1).randbytes(3 * MIB), 0)
        disk.pwrite(random.Random(2).randbytes(MIB), SIZE - MIB)
    return Io.posix().open_dir(str(tmp_path))


def names(dir: Dir) -> list[str]:
    return [name for name in dir.list() if "interim" in name]


def seen(path: Path) -> bytes:
    with open_disk(path) as disk:
        return disk.pread(disk.size_bytes, 0)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_interim_shows_its_parent_and_takes_writes(
    kind: str, replica: Dir, tmp_path: Path
) -> None:
    model = bytearray(seen(tmp_path / "web.vmdk"))
    assert create_interim(replica, "web", "web.vmdk", SIZE, kind=kind) == "web-interim.vmdk"
    assert names(replica) == ["web-interim-delta.vmdk", "web-interim.vmdk"]
    interim = tmp_path / "web-interim.vmdk"
    found = disks.info(interim)
    assert found["type"] == KINDS[kind][0]
    assert found["chain"][0]["parent"] == "web.vmdk"
    assert found["chain"][0]["extents"][0]["grain_bytes"] == KINDS[kind][1]  # type: ignore[typeddict-item]
    assert found["chain"][0]["extents"][0]["allocated_bytes"] <= 65536
    assert seen(interim) == model
    base = (tmp_path / "web-flat.vmdk").read_bytes()
    with open_disk(interim, writable=True) as disk:
        disk.pwrite(b"x" * 100_000, 5 * MIB + 7)
        model[5 * MIB + 7 : 5 * MIB + 100_007] = b"x" * 100_000
        disk.zero(200_000, 100)
        model[100:200_100] = bytes(200_000)
    assert seen(interim) == model
    assert disks.check(interim)["clean"]
    assert (tmp_path / "web-flat.vmdk").read_bytes() == base


def test_qemu_writes_a_hosted_interim_and_we_read_it(replica: Dir, tmp_path: Path) -> None:
    """Every grain table is there, else QEMU would write over the header."""
    rng = random.Random(3)
    model = bytearray(seen(tmp_path / "web.vmdk"))
    create_interim(replica, "web", "web.vmdk", SIZE)
    interim = tmp_path / "web-interim.vmdk"
    for _ in range(3):
        commands: list[str] = []
        for _ in range(20):
            length = rng.choice([512, 4096, 65536, 130_560])
            offset = rng.randrange((SIZE - length) // 512 + 1) * 512
            value = rng.randrange(1, 256)
            if rng.random() < 0.2:
                value, verb = 0, "write -z"
            else:
                verb = f"write -P {value}"
            commands += ["-c", f"{verb} {offset} {length}"]
            model[offset : offset + length] = bytes([value]) * length
        subprocess.run(
            [require_tool("qemu-io"), "-f", "vmdk", *commands, interim],
            check=True,
            capture_output=True,
        )
        subprocess.run(
            [require_tool("qemu-img"), "check", "-f", "vmdk", interim],
            check=True,
            capture_output=True,
        )
        assert seen(interim) == model
        assert disks.check(interim)["clean"]
        with open_disk(interim, writable=True) as disk:
            data = rng.randbytes(70_000)
            offset = rng.randrange(SIZE - len(data))
            disk.pwrite(data, offset)
            model[offset : offset + len(data)] = data
    with open_disk(interim) as disk:
        assert disk.info()["chain"][0]["extents"][0]["version"] == 2  # type: ignore[typeddict-item]


def test_nothing_is_overwritten_unless_the_record_says_so(replica: Dir, tmp_path: Path) -> None:
    create_interim(replica, "web", "web.vmdk", SIZE)
    with open_disk(tmp_path / "web-interim.vmdk", writable=True) as disk:
        disk.pwrite(b"x", 0)
    with pytest.raises(ExistsError):
        create_interim(replica, "web", "web.vmdk", SIZE)
    assert seen(tmp_path / "web-interim.vmdk")[:1] == b"x"
    create_interim(replica, "web", "web.vmdk", SIZE, replace=True)
    assert seen(tmp_path / "web-interim.vmdk") == seen(tmp_path / "web.vmdk")
    replica.unlink(interim_name("web"))  # as a crash before the last step leaves it
    with pytest.raises(ExistsError):
        create_interim(replica, "web", "web.vmdk", SIZE)
    create_interim(replica, "web", "web.vmdk", SIZE, replace=True)
    assert seen(tmp_path / "web-interim.vmdk") == seen(tmp_path / "web.vmdk")


def test_removing_twice_happens_once(replica: Dir, tmp_path: Path) -> None:
    before = replica.list()
    descriptor, extent = interim_name("web"), delta_name(interim_name("web"))
    for left in ({descriptor, extent}, {extent}, set()):
        create_interim(replica, "web", "web.vmdk", SIZE, replace=True)
        for name in {descriptor, extent} - left:
            replica.unlink(name)
        remove_interim(replica, interim_name("web"))
        remove_interim(replica, interim_name("web"))
        assert replica.list() == before


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_failure_at_any_call_leaves_nothing(kind: str, replica: Dir, tmp_path: Path) -> None:
    for call in range(1, 400):
        try:
            dir = Io.fault(Io.posix(), call=call, os_errno=errno.ENOSPC).open_dir(str(tmp_path))
            create_interim(dir, "web", "web.vmdk", SIZE, kind=kind)
        except Error:
            assert names(replica) == []
        else:
            break
    assert call > 4
    assert seen(tmp_path / "web-interim.vmdk") == seen(tmp_path / "web.vmdk")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_interim_is_whole_or_not_there_after_a_power_cut(kind: str) -> None:
    """Made, dropped, made again in the place of what was left: at any cut of the power."""
    io = Io.simulate()
    size = 300 * 1024
    create_disk("/web.vmdk", "vmfs", size, io=io)
    with open_disk("/web.vmdk", writable=True, io=io) as disk:
        disk.pwrite(random.Random(5).randbytes(size), 0)
        content = disk.pread(size, 0)
    dir = io.open_dir("/")
    io.settle()
    create_interim(dir, "web", "web.vmdk", size, kind=kind)
    io.acknowledge(1)
    remove_interim(dir, interim_name("web"))
    io.acknowledge(2)
    create_interim(dir, "web", "web.vmdk", size, kind=kind, replace=True)
    io.acknowledge(3)
    wanted = {0: (False, True), 1: (True, False), 2: (False, True), 3: (True,)}
    seen = set()
    for state in io.crash_states(budget=1000, seed=20261122, garbage=False):
        last = state.acknowledged[-1] if state.acknowledged else 0
        left = state.io.open_dir("/")
        there = left.exists(interim_name("web"))
        seen.add((last, there))
        assert there in wanted[last], state.explain()
        if not there:
            create_interim(left, "web", "web.vmdk", size, kind=kind, replace=True)
        with open_disk("/web-interim.vmdk", io=state.io) as disk:
            assert disk.pread(size, 0) == content, state.explain()
        remove_interim(left, interim_name("web"))
        assert names(left) == []
    assert len(seen) == 7


def test_what_cannot_be_is_refused(replica: Dir) -> None:
    for arguments, kind in [
        (("web", "web.vmdk", SIZE + 512), UsageError),
        (("web", "missing.vmdk", SIZE), NotFoundError),
        (("web", "../web.vmdk", SIZE), UnsupportedError),
        (("a/b", "web.vmdk", SIZE), UsageError),
    ]:
        with pytest.raises(kind):
            create_interim(replica, *arguments)
    with pytest.raises(UsageError, match="kind"):
        create_interim(replica, "web", "web.vmdk", SIZE, kind="seSparse")
    assert names(replica) == []


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_interim_above_a_journal_shows_its_point_and_leaves_it_alone(
    kind: str, replica: Dir, tmp_path: Path
) -> None:
    base = tmp_path / "web.vmdk"
    names = create_journal(base, "web", segment_bytes=1 << 20)
    model = bytearray(seen(base))
    with open_journal(tmp_path / names.log, base, writable=True) as journal:
        rng = random.Random(4)
        for point in (1, 2):
            for _ in range(20):
                data = rng.randbytes(rng.randrange(1, 20_000))
                at = rng.randrange(SIZE - len(data))
                journal.disk.pwrite(data, at)
                if point == 1:
                    model[at : at + len(data)] = data
            journal.native.mark(point, point, POINT_CRASH)
        journal.native.commit()
        journal.native.roll(1)
    with pytest.raises(StateError, match="journal"):
        open_disk(tmp_path / names.descriptor, writable=True)
    log = (tmp_path / names.log).read_bytes()

    create_interim(replica, "web", names.descriptor, SIZE, kind=kind)
    interim = tmp_path / "web-interim.vmdk"
    assert seen(interim) == model
    with open_disk(interim, writable=True) as disk:
        disk.pwrite(b"x" * 5000, 12_345)
        model[12_345:17_345] = b"x" * 5000
    assert [link["type"] for link in disks.info(interim)["chain"]] == [
        KINDS[kind][0],
        "twoGbMaxExtentSparse",
        "vmfs",
    ]
    raw = tmp_path / "seen.raw"
    subprocess.run(
        [require_tool("qemu-img"), "convert", "-f", "vmdk", "-O", "raw", interim, raw], check=True
    )
    assert seen(interim) == raw.read_bytes() == model
    with pytest.raises(StateError, match="journal"):
        commit(interim)
    assert (tmp_path / names.log).read_bytes() == log
