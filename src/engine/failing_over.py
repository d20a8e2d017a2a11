"""The steps of a failover, and what becomes of one that fails; see operation.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import replication, undoing
from .bringing_up import BringUp
from .replica import Replica
from .steps import OnStep, Outcome, Runner, outcome_of

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor

STEPS = ("hold", "state", "roll back", "interim", "export", "convert", "close", "power on")


def run(
    replica: Replica, hypervisor: Hypervisor | None, on_step: OnStep | None, begun: float
) -> Outcome:
    """All steps of a failover that are not done; on failure back to where it began."""
    runner = Runner(replica, on_step)
    steps = _Failover(replica, runner, hypervisor)
    try:
        steps.run()
    except Exception as error:
        steps.abandon()
        undoing.roll_back(replica, hypervisor, str(getattr(error, "message", error)))
        raise
    operation = runner.finish()
    return outcome_of(replica, operation, begun)


class _Failover:
    """The steps of one failover.

    Three saves come before the power-on call: the intent (with the new epoch), what may
    be found from then on (state, overlays), and the machine that is about to run. What
    lies between them is done again after a crash.
    """

    def __init__(
        self, replica: Replica, runner: Runner, hypervisor: Hypervisor | None
    ) -> None:
        self._replica = replica
        self._runner = runner
        self._up = BringUp(replica, runner, hypervisor)

    def run(self) -> None:
        runner, up = self._runner, self._up
        operation = runner.operation
        runner.run("hold", self._hold, record=False)  # it saves the intent itself
        runner.run("state", self._state, record=False)
        runner.run("roll back", up.roll)
        # A crash before "close" was done may have left half of a conversion behind.
        again = operation.step("close").state != "done"
        runner.run("interim", up.make_interims, again=again, record=False)
        runner.run("export", up.export, again=again, record=False)
        runner.run("convert", up.convert, again=again, record=False)
        runner.run("close", up.close, record=False)
        if operation.power_on:
            up.announce_machine()
            runner.run("power on", up.power_on)
        else:
            runner.skip("power on", "not asked for")

    def abandon(self) -> None:
        self._up.abandon()

    def _hold(self) -> str:
        return f"epoch {replication.hold_locked(self._replica)}"

    def _state(self) -> str:
        manifest, point = self._replica.manifest, self._up.point()
        manifest.state = "Failover"
        manifest.recovered = self._up.recovered()
        return f"point {point.id}, {point.time}"
