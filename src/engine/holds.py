"""An external replicator, told to hold and to release: the table [hold] of replica.toml.

By commands (argument vectors, no shell), or over HTTP. A hold that is not confirmed has
failed, and stops what wanted it before anything was changed.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import shlex
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Literal

from . import commands
from .config_tables import HoldTable
from .errors import StorageError, UsageError
from .secrets import SecretPlace
from .units import parse_duration

Verb = Literal["hold", "release", "status"]
SAID_LENGTH_MAX = commands.SAID_LENGTH_MAX
ANSWER_BYTES_MAX = 1 << 16
_POLL_SECONDS = 0.2


def hold(table: HoldTable, sleep: Callable[[float], object] = time.sleep) -> str:
    """Have it hold; returns what it said when it did.

    Raises:
        StorageError: It refuses, cannot be reached, or does not hold in time.
        UsageError: The table says how to hold neither by a command nor over HTTP.
    """
    check(table)
    said = _act(table, "hold")
    _wait(table, held=True, sleep=sleep)
    return said


def release(table: HoldTable, sleep: Callable[[float], object] = time.sleep) -> str:
    """Have it go on; returns what it said.

    Raises:
        As hold.
    """
    check(table)
    said = _act(table, "release")
    _wait(table, held=False, sleep=sleep)
    return said


def check(table: HoldTable) -> None:
    """Refuse a table that does not say how to do it.

    Raises:
        UsageError: It says both ways, or neither, or half of one.
    """
    if bool(table.url) == bool(table.hold):
        raise UsageError(
            "the table [hold] of replica.toml says how to hold in "
            + ("two ways" if table.url else "no way"),
            "set url, or the commands hold and release",
        )
    if table.hold and not table.release:
        raise UsageError(
            "the table [hold] of replica.toml has no release", "say how replication goes on"
        )
    if table.url and not table.url.startswith(("https://", "http://")):
        raise UsageError(f"the url of [hold], {table.url!r}, is none", "write it with https://")
    has_token = bool(table.token_env or table.token_file)
    if has_token and table.url.startswith("http://") and not _is_loopback(table.url):
        raise UsageError(
            f"the token of [hold] would go to {table.url} for all to read", "use https://"
        )


def _is_loopback(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _act(table: HoldTable, verb: Verb) -> str:
    return _ask_http(table, verb)[1] if table.url else _ask_command(table, verb)


def is_held(table: HoldTable) -> bool | None:
    """Whether it says that it holds; None: it cannot be asked.

    Raises:
        StorageError: It does not answer.
    """
    if table.url:
        return _ask_http(table, "status")[0]
    if not table.status:
        return None
    first, *_ = [*_ask_command(table, "status").lower().split(), ""]
    return first.strip(".,;:!") == "held"


def _wait(table: HoldTable, *, held: bool, sleep: Callable[[float], object]) -> None:
    deadline = time.monotonic() + parse_duration(table.timeout)
    while is_held(table) not in (held, None):
        if time.monotonic() >= deadline:
            wanted = "holds" if held else "has gone on"
            raise StorageError(
                f"the external replicator does not say, in {table.timeout}, that it {wanted}",
                "see what it waits for",
            )
        sleep(_POLL_SECONDS)


def _ask_command(table: HoldTable, verb: Verb) -> str:
    command: Sequence[str] = getattr(table, verb)
    shown = shlex.join(command)
    code, said = commands.run(command, parse_duration(table.timeout))
    if code is None:
        raise StorageError(f"[hold].{verb}: {shown}: {said}", "try it, or mend replica.toml")
    if code != 0:
        raise StorageError(f"[hold].{verb}: {shown} ended with {code}: {said}", "see why it did")
    return said


def _ask_http(table: HoldTable, verb: Verb) -> tuple[bool, str]:
    place = f"{table.url.rstrip('/')}/{verb}"
    request = urllib.request.Request(
        place,
        data=None if verb == "status" else b"{}",
        headers={"Content-Type": "application/json", "Accept": "application/json"},
    )
    if table.token_env or table.token_file:
        token = SecretPlace(
            what=f"the token for {table.url}",
            variable=table.token_env,
            file=table.token_file,
            settings=("token_env", "token_file"),
        ).read()
        request.add_unredirected_header("Authorization", f"Bearer {token.reveal()}")
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if _is_loopback(place):  # a proxy would read the token
        handlers.append(urllib.request.ProxyHandler({}))
    if place.startswith("https:"):
        context = ssl.create_default_context(cafile=table.ca_file or None)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(request, timeout=parse_duration(table.timeout)) as answer:
            told = json.loads(answer.read(ANSWER_BYTES_MAX))
        if not isinstance(told["held"], bool):
            raise TypeError
        return told["held"], json.dumps(told)[:SAID_LENGTH_MAX]
    except urllib.error.HTTPError as error:
        raise StorageError(
            f"{place} answers {error.code} {error.reason}", "see the replicator's log"
        ) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        why = getattr(error, "reason", error)
        raise StorageError(f"{place} cannot be asked: {why}", "see whether it runs") from None
    except (ValueError, KeyError, TypeError):
        raise StorageError(
            f"{place} does not answer with JSON {{'held': true|false}}", "see what listens there"
        ) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token goes to the server that was named, and to no other."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None
