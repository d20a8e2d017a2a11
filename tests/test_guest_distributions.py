"""Each distribution's own layout of kernels, loaders and tables, converted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from linux_trees import (
    BOOT_UUID,
    ESP_TYPE,
    ESP_UUID,
    MODULES,
    ROOT_UUID,
    SWAP_UUID,
    Content,
    found,
    kernel_image,
    modules,
    partition,
    program,
    write,
)
from rollpoint.guest.base import Wanted
from rollpoint.guest.convert import convert
from rollpoint.volumes.base import Piece, Volume

LVM = [
    partition(1, "ext4", BOOT_UUID, active=True),
    partition(2, "lvm", "pv", type="8e"),
    Volume("vg-0/root", (Piece("system", 9 << 20, 1 << 20),), 1 << 20, "ext4", ROOT_UUID),
    Volume("vg-0/swap", (Piece("system", 10 << 20, 1 << 20),), 1 << 20, "swap", SWAP_UUID),
]
PLAIN = [
    partition(1, "ext4", BOOT_UUID, active=True),
    partition(2, "swap", SWAP_UUID, type="82"),
    partition(3, "xfs", ROOT_UUID),
]
BTRFS = [
    partition(1, "swap", SWAP_UUID, type="82"),
    partition(2, "btrfs", ROOT_UUID, active=True),
]
EFI = [
    partition(1, "vfat", ESP_UUID, table="gpt", type=ESP_TYPE),
    partition(2, "ext4", ROOT_UUID, table="gpt"),
]
BY_ID = "/dev/disk/by-id/scsi-36000c2912f8b1d2b5b0e1d5c7a1f9d10-part"
ROOT, SWAP = f"UUID={ROOT_UUID}", f"UUID={SWAP_UUID}"


class Layout(NamedTuple):
    """A distribution's files by volume, what they become, and what is known of it.

    after: Path in the guest -> its text after the conversion.
    """

    volumes: list[Volume]
    files: Mapping[str, Mapping[str, Content]]
    version: str
    initrd: str
    after: Mapping[str, str]
    family: str
    firmware: str = "bios"
    root: str = "system:3"


def kernel(version: str, initrd: str, folder: str = "boot/") -> dict[str, Content]:
    return {
        f"{folder}vmlinuz-{version}": kernel_image(version),
        f"{folder}{initrd.format(version)}": b"\x28\xb5\x2f\xfd" + bytes(1001),
    }


UBUNTU = Layout(
    LVM,
    {
        "vg-0/root": {
            "etc/os-release": 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\n',
            "etc/fstab": "/dev/disk/by-id/dm-uuid-LVM-abc / ext4 defaults 0 1\n"
            "/dev/sda1 /boot ext4 defaults 0 1\n/swap.img none swap sw 0 0\n",
            "etc/initramfs-tools/initramfs.conf": "MODULES=most\n",
            "bin": ("usr/bin",),
            "lib": ("usr/lib",),
            "usr/bin/env": program(),
            **{f"usr/{k}": v for k, v in modules("5.15.0-91-generic", MODULES, ".zst").items()},
        },
        "system:1": {
            **kernel("5.15.0-91-generic", "initrd.img-{}", ""),
            "vmlinuz": ("vmlinuz-5.15.0-91-generic",),
            "initrd.img": ("initrd.img-5.15.0-91-generic",),
            "grub/grub.cfg": "menuentry 'Ubuntu' {\n"
            "\tlinux\t/vmlinuz-5.15.0-91-generic root=/dev/mapper/vg--0-root ro\n"
            "\tinitrd\t/initrd.img-5.15.0-91-generic\n}\n",
        },
    },
    "5.15.0-91-generic",
    "/boot/initrd.img-5.15.0-91-generic",
    {
        "/etc/fstab": "/dev/disk/by-id/dm-uuid-LVM-abc / ext4 defaults 0 1\n"
        f"UUID={BOOT_UUID} /boot ext4 defaults 0 1\n/swap.img none swap sw 0 0\n",
        "/boot/grub/grub.cfg": "menuentry 'Ubuntu' {\n"
        "\tlinux\t/vmlinuz-5.15.0-91-generic root=/dev/mapper/vg--0-root ro\n"
        "\tinitrd\t/initrd.img-5.15.0-91-generic\n}\n",
        "/etc/initramfs-tools/modules": "vmw_pvscsi\nsd_mod\n",
    },
    "debian",
    root="vg-0/root",
)

RHEL8_VERSION = "4.18.0-513.5.1.el8_9.x86_64"
RHEL8 = Layout(
    PLAIN,
    {
        "system:3": {
            "etc/os-release": 'ID="rhel"\nVERSION_ID="8.9"\n',
            "etc/fstab": "/dev/sda3 / xfs defaults 0 0\n/dev/sda1 /boot ext4 defaults 1 2\n"
            "/dev/sda2 swap swap defaults 0 0\n",
            "etc/dracut.conf": "",
            "etc/default/grub": 'GRUB_CMDLINE_LINUX="crashkernel=auto resume=/dev/sda2 rhgb"\n',
            "usr/bin/env": program(),
            **modules(RHEL8_VERSION, MODULES, ".xz"),
        },
        "system:1": {
            **kernel(RHEL8_VERSION, "initramfs-{}.img", ""),
            "grub2/i386-pc/normal.mod": "",
            "grub2/grub.cfg": 'if [ "${next_entry}" ] ; then\n   set default="${next_entry}"\n'
            'else\n   set default="${saved_entry}"\nfi\nset kernelopts="root=/dev/sda3 ro "\n'
            "insmod blscfg\nblscfg\n",
            "grub2/grubenv": (
                f"# GRUB Environment Block\nsaved_entry=m-{RHEL8_VERSION}\n"
                "kernelopts=root=/dev/sda3 ro resume=/dev/sda2 rhgb quiet\n"
            ).ljust(1024, "#"),
            f"loader/entries/m-{RHEL8_VERSION}.conf": f"version {RHEL8_VERSION}\n"
            f"linux /vmlinuz-{RHEL8_VERSION}\ninitrd /initramfs-{RHEL8_VERSION}.img\n"
            "options $kernelopts $tuned_params\n",
        },
    },
    RHEL8_VERSION,
    f"/boot/initramfs-{RHEL8_VERSION}.img",
    {
        "/etc/fstab": f"{ROOT} / xfs defaults 0 0\nUUID={BOOT_UUID} /boot ext4 defaults 1 2\n"
        f"{SWAP} swap swap defaults 0 0\n",
        "/etc/default/grub": f'GRUB_CMDLINE_LINUX="crashkernel=auto resume={SWAP} rhgb"\n',
        "/boot/grub2/grubenv": (
            f"# GRUB Environment Block\nsaved_entry=m-{RHEL8_VERSION}\n"
            f"kernelopts=root={ROOT} ro resume={SWAP} rhgb quiet\n"
        ).ljust(1024, "#"),
        "/boot/grub2/grub.cfg": 'if [ "${next_entry}" ] ; then\n   set default="${next_entry}"\n'
        f'else\n   set default="${{saved_entry}}"\nfi\nset kernelopts="root={ROOT} ro "\n'
        "insmod blscfg\nblscfg\n",
        "/etc/dracut.conf.d/90-rollpoint.conf": 'add_drivers+=" vmw_pvscsi sd_mod "\n',
    },
    "rhel",
)

RHEL6_VERSION = "2.6.32-754.el6.x86_64"
RHEL6 = Layout(
    PLAIN,
    {
        "system:3": {
            "etc/redhat-release": "Red Hat Enterprise Linux Server release 6.10 (Santiago)\n",
            "etc/fstab": "/dev/sda3 / xfs defaults 1 1\n/dev/sda1 /boot ext4 defaults 1 2\n",
            "usr/share/dracut/x": "",
            "etc/grub.conf": ("../boot/grub/grub.conf",),
            "sbin/init": program(),
            **modules(RHEL6_VERSION, MODULES),
        },
        "system:1": {
            **kernel(RHEL6_VERSION, "initramfs-{}.img", ""),
            "grub/menu.lst": ("./grub.conf",),
            "grub/device.map": "# made by anaconda\n(hd0)     /dev/vda\n",
            "grub/grub.conf": "default=0\n# kopt=root=/dev/sda3\ntitle Red Hat (2.6.32-754)\n"
            f"\troot (hd0,0)\n\tkernel /vmlinuz-{RHEL6_VERSION} ro root=/dev/sda3 quiet\n"
            f"\tinitrd /initramfs-{RHEL6_VERSION}.img\n",
        },
    },
    RHEL6_VERSION,
    f"/boot/initramfs-{RHEL6_VERSION}.img",
    {
        "/boot/grub/grub.conf": f"default=0\n# kopt=root={ROOT}\ntitle Red Hat (2.6.32-754)\n"
        f"\troot (hd0,0)\n\tkernel /vmlinuz-{RHEL6_VERSION} ro root={ROOT} quiet\n"
        f"\tinitrd /initramfs-{RHEL6_VERSION}.img\n",
        "/boot/grub/device.map": "# made by anaconda\n(hd0)     /dev/sda\n",
    },
    "rhel",
)

SLES_VERSION = "5.14.21-150500.55.39-default"
SLES = Layout(
    BTRFS,
    {
        "system:2": {
            "etc/os-release": 'ID="sles"\nID_LIKE="suse"\nVERSION_ID="15.5"\n',
            "etc/fstab": f"{ROOT} / btrfs defaults 0 0\n{ROOT} /var btrfs subvol=/@/var 0 0\n"
            f"{BY_ID}1 swap swap defaults 0 0\n",
            "etc/default/grub": f'GRUB_CMDLINE_LINUX_DEFAULT="splash=silent resume={BY_ID}1"\n',
            "etc/default/grub_installdevice": f"{BY_ID[:-5]}\nactivate\ngeneric_mbr\n",
            "etc/sysconfig/bootloader": f'DEFAULT_APPEND="resume={BY_ID}1 splash=silent"\n',
            "usr/lib/dracut/x": "",
            "usr/bin/env": program(),
            f"boot/vmlinuz-{SLES_VERSION}": (f"../usr/lib/modules/{SLES_VERSION}/vmlinuz",),
            f"boot/initrd-{SLES_VERSION}": b"\x28\xb5\x2f\xfd",
            "boot/vmlinuz": (f"vmlinuz-{SLES_VERSION}",),
            "boot/initrd": (f"initrd-{SLES_VERSION}",),
            f"usr/lib/modules/{SLES_VERSION}/vmlinuz": kernel_image(SLES_VERSION),
            "boot/grub2/device.map": f"(hd0)\t{BY_ID[:-5]}\n",
            "boot/grub2/i386-pc/normal.mod": "",
            "boot/grub2/grub.cfg": "menuentry 'SLES' $menuentry_id_option 'gnulinux-simple-1' {\n"
            f"\tlinux /boot/vmlinuz-{SLES_VERSION} root={ROOT} ${{extra_cmdline}} resume={BY_ID}1\n"
            f"\tinitrd /boot/initrd-{SLES_VERSION}\n}}\n",
            "lib": ("usr/lib",),
            **{f"usr/{k}": v for k, v in modules(SLES_VERSION, MODULES, ".zst").items()},
        }
    },
    SLES_VERSION,
    f"/boot/initrd-{SLES_VERSION}",
    {
        "/etc/fstab": f"{ROOT} / btrfs defaults 0 0\n{ROOT} /var btrfs subvol=/@/var 0 0\n"
        f"{SWAP} swap swap defaults 0 0\n",
        "/etc/default/grub": f'GRUB_CMDLINE_LINUX_DEFAULT="splash=silent resume={SWAP}"\n',
        "/etc/default/grub_installdevice": "/dev/sda\nactivate\ngeneric_mbr\n",
        "/etc/sysconfig/bootloader": f'DEFAULT_APPEND="resume={SWAP} splash=silent"\n',
        "/boot/grub2/device.map": "(hd0)\t/dev/sda\n",
        "/boot/grub2/grub.cfg": "menuentry 'SLES' $menuentry_id_option 'gnulinux-simple-1' {\n"
        f"\tlinux /boot/vmlinuz-{SLES_VERSION} root={ROOT} ${{extra_cmdline}} resume={SWAP}\n"
        f"\tinitrd /boot/initrd-{SLES_VERSION}\n}}\n",
        "/etc/dracut.conf.d/90-rollpoint.conf": 'add_drivers+=" vmw_pvscsi sd_mod "\n',
    },
    "suse",
    root="system:2",
)

MACHINE = "0123456789abcdef0123456789abcdef"
FEDORA_VERSION = "6.6.8-200.fc39.x86_64"
SYSTEMD_BOOT = Layout(
    EFI,
    {
        "system:2": {
            "etc/os-release": 'ID=fedora\nVERSION_ID="39"\n',
            "etc/fstab": "/dev/nvme0n1p2 / ext4 defaults 0 0\n",
            "etc/kernel/cmdline": "root=/dev/nvme0n1p2 ro",
            "boot/empty": "",
            "usr/lib/dracut/x": "",
            "usr/bin/env": program(),
            **modules(FEDORA_VERSION, MODULES, ".xz"),
        },
        "system:1": {
            "EFI/BOOT/BOOTX64.EFI": b"MZ" + bytes(100),
            "EFI/systemd/systemd-bootx64.efi": b"MZ" + bytes(100),
            "loader/loader.conf": f"timeout 3\ndefault {MACHINE}-*\n",
            f"loader/entries/{MACHINE}-{FEDORA_VERSION}.conf": "title Fedora\n"
            f"version {FEDORA_VERSION}\noptions root=/dev/nvme0n1p2 ro\n"
            f"linux /{MACHINE}/{FEDORA_VERSION}/linux\n"
            f"initrd /{MACHINE}/{FEDORA_VERSION}/initrd\n",
            f"{MACHINE}/{FEDORA_VERSION}/linux": kernel_image(FEDORA_VERSION),
            f"{MACHINE}/{FEDORA_VERSION}/initrd": b"\x28\xb5\x2f\xfd" + bytes(99),
        },
    },
    FEDORA_VERSION,
    f"/boot/efi/{MACHINE}/{FEDORA_VERSION}/initrd",
    {
        "/etc/fstab": f"{ROOT} / ext4 defaults 0 0\n",
        "/etc/kernel/cmdline": f"root={ROOT} ro",
        f"/boot/efi/loader/entries/{MACHINE}-{FEDORA_VERSION}.conf": "title Fedora\n"
        f"version {FEDORA_VERSION}\noptions root={ROOT} ro\n"
        f"linux /{MACHINE}/{FEDORA_VERSION}/linux\n"
        f"initrd /{MACHINE}/{FEDORA_VERSION}/initrd\n",
    },
    "rhel",
    firmware="uefi",
    root="system:2",
)

ALPINE = Layout(
    PLAIN,
    {
        "system:3": {
            "etc/os-release": "ID=alpine\nVERSION_ID=3.19.0\n",
            "etc/fstab": f"/dev/xvda3 / xfs rw 0 1\nUUID={BOOT_UUID} /boot ext4 rw 0 2\n",
            "usr/share/mkinitfs/x": "",
            "bin/busybox": program(),
            **modules("6.6.7-0-virt", MODULES, ".gz"),
        },
        "system:1": {
            "vmlinuz-virt": kernel_image("6.6.7-0-virt"),
            "initramfs-virt": b"\x1f\x8b" + bytes(77),
            "extlinux.conf": "DEFAULT menu.c32\n",
            "extlinux/extlinux.conf": "DEFAULT virt\nLABEL virt\n  LINUX vmlinuz-virt\n"
            "  INITRD initramfs-virt\n  APPEND root=/dev/xvda3 modules=sd-mod,ext4 quiet\n",
        },
    },
    "6.6.7-0-virt",
    "/boot/initramfs-virt",
    {
        "/etc/fstab": f"{ROOT} / xfs rw 0 1\nUUID={BOOT_UUID} /boot ext4 rw 0 2\n",
        "/boot/extlinux/extlinux.conf": "DEFAULT virt\nLABEL virt\n  LINUX vmlinuz-virt\n"
        f"  INITRD initramfs-virt\n  APPEND root={ROOT} modules=sd-mod,ext4 quiet\n",
    },
    "other",
)

CENTOS7_VERSION = "3.10.0-1160.el7.x86_64"
CENTOS7_GRUB = """if [ "${{next_entry}}" ] ; then
   set default="${{next_entry}}"
