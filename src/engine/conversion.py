"""The guest's conversion, from exported disks to a record of what was changed.

The disks are overlays: whatever happens here, what was replicated stays as it is. Used by
a failover (failing_over.py) and by a rehearsal (rehearsal.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from .errors import DamagedError, Error, GuestError, NotFoundError, UsageError
from .guest.base import BootMode, Change, Controller, Guest, Nic, Wanted
from .manifest import CONVERSION_NAME
from .points import now_text
from .structs import prepared
from .volumes.base import Volume
from .volumes.probe import HIBERNATED

if TYPE_CHECKING:
    from ._native import Dir
    from .access.base import FileSystem
    from .config import Config
    from .manifest import MachineSettings
    from .mount import Mount

Result = TypeVar("Result")

LIMIT_BYTES = 64 << 20
NOTHING_KNOWN = frozenset({"empty", "unknown"})
NO_CONVERT_HINT = "to start the machine as it is: rollpoint failover --no-convert"


@prepared
class Conversion(msgspec.Struct, kw_only=True):
    """What a conversion found and did.

    Attributes:
        outcome: changed; nothing (it was as wanted); no guest (nothing known is on the disks).
        mode: Which ways into the file systems were used, as in "files".
        seconds: By part: launch (of an appliance, 0.0 without), inspect, convert; total is
            all of it but the launch.
    """

    outcome: Literal["changed", "nothing", "no guest"]
    time: str
    wanted: Wanted
    guest: Guest | None = None
    mode: str = ""
    changes: list[Change] = []
    warnings: list[str] = []
    seconds: dict[str, float] = {}
    operation: str = ""
    point: int | None = None

    def tell(self) -> str:
        """One line for people."""
        if self.guest is None:
            return "nothing known is on the disks: left as they are"
        files = len({change.file for change in self.changes})
        done = f"{len(self.changes)} changes in {files} files" if self.changes else "nothing to do"
        more = f", {len(self.warnings)} warnings" if self.warnings else ""
        launch = self.seconds.get("launch", 0.0)
        apart = f" (and {launch:.1f} s for the appliance)" if launch else ""
        name = printable(self.guest.name, 80)
        return (
            f"{name or self.guest.os}: {done}{more}; {self.mode} mode, "
            f"{self.seconds['total']:.2f} s{apart}"
        )


def wanted_on(settings: MachineSettings, config: Config) -> Wanted:
    """What a guest is to become for that machine, with what the operator asks for.

    Raises:
        UsageError: The machine's settings are none that anybody knows.
    """
    try:
        return config.wanted(
            msgspec.convert(settings.controller, Controller),
            msgspec.convert(settings.nic or "virtio-net", Nic),
            msgspec.convert(settings.firmware, BootMode),
        )
    except msgspec.ValidationError as error:
        raise UsageError(f"the machine's settings: {error}", "mend replica.toml") from None


def convert(mount: Mount, config: Config, wanted: Wanted, warm: str | None = None) -> Conversion:
    """Make the guest on these exports bootable as wanted.

    Args:
        warm: Socket of an appliance that was launched ahead, if there is one.

    Raises:
        GuestError: There is no system that is known, or it cannot be converted.
        UnsupportedError: It is encrypted, or of a kind that is refused: what was seen.
        ToolMissingError: What is needed to reach its files is not installed.
        StorageError: The overlay is full, or its disk failed.
    """
    volumes = mount.volumes
    if all(volume.kind in NOTHING_KNOWN for volume in volumes):
        if config.guest.convert == "always":
            raise GuestError(
                f"nothing that is known is on the disks: {_seen(volumes)}", NO_CONVERT_HINT
            )
        return Conversion(
            outcome="no guest", time=now_text(), wanted=wanted, warnings=_notes(volumes)
        )
    asleep = [volume.name for volume in volumes if volume.note == HIBERNATED]
    if asleep:
        raise GuestError(
            f"the guest hibernates: its memory lies in {', '.join(asleep)}, and waking up would "
            "undo what a conversion changes below it",
            f"fail over to a point before that; {NO_CONVERT_HINT}",
        )
    try:
        return _convert(mount, config, wanted, warm)
    except Error as error:
        if not error.hint:
            error.hint = NO_CONVERT_HINT
        raise


def _convert(mount: Mount, config: Config, wanted: Wanted, warm: str | None) -> Conversion:
    from .access.choose import Ways  # a failover of a machine without a guest does without
    from .guest.convert import convert as convert_guest
    from .guest.inspect import inspect

    def opener(volume: Volume, subvolume: str = "") -> FileSystem:
        return ways.open(volume, writable=True, subvolume=subvolume)

    clock = _Clock()
    ways = Ways(
        mount.socket_path,
        mount.volumes,
        mount.disks,
        mode=config.mount.mode,
        trust_guest=config.mount.trust_guest,
        warm=warm,
    )
    try:
        found = clock.time("inspect", lambda: inspect(mount.volumes, opener))
        edits = clock.time("convert", lambda: convert_guest(found, wanted))
        clock.time("close", found.tree.close)
        mode = ways.mode_used
        launch = ways.launch_seconds
    finally:
        ways.close()
    return Conversion(
        outcome="changed" if edits.changes else "nothing",
        time=now_text(),
        wanted=wanted,
        guest=found.guest,
        mode=mode,
        changes=edits.changes,
        warnings=_notes(mount.volumes) + edits.warnings,
        seconds={**clock.seconds, "launch": launch, "total": clock.total() - launch},
    )


def printable(text: str, limit: int) -> str:
    """What a guest says, in a note or a file that people look at."""
    return "".join(c if c.isprintable() else "?" for c in text)[:limit]


def _notes(volumes: Sequence[Volume]) -> list[str]:
    """What is odd about volumes, or stands against them."""
    told = ((volume.name, volume.problem or volume.note) for volume in volumes)
    return [f"{name}: {what}" for name, what in told if what]


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def time(self, name: str, action: Callable[[], Result]) -> Result:
        begun = time.perf_counter()
        try:
            return action()
        finally:
            self.seconds[name] = time.perf_counter() - begun

    def total(self) -> float:
        return time.perf_counter() - self._begun


def _seen(volumes: Sequence[Volume]) -> str:
    seen = (f"{volume.name}: {volume.problem or volume.kind}" for volume in volumes)
    return ", ".join(seen) or "no disk"


# ---- kept beside the replica's manifest ----


def store(directory: Dir, done: Conversion, name: str = CONVERSION_NAME) -> None:
    """Keep it with the replica: conversion.json."""
    directory.replace(name, msgspec.json.format(msgspec.json.encode(done), indent=2) + b"\n")


def load(directory: Dir, name: str = CONVERSION_NAME) -> Conversion | None:
    """The last one that was kept; None: there was none.

    Raises:
        DamagedError: The file is not what was written.
    """
    try:
        data = directory.read(name, LIMIT_BYTES)
    except NotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=Conversion)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{directory.path}/{name}: {error}", "remove it") from None
