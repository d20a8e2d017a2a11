"""The manifest of a replica: `replica.json`, read and replaced whole.

It holds what a replica is (its disks), where it stands (state, epoch, hold) and
which operation is in progress, step by step, so that after a crash, or on
another mount host, `resume` knows what was done. Nothing here touches disks.

Bytes: docs/formats.md, "Manifest".
"""

from __future__ import annotations

import os
import re
import uuid
from typing import TYPE_CHECKING, Literal

import msgspec
import xxhash

from .errors import DamagedError, FormatError, NotFoundError, UnsupportedError, UsageError
from .keeping import Freezing as Freezing
from .keeping import Frozen as Frozen
from .keeping import Merging as Merging
from .keeping import PointNote as PointNote
from .keeping import Retention as Retention
from .lags import Lag
from .records import AuditHead as AuditHead
from .records import CheckResult as CheckResult
from .records import Cut as Cut
from .records import Evidence as Evidence
from .records import Failback as Failback
from .records import Running as Running
from .records import Target as Target
from .records import Timer as Timer
from .records import Trial as Trial
from .structs import prepared

if TYPE_CHECKING:
    from ._native import Dir

FILE_NAME = "replica.json"
LOCK_NAME = "replica.lock"
CONTROL_NAME = ".control.sock"
CONVERSION_NAME = "conversion.json"  # what the newest failover changed in the guest
RUN_DIRECTORY = "run"  # of local machines, and of the process that waits for a timer
LAST_LOG_NAMES = ("last-console.log", "last-qemu.log")  # in it, of a machine that is forgotten
TIMER_LOG_NAME = "timer.log"  # in it
REHEARSAL_NAME = "rehearsal.json"  # what the newest rehearsal came to
FORMAT = "rollpoint-replica"
VERSION = 1
HISTORY_KEPT = 32
LIMIT_BYTES = 16 << 20  # of the file: a manifest has a few KiB

State = Literal[
    "Ready", "Processing", "Failover", "ReadyToSwitch", "Failback", "Failed", "Permanent"
]
StepState = Literal["pending", "running", "done", "skipped", "failed"]
Kind = Literal[
    "create",
    "adopt",
    "seed",
    "remove",
    "failover",
    "repoint",
    "undo",
    "permanent",
    "failback",
    "switch",
    "commit failback",
    "undo failback",
    "test",
    "undo test",
]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
# What this project or VMDK tools append to a disk's name to make file names.
_SUFFIX = re.compile(r"-(?:journal|journal-log|interim|interim-delta|flat|delta|[fs]?\d{3,})\Z")


def place_of(path: str | os.PathLike[str]) -> str:
    """The absolute path of a replica's directory.

    Raises:
        UsageError: It is empty, as a variable of a shell that was never set.
    """
    if not os.fspath(path):
        raise UsageError("the directory of the replica is empty text", "name one; . is this one")
    return os.path.abspath(path)


def check_disk_name(name: str) -> str:
    """The name, when it may name a disk of a replica.

    Raises:
        UsageError: Another character than A-Z a-z 0-9 . _ -, a leading dot or
            dash, more than 100 characters, or an end that this project gives to
            its own files (as in web-journal), so that two disks would share one.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} cannot name a disk",
            "use letters, digits, . _ and -, starting with a letter, a digit or _",
        )
    stem = name.lower().removesuffix(".vmdk")
    if stem != name.lower() or _SUFFIX.search(stem) is not None:
        raise UsageError(
            f"{name!r} cannot name a disk: its end is kept for files of the replica",
            "leave out .vmdk, -flat, -journal, -interim and trailing numbers",
        )
    return name


def _plain_file(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..")


class DiskEntry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One disk of a replica. File names are without directories: all lie beside."""

    name: str
    size_bytes: int
    base: str
    journal: str | None
    grain_bytes: int
    segment_bytes: int
    adopted: bool = False  # the base was there before the replica was
    below_cid: int | None = None  # being given to what is below the journal: see below.py
    top: str | None = None  # the newest delta disk, below the journal; None: there is none

    @property
    def below(self) -> str:
        """The descriptor of what the journal lies on, and what a destage writes."""
        return self.top or self.base

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise ValueError(f"disk name {self.name!r}")
        if self.size_bytes <= 0 or self.size_bytes % 512:
            raise ValueError(f"disk {self.name} has {self.size_bytes} bytes")
        if not _plain_file(self.base):
            raise ValueError(f"base of disk {self.name} is {self.base!r}")
        if self.journal is not None and not _plain_file(self.journal):
            raise ValueError(f"journal of disk {self.name} is {self.journal!r}")
        if self.grain_bytes < 512 or self.grain_bytes & (self.grain_bytes - 1):
            raise ValueError(f"grain of disk {self.name} is {self.grain_bytes} bytes")
        if self.segment_bytes < 65536:
            raise ValueError(f"segment of disk {self.name} is {self.segment_bytes} bytes")


