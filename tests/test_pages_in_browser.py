"""Reports in a real browser: they show what they should, and ask for nothing."""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import plan_runs
import pytest
from browser import Browser, Page, Picture, decode
from rollpoint import _native, operation, operation_report, replication
from rollpoint.plans import picture, report
from rollpoint.replica import Replica
from test_plan_run import NAMES, Site

LIGHT = {"page": "#ffffff", "operation": "#3366b8", "script": "#b07a1e", "gate": "#178a83",
         "failed": "#b3261e"}  # fmt: skip
DARK = {"page": "#15181c", "operation": "#7aa7f0", "script": "#e0b054", "gate": "#4fc4bb",
        "failed": "#ff8a80"}  # fmt: skip

BOXES = """(selector => [...document.querySelectorAll(selector)].map(e => {
  const b = e.getBoundingClientRect();
  return [b.left + scrollX, b.top + scrollY, b.right + scrollX, b.bottom + scrollY,
          e.textContent]; }))"""


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float
    text: str


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    made = Browser()
    yield made
    made.close()


def boxes(page: Page, selector: str) -> list[Box]:
    return [Box(*row) for row in page.measure(f"{BOXES}({selector!r})")]


def quiet(browser: Browser, page: Page, path: Path) -> None:
    """Nothing was said, nothing was asked for, and nothing sticks out."""
    assert page.says == []
    assert page.requests == [path.as_uri()]
    assert browser.asked == []
    assert page.measure("document.documentElement.scrollWidth <= innerWidth")


def written(story: plan_runs.Story, folder: Path) -> Path:
    _, page = report.write(*story.told(), str(folder))
    return Path(page)


def apart(found: list[Box]) -> None:
    """No two of them overlap."""
    by_place = sorted(found, key=lambda box: box.top)
    for number, one in enumerate(by_place):
        for other in itertools.islice(by_place, number + 1, None):
            if other.top >= one.bottom - 1:
                break
            beside = one.right <= other.left + 0.5 or other.right <= one.left + 0.5
            assert beside, f"{one} overlaps {other}"


class Drawn:
    """The timeline of a plan's run, as it is shown."""

    def __init__(self, page: Page) -> None:
        self._page = page
        (self.box,) = boxes(page, "svg.plan")
        self.scale = (self.box.right - self.box.left) / (
            picture.LEFT + picture.WIDTH + picture.RIGHT
        )
        self.names = {box.text: box for box in boxes(page, "svg.plan text.name")}

    def colours(self, name: str, seconds: list[float], whole: float) -> list[str]:
        """What is seen in the row of a name, at moments of the run."""
        row = self.names[name]
        top, height = int(row.top) - 2, 20
        shot = self._page.shot(0, top, plan_width(self.box), height)
        middle = self.middle(row) - top
        return [
            "#{:02x}{:02x}{:02x}".format(*shot.at(self.x(at, whole), middle)) for at in seconds
        ]

    def x(self, seconds: float, whole: float) -> float:
        return self.box.left + (picture.LEFT + seconds / whole * picture.WIDTH) * self.scale

    def middle(self, row: Box) -> float:
        return (row.top + row.bottom) / 2


def plan_width(box: Box) -> float:
    return box.right + 20


@pytest.mark.parametrize(("dark", "colours"), [(False, LIGHT), (True, DARK)])
def test_bars_of_a_run_stand_where_its_events_say(
    browser: Browser, tmp_path: Path, dark: bool, colours: dict[str, str]
) -> None:
    """Of 12 s: script from 1 to 3, operation to 8, gate to 11; the group's own around it."""
    path = written(plan_runs.all_up(3, name="tiny"), tmp_path)
    with browser.page(path, dark=dark) as page:
        quiet(browser, page, path)
        drawn = Drawn(page)
        wanted = ["page", "script", "script", "operation", "operation", "gate", "gate", "page"]
        # Just inside and outside of each edge: a hundredth of a second is less than a pixel.
        moments = [0.9, 1.1, 2.9, 3.1, 7.9, 8.1, 10.9, 11.1]
        for name in ("vm-000", "vm-001", "vm-002"):
            assert drawn.colours(name, moments, 12) == [colours[word] for word in wanted]
        assert drawn.colours("first of all", [0.1, 0.9, 1.1], 12) == [
            colours["script"], colours["script"], colours["page"]
        ]  # fmt: skip
        shot = page.shot(0, 0, 400, 200)
        assert shot.at(5, 5) == rgb(colours["page"])
        assert len(shot.colours()) > 10, "a blank page"


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


