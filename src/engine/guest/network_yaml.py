"""As much YAML as netplan's files use, with the lines on which each thing stands.

Block mappings and sequences, flow ones on one line, quoted and plain scalars, comments. What
goes beyond (anchors, tags, text over several lines, tabs) is refused: such a file is left as
it is, and the operator is told.
Source: YAML 1.2, chapters 6 to 8.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import NamedTuple

from .network_text import split

DEPTH_MAX = 24
QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'"""
KEY = re.compile(rf"(?:({QUOTED})|([^\s\"'#&*!|>%@`\[\]{{}},?-][^\s:#]*))\s*:(?=\s|$)")
FLOW_SCALAR = re.compile(rf"({QUOTED})|([^\s\"'\[\]{{}},#&*!|>%@`][^\[\]{{}},\"']*)")
PLAIN = re.compile(r"[A-Za-z0-9_./-]+")


class NotUnderstoodError(ValueError):
    """More than this reader knows. The message says what, and on which line."""


@dataclass
class Node:
    """A value: a mapping (map), a sequence (items), or a scalar (text).

    Attributes:
        first, last: Lines, from 0, that it and its key take; last is one past its end.
        indent: Of its children's lines; -1 for what stands on a line with its key.
    """

    first: int
    last: int
    indent: int = -1
    map: dict[str, Node] | None = None
    items: list[Node] | None = None
    text: str = ""

    def get(self, *keys: str) -> Node | None:
        """Down mappings by their keys; None where there is nothing of that name."""
        node: Node | None = self
        for key in keys:
            node = None if node is None or node.map is None else node.map.get(key)
        return node

    def scalar(self, *keys: str) -> str:
        node = self.get(*keys)
        return "" if node is None else node.text


class Line(NamedTuple):
    number: int
    indent: int
    content: str


def parse(text: str) -> Node:
    """The document; an empty one is an empty scalar.

    Raises:
        NotUnderstoodError: It holds more than the kinds above.
    """
    lines = _lines(text)
    if not lines:
        return Node(0, 0)
    node, at = _block(lines, 0, lines[0].indent, 0)
    if at < len(lines):
        raise _refusal("indentation", lines[at])
    return node


def _lines(text: str) -> list[Line]:
    found: list[Line] = []
    for number, raw in enumerate(split(text)):
        bare = raw.rstrip("\r\n")
        content = _without_comment(bare).rstrip()
        if not content.strip() or (content == "---" and not found):
            continue
        indent = len(content) - len(content.lstrip(" "))
        line = Line(number, indent, content[indent:])
        if line.content[0] == "\t" or content in ("---", "...") or content[0] == "%":
            raise _refusal("tabs, or several documents", line)
        found.append(line)
    return found


def _without_comment(line: str) -> str:
    """A line up to a # that stands apart and outside quotes."""
    if "#" not in line:
        return line
    quote, before, escaped = "", " ", False
    for at, character in enumerate(line):
        if escaped:
            escaped = False
        elif quote:
            escaped = quote == '"' and character == "\\"
            quote = "" if character == quote else quote
        elif character == "#" and before.isspace():
            return line[:at]
        elif character in "\"'" and (before.isspace() or before in "[{,:"):
            quote = character
        before = character
    return line


def _block(lines: list[Line], at: int, indent: int, depth: int) -> tuple[Node, int]:
    """The mapping, sequence or scalar that begins there, and the line after it."""
    if depth > DEPTH_MAX:
        raise _refusal("nesting that deep", lines[at])
    if lines[at].content == "-" or lines[at].content.startswith("- "):
        return _sequence(lines, at, indent, depth)
    if KEY.match(lines[at].content):
        return _mapping(lines, at, indent, depth)
    line = lines[at]
    return _inline(line.content, line), at + 1


def _mapping(lines: list[Line], at: int, indent: int, depth: int) -> tuple[Node, int]:
    node = Node(lines[at].number, lines[at].number, indent, map={})
    entries: dict[str, Node] = {}
    node.map = entries
    while at < len(lines) and lines[at].indent == indent:
        line = lines[at]
        found = KEY.match(line.content)
        if found is None:
            if line.content == "-" or line.content.startswith("- "):
                break  # the sequence that this mapping stands in goes on
            raise _refusal("what is no key", line)
        key = found[2] or _unquoted(found[1] or "", line)
        if key in entries:
            raise _refusal("a key twice", line)
        rest = line.content[found.end() :].strip()
        at += 1
        if rest:
            child = _inline(rest, line)
            if at < len(lines) and lines[at].indent > indent:
                raise _refusal("text that goes on", lines[at])
        elif at < len(lines) and (
            lines[at].indent > indent
            or (lines[at].indent == indent and lines[at].content.split(" ")[0] == "-")
        ):
            child, at = _block(lines, at, lines[at].indent, depth + 1)
        else:
            child = Node(line.number, line.number + 1)
        child.first = line.number
        entries[key] = child
        node.last = child.last
    if at < len(lines) and lines[at].indent > indent:
        raise _refusal("indentation", lines[at])
    return node, at


