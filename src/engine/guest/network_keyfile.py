"""NetworkManager's own connection files.

Source: nm-settings-keyfile(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .network_text import Card, Etc, Ini, Interface, canonical, move, pair

DIRECTORY = "/etc/NetworkManager/system-connections"
FILES = f"{DIRECTORY}/*"
PROGRAM = "/usr/sbin/NetworkManager"
ETHERNET = ("ethernet", "802-3-ethernet")


def _files(etc: Etc) -> Iterator[tuple[str, Ini]]:
    for path in etc.files(FILES):
        text = etc.text(path)
        if text is not None:
            yield path, Ini(text)


def _mac(content: Ini) -> str:
    return next(filter(None, (canonical(content.value(s, "mac-address")) for s in ETHERNET)), "")


def find(etc: Etc) -> Iterator[Interface]:
    for path, content in _files(etc):
        kind = content.value("connection", "type")
        name, mac = content.value("connection", "interface-name"), _mac(content)
        if kind in ETHERNET:
            if content.value("match", "driver") or content.value("match", "path"):
                etc.warn(f"{path} chooses its card by driver or place, which are others now")
            if name or mac:
                starts = content.value("connection", "autoconnect").lower()
                yield Interface(name, mac, active=starts not in ("false", "no", "0"))
        elif name:
            yield Interface(name, "", virtual=True)


def move_macs(etc: Etc, moves: dict[str, str]) -> None:
    """mac-address follows the card; cloned-mac-address stays: it gives a card an address."""
    for path, content in _files(etc):
        content.blocks = [
            (
                name,
                [move(line, moves) if pair(line)[0] == "mac-address" else line for line in lines],
            )
            if name in ETHERNET
            else (name, lines)
            for name, lines in content.blocks
        ]
        etc.put(path, content.text(), "mac-address of the new card")


def readdress(etc: Etc, card: Card) -> bool:
    """Give a card its new addresses. Returns whether its interface is configured here."""
    done = False
    for path, content in _files(etc):
        if content.value("connection", "type") not in ETHERNET:
            continue
        name = content.value("connection", "interface-name")
        if not (name == card.name if name else _mac(content) == card.mac):
            continue
        _give(content, card)
        etc.put(path, content.text(), f"addresses of {card.name or card.mac}", 0o600)
        done = True
    return done


def add(etc: Etc, card: Card) -> bool:
    """Configure a card of which no file speaks: NetworkManager gives it DHCP by itself."""
    if not etc.tree.exists(PROGRAM):
        return False
    name = f"rollpoint-{card.mac.replace(':', '')}"
    content = Ini(
        f"[connection]\nid={name}\ntype=ethernet\nautoconnect-priority=100\n\n"
        f"[ethernet]\nmac-address={card.mac}\n"
    )
    _give(content, card)
    path = f"{DIRECTORY}/{name}.nmconnection"
    etc.put(path, content.text(), f"addresses of {card.mac}", 0o600)
    return True


def _give(content: Ini, card: Card) -> None:
    for family, addresses, gateway in (
        ("ipv4", card.v4, card.gateway),
        ("ipv6", card.v6, card.gateway6),
    ):
        if addresses:
            fresh = [("method", "manual")]
            for number, address in enumerate(addresses, 1):
                via = f",{gateway}" if gateway and number == 1 else ""
                fresh.append((f"address{number}", f"{address}{via}"))
            _set(content, family, fresh)


def _set(content: Ini, family: str, fresh: list[tuple[str, str]]) -> None:
    """Settings of a family; untouched when they are already those, whatever their order."""
    of_address = re.compile(r"method|address(es)?\d*|gateway")
    now = [
        item
        for name, lines in content.blocks
        if name == family
        for item in map(pair, lines)
        if of_address.fullmatch(item[0])
    ]
    if sorted(now) != sorted(fresh):
        content.drop(family, lambda key, _: of_address.fullmatch(key) is not None)
        content.add(family, fresh)
