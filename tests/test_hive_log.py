"""Transaction logs of registry hives: what Windows would have loaded is what is edited."""

from __future__ import annotations

import random
import struct

import pytest
from hive_files import empty_hive
from hypothesis import given, settings
from hypothesis import strategies as st
from rollpoint._native import marvin32
from rollpoint.errors import DamagedError, Error
from rollpoint.guest.hive_log import checksum, is_dirty, recover

# The header of a log entry that Windows 10 wrote: up to Hash-1, then Hash-2.
HEADER = "48764c45001e0000000000000300000000500000010000005d1e700717a84647677287f6afdc37e6"


def with_numbers(hive: bytes, first: int, second: int, kind: int = 0) -> bytes:
    made = bytearray(hive)
    struct.pack_into("<II", made, 4, first, second)
    struct.pack_into("<I", made, 28, kind)
    made[508:512] = checksum(made).to_bytes(4, "little")
    return bytes(made)


def entry(sequence: int, pages: dict[int, bytes], bins_bytes: int) -> bytes:
    """A log entry as the specification describes it."""
    body = b"".join(struct.pack("<II", at, len(page)) for at, page in pages.items())
    body += b"".join(pages.values())
    size = (40 + len(body) + 511) // 512 * 512
    body += bytes(size - 40 - len(body))
    head = struct.pack("<4sIIIII", b"HvLE", size, 0, sequence, bins_bytes, len(pages))
    head += struct.pack("<Q", marvin32(body))
    return head + struct.pack("<Q", marvin32(head)) + body


def log(hive: bytes, first: int, *entries: bytes, kind: int = 6) -> bytes:
    return with_numbers(hive, first, first, kind)[:512] + b"".join(entries)


def old_log(hive: bytes, sequence: int, pages: dict[int, bytes], bins_bytes: int) -> bytes:
    vector = bytearray(bins_bytes // 512 // 8)
    for number in pages:
        vector[number // 8] |= 1 << number % 8
    head = b"DIRT" + bytes(vector)
    head += bytes(-len(head) % 512)
    return (
        with_numbers(hive, sequence, sequence, 1)[:512]
        + head
        + b"".join(pages[number] for number in sorted(pages))
    )


def page(sign: bytes, length: int = 512) -> bytes:
    return sign * length


def bins(data: bytes) -> bytes:
    return data[4096:]


def test_the_hash_is_the_one_that_windows_writes() -> None:
    header = bytes.fromhex(HEADER)
    assert marvin32(header[:32]) == int.from_bytes(header[32:40], "little")


def test_a_clean_hive_is_taken_as_it_is() -> None:
    hive = empty_hive()
    newer = log(hive, 7, entry(7, {512: page(b"x")}, 4096))
    assert recover(hive, [newer], "t").data == hive
    assert not is_dirty(hive)


def test_entries_of_both_logs_are_applied_in_the_order_of_their_numbers() -> None:
    hive = with_numbers(empty_hive(), 7, 6)
    later = log(hive, 8, entry(8, {512: page(b"c")}, 8192), entry(9, {4096: page(b"d")}, 8192))
    earlier = log(hive, 6, entry(6, {512: page(b"a")}, 4096), entry(7, {1024: page(b"b")}, 4096))
    found = recover(hive, [later, earlier], "t")
    assert (found.entries, found.unclean) == (4, False)
    assert len(found.data) == 4096 + 8192
    assert bins(found.data)[512:1024] == page(b"c")
    assert bins(found.data)[1024:1536] == page(b"b")
    assert bins(found.data)[4096:4608] == page(b"d")
    assert struct.unpack_from("<II", found.data, 4) == (10, 10)
    assert not is_dirty(found.data)


def test_a_torn_entry_and_all_behind_it_are_not_applied() -> None:
    hive = with_numbers(empty_hive(), 7, 6)
    torn = bytearray(entry(7, {512: page(b"b")}, 4096))
    torn[-100] ^= 1
    whole = [entry(6, {512: page(b"a")}, 4096), bytes(torn), entry(8, {512: page(b"c")}, 4096)]
    found = recover(hive, [log(hive, 6, *whole)], "t")
    assert found.entries == 1
    assert bins(found.data)[512:1024] == page(b"a")


def test_entries_that_the_hive_holds_already_are_not_applied_again() -> None:
    hive = with_numbers(empty_hive(), 9, 8)
    stale = log(hive, 5, entry(5, {512: page(b"a")}, 4096))
    found = recover(hive, [stale], "t")
    assert found.unclean
    assert found.data == hive


def test_a_lost_base_block_comes_from_the_log() -> None:
    hive = with_numbers(empty_hive(), 7, 6)
    broken = bytearray(hive)
    broken[40] ^= 0x55
    found = recover(bytes(broken), [log(hive, 6, entry(6, {512: page(b"a")}, 4096))], "t")
    assert found.entries == 1
    assert bins(found.data)[512:1024] == page(b"a")
    assert not is_dirty(found.data)
    with pytest.raises(DamagedError, match="base block"):
        recover(bytes(broken), [], "t")


def test_a_log_of_windows_before_8_1_is_applied_by_its_bitmap() -> None:
    hive = with_numbers(empty_hive(), 7, 6)
    made = old_log(hive, 7, {1: page(b"a"), 5: page(b"b")}, 4096)
    found = recover(hive, [made], "t")
    assert found.entries == 1
    assert bins(found.data)[512:1024] == page(b"a")
    assert bins(found.data)[5 * 512 : 6 * 512] == page(b"b")
    assert not is_dirty(found.data)


def test_a_dirty_hive_without_a_log_is_said_to_be_unclean() -> None:
    hive = with_numbers(empty_hive(), 7, 6)
    assert recover(hive, [b"", b"x" * 700], "t").unclean


@pytest.mark.parametrize("data", [b"", b"regf", bytes(8192), b"MZ" + bytes(8190)])
def test_what_is_no_hive_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedError, match="no registry hive"):
        recover(data, [], "t")


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 12))
def test_hostile_hives_and_logs_end_in_bytes_or_an_error(seed: int, count: int) -> None:
    chance = random.Random(seed)
    hive = with_numbers(empty_hive(), 7, 6)
    files = [
        bytearray(hive),
        bytearray(log(hive, 6, entry(6, {512: page(b"a")}, 8192), entry(7, {0: b"z"}, 4096))),
        bytearray(old_log(hive, 7, {1: page(b"a")}, 4096)),
    ]
    for _ in range(count):
        target = chance.choice(files)
        at = chance.choice((chance.randrange(len(target)), chance.randrange(600)))
        target[at] = chance.randrange(256)
    for file in files[:2]:
        if chance.random() < 0.5:
            file[508:512] = checksum(file).to_bytes(4, "little")
    try:
        found = recover(bytes(files[0]), [bytes(file) for file in files[1:]], "t")
    except Error:
        return
    assert len(found.data) <= 256 << 20
