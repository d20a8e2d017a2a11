"""Making a failover permanent while its machine runs: `permanent --online`.

  stop ingest   as of an offline merge
  merge         the hypervisor merges the chains into the bases
  state, clean up   likewise

While it copies, the chains are the truth: they read the same, whatever a base has got by
now. At its end the machine stands still for a moment, bases and chains hold the same, and
one record in the manifest (recovered.live: "merging", then "merged") makes the bases the
truth. Only after that the machine leaves the chains. So a crash, of the hypervisor or of
this process, leaves either; what is done then is decided by the record and by whether the
machine still runs:

  merging, it runs    the merge is joined, or begun again
  merging, it is off  the chains are merged offline: they hold all that the guest was told
                      is written
  merged, it runs     it leaves the chains
  merged, it is off   nothing is left to do: it is powered on from the bases, by whoever wants
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import hypervisors, merging
from .errors import StateError, UnsupportedError
from .manifest import Operation, Recovered
from .merging import Progress
from .replica import Replica
from .steps import Runner

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor

STEPS = ("stop ingest", "merge", "state", "clean up")


def is_live(operation: Operation) -> bool:
    """Whether a permanent failover was asked for online."""
    return operation.steps[0].name != merging.STEPS[0]


def require_running(replica: Replica, hypervisor: Hypervisor | None) -> None:
    """Refuse to begin where nothing runs, or where it cannot be done.

    Raises:
        StateError: The machine is off, or was never powered on here.
        UnsupportedError: The hypervisor cannot merge while a machine runs.
    """
    running = _recovered(replica).running
    if running is not None:
        hypervisor = hypervisor or hypervisors.of_replica(replica)
    if running is None or hypervisor is None or hypervisor.status(running.machine) == "off":
        raise StateError(
            f"the machine of replica {replica.name} does not run, so nothing is merged online",
            "leave out --online",
        )
    hypervisor.commit(running.machine, {}, lambda done, total: True)


def run(
    replica: Replica, runner: Runner, hypervisor: Hypervisor | None, progress: Progress | None
) -> None:
    """The steps that are not done yet. Inside `locked`."""
    recovered, step = _recovered(replica), runner.operation.step("merge")
    runner.run("stop ingest", lambda: merging.stop_ingest(replica))
    fresh = not recovered.live
    if fresh:
        recovered.live = "merging"
    try:
        runner.run("merge", lambda: _merge(replica, hypervisor, progress))
    except UnsupportedError:
        if fresh:  # it is refused before the first write
            recovered.live, step.state = "", "pending"
        raise
    runner.run("state", lambda: merging.set_state(replica))
    runner.run("clean up", lambda: merging.clean_up(replica))


def _merge(replica: Replica, hypervisor: Hypervisor | None, progress: Progress | None) -> str:
    recovered = _recovered(replica)
    assert recovered.running is not None
    machine = recovered.running.machine
    hypervisor = hypervisor or hypervisors.of_replica(replica)
    if hypervisor.status(machine) == "off":
        hypervisor.let_go(machine)  # its overlays are about to go
        if recovered.live == "merged":
            return "the machine went off after it"
        return f"the machine went off: {merging.merge_all(replica, True, progress)}"
    merged = 0

    def decide(done: int, total: int) -> bool:
        nonlocal merged
        if recovered.live == "merged":
            return True  # there is no way back
        if progress is not None and not progress(replica.name, done, total):
            return False
        if done == total:
            recovered.live, merged = "merged", total
            replica.save()
        return True

    wanted = {
        replica.file(recovered.interims[disk.name]): replica.file(disk.base)
        for disk in replica.manifest.disks
    }
    hypervisor.commit(machine, wanted, decide)
    return f"{merged} bytes, while the machine ran"


def _recovered(replica: Replica) -> Recovered:
    recovered = replica.manifest.recovered
    assert recovered is not None
    return recovered
