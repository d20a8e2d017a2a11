"""The name of a Linux guest.

Source: hostname(5), hosts(5).
"""

from __future__ import annotations

import ipaddress
import re

from ..errors import UsageError
from .network_text import Card, Etc, Vars, split

LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
FILES = ("/etc/hostname", "/etc/HOSTNAME")


def check(name: str) -> str:
    """The name, if it can be one ("" for none asked).

    Raises:
        UsageError: It cannot.
    """
    if name and (len(name) > 253 or re.fullmatch(rf"{LABEL}(\.{LABEL})*", name) is None):
        raise UsageError(
            f"{name!r} is no name for a host", "letters, digits and hyphens, with dots between"
        )
    return name


def set_name(etc: Etc, name: str, before: str) -> None:
    """Call the guest so; what /etc/hosts has for its own addresses follows.

    Args:
        before: As the inspection found it; "" when it did not.
    """
    if not name:
        return
    there = [path for path in FILES if etc.text(path) is not None]
    olds = {before} | {_first(etc.text(path) or "") for path in there}
    redhat = "/etc/sysconfig/network"
    stat = etc.tree.stat(redhat)
    text = etc.text(redhat) if stat is not None and stat.kind == "file" else None
    if text is not None and (old := (content := Vars(text)).items().get("HOSTNAME")) is not None:
        olds.add(old)
        content.set("HOSTNAME", name)
        etc.put(redhat, content.text(), f"the host is called {name}")
        there = there or [redhat]
    for path in there or FILES[:1]:
        if path != redhat and _first(etc.text(path) or "") != name:
            etc.put(path, f"{name}\n", f"the host is called {name}")
    olds |= {old.partition(".")[0] for old in olds}
    _hosts(etc, name, olds - {"", "localhost", name, name.partition(".")[0]})


def _first(text: str) -> str:
    """The name in a file: its first line that is no comment."""
    for line in split(text):
        if line.strip() and not line.lstrip().startswith("#"):
            return line.strip()
    return ""


def _hosts(etc: Etc, name: str, olds: set[str]) -> None:
    """The old names on lines of the host's own addresses give way to the new one."""
    text = etc.text("/etc/hosts")
    if text is None or not olds:
        return
    lines = []
    for line in split(text):
        bare, hash_, comment = line.partition("#")
        words = bare.split()
        if len(words) > 1 and olds & set(words[1:]):
            tail = bare[len(bare.rstrip()) :]
            fresh = [name, name.partition(".")[0]]
            at = next(i for i, word in enumerate(words) if i and _is_of(word, olds))
            left = [w for w in words[1:] if not _is_of(w, olds) and w not in fresh]
            left[at - 1 : at - 1] = list(dict.fromkeys(fresh))
            line = words[0] + "\t" + " ".join(left) + tail + hash_ + comment
        lines.append(line)
    etc.put("/etc/hosts", "".join(lines), f"the host is called {name}")


def set_address(etc: Etc, name: str, cards: list[Card]) -> None:
    """The host's own name in /etc/hosts goes to its new address.

    Args:
        name: Of the guest, as the inspection found it.
        cards: All of them. Only of a single one can it be told which address is meant.
    """
    text = etc.text("/etc/hosts")
    names = {name, name.partition(".")[0]} - {"", "localhost"}
    if text is None or not names:
        return
    lines = []
    for line in split(text):
        words = line.partition("#")[0].split()
        own = len(words) > 1 and bool(names & set(words[1:])) and _is_outside(words[0])
        news = [a for card in cards for a in (card.v6 if words and ":" in words[0] else card.v4)]
        if own and news and words[0] not in {str(address.ip) for address in news}:
            if len(cards) == 1:
                line = line.replace(words[0], str(news[0].ip), 1)
            else:
                etc.warn(f"/etc/hosts has {words[0]} for {words[1]}, which may be an old address")
        lines.append(line)
    etc.put("/etc/hosts", "".join(lines), f"the new address of {name}")


def _is_outside(address: str) -> bool:
    """Whether it is an address by which others reach the host."""
    try:
        return not ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_of(word: str, olds: set[str]) -> bool:
    """Whether it is an old name, or one with its domain behind."""
    return word in olds or word.partition(".")[0] in olds
