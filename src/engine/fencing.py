"""Evidence that the source is out of action, and whether that is enough to start its replica.

A replica that is powered on while its source goes on serving is a split brain. So evidence is
collected, never assumed, and the policy of replica.toml ([fencing]) says what suffices:

  powered_off_confirmed  the source's hypervisor says, after our hold, that it is off
  host_fenced, storage_fenced, network_isolated
                         the command of [source].fence did that, and said so
  overridden             a person said why the check is to be skipped
  unreachable            the source does not answer. By itself that proves nothing
  none                   the source is on, or nothing is known of it

Not trying to reach a machine is not evidence; a time-out is not, either.
Source: Pacemaker Explained, "Fencing".
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from . import commands
from .config_tables import FencingTable, SourceTable
from .errors import Error
from .records import Evidence
from .units import format_time, parse_duration, parse_time

if TYPE_CHECKING:
    from .hypervisor.base import Hypervisor

SAID_LENGTH_MAX = commands.SAID_LENGTH_MAX
COMMAND_SECONDS_MAX = 300.0
# A clock that was set back must not make old evidence young.
AHEAD_NS_MAX = 1_000_000_000
LASTING = ("overridden", "host_fenced", "storage_fenced")


def of_hypervisor(source: Hypervisor | None, machine: str, now_ns: int) -> Evidence:
    """What the source's hypervisor says of it.

    Args:
        source: None: it could not be opened, or is not known.
        machine: As replica.toml names it.
        now_ns: The time that the evidence gets, in nanoseconds since 1970 UTC.
    """
    now = format_time(now_ns)
    if source is None:
        return Evidence(kind="none", time=now, says="nothing is known of where the source runs")
    try:
        if not source.is_known(machine):
            return Evidence(
                kind="none", time=now, says=f"there is no machine {machine}", source=source.kind
            )
        state = source.status(machine)
    except Error as error:
        return Evidence(
            kind="unreachable", time=now, says=error.message[:SAID_LENGTH_MAX], source=source.kind
        )
    if state == "off":
        return Evidence(
            kind="powered_off_confirmed",
            time=now,
            says=f"machine {machine} is off",
            source=source.kind,
        )
    return Evidence(
        kind="none", time=now, says=f"{_on(machine)}{state}", source=source.kind
    )


def of_fence(table: SourceTable, now_ns: int) -> Evidence:
    """Have the source's host or storage fenced by the operator's command, and what came of it."""
    code, said = _run(table.fence, table)
    return Evidence(
        kind=table.fence_kind if code == 0 else "none",
        time=format_time(now_ns),
        says=said or f"exit code {code}",
        source=shlex.join(table.fence),
    )


def of_probe(table: SourceTable, now_ns: int) -> Evidence:
    """Whether the source answers, as the operator's command tells."""
    code, said = _run(table.probe, table)
    return Evidence(
        kind="unreachable" if code == 1 else "none",
        time=format_time(now_ns),
        says=said or ("no answer" if code == 1 else f"exit code {code}"),
        source=shlex.join(table.probe),
    )


def collect(
    table: SourceTable | None, source: Hypervisor | None, policy: FencingTable, now_ns: int
) -> list[Evidence]:
    """What can be found out now, until it suffices. The fence is used last.

    A source that its hypervisor says is on is not fenced behind its back: whoever wants
    that powers it off, or takes the hypervisor out of [source].
    """
    if table is None:
        return [of_hypervisor(None, "", now_ns)]
    found = [of_hypervisor(source, table.machine, now_ns)]
    if sufficient(found, policy, now_ns) is None and table.probe:
        found.append(of_probe(table, now_ns))
    is_on = found[0].says.startswith(_on(table.machine))
    if sufficient(found, policy, now_ns) is None and table.fence and not is_on:
        found.append(of_fence(table, now_ns))
    return found


def sufficient(
    evidence: Iterable[Evidence], policy: FencingTable, now_ns: int, after_ns: int = 0
) -> Evidence | None:
    """The first that the policy accepts; None: there is none.

    Args:
        after_ns: What was seen before that does not count: the hold. What a person said,
            or a fence did, lasts.
    """
    max_age_ns = int(parse_duration(policy.max_age) * 1e9)
    for one in evidence:
        if one.kind not in policy.accept:
            continue
        seen_ns = parse_time(one.time)
        fresh = -AHEAD_NS_MAX <= now_ns - seen_ns <= max_age_ns and seen_ns >= after_ns
        if fresh or one.kind in LASTING:
            return one
    return None


def told(evidence: Sequence[Evidence]) -> str:
    """For people: what was seen, of all of it."""
    return "; ".join(f"{one.says} ({one.kind})" for one in evidence) or "nothing was looked for"


def _on(machine: str) -> str:
    """How evidence begins that a machine is not off."""
    return f"machine {machine} is not off: "


def _run(command: Sequence[str], table: SourceTable) -> commands.Ended:
    return commands.run(command, min(parse_duration(table.timeout), COMMAND_SECONDS_MAX))
