"""Gates of a plan: each kind lets through what is up and nothing else, within its looks."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypervisor_makers import QemuMaker
from rollpoint.errors import HypervisorError, UnsupportedError
from rollpoint.hypervisor.base import Drive, Machine
from rollpoint.plans import gates, reaching
from rollpoint.plans.place import Place
from rollpoint.plans.tables import Gate
from vcenter import Certificates, certificates
from worlds import SimulatedHypervisor, World

__all__ = ["certificates"]

PLACE = Place(
    plan="site",
    run="r-1",
    kind="test",
    group="web",
    replica="web-1",
    directory="/replicas/web-1",
    address="127.0.0.1",
    machine="vm",
)
GROUP = Place(plan="site", run="r-1", kind="test", group="web")
Serve = Callable[[http.server.BaseHTTPRequestHandler], None]


def gate(kind: Any, **said: Any) -> Gate:
    quick = {"interval": "5ms", "timeout": "20s", "retries": 0}
    return Gate(kind=kind, **{**quick, **said})


def look(
    what: Gate,
    place: Place = PLACE,
    hypervisor: Any = None,
    gives_up: Callable[[], bool] = lambda: False,
    tell: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    row = gates.wait(what, place, hypervisor=hypervisor, gives_up=gives_up, tell=tell)
    assert row["seconds"] >= 0
    assert row["kind"] == what.kind
    return row


def brief(row: dict[str, Any]) -> tuple[str, int, str]:
    return row["state"], row["tries"], row["says"]


@contextlib.contextmanager
def taken_port(*, listens: bool = True) -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        yield server


def port_of(server: socket.socket) -> int:
    port: int = server.getsockname()[1]
    return port


class Web:
    """Pages on a port of 127.0.0.1. asked: the paths, in order, and what Host said."""

    def __init__(self, pages: dict[str, Serve], context: ssl.SSLContext | None = None) -> None:
        self.asked: list[str] = []
        self.hosts: list[str] = []
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                web.hosts.append(self.headers.get("Host", ""))
                pages[self.path](self)

            def log_message(self, *words: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *words: object) -> None:
                pass  # the one who asked has gone

        self._server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'http' if context is None else 'https'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.01))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def webs() -> Iterator[Callable[..., Web]]:
    made: list[Web] = []

    def make(context: ssl.SSLContext | None = None, **pages: Serve) -> Web:
        made.append(Web({f"/{name}": page for name, page in pages.items()}, context))
        return made[-1]

    yield make
    for web in made:
        web.close()


def page(status: int = 200, body: bytes = b"", **headers: str) -> Serve:
    def serve(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return serve


def endless(begin: bytes, piece: bytes) -> Serve:
    """An answer without an end."""

    def serve(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(begin)
        while True:
            handler.wfile.write(piece)

    return serve


# ---- looks ----


def test_looks_are_the_first_one_and_the_retries() -> None:
    with taken_port(listens=False) as server:
        row = look(gate("tcp", host="127.0.0.1", port=port_of(server), retries=2, name="db"))
    assert brief(row) == ("failed", 3, "Connection refused")
    assert row["name"] == "db"


def test_it_passes_as_soon_as_a_look_passes() -> None:
    with taken_port(listens=False) as server:
        asked = 0

        def opens() -> bool:
            nonlocal asked
            asked += 1
            if asked == 4:
                server.listen()
            return False

        what = gate("tcp", host="{address}", port=port_of(server), retries=1000)
        row = look(what, gives_up=opens)
    assert row["state"] == "passed"
    assert 1 < row["tries"] < 1000


def test_between_looks_it_can_be_given_up() -> None:
    asked = 0

    def gives_up() -> bool:
        nonlocal asked
        asked += 1
        return asked > 4

    with taken_port(listens=False) as server:
        what = gate("tcp", host="127.0.0.1", port=port_of(server), interval="1h", retries=9)
        row = look(what, gives_up=gives_up)
    assert (row["state"], row["tries"]) == ("cancelled", 1)
    row = look(what, gives_up=lambda: True)
    assert (row["state"], row["tries"]) == ("cancelled", 0)


def test_what_is_seen_is_told_when_it_lasts_and_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "TELL_SECONDS", 0)
    rows: list[dict[str, Any]] = []
    script = f"echo x >> {tmp_path}/n; n=$(wc -l < {tmp_path}/n); echo at $((n / 3)); exit 1"
    look(gate("script", command=script, shell=True, retries=5), tell=rows.append)
    said = [(row["state"], row["tries"], row["says"]) for row in rows]
    assert said == [
        ("looking", 1, "exit code 1: at 0"),
        ("looking", 3, "exit code 1: at 1"),
    ]


def test_how_often_was_looked_is_told_where_nothing_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gates, "SAME_SECONDS", 0)
    monkeypatch.setattr(gates, "TELL_SECONDS", 0)
    rows: list[dict[str, Any]] = []
    look(gate("script", command=["/bin/false"], retries=3), tell=rows.append)
    assert [(row["tries"], row["of"]) for row in rows] == [(1, 4), (2, 4), (3, 4)]


def test_what_stands_for_nothing_needs_no_second_look() -> None:
    nowhere = msgspec.structs.replace(PLACE, address="")
    row = look(gate("tcp", host="{address}", port=1, retries=9), nowhere)
    assert (row["state"], row["tries"]) == ("failed", 1)
    assert "{address} stands for nothing here: no address of the guest is known" in row["says"]


# ---- tcp ----


def test_a_port_that_takes_a_connection_is_up() -> None:
    with taken_port() as server:
        row = look(gate("tcp", host="127.0.0.1", port=port_of(server)))
        assert brief(row) == ("passed", 1, f"127.0.0.1 port {port_of(server)} takes connections")


def test_all_addresses_of_a_host_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with taken_port() as server, taken_port(listens=False) as closed:
        stream = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        found = [(*stream, closed.getsockname()), (*stream, server.getsockname())]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: found)
        assert look(gate("tcp", host="two.example", port=1))["state"] == "passed"


def test_an_address_that_drops_what_it_gets_leaves_the_others_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares: list[float] = []

    class Slow(socket.socket):
        def connect(self, address: Any) -> None:
            shares.append(self.gettimeout() or 0)
            raise TimeoutError("timed out")

    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 1))] * 4
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: found)
    monkeypatch.setattr(reaching.socket, "socket", Slow)
    assert brief(look(gate("tcp", host="four.example", port=1, timeout="8s"))) == (
        "failed",
        1,
        "no answer in its time",
    )
    assert len(shares) == 4
    assert shares[0] <= 2


def test_a_name_server_that_hangs_ends_the_look_and_is_asked_once_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = threading.Event()
    asked: list[str] = []

    def hang(host: str, *words: object, **more: object) -> Any:
        asked.append(host)
        free.wait(60)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    what = gate("tcp", host="lost.example", port=1, timeout="30ms", retries=3)
    row = look(what)
    assert (row["state"], row["tries"]) == ("failed", 4)
    assert asked == ["lost.example"]
    assert row["says"] == "the look before has no answer yet"
    long = gate("tcp", host="lost.example", port=1, timeout="1h")
    row = look(long, gives_up=lambda: len(asked) == 2)
    assert (row["state"], row["tries"]) == ("cancelled", 1)
    free.set()


# ---- http ----


def test_a_page_is_up_with_its_status_and_its_text(webs: Callable[..., Web]) -> None:
    web = webs(up=page(200, b"all is well"), down=page(503, b"all is well"), made=page(201))
    ok = look(gate("http", url=f"{web.url}/up", text="is well"))
    assert brief(ok) == ("passed", 1, "status 200, with 'is well'")
    assert brief(look(gate("http", url=f"{web.url}/up"))) == ("passed", 1, "status 200")
    assert brief(look(gate("http", url=f"{web.url}/made", status=201)))[0] == "passed"
    assert brief(look(gate("http", url=f"{web.url}/made"))) == ("failed", 1, "status 201, not 200")
    row = look(gate("http", url=f"{web.url}/down", text="is well"))
    assert brief(row) == ("failed", 1, "status 503, not 200")
    row = look(gate("http", url=f"{web.url}/up", text="ready"))
    assert brief(row) == ("failed", 1, "status 200, but 'ready' is not in it")
    assert set(web.hosts) == {f"127.0.0.1:{web.port}"}


def test_in_the_url_and_the_text_names_stand_for_what_they_say(webs: Callable[..., Web]) -> None:
    web = webs(**{"web-1": page(200, b"I am web-1")})
    url = f"http://{{address}}:{web.port}/{{replica}}"
    assert look(gate("http", url=url, text="I am {replica}"))["state"] == "passed"


def test_a_text_is_found_in_the_charset_of_the_page(webs: Callable[..., Web]) -> None:
    body = "läuft".encode("latin-1")
    web = webs(up=page(200, body, Content_Type="text/plain; charset=latin-1"))
    assert look(gate("http", url=f"{web.url}/up", text="läuft"))["state"] == "passed"


def test_a_redirection_is_followed_on_its_host_only(webs: Callable[..., Web]) -> None:
    other = webs(up=page(200, b"ready"))
    web = webs(
        here=page(302, Location="/up"),
        there=page(302, Location=f"http://localhost:{other.port}/up"),
        file=page(301, Location="file:///etc/passwd"),
        round=page(302, Location="/round"),
        up=page(200, b"ready"),
    )
    assert look(gate("http", url=f"{web.url}/here", text="ready"))["state"] == "passed"
    row = look(gate("http", url=f"{web.url}/here", status=302))
    assert brief(row) == ("passed", 1, "status 302"), "that is what is wanted"
    row = look(gate("http", url=f"{web.url}/there"))
    assert brief(row)[2] == "status 302: it sends to the host 'localhost', which is not asked"
    assert other.asked == []
    row = look(gate("http", url=f"{web.url}/file"))
    assert brief(row)[2] == "status 301: it sends to 'file', which is not followed"
    web.asked.clear()
    row = look(gate("http", url=f"{web.url}/round"))
    assert brief(row)[2] == "status 302: it sends on more than 5 times"
    assert len(web.asked) == 6


def test_of_a_page_no_more_is_read_than_is_needed(webs: Callable[..., Web]) -> None:
    web = webs(soon=endless(b"it is ready", b"x" * 4096), never=endless(b"", b"x" * 4096))
    assert look(gate("http", url=f"{web.url}/soon", text="is ready"))["state"] == "passed"
    assert look(gate("http", url=f"{web.url}/never"))["state"] == "passed"
    row = look(gate("http", url=f"{web.url}/never", text="ready"))
    limit = reaching.BODY_BYTES_MAX
    assert brief(row)[2] == f"status 200, but 'ready' is not in it, in its first {limit} bytes"


def test_a_text_across_two_pieces_is_found(webs: Callable[..., Web]) -> None:
    step = threading.Event()

    def halves(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"it is rea")
        handler.wfile.flush()
        step.wait(0.05)
        handler.wfile.write(b"dy now")

    web = webs(up=halves)
    assert look(gate("http", url=f"{web.url}/up", text="is ready"))["state"] == "passed"


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("where", ["status", "headers", "body"])
def test_a_server_that_drips_does_not_make_a_look_longer(
    webs: Callable[..., Web], where: str, secure: bool, certificates: Certificates
) -> None:
    """Each byte comes well within the time; the answer never does."""
    stop = threading.Event()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)

    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        begin = {"status": b"", "headers": b"HTTP/1.0 200 OK\r\nX: ", "body": b""}[where]
        if where == "body":
            begin = b"HTTP/1.0 200 OK\r\n\r\n"
        handler.wfile.write(begin)
        while not stop.wait(0.01):
            handler.wfile.write(b"H")
            handler.wfile.flush()

    web = webs(context if secure else None, up=drip)
    ca_file = str(certificates.ca) if secure else ""
    row = look(gate("http", url=f"{web.url}/up", text="zzz", timeout="300ms", ca_file=ca_file))
    assert brief(row)[:2] == ("failed", 1)
    assert "no answer in" in row["says"]
    for each in threading.enumerate():
        if each.name == "gate http":  # the connection was taken from under it
            each.join(20)
            assert not each.is_alive()
    stop.set()


def test_no_proxy_is_asked(webs: Callable[..., Web], monkeypatch: pytest.MonkeyPatch) -> None:
    web = webs(up=page())
    with taken_port(listens=False) as nobody:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port_of(nobody)}")
        assert look(gate("http", url=f"{web.url}/up"))["state"] == "passed"


def test_a_usual_port_is_not_named_to_the_server(
    webs: Callable[..., Web], certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers know their name without it only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    plain, secure = webs(up=page()), webs(context, up=page())
    monkeypatch.setattr(reaching, "_PORTS", {"http": plain.port, "https": secure.port})
    ca_file = str(certificates.ca)
    for url in ("http://127.0.0.1/up", "https://127.0.0.1/up"):
        assert look(gate("http", url=url, ca_file=ca_file))["state"] == "passed"
    assert plain.hosts == secure.hosts == ["127.0.0.1"]


def test_what_is_no_http_is_not_up() -> None:
    with taken_port() as server:
        thread = threading.Thread(target=lambda: _greet(server))
        thread.start()
        row = look(gate("http", url=f"http://127.0.0.1:{port_of(server)}/"))
        thread.join()
    assert brief(row)[:2] == ("failed", 1)
    assert "SSH-2.0" in row["says"]


def _greet(server: socket.socket) -> None:
    with contextlib.closing(server.accept()[0]) as peer:
        peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        peer.recv(4096)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/x", "is no URL of http"),
        ("http://", "is no URL of http"),
        ("http://host:99999/", "is no URL of http"),
        ("http://me:secret@host/", "has a user in it"),
    ],
)
def test_a_url_that_cannot_be_asked_fails_at_once(url: str, words: str) -> None:
    row = look(gate("http", url=url, retries=9))
    assert (row["state"], row["tries"]) == ("failed", 1)
    assert words in row["says"]
    assert "secret" not in row["says"]


def test_a_server_has_to_prove_who_it_is(
    webs: Callable[..., Web], certificates: Certificates
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    web = webs(context, up=page(200, b"ready"), down=page(302, Location="http://127.0.0.1/up"))
    url = f"{web.url}/up"
    ca_file = str(certificates.ca)
    assert look(gate("http", url=url, text="ready", ca_file=ca_file))["state"] == "passed"
    assert web.hosts == [f"127.0.0.1:{web.port}"]
    assert look(gate("http", url=url, text="ready", insecure=True))["state"] == "passed"
    for more in ({}, {"ca_file": str(certificates.stranger)}):
        row = look(gate("http", url=url, **more))
        assert row["state"] == "failed"
        assert "certificate verify failed" in row["says"]
    named = url.replace("127.0.0.1", "localhost")
    assert look(gate("http", url=named, ca_file=ca_file))["state"] == "failed", "another name"
    row = look(gate("http", url=f"{web.url}/down", ca_file=ca_file))
    assert brief(row)[2] == "status 302: it sends to 'http', which is not followed"
    assert look(gate("http", url=url, ca_file="/nowhere/ca.pem"))["state"] == "failed"


# ---- heartbeat, marker ----


def simulated(tmp_path: Path) -> SimulatedHypervisor:
    disk = tmp_path / "a.raw"
    disk.write_bytes(bytes(1 << 20))
    hypervisor = SimulatedHypervisor(World())
    hypervisor.start(Machine("vm", "vm", (Drive(str(disk), "raw"),)))
    return hypervisor


def test_a_heartbeat_is_asked_of_the_hypervisor(tmp_path: Path) -> None:
    hypervisor = simulated(tmp_path)
    assert brief(look(gate("heartbeat"), hypervisor=hypervisor)) == ("passed", 1, "it beats")
    hypervisor.world.silent.add("vm")
    what = gate("heartbeat", retries=2)
    assert brief(look(what, hypervisor=hypervisor)) == ("failed", 3, "no heartbeat")
    hypervisor.power_off("vm")
    assert brief(look(what, hypervisor=hypervisor)) == ("failed", 3, "machine vm is off")


def test_a_call_that_fails_once_is_no_end(tmp_path: Path) -> None:
    hypervisor = simulated(tmp_path)
    calls = []

    def trouble(call: str, machine: str) -> Any:
        calls.append(call)
        return "broken" if len(calls) < 3 else ""

    hypervisor.world.trouble = trouble
    assert brief(look(gate("heartbeat", retries=9), hypervisor=hypervisor))[:2] == ("passed", 3)


class Hanging:
    """A hypervisor whose server does not answer."""

    kind = "vsphere"

    def __init__(self) -> None:
        self.free = threading.Event()
        self.calls = 0

    def beats(self, machine_id: str) -> str:
        self.calls += 1
        self.free.wait(60)
        raise HypervisorError("no answer in 300 s")


def test_a_hypervisor_that_hangs_ends_the_look_and_is_asked_once_at_a_time() -> None:
    hanging = Hanging()
    row = look(gate("heartbeat", timeout="30ms", retries=2), hypervisor=hanging)
    assert (row["state"], row["tries"], hanging.calls) == ("failed", 3, 1)
    row = look(
        gate("heartbeat", timeout="1h"), hypervisor=hanging, gives_up=lambda: hanging.calls == 2
    )
    assert (row["state"], row["tries"]) == ("cancelled", 1)
    hanging.free.set()


class Without(Hanging):
    def beats(self, machine_id: str) -> str:
        raise UnsupportedError("it has no channel", "give it one")


@pytest.mark.parametrize(
    ("kind", "place", "hypervisor", "words"),
    [
        ("heartbeat", PLACE, Without(), "it has no channel (give it one)"),
        ("heartbeat", PLACE, None, "web-1 has no machine here"),
        ("heartbeat", msgspec.structs.replace(PLACE, machine=""), Without(), "has no machine here"),
        ("heartbeat", GROUP, Without(), "a group has no machine"),
        ("marker", GROUP, Without(), "a group has no machine"),
        ("marker", PLACE, Without(), "vSphere keeps no console (use a gate"),
    ],
)
def test_what_cannot_be_asked_needs_no_second_look(
    kind: str, place: Place, hypervisor: Any, words: str
) -> None:
    row = look(gate(kind, marker="up", retries=9), place, hypervisor)
    assert (row["state"], row["tries"]) == ("failed", 1)
    assert words in row["says"]


def test_a_marker_is_a_line_of_the_serial_console(tmp_path: Path) -> None:
    maker = QemuMaker(tmp_path)
    hypervisor = maker.new()
    try:
        hypervisor.start(maker.machine(maker.drive("a")))
        what = gate("marker", marker="READY", retries=2000)
        assert brief(look(what, hypervisor=hypervisor))[::2] == ("passed", "READY")
        row = look(gate("marker", marker="{replica} is up", retries=1), hypervisor=hypervisor)
        assert (row["state"], row["tries"]) == ("failed", 2)
        assert "did not print 'web-1 is up'" in row["says"]
    finally:
        maker.close()


# ---- script ----


def test_a_script_lets_through_with_exit_code_0(tmp_path: Path) -> None:
    count = f"$(wc -l < {tmp_path}/n)"
    text = f"echo x >> {tmp_path}/n; echo look {count}; [ {count} = 3 ]"
    what = gate("script", command=["/bin/sh", "-c", text], retries=9)
    assert brief(look(what)) == ("passed", 3, "look 3")
    assert brief(look(gate("script", command=["/bin/true"]))) == ("passed", 1, "exit code 0")
    assert brief(look(gate("script", command=["/bin/false"]))) == ("failed", 1, "exit code 1")


def test_a_script_of_a_gate_hides_its_secret_and_ends_with_its_time(tmp_path: Path) -> None:
    text = 'echo "got $API_TOKEN"; exit 1'
    row = look(gate("script", command=text, shell=True, env={"API_TOKEN": "t0ken"}))
    assert row["says"] == "exit code 1: got ***"
    text = f"echo $$ > {tmp_path}/pid; exec sleep 600"
    row = look(gate("script", command=text, shell=True, timeout="1s"))
    assert (row["state"], row["tries"]) == ("failed", 1)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_script_of_a_gate_is_killed_when_it_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    text = f"echo $$ > {file}; exec sleep 600"
    row = look(
        gate("script", command=text, shell=True, timeout="1h"),
        gives_up=lambda: file.exists() and bool(file.read_text()),
    )
    assert (row["state"], row["tries"]) == ("cancelled", 1)
    assert not Path(f"/proc/{file.read_text().strip()}").exists()
