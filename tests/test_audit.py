"""The audit log: one intent and one outcome for each operation, and no edit goes unseen."""

from __future__ import annotations

import errno
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import ROOT
from replicas import rollpoint
from rollpoint import _native, audit, audit_check, operation, replication
from rollpoint import manifest as manifests
from rollpoint.errors import Error
from rollpoint.manifest import Operation, Step
from rollpoint.records import AuditHead
from rollpoint.replica import Replica

SIZES = {"a": 96 * 1024 + 512, "b": 64 * 1024}


def make(io: _native.Io) -> None:
    Replica.create("/r", list(SIZES.items()), segment_bytes=65536, io=io).close()
    with Replica.open("/r", io) as replica, replica.locked(), replica.journals(
        writable=True, with_bases=True
    ) as journals:
        for native in journals.natives:
            native.disk().pwrite(b"x" * 5000, 4096)
        journals.mark("crash")


def entries(io: _native.Io, path: str = "/r") -> list[dict[str, Any]]:
    directory = io.open_dir(path)
    try:
        return [json.loads(line) for line in audit.lines(directory)]
    finally:
        directory.close()


def paired(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Operation -> kind and results, after its intent and outcome were counted."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["event"] == "intent":
            assert row["operation"] not in found, "two intents"
            found[row["operation"]] = [row["kind"]]
        elif row["event"] == "outcome":
            found[row["operation"]].append(row["result"])
    assert all(len(row) == 2 for row in found.values()), found
    return found


def test_each_operation_has_its_intent_and_its_outcome() -> None:
    io = _native.Io.simulate()
    make(io)
    with Replica.open("/r", io) as replica:
        replication.hold(replica, "a test of it")
        replication.release(replica)
        done = operation.failover(replica, 1, power_on=False)
        operation.undo(replica)
        operation.failover(replica, 1, power_on=False)
        operation.permanent(replica)
    rows = entries(io)
    assert list(paired(rows).values()) == [
        [kind, "done"]
        for kind in ("create", "hold", "release", "failover", "undo", "failover", "permanent")
    ]
    first, last = [row for row in rows if row["operation"] == done.operation]
    assert (first["event"], last["event"]) == ("intent", "outcome")
    assert (first["before"], last["after"], last["point"]) == ("Ready", "Failover", 1)
    assert last["point_age_seconds"] >= 0
    assert last["point_time"]
    assert [row["reason"] for row in rows if "reason" in row] == ["a test of it"]
    assert all(row["who"] and row["host"] and row["pid"] for row in rows)


# ---- at each crash point ----

ACTS: dict[str, tuple[bool, Callable[[Replica], object]]] = {
    "hold": (False, replication.hold),
    "release": (False, lambda replica: (replication.hold(replica), replication.release(replica))),
    "failover": (False, lambda replica: operation.failover(replica, 1, power_on=False)),
    "repoint": (True, lambda replica: operation.failover(replica, to=1, power_on=False)),
    "undo": (True, operation.undo),
    "permanent": (True, operation.permanent),
}


def sweep(name: str, budget: int, seed: int) -> int:
    """Cut the power in an operation, resume it, and look at the log."""
    failed_over, act = ACTS[name]
    io = _native.Io.simulate()
    make(io)
    if failed_over:
        with Replica.open("/r", io) as replica:
            operation.failover(replica, 1, power_on=False)
    io.settle()
    with Replica.open("/r", io) as replica:
        act(replica)
    io.acknowledge(1)
    states = io.crash_states(budget=budget, seed=seed, garbage=False)
    for state in states:
        with Replica.open("/r", state.io) as replica:
            operation.resume(replica)
            if replica.manifest.state == "Ready":
                replication.release(replica)
                operation.failover(replica, 1, power_on=False)
        rows = entries(state.io)
        paired(rows)
        assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1)), state.explain()
        with Replica.open("/r", state.io) as replica:
            assert audit_check.check(replica.directory, replica.manifest.audit).problems == []
    return states.distinct


