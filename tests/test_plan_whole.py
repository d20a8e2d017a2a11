"""A plan of twelve replicas in four groups, on QEMU here and at a vCenter: a test run, a real one
and its undo; what each machine has on its disks is read by qemu-img."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import require_tool
from rollpoint import demo_guest
from rollpoint.errors import Error
from rollpoint.plans import running
from rollpoint.plans.events import Event, RunState
from rollpoint.replica import Replica
from vcenter import VCenter, certificates, vcenter
from vcenter_proxy import Proxy

__all__ = ["certificates", "vcenter"]

GROUPS = ("db", "queue", "app", "web")  # db and app here, the others at the vCenter
LOCAL = ("db", "app")
UP = {"guest__toolsRunningStatus": "guestToolsRunning", "guestHeartbeatStatus": "green"}
DISK_BYTES = demo_guest.DISK_BYTES_MIN
DATA_BYTES = 100_000
_NUMBERS = itertools.count()

PLAN = """version = 1
name = "site"
replicas = "here"
rto_target = "5m"

[limits]
plan = 6
hosts = {{ "*" = 3 }}

[[group]]
name = "db"
replicas = ["db-*"]
[[group.gate]]
kind = "marker"
marker = "ROLLPOINT FOUND"
[[group.after_up]]
name = "note"
command = ["/bin/sh", "-c", "echo $ROLLPOINT_REPLICA >> {notes}"]

[[group]]
name = "queue"
replicas = ["queue-*"]
root = "{there}"
after = ["db"]
[[group.gate]]
kind = "heartbeat"

[[group]]
name = "app"
replicas = ["*", "!db-*"]
after = ["queue"]
parallelism = 2
[[group.gate]]
kind = "marker"
marker = "ROLLPOINT FOUND"

[[group]]
name = "web"
replicas = ["label:front"]
root = "{there}"
after = ["app"]
delay = "300ms"
[[group.gate]]
kind = "heartbeat"
[[group.gate]]
kind = "script"
command = ["/usr/bin/test", "-s", "{notes}"]
each = "group"
"""


class Site:
    """Twelve replicas, what their disks hold, and the plan."""

    def __init__(self, folder: Path, vcenter: VCenter) -> None:
        self.folder, self.vcenter = folder, vcenter
        self.proxy = Proxy(vcenter)
        self.here = folder / "here"
        self.there = Path(vcenter.datastores["LocalDS_0"]) / f"plan-{next(_NUMBERS)}"
        self.notes = folder / "notes"
        self.here.mkdir()
        self.there.mkdir()
        self.data: dict[str, bytes] = {}
        random_ = random.Random(20261123)
        for group in GROUPS:
            for number in (1, 2, 3):
                self._make(group, f"{group}-{number}", random_)
        self.plan = folder / "site.toml"
        self.plan.write_text(PLAN.format(there=self.there, notes=self.notes))
        self.where = running.Settings(str(folder / "state"))

    def _make(self, group: str, name: str, random_: random.Random) -> None:
        data = random_.randbytes(DATA_BYTES).ljust(DISK_BYTES, b"\0")
        self.data[name] = data
        with (
            Replica.create(self.path(name), [("one", DISK_BYTES), ("two", DISK_BYTES)]) as replica,
            replica.locked(),
            replica.journals(writable=True, with_bases=True) as journals,
        ):
            journals.natives[0].disk().pwrite(demo_guest.PROGRAM, 0)
            journals.natives[1].disk().pwrite(data[:DATA_BYTES], 0)
            journals.mark("crash")
        common = '[fencing]\naccept = ["none"]\n[checks]\nreserve = "1M"\nprobe_addresses = false\n'
        (self.path(name) / "replica.toml").write_text(
            (self._local() if group in LOCAL else self._remote(group)) + common
        )

    def _local(self) -> str:
        return '[machine]\nmemory = "32M"\n'

    def _remote(self, group: str) -> str:
        table = self.vcenter.table()
        label = 'labels = ["front"]\n' if group == "web" else ""
        return f"""{label}[machine]
