"""Where a script or a gate is at work: what it is told, and what stands for what in its words."""

from __future__ import annotations

import re

import msgspec

from ..errors import UsageError

# In the plan file's host, url, text, marker and command. A "$" before one leaves it alone: that
# is the shell's.
PLACEHOLDERS = ("replica", "group", "plan", "run", "address")
PLACEHOLDER = re.compile(r"(?<!\$)\{(" + "|".join(PLACEHOLDERS) + r")\}")
_WHY_NOT = {
    "replica": "a group's own script or gate is of no replica",
    "address": "no address of the guest is known",
}


class Place(msgspec.Struct, kw_only=True, frozen=True):
    """One replica in a run, or a group: then replica, directory and what follows kind are "".

    Attributes:
        directory: Of the replica. kind: Of the run.
        operation: The replica's own, by which it is asked for again.
        point: That it went to; "": not yet. address: The guest's first one.
        machine: The hypervisor's id of the machine; "": none was started.
    """

    plan: str
    run: str
    kind: str
    group: str
    replica: str = ""
    directory: str = ""
    operation: str = ""
    point: str = ""
    address: str = ""
    machine: str = ""


def env(place: Place) -> dict[str, str]:
    """What a script is told: ROLLPOINT_PLAN and so on, one for each field."""
    return {f"ROLLPOINT_{name.upper()}": getattr(place, name) for name in Place.__struct_fields__}


def fill(text: str, place: Place) -> str:
    """The text with what its placeholders stand for.

    Raises:
        UsageError: One of them stands for nothing here.
    """

    def value(found: re.Match[str]) -> str:
        said: str = getattr(place, found[1])
        if not said:
            raise UsageError(
                f"{found[0]} stands for nothing here: {_WHY_NOT.get(found[1], 'it is empty')}",
                "say what is meant instead of it in the plan file",
            )
        return said

    return PLACEHOLDER.sub(value, text)


def fill_shell(text: str) -> str:
    """As fill, for a shell: the names of variables that it has, so that no name is a command."""
    return PLACEHOLDER.sub(lambda found: f"${{ROLLPOINT_{found[1].upper()}}}", text)
