"""A Linux guest is made to start on other hardware, and a second time nothing changes."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
from linux_trees import (
    BOOT_UUID,
    DATA_UUID,
    MODULES,
    ROOT_UUID,
    SWAP_UUID,
    found,
    kernel_image,
    modules,
    partition,
    write,
)
from rollpoint.access.base import Space
from rollpoint.access.local import LocalFileSystem
from rollpoint.access.tree import GuestTree
from rollpoint.errors import Error, GuestError
from rollpoint.guest.base import Network, Wanted
from rollpoint.guest.convert import convert
from rollpoint.guest.edits import Edits
from test_inspect import DEBIAN, GRUB_CFG, ROCKY_DISK, rocky
from test_inspect import DISK as ONE_DISK
from tools import require_tool

DISK = [*ONE_DISK, partition(6, "xfs", BOOT_UUID)]
PVSCSI = Wanted(target="vsphere", controller="pvscsi", nic="vmxnet3")
VERSION = "6.1.0-20-amd64"
INITRD = f"boot/initrd.img-{VERSION}"


def debian(place: Path, **more: str | bytes | tuple[str]) -> Path:
    files = {**DEBIAN, "boot/grub/grub.cfg": GRUB_CFG % "0", "etc/initramfs-tools/modules": "# x\n"}
    return write(place, {**files, **{name.replace("__", "/"): c for name, c in more.items()}})


def converted(root: Path, wanted: Wanted = PVSCSI) -> Edits:
    """Convert, and see that a second conversion changes nothing."""
    edits = convert(found({"system:1": root}, DISK), wanted)
    again = convert(found({"system:1": root}, DISK), wanted)
    assert again.changes == []
    assert again.warnings == edits.warnings
    return edits


def unpacked(archive: bytes, place: Path) -> set[str]:
    """What cpio finds in the archives at the end of an initrd, in place."""
    place.mkdir(parents=True)
    for part in (archive[archive.index(b"070701") : -512], archive[-512:]):
        subprocess.run([require_tool("cpio"), "-id", "--quiet"], input=part, cwd=place, check=True)
    return {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}


def test_drivers_are_put_behind_each_initrd(tmp_path: Path) -> None:
    root = debian(tmp_path / "root")
    converted(root)
    data = (root / INITRD).read_bytes()
    assert data.startswith(b"\x1f\x8b")
    assert len(data) % 512 == 0
    start = data.index(b"070701")
    assert start % 512 == 0
    assert start >= 512
    assert data[2:start].strip(b"\0") == b""
    top = f"lib/modules/{VERSION}"
    assert unpacked(data, tmp_path / "out") == {
        f"{top}/kernel/drivers/scsi/vmw_pvscsi.ko",
        f"{top}/kernel/drivers/scsi/scsi_mod.ko",
        f"{top}/kernel/drivers/scsi/scsi_common.ko",
        f"{top}/kernel/drivers/scsi/sd_mod.ko",
        f"{top}/kernel/drivers/net/vmxnet3/vmxnet3.ko",
        *(f"{top}/modules.{name}" for name in ("dep", "dep.bin", "alias", "alias.bin", "softdep")),
        ".rollpoint-drivers",
        "conf/conf.d/rollpoint",
        "etc/cmdline.d/90-rollpoint.conf",
    }
    listed = (tmp_path / "out/conf/conf.d/rollpoint").read_text()
    assert listed == "{ echo; printf '%s\\n' vmw_pvscsi sd_mod; } >>/conf/modules\n"
    driver = f"{top}/kernel/drivers/scsi/vmw_pvscsi.ko"
    assert (tmp_path / "out" / driver).read_bytes() == (root / driver).read_bytes()
    assert b"070701" in data[-512:]
    assert (root / "boot/initrd.img-6.1.0-9-amd64").stat().st_size > 512


def test_no_entry_takes_the_place_of_the_link_lib(tmp_path: Path) -> None:
    root = debian(tmp_path)
    converted(root)
    data = (root / INITRD).read_bytes()
    assert b"\0lib\0" not in data
    assert b"lib/modules\0" in data


def test_a_card_gets_its_name_in_the_initramfs_already(tmp_path: Path) -> None:
    """udev there would give another one, by the card's place, and the system's keep it."""
    root = debian(tmp_path / "root")
    write(root, {"usr/lib/systemd/systemd-udevd": ""})
    cards = [Network(mac="00:50:56:00:00:01", was="52:54:00:00:00:01")]
    converted(root, Wanted(controller="pvscsi", nic="vmxnet3", networks=cards))
    link = "etc/systemd/network/10-rollpoint-ens3.link"
    names = unpacked((root / INITRD).read_bytes(), tmp_path / "out")
    assert link in names
    assert (tmp_path / "out" / link).read_bytes() == (root / link).read_bytes()


def test_the_next_initramfs_gets_the_drivers_too(tmp_path: Path) -> None:
    root = debian(tmp_path)
    converted(root)
    assert (root / "etc/initramfs-tools/modules").read_text() == "# x\nvmw_pvscsi\nsd_mod\n"
    assert not (root / "etc/dracut.conf.d").exists()


def test_other_hardware_later_gets_its_drivers(tmp_path: Path) -> None:
    root = debian(tmp_path)
    converted(root)
    before = (root / INITRD).read_bytes()
    converted(root, Wanted(controller="virtio-blk", nic="virtio-net"))
    after = (root / INITRD).read_bytes()
    assert after.startswith(before)
    assert b"virtio_blk.ko" in after[len(before) :]


def test_a_builtin_driver_needs_nothing(tmp_path: Path) -> None:
    root = debian(tmp_path)
    converted(root, Wanted(controller="nvme", nic="vmxnet3"))
    names = unpacked((root / INITRD).read_bytes(), tmp_path / "out")
    assert {name for name in names if "/modules." not in name} == {
        f"lib/modules/{VERSION}/kernel/drivers/net/vmxnet3/vmxnet3.ko",
        ".rollpoint-drivers",
    }


def test_a_default_kernel_without_the_driver_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    root = debian(tmp_path)
    with pytest.raises(GuestError) as error:
        convert(found({"system:1": root}, DISK), Wanted(controller="lsisas"))
    assert VERSION in error.value.message
    assert "mptsas" in error.value.message
    assert "pvscsi" in error.value.hint
    assert (root / INITRD).read_bytes() == b"\x1f\x8b"
    assert "/dev/sda1" in (root / "etc/fstab").read_text()


def test_another_kernel_without_the_driver_is_warned_of(tmp_path: Path) -> None:
    root = debian(tmp_path)
    (root / "lib/modules/6.1.0-9-amd64/kernel/drivers/scsi/vmw_pvscsi.ko").unlink()
    edits = converted(root)
    assert any("6.1.0-9-amd64 has no driver vmw_pvscsi" in text for text in edits.warnings)


def test_a_default_kernel_without_initramfs_is_refused(tmp_path: Path) -> None:
    root = debian(tmp_path)
    (root / INITRD).unlink()
    with pytest.raises(GuestError, match="no initramfs") as error:
        convert(found({"system:1": root}, DISK), PVSCSI)
    assert error.value.hint.endswith("drivers for nvme")


def test_room_is_asked_for_with_numbers_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = debian(tmp_path)
    monkeypatch.setattr(GuestTree, "space", lambda *_: Space(1000, 10**9, 10**6))
    with pytest.raises(GuestError, match=r"/boot in the guest \(system:1\) has 1000 bytes free"):
        convert(found({"system:1": root}, DISK), PVSCSI)
    assert (root / INITRD).read_bytes() == b"\x1f\x8b"


def test_a_full_root_is_told_with_numbers_and_a_full_var_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = {"system:1": Space(5000, 10**9, 10**6)}
    room = Space(10**9, 10**9, 10**6)
    monkeypatch.setattr(LocalFileSystem, "space", lambda fs: full.get(fs.volume.name, room))
    fstab = f"UUID={ROOT_UUID} / ext4\nUUID={BOOT_UUID} /var xfs\n"
    roots = {"system:1": debian(tmp_path / "root", etc__fstab=fstab), "system:6": tmp_path / "var"}
    roots["system:6"].mkdir()
    with pytest.raises(GuestError, match=r"^/ in the guest \(system:1\) has 5000 bytes free of"):
        convert(found(roots, DISK), PVSCSI)
    full["system:1"] = Space(10**9, 10**9, 3)
    with pytest.raises(GuestError, match=r"has 3 inodes free"):
        convert(found(roots, DISK), PVSCSI)
    full["system:1"] = room
    full["system:6"] = Space(0, 10**9, 0)
    assert convert(found(roots, DISK), PVSCSI).changes


def test_a_guest_of_the_other_firmware_is_refused(tmp_path: Path) -> None:
    root = debian(tmp_path)
    wanted = Wanted(controller="pvscsi", nic="vmxnet3", firmware="uefi")
    with pytest.raises(GuestError, match="prepared for bios alone"):
        convert(found({"system:1": root}, DISK), wanted)


def test_fstab_keeps_all_but_the_names(tmp_path: Path) -> None:
    fstab = (
        "# /etc/fstab\r\n"
        "/dev/sda1\t/ ext4  errors=remount-ro 0 1 # the root\r\n"
        "\t/dev/sda5   none swap sw 0 0\n"
        f"UUID={DATA_UUID} /data xfs nofail 0 0\n"
        "/dev/disk/by-path/pci-0000:00:10.0-scsi-0:0:0:0-part6 /home xfs defaults 0 0\n"
        "/dev/mapper/vg-lv /lv ext4\n"
        "/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0\n"
        "/dev/sdb1 /old ext4 defaults\n"
        "tmpfs /tmp tmpfs"
    )
    root = debian(tmp_path, etc__fstab=fstab)
    edits = converted(root)
    new = fstab.replace("/dev/sda1", f"UUID={ROOT_UUID}").replace("/dev/sda5", f"UUID={SWAP_UUID}")
    new = new.replace("/dev/disk/by-path/pci-0000:00:10.0-scsi-0:0:0:0-part6", f"UUID={BOOT_UUID}")
    assert (root / "etc/fstab").read_bytes().decode() == new
    assert any("/dev/sdb1 (mounted at /old)" in text for text in edits.warnings)
    change = next(c for c in edits.changes if c.file == "/etc/fstab")
    assert "/dev/sda1" in change.before
    assert "proc" not in change.before


def test_the_names_on_the_command_line_become_uuids(tmp_path: Path) -> None:
    cfg = (GRUB_CFG % "0").replace("root=UUID=1 ro quiet", "root=/dev/sda1 resume=/dev/sda5 quiet")
    root = debian(
        tmp_path,
        boot__grub__grub_cfg=cfg,
        etc__default__grub='GRUB_CMDLINE_LINUX="resume=/dev/sda5"\n#root=/dev/sda1\n',
    )
    (root / "boot/grub/grub.cfg").write_text(cfg)
    write(root, {"boot/grub/device.map": "(hd0)\t/dev/disk/by-id/scsi-36000c29\n"})
    write(root, {"etc/initramfs-tools/conf.d/resume": "RESUME=/dev/sda5\n"})
    edits = converted(root)
    new = (root / "boot/grub/grub.cfg").read_text()
    assert new == cfg.replace("/dev/sda1", f"UUID={ROOT_UUID}").replace(
        "/dev/sda5", f"UUID={SWAP_UUID}"
    )
    assert (root / "etc/default/grub").read_text() == (
        f'GRUB_CMDLINE_LINUX="resume=UUID={SWAP_UUID}"\n#root=/dev/sda1\n'
    )
    assert (root / "boot/grub/device.map").read_text() == "(hd0)\t/dev/sda\n"
    assert (root / "etc/initramfs-tools/conf.d/resume").read_text() == f"RESUME=UUID={SWAP_UUID}\n"
    assert edits.warnings == []


def test_a_serial_console_only_when_asked(tmp_path: Path) -> None:
    root = debian(tmp_path, etc__default__grub='GRUB_CMDLINE_LINUX=""\nGRUB_TIMEOUT=5\n')
    converted(root)
    assert "console=ttyS0" not in (root / "boot/grub/grub.cfg").read_text()
    wanted = Wanted(controller="pvscsi", nic="vmxnet3", serial_console=True)
    converted(root, wanted)
    lines = (root / "boot/grub/grub.cfg").read_text().splitlines()
    given = [line for line in lines if line.strip().startswith("linux")]
    assert all(line.endswith(" quiet console=tty0 console=ttyS0,115200") for line in given)
    assert (root / "etc/default/grub").read_text() == (
        'GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"\nGRUB_TIMEOUT=5\n'
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("GRUB_CMDLINE_LINUX=quiet\n", 'GRUB_CMDLINE_LINUX="quiet {}"\n'),
        ("GRUB_CMDLINE_LINUX='a b'  # x\n", "GRUB_CMDLINE_LINUX='a b {}'  # x\n"),
        ("GRUB_CMDLINE_LINUX=\n", 'GRUB_CMDLINE_LINUX="{}"\n'),
        ("GRUB_TIMEOUT=1", 'GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX="{}"\n'),
        ('GRUB_CMDLINE_LINUX="console=ttyS1"\n', 'GRUB_CMDLINE_LINUX="console=ttyS1"\n'),
    ],
)
def test_the_console_is_in_grubs_own_settings(tmp_path: Path, before: str, after: str) -> None:
    root = debian(tmp_path, etc__default__grub=before)
    converted(root, Wanted(controller="pvscsi", nic="vmxnet3", serial_console=True))
    new = (root / "etc/default/grub").read_text()
    assert new == after.format("console=tty0 console=ttyS0,115200")


def test_a_rocky_gets_drivers_for_dracut(tmp_path: Path) -> None:
    roots = rocky(tmp_path)
    write(roots["system:1"], {"EFI/BOOT/BOOTX64.EFI": b"MZ" + bytes(100)})
    write(
        roots["rl/root"],
        {
            "etc/dracut.conf": "",
            "etc/lvm/devices/system.devices": "IDTYPE=sys_wwid\n",
            "etc/kernel/cmdline": "root=/dev/mapper/rl-root ro\n",
        },
    )
    wanted = Wanted(controller="pvscsi", nic="vmxnet3", firmware="uefi", serial_console=True)
    edits = convert(found(roots, ROCKY_DISK), wanted)
    assert convert(found(roots, ROCKY_DISK), wanted).changes == []
    version = "5.14.0-362.8.1.el9_3.x86_64"
    names = unpacked((roots["system:2"] / f"initramfs-{version}.img").read_bytes(), tmp_path / "o")
    assert f"lib/modules/{version}/kernel/drivers/scsi/vmw_pvscsi.ko.xz" in names
    early = (tmp_path / "o/etc/cmdline.d/90-rollpoint.conf").read_text()
    assert early == "rd.driver.pre=vmw_pvscsi,sd_mod\n"
    conf = (roots["rl/root"] / "etc/dracut.conf.d/90-rollpoint.conf").read_text()
    assert conf == 'add_drivers+=" vmw_pvscsi sd_mod "\n'
    assert not (roots["rl/root"] / "etc/lvm/devices/system.devices").exists()
    entry = roots["system:2"] / f"loader/entries/abc-{version}.conf"
    assert "rd.lvm.lv=rl/root console=tty0 console=ttyS0,115200\n" in entry.read_text()
    assert f"linux /vmlinuz-{version}\n" in entry.read_text()
    assert edits.warnings == []


def test_grubs_environment_keeps_its_size(tmp_path: Path) -> None:
    block = b"# GRUB Environment Block\nkernelopts=root=/dev/sda1 ro\nsaved_entry=0\n"
    block = block.ljust(1024, b"#")
    root = debian(tmp_path, boot__grub__grubenv=block)
    converted(root)
    new = (root / "boot/grub/grubenv").read_bytes()
    assert len(new) == 1024
    assert f"kernelopts=root=UUID={ROOT_UUID} ro\nsaved_entry=0\n".encode() in new


def test_two_disks_whose_order_nothing_tells_are_left_as_they_are(tmp_path: Path) -> None:
    root = debian(tmp_path, etc__fstab=f"UUID={ROOT_UUID} / ext4\n/dev/sdb1 /data ext4\n")
    volumes = [*DISK, partition(1, "ext4", DATA_UUID, disk="data")]
    edits = convert(found({"system:1": root, "data:1": tmp_path / "none"}, volumes), PVSCSI)
    assert "/dev/sdb1 /data" in (root / "etc/fstab").read_text()
    assert any("/dev/sdb1" in text for text in edits.warnings)


def test_the_roots_own_name_tells_the_order_of_the_disks(tmp_path: Path) -> None:
    root = debian(tmp_path, etc__fstab="/dev/sda1 / ext4\n/dev/sdb1 /data ext4\n")
    volumes = [*DISK, partition(1, "ext4", DATA_UUID, disk="data")]
    convert(found({"system:1": root}, volumes), PVSCSI)
    new = f"UUID={ROOT_UUID} / ext4\nUUID={DATA_UUID} /data ext4\n"
    assert (root / "etc/fstab").read_text() == new


HOSTILE = {
    "fstab of one endless line": {"etc/fstab": "/dev/sda1 " + "x" * 900_000},
    "fstab of a million lines": {"etc/fstab": "\n" * 1_000_000},
    "fstab too large": {"etc/fstab": "/dev/sda1 / ext4\n" * 100_000},
    "fstab with odd bytes": {
        "etc/fstab": b"/dev/sda1\xff / ext4\n/dev/sda5 \xe9 swap\n\x00\x1b[2J\n"
    },
    "crypttab leads away": {"etc/crypttab": ("../../../../etc/passwd",)},
    "crypttab of commas": {"etc/crypttab": "," * 500_000 + "\nx /dev/sda5\n"},
    "grub.cfg of arguments": {"boot/grub/grub.cfg": "linux " + "root=/dev/sda1 " * 60_000},
    "grub.cfg of blanks": {"boot/grub/grub.cfg": " " * 500_000 + "linux"},
    "grubenv too short": {
        "boot/grub/grubenv": "# GRUB Environment Block\nkernelopts=root=/dev/sda1"
    },
    "grubenv too long": {
        "boot/grub/grubenv": "# GRUB Environment Block\nkernelopts=root=/dev/sda1 " + "x" * 5000
    },
    "device.map of nonsense": {
        "boot/grub/device.map": "(hd99) /dev/sda\n(hd999999) /dev/sdb\n" * 99
    },
    "default grub is a directory": {"etc/default/grub/x": ""},
    "default grub without end": {"etc/default/grub": 'GRUB_CMDLINE_LINUX="root=/dev/sda1'},
    "modules.dep leads away": {
        f"lib/modules/{VERSION}/modules.dep": "../../../../etc/passwd.ko:\n"
        "kernel/drivers/scsi/vmw_pvscsi.ko: ../../../etc/shadow.ko\n/etc/passwd.ko:\n"
        "kernel/drivers/scsi/sd_mod.ko:\n"
    },
    "modules.dep is large": {f"lib/modules/{VERSION}/modules.dep": "x" * (17 << 20)},
    "modules.dep is endless": {f"lib/modules/{VERSION}/modules.dep": "kernel/a.ko: " * 100_000},
    "softdep is hostile": {
        f"lib/modules/{VERSION}/modules.softdep": "softdep sd_mod pre: " + "a " * 99_999
    },
    "initrd is a link away": {INITRD: ("/../../../../../../tmp/nothing-of-the-host",)},
    "initrd loops": {INITRD: (f"initrd.img-{VERSION}",)},
    "tail is forged": {INITRD: b"070701" + b"0" * 5000},
    "modprobe.d is hostile": {"etc/modprobe.d/x.conf": "blacklist\n" * 99_999 + "\xff install"},
    "lvm.conf": {"etc/lvm/lvm.conf": "filter=/dev/" + "\x1b" * 99_999},
    "boot loader entries": {
        "boot/loader/entries/x.conf": "linux\n" * 50_000 + "options " + "root=/dev/sda1 " * 9999,
        "boot/loader/entries/y.conf": ("/boot/loader/entries/y.conf",),
        "boot/loader/entries/z.conf": b"\xff\0linux /vmlinuz\n",
    },
    "entries without end": {f"boot/loader/entries/{n}.conf": "linux /v\n" for n in range(400)},
    "menu.lst": {"boot/grub/menu.lst": "title\nkernel\nmodule\n" * 9999 + "default=" + "9" * 5000},
    "a default that is no number": {
        "boot/grub/grub.cfg": "set default=²\nblscfg\n",
        "boot/loader/entries/x.conf": f"linux /boot/vmlinuz-{VERSION}\n",
    },
    "a path with a NUL": {
        "boot/grub/grub.cfg": "menuentry a {\nlinux /boot/vm\0linuz\ninitrd /a\0b\n}\n"
    },
    "a path of a long name": {
        "boot/grub/grub.cfg": "menuentry a {\nlinux /boot/" + "x" * 5000 + "/y" * 5000 + "\n}\n"
    },
    "a default without end": {
        "boot/grub/grub.cfg": "set default=" + "9" * 5000 + "\nblscfg\n",
        "boot/loader/entries/x.conf": f"linux /boot/vmlinuz-{VERSION}\n",
    },
    "extlinux.conf": {
        "boot/grub/grub.cfg": "",
        "boot/extlinux/extlinux.conf": "append initrd=" + "," * 99_999 + "\nlabel x\n" * 9999,
    },
    "kernel/cmdline": {"etc/kernel/cmdline": "root=/dev/sda1\n" * 60_000},
    "sysconfig/bootloader": {"etc/sysconfig/bootloader": b"\x80resume=/dev/sda5" * 9999},
    "grub_installdevice": {"etc/default/grub_installdevice": "/dev/sda\n/dev/sdzz9\n\x1b" * 9999},
    "initramfs-tools/modules": {"etc/initramfs-tools/modules": b"\xff" * 99_999 + b"\n\0"},
    "dracut.conf.d is a file": {"etc/dracut.conf": "", "etc/dracut.conf.d": ""},
    "dracut.conf.d leads away": {"etc/dracut.conf": "", "etc/dracut.conf.d": ("../../../../tmp",)},
    "units": {f"etc/systemd/system/{n}.mount": b"What=/dev/sda1\xff\n" for n in range(400)},
    "lvm's devices are a directory": {"etc/lvm/devices/system.devices/x": ""},
    "resume": {"etc/initramfs-tools/conf.d/resume": "RESUME=" + "/dev/sda5" * 50_000},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_a_conversion_or_in_an_error_of_ours(
    tmp_path: Path, name: str
) -> None:
    outside = write(tmp_path / "outside", {"kept": "same"})
    files = {**DEBIAN, "boot/grub/grub.cfg": GRUB_CFG % "0"} | HOSTILE[name]
    root = write(tmp_path / "root", files)
    wanted = Wanted(controller="pvscsi", nic="vmxnet3", serial_console=True)
    told: list[str] = []
    with contextlib.suppress(Error):
        told = convert(found({"system:1": root}, DISK), wanted).warnings
        assert convert(found({"system:1": root}, DISK), wanted).changes == []
    assert all(text.isprintable() for text in told)
    assert (outside / "kept").read_text() == "same"
    assert kernel_image(VERSION) == (root / f"boot/vmlinuz-{VERSION}").read_bytes()


def test_modules_of_the_tree_are_what_the_tests_say() -> None:
    assert "lib/modules/1/modules.dep" in modules("1", MODULES)
