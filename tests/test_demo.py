"""The demo tells the whole story, and does not tell it when it is not true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require_tool
from replicas import wait_until
from rollpoint import demo_guest
from rollpoint.demo import Demo
from rollpoint.demo_replica import ReplicaSide
from rollpoint.demo_source import DISKS, Source, counters_of, first_difference
from rollpoint.errors import VerificationError
from rollpoint.hypervisor.qemu_process import arguments_of
from rollpoint.operation import failover, undo
from rollpoint.replica import Replica
from rollpoint.report import Step
from rollpoint.units import SECTOR_BYTES

# Stands in front of QEMU on PATH. When the replica is powered on, its disks have been
# rolled back: then one entry of the block map that the boot disk's journal shows is made
# to point at the place of another grain.
PLANTED = """
    #!{python}
    import os, struct, sys
    if "-interim.vmdk" in " ".join(sys.argv):
        with open({log!r}, "r+b") as file:
            header = file.read(512)
            grain_sectors, = struct.unpack_from("<Q", header, 20)
            entries, = struct.unpack_from("<I", header, 44)
            directory, = struct.unpack_from("<Q", header, 56)
            def place(sector):
                grain = sector // grain_sectors
                file.seek(directory * 512 + grain // entries * 4)
                table, = struct.unpack("<I", file.read(4))
                return table * 512 + grain % entries * 4
            wrong, other = place({wrong}), place({other})
            file.seek(other)
            entry = file.read(4)
            file.seek(wrong)
            assert file.read(4) != entry
            file.seek(wrong)
            file.write(entry)
    os.execv({qemu!r}, [{qemu!r}, *sys.argv[1:]])
"""


def run_demo(workspace: Path) -> Demo:
    demo = Demo(workspace, run_seconds=0.5, rpo="100ms")
    demo.run()
    return demo


def test_the_whole_story_is_true(tmp_path: Path) -> None:
    require_tool("qemu-system-x86_64")
    require_tool("qemu-img")
    told = run_demo(tmp_path).steps
    assert [step.name for step in told] == [
        "create the source's disks and a replica",
        "mirror both disks to the ingest",
        "it counts; mark the middle",
        "mark while it runs",
        "kill the source",
        "fail over to the middle",
        "it writes on, into the interim",
        "undo",
        "fail over to the live mark, no power-on",
        "undo",
        "fail over to the latest",
        "it writes on",
        "permanent",
    ]
    recovered = {step.name: step for step in told if step.rto_seconds is not None}
    assert list(recovered) == ["fail over to the middle", "fail over to the latest"]
    assert recovered["fail over to the latest"].rpo_seconds is not None
    assert not list((tmp_path / "replica").glob("*interim*"))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Source, ReplicaSide]]:
    """A source that runs, mirrored to the ingest of a replica with a point each 100 ms."""
    require_tool("qemu-system-x86_64")
    source, side = Source(str(tmp_path / "source")), ReplicaSide(str(tmp_path))
    try:
        source.make_disks()
        disks = [word for name, size in DISKS.items() for word in ("--disk", f"{name}={size}")]
        side.rollpoint("replica", "create", side.path, *disks)
        side.start_ingest("100ms")
        source.start()
        source.protect(side.socket_path, side.control_path)
        source.run()
        yield source, side
    finally:
        source.close()
        side.close()


def test_every_restore_point_is_one_cut_of_both_disks(pair: tuple[Source, ReplicaSide]) -> None:
    """Marked by themselves while the guest writes: no record is missing and none too many.

    Disk 1 follows disk 0 by one record at most, so a cut that is not the same on both,
    or that leaves out an earlier write, shows in what the disks hold.
    """
    source, side = pair
    while source.next_count() < 288:  # more than the ring holds
        pass
    source.check_in_step()
    source.kill()
    dead = source.known("dead")
    # What came after the newest one gets one when its connections are found lost.
    wait_until(lambda: not side.rollpoint("points", side.path)["gaps"][-1]["end"], "it is found")
    with Replica.open(side.path) as replica:
        points = list(replica.points)
        some = points[:: len(points) // 12 + 1]
        if some[-1] != points[-1]:
            some.append(points[-1])
        counters = [recovered_counters(replica, point.id, side) for point in some]
    assert len(points) > 5
    assert counters == sorted(counters)
    assert abs(counters[-1][0] - dead.counters[0]) <= 1


def test_after_its_ingest_was_killed_the_source_gets_in_step_again(
    pair: tuple[Source, ReplicaSide],
) -> None:
    """Acknowledged and not yet durable: such writes died with it, and nobody sends them again."""
    source, side = pair
    source.next_count()
    side.kill_ingest()
    side.start_ingest("100ms")
    deadline = time.monotonic() + 30
    while source.gap_count() == 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    source.wait_in_step()
    source.next_count()
    source.freeze()
    known = source.known("after")
    point = side.rollpoint("mark", side.path)
    source.kill()
    with Replica.open(side.path) as replica:
        outcome = failover(replica, point["id"], power_on=False)
    images = side.images_by_us(outcome.interims, "recovered")
    assert [first_difference(known.images[name], images[name]) for name in DISKS] == [None, None]
    gaps = side.rollpoint("points", side.path)["gaps"]
    # The first copy; the killed ingest, until the second copy was done; the source's end.
    assert [gap["end"] is None for gap in gaps] == [False, False, True]
    assert "was lost" in gaps[-1]["cause"]


def recovered_counters(replica: Replica, point_id: int, side: ReplicaSide) -> tuple[int, int]:
    outcome = failover(replica, point_id, power_on=False)
    images = side.images_by_us(outcome.interims, f"point-{point_id}")
    undo(replica)
    return counters_of(images, f"the replica at point {point_id}")


RECORD = demo_guest.place_bytes(40) // SECTOR_BYTES
PAYLOAD = (5 << 20) // SECTOR_BYTES


@pytest.mark.parametrize(
    ("wrong", "other", "told"),
    [
        (RECORD, RECORD + 64, "the recovered guest says 'ROLLPOINT FOUND .* BAD damaged'"),
        (PAYLOAD, PAYLOAD + 8, f"disk system at the middle differs .* at {PAYLOAD * 512}"),
    ],
    ids=["of a record", "of other data"],
)
def test_one_wrong_block_map_entry_makes_it_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, other: int, told: str
) -> None:
    workspace, tools = tmp_path / "workspace", tmp_path / "bin"
    workspace.mkdir()
    tools.mkdir()
    wrapper = tools / "qemu-system-x86_64"
    text = PLANTED.format(
        python=sys.executable,
        log=str(workspace / "replica" / "system-journal-log.vmdk"),
        qemu=require_tool("qemu-system-x86_64"),
        wrong=wrong,
        other=other,
    )
    wrapper.write_text(textwrap.dedent(text).lstrip())
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    steps: list[Step] = []
    with pytest.raises(VerificationError, match=told):
        Demo(workspace, steps.append, run_seconds=0.5, rpo="100ms").run()
    assert "kill the source" in [step.name for step in steps]


def command(*words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({} if path is None else {"PATH": path})
    return subprocess.run(
        [sys.executable, "-m", "rollpoint", "demo", *words],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_a_polite_end_leaves_nothing_running(tmp_path: Path) -> None:
    require_tool("qemu-system-x86_64")
    place = tmp_path / "workspace"
    with subprocess.Popen(
        [sys.executable, "-m", "rollpoint", "demo", "--workspace", str(place)]
    ) as told:
        deadline = time.monotonic() + 30
        while not (place / "source" / "run" / "source" / "console.log").exists():
            assert time.monotonic() < deadline
            assert told.poll() is None
            time.sleep(0.01)
        told.terminate()
        assert told.wait(30) == 143
    assert not place.exists()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            assert str(place) not in " ".join(map(os.fsdecode, arguments_of(int(entry))))


def test_without_qemu_it_says_what_to_install(tmp_path: Path) -> None:
    done = command("--json", path=str(tmp_path))
    assert done.returncode == 1
    error = json.loads(done.stderr)["error"]
    assert error["type"] == "ToolMissingError"
    assert error["hint"].startswith("apt-get install --no-install-recommends qemu-system-x86")


def test_a_workspace_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = command("--workspace", str(tmp_path))
    assert done.returncode == 1
    assert "not an empty directory" in done.stderr
    assert (tmp_path / "mine").read_text() == "mine"
