"""The C tests are tested: each of these mistakes, made on purpose, has to be found.

`RP_SABOTAGED (n)` in the C core marks the place of mistake n (see status.h); a checker
that has never failed proves nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from native_build import NATIVE, PROGRAMS, NativeBuild

# Which mistake is found by which test: tests/native/crash_<name>_test.c, or <name>.c.
MISTAKES = {
    1: ("operation", "a small file is replaced without a sync of its directory"),
    2: ("operation", "a small file is renamed before it is synced"),
    3: ("operation", "a commit is acknowledged before the sync"),
    4: ("operation", "the header is flipped before the root is durable"),
    5: ("operation", "the slots of the shown root are used for the next"),
    6: ("operation", "table entries are written before their data is durable"),
    7: ("operation", "a torn tail is kept"),
    8: ("operation", "a writer with an old epoch may commit"),
    9: ("operation", "a merge starts one link too low"),
    10: ("operation", "a merge leaves zeros out"),
    11: ("journal", "a batch that had been dropped is taken"),
    12: ("operation", "rolling back takes one entry too few"),
    13: ("operation", "both superblocks are written before a sync"),
    14: ("journal", "a trailer is written together with its summary"),
    15: ("operation", "a new grain is copied up on one side only"),
    16: ("operation", "a new extent is not synced"),
    17: ("operation", "a flat file is not synced"),
    18: ("journal", "the points of a dropped tail stay"),
    19: ("operation", "a hold is not written down"),
    20: ("operation", "the old root is given back before the flip"),
    21: ("operation", "a journal is opened with an old epoch"),
    22: ("repair", "table entries are mended before the grains they point at are durable"),
    23: ("stream", "the footer of a stream is written before what it speaks of is durable"),
    24: ("repair", "the backup of a repair is not synced"),
    25: ("journal", "segments are given back before the superblock knows"),
    26: ("journal", "the base is said to be written before it is synced"),
    27: ("journal", "segments are given back that the shown root names"),
    30: ("journal_fault_test", "a failed sync is tried again"),
    31: ("journal_test", "the checksum of a batch is not looked at"),
    32: ("journal", "the base is written before the horizon has moved"),
    33: ("journal", "the base changes under the root that is shown"),
    34: ("hold_threads_test", "a hold does not wait for who is inside"),
    35: ("pairs_test", "a restore point cuts before the last write"),
    36: ("failing_images_test", "what had no memory is used when it is closed"),
    37: ("failing_images_test", "memory is forgotten when a write fails"),
    38: ("io_posix_test", "a short count is taken for the end of a file"),
    39: ("journal_scrub_threads_test", "a grain is mended with bytes that nothing proves"),
    40: ("journal_scrub_threads_test", "a scrub takes all data for good"),
    41: ("gate_threads_test", "a cut lets writers in while an alarm is on"),
    42: ("journal_root_test", "a root shows what its slots held before"),
    43: ("journal_view_threads_test", "what was destaged meanwhile is taken for a point's"),
    44: ("slice_test", "a flush of a volume reaches the first of its disks alone"),
    45: ("journal_written_test", "a failback forgets the first write after a restore point"),
    46: ("journal_written_test", "rot in the journal goes back to the source's disk"),
}
DEFAULT_RUN = (1, 7, 17, 30, 34)
SECONDS = 60  # within which each has to be found
ENVIRONMENT = {"ROLLPOINT_CRASH_BUDGET": "20000", "ROLLPOINT_STEP": "1"}
SAID = r"violation|CHECK failed|write order broken|\.[ch]:\d+: |depth \d|are forgotten"


def program_of(number: int) -> Path:
    """The source of the test that has to find this mistake."""
    name = MISTAKES[number][0]
    crash = PROGRAMS / f"crash_{name}_test.c"
    return crash if crash.exists() else PROGRAMS / f"{name}.c"


def place_of(number: int) -> Path:
    """The one file that makes this mistake."""
    mark = f"RP_SABOTAGED ({number})"
    (found,) = [path for path in NATIVE.glob("*.c") if mark in path.read_text()]
    return found


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=() if number in DEFAULT_RUN else pytest.mark.long)
        for number in MISTAKES
    ],
)
def test_a_mistake_is_found(native: NativeBuild, number: int, tmp_path: Path) -> None:
    mistake = MISTAKES[number][1]
    program = native.program(
        program_of(number),
        "plain",
        (f"-DRP_SABOTAGE={number}",),
        (place_of(number).name,),
    )
    done = subprocess.run(
        [program],
        env=os.environ | ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode != 0, f"nobody notices that {mistake}"
    assert "0 violations" not in done.stdout
    assert done.returncode < 0 or re.search(SAID, done.stderr), done.stderr


def test_every_mistake_is_tried_and_none_is_built_in() -> None:
    marks = [
        int(number)
        for path in NATIVE.glob("*.c")
        for number in re.findall(r"RP_SABOTAGED \((\d+)\)", path.read_text())
    ]
    assert set(marks) == set(MISTAKES)  # one that swaps has two places
    for path in (NATIVE.parent.parent / "setup.py", NATIVE.parent.parent / "pyproject.toml"):
        assert "RP_SABOTAGE" not in path.read_text()
