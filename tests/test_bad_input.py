"""The hostile and the clumsy user: every command with bad input says so, and changes nothing.

What is called, how an answer is judged and what "nothing" means is in hostile.py. Most
commands run in this process; a few as processes of their own, where that matters.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import (
    ON_REPLICA,
    edit_manifest,
    make_states,
    no_waiting,
    refused,
    run,
    unchanged,
    words,
)

# Every command that opens a disk; X stands for it, GOOD for a disk that is one.
ON_DISK = {
    "info": ("info", "X"),
    "map": ("map", "X"),
    "check": ("check", "X"),
    "convert": ("convert", "X", "new.vmdk", "--to", "vmfs"),
    "compare": ("compare", "X", "good.vmdk"),
    "compare with": ("compare", "good.vmdk", "X"),
    "commit": ("commit", "X"),
    "serve": ("serve", "X", "--socket", "s"),
    "serve a snapshot": ("serve", "X", "--socket", "s", "--snapshot"),
    "create a child": ("create", "new.vmdk", "--parent", "X"),
}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    no_waiting(monkeypatch)


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_states(tmp_path_factory.mktemp("made") / "states")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory to work in, with a first image for disk a."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.raw").write_bytes(bytes(range(256)) * 512)
    return tmp_path


# ---- a directory that is no replica ----


def no_replicas(here: Path, good: Path) -> dict[str, Path]:
    """Directories that no command can use, by what is wrong with them."""
    made = {
        "missing": here / "nowhere",
        "below a file": here / "image.raw" / "r",
        "a file": here / "image.raw",
        "a device": Path("/dev/null"),
        "a name of 300 characters": here / ("x" * 300),
        "unicode": here / "ünï☃",
        "not unicode": here / "bad\udcff",
    }

    def folder(name: str) -> Path:
        made[name] = here / name
        made[name].mkdir()
        return made[name]

    folder("empty")
    text = (good / "replica.json").read_bytes()
    for name, data in {
        "of another program": b'{"name": "npm"}', "a list": b"[]", "no bytes": b"",
        "random bytes": bytes(range(256)), "cut": text[:200], "deep": b"[" * 100_000,
    }.items():  # fmt: skip
        (folder(name) / "replica.json").write_bytes(data)
    with (folder("huge") / "replica.json").open("wb") as file:
        file.truncate(20 << 20)
    changes: dict[str, Callable[[dict], object]] = {  # type: ignore[type-arg]
        "newer": lambda body: body.update(version=7),
        "flipped": lambda body: body.update(epoch=body["epoch"] + 1),
        "disk outside": lambda body: body["disks"][0].update(base="../../etc/passwd"),
        "unknown field": lambda body: body.update(more=1),
        "unknown state": lambda body: body.update(state="Happy"),
    }
    for name, change in changes.items():
        made[name] = here / name
        shutil.copytree(good, made[name])
        edit_manifest(made[name], change)
    (folder("manifest is a directory") / "replica.json").mkdir()
    os.mkfifo(folder("manifest is a fifo") / "replica.json")
    os.symlink("replica.json", folder("manifest is a loop") / "replica.json")
    os.symlink("/dev/zero", folder("manifest is a device") / "replica.json")
    os.symlink("loop", here / "loop")
    os.mkfifo(here / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    return made | {name: here / name for name in ("loop", "fifo", "socket")}


@pytest.mark.parametrize("command", ON_REPLICA)
def test_what_is_no_replica_is_refused(
    command: str, states: dict[str, Path], here: Path
) -> None:
    made = no_replicas(here, states["Ready"])
    with unchanged(here):
        for place in made.values():
            error = refused(*words(command, place, here))
            shown = str(place).encode(errors="replace").decode().replace("?", "�")
            assert shown[:200] in error.message, (error, shown)
        assert refused(*words(command, "", here)).code == 2


def test_what_is_no_place_for_a_new_replica_is_refused(
    states: dict[str, Path], here: Path
) -> None:
    made = no_replicas(here, states["Ready"])
    made["a replica"] = states["Failover"]
    free = {"missing", "empty", "unicode", "not unicode"}
    with unchanged(here), unchanged(states["Failover"]):
        for name, place in made.items():
            if name not in free:
                refused("replica", "create", place, "--disk", "a=1M")
            refused("replica", "adopt", place, "--disk", f"a={place}/a.vmdk")
        refused("replica", "create", "", "--disk", "a=1M")
        refused("replica", "create", "no/parent", "--disk", "a=1M", names="/no")
        for place in (here / "nowhere", here / "image.raw", here / "loop", ""):
            refused("replica", "list", place)


def test_a_list_shows_damaged_replicas_and_passes_over_the_rest(
    states: dict[str, Path], here: Path
) -> None:
    made = no_replicas(here, states["Ready"])
    shutil.copytree(states["Held"], here / "good")
    with unchanged(here):
        answer = run("replica", "list", here, "--json")
    assert answer.code == 0
    rows = {row["name"]: row for row in json.loads(answer.out)["replicas"]}
    assert rows["Ready"]["error"] is None
    assert {"cut", "flipped", "newer", "manifest is a fifo"} <= rows.keys()
    assert all(rows[name]["error"] for name in rows if name != "Ready")
    assert not rows.keys() & {"empty", "fifo", "image.raw"}
    assert made


# ---- a state that does not allow it ----

NOT_IN = {
    "Ready": {"undo", "permanent", "seed"},
    "Held": {"undo", "permanent", "seed", "mark", "ingest"},
    "Failover": set(ON_REPLICA) - {"show", "verify", "points", "undo", "permanent", "resume"},
    "Permanent": set(ON_REPLICA) - {"show", "verify", "points", "remove", "resume"},
    "Open": set(ON_REPLICA) - {"show", "verify", "points", "resume"},
}


@pytest.mark.parametrize("state", NOT_IN)
def test_a_state_that_does_not_allow_it_is_named_with_the_way_on(
    state: str, states: dict[str, Path], here: Path
) -> None:
    with unchanged(states[state]):
        for command in sorted(NOT_IN[state]):
            error = refused(*words(command, states[state], here))
            assert "Ready" in error.message + error.hint or "disk a" in error.message, error
            if command in ("undo", "permanent") and state in ("Ready", "Held"):
                assert "rollpoint failover" in error.hint
            if state == "Failover":
                assert "rollpoint undo" in error.hint
            if state == "Open":
                assert "rollpoint resume" in error.hint


def test_permanent_reads_as_a_sentence(states: dict[str, Path]) -> None:
    error = refused("permanent", states["Ready"])
    assert error.message == "cannot make replica Ready permanent: its state is Ready"
