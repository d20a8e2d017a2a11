"""What the steps of a scrub share: the damage they find, and the record of how far they are.

The record is `.verify.json` beside the manifest: it is there while a scrub has not ended,
and only then. One that is not whole is none: the scrub begins anew.

Bytes: docs/formats.md, "Progress of a scrub".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import xxhash

from . import digests
from ._native import Dir
from .digests import BaseDigests, Region
from .errors import Error
from .journal import OpenJournal, journal_names, open_journal
from .manifest import DiskEntry, Manifest
from .points import now_text
from .structs import prepared

FILE_NAME = ".verify.json"
SAVE_SECONDS = 5.0

# Called with a disk's name, bytes read and bytes in all; False stops
Progress = Callable[[str, int, int], bool]
# As the native scrub finds it: segment, position, guest offset, length, message
Row = tuple[int | None, int, int | None, int, str]


class Damage(msgspec.Struct, kw_only=True):
    """One thing that is wrong. guest_offset and length are bytes of the disk; without a
    guest offset, length is of the file. points: first and last restore point that may be
    harmed; end: the newest state as well.
    """

    where: str  # "journal", "base", "link", "chain", "digests"
    message: str
    file: str | None = None
    position: int | None = None
    guest_offset: int | None = None
    length: int | None = None
    segment: int | None = None  # of the log
    region: int | None = None  # of the base
    digest: str | None = None  # that it should have, 16 hex digits
    points: tuple[int, int] | None = None
    end: bool = False
    mended: bool = False


class LogNotes(msgspec.Struct, kw_only=True):
    """How far the log of a disk was read."""

    id: str
    next_segment: int = 0
    chain: str = "0"
    total_bytes: int = 0
    found: list[Row] = []


class BaseNotes(msgspec.Struct, kw_only=True):
    """How far a base was read: these are its first regions."""

    content: str
    regions: list[Region] = []


class DiskNotes(msgspec.Struct, kw_only=True):
    log: LogNotes | None = None
    base: BaseNotes | None = None
    fresh: BaseDigests | None = None
    links: list[str] = []  # frozen ones that are as they were


@prepared
class State(msgspec.Struct, kw_only=True):
    """All of .verify.json."""

    replica: str
    started: str
    disks: dict[str, DiskNotes] = {}


class Notes:
    """The record of how far a scrub is."""

    def __init__(self, directory: Dir, replica: str, restart: bool) -> None:
        self._directory = directory
        self._saved = time.monotonic()
        self.state = State(replica=replica, started=now_text())
        found = None if restart else self._load()
        self.resumed = found is not None and found.replica == replica
        if found is not None and self.resumed:
            self.state = found

    def _load(self) -> State | None:
        """What an earlier scrub left; one that is not whole is none."""
        with contextlib.suppress(Error, msgspec.DecodeError, UnicodeDecodeError):
            data = self._directory.read(FILE_NAME, digests.LIMIT_BYTES)
            checksum, _, body = data.partition(b"\n")
            if checksum == xxhash.xxh3_64_hexdigest(body).encode():
                return msgspec.json.decode(body, type=State)
        return None

    def disk(self, name: str) -> DiskNotes:
        return self.state.disks.setdefault(name, DiskNotes())

    def save(self, now: bool = False) -> None:
        """Note how far it is, every few seconds. Where it cannot be noted, it goes on."""
        if now or time.monotonic() - self._saved >= SAVE_SECONDS:
            body = msgspec.json.encode(self.state)
            with contextlib.suppress(Error):
                head = xxhash.xxh3_64_hexdigest(body).encode()
                self._directory.replace(FILE_NAME, head + b"\n" + body)
            self._saved = time.monotonic()

    def end(self) -> None:
        """All was read."""
        with contextlib.suppress(Error):
            if self._directory.exists(FILE_NAME):
                self._directory.unlink(FILE_NAME)
                self._directory.sync()


class Place(NamedTuple):
    """What the steps of one disk share."""

    directory: Dir
    manifest: Manifest
    entry: DiskEntry
    notes: Notes
    progress: Progress | None

    def path(self, name: str) -> str:
        return f"{self.directory.path}/{name}"

    def log(self) -> OpenJournal:
        names = journal_names(self.entry.name)
        return open_journal(self.path(names.log), io=self.directory.io)

    def points(self) -> tuple[int, int] | None:
        """The oldest and the newest restore point, long-term ones included."""
        ids = [point.id for point in self.manifest.frozen]
        if self.entry.journal is not None:
            with contextlib.suppress(Error), self.log() as journal:
                ids += [row[0] for row in journal.native.points()]
        return (min(ids), max(ids)) if ids else None

    def tell(self, done: int, total: int) -> bool:
        self.notes.save()
        return self.progress is None or self.progress(self.entry.name, done, total)


def id_of(journal: OpenJournal) -> str:
    """The id of a log, as hex digits."""
    return bytes.hex(journal.native.info()["id"])  # type: ignore[arg-type]
