"""A replica: a directory with a manifest, bases and journals. Open it, ask it, lock it.

Upstream: the manifest, journals and points. Downstream: ingest and the operations,
which change a replica only inside `locked()`. What makes, fills and removes a replica
is in provision.py.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import structs

from . import _native, audit, below, control, rpo
from . import manifest as manifests
from .closing import Closing
from .errors import Error, LockedError, NotFoundError, StateError, UsageError
from .journal import GRAIN_BYTES, SEGMENT_BYTES
from .journals import Journals
from .manifest import Manifest, Retention
from .points import Points

_POLL_SECONDS = 0.02
# An ingest has a replica's lock for moments, to save a note: that is no other operation.
BRIEF_SECONDS = 0.25

# What to do about a replica in that state; the second half of a refusal.
_WAYS_ON = {
    "Ready": "Ready means that it is not failed over, so there is nothing to end: "
    "rollpoint failover begins one",
    "Processing": "an operation was cut short: rollpoint resume",
    "Failover": "end the failover first: rollpoint undo, or rollpoint permanent; "
    "rollpoint failover --to POINT goes to another restore point",
    "ReadyToSwitch": "rollpoint failback switch goes on with the failback, and rollpoint "
    "failback undo gives it up",
    "Failback": "rollpoint failback commit ends the failback, and rollpoint failback undo "
    "takes it back",
    "Failed": "see its error with rollpoint replica show, then rollpoint resume or undo",
    "Permanent": "it is no replica any more: use its base disks, they are ordinary disks",
}


class Replica(Closing):
    """An open replica. `manifest` is what the last look at it, or our own last save, said."""

    def __init__(self, directory: _native.Dir, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self.warnings: list[str] = []  # what went wrong beside the operation that ended last
        self._lock: _native.File | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], io: _native.Io | None = None) -> Replica:
        """Open the replica in a directory.

        Raises:
            NotFoundError: There is no directory, or no replica in it.
            FormatError, UnsupportedError, DamagedError: Its manifest cannot be used.
        """
        directory = (io or _native.Io.posix()).open_dir(manifests.place_of(path))
        replica = cls(directory, manifests.load(directory))
        if any(disk.below_cid is not None for disk in replica.manifest.disks):
            # A crash left that, or an ingest is at it: then it is done when we have the lock.
            with contextlib.suppress(Error), replica.locked():
                pass
            replica.refresh()
        return replica

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        disks: Sequence[tuple[str, int]],
        *,
        grain_bytes: int = GRAIN_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        retention: Retention | None = None,
        io: _native.Io | None = None,
    ) -> Replica:
        """Make a replica with empty disks in a directory that is missing or empty.

        Args:
            disks: Name and size in bytes of each, a multiple of 512.
            grain_bytes: What the journals log at least; 4096 .. 65536, a power of two.
            segment_bytes: What a log grows by; 64 KiB .. 1 GiB.
            retention: How long restore points are kept; 4 hours without a limit.

        Raises:
            ExistsError: The directory has something in it.
            UsageError: A name, a size or a setting is impossible, or there is no disk.
        """
        from . import provision  # what a failover does not need is not imported for it

        sizes = provision.Sizes(grain_bytes, segment_bytes, retention or Retention())
        return cls(*provision.create(path, disks, sizes, io or _native.Io.posix()))

    @classmethod
    def adopt(
        cls,
        path: str | os.PathLike[str],
        disks: Mapping[str, str | os.PathLike[str]],
        *,
        grain_bytes: int = GRAIN_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        retention: Retention | None = None,
        io: _native.Io | None = None,
    ) -> Replica:
        """Make a replica of VMDKs that are in the directory. Making it changes none of them.

        Args:
            disks: Name of each disk and its file, in that directory.

        Raises:
            ExistsError: There is a replica already.
            FormatError, UnsupportedError, DamagedError: A file cannot be a base.
        """
        from . import provision  # what a failover does not need is not imported for it

        sizes = provision.Sizes(grain_bytes, segment_bytes, retention or Retention())
        return cls(*provision.adopt(path, disks, sizes, io or _native.Io.posix()))

    @property
    def path(self) -> str:
        """Its directory, absolute."""
        return self.directory.path

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def control_path(self) -> str:
        """Where a running ingest listens."""
        return self.file(manifests.CONTROL_NAME)

    def file(self, name: str) -> str:
        """The absolute path of a file of the replica."""
        return os.path.join(self.path, name)

    @contextlib.contextmanager
    def locked(self, wait_seconds: float = BRIEF_SECONDS) -> Iterator[Manifest]:
        """Keep every other operation out, and work on the manifest as it is now.

        Inside another `locked` of the same object it does nothing.

        Raises:
            LockedError: Another operation has had it for wait_seconds.
        """
        if self._lock is not None:
            yield self.manifest
            return
        lock = self.directory.open(
            manifests.LOCK_NAME, _native.OPEN_WRITE | _native.OPEN_CREATE, 0o600
        )
        try:
            _lock_within(lock, wait_seconds, self.path)
            self.manifest = manifests.load(self.directory)
            self._mend()
            self._lock = lock
            yield self.manifest
        finally:
            self._lock = None
            lock.close()

    def _mend(self) -> None:
        """Put right what a crash left between two links of a chain: below.py, chains.py.

        Where that fails, whoever opens the chain says what is wrong with it.
        """
        manifest = self.manifest
        if any(disk.below_cid is not None for disk in manifest.disks):
            with contextlib.suppress(Error):
                below.mend(self.directory, manifest)
        changing = manifest.freezing is not None or manifest.merging is not None
        if changing and manifest.state == "Ready" and manifest.operation is None:
            from . import chains  # a rare need, and a failover's time

            with contextlib.suppress(Error):
                chains.settle(self.directory, manifest)

    def save(self, *, sync_audit: bool = False) -> None:
        """Replace the manifest. Only inside `locked`.

        Args:
            sync_audit: An operation ends: its lines of audit.jsonl are synced, too.
        """
        assert self._lock is not None, "save outside of locked()"
        audit.store(self.directory, self.manifest, sync=sync_audit)

    def need_state(self, *states: str, doing: str) -> None:
        """Refuse unless the replica is in one of these states, with no operation open.

        Args:
            doing: What is wanted, with {} for the replica.

        Raises:
            StateError: It says which state it is in, and what leads out of it.
        """
        state = self.manifest.state
        operation = self.manifest.operation
        doing = doing.format(f"replica {self.name}")
        if operation is not None:
            raise StateError(
                f"cannot {doing}: {operation.kind} {operation.id} was begun "
                f"at {operation.started} and has not ended",
                "rollpoint resume finishes it or rolls it back",
            )
        if state not in states:
            raise StateError(
                f"cannot {doing}: its state is {state}", _WAYS_ON[state]
            )

    def is_forced(self, force_name: str | None) -> bool:
        """Whether that is the replica's name, which --force wants.

        Raises:
            UsageError: It is another name.
        """
        if force_name is not None and force_name != self.name:
            raise UsageError(
                f"the name {force_name!r} is not that of this replica, which is {self.name!r}",
                "--force wants the name, so that no other replica is meant by mistake",
            )
        return force_name is not None

    def journals(
        self,
        *,
        writable: bool = False,
        with_bases: bool = False,
        writable_bases: bool = False,
        wait_seconds: float = 0.0,
    ) -> Journals:
        """Open all journals; for writing with the manifest's epoch, inside `locked`."""
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                return Journals(
                    self.directory,
                    self.manifest,
                    writable=writable,
                    epoch=self.manifest.epoch if writable else 0,
                    with_bases=with_bases,
                    writable_bases=writable_bases,
                )
            except LockedError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_POLL_SECONDS)

    @property
    def points(self) -> Points:
        """The restore points that are durable now, with the gaps."""
        if any(disk.journal is None for disk in self.manifest.disks):
            return Points((), self.manifest.gaps, self.name)
        with self.journals() as journals:
            found = journals.points(self.manifest.gaps, self.name, self.manifest.notes)
            return found.with_long_term(self.manifest.frozen)

    def refresh(self) -> None:
        """Read the manifest again."""
        if self._lock is None:
            self.manifest = manifests.load(self.directory)

    def show(self) -> dict[str, object]:
        """What `replica show --json` prints. Paths are absolute."""
        from . import showing

        return showing.show(self.directory, self.manifest)

    def set_retention(self, **settings: object) -> Retention:
        """Change some settings of manifest.Retention; a running ingest takes them up.

        Raises:
            UsageError: A setting is out of its range, or they do not fit together.
            StateError: It is no replica any more.
        """
        from . import retention

        with self.locked() as manifest:
            if manifest.state == "Permanent":
                raise StateError(
                    f"cannot set what replica {self.name} keeps: its state is Permanent",
                    _WAYS_ON["Permanent"],
                )
            manifest.retention = retention.check(
                structs.replace(manifest.retention, **settings),
                [disk.segment_bytes for disk in manifest.disks],
            )
            told = ", ".join(f"{name} {value}" for name, value in settings.items())
            audit.note(manifest, "retention", "", f"what is kept: {told}")
            self.save()
            return manifest.retention

    def rpo(self, points: Points | None = None) -> dict[str, object]:
        """How far back a failover would go now, and would have gone: see rpo.report."""
        points = self.points if points is None else points
        status = None
        with contextlib.suppress(Error):
            status = control.ask(self.control_path, "status", timeout_seconds=5.0)
        newest = points.latest if len(points) else None
        return rpo.report(self.manifest.rpo, self.manifest.gaps, newest, status)

    def seed(
        self,
        images: Mapping[str, str | os.PathLike[str]],
        progress: Callable[[str, int, int], bool] | None = None,
    ) -> None:
        """Copy first images into the bases, before anything was journaled.

        Args:
            images: Disk name and file: raw, or a VMDK that the engine reads.
            progress: Called with disk, bytes done and bytes in all; False stops.
        """
        from . import seed as seeding

        with self.locked():
            self.need_state("Ready", doing="seed {}")
            seeding.seed(self.directory, self.manifest, images, progress)

    def verify(self, progress: Callable[[str, int, int], bool] | None = None) -> dict[str, object]:
        """Read everything again against its checksums, and list damage; see scrub.verify.

        Changes nothing but its own notes, in `.verify.json` and `.digests.json`.
        """
        from . import scrub

        return scrub.verify(self.directory, self.manifest, progress)

    def remove(self, force_name: str | None = None) -> list[str]:
        """Remove what Rollpoint made here. Returns the disks' files that it leaves alone.

        The bases of a Permanent replica, and bases that were adopted, stay.

        Args:
            force_name: The replica's name, to remove it in whatever state it is.

        Raises:
            StateError: It is neither Ready nor Permanent, or has a locked point, and
                is not forced; or test failovers of it are there.
            UsageError: force_name is not its name.
            LockedError: An ingest or an operation has it open.
        """
        from . import provision, retention, trial_places

        forced = self.is_forced(force_name)
        with self.locked():
            if not forced:
                self.need_state("Ready", "Permanent", doing="remove {}")
                retention.refuse_locked(self.manifest, time.time_ns(), "remove {}")
            trial_places.refuse(self.manifest, "remove {}")
            return provision.remove(self.directory, self.manifest)

    def close(self) -> None:
        """Let the directory go."""
        self.directory.close()


