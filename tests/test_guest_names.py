"""Names of disks that the old hardware gave, and what they mean on the disks that are here."""

from __future__ import annotations

import pytest
from linux_trees import BOOT_UUID, DATA_UUID, ROOT_UUID, SWAP_UUID, partition
from rollpoint.guest.names import Names, hardware_name, mapper_name
from rollpoint.volumes.base import Piece, Volume


@pytest.mark.parametrize(
    ("name", "disk", "index", "part"),
    [
        ("/dev/sda", "sda", 0, 0),
        ("/dev/sda1", "sda", 0, 1),
        ("/dev/sdab12", "sdab", 27, 12),
        ("/dev/vdc5", "vdc", 2, 5),
        ("/dev/xvda1", "xvda", 0, 1),
        ("/dev/hdb", "hdb", 1, 0),
        ("/dev/nvme0n1", "nvme0n1", 0, 0),
        ("/dev/nvme1n1p3", "nvme1n1", 1, 3),
        ("/dev/mmcblk0p2", "mmcblk0", 0, 2),
        ("/dev/cciss/c0d1p2", "cciss/c0d1", 1, 2),
        ("/dev/disk/by-id/wwn-0x5000c500-part2", "wwn-0x5000c500", None, 2),
        ("/dev/disk/by-path/pci-0000:00:1f.2-ata-1", "pci-0000:00:1f.2-ata-1", None, 0),
        ("/dev/mapper/mpatha2", "mpatha", None, 2),
        ("/dev/mapper/mpathb-part1", "mpathb", None, 1),
    ],
)
def test_a_name_of_the_old_hardware_is_known(
    name: str, disk: str, index: int | None, part: int
) -> None:
    device = hardware_name(name)
    assert device is not None
    assert (device.disk, device.index, device.part) == (disk, index, part)


@pytest.mark.parametrize(
    "name",
    [
        "UUID=1",
        "LABEL=root",
        "/dev/mapper/vg-root",
        "/dev/vg/root",
        "/dev/disk/by-uuid/1",
        "/dev/disk/by-label/x",
        "/dev/disk/by-partuuid/1",
        "/dev/disk/by-id/dm-name-vg-root",
        "/dev/disk/by-id/dm-uuid-LVM-abc",
        "/dev/disk/by-id/md-uuid-1:2",
        "/dev/md0",
        "/dev/sr0",
        "/dev/sda1x",
        "/dev/sdaaaa1",
        "/dev/sda1234",
        "/dev/vgdata/sda1",
        "sda1",
        "//nas/share",
        "nas:/dev/sda1",
        "/dev/sda1\n",
    ],
)
def test_a_name_that_lasts_is_left_alone(name: str) -> None:
    assert hardware_name(name) is None


ONE = [
    partition(1, "vfat", "1234-ABCD", label="EFI SYS"),
    partition(2, "ext4", ROOT_UUID, label="root"),
    partition(3, "swap", SWAP_UUID),
]
TWO = [
    *ONE,
    partition(1, "xfs", DATA_UUID, disk="data"),
    partition(2, "ext4", BOOT_UUID, disk="data"),
]


@pytest.mark.parametrize(
    ("spec", "volume"),
    [
        (f"UUID={ROOT_UUID}", "system:2"),
        (f'UUID="{ROOT_UUID.upper()}"', "system:2"),
        ("LABEL=root", "system:2"),
        ("/dev/disk/by-label/EFI\\x20SYS", "system:1"),
        ("/dev/disk/by-uuid/1234-ABCD", "system:1"),
        ("PARTUUID=aabbccdd-03", "system:3"),
        ("/dev/sda2", "system:2"),
        ("/dev/nvme0n1p2", "system:2"),
        ("/dev/disk/by-id/ata-X-part3", "system:3"),
        ("/dev/sdb2", None),
        ("/dev/sda9", None),
        ("/dev/sda", None),
        ("LABEL=", None),
        ("/dev/root", None),
        ("proc", None),
    ],
)
def test_a_name_means_a_volume_of_a_single_disk(spec: str, volume: str | None) -> None:
    found = Names(ONE).volume(spec)
    assert (found.name if found else None) == volume


def test_what_fstab_says_is_there_must_be_there() -> None:
    names = Names(ONE)
    assert names.volume("/dev/sda3", "ext4") is None
    assert names.volume("/dev/sda2", "ext3") is not None
    assert names.volume("/dev/sda3", "swap") is not None
    assert names.volume("/dev/sda1", "msdos") is not None


def test_with_several_disks_nothing_is_guessed() -> None:
    assert Names(TWO).volume("/dev/sda2") is None
    assert Names(TWO).volume("/dev/disk/by-id/x-part2") is None


def test_one_known_name_tells_the_order_of_the_disks() -> None:
    names = Names(TWO)
    names.learn("/dev/sda2", ONE[1])
    found = names.volume("/dev/sdb2")
    assert found is not None
    assert found.name == "data:2"
    found = names.volume("/dev/sda1")
    assert found is not None
    assert found.name == "system:1"


def test_a_known_name_against_the_order_tells_nothing_of_other_disks() -> None:
    three = [*TWO, partition(2, "ext4", "5", disk="third")]
    names = Names(three)
    names.learn("/dev/sdc2", ONE[1])
    assert names.volume("/dev/sdb2") is None


def test_a_number_that_is_not_the_volumes_teaches_nothing() -> None:
    names = Names(TWO)
    names.learn("/dev/sda1", ONE[1])
    assert names.volume("/dev/sda2") is None


def test_a_uuid_that_two_volumes_have_is_not_given_to_one() -> None:
    copies = [*ONE, partition(4, "ext4", ROOT_UUID)]
    assert Names(copies).volume(f"UUID={ROOT_UUID}") is None
    assert Names(copies).lasting("/dev/sda4") == "PARTUUID=aabbccdd-04"


def test_a_file_system_on_several_disks_is_one() -> None:
    several = [partition(1, "btrfs", DATA_UUID), partition(2, "btrfs", DATA_UUID)]
    found = Names(several).volume(f"UUID={DATA_UUID}")
    assert found is not None
    assert found.name == "system:1"


def test_a_logical_volume_is_known_by_all_its_names() -> None:
    volume = Volume("vg-0/lv-1", (Piece("system", 0, 1),), 1, "ext4", ROOT_UUID)
    names = Names([partition(1, "lvm", "pv"), volume])
    assert mapper_name(volume) == "vg--0-lv--1"
    assert names.volume("/dev/mapper/vg--0-lv--1") == volume
    assert names.volume("/dev/vg-0/lv-1") == volume
    assert names.volume("/dev/mapper/vg-0-lv-1") is None


def test_a_disk_without_partitions_is_known_by_its_letter() -> None:
    data = Volume("data", (Piece("data", 0, 1),), 1, "xfs", DATA_UUID)
    volumes = [partition(1, "ext4", ROOT_UUID), data]
    names = Names(volumes)
    names.learn("/dev/sda1", volumes[0])
    assert names.lasting("/dev/sdb", "xfs") == f"UUID={DATA_UUID}"
