"""A registry hive, read and edited in a cage by a child process that has nothing but its bytes.

Keys are paths of names from the hive's root, upper and lower case alike. A value that is set
to what it is changes nothing, and a hive in which nothing changed is never written: Windows
sees no difference after a second conversion.

Tests: tests/test_hives.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..access.sandbox import CALL_SECONDS, Cage
from ..closing import Closing
from ..errors import GuestError, ToolMissingError

_WORKER = "/run/hive_worker.py"  # in the cage
_SHOWN_MAX = 120  # characters of a value that a record shows

REG_SZ, REG_EXPAND_SZ, REG_BINARY, REG_DWORD, REG_MULTI_SZ = 1, 2, 3, 4, 7

Key = Sequence[str]


class Value(NamedTuple):
    """A value's type and bytes, as the hive has them."""

    type: int
    data: bytes

    @property
    def text(self) -> str:
        """Of a string: up to its end; "" of anything else."""
        if self.type not in (REG_SZ, REG_EXPAND_SZ, REG_MULTI_SZ):
            return ""
        return _decoded(self.data).split("\0", 1)[0]

    @property
    def texts(self) -> list[str]:
        """Of a list of strings, those that are not empty."""
        if self.type not in (REG_SZ, REG_EXPAND_SZ, REG_MULTI_SZ):
            return []
        return [text for text in _decoded(self.data).split("\0") if text]

    @property
    def number(self) -> int | None:
        """Of a DWORD; None of anything else."""
        if self.type != REG_DWORD or len(self.data) != 4:
            return None
        return int.from_bytes(self.data, "little")

    def shown(self) -> str:
        """For a record: short, and nothing but what was there."""
        if self.number is not None:
            return f"dword {self.number}"
        if self.type in (REG_SZ, REG_EXPAND_SZ):
            return _short(repr(self.text))
        if self.type == REG_MULTI_SZ:
            return _short(repr(self.texts))
        return _short(f"type {self.type}: {self.data.hex()}")


def dword(number: int) -> Value:
    return Value(REG_DWORD, number.to_bytes(4, "little"))


def string(text: str, expand: bool = False) -> Value:
    return Value(REG_EXPAND_SZ if expand else REG_SZ, _encoded(text) + b"\0\0")


def strings(texts: Sequence[str]) -> Value:
    return Value(REG_MULTI_SZ, b"".join(_encoded(t) + b"\0\0" for t in texts) + b"\0\0")


def binary(data: bytes) -> Value:
    return Value(REG_BINARY, data)


class Record(NamedTuple):
    """One change that was made in a hive, for people."""

    what: str
    before: str
    after: str


class _Reply(msgspec.Struct):
    """All that the child may answer."""

    keys: list[str] = []
    values: list[tuple[str, int, str]] = []
    missing: bool = False
    library: bool = False
    error: str = ""


