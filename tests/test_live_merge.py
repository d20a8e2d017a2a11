"""`permanent --online`: the chains of a real QEMU are merged while it runs.

The guest is qemu-io, through QEMU's monitor. What it was told is written is in the bases in
the end, whoever was killed, and when: QEMU, this process, or both.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypervisor_makers import QemuMaker
from replicas import change, rollpoint, seen_by_qemu
from rollpoint import demo_guest, interim, layering, live_merge, merging, operation, steps
from rollpoint.create import create_disk
from rollpoint.disk import open_disk
from rollpoint.errors import DamagedError, HypervisorError, StateError, UnsupportedError
from rollpoint.hypervisor import qemu_merge
from rollpoint.hypervisor.base import Drive
from rollpoint.hypervisor.qemu import Qemu
from rollpoint.hypervisor.qemu_merge import Merge
from rollpoint.hypervisor.qmp import Qmp
from rollpoint.manifest import MachineSettings
from rollpoint.replica import Replica
from tools import require_tool

SIZES = {"a": (1 << 20) + 7 * 512, "b": 640 << 10}
SKIP = {"source-fenced": "there is none"}
SETTINGS = MachineSettings(memory_bytes=16 << 20)


class World:
    """A replica that is failed over, its machine, and what its disks hold."""

    def __init__(self, folder: Path, seed: int = 1, program: bytes = b"") -> None:
        folder.mkdir(exist_ok=True)
        self.path = folder / "replica"
        self.rng = random.Random(seed)
        sizes = {"a": demo_guest.DISK_BYTES_MIN, "b": demo_guest.DISK_BYTES_MIN}
        sizes = sizes if program else SIZES
        self.model = {name: bytearray(size) for name, size in sizes.items()}
        Replica.create(self.path, list(sizes.items()), segment_bytes=65536).close()
        self.qemu = Qemu(self.path / "run")
        self.guest = QemuMaker(self.path)
        with Replica.open(self.path) as replica:
            with replica.locked(), replica.journals(writable=True, with_bases=True) as journals:
                for name, native in zip(journals.names, journals.natives, strict=True):
                    if not program:
                        change(native.disk(), self.model[name], self.rng, 12)
                    elif name == "a":
                        native.disk().pwrite(program, 0)
                journals.mark("crash")
                for native in journals.natives:
                    native.disk().pwrite(b"after the point" * 999, 4096)
                journals.mark("crash")
            done = operation.failover(
                replica, 1, hypervisor=self.qemu, convert=False, settings=SETTINGS, skip=SKIP
            )
            self.id = replica.manifest.id
            self.interims = dict(done.interims)

    def write(self, times: int = 3) -> None:
        """As the guest does."""
        for _ in range(times):
            number, name = self.rng.choice(list(enumerate(self.model)))
            length = self.rng.randrange(1, 40) * 512
            offset = self.rng.randrange((SIZES[name] - length) // 512) * 512
            byte = self.rng.randrange(1, 256)
            self.guest.write(self.id, number, byte, offset, length)
            self.model[name][offset : offset + length] = bytes([byte]) * length

    def read(self) -> None:
        """The guest reads all that it ever should."""
        for number, (name, data) in enumerate(self.model.items()):
            for offset in range(0, SIZES[name], 32 << 10):
                piece = bytes(data[offset : offset + 512])
                if len(set(piece)) == 1:
                    assert self.guest.reads(self.id, number, piece[0], offset, 512), (name, offset)
            told = self.guest.io(self.id, number, f"read 0 {SIZES[name]}")
            assert f"read {SIZES[name]}/{SIZES[name]} bytes" in told, told

    def permanent(self, **said: object) -> steps.Outcome:
        with Replica.open(self.path) as replica:
            return operation.permanent(replica, hypervisor=self.qemu, online=True, **said)  # type: ignore[arg-type]

    def resume(self) -> steps.Outcome | None:
        with Replica.open(self.path) as replica:
            return operation.resume(replica, hypervisor=self.qemu)

    def check_permanent(self, tmp_path: Path) -> None:
        """No overlay and no journal is left, and the bases hold what the guest wrote."""
        with Replica.open(self.path) as replica:
            assert (replica.manifest.state, replica.manifest.operation) == ("Permanent", None)
            assert replica.verify()["ok"]
        left = [f.name for f in self.path.iterdir() if "-interim" in f.name or "-jour" in f.name]
        assert left == []
        self.qemu.power_off(self.id)
        for name, data in self.model.items():
            same = seen_by_qemu(self.path / f"{name}.vmdk", tmp_path) == data
            assert same, name  # no diff of MiBs is wanted


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.qemu.kill(made.id)


def test_the_machine_runs_on_from_its_bases(world: World, tmp_path: Path) -> None:
    world.write()
    pid = world.qemu.handle(world.id)
    outcome = world.permanent(operation_id="x")
    assert [step.name for step in outcome.steps] == list(live_merge.STEPS)
    assert "while the machine ran" in outcome.steps[1].note
    assert world.permanent(operation_id="x").operation == "x"
    now = world.qemu.handle(world.id)
    assert pid is not None
    assert now is not None
    assert (world.qemu.status(world.id), now.pid) == ("running", pid.pid)
    held = {os.readlink(f"/proc/{pid.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid.pid}/fd")}
    assert not [path for path in held if "-interim" in path or "-journal" in path]
    world.read()
    world.write(6)
    world.check_permanent(tmp_path)
    world.qemu.power_on(world.id)
    world.read()


def test_by_the_command_line(world: World, tmp_path: Path) -> None:
    world.write()
    told = rollpoint("permanent", world.path, "--online")
    assert [step["name"] for step in told["steps"]] == list(live_merge.STEPS)
    assert world.qemu.status(world.id) == "running"
    world.check_permanent(tmp_path)


def test_the_guest_writes_all_the_time(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write()
    copy = Merge.copy

    def meanwhile(self: Merge, progress: Callable[[int, int], bool]) -> None:
        world.write(4)
        copy(self, progress)
        world.read()
        world.write(4)

    monkeypatch.setattr(Merge, "copy", meanwhile)
    world.permanent()
    world.check_permanent(tmp_path)


def die(world: World, victim: str) -> None:
    if victim in ("QEMU", "both"):
        world.qemu.kill(world.id)
    if victim in ("us", "both"):
        os.kill(os.getpid(), signal.SIGKILL)


Act = Callable[[], None]


def before(monkeypatch: pytest.MonkeyPatch, place: object, name: str, act: Act) -> None:
    real = getattr(place, name)

    def replaced(*args: object, **named: object) -> object:
        act()
        return real(*args, **named)

    monkeypatch.setattr(place, name, replaced)


def after(monkeypatch: pytest.MonkeyPatch, place: object, name: str, act: Act) -> None:
    real = getattr(place, name)

    def replaced(*args: object, **named: object) -> object:
        done = real(*args, **named)
        act()
        return done

    monkeypatch.setattr(place, name, replaced)


MOMENTS = {
    "asked for": (before, Qemu, "commit"),
    "jobs begun": (before, Merge, "copy"),
    "copied": (after, Merge, "copy"),
    "standing still, level": (after, Merge, "level"),
    "decided": (before, Merge, "finish"),
    "chains left": (after, Merge, "finish"),
    "merged": (after, Qemu, "commit"),
    "state": (after, merging, "set_state"),
    "one overlay removed": (after, interim, "remove_interim"),
}
# Those at which the record does not say yet that the bases are the disks.
UNDECIDED = list(MOMENTS)[:4]


QUICK = {
    "us": ["jobs begun", "standing still, level", "decided", "chains left", "state"],
    "QEMU": ["decided"],
    "both": ["copied", "decided"],
}
DEATHS = [
    pytest.param(moment, victim, marks=() if moment in QUICK[victim] else pytest.mark.long)
    for moment in MOMENTS
    for victim in ("us", "QEMU", "both")
]


@pytest.mark.parametrize(("moment", "victim"), DEATHS)
def test_whoever_dies_no_write_is_lost(
    world: World, tmp_path: Path, moment: str, victim: str
) -> None:
    world.write()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            monkeypatch = pytest.MonkeyPatch()
            how, place, name = MOMENTS[moment]
            how(monkeypatch, place, name, lambda: die(world, victim))
            world.permanent()
            code = 0
        except HypervisorError:
            code = 2
        finally:
            os._exit(code)
    _, ended = os.waitpid(child, 0)
    if victim == "QEMU":
        assert os.waitstatus_to_exitcode(ended) in (0, 2)
    else:
        assert os.waitstatus_to_exitcode(ended) == -signal.SIGKILL
    with Replica.open(world.path) as replica:
        recovered = replica.manifest.recovered
        if moment in UNDECIDED[:-1] or (moment in UNDECIDED and victim != "QEMU"):
            assert recovered is not None
            assert recovered.live in ("", "merging")
        elif recovered is not None:
            assert recovered.live == "merged"
    if world.qemu.status(world.id) == "running":
        world.read()
        world.write()
    running = world.qemu.status(world.id) != "off"
    assert running == (victim == "us")
    world.resume()
    assert world.qemu.status(world.id) == ("running" if running else "off")
    if running:
        world.read()
        world.write()
    world.check_permanent(tmp_path)
    assert world.resume() is None


def killed_at_word(
    world: World, how: Callable[..., None], number: int, victim: str
) -> int:
    """A process of its own asks for it, and is killed at that command of QMP; its exit code."""
    child = os.fork()
    if child == 0:
        left = [number]

        def one_more() -> None:
            left[0] -= 1
            if left[0] < 0:
                die(world, victim)

        how(pytest.MonkeyPatch(), Qmp, "execute", one_more)
        try:
            world.permanent()
        finally:
            os._exit(0)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended)


@pytest.mark.long
@pytest.mark.parametrize("victim", ["us", "both"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_word_to_qemu(tmp_path: Path, when: str, victim: str) -> None:
    """Every third command of QMP, from another one each time."""
    number = 0 if when == "before" else 1
    code = -signal.SIGKILL
    while code:
        world = World(tmp_path / str(number), seed=number)
        try:
            world.write()
            code = killed_at_word(world, before if when == "before" else after, number, victim)
            if world.qemu.status(world.id) == "running":
                world.read()
                world.write()
            world.resume()
            with Replica.open(world.path) as replica:
                if replica.manifest.state == "Failover":  # it was killed before it began
                    online = world.qemu.status(world.id) != "off"
                    operation.permanent(replica, hypervisor=world.qemu, online=online)
            if victim == "us" or code == 0:
                assert world.qemu.status(world.id) == "running"
                world.write()
            world.check_permanent(tmp_path)
        finally:
            world.qemu.kill(world.id)
        number += 3
    assert number > 20, "it says more to QEMU than that"


def test_without_a_machine_that_runs_it_is_refused(world: World, tmp_path: Path) -> None:
    world.write()
    world.qemu.power_off(world.id)
    with pytest.raises(StateError, match="does not run"):
        world.permanent()
    with Replica.open(world.path) as replica:
        assert (replica.manifest.state, replica.manifest.operation) == ("Failover", None)
        operation.permanent(replica, hypervisor=world.qemu)
    world.check_permanent(tmp_path)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "for a base"])
def test_a_hypervisor_that_cannot_leaves_the_failover(
    world: World, tmp_path: Path, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Qemu, machine: str, tops: dict[str, str], progress: object) -> None:
        if tops or not late:
            raise UnsupportedError("it has to be done while it is off")

    world.write()
    monkeypatch.setattr(Qemu, "commit", refuse)
    with pytest.raises(UnsupportedError):
        world.permanent()
    with Replica.open(world.path) as replica:
        assert (replica.manifest.state, replica.manifest.operation) == ("Failover", None)
        assert replica.manifest.recovered is not None
        assert replica.manifest.recovered.live == ""
    assert world.qemu.status(world.id) == "running"
    world.read()
    with Replica.open(world.path) as replica:
        operation.undo(replica, hypervisor=world.qemu)
        assert replica.manifest.state == "Ready"


def test_a_merge_that_is_given_up_is_gone_on_with(world: World, tmp_path: Path) -> None:
    world.write()
    with pytest.raises(Exception, match="given up"):
        world.permanent(progress=lambda disk, done, total: False)
    with Replica.open(world.path) as replica:
        assert replica.manifest.state == "Failed"
        with pytest.raises(StateError, match="has begun to change"):
            operation.undo(replica, hypervisor=world.qemu)
    assert world.qemu.status(world.id) == "running"
    world.read()
    world.write()
    world.resume()
    assert world.qemu.status(world.id) == "running"
    world.check_permanent(tmp_path)


def test_the_chain_that_qemu_wrote_opens_again_before_the_decision(
    world: World, tmp_path: Path
) -> None:
    """The machine ends during a merge that was given up: its overlays still read."""
    world.write()
    with pytest.raises(Exception, match="given up"):
        world.permanent(progress=lambda disk, done, total: done < total)
    world.qemu.power_off(world.id)
    for name, path in world.interims.items():
        assert seen_by_qemu(path, tmp_path) == world.model[name]
        with open_disk(path) as disk:
            assert disk.pread(SIZES[name], 0) == world.model[name]
    world.resume()
    world.check_permanent(tmp_path)


def lose_a_table(extent: Path) -> None:
    """As in a disk of VMware's: a table that holds nothing is not there."""
    data = bytearray(extent.read_bytes())
    for directory in struct.unpack_from("<QQ", data, 48):  # the redundant one first
        if directory:
            struct.pack_into("<I", data, directory * 512 + 4, 0)
    extent.write_bytes(data)


