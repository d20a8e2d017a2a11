"""What is written for a guest's network is what udev and netplan read in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import require_tool
from guest_etc import SYSTEMD, SmallGuest
from rollpoint.guest import network
from rollpoint.guest.base import Guest, Network, Wanted
from tools import missing

OLD, NEW = "00:50:56:aa:bb:01", "52:54:00:00:00:01"
GUEST = Guest(os="linux", family="debian")
CARD = Network(
    mac=NEW,
    was=OLD,
    addresses=["192.0.2.7/24", "2001:db8::7/64"],
    gateway="192.0.2.1",
    gateway6="2001:db8::1",
)
IN_NAMESPACES = """\
set -e
mount -t sysfs sysfs /sys
mount --bind "$1" /etc/systemd/network
ip link add card address "$2" type veth peer name other
ip link add bridge address "$2" type bridge
for name in card other bridge; do
  printf '%s ' "$name"
  udevadm test-builtin net_setup_link "/sys/class/net/$name" 2>&1 | sed -n 's/^ID_NET_NAME=//p'
done
"""


def test_udev_gives_the_name_to_the_card_and_to_no_bridge_of_its_mac(tmp_path: Path) -> None:
    for tool in ("udevadm", "ip"):
        require_tool(tool)
    unshare = [require_tool("unshare"), "--map-root-user", "--net", "--mount", "sh", "-c"]
    if not os.path.isdir("/etc/systemd/network"):
        missing("udev of systemd is missing: apt-get install udev")
    ready = "mount -t sysfs sysfs /sys && ip link add x0 type veth && ip link add x1 type bridge"
    if subprocess.run([*unshare, ready], capture_output=True).returncode != 0:
        pytest.skip("this kernel or container lets no namespace have network cards")
    library = {"/usr/lib/systemd/libsystemd-shared-252.so": b"\x7fELF"}
    files = {"/etc/network/interfaces": "iface ens192 inet dhcp\n"}
    small = SmallGuest(tmp_path / "guest", files | SYSTEMD | library)
    network.convert(small.edits(), GUEST, Wanted(networks=[CARD]))
    links = small.root / "etc" / "systemd" / "network"
    done = subprocess.run(
        [*unshare, IN_NAMESPACES, "sh", links, NEW], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["card ens192", "other other", "bridge bridge"]


@pytest.mark.parametrize(
    "text",
    [
        "network:\n  version: 2\n  ethernets:\n    ens192:\n      dhcp4: true\n      mtu: 9000\n",
        "network:\n  version: 2\n  ethernets:\n    ens192: {dhcp4: yes, mtu: 9000}\n",
        f"""\
network:
    version: 2
    renderer: networkd
    ethernets:
        primary:
            match:
                macaddress: {OLD}
            addresses:
            - 10.0.0.5/24
            - "10.0.0.6/24"
            gateway4: 10.0.0.1
            routes:
            - to: 0.0.0.0/0
              via: 10.0.0.1
            mtu: 9000
""",
    ],
)
def test_netplan_reads_the_new_addresses_and_nothing_of_the_old(tmp_path: Path, text: str) -> None:
    netplan = require_tool("netplan")
    path = "/etc/netplan/50-cloud-init.yaml"
    small = SmallGuest(tmp_path / "guest", {path: text} | SYSTEMD)
    network.convert(small.edits(), GUEST, Wanted(networks=[CARD]))
    done = subprocess.run(
        [netplan, "generate", "--root-dir", small.root], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    generated = list((small.root / "run/systemd/network").glob("10-netplan-*.network"))
    assert len(generated) == 1
    lines = generated[0].read_text().splitlines()
    assert [line for line in lines if line.startswith("Address=")] == [
        "Address=192.0.2.7/24",
        "Address=2001:db8::7/64",
    ]
    assert [line for line in lines if line.startswith("Gateway=")] == [
        "Gateway=192.0.2.1",
        "Gateway=2001:db8::1",
    ]
    assert not any(line.startswith("DHCP=") for line in lines)
    assert OLD not in generated[0].read_text()


def test_netplan_takes_the_file_for_one_card_before_the_pattern(tmp_path: Path) -> None:
    netplan = require_tool("netplan")
    text = "network:\n  ethernets:\n    all:\n      match: {name: en*}\n      dhcp4: true\n"
    small = SmallGuest(tmp_path / "guest", {"/etc/netplan/50-cloud-init.yaml": text} | SYSTEMD)
    network.convert(small.edits(), GUEST, Wanted(networks=[CARD]))
    done = subprocess.run(
        [netplan, "generate", "--root-dir", small.root], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    generated = sorted((small.root / "run/systemd/network").glob("*.network"))
    assert f"MACAddress={NEW}\n" in generated[0].read_text()  # the first that matches counts
    assert "Address=192.0.2.7/24\n" in generated[0].read_text()
