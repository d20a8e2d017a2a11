"""Reading all of a replica again: its journals, its bases, and whether they fit."""

from __future__ import annotations

from collections.abc import Callable

from ._native import Dir
from .disk import check, open_disk
from .errors import Error
from .journal import journal_names, open_journal
from .manifest import DiskEntry, Manifest

Progress = Callable[[str, int, int], bool]


def verify(
    directory: Dir, manifest: Manifest, progress: Progress | None = None
) -> dict[str, object]:
    """Read journals and bases again. See Replica.verify."""
    report: list[dict[str, object]] = []
    for entry in manifest.disks:
        found = base_damage(directory, entry)
        if entry.journal is not None:
            found += _journal_damage(directory, entry, progress)
        report.append({"name": entry.name, "damage": found})
    return {
        "name": manifest.name,
        "ok": not any(disk["damage"] for disk in report),
        "disks": report,
    }


def _damage(where: str, message: str, **place: int | None) -> dict[str, object]:
    empty = {"position": None, "guest_offset": None, "length": None}
    return {"where": where, "message": message, **empty, **place}


def base_damage(directory: Dir, entry: DiskEntry) -> list[dict[str, object]]:
    try:
        found = check(f"{directory.path}/{entry.base}", io=directory.io)["findings"]
    except Error as error:
        return [_damage("base", error.message)]
    return [
        {**_damage("base", f"{row['file']}: {row['message']}"), "position": row["position"]}
        for row in found
    ]


def _journal_damage(
    directory: Dir, entry: DiskEntry, progress: Progress | None
) -> list[dict[str, object]]:
    def tell(done: int, total: int) -> bool:
        return progress is None or progress(entry.name, done, total)

    found = []
    try:
        log = f"{directory.path}/{journal_names(entry.name).log}"
        with open_journal(log, io=directory.io) as journal:
            for position, guest_offset, length, message in journal.native.verify(tell):
                found.append(
                    _damage(
                        "journal",
                        message,
                        position=position,
                        guest_offset=guest_offset,
                        length=length,
                    )
                )
    except Error as error:
        found.append(_damage("journal", error.message))
    try:  # does the journal still fit its base?
        open_disk(f"{directory.path}/{entry.journal}", io=directory.io).close()
    except Error as error:
        found.append(_damage("chain", error.message))
    return found
