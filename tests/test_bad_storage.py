"""Commands on damaged replicas, without rights, beside a second writer, on full file systems.

What is called and how an answer is judged is in hostile.py. "Nothing changed" has three
exceptions, each argued for where it is: see `kept` and MAY_NOTE.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile import (
    ON_REPLICA,
    check_refusal,
    make_states,
    no_waiting,
    refused,
    run,
    snapshot,
    unchanged,
    without_rights,
    words,
)

LOG = "a-journal-log.vmdk"
READERS = {"show", "points", "verify"}  # of a replica that another process has locked


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    no_waiting(monkeypatch)


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_states(tmp_path_factory.mktemp("made") / "states")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.raw").write_bytes(bytes(range(256)) * 512)
    return tmp_path


def flip(path: Path, *places: tuple[int, int]) -> None:
    """Invert bytes: pairs of offset and length."""
    with path.open("r+b") as file:
        for offset, length in places:
            file.seek(offset)
            data = file.read(length)
            file.seek(offset)
            file.write(bytes(byte ^ 0xFF for byte in data))


def flip_batches(path: Path) -> None:
    """The first bytes of every sector behind the superblocks."""
    flip(path, *((at, 64) for at in range(64 << 10, path.stat().st_size, 512)))


def instead(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def new_cid(path: Path) -> None:
    path.write_text(re.sub(r"(?m)^CID=\w+", "CID=12345678", path.read_text()))


# what is broken -> how; and the file that a message must name
DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no log": (LOG, lambda p: p.unlink()),
    "empty log": (LOG, lambda p: os.truncate(p, 0)),
    "log cut in its header": (LOG, lambda p: os.truncate(p, 700)),
    "log cut in its batches": (LOG, lambda p: os.truncate(p, (64 << 10) + 700)),
    "random log": (LOG, lambda p: p.write_bytes(bytes(range(256)) * 40)),
    "header": (LOG, lambda p: flip(p, (0, 512))),
    "superblocks": (LOG, lambda p: flip(p, (4096, 64), (8192, 64))),
    "batches": (LOG, flip_batches),
    "log is a directory": (LOG, lambda p: instead(p, os.mkdir)),
    "log is a fifo": (LOG, lambda p: instead(p, os.mkfifo)),
    "log is a loop": (LOG, lambda p: instead(p, lambda q: os.symlink(LOG, q))),
    "log of another disk": (LOG, lambda p: shutil.copy(p.parent / "b-journal-log.vmdk", p)),
    "no descriptor": ("a-journal.vmdk", lambda p: p.unlink()),
    "random descriptor": ("a-journal.vmdk", lambda p: p.write_bytes(bytes(range(256)))),
    "no base": ("a.vmdk", lambda p: p.unlink()),
    "no extent of the base": ("a-flat.vmdk", lambda p: p.unlink()),
    "short extent of the base": ("a-flat.vmdk", lambda p: os.truncate(p, 1000)),
    "other base": ("a.vmdk", new_cid),
}
# These do not open what is broken, and rightly work without it.
DO_NOT_LOOK = {"show", "remove", "resume"}
OF_THE_CHAIN = {"no descriptor", "random descriptor", "other base"}
OF_THE_BASE = {"no base", "no extent of the base", "short extent of the base"}


def blind(command: str, damage: str) -> bool:
    """Whether a command needs nothing of what is broken."""
    if command in DO_NOT_LOOK:
        return True
    if damage in OF_THE_CHAIN:  # the journal by itself is whole
        return command in {"points", "mark", "hold", "release", "ingest", "seed", "undo"}
    if damage in OF_THE_BASE:
        return command in {"points", "mark", "release", "seed", "undo"}
    # points and marks are of the journal, which says itself whose it is
    return damage == "log of another disk" and command in {
        "points", "mark", "release", "seed", "undo",
    }  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_replica_is_refused_and_left_as_it_is(
    damage: str, states: dict[str, Path], here: Path
) -> None:
    name, harm = DAMAGE[damage]
    for state, commands in {
        "Ready": set(ON_REPLICA) - {"undo", "permanent"},
        "Failover": {"undo", "permanent", "verify", "points"},
    }.items():
        path = here / state
        shutil.copytree(states[state], path)
        harm(path / name)
        for command in sorted(commands):
            if blind(command, damage):
                continue
            with unchanged(path):
                if command == "verify":
                    check_verdict(path, name)
                else:
                    error = refused(*words(command, path, here))
                    assert name in error.message or command == "seed", (command, error)


def check_verdict(path: Path, name: str) -> None:
    """What verify found is its result, on standard output; that there was something, an error."""
    answer = run("replica", "verify", path, "--json")
    found = json.loads(answer.out)
    assert not found["ok"]
    assert any(name in row["message"] for row in found["disks"][0]["damage"]), found
    error = check_refusal((), answer._replace(out=""))
    assert error.type == "DamagedError"


def test_an_undo_or_permanent_that_cannot_work_gives_nothing_up(
    states: dict[str, Path], here: Path
) -> None:
    """Found here: undo dropped the overlays, and then saw that the journal was damaged."""
    for harm in ("batches", "no log"):
        path = here / harm
        shutil.copytree(states["Failover"], path)
        DAMAGE[harm][1](path / LOG)
        with unchanged(path):
            for command in ("undo", "permanent"):
                refused(command, path, names=LOG)
        shown = json.loads(run("replica", "show", path, "--json").out)
        assert shown["state"] == "Failover"


# ---- a second writer ----

HOLDER = """
import sys
from rollpoint import _native
folder, name = sys.argv[1:]
file = _native.Io.posix().open_dir(folder).open(name, _native.OPEN_WRITE)
file.lock()
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked_elsewhere(path: Path) -> Iterator[None]:
    """Another process has the lock of a file."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path.parent), path.name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield
        process.communicate()


def test_beside_another_operation_only_looking_is_allowed(
    states: dict[str, Path], here: Path
) -> None:
    path = states["Ready"]
    with locked_elsewhere(path / "replica.lock"), unchanged(path):
        for command in ON_REPLICA:
            if command in READERS:
                assert run(*words(command, path, here), "--json").code == 0
            else:
                error = refused(*words(command, path, here), names=str(path))
                assert error.type == "LockedError", error


def _but(found: dict[str, tuple[str, int, str]], names: tuple[str, ...]) -> dict[str, object]:
    return {name: row for name, row in found.items() if name.partition("/")[0] not in names}


def test_a_journal_that_another_process_writes_is_not_taken(
    states: dict[str, Path], here: Path
) -> None:
    """A writer outside of this project's rules: it has the log, and no lock of the replica.

    A hold must raise the epoch before it can know whether the journals obey, so that is
    what stays; and both record that it was tried.
    """
    records = ("replica.json", "audit.jsonl", "reports")
    path = here / "r"
    shutil.copytree(states["Ready"], path)
    with locked_elsewhere(path / LOG):
        with unchanged(path):
            for command in ("mark", "release", "ingest", "seed"):
                error = refused(*words(command, path, here), names=LOG)
                assert error.type == "LockedError", error
            assert run("points", path).code == 0
        for command in ("hold", "failover"):
            before = _but(snapshot(path), records)
            error = refused(*words(command, path, here), names=LOG)
            assert error.type == "LockedError", error
            after = _but(snapshot(path), records)
            assert after == before
            facts = json.loads(run("replica", "show", path, "--json").out)
            assert (facts["state"], facts["held"], facts["operation"]) == ("Ready", False, None)
    assert run("mark", path, "--json").code == 0


def test_a_disk_that_another_process_writes_is_not_written(here: Path) -> None:
    assert run("disk", "create", "base.vmdk", "1M").code == 0
    assert run("disk", "create", "child.vmdk", "--parent", "base.vmdk").code == 0
    with locked_elsewhere(here / "child.vmdk"), unchanged(here):
        for words_ in (("commit", "child.vmdk"), ("serve", "child.vmdk", "--socket", "s")):
            assert refused("disk", *words_, names="child.vmdk").type == "LockedError"
        assert run("disk", "info", "child.vmdk").code == 0
    with locked_elsewhere(here / "base.vmdk"), unchanged(here):
        assert refused("disk", "commit", "child.vmdk", names="base.vmdk").type == "LockedError"


# ---- no permission ----


def test_without_rights_every_command_says_on_which_file(
    states: dict[str, Path], here: Path
) -> None:
    path = here / "r"
    shutil.copytree(states["Ready"], path)
    failed_over = here / "f"
    shutil.copytree(states["Failover"], failed_over)
    with without_rights():
        for target in (path, failed_over):
            os.chmod(target, 0)
        with contextlib.suppress(PermissionError):
            os.listdir(path)
            pytest.skip("modes do not bind this user, though its capabilities are gone")
        for command in ON_REPLICA:
            target = failed_over if command in ("undo", "permanent") else path
            error = refused(*words(command, target, here), names=str(target))
            assert (error.type, error.hint) == ("StorageError", "check who owns it and its mode")
        for target in (path, failed_over):
            os.chmod(target, 0o700)
    assert snapshot(path) == snapshot(states["Ready"])


@pytest.mark.parametrize("name", ["replica.json", "replica.lock", LOG])
def test_one_file_without_rights_is_named(
    name: str, states: dict[str, Path], here: Path
) -> None:
    path = here / "r"
    shutil.copytree(states["Ready"], path)
    os.chmod(path / name, 0)
    commands = set(ON_REPLICA) - {"undo", "permanent"}
    commands -= {"verify"} | ({"show", "resume", "remove"} if name == LOG else set())
    commands -= {"show", "points"} if name == "replica.lock" else set()
    with unchanged(path), without_rights():
        for command in sorted(commands):
            error = refused(*words(command, path, here), names=name)
            assert error.hint == "check who owns it and its mode", error


def test_a_directory_that_may_not_be_written_stays_as_it_is(
    states: dict[str, Path], here: Path
) -> None:
    """Not even a lock file, a socket or a part of a disk is left."""
    path = here / "r"
    shutil.copytree(states["Ready"], path)
    (path / "replica.lock").unlink()
    assert run("disk", "create", "r/d.vmdk", "1M", "--type", "monolithicFlat").code == 0
    os.chmod(path, 0o500)
    with unchanged(here), without_rights():
        for command in sorted(set(ON_REPLICA) - READERS - {"undo", "permanent"}):
            refused(*words(command, path, here), names=str(path))
        refused("replica", "create", path / "new", "--disk", "a=1M", names=str(path))
        refused("replica", "adopt", path, "--disk", "a=a.vmdk")
        refused("disk", "create", "r/new.vmdk", "1M", names="r/new.vmdk")
        refused("disk", "convert", "r/d.vmdk", "r/new.vmdk", "--to", "vmfs", names="r/new")
        refused("disk", "create", "r/new.vmdk", "--parent", "r/d.vmdk", names="r/new.vmdk")
        refused("disk", "serve", "r/d.vmdk", "--socket", "r/s", names="r/")
        refused("demo", "--workspace", "r/demo", names="r/demo")
        assert run("replica", "show", path).code == 0
        assert run("disk", "info", "r/d.vmdk").code == 0
    os.chmod(path, 0o700)


# ---- full and read-only file systems ----


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)],
        capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"a full disk was NOT tried: cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> None:
    """Not one byte more goes in."""
    with (place / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_on_a_full_disk_nothing_is_begun(
    small: Path, states: dict[str, Path], here: Path
) -> None:
    shutil.copytree(states["Ready"], small / "r")
    shutil.copytree(states["Failover"], small / "f")
    assert run("disk", "create", small / "d.vmdk", "64K", "--type", "monolithicFlat").code == 0
    fill(small)
    with unchanged(small):
        for command in ("mark", "hold", "failover", "ingest", "undo", "permanent"):
            target = small / ("f" if command in ("undo", "permanent") else "r")
            error = refused(*words(command, target, here), names=str(target))
            assert error.type == "StorageError", error
            assert "make room" in error.hint, error
        refused("replica", "create", small / "new", "--disk", "a=64K", names="make room")
        refused("disk", "create", small / "new.vmdk", "1M", names="make room")
        refused("disk", "create", small / "new.vmdk", "--parent", small / "d.vmdk")
        refused("disk", "convert", here / "image.raw", small / "new.vmdk", "--to",
                "monolithicSparse", "--format", "raw", names="make room")  # fmt: skip
        for command in READERS:
            assert run(*words(command, small / "r", here)).code == 0
    (small / "filler").unlink()
    assert run("failover", small / "r", "--no-power-on", "--json").code == 0


def test_a_read_only_file_system_is_named_as_such(
    small: Path, states: dict[str, Path], here: Path
) -> None:
    shutil.copytree(states["Ready"], small / "r")
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with unchanged(small):
        for command in sorted(ON_REPLICA):
            answer = run(*words(command, small / "r", here), "--json")
            if command in READERS:
                assert answer.code == 0
            elif command not in ("undo", "permanent"):
                assert "read-only" in refused(*words(command, small / "r", here)).hint
        refused("replica", "create", small / "new", "--disk", "a=64K", names="read-only")
        refused("disk", "create", small / "new.vmdk", "1M", names="read-only")
