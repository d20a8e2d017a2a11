"""One replica's operation for a plan: begun, gone on with after a crash, or known already.

Asked again with the same operation id, whatever was done of it is not done again, and what it
came to is told from the replica's own record: the same each time.

  test                 trials.start
  planned, unplanned   operation.failover
  undo                 of what is there: the test, the failback, the failover
  permanent            operation.permanent
  failback             failback.start, with an id of its own, and failback.switch
  commit               failback.commit
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from .. import config, failback, hypervisors, operation, trials, undoing
from ..errors import LockedError, StateError
from ..manifest import MachineSettings, Operation, Step
from ..replica import Replica
from .outcomes import (
    KINDS,
    Done,
    Former,
    copy_id,
    done_of,
    ended_badly,
    known,
    nothing_done,
    same_task,
    trial_id,
)
from .tables import RunKind

if TYPE_CHECKING:
    from ..hypervisor.base import Hypervisor

__all__ = ["Deed", "Done", "act", "hypervisor_of"]

WAIT_SECONDS = 30.0  # for a lock: an ingest that notes something, a scrub, a hand at the console
_POLL_SECONDS = 0.1
_sleep = time.sleep
Tell = Callable[[str, str], None]
Progress = Callable[[str, int, int], bool]


class Deed(msgspec.Struct, kw_only=True):
    """What is to be done to one replica.

    Attributes:
        operation: Id of it; asked again with the same one, it is done once.
        point: Of a test or an unplanned failover: "latest", an id as text, or a moment.
        network: Of all cards, by name; or network of the source -> network here, in place
            of those in replica.toml. "": as replica.toml says.
        test_network: Known to be isolated by the plan's word. "": as replica.toml says,
            which is no wire where it says nothing.
        skip: Checks that are not run -> why.
        former: What this ends: {"run", "kind", "operation"}.
    """

    kind: RunKind
    directory: str
    operation: str
    point: str = "latest"
    network: str | dict[str, str] = ""
    test_network: str = ""
    reason: str = ""
    skip: dict[str, str] = {}
    former: dict[str, Any] = {}


def act(
    deed: Deed,
    *,
    tell: Tell,
    hypervisor: Hypervisor | None = None,
    source: Hypervisor | None = None,
    progress: Progress | None = None,
) -> Done:
    """Do it, or what is left of it; returns what it came to.

    Args:
        tell: Called with a step's name and "running" or "done".
        hypervisor, source: Where the replica's machine, and the source, run; by default
            as replica.toml says, and the network map of the deed.
        progress: Of copying: disk, bytes done, bytes in all; False stops.

    Raises:
        StateError: The replica is not in a state that allows it, or the operation ended
            badly: also when that was before.
        LockedError: Somebody else has been at work on it for 30 s.
        Error: A step failed. The message and the hint say what is there now.
    """
    with Replica.open(deed.directory) as replica:
        doing = _Doing(replica, deed, tell, hypervisor, source, progress)
        return _patiently(replica, deed, doing.run)


def hypervisor_of(directory: str) -> Hypervisor:
    """Where the machines of the replica in a directory run, as its replica.toml says.

    Raises:
        Error: It cannot be reached, or is not installed.
    """
    with Replica.open(directory) as replica:
        return hypervisors.of_replica(replica)


def _patiently(replica: Replica, deed: Deed, action: Callable[[], Done]) -> Done:
    """Again, while another one has the replica's lock and nothing was begun.

    Raises:
        LockedError: It still has it; the message says since when.
    """
    begun = time.monotonic()
    while True:
        try:
            return action()
        except LockedError as error:
            waited = time.monotonic() - begun
            replica.refresh()
            if ended_badly(replica.manifest, deed.operation):  # a lock inside one of its steps
                raise
            if waited >= WAIT_SECONDS:
                raise LockedError(
                    f"{error.message}: for {waited:.0f} s now, and {deed.kind} "
                    f"{deed.operation} has not begun",
                    error.hint or "see what works on it, and try again when that has ended",
                ) from None
        _sleep(_POLL_SECONDS)


class _Doing:
    """One deed at one replica."""

    def __init__(
        self,
        replica: Replica,
        deed: Deed,
        tell: Tell,
        hypervisor: Hypervisor | None,
        source: Hypervisor | None,
        progress: Progress | None,
    ) -> None:
        self._replica = replica
        self._deed = deed
        self._tell = tell
        self._hypervisor = hypervisor
        self._source = source
        self._progress = progress

    def run(self) -> Done:
        """Once, with nobody else at the replica."""
        replica, deed = self._replica, self._deed
        if deed.kind == "test":
            return self._test()
        if deed.kind == "undo" and deed.former.get("kind") == "test":
            return self._undo_test()
        with replica.locked():
            ended = known(replica, deed.operation)
            if ended is None and not self._is_open():
                ended = self._after_former_tries()
            if ended is not None:
                return done_of(replica, ended)
            return {
                "planned": self._fail_over,
                "unplanned": self._fail_over,
                "undo": self._undo,
                "permanent": self._permanent,
                "failback": self._fail_back,
                "commit": self._commit,
            }[deed.kind]()

    def _step(self, step: Step) -> None:
        self._tell(step.name, step.state)

    def _is_open(self) -> bool:
        there = self._replica.manifest.operation
        return there is not None and there.id == self._deed.operation

    def _ended(self, id: str) -> Done:
        ended = known(self._replica, id)
        assert ended is not None, f"operation {id} is not remembered"
        return done_of(self._replica, ended)

    # ---- earlier tries of the same task ----

    def _after_former_tries(self) -> Operation | None:
        """Bring an earlier try, which stopped half way, to its end. What it came to counts,
        where it is what is wanted now.
        """
        replica, deed = self._replica, self._deed
        there = replica.manifest.operation
        if there is None or not same_task(there.id, deed.operation):
            return None
        if there.kind == "undo" and replica.manifest.state == "Failed":
            return None  # operation.undo gives it up, and begins again
        self._open_hypervisor()
        operation.resume(
            replica, hypervisor=self._hypervisor, source=self._source, on_step=self._step
        )
        ended = replica.manifest.remembered(there.id)
        wanted = KINDS.get(deed.kind, ())
        if ended is None or ended.outcome != "done" or ended.kind not in wanted:
            return None
        return ended

    # ---- tests ----

    def _test(self) -> Done:
        replica, deed, id = self._replica, self._deed, trial_id(self._deed.operation)
        ended = known(replica, id)
        if ended is None:
            trials.start(
                replica,
                deed.point,
                network=deed.test_network or None,
                isolated=bool(deed.test_network),
                hypervisor=self._hypervisor,
                reason=deed.reason,
                operation_id=id,
                on_step=self._step,
            )
        return self._ended(id)

    def _undo_test(self) -> Done:
        replica, id = self._replica, trial_id(self._deed.former["operation"])
        if any(trial.id == id for trial in replica.manifest.tests):
            trials.undo(replica, id, hypervisor=self._hypervisor, on_step=self._step)
        ended = known(replica, f"undo-{id}")
        if ended is None:
            return self._nothing(f"test failover {id} had ended already")
        return done_of(replica, ended)

    # ---- failovers ----

    def _fail_over(self) -> Done:
        replica, deed = self._replica, self._deed
        if not self._is_open():
            self._refuse_other_failover()
        self._open_hypervisor()
        operation.failover(
            replica,
            None if deed.point == "latest" else deed.point,
            hypervisor=self._hypervisor,
            source=self._source,
            planned=deed.kind == "planned",
            skip=deed.skip,
            reason=deed.reason,
            settings=self._settings(),
            operation_id=deed.operation,
            on_step=self._step,
        )
        return self._ended(deed.operation)

    def _refuse_other_failover(self) -> None:
        """Asked with a point, a failover of what is failed over would change its point.

        Raises:
            StateError: It is failed over, by another operation.
        """
        manifest = self._replica.manifest
        recovered = manifest.recovered
        if manifest.state == "Failover" and recovered is not None:
            raise StateError(
                f"cannot fail over replica {manifest.name}: it is failed over already, by "
                f"operation {recovered.operation}, to restore point {recovered.point}",
                "where that is what is wanted, skip it in the plan; rollpoint undo ends it",
            )

    def _settings(self) -> MachineSettings | None:
        """With the network that the plan gives all cards."""
        wire = self._deed.network
        if not wire or isinstance(wire, dict):
            return None
        replica = self._replica
        settings = config.machine_of(config.load(replica.directory), replica.manifest.machine)
        return msgspec.structs.replace(settings, network=wire)

    def _open_hypervisor(self) -> None:
        """With the plan's map of networks, where it has one."""
        wanted = self._deed.network
        if self._hypervisor is None and wanted:
            networks = wanted if isinstance(wanted, dict) else {"*": wanted}
            table = config.load(self._replica.directory).hypervisor
            self._hypervisor = hypervisors.open_hypervisor(
                msgspec.structs.replace(table, networks=networks), self._replica.path
            )

    # ---- what ends them ----

    def _undo(self) -> Done:
        replica, deed = self._replica, self._deed
        manifest, former = replica.manifest, Former.of(deed.former)
        there = manifest.operation
        failing_back = manifest.state in ("ReadyToSwitch", "Failback") or (
            there is not None and there.kind in operation.FAILBACKS
        )
        if not self._is_open():
            former.require_undoable(manifest)
            if there is None and manifest.state == "Ready":
                return self._nothing("it was not failed over any more")
            if former.kind == "failback" and not failing_back:
                return self._nothing("its failback had been given up already")
            former.require(manifest)
            if there is not None and there.kind == "failover":
                undoing.roll_back(replica, self._hypervisor, "it was given up", self._source)
                return self._nothing(f"failover {there.id} had not ended, and was taken back")
        if failing_back:
            self._open_hypervisor()
            failback.undo(
                replica,
                hypervisor=self._hypervisor,
                source=self._source,
                skip=deed.skip,
                operation_id=deed.operation,
                reason=deed.reason,
                on_step=self._step,
            )
        else:
            operation.undo(
                replica,
                hypervisor=self._hypervisor,
                operation_id=deed.operation,
                on_step=self._step,
            )
        return self._ended(deed.operation)

    def _nothing(self, why: str) -> Done:
        return nothing_done(self._replica, self._deed.kind, f"replica {self._replica.name}: {why}")

    def _permanent(self) -> Done:
        replica, deed = self._replica, self._deed
        if not self._is_open():
            Former.of(deed.former).require(replica.manifest)
        operation.permanent(
            replica,
            hypervisor=self._hypervisor,
            operation_id=deed.operation,
            on_step=self._step,
            progress=self._progress,
        )
        return self._ended(deed.operation)

    def _fail_back(self) -> Done:
        """The copying is an operation of its own; done by an earlier try, it is not repeated."""
        replica, deed = self._replica, self._deed
        self._open_hypervisor()
        copying = copy_id(deed.operation)
        there = replica.manifest.operation
        copies = there is not None and there.id == copying
        if not copies and replica.manifest.state == "Failover":
            Former.of(deed.former).require(replica.manifest)
            copies = True
        if copies:
            known(replica, copying)  # raises where it ended badly
            failback.start(
                replica,
                hypervisor=self._hypervisor,
                source=self._source,
                operation_id=copying,
                reason=deed.reason,
                on_step=self._step,
                progress=self._progress,
            )
        failback.switch(
            replica,
            hypervisor=self._hypervisor,
            source=self._source,
            operation_id=deed.operation,
            reason=deed.reason,
            on_step=self._step,
            progress=self._progress,
        )
        return self._ended(deed.operation)

    def _commit(self) -> Done:
        replica, deed = self._replica, self._deed
        if not self._is_open():
            Former.of(deed.former).require(replica.manifest)
        failback.commit(
            replica,
            hypervisor=self._hypervisor,
            operation_id=deed.operation,
            reason=deed.reason,
            on_step=self._step,
            progress=self._progress,
        )
        return self._ended(deed.operation)
