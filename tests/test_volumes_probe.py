"""What volumes hold: as blkid says, and never an error whatever they hold."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from rollpoint.volumes.base import Volume
from rollpoint.volumes.find import find
from rollpoint.volumes.probe import probe
from volume_disks import MIB, SECTOR, FileDisk, MemoryDisk, blkid, call, empty_file

LUKS_QUICK = ("luksFormat", "-q", "--pbkdf-force-iterations", "1000", "--key-file")
MADE = {
    "ext2": ("ext2", 8, "mkfs.ext2", "-q", "-L", "two words"),
    "ext2 of 4 KiB blocks": ("ext2", 8, "mkfs.ext2", "-q", "-b", "4096"),
    "ext3": ("ext3", 16, "mkfs.ext3", "-q", "-L", "dreiß"),
    "ext4": ("ext4", 16, "mkfs.ext4", "-q", "-L", "sixteen-letters."),
    "ext4 without a journal": ("ext4", 16, "mkfs.ext4", "-q", "-O", "^has_journal"),
    "xfs": ("xfs", 320, "mkfs.xfs", "-q", "-L", "ex"),
    "btrfs": ("btrfs", 128, "mkfs.btrfs", "-q", "-L", "butter"),
    "ntfs": ("ntfs", 16, "mkntfs", "-q", "-F", "-L", "Daten", "-s512", "-p0", "-H255", "-S63"),
    "ntfs of large clusters": ("ntfs", 64, "mkntfs", "-qFc65536", "-s512", "-p0", "-H8", "-S8"),
    "fat12": ("vfat", 4, "mkfs.vfat", "-n", "FATTY"),
    "fat16": ("vfat", 32, "mkfs.vfat", "-F", "16"),
    "fat32": ("vfat", 64, "mkfs.vfat", "-F", "32", "-n", "EFI SYS"),
    "swap": ("swap", 4, "mkswap", "-q", "-L", "swappy"),
    "swap of other pages": ("swap", 4, "mkswap", "-q", "-p", "65536"),
}

RAID_BYTES = 4 * MIB  # on what is no larger than a floppy, blkid looks for no RAID


def only(disk: FileDisk | MemoryDisk) -> Volume:
    (volume,) = find({"d": disk})
    assert volume.name == "d"
    return volume


def agrees(path: Path) -> Volume:
    """The volume, after it was compared with blkid's answer."""
    volume, said = only(FileDisk(path)), blkid(path)
    assert volume.uuid == said.get("UUID", "")
    # blkid shows other bytes than ASCII as cat -v does, and escapes with a backslash
    if volume.label.isascii():
        assert volume.label == said.get("LABEL", "").replace("\\", "")
    return volume


@pytest.mark.parametrize("case", MADE)
def test_file_systems_are_told_as_blkid_tells_them(case: str, tmp_path: Path) -> None:
    kind, size, program, *arguments = MADE[case]
    path = empty_file(tmp_path / "disk", size * MIB).path
    call(program, *arguments, path)
    volume = agrees(path)
    assert (volume.kind, volume.problem, volume.note) == (kind, "", "")
    assert blkid(path)["TYPE"] == kind
    if case == "ext3":
        assert volume.label == "dreiß"


def test_exfat_and_squashfs_are_told(tmp_path: Path) -> None:
    path = empty_file(tmp_path / "exfat", 16 * MIB).path
    _exfat(path)
    assert (agrees(path).kind, agrees(path).label) == ("exfat", "exö")
    path = empty_file(tmp_path / "squash", MIB).path
    with open(path, "r+b") as file:
        file.write(b"hsqs" + bytes(24) + struct.pack("<HH", 4, 0))
    assert agrees(path).kind == "squashfs"
    assert blkid(path)["TYPE"] == "squashfs"


