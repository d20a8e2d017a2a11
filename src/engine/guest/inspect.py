"""Which operating system is on a machine's disks, and its files put together.

Every volume that may hold a system's root is opened, through whatever way the opener takes;
the one that the boot loader starts is kept, with what its fstab mounts and a conversion needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..access.base import FileSystem
from ..access.tree import GuestTree
from ..errors import Error, GuestError
from ..volumes.base import Volume
from . import identity, kernels, loading, network, tables
from .base import BootMode, Guest
from .edits import printable, read_configuration
from .names import Names, hardware_name
from .windows import inspect_windows

OPENED_MAX = 64
NEEDED = ("/usr", "/boot", "/boot/efi", "/efi", "/var")  # beside "/", outer ones first
ESP_AT = "/boot/efi"  # where fstab names no place for it
WINDOWS_ESP_AT = "/EFI system partition"  # beside what Windows calls C:
_ESP_TYPES = ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "ef")
_BIOS_BOOT = "21686148-6449-6e6f-744e-656564454649"
_ROOT_KINDS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "ntfs")
_SUBVOLUMES = ("@", "root", "@rootfs", "rootfs")  # openSUSE's is the default one
_OTHERS = ("/mnt", "/media")
_SUBVOLUMES_MAX = 16
_TOLD_MAX = 200
_TOLD_CHARACTERS = 400
_HIVE = "/Windows/System32/config/SYSTEM"


class Opener(Protocol):
    """Opens a volume's file system, for whatever the caller wants to do with it."""

    def __call__(self, volume: Volume, subvolume: str = "") -> FileSystem: ...


class Found(NamedTuple):
    """A system. Whoever has it closes the tree.

    Attributes:
        tree: Its files, as far as a conversion needs them.
        volumes: All that were looked at, for the names in its configuration.
        warnings: What the operator should know of what was found.
    """

    guest: Guest
    tree: GuestTree
    volumes: tuple[Volume, ...] = ()
    warnings: tuple[str, ...] = ()


class _System(NamedTuple):
    """A root that was found. name: for people."""

    os: str
    volume: Volume
    subvolume: str
    tree: GuestTree

    @property
    def name(self) -> str:
        return f"{identity.title(self.tree, self.os)} on {self.volume.name}"


def inspect(volumes: Sequence[Volume], opener: Opener) -> Found:
    """Find the system that these disks boot.

    Args:
        volumes: All of them, in the order of the disks.

    Raises:
        GuestError: There is none, with what was seen on each volume and why it was no root;
            or a file system that it needs cannot be told.
        Error: As the opener does, for a file system that the system needs.
    """
    systems: list[_System] = []
    seen: dict[str, str] = {}
    try:
        _find_systems(volumes, opener, systems, seen)
        if not systems:
            raise _nothing(volumes, seen)
        chosen = _started(systems, Names(volumes), volumes, opener)
        others = [printable(system.name) for system in systems if system is not chosen]
        for system in systems:
            if system is not chosen:
                system.tree.close()
        systems = [chosen]
        if chosen.os == "windows":
            return _windows(chosen, volumes, opener, others)
        return _linux(chosen, volumes, opener, others)
    except BaseException:
        for system in systems:
            with contextlib.suppress(Error):
                system.tree.close()
        raise


def _find_systems(
    volumes: Sequence[Volume], opener: Opener, systems: list[_System], seen: dict[str, str]
) -> None:
    """Open what may be a root; volumes that a system's fstab mounts elsewhere are left out."""
    names = Names(volumes)
    claimed: set[str] = set()
    for volume in sorted(volumes, key=_likelihood)[:OPENED_MAX]:
        hidden = volume.kind == "unknown" and not volume.pieces and not systems
        if volume.kind not in _ROOT_KINDS and not hidden:
            continue
        if volume.problem or volume.name in claimed:
            continue
        try:
            system = _system(volume, opener(volume), opener)
        except Error as error:  # another volume may hold the root
            seen[volume.name] = error.message
            continue
        if system is None:
            seen[volume.name] = f"a {volume.kind} file system without an operating system"
            continue
        systems.append(system)
        table = _fstab(system.tree)
        for entry in table:
            if entry.at == "/":
                names.learn(entry.spec, volume)
        for entry in table:
            other = entry.at == "/" or entry.at.startswith(_OTHERS)  # another system's root, maybe
            mounted = None if other else names.volume(entry.spec, entry.kind)
            if mounted is not None:
                claimed.add(mounted.name)


def _likelihood(volume: Volume) -> tuple[bool, bool, bool]:
    """Roots first, so that their fstab tells what need not be looked into."""
    hint = f"{volume.name.rpartition('/')[2]} {volume.label}".lower()
    return (volume.kind == "unknown", "root" not in hint, volume.kind == "ntfs")


