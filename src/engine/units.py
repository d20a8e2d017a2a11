"""Sizes, durations and moments as people write them, and back; text that may be printed.

Sizes are bytes, or a number with K, M, G or T (powers of 1024). Durations are
a number with ms, s, m, h or d. Moments are ISO 8601; without an offset they are
local time.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from .errors import UsageError

SECTOR_BYTES = 512

_SIZE = re.compile(r"([0-9]{1,30})\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SIZE_FACTOR = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DURATION = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(ms|s|m|h|d)")
_DURATION_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_MAX = (1 << 63) - 1  # what a file can have
_DURATION_SECONDS_MAX = 366 * 86400.0
_YEARS = range(1970, 9000)  # far from where calendars end, whatever the time zone


def _shown(text: str) -> str:
    """The text in quotes, cut where it is endless."""
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def parse_size(text: str) -> int:
    """Bytes of "512", "64K", "40G", "1T" (also KiB, GB ...: always powers of 1024).

    Raises:
        UsageError: It is not a size, or more than a file can have.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{_shown(text)} is not a size", "write bytes, or a number with K, M, G or T, as in 40G"
        )
    size_bytes = int(match[1]) * _SIZE_FACTOR[match[2].upper()]
    if size_bytes > _SIZE_MAX:
        raise UsageError(f"the size {_shown(text)} is more than 8 EiB", "give a smaller one")
    return size_bytes


def parse_duration(text: str) -> float:
    """Seconds of "500ms", "2s", "5m", "4h", "7d".

    Raises:
        UsageError: It is not a duration, or longer than a year.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{_shown(text)} is not a duration", "write a number with ms, s, m, h or d, as in 2s"
        )
    seconds = float(match[1]) * _DURATION_SECONDS[match[2]]
    if seconds > _DURATION_SECONDS_MAX:
        raise UsageError(f"the duration {_shown(text)} is more than a year", "give a shorter one")
    return seconds


def parse_time(text: str) -> int:
    """Nanoseconds since 1970 UTC of an ISO 8601 moment.

    Raises:
        UsageError: It is not a moment, or not one from 1970 to 8999.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(
            f"{_shown(text)} is not a moment", "write it as in 2026-11-22T10:15:00Z"
        ) from None
    if moment.year not in _YEARS:
        raise UsageError(
            f"no restore point can be of the year {moment.year}",
            f"give a moment from {_YEARS.start} to {_YEARS.stop - 1}",
        )
    whole = int(moment.replace(microsecond=0).timestamp())
    return whole * 1_000_000_000 + moment.microsecond * 1000


def format_time(time_ns: int) -> str:
    """ISO 8601 in UTC with microseconds, as in 2026-11-22T10:15:00.250000Z."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"


def format_size(size_bytes: int) -> str:
    """A size for people: exact where a unit divides it, else with one decimal."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            exact, rest = divmod(size_bytes, factor)
            return f"{exact} {unit}" if rest == 0 else f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def format_duration(seconds: float) -> str:
    """A duration for people: "12 ms", "1.25 s", "4 m 30 s", "4 h 0 m", "30 d 0 h"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} m"
    return f"{hours // 24} d {hours % 24} h"


def printable(text: str, keep: str = "") -> str:
    """Text from elsewhere as a message or terminal may print it: the rest is escaped.

    Args:
        keep: Characters that stay as they are all the same.
    """
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
