"""How fast is a log read again against its checksums, beside reading the file and nothing else?

Question: a scrub should go as fast as the disk: at least 0.9 times dd, which looks at nothing.
Sketch:   a thread reads the log in pieces of 2 MiB while another computes XXH3, of which a core
          does some 10 GB/s. What dd does not do is 256 KiB of summaries for each 64 MiB, twice,
          and a block map.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench_reopen import DISK_BYTES, base_of, write_log
from bench_rollback import drop_cache
from disks import seconds
from harness import Row, size, take_turns
from rollpoint._native import OPEN_READ, Io, Journal
from rollpoint.units import format_size

LOG_BYTES = size(smoke=8 << 20, full=2 << 30)
OURS, DD = "ours", "dd bs=2M"


def test_scrub_beside_reading(benchmark: Any, tmp_path: Path) -> None:
    log = write_log(tmp_path, LOG_BYTES).log
    base = base_of(DISK_BYTES)
    read: list[int] = []

    def ours() -> dict[str, float]:
        drop_cache(log)
        file = Io.posix().open_dir(str(log.parent)).open("log", OPEN_READ)
        start = time.perf_counter()
        journal = Journal(file, base)
        damage: list[Any] = []
        journal.scrub(damage, lambda _done, total, *_: bool(read.append(total)) or True)
        figure = time.perf_counter() - start
        journal.close()
        file.close()
        assert damage == []
        return {OURS: figure}

    def dd() -> dict[str, float]:
        drop_cache(log)
        return {DD: seconds(["dd", f"if={log}", "of=/dev/null", "bs=2M", "status=none"])[0]}

    take_turns(
        benchmark,
        sides=[ours, dd],
        rows=[
            Row(
                f"scrub: {format_size(LOG_BYTES)} of random writes in a log",
                OURS,
                {DD: 0.9},
                cache="cold: the log's pages are dropped before each round",
            )
        ],
        verified="no damage, and the scrub says that it has read all of the log",
    )
    assert min(read) >= LOG_BYTES
