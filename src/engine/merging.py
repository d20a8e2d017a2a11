"""Making a failover permanent: journal and overlay go into the base, and stay there.

  power off     the machine lets go of its disks (operation.py)
  stop ingest   an ingest that is on hold ends: there will be nothing to replicate to
  merge         what overlay, journal and delta disks hold is written into each base
  state         the replica is Permanent: this is the moment from which it is done
  clean up      overlay, journal and all delta disks are removed

The chain that is merged is the one that the overlay lies on: the journal and what is below
it, or the links down from the one that shows a long-term point. While the merge goes on,
the links above the base still hold all that it writes: read through them the disk shows the
same before, during and after; so a merge that was cut short is done again from the start,
and comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable

from . import chains, control, interim
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
    runner.run("stop ingest", lambda: stop_ingest(replica))
    runner.run("merge", lambda: merge_all(replica, begun, progress))
    runner.run("state", lambda: set_state(replica))
    runner.run("clean up", lambda: clean_up(replica))


def stop_ingest(replica: Replica) -> str:
    try:
        control.ask(replica.control_path, "stop")
    except control.NotRunningError:
        return "none ran"
    replica.manifest.ingest = None
    return "stopped"


def merge_all(replica: Replica, begun: bool, progress: Progress | None) -> str:
    recovered = replica.manifest.recovered
    assert recovered is not None
    merged = 0
    for disk in replica.manifest.disks:
        parent = recovered.parents.get(disk.name, disk.journal)
        above = [*recovered.overlays(disk.name), parent]
        merged += _merge(replica.directory, disk, above, begun, progress)
    return f"{merged} bytes looked through"


def _merge(
    directory: Dir,
    disk: DiskEntry,
    above: list[str | None],
    begun: bool,
    progress: Progress | None,
) -> int:
    """Merge all links of a chain into its base; durable on return.

    Args:
        above: The first links: the overlays, and what they lie on.
        begun: The base may have its new content id already.
    """
    top = f"{directory.path}/{above[0]}"
    links = open_links(top, io=directory.io)
    try:
        names = [link.name for link in links]
        if names[: len(above)] != above or names[-1] != disk.base:
            raise DamagedError(
                f"{top}: its chain is {', '.join(names)}",
                f"it should begin with {', '.join(map(str, above))}, and end with {disk.base}",
            )
        for problem in problems(links[:-1] if begun else links):
            raise problem
        with open_disk(
            f"{directory.path}/{disk.base}", writable=True, io=directory.io
        ) as base:
            chain = Chain([link.image(False) for link in links])
            total = chain.size_bytes

            def tell(done: int) -> bool:
                return progress is None or progress(disk.name, done, total)

            merge(chain, len(links) - 1, base.writing(), progress=tell)
            base.flush()
            return total
    finally:
        for link in links:
            link.close()


def set_state(replica: Replica) -> str:
    replica.manifest.state = "Permanent"
    replica.manifest.held = False
    return "Permanent"


def clean_up(replica: Replica) -> str:
    """Remove overlays, journals and delta disks: the manifest says Permanent by now."""
    manifest = replica.manifest
    if manifest.state != "Permanent":
        raise StateError("nothing is removed before the replica is Permanent")
    recovered = manifest.recovered
    assert recovered is not None
    for disk in manifest.disks:
        for overlay in recovered.overlays(disk.name):
            interim.remove_interim(replica.directory, overlay)
        remove_journal(replica.directory, disk.name)
        chains.remove_links(replica.directory, manifest, disk)
    for disk in manifest.disks:
        disk.journal = disk.top = None
    manifest.recovered = manifest.freezing = manifest.merging = None
    manifest.frozen, manifest.gaps, manifest.notes = [], [], []
    return f"{len(manifest.disks)} disk(s)"
