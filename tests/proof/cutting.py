"""Each operation, killed at each of its moments, and again in what takes it up.

A case is a state and an operation. All its single cuts are tried, and all pairs: killed at one
moment, `resume` killed at another, or with a call of the hypervisor that fails; then `resume`.
In the end the operation is done, or as if it
had never been, by everything that lives.Life looks at.
"""

from __future__ import annotations

import contextlib
import copy
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from clock import CLOCK  # before the engine is imported
from lives import Call, Life, ViolationError
from moments import Plan, planned
from rollpoint import failback, replication, trials
from rollpoint.errors import Error
from stage import SOURCE
from worlds import EFFECTS, Saved, Trouble

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
CALLS: list[tuple[int, Trouble]] = [
    (number, kind) for number in range(1, 7) for kind in ("refused", "broken")
]  # of resume, that fail: a call without an answer ends as one whose connection broke


class Case(NamedTuple):
    """prepare: brings a life to where the operation begins. ends: in which states it may."""

    prepare: Callable[[Life], None]
    call: Callable[[Life], Call]
    ends: tuple[str, ...]


def _ready(life: Life) -> None:
    life.stage.world.cut_power(SOURCE)


def _with_source(life: Life) -> None:
    """As it is: the source is on."""


def _do(life: Life, call: Call, id: str) -> None:
    with life.stage.replica() as replica:
        call(replica, id, lambda step: None)
    life.look()


def _failed_over(life: Life) -> None:
    _ready(life)
    _do(life, life._failover(1), "first")
    life._guest(life.stage.manifest)


def _copied(life: Life) -> None:
    _failed_over(life)
    _do(life, life._failback, "second")


def _switched(life: Life) -> None:
    _copied(life)
    _do(life, life._switch, "third")


def _held(life: Life) -> None:
    with life.stage.replica() as replica:
        replication.hold(replica)


def _tested(life: Life) -> None:
    _do(life, _test(life), "t")


def _test(life: Life) -> Call:
    return lambda replica, id, on_step: trials.start(
        replica, hypervisor=life.stage.hypervisor, operation_id="t", on_step=on_step
    )


def _undo_test(life: Life) -> Call:
    return lambda replica, id, on_step: trials.undo(
        replica, hypervisor=life.stage.hypervisor, on_step=on_step
    )


def _commit(life: Life) -> Call:
    return lambda replica, id, on_step: failback.commit(
        replica, hypervisor=life.stage.hypervisor, operation_id=id, on_step=on_step
    )


CASES: dict[str, Case] = {
    "failover": Case(_ready, lambda life: life._failover(None), ("Ready", "Failover")),
    "failover to": Case(_ready, lambda life: life._failover(1), ("Ready", "Failover")),
    "failover off": Case(
        _ready, lambda life: life._failover(None, power_on=False), ("Ready", "Failover")
    ),
    "planned": Case(
        _with_source, lambda life: life._failover(None, planned=True), ("Ready", "Failover")
    ),
    "repoint": Case(_failed_over, lambda life: life._failover(2), ("Failover",)),
    "undo": Case(_failed_over, lambda life: life._undo, ("Ready", "Failover")),
    "permanent": Case(_failed_over, lambda life: life._permanent, ("Permanent", "Failover")),
    "failback": Case(_failed_over, lambda life: life._failback, ("ReadyToSwitch", "Failover")),
    "switch": Case(_copied, lambda life: life._switch, ("Failback", "ReadyToSwitch")),
    "commit": Case(_switched, _commit, ("Ready", "Failback")),
    "undo failback": Case(_switched, lambda life: life._undo_failback, ("Failover", "Failback")),
    "give up": Case(_copied, lambda life: life._undo_failback, ("Failover", "ReadyToSwitch")),
    "hold": Case(
        _with_source,
        lambda life: lambda replica, id, on_step: replication.hold(replica),
        ("Ready",),
    ),
    "release": Case(
        _held, lambda life: lambda replica, id, on_step: replication.release(replica), ("Ready",)
    ),
    "test": Case(_with_source, _test, ("Ready",)),
    "undo test": Case(_tested, _undo_test, ("Ready",)),
}


