"""Disks to convert, compare and commit, in every type, and the commands that are timed on them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness import FULL, SEED, size
from mixed import MIB, write_mixed_disk
from tools import require_tool

DISK_BYTES = size(smoke=16 * MIB, full=2048 * MIB)
RAW = "raw"
# What qemu-img can write; the other types are made by us, and read by it.
QEMU_WRITES = (
    "monolithicFlat", "monolithicSparse", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse",
    "streamOptimized",
)  # fmt: skip
Command = Sequence[str | Path]


def ours(*arguments: str | Path) -> Command:
    """Our command line, the start of the interpreter included."""
    return [sys.executable, "-m", "rollpoint", "disk", *arguments]


def our_convert(source: Path, target: Path, to: str, *options: str) -> Command:
    format = ["--format", "raw"] if source.suffix == ".raw" else []
    return ours("convert", source, target, "--to", to, *format, *options)


def qemu_convert(source: Path, target: Path, to: str) -> Command:
    """As its manual recommends for speed: 16 requests at once, written in any order."""
    output = ["raw"] if to == RAW else ["vmdk", "-o", f"subformat={to}"]
    return [
        require_tool("qemu-img"), "convert", "-m", "16", "-W", "-f", qemu_format(source),
        "-O", *output, source, target,
    ]  # fmt: skip


def qemu_format(path: Path) -> str:
    return "raw" if path.suffix == ".raw" else "vmdk"


def run(command: Command) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-1000:]}"


def warm(*paths: Path) -> None:
    """Bring files into the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(MIB):
                pass


def seconds(*commands: Command) -> list[float]:
    """Seconds from the first command's start to the end of each."""
    started = time.perf_counter()
    ends = []
    for command in commands:
        run(command)
        ends.append(time.perf_counter() - started)
    return ends


def files_of(disk: Path) -> list[Path]:
    """A disk's files, by the names that all writers here give them."""
    return sorted({disk, *disk.parent.glob(f"{disk.stem}-*.vmdk")})


def remove(disk: Path) -> None:
    for path in files_of(disk):
        path.unlink(missing_ok=True)


def require_equal(raw: Path, disk: Path, type: str = "") -> None:
    """Every byte of the two, outside of any timing.

    qemu-img needs minutes for a vmfsSparse disk: it reads one for the small version, and
    for the full one where ours becomes raw.
    """
    if disk.suffix == ".raw":
        run(["cmp", raw, disk])
    elif FULL and type == "vmfsSparse":
        run(ours("compare", raw, disk, "--a-format", "raw"))
    else:
        run([require_tool("qemu-img"), "compare", "-f", "raw", "-F", "vmdk", raw, disk])


def settle() -> None:
    """Nobody's writes are on their way to the disk when the clock starts."""
    os.sync()


class Gallery:
    """The same disk in every type, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.raw = folder / "disk.raw"
        write_mixed_disk(self.raw, DISK_BYTES, SEED)

    def disk(self, type: str) -> Path:
        if type == RAW:
            return self.raw
        path = self.folder / f"{type}.vmdk"
        if not path.exists():
            made_by = qemu_convert if type in QEMU_WRITES else our_convert
            run(made_by(self.raw, path, type))
            require_equal(self.raw, path, type)
        return path

    def target(self, type: str) -> Path:
        """A place for a disk that is not there yet."""
        target = self.folder / ("target.raw" if type == RAW else "target.vmdk")
        remove(target)
        return target
