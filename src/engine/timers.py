"""What ends a failover by itself: undo, or permanent, when its time has come.

The timer is a moment in the manifest (`recovered.timer`), made durable together with the end
of the failover. A process of its own waits for it, writes to `run/timer.log`, and then does
what `rollpoint undo` or `permanent` does, under the timer's operation id: however many
processes wait, it happens once. A host that goes down takes the process along; the timer stays
in the manifest, `rollpoint resume` and `rollpoint timer` start another process, and
`rollpoint replica show` says so where it is overdue.

The process waits on the host's boot clock, from the moment at which it began: somebody who
sets the clock of the host does not bring the end of a failover nearer.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Callable

from . import audit, locks
from ._native import OPEN_CREATE, OPEN_WRITE, Dir, File
from .errors import Error, ExistsError, LockedError, NotFoundError, StateError
from .manifest import RUN_DIRECTORY, TIMER_LOG_NAME, Manifest, Operation
from .points import now_text
from .records import Timer
from .replica import Replica
from .units import format_duration, format_time, parse_time

SECONDS_MIN = 1.0
LOOK_SECONDS = 5.0  # how soon a cancelled timer's process knows
BUSY_SECONDS = 600.0  # how long another operation is waited for, when the time has come


def boot_seconds() -> float:
    """A clock that nobody sets, and that goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# ---- in the manifest ----


def begin(manifest: Manifest, operation: Operation) -> None:
    """A failover ends now: its timer runs from this moment. The caller saves."""
    recovered = manifest.recovered
    if not operation.auto or recovered is None:
        return
    end(manifest, "another is armed")
    now = time.time_ns()
    recovered.timer = Timer(
        action=operation.auto,
        due=format_time(now + int(operation.auto_seconds * 1e9)),
        operation=str(uuid.uuid4()),
        armed=format_time(now),
    )
    timer = recovered.timer
    audit.note(manifest, "timer", timer.operation, f"armed: {timer.action} at {timer.due}")


def end(manifest: Manifest, why: str) -> Timer | None:
    """There is no timer any more. The caller saves. Returns the one that there was."""
    recovered = manifest.recovered
    timer = None if recovered is None else recovered.timer
    if recovered is not None and timer is not None:
        recovered.timer = None
        told = f"cancelled: {timer.action} at {timer.due}; {why}"
        audit.note(manifest, "timer", timer.operation, told)
    return timer


def arm(replica: Replica, action: str, seconds: float) -> Timer:
    """Give a replica that is failed over a timer, in the place of one that it has.

    Raises:
        StateError: It is not failed over.
    """
    with replica.locked() as manifest:
        replica.need_state("Failover", doing="set a timer of {}")
        wish = Operation(
            id="", kind="failover", started=now_text(), found_state="Failover", steps=[],
            auto="permanent" if action == "permanent" else "undo", auto_seconds=seconds,
        )  # fmt: skip
        begin(manifest, wish)
        replica.save(sync_audit=True)
        assert manifest.recovered is not None
        assert manifest.recovered.timer is not None
        return manifest.recovered.timer


def cancel(replica: Replica, reason: str = "") -> Timer | None:
    """Take the timer away. None: there was none."""
    with replica.locked() as manifest:
        timer = end(manifest, reason or "asked for")
        if timer is not None:
            replica.save(sync_audit=True)
        return timer


def of(manifest: Manifest) -> Timer | None:
    """The timer of a replica, if it has one."""
    return None if manifest.recovered is None else manifest.recovered.timer


def seconds_left(timer: Timer) -> float:
    """Until it is due; negative: since."""
    return (parse_time(timer.due) - time.time_ns()) / 1e9


def show(directory: Dir, manifest: Manifest) -> dict[str, object] | None:
    """What `replica show` says of it."""
    timer = of(manifest)
    if timer is None:
        return None
    left = seconds_left(timer)
    return {
        "action": timer.action,
        "due": timer.due,
        "operation": timer.operation,
        "seconds_left": left,
        "overdue": left < 0,
        "waiting": is_waited_for(directory, timer),
    }


def sentence(facts: dict[str, object]) -> str:
    """The same for people."""
    left = facts["seconds_left"]
    assert isinstance(left, float)
    told = f"{facts['action']} by itself at {facts['due']}, in {format_duration(left)}"
    if facts["overdue"]:
        told = f"{facts['action']} was due at {facts['due']}, {format_duration(-left)} ago"
    if not facts["waiting"]:
        told += "; NO PROCESS WAITS FOR IT: rollpoint timer starts one"
    return told


