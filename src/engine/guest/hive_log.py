"""What a registry hive holds once its transaction logs are applied.

A point in time is crash-consistent, so this is the normal case: since Windows 8.1 changes go
to SYSTEM.LOG1 and SYSTEM.LOG2 at once, and to SYSTEM itself up to an hour later. Whoever
edits SYSTEM alone edits an old state, and marks it clean, so that Windows throws the rest
away. Here the logs are applied first, as Windows does when it loads the hive.

All bytes come from the guest. Cost: linear in them; a hive never grows past HIVE_BYTES_MAX.

Source: "Windows registry file format specification" by Maxim Suhanov, sections "Base block",
"Format of transaction log files", "Dirty state of a hive", "Multiple transaction log files".
Tests: tests/test_hive_log.py
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .._native import marvin32
from ..errors import DamagedError

HIVE_BYTES_MAX = 256 << 20
LOG_BYTES_MAX = 64 << 20
BASE_BYTES = 4096  # of the base block; the bins follow
_LOGGED_BASE_BYTES = 512  # of it that a log holds
_ENTRY_HEADER = struct.Struct("<4sIIIIIQQ")
_REFERENCE = struct.Struct("<II")
_NEW_LOG = 6
_OLD_LOGS = (1, 2)
_MASK = 0xFFFFFFFF


class Recovered(NamedTuple):
    """A hive as Windows would load it.

    Attributes:
        entries: Of the logs, that were applied; an old log counts as one.
        unclean: The hive was marked dirty, and no log could be applied: its bytes are the
            ones that were there.
    """

    data: bytes
    entries: int = 0
    unclean: bool = False


class _Base(NamedTuple):
    """The fields of a base block that recovery goes by."""

    first: int  # the primary sequence number
    second: int
    written: int
    type: int
    bins_bytes: int
    valid: bool


class _Entry(NamedTuple):
    sequence: int
    flags: int
    bins_bytes: int
    references: tuple[tuple[int, int], ...]
    pages: memoryview


class _Log(NamedTuple):
    base: _Base
    head: bytes
    data: memoryview


def is_dirty(head: bytes) -> bool:
    """Whether a hive that starts with these bytes has to be recovered before it is used.

    Args:
        head: At least its first 512 bytes.
    """
    base = _read_base(head)
    return not base.valid or base.first != base.second


def recover(data: bytes, logs: Sequence[bytes], name: str) -> Recovered:
    """Apply what the logs hold.

    Args:
        data: The hive's own file.
        logs: Those of .LOG1, .LOG2 and .LOG that are there, in any order.
        name: For messages.

    Raises:
        DamagedError: It is no hive, or its base block is lost and no log has a copy.
    """
    base = _read_base(data)
    if len(data) < BASE_BYTES + 4096 or data[:4] != b"regf":
        raise DamagedError(
            f"{name} is no registry hive: it starts with {data[:4]!r}, {len(data)} bytes long",
            "take an earlier point",
        )
    if base.valid and base.first == base.second:
        return Recovered(data)
    known = [log for log in map(_read_log, logs) if log is not None]
    new = [log for log in known if log.base.type == _NEW_LOG]
    if new:
        return _recover_new(bytearray(data), base, new, name)
    old = [log for log in known if log.base.type in _OLD_LOGS]
    return _recover_old(bytearray(data), base, old, name)


def checksum(head: bytes | bytearray) -> int:
    """Of a base block, over its first 508 bytes."""
    total = 0
    for (word,) in struct.iter_unpack("<I", head[:508]):
        total ^= word
    return {_MASK: _MASK - 1, 0: 1}.get(total, total)


def _read_base(head: bytes | memoryview) -> _Base:
    if len(head) < _LOGGED_BASE_BYTES:
        return _Base(0, 0, 0, 0, 0, False)
    head = bytes(head[:_LOGGED_BASE_BYTES])
    first, second, written, major, minor, kind, layout = struct.unpack_from("<IIQIIII", head, 4)
    bins_bytes, stored = *struct.unpack_from("<I", head, 40), *struct.unpack_from("<I", head, 508)
    valid = (
        head[:4] == b"regf"
        and stored == checksum(head)
        and (major, layout) == (1, 1)
        and 3 <= minor <= 6
        and bins_bytes % 4096 == 0
        and 0 < bins_bytes <= HIVE_BYTES_MAX - BASE_BYTES
    )
    return _Base(first, second, written, kind, bins_bytes, valid)


def _read_log(data: bytes) -> _Log | None:
    """A log's base block, when it is one that can be used."""
    if len(data) > LOG_BYTES_MAX:
        return None
    base = _read_base(data)
    if not base.valid or base.first != base.second:
        return None
    return _Log(base, data[:_LOGGED_BASE_BYTES], memoryview(data))


