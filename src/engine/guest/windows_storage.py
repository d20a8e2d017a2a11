"""Windows finds its disk on the new hardware: what is changed in SYSTEM for that.

A driver that starts at boot (Start 0, no StartOverride) is loaded by the boot loader. Which
device it is for, the kernel takes from DriverDatabase (Windows 8 and later), or from
CriticalDeviceDatabase (before); a device that neither knows is added to both.

Filter drivers of another hypervisor that do not find it keep the disk from starting. They
are switched off, and taken out of the lists of filters: a filter that is listed and does not
load is what stops Windows with INACCESSIBLE_BOOT_DEVICE. What merely finds no device (viostor,
pvscsi, vmbus, storvsc) does no harm, and stays.

Source: layout of DriverDatabase: virt-v2v's notes on Windows 8 and later; StartOverride,
SanPolicy, LowerFilters: Microsoft's "Service triggers", "SAN policy", "Installing a filter
driver".
Tests: tests/test_windows.py
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import GuestError
from .base import Controller, Wanted
from .edits import Edits, Tree, printable
from .hives import Hive, Key, binary, dword, string, strings
from .windows_drivers import CONTROLLERS, Driver, Package, find_package

BOOT, DISABLED = 0, 4
DRIVERS_AT = "/Windows/System32/drivers"
_STORE = "/Windows/System32/DriverStore/FileRepository"
_DRIVER_BYTES_MAX = 64 << 20
_CLASSES_MAX = 2000
_SAN_ONLINE_ALL = 1
_KERNEL_DRIVER, _NORMAL = 1, 1
_IN_BOX = ("ide", "ahci", "nvme")
_LABEL = "rollpoint-{service}.inf"
_CONFIGURATION = "rollpoint"

# Drivers that expect the hypervisor that the guest leaves, and what they belong to.
FOREIGN = {
    **dict.fromkeys(
        (
            "xenbus",
            "xenfilt",
            "xenvbd",
            "xencrsh",
            "xendisk",
            "xeniface",
            "xennet",
            "xenvif",
            "xenpci",
            "xenhide",
            "xenscsi",
            "xevtchn",
            "scsifilt",
            "rhelscsi",
            "rhelfltr",
            "rhelnet",
        ),
        "Xen",
    ),
    **dict.fromkeys(
        (
            "prl_boot",
            "prl_dd",
            "prl_eth5",
            "prl_fs",
            "prl_memdev",
            "prl_mouf",
            "prl_pv32",
            "prl_pv64",
            "prl_scsi",
            "prl_sound",
            "prl_strg",
            "prl_tg",
            "prl_time",
        ),
        "Parallels",
    ),
}


class NewFile(NamedTuple):
    """A file that is to be put into the guest."""

    path: str
    data: bytes
    what: str


class Storage(NamedTuple):
    """What a controller needs, found before anything is changed.

    Attributes:
        drivers: Each with the package it comes from, None for the guest's own.
        files: To be written beside the registry.
    """

    drivers: tuple[tuple[Driver, Package | None], ...]
    files: tuple[NewFile, ...]


def plan(
    tree: Tree, system: Hive, sets: Sequence[str], wanted: Wanted, year: int, name: str
) -> Storage:
    """Find the drivers of the controller that is wanted.

    Args:
        sets: Names of the control sets that are changed.
        year, name: Of this Windows.

    Raises:
        GuestError: There is no driver, in the guest or among those given.
    """
    drivers: list[tuple[Driver, Package | None]] = []
    files: list[NewFile] = []
    for driver in CONTROLLERS[wanted.controller]:
        if driver.service and _is_ready(tree, system, sets, driver):
            drivers.append((driver, None))
            continue
        stored = _in_store(tree, driver)
        if stored is not None:
            drivers.append((driver, None))
            data = tree.read(stored, _DRIVER_BYTES_MAX)
            files.append(_driver_file(driver, data, "from its driver store"))
            continue
        package = find_package(wanted.drivers, driver.ids, year) if driver.ids else None
        known = _supplied(driver, package) if package is not None else None
        if known is None or package is None:
            raise _no_driver(wanted.controller, driver, wanted.drivers, name)
        drivers.append((known, package))
        files.append(_driver_file(known, package.read(known.file.lower()), "as supplied"))
    return Storage(tuple(drivers), tuple(files))


def _driver_file(driver: Driver, data: bytes, origin: str) -> NewFile:
    return NewFile(
        f"{DRIVERS_AT}/{driver.file}", data, f"driver of the disk's controller, {origin}"
    )


def _is_ready(tree: Tree, system: Hive, sets: Sequence[str], driver: Driver) -> bool:
    """Whether the driver's file is where its service, or a new one, looks for it."""
    for name in sets:
        path = system.text((name, "Services", driver.service), "ImagePath")
        place = guest_path(path) if path else f"{DRIVERS_AT}/{driver.file}"
        if place is None or tree.any_case(place) is None:
            return False
    return True


