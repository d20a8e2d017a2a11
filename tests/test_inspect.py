"""Which system is on the disks, told from trees as each distribution lays them out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from linux_trees import (
    BOOT_UUID,
    ESP_TYPE,
    ESP_UUID,
    MODULES,
    ROOT_UUID,
    SWAP_UUID,
    Opener,
    found,
    kernel_image,
    modules,
    partition,
    program,
    write,
)
from rollpoint.access.base import FileSystem, Stat
from rollpoint.errors import GuestError
from rollpoint.guest.inspect import inspect
from rollpoint.volumes.base import Piece, Volume

DEBIAN = {
    "etc/os-release": ("../usr/lib/os-release",),
    "usr/lib/os-release": (
        'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n'
    ),
    "etc/fstab": "# table\n/dev/sda1 / ext4 errors=remount-ro 0 1\n/dev/sda5 none swap sw 0 0\n",
    "etc/hostname": "db1\n",
    "etc/network/interfaces": "auto lo\niface lo inet loopback\niface ens3 inet dhcp\n",
    "usr/bin/env": program(),
    "boot/vmlinuz-6.1.0-9-amd64": kernel_image("6.1.0-9-amd64"),
    "boot/initrd.img-6.1.0-9-amd64": b"\x1f\x8b",
    "boot/vmlinuz-6.1.0-20-amd64": kernel_image("6.1.0-20-amd64"),
    "boot/initrd.img-6.1.0-20-amd64": b"\x1f\x8b",
    "vmlinuz": ("boot/vmlinuz-6.1.0-20-amd64",),
    **modules("6.1.0-20-amd64", MODULES),
    **modules("6.1.0-9-amd64", MODULES),
}
GRUB_CFG = """
set default="0"
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="%s"
fi
function savedefault {
  save_env saved_entry
}
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-1' {
	search --no-floppy --fs-uuid --set=root 1
	linux	/boot/vmlinuz-6.1.0-20-amd64 root=UUID=1 ro quiet
	initrd	/boot/initrd.img-6.1.0-20-amd64
}
submenu 'Advanced options' $menuentry_id_option 'gnulinux-advanced-1' {
	menuentry 'with 20' $menuentry_id_option 'gnulinux-20' {
		linux	/boot/vmlinuz-6.1.0-20-amd64 root=UUID=1 ro quiet
		initrd	/boot/initrd.img-6.1.0-20-amd64
	}
	menuentry 'with 9' $menuentry_id_option 'gnulinux-9' {
		linux	/boot/vmlinuz-6.1.0-9-amd64 root=UUID=1 ro quiet
		initrd	/boot/initrd.img-6.1.0-9-amd64
	}
}
"""
DISK = [
    Volume("system", (Piece("system", 0, 8 << 30),), 8 << 30, "unknown"),
    partition(1, "ext4", ROOT_UUID, active=True),
    partition(5, "swap", SWAP_UUID, type="82"),
]


def test_a_debian_of_one_partition(tmp_path: Path) -> None:
    root = write(tmp_path, {**DEBIAN, "boot/grub/grub.cfg": GRUB_CFG % "0"})
    guest = found({"system:1": root}, DISK).guest
    assert (guest.os, guest.family, guest.distribution, guest.version) == (
        "linux",
        "debian",
        "debian",
        "12",
    )
    assert guest.name == "Debian GNU/Linux 12 (bookworm)"
    assert (guest.hostname, guest.architecture, guest.networks) == ("db1", "x86_64", ["ens3"])
    assert (guest.root, guest.mounts, guest.boot) == ("system:1", {"/": "system:1"}, ["bios"])
    assert [(k.version, k.initrd, k.modules, k.default) for k in guest.kernels] == [
        ("6.1.0-20-amd64", "/boot/initrd.img-6.1.0-20-amd64", "/lib/modules/6.1.0-20-amd64", True),
        ("6.1.0-9-amd64", "/boot/initrd.img-6.1.0-9-amd64", "/lib/modules/6.1.0-9-amd64", False),
    ]


@pytest.mark.parametrize(
    ("default", "environment"),
    [
        ("1>1", ""),
        ("Advanced options>with 9", ""),
        ("gnulinux-advanced-1>gnulinux-9", ""),
        ("${saved_entry}", "saved_entry=gnulinux-advanced-1>gnulinux-9\n"),
        ("0", "next_entry=gnulinux-9\n"),
    ],
)
def test_the_default_kernel_is_the_one_that_grub_starts(
    tmp_path: Path, default: str, environment: str
) -> None:
    files = {**DEBIAN, "boot/grub/grub.cfg": GRUB_CFG % default}
    files["boot/grub/grubenv"] = ("# GRUB Environment Block\n" + environment).ljust(1024, "#")
    guest = found({"system:1": write(tmp_path, files)}, DISK).guest
    assert [k.version for k in guest.kernels if k.default] == ["6.1.0-9-amd64"]


def test_without_a_loader_the_newest_kernel_is_the_default(tmp_path: Path) -> None:
    guest = found({"system:1": write(tmp_path, DEBIAN)}, DISK).guest
    assert [k.version for k in guest.kernels if k.default] == ["6.1.0-20-amd64"]


ROCKY_ROOT = {
    "etc/os-release": 'NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\n'
    'VERSION_ID="9.3"\nPRETTY_NAME="Rocky Linux 9.3 (Blue Onyx)"\n',
    "etc/fstab": "/dev/mapper/rl-root / xfs defaults 0 0\n"
    f"UUID={BOOT_UUID} /boot xfs defaults 0 0\n"
    f"UUID={ESP_UUID} /boot/efi vfat umask=0077 0 2\n/dev/mapper/rl-swap none swap defaults 0 0\n",
    "usr/bin/env": program(),
    "boot/efi/keep": "",
    **modules("5.14.0-362.8.1.el9_3.x86_64", MODULES, ".xz"),
}
ROCKY_BOOT = {
    "vmlinuz-5.14.0-362.8.1.el9_3.x86_64": kernel_image("5.14.0-362.8.1.el9_3.x86_64"),
    "initramfs-5.14.0-362.8.1.el9_3.x86_64.img": b"\x1f\x8b",
    "initramfs-5.14.0-362.8.1.el9_3.x86_64kdump.img": b"\x1f\x8b",
    "vmlinuz-0-rescue-abc": kernel_image("5.14.0-362.8.1.el9_3.x86_64"),
    "initramfs-0-rescue-abc.img": b"\x1f\x8b",
    "grub2/grub.cfg": 'set default="${saved_entry}"\ninsmod blscfg\nblscfg\n',
    "grub2/grubenv": "# GRUB Environment Block\nsaved_entry=abc-5.14.0-362.8.1.el9_3.x86_64\n",
    "loader/entries/abc-5.14.0-362.8.1.el9_3.x86_64.conf": "title Rocky Linux (5.14.0) 9.3\n"
    "version 5.14.0-362.8.1.el9_3.x86_64\nlinux /vmlinuz-5.14.0-362.8.1.el9_3.x86_64\n"
    "initrd /initramfs-5.14.0-362.8.1.el9_3.x86_64.img $tuned_initrd\n"
    "options root=/dev/mapper/rl-root ro resume=/dev/mapper/rl-swap rd.lvm.lv=rl/root\n",
    "loader/entries/abc-0-rescue.conf": "title Rescue\nversion 0-rescue-abc\n"
    "linux /vmlinuz-0-rescue-abc\ninitrd /initramfs-0-rescue-abc.img\noptions root=x\n",
}
ROCKY_DISK = [
    partition(1, "vfat", ESP_UUID, table="gpt", type=ESP_TYPE),
    partition(2, "xfs", BOOT_UUID, table="gpt"),
    partition(3, "lvm", "pv", table="gpt"),
    Volume("rl/root", (Piece("system", 9 << 20, 1 << 20),), 1 << 20, "xfs", ROOT_UUID),
    Volume("rl/swap", (Piece("system", 10 << 20, 1 << 20),), 1 << 20, "swap", SWAP_UUID),
]


def rocky(place: Path) -> dict[str, Path]:
    return {
        "system:1": write(place / "esp", {"EFI/rocky/shimx64.efi": b"MZ"}),
        "system:2": write(place / "boot", ROCKY_BOOT),
        "rl/root": write(place / "root", ROCKY_ROOT),
    }


def test_a_rocky_with_boot_efi_and_lvm(tmp_path: Path) -> None:
    guest, tree, *_ = found(rocky(tmp_path), ROCKY_DISK)
    assert (guest.family, guest.distribution, guest.version) == ("rhel", "rocky", "9.3")
    assert guest.mounts == {"/": "rl/root", "/boot": "system:2", "/boot/efi": "system:1"}
    assert guest.boot == ["uefi"]
    assert [(k.image, k.initrd, k.default) for k in guest.kernels] == [
        (
            "/boot/vmlinuz-5.14.0-362.8.1.el9_3.x86_64",
            "/boot/initramfs-5.14.0-362.8.1.el9_3.x86_64.img",
            True,
        ),
        ("/boot/vmlinuz-0-rescue-abc", "/boot/initramfs-0-rescue-abc.img", False),
    ]
    assert tree.exists("/boot/efi/EFI/rocky/shimx64.efi")


def test_an_efi_partition_that_cannot_be_read_is_told_and_taken_for_one(tmp_path: Path) -> None:
    roots = {name: root for name, root in rocky(tmp_path).items() if name != "system:1"}
    here = found(roots, ROCKY_DISK)
    assert here.guest.boot == ["uefi"]
    assert here.warnings == (
        "/boot/efi cannot be looked into: system:1 has no driver here",
    )


def test_a_boot_that_is_on_no_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=f"{BOOT_UUID} at /boot"):
        found(rocky(tmp_path), [v for v in ROCKY_DISK if v.name != "system:2"])


def test_a_btrfs_root_in_a_subvolume(tmp_path: Path) -> None:
    fstab = f"UUID={ROOT_UUID} / btrfs subvol=/@ 0 0\nUUID={ROOT_UUID} /var btrfs subvol=@v 0 0\n"
    write(tmp_path, {f"@/{name}": content for name, content in DEBIAN.items()})
    (tmp_path / "@" / "etc" / "fstab").write_text(fstab)
    volumes = [partition(1, "btrfs", ROOT_UUID)]
    guest = found({"system:1": tmp_path}, volumes).guest
    assert guest.subvolumes == {"/": "@", "/var": "@v"}
    assert guest.kernels[0].image == "/boot/vmlinuz-6.1.0-20-amd64"


def test_the_system_that_the_loader_starts_is_taken_and_the_others_are_named(
    tmp_path: Path,
) -> None:
    first = {**DEBIAN, "boot/grub/grub.cfg": (GRUB_CFG % "0").replace("UUID=1", "UUID=TWO")}
    roots = {
        "system:1": write(tmp_path / "a", first),
        "system:2": write(tmp_path / "b", {**DEBIAN, "etc/fstab": "UUID=TWO / ext4"}),
    }
    volumes = [partition(1, "ext4", ROOT_UUID), partition(2, "ext4", "two")]
    opener = Opener(roots, volumes)
    guest = inspect(volumes, opener).guest
    assert guest.root == "system:2"
    assert guest.others == ["Debian GNU/Linux 12 (bookworm) on system:1"]
    assert opener.open == ["system:2"]


@pytest.mark.parametrize("active", [1, 2])
def test_of_two_systems_the_active_partitions_loader_decides(tmp_path: Path, active: int) -> None:
    roots = {
        f"system:{number}": write(
            tmp_path / str(number),
            {**DEBIAN, "boot/grub/grub.cfg": (GRUB_CFG % "0").replace("UUID=1", f"UUID=n{number}")},
        )
        for number in (1, 2)
    }
    volumes = [
        partition(number, "ext4", f"n{number}", active=number == active) for number in (1, 2)
    ]
    guest = found(roots, volumes).guest
    assert guest.root == f"system:{active}"
    assert len(guest.others) == 1


def test_two_systems_with_a_boot_of_their_own_each(tmp_path: Path) -> None:
    """The active partition is the second's /boot; what its loader starts is its root."""
    roots = {}
    for number in (1, 3):
        fstab = f"UUID=n{number} / ext4\nUUID=n{number + 1} /boot ext4\n"
        roots[f"system:{number}"] = write(tmp_path / str(number), {**DEBIAN, "etc/fstab": fstab})
        cfg = (GRUB_CFG % "0").replace("UUID=1", f"UUID=n{number}")
        kernel = "boot/vmlinuz-6.1.0-20-amd64"
        place = tmp_path / str(number + 1)
        files = {"grub/grub.cfg": cfg, kernel.removeprefix("boot/"): DEBIAN[kernel]}
        roots[f"system:{number + 1}"] = write(place, files)
    volumes = [partition(n, "ext4", f"n{n}", active=n == 4) for n in (1, 2, 3, 4)]
    opener = Opener(roots, volumes)
    guest = inspect(volumes, opener).guest
    assert (guest.root, guest.mounts["/boot"]) == ("system:3", "system:4")
    assert guest.others == ["Debian GNU/Linux 12 (bookworm) on system:1"]
    assert sorted(opener.open) == ["system:3", "system:4"]


