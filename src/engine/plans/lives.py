"""Lives: that a name (a queue, the supervision of a plan) is served by one process at a time.

Two things make a life. What tells that its process lives is a lock that goes with it: with
PostgreSQL an advisory lock of a session, with SQLite a lock of an open file beside the
database. Whose the name is says the token in its row of rollpoint_lives, which each new life
replaces. A session may break while its process lives on; then the process gets a new session,
and goes on if the token is still its own. Otherwise it has been replaced: Life.check tells,
before each step, and Life.lost within seconds.

After a restart of PostgreSQL all locks are free. A life that is not known to be dead is left
RETURN_SECONDS then, to come back, before another one may take its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import struct
import threading
import time
import urllib.parse
import uuid
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import exc

from ..closing import Closing
from ..errors import Error, LockedError, StateError, system_error
from ..points import now_text
from .database import LIVES, Database

BEAT_SECONDS = 1.0
RETURN_SECONDS = 10.0
# A server that hears nothing of a dead host's session ends it after 5 + 3 * 2 seconds.
_SESSION = {
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 3,
    "idle_session_timeout": 0,
}
_FLOCK = struct.Struct("hhqqi0q")  # struct flock: <bits/fcntl.h>, x86-64 and arm64


class Holder(NamedTuple):
    """Who has a name, or had it last.

    Attributes:
        alive: Its process lives, or PostgreSQL has not yet noticed that it does not.
        ended: When it let go; "": it did not.
    """

    token: str
    host: str
    pid: int
    since: str
    ended: str
    facts: dict[str, Any]
    alive: bool


class Life(Closing):
    """A name that this process has, until close. Any thread may call anything."""

    def __init__(self, database: Database, name: str, token: str, lock: _FileLock | _Session):
        self.name = name
        self.token = token
        self._database = database
        self._lock = lock
        self._lost = threading.Event()
        self._closed = threading.Event()
        self._beating: threading.Thread | None = None
        if isinstance(lock, _Session):
            self._beating = threading.Thread(
                target=self._beat, args=(lock,), name=f"life of {name}", daemon=True
            )
            self._beating.start()

    def lost(self) -> bool:
        """Whether another life has the name now. Does not ask the database: seconds old."""
        return self._lost.is_set()

    def check(self) -> None:
        """Ask the database whether the name is still ours; waits while it is away.

        Raises:
            LockedError: Another life has it: begin nothing more.
        """
        if isinstance(self._lock, _FileLock) and not self._closed.is_set():
            return  # nobody takes it from a file that is open
        if self._lost.is_set() or self._database.read(self._is_taken):
            self._lost.set()
            found = holder(self._database, self.name)
            raise _held(self.name, found) if found else LockedError(f"{self.name!r} is lost")

    def close(self) -> None:
        """Let go. Tries once to write that down: a database that is away is not waited for."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._beating is not None:
            self._beating.join()
        row = LIVES.update().where((LIVES.c.name == self.name) & (LIVES.c.token == self.token))
        with contextlib.suppress(exc.SQLAlchemyError), self._database.engine.begin() as connection:
            connection.execute(row.values(ended=now_text()))
        self._lock.close()

    def _is_taken(self, connection: sa.Connection) -> bool:
        asked = sa.select(LIVES.c.token).where(LIVES.c.name == self.name)
        return connection.execute(asked).scalar_one_or_none() != self.token

    def _beat(self, session: _Session) -> None:
        """See that the session is there, or get another one, until the name is lost."""
        while not self._closed.wait(BEAT_SECONDS) and not self._lost.is_set():
            with contextlib.suppress(exc.SQLAlchemyError, Error):
                if not session.is_there():
                    session.get()
                with self._database.engine.connect() as connection:
                    if self._is_taken(connection):
                        self._lost.set()
                        session.close()


def begin(database: Database, name: str, facts: dict[str, Any], take_over: bool = False) -> Life:
    """Be the life of that name.

    Args:
        facts: What others are told; "host" and "pid" are added where they are missing.
        take_over: Also when the last life was on another host.

    Raises:
        LockedError: One lives.
        StateError: The last one was on another host, and take_over is false.
    """
    facts = {"host": socket.gethostname(), "pid": os.getpid(), **facts, "process": _process()}
    last = holder(database, name)
    if last is not None and last.alive:
        raise _held(name, last)
    if last is not None and last.host != facts["host"] and not take_over:
        raise StateError(
            f"{name!r} was last served on host {last.host} (process {last.pid}, since "
            f"{last.since})",
            f"start it on {last.host}; or, when that host is gone for good and the replicas' "
            "directories can be reached from here: --take-over",
        )
    if last is not None and not last.ended and not _is_dead(last):
        _leave_time_to_return(database, name)
    lock: _FileLock | _Session
    lock = _Session(database, name) if database.kind == "postgresql" else _FileLock(database, name)
    token = uuid.uuid4().hex
    try:
        if not database.until_it_answers(lock.get):
            found = holder(database, name)
            raise _held(name, found) if found else LockedError(f"{name!r} is being taken")
        if last is not None and last.token != _token(database, name):
            raise LockedError(f"{name!r} has just been taken by another process", "look at it")
        row = {
            "token": token, "host": facts["host"], "pid": facts["pid"], "since": now_text(),
            "ended": "", "facts": msgspec.json.encode(facts).decode(),
        }  # fmt: skip

        def work(connection: sa.Connection) -> None:
            done = connection.execute(LIVES.update().where(LIVES.c.name == name).values(row))
            if done.rowcount == 0:
                connection.execute(LIVES.insert().values(name=name, **row))

        database.write(work)
    except BaseException:
        lock.close()
        raise
    return Life(database, name, token, lock)


