"""Mistakes in operations and fencing, planted in the running engine: each has to be found.

Each is what somebody might write one day: a step in the wrong order, a record too late, a
check forgotten. `operations --mistake NAME` lives random lives with it until one is wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from rollpoint import (
    audit,
    bringing_up,
    checklist,
    ending_failback,
    fencing,
    operation,
    replica,
    replication,
    repointing,
    steps,
    switching_over,
    undoing,
)


class Mistake(NamedTuple):
    what: str
    plant: Callable[[], None]


def _epoch_stays() -> None:
    right = replication.hold_locked

    def hold_locked(of: Any) -> int:
        before = of.manifest.epoch
        of.manifest.epoch -= 1  # which the hold raises again
        right(of)
        of.manifest.epoch = before
        return before

    replication.hold_locked = hold_locked


def _journals_not_fenced() -> None:
    replication._hold_without_ingest = lambda of: None


def _disks_before_power() -> None:
    right = undoing.power_off

    def power_off(of: Any, hypervisor: Any) -> str:
        undoing.drop_interims(of)
        return right(of, hypervisor)

    undoing.power_off = power_off


def _done_before_effect() -> None:
    right = steps.Runner.run

    def run(self: Any, name: str, action: Any, **said: Any) -> None:
        step = self.operation.step(name)

        def early() -> Any:
            step.state = "done"
            self._replica.save()
            return action()

        right(self, name, early, **said)

    steps.Runner.run = run  # type: ignore[method-assign]


def _known_after_it_runs() -> None:
    announce, power_on = bringing_up.BringUp.announce_machine, bringing_up.BringUp.power_on

    def late(self: Any) -> str:
        told = power_on(self)
        announce(self)
        return told

    bringing_up.BringUp.announce_machine = lambda self: None  # type: ignore[method-assign]
    bringing_up.BringUp.power_on = late  # type: ignore[method-assign]


def _off_and_on_again() -> None:
    right = bringing_up.BringUp.power_on

    def power_on(self: Any) -> str:
        machine = self.machine()
        if self.hypervisor.status(machine.id) != "off":
            self.hypervisor.power_off(machine.id)
        return right(self)

    bringing_up.BringUp.power_on = power_on  # type: ignore[method-assign]


def _ids_forgotten() -> None:
    operation.known_outcome = lambda *said: None  # type: ignore[attr-defined]


def _lock_not_taken() -> None:
    replica._lock_within = lambda lock, wait_seconds, path: None


def _way_back_not_recorded() -> None:
    for room in (undoing, repointing, switching_over):
        room.turn_back = lambda of, error: None  # type: ignore[attr-defined]


def _journals_not_rolled() -> None:
    def roll_to_latest(of: Any) -> str:
        of.manifest.recovered = None
        return "latest"

    undoing.roll_to_latest = roll_to_latest


def _rest_not_sent() -> None:
    def forget(self: Any) -> str:
        return "nothing to send"

    switching_over._Switch._send_rest = forget  # type: ignore[method-assign]
    switching_over._Switch._verify = forget  # type: ignore[method-assign]


def _target_stays_on() -> None:
    ending_failback._power_off_target = lambda *said: "off"


def _age_ignored() -> None:
    right = fencing.sufficient

    def sufficient(evidence: Any, policy: Any, now_ns: int, after_ns: int = 0) -> Any:
        return right(evidence, policy, 0, 0)

    fencing.sufficient = sufficient


def _unreachable_is_off() -> None:
    right = fencing.of_hypervisor

    def of_hypervisor(source: Any, machine: str, now_ns: int) -> Any:
        seen = right(source, machine, now_ns)
        seen.kind = "powered_off_confirmed"
        return seen

    fencing.of_hypervisor = of_hypervisor


def _call_not_checked() -> None:
    checklist.at_the_call = lambda context: []


def _former_dropped_early() -> None:
    right = repointing._Repoint._state

    def state(self: Any) -> str:
        told = right(self)
        undoing.drop_overlays(self._replica, self._replica.manifest.former)
        return told

    repointing._Repoint._state = state  # type: ignore[method-assign]


def _outcome_twice() -> None:
    right = audit.end

    def end(manifest: Any, of: Any) -> None:
        kind = manifest.audit.open.get(of.id)
        right(manifest, of)
        if kind is not None:
            audit._add_operation(manifest, of, "outcome", result=of.outcome)

    audit.end = end


def _given_up_too_late() -> None:
    """A merge that has begun is taken for one that has not."""

    def stop_at(of: Any, runner: Any, error: Exception, safe_before: str) -> None:
        of.manifest.state = "Failover"
        with contextlib.suppress(KeyError):
            runner.finish("failed", str(error))

    undoing.stop_at = stop_at


MISTAKES: dict[str, Mistake] = {
    "epoch": Mistake("a hold does not raise the epoch", _epoch_stays),
    "fence": Mistake("a hold does not reach the journals", _journals_not_fenced),
    "disks": Mistake("overlays are dropped before the machine is off", _disks_before_power),
    "early": Mistake("a step is recorded as done before its effect", _done_before_effect),
    "late": Mistake("a machine is recorded after it was started", _known_after_it_runs),
    "twice": Mistake("a machine that runs is started again by resume", _off_and_on_again),
    "ids": Mistake("an id that was asked with before is not known", _ids_forgotten),
    "lock": Mistake("two operations at once", _lock_not_taken),
    "back": Mistake("the way back is not recorded", _way_back_not_recorded),
    "roll": Mistake("an undo leaves the journals at the point", _journals_not_rolled),
    "rest": Mistake("a switch sends no rest, and verifies nothing", _rest_not_sent),
    "target": Mistake("undoing a failback leaves the target on", _target_stays_on),
    "age": Mistake("the age of evidence is not looked at", _age_ignored),
    "answer": Mistake("whatever the source answers, it is taken to be off", _unreachable_is_off),
    "call": Mistake("evidence is not looked at again at the call", _call_not_checked),
    "former": Mistake("the former overlays go before the new ones run", _former_dropped_early),
    "outcome": Mistake("an operation has two outcomes in the audit", _outcome_twice),
    "merge": Mistake("a merge that has begun is given up", _given_up_too_late),
}
