"""Tables as TOML in many ways of writing, by an author who remembers the line of everything.

The independent side of the tests of rollpoint.toml_lines.
"""

from __future__ import annotations

import random
import string
from typing import Any

Keys = tuple[str | int, ...]
BARE = set(string.ascii_letters + string.digits + "_-")
CONFUSING = ["[group]", "# no comment", "name = 1", "[[group.gate]]", "]", "}", ",", "'", '"', "="]


class Author:
    """Writes one document. lines: where everything of it stands."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._text = ""
        self.lines: dict[Keys, int] = {(): 1}

    def write(self, tables: dict[str, Any]) -> str:
        self._noise()
        self._table((), tables)
        return self._text

    def _put(self, text: str) -> None:
        self._text += text

    def _here(self, keys: Keys) -> None:
        line = self._text.count("\n") + 1
        for length in range(1, len(keys) + 1):
            self.lines.setdefault(keys[:length], line)

    def _one(self, *choices: str) -> str:
        return self._random.choice(choices)

    def _noise(self) -> None:
        """Blank lines and comments that look like something."""
        while self._random.random() < 0.2:
            self._put(self._one("\n", " \t\n", f"# {self._random.choice(CONFUSING)}\n", "\r\n"))

    def _end(self) -> None:
        self._put(self._one("\n", "\n", " # [x] y = 1\n", "\r\n"))
        self._noise()

    def _key(self, *names: str) -> str:
        dot = self._one(".", ".", " . ")
        return dot.join(self._part(name) for name in names)

    def _part(self, name: str) -> str:
        styles = ["basic"]
        if name and set(name) <= BARE:
            styles += ["bare"] * 4
        if "'" not in name and "\n" not in name:
            styles.append("literal")
        style = self._random.choice(styles)
        return name if style == "bare" else f"'{name}'" if style == "literal" else quoted(name)

    def _table(self, at: Keys, table: dict[str, Any]) -> None:
        """What is in a table: plain keys first, then tables of their own."""
        later = []
        for name, value in table.items():
            of_tables = isinstance(value, list) and value and all(type(v) is dict for v in value)
            if (isinstance(value, dict) or of_tables) and self._random.random() < 0.8:
                later.append(name)
            elif isinstance(value, dict) and value and self._random.random() < 0.5:
                self._dotted((*at, name), (name,), value)
            else:
                self._pair((*at, name), (name,), value)
        for name in later:
            if isinstance(table[name], dict):
                self._header((*at, name), "[", "]")
                self._table((*at, name), table[name])
                continue
            for number, one in enumerate(table[name]):
                self._header((*at, name, number), "[[", "]]")
                self._table((*at, name, number), one)

    def _header(self, keys: Keys, opening: str, closing: str) -> None:
        names = [key for key in keys if isinstance(key, str)]
        self.lines[keys] = self._text.count("\n") + 1
        self._here(keys)
        self._put(f"{self._one('', ' ')}{opening}{self._one('', ' ')}{self._key(*names)}{closing}")
        self._end()

    def _dotted(self, keys: Keys, names: tuple[str, ...], table: dict[str, Any]) -> None:
        for name, value in table.items():
            if isinstance(value, dict) and value and self._random.random() < 0.5:
                self._dotted((*keys, name), (*names, name), value)
            else:
                self._pair((*keys, name), (*names, name), value)

    def _pair(self, keys: Keys, names: tuple[str, ...], value: Any) -> None:
        self._here(keys)
        self._put(f"{self._key(*names)}{self._one('=', ' = ')}")
        self._value(keys, value)
        self._end()

    def _value(self, keys: Keys, value: Any) -> None:
        if isinstance(value, bool):
            self._put("true" if value else "false")
        elif isinstance(value, str):
            self._put(self._string(value))
        elif isinstance(value, list):
            self._array(keys, value)
        elif isinstance(value, dict):
            self._put("{")
            for number, (name, inside) in enumerate(value.items()):
                self._put(", " if number else " ")
                self._here((*keys, name))
                self._put(f"{self._key(name)} = ")
                self._value((*keys, name), inside)
            self._put(self._one("}", " }"))
        else:
            self._put(str(value))

    def _array(self, keys: Keys, values: list[Any]) -> None:
        self._put("[")
        for number, inside in enumerate(values):
            self._break()
            self._here((*keys, number))
            self._value((*keys, number), inside)
            self._break()
            self._put("," if number + 1 < len(values) or self._random.random() < 0.3 else "")
        self._break()
        self._put("]")

    def _break(self) -> None:
        if self._random.random() < 0.3:
            self._put(self._one("\n", " # ] , [\n", "\n\n  ", "\r\n"))

    def _string(self, text: str) -> str:
        plain = text.isprintable()
        styles = ["basic", "long"]
        if plain and "'" not in text:
            styles += ["literal", "long literal"]
        style = self._random.choice(styles)
        if style == "literal":
            return f"'{text}'"
        if style == "long literal":
            return f"'''\n{text}'''"
        if style == "long":
            broken = quoted(text)[1:-1].replace("\\n", "\n")
            return (
                f'"""{self._one("", chr(10))}{self._one("", chr(92) + chr(10))}{broken}"""'.replace(
                    '"""\n\n', '"""\n\\n'
                )
            )
        return quoted(text)


def quoted(text: str) -> str:
    """As a basic string."""
    made = "".join(
        "\\n" if c == "\n"
        else f"\\{c}" if c in '"\\'
        else c if c.isprintable()
        else f"\\U{ord(c):08x}"
        for c in text
    )  # fmt: skip
    return f'"{made}"'
