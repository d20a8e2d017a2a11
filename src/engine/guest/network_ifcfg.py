"""ifcfg files: of Red Hat's network-scripts and NetworkManager, and of SUSE's wicked.

Source: initscripts' sysconfig.txt, nm-settings-ifcfg-rh(5), ifcfg(5) of wicked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .network_text import Card, Etc, Interface, Vars, canonical, move, split

REDHAT = "/etc/sysconfig/network-scripts"
SUSE = "/etc/sysconfig/network"
BOTH = (REDHAT, SUSE)
OF_V4 = re.compile(r"(IPADDR|NETMASK|PREFIX|GATEWAY)[0-9]*|NETWORK|BROADCAST")
OF_V6 = re.compile(r"IPV6ADDR(_SECONDARIES)?|IPV6_DEFAULTGW|DHCPV6C(_OPTIONS)?|IPV6_AUTOCONF")
OF_CARD = re.compile(r"(eth|en|em|ib|p\d+p)[a-z0-9]*\d")  # a profile's name is none
OF_SUSE = re.compile(r"(IPADDR|NETMASK|PREFIXLEN|BROADCAST|NETWORK)(_\w+)?")
NO_CARD = {"bond", "bridge", "vlan", "team", "infiniband", "wireless", "tunnel", "ipip", "gre",
           "ovsbridge", "ovsport", "ovsbond", "wireguard", "dummy"}  # fmt: skip


def _files(etc: Etc) -> Iterator[tuple[str, str, Vars]]:
    """(directory, name after "ifcfg-", content)."""
    for directory in BOTH:
        for path in etc.files(f"{directory}/ifcfg-*"):
            text = etc.text(path)
            if text is not None:
                yield directory, path.rsplit("/ifcfg-", 1)[1], Vars(text)


def _device(directory: str, suffix: str, items: dict[str, str]) -> str:
    """The interface's name: SUSE has it in the file's, Red Hat in DEVICE or nowhere."""
    if directory == SUSE:
        return suffix
    device = items.get("DEVICE", "")
    return device if device or items.get("HWADDR") or not OF_CARD.match(suffix) else suffix


def find(etc: Etc) -> Iterator[Interface]:
    for directory, suffix, content in _files(etc):
        items = content.items()
        device = _device(directory, suffix, items)
        name, alias, _ = device.partition(":")
        virtual = (
            items.get("TYPE", "").lower() in NO_CARD
            or any(
                items.get(key, "no").lower() in ("yes", "on", "1", "true")
                for key in ("VLAN", "BRIDGE", "BONDING_MASTER")
            )
            or any(key in items for key in ("ETHERDEVICE", "BONDING_OPTS", "TUNNEL"))
        )
        mac = "" if directory == SUSE else canonical(items.get("HWADDR", ""))
        starts = items.get("STARTMODE" if directory == SUSE else "ONBOOT", "yes").lower()
        active = starts not in ("no", "off", "manual", "false")
        yield Interface(name, "" if alias else mac, virtual, active=active)


def move_macs(etc: Etc, moves: dict[str, str]) -> None:
    """HWADDR follows the card. MACADDR and LLADDR stay: they give a card an address."""
    for directory, suffix, content in _files(etc):
        if directory == REDHAT:
            content.lines = [
                move(line, moves) if (content.item(line) or ("",))[0] == "HWADDR" else line
                for line in content.lines
            ]
            etc.put(f"{directory}/ifcfg-{suffix}", content.text(), "HWADDR of the new card")


def readdress(etc: Etc, card: Card) -> bool:
    """Give a card its new addresses. Returns whether its interface is configured here."""
    done = False
    for directory, suffix, content in _files(etc):
        items = content.items()
        name, alias, _ = _device(directory, suffix, items).partition(":")
        mac = canonical(items.get("HWADDR", "")) if directory == REDHAT else ""
        if not (name == card.name if name else mac == card.mac):
            continue
        path = f"{directory}/ifcfg-{suffix}"
        if alias:
            if card.replaces(items.get("IPADDR", items.get("IPV6ADDR", ""))):
                etc.remove(path, f"{name} has new addresses: this one is of the old ones")
            continue
        (_redhat if directory == REDHAT else _suse)(content, card)
        etc.put(path, content.text(), f"addresses of {card.name or card.mac}")
        if directory == SUSE:
            _suse_routes(etc, card)
        elif card.v4:
            _global_gateway(etc, card)
            if etc.text(f"{REDHAT}/route-{name}") is not None:
                etc.warn(f"{REDHAT}/route-{name} stays as it is: check its routes")
        done = True
    return done


def _redhat(content: Vars, card: Card) -> None:
    wanted: dict[str, str] = {}
    if card.v4:
        wanted["BOOTPROTO"] = "none"
        for number, address in enumerate(card.v4):
            tail = str(number) if number else ""
            wanted[f"IPADDR{tail}"] = str(address.ip)
            wanted[f"PREFIX{tail}"] = str(address.network.prefixlen)
        if card.gateway:
            wanted["GATEWAY"] = card.gateway
    if card.v6:
        first, *more = map(str, card.v6)
        wanted |= {"IPV6INIT": "yes", "IPV6_AUTOCONF": "no", "IPV6ADDR": first}
        if more:
            wanted["IPV6ADDR_SECONDARIES"] = " ".join(more)
        if card.gateway6:
            wanted["IPV6_DEFAULTGW"] = card.gateway6
    content.drop(
        lambda key, _: (
            key not in wanted
            and bool((card.v4 and OF_V4.fullmatch(key)) or (card.v6 and OF_V6.fullmatch(key)))
        )
    )
    for key, value in wanted.items():
        content.set(key, value, '"' if " " in value else "")


def _global_gateway(etc: Etc, card: Card) -> None:
    """GATEWAY of /etc/sysconfig/network stands for all interfaces: it would be the old one."""
    path = "/etc/sysconfig/network"
    stat = etc.tree.stat(path)
    text = etc.text(path) if stat is not None and stat.kind == "file" else None
    if text is not None and "GATEWAY" in (content := Vars(text)).items():
        if card.gateway:
            content.set("GATEWAY", card.gateway)
        else:
            content.drop(lambda key, _: key == "GATEWAY")
        etc.put(path, content.text(), "gateway of the new network")


def _suse(content: Vars, card: Card) -> None:
    items = content.items()
    kept = []
    for key, value in items.items():
        if re.fullmatch(r"IPADDR(_\w+)?", key) and value and not card.replaces(value):
            length = items.get(key.replace("IPADDR", "PREFIXLEN"), "")
            kept.append(f"{value}/{length}" if length and "/" not in value else value)
    wanted = {}
    for number, address in enumerate([*card.addresses, *kept]):
        wanted[f"IPADDR_{number}" if number else "IPADDR"] = address
    if not (card.v6 and not card.v4 and "dhcp" in items.get("BOOTPROTO", "")):
        wanted["BOOTPROTO"] = "static"
    content.drop(lambda key, _: key not in wanted and OF_SUSE.fullmatch(key) is not None)
    for key, value in wanted.items():
        content.set(key, value, "'")


def _suse_routes(etc: Etc, card: Card) -> None:
    """Default routes stand in files of their own; those of a family given anew go."""
    of_card, of_all = f"{SUSE}/ifroute-{card.name}", f"{SUSE}/routes"
    for path in (of_card, of_all):
        text = etc.text(path)
        lines = split(text or "")
        kept = [line for line in lines if not _is_default(line, card)]
        if path == of_card:
            fresh = "".join(
                f"default {gateway} - {card.name}\n"
                for gateway, given in ((card.gateway, card.v4), (card.gateway6, card.v6))
                if gateway and given
            )
            kept += [fresh] if fresh else []
        if text is not None or kept:
            etc.put(path, "".join(kept), f"default route of {card.name}")


def _is_default(line: str, card: Card) -> bool:
    fields = line.split()
    return (
        len(fields) > 1
        and fields[0] in ("default", "0.0.0.0/0", "::/0")
        and card.replaces(fields[1])
        and (len(fields) < 4 or fields[3] in ("-", card.name))
    )


def set_servers(etc: Etc, servers: list[str]) -> None:
    """Name servers in Red Hat's files, for systems without NetworkManager.

    Files that have name servers lose them, and none takes any from DHCP: resolv.conf stays
    as it is written once.
    """
    for directory, suffix, content in _files(etc):
        items = content.items()
        if directory != REDHAT or suffix == "lo" or items.get("ONBOOT", "yes").lower() == "no":
            continue
        content.drop(lambda key, _: re.fullmatch(r"DNS\d*", key) is not None)
        content.set("PEERDNS", "no")
        etc.put(f"{directory}/ifcfg-{suffix}", content.text(), "name servers that were asked for")
