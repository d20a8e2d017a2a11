"""Hypervisors that a check asks: each one opened once for all replicas, and not waited for long."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from .. import hypervisors
from ..config_tables import HypervisorTable
from ..errors import Error
from ..hypervisor.base import Hypervisor
from ..units import parse_duration

ANSWER_SECONDS = 10.0  # a check is not to hang where a failover might wait
Opens = Callable[[str], "tuple[Hypervisor | None, Hypervisor | None]"]


class Servers:
    """Hypervisors that are open, each one once, with what came of trying."""

    def __init__(self, opens: Opens | None) -> None:
        self._opens = opens
        self._known: dict[bytes, Hypervisor | Error] = {}

    def of_replica(self, directory: str, table: HypervisorTable) -> Hypervisor:
        if self._opens is not None:
            given = self._opens(directory)[0]
            if given is not None:
                return given
        return self._open(directory, table)

    def of_source(self, directory: str, table: HypervisorTable) -> Hypervisor:
        if self._opens is not None:
            given = self._opens(directory)[1]
            if given is not None:
                return given
        return self._open(directory, table)

    def _open(self, directory: str, table: HypervisorTable) -> Hypervisor:
        """Raises: As hypervisors.open_hypervisor."""
        seconds = min(parse_duration(table.timeout), ANSWER_SECONDS)
        plain = HypervisorTable(
            **{name: getattr(table, name) for name in HypervisorTable.__struct_fields__}
        )
        plain.timeout = f"{seconds:g}s"
        key = b""
        if table.kind == "vsphere":
            # What makes no difference to asking; what is relative begins in the replica.
            plain.machine = plain.test_network = plain.hardware = ""
            plain.networks, plain.datastores = {}, {}
            for name in ("password_file", "ca_file", "certificate"):
                said = getattr(plain, name)
                setattr(plain, name, said and os.path.join(directory, said))
            key = msgspec.json.encode(plain)
        if not key:
            return hypervisors.open_hypervisor(plain, directory)
        if key not in self._known:
            try:
                self._known[key] = hypervisors.open_hypervisor(plain, directory)
            except Error as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, Error):
            raise known
        return known

    def failed(self, hypervisor: Hypervisor, error: Error) -> None:
        """It does not answer: nobody is to wait for that again."""
        for key, known in self._known.items():
            if known is hypervisor:
                _close(hypervisor)
                self._known[key] = error
                return

    def close(self) -> None:
        for known in self._known.values():
            if not isinstance(known, Error):
                _close(known)
        self._known = {}


def _close(hypervisor: Hypervisor) -> None:
    close = getattr(hypervisor, "close", None)
    if close is not None:
        close()
