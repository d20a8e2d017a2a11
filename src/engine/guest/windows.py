"""Windows guests: what is told of them, and what makes them start on other hardware.

All of it happens in the registry, offline: SYSTEM for the drivers that are started at boot,
the policy for new disks, the network's addresses and the service of the first start; SOFTWARE
only where drivers were supplied. Nothing of the guest is run here.

Promised for Windows Server 2016 to 2025; what is older back to 2008 R2, and desktop Windows
of the same builds, is converted by the same rules, with a warning.

Tests: tests/test_windows.py, on registries that libhivex makes: no disk of Windows may be
shipped with a test.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import GuestError, NotFoundError
from . import windows_first_boot as first_boot
from . import windows_network as network
from . import windows_storage as storage
from .base import Guest, Wanted
from .edits import Edits, Tree, printable
from .hive_file import HiveFile
from .hives import Hive, dword, string
from .windows_drivers import NICS, Package, find_package

CONFIG = "/Windows/System32/config"
HIBERNATION = "/hiberfil.sys"
_CURRENT_VERSION = ("Microsoft", "Windows NT", "CurrentVersion")
_DEVICE_PATH = ("Microsoft", "Windows", "CurrentVersion")
_SETS_MAX = 999
# First build of each Windows Server, newest first.
_SERVERS = ((26100, 2025), (20348, 2022), (17763, 2019), (14393, 2016), (9600, 2013), (9200, 2012))
_BUILD_MIN = 7600  # Windows Server 2008 R2
_PROMISED = 14393
_GROWTH_BYTES = 2 << 20  # of the hives and the directories, at most
_MACHINES = {"amd64": "x86_64", "x86": "i686", "arm64": "aarch64"}


class _Version(NamedTuple):
    name: str
    build: int
    server: bool

    @property
    def year(self) -> int:
        """Of the Windows Server that its kernel is of."""
        return next((year for build, year in _SERVERS if self.build >= build), 2009)


def inspect_windows(tree: Tree) -> Guest | None:
    """What is told of a Windows on the file system at "/"; None where there is none.

    Root, mounts, boot mode and others are the caller's to fill in.

    Raises:
        GuestError, DamagedError: It is one, and its registry cannot be read.
    """
    if tree.any_case(f"{CONFIG}/SYSTEM") is None:
        return None
    version = _version(tree)
    guest = Guest(os="windows", family="windows", distribution="windows")
    guest.name = printable(version.name) or "Windows"
    guest.version = f"10.0.{version.build}" if version.build >= 10000 else str(version.build)
    with HiveFile(tree, f"{CONFIG}/SYSTEM") as file:
        system = file.hive
        current = control_sets(system)[0]
        guest.architecture = _machine(system, current)
        place = (current, "Control", "ComputerName", "ComputerName")
        host = (current, "Services", "Tcpip", "Parameters")
        guest.hostname = printable(
            system.text(host, "Hostname") or system.text(place, "ComputerName")
        )
        guest.networks = [printable(name) for name in network.names(system, current)]
    return guest


def convert(edits: Edits, guest: Guest, wanted: Wanted) -> None:
    """Have Windows start on the hardware that is wanted.

    Raises:
        GuestError: It hibernates; it is too old, or for another machine; there is no driver
            for the controller, or no room (with numbers); its registry is damaged.
        UsageError: What the operator gave cannot be used.
    """
    refuse_hibernated(edits.tree)
    version = _known(guest) or _version(edits.tree)
    _refuse_version(edits, version)
    script = first_boot.read_script(wanted.first_boot)
    with HiveFile(edits.tree, f"{CONFIG}/SYSTEM", writable=True) as file:
        system = file.hive
        sets = control_sets(system)
        if _machine(system, sets[0]) != "x86_64":
            raise GuestError(
                f"{printable(version.name)} is for {_machine(system, sets[0])}: only 64-bit x86 "
                "is converted"
            )
        found = storage.plan(edits.tree, system, sets, wanted, version.year, version.name)
        packages = [package for _, package in found.drivers if package is not None]
        packages += _nic_package(edits, system, wanted, version)
        files = list(found.files) + _package_files(packages)
        storage.apply(system, sets, found)
        for name in sets:
            storage.disable_foreign(system, name)
            storage.bring_disks_online(system, name)
            if wanted.target == "qemu":
                _read_clock_as_utc(system, name)
        network.rename(edits, system, sets, wanted.hostname)
        start = first_boot.FirstBoot(
            network.plan(edits, system, sets[0], wanted),
            script,
            tuple(_below_windows(new.path) for new in found.files),
            bool(packages),
        )
        first_boot.install(system, sets, start)
        _check_space(edits.tree, files)
        storage.put_files(edits, files)
        file.save(edits)
    if packages:
        _search_drivers_place(edits)


def refuse_hibernated(tree: Tree) -> None:
    """A system that sleeps wakes up with what it had in memory, whatever its disk says.

    Raises:
        GuestError: It does.
    """
    path = tree.any_case(HIBERNATION)
    if path is None:
        return
    head = tree.read_part(path, 0, 4096)
    if head[:4].lower() == b"hibr":
        raise GuestError(
            "Windows in the guest is hibernated, or was shut down with fast startup: what its "
            "disk holds is not what it goes on with",
            "take a point from while it was running, or switch fast startup off in the source "
            "(powercfg /h off)",
        )


def control_sets(system: Hive) -> list[str]:
    """Names of the sets that Windows may start with: the default one first.

    Raises:
        GuestError: None is there.
    """
    keys = {name.casefold(): name for name in system.keys(())}
    found: list[str] = []
    for choice in ("Default", "Current"):
        number = system.number(("Select",), choice)
        if number is None or not 0 < number <= _SETS_MAX:
            continue
        name = keys.get(f"controlset{number:03d}")
        if name is not None and name not in found:
            found.append(name)
    if not found:
        raise GuestError(
            "the registry names no control set that is there (Select in SYSTEM)",
            "it may be damaged: take an earlier point",
        )
    return found


def _known(guest: Guest) -> _Version | None:
    """What inspection found, so that SOFTWARE, often 100 MB long, is not read again."""
    build = guest.version.rpartition(".")[2]
    if not build.isdecimal() or not guest.name:
        return None
    return _Version(guest.name, int(build), "server" in guest.name.lower())


def _version(tree: Tree) -> _Version:
    """Name and build, from SOFTWARE.

    Raises:
        GuestError: They are not there.
    """
    try:
        with HiveFile(tree, f"{CONFIG}/SOFTWARE") as file:
            values = file.hive.values(_CURRENT_VERSION)
    except NotFoundError as error:
        raise GuestError(
            "Windows in the guest has no SOFTWARE registry", "take an earlier point"
        ) from error
    by_name = {name.casefold(): value.text for name, value in values.items()}
    build = by_name.get("currentbuild") or by_name.get("currentbuildnumber") or ""
    if not re.fullmatch(r"[0-9]{1,6}", build):
        raise GuestError(
            "Windows in the guest does not say which build it is (CurrentBuild in SOFTWARE)",
            "its registry may be damaged: take an earlier point",
        )
    name = by_name.get("productname", "")[:200]
    kind = name + by_name.get("installationtype", "")
    return _Version(name, int(build), "server" in kind.lower())


def _refuse_version(edits: Edits, version: _Version) -> None:
    if version.build < _BUILD_MIN:
        raise GuestError(
            f"{printable(version.name)} (build {version.build}) is too old to be converted",
            "Windows Server 2016 to 2025 are; back to 2008 R2 it is tried",
        )
    if version.build < _PROMISED or not version.server:
        edits.warn(
            f"{version.name} (build {version.build}) is none of Windows Server 2016 to 2025, "
            "which this was made for: rehearse it with a boot"
        )


def _machine(system: Hive, control_set: str) -> str:
    place = (control_set, "Control", "Session Manager", "Environment")
    name = system.text(place, "PROCESSOR_ARCHITECTURE").lower()
    return _MACHINES.get(name, printable(name)[:20] or "an unknown machine")


def _nic_package(edits: Edits, system: Hive, wanted: Wanted, version: _Version) -> list[Package]:
    """The supplied driver of the network card; a warning where nothing has one."""
    ids = NICS[wanted.nic]
    if storage.knows_device(system, ids):
        return []
    if edits.tree.any_case(f"{CONFIG}/DRIVERS") is not None:
        with HiveFile(edits.tree, f"{CONFIG}/DRIVERS") as file:
            if storage.knows_device(file.hive, ids):
                return []
    package = find_package(wanted.drivers, ids, version.year)
    if package is None:
        edits.warn(
            f"no driver for the {wanted.nic} network card was found in the guest: it may come up "
            "without a network; give one in [guest] drivers, or another nic"
        )
        return []
    return [package]


def _package_files(packages: list[Package]) -> list[storage.NewFile]:
    what = "a supplied driver, for Windows to install"
    return [
        storage.NewFile(f"{first_boot.DRIVERS_PLACE}/{name}", package.read(name), what)
        for package in packages
        for name in package.files
    ]


def _below_windows(path: str) -> str:
    return path.removeprefix("/Windows/").replace("/", "\\")


def _check_space(tree: Tree, files: list[storage.NewFile]) -> None:
    wanted = _GROWTH_BYTES + sum(len(file.data) + 4096 for file in files)
    space = tree.space("/")
    if space.bytes_free < wanted:
        raise GuestError(
            f"C: in the guest has {space.bytes_free} bytes free of {space.bytes_total}; its "
            f"conversion wants {wanted}",
            "make room in the guest, or fail over to an earlier point",
        )


def _read_clock_as_utc(system: Hive, control_set: str) -> None:
    """QEMU's clock shows UTC, where Windows expects the local time unless it is told."""
    place = (control_set, "Control", "TimeZoneInformation")
    old = system.value(place, "RealTimeIsUniversal")
    if old is not None and any(old.data):  # some have it as a QWORD
        return
    what = "the clock of the new hardware shows UTC"
    system.set(place, "RealTimeIsUniversal", dword(1), what)


def _search_drivers_place(edits: Edits) -> None:
    """Have Windows look for drivers where the supplied ones are."""
    with HiveFile(edits.tree, f"{CONFIG}/SOFTWARE", writable=True) as file:
        old = file.hive.text(_DEVICE_PATH, "DevicePath") or "%SystemRoot%\\inf"
        places = [place for place in old.split(";") if place]
        if first_boot.DRIVERS_WINDOWS.casefold() in (place.casefold() for place in places):
            return
        new = string(";".join([*places, first_boot.DRIVERS_WINDOWS]), expand=True)
        file.hive.set(_DEVICE_PATH, "DevicePath", new, "drivers are looked for there")
        file.save(edits)
