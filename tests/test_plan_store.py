"""Runs and events are kept, in order and once, in SQLite as in PostgreSQL."""

from __future__ import annotations

import os
import pickle
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import Postgres, free_port
from rollpoint.errors import (
    Error,
    ExistsError,
    LockedError,
    NotFoundError,
    StateError,
    StorageError,
    UnsupportedError,
    UsageError,
)
from rollpoint.plans import lives
from rollpoint.plans.database import choose_url
from rollpoint.plans.events import fold
from rollpoint.plans.shape import Shape, Spec
from rollpoint.plans.store import New, Store
from rollpoint.plans.tables import Group, Plan
from tools import require_tool

PLAN = Plan(version=1, name="site", group=[Group(name="web", replicas=["*"])])


def spec(run: str, of: str = "") -> Spec:
    shape = Shape(groups=[], nodes={})
    return Spec(
        run=run,
        kind="test",
        plan=PLAN,
        plan_path="/plan",
        shape=shape,
        who="me",
        host="here",
        of=of,
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state/plans.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


def begin(store: Store, run: str = "r1") -> None:
    assert store.new_run("site", run, spec(run)).seq == 1


# ---- runs and events ----


def test_what_is_appended_is_read_by_others_in_order(url: str, store: Store) -> None:
    begin(store)
    told = store.append("r1", "started", "web/a", 1, {"host": "mh-1", "says": "\udcff, \x00 and ü"})
    assert told is not None
    with Store.open(url, create=False) as other:
        events = other.events("r1")
        assert [event.kind for event in events] == ["begun", "started"]
        assert events[1].data == {"host": "mh-1", "says": "?, \x00 and ü"}
        assert other.events("r1", after=told.seq) == []
        assert other.events("r1", limit=1) == events[:1]
        assert fold(events[:1]).spec == spec("r1")


def test_a_run_does_not_end_while_somebody_asks_for_something(store: Store) -> None:
    begin(store)
    seen = store.append("r1", "failed", "a", 1, {"error": "no"})
    again = store.append("r1", "retry", "a", 1)
    assert seen is not None
    assert again is not None
    assert store.end("r1", "failed", seen.seq) is None
    assert store.runs("site")[0].state == "running"
    ended = store.end("r1", "failed", again.seq)
    assert ended is not None
    assert (ended.kind, ended.data["state"]) == ("ended", "failed")
    assert store.runs("site")[0].state == "failed"


def test_an_event_that_has_to_be_there_once_is(url: str, store: Store) -> None:
    begin(store)
    first = store.append("r1", "queued", "a", 1, once="a/1")
    assert first is not None
    assert store.append("r1", "queued", "a", 1, {"other": 1}, once="a/1") is None
    batch = [
        New("step", "a", 1, {"name": "x"}),
        New("done", "a", 1, once="d"),
        New("done", once="d"),
    ]
    told = store.append_many("r1", batch)
    assert [event and event.kind for event in told] == ["step", "done", None]
    with Store.open(url) as other:
        assert other.append_many("r1", batch)[1:] == [None, None]
        assert [event.kind for event in other.events("r1")] == [
            "begun", "queued", "step", "done", "step",
        ]  # fmt: skip
    with pytest.raises(NotFoundError, match="no run r2"):
        store.append("r2", "paused")


def test_a_plan_has_one_unfinished_run(url: str, store: Store) -> None:
    begin(store)
    with pytest.raises(StateError, match=r"run r1 of plan site, begun .*, has not ended"):
        store.new_run("site", "r2", spec("r2"))
    store.new_run("other", "r3", spec("r3"))
    with pytest.raises(ExistsError):
        store.new_run("third", "r1", spec("r1"))
    store.append("r1", "ended", data={"state": "failed"})
    begin(store, "r2")
    with pytest.raises(StateError, match="run r2"):
        store.append("r1", "reopened")
    store.append("r2", "ended", data={"state": "done"})
    assert store.append("r1", "reopened") is not None
    assert [(row.run, row.state) for row in store.runs("site")] == [
        ("r2", "done"),
        ("r1", "running"),
    ]
    assert len(store.runs()) == 3


def test_only_one_of_many_begins_a_run_of_a_plan(url: str, store: Store) -> None:
    results: list[str] = []

    def race(number: int) -> None:
        with Store.open(url) as mine:
            barrier.wait()
            try:
                mine.new_run("site", f"r{number}", spec(f"r{number}"))
                results.append("begun")
            except StateError:
                results.append("refused")

    barrier = threading.Barrier(6)
    threads = [threading.Thread(target=race, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["begun"] + ["refused"] * 5


def test_a_reader_that_follows_misses_no_event_of_many_writers(url: str, store: Store) -> None:
    """Each number that a reader passed was committed before: writers race, a reader follows."""
    begin(store)
    writers, each = 4, 16

    def write(number: int) -> None:
        with Store.open(url) as mine:
            for i in range(each):
                if i % 2:
                    mine.append("r1", "step", "a", i, {"name": f"{number}/{i}"})
                else:
                    many = [New("step", "a", i, {"name": f"{number}/{i}/{j}"}) for j in range(3)]
                    mine.append_many("r1", many)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    seen, after = [], 0
    wanted = 1 + writers * (8 * 3 + 8)
    while len(seen) < wanted:
        found = store.wait("r1", after, 30)
        assert found, f"{len(seen)} of {wanted}"
        assert [event.seq for event in found] == sorted(event.seq for event in found)
        seen += found
        after = found[-1].seq
    for thread in threads:
        thread.join()
    assert seen == store.events("r1")


def test_waiting_ends_when_an_event_comes_or_the_time_is_up(url: str, store: Store) -> None:
    begin(store)
    assert store.wait("r1", 1, 0) == []
    with Store.open(url) as other:
        timer = threading.Timer(0.05, other.append, ("r1", "paused"))
        timer.start()
        assert [event.kind for event in store.wait("r1", 1, 60)] == ["paused"]
        timer.join()


def test_old_runs_are_forgotten_but_not_what_a_kept_one_ends(store: Store) -> None:
    for number in range(5):
        store.new_run("site", f"r{number}", spec(f"r{number}", of="r0" if number == 4 else ""))
        store.append(f"r{number}", "ended", data={"state": "done"})
    store.new_run("site", "r5", spec("r5"))
    assert store.prune("site", keep=2) == 3
    assert [row.run for row in store.runs("site")] == ["r5", "r4", "r0"]
    assert store.events("r1") == []
    assert store.prune("site", keep=0) == 2
    assert [row.run for row in store.runs("site")] == ["r5"]


# ---- lives ----


def test_a_name_has_one_life_at_a_time(url: str, store: Store) -> None:
    life = store.lock("mh-1", {"queue": "mh-1"})
    with Store.open(url) as other:
        with pytest.raises(
            LockedError, match=rf"'mh-1' is served by process {os.getpid()} on host"
        ):
            other.lock("mh-1", {}, take_over=True)
        other.lock("plan:site", {}).close()
        found = other.holder("mh-1")
        assert found is not None
        assert (found.alive, found.ended, found.facts["queue"]) == (True, "", "mh-1")
        life.check()
        life.close()
        found = other.holder("mh-1")
        assert found is not None
        assert not found.alive
        assert found.ended
        with other.lock("mh-1", {}) as again:
            again.check()
            with pytest.raises(LockedError):
                life.check()
    assert store.holder("nobody") is None


def test_the_name_of_another_host_is_taken_on_request_only(store: Store) -> None:
    store.lock("mh-1", {"host": "far", "pid": 17}).close()
    with pytest.raises(StateError, match=r"last served on host far \(process 17") as caught:
        store.lock("mh-1", {})
    assert "--take-over" in caught.value.hint
    store.lock("mh-1", {}, take_over=True).close()
    store.lock("mh-1", {}).close()


HOLD = """
import sys, time
from rollpoint.plans.store import Store
Store.open(sys.argv[1]).lock("mh-1", {})
print("held", flush=True)
time.sleep(600)
"""


def test_the_name_of_a_killed_process_is_free(url: str, store: Store) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(LockedError, match=f"process {child.pid}"):
        store.lock("mh-1", {})
    child.kill()
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 30
    while (found := store.holder("mh-1")) is not None and found.alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert found is not None
    assert found.ended == ""
    store.lock("mh-1", {}).close()


# ---- PostgreSQL goes and comes ----


def test_calls_go_on_after_postgresql_was_killed_and_nothing_is_there_twice(
    mortal_postgres: Postgres,
) -> None:
    server, told = mortal_postgres, []
    url = server.database()
    with Store.open(url, tell=told.append) as store, Store.open(url) as other:
        begin(store)
        life = store.lock("mh-1", {})
        stop = threading.Event()

        def write() -> None:
            for number in range(10_000):
                store.append("r1", "step", "a", number, {"name": "x"})
                if stop.is_set():
                    break

        writer = threading.Thread(target=write)
        writer.start()
        after = 0
        for _ in range(2):
            after = other.wait("r1", after, 30)[-1].seq
            server.kill()
            server.start()
            after = other.wait("r1", after, 60)[-1].seq
        # The life has come back by itself: another one is refused, and it was never lost.
        with pytest.raises(LockedError):
            other.lock("mh-1", {"host": "elsewhere"}, take_over=True)
        stop.set()
        writer.join()
        life.check()
        assert not life.lost()
        life.close()
        numbers = [event.attempt for event in store.events("r1", after=1)]
        assert numbers == list(range(len(numbers)))
        assert told[0].startswith(f"database postgresql://rollpoint@127.0.0.1:{server.port}/")
        assert " unreachable since " in told[0]
        assert told[-1] == ""


def test_a_life_whose_session_went_and_whose_name_was_taken_is_lost(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives, "RETURN_SECONDS", 0)  # the server has just been started
    url = postgres.database()
    with Store.open(url) as old, Store.open(url) as new:
        life = old.lock("mh-1", {})
        # As when the network has gone: the session ends, and the process does not know.
        life._closed.set()
        assert life._beating is not None
        life._beating.join()
        postgres.run(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            url.rpartition("/")[2],
        )
        taken = new.lock("mh-1", {"host": "elsewhere"}, take_over=True)
        with pytest.raises(LockedError, match="host elsewhere"):
            life.check()
        assert life.lost()
        taken.check()
        taken.close()
        life._lock.close()


def test_waiting_for_the_database_can_be_given_up(mortal_postgres: Postgres) -> None:
    with Store.open(mortal_postgres.database(), gives_up=lambda: True) as store:
        begin(store)
        mortal_postgres.kill()
        with pytest.raises(StorageError, match="cannot be reached") as caught:
            store.append("r1", "paused")
    assert "PostgreSQL runs there" in caught.value.hint


# ---- what is refused ----


def refused(url: str, kind: type[Error]) -> Error:
    with pytest.raises(kind) as caught:
        Store.open(url)
    assert caught.value.hint
    assert "secret" not in f"{caught.value}"
    pickle.loads(pickle.dumps(caught.value))
    return caught.value


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@db/plans",
        "postgresql://me@db/plans?password=secret",
        "postgresql://me@db/plans?PASSWORD=secret",
        "postgresql://me@db/plans?sslpassword=secret",
        "postgresql://me:p@secret@db/plans",
        "mysql://db/plans",
        "postgresql://db",
        "sqlite:///relative.sqlite",
        "sqlite://",
        "plans.sqlite",
        "postgresql://me@db:port/plans",
        "",
    ],
)
def test_urls_that_are_none_or_have_a_password_are_refused(url: str) -> None:
    refused(url, UsageError)


def test_a_password_may_come_with_the_url_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"postgresql://me:secret@127.0.0.1:{free_port()}/plans"
    monkeypatch.setenv("ROLLPOINT_DATABASE", url)
    assert choose_url("", "/state") == url
    error = refused(url, StorageError)
    assert "cannot be reached" in error.message
    monkeypatch.delenv("ROLLPOINT_DATABASE")
    assert choose_url("", "/state") == "sqlite:////state/plans.sqlite"
    assert choose_url("x", "/state") == "x"


@pytest.mark.parametrize("query", ["password", "pass%77ord", "PASSWORD", "sslpassword"])
def test_a_password_in_the_query_is_in_no_error(
    query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://me@127.0.0.1:{free_port()}/plans?{query}=secret"
    monkeypatch.setenv("ROLLPOINT_DATABASE", url)
    refused(url, StorageError)


def test_an_at_sign_that_is_not_quoted_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://me:p@secret@127.0.0.1/plans"
    monkeypatch.setenv("ROLLPOINT_DATABASE", url)
    refused(url, UsageError)


def test_a_database_that_cannot_be_reached_is_said_so() -> None:
    error = refused(f"postgresql://me@127.0.0.1:{free_port()}/plans", StorageError)
    assert "cannot be reached" in error.message


def test_a_missing_role_or_database_or_right_is_said_so(postgres: Postgres) -> None:
    url = postgres.database()
    name = url.rpartition("/")[2]
    assert "createuser" in refused(postgres.url(name, "nobody"), StorageError).hint
    assert "createdb" in refused(postgres.url("missing"), StorageError).hint
    postgres.run(f"CREATE ROLE poor_{name} LOGIN")
    poor = postgres.url(name, f"poor_{name}")
    error = refused(poor, StorageError)
    assert "may not make tables" in error.message
    assert "GRANT USAGE, CREATE" in error.hint
    Store.open(url).close()
    assert "lacks a right" in refused(poor, StorageError).message
    postgres.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO poor_{name}", name)
    error = refused(poor, StorageError)
    assert f"the role poor_{name} may not INSERT in rollpoint_runs" in error.message
    postgres.run(
        f"GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO poor_{name}", name
    )
    error = refused(poor, StorageError)
    assert "may not make the schema dbos" in error.message
    postgres.run(f"GRANT CREATE ON DATABASE {name} TO poor_{name}")
    Store.open(poor).close()


def test_a_newer_schema_is_refused(url: str, store: Store) -> None:
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO rollpoint_schema VALUES (2, 'later')")
    error = refused(url, UnsupportedError)
    assert "has schema 2, and this Rollpoint knows 1" in error.message


def test_without_leave_to_make_one_a_missing_database_is_an_error(
    tmp_path: Path, postgres: Postgres
) -> None:
    with pytest.raises(NotFoundError, match=r"plans\.sqlite is missing"):
        Store.open(f"sqlite:///{tmp_path}/plans.sqlite", create=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFoundError, match="has no runs of plans"):
        Store.open(postgres.database(), create=False)


def test_the_file_is_its_owners_alone_and_every_commit_is_synced(tmp_path: Path) -> None:
    path = tmp_path / "state" / "plans.sqlite"
    old = os.umask(0)
    try:
        with Store.open(f"sqlite:///{path}") as store:
            begin(store)
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
            assert set(modes.values()) == {0o600}, modes
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            with store.database.engine.connect() as connection:
                asked = "PRAGMA synchronous", "PRAGMA journal_mode"
                got = [connection.exec_driver_sql(text).scalar() for text in asked]
                assert got == [2, "wal"]
    finally:
        os.umask(old)


def test_files_that_may_not_be_written_or_are_none_are_said_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all, but a page of text" * 100)
    assert "damaged" in refused(f"sqlite:///{tmp_path}/text", StorageError).message
    (tmp_path / "file").touch()
    refused(f"sqlite:///{tmp_path}/file/plans.sqlite", StorageError)
    refused(f"sqlite:///{tmp_path}", StorageError)
    code = (
        "import sys; from rollpoint.plans.store import Store\n"
        "from rollpoint.errors import StorageError\n"
        "try: Store.open(sys.argv[1])\n"
        "except StorageError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/plans.sqlite"]
    if os.geteuid() == 0:  # who may write everywhere but for this
        drop = ["--bounding-set=-all", "--inh-caps=-all"]
        command = [require_tool("setpriv"), *drop, *command]
    sqlite3.connect(tmp_path / "plans.sqlite").close()
    tmp_path.chmod(0o500)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        tmp_path.chmod(0o700)
    assert f"{tmp_path} may not be written by this user" in done.stdout, done.stderr
