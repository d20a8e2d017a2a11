"""The disks of a test failover as files, for hypervisors that take no NBD exports.

Each is a VMDK child of what shows the point: of the link that shows a long-term point, or
of what is below the journal. Into the latter is copied what the journal has as of the point,
as the journal itself shows one point at a time, and that belongs to failovers. So what is
below the journals is part of a test's disks, and must not change while it lives: retention
waits (Manifest.files_of_tests), a destage that goes on is waited for before the files are made.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from . import control, interim
from ._native import RUN_DATA, RUN_ZERO, Dir
from .disk import open_disk
from .errors import ExistsError, LockedError, NotFoundError, StateError
from .manifest import DiskEntry, Manifest, Trial
from .replica import Replica
from .retaining import destaged_to
from .view import OpenView, view

if TYPE_CHECKING:
    from .points import Point

PATIENCE_SECONDS = 60.0
PIECE_BYTES = 4 << 20
_POLL_SECONDS = 0.02


def names(directory: Dir, manifest: Manifest, id: str) -> dict[str, str]:
    """Descriptors of the disks of a test, by disk.

    Raises:
        ExistsError: A file stands in the place of one.
    """
    chosen = {disk.name: f"{disk.name}-test-{id}.vmdk" for disk in manifest.disks}
    for descriptor in chosen.values():
        for name in (descriptor, interim.delta_name(descriptor)):
            if directory.exists(name):
                raise ExistsError(
                    f"{directory.path}/{name} exists, and no test failover that is there made it",
                    "move it away",
                )
    return chosen


def wait_until_still(replica: Replica, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until nothing writes below the journals any more. The test is recorded.

    Raises:
        StateError: What a crash has left there has to be finished first.
        LockedError: It goes on for longer than that.
    """
    deadline = time.monotonic() + patience_seconds
    while (why := _unrest(replica)) is not None:
        if time.monotonic() >= deadline:
            raise LockedError(
                f"{why} in {replica.path}, and goes on for more than {patience_seconds:g} s",
                "try again later",
            )
        time.sleep(_POLL_SECONDS)


def _unrest(replica: Replica) -> str | None:
    """What may still change below the journals; None: nothing."""
    replica.refresh()
    manifest = replica.manifest
    running = True
    try:
        answer = control.ask(replica.control_path, "status")
        retention = answer.get("retention")
        if isinstance(retention, dict) and retention["destaging"] is not None:
            return "old writes are moved into the base"
    except control.NotRunningError:
        running = False
    why = None
    if manifest.merging is not None or manifest.freezing is not None:
        why = "a long-term restore point is made, or given up,"
    elif any(disk.below_cid is not None for disk in manifest.disks):
        why = "the base is given a new content id"
    elif manifest.horizon:
        with replica.journals() as journals:
            if any(destaged_to(native) < manifest.horizon for native in journals.natives):
                why = "old writes are moved into the base"
    if why is not None and not running:
        raise StateError(f"{why} in {replica.path}: that was cut short", "rollpoint resume")
    return why


def make(replica: Replica, trial: Trial, point: Point, kind: str) -> str:
    """Make the disks, whole and durable. The names are in the manifest.

    Args:
        kind: Of the overlays: see interim.KINDS.
    """
    manifest, copied = replica.manifest, 0
    long_term = manifest.long_term(point.id)
    for disk in manifest.disks:
        interim.create_interim(
            replica.directory,
            disk.name,
            long_term.links[disk.name] if long_term else disk.below,
            disk.size_bytes,
            kind=kind,
            name=trial.disks[disk.name],
        )
    if long_term is None:
        with view(replica, point) as shown:
            for disk in manifest.disks:
                copied += _copy(replica, disk, trial, shown.disks[disk.name])
    return f"{len(manifest.disks)} disk(s) at restore point {point.id}, {copied} bytes copied"


def _copy(replica: Replica, disk: DiskEntry, trial: Trial, shown: OpenView) -> int:
    """What the journal has as of the point, into the overlay; returns how much it was."""
    copied, offset = 0, 0
    path = replica.file(trial.disks[disk.name])
    with open_disk(path, writable=True, io=replica.directory.io) as target:
        while offset < disk.size_bytes:
            length, found, depth, *_ = shown.reading.run(offset, disk.size_bytes - offset)
            if depth == 0 and found == RUN_ZERO:
                target.writing().zero(length, offset)
            elif depth == 0 and found == RUN_DATA:
                length = min(length, PIECE_BYTES)
                target.writing().pwrite(shown.pread(length, offset), offset)
                copied += length
            offset += length
        target.flush()
    return copied


def remove(directory: Dir, disks: dict[str, str]) -> None:
    """Remove the disks of a test, or what there is of them."""
    for descriptor in disks.values():
        interim.remove_interim(directory, descriptor)
        with contextlib.suppress(NotFoundError):  # it was being made when the power went
            directory.unlink(f"{descriptor}.new")
