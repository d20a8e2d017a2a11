"""Exports as people use them: where the socket goes, who may connect, and every client we know."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from nbd_peers import FLUSH, Raw, flat_disk
from rollpoint._native import Chain
from rollpoint.errors import (
    ExistsError,
    LockedError,
    NotFoundError,
    StorageError,
    UsageError,
)
from rollpoint.export import SOCKET_PATH_BYTES_MAX, Export, serve
from tools import libnbd, require_tool

SIZE = 8 << 20
MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Chain:
    return flat_disk(tmp_path, SIZE)


def tool(*arguments: str | Path) -> str:
    done = subprocess.run(
        [require_tool(str(arguments[0])), *map(str, arguments[1:])],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- the socket ----


def test_the_socket_is_for_its_owner_alone_and_goes_with_the_server(
    tmp_path: Path, disk: Chain
) -> None:
    path = tmp_path / "s"
    before = os.umask(0)
    try:
        with serve([Export("", disk)], socket=path) as server:
            found = os.lstat(path)
            assert stat.S_ISSOCK(found.st_mode)
            assert stat.S_IMODE(found.st_mode) == 0o600
            assert server.uri == f"nbd+unix:///?socket={path}"
        assert not path.exists()
    finally:
        os.umask(before)


def test_a_socket_that_a_dead_server_left_is_replaced(tmp_path: Path, disk: Chain) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with serve([Export("", disk)], socket=path), Raw(path).enter() as client:
        assert client.error(FLUSH) == 0


def test_a_socket_that_is_served_is_refused(tmp_path: Path, disk: Chain) -> None:
    path = tmp_path / "s"
    with serve([Export("", disk)], socket=path):
        with pytest.raises(LockedError, match=str(path)):
            serve([Export("", disk)], socket=path)
        with Raw(path).enter() as client:
            assert client.error(FLUSH) == 0


def test_of_servers_that_start_at_once_one_wins(tmp_path: Path, disk: Chain) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    won, lost = [], []

    def start() -> None:
        try:
            won.append(serve([Export("", disk)], socket=path))
        except LockedError:
            lost.append(1)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    with Raw(path).enter() as client:
        assert client.error(FLUSH) == 0
    won[0].stop()


def test_a_file_in_the_way_is_left_alone(tmp_path: Path, disk: Chain) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ExistsError, match="not a socket"):
        serve([Export("", disk)], socket=path)
    assert path.read_text() == "precious"


def test_stopping_leaves_a_socket_that_is_not_ours(tmp_path: Path, disk: Chain) -> None:
    path = tmp_path / "s"
    with serve([Export("", disk)], socket=path):
        path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(str(path))
    assert path.exists()


def test_places_that_cannot_be_are_refused_with_a_reason(tmp_path: Path, disk: Chain) -> None:
    with pytest.raises(NotFoundError, match="missing"):
        serve([Export("", disk)], socket=tmp_path / "missing" / "s")
    with pytest.raises(UsageError, match=f"{SOCKET_PATH_BYTES_MAX} bytes"):
        serve([Export("", disk)], socket=tmp_path / ("x" * 100))
    with pytest.raises(StorageError):
        serve([Export("", disk)], socket=tmp_path / "disk.img" / "s")
    with pytest.raises(UsageError):
        serve([Export("", disk)])
    with pytest.raises(UsageError):
        serve([Export("", disk)], socket=tmp_path / "s", tcp=("127.0.0.1", 0))
    with pytest.raises(UsageError):
        serve([], socket=tmp_path / "s")
    with pytest.raises(UsageError):
        serve([Export("a", disk), Export("a", disk)], socket=tmp_path / "s")
    with pytest.raises(UsageError):
        serve([Export("n" * 256, disk)], socket=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "::ffff:127.0.0.1", "example.org"])
def test_only_loopback_is_served_without_tls(disk: Chain, host: str) -> None:
    with pytest.raises(UsageError, match=r"docs/nbd\.md"):
        serve([Export("", disk)], tcp=(host, 0))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.8.7", "localhost", "::1"])
def test_loopback_is_served(disk: Chain, host: str) -> None:
    try:
        server = serve([Export("a b", disk)], tcp=(host, 0))
    except StorageError:
        if host == "::1" and not Path("/proc/net/if_inet6").exists():
            pytest.skip("no IPv6 here")
        raise
    with server:
        assert tool("nbdinfo", "--size", server.uri).strip() == str(SIZE)
        port = int(server.uri.rsplit(":", 1)[1].split("/")[0])
        with pytest.raises(LockedError):
            serve([Export("", disk)], tcp=(host, port))


def test_names_are_escaped_in_uris(tmp_path: Path, disk: Chain) -> None:
    place = tmp_path / "a & b"
    place.mkdir()
    names = ["", "disk 1/ä?#%"]
    with serve([Export(name, disk) for name in names], socket=place / "s") as server:
        for name in names:
            found = json.loads(tool("nbdinfo", "--json", server.uri_of(name)))
            assert found["exports"][0]["export-name"] == name
        with pytest.raises(NotFoundError):
            server.uri_of("other")


def test_stopping_ends_clients_and_keeps_the_last_figures(tmp_path: Path, disk: Chain) -> None:
    server = serve([Export("", disk)], socket=tmp_path / "s")
    with Raw(tmp_path / "s").enter() as client, Raw(tmp_path / "s") as half:
        assert client.write(0, b"x" * 512) == 0
        server.stop(deadline_seconds=3600)  # nobody is waited for who has nothing to take
        server.stop()
        assert client.closed()
        assert half.closed()
    assert server.stats()["writes"] == 1
    assert server.stats()["connections_open"] == 0


def test_a_server_that_is_dropped_running_warns(tmp_path: Path, disk: Chain) -> None:
    server = serve([Export("", disk)], socket=tmp_path / "s")
    with pytest.warns(ResourceWarning, match="not stopped"):
        del server
    assert not (tmp_path / "s").exists()


def test_signals_are_left_to_the_caller_s_threads(tmp_path: Path, disk: Chain) -> None:
    """Else a SIGTERM could end up in one of the server's, and wake nobody."""
    with serve([Export("", disk)], socket=tmp_path / "s"), Raw(tmp_path / "s").enter() as client:
        assert client.error(FLUSH) == 0
        names = []
        for task in Path("/proc/self/task").iterdir():
            status = (task / "status").read_text()
            name = re.search(r"^Name:\t(.*)$", status, re.MULTILINE)
            blocked = re.search(r"^SigBlk:\t(.*)$", status, re.MULTILINE)
            assert name is not None
            assert blocked is not None
            if name[1].startswith("rp-nbd"):
                names.append(name[1])
                assert int(blocked[1], 16) & (1 << (signal.SIGTERM - 1))
                assert int(blocked[1], 16) & (1 << (signal.SIGINT - 1))
        assert sorted(names) == ["rp-nbd-client", "rp-nbd-door"] + 4 * ["rp-nbd-worker"]


