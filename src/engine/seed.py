"""The first image of a disk, copied into its base before anything was journaled.

The bases are written in place. A seeding that was cut short is begun again from the
sources that the manifest's operation names.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping

from . import audit
from ._native import Dir
from .convert import copy_data
from .disk import open_disk
from .errors import NotFoundError, StateError, UsageError
from .journal import create_journal, journal_names, open_journal
from .manifest import DiskEntry, Manifest
from .points import now_text

Progress = Callable[[str, int, int], bool]


def seed(
    directory: Dir,
    manifest: Manifest,
    images: Mapping[str, str | os.PathLike[str]],
    progress: Progress | None,
) -> None:
    """Copy images into bases of a Ready replica. Locked. See Replica.seed."""
    if not images:
        raise UsageError("nothing to seed", "name a disk and its image: --disk NAME=FILE")
    sources = {name: os.path.abspath(file) for name, file in images.items()}
    for name, file in sources.items():
        entry = manifest.disk(name)
        _require_empty(directory, entry, manifest.epoch)
        with open_disk(file, format=image_format(file)) as source:
            if source.size_bytes != entry.size_bytes:
                raise UsageError(
                    f"{file} has {source.size_bytes} bytes, disk {name} has {entry.size_bytes}",
                    "make the replica with disks of the source's sizes",
                )
    operation = manifest.begin("seed", now_text())
    operation.disks = sources
    audit.begin(manifest, operation)
    audit.store(directory, manifest)
    copy_all(directory, manifest, sources, progress)


def image_format(path: str) -> str | None:
    """"raw" unless the file's name says VMDK or OVA: a guest's bytes must not decide."""
    return None if path.lower().endswith((".vmdk", ".ova")) else "raw"


def _require_empty(directory: Dir, entry: DiskEntry, epoch: int) -> None:
    log = f"{directory.path}/{journal_names(entry.name).log}"
    with open_journal(log, writable=True, epoch=epoch, io=directory.io) as journal:
        facts = journal.native.info()
    if facts["entry_count"] or facts["point_count"]:
        raise StateError(
            f"disk {entry.name} has restore points or writes already: its base may not change",
            "make a new replica, and seed that",
        )


def copy_all(
    directory: Dir, manifest: Manifest, sources: Mapping[str, str], progress: Progress | None
) -> None:
    """Do what the manifest's seed operation says, from its start. Locked."""
    for name, file in sources.items():
        entry = manifest.disk(name)

        def tell(done: int, total: int, name: str = name) -> None:
            if progress is not None and not progress(name, done, total):
                raise StateError("seeding was stopped", "rollpoint resume begins it again")

        with (
            open_disk(file, format=image_format(file)) as source,
            open_disk(f"{directory.path}/{entry.base}", writable=True, io=directory.io) as base,
        ):
            base.zero(base.size_bytes, 0)  # what an earlier try left
            copy_data(source, base.writing(), tell)
        # The base has a new content id, which its journal names.
        remove_journal(directory, entry.name)
        create_journal(
            f"{directory.path}/{entry.base}",
            entry.name,
            grain_bytes=entry.grain_bytes,
            segment_bytes=entry.segment_bytes,
            epoch=manifest.epoch,
            io=directory.io,
        )
    audit.end(manifest, manifest.end("Ready"))
    audit.store(directory, manifest, sync=True)


def remove_journal(directory: Dir, disk: str) -> None:
    """Remove a disk's journal, its descriptor first. Asked twice, it happens once."""
    for name in journal_names(disk):
        with contextlib.suppress(NotFoundError):
            directory.unlink(name)
    directory.sync()
