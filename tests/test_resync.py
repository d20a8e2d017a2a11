"""After a disconnect the replica gets in step again, with the time between as a gap."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_peers import DISC, WRITE, Raw
from replicas import (
    SIZES,
    ingest_process,
    ingesting,
    make,
    rollpoint,
    seen_by_qemu,
    wait_until,
)
from rollpoint import control, operation, replication, resync
from rollpoint.convert import convert
from rollpoint.disk import open_disk
from rollpoint.errors import (
    CancelledError,
    FormatError,
    GapError,
    HeldError,
    StateError,
    StorageError,
    UsageError,
)
from rollpoint.nbd_client import NbdClient, Place, parse_uri
from rollpoint.replica import Replica
from tools import listens, require_tool

WAYS = ["beside an ingest", "without one"]
GRAIN = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make(tmp_path / "r")
    return tmp_path / "r"


def random_disk(rng: random.Random, size: int) -> bytearray:
    """Data, zeros that were written, and holes."""
    disk = bytearray(size)
    for _ in range(12):
        at = rng.randrange(size)
        part = min(size - at, rng.choice((512, 5000, 70_000, 200_000)))
        disk[at : at + part] = rng.randbytes(part) if rng.random() < 0.7 else bytes(part)
    return disk


def changed(rng: random.Random, disk: bytearray) -> bytearray:
    made = bytearray(disk)
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(made))
        part = min(len(made) - at, rng.choice((1, 512, 4096, 100_000)))
        made[at : at + part] = rng.randbytes(part) if rng.random() < 0.6 else bytes(part)
    return made


def differing_grains(a: bytes | bytearray, b: bytes | bytearray) -> int:
    return sum(a[at : at + GRAIN] != b[at : at + GRAIN] for at in range(0, len(a), GRAIN))


def fill(path: Path, tmp_path: Path, content: dict[str, bytearray]) -> None:
    """What the source wrote while it was there, through an ingest."""
    with ingesting(path, tmp_path / "s"):
        for name, disk in content.items():
            with NbdClient(Place(name, str(tmp_path / "s"))) as client:
                client.pwrite(bytes(disk), 0)


@contextlib.contextmanager
def maybe_ingest(path: Path, tmp_path: Path, way: str) -> Iterator[None]:
    with ingesting(path, tmp_path / "s") if way == WAYS[0] else contextlib.nullcontext():
        yield


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(4))
def test_all_that_differs_is_written_and_nothing_else(
    path: Path, tmp_path: Path, way: str, seed: int
) -> None:
    rng = random.Random(seed)
    before = {name: random_disk(rng, size) for name, size in SIZES.items()}
    after = {name: changed(rng, disk) for name, disk in before.items()}
    fill(path, tmp_path, before)
    options = []
    for name, disk in after.items():
        image = tmp_path / f"{name}.raw"
        image.write_bytes(disk)
        if seed % 2:
            convert(image, tmp_path / f"{name}.vmdk", "monolithicSparse", source_format="raw")
            image = tmp_path / f"{name}.vmdk"
        options += ["--disk", f"{name}={image}"]
    with maybe_ingest(path, tmp_path, way):
        told = rollpoint("replica", "resync", path, *options)
        again = rollpoint("replica", "resync", path, *options)
    for row in told["disks"]:
        name = row["name"]
        assert row["compared_bytes"] == SIZES[name]
        moved = row["written_bytes"] + row["zeroed_bytes"]
        grains = differing_grains(before[name], after[name])
        assert moved <= grains * GRAIN
        assert moved > (grains - 1) * GRAIN
    assert [(r["written_bytes"], r["zeroed_bytes"]) for r in again["disks"]] == [(0, 0)] * 2
    assert told["point"]["label"] == "resynchronised"
    listed = rollpoint("points", path)
    assert all(gap["end"] for gap in listed["gaps"])
    ends = [gap["end"] for gap in listed["gaps"]]
    assert told["point"]["time"] in ends
    with Replica.open(path) as replica:
        done = operation.failover(replica, told["point"]["id"], power_on=False)
        for name, interim in done.interims.items():
            assert seen_by_qemu(interim, tmp_path) == after[name], (seed, name)


@pytest.mark.parametrize("way", WAYS)
def test_only_the_ranges_given_are_compared(path: Path, tmp_path: Path, way: str) -> None:
    rng = random.Random(9)
    before = {name: random_disk(rng, size) for name, size in SIZES.items()}
    fill(path, tmp_path, before)
    source = bytearray(before["b"])
    for at in (0, 200_000, 400_000):
        source[at : at + 100] = rng.randbytes(100)
    (tmp_path / "b.raw").write_bytes(source)
    rows = [{"start": 200_001, "length": 10, "depth": 0, "zero": False, "data": True},
            {"start": 400_000, "length": 100}, {"start": 5, "length": 0}]  # fmt: skip
    (tmp_path / "dirty.json").write_text(json.dumps(rows))
    with maybe_ingest(path, tmp_path, way):
        (row,) = rollpoint(
            "replica", "resync", path, "--disk", f"b={tmp_path}/b.raw",
            "--ranges", f"b={tmp_path}/dirty.json",
        )["disks"]  # fmt: skip
    assert row["written_bytes"] <= row["compared_bytes"] <= 4 * GRAIN
    source[:100] = before["b"][:100]  # it was not named
    with Replica.open(path) as replica:
        done = operation.failover(replica, power_on=False)
        assert seen_by_qemu(done.interims["b"], tmp_path) == source
        assert seen_by_qemu(done.interims["a"], tmp_path) == before["a"]


def test_ranges_are_those_that_qemu_img_map_writes(tmp_path: Path) -> None:
    with open(tmp_path / "x.raw", "wb") as file:
        file.truncate(1 << 20)
        file.seek(300_000)
        file.write(b"data")
    done = subprocess.run(
        [require_tool("qemu-img"), "map", "--output=json", "-f", "raw", tmp_path / "x.raw"],
        capture_output=True, check=True,
    )  # fmt: skip
    (tmp_path / "map.json").write_bytes(done.stdout)
    ranges = resync.read_ranges(str(tmp_path / "map.json"))
    assert resync.joined(ranges, 1 << 20) == [(0, 1 << 20)]
    assert resync.joined([(5000, 5001), (4095, 4097), (9000, 9000)], 8200) == [(0, 8192)]
    assert resync.joined([(8191, 8200)], 8200) == [(4096, 8200)]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '[{"start": 1}]', '[{"start": -1, "length": 5}]', "[" * 5000,
     '[{"start": true, "length": 1}]', '[{"start": 0.5, "length": 1}]', "\x00"],
)  # fmt: skip
def test_nonsense_for_ranges_is_a_misuse(path: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    (tmp_path / "b.raw").write_bytes(bytes(SIZES["b"]))
    error = rollpoint("replica", "resync", path, "--disk", f"b={tmp_path}/b.raw",
                      "--ranges", f"b={tmp_path}/bad.json", code=2)  # fmt: skip
    assert error["type"] == "UsageError"
    assert rollpoint("points", path)["gaps"] == []


def test_what_cannot_be_done_is_refused_before_anything_is_changed(
    path: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.raw").write_bytes(bytes(SIZES["b"]))
    (tmp_path / "small.raw").write_bytes(bytes(512))
    (tmp_path / "far.json").write_text(json.dumps([{"start": SIZES["b"], "length": 1}]))

    def refused(*words: object, code: int = 2) -> str:
        return str(rollpoint("replica", "resync", path, *words, code=code)["type"])

    good = f"b={tmp_path}/b.raw"
    assert refused("--disk", f"b={tmp_path}/small.raw") == "UsageError"
    assert refused("--disk", f"x={tmp_path}/b.raw", code=1) == "NotFoundError"
    assert refused("--disk", f"b={tmp_path}/none.raw", code=1) == "NotFoundError"
    assert refused("--disk", good, "--ranges", f"b={tmp_path}/far.json") == "UsageError"
    assert refused("--disk", good, "--ranges", f"a={tmp_path}/far.json") == "UsageError"
    assert refused("--disk", good, "--ranges", f"b={tmp_path}/none.json", code=1) == "NotFoundError"
    misuse = rollpoint("replica", "resync", path, "--disk", good, "--ranges", "far.json", code=2)
    assert misuse["message"] == "--ranges 'far.json' is not NAME=FILE"
    assert refused("--disk", "b=nbds://host/b") == "UsageError"
    assert refused("--disk", f"b=nbd+unix:///b?socket={tmp_path}/none", code=1) == "NotFoundError"
    with pytest.raises(UsageError), Replica.open(path) as replica:
        resync.resync(replica, {})
    with ingesting(path, tmp_path / "s"):
        rollpoint("hold", path)
        assert refused("--disk", good, code=1) == "HeldError"
    assert refused("--disk", good, code=1) == "HeldError"
    rollpoint("release", path)
    assert [gap for gap in rollpoint("points", path)["gaps"] if "compared" in gap["cause"]] == []


@pytest.mark.parametrize("way", WAYS)
def test_a_disk_in_doubt_without_a_source_is_refused(
    path: Path, tmp_path: Path, way: str
) -> None:
    for name, size in SIZES.items():
        (tmp_path / f"{name}.raw").write_bytes(bytes(size))
    with ingest_process(path, tmp_path / "s") as process:
        rollpoint("mark", path)
        process.kill()
        process.wait(30)
    one, other = (("--disk", f"{name}={tmp_path}/{name}.raw") for name in SIZES)
    with maybe_ingest(path, tmp_path, way):
        assert "disk b" in rollpoint("replica", "resync", path, *one, code=2)["message"]
        assert rollpoint("mark", path, code=1)["type"] == "GapError"
        point = rollpoint("replica", "resync", path, *one, *other)["point"]
        assert rollpoint("mark", path)["id"] == point["id"] + 1


def test_a_lost_connection_needs_a_resync_of_its_disk_only(path: Path, tmp_path: Path) -> None:
    """The whole story of one disconnect, as the operator sees it."""
    source = bytearray(SIZES["b"])
    with ingesting(path, tmp_path / "s"):
        client = Raw(tmp_path / "s").enter("b")
        source[:7] = b"written"
        assert client.error(WRITE, 0, 7, data=bytes(source[:7])) == 0
        client.socket.close()  # no goodbye
        wait_until(lambda: rollpoint("points", path)["gaps"], "the loss is noticed")
        (before,) = rollpoint("points", path)["points"]
        source[9000:9005] = b"alone"  # nobody saw that
        during = rollpoint("failover", path, "--no-power-on", "--to", moment_after(before), code=1)
        assert during["type"] == "GapError"
        assert f"{before['id']} at {before['time']} before" in during["hint"]
        assert "after" not in during["hint"]
        (tmp_path / "b.raw").write_bytes(source)
        told = rollpoint("replica", "resync", path, "--disk", f"b={tmp_path}/b.raw")
        assert told["disks"][0]["written_bytes"] == GRAIN
        inside = rollpoint("failover", path, "--no-power-on", "--to", moment_after(before), code=1)
        assert inside["type"] == "GapError"
        assert "connection to disk b was lost" in inside["message"]
        assert f"{before['id']} at {before['time']} before" in inside["hint"]
        assert f"{told['point']['id']} at {told['point']['time']} after" in inside["hint"]
        rollpoint("mark", path)
        done = rollpoint("failover", path, "--no-power-on", "--to", told["point"]["time"])
        assert done["point"] == told["point"]["id"]
        assert seen_by_qemu(path / "b-interim.vmdk", tmp_path) == source
        rollpoint("undo", path)
        done = rollpoint("failover", path, "--no-power-on", "--to", before["time"])
        assert done["point"] == before["id"], "a point on the gap's edge is a point"
        rollpoint("undo", path)


def moment_after(point: dict[str, str]) -> str:
    """The first moment behind a point that can be written down."""
    head, digits = point["time"].removesuffix("Z").split(".")
    assert digits != "999999", "one run in a million"
    return f"{head}.{int(digits) + 1:06d}Z"


@pytest.mark.parametrize("way", WAYS)
def test_stopped_half_way_the_gap_lasts_until_it_is_done_again(
    path: Path, tmp_path: Path, way: str
) -> None:
    rng = random.Random(3)
    source = {name: str(tmp_path / f"{name}.raw") for name in SIZES}
    for name, size in SIZES.items():
        Path(source[name]).write_bytes(rng.randbytes(size))
    with maybe_ingest(path, tmp_path, way), Replica.open(path) as replica:
        first = replication.mark(replica)
        with pytest.raises(CancelledError):
            resync.resync(replica, source, progress=lambda name, done, total: name == "a")
        with pytest.raises(GapError):
            replication.mark(replica)
        wait_until(lambda: rollpoint("points", path)["gaps"], "the manifest knows")
        replica.refresh()
        with pytest.raises(GapError):
            replica.points.nearest(first.time_ns + 1000)
        done = resync.resync(replica, source)
        assert done.disks[0].written_bytes == 0, "that was done before it was stopped"
        assert done.disks[1].written_bytes <= SIZES["b"]
        replica.refresh()
        assert replica.points.latest == done.point


def test_when_somebody_else_writes_meanwhile_nothing_is_promised(
    path: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.raw").write_bytes(bytes(SIZES["b"]))
    with ingesting(path, tmp_path / "s"), Replica.open(path) as replica:
        source = Raw(tmp_path / "s").enter("a")

        def write(name: str, done: int, total: int) -> bool:
            return source.error(WRITE, 0, 4, data=b"live") == 0

        with pytest.raises(StateError, match="somebody else wrote"):
            resync.resync(replica, {"b": str(tmp_path / "b.raw")}, progress=write)
        with pytest.raises(GapError):
            replication.mark(replica)
        assert len(resync.resync(replica, {"b": str(tmp_path / "b.raw")}).disks) == 1
        source.request(DISC)
        source.socket.close()


def test_holes_on_both_sides_are_not_read(tmp_path: Path) -> None:
    """A terabyte with a few bytes: it ends, which reading all of it would not."""
    size = 1 << 40
    path = tmp_path / "r"
    make(path, {"big": size})
    with open(tmp_path / "big.raw", "wb") as file:
        file.truncate(size)
        file.seek(size // 3)
        file.write(b"here")
    with ingesting(path, tmp_path / "s"):
        told = rollpoint("replica", "resync", path, "--disk", f"big={tmp_path}/big.raw")
        assert told["disks"][0]["written_bytes"] == GRAIN
    told = rollpoint("replica", "resync", path, "--disk", f"big={tmp_path}/big.raw")
    assert told["disks"][0] == {
        "name": "big", "compared_bytes": size, "written_bytes": 0, "zeroed_bytes": 0
    }  # fmt: skip


# ---- NBD sources and the client ----


@contextlib.contextmanager
def nbdkit(socket: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [require_tool("nbdkit"), "-f", "-U", str(socket), *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: listens(socket), "nbdkit listens")
        yield process
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("options", [[], ["--no-sr"]], ids=["structured", "simple"])
def test_a_source_behind_another_nbd_server(
    path: Path, tmp_path: Path, options: list[str]
) -> None:
    rng = random.Random(4)
    source = random_disk(rng, SIZES["b"])
    (tmp_path / "b.raw").write_bytes(source)
    with nbdkit(tmp_path / "n", *options, "-r", "file", str(tmp_path / "b.raw")):
        uri = f"nbd+unix:///?socket={tmp_path}/n"
        told = rollpoint("replica", "resync", path, "--disk", f"b={uri}")
    assert told["disks"][0]["written_bytes"] > 0
    with open_disk(path / "b-journal.vmdk") as disk:
        assert disk.pread(SIZES["b"], 0) == source


@pytest.mark.parametrize("options", [[], ["--no-sr"]], ids=["structured", "simple"])
def test_the_client_agrees_with_another_server(tmp_path: Path, options: list[str]) -> None:
    rng = random.Random(11)
    size = 3 << 20
    model = bytearray(size)
    with (
        nbdkit(tmp_path / "n", *options, "memory", str(size)),
        NbdClient(parse_uri(f"nbd+unix:///?socket={tmp_path}/n")) as client,
    ):
        assert (client.size_bytes, client.read_only) == (size, False)
        for _ in range(120):
            length = rng.choice((1, 512, 4096, 70_000, 1 << 20))
            offset = rng.randrange(size - length + 1)
            act = rng.randrange(4)
            if act == 0:
                data = rng.randbytes(length)
                client.pwrite(data, offset)
                model[offset : offset + length] = data
            elif act == 1:
                client.zero(length, offset)
                model[offset : offset + length] = bytes(length)
            elif act == 2:
                assert client.pread(length, offset) == model[offset : offset + length]
            else:
                client._known = []
                at = 0
                while at < length:
                    found, zeros = client.run(offset + at, length - at)
                    assert 0 < found <= length - at
                    assert not zeros or not any(model[offset + at : offset + at + found])
                    at += found
        client.flush()
        assert client.pread(size, 0) == model
        with pytest.raises(StorageError):
            client.pread(1, size)
        assert client.pread(4, 0) == model[:4], "a refusal is not the end"


def test_a_server_that_goes_away_is_an_error(tmp_path: Path) -> None:
    with nbdkit(tmp_path / "n", "memory", "1M") as process:
        client = NbdClient(Place("", str(tmp_path / "n")))
        assert client.pread(512, 0) == bytes(512)
        process.kill()
    with pytest.raises(StorageError, match="went away"):
        client.pread(512, 0)
    client.close()
    client.close()


GREETING = b"NBDMAGICIHAVEOPT\0\1"


@pytest.mark.parametrize(
    "said", [b"", b"x" * 64, b"NBDMAGICIHAVEOPT\0\0", GREETING + b"y" * 64, GREETING]
)
def test_a_server_that_talks_nonsense_is_refused(tmp_path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "odd"))
        listener.listen()

        def talk() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises((FormatError, StorageError)):
            NbdClient(Place("", str(tmp_path / "odd")))
        thread.join()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("nbd+unix:///a%20b?socket=/run/s", Place("a b", "/run/s")),
        ("nbd://host", Place("", None, "host", 10809)),
        ("nbd://host:99/x", Place("x", None, "host", 99)),
        ("nbd://[::1]:99/x", Place("x", None, "::1", 99)),
    ],
)
def test_uris_name_places(text: str, wanted: Place) -> None:
    assert parse_uri(text) == wanted


@pytest.mark.parametrize(
    "text", ["nbd+unix:///a", "nbd://", "nbds://host/a", "nbd://host:x/", "http://host/a", "nbd+unix://h/a?socket=x"]
)  # fmt: skip
def test_other_uris_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_uri(text)


def test_a_gap_of_disks_that_are_not_there_is_refused(path: Path, tmp_path: Path) -> None:
    with ingesting(path, tmp_path / "s"):
        for disks in (["x"], "a", [[1]], {"a": 1}):
            with pytest.raises(UsageError):
                control.ask(str(path / ".control.sock"), "gap-open", cause="c", disks=disks)
        rollpoint("hold", path)
        with pytest.raises(HeldError):
            control.ask(str(path / ".control.sock"), "gap-close")


@pytest.mark.parametrize("terminal", [True, False])
def test_long_work_shows_a_bar_on_a_terminal_only(tmp_path: Path, terminal: bool) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(1 << 20))
    rollpoint("replica", "create", tmp_path / "r", "--disk", "a=1M")
    for what in ("seed", "resync"):
        near, far = os.openpty() if terminal else os.pipe()
        command = ["-m", "rollpoint", "replica", what, str(tmp_path / "r"), "--disk", f"a={image}"]
        done = subprocess.run([sys.executable, *command], stderr=far)
        os.close(far)
        said = b""
        with contextlib.suppress(OSError):  # a terminal whose other end is closed
            while piece := os.read(near, 4096):
                said += piece
        os.close(near)
        assert done.returncode == 0, said
        assert (what.encode() in said) == terminal, said
