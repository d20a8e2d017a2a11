"""The text in which LVM2 keeps its metadata: names, numbers, strings, lists, sections.

Source: lib/config/config.c of LVM2 (the grammar), lvm.conf(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..errors import FormatError

Value = int | float | str | list["Value"] | dict[str, "Value"]
Section = dict[str, Value]

TEXT_BYTES_MAX = 4 << 20
_DEPTH_MAX = 16
_TOKEN = re.compile(
    r"""(?P<skip>[\s\0]+|\#[^\n]*)
    |(?P<text>"(?:[^"\\]|\\.)*")
    |(?P<number>[-+]?[0-9]+(?:\.[0-9]+)?(?![\w.+-]))
    |(?P<name>[\w.+/-]+)
    |(?P<mark>[=\[\]{},])""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def parse_text(data: bytes) -> Section:
    """The outermost section.

    Raises:
        FormatError: It is no such text; says at which byte.
    """
    if len(data) > TEXT_BYTES_MAX:
        raise FormatError(f"the metadata of LVM would have {len(data)} bytes")
    parser = _Parser(data.decode("latin-1"))
    return parser.section(0, "")


def shown(value: object) -> str:
    """What the guest wrote, for a message."""
    return ascii(str(value)[:127])[1:-1]


def sections(section: Section, name: str) -> dict[str, Section]:
    """The sections inside one; {} where it is not there."""
    inside = section.get(name, {})
    if not isinstance(inside, dict):
        raise FormatError(f"the metadata of LVM has no section {name}")
    return {key: value for key, value in inside.items() if isinstance(value, dict)}


def whole(section: Section, name: str, least: int, most: int) -> int:
    value = section.get(name)
    if not isinstance(value, int) or not least <= value <= most:
        raise FormatError(f"the metadata of LVM has no usable {name}")
    return value


def words(section: Section, name: str) -> list[str]:
    value = section.get(name, [])
    listed: list[Value] = value if isinstance(value, list) else [value]
    return [word for word in listed if isinstance(word, str)]


class _Parser:
    """One token is looked ahead; the end is the token ("end", "")."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._kind, self._word, self._at = next(self._tokens)

    def _next(self) -> tuple[str, str]:
        token = self._kind, self._word
        self._kind, self._word, self._at = next(self._tokens)
        return token

    def _fail(self) -> FormatError:
        return FormatError(f"the metadata of LVM cannot be read at byte {self._at}")

    def _expect(self, word: str) -> None:
        if (self._kind, self._word) != ("mark", word):
            raise self._fail()
        self._next()

    def section(self, depth: int, stop: str) -> Section:
        """What stands before the mark stop ("": the end), which is taken."""
        if depth > _DEPTH_MAX:
            raise self._fail()
        found: Section = {}
        while (self._kind, self._word) != (("mark", stop) if stop else ("end", "")):
            if self._kind not in ("name", "number", "text"):
                raise self._fail()
            kind, word = self._next()
            name = _unquoted(word) if kind == "text" else word
            if name in found:
                raise self._fail()
            if self._word == "{" and self._kind == "mark":
                self._next()
                found[name] = self.section(depth + 1, "}")
            else:
                self._expect("=")
                found[name] = self._value()
        if stop:
            self._next()
        return found

    def _value(self) -> Value:
        if (self._kind, self._word) != ("mark", "["):
            return self._scalar()
        self._next()
        found: list[Value] = []
        while (self._kind, self._word) != ("mark", "]"):
            found.append(self._scalar())
            if (self._kind, self._word) == ("mark", ","):
                self._next()
            elif (self._kind, self._word) != ("mark", "]"):
                raise self._fail()
        self._next()
        return found

    def _scalar(self) -> Value:
        if self._kind not in ("number", "text", "name"):
            raise self._fail()
        kind, word = self._next()
        if kind == "number":
            if len(word) > 24:
                raise self._fail()
            return float(word) if "." in word else int(word)
        return _unquoted(word) if kind == "text" else word


def _unquoted(word: str) -> str:
    return _ESCAPED.sub(r"\1", word[1:-1])


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise FormatError(f"the metadata of LVM cannot be read at byte {at}")
        kind = match.lastgroup
        assert kind is not None
        if kind != "skip":
            yield kind, match[0], at
        at = match.end()
    while True:
        yield "end", "", at
