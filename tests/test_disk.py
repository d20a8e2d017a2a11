"""Disks: other readers and writers see what we see, and files from strangers reach nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from conftest import require_tool
from rollpoint import disk as disks
from rollpoint import links
from rollpoint._native import RUN_DATA, Io, copy
from rollpoint.convert import convert
from rollpoint.create import NewDisk
from rollpoint.descriptor import Extent, parse
from rollpoint.descriptor_write import format_descriptor, new_descriptor
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import (
    DamagedError,
    Error,
    ExistsError,
    FormatError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    StateError,
    StorageError,
    UnsupportedError,
    UsageError,
)
from rollpoint.layouts import LAYOUTS

MIB = 1 << 20
# Sectors of a part. A sparse one that does not end with a grain is read wrong by
# qemu-img 7.2: what it says of the last grain's status reaches into the next part.
SPLIT = {"twoGbMaxExtentFlat": 4097, "twoGbMaxExtentSparse": 4096 + 128}
# what QEMU opens by these names
QEMU_TYPES = [
    "monolithicFlat",
    "monolithicSparse",
    "twoGbMaxExtentFlat",
    "twoGbMaxExtentSparse",
    "vmfs",
    "vmfsSparse",
]
# written at random
RANDOM = sorted(name for name, layout in LAYOUTS.items() if not layout.append_only)
SPARSE = ["monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse"]
IO = Io.order(Io.posix())  # stops the process when a write-ahead rule is broken
SEED = 20261122
SIZES = [512, 5 * MIB + 512, 8 * MIB]


def qemu(tool: str, *arguments: object) -> str:
    done = subprocess.run(
        [require_tool(tool), *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def seen_by_qemu(path: Path, format: str = "vmdk") -> bytes:
    target = path.with_name("seen-by-qemu.raw")
    qemu("qemu-img", "convert", "-f", format, "-O", "raw", path, target)
    data = target.read_bytes()
    target.unlink()
    return data


def seen_by_us(path: Path, **how: str) -> bytes:
    with open_disk(path, **how) as disk:
        return disk.pread(disk.size_bytes, 0)


def make(path: Path, type: str, size: int | None = None, parent: Path | None = None) -> Path:
    create_disk(
        str(path),
        type,
        size,
        parent=None if parent is None else str(parent),
        split_sectors=SPLIT.get(type),
        io=IO,
    )
    return path


def scribble(path: Path, model: bytearray, rng: random.Random, **how: str) -> None:
    """Random unaligned writes, zeroes and trims through us; the model follows."""
    with open_disk(path, writable=True, io=IO, **how) as disk:
        for _ in range(25):
            length = rng.choice([1, 511, 512, 4096, 65536, 100_000])
            length = min(length, len(model))
            offset = rng.randrange(len(model) - length + 1)
            if rng.random() < 0.7:
                data = rng.randbytes(length)
                disk.pwrite(data, offset)
            else:
                data = bytes(length)
                disk.zero(length, offset, may_trim=rng.random() < 0.5)
            model[offset : offset + length] = data
            if rng.random() < 0.1:
                disk.flush()


def scribble_by_qemu(path: Path, model: bytearray, rng: random.Random) -> None:
    commands: list[str] = []
    for _ in range(12):
        length = min(rng.choice([512, 4096, 65536, 99_840]), len(model))
        offset = rng.randrange((len(model) - length) // 512 + 1) * 512
        value = rng.randrange(256)
        commands += ["-c", f"write -P {value} {offset} {length}"]
        model[offset : offset + length] = bytes([value]) * length
    qemu("qemu-io", "-f", "vmdk", *commands, path)


# --- both ways, with QEMU ---


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("type", QEMU_TYPES)
def test_what_we_write_qemu_reads(type: str, size: int, tmp_path: Path) -> None:
    rng = random.Random(size)
    path, model = make(tmp_path / "a.vmdk", type, size), bytearray(size)
    assert seen_by_us(path) == model
    for _ in range(2):
        scribble(path, model, rng)
        assert seen_by_us(path) == model
    assert seen_by_qemu(path) == model
    assert disks.check(path) == {"findings": [], "clean": True}
    if type in SPARSE:
        qemu("qemu-img", "check", "-f", "vmdk", path)


@pytest.mark.parametrize("zeroed", ["on", "off"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "type", ["monolithicFlat", "monolithicSparse", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"]
)
def test_what_qemu_writes_we_read_and_write_on(
    type: str, size: int, zeroed: str, tmp_path: Path
) -> None:
    if zeroed == "on" and "Flat" in type:
        return
    rng = random.Random(size)
    path, model = tmp_path / "a.vmdk", bytearray(size)
    options = f"subformat={type},zeroed_grain={zeroed}"
    qemu("qemu-img", "create", "-q", "-f", "vmdk", "-o", options, path, size)
    scribble_by_qemu(path, model, rng)
    assert seen_by_us(path) == model
    scribble(path, model, rng)
    assert seen_by_us(path) == model
    assert seen_by_qemu(path) == model
    scribble_by_qemu(path, model, rng)
    assert seen_by_us(path) == model


@pytest.mark.parametrize("size", [5 * MIB + 512])
@pytest.mark.parametrize(
    "types",
    [
        ("monolithicFlat", "twoGbMaxExtentSparse", "monolithicSparse"),
        ("monolithicSparse", "monolithicSparse", "twoGbMaxExtentSparse"),
        ("twoGbMaxExtentFlat", "monolithicSparse", "vmfsSparse"),
        ("vmfs", "vmfsSparse", "vmfsSparse"),
    ],
    ids=lambda types: "-".join(types),
)
def test_a_chain_of_three_reads_the_same_in_qemu(
    types: tuple[str, str, str], size: int, tmp_path: Path
) -> None:
    rng = random.Random(3)
    model, path = bytearray(size), None
    names = ["base.vmdk", "middle.vmdk", "top.vmdk"]
    seen: list[tuple[Path, bytes]] = []
    for name, type in zip(names, types, strict=True):
        path = make(tmp_path / name, type, size if path is None else None, path)
        assert seen_by_us(path) == model
        scribble(path, model, rng)
        seen.append((path, bytes(model)))
    for path, content in seen:
        assert seen_by_us(path) == content
        assert seen_by_qemu(path) == content
        assert disks.check(path)["clean"]


def test_a_child_that_qemu_made_reads_through_our_base(tmp_path: Path) -> None:
    rng = random.Random(4)
    model = bytearray(4 * MIB)
    base = make(tmp_path / "base.vmdk", "twoGbMaxExtentSparse", len(model))
    scribble(base, model, rng)
    for number, type in enumerate(["monolithicSparse", "twoGbMaxExtentSparse"]):
        child, content = tmp_path / f"child{number}.vmdk", bytearray(model)
        subprocess.run(
            f"{require_tool('qemu-img')} create -q -f vmdk -b base.vmdk -F vmdk"
            f" -o subformat={type},zeroed_grain=on {child.name}",
            cwd=tmp_path,
            shell=True,
            check=True,
        )
        scribble_by_qemu(child, content, rng)
        assert seen_by_us(child) == content
        scribble(child, content, rng)
        assert seen_by_qemu(child) == content
    assert seen_by_us(base) == model


@pytest.mark.parametrize("type", sorted(set(RANDOM) - set(QEMU_TYPES) - {"raw"}))
def test_the_other_names_of_a_flat_vmfs_disk_work(type: str, tmp_path: Path) -> None:
    path, model = make(tmp_path / "a.vmdk", type, MIB), bytearray(MIB)
    scribble(path, model, random.Random(5))
    assert seen_by_us(path) == model
    assert (tmp_path / "a-flat.vmdk").read_bytes() == model


def test_a_raw_disk_is_only_opened_as_one_when_the_caller_says_so(tmp_path: Path) -> None:
    path, model = make(tmp_path / "a.img", "raw", MIB), bytearray(MIB)
    with pytest.raises(FormatError, match=r"a\.img") as caught:
        open_disk(path)
    assert "raw" in caught.value.hint
    scribble(path, model, random.Random(6), format="raw")
    assert seen_by_us(path, format="raw") == model == path.read_bytes()


def test_a_guest_cannot_turn_its_raw_disk_into_a_descriptor(tmp_path: Path) -> None:
    path = make(tmp_path / "a.img", "raw", MIB)
    evil = format_descriptor(
        new_descriptor("monolithicFlat", [Extent("RW", 1, "FLAT", "secret", 0)])
    )
    (tmp_path / "secret").write_bytes(b"s" * 512)
    with open_disk(path, writable=True, format="raw") as disk:
        disk.pwrite(evil, 0)
    assert seen_by_us(path, format="raw")[: len(evil)] == evil


def test_a_raw_disk_has_whole_sectors(tmp_path: Path) -> None:
    for content in (b"", b"x" * 513):
        (tmp_path / "a.img").write_bytes(content)
        with pytest.raises(FormatError, match="whole sectors"):
            open_disk(tmp_path / "a.img", format="raw")


# --- further readers ---


@pytest.mark.parametrize("type", [name for name in QEMU_TYPES if name != "vmfsSparse"])
def test_libvmdk_knows_what_we_write(type: str, tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", type, 8 * MIB)
    said = qemu("vmdkinfo", path)
    assert "8.0 MiB (8388608 bytes)" in said
    with open_disk(path) as disk:
        assert f"0x{disk.info()['cid']}" in said


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaks files
@pytest.mark.parametrize("type", QEMU_TYPES)
def test_dissect_reads_what_we_write(type: str, tmp_path: Path) -> None:
    from dissect.hypervisor.disk.vmdk import VMDK

    size = 640 * 8192  # dissect fails at the end of other sizes
    path, model = make(tmp_path / "a.vmdk", type, size), bytearray(size)
    scribble(path, model, random.Random(7))
    found = VMDK(path)
    try:
        # it ends early on parts that do not end on its own alignment
        stop = SPLIT.get(type, size // 512) * 512 // 8192 * 8192
        assert found.read(stop) == model[:stop]
    finally:
        for extent in found.disks:
            extent.fh.close()


# --- facts ---


def joined(entries: list[disks.MapEntry]) -> list[disks.MapEntry]:
    """Neighbours that go on from each other as one: QEMU cuts them at its tables."""
    out: list[disks.MapEntry] = []
    for entry in entries:
        last = out[-1] if out else None
        if last is not None:
            same = all(last.get(key) == entry.get(key) for key in entry if key not in PLACES)
            goes_on = last.get("offset", -1) + last["length"] == entry.get("offset")
            if same and (goes_on or ("offset" not in last and "offset" not in entry)):
                last["length"] += entry["length"]
                continue
        out.append(entry)
    return out


PLACES = ("start", "length", "offset")


@pytest.mark.parametrize("type", [*QEMU_TYPES, "raw"])
def test_the_map_is_that_of_qemu_img(type: str, tmp_path: Path) -> None:
    """The base of the type, and a child of it."""
    rng = random.Random(8)
    raw = {"format": "raw"} if type == "raw" else {}
    base = make(tmp_path / "base.vmdk", type, 9 * MIB)
    paths = [base] if raw else [base, tmp_path / "child.vmdk"]
    for path in paths:
        if path is not base:
            make(path, "monolithicSparse", None, base)
        with open_disk(path, writable=True, **raw) as disk:
            for at in (0, 3 * MIB, 7 * MIB + 512):
                disk.pwrite(rng.randbytes(70_000), at + 4096 * len(path.name))
        format = "raw" if raw else "vmdk"
        theirs = json.loads(qemu("qemu-img", "map", "--output=json", "-f", format, path))
        with open_disk(path, **raw) as disk:
            assert joined(list(disks.map_ranges(disk))) == joined(theirs)


def test_runs_cover_the_disk_without_gap_and_say_where_data_lies(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", "twoGbMaxExtentSparse", 5 * MIB + 512)
    scribble(path, bytearray(5 * MIB + 512), random.Random(9))
    at = 0
    with open_disk(path) as disk:
        for run in disk.runs():
            assert run.offset_bytes == at
            assert run.length_bytes >= 1
            if run.kind == RUN_DATA:
                assert run.file is not None
                with open(run.file, "rb") as file:
                    file.seek(run.file_offset_bytes)
                    assert file.read(run.length_bytes) == disk.pread(run.length_bytes, at)
            at += run.length_bytes
    assert at == 5 * MIB + 512


def test_info_names_each_link_and_extent(tmp_path: Path) -> None:
    base = make(tmp_path / "base.vmdk", "monolithicFlat", 5 * MIB)
    child = make(tmp_path / "child.vmdk", "twoGbMaxExtentSparse", parent=base)
    found = disks.info(child)
    assert (found["format"], found["type"]) == ("vmdk", "twoGbMaxExtentSparse")
    assert found["size_bytes"] == 5 * MIB
    assert [link["type"] for link in found["chain"]] == ["twoGbMaxExtentSparse", "monolithicFlat"]
    assert found["parent_cid"] == found["chain"][1]["cid"]
    assert found["chain"][0]["parent"] == "base.vmdk"
    names = [Path(extent["file"] or "").name for extent in found["chain"][0]["extents"]]
    assert names == ["child-s001.vmdk", "child-s002.vmdk", "child-s003.vmdk"]
    assert {extent["grain_bytes"] for extent in found["chain"][0]["extents"]} == {65536}
    assert found["chain"][1]["extents"][0]["sectors"] == 10240


# --- content ids ---


def cid_of(path: Path) -> str:
    return str(disks.info(path)["cid"])


@pytest.mark.parametrize("type", ["monolithicSparse", "monolithicFlat", "vmfsSparse"])
def test_the_content_id_changes_with_the_first_write_of_an_open(type: str, tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", type, MIB)
    seen = [cid_of(path)]
    with open_disk(path, writable=True) as disk:
        disk.pread(10, 0)
        disk.pwrite(b"", 0)
        disk.zero(0, 0)
        disk.flush()
    assert cid_of(path) == seen[0]
    with open_disk(path, writable=True) as disk:
        disk.pwrite(b"a", 0)
        seen.append(cid_of(path))
        disk.zero(1, 1)
        disk.pwrite(b"b", 2)
        assert cid_of(path) == seen[1]
    with open_disk(path, writable=True) as disk:
        disk.zero(1, 1)
    seen.append(cid_of(path))
    assert len(set(seen)) == 3
    with open_disk(path) as disk:
        descriptor = disk.links[0].descriptor
        assert descriptor is not None
        assert (descriptor.ddb_text("longContentID") or "").endswith(seen[2])
    assert f"CID={seen[2]}".encode() in path.read_bytes()


def test_a_descriptor_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", "vmfs", MIB)
    for mode in (0o640, 0o604):
        path.chmod(mode)
        with open_disk(path, writable=True) as disk:
            disk.pwrite(b"x", 0)
        assert path.stat().st_mode & 0o7777 == mode


def test_a_short_content_id_in_a_descriptor_inside_is_written_out(tmp_path: Path) -> None:
    """QEMU leaves out leading zeros, so the text grows by a change."""
    path = tmp_path / "a.vmdk"
    qemu("qemu-img", "create", "-q", "-f", "vmdk", path, MIB)
    data = bytearray(path.read_bytes())
    at = data.index(b"CID=")
    end = data.index(b"\n", at)
    tail = data.index(b"\0", at)
    data[at:tail] = (b"CID=5" + data[end:tail]).ljust(tail - at, b"\0")
    path.write_bytes(data)
    assert cid_of(path) == "00000005"
    model = bytearray(MIB)
    scribble(path, model, random.Random(10))
    assert len(cid_of(path)) == 8
    assert seen_by_qemu(path) == model


def test_what_qemu_leaves_behind_a_shorter_content_id_does_not_matter(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", "monolithicFlat", MIB)
    path.write_bytes(path.read_bytes() + b"\0" + b'"\n'.ljust(500, b"\0"))
    model = bytearray(MIB)
    scribble(path, model, random.Random(15))
    assert seen_by_us(path) == seen_by_qemu(path) == model
    assert b"\0" not in path.read_bytes()


def test_a_child_whose_parent_was_written_is_refused(tmp_path: Path) -> None:
    base = make(tmp_path / "base.vmdk", "vmfs", MIB)
    child = make(tmp_path / "child.vmdk", "vmfsSparse", parent=base)
    with open_disk(base, writable=True) as disk:
        disk.pwrite(b"x", 0)
    with pytest.raises(DamagedError, match=r"child\.vmdk was made above content id"):
        open_disk(child)
    found = disks.check(child)
    assert [finding["kind"] for finding in found["findings"]] == ["chain"]
    assert disks.info(child)["size_bytes"] == MIB


def test_links_have_one_size(tmp_path: Path) -> None:
    base = make(tmp_path / "base.vmdk", "vmfs", MIB)
    child = make(tmp_path / "child.vmdk", "vmfsSparse", parent=base)
    other = make(tmp_path / "other.vmdk", "vmfs", 2 * MIB)
    old, new = cid_of(base), cid_of(other)
    child.write_bytes(
        child.read_bytes().replace(b"base.vmdk", b"other.vmdk").replace(old.encode(), new.encode())
    )
    with pytest.raises(DamagedError, match=r"1048576 bytes.*2097152"):
        open_disk(child)


def test_stale_change_tracking_is_dropped_by_the_first_write(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", "vmfs", MIB)
    text = path.read_bytes().replace(b"version=1", b"version=3")
    title = b"# Change Tracking File\nchangeTrackPath=\"a-ctk.vmdk\"\n\n# The Disk"
    path.write_bytes(text.replace(b"# The Disk", title))
    with open_disk(path, writable=True) as disk:
        disk.pwrite(b"x", 0)
    found = parse(path.read_bytes(), "a.vmdk")
    assert (found.version, found.change_track_path) == (1, None)


# --- one writer, clean or not ---


@pytest.mark.parametrize("type", ["monolithicSparse", "twoGbMaxExtentFlat", "vmfsSparse"])
def test_there_is_one_writer(type: str, tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", type, 5 * MIB)
    with open_disk(path, writable=True) as disk:
        disk.pwrite(b"x", 0)  # replaces a descriptor, which must not let go of the lock
        with pytest.raises(LockedError):
            open_disk(path, writable=True)
        assert seen_by_us(path)[:1] in (b"x", b"\0")
    open_disk(path, writable=True).close()


def test_an_exception_that_somebody_keeps_keeps_no_lock(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", "monolithicSparse", MIB)
    with pytest.raises(UsageError) as kept, open_disk(path, writable=True) as disk:
        disk.pwrite(b"x", MIB)
    open_disk(path, writable=True).close()
    del kept


@pytest.mark.parametrize("type", SPARSE)
def test_an_exception_leaves_the_disk_as_a_crash_would(type: str, tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", type, MIB)
    with contextlib.suppress(RuntimeError), open_disk(path, writable=True) as disk:
        disk.pwrite(b"x" * 70_000, 0)
        disk.flush()
        disk.pwrite(b"y" * 70_000, 500_000)
        raise RuntimeError
    kinds = {finding["kind"] for finding in disks.check(path)["findings"]}
    assert "unclean" in kinds
    assert disks.info(path)["chain"][0]["extents"][0]["unclean"]  # type: ignore[typeddict-item]
    assert seen_by_us(path)[:70_000] == b"x" * 70_000
    with open_disk(path, writable=True) as disk:
        disk.pwrite(b"z", 0)
    assert "unclean" not in {finding["kind"] for finding in disks.check(path)["findings"]}


def test_a_disk_opened_to_read_is_not_written(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", "monolithicSparse", MIB)
    before = path.read_bytes()
    with open_disk(path) as disk:
        assert disk.read_only
        for write in (lambda: disk.pwrite(b"x", 0), lambda: disk.zero(1, 0)):
            with pytest.raises(ReadOnlyError):
                write()
        with pytest.raises(UsageError):
            disk.pread(1, MIB)
    assert path.read_bytes() == before
    with pytest.raises(StateError, match="closed"):
        disk.pread(1, 0)


@pytest.mark.parametrize("type", ["monolithicFlat", "monolithicSparse"])
def test_a_snapshot_takes_writes_and_keeps_none(type: str, tmp_path: Path) -> None:
    rng = random.Random(11)
    model = bytearray(2 * MIB)
    path = make(tmp_path / "a.vmdk", type, len(model))
    scribble(path, model, rng)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    content = bytearray(model)
    with disks.open_snapshot(path, scratch_dir=str(scratch)) as disk:
        for _ in range(20):
            data = rng.randbytes(rng.randrange(1, 9000))
            at = rng.randrange(len(model) - len(data))
            disk.pwrite(data, at)
            content[at : at + len(data)] = data
        disk.zero(100_000, 200_000)
        content[200_000:300_000] = bytes(100_000)
        disk.flush()
        assert disk.pread(len(model), 0) == content
        assert list(scratch.iterdir()) == []
    scratch.rmdir()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_a_journal_is_not_opened_for_writing(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", "twoGbMaxExtentSparse", 5 * MIB)
    with open(tmp_path / "a-s001.vmdk", "r+b") as file:
        file.seek(8192)
        file.write(b"RPJOURN1")
    with pytest.raises(StateError, match="journal"):
        open_disk(path, writable=True)


# --- creating ---


@pytest.mark.parametrize("type", ["streamOptimized", "seSparse"])
def test_a_disk_that_is_written_once_is_filled_by_a_copy(type: str, tmp_path: Path) -> None:
    data = random.Random(SEED).randbytes(MIB) + bytes(MIB) + b"end." * 128
    (tmp_path / "a.raw").write_bytes(data)
    dir = Io.posix().open_dir(str(tmp_path))
    with open_disk(tmp_path / "a.raw", format="raw") as disk:
        with NewDisk(dir, "a.vmdk", type, len(data)) as new:
            with pytest.raises(StateError, match="written once"):
                new.pwrite(b"x", 0)
            sink = new.sink()
            with pytest.raises(StateError, match="has been written"):
                new.sink()
            copy(disk.reading, sink)
            new.publish()
            with pytest.raises(StateError, match="has been written"):
                new.sink()
        assert seen_by_us(tmp_path / "a.vmdk") == data
        assert seen_by_qemu(tmp_path / "a.vmdk") == data
        with pytest.raises(ReadOnlyError, match="written only once"):
            open_disk(tmp_path / "a.vmdk", writable=True)
        before = sorted(tmp_path.iterdir())
        with NewDisk(dir, "b.vmdk", type, len(data)) as left:
            copy(disk.reading, left.sink())
        assert sorted(tmp_path.iterdir()) == before
        with pytest.raises(UsageError, match="cannot have a parent"):
            make(tmp_path / "c.vmdk", type, parent=tmp_path / "a.vmdk")
        make(tmp_path / "d.vmdk", "monolithicSparse", parent=tmp_path / "a.vmdk")
        scribble(tmp_path / "d.vmdk", bytearray(data), random.Random(SEED))
        assert seen_by_us(tmp_path / "a.vmdk") == data


def test_what_is_stored_and_how_small_is_chosen_by_the_level(tmp_path: Path) -> None:
    text = "".join(f"line {number * number} of a text\n" for number in range(60_000))
    data = text.encode()[:MIB]
    (tmp_path / "a.raw").write_bytes(data)
    sizes = []
    for level in (0, 1, 6, 12, None):
        path = tmp_path / f"{level}.vmdk"
        convert(
            tmp_path / "a.raw", path, "streamOptimized", source_format="raw", compress_level=level
        )
        assert seen_by_us(path) == data
        sizes.append(path.stat().st_size)
    assert sizes[0] > MIB > sizes[1] > sizes[2] >= sizes[3]
    assert sizes[4] == sizes[2]
    for level in (-1, 13):
        with pytest.raises(UsageError, match="no compression level"):
            convert(tmp_path / "a.raw", tmp_path / "b.vmdk", "streamOptimized",
                    source_format="raw", compress_level=level)  # fmt: skip


@pytest.mark.parametrize("type", ["vmfsThick", "vmfsPreallocated", "vmfsEagerZeroedThick"])
def test_a_thick_disk_has_its_space_when_it_is_made(type: str, tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", type, 8 * MIB)
    assert disks.info(path)["allocated_bytes"] >= 8 * MIB
    assert disks.info(make(tmp_path / "thin.vmdk", "vmfs", 8 * MIB))["allocated_bytes"] < MIB
    with pytest.raises(StorageError, match=r"large|No space"):
        create_disk(str(tmp_path / "b.vmdk"), type, 1 << 61)
    assert not list(tmp_path.glob("b*"))


@pytest.mark.parametrize("type", sorted(LAYOUTS))
def test_nothing_is_overwritten(type: str, tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", type, 5 * MIB)
    made = sorted(entry.name for entry in tmp_path.iterdir())
    for name in made:
        for other in tmp_path.iterdir():
            other.unlink()
        (tmp_path / name).write_bytes(b"precious")
        with pytest.raises(ExistsError):
            make(path, type, 5 * MIB)
        assert [entry.name for entry in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("type", "size", "more", "says"),
    [
        ("vdi", MIB, {}, "take one of"),
        ("raw", 0, {}, "multiple of 512"),
        ("raw", 1000, {}, "multiple of 512"),
        ("vmfs", -512, {}, "multiple of 512"),
        ("vmfs", 1 << 62, {}, "smaller"),
        ("vmfsSparse", 1 << 41, {}, "twoGbMaxExtentSparse"),
        ("seSparse", (62 << 40) + 512, {}, "smaller"),
        ("twoGbMaxExtentFlat", 1 << 50, {}, "type of one file"),
        ("vmfs", MIB, {"grain_bytes": 65536}, "leave the grain"),
        ("seSparse", MIB, {"grain_bytes": 65536}, "leave the grain"),
        ("streamOptimized", MIB, {"grain_bytes": 2048}, "from 4096"),
        ("monolithicSparse", MIB, {"grain_bytes": 1000}, "power of two"),
        ("monolithicSparse", MIB, {"grain_bytes": 2 * MIB}, "power of two"),
        ("monolithicSparse", MIB, {"grain_bytes": 0}, "power of two"),
        ("monolithicSparse", MIB, {"adapter": "nvme"}, "lsilogic"),
        ("vmfs", None, {}, "give a size"),
    ],
)
def test_a_disk_that_cannot_be_is_refused(
    type: str, size: int | None, more: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        create_disk(str(tmp_path / "a.vmdk"), type, size, **more)  # type: ignore[arg-type]
    assert says in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_cannot_be_is_refused(tmp_path: Path) -> None:
    base = make(tmp_path / "base.vmdk", "vmfs", MIB)
    (tmp_path / "else").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for path, type, size in [
        (tmp_path / "a.vmdk", "vmfs", None),
        (tmp_path / "a.vmdk", "vmfsSparse", 2 * MIB),
        (tmp_path / "else" / "a.vmdk", "vmfsSparse", None),
    ]:
        with pytest.raises(UsageError):
            make(path, type, size, base)
    with pytest.raises(NotFoundError):
        make(tmp_path / "a.vmdk", "vmfsSparse", None, tmp_path / "missing.vmdk")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ['a"b.vmdk', "a\nb.vmdk"])
def test_a_name_that_a_descriptor_cannot_hold_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        make(tmp_path / name, "vmfs", MIB)
    assert list(tmp_path.iterdir()) == []


def test_large_disks_are_split_as_workstation_does(tmp_path: Path) -> None:
    create_disk(str(tmp_path / "s.vmdk"), "twoGbMaxExtentSparse", 5 << 30)
    create_disk(str(tmp_path / "f.vmdk"), "twoGbMaxExtentFlat", 5 << 30)
    for name, part in (("s", 4192256), ("f", 4193792)):
        extents = disks.info(tmp_path / f"{name}.vmdk")["chain"][0]["extents"]
        assert [extent["sectors"] for extent in extents] == [part, part, 10485760 - 2 * part]
        assert Path(extents[2]["file"] or "").name == f"{name}-{name}003.vmdk"


@pytest.mark.parametrize("type", ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_parts_need_not_end_with_a_grain(type: str, tmp_path: Path) -> None:
    path, model = tmp_path / "a.vmdk", bytearray(SIZES[1])
    create_disk(str(path), type, len(model), split_sectors=4097)
    scribble(path, model, random.Random(14))
    assert seen_by_us(path) == model


def test_an_empty_disk_of_two_tebibytes_takes_no_space(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    create_disk(str(path), "monolithicSparse", 2 << 40)
    assert disks.info(path)["allocated_bytes"] < 64 * MIB
    with open_disk(path, writable=True) as disk:
        disk.pwrite(b"end", (2 << 40) - 3)
    with open_disk(path) as disk:
        assert disk.pread(4, (2 << 40) - 4) == b"\0end"


def test_a_failure_at_any_call_leaves_nothing(tmp_path: Path) -> None:
    """Every call to storage fails in turn, as on a full file system."""
    for type in (*SPARSE, "streamOptimized", "seSparse", "vmfs", "vmfsThick", "raw"):
        for call in range(1, 400):
            folder = tmp_path / f"{type}{call}"
            folder.mkdir()
            io = Io.fault(Io.posix(), call=call, os_errno=errno.ENOSPC)
            try:
                create_disk(str(folder / "a.vmdk"), type, 3 * MIB, split_sectors=4096, io=io)
            except Error:
                assert list(folder.iterdir()) == []
            else:
                break
        else:
            raise AssertionError("it never succeeds")
        assert call > 4
        assert seen_by_us(folder / "a.vmdk", **({"format": "raw"} if type == "raw" else {}))


# --- power cuts ---

@pytest.mark.parametrize("type", [*SPARSE, "streamOptimized", "seSparse", "vmfs", "vmfsThick"])
def test_a_disk_is_there_whole_or_not_at_all_after_a_power_cut(type: str) -> None:
    io = Io.simulate()
    size = 200 * 1024 + 512
    create_disk("/a.vmdk", type, size, split_sectors=256, grain_bytes=None, io=io)
    io.acknowledge(1)
    seen: dict[bool, int] = {False: 0, True: 0}
    for state in io.crash_states(budget=400, seed=SEED, garbage=False):
        there = state.io.open_dir("/").exists("a.vmdk")
        assert there or not state.acknowledged, state.explain()
        seen[there] += 1
        if there:
            with open_disk("/a.vmdk", io=state.io) as disk:
                assert disk.pread(size, 0) == bytes(size), state.explain()
            assert disks.check("/a.vmdk", io=state.io)["clean"], state.explain()
    assert all(seen.values())


@pytest.mark.parametrize("type", ["monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse", "vmfs"])
def test_what_was_flushed_is_there_after_a_power_cut(type: str) -> None:
    """Each sector is as before or after a write that no flush covers, else as written."""
    io = Io.simulate()
    size = 96 * 1024
    grain = None if type == "vmfs" else 4096
    create_disk("/a.vmdk", type, size, grain_bytes=grain, io=io)
    old_cid = disks.info("/a.vmdk", io=io)["cid"]
    io.settle()
    rng = random.Random(SEED)
    model, steps = bytearray(size), [bytes(size)]
    with open_disk("/a.vmdk", writable=True, io=io) as disk:
        for number in range(1, 6):
            data = rng.randbytes(rng.randrange(1, 6000))
            at = rng.randrange(size - len(data))
            disk.pwrite(data, at)
            model[at : at + len(data)] = data
            steps.append(bytes(model))
            disk.flush()
            io.acknowledge(number)
    count = 0
    for state in io.crash_states(budget=600, seed=SEED, garbage=False):
        count += 1
        last = state.acknowledged[-1] if state.acknowledged else 0
        after = steps[min(last + 1, len(steps) - 1)]
        with open_disk("/a.vmdk", io=state.io) as disk:
            found = disk.pread(size, 0)
            if found != bytes(size):
                assert disk.info()["cid"] != old_cid, state.explain()
        for at in range(0, size, 512):
            part = slice(at, at + 512)
            assert found[part] in (steps[last][part], after[part]), state.explain()
    assert count >= 100


# --- what strangers may hand us ---


def plant(folder: Path, *lines: str, type: str = "monolithicFlat", more: str = "") -> Path:
    path = folder / "evil.vmdk"
    text = f'# Disk DescriptorFile\nversion=1\nCID=1\ncreateType="{type}"\n{more}'
    if "parentCID" not in more:
        text += "parentCID=ffffffff\n"
    path.write_text(text + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def jail(tmp_path: Path) -> Path:
    """A directory beside a secret that no descriptor in it may reach."""
    (tmp_path / "secret").write_bytes(b"s" * MIB)
    (tmp_path / "jail").mkdir()
    return tmp_path / "jail"


@pytest.mark.parametrize(
    "name", ["../secret", "{up}/secret", "./../secret", "x/../../secret", ".."]
)
@pytest.mark.parametrize("writable", [False, True])
def test_an_extent_outside_the_directory_is_refused(
    name: str, writable: bool, jail: Path
) -> None:
    path = plant(jail, f'RW 1 FLAT "{name.format(up=jail.parent)}" 0')
    with pytest.raises(UnsupportedError, match=r"evil\.vmdk"):
        open_disk(path, writable=writable)
    assert (jail.parent / "secret").read_bytes() == b"s" * MIB


@pytest.mark.parametrize("writable", [False, True])
def test_a_symbolic_link_as_an_extent_is_refused(writable: bool, jail: Path) -> None:
    (jail / "a-flat.vmdk").symlink_to("../secret")
    path = plant(jail, 'RW 1 FLAT "a-flat.vmdk" 0')
    with pytest.raises(UnsupportedError, match="symbolic link"):
        open_disk(path, writable=writable)


def test_other_things_than_files_are_refused(jail: Path) -> None:
    os.mkfifo(jail / "fifo")
    (jail / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(FormatError, match="not a regular file"):
            open_disk(plant(jail, f'RW 1 FLAT "{name}" 0'))
        with pytest.raises(FormatError, match="not a regular file"):
            open_disk(jail / name)


@pytest.mark.parametrize("hint", ["../secret", "{up}/secret", "x/y.vmdk", "C:\\vm\\base.vmdk"])
def test_a_parent_outside_the_directory_is_refused(hint: str, jail: Path) -> None:
    make(jail / "a.vmdk", "monolithicFlat", 512)
    more = f'parentCID=2\nparentFileNameHint="{hint.format(up=jail.parent)}"\n'
    path = plant(jail, 'RW 1 FLAT "a-flat.vmdk" 0', more=more)
    with pytest.raises(UnsupportedError, match="parent"):
        open_disk(path)


def test_a_parent_that_is_a_symbolic_link_is_refused(jail: Path) -> None:
    make(jail.parent / "base.vmdk", "monolithicFlat", 512)
    make(jail / "a.vmdk", "monolithicFlat", 512)
    (jail / "base.vmdk").symlink_to("../base.vmdk")
    more = 'parentCID=2\nparentFileNameHint="base.vmdk"\n'
    with pytest.raises(UnsupportedError, match="symbolic link"):
        open_disk(plant(jail, 'RW 1 FLAT "a-flat.vmdk" 0', more=more))


def test_an_allowed_directory_is_reached_and_no_other(jail: Path) -> None:
    (jail.parent / "bases").mkdir()
    base = make(jail.parent / "bases" / "base.vmdk", "monolithicFlat", MIB)
    model = bytearray(MIB)
    scribble(base, model, random.Random(12))
    make(jail / "child.vmdk", "monolithicSparse", MIB)
    for hint in ("../bases/base.vmdk", str(base)):
        child = plant(
            jail,
            f'RW {MIB // 512} SPARSE "child.vmdk"',
            type="twoGbMaxExtentSparse",
            more=f'parentCID={cid_of(base)}\nparentFileNameHint="{hint}"\n',
        )
        with pytest.raises(UnsupportedError):
            open_disk(child)
        with pytest.raises(UnsupportedError, match="outside"):
            open_disk(child, allow_root=str(jail))
        with open_disk(child, allow_root=str(jail.parent)) as disk:
            assert disk.pread(MIB, 0) == model


def test_a_chain_in_a_circle_is_refused(tmp_path: Path) -> None:
    for name, parent in (("a", "a"), ("b", "c"), ("c", "b")):
        make(tmp_path / f"{name}.vmdk", "vmfs", 512)
        path = tmp_path / f"{name}.vmdk"
        more = f'parentCID=1\nparentFileNameHint="{parent}.vmdk"\n'
        path.write_text(
            f'version=1\nCID=1\ncreateType="vmfs"\n{more}RW 1 VMFS "{name}-flat.vmdk"\n'
        )
    for name in ("a", "b"):
        with pytest.raises(FormatError, match="again"):
            open_disk(tmp_path / f"{name}.vmdk")


def test_a_chain_has_at_most_so_many_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "LINKS_MAX", 64)
    path = make(tmp_path / "0.vmdk", "monolithicFlat", 512)
    for number in range(1, 64):
        path = make(tmp_path / f"{number}.vmdk", "vmfsSparse", parent=path)
    assert len(disks.info(path)["chain"]) == 64
    top = make(tmp_path / "64.vmdk", "vmfsSparse", parent=path)
    with pytest.raises(FormatError, match="64 links"):
        open_disk(top)


def test_a_disk_that_is_made_of_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="itself"):
        open_disk(plant(tmp_path, 'RW 1 FLAT "evil.vmdk" 0'))


def test_two_extents_on_the_same_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(2048))
    with pytest.raises(FormatError, match="also an extent"):
        open_disk(plant(tmp_path, 'RW 2 FLAT "x" 0', 'RW 2 FLAT "x" 1'))
    path = plant(tmp_path, 'RW 2 FLAT "x" 2', 'RW 2 FLAT "x" 0')
    with open_disk(path, writable=True) as disk:
        disk.pwrite(b"a" * 1024 + b"b" * 1024, 0)
    assert (tmp_path / "x").read_bytes() == b"b" * 1024 + b"a" * 1024


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(1023))
    for line in ('RW 2 FLAT "x" 0', 'RW 1 FLAT "x" 1', 'RW 1 FLAT "x" 9007199254740993'):
        with pytest.raises(DamagedError, match="says"):
            open_disk(plant(tmp_path, line))


def test_a_header_that_contradicts_the_descriptor_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vmdk", "twoGbMaxExtentSparse", 2 * MIB)
    text = path.read_text()
    for sectors in (4096 - 128, 4096 + 1, 1):
        path.write_text(text.replace("RW 4096 ", f"RW {sectors} "))
        with pytest.raises(DamagedError, match="header says 4096"):
            open_disk(path)
    text = text.replace("twoGbMaxExtentSparse", "vmfsSparse").replace("SPARSE", "VMFSSPARSE")
    path.write_text(text)
    with pytest.raises(FormatError, match="VMFSSPARSE"):
        open_disk(path)


@pytest.mark.parametrize(
    ("type", "line", "more"),
    [
        ("vmfsRDM", 'RW 1 VMFSRDM "x"', ""),
        ("vmfsPassthroughRawDeviceMap", 'RW 1 VMFSRDM "x"', ""),
        ("vmfsRaw", 'RW 1 VMFSRAW "/dev/sda"', ""),
        ("fullDevice", 'RW 1 FLAT "/dev/sda" 0', ""),
        ("partitionedDevice", 'RW 1 FLAT "x" 0', ""),
        ("custom", 'RW 1 VMFSRDM "x"', ""),
        ("custom", 'RW 1 VMFSRAW "x"', ""),
        ("vmfs", 'RW 1 VMFS "vsan://5c5d/x"', ""),
        ("vmfs", 'RW 1 VMFS "vvol://5c5d/x"', ""),
        ("vsanSparse", 'RW 1 VMFS "x"', ""),
        ("vmfs", 'RW 1 SESPARSE "x"', ""),
        ("monolithicFlat", 'RW 1 FLAT "x" 0', 'encryptionKeys="vmware:key/list/x"\n'),
        ("monolithicFlat", 'RW 1 FLAT "x" 0', 'keyID="x"\n'),
        ("monolithicFlat", 'RW 1 FLAT "x" 0', 'keySafe = "vmware:key/list/x"\n'),
        ("vmfs", 'RW 1 VMFS "x"', 'ddb.iofilters = "vmwarevmcrypt"\n'),
        (
            "monolithicFlat",
            'RW 1 FLAT "x" 0',
            'isNativeSnapshot="yes"\nparentCID=2\nparentFileNameHint="p.vmdk"\n',
        ),
    ],
)
def test_what_is_not_read_is_refused_with_a_reason(
    type: str, line: str, more: str, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(bytes(512))
    with pytest.raises(UnsupportedError, match=r"evil\.vmdk") as caught:
        open_disk(plant(tmp_path, line, type=type, more=more))
    assert caught.value.hint


def test_extents_that_are_zeros_or_read_only_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 512)
    path = plant(tmp_path, 'RDONLY 1 FLAT "x" 0', "RW 2 ZERO", 'RW 1 FLAT "y" 0')
    (tmp_path / "y").write_bytes(b"y" * 512)
    assert seen_by_us(path) == b"x" * 512 + bytes(1024) + b"y" * 512
    with pytest.raises(ReadOnlyError, match="RDONLY"):
        open_disk(path, writable=True)


def test_single_extents_are_told_from_disks(tmp_path: Path) -> None:
    make(tmp_path / "a.vmdk", "twoGbMaxExtentSparse", MIB)
    make(tmp_path / "b.vmdk", "vmfsSparse", MIB)
    (tmp_path / "ctk.vmdk").write_bytes(bytes.fromhex("a27219f6") + bytes(508))
    (tmp_path / "se.vmdk").write_bytes(bytes.fromhex("bebafeca00000000") + bytes(504))
    for name in ("a-s001", "b-delta", "ctk", "se"):
        with pytest.raises(FormatError, match="not a disk"):
            open_disk(tmp_path / f"{name}.vmdk")


@pytest.mark.parametrize("size", [0, 1, 3, 11, 511])
@pytest.mark.parametrize("magic", [b"KDMV", b"COWD", b"version=1\n", bytes.fromhex("bebafeca")])
def test_a_stub_of_a_file_is_refused(magic: bytes, size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    path.write_bytes(magic.ljust(512, b"\0")[:size])
    with pytest.raises(Error, match=r"a\.vmdk"):
        open_disk(path)


def test_a_path_that_is_no_file_says_so(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.vmdk", tmp_path / "missing" / "a.vmdk"):
        with pytest.raises(NotFoundError, match="missing"):
            open_disk(path)
    with pytest.raises(Error):
        open_disk(f"{tmp_path}/")
    with pytest.raises(UsageError):
        open_disk(tmp_path, format="qcow2")


def test_a_link_to_a_disk_is_followed_to_where_its_files_are(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path = make(tmp_path / "real" / "a.vmdk", "monolithicFlat", MIB)
    link = tmp_path / "link.vmdk"
    link.symlink_to("real/a.vmdk")
    model = bytearray(MIB)
    scribble(link, model, random.Random(13))
    assert link.is_symlink()
    assert seen_by_us(path) == model
