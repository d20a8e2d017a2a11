"""Plans from the command line, as operators in several terminals use it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from plan_command import run as plan_command
from plan_world import make_replica
from replicas import WAIT_SECONDS, wait_until
from rollpoint import operation
from rollpoint.plans import running
from rollpoint.plans.events import Event, fold
from rollpoint.replica import Replica

NAMES = ("db-1", "db-2", "web-1")
PLAN = """version = 1
replicas = "replicas"

[[group]]
name = "db"
replicas = ["db-*"]
on_failure = "ask"
{more}

[[group]]
name = "web"
replicas = ["web-*"]
after = ["db"]
on_failure = "ask"
"""


class Site:
    """A plan of three replicas in two groups, and its command line, in any process."""

    def __init__(self, folder: Path, more: str = "", on_failure: str = "ask") -> None:
        self.folder = folder
        (folder / "replicas").mkdir()
        for name in NAMES:
            make_replica(folder / "replicas" / name)
        self.plan = folder / "site.toml"
        text = PLAN.format(more=more.format(folder=folder))
        self.plan.write_text(text.replace('"ask"', f'"{on_failure}"'))
        (folder / "power").mkdir()

    def broken(self, name: str, is_so: bool = True) -> None:
        """Whether the machine of that replica does not start."""
        place = self.folder / "power" / f"{name}.broken"
        if is_so:
            place.touch()
        else:
            place.unlink()

    def words(self, command: str, *more: object) -> list[str]:
        state = self.folder / "state"
        return ["plan", command, str(self.plan), *map(str, more), "--state", str(state)]

    def call(self, command: str, *more: object, code: int = 0) -> str:
        """A command in this process; what it printed, or its error."""
        import io

        out, err = io.StringIO(), io.StringIO()
        before = running.settings
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                plan_command(self.folder / "power", self.words(command, *more))
        except SystemExit as end:
            ended = int(end.code or 0)
        finally:
            running.settings = before
        assert ended == code, (command, ended, out.getvalue(), err.getvalue())
        return out.getvalue() or err.getvalue()

    def json(self, command: str, *more: object, code: int = 0) -> Any:
        return json.loads(self.call(command, *more, "--json", code=code))

    @contextlib.contextmanager
    def process(self, command: str, *more: object, **how: Any) -> Iterator[subprocess.Popen[str]]:
        """A command in a process of its own, which is killed at the end unless it ended."""
        script = Path(__file__).with_name("plan_command.py")
        words = [sys.executable, str(script), str(self.folder / "power")]
        words += self.words(command, *more)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(words, **{**pipes, **how})
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def states(self) -> dict[str, str]:
        """State of each task, by the replica's name; {} before there is a run."""
        try:
            return {row["replica"]: row["state"] for row in self.json("status")["tasks"]}
        except AssertionError:
            return {}

    def until(self, name: str, state: str) -> None:
        """Wait for it, by the run's events."""
        where = running.settings(str(self.folder / "state"))
        place = self.folder / "state" / "plans" / "site.sqlite"
        wait_until(place.exists, "there is a database")
        with running.opened("site", where) as store:
            wait_until(lambda: store.runs("site"), "there is a run")
            run, known, seq = store.runs("site")[0].run, [], 0

            def came() -> bool:
                nonlocal seq
                for event in store.wait(run, seq, 0.2):
                    known.append(event)
                    seq = event.seq
                nodes = fold(known).nodes.items()
                return any(key.endswith(name) and node.state == state for key, node in nodes)

            wait_until(came, f"{name} is {state}")

    def replica(self, name: str) -> str:
        with Replica.open(self.folder / "replicas" / name) as replica:
            return str(replica.manifest.state)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=WAIT_SECONDS)
    return process.returncode, out, err


# ---- a run, and what is said of it ----


