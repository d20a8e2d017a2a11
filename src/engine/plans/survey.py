"""What a plan's groups mean on a mount host: which replicas, where they lie, how they are.

Run where the replicas are: by the process that runs the plan, or by the worker of another
mount host (asking.py). A name is the one of a replica's directory. Nothing is changed by
looking.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from .. import config
from .. import manifest as manifests
from .._native import Dir, Io
from ..errors import Error, NotFoundError, UsageError
from ..units import format_time, parse_time
from . import choosing
from .found import Found as Found
from .found import Problem as Problem
from .found import Readiness as Readiness
from .found import Request as Request
from .found import Resolved as Resolved
from .found import What
from .readiness import history as history
from .readiness import look as look
from .readiness import look_all as look_all
from .servers import Opens
from .tables import Group, Plan, RunKind

LABEL = "label:"
NOT = "!"
KNOWN_MAX = 8  # replicas that a message names


def request(
    plan: Plan, path: str, group: Group, kind: RunKind, *, what: What = "resolve", run: str = ""
) -> Request:
    """What to ask the mount host of a group, with all that only the plan file tells.

    Args:
        path: Of the plan file.

    Raises:
        UsageError: It is another mount host, and where the replicas lie there is not said.
    """
    from . import file

    number = next(at for at, one in enumerate(plan.group) if one.name == group.name)
    if group.queue and not os.path.isabs(group.root or plan.replicas):
        raise UsageError(
            f"{place(path, ('group', number, 'queue'))}: group {group.name} is on another mount "
            f"host, {group.queue}, and its root is no absolute directory there",
            'write root = "/..." in the group',
        )
    said = msgspec.structs.replace(
        group,
        # Without an offset it is meant in the time zone of whoever wrote the plan.
        point=_with_offset(group.point),
        rpo_target=group.rpo_target or plan.rpo_target,
    )
    texts = range(len(group.replicas))
    return Request(
        what=what,
        group=said,
        root=file.root_of(plan, path, group),
        kind=kind,
        run=run,
        plan=plan.name,
        places=[place(path, ("group", number, "replicas", text)) for text in texts],
    )


def place(path: str, keys: Sequence[str | int]) -> str:
    """Where a plan says something, for messages: "site.toml, line 12"."""
    from . import file

    try:
        return file.place(path, keys)
    except Error:  # the file has changed under our eyes
        return path


def _with_offset(point: str) -> str:
    try:
        return format_time(parse_time(point))
    except UsageError:
        return point


def answer(text: str, opens: Opens | None = None) -> str:
    """The answer to a Request, both as JSON: a Resolved, or for "look" a list of Readiness.

    Args:
        opens: Directory of a replica -> where it runs and where its source runs, instead of
            what replica.toml says.

    Raises:
        UsageError: A text of the group means no replica here.
        Error: There is no such point, or the replicas cannot be looked at.
    """
    asked = msgspec.json.decode(text, type=Request)
    found = resolve(asked.group, asked.root, asked.places)
    if asked.what == "look":
        return msgspec.json.encode(look_all(asked.group, found, asked.kind, opens)).decode()
    points = choosing.choose(asked.group, found, asked.kind, asked.run)
    return msgspec.json.encode(Resolved(found=found, points=points)).decode()


# ---- which replicas ----


def resolve(group: Group, root: str, places: Sequence[str] = ()) -> list[Found]:
    """The replicas that a group means, in the order of its texts, by name within a pattern.

    A replica whose manifest cannot be read is found all the same: it fails by itself, and
    not all of the plan with it.

    Args:
        root: Directory under which they lie.
        places: Where the plan says each text, for messages.

    Raises:
        UsageError: A text means no replica there; all of them are left out; there is no such
            directory; a label is asked for, and a replica.toml cannot be read.
    """
    names = _names(root, group)
    said = [*places, *[""] * len(group.replicas)]
    texts = [(text, said[number]) for number, text in enumerate(group.replicas)]
    labels = _Labels(root)
    out: set[str] = set()
    # Names first: a replica that is left out by name need not tell its labels.
    negative = [(text, at) for text, at in texts if text.startswith(NOT)]
    for text, at in sorted(negative, key=lambda row: row[0].startswith(NOT + LABEL)):
        left = [name for name in names if name not in out]
        out |= set(_meant(text, at, group, root, names, left, labels))
    chosen: dict[str, None] = {}
    for text, at in texts:
        if not text.startswith(NOT):
            left = [name for name in names if name not in out]
            chosen |= dict.fromkeys(_meant(text, at, group, root, names, left, labels))
    kept = [name for name in chosen if name not in out]
    if not kept:
        raise UsageError(
            f"{_at(texts[0][1] if texts else '')}group {group.name} leaves out every replica that "
            "it names",
            "correct its replicas, or take the group out of the plan",
        )
    return [_found(os.path.join(root, name)) for name in kept]


def _names(root: str, group: Group) -> list[str]:
    """Names of all replicas under the directory."""
    if os.path.lexists(os.path.join(root, manifests.FILE_NAME)):
        raise UsageError(
            f"group {group.name}: {root} is a replica itself",
            "name the directory in which it lies: root in the group, or replicas at the top",
        )
    try:
        directory = Io.posix().open_dir(root)
    except Error as error:
        raise UsageError(
            f"group {group.name}: the replicas' directory cannot be looked at: {error.message}",
            f"correct root in the group, or replicas at the top of the plan; {error.hint}",
        ) from None
    try:
        return sorted(
            name
            for name in directory.list()
            if os.path.lexists(os.path.join(root, name, manifests.FILE_NAME))
        )
    finally:
        directory.close()


class _Labels:
    """Of the replicas under a directory; each replica.toml is read once, when it is needed."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._known: dict[str, list[str]] = {}

    def __call__(self, name: str) -> list[str]:
        if name not in self._known:
            directory = Io.posix().open_dir(os.path.join(self._root, name))
            try:
                self._known[name] = config.load(directory).labels
            except Error as error:
                raise UsageError(
                    f"which labels replica {name} has cannot be told: {error.message}",
                    f'correct that, or leave the replica out: "!{name}"',
                ) from None
            finally:
                directory.close()
        return self._known[name]


