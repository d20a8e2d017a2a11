"""A guest's network configuration is hostile: it is left alone, or refused, and costs little."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from guest_etc import SYSTEMD, SmallGuest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollpoint.errors import Error
from rollpoint.guest import network
from rollpoint.guest.base import Guest, Network, Wanted
from rollpoint.guest.edits import Edits
from rollpoint.guest.network_text import split
from rollpoint.guest.network_yaml import Node, NotUnderstoodError, parse

OLD, NEW = "00:50:56:aa:bb:01", "52:54:00:00:00:01"
OLD2, NEW2 = "00:50:56:aa:bb:02", "52:54:00:00:00:02"
GUEST = Guest(os="linux", family="debian", hostname="web01")
CARDS = [
    Network(
        mac=NEW,
        was=OLD,
        addresses=["192.0.2.7/24", "2001:db8::7/64"],
        gateway="192.0.2.1",
        gateway6="2001:db8::1",
    ),
    Network(mac=NEW2, was=OLD2),
]
ALL = Wanted(networks=CARDS, dns=["192.0.2.53"], hostname="web02")
RULE = f'SUBSYSTEM=="net", ATTR{{address}}=="{OLD}", KERNEL=="eth*", NAME="eth0"\n'

# Each file that is edited: what it may look like.
FILES = {
    "/etc/network/interfaces": "auto eth0 eth0:1\niface eth0 inet static\n  address 10.0.0.5/24\n"
    "  up a \\\n  b\n\niface eth0:1 inet static\n  address 10.0.0.6/24\n# end\n"
    "source interfaces.d/*\niface br0 inet dhcp\n  bridge_ports eth1\n",
    "/etc/network/interfaces.d/a": "iface eth0 inet6 auto\n  dns-nameservers 10.0.0.2\n",
    "/etc/netplan/50-cloud-init.yaml": f"""\
network:
  version: 2
  ethernets:
    eth0:
      match: {{macaddress: "{OLD}"}}
      set-name: eth0
      addresses:
      - 10.0.0.5/24   # here
      - "fd00::5/64"
      routes:
        - to: default
          via: 10.0.0.1
    eth1: {{dhcp4: true, nameservers: {{addresses: [10.0.0.2]}}}}
  vlans:
    v7: {{id: 7, link: eth1}}
