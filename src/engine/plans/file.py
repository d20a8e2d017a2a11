"""A plan file, read: what it says as tables, or what is wrong with it, with its line.

Everything that can be told without looking at a replica is told here; the rules are in
file_groups.py and file_scripts.py. Users' page: docs/plans.md, "The plan file".
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from .. import toml_lines
from .._native import Io
from ..errors import NotFoundError, UsageError
from ..toml_lines import Document
from . import file_groups, file_scripts
from .tables import VERSION, Group, Plan

LIMIT_BYTES = 1 << 20
HINT = "see docs/plans.md"


def load(path: str) -> Plan:
    """The plan in a file.

    Raises:
        UsageError: There is no such file, or it is no plan: with the line and what to do.
        StorageError: It cannot be read.
    """
    return parse(_read(path), path)


def parse(data: bytes, where: str) -> Plan:
    """As load, of the bytes of a file that messages call where, by whose name a plan without
    a name is called."""
    return _plan(toml_lines.parse(data, where, HINT))


def place(path: str, keys: Iterable[str | int]) -> str:
    """File and line of what a plan says, for messages: "site.toml, line 12".

    Args:
        keys: From the top, as in ("group", 0, "replicas", 2). Where the file does not say it
            (any more), the line of the nearest table around it.

    Raises:
        UsageError, StorageError: The file cannot be read as TOML any more.
    """
    return toml_lines.parse(_read(path), path, HINT).place(keys)


def root_of(plan: Plan, path: str, group: Group) -> str:
    """The directory under which a group's replicas lie, absolute.

    Args:
        path: Of the plan file: what is relative is relative to its directory.
    """
    base = os.path.dirname(os.path.abspath(path))
    return os.path.normpath(os.path.join(base, group.root or plan.replicas))


def _read(path: str) -> bytes:
    if not path or "\0" in path:
        raise UsageError(f"{path!r} is no plan file", "name one")
    folder, name = os.path.split(os.path.abspath(path))
    try:
        directory = Io.posix().open_dir(folder)
        try:
            return directory.read(name, LIMIT_BYTES)
        finally:
            directory.close()
    except NotFoundError:
        raise UsageError(f"there is no plan file {path}", "check the path") from None


def _plan(document: Document) -> Plan:
    _require_version(document)
    plan = document.convert(Plan)
    _require_text(document, document.data, ())
    plan.name = plan.name or _stem(document)
    if not file_groups.NAME.fullmatch(plan.name):
        raise document.error(
            ("name",),
            f"{toml_lines.cut(repr(plan.name))} cannot name a plan",
            f'write name = "...": {file_groups.NAME_HINT}',
        )
    if not plan.replicas:
        raise document.error(
            ("replicas",), "replicas is empty", "name the directory; . is the plan file's"
        )
    file_groups.require_targets(document, (), plan.rpo_target, plan.rto_target)
    if not plan.group:
        raise document.error(("group",), "the plan has no group", "write a [[group]]")
    file_groups.check(document, plan)
    for number, group in enumerate(plan.group):
        file_scripts.check(document, ("group", number), group)
        file_scripts.name_all(group)
    return plan


def _stem(document: Document) -> str:
    return os.path.basename(document.where).removesuffix(".toml")


def _require_version(document: Document) -> None:
    """Before all else: what a newer version says, this one cannot judge."""
    if "version" not in document.data:
        raise document.error((), "version is missing", f"write version = {VERSION} at the top")
    version = document.data["version"]
    if type(version) is not int:
        shown = toml_lines.cut(version)
        raise document.error(
            ("version",), f"version is {shown}, no whole number", f"write version = {VERSION}"
        )
    if version > VERSION:
        raise document.error(
            ("version",),
            f"the plan is of version {toml_lines.cut(version)}, and this Rollpoint reads {VERSION}",
            f"upgrade Rollpoint, or write the plan as version {VERSION}",
        )
    if version < VERSION:
        raise document.error(
            ("version",),
            f"there is no version {toml_lines.cut(version)} of plans",
            f"write version = {VERSION}",
        )


def _require_text(document: Document, value: object, keys: toml_lines.Keys) -> None:
    """No NUL in any text: no file, command or network can have one."""
    if isinstance(value, str) and "\0" in value:
        raise document.error(keys, f"{toml_lines.cut(repr(value))} has a NUL in it", "take it out")
    if isinstance(value, dict):
        for name, inside in value.items():
            _require_text(document, name, (*keys, name))
            _require_text(document, inside, (*keys, name))
    elif isinstance(value, list):
        for number, inside in enumerate(value):
            _require_text(document, inside, (*keys, number))
