"""Merging the chains of a QEMU that runs into their bases, by its own block-commit.

While the jobs copy, each chain reads the same as before: a base gets only what a link above
it holds. Then the machine stands still, the jobs copy the rest and wait, and the bases are
synced: now they are the disks, too. The caller records that, and only then the machine
leaves the chains. The jobs have names, so whoever comes after a crash joins them.

QEMU gives a base a new content id at its first write, and looks at the id that the base's
child expects at the first read through it: so that read is done before the merge begins.
The child gets the id that the base has now before anything is decided, and when the merge
is given up.

Source: QEMU's qapi/block-core.json and job.json, block/mirror.c, block/vmdk.c, and trials.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .. import below
from .._native import EXTENT_FLAT, EXTENT_SPARSE, RUN_HOLE, Chain, File, Io
from ..errors import CancelledError, HypervisorError, UnsupportedError
from ..link import Link
from ..links import open_links, problems
from ..units import SECTOR_BYTES
from .qemu_blocks import Top, drop_unused, tops
from .qmp import Qmp

POLL_SECONDS = 0.05
LEVEL_SECONDS_MAX = 60.0  # for what is left when the machine stands still
_RGD = 1 << 1  # flag of a sparse extent: it has two directories, and QEMU writes both


class Part(NamedTuple):
    """One disk and where it goes."""

    number: int
    top: Top
    base: str

    @property
    def job(self) -> str:
        return f"commit-{self.number}"

    @property
    def is_done(self) -> bool:
        return os.path.realpath(self.top.path) == self.base


class Merge:
    """The merge of all disks of one machine. Calls come in the order in which they stand.

    Args:
        wanted: Path of a disk's present top -> path of its base.
        log: QEMU's own messages, where its words on a command of the monitor go.
    """

    def __init__(self, qmp: Qmp, wanted: Mapping[str, str], log: str) -> None:
        self._qmp = qmp
        self._log = log
        bases = {os.path.realpath(top): os.path.realpath(base) for top, base in wanted.items()}
        self.parts = [
            Part(number, top, bases.get(place, place))
            for number, top in enumerate(tops(qmp))
            if (place := os.path.realpath(top.path)) in bases or place in bases.values()
        ]
        if len(self.parts) != len(bases):
            raise HypervisorError(
                f"the machine does not write to all of {', '.join(bases)}",
                "look at what its disks are",
            )

    def begin(self) -> None:
        """Start the jobs that do not run yet.

        Raises:
            UnsupportedError: A base is of a type that QEMU cannot be trusted with.
            HypervisorError: QEMU refuses. Some may have begun.
        """
        known = self._jobs()
        fresh = [part for part in self.parts if not part.is_done and part.job not in known]
        for part in fresh:
            self._prepare(part)
        for part in fresh:
            self._qmp.execute(
                "block-commit",
                job_id=part.job,
                device=part.top.node,
                base_node=self._node_of(part.base),
                auto_finalize=False,
                auto_dismiss=False,
            )

    def copy(self, progress: Callable[[int, int], bool]) -> None:
        """Wait until what is left to copy is only what the guest writes now.

        Raises:
            CancelledError: progress said so. Nothing was given up yet.
            HypervisorError: A job failed, or QEMU is gone.
        """
        while True:
            jobs = self._jobs()
            self._require_well(jobs)
            mine = [jobs[part.job] for part in self.parts if part.job in jobs]
            if all(job["status"] not in ("created", "running", "paused") for job in mine):
                return
            done = sum(job["current-progress"] for job in mine)
            total = sum(job["total-progress"] for job in mine)
            # The whole is told once, by who asked for this.
            if not progress(min(done, max(total - 1, 0)), max(total, 1)):
                raise CancelledError("the merge was given up", "resume goes on with it")
            time.sleep(POLL_SECONDS)

    def level(self) -> int:
        """Copy the rest and sync the bases; returns the bytes that were copied in all.

        The machine stands still. Each job waits afterwards, with nothing left to copy:
        mirror_run leaves its loop only with its source drained and an empty dirty bitmap.
        """
        deadline = time.monotonic() + LEVEL_SECONDS_MAX
        while True:
            jobs = self._jobs()
            self._require_well(jobs)
            mine = {part.job: jobs[part.job] for part in self.parts if part.job in jobs}
            if all(job["status"] in ("pending", "concluded") for job in mine.values()):
                break
            for name, job in mine.items():
                if job["status"] in ("ready", "standby"):
                    with contextlib.suppress(HypervisorError):  # it was told so already
                        self._qmp.execute("job-complete", id=name)
            if time.monotonic() >= deadline:
                raise HypervisorError("what is left to merge does not get less")
            time.sleep(0.002)
        for part in self.parts:
            _sync(part.base)
            if part.job in mine:
                follow(part.top.path)
        return sum(job["current-progress"] for job in mine.values())

    def finish(self) -> None:
        """The machine leaves the chains. It stands still yet."""
        for name, job in self._jobs().items():
            if job["status"] == "pending" and name in {part.job for part in self.parts}:
                self._qmp.execute("job-finalize", id=name)
        self._await_the_end()
        drop_unused(self._qmp)

    def give_up(self) -> None:
        """The machine, which stands still, goes on with its chains.

        QEMU 7.2 was seen to die when a mirror was cancelled with a write in flight.
        """
        known = self._jobs()
        begun = [part for part in self.parts if part.job in known]
        for part in begun:
            with contextlib.suppress(HypervisorError):  # it has ended by itself
                self._qmp.execute("job-cancel", id=part.job)
        with contextlib.suppress(HypervisorError):
            self._await_the_end()
        for part in begun:
            follow(part.top.path)

    def _jobs(self) -> dict[str, dict[str, Any]]:
        return {job["id"]: job for job in self._qmp.execute("query-jobs")}

    def _require_well(self, jobs: Mapping[str, Mapping[str, Any]]) -> None:
        for part in self.parts:
            job = jobs.get(part.job)
            if job is not None and (job.get("error") or job["status"] == "aborting"):
                raise HypervisorError(
                    f"QEMU could not merge {part.top.path}: {job.get('error', 'it stopped')}",
                    f"look at the space and the health of {os.path.dirname(part.base)}",
                )
            if job is None and not part.is_done:
                raise HypervisorError(f"QEMU no longer merges {part.top.path}")

    def _await_the_end(self) -> None:
        """Until no job of ours is left.

        Raises:
            HypervisorError: One of them failed, or does not end.
        """
        deadline = time.monotonic() + LEVEL_SECONDS_MAX
        problem = ""
        while True:
            jobs = self._jobs()
            left = [jobs[part.job] for part in self.parts if part.job in jobs]
            for job in left:
                if job["status"] == "concluded":
                    problem = problem or job.get("error", "")
                    self._qmp.execute("job-dismiss", id=job["id"])
            if not left:
                break
            if time.monotonic() >= deadline:
                raise HypervisorError(f"QEMU's job {left[0]['id']} does not end")
            time.sleep(0.002)
        if problem:
            raise HypervisorError(f"QEMU could not leave the chains: {problem}")

    def _node_of(self, path: str) -> str:
        for node in self._qmp.execute("query-named-block-nodes", flat=True):
            if node["drv"] == "vmdk" and os.path.realpath(node["file"]) == path:
                return str(node["node-name"])
        raise HypervisorError(f"the machine has not got {path} open")

    def _prepare(self, part: Part) -> None:
        """Refuse what would go wrong, and have QEMU look at the base's content id now."""
        with _open(part.top.path) as links:
            if len(links) < 2 or os.path.realpath(links[-1].path) != part.base:
                raise HypervisorError(
                    f"{part.top.path} does not lie above {part.base}", "look at its chain"
                )
            for problem in problems(links[-2:]):
                raise problem
            require_writable(links[-1])
            hole = _hole(links[-2])
            child = os.path.realpath(links[-2].path)
        if hole is not None:
            node = self._node_of(child)
            with open(self._log, encoding="utf-8", errors="replace") as log:
                log.seek(0, os.SEEK_END)
                self._qmp.execute(
                    "human-monitor-command", command_line=f'qemu-io {node} "read {hole} 512"'
                )
                told = log.read()
            if "read 512/512 bytes" not in told:
                raise HypervisorError(
                    f"QEMU cannot read {part.base} through {child}: {' '.join(told.split())}"
                )


