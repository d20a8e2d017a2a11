"""Run the benchmarks of a checkout and turn their results into a table and a picture.

The benchmarks live in bench/ of the checkout (pytest-benchmark); each records its figures
side by side with its peer's, see bench/harness.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from .errors import NotFoundError, ToolMissingError, UsageError, VerificationError

GROUPS = {
    "rollback": "bench_rollback.py",
    "reopen": "bench_reopen.py",
    "scrub": "bench_scrub.py",
    "interim": "bench_nbd.py",
    "ingest": "bench_ingest.py",
    "failover": "bench_failover.py",
    "scale": "bench_failover_scale.py",
    "plan": "bench_plan.py",
    "failback": "bench_failback.py",
    "mount": "bench_mount.py",
    "convert": "bench_convert.py",
    "compare": "bench_compare.py",
    "commit": "bench_commit.py",
}


def find_bench(start: Path) -> Path:
    """The bench/ folder of the checkout that start lies in.

    Raises:
        NotFoundError: start lies in no checkout.
    """
    for folder in (start, *start.parents):
        if (folder / "bench" / "harness.py").is_file():
            return folder / "bench"
    raise NotFoundError(
        f"{start} lies in no checkout of Rollpoint", "run it where bench/ is, or name it: --from"
    )


def require_groups(groups: list[str]) -> None:
    """UsageError, unless there are groups of all these names."""
    unknown = [name for name in groups if name not in GROUPS]
    if unknown:
        raise UsageError(f"no benchmark group {unknown[0]!r}", f"choose from {', '.join(GROUPS)}")


def run(bench: Path, groups: list[str], output: Path, *, full: bool) -> list[dict[str, Any]]:
    """Run benchmark groups (none: all of them); leave bench.json, bench.md and pictures in output.

    Returns:
        One row for each comparison: what, unit, medians, spreads, ratios, goals, met.

    Raises:
        UsageError: No such group.
        VerificationError: A benchmark failed, or its sides did not produce the same bytes.
    """
    require_groups(groups)
    files = [bench / GROUPS[name] for name in groups or GROUPS]
    output.mkdir(parents=True, exist_ok=True)
    raw = output / "bench.json"
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir",
        str(bench.parent), "-o", "tmp_path_retention_policy=failed",  # gigabytes
        "--benchmark-disable-gc", f"--benchmark-json={raw}",
        *(str(path) for path in files if path.is_file()),
    ]  # fmt: skip
    # A test run around this one must not lend its settings.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment = inherited | {"ROLLPOINT_BENCH": "full" if full else "smoke"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "No module named pytest" in done.stderr:
        raise ToolMissingError("pytest is missing", "pip install '.[bench]'")
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise VerificationError(f"a benchmark failed:\n{tail}", "see the lines above")
    rows = read_rows(raw)
    (output / "bench.md").write_text(table(rows))
    draw(rows, output / "bench.png")
    draw_curves(rows, output / "bench-curves.png")
    return rows


def read_rows(raw: Path) -> list[dict[str, Any]]:
    """The comparisons of a pytest-benchmark JSON file, in its order."""
    rows = []
    entries = [entry["extra_info"] for entry in json.loads(raw.read_text())["benchmarks"]]
    for info in (row for entry in entries for row in entry.get("rows", [entry])):
        if "what" not in info:
            continue
        medians = {side: median(values) for side, values in info["figures"].items()}
        spreads = {
            side: (max(values) - min(values)) / median(values) if median(values) else 0.0
            for side, values in info["figures"].items()
        }
        met = all(
            (medians["ours"] >= goal if info["higher_is_better"] else medians["ours"] <= goal)
            if peer == "absolute"
            else info["ratios"][peer] >= goal
            for peer, goal in info["goals"].items()
        )
        rows.append({**info, "medians": medians, "spreads": spreads, "met": met})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: one line for each comparison with a peer, or for a figure by itself."""
    lines = [
        "| what | cache | ours (median, spread) | beside | ratio | goal | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours = f"{row['medians']['ours']:,.4g} {row['unit']} ±{row['spreads']['ours'] / 2:.0%}"
        peers = [name for name in row["medians"] if name != "ours"]
        if not peers:
            goal = row["goals"].get("absolute")
            shown = f"{goal:g} {row['unit']}" if goal is not None else ""
            met = ("yes" if row["met"] else "**no**") if shown else ""
            lines.append(f"| {row['what']} | {row['cache']} | {ours} | | | {shown} | {met} |")
        for name in peers:
            peer = f"{name}: {row['medians'][name]:,.4g} ±{row['spreads'][name] / 2:.0%}"
            ratio, goal = row["ratios"][name], row["goals"].get(name)
            met = "" if goal is None else ("yes" if ratio >= goal else "**no**")
            shown = "" if goal is None else f"{goal:.2g}×"
            lines.append(
                f"| {row['what']} | {row['cache']} | {ours} | {peer} | {ratio:.2f}× "
                f"| {shown} | {met} |"
            )
    return "\n".join(lines) + "\n"


def curves(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """What is a figure against a size: plot -> line -> points, from rows that say so."""
    found: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        curve = row.get("curve")
        if curve is None:
            continue
        line = found.setdefault(curve["plot"], {}).setdefault(curve["line"], {})
        line[curve["x"]] = row["medians"]["ours"]
        if "first" in curve:  # the row's peer is the line's first point
            line[curve["first"]["x"]] = median(curve["first"]["figures"])
    return {
        plot: {line: sorted(points.items()) for line, points in lines.items()}
        for plot, lines in found.items()
    }


def draw_curves(rows: list[dict[str, Any]], target: Path) -> None:
    """One picture of all curves, seconds against a size on a log scale; none without curves.

    Raises:
        ToolMissingError: matplotlib is missing.
    """
    plots = curves(rows)
    if not plots:
        return
    pyplot = _pyplot()
    figure, all_axes = pyplot.subplots(1, len(plots), figsize=(5.5 * len(plots), 4), squeeze=False)
    for axes, (plot, lines) in zip(all_axes[0], plots.items(), strict=True):
        for line, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=line)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(plot)
        axes.set_ylabel("seconds (median)")
        axes.grid(visible=True, linewidth=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=120)
    pyplot.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ToolMissingError("matplotlib is missing", "pip install '.[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """One picture: for each peer the ratio ours / peer (log scale), with its goal as a tick.

    Raises:
        ToolMissingError: matplotlib is missing.
    """
    pyplot = _pyplot()
    bars = [
        (f"{row['what']}\nbeside {peer}", ratio, row["goals"].get(peer))
        for row in rows
        for peer, ratio in row["ratios"].items()
    ]
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.55 * max(1, len(bars))))
    for place, (_label, ratio, goal) in enumerate(bars):
        met = goal is None or ratio >= goal
        axes.barh(place, ratio, color="#2a7f62" if met else "#b5482a", height=0.6)
        axes.annotate(f" {ratio:.2f}×", (ratio, place), va="center", fontsize=9)
        if goal is not None:
            axes.plot([goal, goal], [place - 0.4, place + 0.4], color="black", linewidth=1.5)
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("times as fast as the peer in the same run (median); black: the goal")
    figure.tight_layout()
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
