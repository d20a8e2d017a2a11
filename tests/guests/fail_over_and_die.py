"""A failover that is killed: run as a program, DIR WHERE; see test_guest_killed.py.

WHERE is one of
    never                that is: not killed. Prints how many calls and children there were
    step:NAME:STATE      when that step is "running" or "done"
    call:N               before the Nth call that a conversion makes into the guest's files
    child:N              when the Nth process has been started
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from rollpoint import operation
from rollpoint.access.tree import GuestTree
from rollpoint.manifest import Step
from rollpoint.replica import Replica

CALLS = ("mount", "read", "glob", "write", "append", "replace", "remove", "make_link", "sync")


class Fate:
    def __init__(self, where: str) -> None:
        self.where = where
        self.counts = {"call": 0, "child": 0}

    def count(self, kind: str) -> None:
        self.counts[kind] += 1
        self.reached(f"{kind}:{self.counts[kind]}")

    def reached(self, where: str) -> None:
        if where == self.where:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step(self, step: Step) -> None:
        self.reached(f"step:{step.name}:{step.state}")


def watch(fate: Fate) -> None:
    """Let fate count what is called from now on."""

    def before(owner: Any, name: str, kind: str) -> None:
        real = getattr(owner, name)

        def call(*words: Any, **named: Any) -> Any:
            fate.count(kind)
            return real(*words, **named)

        setattr(owner, name, call)

    for name in CALLS:
        before(GuestTree, name, "call")
    start = subprocess.Popen.__init__

    def started(self: Any, *words: Any, **named: Any) -> None:
        start(self, *words, **named)
        fate.count("child")

    subprocess.Popen.__init__ = started  # type: ignore[method-assign]


def main() -> None:
    fate = Fate(sys.argv[2])
    watch(fate)
    with Replica.open(sys.argv[1]) as replica:
        done = operation.failover(replica, power_on=False, on_step=fate.on_step)
    print(json.dumps({"state": done.state, **fate.counts}))


if __name__ == "__main__":
    main()
