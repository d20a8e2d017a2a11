"""How fast does a recovered disk answer, beside qemu-nbd serving the very same overlay?

Question: 4 KiB random reads and writes at queue depth 16 through the interim overlay (base,
          journal, interim) should cost little more than the protocol itself. Goals: 3 times
          qemu-nbd for reads and overwrites, 5 times for writes to new grains, and 0.8 times
          nbdkit's memory plugin, which has no disk behind it.
Sketch:   the client needs 6 us for a request and has one core, so 150,000 requests a second is
          all that can be seen. We add one receive and one send for a burst of requests, two
          or three table look-ups and a pread of 4 KiB (1 us warm): the client is the limit.
          A new grain of 64 KiB is a read of the parent and one write of 64 KiB: 30 us.
Client:   fio's nbd engine on both sides, one connection over a Unix socket.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import FULL, SEED, compare, rollpoint, running, size
from tools import libnbd, require_tool

MIB = 1 << 20
DISK_BYTES = size(smoke=16 * MIB, full=1024 * MIB)
LOGGED_WRITES = size(smoke=64, full=16_384)
SECONDS = 5
GRAIN_BYTES = 65536
QEMU, MEMORY = "qemu-nbd, same overlay", "nbdkit memory"
EXPORT = "nbd+unix:///?socket="


class Recovered:
    """A replica after failover: full base, some of it newer in the journal, empty interim."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "s"
        self.replica = folder / "r"
        image = folder / "image"
        rng = random.Random(SEED)
        with image.open("wb") as file:
            for _ in range(DISK_BYTES // MIB):
                file.write(rng.randbytes(MIB))
        rollpoint("replica", "create", self.replica, "--disk", f"d={DISK_BYTES}")
        rollpoint("replica", "seed", self.replica, "--disk", f"d={image}")
        image.unlink()
        self._log_writes(rng)
        done = json.loads(rollpoint("failover", self.replica, "--no-power-on", "--json"))
        self.interim = Path(done["disks"][0]["interim"])
        self.delta = self.interim.with_name("d-interim-delta.vmdk")
        shutil.copy(self.delta, folder / "empty")

    def _log_writes(self, rng: random.Random) -> None:
        ingest = [sys.executable, "-m", "rollpoint", "ingest", self.replica, "--socket"]
        with running(self.socket, *ingest, self.socket) as socket:
            client = libnbd().NBD()
            client.connect_uri(f"nbd+unix:///d?socket={socket}")
            for _ in range(LOGGED_WRITES):
                client.pwrite(rng.randbytes(4096), rng.randrange(DISK_BYTES // 4096) * 4096)
            client.shutdown()

    def empty(self) -> None:
        """An overlay as the failover left it."""
        shutil.copy(self.folder / "empty", self.delta)

    def full(self) -> None:
        """An overlay with every grain in place."""
        if not (self.folder / "full").exists():
            self.empty()
            with self.ours():
                fio(self.socket, "--rw=write", "--bs=1M")
            shutil.copy(self.delta, self.folder / "full")
        shutil.copy(self.folder / "full", self.delta)

    def ours(self) -> Any:
        command = [sys.executable, "-m", "rollpoint", "disk", "serve", self.interim, "--socket"]
        return running(self.socket, *command, self.socket)

    def qemu(self) -> Any:
        return running(
            self.socket, require_tool("qemu-nbd"), "-f", "vmdk", "--persistent",
            "--cache=writeback", "--discard=unmap", "-k", self.socket, self.interim,
        )  # fmt: skip

    def memory(self) -> Any:
        return running(
            self.socket, require_tool("nbdkit"), "-f", "-U", self.socket, "memory", str(DISK_BYTES)
        )


def fio(socket: Path, *arguments: str) -> float:
    """Run fio once and return its IOPS."""
    done = subprocess.run(
        [
            require_tool("fio"), "--name=job", "--output-format=json", "--ioengine=nbd",
            f"--uri={EXPORT}{socket}", "--iodepth=16", f"--size={DISK_BYTES}",
            f"--randseed={SEED}", *arguments,
        ],
        cwd=socket.parent, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    assert job["error"] == 0, job
    return float(job["read"]["iops"] + job["write"]["iops"])


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> Recovered:
    return Recovered(tmp_path_factory.mktemp("nbd"))


def side(
    server: Callable[[], Any], prepare: Callable[[], None], *arguments: str
) -> Callable[[], float]:
    def run() -> float:
        prepare()
        with server() as socket:
            return fio(socket, *arguments)

    return run


@pytest.fixture(scope="module")
def verified(recovered: Recovered) -> str:
    """What fio writes through our server, qemu-nbd reads back right; and the other way."""
    check = ["--rw=randwrite", "--bs=4k", "--verify=crc32c", f"--io_size={DISK_BYTES // 16}"]
    for write, read in ((recovered.ours, recovered.qemu), (recovered.qemu, recovered.ours)):
        recovered.empty()
        with write() as socket:
            fio(socket, *check, "--do_verify=0")
        with read() as socket:
            fio(socket, *check, "--verify_only")
    return "fio crc32c: written through each server, read back through the other"


def quick(*arguments: str) -> list[str]:
    length = ["--time_based", f"--runtime={SECONDS}"] if FULL else [f"--io_size={MIB}"]
    return [*arguments, "--bs=4k", *length]


def test_random_reads_through_the_interim(
    benchmark: Any, recovered: Recovered, verified: str
) -> None:
    arguments = quick("--rw=randread")
    compare(
        benchmark,
        what="NBD: 4 KiB random reads, queue depth 16",
        unit="IOPS",
        ours=side(recovered.ours, recovered.empty, *arguments),
        peers={
            QEMU: side(recovered.qemu, recovered.empty, *arguments),
            MEMORY: side(recovered.memory, lambda: None, *arguments),
        },
        goals={QEMU: 3.0, MEMORY: 0.8},
        higher_is_better=True,
        cache="warm",
        verified=verified,
    )


def test_overwrites_in_the_interim(
    benchmark: Any, recovered: Recovered, verified: str
) -> None:
    arguments = quick("--rw=randwrite")
    compare(
        benchmark,
        what="NBD: 4 KiB random overwrites, queue depth 16",
        unit="IOPS",
        ours=side(recovered.ours, recovered.full, *arguments),
        peers={
            QEMU: side(recovered.qemu, recovered.full, *arguments),
            MEMORY: side(recovered.memory, lambda: None, *arguments),
        },
        goals={QEMU: 3.0, MEMORY: 0.8},
        higher_is_better=True,
        cache="warm; no flush",
        verified=verified,
    )


def test_writes_to_new_grains_of_the_interim(
    benchmark: Any, recovered: Recovered, verified: str
) -> None:
    """Each write goes to a grain that the overlay does not have yet, until all are there."""
    grains = DISK_BYTES // GRAIN_BYTES
    arguments = [
        "--rw=randwrite", "--bs=4k", f"--blockalign={GRAIN_BYTES}", "--norandommap=0",
        f"--number_ios={grains * 3 // 4}",
    ]  # fmt: skip
    compare(
        benchmark,
        what="NBD: 4 KiB writes to new 64 KiB grains, queue depth 16",
        unit="IOPS",
        ours=side(recovered.ours, recovered.empty, *arguments),
        peers={QEMU: side(recovered.qemu, recovered.empty, *arguments)},
        goals={QEMU: 5.0},
        higher_is_better=True,
        cache="warm; no flush",
        verified=verified,
    )
