"""A whole Debian with systemd and udev, by debootstrap. It wants root and a mirror's packages.

Like the tiny guest it comes from virtio hardware, and its initramfs, which Debian's own
tools make, holds modules for that alone. Its network card has a name from VMware's slots.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tools import missing, require_tool

from . import tiny

MIB = tiny.MIB
DISK_BYTES = 640 * MIB
ADDRESS = "10.0.2.15/24"
SOURCE_NAME = "ens192"  # as VMware has it; no slot of the new hardware gives that name
PACKAGES = "linux-image-cloud-amd64,systemd-sysv,udev,initramfs-tools,iproute2,ifupdown,zstd"
_UNIT = """[Unit]
Description=Tell the tests what was found
After=network-online.target multi-user.target
Wants=network-online.target

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/tell

[Install]
WantedBy=multi-user.target
"""


def build(disk: Path, cache: Path) -> None:
    """Make its disk, a raw image."""
    if os.geteuid() != 0:
        missing("debootstrap wants root")
    work = disk.with_name(disk.name + ".work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    root = work / "root"
    tiny.run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root)
    configure(root)
    for name in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(root / name, ignore_errors=True)
    with open(disk, "wb") as file:
        file.truncate(DISK_BYTES + 2 * MIB)
    table = f"label: dos\nstart=2048, size={DISK_BYTES // 512}, type=83, bootable\n"
    tiny.run("sfdisk", "-q", disk, data=table.encode())
    tiny.install_grub(tiny.Recipe(), disk, work, cache)
    image = tiny.ext4(root, DISK_BYTES, tiny.ROOT_UUID, work)
    tiny.insert(image, disk, MIB)
    shutil.rmtree(work)


def configure(root: Path) -> None:
    """What an installation on virtio hardware leaves."""
    recipe = tiny.Recipe()
    version = next((root / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")
    tiny.put(root / "etc" / "fstab", tiny.fstab(recipe))
    tiny.put(root / "etc" / "hostname", "deb\n")
    tiny.put(root / "boot" / "grub" / "grub.cfg", tiny.grub_cfg(recipe, version))
    tiny.put(root / "etc" / "default" / "grub", "GRUB_DEFAULT=0\n")
    interfaces = f"auto lo\niface lo inet loopback\n\nallow-hotplug {SOURCE_NAME}\n"
    interfaces += f"iface {SOURCE_NAME} inet static\n\taddress {ADDRESS}\n\tgateway 10.0.2.2\n"
    tiny.put(root / "etc" / "network" / "interfaces", interfaces)
    modules = "".join(f"{name}\n" for name in [*tiny.SOURCE_MODULES, "crc32c_generic", "ext4"])
    tiny.put(root / "etc" / "initramfs-tools" / "modules", modules)
    settings = root / "etc" / "initramfs-tools" / "initramfs.conf"
    settings.write_text(settings.read_text().replace("MODULES=most", "MODULES=list"))
    tiny.put(
        root / "usr" / "local" / "sbin" / "tell",
        (tiny.SCRIPTS / "debian-tell.sh").read_bytes(),
        0o755,
    )
    tiny.put(root / "etc" / "systemd" / "system" / "tell.service", _UNIT)
    tiny.put(root / "var" / "log" / "counter", f"{tiny.BOOTS_BEFORE}\n")
    wants = root / "etc" / "systemd" / "system" / "multi-user.target.wants"
    (wants / "tell.service").symlink_to("/etc/systemd/system/tell.service")
    words = [require_tool("chroot"), root, "update-initramfs", "-u", "-k", version]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
