"""/etc/network/interfaces, of Debian's ifupdown and its kin.

Source: interfaces(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface
from typing import NamedTuple

from .network_text import FILES_MAX, Card, Etc, Interface, ended, ending, is_name, split

MAIN = "/etc/network/interfaces"
STARTS = re.compile(
    r"iface|mapping|auto|allow-\S+|source|source-directory|no-auto-down|no-scripts|rename|template"
)
OF_ADDRESS = {
    "address", "netmask", "network", "broadcast", "gateway", "pointopoint", "hostname", "client",
    "leasetime", "leasehours", "vendor", "scope", "accept_ra", "autoconf", "privext", "metric",
}  # fmt: skip
PORTS = {"bridge_ports", "bridge-ports", "bond-slaves", "bond_slaves", "slaves"}
OF_VIRTUAL = re.compile(r"bridge[_-]ports|bond[_-]\S+|slaves|vlan[_-]raw[_-]device|wireguard\S*")


class Stanza(NamedTuple):
    """The words of a head, and (text, words) of it and its options.

    The head is empty for what stands before a file's first stanza. Joined, the texts of a
    file's stanzas are the file.
    """

    head: list[str]
    lines: list[tuple[str, list[str]]]

    @property
    def name(self) -> str:
        """Of the interface that an iface stanza is for; otherwise ""."""
        return self.head[1] if len(self.head) >= 4 and self.head[0] == "iface" else ""


def parse(text: str) -> list[Stanza]:
    stanzas = [Stanza([], [])]
    for whole, words in _logical(text):
        if words and STARTS.fullmatch(words[0]):
            stanzas.append(Stanza(words, []))
        stanzas[-1].lines.append((whole, words))
    return stanzas


def _logical(text: str) -> Iterator[tuple[str, list[str]]]:
    """Lines as they are meant: text, and words, with those that end in \\ joined."""
    whole: list[str] = []
    meant: list[str] = []
    for line in split(text):
        bare = line.rstrip("\r\n")
        comment = not meant and bare.lstrip().startswith("#")
        whole.append(line)
        if bare.endswith("\\") and not comment:
            meant.append(bare[:-1])
            continue
        yield "".join(whole), [] if comment else " ".join([*meant, bare]).split()
        whole, meant = [], []
    if whole:
        yield "".join(whole), " ".join(meant).split()


def _files(etc: Etc) -> dict[str, list[Stanza]]:
    """The main file and what it sources, however deep, each once."""
    found: dict[str, list[Stanza]] = {}
    waiting = [MAIN]
    while waiting and len(found) < FILES_MAX:
        path = waiting.pop(0)
        text = None if path in found else etc.text(path)
        if text is None:
            continue
        found[path] = parse(text)
        for stanza in found[path]:
            if stanza.head and stanza.head[0] in ("source", "source-directory"):
                for pattern in stanza.head[1:]:
                    waiting += _sourced(etc, pattern, stanza.head[0] == "source-directory")
                    del waiting[FILES_MAX:]
    return found


def _sourced(etc: Etc, pattern: str, directory: bool) -> list[str]:
    if not pattern.startswith("/"):
        pattern = f"/etc/network/{pattern}"
    if not directory:
        return etc.files(pattern) if set(pattern) & set("*?") else [pattern]
    paths = etc.files(f"{pattern.rstrip('/')}/*")
    return [path for path in paths if re.fullmatch(r"[A-Za-z0-9_-]+", path.rsplit("/", 1)[1])]


def find(etc: Etc) -> Iterator[Interface]:
    for stanzas in _files(etc).values():
        for stanza in stanzas:
            options = [words for _, words in stanza.lines[1:] if words]
            if stanza.name:
                virtual = any(OF_VIRTUAL.fullmatch(words[0]) for words in options)
                yield Interface(stanza.name.partition(":")[0], "", virtual)
            elif stanza.head and re.fullmatch(r"auto|allow-\S+", stanza.head[0]):
                for word in stanza.head[1:]:
                    if is_name(word):
                        yield Interface(word, configured=False)
            for words in options:
                if words[0] in PORTS:
                    yield from (
                        Interface(w) for w in words[1:] if is_name(w) and w not in ("none", "all")
                    )


def move_macs(etc: Etc, moves: dict[str, str]) -> None:
    """Nothing here chooses a card by its MAC: hwaddress gives it one."""


def readdress(etc: Etc, card: Card) -> bool:
    """Give a card its new addresses. Returns whether its interface is configured here."""
    done = False
    for path, stanzas in _files(etc).items():
        mine = [s for s in stanzas if s.name.partition(":")[0] == card.name and card.name]
        if not mine:
            continue
        end = ending([text for text, _ in stanzas[0].lines] or [stanzas[1].lines[0][0]])
        for family, addresses, gateway in (
            ("inet", card.v4, card.gateway),
            ("inet6", card.v6, card.gateway6),
        ):
            if addresses:
                stanzas = _readdressed(stanzas, card.name, family, addresses, gateway, end)
        text = "".join(text for stanza in stanzas for text, _ in stanza.lines)
        etc.put(path, text, f"addresses of {card.name}")
        done = True
    return done


def _readdressed(
    stanzas: list[Stanza],
    name: str,
    family: str,
    addresses: tuple[IPv4Interface | IPv6Interface, ...],
    gateway: str,
    end: str,
) -> list[Stanza]:
    """The file with one stanza for each address in place of those of that family."""
    old = [s for s in stanzas if s.name.partition(":")[0] == name and s.head[2] == family]
    fresh = []
    for number, address in enumerate(addresses):
        lines = [f"iface {name} {family} static{end}", f"    address {address.ip}{end}"]
        mask = address.netmask if address.version == 4 else address.network.prefixlen
        lines.append(f"    netmask {mask}{end}")
        if number == 0:
            lines += [f"    gateway {gateway}{end}"] if gateway else []
            lines += _others(old, name, family)
        fresh.append("".join(ended(lines)))
    text = "".join(fresh)
    if [words for s in old for _, words in s.lines if words] == [
        words for _, words in _logical(text) if words
    ]:
        return stanzas
    aliases = {s.name for s in old if ":" in s.name}
    gone = set(map(id, old))
    done: list[Stanza] = []
    put = False
    for stanza in stanzas:
        if id(stanza) not in gone:
            done.append(_without(stanza, aliases))
            continue
        if not put:
            done.append(Stanza(["iface"], [(text, []), *_tail(stanza)]))
            put = True
            continue
        tail = _tail(stanza)
        while tail and not tail[0][0].strip() and not done[-1].lines[-1][0].strip():
            del tail[0]
        done[-1].lines.extend(tail)
    if not put:
        last = done[-1].lines
        if last and not last[-1][0].endswith("\n"):
            last[-1] = (last[-1][0] + end, last[-1][1])
        done.append(Stanza(["iface"], [(text, [])]))
    return done


def _others(old: list[Stanza], name: str, family: str) -> list[str]:
    """What the first stanza of the interface itself says besides its address."""
    first = next((s for s in old if s.name == name), None)
    if first is None:
        return []
    count = len(first.lines) - len(_tail(first))
    return [text for text, words in first.lines[1:count] if not words or words[0] not in OF_ADDRESS]


def _tail(stanza: Stanza) -> list[tuple[str, list[str]]]:
    """Blank lines and comments at a stanza's end: they belong to what follows it."""
    at = len(stanza.lines)
    while at > 1 and not stanza.lines[at - 1][1]:
        at -= 1
    return stanza.lines[at:]


def _without(stanza: Stanza, aliases: set[str]) -> Stanza:
    """An auto line without the aliases that are gone."""
    words = stanza.head
    if not (words and aliases & set(words[1:]) and re.fullmatch(r"auto|allow-\S+", words[0])):
        return stanza
    left = [word for word in words if word not in aliases]
    line = " ".join(left) + "\n" if len(left) > 1 else ""
    return Stanza(left, [(line, left), *stanza.lines[1:]])


def set_servers(etc: Etc, servers: list[str]) -> None:
    """dns-nameservers, where it stands: it is what resolvconf goes by."""
    for path, stanzas in _files(etc).items():
        lines = [
            re.sub(
                r"(?s)^(\s*dns-nameservers?\s).*?(\r?\n?)$", rf"\g<1>{' '.join(servers)}\g<2>", text
            )
            if words and words[0] in ("dns-nameservers", "dns-nameserver")
            else text
            for stanza in stanzas
            for text, words in stanza.lines
        ]
        etc.put(path, "".join(lines), "name servers that were asked for")
