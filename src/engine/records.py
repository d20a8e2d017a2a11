"""Parts of a manifest: what was seen, checked and recorded while a replica is failed over,
tested, or failed back. See manifest.py.

Bytes: docs/formats.md, "Manifest".
"""

from __future__ import annotations

from typing import Literal

import msgspec

EvidenceKind = Literal[
    "powered_off_confirmed",
    "host_fenced",
    "storage_fenced",
    "network_isolated",
    "unreachable",
    "overridden",
    "none",
]
TargetKind = Literal["original", "restored", "new"]


class Evidence(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Why the source cannot be writing, or serving, any more: what was seen, and by whom.

    says: what was seen, for people. source: who said so (a hypervisor, a command, a person).
    """

    kind: EvidenceKind
    time: str
    says: str
    source: str = ""


class CheckResult(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One named check before a machine is powered on. reason: why it was skipped."""

    name: str
    state: Literal["passed", "failed", "skipped"]
    says: str
    reason: str = ""


class Cut(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The proof of a planned failover: source and replica were the same at that point.

    digests: disk -> XXH3-128 of its content at the cut, of both sides; empty: not compared.
    sources: disk -> where the source's side was read. stamps: disk -> what tells whether
    that place was written since, as targets.stamp makes it; "" where nothing can.
    """

    point: int
    time: str
    digests: dict[str, str] = {}
    sources: dict[str, str] = {}
    stamps: dict[str, str] = {}


class Timer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What ends a failover by itself. operation: the id that it will be asked with."""

    action: Literal["undo", "permanent"]
    due: str
    operation: str
    armed: str


class Running(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A machine that was powered on, as its hypervisor knows it."""

    hypervisor: str
    machine: str
    started: str


class Trial(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One test failover. id: of its operation; it also names its directory under tests/.

    files: its disks are VMDK files above the bases, which must not change while it lives.
    """

    id: str
    point: int
    started: str
    network: str = "none"
    files: bool = False
    disks: dict[str, str] = {}  # disk -> descriptor in the replica's directory, of files
    state: Literal["starting", "running", "ending"] = "starting"
    running: Running | None = None


class Target(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where a disk is failed back to.

    place: a file, or an NBD URI. lineage: "" while it is known what the target has, else
    why digests of both sides are compared. stamp: tells whether somebody else wrote to it
    since the last round, as targets.stamp makes it; "" where nothing can, and while it is sent.
    """

    place: str
    kind: TargetKind
    lineage: str = ""
    sent_bytes: int = 0
    read_bytes: int = 0
    stamp: str = ""


class Failback(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A failback that goes on. rounds: of phase 1 that are done; rest_bytes: what the last
    one left; seconds: what they took. once: one round is enough. done_bytes, total_bytes,
    pass_seconds: of the pass over the disks that goes on (comparing, sending or reading
    back), or of the last one. layers: how many overlays, the oldest
    first, are sent; 0: nothing is. verified: the targets were read back. former: the
    replica's machine, as it ran before the switch. running: what was powered on at the
    target.
    """

    operation: str
    targets: dict[str, Target]
    rounds: int = 0
    rest_bytes: int = 0
    seconds: float = 0.0
    once: bool = False
    holds: int | None = None  # point that the operator says the targets hold
    done_bytes: int = 0
    total_bytes: int = 0
    pass_seconds: float = 0.0
    layers: int = 0
    verified: bool = False
    former: Running | None = None
    running: Running | None = None


class AuditHead(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The end of audit.jsonl that this manifest knows of: lines, and the hash of the last.

    bytes: where the file ends with them. pending: the last lines themselves, oldest first,
    as long as the file may lack them. open: operation -> kind, of intents without an outcome.
    """

    lines: int
    hash: str
    bytes: int = 0
    pending: list[str] = []
    open: dict[str, str] = {}
