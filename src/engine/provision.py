"""Making, adopting, seeding and removing the files of a replica.

The manifest is the first file that is made and the last that is removed; while the
others come or go its state is Processing and its operation says what is going on, so
`resume` can take back a creation that was cut short, and go on with the rest.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from . import (
    audit,
    chains,
    config,
    control,
    interim,
    operation_report,
    retention,
    scrub,
    scrub_links,
    seed,
    trial_places,
    viewers,
)
from . import manifest as manifests
from ._native import OPEN_CREATE, OPEN_WRITE, Dir, Io
from .create import create_disk
from .disk import open_disk
from .errors import (
    Error,
    ExistsError,
    FormatError,
    LockedError,
    NotFoundError,
    UsageError,
)
from .journal import create_journal, journal_names
from .manifest import DiskEntry, Kind, Manifest, Retention
from .points import now_text
from .units import SECTOR_BYTES

BASE_TYPE = "monolithicFlat"
GRAINS = (4096, 8192, 16384, 32768, 65536)
# What a creation leaves when it is cut short before its manifest is there.
_CUT_SHORT = (manifests.LOCK_NAME, viewers.FILE_NAME, f"{manifests.FILE_NAME}.new")
SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX = 64 << 10, 1 << 30


class Sizes(NamedTuple):
    """Of the journals to be made, and how long they keep points; see Replica.create."""

    grain_bytes: int
    segment_bytes: int
    retention: Retention


def create(
    path: str | os.PathLike[str],
    disks: Sequence[tuple[str, int]],
    sizes: Sizes,
    io: Io,
) -> tuple[Dir, Manifest]:
    """Make a directory with empty bases and journals. See Replica.create."""
    _check_sizes(sizes, len(disks))
    _check_names([name for name, _ in disks])
    for name, size_bytes in disks:
        if size_bytes < SECTOR_BYTES or size_bytes % SECTOR_BYTES:
            raise UsageError(
                f"disk {name} cannot have {size_bytes} bytes", "give a multiple of 512 above 0"
            )
    directory, made = _make_directory(manifests.place_of(path), io)
    entries = [
        DiskEntry(
            name=name,
            size_bytes=size_bytes,
            base=f"{name}.vmdk",
            journal=journal_names(name).descriptor,
            grain_bytes=sizes.grain_bytes,
            segment_bytes=sizes.segment_bytes,
        )
        for name, size_bytes in disks
    ]
    try:
        return directory, _make(directory, entries, "create", sizes.retention)
    except BaseException:
        if made:
            with contextlib.suppress(Error):
                _remove_directory(directory)
        raise


def adopt(
    path: str | os.PathLike[str],
    disks: Mapping[str, str | os.PathLike[str]],
    sizes: Sizes,
    io: Io,
) -> tuple[Dir, Manifest]:
    """Make a replica around VMDKs that are in its directory. See Replica.adopt."""
    _check_sizes(sizes, len(disks))
    _check_names(list(disks))
    place = manifests.place_of(path)
    directory = io.open_dir(place)
    if directory.exists(manifests.FILE_NAME):
        raise _occupied(place)
    entries = []
    for name, file in disks.items():
        folder, base = os.path.split(os.path.abspath(file))
        if os.path.realpath(folder) != os.path.realpath(place):
            raise UsageError(
                f"{os.fspath(file)} is not in {place}",
                "a journal names its base in its own directory: move it there, or use "
                "rollpoint replica create and seed",
            )
        disk = open_disk(os.path.join(place, base), writable=True, io=io)  # it will be written
        links, size_bytes = len(disk.links), disk.size_bytes
        disk.close(clean=False)  # and has not been
        if links > 1:
            raise UsageError(
                f"{os.fspath(file)} is a snapshot with a parent",
                "consolidate it first: rollpoint disk commit",
            )
        entries.append(
            DiskEntry(
                name=name,
                size_bytes=size_bytes,
                base=base,
                journal=journal_names(name).descriptor,
                grain_bytes=sizes.grain_bytes,
                segment_bytes=sizes.segment_bytes,
                adopted=True,
            )
        )
    _refuse_damage(directory, entries)
    return directory, _make(directory, entries, "adopt", sizes.retention)


def _refuse_damage(directory: Dir, entries: Sequence[DiskEntry]) -> None:
    for entry in entries:
        found = scrub_links.structure(directory, entry)
        if found:
            raise FormatError(
                f"{directory.path}/{entry.base} cannot be a base: {found[0].message}",
                "see rollpoint disk check",
            )


def _check_sizes(sizes: Sizes, disks: int) -> None:
    if sizes.grain_bytes not in GRAINS:
        raise UsageError(
            f"a journal cannot have grains of {sizes.grain_bytes} bytes",
            "take 4K, 8K, 16K, 32K or 64K",
        )
    segment = sizes.segment_bytes
    if not SEGMENT_BYTES_MIN <= segment <= SEGMENT_BYTES_MAX or segment % sizes.grain_bytes:
        raise UsageError(
            f"a journal cannot have segments of {segment} bytes",
            "take 64 KiB to 1 GiB, a multiple of the grain",
        )
    retention.check(sizes.retention, [segment] * disks)


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise UsageError("a replica needs at least one disk", "name one with --disk")
    for name in names:
        manifests.check_disk_name(name)
    if len({name.lower() for name in names}) != len(names):
        raise UsageError("two disks have one name", "they must differ in more than case")


def _occupied(place: str) -> ExistsError:
    return ExistsError(
        f"{place} is a replica already, or another program's: it has {manifests.FILE_NAME}",
        "choose another directory",
    )


def _make_directory(path: str, io: Io) -> tuple[Dir, bool]:
    """The empty directory for a new replica, and whether it was made here."""
    parent_path, name = os.path.split(path)
    parent = io.open_dir(parent_path)
    made = not parent.exists(name)
    if made:
        parent.make_dir(name, 0o700)
        parent.sync()
    parent.close()
    directory = io.open_dir(path)
    if directory.exists(manifests.FILE_NAME):
        try:
            found = manifests.load(directory)
        except Error:
            raise _occupied(path) from None
        if found.operation is None or found.operation.kind != "create":
            raise _occupied(path)
        with _locked(directory):
            _take_back(directory, found)  # a creation that was cut short
    left = [entry for entry in directory.list() if entry not in _CUT_SHORT]
    if left:
        raise ExistsError(
            f"{path} is not empty: it has {', '.join(left[:3])}", "choose another directory"
        )
    return directory, made


def _remove_directory(directory: Dir) -> None:
    """Remove a directory that has nothing but the lock, if it is so."""
    for name in _CUT_SHORT:
        with contextlib.suppress(NotFoundError):
            directory.unlink(name)
        directory.sync()
    if not directory.list():
        parent = directory.io.open_dir(os.path.dirname(directory.path))
        parent.remove_dir(os.path.basename(directory.path))
        parent.sync()
        parent.close()


@contextlib.contextmanager
def _locked(directory: Dir) -> Iterator[None]:
    lock = directory.open(manifests.LOCK_NAME, OPEN_WRITE | OPEN_CREATE, 0o600)
    try:
        lock.lock()
        yield
    finally:
        lock.close()


def _make(directory: Dir, entries: list[DiskEntry], kind: Kind, keep: Retention) -> Manifest:
    manifest = Manifest(
        format=manifests.FORMAT,
        version=manifests.VERSION,
        id=str(uuid.uuid4()),
        name=os.path.basename(directory.path),
        created=now_text(),
        state="Ready",
        epoch=1,
        held=False,
        disks=entries,
        retention=keep,
    )
    audit.begin(manifest, manifest.begin(kind, now_text()))
    files = [file for entry in entries for file in _files_to_be(entry)]
    with _locked(directory):
        for file in (manifests.FILE_NAME, audit.FILE_NAME, *files):  # now nobody else makes them
            if directory.exists(file):
                raise ExistsError(
                    f"{directory.path}/{file} exists", "move it away, or choose another name"
                )
        audit.store(directory, manifest)
        try:
            for entry in entries:
                if not entry.adopted:
                    create_disk(
                        f"{directory.path}/{entry.base}",
                        BASE_TYPE,
                        entry.size_bytes,
                        io=directory.io,
                    )
                create_journal(
                    f"{directory.path}/{entry.base}",
                    entry.name,
                    grain_bytes=entry.grain_bytes,
                    segment_bytes=entry.segment_bytes,
                    io=directory.io,
                )
            audit.end(manifest, manifest.end("Ready"))
            audit.store(directory, manifest, sync=True)
        except BaseException:
            with contextlib.suppress(Error):
                _take_back(directory, manifest)
            raise
    return manifest


def _files_to_be(entry: DiskEntry) -> list[str]:
    files = [journal_names(entry.name).descriptor, interim.interim_name(entry.name)]
    if not entry.adopted:
        files += [entry.base, f"{entry.name}-flat.vmdk"]
    return files


def _take_back(directory: Dir, manifest: Manifest) -> None:
    """Remove what a creation or adoption made, the manifest last."""
    _remove_files(directory, manifest)
    with contextlib.suppress(NotFoundError):
        directory.unlink(audit.FILE_NAME)
    directory.unlink(manifests.FILE_NAME)
    directory.sync()


def resume(directory: Dir, manifest: Manifest) -> None:
    """Finish or take back a create, adopt, seed or remove that was cut short. Locked."""
    operation = manifest.operation
    assert operation is not None
    if operation.kind in ("create", "adopt"):
        _take_back(directory, manifest)
    elif operation.kind == "remove":
        _remove_all(directory, manifest)
    elif operation.kind == "seed":
        seed.copy_all(directory, manifest, operation.disks, None)


# ---- removing ----


def remove(directory: Dir, manifest: Manifest) -> list[str]:
    """Remove what is ours; returns the bases that stay. Locked. See Replica.remove."""
    try:
        control.ask(f"{directory.path}/{manifests.CONTROL_NAME}", "status", timeout_seconds=5.0)
    except control.NotRunningError:
        pass
    else:
        raise LockedError(f"an ingest runs in {directory.path}", "stop it first")
    kept = [entry.base for entry in manifest.disks if _stays(entry)]
    audit.begin(manifest, manifest.begin("remove", now_text()))
    audit.store(directory, manifest)
    _remove_all(directory, manifest)
    return kept


def _stays(entry: DiskEntry) -> bool:
    return entry.adopted or entry.journal is None


def _remove_all(directory: Dir, manifest: Manifest) -> None:
    _remove_files(directory, manifest)
    _leave_audit(directory, manifest)
    operation_report.remove_all(directory)
    _remove_run_files(directory)
    trial_places.remove_all(directory)
    told = (manifests.CONVERSION_NAME, manifests.REHEARSAL_NAME)
    beside = (*told, *(f"{name}.new" for name in told), config.FILE_NAME)
    for name in (manifests.CONTROL_NAME, *beside, *scrub.FILE_NAMES, manifests.FILE_NAME):
        with contextlib.suppress(NotFoundError):
            directory.unlink(name)
        directory.sync()
    _remove_directory(directory)


def _leave_audit(directory: Dir, manifest: Manifest) -> None:
    """Where the bases are what replication made of them, the record of it stays beside them."""
    operation, head = manifest.operation, manifest.audit
    assert operation is not None
    assert head is not None
    if not any(entry.journal is None for entry in manifest.disks):
        with contextlib.suppress(NotFoundError):
            directory.unlink(audit.FILE_NAME)
        return
    if operation.id in head.open:
        audit.end_act(manifest, operation.id)
        audit.store(directory, manifest, sync=True)
    if directory.exists(audit.FILE_NAME):
        audit.write(directory, head, sync=True)
        directory.rename(audit.FILE_NAME, f"audit-{manifest.id}.jsonl")
        directory.sync()


def _remove_run_files(directory: Dir) -> None:
    """The logs of timers and of a former machine, and run/ where nothing else is in it."""
    try:
        folder = directory.io.open_dir(f"{directory.path}/{manifests.RUN_DIRECTORY}")
    except NotFoundError:
        return
    try:
        for name in folder.list():
            is_lock = name.startswith("timer-") and name.endswith(".lock")
            if is_lock or name in (manifests.TIMER_LOG_NAME, *manifests.LAST_LOG_NAMES):
                folder.unlink(name)
        left = folder.list()
    finally:
        folder.close()
    if not left:
        directory.remove_dir(manifests.RUN_DIRECTORY)


def _overlays(manifest: Manifest, entry: DiskEntry) -> list[str]:
    found = {interim.interim_name(entry.name)}
    for recovered in (manifest.recovered, manifest.former):
        if recovered is not None:
            found.update(recovered.overlays(entry.name))
    return sorted(found)


def _remove_files(directory: Dir, manifest: Manifest) -> None:
    for entry in manifest.disks:
        names = _overlays(manifest, entry)
        for name in names:
            interim.remove_interim(directory, name)
        if entry.journal is not None:
            seed.remove_journal(directory, entry.name)
            names.append(entry.journal)
            chains.remove_links(directory, manifest, entry)
        names = [f"{name}.new" for name in names]  # a descriptor that was being replaced
        if not _stays(entry):
            names += [entry.base, f"{entry.base}.new", f"{entry.name}-flat.vmdk"]
        for name in names:
            with contextlib.suppress(NotFoundError):
                directory.unlink(name)
    directory.sync()
