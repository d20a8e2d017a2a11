"""Parts of a manifest: how long restore points are kept, what was said about them, and
which are kept for long. See manifest.py.

Bytes: docs/formats.md, "Manifest" and "Long-term restore points".
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Retention(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How long restore points are kept, and what that may cost.

    limit_bytes: of all logs of the replica together; 0: none. at_limit: what gives way
    when they would grow over it, the oldest points or the ingest. every_seconds and
    keep_seconds: of long-term points; 0: none are made.
    """

    window_seconds: float = 14400.0
    limit_bytes: int = 0
    at_limit: Literal["shorten", "refuse"] = "shorten"
    every_seconds: float = 0.0
    keep_seconds: float = 0.0


class PointNote(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What was said about a restore point after it was made. A lock holds until then."""

    id: int
    name: str = ""
    pinned: bool = False
    locked_until: str | None = None


class Frozen(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A long-term restore point: ordinary VMDK chains, one a disk.

    links: disk name -> the descriptor that shows the disk at the point. digests: disk
    name -> what that link's own ranges hashed to when it was frozen; a base has none.
    """

    id: int
    time: str
    kind: str
    label: str
    links: dict[str, str]
    digests: dict[str, str] = {}


class Freezing(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A long-term point that is being made: its record, and the delta disks to come on top."""

    point: Frozen
    tops: dict[str, str]  # disk name -> descriptor of the new delta disk


class Merging(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A long-term point that expired: two links of each chain become one.

    away: disk name -> the link above, which shows the next point, or what is newest. into:
    disk name -> the link that showed the expired point, which gets all of the other.
    cids: disk name -> the content id that the lower one gets. stage: what is under way:
    "data" moves, then "links" lead past `away`, then its "files" are removed. error, tried:
    why the last try failed, and when.
    """

    point: int
    away: dict[str, str]
    into: dict[str, str]
    cids: dict[str, int] = {}
    stage: Literal["data", "links", "files"] = "data"
    error: str = ""
    tried: str | None = None
