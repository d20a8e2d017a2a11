"""OVA: disks are read where they lie in it, and an archive from a stranger reaches nothing."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rollpoint import disk as disks
from rollpoint import ova
from rollpoint._native import EXTENT_FLAT, OPEN_CREATE, OPEN_WRITE, Chain, File, Image, Io
from rollpoint.cli import main
from rollpoint.convert import compare, convert
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import (
    DamagedError,
    Error,
    FormatError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
    UsageError,
)
from rollpoint.replica import Replica

MIB = 1 << 20
SEED = 20261122


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A VMDK of one file, and what it shows."""
    folder = tmp_path_factory.mktemp("member")
    data = bytearray(MIB + 512)
    data[70_000:140_000] = random.Random(SEED).randbytes(70_000)
    data[-3:] = b"end"
    (folder / "a.raw").write_bytes(data)
    convert(folder / "a.raw", folder / "a.vmdk", "monolithicSparse", source_format="raw")
    return (folder / "a.vmdk").read_bytes(), bytes(data)


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size = len(data)
    for key, value in fields.items():
        setattr(made, key, value)
    return made, data


def pack(
    path: Path, *entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.USTAR_FORMAT
) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for header, data in entries:
            archive.addfile(header, io.BytesIO(data))
    return path


def usual(path: Path, disk: bytes, **how: int) -> Path:
    """As ovftool packs it."""
    return pack(
        path,
        entry("vm.ovf", b"<Envelope/>"),
        entry("vm.mf", b"SHA256(vm.ovf)= 0\n"),
        entry("vm-disk1.vmdk", disk),
        **how,
    )


def shown(path: object) -> bytes:
    with open_disk(str(path)) as disk:
        return disk.pread(disk.size_bytes, 0)


# --- reading ---


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_disk_is_read_in_place(
    format: int, member: tuple[bytes, bytes], tmp_path: Path
) -> None:
    disk, data = member
    path = usual(tmp_path / "vm.ova", disk, format=format)
    before = path.read_bytes()
    assert shown(path) == shown(f"{path}:vm-disk1.vmdk") == data
    (tmp_path / "a.raw").write_bytes(data)
    assert compare(path, tmp_path / "a.raw", b_format="raw").equal
    convert(f"{path}:vm-disk1.vmdk", tmp_path / "b.vmdk", "vmfs")
    assert shown(tmp_path / "b.vmdk") == data
    assert disks.check(path)["clean"]
    (tmp_path / "link.ova").symlink_to("vm.ova")
    assert shown(tmp_path / "link.ova") == data
    assert path.read_bytes() == before


def test_long_names_and_a_leading_dot_are_understood(
    member: tuple[bytes, bytes], tmp_path: Path
) -> None:
    disk, data = member
    name = "long" * 50 + ".vmdk"
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = pack(tmp_path / "VM.OVA", entry(f"./{name}", disk), format=format)
        assert shown(path) == shown(f"{path}:{name}") == data


def test_one_of_several_disks_is_named(member: tuple[bytes, bytes], tmp_path: Path) -> None:
    disk, data = member
    path = pack(
        tmp_path / "vm.ova",
        entry("vm.ovf"),
        entry("one.vmdk", disk),
        entry("two.vmdk.gz", b"\x1f\x8b"),
        entry("three.vmdk", b"junk" * 200),
    )
    assert shown(f"{path}:one.vmdk") == data
    with pytest.raises(UsageError, match=r"3 disks: 'one\.vmdk'") as caught:
        open_disk(path)
    assert "vm.ova:one.vmdk" in caught.value.hint
    with pytest.raises(NotFoundError, match="no member 'four") as missing:
        open_disk(f"{path}:four.vmdk")
    assert "one.vmdk" in missing.value.hint
    found = disks.describe_ova(path)
    assert (found["ovf"], found["path"]) == ("vm.ovf", str(path))
    said = [(disk["name"], disk["type"], disk["size_bytes"]) for disk in found["disks"]]
    assert said == [
        ("one.vmdk", "monolithicSparse", MIB + 512),
        ("two.vmdk.gz", None, None),
        ("three.vmdk", None, None),
    ]
    errors = [disk["error"] for disk in found["disks"]]
    assert errors[0] is None
    assert "compressed as a whole" in (errors[1] or "")
    assert "descriptor" in (errors[2] or "")