class Hive(Closing):
    """A hive in its child process. Leave it with ``with`` or close.

    Args:
        data: The whole hive, recovered (hive_log.recover).
        name: For messages, as in SYSTEM.
        writable: Whether it may be changed.
        seconds: For each answer; a child that takes longer is killed.

    Raises, here and in every call:
        GuestError: libhivex refused the hive, or its child died or hung over it.
        ToolMissingError: libhivex, or what makes the cage, is not installed.
    """

    def __init__(
        self, data: bytes, name: str, *, writable: bool = False, seconds: float = CALL_SECONDS
    ) -> None:
        self.name = name
        self.records: list[Record] = []
        self._wanted: dict[tuple[tuple[str, ...], str], Value | None] = {}
        self._seconds = seconds
        self._cage = Cage(
            ["{python}", "-I", "-S", _WORKER],
            readable={_WORKER: str(Path(__file__).with_name("hive_worker.py"))},
            what=f"the registry hive {name}",
        )
        try:
            self._ask({"op": "open", "writable": writable}, data)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the child. May be called twice."""
        self._cage.kill()

    def keys(self, path: Key) -> list[str]:
        """Names of the keys below a key; none where there is no such key."""
        return self._ask({"op": "keys", "path": list(path)})[0].keys

    def has(self, path: Key) -> bool:
        """Whether there is such a key."""
        return not self._ask({"op": "keys", "path": list(path)})[0].missing

    def values(self, path: Key) -> dict[str, Value]:
        """A key's values; none where there is no such key."""
        reply = self._ask({"op": "values", "path": list(path)})[0]
        return {name: self._value(kind, data) for name, kind, data in reply.values}

    def value(self, path: Key, name: str) -> Value | None:
        """A key's value, or None."""
        reply = self._ask({"op": "value", "path": list(path), "name": name})[0]
        for _, kind, data in reply.values:
            return self._value(kind, data)
        return None

    def text(self, path: Key, name: str) -> str:
        """A string value's text, "" without."""
        value = self.value(path, name)
        return "" if value is None else value.text

    def number(self, path: Key, name: str) -> int | None:
        """A DWORD's number, None without."""
        value = self.value(path, name)
        return None if value is None else value.number

    def set(self, path: Key, name: str, value: Value, what: str) -> bool:
        """Give a value; keys that are missing are made. Returns whether it was another one."""
        old = self.value(path, name)
        if old == value:
            return False
        request = {"op": "set", "path": list(path), "name": name, "type": value.type}
        self._changed({**request, "data": value.data.hex()})
        self._wanted[_folded(path), name.casefold()] = value
        self._note(path, name, what, old, value)
        return True

    def remove_value(self, path: Key, name: str, what: str) -> bool:
        """Remove a value. Returns whether it was there."""
        old = self.value(path, name)
        if old is None:
            return False
        self._changed({"op": "remove_value", "path": list(path), "name": name})
        self._wanted[_folded(path), name.casefold()] = None
        self._note(path, name, what, old, None)
        return True

    def remove_key(self, path: Key, what: str) -> bool:
        """Remove a key with all below it. Returns whether it was there."""
        if not self.has(path):
            return False
        values = ", ".join(f"{n} = {v.shown()}" for n, v in sorted(self.values(path).items()))
        self._changed({"op": "remove_key", "path": list(path)})
        folded = _folded(path)
        for key in [key for key in self._wanted if key[0][: len(folded)] == folded]:
            del self._wanted[key]
        self.records.append(Record(what, _short(f"{shown_key(path)}: {values}"), ""))
        return True

    def save(self) -> bytes:
        """The hive with its changes; from then on it can only be read.

        It is opened anew and every change is looked up in it before it is given out.

        Raises:
            GuestError: A change is not in it.
        """
        data = self._ask({"op": "save"})[1]
        for (path, name), value in self._wanted.items():
            if self.value(path, name) != value:
                raise GuestError(
                    f"{self.name}: {shown_key(path)}\\{name} is not as it was set",
                    "libhivex wrote another hive than it should have: report this",
                )
        return data

    def _changed(self, request: dict[str, Any]) -> None:
        if self._ask(request)[0].missing:
            raise GuestError(f"{self.name}: {shown_key(request['path'])} went away")

    def _note(self, path: Key, name: str, what: str, old: Value | None, new: Value | None) -> None:
        place = f"{shown_key(path)}\\{name or '(default)'}"
        before = "" if old is None else f"{place} = {old.shown()}"
        after = "" if new is None else f"{place} = {new.shown()}"
        self.records.append(Record(what, before, after))

    def _value(self, kind: int, data: str) -> Value:
        try:
            return Value(kind, bytes.fromhex(data))
        except ValueError as error:
            raise self._broken("its child answers nonsense") from error

    def _ask(self, request: dict[str, Any], body: bytes = b"") -> tuple[_Reply, bytes]:
        """One question, one answer."""
        try:
            header, out = self._cage.call(msgspec.json.encode(request), body, self._seconds)
            reply = msgspec.json.decode(header, type=_Reply)
        except msgspec.MsgspecError as error:
            raise self._broken("its child answers nonsense") from error
        if reply.library:
            raise ToolMissingError(
                f"libhivex cannot be used here: {reply.error}",
                "apt-get install --no-install-recommends libhivex0",
            )
        if reply.error:
            raise self._broken(reply.error)
        return reply, out

    def _broken(self, why: str) -> GuestError:
        return GuestError(
            f"the registry hive {self.name} cannot be worked on: {why}",
            "it may be damaged: take an earlier point",
        )


def shown_key(path: Key) -> str:
    """A key's path as people write it."""
    return "\\".join(path)


def _folded(path: Key) -> tuple[str, ...]:
    return tuple(name.casefold() for name in path)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "..."


def _decoded(data: bytes) -> str:
    return data[: len(data) & ~1].decode("utf-16-le", "replace")


def _encoded(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")
