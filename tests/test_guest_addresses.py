"""A guest is given other addresses, name servers or another name, when that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from guest_etc import SYSTEMD, SmallGuest
from rollpoint.errors import UsageError
from rollpoint.guest import network
from rollpoint.guest.base import Guest, Network, Wanted
from rollpoint.guest.edits import Edits

OLD, NEW = "00:50:56:aa:bb:01", "52:54:00:00:00:01"
GUEST = Guest(os="linux", family="debian", hostname="web01")
V4 = Network(mac=NEW, was=OLD, addresses=["192.0.2.7/24"], gateway="192.0.2.1")
BOTH = Network(
    mac=NEW,
    was=OLD,
    addresses=["192.0.2.7/24", "198.51.100.7/25", "2001:db8::7/64"],
    gateway="192.0.2.1",
    gateway6="2001:db8::1",
)
Files = Mapping[str, str | bytes | tuple[str, str]]


def converted(root: Path, files: Files, wanted: Wanted) -> tuple[SmallGuest, Edits]:
    """The guest after a conversion, of which a second one changes nothing."""
    small = SmallGuest(root / "guest", files)
    edits = small.edits()
    network.convert(edits, GUEST, wanted)
    again = small.edits()
    network.convert(again, GUEST, wanted)
    assert again.changes == []
    return small, edits


def readdressed(root: Path, path: str, text: str, card: Network, more: Files = {}) -> str:  # noqa: B006
    small, edits = converted(root, {path: text} | SYSTEMD | dict(more), Wanted(networks=[card]))
    assert edits.warnings == []
    return small.text(path)


INTERFACES = "/etc/network/interfaces"


def test_ifupdown_static(tmp_path: Path) -> None:
    text = """\
auto lo
iface lo inet loopback

auto ens192 ens192:0
iface ens192 inet static
    address 10.0.0.5
    netmask 255.255.255.0
    gateway 10.0.0.1
    # kept
    mtu 9000
    dns-nameservers 10.0.0.2

iface ens192:0 inet static
    address 10.0.0.6/24

# the other one
iface ens224 inet dhcp
"""
    wanted = """\
auto lo
iface lo inet loopback

auto ens192
iface ens192 inet static
    address 192.0.2.7
    netmask 255.255.255.0
    gateway 192.0.2.1
    # kept
    mtu 9000
    dns-nameservers 10.0.0.2

# the other one
iface ens224 inet dhcp
"""
    cards = [V4, Network(mac="52:54:00:00:00:02")]
    small, _ = converted(tmp_path, {INTERFACES: text} | SYSTEMD, Wanted(networks=cards))
    assert small.text(INTERFACES) == wanted


def test_ifupdown_dhcp_becomes_static_and_ipv6_stays(tmp_path: Path) -> None:
    text = "allow-hotplug eth0\niface eth0 inet dhcp\niface eth0 inet6 auto"
    assert readdressed(tmp_path, INTERFACES, text, V4) == (
        "allow-hotplug eth0\niface eth0 inet static\n    address 192.0.2.7\n"
        "    netmask 255.255.255.0\n    gateway 192.0.2.1\niface eth0 inet6 auto"
    )


def test_ifupdown_with_several_addresses_of_both_families(tmp_path: Path) -> None:
    text = "auto eth0\niface eth0 inet dhcp"
    assert readdressed(tmp_path, INTERFACES, text, BOTH) == (
        "auto eth0\n"
        "iface eth0 inet static\n    address 192.0.2.7\n    netmask 255.255.255.0\n"
        "    gateway 192.0.2.1\n"
        "iface eth0 inet static\n    address 198.51.100.7\n    netmask 255.255.255.128\n"
        "iface eth0 inet6 static\n    address 2001:db8::7\n    netmask 64\n"
        "    gateway 2001:db8::1\n"
    )


NETPLAN = "/etc/netplan/50-cloud-init.yaml"


def test_netplan_static(tmp_path: Path) -> None:
    text = """\