""",
    "/etc/NetworkManager/system-connections/a": "[connection]\ntype=ethernet\n"
    f"interface-name=eth0\n[ethernet]\nmac-address={OLD}\n[ipv4]\naddress1=10.0.0.5/24,10.0.0.1\n",
    "/etc/sysconfig/network-scripts/ifcfg-eth0": f"DEVICE=eth0\nHWADDR='{OLD}' # old\n"
    "IPADDR=10.0.0.5\nPREFIX=24\nGATEWAY=10.0.0.1\nDNS1=10.0.0.2\n",
    "/etc/sysconfig/network/ifcfg-eth0": "BOOTPROTO=static\nIPADDR=10.0.0.5/24\n",
    "/etc/sysconfig/network/routes": "default 10.0.0.1 - eth0\n",
    "/etc/sysconfig/network/config": "NETCONFIG_DNS_STATIC_SERVERS=''\n",
    "/etc/systemd/network/10-a.link": f"[Match]\nMACAddress={OLD}\n[Link]\nName=eth0\n",
    "/etc/systemd/network/20-a.network": f"[Match]\nMACAddress={OLD} {OLD2}\n[Network]\nDHCP=yes\n"
    "[Address]\nAddress=10.0.0.5/24\n[Route]\nGateway=10.0.0.1\n",
    "/etc/udev/rules.d/70-persistent-net.rules": "# PCI device 0x1\n" + RULE,
    "/etc/resolv.conf": "nameserver 10.0.0.2\n",
    "/etc/dhcp/dhclient.conf": "supersede domain-name-servers 10.0.0.2;\n",
    "/etc/hostname": "web01\n",
    "/etc/hosts": "127.0.1.1 web01.example.org web01\n",
    "/etc/cloud/cloud.cfg": "x: y\n",
}
PIECES = st.sampled_from(
    [
        *(bytes([byte]) for byte in b"\n\0\t'\"[]{}#=/%:*&|"),
        *(b"", b"\xff\xfe", b"\r\n", b"\\\n", b"- ", b": ", b"---\n", b"..", b"\x1b[2J", b"eth0"),
        *(b"iface eth0 inet dhcp\n", b"[Match]\n", OLD.encode(), NEW.encode(), b"10.0.0.5/24"),
    ]
)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, str | bytes]:
    """Some of the files, of which some are damaged a few times."""
    files: dict[str, str | bytes] = {}
    for path in draw(st.lists(st.sampled_from(sorted(FILES)), min_size=1, max_size=4, unique=True)):
        data = FILES[path].encode()
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(data)))
            end = min(len(data), at + draw(st.integers(0, 30)))
            again = data[at:end] * draw(st.integers(0, 2))
            data = data[:at] + again + draw(PIECES) + data[end:]
        files[path] = data
    return files


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mutated(), st.sampled_from([ALL, Wanted(), Wanted(networks=[Network(mac=NEW)])]))
def test_damaged_files_end_in_an_error_of_ours_or_in_a_conversion_that_is_stable(
    files: dict[str, str | bytes], wanted: Wanted
) -> None:
    with tempfile.TemporaryDirectory() as root:
        small = SmallGuest(Path(root) / "guest", files | SYSTEMD)
        network.find_names(small.tree)
        edits = small.edits()
        try:
            network.convert(edits, GUEST, wanted)
        except Error:
            return
        again = small.edits()
        network.convert(again, GUEST, wanted)
        assert again.changes == []
        for change in edits.changes:
            assert "\x1b" not in change.before + change.after


def told(small: SmallGuest) -> tuple[Edits, str]:
    """What a conversion says: its error, or its warnings."""
    edits = small.edits()
    try:
        network.convert(edits, GUEST, ALL)
    except Error as error:
        return edits, str(error)
    return edits, "\n".join(edits.warnings)


@pytest.mark.parametrize("path", FILES)
def test_a_pipe_where_a_file_is_expected_is_never_opened(tmp_path: Path, path: str) -> None:
    """A read of it would never return."""
    small = SmallGuest(tmp_path / "guest", {p: c for p, c in FILES.items() if p != path} | SYSTEMD)
    place = small.root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(place)
    edits, text = told(small)
    assert path in text or path == "/etc/cloud/cloud.cfg"  # it is looked for, never read
    assert not any(change.file == path for change in edits.changes)


@pytest.mark.parametrize("target", ["/etc/shadow", "../../../../../../../etc/shadow", "loop"])
def test_links_lead_to_no_file_of_this_host(tmp_path: Path, target: str) -> None:
    links = {
        path: ("link", path.rsplit("/", 1)[1] if target == "loop" else target)
        for path in FILES
        if not path.startswith("/etc/network/interfaces.d")
    }
    small = SmallGuest(tmp_path / "guest", links | SYSTEMD)
    edits, _ = told(small)
    assert not any("root:" in change.before for change in edits.changes)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/network/interfaces", "a \\\n" * 60_000),
        ("/etc/network/interfaces", "source /etc/network/interfaces\n" * 5_000),
        ("/etc/network/interfaces", "iface eth0 inet static\n" * 10_000),
        ("/etc/netplan/a.yaml", "- " * 100_000),
        ("/etc/netplan/a.yaml", "a: " + "[" * 200_000),
        ("/etc/netplan/a.yaml", 'a: "' + '\\"' * 100_000 + " # x"),
        ("/etc/netplan/a.yaml", "".join(f"{' ' * n}a:\n" for n in range(700))),
        ("/etc/NetworkManager/system-connections/a", "[ipv4]\n" * 30_000),
        ("/etc/sysconfig/network-scripts/ifcfg-eth0", "IPADDR=1\n" * 25_000),
        ("/etc/systemd/network/a.network", "[Match]\nName=eth0\n" * 14_000),
        ("/etc/udev/rules.d/70-persistent-net.rules", RULE * 2_500),
        ("/etc/udev/rules.d/70-persistent-net.rules", 'A=="' + 'B=="' * 60_000),
        ("/etc/hosts", "127.0.1.1 web01\n" * 16_000),
        ("/etc/resolv.conf", "nameserver 1\n" * 20_000),
        ("/etc/hostname", "\n" * 200_000),
    ],
)
def test_a_file_made_to_be_slow_is_not(tmp_path: Path, path: str, text: str) -> None:
    """Quadratic passes over these would take minutes; the run's own limit ends them."""
    small = SmallGuest(tmp_path / "guest", {path: text} | SYSTEMD)
    edits = small.edits()
    network.convert(edits, GUEST, ALL)
    assert len(edits.warnings) <= 10