def test_a_test_run_and_its_undo_as_scripts_see_them(tmp_path: Path) -> None:
    site = Site(tmp_path)
    done = site.json("run", "--test", "--reason", "a drill")
    assert (done["state"], done["kind"], done["counts"]) == ("done", "test", {"done": 3})
    assert done["reason"] == "a drill"
    assert {row["replica"] for row in done["tasks"]} == set(NAMES)
    assert all(row["outcome"]["operation"] for row in done["tasks"])
    assert Path(done["report"]).is_file()
    assert done["report"] in site.json("report").values()
    shown = site.json("status")
    assert shown["tasks"] == done["tasks"]
    lines = site.call("status").splitlines()
    assert [line.split("\t")[:3] for line in lines] == [
        ["db", "db-1", "done"], ["db", "db-2", "done"], ["web", "web-1", "done"]
    ]  # fmt: skip
    undone = site.json("undo")
    assert (undone["state"], undone["kind"], undone["of"]) == ("done", "undo", done["run"])
    assert [row["run"] for row in site.json("runs")["runs"]] == [undone["run"], done["run"]]
    assert site.json("status", "--run", done["run"])["tasks"] == done["tasks"]
    told = site.call("events", "--run", done["run"]).splitlines()
    state = fold(msgspec.json.decode(line, type=Event) for line in told)
    assert state.state == "done"
    assert msgspec.to_builtins(state.nodes["db/db-1"]).items() <= done["tasks"][0].items()
    assert site.json("undo", code=1)["error"]["hint"]


