"""TOML into tables, with the line in every error.

Python's tomllib reads the text; it forgets where things stood. So a second, small scanner walks
a text that tomllib took, and notes the line of every key and of every element. It knows that
the text is valid, which is why it can be small.
Source: TOML v1.0.0, https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import re
import types
import typing
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import msgspec

from .errors import UsageError

T = TypeVar("T")
Keys = tuple[str | int, ...]
"""Where something stands: keys of tables and numbers in arrays, from the top."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r'[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|\'[^\']*\'')
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\]|\\.)*"|\'[^\']*\'',
    re.DOTALL,
)
_BARE = re.compile(r"[^,\]}#\n]+")
_DEPTH_MAX = 40  # tables in tables that have lines; no format of ours has ten
_SHOWN_MAX = 60  # characters of a key or value that a message shows


class Document(NamedTuple):
    """What a file says, and where it says it."""

    where: str  # the file, as messages call it
    hint: str  # where its format is described
    data: dict[str, Any]
    lines: dict[Keys, int]

    def line(self, keys: Iterable[str | int]) -> int:
        """The line on which it stands; where it does not, of the nearest table around it."""
        at = tuple(keys)
        while at and at not in self.lines:
            at = at[:-1]
        return self.lines.get(at, 1)

    def place(self, keys: Iterable[str | int]) -> str:
        """File and line, as messages begin."""
        return f"{self.where}, line {self.line(keys)}"

    def error(self, keys: Iterable[str | int], message: str, hint: str = "") -> UsageError:
        """One whose message begins with the place. Without a hint it names the page."""
        return UsageError(f"{self.place(keys)}: {message}", hint or self.hint)

    def has(self, keys: Iterable[str | int]) -> bool:
        """Whether it is said."""
        return tuple(keys) in self.lines

    def convert(self, kind: type[T]) -> T:
        """The whole file as a struct.

        Raises:
            UsageError: It has a key that the struct has not, lacks one, or a value is of another
                type: with line and, where it can be told, what would be right.
        """
        try:
            return msgspec.convert(self.data, kind)
        except msgspec.ValidationError as error:
            raise self._explained(str(error), kind) from None
        except RecursionError:
            raise UsageError(
                f"{self.where}: tables lie too deep in each other", self.hint
            ) from None

    def _explained(self, text: str, kind: type) -> UsageError:
        message, _, path = text.rpartition(" - at `$") if " - at `$" in text else (text, "", "")
        wanted = re.match(r"Expected `(.*?)`", message)
        keys = self._keys(path.removesuffix("`"), wanted[1] if wanted else "")
        inside = _type_at(kind, keys)
        shown = _dotted(keys)
        at = f" in {shown}" if shown else ""
        unknown = re.search(r"unknown field `(.*)`$", message, re.DOTALL)
        if unknown:
            name = unknown[1]
            known = list(inside.__struct_fields__) if hasattr(inside, "__struct_fields__") else []
            message = f"unknown field {cut(name)}{at}"
            return self.error((*keys, name), message, nearest(name, known))
        missing = re.search(r"missing required field `([^`]*)`", message)
        if missing:
            hint = f"it has no default: {self.hint}"
            return self.error(keys, f"{missing[1]} is missing{at}", hint)
        choices = choices_of(inside)
        found = self.value(keys)
        if choices:
            is_none = f"{shown} is {cut(found)}, which it cannot be"
            return self.error(keys, is_none, f"take one of {', '.join(choices)}")
        quotable = "`str`" in message and not isinstance(found, list | dict)
        hint = "write it in quotes" if quotable else ""
        message = re.sub(r"`([^`]*)`", lambda m: _plain(m[1]), message)
        return self.error(keys, f"{shown}: {message[:1].lower()}{message[1:]}", hint)

    def _keys(self, path: str, wanted: str) -> Keys:
        """The keys of msgspec's path. In a table that holds any name it does not tell which."""
        keys: Keys = ()
        for name, number, anything in re.findall(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])", path):
            if anything:
                table = self.value(keys)
                right = {"str": str, "int": int}.get(wanted, object)
                if isinstance(table, dict):
                    keys += tuple(k for k, v in table.items() if type(v) is not right)[:1]
            else:
                keys += (name,) if name else (int(number),)
        return keys

    def value(self, keys: Iterable[str | int]) -> Any:
        """What is said there; None: nothing is."""
        value: Any = self.data
        for key in keys:
            if isinstance(value, dict):
                value = value.get(key)
            elif isinstance(value, list) and isinstance(key, int) and key < len(value):
                value = value[key]
            else:
                return None
        return value


def parse(data: bytes, where: str, hint: str) -> Document:
    """The tables of a file, with their lines.

    Args:
        where: What messages call the file.
        hint: Where its format is described.

    Raises:
        UsageError: It is no TOML; with the line.
    """
    import tomllib  # a failover of a replica without the file does without

    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{where} is no TOML: line {line} is no UTF-8", hint) from None
    try:
        tables = tomllib.loads(text)
        lines = _Scan(text).lines()
    except RecursionError:
        raise UsageError(f"{where} is no TOML: arrays lie too deep in one another", hint) from None
    except ValueError as error:  # also of numbers with too many digits
        at = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", str(error))
        line = int(at[1]) if at and at[1] else text.count("\n") + 1
        says = str(error)[: at.start()] if at else str(error)
        near = f"line {line}: {says}" if at else says
        raise UsageError(f"{where} is no TOML: {near}", hint) from None
    return Document(where, hint, tables, lines)


