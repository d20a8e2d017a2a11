"""Several mount hosts: workers with queues of their own, killed with the rest in mid-step."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from plan_hosts import Hosts, hosts, kill, until
from plan_world import Power, make_replica
from postgres import Postgres
from rollpoint.errors import LockedError, StateError, StorageError, UsageError
from rollpoint.plans import running, working
from rollpoint.plans.running import Settings
from rollpoint.plans.store import Store
from rollpoint.replica import Replica

SEED = 7


class Site:
    """The processes of a plan on three hosts, each of which may be killed and started again."""

    def __init__(self, world: Hosts, server: Postgres) -> None:
        self.world, self.server = world, server
        self.workers = {queue: world.worker(queue) for queue in ("east", "west")}
        for worker in self.workers.values():
            assert world.line(worker) == "ready", worker.communicate()
        self.starter = world.starter()
        self.run = world.line(self.starter)
        assert self.run, self.starter.communicate()

    def kill(self, *names: str) -> None:
        """All of them at once, and start them again."""
        for name in names:
            if name == "postgres":
                self.server.kill()
            else:
                kill(self.starter if name == "starter" else self.workers[name])
        if "postgres" in names:
            self.server.start()
        for name in names:
            if name in self.workers:
                self.workers[name] = self.world.worker(name)
            elif name == "starter":
                self.starter = self.world.starter(self.run)
                assert self.world.line(self.starter) == self.run, self.starter.communicate()
        for name in names:
            if name in self.workers:
                assert self.world.line(self.workers[name]) == "ready"

    def finish(self) -> None:
        said, errors = self.starter.communicate(timeout=90)
        assert (said.strip(), errors) == ("done", "")
        for queue, worker in self.workers.items():
            worker.send_signal(signal.SIGTERM)
            said, errors = worker.communicate(timeout=60)
            assert (said, worker.returncode) == ("", 0), (queue, errors)

    def in_the_middle(self, host: str) -> bool:
        """Whether an operation of that host has begun and not ended."""
        lines = self.world.audit().items()
        return any(name.startswith(host) and rows[-1]["event"] != "outcome" for name, rows in lines)


def everything_happened_once(world: Hosts, run: str) -> None:
    """By the replicas' audit, the hypervisor's own notes, the events and the report."""
    operations = {}
    for name, rows in world.audit().items():
        ours = [row for row in rows if row["kind"] == "failover"]
        ids = {row["operation"] for row in ours}
        assert len(ids) == 1, (name, ours)
        assert [row["event"] for row in ours].count("outcome") == 1, (name, ours)
        assert ids.pop().startswith(run)
        operations[name] = ours[0]["operation"]
        with Replica.open(next(p for p in world.replicas if p.name == name)) as replica:
            assert replica.manifest.state == "Failover"
    assert world.power.starts() == Counter(operations.values())
    assert {what for what, *_ in world.power.log()} == {"on"}
    assert len(world.power.on()) == len(world.replicas)

    with Store.open(world.url, create=False) as store:
        events = store.events(run)
        state = world.state(store, run)
    assert state.state == "done"
    assert {node.attempt for node in state.nodes.values()} == {1}
    for kind in ("begun", "ended"):
        assert [event.kind for event in events].count(kind) == 1
    for kind in ("queued", "started", "done"):
        told = Counter(event.key for event in events if event.kind == kind)
        assert told == Counter(dict.fromkeys(state.nodes, 1)), kind
    told = Counter(event.key for event in events if event.kind == "operation")
    assert set(told.values()) == {1}
    assert len(told) == len(world.replicas)
    # In order, though its supervisor died in between.
    ends = {key: node.ended for key, node in state.nodes.items()}
    begins = {key: node.first_started for key, node in state.nodes.items()}
    assert begins["db/east-0"] >= ends["db|before"]
    assert min(begins[key] for key in begins if key.startswith("web/")) >= max(
        ends[key] for key in ends if key.startswith("db/")
    )
    report = next((world.folder / "state" / "reports" / "site").glob("*.json"))
    told_by_report = report.read_text()
    assert json.loads(told_by_report)["format"] == "rollpoint-plan-run"
    for name, operation in operations.items():
        assert operation in told_by_report
        assert world.audit()[name][-1]["hash"] in told_by_report


def test_workers_the_starter_and_postgresql_are_killed_in_mid_step_and_all_happens_once(
    tmp_path: Path, mortal_postgres: Postgres
) -> None:
    with hosts(tmp_path, mortal_postgres.database()) as world:
        site = Site(world, mortal_postgres)
        until(lambda: site.in_the_middle("east"), "a step of east", site.starter)
        site.kill("east")
        assert site.in_the_middle("east")
        site.kill("postgres")
        until(lambda: site.in_the_middle("west"), "a step of west", site.starter)
        site.kill("starter")
        site.kill("west", "postgres", "starter")
        site.finish()
        everything_happened_once(world, site.run)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
def test_whatever_is_killed_whenever_all_happens_once(
    tmp_path: Path, mortal_postgres: Postgres, seed: int
) -> None:
    rng = random.Random(seed)
    with hosts(tmp_path, mortal_postgres.database(), each=4, seconds=0.4) as world:
        site = Site(world, mortal_postgres)
        for _ in range(8):
            with Store.open(world.url) as store:
                now = world.state(store, site.run).seq
                more = rng.randrange(4)
                until(
                    lambda now=now, more=more, store=store: (
                        len(store.events(site.run, now)) >= more or site.starter.poll() is not None
                    ),
                    "events",
                )
            if site.starter.poll() is not None:
                break
            names = ["east", "west", "starter", "postgres"]
            site.kill(*rng.sample(names, rng.choice((1, 1, 2, 4))))
        site.finish()
        everything_happened_once(world, site.run)


def test_a_dead_hosts_work_is_finished_elsewhere_and_a_living_ones_is_not_taken(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with hosts(tmp_path, postgres.database(), each=1, seconds=1.0) as world:
        where = Settings("/nowhere", world.url)
        site = Site(world, postgres)
        until(lambda: site.in_the_middle("east"), "a step of east", site.starter)

        pid = site.workers["east"].pid
        says = f"serves the queue already: 'east' is served by process {pid} on host host-east"
        with pytest.raises(LockedError, match=says):
            working.serve("east", where, threading.Event(), take_over=True)

        kill(site.workers["east"])
        says = f"queue 'east' was last served on host host-east .process {pid}"
        with pytest.raises(StateError, match=says) as caught:
            working.serve("east", where, threading.Event())
        assert "--take-over" in caught.value.hint
        site.workers["east"] = world.ready_worker("east", "--take-over", host="elsewhere")
        site.finish()
        everything_happened_once(world, site.run)


@pytest.mark.long
def test_a_worker_that_is_told_to_end_ends_its_step_and_the_next_one_goes_on(
    tmp_path: Path, postgres: Postgres
) -> None:
    with hosts(tmp_path, postgres.database(), each=1, seconds=0.6) as world:
        site = Site(world, postgres)
        until(lambda: site.in_the_middle("east"), "a step of east", site.starter)
        site.workers["east"].send_signal(signal.SIGTERM)
        site.workers["east"].communicate(timeout=60)
        assert site.workers["east"].returncode == 0
        assert not site.in_the_middle("east")
        with Store.open(world.url) as store:
            holder = store.holder("east")
            assert holder is not None
            assert holder.ended
            assert world.state(store, site.run).workers["east"]["state"] == "went"
        site.workers["east"] = world.ready_worker("east")
        site.finish()
        everything_happened_once(world, site.run)


def test_a_task_whose_result_cannot_be_recorded_is_gone_on_with_and_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk below the database ends the process, with its reason, and no task."""
    append = Store.append

    def refuse(self: Store, run: str, kind: str, *rest: Any) -> Any:
        if kind == "operation":
            raise StorageError("there is no room", "make room")
        return append(self, run, kind, *rest)  # type: ignore[arg-type]

    (tmp_path / "replicas").mkdir()
    replica = make_replica(tmp_path / "replicas" / "one")
    plan = tmp_path / "site.toml"
    plan.write_text('version = 1\nreplicas = "replicas"\n[[group]]\nname = "g"\nreplicas = ["*"]\n')
    power = Power(tmp_path / "power")
    where = Settings(str(tmp_path / "state"), hypervisors=power)
    run = running.start(str(plan), "unplanned", where)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", refuse)
        with pytest.raises(StorageError, match="no room"):
            running.drive("site", run, where)
    with Replica.open(replica) as opened:
        assert opened.manifest.state == "Failover"
    state = running.drive("site", run, where)
    assert state.state == "done"
    assert state.nodes["g/one"].attempt == 1
    assert set(power.starts().values()) == {1}


