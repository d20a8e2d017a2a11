"""Whether anybody on the network has an address already.

No privilege is needed: a datagram to the address makes the kernel look for a neighbour, and
connections to well-known ports are tried; a station shows itself by its MAC, by taking the
connection, or by refusing it. One that drops everything, beyond a router, is not seen.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import select
import socket
import time
from collections.abc import Iterable

from .errors import UsageError

WAIT_SECONDS = 1.0
PORTS = (22, 80, 135, 443, 445, 3389)
_DISCARD = 9
_COMPLETE = 0x2  # ATF_COM: <net/if_arp.h>


def present(addresses: Iterable[str], wait_seconds: float = WAIT_SECONDS) -> list[str]:
    """Those of the addresses at which a station was seen, within that time altogether.

    Raises:
        UsageError: One is no IP address.
    """
    wanted = [_checked(address) for address in addresses]
    own = {address for address in wanted if _is_ours(address)}
    tries: dict[int, tuple[socket.socket, str]] = {}
    found = set(own)
    with contextlib.ExitStack() as stack:
        for address in wanted:
            _nudge(address)
            for port in PORTS:
                client = stack.enter_context(_socket(address, socket.SOCK_STREAM))
                client.setblocking(False)
                code = client.connect_ex((address, port))
                if code in (0, errno.ECONNREFUSED):
                    found.add(address)
                elif code == errno.EINPROGRESS:
                    tries[client.fileno()] = client, address
        deadline = time.monotonic() + wait_seconds
        while tries and (left := deadline - time.monotonic()) > 0:
            _, ready, _ = select.select([], list(tries), [], left)
            for number in ready:
                client, address = tries.pop(number)
                if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (
                    0,
                    errno.ECONNREFUSED,
                ):
                    found.add(address)
    found |= neighbours() & set(wanted)
    return [address for address in wanted if address in found]


def neighbours() -> set[str]:
    """IPv4 addresses whose MAC this host knows: proc(5), /proc/net/arp."""
    found = set()
    with contextlib.suppress(OSError), open("/proc/net/arp", encoding="ascii") as table:
        for line in list(table)[1:]:
            words = line.split()
            if len(words) >= 4 and int(words[2], 16) & _COMPLETE:
                found.add(words[0])
    return found


def _checked(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        raise UsageError(f"{address!r} is no IP address", "mend replica.toml") from None


def _socket(address: str, kind: socket.SocketKind) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)


def _nudge(address: str) -> None:
    with contextlib.suppress(OSError), _socket(address, socket.SOCK_DGRAM) as client:
        client.sendto(b"", (address, _DISCARD))


def _is_ours(address: str) -> bool:
    """Whether this host has it: then its own kernel would answer nothing."""
    with contextlib.suppress(OSError), _socket(address, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False
