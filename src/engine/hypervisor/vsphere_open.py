"""A server that a table of replica.toml names: [hypervisor], or [source]."""

from __future__ import annotations

import os

from ..config_tables import HypervisorTable
from ..errors import UsageError
from ..secrets import SecretPlace
from ..units import parse_duration
from .vsphere import VSphere
from .vsphere_make import Site
from .vsphere_server import Server
from .vsphere_session import Session


def open_vsphere(table: HypervisorTable, directory: str) -> VSphere:
    """The server that a table of replica.toml names. It is connected when it is first asked.

    Args:
        directory: Of the replica: relative paths begin there.

    Raises:
        UsageError: The table does not say enough, or contradicts itself.
    """

    def place(path: str) -> str:
        return path and os.path.join(directory, path)

    if not table.server or not table.user:
        raise UsageError(
            "vSphere needs the name of the server and a user",
            "set server and user: docs/vsphere.md",
        )
    server = Server(
        name=table.server.strip("[]"),  # of an IPv6 address
        port=table.port,
        user=table.user,
        password=SecretPlace(
            what=f"the password of {table.user} at {table.server}",
            variable=table.password_env,
            file=place(table.password_file),
            keyring=table.keyring,
            user=table.user,
        ),
        ca_file=place(table.ca_file),
        certificate=place(table.certificate),
        insecure=table.insecure,
        timeout_seconds=parse_duration(table.timeout),
    )
    site = Site(
        datastores={name: place(mount) for name, mount in table.datastores.items()},
        networks=table.networks,
        datacenter=table.datacenter,
        folder=table.folder,
        pool=table.pool,
        host=table.host,
        keep_macs=table.mac == "keep",
        hardware=place(table.hardware),
    )
    return VSphere(Session(server), site)
