"""The record of who did what to a replica: audit.jsonl, one line for each event.

Every operation has one intent, durable before its first effect, and one outcome. Each line
ends with the SHA-256 of what stands before it in the line, the hash of the line before it
included; so a line that was altered, removed or moved is found, and the manifest's `audit`
has number and hash of the last one, so that lines cut off the end are found too.

Lines are made durable by the manifest: `begin` and `end` put them into `audit.pending`, and
the save that records the operation's beginning or end records them in the same stroke.
`write` then brings them to the file. A crash in between loses nothing: the next `write` does
it. A file that cannot be written therefore stops no operation; one that somebody else changed
is only added to, never put right, so that `verify` goes on finding it.

Bytes: docs/formats.md, "Audit log".
"""

from __future__ import annotations

import hashlib
import os
import pwd
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from . import manifest as manifests
from ._native import OPEN_CREATE, OPEN_WRITE, Dir, File
from .errors import Error
from .manifest import Manifest, Operation
from .points import now_text
from .records import AuditHead, CheckResult, Evidence
from .structs import prepared
from .units import parse_time

FILE_NAME = "audit.jsonl"
FIRST = "0" * 64  # stands for the hash of the line before the first
PENDING_MAX = 8  # lines that the manifest carries; dropping them takes a save of their own
CHUNK_BYTES = 1 << 20
_TAIL = ',"hash":"'

Event = Literal["intent", "outcome", "note"]


@prepared
class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line, without its last field. before, after: the replica's state."""

    seq: int
    time: str
    uptime_seconds: float  # of the host: tells where its clock was set
    event: Event
    operation: str
    kind: str
    replica: str
    who: str
    host: str
    pid: int
    epoch: int
    before: str = ""
    after: str = ""
    result: str = ""  # of an outcome: done, rolled back, failed, cut short
    error: str = ""
    says: str = ""  # of a note
    reason: str = ""
    point: int | None = None
    point_time: str = ""
    point_age_seconds: float | None = None
    evidence: Sequence[Evidence] = ()
    checks: Sequence[CheckResult] = ()
    skip: dict[str, str] = {}
    seconds: float | None = None
    rpo_seconds: float | None = None
    rto_seconds: float | None = None
    prev: str = ""


