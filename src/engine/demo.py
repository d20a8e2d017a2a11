"""The whole story on this machine: protect, lose, recover, undo, recover, keep.

A guest of ours writes to two disks in QEMU; QEMU mirrors them to the ingest over NBD;
the guest is killed; the replica runs from restore points. Everything that Rollpoint
does here is done by its own command line in processes of their own, as an operator
would do it. Everything it is compared with comes from elsewhere: the source's raw disks,
the guest's console, and qemu-img.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from itertools import pairwise

from . import demo_guest
from .demo_replica import ReplicaSide
from .demo_source import (
    BOOT_SECONDS_MAX,
    DISKS,
    Known,
    Source,
    counters_of,
    first_difference,
)
from .errors import ToolMissingError, VerificationError
from .hypervisor.qemu import INSTALL_HINT, QEMU_PROGRAM
from .report import Step
from .units import format_duration, parse_time

RPO = "1s"
RUN_SECONDS = 4.0
POINTS_MIN = 4
HINT = "rollpoint demo --workspace DIR --keep leaves everything there to be looked at"

OnStep = Callable[[Step], None]


class Demo:
    """One telling of the story.

    Args:
        workspace: An empty directory. What is made in it stays.
        on_step: Called with each step when it was done and found right.
        run_seconds: How long the guest counts before, and again after, the point in
            the middle.
        rpo: Between restore points, as `ingest --rpo` takes it. At least four must
            appear by themselves.
    """

    def __init__(
        self,
        workspace: str | os.PathLike[str],
        on_step: OnStep | None = None,
        *,
        run_seconds: float = RUN_SECONDS,
        rpo: str = RPO,
    ) -> None:
        self._workspace = os.path.realpath(workspace)
        self._run_seconds = run_seconds
        self._rpo = rpo
        self._on_step = on_step or (lambda step: None)
        self._began = 0.0
        self._counted_from = 0.0
        self._count_seconds = 0.0  # from one count of the guest to the next
        self.steps: list[Step] = []

    def run(self) -> list[Step]:
        """Tell it all.

        Raises:
            ToolMissingError: QEMU is not installed; the hint says how to.
            VerificationError: Something was not as it must be. `steps` has what was
                right until then.
            Error: A command failed.
        """
        for program in (QEMU_PROGRAM, "qemu-img"):
            if shutil.which(program) is None:
                raise ToolMissingError(f"{program} is not installed", INSTALL_HINT)
        self._source = Source(os.path.join(self._workspace, "source"))
        self._replica = ReplicaSide(self._workspace)
        try:
            self._create()
            self._replicate()
            middle, middle_id = self._note_middle()
            between, live_id = self._note_live()
            dead = self._lose(middle_id, live_id)
            self._recover_middle(middle, middle_id)
            self._recover_live(middle, between, live_id)
            self._keep(self._recover_latest(dead))
        finally:
            self._source.close()
            self._replica.close()
        return self.steps

    # ---- replication ----

    def _create(self) -> None:
        self._begin()
        self._source.make_disks()
        disks = [word for name, size in DISKS.items() for word in ("--disk", f"{name}={size}")]
        self._replica.rollpoint("replica", "create", self._replica.path, *disks)
        # Who can say that the source is off, before its replica is powered on.
        self._replica.configure(self._source.table())
        self._end("create the source's disks and a replica")

    def _replicate(self) -> None:
        self._begin()
        self._replica.start_ingest(self._rpo)
        self._source.start()
        self._source.protect(self._replica.socket_path, self._replica.control_path)
        self._end("mirror both disks to the ingest", "in step")

    def _note_middle(self) -> tuple[Known, int]:
        """The exact oracle: the guest stands still while its disks are read and marked."""
        self._begin()
        self._source.run()
        self._counted_from = time.monotonic()
        self._source.wait_for(demo_guest.WRITING_MARKER)
        time.sleep(self._run_seconds)
        self._source.freeze()
        known = self._source.known("middle")
        _need(known.counters[1] > 0, "the guest wrote nothing")
        point = self._replica.rollpoint("mark", self._replica.path, "--label", "middle")
        self._source.run()
        self._end("it counts; mark the middle", f"its disks hold {_shown(known.counters)}")
        return known, int(point["id"])

    def _note_live(self) -> tuple[tuple[int, int], int]:
        """The other oracle: marked while it runs, between two counts that it printed."""
        self._begin()
        time.sleep(self._run_seconds / 2)
        before = self._source.printed_count()
        point = self._replica.rollpoint("mark", self._replica.path, "--label", "live")
        between = before, self._source.next_count()
        time.sleep(self._run_seconds / 2)
        self._end("mark while it runs", f"it prints {_shown(between)} around it")
        return between, int(point["id"])

    def _lose(self, middle_id: int, live_id: int) -> Known:
        self._begin()
        self._source.check_in_step()
        self._source.kill()
        dead = self._source.known("dead")
        self._count_seconds = (time.monotonic() - self._counted_from) / dead.counters[0]
        points = self._replica.rollpoint("points", self._replica.path)["points"]
        ids = [point["id"] for point in points]
        _need({middle_id, live_id} <= set(ids), f"{middle_id} and {live_id} are not in {ids}")
        _need(len(ids) >= 2 + POINTS_MIN, f"there are only {len(ids)} restore points")
        times = [parse_time(point["time"]) for point in points]
        widest_ns = max(later - earlier for earlier, later in pairwise(times))
        self._end(
            "kill the source",
            f"{len(ids)} restore points; its disks hold {_shown(dead.counters)}",
            rpo_seconds=widest_ns / 1e9,
        )
        return dead

    # ---- recovery ----

    def _recover_middle(self, middle: Known, point_id: int) -> None:
        bases = self._replica.digests()
        found = self._fail_over("fail over to the middle", str(point_id))
        _need(found == middle.counters, f"the replica found {found}, noted: {middle.counters}")
        self._begin()
        machine = self._replica.machine()
        line = self._wait_for(demo_guest.WRITING_MARKER)
        first = found[1] + 1
        _need(line == f"{demo_guest.WRITING_MARKER}{first}", f"the replica said {line!r}")
        self._wait_for(demo_guest.COUNT_MARKER)
        self._replica.freeze()
        images = self._replica.images_by_qemu(self._replica.interims(), "middle-replica")
        counters = counters_of(images, "the replica at the middle")
        _need(counters[1] >= first, f"nothing was written on: {counters}")
        self._compare_around(middle, images, "at the middle")
        self._end(
            "it writes on, into the interim",
            f"interim holds {_shown(counters)}, every other byte as noted",
        )
        self._undo()
        _need(self._replica.hypervisor.status(machine) == "off", "it runs on after undo")
        _need(self._replica.digests() == bases, "failover and undo changed a base")

    def _recover_live(self, middle: Known, between: tuple[int, int], point_id: int) -> None:
        self._begin()
        where = self._replica.path
        self._replica.rollpoint("failover", where, "--to", str(point_id), "--no-power-on")
        images = self._replica.images_by_us(self._replica.interims(), "live-replica")
        counters = counters_of(images, "the replica at the live point")
        _need(
            between[0] <= counters[1] and counters[0] <= between[1],
            f"the live point holds {counters}, around it were printed {between}",
        )
        self._compare_around(middle, images, "at the live point")
        self._end(
            "fail over to the live mark, no power-on",
            f"disks hold {_shown(counters)}, which is between {_shown(between)}",
        )
        self._undo()

    def _recover_latest(self, dead: Known) -> dict[str, str]:
        """Returns images of the replica's disks after it has written on."""
        found = self._fail_over("fail over to the latest", "latest", dead.counters)
        # When it was killed, its last write may have reached one of the two sides only.
        for disk, (here, there) in enumerate(zip(found, dead.counters, strict=True)):
            _need(abs(here - there) <= 1, f"disk {disk} holds {here}, the dead source's {there}")
        self._begin()
        self._wait_for(demo_guest.COUNT_MARKER)
        self._replica.freeze()
        images = self._replica.images_by_qemu(self._replica.interims(), "latest-replica")
        counters = counters_of(images, "the replica at the latest point")
        _need(counters[1] > found[1], f"nothing was written on: {counters}")
        self._compare_around(dead, images, "at the latest point")
        self._end("it writes on", f"interim holds {_shown(counters)}")
        return images

    def _keep(self, expected: dict[str, str]) -> None:
        self._begin()
        self._replica.rollpoint("permanent", self._replica.path)
        state = self._replica.state()
        _need(state == "Permanent", f"the replica is {state}")
        bases = self._replica.bases()
        for reader, images in (
            ("qemu-img", self._replica.images_by_qemu(bases, "base-by-qemu")),
            ("Rollpoint", self._replica.images_by_us(bases, "base-by-us")),
        ):
            for name, path in expected.items():
                place = first_difference(path, images[name])
                _need(place is None, f"base {name}, read by {reader}, differs at {place}")
        code = self._replica.ingest_ended()
        _need(code == 0, f"the ingest ended with {code}")
        self._end("permanent", "bases hold all of it, read by qemu-img and by Rollpoint")

    # ---- parts of it ----

    def _fail_over(
        self, name: str, to: str, dead: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """Fail over, wait for the guest, and return the counters that it found."""
        self._begin()
        began_ns = time.time_ns()
        done = self._replica.rollpoint("failover", self._replica.path, "--to", to)
        line = self._wait_for(demo_guest.FOUND_MARKER)
        rto_seconds = time.perf_counter() - self._began
        handle = self._replica.hypervisor.handle(self._replica.machine())
        _need(handle is not None, "the replica's machine is gone")
        assert handle is not None
        _need(done["state"] == "Failover", f"the replica is {done['state']}")
        first, second, verdict = demo_guest.parse_found(line)
        _need(verdict == "OK", f"the recovered guest says {line!r}")
        power_on_seconds = (handle.started_ns - began_ns) / 1e9
        told = f"power-on after {format_duration(power_on_seconds)}; "
        told += f"guest found {_shown((first, second))}"
        rpo_seconds = None
        if dead is not None:
            lost = max(dead[0] - first, dead[1] - second, 0)
            told += f", {lost} of {dead[0]} counts lost"
            rpo_seconds = lost * self._count_seconds
        self._end(name, told, rpo_seconds=rpo_seconds, rto_seconds=rto_seconds)
        return first, second

    def _undo(self) -> None:
        self._begin()
        done = self._replica.rollpoint("undo", self._replica.path)
        _need(done["state"] == "Ready", f"the replica is {done['state']}")
        left = self._replica.overlays()
        _need(not left, f"undo left {left}")
        self._end("undo", "Ready, no overlay left")

    def _wait_for(self, marker: str) -> str:
        machine = self._replica.machine()
        return self._replica.hypervisor.wait_for(machine, marker, BOOT_SECONDS_MAX)

    def _compare_around(self, known: Known, images: dict[str, str], where: str) -> None:
        """Whatever the guest does not write must be as it was on the source."""
        for name, path in images.items():
            place = first_difference(known.images[name], path, but_records=True)
            _need(place is None, f"disk {name} {where} differs from the source's at {place}")

    def _begin(self) -> None:
        self._began = time.perf_counter()

    def _end(
        self,
        name: str,
        verified: str = "",
        *,
        rpo_seconds: float | None = None,
        rto_seconds: float | None = None,
    ) -> None:
        seconds = time.perf_counter() - self._began
        step = Step(name, seconds, rpo_seconds, rto_seconds, verified)
        self.steps.append(step)
        self._on_step(step)


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise VerificationError(otherwise, HINT)


def _shown(counters: tuple[int, int]) -> str:
    return f"{counters[0]} and {counters[1]}"
