"""A run as a table on a terminal: never higher than that, however many replicas there are.

What asks for somebody, failed or runs comes first; then the groups, a line each; then all
others, where there is room. The rows that were chosen are shown in the plan's order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ..plans.events import NodeState, RunState
from ..plans.shape import GroupShape
from ..units import format_duration, parse_time, printable

# How a task is shown, and how much it matters that it is: the smaller the more.
_WORDS: dict[str, tuple[str, str, int]] = {
    "asking": ("?", "bold magenta", 0),
    "failed": ("✗", "bold red", 1),
    "running": ("▸", "cyan", 2),
    "queued": ("…", "cyan", 4),
    "waiting": ("·", "dim", 5),
    "skipped": ("–", "yellow", 6),
    "done": ("✓", "green", 7),
}
_OF_GROUPS = 3
GUTTER = 2
# Columns that are made narrower where there is no room, in turn, and down to what.
_GIVE_WAY = ((2, 16), (5, 8), (1, 10), (0, 6), (5, 1), (2, 1), (4, 1), (1, 1), (0, 1), (3, 1))
COLUMNS = ("group", "replica", "step", "time", "RPO", "gate")
_RIGHT = (False, False, False, True, True, False)


class Row(NamedTuple):
    """One line. rank: how much it matters, and then its place."""

    rank: int
    style: str
    cells: tuple[str, str, str, str, str, str]


class RunView:
    """What rich draws of a run. Made anew for each look, or told of it by `state`.

    Args:
        state: The run; prompt: what is asked of the operator, "" for nothing.
        height: Lines at most; None: as many as the terminal has, but for one.
    """

    def __init__(self, state: RunState, *, prompt: str = "", height: int | None = None) -> None:
        self.state = state
        self.prompt = prompt
        self.height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = self.height or max(1, (options.height or console.size.height) - 1)
        now_ns = time.time_ns()
        asked = [_line(self.prompt, "bold magenta")] if self.prompt else []
        if height > len(asked):
            yield _line(title(self.state, now_ns), "bold")
        room = height - len(asked) - 2  # beside the table's heading
        if room > 0:
            picked, left = chosen(rows(self.state, now_ns), room)
            yield from _lines(picked, options.max_width)
            if left:
                yield _line(left, "dim")
        yield from asked


def _line(text: str, style: str) -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _lines(picked: Sequence[Row], width: int) -> Iterator[Text]:
    """The table; drawn here, for rich takes ten times as long for its own."""
    all_cells = [tuple(printable(cell) for cell in row.cells) for row in picked]
    room = widths([COLUMNS, *all_cells], width)
    styles = ["dim", *(row.style for row in picked)]
    for cells, style in zip([COLUMNS, *all_cells], styles, strict=True):
        told = (_fit(*each) for each in zip(cells, room, _RIGHT, strict=True))
        line = (" " * GUTTER).join(told).rstrip()
        yield Text(line, style=style, no_wrap=True, overflow="ellipsis")


def _fit(cell: str, width: int, right: bool) -> str:
    """As wide as its column; "…" where it was cut."""
    used = cell_len(cell)
    if used > width:
        return set_cell_size(cell, width - 1) + "…" if width > 0 else ""
    padding = " " * (width - used)
    return padding + cell if right else cell + padding


def widths(lines: Sequence[Sequence[str]], width: int) -> list[int]:
    """Of each column, so that all fit: long words of a step give way first."""
    columns = zip(*lines, strict=True)
    made = [max(cell_len(cell) for cell in column) for column in columns]
    over = sum(made) + GUTTER * (len(made) - 1) - width
    for number, least in _GIVE_WAY:
        given = max(0, min(over, made[number] - least))
        made[number] -= given
        over -= given
    return made


def title(state: RunState, now_ns: int) -> str:
    """The run in one line: what it is, how far it is, and what is to be known at once."""
    counts = dict.fromkeys(_WORDS, 0)
    for node in state.nodes.values():
        counts[node.state] += 1
    told = [f"{counts['done']} of {len(state.nodes)} done"]
    told += [f"{counts[word]} {word}" for word in ("running", "asking", "failed", "skipped")
             if counts[word]]  # fmt: skip
    words: str = state.state
    if state.state == "running":
        words = "cancelling" if state.asked_to_cancel else "paused" if state.paused else "running"
    seconds = _seconds(state.begun, state.ended, now_ns)
    spec = state.spec
    run = f"{spec.plan.name}  {spec.kind}  {spec.run}"
    return f"{run}  {words} {_clock(seconds)}  {', '.join(told)}"


def rows(state: RunState, now_ns: int) -> list[Row]:
    """All lines there could be, in the plan's order."""
    made = []
    for group in state.spec.shape.groups:
        made.append(_group_row(state, group))
        for key in _tasks(group):
            made.append(_row(state, group.name, state.nodes[key], now_ns))
    return made