def _exfat(path: Path) -> None:
    """A boot sector, a FAT and a root directory. Source: Microsoft's exFAT specification."""
    boot = b"\xeb\x76\x90EXFAT   " + bytes(53)
    boot += struct.pack("<QQIIIIII", 0, 32768, 128, 128, 256, 32000, 4, 0xCAFE1234)
    boot += struct.pack("<HHBBBB", 0x100, 0, 9, 3, 1, 0x80)
    boot = boot.ljust(510, b"\0") + b"\x55\xaa"
    other = boot.ljust(SECTOR, b"\0")
    sectors = [other, *[bytes(508) + b"\0\0\x55\xaa"] * 8, bytes(512), bytes(512)]
    total = 0
    for at, byte in enumerate(b"".join(sectors)):
        if at not in (106, 107, 112):
            total = ((total >> 1 | (total & 1) << 31) + byte) & 0xFFFFFFFF
    label = "exö".encode("utf-16-le")
    with open(path, "r+b") as file:
        for start in (0, 12 * SECTOR):
            file.seek(start)
            file.write(b"".join(sectors) + struct.pack("<I", total) * 128)
        file.seek(128 * SECTOR + 16)
        file.write(struct.pack("<I", 6))  # cluster 4 goes on in 6
        file.seek((256 + 2 * 8) * SECTOR)
        file.write((b"\x81" + bytes(31)) * 128)
        file.seek((256 + 4 * 8) * SECTOR)
        file.write(b"\x83\x03" + label)


def test_an_image_of_a_cd_is_told(tmp_path: Path) -> None:
    path = empty_file(tmp_path / "iso", MIB).path
    first = b"\x01CD001\x01" + bytes(33) + b"INSTALLATION    ".ljust(32)
    first = first.ljust(813, b"\0") + b"2022090418554300\0" + b"2023010203040506\0"
    with open(path, "r+b") as file:
        file.seek(32768)
        file.write(first.ljust(2048, b"\0") + (b"\xffCD001\x01").ljust(2048, b"\0"))
    volume = agrees(path)
    assert (volume.kind, volume.uuid) == ("iso9660", "2023-01-02-03-04-05-06")
    assert volume.label == "INSTALLATION"


@pytest.mark.parametrize("version", ["luks1", "luks2"])
def test_luks_is_refused_with_what_it_is(tmp_path: Path, version: str) -> None:
    path = empty_file(tmp_path / "disk", 32 * MIB).path
    kind = ("--pbkdf", "pbkdf2") if version == "luks2" else ()
    key = tmp_path / "key"
    key.write_text("secret")
    call("cryptsetup", *LUKS_QUICK, key, "--type", version, *kind, path)
    volume = agrees(path)
    assert volume.kind == "luks"
    assert f"encrypted with {version.upper()}" in volume.problem
    with open(path, "r+b") as file:
        file.write(bytes(6))  # only the second header of LUKS2 is left
    assert only(FileDisk(path)).kind == ("luks" if version == "luks2" else "unknown")


def test_bitlocker_is_refused_with_what_it_is(tmp_path: Path) -> None:
    head = (b"\xeb\x58\x90-FVE-FS-" + bytes(499))[:510] + b"\x55\xaa"
    volume = only(MemoryDisk(MIB, [(0, head)]))
    assert volume.kind == "bitlocker"
    assert "BitLocker" in volume.problem
    guid = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")
    head = b"\xeb\x58\x90MSWIN4.1".ljust(424, b"\0") + guid
    volume = only(MemoryDisk(MIB, [(0, head.ljust(510, b"\0") + b"\x55\xaa")]))
    assert volume.kind == "bitlocker"