@pytest.mark.parametrize("name", ACTS)
def test_an_operation_that_the_power_cut_has_one_intent_and_one_outcome(name: str) -> None:
    """And no line that a crash left in part: the log verifies after whatever resumes."""
    assert sweep(name, 50, 6) > 20


@pytest.mark.long
@pytest.mark.parametrize("name", ACTS)
def test_thousands_of_power_cuts_leave_one_intent_and_one_outcome(name: str) -> None:
    print(name, sum(sweep(name, 500, seed) for seed in range(10, 14)), "distinct states")


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
def test_a_log_that_cannot_be_written_stops_no_operation_and_loses_no_line(sticky: bool) -> None:
    each_call_fails(sticky, 11)


@pytest.mark.long
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
def test_whichever_call_fails_no_line_is_lost(sticky: bool) -> None:
    each_call_fails(sticky, 1)


def each_call_fails(sticky: bool, step: int) -> None:
    """Calls fail in turn; afterwards, with a disk that works, all lines are there."""
    template = _native.Io.simulate()
    make(template)
    template.settle()
    for call in range(1, 600, step):
        (state,) = template.crash_states(budget=1, tear=False, garbage=False)
        faulty = state.io.fault(call=call, os_errno=errno.EIO, sticky=sticky)
        try:
            with Replica.open("/r", faulty) as replica:
                operation.failover(replica, 1, power_on=False)
        except Error:
            pass
        with Replica.open("/r", state.io) as replica:
            operation.resume(replica)
            if replica.manifest.state == "Ready":
                operation.failover(replica, 1, power_on=False)
            operation.undo(replica)
            assert audit_check.check(replica.directory, replica.manifest.audit).problems == []
        paired(entries(state.io))
        if faulty.calls < call:
            break
    else:
        raise AssertionError("the operation has no end")


def test_a_log_that_takes_no_lines_is_told_of_and_gets_them_all_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "r"
    Replica.create(path, list(SIZES.items()), segment_bytes=65536).close()
    before = (path / "audit.jsonl").read_bytes()
    (path / "audit.jsonl").unlink()
    (path / "audit.jsonl").mkdir()
    with Replica.open(path) as replica:
        replication.mark(replica)
        for number in range(5):
            operation.failover(replica, 1, power_on=False)
            done = operation.undo(replica)
            told = [warning for warning in done.warnings if "cannot be written" in warning]
            assert bool(told) == (number >= 3), (number, done.warnings)
        (path / "audit.jsonl").rmdir()
        (path / "audit.jsonl").write_bytes(before)
        operation.failover(replica, 1, power_on=False)
        head = replica.manifest.audit
        assert head is not None
        assert audit_check.check(replica.directory, head).problems == []
        assert head.pending == []
        operation.undo(replica)
        assert audit_check.check(replica.directory, replica.manifest.audit).problems == []
    with Replica.open(path) as replica:
        assert audit_check.check(replica.directory, replica.manifest.audit).problems == []


def test_a_failover_waits_for_one_sync_of_the_log_and_it_comes_after_power_on() -> None:
    io = _native.Io.simulate()
    make(io)
    recorded = _native.Io.record(io)
    with Replica.open("/r", recorded) as replica:
        operation.failover(replica, 1, power_on=False)
    of_log = [row for row in recorded.operations() if "audit.jsonl" in row]
    syncs = [row for row in of_log if "sync" in row]
    assert len(syncs) == 1, of_log
    assert of_log[-1] == syncs[0] or "close" in of_log[-1]


# ---- nothing goes unseen ----


def written(path: Path, count: int, seed: int) -> AuditHead:
    """A log of that many entries, and what a manifest knows of it."""
    rng = random.Random(seed)
    io = _native.Io.posix()
    path.mkdir()
    Replica.create(path / "r", [("d", 4096)], io=io).close()
    with Replica.open(path / "r") as replica, replica.locked() as manifest:
        while manifest.audit is None or manifest.audit.lines < count:
            went = Operation(
                id=f"operation {rng.random()}", kind="failover", started="", found_state="Ready",
                steps=[Step(name="hold")], reason="ä" * rng.randrange(4), point=rng.randrange(9),
            )  # fmt: skip
            audit.begin(manifest, went)
            if manifest.audit is not None and manifest.audit.lines < count:
                went.outcome = "done"
                audit.end(manifest, went)
            if rng.random() < 0.1:
                replica.save(sync_audit=True)
        manifest.operation = None
        replica.save(sync_audit=True)
        if not manifest.audit.pending:
            audit.note(manifest, "failover", "x", "the manifest keeps this line still")
            replica.save(sync_audit=True)
        assert manifest.audit is not None
        return manifest.audit


