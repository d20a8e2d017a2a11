"""What a probe says, and how it writes ids and labels."""

from __future__ import annotations

from typing import NamedTuple


class Seen(NamedTuple):
    """What was found; fields as in base.Volume."""

    kind: str
    uuid: str = ""
    label: str = ""
    problem: str = ""
    note: str = ""


def hyphened(data: bytes) -> str:
    """16 bytes as a UUID is written; "" without them."""
    digits = data.hex()
    if len(digits) != 32:
        return ""
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def text(data: bytes) -> str:
    """A label: up to its first NUL, without spaces behind it."""
    return data.split(b"\0", 1)[0].decode("utf-8", "replace").rstrip()
