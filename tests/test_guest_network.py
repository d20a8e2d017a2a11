"""A guest's network goes over to new cards: names and addresses stay, MACs follow."""

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
OLD2, NEW2 = "00:50:56:aa:bb:02", "52:54:00:00:00:02"
GUEST = Guest(os="linux", family="debian", hostname="web01")
LINK = "/etc/systemd/network/10-rollpoint-ens192.link"
ONE = Wanted(networks=[Network(mac=NEW, was=OLD)])
TWO = Wanted(networks=[Network(mac=NEW, was=OLD), Network(mac=NEW2, was=OLD2)])
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


INTERFACES = """\
# The loopback network interface
auto lo
iface lo inet loopback

allow-hotplug ens192
iface ens192 inet static
\taddress 10.0.0.5/24
\tgateway 10.0.0.1
"""
KEYFILE = f"""\
[connection]
id=ens192
type=ethernet
interface-name=ens192

[ethernet]
mac-address={OLD.upper()}

[ipv4]
address1=10.0.0.5/24,10.0.0.1
method=manual
"""
NETPLAN = """\
# This is the network config written by 'subiquity'
network:
  ethernets:
    ens192:
      dhcp4: true
  version: 2
"""
LAYOUTS: dict[str, Files] = {
    "ifupdown": {"/etc/network/interfaces": INTERFACES},
    "ifupdown, sourced": {
        "/etc/network/interfaces": "source /etc/network/interfaces.d/*\n",
        "/etc/network/interfaces.d/50-cloud-init": INTERFACES,
    },
    "netplan": {"/etc/netplan/00-installer-config.yaml": NETPLAN},
    "keyfile": {"/etc/NetworkManager/system-connections/ens192.nmconnection": KEYFILE},
    "ifcfg of Red Hat": {
        "/etc/sysconfig/network-scripts/ifcfg-ens192": "TYPE=Ethernet\nBOOTPROTO=dhcp\n"
        f'NAME=ens192\nDEVICE=ens192\nONBOOT=yes\nHWADDR="{OLD}"\n'
    },
    "ifcfg of SUSE": {
        "/etc/sysconfig/network/ifcfg-ens192": "BOOTPROTO='dhcp'\nSTARTMODE='auto'\n",
        "/etc/sysconfig/network/ifcfg-lo": "IPADDR=127.0.0.1/8\n",
    },
    "networkd": {
        "/etc/systemd/network/20-wired.network": "[Match]\nName=ens192\n\n[Network]\nDHCP=yes\n"
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_new_card_gets_the_name_that_the_configuration_knows(
    tmp_path: Path, layout: str
) -> None:
    small, edits = converted(tmp_path, LAYOUTS[layout] | SYSTEMD, ONE)
    assert f"[Match]\nMACAddress={NEW}\n" in small.text(LINK)
    assert "[Link]\nName=ens192\n" in small.text(LINK)
    assert edits.warnings == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_are_found_in_each_layout(tmp_path: Path, layout: str) -> None:
    assert network.find_names(SmallGuest(tmp_path / "guest", LAYOUTS[layout]).tree) == ["ens192"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_configuration_that_goes_by_name_stays_byte_for_byte(tmp_path: Path, layout: str) -> None:
    small, _ = converted(tmp_path, LAYOUTS[layout] | SYSTEMD, ONE)
    for path, content in LAYOUTS[layout].items():
        assert isinstance(content, str)
        new = content.replace(OLD, NEW).replace(OLD.upper(), NEW.upper())
        assert small.text(path) == new


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_only_card_of_unknown_mac_keeps_its_name(tmp_path: Path, layout: str) -> None:
    files = {
        path: str(c).replace(OLD, "").replace(OLD.upper(), "")
        for path, c in LAYOUTS[layout].items()
    }
    small, _ = converted(tmp_path, files | SYSTEMD, Wanted(nic="vmxnet3"))
    assert "Driver=vmxnet3\n" in small.text(LINK)
    assert "Name=ens192\n" in small.text(LINK)


def test_a_bound_mac_that_stays_gives_the_name(tmp_path: Path) -> None:
    small, _ = converted(tmp_path, LAYOUTS["keyfile"] | SYSTEMD, Wanted())
    assert f"MACAddress={OLD}\n" in small.text(LINK)


def test_several_cards_of_unknown_macs_are_warned_of_and_left(tmp_path: Path) -> None:
    files = {"/etc/network/interfaces": "iface ens192 inet dhcp\niface ens224 inet dhcp\n"}
    small, edits = converted(tmp_path, files | SYSTEMD, Wanted())
    assert edits.changes == []
    assert "ens192, ens224" in edits.warnings[0]
    assert small.text("/etc/network/interfaces") == files["/etc/network/interfaces"]


def test_a_recent_systemd_is_told_that_only_a_plain_card_is_meant(tmp_path: Path) -> None:
    """A VLAN and a bridge have the MAC of the card below them."""
    library = {"/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so": b"\x7fELF"}
    small, _ = converted(tmp_path, LAYOUTS["ifupdown"] | SYSTEMD | library, ONE)
    assert f"MACAddress={NEW}\nType=ether\n" in small.text(LINK)


def test_a_guest_without_systemd_gets_a_rule(tmp_path: Path) -> None:
    small, _ = converted(
        tmp_path,
        {
            "/etc/sysconfig/network-scripts/ifcfg-eth0": "DEVICE=eth0\nBOOTPROTO=dhcp\n",
            "/lib/udev/rules.d/60-net.rules": "",
        },
        ONE,
    )
    rule = small.text("/etc/udev/rules.d/70-rollpoint-net.rules")
    assert f'ATTR{{address}}=="{NEW}"' in rule
    assert 'NAME="eth0"' in rule


def test_cards_are_told_apart_by_their_old_macs(tmp_path: Path) -> None:
    files = {
        "/etc/sysconfig/network-scripts/ifcfg-ens224": f"DEVICE=ens224\nHWADDR={OLD}\n",
        "/etc/sysconfig/network-scripts/ifcfg-ens192": f"DEVICE=ens192\nHWADDR={OLD2.upper()}\n",
    }
    small, edits = converted(tmp_path, files | SYSTEMD, TWO)
    assert f"MACAddress={NEW2}\n" in small.text(LINK)
    assert f"MACAddress={NEW}\n" in small.text(LINK.replace("192", "224"))
    assert f"HWADDR={NEW2.upper()}\n" in small.text("/etc/sysconfig/network-scripts/ifcfg-ens192")
    assert edits.warnings == []


def test_cards_that_only_their_order_tells_apart_are_warned_of(tmp_path: Path) -> None:
    files = {"/etc/network/interfaces": "iface ens224 inet dhcp\niface ens36 inet dhcp\n"}
    small, edits = converted(tmp_path, files | SYSTEMD, TWO)
    assert f"MACAddress={NEW}\n" in small.text(LINK.replace("192", "36"))
    assert f"MACAddress={NEW2}\n" in small.text(LINK.replace("192", "224"))
    assert f"ens36 is {NEW}, ens224 is {NEW2}" in edits.warnings[0]


def test_interfaces_that_stay_down_are_no_match_for_an_only_card(tmp_path: Path) -> None:
    files = {
        "/etc/sysconfig/network-scripts/ifcfg-ens192": "DEVICE=ens192\nONBOOT=yes\n",
        "/etc/sysconfig/network-scripts/ifcfg-ens224": "DEVICE=ens224\nONBOOT=no\n",
        "/etc/sysconfig/network-scripts/ifcfg-Wired_1": "TYPE=Ethernet\nBOOTPROTO=dhcp\n",
    }
    small, edits = converted(tmp_path / "macs", files | SYSTEMD, ONE)
    assert [change.file for change in edits.changes] == [LINK]
    assert f"MACAddress={NEW}\n" in small.text(LINK)
    small, edits = converted(tmp_path / "none", files | SYSTEMD, Wanted())
    assert [change.file for change in edits.changes] == [LINK]
    assert "Driver=virtio_net\n" in small.text(LINK)


def test_more_interfaces_than_cards_are_not_guessed_at(tmp_path: Path) -> None:
    files = {"/etc/network/interfaces": "iface ens192 inet dhcp\niface ens224 inet dhcp\n"}
    _, edits = converted(tmp_path, files | SYSTEMD, ONE)
    assert edits.changes == []
    assert "say which is which" in edits.warnings[0]


def test_bridges_bonds_and_vlans_are_no_cards_but_their_ports_are(tmp_path: Path) -> None:
    text = (
        "auto br0\niface br0 inet static\n  address 10.0.0.5/24\n  bridge_ports ens192\n"
        "iface br0.7 inet dhcp\niface ens192:1 inet static\n  address 10.1.0.5/24\n"
    )
    small, edits = converted(tmp_path, {"/etc/network/interfaces": text} | SYSTEMD, ONE)
    assert [change.file for change in edits.changes] == [LINK]
    assert "Name=ens192\n" in small.text(LINK)


NETPLAN_BY_MAC = f"""\
network:
    version: 2
    ethernets:
        eth0:
            dhcp4: true
            macaddress: {OLD}   # given to the card: stays
            match:
                macaddress: '{OLD}'
            set-name: eth0
"""


def test_netplan_goes_by_the_new_mac(tmp_path: Path) -> None:
    path = "/etc/netplan/50-cloud-init.yaml"
    small, edits = converted(tmp_path, {path: NETPLAN_BY_MAC} | SYSTEMD, ONE)
    assert small.text(path) == NETPLAN_BY_MAC.replace(f"'{OLD}'", f"'{NEW}'")
    assert [change.file for change in edits.changes] == [path]


def test_a_cloned_mac_stays(tmp_path: Path) -> None:
    path = "/etc/NetworkManager/system-connections/a"
    text = KEYFILE.replace("\n[ipv4]", f"cloned-mac-address={OLD}\n\n[ipv4]")
    small, _ = converted(tmp_path, {path: text} | SYSTEMD, ONE)
    assert f"\nmac-address={NEW.upper()}\ncloned-mac-address={OLD}\n" in small.text(path)


RULES = f"""\
# This file was automatically generated by the /lib/udev/write_net_rules program

# PCI device 0x15ad:0x07b0 (vmxnet3)
SUBSYSTEM=="net", ACTION=="add", DRIVERS=="?*", ATTR{{address}}=="{OLD}", ATTR{{dev_id}}=="0x0", \
ATTR{{type}}=="1", KERNEL=="eth*", NAME="eth0"

# PCI device 0x8086:0x100f (e1000)
SUBSYSTEM=="net", ACTION=="add", DRIVERS=="?*", ATTR{{address}}=="00:0c:29:11:22:33", \
ATTR{{type}}=="1", KERNEL=="eth*", NAME="eth1"
"""
RULES_PATH = "/etc/udev/rules.d/70-persistent-net.rules"


def test_rules_of_cards_that_are_gone_go_and_the_others_follow(tmp_path: Path) -> None:
    files = {RULES_PATH: RULES, "/etc/network/interfaces": "iface eth0 inet dhcp\n"}
    small, _ = converted(tmp_path, files, ONE)
    text = small.text(RULES_PATH)
    assert "eth1" not in text
    assert "e1000" not in text
    assert f'ATTR{{address}}=="{NEW}"' in text
    assert not small.exists("/etc/udev/rules.d/70-rollpoint-net.rules")  # this one does it


def test_a_rules_file_of_gone_cards_alone_is_removed(tmp_path: Path) -> None:
    small, edits = converted(
        tmp_path, {RULES_PATH: RULES}, Wanted(networks=[Network(mac=NEW, was=OLD2)])
    )
    assert not small.exists(RULES_PATH)
    assert [change.file for change in edits.changes] == [RULES_PATH]


def test_rules_stay_when_nothing_is_known_of_the_cards(tmp_path: Path) -> None:
    small, _ = converted(tmp_path, {RULES_PATH: RULES}, Wanted())
    assert small.text(RULES_PATH) == RULES


def test_an_only_eth0_does_not_become_eth1_when_its_mac_is_another(tmp_path: Path) -> None:
    """The old udev gives a card of an unknown MAC the next free name."""
    rule = RULES[: RULES.index("# PCI device 0x8086")]
    network_ = {"/etc/sysconfig/network-scripts/ifcfg-eth0": "DEVICE=eth0\n"}
    files = {RULES_PATH: rule, "/sbin/udevd": ""} | network_
    small, _ = converted(tmp_path, files, Wanted())
    assert not small.exists(RULES_PATH)


def test_an_only_card_with_a_rule_keeps_its_name_when_its_mac_is_another(tmp_path: Path) -> None:
    rule = RULES[: RULES.index("# PCI device 0x8086")]
    network_ = {"/etc/network/interfaces": "iface eth0 inet dhcp\n"}
    small, _ = converted(tmp_path, {RULES_PATH: rule} | network_ | SYSTEMD, Wanted())
    assert small.text(RULES_PATH) == rule
    assert "Driver=virtio_net\n\n[Link]\nName=eth0\n" in small.text(
        "/etc/systemd/network/10-rollpoint-eth0.link"
    )


def test_a_rule_no_longer_asks_for_the_old_place_or_driver(tmp_path: Path) -> None:
    rule = (
        f'ACTION=="add", SUBSYSTEM=="net", KERNELS=="0000:03:00.0", DRIVERS=="vmxnet3", '
        f'ATTR{{address}}=="{OLD}", NAME="lan0"\n'
    )
    small, _ = converted(tmp_path, {RULES_PATH: rule}, ONE)
    assert small.text(RULES_PATH) == (
        f'ACTION=="add", SUBSYSTEM=="net", ATTR{{address}}=="{NEW}", NAME="lan0"\n'
    )


def test_a_rule_for_a_place_alone_goes(tmp_path: Path) -> None:
    rule = 'ACTION=="add", SUBSYSTEM=="net", KERNELS=="0000:03:00.0", NAME="lan0"\n'
    small, _ = converted(tmp_path, {RULES_PATH: rule}, Wanted())
    assert not small.exists(RULES_PATH)


def test_a_rule_for_a_disk_at_a_place_stays(tmp_path: Path) -> None:
    """Old udevs gave device nodes names too."""
    rule = 'SUBSYSTEM=="block", KERNELS=="2:0:0:0", NAME="data%n"\nBUS=="scsi", NAME="tape"\n'
    small, _ = converted(tmp_path, {"/etc/udev/rules.d/55-disks.rules": rule}, ONE)
    assert small.text("/etc/udev/rules.d/55-disks.rules") == rule


def test_a_rule_that_names_no_card_stays(tmp_path: Path) -> None:
    rule = '# mine\nSUBSYSTEM=="net", KERNEL=="tun*", GROUP="vpn"\nNAME="%k", KERNEL=="eth*"\n'
    small, _ = converted(tmp_path, {RULES_PATH: rule}, ONE)
    assert small.text(RULES_PATH) == rule


def test_cloud_init_is_told_that_it_is_the_same_machine(tmp_path: Path) -> None:
    small, _ = converted(tmp_path, {"/etc/cloud/cloud.cfg": "users: [default]\n"}, Wanted())
    text = small.text("/etc/cloud/cloud.cfg.d/99-rollpoint.cfg")
    assert "manual_cache_clean: true\n" in text
    assert "network: {config: disabled}\n" in text


def test_a_second_move_takes_what_the_first_one_wrote(tmp_path: Path) -> None:
    """A replica of a machine that was failed over once is failed over again."""
    small, _ = converted(tmp_path, LAYOUTS["ifcfg of Red Hat"] | SYSTEMD, ONE)
    edits = small.edits()
    network.convert(edits, GUEST, Wanted(networks=[Network(mac=NEW2, was=NEW)]))
    assert f"MACAddress={NEW2}\n" in small.text(LINK)
    assert NEW not in small.text(LINK)
    assert NEW2 in small.text("/etc/sysconfig/network-scripts/ifcfg-ens192")


def test_windows_is_left_alone(tmp_path: Path) -> None:
    small = SmallGuest(tmp_path / "guest", LAYOUTS["ifupdown"] | SYSTEMD)
    edits = small.edits()
    network.convert(edits, Guest(os="windows", family="windows"), ONE)
    assert edits.changes == []


@pytest.mark.parametrize(
    "networks",
    [
        [Network(mac="52:54:00:00:00")],
        [Network(mac="")],
        [Network(mac=NEW, was="x")],
        [Network(mac=NEW), Network(mac=NEW)],
        [Network(mac=NEW, was=NEW2), Network(mac=NEW2)],
        [Network(mac=NEW, addresses=["10.0.0.1"])],
        [Network(mac=NEW, addresses=["10.0.0.1/99"])],
        [Network(mac=NEW, addresses=["10.0.0.1/24\nevil"])],
        [Network(mac=NEW, gateway="fd00::1")],
        [Network(mac=NEW, gateway6="10.0.0.1")],
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(
    tmp_path: Path, networks: list[Network]
) -> None:
    small = SmallGuest(tmp_path / "guest", LAYOUTS["keyfile"] | SYSTEMD)
    before = small.files()
    with pytest.raises(UsageError):
        network.convert(small.edits(), GUEST, Wanted(networks=networks))
    assert small.files() == before
