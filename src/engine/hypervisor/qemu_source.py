"""A running QEMU as a source: its disks mirrored to NBD exports, and the mirror watched.

Each write of the guest is acknowledged when both the source's disk and the export have it
(copy-mode write-blocking). What QEMU 7.2 does not tell the guest, it tells here:

- While the export is away, writes wait, for as long as the reconnect delay. After that the
  guest goes on unprotected and its writes are noted in a bitmap: a gap begins.
- Resumed, the job copies what the bitmap names, in disk order, not in the order of the
  writes. Until all of it is there the target is no state the source ever had: the gap ends
  only then. The same holds for the first full copy.
- A job that ended is begun anew, with a full copy.
- NBD acknowledges a write before it is durable, and QEMU does not send it again when the
  server comes back. A server that died took such writes with it: its next run, which the
  caller names by a new session, gets a full copy.

Whoever marks restore points has to know of gaps: `tell` is called before a job goes on
after a failure, and again until it succeeds.

Guest flushes are not forwarded and discards are dropped by QEMU: durability is the
ingest's own business.
Source: QEMU's docs/interop/live-block-operations.rst and qapi/block-core.json, and trials.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from ..errors import Error, HypervisorError, UsageError
from .qmp import Qmp

SOCKET_PATH_BYTES_MAX = 107  # sun_path, which QEMU gets as it is
BACK_OFF_SECONDS = (0.25, 0.5, 1.0, 2.0, 5.0)
CHECK_SECONDS = 0.1  # how often a job that catches up is asked how far it is
SESSION_SECONDS = 0.2  # well below the time between two restore points
CANCEL_SECONDS_MAX = 10.0

DiskState = Literal["copying", "in-step", "behind", "lost"]


class Target(NamedTuple):
    """One disk of the source and where it goes.

    Args:
        node: QEMU's node name of the source's disk: "disk0" is a machine's first drive.
        export: Name of the NBD export.
    """

    node: str
    export: str


class Gap(NamedTuple):
    """A time in which the target is no state of the source, in nanoseconds since 1970 UTC."""

    begin_ns: int
    end_ns: int | None  # None: it lasts


class _Disk:
    def __init__(self, target: Target) -> None:
        self.target = target
        self.state: DiskState = "lost"
        self.ready = False
        self.problem = ""
        self.generation = 0
        self.tries = 0
        self.act_at = 0.0  # on the monotonic clock: resume, restart or ask

    @property
    def job(self) -> str:
        return f"mirror-{self.target.export}-{self.generation}"

    @property
    def node(self) -> str:
        # Node names hold at most 31 characters; exports may be longer.
        return f"to-{self.target.node}-{self.generation}"


class SourceMirror:
    """Keeps a machine's disks in step with NBD exports until it is closed.

    Args:
        qmp: Connection to the machine; the mirror takes all its events. Its time-out
            must be longer than reconnect_seconds: QEMU may wait that long.
        socket_path: Unix socket of the exports.
        targets: All disks of the machine.
        sync: "full" copies all first. "none" is right only when the targets hold what
            the disks hold now.
        reconnect_seconds: How long writes wait for an export that is away.
        tell: Called with "gap" and what went wrong, and with "in-step" and "", as they
            happen. A failed call (it raises Error) is repeated. It must not call back.
        session: Names the present run of the server, by any text. It may raise Error
            when the server does not answer.
    """

    def __init__(
        self,
        qmp: Qmp,
        socket_path: str | os.PathLike[str],
        targets: Sequence[Target],
        *,
        sync: Literal["full", "none"] = "full",
        reconnect_seconds: int = 10,
        tell: Callable[[Literal["gap", "in-step"], str], None] | None = None,
        session: Callable[[], str] | None = None,
    ) -> None:
        self._path = os.path.abspath(socket_path)
        if len(os.fsencode(self._path)) > SOCKET_PATH_BYTES_MAX:
            raise UsageError(
                f"{self._path}: a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes",
                "choose a shorter one",
            )
        self._qmp = qmp
        self._disks = [_Disk(target) for target in targets]
        self._sync = sync
        self._reconnect_seconds = reconnect_seconds
        self._tell = tell or (lambda kind, cause: None)
        self._session = session or (lambda: "")
        self._session_seen = ""
        self._session_due = 0.0
        self._told = True  # of the gap that lasts
        self._deaf = ""  # why the last call of tell failed
        self._changed = threading.Condition()
        self._gaps: list[Gap] = []
        self._ending = False  # the guest is off for good
        self._gone = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._supervise, daemon=True)

    def start(self) -> None:
        """Begin to mirror all disks. They are out of step until wait_in_step returns.

        Raises:
            HypervisorError: An export is not there, or not as large as its disk.
            Error: `tell` or `session` failed: the other side is not there.
        """
        self._session_seen = self._session()
        self._gaps.append(Gap(time.time_ns(), None))
        self._tell("gap", "the source is being copied")
        for disk in self._disks:
            self._start_job(disk, self._sync)
        self._thread.start()

    def wait_in_step(self, timeout_seconds: float) -> None:
        """Return when every disk is in step.

        Raises:
            HypervisorError: They are not, after that time, or the machine is gone.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.in_step or self._gone, timeout_seconds)
            if not self.in_step:
                raise HypervisorError(
                    f"the disks are not in step with their exports after {timeout_seconds:g} s: "
                    + (self._gone or self.describe())
                )

    @property
    def in_step(self) -> bool:
        """Whether at this moment each acknowledged write is on the exports, too."""
        return not self._gone and bool(self._gaps) and self._gaps[-1].end_ns is not None

    def gaps(self) -> list[Gap]:
        """All gaps until now, the first full copy included, oldest first."""
        with self._changed:
            return list(self._gaps)

    def describe(self) -> str:
        """The state of each disk and its last problem, in a line."""
        words = [
            f"{disk.target.export} {disk.state}" + (f" ({disk.problem})" if disk.problem else "")
            for disk in self._disks
        ]
        return "; ".join([*words, f"it could not be told: {self._deaf}"] if self._deaf else words)

    def close(self) -> None:
        """End the jobs; the machine goes on, unprotected. May be called again."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        with contextlib.suppress(HypervisorError):
            self._end_jobs()

    def _start_job(self, disk: _Disk, sync: str) -> None:
        disk.generation += 1
        node = {
            "driver": "nbd",
            "node_name": disk.node,
            "server": {"type": "unix", "path": self._path},
            "export": disk.target.export,
            "reconnect_delay": self._reconnect_seconds,
            "discard": "unmap",
        }
        self._qmp.execute("blockdev-add", **node)
        try:
            self._check_sizes(disk)
            self._qmp.execute(
                "blockdev-mirror",
                job_id=disk.job,
                device=disk.target.node,
                target=disk.node,
                sync=sync,
                copy_mode="write-blocking",
                on_target_error="stop",
                on_source_error="report",
            )
        except HypervisorError:
            self._qmp.execute("blockdev-del", node_name=disk.node)
            raise
        disk.state = "copying"
        disk.ready = False

    def _check_sizes(self, disk: _Disk) -> None:
        nodes = self._qmp.execute("query-named-block-nodes", flat=True)
        sizes = {node["node-name"]: node["image"]["virtual-size"] for node in nodes}
        if disk.target.node not in sizes:
            raise HypervisorError(f"the machine has no disk {disk.target.node}")
        if sizes[disk.target.node] != sizes[disk.node]:
            raise HypervisorError(
                f"export {disk.target.export} has {sizes[disk.node]} bytes, the source's disk "
                f"{sizes[disk.target.node]}",
                "create the replica with the sizes of the source's disks",
            )

    def _supervise(self) -> None:
        try:
            while not self._closing.is_set():
                event = self._qmp.next_event(CHECK_SECONDS)
                if event is not None:
                    self._take(event)
                elif not self._qmp.connected:
                    raise HypervisorError("QEMU is gone")
                self._watch_session()
                if self._is_told():
                    for disk in self._disks:
                        self._act(disk)
                    self._end_gap()
        except HypervisorError as error:
            with self._changed:
                self._gone = error.message
                self._changed.notify_all()

    def _watch_session(self) -> None:
        if time.monotonic() < self._session_due:
            return
        self._session_due = time.monotonic() + SESSION_SECONDS
        with contextlib.suppress(Error):
            session = self._session()
            if session != self._session_seen:
                self._begin_gap(time.time_ns())
                for disk in self._disks:
                    disk.state, disk.act_at = "lost", 0.0
                    disk.problem = "another run of the server"
                self._told = False  # the one that was told is gone
                if self._is_told():
                    self._end_jobs()
                    self._session_seen = session

    def _end_jobs(self) -> None:
        """Cancel all jobs, with the guest standing still.

        QEMU 7.2 was seen to die of a segmentation fault, about every tenth time, when a
        mirror was cancelled with a guest's write in flight. Stopping drains them.

        Raises:
            HypervisorError: QEMU is gone, or the jobs do not end.
        """
        running = self._qmp.execute("query-status")["running"]
        if running:
            self._qmp.execute("stop")
        try:
            for disk in self._disks:
                with contextlib.suppress(HypervisorError):  # it has ended already
                    self._qmp.execute("block-job-cancel", device=disk.job, force=True)
            deadline = time.monotonic() + CANCEL_SECONDS_MAX
            while self._qmp.execute("query-block-jobs"):
                if time.monotonic() >= deadline:
                    raise HypervisorError("a cancelled mirror does not end")
                time.sleep(0.005)
        finally:
            if running:
                self._qmp.execute("cont")

    def _is_told(self) -> bool:
        """Whether the other side knows of the gap, if there is one."""
        if not self._told:
            self._told = self._did_tell("gap", self.describe())
        return self._told

    def _did_tell(self, kind: Literal["gap", "in-step"], cause: str) -> bool:
        try:
            self._tell(kind, cause)
            self._deaf = ""
        except Error as error:
            self._deaf = error.message
        return not self._deaf

    def _end_gap(self) -> None:
        if self.in_step or any(disk.state != "in-step" for disk in self._disks):
            return
        if self._did_tell("in-step", ""):
            with self._changed:
                self._gaps[-1] = self._gaps[-1]._replace(end_ns=time.time_ns())
                self._changed.notify_all()

    def _take(self, event: dict[str, Any]) -> None:
        name, data = event["event"], event.get("data", {})
        if name == "SHUTDOWN":
            self._ending = True
        job = data.get("device", data.get("id"))
        disk = next((disk for disk in self._disks if disk.job == job), None)
        if disk is None:
            return
        stamp = event["timestamp"]
        time_ns = stamp["seconds"] * 1_000_000_000 + stamp["microseconds"] * 1000
        if name == "BLOCK_JOB_READY":
            disk.ready = True
            disk.act_at = 0.0
        elif name == "BLOCK_JOB_ERROR":
            self._fall_behind(disk, "behind", f"{data['operation']} failed", time_ns)
        elif name in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
            if self._ending and disk.state == "in-step" and "error" not in data:
                return  # the guest does not run any more, and all that it wrote is there
            self._fall_behind(disk, "lost", data.get("error", "the job ended"), time_ns)

    def _fall_behind(self, disk: _Disk, state: DiskState, problem: str, time_ns: int) -> None:
        with self._changed:
            # QEMU reports each request that failed; all in one outage are one try.
            if disk.state != state:
                disk.act_at = time.monotonic() + BACK_OFF_SECONDS[disk.tries]
                disk.tries = min(disk.tries + 1, len(BACK_OFF_SECONDS) - 1)
            disk.state = state
            disk.problem = problem
        self._begin_gap(time_ns)

    def _act(self, disk: _Disk) -> None:
        """What is due for a disk that is not in step."""
        if disk.state == "in-step" or time.monotonic() < disk.act_at:
            return
        if disk.state == "behind":
            disk.state = "copying"
            self._qmp.execute("block-job-resume", device=disk.job)
            disk.act_at = time.monotonic() + CHECK_SECONDS
        elif disk.state == "lost":
            with contextlib.suppress(HypervisorError):
                self._qmp.execute("blockdev-del", node_name=disk.node)
            try:
                self._start_job(disk, "full")
            except HypervisorError as error:
                if not self._qmp.connected:
                    raise
                disk.problem = error.message
                disk.act_at = time.monotonic() + BACK_OFF_SECONDS[disk.tries]
                disk.tries = min(disk.tries + 1, len(BACK_OFF_SECONDS) - 1)
        elif disk.ready:
            self._ask_how_far(disk)

    def _ask_how_far(self, disk: _Disk) -> None:
        """A ready job with nothing left to copy writes to both sides at once."""
        disk.act_at = time.monotonic() + CHECK_SECONDS
        for job in self._qmp.execute("query-block-jobs"):
            if job["device"] == disk.job:
                done = job["len"] == job["offset"] and job["io-status"] == "ok"
                if job["ready"] and done and not job["paused"]:
                    disk.state = "in-step"
                    disk.problem = ""
                    disk.tries = 0

    def _begin_gap(self, time_ns: int) -> None:
        with self._changed:
            if self._gaps[-1].end_ns is not None:
                self._gaps.append(Gap(time_ns, None))
                self._told = False
