"""How fast does the journal take writes, beside a sequential append and beside writing in place?

Question: random 4 KiB writes with a flush every 32 should cost the journal little more than
          appending the same bytes to a file with the same flushes: the log is sequential. Goals:
          0.8 times the append, 2 times qemu-nbd taking the same writes in place, while the
          ring gives its oldest segments back and what they hold goes to the base.
Sketch:   a commit of 32 writes is one sequential write of 132 KiB and one fdatasync; the
          append is 32 writes of 4 KiB and one fdatasync. In place it is 32 random writes and
          one fdatasync. The sync dominates all; NBD adds two context switches for each batch
          of requests. A destage writes each grain's newest version once, in disk order, and
          syncs once for many segments; it shares the disk with the log.
Client:   fio everywhere: its nbd engine for us and for qemu-nbd, psync on a file for the append.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import SEED, compare, rollpoint, running, size
from rollpoint.journal import open_journal
from rollpoint.manifest import Retention
from rollpoint.replica import Replica
from tools import require_tool

MIB = 1 << 20
WRITES = size(smoke=512, full=65_536)
DISK_BYTES = 4 * 1024 * 1024 * 1024
# With destage: the log is full before the clock starts, so as much goes out as comes in.
RING_WRITES = size(smoke=1024, full=262_144)
RING_DISK_BYTES = size(smoke=4 * MIB, full=1024 * MIB)
RING_BYTES = size(smoke=4 * MIB, full=2048 * MIB)
RING_SEGMENT_BYTES = size(smoke=MIB // 4, full=64 * MIB)
APPEND, IN_PLACE = "fio sequential append", "qemu-nbd, in place in a raw file that is all there"


def fio(folder: Path, *arguments: str, writes: int = WRITES) -> float:
    """Run fio once and return its write IOPS; fio's own verify found every block right."""
    command = [
        require_tool("fio"), "--output-format=json", "--bs=4k", "--fsync=32",
        f"--randseed={SEED}", f"--io_size={writes * 4096}", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    # notes of the engine come before the JSON
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    assert job["error"] == 0, job
    return float(job["write"]["iops"])


def append(folder: Path, writes: int) -> float:
    """The write IOPS of a peer that appends as many blocks to a file of its own."""
    target = folder / "append"
    target.unlink(missing_ok=True)
    figure = fio(
        folder, "--name=peer", "--rw=write", "--ioengine=psync", "--fdatasync=32",
        "--fsync=0", f"--filename={target}", f"--size={writes * 4096}", writes=writes,
    )  # fmt: skip
    assert target.stat().st_size == writes * 4096
    return figure


def test_ingest_beside_sequential_append(benchmark: Any, tmp_path: Path) -> None:
    replica, socket = tmp_path / "r", tmp_path / "n.sock"
    rollpoint("replica", "create", replica, "--disk", f"d={DISK_BYTES}")
    command = [sys.executable, "-m", "rollpoint", "ingest", replica, "--socket", socket]
    with running(socket, *command):

        def ours() -> float:
            return fio(
                tmp_path, "--name=ours", "--rw=randwrite", "--ioengine=nbd", "--iodepth=32",
                f"--uri=nbd+unix:///d?socket={socket}", f"--size={DISK_BYTES}",
            )  # fmt: skip

        # Both sides keep what they were given: fio reads it back against its checksums.
        fio(
            tmp_path, "--name=check", "--rw=randwrite", "--ioengine=nbd", "--iodepth=32",
            "--verify=crc32c",
            f"--uri=nbd+unix:///d?socket={socket}", f"--size={min(DISK_BYTES, WRITES * 4096)}",
        )  # fmt: skip
        compare(
            benchmark,
            what="ingest: 4 KiB random writes, flush every 32",
            unit="IOPS",
            ours=ours,
            peers={APPEND: lambda: append(tmp_path, WRITES)},
            goals={APPEND: 0.7},
            higher_is_better=True,
            cache="warm; durable at every flush",
            verified="fio crc32c read-back through the export; size of the appended file",
        )


def destaged(replica: Path) -> tuple[int, int]:
    """Writes so far: that are in the base, and all."""
    with open_journal(replica / "d-journal-log.vmdk") as journal:
        info = journal.native.info()
    return int(info["based_entry"]), int(info["entry_count"])


def test_sustained_ingest_with_destage(benchmark: Any, tmp_path: Path) -> None:
    """The log may not grow, so each round gives back about as much as it writes."""
    path, socket, raw = tmp_path / "r", tmp_path / "n.sock", tmp_path / "disk.raw"
    retention = Retention(window_seconds=60.0, limit_bytes=RING_BYTES)
    Replica.create(
        path, [("d", RING_DISK_BYTES)], segment_bytes=RING_SEGMENT_BYTES, retention=retention
    ).close()
    with raw.open("wb") as file:
        for _ in range(RING_DISK_BYTES // MIB):
            file.write(bytes(MIB))
    random_writes = [
        "--rw=randwrite", "--ioengine=nbd", "--iodepth=32", f"--size={RING_DISK_BYTES}",
    ]  # fmt: skip
    shares: list[float] = []
    ingest = [sys.executable, "-m", "rollpoint", "ingest", path, "--socket", socket]
    # fio's engine leaves without a word, which would be a gap
    with running(socket, *ingest, "--rpo", "100ms", "--ignore-lost"):
        uri = f"--uri=nbd+unix:///d?socket={socket}"

        def ours() -> float:
            before = destaged(path)
            figure = fio(tmp_path, "--name=ours", *random_writes, uri, writes=RING_WRITES)
            after = destaged(path)
            shares.append((after[0] - before[0]) / max(1, after[1] - before[1]))
            return figure

        def in_place() -> float:
            other = tmp_path / "q.sock"
            command = [
                require_tool("qemu-nbd"), "-f", "raw", "--persistent", "--cache=writeback",
                "-k", other, raw,
            ]  # fmt: skip
            with running(other, *command):
                there = f"--uri=nbd+unix:///?socket={other}"
                return fio(tmp_path, "--name=peer", *random_writes, there, writes=RING_WRITES)

        def check() -> None:
            """Write, and read back against fio's checksums."""
            fio(
                tmp_path, "--name=check", *random_writes, uri, "--verify=crc32c",
                writes=min(RING_WRITES, RING_DISK_BYTES // 4096),
            )  # fmt: skip

        for _ in range(RING_BYTES // (RING_WRITES * 4096) + 1):
            check()  # fills the log
        shares.clear()
        compare(
            benchmark,
            what="ingest: 4 KiB random writes, flush every 32, into a full ring",
            unit="IOPS",
            ours=ours,
            peers={APPEND: lambda: append(tmp_path, RING_WRITES), IN_PLACE: in_place},
            goals={APPEND: 0.8, IN_PLACE: 2.0},
            higher_is_better=True,
            cache="warm; durable at every flush",
            verified="fio crc32c read-back through the export, before the rounds and after them",
        )
        check()
    share = sum(shares) / len(shares)
    assert destaged(path)[0] > 0
    info = benchmark.extra_info
    info["what"] += f" (destaged meanwhile: {share:.0%} of what was written)"
    info["notes"] = {"destaged share of each round": shares}
