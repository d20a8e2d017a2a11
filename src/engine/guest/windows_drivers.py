"""Which driver Windows needs for which hardware, and drivers that an operator gives.

A directory of drivers may be laid out in any way: flat, or as virtio-win has it, by system
and architecture (viostor/2k22/amd64). A package is an .inf file with the files it names that
lie beside it. Names of directories that say a system or an architecture are believed; the
machine that a .sys file is made for is read from the file.

Source: PCI ids: the PCI ID Repository; names of services: the .inf files of the drivers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError, system_error
from .base import Controller, Nic

SCSI_CLASS = "{4d36e97b-e325-11ce-bfc1-08002be10318}"
HDC_CLASS = "{4d36e96a-e325-11ce-bfc1-08002be10318}"
_MINIPORT, _EXTENDER = "SCSI Miniport", "System Bus Extender"


class Driver(NamedTuple):
    """A driver that Windows loads at boot.

    Attributes:
        service: "" where none is known: only a supplied package can tell.
        inf: Of its package in the driver store. ids: PCI devices it serves, as "PCI\\" keys.
        device_class: Its class's GUID.
    """

    service: str
    file: str
    inf: str
    ids: tuple[str, ...]
    group: str = _MINIPORT
    device_class: str = SCSI_CLASS


_LSILOGIC = ("VEN_1000&DEV_0030",)
_LSI53C895A = ("VEN_1000&DEV_0012",)
CONTROLLERS: dict[Controller, tuple[Driver, ...]] = {
    "ide": (
        Driver(
            "intelide",
            "intelide.sys",
            "mshdc.inf",
            ("VEN_8086&DEV_7010", "VEN_8086&DEV_7111"),
            _EXTENDER,
            HDC_CLASS,
        ),
        Driver("pciide", "pciide.sys", "mshdc.inf", ("CC_0101",), _EXTENDER, HDC_CLASS),
        Driver("atapi", "atapi.sys", "mshdc.inf", (), _MINIPORT, HDC_CLASS),
    ),
    "ahci": (
        Driver("storahci", "storahci.sys", "mshdc.inf", ("CC_010601",), _MINIPORT, HDC_CLASS),
    ),
    "nvme": (Driver("stornvme", "stornvme.sys", "stornvme.inf", ("CC_010802",)),),
    "virtio-blk": (
        Driver("viostor", "viostor.sys", "viostor.inf", ("VEN_1AF4&DEV_1001", "VEN_1AF4&DEV_1042")),
    ),
    "virtio-scsi": (
        Driver("vioscsi", "vioscsi.sys", "vioscsi.inf", ("VEN_1AF4&DEV_1004", "VEN_1AF4&DEV_1048")),
    ),
    "pvscsi": (Driver("pvscsi", "pvscsi.sys", "pvscsi.inf", ("VEN_15AD&DEV_07C0",)),),
    "lsisas": (Driver("LSI_SAS", "lsi_sas.sys", "lsi_sas.inf", ("VEN_1000&DEV_0054",)),),
    "lsilogic": (Driver("LSI_SCSI", "lsi_scsi.sys", "lsi_scsi.inf", _LSILOGIC),),
    "lsi53c895a": (Driver("", "", "", _LSI53C895A),),
}
NICS: dict[Nic, tuple[str, ...]] = {
    "vmxnet3": ("VEN_15AD&DEV_07B0",),
    "e1000": ("VEN_8086&DEV_100E", "VEN_8086&DEV_100F"),
    "e1000e": ("VEN_8086&DEV_10D3",),
    "virtio-net": ("VEN_1AF4&DEV_1000", "VEN_1AF4&DEV_1041"),
}

_ENTRIES_MAX = 20_000
_INF_BYTES_MAX = 4 << 20
_PACKAGE_BYTES_MAX = 64 << 20
_MACHINE_X86_64 = 0x8664
# Names of directories, and the year of the Windows Server that has the same kernel.
_YEARS = {"2k8": 2008, "2k8r2": 2009, "2k12": 2012, "2k12r2": 2013, "2k3": 2003, "xp": 2001}
_YEARS |= {f"2k{year % 100}": year for year in (2016, 2019, 2022, 2025)}
_YEARS |= {str(year): year for year in (2008, 2012, 2016, 2019, 2022, 2025)}
_DESKTOPS = {"7": 2009, "8": 2012, "8.1": 2013, "10": 2016, "11": 2022}
_DESKTOP_NAMES = {start + name: year for name, year in _DESKTOPS.items() for start in ("w", "win")}
_YEARS |= _DESKTOP_NAMES
_YEAR_MIN = 2012  # drivers for what is older are signed as newer kernels do not take it
_OTHER_MACHINES = {"x86", "i386", "arm64", "arm", "ia64", "x32", "win32"}
_ID = re.compile(r"PCI\\(VEN_[0-9A-F]{4}&DEV_[0-9A-F]{4}|CC_[0-9A-F]{4,6})", re.IGNORECASE)
_SERVICE = re.compile(r"^\s*AddService\s*=\s*\"?([\w.-]{1,60})", re.IGNORECASE | re.MULTILINE)
_BINARY = re.compile(
    r"^\s*ServiceBinary\s*=\s*\"?%1[23]%\\([\w.-]{1,60}\.sys)", re.IGNORECASE | re.MULTILINE
)
_FILE = re.compile(r"[\w.-]{1,80}\.(?:sys|cat|dll|exe|bin|dat|xml|man)\b", re.IGNORECASE)


class Package(NamedTuple):
    """A supplied driver.

    Attributes:
        inf: Its path here. ids: Which devices it is for, in upper case.
        service, file: What it installs, "" where it says neither.
        files: Name -> path here, of all that belongs to it.
    """

    inf: Path
    ids: frozenset[str]
    service: str
    file: str
    files: dict[str, Path]

    def read(self, name: str) -> bytes:
        """A file of it.

        Raises:
            StorageError, UsageError: It cannot be read, or is far too large for a driver.
        """
        return _read(self.files[name], _PACKAGE_BYTES_MAX)


def find_package(directory: str, ids: Sequence[str], year: int) -> Package | None:
    """The supplied driver for one of these devices that suits this system best.

    Args:
        directory: On this host; "" for none.
        year: Of the Windows Server, as 2019.

    Raises:
        NotFoundError, StorageError: The directory cannot be read.
        UsageError: It holds more than a directory of drivers would.
    """
    if not directory:
        return None
    root = Path(directory)
    best: tuple[int, str] | None = None
    chosen: Package | None = None
    for inf in _infs(root):
        score = _suits(inf.relative_to(root).parent.parts, year)
        if score is None or (best is not None and (score, str(inf)) >= best):
            continue
        package = _package(inf, ids)
        if package is None:
            continue
        best, chosen = (score, str(inf)), package
    return chosen


def _infs(root: Path) -> Iterator[Path]:
    seen = 0

    def stop(error: OSError) -> None:
        raise system_error(f"reading the drivers in {root}", error.errno or 0) from error

    for place, directories, names in os.walk(root, onerror=stop):
        directories.sort()
        seen += len(names) + len(directories)
        if seen > _ENTRIES_MAX:
            raise UsageError(
                f"{root} holds more than {_ENTRIES_MAX} files",
                "give the directory of the drivers alone",
            )
        yield from (Path(place, name) for name in sorted(names) if name.lower().endswith(".inf"))


def _suits(parts: Sequence[str], year: int) -> int | None:
    """How far from this system the directories' names are; None: it is for another one."""
    score = 1
    for part in (part.lower() for part in parts):
        if part in _OTHER_MACHINES or "sriov" in part:
            return None
        if part in _YEARS:
            if not min(_YEAR_MIN, year) <= _YEARS[part] <= year:
                return None
            exact = _YEARS[part] == year and part not in _DESKTOP_NAMES
            score = 0 if exact else 2 + year - _YEARS[part]
    return score


