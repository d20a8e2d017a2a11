"""Where a test failover keeps what is its own: `tests/<id>/` in the replica's directory.

Two locks lie there, which tell what a record in the manifest cannot: `use.lock` belongs to
whoever starts or ends the test right now, `disks.lock` to the process that serves its disks.
The lock of a process that was killed goes with it; so what nobody holds and is not finished
is a leftover, and whoever takes `use.lock` may clear it away.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import msgspec

from . import locks
from ._native import OPEN_CREATE, OPEN_WRITE, Dir, File
from .errors import (
    DamagedError,
    Error,
    LockedError,
    NotFoundError,
    StateError,
    UsageError,
)
from .manifest import Manifest
from .structs import prepared

ALL_NAME = "tests"
USE_LOCK = "use.lock"
DISKS_LOCK = "disks.lock"
FACTS_NAME = "disks.json"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")


@prepared
class Facts(msgspec.Struct, kw_only=True):
    """Of the process that serves a test's disks: where they are. In disks.json."""

    host: str
    pid: int
    socket: str
    disks: list[str]


def check_id(id: str) -> str:
    """The id, when it can name a test: its directory, and its machine.

    Raises:
        UsageError: It cannot.
    """
    if _ID.fullmatch(id) is None:
        raise UsageError(
            f"{id[:60]!r} cannot name a test failover",
            "use up to 50 letters, digits, dots, underscores and dashes",
        )
    return id


def name_of(id: str) -> str:
    """Of a test's directory, from the replica's."""
    return f"{ALL_NAME}/{check_id(id)}"


def make(directory: Dir, id: str) -> Dir:
    """The directory of a test; one that is there is taken."""
    if not directory.exists(ALL_NAME):
        with contextlib.suppress(Error):  # another test makes it at this moment
            directory.make_dir(ALL_NAME)
        directory.sync()
    all_tests = directory.io.open_dir(f"{directory.path}/{ALL_NAME}")
    try:
        if not all_tests.exists(check_id(id)):
            all_tests.make_dir(id)
            all_tests.sync()
    finally:
        all_tests.close()
    return directory.io.open_dir(f"{directory.path}/{name_of(id)}")


def open_place(directory: Dir, id: str) -> Dir:
    """The directory of a test.

    Raises:
        NotFoundError: There is none.
    """
    return directory.io.open_dir(f"{directory.path}/{name_of(id)}")


@contextlib.contextmanager
def used(directory: Dir, id: str) -> Iterator[Dir]:
    """Nobody else starts, ends or clears away the test meanwhile.

    Raises:
        LockedError: Somebody does.
    """
    place = make(directory, id)
    try:
        lock = place.open(USE_LOCK, OPEN_WRITE | OPEN_CREATE, 0o600)
        try:
            try:
                locks.within(lock.lock, locks.LOOK_SECONDS)
                if not place.exists(USE_LOCK):  # whoever had it has cleared all away
                    raise LockedError("")
            except (LockedError, NotFoundError):
                raise LockedError(
                    f"test failover {id} of {directory.path} is being started, or ended",
                    "wait until that is done",
                ) from None
            yield place
        finally:
            lock.close()
    finally:
        place.close()


def is_used(directory: Dir, id: str) -> bool:
    """Whether somebody starts or ends the test right now."""
    return _is_locked(directory, id, USE_LOCK)


def is_served(directory: Dir, id: str) -> bool:
    """Whether the process that serves its disks is there."""
    return _is_locked(directory, id, DISKS_LOCK)


def serve(place: Dir) -> File:
    """The lock of the process that serves the disks.

    Raises:
        LockedError: There is one.
    """
    file = place.open(DISKS_LOCK, OPEN_WRITE | OPEN_CREATE, 0o600)
    try:
        locks.within(file.lock, locks.LOOK_SECONDS)
    except BaseException:
        file.close()
        raise
    return file


def overlay_name(disk: str) -> str:
    """Of the file that takes what is written to a disk."""
    return f"{disk}.written"


def written_bytes(directory: Dir, id: str) -> int:
    """What a test has written takes so much room."""
    try:
        place = open_place(directory, id)
    except NotFoundError:
        return 0
    total = 0
    try:
        for name in place.list():
            if name.endswith(overlay_name("")):
                with contextlib.suppress(NotFoundError):
                    total += place.stat(name).allocated_bytes
    finally:
        place.close()
    return total


def store_facts(place: Dir, facts: Facts) -> None:
    """Keep them in a test's directory."""
    place.replace(FACTS_NAME, msgspec.json.encode(facts))


def load_facts(directory: Dir, id: str) -> Facts | None:
    """What the process that serves the disks has said of itself; None: nothing.

    Raises:
        DamagedError: The file is not what was written.
    """
    try:
        place = open_place(directory, id)
    except NotFoundError:
        return None
    try:
        return msgspec.json.decode(place.read(FACTS_NAME), type=Facts)
    except NotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(
            f"{place.path}/{FACTS_NAME}: {error}", "end the process that serves the test's disks"
        ) from None
    finally:
        place.close()


def _is_locked(directory: Dir, id: str, name: str) -> bool:
    try:
        place = open_place(directory, id)
    except NotFoundError:
        return False
    try:
        file = place.open(name, OPEN_WRITE)
    except NotFoundError:
        return False
    finally:
        place.close()
    try:
        file.lock()
    except LockedError:
        return True
    finally:
        file.close()
    return False


def purge(directory: Dir, id: str) -> None:
    """Remove the directory of a test with all files. By who uses it, or alone is there."""
    try:
        place = open_place(directory, id)
    except NotFoundError:
        return
    try:
        # The lock goes last: until then nobody else believes that the place is free.
        for name in sorted(place.list(), key=lambda name: name == USE_LOCK):
            with contextlib.suppress(NotFoundError):
                place.unlink(name)
    finally:
        place.close()
    all_tests = directory.io.open_dir(f"{directory.path}/{ALL_NAME}")
    try:
        with contextlib.suppress(NotFoundError):
            all_tests.remove_dir(id)
        all_tests.sync()
    finally:
        all_tests.close()


def present(directory: Dir) -> list[str]:
    """Ids of all tests that have a directory."""
    try:
        all_tests = directory.io.open_dir(f"{directory.path}/{ALL_NAME}")
    except NotFoundError:
        return []
    try:
        return sorted(name for name in all_tests.list() if _ID.fullmatch(name))
    finally:
        all_tests.close()


def remove_all(directory: Dir) -> None:
    """What tests have left, when the replica is removed and has none. Inside its lock."""
    for id in present(directory):
        purge(directory, id)
    with contextlib.suppress(NotFoundError):
        directory.remove_dir(ALL_NAME)
        directory.sync()


def refuse(manifest: Manifest, doing: str) -> None:
    """Nothing is taken from under a test failover.

    Args:
        doing: What is wanted, with {} for the replica.

    Raises:
        StateError: There are tests; it names them.
    """
    if manifest.tests:
        names = ", ".join(trial.id for trial in manifest.tests)
        raise StateError(
            f"cannot {doing.format(f'replica {manifest.name}')}: test failovers of it are "
            f"there: {names}",
            "end them first: rollpoint undo --test all",
        )
