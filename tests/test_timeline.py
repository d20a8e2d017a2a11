"""The history of a replica: true in every bucket, and readable however much there is."""

from __future__ import annotations

import io
import random
from itertools import pairwise
from pathlib import Path

import pytest
from nbd_peers import DISC, WRITE, Raw
from replicas import ingesting, make, rollpoint
from rich.console import Console
from rollpoint import cli, timeline
from rollpoint.cli import points as command
from rollpoint.manifest import Gap, GroupPoint, PointNote
from rollpoint.points import Point, Points
from rollpoint.timeline import SECOND, Entry, Timeline
from rollpoint.units import format_time

START = 1_795_000_000 * SECOND
RPO: dict[str, object] = {
    "lag_seconds": 1.5,
    "target_seconds": 2.0,
    "missed": 3,
    "group": {
        "max_seconds": 7.0,
        "recent": {"points": 500, "p50_seconds": 2.0, "p99_seconds": 2.2, "max_seconds": 3.0},
    },
}


def entry(number: int, seconds: float, written: int | None = 4096, **more: object) -> Entry:
    point = Point(
        number,
        START + int(seconds * SECOND),
        str(more.get("kind", "crash")),
        str(more.get("label", "")),
        bool(more.get("long_term")),
    )
    note = PointNote(id=number, name=str(more.get("name", "")), pinned=bool(more.get("pinned")))
    group = more.get("group")
    assert group is None or isinstance(group, GroupPoint)
    return Entry(point, written, note, bool(more.get("locked")), group)


@pytest.mark.parametrize("seed", range(20))
def test_every_point_and_every_byte_is_in_the_buckets_once(seed: int) -> None:
    rng = random.Random(seed)
    entries, at = [], 0.0
    for number in range(1, rng.choice((2, 3, 50, 2000))):
        entries.append(entry(number, at, None if number == 1 else rng.randrange(1 << 20)))
        at += rng.choice((0.1, 2.0, 2.1, rng.expovariate(0.001)))
    most = rng.randrange(2, 40)
    made = timeline.buckets(entries, [], most)
    assert 1 <= len(made) <= most
    assert [e for bucket in made for e in bucket.entries] == entries
    for before, after in pairwise(made):
        assert before.stop_ns == after.start_ns
    for bucket in made:
        assert all(bucket.start_ns <= e.point.time_ns < bucket.stop_ns for e in bucket.entries)
    first, last = entries[0].point.time_ns, entries[-1].point.time_ns
    told = sum(
        bucket.rate * (min(bucket.stop_ns, last) - max(bucket.start_ns, first)) / SECOND
        for bucket in made
        if bucket.rate is not None
    )
    assert told == pytest.approx(sum(e.written_bytes or 0 for e in entries), rel=1e-6)


def test_gaps_show_in_the_buckets_that_they_touch() -> None:
    entries = [entry(number, number * 10) for number in range(30)]
    gap = Gap(start=entries[10].point.time, end=entries[12].point.time, cause="x")
    made = timeline.buckets(entries, [gap], 30)
    touched = [bucket for bucket in made if bucket.gap]
    assert touched
    for bucket in made:
        inside = bucket.start_ns < entries[12].point.time_ns
        assert bucket.gap == (inside and bucket.stop_ns > entries[10].point.time_ns)


def drawn(entries: list[Entry], gaps: list[Gap], *, utf: bool = True, width: int = 80) -> list[str]:
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding="utf-8" if utf else "ascii", errors="replace")
    console = Console(file=file, width=width, force_terminal=True, no_color=True)
    points = Points([e.point for e in entries])
    command.show(console, "web01", Timeline(entries, gaps, points), RPO)
    file.flush()
    text = buffer.getvalue().decode()
    for escape in ("\x1b[0m", "\x1b[1m", "\x1b[2m"):
        text = text.replace(escape, "")
    return text.splitlines()


