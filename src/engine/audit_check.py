"""Whether audit.jsonl is what was written: no line altered, removed, added or moved.

A line is right when its hash is that of its bytes, its `prev` the hash of the line before
it, and its `seq` one more; the last line must be the one that the manifest knows. Somebody
who can write the manifest can make all of that anew: against that, keep what `check` returned
(lines and hash) elsewhere, and ask for it again as `expected`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from . import audit
from ._native import Dir
from .audit import FIRST, Entry
from .errors import NotFoundError
from .records import AuditHead

PROBLEMS_MAX = 50
_HASHED = re.compile(rb'(.*),"hash":"([0-9a-f]{64})"\}\n', re.DOTALL)


class Verdict(NamedTuple):
    """What a check found. lines, hash: how many lines there are, and the last one's hash."""

    lines: int
    hash: str
    problems: Sequence[str]


class Line(NamedTuple):
    entry: Entry
    hash: str


def parse(line: bytes) -> Line | None:
    """A line of the file; None: it is not as it was written."""
    match = _HASHED.fullmatch(line)
    if match is None or hashlib.sha256(match[1]).hexdigest().encode() != match[2]:
        return None
    try:
        return Line(msgspec.json.decode(match[1] + b"}", type=Entry), match[2].decode())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def check(
    directory: Dir,
    head: AuditHead | None,
    *,
    expected: tuple[int, str] | None = None,
    name: str = audit.FILE_NAME,
) -> Verdict:
    """Read all of the file. head: what the manifest knows; None: of nothing.

    Args:
        expected: Number and hash of a line that must be among them.

    Raises:
        StorageError: It cannot be read.
    """
    walk = _Walk(expected)
    try:
        for number, line in enumerate(audit.lines(directory, name), 1):
            walk.take(number, line)
    except NotFoundError:
        if head is not None and head.lines:
            walk.say(f"there is no {name}, and the manifest knows of {head.lines} lines")
            return walk.verdict()
    if head is not None:
        walk.end(head)
    if expected is not None and not walk.met:
        walk.say(f"line {expected[0]} with the hash {expected[1]} is not among them")
    return walk.verdict()


class _Walk:
    def __init__(self, expected: tuple[int, str] | None) -> None:
        self._expected = expected
        self._problems: list[str] = []
        self._seq, self._hash = 0, FIRST
        self._all_known = True  # the last line is one that can be trusted
        self.met = False

    def say(self, problem: str) -> None:
        if len(self._problems) < PROBLEMS_MAX:
            self._problems.append(problem)

    def verdict(self) -> Verdict:
        return Verdict(self._seq, self._hash, self._problems)

    def take(self, number: int, line: bytes) -> None:
        found = parse(line)
        if found is None:
            self.say(f"line {number} of the file is not as it was written")
            self._seq += 1
            self._all_known = False
            return
        seq = found.entry.seq
        if seq <= self._seq:
            self.say(f"line {number} of the file is entry {seq}, which belongs further up")
        elif seq > self._seq + 1:
            missing = f"entry {seq - 1} is" if seq == self._seq + 2 else (
                f"entries {self._seq + 1} to {seq - 1} are"
            )
            self.say(f"{missing} missing before line {number} of the file")
        elif self._all_known and found.entry.prev != self._hash:
            self.say(f"line {number} of the file does not follow from the line before it")
        self._seq, self._hash, self._all_known = seq, found.hash, True
        self.met = self.met or self._expected == (seq, found.hash)

    def end(self, head: AuditHead) -> None:
        if (self._seq, self._hash) == (head.lines, head.hash) and self._all_known:
            return
        missing = head.lines - self._seq
        if missing > 0:
            kept = min(missing, len(head.pending))
            self.say(
                f"the last {missing} entries are missing"
                + (f"; the manifest has {kept} of them: rollpoint resume writes them again"
                   if kept else "")
            )  # fmt: skip
        elif missing < 0:
            self.say(f"there are {-missing} entries more than the manifest knows of")
        else:
            self.say(f"the last entry is not the one that the manifest knows, {head.lines}")
