"""Names, pins and locks of restore points: what they promise, and what is refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from replicas import make, rollpoint
from rollpoint import noting, operation, replication
from rollpoint.errors import ExistsError, NotFoundError, StateError, UsageError
from rollpoint.replica import Replica
from rollpoint.units import format_time

HOUR_NS = 3600 * 1_000_000_000


def later(hours: float) -> str:
    return format_time(time.time_ns() + int(hours * HOUR_NS))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A replica with three restore points."""
    make(tmp_path / "r", {"d": 65536})
    with Replica.open(tmp_path / "r") as replica:
        for _ in range(3):
            replication.mark(replica)
    return tmp_path / "r"


def test_a_named_point_is_failed_over_to_by_its_name(path: Path) -> None:
    assert rollpoint("point", "name", path, 2, "before-upgrade")["name"] == "before-upgrade"
    assert rollpoint("point", "show", path, "before-upgrade")["id"] == 2
    assert rollpoint("failover", path, "--to", "before-upgrade", "--no-power-on")["point"] == 2
    rollpoint("undo", path)
    assert rollpoint("point", "name", path, "before-upgrade", "")["name"] == ""
    assert rollpoint("point", "show", path, "before-upgrade", code=2)["type"] == "UsageError"


def test_a_name_belongs_to_one_point(path: Path) -> None:
    with Replica.open(path) as replica:
        noting.set_name(replica, "1", "good")
        noting.set_name(replica, "1", "good")
        with pytest.raises(ExistsError, match="restore point 1"):
            noting.set_name(replica, "2", "good")
        assert replica.points.find("good").id == 1


@pytest.mark.parametrize(
    "name", ["latest", "Latest", "7", "7a", "2026-11-22", "a b", "-x", "x" * 101, "a/b", "a\n"]
)
def test_a_name_that_could_mean_something_else_is_refused(path: Path, name: str) -> None:
    with Replica.open(path) as replica:
        with pytest.raises(UsageError, match="cannot name"):
            noting.set_name(replica, "1", name)
        assert replica.manifest.notes == []


def test_a_pin_is_taken_away_and_leaves_nothing(path: Path) -> None:
    assert rollpoint("point", "pin", path, "latest")["kept"] is True
    shown = rollpoint("point", "show", path, 3)
    assert (shown["pinned"], shown["locked_until"], shown["long_term"]) == (True, None, False)
    assert rollpoint("point", "unpin", path, 3)["kept"] is False
    assert rollpoint("point", "unpin", path, 3)["kept"] is False
    with Replica.open(path) as replica:
        assert replica.manifest.notes == []


def test_a_lock_is_lengthened_and_never_shortened(path: Path) -> None:
    first, second = later(1), later(2)
    assert rollpoint("point", "lock", path, 1, "--until", first)["locked_until"] == first
    assert rollpoint("point", "lock", path, 1, "--until", second)["locked_until"] == second
    error = rollpoint("point", "lock", path, 1, "--until", first, code=1)
    assert (error["type"], second in error["message"]) == ("StateError", True)
    rollpoint("point", "pin", path, 1)
    shown = rollpoint("point", "unpin", path, 1)
    assert (shown["locked_until"], shown["locked"], shown["kept"]) == (second, True, True)
    assert rollpoint("point", "lock", path, 2, "--until", later(-1), code=2)["type"] == "UsageError"
    assert rollpoint("point", "lock", path, 2, "--until", "soon", code=2)["type"] == "UsageError"


def test_a_lock_that_ran_out_can_be_set_anew(path: Path) -> None:
    with Replica.open(path) as replica:
        noting.lock(replica, "1", format_time(time.time_ns() + 50_000_000))
        deadline = time.monotonic() + 30
        while noting.show(replica, "1")["locked"]:
            assert time.monotonic() < deadline
        assert noting.show(replica, "1")["kept"] is False
        assert noting.lock(replica, "1", later(1))["locked"] is True


def test_what_is_below_the_horizon_cannot_be_kept(path: Path) -> None:
    with Replica.open(path) as replica:
        with replica.locked() as manifest:
            manifest.horizon = 2
            replica.save()
        with pytest.raises(NotFoundError, match="being given up"):
            noting.set_pin(replica, "1", True)
        assert noting.set_pin(replica, "2", True)["kept"] is True


def test_a_replica_with_a_locked_point_is_not_removed_by_mistake(path: Path) -> None:
    with Replica.open(path) as replica:
        noting.lock(replica, "2", later(1))
        with pytest.raises(StateError, match="restore point 2 is locked until"):
            replica.remove()
    with Replica.open(path) as replica:
        assert len(replica.points) == 3
        replica.remove(force_name="r")
    assert not path.exists()


def test_a_replica_with_a_locked_point_is_not_made_permanent_by_mistake(path: Path) -> None:
    with Replica.open(path) as replica:
        noting.lock(replica, "2", later(1))
        operation.failover(replica, 1, power_on=False)
        with pytest.raises(StateError, match="permanent: restore point 2 is locked until"):
            operation.permanent(replica)
        with pytest.raises(UsageError, match="'other' is not that of this replica"):
            operation.permanent(replica, force_name="other")
        assert replica.manifest.state == "Failover"
        operation.permanent(replica, force_name="r")
        assert replica.manifest.state == "Permanent"


def test_points_can_be_kept_while_the_replica_is_failed_over(path: Path) -> None:
    with Replica.open(path) as replica:
        operation.failover(replica, 1, power_on=False)
        noting.set_pin(replica, "1", True)
        operation.undo(replica)
        assert noting.show(replica, "1")["pinned"] is True


def test_people_get_text(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rollpoint.cli import main

    for words in (
        ["name", str(path), "1", "good"], ["pin", str(path), "good"],
        ["lock", str(path), "good", "--until", later(1)], ["show", str(path), "good"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(["point", *words])
        assert ended.value.code == 0
    said = capsys.readouterr().out
    for wanted in ("restore point 1, ", "name    good", "pinned  until", "locked  until "):
        assert wanted in said
