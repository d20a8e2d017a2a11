"""How ready a replica is for a run: what would stop it, and what it would cost.

Everything is looked at and nothing changed: no lock is held, no fence or probe is run, no
point is marked. Hypervisors are asked, each one once for all replicas, and not for long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from .. import config, control, conversion, rationing, rehearsal, rpo, view
from ..config import Config
from ..errors import Error, UsageError
from ..manifest import Manifest, Operation
from ..points import now_text
from ..replica import Replica
from ..units import format_duration, format_size, parse_duration, parse_size, parse_time
from . import choosing, proofs
from .found import Found, Problem, Readiness, Rehearsed
from .servers import Opens, Servers
from .tables import FORWARD, Group, RunKind

OLD_REHEARSAL_SECONDS = 90 * 86400.0
_STATES: dict[RunKind, tuple[str, ...]] = {
    "planned": ("Ready",),
    "unplanned": ("Ready",),
    "permanent": ("Failover",),
    "failback": ("Failover", "ReadyToSwitch"),
    "commit": ("Failback",),
}
_DOING = {
    "planned": "fail over {}",
    "unplanned": "fail over {}",
    "permanent": "make the failover of {} permanent",
    "failback": "fail {} back",
    "commit": "commit the failback of {}",
}


def look_all(
    group: Group, found: Sequence[Found], kind: RunKind, opens: Opens | None = None
) -> list[Readiness]:
    """Of all replicas of a group. What is wrong with all together stands with the first."""
    servers = Servers(opens)
    try:
        rows = [look(one, kind, group, servers) for one in found]
    finally:
        servers.close()
    if kind in FORWARD and rows:
        try:
            choosing.choose(group, found, kind, "", dry=True)
        except Error as error:
            rows[0].problems.append(
                Problem(what="point", says=error.message, hint=error.hint, group=group.name)
            )
    return rows


def look(
    found: Found, kind: RunKind, group: Group, servers: Servers | None = None
) -> Readiness:
    """One replica. Nothing that it can be is raised: it is among the problems."""
    row = Readiness(
        name=found.name,
        directory=found.directory,
        id=found.id,
        group=group.name,
        datastores=found.datastores,
    )
    if group.rpo_target:
        row.rpo_target = parse_duration(group.rpo_target)
    own = servers is None
    servers = servers or Servers(None)
    try:
        with Replica.open(found.directory) as replica:
            _Look(replica, row, kind, group, servers).all()
    except Error as error:
        _add(row, "state", error.message, error.hint)
    finally:
        if own:
            servers.close()
    for problem in row.problems:
        problem.group, problem.replica = group.name, found.name
    return row


def history(found: Found) -> dict[str, list[float]]:
    """Seconds of what was done with the replica before, by kind of run, newest last.

    A failover's until its machine was on, or up. "rehearsal": of the newest one.

    Raises:
        Error: Its manifest cannot be read.
    """
    with Replica.open(found.directory) as replica:
        return _seconds(replica)


def _add(row: Readiness, what: str, says: str, hint: str = "", *, stops: bool = True) -> None:
    row.problems.append(Problem(what=what, says=says, hint=hint, stops=stops))


class _Look:
    """At one replica that could be opened."""

    def __init__(
        self, replica: Replica, row: Readiness, kind: RunKind, group: Group, servers: Servers
    ) -> None:
        self._replica = replica
        self._manifest: Manifest = replica.manifest
        self._row = row
        self._kind = kind
        self._group = group
        self._servers = servers

    def all(self) -> None:
        manifest, row = self._manifest, self._row
        row.id, row.state, row.held = manifest.id, manifest.state, manifest.held
        row.open = manifest.operation.kind if manifest.operation is not None else ""
        row.tests = sum(trial.state == "running" for trial in manifest.tests)
        row.seconds = _seconds(self._replica)
        self._state()
        parts: list[tuple[str, Callable[[], None]]] = [("point", self._points)]
        said = self._said()
        if said is not None:
            row.hypervisor = said.hypervisor.kind
            parts += [("hypervisor", lambda: self._hypervisor(said))]
            if self._kind in FORWARD:
                parts += [
                    ("room", lambda: self._room(said)),
                    ("network", lambda: self._networks(said)),
                    ("source", lambda: self._source(said)),
                    ("gate", lambda: self._gates(said)),
                ]
        if self._kind in FORWARD:
            parts.append(("rehearsal", self._rehearsal))
        for what, part in parts:
            try:
                part()
            except Error as error:
                _add(row, what, error.message, error.hint)

    # ---- the replica itself ----

    def _state(self) -> None:
        kind, replica = self._kind, self._replica
        try:
            if kind == "test":
                view.require_readable(self._manifest)
            elif kind == "undo":
                if self._manifest.state == "Ready" and not self._manifest.tests:
                    _add(self._row, "state", "there is nothing to undo", stops=False)
            else:
                replica.need_state(*_STATES[kind], doing=_DOING[kind])
        except Error as error:
            _add(self._row, "state", error.message, error.hint)

    def _said(self) -> Config | None:
        """replica.toml; None: it cannot be read, which is told."""
        try:
            said = config.load(self._replica.directory)
            settings = config.machine_of(said, self._manifest.machine)
            conversion.wanted_on(settings, said)
        except Error as error:
            _add(self._row, "replica.toml", error.message, error.hint)
            return None
        return said

    def _points(self) -> None:
        manifest, row = self._manifest, self._row
        points = self._replica.points
        row.points = len(points)
        row.newest = points.latest.time if len(points) else ""
        status = self._ask_ingest()
        row.ingest = status is not None
        newest = points.latest if len(points) else None
        late = rpo.report(manifest.rpo, manifest.gaps, newest, status)
        now = late["group"]
        row.rpo_seconds = now.get("now_seconds") if isinstance(now, dict) else None
        if row.rpo_target is None and manifest.rpo is not None:
            row.rpo_target = manifest.rpo.target_seconds or None
        lasting = next((gap for gap in manifest.gaps if gap.end is None), None)
        gap = (msgspec.to_builtins(lasting) if status is None else status.get("gap")) or {}
        row.gap = gap.get("cause", "")
        if self._kind not in FORWARD or manifest.state == "Failover":
            return
        if not len(points):
            _add(row, "point", "it has no restore point yet", "mark one with: rollpoint mark")
            return
        told = f"the newest point is of {row.newest}"
        if row.gap:
            says = f"a gap lasts since {gap['start']}: {row.gap}; {told}"
            _add(row, "gap", says, "see the source, and that it catches up", stops=False)
        elif manifest.held:
            says = f"replication is on hold; {told}"
            _add(row, "held", says, "rollpoint release lets it go on", stops=False)
        elif not row.ingest and manifest.state == "Ready":
            says = f"no ingest runs, so nothing comes in from the source; {told}"
            _add(row, "ingest", says, f"rollpoint ingest {row.directory}", stops=False)
        if row.rpo_seconds is not None and row.rpo_target and row.rpo_seconds > row.rpo_target:
            _add(
                row,
                "rpo",
                f"a failover now could lose {format_duration(row.rpo_seconds)}, and the target "
                f"is {format_duration(row.rpo_target)}",
                "see rollpoint replica show",
                stops=False,
            )

    def _ask_ingest(self) -> dict[str, Any] | None:
        """What it says of itself, which the manifest learns later; None: none answers."""
        try:
            return control.ask(self._replica.control_path, "status", choosing.ASK_SECONDS)
        except Error:
            return None

    def _rehearsal(self) -> None:
        row = self._row
        done = rehearsal.load(self._replica.directory)
        if done is None:
            _add(row, "rehearsal", "no failover of it was ever rehearsed",
                 f"rollpoint replica rehearse {row.directory}", stops=False)  # fmt: skip
            return
        now_ns = parse_time(now_text())
        age = max(0.0, (now_ns - parse_time(done.time)) / 1e9)
        row.rehearsal = Rehearsed(
            time=done.time,
            age_seconds=age,
            ok=done.ok,
            says="nothing stood in the way" if done.ok else done.error,
        )
        if not done.ok:
            # What has worked since then proves more.
            later = any(
                operation.outcome == "done"
                and operation.kind in ("test", "failover")
                and operation.started > done.time
                for operation in self._manifest.history
            )
            _add(row, "rehearsal", f"the rehearsal of {done.time} failed: {done.error}",
                 done.hint or f"mend that, then rollpoint replica rehearse {row.directory}",
                 stops=not later)  # fmt: skip
        elif age > OLD_REHEARSAL_SECONDS:
            _add(row, "rehearsal", f"it was rehearsed {format_duration(age)} ago",
                 f"rollpoint replica rehearse {row.directory}", stops=False)  # fmt: skip

    # ---- where it is to run ----

    def _skipped(self, check: str, said: Config) -> bool:
        return check in said.checks.skip or check in self._group.skip

    def _room(self, said: Config) -> None:
        row, reserve = self._row, said.checks.reserve
        total = sum(disk.size_bytes for disk in self._manifest.disks)
        if reserve.endswith("%"):
            try:
                row.needed_bytes = int(total * float(reserve[:-1]) / 100)
            except ValueError:
                raise UsageError(
                    f"[checks] reserve = {reserve!r} is no share", 'write it as in "5%"'
                ) from None
        else:
            row.needed_bytes = parse_size(reserve)
        row.free_bytes = rationing.free_bytes(row.directory)
        if self._skipped("room", said) or row.free_bytes is None:
            return
        if row.free_bytes < row.needed_bytes:
            _add(row, "room", f"{row.directory} has {format_size(row.free_bytes)} free, and "
                 f"{format_size(row.needed_bytes)} are to be kept for what the machine writes",
                 "make room, or set [checks].reserve")  # fmt: skip

    def _hypervisor(self, said: Config) -> None:
        table = said.hypervisor
        if table.kind == "vsphere" and not set(self._row.datastores) & set(table.datastores):
            _add(self._row, "datastore", "it lies on no datastore that is known",
                 "say in [hypervisor.datastores] which one is mounted there")  # fmt: skip
        hypervisor = self._servers.of_replica(self._replica.path, table)
        if table.machine:
            try:
                known = hypervisor.is_known(table.machine)
            except Error as error:
                self._servers.failed(hypervisor, error)
                raise
            if not known:
                _add(self._row, "hypervisor", f"{hypervisor.kind} knows no machine {table.machine}",
                     "correct [hypervisor].machine")  # fmt: skip

    def _gates(self, said: Config) -> None:
        """Gates that nothing on this hypervisor can open."""
        asked = {
            gate.kind
            for gate in self._group.gate
            if gate.each == "replica" and self._kind in gate.on
        }
        settings = config.machine_of(said, self._manifest.machine)
        if "heartbeat" in asked and said.hypervisor.kind == "qemu" and not settings.guest_agent:
            raise UsageError(
                "a gate waits for its heartbeat, and it has no channel to a guest agent",
                "set guest_agent = true in [machine] of replica.toml, or take another gate",
            )
        if "marker" in asked and said.hypervisor.kind == "vsphere":
            raise UsageError(
                "a gate waits for a line on its console, and vSphere keeps none",
                "take a gate of the kind heartbeat",
            )

    def _networks(self, said: Config) -> None:
        """What the cards get, and that there is such a network."""
        self._row.networks = wires = self._wires(said)
        if said.hypervisor.kind != "vsphere":
            allowed = ("none",) if self._kind == "test" else ("none", "user")
            for wire in wires.values():
                if wire not in allowed and not self._skipped("network", said):
                    raise UsageError(
                        f"there is no {'isolated ' * (self._kind == 'test')}network {wire!r} on "
                        f"{said.hypervisor.kind}",
                        f"take {' or '.join(allowed)}: network and test_network of the group, and "
                        "of replica.toml",
                    )
            return
        try:
            hypervisor = self._servers.of_replica(self._replica.path, said.hypervisor)
        except Error:
            return  # told already
        require = getattr(hypervisor, "require_network", None)
        for wire in dict.fromkeys(wires.values()):
            if wire == "none" or require is None:
                continue
            try:
                require(wire)
            except UsageError:
                raise
            except Error as error:
                _add(self._row, "network", error.message, error.hint)
                if error.code != "not-found":
                    self._servers.failed(hypervisor, error)
                    return

    def _source(self, said: Config) -> None:
        skipped = self._skipped(proofs.FENCED, said)
        proofs.look(self._row, said, self._kind, skipped, self._servers)

    def _wires(self, said: Config) -> dict[str, str]:
        group, table = self._group, said.hypervisor
        if self._kind == "test":
            return {"*": group.test_network or table.test_network or "none"}
        if isinstance(group.network, str) and group.network:
            return {"*": group.network}
        mapping = group.network if isinstance(group.network, dict) else table.networks
        settings = config.machine_of(said, self._manifest.machine)
        if settings.nic is None and table.kind == "qemu":
            return {}
        wire = settings.network
        if table.kind == "qemu":
            return {wire: wire}
        own = {} if wire == "none" else {wire: mapping.get(wire, mapping.get("*", wire))}
        return {**mapping, **own}


# ---- how long it took before ----


def _seconds(replica: Replica) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for operation in replica.manifest.history:
        if operation.outcome == "done" and operation.seconds:
            taken = operation.rto_seconds or operation.seconds
            found.setdefault(_kind(operation), []).append(taken)
    try:
        done = rehearsal.load(replica.directory)
    except Error:
        done = None  # told by who looks at it
    if done is not None and done.ok and done.seconds:
        found["rehearsal"] = [done.seconds]
    return found


def _kind(operation: Operation) -> str:
    """As a run's kind, where it is one."""
    if operation.kind == "failover":
        return "planned" if operation.planned else "unplanned"
    return {"undo failback": "undo", "commit failback": "commit"}.get(
        operation.kind, operation.kind
    )
