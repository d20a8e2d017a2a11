"""An appliance kept warm beside a replica that is ready, if replica.toml wants one.

What keeps the replica ready keeps it, on a thread: an ingest, which runs on when a
failover holds replication, and takes the appliance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from .config import Config, load
from .errors import Error
from .replica import Replica


class Kept(Protocol):
    """What is kept: access.warm.Keeper, or nothing."""

    @property
    def problem(self) -> str: ...

    def close(self) -> None: ...


class _Nothing:
    problem = ""

    def close(self) -> None:
        """There is nothing to close."""


@contextlib.contextmanager
def kept_warm(replica: Replica) -> Iterator[Kept]:
    """Keeps one while the block runs."""
    kept = _keep(replica)
    try:
        yield kept
    finally:
        kept.close()


def warm_place(path: str, config: Config) -> str | None:
    """Where the warm appliance of the replica in that directory would listen; None without."""
    if not config.mount.warm or config.mount.mode not in ("auto", "appliance"):
        return None
    from .access.warm import place  # a replica without a warm appliance does without

    with contextlib.suppress(Error, OSError):
        return place(path)
    return None


def _keep(replica: Replica) -> Kept:
    path = warm_place(replica.path, load(replica.directory))
    if path is None:
        return _Nothing()
    from .access.warm import Keeper

    return Keeper(path, [disk.size_bytes for disk in replica.manifest.disks])
