"""Evidence that the source is off: what counts, for how long, and what never does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import Plain
from replicas import wait_until
from rollpoint import commands, fencing
from rollpoint.config_tables import FencingTable, SourceTable
from rollpoint.errors import HypervisorError
from rollpoint.records import Evidence
from rollpoint.units import format_time

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND


class Site(Plain):
    """Where the source runs."""

    kind = "qemu"

    def __init__(self, state: str | None) -> None:
        self.state = state

    def is_known(self, machine_id: str) -> bool:
        if self.state == "away":
            raise HypervisorError("the site does not answer")
        return self.state is not None

    def status(self, machine_id: str) -> Any:
        return self.state


def table(tmp_path: Path, **settings: Any) -> SourceTable:
    return SourceTable(machine="web", timeout="5s", **settings)


def touching(path: Path, code: int = 0, says: str = "port 7 is off") -> list[str]:
    program = f"open({str(path)!r}, 'a').write('x'); print({says!r}); raise SystemExit({code})"
    return [sys.executable, "-c", program]


def kinds(found: list[Evidence]) -> list[str]:
    return [one.kind for one in found]


@pytest.mark.parametrize(
    ("state", "kind"),
    [("off", "powered_off_confirmed"), ("running", "none"), ("paused", "none"),
     (None, "none"), ("away", "unreachable")],
)  # fmt: skip
def test_only_a_source_that_is_seen_off_is_off(
    tmp_path: Path, state: str | None, kind: str
) -> None:
    policy = FencingTable()
    found = fencing.collect(table(tmp_path), Site(state), policy, NOW)
    assert kinds(found) == [kind]
    assert (fencing.sufficient(found, policy, NOW) is not None) == (state == "off")


def test_without_a_source_nothing_is_known(tmp_path: Path) -> None:
    found = fencing.collect(None, None, FencingTable(), NOW)
    assert kinds(found) == ["none"]
    assert fencing.sufficient(found, FencingTable(), NOW) is None
    assert fencing.sufficient(found, FencingTable(accept=["none"]), NOW) is not None


def test_the_fence_is_used_last_and_never_against_a_source_that_runs(tmp_path: Path) -> None:
    fence = touching(tmp_path / "fenced")
    said = table(tmp_path, fence=fence)
    for state in ("off", "running", "paused"):
        fencing.collect(said, Site(state), FencingTable(), NOW)
        assert not (tmp_path / "fenced").exists(), state
    for count, site in enumerate((Site("away"), Site(None), None), 1):
        found = fencing.collect(said, site, FencingTable(), NOW)
        assert (tmp_path / "fenced").read_text() == "x" * count
        assert found[-1].kind == "host_fenced"
        assert found[-1].says == "port 7 is off"


def test_a_fence_that_fails_or_hangs_is_no_evidence(tmp_path: Path) -> None:
    failing = table(tmp_path, fence=touching(tmp_path / "f", code=1, says="no such port"))
    found = fencing.collect(failing, Site("away"), FencingTable(), NOW)
    assert fencing.sufficient(found, FencingTable(), NOW) is None
    assert "no such port" in fencing.told(found)
    hanging = SourceTable(
        machine="web", timeout="0.2s", fence=[sys.executable, "-c", "import time; time.sleep(600)"]
    )
    found = fencing.collect(hanging, Site("away"), FencingTable(), NOW)
    assert fencing.sufficient(found, FencingTable(), NOW) is None
    missing = table(tmp_path, fence=["/no/such/program"])
    found = fencing.collect(missing, Site("away"), FencingTable(), NOW)
    assert found[-1].kind == "none"
    assert "cannot be run" in found[-1].says


def test_not_being_answered_is_no_evidence_unless_the_policy_says_so(tmp_path: Path) -> None:
    said = table(tmp_path, probe=touching(tmp_path / "p", code=1, says=""))
    found = fencing.collect(said, None, FencingTable(), NOW)
    assert kinds(found) == ["none", "unreachable"]
    assert fencing.sufficient(found, FencingTable(), NOW) is None
    bold = FencingTable(accept=["unreachable"])
    assert fencing.sufficient(found, bold, NOW) is not None
    alive = table(tmp_path, probe=touching(tmp_path / "p", code=0, says="it answers"))
    found = fencing.collect(alive, None, bold, NOW)
    assert fencing.sufficient(found, bold, NOW) is None


@pytest.mark.parametrize(
    ("age_seconds", "counts"), [(0, True), (29, True), (31, False), (3600, False), (-5, False)]
)
def test_what_was_seen_counts_for_max_age_and_a_clock_that_is_set_back_makes_nothing_young(
    age_seconds: int, counts: bool
) -> None:
    seen = Evidence(
        kind="powered_off_confirmed", time=format_time(NOW - age_seconds * SECOND), says="off"
    )
    assert (fencing.sufficient([seen], FencingTable(), NOW) is not None) == counts


def test_what_was_seen_before_the_hold_does_not_count() -> None:
    seen = Evidence(kind="powered_off_confirmed", time=format_time(NOW - SECOND), says="off")
    assert fencing.sufficient([seen], FencingTable(), NOW, after_ns=NOW - 2 * SECOND) is not None
    assert fencing.sufficient([seen], FencingTable(), NOW, after_ns=NOW) is None


@pytest.mark.parametrize("kind", ["overridden", "host_fenced", "storage_fenced"])
def test_what_lasts_counts_after_its_age_as_long_as_the_policy_takes_it(kind: Any) -> None:
    old = Evidence(kind=kind, time=format_time(NOW - 3600 * SECOND), says="the rack is cold")
    assert fencing.sufficient([old], FencingTable(), NOW, after_ns=NOW) is old
    assert fencing.sufficient([old], FencingTable(accept=["network_isolated"]), NOW) is None


def test_a_command_that_does_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {mark}; wait"
    ended = commands.run(["/bin/sh", "-c", script], 0.5)
    assert ended.code is None
    child = Path(f"/proc/{mark.read_text().strip()}/stat")
    wait_until(
        lambda: not child.exists() or child.read_text().split()[2] == "Z", "the child has gone"
    )


def test_what_a_command_prints_is_one_bounded_line() -> None:
    said = commands.run([sys.executable, "-c", "print('a\\nb ' * 5000)"], 30.0).said
    assert said.startswith("a b a b")
    assert len(said) == commands.SAID_LENGTH_MAX
