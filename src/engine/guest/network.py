"""A Linux guest's network on new cards: names, MACs, addresses, DNS and the host's name.

The old names are given to the new cards (network_names), so configuration that goes by name
stays as it is; what goes by MAC is changed to the new one. Addresses change only when asked.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import NamedTuple

from ..errors import UsageError
from . import (
    network_cloud,
    network_dns,
    network_hostname,
    network_ifcfg,
    network_ifupdown,
    network_keyfile,
    network_names,
    network_netplan,
    network_networkd,
)
from .base import Guest, Network, Wanted
from .edits import Edits, Tree
from .network_text import VIRTUAL, Card, Etc, Interface, canonical, is_name

FORMATS: tuple[ModuleType, ...] = (
    network_netplan,
    network_ifupdown,
    network_keyfile,
    network_ifcfg,
    network_networkd,
)
FRESH = (network_netplan, network_keyfile, network_networkd)  # can configure a card by its MAC


class Port(NamedTuple):
    """A card as the whole configuration has it; name or mac can be "", never both."""

    name: str
    mac: str
    pinned: bool
    configured: bool
    active: bool


def find_names(tree: Tree) -> list[str]:
    """Names of interfaces that the configuration knows, sorted; the loopback is none."""
    found = {i.name for i in _interfaces(Etc(tree)) if is_name(i.name) and i.name != "lo"}
    return sorted(found, key=_natural)


def convert(edits: Edits, guest: Guest, wanted: Wanted) -> None:
    """Make the network come up on the new cards. Does nothing to a guest that is no Linux.

    Raises:
        UsageError: A MAC, an address or a name that is asked for is none.
        GuestError: A file cannot be written.
    """
    cards = _checked(wanted.networks)
    servers, hostname = network_dns.check(wanted.dns), network_hostname.check(wanted.hostname)
    if guest.os != "linux":
        return
    etc = Etc(edits.tree, edits)
    ports = _ports(_interfaces(etc))
    if cards:
        olds = {card.mac: canonical(n.was) for card, n in zip(cards, wanted.networks, strict=True)}
        _move(etc, ports, cards, olds)
    else:
        network_names.clean(etc, {}, None)
        _keep(etc, ports, wanted)
    network_cloud.settle(etc)
    network_dns.set_servers(etc, servers)
    network_hostname.set_address(etc, guest.hostname, cards)
    network_hostname.set_name(etc, hostname, guest.hostname)


def _checked(networks: list[Network]) -> list[Card]:
    """What is asked for each card, without its name.

    Raises:
        UsageError: A MAC, an address or a gateway is none, or two cards have one MAC.
    """
    cards = []
    for network in networks:
        for mac in filter(None, (network.mac, network.was)):
            if not canonical(mac):
                raise UsageError(f"{mac!r} is no MAC", "as in 52:54:00:12:34:56")
        if not network.mac:
            raise UsageError("a network card without a MAC", "say mac for each one")
        try:
            addresses = [ipaddress.ip_interface(address) for address in network.addresses]
            gateways = [
                str(ipaddress.IPv4Address(network.gateway)) if network.gateway else "",
                str(ipaddress.IPv6Address(network.gateway6)) if network.gateway6 else "",
            ]
        except ValueError as error:
            raise UsageError(
                f"the card {network.mac}: {error}", "addresses as in 10.0.0.7/24"
            ) from None
        if bare := [a for a in network.addresses if "/" not in a]:
            raise UsageError(
                f"the card {network.mac}: {bare[0]} has no prefix length", "as in 10.0.0.7/24"
            )
        cards.append(
            Card(
                "",
                canonical(network.mac),
                tuple(a for a in addresses if isinstance(a, ipaddress.IPv4Interface)),
                tuple(a for a in addresses if isinstance(a, ipaddress.IPv6Interface)),
                *gateways,
            )
        )
    news = [card.mac for card in cards]
    olds = [canonical(n.was) for n in networks if n.was]
    if len(set(news)) < len(news) or len(set(olds)) < len(olds):
        raise UsageError("two network cards have the same MAC", "each has its own")
    for network in networks:
        if canonical(network.was) in news and canonical(network.was) != canonical(network.mac):
            raise UsageError(
                f"{network.was} is the MAC of a card on the source and of another one here",
                "give the new cards MACs that no old one has: a conversion must be repeatable",
            )
    return cards


def _interfaces(etc: Etc) -> Iterator[Interface]:
    yield from network_names.find(etc)
    for room in FORMATS:
        yield from room.find(etc)


def _ports(interfaces: Iterable[Interface]) -> list[Port]:
    """The cards among them, by name in natural order, then those known by MAC alone."""
    every = list(interfaces)
    virtual = {i.name for i in every if i.virtual}
    named: dict[str, Port] = {}
    for i in every:
        name = i.name.partition(".")[0]
        if not is_name(name) or name in virtual or VIRTUAL.match(name):
            continue
        apart = "." in i.name  # a VLAN's: what it says is not of the card
        old = named.get(name, Port(name, "", False, False, False))
        named[name] = Port(
            name,
            old.mac or ("" if apart else i.mac),
            old.pinned or i.pinned,
            old.configured or i.configured,
            old.active or (i.configured and i.active),
        )
    ports = sorted(named.values(), key=lambda port: _natural(port.name))
    bound = {port.mac for port in ports}
    macs = {i.mac: i for i in every if not i.name and i.mac and i.mac not in bound}
    return ports + [
        Port("", mac, False, i.configured, i.configured and i.active)
        for mac, i in sorted(macs.items())
    ]


def _natural(name: str) -> list[tuple[int, int, str]]:
    """ens9 comes before ens10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(p), "") if p.isdecimal() and p.isascii() else (1, 0, p) for p in parts]


