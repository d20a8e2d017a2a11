"""What monitoring wants to know of replicas, as OpenMetrics text: `rollpoint metrics`.

What each number means: docs/plans.md, "Metrics".

Source: OpenMetrics 1.0, https://github.com/OpenObservability/OpenMetrics
"""

from __future__ import annotations

import http.server
import re
import socket
import socketserver
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import manifest as manifests
from .errors import UsageError, system_error
from .monitoring import Facts, Watch

CONNECTIONS_MAX = 16
CONNECTION_SECONDS = 30.0  # without a word

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+)):([0-9]{1,5})")


class Exporter:
    """The text for a scraper, again and again.

    Args:
        paths: Replicas, and directories of replicas: those there are at each scrape.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._watch = Watch(paths)
        self._one_at_a_time = threading.Lock()
        self._made: tuple[float, bytes] = (-1.0, b"")

    def text(self) -> bytes:
        """OpenMetrics text. Scrapers that ask while another one waits share its answer."""
        from prometheus_client.openmetrics.exposition import generate_latest

        asked = time.monotonic()
        with self._one_at_a_time:
            begun, text = self._made
            if begun < asked:
                begun = time.monotonic()
                found = _Collected(families(self._watch.look(), begun))
                text = generate_latest(found)  # type: ignore[no-untyped-call]
                self._made = begun, text
            return text


class _Collected:
    """What prometheus_client calls a registry."""

    def __init__(self, found: list[Any]) -> None:
        self._found = found

    def collect(self) -> Iterator[Any]:
        yield from self._found


# One number of each replica: name, unit, what it is, and where in the facts it lies.
_GAUGES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("replica_held", "", "1 while replication is on hold.", ("held",)),
    ("replica_epoch", "", "Rises with each hold.", ("epoch",)),
    ("replica_warnings", "", "What replica show warns of now.", ("warnings",)),
    ("ingest_running", "", "1 while an ingest has the replica.", ("ingest",)),
    ("ingest_answers", "", "1 when it said how it is.", ("answers",)),
    ("rpo", "seconds", "Age of the oldest write that no restore point covers: what a failover "
     "now may lose. Without an ingest, of the newest point.", ("rpo", "group", "now_seconds")),
    ("rpo_target", "seconds", "What the ingest was asked for.", ("rpo", "target_seconds")),
    ("newest_point_age", "seconds", "Since the newest restore point.", ("rpo", "lag_seconds")),
    ("window_asked", "seconds", "How far back every moment is wanted.", ("asked_seconds",)),
    ("window_kept", "seconds", "How far back the oldest point lies.", ("kept_seconds",)),
    ("window_possible", "seconds", "What fits at the present rate of writing; absent where "
     "nothing limits it.", ("possible_seconds",)),
    ("journal_used", "bytes", "Of all journals.", ("used_bytes",)),
    ("journal_limit", "bytes", "What they may use; 0: no limit.", ("limit_bytes",)),
    ("restore_points", "", "In the journals.", ("points",)),
    ("long_term_points", "", "Restore points kept for long.", ("long_term",)),
    ("gap_open", "", "1 while a gap lasts.", ("rpo", "gaps", "open")),
    ("gaps", "", "Stretches of time that cannot be recovered.", ("rpo", "gaps", "count")),
    ("gaps_length", "seconds", "All of them together.", ("rpo", "gaps", "seconds")),
    ("tests_running", "", "Test failovers that are there.", ("tests",)),
    ("rehearsal_timestamp", "seconds", "When a failover was last rehearsed.", ("rehearsed",)),
)  # fmt: skip


def families(rows: Sequence[Facts], begun: float) -> list[Any]:
    """Facts as metric families of prometheus_client."""
    from prometheus_client.core import GaugeMetricFamily

    readable = GaugeMetricFamily(
        "rollpoint_replica_readable",
        "1 when everything about it could be read; rollpoint replica show says why not.",
        labels=_LABELS,
    )
    for row in rows:
        readable.add_metric(_labels(row), float(not row["error"]))
    found = [readable, *_states(rows)]
    for name, unit, says, place in _GAUGES:
        family = GaugeMetricFamily(f"rollpoint_{name}", says, labels=_LABELS, unit=unit)
        for row in rows:
            value = _at(row, place)
            if value is not None:
                family.add_metric(_labels(row), float(value))
        found.append(family)
    found += [*_lags(rows), *_counts(rows), *_rehearsals(rows)]
    took = GaugeMetricFamily("rollpoint_look", "What this look took.", unit="seconds")
    took.add_metric([], max(0.0, time.monotonic() - begun))
    return [*found, took]


_LABELS = ["replica", "directory"]


def _labels(row: Facts, *more: str) -> list[str]:
    """A name may hold bytes that are no UTF-8; a scraper wants it."""
    values = (row["name"], row["directory"], *more)
    return [value.encode("utf-8", "backslashreplace").decode() for value in values]


def _at(row: Mapping[str, Any], place: Sequence[str]) -> Any:
    value: Any = row
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _states(rows: Sequence[Facts]) -> list[Any]:
    from typing import get_args

    from prometheus_client.core import GaugeMetricFamily, StateSetMetricFamily

    states = StateSetMetricFamily(
        "rollpoint_replica_state", "Where it stands: docs/operations.md.", labels=_LABELS
    )
    running = GaugeMetricFamily(
        "rollpoint_operation_open",
        "1 for an operation that was begun and has not ended.",
        labels=[*_LABELS, "kind"],
    )
    for row in rows:
        if row.get("state"):
            known = {name: name == row["state"] for name in get_args(manifests.State)}
            states.add_metric(_labels(row), known)
        if row.get("open"):
            running.add_metric(_labels(row, row["open"]), 1.0)
    return [states, running]


def _lags(rows: Sequence[Facts]) -> list[Any]:
    """Quantiles are upper bounds of a histogram (lags.py): a gauge, for no sum is kept."""
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(
        "rollpoint_lag",
        "How old the oldest write was when a restore point covered it; quantile 1 is the "
        "worst. span: the last 500 to 1000 points, or ever.",
        labels=[*_LABELS, "span", "quantile"],
        unit="seconds",
    )
    figures = (("0.5", "p50_seconds"), ("0.99", "p99_seconds"), ("1", "max_seconds"))
    for row in rows:
        for span, place in (("recent", ("rpo", "group", "recent")), ("ever", ("rpo", "group"))):
            for quantile, figure in figures:
                value = _at(row, (*place, figure))
                if value is not None:
                    family.add_metric(_labels(row, span, quantile), float(value))
    return [family]


def _counts(rows: Sequence[Facts]) -> list[Any]:
    from prometheus_client.core import CounterMetricFamily

    missed = CounterMetricFamily(
        "rollpoint_rpo_missed", "Restore points later than the target asked.", labels=_LABELS
    )
    ended = CounterMetricFamily(
        "rollpoint_operations",
        "Operations that ended, by kind and outcome, as the audit has them.",
        labels=[*_LABELS, "kind", "outcome"],
    )
    for row in rows:
        count = _at(row, ("rpo", "missed"))
        if count is not None:
            missed.add_metric(_labels(row), float(count))
        for (kind, result), number in sorted(row.get("operations", {}).items()):
            ended.add_metric(_labels(row, kind, result), float(number))
    return [missed, ended]


def _rehearsals(rows: Sequence[Facts]) -> list[Any]:
    from prometheus_client.core import GaugeMetricFamily

    passed = GaugeMetricFamily(
        "rollpoint_rehearsal_ok", "1 when the last one came through.", labels=_LABELS
    )
    took = GaugeMetricFamily(
        "rollpoint_rehearsal_length", "What it took.", labels=_LABELS, unit="seconds"
    )
    for row in rows:
        found = row.get("rehearsal")
        if found is not None:
            passed.add_metric(_labels(row), float(found.ok))
            took.add_metric(_labels(row), found.seconds)
    return [passed, took]


# ---- over HTTP ----


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9464", "[::1]:9464" or "name:9464".

    Raises:
        UsageError: It is none.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        raise UsageError(
            f"{text!r} is no address to listen on", "write host and port, as in 127.0.0.1:9464"
        )
    return match[1] or match[2], int(match[3])


class Server(http.server.ThreadingHTTPServer):
    """Answers GET /metrics. It listens when it is made; serve_forever answers.

    Args:
        address: Host and port; port 0: a free one, see `url`.

    Raises:
        Error: Nobody can listen there.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], exporter: Exporter) -> None:
        self.exporter = exporter
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            place = f"{address[0]} port {address[1]}"
            if isinstance(error, socket.gaierror):
                raise UsageError(
                    f"{address[0]!r} is no address of this machine: {error.strerror}",
                    "write one of its own addresses, as in 127.0.0.1:9464",
                ) from None
            raise system_error(f"listening on {place}", error.errno or 0) from error

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        host = host.decode() if isinstance(host, bytes) else str(host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def server_bind(self) -> None:
        """Without the look-up of our own name that HTTPServer does, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "rollpoint", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """One more scraper, where there is room."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that went away is no error of ours."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server_version, sys_version = "rollpoint", ""
    timeout = CONNECTION_SECONDS
    server: Server

    def do_GET(self) -> None:
        from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST

        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "it is at /metrics")
            return
        text = self.server.exporter.text()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed by the library."""
