"""Fuzz targets: every seed, every input that once found a mistake, and a short run of each.

Longer runs: tests/fuzz/README.md.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from fuzz import descriptor, harness, recipe, seeds
from tools import require_tool

RUNS = 2000


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    clang = require_tool("clang-14")
    return harness.build(tmp_path_factory.mktemp("fuzz"), clang, harness.names())


@pytest.fixture(scope="module")
def seed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    seeds.write(folder)
    return folder


@pytest.mark.parametrize("name", harness.names())
def test_no_seed_and_no_mutation_of_one_breaks_a_promise(
    name: str, programs: dict[str, Path], seed_folder: Path, tmp_path: Path
) -> None:
    given = seed_folder / name
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    outcome = harness.run(
        programs[name], [corpus, given], tmp_path / "findings", runs=RUNS, seed=1
    )
    assert not outcome.failed, outcome.log[-6000:]
    assert outcome.executions >= RUNS


def test_no_descriptor_breaks_a_promise(tmp_path: Path) -> None:
    outcome = harness.run_descriptor(tmp_path, seconds=60, runs=RUNS, seed=1)
    assert not outcome.failed, outcome.log[-6000:]
    assert outcome.executions >= RUNS


def test_a_mebibyte_of_anything_is_read_in_a_moment() -> None:
    """Where an expression went back and forth it would take days."""
    for data in itertools.islice(descriptor.slow_inputs(), 1, 54, 5):
        descriptor.check(data)


def test_every_target_has_seeds_and_no_seed_is_large() -> None:
    made = seeds.make()
    assert sorted(made) == harness.names()
    for name, inputs in made.items():
        assert inputs, name
        for data in inputs.values():
            assert 0 < len(data) <= seeds.SEED_BYTES_MAX


def test_an_input_is_the_image_that_it_was_made_of() -> None:
    """Patches, repeated sectors and sizes give back what seeds.py laid out."""
    for images in (seeds.hosted_images(), seeds.cowd_images(), seeds.sesparse_images()):
        for name, (pieces, length) in images:
            wanted = bytearray(length)
            assert all(offset + len(data) <= length for offset, data in pieces), name
            for offset, data in pieces:
                wanted[offset : offset + len(data)] = data
            assert recipe.expand(recipe.of_pieces(pieces, length)) == [bytes(wanted)], name
            assert recipe.expand(recipe.of_file(bytes(wanted))) == [bytes(wanted)], name