def _system(volume: Volume, fs: FileSystem, opener: Opener) -> _System | None:
    """The root on a volume, or below its top (btrfs); all is closed where there is none."""
    tree = GuestTree({"/": fs})
    below: list[str] = []
    try:
        if volume.kind == "ntfs":
            if tree.any_case(_HIVE):
                return _System("windows", volume, "", tree)
        elif identity.is_linux_root(tree):
            return _System("linux", volume, "", tree)
        elif volume.kind == "btrfs":
            below = _subvolumes(tree)
    except BaseException:
        tree.close()
        raise
    tree.close()  # first: nobody mounts one volume twice
    for subvolume in below:
        try:
            tree = GuestTree({"/": opener(volume, subvolume)})
        except Error:  # a directory, and no subvolume
            continue
        try:
            if identity.is_linux_root(tree):
                return _System("linux", volume, subvolume, tree)
        except BaseException:
            tree.close()
            raise
        tree.close()
    return None


def _subvolumes(tree: GuestTree) -> list[str]:
    """Directories at a btrfs volume's top that may hold a root, the usual names first."""
    listed = [name for name, stat in tree.list("/").items() if stat.kind == "directory"]
    ordered = [name for name in _SUBVOLUMES if name in listed] + sorted(listed)
    holding = [n for n in dict.fromkeys(ordered) if tree.is_directory(f"/{n}/etc")]
    return holding[:_SUBVOLUMES_MAX]


def _fstab(tree: GuestTree) -> list[tables.Entry]:
    data, _ = read_configuration(tree, "/etc/fstab")
    return list(tables.entries(data or b""))


def _nothing(volumes: Sequence[Volume], seen: dict[str, str]) -> GuestError:
    said = []
    for volume in volumes[:32]:
        why = seen.get(volume.name) or volume.problem or volume.note or volume.kind
        said.append(f"{volume.name}: {why}")
    return GuestError(
        "no operating system was found; " + printable("; ".join(said) or "there is no volume"),
        "see that all disks of the machine are in the replica; encrypted ones cannot be read",
    )


def _started(
    systems: list[_System], names: Names, volumes: Sequence[Volume], opener: Opener
) -> _System:
    """The one that the boot loader's default starts; the first where nothing tells."""
    if len(systems) == 1:
        return systems[0]
    active = {v.name for v in volumes if v.partition and v.partition.active}
    boots = {system.volume.name: _boot_volume(system, names) for system in systems}
    by_active = [s for s in systems if boots[s.volume.name].name in active]
    for system in [*by_active, *systems]:
        if system.os == "windows":
            if system in by_active:
                return system
            continue
        entries = _entries(system, boots[system.volume.name], opener)
        if not entries:
            continue
        if not entries[0].image:  # it starts another loader
            return next((other for other in systems if other.os == "windows"), system)
        spec = loading.argument(entries[0].options, "root")
        meant = names.volume(spec) if spec else None
        for other in systems:
            if meant is not None and other.volume.name == meant.name:
                return other
        return system
    return systems[0]


def _boot_volume(system: _System, names: Names) -> Volume:
    """The one that its loader's files lie on."""
    for entry in _fstab(system.tree) if system.os == "linux" else []:
        volume = names.volume(entry.spec, entry.kind) if entry.at == "/boot" else None
        if volume is not None:
            return volume
    return system.volume


def _entries(system: _System, boot: Volume, opener: Opener) -> list[loading.Entry]:
    """What its loader offers. Its /boot is let go again: two systems may share one."""
    if boot.name == system.volume.name:
        return loading.load(system.tree)
    try:
        _put(system.tree, "/boot", opener, boot)
    except Error:
        return []
    try:
        return loading.load(system.tree)
    finally:
        system.tree.unmount("/boot").close()


