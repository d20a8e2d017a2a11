"""Tables of steps: what was done, how long it took, what was verified.

Renders text and JSON values; nothing is printed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .units import format_duration


class Step(NamedTuple):
    """One line of a story.

    Args:
        name: What was done.
        seconds: How long it took.
        rpo_seconds: Newest data lost by it, in time; None where that has no meaning.
        rto_seconds: From the command until the machine served; None likewise.
        verified: What was compared, and with what; empty if nothing was.
    """

    name: str
    seconds: float
    rpo_seconds: float | None = None
    rto_seconds: float | None = None
    verified: str = ""


def steps_json(steps: Iterable[Step]) -> list[dict[str, object]]:
    """The steps as JSON values; what has no meaning is left out."""
    return [
        {key: value for key, value in step._asdict().items() if value not in (None, "")}
        for step in steps
    ]


def steps_table(steps: Iterable[Step]) -> str:
    """The steps for people."""

    def shown(seconds: float | None) -> str:
        return "" if seconds is None else format_duration(seconds)

    rows = [
        (step.name, shown(step.seconds), shown(step.rpo_seconds), shown(step.rto_seconds),
         step.verified)
        for step in steps
    ]  # fmt: skip
    columns = ("step", "time", "RPO", "RTO", "verified")
    return table(columns, rows, right=(1, 2, 3))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Aligned columns under their names. Columns with nothing in them are left out.

    Args:
        right: Columns that are aligned to the right.
    """
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    widths = [max(len(columns[i]), *(len(row[i]) for row in rows)) for i in kept]
    lines = []
    for row in (columns, *rows):
        cells = [
            row[i].rjust(width) if i in right else row[i].ljust(width)
            for i, width in zip(kept, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
