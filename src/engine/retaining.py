"""The ring's driver: while an ingest runs, what is older than the window goes into the base.

Two threads beside the ingest's loop. The worker decides where the horizon goes, records
that in the manifest before anything is given up, and has each journal destage up to it;
it never takes more than a share of the time unless room is short. The watch looks ten
times a second how much the logs use, gives each its limit, predicts and warns. Neither
runs while the replica is on hold or failed over. What fails here ends the ingest.

The decisions are in retention.py, and what the native side does in journal.h.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from . import below, frozen, retention, viewers
from .errors import (
    CancelledError,
    Error,
    FailedError,
    HeldError,
    LockedError,
    StateError,
    StorageError,
)
from .kept import Kept
from .manifest import Manifest
from .rationing import Clock, Ration, stops_of
from .replica import Replica
from .retention import Move, Use
from .units import parse_time

if TYPE_CHECKING:
    from ._native import Journal
    from .journals import Journals
    from .points import Point

LOOK_SECONDS = 0.1
ROUND_SECONDS = 1.0
CHECKPOINT_BYTES = 256 << 20
PAUSE_SECONDS_MAX = 1.0


class Retainer:
    """Of one ingest. `start` when it has journals, `stop` before it lets them go.

    Args:
        replica: The ingest's.
        clock: Says what is older than the window.
    """

    def __init__(self, replica: Replica, clock: Clock = time.time_ns) -> None:
        self._replica = replica
        self._clock = clock
        self._session: _Session | None = None

    def start(self, journals: Journals) -> None:
        """Begin; the journals have bases that can be written."""
        self._session = _Session(self._replica, journals, self._clock)
        self._session.start()

    def stop(self) -> None:
        """End, cancelling what is going on. Nobody waits for room any more then.

        May be called twice, and when it never began.
        """
        session, self._session = self._session, None
        if session is not None:
            session.end()

    def news(self) -> list[str]:
        """Warnings that are new since the last call.

        Raises:
            Error: Retention failed, and has stopped.
        """
        return [] if self._session is None else self._session.news()

    @property
    def is_limited(self) -> bool:
        """Whether writers may come to wait for room, and so keep the gate."""
        return self._session is not None and self._session.ration.is_limited

    @contextlib.contextmanager
    def lending(self) -> Iterator[None]:
        """Where only a point makes room, writers that wait for it get it meanwhile.

        For a cut, which waits for them, and lets nobody else in.
        """
        if self._session is None:
            yield
        else:
            with self._session.ration.lending():
                yield

    @property
    def wants_point(self) -> bool:
        """Whether only a restore point now would let older ones go, to make room."""
        return self._session is not None and self._session.ration.wants_point

    def status(self) -> dict[str, object] | None:
        """For the control socket; None while it does not run."""
        return None if self._session is None else self._session.status()


class _Session:
    """From one opening of the journals to their end."""

    def __init__(self, replica: Replica, journals: Journals, clock: Clock) -> None:
        self._journals = journals
        self._disks = list(zip(journals.names, journals.natives, strict=True))
        self._clock = clock
        # Each thread has its own: an open replica is for one thread.
        self._replica = Replica.open(replica.path, replica.directory.io)
        self._points = Kept(journals.points())  # marks add to them, the worker drops
        self.ration = Ration(
            Replica.open(replica.path, replica.directory.io), self._disks, self._points, clock
        )
        journals.on_mark = self._points.append
        self._at = {name: destaged_to(native) for name, native in self._disks}
        self._begun = False  # what is below has its new content ids
        self._kept_ns = -1  # of the newest point that was to be kept for long
        self._gave_back: Use | None = None
        self._doing: dict[str, object] | None = None
        self._resumed = 0.0
        self._failure: Error | None = None
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._threads = [
            # Daemons: where nobody comes to end them, the process ends as in a crash.
            threading.Thread(target=self._run, args=(act, pause, name), name=name, daemon=True)
            for act, pause, name in (
                (self._round, self._wait_for_work, "destage"),
                (self._look, self._wait_to_look, "retention"),
            )
        ]

    # ---- its life ----

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
        self.let_go()

    def let_go(self) -> None:
        self.ration.lift()
        self._journals.on_mark = None
        self._replica.close()

    def news(self) -> list[str]:
        if self._failure is not None:
            raise self._failure
        return self.ration.news()

    def status(self) -> dict[str, object]:
        return {**self.ration.status(), "destaging": self._doing}

    def _run(self, act: Callable[[], None], pause: Callable[[], None], name: str) -> None:
        try:
            while not self._stop.is_set():
                act()
                pause()
        except Error as error:
            self._failure = error
        except Exception as error:  # the ingest must not go on as if all were well
            self._failure = FailedError(f"{name} failed: {error!r}", "start the ingest again")

    def _wait_for_work(self) -> None:
        self._wake.wait(ROUND_SECONDS)
        self._wake.clear()

    def _look(self) -> None:
        self.ration.look()
        if self.ration.use.excess_bytes:
            self._wake.set()

    def _wait_to_look(self) -> None:
        self._stop.wait(LOOK_SECONDS)

    # ---- the worker ----

    def _round(self) -> None:
        """Bring the horizon where it belongs; one that was cut short before comes first."""
        self._replica.refresh()
        if not _is_ready(self._replica.manifest):
            return
        self.ration.is_idle = False
        try:
            if self._replica.manifest.files_of_tests(made=True):
                self._checkpoint()
                _refuse_below_tests(self._replica.manifest)
            self._destage(self._replica.manifest.horizon)
            while (move := self._announce()) is not None:
                self._destage(move.point.id)
                if move.freeze:
                    self._keep_for_long(move.point)
            self._give_back()
            self._expire()
            self._checkpoint()
            self.ration.waits("somebody is looking at a restore point" if self._is_viewed() else "")
        except CancelledError:
            pass
        except LockedError as error:  # an operation or a test goes on: in a later round
            self.ration.waits(error.message)
        except (HeldError, StateError):
            self._replica.refresh()
            if _is_ready(self._replica.manifest):
                raise
        self.ration.is_idle = True

    def _next(self, manifest: Manifest) -> Move | None:
        if self._is_viewed():
            return None
        now_ns = self._clock()
        return retention.next_move(
            self._points,
            now_ns,
            manifest.retention,
            self.ration.use,
            stops_of(manifest, now_ns),
            manifest.horizon,
            max([self._kept_ns, *(parse_time(row.time) for row in manifest.frozen[-1:])]),
        )

    def _is_viewed(self) -> bool:
        """Whether the horizon stays for who looks at a point; short of room it does not.

        For the files of a test it does.
        """
        if self._replica.manifest.files_of_tests():
            return True
        return not self.ration.use.excess_bytes and viewers.present(self._replica.directory)

    def _announce(self) -> Move | None:
        """Record where the horizon goes: from then on nobody can pin what lies before."""
        if self._stop.is_set() or self._next(self._replica.manifest) is None:
            return None
        with self._replica.locked(0.0) as manifest:
            move = self._next(manifest) if _is_ready(manifest) else None
            if move is None:
                return None
            self._begin(manifest)
            manifest.horizon = move.point.id
            kept = {row.id for row in manifest.frozen}
            manifest.notes = [
                note for note in manifest.notes if note.id >= manifest.horizon or note.id in kept
            ]
            self._replica.save()
        self.ration.horizon, self.ration.shortened = move.point.id, move.why == "room"
        return move

    def _begin(self, manifest: Manifest) -> None:
        """Before the first write below the journals. Inside the lock."""
        _refuse_below_tests(manifest)
        if not self._begun:
            below.begin(self._replica.directory, manifest, self._journals.below)
            self._begun = True

    def _destage(self, horizon: int) -> None:
        """Bring every journal's horizon to a point, and its data below."""
        behind = [name for name, at in self._at.items() if at < horizon]
        if behind and not self._begun:
            with self._replica.locked(0.0) as manifest:
                self._begin(manifest)
        for name, native in self._disks:
            if name in behind:
                self._destage_one(name, native, horizon)
        self._points.drop_before(horizon)

    def _destage_one(self, name: str, native: Journal, horizon: int) -> None:
        with self._working(f"destage {name}", horizon):
            self._replica.refresh()  # a test that waits for the end of this sees that it is
            _refuse_below_tests(self._replica.manifest)
            done = native.destage(horizon, self._journals.targets[name], self._progress)
        self._at[name] = horizon
        self.ration.freed_bytes += done["freed_bytes"]

    def _give_back(self) -> None:
        """Short of room, what was left in the log because a root costs more goes as well."""
        horizon = self._replica.manifest.horizon
        if not self.ration.use.excess_bytes or not horizon or self._gave_back == self.ration.use:
            return
        for name, native in self._disks:
            self._destage_one(name, native, horizon)
        self._gave_back = self.ration.use

    def _keep_for_long(self, point: Point) -> None:
        with self._working("keep for long", point.id):
            frozen.freeze(self._replica, self._journals, point, self._progress)
        self._kept_ns = point.time_ns  # also where there was no room for it

    def _expire(self) -> None:
        """Give up long-term points whose time is over."""
        manifest = self._replica.manifest
        if not self._journals.unsettled and not frozen.is_due(manifest, self._clock()):
            return
        with self._working("expire", manifest.frozen[0].id if manifest.frozen else 0):
            frozen.expire(self._replica, self._clock(), self._journals, self._progress)

    @contextlib.contextmanager
    def _working(self, what: str, point: int) -> Iterator[None]:
        """While it lasts, `status` says so."""
        if self._stop.is_set():
            raise CancelledError("the ingest ends, or is put on hold", "it is done later")
        self._resumed = time.monotonic()
        self._doing = {"what": what, "point": point, "done": 0, "total": 0}
        try:
            yield
        finally:
            self._doing = None

    def _progress(self, done: int, total: int) -> bool:
        """Let the ingest have the disks for most of the time, unless it is late."""
        if self._doing is not None:
            self._doing = {**self._doing, "done": done, "total": total}
        share = retention.busy_share(self.ration.view, self.ration.use)
        pause = (time.monotonic() - self._resumed) * (1 / share - 1)
        if pause > 0:
            self._stop.wait(min(pause, PAUSE_SECONDS_MAX))
        self._resumed = time.monotonic()
        return not self._stop.is_set()

    def _checkpoint(self) -> None:
        """So that opening the journals again costs what came after it."""
        for _, native in self._disks:
            info = native.info()
            since = (int(info["entry_count"]) - int(info["root_entry"])) * int(info["grain_bytes"])
            if since < CHECKPOINT_BYTES or self._stop.is_set() or self.ration.use.excess_bytes:
                continue
            try:
                native.checkpoint()
            except StorageError:
                if native.info()["failed"]:
                    raise  # otherwise a limit left no room for it: nothing is lost


