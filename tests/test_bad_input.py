"""The hostile and the clumsy user: every command with bad input says so, and changes nothing.

What is called, how an answer is judged and what "nothing" means is in hostile.py. Most
commands run in this process; a few as processes of their own, where that matters.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
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
from rollpoint.cli import COMMANDS
from rollpoint.disk import create_disk

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


# ---- a file that is no disk ----


@pytest.fixture
def disks(here: Path) -> Path:
    """good.vmdk (one file), base.vmdk with its extent, child.vmdk above base.vmdk."""
    create_disk("good.vmdk", "monolithicSparse", 1 << 20)
    create_disk("base.vmdk", "monolithicFlat", 1 << 20)
    create_disk("child.vmdk", "vmfsSparse", parent="base.vmdk")
    return here


def no_disks(here: Path) -> list[str]:
    """Names that no command can use as a disk."""
    (here / "empty").write_bytes(b"")
    (here / "random").write_bytes(bytes(range(256)) * 20)
    (here / "text").write_text("hello\n")
    (here / "cut.vmdk").write_bytes((here / "good.vmdk").read_bytes()[:700])
    (here / "directory").mkdir()
    os.mkfifo("fifo")
    os.symlink("loop", "loop")
    os.symlink("nowhere", "dangling")
    os.symlink("base-flat.vmdk", "symlinked-flat")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    made = []

    def altered(name: str, of: str, old: str, new: str) -> None:
        text = (here / of).read_text()
        assert old in text
        (here / name).write_text(text.replace(old, new))
        made.append(name)

    extents = {
        "outside": "../../etc/passwd", "absolute": "/etc/passwd", "gone": "gone-flat.vmdk",
        "a fifo": "fifo", "a link": "symlinked-flat", "itself": "itself",
        "a directory": "directory", "too short": "text",
    }  # fmt: skip
    for name, extent in extents.items():
        altered(name, "base.vmdk", "base-flat.vmdk", extent)
    altered("unknown type", "base.vmdk", "monolithicFlat", "strange")
    altered("refused type", "base.vmdk", "monolithicFlat", "seSparse")
    altered("endless", "base.vmdk", "RW 2048", "RW 99999999999999999999")
    parents = {
        "own parent": "own parent", "no parent": "gone.vmdk", "parent outside": "../../etc/passwd",
        "parent is random": "random", "circle a": "circle b", "circle b": "circle a",
    }  # fmt: skip
    for name, parent in parents.items():
        altered(name, "child.vmdk", '"base.vmdk"', f'"{parent}"')
    for name, place in {"magic": 0, "grain": 20, "descriptor": 28, "directory at": 56}.items():
        data = bytearray((here / "good.vmdk").read_bytes())
        data[place : place + 8] = b"\xff" * 8
        (here / f"bad {name}").write_bytes(data)
        made.append(f"bad {name}")
    return [
        *made, "missing", "empty", "random", "text", "cut.vmdk", "directory", "fifo", "loop",
        "dangling", "socket", "base-flat.vmdk", "/dev/null", "/dev/zero", "/proc/self/mem", "", ".",
        "/", "directory/", "good.vmdk/x", "x" * 300, "ünï", "bad\udcff",
    ]  # fmt: skip


# Whose descriptor can be read: check tells what is wrong with the rest.
DAMAGED = {"too short", "bad grain", "bad descriptor", "cut.vmdk"}


@pytest.mark.parametrize("command", ON_DISK)
def test_what_is_no_disk_is_refused(command: str, disks: Path) -> None:
    names = no_disks(disks)
    with unchanged(disks):
        for name in names:
            line = [word.replace("X", name) for word in ON_DISK[command]]
            if command == "check" and name in DAMAGED:
                assert not json.loads(run("disk", *line, "--json").out)["clean"]
                assert run("disk", *line).code == 1
            else:
                refused("disk", *line)


def test_a_child_of_another_content_is_refused_where_data_counts(disks: Path) -> None:
    text = (disks / "child.vmdk").read_text()
    (disks / "other.vmdk").write_text(re.sub(r"parentCID=\w+", "parentCID=12345678", text))
    with unchanged(disks):
        for command, shape in ON_DISK.items():
            if command not in ("info", "check"):  # these tell of it
                found = refused("disk", *(word.replace("X", "other.vmdk") for word in shape))
                assert "12345678" in found.message
        assert run("disk", "info", "other.vmdk").code == 0
        checked = run("disk", "check", "other.vmdk", "--json")
        assert (checked.code, json.loads(checked.out)["clean"]) == (1, False)


def test_what_is_no_raw_disk_is_refused(disks: Path) -> None:
    (disks / "odd").write_bytes(b"x" * 1000)
    with unchanged(disks):
        for name in ("missing", ".", "/dev/null", "odd"):
            for shape in (("info",), ("map",), ("check",), ("serve", "--socket", "s")):
                refused("disk", shape[0], name, *shape[1:], "--format", "raw")


@pytest.mark.parametrize(
    "target",
    ["good.vmdk", "base-flat.vmdk", "directory", ".", "", "/", "directory/", "no/where.vmdk",
     "good.vmdk/x", "x" * 300],
)  # fmt: skip
def test_nothing_is_overwritten_and_no_part_is_left(target: str, disks: Path) -> None:
    (disks / "directory").mkdir()
    (disks / "taken-flat.vmdk").write_text("mine")
    with unchanged(disks):
        for kind in ("raw", "monolithicFlat", "monolithicSparse", "vmfsSparse"):
            refused("disk", "create", target, "1M", "--type", kind)
            refused("disk", "convert", "good.vmdk", target, "--to", kind)
        refused("disk", "create", "taken.vmdk", "1M", "--type", "monolithicFlat",
                names="taken-flat.vmdk")  # fmt: skip


# ---- wrong values of options ----

SIZES = ["", "0", "-1", "1", "513", "1.5G", "abc", "1X", "9" * 300, "9" * 5000, "99999999T",
         "１２K", "0x10", "1e6", " ", "4611686018427387904", "9223372036854775808"]  # fmt: skip


@pytest.mark.parametrize("kind", ["raw", "monolithicFlat", "twoGbMaxExtentSparse", "vmfsSparse"])
def test_an_impossible_size_is_refused(
    kind: str, states: dict[str, Path], disks: Path
) -> None:
    ready = states["Ready"]
    with unchanged(disks), unchanged(ready):
        for size in SIZES:
            call = ["disk", "create", "--type", kind, "--", "new.vmdk", size]
            assert refused(*call).code == 2, call
            if kind != "raw":
                continue
            for call in (
                ("disk", "create", "new.vmdk", f"--grain={size}", "1M"),
                ("disk", "convert", "good.vmdk", "new.vmdk", "--to=vmfsSparse", f"--grain={size}"),
                ("replica", "create", "new", "--disk", f"a={size}"),
                ("replica", "create", "new", "--disk", "a=1M", f"--grain={size}"),
                ("failover", ready, "--no-power-on", f"--memory={size}"),
            ):
                assert refused(*call).code == 2, call


DURATIONS = ["", "0", "0s", "-1s", "1", "abc", "1y", "2 weeks", "9" * 400 + "s", "9" * 15 + "d",
             "1e3s", "inf", "nan", "10000d", "１s", "1_0s"]  # fmt: skip
MOMENTS = ["", "0", "-1", "99", "1.5", "9" * 30, "9" * 5000, "earliest", "0001-01-01", "9999-12-31",
           "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-13-01", "１", "1;rm",
           "1970-01-01", "2300-01-01", "x" * 300]  # fmt: skip


def test_impossible_times_and_ids_are_refused(states: dict[str, Path], here: Path) -> None:
    ready = states["Ready"]
    with unchanged(ready), unchanged(here):
        for duration in DURATIONS:
            assert refused("ingest", ready, "--socket", "s", f"--rpo={duration}").code == 2
            if duration not in ("0s", "0"):
                assert refused("failover", ready, f"--timeout={duration}").code == 2
        for moment in MOMENTS:
            error = refused("failover", ready, "--no-power-on", f"--to={moment}")
            assert error.type in ("UsageError", "NotFoundError"), error


BAD_NAMES = ["", "../a", "a/b", ".a", "a.vmdk", "a-flat", "a-journal", "a-interim", "a-000001",
             "ünï", "a" * 101, "a" * 300, "a b", "a\nb"]  # fmt: skip


def test_impossible_names_are_refused(states: dict[str, Path], here: Path) -> None:
    shutil.copytree(states["Ready"], here / "r")
    with unchanged(here):
        for name in BAD_NAMES:
            refused("replica", "create", "new", "--disk", f"{name}=1M")
            refused("replica", "adopt", ".", "--disk", f"{name}=image.raw")
            refused("replica", "seed", "r", "--disk", f"{name}=image.raw")
        for pair in ("a", "=1M", "a="):
            refused("replica", "create", "new", "--disk", pair, names="--disk")
        refused("replica", "create", "new", "--disk", "a=1M", "--disk", "A=1M")
        refused("replica", "create", "new", "--disk", "a=1M", "--disk", "a=2M")
        for label in ("x" * 256, "é" * 128, "\udcff"):
            assert refused("mark", "r", f"--label={label}").code == 2
        for name in ("", "r ", "*"):
            refused("replica", "remove", "r", f"--force={name}", names="Ready")
        refused("failover", "r", "--accel", "xen", names="xen")


def test_impossible_types_and_places_are_refused(
    states: dict[str, Path], disks: Path
) -> None:
    shutil.copytree(states["Ready"], disks / "r")
    with unchanged(disks):
        for kind in ("", "vdi", "VMFS", "vmfsRDM", "x" * 300, "ü"):
            refused("disk", "create", "new.vmdk", "1M", f"--type={kind}")
            refused("disk", "convert", "good.vmdk", "new.vmdk", f"--to={kind}")
        for adapter in ("", "scsi", "x" * 300, 'a"b'):
            refused("disk", "create", "new.vmdk", "1M", f"--adapter={adapter}")
        for socket_ in ("", "nowhere/s", "r", "good.vmdk", "/", "/dev/null", "/proc/s", "x" * 300):
            refused("ingest", "r", f"--socket={socket_}")
            refused("disk", "serve", "good.vmdk", f"--socket={socket_}")
        for name in ("x" * 300, "ü" * 200, "\udcff"):
            refused("disk", "serve", "good.vmdk", "--socket", "s", f"--name={name}")
        for scratch in ("nowhere", "good.vmdk"):
            serve = ("disk", "serve", "good.vmdk", "--socket=s", "--snapshot")
            refused(*serve, f"--scratch={scratch}", names=scratch)
            refused("replica", "rehearse", "r", f"--scratch={scratch}", names=scratch)
        for root in ("nowhere", "/nope"):
            refused("disk", "info", "child.vmdk", f"--allow-root={root}")
        for at in ("", "tomorrow", "9" * 30, "-1", "x" * 300, "\udcff"):
            for command in (("replica", "rehearse"), ("replica", "browse")):
                refused(*command, "r", f"--at={at}")
        for mode in ("", "magic", "\udcff"):
            refused("replica", "browse", "r", f"--mode={mode}", "--list=/")
            refused("disk", "mount", "good.vmdk", f"--mode={mode}", "--list=/")
        for file in ("nowhere.vmdk", "r", "/", "/dev/null", "x" * 300):
            refused("disk", "mount", file, "--list=/")
        refused("bench", "nonsense", names="nonsense")
        refused("bench", "--from", "/")
        for workspace in ("good.vmdk", "r", "good.vmdk/x", "x" * 300, "/proc/x", "/dev/null"):
            refused("demo", f"--workspace={workspace}")


# ---- misuse, and what a shell can do to a process ----

GROUPS = {"disk": ("info", "map", "check", "create", "convert", "compare", "commit", "serve",
                   "mount"),
          "replica": ("create", "adopt", "seed", "set", "list", "show", "verify", "resync",
                      "browse", "rehearse", "remove"),
          "point": ("name", "pin", "unpin", "lock", "show"),
          "audit": ("verify", "show"),
          "failback": ("start", "switch", "commit", "undo", "status"),
          "plan": ("check", "run", "status", "pause", "continue", "retry", "skip", "cancel", "undo",
                   "permanent", "failback", "commit", "report", "events", "runs")}  # fmt: skip
ALL = [(command,) for command in COMMANDS if command not in GROUPS] + [
    (group, command) for group, commands in GROUPS.items() for command in commands
]


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_every_command_takes_json_and_names_what_it_does_not_take(
    command: tuple[str, ...], here: Path
) -> None:
    with unchanged(here):
        error = refused(*command, "--nonsense", names="--nonsense")
        assert error.code == 2
        assert error.hint == f"rollpoint {' '.join(command)} --help tells what it takes"
        assert refused(*command, "a", "b", "c", "d", "--no").code == 2
        if command not in (("demo",), ("bench",)):
            assert refused(*command).code == 2
    shown = run(*command, "--help")
    assert shown.code == 0
    assert "--json" in shown.out


def rollpoint(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "rollpoint", *arguments],
        **{"stderr": subprocess.PIPE, "text": True, "timeout": 60, **more},
    )


def test_a_full_or_closed_output_is_an_error_without_a_traceback(
    states: dict[str, Path], here: Path
) -> None:
    with unchanged(states["Ready"]):
        with open("/dev/full", "w") as full:
            done = rollpoint("points", str(states["Ready"]), stdout=full)
        assert (done.returncode, done.stderr.splitlines()[0]) == (
            1, "rollpoint: No space left on device: writing to standard output"
        )  # fmt: skip
        reader, writer = os.pipe()
        os.close(reader)
        done = rollpoint("points", str(states["Ready"]), stdout=writer)
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, "")


def test_with_its_standard_files_closed_it_writes_into_no_disk(here: Path) -> None:
    """Numbers 0, 1 and 2 would go to the first files that are opened: here, to extents."""
    closed = {"preexec_fn": lambda: [os.close(n) for n in (0, 1, 2)], "stderr": None}
    assert rollpoint("disk", "create", "d.vmdk", "1M", "--type", "raw", **closed).returncode == 0
    assert (here / "d.vmdk").read_bytes() == bytes(1 << 20)
    assert rollpoint("disk", "info", "nowhere", **closed).returncode == 1


def test_a_process_answers_as_the_call_does(states: dict[str, Path], here: Path) -> None:
    done = rollpoint("undo", str(states["Ready"]), "--json", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr)["error"]["type"] == "StateError"
    done = rollpoint("replica", "create", "new", "--disk", "a=many")
    assert done.returncode == 2
    assert done.stderr.startswith("rollpoint: 'many' is not a size\n  -> ")
    assert not (here / "new").exists()


def test_a_name_cannot_write_to_the_terminal(here: Path) -> None:
    answer = run("disk", "info", "\x1b[2Jgone")
    assert "\x1b" not in answer.err
    assert "gone" in answer.err
