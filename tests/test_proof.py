"""Short versions of what tests/proof does at length, and tests of what judges there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, require_tool
from native_build import PROGRAMS, NativeBuild

PROOF = ROOT / "tests" / "proof"
NOT_TRIED = 3

sys.path.append(str(PROOF))
import sites  # noqa: E402
from witness import SECTOR, Chapter, Violation, all_flushed, answered_before  # noqa: E402


def prove(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PROOF / name, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip


# ---- the real thing, for a moment ----


def test_a_killed_ingest_has_lost_nothing_that_was_flushed() -> None:
    done = prove("kill", "--cycles", 4)
    assert done.returncode == 0, done.stderr
    assert "4 kills" in done.stdout
    assert "every point exact" in done.stdout


def test_a_power_cut_of_a_real_file_system_loses_nothing_promised() -> None:
    done = prove("powercut", "--cycles", 3)
    if done.returncode == NOT_TRIED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 power cuts") >= 1


def test_a_power_cut_without_syncs_is_noticed() -> None:
    done = prove("powercut", "--cycles", 20, "--only", "ext4", "--without-syncs")
    if done.returncode == NOT_TRIED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 1
    assert "violation" in done.stderr


def test_recovered_disks_read_the_same_in_qemu(native: NativeBuild, tmp_path: Path) -> None:
    count = 6
    qemu_img = require_tool("qemu-img")
    program = native.program(PROGRAMS / "pairs_test.c", "plain")
    subprocess.run([program, "60", "7", tmp_path, str(count)], check=True, capture_output=True)
    for number in range(count):
        done = subprocess.run(
            [qemu_img, "compare", "-f", "vmdk", "-F", "raw",
             tmp_path / f"{number}.vmdk", tmp_path / f"{number}.raw"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long  # tests/proof/faults is all of it, and runs in .ci/run
def test_most_call_sites_of_memory_and_storage_fail(native: NativeBuild, tmp_path: Path) -> None:
    """Each site is known by its address; those that a short run reaches do fail."""
    for tool in ("objdump", "addr2line"):
        require_tool(tool)
    runs, known = [], {}
    for source in sorted(PROGRAMS.glob("failing_*_test.c")):
        program = native.program(source, "address")
        told = tmp_path / source.stem
        subprocess.run(
            [program], check=True, cwd=tmp_path, capture_output=True,
            env={**os.environ, "ROLLPOINT_SITES": str(told)},
        )  # fmt: skip
        table = sites.table(program)
        known.update(dict.fromkeys(table.values(), 0))
        if told.exists():
            runs.append(sites.met(told, table))
    found = sites.union([known, *runs])
    for kind, least in (("memory", 90), ("storage", 130), ("kernel", 22)):
        struck = [site for site, bits in found.items() if sites.is_failed(site, bits)]
        assert sum(site.kind == kind for site in struck) >= least, (kind, len(struck))
    assert not {site.place for site in struck} & sites.CANNOT_FAIL.keys()
    assert sites.CANNOT_FAIL.keys() <= {site.place for site in found}


def test_a_call_that_never_failed_is_told_of() -> None:
    known = [
        sites.Site("storage", place[2], place[0], 7, 1, place[1]) for place in sites.CANNOT_FAIL
    ]
    new = sites.Site("memory", "malloc", "journal.c", 12, 1, "make")
    found = dict.fromkeys(known, 0)
    assert sites.unexplained(found) == []
    assert sites.unexplained({**found, new: sites.REACHED}) == [
        "has not failed: journal.c:12 malloc in make"
    ]
    assert sites.unexplained({**found, new: 0b110}) == []
    assert sites.unexplained({new: 0b110}) != []  # what the table names is gone


def test_random_lives_of_a_replica_keep_what_was_promised() -> None:
    done = prove("operations", "--lives", 6, "--seed", 7)
    assert done.returncode == 0, done.stderr
    assert "6 lives" in done.stdout


def test_a_planted_mistake_of_fencing_is_found() -> None:
    done = prove("operations", "--lives", 20, "--mistake", "epoch")
    assert done.returncode == 1
    assert "held, with the epoch of writers" in done.stderr


# ---- the witness ----


def made(*lengths: int) -> Chapter:
    """A chapter of two disks with a writer each, whose writes are done one after the other."""
    chapter = Chapter({"a": bytes(16 * SECTOR), "b": bytes(16 * SECTOR)}, 1, seed=5)
    for turn in range(max(lengths)):
        for writer, length in zip(chapter.writers, lengths, strict=True):
            if turn < length:
                op = writer.next_op(next(chapter.events))
                writer.apply(op)
                op.acked, op.acked_ns = next(chapter.events), turn + 1
    return chapter


def image(chapter: Chapter, *counts: int) -> dict[str, bytes]:
    """The disks after so many writes of each writer."""
    images = {}
    for writer, count in zip(chapter.writers, counts, strict=True):
        data = bytearray(writer.base)
        for op in writer.ops[:count]:
            data[op.offset : op.offset + op.length] = op.bytes()
        images[writer.disk] = bytes(data)
    return images


def test_the_witness_takes_what_is_there_and_what_is_on_its_way() -> None:
    chapter = made(4, 4)
    chapter.judge(image(chapter, 4, 4), all_flushed, "all")
    chapter.judge(image(chapter, 2, 2), all_flushed, "some")
    chapter.judge(image(chapter, 3, 2), answered_before(3), "some")


@pytest.mark.parametrize("counts", [(1, 4), (4, 1)])
def test_the_witness_sees_broken_write_order(counts: tuple[int, int]) -> None:
    chapter = made(4, 4)
    with pytest.raises(Violation, match="write order"):
        chapter.judge(image(chapter, *counts), all_flushed, "across")
    chapter.judge(image(chapter, *counts), all_flushed, "each by itself", across=False)


def test_the_witness_sees_what_was_lost_after_a_flush() -> None:
    chapter = made(4, 4)
    chapter.flush_ended(chapter.flush_begins("a"))
    with pytest.raises(Violation, match="no prefix"):
        chapter.judge(image(chapter, 3, 4), all_flushed, "after a flush", across=False)


def test_the_witness_sees_what_a_point_lacks() -> None:
    chapter = made(4, 4)
    with pytest.raises(Violation, match="no prefix"):
        chapter.judge(image(chapter, 2, 2), answered_before(4), "a point")


def test_the_witness_sees_bytes_that_nobody_wrote() -> None:
    chapter = made(4, 4)
    images = image(chapter, 4, 4)
    images["b"] = images["b"][:700] + b"?" + images["b"][701:]
    with pytest.raises(Violation, match="disk b"):
        chapter.judge(images, all_flushed, "a flipped byte")


def test_the_witness_sees_a_write_that_is_missing_in_the_middle() -> None:
    chapter = made(6, 1)
    writer = chapter.writers[0]
    whole = image(chapter, 6, 1)
    for missing in range(5):
        data = bytearray(writer.base)
        for number, op in enumerate(writer.ops):
            if number != missing:
                data[op.offset : op.offset + op.length] = op.bytes()
        if bytes(data) != whole["a"]:  # else later ones cover it
            with pytest.raises(Violation):
                chapter.judge({**whole, "a": bytes(data)}, lambda _: 6, "a hole")
