"""A loader where firmware looks that knows of no entries.

On new hardware the firmware's variables are empty: it starts EFI/BOOT/BOOT<arch>.EFI of the
EFI system partition, and nothing else. Windows and most distributions put a loader there,
Debian does not. Without one, the distribution's own is copied there, with what it loads.
Source: UEFI specification 3.5.1.1 (removable media), shim's README.fallback.
"""

from __future__ import annotations

from ..access.tree import GuestTree
from ..errors import Error, GuestError
from .base import Guest, Wanted
from .edits import Edits

PLACES = ("/boot/efi", "/efi", "/boot")
SUFFIXES = {"x86_64": "x64", "aarch64": "aa64", "i686": "ia32", "armv7l": "arm"}
VENDORS = {"rhel": "redhat", "ol": "redhat", "opensuse-leap": "opensuse"}
LOADER_BYTES_MAX = 16 << 20
STUB_BYTES_MAX = 4096
SPARE_BYTES = 256 << 10

# What a directory of a vendor can hold, best first: the loader, and what it loads, which
# has to lie beside it. {} is the architecture. Names in brackets may be missing.
LOADERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("shim{}.efi", ("grub{}.efi", "[mm{}.efi]", "[grub.cfg]")),
    ("shim.efi", ("grub.efi", "[MokManager.efi]", "[mm{}.efi]", "[grub.cfg]")),
    ("grub{}.efi", ("[grub.cfg]",)),
    ("grub.efi", ("[grub.cfg]",)),
    ("systemd-boot{}.efi", ()),
    ("bootmgfw.efi", ()),
)


def convert(edits: Edits, guest: Guest, wanted: Wanted) -> None:
    """Make sure that a machine with UEFI firmware finds a loader.

    A guest whose EFI system partition is not among what was mounted is warned of.

    Raises:
        GuestError: The partition has no room, with the numbers, or cannot be written.
    """
    if wanted.firmware != "uefi":
        return
    tree = edits.tree
    suffix = SUFFIXES.get(guest.architecture, "x64")
    esp = _partition(tree, guest)
    if esp is None:
        edits.warn("no EFI system partition was found: firmware of new hardware starts nothing")
        return
    default = f"{esp}/EFI/BOOT/BOOT{suffix.upper()}.EFI"
    there = tree.any_case(default)
    if there is not None and _is_program(tree, there):
        _check_fallback(edits, esp, there, suffix)
        return
    found = _loader(edits, guest, esp, suffix)
    if found is None:
        edits.warn(
            f"{esp} holds no loader that is known, and none at {default}: "
            "firmware of new hardware starts nothing"
        )
        return
    directory, loader, beside = found
    _copy(edits, esp, directory, {loader: there or default} | dict.fromkeys(beside, ""))


def _partition(tree: GuestTree, guest: Guest) -> str | None:
    """Where the EFI system partition is mounted."""
    for at in dict.fromkeys((*PLACES, *guest.mounts)):
        if at != "/" and (at in guest.mounts or at in tree.mounts):
            found = tree.any_case(f"{at}/EFI")
            if found is not None and tree.is_directory(found):
                return at
    return None


def _is_program(tree: GuestTree, path: str) -> bool:
    stat = tree.stat(path)
    return (
        stat is not None
        and stat.kind == "file"
        and 2 < stat.size_bytes <= LOADER_BYTES_MAX
        and tree.read_part(path, 0, 2) == b"MZ"
    )


def _check_fallback(edits: Edits, esp: str, there: str, suffix: str) -> None:
    """A shim with fallback beside it starts what the lists of the vendors name."""
    directory, tree = there.rpartition("/")[0], edits.tree
    if tree.any_case(f"{directory}/fb{suffix}.efi") is None or any(
        tree.any_case(f"{directory}/{name}") for name in (f"grub{suffix}.efi", "grub.efi")
    ):
        return
    for vendor in _vendors(tree, esp):
        if tree.any_case(f"{vendor}/BOOT{suffix}.CSV") or tree.any_case(f"{vendor}/BOOT.CSV"):
            return
    edits.warn(f"{there} starts what a BOOT{suffix.upper()}.CSV names, and there is none")


