"""The addresses of a Windows guest, kept on network cards that it has never seen.

Windows ties an address to a card's place and driver, and not to its MAC: on new hardware
every card starts with DHCP. What was set by hand is read from the registry here, and the
first start (windows_first_boot.py) gives it to the new card. Which old card was which new
one, nothing in the registry tells: with several, the operator says it (re-IP).

Tests: tests/test_windows_network.py
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from ..errors import UsageError
from .base import Network, Wanted
from .edits import Edits
from .hives import Hive, string
from .windows_first_boot import Card

NET_CLASS = "{4D36E972-E325-11CE-BFC1-08002BE10318}"
_SOFTWARE = ("ROOT\\", "SWD\\", "BTH\\", "{")  # enumerators of devices that are no card
_INTERFACES_MAX = 500
_ADDRESSES_MAX = 64


def names(system: Hive, control_set: str) -> list[str]:
    """Of the guest's network connections, without those that are software's alone."""
    place = (control_set, "Control", "Network", NET_CLASS)
    found = []
    for key in system.keys(place)[:_INTERFACES_MAX]:
        if not key.startswith("{"):
            continue
        connection = (*place, key, "Connection")
        name = system.text(connection, "Name")
        device = system.text(connection, "PnPInstanceId")
        if name and not device.upper().startswith(_SOFTWARE):
            found.append(name)
    return found


def plan(edits: Edits, system: Hive, control_set: str, wanted: Wanted) -> tuple[Card, ...]:
    """The cards that the first start sets, and warnings for what cannot be told.

    Raises:
        UsageError: A MAC or an address that is wanted is none.
    """
    dns = tuple(_checked(address) for address in wanted.dns)
    cards = [_asked(network, dns) for network in wanted.networks if network.addresses]
    silent = [network for network in wanted.networks if not network.addresses]
    kept = fixed(system, control_set)
    if kept and (silent or not wanted.networks):
        if len(kept) == 1 and len(wanted.networks) <= 1:
            mac = windows_mac(silent[0].mac) if silent else ""
            cards.append(kept[0]._replace(mac=mac, dns=dns or kept[0].dns))
            silent = []
        else:
            shown = "; ".join(", ".join(card.addresses) for card in kept)
            edits.warn(
                f"addresses are set by hand in the guest ({shown}), and nothing tells which of "
                "its new network cards gets which: give them under networks, with each MAC"
            )
    if dns:
        cards += [Card(windows_mac(network.mac), dns=dns) for network in silent]
        if not wanted.networks and not cards:
            cards.append(Card("", dns=dns))
    return tuple(cards)


def _asked(network: Network, dns: tuple[str, ...]) -> Card:
    addresses = tuple(_checked(address, prefix=True) for address in network.addresses)
    gateways = tuple(_checked(hop) for hop in (network.gateway, network.gateway6) if hop)
    return Card(windows_mac(network.mac), addresses, gateways, dns)


def fixed(system: Hive, control_set: str) -> list[Card]:
    """What is set by hand for IPv4, each set of addresses once: old cards leave theirs."""
    place = (control_set, "Services", "Tcpip", "Parameters", "Interfaces")
    found: dict[tuple[str, ...], Card] = {}
    for key in system.keys(place)[:_INTERFACES_MAX]:
        values = {name.casefold(): value for name, value in system.values((*place, key)).items()}
        dhcp = values.get("enabledhcp")
        if dhcp is None or dhcp.number != 0 or "ipaddress" not in values:
            continue
        masks = values["subnetmask"].texts if "subnetmask" in values else []
        pairs = zip(values["ipaddress"].texts, masks, strict=False)
        addresses = tuple(filter(None, (_interface(*pair) for pair in pairs)))[:_ADDRESSES_MAX]
        if not addresses:
            continue
        hops = values["defaultgateway"].texts if "defaultgateway" in values else []
        servers = values["nameserver"].text if "nameserver" in values else ""
        gateways = tuple(filter(None, map(_address, hops)))[:1]
        dns = tuple(filter(None, map(_address, re.split(r"[,\s]+", servers))))[:_ADDRESSES_MAX]
        found.setdefault(addresses, Card("", addresses, gateways, dns))
    return list(found.values())


def _interface(address: str, mask: str) -> str | None:
    """An address with its prefix length; None for what is no address, or is not set."""
    try:
        found = ipaddress.IPv4Interface(f"{address}/{mask}")
    except ValueError:
        return None
    return None if found.ip.is_unspecified else str(found)


def _address(text: str) -> str | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if found.is_unspecified else str(found)


def windows_mac(mac: str) -> str:
    """A MAC as Windows writes it.

    Raises:
        UsageError: It is none.
    """
    digits = re.sub(r"[:.-]", "", mac)
    if not re.fullmatch(r"[0-9A-Fa-f]{12}", digits):
        raise UsageError(f"{mac!r} is no MAC address", "write it as 52:54:00:12:34:56")
    return "-".join(digits[at : at + 2] for at in range(0, 12, 2)).upper()


def _checked(text: str, prefix: bool = False) -> str:
    try:
        return str(ipaddress.ip_interface(text) if prefix else ipaddress.ip_address(text))
    except ValueError as error:
        wanted = "10.1.2.3/24" if prefix else "10.1.2.3"
        raise UsageError(f"{text!r} is no address", f"write it as {wanted}") from error


def hosts_join_no_domain(system: Hive, control_set: str) -> bool:
    """Whether the guest's name can change without a domain that knows it by the old one."""
    place = (control_set, "Services", "Tcpip", "Parameters")
    return not system.text(place, "Domain")


def rename(edits: Edits, system: Hive, sets: Sequence[str], hostname: str) -> None:
    """Give the guest another name; a member of a domain keeps its own, with a warning.

    Raises:
        UsageError: Windows takes no such name.
    """
    if not hostname:
        return
    if not re.fullmatch(r"(?=.*[A-Za-z-])[A-Za-z0-9]([A-Za-z0-9-]{0,13}[A-Za-z0-9])?", hostname):
        raise UsageError(
            f"{hostname!r} is no name for a Windows computer",
            "give up to 15 letters, digits and hyphens",
        )
    if not all(hosts_join_no_domain(system, name) for name in sets):
        edits.warn(
            "the guest is in a domain, which knows it by its name: it keeps the name, change it "
            "in the domain"
        )
        return
    what = "the guest's new name"
    for name in sets:
        for key in ("ComputerName", "ActiveComputerName"):
            place = (name, "Control", "ComputerName", key)
            if key == "ComputerName" or system.has(place):
                system.set(place, "ComputerName", string(hostname.upper()), what)
        place = (name, "Services", "Tcpip", "Parameters")
        for value in ("Hostname", "NV Hostname"):
            system.set(place, value, string(hostname), what)