@pytest.mark.parametrize("path", FILES)
def test_a_file_beyond_all_measure_is_left_alone(tmp_path: Path, path: str) -> None:
    main = {"/etc/network/interfaces": FILES["/etc/network/interfaces"]}
    suse = {"/etc/sysconfig/network/ifcfg-eth0": "BOOTPROTO=dhcp\n"}
    small = SmallGuest(tmp_path / "guest", main | suse | {path: FILES[path]} | SYSTEMD)
    os.truncate(small.root / path.lstrip("/"), 10 << 30)
    edits, text = told(small)
    assert path in text or path == "/etc/cloud/cloud.cfg"
    assert not any(change.file == path for change in edits.changes)


def test_a_directory_of_countless_files_is_read_in_part(tmp_path: Path) -> None:
    many = {f"/etc/netplan/{number}.yaml": "network: {}\n" for number in range(300)}
    small = SmallGuest(tmp_path / "guest", many | SYSTEMD)
    edits = small.edits()
    network.convert(edits, GUEST, Wanted())
    assert "of which the first 256 are read" in edits.warnings[0]


@pytest.mark.parametrize("name", ["../../x", "a/b", "a b", "x" * 16, ".", "..", 'a"', "a\x1b[2J"])
def test_a_name_that_is_none_names_no_file_and_no_rule(tmp_path: Path, name: str) -> None:
    text = f"[connection]\ntype=ethernet\ninterface-name={name}\n"
    small = SmallGuest(
        tmp_path / "guest", {"/etc/NetworkManager/system-connections/a": text} | SYSTEMD
    )
    edits = small.edits()
    network.convert(edits, GUEST, Wanted(networks=[Network(mac=NEW)]))
    assert edits.changes == []
    assert network.find_names(small.tree) == []


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1\nb: *x\n",
        "a: |\n  text\n",
        "a: >\n  text\n",
        "a: !!str 1\n",
        "a: 1\na: 2\n",
        "a: [1,\n  2]\n",
        "a: {b: 1\n",
        'a: "open\n',
        "a:\n\t- b\n",
        "a: 1\n---\nb: 2\n",
        "a: one\n  two\n",
        "? a\n: b\n",
        "a: b: c\n",
        "  a: 1\n b: 2\n",
    ],
)
def test_yaml_beyond_what_is_known_is_refused(text: str) -> None:
    with pytest.raises(NotUnderstoodError, match=r"line [0-9]+: "):
        parse(text)


def plainly(node: Node) -> object:
    if node.map is not None:
        return {key: plainly(value) for key, value in node.map.items()}
    return node.text if node.items is None else [plainly(item) for item in node.items]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ""),
        ("---\n# c\na: b # c\n", {"a": "b"}),
        ("a:\n- 1\n- 2\nb:\n  - x\n", {"a": ["1", "2"], "b": ["x"]}),
        ("a:\n  - b: 1\n    c: 2\n  - d: 3\n", {"a": [{"b": "1", "c": "2"}, {"d": "3"}]}),
        ("- - a\n  - b\n- c\n", [["a", "b"], "c"]),
        ("a: [1, 'x, y', \"z\"]\nb: {c: [d], e: {}}\n", None),
        ("'a b': \"c#d\"\ne: it's # c\n", {"a b": "c#d", "e": "it's"}),
        ("mac: 00:50:56:aa:bb:01\nv6: fd00::5/64\n", None),
        ("a:\nb: ~\nc: null\n", {"a": "", "b": "", "c": ""}),
        ("a:\n  b:\n    c: 1\n\n  # between\n  d: 2\n", {"a": {"b": {"c": "1"}, "d": "2"}}),
    ],
)
def test_yaml_that_netplan_uses_is_read(text: str, wanted: object) -> None:
    found = plainly(parse(text))
    if wanted is None:
        wanted = {
            "a": {"a": ["1", "x, y", "z"], "b": {"c": ["d"], "e": {}}},
            "m": {"mac": "00:50:56:aa:bb:01", "v6": "fd00::5/64"},
        }[text[0]]
    assert found == wanted
    assert "".join(split(text)) == text
