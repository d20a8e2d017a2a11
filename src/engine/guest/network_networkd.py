"""systemd's own network files: .network, .netdev, and .link for the names of cards.

Source: systemd.network(5), systemd.netdev(5), systemd.link(5).
"""

from __future__ import annotations

from collections.abc import Iterator

from .network_names import OWN_LINKS
from .network_text import Card, Etc, Ini, Interface, canonical, move, pair

DIRECTORY = "/etc/systemd/network"
MAC_KEYS = ("MACAddress", "PermanentMACAddress")


def _files(etc: Etc, ending: str) -> Iterator[tuple[str, Ini]]:
    for path in etc.files(f"{DIRECTORY}/*.{ending}"):
        text = etc.text(path)
        if text is not None:
            yield path, Ini(text)


def _macs(content: Ini) -> list[str]:
    words = " ".join(" ".join(content.values("Match", key)) for key in MAC_KEYS).split()
    return [mac for mac in map(canonical, words) if mac]


def _names(content: Ini) -> list[str]:
    """Names in [Match]; a pattern is none."""
    words = " ".join(content.values("Match", "Name")).split()
    return [word for word in words if not set(word) & set("*?[!")]


def find(etc: Etc) -> Iterator[Interface]:
    for _, content in _files(etc, "netdev"):
        if name := content.value("NetDev", "Name"):
            yield Interface(name, "", virtual=True)
    for path, content in _files(etc, "link"):
        name = content.value("Link", "Name")
        pinned = bool(name) and not path.startswith(OWN_LINKS)
        for mac in _macs(content):
            yield Interface(name, mac, pinned=pinned, configured=False)
    for path, content in _files(etc, "network"):
        if content.value("Match", "Driver") or content.value("Match", "Path"):
            etc.warn(f"{path} chooses its card by driver or place, which are others now")
        names, macs = _names(content), _macs(content)
        if len(names) == 1 and len(macs) == 1:
            yield Interface(names[0], macs[0])
        else:
            yield from (Interface(name) for name in names)
            yield from (Interface("", mac) for mac in macs)


def move_macs(etc: Etc, moves: dict[str, str]) -> None:
    """[Match] MACAddress follows the card; [Link] MACAddress stays: it gives it an address."""
    for ending in ("link", "network"):
        for path, content in _files(etc, ending):
            content.blocks = [
                (
                    name,
                    [move(line, moves) if pair(line)[0] in MAC_KEYS else line for line in lines],
                )
                if name == "Match"
                else (name, lines)
                for name, lines in content.blocks
            ]
            etc.put(path, content.text(), "MACAddress of the new card")


def readdress(etc: Etc, card: Card) -> bool:
    """Give a card its new addresses. Returns whether its interface is configured here."""
    done = False
    for path, content in _files(etc, "network"):
        names, macs = _names(content), _macs(content)
        if not (card.name in names if names else card.mac in macs):
            continue
        if len(names) + len(macs) > 2:
            etc.warn(f"{path} is of several interfaces: give {card.name} its addresses by hand")
            continue
        _set(content, card)
        etc.put(path, content.text(), f"addresses of {card.name or card.mac}")
        done = True
    return done


def add(etc: Etc, card: Card) -> bool:
    """Configure a card that a file has only by a pattern: this one goes before it."""
    if not etc.files(f"{DIRECTORY}/*.network"):
        return False
    content = Ini(f"[Match]\nMACAddress={card.mac}\n")
    _set(content, card)
    path = f"{DIRECTORY}/05-rollpoint-{card.mac.replace(':', '')}.network"
    etc.put(path, content.text(), f"addresses of {card.mac}")
    return True


def _set(content: Ini, card: Card) -> None:
    dhcp = content.value("Network", "DHCP").lower()
    either = {"yes": "yes", "true": "yes", "1": "yes", "on": "yes", "both": "yes"}.get(dhcp, dhcp)
    left = {
        "v4": not card.v4 and either in ("yes", "ipv4", "v4"),
        "v6": not card.v6 and either in ("yes", "ipv6", "v6"),
    }
    now = "ipv4" if left["v4"] else "ipv6" if left["v6"] else "no"
    fresh = [("DHCP", now)] if dhcp and (card.v4 or card.v6) else []
    fresh += [("Address", address) for address in card.addresses]
    gateways = ((card.v4, card.gateway), (card.v6, card.gateway6))
    fresh += [("Gateway", gateway) for given, gateway in gateways if given and gateway]

    def old(key: str, value: str) -> bool:
        if key == "DHCP":
            return bool(fresh)
        return key in ("Address", "Gateway") and card.replaces(value)

    was = [
        item
        for name, lines in content.blocks
        if name == "Network"
        for item in map(pair, lines)
        if old(*item)
    ]
    if sorted(was) != sorted(fresh):
        content.drop("Network", old)
        content.add("Network", fresh)
    content.drop_sections("Address", lambda found: card.replaces(found.get("Address", "")))
    content.drop_sections("Route", lambda found: _is_default(found, card))


def _is_default(found: dict[str, str], card: Card) -> bool:
    gateway = found.get("Gateway", "")
    everywhere = found.get("Destination", "") in ("", "0.0.0.0/0", "::/0", "default")
    return everywhere and bool(gateway) and card.replaces(gateway)