def _linux(
    system: _System, volumes: Sequence[Volume], opener: Opener, others: list[str]
) -> Found:
    names = Names(volumes)
    warnings: list[str] = []
    mounts = {"/": system.volume.name}
    taken = set(mounts.values())
    subvolumes = {"/": system.subvolume} if system.subvolume else {}
    table = _fstab(system.tree)
    for entry in table:
        if entry.at == "/":
            names.learn(entry.spec, system.volume)
    for entry in sorted(table, key=lambda entry: entry.at.count("/")):
        volume = names.volume(entry.spec, entry.kind, taken)
        if entry.at in mounts or not entry.at.startswith("/") or entry.kind == "swap":
            continue
        if volume is None:
            _unknown(entry, warnings)
            continue
        subvolume = next((o[7:].strip("/") for o in entry.options if o.startswith("subvol=")), "")
        mounts[entry.at] = volume.name
        taken.add(volume.name)
        if subvolume:
            subvolumes[entry.at] = subvolume
        if entry.at not in NEEDED or volume == system.volume:
            continue  # another subvolume of the root's: nobody mounts one volume twice
        try:
            _put(system.tree, entry.at, opener, volume, subvolume)
        except Error as error:
            if entry.at in ("/usr", "/boot"):  # these are edited, or read for what is
                raise
            warnings.append(printable(f"{entry.at} cannot be looked into: {error.message}"))
    esp = _esp(volumes)
    if esp is not None and esp.name not in mounts.values():
        warnings += _put_esp(system, esp, ESP_AT, opener, mounts)
    guest = identity.linux(system.tree)
    guest.root = system.volume.name
    guest.mounts, guest.subvolumes = _shown(mounts), _shown(subvolumes)
    guest.others = others
    loaded = loading.load(system.tree)
    guest.kernels = kernels.find(system.tree, loaded)
    if loaded and not loaded[0].image and guest.kernels:
        warnings.append(
            printable(
                f"{loaded[0].file}: its default entry starts no kernel that is there; "
                f"{guest.kernels[0].version} is taken for it"
            )
        )
    guest.boot = _boot_modes(system.tree, volumes, esp, mounts)
    guest.networks = network.find_names(system.tree)
    return Found(guest, system.tree, tuple(volumes), tuple(warnings))


def _shown(named: dict[str, str]) -> dict[str, str]:
    """For the report: the guest's own words, without what is no text, and not without end."""
    return {
        printable(at)[:_TOLD_CHARACTERS]: printable(value)[:_TOLD_CHARACTERS]
        for at, value in list(named.items())[:_TOLD_MAX]
    }


def _unknown(entry: tables.Entry, warnings: list[str]) -> None:
    """A line of fstab whose volume is not there: fatal where a conversion would edit it."""
    local = entry.spec.startswith(("UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "/dev/"))
    if not local or entry.at not in NEEDED:
        return
    said = printable(f"/etc/fstab mounts {entry.spec} at {entry.at}")
    if entry.at in ("/usr", "/boot") and not {"nofail", "noauto"} & set(entry.options):
        why = "several volumes may be meant" if hardware_name(entry.spec) else "no volume is that"
        raise GuestError(
            f"{said}, and {why}",
            "see that all disks of the machine are in the replica, in the machine's order",
        )
    warnings.append(f"{said}, which was not found")


def _put(tree: GuestTree, at: str, opener: Opener, volume: Volume, subvolume: str = "") -> None:
    fs = opener(volume, subvolume)
    try:
        tree.mount(at, fs)
    except BaseException:
        fs.close()
        raise


def _esp(volumes: Sequence[Volume]) -> Volume | None:
    for volume in volumes:
        if volume.partition and volume.partition.type in _ESP_TYPES and volume.kind == "vfat":
            return volume
    return None


def _put_esp(
    system: _System, esp: Volume, at: str, opener: Opener, mounts: dict[str, str]
) -> list[str]:
    """Mount the EFI system partition where fstab says nothing of it. Returns warnings."""
    try:
        _put(system.tree, at, opener, esp)
    except Error as error:
        said = f"the EFI system partition {esp.name} cannot be read: {error.message}"
        return [printable(said)]
    mounts[at] = esp.name
    return []


def _boot_modes(
    tree: GuestTree, volumes: Sequence[Volume], esp: Volume | None, mounts: dict[str, str]
) -> list[BootMode]:
    """What the disks are prepared for, as far as files and partitions tell."""
    found: list[BootMode] = []
    tables_seen = {volume.partition.table for volume in volumes if volume.partition}
    types = {volume.partition.type for volume in volumes if volume.partition}
    grub_pc = any(tree.is_directory(f"/boot/{name}/i386-pc") for name in ("grub", "grub2"))
    if _BIOS_BOOT in types or grub_pc or ("gpt" not in tables_seen and esp is None):
        found.append("bios")
    if esp is not None:
        opened = tree.mounts
        places = [at for at, name in mounts.items() if name == esp.name and at in opened]
        if not places or any(tree.any_case(f"{at}/EFI") for at in places):
            found.append("uefi")
    return found


def _windows(
    system: _System, volumes: Sequence[Volume], opener: Opener, others: list[str]
) -> Found:
    warnings: list[str] = []
    mounts = {"/": system.volume.name}
    esp = _esp(volumes)
    if esp is not None:
        warnings += _put_esp(system, esp, WINDOWS_ESP_AT, opener, mounts)
    guest = inspect_windows(system.tree)
    if guest is None:
        raise GuestError(f"{system.volume.name} holds Windows without a registry")
    guest.root = system.volume.name
    guest.mounts, guest.others = mounts, others
    guest.boot = ["uefi"] if esp is not None else ["bios"]
    return Found(guest, system.tree, tuple(volumes), tuple(warnings))
