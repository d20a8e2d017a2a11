"""Which restore point a moment means, and what is refused."""

from __future__ import annotations

import time

import pytest
from rollpoint.errors import GapError, NotFoundError, UsageError
from rollpoint.manifest import Gap, PointNote
from rollpoint.points import Points
from rollpoint.units import format_time

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND - 100 * 365 * 86400 * SECOND // 100


def rows(*seconds: int) -> list[tuple[int, int, int, str]]:
    return [(i + 1, START + s * SECOND, 1 + i % 2, f"p{s}") for i, s in enumerate(seconds)]


def at(seconds: float) -> str:
    return format_time(START + int(seconds * SECOND))


def test_a_point_counts_only_when_every_journal_has_it() -> None:
    first, second = rows(0, 2, 4, 6), rows(0, 2, 4, 6)
    del second[1], first[3]
    points = Points.common([first, second])
    assert [point.id for point in points] == [1, 3]
    assert [point.kind for point in points] == ["crash", "crash"]
    assert points.latest.label == "p4"


def test_a_moment_means_the_newest_point_not_after_it() -> None:
    points = Points.common([rows(0, 2, 4)])
    assert points.nearest(at(2)).id == 2
    assert points.nearest(at(3.999)).id == 2
    assert points.nearest(at(400)).id == 3
    assert points.nearest(START).id == 1


def test_a_moment_before_the_first_names_the_range() -> None:
    points = Points.common([rows(0, 2, 4)], where="web01")
    with pytest.raises(NotFoundError, match="before the first") as caught:
        points.nearest(at(-1))
    assert at(0) in caught.value.hint
    assert at(4) in caught.value.hint


def test_a_moment_in_the_future_is_refused() -> None:
    points = Points.common([rows(0)])
    with pytest.raises(NotFoundError, match="not come yet"):
        points.nearest(time.time_ns() + 3600 * SECOND)


def test_a_moment_in_a_gap_is_refused_with_both_neighbours() -> None:
    points = Points.common([rows(0, 2, 100)], [Gap(start=at(2), end=at(100), cause="killed")])
    with pytest.raises(GapError, match="killed") as caught:
        points.nearest(at(50))
    assert f"2 at {at(2)} before" in caught.value.hint
    assert f"3 at {at(100)} after" in caught.value.hint
    assert points.nearest(at(2)).id == 2, "a point on the gap's edge is a point"
    assert points.nearest(at(100)).id == 3
    assert points.nearest(at(1)).id == 1


def test_an_open_gap_reaches_to_now() -> None:
    points = Points.common([rows(0, 2)], [Gap(start=at(2), end=None, cause="link down")])
    with pytest.raises(GapError, match="to now"):
        points.nearest(at(3))


def test_no_points_and_unknown_ids_say_what_there_is() -> None:
    with pytest.raises(NotFoundError, match="no restore point yet"):
        _ = Points.common([[]], where="web01").latest
    with pytest.raises(NotFoundError, match="no restore point 9") as caught:
        Points.common([rows(0, 2)], where="web01").by_id(9)
    assert "from 1 to 2" in caught.value.hint
    with pytest.raises(UsageError):
        Points.common([rows(0)]).nearest("yesterday")


def test_a_point_is_found_by_id_name_and_moment() -> None:
    notes = [PointNote(id=2, name="before-upgrade"), PointNote(id=1, pinned=True)]
    points = Points.common([rows(0, 2, 4)], where="web01", notes=notes)
    for wanted, number in (
        ("latest", 3), (" 2 ", 2), ("before-upgrade", 2), (at(3), 2), (at(0), 1)
    ):  # fmt: skip
        assert points.find(wanted).id == number
    for wanted in ("soon", "before", "BEFORE-UPGRADE", ""):
        with pytest.raises(UsageError, match="names no restore point") as caught:
            points.find(wanted)
        assert "before-upgrade" in caught.value.hint


def test_a_point_that_is_not_kept_any_more_names_the_oldest() -> None:
    points = Points(Points.common([rows(0, 2, 4)])[1:], where="web01")
    with pytest.raises(NotFoundError, match="does not keep restore point 1 any more") as caught:
        points.by_id(1)
    assert f"the oldest that it has is 2, {at(2)}" in caught.value.hint
    with pytest.raises(NotFoundError, match="before the first") as caught:
        points.find(at(1))
    assert at(2) in caught.value.hint
