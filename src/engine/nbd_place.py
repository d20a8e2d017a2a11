"""Where an NBD export is, and how that is written."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from .errors import UsageError

PORT = 10809


class Place(NamedTuple):
    """Where an export is. socket_path: of a Unix socket; else host and port."""

    export: str
    socket_path: str | None = None
    host: str = ""
    port: int = PORT

    def __str__(self) -> str:
        where = self.socket_path or f"{self.host}:{self.port}"
        return f"export {self.export!r} at {where}"


def is_uri(text: str) -> bool:
    """Whether the text names an NBD export, and not a file."""
    return text.lower().startswith(("nbd://", "nbd+unix://", "nbds://", "nbds+unix://"))


def parse_uri(text: str) -> Place:
    """The place that nbd+unix:///EXPORT?socket=PATH or nbd://HOST[:PORT]/EXPORT names.

    Raises:
        UsageError: It is neither; or it wants TLS, which this client does not have.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or PORT
    except ValueError as error:
        raise UsageError(f"{text!r} is not an NBD URI: {error}", _URI_HINT) from None
    export = unquote(parts.path.removeprefix("/"))
    if parts.scheme == "nbd+unix":
        paths = parse_qs(parts.query).get("socket", [])
        if len(paths) == 1 and not parts.netloc:
            return Place(export, paths[0])
    elif parts.scheme == "nbd" and parts.hostname:
        return Place(export, None, parts.hostname, port)
    elif parts.scheme.startswith("nbds"):
        raise UsageError(f"{text!r} wants TLS", "put nbdkit or stunnel in between")
    raise UsageError(f"{text!r} is not an NBD URI", _URI_HINT)


_URI_HINT = "write nbd+unix:///EXPORT?socket=PATH or nbd://HOST[:PORT]/EXPORT"
