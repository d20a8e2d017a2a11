"""A registry hive where it lies in a guest: opened with its logs applied, changed in place.

In place, because a file that is renamed over it would come with another security descriptor
than the registry's, which a user of the guest could then write to. Only the blocks that
differ are written. Should that end half-way, the interim overlay it happened in is dropped.
"""

from __future__ import annotations

from ..closing import Closing
from ..errors import GuestError
from .base import Change
from .edits import Edits, Tree, printable
from .hive_log import HIVE_BYTES_MAX, LOG_BYTES_MAX, is_dirty, recover
from .hives import Hive

_BLOCK = 4096
_LOGS = (".LOG1", ".LOG2", ".LOG")


class HiveFile(Closing):
    """A hive of a guest. Leave it with ``with`` or close.

    Attributes:
        path: As it is spelled in the guest. hive: What it holds.
        entries: Of its logs, that were applied to what the file holds.
        unclean: It was marked dirty, and no log of it could be applied.

    Raises:
        NotFoundError, GuestError, DamagedError: It is not there, too large, or no hive.
    """

    def __init__(self, tree: Tree, path: str, *, writable: bool = False) -> None:
        self.path = tree.any_case(path) or path
        self._old = tree.read(self.path, HIVE_BYTES_MAX)
        name = self.path.rsplit("/", 1)[1]
        logs = []
        if is_dirty(self._old):
            places = [tree.any_case(self.path + end) for end in _LOGS]
            logs = [tree.read(place, LOG_BYTES_MAX) for place in places if place is not None]
        recovered = recover(self._old, logs, printable(self.path))
        self.entries, self.unclean = recovered.entries, recovered.unclean
        self.hive = Hive(recovered.data, name, writable=writable)

    def close(self) -> None:
        """End the child that has it. May be called twice."""
        self.hive.close()

    def save(self, edits: Edits) -> None:
        """Write what differs, and record it; nothing when nothing was changed.

        Raises:
            GuestError: As Hive.save; the file system is full, or its driver died.
        """
        if not self.hive.records:
            return
        new = self.hive.save()
        if len(new) < len(self._old):
            raise GuestError(
                f"{printable(self.path)} would become shorter: {len(new)} bytes",
                "libhivex wrote another hive than it should have: report this",
            )
        for offset, end in differing_runs(self._old, new):
            edits.tree.write(self.path, new[offset:end], offset)
        self._old = new
        if self.entries:
            self._record(edits, "its transaction logs applied", "", f"{self.entries} entries")
        if self.unclean:
            edits.warn(
                f"{self.path} was not closed cleanly and its logs hold nothing for it: "
                "it was taken as it is"
            )
        for what, before, after in self.hive.records:
            self._record(edits, what, before, after)
        self.hive.records.clear()
        self.entries, self.unclean = 0, False

    def _record(self, edits: Edits, what: str, before: str, after: str) -> None:
        edits.changes.append(
            Change(
                file=printable(self.path),
                what=printable(what),
                before=printable(before),
                after=printable(after),
            )
        )


def differing_runs(old: bytes, new: bytes) -> list[tuple[int, int]]:
    """Where the new bytes differ from the old: (start, end) of runs of whole blocks."""
    runs: list[tuple[int, int]] = []
    old_view, new_view = memoryview(old), memoryview(new)
    for offset in range(0, len(new), _BLOCK):
        end = min(offset + _BLOCK, len(new))
        if old_view[offset:end] == new_view[offset:end]:
            continue
        if runs and runs[-1][1] == offset:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((offset, end))
    return runs
