"""External replicators: a hold counts when it is confirmed, and nothing is guessed."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killing import FileHypervisor, Snapshot, feed
from rollpoint import holds, operation, replication
from rollpoint.config_tables import HoldTable
from rollpoint.errors import StorageError, UsageError
from rollpoint.replica import Replica


class Replicator:
    """One over HTTP. answers: what to say instead, by verb; late: status asked in vain first."""

    def __init__(self) -> None:
        self.held: bool = False
        self.late = 0
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.headers: dict[str, str] = {}


@contextlib.contextmanager
def serving(peer: Replicator) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            verb = self.path.rsplit("/", 1)[1]
            peer.asked.append((self.command, verb, self.headers.get("Authorization", "")))
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            told = peer.held
            if verb == "status" and peer.late:
                peer.late -= 1
                told = not told
            elif verb != "status":
                told = peer.held = verb == "hold"
            code, body = peer.answers.get(verb, (200, json.dumps({"held": told}).encode()))
            self.send_response(code)
            for name, value in peer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def printing(text: str, code: int = 0) -> list[str]:
    return [sys.executable, "-c", f"print({text!r}); raise SystemExit({code})"]


def at_once(seconds: float) -> None:
    """In place of time.sleep."""


def test_a_hold_over_http_waits_until_it_is_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLD_TOKEN", "canary-71")
    peer = Replicator()
    peer.late = 3
    with serving(peer) as url:
        table = HoldTable(url=url, token_env="HOLD_TOKEN", timeout="20s")
        assert "canary" not in holds.hold(table, at_once)
        assert [row[:2] for row in peer.asked] == [("POST", "hold")] + 4 * [("GET", "status")]
        assert {row[2] for row in peer.asked} == {"Bearer canary-71"}
        holds.release(table, at_once)
        assert not peer.held


@pytest.mark.parametrize(
    "answer",
    [(500, b"{}"), (200, b"held"), (200, b"[]"), (200, b'{"held": "false"}'), (200, b'{"held": 1}'),
     (302, b"")],
)  # fmt: skip
def test_what_is_no_confirmation_fails_the_hold(answer: tuple[int, bytes]) -> None:
    peer = Replicator()
    peer.headers = {"Location": "http://127.0.0.1:1/"}
    peer.answers = {"hold": answer}
    with serving(peer) as url, pytest.raises(StorageError, match=r"127\.0\.0\.1"):
        holds.hold(HoldTable(url=url), at_once)


def test_one_that_never_confirms_fails_the_hold_in_its_time() -> None:
    peer = Replicator()
    peer.answers = {"status": (200, b'{"held": false}')}
    with serving(peer) as url, pytest.raises(StorageError, match="does not say"):
        holds.hold(HoldTable(url=url, timeout="0.3s"))


def test_one_that_speaks_no_http_or_is_not_there_fails_the_hold() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def babble() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"220 mail\r\n\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(StorageError, match="cannot be asked"):
            holds.hold(HoldTable(url=f"http://127.0.0.1:{port}", timeout="10s"))
        thread.join()
    with pytest.raises(StorageError, match="cannot be asked"):
        holds.hold(HoldTable(url=f"http://127.0.0.1:{port}", timeout="2s"))


@pytest.mark.parametrize(
    ("printed", "held"),
    [("held", True), ("Held since noon", True), ("held.", True), ("not held", False),
     ("", False), ("unheld", False), ("running; was held", False)],
)  # fmt: skip
def test_status_begins_with_held_while_it_holds(printed: str, held: bool) -> None:
    table = HoldTable(hold=printing("ok"), release=printing("ok"), status=printing(printed))
    assert holds.is_held(table) is held


def test_commands_hold_and_release(tmp_path: Path) -> None:
    flag = tmp_path / "held"
    program = "import pathlib, sys; p = pathlib.Path(sys.argv[2]); v = sys.argv[1];\n"
    program += "p.touch() if v == 'hold' else p.unlink() if v == 'release' else None\n"
    program += "print('held' if p.exists() else 'running')"
    words: Any = {verb: [sys.executable, "-c", program, verb, str(flag)] for verb in
                  ("hold", "release", "status")}  # fmt: skip
    table = HoldTable(**words)
    assert holds.hold(table, at_once) == "held"
    assert holds.is_held(table)
    holds.release(table, at_once)
    assert not flag.exists()


def test_a_command_that_fails_or_hangs_fails_the_hold() -> None:
    with pytest.raises(StorageError, match="ended with 3: disk on fire"):
        holds.hold(HoldTable(hold=printing("disk on fire", 3), release=printing("")))
    hanging = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(StorageError, match="did not end"):
        holds.hold(HoldTable(hold=hanging, release=printing(""), timeout="0.2s"))
    with pytest.raises(StorageError, match="cannot be run"):
        holds.hold(HoldTable(hold=["/no/such/program"], release=["x"]))


@pytest.mark.parametrize(
    "settings",
    [{}, {"url": "https://x", "hold": ["x"], "release": ["y"]}, {"hold": ["x"]},
     {"url": "ftp://x"}, {"url": "http://replicator.example", "token_env": "T"}],
)  # fmt: skip
def test_a_table_that_cannot_work_is_refused_before_anything(settings: Any) -> None:
    with pytest.raises(UsageError):
        holds.check(HoldTable(**settings))


# ---- with a replica ----


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Snapshot]]:
    return feed(tmp_path_factory.mktemp("fed"))


@pytest.fixture
def path(fed: tuple[Path, list[Snapshot]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(fed[0], tmp_path / "r"))


def test_a_failover_holds_the_replicator_and_its_undo_releases_it(
    path: Path, tmp_path: Path
) -> None:
    peer = Replicator()
    here = FileHypervisor(tmp_path / "here")
    with serving(peer) as url, Replica.open(path) as replica:
        (path / "replica.toml").write_text(f'[hold]\nurl = "{url}"\n')
        operation.failover(replica, hypervisor=here, power_on=False)
        assert peer.held
        operation.undo(replica, hypervisor=here)
        assert not peer.held
        assert replica.manifest.state == "Ready"


def test_a_replicator_that_does_not_hold_stops_the_failover_before_anything_changed(
    path: Path, tmp_path: Path
) -> None:
    """And it is told to go on: who knows what it did."""
    peer = Replicator()
    peer.answers = {"hold": (503, b"")}
    here = FileHypervisor(tmp_path / "here")
    with serving(peer) as url, Replica.open(path) as replica:
        (path / "replica.toml").write_text(f'[hold]\nurl = "{url}"\n')
        with pytest.raises(StorageError, match="503"):
            operation.failover(replica, hypervisor=here, power_on=False)
        manifest = replica.manifest
        assert (manifest.state, manifest.epoch, manifest.held) == ("Ready", 1, False)
        assert not replication.is_held(replica)
        assert not (path / "a-interim.vmdk").exists()
        assert ("POST", "release") in [row[:2] for row in peer.asked]


def test_hold_and_release_by_hand_hold_and_release_it_too(path: Path) -> None:
    peer = Replicator()
    with serving(peer) as url, Replica.open(path) as replica:
        (path / "replica.toml").write_text(f'[hold]\nurl = "{url}"\n')
        replication.hold(replica, "to look first")
        assert peer.held
        replication.release(replica)
        assert not peer.held
        peer.answers = {"hold": (500, b"")}
        with pytest.raises(StorageError):
            replication.hold(replica)
        assert replica.manifest.epoch == 2, "that of the first hold"
        assert not replication.is_held(replica)


def test_what_is_on_this_host_is_asked_through_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLD_TOKEN", "canary-72")
    proxy, peer = Replicator(), Replicator()
    with serving(proxy) as other, serving(peer) as url:
        monkeypatch.setenv("http_proxy", other)
        monkeypatch.delenv("no_proxy", raising=False)
        holds.hold(HoldTable(url=url, token_env="HOLD_TOKEN", timeout="20s"), at_once)
    assert peer.held
    assert not proxy.asked