def list_replicas(
    path: str | os.PathLike[str], io: _native.Io | None = None
) -> list[dict[str, object]]:
    """The replicas directly under a directory, by name; damaged ones with their error."""
    io = io or _native.Io.posix()
    parent = io.open_dir(manifests.place_of(path))
    found: list[dict[str, object]] = []
    for name in parent.list():
        place = os.path.join(parent.path, name)
        try:
            if not parent.stat(name).is_directory:
                continue
            with Replica.open(place, io) as replica:
                manifest = replica.manifest
                found.append(
                    {
                        "name": manifest.name,
                        "path": place,
                        "id": manifest.id,
                        "state": manifest.state,
                        "disks": len(manifest.disks),
                        "size_bytes": sum(disk.size_bytes for disk in manifest.disks),
                        "error": None,
                    }
                )
        except NotFoundError:
            continue
        except Error as error:
            found.append(
                {"name": name, "path": place, "id": None, "state": None, "disks": None,
                 "size_bytes": None, "error": error.message}
            )  # fmt: skip
    parent.close()
    return found


def _lock_within(lock: _native.File, wait_seconds: float, path: str) -> None:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            lock.lock()
            return
        except LockedError:
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"another operation on the replica {path} is going on",
                    "wait until it has ended",
                ) from None
        time.sleep(_POLL_SECONDS)
