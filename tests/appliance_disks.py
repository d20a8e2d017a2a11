"""Disks with every kind of volume that an appliance opens, and one that only it can."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from lvm_maker import EXTENT_SECTORS, logical, physical, text
from volume_disks import MIB, SECTOR, call, empty_file

sys.path.insert(0, str(Path(__file__).parent / "guests"))
from lvm_writer import write as write_group

BIG = bytes(range(256)) * 20_000  # more than one message of libguestfs holds
LABEL = b"system_u:object_r:etc_t:s0"
ODD = os.fsdecode(b"odd \xff\nname")
PARTITIONS = [  # start and size in MiB, type, program and its options
    (1, 320, "83", "mkfs.xfs", ["-q", "-L", "root"]),
    (321, 160, "83", "mkfs.btrfs", ["-q", "-L", "data"]),
    (482, 16, "7", "mkntfs", ["-q", "-F", "-Q", "-s", "512", "-L", "windows"]),
    (499, 40, "c", "mkfs.vfat", ["-n", "EFI"]),
]
_STRIPED_ID = "stripe-0000-0000-0000-0000-0000-000000"
_EXTENTS = 200


def make_tree(folder: Path) -> None:
    """Ordinary files, and hostile ones."""
    etc = folder / "etc"
    etc.mkdir(parents=True)
    (etc / "fstab").write_bytes(b"LABEL=x / auto defaults 0 1\n")
    (etc / "shadow").write_bytes(b"root:*:\n")
    (etc / "shadow").chmod(0o640)
    (etc / "absolute").symlink_to("/etc/fstab")
    (etc / "up").symlink_to("../../../etc/fstab")
    (folder / "through").symlink_to("etc")
    os.mkfifo(etc / "fifo")
    (folder / ODD).write_bytes(b"odd")
    (folder / "big").write_bytes(BIG)
    with contextlib.suppress(OSError):  # who is not root sets none
        os.setxattr(etc, "security.selinux", LABEL + b"\0")


def make_disks(folder: Path) -> dict[str, Path]:
    """plain: ext4 on the whole disk. parted: four partitions, the last two logical.

    group: linear LVM with xfs. one, two: a striped LVM with ext4, which has no pieces.
    """
    names = ("plain", "parted", "group", "one", "two")
    disks = {name: folder / f"{name}.img" for name in names}
    make_tree(folder / "tree")
    empty_file(disks["plain"], 64 * MIB)
    call("mkfs.ext4", "-q", "-d", folder / "tree", disks["plain"])
    _make_parted(disks["parted"], folder)
    image = empty_file(folder / "image", 320 * MIB).path
    call("mkfs.xfs", "-q", image)
    empty_file(disks["group"], 336 * MIB)
    write_group(disks["group"], 0, 336 * MIB, "vg-0.x", "root", image)
    _make_striped(disks["one"], disks["two"], folder)
    return disks


def _make_parted(disk: Path, folder: Path) -> None:
    empty_file(disk, 540 * MIB)
    table = "label: dos\n"
    for number, (start, size, kind, _, _) in enumerate(PARTITIONS):
        if number == 2:
            table += f"{disk}3 : start={481 * 2048}, size={59 * 2048}, type=5\n"
        name = number + 1 if number < 2 else number + 3
        table += f"{disk}{name} : start={start * 2048}, size={size * 2048}, type={kind}\n"
    call("sfdisk", "-q", disk, stdin=table)
    for number, (start, size, _, program, options) in enumerate(PARTITIONS):
        image = empty_file(folder / f"partition{number}", size * MIB).path
        call(program, *options, image)
        call("dd", f"if={image}", f"of={disk}", "bs=1M", f"seek={start}", *_SPARSE)


_SPARSE = ("conv=notrunc,sparse", "status=none")


def _make_striped(one: Path, two: Path, folder: Path) -> None:
    image = empty_file(folder / "striped", _EXTENTS * EXTENT_SECTORS * SECTOR).path
    call("mkfs.ext4", "-q", "-d", folder / "tree", image)
    volume = logical("fast", f"{_EXTENTS} pv0 0").replace('id = "fast"', f'id = "{_STRIPED_ID}"')
    volume = volume.replace(
        'stripe_count = 1\nstripes = [\n"pv0", 0\n]',
        f'stripe_count = 2\nstripe_size = {EXTENT_SECTORS}\nstripes = [\n"pv0", 0,\n"pv1", 0\n]',
    )
    data = text(volume, 2, name="vg1").replace(
        b"physical_volumes {", b"max_lv = 0\nmax_pv = 0\nphysical_volumes {", 1
    )
    content, stripe = image.read_bytes(), EXTENT_SECTORS * SECTOR
    for number, path in enumerate((one, two)):
        disk = physical(number, data)
        for place, at in enumerate(range(number * stripe, len(content), 2 * stripe)):
            disk.put(MIB + place * stripe, content[at : at + stripe])
        path.write_bytes(disk.pread(MIB, 0))
        with open(path, "ab") as file:
            for at in range(MIB, disk.size_bytes, MIB):
                file.write(disk.pread(MIB, at))