# ---- clients ----


def test_nbdinfo_sees_what_is_offered(tmp_path: Path, disk: Chain) -> None:
    exports = [Export("rw", disk), Export("ro", disk, read_only=True)]
    with serve(exports, socket=tmp_path / "s") as server:
        listed = json.loads(tool("nbdinfo", "--list", "--json", server.uri_of("rw")))
    rw, ro = listed["exports"]
    assert listed["protocol"] == "newstyle-fixed"
    assert listed["structured"]
    assert (rw["export-name"], ro["export-name"]) == ("rw", "ro")
    for export in (rw, ro):
        assert export["contexts"] == ["base:allocation"]
        assert export["block_size_minimum"] == 1
        assert export["block_size_preferred"] == 4096
        assert export["block_size_maximum"] == 32 * MIB
        assert export["can_flush"]
        assert export["can_fua"]
        assert export["can_df"]
        assert export["can_multi_conn"]
    assert (rw["is_read_only"], rw["can_trim"], rw["can_zero"]) == (False, True, True)
    assert (ro["is_read_only"], ro["can_trim"], ro["can_zero"]) == (True, False, False)


def test_nbdcopy_and_qemu_img_copy_in_and_out(tmp_path: Path, disk: Chain) -> None:
    rng = random.Random(4)
    content = bytearray(SIZE)
    content[MIB : 3 * MIB + 777] = rng.randbytes(2 * MIB + 777)
    source = tmp_path / "source"
    source.write_bytes(content)
    with serve([Export("", disk)], socket=tmp_path / "s") as server:
        tool("nbdcopy", source, server.uri)
        assert disk.pread(SIZE, 0) == content
        tool("nbdcopy", server.uri, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == content
        for start, length, kind in _map(server.uri):
            if kind == 3:
                assert not any(content[start : start + length])
        tool("qemu-img", "convert", "-f", "raw", "-O", "raw", server.uri, tmp_path / "out2")
        assert (tmp_path / "out2").read_bytes() == content
        content[5 * MIB : 6 * MIB] = rng.randbytes(MIB)
        source.write_bytes(content)
        tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, server.uri)
        tool("qemu-img", "compare", "-f", "raw", "-F", "raw", source, server.uri)
        assert server.stats()["errors"] == 0
    assert disk.pread(SIZE, 0) == content


def _map(uri: str) -> list[tuple[int, int, int]]:
    found = json.loads(tool("nbdinfo", "--map", "--json", uri))
    return [(run["offset"], run["length"], run["type"]) for run in found]


