"""Whether anybody on the network has an address already.

What is known from before proves nothing: this host remembers for minutes the MAC of a source
that has just gone. So stations are asked now, all at once and within two seconds:

  ARP        probes as of RFC 5227, where the address is on a network of this host and the
             process may send them (CAP_NET_RAW); every station answers, whatever its firewall
  neighbour  without that right: a MAC that this host did not know a moment ago
  TCP        connections to well-known ports: one that is taken, or refused, has a station

Beyond a router only the last is left, and a station that drops everything is not seen: then
the answer says that it could not be told.
Source: RFC 5227, section 2.1.1; packet(7), proc(5).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import selectors
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .errors import UsageError

WAIT_SECONDS = 1.0
PORTS = (22, 80, 135, 443, 445, 3389)
_DISCARD = 9
_COMPLETE = 0x2  # ATF_COM: <net/if_arp.h>
_ETH_P_ARP, _ARPHRD_ETHER, _ETH_P_IP = 0x0806, 1, 0x0800
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_REQUEST = 1
_SIOCGIFHWADDR = 0x8927
_BROADCAST = b"\xff" * 6


class Found(NamedTuple):
    """Addresses at which a station was seen, and those of which it cannot be told."""

    present: list[str]
    unsure: list[str]


def look(addresses: Iterable[str], wait_seconds: float = WAIT_SECONDS) -> Found:
    """Look for stations at all of the addresses, within that time altogether.

    Raises:
        UsageError: One is no IP address.
    """
    wanted = list(dict.fromkeys(_checked(address) for address in addresses))
    known = neighbours()
    found = {address for address in wanted if _is_ours(address)}
    asked: set[str] = set()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as waiting:
        for links, local in _by_interface(wanted).items():
            probe = _arp_socket(links)
            if probe is not None:
                stack.callback(probe.close)
                waiting.register(probe, selectors.EVENT_READ, local)
                if _send_probes(probe, links, local):
                    asked |= local
        for address in wanted:
            _nudge(address)
            for port in PORTS:
                client = stack.enter_context(_socket(address, socket.SOCK_STREAM))
                client.setblocking(False)
                code = client.connect_ex((address, port))
                if code in (0, errno.ECONNREFUSED):
                    found.add(address)
                elif code == errno.EINPROGRESS:
                    waiting.register(client, selectors.EVENT_WRITE, address)
        deadline = time.monotonic() + wait_seconds
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                found |= _heard(key, waiting)
    fresh = neighbours() - known
    found |= fresh & set(wanted)
    present = [address for address in wanted if address in found]
    unsure = [address for address in wanted if address not in found | asked]
    return Found(present, unsure)


def _heard(key: selectors.SelectorKey, waiting: selectors.BaseSelector) -> set[str]:
    """What one socket that is ready tells."""
    connection = key.fileobj
    assert isinstance(connection, socket.socket)
    if isinstance(key.data, set):
        with contextlib.suppress(OSError):
            return key.data & {_sender(connection.recv(256))}
        return set()
    waiting.unregister(connection)
    code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return {key.data} if code in (0, errno.ECONNREFUSED) else set()


def neighbours() -> set[str]:
    """IPv4 addresses whose MAC this host knows: proc(5), /proc/net/arp."""
    found = set()
    with contextlib.suppress(OSError, ValueError):
        for words in _rows("/proc/net/arp"):
            if len(words) >= 4 and int(words[2], 16) & _COMPLETE:
                found.add(words[0])
    return found


# ---- ARP ----


def _by_interface(addresses: Iterable[str]) -> dict[str, set[str]]:
    """Interface -> those of the addresses that are on its own network."""
    found: dict[str, set[str]] = {}
    routes: list[tuple[int, int, int, str]] = []
    with contextlib.suppress(OSError, ValueError):
        for words in _rows("/proc/net/route"):
            to, gateway, mask = (_number(words[i]) for i in (1, 2, 7))
            routes.append((mask, to, gateway, words[0]))
    for address in addresses:
        if ":" in address:
            continue
        number = int(ipaddress.IPv4Address(address))
        fitting = [route for route in routes if number & route[0] == route[1]]
        if fitting:
            _, _, gateway, name = max(fitting)
            if gateway == 0:
                found.setdefault(name, set()).add(address)
    return found


def _number(text: str) -> int:
    """An address of /proc/net/route: its bytes as this host reads them."""
    return int.from_bytes(struct.pack("=I", int(text, 16)), "big")


def _rows(path: str) -> Iterator[list[str]]:
    with open(path, encoding="ascii") as table:
        for line in list(table)[1:]:
            yield line.split()


def _arp_socket(interface: str) -> socket.socket | None:
    """None: it is not allowed, or there is none."""
    with contextlib.suppress(OSError):
        probe = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ARP))
        try:
            probe.bind((interface, _ETH_P_ARP))
            probe.setblocking(False)
            return probe
        except OSError:
            probe.close()
    return None


def _send_probes(probe: socket.socket, interface: str, addresses: set[str]) -> bool:
    """Ask who has each of them, in the name of nobody. Whether all went out."""
    try:
        asked = fcntl.ioctl(probe, _SIOCGIFHWADDR, struct.pack("40s", interface.encode()))
        kind, mac = struct.unpack_from("=16xH6s", asked)
        if kind != _ARPHRD_ETHER:
            return False
        for address in addresses:
            wanted = ipaddress.IPv4Address(address).packed
            packet = _ARP.pack(
                _ARPHRD_ETHER, _ETH_P_IP, 6, 4, _REQUEST, mac, bytes(4), bytes(6), wanted
            )
            probe.sendto(packet, (interface, _ETH_P_ARP, 0, _ARPHRD_ETHER, _BROADCAST))
    except OSError:
        return False
    return True


def _sender(packet: bytes) -> str:
    """The address of who sent an ARP packet; "" for what is none."""
    if len(packet) < _ARP.size:
        return ""
    kind, protocol, *_, sender, _, _ = _ARP.unpack_from(packet)
    if (kind, protocol) != (_ARPHRD_ETHER, _ETH_P_IP):
        return ""
    return str(ipaddress.IPv4Address(sender))


# ---- the rest ----


def _checked(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        raise UsageError(f"{address!r} is no IP address", "mend replica.toml") from None


def _socket(address: str, kind: socket.SocketKind) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)


def _nudge(address: str) -> None:
    """Have the kernel look for the neighbour."""
    with contextlib.suppress(OSError), _socket(address, socket.SOCK_DGRAM) as client:
        client.sendto(b"", (address, _DISCARD))


def _is_ours(address: str) -> bool:
    """Whether this host has it: then its own kernel would answer nothing."""
    with contextlib.suppress(OSError), _socket(address, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False
