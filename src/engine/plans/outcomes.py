"""What an operation for a plan came to, from the replica's own record; see doing.py."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from typing import Any, NamedTuple

import msgspec

from .. import config, operation_report, trial_places
from ..errors import Error, StateError, UsageError
from ..manifest import RUN_DIRECTORY, Manifest, Operation, Running
from ..replica import Replica
from .tables import RunKind

COPY = ".copy"
_TRY = re.compile(r"(.+)-\d+")
_CONSOLE = "console.log"
# What an operation of a kind of run is, in the replica's record.
KINDS: dict[RunKind, tuple[str, ...]] = {
    "planned": ("failover",),
    "unplanned": ("failover",),
    "undo": ("undo", "undo failback"),
    "permanent": ("permanent",),
    "failback": ("switch",),
    "commit": ("commit failback",),
}


class Done(msgspec.Struct, kw_only=True):
    """What an operation came to; the same each time it is asked for.

    Attributes:
        operation, kind: As the replica's record has them; "" where nothing was to be done.
        state: Of the replica, now.
        point, point_time: The restore point; None: it had none.
        rpo_seconds, rpo_says: The newest data lost, in time, and what it was measured by.
        rto_seconds: From the beginning until the machine was on, or up.
        seconds: What its steps took.
        steps: {"name", "seconds", "state", "note"} of each.
        report: Absolute path of the operation's own report.
        machine: That runs by it now: {"hypervisor", "id", "console"}; {}: none.
        address: The first that replica.toml gives the guest.
        audit: {"lines", "hash"} of the end of the replica's audit log.
    """

    operation: str
    kind: str
    state: str
    point: int | None = None
    point_time: str = ""
    rpo_seconds: float | None = None
    rpo_says: str = ""
    rto_seconds: float | None = None
    seconds: float = 0.0
    steps: list[dict[str, Any]] = []
    report: str | None = None
    machine: dict[str, str] = {}
    address: str = ""
    evidence: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    audit: dict[str, Any] = {}
    warnings: list[str] = []


# ---- ids ----


def copy_id(operation_id: str) -> str:
    """Of the operation that copies, before a switch of that id."""
    return f"{operation_id}{COPY}"


def trial_id(operation_id: str) -> str:
    """Of the test failover: it also names a directory, and a machine."""
    with contextlib.suppress(UsageError):
        return trial_places.check_id(operation_id)
    return "op-" + hashlib.sha256(operation_id.encode()).hexdigest()[:32]


def same_task(one: str, other: str) -> bool:
    """Whether both are tries of one task of a run, or one try."""
    first, second = (_TRY.fullmatch(id.removesuffix(COPY)) for id in (one, other))
    return one == other or bool(first and second and first[1] == second[1])


# ---- the record ----


def known(replica: Replica, operation_id: str) -> Operation | None:
    """The record of an operation that ended, if it did.

    Raises:
        StateError: It ended badly, and says why.
    """
    ended = replica.manifest.remembered(operation_id) or _reported(replica, operation_id)
    if ended is not None and ended.outcome != "done":
        raise StateError(
            f"{ended.kind} {ended.id} of replica {replica.name} ended {ended.outcome}: "
            f"{ended.error}",
            "when that is mended: rollpoint plan retry",
        )
    return ended


def ended_badly(manifest: Manifest, operation_id: str) -> bool:
    """Whether an operation of a deed with that id was begun, and failed."""
    ids = (operation_id, copy_id(operation_id), trial_id(operation_id))
    there = manifest.operation
    if there is not None and there.id in ids and there.outcome != "running":
        return True
    return any(ended.id in ids and ended.outcome != "done" for ended in manifest.history)


def _reported(replica: Replica, operation_id: str) -> Operation | None:
    """From its report: the manifest remembers the newest operations only."""
    directory = replica.directory
    with contextlib.suppress(Error, msgspec.DecodeError):
        folder = directory.io.open_dir(f"{directory.path}/{operation_report.FOLDER}")
        try:
            name = operation_report.file_name(operation_id, "json")
            data = folder.read(name, operation_report.LIMIT_BYTES)
        finally:
            folder.close()
        found = msgspec.convert(msgspec.json.decode(data)["operation"], Operation)
        return found if found.id == operation_id else None
    return None


class Former(NamedTuple):
    """What is to be ended: the run's kind, and the id of its operation at this replica."""

    kind: str
    operation: str

    @classmethod
    def of(cls, told: dict[str, Any]) -> Former:
        return cls(told.get("kind", ""), told.get("operation", ""))

    def require(self, manifest: Manifest) -> None:
        """See that what is there is its work, and nobody else's.

        Raises:
            StateError: It is another operation's.
            UsageError: It was a test.
        """
        if self.kind == "test":
            raise UsageError(
                f"operation {self.operation} of replica {manifest.name} was a test failover",
                "a test can be undone, and nothing else",
            )
        if not self.operation:
            return
        if self.kind == "failback":
            there, what = failed_back_by(manifest), "failed back"
        else:
            there, what = failed_over_by(manifest), "failed over"
        if there and not any(same_task(one, self.operation) for one in there):
            raise StateError(
                f"replica {manifest.name} is {what} by operation {there[-1]}, which is none of "
                f"this plan's run: that was {self.operation}",
                "end it by itself: rollpoint undo, permanent or failback",
            )

    def require_undoable(self, manifest: Manifest) -> None:
        """See that there is a way back.

        Raises:
            UsageError: There is none.
        """
        if self.kind in ("undo", "permanent", "commit"):
            raise UsageError(
                f"replica {manifest.name}: what {self.kind} {self.operation} did cannot be undone",
                "an undo is of a test, a failover or a failback",
            )