def follow(top: str) -> None:
    """Let the base's child in a chain expect the content id that the base has now.

    Right after a merge that was begun, as long as the chain holds all that it wrote.
    """
    with _open(top) as links:
        names = [link.name for link in links]
    if len(names) > 1:
        place = Io.posix().open_dir(os.path.dirname(os.path.realpath(top)))
        with contextlib.closing(place):
            below.follow(place, names[-2])


def require_writable(base: Link) -> None:
    """Refuse a base that QEMU would not write, or would destroy.

    It writes at the file's start where a grain directory has no table: see docs/formats.md.

    Raises:
        UnsupportedError: It has to be merged offline.
    """
    for (_, file), kind, header in zip(base.extents, base.kinds, base.headers, strict=True):
        if kind == EXTENT_FLAT:
            continue
        whole = kind == EXTENT_SPARSE and file is not None and header is not None
        if not whole or not _has_all_tables(file, header):
            raise UnsupportedError(
                f"QEMU cannot be trusted to write {base.path} ({base.type}"
                + (", where grain tables are missing)" if whole else ")"),
                "power the machine off: it can be merged offline",
            )


def _has_all_tables(file: File | None, header: Mapping[str, int] | None) -> bool:
    assert file is not None
    assert header is not None
    per_table = header["grain_sectors"] * header["entries_per_table"]
    tables = -(-header["capacity_sectors"] // per_table)
    directories = [header["directory_sector"]]
    if header["flags"] & _RGD:
        directories.append(header["redundant_directory_sector"])
    return all(
        0 not in struct.unpack(f"<{tables}I", file.pread(4 * tables, at * SECTOR_BYTES))
        for at in directories
    )


def _hole(link: Link) -> int | None:
    """Where the link itself holds nothing, in bytes; None: it holds all of the disk."""
    alone = Chain([link.image(False)])
    at = 0
    while at < alone.size_bytes:
        length, kind, *_ = alone.run(at, alone.size_bytes - at)
        if kind == RUN_HOLE:
            return at
        at += length
    return None


def _sync(path: str) -> None:
    with _open(path) as links:
        for file in links[0].files():
            file.sync()


@contextlib.contextmanager
def _open(path: str) -> Iterator[list[Link]]:
    links = open_links(path)
    try:
        yield links
    finally:
        for link in links:
            link.close()
