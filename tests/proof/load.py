"""Writers as NBD clients: a thread each, one request at a time, until the server is gone."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from tools import libnbd
from witness import SECTOR, Chapter, Writer

FLUSH_SHARE = 0.08
FUA_SHARE = 0.05


def connect(socket: Path, disk: str) -> Any:
    client = libnbd().NBD()
    client.connect_uri(f"nbd+unix:///{disk}?socket={socket}")
    return client


class Load:
    """All writers of a chapter at work; `answered` counts."""

    def __init__(self, chapter: Chapter, socket: Path) -> None:
        self._chapter = chapter
        self._clients = [connect(socket, writer.disk) for writer in chapter.writers]
        self._lock = threading.Lock()  # over the bookkeeping: an event is one instant
        self._stopping = False
        self.answered = self.flushes = 0
        self.errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=pair, daemon=True)
            for pair in zip(chapter.writers, self._clients, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """The writers finish what they are at."""
        self._stopping = True

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"
        self._clients.clear()

    def _run(self, writer: Writer, client: Any) -> None:
        try:
            while not self._stopping:
                if writer.rng.random() < FLUSH_SHARE:
                    self._flush(writer, client)
                else:
                    self._write(writer, client)
        except libnbd().Error as error:
            self.errors.append(error)  # the server is gone
        except BaseException as error:
            print(f"a writer failed: {error!r}", file=sys.stderr)
            self.errors.append(error)

    def _write(self, writer: Writer, client: Any) -> None:
        with self._lock:
            op = writer.next_op(next(self._chapter.events))
            writer.apply(op)
        fua = libnbd().CMD_FLAG_FUA if writer.rng.random() < FUA_SHARE else 0
        at = writer.start + op.offset
        if op.data is not None:
            client.pwrite(op.data, at, fua)
        elif writer.rng.random() < 0.5:
            client.trim(op.length, at, fua)
        else:
            client.zero(op.length, at, fua)
        with self._lock:
            op.acked, op.acked_ns = next(self._chapter.events), time.time_ns()
            self.answered += 1
            if fua:  # it and, as it came later, nothing else of other writers
                writer.flushed = max(writer.flushed, len(writer.ops))

    def _flush(self, writer: Writer, client: Any) -> None:
        with self._lock:
            promised = self._chapter.flush_begins(writer.disk)
        client.flush()
        with self._lock:
            self._chapter.flush_ended(promised)
            self.flushes += 1


def read_disk(socket: Path, disk: str) -> bytes:
    """All of a disk, through its export."""
    client = connect(socket, disk)
    size = client.get_size()
    assert size % SECTOR == 0
    data = bytes(client.pread(size, 0))
    client.shutdown()
    return data