# ---- the command ----


def rollpoint_worker(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rollpoint", "worker", *words, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_serves_until_sigterm_and_says_what_it_serves(postgres: Postgres) -> None:
    url = postgres.database()
    worker = rollpoint_worker("--queue", "mh-1", "--database", url)
    try:
        assert worker.stdout is not None
        here = json.loads(worker.stdout.readline())
        assert (here["queue"], here["pid"], here["database"]) == ("mh-1", worker.pid, url)
        _, errors = rollpoint_worker("--queue", "mh-1", "--database", url).communicate(timeout=60)
        error = json.loads(errors)["error"]
        assert error["type"] == "LockedError"
        assert f"process {worker.pid} on host" in error["message"]
    finally:
        worker.send_signal(signal.SIGTERM)
        said = worker.communicate(timeout=60)
    assert (worker.returncode, said) == (0, ("", ""))


@pytest.mark.parametrize(
    ("queue", "database", "says"),
    [
        ("plan:site", "postgresql://me@db/plans", "no name of a queue"),
        ("", "postgresql://me@db/plans", "no name of a queue"),
        ("mh-1", "", "needs the database"),
        ("mh-1", "postgresql://me:secret@db/plans", "password"),
        ("mh-1", "db/plans", "cannot be understood"),
    ],
)
def test_what_a_worker_cannot_serve_is_refused(queue: str, database: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        working.serve(queue, Settings("/nowhere", database), threading.Event())
    assert caught.value.hint
    assert "secret" not in str(caught.value)
