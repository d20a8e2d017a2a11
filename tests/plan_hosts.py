"""Processes of a plan that stand for mount hosts: workers, and one that runs the plan."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plan_world import Power, make_replica
from rollpoint.plans.events import RunState, fold
from rollpoint.plans.store import Store
from rollpoint.plans.supervising import all_events

WAIT_SECONDS = 90.0
PLAN = """version = 1
name = "site"
replicas = "replicas"

[[group]]
name = "db"
queue = "east"
root = "{folder}/east"
replicas = ["*"]
before = [{{ command = ["true"], each = "group" }}]

[[group]]
name = "web"
queue = "west"
root = "{folder}/west"
replicas = ["*"]
after = ["db"]
gate = [{{ kind = "script", command = ["true"], interval = "100ms" }}]

[[group]]
name = "here"
replicas = ["*"]
after = ["web"]
"""
# A machine's start takes so long: most kills are in the middle of one.
SECONDS = 0.25
BEGIN = """
import signal, socket, sys, threading
from pathlib import Path
role, folder, url, host, *words = sys.argv[1:]
socket.gethostname = lambda: host
sys.path[:0] = [words.pop()]
from plan_world import Power
from rollpoint.errors import Error
from rollpoint.plans import running, working
power = Power(Path(folder) / "power", seconds=float(words.pop()))
where = running.Settings(folder + "/state", url, power)
try:
"""
WORKER = """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    working.serve(role, where, stop, take_over="--take-over" in words,
                  on_ready=lambda here: print("ready", flush=True))
"""
STARTER = """
    run = words[0] if words else running.start(folder + "/site.toml", "unplanned", where)
    print(run, flush=True)
    print(running.drive("site", run, where).state, flush=True)
"""
END = """
except Error as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class Hosts:
    """The plan `site` with groups on hosts east and west and one here, and its processes."""

    def __init__(self, folder: Path, url: str, each: int = 2, seconds: float = SECONDS) -> None:
        self.folder, self.url, self.seconds = folder, url, seconds
        self.replicas: list[Path] = []
        for host in ("east", "west", "replicas"):
            (folder / host).mkdir()
            for number in range(each if host != "replicas" else 1):
                self.replicas.append(make_replica(folder / host / f"{host}-{number}"))
        (folder / "site.toml").write_text(PLAN.format(folder=folder))
        self.power = Power(folder / "power")
        self.processes: list[subprocess.Popen[str]] = []

    def worker(self, queue: str, *words: str, host: str = "") -> subprocess.Popen[str]:
        return self._process(WORKER, queue, host or f"host-{queue}", *words)

    def ready_worker(self, queue: str, *words: str, host: str = "") -> subprocess.Popen[str]:
        process = self.worker(queue, *words, host=host)
        assert self.line(process) == "ready", process.communicate()
        return process

    def starter(self, *words: str) -> subprocess.Popen[str]:
        return self._process(STARTER, "starter", "host-plan", *words)

    def _process(self, code: str, *words: str) -> subprocess.Popen[str]:
        role, host, *more = words
        command = [sys.executable, "-c", BEGIN + code + END, role, self.folder, self.url, host]
        process = subprocess.Popen(
            [*map(str, command), *more, str(self.seconds), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    @staticmethod
    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()

    # ---- what has happened ----

    def audit(self) -> dict[str, list[dict[str, Any]]]:
        """Name of a replica -> the whole lines of its audit."""
        found = {}
        for replica in self.replicas:
            path = replica / "audit.jsonl"
            lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
            found[replica.name] = [json.loads(line) for line in lines]
        return found

    def steps(self) -> int:
        return sum(map(len, self.audit().values()))

    def state(self, store: Store, run: str) -> RunState:
        return fold(all_events(store, run))


def until(condition: Callable[[], Any], what: str, *processes: subprocess.Popen[str]) -> None:
    """Poll, for a bounded time; none of the processes may end in it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        for process in processes:
            assert process.poll() is None, (what, process.communicate())
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def hosts(folder: Path, url: str, **more: Any) -> Iterator[Hosts]:
    made = Hosts(folder, url, **more)
    try:
        yield made
    finally:
        made.close()