def holder(database: Database, name: str) -> Holder | None:
    """Who has the name, or had it last. None: nobody ever had."""

    def work(connection: sa.Connection) -> Holder | None:
        row = connection.execute(sa.select(LIVES).where(LIVES.c.name == name)).one_or_none()
        if row is None:
            return None
        if database.kind == "sqlite":
            alive = _FileLock(database, name).is_held()
        else:
            alive = _is_session_held(connection, name)
        facts = msgspec.json.decode(row.facts, type=dict[str, Any])
        return Holder(row.token, row.host, row.pid, row.since, row.ended, facts, alive)

    return database.read(work)


def _token(database: Database, name: str) -> str:
    asked = sa.select(LIVES.c.token).where(LIVES.c.name == name)
    return str(database.read(lambda connection: connection.execute(asked).scalar_one()))


def _held(name: str, found: Holder) -> LockedError:
    return LockedError(
        f"{name!r} is served by process {found.pid} on host {found.host} since {found.since}",
        "wait until it ends, or end it there first",
    )


def _leave_time_to_return(database: Database, name: str) -> None:
    """After a restart of PostgreSQL, before the name of one that may live is taken."""
    if database.kind != "postgresql":
        return
    age = sa.func.extract("epoch", sa.func.clock_timestamp() - sa.func.pg_postmaster_start_time())
    while True:
        if database.read(lambda connection: connection.execute(sa.select(age)).scalar_one()) >= (
            RETURN_SECONDS
        ):
            return
        time.sleep(0.2)
        found = holder(database, name)
        if found is not None and found.alive:
            raise _held(name, found)


# ---- processes ----


def _process() -> str:
    """This process, as no other one on any host ever is."""
    return f"{_space()}/{os.getpid()}/{_begun(os.getpid())}"


def _space() -> str:
    """Within which a number means a process: this boot of this host, or container."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"


def _begun(pid: int) -> str:
    """When the process began, in ticks since the boot: proc(5), /proc/PID/stat, field 22."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == b"Z" else fields[19].decode()


def _is_dead(last: Holder) -> bool:
    """Whether that is certain: it was a process here, and is not any more."""
    space, _, rest = str(last.facts.get("process", "")).rpartition("/")
    space, _, pid = space.rpartition("/")
    return space == _space() and pid.isdecimal() and _begun(int(pid)) != rest


# ---- PostgreSQL ----


def _number(name: str) -> int:
    """Of the advisory lock: 64 bits with a sign."""
    digest = hashlib.blake2b(b"rollpoint life " + name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _is_session_held(connection: sa.Connection, name: str) -> bool:
    """Source: PostgreSQL's manual, pg_locks: classid and objid are the key's two halves."""
    asked = sa.text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND ((classid::bigint << 32) | objid::bigint) = :number"
    )
    return bool(connection.execute(asked, {"number": _number(name)}).scalar_one())


class _Session:
    """A session of its own that has the advisory lock."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._key = _number(name)
        self._connection: sa.Connection | None = None

    def get(self) -> bool:
        """A new session with the lock; tries once. False: another one has it."""
        self.close()
        connection = self._database.engine.connect()
        try:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.detach()  # from the pool: closing it ends the session, and the lock
            for setting, value in _SESSION.items():
                connection.exec_driver_sql(f"SET {setting} = {value}")
            asked = sa.select(sa.func.pg_try_advisory_lock(self._key))
            if connection.execute(asked).scalar_one():
                self._connection = connection
                return True
        finally:
            if self._connection is None:
                connection.close()
        return False

    def is_there(self) -> bool:
        if self._connection is None:
            return False
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except exc.SQLAlchemyError:
            return False
        return True

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(exc.SQLAlchemyError):  # at once, not when the server sees
                self._connection.execute(sa.select(sa.func.pg_advisory_unlock(self._key)))
            with contextlib.suppress(exc.SQLAlchemyError):
                self._connection.close()
            self._connection = None


# ---- SQLite ----


class _FileLock:
    """A lock of an open file description (fcntl(2)) beside the database."""

    def __init__(self, database: Database, name: str) -> None:
        self._path = f"{database.path}.{urllib.parse.quote(name, safe='')}.lock"
        self._file = -1

    def get(self) -> bool:
        """False: another process has it."""
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise system_error(f"opening {self._path}", error.errno or 0) from None
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
        except BlockingIOError:
            self.close()
            return False
        return True

    def is_held(self) -> bool:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0)
            found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked)
            return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
        finally:
            os.close(file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
