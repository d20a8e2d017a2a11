"""Disks for tests of what lies on them: in memory, or in a file for other programs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from tools import require_tool

SECTOR = 512
MIB = 1 << 20


class MemoryDisk:
    """Bytes as a disk; sparse where nothing was put. A read outside it is a mistake."""

    def __init__(self, size_bytes: int, parts: Iterable[tuple[int, bytes]] = ()) -> None:
        self.size_bytes = size_bytes
        self._blocks: dict[int, bytearray] = {}
        for offset, data in parts:
            self.put(offset, data)

    def put(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= self.size_bytes - len(data)
        while data:
            block, start = divmod(offset, 4096)
            part = data[: 4096 - start]
            self._blocks.setdefault(block, bytearray(4096))[start : start + len(part)] = part
            offset, data = offset + len(part), data[len(part) :]

    def pread(self, length: int, offset: int) -> bytes:
        assert 0 <= length <= 8 * MIB, "a reader asks for little at a time"
        assert 0 <= offset <= self.size_bytes - length, (offset, length)
        first = offset // 4096
        last = (offset + length + 4095) // 4096
        data = b"".join(bytes(self._blocks.get(i, bytes(4096))) for i in range(first, last))
        return data[offset - first * 4096 :][:length]


class FileDisk:
    """A file as a disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = path.stat().st_size

    def pread(self, length: int, offset: int) -> bytes:
        assert 0 <= offset <= self.size_bytes - length, (offset, length)
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length)


def empty_file(path: Path, size_bytes: int) -> FileDisk:
    """A new file of zeros."""
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    return FileDisk(path)


def call(program: str, *arguments: str | Path, stdin: str | None = None) -> str:
    """What a program says; it must succeed."""
    done = subprocess.run(
        [require_tool(program), *arguments], input=stdin, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def blkid(path: Path) -> dict[str, str]:
    """What blkid finds, without its cache; {} for nothing."""
    done = subprocess.run(
        [require_tool("blkid"), "-p", "-o", "export", path], capture_output=True, text=True
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
