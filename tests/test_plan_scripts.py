"""Scripts of a plan: what they get, what is kept of them, and what becomes of all they started."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rollpoint import commands
from rollpoint.plans import scripts
from rollpoint.plans.place import Place, fill
from rollpoint.plans.tables import Script

PLACE = Place(
    plan="site",
    run="r-1",
    kind="test",
    group="web",
    replica="web-1",
    directory="/replicas/web-1",
    operation="r-1-0000-0",
    point="12",
    address="192.0.2.7",
    machine="web-1-test",
)
GROUP = Place(plan="site", run="r-1", kind="planned", group="web")


def never() -> bool:
    return False


def sh(text: str, **said: Any) -> Script:
    return Script(command=["/bin/sh", "-c", text], **said)


def run(script: Script, place: Place = PLACE) -> dict[str, Any]:
    return scripts.run(script, place, gives_up=never)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(ok: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not ok():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def pids(folder: Path, count: int) -> list[int]:
    """What the processes wrote that a script started, each into a file of its own."""

    def read() -> list[int]:
        return [int(text) for file in folder.iterdir() if (text := file.read_text().strip())]

    wait_until(lambda: len(read()) == count, f"{count} processes")
    return read()


def test_a_script_that_ends_well_is_done_with_what_it_printed() -> None:
    row = run(sh("echo out; echo err >&2", name="say"))
    assert row.pop("seconds") >= 0
    assert row == {"name": "say", "state": "done", "exit": 0, "says": "out\nerr\n"}


def test_an_exit_code_a_signal_and_a_missing_program_fail_it() -> None:
    row = run(sh("echo no; exit 3"))
    assert (row["state"], row["exit"], row["says"], row["why"]) == (
        "failed",
        3,
        "no\n",
        "exit code 3: no",
    )
    row = run(sh("kill -9 $$"))
    assert (row["state"], row["exit"], row["why"]) == ("failed", -9, "a signal ended it: 9")
    row = run(Script(command=["/nowhere/is-no-such-program"]))
    assert (row["state"], row["exit"]) == ("failed", None)
    assert row["why"] == "it cannot be run: No such file or directory"
    assert run(Script(command=[]))["why"] == "the command is empty"


def test_its_environment_is_small_and_tells_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "hidden")
    monkeypatch.setenv("ROLLPOINT_DATABASE", "postgresql://elsewhere")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("LC_TIME", "C")
    monkeypatch.setenv("TZ", "UTC")
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    row = run(Script(command=[sys.executable, "-I", "-c", program], env={"COLOUR": "red"}))
    got = msgspec.json.decode(row["says"], type=dict[str, str])
    assert got.pop(commands.MARK)
    got.pop("LC_CTYPE", None)  # Python's own
    told = {f"ROLLPOINT_{k.upper()}": v for k, v in msgspec.to_builtins(PLACE).items()}
    ours = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
    lc = {k: v for k, v in os.environ.items() if k.startswith("LC_") and k != "LC_CTYPE"}
    assert got == {**told, **ours, **lc, "TZ": "UTC", "COLOUR": "red"}


def test_placeholders_of_a_vector_stand_for_what_they_say() -> None:
    row = run(
        Script(command=["/bin/echo", "{replica}/{group}", "{plan} {run}", "{address}", "{x}"])
    )
    assert row["says"] == "web-1/web site r-1 192.0.2.7 {x}\n"
    row = run(Script(command=["/bin/echo", "{replica}"]), GROUP)
    assert (row["state"], row["exit"]) == ("failed", None)
    assert "{replica} stands for nothing here" in row["why"]
    assert fill("{group} {} ${group}", GROUP) == "web {} ${group}"


def test_in_a_shell_no_name_is_a_command(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    hostile = msgspec.structs.replace(PLACE, replica=f"a'\"; touch {mark}; $(touch {mark})")
    text = """echo "{replica}" {replica}; echo ${HOME} '{replica}'"""
    row = run(Script(command=text, shell=True), hostile)
    assert (row["state"], row["exit"]) == ("done", 0)
    assert not mark.exists()
    assert row["says"].count("touch") == 4
    assert row["says"].endswith(f"\n{os.environ['HOME']} ${{ROLLPOINT_REPLICA}}\n")


def test_no_shell_is_used_unless_asked_for() -> None:
    assert run(Script(command=["/bin/echo", "$HOME", "a;b"]))["says"] == "$HOME a;b\n"


def test_of_its_output_the_last_4_kib_are_kept() -> None:
    row = run(sh("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done"))
    assert len(row["says"]) == scripts.OUTPUT_BYTES_MAX
    assert row["says"].endswith("line 2998\nline 2999\n")


def test_what_it_prints_is_text_that_can_be_kept_and_shown() -> None:
    row = run(sh(r"printf 'a\000b\033[31mred\377\r\nend\t.'"))
    assert row["says"] == "a\ufffdb\ufffd[31mred\ufffd\nend\t."


def test_a_secret_that_it_prints_is_not_kept() -> None:
    env = {"DB_PASSWORD": "correct horse", "api_token": "t0ken", "COLOUR": "scarlet", "KEY": "ab"}
    row = run(sh('echo "$DB_PASSWORD $api_token $COLOUR $KEY"', env=env))
    assert row["says"] == "*** *** scarlet ab\n"


def test_its_default_name_holds_no_arguments() -> None:
    assert scripts.name_of(Script(command=["/usr/bin/curl", "-u", "me:secret"])) == "curl"
    assert scripts.name_of(Script(command=["x"], name="notify")) == "notify"


def test_what_it_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    """The child has the script's output open still."""
    row = run(sh(f"sleep 600 & echo $! > {tmp_path}/pid; echo done", timeout="60s"))
    assert (row["state"], row["says"]) == ("done", "done\n")
    (child,) = pids(tmp_path, 1)
    assert not is_gone(child)
    os.kill(child, 9)