def who() -> str:
    """Who runs this process, for people: the user, and through whose sudo."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = f"uid {os.geteuid()}"
    asked = os.environ.get("SUDO_USER", "")
    return f"{asked[:64]} as {name}" if asked and asked != name else name


# ---- what operations call ----


def begin(manifest: Manifest, operation: Operation) -> None:
    """An operation is in the manifest from now on, with its intent. The caller saves.

    An operation that a crash ended without a word, as a hold, has its outcome before that.
    """
    manifest.operation = operation
    operation.who = operation.who or who()
    _end_cut_short(manifest)
    is_new = operation.kind in ("create", "adopt")
    before = "" if is_new else operation.found_state
    _add_operation(manifest, operation, "intent", before=before)


def end(manifest: Manifest, operation: Operation) -> None:
    """The operation has ended, as its `outcome` says: into the history. The caller saves."""
    end_beside(manifest, operation)
    manifest.remember(operation)


def begin_beside(manifest: Manifest, operation: Operation) -> None:
    """The intent of what goes on beside operations, as a test. The caller saves."""
    operation.who = operation.who or who()
    _end_cut_short(manifest)
    _add_operation(manifest, operation, "intent", before=operation.found_state)


def end_beside(manifest: Manifest, operation: Operation) -> None:
    """Its outcome, as the operation has it; nothing where there was one. The caller saves."""
    if manifest.audit is not None and operation.id in manifest.audit.open:
        _add_operation(
            manifest,
            operation,
            "outcome",
            after=manifest.state,
            result=operation.outcome,
            error=operation.error or "",
            seconds=operation.seconds,
            rpo_seconds=operation.rpo_seconds,
            rto_seconds=operation.rto_seconds,
        )


def tell(manifest: Manifest, operation: Operation, says: str) -> None:
    """Something about an operation that goes on: it failed for now, or is resumed."""
    _add_operation(
        manifest, operation, "note", after=manifest.state, says=says, error=operation.error or ""
    )


def begin_act(manifest: Manifest, kind: str, id: str, reason: str = "") -> None:
    """The intent of what is no operation of the manifest, as a hold. The caller saves."""
    _end_cut_short(manifest)
    _add(manifest, event="intent", operation=id, kind=kind, before=manifest.state, reason=reason)


def end_act(manifest: Manifest, id: str, result: str = "done", error: str = "") -> None:
    """Its outcome; nothing where it has one. The caller saves."""
    kind = _head(manifest).open.get(id)
    if kind is not None:
        _add(
            manifest, event="outcome", operation=id, kind=kind, after=manifest.state,
            result=result, error=error,
        )  # fmt: skip


def note(manifest: Manifest, kind: str, id: str, says: str) -> None:
    """Something that people will want to know later. The caller saves."""
    _add(manifest, event="note", operation=id, kind=kind, after=manifest.state, says=says)


def settle(manifest: Manifest) -> bool:
    """Give what a crash cut short its outcome. Whether there was any: then the caller saves."""
    lines = _head(manifest).lines
    _end_cut_short(manifest)
    return _head(manifest).lines != lines


def _end_cut_short(manifest: Manifest) -> None:
    going_on = {trial.id for trial in manifest.tests if trial.state == "starting"}
    going_on |= {f"undo-{trial.id}" for trial in manifest.tests if trial.state == "ending"}
    if manifest.operation is not None:
        going_on.add(manifest.operation.id)
    for id, kind in list(_head(manifest).open.items()):
        if id not in going_on:
            _add(
                manifest, event="outcome", operation=id, kind=kind, after=manifest.state,
                result="cut short",
            )  # fmt: skip


def _add_operation(
    manifest: Manifest, operation: Operation, event: Event, **facts: object
) -> None:
    age = None
    if operation.point_time:
        age = max(0, time.time_ns() - parse_time(operation.point_time)) / 1e9
    _add(
        manifest,
        event=event,
        operation=operation.id,
        kind=operation.kind,
        reason=operation.reason,
        point=operation.point,
        point_time=operation.point_time,
        point_age_seconds=age,
        evidence=tuple(operation.evidence),
        checks=tuple(operation.checks),
        skip=operation.skip,
        **facts,
    )


def _head(manifest: Manifest) -> AuditHead:
    if manifest.audit is None:
        manifest.audit = AuditHead(lines=0, hash=FIRST)
    return manifest.audit


def _add(manifest: Manifest, *, operation: str, kind: str, event: Event, **facts: object) -> None:
    head = _head(manifest)
    entry = Entry(
        seq=head.lines + 1,
        time=now_text(),
        uptime_seconds=round(time.clock_gettime(time.CLOCK_BOOTTIME), 3),
        event=event,
        operation=operation,
        kind=kind,
        replica=manifest.id,
        who=who(),
        host=os.uname().nodename,
        pid=os.getpid(),
        epoch=manifest.epoch,
        prev=head.hash,
        **facts,  # type: ignore[arg-type]
    )
    line = _sealed(msgspec.json.encode(entry))
    head.lines += 1
    head.hash = line[-66:-2]
    head.bytes += len(line.encode()) + 1
    head.pending = [*head.pending, line]
    if event == "intent":
        head.open = {**head.open, operation: kind}
    elif event == "outcome":
        head.open = {id: kind for id, kind in head.open.items() if id != operation}


def _sealed(entry: bytes) -> str:
    """The line of an entry, which ends with the hash of all before."""
    body = entry[:-1]
    return f'{body.decode()}{_TAIL}{hashlib.sha256(body).hexdigest()}"}}'


# ---- the file ----


def store(directory: Dir, manifest: Manifest, *, sync: bool = False) -> None:
    """Save the manifest, then bring the lines that it has to the file.

    Args:
        sync: And onto the disk. Without it the manifest keeps them until a later one.

    Raises:
        Error: The manifest could not be saved. What happens to the file is no error.
    """
    manifests.store(directory, manifest)
    head = manifest.audit
    if head is None or not head.pending:
        return
    if write(directory, head, sync=sync) and sync and len(head.pending) >= PENDING_MAX:
        kept, head.pending = head.pending, []  # they are on the disk: the file can do alone
        try:
            manifests.store(directory, manifest)
        except Error:
            head.pending = kept


def write(directory: Dir, head: AuditHead, *, sync: bool) -> bool:
    """Bring the lines that the manifest has to the file. Whether they are there now."""
    try:
        is_new = not directory.exists(FILE_NAME)
        file = directory.open(FILE_NAME, OPEN_WRITE | OPEN_CREATE, 0o600)
        try:
            _write(file, head)
            if sync:
                file.sync()
        finally:
            file.close()
        if is_new:
            directory.sync()
    except Error:
        return False  # the manifest keeps them
    return True


def not_written(directory: Dir, manifest: Manifest) -> str:
    """What is to be said where the file takes no lines; "" where it does, or may."""
    head = manifest.audit
    if head is None or len(head.pending) < 2 * PENDING_MAX:
        return ""
    return (
        f"{directory.path}/{FILE_NAME} cannot be written: the manifest keeps its last "
        f"{len(head.pending)} lines"
    )


def _write(file: File, head: AuditHead) -> None:
    """Written again even if it is there: a sync that failed may have been the last."""
    data = "".join(f"{line}\n" for line in head.pending).encode()
    size_bytes, at = file.size_bytes, head.bytes - len(data)
    is_near = at >= 0 and 0 <= size_bytes - at <= len(data)  # what was torn is no longer
    found = file.pread(size_bytes - at, at) if is_near else None
    if found is None or not _is_torn(found, data):
        # Somebody else wrote to it, or cut it: what is there stays as it is.
        at = size_bytes
        if at and file.pread(1, at - 1) != b"\n":
            data = b"\n" + data
        head.bytes = at + len(data)
    file.pwrite(data, at)


def _is_torn(found: bytes, data: bytes) -> bool:
    """Whether a power cut may have left that of the data: parts of it, zeroes for the rest."""
    if data.startswith(found):
        return True
    return len(found) <= len(data) and all(
        now in (0, meant) for now, meant in zip(found, data, strict=False)
    )


def lines(directory: Dir, name: str = FILE_NAME) -> Iterator[bytes]:
    """The lines of the file, each with its line feed, which the last may lack.

    Raises:
        NotFoundError: There is no such file.
    """
    file = directory.open(name)
    try:
        rest, offset, size_bytes = b"", 0, file.size_bytes
        while offset < size_bytes:
            piece = file.pread(min(CHUNK_BYTES, size_bytes - offset), offset)
            offset += len(piece)
            found = (rest + piece).split(b"\n")
            rest = found.pop()
            yield from (line + b"\n" for line in found)
        if rest:
            yield rest
    finally:
        file.close()
