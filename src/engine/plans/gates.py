"""Looking whether a replica, or a group, really came up.

Each look is made in a thread of its own and ends, for us, with its time: a name server, a
hypervisor or a peer that drips bytes cannot make it longer. At most one look of a gate is
left behind at a time.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import Error, UnsupportedError, UsageError
from ..units import parse_duration
from . import scripts
from .place import Place, fill
from .reaching import Answer, Leash, connect, get
from .tables import Gate, GateKind

if TYPE_CHECKING:
    from ..hypervisor.base import Hypervisor

SAYS_LENGTH_MAX = 500
TELL_SECONDS = 1.0  # between two rows for what is only on its way
SAME_SECONDS = 10.0  # the same, where the looks see what they saw

_ASK_SECONDS = 0.1
_SCRIPT_SECONDS = 10.0  # until a script that was cut is gone

Row = dict[str, Any]


class Seen(NamedTuple):
    """What one look saw. final: another look cannot see anything else."""

    passed: bool
    says: str
    final: bool = False


def wait(
    gate: Gate,
    place: Place,
    *,
    hypervisor: Hypervisor | None,
    gives_up: Callable[[], bool],
    tell: Callable[[Row], None],
) -> Row:
    """Look until it passes, or its looks are used up.

    Where it lasts, what the looks see is told meanwhile: most pass before anybody could look.

    Args:
        hypervisor: Of the machine, for heartbeat and marker.
        gives_up: Whether nobody waits any more; asked ten times a second.
        tell: Gets a row with the state "looking", and "of", the looks there may be: when what
            is seen has changed, and now and then while it has not.

    Returns:
        Of an event "gate": name, kind, state ("passed", "failed", "cancelled"), tries,
        seconds, says.
    """
    begun = time.monotonic()
    looks, seen, told, told_at = 0, Seen(False, ""), "", begun

    def row(state: str) -> Row:
        seconds = round(time.monotonic() - begun, 3)
        name = gate.name or gate.kind
        found = {"name": name, "kind": gate.kind, "state": state, "tries": looks}
        return found | {"seconds": seconds, "says": seen.says}

    interval, timeout = parse_duration(gate.interval), parse_duration(gate.timeout)
    looker = _Looker(gate, place, hypervisor)
    while not gives_up():
        next_at = time.monotonic() + interval
        looks += 1
        found = looker.look(timeout, gives_up)
        if found is None:
            break
        seen = found._replace(says=_line(found.says, gate))
        if seen.passed:
            return row("passed")
        if seen.final or looks > gate.retries:
            return row("failed")
        pause = SAME_SECONDS if seen.says == told else TELL_SECONDS
        if time.monotonic() >= told_at + pause:
            told, told_at = seen.says, time.monotonic()
            tell(row("looking") | {"of": gate.retries + 1})
        while (left := next_at - time.monotonic()) > 0 and not gives_up():
            time.sleep(min(left, _ASK_SECONDS))
    return row("cancelled")


def _line(text: str, gate: Gate) -> str:
    line = scripts.shown(text.encode("utf-8", "replace"), gate.env)
    return " ".join(line.split())[:SAYS_LENGTH_MAX]


class _Looker:
    """Makes looks of one gate, each bounded."""

    def __init__(self, gate: Gate, place: Place, hypervisor: Hypervisor | None) -> None:
        self._gate, self._place, self._hypervisor = gate, place, hypervisor
        self._stuck: threading.Thread | None = None
        self._looks = 0

    def look(self, seconds: float, gives_up: Callable[[], bool]) -> Seen | None:
        """What was seen; None: the caller gave up."""
        leash = Leash(seconds)
        if self._stuck is not None:
            if not _joined(self._stuck, leash, gives_up):
                return None if gives_up() else Seen(False, "the look before has no answer yet")
            self._stuck = None
        seen: list[Seen] = []
        failed: list[BaseException] = []
        self._looks += 1

        def work() -> None:
            try:
                seen.append(self._look(leash))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work, name=f"gate {self._gate.kind}", daemon=True)
        thread.start()
        if not _joined(thread, leash, gives_up):
            given_up = gives_up()
            leash.cut()
            thread.join(_SCRIPT_SECONDS if self._gate.kind == "script" else _ASK_SECONDS)
            if thread.is_alive():
                self._stuck = thread
            if given_up:
                return None
            if not (seen and seen[0].passed):
                return Seen(False, f"no answer in {seconds:g} s")
        if failed:
            raise failed[0]
        return seen[0]

    def _look(self, leash: Leash) -> Seen:
        gate = self._gate
        try:
            if gate.kind == "script":
                return _script(gate, self._place, leash, again=self._looks > 1)
            return _LOOKS[gate.kind](gate, self._place, self._hypervisor, leash)
        except (UsageError, UnsupportedError) as error:
            hint = f" ({error.hint})" if error.hint else ""
            return Seen(False, f"{error.message}{hint}", final=True)
        except Error as error:
            return Seen(False, error.message)
        except TimeoutError:
            return Seen(False, "no answer in its time")
        except (OSError, ValueError, http.client.HTTPException) as error:
            return Seen(False, getattr(error, "strerror", None) or str(error) or repr(error))


def _joined(thread: threading.Thread, leash: Leash, gives_up: Callable[[], bool]) -> bool:
    """Whether it ended in its time, and before the caller gave up."""
    while True:
        left = leash.seconds_left
        thread.join(max(0.0, min(left, _ASK_SECONDS)))
        if not thread.is_alive():
            return True
        if left <= 0 or gives_up():
            return False


def _heartbeat(gate: Gate, place: Place, hypervisor: Hypervisor | None, leash: Leash) -> Seen:
    asked = _require_machine(place, hypervisor)
    said = asked.beats(place.machine)
    return Seen(bool(said), said or "no heartbeat")


def _marker(gate: Gate, place: Place, hypervisor: Hypervisor | None, leash: Leash) -> Seen:
    asked = _require_machine(place, hypervisor)
    if asked.kind == "vsphere":
        raise UnsupportedError("vSphere keeps no console", "use a gate of the kind heartbeat")
    return Seen(True, asked.wait_for(place.machine, fill(gate.marker, place), 0.0))


def _require_machine(place: Place, hypervisor: Hypervisor | None) -> Hypervisor:
    if not place.replica:
        raise UsageError("a group has no machine", 'let the gate be looked at each = "replica"')
    if hypervisor is None or not place.machine:
        raise UsageError(
            f"{place.replica} has no machine here that could be asked",
            "use a gate of the kind tcp, http or script",
        )
    return hypervisor


def _tcp(gate: Gate, place: Place, hypervisor: Hypervisor | None, leash: Leash) -> Seen:
    host = fill(gate.host, place)
    with connect(host, gate.port, leash):
        return Seen(True, f"{host} port {gate.port} takes connections")


def _http(gate: Gate, place: Place, hypervisor: Hypervisor | None, leash: Leash) -> Seen:
    text = fill(gate.text, place)
    answer = get(
        fill(gate.url, place),
        leash,
        wanted_status=gate.status,
        text=text,
        ca_file=gate.ca_file,
        insecure=gate.insecure,
    )
    return _judged(answer, gate.status, text)


def _judged(answer: Answer, status: int, text: str) -> Seen:
    if answer.problem:
        return Seen(False, f"status {answer.status}: {answer.problem}")
    if answer.status != status:
        return Seen(False, f"status {answer.status}, not {status}")
    if text and not answer.has_text:
        whole = "" if answer.whole else f", in its first {answer.length} bytes"
        return Seen(False, f"status {status}, but {text!r} is not in it{whole}")
    return Seen(True, f"status {status}" + (f", with {text!r}" if text else ""))


def _script(gate: Gate, place: Place, leash: Leash, *, again: bool) -> Seen:
    done = scripts.execute(
        gate.command,
        gate.shell,
        gate.env,
        place,
        leash.seconds_left,
        leash.is_cut,
        of=f"gate {gate.name}",
        again=again,
    )
    if done.code == 0:
        return Seen(True, scripts.last_line(done, gate.env) or "exit code 0")
    return Seen(False, scripts.why(done, gate.env))


_LOOKS: dict[GateKind, Callable[[Gate, Place, Hypervisor | None, Leash], Seen]] = {
    "heartbeat": _heartbeat,
    "tcp": _tcp,
    "http": _http,
    "marker": _marker,
}
