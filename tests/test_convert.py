"""Converting, comparing, committing: nothing is lost, nothing half-made stays."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import require_tool
from rollpoint import disk as disks
from rollpoint._native import OPEN_WRITE, Io
from rollpoint.convert import Comparison, commit, compare, convert
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import (
    DamagedError,
    Error,
    ExistsError,
    LockedError,
    NotFoundError,
    StateError,
    UnsupportedError,
    UsageError,
)
from rollpoint.layouts import LAYOUTS

MIB = 1 << 20
SEED = 20261122
SIZE = 5 * MIB + 512


def fill(path: Path, seed: int, **how: str) -> bytes:
    """Some data, some zeros that are written as data; returns what the disk shows then."""
    rng = random.Random(seed)
    with open_disk(path, writable=True, **how) as disk:
        for _ in range(8):
            data = rng.randbytes(rng.randrange(1, 200_000))
            disk.pwrite(data, rng.randrange(disk.size_bytes - len(data)))
        disk.pwrite(bytes(300_000), rng.randrange(disk.size_bytes - 300_000))
        disk.zero(100_000, rng.randrange(disk.size_bytes - 100_000))
        return disk.pread(disk.size_bytes, 0)


def seen(path: Path, **how: str) -> bytes:
    with open_disk(path, **how) as disk:
        return disk.pread(disk.size_bytes, 0)


def chain(folder: Path, types: tuple[str, ...] = ("vmfs", "vmfsSparse")) -> list[Path]:
    """A base and children, each written; the top one last."""
    paths: list[Path] = []
    for number, type in enumerate(types):
        path = folder / f"{number}.vmdk"
        create_disk(
            str(path),
            type,
            None if paths else SIZE,
            parent=str(paths[-1]) if paths else None,
            split_sectors=4096 + 128 if "twoGb" in type else None,
        )
        fill(path, number)
        paths.append(path)
    return paths


# --- convert ---


@pytest.mark.parametrize("to", sorted(LAYOUTS))
def test_a_chain_becomes_a_disk_of_any_type(to: str, tmp_path: Path) -> None:
    source = chain(tmp_path)[-1]
    content = seen(source)
    target = tmp_path / "target.vmdk"
    told: list[tuple[int, int]] = []
    convert(source, target, to, progress=lambda done, total: told.append((done, total)))
    raw = {"format": "raw"} if to == "raw" else {}
    assert seen(target, **raw) == content
    assert told[-1] == (SIZE, SIZE)
    assert told == sorted(told)
    assert disks.check(target, **raw)["clean"]
    if to in ("raw", "monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse"):
        qemu_img, format = require_tool("qemu-img"), "raw" if to == "raw" else "vmdk"
        command = [qemu_img, "compare", "-f", format, "-F", "vmdk", target, source]
        subprocess.run(command, check=True, capture_output=True)


def test_raw_becomes_vmdk_and_back(tmp_path: Path) -> None:
    raw, middle, back = (tmp_path / name for name in ("a.raw", "b.vmdk", "c.raw"))
    raw.write_bytes(random.Random(1).randbytes(SIZE))
    convert(raw, middle, "twoGbMaxExtentSparse", source_format="raw", grain_bytes=4096)
    convert(middle, back, "raw")
    assert back.read_bytes() == raw.read_bytes()


def test_zeros_take_no_space_in_the_target(tmp_path: Path) -> None:
    raw = tmp_path / "a.raw"
    raw.write_bytes(bytes(8 * MIB) + b"x" + bytes(8 * MIB - 1))
    for to in ("monolithicSparse", "vmfs", "raw", "vmfsSparse"):
        target = tmp_path / f"{to}.vmdk"
        convert(raw, target, to, source_format="raw")
        found = disks.info(target, format="raw" if to == "raw" else None)
        assert found["allocated_bytes"] <= 300_000, to


@pytest.mark.parametrize("to", ["raw", "twoGbMaxExtentSparse", "vmfs"])
def test_a_target_that_is_left_to_the_kernel_holds_the_same(to: str, tmp_path: Path) -> None:
    source = chain(tmp_path)[-1]
    convert(source, tmp_path / "a.vmdk", to, sync=False)
    raw = {"format": "raw"} if to == "raw" else {}
    assert seen(tmp_path / "a.vmdk", **raw) == seen(source)
    assert disks.check(tmp_path / "a.vmdk", **raw)["clean"]
    with pytest.raises(ExistsError):
        convert(source, tmp_path / "a.vmdk", to, sync=False)


def test_a_target_that_exists_is_kept(tmp_path: Path) -> None:
    source = chain(tmp_path)[0]
    (tmp_path / "target.vmdk").write_bytes(b"precious")
    with pytest.raises(ExistsError):
        convert(source, tmp_path / "target.vmdk", "vmfs")
    with pytest.raises(ExistsError):
        convert(source, source, "vmfs")
    assert (tmp_path / "target.vmdk").read_bytes() == b"precious"


@pytest.mark.parametrize("to", ["monolithicSparse", "twoGbMaxExtentFlat"])
def test_a_conversion_that_stops_leaves_nothing(to: str, tmp_path: Path) -> None:
    source = chain(tmp_path)[-1]
    before = sorted(tmp_path.iterdir())

    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert not (tmp_path / "target.vmdk").exists()  # seen by nobody until it is whole
        raise StopError

    with pytest.raises(StopError):
        convert(source, tmp_path / "target.vmdk", to, progress=stop)
    with pytest.raises(UsageError):
        convert(source, tmp_path / "target.vmdk", "vdi")
    assert sorted(tmp_path.iterdir()) == before


FEW = 400_000  # bytes of memory: chunks of 64 KiB, so that small disks have several


@pytest.mark.parametrize("to", ["raw", "vmfsSparse", "streamOptimized", "seSparse"])
def test_a_conversion_can_be_stopped_at_each_word_of_its_progress(to: str, tmp_path: Path) -> None:
    source = chain(tmp_path)[-1]
    before = sorted(tmp_path.iterdir())

    def run(last: int) -> int:
        """Convert, and stop at a call of progress; how often it was called."""
        calls = 0

        def tell(_done: int, _total: int) -> None:
            nonlocal calls
            calls += 1
            if calls == last:
                raise KeyboardInterrupt

        convert(source, tmp_path / "b", to, workers=1, memory_bytes=FEW, progress=tell, sync=False)
        return calls

    calls = run(0)
    assert calls > 3
    for path in set(tmp_path.iterdir()) - set(before):
        path.unlink()
    for last in range(1, calls + 1):
        with pytest.raises(KeyboardInterrupt):
            run(last)
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize(
    "to", ["monolithicSparse", "vmfsSparse", "vmfs", "streamOptimized", "seSparse"]
)
def test_a_conversion_that_fails_at_any_call_leaves_nothing(
    to: str, workers: int, tmp_path: Path
) -> None:
    raw = tmp_path / "a.raw"
    raw.write_bytes(random.Random(2).randbytes(200_192))
    folder = tmp_path / to
    folder.mkdir()
    for call in range(1, 200):
        io = Io.fault(Io.posix(), call=call, os_errno=errno.ENOSPC)
        try:
            convert(
                raw,
                folder / "a.vmdk",
                to,
                source_format="raw",
                io=io,
                workers=workers,
                memory_bytes=FEW,
            )
        except Error:
            assert list(folder.iterdir()) == []
        else:
            assert seen(folder / "a.vmdk") == raw.read_bytes()
            assert call > 10
            break
    else:
        raise AssertionError("it never succeeds")


@pytest.mark.parametrize("workers", [1, 4])
def test_a_source_that_is_damaged_stops_a_conversion(workers: int, tmp_path: Path) -> None:
    source = chain(tmp_path, ("monolithicSparse",))[0]
    with open(source, "r+b") as file:
        file.truncate(source.stat().st_size - 65536)  # the grain that was made last
    before = sorted(tmp_path.iterdir())
    for to in ("raw", "streamOptimized", "monolithicSparse"):
        with pytest.raises(DamagedError):
            convert(source, tmp_path / "b", to, workers=workers, memory_bytes=FEW)
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("seed", range(8))
def test_a_copy_of_any_layout_holds_the_same_bytes(seed: int, tmp_path: Path) -> None:
    """Holes, zeros that are data, and data, at random; chunks and workers of all numbers."""
    rng = random.Random(seed)
    size = rng.randrange(1, 6000) * 512
    content = bytearray(size)
    create_disk(str(tmp_path / "a.vmdk"), "twoGbMaxExtentSparse", size, split_sectors=1408)
    with open_disk(tmp_path / "a.vmdk", writable=True) as disk:
        for _ in range(rng.randrange(12)):
            start = rng.randrange(size)
            data = rng.choice((bytes, rng.randbytes))(
                rng.randrange(1, min(size - start, 300_000) + 1)
            )
            disk.pwrite(data, start)
            content[start : start + len(data)] = data
    for to in rng.sample(sorted(LAYOUTS), 4):
        target = tmp_path / f"{to}.vmdk"
        workers, memory = rng.randrange(5), rng.choice((0, 1, FEW, 3_000_000))
        convert(tmp_path / "a.vmdk", target, to, workers=workers, memory_bytes=memory, sync=False)
        raw = {"format": "raw"} if to == "raw" else {}
        assert seen(target, **raw) == content, (to, workers, memory)
        assert disks.check(target, **raw)["clean"], to
        assert compare(tmp_path / "a.vmdk", target, b_format=raw.get("format")).equal


@pytest.mark.parametrize("to", ["monolithicSparse", "twoGbMaxExtentSparse", "raw"])
def test_a_conversion_is_there_whole_or_not_at_all_after_a_power_cut(to: str) -> None:
    io = Io.simulate()
    create_disk("/a.raw", "raw", 100_352, io=io)
    with open_disk("/a.raw", format="raw", writable=True, io=io) as disk:
        disk.pwrite(random.Random(3).randbytes(50_000), 30_000)
        content = disk.pread(100_352, 0)
    io.settle()
    convert("/a.raw", "/b", to, source_format="raw", io=io)
    io.acknowledge(1)
    seen: dict[bool, int] = {False: 0, True: 0}
    for state in io.crash_states(budget=400, seed=SEED, garbage=False):
        there = state.io.open_dir("/").exists("b")
        assert there or not state.acknowledged, state.explain()
        seen[there] += 1
        if there:
            with open_disk("/b", io=state.io, format="raw" if to == "raw" else None) as disk:
                assert disk.pread(disk.size_bytes, 0) == content, state.explain()
    assert all(seen.values())


# --- compare ---


def test_equal_disks_of_different_types_compare_equal(tmp_path: Path) -> None:
    source = chain(tmp_path)[-1]
    convert(source, tmp_path / "a.vmdk", "monolithicSparse")
    convert(source, tmp_path / "b.raw", "raw")
    assert compare(source, tmp_path / "a.vmdk") == Comparison(True, None, "")
    assert compare(tmp_path / "b.raw", source, a_format="raw") == Comparison(True, None, "")


@pytest.mark.parametrize("seed", range(6))
def test_the_first_difference_is_found(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    a, b = bytearray(rng.randbytes(300_032)), bytearray()
    a[100_000:200_000] = bytes(100_000)
    b[:] = a
    at = rng.randrange(len(a))
    b[at] ^= 1
    for after in rng.sample(range(at, len(a)), 3):
        b[after] ^= 1 if after != at else 0
    (tmp_path / "a").write_bytes(a)
    (tmp_path / "b").write_bytes(b)
    convert(tmp_path / "a", tmp_path / "a.vmdk", "vmfsSparse", source_format="raw")
    assert compare(tmp_path / "a.vmdk", tmp_path / "b", b_format="raw") == Comparison(
        False, at, "data"
    )


def test_sizes_are_compared_after_what_they_share(tmp_path: Path) -> None:
    create_disk(str(tmp_path / "a.vmdk"), "vmfs", MIB)
    create_disk(str(tmp_path / "b.vmdk"), "monolithicSparse", 2 * MIB)
    assert compare(tmp_path / "a.vmdk", tmp_path / "b.vmdk") == Comparison(False, MIB, "size")


def test_holes_of_both_disks_are_not_read(tmp_path: Path) -> None:
    """Two disks of a tebibyte: reading them would take longer than anybody waits."""
    for name in ("a", "b"):
        create_disk(str(tmp_path / f"{name}.vmdk"), "monolithicSparse", 1 << 40)
    with open_disk(tmp_path / "b.vmdk", writable=True) as disk:
        disk.pwrite(b"x", (1 << 39) + 5)
    found = compare(tmp_path / "a.vmdk", tmp_path / "b.vmdk")
    assert found == Comparison(False, (1 << 39) + 5, "data")


# --- commit ---

CHAINS = [
    ("vmfs", "vmfsSparse"),
    ("monolithicSparse", "twoGbMaxExtentSparse"),
    ("twoGbMaxExtentFlat", "monolithicSparse"),
    ("monolithicFlat", "twoGbMaxExtentSparse", "monolithicSparse"),
    ("monolithicSparse", "monolithicSparse", "vmfsSparse"),
]


@pytest.mark.parametrize("types", CHAINS, ids="-".join)
def test_a_commit_moves_the_childs_data_into_its_parent(
    types: tuple[str, ...], tmp_path: Path
) -> None:
    *_, parent, child = paths = chain(tmp_path, types)
    content, base = seen(child), seen(paths[0])
    cids = [disks.info(path)["cid"] for path in paths]
    assert commit(child) == str(parent)
    assert seen(parent) == seen(child) == content
    if len(paths) == 3:
        assert seen(paths[0]) == base
    for path in paths:
        assert disks.check(path)["clean"]
    assert disks.info(parent)["cid"] not in cids
    assert b"rollpoint.commit" not in child.read_bytes()
    fill(child, 9)  # the child can be written on, and committed again
    content = seen(child)
    commit(child)
    assert seen(parent) == content


def test_what_the_child_made_zero_is_zero_in_the_parent(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vmdk", tmp_path / "child.vmdk"
    create_disk(str(base), "vmfs", MIB)
    with open_disk(base, writable=True) as disk:
        disk.pwrite(b"x" * MIB, 0)
    create_disk(str(child), "twoGbMaxExtentSparse", parent=str(base), zero_grains=True)
    with open_disk(child, writable=True) as disk:
        disk.zero(MIB // 2, 1000)
    commit(child)
    assert seen(base) == b"x" * 1000 + bytes(MIB // 2) + b"x" * (MIB // 2 - 1000)


def test_zeros_in_the_childs_data_give_space_back_in_the_parent(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vmdk", tmp_path / "child.vmdk"
    create_disk(str(base), "monolithicFlat", 4 * MIB)
    with open_disk(base, writable=True) as disk:
        disk.pwrite(b"x" * (4 * MIB), 0)
    create_disk(str(child), "monolithicSparse", parent=str(base))
    with open_disk(child, writable=True) as disk:
        disk.pwrite(bytes(3 * MIB), MIB)
    commit(child)
    assert seen(base) == b"x" * MIB + bytes(3 * MIB)
    assert disks.info(base)["allocated_bytes"] < 2 * MIB


def test_other_children_are_refused_after_a_commit(tmp_path: Path) -> None:
    base, child = chain(tmp_path)
    create_disk(str(tmp_path / "other.vmdk"), "vmfsSparse", parent=str(base))
    commit(child)
    with pytest.raises(DamagedError, match="other"):
        open_disk(tmp_path / "other.vmdk")


@pytest.mark.parametrize("types", CHAINS[:3], ids="-".join)
def test_a_commit_that_fails_anywhere_can_be_asked_for_again(
    types: tuple[str, ...], tmp_path: Path
) -> None:
    """Every call fails in turn, and all after it; then it is asked for again."""
    (tmp_path / "new").mkdir()
    content = seen(chain(tmp_path / "new", types)[-1])
    for call in [*range(8, 48, 2), *random.Random(5).sample(range(48, 200), 5)]:
        folder = tmp_path / str(call)
        shutil.copytree(tmp_path / "new", folder)
        *_, parent, child = [folder / f"{number}.vmdk" for number in range(len(types))]
        io = Io.fault(Io.posix(), call=call, os_errno=errno.EIO, sticky=True)
        try:
            commit(child, io=io)
        except Error:
            try:
                shown, hint = seen(child), ""
            except DamagedError as refused:
                shown, hint = content, refused.hint
            assert shown == content
            assert hint == "" or "rollpoint disk commit" in hint
            commit(child)
        assert seen(parent) == seen(child) == content
        assert b"rollpoint.commit" not in child.read_bytes()
        findings = disks.check(parent)["findings"] + disks.check(child)["findings"]
        assert {finding["kind"] for finding in findings} <= {"leak"}, f"call {call}"


@pytest.mark.parametrize(
    ("base", "top"),
    [("vmfs", "vmfsSparse"), ("monolithicSparse", "monolithicSparse")],
    ids=["text", "inside"],
)
@pytest.mark.parametrize("straddle", [0, 10, 30])
def test_a_commit_can_be_asked_for_again_after_a_power_cut(
    base: str, top: str, straddle: int
) -> None:
    """The child reads the same at every cut, or its refusal says what to do.

    straddle: bytes of the child's note that lie in the sector before its rest.
    """
    io = Io.simulate()
    size, rng = 64 * 1024, random.Random(4)
    for path, type, above in (("/base.vmdk", base, None), ("/child.vmdk", top, "/base.vmdk")):
        grain = None if type == "vmfs" else 4096
        create_disk(path, type, None if above else size, parent=above, grain_bytes=grain, io=io)
        with open_disk(path, writable=True, io=io) as disk:
            for _ in range(3):
                disk.pwrite(rng.randbytes(9000), rng.randrange(size - 9000))
            content = disk.pread(size, 0)
    if top == "monolithicSparse" and straddle:
        file = io.open_dir("/").open("child.vmdk", OPEN_WRITE)
        text = file.pread(20 * 512, 512).rstrip(b"\0") + b'ddb.comment = "'
        length = -(-(len(text) + 2 + straddle) // 512) * 512 - straddle
        file.pwrite(text.ljust(length - 2, b"x") + b'"\n', 512)
        file.close()
    io.settle()
    commit("/child.vmdk", io=io)
    io.acknowledge(1)
    refused = 0
    for state in io.crash_states(budget=500, seed=SEED, garbage=False):
        try:
            with open_disk("/child.vmdk", io=state.io) as disk:
                assert disk.pread(size, 0) == content, state.explain()
        except DamagedError as error:
            refused += 1
            hint = error.hint
            assert "rollpoint disk commit" in hint, state.explain()
        if not state.acknowledged:
            commit("/child.vmdk", io=state.io)
        for path in ("/base.vmdk", "/child.vmdk"):
            with open_disk(path, io=state.io) as disk:
                assert disk.pread(size, 0) == content, state.explain()
    assert refused > 0


def test_a_commit_that_cannot_be_is_refused(tmp_path: Path) -> None:
    base, child = chain(tmp_path)
    with pytest.raises(UsageError, match="no parent"):
        commit(base)
    with pytest.raises(NotFoundError):
        commit(tmp_path / "missing.vmdk")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for path in (base, child):
        with open_disk(path, writable=True), pytest.raises(LockedError):
            commit(child)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_commit_into_a_journal_is_refused(tmp_path: Path) -> None:
    journal, child = chain(tmp_path, ("twoGbMaxExtentSparse", "vmfsSparse"))
    with open(tmp_path / "0-s001.vmdk", "r+b") as file:
        file.seek(4096)
        file.write(b"RPJOURN1")
    before = journal.read_bytes(), child.read_bytes()
    with pytest.raises(StateError, match="journal"):
        commit(child)
    assert (journal.read_bytes(), child.read_bytes()) == before


def test_a_descriptor_without_room_for_the_note_is_left_alone(tmp_path: Path) -> None:
    base = tmp_path / "base.vmdk"
    child = tmp_path / "child.vmdk"
    create_disk(str(base), "vmfs", SIZE)
    create_disk(str(child), "monolithicSparse", parent=str(base))
    room = slice(512, 512 * 21)
    data = bytearray(child.read_bytes())
    text = bytes(data[room]).rstrip(b"\0") + b'ddb.comment = "'
    data[room] = text.ljust(512 * 20 - 20, b"x") + b'"\n'.ljust(20, b"\0")
    child.write_bytes(data)
    before = base.read_bytes()
    with pytest.raises(UnsupportedError, match="no room"):
        commit(child)
    assert (base.read_bytes(), child.read_bytes()) == (before, data)
    assert seen(child) == bytes(SIZE)
