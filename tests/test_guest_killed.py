"""kill -9 while a guest is mounted and converted: nothing is left, and nothing is lost."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, require_tool
from guests import protected
from guests.shelf import Shelf
from rollpoint import operation
from rollpoint.disk import open_disk
from rollpoint.errors import UnsupportedError
from rollpoint.replica import Replica

PROGRAM = ROOT / "tests" / "guests" / "fail_over_and_die.py"
GONE_SECONDS = 20.0
SEED = 20261122
CALLS_APART = 4  # of a hundred; all of them were tried once
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans become ours, so that none is missed
MOMENTS = [
    f"step:{name}:{state}"
    for name in ("interim", "export", "convert", "close")
    for state in ("running", "done")
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, whose name nobody else's mount or device has."""
    made = Path(tempfile.mkdtemp(prefix="rp-killed-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def replica(guests: Shelf, folder: Path) -> Path:
    protected.protect(folder / "r", guests.disk("plain"))
    protected.configure(folder / "r", mode="files")
    return folder / "r"


def run(path: Path, where: str) -> subprocess.CompletedProcess[str]:
    """The failover in a process of its own, whose temporary files are beside the replica."""
    scratch = path.parent / "tmp"
    scratch.mkdir(exist_ok=True)
    others = set(children())
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    try:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), str(path), where],
            capture_output=True, text=True, timeout=120, env=os.environ | {"TMPDIR": str(scratch)},
        )  # fmt: skip
        nothing_is_left(scratch, others)
    finally:
        ctypes.CDLL(None).prctl(SUBREAPER, 0, 0, 0, 0)
    return done


def nothing_is_left(scratch: Path, others: set[str]) -> None:
    """No process but those, no mount, no loop device, when the dust has settled."""
    deadline = time.monotonic() + GONE_SECONDS
    while left := [*(set(children()) - others), *mounts(scratch), *loops(scratch)]:
        assert time.monotonic() < deadline, f"left: {left}"
        time.sleep(0.02)


def children() -> list[str]:
    """Ours, orphans among them. One that has ended is taken."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) != os.getpid():
                continue
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] == "Z":
            os.waitpid(int(entry.name), os.WNOHANG)
        else:
            found.append(f"process {entry.name}: {words}")
    return found


def mounts(scratch: Path) -> list[str]:
    """In any process's namespace."""
    found = set()
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            lines = table.read_text().splitlines()
        except OSError:
            continue
        found |= {f"mount {line.split()[4]}" for line in lines if str(scratch) in line}
    return sorted(found)


def loops(scratch: Path) -> list[str]:
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            behind = file.read_text()
        except OSError:
            continue
        if str(scratch) in behind:
            found.append(f"{file.parent.parent.name} of {behind}")
    return found


def content(path: str) -> str:
    with open_disk(path) as disk:
        digest = hashlib.sha256()
        for at in range(0, disk.size_bytes, 1 << 20):
            digest.update(disk.pread(min(1 << 20, disk.size_bytes - at), at))
    return digest.hexdigest()


def is_as_before(path: Path, disk: Path) -> None:
    """The replica is Ready, shows its newest point, and has nothing to hide."""
    with Replica.open(path) as replica:
        assert (replica.manifest.state, replica.manifest.held) == ("Ready", False)
        assert replica.manifest.operation is None
        assert replica.verify()["ok"]
    assert not list(path.glob("*-interim*"))
    with open(disk, "rb") as file:
        wanted = hashlib.file_digest(file, "sha256").hexdigest()
    assert content(str(path / "system-journal.vmdk")) == wanted


def is_converted(path: Path, scratch: Path) -> None:
    """The overlay holds a whole conversion, once, in a sound file system."""
    interim = path / "system-interim.vmdk"
    root = scratch / "root"
    with open_disk(str(interim)) as disk, open(root, "wb") as file:
        for at in range(1 << 20, disk.size_bytes - (1 << 20), 1 << 20):
            file.write(disk.pread(1 << 20, at))
    check = subprocess.run([require_tool("e2fsck"), "-fn", root], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    words = [require_tool("debugfs"), "-R", "cat /boot/grub/grub.cfg", root]
    assert "root=UUID=" in subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert protected.conversion(path)["changes"]
    root.unlink()


def killed(path: Path, disk: Path, where: str, then: str, mode: str = "files") -> None:
    """Kill it there. Then resume it to its end and undo it; or let it fail, which undoes it."""
    others = set(children())
    protected.configure(path, mode=mode)
    done = run(path, where)
    assert done.returncode == -signal.SIGKILL, (where, done.stdout, done.stderr)
    if then == "finish":
        with Replica.open(path) as replica:
            outcome = operation.resume(replica)
        assert outcome is not None, where
        assert outcome.state == "Failover", where
        is_converted(path, path.parent / "tmp")
        with Replica.open(path) as replica:
            operation.undo(replica)
    else:
        protected.configure(path, mode="host", trust_guest=False)
        with Replica.open(path) as replica, pytest.raises(UnsupportedError, match="trust"):
            operation.resume(replica)
    nothing_is_left(path.parent / "tmp", others)
    is_as_before(path, disk)


def moments(path: Path) -> list[str]:
    """Every moment at which it can be killed, in order of kind, from a run that is not."""
    done = run(path, "never")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["state"] == "Failover"
    assert counts["call"] > 5
    with Replica.open(path) as replica:
        operation.undo(replica)
    calls = [f"call:{number}" for number in range(1, counts["call"] + 1, CALLS_APART)]
    return calls + [f"child:{number}" for number in range(1, counts["child"] + 1)]


def test_killed_at_any_moment_it_leaves_nothing_and_loses_nothing(
    guests: Shelf, replica: Path
) -> None:
    rng = random.Random(SEED)
    chosen = ["step:convert:done", *rng.sample(moments(replica), 3)]
    for number, where in enumerate(chosen):
        killed(replica, guests.disk("plain"), where, "give up" if number % 2 else "finish")


@pytest.mark.long
@pytest.mark.parametrize("mode", ["files", "host"])
@pytest.mark.parametrize("then", ["finish", "give up"])
def test_killed_at_each_moment(guests: Shelf, replica: Path, then: str, mode: str) -> None:
    if mode == "host" and os.geteuid() != 0:
        pytest.skip("this host's kernel mounts for root alone")
    protected.configure(replica, mode=mode)
    for where in [*MOMENTS, *moments(replica)]:
        killed(replica, guests.disk("plain"), where, then, mode)
