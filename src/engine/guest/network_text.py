"""Files of a guest's network configuration: read, and edited a line at a time.

Text is str with surrogate escapes, so that what is no UTF-8 comes back byte for byte. All
of it was written by the guest: files are limited in size and number, what is no regular
file is passed over with a warning, and every pass here is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import IPv4Interface, IPv6Interface
from typing import NamedTuple

from ..errors import Error, NotFoundError
from .edits import Edits, Tree

FILE_BYTES_MAX = 256 << 10
FILES_MAX = 256
MAC = re.compile(r"(?<![0-9A-Fa-f:-])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:-])")
NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9_.-]{1,15}")  # IFNAMSIZ, and what a rule may hold
VIRTUAL = re.compile(
    r"(lo$|sit\d|tun|tap|veth|docker|br-|br\d|virbr|vnet|bond|team|vlan|wg|dummy|ppp|wwan|wlan|wl|lxc)"
)
LEFT_OVER = (".bak", ".old", ".orig", ".rpmsave", ".rpmnew", ".rpmorig", ".dpkg-old", ".dpkg-dist",
             ".dpkg-new", ".swp", "~")  # fmt: skip


class Interface(NamedTuple):
    """A network interface, as one place of the configuration has it.

    Attributes:
        name: "" where the card is chosen by its MAC alone.
        mac: That the configuration binds it to, canonical; "" without.
        virtual: A bridge, bond, VLAN or the like: no card.
        pinned: The place itself gives the card with that MAC this name.
        configured: It says more of the interface than its name.
        active: It is brought up when the guest starts.
    """

    name: str
    mac: str = ""
    virtual: bool = False
    pinned: bool = False
    configured: bool = True
    active: bool = True


class Card(NamedTuple):
    """What one card is to be given. A family without addresses keeps what it has.

    Attributes:
        name: Of its interface; "" where the configuration knows only the MAC.
        mac: On the new hardware, canonical.
        gateway, gateway6: "" for none.
    """

    name: str
    mac: str
    v4: tuple[IPv4Interface, ...] = ()
    v6: tuple[IPv6Interface, ...] = ()
    gateway: str = ""
    gateway6: str = ""

    @property
    def addresses(self) -> list[str]:
        return [str(address) for address in (*self.v4, *self.v6)]

    def replaces(self, address: str) -> bool:
        """Whether an address (with or without prefix) is of a family that is given anew."""
        return bool(self.v6 if ":" in address else self.v4)


class Etc:
    """The files, for reading and for editing.

    What was read or listed is kept until it is changed here: each look into a guest may be
    a round trip to another machine.

    Args:
        edits: None for reading alone: then nothing is warned of.
    """

    def __init__(self, tree: Tree, edits: Edits | None = None) -> None:
        self.tree = tree
        self._edits = edits
        self._left_alone: set[str] = set()
        self._texts: dict[str, str | None] = {}
        self._listed: dict[str, list[str]] = {}

    @property
    def edits(self) -> Edits:
        if self._edits is None:
            raise TypeError("opened for reading alone")
        return self._edits

    def warn(self, text: str) -> None:
        if self._edits is not None:
            self._edits.warn(text)

    def files(self, pattern: str) -> list[str]:
        """Configuration files of that pattern, without editors' and packagers' left-overs."""
        if pattern not in self._listed:
            self._listed[pattern] = self._list(pattern)
        return self._listed[pattern]

    def _list(self, pattern: str) -> list[str]:
        try:
            named = sorted(path for path in self.tree.glob(pattern) if not path.endswith(LEFT_OVER))
        except NotFoundError:
            return []
        except Error as error:
            self.warn(f"{pattern} is passed over: {error.message}")
            return []
        # A link beside the file that it leads to would have that file edited twice.
        found = sorted({self._real(path): path for path in reversed(named)}.values())
        if len(found) > FILES_MAX:
            self.warn(f"{pattern}: {len(found)} files, of which the first {FILES_MAX} are read")
        return found[:FILES_MAX]

    def _real(self, path: str) -> str:
        try:
            return self.tree.real(path)
        except Error:  # reading it says why
            return path

    def text(self, path: str) -> str | None:
        """A file's text; None when it is not there, or nothing that can be read."""
        if path not in self._texts:
            self._texts[path] = self._read(path)
        return self._texts[path]

    def _read(self, path: str) -> str | None:
        try:
            data = self.tree.read(path, FILE_BYTES_MAX)
        except NotFoundError:
            return None
        except Error as error:
            self.warn(f"{path} is passed over: {error.message}")
            self._left_alone.add(path)
            return None
        return data.decode("utf-8", "surrogateescape")

    def put(self, path: str, text: str, what: str, mode: int | None = None) -> bool:
        """A file's new text, unless it was passed over. Returns whether that changed it."""
        if path in self._left_alone:
            return False
        if self._texts.get(path) is None:
            self._listed.clear()
        self._texts[path] = text
        return self.edits.replace(path, text.encode("utf-8", "surrogateescape"), what, mode)

    def remove(self, path: str, what: str) -> None:
        """A file that is no longer of use."""
        self._texts.pop(path, None)
        self._listed.clear()
        self.edits.remove(path, what)


