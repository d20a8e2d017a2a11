"""Bad input: what a command is called with, what it may answer, and that nothing changed."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import shutil
import signal
import stat
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from rollpoint import ingest, replication
from rollpoint.cli import disk as cli_disk
from rollpoint.cli import main
from rollpoint.manifest import FILE_NAME
from rollpoint.operation import failover, permanent
from rollpoint.replica import Replica
from rollpoint.replication import hold, mark

# Every command on a replica's directory; DIR stands for it, IMAGE for a first image.
ON_REPLICA = {
    "show": ("replica", "show", "DIR"),
    "verify": ("replica", "verify", "DIR"),
    "remove": ("replica", "remove", "DIR"),
    "seed": ("replica", "seed", "DIR", "--disk", "a=IMAGE"),
    "points": ("points", "DIR"),
    "mark": ("mark", "DIR"),
    "hold": ("hold", "DIR"),
    "release": ("release", "DIR"),
    "failover": ("failover", "DIR", "--no-power-on"),
    "undo": ("undo", "DIR"),
    "permanent": ("permanent", "DIR"),
    "resume": ("resume", "DIR"),
    "ingest": ("ingest", "DIR", "--socket", "SOCKET"),
}

DISKS = [("a", 128 << 10), ("b", (64 << 10) + 512)]
SEGMENT_BYTES = 64 << 10
POINTS = 3
HANG_SECONDS = 20  # far more than any refusal takes


class Answer(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


class Refusal(NamedTuple):
    """The error of a refused command, as --json says it."""

    code: int
    type: str
    message: str
    hint: str


def run(*arguments: object) -> Answer:
    """Run the command line here. One that hangs is a failure."""

    def hangs(*_: object) -> None:
        raise AssertionError(f"{arguments} hangs")

    out, err = io.StringIO(), io.StringIO()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANG_SECONDS)
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(word) for word in arguments])
    except SystemExit as ended:
        code = ended.code
    finally:
        signal.alarm(0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(code, int)
    return Answer(code, out.getvalue(), err.getvalue())


def check_refusal(arguments: tuple[object, ...], answer: Answer) -> Refusal:
    """That a --json answer is one clear error: one object, a message and a hint, no more."""
    assert answer.code in (1, 2), (arguments, answer)
    assert answer.out == "", (arguments, answer)
    body = json.loads(answer.err)
    assert list(body) == ["error"], answer
    assert list(body["error"]) == ["type", "message", "hint"], answer
    found = Refusal(answer.code, **body["error"])
    assert found.type.endswith("Error"), answer
    assert (found.code == 2) == (found.type == "UsageError"), answer
    for text in (found.message, found.hint):
        assert text.strip(), (arguments, answer)
        assert "\n" not in text, answer
        assert "Traceback" not in text, answer
    return found


def refused(*arguments: object, names: object = "") -> Refusal:
    """Run it with and without --json: it must be refused, naming what is wrong."""
    end = arguments.index("--") if "--" in arguments else len(arguments)  # of the options
    found = check_refusal(arguments, run(*arguments[:end], "--json", *arguments[end:]))
    assert str(names) in found.message + found.hint, (arguments, found)
    plain = run(*arguments)
    assert plain.code == found.code, (arguments, plain, found)
    assert plain.out == "", (arguments, plain)
    assert plain.err == f"rollpoint: {found.message}\n  -> {found.hint}\n", (arguments, plain)
    return found


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Every name below folder with its kind, mode, size and content; nothing is followed."""
    found: dict[str, tuple[object, ...]] = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            facts = os.lstat(path)
            content = ""
            if stat.S_ISLNK(facts.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(facts.st_mode):
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            size = 0 if stat.S_ISDIR(facts.st_mode) else facts.st_size
            found[os.path.relpath(path, folder)] = (oct(facts.st_mode), size, content)
    return found


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Nothing below folder may change."""
    before = snapshot(folder)
    yield
    after = snapshot(folder)
    assert after == before, {
        name: (before.get(name), after.get(name))
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    }


def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that start although they should not end at once; nobody waits for a lock."""
    monkeypatch.setattr(ingest.Ingest, "run", lambda self: self._let_go())
    quick = types.SimpleNamespace(**vars(cli_disk.signal))
    quick.sigwait = lambda ends: None
    monkeypatch.setattr(cli_disk, "signal", quick)
    for room in (ingest, replication):
        monkeypatch.setattr(room, "LOCK_SECONDS", 0.05)


def words(command: str, directory: object, here: Path) -> list[str]:
    put = {"DIR": str(directory), "SOCKET": str(here / "nbd.sock")}
    image = str(here / "image.raw")
    return [put.get(word, word).replace("IMAGE", image) for word in ON_REPLICA[command]]


# ---- replicas ----


def make_ready(path: Path) -> None:
    """Two small disks, three restore points with writes before each."""
    with Replica.create(path, DISKS, segment_bytes=SEGMENT_BYTES) as replica:
        for number in range(1, POINTS + 1):
            with replica.locked(), replica.journals(writable=True, with_bases=True) as journals:
                for native in journals.natives:
                    native.disk().pwrite(bytes([number]) * 5000, number * 6000)
            mark(replica, "crash", f"point {number}")


def make_states(folder: Path) -> dict[str, Path]:
    """A replica in each state that this version knows, each a directory of its own."""
    folder.mkdir()
    made = {name: folder / name for name in ("Ready", "Held", "Failover", "Permanent", "Open")}
    make_ready(made["Ready"])
    for name, path in made.items():
        if name != "Ready":
            shutil.copytree(made["Ready"], path)
    with Replica.open(made["Held"]) as replica:
        hold(replica)
    for name in ("Failover", "Permanent"):
        with Replica.open(made[name]) as replica:
            failover(replica, 2, power_on=False)
    with Replica.open(made["Permanent"]) as replica:
        permanent(replica)
    with Replica.open(made["Open"]) as replica, replica.locked():
        replica.manifest.begin("seed", "2026-11-22T00:00:00.000000Z")
        replica.save()
    return made


def edit_manifest(path: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    """Change the JSON of a manifest and leave its checksum as it is."""
    file = path / FILE_NAME
    body = json.loads(file.read_text())
    change(body)
    file.write_text(json.dumps(body))


# ---- rights ----


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """This thread obeys the modes of files, also when it is root's.

    Source: capget(2): version 3 has two words; DAC_OVERRIDE is bit 1, DAC_READ_SEARCH 2.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = _CapHeader(0x20080522, 0)
    data = (_CapData * 2)()
    assert libc.capget(ctypes.byref(header), data) == 0, os.strerror(ctypes.get_errno())
    had = data[0].effective
    data[0].effective = had & ~0b110
    assert libc.capset(ctypes.byref(header), data) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        data[0].effective = had
        assert libc.capset(ctypes.byref(header), data) == 0, os.strerror(ctypes.get_errno())
