"""FAT inside the cage: read by us, changed by mtools.

Standard library alone, as worker.py says. Names are found whatever their case, as FAT
has it. Owner and mode are made up: root, 0755.

Source: as fat_entries.py.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable

from .beneath import READ_BYTES_MAX, Facts, Refused, shown
from .fat_entries import Entry, parse, shape_of

_DIRECTORY_BYTES_MAX = 4 << 20
_WINDOW_BYTES = 1 << 16
_NAME_CHARACTERS_REFUSED = b'*?[]"\\:<>|'
_MTOOLS_ENVIRONMENT = {"MTOOLS_SKIP_CHECK": "1", "MTOOLS_LOWER_CASE": "0", "MTOOLSRC": "/dev/null"}
_Command = list[str]
_Entries = list[Entry]
_Chain = list[int]


class Fat:
    """A FAT volume's files; beneath.Beneath says what each call does.

    Args:
        volume: Path of the file that shows it.
        run: Runs a program on its standard input; its exit code and output.
        words: The output, for a message.
    """

    def __init__(
        self,
        volume: str,
        run: Callable[[_Command, bytes], tuple[int, bytes]],
        words: Callable[[bytes], str],
    ) -> None:
        self._volume = volume
        self._run = run
        self._words = words
        os.environ.update(_MTOOLS_ENVIRONMENT)
        self._file = os.open(volume, os.O_RDONLY | os.O_CLOEXEC)
        boot = os.pread(self._file, 512, 0)
        if len(boot) < 512 or boot[510:512] != b"\x55\xaa":
            raise Refused("guest", "it has no boot sector of a FAT file system")
        self._shape = shape_of(boot)
        self._windows: dict[int, bytes] = {}

    def lstat(self, path: bytes) -> Facts | None:
        """What is there, whatever the case of its name."""
        try:
            found = self._find(path)
        except NotADirectoryError:
            return None
        return None if found is None else _facts(found)

    def list(self, path: bytes) -> dict[bytes, Facts]:
        """What a directory holds."""
        return {entry.name: _facts(entry) for entry in self._entries(self._directory(path))}

    def read(self, path: bytes, offset: int, length: int | None) -> bytes:
        """Bytes of a file."""
        entry = self._wanted(path)
        if entry.directory:
            raise Refused("path", f"{shown(path)}: a directory, not a file")
        left = max(0, entry.size_bytes - offset)
        wanted = left if length is None else min(left, length)
        if wanted > READ_BYTES_MAX:
            raise Refused("guest", f"{shown(path)}: {wanted} bytes are more than is read")
        if not wanted:
            return b""
        size = self._shape.cluster_bytes
        chain = self._chain(entry.first, -(-(offset + wanted) // size), path)
        if len(chain) * size < offset + wanted:
            raise Refused("guest", f"{shown(path)}: its chain of clusters ends early: damaged")
        pieces = [self._cluster(cluster) for cluster in chain[offset // size :]]
        start = offset % size
        return b"".join(pieces)[start : start + wanted]

    def write(self, path: bytes, data: bytes, offset: int) -> None:
        """FAT files are written anew: there is nothing in place about it."""
        old = self.read(path, 0, None)
        old = old.ljust(offset, b"\0")
        self.replace(path, old[:offset] + data + old[offset + len(data) :], None)

    def replace(self, path: bytes, data: bytes, mode: int | None) -> None:
        """Written beside it, then renamed: FAT knows no way that is atomic."""
        del mode
        old = self._find(path)
        if old is not None and old.directory:
            raise Refused("path", f"{shown(path)}: a directory, not a file")
        folder, _, name = path.rpartition(b"/")
        self._directory(folder)
        _check_name(path, name)
        if old is not None:
            name = old.name
            _check_name(name, name)  # it may have been found by its short one
        spare = (folder + b"/" if folder else b"") + _spare_name(name)
        self._copy_in(path, spare, data)
        if old is not None:
            self._change("mdel", _place((folder + b"/" if folder else b"") + old.name))
        self._change("mren", _place(spare), os.fsdecode(name))

    def _copy_in(self, path: bytes, spare: bytes, data: bytes) -> None:
        """A new file, whole or not at all: mcopy is content with a part when the volume is full."""
        free = self.space()[0]
        if len(data) > free:
            raise Refused("guest", f"{shown(path)}: {len(data)} bytes, and {free} are free")
        try:
            self._change("mcopy", "-o", "-", _place(spare), data=data)
            if self._wanted(spare).size_bytes != len(data):
                raise Refused("guest", f"{shown(path)}: the volume is full")
        except Refused:
            with contextlib.suppress(Refused):
                self._change("mdel", _place(spare))
            raise

    def remove(self, path: bytes) -> None:
        """A file, or an empty directory."""
        entry = self._wanted(path)
        _check_name(path, path.rpartition(b"/")[2])
        if entry.directory:
            if self._entries(self._first_of(entry)):
                raise Refused("path", f"{shown(path)}: the directory is not empty")
            self._change("mrd", _place(path))
        else:
            self._change("mdel", _place(path))

    def make_directory(self, path: bytes, mode: int) -> None:
        """It may be there already."""
        del mode
        entry = self._find(path)
        if entry is None:
            folder, _, name = path.rpartition(b"/")
            self._directory(folder)
            _check_name(path, name)
            self._change("mmd", _place(path))
        elif not entry.directory:
            raise Refused("path", f"{shown(path)}: something is there already")

    def make_link(self, path: bytes, target: bytes) -> None:
        """There are none."""
        raise Refused("path", f"{shown(path)}: FAT has no symbolic links")

    def space(self) -> tuple[int, int, int | None]:
        """Free bytes, all bytes; FAT counts no inodes."""
        shape = self._shape
        table = os.pread(self._file, shape.fat_bytes, shape.fat_at)
        if shape.bits == 12:
            self._windows = {}
            numbers = range(2, shape.clusters + 2)
            free = sum(1 for number in numbers if self._next(number) == 0)
        else:
            width = shape.bits // 8
            usable = table[: len(table) // width * width]
            entries = memoryview(usable).cast("H" if width == 2 else "I")
            mask = 0x0FFFFFFF if width == 4 else 0xFFFF
            free = sum(1 for entry in entries[2 : shape.clusters + 2] if not entry & mask)
        return free * shape.cluster_bytes, shape.clusters * shape.cluster_bytes, None

    def sync(self) -> None:
        """Down to the overlay."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let go of the volume."""
        os.close(self._file)

    def _change(self, *command: str, data: bytes = b"") -> None:
        code, said = self._run([command[0], "-i", self._volume, *command[1:]], data)
        self._windows = {}
        if code != 0:
            raise Refused("guest", f"{command[0]}: {self._words(said)}")

    def _wanted(self, path: bytes) -> Entry:
        try:
            found = self._find(path)
        except NotADirectoryError:
            found = None
        if found is None:
            raise Refused("missing", f"there is no {shown(path)}")
        return found

    def _find(self, path: bytes) -> Entry | None:
        """NotADirectoryError: a part on the way is a file."""
        found = Entry(b"", b"", True, 0, 0, 0)
        if path.startswith(b"/") or b"\0" in path:
            raise Refused("path", f"{shown(path)}: no path beneath a file system's root")
        for part in path.split(b"/") if path else []:
            if part in (b"", b".", b".."):
                raise Refused("path", f"{shown(path)}: an empty, . or .. part")
            if not found.directory:
                raise NotADirectoryError
            folded = _folded(part)
            for entry in self._entries(self._first_of(found)):
                if folded in (_folded(entry.name), _folded(entry.short)):
                    found = entry
                    break
            else:
                return None
        return found

    def _directory(self, path: bytes) -> int:
        """First cluster of a directory; 0 is the root."""
        entry = self._wanted(path)
        if not entry.directory:
            raise Refused("path", f"{shown(path)}: a directory is wanted there")
        return self._first_of(entry)

    def _first_of(self, entry: Entry) -> int:
        return entry.first if entry.name else 0

    def _entries(self, first: int) -> _Entries:
        shape = self._shape
        if first == 0 and shape.bits != 32:
            data = os.pread(self._file, shape.root_bytes, shape.root_at)
        else:
            most = _DIRECTORY_BYTES_MAX // shape.cluster_bytes + 1
            chain = self._chain(first or shape.root_cluster, most, b"")
            data = b"".join(self._cluster(cluster) for cluster in chain)
        return parse(data[:_DIRECTORY_BYTES_MAX])

    def _chain(self, first: int, most: int, path: bytes) -> _Chain:
        end = {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8}[self._shape.bits]
        chain: _Chain = []
        while first < end and len(chain) < most:
            if not 2 <= first < self._shape.clusters + 2:
                where = shown(path) if path else "a directory"
                raise Refused("guest", f"{where}: cluster {first} is outside the volume: damaged")
            chain.append(first)
            first = self._next(first)
        return chain

    def _next(self, cluster: int) -> int:
        bits = self._shape.bits
        at = cluster * bits // 8
        data = self._table(at, 4 if bits == 32 else 2)
        if bits == 12:
            value: int = struct.unpack("<H", data)[0]
            return value >> 4 if cluster & 1 else value & 0xFFF
        if bits == 16:
            return int(struct.unpack("<H", data)[0])
        return int(struct.unpack("<I", data)[0]) & 0x0FFFFFFF

    def _table(self, at: int, length: int) -> bytes:
        data = b""
        while len(data) < length:
            window, start = divmod(at + len(data), _WINDOW_BYTES)
            if window not in self._windows:
                place = self._shape.fat_at + window * _WINDOW_BYTES
                self._windows[window] = os.pread(self._file, _WINDOW_BYTES, place)
            piece = self._windows[window][start : start + length - len(data)]
            if not piece:
                raise Refused("guest", "its allocation table ends early: damaged")
            data += piece
        return data

    def _cluster(self, cluster: int) -> bytes:
        size = self._shape.cluster_bytes
        data = os.pread(self._file, size, self._shape.data_at + (cluster - 2) * size)
        if len(data) < size:
            raise Refused("guest", f"cluster {cluster} is past the end of the volume: damaged")
        return data


def _facts(entry: Entry) -> Facts:
    kind = "directory" if entry.directory else "file"
    return Facts(kind, 0o755, 0, 0, entry.size_bytes, entry.modified_ns, 1, b"")


def _folded(name: bytes) -> str:
    return name.decode("utf-8", "replace").casefold()


def _spare_name(name: bytes) -> bytes:
    """A name in small letters where name has them: mren leaves the marks for that as they are."""
    base, _, extension = name.rpartition(b".") if b"." in name else (name, b"", b"")
    spare = b"RP" + os.urandom(3).hex().upper().encode()
    ending = b"TMP"
    return (
        (spare.lower() if base.islower() else spare)
        + b"."
        + (ending.lower() if extension.islower() else ending)
    )


def _place(path: bytes) -> str:
    return "::/" + os.fsdecode(path)


def _check_name(path: bytes, name: bytes) -> None:
    odd = any(byte < 32 or byte in _NAME_CHARACTERS_REFUSED for byte in path)
    if not name or odd or len(name) > 255 or name.endswith((b".", b" ")):
        raise Refused("path", f"{shown(path)}: FAT takes no such name")
