"""The machine that a replica becomes, from its manifest's settings and its replica.toml."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import xxhash

from .config import Config
from .errors import UsageError
from .guest.base import Nic
from .hypervisor.base import Accelerator, Bus, Card, Drive, Firmware, Machine
from .manifest import MachineSettings


def machine(
    settings: MachineSettings,
    said: Config,
    drives: Sequence[Drive],
    *,
    id: str,
    name: str,
    network: str | None = None,
    operation: str = "",
    point: int | None = None,
) -> Machine:
    """What a hypervisor is to start.

    Args:
        network: What its network cards are connected to, whatever the settings say.
        operation, point: Noted on the machine, where its hypervisor can.

    Raises:
        UsageError: The settings are none that a machine can have.
    """
    try:
        wire = settings.network if network is None else network
        return Machine(
            id=id,
            name=name,
            drives=tuple(drives),
            memory_bytes=settings.memory_bytes,
            cpus=settings.cpus,
            bus=msgspec.convert(settings.controller, Bus),
            firmware=msgspec.convert(settings.firmware, Firmware),
            accelerator=msgspec.convert(settings.accelerator, Accelerator),
            cards=tuple(
                Card(msgspec.convert(settings.nic, Nic), mac, wire, addresses)
                for mac, addresses in _stations(said, id)
                if settings.nic is not None
            ),
            operation=operation,
            replica=name,
            point=point,
            network=network,
            agent=settings.guest_agent,
        )
    except msgspec.ValidationError as error:
        raise UsageError(f"the machine's settings: {error}", "mend replica.toml") from None


def _stations(said: Config, id: str) -> list[tuple[str, tuple[str, ...]]]:
    """MAC and addresses of each card that is said; without, a MAC that the machine keeps."""
    if said.guest.network:
        return [
            (card.mac, tuple(each.partition("/")[0] for each in card.addresses))
            for card in said.guest.network
        ]
    digits = xxhash.xxh3_64_hexdigest(id.encode())
    return [("52:54:00:" + ":".join(digits[i : i + 2] for i in (0, 2, 4)), ())]
