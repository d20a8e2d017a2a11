"""A child that is no program yet has its parent's locks: that is waited for, and no more."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rollpoint import _native, locks, timers, trial_places
from rollpoint.errors import LockedError
from rollpoint.records import Timer


@contextmanager
def beside() -> Iterator[None]:
    """Another thread of this process lives."""
    ending = threading.Event()
    thread = threading.Thread(target=ending.wait)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


@contextmanager
def held_by_a_child(directory: _native.Dir, seconds: float) -> Iterator[_native.File]:
    """The lock of a file that was closed here, which a child still has for so long."""
    file = directory.open("file", _native.OPEN_WRITE | _native.OPEN_CREATE, 0o600)
    file.lock()
    child = os.fork()
    if child == 0:
        threading.Event().wait(seconds)
        os._exit(0)
    file.close()
    again = directory.open("file", _native.OPEN_WRITE)
    try:
        yield again
    finally:
        again.close()
        os.waitpid(child, 0)


def test_the_lock_of_a_child_that_begins_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = _native.Io.posix().open_dir(str(tmp_path))
    with held_by_a_child(directory, 0.05) as file:
        with monkeypatch.context() as alone:  # then nobody begins a child: it is another's lock
            alone.setattr(threading, "active_count", lambda: 1)
            with pytest.raises(LockedError):
                locks.patiently(file.lock)
        with beside():
            locks.settled([str(tmp_path / "file")])
            locks.patiently(file.lock)
            locks.settled([str(tmp_path / "file"), str(tmp_path / "missing")])  # given up


def test_a_lock_that_somebody_keeps_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "CHILD_SECONDS", 0.01)
    directory = _native.Io.posix().open_dir(str(tmp_path))
    file = directory.open("file", _native.OPEN_WRITE | _native.OPEN_CREATE, 0o600)
    file.lock()
    other = directory.open("file", _native.OPEN_WRITE)
    with beside(), pytest.raises(LockedError):
        locks.patiently(other.lock)


def test_whoever_only_looks_keeps_nobody_from_a_test_or_a_timer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = _native.Io.posix().open_dir(str(tmp_path))
    timer = Timer(action="undo", due="", operation=str(uuid.UUID(int=1)), armed="")
    places: dict[str, Callable[[], object]] = {
        f"tests/t/{trial_places.USE_LOCK}": lambda: trial_places.used(directory, "t").__enter__(),
        f"tests/t/{trial_places.DISKS_LOCK}": lambda: trial_places.serve(
            trial_places.open_place(directory, "t")
        ),
        f"run/timer-{timer.operation}.lock": lambda: timers._lock(directory, timer),
    }
    trial_places.make(directory, "t").close()
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    for name, take in places.items():
        folder = directory.io.open_dir(str((tmp_path / name).parent))
        looking = folder.open(Path(name).name, _native.OPEN_WRITE | _native.OPEN_CREATE, 0o600)
        looking.lock(exclusive=False)
        monkeypatch.setattr(locks, "_sleep", lambda _, looking=looking: looking.close())
        assert take() is not None
