"""What monitoring wants to know of replicas; metrics.py makes numbers of it.

Looking takes no lock and writes nothing. A running ingest is asked what it has in memory;
one that does not answer soon is done without. A replica that cannot be read is said to be
so, and the others stay.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from . import _native, audit, control, rpo
from . import manifest as manifests
from .errors import Error, NotFoundError
from .journals import Journals
from .manifest import Manifest
from .units import parse_time

ASK_SECONDS = 1.0  # of a running ingest
LOOK_SECONDS = 8.0  # of a scrape: Prometheus gives up after 10
READERS = 8  # replicas that are looked at together
KINDS_MAX = 200  # of operations and outcomes: a forged audit.jsonl makes no more series
TEXT_MAX = 64
REHEARSAL_BYTES_MAX = 64 << 20
CHUNK_BYTES = 1 << 20
OTHER = "other"

Facts = dict[str, Any]


class _Line(msgspec.Struct):
    """What is counted of a line of audit.jsonl."""

    seq: int
    event: str
    kind: str = ""
    result: str = ""


class _Rehearsed(msgspec.Struct):
    """What is told of the newest rehearsal."""

    time: str
    ok: bool = False
    seconds: float = 0.0


class Outcomes:
    """How operations of one replica ended, as its audit says; each line is read once."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self._of = ""
        self._offset = 0
        self._seq = 0

    def look(self, directory: _native.Dir, manifest: Manifest) -> None:
        """Take what is new.

        Raises:
            Error: The file cannot be read. What was counted stays.
        """
        if self._of != manifest.id:
            self.counts, self._of, self._offset, self._seq = {}, manifest.id, 0, 0
        with contextlib.suppress(NotFoundError):
            self._read(directory)
        for line in manifest.audit.pending if manifest.audit else ():
            self._take(line.encode())  # the file may lack them

    def _read(self, directory: _native.Dir) -> None:
        file = directory.open(audit.FILE_NAME)
        try:
            size_bytes = file.size_bytes
            if size_bytes < self._offset:
                self._offset = 0  # somebody cut it; what was counted is not counted again
            while self._offset < size_bytes:
                piece = file.pread(min(CHUNK_BYTES, size_bytes - self._offset), self._offset)
                end = piece.rfind(b"\n") + 1
                if not end and len(piece) < CHUNK_BYTES:
                    return  # a line that is being written
                for line in piece[:end].splitlines():
                    self._take(line)
                self._offset += end or len(piece)
        finally:
            file.close()

    def _take(self, data: bytes) -> None:
        try:
            line = msgspec.json.decode(data, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # `rollpoint audit verify` says what is wrong with it
        if line.seq <= self._seq:
            return
        self._seq = line.seq
        if line.event == "outcome":
            key = line.kind[:TEXT_MAX], line.result[:TEXT_MAX]
            if key not in self.counts and len(self.counts) >= KINDS_MAX:
                key = OTHER, OTHER
            self.counts[key] = self.counts.get(key, 0) + 1


def look(path: str, outcomes: Outcomes) -> Facts:
    """Everything about one replica. Takes no lock, and raises nothing that a replica can be.

    Returns:
        "name", "directory", "error" ("" where all could be read), and what could be.
    """
    facts: Facts = {"name": os.path.basename(path), "directory": path, "error": ""}
    try:
        directory = _native.Io.posix().open_dir(path)
    except Error as error:
        return {**facts, "error": error.message}
    try:
        manifest = manifests.load(directory)
        facts |= _of_manifest(manifest)
        parts: tuple[Callable[[], Facts], ...] = (
            lambda: _of_ingest(directory, manifest),
            lambda: _of_rehearsal(directory),
            lambda: _of_audit(directory, manifest, outcomes),
        )
        for part in parts:
            try:
                facts |= part()
            except Error as error:
                facts["error"] = facts["error"] or error.message
    except Error as error:
        facts["error"] = error.message
    finally:
        directory.close()
    return facts


def _of_manifest(manifest: Manifest) -> Facts:
    operation = manifest.operation
    return {
        "name": manifest.name,
        "id": manifest.id,
        "state": manifest.state,
        "held": manifest.held,
        "epoch": manifest.epoch,
        "open": None if operation is None else operation.kind,
        "tests": sum(trial.state == "running" for trial in manifest.tests),
        "long_term": len(manifest.frozen),
        "asked_seconds": manifest.retention.window_seconds,
        "limit_bytes": manifest.retention.limit_bytes,
        "warnings": len(manifest.warnings),
    }


def _ask(directory: _native.Dir) -> Facts | None:
    """What a running ingest says. {}: it did not answer. None: none runs."""
    place = f"{directory.path}/{manifests.CONTROL_NAME}"
    try:
        return control.ask(place, "status", ASK_SECONDS)
    except control.NotRunningError:
        return None
    except (Error, OSError, ValueError, KeyError):
        return {}


def _of_ingest(directory: _native.Dir, manifest: Manifest) -> Facts:
    """Of the ingest, and of the journals, which it may be changing under our eyes."""
    status = _ask(directory)
    facts: Facts = {"ingest": status is not None, "answers": bool(status)}
    if any(disk.journal is None for disk in manifest.disks):
        return facts
    try:
        return facts | _of_journals(directory, manifest, status)
    except Error:
        if status is None:
            raise
    return facts | _of_journals(directory, manifest, status)


def _of_journals(directory: _native.Dir, manifest: Manifest, status: Facts | None) -> Facts:
    with Journals(directory, manifest, writable=False) as journals:
        points = journals.points(manifest.gaps, manifest.name, manifest.notes)
        facts: Facts = {"used_bytes": journals.used_bytes, "points": len(points)}
    newest = points.latest if len(points) else None
    late: Any = rpo.report(manifest.rpo, manifest.gaps, newest, status or None)
    retention = (status or {}).get("retention") or {}
    kept = max(0, time.time_ns() - points[0].time_ns) / 1e9 if len(points) else None
    return facts | {
        "rpo": late,
        "kept_seconds": kept,
        "possible_seconds": retention.get("possible_seconds"),
        "warnings": len(retention.get("warnings", manifest.warnings)),
    }


def _of_audit(directory: _native.Dir, manifest: Manifest, outcomes: Outcomes) -> Facts:
    try:
        outcomes.look(directory, manifest)
    finally:
        facts = {"operations": dict(outcomes.counts)}
    return facts


def _of_rehearsal(directory: _native.Dir) -> Facts:
    try:
        data = directory.read(manifests.REHEARSAL_NAME, REHEARSAL_BYTES_MAX)
        found = msgspec.json.decode(data, type=_Rehearsed)
        return {"rehearsal": found, "rehearsed": parse_time(found.time) / 1e9}
    except (Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}  # none, or one that is shown as what it is by replica show


def find(paths: Sequence[str]) -> list[str]:
    """The replicas that are meant: each path, or those directly under it. Once each.

    What is no replica any more is listed all the same, and cannot be read then.
    """
    found: dict[str, None] = {}
    for path in paths:
        place = os.path.realpath(path)
        if os.path.lexists(os.path.join(place, manifests.FILE_NAME)):
            found[place] = None
            continue
        try:
            below = sorted(entry.path for entry in os.scandir(place) if entry.is_dir())
        except OSError:
            below = []
        replicas = [p for p in below if os.path.lexists(os.path.join(p, manifests.FILE_NAME))]
        found |= dict.fromkeys(replicas or [place])
    return list(found)


class Watch:
    """Looks at replicas, again and again; at one time only one thread calls it.

    Args:
        paths: Replicas, and directories of replicas: those there are at each scrape.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = [manifests.place_of(path) for path in paths]
        self._outcomes: dict[str, Outcomes] = {}
        self._busy: set[str] = set()  # looked at since an earlier scrape: its storage hangs

    def look(self) -> list[Facts]:
        """Facts of each replica, in the order of their directories."""
        places = find(self._paths)
        known = self._outcomes
        self._outcomes = {place: known.get(place) or Outcomes() for place in places}
        work: queue.SimpleQueue[str] = queue.SimpleQueue()
        done: queue.SimpleQueue[Facts] = queue.SimpleQueue()
        waiting = {place for place in places if place not in self._busy}
        for place in sorted(waiting):
            work.put(place)
        until = time.monotonic() + LOOK_SECONDS
        for _ in range(min(READERS, len(waiting))):
            threading.Thread(target=self._read, args=(work, done, until), daemon=True).start()
        facts: dict[str, Facts] = {}
        while waiting:
            try:
                row = done.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            facts[row["directory"]] = row
            waiting.discard(row["directory"])
        late = {"error": f"its storage did not answer in {LOOK_SECONDS:g} s"}
        return [
            facts.get(place) or {"name": os.path.basename(place), "directory": place, **late}
            for place in places
        ]

    def _read(
        self, work: queue.SimpleQueue[str], done: queue.SimpleQueue[Facts], until: float
    ) -> None:
        while time.monotonic() < until:
            try:
                place = work.get_nowait()
            except queue.Empty:
                return
            self._busy.add(place)
            try:
                done.put(look(place, self._outcomes.get(place) or Outcomes()))
            except Exception as error:  # one replica never takes the others away
                says = f"{type(error).__name__}: {error}"
                done.put({"name": os.path.basename(place), "directory": place, "error": says})
            finally:
                self._busy.discard(place)