else
   set default="${{saved_entry}}"
fi
menuentry 'CentOS Linux (0-rescue-{machine}) 7 (Core)' --class centos {{
\tlinux16 /vmlinuz-0-rescue-{machine} root={root} ro
\tinitrd16 /initramfs-0-rescue-{machine}.img
}}
menuentry 'CentOS Linux ({version}) 7 (Core)' --class centos --unrestricted {{
\tset root='hd0,msdos1'
\tlinux16 /vmlinuz-{version} root={root} ro crashkernel=auto resume={swap} quiet
\tinitrd16 /initramfs-{version}.img
}}
"""


def centos7_grub(root: str, swap: str) -> str:
    return CENTOS7_GRUB.format(version=CENTOS7_VERSION, machine=MACHINE, root=root, swap=swap)


CENTOS7 = Layout(
    PLAIN,
    {
        "system:3": {
            "etc/os-release": 'NAME="CentOS Linux"\nID="centos"\nVERSION_ID="7"\n',
            "etc/centos-release": "CentOS Linux release 7.9.2009 (Core)\n",
            "etc/fstab": f"UUID={ROOT_UUID} / xfs defaults 0 0\n"
            f"UUID={BOOT_UUID} /boot ext4 defaults 0 0\n"
            "/dev/disk/by-path/pci-0000:03:00.0-scsi-0:0:0:0-part2 swap swap defaults 0 0\n",
            "usr/lib/dracut/x": "",
            "usr/bin/env": program(),
            **modules(CENTOS7_VERSION, MODULES, ".xz"),
        },
        "system:1": {
            **kernel(CENTOS7_VERSION, "initramfs-{}.img", ""),
            f"vmlinuz-0-rescue-{MACHINE}": kernel_image(CENTOS7_VERSION),
            f"initramfs-0-rescue-{MACHINE}.img": b"\x1f\x8b" + bytes(33),
            "grub2/i386-pc/normal.mod": "",
            "grub2/grub.cfg": centos7_grub("/dev/sda3", "/dev/sda2"),
            "grub2/grubenv": (
                f"# GRUB Environment Block\nsaved_entry=CentOS Linux ({CENTOS7_VERSION}) 7 (Core)\n"
            ).ljust(1024, "#"),
        },
    },
    CENTOS7_VERSION,
    f"/boot/initramfs-{CENTOS7_VERSION}.img",
    {
        "/etc/fstab": f"UUID={ROOT_UUID} / xfs defaults 0 0\n"
        f"UUID={BOOT_UUID} /boot ext4 defaults 0 0\n{SWAP} swap swap defaults 0 0\n",
        "/boot/grub2/grub.cfg": centos7_grub(ROOT, SWAP),
    },
    "rhel",
)

ARCH = Layout(
    BTRFS,
    {
        "system:2": {
            f"@/{name}": content
            for name, content in {
                "etc/os-release": "ID=arch\n",
                "etc/fstab": "/dev/vda2 / btrfs rw,subvol=/@ 0 0\n"
                "/dev/vda2 /home btrfs rw,subvol=/@home 0 0\n/dev/vda1 none swap defaults 0 0\n",
                "etc/mkinitcpio.conf": "MODULES=()\n",
                "usr/bin/env": program(),
                "lib": ("usr/lib",),
                "boot/vmlinuz-linux": kernel_image("6.6.9-arch1-1"),
                "boot/initramfs-linux.img": b"\x28\xb5\x2f\xfd" + bytes(55),
                "boot/initramfs-linux-fallback.img": b"\x28\xb5\x2f\xfd" + bytes(56),
                "boot/grub/i386-pc/normal.mod": "",
                "boot/grub/grub.cfg": "menuentry 'Arch Linux' {\n"
                "\tlinux\t/@/boot/vmlinuz-linux root=/dev/vda2 rw rootflags=subvol=@\n"
                "\tinitrd\t/@/boot/intel-ucode.img /@/boot/initramfs-linux.img\n}\n",
                **{f"usr/{k}": v for k, v in modules("6.6.9-arch1-1", MODULES, ".zst").items()},
            }.items()
        }
    },
    "6.6.9-arch1-1",
    "/boot/initramfs-linux.img",
    {
        "/etc/fstab": f"{ROOT} / btrfs rw,subvol=/@ 0 0\n"
        f"{ROOT} /home btrfs rw,subvol=/@home 0 0\n{SWAP} none swap defaults 0 0\n",
        "/boot/grub/grub.cfg": "menuentry 'Arch Linux' {\n"
        f"\tlinux\t/@/boot/vmlinuz-linux root={ROOT} rw rootflags=subvol=@\n"
        "\tinitrd\t/@/boot/intel-ucode.img /@/boot/initramfs-linux.img\n}\n",
    },
    "other",
    root="system:2",
)

LAYOUTS = {
    "centos 7, saved by its title": CENTOS7,
    "arch, btrfs in a subvolume": ARCH,
    "ubuntu 22.04, lvm": UBUNTU,
    "rhel 8, boot loader entries in grub's environment": RHEL8,
    "rhel 6, grub 0.97": RHEL6,
    "sles 15, btrfs, by-id": SLES,
    "fedora, systemd-boot": SYSTEMD_BOOT,
    "alpine, extlinux": ALPINE,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_distribution_is_converted_once(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    roots = {
        volume: write(tmp_path / volume.replace("/", "_"), files)
        for volume, files in layout.files.items()
    }
    firmware = "uefi" if layout.firmware == "uefi" else "bios"
    wanted = Wanted(controller="pvscsi", nic="vmxnet3", firmware=firmware)

    here = found(roots, layout.volumes)
    guest = here.guest
    assert (guest.family, guest.root, guest.architecture) == (
        layout.family,
        layout.root,
        "x86_64",
    )
    assert firmware in guest.boot
    (default,) = [kernel for kernel in guest.kernels if kernel.default]
    assert (default.version, default.initrd) == (layout.version, layout.initrd)

    edits = convert(here, wanted)
    assert edits.warnings == []
    for path, text in layout.after.items():
        assert here.tree.read_text(path) == text, path
    data = here.tree.read(layout.initrd)
    assert b"scsi/vmw_pvscsi.ko" in data
    here.tree.close()

    again = found(roots, layout.volumes)
    assert convert(again, wanted).changes == []
    again.tree.close()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_serial_console_reaches_the_kernels_command_line(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    roots = {
        volume: write(tmp_path / volume.replace("/", "_"), files)
        for volume, files in layout.files.items()
    }
    firmware = "uefi" if layout.firmware == "uefi" else "bios"
    wanted = Wanted(controller="pvscsi", nic="vmxnet3", firmware=firmware, serial_console=True)
    here = found(roots, layout.volumes)
    edits = convert(here, wanted)
    given = [
        line
        for change in edits.changes
        for line in change.after.splitlines()
        if "console=ttyS0,115200" in line
    ]
    words = ("linux", "kernel", "options", "append", "kernelopts", "GRUB_CMDLINE", "root=")
    assert given
    assert all(line.strip().lower().startswith(tuple(w.lower() for w in words)) for line in given)
    assert all("vmlinuz" not in line or "root=" in line for line in given)
    assert convert(here, wanted).changes == []
    here.tree.close()
