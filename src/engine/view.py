"""The disks of a replica as of a restore point, to be read while replication goes on.

A long-term point is shown by chains of its own. Any other is read through the journals:
each is opened beside its writer, with a block map of the point in memory, so nothing is
written, the shown root belongs to failovers, and any number of points can be seen at once.

What is read is exact, or is an error. After each read the native side looks whether a
destage has got in its way (rp_journal_view). Destages keep away while anybody looks
(viewers.py), except for one that is under way already, or where the journals would grow
over their limit. Then a thread opens what shows the point again and the read goes on there;
only when the point itself had to make room does the view end, with NotFoundError.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import viewers
from ._native import Dir, Disk, Swap
from .chains import links_of
from .closing import Closing
from .disk import OpenDisk, open_disk
from .errors import Error, LockedError, NotFoundError, StateError
from .journal import OpenJournal, journal_names, open_journal
from .manifest import DiskEntry, Manifest
from .points import Point
from .replica import Replica

if TYPE_CHECKING:
    from ._native import File

LOCK_SECONDS = 5.0  # an ingest or an operation has the replica's lock
PATIENCE_MS = 30_000  # of a read whose view has to be opened again
_LOOK_MS = 500
_OPEN_ATTEMPTS = 5  # while segments are being given back
# Operations that take nothing away from what a point is read from.
_READ_BESIDE = ("failover", "undo", "repoint", "failback", "switch", "undo failback")
_Opened = OpenDisk | OpenJournal


class OpenView:
    """One disk at a restore point. Belongs to its View.

    Args:
        opened: What shows it.
        again: Opens that again where the base has changed; None: it never does.
    """

    def __init__(
        self,
        name: str,
        opened: _Opened,
        again: Callable[[], _Opened] | None,
    ) -> None:
        self.name = name
        self.error: Error | None = None  # why it shows nothing any more
        self._opened: _Opened | None = opened
        self._swap: Swap | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if again is not None:
            self._swap = Swap(native_of(opened))
            self._swap.be_patient(PATIENCE_MS)
            self._thread = threading.Thread(
                target=self._follow, args=(self._swap, again), name=f"view {name}", daemon=True
            )
            self._thread.start()

    @property
    def reading(self) -> Disk:
        """The native disk; nobody may be in it when the view is closed."""
        if self._opened is None:
            raise StateError(f"the view of disk {self.name} is closed", "open it again")
        return self._swap or native_of(self._opened)

    @property
    def size_bytes(self) -> int:
        return self.reading.size_bytes

    def pread(self, length: int, offset: int) -> bytes:
        """Return length bytes from offset.

        Raises:
            NotFoundError: The point is gone: the journals needed its room.
        """
        try:
            return self.reading.pread(length, offset)
        except StateError:
            if self.error is None:
                raise
            raise self.error from None

    def _follow(self, swap: Swap, again: Callable[[], _Opened]) -> None:
        while not self._ended.is_set():
            if not swap.wanted(_LOOK_MS):
                continue
            try:
                fresh = again()
            except LockedError:  # in a moment, then
                continue
            except Error as error:
                self.error = error
                swap.be_patient(0)
                return
            before, self._opened = self._opened, fresh
            swap.put(native_of(fresh))
            if before is not None:
                before.close()

    def close(self) -> None:
        """Let it go. May be called twice."""
        self._ended.set()
        if self._swap is not None:
            self._swap.be_patient(0)
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()  # it may just be opening again
        opened, self._opened, self._swap = self._opened, None, None
        if opened is not None:
            opened.close()


def native_of(opened: _Opened) -> Disk:
    return opened.reading if isinstance(opened, OpenDisk) else opened.disk


class View(Closing):
    """A restore point that is being looked at. Made by ``view``; a context manager."""

    def __init__(self, directory: Dir, wanted: Point) -> None:
        self._directory = directory
        self.disks: dict[str, OpenView] = {}  # by name, in the manifest's order
        self._lock: File | None = viewers.register(directory)
        try:
            with (
                Replica.open(directory.path, directory.io) as replica,
                replica.locked(LOCK_SECONDS) as manifest,
            ):
                require_readable(manifest)
                self.point = choose(replica, wanted)
                for entry in manifest.disks:
                    self.disks[entry.name] = self._open(manifest, entry)
        except BaseException:
            self.close()
            raise

    def _open(self, manifest: Manifest, entry: DiskEntry) -> OpenView:
        opened = open_at(self._directory, manifest, entry, self.point)
        if isinstance(opened, OpenDisk):
            return OpenView(entry.name, opened, None)
        return OpenView(entry.name, opened, lambda: self._open_again(entry.name))

    def _open_again(self, name: str) -> _Opened:
        with (
            Replica.open(self._directory.path, self._directory.io) as replica,
            replica.locked(LOCK_SECONDS) as manifest,
        ):
            require_readable(manifest)
            try:
                return open_at(self._directory, manifest, manifest.disk(name), self.point)
            except NotFoundError:
                raise NotFoundError(
                    f"{replica.name} does not keep restore point {self.point.id} any more: "
                    "the journals needed its room",
                    "look at a newer one, or give them more: rollpoint replica set --journal-limit",
                ) from None

    def close(self) -> None:
        """Let the disks go; nobody may be reading them. May be called twice."""
        for disk in self.disks.values():
            disk.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()


def view(replica: Replica, wanted: Point | str = "latest") -> View:
    """Look at a restore point, read only, whatever else is done with the replica.

    Args:
        wanted: A point of the replica, or what Points.find takes.

    Raises:
        NotFoundError, GapError, UsageError: There is no such point.
        StateError: It is no replica (any more), or its bases are half rewritten.
        LockedError: An operation is going on.
        DamagedError, StorageError: A file is damaged or missing.
    """
    replica.refresh()
    require_readable(replica.manifest)
    point = choose(replica, wanted)  # before anything is left in the directory
    return View(replica.directory, point)


def require_readable(manifest: Manifest) -> None:
    """Refuse a replica whose points cannot be read, or not any more.

    Raises:
        StateError: It says what leads out of that.
    """
    operation = manifest.operation
    if manifest.state == "Permanent" or any(disk.journal is None for disk in manifest.disks):
        raise StateError(
            f"replica {manifest.name} has no restore points: its state is {manifest.state}",
            "look at its disks: rollpoint disk mount",
        )
    if operation is not None and operation.kind not in _READ_BESIDE:
        raise StateError(
            f"{operation.kind} of replica {manifest.name} was begun at {operation.started} "
            "and has not ended",
            "rollpoint resume finishes it or rolls it back",
        )


def choose(replica: Replica, wanted: Point | str) -> Point:
    """The point that is wanted, if it is kept.

    Raises:
        NotFoundError, GapError, UsageError: There is no such point, or not any more.
    """
    points = replica.points
    point = points.find(wanted) if isinstance(wanted, str) else points.by_id(wanted.id)
    manifest = replica.manifest
    if point.id < manifest.horizon and manifest.long_term(point.id) is None:
        raise NotFoundError(
            f"{manifest.name} does not keep restore point {point.id} any more",
            f"the oldest that its journals keep is {manifest.horizon}",
        )
    return point


def open_at(directory: Dir, manifest: Manifest, entry: DiskEntry, point: Point) -> _Opened:
    """What shows a disk at the point: a chain, or the journal. Inside the replica's lock."""
    long_term = manifest.long_term(point.id)
    if long_term is not None:
        return open_disk(f"{directory.path}/{long_term.links[entry.name]}", io=directory.io)
    for attempt in range(1, _OPEN_ATTEMPTS + 1):
        opened = open_journal(
            f"{directory.path}/{journal_names(entry.name).log}",
            f"{directory.path}/{entry.below}",
            io=directory.io,
        )
        try:
            opened.native.view(point.id)
            return opened
        except BaseException as error:
            opened.close()
            if not isinstance(error, StateError) or attempt == _OPEN_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def disk_of(replica: Replica, file: str) -> str | None:
    """Name of the disk that a file of the replica belongs to; None: it is an overlay, or another's.

    Args:
        file: Its name in the replica's directory.
    """
    for disk in replica.manifest.disks:
        names = {disk.journal, journal_names(disk.name).log, *links_of(replica.manifest, disk)}
        if file in names:
            return disk.name
    return None
