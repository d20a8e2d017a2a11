"""The disks of a test failover, for hypervisors that take NBD exports: a process of their own.

It looks at the restore point (view.py), puts disks above that are thrown away at the end,
converts the guest on them, and serves them from then on to the test's machine. Nothing of
the replica is written; replication goes on.

Who starts the test (trials.py) tells it on its input what is wanted, reads what it did line
by line, and is tied to it by that input: where it ends before the manifest says that the
test runs, the process ends as well. Later it ends by SIGTERM, or when no manifest names
the test any more. Killed, it leaves its files
in the test's directory; they are of no use then, and whoever comes by clears them away.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from . import config, control, conversion, trial_places
from ._native import OPEN_CREATE, OPEN_EXCLUSIVE, OPEN_WRITE, Dir
from .closing import Closing
from .errors import Error, HypervisorError, NotFoundError, StorageError
from .manifest import MachineSettings
from .mount import Mount
from .replica import Replica
from .structs import prepared
from .throwaway import Throwaway
from .view import view

if TYPE_CHECKING:
    from .config import Config

Result = TypeVar("Result")

LOG_NAME = "disks.log"
MARK = "rollpoint-test"  # in the command line, before the replica's path and the test's id
END_SECONDS = 20.0
LOOK_SECONDS = 30.0  # so often it looks whether the test is still there
_POLL_SECONDS = 0.01
_LOG_BYTES = 4096
_LINE_BYTES_MAX = 16 << 20
_READ_ATTEMPTS = 50  # of a manifest, while its storage fails
_PROGRAM = """
import sys
sys.path[:] = sys.argv[4:]
from rollpoint.trial_disks import main
main(sys.argv[2], sys.argv[3])
"""


@prepared
class Wish(msgspec.Struct, kw_only=True):
    """What the process is to do: one line on its input."""

    point: int
    settings: MachineSettings
    convert: bool


@prepared
class News(msgspec.Struct, kw_only=True):
    """One line of its output: a step that begins, or has been done; at the end the facts."""

    step: str = ""
    seconds: float | None = None  # None: it begins
    note: str = ""
    error: dict[str, str] | None = None
    facts: trial_places.Facts | None = None


# ---- the process ----


def main(path: str, id: str) -> None:
    """Serve the disks of a test until told to end, or until who starts it has ended."""
    if os.fork():  # nobody's child: it outlives who starts it, and leaves no zombie there
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wish = msgspec.json.decode(sys.stdin.buffer.readline(), type=Wish)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            with Replica.open(path) as replica:
                _serve(replica, id, wish)
        except Error as error:
            _say(News(error=control.error_body(error)))
        except Exception as error:
            _say(News(error=control.error_body(StorageError(f"the disks' process: {error!r}"))))
            raise


def _serve(replica: Replica, id: str, wish: Wish) -> None:
    with contextlib.ExitStack() as stack:
        opened = contextlib.closing(trial_places.open_place(replica.directory, id))
        place = stack.enter_context(opened)
        stack.enter_context(contextlib.closing(trial_places.serve(place)))
        facts = trial_places.Facts(
            host=os.uname().nodename, pid=os.getpid(), socket="", disks=[]
        )
        trial_places.store_facts(place, facts)  # so that it can be ended from here on
        mount = _timed("disks", lambda: _open(replica, wish, place, stack))
        if wish.convert:
            _timed("convert", lambda: _convert(config.load(replica.directory), wish, mount))
        facts.socket, facts.disks = mount.socket_path, list(mount.disks)
        trial_places.store_facts(place, facts)
        _say(News(facts=facts))
        sys.stdin.buffer.read()
        while _is_running(replica, id):
            time.sleep(LOOK_SECONDS)  # a signal ends it


def _open(
    replica: Replica, wish: Wish, place: Dir, stack: contextlib.ExitStack
) -> tuple[Mount, str]:
    shown = stack.enter_context(view(replica, str(wish.point)))
    above = {}
    for name, below in shown.disks.items():
        file_name = trial_places.overlay_name(name)
        file = place.open(file_name, OPEN_WRITE | OPEN_CREATE | OPEN_EXCLUSIVE, 0o600)
        above[name] = stack.enter_context(Throwaway(below, file=file))
    mount = Mount(above)
    stack.callback(mount.abandon)  # the machine may be there still: it is its business
    mount.check()
    return mount, f"{len(above)} disk(s) at restore point {shown.point.id}"


def _convert(said: Config, wish: Wish, mount: Mount) -> tuple[None, str]:
    done = conversion.convert(mount, said, conversion.wanted_on(wish.settings, said))
    return None, done.tell()


def _timed(step: str, action: Callable[[], tuple[Result, str]]) -> Result:
    _say(News(step=step))
    begun = time.perf_counter()
    result, note = action()
    _say(News(step=step, seconds=time.perf_counter() - begun, note=note))
    return result


def _say(news: News) -> None:
    with contextlib.suppress(BrokenPipeError):  # who starts it has ended: that shows elsewhere
        sys.stdout.buffer.write(msgspec.json.encode(news) + b"\n")
        sys.stdout.buffer.flush()


def _is_running(replica: Replica, id: str) -> bool:
    """Whether the manifest says that the test has come to run, and not ended. In doubt it has.

    Where somebody has taken the whole replica away, it has ended.
    """
    for _ in range(_READ_ATTEMPTS):
        try:
            replica.refresh()
            found = [trial for trial in replica.manifest.tests if trial.id == id]
            return bool(found) and found[0].state != "starting"
        except NotFoundError:
            return False
        except Error:
            time.sleep(_POLL_SECONDS)
    return True


# ---- seen from outside ----


class Served(Closing):
    """The process, while a test is started. Closed without `kept`, it ends."""

    def __init__(self, replica: Replica, id: str, place: Dir, wish: Wish) -> None:
        self._log = f"{place.path}/{LOG_NAME}"
        places = [os.path.abspath(place) for place in sys.path]
        with open(self._log, "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, MARK, replica.path, id, *places],
                cwd="/",  # it lives for days: nobody's directory
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        self._input, self._output = process.stdin, process.stdout
        try:
            self._input.write(msgspec.json.encode(wish) + b"\n")
            self._input.flush()
        except BrokenPipeError:
            pass  # it says why
        finally:
            process.wait()

    def news(self) -> News:
        """What it says next.

        Raises:
            Error: What it could not do; or that it ended.
        """
        line = self._output.readline(_LINE_BYTES_MAX)
        if not line.endswith(b"\n"):
            with open(self._log, "rb") as log:
                said = log.read()[-_LOG_BYTES:].decode(errors="replace").strip()
            raise HypervisorError(
                "the process that serves the disks of the test failover ended"
                + (f": {said.splitlines()[-1]}" if said else ""),
                f"look at {self._log}",
            )
        news = msgspec.json.decode(line, type=News)
        if news.error is not None:
            raise control.to_error(news.error)
        return news

    def close(self) -> None:
        """Let go of it: it goes on where the manifest says that the test runs."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._output.close()


