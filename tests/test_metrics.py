"""Numbers for monitoring: OpenMetrics that its own parser takes, from replicas in any state."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from replicas import Source, empty_model, ingesting, make
from rollpoint import audit, control, monitoring, operation, replication
from rollpoint.cli import main
from rollpoint.errors import UsageError
from rollpoint.metrics import Exporter, Server, parse_address
from rollpoint.replica import Replica

Samples = dict[tuple[str, tuple[str, ...]], float]


def samples(text: bytes | str) -> Samples:
    """Name, and the values of labels but the directory, by name -> value; each series once."""
    text = text.decode() if isinstance(text, bytes) else text
    assert text.endswith("# EOF\n")
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values = {k: v for k, v in sample.labels.items() if k != "directory"}
            key = sample.name, (values.pop("replica", ""), *(values[k] for k in sorted(values)))
            assert key not in found, key
            found[key] = sample.value
    return found


def files(path: Path) -> dict[str, tuple[bytes, int]]:
    """Everything in a directory, with when it was written."""
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in path.rglob("*")
        if file.is_file()
    }


def test_a_replica_at_rest_is_told_and_nothing_of_it_changes(tmp_path: Path) -> None:
    make(tmp_path / "web01")
    with Replica.open(tmp_path / "web01") as replica:
        replication.mark(replica)
        replication.hold(replica)
    before = files(tmp_path)
    found = samples(Exporter([str(tmp_path / "web01")]).text())
    assert files(tmp_path) == before
    assert found["rollpoint_replica_readable", ("web01",)] == 1
    assert found["rollpoint_replica_state", ("web01", "Ready")] == 1
    assert found["rollpoint_replica_state", ("web01", "Failover")] == 0
    assert found["rollpoint_replica_held", ("web01",)] == 1
    assert found["rollpoint_ingest_running", ("web01",)] == 0
    assert found["rollpoint_restore_points", ("web01",)] >= 1
    assert found["rollpoint_window_asked_seconds", ("web01",)] == 4 * 3600
    assert found["rollpoint_journal_used_bytes", ("web01",)] > 0
    assert found["rollpoint_journal_limit_bytes", ("web01",)] == 0
    assert found["rollpoint_gap_open", ("web01",)] == 0
    assert found["rollpoint_operations_total", ("web01", "hold", "done")] == 1
    assert found["rollpoint_tests_running", ("web01",)] == 0


def test_a_running_ingest_is_asked_and_goes_on(tmp_path: Path) -> None:
    make(tmp_path / "r")
    exporter = Exporter([str(tmp_path / "r")])
    with ingesting(tmp_path / "r", tmp_path / "s") as ingest:
        source = Source(tmp_path / "s", empty_model(), seed=7)
        source.write("a", b"x" * 4096, 0)
        found = samples(exporter.text())
        assert found["rollpoint_ingest_running", ("r",)] == 1
        assert found["rollpoint_ingest_answers", ("r",)] == 1
        assert found["rollpoint_rpo_seconds", ("r",)] > 0
        assert found["rollpoint_rpo_target_seconds", ("r",)] == 3600
        with Replica.open(tmp_path / "r") as replica:
            replication.mark(replica)
        found = samples(exporter.text())
        assert found["rollpoint_rpo_seconds", ("r",)] == 0
        for quantile in ("0.5", "0.99", "1"):
            assert found["rollpoint_lag_seconds", ("r", quantile, "recent")] > 0
            assert found["rollpoint_lag_seconds", ("r", quantile, "ever")] > 0
        source.write("a", b"y" * 4096, 4096)
        source.close()
        assert ingest is not None


def test_many_scrapes_beside_an_ingest_that_writes_all_read_it(tmp_path: Path) -> None:
    """No lock is taken: the ingest marks, writes and moves while eight scrapers look."""
    make(tmp_path / "r")
    exporter = Exporter([str(tmp_path)])
    with ingesting(tmp_path / "r", tmp_path / "s", rpo_seconds=0.1):
        source = Source(tmp_path / "s", empty_model(), seed=11)
        texts: list[bytes] = []
        scrapers = [
            threading.Thread(target=lambda: texts.extend(exporter.text() for _ in range(5)))
            for _ in range(8)
        ]
        for scraper in scrapers:
            scraper.start()
        while any(scraper.is_alive() for scraper in scrapers):
            source.act()
        source.close()
    assert len(texts) == 40
    for text in texts:
        assert samples(text)["rollpoint_replica_readable", ("r",)] == 1


def test_a_damaged_replica_says_so_and_the_others_stay(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        make(tmp_path / name)
    (tmp_path / "b" / "replica.json").write_bytes(b'{"format": "rollpoint-re')
    for log in (tmp_path / "c").glob("*journal*"):
        log.write_bytes(bytes(log.stat().st_size))
    found = samples(Exporter([str(tmp_path)]).text())
    readable = {key[1][0]: v for key, v in found.items() if key[0].endswith("_readable")}
    assert readable == {"a": 1, "b": 0, "c": 0, "d": 1}
    assert ("rollpoint_replica_held", ("b",)) not in found
    assert found["rollpoint_replica_state", ("c", "Ready")] == 1  # what can be known stays
    assert found["rollpoint_restore_points", ("d",)] == 0
    gone = samples(Exporter([str(tmp_path / "a"), str(tmp_path / "nothing")]).text())
    assert gone["rollpoint_replica_readable", ("nothing",)] == 0
    assert gone["rollpoint_replica_readable", ("a",)] == 1


def test_an_ingest_that_hangs_costs_a_second_and_not_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "r")
    monkeypatch.setattr(monitoring, "ASK_SECONDS", 0.05)
    silent = control.listen(str(tmp_path / "r" / ".control.sock"))
    try:
        found = samples(Exporter([str(tmp_path / "r")]).text())
    finally:
        silent.close()
    assert found["rollpoint_ingest_running", ("r",)] == 1
    assert found["rollpoint_ingest_answers", ("r",)] == 0
    assert found["rollpoint_replica_readable", ("r",)] == 1


def test_storage_that_hangs_takes_no_other_replica_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        make(tmp_path / name)
    free, real = threading.Event(), monitoring.look

    def look(path: str, outcomes: monitoring.Outcomes) -> dict[str, Any]:
        if path.endswith("/a"):
            free.wait(30)
        return real(path, outcomes)

    monkeypatch.setattr(monitoring, "look", look)
    monkeypatch.setattr(monitoring, "LOOK_SECONDS", 0.3)
    exporter = Exporter([str(tmp_path)])
    for _ in range(2):  # the second does not even ask it
        found = samples(exporter.text())
        assert found["rollpoint_replica_readable", ("a",)] == 0
        assert found["rollpoint_replica_readable", ("b",)] == 1
    free.set()


def test_outcomes_are_counted_once_however_often_they_are_read(tmp_path: Path) -> None:
    make(tmp_path / "r")
    exporter = Exporter([str(tmp_path / "r")])
    with Replica.open(tmp_path / "r") as replica:
        replication.mark(replica)
        for number in range(3):
            operation.failover(replica, "latest", power_on=False, convert=False)
            with pytest.raises(Exception, match="state is"):
                replication.hold(replica)
            operation.undo(replica)
            found = samples(exporter.text())
            assert found["rollpoint_operations_total", ("r", "failover", "done")] == number + 1
            assert found["rollpoint_operations_total", ("r", "undo", "done")] == number + 1
    assert samples(Exporter([str(tmp_path / "r")]).text()).items() >= {
        ("rollpoint_operations_total", ("r", "failover", "done")): 3.0
    }.items()
    # One that was made anew in its place begins at nothing.
    shutil.rmtree(tmp_path / "r")
    make(tmp_path / "r")
    assert ("rollpoint_operations_total", ("r", "undo", "done")) not in samples(exporter.text())


def test_a_forged_audit_makes_neither_errors_nor_endless_series(tmp_path: Path) -> None:
    make(tmp_path / "r")
    with (tmp_path / "r" / audit.FILE_NAME).open("a") as file:
        file.write("no JSON\n[1]\n{}\n" + "\0" * 100 + "\n")
        for number in range(1000):
            kind = f'k{number}\\"\\n' + "x" * 200
            file.write(f'{{"seq":{number + 10},"event":"outcome","kind":"{kind}","result":"r"}}\n')
        file.write('{"seq":5000,"event":"outcome","kind":"half a line')
    found = samples(Exporter([str(tmp_path / "r")]).text())
    ended = {key: v for key, v in found.items() if key[0] == "rollpoint_operations_total"}
    assert len(ended) <= monitoring.KINDS_MAX + 1
    assert sum(ended.values()) == 1001  # and the replica's own


def test_names_of_any_bytes_are_labels(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b'/a"b\\c\n\xff'
    os.mkdir(folder)
    make(Path(os.fsdecode(folder)) / "r")
    text = Exporter([os.fsdecode(folder)]).text().decode()
    assert samples(text)["rollpoint_replica_readable", ("r",)] == 1


def test_the_page_tells_every_metric_and_no_other(tmp_path: Path) -> None:
    make(tmp_path / "r")
    families = text_string_to_metric_families(Exporter([str(tmp_path)]).text().decode())
    made = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    page = (ROOT / "docs" / "plans.md").read_text()
    table = page[page.index("## Metrics") : page.index("Worth an alarm")]
    rows = re.findall(r"^\| (`rollpoint_.*?) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == made


# ---- over HTTP, and from the command line ----


@pytest.fixture
def serve() -> Any:
    servers: list[Server] = []

    def start(exporter: Exporter) -> str:
        server = Server(("127.0.0.1", 0), exporter)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server.url

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_scrapers_get_it_over_http(tmp_path: Path, serve: Callable[[Exporter], str]) -> None:
    make(tmp_path / "r")
    url = serve(Exporter([str(tmp_path)]))
    for _ in range(20):
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            found = samples(answer.read())
    assert found["rollpoint_replica_readable", ("r",)] == 1
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(url.replace("/metrics", "/../../etc/passwd"), timeout=30)


def test_clients_that_say_nothing_cannot_take_all_the_room(
    tmp_path: Path, serve: Callable[[Exporter], str]
) -> None:
    make(tmp_path / "r")
    url = serve(Exporter([str(tmp_path)]))
    port = int(url.split(":")[2].split("/")[0])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    # Those over the limit are sent away, and say so; the others are waited for.
    silent[-1].settimeout(30)
    assert silent[-1].recv(1) == b""
    for client in silent:
        client.close()
    for _ in range(200):
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                samples(answer.read())
            return
        except (urllib.error.URLError, ConnectionError):
            continue
    pytest.fail("no answer after the silent ones had gone")


def test_the_command_prints_it_or_serves_it_until_it_is_told_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "r")
    with pytest.raises(SystemExit) as ended:
        main(["metrics", str(tmp_path)])
    assert ended.value.code == 0
    assert samples(capsys.readouterr().out)["rollpoint_replica_readable", ("r",)] == 1
    process = subprocess.Popen(
        [sys.executable, "-m", "rollpoint", "metrics", str(tmp_path), "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=30) as answer:
            samples(answer.read())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("text", ["9464", ":9464", "a:b", "127.0.0.1:99999", "::1:1", ""])
def test_addresses_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no address to listen on"):
        parse_address(text)


def test_addresses_are_taken_apart() -> None:
    assert parse_address("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert parse_address("[::1]:0") == ("::1", 0)


def test_a_port_that_is_taken_is_an_error_with_a_place(tmp_path: Path) -> None:
    exporter = Exporter([str(tmp_path)])
    with Server(("127.0.0.1", 0), exporter) as server:
        port = server.server_address[1]
        with pytest.raises(Exception, match=f"listening on 127.0.0.1 port {port}"):
            Server(("127.0.0.1", port), exporter)
