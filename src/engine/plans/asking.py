"""What a plan asks of a mount host before anything is done: which replicas a group means there,
which restore points, and how ready they are.

The machine that runs the plan answers itself; another one's worker is asked through its queue.
"""

from __future__ import annotations

import secrets
from typing import Literal

import msgspec

from .. import errors
from ..errors import Error, FailedError, NotFoundError
from . import choosing, survey
from .store import Store
from .survey import Found, Readiness
from .tables import Group, RunKind

ANSWER_SECONDS = 120.0


class Request(msgspec.Struct, kw_only=True):
    """resolve: the replicas and their points; look: also how ready they are.

    root: Directory of the replicas, absolute there.
    """

    what: Literal["resolve", "look"]
    group: Group
    root: str
    kind: RunKind
    run: str = ""


class Answer(msgspec.Struct, kw_only=True):
    """points: Name of a replica -> what a failover is to go to. error: why there is no answer."""

    found: list[Found] = []
    points: dict[str, str] = {}
    ready: list[Readiness] = []
    error: str = ""
    hint: str = ""
    code: str = ""


def answer(request: str) -> str:
    """Of this machine, as JSON."""
    asked = msgspec.json.decode(request, type=Request)
    made = Answer()
    try:
        made.found = survey.resolve(asked.group, asked.root)
        if asked.what == "resolve":
            made.points = choosing.choose(asked.group, made.found, asked.kind, asked.run)
        else:
            made.ready = [survey.look(one, asked.kind, asked.group) for one in made.found]
    except Error as error:
        made = Answer(error=error.message, hint=error.hint, code=error.code)
    return msgspec.json.encode(made).decode()


def ask(store: Store | None, queue: str, request: Request) -> Answer:
    """The answer of a mount host; store: to reach another one than this.

    Raises:
        Error: As the mount host says it; or nobody serves the queue.
    """
    text = msgspec.json.encode(request).decode()
    said = answer(text) if not queue else _ask_there(store, queue, text)
    made = msgspec.json.decode(said, type=Answer)
    if made.error:
        raise _error(made)
    return made


def _ask_there(store: Store | None, queue: str, text: str) -> str:
    holder = None if store is None else store.holder(queue)
    if store is None or holder is None or not holder.alive:
        raise NotFoundError(
            f"no worker serves the queue {queue!r}",
            f"start one on that mount host: rollpoint worker --queue {queue} --database URL",
        )
    from .durable import Client

    client = Client(store)
    try:
        id = f"survey/{secrets.token_hex(8)}"
        client.enqueue("survey", queue, id, text)
        said = client.result(id, ANSWER_SECONDS)
    finally:
        client.close()
    if said is None:
        raise FailedError(
            f"the worker of queue {queue!r}, process {holder.pid} on {holder.host}, is silent",
            "see whether it still works",
        )
    return str(said)


def _error(made: Answer) -> Error:
    kinds = {
        kind.code: kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, Error)
    }
    return kinds.get(made.code, FailedError)(made.error, made.hint)