def test_a_damaged_volume_beside_the_root_is_no_reason_to_stop(tmp_path: Path) -> None:
    volumes = [partition(2, "ext4", "damaged"), *DISK]
    opener = Opener({"system:1": write(tmp_path / "root", DEBIAN), "system:2": tmp_path}, volumes)

    def opening(volume: Volume, subvolume: str = "") -> FileSystem:
        fs = opener(volume, subvolume)
        if volume.name == "system:2":
            fs.list = lambda path: _damaged()  # type: ignore[method-assign]
        return fs

    assert inspect(volumes, opening).guest.root == "system:1"
    assert opener.open == ["system:1"]


def _damaged() -> dict[str, Stat]:
    raise GuestError("the directory is damaged")


def test_another_systems_root_that_is_mounted_is_another_system_still(tmp_path: Path) -> None:
    fstab = "/dev/sda1 / ext4\n/dev/sda2 /mnt/other ext4\n"
    roots = {
        "system:1": write(tmp_path / "a", {**DEBIAN, "etc/fstab": fstab}),
        "system:2": write(tmp_path / "b", DEBIAN),
    }
    guest = found(roots, [partition(1, "ext4", ROOT_UUID), partition(2, "ext4", "two")]).guest
    assert guest.others == ["Debian GNU/Linux 12 (bookworm) on system:2"]


