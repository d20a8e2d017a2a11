"""Runs of plans, carried out in this process and in ones that are killed."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from plan_world import DISK_BYTES, GRAIN, Power, make_replica
from rollpoint.cli.plan_table import gate_of
from rollpoint.errors import StateError, UsageError
from rollpoint.plans import gates, running
from rollpoint.plans.events import Event, RunState
from rollpoint.replica import Replica

PLAN = """version = 1
name = "site"
replicas = "replicas"

[[group]]
name = "db"
replicas = ["db-*"]
{db}

[[group]]
name = "web"
replicas = ["web-*"]
after = ["db"]
{web}
"""
NAMES = ("db-1", "db-2", "web-1", "web-2", "web-3")


def workflows(site: Site) -> set[str]:
    """Ids of what DBOS keeps."""
    with sqlite3.connect(site.folder / "state" / "plans" / "site.sqlite") as connection:
        return {row[0] for row in connection.execute("SELECT workflow_uuid FROM workflow_status")}


class Site:
    """A plan of five replicas in two groups, its machines and its state."""

    def __init__(self, folder: Path, **groups: str) -> None:
        self.folder = folder
        (folder / "replicas").mkdir()
        for name in NAMES:
            make_replica(folder / "replicas" / name)
        self.plan = folder / "site.toml"
        self.plan.write_text(PLAN.format(**{"db": "", "web": "", **groups}))
        self.power = Power(folder / "power")
        self.where = running.Settings(str(folder / "state"), hypervisors=self.power)

    def run(self, kind: Any, **more: Any) -> RunState:
        return self.drive(running.start(str(self.plan), kind, self.where, **more))

    def drive(self, run: str, **more: Any) -> RunState:
        return running.drive("site", run, self.where, **more)

    def states(self) -> dict[str, str]:
        found = {}
        for name in NAMES:
            with Replica.open(self.folder / "replicas" / name) as replica:
                found[name] = replica.manifest.state
        return found

    def ask(self, kind: Any, names: tuple[str, ...] = ()) -> None:
        with running.opened("site", self.where) as store:
            state = running.current(store, "site")
            assert state is not None
            running.request(store, state, kind, names)


def test_a_run_fails_all_over_in_order_and_is_undone_in_reverse(tmp_path: Path) -> None:
    site = Site(tmp_path)
    state = site.run("unplanned")
    assert state.state == "done", [node.error for node in state.nodes.values()]
    assert set(site.states().values()) == {"Failover"}
    up = {key: node for key, node in state.nodes.items()}
    last_db = max(up[key].ended for key in up if key.startswith("db/"))
    assert all(up[key].started >= last_db for key in up if key.startswith("web/"))
    assert set(site.power.starts().values()) == {1}

    undone = site.run("undo")
    assert undone.state == "done"
    assert set(site.states().values()) == {"Ready"}
    last_web = max(node.ended for key, node in undone.nodes.items() if key.startswith("web/"))
    assert all(
        node.started >= last_web for key, node in undone.nodes.items() if key.startswith("db/")
    )
    assert {id.split("/")[0] for id in workflows(site)} == {undone.spec.run}
    with pytest.raises(StateError, match="nothing to undo"):
        site.run("undo")


def test_what_fails_stops_the_run_which_goes_on_when_it_is_tried_again(tmp_path: Path) -> None:
    site = Site(tmp_path)
    broken = {"db-2"}
    site.power.trouble = lambda name: "no memory is left" if name in broken else ""
    state = site.run("unplanned")
    assert state.state == "failed"
    assert "no memory is left" in state.nodes["db/db-2"].error
    assert {n.state for key, n in state.nodes.items() if key.startswith("web/")} == {"waiting"}
    assert site.states()["db-2"] == "Ready"  # rolled back

    broken.clear()
    site.ask("retry")
    state = site.drive(state.spec.run)
    assert state.state == "done", [node.error for node in state.nodes.values()]
    assert set(site.states().values()) == {"Failover"}
    assert set(site.power.starts().values()) == {1}


def test_somebody_is_asked_and_may_skip_while_the_run_goes_on(tmp_path: Path) -> None:
    site = Site(tmp_path, db='on_failure = "ask"')
    site.power.trouble = lambda name: "no memory is left" if name == "db-2" else ""
    answered: list[str] = []

    def look(events: Any, state: RunState) -> None:
        if state.nodes["db/db-2"].state == "asking" and not answered:
            answered.append("skip")
            site.ask("skip", ("db-2",))

    run = running.start(str(site.plan), "unplanned", site.where)
    state = site.drive(run, on_events=look)
    assert answered
    assert state.nodes["db/db-2"].state == "skipped"
    assert {n.state for key, n in state.nodes.items() if key.startswith("web/")} == {"done"}


def test_what_a_gate_sees_is_told_while_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "TELL_SECONDS", 0)
    up = tmp_path / "up"
    command = f'command = "test -e {up} || {{ echo not yet; exit 1; }}"\nshell = true'
    more = f'kind = "script"\ninterval = "50ms"\nretries = 1000\n{command}'
    site = Site(tmp_path, web=f'[[group.gate]]\neach = "group"\n{more}')
    seen: list[str] = []

    def watch(events: list[Event], state: RunState) -> None:
        for event in events:
            if event.kind == "gate" and event.data.get("says") == "exit code 1: not yet":
                seen.append(gate_of(state.nodes[event.key]))
                up.touch()

    run = running.start(str(site.plan), "unplanned", site.where)
    ended = running.drive("site", run, site.where, on_events=watch)
    assert {node.state for node in ended.nodes.values()} == {"done"}
    assert " of 1001: exit code 1: not yet" in seen[0]


def test_one_run_of_a_plan_at_a_time_and_a_cancelled_one_begins_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path)
    run = running.start(str(site.plan), "unplanned", site.where)
    with pytest.raises(StateError, match="cut short"):
        running.start(str(site.plan), "test", site.where)
    site.ask("cancelled")
    state = site.drive(run)
    assert state.state == "cancelled"
    assert set(site.states().values()) == {"Ready"}
    assert site.power.log() == []
    with pytest.raises(StateError, match="has ended"):
        site.ask("paused")
    with pytest.raises(UsageError, match="nobody"):
        site.ask("retry", ("nobody",))


def test_a_paused_run_begins_nothing_until_it_is_continued(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.power.seconds = 0.2
    run = running.start(str(site.plan), "unplanned", site.where)
    paused: list[float] = []

    def look(events: Any, state: RunState) -> None:
        if not paused and state.nodes["db/db-1"].state == "running":
            site.ask("paused")
            paused.append(time.monotonic())
        over = {state.nodes[key].state for key in ("db/db-1", "db/db-2")} == {"done"}
        if len(paused) == 1 and over and state.paused:
            paused.append(time.monotonic())
            assert {n.state for k, n in state.nodes.items() if k.startswith("web")} == {"waiting"}
            threading.Timer(0.5, site.ask, ("continued",)).start()

    state = site.drive(run, on_events=look)
    assert len(paused) == 2
    assert state.state == "done"


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from plan_world import Power
from rollpoint.plans import running
folder = Path(sys.argv[1])
where = running.Settings(str(folder / "state"), hypervisors=Power(folder / "power", seconds=0.2))
state = running.drive("site", sys.argv[3], where)
print(state.state)
"""