@pytest.mark.parametrize(("minor", "at"), [(0, RAID_BYTES - 8192), (1, 0), (2, 4096)])
def test_a_member_of_a_raid_is_not_taken_for_what_lies_on_it(
    tmp_path: Path, minor: int, at: int
) -> None:
    uuid, name = bytes(range(16)), b"host:0".ljust(32, b"\0")
    head = struct.pack("<IIII", 0xA92B4EFC, 1, 0, 0) + uuid + name + struct.pack("<QI", 0, 1)
    head = head.ljust(144, b"\0") + struct.pack("<Q", at // SECTOR)
    path = empty_file(tmp_path / "disk", RAID_BYTES).path
    with open(path, "r+b") as file:
        file.seek(1024 + 56)
        file.write(b"\x53\xef")  # a mirror's member looks like its file system
        file.seek(at)
        file.write(head.ljust(256, b"\0") + struct.pack("<H", 0xFFFF))
    volume = agrees(path)
    assert (volume.kind, volume.label) == ("md", "host:0")
    assert volume.problem == f"it is a member of a Linux software RAID (RAID1, metadata 1.{minor})"
    assert blkid(path)["TYPE"] == "linux_raid_member"


def test_an_old_raid_is_told(tmp_path: Path) -> None:
    path = empty_file(tmp_path / "disk", RAID_BYTES).path
    head = struct.pack("<8I", 0xA92B4EFC, 0, 90, 0, 0, 0x11223344, 0, 5)
    head = head.ljust(52, b"\0") + struct.pack("<3I", 1, 2, 0xAABBCCDD)
    with open(path, "r+b") as file:
        file.seek(RAID_BYTES - 65536)
        file.write(head)
    volume = agrees(path)
    assert (volume.kind, "RAID5, metadata 0.90" in volume.problem) == ("md", True)


def test_a_member_of_a_zfs_pool_is_told(tmp_path: Path) -> None:
    path = empty_file(tmp_path / "disk", 64 * MIB).path

    def pair(name: bytes, kind: int, value: bytes) -> bytes:
        padded = name + bytes(-len(name) % 4)
        body = struct.pack(">I", len(name)) + padded + struct.pack(">II", kind, 1) + value
        return struct.pack(">II", len(body) + 8, 0) + body

    pairs = struct.pack(">II", 0x01010000, 0) + struct.pack(">I", 1)
    pairs += pair(b"name", 9, struct.pack(">I", 4) + b"tank")
    pairs += pair(b"pool_guid", 8, struct.pack(">Q", 1234567890123456789)) + bytes(8)
    with open(path, "r+b") as file:
        for label in (0, 262144, 64 * MIB - 524288, 64 * MIB - 262144):
            file.seek(label + 16384)
            file.write(pairs)
            for ring in range(8):
                file.seek(label + 131072 + ring * 1024)
                file.write(struct.pack("<Q", 0x00BAB10C))
    volume = only(FileDisk(path))
    assert (volume.kind, volume.uuid, volume.label) == ("zfs", "1234567890123456789", "tank")
    assert blkid(path)["TYPE"] == "zfs_member"


def test_a_cache_is_told() -> None:
    magic = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
    head = bytes(24) + magic + bytes(range(16)) + bytes(16) + b"fast"
    volume = only(MemoryDisk(MIB, [(4096, head)]))
    assert (volume.kind, volume.label) == ("bcache", "fast")
    assert volume.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"


def test_a_hibernated_system_is_noted() -> None:
    disk = MemoryDisk(MIB, [(4096 - 10, b"S1SUSPEND\0"), (1024, struct.pack("<I", 1) + b"x" * 40)])
    volume = only(disk)
    assert (volume.kind, volume.problem) == ("swap", "")
    assert "hibernated" in volume.note


def test_zeros_are_empty_and_others_are_shown() -> None:
    assert only(MemoryDisk(0)).kind == "empty"
    assert only(MemoryDisk(8 * MIB)).kind == "empty"
    volume = only(MemoryDisk(8 * MIB, [(48, b"\x01\x02\x03")]))
    assert volume.kind == "unknown"
    assert "01 02 03 00" in volume.problem
    assert "at byte 48" in volume.problem
    assert only(MemoryDisk(8 * MIB, [(8 * MIB - 1, b"x")])).kind == "unknown"


@pytest.mark.parametrize(
    ("offset", "magic", "what"),
    [(3, b"ReFS\0\0\0\0", "ReFS"), (32, b"NXSB", "APFS"), (0x100000, b"\x0d\xd0\x01\xc0", "VMFS")],
)
def test_what_is_not_read_is_called_by_its_name(offset: int, magic: bytes, what: str) -> None:
    volume = only(MemoryDisk(4 * MIB, [(offset, magic)]))
    assert volume.kind == "unknown"
    assert what in volume.problem


def test_a_journal_alone_is_no_file_system(tmp_path: Path) -> None:
    path = empty_file(tmp_path / "disk", 16 * MIB).path
    call("mkfs.ext4", "-q", "-O", "journal_dev", path)
    volume = agrees(path)
    assert volume.kind == "unknown"
    assert "journal of an ext" in volume.problem


def test_a_file_system_on_a_whole_disk_is_no_table(tmp_path: Path) -> None:
    """The code in a FAT's boot sector may look like four partitions."""
    path = empty_file(tmp_path / "disk", 32 * MIB).path
    call("mkfs.vfat", path)
    with open(path, "r+b") as file:
        file.seek(446)
        file.write(struct.pack("<B3xB3xII", 0x80, 0x83, 2048, 2048))
    assert only(FileDisk(path)).kind == "vfat"


def test_partitions_without_file_systems_are_called_by_their_types(tmp_path: Path) -> None:
    path = empty_file(tmp_path / "disk", 16 * MIB).path
    kind = "21686148-6449-6E6F-744E-656564454649"
    call("sfdisk", "-q", path, stdin=f"label: gpt\nsize=2048, type={kind}\n")
    (volume,) = find({"d": FileDisk(path)})
    assert (volume.name, volume.kind) == ("d:1", "unknown")
    assert volume.problem == "it is the space of a BIOS boot loader"


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, bytes]]:
    """Sizes and first MiB of file systems."""
    folder = tmp_path_factory.mktemp("heads")
    found = []
    for name in ("ext4", "btrfs", "ntfs", "fat12", "fat32", "swap"):
        _, size, program, *arguments = MADE[name]
        disk = empty_file(folder / name, size * MIB)
        call(program, *arguments, disk.path)
        found.append((disk.size_bytes, disk.pread(min(MIB, disk.size_bytes), 0)))
    exfat = empty_file(folder / "exfat", 16 * MIB)
    _exfat(exfat.path)
    return [*found, (exfat.size_bytes, exfat.pread(MIB, 0))]


