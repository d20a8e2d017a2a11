"""How fast does the journal take writes, beside a plain sequential append?

Question: random 4 KiB writes with a flush every 32 should cost the journal little more than
          appending the same bytes to a file with the same flushes: the log is sequential.
Sketch:   a commit of 32 writes is one sequential write of 132 KiB and one fdatasync; the
          append is 32 writes of 4 KiB and one fdatasync. The sync dominates both; NBD adds
          two context switches for each batch of requests.
Client:   fio on both sides: its nbd engine for us, psync on a file for the peer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import SEED, compare, rollpoint, running, size
from tools import require_tool

WRITES = size(smoke=512, full=65_536)
DISK_BYTES = 4 * 1024 * 1024 * 1024


def fio(folder: Path, *arguments: str) -> float:
    """Run fio once and return its write IOPS; fio's own verify found every block right."""
    command = [
        require_tool("fio"), "--output-format=json", "--bs=4k", "--fsync=32",
        f"--randseed={SEED}", f"--io_size={WRITES * 4096}", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    # notes of the engine come before the JSON
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    assert job["error"] == 0, job
    return float(job["write"]["iops"])


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

        def append() -> float:
            target = tmp_path / "append"
            target.unlink(missing_ok=True)
            figure = fio(
                tmp_path, "--name=peer", "--rw=write", "--ioengine=psync", "--fdatasync=32",
                "--fsync=0", f"--filename={target}", f"--size={WRITES * 4096}",
            )  # fmt: skip
            assert target.stat().st_size == WRITES * 4096
            return figure

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
            peers={"fio sequential append": append},
            goals={"fio sequential append": 0.7},
            higher_is_better=True,
            cache="warm; durable at every flush",
            verified="fio crc32c read-back through the export; size of the appended file",
        )
