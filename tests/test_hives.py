"""Registry hives through their child process: libhivex reads back what it was told."""

from __future__ import annotations

import random

import pytest
from hive_files import empty_hive, hive
from hypothesis import given, settings
from hypothesis import strategies as st
from rollpoint.errors import Error, GuestError
from rollpoint.guest.hives import Hive, Value, binary, dword, string, strings

KEYS = {
    "A\\B": {"n": dword(3), "s": string("größe"), "": string("default")},
    "A\\C": {"m": strings(["one", "two"]), "x": string("%P%", expand=True), "b": binary(b"\0\1")},
}


@pytest.fixture(scope="module")
def made() -> bytes:
    return hive(KEYS)


def test_values_are_read_back_as_they_were_set(made: bytes) -> None:
    with Hive(made, "t") as read:
        assert read.keys(()) == ["A"]
        assert sorted(read.keys(("a",))) == ["B", "C"]
        for path, values in KEYS.items():
            assert read.values(path.upper().split("\\")) == values
        assert read.text(("A", "B"), "S") == "größe"
        assert read.value(("A", "C"), "m") == strings(["one", "two"])
        assert read.number(("A", "B"), "n") == 3
        assert read.value(("A", "Z"), "n") is None
        assert read.keys(("nothing",)) == []


def test_a_value_set_to_what_it_is_changes_nothing(made: bytes) -> None:
    with Hive(made, "t", writable=True) as edited:
        assert not edited.set(("a", "b"), "N", dword(3), "w")
        assert not edited.remove_value(("a", "b"), "zz", "w")
        assert not edited.remove_key(("a", "zz"), "w")
        assert edited.records == []


def test_changes_are_in_the_hive_that_is_saved_and_are_told(made: bytes) -> None:
    with Hive(made, "t", writable=True) as edited:
        assert edited.set(("A", "B"), "n", dword(0), "started")
        assert edited.set(("A", "New", "Deep"), "v", string("x"), "made")
        assert edited.remove_value(("A", "C"), "M", "gone")
        assert edited.remove_key(("A", "B", "none"), "gone") is False
        saved = edited.save()
        assert [(r.what, r.before, r.after) for r in edited.records] == [
            ("started", "A\\B\\n = dword 3", "A\\B\\n = dword 0"),
            ("made", "", "A\\New\\Deep\\v = 'x'"),
            ("gone", "A\\C\\M = ['one', 'two']", ""),
        ]
    with Hive(saved, "t") as read:
        assert read.number(("A", "B"), "n") == 0
        assert read.text(("A", "New", "Deep"), "v") == "x"
        assert set(read.values(("A", "C"))) == {"x", "b"}


def test_a_value_keeps_its_name_as_it_is_spelled(made: bytes) -> None:
    with Hive(made, "t", writable=True) as edited:
        edited.set(("a", "b"), "N", dword(9), "w")
        saved = edited.save()
    with Hive(saved, "t") as read:
        assert read.values(("A", "B"))["n"] == dword(9)
        assert "N" not in read.values(("A", "B"))


def test_a_key_is_removed_with_all_below_it(made: bytes) -> None:
    with Hive(made, "t", writable=True) as edited:
        edited.set(("A", "B", "Below"), "v", dword(1), "w")
        assert edited.remove_key(("A", "B"), "gone")
        saved = edited.save()
    with Hive(saved, "t") as read:
        assert read.keys(("A",)) == ["C"]


def test_a_hive_grows_by_many_keys() -> None:
    wanted = {f"K\\key{n:04d}": {"v": dword(n), "t": string("x" * n)} for n in range(400)}
    data = hive(wanted)
    with Hive(data, "t") as read:
        assert len(read.keys(("K",))) == 400
        for number in (0, 1, 199, 399):
            assert read.number(("K", f"KEY{number:04d}"), "v") == number


def test_a_hive_that_is_only_read_takes_no_change(made: bytes) -> None:
    with Hive(made, "t") as read, pytest.raises(GuestError, match="EROFS"):
        read.set(("A",), "v", dword(1), "w")


def test_values_that_would_be_written_as_windows_cannot_read_them_are_refused(made: bytes) -> None:
    with Hive(made, "t", writable=True) as edited:
        assert edited.set(("A", "D"), "v", binary(bytes(16344)), "w")
        with pytest.raises(GuestError, match="16344"):
            edited.set(("A", "E"), "v", binary(bytes(16345)), "w")


def test_a_child_that_hangs_is_ended(made: bytes) -> None:
    with pytest.raises(GuestError, match="in time"):
        Hive(made, "t", seconds=0.001)


def test_names_that_end_early_are_refused(made: bytes) -> None:
    with Hive(made, "t", writable=True) as edited, pytest.raises(GuestError, match="zero byte"):
        edited.set(("A", "x\0y"), "v", dword(1), "w")


@pytest.mark.parametrize("data", [b"", b"regf" * 1200, empty_hive()[:5000], bytes(8192)])
def test_what_is_no_hive_is_refused(data: bytes) -> None:
    with pytest.raises(GuestError, match="registry hive t cannot be worked on"):
        Hive(data, "t")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_hostile_hives_end_in_answers_or_an_error(made: bytes, seed: int) -> None:
    """Whatever libhivex does with them happens in the child."""
    chance = random.Random(seed)
    broken = bytearray(made)
    for _ in range(chance.randrange(1, 30)):
        at = chance.randrange(4096, len(broken))
        broken[at] = chance.choice((0, 0xFF, 0x80, chance.randrange(256)))
    try:
        with Hive(bytes(broken), "t", writable=True, seconds=20) as edited:
            for path in ((), ("A",), ("A", "B"), ("A", "C")):
                edited.keys(path)
                edited.values(path)
            edited.set(("A", "B"), "n", Value(3, bytes(100)), "w")
            edited.set(("A", "D"), "n", dword(1), "w")
            edited.remove_key(("A", "C"), "w")
            edited.save()
    except Error:
        pass