@pytest.mark.parametrize("seed", range(20))
def test_mutated_file_systems_are_never_an_error(
    heads: list[tuple[int, bytes]], seed: int
) -> None:
    """Numbers of a superblock become others; MemoryDisk asserts that no read leaves the disk."""
    rng = random.Random(seed)
    for _ in range(20):
        size, head = heads[rng.randrange(len(heads))]
        cut = rng.choice([len(head), rng.randrange(len(head))])
        size = rng.choice([size, len(head[:cut]), max(1, cut) + rng.randrange(4096)])
        if size < cut:
            continue
        disk = MemoryDisk(size, [(0, head[:cut])])
        for _ in range(rng.randint(1, 8)):
            at = rng.choice([rng.randrange(512), 1024 + rng.randrange(512), rng.randrange(80000)])
            value = rng.choice([b"\0", b"\xff", b"\xff" * 4, b"\x80", b"\x01", rng.randbytes(2)])
            if at + len(value) <= size:
                disk.put(at, value)
        assert probe(disk).kind
        find({"d": disk})


@pytest.mark.parametrize("seed", range(10))
def test_noise_is_never_an_error(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        size = rng.choice([0, 1, 511, 512, 513, 1024, 4096, 65536, 70000, 200_000])
        disk = MemoryDisk(size, [(0, rng.randbytes(size))] if size else [])
        assert find({"d": disk})


@pytest.mark.parametrize(
    ("first", "then"), [("btrfs", "xfs"), ("btrfs", "ext4"), ("ext4", "btrfs")]
)
def test_what_an_earlier_file_system_left_is_not_taken_for_the_new_one(
    tmp_path: Path, first: str, then: str
) -> None:
    path = empty_file(tmp_path / "disk", 320 * MIB).path
    for name in (first, then):
        _, _, program, *arguments = MADE[name]
        force = "-F" if program == "mkfs.ext4" else "-f"
        call(program, *arguments, force, path)
    assert only(FileDisk(path)).kind == then
