"""Changes of a guest's files are recorded, in words that do nothing on a terminal."""

from __future__ import annotations

import msgspec
import pytest
from rollpoint.guest.edits import TEXT_BYTES_MAX, differing, printable


def test_only_the_lines_that_differ_are_told() -> None:
    old = b"# table\n/dev/sda1 / ext4\n/dev/sda2 none swap\nproc /proc\n"
    new = b"# table\nUUID=1 / ext4\n/dev/sda2 none swap\nproc /proc\n"
    assert differing(old, new) == ("/dev/sda1 / ext4", "UUID=1 / ext4")


def test_a_line_between_two_changed_ones_is_left_out() -> None:
    assert differing(b"a\nsame\nb\n", b"c\nsame\nd\n") == ("a\nb", "c\nd")


def test_an_order_alone_is_told() -> None:
    assert differing(b"a\nb\n", b"b\na\n") == ("a\nb", "b\na")


def test_a_new_file_has_nothing_before() -> None:
    assert differing(None, b"text\n") == ("", "text")


def test_what_is_no_text_is_told_by_size_and_digest() -> None:
    before, after = differing(b"a\0b", b"a\0bc")
    assert before.startswith("3 bytes, xxh3 ")
    assert after.startswith("4 bytes, xxh3 ")
    assert before[9:] != after[9:]


def test_a_long_text_is_capped() -> None:
    before, after = differing(b"", b"x" * 100_000)
    assert before == ""
    assert len(after) < TEXT_BYTES_MAX + 40
    assert after.endswith(f"{100_000 - TEXT_BYTES_MAX} bytes more")


@pytest.mark.parametrize("lines", [b"a\n", b"a\nb\n", b"\n"])
def test_a_hostile_text_costs_no_more_than_its_length(lines: bytes) -> None:
    """A quadratic comparison of this would take hours."""
    old = lines * 400_000
    before, after = differing(old, lines + old[::-1])
    assert len(before) + len(after) < 3 * TEXT_BYTES_MAX


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), "caf\\xe9"),
        ("right\u202eleft", "right\\u202eleft"),
        ("straße\t\n", "straße\t\n"),
    ],
)
def test_what_is_kept_can_be_shown(text: str, shown: str) -> None:
    assert printable(text) == shown
    msgspec.json.encode(printable(text))
