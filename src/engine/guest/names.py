"""Which volume a name in a guest's configuration means, and which name of it lasts.

/dev/sda1 is what the old hardware made of the first disk's first partition; by-path and
by-id names hold the old controller's address or the old disk's serial number. The new
hardware has others. What is stored on the disks themselves moves with them: UUIDs, labels,
names of logical volumes.

Source: systemd's 60-persistent-storage.rules; fstab(5); Linux, Documentation/admin-guide/
devices.txt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from ..volumes.base import Volume

# A whole disk and its partition as Linux names them. Bounded, so that no text costs more.
_LETTERS = re.compile(r"(?P<family>sd|hd|vd|xvd)(?P<disk>[a-z]{1,3})(?P<part>[0-9]{1,3})?")
_NUMBERED = re.compile(
    r"(?P<family>nvme[0-9]{1,4}n|mmcblk|nbd|cciss/c[0-9]{1,2}d|ida/c[0-9]{1,2}d)"
    r"(?P<disk>[0-9]{1,4})(?:p(?P<part>[0-9]{1,3}))?"
)
_BY_HARDWARE = re.compile(r"disk/by-(?:path|id)/(?P<disk>.{1,400}?)(?:-part(?P<part>[0-9]{1,3}))?")
_MULTIPATH = re.compile(r"mapper/(?P<disk>mpath[a-z]{1,4})(?:(?:-part|p)?(?P<part>[0-9]{1,3}))?")
_LASTING_IDS = (
    "dm-name-",
    "dm-uuid-LVM-",
    "dm-uuid-CRYPT-",
    "lvm-pv-uuid-",
    "md-name-",
    "md-uuid-",
)
_EXT = ("ext2", "ext3", "ext4")


class Device:
    """A name that the old hardware gave.

    Attributes:
        disk: What stands for the disk, as "sda" or "nvme0n1".
        index: Its place among its kind, from 0; None where the name does not tell.
        part: Number of the partition; 0 is the whole disk.
    """

    def __init__(self, disk: str, index: int | None, part: int) -> None:
        self.disk = disk
        self.index = index
        self.part = part


def hardware_name(spec: str) -> Device | None:
    """What a name says of the old hardware; None for one that lasts, or that is no device."""
    if not spec.startswith("/dev/"):
        return None
    name = spec[len("/dev/") :]
    if found := _LETTERS.fullmatch(name):
        index = 0
        for letter in found["disk"]:
            index = index * 26 + ord(letter) - ord("a") + 1
        return Device(found["family"] + found["disk"], index - 1, int(found["part"] or 0))
    if found := _NUMBERED.fullmatch(name):
        family, number = found["family"], int(found["disk"])
        index = int(family[4:-1]) if family.startswith("nvme") else number
        return Device(f"{family}{number}", index, int(found["part"] or 0))
    if found := _BY_HARDWARE.fullmatch(name):
        if name.startswith("disk/by-id/") and found["disk"].startswith(_LASTING_IDS):
            return None
        return Device(found["disk"], None, int(found["part"] or 0))
    if found := _MULTIPATH.fullmatch(name):
        return Device(found["disk"], None, int(found["part"] or 0))
    return None


def mapper_name(volume: Volume) -> str:
    """Of a logical volume, below /dev/mapper."""
    group, _, name = volume.name.partition("/")
    return f"{group.replace('-', '--')}-{name.replace('-', '--')}"


def _unescaped(text: str) -> str:
    """udev's escapes in names below /dev/disk/by-*: \\x20 for a blank."""
    if "\\x" not in text:
        return text
    raw = re.sub(
        rb"\\x([0-9a-fA-F]{2})",
        lambda m: bytes([int(m[1], 16)]),
        text.encode("utf-8", "surrogateescape"),
    )
    return raw.decode("utf-8", "surrogateescape")


