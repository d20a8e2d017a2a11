"""Addresses of a Windows guest: what was set by hand goes to the new card, or is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rollpoint.access.local import LocalFileSystem
from rollpoint.access.tree import GuestTree
from rollpoint.errors import UsageError
from rollpoint.guest.base import Network, Wanted
from rollpoint.guest.edits import Edits
from rollpoint.guest.hives import Value, dword, string, strings
from rollpoint.guest.windows import convert, inspect_windows
from rollpoint.guest.windows_first_boot import SERVICE
from rollpoint.guest.windows_network import windows_mac
from windows_guests import CS, build, opened

INTERFACES = f"{CS}\\Services\\Tcpip\\Parameters\\Interfaces"
GUIDS = [f"{{{n}0000000-0000-0000-0000-000000000000}}" for n in range(1, 5)]


def fixed(address: str, mask: str = "255.255.255.0") -> dict[str, Value]:
    return {
        "EnableDHCP": dword(0),
        "IPAddress": strings([address]),
        "SubnetMask": strings([mask]),
        "DefaultGateway": strings(["10.1.2.1"]),
        "NameServer": string("10.1.2.53,10.1.2.54"),
    }


def planned(
    root: Path, wanted: Wanted, interfaces: dict[str, dict[str, Value]]
) -> tuple[list[dict[str, object]], list[str]]:
    """The cards that the first start sets, and the warnings."""
    tree = build(root, more={f"{INTERFACES}\\{guid}": v for guid, v in interfaces.items()})
    guest = inspect_windows(tree)
    assert guest is not None
    edits = Edits(tree)
    convert(edits, guest, wanted)
    with opened(root) as system:
        text = system.text((CS, "Services", SERVICE, "Parameters"), "Networks")
    return (json.loads(text) if text else []), edits.warnings


def wanting(*networks: Network, dns: list[str] | None = None) -> Wanted:
    return Wanted(controller="ahci", nic="e1000e", networks=list(networks), dns=dns or [])


KEPT = {
    "addresses": ["10.1.2.3/24"],
    "families": ["IPv4"],
    "routes": [{"prefix": "0.0.0.0/0", "hop": "10.1.2.1"}],
    "dns": ["10.1.2.53", "10.1.2.54"],
}


def test_the_only_address_goes_to_the_only_card(tmp_path: Path) -> None:
    cards, warnings = planned(tmp_path, wanting(), {GUIDS[0]: fixed("10.1.2.3")})
    assert cards == [{"mac": "", **KEPT}]
    assert warnings == []


def test_the_only_address_goes_to_the_card_that_is_named(tmp_path: Path) -> None:
    wanted = wanting(Network(mac="52:54:00:ab:cd:ef"))
    cards, _ = planned(tmp_path, wanted, {GUIDS[0]: fixed("10.1.2.3")})
    assert cards == [{"mac": "52-54-00-AB-CD-EF", **KEPT}]


def test_addresses_that_an_old_card_left_behind_count_once(tmp_path: Path) -> None:
    interfaces = {guid: fixed("10.1.2.3") for guid in GUIDS}
    cards, warnings = planned(tmp_path, wanting(), interfaces)
    assert len(cards) == 1
    assert warnings == []


def test_of_several_addresses_none_is_guessed(tmp_path: Path) -> None:
    interfaces = {GUIDS[0]: fixed("10.1.2.3"), GUIDS[1]: fixed("10.9.2.3", "255.255.0.0")}
    cards, warnings = planned(tmp_path, wanting(), interfaces)
    assert cards == []
    assert "10.1.2.3/24; 10.9.2.3/16" in warnings[0]


def test_addresses_that_are_asked_for_replace_what_was_there(tmp_path: Path) -> None:
    wanted = wanting(
        Network(
            mac="52:54:00:00:00:01",
            addresses=["192.168.7.9/25", "fd00::9/64"],
            gateway="192.168.7.1",
            gateway6="fd00::1",
        ),
        dns=["192.168.7.53"],
    )
    cards, warnings = planned(tmp_path, wanted, {GUIDS[0]: fixed("10.1.2.3")})
    assert warnings == []
    assert cards == [
        {
            "mac": "52-54-00-00-00-01",
            "addresses": ["192.168.7.9/25", "fd00::9/64"],
            "families": ["IPv4", "IPv6"],
            "routes": [
                {"prefix": "0.0.0.0/0", "hop": "192.168.7.1"},
                {"prefix": "::/0", "hop": "fd00::1"},
            ],
            "dns": ["192.168.7.53"],
        }
    ]


def test_a_guest_with_dhcp_is_left_alone(tmp_path: Path) -> None:
    wanted = wanting(Network(mac="52:54:00:00:00:01"))
    assert planned(tmp_path, wanted, {}) == ([], [])


@pytest.mark.parametrize(
    "values",
    [
        {"EnableDHCP": dword(0)},
        {**fixed("10.1.2.3"), "SubnetMask": strings([])},
        {**fixed("10.1.2.3"), "SubnetMask": strings(["255.0.255.0"])},
        {**fixed("'; Remove-Item C:\\ #"), "NameServer": string('"; x')},
        {**fixed("0.0.0.0"), "IPAddress": dword(7)},
        {**fixed("10.1.2.3"), "EnableDHCP": string("0")},
    ],
)
def test_what_is_no_address_is_not_taken(tmp_path: Path, values: dict[str, Value]) -> None:
    assert planned(tmp_path, wanting(), {GUIDS[0]: values})[0] == []


def test_hostile_name_servers_are_dropped(tmp_path: Path) -> None:
    values = {**fixed("10.1.2.3"), "NameServer": string("10.0.0.1;$(x) 10.0.0.2,\x00")}
    cards, _ = planned(tmp_path, wanting(), {GUIDS[0]: values})
    assert cards[0]["dns"] == ["10.0.0.2"]


@pytest.mark.parametrize("mac", ["", "52:54:00", "zz:54:00:12:34:56", "52:54:00:12:34:56:78"])
def test_what_is_no_mac_is_refused(mac: str) -> None:
    with pytest.raises(UsageError):
        windows_mac(mac)


def renamed(root: Path, domain: str) -> tuple[list[str], Edits]:
    more = {
        f"{CS}\\Services\\Tcpip\\Parameters": {
            "Hostname": string("winhost"),
            "NV Hostname": string("winhost"),
            "Domain": string(domain),
        }
    }
    tree = build(root, more=more)
    guest = inspect_windows(tree)
    assert guest is not None
    edits = Edits(tree)
    convert(edits, guest, Wanted(controller="ahci", nic="e1000e", hostname="new-host"))
    with opened(root) as system:
        place = (CS, "Services", "Tcpip", "Parameters")
        names = [system.text(place, name) for name in ("Hostname", "NV Hostname")]
        computer = (CS, "Control", "ComputerName", "ComputerName")
        names.append(system.text(computer, "ComputerName"))
    return names, edits


def test_a_guest_gets_another_name(tmp_path: Path) -> None:
    names, edits = renamed(tmp_path, "")
    assert names == ["new-host", "new-host", "NEW-HOST"]
    assert edits.warnings == []
    guest = inspect_windows(GuestTree({"/": LocalFileSystem(tmp_path)}))
    assert guest is not None
    assert guest.hostname == "new-host"


def test_a_member_of_a_domain_keeps_its_name(tmp_path: Path) -> None:
    names, edits = renamed(tmp_path, "corp.example")
    assert names == ["winhost", "winhost", "WINHOST"]
    assert "domain" in edits.warnings[0]