def _package(inf: Path, wanted: Sequence[str]) -> Package | None:
    data = _read(inf, _INF_BYTES_MAX)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
    text = data.decode(encoding, "replace")
    ids = frozenset(found.upper() for found in _ID.findall(text))
    if not ids.intersection(device.upper() for device in wanted):
        return None
    beside = {entry.name.lower(): entry for entry in inf.parent.iterdir() if entry.is_file()}
    named = {name.lower() for name in _FILE.findall(text)}
    files = {name: beside[name] for name in sorted(named) if name in beside}
    files[inf.name.lower()] = inf
    service, binary = _SERVICE.search(text), _BINARY.search(text)
    file = binary[1].lower() if binary else ""
    if file and (file not in files or not is_for_x86_64(_read(files[file], _PACKAGE_BYTES_MAX))):
        return None
    return Package(inf, ids, service[1] if service else "", file, files)


def is_for_x86_64(data: bytes) -> bool:
    """Whether this is a program for 64-bit x86.

    Source: "PE Format", sections "MS-DOS Stub" and "COFF File Header".
    """
    at = int.from_bytes(data[0x3C:0x40], "little")
    machine = int.from_bytes(data[at + 4 : at + 6], "little")
    return data[:2] == b"MZ" and data[at : at + 4] == b"PE\0\0" and machine == _MACHINE_X86_64


def _read(path: Path, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise system_error(f"reading {path}", error.errno or 0) from error
    if len(data) > limit:
        raise UsageError(
            f"{path} is longer than {limit} bytes", "give the directory of the drivers alone"
        )
    return data
