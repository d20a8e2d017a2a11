"""The process that holds an appliance: libguestfs, the stand-ins for its disks, QEMU as its child.

It runs in a sandbox (appliance_process.py) and serves one client over one connection:
whoever launched it, or for a warm one the first who connects to the listening socket it
was given. When that client goes away without saying goodbye, the process ends at once, and
with it everything in its process namespace, whatever a call is waiting for.

Nothing here decides anything: which volume is opened, and how, comes from appliance.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import sys
import threading
import time

from .appliance_files import Answer, FileSystem, RefusedError
from .appliance_guestfs import Guestfs, GuestfsError
from .appliance_messages import HungUpError, Message, close_all, receive, send
from .appliance_nbd import StandIns

LOOKS = 3  # at the disks, until their partitions are there
_APPLIANCE = "/appliance"
_SOCKET = "/tmp/disks"
_GONE = select.POLLHUP | select.POLLRDHUP | select.POLLERR


class Worker:
    """One appliance and its one client."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._guestfs = Guestfs()
        self._stand_ins: StandIns | None = None
        self._launch_seconds = 0.0
        self._sizes: list[int] = []
        self._devices: list[str] = []
        self._partitions: dict[tuple[int, int], tuple[int, int]] = {}
        self._mounted: dict[int, FileSystem] = {}
        self._numbers = 0
        self._done = False

    def run(self) -> None:
        """Answer until the client says goodbye."""
        self._watch(self._client)
        while not self._done:
            try:
                message = receive(self._client)
            except HungUpError:
                os._exit(1)
            fields, data = self._answered(message)
            send(self._client, Message(fields, data))
            if message.fields.get("call") == "launch" and message.descriptors:
                if "error" in fields:
                    os._exit(1)
                self._wait_for_client(message.descriptors[0])

    def _watch(self, client: socket.socket) -> None:
        """End everything when the client is gone, even inside a call that hangs."""

        def wait() -> None:
            poll = select.poll()
            poll.register(client, select.POLLRDHUP)
            while not any(event & _GONE for _, event in poll.poll()):
                pass
            if self._client is client and not self._done:
                os._exit(1)

        threading.Thread(target=wait, daemon=True).start()

    def _wait_for_client(self, listening: int) -> None:
        """Warm: the first who connects is the client from now on."""
        with socket.socket(fileno=listening) as listener:
            taker, _ = listener.accept()
        keeper = self._client
        self._client = taker
        self._watch(taker)
        # Which tells it that the appliance was taken; the sandbox has copies of the descriptor.
        with contextlib.suppress(OSError):
            keeper.shutdown(socket.SHUT_RDWR)
        keeper.close()

    def _answered(self, message: Message) -> Answer:
        fields = dict(message.fields)
        try:
            call = str(fields.pop("call"))
            if call in _OF_WORKER:
                return getattr(self, f"_{call}")(message, **fields)  # type: ignore[no-any-return]
            mounted = self._mounted.get(fields.pop("fs"))
            if mounted is None or call not in _OF_FILE_SYSTEM:
                raise RefusedError("guest", "the file system is closed")
            if call in ("write", "replace"):
                fields["data"] = message.data
            answer: Answer = getattr(mounted, call)(**fields)
            return answer
        except RefusedError as error:
            return {"error": error.kind, "message": str(error), "hint": error.hint}, b""
        except GuestfsError as error:
            kind = "not-found" if error.os_errno == errno.ENOENT else "guest"
            return {"error": kind, "message": str(error), "errno": error.os_errno}, b""

    def _launch(
        self,
        message: Message,
        sizes: list[int],
        snapshot: bool,
        settings: list[str],
        modules: list[str],
    ) -> Answer:
        """With a descriptor: it listens there for the client that is to come."""
        started = time.monotonic()
        self._sizes = sizes
        self._stand_ins = StandIns(_SOCKET, sizes)
        self._guestfs.prepare(settings, _APPLIANCE)
        for number in range(len(sizes)):
            self._guestfs.add_export(_SOCKET, str(number), snapshot)
        self._guestfs.launch()
        for name in modules:
            with contextlib.suppress(GuestfsError):  # it is part of the kernel, or missing
                self._guestfs.load_module(name)
        self._devices = self._guestfs.devices()
        if self._devices:  # so that its programs are read and have run when it matters
            self._guestfs.read_partitions_again(self._devices[0])
            self._guestfs.partitions()
        if len(self._devices) != len(sizes):
            raise RefusedError("guest", f"the appliance shows {self._devices} for {sizes}")
        self._launch_seconds = time.monotonic() - started
        return {"seconds": self._launch_seconds}, b""

    def _attach(
        self, message: Message, sizes: list[int], groups: bool, partitions: list[list[int]]
    ) -> Answer:
        """With a descriptor for each disk: a connection to its export.

        partitions: number of the disk and of the partition, offset and length in bytes.
        """
        if self._stand_ins is None or sizes != self._sizes:
            close_all(message.descriptors)
            raise RefusedError("guest", f"it was launched for disks of {self._sizes} bytes")
        started = time.monotonic()
        self._stand_ins.attach([socket.socket(fileno=fd) for fd in message.descriptors])
        wanted = {(disk, number): (offset, length) for disk, number, offset, length in partitions}
        for _ in range(LOOKS):
            for device in self._devices:  # also forgets the zeros that were read before
                self._guestfs.read_partitions_again(device)
            self._partitions = self._guestfs.partitions()
            if wanted.items() <= self._partitions.items():
                break
            self._guestfs.drop_caches()  # a page that was in use just then is kept
        if groups:
            self._guestfs.scan_volume_groups()
        seconds = time.monotonic() - started
        return {"launch_seconds": self._launch_seconds, "seconds": seconds}, b""

    def _open(
        self,
        message: Message,
        disk: int | None,
        name: str,
        offset: int,
        size_bytes: int,
        kind: str,
        drivers: dict[str, list[str]],
        options: str,
        writable: bool,
    ) -> Answer:
        """name: what comes after the disk's; with no disk a path beneath /dev.

        drivers: kind -> driver and options. A kind that is not among them is looked for.
        """
        path = f"/dev/{name}" if disk is None else f"{self._devices[disk]}{name}"
        if disk is not None and name:
            found = self._partitions.get((disk, int(name)))
            if found != (offset, size_bytes):
                raise RefusedError(
                    "guest",
                    f"the appliance's kernel has {found} as offset and size of {path}, "
                    f"not {(offset, size_bytes)}",
                )
        if kind not in drivers:
            kind = self._guestfs.kind(path)
            if kind not in drivers:
                raise RefusedError("guest", f"{path} holds no file system ({kind or 'unknown'})")
        driver, own = drivers[kind]
        self._numbers += 1
        at = f"/volume{self._numbers}"
        try:
            self._guestfs.mount(path, driver, ",".join(filter(None, (options, own))), at)
        except GuestfsError as error:
            raise RefusedError("guest", f"{error}{self._kernel_said(driver)}") from error
        if writable and self._guestfs.free(at).read_only:
            self._guestfs.unmount(at)
            raise RefusedError(
                "guest",
                f"{kind} was mounted read-only by its driver{self._kernel_said(driver)}",
                "it is hibernated, damaged or of a kind that cannot be written",
            )
        self._mounted[self._numbers] = FileSystem(self._guestfs, at, kind)
        return {"fs": self._numbers}, b""

    def _kernel_said(self, driver: str) -> str:
        """The last line that a driver of the appliance's kernel wrote just now."""
        with contextlib.suppress(GuestfsError):
            lines = self._guestfs.kernel_log().splitlines()[-20:]
            about = [line for line in lines if driver in line.lower()]
            if about:
                return f"; its kernel says: {about[-1].partition('] ')[2]}"
        return ""

    def _unmount(self, message: Message, fs: int) -> Answer:
        mounted = self._mounted.pop(fs, None)
        return mounted.close() if mounted is not None else ({}, b"")

    def _end(self, message: Message) -> Answer:
        for mounted in self._mounted.values():
            mounted.close()
        self._mounted = {}
        self._done = True
        try:
            self._guestfs.shut_down()
        finally:
            self._guestfs.close()
        return {}, b""


_OF_WORKER = ("launch", "attach", "open", "unmount", "end")
_OF_FILE_SYSTEM = (
    "lstat",
    "list",
    "read",
    "write",
    "replace",
    "remove",
    "make_directory",
    "make_link",
    "space",
    "sync",
)


def main() -> None:
    """Serve the client whose socket is the descriptor of that number."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Worker(socket.socket(fileno=int(sys.argv[1]))).run()
