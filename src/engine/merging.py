"""Making a failover permanent: journal and overlay go into the base, and stay there.

  power off     the machine lets go of its disks (operation.py)
  stop ingest   an ingest that is on hold ends: there will be nothing to replicate to
  merge         what overlay and journal hold is written into each base, and synced
  state         the replica is Permanent: this is the moment from which it is done
  clean up      overlay and journal are removed

While the merge goes on, journal and overlay still hold all that it writes: read
through them the disk shows the same before, during and after; so a merge that was cut
short is done again from the start, and comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable

from . import control, interim
from ._native import Chain, Dir, merge
from .disk import open_disk
from .errors import DamagedError, StateError
from .links import open_links, problems
from .manifest import DiskEntry
from .replica import Replica
from .seed import remove_journal
from .steps import Runner

STEPS = ("power off", "stop ingest", "merge", "state", "clean up")

# called with disk name, bytes done and bytes in all; False stops
Progress = Callable[[str, int, int], bool]


def run(replica: Replica, runner: Runner, progress: Progress | None) -> None:
    """The steps after power off that are not done yet. Inside `locked`."""
    # Once the merge has begun, the content id of a base may have changed already.
    begun = runner.operation.step("merge").state != "pending"
    runner.run("stop ingest", lambda: _stop_ingest(replica))
    runner.run("merge", lambda: _merge_all(replica, begun, progress))
    runner.run("state", lambda: _state(replica))
    runner.run("clean up", lambda: _clean_up(replica))


def _stop_ingest(replica: Replica) -> str:
    try:
        control.ask(replica.control_path, "stop")
    except control.NotRunningError:
        return "none ran"
    replica.manifest.ingest = None
    return "stopped"


def _merge_all(replica: Replica, begun: bool, progress: Progress | None) -> str:
    recovered = replica.manifest.recovered
    assert recovered is not None
    merged = 0
    for disk in replica.manifest.disks:
        merged += _merge(replica.directory, disk, recovered.interims[disk.name], begun, progress)
    return f"{merged} bytes looked through"


def _merge(
    directory: Dir, disk: DiskEntry, overlay: str, begun: bool, progress: Progress | None
) -> int:
    """Merge the two top links of a chain into its base; durable on return."""
    links = open_links(f"{directory.path}/{overlay}", io=directory.io)
    try:
        if [link.name for link in links] != [overlay, disk.journal, disk.base]:
            raise DamagedError(
                f"{directory.path}/{overlay}: its chain is "
                f"{', '.join(link.name for link in links)}",
                f"it should be {overlay}, {disk.journal}, {disk.base}",
            )
        for problem in problems(links[:2] if begun else links):
            raise problem
        with open_disk(
            f"{directory.path}/{disk.base}", writable=True, io=directory.io
        ) as base:
            chain = Chain([link.image(False) for link in links])
            total = chain.size_bytes

            def tell(done: int) -> bool:
                return progress is None or progress(disk.name, done, total)

            merge(chain, 2, base.writing(), progress=tell)
            base.flush()
            return total
    finally:
        for link in links:
            link.close()


def _state(replica: Replica) -> str:
    replica.manifest.state = "Permanent"
    replica.manifest.held = False
    return "Permanent"


def _clean_up(replica: Replica) -> str:
    """Remove overlays and journals: the manifest says Permanent by now."""
    if replica.manifest.state != "Permanent":
        raise StateError("nothing is removed before the replica is Permanent")
    for disk in replica.manifest.disks:
        interim.remove_interim(replica.directory, disk.name)
        remove_journal(replica.directory, disk.name)
        disk.journal = None
    replica.manifest.recovered = None
    replica.manifest.gaps = []
    return f"{len(replica.manifest.disks)} disk(s)"
