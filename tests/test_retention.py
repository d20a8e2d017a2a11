"""Where the horizon goes, and what is warned of: arithmetic over points, rooms and rates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollpoint import retention as room
from rollpoint.errors import UsageError
from rollpoint.kept import Kept
from rollpoint.manifest import PointNote, Retention
from rollpoint.points import Point
from rollpoint.units import format_time

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
SEGMENT = 1 << 20
ROOMY = room.Use(0, 0, SEGMENT, 1)


def points_at(*seconds: float) -> list[Point]:
    return [Point(i, START + int(s * SECOND), "crash", "") for i, s in enumerate(seconds, 1)]


def now(seconds: float) -> int:
    return START + int(seconds * SECOND)


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[Point], int, float]:
    """Points, now and a window."""
    steps = draw(st.lists(st.floats(0.001, 5000), min_size=1, max_size=40))
    seconds, at = [], 0.0
    for step in steps:
        seconds.append(at)
        at += step
    return points_at(*seconds), now(at), draw(st.floats(1, 20_000))


# ---- the window ----


@given(lives())
def test_every_moment_of_the_window_keeps_a_point_not_after_it(
    life: tuple[list[Point], int, float],
) -> None:
    points, now_ns, window = life
    move = room.next_move(points, now_ns, Retention(window_seconds=window), ROOMY, (), 0)
    if move is None:
        return
    border = now_ns - int(window * 1e9)
    assert move.point.time_ns <= border
    assert move.why == "window"
    # One stride after the other it comes to the newest point that the window can do without.
    while move is not None:
        points = [point for point in points if point.id >= move.point.id]
        move = room.next_move(
            points, now_ns, Retention(window_seconds=window), ROOMY, (), points[0].id
        )
    step = max(window / room.STEPS_IN_WINDOW, room.STEP_SECONDS_MIN) * 1e9
    assert points[0].time_ns <= border
    assert points[0].time_ns > border - step or not any(p.time_ns <= border for p in points[1:])


@given(lives(), st.sets(st.integers(1, 40)))
def test_no_horizon_passes_a_point_that_is_kept(
    life: tuple[list[Point], int, float], stops: set[int]
) -> None:
    points, now_ns, window = life
    for use in (ROOMY, room.Use(100 * SEGMENT, 100 * SEGMENT, SEGMENT, 1)):
        move = room.next_move(points, now_ns, Retention(window_seconds=window), use, stops, 0)
        if move is not None:
            assert not any(point.id < move.point.id and point.id in stops for point in points)


def test_a_point_that_fell_out_of_the_window_becomes_the_oldest_when_the_next_one_has() -> None:
    points = points_at(0, 100, 200)
    keep = Retention(window_seconds=150)
    assert room.next_move(points, now(249), keep, ROOMY, (), 1) is None
    assert room.next_move(points, now(250), keep, ROOMY, (), 1) == (points[1], "window", False)
    assert room.next_move(points[1:], now(251), keep, ROOMY, (), 2) is None


def test_the_first_move_is_to_the_first_point_that_is_old_enough() -> None:
    points = points_at(0, 100)
    keep = Retention(window_seconds=60)
    assert room.next_move(points, now(59), keep, ROOMY, (), 0) is None
    assert room.next_move(points, now(60), keep, ROOMY, (), 0) == (points[0], "window", False)
    assert room.next_move([], now(60), keep, ROOMY, (), 0) is None


def test_while_there_is_room_it_moves_in_steps() -> None:
    points = points_at(*range(0, 1000, 10))
    keep = Retention(window_seconds=640)  # steps of 20 s
    assert room.next_move(points, now(651), keep, ROOMY, (), 1) is None
    move = room.next_move(points, now(661), keep, ROOMY, (), 1)
    assert move is not None
    assert move.point == points[2]


def test_a_clock_that_was_set_back_moves_nothing() -> None:
    points = points_at(0, 100, 200)
    assert room.next_move(points, now(-9999), Retention(), ROOMY, (), 0) is None


# ---- the limit ----


@given(lives(), st.integers(0, 400), st.integers(16, 300))
def test_shortening_gives_up_old_points_only_and_never_the_newest(
    life: tuple[list[Point], int, float], used: int, limit: int
) -> None:
    points, now_ns, _ = life
    use = room.Use(used * SEGMENT, limit * SEGMENT, SEGMENT, 1)
    move = room.next_move(points, now_ns, Retention(window_seconds=86400.0), use, (), 0)
    if move is not None and move.why == "room":
        assert use.excess_bytes > 0
        assert move.point in points
        assert len(points) == 1 or move.point.id > points[0].id


def test_refusing_keeps_the_window_whatever_is_used() -> None:
    points = points_at(*range(0, 1000, 10))
    use = room.Use(99 * SEGMENT, 100 * SEGMENT, SEGMENT, 1)
    refuse = Retention(window_seconds=3600, at_limit="refuse")
    assert room.next_move(points, now(1000), refuse, use, (), 1) is None
    shorten = room.next_move(points, now(1000), Retention(window_seconds=3600), use, (), 1)
    assert shorten is not None
    assert shorten.why == "room"
    assert 2 <= shorten.point.id <= 20, "about a tenth has to go"


def test_room_is_asked_for_before_it_is_gone() -> None:
    for used in range(0, 101):
        use = room.Use(used * SEGMENT, 100 * SEGMENT, SEGMENT, 2)
        assert (use.excess_bytes > 0) == (used >= 94)  # a sixteenth is kept free
        assert use.is_full == (used > 98)
        assert not use.is_full or use.excess_bytes
        assert use.excess_bytes <= use.used_bytes
    assert room.Use(5 << 40, 0, SEGMENT, 2).excess_bytes == 0


# ---- long-term points ----


def test_the_horizon_stops_at_the_points_that_the_schedule_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = points_at(*range(0, 1000, 10))  # START is 200 s after a multiple of 300 s
    rule = Retention(window_seconds=60, every_seconds=300, keep_seconds=3000)
    monkeypatch.setattr(room, "STRIDES_IN_WINDOW", 1e-6)
    first = room.next_move(points, now(900), rule, ROOMY, (), 0)
    assert first == (points[10], "window", True)
    second = room.next_move(points[10:], now(900), rule, ROOMY, (), 11, points[10].time_ns)
    assert second == (points[40], "window", True)
    third = room.next_move(points[40:], now(900), rule, ROOMY, (), 41, points[40].time_ns)
    assert third == (points[70], "window", True)
    rest = room.next_move(points[70:], now(900), rule, ROOMY, (), 71, points[70].time_ns)
    assert rest == (points[84], "window", False)


def test_a_point_that_is_older_than_long_term_points_are_kept_is_not_made_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = points_at(*range(0, 1000, 10))
    rule = Retention(window_seconds=60, every_seconds=300, keep_seconds=600)
    monkeypatch.setattr(room, "STRIDES_IN_WINDOW", 1e-6)
    first = room.next_move(points, now(900), rule, ROOMY, (), 0)
    assert first == (points[40], "window", True), "that at 100 s is 800 s old"


def chosen(points: list[Point], every: float, until: float, last: Point | None = None) -> list[int]:
    last_ns = None if last is None else last.time_ns
    return [point.id for point in room.scheduled(points, every, now(until), last_ns)]


def test_the_schedule_takes_the_newest_point_of_each_interval_that_is_over() -> None:
    points = points_at(*range(0, 1000, 70))
    assert chosen(points, 300, 999) == [2, 6, 11]
    assert chosen(points, 300, 399) == [2], "that at 400 s has not come yet"
    assert chosen(points, 300, 999, points[1]) == [6, 11]
    assert chosen(points, 300, 999, points[0]) == [6, 11], "its interval has one"
    assert chosen(points[:3], 300, 1000) == [2, 3], "nothing was written for a while"
    assert chosen(points, 0, 1000) == []
    assert chosen([], 300, 1000) == []


def test_the_schedule_prefers_an_application_consistent_point_at_the_end_of_an_interval() -> None:
    points = points_at(*range(0, 500, 5))
    for number in (5, 75, 78):  # at 20, 370 and 385 s
        points[number - 1] = points[number - 1]._replace(kind="app")
    assert chosen(points, 300, 500) == [21, 78]
    points[77] = points[77]._replace(kind="crash")
    assert chosen(points, 300, 500) == [21, 75], "30 s before the end are the last tenth"
    points[74] = points[74]._replace(kind="crash")
    assert chosen(points, 300, 500) == [21, 81]


@given(lives(), st.floats(1, 5000))
def test_the_schedule_comes_to_the_same_whenever_it_is_asked(
    life: tuple[list[Point], int, float], every: float
) -> None:
    points, now_ns, _ = life
    whole = list(room.scheduled(points, every, now_ns, None))
    assert whole == sorted(set(whole))
    last: Point | None = None
    step_by_step = []
    while True:
        rest = [point for point in points if last is None or point.id >= last.id]
        last = next(room.scheduled(rest, every, now_ns, last and last.time_ns), None)
        if last is None:
            break
        step_by_step.append(last)
    assert step_by_step == whole


# ---- pace ----


def test_a_backlog_is_moved_in_strides_of_which_each_gives_room_back() -> None:
    points = points_at(*range(0, 10_000, 10))
    keep = Retention(window_seconds=1000)
    move = room.next_move(points, now(10_000), keep, ROOMY, (), 1)
    assert move == (points[25], "window", False)
    sparse = points_at(0, 5000, 9000)
    move = room.next_move(sparse, now(10_000), keep, ROOMY, (), 1)
    assert move == (sparse[1], "window", False), "the next point is never too far"


def test_short_of_room_it_goes_no_farther_than_needed_first() -> None:
    points = points_at(*range(0, 1000, 10))
    use = room.Use(95 * SEGMENT, 100 * SEGMENT, SEGMENT, 1)
    for policy in ("shorten", "refuse"):
        keep = Retention(window_seconds=500, at_limit=policy)  # type: ignore[arg-type]
        move = room.next_move(points, now(1000), keep, use, (), 1)
        assert move is not None
        assert (move.why, move.point.id) == ("window", 9), "seven segments of 95 in 1000 s"


def test_it_takes_more_of_the_time_the_later_it_is() -> None:
    shares = [
        room.busy_share(room.Outlook(100.0, kept, None, None), ROOMY)
        for kept in (0.0, 100.0, 125.0, 137.5, 150.0, 1000.0)
    ]
    assert shares == [0.3, 0.3, 0.3, pytest.approx(0.65), 1.0, 1.0]
    full = room.Use(99 * SEGMENT, 100 * SEGMENT, SEGMENT, 1)
    assert room.busy_share(room.Outlook(100.0, 50.0, None, None), full) == 1.0


# ---- notes ----


def test_pins_and_running_locks_stop_the_horizon_and_names_do_not() -> None:
    notes = [
        PointNote(id=1, name="x"),
        PointNote(id=2, pinned=True),
        PointNote(id=3, locked_until=format_time(now(10))),
    ]
    assert room.stopping(notes, now(9)) == {2, 3}
    assert room.stopping(notes, now(10)) == {2}


# ---- the points of a running ingest ----


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60))
def test_kept_points_are_what_a_list_would_be(steps: list[tuple[bool, int]]) -> None:
    kept, model = Kept(), [Point(0, 0, "", "")][:0]
    for number, (adds, kind) in enumerate(steps, 1):
        if adds or not model:
            labels = ("", "", "label", "")
            point = Point(number, now(number), "app" if kind == 3 else "crash", labels[kind])
            kept.append(point)
            model.append(point)
        else:
            border = model[min(kind, len(model) - 1)].id
            kept.drop_before(border)
            model = [point for point in model if point.id >= border]
        assert list(kept) == model
        assert (len(kept), kept[-3:]) == (len(model), model[-3:])
        assert kept[0] == model[0]
        assert kept[-1] == model[-1]
        assert room.by_window(kept, now(number), 5.0) == room.by_window(model, now(number), 5.0)


# ---- what is told ----


def use_of(segments: float, limit: int = 100) -> room.Use:
    return room.Use(int(segments * SEGMENT), limit * SEGMENT, SEGMENT, 1)


@pytest.mark.parametrize(("used", "level"), [(60, 0), (71, 75), (86, 90), (99, 90)])
def test_it_warns_at_75_and_90_percent_of_the_window_that_can_be_kept(
    used: int, level: int
) -> None:
    """One segment a second since the beginning, and a window that does not fit."""
    view = room.outlook(points_at(0), now(used), 3600, use_of(used), float(SEGMENT))
    assert view.level == level
    assert view.possible_seconds == max(93.75, used)
    found = room.warnings(view, use_of(used), Retention(window_seconds=3600), [], False, False)
    assert [name for name in found if name.startswith("filling")] == (
        [f"filling {level}"] if level else []
    )


def test_a_window_that_fits_is_not_warned_of_however_full_the_log_is() -> None:
    view = room.outlook(points_at(0), now(60), 60, use_of(80), float(SEGMENT) / 2)
    assert (view.level, view.share) == (0, 0.0)
    assert room.warnings(view, use_of(80), Retention(window_seconds=60), [], False, False) == {}


def test_a_log_that_a_pinned_point_fills_is_warned_of_beyond_its_window() -> None:
    view = room.outlook(points_at(0), now(86), 60, use_of(86), float(SEGMENT), {1})
    assert (view.is_stopped, view.level) == (True, 90)
    found = room.warnings(view, use_of(86), Retention(window_seconds=60), [1], False, False)
    assert "1 m 34 s fit into 100 MiB" in found["filling 90"]
    assert "restore point 1" in found["stopped"]
    late = room.outlook(points_at(0), now(86), 60, use_of(86), float(SEGMENT), {2})
    assert late.level == 0, "that goes as soon as the worker comes to it"


def test_the_space_of_the_file_system_is_a_limit_as_well() -> None:
    view = room.outlook(points_at(0), now(80), 3600, ROOMY, float(SEGMENT), (), 20 * SEGMENT)
    assert (view.level, view.possible_seconds, view.full_in_seconds) == (75, 100.0, 20.0)
    found = room.warnings(view, ROOMY, Retention(), [], False, False)
    assert "what the file system has free" in found["filling 75"]
    more = room.outlook(points_at(0), now(71), 3600, use_of(71), float(SEGMENT), (), 1 << 40)
    assert "100 MiB" in more.limit


def test_without_a_limit_nothing_is_predicted() -> None:
    view = room.outlook(points_at(0), now(60), 3600, ROOMY, 1e9)
    assert (view.kept_seconds, view.possible_seconds, view.level) == (60.0, None, 0)
    assert room.outlook([], now(60), 3600, use_of(50), 1.0).kept_seconds is None


def test_what_stops_the_horizon_and_what_was_shortened_is_named() -> None:
    view = room.outlook(points_at(0), now(99), 3600, use_of(99.5), float(SEGMENT))
    keep = Retention(window_seconds=3600)
    found = room.warnings(view, use_of(99.5), keep, [4, 9], True, True)
    assert "1 m 39 s of the window of 60 m" in found["shortened"].replace("1 h 0 m", "60 m")
    assert "pinned, locked or tested points stop the horizon" in found["full"]
    assert "4, 9" in found["stopped"]
    refused = Retention(window_seconds=3600, at_limit="refuse")
    found = room.warnings(view, use_of(99.5), refused, [], False, True)
    assert "--at-limit refuse" in found["full"]


@given(st.lists(st.integers(0, 1 << 30), min_size=2, max_size=400))
def test_the_rate_is_what_was_written_over_the_last_minutes(growth: list[int]) -> None:
    rate, total = room.Rate(), 0
    for second, more in enumerate(growth):
        total += more
        rate.sample(float(second), total)
    last = growth[-int(room.RATE_SECONDS) :] if len(growth) > room.RATE_SECONDS else growth[1:]
    assert rate.bytes_per_second == pytest.approx(sum(last) / len(last))


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"window_seconds": 59.0}, "window"),
        ({"window_seconds": 31 * 86400.0}, "window"),
        ({"limit_bytes": 15 * SEGMENT}, "too little"),
        ({"every_seconds": 3600.0}, "both"),
        ({"keep_seconds": 3600.0}, "both"),
        ({"every_seconds": 30.0, "keep_seconds": 3600.0}, "no sense"),
        ({"every_seconds": 3600.0, "keep_seconds": 60.0}, "no sense"),
        ({"every_seconds": 60.0, "keep_seconds": 86400.0}, "more than 900 disks"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, float], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        room.check(Retention(**settings), [SEGMENT, SEGMENT])  # type: ignore[arg-type]


def test_settings_at_their_edges_are_taken() -> None:
    for settings in (
        Retention(),
        Retention(window_seconds=60.0, limit_bytes=16 * SEGMENT, at_limit="refuse"),
        Retention(window_seconds=30 * 86400.0, every_seconds=60.0, keep_seconds=60.0),
    ):
        assert room.check(settings, [SEGMENT, SEGMENT]) is settings
