"""What a plan file says, as tables. Read by file.py, which adds line numbers to errors.

Durations are as people write them: "90s", "15m". Users' page: docs/plans.md.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..structs import prepared

RunKind = Literal["test", "planned", "unplanned", "undo", "permanent", "failback", "commit"]
FORWARD: tuple[RunKind, ...] = ("test", "planned", "unplanned")
GateKind = Literal["heartbeat", "tcp", "http", "marker", "script"]
OnFailure = Literal["stop", "continue", "ask"]
Each = Literal["replica", "group"]
VERSION = 1


class Script(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A command of the operator, run on the mount host.

    Attributes:
        command: Argument vector; with shell = true one string, for /bin/sh.
        env: Added to a small environment: PATH, HOME, LANG and ROLLPOINT_* (docs/plans.md).
        each: Once for each replica, or once for the group.
        on: Kinds of runs in which it is run.
    """

    command: list[str] | str
    name: str = ""
    env: dict[str, str] = {}
    timeout: str = "5m"
    shell: bool = False
    each: Each = "replica"
    on: list[RunKind] = msgspec.field(default_factory=lambda: list(FORWARD))


class Gate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What has to be seen before a replica, or a group, counts as up.

    In host, url, text, marker and command {replica}, {group}, {plan}, {run} and {address}
    stand for what they say; {address} is the first address that replica.toml gives the guest.

    Attributes:
        kind: heartbeat: VMware Tools or the guest agent answer. tcp: host and port take a
            connection. http: url answers with status, and with text in its body. marker:
            a line on the serial console. script: exit code 0.
        interval: From one look to the next. timeout: Of one look. retries: Looks after the
            first one.
    """

    kind: GateKind
    name: str = ""
    host: str = ""
    port: int = 0
    url: str = ""
    status: int = 200
    text: str = ""
    ca_file: str = ""
    insecure: bool = False
    marker: str = ""
    command: list[str] | str = []
    env: dict[str, str] = {}
    shell: bool = False
    interval: str = "2s"
    timeout: str = "5s"
    retries: int = 60
    each: Each = "replica"
    on: list[RunKind] = msgspec.field(default_factory=lambda: list(FORWARD))


class Group(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Replicas that are brought up together.

    Attributes:
        replicas: Names, globs, "label:NAME" (labels in replica.toml), and "!" before any of
            them to leave out what it means.
        root: Directory of the replicas on the mount host; "": the plan's.
        queue: Of the mount host's worker; "": the machine that runs the plan.
        after: Groups that have to be up before.
        priority: Of groups that could both begin where a limit lets one: the smaller first.
        delay: From the moment when the groups in `after` are up.
        parallelism: Replicas at once; 0: no limit of the group's own.
        network: Of all cards, by name; or network of the source -> network here.
        test_network: Isolated, for test runs; "": as replica.toml says, "none": no wire.
        point: "latest", a moment, "common" or "common:GLOB" (the newest point that all of the
            group have, by its label), "app" (the newest application-consistent one).
        same_cut: All replicas at one cut.
        on_failure: stop ends the run; continue counts the failed one as up; ask waits for
            somebody's word.
        before, after_up: Scripts; gates are looked at between.
        skip: Checks of a failover that are not run -> why.
    """

    name: str
    replicas: list[str]
    root: str = ""
    queue: str = ""
    after: list[str] = []
    priority: int = 100
    delay: str = "0s"
    parallelism: int = 0
    network: str | dict[str, str] = ""
    test_network: str = ""
    point: str = "latest"
    same_cut: bool = False
    on_failure: OnFailure = "stop"
    rpo_target: str = ""
    rto_target: str = ""
    before: list[Script] = []
    gate: list[Gate] = []
    after_up: list[Script] = []
    skip: dict[str, str] = {}


class Limits(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How many replicas at once. "*" stands for every other host, or datastore.

    Attributes:
        plan: In all. hosts: Queue -> number; "" is this machine. datastores: Name ->
            number; a datastore is vSphere's name of it, or the mount point of the replica.
    """

    plan: int = 20
    hosts: dict[str, int] = msgspec.field(default_factory=lambda: {"*": 10})
    datastores: dict[str, int] = {}


@prepared
class Plan(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        version: Of this format.
        name: By default the file's, without its ending.
        replicas: Directory under which the replicas lie; relative to the plan file.
        rpo_target, rto_target: What the report measures against; rto_target of the whole
            run, in a group of each replica. "": none.
    """

    version: int
    name: str = ""
    replicas: str = "."
    rpo_target: str = ""
    rto_target: str = ""
    limits: Limits = msgspec.field(default_factory=Limits)
    group: list[Group]