@pytest.mark.parametrize("type", ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "by qemu-img"])
def test_a_base_that_qemu_would_destroy_is_refused(tmp_path: Path, type: str) -> None:
    """A sparse disk without all its grain tables: QEMU writes at the start of the file."""
    maker = QemuMaker(tmp_path)
    base, top = str(tmp_path / "a.vmdk"), str(tmp_path / "a-interim.vmdk")
    if type == "by qemu-img":
        words = [require_tool("qemu-img"), "create", "-q", "-f", "vmdk"]
        child = ["-o", "subformat=twoGbMaxExtentSparse", "-b", "a.vmdk", "-F", "vmdk"]
        for more in (["a.vmdk", "64M"], [*child, "a-interim.vmdk"]):
            subprocess.run([*words, *more], cwd=tmp_path, check=True)
        maker.new().start(maker.machine(Drive(top)))
    else:
        create_disk(base, type, 64 << 20)
        if type == "twoGbMaxExtentSparse":
            lose_a_table(tmp_path / "a-s001.vmdk")
        maker.new().start(maker.machine(Drive(maker.overlay(base, 1))))
    maker.write("vm", 0, 1, 33 << 20, 4096)
    try:
        if type == "twoGbMaxExtentSparse":
            with pytest.raises(UnsupportedError, match="grain tables are missing"):
                maker.new().commit("vm", {top: base}, lambda done, total: True)
            assert maker.drives("vm") == [top]
        else:
            maker.new().commit("vm", {top: base}, lambda done, total: True)
            assert maker.drives("vm") == [base]
        assert maker.reads("vm", 0, 1, 33 << 20, 4096)
        maker.new().power_off("vm")
        written = seen_by_qemu(maker.drives("vm")[0], tmp_path)
        assert written == bytes(33 << 20) + b"\x01" * 4096 + bytes((31 << 20) - 4096)
    finally:
        maker.close()