class _Scan:
    """One walk over a text that is valid."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._lines: dict[Keys, int] = {(): 1}
        self._counts: dict[Keys, int] = {}  # elements so far of an array of tables

    def lines(self) -> dict[Keys, int]:
        table: Keys = ()
        while self._skip():
            if self._text.startswith("[[", self._at):
                table = self._head(2)
            elif self._text.startswith("[", self._at):
                table = self._head(1)
            else:
                self._pair(table)
        return self._lines

    def _skip(self) -> bool:
        """Over blanks and comments; whether anything is left."""
        self._take(_BLANK)
        return self._at < len(self._text)

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

    def _note(self, keys: Keys, *, again: bool = False) -> None:
        """The line where keys stand is this one, and of those above them unless they have one."""
        if len(keys) > _DEPTH_MAX:
            return
        line = bisect_left(self._ends, self._at) + 1
        for length in range(1, len(keys)):
            self._lines.setdefault(keys[:length], line)
        if again:
            self._lines[keys] = line
        else:
            self._lines.setdefault(keys, line)

    def _head(self, brackets: int) -> Keys:
        start = self._at
        self._at += brackets
        self._take(_BLANK)
        parts = self._key()
        end = self._at
        table: Keys = ()
        for part in parts[:-1]:
            table = self._newest((*table, part))
        table = (*table, parts[-1])
        self._at = start
        if brackets == 2:
            self._note(table)
            self._counts[table] = self._counts.get(table, 0) + 1
        table = self._newest(table)
        self._note(table, again=True)
        self._at = end
        self._take(re.compile(r"[ \t]*\]{1,2}"))
        return table

    def _newest(self, table: Keys) -> Keys:
        return (*table, self._counts[table] - 1) if table in self._counts else table

    def _key(self) -> list[str]:
        """The parts of a key with dots."""
        parts = []
        while True:
            part = self._take(_KEY)
            if part[:1] == "'":
                part = part[1:-1]
            elif part[:1] == '"':
                import tomllib

                part = tomllib.loads(f"k = {part}")["k"] if "\\" in part else part[1:-1]
            parts.append(part)
            if not self._take(_DOT):
                return parts

    def _pair(self, table: Keys) -> None:
        start = self._at
        parts = self._key()
        end, self._at = self._at, start
        keys = (*table, *parts)
        self._note(keys)
        self._at = end
        self._take(re.compile(r"[ \t]*=[ \t]*"))
        self._value(keys)

    def _value(self, keys: Keys) -> None:
        opening = self._text[self._at]
        if opening == "[":
            self._at += 1
            number = 0
            while self._skip() and self._text[self._at] != "]":
                self._note((*keys, number))
                self._value((*keys, number))
                number += 1
                self._skip()
                self._take(re.compile(","))
            self._at += 1
        elif opening == "{":
            self._at += 1
            while self._skip() and self._text[self._at] != "}":
                self._pair(keys)
                self._skip()
                self._take(re.compile(","))
            self._at += 1
        elif not self._take(_STRING):
            self._take(_BARE)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a name that nobody knows: the one that is like it, or those that there are."""
    import difflib  # like tomllib: only who makes a mistake pays for it

    names = list(known)
    like = difflib.get_close_matches(name[:200], names, 1)
    if like:
        return f"did you mean {like[0]}?"
    return f"known here: {', '.join(names)}" if names else ""


def choices_of(kind: Any) -> list[str]:
    """The words of a Literal; [] of anything else."""
    kind = _present(kind)
    if typing.get_origin(kind) is typing.Literal:
        return [str(word) for word in typing.get_args(kind)]
    return []


def _present(kind: Any) -> Any:
    """A type without the None in it. Of several: the one that holds others, if one does."""
    if typing.get_origin(kind) is typing.Union or isinstance(kind, types.UnionType):
        kinds = [one for one in typing.get_args(kind) if one is not type(None)]
        return next((one for one in kinds if typing.get_origin(one) in (list, dict)), kinds[0])
    return kind


def _type_at(kind: Any, keys: Keys) -> Any:
    """The declared type of what stands there; None where it cannot be told."""
    for key in keys:
        kind = _present(kind)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            kind = typing.get_type_hints(kind).get(str(key))
        elif typing.get_origin(kind) in (list, dict):
            kind = typing.get_args(kind)[-1]
        else:
            return None
    return kind


def _dotted(keys: Keys) -> str:
    """As people write it, without numbers: "group.gate.port"."""
    return cut(".".join(key for key in keys if isinstance(key, str)))


def cut(value: object) -> str:
    """A key or a value as a message shows it: what cannot be printed escaped, the rest left out."""
    text = value if isinstance(value, str) else repr(value)
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: _SHOWN_MAX + 1])
    return shown if len(text) <= _SHOWN_MAX else f"{shown[:_SHOWN_MAX]}..."


def _plain(kind: str) -> str:
    """The name of a type as people who write TOML call it."""
    names = {"str": "text", "int": "a whole number", "bool": "true or false", "object": "a table"}
    names |= {"array": "an array", "float": "a number", "datetime": "a moment", "date": "a day"}
    return " or ".join(names.get(part, part) for part in kind.split(" | "))
