"""Structs that several threads may read at once."""

from __future__ import annotations

from typing import TypeVar

import msgspec

Kind = TypeVar("Kind", bound=type[msgspec.Struct])


def prepared(kind: Kind) -> Kind:
    """A class whose data is decoded or converted: msgspec works out its fields now.

    It would do so at the first use, and two threads at that crash the process (seen with
    msgspec 0.22). Imports have a lock.
    """
    msgspec.json.Decoder(kind)
    return kind