controller = "pvscsi"
nic = "vmxnet3"
network = "VM Network"
[hypervisor]
kind = "vsphere"
server = "{table.server}"
port = {self.proxy.port}
user = "{table.user}"
password_file = "{table.password_file}"
ca_file = "{table.ca_file}"
timeout = "20s"
[hypervisor.datastores]
LocalDS_0 = "{self.vcenter.datastores["LocalDS_0"]}"
"""

    def path(self, name: str) -> Path:
        return (self.here if name.split("-")[0] in LOCAL else self.there) / name

    def manifest(self, name: str) -> Any:
        with Replica.open(self.path(name)) as replica:
            return replica.manifest

    def run(self, kind: Any) -> RunState:
        run = running.start(str(self.plan), kind, self.where)
        return running.drive("site", run, self.where, on_events=self._guests_boot)

    def _guests_boot(self, events: list[Event], state: RunState) -> None:
        """At the simulator no guest runs: it is up when somebody waits for that."""
        for event in events:
            if event.kind == "gate" and event.data["state"] == "looking" and event.key:
                outcome = state.nodes[event.key].outcome
                if event.data["kind"] == "heartbeat" and outcome is not None:
                    self.vcenter.guest(outcome["machine"]["id"], **UP)

    def digest(self) -> dict[str, str]:
        """Of every base and journal: nothing but replication may change them."""
        found = {}
        for name in self.data:
            for file in sorted(self.path(name).glob("*.vmdk")):
                if "interim" not in file.name and "test" not in file.name:
                    found[f"{name}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
        return found

    def read(self, descriptor: Path) -> bytes:
        """By qemu-img, also while a machine has it open."""
        target = self.folder / "read.raw"
        command = [require_tool("qemu-img"), "convert", "-U", "-f", "vmdk", "-O", "raw"]
        subprocess.run([*command, str(descriptor), str(target)], check=True, timeout=60)
        data = target.read_bytes()
        target.unlink()
        return data


@pytest.fixture
def site(tmp_path: Path, vcenter: VCenter) -> Any:
    require_tool("qemu-system-x86_64")
    site = Site(tmp_path, vcenter)
    yield site
    with contextlib.suppress(Error):  # what a failed test has left
        running.drive("site", running.start(str(site.plan), "undo", site.where), site.where)
    site.proxy.close()


def assert_order(state: RunState) -> None:
    """A group's replicas begin when those of the group before it are up, gates included."""
    for before, after in itertools.pairwise(GROUPS):
        ended = max(n.ended for key, n in state.nodes.items() if key.startswith(f"{before}/"))
        begun = min(n.started for key, n in state.nodes.items() if key.startswith(f"{after}/"))
        assert ended <= begun, (before, after)


def assert_done(state: RunState) -> None:
    wrong = {key: (n.state, n.error) for key, n in state.nodes.items() if n.state != "done"}
    assert state.state == "done", wrong


def test_twelve_replicas_in_four_groups_here_and_at_a_vcenter(site: Site) -> None:
    before = site.digest()

    tested = site.run("test")
    assert_done(tested)
    assert_order(tested)
    assert len([n for n in tested.spec.shape.nodes.values() if n.kind == "replica"]) == 12
    assert sorted(site.notes.read_text().split()) == ["db-1", "db-2", "db-3"]
    for name in site.data:
        manifest = site.manifest(name)
        assert manifest.state == "Ready"
        (trial,) = manifest.tests
        if name.split("-")[0] not in LOCAL:
            same = site.read(site.path(name) / trial.disks["two"]) == site.data[name]
            assert same, name
    assert_done(site.run("undo"))
    assert all(not site.manifest(name).tests for name in site.data)
    assert site.digest() == before

    real = site.run("unplanned")
    assert_done(real)
    assert_order(real)
    for name, data in site.data.items():
        manifest = site.manifest(name)
        assert manifest.state == "Failover"
        assert manifest.recovered.running is not None
        # A guest that runs writes, behind what is compared.
        same = site.read(site.path(name) / "two-interim.vmdk")[:DATA_BYTES] == data[:DATA_BYTES]
        assert same, name
    gates = [[gate["state"] for gate in node.gates] for node in real.nodes.values() if node.gates]
    assert gates == [["passed"]] * 13  # each replica's, and the group's of web

    reports = site.folder / "state" / "reports" / "site"
    report = json.loads(next(reports.glob(f"{real.spec.run}*.json")).read_text())
    measured = [task["rto"]["seconds"] for task in report["tasks"] if task["rto"] is not None]
    assert len(measured) == 12
    assert all(seconds > 0 for seconds in measured)
    assert report["rto"]["met"] is True

    assert_done(site.run("undo"))
    for name in site.data:
        assert site.manifest(name).state == "Ready"
        assert not list(site.path(name).glob("*-interim.vmdk"))
