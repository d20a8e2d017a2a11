"""Reaching a service over TCP and HTTP within a time: for gates.

Nothing but the named host is asked: no proxy, and no redirection to another one.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from ..errors import UsageError

BODY_BYTES_MAX = 1 << 20
REDIRECTIONS_MAX = 5

_PIECE_BYTES = 64 << 10
_REDIRECTIONS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_SHOWN_MAX = 100


class Leash:
    """How long something may take, and the way to end it from another thread."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._cut = threading.Event()
        self._lock = threading.Lock()
        self._held: socket.socket | None = None

    @property
    def seconds_left(self) -> float:
        """Negative: it should have ended."""
        return self._deadline - time.monotonic()

    def require(self) -> float:
        """The seconds left.

        Raises:
            TimeoutError: There are none, or it was cut.
        """
        left = self.seconds_left
        if left <= 0 or self._cut.is_set():
            raise TimeoutError("no answer in its time")
        return left

    def hold(self, connection: socket.socket) -> None:
        """Cutting ends this connection. The one before is not held any more."""
        with self._lock:
            self._held = connection
            if self._cut.is_set():
                _shut(connection)

    def cut(self) -> None:
        """End it now."""
        with self._lock:
            self._cut.set()
            if self._held is not None:
                _shut(self._held)

    def is_cut(self) -> bool:
        return self._cut.is_set()


class Answer(NamedTuple):
    """What a service answered.

    Attributes:
        length: Bytes of the body that were read; whole: there are no more.
        problem: Why it was not followed to its end; "": it was.
    """

    status: int
    has_text: bool = False
    length: int = 0
    whole: bool = True
    problem: str = ""


def connect(host: str, port: int, leash: Leash) -> socket.socket:
    """A connection to the first of the host's addresses that takes one.

    Raises:
        OSError: None does, or the host has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    last: OSError = OSError(f"{host} has no address")
    for number, (family, kind, protocol, _, address) in enumerate(found):
        # One that drops what it gets leaves the others their share of the time.
        share = leash.require() / (len(found) - number)
        connection = socket.socket(family, kind, protocol)
        try:
            leash.hold(connection)
            connection.settimeout(share)
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            last = error
        except BaseException:
            connection.close()
            raise
    raise last


def get(
    url: str,
    leash: Leash,
    *,
    wanted_status: int,
    text: str = "",
    ca_file: str = "",
    insecure: bool = False,
) -> Answer:
    """What the URL answers; of the body no more is read than tells whether the text is in it.

    Args:
        wanted_status: A redirection that is wanted is not followed; others are, on one host.
        ca_file: Certificates that may have signed the server's; "": as the system trusts.
        insecure: The server's certificate is not looked at.

    Raises:
        UsageError: It is no URL of http or https.
        OSError, ValueError, http.client.HTTPException: There was no answer, or none in HTTP.
    """
    parts = _require_url(url)
    for _ in range(REDIRECTIONS_MAX + 1):
        answer, place = _ask(parts, leash, wanted_status, text, ca_file, insecure)
        if not place:
            return answer
        new = urlsplit(urljoin(parts.geturl(), place))
        if new.scheme not in _PORTS or (new.scheme, parts.scheme) == ("http", "https"):
            return answer._replace(problem=f"it sends to {new.scheme!r}, which is not followed")
        if (new.hostname or "").lower() != (parts.hostname or "").lower():
            other = (new.hostname or "")[:_SHOWN_MAX]
            return answer._replace(problem=f"it sends to the host {other!r}, which is not asked")
        parts = new
    return answer._replace(problem=f"it sends on more than {REDIRECTIONS_MAX} times")


def _require_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        ok = parts.scheme in _PORTS and parts.hostname and parts.port != 0
    except ValueError:
        ok = False
    if not ok:
        raise UsageError(
            f"{url[:_SHOWN_MAX]!r} is no URL of http or https", "write it as in http://host:8080/up"
        )
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"the URL of the host {parts.hostname} has a user in it",
            "leave that out; a gate of the kind script can log in",
        )
    return parts


def _ask(
    parts: SplitResult, leash: Leash, wanted: int, text: str, ca_file: str, insecure: bool
) -> tuple[Answer, str]:
    """One answer, and where it sends to; "": nowhere, or that is what is wanted."""
    host = parts.hostname or ""
    port = parts.port or _PORTS[parts.scheme]
    plain = connect(host, port, leash)
    with contextlib.closing(plain):
        connection = plain
        if parts.scheme == "https":
            connection = _secure(plain, host, leash, ca_file, insecure)
        with contextlib.closing(connection):
            client = http.client.HTTPConnection(host, port)
            client.default_port = _PORTS[parts.scheme]
            client.sock = connection
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.settimeout(leash.require())
            headers = {"Accept": "*/*", "User-Agent": "rollpoint", "Connection": "close"}
            client.request("GET", target, headers=headers)
            with contextlib.closing(client.getresponse()) as response:
                place = response.headers.get("Location", "")
                if response.status != wanted and response.status in _REDIRECTIONS and place:
                    return Answer(response.status), place
                if response.status != wanted or not text:
                    return Answer(response.status), ""
                return _read(response, connection, leash, text), ""


def _secure(
    plain: socket.socket, host: str, leash: Leash, ca_file: str, insecure: bool
) -> ssl.SSLSocket:
    """TLS over the connection, which has gone into what is returned."""
    context = ssl.create_default_context(cafile=ca_file or None)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    plain.settimeout(leash.require())
    secured = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
    try:
        leash.hold(secured)
        secured.do_handshake()
    except BaseException:
        secured.close()
        raise
    return secured


def _read(
    response: http.client.HTTPResponse, connection: socket.socket, leash: Leash, text: str
) -> Answer:
    charset = response.headers.get_content_charset() or "utf-8"
    try:
        wanted = text.encode(charset)
    except (LookupError, UnicodeEncodeError):
        wanted = text.encode()
    body = bytearray()
    while len(body) < BODY_BYTES_MAX:
        left = leash.require()
        with contextlib.suppress(OSError):  # the answer may have ended, and closed it
            connection.settimeout(left)
        data = response.read1(min(_PIECE_BYTES, BODY_BYTES_MAX - len(body)))
        if not data:
            return Answer(response.status, length=len(body))
        body += data
        if body.find(wanted, max(0, len(body) - len(data) - len(wanted))) >= 0:
            return Answer(response.status, True, len(body))
    return Answer(response.status, length=len(body), whole=False)


def _shut(connection: socket.socket) -> None:
    # The plain call also for TLS: its own one takes the object away from under the reader.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