def failed_over_by(manifest: Manifest) -> list[str]:
    """Id of the operation that failed the replica over; the change of a point is not one."""
    there = manifest.operation
    if there is not None and there.kind == "failover":
        return [there.id]
    if manifest.recovered is None:
        return []
    ended = [
        one.id for one in manifest.history if one.kind == "failover" and one.outcome == "done"
    ]
    return ended[-1:] or [manifest.recovered.operation]


def failed_back_by(manifest: Manifest) -> list[str]:
    """Ids of what copied and what switched over, as far as it has come."""
    if manifest.failback is None:
        return []
    found = [manifest.failback.operation]
    if manifest.state == "Failback":
        found += [
            one.id for one in manifest.history if one.kind == "switch" and one.outcome == "done"
        ][-1:]
    return found


def done_of(replica: Replica, ended: Operation) -> Done:
    """What it came to."""
    manifest = replica.manifest
    said = config.load(replica.directory)
    running = _running(manifest, ended)
    head = manifest.audit
    return Done(
        operation=ended.id,
        kind=ended.kind,
        state=manifest.state,
        point=ended.point,
        point_time=ended.point_time,
        rpo_seconds=ended.rpo_seconds,
        rpo_says=ended.rpo_says,
        rto_seconds=ended.rto_seconds,
        seconds=ended.seconds or 0.0,
        steps=[
            {
                "name": step.name,
                "seconds": step.seconds or 0.0,
                "state": step.state,
                "note": step.note,
            }
            for step in ended.steps
        ],
        report=operation_report.place_of(replica.directory, ended.id),
        machine={} if running is None else _machine(replica, said, running),
        address=_address(said),
        evidence=[msgspec.to_builtins(one) for one in ended.evidence],
        checks=[msgspec.to_builtins(one) for one in ended.checks],
        audit={} if head is None else {"lines": head.lines, "hash": head.hash},
        warnings=list(replica.warnings),
    )


def nothing_done(replica: Replica, kind: str, why: str) -> Done:
    """It was so already."""
    head = replica.manifest.audit
    return Done(
        operation="",
        kind=kind,
        state=replica.manifest.state,
        address=_address(config.load(replica.directory)),
        audit={} if head is None else {"lines": head.lines, "hash": head.hash},
        warnings=[why],
    )


def _running(manifest: Manifest, ended: Operation) -> Running | None:
    """The machine that it left on, and that is on as far as the manifest knows."""
    if ended.kind == "test":
        return next((one.running for one in manifest.tests if one.id == ended.id), None)
    if ended.kind == "switch":
        return None if manifest.failback is None else manifest.failback.running
    if ended.kind in ("failover", "repoint", "undo failback"):
        return None if manifest.recovered is None else manifest.recovered.running
    return None


def _machine(replica: Replica, said: config.Config, running: Running) -> dict[str, str]:
    console = ""
    if running.hypervisor == "qemu":
        place = os.path.join(replica.path, said.hypervisor.run or RUN_DIRECTORY)
        console = os.path.join(place, running.machine, _CONSOLE)
    return {
        "hypervisor": running.hypervisor,
        "id": running.machine,
        "console": console if os.path.exists(console) else "",
    }


def _address(said: config.Config) -> str:
    for card in said.guest.network:
        for address in card.addresses:
            return address.partition("/")[0]
    return ""
