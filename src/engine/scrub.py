"""Reading all of a replica again: journals, bases, long-term points, and whether they fit.

Nothing is locked, and an ingest may write meanwhile: what looks like damage is looked
at once more before it counts. What was read is noted, so that a scrub that ends early
goes on where it was. What is proven is said in docs/operations.md.
"""

from __future__ import annotations

import msgspec

from . import digests, scrub_base, scrub_links, scrub_notes
from ._native import Dir
from .errors import Error, NotFoundError
from .journal import journal_names
from .manifest import Manifest
from .scrub_notes import Damage, LogNotes, Notes, Place, Progress, Row, id_of

# What a scrub may leave, a replacement that was cut short included.
FILE_NAMES = tuple(
    name + suffix
    for name in (scrub_notes.FILE_NAME, digests.FILE_NAME)
    for suffix in ("", ".new")
)
_HEAD = 1 << 63  # of segments: above all numbers, so that only head and root are read


def verify(
    directory: Dir,
    manifest: Manifest,
    progress: Progress | None = None,
    *,
    restart: bool = False,
) -> dict[str, object]:
    """Read journals, bases and long-term points again. See told.

    Args:
        progress: Called with disk, bytes done, bytes in all; False stops (CancelledError),
            and the next scrub goes on there.
        restart: Begin anew, whatever an earlier scrub has read.
    """
    report, resumed = examine(directory, manifest, progress, restart=restart)
    return told(manifest, report, resumed)


def told(
    manifest: Manifest, report: dict[str, list[Damage]], resumed: str | None
) -> dict[str, object]:
    """What `replica verify --json` prints: the damage of each disk, see scrub_notes.Damage.

    ok: none remains. resumed: when the scrub was begun that this one went on with, or null.
    """
    return {
        "name": manifest.name,
        "ok": all(damage.mended for found in report.values() for damage in found),
        "resumed": resumed,
        "disks": [
            {"name": name, "damage": [msgspec.to_builtins(damage) for damage in found]}
            for name, found in report.items()
        ],
    }


def examine(
    directory: Dir, manifest: Manifest, progress: Progress | None, *, restart: bool = False
) -> tuple[dict[str, list[Damage]], str | None]:
    """What is damaged, by disk, and when the scrub was begun that this one went on with."""
    notes = Notes(directory, manifest.id, restart)
    report: dict[str, list[Damage]] = {}
    try:
        for entry in manifest.disks:
            place = Place(directory, manifest, entry, notes, progress)
            written = entry.journal is not None and scrub_links.may_be_written(place)
            found = scrub_links.structure(directory, entry, written)
            sound = not found
            if entry.journal is not None:
                found += _log_damage(place) + scrub_links.chain_damage(place)
            if sound:
                found += scrub_base.rotten(place) + scrub_links.frozen_damage(place)
            report[entry.name] = found
    except BaseException:
        notes.save(now=True)
        raise
    notes.end()
    if all(damage.where == "digests" for found in report.values() for damage in found):
        scrub_base.record(directory, notes)  # a damaged replica is left as it is
    return report, notes.state.started if notes.resumed else None


# ---- journals ----


def _log_damage(place: Place) -> list[Damage]:
    name = journal_names(place.entry.name).log
    try:
        rows = _scrub_log(place)
        rows = _look_again(place, rows) if rows else rows
        return _with_points(place, rows)
    except Error as error:
        if error.code == "cancelled":
            raise
        return [Damage(where="journal", message=error.message, file=name)]


def _scrub_log(place: Place) -> list[Row]:
    disk = place.notes.disk(place.entry.name)
    with place.log() as journal:
        id = id_of(journal)
        if disk.log is None or disk.log.id != id:
            disk.log = LogNotes(id=id)
        log = disk.log

        def tell(done: int, total: int, next_segment: int, chain: int) -> bool:
            log.next_segment, log.chain, log.total_bytes = next_segment, f"{chain:x}", total
            return place.tell(done, total + place.entry.size_bytes)

        try:
            journal.native.scrub(
                log.found, tell, from_segment=log.next_segment, from_chain=int(log.chain, 16)
            )
        except NotFoundError:  # what was read is not what is there now
            log.found, log.next_segment, log.chain = [], 0, "0"
            journal.native.scrub(log.found, tell)
    return log.found


def _look_again(place: Place, rows: list[Row]) -> list[Row]:
    """A writer beside us may have freed a segment that was read, or shown another root."""
    again: list[Row] = []
    with place.log() as journal:
        for number in sorted({row[0] for row in rows if row[0] is not None}):
            journal.native.scrub(again, from_segment=number, segment_count=1)
        if any(row[0] is None for row in rows):
            journal.native.scrub(again, from_segment=_HEAD)
    return again


def _with_points(place: Place, rows: list[Row]) -> list[Damage]:
    """Say whom it harms, by the journal as it is now; what it has freed harms nobody."""
    if not rows:
        return []
    name = journal_names(place.entry.name).log
    with place.log() as journal:
        harmed = journal.native.affected((row[0], row[1]) for row in rows)
    return [
        Damage(
            where="journal",
            message=message,
            file=name,
            position=position,
            guest_offset=guest,
            length=length,
            segment=segment,
            points=(first, last) if first else None,
            end=end,
        )
        for (segment, position, guest, length, message), (gone, end, first, last) in zip(
            rows, harmed, strict=True
        )
        if not gone
    ]