def _sequence(lines: list[Line], at: int, indent: int, depth: int) -> tuple[Node, int]:
    items: list[Node] = []
    node = Node(lines[at].number, lines[at].number, indent, items=items)
    while at < len(lines) and lines[at].indent == indent:
        line = lines[at]
        if line.content != "-" and not line.content.startswith("- "):
            break  # the mapping that it stands in, at the same indentation, goes on
        rest = line.content[1:].lstrip(" ")
        if rest and (KEY.match(rest) or rest == "-" or rest.startswith("- ")):
            inner = indent + len(line.content) - len(rest)
            lines[at] = Line(line.number, inner, rest)
            child, at = _block(lines, at, inner, depth + 1)
        elif rest:
            child, at = _inline(rest, line), at + 1
            if at < len(lines) and lines[at].indent > indent:
                raise _refusal("text that goes on", lines[at])
        elif at + 1 < len(lines) and lines[at + 1].indent > indent:
            child, at = _block(lines, at + 1, lines[at + 1].indent, depth + 1)
        else:
            child, at = Node(line.number, line.number + 1), at + 1
        child.first = line.number
        items.append(child)
        node.last = child.last
    if at < len(lines) and lines[at].indent > indent:
        raise _refusal("indentation", lines[at])
    return node, at


def _inline(text: str, line: Line) -> Node:
    """A scalar, or a flow mapping or sequence, that stands on one line."""
    if text[0] in "[{":
        node, end = _flow(text, 0, line, 0)
        if text[end:].strip():
            raise _refusal("something behind a bracket", line)
        return node
    if text[0] in "&*!|>%@`?," or text.startswith("- "):
        raise _refusal(f"{text[0]!r}", line)
    value = _unquoted(text, line) if text[0] in "\"'" else text
    if text[0] not in "\"'" and re.search(r":(\s|$)", text):
        raise _refusal("a mapping within a line", line)
    if text in ("null", "~"):
        value = ""
    return Node(line.number, line.number + 1, text=value)


def _flow(text: str, at: int, line: Line, depth: int) -> tuple[Node, int]:
    """A flow value from text[at], and the place behind it."""
    node = Node(line.number, line.number + 1)
    if depth > DEPTH_MAX:
        raise _refusal("nesting that deep", line)
    if text[at : at + 1] not in ("[", "{"):
        found = FLOW_SCALAR.match(text, at)
        if found is None:
            raise _refusal("an open bracket", line)
        node.text = _unquoted(found[1], line) if found[1] else found[2].strip()
        return node, found.end()
    close = "]" if text[at] == "[" else "}"
    items: list[Node] = []
    entries: dict[str, Node] = {}
    at = _blank(text, at + 1)
    while text[at : at + 1] != close:
        if close == "}":
            key = re.compile(rf"({QUOTED})\s*:|([^\s\"'\[\]{{}},:]+)\s*:(?=\s)").match(text, at)
            if key is None or (key[2] or _unquoted(key[1] or "", line)) in entries:
                raise _refusal("what is no key, or one twice", line)
            child, at = _flow(text, _blank(text, key.end()), line, depth + 1)
            entries[key[2] or _unquoted(key[1] or "", line)] = child
        else:
            child, at = _flow(text, at, line, depth + 1)
            items.append(child)
        at = _blank(text, at)
        if text[at : at + 1] == ",":
            at = _blank(text, at + 1)
        elif text[at : at + 1] != close:
            raise _refusal("an open bracket", line)
    if close == "}":
        node.map = entries
    else:
        node.items = items
    return node, at + 1


def _blank(text: str, at: int) -> int:
    while text[at : at + 1] == " ":
        at += 1
    return at


def _unquoted(text: str, line: Line) -> str:
    if re.fullmatch(QUOTED, text) is None:
        raise _refusal("an open quote", line)
    if text[0] == "'":
        return text[1:-1].replace("''", "'")
    try:
        return str(json.loads(text))
    except ValueError:
        raise _refusal("an escape that JSON does not have", line) from None


def _refusal(what: str, line: Line) -> NotUnderstoodError:
    return NotUnderstoodError(f"line {line.number + 1}: {what}")


def emit(node: Node) -> str:
    """The value in flow style, on one line."""
    if node.map is not None:
        return "{" + ", ".join(f"{plain(k)}: {emit(v)}" for k, v in node.map.items()) + "}"
    if node.items is not None:
        return "[" + ", ".join(map(emit, node.items)) + "]"
    return plain(node.text) if node.text else "null"


def plain(text: str) -> str:
    """A scalar, quoted when it needs it."""
    return text if PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
