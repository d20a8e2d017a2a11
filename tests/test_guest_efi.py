"""A machine whose firmware has no entries yet finds a loader on the guest's disks."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from guest_etc import SmallGuest
from rollpoint.access.base import Space
from rollpoint.errors import Error, GuestError
from rollpoint.guest import efi
from rollpoint.guest.base import Guest, Wanted
from rollpoint.guest.edits import Edits

UEFI = Wanted(firmware="uefi")


def guest(**more: object) -> Guest:
    settings: dict[str, object] = {
        "os": "linux",
        "family": "debian",
        "distribution": "debian",
        "architecture": "x86_64",
        "mounts": {"/": "system:2", "/boot/efi": "system:1"},
    }
    return Guest(**(settings | more))  # type: ignore[arg-type]


def program(name: str) -> bytes:
    return b"MZ" + name.encode() * 100


def esp(*names: str, at: str = "/boot/efi") -> dict[str, str | bytes]:
    return {f"{at}/EFI/{name}": program(name) for name in names}


def converted(root: Path, files: dict[str, str | bytes], of: Guest) -> tuple[SmallGuest, Edits]:
    small = SmallGuest(root / "guest", files)
    edits = small.edits()
    efi.convert(edits, of, UEFI)
    again = small.edits()
    efi.convert(again, of, UEFI)
    assert again.changes == []
    return small, edits


DEBIAN = ("debian/shimx64.efi", "debian/grubx64.efi", "debian/mmx64.efi", "debian/fbx64.efi")


def test_debian_gets_its_shim_and_what_the_shim_loads(tmp_path: Path) -> None:
    stub = {"/boot/efi/EFI/debian/grub.cfg": "search.fs_uuid 1\nconfigfile $prefix/grub.cfg\n"}
    small, edits = converted(tmp_path, esp(*DEBIAN) | stub, guest())
    top = small.root / "boot/efi/EFI/BOOT"
    assert sorted(path.name for path in top.iterdir()) == [
        "BOOTX64.EFI",
        "grub.cfg",
        "grubx64.efi",
        "mmx64.efi",  # fbx64.efi would look for entries to make instead of starting
    ]
    assert (top / "BOOTX64.EFI").read_bytes() == program("debian/shimx64.efi")
    assert edits.warnings == []


def test_a_shim_without_its_grub_is_passed_over(tmp_path: Path) -> None:
    """It would start and load nothing."""
    files = esp("debian/shimx64.efi") | esp("systemd/systemd-bootx64.efi")
    small, _ = converted(tmp_path, files, guest())
    assert small.text("/boot/efi/EFI/BOOT/BOOTX64.EFI").startswith("MZsystemd")


def test_a_grub_of_its_own_is_enough(tmp_path: Path) -> None:
    small, _ = converted(tmp_path, esp("debian/grubx64.efi"), guest())
    assert [p.name for p in (small.root / "boot/efi/EFI/BOOT").iterdir()] == ["BOOTX64.EFI"]


def test_a_whole_menu_is_not_copied(tmp_path: Path) -> None:
    menu = {"/boot/efi/EFI/rocky/grub.cfg": "menuentry {}\n" * 1000}
    small, _ = converted(
        tmp_path,
        esp("rocky/shimx64.efi", "rocky/grubx64.efi") | menu,
        guest(family="rhel", distribution="rocky"),
    )
    assert not small.exists("/boot/efi/EFI/BOOT/grub.cfg")


@pytest.mark.parametrize(
    ("of", "files", "name"),
    [
        (guest(architecture="aarch64"), ("debian/shimaa64.efi", "debian/grubaa64.efi"), "AA64"),
        (guest(distribution="sles"), ("sles/shim.efi", "sles/grub.efi"), "X64"),
        (guest(distribution="rhel"), ("redhat/shimx64.efi", "redhat/grubx64.efi"), "X64"),
    ],
)
def test_each_distribution_has_its_names(
    tmp_path: Path, of: Guest, files: tuple[str, ...], name: str
) -> None:
    small, _ = converted(tmp_path, esp(*files), of)
    assert small.text(f"/boot/efi/EFI/BOOT/BOOT{name}.EFI").startswith(f"MZ{files[0]}")


def test_windows_gets_its_boot_manager(tmp_path: Path) -> None:
    at = "/EFI system partition"
    of = guest(os="windows", family="windows", distribution="", mounts={"/": "a:2", at: "a:1"})
    small, _ = converted(tmp_path, esp("Microsoft/Boot/bootmgfw.efi", at=at), of)
    assert small.text(f"{at}/EFI/BOOT/BOOTX64.EFI").startswith("MZMicrosoft")


@pytest.mark.parametrize("name", ["BOOT/BOOTX64.EFI", "Boot/bootx64.efi"])
def test_a_loader_that_is_there_stays(tmp_path: Path, name: str) -> None:
    _, edits = converted(tmp_path, esp(name, *DEBIAN), guest())
    assert edits.changes == []
    assert edits.warnings == []


def test_an_empty_loader_is_replaced_where_it_is_spelled(tmp_path: Path) -> None:
    files = {"/boot/efi/EFI/Boot/bootx64.efi": b""} | esp("debian/grubx64.efi")
    small, _ = converted(tmp_path, files, guest())
    assert small.text("/boot/efi/EFI/Boot/bootx64.efi").startswith("MZ")
    assert not small.exists("/boot/efi/EFI/BOOT")


def test_a_fallback_without_a_list_is_warned_of(tmp_path: Path) -> None:
    files = esp("BOOT/BOOTX64.EFI", "BOOT/fbx64.efi", "rocky/shimx64.efi")
    _, edits = converted(tmp_path, files, guest())
    assert "BOOTX64.CSV" in edits.warnings[0]


def test_the_guests_own_system_is_the_default_among_several(tmp_path: Path) -> None:
    files = esp("arch/grubx64.efi", "debian/grubx64.efi")
    small, edits = converted(tmp_path, files, guest())
    assert small.text("/boot/efi/EFI/BOOT/BOOTX64.EFI").startswith("MZdebian")
    assert edits.warnings == []


@pytest.mark.parametrize(
    "files", [{}, esp("debian/readme.txt"), {"/boot/efi/EFI/debian/grubx64.efi": b"no program"}]
)
def test_a_guest_without_a_loader_is_warned_of(
    tmp_path: Path, files: dict[str, str | bytes]
) -> None:
    _, edits = converted(tmp_path, files, guest())
    assert edits.changes == []
    assert "starts nothing" in edits.warnings[0]


def test_a_machine_with_bios_needs_none(tmp_path: Path) -> None:
    small = SmallGuest(tmp_path / "guest", esp(*DEBIAN))
    edits = small.edits()
    efi.convert(edits, guest(), Wanted(firmware="bios"))
    assert edits.changes == []


def test_no_room_is_told_with_numbers_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SmallGuest(tmp_path / "guest", esp(*DEBIAN))
    before = small.files()
    monkeypatch.setattr(type(small.tree), "space", lambda *_: Space(1234, 5000, None))
    with pytest.raises(GuestError, match=r"1234 bytes free.* takes [0-9]{6}"):
        efi.convert(small.edits(), guest(), UEFI)
    assert small.files() == before


def test_hostile_links_on_the_partition_lead_nowhere(tmp_path: Path) -> None:
    """No FAT has links, and yet an EFI directory can be one on a guest's /boot."""
    outside = tmp_path / "outside.efi"
    outside.write_bytes(program("host"))
    small = SmallGuest(
        tmp_path / "guest",
        {
            "/boot/efi/EFI/debian/grubx64.efi": ("link", str(outside)),  # type: ignore[dict-item]
            "/boot/efi/EFI/BOOT": ("link", "/../../../.."),  # type: ignore[dict-item]
            "/boot/efi/EFI/loop": ("link", "loop"),  # type: ignore[dict-item]
        },
    )
    edits = small.edits()
    with contextlib.suppress(Error):
        efi.convert(edits, guest(), UEFI)
    assert edits.changes == []
    assert not (tmp_path / "BOOTX64.EFI").exists()
