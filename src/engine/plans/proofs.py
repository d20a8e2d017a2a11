"""What could prove that a replica's source is out of action, as it would be asked of a failover.

Nobody is fenced and no probe is run: only the source's hypervisor is asked how it is.
"""

from __future__ import annotations

from .. import planned
from ..config import Config
from ..errors import Error, NotFoundError
from ..hypervisor.base import Hypervisor
from .found import Problem, Proof, Readiness
from .servers import Servers
from .tables import RunKind

FENCED = "source-fenced"
_SKIP = f"skip the check {FENCED} in the group, or with --skip, and say why"


def look(row: Readiness, said: Config, kind: RunKind, skipped: bool, servers: Servers) -> None:
    """Fill in row.proof, and what is wrong with it for such a run.

    Args:
        skipped: The plan, or replica.toml, says not to look for evidence, and why.

    Raises:
        UsageError: A planned run, and it is not known what the source is.
    """
    proof = row.proof = Proof(accepts=list(said.fencing.accept))
    table = said.source
    error: Error | None = None
    if table is not None and table.machine:
        error = _ask(row, said, servers)
    if kind == "planned":
        planned.source_table(said)
        if error is not None:
            _add(row, f"the source cannot be shut down: {error.message}", error.hint)
    if kind != "unplanned" or "none" in said.fencing.accept:
        return
    can: list[str] = []
    if table is not None:
        can += ["powered_off_confirmed"] if table.machine else []
        can += [table.fence_kind] if table.fence else []
        can += ["unreachable"] if table.probe else []
    can += ["overridden"] if skipped else []
    proof.kinds = [one for one in can if one in said.fencing.accept]
    if not proof.kinds:
        refused = f", and [fencing] does not accept {', '.join(can)}" if can else ""
        _add(
            row,
            f"nothing can prove that the source is out of action{refused}",
            f"say in [source] where it runs, or how it is fenced; or {_SKIP}",
        )
    elif proof.kinds == ["powered_off_confirmed"]:
        alone = "only the source's hypervisor can prove that the source is off"
        if error is not None:
            says = f"{alone}, and now it could not: {error.message}"
            hint = f"{error.hint}; " if error.hint else ""
            _add(row, says, f"{hint}set [source].fence; or {_SKIP}")
        else:
            says = f"{alone}: where that is lost too, nothing does"
            _add(row, says, "set [source].fence", stops=False)


def _ask(row: Readiness, said: Config, servers: Servers) -> Error | None:
    """How the source is; returns why that cannot be told. It is in row.proof."""
    table, proof = said.source, row.proof
    assert table is not None
    hypervisor: Hypervisor | None = None
    try:
        hypervisor = servers.of_source(row.directory, table)
        known = hypervisor.is_known(table.machine)
        state = hypervisor.status(table.machine) if known else ""
    except Error as error:
        if hypervisor is not None:
            servers.failed(hypervisor, error)
        proof.answers, proof.says = False, error.message
        return error
    proof.answers = True
    if known:
        proof.says = f"machine {table.machine} is {state}"
        return None
    proof.says = f"{hypervisor.kind} knows no machine {table.machine}"
    return NotFoundError(proof.says, "correct [source].machine")


def _add(row: Readiness, says: str, hint: str, *, stops: bool = True) -> None:
    row.problems.append(Problem(what="source", says=says, hint=hint, stops=stops))