class Cutter:
    """One case, in a folder. Attributes: moments: names of all that it has, uncut."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._case = name, CASES[name]
        self._life = Life(2, folder, files=True)
        while len(self._life.stage.points) < 3:
            self._life._source_writes()
            self._life.stage.mark()
        self._case.prepare(self._life)
        self._life.done.clear()
        self._saved: Saved = self._life.stage.save()
        self.moments = self._begin()[1].passed

    def _begin(self, die_at: int = 0) -> tuple[Life, Plan]:
        """The operation from its beginning, killed at that moment."""
        life = copy.deepcopy(self._life)
        life.stage.world = self._saved.put_back()
        return life, self._run(life, self._case.call(life), die_at)

    def _run(self, life: Life, call: Call, die_at: int) -> Plan:
        plan = Plan(life.stage, die_at)
        try:
            with planned(life.stage, plan), life.stage.replica() as replica:
                call(replica, "cut", plan.on_step)
        except Error as error:
            raise ViolationError(f"{type(error).__name__}: {error.message}") from error
        return plan

    def single(self, first: int) -> int:
        """Killed at that moment, and resumed; returns the moments that resume has."""
        life, _ = self._begin(first)
        plan = self._run(life, life._resume, 0)
        self._rest(life)
        return len(plan.passed)

    def pair(self, first: int, second: int) -> None:
        """Killed at that moment, resume killed at the other one, and resumed."""
        life, _ = self._begin(first)
        self._run(life, life._resume, second)
        life.look()
        self._rest(life)

    def failing(self, first: int, number: int, kind: Trouble) -> bool:
        """Killed at that moment; of resume that call fails. Whether it came to that."""
        life, _ = self._begin(first)
        calls = 0

        def trouble(call: str, machine: str) -> Trouble:
            nonlocal calls
            calls += 1
            if calls != number:
                return ""
            return kind if call in EFFECTS else "refused"

        life.stage.world.trouble = trouble
        with contextlib.suppress(ViolationError):
            self._run(life, life._resume, 0)
        life.below = None  # going back, it may have rolled the journals there and back
        life.look()
        self._rest(life)
        return calls >= number

    def _rest(self, life: Life) -> None:
        life._calmly("resume", life._resume)
        state = life.look().state
        life.need(state in self._case.ends, f"it ends in {state}")
        life.come_to_rest()


def try_case(name: str, chance: float, seed: int) -> tuple[int, int, list[str]]:
    """All single cuts; pairs of cuts, and of a cut and a call that fails, with that chance.

    Returns:
        How many single ones, how many pairs, and what is wrong.
    """
    rng = random.Random(f"{seed} {name}")
    singles = pairs = 0
    wrong = []
    CLOCK.ahead_ns = 0
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        cutter = Cutter(name, Path(folder))
        for first, moment in enumerate(cutter.moments, 1):
            where = f"{name}, killed at {first} ({moment})"
            seconds: Iterator[int] = iter(())
            try:
                seconds = iter(range(1, cutter.single(first) + 1))
                singles += 1
            except Exception as error:
                wrong.append(f"{where}: {type(error).__name__}: {error}")
            for number, kind in CALLS:
                if rng.random() >= chance:
                    continue
                try:
                    pairs += cutter.failing(first, number, kind)
                except Exception as error:
                    wrong.append(f"{where}, call {number} {kind}: {type(error).__name__}: {error}")
            for second in seconds:
                if rng.random() >= chance:
                    continue
                pairs += 1
                try:
                    cutter.pair(first, second)
                except Exception as error:
                    wrong.append(f"{where}, then at {second}: {type(error).__name__}: {error}")
    return singles, pairs, wrong
