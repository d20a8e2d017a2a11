"""Every VMDK there is: what is read as its writer meant it, and what is refused with a reason."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rollpoint import disk as disks
from rollpoint.convert import commit, compare, convert
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import (
    DamagedError,
    ReadOnlyError,
    UnsupportedError,
)
from rollpoint.replica import Replica
from tools import require_tool

MIB = 1 << 20
GRAIN = 65536


def descriptor(
    folder: Path,
    create_type: str,
    *lines: str,
    more: str = "",
    cid: int = 1,
    parent: tuple[int, str] | None = None,
    name: str = "disk.vmdk",
) -> Path:
    """A descriptor as a file of its own."""
    cids = f"CID={cid:08x}\nparentCID={0xFFFFFFFF if parent is None else parent[0]:08x}\n"
    hint = "" if parent is None else f'parentFileNameHint="{parent[1]}"\n'
    path = folder / name
    path.write_text(
        f'# Disk DescriptorFile\nversion=1\n{cids}createType="{create_type}"\n{hint}{more}'
        + "\n".join(lines)
        + "\n"
    )
    return path


def pattern(size: int, seed: int = 1) -> bytes:
    """A disk's content: data, holes, text, and something in the last sector."""
    rng = random.Random(seed)
    data = bytearray(size)
    for _ in range(6):
        length = min(rng.choice([512, 4096, 70_000]), size)
        at = rng.randrange(size - length + 1)
        data[at : at + length] = rng.randbytes(length)
    data[-512:] = b"the end." * 64
    return bytes(data)


def content(path: Path, **how: str) -> bytes:
    with open_disk(path, **how) as disk:
        return disk.pread(disk.size_bytes, 0)


