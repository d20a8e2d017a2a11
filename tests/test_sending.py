"""What is sent arrives, nothing else is touched, and what differs is found."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from replicas import change, wait_until
from rollpoint import sending
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import (
    CancelledError,
    LockedError,
    NotFoundError,
    StorageError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from rollpoint.nbd_client import NbdClient, parse_uri
from rollpoint.spans import Spans, whole
from rollpoint.targets import is_new, open_target, same_place, stamp
from tools import listens, missing, require_tool

SIZE = (3 << 20) + 5 * 512


def source_disk(path: Path, seed: int) -> bytes:
    """A disk with data, zeros and holes."""
    create_disk(str(path), "monolithicSparse", SIZE, zero_grains=True)
    rng, model = random.Random(seed), bytearray(SIZE)
    with open_disk(path, writable=True) as disk:
        change(disk.writing(), model, rng, 40)
        data = rng.randbytes(64 << 10) + bytes(128 << 10) + rng.randbytes(64 << 10)
        disk.pwrite(data, 1 << 20)
        model[1 << 20 : (1 << 20) + len(data)] = data
        disk.zero(100_000, 2 << 20)
        model[2 << 20 : (2 << 20) + 100_000] = bytes(100_000)
    return bytes(model)


def random_spans(rng: random.Random) -> Spans:
    starts = [rng.randrange(SIZE - 70_000) for _ in range(12)]
    return Spans((start, start + rng.randrange(1, 70_000)) for start in starts)


@pytest.mark.parametrize("name", ["target.raw", "target.vmdk"])
@pytest.mark.parametrize("seed", range(4))
def test_ranges_arrive_and_nothing_else_changes(tmp_path: Path, name: str, seed: int) -> None:
    model = source_disk(tmp_path / "source.vmdk", seed)
    rng = random.Random(seed)
    place = str(tmp_path / name)
    assert is_new(place)
    before = bytearray(rng.randbytes(SIZE))
    with open_target(place, SIZE, create=True) as target:
        target.pwrite(before, 0)
    spans = random_spans(rng)
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> bool:
        told.append((done, total))
        return True

    with open_disk(tmp_path / "source.vmdk") as disk, open_target(place, SIZE) as target:
        assert target.note == ""
        done = sending.send(disk.reading, target, spans, tell)
        for start, stop in spans:
            before[start:stop] = model[start:stop]
        assert target.pread(SIZE, 0) == bytes(before)
        assert done.sent_bytes + done.zeroed_bytes == spans.total_bytes
        assert done.sent_bytes <= done.read_bytes <= spans.total_bytes
        assert told[-1] == (spans.total_bytes, spans.total_bytes)
        assert told == sorted(told)
        assert sending.verify(disk.reading, target, spans) == spans.total_bytes
        again = sending.send(disk.reading, target, spans)
        assert again[:3] == done[:3]
        rest = sending.differing(disk.reading, target)
        assert rest.total_bytes > 0
        assert all(start % 4096 == 0 for start, _ in rest)
        sending.send(disk.reading, target, rest)
        assert target.pread(SIZE, 0) == model
        assert not sending.differing(disk.reading, target)


def test_differences_are_found_to_the_unit(tmp_path: Path) -> None:
    model = bytearray(source_disk(tmp_path / "source.vmdk", 9))
    place = tmp_path / "target.raw"
    for at in (5000, (1 << 20) + 70_000, SIZE - 1):
        model[at] ^= 1
    place.write_bytes(model)
    with (
        open_disk(tmp_path / "source.vmdk") as disk,
        open_target(str(place), SIZE, writable=False) as target,
    ):
        found = sending.differing(disk.reading, target)
        assert list(found) == [
            (4096, 8192),
            (((1 << 20) + 70_000) // 4096 * 4096, ((1 << 20) + 70_000) // 4096 * 4096 + 4096),
            (SIZE // 4096 * 4096, SIZE),
        ]
        with pytest.raises(VerificationError, match="first in the 4096 bytes from 4096"):
            sending.verify(disk.reading, target)


def test_sending_stops_when_told_to(tmp_path: Path) -> None:
    source_disk(tmp_path / "source.vmdk", 2)
    place = str(tmp_path / "target.raw")
    with (
        open_disk(tmp_path / "source.vmdk") as disk,
        open_target(place, SIZE, create=True) as target,
        pytest.raises(CancelledError, match=r"target\.raw"),
    ):
        sending.send(disk.reading, target, whole(SIZE), lambda done, total: False)


def test_a_target_is_as_large_as_the_disk_at_least(tmp_path: Path) -> None:
    small, large = tmp_path / "small.raw", tmp_path / "large.raw"
    small.write_bytes(bytes(SIZE - 512))
    large.write_bytes(b"\1" * (SIZE + 1024))
    with pytest.raises(UsageError, match=r"small\.raw has .* does not fit"):
        open_target(str(small), SIZE)
    source_disk(tmp_path / "source.vmdk", 4)
    with open_disk(tmp_path / "source.vmdk") as disk, open_target(str(large), SIZE) as target:
        assert "1024 bytes" in target.note
        sending.send(disk.reading, target, whole(SIZE))
        assert not sending.differing(disk.reading, target)
        with pytest.raises(UsageError, match="another disk"):
            sending.send(disk.reading, target, whole(SIZE + 512))
    assert large.read_bytes()[SIZE:] == b"\1" * 1024


@pytest.mark.parametrize("name", ["disk.raw", "disk.vmdk"])
def test_a_stamp_changes_with_any_write_and_with_nothing_else(tmp_path: Path, name: str) -> None:
    place = str(tmp_path / name)
    open_target(place, SIZE, create=True).close()
    first = stamp(place)
    with open_target(place, SIZE, writable=False) as target:
        target.pread(SIZE, 0)
    assert stamp(place) == first
    with open_target(place, SIZE) as target:
        target.pwrite(b"x", 5)
        target.flush()
    assert stamp(place) != first
    assert stamp("nbd://host/export") == ""


def test_places_are_the_same_whatever_leads_there(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").touch()
    (tmp_path / "link.raw").symlink_to("disk.raw")
    assert same_place(str(tmp_path / "link.raw"), str(tmp_path / "disk.raw"))
    assert same_place("nbd://host/a", "nbd://host:10809/a")
    assert not same_place("nbd://host/a", "nbd://host/b")
    assert not same_place("", "")


def refused(place: str) -> bool:
    try:
        open_target(place, SIZE).close()
    except LockedError:
        return True
    return False


@pytest.mark.parametrize("name", ["target.raw", "target.vmdk"])
def test_a_target_that_qemu_has_open_is_refused(tmp_path: Path, name: str) -> None:
    place, path = str(tmp_path / name), tmp_path / "q"
    open_target(place, SIZE, create=True).close()
    format = name.rpartition(".")[2]
    process = subprocess.Popen(
        [require_tool("qemu-nbd"), "-t", "-f", format, "-k", str(path), place]
    )
    try:
        wait_until(lambda: refused(place), "qemu-nbd has locked it")
        with pytest.raises(LockedError, match=rf"QEMU process has .*{name}"):
            open_target(place, SIZE)
        open_target(place, SIZE, writable=False).close()
    finally:
        process.kill()
        process.wait()
    open_target(place, SIZE).close()


def test_a_block_device_is_refused_with_what_to_do() -> None:
    for name in sorted(os.listdir("/sys/block")):
        place = f"/dev/{name}"
        if os.path.exists(place):
            with pytest.raises(UnsupportedError, match="block device") as caught:
                open_target(place, SIZE)
            assert "nbdkit" in caught.value.hint
            assert stamp(place) == ""
            return
    missing("this machine has no block devices")


# ---- exports ----


@contextlib.contextmanager
def nbdkit(where: Sequence[str], *words: str) -> Iterator[None]:
    """A server; where: how it is told to listen."""
    process = subprocess.Popen(
        [require_tool("nbdkit"), "-f", *where, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def answers(uri: str) -> bool:
    try:
        open_target(uri, 512).close()
    except NotFoundError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@pytest.mark.parametrize(
    "words",
    [
        ("file",),
        ("--no-sr", "file"),
        ("--filter=nozero", "--filter=noextents", "file"),
        ("--filter=blocksize-policy", "file"),
    ],
    ids=" ".join,
)
def test_an_export_gets_the_same_as_a_file(tmp_path: Path, words: tuple[str, ...]) -> None:
    seed = len(words)
    model = source_disk(tmp_path / "source.vmdk", seed)
    rng = random.Random(seed)
    place, socket_path = tmp_path / "target.raw", tmp_path / "n"
    before = bytearray(rng.randbytes(SIZE))
    place.write_bytes(before)
    spans = random_spans(rng)
    uri = f"nbd+unix:///?socket={socket_path}"
    with nbdkit(("-U", str(socket_path)), *words, str(place)):
        wait_until(lambda: listens(socket_path), "nbdkit listens")
        with open_disk(tmp_path / "source.vmdk") as disk, open_target(uri, SIZE) as target:
            told: list[int] = []
            done = sending.send(
                disk.reading, target, spans, lambda done, _: told.append(done) is None
            )
            assert told[-1] == spans.total_bytes == done.sent_bytes + done.zeroed_bytes
            for start, stop in spans:
                before[start:stop] = model[start:stop]
            assert place.read_bytes() == before
            assert sending.verify(disk.reading, target, spans) == spans.total_bytes
            rest = sending.differing(disk.reading, target)
            wanted = Spans(
                (at, min(at + 4096, SIZE))
                for at in range(0, SIZE, 4096)
                if model[at : at + 4096] != before[at : at + 4096]
            )
            assert rest == wanted
            with pytest.raises(VerificationError):
                sending.verify(disk.reading, target)
            sending.send(disk.reading, target, rest)
            assert not sending.differing(disk.reading, target)
            with pytest.raises(CancelledError):
                sending.send(disk.reading, target, spans, lambda done, total: False)
    assert place.read_bytes() == model


def test_an_export_is_reached_over_tcp(tmp_path: Path) -> None:
    model = source_disk(tmp_path / "source.vmdk", 3)
    place, port = tmp_path / "target.raw", free_port()
    place.write_bytes(bytes(SIZE))
    uri = f"nbd://127.0.0.1:{port}/"
    with nbdkit(("-p", str(port), "-i", "127.0.0.1"), "file", str(place)):
        wait_until(lambda: answers(uri), "nbdkit listens")
        with open_disk(tmp_path / "source.vmdk") as disk, open_target(uri, SIZE) as target:
            sending.send(disk.reading, target, whole(SIZE))
    assert place.read_bytes() == model


def test_answers_may_come_in_any_order(tmp_path: Path) -> None:
    rng = random.Random(5)
    content = rng.randbytes(1 << 20)
    (tmp_path / "d.raw").write_bytes(content)
    path = tmp_path / "n"
    options = ("--filter=delay", "file", str(tmp_path / "d.raw"), "rdelay=2ms")
    with nbdkit(("-U", str(path)), *options):
        wait_until(lambda: listens(path), "nbdkit listens")
        with NbdClient(parse_uri(f"nbd+unix:///?socket={path}")) as client:
            places = [rng.randrange(len(content) - 9000) for _ in range(40)]
            readings = [client.start_read(rng.randrange(1, 9000), at) for at in places]
            for at, reading in reversed(list(zip(places, readings, strict=True))):
                assert reading.data == content[at : at + len(reading.data)]
            client.start_read(10, len(content))  # behind its end
            good = client.start_read(10, 0)
            with pytest.raises(StorageError, match=f"at {len(content)}"):
                client.settle()
            assert good.data == content[:10], "a refusal is not the end"


def test_an_export_that_refuses_is_an_error_and_takes_no_more(tmp_path: Path) -> None:
    source_disk(tmp_path / "source.vmdk", 1)
    path = tmp_path / "n"
    options = ("--filter=error", "memory", str(SIZE), "error-pwrite=ENOSPC", "error-rate=100%")
    with nbdkit(("-U", str(path)), *options):
        wait_until(lambda: listens(path), "nbdkit listens")
        with (
            open_disk(tmp_path / "source.vmdk") as disk,
            open_target(f"nbd+unix:///?socket={path}", SIZE) as target,
            pytest.raises(StorageError, match="refused a request at"),
        ):
            sending.send(disk.reading, target, whole(SIZE))
    with nbdkit(("-U", str(tmp_path / "r")), "-r", "memory", str(SIZE)):
        wait_until(lambda: listens(tmp_path / "r"), "nbdkit listens")
        with pytest.raises(UsageError, match="takes no writes"):
            open_target(f"nbd+unix:///?socket={tmp_path / 'r'}", SIZE)
        with pytest.raises(UsageError, match="does not fit"):
            open_target(f"nbd+unix:///?socket={tmp_path / 'r'}", SIZE + 512, writable=False)