def guest_path(image: str) -> str | None:
    """Where a driver's ImagePath points; None where it is not below Windows' directory."""
    path = image.strip().strip('"').replace("\\", "/")
    low = path.lower()
    for start in ("/systemroot/", "%systemroot%/", "/??/c:/windows/", "c:/windows/"):
        if low.startswith(start):
            path = path[len(start) :]
            break
    else:
        if not low.startswith("system32/"):
            return None
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return None if ".." in parts or "\0" in path else "/Windows/" + "/".join(parts)


def _in_store(tree: Tree, driver: Driver) -> str | None:
    """The driver's file in Windows' own store: the last of its versions by name."""
    if not driver.inf:
        return None
    store = tree.any_case(_STORE)
    found = tree.glob(f"{store}/{driver.inf}_amd64_*/{driver.file}") if store else []
    return found[-1] if found else None


def _supplied(driver: Driver, package: Package) -> Driver | None:
    """The driver with what a package says of it; None where it names no service and file."""
    if driver.file.lower() in package.files:
        return driver
    if not package.service or not package.file:
        return None
    return driver._replace(service=package.service, file=package.file)


def _no_driver(controller: Controller, driver: Driver, directory: str, name: str) -> GuestError:
    file = driver.file or "a driver"
    seen = f", and {directory} has none for {driver.ids[0]}" if directory and driver.ids else ""
    others = "" if controller in _IN_BOX else ", or choose ahci or nvme, which need none"
    return GuestError(
        f"{printable(name)} has no driver for the {controller} controller: {file} is not in "
        f"System32\\drivers nor in its driver store{seen}",
        "give a directory with the driver's .inf and .sys ([guest] drivers in replica.toml)"
        + others,
    )


def apply(system: Hive, sets: Sequence[str], storage: Storage) -> None:
    """Have the drivers started at boot, for the devices they are for."""
    for name in sets:
        for driver, _ in storage.drivers:
            _start_at_boot(system, name, driver)
            for device in driver.ids:
                _name_device(system, name, driver, device)
    for driver, _ in storage.drivers:
        _register(system, driver)


def _start_at_boot(system: Hive, control_set: str, driver: Driver) -> None:
    service = (control_set, "Services", driver.service)
    what = f"{driver.service} is started at boot: the disk's controller on the new hardware"
    old = system.values(service)
    have = {name.casefold() for name in old}
    fresh = "imagepath" not in have
    system.set(service, "Start", dword(BOOT), what)
    if "type" not in have:
        system.set(service, "Type", dword(_KERNEL_DRIVER), what)
    if "errorcontrol" not in have:
        system.set(service, "ErrorControl", dword(_NORMAL), what)
    if "group" not in have:
        system.set(service, "Group", string(driver.group), what)
    if fresh:
        image = string(f"System32\\drivers\\{driver.file}", expand=True)
        system.set(service, "ImagePath", image, what)
        system.set((*service, "Parameters", "PnpInterface"), "5", dword(1), what)
    system.remove_key((*service, "StartOverride"), f"nothing keeps {driver.service} from starting")


def _name_device(system: Hive, control_set: str, driver: Driver, device: str) -> None:
    key = (control_set, "Control", "CriticalDeviceDatabase", f"PCI#{device}")
    what = f"{driver.service} serves {device}"
    system.set(key, "Service", string(driver.service), what)
    system.set(key, "ClassGUID", string(driver.device_class), what)


