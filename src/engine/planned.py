"""What a planned failover does first, so that nothing is lost.

  shut down    the guest of the source goes down in order; after its time the plug is pulled
  last writes  what it wrote to the end is taken, and marked as a restore point
  compare      after the hold: source and replica are read whole, and are the same

Where a later step fails, the source is powered on again when the hold has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from . import config, control, hypervisors, replication
from ._native import RUN_DATA, Disk
from .config import Config
from .errors import Error, GapError, HypervisorError, UsageError, VerificationError
from .manifest import Cut, DiskEntry, Operation
from .points import Point
from .replica import Replica
from .side_by_side import side_by_side
from .units import parse_duration

if TYPE_CHECKING:
    from .config_tables import SourceTable
    from .hypervisor.base import Hypervisor

STEPS = ("shut down", "last writes")
LABEL = "planned failover"
REGION_BYTES = 1 << 20
LEAVE_SECONDS = 5.0  # for the source's connections to end, once it is off
_POLL_SECONDS = 0.02


def source_table(said: Config) -> SourceTable:
    """What replica.toml says of the source.

    Raises:
        UsageError: Not what a planned failover needs.
    """
    if said.source is None or not said.source.machine:
        raise UsageError(
            "a planned failover shuts the source down, and replica.toml does not say what that is",
            "set kind and machine in its table [source]; or fail over without --planned",
        )
    return said.source


def shut_down(replica: Replica, said: Config, source: Hypervisor) -> str:
    """Shut the source's guest down. That it was on is saved first.

    Raises:
        HypervisorError: It cannot be asked, or is on still.
    """
    operation, table = replica.manifest.operation, source_table(said)
    assert operation is not None
    if source.status(table.machine) != "off":
        operation.was_running = True
        replica.save()
    told = source.shut_down(table.machine, parse_duration(table.shutdown))
    if source.status(table.machine) != "off":
        raise HypervisorError(
            f"the source {table.machine} was shut down, and is on", "see who started it"
        )
    return told


def start_source_again(
    replica: Replica, operation: Operation, source: Hypervisor | None = None
) -> str:
    """After a planned failover that failed: the source serves again, if it did before.

    Returns:
        Why it does not; "" when it does, or did not before.
    """
    if not operation.planned or not operation.was_running:
        return ""
    try:
        table = source_table(config.load(replica.directory))
        source = source or hypervisors.of_source(replica)
        assert source is not None
        source.power_on(table.machine)
    except Error as error:
        return f"; and the source is off: {error.message}"
    return ""


def last_writes(replica: Replica, sleep: Callable[[float], object] = time.sleep) -> Point:
    """Mark what the source wrote to its end. Inside `locked`, before the hold.

    Raises:
        GapError: Something that it wrote did not arrive.
    """
    try:
        _wait_until_it_left(replica, sleep)
        answer = control.ask(replica.control_path, "mark", kind="app", label=LABEL)
        return replication.point_of(answer)
    except control.NotRunningError:
        return _mark_without_ingest(replica)
    except GapError as error:
        gap = control.ask(replica.control_path, "status").get("gap")
        why = gap.get("cause") if isinstance(gap, dict) else None
        raise _missed(str(why or error.message)) from None


def _wait_until_it_left(replica: Replica, sleep: Callable[[float], object]) -> None:
    """Its connections end with it. Another agent's may stay: then the hold ends them."""
    for _ in range(int(LEAVE_SECONDS / _POLL_SECONDS)):
        exports = control.ask(replica.control_path, "status").get("exports")
        if not isinstance(exports, dict) or not exports.get("connections_open"):
            return
        sleep(_POLL_SECONDS)


def _mark_without_ingest(replica: Replica) -> Point:
    manifest = replica.manifest
    with replica.journals(writable=True, wait_seconds=replication.LOCK_SECONDS) as journals:
        replication.note_unclean_end(replica, journals)
        if replication.needs_resync(replica):
            raise _missed(next(gap.cause for gap in manifest.gaps if gap.end is None))
        manifest.next_point_id = journals.next_point_id + 1
        replica.save()
        return journals.mark("app", LABEL)