# kept
network:
    version: 2
    ethernets:
        ens192:
            addresses:
            - 10.0.0.5/24
            - "fd00::5/64"   # of the other family
            gateway4: 10.0.0.1
            nameservers:
                addresses: [10.0.0.2]
            routes:
              - to: 10.9.0.0/16
                via: 10.0.0.254
              - to: default
                via: 10.0.0.1
        ens224:
            dhcp4: true
"""
    wanted = """\
# kept
network:
    version: 2
    ethernets:
        ens192:
            dhcp4: false
            addresses: ["fd00::5/64", 192.0.2.7/24]
            nameservers:
                addresses: [10.0.0.2]
            routes: [{to: 10.9.0.0/16, via: 10.0.0.254}, {to: 0.0.0.0/0, via: 192.0.2.1}]
        ens224:
            dhcp4: true
"""
    cards = [V4, Network(mac="52:54:00:00:00:02")]
    small, _ = converted(tmp_path, {NETPLAN: text} | SYSTEMD, Wanted(networks=cards))
    assert small.text(NETPLAN) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "network: {version: 2, ethernets: {ens192: {dhcp4: true}}}\n",
        "network:\n  ethernets: {ens192: {dhcp4: true}}\n",
    ],
)
def test_netplan_all_on_one_line_is_left_with_a_warning(tmp_path: Path, text: str) -> None:
    small, edits = converted(tmp_path, {NETPLAN: text} | SYSTEMD, Wanted(networks=[V4]))
    assert small.text(NETPLAN) == text
    assert any("by hand" in warning for warning in edits.warnings)


def test_netplan_of_a_card_on_one_line(tmp_path: Path) -> None:
    text = "network:\n  ethernets:\n    ens192: {dhcp4: yes, optional: true}\n  version: 2\n"
    assert readdressed(tmp_path, NETPLAN, text, BOTH) == (
        "network:\n  ethernets:\n    ens192:\n      dhcp4: false\n      optional: true\n"
        "      dhcp6: false\n"
        '      addresses: [192.0.2.7/24, 198.51.100.7/25, "2001:db8::7/64"]\n'
        "      routes: [{to: 0.0.0.0/0, via: 192.0.2.1}, "
        '{to: "::/0", via: "2001:db8::1"}]\n'
        "  version: 2\n"
    )


def test_netplan_in_two_files_gets_the_addresses_once(tmp_path: Path) -> None:
    """Lists of several files are joined: both would be there."""
    old = "network:\n  ethernets:\n    ens192:\n      addresses: [10.0.0.5/24]\n"
    files = {"/etc/netplan/10-a.yaml": old, "/etc/netplan/20-b.yaml": old}
    small, _ = converted(tmp_path, files | SYSTEMD, Wanted(networks=[V4]))
    assert "addresses" not in small.text("/etc/netplan/10-a.yaml")
    assert "[192.0.2.7/24]" in small.text("/etc/netplan/20-b.yaml")


def test_a_file_that_has_two_names_is_edited_once(tmp_path: Path) -> None:
    old = "network:\n  ethernets:\n    ens192:\n      addresses: [10.0.0.5/24]\n"
    files: Files = {"/etc/netplan/10-a.yaml": old, "/etc/netplan/20-b.yaml": ("link", "10-a.yaml")}
    small, edits = converted(tmp_path, dict(files) | SYSTEMD, Wanted(networks=[V4]))
    assert len(edits.changes) == 2  # and the card's name
    assert "[192.0.2.7/24]" in small.text("/etc/netplan/10-a.yaml")


KEYFILE = "/etc/NetworkManager/system-connections/lan.nmconnection"


def test_keyfile(tmp_path: Path) -> None:
    text = """\
[connection]
id=lan
type=ethernet
interface-name=ens192

[ipv4]
address1=10.0.0.5/24,10.0.0.1
address2=10.0.0.6/24
dns=10.0.0.2;
method=manual

[ipv6]
method=auto

