"""Test the tests: each planted bug in the journal must be found by its C tests.

A bug is a change of one place in the C source, made in a copy; the file is compiled and
linked with the rest, and one of the test programs must fail. These are beside those of
tests/test_sabotage.py: mistakes that other tests than a crash sweep find, too.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from native_build import FLAGS, NATIVE, PROGRAMS, NativeBuild
from tools import require_tool


class Bug(NamedTuple):
    """What is planted, in which file, and which program has to find it."""

    file: str
    old: str
    new: str
    finder: str = "crash_journal_test"


BUGS = {
    "a shown root that is not synced": Bug(
        "journal_roll.c",
        "sizeof sector, 0, fault);\n  if (status == RP_OK)\n"
        "    status = rp_file_sync (journal->file, fault);",
        "sizeof sector, 0, fault);",
    ),
    "batches whose sequence recovery does not check": Bug(
        "journal_open.c",
        "        || batch.sequence != sequence\n        || (batch.chain != segment->chain",
        "        || (false && batch.chain != segment->chain",
    ),
    "a trailer that is written before its batches are durable": Bug(
        "journal_commit.c",
        "    if (!segment->closed\n"
        "        || segment->last_sequence > journal->durable_sequence)\n      break;",
        "    if (!segment->closed)\n      break;",
    ),
    "an epoch that is not written": Bug(
        "journal_commit.c", "  next.epoch = epoch;\n  next.held", "  next.held"
    ),
    "a previous place that is forgotten": Bug(
        "journal_write.c", "      .previous = previous,\n    };", "      .previous = 0,\n    };",
        "journal_test",
    ),
    "a walk that forgets an entry": Bug(
        "journal_roll.c",
        "  for (uint64_t i = first; i < stop; i++) {\n    const uint8_t *at = entries",
        "  for (uint64_t i = first + (stop - first > 9); i < stop; i++) {\n"
        "    const uint8_t *at = entries",
        "journal_test",
    ),
    "a place that is taken from a slot that was used again": Bug(
        "journal_roll.c",
        "                    rp_valid_place (slots, entry.previous,\n"
        "                                    segment->number + 1), fault);",
        "                    entry.previous, fault);",
        "journal_destage_test",
    ),
    "a destage that keeps the first version it wrote": Bug(
        "journal_destage.c",
        "  if (page == all_seen () || page[bit / 8] >> bit % 8 & 1) {",
        "  if (page == all_seen ()) {",
        "journal_destage_test",
    ),
    "a destage that copies data without looking at it": Bug(
        "journal_destage.c",
        "  if ((uint32_t) rp_log_hash (data, grain_bytes) == copy->value)",
        "  if (copy != NULL)",
        "journal_destage_test",
    ),
    "slots that are used again while they are read": Bug(
        "journal_ring.c",
        "  rp_journal_await_readers (journal);\n",
        "",
        "journal_ring_threads_test",
    ),
    "recovered batches that stay in the page cache": Bug(
        "journal_open.c",
        "  for (uint64_t i = 0; status == RP_OK && journal->writable\n",
        "  for (uint64_t i = 0; false && status == RP_OK && journal->writable\n",
        "journal_fault_test",
    ),
    "a roll back that trusts the page cache": Bug(
        "journal_roll.c", "  } else if (!journal->root_proven) {", "  } else if (false) {",
        "journal_fault_test",
    ),
}  # fmt: skip
QUICK = (
    "a shown root that is not synced",
    "a previous place that is forgotten",
    "recovered batches that stay in the page cache",
)


def build(finder: str, objects: list[str], folder: Path) -> Path:
    program = folder / finder
    source = PROGRAMS / f"{finder}.c"
    command = [require_tool("gcc"), *FLAGS, source, *objects, "-o", program, "-ldeflate"]
    subprocess.run(command, check=True)
    return program


def run(program: Path) -> int:
    done = subprocess.run([program], cwd=program.parent, capture_output=True, timeout=120)
    return done.returncode


def plant(bug: Bug, folder: Path) -> Path:
    text = (NATIVE / bug.file).read_text()
    assert text.count(bug.old) == 1, f"{bug.file} has changed: plant this bug anew"
    source = folder / bug.file
    source.write_text(text.replace(bug.old, bug.new))
    target = source.with_suffix(".o")
    subprocess.run(
        [require_tool("gcc"), *FLAGS, "-w", "-c", source, "-o", target], check=True
    )
    return target


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in BUGS],
)
def test_a_planted_bug_is_found(name: str, native: NativeBuild, tmp_path: Path) -> None:
    bug = BUGS[name]
    planted = plant(bug, tmp_path)
    objects = [path for path in native.core("plain") if Path(path).name != planted.name]
    assert run(build(bug.finder, [*objects, str(planted)], tmp_path)) != 0


def test_the_unchanged_source_passes_what_finds_the_bugs(
    native: NativeBuild, tmp_path: Path
) -> None:
    assert run(build("journal_fault_test", native.core("plain"), tmp_path)) == 0