class Names:
    """Names of a machine's volumes.

    Args:
        volumes: All that were found, in the order of the disks.
    """

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self.volumes = volumes
        self.disks = list(dict.fromkeys(d for v in volumes if (d := disk_of(v))))
        self._seen: dict[str, str] = {}  # old name of a disk: its name here

    def learn(self, spec: str, volume: Volume) -> None:
        """That this name is known to mean this volume: then its disk's name is known, too."""
        device = hardware_name(spec)
        disk = disk_of(volume)
        if device is None or not disk:
            return
        number = volume.partition.number if volume.partition else 0
        if number == device.part:
            self._seen.setdefault(device.disk, disk)

    def volume(self, spec: str, kind: str = "", taken: Collection[str] = ()) -> Volume | None:
        """The one that a name means; None when there is none, or no telling which.

        Args:
            spec: As in the first field of fstab, or as of root= on a kernel command line.
            kind: What must be on it, as fstab names it; "" and "auto" for anything.
            taken: Names of volumes that a name of the old hardware does not mean.
        """
        tag, found, value = spec.partition("=")
        if found and not spec.startswith("/"):
            return _only(self._tagged(tag.upper(), value.strip("\"'")))
        device = hardware_name(spec)
        if device is not None:
            return self._on_hardware(device, kind, taken)
        if not spec.startswith("/dev/"):
            return None
        name = spec[len("/dev/") :]
        if name.startswith("disk/by-") and name.count("/") == 2:
            how, value = name[len("disk/by-") :].split("/")
            return _only(self._tagged(how.upper(), _unescaped(value)))
        mapped = name.removeprefix("mapper/")
        for volume in self.volumes:
            if "/" in volume.name and (name == volume.name or mapped == mapper_name(volume)):
                return volume
        return None

    def _tagged(self, tag: str, value: str) -> list[Volume]:
        if not value:
            return []
        lower = value.lower()
        if tag == "UUID":
            return [v for v in self.volumes if v.uuid.lower() == lower and v.kind != "lvm"]
        if tag == "LABEL":
            return [v for v in self.volumes if v.label == value]
        if tag == "PARTUUID":
            return [v for v in self.volumes if v.partition and v.partition.uuid.lower() == lower]
        if tag == "PARTLABEL":
            return [v for v in self.volumes if v.partition and v.partition.name == value]
        return []

    def _on_hardware(self, device: Device, kind: str, taken: Collection[str]) -> Volume | None:
        """Only what is certain: a wrong name in fstab is worse than an old one.

        Nothing is concluded on several disks before one name is known for sure; a second
        conversion, which finds no old name that the first one knew, so concludes no more.
        """
        known = self._seen.get(device.disk)
        one = len(self.disks) == 1
        if known is None and (device.index or 0) >= len(self.disks):
            return None  # of a disk that is not here
        if known is None and not one and not self._seen:
            return None
        others = set(self._seen.values()) if device.index is not None and not one else set()
        same = [
            volume
            for volume in self.volumes
            if (disk := disk_of(volume))
            and (volume.partition.number if volume.partition else 0) == device.part
            and fits(volume, kind)
            and (volume.name not in taken or volume.kind == "btrfs")
            and (disk == known if known else disk not in others)
        ]
        if len(same) > 1 and device.index is not None and self._in_order():
            same = [v for v in same if disk_of(v) == self.disks[device.index]]
        return _only(same)

    def _in_order(self) -> bool:
        orders = []
        for old, here in self._seen.items():
            device = hardware_name(f"/dev/{old}")
            orders.append(device is not None and device.index == self.disks.index(here))
        return bool(orders) and all(orders)

    def lasting(self, spec: str, kind: str = "", *, partition: bool = False) -> str | None:
        """The name to put in the place of one that the old hardware gave.

        Args:
            partition: Name the partition, not what is on it.

        Returns:
            UUID=... or PARTUUID=...; None when nobody knows which volume was meant.
        """
        volume = self.volume(spec, kind)
        return None if volume is None else self.lasting_of(volume, partition=partition)

    def lasting_of(self, volume: Volume, *, partition: bool = False) -> str | None:
        """A volume's own name that lasts; None where it has none that no other has."""
        if volume.uuid and not partition and self._tagged("UUID", volume.uuid) == [volume]:
            return f"UUID={volume.uuid}"
        uuid = volume.partition.uuid if volume.partition else ""
        if uuid and self._tagged("PARTUUID", uuid) == [volume]:
            return f"PARTUUID={uuid}"
        return None


def disk_of(volume: Volume) -> str:
    """The disk it is, or is a partition of; "" for logical volumes."""
    if volume.partition is not None:
        return volume.partition.disk
    return "" if "/" in volume.name else volume.name


def fits(volume: Volume, kind: str) -> bool:
    """Whether a volume holds what fstab says is there."""
    if kind in ("", "auto", "none") or volume.kind == kind:
        return True
    if kind in _EXT:
        return volume.kind in _EXT
    same = {"ntfs-3g": "ntfs", "ntfs3": "ntfs", "msdos": "vfat"}
    return same.get(kind) == volume.kind


def _only(volumes: Iterable[Volume]) -> Volume | None:
    """The first, where all are one file system (btrfs on several volumes); else the only one."""
    found = list(volumes)
    if len(found) > 1 and any(v.kind != "btrfs" or v.uuid != found[0].uuid for v in found):
        return None
    return found[0] if found else None
