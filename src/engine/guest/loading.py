"""What a guest's boot loaders offer, read from their configuration.

GRUB 2 (with and without boot loader entries), GRUB 0.97, systemd-boot and extlinux. None of
their scripts is run: what only running them would tell is taken as their generators write it.

Source: GRUB manual (grub-mkconfig's output; default, saved_entry), The Boot Loader
Specification, syslinux's configuration, GRUB Legacy manual.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..access.tree import GuestTree
from ..errors import NotFoundError, PathError
from .edits import read_configuration

GRUB_CFG = ("/boot/grub2/grub.cfg", "/boot/grub/grub.cfg", "/boot/efi/EFI/*/grub.cfg")
GRUB_ENV = ("/boot/grub2/grubenv", "/boot/grub/grubenv", "/boot/efi/EFI/*/grubenv")
BLS = (
    "/boot/loader/entries/*.conf",
    "/boot/efi/loader/entries/*.conf",
    "/efi/loader/entries/*.conf",
)
LOADER_CONF = (
    "/boot/efi/loader/loader.conf",
    "/efi/loader/loader.conf",
    "/boot/loader/loader.conf",
)
MENU_LST = ("/boot/grub/menu.lst", "/boot/grub/grub.conf")
EXTLINUX = ("/boot/extlinux/extlinux.conf", "/boot/syslinux/syslinux.cfg", "/extlinux.conf")
ENTRIES_MAX = 200
TITLE_CHARACTERS_MAX = 500  # each entry has those of the menus that it is in
FILES_MAX = 200  # of one pattern
LINES_MAX = 20_000
_CONFIGURATION_MAX = 1 << 20
_MENU = re.compile(r"\s*(menuentry|submenu)\s+(?:'([^']*)'|\"([^\"]*)\"|(\S+))")
_ID = re.compile(r"(?:\$menuentry_id_option|\$\{menuentry_id_option\}|--id)[ =]+['\"]?([^'\"\s{]+)")
_DEFAULT = re.compile(r"\s*set\s+default=[\"']?([^\"'\n]*)")
_LINUX = re.compile(r"\s*(?:linux|linux16|linuxefi|module|module2)\s+(\S+)(.*)")
_INITRD = re.compile(r"\s*(?:initrd|initrd16|initrdefi)\s+(.*)")


class Entry(NamedTuple):
    """Something a loader can start.

    Attributes:
        file: The configuration file it is in.
        image, initrd: Where they are in the guest; "" where nothing is there.
        options: The kernel command line.
        default: The loader starts it when nobody is there to choose.
    """

    file: str
    title: str
    image: str
    initrd: str
    options: str
    default: bool = False


class _Item(NamedTuple):
    """A menu entry, before its paths are looked up. names: all that choose it."""

    title: str
    names: tuple[str, ...]
    image: str
    initrd: str
    options: str


def load(tree: GuestTree) -> list[Entry]:
    """All entries, the default one first. Nothing of it is trusted; what is unclear is left out."""
    environment = grub_environment(tree)
    bls = _bls_entries(tree)
    for path in files(tree, GRUB_CFG):
        text = text_of(tree, path)
        items, default = grub_items(text)
        if environment.get("next_entry"):
            default = environment["next_entry"]
        elif "saved_entry" in default:
            default = environment.get("saved_entry", "")
        if re.search(r"^[ \t]*blscfg\b", text, re.MULTILINE) and bls:
            items = [item for _, item in bls] + items
            default = default if default.strip() else "0"
            if re.fullmatch(r"[0-9]{1,4}", default):
                default = items[min(int(default), len(items) - 1)].names[0]
        if items:
            return _chosen(tree, path, items, default or "0")
    if bls:
        return _chosen(tree, bls[0][0], [item for _, item in bls], _loader_conf(tree))
    readers: tuple[tuple[tuple[str, ...], Callable[[str], tuple[list[_Item], str]]], ...] = (
        (MENU_LST, _legacy_items),
        (EXTLINUX, _extlinux_items),
    )
    for places, reader in readers:
        for path in files(tree, places):
            items, default = reader(text_of(tree, path))
            if items:
                return _chosen(tree, path, items, default)
    return []


def files(tree: GuestTree, patterns: Iterable[str]) -> list[str]:
    """Files that exist under these names, each once however many links lead to it."""
    found: dict[str, str] = {}
    for pattern in patterns:
        for path in tree.glob(pattern)[:FILES_MAX]:
            try:
                stat = tree.stat(path)
                if stat is not None and stat.kind == "file":
                    found.setdefault(tree.real(path), path)
            except (NotFoundError, PathError):
                continue
    return list(found.values())


def text_of(tree: GuestTree, path: str) -> str:
    """A configuration file's text; "" where it cannot be one."""
    data, _ = read_configuration(tree, path, _CONFIGURATION_MAX)
    return (data or b"").decode("utf-8", "surrogateescape")


