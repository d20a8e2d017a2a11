"""Mending what is damaged in a disk's sparse extents, without guessing.

What could be read reads the same afterwards; so content ids stay, and children and
parents are unaffected. Parents are never written. The work is done by the native
side, extent by extent and all or nothing: see extent.h, and docs/formats.md for the
backup that is beside an extent while its tables are written.
"""

from __future__ import annotations

import os
from typing import TypedDict

from ._native import OPEN_WRITE, Dir, Io, Repair, repair_recover
from .check import BACKUP_SUFFIX, Finding, Part, check, missing_tracking, open_parts, read_top
from .errors import LockedError, ReadOnlyError, StateError, UsageError
from .extents import is_journal
from .link import Link, text_now
from .links import split_path
from .ova import split_ova

KEPT_SUFFIX = BACKUP_SUFFIX + "-kept"
STALE_SUFFIX = BACKUP_SUFFIX + "-stale"
_NAME_BYTES_MAX = 255


class Done(TypedDict):
    """One thing that was mended, and how much of it."""

    what: str
    file: str
    count: int
    message: str


class Outcome(TypedDict):
    """What a repair found, did, and left; kept: backups that stay, by their paths."""

    before: list[Finding]
    done: list[Done]
    after: list[Finding]
    kept: list[str]
    clean: bool


_WORDS = {
    "entries": "table entries taken from the redundant tables",
    "redundant_entries": "redundant table entries made what the primary ones are",
    "tables": "entries of a grain directory set right",
    "grains": "grains copied, which two entries pointed at",
    "freed_bytes": "bytes given back, which nothing pointed at",
    "free_sector": "free sector raised",
    "flag": "mark of an unclean end cleared",
}
_RECOVERED = {
    "undone": "repair taken back, which had been cut short",
    "unused": "backup removed of a repair that had changed nothing yet",
    "stale": "backup set aside of a repair before the disk was written again",
}


def repair(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    allow_root: str | None = None,
    io: Io | None = None,
    keep_backup: bool = False,
    trust_primary: bool = False,
) -> Outcome:
    """Mend what can be mended of a disk's own extents; its parents are only looked at.

    Asked again after a crash it takes back what was half done, and begins anew.

    Args:
        keep_backup: Keep the old tables of each extent as ``NAME.repair-kept``.
        trust_primary: Where a primary table says that there is no grain and the
            redundant one names one with data, in a disk that was closed cleanly: do
            what every reader does, and give the data up.

    Raises:
        LockedError: Somebody has the disk open for writing.
        ReadOnlyError: It lies in an OVA.
        StateError: It is a replica's journal.
        Error: As ``check``; or the storage refused. The disk then reads as before,
            and the repair can be asked for again.
    """
    path = os.fspath(path)
    if format != "raw" and split_ova(path) is not None:
        raise ReadOnlyError(f"{path} is a disk in an OVA, which is only read", "convert the disk")
    before = check(path, format=format, allow_root=allow_root, io=io)
    done: list[Done] = []
    kept: list[str] = []
    if any(finding["mendable"] or trust_primary for finding in before["findings"]):
        link, parts = _open_locked(path, format, allow_root, io)
        try:
            for part in parts:
                if part.may_be_mended:
                    done += _mend(part, trust_primary, keep_backup, kept)
            if missing_tracking(link) is not None:
                link.rewrite(drop_tracking=True)
                message = "change tracking file forgotten, which is not there"
                done.append(_done("tracking", link.path, 1, message))
        finally:
            link.close()
    after = check(path, format=format, allow_root=allow_root, io=io)
    return {
        "before": before["findings"],
        "done": done,
        "after": after["findings"],
        "kept": kept,
        "clean": after["clean"],
    }


def _done(what: str, file: str, count: int, message: str) -> Done:
    return {"what": what, "file": file, "count": count, "message": message}


def _open_locked(
    path: str, format: str | None, allow_root: str | None, io: Io | None
) -> tuple[Link, list[Part]]:
    """The top link, locked for writing, however damaged."""
    folder, name = split_path(path)
    dir = (io or Io.posix()).open_dir(folder)
    for _ in range(3):
        link = read_top(dir, name, OPEN_WRITE, format == "raw")
        try:
            parts = open_parts(link, allow_root, writable=True)
            for part in parts:
                if part.file is not None and is_journal(part.file):
                    raise StateError(
                        f"{part.file.path} is a replica's journal, which only the ingest writes",
                        "look at it with rollpoint replica verify",
                    )
            for file in link.files():
                file.lock(exclusive=True)
            # who had the lock before us may have changed the descriptor
            if link.descriptor is None or text_now(link) == link.text:
                return link, parts
        except BaseException:
            link.close()
            raise
        link.close()
    raise LockedError(f"{path} keeps changing", "stop the process that writes it")


def _mend(part: Part, trust_primary: bool, keep_backup: bool, kept: list[str]) -> list[Done]:
    file, link = part.file, part.link
    assert file is not None
    assert link.descriptor is not None
    backup = part.name + BACKUP_SUFFIX
    if len(os.fsencode(part.name + STALE_SUFFIX)) > _NAME_BYTES_MAX:
        raise UsageError(f"{file.path}: no name is left for its backup", "give it a shorter name")
    done: list[Done] = []
    cid = link.descriptor.cid
    recovered = repair_recover(part.dir, backup, file, cid, part.name + STALE_SUFFIX)
    if recovered != "none":
        done.append(_done("recovered", file.path, 1, _RECOVERED[recovered]))
    if recovered == "stale":
        kept.append(_beside(part.dir, part.name + STALE_SUFFIX))
    plan = Repair(
        file,
        kind=part.kind,
        sectors=part.extent.sectors,
        start_bytes=part.start_bytes,
        trust_primary=trust_primary,
    )
    if not plan.counts:
        return done
    plan.run(part.dir, backup, file, cid, part.name + KEPT_SUFFIX if keep_backup else None)
    if keep_backup:
        kept.append(_beside(part.dir, part.name + KEPT_SUFFIX))
    counts = plan.counts.items()
    return done + [_done(what, file.path, count, _WORDS[what]) for what, count in counts]


def _beside(dir: Dir, name: str) -> str:
    return os.path.join(dir.path, name)
