"""What the logs of a replica may use, while an ingest fills them: limits, and warnings.

Ten times a second each journal gets its share of what is left; once a second it is
predicted from the write rate what window fits. A thread of retaining.py looks, its worker
says what it does; the arithmetic is in retention.py.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import retention
from .errors import Error, LockedError
from .manifest import Manifest, Retention
from .replica import Replica
from .retention import Use

if TYPE_CHECKING:
    from ._native import Journal
    from .points import Point

LOOKS_A_SECOND = 10
STUCK_LOOKS = 50  # full, and nothing to give up, for so long: writers wait no more
WAIT_SECONDS = 60.0  # of the worker for somebody else's lock, until that is worth a warning

Clock = Callable[[], int]  # nanoseconds since 1970


class Ration:
    """Of one session of retaining.py.

    Args:
        replica: Of the thread that looks alone: an open replica is for one thread.
        disks: The journals, by disk name.
        points: Those that are kept, oldest first; others add to them and cut them.
        clock: Says what is older than the window.
    """

    def __init__(
        self,
        replica: Replica,
        disks: Sequence[tuple[str, Journal]],
        points: Sequence[Point],
        clock: Clock,
    ) -> None:
        self._replica = replica
        self._disks = disks
        self._points = points
        self._clock = clock
        self.use = Use(0, 0, 1, len(disks))
        self.view = retention.outlook((), 0, 0.0, self.use, 0.0)
        self.wants_point = False  # only a point now would let older ones go
        # What the worker says:
        self.horizon = replica.manifest.horizon
        self.is_idle = False  # it has nothing to do
        self.shortened = False  # it gave up points that the window should have
        self.freed_bytes = 0
        self._waits_for, self._waits_since = "", 0.0
        self._rate = retention.Rate()
        self._looks = self._stuck_looks = 0
        self._limits: dict[str, tuple[int, bool]] = {}
        self._limiting = threading.Lock()  # while they are changed, or lifted
        self._warnings: dict[str, str] = {}
        self._saved: set[str] | None = None  # warnings that the manifest has
        self._news: list[str] = []

    def waits(self, whom: str) -> None:
        """The worker had to leave something for later, for this reason; "": it did not."""
        if whom and not self._waits_for:
            self._waits_since = time.monotonic()
        self._waits_for = whom

    def news(self) -> list[str]:
        """Warnings that are new since the last call."""
        news, self._news = self._news, []
        return news

    def status(self) -> dict[str, object]:
        """For the control socket."""
        view, use = self.view, self.use
        return {
            "window_seconds": view.asked_seconds,
            "kept_seconds": view.kept_seconds,
            "possible_seconds": view.possible_seconds,
            "used_bytes": use.used_bytes,
            "limit_bytes": use.limit_bytes,
            "shortened": self.shortened,
            "warnings": list(self._warnings.values()),
        }

    # ---- limits ----

    def look(self) -> None:
        """Give each journal its limit; once a second, predict and warn."""
        if self._looks % LOOKS_A_SECOND == 0:
            self._replica.refresh()
        keep = self._replica.manifest.retention
        infos = {name: native.info() for name, native in self._disks}
        use = Use(
            sum(int(info["used_bytes"]) for info in infos.values()),
            keep.limit_bytes,
            max(_step_bytes(info) for info in infos.values()),
            len(infos),
        )
        self._stuck_looks = self._stuck_looks + 1 if use.is_full and self.is_idle else 0
        # Who has used up its share waits for the next look: only then is it full for certain.
        # And where room is being made, for that.
        patience = STUCK_LOOKS if keep.at_limit == "shorten" else 1
        waits = self._stuck_looks < patience
        share = max(0, use.limit_bytes - use.used_bytes) // len(infos)
        with self._limiting:
            for name, native in self._disks:
                limit = int(infos[name]["used_bytes"]) + share if use.limit_bytes else 0
                if self._limits.get(name) != (limit, waits):
                    self._limits[name] = limit, waits
                    native.set_limit(limit, waits)
        self.use = use
        newest = self._points[-1].id if self._points else 0
        self.wants_point = (
            keep.at_limit == "shorten" and use.excess_bytes > 0 and newest <= self.horizon
        )
        if self._looks % LOOKS_A_SECOND == 0:
            self._predict(keep, use)
        self._looks += 1

    @property
    def is_limited(self) -> bool:
        """Whether writers may be waiting for room, now or in a moment."""
        return any(limit and waits for limit, waits in list(self._limits.values()))

    @contextlib.contextmanager
    def lending(self) -> Iterator[None]:
        """See Retainer.lending."""
        with self._limiting:
            waiting = {
                name
                for name, (limit, waits) in self._limits.items()
                if limit and waits and self.wants_point
            }
            try:
                for name, native in self._disks:
                    if name in waiting:
                        native.set_limit(0, False)
                yield
            finally:
                for name, native in self._disks:
                    if name in waiting:
                        native.set_limit(*self._limits[name])

    def lift(self) -> None:
        """At the end. A writer that waits for room is inside the gate: nothing could be closed."""
        for _, native in self._disks:
            with contextlib.suppress(Error):
                native.set_limit(0, False)
        self._replica.close()

    # ---- warnings ----

    def _predict(self, keep: Retention, use: Use) -> None:
        now_ns = self._clock()
        self._rate.sample(time.monotonic(), use.used_bytes + self.freed_bytes)
        stops = stops_of(self._replica.manifest, now_ns)
        self.view = view = retention.outlook(
            self._points,
            now_ns,
            keep.window_seconds,
            use,
            self._rate.bytes_per_second,
            stops,
            free_bytes(self._replica.path),
        )
        if view.kept_seconds is not None and view.kept_seconds >= keep.window_seconds:
            self.shortened = False
        refusing = use.is_full and not all(waits for _, waits in self._limits.values())
        found = retention.warnings(view, use, keep, sorted(stops), self.shortened, refusing)
        if self._waits_for and time.monotonic() - self._waits_since >= WAIT_SECONDS:
            found["waits"] = f"the horizon has been waiting for long: {self._waits_for}"
        merging = self._replica.manifest.merging
        if merging is not None and merging.error:
            found["merge"] = (
                f"long-term point {merging.point} expired, and what it holds cannot be merged "
                f"away: {merging.error}"
            )
        self._news += [text for what, text in found.items() if what not in self._warnings]
        self._warnings = found
        if self._saved != set(found):
            with contextlib.suppress(LockedError), self._replica.locked(0.0) as manifest:
                if manifest.warnings or found:
                    manifest.warnings = list(found.values())
                    self._replica.save()
                self._saved = set(found)


def stops_of(manifest: Manifest, now_ns: int) -> frozenset[int]:
    """Points that the horizon may not pass; long-term ones need no journal."""
    return retention.kept_now(manifest, now_ns) - {row.id for row in manifest.frozen}


def free_bytes(path: str) -> int | None:
    """What the file system has free; None where there is none, as on a simulated disk."""
    try:
        facts = os.statvfs(path)
    except OSError:
        return None
    return facts.f_bavail * facts.f_frsize


def _step_bytes(info: dict[str, Any]) -> int:
    """What must be free before a journal takes another segment: it, and a root like today's."""
    segment = int(info["segment_bytes"])
    root = int(info["used_bytes"]) - int(info["segment_count"]) * segment
    return segment + max(root, segment)
