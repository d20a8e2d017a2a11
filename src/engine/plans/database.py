"""The database of runs: where it is, its tables, and going on when it was away.

SQLite in a file of the state directory (WAL, every commit synced), or PostgreSQL. The
statements are the same for both; what differs is how a transaction that writes begins, which
is here, and how a life is held, which is in lives.py.

A PostgreSQL that is restarted, or cannot be reached for a while, fails no run: each call is
made again until the database answers. So what a call does has to be safe to do again, also
when the database had committed it and only the answer was lost: see Store.append.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc

from ..errors import Error, NotFoundError, StorageError, UnsupportedError, UsageError, system_error
from ..points import now_text
from .database_errors import KNOWN, is_passing, says_of

SCHEMA_VERSION = 1
ENVIRONMENT = "ROLLPOINT_DATABASE"
FILE_NAME = "plans.sqlite"
BUSY_SECONDS = 30.0
PAUSE_SECONDS_MAX = 2.0
RACES_MAX = 5
# Tables are made by one process at a time; the number is any that nobody else has.
_SCHEMA_LOCK = 0x526F6C6C706F696E
_POSTGRES: dict[str, Any] = {
    "connect_timeout": 5,
    "application_name": "rollpoint",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
Result = TypeVar("Result")

META = sa.MetaData()
SCHEMA = sa.Table(
    "rollpoint_schema",
    META,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("made", sa.Text, nullable=False),
)
RUNS = sa.Table(
    "rollpoint_runs",
    META,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("of", sa.Text, nullable=False),
    sa.Column("begun", sa.Text, nullable=False),
    sa.Column("ended", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),  # of the newest event
    sa.Column("said", sa.Text, nullable=False),  # by which call
)
# One unfinished run of a plan: held by the database, whatever two processes do at once.
sa.Index(
    "rollpoint_unfinished",
    RUNS.c.plan,
    unique=True,
    sqlite_where=RUNS.c.state == "running",
    postgresql_where=RUNS.c.state == "running",
)
EVENTS = sa.Table(
    "rollpoint_events",
    META,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("data", sa.Text, nullable=False),  # JSON
    sa.Column("once", sa.Text, nullable=False),
    sa.Column("said", sa.Text, nullable=False),
    sa.UniqueConstraint("run", "once", name="rollpoint_once"),
)
LIVES = sa.Table(
    "rollpoint_lives",
    META,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("since", sa.Text, nullable=False),
    sa.Column("ended", sa.Text, nullable=False),  # "": it has not let go
    sa.Column("facts", sa.Text, nullable=False),  # JSON
)


def choose_url(given: str, state: str, environment: Mapping[str, str] = os.environ) -> str:
    """Which database: what --database says, the environment, or a file in the state directory."""
    if given or environment.get(ENVIRONMENT):
        return given or environment[ENVIRONMENT]
    return f"sqlite:///{os.path.abspath(state)}/{FILE_NAME}"


def parse_url(text: str) -> sa.URL:
    """The URL as SQLAlchemy takes it, with the driver.

    Raises:
        UsageError: It is none, of another kind, or has a password and does not come from the
            environment: command lines can be read by everybody on the host.
    """
    hint = "write it as postgresql://user@host:5432/database or sqlite:////directory/plans.sqlite"
    try:
        url = sa.make_url(text)
        url.render_as_string()
    except (exc.ArgumentError, ValueError):
        raise UsageError("the database's URL cannot be understood", hint) from None
    if "@" in (url.host or ""):  # the rest of a password that was not quoted: never shown
        raise UsageError("the database's URL has an @ too many", "write %40 for one in a password")
    has_password = url.password is not None or any(_is_secret(key) for key in url.query)
    if has_password and text != os.environ.get(ENVIRONMENT):
        raise UsageError(
            "the database's URL has a password in it, which others on this host could read",
            f"leave it out, and put it in PGPASSWORD, ~/.pgpass, or the whole URL in {ENVIRONMENT}",
        )
    if url.drivername in ("postgresql", "postgresql+psycopg"):
        if not url.database:
            raise UsageError("the database's URL names no database", hint)
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite":
        if not url.database or not os.path.isabs(url.database) or url.query or url.host:
            raise UsageError("a SQLite URL has four slashes and an absolute path", hint)
        return url
    raise UsageError(f"databases of the kind {url.drivername!r} are not known", hint)


def _is_secret(key: str) -> bool:
    """Whether a field of a URL's query holds a password: password, sslpassword."""
    return "password" in key.lower()


