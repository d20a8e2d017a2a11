"""Asking a mount host before anything is done: which replicas a group means there, which restore
points, and how ready they are (survey.py).

The machine that runs the plan answers itself; another one's worker is asked through its queue.
"""

from __future__ import annotations

import secrets

import msgspec

from .. import errors
from ..errors import Error, FailedError, NotFoundError
from ..structs import prepared
from . import survey
from .found import Request
from .store import Store

ANSWER_SECONDS = 120.0


@prepared
class Reply(msgspec.Struct, kw_only=True):
    """What comes back through a queue: the answer, or why there is none."""

    answer: str = ""
    error: str = ""
    hint: str = ""
    code: str = ""


def reply(request: str) -> str:
    """Of this machine to another one; both are JSON."""
    try:
        made = Reply(answer=survey.answer(request))
    except Error as error:
        made = Reply(error=error.message, hint=error.hint, code=error.code)
    return msgspec.json.encode(made).decode()


def ask(store: Store | None, request: Request) -> str:
    """The answer of the mount host of a group, as survey.answer gives it.

    Args:
        store: To reach another machine; None: there is no database.

    Raises:
        Error: As the mount host says it; or nobody serves its queue.
    """
    text = msgspec.json.encode(request).decode()
    if not request.group.queue:
        return survey.answer(text)
    made = msgspec.json.decode(_ask_there(store, request.group.queue, text), type=Reply)
    if made.error:
        raise _error(made)
    return made.answer


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


def _error(made: Reply) -> Error:
    kinds = {
        kind.code: kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, Error)
    }
    return kinds.get(made.code, FailedError)(made.error, made.hint)