class Log:
    """A file of lines to be altered, checked in memory without a directory."""

    def __init__(self, data: bytes, head: AuditHead) -> None:
        self.data, self.head = data, head
        self.lines = data.splitlines(keepends=True)

    def problems(self, data: bytes, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        def lines(*_: object) -> list[bytes]:
            *whole, rest = data.split(b"\n")
            return [line + b"\n" for line in whole] + ([rest] if rest else [])

        monkeypatch.setattr(audit, "lines", lines)
        return list(audit_check.check(None, self.head).problems)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    place = tmp_path_factory.mktemp("log") / "x"
    head = written(place, 1000, 20261123)
    return Log((place / "r" / "audit.jsonl").read_bytes(), head)


def test_a_log_of_1000_entries_is_right(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(log.lines) == log.head.lines >= 1000
    assert log.problems(log.data, monkeypatch) == []


def test_each_single_byte_that_is_altered_is_found(log: Log) -> None:
    """Exhaustive: every byte of 1,000 entries, with another bit flipped each time.

    A line that is not what was written parses to nothing, whatever stands around it; a
    line feed that goes joins two lines, and that is none either.
    """
    tried = 0
    for line in log.lines:
        assert audit_check.parse(line) is not None
        for at in range(len(line)):
            bad = bytearray(line)
            bad[at] ^= 1 << (tried % 8)
            tried += 1
            pieces = bytes(bad).split(b"\n")
            if at == len(line) - 1:  # the next line follows at once
                pieces = [bytes(bad) + log.lines[0].rstrip(b"\n"), b""]
            assert any(audit_check.parse(piece + b"\n") is None for piece in pieces[:-1]) or (
                pieces[-1] != b""
            ), (line, at)
    assert tried == len(log.data)


def test_altered_bytes_are_told_of_with_their_line(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    starts = [0]
    for line in log.lines:
        starts.append(starts[-1] + len(line))
    for _ in range(20):
        number = rng.randrange(len(log.lines))
        at = rng.randrange(starts[number], starts[number + 1] - 1)
        bad = bytearray(log.data)
        bad[at] ^= rng.randrange(1, 256)
        found = log.problems(bytes(bad), monkeypatch)
        assert any(f"line {number + 1} of" in problem for problem in found), (at, found)


def test_lines_that_are_removed_moved_doubled_or_made_anew_are_found(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = log.lines
    last = len(lines) - 1
    for number in [0, 1, 500, last - 1, last]:
        assert log.problems(b"".join(lines[:number] + lines[number + 1 :]), monkeypatch)
        doubled = [*lines[:number], lines[number], *lines[number:]]
        assert log.problems(b"".join(doubled), monkeypatch)
        assert log.problems(b"".join(lines[:number]), monkeypatch)
        if number:
            moved = [*lines]
            moved[number - 1 : number + 1] = [lines[number], lines[number - 1]]
            assert log.problems(b"".join(moved), monkeypatch)
    # A line with another reason, sealed again as it should be: what follows tells.
    body = lines[10].partition(b',"hash":"')[0].replace(b'"kind":"failover"', b'"kind":"undo"')
    forged = audit._sealed(body + b"}").encode() + b"\n"
    assert audit_check.parse(forged) is not None
    for rest in (lines[11:], []):
        assert log.problems(b"".join([*lines[:10], forged, *rest]), monkeypatch)
    assert log.problems(b"", monkeypatch)
    assert log.problems(log.data[:-1], monkeypatch)
    assert log.problems(log.data + b"\n", monkeypatch)


def test_what_somebody_did_to_the_file_is_found_after_later_operations_too(tmp_path: Path) -> None:
    written(tmp_path / "x", 40, 7)
    original = (tmp_path / "x" / "r" / "audit.jsonl").read_bytes()
    lines = original.splitlines(keepends=True)
    for number, bad in enumerate(
        [b"".join(lines[:5]), original.replace(b"failover", b"undo", 1), original + b"more\n",
         original[:-30], b"".join(lines[:-1]), original + b"no line feed", None]
    ):  # fmt: skip
        path = shutil.copytree(tmp_path / "x" / "r", tmp_path / f"{number}")
        if bad is None:
            (path / "audit.jsonl").unlink()
        else:
            (path / "audit.jsonl").write_bytes(bad)
        with Replica.open(path) as replica:
            assert audit_check.check(replica.directory, replica.manifest.audit).problems
            replication.hold(replica)
            replication.release(replica)
            manifest = replica.manifest
            found = audit_check.check(replica.directory, manifest.audit)
            if number in (3, 4):  # as a crash may leave it: what the manifest has is written again
                assert found.problems == []
                assert (path / "audit.jsonl").read_bytes().startswith(original)
                continue
            assert found.problems, number
            assert manifest.audit is not None
            assert found.hash == manifest.audit.hash  # what was written since is right


def test_a_head_that_was_kept_elsewhere_is_asked_for_again(tmp_path: Path) -> None:
    written(tmp_path / "x", 30, 8)
    with Replica.open(tmp_path / "x" / "r") as replica:
        directory, head = replica.directory, replica.manifest.audit
        then = audit_check.check(directory, head)
        replication.hold(replica)
        head = replica.manifest.audit
        assert not audit_check.check(directory, head, expected=then[:2]).problems
        other = (then.lines, "1" * 64)
        assert audit_check.check(directory, head, expected=other).problems


def test_the_command_line_verifies_and_shows(tmp_path: Path) -> None:
    path = tmp_path / "r"
    rollpoint("replica", "create", path, "--disk", "d=64K")
    rollpoint("hold", path)
    rollpoint("release", path)
    said = rollpoint("audit", "verify", path)
    assert (said["ok"], said["lines"], said["problems"]) == (True, 6, [])
    rollpoint("hold", path)
    rollpoint("audit", "verify", path, "--expect", f"6:{said['hash']}")
    rows = rollpoint("audit", "show", path, "--last", 2)
    assert [(row["kind"], row["event"]) for row in rows] == [
        ("hold", "intent"), ("hold", "outcome")
    ]  # fmt: skip
    rollpoint("audit", "verify", path / "audit.jsonl")
    lines = (path / "audit.jsonl").read_bytes().splitlines(keepends=True)
    (path / "audit.jsonl").write_bytes(b"".join(lines[:2] + lines[3:]))
    assert "not what was written" in rollpoint("audit", "verify", path, code=1)["message"]
    rollpoint("audit", "verify", path, "--expect", "nonsense", code=2)
    rollpoint("release", path)
    (path / "audit.jsonl").unlink()  # what the manifest has is shown, whatever the file lacks
    shown = rollpoint("audit", "show", path)
    assert (shown[-1]["kind"], shown[-1]["event"]) == ("release", "outcome")
    assert "no audit.jsonl" in json.loads(
        subprocess.run(
            [sys.executable, "-m", "rollpoint", "audit", "verify", path, "--json"],
            capture_output=True, text=True, timeout=60,
        ).stdout
    )["problems"][0]  # fmt: skip


def test_what_decides_which_points_are_kept_is_told(tmp_path: Path) -> None:
    path = tmp_path / "r"
    rollpoint("replica", "create", path, "--disk", "d=64K")
    rollpoint("mark", path)
    rollpoint("point", "name", path, "1", "good")
    rollpoint("point", "pin", path, "1")
    rollpoint("point", "unpin", path, "1")
    rollpoint("replica", "set", path, "--window", "8h")
    rows = rollpoint("audit", "show", path, "--last", 4)
    assert [row["says"].partition(": ")[2] for row in rows] == [
        "named 'good'", "pinned", "unpinned", "window_seconds 28800.0"
    ]  # fmt: skip
    rollpoint("audit", "verify", path)


# ---- the sweep can fail: planted mistakes ----


def forget_what_is_written(
    directory: _native.Dir, manifest: manifests.Manifest, *, sync: bool = False
) -> None:
    """Count on the file, before it is synced."""
    head = manifest.audit
    if head is not None:
        audit.write(directory, head, sync=False)
        head.pending = []
    manifests.store(directory, manifest)


def append_blindly(file: _native.File, head: AuditHead) -> None:
    """Never look at what is there."""
    data = "".join(f"{line}\n" for line in head.pending).encode()
    file.pwrite(data, file.size_bytes)


def never_mind_the_cut_short(manifest: manifests.Manifest) -> None:
    """An operation that a crash ended is forgotten."""


PLANTED = [
    ("failover", "store", forget_what_is_written),
    ("failover", "_write", append_blindly),
    ("hold", "_end_cut_short", never_mind_the_cut_short),
]


@pytest.mark.parametrize(("act", "name", "bug"), PLANTED, ids=[row[1] for row in PLANTED])
def test_a_planted_mistake_is_found(
    act: str, name: str, bug: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, name, bug)
    with pytest.raises(AssertionError):
        sweep(act, 300, 2)


def test_nobody_goes_into_or_out_of_an_operation_past_the_log() -> None:
    """Only these modules set the operation of a manifest, or put one into its history."""
    allowed = {"audit.py", "manifest.py", "trials.py"}  # a test goes on beside operations
    past = re.compile(r"manifest\.operation = |manifest\.remember\(|self\.remember\(")
    found = {
        path.name
        for path in (ROOT / "src" / "engine").rglob("*.py")
        if past.search(path.read_text())
    }
    assert found <= allowed


def made_permanent(io: _native.Io) -> str:
    make(io)
    with Replica.open("/r", io) as replica:
        operation.failover(replica, 1, power_on=False)
        operation.permanent(replica)
        return f"audit-{replica.manifest.id}.jsonl"


def test_the_log_of_a_permanent_replica_stays_beside_its_disks() -> None:
    """However often its removal is cut short: with one outcome, of the removal, too."""
    io = _native.Io.simulate()
    name = made_permanent(io)
    io.settle()
    with Replica.open("/r", io) as replica:
        replica.remove()
    seen = set()
    for state in io.crash_states(budget=80, seed=3, garbage=False):
        directory = state.io.open_dir("/r")
        if directory.exists(manifests.FILE_NAME):
            with Replica.open("/r", state.io) as replica:
                if operation.resume(replica) is None:
                    replica.remove()
        rows = [json.loads(line) for line in audit.lines(directory, name)]
        assert list(paired(rows).values())[-1] == ["remove", "done"], state.explain()
        assert audit_check.check(directory, None, name=name).problems == []
        seen.add(frozenset(directory.list()) - {"replica.lock"})
    assert len(seen) == 1, seen


def test_what_makes_and_fills_a_replica_is_in_its_log(tmp_path: Path) -> None:
    path = tmp_path / "r"
    (tmp_path / "image").write_bytes(b"x" * 65536)
    rollpoint("replica", "create", path, "--disk", "d=64K")
    rollpoint("replica", "seed", path, "--disk", f"d={tmp_path / 'image'}")
    rows = rollpoint("audit", "show", path)
    assert list(paired(rows).values()) == [["create", "done"], ["seed", "done"]]
    assert "before" not in rows[0]
    rollpoint("audit", "verify", path)
    rollpoint("replica", "remove", path)
    assert not path.exists()


def test_what_others_added_to_the_file_is_not_read_to_add_a_line() -> None:
    read: list[int] = []

    class Grown:
        size_bytes = 1 << 40

        def pread(self, length: int, offset: int) -> bytes:
            read.append(length)
            assert length < 1 << 20
            return b"\n" * length

        def pwrite(self, data: bytes, offset: int) -> None:
            assert offset == self.size_bytes

    head = AuditHead(lines=1, hash="", bytes=7, pending=["a line"])
    audit._write(cast(_native.File, Grown()), head)
    assert (read, head.bytes) == ([1], (1 << 40) + 7)
