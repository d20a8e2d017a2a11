"""What a planned failover does first, so that nothing is lost.

  shut down    the guest of the source goes down in order; after its time the plug is pulled
  last writes  what it wrote to the end is taken, and marked as a restore point
  compare      after the hold: source and replica are read whole, and are the same

Where a later step fails, the source is powered on again when the hold has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import config, control, hypervisors, replication
from .config import Config
from .errors import Error, GapError, HypervisorError, UsageError
from .manifest import Cut, Operation
from .points import Point
from .replica import Replica
from .units import parse_duration

if TYPE_CHECKING:
    from .config_tables import SourceTable
    from .hypervisor.base import Hypervisor

STEPS = ("shut down", "last writes")
LABEL = "planned failover"
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
        raise _missed(error.message) from None


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
    """Read source and replica whole, as of the point, and see that they are the same. Held."""
    table = source_table(said)
    cut = Cut(point=point.id, time=point.time, sources=dict(table.disks))
    return cut
