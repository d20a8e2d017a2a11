"""The same act on several disks at once: syncs of different files wait together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(act: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """act(item) for every item, each on a thread of its own; results in order.

    All have ended when this returns or raises.

    Raises:
        The first item's error, of those that failed.
    """
    if len(items) < 2:
        return [act(item) for item in items]
    results: dict[int, Result] = {}
    errors: dict[int, BaseException] = {}

    def run(index: int) -> None:
        try:
            results[index] = act(items[index])
        except BaseException as error:
            errors[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(items))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]
    return [results[index] for index in range(len(items))]