def grub_environment(tree: GuestTree) -> dict[str, str]:
    """The variables of grubenv."""
    for path in files(tree, GRUB_ENV):
        text = text_of(tree, path)
        if text.startswith("# GRUB Environment Block"):
            pairs = (line.partition("=") for line in text.split("\n")[:LINES_MAX])
            return {name: value for name, sign, value in pairs if sign and name[:1] != "#"}
    return {}


class _Open(NamedTuple):
    """A brace of grub.cfg that is open. names: id and title."""

    kind: str
    names: tuple[str, ...] = ()
    number: str = ""


def grub_items(text: str) -> tuple[list[_Item], str]:
    """The menu of a grub.cfg, submenus included, and what its default is."""
    items: list[_Item] = []
    default = ""
    open_braces: list[_Open] = []
    counts = [0]
    image = initrd = options = ""
    for line in text.split("\n")[:LINES_MAX]:
        if found := _MENU.match(line):
            title = (found[2] or found[3] or found[4] or "")[:TITLE_CHARACTERS_MAX]
            named = _ID.search(line)
            names = (named[1][:TITLE_CHARACTERS_MAX], title) if named else (title,)
            open_braces.append(_Open(found[1], names, str(counts[-1])))
            counts[-1] += 1
            if found[1] == "submenu":
                counts.append(0)
            image = initrd = options = ""
        elif re.match(r"\s*function\s.*\{\s*$", line):
            open_braces.append(_Open("function"))
        elif line.strip() == "}" and open_braces:
            closed = open_braces.pop()
            if closed.kind == "submenu":
                counts.pop()
            elif closed.kind == "menuentry" and len(items) < ENTRIES_MAX:
                ways = _ways(open_braces, closed)
                items.append(_Item(closed.names[-1], ways, image, initrd, options))
        elif (found := _DEFAULT.match(line)) and "next_entry" not in found[1]:
            default = found[1].strip()
        elif found := _LINUX.match(line):
            if not image:
                image, options = found[1], found[2].strip()
            elif not initrd:
                initrd = found[1]  # Xen: the second module
        elif (found := _INITRD.match(line)) and not initrd:
            initrd = found[1]
        if len(open_braces) > 32:
            break
    return items, default


def _ways(above: list[_Open], entry: _Open) -> tuple[str, ...]:
    """All that default= may say to mean an entry: numbers, ids, titles, with the submenus'."""
    menus = [menu for menu in above if menu.kind == "submenu"]
    number = ">".join([*(menu.number for menu in menus), entry.number])
    ways = [number, *entry.names]
    if menus:
        for first in (0, -1):
            path = ">".join(menu.names[first] for menu in menus)
            ways += [f"{path}>{name}" for name in entry.names]
    return tuple(ways)


def _bls_entries(tree: GuestTree) -> list[tuple[str, _Item]]:
    """(file, entry), as the specification orders them."""
    found = []
    for path in files(tree, BLS):
        keys: dict[str, str] = {}
        for line in text_of(tree, path).split("\n")[:LINES_MAX]:
            name, _, value = line.strip().partition(" ")
            if name in ("options", "initrd") and name in keys:
                keys[name] += f" {value.strip()}"
            elif name and not name.startswith("#"):
                keys.setdefault(name, value.strip())
        if "linux" not in keys:
            continue
        stem = path.rsplit("/", 1)[1].removesuffix(".conf")
        item = _Item(
            keys.get("title", stem),
            (stem, f"{stem}.conf", keys.get("title", stem)),
            keys["linux"],
            keys.get("initrd", ""),
            keys.get("options", ""),
        )
        found.append((order(keys.get("version", stem)), path, item))
    found.sort(key=lambda entry: entry[0], reverse=True)
    # RHEL's rescue entry has a version that starts with 0: it sorts last by itself.
    return [(path, item) for _, path, item in found[:ENTRIES_MAX]]


def _loader_conf(tree: GuestTree) -> str:
    """systemd-boot's default; its patterns match ids."""
    for path in LOADER_CONF:
        found = re.search(r"^default\s+(\S+)", text_of(tree, path), re.MULTILINE)
        if found:
            return found[1]
    return ""