def test_qemu_io_reads_writes_zeroes_and_discards(tmp_path: Path, disk: Chain) -> None:
    commands = [
        "write -P 0x11 512 1536",
        "write -f -P 0x12 4096 512",
        "write -P 0x13 1M 5M",
        "write -z 2M 64k",
        "write -z -u 3M 64k",
        "discard 4M 1M",
        "flush",
        "read -P 0x11 512 1536",
        "read -P 0x12 4096 512",
        "read -P 0x13 1M 1M",
        "read -P 0 2M 64k",
        "read -P 0 3M 64k",
        "read -P 0 4M 1M",
        "read -P 0x13 5M 1M",
    ]
    with serve([Export("", disk)], socket=tmp_path / "s") as server:
        arguments = [word for command in commands for word in ("-c", command)]
        out = tool("qemu-io", "-f", "raw", *arguments, server.uri)
        assert "failed" not in out, out
        assert "error" not in out, out
        assert server.stats()["trims"] >= 1


def test_fio_verifies_what_it_wrote(tmp_path: Path, disk: Chain) -> None:
    with serve([Export("", disk)], socket=tmp_path / "s") as server:
        tool(
            "fio", "--name=job", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite",
            "--bs=4k", "--iodepth=16", "--norandommap=0",
            f"--size={SIZE}", "--verify=crc32c", "--verify_fatal=1",
            "--fsync=32", "--randseed=7", "--minimal", f"--aux-path={tmp_path}",
        )  # fmt: skip
        assert server.stats()["errors"] == 0
        assert server.stats()["flushes"] > 0


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_plain_model_agrees_under_deep_queues_and_two_connections(
    tmp_path: Path, disk: Chain, seed: int, structured: bool
) -> None:
    """Random, unaligned operations from libnbd, 16 at once. Those in flight do not overlap."""
    nbd = libnbd()
    rng = random.Random(seed)
    model = bytearray(SIZE)
    with serve([Export("", disk)], socket=tmp_path / "s") as server:
        handles = []
        for _ in range(2):
            handle = nbd.NBD()
            handle.set_request_structured_replies(structured)
            handle.connect_uri(server.uri)
            handles.append(handle)
        for _ in range(40):
            _one_round(nbd, handles, rng, model)
        for handle in handles:
            handle.flush()
            handle.shutdown()
        assert server.stats()["errors"] == 0
    assert disk.pread(SIZE, 0) == model


def _one_round(nbd: object, handles: list, rng: random.Random, model: bytearray) -> None:  # type: ignore[type-arg]
    pieces = 16
    waiting = []
    for piece in range(pieces):
        first = piece * SIZE // pieces
        offset = first + rng.randrange(SIZE // pieces // 2)
        longest = SIZE // pieces // 2
        length = rng.choice([1, 511, 512, 4096, rng.randint(1, 9000), longest])
        handle = rng.choice(handles)
        kind = rng.choice(["read", "write", "write", "fua", "zero", "trim"])
        if kind == "read":
            buffer = nbd.Buffer(length)  # type: ignore[attr-defined]
            cookie = handle.aio_pread(buffer, offset)
            waiting.append((handle, cookie, buffer, bytes(model[offset : offset + length])))
            continue
        if kind in ("write", "fua"):
            data = rng.randbytes(length)
            flags = nbd.CMD_FLAG_FUA if kind == "fua" else 0  # type: ignore[attr-defined]
            cookie = handle.aio_pwrite(data, offset, flags=flags)
        else:
            data = bytes(length)
            call = handle.aio_zero if kind == "zero" else handle.aio_trim
            cookie = call(length, offset)
        model[offset : offset + length] = data
        waiting.append((handle, cookie, None, b""))
    for handle, cookie, buffer, expected in waiting:
        while not handle.aio_command_completed(cookie):
            handle.poll(-1)
        if buffer is not None:
            assert buffer.to_bytearray() == expected


def test_other_addresses_are_reached_through_nbdkit_with_tls(
    tmp_path: Path, disk: Chain, root: Path
) -> None:
    """The commands of docs/nbd.md, on loopback."""
    for name in ("nbdkit", "nbdinfo", "qemu-img"):
        require_tool(name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    page = (root / "docs" / "nbd.md").read_text().replace("10809", port)
    make_key, start, ask = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    environment = os.environ | {"ADDRESS": "127.0.0.1"}

    def sh(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    with serve([Export("web01", disk)], socket=tmp_path / "export.sock"):
        for script in (make_key, start):
            done = sh(script)
            assert done.returncode == 0, done.stderr
        try:
            found = sh(ask)
            assert found.returncode == 0, found.stderr
            assert "newstyle-fixed with TLS" in found.stdout
            assert f"virtual size: {SIZE // MIB} MiB" in found.stdout
            assert sh(f"nbdinfo nbd://127.0.0.1:{port}/web01").returncode != 0
            (tmp_path / "wrong").mkdir()
            (tmp_path / "wrong" / "keys.psk").write_text(f"mounthost:{'00' * 32}\n")
            assert sh(ask.replace("$PWD/psk", "$PWD/wrong")).returncode != 0
        finally:
            os.kill(int((tmp_path / "nbdkit.pid").read_text()), signal.SIGTERM)
