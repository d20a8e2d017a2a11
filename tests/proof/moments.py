"""Moments of an operation: where it can be killed, where another one can come in between.

A moment is: a step that is recorded and begins; a step that was done, and not recorded; the
manifest stored, and its lines of the audit not yet; both stored; before, and after, a call of
the hypervisor had its effect; before, and after, an overlay is removed. At each of them the
directory and the world are what a process killed there leaves, and are kept as that.
"""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import clock  # noqa: F401  # before the engine is imported
from rollpoint import audit, bringing_up, interim, manifest, replica
from rollpoint.errors import StorageError
from rollpoint.manifest import Step
from stage import Stage
from worlds import Crash, Saved, World


class Plan:
    """What is to happen at the moments of one operation.

    Args:
        die_at: The number of the moment at which the process is killed; 0: at none.
        visit_at: At that one somebody else tries his luck.
        jam_at: The storage does not remove that overlay; 0: it removes all.
    """

    def __init__(
        self,
        stage: Stage,
        die_at: int = 0,
        visit_at: int = 0,
        visit: Callable[[], object] = lambda: None,
        jam_at: int = 0,
    ) -> None:
        self._stage = stage
        self._jam_at, self._removals = jam_at, 0
        self._die_at, self._visit_at, self._visit = die_at, visit_at, visit
        self._quiet = False
        self.passed: list[str] = []
        self.saved: Saved | None = None
        self.jammed = False

    def on_step(self, step: Step) -> None:
        self.come(f"{step.name} {step.state}")

    def come(self, name: str) -> None:
        if self.saved is not None:
            raise Crash  # nobody is there any more: whoever clears up does nothing
        if self._quiet:
            return
        self.passed.append(name)
        if len(self.passed) == self._visit_at:
            self._quiet = True
            try:
                self._visit()
            finally:
                self._quiet = False
        if len(self.passed) == self._die_at:
            self.saved = self._stage.save()
            raise Crash

    def remove(self, descriptor: str) -> None:
        """An overlay is about to go.

        Raises:
            StorageError: This one does not.
        """
        if self._quiet:
            return
        self._removals += 1
        if self._removals == self._jam_at:
            self.jammed = True
            raise StorageError(
                f"could not remove {descriptor}: input/output error", os_errno=errno.EIO
            )


class Hooks:
    """What of the engine tells of moments; the plan of now; whether locks are waited for."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.patient = True
        self.mounts: weakref.WeakSet[Any] = weakref.WeakSet()

    def come(self, name: str) -> None:
        if self.plan is not None:
            self.plan.come(name)


HOOKS = Hooks()


def install() -> None:
    """Once, in a process that does nothing else."""
    store, store_all, remove = manifest.store, audit.store, interim.remove_interim
    lock_within = replica._lock_within

    def stored(directory: Any, now: Any) -> None:
        store(directory, now)
        HOOKS.come("manifest stored")

    def all_stored(directory: Any, now: Any, *, sync: bool = False) -> None:
        store_all(directory, now, sync=sync)
        HOOKS.come("stored")

    def removed(directory: Any, descriptor: str) -> None:
        HOOKS.come("before an overlay goes")
        if HOOKS.plan is not None:
            HOOKS.plan.remove(descriptor)
        remove(directory, descriptor)
        HOOKS.come("after an overlay went")

    def locked(lock: Any, wait_seconds: float, path: str) -> None:
        lock_within(lock, wait_seconds if HOOKS.patient else 0.0, path)

    def one_by_one(act: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """So that nothing changes while a moment is kept. As side by side, all are tried."""
        results, errors = [], []
        for item in items:
            try:
                results.append(act(item))
            except BaseException as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return results

    class Mount(bringing_up.Mount):
        def __init__(self, *said: Any, **more: Any) -> None:
            HOOKS.mounts.add(self)
            super().__init__(*said, **more)

    manifest.store = stored
    audit.store = all_stored
    interim.remove_interim = removed
    replica._lock_within = locked
    bringing_up.side_by_side = one_by_one
    bringing_up.Mount = Mount  # type: ignore[misc]


@contextmanager
def planned(stage: Stage, plan: Plan) -> Iterator[None]:
    """Do something with a plan. Killed, the stage is what others find then."""
    HOOKS.plan = plan
    stage.world.moment = lambda when, call: HOOKS.come(f"{when} {call}")
    try:
        yield
    except Crash:
        assert plan.saved is not None, "it was not killed by its plan"
    finally:
        HOOKS.plan = None
        stage.world.moment = World.moment
        stage.world.trouble = World.trouble
    if plan.saved is not None:
        for mount in list(HOOKS.mounts):
            mount.abandon()
        stage.world = plan.saved.put_back(once=True)
