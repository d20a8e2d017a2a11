"""What a failback sends: from the overlays of the replica to the targets, disk by disk.

  first      what the target may have otherwise, as its lineage says; or all is compared
  then       what the overlays hold that were frozen since

Sending again what was sent already changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence

from . import layering, nbd_client
from .disk import open_disk
from .errors import CancelledError, UsageError, VerificationError
from .layering import Range
from .manifest import DiskEntry, Failback, Target
from .nbd_client import NbdClient
from .replica import Replica
from .resync import CHUNK_BYTES, DiskSide, bring_in_step, joined
from .resync import Target as Side
from .seed import image_format

# called with disk, bytes done and bytes in all; False stops
Progress = Callable[[str, int, int], bool]
_NOTE_SECONDS = 5.0  # between two notes in the manifest of how far it is


@contextlib.contextmanager
def open_target(place: str, entry: DiskEntry, *, writable: bool = True) -> Iterator[Side]:
    """A place that a disk is failed back to.

    Raises:
        UsageError: It has another size, or takes no writes.
        NotFoundError, LockedError, StorageError: It cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        side: Side
        if nbd_client.is_uri(place):
            client = stack.enter_context(NbdClient(nbd_client.parse_uri(place)))
            if writable and client.read_only:
                raise UsageError(f"{place} is read only", "export it for writing")
            side = client
        else:
            disk = stack.enter_context(
                open_disk(place, writable=writable, format=image_format(place))
            )
            side = DiskSide(disk.writing() if writable else disk.reading)
        if side.size_bytes != entry.size_bytes:
            raise UsageError(
                f"{place} has {side.size_bytes} bytes, disk {entry.name} has {entry.size_bytes}",
                "give a target of the same size",
            )
        yield side


def check_targets(replica: Replica, targets: dict[str, Target]) -> None:
    """Refuse what cannot be failed back to, before anything is changed.

    Raises:
        UsageError: A disk has no target, two have one, or one is a file of the replica.
        Error: As open_target.
    """
    seen: dict[object, str] = {}
    for entry in replica.manifest.disks:
        if entry.name not in targets:
            raise UsageError(f"disk {entry.name} has no target", f"--target {entry.name}=PLACE")
        place = targets[entry.name].place
        key: object = place
        if not nbd_client.is_uri(place):
            real = os.path.realpath(place)
            if os.path.dirname(real) == os.path.realpath(replica.path):
                raise UsageError(
                    f"{place} lies in the replica's own directory", "fail back to another place"
                )
            with contextlib.suppress(OSError):
                stat = os.stat(place)
                key = (stat.st_dev, stat.st_ino)
        if key in seen:
            raise UsageError(f"{place} is the target of {seen[key]} and {entry.name}", "take two")
        seen[key] = entry.name
        with open_target(place, entry, writable=nbd_client.is_uri(place)):
            pass
    for name in targets:
        replica.manifest.disk(name)


class Carrier:
    """Sends layers of the replica's disks to the targets of its failback. Inside `locked`.

    Args:
        progress: Told of each round; False ends it with CancelledError.
    """

    def __init__(self, replica: Replica, progress: Progress | None = None) -> None:
        self._replica = replica
        self._progress = progress
        self._noted = 0.0

    @property
    def _failback(self) -> Failback:
        failback = self._replica.manifest.failback
        assert failback is not None
        return failback

    def send(self, stop: int) -> int:
        """Send what the overlays below `stop` hold and no round before has sent.

        Returns:
            Bytes that were written at the targets. The caller saves.

        Raises:
            StorageError, ...: The target failed, or the replica's disks.
        """
        failback, replica = self._failback, self._replica
        begun, sent = time.perf_counter(), 0
        wanted = {
            entry.name: self._ranges(entry, stop) for entry in replica.manifest.disks
        }
        failback.total_bytes = sum(end - at for rows in wanted.values() for at, end in rows)
        failback.done_bytes = before = 0
        for entry in replica.manifest.disks:
            sent += self._send_disk(entry, stop, wanted[entry.name], before)
            before += sum(end - at for at, end in wanted[entry.name])
        failback.done_bytes = failback.total_bytes
        failback.layers = stop
        failback.seconds += time.perf_counter() - begun
        return sent

    def _ranges(self, entry: DiskEntry, stop: int) -> Sequence[Range]:
        if self._failback.layers == 0:
            return [(0, entry.size_bytes)]
        return joined(
            layering.written(self._replica, entry.name, self._failback.layers, stop),
            entry.size_bytes,
        )

    def _send_disk(
        self, entry: DiskEntry, stop: int, ranges: Sequence[Range], before: int
    ) -> int:
        target = self._failback.targets[entry.name]
        top = layering.layers(self._replica, entry.name)[stop - 1]
        with (
            open_disk(self._replica.file(top), io=self._replica.directory.io) as disk,
            open_target(target.place, entry) as side,
        ):
            done = bring_in_step(
                entry.name,
                DiskSide(disk.reading),
                side,
                ranges,
                lambda name, done, _: self._tell(name, before + done),
            )
        target.sent_bytes += done.written_bytes
        target.read_bytes += done.compared_bytes
        return done.written_bytes + done.zeroed_bytes

    def _tell(self, name: str, done: int) -> bool:
        failback = self._failback
        failback.done_bytes = done
        now = time.monotonic()
        if now >= self._noted + _NOTE_SECONDS:
            self._noted = now
            self._replica.save()
        return self._progress is None or self._progress(name, done, failback.total_bytes)

    def verify(self) -> int:
        """Read targets and replica, all of both; returns how many bytes are the same.

        Raises:
            VerificationError: They differ; it says where.
        """
        total = 0
        for entry in self._replica.manifest.disks:
            target = self._failback.targets[entry.name]
            top = layering.layers(self._replica, entry.name)[-1]
            with (
                open_disk(self._replica.file(top), io=self._replica.directory.io) as disk,
                open_target(target.place, entry, writable=False) as side,
            ):
                for at in range(0, entry.size_bytes, CHUNK_BYTES):
                    length = min(CHUNK_BYTES, entry.size_bytes - at)
                    if disk.pread(length, at) != side.pread(length, at):
                        raise VerificationError(
                            f"disk {entry.name} differs from {target.place} in the {length} "
                            f"bytes from {at}",
                            "somebody else writes there, or it fails: look at it, and resume",
                        )
                    if not self._tell(entry.name, at):
                        raise CancelledError("the comparison was stopped", "resume")
                total += entry.size_bytes
        return total