@pytest.mark.parametrize("utf", [True, False])
def test_fifty_thousand_points_are_readable_in_eighty_columns(utf: bool) -> None:
    rng = random.Random(5)
    entries = []
    for number in range(1, 50_001):
        more: dict[str, object] = {}
        if number % 1000 == 0:
            more = {"kind": "app", "label": f"nightly [{number}] " + "long " * 20}
        if number % 5000 == 0:
            more["name"], more["pinned"] = f"before-{number}", True
        entries.append(entry(number, number * 2, rng.randrange(1 << 24), **more))
    entries[:0] = [
        entry(-n, -86400 * n, None, long_term=True) for n in range(40, 0, -1)
    ]
    gaps = [
        Gap(start=entries[n].point.time, end=entries[n + 3].point.time, cause="link " * 10)
        for n in range(100, 50_000, 1000)
    ]
    lines = drawn(entries, gaps, utf=utf)
    assert len(lines) <= 70
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("gap "))]
    assert all(len(line) <= 80 for line in table), max(table, key=len)
    text = "\n".join(lines)
    assert "web01: 50040 restore points, 40 of them long-term" in text
    assert "before-50000" in text
    assert "3600" in text, "points of two hours, at one each two seconds"
    assert sum("KiB" in line or "MiB" in line for line in lines) > 20
    assert ("█" in text) == utf
    assert ("#" in text) != utf
    assert "earlier ones" in text
    assert "earlier gaps" in text
    assert "p50 2.00 s, p99 2.20 s, max 3.00 s; max ever 7.00 s" in text


def test_few_points_are_listed_each_and_labels_cannot_command_the_terminal() -> None:
    entries = [
        entry(1, 0, None),
        entry(2, 2, 8192, label="\x1b[31mred[/bold]\n", kind="app"),
        entry(3, 4, 0, locked=True, group=GroupPoint(id=3, group="g", members=["a", "b"])),
    ]
    lines = drawn(entries, [], width=120)
    assert not any("\x1b" in line for line in lines)
    assert any("8 KiB" in line and r"\x1b[31mred[/bold]" in line for line in lines)
    assert any("locked until" in line and "group" in line for line in lines)
    assert drawn([], [])[0] == "web01: 0 restore points"


def test_the_command_tells_what_was_written_in_json_and_in_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r"
    make(path)
    with ingesting(path, tmp_path / "s"), Raw(tmp_path / "s").enter("a") as client:
        for count in (0, 3, 1):
            for grain in range(count):
                assert client.error(WRITE, grain * 4096, 4096, data=bytes([count]) * 4096) == 0
            rollpoint("mark", path, "--label", f"{count} grains")
        client.request(DISC)
    rollpoint("point", "name", path, "2", "three")
    told = rollpoint("points", path)["points"]
    assert [point["written_bytes"] for point in told] == [None, 3 * 4096, 4096]
    assert [point["name"] for point in told] == ["", "three", ""]
    assert {"id", "time", "kind", "label", "long_term", "pinned", "locked_until", "group"} <= set(
        told[0]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["points", str(path)])
    assert ended.value.code == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[:5] for line in lines[:3]] == [
        [str(p["id"]), p["time"], "crash", p["label"], str(p["written_bytes"] or "")] for p in told
    ]
    assert lines[1][5] == "name=three"
    assert lines[3][0].startswith("a failover now would go back ")


def test_points_of_a_group_are_listed_for_several_replicas(tmp_path: Path) -> None:
    paths = [tmp_path / "r0", tmp_path / "r1"]
    for path in paths:
        make(path, {"a": 1 << 20})
    rollpoint("mark", paths[0])
    marked = rollpoint("mark", *paths)
    rollpoint("mark", paths[1])
    (found,) = rollpoint("points", *paths)["groups"]
    assert found["group"] == marked["group"]
    assert [point["id"] for point in found["points"]] == [2, 1]
    group = rollpoint("points", paths[0])["points"][1]["group"]
    assert (group["id"], len(group["members"])) == (marked["group"], 2)
    assert format_time(0) < found["time"]
