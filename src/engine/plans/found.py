"""What is known of a group's replicas on their mount host, as it travels to who asked: JSON."""

from __future__ import annotations

from typing import Literal

import msgspec

from ..structs import prepared
from .tables import Group, RunKind

What = Literal["resolve", "look"]


class Found(msgspec.Struct, kw_only=True):
    """A replica that a group means.

    Attributes:
        name: Of its directory. id: "": its manifest cannot be read.
        datastores: On which it lies: vSphere's names, where replica.toml says which of them
            is mounted there, else the mount point.
    """

    name: str
    directory: str
    id: str = ""
    labels: list[str] = []
    datastores: list[str] = []


class Problem(msgspec.Struct, kw_only=True):
    """Something that is not as it should be.

    Attributes:
        what: state, point, room, network, ... of a replica; plan: of the file; host: of a
            mount host.
        stops: A run would not get past it.
        group, replica: Whose; "": of all.
    """

    what: str
    says: str
    hint: str = ""
    stops: bool = True
    group: str = ""
    replica: str = ""


class Rehearsed(msgspec.Struct, kw_only=True):
    """The newest rehearsal. time: when; says: what stood in the way, or that nothing did."""

    time: str
    age_seconds: float
    ok: bool
    says: str


class Proof(msgspec.Struct, kw_only=True):
    """What can prove that the source is out of action, before an unplanned failover.

    Attributes:
        accepts: Kinds of evidence that the policy of replica.toml takes.
        kinds: Those of them that [source] can produce, or a person's word.
        answers: Whether the source's hypervisor answers now; None: none is known.
        says: What it says of the source.
    """

    accepts: list[str] = []
    kinds: list[str] = []
    answers: bool | None = None
    says: str = ""


@prepared
class Readiness(msgspec.Struct, kw_only=True):
    """How ready a replica is. None, "" and empty lists: not known, or nothing.

    Attributes:
        open: Kind of the operation that was begun and has not ended.
        rpo_seconds: What a failover now would lose, at most, in time.
        rpo_target: In seconds: of the group, of the plan, or of its ingest.
        newest: Moment of the newest restore point, and how many there are.
        gap: Cause of one that lasts.
        ingest: Whether one runs. tests: Test failovers that run.
        needed_bytes: That have to be free, by replica.toml.
        networks: Source's network -> what its cards get here in such a run.
        seconds: Kind of run, or "rehearsal" -> seconds of those there were, newest last.
    """

    name: str
    directory: str
    id: str = ""
    group: str = ""
    datastores: list[str] = []
    state: str = ""
    open: str = ""
    held: bool = False
    ingest: bool = False
    tests: int = 0
    points: int = 0
    newest: str = ""
    rpo_seconds: float | None = None
    rpo_target: float | None = None
    gap: str = ""
    rehearsal: Rehearsed | None = None
    free_bytes: int | None = None
    needed_bytes: int | None = None
    proof: Proof = msgspec.field(default_factory=Proof)
    hypervisor: str = ""
    networks: dict[str, str] = {}
    seconds: dict[str, list[float]] = {}
    problems: list[Problem] = []


@prepared
class Request(msgspec.Struct, kw_only=True):
    """What a mount host is asked about a group.

    Attributes:
        what: resolve: the replicas and their points. look: how ready they are.
        root: Directory of the replicas there, absolute.
        places: Where the plan says each text of group.replicas: "site.toml, line 12".
    """

    what: What
    group: Group
    root: str
    kind: RunKind
    run: str = ""
    plan: str = ""
    places: list[str] = []


@prepared
class Resolved(msgspec.Struct, kw_only=True):
    """What a group means. points: name of a replica -> where it is to go, as text."""

    found: list[Found]
    points: dict[str, str] = {}