def _register(system: Hive, driver: Driver) -> None:
    """Tell DriverDatabase of those devices that no driver in it is for."""
    database = ("DriverDatabase",)
    known = [name.upper() for name in system.keys((*database, "DeviceIds", "PCI"))]
    if not system.has(database):
        return
    label = _LABEL.format(service=driver.service.lower())
    package = f"{label}_amd64_0000000000000000"
    for device in driver.ids:
        ours = (*database, "DeviceIds", "PCI", device)
        if any(name.startswith(device) for name in known):
            continue
        what = f"{driver.service} serves {device}"
        system.set(ours, label, binary(b"\x01\xff\x00\x00"), what)
        inf = (*database, "DriverInfFiles", label)
        system.set(inf, "", strings([package]), what)
        system.set(inf, "Active", string(package), what)
        system.set(inf, "Configurations", strings([_CONFIGURATION]), what)
        place = (*database, "DriverPackages", package)
        # Flags, the machine (9 is x86_64), the class; date and version are zero: any other
        # package for the device goes before this one.
        version = bytes.fromhex("00ff090000000000") + uuid.UUID(driver.device_class).bytes_le
        system.set(place, "Version", binary(version + bytes(24)), what)
        configuration = (*place, "Configurations", _CONFIGURATION)
        system.set(configuration, "ConfigFlags", dword(0), what)
        system.set(configuration, "Service", string(driver.service), what)
        descriptor = (*place, "Descriptors", "PCI", device)
        system.set(descriptor, "Configuration", string(_CONFIGURATION), what)


def knows_device(hive: Hive, ids: Sequence[str]) -> bool | None:
    """Whether a driver for one of these devices is installed; None where nothing tells."""
    answer: bool | None = None
    for place in (("DriverDatabase", "DeviceIds", "PCI"), ("DeviceIds", "PCI")):
        names = [name.upper() for name in hive.keys(place)]
        if any(name.startswith(device) for name in names for device in ids):
            return True
        answer = False if names else answer
    return answer


def disable_foreign(system: Hive, control_set: str) -> None:
    """Take the drivers of another hypervisor out of the boot path."""
    services = (control_set, "Services")
    there = {name.casefold() for name in system.keys(services)}
    gone = {}
    for service, origin in FOREIGN.items():
        if service not in there:
            continue
        gone[service] = origin
        start = system.number((*services, service), "Start")
        if start is not None and start < DISABLED:
            what = f"a driver of {origin}, which the new hardware is not, is switched off"
            system.set((*services, service), "Start", dword(DISABLED), what)
    if gone:
        _drop_filters(system, control_set, gone)


def _drop_filters(system: Hive, control_set: str, gone: dict[str, str]) -> None:
    classes = (control_set, "Control", "Class")
    for name in system.keys(classes)[:_CLASSES_MAX]:
        key: Key = (*classes, name)
        for side in ("UpperFilters", "LowerFilters"):
            value = system.value(key, side)
            if value is None:
                continue
            kept = [text for text in value.texts if text.casefold() not in gone]
            if len(kept) == len(value.texts):
                continue
            what = f"filters of {' and '.join(sorted(set(gone.values())))} go"
            if kept:
                system.set(key, side, strings(kept), what)
            else:
                system.remove_value(key, side, what)


def bring_disks_online(system: Hive, control_set: str) -> None:
    """Disks on a controller that Windows has not seen before are used, not left offline."""
    key = (control_set, "Services", "partmgr", "Parameters")
    what = "disks on new controllers come up online"
    system.set(key, "SanPolicy", dword(_SAN_ONLINE_ALL), what)


def put_files(edits: Edits, files: Sequence[NewFile]) -> None:
    """Write the files that are missing or different."""
    for file in files:
        edits.replace(spelled(edits.tree, file.path), file.data, file.what)


def spelled(tree: Tree, path: str) -> str:
    """The path, as far as it is there in the guest's own spelling.

    NTFS can hold "Drivers" beside "drivers", of which Windows sees one.
    """
    parts = path.strip("/").split("/")
    for count in range(len(parts), 0, -1):
        found = tree.any_case("/" + "/".join(parts[:count]))
        if found is not None:
            return "/".join([found, *parts[count:]])
    return path
