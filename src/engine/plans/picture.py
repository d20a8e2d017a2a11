"""The timeline of a run as a picture (SVG): a row for each task, a bar for each part of it.

Names have cells of one width and a column of their own, and so has what came of each task:
no text meets a bar or another text, however many rows there are.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..html_report import text
from ..units import format_duration, parse_time, printable

Row = Mapping[str, Any]
Place = Callable[[str], float]

STYLE = """
svg.plan { --script: #b07a1e; --gate: #178a83; --rest: #c9ced6; }
svg.plan text { font: 12px system-ui, sans-serif; }
svg.plan text.name { font: 11.5px ui-monospace, monospace; }
svg.plan text.group { font-weight: 600; }
svg.plan .script { fill: var(--script); } svg.plan .gate { fill: var(--gate); }
svg.plan .rest { fill: var(--rest); } svg.plan .bad { fill: var(--bad); }
svg.plan .rule, svg.plan .pause { stroke: var(--line); }
svg.plan .pause { stroke-dasharray: 3 3; stroke-width: 3; }
@media (prefers-color-scheme: dark) {
  svg.plan { --script: #e0b054; --gate: #4fc4bb; --rest: #4a525d; } }
@media print { svg.plan { --script: #b07a1e; --gate: #178a83; --rest: #c9ced6; } }
""".strip()

LEFT, WIDTH, RIGHT, ROW, TOP = 190, 560, 150, 20, 48
BAR = 12
_CELLS = 24
_PAUSES = 20  # times the work: where a run took longer, what lies between is cut
_CUT = 0.03  # of the work that is left of a pause
_KINDS = (("bar", "operation"), ("script", "scripts"), ("gate", "gates"),
          ("bad", "failed"), ("rest", "between"))  # fmt: skip
_CLASSES = {"operation": "bar", "script": "script", "gate": "gate"}
_OWN = {"before": "first of all", "after": "after all"}


def draw(facts: Mapping[str, Any]) -> str:
    """The picture of a JSON report; "" when nothing was begun."""
    spans = [
        _span(attempt, facts["run"]["until"])
        for task in facts["tasks"]
        for attempt in task["attempts"]
        if attempt["started"]
    ]
    if not spans:
        return ""
    begun = parse_time(facts["run"]["begun"])
    axis = Axis(begun, [(a - begun, b - begun) for a, b in spans])
    rows: list[str] = []
    top = TOP
    for group in facts["groups"]:
        rows.append(_heading(group, top))
        top += ROW
        for task in _in_order(facts["tasks"], group["name"]):
            rows += _row(task, facts["run"]["until"], axis, top)
            top += ROW
    height = top + 6
    told = "Pauses, where nothing was done, are cut." if axis.cuts else ""
    inside = "\n".join((_legend(), axis.grid(height), *rows))
    return (
        f'<svg class="plan" viewBox="0 0 {LEFT + WIDTH + RIGHT} {height}" role="img">\n'
        f"<title>When each replica was worked on, and for how long</title>\n{inside}\n</svg>"
        + (f'<p class="soft">{text(told)}</p>' if told else "")
    )


def _span(row: Row, until: str) -> tuple[int, int]:
    begin = parse_time(row["started"])
    return begin, max(begin, parse_time(row["ended"] or until))


def _in_order(tasks: Sequence[Row], group: str) -> list[Row]:
    """Of a group: what came first of all, its replicas, and what came after all."""
    rank = {"before": 0, "replica": 1, "after": 2}
    mine = [task for task in tasks if task["group"] == group]
    return sorted(mine, key=lambda task: rank[task["kind"]])


class Axis:
    """Where moments stand, from when the run was begun. Long pauses are cut."""

    def __init__(self, begun_ns: int, spans: Sequence[tuple[int, int]]) -> None:
        self._begun_ns = begun_ns
        busy = _joined(spans)
        work = max(sum(end - begin for begin, end in busy), 1)
        whole = max(busy[-1][1], 1)
        self.cuts: list[tuple[int, int]] = []  # pauses: from, to
        self._left_ns = int(work * _CUT)
        if whole > _PAUSES * work:
            ends = [0, *(end for _, end in busy[:-1])]
            pauses = zip(ends, (begin for begin, _ in busy), strict=True)
            self.cuts = [(a, b) for a, b in pauses if b - a > self._left_ns]
        self._whole_ns = max(self._shortened(whole), 1)

    def _shortened(self, ns: int) -> int:
        gone = 0
        for begin, end in self.cuts:
            if ns > begin:
                part = min(ns, end) - begin
                gone += part - int(self._left_ns * part / (end - begin))
        return ns - gone

    def x(self, time_ns: int) -> float:
        ns = min(max(self._shortened(time_ns - self._begun_ns), 0), self._whole_ns)
        return LEFT + ns / self._whole_ns * WIDTH

    def _at(self, shortened: int) -> int:
        """The moment, from the begin, at a place of the axis."""
        ns = shortened
        for begin, end in self.cuts:
            if ns <= begin:
                break
            inside = min(ns - begin, self._left_ns)
            ns += int(inside * (end - begin) / max(self._left_ns, 1)) - inside
        return ns

    def grid(self, height: int) -> str:
        lines = []
        for begin, end in self.cuts:
            middle = (self.x(self._begun_ns + begin) + self.x(self._begun_ns + end)) / 2
            lines.append(
                f'<line class="pause" x1="{middle:.1f}" y1="{TOP - 8}" x2="{middle:.1f}" '
                f'y2="{height}"></line>'
            )
        for part in range(5):
            x = LEFT + WIDTH * part / 4
            seconds = self._at(self._whole_ns * part // 4) / 1e9
            lines.append(
                f'<line class="grid" x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{height}">'
                f'</line><text class="soft" x="{x:.1f}" y="{TOP - 12}" text-anchor="middle">'
                f"{text(format_duration(seconds))}</text>"
            )
        return "\n".join(lines)


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The time in which anything was done, in order."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def _legend() -> str:
    parts = []
    for place, (look, name) in enumerate(_KINDS):
        x = LEFT + place * 100
        parts.append(
            f'<rect class="{look}" x="{x}" y="4" width="12" height="12" rx="2"></rect>'
            f'<text class="soft" x="{x + 17}" y="14">{text(name)}</text>'
        )
    return "\n".join(parts)


def _heading(group: Row, top: int) -> str:
    told = f"{group['up']} of {group['replicas']}"
    return (
        f'<line class="rule" x1="0" y1="{top}.5" x2="{LEFT + WIDTH + RIGHT}" y2="{top}.5"></line>'
        f'<text class="name group" x="0" y="{top + 14}">{_short(group["name"])}</text>'
        f'<text class="soft told" x="{LEFT + WIDTH + RIGHT}" y="{top + 14}" '
        f'text-anchor="end">{text(told)}</text>'
    )


def _row(task: Row, until: str, axis: Axis, top: int) -> list[str]:
    name: str = task["name"] or _OWN[task["kind"]]
    look = "bad" if task["state"] in ("failed", "asking") else "soft"
    rows = [
        f'<text class="name" x="10" y="{top + 14}">{_short(name)}</text>',
        f'<text class="{look} told" x="{LEFT + WIDTH + RIGHT}" y="{top + 14}" '
        f'text-anchor="end">{text(_told(task))}</text>',
    ]
    for attempt in task["attempts"]:
        if attempt["started"]:
            rows += _bars(task, attempt, until, axis, top + (ROW - BAR) // 2)
    return rows


def _told(task: Row) -> str:
    """What came of it, beside its bars: short, for its column has no more place."""
    tries = f", try {len(task['attempts'])}" if len(task["attempts"]) > 1 else ""
    if task["state"] == "done":
        spent = sum(
            (parse_time(row["ended"]) - parse_time(row["started"])) / 1e9
            for row in task["attempts"]
            if row["started"] and row["ended"]
        )
        return f"{format_duration(max(0.0, spent))}{tries}"
    return f"{task['state']}{tries}"


def _bars(task: Row, attempt: Row, until: str, axis: Axis, top: int) -> list[str]:
    """One attempt: a thin bar for all of it, and its parts upon that."""
    begin, end = _span(attempt, until)
    told = f"{task['key']}, try {attempt['attempt']}: {attempt['state']}"
    rows = [_bar("rest", axis.x(begin), axis.x(end), top + 4, BAR - 8, told)]
    for part in attempt["parts"]:
        failed = part["state"] in ("failed", "cancelled")
        look = "bad" if failed else _CLASSES[part["part"]]
        left = axis.x(parse_time(part["begun"]))
        right = axis.x(max(parse_time(part["ended"] or until), parse_time(part["begun"])))
        took = format_duration(
            max(0, parse_time(part["ended"] or until) - parse_time(part["begun"])) / 1e9
        )
        told = f"{task['key']}: {part['name']}, {part['state']}, {took}"
        rows.append(_bar(look, left, right, top, BAR, told))
    return rows


def _bar(look: str, left: float, right: float, top: int, height: int, told: str) -> str:
    width = max(right - left, 1.5)
    left = min(left, LEFT + WIDTH - width)
    return (
        f'<rect class="{look}" x="{left:.1f}" y="{top}" width="{width:.1f}" '
        f'height="{height}"><title>{text(told)}</title></rect>'
    )


def _short(name: str) -> str:
    """A name within its column: begin and end of one that is too long. Wide characters
    take two cells."""
    name = printable(name)
    if _cells(name) <= _CELLS:
        return text(name)
    head, tail = "", ""
    for letter in name:
        if _cells(head + letter) > _CELLS // 2:
            break
        head += letter
    for letter in reversed(name):
        if _cells(letter + tail) > _CELLS // 2 - 1:
            break
        tail = letter + tail
    return text(f"{head}\u2026{tail}")


def _cells(name: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in name)
