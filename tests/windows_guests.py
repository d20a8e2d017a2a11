"""The tree of a Windows Server as far as a conversion looks at it, made in a test."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from hive_files import Keys, hive
from rollpoint.access.local import LocalFileSystem
from rollpoint.access.tree import GuestTree
from rollpoint.guest.hives import Hive, Value, binary, dword, string, strings

CS = "ControlSet001"
CONFIG = "Windows/System32/config"
GUID = "{11111111-2222-3333-4444-555555555555}"
NET = "{4D36E972-E325-11CE-BFC1-08002BE10318}"
BUILDS = {2016: 14393, 2019: 17763, 2022: 20348, 2025: 26100}
IN_BOX = ("LSI_SAS", "storahci", "stornvme", "intelide", "pciide", "atapi")


def service(start: int, file: str) -> dict[str, Value]:
    return {
        "Start": dword(start),
        "Type": dword(1),
        "ErrorControl": dword(3),
        "Group": string("SCSI Miniport"),
        "ImagePath": string(f"System32\\drivers\\{file}", expand=True),
    }


def system_keys(year: int = 2022) -> dict[str, Mapping[str, Value]]:
    keys: dict[str, Mapping[str, Value]] = {
        "Select": {"Current": dword(1), "Default": dword(1), "LastKnownGood": dword(2)},
        f"{CS}\\Control\\ComputerName\\ComputerName": {"ComputerName": string("WINHOST")},
        f"{CS}\\Control\\Session Manager\\Environment": {"PROCESSOR_ARCHITECTURE": string("AMD64")},
        f"{CS}\\Control\\Network\\{NET}\\{GUID}\\Connection": {
            "Name": string("Ethernet0"),
            "PnPInstanceID": string("PCI\\VEN_8086&DEV_10D3&SUBSYS_00000000&REV_00\\3&1&0&18"),
        },
        f"{CS}\\Control\\Network\\{NET}\\{GUID[:-2]}6}}\\Connection": {
            "Name": string("Local Area Connection* 1"),
            "PnPInstanceID": string("ROOT\\KDNIC\\0000"),
        },
        f"{CS}\\Services\\Tcpip\\Parameters": {
            "Hostname": string("winhost"),
            "NV Hostname": string("winhost"),
            "Domain": string(""),
        },
        f"{CS}\\Services\\Tcpip\\Parameters\\Interfaces\\{GUID}": {"EnableDHCP": dword(1)},
        f"{CS}\\Services\\partmgr\\Parameters": {"SanPolicy": dword(4)},
        "DriverDatabase\\DeviceIds\\PCI\\VEN_8086&DEV_10D3": {"net1ic64.inf": binary(b"\1\xff")},
        "DriverDatabase\\DeviceIds\\PCI\\VEN_1000&DEV_0054": {"lsi_sas.inf": binary(b"\1\xff")},
        "DriverDatabase\\DeviceIds\\PCI\\CC_010601": {"mshdc.inf": binary(b"\1\xff")},
        "DriverDatabase\\DriverInfFiles\\net1ic64.inf": {"": strings(["net1ic64.inf_amd64_1"])},
    }
    for name in IN_BOX:
        keys[f"{CS}\\Services\\{name}"] = service(3, f"{name.lower()}.sys")
        keys[f"{CS}\\Services\\{name}\\StartOverride"] = {"0": dword(3)}
    return keys


def software_keys(year: int = 2022) -> Keys:
    return {
        "Microsoft\\Windows NT\\CurrentVersion": {
            "ProductName": string(f"Windows Server {year} Standard"),
            "CurrentBuild": string(str(BUILDS[year])),
            "InstallationType": string("Server"),
        },
        "Microsoft\\Windows\\CurrentVersion": {
            "DevicePath": string("%SystemRoot%\\inf", expand=True)
        },
    }


def program(machine: int = 0x8664) -> bytes:
    """The start of a program for a machine."""
    head = bytearray(512)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 0x3C, 0x80)
    head[0x80:0x86] = b"PE\0\0" + struct.pack("<H", machine)
    return bytes(head)


@cache
def plain_system(year: int) -> bytes:
    return hive(system_keys(year))


@cache
def plain_software(year: int) -> bytes:
    return hive(software_keys(year))


def build(
    root: Path, year: int = 2022, more: Keys | None = None, system: bytes | None = None
) -> GuestTree:
    """A tree below a directory of this host."""
    (root / CONFIG).mkdir(parents=True)
    drivers = root / "Windows/System32/drivers"
    drivers.mkdir()
    for name in IN_BOX:
        (drivers / f"{name.lower()}.sys").write_bytes(program())
    if more:
        system = hive({**system_keys(year), **more})
    (root / CONFIG / "SYSTEM").write_bytes(system or plain_system(year))
    (root / CONFIG / "SOFTWARE").write_bytes(plain_software(year))
    return GuestTree({"/": LocalFileSystem(root)})


def supplied(root: Path, name: str, device: str, *parts: str, machine: int = 0x8664) -> Path:
    """A driver's package, in a directory of those parts."""
    place = root.joinpath(*parts)
    place.mkdir(parents=True, exist_ok=True)
    text = f"""[Version]
Class = SCSIAdapter
CatalogFile = {name}.cat
[Models.NTamd64]
%D% = Install, PCI\\{device}&SUBSYS_00000000
[Install.Services]
AddService = {name}, 2, Service
[Service]
ServiceBinary = %12%\\{name}.sys
"""
    (place / f"{name}.inf").write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))
    (place / f"{name}.sys").write_bytes(program(machine) + name.encode())
    (place / f"{name}.cat").write_bytes(b"catalog")
    (place / f"{name}.pdb").write_bytes(b"symbols")
    return root


def opened(root: Path, name: str = "SYSTEM") -> Hive:
    return Hive((root / CONFIG / name).read_bytes(), name)