def _vendors(tree: GuestTree, esp: str) -> list[str]:
    top = tree.any_case(f"{esp}/EFI") or f"{esp}/EFI"
    names = [name for name, stat in tree.list(top).items() if stat.kind == "directory"]
    return [f"{top}/{name}" for name in sorted(names)[:64] if name.lower() != "boot"]


def _loader(edits: Edits, guest: Guest, esp: str, suffix: str) -> tuple[str, str, list[str]] | None:
    """(directory, loader, what has to lie beside it), as they are spelled."""
    tree = edits.tree
    found: list[tuple[str, str, list[str]]] = []
    for vendor in _vendors(tree, esp):
        for directory in (vendor, f"{vendor}/Boot"):
            place = tree.any_case(directory)
            whole = _complete(tree, place, suffix) if place and tree.is_directory(place) else None
            if place and whole:
                found.append((place, *whole))
                break
    own = VENDORS.get(guest.distribution, guest.distribution).lower()
    if guest.os == "windows":
        own = "microsoft"
    mine = [one for one in found if one[0].split("/EFI/", 1)[-1].split("/")[0].lower() == own]
    if not mine and len(found) > 1:
        edits.warn(f"{esp} has loaders of several systems: {found[0][0]} is made the default")
    chosen = mine or found
    return chosen[0] if chosen else None


def _complete(tree: GuestTree, directory: str, suffix: str) -> tuple[str, list[str]] | None:
    """The best loader of a directory of which nothing is missing."""
    names = {name.lower(): name for name in sorted(tree.list(directory), reverse=True)}
    for loader, beside in LOADERS:
        name = names.get(loader.format(suffix).lower())
        if name is None or not _is_program(tree, f"{directory}/{name}"):
            continue
        wanted = [entry.format(suffix).lower() for entry in beside]
        if all(entry in names for entry in wanted if entry[0] != "["):
            present = (names.get(entry.strip("[]")) for entry in wanted)
            return name, [entry for entry in present if entry and _is_small(tree, directory, entry)]
    return None


def _is_small(tree: GuestTree, directory: str, name: str) -> bool:
    """Whether a copy is of use: a whole menu would go stale, where a stub leads to it."""
    stat = tree.stat(f"{directory}/{name}")
    return stat is not None and (stat.size_bytes <= STUB_BYTES_MAX or not name.endswith(".cfg"))


def _copy(edits: Edits, esp: str, directory: str, files: dict[str, str]) -> None:
    """Files of a directory to EFI/BOOT, under their own names where none is said."""
    tree = edits.tree
    target = (tree.any_case(f"{esp}/EFI") or f"{esp}/EFI") + "/BOOT"
    target = tree.any_case(target) or target
    contents = {}
    for name, place in files.items():
        if not place and tree.any_case(f"{target}/{name}") is not None:
            continue  # what lies there is not ours to change
        try:
            data = tree.read(f"{directory}/{name}", LOADER_BYTES_MAX)
        except Error as error:
            raise GuestError(f"{directory}/{name} cannot be copied: {error.message}") from error
        contents[f"{target}/{place.rpartition('/')[2] or name}"] = data
    size = sum(map(len, contents.values())) + SPARE_BYTES
    free = tree.space(target if tree.exists(target) else esp).bytes_free
    if free < size:
        raise GuestError(
            f"{esp} has {free} bytes free, and a loader for new hardware takes {size}",
            "make room on the guest's EFI system partition, or fail over to an earlier point",
        )
    for path, data in contents.items():
        edits.replace(path, data, f"a copy from {directory}: where firmware without entries looks")