class Gap(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A time without a provable copy: not recoverable. end None: it goes on.

    resync: It ends only when the source says that it has sent again what may be
    missing; until then nothing is marked. disks: which may miss something; none: all.
    """

    start: str
    end: str | None
    cause: str
    resync: bool = False
    disks: list[str] = []


class IngestRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The ingest that has, or had, the journals. It is removed by a clean end."""

    pid: int
    socket: str
    started: str
    rpo_seconds: float
    error: str | None = None
    host: str = ""


class Rpo(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What was asked of replication, how often it was missed, and how late it was: see rpo.py."""

    target_seconds: float
    missed: int = 0
    lag: Lag | None = None
    disk_lags: dict[str, Lag] = {}


class GroupPoint(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A restore point that several replicas have at one cut: all of them, durably.

    group: the same in every member. members: their ids.
    """

    id: int
    group: str
    members: list[str]


class MachineSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the recovered machine gets when it is powered on here."""

    memory_bytes: int = 256 << 20
    cpus: int = 1
    accelerator: str = "tcg"
    firmware: str = "bios"
    controller: str = "ide"
    nic: str | None = None  # model of its network cards; None: it has none
    network: str = "none"  # what they are connected to
    marker: str | None = None  # text on its serial console that says it is up
    timeout_seconds: float = 60.0
    guest_agent: bool = False  # a channel by which QEMU's guest agent can be asked


class Step(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One step of an operation."""

    name: str
    state: StepState = "pending"
    started_ns: int | None = None
    seconds: float | None = None
    note: str = ""


class Operation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is being done to the replica, or was: everything needed to go on."""

    id: str
    kind: Kind
    started: str
    found_state: State
    steps: list[Step]
    point: int | None = None
    point_time: str = ""
    found_held: bool = False
    power_on: bool = False
    convert: bool = True  # the guest, when there is one
    planned: bool = False  # the source is shut down first
    was_running: bool = False  # the machine that it powers off; planned: the source
    disks: dict[str, str] = {}  # seed: disk name -> source file
    who: str = ""
    reason: str = ""
    evidence: list[Evidence] = []
    checks: list[CheckResult] = []
    skip: dict[str, str] = {}  # check -> why it is not run
    cut: Cut | None = None  # planned: what was compared
    auto: Literal["", "undo", "permanent"] = ""  # what ends the failover by itself
    auto_seconds: float = 0.0
    source_until: str = ""  # after that moment the source wrote nothing that is missed here
    rpo_says: str = ""  # what rpo_seconds was measured by; "at most": it may have been less
    rpo_seconds: float | None = None  # newest data lost, in time, by a failover
    rto_seconds: float | None = None  # from the command until the machine was on, or up
    outcome: Literal["running", "done", "rolled back", "failed"] = "running"
    error: str | None = None
    seconds: float | None = None

    def step(self, name: str) -> Step:
        """The step of that name; KeyError when the operation has none."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)


class Recovered(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the replica is failed over to.

    parents: disk name -> the link that the overlay lies on, which shows a long-term
    point; empty when the journals show the point. interims: what is written now; where a
    failback froze overlays, they lie between it and the parent.
    """

    operation: str
    point: int
    interims: dict[str, str]  # disk name -> descriptor of its overlay
    parents: dict[str, str] = {}
    running: Running | None = None
    frozen: list[dict[str, str]] = []  # former tops, disk -> descriptor, oldest first
    timer: Timer | None = None
    cut: Cut | None = None
    evidence: list[Evidence] = []
    live: Literal["", "merging", "merged"] = ""  # see live_merge.py

    def overlays(self, disk: str) -> list[str]:
        """Descriptors of the overlays of a disk, the one that is written now first."""
        frozen = [tops[disk] for tops in reversed(self.frozen) if disk in tops]
        return [self.interims[disk], *frozen]


@prepared
class Manifest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All of replica.json."""

    format: str
    version: int
    id: str
    name: str
    created: str
    state: State
    epoch: int
    held: bool
    disks: list[DiskEntry]
    next_point_id: int = 1
    rpo: Rpo | None = None
    gaps: list[Gap] = []
    groups: list[GroupPoint] = []
    retention: Retention = msgspec.field(default_factory=Retention)
    horizon: int = 0  # no older point is kept in the journals; 0: all are
    notes: list[PointNote] = []
    frozen: list[Frozen] = []  # long-term points, oldest first
    freezing: Freezing | None = None
    merging: Merging | None = None
    warnings: list[str] = []  # of retention, as the last ingest saw it
    ingest: IngestRecord | None = None
    machine: MachineSettings = msgspec.field(default_factory=MachineSettings)
    recovered: Recovered | None = None
    former: Recovered | None = None  # what a change of the point leaves, until it has worked
    tests: list[Trial] = []
    failback: Failback | None = None
    audit: AuditHead | None = None
    operation: Operation | None = None
    history: list[Operation] = []
    checksum: str = ""

    def __post_init__(self) -> None:
        if self.epoch < 1 or self.next_point_id < 1:
            raise ValueError("epoch and next_point_id start at 1")
        names = [disk.name.lower() for disk in self.disks]
        if len(set(names)) != len(names):
            raise ValueError("two disks have one name")

    def disk(self, name: str) -> DiskEntry:
        """The disk of that name.

        Raises:
            NotFoundError: There is none.
        """
        for entry in self.disks:
            if entry.name == name:
                return entry
        known = ", ".join(entry.name for entry in self.disks)
        raise NotFoundError(f"replica {self.name} has no disk {name!r}", f"it has {known}")

    def files_of_tests(self, *, made: bool = False) -> bool:
        """Whether test failovers have files above what is below the journals, which must not
        change meanwhile: nothing new is begun there. made: what had begun has ended, too.
        """
        return any(trial.files and (trial.disks or not made) for trial in self.tests)

    def long_term(self, number: int) -> Frozen | None:
        """The long-term point of that id, if it is one."""
        return next((frozen for frozen in self.frozen if frozen.id == number), None)

    def begin(self, kind: Kind, now: str) -> Operation:
        """An operation of one step; audit.begin has to be told of it."""
        self.operation = Operation(
            id=str(uuid.uuid4()),
            kind=kind,
            started=now,
            found_state=self.state,
            found_held=self.held,
            steps=[Step(name=kind, state="running")],
        )
        self.state = "Processing"
        return self.operation

    def end(self, state: State) -> Operation:
        """That operation is done; audit.end has to be told of it."""
        operation = self.operation
        assert operation is not None
        operation.outcome = "done"
        for step in operation.steps:
            step.state = "done"
        self.state = state
        return operation

    def remember(self, operation: Operation) -> None:
        """Put an ended operation into the history and make room for the next."""
        self.history = [*self.history, operation][-HISTORY_KEPT:]
        self.operation = None

    def remembered(self, operation_id: str) -> Operation | None:
        """The ended operation of that id, if it is still known; the newest one of an end of
        a test, which a crash of its start may have had before.
        """
        for operation in reversed(self.history):
            if operation.id == operation_id:
                return operation
        return None


def encode(manifest: Manifest) -> bytes:
    """The bytes of replica.json, with their checksum."""
    # Once there and back, so that 2 in a field of type float is 2.0 from now on.
    same = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
    manifest.checksum = same.checksum = _checksum(msgspec.to_builtins(same))
    return msgspec.json.format(msgspec.json.encode(same), indent=2) + b"\n"


def decode(data: bytes, where: str) -> Manifest:
    """Read the bytes of a replica.json; where names the file in messages.

    Raises:
        FormatError: It is JSON, and not of this project.
        UnsupportedError: A newer version wrote it.
        DamagedError: It is cut short, has impossible values or a wrong checksum.
    """
    try:
        head = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError(
            f"{where} is not JSON: {error}", "restore it from a copy of the datastore"
        ) from None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise FormatError(
            f"{where} is not the manifest of a replica", "give the directory of a replica"
        )
    version = head.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UnsupportedError(
            f"{where} has version {version}; this program knows {VERSION}",
            "use the newer program that wrote it",
        )
    try:
        manifest = msgspec.convert(head, Manifest)
    except msgspec.ValidationError as error:
        raise DamagedError(
            f"{where} is damaged: {error}", "restore it from a copy of the datastore"
        ) from None
    if manifest.checksum != _checksum(head):
        raise DamagedError(
            f"{where} is damaged: its checksum does not match its content",
            "restore it from a copy of the datastore",
        )
    return manifest


def _checksum(document: dict[str, object]) -> str:
    """Of what the document says, however it is set, so that new fields change nothing."""
    bare = {**document, "checksum": ""}
    return xxhash.xxh3_64_hexdigest(msgspec.json.encode(bare, order="sorted"))


def load(directory: Dir) -> Manifest:
    """Read the manifest of the replica in directory.

    Raises:
        NotFoundError: There is no replica.json.
        FormatError, UnsupportedError, DamagedError: As decode.
    """
    where = f"{directory.path}/{FILE_NAME}"
    if not directory.exists(FILE_NAME):
        raise NotFoundError(
            f"{directory.path} is not a replica: it has no {FILE_NAME}",
            "make one with: rollpoint replica create",
        )
    return decode(directory.read(FILE_NAME, LIMIT_BYTES), where)


def store(directory: Dir, manifest: Manifest) -> None:
    """Replace the manifest: after a crash the old or the new one is there, whole."""
    directory.replace(FILE_NAME, encode(manifest))
