"""What is known of a guest, what is wanted, and what was changed."""

from __future__ import annotations

from typing import Literal

import msgspec

Target = Literal["vsphere", "qemu"]
Controller = Literal[
    "ide", "ahci", "nvme", "virtio-blk", "virtio-scsi", "pvscsi", "lsilogic", "lsisas", "lsi53c895a"
]
Nic = Literal["vmxnet3", "e1000", "e1000e", "virtio-net"]
BootMode = Literal["bios", "uefi"]


class Kernel(msgspec.Struct, kw_only=True):
    """One installed kernel. Paths are the guest's, absolute.

    initrd: "" without one. modules: its directory of modules, "" where it has none.
    """

    version: str
    image: str
    initrd: str = ""
    modules: str = ""
    default: bool = False


class Guest(msgspec.Struct, kw_only=True):
    """An operating system that was found.

    Attributes:
        family: debian, rhel, suse, other (Linux), windows.
        distribution: ID of os-release: debian, ubuntu, rhel, rocky, sles, opensuse-leap ...
        architecture: x86_64, aarch64, i686 ...
        boot: How the disks are prepared to boot (an EFI system partition with a loader, a
            boot sector); both can be.
        root: Name of the root's volume. mounts: mount point -> volume name, as the fstab says
            and as it was found. subvolumes: mount point -> btrfs subvolume.
        networks: Names of its network interfaces, as its configuration has them.
        others: Systems on the same disks that the loader's default does not start.
    """

    os: Literal["linux", "windows"]
    family: str
    distribution: str = ""
    version: str = ""
    name: str = ""  # for people
    architecture: str = ""
    hostname: str = ""
    boot: list[BootMode] = []
    root: str = ""
    mounts: dict[str, str] = {}
    subvolumes: dict[str, str] = {}
    kernels: list[Kernel] = []
    networks: list[str] = []
    others: list[str] = []


class Network(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One network card on the new hardware.

    Attributes:
        mac: Of the card on the new hardware. was: its MAC on the source; "" for the same.
        addresses: With prefix length, as in 10.1.2.3/24: re-IP. Empty: keep what there is.
    """

    mac: str
    was: str = ""
    addresses: list[str] = []
    gateway: str = ""
    gateway6: str = ""


class Wanted(msgspec.Struct, kw_only=True):
    """What the guest is to run on, and what the operator asks for.

    Attributes:
        serial_console: A serial console on the kernel command line.
        networks: The cards. Empty: their MACs stay, and nothing is known of them.
        drivers: Directory on the mount host with Windows drivers (.inf, .sys), "" without.
        first_boot: File on the mount host: a script that Windows runs once. "" without.
    """

    target: Target = "qemu"
    controller: Controller = "virtio-blk"
    nic: Nic = "virtio-net"
    firmware: BootMode = "bios"
    serial_console: bool = False
    hostname: str = ""
    dns: list[str] = []
    networks: list[Network] = []
    drivers: str = ""
    first_boot: str = ""


class Change(msgspec.Struct, kw_only=True):
    """One change of one file.

    Attributes:
        file: Path in the guest. what: what was done and why, in a few words.
        before, after: The lines that differ, or size and digest of what is no text;
            "" where there was no file, or is none any more.
    """

    file: str
    what: str
    before: str
    after: str
