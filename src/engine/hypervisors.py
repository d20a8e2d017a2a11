"""Which hypervisor a replica's machine runs on, and which one its source, from replica.toml."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from . import config
from .config_tables import HypervisorTable
from .errors import ToolMissingError
from .manifest import RUN_DIRECTORY
from .replica import Replica

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor

OVERLAY_KINDS = {"qemu": "hosted", "vsphere": "vmfsSparse"}  # what each writes: interim.KINDS


def of_replica(replica: Replica) -> Hypervisor:
    """Where the replica's machine is powered on: [hypervisor].

    Raises:
        ToolMissingError: It is not installed.
        UsageError: replica.toml is wrong.
        HypervisorError: It cannot be reached.
    """
    return open_hypervisor(config.load(replica.directory).hypervisor, replica.path)


def of_source(replica: Replica) -> Hypervisor | None:
    """Where the protected machine runs: [source]. None: nothing is said of it.

    Raises:
        As of_replica.
    """
    table = config.load(replica.directory).source
    return None if table is None or not table.machine else open_hypervisor(table, replica.path)


def machine_id(replica: Replica) -> str:
    """Under which the replica's machine is known to its hypervisor."""
    return config.load(replica.directory).hypervisor.machine or replica.manifest.id


def open_hypervisor(table: HypervisorTable, directory: str) -> Hypervisor:
    """The hypervisor that a table names; directory is the replica's."""
    if table.kind == "vsphere":
        from .hypervisor.vsphere_open import open_vsphere  # pyvmomi takes 0.2 s to import

        return open_vsphere(table, directory)
    from .hypervisor.qemu import INSTALL_HINT, QEMU_PROGRAM, Qemu

    if shutil.which(QEMU_PROGRAM) is None:
        raise ToolMissingError(f"{QEMU_PROGRAM} is not installed", INSTALL_HINT)
    place = os.path.join(directory, table.run or RUN_DIRECTORY)
    return Qemu(place)