def _move(etc: Etc, ports: list[Port], cards: list[Card], olds: dict[str, str]) -> None:
    """Let the configuration go over to the new cards."""
    matched = _match(etc, ports, cards, olds)
    moves = {old: mac for mac, old in olds.items() if old and old != mac}
    moves |= {port.mac: card.mac for port, card in matched if port.mac and port.mac != card.mac}
    network_names.clean(etc, moves, {card.mac for card in cards})
    for room in FORMATS:
        room.move_macs(etc, moves)
    for port, card in matched:
        if port.name and not port.pinned:
            network_names.pin(etc, port.name, card.mac)
    kernels = [port.name for port, _ in matched if re.fullmatch(r"eth\d+", port.name)]
    if len(kernels) > 1:
        etc.warn(
            f"{' and '.join(kernels)} are names that the kernel gives too, in the order in "
            "which it finds cards: check that each card has its own"
        )
    named = {card.mac: card for _, card in matched}
    for card in cards:
        card = named.get(card.mac, card)
        if card.v4 or card.v6:
            _readdress(etc, card)


def _readdress(etc: Etc, card: Card) -> None:
    found = [room.readdress(etc, card) for room in FORMATS]  # each of them, not the first alone
    if not any(found) and not any(room.add(etc, card) for room in FRESH):
        etc.warn(
            f"no configuration here is known to be of {card.name or card.mac}: "
            f"it is not given {', '.join(card.addresses)}"
        )


def _match(
    etc: Etc, ports: list[Port], cards: list[Card], olds: dict[str, str]
) -> list[tuple[Port, Card]]:
    """Which card each port's is: by MAC, and where that does not say, by order."""
    by_mac = {port.mac: port for port in reversed(ports) if port.mac}
    matched: list[tuple[Port, Card]] = []
    left = []
    for card in cards:
        port = by_mac.get(card.mac) or by_mac.get(olds[card.mac])
        if port is None:
            left.append(card)
        else:
            matched.append((port, card))
    if not left:
        return [(port, card._replace(name=port.name)) for port, card in matched]
    taken = {port for port, _ in matched}
    bound = [port for port in ports if port not in taken and port.configured]
    free = [port for port in bound if not port.mac]
    pools = [bound, free, *([port for port in pool if port.active] for pool in (bound, free))]
    pool = next((pool for pool in pools if len(pool) == len(left)), free)
    if pool and len(pool) <= len(left):
        matched += zip(pool, left, strict=False)
        if len(left) > 1:
            told = ", ".join(
                f"{port.name or port.mac} is {card.mac}"
                for port, card in zip(pool, left, strict=False)
            )
            etc.warn(f"cards were told apart by their order alone: {told}")
    elif bound:
        names = ", ".join(port.name or port.mac for port in bound)
        etc.warn(
            f"{len(left)} new cards, and the configuration has {names}: "
            "say which is which, with was = MAC on the source"
        )
    return [(port, card._replace(name=port.name)) for port, card in matched]


def _keep(etc: Etc, ports: list[Port], wanted: Wanted) -> None:
    """Nothing is known of the cards: their MACs are taken for the old ones."""
    ruled = {interface.name for interface in network_names.find(etc)}
    configured = [port for port in ports if port.configured and port.name]
    active = [port for port in configured if port.active]
    only = (active if len(active) == 1 else configured)[:2]
    if len(only) == 1 and (not only[0].mac or only[0].name in ruled):
        network_names.pin_only(etc, only[0].name, wanted)
        return
    for port in configured:
        if port.mac and not port.pinned:
            network_names.pin(etc, port.name, port.mac)
    free = [port.name for port in configured if not port.mac]
    if free:
        etc.warn(
            f"the cards {', '.join(free)} may have other names on the new hardware: "
            "say their MACs in [[guest.network]]"
        )
