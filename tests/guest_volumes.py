"""Volumes with a file system each, made without root or loop devices, and served over NBD."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from rollpoint.volumes.base import Piece, Volume
from tools import listens, require_tool

MAKERS = {
    "ext2": ["mke2fs", "-q", "-F", "-t", "ext2"],
    "ext4": ["mke2fs", "-q", "-F", "-t", "ext4"],
    "ntfs": ["mkntfs", "-q", "-F", "-Q"],
    "vfat": ["mkfs.vfat"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
SIZES_MB = {"xfs": 320, "btrfs": 128}


def make_volume(path: Path, kind: str, *options: str, size_mb: int = 0) -> Volume:
    """A sparse file with a fresh file system on it."""
    size_bytes = (size_mb or SIZES_MB.get(kind, 32)) << 20
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    command = [require_tool(MAKERS[kind][0]), *MAKERS[kind][1:], *options, str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Volume("disk:1", (Piece("disk", 0, size_bytes),), size_bytes, kind)


@contextlib.contextmanager
def served(path: Path, *options: str) -> Iterator[str]:
    """A Unix socket whose server answers to any export name with this file."""
    socket_path = path.with_name(path.name + ".sock")
    socket_path.unlink(missing_ok=True)
    server = subprocess.Popen(
        [require_tool("nbdkit"), "-f", "--unix", socket_path, *options, "file", path]
    )
    try:
        deadline = time.monotonic() + 20
        while not (socket_path.exists() and listens(socket_path)):
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.005)
        yield str(socket_path)
    finally:
        server.kill()
        server.wait()
