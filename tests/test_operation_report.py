"""The report of an operation: whole, readable without a network, and harmless."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from fakes import UNFENCED
from killing import FileHypervisor
from replicas import Source, empty_model, ingesting, make
from rollpoint import (
    _native,
    html_report,
    measuring,
    operation,
    operation_report,
    replication,
    steps,
)
from rollpoint.errors import Error
from rollpoint.manifest import CheckResult, Cut, Evidence, Gap, Operation, Step
from rollpoint.points import Point, Points
from rollpoint.records import Failback, Target
from rollpoint.replica import Replica
from rollpoint.units import format_time, parse_time

LONG = pytest.mark.long
SIZES = {"a": 64 << 10}
VOID = {"meta", "br", "hr", "img", "link", "input"}
LOADS = {"src", "href", "action", "data", "srcset", "poster", "xlink:href", "background",
         "formaction", "ping", "cite", "manifest"}  # fmt: skip
HOSTILE = "\"'><img src=x onerror=alert(1)></style><script>alert(2)</script>&amp;\x00\x1b[31m\u202e"


class Page(HTMLParser):
    """What a page consists of; fails where its tags are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        assert len({name for name, _ in attrs}) == len(attrs), "an attribute twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def harmless(page: str) -> Page:
    """The page, parsed: nothing in it loads or runs anything."""
    found = Page(page)
    assert not {"script", "iframe", "object", "embed", "img", "link", "form"} & set(found.tags)
    for name, value in found.attributes:
        assert name not in LOADS, (name, value)
        assert not name.startswith("on"), name
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in found.attributes
    assert not re.search(r"\w+://", page.replace("http-equiv", ""))
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)  # a picture that stands alone, too
    return found


def replica_in(io: _native.Io) -> Replica:
    Replica.create("/r", list(SIZES.items()), segment_bytes=65536, io=io).close()
    replica = Replica.open("/r", io)
    replication.mark(replica)
    return replica


def told_by(io: _native.Io, operation_id: str) -> tuple[dict[str, Any], str]:
    folder = io.open_dir("/r/reports")
    name = operation_report.file_name(operation_id, "json")
    page = folder.read(operation_report.file_name(operation_id)).decode()
    return json.loads(folder.read(name)), page


def test_each_operation_that_ended_has_its_report() -> None:
    io = _native.Io.simulate()
    with replica_in(io) as replica:
        for act in (
            lambda: operation.failover(replica, 1, power_on=False, reason="a drill"),
            lambda: operation.undo(replica),
            lambda: operation.failover(replica, 1, power_on=False),
            lambda: operation.permanent(replica),
        ):
            done = act()
            told, page = told_by(io, done.operation)
            assert done.report == f"/r/reports/{done.operation}.html"
            assert done.warnings == ()
            assert told["operation"]["outcome"] == "done"
            assert told["state"]["after"] == done.state
            head = replica.manifest.audit
            assert head is not None
            assert told["audit"] == {"lines": head.lines, "hash": head.hash}
            seen = harmless(page)
            assert {step.name for step in done.steps} <= set(seen.texts)
            assert f"{head.lines}:{head.hash}" in seen.texts
            assert "svg" in seen.tags
    assert "a drill" in told_by(io, replica.manifest.history[1].id)[1]


def test_an_operation_that_failed_has_a_report_that_says_why() -> None:
    class Broken:
        kind, overlay_kind = "qemu", "hosted"

        def __getattr__(self, name: str) -> Any:
            raise Error("no such host", "look for it")

    io = _native.Io.simulate()
    broken: Any = Broken()
    with replica_in(io) as replica, pytest.raises(Error, match="no such host"):
        operation.failover(replica, 1, skip=UNFENCED, hypervisor=broken, operation_id="one")
    told, page = told_by(io, "one")
    assert told["operation"]["outcome"] in ("rolled back", "failed")
    assert "no such host" in harmless(page).text


def hostile_operation() -> Operation:
    return Operation(
        id=HOSTILE, kind="failover", started="2026-11-23T00:00:00.000000Z", found_state="Ready",
        steps=[
            Step(name=HOSTILE, state="done", started_ns=10**18, seconds=0.5, note=HOSTILE),
            Step(name="b", state="failed", started_ns=10**18 + 10**15, seconds=0.0, note=""),
            Step(name="c"),
        ],
        point=3, point_time="2026-11-22T00:00:00.000000Z", who=HOSTILE, reason=HOSTILE,
        evidence=[Evidence(kind="overridden", time="", says=HOSTILE, source=HOSTILE)],
        checks=[CheckResult(name=HOSTILE, state="skipped", says=HOSTILE, reason=HOSTILE)],
        cut=Cut(point=3, time="", digests={HOSTILE: HOSTILE}, sources={HOSTILE: HOSTILE}),
        rpo_seconds=1.0, rpo_says=HOSTILE, rto_seconds=61.0, outcome="failed", error=HOSTILE,
        seconds=0.5,
    )  # fmt: skip