# ---- the process that waits ----


def _lock(directory: Dir, timer: Timer) -> File:
    """The lock of who waits for that timer.

    Raises:
        LockedError: Somebody waits.
    """
    with contextlib.suppress(ExistsError):
        directory.make_dir(RUN_DIRECTORY)
    folder = directory.io.open_dir(f"{directory.path}/{RUN_DIRECTORY}")
    try:
        file = folder.open(_lock_name(timer), OPEN_WRITE | OPEN_CREATE, 0o600)
    finally:
        folder.close()
    try:
        locks.within(file.lock, locks.LOOK_SECONDS)
    except BaseException:
        file.close()
        raise
    return file


def _lock_name(timer: Timer) -> str:
    return f"timer-{uuid.UUID(timer.operation)}.lock"


def is_waited_for(directory: Dir, timer: Timer) -> bool:
    """Whether a process waits for it."""
    path = f"{directory.path}/{RUN_DIRECTORY}"
    try:
        folder = directory.io.open_dir(path)
    except NotFoundError:
        return False
    try:
        file = folder.open(_lock_name(timer))
    except NotFoundError:
        return False
    finally:
        folder.close()
    try:
        file.lock(exclusive=False)
    except LockedError:
        return True
    finally:
        file.close()
    return False


def start(replica: Replica) -> int | None:
    """See that a process waits for the replica's timer. Its id; None: none is needed.

    Raises:
        Error: It cannot be started.
    """
    timer = of(replica.manifest)
    if timer is None or is_waited_for(replica.directory, timer):
        return None
    tried = replica.manifest.remembered(timer.operation)
    if tried is not None and tried.outcome != "done":
        timer = _again(replica)
        if timer is None:
            return None
    run = replica.file(RUN_DIRECTORY)
    try:
        os.makedirs(run, 0o700, exist_ok=True)
        log = os.path.join(run, TIMER_LOG_NAME)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "rollpoint", "timer", replica.path, "--wait", timer.operation],
            {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
    except OSError as error:
        raise StateError(
            f"the timer is armed, and no process could be started that waits for it: {error}",
            f"start it with: rollpoint timer {replica.path}",
        ) from None


def _again(replica: Replica) -> Timer | None:
    """What it is for was tried, and failed: it is tried again, under another id."""
    with replica.locked() as manifest:
        timer = of(manifest)
        if timer is not None:
            former, timer.operation = timer.operation, str(uuid.uuid4())
            audit.note(manifest, "timer", timer.operation, f"tried again, after {former}")
            replica.save()
        return timer


def wait(
    replica: Replica,
    operation_id: str,
    act: Callable[[Timer], object],
    *,
    clock: Callable[[], float] = boot_seconds,
    sleep: Callable[[float], object] = time.sleep,
) -> str:
    """Wait until a timer is due and do what it is for. Returns what came of it.

    Args:
        act: Does it. While another operation goes on it is tried again.

    Raises:
        LockedError: Somebody else waits for it; or another operation has not ended.
        Error: What act raised.
    """
    replica.refresh()
    timer = of(replica.manifest)
    if timer is None or timer.operation != operation_id:
        return "it was cancelled"
    lock = _lock(replica.directory, timer)
    try:
        due = clock() + max(0.0, seconds_left(timer))
        while (left := due - clock()) > 0:
            sleep(min(left, LOOK_SECONDS))
            if _is_over(replica, operation_id):
                return "it was cancelled"
        while True:
            try:
                if _is_over(replica, operation_id):
                    return "it was cancelled"
                act(timer)
                return f"done: {timer.action}"
            except LockedError:
                if clock() - due > BUSY_SECONDS:
                    raise
                sleep(LOOK_SECONDS)
    finally:
        _remove_lock(replica.directory, timer)
        lock.close()


def _is_over(replica: Replica, operation_id: str) -> bool:
    replica.refresh()
    timer = of(replica.manifest)
    return timer is None or timer.operation != operation_id


def _remove_lock(directory: Dir, timer: Timer) -> None:
    with contextlib.suppress(Error):
        folder = directory.io.open_dir(f"{directory.path}/{RUN_DIRECTORY}")
        folder.unlink(_lock_name(timer))
        folder.close()