def make(path: Path, create_type: str, data: bytes) -> Path:
    """A disk of ours with this content."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(data)
    convert(raw, path, create_type, source_format="raw")
    raw.unlink()
    return path


def made_by_qemu(path: Path, subformat: str, data: bytes) -> Path:
    raw = path.with_suffix(".raw")
    raw.write_bytes(data)
    how = f"subformat={subformat}"
    command = [require_tool("qemu-img"), "convert", "-f", "raw", "-O", "vmdk", "-o", how]
    subprocess.run([*command, raw, path], check=True)
    raw.unlink()
    return path


def rewrite_inside(path: Path, old: bytes, new: bytes) -> None:
    """Change the descriptor in an extent; it has room of 20 sectors behind the header."""
    data = bytearray(path.read_bytes())
    text = bytes(data[512 : 512 + 20 * 512]).rstrip(b"\0")
    assert old in text
    data[512 : 512 + 20 * 512] = text.replace(old, new).ljust(20 * 512, b"\0")
    path.write_bytes(data)


# --- the word and the header ---


@pytest.mark.parametrize("size", [512, GRAIN - 512, 3 * MIB + 512])
def test_a_stream_is_read_by_the_flags_of_its_header(size: int, tmp_path: Path) -> None:
    data = pattern(size)
    path = made_by_qemu(tmp_path / "a.vmdk", "streamOptimized", data)
    assert content(path) == data
    found = disks.info(path)["chain"][0]
    assert (found["type"], found["extents"][0]["format"]) == ("streamOptimized", "compressed")
    rewrite_inside(path, b"streamOptimized", b"monolithicSparse")  # as AWS exports say
    assert content(path) == data
    found = disks.info(path)["chain"][0]
    assert (found["type"], found["extents"][0]["format"]) == ("monolithicSparse", "compressed")


def test_the_name_inside_a_stream_does_not_matter(tmp_path: Path) -> None:
    data = pattern(MIB)
    path = made_by_qemu(tmp_path / "a.vmdk", "streamOptimized", data)
    for name in (b"generated-stream.vmdk", b"/mnt/export-ami-1.vmdk", b"../../etc/passwd"):
        copied = tmp_path / "renamed.vmdk"
        shutil.copy(path, copied)
        rewrite_inside(copied, b'"a.vmdk"', b'"%s"' % name)
        rewrite_inside(copied, b"RW ", b"RDONLY ")
        assert content(copied) == data


def test_an_uncompressed_extent_that_says_it_is_a_stream_is_read(tmp_path: Path) -> None:
    data = pattern(MIB)
    path = make(tmp_path / "a.vmdk", "monolithicSparse", data)
    rewrite_inside(path, b'"monolithicSparse"', b'"streamOptimized"')
    assert content(path) == data
    assert disks.info(path)["chain"][0]["extents"][0]["format"] == "hosted"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_hosted_extents_of_three_versions_are_read(version: int, tmp_path: Path) -> None:
    data = pattern(MIB)
    path = make(tmp_path / "a.vmdk", "monolithicSparse", data)
    whole = bytearray(path.read_bytes())
    whole[4:8] = version.to_bytes(4, "little")
    path.write_bytes(whole)
    assert content(path) == data
    assert disks.info(path)["chain"][0]["extents"][0]["version"] == version
    if version == 3:
        with pytest.raises(ReadOnlyError, match=r"version 3.*only read"):
            open_disk(path, writable=True)
        assert path.read_bytes() == whole
    else:
        open_disk(path, writable=True).close()


def test_parts_of_a_split_disk_may_be_compressed(tmp_path: Path) -> None:
    one, two = pattern(2 * MIB, 1), pattern(MIB + 512, 2)
    made_by_qemu(tmp_path / "disk-s001.vmdk", "streamOptimized", one)
    make(tmp_path / "disk-s002.vmdk", "monolithicSparse", two)
    for create_type in ("twoGbMaxExtentSparse", "streamOptimized", "monolithicSparse", "custom"):
        path = descriptor(
            tmp_path,
            create_type,
            f'RW {len(one) // 512} SPARSE "disk-s001.vmdk"',
            f'RW {len(two) // 512} SPARSE "disk-s002.vmdk"',
        )
        assert content(path) == one + two
        with pytest.raises(ReadOnlyError, match=r"disk-s001\.vmdk is compressed"):
            open_disk(path, writable=True)


def test_an_esx_sparse_file_behind_the_word_sparse_is_read(tmp_path: Path) -> None:
    data = pattern(MIB)
    make(tmp_path / "x.vmdk", "vmfsSparse", data)
    path = descriptor(tmp_path, "custom", f'RW {MIB // 512} SPARSE "x-delta.vmdk"')
    assert content(path) == data
    assert disks.info(path)["chain"][0]["extents"][0]["format"] == "cowd"


def test_the_text_of_a_disk_of_one_file_may_lie_beside_it(tmp_path: Path) -> None:
    """As somebody takes it out to look at it. Such a disk is written through its own file."""
    data = pattern(MIB)
    make(tmp_path / "x.vmdk", "monolithicSparse", data)
    path = descriptor(tmp_path, "monolithicSparse", f'RW {MIB // 512} SPARSE "x.vmdk"')
    assert content(path) == data
    with pytest.raises(ReadOnlyError, match="descriptor in its extent"):
        open_disk(path, writable=True)


# --- custom, and all kinds of extents ---


def test_a_custom_disk_mixes_all_extents(tmp_path: Path) -> None:
    data = [pattern(MIB, seed) for seed in range(5)]
    (tmp_path / "flat").write_bytes(b"?" * 512 * 3 + data[0] + b"?" * 512)
    (tmp_path / "vmfs").write_bytes(data[1])
    make(tmp_path / "s.vmdk", "monolithicSparse", data[2])
    make(tmp_path / "d.vmdk", "vmfsSparse", data[3])
    make(tmp_path / "e.vmdk", "seSparse", data[4])
    path = descriptor(
        tmp_path,
        "custom",
        'RW 2048 FLAT "flat" 3',
        "RW 7 ZERO",
        'RDONLY 2048 VMFS "vmfs"',
        'RW 2048 SPARSE "s.vmdk"',
        'RW 2048 VMFSSPARSE "d-delta.vmdk"',
        "RDONLY 1 ZERO",
        'RW 2048 SESPARSE "e-sesparse.vmdk"',
    )
    expected = data[0] + bytes(7 * 512) + b"".join(data[1:4]) + bytes(512) + data[4]
    assert content(path) == expected
    formats = [extent["format"] for extent in disks.info(path)["chain"][0]["extents"]]
    assert formats == ["flat", "zero", "flat", "hosted", "cowd", "zero", "sesparse"]
    with pytest.raises(ReadOnlyError, match=r"vmfs.*RDONLY"):
        open_disk(path, writable=True)
    entries = list(disks.map_ranges(open_disk(path)))
    assert sum(entry["length"] for entry in entries) == len(expected)
    assert (tmp_path / "flat").read_bytes()[: 512 * 3] == b"?" * 512 * 3


def test_extents_may_lie_anywhere_in_one_flat_file(tmp_path: Path) -> None:
    data = pattern(64 * 512)
    (tmp_path / "flat").write_bytes(data)
    order = [33, 2, 60, 0]
    path = descriptor(tmp_path, "custom", *(f'RW 2 FLAT "flat" {at}' for at in order))
    expected = b"".join(data[at * 512 : at * 512 + 1024] for at in order)
    assert content(path) == expected
    with open_disk(path, writable=True) as disk:
        disk.pwrite(b"new", 1024)
    assert (tmp_path / "flat").read_bytes()[1024:1027] == b"new"


def test_what_must_not_be_read_fails_where_it_is_read(tmp_path: Path) -> None:
    data = pattern(MIB)
    (tmp_path / "flat").write_bytes(data)
    path = descriptor(
        tmp_path,
        "custom",
        'RW 2048 FLAT "flat" 0',
        'NOACCESS 128 FLAT "/dev/mem" 0',
        'NOACCESS 8 FLAT "missing" 0',
        "RW 8 ZERO",
    )
    with open_disk(path) as disk:
        assert disk.pread(MIB, 0) == data
        assert disk.pread(4096, MIB + 136 * 512) == bytes(4096)
        for at, length in ((MIB, 1), (MIB + 128 * 512, 512), (MIB - 1, 2), (0, disk.size_bytes)):
            with pytest.raises(UnsupportedError, match=r"bytes \d+ to \d+ .*NOACCESS"):
                disk.pread(length, at)
        entries = list(disks.map_ranges(disk))
    assert [(entry["start"], entry["present"], entry["data"]) for entry in entries] == [
        (0, True, True),
        (MIB, True, True),
        (MIB + 136 * 512, True, False),
    ]
    assert "offset" not in entries[1]
    with pytest.raises(UnsupportedError, match="NOACCESS"):
        convert(path, tmp_path / "target.raw", "raw")
    assert not (tmp_path / "target.raw").exists()
    with pytest.raises(UnsupportedError, match="NOACCESS"):
        compare(path, path)
    with pytest.raises(ReadOnlyError, match="NOACCESS"):
        open_disk(path, writable=True)
    described = disks.info(path)["chain"][0]["extents"]
    assert [extent["access"] for extent in described] == ["RW", "NOACCESS", "NOACCESS", "RW"]
    assert described[1]["name"] == "/dev/mem"
    assert described[1]["file"] is None


@pytest.mark.parametrize("access", ["RDONLY", "NOACCESS"])
@pytest.mark.parametrize("create_type", ["monolithicSparse", "streamOptimized"])
def test_access_counts_inside_an_extent_too(
    create_type: str, access: str, tmp_path: Path
) -> None:
    data = pattern(MIB)
    path = made_by_qemu(tmp_path / "a.vmdk", create_type, data)
    rewrite_inside(path, b"RW ", access.encode() + b" ")
    if access == "RDONLY":
        assert content(path) == data
    else:
        with pytest.raises(UnsupportedError, match="NOACCESS"):
            content(path)
    with pytest.raises(ReadOnlyError):
        open_disk(path, writable=True)


# --- text as real writers leave it ---


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n", b"\r\n"),
        (b"\n", b" \t\n"),
        (b"version=1\n", b"version=1 \n\n\n# more\n"),
        (b"version=1\n", b"version=2\n"),
        (b"version=1\n", b"version=3\n"),
        (b"# Disk", b"#Disk"),
        (b"CID=00000001", b"cid=1"),
        (b'createType="custom"', b'createType = "custom" '),
        (b"RW 1 FLAT", b"RW\t1\tFLAT"),
        (b"RW 1 FLAT", b"  RW 1  FLAT"),
        (b'"a" 0', b'"a"'),
        (b"version=1\n", b'version=1\nddb.encoding = "windows-1252"\nddb.comment = "caf\xe9"\n'),
    ],
)
def test_a_descriptor_is_read_as_its_writers_write_it(
    old: bytes, new: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"a" * 512)
    path = descriptor(tmp_path, "custom", 'RW 1 FLAT "a" 0')
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    assert content(path) == b"a" * 512


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("windows-1252", "Café-flat.vmdk"),
        ("Shift_JIS", "表示-flat.vmdk"),
        ("GBK", "磁盘-flat.vmdk"),
        ("Big5", "磁碟-flat.vmdk"),
        ("windows-1251", "диск-flat.vmdk"),
        ("UTF-8", "диск-flat.vmdk"),
    ],
)
@pytest.mark.parametrize("key", ["encoding", "ddb.encoding"])
def test_a_name_is_found_in_the_encoding_of_its_descriptor(
    key: str, encoding: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"x" * 512)
    path = descriptor(tmp_path, "vmfs", f'RW 1 VMFS "{name}"', more=f'{key}="{encoding}"\n')
    path.write_bytes(path.read_text().encode(encoding))
    with open_disk(path, writable=True) as disk:
        disk.pwrite(b"y", 0)
    assert content(path) == b"y" + b"x" * 511
    assert disks.info(path)["chain"][0]["encoding"] == encoding


@pytest.mark.parametrize("create_type", ["twoGbMaxExtentSparse", "vmfsSparse", "seSparse"])
def test_a_header_may_round_the_size_up_to_a_grain_and_no_more(
    create_type: str, tmp_path: Path
) -> None:
    grain = {"twoGbMaxExtentSparse": 128, "vmfsSparse": 1, "seSparse": 8}[create_type]
    path = make(tmp_path / "a.vmdk", create_type, bytes(MIB))
    text = path.read_text()
    for sectors in (2048, 2048 - grain + 1):
        path.write_text(text.replace("RW 2048 ", f"RW {sectors} "))
        assert content(path) == bytes(sectors * 512)
    for sectors in (2048 - grain, 2049, 1 << 40):
        path.write_text(text.replace("RW 2048 ", f"RW {sectors} "))
        with pytest.raises(DamagedError, match="header says 2048"):
            open_disk(path)


# --- chains ---


def chain_of(folder: Path, hint: str, cid: int = 7, parent_cid: int = 7) -> tuple[Path, bytes]:
    """A child with this hint beside base.vmdk, and what both show together."""
    base, own = pattern(MIB, 1), bytearray(pattern(MIB, 2))
    (folder / "base-flat.vmdk").write_bytes(base)
    descriptor(folder, "vmfs", 'RW 2048 VMFS "base-flat.vmdk"', cid=cid, name="base.vmdk")
    created = folder / "made.vmdk"
    create_disk(str(created), "vmfsSparse", MIB)
    child = descriptor(
        folder,
        "vmfsSparse",
        'RW 2048 VMFSSPARSE "made-delta.vmdk"',
        parent=(cid, "base.vmdk"),
        name="child.vmdk",
    )
    with open_disk(child, writable=True) as disk:
        disk.pwrite(own[:70_000], 0)
    created.unlink()
    child.write_text(
        child.read_text()
        .replace('"base.vmdk"', f'"{hint}"')
        .replace(f"parentCID={cid:08x}", f"parentCID={parent_cid:08x}")
    )
    return child, bytes(own[:70_000]) + base[70_000:]


HINTS = [
    "/vmfs/volumes/5c5d0000-0000/vm/base.vmdk",
    "/vmfs/volumes/datastore1/vm one/base.vmdk",
    "C:\\Virtual Machines\\vm\\base.vmdk",
    "\\\\server\\share\\base.vmdk",
    "..\\bases\\base.vmdk",
    "../bases/base.vmdk",
    "bases/base.vmdk",
    "./base.vmdk",
]


@pytest.mark.parametrize("hint", HINTS)
def test_a_parent_is_found_beside_its_child_by_name_and_content_id(
    hint: str, tmp_path: Path
) -> None:
    child, expected = chain_of(tmp_path, hint)
    assert content(child) == expected
    found = disks.info(child)["chain"]
    assert found[0]["parent"] == hint
    assert found[1]["path"] == str(tmp_path / "base.vmdk")
    with open_disk(child, writable=True) as disk:
        disk.pwrite(b"new", 0)
    assert hint in child.read_text()
    assert commit(child) == str(tmp_path / "base.vmdk")
    assert content(tmp_path / "base.vmdk") == b"new" + expected[3:]


@pytest.mark.parametrize("hint", HINTS)
def test_a_file_beside_the_child_with_another_content_is_not_its_parent(
    hint: str, tmp_path: Path
) -> None:
    child, _ = chain_of(tmp_path, hint, parent_cid=8)
    with pytest.raises(UnsupportedError, match="not a plain name"):
        open_disk(child)


def test_an_allowed_directory_comes_before_a_file_beside_the_child(tmp_path: Path) -> None:
    (tmp_path / "vm").mkdir()
    (tmp_path / "bases").mkdir()
    child, expected = chain_of(tmp_path / "vm", "../bases/base.vmdk")
    assert content(child) == expected
    other = pattern(MIB, 3)
    (tmp_path / "bases" / "base-flat.vmdk").write_bytes(other)
    shutil.copy(tmp_path / "vm" / "base.vmdk", tmp_path / "bases" / "base.vmdk")
    assert content(child, allow_root=str(tmp_path)) == expected[:70_000] + other[70_000:]
    shutil.rmtree(tmp_path / "bases")
    (tmp_path / "bases").mkdir()
    assert content(child, allow_root=str(tmp_path)) == expected


def test_all_kinds_of_links_make_one_chain(tmp_path: Path) -> None:
    """A stream below seSparse below ESX sparse below hosted sparse: each shows what is its own."""
    model = bytearray(pattern(MIB + 512))
    made_by_qemu(tmp_path / "0.vmdk", "streamOptimized", bytes(model))
    above: Path | None = tmp_path / "0.vmdk"
    for number, create_type in enumerate(("vmfsSparse", "twoGbMaxExtentSparse"), 1):
        path = tmp_path / f"{number}.vmdk"
        create_disk(str(path), create_type, parent=str(above))
        with open_disk(path, writable=True) as disk:
            data = random.Random(number).randbytes(100_000)
            disk.pwrite(data, 50_000 * number)
        model[50_000 * number : 50_000 * number + len(data)] = data
        above = path
    # a space-efficient snapshot in between, as ESXi makes them; ours has no parent, so
    # its descriptor is given one, and the grains that it lacks show through
    delta = bytearray(MIB + 512)
    delta[262_144:266_240] = b"s" * 4096
    make(tmp_path / "3.vmdk", "seSparse", bytes(delta))
    cid = disks.info(tmp_path / "2.vmdk")["cid"]
    text = (tmp_path / "3.vmdk").read_text().replace("parentCID=ffffffff", f"parentCID={cid}")
    (tmp_path / "3.vmdk").write_text(
        text.replace("\n# Extent", 'parentFileNameHint="2.vmdk"\n\n# Extent')
    )
    model[262_144:266_240] = b"s" * 4096
    create_disk(str(tmp_path / "4.vmdk"), "monolithicSparse", parent=str(tmp_path / "3.vmdk"))
    assert content(tmp_path / "4.vmdk") == model
    found = disks.info(tmp_path / "4.vmdk")["chain"]
    assert [link["type"] for link in found] == [
        "monolithicSparse", "seSparse", "twoGbMaxExtentSparse", "vmfsSparse", "streamOptimized",
    ]  # fmt: skip
    assert disks.check(tmp_path / "4.vmdk")["clean"]
    with pytest.raises(ReadOnlyError, match="seSparse"):
        open_disk(tmp_path / "3.vmdk", writable=True)


@pytest.mark.parametrize("create_type", ["streamOptimized", "seSparse", "custom"])
def test_a_disk_that_is_only_read_does_not_become_a_replica(
    create_type: str, tmp_path: Path
) -> None:
    if create_type == "custom":
        (tmp_path / "flat").write_bytes(bytes(MIB))
        path = descriptor(tmp_path, create_type, 'RDONLY 2048 FLAT "flat" 0')
    else:
        path = make(tmp_path / "disk.vmdk", create_type, pattern(MIB))
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    with pytest.raises(ReadOnlyError):
        Replica.adopt(tmp_path, {"disk": path})
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_what_a_child_does_not_say_of_the_disk_its_parents_say(tmp_path: Path) -> None:
    """Source: "VMware Virtual Disk Format 5.0", "The Disk Database"."""
    child, _ = chain_of(tmp_path, "base.vmdk")
    base = tmp_path / "base.vmdk"
    base.write_text(base.read_text() + 'ddb.adapterType = "ide"\nddb.virtualHWVersion = "14"\n')
    found = disks.info(child)
    assert (found["adapter"], found["hardware_version"]) == ("ide", "14")
    assert found["chain"][0]["adapter"] is None
    child.write_text(child.read_text() + 'ddb.adapterType = "lsilogic"\n')
    found = disks.info(child)
    assert (found["adapter"], found["hardware_version"]) == ("lsilogic", "14")


def test_info_says_what_the_descriptor_says(tmp_path: Path) -> None:
    (tmp_path / "flat").write_bytes(bytes(512))
    path = descriptor(
        tmp_path,
        "vmfs",
        'RDONLY 1 VMFS "flat"',
        more='encoding="windows-1252"\nchangeTrackPath="disk-ctk.vmdk"\n'
        'ddb.longContentID = "00112233445566778899aabb00000001"\nddb.virtualHWVersion = "21"\n',
    )
    path.write_text(path.read_text().replace("version=1", "version=3"))
    found = disks.info(path)["chain"][0]
    assert {key: found[key] for key in ("version", "encoding", "long_content_id",
            "change_tracking", "hardware_version", "cid", "parent_cid", "parent")} == {
        "version": 3,
        "encoding": "windows-1252",
        "long_content_id": "00112233445566778899aabb00000001",
        "change_tracking": "disk-ctk.vmdk",
        "hardware_version": "21",
        "cid": "00000001",
        "parent_cid": None,
        "parent": None,
    }  # fmt: skip
    assert found["extents"][0]["access"] == "RDONLY"


# --- what a writer leaves of other writers ---


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("embedded", [False, True])
def test_a_write_keeps_what_it_does_not_know(embedded: bool, end: str, tmp_path: Path) -> None:
    """Only the content id, its tail and the stale change tracking change."""
    extra = (
        "# a comment of somebody\n"
        'ddb.deletable = "true"\n'
        'ddb.uuid = "60 00 C2 9f 9a b0 9b 9c-13 55 b8 11 fd 2c 92 9b"\n'
        'ddb.uuid.image="b2b1c0a0-0000-4000-8000-000000000000"\n'
        'ddb.sidecars = "x.vmfd;"\n'
        'ddb.unknown.key="kept"\n'
        'somethingNew="kept too"\n'
    )
    if embedded:
        path = make(tmp_path / "a.vmdk", "monolithicSparse", bytes(MIB))
        rewrite_inside(path, b"#DDB\n", b"#DDB\n" + extra.encode())
        rewrite_inside(path, b"\n", end.encode())
    else:
        path = make(tmp_path / "a.vmdk", "vmfs", bytes(MIB))
        path.write_bytes(path.read_bytes().replace(b"#DDB\n", b"#DDB\n" + extra.encode()))
        path.write_bytes(path.read_bytes().replace(b"\n", end.encode()))

    def text() -> str:
        data = path.read_bytes()
        return (data[512 : 512 + 10240] if embedded else data).rstrip(b"\0").decode()

    before, old = text(), disks.info(path)["cid"]
    with open_disk(path, writable=True) as disk:
        disk.pwrite(b"x", 0)
        disk.pwrite(b"y", 1000)
    new = disks.info(path)["cid"]
    assert old
    assert new != old
    assert text() == before.replace(f"CID={old}", f"CID={new}").replace(f'{old}"', f'{new}"')
    assert disks.info(path)["chain"][0]["long_content_id"].endswith(new)  # type: ignore[union-attr]


def test_stale_change_tracking_goes_with_the_first_write_and_not_before(tmp_path: Path) -> None:
    (tmp_path / "flat").write_bytes(bytes(512))
    path = descriptor(
        tmp_path, "vmfs", 'RW 1 VMFS "flat"',
        more='# Change Tracking File\nchangeTrackPath="disk-ctk.vmdk"\n',
    )  # fmt: skip
    path.write_text(path.read_text().replace("version=1", "version=3"))
    before = path.read_bytes()
    with open_disk(path, writable=True) as disk:
        disk.pread(512, 0)
        disk.flush()
    assert path.read_bytes() == before
    with open_disk(path, writable=True) as disk:
        disk.zero(1, 0)
    text = path.read_text()
    assert "version=1\n" in text
    assert "rack" not in text


# --- maps ---


@pytest.mark.parametrize("with_child", [False, True])
@pytest.mark.parametrize("create_type", ["streamOptimized", "seSparse"])
def test_the_map_of_what_is_written_once_is_that_of_qemu_img(
    create_type: str, with_child: bool, tmp_path: Path
) -> None:
    path = make(tmp_path / "a.vmdk", create_type, pattern(5 * MIB + 512))
    if with_child:
        path, below = tmp_path / "child.vmdk", path
        create_disk(str(path), "monolithicSparse", parent=str(below))
        with open_disk(path, writable=True) as disk:
            disk.pwrite(b"x" * 100_000, MIB)
    command = [require_tool("qemu-img"), "map", "--output=json", "-f", "vmdk", path]
    theirs = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    with open_disk(path) as disk:
        ours = list(disks.map_ranges(disk))
    assert joined(ours) == joined(theirs)


def joined(entries: list[Any]) -> list[dict[str, object]]:
    """Neighbours that go on from each other as one: QEMU cuts them at its tables."""
    out: list[dict[str, Any]] = []
    for entry in entries:
        last = out[-1] if out else {"start": -1, "length": 0}
        facts = ("depth", "present", "zero", "data")
        place = last["offset"] + last["length"] if "offset" in last else None
        if [last.get(key) for key in facts] == [entry[key] for key in facts] and place == entry.get(
            "offset"
        ):
            last["length"] += entry["length"]
        else:
            out.append(dict(entry))
    return out