def _recover_new(hive: bytearray, base: _Base, logs: list[_Log], name: str) -> Recovered:
    """Entries of both logs in the order of their numbers, as long as none is missing."""
    logs.sort(key=lambda log: log.base.first)
    if not base.valid:
        logs = logs[-1:]
        hive[:_LOGGED_BASE_BYTES] = logs[0].head
    last: int | None = None
    applied = 0
    for log in logs:
        wanted = log.base.first if last is None else last + 1
        if log.base.first != wanted or (base.valid and wanted < base.second):
            continue
        for entry in _entries(log, wanted):
            if not _apply(hive, entry):
                break
            last = entry.sequence
            applied += 1
    if last is None:
        if not base.valid:
            raise _lost(name)
        return Recovered(bytes(hive), unclean=True)
    return Recovered(_finished(hive, last), applied)


def _entries(log: _Log, wanted: int) -> Iterator[_Entry]:
    """The log's entries from its first on, up to one that is torn or out of order."""
    place = _LOGGED_BASE_BYTES
    while place + _ENTRY_HEADER.size <= len(log.data):
        header = _ENTRY_HEADER.unpack_from(log.data, place)
        signature, size, flags, sequence, bins_bytes, count, hash_1, hash_2 = header
        pages_at = _ENTRY_HEADER.size + count * _REFERENCE.size
        if (
            signature != b"HvLE"
            or sequence != wanted
            or size % 512
            or pages_at > size
            or place + size > len(log.data)
            or bins_bytes % 4096
            or not 0 < bins_bytes <= HIVE_BYTES_MAX - BASE_BYTES
        ):
            return
        entry = log.data[place : place + size]
        if marvin32(entry[:32]) != hash_2 or marvin32(entry[40:]) != hash_1:
            return
        references = tuple(_REFERENCE.iter_unpack(entry[_ENTRY_HEADER.size : pages_at]))
        yield _Entry(sequence, flags, bins_bytes, references, entry[pages_at:])
        place += size
        wanted += 1


def _apply(hive: bytearray, entry: _Entry) -> bool:
    """Put an entry's pages in their places, all or none. Returns whether they fit."""
    total = sum(size for _, size in entry.references)
    if total > len(entry.pages):
        return False
    if any(offset + size > entry.bins_bytes for offset, size in entry.references):
        return False
    _resize(hive, entry.bins_bytes)
    taken = 0
    for offset, size in entry.references:
        at = BASE_BYTES + offset
        hive[at : at + size] = entry.pages[taken : taken + size]
        taken += size
    flags = int.from_bytes(hive[144:148], "little") & ~1 | entry.flags & 1
    hive[144:148] = flags.to_bytes(4, "little")
    return True


def _resize(hive: bytearray, bins_bytes: int) -> None:
    """Set how long the bins are. The file grows to that; what is behind them stays."""
    hive[40:44] = bins_bytes.to_bytes(4, "little")
    wanted = BASE_BYTES + bins_bytes
    if len(hive) < wanted:
        hive.extend(bytes(wanted - len(hive)))


def _recover_old(hive: bytearray, base: _Base, logs: list[_Log], name: str) -> Recovered:
    """The log before Windows 8.1: one bit for each 512 bytes, then those that are set."""
    written = base.written if base.valid else int.from_bytes(hive[4116:4124], "little")
    matching = [log for log in logs if log.base.written == written]
    if not matching:
        if not base.valid:
            raise _lost(name)
        return Recovered(bytes(hive), unclean=True)
    log = max(matching, key=lambda log: log.base.first)
    if not base.valid:
        hive[:_LOGGED_BASE_BYTES] = log.head
    if not _apply_old(hive, log):
        if not base.valid:
            raise _lost(name)
        return Recovered(bytes(hive), unclean=True)
    return Recovered(_finished(hive, log.base.first), 1)


def _apply_old(hive: bytearray, log: _Log) -> bool:
    vector_bytes = log.base.bins_bytes // 512 // 8
    vector = log.data[516 : 516 + vector_bytes]
    if bytes(log.data[512:516]) != b"DIRT" or len(vector) < vector_bytes:
        return False
    place = 512 + (4 + vector_bytes + 511) // 512 * 512
    dirty = [
        number * 8 + bit
        for number, byte in enumerate(vector)
        if byte
        for bit in range(8)
        if byte >> bit & 1
    ]
    if not dirty or place + len(dirty) * 512 > len(log.data):
        return False
    _resize(hive, log.base.bins_bytes)
    for page in dirty:
        at = BASE_BYTES + page * 512
        hive[at : at + 512] = log.data[place : place + 512]
        place += 512
    return True


def _finished(hive: bytearray, sequence: int) -> bytes:
    """The hive, marked clean, with a number that every applied entry is below."""
    number = ((sequence + 1) & _MASK).to_bytes(4, "little")
    hive[4:12] = number + number
    hive[28:32] = bytes(4)
    hive[508:512] = checksum(hive).to_bytes(4, "little")
    return bytes(hive)


def _lost(name: str) -> DamagedError:
    return DamagedError(
        f"the base block of {name} is damaged, and its logs hold no copy that can be applied",
        "take an earlier point",
    )