def freeze(world: World) -> None:
    """As a failback does while the machine runs."""
    with Replica.open(world.path) as replica, replica.locked():
        assert layering.freeze(replica, world.qemu)


def frozen_twice(world: World) -> None:
    world.write()
    for _ in range(2):
        freeze(world)
        world.read()
        world.write()


def test_a_stack_of_overlays_is_merged_while_the_machine_runs(
    world: World, tmp_path: Path
) -> None:
    frozen_twice(world)
    world.permanent()
    world.read()
    world.write()
    world.check_permanent(tmp_path)


def test_a_stack_of_overlays_is_merged_offline(world: World, tmp_path: Path) -> None:
    frozen_twice(world)
    with Replica.open(world.path) as replica:
        assert len(list(world.path.glob("a-interim*"))) == 6
        operation.permanent(replica, hypervisor=world.qemu)
    world.check_permanent(tmp_path)


def test_a_stack_of_overlays_is_dropped(world: World) -> None:
    frozen_twice(world)
    with Replica.open(world.path) as replica:
        operation.undo(replica, hypervisor=world.qemu)
        assert (replica.manifest.state, replica.manifest.recovered) == ("Ready", None)
        assert not list(world.path.glob("*-interim*"))
        done = operation.failover(replica, 1, power_on=False)
        assert sorted(Path(path).name for path in done.interims.values()) == [
            "a-interim.vmdk",
            "b-interim.vmdk",
        ]