def test_what_others_wrote_is_text_and_nothing_else() -> None:
    io = _native.Io.simulate()
    with replica_in(io) as replica:
        replica.manifest.name = HOSTILE
        target = Target(place=HOSTILE, kind="new", lineage=HOSTILE, sent_bytes=1 << 20)
        replica.manifest.failback = Failback(operation="x", targets={HOSTILE: target})
        told = operation_report.facts(replica.manifest, hostile_operation())
        page = html_report.render(told)
    seen = harmless(page)
    assert seen.text.count("<script>alert(2)</script>") >= 13
    for mark in ("\x00", "\x1b", "\u202e"):
        assert mark not in page
    assert json.loads(msgspec.json.encode(told))["operation"]["reason"] == HOSTILE


def test_an_id_that_is_no_file_name_stays_in_the_folder() -> None:
    for bad in (HOSTILE, "../../x", "", ".hidden", "a/b", "x" * 300):
        name = operation_report.file_name(bad)
        assert re.fullmatch(r"id-[0-9a-f]{32}\.html", name), name
    assert operation_report.file_name("one-2_3.4") == "one-2_3.4.html"


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "r"
    Replica.create(path, list(SIZES.items()), segment_bytes=65536).close()
    (path / "reports").write_text("a file where the folder would be")
    with Replica.open(path) as replica:
        replication.mark(replica)
        done = operation.failover(replica, 1, power_on=False)
        assert (done.state, done.report) == ("Failover", None)
        assert "no report" in done.warnings[0]
        assert operation.undo(replica).state == "Ready"


def test_a_timeline_leaves_out_the_pause_before_a_resume() -> None:
    io = _native.Io.simulate()
    with replica_in(io) as replica:
        page = html_report.render(operation_report.facts(replica.manifest, hostile_operation()))
    assert "pauses are not drawn" in page
    for left, width in re.findall(r'x="([0-9.]+)" y="\d+" width="([0-9.]+)"', page):
        assert float(left) + float(width) <= 683


# ---- RPO: never better than the truth ----


def lost(replica: Replica, to: int | str) -> tuple[float, str]:
    done = operation.failover(replica, to, power_on=False)
    assert done.rpo_seconds is not None
    return done.rpo_seconds, done.rpo_says


def test_nothing_is_lost_where_the_source_was_connected_to_the_hold(tmp_path: Path) -> None:
    make(tmp_path / "r")
    with ingesting(tmp_path / "r", tmp_path / "s"), Replica.open(tmp_path / "r") as replica:
        source = Source(tmp_path / "s", empty_model(), 3)
        source.act()
        first = replication.mark(replica)
        source.act()
        seconds, says = lost(replica, "latest")
        assert (seconds, "at most" in says) == (0.0, False)
        newest = replica.points.latest
        operation.undo(replica)
        # To an older point, the time in between is lost: the source has not reconnected.
        seconds, says = lost(replica, first.id)
        assert "at most" in says
        assert seconds >= (newest.time_ns - first.time_ns) / 1e9
        again = operation.failover(replica, newest.id, power_on=False)
        assert again.rpo_seconds is not None
        assert again.rpo_seconds <= seconds
        assert again.rpo_says.startswith("as of the hold")
        source.close()


def test_to_an_older_point_the_time_up_to_the_newest_is_lost(tmp_path: Path) -> None:
    make(tmp_path / "r")
    with ingesting(tmp_path / "r", tmp_path / "s"), Replica.open(tmp_path / "r") as replica:
        source = Source(tmp_path / "s", empty_model(), 4)
        source.act()
        first = replication.mark(replica)
        source.act()
        seconds, says = lost(replica, first.id)
        newest = replica.points.latest
        assert newest.id > first.id
        assert seconds == (newest.time_ns - first.time_ns) / 1e9
        assert "at most" not in says
        source.close()


def test_without_a_source_all_since_the_point_may_be_lost(tmp_path: Path) -> None:
    make(tmp_path / "r")
    with Replica.open(tmp_path / "r") as replica:
        point = replication.mark(replica)
        seconds, says = lost(replica, "latest")
        assert says.startswith("at most")
        ended = replica.manifest.history[-1]
        assert parse_time(ended.source_until) >= parse_time(ended.started)
        assert seconds == (parse_time(ended.source_until) - point.time_ns) / 1e9


