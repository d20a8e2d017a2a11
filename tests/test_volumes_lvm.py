"""Logical volumes: where LVM itself says that they lie, and what a hostile guest says."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lvm_maker import AREA_AT, AREA_BYTES, logical, physical, physical_id, text
from rollpoint.errors import FormatError
from rollpoint.volumes.base import Piece, Volume
from rollpoint.volumes.find import find
from rollpoint.volumes.lvm import LOGICAL_MAX
from rollpoint.volumes.lvm_text import parse_text
from rollpoint.volumes.probe import lvm_id
from rollpoint.volumes.window import Strung
from tools import require_tool
from volume_disks import MIB, SECTOR, FileDisk, MemoryDisk, call, empty_file

EXTENT = 64 * 1024


def by_name(volumes: tuple[Volume, ...]) -> dict[str, Volume]:
    names = {volume.name: volume for volume in volumes}
    assert len(names) == len(volumes)
    return names


def piece(disk: str, extent: int, count: int, start: int = MIB) -> Piece:
    return Piece(disk, start + extent * EXTENT, count * EXTENT)


def test_linear_volumes_on_several_disks_have_their_pieces() -> None:
    volumes = logical("root", "10 pv0 0; 5 pv1 7; 3 pv1 12") + logical("home", "20 pv0 10")
    disks = {n: physical(i, text(volumes, 2)) for i, n in enumerate(("a", "b"))}
    disks["a"].put(MIB + 1024, bytes(56) + b"\x53\xef" + bytes(46) + b"u" * 16 + b"ROOT")
    found = by_name(find(disks))
    assert list(found) == ["a", "b", "vg0/root", "vg0/home"]
    assert found["a"].kind == found["b"].kind == "lvm"
    assert found["a"].uuid == physical_id(0)
    assert found["vg0/root"].pieces == (piece("a", 0, 10), piece("b", 7, 8))
    assert found["vg0/root"].size_bytes == 18 * EXTENT
    assert (found["vg0/root"].kind, found["vg0/root"].label) == ("ext2", "ROOT")
    assert found["vg0/home"].pieces == (piece("a", 10, 20),)
    assert all(not volume.problem for volume in found.values())


def test_a_physical_volume_in_a_partition_is_found() -> None:
    inner = physical(0, text(logical("root", "10 pv0 0")), 15 * MIB)
    record = bytes(446) + bytes.fromhex("00000000 8e000000 00080000 00780000").ljust(64, b"\0")
    disk = MemoryDisk(16 * MIB, [(0, record + b"\x55\xaa"), (MIB, inner.pread(2 * MIB, 0))])
    found = by_name(find({"system": disk}))
    assert list(found) == ["system:1", "vg0/root"]
    assert found["vg0/root"].pieces == (piece("system", 0, 10, 2 * MIB),)


def test_the_newest_intact_copy_counts() -> None:
    old = text(logical("root", "10 pv0 0"), 2, seqno=3)
    new = text(logical("root", "10 pv0 20"), 2, seqno=4)
    a, b = physical(0, old), physical(1, new)
    assert by_name(find({"a": a, "b": b}))["vg0/root"].pieces == (piece("a", 20, 10),)
    b.put(AREA_AT + 600, b"!")  # inside its text
    found = by_name(find({"a": a, "b": b}))
    assert found["vg0/root"].pieces == (piece("a", 0, 10),)
    assert "checksum of the text" in found["b"].problem


def test_a_text_that_wraps_around_its_area_is_read() -> None:
    data = text(logical("root", "10 pv0 3"))
    disk = physical(0, data, at=AREA_BYTES - 300)
    assert by_name(find({"a": disk}))["vg0/root"].pieces == (piece("a", 3, 10),)


def test_a_physical_volume_without_metadata_takes_that_of_another() -> None:
    data = text(logical("root", "10 pv1 0"), 2)
    found = by_name(find({"a": physical(0, data), "b": physical(1, None)}))
    assert found["vg0/root"].pieces == (piece("b", 0, 10),)


def test_an_area_that_is_ignored_is_ignored() -> None:
    found = find({"a": physical(0, text(logical("root", "10 pv0 0")), flags=1)})
    assert [volume.name for volume in found] == ["a"]


def test_a_volume_whose_disk_is_missing_says_which() -> None:
    data = text(logical("root", "10 pv0 0; 1 pv1 0") + logical("home", "10 pv0 10"), 2)
    found = by_name(find({"a": physical(0, data)}))
    assert physical_id(1) in found["vg0/root"].problem
    assert found["vg0/root"].pieces == ()
    assert found["vg0/home"].problem == ""


def test_a_copied_physical_volume_is_refused_by_the_names_of_both() -> None:
    data = text(logical("root", "10 pv0 0"))
    found = by_name(find({"a": physical(0, data), "b": physical(0, data)}))
    assert "a and b are the same physical volume" in found["vg0/?"].problem


def test_two_groups_of_one_name_cannot_be_told_apart() -> None:
    one = text(logical("root", "10 pv0 0"))
    two = text(logical("root", "10 pv0 0"), group="zzzzzz").replace(
        physical_id(0).encode(), physical_id(1).encode()
    )
    found = by_name(find({"a": physical(0, one), "b": physical(1, two)}))
    assert [name for name in found if "/" in name] == ["vg0/root", "vg0/root~2"]
    assert all("2 volumes of that name" in found[n].problem for n in found if "/" in n)


def test_two_groups_never_share_a_physical_volume() -> None:
    """Found by fuzzing: one without metadata of its own was claimed by both."""
    one = text(logical("root", "10 pv2 0"), 3, name="one", group="id-one")
    two = text(logical("root", "10 pv2 5"), 3, name="two", group="id-two")
    found = by_name(find({"a": physical(0, one), "b": physical(1, two), "c": physical(2, None)}))
    assert found["one/root"].pieces == (piece("c", 0, 10),)
    assert found["two/root"].pieces == ()
    assert "is not on these disks" in found["two/root"].problem


SNAPSHOT = """snapshot0 {
id = "s"
status = ["READ", "WRITE", "VISIBLE"]
segment_count = 1
segment1 {
start_extent = 0
extent_count = 10
type = "snapshot"
chunk_size = 8
origin = "root"
cow_store = "before"
}
}
"""


def test_a_volume_with_snapshots_is_told_and_not_written_through() -> None:
    volumes = logical("root", "10 pv0 0") + logical("before", "4 pv0 10") + SNAPSHOT
    disk = physical(0, text(volumes), 16 * MIB)
    disk.put(MIB, b"XFSB" + (4096).to_bytes(4, "big"))
    found = by_name(find({"a": disk}))
    assert list(found) == ["a", "vg0/root", "vg0/before"]
    assert (found["vg0/root"].kind, found["vg0/root"].pieces) == ("xfs", ())
    assert "has the snapshot before" in found["vg0/root"].note
    assert "is a snapshot of root" in found["vg0/before"].note
    assert not found["vg0/root"].problem


def test_what_is_not_linear_is_left_to_an_appliance() -> None:
    thin = logical("thin", "10 pool 0").replace('"striped"', '"thin"')
    moved = logical("moved", "10 pvmove0 0")
    hidden = logical("hidden", "10 pv0 0", status='"READ", "WRITE"')
    pool = logical("pool", "10 pv0 20").replace('"striped"', '"thin-pool"')
    found = by_name(find({"a": physical(0, text(thin + moved + hidden + pool))}))
    assert list(found) == ["a", "vg0/thin", "vg0/moved"]
    for name in ("vg0/thin", "vg0/moved"):
        assert (found[name].pieces, found[name].problem) == ((), "")
        assert found[name].kind == "unknown"
        assert "not linear" in found[name].note


STRIPED = logical("fast", "10 pv0 40").replace(
    'stripe_count = 1\nstripes = [\n"pv0", 40\n]',
    'stripe_count = 2\nstripe_size = 128\nstripes = [\n"pv0", 40,\n"pv1", 30\n]',
)


def test_what_a_volume_that_is_not_linear_holds_is_seen_all_the_same() -> None:
    mirror = logical("safe", "10 x 0").replace('"striped"', '"raid1"')
    mirror = mirror.replace('stripes = [\n"x", 0\n]', 'raids = ["m0", "safe_0", "m1", "safe_1"]')
    cached = logical("quick", "10 x 0").replace('"striped"', '"cache"')
    cached = cached.replace('stripes = [\n"x", 0\n]', 'origin = "safe_1"')
    lost = logical("lost", "10 x 0").replace('"striped"', '"cache"')
    parts = logical("safe_0", "10 pv0 0", "") + logical("safe_1", "10 pv1 0", "")
    data = text(STRIPED + mirror + cached + lost + parts, 2)
    disks = {n: physical(i, data) for i, n in enumerate(("a", "b"))}
    disks["a"].put(MIB + 40 * EXTENT + 1024 + 56, b"\x53\xef")
    disks["b"].put(MIB + 30 * EXTENT + 64, b"_BHRfS_M")  # btrfs's place, in the second stripe
    disks["a"].put(MIB, b"XFSB" + (4096).to_bytes(4, "big"))
    disks["b"].put(MIB, b"hsqs" + bytes(24) + b"\4\0")
    found = by_name(find(disks))
    kinds = {name: volume.kind for name, volume in found.items() if "/" in name}
    assert kinds == {
        "vg0/fast": "ext2",
        "vg0/safe": "xfs",
        "vg0/quick": "squashfs",
        "vg0/lost": "unknown",
    }
    disks["a"].put(MIB + 40 * EXTENT + 1024 + 56, b"\0")
    assert by_name(find(disks))["vg0/fast"].kind == "btrfs"
    assert all(not v.pieces and not v.problem for n, v in found.items() if "/" in n)


HOSTILE = {
    "overlap": (logical("a", "10 pv0 0") + logical("b", "2 pv0 9"), "on extent 9"),
    "overlap itself": (logical("a", "10 pv0 0; 10 pv0 9"), "on extent 9"),
    "past the group": (logical("a", "10 pv0 195"), "uses extent 204"),
    "huge": (logical("a", f"{1 << 40} pv0 0"), "which ends before"),
    "more than huge": (logical("a", f"{1 << 70} pv0 0"), "no usable extent_count"),
    "before the beginning": (logical("a", "10 pv0 -1"), "stripes cannot be read"),
    "empty": (logical("a", "0 pv0 0"), "no usable extent_count"),
    "name": (logical("-a", "1 pv0 0"), "a name that LVM does not allow"),
    "dots": (logical("..", "1 pv0 0"), "a name that LVM does not allow"),
    "gap": (
        logical("a", "1 pv0 0; 1 pv0 1").replace("start_extent = 1\n", "start_extent = 2\n"),
        "extents from 1 on are in no segment",
    ),
    "no segments": ('a {\nstatus = ["VISIBLE"]\n}\n', "it has 0 segments"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_volumes_cannot_be_used(case: str) -> None:
    volumes, said = HOSTILE[case]
    found = [v for v in find({"a": physical(0, text(volumes))}) if "/" in v.name]
    assert found
    for volume in found:
        assert volume.pieces == ()
        assert said in volume.problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("pe_start = 2048", "pe_start = 0"), "over the label"),
        (("pe_start = 2048", "pe_start = 64"), "over the metadata"),
        (("pe_start = 2048", "pe_start = 31000"), "its group uses"),
        (("pe_start = 2048", "pe_start = 99999999999999999999"), "no usable pe_start"),
        (("extent_size = 128", "extent_size = 0"), "no usable extent_size"),
        (("extent_size = 128", 'extent_size = "8"'), "no usable extent_size"),
        (('format = "lvm2"', 'format = "lvm1"'), "of format lvm1"),
        (("physical_volumes {", "physical_volumes = 1\nx {"), "no section physical_volumes"),
        (("vg0 {", '"v\x1bg" {'), "a name that LVM does not allow"),
    ],
)
def test_hostile_groups_cannot_be_used(change: tuple[str, str], said: str) -> None:
    data = text(logical("root", "40 pv0 0")).decode().replace(*change).encode()
    found = [v for v in find({"a": physical(0, data)}) if "/" in v.name]
    assert len(found) == 1
    assert found[0].pieces == ()
    assert said in found[0].problem
    assert found[0].problem.isprintable()


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"a = 1", {"a": 1}),
        (b"a=-1 b = 2.5", {"a": -1, "b": 2.5}),
        (b'a = "x \\"y\\" \\\\ # no"  # yes\nb = []', {"a": 'x "y" \\ # no', "b": []}),
        (b'a = ["x", 1,\n "y"]\n', {"a": ["x", 1, "y"]}),
        (b"a { b { c = 1 } } d {}", {"a": {"b": {"c": 1}}, "d": {}}),
        (b"1a-b.c+_ = 1\0\0", {"1a-b.c+_": 1}),
        (b"", {}),
    ],
)
def test_the_text_of_lvm_is_understood(data: bytes, value: object) -> None:
    assert parse_text(data) == value


@pytest.mark.parametrize(
    "data",
    [
        b"a",
        b"a {",
        b"a }",
        b"a = ",
        b"a = [1",
        b"a = [1 2]",
        b'a = "x',
        b"a = 1 a = 2",
        b"= 1",
        b"a = {",
        b"a = " + b"9" * 5000,
        b"a {" * 50,
        b"a = [" * 50,
        b"\xff = 1",
        b"a = 1" + bytes(5 << 20),
    ],
)
def test_other_text_is_an_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_text(data)


def test_a_long_text_is_read_once_for_all_its_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(data: bytes) -> object:
        calls.append(len(data))
        return parse_text(data)

    monkeypatch.setattr("rollpoint.volumes.lvm_disk.parse_text", counted)
    data = text("".join(logical(f"v{i}", f"1 pv0 {i}") for i in range(200)), 8)
    found = find({f"d{n}": physical(n, data) for n in range(8)})
    assert len(found) == 208
    assert calls == [len(data)]


def test_endless_metadata_is_not_read() -> None:
    disks = {}
    for number in range(12):
        data = b"#" * (AREA_BYTES - 600 - number) + b"\nvg { }"
        disks[f"d{number}"] = physical(number, data)
    problems = [volume.problem for volume in find(disks)]
    assert "that differ" in problems[-1]


def test_of_endless_volumes_the_first_thousand_are_shown() -> None:
    data = text("".join(logical(f"v{i}", "1 pv9 0") for i in range(3000)))
    assert len(find({"a": physical(0, data)})) == 1 + LOGICAL_MAX


@pytest.mark.parametrize("seed", range(100))
def test_mutated_metadata_never_breaks_the_reader(seed: int) -> None:
    """Bytes of the text change and its checksum is right again, or anything else changes."""
    rng = random.Random(seed)
    volumes = logical("root", "10 pv0 0; 5 pv1 7") + logical("home", "20 pv0 10")
    data = bytearray(text(volumes + SNAPSHOT + STRIPED, 2))
    if seed % 3:
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            put = rng.choice([b"{", b"}", b'"', b"[", b"9", b"-", b"=", b"segment1", b"pv0"])
            data[at : at + rng.randint(0, 12)] = put
        numbers = list(re.finditer(rb"= (\d+)", data))
        places = [match.span(1) for match in rng.sample(numbers, rng.randint(0, 3))]
        for start, stop in sorted(places, reverse=True):
            data[start:stop] = str(rng.choice([0, 1, 7, 127, 4096, 1 << 20, 1 << 39])).encode()
    disks = {n: physical(i, bytes(data)) for i, n in enumerate(("a", "b"))}
    if not seed % 3:
        for _ in range(rng.randint(1, 3)):
            place = rng.choice([SECTOR, SECTOR + 20, SECTOR + 32, AREA_AT, AREA_AT + 16])
            disks[rng.choice("ab")].put(place + rng.randrange(72), rng.randbytes(1))
    for volume in find(disks):
        for found in volume.pieces:
            assert found.offset >= 0
            assert 0 < found.length <= disks[found.disk].size_bytes - found.offset


# --- LVM itself, on loop devices, without the device mapper ---


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[list[tuple[Path, str]]]:
    """Two files of 64 MiB and their loop devices."""
    require_tool("pvcreate")
    if os.geteuid() != 0:
        pytest.skip("LVM itself was NOT tried: loop devices take root")
    made: list[tuple[Path, str]] = []
    try:
        for name in ("one", "two"):
            disk = empty_file(tmp_path / name, 64 * MIB)
            done = subprocess.run(
                ["losetup", "--find", "--show", disk.path], capture_output=True, text=True
            )
            if done.returncode != 0:
                pytest.skip(f"LVM itself was NOT tried: no loop device: {done.stderr.strip()}")
            made.append((disk.path, done.stdout.strip()))
        yield made
    finally:
        for _, device in made:
            subprocess.run(["losetup", "--detach", device], check=True)


def lvm(loops: list[tuple[Path, str]], command: str, *arguments: str) -> str:
    """A command of LVM that sees the two devices alone, and asks no kernel for mappings."""
    accepted = ", ".join(f'"a|^{device}$|"' for _, device in loops)
    config = (
        f'devices {{ filter=[{accepted}, "r|.*|"] use_devicesfile=0 }} '
        "activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 }"
    )
    return call(command, "--driverloaded", "n", "--config", config, *arguments)


def test_lvm_itself_says_the_same(loops: list[tuple[Path, str]]) -> None:
    devices = [device for _, device in loops]
    lvm(loops, "pvcreate", *devices)
    lvm(loops, "vgcreate", "-s", "1M", "vg-0.x", *devices)
    make = ("-an", "-Zn", "-Wn", "-n")
    lvm(loops, "lvcreate", *make, "root", "-L", "20M", "vg-0.x")
    lvm(loops, "lvcreate", *make, "striped", "-i", "2", "-L", "4M", "vg-0.x")
    lvm(loops, "lvcreate", *make, "big_one", "-l", "70", "vg-0.x")
    lvm(loops, "lvextend", "-l", "+3", "vg-0.x/root")
    lvm(loops, "lvcreate", *make, "gone", "-L", "1M", "vg-0.x")
    lvm(loops, "lvremove", "-f", "vg-0.x/gone")
    said = json.loads(
        lvm(
            loops,
            *("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o"),
            "lv_name,lv_size,segtype,seg_pe_ranges,seg_start",
        )
    )["report"][0]["lv"]
    start = {
        row["pv_name"]: int(row["pe_start"])
        for row in json.loads(
            lvm(
                loops,
                *("pvs", "--reportformat", "json", "--units", "b", "--nosuffix"),
                *("-o", "pv_name,pe_start"),
            )
        )["report"][0]["pv"]
    }
    wanted: dict[str, list[Piece]] = {}
    names = {device: path.name for path, device in loops}
    for row in sorted(said, key=lambda row: int(row["seg_start"])):
        pieces = wanted.setdefault(f"vg-0.x/{row['lv_name']}", [])
        if row["segtype"] != "linear":
            continue
        match = re.fullmatch(r"(.*):(\d+)-(\d+)", row["seg_pe_ranges"])
        assert match is not None
        first, last = int(match[2]), int(match[3])
        at = start[match[1]] + first * MIB
        pieces.append(Piece(names[match[1]], at, (last - first + 1) * MIB))
    found = by_name(find({path.name: FileDisk(path) for path, _ in loops}))
    assert {n: list(v.pieces) for n, v in found.items() if "/" in n} == wanted
    assert len(wanted["vg-0.x/root"]) == 2
    assert "not linear: striped" in found["vg-0.x/striped"].note
    assert [found[n].problem for n in found] == [""] * 5


def segment(count: int, rest: str) -> str:
    return f"segment1 {{ start_extent = 0 extent_count = {count} {rest} }}"


def section(name: str, visible: bool, inside: str) -> str:
    uuid = lvm_id(f"{name:x<32}".replace("_", "-").encode().replace(b"-", b"y"))
    status = '"READ", "WRITE"' + ', "VISIBLE"' * visible
    return (
        f'{name} {{ id = "{uuid}" creation_time = 1 creation_host = "x" flags = []\n'
        f"status = [{status}] segment_count = 1 {inside} }}\n"
    )


def test_mirrors_and_snapshots_as_lvm_writes_them(
    loops: list[tuple[Path, str]], tmp_path: Path
) -> None:
    """LVM checks and writes a text of ours; its kernel half is not needed for that."""
    devices, text_file = [device for _, device in loops], tmp_path / "text"
    lvm(loops, "pvcreate", *devices)
    lvm(loops, "vgcreate", "-s", "1M", "vg", *devices)
    lvm(loops, "lvcreate", "-an", "-Zn", "-Wn", "-n", "root", "-L", "4M", "vg")
    lvm(loops, "vgcfgbackup", "-f", str(text_file), "vg")
    linear = 'type = "striped" stripe_count = 1 stripes = ["{}", {}]'
    raids = '"r_rmeta_0", "r_rimage_0", "r_rmeta_1", "r_rimage_1"'
    mirrors = 'type = "mirror" mirror_count = 2 region_size = 1024 mirrors = ["m_0", 0, "m_1", 0]'
    raid = f'type = "raid1" region_size = 1024 stripe_count = 2 raids = [{raids}]'
    more = [
        section("r", True, segment(4, raid)),
        section("before", True, segment(4, linear.format("pv1", 40))),
        section(
            "snapshot0",
            True,
            segment(4, 'type="snapshot" chunk_size=8 origin="root" cow_store="before"'),
        ),
        section("m", True, segment(4, mirrors)),
    ]
    for number, name in enumerate(("pv0", "pv1")):
        more.append(section(f"r_rmeta_{number}", False, segment(1, linear.format(name, 30))))
        more.append(section(f"r_rimage_{number}", False, segment(4, linear.format(name, 31))))
        more.append(section(f"m_{number}", False, segment(4, linear.format(name, 50))))
    content = text_file.read_text().replace(
        "logical_volumes {", "logical_volumes {\n" + "".join(more), 1
    )
    text_file.write_text(content)
    lvm(loops, "vgcfgrestore", "--force", "-f", str(text_file), "vg")
    with open(loops[0][0], "r+b") as file:
        for extent, place, magic in ((0, 0, b"hsqs"), (31, 1080, b"\x53\xef"), (50, 0, b"XFSB")):
            file.seek(MIB + extent * MIB + place)
            file.write(magic + bytes(2) + b"\x10\0" + bytes(20) + b"\4\0")
    found = by_name(find({path.name: FileDisk(path) for path, _ in loops}))
    assert {n: (v.kind, v.pieces, v.problem) for n, v in found.items() if "/" in n} == {
        "vg/root": ("squashfs", (), ""),
        "vg/r": ("ext2", (), ""),
        "vg/m": ("xfs", (), ""),
    }
    assert "it has the snapshot before" in found["vg/root"].note


def test_a_file_system_over_two_disks_is_read_whole(tmp_path: Path) -> None:
    volumes = logical("root", "40 pv0 3; 50 pv1 0; 38 pv0 100")
    disks = {n: physical(i, text(volumes, 2)) for i, n in enumerate(("a", "b"))}
    plain = empty_file(tmp_path / "plain", 128 * EXTENT)
    call("mkfs.ext4", "-q", "-L", "spread", plain.path)
    content, at = plain.pread(plain.size_bytes, 0), 0
    root = by_name(find(disks))["vg0/root"]
    for where in root.pieces:
        disks[where.disk].put(where.offset, content[at : at + where.length])
        at += where.length
    root = by_name(find(disks))["vg0/root"]
    assert (root.kind, root.label) == ("ext4", "spread")
    strung = Strung(disks, root.pieces)
    rng = random.Random(5)
    for _ in range(200):
        offset = rng.randrange(len(content))
        length = rng.randint(0, min(3 * MIB, len(content) - offset))
        assert strung.pread(length, offset) == content[offset : offset + length]
