"""Compressed streams: every dialect read as it was meant, and what is wrong with one said."""

from __future__ import annotations

import random
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
import rollpoint
from conftest import require_tool
from extents import DATA, HOLE, ZEROS, Extent, content, folder, noise, open_chain, runs
from rollpoint import _native, errors
from rollpoint._native import Chain, Dir
from rollpoint.layouts import COMPRESS_LEVEL
from streams import DIALECTS, SECTOR, Dialect, descriptor, make_stream, seeds

__all__ = ["folder"]

STREAM = _native.EXTENT_STREAM
GRAIN = 64 * 1024
BY_NAME = {how.name: how for how in DIALECTS}


def words(seed: int, length: int) -> bytes:
    rng = random.Random(seed)
    some = [rng.randbytes(rng.randrange(2, 9)).hex() for _ in range(500)]
    return " ".join(rng.choices(some, k=length // 6)).encode()[:length].ljust(length, b".")


def disk(size: int, seed: int = 1) -> bytes:
    """Words, noise that grows by compression, holes; its end is not zero."""
    rng = random.Random(seed)
    data = bytearray(size)
    for start in range(0, size, GRAIN):
        length = min(GRAIN, size - start)
        kind = rng.randrange(4)
        if kind == 0:
            data[start : start + length] = noise(seed + start, length)
        elif kind == 1:
            data[start : start + length] = words(seed + start, length)
        elif kind == 2:
            data[start + length // 2] = 1
    data[-1] = 0x5A
    return bytes(data)


def put(folder: Dir, name: str, blob: bytes) -> None:
    folder.open(name, _native.OPEN_WRITE | _native.OPEN_CREATE | _native.OPEN_TRUNCATE).pwrite(
        blob, 0
    )


def open_stream(folder: Dir, blob: bytes, sectors: int) -> Chain:
    put(folder, "stream", blob)
    return open_chain(folder, [Extent(STREAM, sectors, "stream")])


# ---- every dialect ----


@pytest.mark.parametrize("how", DIALECTS, ids=str)
@pytest.mark.parametrize("size", [512, 20 * GRAIN - 512, 33 * GRAIN])
def test_every_dialect_reads_as_its_data(folder: Dir, how: Dialect, size: int) -> None:
    data = disk(size)
    chain = open_stream(folder, make_stream(how, data), size // SECTOR)
    assert content(chain) == data
    info = _native.sparse_info(folder.open("stream"))
    assert info["kind"] == STREAM
    assert info["capacity_sectors"] == size // SECTOR


@pytest.mark.parametrize("grain", [1, 8, 16, 128, 2048])
def test_every_grain_size_and_many_tables(folder: Dir, grain: int) -> None:
    size = (300 if grain <= 128 else 20) * grain * SECTOR
    rng = random.Random(grain)
    data = bytearray(size)
    for _ in range(60):
        at = rng.randrange(size - 3000)
        data[at : at + 3000] = rng.randbytes(3000)
    for how in (BY_NAME["ovftool"], BY_NAME["qemu"]):
        blob = make_stream(how, bytes(data), grain_sectors=grain, entries=128)
        assert content(open_stream(folder, blob, size // SECTOR)) == data


@pytest.mark.parametrize(
    "used",
    [[0], [511], [7, 400], [0, 1, 2, 511], [512], [511, 512], [1535], list(range(0, 1536, 3))],
    ids=str,
)
def test_a_grain_is_found_wherever_it_stands_in_its_table(folder: Dir, used: list[int]) -> None:
    data = bytearray(1536 * 512)
    for number in used:
        data[number * 512 : (number + 1) * 512] = struct.pack("<I", number + 1) * 128
    blob = make_stream(BY_NAME["VirtualBox"], bytes(data), grain_sectors=1)
    chain = open_stream(folder, blob, 1536)
    assert content(chain) == data
    assert [at // 512 for at, _, kind, _ in runs(chain) if kind == DATA] == [
        number for number in used if number - 1 not in used
    ]


def test_small_reads_at_random_give_the_same_bytes(folder: Dir) -> None:
    data = disk(40 * GRAIN + 1024, seed=4)
    blob = make_stream(BY_NAME["VirtualBox"], data)
    chain = open_stream(folder, blob, len(data) // SECTOR)
    rng = random.Random(5)
    for _ in range(600):
        at = rng.randrange(len(data))
        length = min(rng.choice([1, 512, 4096, 70_000, 200_000]), len(data) - at)
        assert chain.pread(length, at) == data[at : at + length], (at, length)


def test_a_descriptor_may_show_less_than_the_header_has(folder: Dir) -> None:
    data = disk(3 * GRAIN)
    sectors = len(data) // SECTOR - 100
    chain = open_stream(folder, make_stream(BY_NAME["VirtualBox"], data), sectors)
    assert content(chain) == data[: sectors * SECTOR]
    with pytest.raises(errors.DamagedError, match="sectors, its header"):
        open_stream(folder, make_stream(BY_NAME["VirtualBox"], data), len(data) // SECTOR + 1)


def test_the_map_tells_holes_zeros_and_data(folder: Dir) -> None:
    data = bytearray(8 * GRAIN)
    data[GRAIN] = data[2 * GRAIN] = data[5 * GRAIN] = 1
    for how in (BY_NAME["version 2"], BY_NAME["qemu"], BY_NAME["open-vmdk"]):
        blob = make_stream(how, bytes(data), zeroed=frozenset([4]))
        chain = open_stream(folder, blob, len(data) // SECTOR)
        found = [(at // GRAIN, length // GRAIN, kind) for at, length, kind, _ in runs(chain)]
        assert found == [
            (0, 1, HOLE), (1, 2, DATA), (3, 1, HOLE), (4, 1, ZEROS), (5, 1, DATA), (6, 2, HOLE),
        ]  # fmt: skip
        assert content(chain) == data


def test_a_stream_can_be_a_child(folder: Dir) -> None:
    base = disk(10 * GRAIN, seed=8)
    top = bytearray(10 * GRAIN)
    top[3 * GRAIN : 4 * GRAIN] = noise(9, GRAIN)
    how = BY_NAME["ovftool"]
    blob = make_stream(how, bytes(top), zeroed=frozenset([6]), parent=(1, "base.vmdk"))
    put(folder, "child", blob)
    put(folder, "base", make_stream(BY_NAME["qemu"], base))
    sectors = len(base) // SECTOR
    chain = open_chain(
        folder, [Extent(STREAM, sectors, "child")], [Extent(STREAM, sectors, "base")]
    )
    wanted = bytearray(base)
    wanted[3 * GRAIN : 4 * GRAIN] = top[3 * GRAIN : 4 * GRAIN]
    wanted[6 * GRAIN : 7 * GRAIN] = bytes(GRAIN)
    assert content(chain) == wanted


def test_a_stream_is_never_opened_for_writing(folder: Dir) -> None:
    put(folder, "stream", make_stream(BY_NAME["qemu"], disk(GRAIN)))
    with pytest.raises(errors.Error, match="written once"):
        open_chain(folder, [Extent(STREAM, 128, "stream")], writable=True)


def test_seeds_for_fuzzing_are_small_and_sound(folder: Dir) -> None:
    for name, blob in seeds().items():
        assert len(blob) < 8192, name
        put(folder, name, blob)
        assert content(open_chain(folder, [Extent(STREAM, 28, name)]))[9000:9010] == b"some words"


@pytest.mark.parametrize("how", DIALECTS, ids=str)
def test_every_dialect_opens_as_a_disk(tmp_path: Path, how: Dialect) -> None:
    """Whatever its createType says, and whatever file its extent line names."""
    data = disk(9 * GRAIN + 512)
    (tmp_path / "disk.vmdk").write_bytes(make_stream(how, data))
    with rollpoint.open_disk(tmp_path / "disk.vmdk") as opened:
        assert opened.size_bytes == len(data)
        assert bytes(opened.pread(len(data), 0)) == data
    with pytest.raises(errors.Error, match="written only once"):
        rollpoint.open_disk(tmp_path / "disk.vmdk", writable=True)


# ---- what is wrong with one ----


def sector_of(blob: bytes, grain: int, entries: int = 512) -> tuple[int, int]:
    """(place of its table entry, sector) of a grain in a stream with its directory in front."""
    (directory,) = struct.unpack_from("<Q", blob, 56)
    (table,) = struct.unpack_from("<I", blob, directory * SECTOR + grain // entries * 4)
    place = table * SECTOR + grain % entries * 4
    return place, struct.unpack_from("<I", blob, place)[0]


DATA_OF_FOUR = b"".join(words(n, GRAIN) for n in (1, 2, 3, 4))


def damaged(folder: Dir, blob: bytes | bytearray, match: str) -> None:
    with pytest.raises((errors.DamagedError, errors.UnsupportedError), match=match) as caught:
        content(open_stream(folder, bytes(blob), len(DATA_OF_FOUR) // SECTOR))
    assert "stream" in str(caught.value)


def test_a_marker_has_to_name_its_grain(folder: Dir) -> None:
    blob = bytearray(make_stream(BY_NAME["vdiskmanager"], DATA_OF_FOUR))
    _, sector = sector_of(blob, 2)
    struct.pack_into("<Q", blob, sector * SECTOR, 128)
    damaged(folder, blob, f"should be at byte {sector * SECTOR}, and its marker there says")


@pytest.mark.parametrize(
    ("size", "match"),
    [
        (0, "has no data"),
        (2 * GRAIN + 1, "more than there can be"),
        (2 * GRAIN, "and the file at byte"),
        (10, "does not inflate"),
    ],
)
def test_the_size_in_a_marker_is_not_believed(folder: Dir, size: int, match: str) -> None:
    blob = bytearray(make_stream(BY_NAME["vdiskmanager"], DATA_OF_FOUR))
    _, sector = sector_of(blob, 2)
    struct.pack_into("<I", blob, sector * SECTOR + 8, size)
    damaged(folder, blob, match)


@pytest.mark.parametrize(
    ("inside", "match"),
    [(b"x" * (GRAIN + 1), "more than a grain"), (b"x" * (GRAIN - 1), "inflates to 65535 bytes")],
)
def test_a_grain_inflates_to_a_grain(folder: Dir, inside: bytes, match: str) -> None:
    blob = bytearray(make_stream(BY_NAME["vdiskmanager"], DATA_OF_FOUR))
    _, sector = sector_of(blob, 2)
    squeezed = zlib.compress(inside)
    struct.pack_into("<I", blob, sector * SECTOR + 8, len(squeezed))
    start = sector * SECTOR + 12
    blob[start : start + len(squeezed)] = squeezed
    damaged(folder, blob, match)


def test_a_flipped_bit_in_the_data_is_found(folder: Dir) -> None:
    blob = bytearray(make_stream(BY_NAME["vdiskmanager"], DATA_OF_FOUR))
    _, sector = sector_of(blob, 2)
    blob[sector * SECTOR + 30] ^= 4
    damaged(folder, blob, "does not inflate")


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (1, "inside the descriptor"),
        (0xFFFFFFFF, "is damaged or was cut short"),
        (25, "its marker there says"),
    ],
)
def test_an_entry_has_to_point_at_a_grain(folder: Dir, entry: int, match: str) -> None:
    blob = bytearray(make_stream(BY_NAME["vdiskmanager"], DATA_OF_FOUR))
    place, _ = sector_of(blob, 1)
    struct.pack_into("<I", blob, place, entry)
    damaged(folder, blob, match)


@pytest.mark.parametrize("sector", [1, 0xFFFFFFFF])
def test_a_table_has_to_lie_in_the_file(folder: Dir, sector: int) -> None:
    blob = bytearray(make_stream(BY_NAME["vdiskmanager"], DATA_OF_FOUR))
    (directory,) = struct.unpack_from("<Q", blob, 56)
    struct.pack_into("<I", blob, directory * SECTOR, sector)
    damaged(folder, blob, "a grain table should be at sector")


@pytest.mark.parametrize("how", DIALECTS, ids=str)
def test_a_stream_cut_short_anywhere_is_never_read_as_whole(folder: Dir, how: Dialect) -> None:
    blob = make_stream(how, DATA_OF_FOUR)
    end = len(blob) - how.padding_bytes
    if how.name in ("qemu", "vdiskmanager", "open-vmdk", "no markers"):
        end = max(sector_of(blob, n)[1] for n in range(4)) * SECTOR + 30
    elif how.directory == "end":
        end -= 3 * SECTOR  # the rest is a copy of what the header says
    for cut in [*range(600, end, 1777), end - SECTOR, end - 1]:
        damaged(folder, blob[:cut], "cut short")


@pytest.mark.parametrize(
    ("offset", "form", "value", "what"),
    [
        (4, "<I", 2, "version"),
        (8, "<I", 0x30005, "flags"),
        (12, "<Q", 511, "capacity"),
        (20, "<Q", 64, "grain size"),
        (28, "<Q", 2, "place of the descriptor"),
        (36, "<Q", 3, "size of the descriptor"),
        (44, "<I", 256, "size of a grain table"),
        (77, "<H", 0, "compression"),
    ],
)
def test_header_and_footer_have_to_agree(
    folder: Dir, offset: int, form: str, value: int, what: str
) -> None:
    for name in ("VirtualBox", "older converter"):
        blob = bytearray(make_stream(BY_NAME[name], DATA_OF_FOUR))
        struct.pack_into(form, blob, len(blob) - 2 * SECTOR + offset, value)
        damaged(folder, blob, f"header and its footer disagree on the {what}")


def test_two_directories_are_one_too_many(folder: Dir) -> None:
    blob = bytearray(make_stream(BY_NAME["older converter"], DATA_OF_FOUR))
    struct.pack_into("<Q", blob, len(blob) - 2 * SECTOR + 56, 25)
    damaged(folder, blob, "disagree on the place of the grain directory")
    blob = bytearray(make_stream(BY_NAME["VirtualBox"], DATA_OF_FOUR))
    struct.pack_into("<Q", blob, len(blob) - 2 * SECTOR + 56, 2**64 - 1)
    damaged(folder, blob, "does not say where the grain directory is")


@pytest.mark.parametrize(
    ("offset", "form", "value", "match"),
    [
        (4, "<I", 4, "version 4"),
        (4, "<I", 0, "version 0"),
        (8, "<I", 0x70001, "unknown"),
        (12, "<Q", 0, "capacity of 0"),
        (12, "<Q", 2**63, "capacity of"),
        (12, "<Q", 2**42, "at most|cut short"),
        (20, "<Q", 0, "no power of two"),
        (20, "<Q", 100, "no power of two"),
        (20, "<Q", 4096, "at most"),
        (36, "<Q", 2**40, "the descriptor is at sector"),
        (44, "<I", 0, "grain tables of 0"),
        (56, "<Q", 0, "the grain directory is at sector 0"),
        (56, "<Q", 2**40, "the grain directory is at sector"),
        (73, "<I", 0x0A0A0A0A, "text mode"),
        (77, "<H", 2, "compression algorithm 2"),
    ],
)
def test_a_header_is_not_believed(
    folder: Dir, offset: int, form: str, value: int, match: str
) -> None:
    blob = bytearray(make_stream(BY_NAME["vdiskmanager"], DATA_OF_FOUR))
    struct.pack_into(form, blob, offset, value)
    damaged(folder, blob, match)


def test_junk_behind_the_end_is_no_padding(folder: Dir) -> None:
    blob = make_stream(BY_NAME["VirtualBox"], DATA_OF_FOUR)
    damaged(folder, blob + b"x" * SECTOR, "cut short")
    damaged(folder, blob + bytes(1200 * 1024), "cut short")


# ---- what we write ----

LEVELS = [0, 1, 6, 12]


def text_of(sectors: int) -> bytes:
    how = Dialect("ours", "footer", descriptor_sectors=20)
    return descriptor(how, sectors)


def write_stream(
    folder: Dir, name: str, data: bytes, level: int = 6, grain_sectors: int = 128
) -> Extent:
    sectors = len(data) // SECTOR
    put(folder, "source", data)
    source = open_chain(folder, [Extent(_native.EXTENT_FLAT, sectors, "source")])
    target = folder.open(
        name, _native.OPEN_WRITE | _native.OPEN_CREATE | _native.OPEN_TRUNCATE
    )
    sink = _native.stream_sink(
        target, capacity_sectors=sectors, grain_sectors=grain_sectors,
        descriptor=text_of(sectors), descriptor_sectors=20, level=level,
    )  # fmt: skip
    _native.copy(source, sink)
    return Extent(STREAM, sectors, name)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [512, 64 * 1024 - 512, 40 * GRAIN, 520 * GRAIN + 512])
def test_what_we_write_reads_back_and_checks_clean(
    tmp_path: Path, folder: Dir, size: int, level: int
) -> None:
    if size > 500 * GRAIN and level == 12:
        level = 2  # the slowest one has had its turn
    data = disk(size, seed=size + level)
    extent = write_stream(folder, "made", data, level)
    assert content(open_chain(folder, [extent])) == data
    qemu_img("convert", "-f", "vmdk", "-O", "raw", tmp_path / "made", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == data
    qemu_img("check", "-f", "vmdk", tmp_path / "made")


def test_an_empty_disk_is_a_stream_too(tmp_path: Path, folder: Dir) -> None:
    data = bytes(100 * GRAIN)
    extent = write_stream(folder, "made", data)
    assert content(open_chain(folder, [extent])) == data
    assert (tmp_path / "made").stat().st_size < 70_000
    qemu_img("convert", "-f", "vmdk", "-O", "raw", tmp_path / "made", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == data


@pytest.mark.parametrize("grain_sectors", [8, 16, 1024, 2048])
def test_other_grains_are_written_too(tmp_path: Path, folder: Dir, grain_sectors: int) -> None:
    data = disk(70 * GRAIN, seed=grain_sectors)
    extent = write_stream(folder, "made", data, 1, grain_sectors)
    assert content(open_chain(folder, [extent])) == data
    qemu_img("convert", "-f", "vmdk", "-O", "raw", tmp_path / "made", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == data


def test_what_we_write_can_be_walked_by_its_markers_alone(tmp_path: Path, folder: Dir) -> None:
    """As a reader does that cannot seek: by the specification, without the directory."""
    data = bytearray(disk(1100 * GRAIN))
    data[30 * GRAIN : 500 * GRAIN] = bytes(470 * GRAIN)
    data[512 * GRAIN : 1050 * GRAIN] = bytes(538 * GRAIN)  # table 1 is empty
    write_stream(folder, "made", bytes(data))
    blob = (tmp_path / "made").read_bytes()
    found, tables, at, last = bytearray(len(data)), [], 128 * SECTOR, -1
    in_table: dict[int, int] = {}
    while True:
        value, size, kind = struct.unpack_from("<QII", blob, at)
        if size:
            assert value > last, "grains rise"
            last = value
            found[value * SECTOR : value * SECTOR + GRAIN] = zlib.decompress(
                blob[at + 12 : at + 12 + size]
            )
            in_table[value // 128] = at // SECTOR
            at += -(-(12 + size) // SECTOR) * SECTOR
            continue
        assert blob[at + 16 : at + SECTOR] == bytes(SECTOR - 16)
        if kind == 1:
            assert value == 4
            table = struct.unpack_from("<512I", blob, at + SECTOR)
            first = next(iter(in_table)) // 512 * 512
            assert dict(enumerate(table, first)) == {
                number: in_table.get(number, 0) for number in range(first, first + 512)
            }
            in_table = {}
            tables.append(at // SECTOR + 1)
        elif kind == 2:
            directory = at // SECTOR + 1
            assert struct.unpack_from("<3I", blob, at + SECTOR) == (tables[0], 0, tables[1])
        elif kind == 3:
            footer = blob[at + SECTOR : at + 2 * SECTOR]
            assert footer[:56] + footer[64:] == blob[:56] + blob[64:SECTOR]
            assert struct.unpack_from("<Q", footer, 56) == (directory,)
            assert struct.unpack_from("<Q", blob, 56) == (2**64 - 1,)
        else:
            assert (kind, value) == (0, 0)
            break
        at += (1 + value) * SECTOR
    assert found == data
    assert at + SECTOR == len(blob)


def test_the_usual_level_makes_no_more_than_qemu(tmp_path: Path, folder: Dir) -> None:
    """Grains of words and of noise, and grains of both."""
    parts = [words(n, GRAIN + 4096) + noise(n, GRAIN - 8192) for n in range(24)]
    data = b"".join(parts).ljust(64 * GRAIN, b"\0")
    write_stream(folder, "made", data, COMPRESS_LEVEL)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized",
             tmp_path / "source", tmp_path / "theirs")  # fmt: skip
    assert (tmp_path / "made").stat().st_size <= (tmp_path / "theirs").stat().st_size


def test_the_same_disk_makes_the_same_file(tmp_path: Path, folder: Dir) -> None:
    """Whatever the number of workers: place alone decides what goes where."""
    data = disk(100 * GRAIN, seed=3)
    write_stream(folder, "made", data)
    posix = _native.Io.posix().open_dir(str(tmp_path))
    for workers in (1, 4):
        source = open_chain(posix, [Extent(_native.EXTENT_FLAT, len(data) // SECTOR, "source")])
        target = posix.open(f"made-{workers}", _native.OPEN_WRITE | _native.OPEN_CREATE)
        sink = _native.stream_sink(
            target, capacity_sectors=len(data) // SECTOR, grain_sectors=128,
            descriptor=text_of(len(data) // SECTOR), descriptor_sectors=20, level=6,
        )  # fmt: skip
        _native.copy(source, sink, workers=workers)
        assert (tmp_path / f"made-{workers}").read_bytes() == (tmp_path / "made").read_bytes()


# ---- beside others ----


def test_libvmdk_and_dissect_read_what_we_write(tmp_path: Path, folder: Dir) -> None:
    from dissect.hypervisor.disk.vmdk import VMDK

    data = disk(80 * GRAIN, seed=12)
    # libvmdk looks for the file that the descriptor names
    write_stream(folder, "somewhere-else.vmdk", data)
    with (tmp_path / "somewhere-else.vmdk").open("rb") as file:
        assert VMDK(file).read(len(data)) == data
    done = subprocess.run(
        [require_tool("vmdkinfo"), "somewhere-else.vmdk"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Stream optimized" in done.stdout


def qemu_img(*arguments: str | Path) -> str:
    done = subprocess.run(
        [require_tool("qemu-img"), *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("size", [512, 64 * 1024 - 512, 40 * GRAIN + 512])
@pytest.mark.parametrize("workers", [1, 16])
def test_what_qemu_compresses_is_read(tmp_path: Path, folder: Dir, size: int, workers: int) -> None:
    data = disk(size, seed=size)
    (tmp_path / "raw").write_bytes(data)
    qemu_img("convert", "-W", "-m", str(workers), "-f", "raw", "-O", "vmdk",
             "-o", "subformat=streamOptimized", tmp_path / "raw", tmp_path / "made")  # fmt: skip
    assert content(open_chain(folder, [Extent(STREAM, size // SECTOR, "made")])) == data


@pytest.mark.parametrize(
    "how",
    # QEMU wants size and footer to the byte, and markers
    [how for how in DIALECTS if how.markers and not how.padding_bytes],
    ids=str,
)
def test_qemu_reads_what_our_maker_makes(tmp_path: Path, how: Dialect) -> None:
    """So the maker, by which the reader is judged, is judged itself."""
    data = disk(40 * GRAIN, seed=2)
    (tmp_path / "made").write_bytes(make_stream(how, data))
    qemu_img("convert", "-f", "vmdk", "-O", "raw", tmp_path / "made", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == data
