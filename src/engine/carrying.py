"""What a failback sends: from the overlays of the replica to the targets, disk by disk.

  first  where the target may hold something else, as its lineage says; where that is
         broken both sides are compared
  then   what the overlays hold that were frozen since

Sending again what was sent already changes nothing. What is read of the replica stands still:
overlays that are frozen, or whose machine is off.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping

from . import changed, interim, layering, nbd_client, sending, targets
from ._native import Disk
from .disk import open_disk
from .errors import Error, NotFoundError, UsageError
from .manifest import DiskEntry, Failback, Target
from .replica import Replica
from .spans import Spans, whole

# called with disk, bytes done and bytes in all; False stops
Progress = Callable[[str, int, int], bool]
_NOTE_SECONDS = 5.0  # between two notes in the manifest of how far it is


def check_targets(replica: Replica, wanted: Mapping[str, Target]) -> list[str]:
    """Refuse what cannot be failed back to. Changes nothing, and makes nothing.

    Returns:
        What is to be said of them.

    Raises:
        UsageError: Two disks have one target, it is a file of the replica, or too small.
        NotFoundError, LockedError, StorageError: One cannot be opened.
    """
    notes, seen = [], list[tuple[str, str]]()
    for entry in replica.manifest.disks:
        place = wanted[entry.name].place
        for name, other in seen:
            if targets.same_place(place, other):
                raise UsageError(
                    f"{place} is the target of the disks {name} and {entry.name}",
                    "give each disk its own",
                )
        seen.append((entry.name, place))
        if not nbd_client.is_uri(place):
            _require_outside(replica, place)
        if wanted[entry.name].kind == "new" and targets.is_new(place):
            folder = os.path.dirname(os.path.abspath(place))
            if not os.path.isdir(folder):
                raise NotFoundError(f"{folder} is not there", f"make it, for {place}")
            continue
        # A file is opened for reading: writing would give a VMDK another content id.
        writable = nbd_client.is_uri(place)
        with targets.open_target(place, entry.size_bytes, writable=writable) as target:
            if target.note:
                notes.append(target.note)
    return notes


def _require_outside(replica: Replica, place: str) -> None:
    folder = os.path.dirname(os.path.realpath(place))
    if folder == os.path.realpath(replica.path):
        raise UsageError(
            f"{place} lies in the replica's own directory", "fail back to another place"
        )


class Carrier:
    """Sends layers of the replica's disks to the targets of its failback. Inside `locked`.

    Args:
        progress: Told of each pass over the disks; False ends it with CancelledError.
    """

    def __init__(self, replica: Replica, progress: Progress | None = None) -> None:
        self._replica = replica
        self._progress = progress
        self._noted = self._begun = 0.0
        self._spans: dict[str, Spans] = {}  # disk -> what the present round sends

    @property
    def _failback(self) -> Failback:
        failback = self._replica.manifest.failback
        assert failback is not None
        return failback

    def send(self, stop: int) -> int:
        """Send what the overlays below `stop` hold and no round before has sent.

        Returns:
            Bytes of data that were written at the targets. Durable.

        Raises:
            DamagedError: The journal rotted where it would be sent. Nothing was.
            StorageError, ...: A target failed, or the replica's disks.
        """
        failback, sent = self._failback, 0
        self._spans = {}
        self._doubt_targets()
        self._spans = self._to_send(stop)
        if not failback.layers:
            for name, spans in self._spans.items():
                overlays = layering.layers(self._replica, name)[:stop]
                changed.prove(self._replica, name, spans, overlays)
        begun = time.perf_counter()
        with self._pass(self._spans) as told:
            for entry, source, target in self._sides(stop):
                done = sending.send(source, target, self._spans[entry.name], told(entry.name))
                sent += done.sent_bytes
                record = failback.targets[entry.name]
                record.sent_bytes += done.sent_bytes
                record.read_bytes += done.read_bytes
        failback.seconds += time.perf_counter() - begun
        return sent

    def verify(self, stop: int, everything: bool = False) -> int:
        """Read back what `send` sent, or all; returns how many bytes are the same.

        Raises:
            VerificationError: Something differs; it says where.
        """
        failback, same = self._failback, 0
        sizes = {entry.name: entry.size_bytes for entry in self._replica.manifest.disks}
        begun = time.perf_counter()
        if everything:
            spans = {name: whole(size) for name, size in sizes.items()}
        else:
            # Not known any more, after a crash: then all that may be, to be on the safe side.
            spans = self._spans or {
                name: self._known(name, stop) or whole(size) for name, size in sizes.items()
            }
        with self._pass(spans) as told:
            for entry, source, target in self._sides(stop, writable=False):
                same += sending.verify(source, target, spans[entry.name], told(entry.name))
        failback.seconds += time.perf_counter() - begun
        return same

    def _doubt_targets(self) -> None:
        """Where somebody else wrote to a target since the round before, or put another file
        in its place, nothing is known of it any more.
        """
        failback = self._failback
        for target in failback.targets.values():
            if target.stamp and targets.stamp(target.place) != target.stamp:
                target.lineage = f"{target.place} was written since the round before, not by us"
                failback.layers = 0  # all is sent once more
            target.stamp = ""
        self._replica.save()  # from here on it is we who write there

    def settle(self, stop: int) -> None:
        """The overlays below `stop` are sent. The caller saves."""
        self._spans = {}
        self._failback.layers = stop
        for target in self._failback.targets.values():
            target.stamp = targets.stamp(target.place)

    def left_bytes(self) -> int:
        """How much the overlays hold that are not sent, of all disks; about, of a running one."""
        total = 0
        for entry in self._replica.manifest.disks:
            stack = layering.layers(self._replica, entry.name)
            try:
                total += self._written(entry.name, len(stack)).total_bytes
            except Error:  # its tables were changed while we looked
                extent = interim.delta_name(stack[-1])
                total += self._replica.directory.stat(extent).allocated_bytes
        return total

    # ---- which ranges ----

    def _to_send(self, stop: int) -> dict[str, Spans]:
        failback, found = self._failback, dict[str, Spans]()
        unknown = {}
        for entry in self._replica.manifest.disks:
            known = self._known(entry.name, stop)
            if known is not None:
                found[entry.name] = known
            elif targets.is_new(failback.targets[entry.name].place):
                top = layering.layers(self._replica, entry.name)[stop - 1]
                found[entry.name] = changed.allocated(self._replica, top)
            else:
                unknown[entry.name] = whole(entry.size_bytes)
        if unknown:
            with self._pass(unknown) as told:
                for entry, source, target in self._sides(stop, unknown, writable=False):
                    found[entry.name] = sending.differing(
                        source, target, progress=told(entry.name)
                    )
        return found

    def _known(self, disk: str, stop: int) -> Spans | None:
        """What has to be sent, as entries and tables say; None: both sides have to be compared."""
        failback = self._failback
        if failback.layers:
            return self._written(disk, stop)
        if failback.targets[disk].lineage:
            return None
        return changed.ranges(
            self._replica,
            disk,
            changed.held_point(self._replica, failback.holds),
            layering.layers(self._replica, disk)[:stop],
        )

    def _written(self, disk: str, stop: int) -> Spans:
        """What the overlays hold themselves that are not sent, up to `stop`."""
        found = Spans()
        for name in layering.layers(self._replica, disk)[self._failback.layers : stop]:
            found |= changed.overlay(self._replica, name)
        return found

    # ---- the two sides, and how far it is ----

    def _sides(
        self, stop: int, only: Mapping[str, object] | None = None, *, writable: bool = True
    ) -> Iterator[tuple[DiskEntry, Disk, targets.Target]]:
        for entry in self._replica.manifest.disks:
            if only is not None and entry.name not in only:
                continue
            record = self._failback.targets[entry.name]
            top = layering.layers(self._replica, entry.name)[stop - 1]
            with (
                open_disk(self._replica.file(top), io=self._replica.directory.io) as disk,
                targets.open_target(
                    record.place,
                    entry.size_bytes,
                    create=writable and record.kind == "new" and not self._failback.layers,
                    writable=writable,
                ) as target,
            ):
                yield entry, disk.reading, target

    @contextlib.contextmanager
    def _pass(
        self, spans: Mapping[str, Spans]
    ) -> Iterator[Callable[[str], sending.Progress]]:
        """One pass over ranges of disks; yields what makes each disk's progress."""
        failback, before = self._failback, 0
        failback.total_bytes = sum(each.total_bytes for each in spans.values())
        failback.done_bytes, failback.pass_seconds = 0, 0.0
        self._begun = time.monotonic()

        def told(name: str) -> sending.Progress:
            nonlocal before
            base, before = before, before + spans[name].total_bytes
            return lambda done, _: self._tell(name, base + done)

        yield told
        self._tell("", failback.total_bytes)

    def _tell(self, name: str, done: int) -> bool:
        failback = self._failback
        now = time.monotonic()
        failback.done_bytes, failback.pass_seconds = done, now - self._begun
        if now >= self._noted + _NOTE_SECONDS:
            self._noted = now
            self._replica.save()
        if self._progress is None or not name:
            return True
        return self._progress(name, done, failback.total_bytes)
