"""A guest's file system behind a cage: base.FileSystem in calls to worker.py."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import quote

import msgspec

from ..errors import GuestError
from ..units import printable
from ..volumes.base import Volume
from .base import READ_BYTES_MAX, Kind, Mode, Space, Stat
from .local import raise_refused, raw
from .sandbox import CALL_SECONDS, Cage

OPEN_SECONDS = 120.0  # a journal may have to be replayed
CLOSE_SECONDS = 120.0
INSIDE = "/run/cage"  # our modules, in the cage
_START = f"import sys; sys.path.insert(0, '{INSIDE}'); from inside.worker import main; main()"
_SOCKET = "/run/nbd.sock"
_HINT = "the volume is damaged, or made to do harm: check it in the guest's system"

_Facts = tuple[Kind, int, int, int, int, int, int, str]


class _Answer(msgspec.Struct):
    error: str = ""
    message: str = ""
    facts: _Facts | None = None
    names: dict[str, _Facts] = {}
    space: tuple[int, int, int | None] = (0, 0, None)


class RemoteFileSystem:
    """A volume that is open in a cage of its own.

    Args:
        socket_path: Of the server that exports it under its name.
        mode: "files" for drivers in user space, "host" for the kernel's.
        subvolume: Of btrfs, for "host".

    Raises:
        GuestError: It cannot be opened, with the driver's words.
    """

    def __init__(
        self,
        socket_path: str,
        volume: Volume,
        mode: Mode,
        *,
        writable: bool,
        subvolume: str = "",
    ) -> None:
        self._volume = volume
        self._mode: Mode = mode
        self._writable = writable
        self._what = f"volume {volume.name} ({volume.kind})"
        config = {
            "mode": mode,
            "kind": volume.kind,
            "uri": f"nbd+unix:///{quote(volume.name, safe='')}?socket={_SOCKET}",
            "writable": writable,
            "subvolume": subvolume,
            "own_users": mode == "files" and os.geteuid() == 0,
        }
        self._cage: Cage | None = Cage(
            ["{python}", "-I", "-S", "-c", _START, json.dumps(config)],
            readable={
                _SOCKET: os.path.realpath(socket_path),
                f"{INSIDE}/inside": os.path.dirname(os.path.realpath(__file__)),
            },
            devices=["/dev/fuse"] if mode == "files" else (),
            devices_all=mode == "host",
            what=self._what,
        )
        try:
            self._take(*self._cage.receive(OPEN_SECONDS))
        except BaseException:
            self._cage.kill()
            self._cage = None
            raise

    @property
    def volume(self) -> Volume:
        """What it lies on."""
        return self._volume

    @property
    def mode(self) -> Mode:
        """The way in."""
        return self._mode

    @property
    def writable(self) -> bool:
        """Whether it takes changes."""
        return self._writable

    @property
    def process_id(self) -> int:
        """Of the cage; 0 when it is closed."""
        return 0 if self._cage is None else self._cage.process_id

    def lstat(self, path: str) -> Stat | None:
        """None: there is nothing of that name."""
        facts = self._call({"call": "lstat"}, path)[0].facts
        return None if facts is None else self._stat(facts)

    def list(self, path: str) -> dict[str, Stat]:
        """What a directory holds."""
        names = self._call({"call": "list"}, path)[0].names
        found = {self._text(name): self._stat(facts) for name, facts in names.items()}
        for name in found:
            if not name or name in (".", "..") or "/" in name or "\0" in name:
                raise GuestError(f"{self._what}: a directory lists {name!r}", _HINT)
        return found

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """A regular file's bytes."""
        data = self._call({"call": "read", "offset": offset, "length": length}, path)[1]
        if len(data) > (READ_BYTES_MAX if length is None else length):
            raise GuestError(f"{self._what}: more was read than asked for", _HINT)
        return data

    def write(self, path: str, data: bytes, offset: int) -> None:
        """Overwrite or extend a regular file in place."""
        self._change({"call": "write", "offset": offset}, path, data)

    def replace(self, path: str, data: bytes, mode: int | None = None) -> None:
        """A new content, atomically."""
        self._change({"call": "replace", "mode": mode}, path, data)

    def remove(self, path: str) -> None:
        """A file, a link, or an empty directory."""
        self._change({"call": "remove"}, path)

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        """It may be there already."""
        self._change({"call": "make_directory", "mode": mode}, path)

    def make_link(self, path: str, target: str) -> None:
        """A symbolic link, in place of a file or link."""
        self._change({"call": "make_link"}, path, raw(target))

    def space(self) -> Space:
        """What is free."""
        return Space(*self._call({"call": "space"}, "")[0].space)

    def sync(self) -> None:
        """Down to the overlay, and that flushed."""
        self._call({"call": "sync"}, "")

    def close(self) -> None:
        """Sync, unmount, end the cage."""
        cage, self._cage = self._cage, None
        if cage is None:
            return
        try:
            if cage.alive:
                self._take(*cage.call(b'{"call":"close"}', b"", CLOSE_SECONDS))
        except BaseException:
            cage.kill()
            raise
        cage.close()

    def _change(self, call: dict[str, Any], path: str, data: bytes = b"") -> None:
        if not self._writable:
            raise GuestError(f"{self._what} is open read-only", "open it for writing")
        if len(data) > READ_BYTES_MAX:
            raise GuestError(f"{self._what}: {len(data)} bytes are too many for a file", "")
        self._call(call, path, data)

    def _call(self, call: dict[str, Any], path: str, data: bytes = b"") -> tuple[_Answer, bytes]:
        if self._cage is None:
            raise GuestError(f"{self._what} is closed", "open it again")
        call["path"] = raw(path).decode("latin-1")
        header = json.dumps(call).encode()
        return self._take(*self._cage.call(header, data, CALL_SECONDS))

    def _text(self, name: str) -> str:
        try:
            return name.encode("latin-1").decode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise GuestError(f"{self._what}: an answer holds a name that is none", _HINT) from None

    def _stat(self, facts: _Facts) -> Stat:
        return Stat(*facts[:7], self._text(facts[7]))

    def _take(self, header: bytes, data: bytes) -> tuple[_Answer, bytes]:
        """An answer that keeps to the form; its error raised."""
        try:
            answer = msgspec.json.decode(header, type=_Answer)
        except (msgspec.DecodeError, RecursionError) as error:
            raise GuestError(f"{self._what}: its driver's answer is none: {error}", _HINT) from None
        if answer.error:
            raise_refused(answer.error, f"{self._what}: {printable(answer.message)}")
        return answer, data
