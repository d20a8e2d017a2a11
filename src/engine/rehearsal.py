"""A failover's conversion, tried on disks that are thrown away, while replication goes on.

A restore point is looked at (view.py), throw-away disks go on top, the guest on them is
converted as a failover would, and where it is asked for the machine is started from them,
with no wire in its network cards. What came of it is kept with the replica: nobody should
learn in a disaster that a guest cannot be converted. Nothing else of the replica changes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from . import config as configuration
from . import conversion
from .config import Config
from .conversion import Conversion, printable
from .errors import DamagedError, Error, HypervisorError, NotFoundError, ToolMissingError
from .manifest import REHEARSAL_NAME, MachineSettings
from .mount import Mount
from .points import Point, now_text
from .structs import prepared
from .throwaway import Throwaway, nameless_file
from .view import View, view

if TYPE_CHECKING:
    from ._native import Dir
    from .hypervisor.qemu import Qemu
    from .replica import Replica

LIMIT_BYTES = 64 << 20
STAYS_ON_SECONDS = 20.0  # without a marker: a machine that is on for so long has started
CONSOLE_LINES = 20  # of the end, that are kept
LINE_LENGTH_MAX = 300
_POLL_SECONDS = 0.1
# Ends a machine of a process that is no more: its disks are gone with it.
_WATCH = """
import shutil, sys
place, machine = sys.argv[1:3]
sys.path[:] = sys.argv[3:]
sys.stdin.buffer.read()
try:
    from rollpoint.hypervisor.qemu import Qemu
    Qemu(place).kill(machine)
finally:
    shutil.rmtree(place, ignore_errors=True)
"""

OnStep = Callable[[str], object]  # called with what begins


class Boot(msgspec.Struct, kw_only=True):
    """How the start of the converted machine went.

    Attributes:
        reached: Its marker was on the console; or, where none is set, it stayed on.
        said: The line with the marker, or why it is not reached.
        console: The last lines of its serial console, as they may be printed.
    """

    reached: bool
    said: str
    seconds: float
    console: list[str] = []


@prepared
class Rehearsal(msgspec.Struct, kw_only=True):
    """What a rehearsal came to.

    Attributes:
        ok: A failover to that point would come as far as was tried.
        error, hint: Why it would not; "" when it would.
        seconds: All of it, the machine's start included.
        converted: None where it did not come to that, or replica.toml wants none.
        written_bytes: What the conversion, and the machine, wrote.
    """

    time: str
    point: int
    point_time: str
    ok: bool = False
    error: str = ""
    hint: str = ""
    seconds: float = 0.0
    machine: MachineSettings = msgspec.field(default_factory=MachineSettings)
    converted: Conversion | None = None
    boot: Boot | None = None
    written_bytes: int = 0


def rehearse(
    replica: Replica,
    wanted: Point | str = "latest",
    *,
    boot: bool = False,
    scratch_dir: str | None = None,
    on_step: OnStep | None = None,
) -> Rehearsal:
    """Try a failover's conversion, and keep what came of it.

    Args:
        wanted: The point, or what Points.find takes.
        boot: Start the machine too, on this host, without a network.
        scratch_dir: With room for what is written; the one for temporary files by default.
        on_step: Called when a part begins.

    Returns:
        What came of it; also where the guest cannot be converted: see its `ok`.

    Raises:
        NotFoundError, GapError, UsageError: There is no such point; replica.toml is wrong.
        StateError, LockedError: The replica cannot be looked at now.
        ToolMissingError: To start it: QEMU is not installed. Nothing was tried.
        NotFoundError, StorageError: There is no scratch_dir, or nothing can be put there.
    """
    said = configuration.load(replica.directory)
    settings = configuration.machine_of(said, replica.manifest.machine)
    conversion.wanted_on(settings, said)  # what cannot be is told before anything is done
    nameless_file(scratch_dir).close()
    if boot:
        _require_hypervisor()
    tell = on_step or (lambda _: None)
    begun = time.perf_counter()
    tell("look at the restore point")
    with view(replica, wanted) as shown:
        done = Rehearsal(
            time=now_text(),
            point=shown.point.id,
            point_time=shown.point.time,
            machine=settings,
        )
        try:
            _try(shown, said, done, replica.name, boot, scratch_dir, tell)
            done.ok = done.boot is None or done.boot.reached
            if done.boot is not None and not done.ok:
                done.error = done.boot.said
        except Error as error:
            done.error, done.hint = error.message, error.hint
    done.seconds = time.perf_counter() - begun
    store(replica.directory, done)
    return done


def _try(
    shown: View,
    said: Config,
    done: Rehearsal,
    name: str,
    boot: bool,
    scratch_dir: str | None,
    tell: OnStep,
) -> None:
    with contextlib.ExitStack() as stack:
        above = {
            disk: stack.enter_context(Throwaway(below, scratch_dir))
            for disk, below in shown.disks.items()
        }
        with Mount(above) as mount:
            mount.check()
            if said.guest.convert != "never":
                tell("convert")
                wanted = conversion.wanted_on(done.machine, said)
                done.converted = conversion.convert(mount, said, wanted)
                done.converted.point = done.point
            if boot:
                tell("start the machine")
                done.boot = _boot(mount, said, done.machine, name)
            done.written_bytes = sum(disk.written_bytes for disk in above.values())


# ---- the machine ----


def _require_hypervisor() -> None:
    from .hypervisor.qemu import INSTALL_HINT, QEMU_PROGRAM

    if shutil.which(QEMU_PROGRAM) is None:
        raise ToolMissingError(f"{QEMU_PROGRAM} is not installed", INSTALL_HINT)


def _boot(mount: Mount, said: Config, settings: MachineSettings, name: str) -> Boot:
    """Start the machine from the mount's exports, see how far it comes, and end it."""
    from .hypervisor.base import Drive
    from .machines import machine

    id = f"rehearsal-{os.getpid()}"
    begun = time.perf_counter()
    with _hypervisor(id) as hypervisor:
        drives = [Drive(mount.socket_path, "nbd", disk) for disk in mount.disks]
        hypervisor.start(machine(settings, said, drives, id=id, name=name, network="none"))
        try:
            reached, line = True, _wait(hypervisor, id, settings)
        except HypervisorError as error:
            reached, line = False, error.message
        console = hypervisor.console(id).splitlines()[-CONSOLE_LINES:]
        hypervisor.power_off(id)
    return Boot(
        reached=reached,
        said=printable(line, 4 * LINE_LENGTH_MAX),
        seconds=time.perf_counter() - begun,
        console=[printable(text, LINE_LENGTH_MAX) for text in console],
    )


