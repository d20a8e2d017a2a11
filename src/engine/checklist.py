"""What is looked at before a machine is powered on: named checks, each skipped only with a reason.

Before anything is done (`before`):
  state          the replica is where such an operation begins
  clock          this host's clock is not behind what the replica has recorded
  room           there is room for what the machine will write
  network        its cards' networks are known; a test's are isolated
  duplicates     nothing that is on has its UUID, its MACs, its addresses or its disks
  source-fenced  the source is out of action, by evidence that the policy accepts

Right before the power-on call (`at_power_on`), after the final epoch was taken:
  epoch          this operation, and its epoch, are what the manifest on disk says
  hold           every journal is fenced at that epoch
  point          every disk has the restore point, and its journal shows that
  overlay        every overlay lies on what it was made for, and nothing in between changed
  conversion     the guest was converted, where that was wanted
  intent         the audit log has the intent
  and again duplicates, and source-fenced with evidence no older than the policy allows

What each means to an operator: docs/fencing.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import fencing, manifest, stations
from .config import Config
from .errors import Error, StateError, UsageError
from .links import open_links, problems
from .manifest import Operation
from .records import CheckResult, Evidence
from .replica import Replica
from .units import format_duration, format_size, format_time, parse_duration, parse_size

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor, Machine

FENCED = "source-fenced"
SHARE_OF_DISKS = "%"


@dataclass
class Context:
    """What the checks look at.

    Args:
        hypervisor, machine: None where nothing is to be powered on.
        open_source: Opens where the source runs; None of it: nothing is said of a source.
        now_ns: The time, in nanoseconds since 1970 UTC.
        held_ns: When replication was held by this operation; 0: before it, or not yet.
    """

    replica: Replica
    said: Config
    operation: Operation
    hypervisor: Hypervisor | None = None
    machine: Machine | None = None
    open_source: Callable[[], Hypervisor | None] = field(default=lambda: None)
    now_ns: Callable[[], int] = time.time_ns
    held_ns: int = 0


class _Failed(Exception):
    """A check did not pass."""

    def __init__(self, says: str, hint: str) -> None:
        super().__init__(says)
        self.says, self.hint = says, hint


Check = Callable[[Context], str]


def before(context: Context) -> list[CheckResult]:
    """The checks before anything is done. Nothing is changed by them.

    Returns:
        What came of each; it is in the operation, too.

    Raises:
        StateError: Some did not pass: all of them, and what to do.
        UsageError: A check that is to be skipped does not exist.
    """
    checks: dict[str, Check] = {"state": _state, "clock": _clock}
    if context.machine is not None:
        checks |= {"room": _room, "network": _network, "duplicates": _duplicates}
        if not context.operation.planned:
            checks[FENCED] = _fenced
    return _run(context, checks)


def at_power_on(context: Context) -> list[CheckResult]:
    """The checks right before the power-on call.

    Raises:
        StateError: As before.
    """
    return _run(
        context,
        {
            "epoch": _epoch,
            "hold": _hold,
            "point": _point,
            "overlay": _overlay,
            "conversion": _conversion,
            "intent": _intent,
            "duplicates": _duplicates,
            FENCED: _fenced,
        },
    )


def at_the_call(context: Context) -> list[CheckResult]:
    """What a process that slept since has to see once more: evidence of the age allowed.

    Raises:
        StateError: As before.
    """
    return _run(context, {FENCED: _fenced})


NAMES = (
    *("state", "clock", "room", "network", "duplicates", FENCED),
    *("epoch", "hold", "point", "overlay", "conversion", "intent"),
)


def require_known(skip: Mapping[str, str]) -> None:
    """Refuse to skip what is no check, or to skip without a reason.

    Raises:
        UsageError: It names those that there are.
    """
    for name, reason in skip.items():
        if name not in NAMES:
            raise UsageError(f"there is no check {name!r}", f"take one of {', '.join(NAMES)}")
        if not reason.strip():
            raise UsageError(f"check {name} is to be skipped without a reason", "say why")


def _run(context: Context, checks: Mapping[str, Check]) -> list[CheckResult]:
    skip = {**context.said.checks.skip, **context.operation.skip}
    require_known(skip)
    results, failures = [], []
    for name, check in checks.items():
        if name in skip:
            results.append(_skipped(context, name, skip[name]))
            if results[-1].state == "failed":
                failures.append(_Failed(f"{name}: {results[-1].says}", "change [fencing].accept"))
            continue
        try:
            results.append(CheckResult(name=name, state="passed", says=check(context)))
        except (_Failed, Error) as failed:
            says = failed.says if isinstance(failed, _Failed) else failed.message
            results.append(CheckResult(name=name, state="failed", says=says))
            failures.append(_Failed(f"{name}: {says}", failed.hint))
    _keep(context.operation, results)
    if failures:
        _refuse(context, failures)
    return results


def _refuse(context: Context, failures: Sequence[_Failed]) -> None:
    names = ", ".join(failed.says.partition(":")[0] for failed in failures)
    hints = "; ".join(dict.fromkeys(failed.hint for failed in failures if failed.hint))
    raise StateError(
        f"replica {context.replica.name} is not powered on. " + "; ".join(
            failed.says for failed in failures
        ),
        f"{hints}. A check is skipped by name and with a reason ({names}): --skip NAME=REASON",
    )


def _skipped(context: Context, name: str, reason: str) -> CheckResult:
    says = "not looked at"
    if name == FENCED:
        operation = context.operation
        if not {"overridden", "none"} & set(context.said.fencing.accept):
            return CheckResult(
                name=name, state="failed", says="the policy accepts no override", reason=reason
            )
        override = Evidence(
            kind="overridden",
            time=format_time(context.now_ns()),
            says=reason,
            source=operation.who,
        )
        if not any(one.kind == "overridden" for one in operation.evidence):
            operation.evidence.append(override)
        says = "overridden"
    return CheckResult(name=name, state="skipped", says=says, reason=reason)


def _keep(operation: Operation, results: Sequence[CheckResult]) -> None:
    """The newest result of each check, in the order in which they came first."""
    found = {one.name: one for one in operation.checks}
    found |= {one.name: one for one in results}
    operation.checks = list(found.values())


# ---- before anything is done ----


def _state(context: Context) -> str:
    state = context.operation.found_state
    wanted = "Failover" if context.operation.kind == "repoint" else "Ready"
    if state != wanted:
        raise _Failed(f"the replica was {state}, not {wanted}", "see rollpoint replica show")
    return f"it was {state}"


def _clock(context: Context) -> str:
    points, now_ns = context.replica.points, context.now_ns()
    skew_seconds = parse_duration(context.said.checks.clock_skew)
    newest_ns = points.latest.time_ns if len(points) else 0
    ahead = (newest_ns - now_ns) / 1e9
    if ahead > skew_seconds:
        raise _Failed(
            f"this host's clock is {format_duration(ahead)} behind the newest restore point",
            "set the clock of this host right",
        )
    return "not behind the newest restore point"


def _room(context: Context) -> str:
    replica, reserve = context.replica, context.said.checks.reserve
    if reserve.endswith(SHARE_OF_DISKS):
        total = sum(disk.size_bytes for disk in replica.manifest.disks)
        wanted = int(total * float(reserve.removesuffix(SHARE_OF_DISKS)) / 100)
    else:
        wanted = parse_size(reserve)
    try:
        facts = os.statvfs(replica.path)
    except OSError as error:
        return f"cannot be told: {error.strerror}"
    free = facts.f_bavail * facts.f_frsize
    if free < wanted:
        raise _Failed(
            f"{replica.path} has {format_size(free)} free, {format_size(wanted)} are to be "
            "kept for what the machine writes",
            "make room, or set [checks].reserve",
        )
    return f"{format_size(free)} free"


def _network(context: Context) -> str:
    machine, kind = context.machine, context.said.hypervisor.kind
    assert machine is not None
    wires = sorted({card.network for card in machine.cards})
    for wire in wires:
        if wire == "user" and kind != "qemu":
            raise _Failed(
                f"there is no network {wire!r} on {kind}", "name one in [hypervisor.networks]"
            )
        if wire not in ("none", "user") and kind == "qemu":
            raise _Failed(
                f"there is no network {wire!r} on qemu", 'set [machine].network to "none" or "user"'
            )
    return ", ".join(wires) if wires else "no cards"


def _duplicates(context: Context) -> str:
    assert context.machine is not None
    assert context.hypervisor is not None
    found = [
        f"{one.kind} {one.what} is at {one.where}"
        for one in context.hypervisor.conflicts(context.machine)
    ]
    addresses = [
        address
        for card in context.machine.cards
        if card.network not in ("none", "user")
        for address in card.addresses
    ]
    looked = ""
    if addresses and context.said.checks.probe_addresses:
        seen = stations.look(addresses)
        found += [f"a station has address {one}" for one in seen.present]
        looked = f"; nobody seen at {len(addresses) - len(seen.present)} address(es)"
        if seen.unsure:
            looked += f", and it cannot be told for certain of {', '.join(seen.unsure)}"
    if found:
        raise _Failed(
            "; ".join(found), "power that off, or take it off the network, whatever it is"
        )
    return f"none at its hypervisor{looked}"


def _fenced(context: Context) -> str:
    said, operation, now_ns = context.said, context.operation, context.now_ns()
    if "none" in said.fencing.accept:
        return "the policy asks for no evidence"
    known = fencing.sufficient(operation.evidence, said.fencing, now_ns, context.held_ns)
    if known is None:
        source, unreachable = _source(context)
        found = fencing.collect(said.source, source, said.fencing, context.now_ns())
        if unreachable is not None:
            found.insert(0, unreachable)
        operation.evidence = [*operation.evidence, *found]
        known = fencing.sufficient(found, said.fencing, context.now_ns(), context.held_ns)
        if known is None:
            raise _Failed(
                f"nothing proves that the source is out of action: {fencing.told(found)}",
                "power the source off or isolate it and say in [source] how that is seen; or "
                "--planned shuts it down first",
            )
    return f"{known.says} ({known.kind}, {known.time})"


def _source(context: Context) -> tuple[Hypervisor | None, Evidence | None]:
    """Where the source runs, or what came of trying to reach that."""
    try:
        return context.open_source(), None
    except Error as error:
        return None, Evidence(
            kind="unreachable",
            time=format_time(context.now_ns()),
            says=error.message[: fencing.SAID_LENGTH_MAX],
        )


# ---- right before the power-on call ----


def _epoch(context: Context) -> str:
    replica = context.replica
    durable = manifest.load(replica.directory)
    if durable.epoch != replica.manifest.epoch or durable.operation is None:
        raise _Failed(
            f"the manifest on disk has epoch {durable.epoch}, this operation "
            f"{replica.manifest.epoch}",
            "somebody else works on this replica: see who, then rollpoint resume",
        )
    if durable.operation.id != context.operation.id:
        raise _Failed(
            f"operation {durable.operation.id} is in progress, not this one", "see who began it"
        )
    return f"epoch {durable.epoch}"


def _hold(context: Context) -> str:
    replica = context.replica
    with replica.journals() as journals:
        if not journals.all_held or journals.epoch != replica.manifest.epoch:
            raise _Failed("a journal is not fenced", "rollpoint resume, or undo")
        return f"{len(journals.names)} journal(s) fenced"


def _point(context: Context) -> str:
    recovered = context.replica.manifest.recovered
    assert recovered is not None
    point = context.replica.points.by_id(recovered.point)
    with context.replica.journals() as journals:
        for name, native in zip(journals.names, journals.natives, strict=True):
            if name in recovered.parents:
                continue  # a long-term point: a chain of its own shows it
            ids = [row[0] for row in native.points()]
            cuts = dict(zip(ids, native.point_cuts(), strict=True))
            if native.info()["root_entry"] != cuts[point.id]:
                raise _Failed(
                    f"the journal of disk {name} does not show point {point.id}",
                    "rollpoint undo, then fail over again",
                )
    return f"{point.id}, {point.time}, on every disk"


def _overlay(context: Context) -> str:
    replica = context.replica
    recovered = replica.manifest.recovered
    assert recovered is not None
    for disk in replica.manifest.disks:
        top, *_ = recovered.overlays(disk.name)
        links = open_links(replica.file(top), io=replica.directory.io)
        try:
            below = recovered.parents.get(disk.name, disk.journal)
            wanted = [*recovered.overlays(disk.name), below]
            names = [link.name for link in links]
            if names[: len(wanted)] != wanted:
                raise _Failed(
                    f"disk {disk.name} is {' above '.join(names)}", "rollpoint undo"
                )
            for problem in problems(links):
                raise problem
        finally:
            for link in links:
                link.close()
    return f"{len(replica.manifest.disks)} overlay(s) in place"


def _conversion(context: Context) -> str:
    step = context.operation.step("convert")
    if step.state != "done":
        raise _Failed(f"the guest's conversion is {step.state}", "rollpoint resume, or undo")
    return step.note or "done"


def _intent(context: Context) -> str:
    head = manifest.load(context.replica.directory).audit
    if head is None or context.operation.id not in head.open:
        raise _Failed("the audit log has no intent of this operation", "rollpoint undo")
    return "in the audit log"


