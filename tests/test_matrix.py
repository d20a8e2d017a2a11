"""Every state answers every command: it is done, or refused with a type and a way out.

TABLE has a row for each situation and a sign for each command: the state that the command
ends in, "=" where it changes none, or what it is refused with; a refusal changes no
byte of the replica and nothing at the hypervisor, and its hint leads on.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest
from replicas import digest
from rollpoint import failback, operation, replication, trials
from rollpoint.errors import Error, HeldError, LockedError, NotFoundError, StateError
from rollpoint.manifest import Step
from rollpoint.replica import Replica
from rollpoint.view import view
from stage import SOURCE, Stage
from worlds import Crash, Saved, Trouble, World

Command = Callable[[Stage, Replica], object]
REFUSALS: dict[str, type[Error]] = {
    "!state": StateError,
    "!held": HeldError,
    "!none": NotFoundError,
    "!locked": LockedError,
}


def _fail_over(stage: Stage, replica: Replica, **said: object) -> object:
    if "planned" not in said:
        stage.world.cut_power(SOURCE)
    return operation.failover(
        replica, hypervisor=stage.hypervisor, source=stage.hypervisor, **said  # type: ignore[arg-type]
    )


def _planned(stage: Stage, replica: Replica) -> object:
    return _fail_over(stage, replica, planned=True)


def _look(stage: Stage, replica: Replica) -> object:
    with view(replica, "2") as seen:
        return [disk.pread(512, 0) for disk in seen.disks.values()]


def _seed(stage: Stage, replica: Replica) -> object:
    return replica.seed({"a": stage.files["a"]})


COMMANDS: dict[str, Command] = {
    "failover": _fail_over,
    "to": lambda stage, replica: _fail_over(stage, replica, to=1),
    "planned": _planned,
    "test": lambda stage, replica: trials.start(replica, hypervisor=stage.hypervisor),
    "undo": lambda stage, replica: operation.undo(replica, hypervisor=stage.hypervisor),
    "undo-test": lambda stage, replica: trials.undo(replica, "t", hypervisor=stage.hypervisor),
    "permanent": lambda stage, replica: operation.permanent(replica, hypervisor=stage.hypervisor),
    "failback": lambda stage, replica: failback.start(replica, hypervisor=stage.hypervisor),
    "switch": lambda stage, replica: failback.switch(
        replica, hypervisor=stage.hypervisor, source=stage.hypervisor
    ),
    "commit": lambda stage, replica: failback.commit(replica, hypervisor=stage.hypervisor),
    "undo-failback": lambda stage, replica: failback.undo(
        replica, hypervisor=stage.hypervisor, source=stage.hypervisor
    ),
    "resume": lambda stage, replica: operation.resume(
        replica, hypervisor=stage.hypervisor, source=stage.hypervisor
    ),
    "hold": lambda stage, replica: replication.hold(replica),
    "release": lambda stage, replica: replication.release(replica),
    "mark": lambda stage, replica: replication.mark(replica),
    "set": lambda stage, replica: replica.set_retention(window_seconds=7200.0),
    "seed": _seed,
    "remove": lambda stage, replica: replica.remove(),
    "verify": lambda stage, replica: replica.verify(),
    "view": _look,
    "status": lambda stage, replica: failback.status(replica),
}


# ---- situations ----


def _ready(stage: Stage) -> None:
    rng = random.Random(6)
    for _ in range(3):
        stage.write(rng)
        stage.mark()


def _held(stage: Stage) -> None:
    _ready(stage)
    with stage.replica() as replica:
        replication.hold(replica)


def _tested(stage: Stage) -> None:
    _ready(stage)
    with stage.replica() as replica:
        trials.start(replica, hypervisor=stage.hypervisor, operation_id="t")


def _failed_over(stage: Stage) -> None:
    _ready(stage)
    stage.fail_over(2)
    models = {name: bytearray(data) for name, data in stage.points[2].items()}
    stage.write_in_guest(random.Random(7), models)


def _failed_over_and_tested(stage: Stage) -> None:
    _failed_over(stage)
    with stage.replica() as replica:
        trials.start(replica, hypervisor=stage.hypervisor, operation_id="t")


def _copied(stage: Stage) -> None:
    _failed_over(stage)
    with stage.replica() as replica:
        failback.start(replica, hypervisor=stage.hypervisor)


def _switched(stage: Stage) -> None:
    _copied(stage)
    with stage.replica() as replica:
        COMMANDS["switch"](stage, replica)


def _permanent(stage: Stage) -> None:
    _failed_over(stage)
    with stage.replica() as replica:
        COMMANDS["permanent"](stage, replica)


def _cut_short(begin: Callable[[Stage], None], step: str, command: str) -> Callable[[Stage], None]:
    """Killed at the end of that step."""

    def make(stage: Stage) -> None:
        begin(stage)
        stage.world.cut_power(SOURCE)
        saves: list[Saved] = []

        def die(now: Step) -> None:
            if (now.name, now.state) == (step, "done"):
                saves.append(stage.save())
                raise Crash

        acts: dict[str, Callable[[Replica], object]] = {
            "failover": lambda replica: operation.failover(
                replica, hypervisor=stage.hypervisor, source=stage.hypervisor, on_step=die
            ),
            "undo": lambda replica: operation.undo(
                replica, hypervisor=stage.hypervisor, on_step=die
            ),
        }
        with stage.replica() as replica, contextlib.suppress(Crash):
            acts[command](replica)
        stage.world = saves[0].put_back(once=True)

    return make


def _failed(
    begin: Callable[[Stage], None], command: str, *calls: str
) -> Callable[[Stage], None]:
    """Failed, with the hypervisor out of order for these calls from the first on."""

    def make(stage: Stage) -> None:
        begin(stage)
        stage.world.cut_power(SOURCE)
        broken = False

        def trouble(call: str, machine: str) -> Trouble:
            nonlocal broken
            broken = broken or call == calls[0]
            return "refused" if broken and call in calls else ""

        stage.world.trouble = trouble
        with stage.replica() as replica, pytest.raises(Error):
            COMMANDS[command](stage, replica)
        stage.world.trouble = World.trouble

    return make


def _failed_permanent(stage: Stage) -> None:
    """Its merge has begun, and cannot go on: somebody took a file away."""
    _failed_over(stage)

    def rob(step: Step) -> None:
        if (step.name, step.state) == ("merge", "running"):
            (stage.path / "b-interim-delta.vmdk").rename(stage.folder / "robbed")

    with stage.replica() as replica, pytest.raises(Error):
        operation.permanent(replica, hypervisor=stage.hypervisor, on_step=rob)
    (stage.folder / "robbed").rename(stage.path / "b-interim-delta.vmdk")


SITUATIONS: dict[str, Callable[[Stage], None]] = {
    "Ready": _ready,
    "Ready held": _held,
    "Ready test": _tested,
    "Ready cut": _cut_short(_ready, "hold", "failover"),
    "Processing": _cut_short(_failed_over, "roll back", "undo"),
    "Failover": _failed_over,
    "Failover test": _failed_over_and_tested,
    "Failover cut": _cut_short(_ready, "interim", "failover"),
    "ReadyToSwitch": _copied,
    "Failback": _switched,
    "Failed failover": _failed(_ready, "failover", "start", "power_off"),
    "Failed repoint": _failed(_failed_over, "to", "start", "power_off"),
    "Failed permanent": _failed_permanent,
    "Failed switch": _failed(_copied, "switch", "power_on"),
    "Permanent": _permanent,
}
LEGEND = {
    ".": "!state",
    "h": "!held",
    "?": "!none",
    "l": "!locked",
    "=": "same",
    "R": "Ready",
    "F": "Failover",
    "S": "ReadyToSwitch",
    "B": "Failback",
    "P": "Permanent",
    "x": "gone",
}
# One column for each of COMMANDS, in their order.
TABLE = """
Ready:            F  F  F  =  .  ?  .  .  .  .  .  =  =  =  =  =  .  x  =  =  =
Ready held:       F  F  F  =  .  ?  .  .  .  .  .  =  =  =  h  =  .  x  =  =  =
Ready test:       F  F  F  =  .  =  .  .  .  .  .  =  =  =  =  =  .  .  =  =  =
Ready cut:        .  .  .  =  .  ?  .  .  .  .  .  F  .  .  .  =  .  .  =  =  =
Processing:       .  .  .  =  .  ?  .  .  .  .  .  R  .  .  .  =  .  .  =  =  =
Failover:         .  =  .  =  R  ?  P  S  .  .  .  =  .  .  .  =  .  .  =  =  =
Failover test:    .  =  .  =  R  =  .  S  .  .  .  =  .  .  .  =  .  .  =  =  =
Failover cut:     .  .  .  =  .  ?  .  .  .  .  .  =  .  .  .  =  .  .  =  =  =
ReadyToSwitch:    .  .  .  =  .  ?  .  .  B  .  F  =  .  .  .  =  .  .  =  =  =
Failback:         .  .  .  =  .  ?  .  .  .  R  F  =  .  .  .  =  .  .  =  =  =
Failed failover:  .  .  .  =  R  ?  .  .  .  .  .  R  .  .  .  =  .  .  =  =  =
Failed repoint:   .  .  .  =  .  ?  .  .  .  .  .  F  .  .  .  =  .  .  =  =  =
Failed permanent: .  .  .  .  .  ?  .  .  .  .  .  P  .  .  .  =  .  .  =  .  =
Failed switch:    .  .  .  =  .  ?  .  .  .  .  F  B  .  .  .  =  .  .  =  =  =
Permanent:        .  .  .  .  .  ?  .  .  .  .  .  =  .  .  .  .  .  x  =  .  =
"""


def rows() -> dict[str, dict[str, str]]:
    found = {}
    for line in TABLE.strip().splitlines():
        name, _, words = line.partition(":")
        found[name.strip()] = dict(
            zip(COMMANDS, (LEGEND[sign] for sign in words.split()), strict=True)
        )
    return found


@pytest.fixture(scope="module", params=list(SITUATIONS))
def situation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Stage, Saved]:
    stage = Stage(tmp_path_factory.mktemp("matrix"), World(needs_files=True))
    SITUATIONS[request.param](stage)
    return request.param, stage, stage.save()


def answer(stage: Stage, saved: Saved, command: str) -> tuple[str, Error | None]:
    """The word for what becomes of a command."""
    stage.world = saved.put_back()
    before = stage.manifest.state
    try:
        with stage.replica() as replica:
            COMMANDS[command](stage, replica)
    except Error as error:
        return next(word for word, kind in REFUSALS.items() if type(error) is kind), error
    assert stage.world.violations == []
    if not (stage.path / "replica.json").exists():
        return "gone", None
    after = stage.manifest.state
    return "same" if before == after else after, None


def test_every_state_answers_every_command(situation: tuple[str, Stage, Saved]) -> None:
    name, stage, saved = situation
    found = {}
    for command in COMMANDS:
        found[command], error = answer(stage, saved, command)
        if error is None:
            continue
        assert error.hint, (name, command)
        stage.world, after = saved.put_back(), stage.world
        assert stage.world.log == after.log, (name, command)
    assert found == rows()[name]


def test_what_is_refused_changes_nothing(situation: tuple[str, Stage, Saved]) -> None:
    name, stage, saved = situation
    saved.put_back()
    before = files(stage)
    for command, word in rows()[name].items():
        if word.startswith("!"):
            assert answer(stage, saved, command)[0] == word
            assert files(stage) == before, (name, command)


def files(stage: Stage) -> dict[str, str]:
    return {
        str(path.relative_to(stage.path)): digest(path)
        for path in stage.path.rglob("*")
        if path.is_file()
    }


def test_the_table_has_every_situation() -> None:
    assert list(rows()) == list(SITUATIONS)