def _wait(hypervisor: Qemu, id: str, settings: MachineSettings) -> str:
    """What tells that it has started.

    Raises:
        HypervisorError: It has not.
    """
    if settings.marker is not None:
        return hypervisor.wait_for(id, settings.marker, settings.timeout_seconds)
    deadline = time.monotonic() + STAYS_ON_SECONDS
    while time.monotonic() < deadline:
        if hypervisor.status(id) == "off":
            raise HypervisorError("it went off, and no marker is set that tells why")
        time.sleep(_POLL_SECONDS)
    return f"on for {STAYS_ON_SECONDS:g} s; set a marker in replica.toml to know more"


@contextlib.contextmanager
def _hypervisor(id: str) -> Iterator[Qemu]:
    """QEMU with its files in a directory of its own. However this process ends, both go."""
    from .hypervisor.qemu import Qemu

    place = tempfile.mkdtemp(prefix="rollpoint-rehearsal-")
    try:
        watch = subprocess.Popen(
            [sys.executable, "-c", _WATCH, place, id, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except BaseException:
        os.rmdir(place)
        raise
    try:
        yield Qemu(place)
    finally:
        assert watch.stdin is not None
        watch.stdin.close()
        watch.wait()


# ---- kept with the replica ----


def store(directory: Dir, done: Rehearsal) -> None:
    """Keep it: rehearsal.json."""
    data = msgspec.json.format(msgspec.json.encode(done), indent=2) + b"\n"
    directory.replace(REHEARSAL_NAME, data)


def load(directory: Dir) -> Rehearsal | None:
    """The newest one; None: there was none.

    Raises:
        DamagedError: The file is not what was written.
    """
    try:
        data = directory.read(REHEARSAL_NAME, LIMIT_BYTES)
    except NotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=Rehearsal)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{directory.path}/{REHEARSAL_NAME}: {error}", "remove it") from None
