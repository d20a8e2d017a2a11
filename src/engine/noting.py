"""What is said about a restore point after it was made: its name, a pin, a lock.

A named point can be asked for by that name. A pinned one is kept until it is unpinned,
a locked one until a date, which can be put off and never be brought forward. Both stop
the horizon, and the expiry of long-term points.
"""

from __future__ import annotations

import re
import time

from . import audit
from .errors import ExistsError, NotFoundError, StateError, UsageError
from .manifest import Manifest, PointNote
from .points import Point
from .replica import Replica
from .retention import kept_now, locked_notes
from .units import format_time, parse_time

_NAME = re.compile(r"[^\W\d][\w.+-]{0,99}")
_TAKEN = ("latest", "end", "first")


def check_name(name: str) -> str:
    """The name, when it can name a restore point.

    Raises:
        UsageError: It could be taken for an id, a moment or "latest", or is too long.
    """
    if _NAME.fullmatch(name) is None or name.lower() in _TAKEN:
        raise UsageError(
            f"{name[:60]!r} cannot name a restore point",
            "use up to 100 letters, digits, . _ + and -, starting with a letter or _",
        )
    return name


def set_name(replica: Replica, which: str, name: str) -> dict[str, object]:
    """Give a point a name, which no other point has; "" takes it away.

    Raises:
        NotFoundError, GapError, UsageError: There is no such point, or no such name.
        ExistsError: Another point has the name.
    """
    if name:
        check_name(name)
    with replica.locked():
        point = _kept(replica, which)
        for note in replica.manifest.notes:
            if name and note.name == name and note.id != point.id:
                raise ExistsError(
                    f"restore point {note.id} of {replica.name} has the name {name!r}",
                    "take another name, or take it away from that one with an empty name",
                )
        _note(replica.manifest, point).name = name
        _tell(replica, point, f"named {name!r}" if name else "has no name any more")
        _save(replica)
        return facts(replica, point)


def set_pin(replica: Replica, which: str, pinned: bool) -> dict[str, object]:
    """Keep a point until it is unpinned, or let it expire again.

    Raises:
        NotFoundError, GapError, UsageError: There is no such point.
    """
    with replica.locked():
        point = _kept(replica, which)
        _note(replica.manifest, point).pinned = pinned
        _tell(replica, point, "pinned" if pinned else "unpinned")
        _save(replica)
        return facts(replica, point)


def lock(replica: Replica, which: str, until: str) -> dict[str, object]:
    """Keep a point until a moment. It can be put off later, and not brought forward.

    Raises:
        NotFoundError, GapError, UsageError: There is no such point, or the moment has
            passed.
        StateError: It is locked for longer already.
    """
    until_ns = parse_time(until)
    if until_ns <= time.time_ns():
        raise UsageError(f"{format_time(until_ns)} has passed", "lock it until a later moment")
    with replica.locked():
        point = _kept(replica, which)
        note = _note(replica.manifest, point)
        if note.locked_until is not None and parse_time(note.locked_until) > until_ns:
            raise StateError(
                f"restore point {point.id} is locked until {note.locked_until}",
                "a lock can be lengthened, not shortened",
            )
        note.locked_until = format_time(until_ns)
        _tell(replica, point, f"locked until {note.locked_until}")
        _save(replica)
        return facts(replica, point)


def show(replica: Replica, which: str) -> dict[str, object]:
    """What is known of a point.

    Raises:
        NotFoundError, GapError, UsageError: There is no such point.
    """
    return facts(replica, replica.points.find(which))


def facts(replica: Replica, point: Point) -> dict[str, object]:
    """What `point show --json` prints."""
    manifest = replica.manifest
    note = find_note(manifest, point.id) or PointNote(id=point.id)
    return {
        **point.to_json(),
        "name": note.name,
        "pinned": note.pinned,
        "locked_until": note.locked_until,
        "locked": bool(locked_notes([note], time.time_ns())),
        "kept": point.id in kept_now(manifest, time.time_ns()),
        "long_term": manifest.long_term(point.id) is not None,
    }


def find_note(manifest: Manifest, number: int) -> PointNote | None:
    """What was said about the point of that id."""
    return next((note for note in manifest.notes if note.id == number), None)


def _kept(replica: Replica, which: str) -> Point:
    """The point, if it is not being given up this moment."""
    point = replica.points.find(which)
    manifest = replica.manifest
    if point.id < manifest.horizon and manifest.long_term(point.id) is None:
        raise NotFoundError(
            f"restore point {point.id} of {replica.name} is being given up",
            f"the oldest that is kept is {manifest.horizon}",
        )
    return point


def _note(manifest: Manifest, point: Point) -> PointNote:
    note = find_note(manifest, point.id)
    if note is None:
        note = PointNote(id=point.id)
        manifest.notes = [*manifest.notes, note]
    return note


def _tell(replica: Replica, point: Point, says: str) -> None:
    """Into the audit log: it decides what is kept."""
    audit.note(replica.manifest, "point", str(point.id), f"restore point {point.id}: {says}")


def _save(replica: Replica) -> None:
    """Save, without notes that say nothing."""
    manifest = replica.manifest
    manifest.notes = [
        note for note in manifest.notes if note.name or note.pinned or note.locked_until
    ]
    replica.save()
