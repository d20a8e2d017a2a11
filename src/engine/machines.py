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
    isolated: bool = False,
) -> Machine:
    """What a hypervisor is to start.

    Args:
        isolated: No wire is in its network cards, whatever the settings say.

    Raises:
        UsageError: The settings are none that a machine can have.
    """
    try:
        wired = settings.network == "user" and not isolated
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
                Card(msgspec.convert(settings.nic, Nic), mac, "user" if wired else "none")
                for mac in _macs(said, id)
                if settings.nic is not None
            ),
        )
    except msgspec.ValidationError as error:
        raise UsageError(f"the machine's settings: {error}", "mend replica.toml") from None


def _macs(said: Config, id: str) -> list[str]:
    """Those that are said; without, one that stays the same for that machine."""
    if said.guest.network:
        return [card.mac for card in said.guest.network]
    digits = xxhash.xxh3_64_hexdigest(id.encode())
    return ["52:54:00:" + ":".join(digits[i : i + 2] for i in (0, 2, 4))]