class Database:
    """An engine, and calls that are made again until the database answers.

    Any thread may call anything. After a fork make a new one.

    Attributes:
        url: May hold a password. name: the same for people, without.
        tell: Called with a sentence when the database cannot be reached, and with "" when
            it can be again.
        gives_up: Asked while it cannot be reached; true ends the waiting with StorageError.
    """

    def __init__(self, text: str) -> None:
        self.url = parse_url(text)
        shown = self.url.difference_update_query([key for key in self.url.query if _is_secret(key)])
        self.name = shown.set(drivername=self.url.get_backend_name()).render_as_string()
        self.kind: Literal["sqlite", "postgresql"] = (
            "sqlite" if self.url.get_backend_name() == "sqlite" else "postgresql"
        )
        self.tell: Callable[[str], None] = lambda says: None
        self.gives_up: Callable[[], bool] = lambda: False
        if self.kind == "sqlite":
            self.engine = sa.create_engine(self.url, connect_args={"timeout": BUSY_SECONDS})
            sa.event.listen(self.engine, "connect", _set_up_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        else:
            wanted = {key: value for key, value in _POSTGRES.items() if key not in self.url.query}
            self.engine = sa.create_engine(
                self.url, connect_args=wanted, pool_size=8, max_overflow=16, pool_timeout=60.0
            )

    @property
    def path(self) -> Path:
        """The file, with SQLite."""
        assert self.kind == "sqlite"
        assert self.url.database
        return Path(self.url.database)

    @property
    def whole_url(self) -> str:
        """For DBOS, with the password that the environment may have given: never print it."""
        plain = self.url.set(drivername=self.url.get_backend_name())
        return plain.render_as_string(hide_password=False)

    def close(self) -> None:
        self.engine.dispose()

    def read(self, work: Callable[[sa.Connection], Result]) -> Result:
        """What work finds, in one transaction that does not write."""
        return self.until_it_answers(lambda: self._transact(work, reads=True))

    def write(self, work: Callable[[sa.Connection], Result]) -> Result:
        """What work returns once it is committed. It may be called again after it was."""
        return self.until_it_answers(lambda: self._transact(work, reads=False))

    def _transact(self, work: Callable[[sa.Connection], Result], reads: bool) -> Result:
        with self.engine.connect() as connection:
            connection = connection.execution_options(rollpoint_reads=reads)
            with connection.begin():
                return work(connection)

    def until_it_answers(self, call: Callable[[], Result]) -> Result:
        since, pause, races = "", 0.05, 0
        while True:
            try:
                result = call()
            except exc.IntegrityError as error:  # another process was first: now it is seen
                races += 1
                if races > RACES_MAX:
                    raise self.explain(error) from None
            except exc.SQLAlchemyError as error:
                if not is_passing(error):
                    raise self.explain(error) from None
                if self.gives_up():
                    raise self.explain(error, since) from None
                if not since:
                    since = now_text()
                    self.tell(f"database {self.name} unreachable since {since}: {says_of(error)}")
                time.sleep(pause)
                pause = min(2 * pause, PAUSE_SECONDS_MAX)
            else:
                if since:
                    self.tell("")
                return result

    def open(self, create: bool) -> None:
        """See that it can be reached and has our tables, or make them. Tries once.

        Raises:
            StorageError: It cannot be reached, or its owner does not let this one in.
            NotFoundError: It has no tables, and none are to be made.
            UnsupportedError: They are of a newer version.
        """
        try:
            if self.kind == "sqlite":
                _prepare_file(self.path, create)
            version = self._transact(_version, reads=True)
            if version is None and not create:
                raise NotFoundError(
                    f"the database {self.name} has no runs of plans", "start one with: plan run"
                )
            if version is None:
                version = self._transact(self._make_tables, reads=False)
            if version > SCHEMA_VERSION:
                raise UnsupportedError(
                    f"the database {self.name} has schema {version}, and this Rollpoint knows "
                    f"{SCHEMA_VERSION}",
                    "install the newer Rollpoint here too: one of the other hosts has it",
                )
            self._transact(self._look_at_rights, reads=True)
        except exc.SQLAlchemyError as error:
            raise self.explain(error) from None

    def _make_tables(self, connection: sa.Connection) -> int:
        if self.kind == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
        version = _version(connection)  # somebody else may have been first
        if version is None:
            META.create_all(connection)
            row = {"version": SCHEMA_VERSION, "made": now_text()}
            connection.execute(SCHEMA.insert().values(row))
            version = SCHEMA_VERSION
        return version

    def _look_at_rights(self, connection: sa.Connection) -> None:
        """Rights that are missing are told now, and not in the middle of a run."""
        if self.kind == "sqlite":
            return
        for table in (RUNS, EVENTS, LIVES):
            for right in ("SELECT", "INSERT", "UPDATE", "DELETE"):
                asked = sa.func.has_table_privilege(table.name, right)
                if not connection.execute(sa.select(asked)).scalar_one():
                    raise StorageError(
                        f"the role {self._role(connection)} may not {right} in {table.name} of "
                        f"{self.name}",
                        f"have its owner run: GRANT SELECT, INSERT, UPDATE, DELETE ON "
                        f"{SCHEMA.name}, {RUNS.name}, {EVENTS.name}, {LIVES.name} TO the role",
                    )
        asked = sa.func.has_database_privilege(sa.func.current_database(), "CREATE")
        if (
            not sa.inspect(connection).has_schema("dbos")
            and not connection.execute(sa.select(asked)).scalar_one()
        ):
            raise StorageError(
                f"the role {self._role(connection)} may not make the schema dbos in {self.name}",
                "have the database's owner run: GRANT CREATE ON DATABASE of that name TO the role",
            )

    def _role(self, connection: sa.Connection) -> str:
        return str(connection.execute(sa.select(sa.func.current_user())).scalar_one())

    def explain(self, error: exc.SQLAlchemyError, since: str = "") -> Error:
        """The database's error as one of ours: what, where, and what to do."""
        says = says_of(error)
        ago = f" since {since}" if since else ""
        for words, message, hint in KNOWN:
            if any(word in says for word in words):
                return StorageError(f"database {self.name}{ago}: {message}: {says}", hint)
        if self.kind == "sqlite":
            hint = "look at the file and its file system"
        elif is_passing(error):
            return StorageError(
                f"database {self.name} cannot be reached{ago}: {says}",
                "see that PostgreSQL runs there, and that this host may connect to it",
            )
        else:
            hint = "look at PostgreSQL's log"
        return StorageError(f"database {self.name}{ago}: {says}", hint)


def _version(connection: sa.Connection) -> int | None:
    """None: there are no tables of ours."""
    if not sa.inspect(connection).has_table(SCHEMA.name):
        return None
    return connection.execute(sa.select(sa.func.max(SCHEMA.c.version))).scalar_one_or_none()


# ---- SQLite ----


def _prepare_file(path: Path, create: bool) -> None:
    """The file, for its owner alone: before SQLite makes it as the umask says."""
    try:
        if create:
            if not path.parent.is_dir():
                path.parent.mkdir(mode=0o700, parents=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        elif not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path} is no file", "name another with --state or --database")
    except OSError as error:
        if not create and isinstance(error, FileNotFoundError):
            raise NotFoundError(
                f"there are no runs of plans in {path.parent}: {path.name} is missing",
                "start one with: plan run; or name its directory with --state",
            ) from None
        number = errno.ENOTDIR if error.errno == errno.EEXIST else error.errno or 0
        raise system_error(f"opening the runs' database {path}", number) from None
    for place in (path, path.parent):
        if not os.access(place, os.R_OK | os.W_OK):
            raise StorageError(
                f"{place} may not be written by this user: runs of plans are recorded in it",
                "run as its owner, or name another directory with --state",
            )


def _set_up_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # _begin_sqlite says how a transaction begins
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("rollpoint_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
