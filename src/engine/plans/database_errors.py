"""What a database's own errors mean: whether they pass, and what to do about those that do not."""

from __future__ import annotations

import sqlite3

from sqlalchemy import exc

# Names of PostgreSQL: the connection went, or it would be granted a little later.
PASSING_STATES = ("08", "57P", "53", "40001", "40P01", "55P03", "25006")

# Words of the database's own message -> ours, and what to do.
KNOWN: list[tuple[tuple[str, ...], str, str]] = [
    (
        ("password authentication failed", "no password supplied", "fe_sendauth"),
        "it does not take the password",
        "put the right one in PGPASSWORD, or in ~/.pgpass",
    ),
    (
        ("no pg_hba.conf entry", "Peer authentication failed", "Ident authentication failed"),
        "it does not let this host and role in",
        "add a line for them to the server's pg_hba.conf",
    ),
    (
        ("permission denied for schema",),
        "the role may not make tables",
        "have the database's owner run: GRANT USAGE, CREATE ON SCHEMA public TO the role",
    ),
    (
        ("permission denied",),
        "the role lacks a right",
        "have its owner grant SELECT, INSERT, UPDATE and DELETE on the tables rollpoint_*",
    ),
    (
        ("readonly database", "unable to open database file"),
        "the file cannot be written",
        "check who owns the file and its directory, and their modes",
    ),
    (
        ("file is not a database", "malformed"),
        "the file is no database, or damaged",
        "move it away and start again, or name another with --state",
    ),
    (
        ("database or disk is full",),
        "there is no room",
        "make room on its file system; the run goes on where it was",
    ),
    (
        ('role "',),
        "there is no such role",
        "have it made: createuser NAME",
    ),
    (
        ('database "',),
        "there is no such database",
        "have it made: createdb NAME, owned by the role of the URL",
    ),
]  # fmt: skip


def is_passing(error: exc.SQLAlchemyError) -> bool:
    """Whether the same call may well work in a moment."""
    if isinstance(error, exc.TimeoutError):  # of the pool
        return True
    if not isinstance(error, exc.DBAPIError):
        return False
    origin = error.orig
    if isinstance(origin, sqlite3.Error):
        return getattr(origin, "sqlite_errorcode", 0) & 0xFF in (
            sqlite3.SQLITE_BUSY,
            sqlite3.SQLITE_LOCKED,
        )
    state = getattr(origin, "sqlstate", None)
    if state is not None:
        return str(state).startswith(PASSING_STATES)
    return isinstance(error, exc.OperationalError | exc.InterfaceError)


def says_of(error: exc.SQLAlchemyError) -> str:
    """The database's own words in one line, without the statement and what was in it."""
    origin = getattr(error, "orig", None)
    return " ".join(str(origin if origin is not None else error).split())[:300]
