"""Name servers, for the whole system rather than for each card.

Source: resolv.conf(5), resolved.conf(5), NetworkManager.conf(5) on global-dns,
netconfig(8) of SUSE, dhclient.conf(5), interfaces(5) with resolvconf(8).
"""

from __future__ import annotations

import ipaddress

from ..errors import UsageError
from . import network_ifcfg, network_ifupdown
from .network_text import Etc, Vars, ended, ending, split

RESOLV = "/etc/resolv.conf"
RESOLVED = "/etc/systemd/resolved.conf.d/90-rollpoint.conf"
MANAGER = "/etc/NetworkManager/conf.d/90-rollpoint-dns.conf"
NETCONFIG = "/etc/sysconfig/network/config"
DHCLIENT = ("/etc/dhcp/dhclient.conf", "/etc/dhclient.conf", "/etc/dhcp3/dhclient.conf")
WHAT = "name servers that were asked for"


def check(servers: list[str]) -> list[str]:
    """Addresses as they are written everywhere.

    Raises:
        UsageError: One is no address.
    """
    try:
        return [str(ipaddress.ip_address(server)) for server in servers]
    except ValueError as error:
        raise UsageError(f"dns: {error}", "give addresses of name servers") from None


def set_servers(etc: Etc, servers: list[str]) -> None:
    """Have the guest ask these, whoever else tells it of others."""
    if not servers:
        return
    stat = etc.tree.stat(RESOLV, follow=False)
    target = stat.target if stat is not None and stat.kind == "link" else ""
    if "systemd/resolve" in target or etc.files("/etc/systemd/system/*/systemd-resolved.service"):
        etc.put(RESOLVED, f"[Resolve]\nDNS={' '.join(servers)}\nDomains=~.\n", WHAT)
    if etc.tree.is_directory("/etc/NetworkManager"):
        etc.put(MANAGER, f"[global-dns-domain-*]\nservers={','.join(servers)}\n", WHAT)
    elif etc.tree.is_directory(network_ifcfg.REDHAT):
        network_ifcfg.set_servers(etc, servers)
    if (text := etc.text(NETCONFIG)) is not None:
        content = Vars(text)
        content.set("NETCONFIG_DNS_STATIC_SERVERS", " ".join(servers), '"')
        etc.put(NETCONFIG, content.text(), WHAT)
    network_ifupdown.set_servers(etc, servers)
    for path in DHCLIENT:
        if (text := etc.text(path)) is not None:
            etc.put(path, _dhclient(text, servers), WHAT)
    if not target:
        etc.put(RESOLV, _resolv(etc.text(RESOLV) or "", servers), WHAT)


def _resolv(text: str, servers: list[str]) -> str:
    lines = split(text)
    end = ending(lines)
    fresh = [f"nameserver {server}{end}" for server in servers]
    at = next((i for i, line in enumerate(lines) if _word(line) == "nameserver"), len(lines))
    before, after = lines[:at], [line for line in lines[at:] if _word(line) != "nameserver"]
    return "".join([*ended(before), *fresh, *after])


def _dhclient(text: str, servers: list[str]) -> str:
    """One statement that stands above what a DHCP server says."""
    lines = split(text)
    fresh = f"supersede domain-name-servers {', '.join(servers)};"
    left = [line for line in lines if line.split()[:2] != ["supersede", "domain-name-servers"]]
    same = [line for line in lines if line.strip() == fresh]
    if len(same) == len(lines) - len(left) == 1:
        return text
    return "".join([*ended(left), fresh + ending(lines)])


def _word(line: str) -> str:
    return (line.split() or [""])[0]
