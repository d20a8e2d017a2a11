"""What has to be right of a plan's scripts and gates before any of them is run."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable, Sequence

from ..toml_lines import Document, Keys, cut, nearest
from ..units import printable
from .file_groups import COUNT_MAX, require_count, require_duration
from .place import PLACEHOLDERS
from .tables import Gate, GateKind, Group, Script

OF_A_REPLICA = ("replica", "address")  # placeholders that mean nothing in a group's own task
NAME_MAX = 64
_OWN: dict[GateKind, tuple[str, ...]] = {
    "heartbeat": (),
    "tcp": ("host", "port"),
    "http": ("url", "status", "text", "ca_file", "insecure"),
    "marker": ("marker",),
    "script": ("command", "env", "shell"),
}
_NEEDED = {  # field -> how it may look
    "host": 'host = "{address}"',
    "port": "port = 443",
    "url": 'url = "http://{address}/"',
    "marker": 'marker = "login:"',
    "command": 'command = ["/usr/local/bin/check", "{replica}"]',
}
_IN_BRACES = re.compile(r"(?<!\$)\{([A-Za-z_][A-Za-z0-9_]*)\}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check(document: Document, keys: Keys, group: Group) -> None:
    """All scripts and gates of a group.

    Raises:
        UsageError: The first thing that is wrong, with its line.
    """
    names: dict[str, Keys] = {}
    for family, scripts in (("before", group.before), ("after_up", group.after_up)):
        for number, script in enumerate(scripts):
            at = (*keys, family, number)
            _check_name(document, (*at, "name"), script.name, names)
            _check_command(document, at, script)
            if family == "before":
                _check_known_before(document, (*at, "command"), script.command)
            require_duration(document, (*at, "timeout"), script.timeout, positive=True)
            _check_on(document, at, script)
    names = {}
    for number, gate in enumerate(group.gate):
        at = (*keys, "gate", number)
        _check_name(document, (*at, "name"), gate.name, names)
        _check_gate(document, at, gate)


def _check_name(document: Document, keys: Keys, name: str, seen: dict[str, Keys]) -> None:
    if not name:
        return
    if len(name) > NAME_MAX or not name.isprintable() or name != name.strip():
        raise document.error(
            keys, f"{cut(repr(name))} is no name for a table", f"at most {NAME_MAX} characters"
        )
    if name in seen:
        raise document.error(
            keys,
            f"a second {name} in this group; the first is in line {document.line(seen[name])}",
            "give each a name of its own",
        )
    seen[name] = keys


def _check_on(document: Document, keys: Keys, one: Script | Gate) -> None:
    if not one.on:
        raise document.error(
            (*keys, "on"), "on is empty: it would never be of use", 'as in on = ["test"]'
        )


def _check_gate(document: Document, keys: Keys, gate: Gate) -> None:
    own = _OWN[gate.kind]
    every = {name for names in _OWN.values() for name in names}
    for name in document.value(keys):
        if name in every and name not in own:
            owner = next(kind for kind, names in _OWN.items() if name in names)
            raise document.error(
                (*keys, name),
                f"a {gate.kind} gate has no {name}",
                f'that is of kind = "{owner}"; {gate.kind} has '
                + (", ".join(own) if own else "no field of its own"),
            )
    for name in own:
        if name in _NEEDED and not getattr(gate, name):
            says = "is empty" if document.has((*keys, name)) and name != "port" else "is missing"
            if name == "port" and document.has((*keys, name)):
                says = "is 0"
            raise document.error(
                (*keys, name), f"{name} of the {gate.kind} gate {says}", f"as in {_NEEDED[name]}"
            )
    if gate.each == "group" and gate.kind in ("heartbeat", "marker"):
        raise document.error(
            (*keys, "each"),
            f"a group has no machine, and so no {gate.kind}",
            "look at each replica, or take tcp, http or script",
        )
    require_duration(document, (*keys, "interval"), gate.interval)
    require_duration(document, (*keys, "timeout"), gate.timeout, positive=True)
    require_count(document, (*keys, "retries"), gate.retries, 0, COUNT_MAX)
    _check_on(document, keys, gate)
    _CHECKS[gate.kind](document, keys, gate)


def _check_heartbeat(document: Document, keys: Keys, gate: Gate) -> None:
    """It has nothing of its own."""


def _check_tcp(document: Document, keys: Keys, gate: Gate) -> None:
    require_count(document, (*keys, "port"), gate.port, 1, 65535)
    if re.search(r"[\s/@]", gate.host):
        raise document.error(
            (*keys, "host"),
            f"{cut(repr(gate.host))} is no name and no address of a host",
            'as in host = "{address}", and the port in port',
        )
    _check_placeholders(document, (*keys, "host"), gate.host, gate.each)


def _check_http(document: Document, keys: Keys, gate: Gate) -> None:
    _check_placeholders(document, (*keys, "url"), gate.url, gate.each)
    _check_placeholders(document, (*keys, "text"), gate.text, gate.each)
    require_count(document, (*keys, "status"), gate.status, 100, 599)
    shown = _IN_BRACES.sub("x", re.sub(r"\[\{[a-z]+\}\]", "[::1]", gate.url))
    try:
        url = urllib.parse.urlsplit(shown)
        right = bool(url.scheme in ("http", "https") and url.hostname and url.port != 0)
    except ValueError:
        right = False
    if not right or re.search(r"[\s\x00-\x20\x7f]", gate.url):
        raise document.error(
            (*keys, "url"), f"{cut(repr(gate.url))} is no URL of a page", f"as in {_NEEDED['url']}"
        )
    if "@" in url.netloc:
        raise document.error(
            (*keys, "url"),
            "a user or a password stands in the URL, and a plan is no place for them",
            "take a page that needs none, or a script gate",
        )
    for name in ("ca_file", "insecure"):
        if getattr(gate, name) and url.scheme != "https":
            raise document.error((*keys, name), f"{name} is for https", "take it out")
    if gate.ca_file and gate.insecure:
        raise document.error(
            (*keys, "insecure"), "ca_file checks whom insecure would not check", "decide for one"
        )


def _check_marker(document: Document, keys: Keys, gate: Gate) -> None:
    if not gate.marker.strip() or "\n" in gate.marker:
        raise document.error(
            (*keys, "marker"), "a marker is text within one line", f"as in {_NEEDED['marker']}"
        )
    _check_placeholders(document, (*keys, "marker"), gate.marker, gate.each)


def _check_command(document: Document, keys: Keys, one: Script | Gate) -> None:
    command = one.command
    at = (*keys, "command")
    if one.shell and isinstance(command, list):
        raise document.error(
            at, "shell = true takes one text, and command is an array", "write it as one text"
        )
    if not one.shell and isinstance(command, str):
        raise document.error(
            at,
            "command is one text, and no shell was asked for",
            'write command = ["program", "argument"], or add shell = true',
        )
    program = command if isinstance(command, str) else "".join(command[:1])
    if not program.strip():
        raise document.error(at, "command names no program", f"as in {_NEEDED['command']}")
    if isinstance(command, str):
        _check_placeholders(document, at, command, one.each, shell=True)
    else:
        for number, word in enumerate(command):
            _check_placeholders(document, (*at, number), word, one.each)
    for name in one.env:
        if not _VARIABLE.fullmatch(name):
            raise document.error(
                (*keys, "env", name),
                f"{cut(repr(name))} cannot name a variable",
                "letters, digits and _, the first no digit",
            )
        if name.startswith("ROLLPOINT_"):
            raise document.error(
                (*keys, "env", name), f"{cut(name)}: ROLLPOINT_* is set already", "take another"
            )


_CHECKS: dict[GateKind, Callable[[Document, Keys, Gate], None]] = {
    "heartbeat": _check_heartbeat,
    "tcp": _check_tcp,
    "http": _check_http,
    "marker": _check_marker,
    "script": _check_command,
}


def _check_placeholders(
    document: Document, keys: Keys, text: str, each: str, *, shell: bool = False
) -> None:
    """A shell has braces of its own: there only what means nothing here is refused."""
    for name in _IN_BRACES.findall(text):
        if name not in PLACEHOLDERS:
            if not shell:
                raise document.error(
                    keys, f"nothing is called {{{cut(name)}}}", nearest(name, PLACEHOLDERS)
                )
        elif each == "group" and name in OF_A_REPLICA:
            raise document.error(
                keys,
                f"{{{name}}} means nothing once for the group",
                f"take {', '.join(f'{{{p}}}' for p in PLACEHOLDERS if p not in OF_A_REPLICA)},"
                ' or each = "replica"',
            )


def _check_known_before(document: Document, keys: Keys, command: list[str] | str) -> None:
    """What only the operation tells means nothing before it."""
    words = [(keys, command)] if isinstance(command, str) else []
    if isinstance(command, list):
        words = [((*keys, number), word) for number, word in enumerate(command)]
    for at, word in words:
        if "address" in _IN_BRACES.findall(word):
            raise document.error(
                at,
                "{address} means nothing before the replica's operation",
                "take {replica}, or make it a script of after_up",
            )


def name_all(group: Group) -> None:
    """Give each script and gate that has no name one of its own: results are kept by it."""
    scripts = [*group.before, *group.after_up]
    _name(scripts, [_program(script) for script in scripts])
    _name(group.gate, [gate.kind for gate in group.gate])


def _program(script: Script) -> str:
    if isinstance(script.command, str):
        return "shell"
    name = os.path.basename(script.command[0].rstrip("/"))
    return printable(name)[: NAME_MAX // 2].strip() or "script"


def _name(them: Sequence[Script | Gate], called: Sequence[str]) -> None:
    taken = {one.name for one in them}
    for one, base in zip(them, called, strict=True):
        if not one.name:
            name, number = base, 1
            while name in taken:
                number += 1
                name = f"{base} {number}"
            one.name = name
            taken.add(name)