def test_a_process_that_drives_is_killed_again_and_again_and_nothing_happens_twice(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path)
    run = running.start(str(site.plan), "unplanned", site.where)
    command = [sys.executable, "-c", DRIVER, tmp_path, str(Path(__file__).parent), run]
    kills = 0
    for _ in range(20):
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        before = len(site.power.log())
        while driver.poll() is None and len(site.power.log()) == before:
            time.sleep(0.01)
        if driver.poll() is None and kills < 3:
            driver.kill()
        said, _ = driver.communicate(timeout=60)
        if driver.returncode == 0:
            break
        assert driver.returncode == -signal.SIGKILL
        kills += 1
    assert kills
    assert said == "done\n"
    assert set(site.states().values()) == {"Failover"}
    assert set(site.power.starts().values()) == {1}
    assert len(site.power.on()) == len(NAMES)


def test_a_group_is_made_permanent_and_the_rest_is_undone(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site.run("unplanned").state == "done"
    kept = site.run("permanent", only=running.Only(groups=["db"]))
    assert kept.state == "done", [node.error for node in kept.nodes.values()]
    assert {site.states()[name] for name in ("db-1", "db-2")} == {"Permanent"}
    undone = site.run("undo")
    assert undone.state == "done"
    assert set(undone.nodes) == {"web/web-1", "web/web-2", "web/web-3"}
    assert {site.states()[name] for name in NAMES if name.startswith("web")} == {"Ready"}


def test_a_site_goes_back_home_and_is_protected_again(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for name in NAMES:
        place = tmp_path / f"{name}.raw"
        place.write_bytes(bytes(DISK_BYTES))
        with (tmp_path / "replicas" / name / "replica.toml").open("a") as toml:
            toml.write(f'[source]\nmachine = "home-{name}"\n[source.disks]\na = "{place}"\n')
    home = Power(tmp_path / "home")
    where = site.where._replace(hypervisors=lambda directory: (site.power, home))
    site.where = where
    assert site.run("unplanned").state == "done"
    back = site.run("failback")
    assert back.state == "done", [node.error for node in back.nodes.values()]
    assert home.on() == {f"home-{name}" for name in NAMES}
    assert not site.power.on()
    for name in NAMES:
        same = (tmp_path / f"{name}.raw").read_bytes() == bytes([2]) * GRAIN + bytes(
            DISK_BYTES - GRAIN
        )
        assert same, name
    assert site.run("commit").state == "done"
    assert set(site.states().values()) == {"Ready"}
    assert home.on() == {f"home-{name}" for name in NAMES}
