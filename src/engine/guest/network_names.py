"""Names of network cards: the one that the configuration knows is given to the new card.

systemd's udev reads .link files, also of releases that are twelve years old, and whatever
configures the network then finds the name it looks for: nothing else has to be edited. An
udev without systemd reads a rule that says the same.
Source: systemd.link(5), udev(7).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .base import Nic, Wanted
from .network_text import Etc, Interface, canonical, move, split

LINKS = "/etc/systemd/network"
OWN_LINK = f"{LINKS}/10-rollpoint-{{}}.link"
OWN_LINKS = OWN_LINK.partition("{")[0]
RULES = "/etc/udev/rules.d"
OWN_RULES = f"{RULES}/70-rollpoint-net.rules"
OF_SYSTEMD = tuple(
    f"{prefix}/lib/systemd/{name}"
    for prefix in ("", "/usr")
    for name in ("network/99-default.link", "systemd-udevd")
)
OF_UDEV = ("/sbin/udevd", "/lib/udev/udevd", "/sbin/udevadm", "/lib/udev/rules.d", RULES)
DRIVERS: dict[Nic, str] = {
    "vmxnet3": "vmxnet3",
    "e1000": "e1000",
    "e1000e": "e1000e",
    "virtio-net": "virtio_net",
}
TYPE_SINCE = 245  # from here on Type=ether is a plain card in [Match], not every Ethernet
MATCHES = re.compile(r"""([A-Z]+(?:\{[^}"]*\})?)\s*(==|!=|:=|\+=|=)\s*"([^"]*)"\s*,?\s*""")


def udev(etc: Etc) -> str:
    """What gives names in this guest: systemd, udev, or "" for the kernel alone."""
    if any(map(etc.tree.exists, OF_SYSTEMD)):
        return "systemd"
    return "udev" if any(map(etc.tree.exists, OF_UDEV)) else ""


def systemd_version(etc: Etc) -> int:
    """By its library's name; 0 when that does not say."""
    found = [0]
    for directory in ("/usr/lib/systemd", "/lib/systemd", "/usr/lib/*/systemd"):
        for path in etc.files(f"{directory}/libsystemd-shared-*.so"):
            number = re.search(r"-shared-(\d{2,4})", path)
            found += [int(number[1])] if number else []
    return max(found)


def pin(etc: Etc, name: str, mac: str) -> None:
    """The card with that MAC is called so."""
    giver = udev(etc)
    what = f"the card {mac} keeps the name {name}"
    if giver == "systemd":
        only = "Type=ether\n" if systemd_version(etc) >= TYPE_SINCE else ""
        etc.put(
            OWN_LINK.format(name),
            f"# Rollpoint: {what}, which the configuration knows.\n"
            f"[Match]\nMACAddress={mac}\n{only}\n[Link]\nName={name}\n",
            what,
        )
    elif giver == "udev":
        _rule(etc, name, mac, what)
    elif not re.fullmatch(r"eth\d+", name):
        etc.warn(f"nothing in this guest gives cards names: {mac} will not be called {name}")


def pin_only(etc: Etc, name: str, wanted: Wanted) -> None:
    """The only card is called so, whatever its MAC."""
    if udev(etc) != "systemd":
        return
    driver = DRIVERS[wanted.nic]
    etc.put(
        OWN_LINK.format(name),
        f"# Rollpoint: the only card keeps the name {name}, which the configuration knows.\n"
        f"[Match]\nDriver={driver}\n\n[Link]\nName={name}\n",
        f"the only card keeps the name {name}",
    )


def _rule(etc: Etc, name: str, mac: str, what: str) -> None:
    lines = [line for line in split(etc.text(OWN_RULES) or "") if f'NAME="{name}"' not in line]
    lines.append(
        f'SUBSYSTEM=="net", ACTION=="add", ATTR{{address}}=="{mac}", ATTR{{type}}=="1", '
        f'KERNEL=="eth*", NAME="{name}"\n'
    )
    etc.put(OWN_RULES, "".join(sorted(lines)), what)


class Rule:
    """A line of a udev rules file that names a card by its MAC, its place or its driver."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.keys = [] if line.lstrip().startswith("#") else MATCHES.findall(line)
        said = {key: value for key, _, value in self.keys}
        self.name = next((v for k, op, v in self.keys if k == "NAME" and op != "=="), "")
        address = said.get("ATTR{address}", said.get("SYSFS{address}", ""))
        self.mac = canonical(address)
        self.of_net = said.get("SUBSYSTEM", said.get("SUBSYSTEMS", "")) == "net"
        self.placed = any(
            key in ("KERNELS", "ID", "BUS", "DEVPATH", "DRIVERS", "DRIVER") and value.strip("?*")
            for key, _, value in self.keys
        )

    @property
    def of_card(self) -> bool:
        return (
            bool(self.name)
            and (bool(self.mac) or (self.placed and self.of_net))
            and "%" not in self.name
        )

    def unplaced(self) -> str:
        """The rule by its MAC alone: the card has another place and driver now."""
        return re.sub(
            r"""\b(KERNELS|ID|BUS|DEVPATH|DRIVERS|DRIVER)==\s*"(?=[^"]*[^"?*])[^"]*"\s*,?\s*""",
            "",
            self.line,
        )


def _rules_files(etc: Etc) -> Iterator[tuple[str, list[str]]]:
    for path in etc.files(f"{RULES}/*.rules"):
        if path != OWN_RULES and (text := etc.text(path)) is not None:
            yield path, split(text)


def find(etc: Etc) -> Iterator[Interface]:
    for _, lines in _rules_files(etc):
        for rule in map(Rule, lines):
            if rule.of_card and rule.mac:
                yield Interface(rule.name, rule.mac, pinned=True, configured=False)
    for line in split(etc.text(OWN_RULES) or ""):
        if (rule := Rule(line)).of_card:
            yield Interface(rule.name, rule.mac, configured=False)


def clean(etc: Etc, moves: dict[str, str], kept: set[str] | None) -> None:
    """Rules of cards that are no more go, those of cards that stay follow them.

    Args:
        kept: MACs on the new hardware; None when they are not known: then only what is
            bound to a place and to no MAC is stale, and the rule for an only eth0, which
            the kernel calls so anyway and which would make a card of another MAC eth1.
    """
    rules = [rule for _, lines in _rules_files(etc) for rule in map(Rule, lines) if rule.of_card]
    if kept is None and len(rules) == 1 and rules[0].name == "eth0" and udev(etc) == "udev":
        kept = set()
    for path, lines in _rules_files(etc):
        left: list[str] = []
        for line in lines:
            rule = Rule(line)
            if not rule.of_card:
                left.append(line)
                continue
            new = moves.get(rule.mac, rule.mac)
            if not rule.mac or (kept is not None and new not in kept):
                while left and left[-1].lstrip().startswith("#") and "device" in left[-1]:
                    left.pop()  # what the generator wrote above it: "# PCI device 0x..."
            else:
                left.append(move(rule.unplaced(), moves))
        if left == lines:
            continue
        if any(line.strip() and not line.lstrip().startswith("#") for line in left):
            etc.put(path, "".join(left), "rules for cards of the old hardware")
        else:
            etc.remove(path, "it named only cards of the old hardware")