def test_info_lists_what_lies_in_it(
    member: tuple[bytes, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = usual(tmp_path / "vm.ova", member[0])
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["disk", "info", str(path), *more])
        assert ended.value.code == 0
    text, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    assert f"{path}:vm-disk1.vmdk\tmonolithicSparse\t1.0 MiB" in text
    found = json.loads(last)
    assert (found["format"], found["ovf"]) == ("ova", "vm.ovf")
    disk = found["disks"][0]
    whole = path.read_bytes()
    at, length = disk["offset_bytes"], disk["length_bytes"]
    assert whole[at : at + length] == member[0]


def test_a_machine_without_disks_says_so(tmp_path: Path) -> None:
    path = pack(tmp_path / "vm.ova", entry("vm.ovf", b"<Envelope/>"))
    with pytest.raises(UsageError, match="0 disks: none"):
        open_disk(path)
    assert disks.describe_ova(path)["disks"] == []


def test_it_is_read_from_any_storage(member: tuple[bytes, bytes], tmp_path: Path) -> None:
    storage = Io.simulate()
    file = storage.open_dir("/").open("vm.ova", OPEN_WRITE | OPEN_CREATE)
    file.pwrite(usual(tmp_path / "vm.ova", member[0]).read_bytes(), 0)
    with open_disk("/vm.ova", io=storage) as disk:
        assert disk.pread(disk.size_bytes, 0) == member[1]


def test_a_replica_is_seeded_from_it(member: tuple[bytes, bytes], tmp_path: Path) -> None:
    path = usual(tmp_path / "vm.ova", member[0])
    for name, image in (("a", str(path)), ("b", f"{path}:vm-disk1.vmdk")):
        with Replica.create(tmp_path / name, [("disk", len(member[1]))]) as replica:
            replica.seed({"disk": image})
        assert shown(tmp_path / name / "disk.vmdk") == member[1]


def test_an_archive_is_a_raw_disk_where_the_caller_says_so(
    member: tuple[bytes, bytes], tmp_path: Path
) -> None:
    path = usual(tmp_path / "vm.ova", member[0])
    with open_disk(path, format="raw") as disk:
        assert disk.pread(disk.size_bytes, 0) == path.read_bytes()


# --- refused ---


def test_it_is_only_read(member: tuple[bytes, bytes], tmp_path: Path) -> None:
    path = usual(tmp_path / "vm.ova", member[0])
    before = path.read_bytes()
    for name in (str(path), f"{path}:vm-disk1.vmdk"):
        with pytest.raises(ReadOnlyError, match="only read"):
            open_disk(name, writable=True)
        with pytest.raises(UsageError, match="cannot be a parent"):
            create_disk(str(tmp_path / "child.vmdk"), "monolithicSparse", parent=name)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


PIECE = b"\0" * 512
KINDS = {
    "link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "hard-link": {"type": tarfile.LNKTYPE, "linkname": "vm.ovf"},
    "folder": {"type": tarfile.DIRTYPE},
    "fifo": {"type": tarfile.FIFOTYPE},
    "device": {"type": tarfile.BLKTYPE},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_plain_file_is_refused(
    kind: str, member: tuple[bytes, bytes], tmp_path: Path
) -> None:
    path = pack(
        tmp_path / "vm.ova",
        entry("vm.ovf"),
        entry("a.vmdk", member[0]),
        entry("b.vmdk", **KINDS[kind]),
    )
    with pytest.raises(FormatError, match=r"'b\.vmdk' is not a plain file"):
        open_disk(f"{path}:a.vmdk")


@pytest.mark.parametrize(
    "name", ["../a.vmdk", "/a.vmdk", "x/a.vmdk", "..", ".", "a\\b.vmdk", "a\x1b[2J.vmdk", "../../x"]
)
def test_a_name_that_is_not_plain_is_refused(
    name: str, member: tuple[bytes, bytes], tmp_path: Path
) -> None:
    path = pack(tmp_path / "vm.ova", entry("a.vmdk", member[0]), entry(name, b"x"))
    with pytest.raises(Error, match=r"vm\.ova") as caught:
        open_disk(path)
    assert isinstance(caught.value, UnsupportedError | FormatError)
    assert "\x1b" not in caught.value.message


def sparse_member(path: Path, disk: bytes) -> Path:
    made = entry("a.vmdk", disk, pax_headers={
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "a.vmdk",
        "GNU.sparse.size": str(len(disk)), "GNU.sparse.map": f"0,{len(disk)}",
    })  # fmt: skip
    return pack(path, made, format=tarfile.PAX_FORMAT)


REFUSED: dict[str, tuple[Callable[[Path, bytes], Path], str, str]] = {
    "gzip": (
        lambda path, disk: pack(path, entry("a.vmdk.gz", b"\x1f\x8b\x08" + disk)),
        "compressed as a whole",
        "gunzip",
    ),
    "gzip-without-saying-so": (
        lambda path, disk: pack(path, entry("a.vmdk", b"\x1f\x8b\x08" + disk)),
        "compressed as a whole",
        "gunzip",
    ),
    "pieces": (
        lambda path, disk: pack(path, entry("a.vmdk.000000000", disk)),
        "one piece of a disk",
        "cat",
    ),
    "sparse": (sparse_member, "packed as a sparse file", "unpack"),
    "two-of-a-name": (
        lambda path, disk: pack(path, entry("a.vmdk", disk), entry("./a.vmdk", disk)),
        "two files named",
        "unpack",
    ),
    "text": (
        lambda path, _: pack(
            path,
            entry("a.vmdk", b'version=1\nCID=1\nparentCID=ffffffff\ncreateType="vmfs"\n'
                            b'RW 1 VMFS "a-flat.vmdk"\n'),
            entry("a-flat", bytes(512)),
        ),
        "has further files",
        "unpack",
    ),
    "extent": (
        lambda path, disk: pack(path, entry("a.vmdk", b"COWD" + disk[4:])),
        "one extent of a disk",
        "descriptor",
    ),
    "many-members": (
        lambda path, _: pack(path, *(entry(f"{number}.txt") for number in range(1001))),
        "more than 1000",
        "unpack",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_packed_in_another_way_is_refused_with_what_to_do(
    what: str, member: tuple[bytes, bytes], tmp_path: Path
) -> None:
    build, says, hint = REFUSED[what]
    path = build(tmp_path / "vm.ova", member[0])
    with pytest.raises(Error) as caught:
        open_disk(path)
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_a_child_in_an_archive_is_refused(tmp_path: Path) -> None:
    create_disk(str(tmp_path / "base.vmdk"), "vmfs", MIB)
    create_disk(str(tmp_path / "a.vmdk"), "monolithicSparse", parent=str(tmp_path / "base.vmdk"))
    path = usual(tmp_path / "vm.ova", (tmp_path / "a.vmdk").read_bytes())
    with pytest.raises(UnsupportedError, match=r"a child of 'base\.vmdk'"):
        open_disk(path)


def test_a_cut_or_broken_archive_is_refused(member: tuple[bytes, bytes], tmp_path: Path) -> None:
    disk = member[0]
    whole = usual(tmp_path / "vm.ova", disk).read_bytes()
    path = tmp_path / "cut.ova"
    header = whole.index(b"vm-disk1.vmdk\0")
    for length in (0, 1, 511, 512 + 5, header + 100, header + 512 + len(disk) // 2, header + 600):
        path.write_bytes(whole[:length])
        with pytest.raises((FormatError, DamagedError), match=r"cut\.ova"):
            open_disk(path)
    broken = bytearray(whole)
    broken[header] ^= 1  # the checksum of the last header: the disks before it must not hide it
    path.write_bytes(broken)
    with pytest.raises(DamagedError, match="broken"):
        open_disk(path)
    for text in (b"version=1\n", b"KDMV" + bytes(2000), b"\x1f\x8b" + bytes(2000), b"x" * 5000):
        path.write_bytes(text)
        with pytest.raises(FormatError, match="not an OVA"):
            open_disk(path)


@pytest.mark.parametrize(
    "size",
    [b"-0000000001\0", b"77777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"zzzzzzzzzzz\0"],
)
@pytest.mark.parametrize("type", [b"0", b"x", b"g", b"L", b"K", b"S"])
def test_a_size_that_lies_takes_no_memory_and_no_time(
    type: bytes, size: bytes, member: tuple[bytes, bytes], tmp_path: Path
) -> None:
    whole = bytearray(usual(tmp_path / "vm.ova", member[0]).read_bytes())
    whole[124:136], whole[156:157] = size, type
    whole[148:156] = b" " * 8
    whole[148:156] = b"%06o\0 " % sum(whole[:512])
    (tmp_path / "vm.ova").write_bytes(whole)
    with pytest.raises(Error, match=r"vm\.ova"):
        open_disk(tmp_path / "vm.ova")


def test_any_archive_is_read_or_refused_with_its_name(
    member: tuple[bytes, bytes], tmp_path: Path
) -> None:
    """Mutations in the headers: never another exception."""
    rng = random.Random(SEED)
    storage = Io.simulate()
    folder = storage.open_dir("/")
    read, refusals = 0, list[str]()
    seeds = [
        usual(tmp_path / "vm.ova", member[0][:2048], format=format).read_bytes()[:8192]
        for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]
    seeds.append(sparse_member(tmp_path / "vm.ova", member[0][:2048]).read_bytes()[:8192])
    for _ in range(600):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 5)):
            block = rng.randrange(min(6, len(data) // 512)) * 512
            at = block + rng.choice([0, 124, 135, 156, 157, 345, rng.randrange(512)])
            data[at : at + rng.randrange(1, 4)] = rng.randbytes(rng.randrange(1, 4))
        for at in range(0, len(data) - 511, 512):  # right checksums let more of it through
            if data[at + 257 : at + 262] == b"ustar":
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        file = folder.open("vm.ova", OPEN_WRITE | OPEN_CREATE)
        file.truncate(0)
        file.pwrite(data, 0)
        try:
            found = ova.members(file)
        except Error as caught:
            refusals.append(caught.message)
            continue
        read += 1
        for each in found:
            assert 0 <= each.offset_bytes <= each.offset_bytes + each.size_bytes <= len(data)
    assert read > 20
    assert len(refusals) > 20
    assert all("vm.ova" in message for message in refusals)


# --- windows ---


def window(folder: Path, content: bytes, offset: int, length: int) -> tuple[File, File]:
    file = Io.posix().open_dir(str(folder)).open("whole", OPEN_WRITE | OPEN_CREATE)
    file.pwrite(content, 0)
    return file, file.slice("part", offset, length)


def test_a_window_ends_where_it_should(tmp_path: Path) -> None:
    whole, part = window(tmp_path, b"0123456789", 3, 4)
    assert (part.size_bytes, part.stat().size_bytes) == (4, 4)
    assert [part.pread(9, at) for at in (0, 1, 3, 4, 5, 1 << 40)] == [
        b"3456", b"456", b"6", b"", b"", b"",
    ]  # fmt: skip
    assert part.path == f"{whole.path}:part"
    assert part.stat().inode == whole.stat().inode
    for offset, length in ((3, 8), (11, 0), (1 << 62, 1), (0, 1 << 62), (1 << 63, 1 << 63)):
        with pytest.raises(DamagedError, match="whole:"):
            whole.slice("bad", offset, length)
    assert whole.slice("end", 10, 0).pread(1, 0) == b""
    inner = part.slice("inner", 1, 2)
    assert inner.pread(9, 0) == b"45"


def test_a_window_is_only_read_and_outlives_its_file(tmp_path: Path) -> None:
    whole, part = window(tmp_path, b"0123456789", 3, 4)
    for write in (
        lambda: part.pwrite(b"x", 0),
        lambda: part.truncate(1),
        lambda: part.allocate(0, 1),
        lambda: part.lock(exclusive=True),
    ):
        with pytest.raises(ReadOnlyError):
            write()
    whole.close()
    part.sync()
    part.lock(exclusive=False)
    assert part.pread(9, 0) == b"3456"
    part.close()
    assert (tmp_path / "whole").read_bytes() == b"0123456789"


def test_holes_of_a_window_are_those_of_its_file(tmp_path: Path) -> None:
    """A window may begin and end inside data and inside holes."""
    with open(tmp_path / "whole", "wb") as file:
        file.write(b"a" * MIB)
        file.seek(3 * MIB)
        file.write(b"b" * MIB)
        file.truncate(6 * MIB)
    whole = Io.posix().open_dir(str(tmp_path)).open("whole")
    content = (tmp_path / "whole").read_bytes()
    for start, stop in ((0, 6), (1, 3), (2, 5), (1, 4), (0, 1), (4, 6)):
        part = whole.slice("part", start * MIB, (stop - start) * MIB)
        disk = Chain([Image([(EXTENT_FLAT, (stop - start) * 2048, part, 0)])])
        at = 0
        while at < disk.size_bytes:
            length, *_ = disk.run(at, disk.size_bytes - at)
            here = start * MIB + at
            assert (disk.run(at, length)[1] == 3) == any(content[here : here + length])
            at += length
        assert disk.pread(disk.size_bytes, 0) == content[start * MIB : stop * MIB]