def end(directory: Dir, id: str, timeout_seconds: float = END_SECONDS) -> bool:
    """End the process; its disks are gone. False: there was none.

    Raises:
        HypervisorError: It is still there.
    """
    found = False
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + timeout_seconds / 2
        while True:
            # Asked once a round: to ask is to have the lock for a moment, and a child of this
            # process, begun by another thread just then, has it until it is a program.
            if not trial_places.is_served(directory, id):
                return found
            found = True
            facts = trial_places.load_facts(directory, id)  # it may just have begun, and have none
            if facts is not None:
                if facts.host != os.uname().nodename:
                    raise HypervisorError(
                        f"the disks of test failover {id} are served on the host {facts.host}",
                        "end the test there",
                    )
                _signal(facts.pid, signal_number, directory.path, id, deadline)
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_SECONDS)
    raise HypervisorError(
        f"the process that serves the disks of test failover {id} is still there",
        "its storage may hang: look at the host's kernel log",
    )


def _signal(pid: int, number: int, path: str, id: str, deadline: float) -> None:
    """Signal that process, if it is the one that is meant, and wait for its end."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The handle pins the process; only now is it sure whose pid it was.
        if _is_ours(pid, path, id):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        os.close(handle)


def _is_ours(pid: int, path: str, id: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return words[3:6] == [MARK.encode(), os.fsencode(path), os.fsencode(id)]
