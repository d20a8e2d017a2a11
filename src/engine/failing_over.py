"""The steps of a failover, and what becomes of one that fails; see operation.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import bringing_up, measuring, planned, replication, timers, undoing
from .bringing_up import BringUp
from .errors import Error, HypervisorError
from .replica import Replica
from .steps import OnStep, Outcome, Runner, outcome_of

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor

STEPS = ("check", "hold", "state", *bringing_up.STEPS)


def steps_of(plan: bool) -> tuple[str, ...]:
    """The names of the steps of a failover."""
    if not plan:
        return STEPS
    return ("check", *planned.STEPS, "hold", "compare", "state", *bringing_up.STEPS)


def run(
    replica: Replica,
    hypervisor: Hypervisor | None,
    on_step: OnStep | None,
    begun: float,
    source: Hypervisor | None = None,
) -> Outcome:
    """All steps of a failover that are not done; on failure back to where it began.

    Args:
        source: Where the source runs; None: as replica.toml says.
    """
    runner = Runner(replica, on_step)
    steps = _Failover(replica, runner, hypervisor, source)
    try:
        steps.run()
    except Exception as error:
        steps.abandon()
        why = str(getattr(error, "message", error))
        note = undoing.roll_back(replica, hypervisor, why, source)
        if note and isinstance(error, Error):
            raise HypervisorError(f"{error.message}{note}", "power the source on") from error
        raise
    measuring.duration(runner.operation, begun)
    timers.begin(replica.manifest, runner.operation)
    operation = runner.finish()
    return outcome_of(replica, operation, begun)


class _Failover:
    """The steps of one failover.

    Three saves come before the power-on call: the intent (with the new epoch), what may
    be found from then on (state, overlays), and the machine that is about to run. What
    lies between them is done again after a crash.
    """

    def __init__(
        self,
        replica: Replica,
        runner: Runner,
        hypervisor: Hypervisor | None,
        source: Hypervisor | None,
    ) -> None:
        self._replica = replica
        self._runner = runner
        self._replicating = False  # not known any more, where the hold was before a crash
        self._up = BringUp(replica, runner, hypervisor, source=source)

    def run(self) -> None:
        runner, up = self._runner, self._up
        operation = runner.operation
        # The intent comes first where a check has an effect: a fence.
        said = up.config.source
        runner.run("check", up.check, record=said is not None and bool(said.fence))
        if operation.planned:
            runner.run("shut down", self._shut_down)
            runner.run("last writes", self._last_writes)
        # It saves the intent itself, but not before it tells an external replicator.
        runner.run("hold", self._hold, record=up.config.hold is not None)
        if operation.planned:
            runner.run("compare", self._compare)
        runner.run("state", self._state, record=False)
        up.run()

    def abandon(self) -> None:
        self._up.abandon()

    def _shut_down(self) -> str:
        source = self._up.source
        assert source is not None, "a planned failover without a source"
        return planned.shut_down(self._replica, self._up.config, source)

    def _last_writes(self) -> str:
        point = planned.last_writes(self._replica)
        return f"point {point.id}, {point.time}"

    def _compare(self) -> str:
        cut = planned.compare(self._replica, self._up.config, self._up.point())
        self._runner.operation.cut = cut
        return f"{len(cut.digests)} disk(s) are the same" if cut.digests else "not compared"

    def _hold(self) -> str:
        self._replicating = measuring.is_replicating(self._replica)
        said = replication.hold_outside(self._replica)
        return f"epoch {replication.hold_locked(self._replica)}{said}"

    def _state(self) -> str:
        manifest, point = self._replica.manifest, self._up.point()
        manifest.state = "Failover"
        manifest.recovered = self._up.recovered()
        assert self._up.points is not None
        measuring.loss(manifest, self._up.points, replicating=self._replicating)
        return f"point {point.id}, {point.time}"
