"""What a guest says of itself: distribution, architecture, host name, network interfaces.

Source: os-release(5); System V ABI, ELF header (e_machine).
"""

from __future__ import annotations

import re

from ..access.tree import GuestTree
from ..errors import GuestError, NotFoundError, PathError
from .base import Guest
from .edits import printable, read_configuration

_FAMILIES = {
    "debian": "debian",
    "ubuntu": "debian",
    "linuxmint": "debian",
    "raspbian": "debian",
    "rhel": "rhel",
    "centos": "rhel",
    "fedora": "rhel",
    "rocky": "rhel",
    "almalinux": "rhel",
    "ol": "rhel",
    "amzn": "rhel",
    "suse": "suse",
    "opensuse": "suse",
    "sles": "suse",
    "sled": "suse",
}
_OLD_RELEASES = (
    ("/etc/SuSE-release", "suse", "sles"),
    ("/etc/oracle-release", "rhel", "ol"),
    ("/etc/centos-release", "rhel", "centos"),
    ("/etc/redhat-release", "rhel", "rhel"),
    ("/etc/debian_version", "debian", "debian"),
)
_MACHINES = {3: "i686", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64"}
_MACHINES |= {243: "riscv64", 258: "loongarch64"}
_PROGRAMS = ("/sbin/init", "/bin/sh", "/usr/bin/env", "/bin/busybox", "/usr/lib/systemd/systemd")
_VALUE_MAX = 200  # characters of any text that is kept
_INTERFACES_MAX = 100
_NAME = re.compile(r"[A-Za-z0-9._:@-]{1,15}", re.ASCII)  # IFNAMSIZ


def is_linux_root(tree: GuestTree) -> bool:
    """Whether a file system looks like the root of a Linux system."""
    listed = tree.list("/")
    if "etc" not in listed or not {"usr", "bin", "sbin", "lib"} & set(listed):
        return False
    try:
        held = tree.list("/etc")
    except (NotFoundError, PathError):
        return False
    marks = {"fstab", "os-release", "inittab", "passwd"}
    return bool(marks & set(held)) or any(name.endswith("-release") for name in held)


def os_release(tree: GuestTree) -> dict[str, str]:
    """Its variables. Their shell quoting is taken as the specification allows it."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        data, _ = read_configuration(tree, path, 1 << 16)
        if data is None:
            continue
        found = {}
        for line in data.decode("utf-8", "surrogateescape").split("\n"):
            name, sign, value = line.strip().partition("=")
            if sign and re.fullmatch(r"[A-Z_0-9]{1,64}", name):
                value = re.sub(r"\\(.)", r"\1", value.strip("\"'"))
                found[name] = printable(value[:_VALUE_MAX]).replace("\n", " ")
        if found:
            return found
    return {}


def title(tree: GuestTree, os: str) -> str:
    """For people."""
    if os == "windows":
        return "Windows"
    release = os_release(tree)
    return release.get("PRETTY_NAME") or release.get("NAME") or "Linux"


def linux(tree: GuestTree) -> Guest:
    """What the root of a Linux system tells."""
    release = os_release(tree)
    distribution = release.get("ID", "").lower()
    family = _FAMILIES.get(distribution, "")
    for like in [distribution.partition("-")[0], *release.get("ID_LIKE", "").lower().split()]:
        family = family or _FAMILIES.get(like, "")
    version = release.get("VERSION_ID", "")
    if not family:
        for path, known, name in _OLD_RELEASES:
            data, _ = read_configuration(tree, path, 1 << 16)
            if data is None:
                continue
            family, distribution = known, distribution or name
            number = re.search(rb"\d{1,4}(?:\.\d{1,4})?", data)
            version = version or (number[0].decode() if number else "")
            break
    return Guest(
        os="linux",
        family=family or "other",
        distribution=distribution,
        version=version,
        name=title(tree, "linux"),
        architecture=architecture(tree),
        hostname=hostname(tree),
        networks=networks(tree),
    )


def architecture(tree: GuestTree) -> str:
    """Of the first program that is one; "" when none tells."""
    for path in _PROGRAMS:
        try:
            head = tree.read_part(path, 0, 20)
        except (NotFoundError, PathError, GuestError):
            continue
        if head[:4] == b"\x7fELF" and len(head) == 20:
            order = "big" if head[5] == 2 else "little"
            machine = int.from_bytes(head[18:20], "big" if order == "big" else "little")
            return _MACHINES.get(machine, f"ELF machine {machine}")
    return ""


def hostname(tree: GuestTree) -> str:
    """Its own name, as its files have it."""
    for path in ("/etc/hostname", "/etc/HOSTNAME"):
        data, _ = read_configuration(tree, path, 1 << 16)
        for line in (data or b"").decode("utf-8", "surrogateescape").split("\n"):
            if line.strip() and not line.startswith("#"):
                return printable(line.strip()[:_VALUE_MAX])
    data, _ = read_configuration(tree, "/etc/sysconfig/network", 1 << 16)
    found = re.search(rb"^HOSTNAME=[\"']?([\w.-]{1,200})", data or b"", re.MULTILINE)
    return found[1].decode("ascii", "replace") if found else ""


def networks(tree: GuestTree) -> list[str]:
    """Names of interfaces in the files of ifupdown, ifcfg, NetworkManager, networkd, netplan."""
    found: list[str] = []
    sources = (
        ("/etc/network/interfaces", r"^[ \t]*iface[ \t]+(\S+)"),
        ("/etc/network/interfaces.d/*", r"^[ \t]*iface[ \t]+(\S+)"),
        ("/etc/NetworkManager/system-connections/*", r"^interface-name[ \t]*=[ \t]*([^\s;]+)"),
        ("/etc/systemd/network/*.network", r"^Name[ \t]*=[ \t]*(\S+)"),
        ("/etc/netplan/*.yaml", r"^[ \t]+((?:en|eth)[a-z0-9]+)[ \t]*:"),
    )
    for pattern, expression in sources:
        for path in tree.glob(pattern)[:_INTERFACES_MAX]:
            data, _ = read_configuration(tree, path)
            text = (data or b"").decode("utf-8", "surrogateescape")
            found += re.findall(expression, text, re.MULTILINE)[:_INTERFACES_MAX]
    for directory in ("/etc/sysconfig/network-scripts", "/etc/sysconfig/network"):
        found += [path.partition("/ifcfg-")[2] for path in tree.glob(f"{directory}/ifcfg-*")]
    good = [name for name in dict.fromkeys(found) if _NAME.fullmatch(name) and name != "lo"]
    return good[:_INTERFACES_MAX]
