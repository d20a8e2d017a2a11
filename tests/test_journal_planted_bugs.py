"""Test the tests: each planted bug in the journal must be found by its C tests.

A bug is a change of one place in the C source, made in a copy; the file is compiled and
linked with the rest, and one of the test programs must fail. The changes are written down
here, so that the source itself carries no switches for them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT, require_tool

NATIVE = ROOT / "src" / "_native"
TESTS = ROOT / "tests" / "native"
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O1", f"-I{NATIVE}", f"-I{TESTS}", "-pthread"]
ROOMS = ("journal*.c", "io*.c", "status.c", "disk.c")


class Bug(NamedTuple):
    """What is planted, in which file, and which program has to find it."""

    file: str
    old: str
    new: str
    finder: str = "crash_journal_test"


BUGS = {
    "a commit that does not sync": Bug(
        "journal_write.c",
        "  if (status == RP_OK)\n    status = rp_file_sync (journal->file, fault);\n"
        "  for (struct rp_chunk *chunk = chunks; status",
        "  for (struct rp_chunk *chunk = chunks; status",
    ),
    "a root that is shown before it is durable": Bug(
        "journal_roll.c",
        "  if (status == RP_OK)\n    status = rp_file_sync (journal->file, fault);\n"
        "  if (status == RP_OK)\n    status = flip",
        "  if (status == RP_OK)\n    status = flip",
    ),
    "a shown root that is not synced": Bug(
        "journal_roll.c",
        "sizeof sector, 0, fault);\n  if (status == RP_OK)\n"
        "    status = rp_file_sync (journal->file, fault);",
        "sizeof sector, 0, fault);",
    ),
    "data that recovery does not check": Bug(
        "journal_open.c",
        "    *out = (uint32_t) rp_log_hash (data, grain_bytes) == at.value;\n",
        "",
    ),
    "batches that recovery does not chain": Bug(
        "journal_open.c", " || batch.chain != segment->chain", ""
    ),
    "batches whose sequence recovery does not check": Bug(
        "journal_open.c",
        "        || batch.sequence != sequence || batch.chain != segment->chain\n",
        "",
    ),
    "headers whose checksum is not checked": Bug(
        "journal_format.c",
        "  if (out->checksum != rp_log_hash (at + 16, bytes - 16))\n    return false;\n",
        "",
        "journal_test",
    ),
    "a trailer that is written with its summary": Bug(
        "journal_write.c",
        "  free (cuts);\n  pthread_mutex_lock (&journal->lock);\n  return status;",
        "  free (cuts);\n  if (status == RP_OK && !durable)\n"
        "    status = write_trailer (journal, segment, fault);\n"
        "  pthread_mutex_lock (&journal->lock);\n  return status;",
    ),
    "a trailer that is written before its batches are durable": Bug(
        "journal_write.c",
        "    if (!segment->closed\n"
        "        || segment->last_sequence > journal->durable_sequence)\n      break;",
        "    if (!segment->closed)\n      break;",
    ),
    "an old root that is given back too early": Bug(
        "journal_roll.c",
        "  status = write_content (journal, map, directory, &root, fault);\n  free",
        "  drop_root (journal, &old);\n"
        "  status = write_content (journal, map, directory, &root, fault);\n  free",
    ),
    "a root put over the one that is shown": Bug(
        "journal_write.c",
        "    used[rp_position_slot (journal, at)] = 1;\n  }\n  return used;",
        "  }\n  return used;",
    ),
    "an epoch that is not written": Bug(
        "journal_write.c", "  next.epoch = epoch;\n  next.held = held;\n", "  next.held = held;\n"
    ),
    "a point that cuts before the last write": Bug(
        "journal_write.c",
        "    cut.ordinal = batch->chunk->segment->entry_count;\n",
        "    cut.ordinal = batch->chunk->segment->entry_count;\n"
        "    cut.ordinal -= cut.ordinal > 0;\n",
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
    "a failed sync that is tried again": Bug(
        "journal_write.c",
        "  journal->failed = status == RP_STALE_EPOCH ? status : RP_FAILED;\n",
        "  if (status == RP_STALE_EPOCH)\n    journal->failed = status;\n",
        "journal_fault_test",
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
    "a root that is shown before it is durable",
    "data that recovery does not check",
    "recovered batches that stay in the page cache",
)


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The rooms that the journal needs, compiled once; by source name."""
    folder = tmp_path_factory.mktemp("objects")
    sources = sorted(path for room in ROOMS for path in NATIVE.glob(room))
    subprocess.run(
        [require_tool("gcc"), *FLAGS, "-c", *map(str, sources)], cwd=folder, check=True
    )
    return {source.name: folder / f"{source.stem}.o" for source in sources}


def build(finder: str, objects: list[Path], folder: Path) -> Path:
    program = folder / finder
    subprocess.run(
        [require_tool("gcc"), *FLAGS, TESTS / f"{finder}.c", *objects, "-o", program], check=True
    )
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
def test_a_planted_bug_is_found(name: str, objects: dict[str, Path], tmp_path: Path) -> None:
    bug = BUGS[name]
    linked = {**objects, bug.file: plant(bug, tmp_path)}
    assert run(build(bug.finder, list(linked.values()), tmp_path)) != 0


def test_the_unchanged_source_passes_what_finds_the_bugs(
    objects: dict[str, Path], tmp_path: Path
) -> None:
    assert run(build("journal_fault_test", list(objects.values()), tmp_path)) == 0
