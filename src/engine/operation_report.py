"""What an operation came to, for people and programs: reports/OPERATION.json and .html.

Written when an operation has ended, from what the manifest knows of it. A report that cannot
be written is no reason for anything: the operation has ended, and its record is the manifest's
and the audit log's.

Bytes: docs/formats.md, "Report of an operation".
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re

import msgspec

from ._native import Dir
from .errors import Error, ExistsError, NotFoundError
from .manifest import Manifest, Operation
from .points import now_text
from .units import format_time, parse_time

FOLDER = "reports"
FORMAT = "rollpoint-operation"
VERSION = 1
LIMIT_BYTES = 16 << 20
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Facts = dict[str, object]


def file_name(operation_id: str, ending: str = "html") -> str:
    """Of the report, without its folder. An id that cannot be a file's name is hashed."""
    if _PLAIN.fullmatch(operation_id) is None:
        operation_id = "id-" + hashlib.sha256(operation_id.encode()).hexdigest()[:32]
    return f"{operation_id}.{ending}"


def facts(manifest: Manifest, operation: Operation) -> Facts:
    """The JSON report. The operation is the one that has just ended, or failed."""
    head = manifest.audit
    return {
        "format": FORMAT,
        "version": VERSION,
        "written": now_text(),
        "host": os.uname().nodename,
        "replica": {"id": manifest.id, "name": manifest.name, "epoch": manifest.epoch},
        "state": {"before": operation.found_state, "after": manifest.state},
        "ended": _ended(operation),
        "point_age_seconds": _point_age(operation),
        "disks": [
            {"name": disk.name, "size_bytes": disk.size_bytes} for disk in manifest.disks
        ],
        "failback": None
        if manifest.failback is None
        else msgspec.to_builtins(manifest.failback),
        "audit": None if head is None else {"lines": head.lines, "hash": head.hash},
        "operation": msgspec.to_builtins(operation),
    }


def _ended(operation: Operation) -> str | None:
    """When its last step did; None: no step has run."""
    ends = [
        step.started_ns + int((step.seconds or 0.0) * 1e9)
        for step in operation.steps
        if step.started_ns is not None
    ]
    return format_time(max(ends)) if ends else None


def _point_age(operation: Operation) -> float | None:
    """How old the point was when the operation began; 0 when the hold made it."""
    if not operation.point_time:
        return None
    return max(0, parse_time(operation.started) - parse_time(operation.point_time)) / 1e9


def write(directory: Dir, manifest: Manifest, operation: Operation) -> str:
    """Write both files. Returns what went wrong; mostly ""."""
    from . import html_report

    try:
        told = facts(manifest, operation)
        page = html_report.render(told)
        data = msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n"
        with contextlib.suppress(ExistsError):
            directory.make_dir(FOLDER)
            directory.sync()
        folder = directory.io.open_dir(f"{directory.path}/{FOLDER}")
        try:
            folder.replace(file_name(operation.id, "json"), data)
            folder.replace(file_name(operation.id), page.encode())
        finally:
            folder.close()
    except Error as error:
        return f"no report of {operation.kind} {operation.id} was written: {error.message}"
    return ""


def place_of(directory: Dir, operation_id: str) -> str | None:
    """The absolute path of the report for people, if there is one."""
    with contextlib.suppress(Error):
        folder = directory.io.open_dir(f"{directory.path}/{FOLDER}")
        try:
            name = file_name(operation_id)
            return f"{folder.path}/{name}" if folder.exists(name) else None
        finally:
            folder.close()
    return None


def remove_all(directory: Dir) -> None:
    """With the replica. Other files in the folder stay, and the folder with them."""
    try:
        folder = directory.io.open_dir(f"{directory.path}/{FOLDER}")
    except NotFoundError:
        return
    try:
        for name in folder.list():
            if name.removesuffix(".new").endswith((".json", ".html")):
                folder.unlink(name)
        folder.sync()
        left = folder.list()
    finally:
        folder.close()
    if not left:
        directory.remove_dir(FOLDER)