def test_what_a_system_mounts_is_not_looked_into(tmp_path: Path) -> None:
    """An appliance would be launched for a volume of data."""
    fstab = "/dev/sda1 / ext4\n/dev/sda2 /srv xfs\n"
    volumes = [partition(1, "ext4", ROOT_UUID, label="root"), partition(2, "xfs", "two")]
    opener = Opener({"system:1": write(tmp_path, {**DEBIAN, "etc/fstab": fstab})}, volumes)
    tried = []
    inspect(volumes, lambda v, subvolume="": tried.append(v.name) or opener(v, subvolume))
    assert tried == ["system:1"]


def test_no_system_is_told_with_what_was_seen(tmp_path: Path) -> None:
    volumes = [
        partition(1, "luks", "x"),
        partition(2, "ext4", ROOT_UUID),
        partition(3, "xfs", BOOT_UUID),
    ]
    opener = Opener({"system:2": write(tmp_path, {"home/me": ""})}, volumes)
    with pytest.raises(GuestError) as error:
        inspect(volumes, opener)
    assert "system:1: luks" in error.value.message
    assert "system:2: a ext4 file system without an operating system" in error.value.message
    assert "system:3 has no driver here" in error.value.message
    assert opener.open == []


HOSTILE = {
    "fstab loops": {"etc/fstab": ("fstab",)},
    "fstab is no text": {"etc/fstab": bytes(range(256)) * 100},
    "os-release loops": {"etc/os-release": ("/etc/os-release",)},
    "os-release is hostile": {
        "etc/os-release": b"NAME=\x1b[2J\xff\nID=../../x\nVERSION_ID=" + b"9" * 9999
    },
    "grub.cfg nests": {"boot/grub/grub.cfg": "submenu x {\n" * 50_000},
    "grub.cfg closes": {"boot/grub/grub.cfg": "}\n" * 50_000 + "menuentry a {\n}\n" * 50_000},
    "grub.cfg is large": {"boot/grub/grub.cfg": " " * (2 << 20)},
    "grub.cfg leads away": {"boot/grub/grub.cfg": "menuentry a {\nlinux /../../../etc/passwd\n}\n"},
    "kernel's header": {"boot/vmlinuz-6.1.0-20-amd64": b"\xff" * 0x20E + b"HdrS" + b"\xff" * 9},
    "kernels of odd names": {
        b"boot/vmlinuz-6.1\xff".decode("utf-8", "surrogateescape"): kernel_image("6.1"),
        "boot/vmlinuz-6.2\x1b[2J": kernel_image("6.2"),
        b"boot/initrd.img-6.1\xff".decode("utf-8", "surrogateescape"): "x",
    },
    "mount points of odd names": {
        "etc/fstab": b"UUID=%s /\xff\x1b btrfs subvol=\xfe\n" % SWAP_UUID.encode()
    },
    "mount points without end": {
        "etc/fstab": "".join(f"UUID={SWAP_UUID} /{n} auto x\n" for n in range(5000))
    },
    "mount points of one disk without end": {
        "etc/fstab": "".join(f"/dev/sda1 /{n} btrfs x\n" for n in range(50_000))
    },
    "kernel of no length": {"boot/vmlinuz-6.1.0-20-amd64": b""},
    "kernels without end": {f"boot/vmlinuz-{n}": kernel_image(f"6.{n}") for n in range(300)},
    "hostname": {"etc/hostname": b"\x00\x1b]0;x\x07" * 1000},
    "interfaces": {"etc/network/interfaces": "iface " + "x" * 100_000 + " inet static\n" * 1000},
    "programs": {"usr/bin/env": b"\x7fELF"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_does_no_harm(tmp_path: Path, name: str) -> None:
    files = {**DEBIAN, "boot/grub/grub.cfg": GRUB_CFG % "0"} | HOSTILE[name]
    guest = found({"system:1": write(tmp_path, files)}, DISK).guest
    assert guest.root == "system:1"
    assert len(guest.kernels) <= 64
    msgspec.json.encode(guest)
    told = [guest.name, guest.hostname, guest.version, guest.distribution, *guest.networks]
    assert all(text.isprintable() and len(text) < 2000 for text in told)
