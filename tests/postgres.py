"""PostgreSQL of Debian, of one's own: as it is by default, on a free loopback port."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from tools import missing

PACKAGE = "postgresql"
USER = "rollpoint"
START_SECONDS = 60.0


def programs() -> Path:
    """Where Debian has initdb and postgres, of its newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        missing(f"PostgreSQL is missing: apt-get install --no-install-recommends {PACKAGE}")
    return found[-1].parent


class Postgres:
    """A server with a superuser "rollpoint" and databases made by database()."""

    def __init__(self, folder: Path) -> None:
        """initdb; folder is its own, and the server's user has to reach it."""
        self.folder = folder
        self.port = free_port()
        self._made = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._as: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            user = pwd.getpwnam("nobody")
            os.chown(folder, user.pw_uid, user.pw_gid)
            ids = (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}")
            self._as = ["setpriv", *ids, "--clear-groups"]
        command = [programs() / "initdb", "-D", folder / "data", "-U", USER, "--auth=trust"]
        # Only the making is not synced; the server syncs as it does by default.
        subprocess.run(
            [*self._as, *command, "--no-sync", "--encoding=UTF8", "--locale=C"],
            check=True, capture_output=True, cwd="/",
        )  # fmt: skip

    def start(self) -> None:
        """Start, and wait until it lets in."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
        }
        options = [f"--{key}={value}" for key, value in settings.items()]
        self._launch(options)
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._connect().close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None:
                    # After a kill: the last of its children may still be going.
                    assert time.monotonic() < deadline, (self.folder / "log").read_text()
                    time.sleep(0.05)
                    self._launch(options)
                assert time.monotonic() < deadline, "PostgreSQL did not start"
                time.sleep(0.02)

    def _launch(self, options: list[str]) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as, programs() / "postgres", "-D", self.folder / "data", *options],
                stdout=log, stderr=log, start_new_session=True, cwd="/",
            )  # fmt: skip

    def kill(self) -> None:
        """kill -9 of all its processes, as when the host goes."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # "fast"
            self._process.wait()

    def database(self) -> str:
        """URL of a new, empty database."""
        self._made += 1
        name = f"plans{self._made}"
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str, user: str = USER) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def run(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with self._connect(database) as connection:
            done = connection.execute(statement)  # type: ignore[call-overload]
            return list(done.fetchall()) if done.description else []

    def _connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def own() -> Iterator[Postgres]:
    """A server that the caller may kill."""
    programs()
    # Not under pytest's folder, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="rollpoint-pg-"))
    server = Postgres(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests of a session: never kill it."""
    yield from own()


@pytest.fixture
def mortal_postgres() -> Iterator[Postgres]:
    """A server of the test's own, to be killed."""
    yield from own()