[proxy]
"""
    assert readdressed(tmp_path, KEYFILE, text, V4) == (
        text.replace("address1=10.0.0.5/24,10.0.0.1\naddress2=10.0.0.6/24\n", "").replace(
            "method=manual\n", "method=manual\naddress1=192.0.2.7/24,192.0.2.1\n"
        )
    )


def test_keyfile_that_goes_by_mac(tmp_path: Path) -> None:
    text = f"[connection]\ntype=802-3-ethernet\n[802-3-ethernet]\nmac-address={OLD}\n"
    assert readdressed(tmp_path, KEYFILE, text, BOTH) == (
        text.replace(OLD, NEW) + "\n[ipv4]\nmethod=manual\naddress1=192.0.2.7/24,192.0.2.1\n"
        "address2=198.51.100.7/25\n\n[ipv6]\nmethod=manual\n"
        "address1=2001:db8::7/64,2001:db8::1\n"
    )


REDHAT = "/etc/sysconfig/network-scripts/ifcfg-ens192"


def test_ifcfg_of_red_hat(tmp_path: Path) -> None:
    text = """\
# kept
TYPE="Ethernet"
BOOTPROTO="dhcp"
DEVICE="ens192"
IPADDR2=10.0.0.5
NETMASK2=255.255.255.0
IPV6INIT="yes"
ONBOOT="yes"
"""
    alias = {f"{REDHAT}:1": "DEVICE=ens192:1\nIPADDR=10.0.0.6\n"}
    small, _ = converted(tmp_path, {REDHAT: text} | alias | SYSTEMD, Wanted(networks=[BOTH]))
    assert (
        small.text(REDHAT)
        == """\
# kept
TYPE="Ethernet"
BOOTPROTO=none
DEVICE="ens192"
IPV6INIT="yes"
ONBOOT="yes"
IPADDR=192.0.2.7
PREFIX=24
IPADDR1=198.51.100.7
PREFIX1=25
GATEWAY=192.0.2.1
IPV6_AUTOCONF=no
IPV6ADDR=2001:db8::7/64
IPV6_DEFAULTGW=2001:db8::1
"""
    )
    assert not small.exists(f"{REDHAT}:1")


def test_the_gateway_that_red_hat_has_for_all_interfaces_goes_along(tmp_path: Path) -> None:
    more = {"/etc/sysconfig/network": "NETWORKING=yes\nGATEWAY=10.0.0.1\n"}
    files = {REDHAT: "DEVICE=ens192\n"} | more | SYSTEMD
    small, _ = converted(tmp_path, files, Wanted(networks=[V4]))
    assert small.text("/etc/sysconfig/network") == "NETWORKING=yes\nGATEWAY=192.0.2.1\n"


SUSE = "/etc/sysconfig/network/ifcfg-eth0"


def test_ifcfg_of_suse(tmp_path: Path) -> None:
    text = "BOOTPROTO='static'\nIPADDR='10.0.0.5/24'\nIPADDR_1='fd00::5/64'\nSTARTMODE='auto'\n"
    routes = {"/etc/sysconfig/network/routes": "# mine\ndefault 10.0.0.1 - -\n10.9/16 10.0.0.2\n"}
    small, _ = converted(tmp_path, {SUSE: text} | routes | SYSTEMD, Wanted(networks=[V4]))
    assert small.text(SUSE) == (
        "BOOTPROTO='static'\nIPADDR='192.0.2.7/24'\nIPADDR_1='fd00::5/64'\nSTARTMODE='auto'\n"
    )
    assert small.text("/etc/sysconfig/network/routes") == "# mine\n10.9/16 10.0.0.2\n"
    assert small.text("/etc/sysconfig/network/ifroute-eth0") == "default 192.0.2.1 - eth0\n"


NETWORKD = "/etc/systemd/network/20-wired.network"


def test_networkd(tmp_path: Path) -> None:
    text = """\
[Match]
Name=ens192

[Network]
DHCP=yes
Address=10.0.0.5/24
DNS=10.0.0.2

[Address]
Address=10.0.0.6/24

[Route]
Gateway=10.0.0.1

[Route]
Destination=10.9.0.0/16
Gateway=10.0.0.2
"""
    assert (
        readdressed(tmp_path, NETWORKD, text, V4)
        == """\
