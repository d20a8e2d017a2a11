"""netplan's files, of Ubuntu and of cloud-init.

Source: netplan-yaml(5): files of later names add to earlier ones, and lists are joined, so
new addresses cannot be given by one more file; the files that have the old ones are edited.
"""

from __future__ import annotations

from collections.abc import Iterator

from .network_text import Card, Etc, Interface, canonical, ended, ending, move, split
from .network_yaml import Node, NotUnderstoodError, emit, parse, plain

FILES = "/etc/netplan/*.yaml"
VIRTUAL = ("bonds", "bridges", "vlans", "tunnels", "vrfs", "dummy-devices", "virtual-ethernets")
EVERYWHERE = ("default", "0.0.0.0/0", "::/0", "0/0")


def _files(etc: Etc, warn: bool = False) -> Iterator[tuple[str, str, Node]]:
    for path in etc.files(FILES):
        text = etc.text(path)
        if text is None:
            continue
        try:
            yield path, text, parse(text)
        except NotUnderstoodError as error:
            if warn:
                etc.warn(f"{path} is left as it is: {error} is not understood here")


def _cards(root: Node) -> Iterator[tuple[str, Node, str, str]]:
    """(id, node, name, MAC) of each card; name is "" when only a pattern or the MAC says."""
    ethernets = root.get("network", "ethernets")
    for key, node in (ethernets.map or {} if ethernets is not None else {}).items():
        mac = canonical(node.scalar("match", "macaddress"))
        name = node.scalar("match", "name") if node.get("match") is not None else key
        if mac:
            name = node.scalar("set-name") or name
        yield key, node, "" if set(name) & set("*?[!") else name, mac


def find(etc: Etc) -> Iterator[Interface]:
    for path, _, root in _files(etc, warn=True):
        for key, node, name, mac in _cards(root):
            if node.get("match", "driver") is not None:
                etc.warn(f"{path} chooses {key} by its driver, which is another now")
            if name or mac:
                yield Interface(name, mac, pinned=bool(mac and node.scalar("set-name")))
        for section in VIRTUAL:
            found = root.get("network", section)
            for key in found.map or {} if found is not None else {}:
                yield Interface(key, "", virtual=True)


def move_macs(etc: Etc, moves: dict[str, str]) -> None:
    """macaddress below match follows the card; one beside it stays: it gives an address."""
    for path, text, root in _files(etc):
        lines = split(text)
        for _, node, _, mac in _cards(root):
            if mac in moves:
                at = node.get("match", "macaddress") or node
                lines[at.first : at.last] = [
                    move(line, moves) for line in lines[at.first : at.last]
                ]
        etc.put(path, "".join(lines), "macaddress of the new card")


def readdress(etc: Etc, card: Card) -> bool:
    """Give a card its new addresses. Returns whether its interface is configured here.

    Where several files speak of it, the last gets them, and the others lose the old ones.
    """
    found = [
        (path, key)
        for path, _, root in _files(etc)
        for key, _, name, mac in _cards(root)
        if (mac == card.mac if mac else name == card.name and name)
    ]
    for path, key in found:
        text = etc.text(path) or ""
        above = parse(text).get("network", "ethernets")
        node = None if above is None else above.get(key)
        if above is not None and above.indent < 0:
            etc.warn(f"{path} has all on one line: give {key} {', '.join(card.addresses)} by hand")
        elif node is not None:
            lines = _readdressed(split(text), key, node, card, path == found[-1][0])
            etc.put(path, "".join(lines), f"addresses of {card.name or card.mac}")
    return bool(found)


def _readdressed(lines: list[str], key: str, node: Node, card: Card, put: bool) -> list[str]:
    """The file's lines with the card's block changed."""
    entries = node.map or {}
    fresh = _settings(entries, card, put)
    end, lines = ending(lines), ended(lines)
    if node.map is not None and node.indent >= 0:
        indent = " " * node.indent
        for name in sorted(entries, key=lambda k: -entries[k].first):
            old = entries[name]
            if name in fresh:
                value = fresh.pop(name)
                if value is None:
                    del lines[old.first : old.last]
                elif value != emit(old):
                    lines[old.first : old.last] = [f"{indent}{name}: {value}{end}"]
        first = min(entry.first for entry in entries.values()) if entries else node.first
        lines[first:first] = [f"{indent}{k}: {v}{end}" for k, v in fresh.items() if v is not None]
        return lines
    # On one line: spread out over a block of its own.
    outer = len(lines[node.first]) - len(lines[node.first].lstrip(" "))
    inner = " " * (outer + 2)
    merged = {name: emit(value) for name, value in entries.items()} | fresh
    block = [f"{inner}{k}: {v}{end}" for k, v in merged.items() if v is not None]
    if block != [f"{inner}{k}: {emit(v)}{end}" for k, v in entries.items()]:
        lines[node.first : node.last] = [f"{' ' * outer}{plain(key)}:{end}", *block]
    return lines


def _settings(entries: dict[str, Node], card: Card, put: bool) -> dict[str, str | None]:
    """What its settings of addresses are to be, in flow style; None: there is none."""

    def items(name: str) -> list[Node]:
        return (entries[name].items or []) if name in entries else []

    addresses = [
        emit(item)
        for item in items("addresses")
        if not card.replaces(item.text or next(iter(item.map or {}), ""))
    ]
    routes = [emit(item) for item in items("routes") if not _is_default(item, card)]
    fresh: dict[str, str | None] = {}
    for number, given, gateway, everywhere in (
        ("4", card.v4, card.gateway, "0.0.0.0/0"),
        ("6", card.v6, card.gateway6, "::/0"),
    ):
        if not given:
            continue
        fresh[f"gateway{number}"] = None
        if put or f"dhcp{number}" in entries:
            fresh[f"dhcp{number}"] = "false"
        if put:
            addresses += [plain(str(address)) for address in given]
            if gateway:
                routes.append(f"{{to: {plain(everywhere)}, via: {plain(gateway)}}}")
    fresh["addresses"] = f"[{', '.join(addresses)}]" if addresses else None
    fresh["routes"] = f"[{', '.join(routes)}]" if routes else None
    for name in ("addresses", "routes"):
        if name not in entries and fresh[name] is None:
            del fresh[name]
    return fresh


def _is_default(route: Node, card: Card) -> bool:
    return route.scalar("to") in EVERYWHERE and card.replaces(route.scalar("via"))


def add(etc: Etc, card: Card) -> bool:
    """Configure a card of which no file speaks, or only one that goes by a pattern."""
    if not etc.files(FILES):
        return False
    settings = {k: v for k, v in _settings({}, card, put=True).items() if v is not None}
    key = f"00-rollpoint-{card.mac.replace(':', '')}"  # goes before what goes by a pattern
    lines = [
        "network:\n  version: 2\n  ethernets:\n",
        f"    {key}:\n      match: {{macaddress: {plain(card.mac)}}}\n",
        *(f"      {name}: {value}\n" for name, value in settings.items()),
    ]
    path = f"/etc/netplan/90-rollpoint-{card.mac.replace(':', '')}.yaml"
    etc.put(path, "".join(lines), f"addresses of {card.mac}", 0o600)
    return True