def _meant(
    text: str,
    at: str,
    group: Group,
    root: str,
    names: Sequence[str],
    left: Sequence[str],
    labels: Callable[[str], list[str]],
) -> list[str]:
    """The replicas that one text means.

    Args:
        names: All that there are: of these it has to mean one. left: Not left out by name.

    Raises:
        UsageError: It means none.
    """
    wanted = text.removeprefix(NOT)
    if wanted.startswith(LABEL):
        label = wanted.removeprefix(LABEL)
        meant = [name for name in left if any(fnmatchcase(one, label) for one in labels(name))]
        hint = f'set labels = ["{label}"] at the top of their replica.toml, or correct the label'
    else:
        meant = [name for name in names if name == wanted or fnmatchcase(name, wanted)]
        near = difflib.get_close_matches(wanted, names, 1)
        known = ", ".join(names[:KNOWN_MAX]) + (", ..." if len(names) > KNOWN_MAX else "")
        there = f"there are {known}" if names else f"there is none in {root}"
        hint = f"did you mean {near[0]}? " if near else ""
        hint += f"correct the name, or root, or replicas at the top; {there}"
    if not meant:
        what = "replica has this label" if wanted.startswith(LABEL) else "replica is called so"
        raise UsageError(
            f'{_at(at)}group {group.name}: "{text}" means nothing: no {what} in {root}', hint
        )
    return meant


def _at(place: str) -> str:
    return f"{place}: " if place else ""


# ---- where they lie ----


def _found(path: str) -> Found:
    one = Found(name=os.path.basename(path), directory=path)
    said: config.Config | None = None
    try:
        directory = Io.posix().open_dir(path)
        try:
            one.id = _id(directory)
            said = config.load(directory)
        finally:
            directory.close()
    except Error:
        pass  # readiness.look says what is wrong, and so does its task
    if said is not None:
        one.labels = list(said.labels)
    one.datastores = [datastore(path, said.hypervisor.datastores if said is not None else {})]
    return one


def _id(directory: Dir) -> str:
    try:
        return manifests.load(directory).id
    except NotFoundError:
        return ""


def datastore(directory: str, mounts: Mapping[str, str]) -> str:
    """The datastore on which a replica lies: its name, else the mount point.

    Args:
        mounts: Name -> where it is mounted here; a relative path begins in the directory.
    """
    real = os.path.realpath(directory)
    known = [
        (os.path.realpath(os.path.join(directory, place)), name) for name, place in mounts.items()
    ]
    for place, name in sorted(known, key=lambda row: len(row[0]), reverse=True):
        if real == place or real.startswith(place.rstrip("/") + "/"):
            return name
    while not os.path.ismount(real):
        real = os.path.dirname(real)
    return real
