"""The overlays of a failed-over disk, one above the other: freezing them, and what each holds.

While the machine runs nothing may be read from the overlay that it writes. So that one is
frozen: an empty overlay goes on top of it, of all disks at one cut. First the new files are
made, then the manifest names them, then the hypervisor is told; telling it again changes
nothing, so after a crash it is told again. The top of a machine that is off stands still
as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import below, interim
from .errors import UnsupportedError
from .manifest import Recovered
from .replica import Replica

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor

LAYERS_MAX = 64  # that are frozen: each costs the machine's reads a little


def recovered_of(replica: Replica) -> Recovered:
    """What the replica is failed over to."""
    recovered = replica.manifest.recovered
    assert recovered is not None, "the replica is not failed over"
    return recovered


def runs(replica: Replica, hypervisor: Hypervisor | None) -> bool:
    """Whether the recovered machine runs, and writes its top overlays."""
    running = recovered_of(replica).running
    if running is None or hypervisor is None:
        return False
    return hypervisor.status(running.machine) != "off"


def freeze(replica: Replica, hypervisor: Hypervisor) -> bool:
    """Freeze the overlays that a running machine writes; False: its hypervisor cannot. Locked.

    Raises:
        HypervisorError: Whether they are frozen is not known: confirm finds it out.
        StorageError: The new overlays could not be made. Nothing is changed.
    """
    recovered = recovered_of(replica)
    if len(recovered.frozen) >= LAYERS_MAX:
        return False
    number = interim.free_number(recovered)
    before, after = dict(recovered.interims), {}
    for disk in replica.manifest.disks:
        name = interim.interim_name(disk.name, number)
        interim.create_interim(
            replica.directory,
            disk.name,
            before[disk.name],
            disk.size_bytes,
            kind=hypervisor.overlay_kind,
            number=number,
            replace=True,  # no manifest names it: an earlier try was cut short
        )
        after[disk.name] = name
    recovered.frozen = [*recovered.frozen, before]
    recovered.interims = after
    replica.save()
    return confirm(replica, hypervisor)


def confirm(replica: Replica, hypervisor: Hypervisor) -> bool:
    """Have the machine write to the overlays that the manifest calls the top. Locked.

    Returns:
        False where it cannot: then the manifest has the former top again.

    Raises:
        HypervisorError: Whether it does is not known.
    """
    recovered = recovered_of(replica)
    if not recovered.frozen:
        return True
    if recovered.running is None or hypervisor.status(recovered.running.machine) == "off":
        settle(replica)
        return True
    below = recovered.frozen[-1]
    tops = {
        replica.file(below[name]): replica.file(top) for name, top in recovered.interims.items()
    }
    try:
        hypervisor.freeze(recovered.running.machine, tops)
    except UnsupportedError:
        dropped = recovered.interims
        recovered.interims = recovered.frozen[-1]
        recovered.frozen = recovered.frozen[:-1]
        replica.save()
        for name in dropped.values():
            interim.remove_interim(replica.directory, name)
        return False
    return True


def settle(replica: Replica) -> None:
    """The machine is off. It may have gone off before it was told of its new top, and after
    it had written to the former one: then that has another content id, and the top is empty.
    """
    recovered = recovered_of(replica)
    for top in recovered.interims.values() if recovered.frozen else ():
        below.follow(replica.directory, top)


def layers(replica: Replica, disk: str) -> list[str]:
    """Descriptors of the overlays of a disk, the oldest first; the top is the last."""
    return list(reversed(recovered_of(replica).overlays(disk)))
