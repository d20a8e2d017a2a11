"""A protected machine's whole life, with a real guest, each stage read by qemu-img.

ready -> test failover -> failover -> undo -> planned failover -> failback -> commit ->
failover -> permanent. The guest counts on two disks, so that what was lost, or written
twice, is told by its counters; everything is done by the command line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import require_tool
from rollpoint.demo_replica import ReplicaSide
from rollpoint.demo_source import DISKS, MACHINE_ID, Source, counters_of, first_difference
from rollpoint.hypervisor.qemu import Qemu

MEMORY = "16M"


class Life:
    """The source and its replica, and what is asked of them."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.source = Source(str(workspace / "source"))
        self.replica = ReplicaSide(str(workspace))
        self.site = Qemu(workspace / "source" / "run")

    def ask(self, command: str, *options: str) -> dict[str, Any]:
        return self.replica.rollpoint(*command.split(), self.replica.path, *options)

    def begin(self) -> None:
        """The source runs and is protected."""
        self.source.make_disks()
        words = [word for name, size in DISKS.items() for word in ("--disk", f"{name}={size}")]
        self.replica.rollpoint("replica", "create", self.replica.path, *words)
        (Path(self.replica.path) / "replica.toml").write_text(
            f"""
            [machine]
            memory = "{MEMORY}"
            marker = "FOUND"
            [source]
            kind = "qemu"
            run = "{self.workspace}/source/run"
            machine = "{MACHINE_ID}"
            shutdown = "1s"
            [source.disks]
            system = "{self.source.disks["system"]}"
            data = "{self.source.disks["data"]}"
            [failback]
            shutdown = "1s"
            """
        )
        self.replica.start_ingest("200ms")
        self.source.start()
        self.protect()

    def protect(self) -> None:
        self.source.protect(self.replica.socket_path, self.replica.control_path)
        self.source.run()
        self.source.next_count()

    def source_counters(self, label: str) -> tuple[int, int]:
        """Of the source's own disks; it must not run."""
        return self.source.known(label).counters

    def replica_counters(self, label: str) -> tuple[int, int]:
        """What qemu-img reads through the overlays; the machine must not run."""
        images = self.replica.images_by_qemu(self.replica.interims(), label)
        return counters_of(images, label)

    def machine_counts(self) -> int:
        """A count that the replica's machine prints from now on."""
        from rollpoint.demo_source import next_count, printed_count

        hypervisor, machine = self.replica.hypervisor, self.replica.machine()
        return next_count(lambda: printed_count(hypervisor.console(machine)), 30.0)


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    require_tool("qemu-system-x86_64")
    require_tool("qemu-img")
    life = Life(tmp_path)
    try:
        yield life
    finally:
        life.source.close()
        with contextlib.suppress(Exception):
            life.ask("undo", "--test", "all")
        life.replica.close()


def test_a_whole_life_on_qemu(life: Life) -> None:
    life.begin()

    # A test: replication goes on, and what the tested machine writes is thrown away.
    point = life.ask("mark", "--label", "to test")
    tested = life.ask("failover", "--test", "--to", str(point["id"]))
    before = life.source.printed_count()
    assert life.source.next_count() > before, "the source goes on"
    assert life.replica.state() == "Ready"
    life.ask("mark", "--label", "during the test")
    life.ask("undo", "--test", str(tested["operation"]))
    assert not life.ask("replica show")["tests"]

    # A disaster that was none: failed over, and undone. The source was killed.
    life.source.kill()
    lost = life.source_counters("killed")
    done = life.ask("failover")
    assert done["state"] == "Failover"
    assert life.machine_counts() > 0
    life.replica.freeze()
    found = life.replica_counters("failed over")
    assert found[1] > 0
    life.ask("undo")
    assert life.source_counters("still") == lost, "nothing touched the source's disks"

    # It is on again, catches up, and is moved by plan: nothing is lost.
    life.source.close()
    life.source = Source(str(life.workspace / "source"))
    life.source.start()
    life.protect()
    planned = life.ask("failover", "--planned", "--reason", "the site is closed for a day")
    assert planned["state"] == "Failover"
    assert life.site.status(MACHINE_ID) == "off"
    at_cut = life.source_counters("cut")
    life.machine_counts()
    assert "disk(s) are the same" in next(
        step["note"] for step in planned["steps"] if step["name"] == "compare"
    )

    # And back: phase 1 while it runs, then the rest.
    ready = life.ask("failback")
    assert ready["state"] == "ReadyToSwitch"
    life.machine_counts()
    switched = life.ask("failback switch", "--no-power-on")
    assert switched["state"] == "Failback"
    back = life.source_counters("back")
    assert back[0] > at_cut[0], "what the replica counted came back"
    images = life.replica.images_by_qemu(life.replica.interims(), "switched")
    for name, image in images.items():
        assert first_difference(image, life.source.disks[name]) is None
    committed = life.ask("failback commit")
    assert committed["state"] == "Ready"
    assert not life.replica.overlays()
    assert not life.ask("points")["gaps"] or life.ask("points")["gaps"][-1]["end"]

    # The recovered machine is the source now, and is lost for good.
    life.source.close()
    life.source = Source(str(life.workspace / "source"))
    life.source.start()
    life.protect()
    life.ask("mark", "--label", "after")
    life.source.kill()
    dead = life.source_counters("dead")
    life.ask("failover")
    life.machine_counts()
    life.replica.freeze()
    kept = life.replica.images_by_qemu(life.replica.interims(), "kept")
    assert counters_of(kept, "kept")[1] > back[1]
    assert counters_of(kept, "kept")[1] >= dead[1] - 50
    life.ask("permanent")
    assert life.replica.state() == "Permanent"
    bases = life.replica.images_by_qemu(life.replica.bases(), "bases")
    for name, image in kept.items():
        assert first_difference(image, bases[name]) is None
    told = life.ask("audit verify")
    assert told["ok"]