@pytest.mark.parametrize("dark", [False, True])
def test_what_failed_is_seen_at_once(browser: Browser, tmp_path: Path, dark: bool) -> None:
    path = written(plan_runs.troubled(), tmp_path)
    colours = DARK if dark else LIGHT
    with browser.page(path, dark=dark) as page:
        quiet(browser, page, path)
        drawn = Drawn(page)
        # Tried twice: 13 to 17 s failed, 60 to 70 s done.
        seen = drawn.colours("vm-003", [12, 14, 16, 18, 61, 65, 69, 71], 110)
        words = ["page", "failed", "failed", "page", "script", "operation", "gate", "page"]
        assert seen == [colours[word] for word in words]
        assert drawn.colours("vm-007", [75, 90, 109], 110) == [
            colours["operation"], colours["failed"], colours["failed"]
        ]  # fmt: skip
        assert drawn.colours("vm-006", [5, 75, 100], 110) == [colours["page"]] * 3
        apart(boxes(page, "svg.plan text"))
        ink = page.measure("getComputedStyle(document.querySelector('h1 .bad')).color")
        assert ink == "rgb({}, {}, {})".format(*rgb(colours["failed"]))
        top = page.measure("document.querySelector('section h2').textContent")
        assert top == "What failed"


@pytest.mark.parametrize("width", [1100, 480])
def test_two_hundred_replicas_are_readable(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    """No text meets another, or a bar, and each row is a replica's."""
    path = written(plan_runs.all_up(200, 4), tmp_path)
    with browser.page(path, width=width) as page:
        quiet(browser, page, path)
        texts = boxes(page, "svg.plan text")
        assert {f"vm-{n:03d}" for n in range(200)} <= {box.text for box in texts}
        apart(texts)
        bars = boxes(page, "svg.plan rect")
        assert len(bars) == 5 + 200 * 4 + 8 * 2
        (box,) = boxes(page, "svg.plan")
        for bar in [*bars, *texts]:
            assert box.left - 0.5 <= bar.left <= bar.right <= box.right + 0.5
        for one in texts:
            assert not any(
                one.left < bar.right and bar.left < one.right
                and one.top + 1 < bar.bottom and bar.top < one.bottom - 1
                for bar in bars
            ), one  # fmt: skip
        if width == 1100:
            last = Drawn(page).colours("vm-199", [36.5, 40, 43, 46.5], 48)
            assert last == [LIGHT[word] for word in ("page", "operation", "operation", "gate")]
        assert page.measure("[...document.querySelectorAll('details')].every(d => !d.open)")


def test_in_print_nothing_is_folded(browser: Browser, tmp_path: Path) -> None:
    path = written(plan_runs.all_up(200, 4), tmp_path)
    with browser.page(path, dark=True, media="print") as page:
        quiet(browser, page, path)
        (first, *_) = boxes(page, "details table")
        assert first.bottom - first.top > 1000
        assert page.measure("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )


LONG_NAMES = ["W" * 63, "i" * 63, "\u6771" * 60, "a-b" * 20, "\u202eevil<script>", "x"]


def test_long_and_strange_names_stay_in_their_column(browser: Browser, tmp_path: Path) -> None:
    story = plan_runs.Story({"W" * 60: LONG_NAMES})
    plan_runs.recover(story, "W" * 60, LONG_NAMES, 0)
    path = written(story, tmp_path)
    with browser.page(path) as page:
        quiet(browser, page, path)
        apart(boxes(page, "svg.plan text"))
        bars = boxes(page, "svg.plan rect")
        names = boxes(page, "svg.plan text.name")
        assert max(box.right for box in names) < min(box.left for box in bars)


def test_the_report_of_a_run_that_was_carried_out(browser: Browser, tmp_path: Path) -> None:
    """One replica fails at first: its two tries, and the gates of the others, are drawn."""
    gate = '[[group.gate]]\nkind = "script"\nname = "up"\ncommand = ["echo", "one\\ntwo"]'
    site = Site(tmp_path, db=gate)
    full = {"web-2"}
    site.power.trouble = lambda name: "no room" if name in full else ""
    run = site.run("unplanned").spec.run
    full.clear()
    site.ask("retry")
    assert site.drive(run).state == "done"
    path = tmp_path / "state" / "reports" / "site" / f"{run}.html"
    told = json.loads(path.with_suffix(".json").read_text())
    tries = {task["key"]: len(task["attempts"]) for task in told["tasks"]}
    assert tries == {f"{name[:-2]}/{name}": 1 + (name == "web-2") for name in NAMES}
    with browser.page(path) as page:
        quiet(browser, page, path)
        apart(boxes(page, "svg.plan text"))
        drawn = [box.text for box in boxes(page, "svg.plan rect") if box.text]
        for name in NAMES:
            key = f"{name[:-2]}/{name}"
            assert any(box.startswith(f"{key}: operation, done") for box in drawn)
            gates = [box for box in drawn if box.startswith(f"{key}: gate up, passed")]
            assert len(gates) == name.startswith("db")
        failed = [box for box in drawn if "failed" in box]
        assert [box.partition(",")[0] for box in failed] == ["web/web-2", "web/web-2: operation"]
        heads = [str(task["outcome"]["audit"]["hash"]) for task in told["tasks"]]
        shown = page.measure("document.body.textContent")
        assert all(head in shown for head in heads)


# ---- the report of an operation ----


def replica_with_a_report() -> tuple[dict[str, Any], bytes]:
    io = _native.Io.simulate()
    Replica.create("/r", [("a", 64 << 10)], segment_bytes=65536, io=io).close()
    with Replica.open("/r", io) as replica:
        replication.mark(replica)
        done = operation.failover(replica, 1, power_on=False, reason="a drill")
        name = operation_report.file_name(done.operation)
        told = operation_report.facts(replica.manifest, replica.manifest.history[-1])
        return told, io.open_dir("/r/reports").read(name)


@pytest.mark.parametrize(("dark", "colours"), [(False, LIGHT), (True, DARK)])
def test_the_report_of_an_operation_is_a_page(
    browser: Browser, tmp_path: Path, dark: bool, colours: dict[str, str]
) -> None:
    _, data = replica_with_a_report()
    path = tmp_path / "operation.html"
    path.write_bytes(data)
    with browser.page(path, dark=dark) as page:
        quiet(browser, page, path)
        apart(boxes(page, "svg text"))
        bars = boxes(page, "svg rect.bar")
        assert bars
        wide = max(bars, key=lambda bar: bar.right - bar.left)
        shot = page.shot(wide.left - 4, wide.top - 4, wide.right - wide.left + 8, 24)
        inside = shot.at(shot.width / 2, (wide.bottom - wide.top) / 2 + 4)
        assert inside == rgb(colours["operation"])
        assert page.measure("document.querySelector('h1').textContent").startswith("Failover of")
        assert page.shot(0, 0, 40, 40).at(5, 5) == rgb(colours["page"])


# ---- that these tests would see it ----


def test_a_request_that_leaves_is_seen_and_our_policy_stops_it(
    browser: Browser, tmp_path: Path
) -> None:
    """The same picture and script, without the policy of our pages and with it."""
    bad = '<img src="http://rollpoint.invalid/picture.png"><script>console.error("ran")</script>'
    free, ours = tmp_path / "free.html", tmp_path / "ours.html"
    free.write_text(f"<!doctype html><title>x</title>{bad}")
    _, data = replica_with_a_report()
    ours.write_bytes(data.replace(b"</h1>", b"</h1>" + bad.encode(), 1))
    with browser.page(ours) as page:
        assert any("Content Security Policy" in said for said in page.says)
        assert not any("ran" in said.split() for said in page.says)
        assert browser.asked == []
    with browser.page(free) as page:
        assert '[{"type": "string", "value": "ran"}]' in page.says
        assert any("rollpoint.invalid" in line for line in browser.asked)


def test_the_reader_of_pictures_knows_every_filter() -> None:
    """The same picture through each of PNG's five filters."""
    rows = [bytes((x * 7 + y * 13 + c * 50) & 255 for x in range(9) for c in range(3))
            for y in range(6)]  # fmt: skip
    for how in range(5):
        read: Picture = decode(png(rows, how))
        assert [bytes(row) for row in read.rows] == rows, how


def png(rows: list[bytes], how: int) -> bytes:
    raw = b""
    above = bytes(len(rows[0]))
    for row in rows:
        raw += bytes([how])
        for i, value in enumerate(row):
            left = row[i - 3] if i >= 3 else 0
            corner = above[i - 3] if i >= 3 else 0
            near = min(
                (left, above[i], corner), key=lambda one: abs(left + above[i] - corner - one)
            )
            guess = (0, left, above[i], (left + above[i]) // 2, near)[how]
            raw += bytes([(value - guess) & 255])
        above = row

    def chunk(name: bytes, body: bytes) -> bytes:
        whole = name + body
        return struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", len(rows[0]) // 3, len(rows), 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw))
