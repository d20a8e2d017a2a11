"""Tables of `replica.toml` that say where machines run and what guards a failover.

Read by config.py. Durations are as people write them: "90s", "15m".
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .records import EvidenceKind

HypervisorKind = Literal["qemu", "vsphere"]
SUFFICIENT: tuple[EvidenceKind, ...] = (
    "powered_off_confirmed",
    "host_fenced",
    "storage_fenced",
    "network_isolated",
    "overridden",
)


class HypervisorTable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where a machine runs, and how that is reached: [hypervisor], and [source] likewise.

    Attributes:
        kind: qemu is this host.
        run: qemu: the directory of its machines; "": the replica's own.
        server, port: Of vCenter, or of an ESXi host.
        user: Who logs in. The password is in the variable password_env, in the file
            password_file (mode 0600), or in the keyring under the name of the service.
        ca_file: Certificates that may have signed the server's; certificate: a file with
            the server's own, and no other is taken. Neither: what the system trusts.
        insecure: The server's certificate is not looked at.
        timeout: Of one call, or of one task.
        machine: The machine that is there already: its instance UUID, inventory path or
            name; for qemu its id. "": one is made from the hardware that is known.
        datacenter, folder, pool, host: Where a machine is made. "": the only one there is.
        datastores: Name -> where it is mounted on this host.
        networks: Network of the source -> network here; "*" for all others.
        test_network: Isolated, for test failovers; "": no wire in the cards.
        mac: What a machine that is made gets: the source's MACs, or new ones.
        hardware: File of a template: see docs/vsphere.md. "": replica.toml's [machine].
    """

    kind: HypervisorKind = "qemu"
    run: str = ""
    server: str = ""
    port: int = 443
    user: str = ""
    password_env: str = ""
    password_file: str = ""
    keyring: str = ""
    ca_file: str = ""
    certificate: str = ""
    insecure: bool = False
    timeout: str = "5m"
    machine: str = ""
    datacenter: str = ""
    folder: str = ""
    pool: str = ""
    host: str = ""
    datastores: dict[str, str] = {}
    networks: dict[str, str] = {}
    test_network: str = ""
    mac: Literal["keep", "new"] = "keep"
    hardware: str = ""


class SourceTable(HypervisorTable, kw_only=True, forbid_unknown_fields=True):
    """The protected machine: where it runs, what its disks are, how it is shut down.

    Attributes:
        shutdown: How long its guest may take, before the plug is pulled.
        disks: Disk of the replica -> a file or an NBD URI, to compare the cut with and to
            fail back to.
        fence: Argument vector that fences the source's host or storage: exit code 0, and
            what it prints is the evidence. fence_kind: which.
        probe: Argument vector that tells whether the source answers: 0 yes, 1 no.
        compare: What a planned failover compares at the cut.
    """

    shutdown: str = "15m"
    disks: dict[str, str] = {}
    fence: list[str] = []
    fence_kind: Literal["host_fenced", "storage_fenced", "network_isolated"] = "host_fenced"
    probe: list[str] = []
    compare: Literal["full", "never"] = "full"


class HoldTable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An external replicator, told to hold and to release: by commands, or over HTTP.

    Attributes:
        hold, release, status: Argument vectors. Exit code 0 is done; what status prints
            begins with "held" while it holds.
        url: Gets POST .../hold and .../release, GET .../status; answers JSON
            {"held": true|false}.
        token_env, token_file: Of a bearer token.
        ca_file: As of a hypervisor. timeout: Of each.
    """

    hold: list[str] = []
    release: list[str] = []
    status: list[str] = []
    url: str = ""
    token_env: str = ""
    token_file: str = ""
    ca_file: str = ""
    timeout: str = "60s"


class FencingTable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which evidence that the source is out of action lets a replica be powered on.

    max_age: Of the evidence at the power-on call. "none" in accept asks for none.
    """

    accept: list[EvidenceKind] = msgspec.field(default_factory=lambda: list(SUFFICIENT))
    max_age: str = "30s"


class ChecksTable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the checks before power-on want.

    Attributes:
        reserve: Free space for overlays: a size, or a share of the disks as in "10%".
        clock_skew: Between this host and the hypervisor, and the newest point.
        probe_addresses: Look for stations that have the guest's addresses already.
        skip: Check -> why it is never run for this replica.
    """

    reserve: str = "1G"
    clock_skew: str = "30s"
    probe_addresses: bool = True
    skip: dict[str, str] = {}


class FailbackTable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How a failback copies.

    Attributes:
        rounds: Of phase 1, at most, while more is written than `rest` allows.
        rest: What may be left to send when the switch is due by itself, as time.
        shutdown: How long the recovered guest may take, before the plug is pulled.
        verify: What is read back at the target: all that was sent, all of it, or nothing.
    """

    rounds: int = 5
    rest: str = "10s"
    shutdown: str = "15m"
    verify: Literal["sent", "all", "never"] = "sent"
