"""What a failover lost, and how long it took: measured, and never better than the truth.

RPO: from the restore point, or from the start of a gap that was open, to the last moment at
which the source may have written. Where the source was connected and nothing was in doubt,
that is the newest point, which the hold makes of everything that was acknowledged. Where it
was not, nobody knows what it wrote, and it is the moment of the hold.

RTO: from the command until the machine was on, or said on its console that it is up; for an
operation that was resumed, with all the time in between.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from . import control
from .points import now_text
from .units import parse_time

if TYPE_CHECKING:
    from .manifest import Manifest, Operation
    from .points import Points
    from .replica import Replica


def is_replicating(replica: Replica) -> bool:
    """Before a hold: whether a source is connected whose writes come in, all of them.

    After a planned shutdown it may have left: what it wrote until then has come in.
    """
    operation = replica.manifest.operation
    try:
        status = control.ask(replica.control_path, "status", control.STATUS_SECONDS)
    except (control.NotRunningError, control.NotAnsweringError):
        return False
    exports = status.get("exports")
    if status.get("state") != "running" or status.get("gap") is not None:
        return False
    if operation is not None and operation.planned:
        return True
    return isinstance(exports, dict) and bool(exports.get("connections_open"))


def loss(manifest: Manifest, points: Points, *, replicating: bool) -> None:
    """Put into the operation what going back to its point loses. After the hold.

    Args:
        replicating: What is_replicating said before it.
    """
    operation = manifest.operation
    assert operation is not None
    gap = next((gap for gap in manifest.gaps if gap.end is None), None)
    proven = operation.cut is not None and bool(operation.cut.digests)
    if proven or (replicating and gap is None):
        operation.source_until = points.latest.time
        told = "no write that was acknowledged is newer than the newest restore point"
        operation.rpo_says = "source and replica were compared at the cut" if proven else told
    else:
        operation.source_until = now_text()
        operation.rpo_says = (
            f"at most: what the source wrote since is not known ({gap.cause})"
            if gap is not None
            else "at most: the source was not connected, and what it wrote since is not known"
        )
    _set_rpo(operation, operation.source_until, None if gap is None else gap.start)


def loss_again(manifest: Manifest, former: str) -> None:
    """The same for another point of a failover that there is. former: its operation."""
    operation, earlier = manifest.operation, manifest.remembered(former)
    assert operation is not None
    known = earlier is not None and bool(earlier.source_until)
    operation.source_until = earlier.source_until if earlier and known else now_text()
    operation.rpo_says = (
        "as of the hold of the failover" if known else "at most: until this change of the point"
    )
    gap = next((gap for gap in manifest.gaps if gap.end is None), None)
    _set_rpo(operation, operation.source_until, None if gap is None else gap.start)


def _set_rpo(operation: Operation, until: str, gap_start: str | None) -> None:
    start_ns = parse_time(operation.point_time)
    if gap_start is not None:
        start_ns = min(start_ns, parse_time(gap_start))
    operation.rpo_seconds = max(0, parse_time(until) - start_ns) / 1e9


def duration(operation: Operation, begun: float) -> None:
    """Put into the operation how long it took, now that its machine is on.

    Args:
        begun: When this process was asked, on the clock of time.perf_counter.
    """
    if operation.power_on:
        since = (time.time_ns() - parse_time(operation.started)) / 1e9
        operation.rto_seconds = max(since, time.perf_counter() - begun)