@pytest.mark.long
def test_a_group_of_it_alone_is_run_and_prints_nothing_but_the_result(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.process("run", "--unplanned", "--group", "web") as process:
        code, out, err = ended(process)
    assert code == 0, err
    assert err == ""
    assert out.splitlines()[0].startswith("run ")
    assert "(unplanned): done after " in out
    assert re.search(r"^RPO .* at worst: web/web-1$", out, re.MULTILINE)
    assert out.splitlines()[-1].startswith("report: ")
    assert [site.replica(name) for name in NAMES] == ["Ready", "Ready", "Failover"]


def test_what_failed_is_told_and_the_exit_code_is_1_until_it_was_tried_again(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path, on_failure="stop")
    site.broken("db-2")
    told = site.call("run", "--unplanned", code=1)
    assert "db/db-2 failed" in told
    assert "no memory is left" in told
    assert "rollpoint plan retry" in told
    assert site.replica("web-1") == "Ready"
    site.broken("db-2", False)
    again = site.json("retry", "db-2")  # nobody carries it out: this process does
    assert again["state"] == "done"
    assert site.replica("web-1") == "Failover"


def test_misuse_is_2_and_begins_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert "which one" in site.json("run", code=2)["error"]["hint"]
    both = site.json("run", "--test", "--planned", code=2)["error"]
    assert "do not go together" in both["message"]
    site.json("run", "--test", "--group", "nobody", code=2)
    site.json("run", "--test", "--events", "here", code=2)
    site.json("run", "--test", "--skip", "source-fenced", code=2)
    assert "never run" in site.json("status", code=1)["error"]["message"]
    site.plan.write_text(site.plan.read_text().replace('["db"]', '["bd"]'))
    wrong = site.json("run", "--test", code=2)["error"]
    assert f"{site.plan}, line 13" in wrong["message"] or "line 13" in wrong["message"]
    assert not (tmp_path / "state" / "plans" / "other.sqlite").exists()
    site.plan = tmp_path / "other.toml"
    site.json("status", code=2)
    assert not (tmp_path / "state" / "plans" / "other.sqlite").exists()


@pytest.mark.parametrize("command", ["run", "check", "status", "pause", "runs"])
def test_a_database_that_cannot_be_used_is_told_without_a_trace(
    tmp_path: Path, command: str
) -> None:
    site = Site(tmp_path)
    kind = ["--test"] if command in ("run", "check") else []
    closed = "postgresql://nobody@127.0.0.1:1/none"
    error = site.json(command, *kind, "--database", closed, code=1)["error"]
    assert "127.0.0.1" in error["message"]
    assert error["hint"]
    secret = "postgresql://nobody:geheim@127.0.0.1:1/none"
    error = site.json(command, *kind, "--database", secret, code=2)["error"]
    assert "geheim" not in json.dumps(error)
    (tmp_path / "state").write_text("a file")
    assert site.json(command, *kind, code=2)["error"]["message"]


def test_check_tells_what_would_stop_a_run_and_how_long_it_takes(tmp_path: Path) -> None:
    site = Site(tmp_path)
    fine = site.json("check", "--test")
    assert (fine["stops"], fine["kind"], len(fine["rows"])) == (False, "test", 3)
    text = site.call("check", "--test")
    assert "plan site (test): nothing would stop it" in text
    with Replica.open(tmp_path / "replicas" / "db-1") as replica:
        operation.failover(replica, power_on=False, convert=False)
    text = site.call("check", "--unplanned", code=1)
    assert "STOPS   db/db-1: " in text
    assert "plan site (unplanned): would be stopped" in text
    assert not site.json("check", "--group", "web")["stops"]
    lines = site.call("check", "--group", "web").splitlines()
    assert lines[0].split("\t")[:3] == ["web", "web-1", "Ready"]


def test_a_run_can_be_paused_also_when_its_plan_file_is_spoilt(tmp_path: Path) -> None:
    site = Site(tmp_path)
    where = running.settings(str(tmp_path / "state"))
    begun = running.start(str(site.plan), "unplanned", where)
    site.plan.write_text("version = [")
    paused = site.json("pause")
    assert (paused["run"], paused["paused"], paused["driven"]) == (begun, True, False)
    assert "no process carries it out now" in site.call("pause")


# ---- several terminals ----


def test_pause_retry_continue_and_skip_from_another_process(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.broken("db-1")
    site.broken("web-1")
    with site.process("run", "--unplanned", "--json") as process:
        site.until("db-1", "asking")
        assert site.json("pause")["driven"] is True
        site.broken("db-1", False)
        site.json("retry", "db-1")
        assert site.states()["db-1"] == "waiting"  # it is paused
        assert site.json("continue")["paused"] is False
        site.until("web-1", "asking")
        assert site.states()["db-1"] == "done"
        site.json("skip", "web-1", "--reason", "it is not needed today")
        code, out, err = ended(process)
    assert code == 0, err
    states = {row["replica"]: row["state"] for row in json.loads(out)["tasks"]}
    assert states == {"db-1": "done", "db-2": "done", "web-1": "skipped"}


@pytest.mark.long
def test_cancel_from_another_process_and_a_retry_that_goes_on_with_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.broken("db-1")
    with site.process("run", "--unplanned") as process:
        site.until("db-1", "asking")
        site.until("db-2", "done")
        assert "going on" in site.json("run", "--test", code=1)["error"]["message"]
        site.json("cancel", "--reason", "wrong site")
        code, out, err = ended(process)
    assert code == 1, err
    assert "(unplanned): cancelled after" in out
    assert site.json("cancel", code=1)["error"]["message"].endswith("has ended: cancelled")
    site.broken("db-1", False)
    assert site.json("retry")["state"] == "done"


SLOW = """
[[group.before]]
command = ["sh", "-c", "touch {folder}/begun; while ! test -e {folder}/go; do sleep 0.02; done"]
"""


@pytest.mark.long
def test_ctrl_c_ends_nothing_in_the_middle_and_continue_goes_on(tmp_path: Path) -> None:
    site = Site(tmp_path, more=SLOW)
    with site.process("run", "--unplanned") as process:
        wait_until((tmp_path / "begun").exists, "something is being done")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "are finished, then this ends" in line
        assert f"rollpoint plan continue {site.plan}" in line
        assert process.poll() is None
        (tmp_path / "go").touch()
        code, out, _ = ended(process)
    assert code == 130
    assert "no process carries it out now: rollpoint plan continue" in out
    assert [site.replica(name) for name in NAMES] == ["Failover", "Failover", "Ready"]
    assert site.json("status")["paused"] is True
    assert site.json("continue")["state"] == "done"
    assert site.replica("web-1") == "Failover"


@pytest.mark.long
def test_ctrl_c_twice_ends_each_task_behind_its_step(tmp_path: Path) -> None:
    site = Site(tmp_path, more=SLOW)
    with site.process("run", "--unplanned") as process:
        wait_until((tmp_path / "begun").exists, "something is being done")
        assert process.stderr is not None
        for says in ("are finished, then this ends", "as soon as each task's step is done"):
            process.send_signal(signal.SIGINT)
            assert says in process.stderr.readline()
        process.send_signal(signal.SIGTERM)  # nothing more is ended by it
        assert process.poll() is None
        (tmp_path / "go").touch()
        code, _, _ = ended(process)
    assert code == 130
    assert site.json("continue")["state"] == "done"
    assert [site.replica(name) for name in NAMES] == ["Failover"] * 3


# ---- a terminal ----


class Terminal:
    """A process on a terminal, and all that it wrote there."""

    def __init__(self, master: int) -> None:
        self.master, self.text = master, ""

    def until(self, sees: Callable[[str], bool]) -> None:
        def looked() -> bool:
            while select.select([self.master], [], [], 0)[0]:
                try:
                    self.text += os.read(self.master, 65536).decode()
                except OSError:
                    break
            return sees(self.text)

        wait_until(looked, f"the terminal shows it; it shows {self.text[-2000:]}")


@contextlib.contextmanager
def terminal(site: Site, command: str, *more: object) -> Iterator[tuple[Terminal, Any]]:
    master, slave = pty.openpty()
    how = {"stdin": slave, "stdout": slave, "stderr": slave}
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    with site.process(command, *more, env=environment, **how) as process:
        os.close(slave)
        try:
            screen = Terminal(master)
            yield screen, process
        finally:
            os.close(screen.master)


@pytest.mark.long
def test_a_prompt_is_answered_here_by_a_key(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.broken("db-2")
    with terminal(site, "run", "--unplanned") as (screen, process):
        screen.until(lambda text: "db/db-2 failed.  r: retry" in text)
        os.write(screen.master, b"c")
        screen.until(lambda text: "cancel the whole run?" in text)
        os.write(screen.master, b"n")
        site.broken("db-2", False)
        os.write(screen.master, b"r")
        screen.until(lambda text: "(unplanned): done after" in text)
        assert process.wait(WAIT_SECONDS) == 0
    assert "2 of 2 up" in screen.text
    assert "web-1" in screen.text


@pytest.mark.long
def test_a_prompt_is_answered_in_another_terminal_and_goes_away(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.broken("db-2")
    with terminal(site, "run", "--unplanned") as (screen, process):
        screen.until(lambda text: "db/db-2 failed.  r: retry" in text)
        with terminal(site, "status", "--watch") as (other, onlooker):
            other.until(lambda text: "db/db-2 failed.  r: retry" in text)
            os.write(other.master, b"s")
            other.until(lambda text: "1 skipped" in text)
            screen.until(lambda text: "(unplanned): done after" in text)
            assert process.wait(WAIT_SECONDS) == 0
            assert onlooker.wait(WAIT_SECONDS) == 0
    assert "r: retry" not in screen.text[screen.text.rindex("1 skipped") :]


@pytest.mark.long
@pytest.mark.parametrize("is_told", [True, False], ids=["hangup", "gone"])
def test_a_connection_that_breaks_does_not_stop_a_run(tmp_path: Path, is_told: bool) -> None:
    site = Site(tmp_path)
    site.broken("db-2")
    with terminal(site, "run", "--unplanned") as (screen, process):
        screen.until(lambda text: "db/db-2 failed.  r: retry" in text)
        if is_told:
            process.send_signal(signal.SIGHUP)
        os.close(screen.master)
        screen.master = os.open(os.devnull, os.O_RDONLY)
        site.json("skip", "db-2")
        assert process.wait(WAIT_SECONDS) == 0
    assert site.replica("web-1") == "Failover"


# ---- programs ----


@pytest.mark.long
def test_events_on_a_descriptor_are_the_run(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with (tmp_path / "events.jsonl").open("wb") as file:
        number = file.fileno()
        done = site.json("run", "--unplanned", "--events", f"fd:{number}")
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    state = fold(msgspec.json.decode(line, type=Event) for line in lines)
    assert (state.spec.run, state.state) == (done["run"], "done")
    assert {key: node.state for key, node in state.nodes.items()} == {
        row["key"]: row["state"] for row in done["tasks"]
    }
    assert site.call("events", "--follow").encode().splitlines() == lines


@pytest.mark.parametrize(
    "words",
    [["failover", "/nothing/here"], ["--help"], ["plan", "--help"], ["plan", "run", "--help"]],
    ids=" ".join,
)
def test_nothing_heavy_is_imported_before_it_is_needed(words: list[str]) -> None:
    """A failover's time begins with the key press."""
    code = (
        "import sys\nfrom rollpoint.cli import main\n"
        "try:\n main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "names = ('dbos', 'sqlalchemy', 'psycopg', 'rich.live', 'prometheus_client')\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
