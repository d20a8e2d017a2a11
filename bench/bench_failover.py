"""How long from the operator's command to the power-on call?

Question: the replica should be started within 0.3 s of pressing return, the start of the
          interpreter and all imports included, whatever the disk's size.
Sketch:   Python 20 ms, imports 100 ms, six durable manifest steps of 1 to 3 ms, roll back of a
          few thousand writes 5 ms, two overlays 5 ms, exports opened and closed 20 ms.
Observer: a wrapper in front of QEMU on PATH that notes the wall clock when it is called.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from harness import SEED, rollpoint, running, single, size
from tools import libnbd, require_tool

WRITES = size(smoke=64, full=4096)
DISK_BYTES = 64 * 1024 * 1024 * 1024


def fill(replica: Path, socket: Path) -> None:
    """Two disks with random writes and a few points, through a real ingest."""
    import random

    rng = random.Random(SEED)
    nbd = libnbd()
    command = [sys.executable, "-m", "rollpoint", "ingest", replica, "--socket", socket]
    with running(socket, *command):
        for part in range(3):
            for name in ("a", "b"):
                client = nbd.NBD()
                client.connect_uri(f"nbd+unix:///{name}?socket={socket}")
                for _ in range(WRITES // 3):
                    client.pwrite(rng.randbytes(4096), rng.randrange(DISK_BYTES // 4096) * 4096)
                client.flush()
                client.shutdown()
            rollpoint("mark", str(replica), "--label", f"part{part}", "--json")


def test_time_from_command_to_power_on(benchmark: Any, tmp_path: Path) -> None:
    qemu = require_tool("qemu-system-x86_64")
    replica, tools, note = tmp_path / "r", tmp_path / "bin", tmp_path / "called"
    tools.mkdir()
    wrapper = tools / "qemu-system-x86_64"
    wrapper.write_text(f'#!/bin/sh\ndate +%s.%N >> {note}\nexec {qemu} "$@"\n')
    wrapper.chmod(0o755)
    rollpoint(
        "replica", "create", str(replica), "--disk", f"a={DISK_BYTES}",
        "--disk", f"b={DISK_BYTES}",
    )  # fmt: skip
    fill(replica, tmp_path / "n.sock")
    points = json.loads(rollpoint("points", str(replica), "--json"))["points"]

    def once() -> float:
        note.unlink(missing_ok=True)
        started = time.time()
        rollpoint(
            "failover", str(replica), "--to", str(points[1]["id"]), "--json",
            "--skip", "source-fenced=a benchmark", path=str(tools),
        )  # fmt: skip
        called = float(note.read_text().split()[0])
        rollpoint("undo", str(replica), "--json")
        return called - started

    single(
        benchmark,
        what="failover: from the command to the power-on call",
        unit="s",
        run=once,
        goal=0.3,
        higher_is_better=False,
        cache="warm",
        verified="the call was seen from outside, by a wrapper in front of QEMU",
        rounds=9,
    )