def _missed(why: str) -> GapError:
    return GapError(
        f"the source is off, and the replica may miss something that it wrote: {why}",
        "start the source and let it catch up, then plan again; or fail over without --planned",
    )


def check(replica: Replica, said: Config) -> None:
    """Before anything is done: whether the cut can be proven as replica.toml wants it.

    Raises:
        UsageError: It says nothing of the source, or names some of its disks only.
    """
    table = source_table(said)
    if table.compare == "never" or not table.disks:
        return
    for disk in replica.manifest.disks:
        if disk.name not in table.disks:
            raise UsageError(
                f"replica.toml names no disk of the source for {disk.name}, so the cut cannot be "
                "compared",
                "name it in [source.disks], or set compare = \"never\" in [source]",
            )


def compare(replica: Replica, said: Config, point: Point) -> Cut:
    """Read source and replica whole, as of the point, and see that they are the same. Held.

    All disks at once, both sides at once; what is known to be zeros is not read.

    Raises:
        VerificationError: They differ; it says where first.
        Error: A disk of the source cannot be read.
    """
    from . import sending, targets  # an unplanned failover does without
    from .view import native_of, open_at

    table = source_table(said)
    cut = Cut(point=point.id, time=point.time)
    if table.compare == "never" or not table.disks:
        return cut
    cut.sources = {disk.name: table.disks[disk.name] for disk in replica.manifest.disks}

    def same(disk: DiskEntry) -> str:
        place = cut.sources[disk.name]
        opened = open_at(replica.directory, replica.manifest, disk, point)
        with opened, targets.open_target(place, disk.size_bytes, writable=False) as there:
            here = native_of(opened)
            sides: list[Readable] = [Native(here), there]
            ours, theirs = side_by_side(lambda side: digest(side, disk.size_bytes), sides)
            if ours == theirs:
                return ours
            found = sending.differing(here, there)
            first, last = next(iter(found))
            raise VerificationError(
                f"disk {disk.name} is not what the source has in {place}: {found.total_bytes} "
                f"bytes differ, the first from byte {first} to {last}",
                "start the source and let it copy everything again: rollpoint mark --caught-up",
            )

    digests = side_by_side(same, replica.manifest.disks)
    names = [disk.name for disk in replica.manifest.disks]
    cut.digests = dict(zip(names, digests, strict=True))
    cut.stamps = {name: targets.stamp(cut.sources[name]) for name in names}
    return cut


class Readable(Protocol):
    """One side of a comparison."""

    def pread(self, length: int, offset: int) -> bytes: ...

    def run(self, offset: int, length: int) -> tuple[int, bool]: ...


class Native:
    """A native disk, as the source's side is read."""

    def __init__(self, native: Disk) -> None:
        self._native = native
        self.pread = native.pread

    def run(self, offset: int, length: int) -> tuple[int, bool]:
        found, kind = self._native.run(offset, length)[:2]
        return found, kind != RUN_DATA


def digest(disk: Readable, size_bytes: int) -> str:
    """XXH3-128 of the XXH3-128 digests of a disk's MiBs, as hex digits."""
    import xxhash

    zeros = xxhash.xxh3_128_digest(bytes(REGION_BYTES))
    whole = xxhash.xxh3_128()
    for at in range(0, size_bytes, REGION_BYTES):
        length = min(REGION_BYTES, size_bytes - at)
        known, is_zero = disk.run(at, length)
        if is_zero and known >= length:
            one = zeros if length == REGION_BYTES else xxhash.xxh3_128_digest(bytes(length))
        else:
            one = xxhash.xxh3_128_digest(disk.pread(length, at))
        whole.update(one)
    return whole.hexdigest()
