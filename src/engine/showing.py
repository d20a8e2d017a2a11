"""What `replica show` says: a replica's disks, what it keeps, how late it is, its operations."""

from __future__ import annotations

import time

import msgspec

from . import control, rpo, trial_places
from ._native import Dir
from .errors import Error, NotFoundError
from .journals import Journals
from .manifest import CONTROL_NAME, REHEARSAL_NAME, Manifest, Trial
from .points import Points

ASK_SECONDS = 5.0
REHEARSAL_BYTES_MAX = 64 << 20
Facts = dict[str, object]


def show(directory: Dir, manifest: Manifest) -> Facts:
    """See Replica.show."""
    operation = manifest.operation
    points, used_bytes, error = _look(directory, manifest)
    status = _ask(directory)  # after the points: what it says of its lag is never the older
    return {
        "id": manifest.id,
        "name": manifest.name,
        "path": directory.path,
        "created": manifest.created,
        "state": manifest.state,
        "epoch": manifest.epoch,
        "held": manifest.held,
        "disks": _disks(directory, manifest),
        "recovered": None if manifest.recovered is None else _builtins(manifest.recovered),
        "retention": _retention(manifest, points, used_bytes, status),
        "rpo": None
        if points is None
        else rpo.report(
            manifest.rpo, manifest.gaps, points[-1] if points else None, status or None
        ),
        "error": error,
        "rehearsal": _rehearsal(directory),
        "tests": [_test(directory, trial) for trial in manifest.tests],
        "ingest": None
        if manifest.ingest is None
        else {**_builtins(manifest.ingest), "running": status is not None},
        "gaps": [_builtins(gap) for gap in manifest.gaps],
        "operation": None if operation is None else _builtins(operation),
        "history": [_builtins(ended) for ended in manifest.history],
    }


def _rehearsal(directory: Dir) -> Facts | None:
    """What the newest one came to, without the changes: how many they were."""
    try:
        found = msgspec.json.decode(directory.read(REHEARSAL_NAME, REHEARSAL_BYTES_MAX))
    except NotFoundError:
        return None
    except (Error, msgspec.DecodeError, UnicodeDecodeError) as error:
        return {"ok": False, "error": f"{directory.path}/{REHEARSAL_NAME}: {error}"}
    if not isinstance(found, dict):
        return {"ok": False, "error": f"{directory.path}/{REHEARSAL_NAME} is no rehearsal"}
    converted = found.get("converted")
    if isinstance(converted, dict):
        found["converted"] = {**converted, "changes": len(converted.get("changes", []))}
    return found


def _test(directory: Dir, trial: Trial) -> Facts:
    """A test failover. lost: its disks went with their process; it can only be ended."""
    served = trial_places.load_facts(directory, trial.id)
    lost = not trial.files and not trial_places.is_served(directory, trial.id)
    used = trial_places.is_used(directory, trial.id)
    return {
        **_builtins(trial),
        "lost": lost and not used,
        "socket": None if served is None or trial.files else served.socket,
        "written_bytes": trial_places.written_bytes(directory, trial.id),
    }


def _disks(directory: Dir, manifest: Manifest) -> list[Facts]:
    interims = manifest.recovered.interims if manifest.recovered else {}

    def place(name: str | None) -> str | None:
        return f"{directory.path}/{name}" if name else None

    return [
        {
            "name": disk.name,
            "size_bytes": disk.size_bytes,
            "base": place(disk.base),
            "journal": place(disk.journal),
            "grain_bytes": disk.grain_bytes,
            "interim": place(interims.get(disk.name)),
        }
        for disk in manifest.disks
    ]


def _ask(directory: Dir) -> Facts | None:
    """What a running ingest says; None: none runs."""
    try:
        return control.ask(f"{directory.path}/{CONTROL_NAME}", "status", ASK_SECONDS)
    except control.NotRunningError:
        return None
    except Error:
        return {}  # it answered, if only to complain


def _look(directory: Dir, manifest: Manifest) -> tuple[Points | None, int, str | None]:
    """Points, bytes that the logs use, and why they cannot be seen."""
    if any(disk.journal is None for disk in manifest.disks):
        return None, 0, None
    try:
        with Journals(directory, manifest, writable=False) as journals:
            points = journals.points(manifest.gaps, manifest.name, manifest.notes)
            return points, journals.used_bytes, None
    except Error as error:
        return None, 0, error.message


def _retention(
    manifest: Manifest, points: Points | None, used_bytes: int, status: Facts | None
) -> Facts:
    oldest = points[0] if points else None
    known = (status or {}).get("retention")
    live = known if isinstance(known, dict) else {}
    return {
        **_builtins(manifest.retention),
        "kept_seconds": None
        if oldest is None
        else max(0, time.time_ns() - oldest.time_ns) / 1e9,
        "oldest": None if oldest is None else {"id": oldest.id, "time": oldest.time},
        "used_bytes": used_bytes,
        "long_term": len(manifest.frozen),
        "destaging": live.get("destaging"),
        "warnings": live.get("warnings", manifest.warnings),
    }


def _builtins(value: object) -> Facts:
    made: Facts = msgspec.to_builtins(value)
    return made