[Match]
Name=ens192

[Network]
DNS=10.0.0.2
DHCP=ipv6
Address=192.0.2.7/24
Gateway=192.0.2.1

[Route]
Destination=10.9.0.0/16
Gateway=10.0.0.2
"""
    )


@pytest.mark.parametrize(
    ("files", "path"),
    [
        (
            {NETPLAN: "network:\n  ethernets:\n    all:\n      match: {name: en*}\n"},
            "/etc/netplan/90-rollpoint-525400000001.yaml",
        ),
        (
            {"/usr/sbin/NetworkManager": b"\x7fELF"},
            "/etc/NetworkManager/system-connections/rollpoint-525400000001.nmconnection",
        ),
        (
            {NETWORKD: "[Match]\nName=en*\n[Network]\nDHCP=yes\n"},
            "/etc/systemd/network/05-rollpoint-525400000001.network",
        ),
    ],
)
def test_a_card_that_only_a_pattern_configures_is_configured_by_its_mac(
    tmp_path: Path, files: Files, path: str
) -> None:
    small, edits = converted(tmp_path, dict(files) | SYSTEMD, Wanted(networks=[BOTH]))
    assert [change.file for change in edits.changes] == [path]
    assert edits.warnings == []
    for wanted in (NEW, "192.0.2.7/24", "2001:db8::1"):
        assert wanted in small.text(path)


def test_a_card_that_nothing_configures_is_warned_of(tmp_path: Path) -> None:
    _, edits = converted(tmp_path, SYSTEMD, Wanted(networks=[V4]))
    assert "192.0.2.7/24" in edits.warnings[0]


@pytest.mark.parametrize("path", [INTERFACES, NETPLAN, KEYFILE, REDHAT, SUSE, NETWORKD])
def test_lines_end_as_they_did(tmp_path: Path, path: str) -> None:
    """Files that went through an editor of Windows."""
    text = {
        INTERFACES: "auto eth0\niface eth0 inet dhcp\n",
        NETPLAN: "network:\n  ethernets:\n    eth0:\n      dhcp4: true\n",
        KEYFILE: "[connection]\ntype=ethernet\ninterface-name=eth0\n",
        REDHAT: "DEVICE=eth0\n",
        SUSE: "BOOTPROTO=dhcp\n",
        NETWORKD: "[Match]\nName=eth0\n",
    }[path].replace("\n", "\r\n")
    new = readdressed(tmp_path, path, text, BOTH)
    assert "192.0.2.7" in new
    assert new.count("\n") == new.count("\r\n")


DNS = Wanted(dns=["192.0.2.53", "2001:db8::53"])


def test_resolv_conf_gets_the_name_servers(tmp_path: Path) -> None:
    files = {"/etc/resolv.conf": "# mine\nsearch example.org\nnameserver 10.0.0.2\noptions rotate"}
    small, _ = converted(tmp_path, files, DNS)
    assert small.text("/etc/resolv.conf") == (
        "# mine\nsearch example.org\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions rotate"
    )


def test_resolved_and_networkmanager_get_them_in_files_of_their_own(tmp_path: Path) -> None:
    files = {
        "/etc/resolv.conf": ("link", "../run/systemd/resolve/stub-resolv.conf"),
        "/etc/NetworkManager/NetworkManager.conf": "[main]\n",
    }
    small, edits = converted(tmp_path, files, DNS)
    assert small.text("/etc/systemd/resolved.conf.d/90-rollpoint.conf") == (
        "[Resolve]\nDNS=192.0.2.53 2001:db8::53\nDomains=~.\n"
    )
    assert "servers=192.0.2.53,2001:db8::53\n" in small.text(
        "/etc/NetworkManager/conf.d/90-rollpoint-dns.conf"
    )
    assert len(edits.changes) == 2  # and the link stays


def test_older_systems_get_them_where_they_look(tmp_path: Path) -> None:
    files = {
        "/etc/sysconfig/network/config": 'NETCONFIG_DNS_STATIC_SERVERS="10.0.0.2"\n# kept\n',
        REDHAT: "DEVICE=ens192\nDNS1=10.0.0.2\nDNS2=10.0.0.3\n",
        INTERFACES: "iface ens192 inet dhcp\n  dns-nameservers 10.0.0.2 10.0.0.3\n  mtu 9000\n",
        "/etc/dhcp/dhclient.conf": "request subnet-mask;",
    }
    small, _ = converted(tmp_path, files, DNS)
    assert small.text("/etc/sysconfig/network/config") == (
        'NETCONFIG_DNS_STATIC_SERVERS="192.0.2.53 2001:db8::53"\n# kept\n'
    )
    assert small.text(REDHAT) == "DEVICE=ens192\nPEERDNS=no\n"
    assert small.text(INTERFACES) == (
        "iface ens192 inet dhcp\n  dns-nameservers 192.0.2.53 2001:db8::53\n  mtu 9000\n"
    )
    assert small.text("/etc/dhcp/dhclient.conf") == (
        "request subnet-mask;\nsupersede domain-name-servers 192.0.2.53, 2001:db8::53;\n"
    )


def test_name_servers_are_changed_only_when_asked(tmp_path: Path) -> None:
    _, edits = converted(tmp_path, {"/etc/resolv.conf": "nameserver 10.0.0.2\n"}, Wanted())
    assert edits.changes == []


def test_a_host_gets_another_name(tmp_path: Path) -> None:
    hosts = "127.0.0.1\tlocalhost\n127.0.1.1\tweb01.example.org web01  # this\n10.0.0.5 db web01x\n"
    files = {"/etc/hostname": "web01\n", "/etc/hosts": hosts}
    small, _ = converted(tmp_path, files, Wanted(hostname="web02.example.org"))
    assert small.text("/etc/hostname") == "web02.example.org\n"
    assert small.text("/etc/hosts") == hosts.replace(
        "web01.example.org web01 ", "web02.example.org web02 "
    )


def test_a_host_of_red_hat_6_gets_another_name(tmp_path: Path) -> None:
    files = {"/etc/sysconfig/network": "NETWORKING=yes\nHOSTNAME=web01\n"}
    small, edits = converted(tmp_path, files, Wanted(hostname="web02"))
    assert small.text("/etc/sysconfig/network") == "NETWORKING=yes\nHOSTNAME=web02\n"
    assert len(edits.changes) == 1


HOSTS = "127.0.1.1 web01\n10.0.0.5\tweb01.example.org web01 # own\n10.0.0.9 db\n"


def test_the_hosts_own_name_goes_to_its_new_address(tmp_path: Path) -> None:
    files = {"/etc/hosts": HOSTS, REDHAT: "DEVICE=ens192\n"}
    small, _ = converted(tmp_path, files | SYSTEMD, Wanted(networks=[V4]))
    assert small.text("/etc/hosts") == HOSTS.replace("10.0.0.5", "192.0.2.7")


def test_of_several_cards_nobody_knows_which_address_is_the_hosts(tmp_path: Path) -> None:
    files = {"/etc/hosts": HOSTS, REDHAT: f"DEVICE=ens192\nHWADDR={OLD}\n"}
    cards = [V4, Network(mac="52:54:00:00:00:02")]
    small, edits = converted(tmp_path, files | SYSTEMD, Wanted(networks=cards))
    assert small.text("/etc/hosts") == HOSTS
    assert "10.0.0.5 for web01.example.org" in edits.warnings[0]


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(hostname="a b"),
        Wanted(hostname="-a"),
        Wanted(hostname="a\nb"),
        Wanted(hostname="a" * 64),
        Wanted(dns=["example.org"]),
        Wanted(dns=["192.0.2.53\nevil"]),
    ],
)
def test_what_is_no_name_and_no_address_is_refused(tmp_path: Path, wanted: Wanted) -> None:
    small = SmallGuest(tmp_path / "guest", {"/etc/hostname": "web01\n"})
    edits = small.edits()
    with pytest.raises(UsageError):
        network.convert(edits, GUEST, wanted)
    assert edits.changes == []
