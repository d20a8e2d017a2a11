"""The whole loop, through real NBD clients, against a plain model and an independent reader."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from conftest import require_tool
from fakes import UNFENCED, Plain
from replicas import (
    SEGMENT_BYTES,
    SIZES,
    Source,
    checked_by_qemu,
    digest,
    empty_model,
    ingesting,
    make,
    seen_by_qemu,
)
from rollpoint import hypervisors, replication
from rollpoint import operation as room
from rollpoint.disk import open_disk
from rollpoint.errors import (
    Error,
    ExistsError,
    GapError,
    HypervisorError,
    NotFoundError,
    StateError,
    UsageError,
)
from rollpoint.hypervisor.base import Handle, Machine, State
from rollpoint.manifest import Gap, MachineSettings, Step
from rollpoint.replica import Replica
from rollpoint.units import format_time

POINTS = 50
LOG_HEAD_BYTES = 65536  # in front of the log: header and superblocks, which do change

History = dict[int, dict[str, bytes]]


def feed(path: Path, socket: Path, seed: int, points: int, acts: int) -> History:
    """Random writes from a client, and what the disks held at each restore point."""
    history: History = {}
    with ingesting(path, socket), Replica.open(path) as replica:
        source = Source(socket, empty_model(), seed)
        for number in range(points):
            for _ in range(acts):
                source.act()
            kind = "app" if number % 5 == 0 else "crash"
            point = replication.mark(replica, kind, f"after {number}")
            history[point.id] = source.snapshot()
        source.close()
    return history


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, History]:
    """A replica with 50 points of thousands of writes. Tests leave it Ready."""
    folder = tmp_path_factory.mktemp("fed")
    make(folder / "web01")
    return folder / "web01", feed(folder / "web01", folder / "s", 20261122, POINTS, 80)


def go_through(path: Path, history: History, chosen: list[int], tmp_path: Path) -> None:
    logs = {name: path / f"{name}-journal-log.vmdk" for name in SIZES}
    bases = {name: digest(path / f"{name}-flat.vmdk") for name in SIZES}
    grains = {name: segments(log) for name, log in logs.items()}
    assert all(len(found) > 2 for found in grains.values()), "several segments were wanted"
    with Replica.open(path) as replica:
        for number in chosen:
            done = room.failover(replica, number, power_on=False)
            assert (done.state, done.point) == ("Failover", number)
            for name, interim in done.interims.items():
                checked_by_qemu(interim)
                assert seen_by_qemu(interim, tmp_path) == history[number][name], (number, name)
                assert digest(path / f"{name}-flat.vmdk") == bases[name]
                assert segments(logs[name]) == grains[name], f"log {name}, point {number}"
            assert room.undo(replica).state == "Ready"


def segments(log: Path) -> dict[int, bytes]:
    """The slots of a log that hold what was written, by their number. The others hold roots."""
    data = log.read_bytes()[LOG_HEAD_BYTES:]
    slots = [data[at : at + SEGMENT_BYTES] for at in range(0, len(data), SEGMENT_BYTES)]
    return {number: slot for number, slot in enumerate(slots) if slot[:8] == b"RPSEGMT1"}


def test_every_recovered_disk_equals_the_source_at_the_cut(
    fed: tuple[Path, History], tmp_path: Path
) -> None:
    """G1, G2, G5: a sample of the 50 points, forwards and backwards; all with -m long."""
    path, history = fed
    numbers = sorted(history)
    sample = random.Random(7).sample(numbers, 6)
    go_through(path, history, [*sample, numbers[-1], numbers[0]], tmp_path)


@pytest.mark.long
def test_every_one_of_fifty_points_can_be_recovered(
    fed: tuple[Path, History], tmp_path: Path
) -> None:
    path, history = fed
    numbers = sorted(history)
    random.Random(8).shuffle(numbers)
    go_through(path, history, numbers, tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, History]:
    """A replica of its own with three points."""
    make(tmp_path / "web01")
    return tmp_path / "web01", feed(tmp_path / "web01", tmp_path / "s", 5, 3, 15)


def write_by_qemu(interim: str, model: bytearray, seed: int) -> None:
    """Writes of a hypervisor: QEMU itself, into the overlay."""
    rng = random.Random(seed)
    commands = []
    for _ in range(20):
        length = rng.choice((512, 4096, 12_800))
        offset = rng.randrange((len(model) - length) // 512) * 512
        value = rng.randrange(1, 256)
        if rng.random() < 0.25:
            commands += ["-c", f"write -z {offset} {length}"]
            value = 0
        else:
            commands += ["-c", f"write -P {value} {offset} {length}"]
        model[offset : offset + length] = bytes([value]) * length
    subprocess.run(
        [require_tool("qemu-io"), "-f", "vmdk", *commands, interim],
        check=True,
        capture_output=True,
        timeout=60,
    )


def write_by_engine(interim: str, model: bytearray, seed: int) -> None:
    """Unaligned writes, zeroes and trims through our own engine."""
    rng = random.Random(seed)
    with open_disk(interim, writable=True) as disk:
        for _ in range(20):
            length = rng.randrange(1, 9000)
            offset = rng.randrange(len(model) - length)
            if rng.random() < 0.3:
                disk.zero(length, offset)
                model[offset : offset + length] = bytes(length)
            else:
                data = rng.randbytes(length)
                disk.pwrite(data, offset)
                model[offset : offset + length] = data


def test_writes_to_the_overlay_change_nothing_below_and_undo_drops_them(
    small: tuple[Path, History], tmp_path: Path
) -> None:
    path, history = small
    with Replica.open(path) as replica:
        done = room.failover(replica, 2, power_on=False)
        below = {
            file.name: digest(file) for file in path.glob("*.vmdk") if "-interim" not in file.name
        }
        for name, interim in done.interims.items():
            model = bytearray(history[2][name])
            write_by_qemu(interim, model, 1)
            write_by_engine(interim, model, 2)
            checked_by_qemu(interim)
            assert seen_by_qemu(interim, tmp_path) == model
        assert below == {name: digest(path / name) for name in below}
        undone = room.undo(replica)
        assert (undone.state, replica.manifest.held) == ("Ready", False)
        assert not list(path.glob("*-interim*"))
        again = room.failover(replica, 3, power_on=False)
        for name, interim in again.interims.items():
            assert seen_by_qemu(interim, tmp_path) == history[3][name]


def test_permanent_equals_the_point_and_what_was_written_since(
    small: tuple[Path, History], tmp_path: Path
) -> None:
    path, history = small
    models = {name: bytearray(data) for name, data in history[2].items()}
    with Replica.open(path) as replica:
        done = room.failover(replica, 2, power_on=False)
        for name, interim in done.interims.items():
            write_by_qemu(interim, models[name], 3)
            write_by_engine(interim, models[name], 4)
        ended = room.permanent(replica)
        assert (ended.state, ended.interims) == ("Permanent", {})
        for name, base in ended.bases.items():
            assert seen_by_qemu(base, tmp_path) == models[name]
        assert not [file.name for file in path.glob("*-journal*")]
        assert not [file.name for file in path.glob("*-interim*")]
        with pytest.raises(StateError, match="state is Permanent"):
            room.failover(replica, power_on=False)
        assert replica.verify()["ok"]
        assert sorted(replica.remove()) == ["a.vmdk", "b.vmdk"]
    for name in SIZES:
        assert seen_by_qemu(path / f"{name}.vmdk", tmp_path) == models[name]


def test_permanent_gives_the_base_a_new_content_id(small: tuple[Path, History]) -> None:
    path, _ = small
    before = (path / "a.vmdk").read_text()
    with Replica.open(path) as replica:
        room.failover(replica, power_on=False)
        room.permanent(replica)
    after = (path / "a.vmdk").read_text()
    changed = zip(before.splitlines(), after.splitlines(), strict=True)
    assert {a.split("=")[0].strip() for a, b in changed if a != b} == {"CID", "ddb.longContentID"}


def test_a_moment_means_the_newest_point_not_after_it(small: tuple[Path, History]) -> None:
    path, _ = small
    with Replica.open(path) as replica:
        points = replica.points
        done = room.failover(replica, points[1].time, power_on=False)
        assert done.point == points[1].id
        room.undo(replica)
        moment = format_time(points[2].time_ns - 1_000_000)
        assert room.failover(replica, moment, power_on=False).point == points[1].id


@pytest.mark.parametrize(
    ("to", "error"),
    [
        ("99", NotFoundError),
        (99, NotFoundError),
        ("1999-01-01T00:00:00Z", NotFoundError),
        ("2999-01-01T00:00:00Z", NotFoundError),
        ("soon", UsageError),
        ("", UsageError),
        ("-1", UsageError),
    ],
)
def test_a_point_that_is_not_there_changes_nothing(
    small: tuple[Path, History], to: str | int, error: type[Error]
) -> None:
    path, _ = small
    before = {file.name: digest(file) for file in path.iterdir()}
    with Replica.open(path) as replica, pytest.raises(error):
        room.failover(replica, to, power_on=False)
    assert before == {file.name: digest(file) for file in path.iterdir()}


def test_a_moment_in_a_gap_is_refused_with_the_nearest_points(
    small: tuple[Path, History],
) -> None:
    path, _ = small
    with Replica.open(path) as replica:
        points = replica.points
        with replica.locked():
            replica.manifest.gaps = [
                Gap(start=points[0].time, end=points[1].time, cause="the link was down")
            ]
            replica.save()
        moment = format_time(points[0].time_ns + 2000)
        with pytest.raises(GapError, match="the link was down") as caught:
            room.failover(replica, moment, power_on=False)
        assert f"1 at {points[0].time} before, 2 at {points[1].time} after" in caught.value.hint


def test_a_file_in_an_overlays_place_is_not_touched(small: tuple[Path, History]) -> None:
    path, _ = small
    (path / "b-interim-delta.vmdk").write_text("mine")
    with Replica.open(path) as replica, pytest.raises(ExistsError, match="b-interim-delta"):
        room.failover(replica, power_on=False)
    assert (path / "b-interim-delta.vmdk").read_text() == "mine"
    with Replica.open(path) as replica:
        assert (replica.manifest.state, replica.manifest.held) == ("Ready", False)


# ---- steps that fail, and machines ----


class FakeHypervisor(Plain):
    """Keeps machines in memory; can fail to start, or to stop, or stay silent."""

    def __init__(self, refuse: str = "") -> None:
        self.refuse = refuse
        self.running: dict[str, Machine] = {}
        self.starts = 0

    def start(self, machine: Machine) -> Handle:
        if self.refuse == "start":
            raise HypervisorError("no memory for it")
        if machine.id not in self.running:
            self.running[machine.id] = machine
            self.starts += 1
        return Handle(machine.id, 1, 0, "")

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        if self.refuse == "marker":
            raise HypervisorError(f"{marker} did not come in {timeout_seconds} s")
        return f"{marker} here"

    def power_off(self, machine_id: str, timeout_seconds: float = 10.0) -> None:
        if self.refuse == "power off":
            raise HypervisorError("it does not stop")
        self.running.pop(machine_id, None)

    def status(self, machine_id: str) -> State:
        return "running" if machine_id in self.running else "off"


def test_the_machine_gets_the_overlays_in_the_order_of_the_disks(
    small: tuple[Path, History],
) -> None:
    path, _ = small
    hypervisor = FakeHypervisor()
    settings = MachineSettings(memory_bytes=64 << 20, marker="UP")
    with Replica.open(path) as replica:
        done = room.failover(replica, skip=UNFENCED, hypervisor=hypervisor, settings=settings)
        (machine,) = hypervisor.running.values()
        assert [drive.path for drive in machine.drives] == [
            str(path / "a-interim.vmdk"), str(path / "b-interim.vmdk")
        ]  # fmt: skip
        assert machine.memory_bytes == 64 << 20
        assert done.steps[-1].note == "console: UP here"
        room.undo(replica, hypervisor=hypervisor)
    assert not hypervisor.running


@pytest.mark.parametrize("refuse", ["start", "marker"])
def test_a_machine_that_does_not_come_up_leaves_the_state_found(
    small: tuple[Path, History], refuse: str
) -> None:
    path, _ = small
    hypervisor = FakeHypervisor(refuse)
    with Replica.open(path) as replica:
        with pytest.raises(HypervisorError):
            room.failover(
                replica, skip=UNFENCED, hypervisor=hypervisor, settings=MachineSettings(marker="UP")
            )
        assert not hypervisor.running
        manifest = replica.manifest
        assert (manifest.state, manifest.held, manifest.operation) == ("Ready", False, None)
        assert manifest.history[-1].outcome == "rolled back"
        assert str(manifest.history[-1].error).startswith("power on: ")
        assert not list(path.glob("*-interim*"))
        assert room.failover(replica, power_on=False).state == "Failover"


@pytest.mark.parametrize("failing", room.FAILOVER_STEPS)
@pytest.mark.parametrize("when", ["running", "done"])
def test_a_step_that_fails_is_undone_with_those_before(
    small: tuple[Path, History], failing: str, when: str
) -> None:
    path, _ = small

    def fail(step: Step) -> None:
        if (step.name, step.state) == (failing, when):
            raise OSError("the host is on fire")

    with Replica.open(path) as replica:
        with pytest.raises(OSError, match="on fire"):
            room.failover(replica, skip=UNFENCED, hypervisor=FakeHypervisor(), on_step=fail)
        manifest = replica.manifest
        assert (manifest.state, manifest.held, manifest.operation) == ("Ready", False, None)
        assert manifest.recovered is None
        assert manifest.history[-1].error == f"{failing}: the host is on fire"
        assert not list(path.glob("*-interim*"))
        with replica.journals() as journals:
            assert not journals.held
        assert replication.mark(replica).id == 4


def test_a_hold_that_was_there_before_stays_after_a_failed_failover(
    small: tuple[Path, History],
) -> None:
    path, _ = small
    with Replica.open(path) as replica:
        replication.hold(replica)
        with pytest.raises(HypervisorError):
            room.failover(replica, skip=UNFENCED, hypervisor=FakeHypervisor("start"))
        assert replica.manifest.held
        with replica.journals() as journals:
            assert journals.all_held


def test_where_undoing_fails_too_the_replica_is_failed_and_can_be_resumed(
    small: tuple[Path, History],
) -> None:
    path, _ = small

    class Stubborn(FakeHypervisor):
        def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
            self.refuse = "power off"
            raise HypervisorError("silent")

    hypervisor = Stubborn()
    with Replica.open(path) as replica:
        with pytest.raises(HypervisorError):
            room.failover(
                replica,
                skip=UNFENCED,
                hypervisor=hypervisor,
                settings=MachineSettings(marker="UP"),
            )
        operation = replica.manifest.operation
        assert replica.manifest.state == "Failed"
        assert operation is not None
        assert operation.error == "power on: silent; and undoing it: it does not stop"
        with pytest.raises(StateError):
            room.failover(replica, power_on=False)
        hypervisor.refuse = ""
        done = room.resume(replica, hypervisor=hypervisor)
        assert done is not None
        assert done.state == "Ready"
        assert not list(path.glob("*-interim*"))


def test_an_undo_that_cannot_power_off_keeps_the_failover(small: tuple[Path, History]) -> None:
    path, _ = small
    hypervisor = FakeHypervisor()
    with Replica.open(path) as replica:
        room.failover(replica, skip=UNFENCED, hypervisor=hypervisor)
        hypervisor.refuse = "power off"
        for end in (room.undo, room.permanent):
            with pytest.raises(HypervisorError):
                end(replica, hypervisor=hypervisor)
            assert replica.manifest.state == "Failover"
            assert replica.manifest.operation is None
            assert len(list(path.glob("*-interim.vmdk"))) == 2
        hypervisor.refuse = ""
        assert room.undo(replica, hypervisor=hypervisor).state == "Ready"


def test_asked_twice_with_one_id_it_happens_once(small: tuple[Path, History]) -> None:
    path, _ = small
    hypervisor = FakeHypervisor()
    with Replica.open(path) as replica:
        first = room.failover(replica, 2, skip=UNFENCED, hypervisor=hypervisor, operation_id="one")
        second = room.failover(replica, 2, skip=UNFENCED, hypervisor=hypervisor, operation_id="one")
        assert (second.point, second.interims) == (first.point, first.interims)
        assert [step.name for step in second.steps] == list(room.FAILOVER_STEPS)
        assert hypervisor.starts == 1
        with pytest.raises(StateError, match="state is Failover"):
            room.failover(replica, skip=UNFENCED, hypervisor=hypervisor, operation_id="two")
        with pytest.raises(UsageError, match="was failover, not undo"):
            room.undo(replica, hypervisor=hypervisor, operation_id="one")
        room.undo(replica, hypervisor=hypervisor, operation_id="three")
        assert room.undo(replica, hypervisor=hypervisor, operation_id="three").state == "Ready"
        assert len(replica.manifest.history) == 3


def test_a_real_machine_boots_from_the_recovered_disk(tmp_path: Path) -> None:
    """QEMU starts from the overlay, prints the marker that the point holds, and is stopped."""
    require_tool("qemu-system-x86_64")
    code = bytearray.fromhex("be0000baf8032eac84c07403eeebf7f4ebfd")
    code[1:3] = (0x7C00 + len(code)).to_bytes(2, "little")
    path, size = tmp_path / "r", 1 << 20
    make(path, {"root": size})
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        source = Source(tmp_path / "s", empty_model({"root": size}), 0)
        for text in (b"FIRST", b"SECOND"):
            sector = (bytes(code) + b"MARK " + text + b"\r\n\0").ljust(510, b"\0") + b"\x55\xaa"
            source.write("root", sector, 0)
            replication.mark(replica)
        source.close()
    settings = MachineSettings(memory_bytes=16 << 20, marker="MARK", timeout_seconds=30)
    with Replica.open(path) as replica:
        for number, text in ((1, "FIRST"), (2, "SECOND")):
            done = room.failover(replica, number, skip=UNFENCED, settings=settings)
            assert done.steps[-1].note == f"console: MARK {text}"
            hypervisor = hypervisors.of_replica(replica)
            assert hypervisor.status(replica.manifest.id) == "running"
            assert room.undo(replica).state == "Ready"
            assert hypervisor.status(replica.manifest.id) == "off"
