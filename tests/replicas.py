"""Replicas for tests: made small, fed through real NBD clients, compared with a plain model."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rollpoint import _native, cli, interim
from rollpoint.disk import open_disk
from rollpoint.ingest import Ingest
from rollpoint.manifest import Cut, Recovered
from rollpoint.replica import Replica
from tools import libnbd, require_tool

SECTOR = 512
SIZES = {"a": (1 << 20) + 7 * SECTOR, "b": 640 << 10}
SEGMENT_BYTES = 1 << 20
WAIT_SECONDS = 30.0


def wait_until(condition: Any, what: str) -> None:
    """Poll, for a bounded time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


def change(disk: _native.Disk, model: bytearray, rng: random.Random, times: int = 1) -> None:
    """Random writes and zeroings, of any length at any byte, here and in the model."""
    for _ in range(times):
        length = rng.randrange(1, 9000)
        offset = rng.randrange(len(model) - length)
        if rng.random() < 0.2:
            disk.zero(length, offset)
            model[offset : offset + length] = bytes(length)
        else:
            data = rng.randbytes(length)
            disk.pwrite(data, offset)
            model[offset : offset + length] = data


def bytes_of(path: str, io: _native.Io) -> bytes:
    """All of a disk."""
    with open_disk(path, io=io) as disk:
        return disk.pread(disk.size_bytes, 0)


@contextlib.contextmanager
def ingesting(
    path: Path, socket: Path, rpo_seconds: float = 3600.0, **options: bool
) -> Iterator[Ingest]:
    """An ingest on a thread of this process; ended in order."""
    with Replica.open(path) as replica:
        ingest = Ingest(replica, str(socket), rpo_seconds, **options)
        ingest.start()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                ingest.run()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield ingest
        finally:
            ingest.stop()
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()
        if failures:
            raise failures[0]


class Source:
    """Writes to all exports of an ingest like a machine would, and keeps a model of them."""

    def __init__(self, socket: Path, model: dict[str, bytearray], seed: int) -> None:
        self.model = model
        self.rng = random.Random(seed)
        self._clients = {}
        for name in model:
            client = libnbd().NBD()
            client.connect_uri(f"nbd+unix:///{name}?socket={socket}")
            assert client.get_size() == len(model[name])
            self._clients[name] = client

    def act(self) -> None:
        """One random write, zeroing or trim, of any length at any byte; now and then a flush."""
        rng = self.rng
        name = rng.choice(sorted(self.model))
        disk, client = self.model[name], self._clients[name]
        length = rng.choice((1, 3, 511, 512, 513, 4096, 8192, rng.randrange(1, 20_000)))
        offset = rng.randrange(len(disk) - length)
        if rng.random() < 0.4:
            offset = offset // 4096 * 4096
        what = rng.random()
        if what < 0.75:
            data = rng.randbytes(length)
            client.pwrite(data, offset)
            disk[offset : offset + length] = data
        elif what < 0.9:
            client.zero(length, offset)
            disk[offset : offset + length] = bytes(length)
        elif what < 0.98:
            client.trim(length, offset)
            disk[offset : offset + length] = bytes(length)
        else:
            client.flush()

    def write(self, name: str, data: bytes, offset: int) -> None:
        self._clients[name].pwrite(data, offset)
        self.model[name][offset : offset + len(data)] = data

    def snapshot(self) -> dict[str, bytes]:
        """What the disks hold now."""
        return {name: bytes(disk) for name, disk in self.model.items()}

    def close(self) -> None:
        for client in self._clients.values():
            with contextlib.suppress(Exception):
                client.shutdown()


def empty_model(sizes: dict[str, int] | None = None) -> dict[str, bytearray]:
    return {name: bytearray(size) for name, size in (sizes or SIZES).items()}


def make(path: Path, sizes: dict[str, int] | None = None) -> None:
    """A replica with empty disks, whose logs have small segments, so that there are many."""
    disks = list((sizes or SIZES).items())
    Replica.create(path, disks, segment_bytes=SEGMENT_BYTES).close()


def seen_by_qemu(path: Path | str, tmp_path: Path) -> bytes:
    """What an independent reader finds in a VMDK chain."""
    target = tmp_path / "seen.raw"
    subprocess.run(
        [require_tool("qemu-img"), "convert", "-f", "vmdk", "-O", "raw", str(path), str(target)],
        check=True,
        timeout=60,
    )
    data = target.read_bytes()
    target.unlink()
    return data


def checked_by_qemu(path: Path | str) -> None:
    done = subprocess.run(
        [require_tool("qemu-img"), "check", "-f", "vmdk", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rollpoint(*arguments: object, code: int = 0, process: bool = False) -> Any:
    """Run the command line with --json; what it printed, or its error.

    Args:
        process: In a process of its own, and not in this one.
    """
    words = [*map(str, arguments), "--json"]
    if process:
        done = subprocess.run(
            [sys.executable, "-m", "rollpoint", *words], capture_output=True, text=True, timeout=120
        )
        ended, out, err = done.returncode, done.stdout, done.stderr
    else:
        streams = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            try:
                cli.main(words)
            except SystemExit as exit:
                ended = int(exit.code or 0)
        out, err = streams[0].getvalue(), streams[1].getvalue()
    assert ended == code, (words, ended, out, err)
    return json.loads(err)["error"] if code else json.loads(out)


@contextlib.contextmanager
def ingest_process(path: Path, socket: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`rollpoint ingest` as a process; ended by SIGTERM unless it has ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rollpoint", "ingest", str(path), "--socket", str(socket), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=WAIT_SECONDS)


def recover(replica: Replica, point: int, cut: Cut | None = None) -> None:
    """As a failover leaves it: the journals show the point, empty overlays lie on top."""
    with replica.journals(writable=True) as journals:
        for name, native in zip(journals.names, journals.natives, strict=True):
            native.roll(point)
            entry = replica.manifest.disk(name)
            interim.create_interim(
                replica.directory, name, entry.journal or "", entry.size_bytes
            )
        journals.close()
    interims = {disk.name: interim.interim_name(disk.name) for disk in replica.manifest.disks}
    replica.manifest.recovered = Recovered(
        operation="1", point=point, interims=interims, cut=cut
    )
    replica.save()