def finish(replica: Replica) -> bool:
    """Without an ingest: finish a destage that was cut short. False: there is none.

    Raises:
        LockedError: An operation, or an ingest, is going on.
        DamagedError, StorageError: It failed again.
    """
    with replica.locked() as manifest:
        if not _is_ready(manifest) or not manifest.horizon or manifest.files_of_tests(made=True):
            return False
        with replica.journals() as journals:
            if all(destaged_to(native) >= manifest.horizon for native in journals.natives):
                return False
        with replica.journals(writable=True, with_bases=True, writable_bases=True) as journals:
            below.begin(replica.directory, manifest, journals.below)
            for name, native in zip(journals.names, journals.natives, strict=True):
                native.destage(manifest.horizon, journals.targets[name])
        return True


def _refuse_below_tests(manifest: Manifest) -> None:
    """Nothing is written below the journals while a test has files above that."""
    if manifest.files_of_tests(made=True):
        raise LockedError("a test failover has files above the bases", "rollpoint undo --test")


def _is_ready(manifest: Manifest) -> bool:
    return manifest.state == "Ready" and manifest.operation is None and not manifest.held


def destaged_to(native: Journal) -> int:
    """The point to which a journal has been destaged; 0: unknown, so it is done again."""
    info, first = native.info(), native.points()[:1]
    if not first or not info["horizon_entry"] or info["based_entry"] != info["horizon_entry"]:
        return 0
    return int(first[0][0])
