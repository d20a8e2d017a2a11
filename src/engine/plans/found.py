"""What is known of a group's replicas on their mount host, as it travels to who asked: JSON."""

from __future__ import annotations

from typing import Literal

import msgspec

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
    """Something that is not as it should be. stops: the run would not get past it.

    what: "state", "rpo", ... of a replica; "plan" of the file. replica: "" of all.
    """

    what: str
    says: str
    hint: str = ""
    stops: bool = True
    group: str = ""
    replica: str = ""


class Request(msgspec.Struct, kw_only=True):
    """What a mount host is asked.

    Attributes:
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


class Resolved(msgspec.Struct, kw_only=True):
    """What a group means. points: name of a replica -> where it is to go, as text."""

    found: list[Found]
    points: dict[str, str] = {}