def chosen(all_rows: Sequence[Row], room: int) -> tuple[list[Row], str]:
    """Those that fit, in their order, and a line that says how many do not, or ""."""
    if len(all_rows) <= room:
        return list(all_rows), ""
    by_rank = sorted(range(len(all_rows)), key=lambda number: all_rows[number].rank)
    picked = sorted(by_rank[: room - 1])
    left = by_rank[room - 1 :]
    urgent = sum(all_rows[number].rank < _OF_GROUPS for number in left)
    says = f"{len(left)} more lines" + (f", {urgent} of them run or failed" if urgent else "")
    return [all_rows[number] for number in picked], f"… {says}"


def _tasks(group: GroupShape) -> list[str]:
    keys = [group.before, *group.nodes, group.after_up]
    return [key for key in keys if key]


def _group_row(state: RunState, group: GroupShape) -> Row:
    """A group in one line: how many are up, and what the others are at."""
    words = [state.nodes[key].state for key in _tasks(group)]
    up = sum(state.nodes[key].state in ("done", "skipped") for key in group.nodes)
    told = [
        f"{words.count(word)} {word}"
        for word in ("asking", "failed", "running", "queued", "waiting")
        if word in words
    ]
    if set(words) == {"waiting"}:
        told = [f"after {', '.join(group.after)}"] if group.after else ["waiting"]
    style = next((_WORDS[word][1] for word in _WORDS if word in words), "dim")
    return Row(
        _OF_GROUPS,
        style if style.startswith("bold") else "bold",
        (group.name, f"{up} of {len(group.nodes)} up", ", ".join(told), "", "", ""),
    )


def _row(state: RunState, group: str, node: NodeState, now_ns: int) -> Row:
    mark, style, rank = _WORDS[node.state]
    task = state.spec.shape.nodes[node.key]
    name = task.name or {"before": "(before)", "after": "(after)"}.get(task.kind, node.key)
    seconds = _seconds(node.started, node.ended, now_ns) if node.started else None
    again = f" (try {node.attempt})" if node.attempt > 1 else ""
    cells = (
        group,
        f"{mark} {name}",
        step_of(node) + again,
        "" if seconds is None else _clock(seconds),
        rpo_of(node),
        gate_of(node),
    )
    return Row(rank, style, cells)


def step_of(node: NodeState) -> str:
    """What a task is at, or why it failed."""
    if node.state in ("failed", "asking"):
        at = f" at {node.failed_at}" if node.failed_at else ""
        return f"{node.state}{at}: {node.error}"
    if node.state == "running":
        return node.stage or "begins"
    return "" if node.state == "waiting" else node.state


def rpo_of(node: NodeState) -> str:
    """What the operation lost, in time; "" where it does not say."""
    outcome = node.outcome or {}
    seconds = outcome.get("rpo_seconds")
    if not isinstance(seconds, int | float):
        return ""
    most = "≤ " if str(outcome.get("rpo_says", "")).startswith("at most") else ""
    return most + format_duration(seconds)


def gate_of(node: NodeState) -> str:
    """The newest gate: how it stands, how often it was looked at, and what it sees till then."""
    if not node.gates:
        return ""
    gate = node.gates[-1]
    name = str(gate.get("name", "")).removeprefix("gate ")
    if gate.get("state") == "looking" and gate.get("of"):
        return f"{name} {gate['tries']} of {gate['of']}: {gate.get('says', '')}"
    tries = f", {gate['tries']}×" if gate.get("tries") else ""
    return f"{name} {gate.get('state', '')}{tries}"


def _seconds(begun: str, ended: str, now_ns: int) -> float:
    last_ns = parse_time(ended) if ended else now_ns
    return max(0, last_ns - parse_time(begun)) / 1e9 if begun else 0.0


def _clock(seconds: float) -> str:
    """A time that changes only in whole seconds, and keeps its width."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
