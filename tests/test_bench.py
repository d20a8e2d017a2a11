"""Benchmarks still run, verify their bytes, and leave a table, JSON and a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from rollpoint import bench
from rollpoint.errors import NotFoundError, UsageError


@pytest.mark.long  # a minute; .ci/run asks for it by name
def test_every_group_runs_and_leaves_its_results(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "rollpoint", "bench", "--smoke", "--json"),
            *("--from", str(ROOT), "--output", str(tmp_path / "results")),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["what"].split()[0] for row in rows} == {
        *("roll", "reopen", "scrub:", "NBD:", "ingest:", "failover:", "failback:", "plan"),
        *("convert:", "compare:", "commit:", "mount:"),
    }
    for row in rows:
        assert row["verified"], row["what"]
        assert row["full"] is False
    assert (tmp_path / "results" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "results" / "bench-curves.png").read_bytes().startswith(b"\x89PNG")
    lines = bench.curves(rows)
    assert {plot: set(found) for plot, found in lines.items()} == {
        "number of writes": {"roll", "reopen"},
        "size of the disk, bytes": {"roll", "reopen", "failover, 1,000 writes"},
    }
    assert all(len(points) == 2 for points in lines["size of the disk, bytes"].values())
    table = (tmp_path / "results" / "bench.md").read_text()
    assert "qemu-nbd" in table


def test_a_ratio_below_its_goal_is_shown_as_missed(tmp_path: Path) -> None:
    raw = {
        "benchmarks": [
            {
                "extra_info": {
                    "what": "reads",
                    "unit": "IOPS",
                    "higher_is_better": True,
                    "figures": {"ours": [100.0, 120.0, 110.0], "peer": [50.0, 60.0, 40.0]},
                    "ratios": {"peer": 2.0},
                    "goals": {"peer": 3.0},
                    "cache": "warm",
                    "verified": "by hand",
                }
            }
        ]
    }
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    rows = bench.read_rows(tmp_path / "raw.json")
    assert rows[0]["met"] is False
    assert rows[0]["medians"] == {"ours": 110.0, "peer": 50.0}
    assert "2.00× | 3× | **no**" in bench.table(rows)


def test_one_benchmark_can_leave_several_rows(tmp_path: Path) -> None:
    row = {
        "what": "convert",
        "unit": "s",
        "higher_is_better": False,
        "figures": {"ours": [1.0], "peer": [3.0]},
        "ratios": {"peer": 3.0},
        "goals": {"peer": 2.0},
        "cache": "warm",
        "verified": "by hand",
    }
    size = {**row, "what": "size", "unit": "MiB", "ratios": {"peer": 0.5}}
    raw = {"benchmarks": [{"extra_info": {"rows": [row, size]}}]}
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    rows = bench.read_rows(tmp_path / "raw.json")
    assert [(row["what"], row["met"]) for row in rows] == [("convert", True), ("size", False)]


def test_misuse_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no benchmark group 'speed'"):
        bench.run(ROOT / "bench", ["speed"], tmp_path, full=False)
    with pytest.raises(NotFoundError, match="no checkout"):
        bench.find_bench(tmp_path)