def test_a_gap_that_is_open_counts_from_its_start() -> None:
    io = _native.Io.simulate()
    with replica_in(io) as replica, replica.locked() as manifest:
        points: Points = replica.points
        start = "2026-01-01T00:00:00.000000Z"
        manifest.gaps = [Gap(start=start, end=None, cause="the link was down", resync=True)]
        steps.begin(replica, "failover", ["hold"], "x", point_time=points.latest.time)
        measuring.loss(manifest, points, replicating=True)
        went = manifest.operation
        assert went is not None
        assert "the link was down" in went.rpo_says
        assert went.rpo_seconds == (parse_time(went.source_until) - parse_time(start)) / 1e9


def test_the_time_to_recover_is_measured_and_told(tmp_path: Path) -> None:
    make(tmp_path / "r")
    hypervisor = FileHypervisor(tmp_path / "machines")
    with Replica.open(tmp_path / "r") as replica:
        replication.mark(replica)
        done = operation.failover(replica, 1, skip=UNFENCED, hypervisor=hypervisor)
        assert done.rto_seconds is not None
        assert 0 < done.rto_seconds <= done.seconds
        assert done.report is not None
        page = harmless(Path(done.report).read_text())
        assert "Time to recover (RTO)" in page.texts
        told = json.loads(Path(done.report).with_suffix(".json").read_text())
        assert told["operation"]["rto_seconds"] == done.rto_seconds
        again = operation.failover(
            replica, 1, hypervisor=hypervisor, operation_id=done.operation
        )
        assert (again.rto_seconds, again.report) == (done.rto_seconds, done.report)


def test_the_time_to_recover_counts_what_passed_before_a_resume() -> None:
    went = hostile_operation()
    went.power_on, went.rto_seconds = True, None
    measuring.duration(went, 0.0)
    assert went.rto_seconds is not None
    went.power_on, went.rto_seconds = False, None
    measuring.duration(went, 0.0)
    assert went.rto_seconds is None


class World:
    """A source that writes, is cut off and comes back; points; and a failover at its end."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.now_ns = 1_700_000_000_000_000_000
        self.points: list[Point] = []
        self.gaps: list[Gap] = []
        self.written: list[int] = []  # moments of all writes of the source
        self.connected = True
        self.fresh = False  # something came in that no point covers yet
        self.missed = False  # something was written that did not come in
        for _ in range(rng.randrange(1, 40)):
            self.now_ns += rng.randrange(1, 5_000_000_000)
            rng.choice([self.write, self.write, self.mark, self.cut, self.come_back])()
        self.mark()

    def write(self) -> None:
        self.written.append(self.now_ns)
        if self.connected:
            self.fresh = True
        else:
            self.missed = True

    def mark(self) -> None:
        """As the engine does: no point is made while something may be missing."""
        if self.gaps and self.gaps[-1].end is None:
            return
        if self.fresh or not self.points:
            self.points.append(Point(len(self.points) + 1, self.now_ns, "crash", ""))
            self.fresh = False

    def cut(self) -> None:
        if self.connected:
            self.connected = False
            start = self.points[-1].time if self.points else format_time(self.now_ns)
            if not self.gaps or self.gaps[-1].end is not None:
                self.gaps.append(Gap(start=start, end=None, cause="cut off", resync=True))

    def come_back(self) -> None:
        """It has sent again what was missing."""
        if not self.connected:
            self.connected, self.missed, self.fresh = True, False, True
            self.gaps[-1].end = format_time(self.now_ns)
            self.mark()

    def lost_seconds(self, point: Point) -> float:
        """What going back to that point really loses: from it to the last write."""
        last = max(self.written, default=0)
        return max(0, last - point.time_ns) / 1e9


@pytest.mark.parametrize("seeds", [range(1500), pytest.param(range(100_000), marks=LONG)])
def test_the_loss_that_is_told_is_never_less_than_the_truth(
    seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated failovers, to any point, with the source connected, cut off, or away."""
    io = _native.Io.simulate()
    exact = 0
    with replica_in(io) as replica:
        manifest = replica.manifest
    for seed in seeds:
        world = World(seed)
        if not world.points:
            continue
        moment = format_time(world.now_ns)
        monkeypatch.setattr(measuring, "now_text", lambda moment=moment: moment)
        point = random.Random(seed).choice(world.points)
        manifest.gaps, manifest.operation = world.gaps, hostile_operation()
        manifest.operation.cut = None
        manifest.operation.point_time = point.time
        points = Points(world.points, world.gaps)
        replicating = world.connected and seed % 7 != 0  # away, and nobody noticed
        measuring.loss(manifest, points, replicating=replicating)
        told, truth = manifest.operation.rpo_seconds, world.lost_seconds(point)
        assert told is not None
        # Moments have microseconds; so the last digits of nanoseconds are not compared.
        assert told >= truth - 2e-6, f"seed {seed}: told {told}, lost {truth}"
        exact += abs(told - truth) < 2e-6
    assert exact > len(seeds) // 20
