"""A Windows guest: its registry says that it starts on the new hardware.

The registries are libhivex's own work, laid out as those of Windows are: no disk of Windows
may be shipped. That Windows agrees is not shown here.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hive_files import hive
from rollpoint.access.base import Space
from rollpoint.access.local import LocalFileSystem
from rollpoint.access.tree import GuestTree
from rollpoint.errors import Error, GuestError
from rollpoint.guest.base import Guest, Wanted
from rollpoint.guest.convert import convert as convert_found
from rollpoint.guest.edits import Edits
from rollpoint.guest.hives import Hive, Value, dword, string, strings
from rollpoint.guest.inspect import inspect
from rollpoint.guest.windows import convert, inspect_windows
from rollpoint.guest.windows_drivers import find_package
from rollpoint.guest.windows_storage import guest_path
from rollpoint.volumes.base import Partition, Volume
from test_hive_log import entry, log, with_numbers
from windows_guests import (
    BUILDS,
    CONFIG,
    CS,
    GUID,
    build,
    opened,
    plain_system,
    service,
    supplied,
    system_keys,
)

AHCI = Wanted(controller="ahci", nic="e1000e")


def converted(tree: GuestTree, wanted: Wanted = AHCI) -> Edits:
    guest = inspect_windows(tree)
    assert guest is not None
    edits = Edits(tree)
    convert(edits, guest, wanted)
    return edits


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("year", sorted(BUILDS))
def test_what_is_told_of_a_server(tmp_path: Path, year: int) -> None:
    guest = inspect_windows(build(tmp_path, year))
    assert guest == Guest(
        os="windows",
        family="windows",
        distribution="windows",
        version=f"10.0.{BUILDS[year]}",
        name=f"Windows Server {year} Standard",
        architecture="x86_64",
        hostname="winhost",
        networks=["Ethernet0"],
    )


def test_a_file_system_without_windows_is_none(tmp_path: Path) -> None:
    tree = build(tmp_path)
    (tmp_path / CONFIG / "SYSTEM").rename(tmp_path / CONFIG / "SYSTEM.old")
    assert inspect_windows(tree) is None


@pytest.mark.parametrize(
    ("controller", "names"),
    [
        ("ahci", ["storahci"]),
        ("nvme", ["stornvme"]),
        ("lsisas", ["LSI_SAS"]),
        ("ide", ["intelide", "pciide", "atapi"]),
    ],
)
def test_a_driver_of_windows_own_is_started_at_boot(
    tmp_path: Path, controller: str, names: list[str]
) -> None:
    edits = converted(build(tmp_path), Wanted(controller=controller, nic="e1000e"))  # type: ignore[arg-type]
    with opened(tmp_path) as system:
        for name in names:
            place = (CS, "Services", name)
            assert system.number(place, "Start") == 0
            assert not system.has((*place, "StartOverride"))
            assert system.text(place, "ImagePath") == f"System32\\drivers\\{name.lower()}.sys"
            assert system.number(place, "ErrorControl") == 3  # as it was
        others = {"storahci", "stornvme", "LSI_SAS", "intelide"} - set(names)
        assert all(system.number((CS, "Services", name), "Start") == 3 for name in others)
        assert system.number((CS, "Services", "partmgr", "Parameters"), "SanPolicy") == 1
    assert edits.warnings == []
    starts = [c for c in edits.changes if c.after.endswith("\\Start = dword 0")]
    assert [c.before for c in starts] == [f"{CS}\\Services\\{n}\\Start = dword 3" for n in names]
    assert {change.file for change in edits.changes} == {f"/{CONFIG}/SYSTEM"}


def test_a_windows_on_a_disk_is_found_and_converted(tmp_path: Path) -> None:
    build(tmp_path)
    partition = Partition("system", "mbr", 1, "07", active=True)
    volume = Volume("system:1", (), 1 << 30, "ntfs", partition=partition)

    def opener(volume: Volume, subvolume: str = "") -> LocalFileSystem:
        return LocalFileSystem(tmp_path, volume=volume)

    found = inspect([volume], opener)
    assert (found.guest.os, found.guest.version) == ("windows", "10.0.20348")
    assert (found.guest.root, found.guest.boot) == ("system:1", ["bios"])
    edits = convert_found(found, AHCI)
    assert edits.changes
    assert convert_found(found, AHCI).changes == []
    found.tree.close()


def test_a_windows_with_uefi_gets_the_loader_that_new_firmware_looks_for(tmp_path: Path) -> None:
    build(tmp_path / "c")
    boot = tmp_path / "esp/EFI/Microsoft/Boot"
    boot.mkdir(parents=True)
    (boot / "bootmgfw.efi").write_bytes(b"MZ loader")
    volumes = [
        Volume(
            f"system:{number}", (), 1 << 30, kind, partition=Partition("system", "gpt", number, t)
        )
        for number, kind, t in (
            (1, "vfat", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"),
            (2, "ntfs", "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"),
        )
    ]

    def opener(volume: Volume, subvolume: str = "") -> LocalFileSystem:
        return LocalFileSystem(tmp_path / ("c" if volume.kind == "ntfs" else "esp"), volume=volume)

    found = inspect(volumes, opener)
    assert found.guest.boot == ["uefi"]
    edits = convert_found(found, Wanted(controller="nvme", nic="e1000e", firmware="uefi"))
    found.tree.close()
    assert edits.warnings == []
    assert (tmp_path / "esp/EFI/BOOT/BOOTX64.EFI").read_bytes() == b"MZ loader"


def test_a_second_conversion_changes_nothing(tmp_path: Path) -> None:
    drivers = supplied(tmp_path / "given", "pvscsi", "VEN_15AD&DEV_07C0")
    supplied(drivers, "vmxnet3", "VEN_15AD&DEV_07B0")
    script = tmp_path / "go.ps1"
    script.write_bytes(b"x" * 20_000)
    wanted = Wanted(
        controller="pvscsi",
        nic="vmxnet3",
        drivers=str(drivers),
        first_boot=str(script),
        hostname="other",
        dns=["10.0.0.1"],
    )
    (tmp_path / "guest").mkdir()
    more = {f"{CS}\\Services\\xenbus": service(0, "xenbus.sys")}
    tree = build(tmp_path / "guest", more=more)
    assert converted(tree, wanted).changes
    before = files(tmp_path / "guest")
    again = converted(tree, wanted)
    assert again.changes == []
    assert files(tmp_path / "guest") == before


def test_both_databases_of_devices_know_the_controller(tmp_path: Path) -> None:
    converted(build(tmp_path), Wanted(controller="nvme", nic="e1000e"))
    with opened(tmp_path) as system:
        critical = (CS, "Control", "CriticalDeviceDatabase", "PCI#CC_010802")
        assert system.text(critical, "Service") == "stornvme"
        assert system.text(critical, "ClassGUID") == "{4d36e97b-e325-11ce-bfc1-08002be10318}"
        database = ("DriverDatabase",)
        inf = "rollpoint-stornvme.inf"
        assert system.has((*database, "DeviceIds", "PCI", "CC_010802"))
        package = system.text((*database, "DriverInfFiles", inf), "Active")
        place = (*database, "DriverPackages", package)
        version = system.value(place, "Version")
        assert version is not None
        assert version.data[2] == 9
        assert version.data[8:24].hex() == "7be9364d25e3ce11bfc108002be10318"
        configuration = system.text((*place, "Descriptors", "PCI", "CC_010802"), "Configuration")
        assert system.text((*place, "Configurations", configuration), "Service") == "stornvme"


def test_a_device_that_windows_knows_keeps_its_driver_package(tmp_path: Path) -> None:
    converted(build(tmp_path), Wanted(controller="lsisas", nic="e1000e"))
    with opened(tmp_path) as system:
        place = ("DriverDatabase", "DeviceIds", "PCI", "VEN_1000&DEV_0054")
        assert set(system.values(place)) == {"lsi_sas.inf"}
        assert system.keys(("DriverDatabase", "DriverPackages")) == []


def test_every_control_set_that_may_start_is_changed(tmp_path: Path) -> None:
    keys = {
        name.replace(CS, "ControlSet002"): values
        for name, values in system_keys().items()
        if name.startswith(CS)
    }
    keys["Select"] = {"Current": dword(1), "Default": dword(2)}
    converted(build(tmp_path, more=keys))
    with opened(tmp_path) as system:
        for name in (CS, "ControlSet002"):
            assert system.number((name, "Services", "storahci"), "Start") == 0


def test_pvscsi_without_its_driver_is_refused_before_anything_changes(tmp_path: Path) -> None:
    tree = build(tmp_path)
    before = files(tmp_path)
    with pytest.raises(GuestError, match=r"no driver for the pvscsi controller: pvscsi\.sys"):
        converted(tree, Wanted(controller="pvscsi", nic="e1000e"))
    assert files(tmp_path) == before


@pytest.mark.parametrize("controller", ["lsilogic", "lsi53c895a"])
def test_controllers_that_windows_has_no_driver_for_are_refused(
    tmp_path: Path, controller: str
) -> None:
    with pytest.raises(GuestError, match=f"no driver for the {controller} controller"):
        converted(build(tmp_path), Wanted(controller=controller, nic="e1000e"))  # type: ignore[arg-type]


def test_pvscsi_that_is_installed_is_started_at_boot(tmp_path: Path) -> None:
    tree = build(tmp_path, more={f"{CS}\\Services\\pvscsi": service(3, "pvscsi.sys")})
    (tmp_path / "Windows/System32/drivers/PVSCSI.SYS").write_bytes(b"driver")
    converted(tree, Wanted(controller="pvscsi", nic="e1000e"))
    with opened(tmp_path) as system:
        assert system.number((CS, "Services", "pvscsi"), "Start") == 0


def test_a_driver_in_the_driver_store_is_put_where_it_is_loaded_from(tmp_path: Path) -> None:
    tree = build(tmp_path)
    store = tmp_path / "Windows/System32/DriverStore/FileRepository/pvscsi.inf_amd64_0123"
    store.mkdir(parents=True)
    (store / "pvscsi.sys").write_bytes(b"from the store")
    converted(tree, Wanted(controller="pvscsi", nic="e1000e"))
    assert (tmp_path / "Windows/System32/drivers/pvscsi.sys").read_bytes() == b"from the store"
    with opened(tmp_path) as system:
        place = (CS, "Services", "pvscsi")
        assert system.number(place, "Start") == 0
        assert system.text(place, "ImagePath") == "System32\\drivers\\pvscsi.sys"
        assert system.text(place, "Group") == "SCSI Miniport"


def test_a_supplied_driver_comes_in_and_windows_is_told_where(tmp_path: Path) -> None:
    drivers = tmp_path / "given"
    supplied(drivers, "viostor", "VEN_1AF4&DEV_1001", "viostor", "2k16", "amd64")
    supplied(drivers, "viostor", "VEN_1AF4&DEV_1001", "viostor", "2k22", "amd64")
    supplied(drivers, "viostor", "VEN_1AF4&DEV_1001", "viostor", "2k22", "x86")
    supplied(drivers, "viostor", "VEN_1AF4&DEV_1001", "viostor", "2k25", "amd64")
    chosen = drivers / "viostor/2k22/amd64/viostor.sys"
    chosen.write_bytes(chosen.read_bytes() + b" for 2022")
    supplied(drivers, "netkvm", "VEN_1AF4&DEV_1000", "NetKVM", "2k22", "amd64")
    (tmp_path / "guest").mkdir()
    tree = build(tmp_path / "guest")
    edits = converted(tree, Wanted(drivers=str(drivers)))
    assert edits.warnings == []
    windows = tmp_path / "guest/Windows"
    assert (windows / "System32/drivers/viostor.sys").read_bytes() == chosen.read_bytes()
    given = {p.name for p in (windows / "Rollpoint/Drivers").iterdir()}
    assert given == {f"{n}.{e}" for n in ("viostor", "netkvm") for e in ("inf", "sys", "cat")}
    with opened(tmp_path / "guest") as system:
        assert system.number((CS, "Services", "viostor"), "Start") == 0
    with opened(tmp_path / "guest", "SOFTWARE") as software:
        value = software.text(("Microsoft", "Windows", "CurrentVersion"), "DevicePath")
        assert value == "%SystemRoot%\\inf;%SystemRoot%\\Rollpoint\\Drivers"


@pytest.mark.parametrize(
    ("places", "chosen"),
    [
        (["2k16/amd64", "2k19/amd64", "2k22/amd64", "w10/amd64"], "2k19/amd64"),
        (["w10/amd64", "2k16/amd64", "2k22/amd64"], "2k16/amd64"),
        (["Win8/amd64", "Win10/amd64", "Win11/amd64"], "Win10/amd64"),
        (["drivers/by-os/amd64/2k19", "drivers/by-os/x86/2k19"], "drivers/by-os/amd64/2k19"),
        (["flat", "2k16/amd64"], "flat"),
        (["2k22/amd64", "xp/amd64", "2k3/amd64", "2k19/arm64"], None),
    ],
)
def test_which_of_several_packages_suits_a_server_of_2019(
    tmp_path: Path, places: list[str], chosen: str | None
) -> None:
    for place in places:
        supplied(tmp_path, "viostor", "VEN_1AF4&DEV_1001", *place.split("/"))
    found = find_package(str(tmp_path), ["VEN_1AF4&DEV_1001"], 2019)
    folder = None if found is None else str(found.inf.parent.relative_to(tmp_path))
    assert folder == chosen
    assert find_package(str(tmp_path), ["VEN_15AD&DEV_07C0"], 2019) is None


def test_a_driver_for_another_machine_is_not_taken(tmp_path: Path) -> None:
    drivers = supplied(tmp_path / "given", "pvscsi", "VEN_15AD&DEV_07C0", machine=0x14C)
    (tmp_path / "guest").mkdir()
    tree = build(tmp_path / "guest")
    with pytest.raises(GuestError, match="has none for VEN_15AD&DEV_07C0"):
        converted(tree, Wanted(controller="pvscsi", nic="e1000e", drivers=str(drivers)))


def test_a_supplied_package_names_the_service_of_a_controller_unknown_to_us(
    tmp_path: Path,
) -> None:
    drivers = supplied(tmp_path / "given", "symc", "VEN_1000&DEV_0012")
    (tmp_path / "guest").mkdir()
    tree = build(tmp_path / "guest")
    converted(tree, Wanted(controller="lsi53c895a", nic="e1000e", drivers=str(drivers)))
    with opened(tmp_path / "guest") as system:
        assert system.number((CS, "Services", "symc"), "Start") == 0
        assert system.text((CS, "Services", "symc"), "ImagePath").endswith("\\symc.sys")


def test_drivers_and_filters_of_the_hypervisor_left_behind_are_off(tmp_path: Path) -> None:
    classes = f"{CS}\\Control\\Class"
    more = {
        f"{CS}\\Services\\xenbus": service(0, "xenbus.sys"),
        f"{CS}\\Services\\XENFILT": service(0, "xenfilt.sys"),
        f"{CS}\\Services\\prl_strg": service(0, "prl_strg.sys"),
        f"{CS}\\Services\\storvsc": service(0, "storvsc.sys"),
        f"{CS}\\Services\\viostor": service(0, "viostor.sys"),
        f"{classes}\\{{4d36e96a-e325-11ce-bfc1-08002be10318}}": {
            "UpperFilters": strings(["XenFilt"]),
            "Class": string("HDC"),
        },
        f"{classes}\\{{4d36e967-e325-11ce-bfc1-08002be10318}}": {
            "LowerFilters": strings(["fvevol", "prl_strg", "iorate"]),
        },
    }
    converted(build(tmp_path, more=more))
    with opened(tmp_path) as system:
        for name in ("xenbus", "xenfilt", "prl_strg"):
            assert system.number((CS, "Services", name), "Start") == 4
        for name in ("storvsc", "viostor"):
            assert system.number((CS, "Services", name), "Start") == 0
        place = (CS, "Control", "Class")
        hdc = system.values((*place, "{4d36e96a-e325-11ce-bfc1-08002be10318}"))
        assert set(hdc) == {"Class"}
        disk = system.value((*place, "{4d36e967-e325-11ce-bfc1-08002be10318}"), "LowerFilters")
        assert disk == strings(["fvevol", "iorate"])


def test_what_the_logs_hold_is_kept(tmp_path: Path) -> None:
    """The normal case: a restore point of a Windows that was running."""
    clean = plain_system(2022)
    with Hive(clean, "t", writable=True) as edited:
        edited.set((CS, "Services", "Late"), "Start", dword(2), "since the last full write")
        newer = edited.save()
    start = struct.unpack_from("<I", clean, 4)[0]
    pages = {
        at - 4096: newer[at : at + 4096]
        for at in range(4096, len(newer), 4096)
        if newer[at : at + 4096] != clean[at : at + 4096]
    }
    dirty = with_numbers(clean, start + 1, start)
    tree = build(tmp_path, system=dirty)
    made = log(dirty, start + 1, entry(start + 1, pages, len(newer) - 4096))
    (tmp_path / CONFIG / "SYSTEM.LOG1").write_bytes(made)
    (tmp_path / CONFIG / "SYSTEM.LOG2").write_bytes(b"")
    edits = converted(tree)
    assert edits.changes[0].what == "its transaction logs applied"
    assert edits.warnings == []
    saved = (tmp_path / CONFIG / "SYSTEM").read_bytes()
    assert struct.unpack_from("<I", saved, 4) == struct.unpack_from("<I", saved, 8)
    with opened(tmp_path) as system:
        assert system.number((CS, "Services", "Late"), "Start") == 2
        assert system.number((CS, "Services", "storahci"), "Start") == 0
    assert converted(tree).changes == []


def test_a_dirty_registry_without_logs_is_a_warning(tmp_path: Path) -> None:
    tree = build(tmp_path, system=with_numbers(plain_system(2022), 9, 8))
    assert "not closed cleanly" in converted(tree).warnings[0]


def test_the_registry_is_changed_in_place(tmp_path: Path) -> None:
    """A file renamed over it would come without its security descriptor."""
    tree = build(tmp_path)
    before = (tmp_path / CONFIG / "SYSTEM").stat()
    converted(tree)
    assert (tmp_path / CONFIG / "SYSTEM").stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    ("target", "before", "after"),
    [
        ("qemu", None, dword(1)),
        ("qemu", dword(0), dword(1)),
        ("qemu", Value(11, b"\1" + bytes(7)), Value(11, b"\1" + bytes(7))),
        ("vsphere", None, None),
    ],
)
def test_the_clock_of_qemu_is_read_as_utc(
    tmp_path: Path, target: str, before: Value | None, after: Value | None
) -> None:
    place = f"{CS}\\Control\\TimeZoneInformation"
    values = {"Bias": dword(0)} | ({"RealTimeIsUniversal": before} if before else {})
    tree = build(tmp_path, more={place: values})
    converted(tree, Wanted(target=target, controller="ahci", nic="e1000e"))  # type: ignore[arg-type]
    with opened(tmp_path) as system:
        assert system.value(place.split("\\"), "RealTimeIsUniversal") == after


@pytest.mark.parametrize("sign", [b"hibr", b"HIBR"])
def test_a_hibernated_windows_is_refused(tmp_path: Path, sign: bytes) -> None:
    tree = build(tmp_path)
    (tmp_path / "hiberfil.sys").write_bytes(sign + bytes(8000))
    with pytest.raises(GuestError, match="hibernated"):
        converted(tree)
    (tmp_path / "hiberfil.sys").write_bytes(b"WAKE" + bytes(8000))
    converted(tree)


def test_an_old_or_a_desktop_windows_is_a_warning_and_an_ancient_one_refused(
    tmp_path: Path,
) -> None:
    tree = build(tmp_path)
    place = tmp_path / CONFIG / "SOFTWARE"

    def version(name: str, build: str) -> None:
        keys = {"ProductName": string(name), "CurrentBuild": string(build)}
        place.write_bytes(hive({"Microsoft\\Windows NT\\CurrentVersion": keys}))

    for name, number in (("Windows Server 2012 R2 Standard", "9600"), ("Windows 10 Pro", "19045")):
        version(name, number)
        assert f"{name} (build {number}) is none of" in converted(tree).warnings[0]
    version("Windows Server 2003", "3790")
    with pytest.raises(GuestError, match="too old"):
        converted(tree)
    version("Windows", "no number")
    with pytest.raises(GuestError, match="which build"):
        inspect_windows(tree)


def test_another_machine_is_refused(tmp_path: Path) -> None:
    place = f"{CS}\\Control\\Session Manager\\Environment"
    tree = build(tmp_path, more={place: {"PROCESSOR_ARCHITECTURE": string("ARM64")}})
    with pytest.raises(GuestError, match="aarch64"):
        converted(tree)


def test_too_little_room_is_refused_with_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = build(tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr(tree, "space", lambda path: Space(12345, 67890, None))
    with pytest.raises(GuestError, match="12345 bytes free of 67890; its conversion wants 2"):
        converted(tree)
    assert files(tmp_path) == before


def test_a_card_that_windows_has_no_driver_for_is_a_warning(tmp_path: Path) -> None:
    edits = converted(build(tmp_path), Wanted(controller="ahci", nic="vmxnet3"))
    assert "no driver for the vmxnet3 network card" in edits.warnings[0]


def test_a_registry_without_a_control_set_is_refused(tmp_path: Path) -> None:
    tree = build(tmp_path, more={"Select": {"Current": dword(7), "Default": dword(0)}})
    with pytest.raises(GuestError, match="no control set"):
        inspect_windows(tree)


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("System32\\drivers\\a.sys", "/Windows/System32/drivers/a.sys"),
        ("\\SystemRoot\\System32\\drivers\\a.sys", "/Windows/System32/drivers/a.sys"),
        ("%SystemRoot%\\System32\\a.sys", "/Windows/System32/a.sys"),
        ("\\??\\C:\\Windows\\a.sys", "/Windows/a.sys"),
        ("System32\\..\\..\\..\\etc\\passwd", None),
        ("D:\\x.sys", None),
        ("System32\\a\0.sys", None),
    ],
)
def test_where_a_service_has_its_driver(image: str, path: str | None) -> None:
    assert guest_path(image) == path


@pytest.mark.parametrize("seed", range(6))
def test_a_hostile_registry_is_converted_or_refused(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(plain_system(2022))
    for _ in range(chance.randrange(1, 60)):
        data[chance.randrange(4096, len(data))] = chance.choice((0, 0xFF, chance.randrange(256)))
    tree = build(tmp_path, system=bytes(data))
    refused: Error | None = None
    try:
        converted(tree)
    except Error as error:
        refused = error
    assert str(refused).isprintable()


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    place = f"{CS}\\Control\\Network\\{{4D36E972-E325-11CE-BFC1-08002BE10318}}\\{GUID}\\Connection"
    tree = build(tmp_path, more={place: {"Name": string("\x1b]0;owned\x07")}})
    guest = inspect_windows(tree)
    assert guest is not None
    assert guest.networks == ["\\x1b]0;owned\\x07"]