def test_a_stack_with_an_overlay_missing_in_it_is_not_touched(
    world: World, tmp_path: Path
) -> None:
    """Somebody took one out and mended the links around it: its writes are not there."""
    frozen_twice(world)
    world.qemu.power_off(world.id)
    with Replica.open(world.path) as replica:
        recovered = replica.manifest.recovered
        assert recovered is not None
        top, middle, bottom = recovered.overlays("a")
        before = {path.name: path.read_bytes() for path in world.path.glob("a*.vmdk")}
        texts = {name: before[name].decode() for name in (top, middle, bottom)}
        cid = texts[bottom].partition("\nCID=")[2].partition("\n")[0]
        lines = [
            f"parentCID={cid}"
            if line.startswith("parentCID=")
            else f'parentFileNameHint="{bottom}"'
            if line.startswith("parentFileNameHint=")
            else line
            for line in texts[top].splitlines()
        ]
        (world.path / top).write_text("\n".join(lines) + "\n")
        with pytest.raises(DamagedError, match="another program changed it"):
            operation.permanent(replica, hypervisor=world.qemu)
        assert replica.manifest.state == "Failover"
        (world.path / top).write_bytes(before[top])
        assert {path.name: path.read_bytes() for path in world.path.glob("a*.vmdk")} == before
        operation.permanent(replica, hypervisor=world.qemu)
    world.check_permanent(tmp_path)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("jobs begun", marks=pytest.mark.long),
        pytest.param("copied", marks=pytest.mark.long),
        "decided",
        pytest.param("chains left", marks=pytest.mark.long),
    ],
)
def test_a_guest_that_counts_on_two_disks_finds_its_count(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes all the time, one disk after the other; at the moment QEMU is killed.

    What it said is on its disks is there when it boots again, without a hole.
    """
    world = World(tmp_path, program=demo_guest.PROGRAM)
    try:
        world.qemu.wait_for(world.id, f"{demo_guest.COUNT_MARKER}32", 30)
        said = []

        def kill() -> None:
            world.qemu.kill(world.id)
            lines = world.qemu.console(world.id).splitlines()
            said.extend(line for line in lines if line.startswith(demo_guest.COUNT_MARKER))

        how, place, name = MOMENTS[moment]
        with monkeypatch.context() as patched:
            how(patched, place, name, kill)
            with pytest.raises(HypervisorError):
                world.permanent()
        world.resume()
        drives = [Drive(str(world.path / f"{name}.vmdk")) for name in world.model]
        world.qemu.start(world.guest.machine(*drives, id=world.id))
        told = world.qemu.wait_for(world.id, demo_guest.FOUND_MARKER, 30)
        first, second, verdict = told.removeprefix(demo_guest.FOUND_MARKER).split(maxsplit=2)
        assert verdict == "OK", told
        assert int(first) >= int(second) >= int(said[-1].split()[1]) >= 32, (told, said[-1])
        world.qemu.wait_for(world.id, demo_guest.COUNT_MARKER, 30)
    finally:
        world.qemu.kill(world.id)


def test_a_guest_that_counts_goes_on_counting(tmp_path: Path) -> None:
    world = World(tmp_path, program=demo_guest.PROGRAM)
    try:
        world.qemu.wait_for(world.id, f"{demo_guest.COUNT_MARKER}32", 30)
        world.permanent()
        lines = world.qemu.console(world.id).splitlines()
        last = int(next(x for x in reversed(lines) if x.startswith("COUNT ")).split()[1])
        world.qemu.wait_for(world.id, f"COUNT {last + 64}", 30)
        world.qemu.kill(world.id)
        found = []
        for number, name in enumerate(world.model):
            data = seen_by_qemu(world.path / f"{name}.vmdk", tmp_path)
            found.append(
                demo_guest.examine(lambda n, at, data=data: data[at : at + n], number)
            )
        assert [each.problem for each in found] == ["", ""]
        assert found[0].newest >= found[1].newest >= last + 64
    finally:
        world.qemu.kill(world.id)


# ---- planted mistakes: these tests can fail ----


PLANTED = pytest.mark.parametrize(
    "planted", [pytest.param(False, marks=pytest.mark.long), True], ids=["right", "mistake"]
)


def dies_at(world: World, moment: str, act: Act) -> None:
    """A process of its own asks for it, acts at the moment, and is killed with QEMU."""
    child = os.fork()
    if child == 0:
        try:
            how, place, name = MOMENTS[moment]
            how(pytest.MonkeyPatch(), place, name, lambda: (act(), die(world, "both")))
            world.permanent()
        finally:
            os._exit(1)
    _, ended = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended) == -signal.SIGKILL


@PLANTED
def test_bases_that_are_not_level_are_not_called_the_disks(
    world: World, tmp_path: Path, planted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake: it is decided before the rest was copied."""
    copy = Merge.copy

    def meanwhile(self: Merge, progress: Callable[[int, int], bool]) -> None:
        copy(self, progress)
        self._qmp.execute("stop")
        for part in self.parts:  # nothing is copied by chance
            self._qmp.execute("block-job-pause", device=part.job)
        for number in range(2):
            world.guest.write(world.id, number, 0xA5, 8192, 4096)

    if planted:
        monkeypatch.setattr(Merge, "copy", meanwhile)
        monkeypatch.setattr(Merge, "level", lambda self: 1)
    else:
        for number in range(2):
            world.guest.write(world.id, number, 0xA5, 8192, 4096)
    for data in world.model.values():
        data[8192 : 8192 + 4096] = b"\xa5" * 4096
    dies_at(world, "decided", lambda: None)
    world.resume()
    if planted:
        with pytest.raises(AssertionError):
            world.check_permanent(tmp_path)
    else:
        world.check_permanent(tmp_path)


@PLANTED
def test_a_machine_does_not_leave_the_chains_before_that_is_recorded(
    world: World, tmp_path: Path, planted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake: the record comes with the next one. The writes since are merged over."""

    def write(byte: int) -> None:
        for number in range(2):
            world.guest.write(world.id, number, byte, 8192, 4096)

    write(1)
    for data in world.model.values():
        data[8192 : 8192 + 4096] = b"\xa5" * 4096
    if planted:
        save = Replica.save
        forgotten = lambda self, **said: (  # noqa: E731
            None if self.manifest.recovered.live == "merged" else save(self, **said)
        )
        monkeypatch.setattr(Replica, "save", forgotten)
    dies_at(world, "merged", lambda: write(0xA5))
    monkeypatch.undo()
    world.resume()
    if planted:
        with pytest.raises(AssertionError):
            world.check_permanent(tmp_path)
    else:
        world.check_permanent(tmp_path)


@PLANTED
def test_the_content_id_is_looked_at_before_it_changes(
    tmp_path: Path, planted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake: QEMU reads through to the base for the first time when it was written."""
    maker = QemuMaker(tmp_path)
    base, top = maker.chain("a")
    with open_disk(top, writable=True) as disk:  # QEMU reads the first sector at once
        disk.pwrite(bytes([1]) * (64 << 10), 0)
    maker.new().start(maker.machine(Drive(top), paused=True))
    copy, told = Merge.copy, []

    def meanwhile(self: Merge, progress: Callable[[int, int], bool]) -> None:
        copy(self, progress)
        told.append(maker.reads("vm", 0, 0, 512 << 10, 4096))

    monkeypatch.setattr(Merge, "copy", meanwhile)
    if planted:
        monkeypatch.setattr(qemu_merge, "_hole", lambda link: None)
    try:
        maker.new().commit("vm", {top: base}, lambda done, total: True)
        assert told == [not planted]
    finally:
        maker.close()


def test_the_last_words_of_a_machine_stay_until_the_replica_goes(world: World) -> None:
    with Replica.open(world.path) as replica:
        operation.undo(replica, hypervisor=world.qemu)
        assert (world.path / "run" / "last-console.log").exists()
        assert not (world.path / "run" / world.id).exists()
        replica.remove()
    assert not (world.path / "run").exists()
