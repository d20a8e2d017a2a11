"""Starting, asking and ending the process that holds an appliance (appliance_worker.py).

It runs under bubblewrap: no network, no capabilities, process, mount, user and IPC
namespaces of its own, nothing of this host's files but /usr, Python and the appliance,
all of them read-only. It has no path to the disks either: it is handed connections.
It ends when its client goes away, killed or not, and its process namespace with it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import Error, GuestError, NotFoundError, PathError, ToolMissingError
from . import appliance_guestfs, kvm
from .appliance_messages import HungUpError, Message, receive, send

LAUNCH_SECONDS = 300.0
CALL_SECONDS = 120.0
END_SECONDS = 30.0
BUILD_SECONDS = 600.0
WORDS_MAX = 800  # of what a process said before it died
# What is loaded at the launch for each kind of volume, so that no mount waits for it.
MODULES = {
    "xfs": ("xfs",),
    "btrfs": ("btrfs",),
    "ntfs": ("fuse",),
    "vfat": ("vfat", "nls_cp437", "nls_utf8"),
    "exfat": ("exfat",),
    "lvm": ("dm-mod",),
}
_INSIDE = "/appliance"
_PARTS = ("kernel", "initrd", "root")
_BOOTSTRAP = """
import sys, types
sys.path[1:1] = [{site!r}]
for name, path in (("rollpoint", ""), ("rollpoint.access", {access!r})):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [path]
from rollpoint.access.appliance_worker import main
main()
"""
_PACKAGES = {
    "bwrap": "bubblewrap",
    "supermin": "supermin",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
}
_INSTALL = "apt-get install --no-install-recommends"


class Missing(NamedTuple):
    """Something that an appliance needs and this host lacks."""

    what: str
    package: str

    def __str__(self) -> str:
        return f"{self.what} is missing: {_INSTALL} {self.package}"


@functools.cache
def _library() -> bool:
    try:
        appliance_guestfs.load()
    except OSError:
        return False
    return True


def missing() -> Missing | None:
    """The first thing that an appliance needs and this host lacks."""
    if not _library():
        return Missing(appliance_guestfs.LIBRARY, "libguestfs0")
    for program in ("bwrap", f"qemu-system-{platform.machine()}", "qemu-img"):
        if shutil.which(program) is None:
            return Missing(program, _PACKAGES.get(program, "qemu-system"))
    place = _place()
    if place is None:
        return Missing("libguestfs's supermin.d", "libguestfs0")
    if _is_fixed(place):
        return None
    if shutil.which("supermin") is None:
        return Missing("supermin", "supermin")
    if not _kernels():
        return Missing("a kernel with its modules for the appliance", "linux-image-cloud-amd64")
    return None


def _place() -> Path | None:
    """Where libguestfs has its appliance, or what it is made of."""
    machine = f"/usr/lib/{platform.machine()}-linux-gnu/guestfs"
    told = os.environ.get("LIBGUESTFS_PATH", "").split(":")
    for name in [*filter(None, told), machine, "/usr/lib64/guestfs", "/usr/lib/guestfs"]:
        place = Path(name)
        if _is_fixed(place) or (place / "supermin.d").is_dir():
            return place
    return None


def _is_fixed(place: Path) -> bool:
    return (place / "README.fixed").exists()


def _kernels() -> list[Path]:
    """Kernels that supermin would take: with modules of theirs."""
    found = [
        path
        for path in Path("/boot").glob("vmlinu[xz]-*")
        if Path("/lib/modules", path.name.partition("-")[2]).is_dir()
    ]
    return found or list(Path("/lib/modules").glob("*/vmlinuz"))


def build() -> Path:
    """The appliance's kernel, initrd and root; built when it is missing or older than the host.

    It is the one that libguestfs itself would build for this user, in the same place.

    Raises:
        ToolMissingError: Something is missing for it.
        GuestError: supermin failed.
    """
    lacking = missing()
    if lacking is not None:
        raise ToolMissingError(f"{lacking.what} is missing", f"{_INSTALL} {lacking.package}")
    place = _place()
    assert place is not None
    if _is_fixed(place):
        return place
    folder = Path("/var/tmp", f".guestfs-{os.geteuid()}")
    folder.mkdir(mode=0o755, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise GuestError(f"{folder} belongs to somebody else", "remove it, or have it removed")
    command = ["supermin", "--build", "--if-newer", "--lock", str(folder / "lock")]
    command += ["--copy-kernel", "-f", "ext2", "--host-cpu", platform.machine()]
    command += [str(place / "supermin.d"), "-o", str(folder / "appliance.d")]
    try:
        done = subprocess.run(command, capture_output=True, timeout=BUILD_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise GuestError(f"supermin did not end within {BUILD_SECONDS:.0f} s") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-WORDS_MAX:]
        raise GuestError(f"building the appliance failed: {said}", "see supermin(1)")
    return folder / "appliance.d"


def _sandbox(appliance: Path, note: int, info: int) -> list[str]:
    """bubblewrap's command line; note: a descriptor with the fixed appliance's mark."""
    command = ["bwrap", "--unshare-all", "--cap-drop", "ALL", "--new-session"]
    command += ["--info-fd", str(info), "--proc", "/proc", "--dev", "/dev"]
    for name in ("/tmp", "/var/tmp", "/run"):
        command += ["--tmpfs", name]
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        command += ["--dev-bind", "/dev/kvm", "/dev/kvm"]
    seen = ["/usr", "/etc/ld.so.cache", "/etc/alternatives", sys.base_prefix, _site()]
    seen += [str(Path(__file__).parent)]
    for name in dict.fromkeys(seen):
        command += ["--ro-bind-try", name, name]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/{name}"):
            command += ["--symlink", f"usr/{name}", f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            command += ["--ro-bind", f"/{name}", f"/{name}"]
    for name in _PARTS:
        command += ["--ro-bind", str(appliance / name), f"{_INSIDE}/{name}"]
    return [*command, "--file", str(note), f"{_INSIDE}/README.fixed"]


def _site() -> str:
    import cffi

    return str(Path(cffi.__file__).parent.parent)


def launching(sizes: Sequence[int], kinds: Collection[str], snapshot: bool) -> dict[str, Any]:
    """What a launch on stand-ins of these sizes is asked for with.

    Args:
        kinds: Of volumes that may be opened.
        snapshot: What is written is thrown away.
    """
    return {
        "sizes": list(sizes),
        "snapshot": snapshot,
        "settings": [] if kvm.usable() else ["force_tcg"],
        "modules": [name for kind, names in MODULES.items() if kind in kinds for name in names],
    }


class Process:
    """A running worker, and the connection over which it is asked.

    Args:
        connection: To a worker that somebody else started; None starts one.
        detached: It is to be nobody's child, and is never killed: it may outlive us.
    """

    def __init__(self, connection: socket.socket | None = None, *, detached: bool = False) -> None:
        self._lock = threading.Lock()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - kill() closes it
        self._popen: subprocess.Popen[bytes] | None = None
        self._first = -1  # pidfd of its namespace's first process
        self._detached = detached
        self._dead = ""
        try:
            self.connection = self._start() if connection is None else connection
        except BaseException:
            self._words.close()
            raise

    def _start(self) -> socket.socket:
        appliance = build()
        bootstrap = _BOOTSTRAP.format(site=_site(), access=str(Path(__file__).parent))
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LC_ALL": "C.UTF-8"}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        info, told = os.pipe()
        with theirs, open(info, "rb") as info_file, tempfile.TemporaryFile() as note:
            descriptors = (theirs.fileno(), note.fileno(), told)
            command = ["setsid", "--fork"] if self._detached else []
            command += _sandbox(appliance, note.fileno(), told)
            command += [os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", bootstrap]
            command.append(str(theirs.fileno()))
            try:
                self._popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._words,
                    stderr=self._words,
                    env=environment,
                    pass_fds=descriptors,
                    cwd="/",
                )
            except OSError as error:
                ours.close()
                raise ToolMissingError(
                    f"bwrap cannot be started: {error}", f"{_INSTALL} bubblewrap"
                ) from error
            finally:
                os.close(told)
            theirs.close()
            # A sandbox that could not be made tells nothing, and is heard of at the first call.
            with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
                self._first = os.pidfd_open(int(json.load(info_file)["child-pid"]))
            if self._detached:
                self._popen.wait()
                self._popen = None
        return ours

    def ask(
        self,
        call: str,
        fields: dict[str, Any],
        data: bytes = b"",
        descriptors: Sequence[int] = (),
        seconds: float = CALL_SECONDS,
    ) -> tuple[dict[str, Any], bytes]:
        """One call of the worker's.

        Raises:
            PathError, NotFoundError, GuestError: As it says, or it is dead. One that does
                not answer in time is killed.
        """
        with self._lock:
            self.send(call, fields, data, descriptors)
            return self.answer(call, seconds)

    def send(
        self, call: str, fields: dict[str, Any], data: bytes, descriptors: Sequence[int]
    ) -> None:
        """The first half of ask."""
        if self._dead:
            raise GuestError(self._dead, "try again: another appliance is launched")
        try:
            self.connection.settimeout(CALL_SECONDS)
            send(self.connection, Message({"call": call, **fields}, data, tuple(descriptors)))
        except HungUpError as error:
            raise self._died(f"the appliance is gone ({call})") from error

    def answer(self, call: str, seconds: float) -> tuple[dict[str, Any], bytes]:
        """The second half of ask."""
        try:
            message = receive(self.connection, seconds)
        except TimeoutError as error:
            raise self._died(f"the appliance did not answer {call} in {seconds:.0f} s") from error
        except HungUpError as error:
            raise self._died(f"the appliance ended during {call}") from error
        said = message.fields
        if "error" not in said:
            return said, message.data
        text, hint = str(said.get("message", "")), str(said.get("hint", ""))
        classes: dict[object, type[Error]] = {"path": PathError, "not-found": NotFoundError}
        raise classes.get(said["error"], GuestError)(f"{text} ({call}, appliance)", hint)

    def _died(self, message: str) -> GuestError:
        self._dead = message
        said = self.kill()
        self._dead = f"{message}: {said}" if said else message
        return GuestError(self._dead, "try again: another appliance is launched")

    def close(self) -> None:
        """Let it sync and end; killed when it does not. May be called twice.

        Raises:
            GuestError: It could not write everything.
        """
        if self._dead:
            return
        try:
            self.ask("end", {}, seconds=END_SECONDS)
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # it has let go of the disks when it is gone
        finally:
            self._dead = self._dead or "the appliance was closed"
            self.kill(END_SECONDS)

    def kill(self, patience_seconds: float = 0.5) -> str:
        """Hang up, which ends it; and make sure. Gives the last words it wrote.

        It does not matter what it is doing. May be called twice.
        """
        self._dead = self._dead or "the appliance was killed"
        self.connection.close()
        if self._first >= 0:
            if not self._has_ended(patience_seconds) and not self._detached:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._first, signal.SIGKILL)
            os.close(self._first)
            self._first = -1
        if self._popen is not None:
            try:
                self._popen.wait(patience_seconds)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
            self._popen = None
        if self._words.closed:
            return ""
        with self._words:
            self._words.seek(max(0, self._words.seek(0, os.SEEK_END) - WORDS_MAX))
            return self._words.read().decode(errors="replace").strip()

    def _has_ended(self, wait_seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._first, select.POLLIN)
        return bool(poll.poll(wait_seconds * 1000))