# A child, one without an environment, one in a session of its own, and one whose parent has gone.
FAMILY = """
trap '' TERM
sleep 600 & echo $! > {0}/child
env -i sleep 600 & echo $! > {0}/bare
setsid sh -c 'echo $$ > {0}/session; exec sleep 600' &
(setsid sh -c 'trap "" TERM; echo $$ > {0}/orphan; sleep 600; sleep 600' &)
echo begun
wait
sleep 600
"""


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
def test_it_is_killed_with_all_that_it_started(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "GRACE_SECONDS", 0.1)
    give_up = threading.Event()
    rows: list[dict[str, Any]] = []
    script = sh(FAMILY.format(tmp_path), timeout="1500ms" if how == "timeout" else "5m")
    thread = threading.Thread(
        target=lambda: rows.append(scripts.run(script, PLACE, gives_up=give_up.is_set))
    )
    thread.start()
    family = pids(tmp_path, 4)
    if how == "cancelled":
        give_up.set()
    thread.join(30)
    (row,) = rows
    assert [pid for pid in family if not is_gone(pid)] == []
    assert (row["exit"], row["says"]) == (None, "begun\n")
    if how == "cancelled":
        assert row["state"] == "cancelled"
    else:
        assert (row["state"], row["why"]) == (
            "failed",
            "it did not end in 1.5 s, and was killed: begun",
        )


def test_one_that_heeds_sigterm_can_tidy_up(tmp_path: Path) -> None:
    script = sh(f"trap 'echo tidy > {tmp_path}/tidy; exit 0' TERM; sleep 600 & wait", timeout="1s")
    assert run(script)["state"] == "failed"
    assert (tmp_path / "tidy").read_text() == "tidy\n"


def test_what_a_crash_left_of_it_is_ended_before_it_runs_again(tmp_path: Path) -> None:
    """A worker is killed while the script runs; its next life runs it again."""
    script = sh(f"echo $$ > {tmp_path}/$$; test -e {tmp_path}/again || sleep 600")
    worker = os.fork()
    if worker == 0:
        scripts.run(script, PLACE, gives_up=never)
        os._exit(0)
    (left,) = pids(tmp_path, 1)
    os.kill(worker, 9)
    os.waitpid(worker, 0)
    assert not is_gone(left)
    (tmp_path / "again").touch()
    other = msgspec.structs.replace(PLACE, replica="web-2")
    assert run(script, other)["state"] == "done"
    assert not is_gone(left), "that of another replica is none of ours"
    assert run(script)["state"] == "done"
    assert is_gone(left)
