"""Steps as a table for people and as JSON for programs."""

from __future__ import annotations

from rollpoint.report import Step, steps_json, steps_table, table

STEPS = [
    Step("create", 0.25),
    Step("fail over", 1.5, rpo_seconds=0.004, rto_seconds=0.5, verified="12 and 12"),
]


def test_the_table_is_aligned_and_leaves_out_what_has_no_meaning() -> None:
    assert steps_table(STEPS).splitlines() == [
        "step         time   RPO     RTO  verified",
        "---------  ------  ----  ------  ---------",
        "create     250 ms",
        "fail over  1.50 s  4 ms  500 ms  12 and 12",
    ]


def test_a_column_with_nothing_in_it_is_left_out() -> None:
    assert table(("a", "b"), [("1", ""), ("22", "")]) == "a\n--\n1\n22"


def test_json_has_numbers_and_no_empty_fields() -> None:
    assert steps_json(STEPS) == [
        {"name": "create", "seconds": 0.25},
        {
            "name": "fail over",
            "seconds": 1.5,
            "rpo_seconds": 0.004,
            "rto_seconds": 0.5,
            "verified": "12 and 12",
        },
    ]
