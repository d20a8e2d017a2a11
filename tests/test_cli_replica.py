"""The commands of a replica's life, with good and with bad input, as an operator types them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from replicas import Source, empty_model, ingesting, make
from rollpoint import operation, replication
from rollpoint.cli import main
from rollpoint.disk import create_disk
from rollpoint.replica import Replica

Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: its JSON, or its text, or its error."""

    def call(*arguments: object, code: int = 0, text: bool = False) -> Any:
        words = [str(word) for word in arguments] + ([] if text else ["--json"])
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = capsys.readouterr()
        assert ended.value.code == code, (words, out, err)
        if text:
            return out if code == 0 else err
        if code:
            error = json.loads(err)["error"]
            assert set(error) == {"type", "message", "hint"}
            assert out == "" or json.loads(out)
            return error
        return json.loads(out)

    return call


def files(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


# ---- what scripts rely on ----


def test_the_life_of_a_replica_in_json(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "web01"
    made = run("replica", "create", path, "--disk", "root=1M", "--disk", "data=70144")
    assert made["state"] == "Ready"
    shown = run("replica", "show", path)
    assert shown == made
    assert {"id", "state", "epoch", "disks"} <= set(shown)
    for disk in shown["disks"]:
        assert {"name", "size_bytes", "base", "journal"} <= set(disk)
        assert os.path.isabs(disk["base"])
        assert os.path.exists(disk["base"])
        assert os.path.exists(disk["journal"])
    assert [disk["size_bytes"] for disk in shown["disks"]] == [1 << 20, 70144]
    point = run("mark", path, "--app", "--label", "before upgrade")
    assert point == {"id": 1, "time": point["time"], "kind": "app", "label": "before upgrade"}
    listed = run("points", path)
    assert set(listed) == {"points", "gaps", "rpo"}
    assert [{key: row[key] for key in point} for row in listed["points"]] == [point]
    assert listed["gaps"] == []
    assert {"target_seconds", "lag_seconds", "newest", "missed"} <= set(listed["rpo"])
    done = run("failover", path, "--to", 1, "--no-power-on")
    assert {"state", "point", "disks", "steps", "seconds"} <= set(done)
    assert (done["state"], done["point"]) == ("Failover", 1)
    assert [disk["name"] for disk in done["disks"]] == ["root", "data"]
    for disk in done["disks"]:
        assert disk["interim"] == str(path / f"{disk['name']}-interim.vmdk")
        assert os.path.exists(disk["interim"])
    assert [step["name"] for step in done["steps"]] == list(operation.FAILOVER_STEPS)
    assert all(step["seconds"] >= 0 for step in done["steps"])
    assert run("replica", "show", path)["state"] == "Failover"
    assert run("undo", path)["state"] == "Ready"
    assert run("resume", path) == {"state": "Ready", "operation": None}
    assert run("failover", path, "--no-power-on")["state"] == "Failover"
    assert run("permanent", path)["state"] == "Permanent"
    assert run("replica", "verify", path)["ok"] is True
    removed = run("replica", "remove", path)
    assert removed["kept"] == [str(path / "root.vmdk"), str(path / "data.vmdk")]


def test_people_get_text(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "web01"
    assert "state   Ready, epoch 1" in run(
        "replica", "create", path, "--disk", "root=1M", text=True
    )
    assert "restore point 1" in run("mark", path, text=True)
    assert "on hold, epoch 2" in run("hold", path, text=True)
    assert "Ready, on hold, epoch 2" in run("replica", "show", path, text=True)
    assert "released" in run("release", path, text=True)
    assert "a failover now would go back" in run("points", path, text=True)
    told = run("failover", path, "--no-power-on", text=True)
    for name in operation.FAILOVER_STEPS[:-2]:  # the last two are of the machine
        assert f"\n{name} " in f"\n{told}"
    assert "Failover as of restore point 1" in told
    assert "runs as of restore point 1" in run("replica", "show", path, text=True)
    assert "Ready" in run("undo", path, text=True)
    assert "nothing to resume" in run("resume", path, text=True)
    assert "no damage" in run("replica", "verify", path, text=True)
    assert "web01" in run("replica", "list", tmp_path, text=True)
    assert "removed web01" in run("replica", "remove", path, text=True)
    error = run("replica", "show", path, code=1, text=True)
    assert error.startswith("rollpoint: ")
    assert "\n  -> " in error


def test_a_relative_path_gives_absolute_ones(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = run("replica", "create", "r", "--disk", "d=4K")
    assert made["disks"][0]["base"] == str(tmp_path / "r" / "d.vmdk")


def test_adopt_seed_list_and_remove(run: Run, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    create_disk(str(tmp_path / "old" / "d.vmdk"), "monolithicSparse", 1 << 20)
    adopted = run("replica", "adopt", tmp_path / "old", "--disk", f"d={tmp_path}/old/d.vmdk")
    assert adopted["disks"][0]["base"] == str(tmp_path / "old" / "d.vmdk")
    run("replica", "create", tmp_path / "new", "--disk", "e=64K", "--grain", "8K")
    (tmp_path / "image").write_bytes(random.Random(1).randbytes(65536))
    seeded = run("replica", "seed", tmp_path / "new", "--disk", f"e={tmp_path}/image")
    assert seeded["state"] == "Ready"
    listed = run("replica", "list", tmp_path)["replicas"]
    assert [(row["name"], row["state"], row["size_bytes"]) for row in listed] == [
        ("new", "Ready", 65536), ("old", "Ready", 1 << 20)
    ]  # fmt: skip
    assert run("replica", "remove", tmp_path / "old")["kept"] == [str(tmp_path / "old" / "d.vmdk")]
    assert run("replica", "remove", tmp_path / "new")["kept"] == []
    assert not (tmp_path / "new").exists()


def test_retention_is_chosen_shown_and_changed(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "r"
    made = run(
        "replica", "create", path, "--disk", "d=1M", "--window", "15m",
        "--journal-limit", "200G", "--at-limit", "refuse", "--every", "8h", "--keep", "7d",
    )  # fmt: skip
    wanted = {
        "window_seconds": 900.0, "limit_bytes": 200 << 30, "at_limit": "refuse",
        "every_seconds": 28800.0, "keep_seconds": 7 * 86400.0,
    }  # fmt: skip
    assert wanted.items() <= made["retention"].items()
    assert made["retention"]["kept_seconds"] is None
    run("mark", path)
    changed = run("replica", "set", path, "--window", "30d", "--at-limit", "shorten")
    wanted |= {"window_seconds": 30 * 86400.0, "at_limit": "shorten"}
    assert wanted.items() <= changed["retention"].items()
    assert changed["retention"]["oldest"]["id"] == 1
    assert changed["retention"]["kept_seconds"] >= 0
    assert changed["retention"]["used_bytes"] > 0
    told = run("replica", "show", path, text=True)
    assert "window  30 d 0 h asked, " in told
    assert "kept, from restore point 1, " in told
    assert "of 200 GiB; at the limit: shorten" in told
    assert "long    every 8 h 0 m, kept for 7 d: 0 now" in told
    off = run("replica", "set", path, "--every", "0s", "--keep", "0s", "--journal-limit", "0")
    assert (off["retention"]["every_seconds"], off["retention"]["limit_bytes"]) == (0.0, 0)
    assert "no limit" in run("replica", "show", path, text=True)
    run("failover", path, "--no-power-on")
    run("permanent", path)
    assert run("replica", "set", path, "--window", "1h", code=1)["type"] == "StateError"
    assert "last    permanent, " in run("replica", "show", path, text=True)


# ---- bad input: a clear error, exit 1 or 2, nothing changed ----

ON_A_REPLICA = [
    ("replica", "show"),
    ("replica", "verify"),
    ("replica", "remove"),
    ("mark",),
    ("hold",),
    ("release",),
    ("points",),
    ("failover", "--no-power-on"),
    ("failover",),
    ("undo",),
    ("permanent",),
    ("resume",),
    ("ingest", "--socket", "SOCKET"),
    ("replica", "seed", "--disk", "d=IMAGE"),
    ("replica", "set", "--window", "1h"),
    ("point", "name", "1", "x"),
    ("point", "pin", "1"),
    ("point", "unpin", "1"),
    ("point", "lock", "1", "--until", "2999-01-01"),
    ("point", "show", "1"),
]


def words(command: tuple[str, ...], path: Path, tmp_path: Path) -> list[str]:
    """The command with the directory behind its name, and real places for the others."""
    named = 2 if command[0] in ("replica", "point") else 1
    replaced = [word.replace("IMAGE", f"{tmp_path}/image").replace("SOCKET", f"{tmp_path}/sock")
                for word in command]  # fmt: skip
    return [*replaced[:named], str(path), *replaced[named:]]


def no_directory(path: Path) -> None:
    pass


def a_file(path: Path) -> None:
    path.write_text("not a directory")


def foreign(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def foreign_json(path: Path) -> None:
    path.mkdir()
    (path / "replica.json").write_text('{"format": "something else"}')


def damaged_json(path: Path) -> None:
    make(path, {"d": 65536})
    text = (path / "replica.json").read_text()
    (path / "replica.json").write_text(text.replace('"epoch": 1', '"epoch": 2'))


def cut_json(path: Path) -> None:
    make(path, {"d": 65536})
    data = (path / "replica.json").read_bytes()
    (path / "replica.json").write_bytes(data[: len(data) // 2])


def newer(path: Path) -> None:
    make(path, {"d": 65536})
    document = json.loads((path / "replica.json").read_text())
    (path / "replica.json").write_text(json.dumps(document | {"version": 2}))


PLACES = [
    (no_directory, "NotFoundError"),
    (a_file, "StorageError"),
    (foreign, "NotFoundError"),
    (foreign_json, "FormatError"),
    (damaged_json, "DamagedError"),
    (cut_json, "DamagedError"),
    (newer, "UnsupportedError"),
]


@pytest.mark.parametrize("command", ON_A_REPLICA, ids=" ".join)
@pytest.mark.parametrize(
    ("place", "error"), PLACES, ids=lambda value: getattr(value, "__name__", "")
)
def test_what_is_no_replica_is_named_and_left_alone(
    run: Run, tmp_path: Path, command: tuple[str, ...], place: Callable[[Path], None], error: str
) -> None:
    (tmp_path / "image").write_bytes(bytes(65536))
    place(tmp_path / "r")
    before = files(tmp_path)
    found = run(*words(command, tmp_path / "r", tmp_path), code=1)
    assert found["type"] == error
    assert str(tmp_path / "r") in found["message"]
    assert files(tmp_path) == before


MISUSE = [
    ("replica", "create", "PATH"),
    ("replica", "create", "PATH", "--disk", "d"),
    ("replica", "create", "PATH", "--disk", "d="),
    ("replica", "create", "PATH", "--disk", "=1M"),
    ("replica", "create", "PATH", "--disk", "d=big"),
    ("replica", "create", "PATH", "--disk", "d=-1"),
    ("replica", "create", "PATH", "--disk", "d=1000"),
    ("replica", "create", "PATH", "--disk", "d=1M", "--disk", "d=2M"),
    ("replica", "create", "PATH", "--disk", "a/b=1M"),
    ("replica", "create", "PATH", "--disk", "d-journal=1M"),
    ("replica", "create", "PATH", "--disk", "d=1M", "--grain", "3K"),
    ("replica", "create", "PATH", "--disk", "d=1M", "--grain", "much"),
    ("replica", "explode", "PATH"),
    ("replica", "create"),
    ("failover",),
    ("failover", "READY", "--to", "soon"),
    ("failover", "READY", "--memory", "little"),
    ("failover", "READY", "--memory", "1K"),
    ("failover", "READY", "--accel", "warp"),
    ("failover", "READY", "--timeout", "5"),
    ("failover", "READY", "--unknown"),
    ("mark", "READY", "--label", "x" * 256),
    ("ingest", "READY"),
    ("ingest", "READY", "--socket", "SOCKET", "--rpo", "2"),
    ("ingest", "READY", "--socket", "SOCKET", "--rpo", "1ms"),
    ("replica", "remove", "READY", "--force", "other"),
    ("replica", "adopt", "READY", "--disk", "x=/etc/hostname"),
    ("replica", "create", "PATH", "--disk", "d=1M", "--window", "30s"),
    ("replica", "create", "PATH", "--disk", "d=1M", "--window", "31d"),
    ("replica", "create", "PATH", "--disk", "d=1M", "--journal-limit", "1G", "--at-limit", "burn"),
    ("replica", "create", "PATH", "--disk", "d=1M", "--every", "8h"),
    ("replica", "set", "READY"),
    ("replica", "set", "READY", "--window", "4"),
    ("replica", "set", "READY", "--journal-limit", "1M"),
    ("replica", "set", "READY", "--every", "8h", "--keep", "1h"),
    ("point", "name", "READY", "1", "latest"),
    ("point", "name", "READY", "nothing", "x"),
    ("point", "lock", "READY", "1"),
    ("point", "lock", "READY", "1", "--until", "soon"),
]


@pytest.mark.parametrize("command", MISUSE, ids=lambda command: " ".join(command)[:60])
def test_misuse_is_exit_code_2_and_changes_nothing(
    run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    make(tmp_path / "ready", {"d": 65536})
    with Replica.open(tmp_path / "ready") as replica:
        replication.mark(replica)
    places = {"PATH": tmp_path / "new", "READY": tmp_path / "ready", "SOCKET": tmp_path / "sock"}
    before = files(tmp_path)
    already = command[:3] == ("replica", "adopt", "READY")
    found = run(*(places.get(word, word) for word in command), code=1 if already else 2)
    assert found["type"] == ("ExistsError" if already else "UsageError")
    assert found["message"]
    assert files(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (harm, name)
        for harm in ("gone", "cut", "noise")
        for name in ("d-journal-log.vmdk", "d-journal.vmdk", "d.vmdk", "d-flat.vmdk")
        # The base's own data carries no checksum: VMDK has none.
        if (harm, name) != ("noise", "d-flat.vmdk")
    ],
)
def test_a_damaged_replica_is_not_failed_over_into_the_dark(
    run: Run, tmp_path: Path, name: str, harm: str
) -> None:
    """Whatever file is harmed: an error that names it, the state as before, no overlay."""
    path = tmp_path / "r"
    make(path, {"d": 262144})
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        source = Source(tmp_path / "s", empty_model({"d": 262144}), 1)
        for _ in range(30):
            source.act()
        replication.mark(replica)
        source.close()
    data = (path / name).read_bytes()
    if harm == "gone":
        (path / name).unlink()
    elif harm == "cut":
        (path / name).write_bytes(data[: len(data) // 3])
    else:
        noise = random.Random(2).randbytes(min(len(data), 400_000))
        (path / name).write_bytes(noise + data[len(noise) :])
    error = run("failover", path, "--no-power-on", code=1)
    assert error["type"] in ("NotFoundError", "DamagedError", "FormatError"), error
    assert name.split(".")[0].removesuffix("-log").removesuffix("-flat") in error["message"]
    assert run("replica", "verify", path, code=1)["type"] == "DamagedError"
    assert not list(path.glob("*-interim*"))
    state = run("replica", "show", path)["state"]
    assert state in ("Ready", "Failed")


def test_a_second_writer_is_refused_by_every_command(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "r"
    make(path)
    with Replica.open(path) as replica:
        replication.mark(replica)
        before = files(path)
        with replica.locked():
            for command in ON_A_REPLICA[2:6] + ON_A_REPLICA[7:12]:
                found = run(*words(command, path, tmp_path), code=1)
                assert found["type"] == "LockedError", command
                assert str(path) in found["message"]
        assert files(path) == before


def test_the_hint_of_a_wrong_state_leads_out_of_it(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "r"
    make(path)
    run("mark", path)
    run("failover", path, "--no-power-on")
    assert "rollpoint undo" in run("failover", path, code=1)["hint"]
    assert "rollpoint undo" in run("mark", path, code=1)["hint"]
    assert run("replica", "remove", path, code=1)["type"] == "StateError"
    run("undo", path)
    assert run("undo", path, code=1)["type"] == "StateError"