def split(text: str) -> list[str]:
    """Lines with their ends. Only a line feed ends one: all else is the guest's own affair."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def ending(lines: list[str]) -> str:
    """How this file ends its lines."""
    return "\r\n" if lines and lines[0].endswith("\r\n") else "\n"


def ended(lines: list[str]) -> list[str]:
    """The same, with an end to the last line too, for what is put behind it."""
    if lines and not lines[-1].endswith("\n"):
        return [*lines[:-1], lines[-1] + ending(lines)]
    return lines


def canonical(mac: str) -> str:
    """Lower case with colons; "" when it is no MAC."""
    mac = mac.strip().strip("\"'")
    return mac.lower().replace("-", ":") if MAC.fullmatch(mac) else ""


def move(text: str, moves: dict[str, str]) -> str:
    """The text with MACs replaced, each in the spelling of the one that was there."""

    def moved(found: re.Match[str]) -> str:
        old = found[0]
        new = moves.get(old.lower().replace("-", ":"), "").replace(":", old[2])
        return (new.upper() if old != old.lower() else new) or old

    return MAC.sub(moved, text)


def is_name(name: str) -> bool:
    """Whether it can be a card's name, and is safe wherever one is written."""
    return NAME.fullmatch(name) is not None


class Ini:
    """Sections of `key=value`: NetworkManager's keyfiles, systemd's files.

    A section may come more than once; what is not touched stays as it is.
    """

    def __init__(self, text: str) -> None:
        lines = split(text)
        self.end = ending(lines)
        self.blocks: list[tuple[str, list[str]]] = [("", [])]
        for line in lines:
            bare = line.strip()
            if bare.startswith("[") and bare.endswith("]"):
                self.blocks.append((bare[1:-1].strip(), []))
            self.blocks[-1][1].append(line)

    def text(self) -> str:
        return "".join(line for _, lines in self.blocks for line in lines)

    def values(self, section: str, key: str) -> list[str]:
        """All values of a key in all sections of that name, in order."""
        return [
            value
            for name, lines in self.blocks
            if name == section
            for found, value in map(pair, lines)
            if found == key
        ]

    def value(self, section: str, key: str) -> str:
        """The last one, which is the one that counts; "" without."""
        found = self.values(section, key)
        return found[-1] if found else ""

    def drop(self, section: str, unwanted: Callable[[str, str], bool]) -> None:
        """Remove settings from all sections of that name."""
        self.blocks = [
            (name, [line for line in lines if not (pair(line)[0] and unwanted(*pair(line)))])
            if name == section
            else (name, lines)
            for name, lines in self.blocks
        ]

    def drop_sections(self, section: str, unwanted: Callable[[dict[str, str]], bool]) -> None:
        """Remove whole sections of that name, judged by their settings."""
        self.blocks = [
            (name, lines)
            for name, lines in self.blocks
            if name != section or not unwanted(dict(map(pair, lines)))
        ]

    def add(self, section: str, settings: Iterable[tuple[str, str]]) -> None:
        """Put settings at the end of the first section of that name, or of a new one."""
        fresh = [f"{key}={value}{self.end}" for key, value in settings]
        if not fresh:
            return
        self.blocks = [(name, ended(lines)) for name, lines in self.blocks]
        for name, lines in self.blocks:
            if name == section:
                at = len(lines)
                while at > 1 and not lines[at - 1].strip():
                    at -= 1
                lines[at:at] = fresh
                return
        if any(line.strip() for line in self.blocks[-1][1]):
            self.blocks[-1][1].append(self.end)
        self.blocks.append((section, [f"[{section}]{self.end}", *fresh]))


def pair(line: str) -> tuple[str, str]:
    """Key and value of an ini file's line; key "" where it is none."""
    key, equals, value = line.strip().partition("=")
    return ("", "") if not equals or key.startswith(("#", ";")) else (key.strip(), value.strip())


class Vars:
    """`KEY=value` lines that a shell reads: ifcfg files and the rest of /etc/sysconfig."""

    ASSIGNMENT = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=([^\r\n]*)\r?\n?")

    def __init__(self, text: str) -> None:
        self.lines = split(text)
        self.end = ending(self.lines)

    def text(self) -> str:
        return "".join(self.lines)

    def items(self) -> dict[str, str]:
        """What is set, unquoted; later lines win, as in a shell."""
        return dict(filter(None, map(self.item, self.lines)))

    def item(self, line: str) -> tuple[str, str] | None:
        found = self.ASSIGNMENT.fullmatch(line)
        return None if found is None else (found[1], unquoted(found[2]))

    def drop(self, unwanted: Callable[[str, str], bool]) -> None:
        self.lines = [
            line for line in self.lines if (item := self.item(line)) is None or not unwanted(*item)
        ]

    def set(self, key: str, value: str, quote: str = "") -> None:
        """Set a key where it stands, last, or at the end. An equal value changes nothing."""
        if self.items().get(key) == value:
            return
        fresh = f"{key}={quote}{value}{quote}{self.end}"
        for at in range(len(self.lines) - 1, -1, -1):
            item = self.item(self.lines[at])
            if item is not None and item[0] == key:
                self.lines[at] = fresh
                return
        self.lines = [*ended(self.lines), fresh]


def unquoted(value: str) -> str:
    """A shell word as far as configuration files use them: quoted whole, or up to a comment."""
    value = value.strip()
    if value[:1] in ("'", '"'):
        return value[1:].partition(value[0])[0]
    return re.split(r"\s+#|\s*;", value, maxsplit=1)[0].strip()