def _legacy_items(text: str) -> tuple[list[_Item], str]:
    items: list[_Item] = []
    default = "0"
    for line in text.split("\n")[:LINES_MAX]:
        word, _, rest = line.strip().replace("\t", " ").partition(" ")
        rest = rest.strip()
        if word == "default" or word.startswith("default="):
            default = (rest or word.partition("=")[2]).strip()
        elif word == "title" and len(items) < ENTRIES_MAX:
            items.append(_Item(rest, (str(len(items)),), "", "", ""))
        elif word in ("kernel", "module", "initrd") and items:
            last = items[-1]
            path, _, options = rest.partition(" ")
            if word == "initrd" or (word == "module" and last.image and "xen" not in last.image):
                items[-1] = last._replace(initrd=path)
            elif word == "module" or not last.image:
                items[-1] = last._replace(image=path, options=options)
    return items, default


def _extlinux_items(text: str) -> tuple[list[_Item], str]:
    items: list[_Item] = []
    default = ""
    for line in text.split("\n")[:LINES_MAX]:
        word, _, rest = line.strip().replace("\t", " ").partition(" ")
        word, rest = word.lower(), rest.strip()
        if word in ("default", "ontimeout") and not default:
            default = rest
        elif word == "label" and len(items) < ENTRIES_MAX:
            items.append(_Item(rest, (rest,), "", "", ""))
        elif items and word in ("linux", "kernel"):
            items[-1] = items[-1]._replace(image=rest)
        elif items and word == "initrd":
            items[-1] = items[-1]._replace(initrd=rest.replace(",", " "))
        elif items and word == "append":
            named = re.search(r"(?:^|\s)initrd=(\S+)", rest)
            initrd = items[-1].initrd or (named[1].replace(",", " ") if named else "")
            items[-1] = items[-1]._replace(options=rest, initrd=initrd)
    return items, default or (items[0].names[0] if items else "")


def _chosen(tree: GuestTree, file: str, items: list[_Item], default: str) -> list[Entry]:
    """Entries with their files looked up; the default one is the first, where none is named."""
    wanted = default.strip().strip("\"'")
    pattern = wanted if "*" in wanted else ""
    index = 0
    for number, item in enumerate(items):
        if wanted in item.names or (pattern and _like(item.names[0], pattern)):
            index = number
            break
    found: list[Entry] = []
    for number, item in enumerate(items):
        initrds = [placed(tree, part) for part in item.initrd.split()[:8]]
        entry = Entry(
            file=file,
            title=item.title,
            image=placed(tree, item.image),
            initrd=next((path for path in reversed(initrds) if path), ""),
            options=item.options,
            default=number == index,
        )
        if number == index:
            found.insert(0, entry)
        else:
            found.append(entry)
    return found


def _like(name: str, pattern: str) -> bool:
    """Whether a name begins and ends as a pattern with one * does."""
    head, _, tail = pattern.partition("*")
    return name.startswith(head) and name.endswith(tail)


def placed(tree: GuestTree, path: str) -> str:
    """Where a loader's path is in the guest: it counts from the root of some volume.

    That is the root's, /boot's or the EFI system partition's, or a btrfs volume's top, where
    the subvolume comes first.
    """
    path = re.sub(r"^\([^)]{0,64}\)", "", path.strip("\"'"))
    if not path or "$" in path:
        return ""
    path = "/" + path.replace("\\", "/").lstrip("/")
    parts = path.split("/")
    tails = ["/" + "/".join(parts[count:]) for count in range(2, min(len(parts), 6))]
    for candidate in (path, f"/boot{path}", f"/boot/efi{path}", f"/efi{path}", *tails):
        try:
            stat = tree.stat(candidate)
        except (NotFoundError, PathError):
            continue
        if stat is not None and stat.kind == "file":
            return candidate
    return ""


def order(version: str) -> list[tuple[int, int, str]]:
    """A key that sorts 5.10.0-9 before 5.10.0-20, and ~ before everything.

    Source: The Boot Loader Specification, "Sorting" (what all of its versions agree on).
    """
    key = []
    for found in re.finditer(r"([0-9]{1,18})|([A-Za-z]{1,64})|(~)", version[:256]):
        if found[1]:
            key.append((2, int(found[1]), ""))
        else:
            key.append((1, 0, found[2]) if found[2] else (-1, 0, ""))
    return [*key, (0, 0, "")]


def argument(options: str, name: str) -> str:
    """The last value of an argument on a kernel command line; "" without."""
    found: list[str] = re.findall(rf"(?:^|\s)[\"']?{re.escape(name)}=([^\s\"']+)", options)
    return found[-1] if found else ""
