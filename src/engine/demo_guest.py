"""The guest that the demo protects: its program, and what it leaves on its disks.

The program is demo_guest.asm, which says what it does and prints; a test assembles it
and compares. What is here in Python reads the guest's disks without the guest, so that
its findings on the console can be compared with someone else's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from .units import SECTOR_BYTES

DISK_BYTES_MIN = 2 << 20
RING_SECTOR = 2051
STRIDE_SECTORS = 7
SLOTS = 256
SPREAD = 37
FOUND_MARKER = "ROLLPOINT FOUND "
WRITING_MARKER = "ROLLPOINT WRITING "
COUNT_MARKER = "COUNT "

_MAGIC = b"RPGUEST1"
_WORDS = 127
_FILL_WORDS = 123
_MASK = 0xFFFFFFFF

# sector 0 up to the partition table, and sectors 1 and 2, without their trailing zeroes
_BOOT_CODE = bytes.fromhex(
    "ea057c000031c08ed88ec08ed0bc007cfcfbc706927c0200c706947c007e66c706987c01000000b442be907c"
    "cd137209c706927c0100e9c70150bea07ce80e0058660fb6c4e81600e80e00f4ebfdac84c07405e82600ebf6"
    "c3beb17cebf066bb0a00000031c96631d266f7f352416685c075f3580430e80300e2f8c388c4bafd03eca820"
    "74fb88e0baf803eec300000010000000000000000000000000000000524f4c4c504f494e54204552524f5220"
    "000d0a"
)
_PARTITION = bytes.fromhex("80ffffffdaffffff40000000c00f0000")
_MAIN_CODE = bytes.fromhex(
    "baf90330c0eebafb03b080eebaf803b001ee4230c0eebafb03b003eebe2c80e82cfebd0000e8a30066a19880"
    "66a39c80bd0100e8950066a19c80662b0698806683f801760d833e9480007506c70694806f80be3e80e8f6fd"
    "66a19c80e8fffdb020e818fe66a19880e8f3fd8b36948085f6754fbe4f80e8d5fdbe7a8066a19880664066a3"
    "988056bd0000e80a01bd0100e804015e85f6750abe8d80f60698801f750de8a9fd66a19880e8b2fde8aafdb4"
    "8631c9bad007cd1531f666a198806640ebc0e889fde891fde980fd6631c066a3988066a3a480664866a3a080"
    "c706a8800000660fb706a880e8da00c706947c0090b442e8c0006631c0bf0090b98000f366af744d66a10890"
    "666bd0256681e2ff0000003b16a8807532e8b800be0090bf0092b98000f366a7752166a1089066ff06a48066"
    "3b069880720466a39880663b06a080770c66a3a080eb06c70694805580ff06a880813ea88000017285833e94"
    "8000753266a19880663d00010000760666b800010000663b06a48075136685c07414660306a0806648663b06"
    "98807406c70694806280c366a19880e83600666b069880256625ff000000e81800c706947c0092b8004389ea"
    "80ca80be907ccd130f8275fcc3666bc00766050308000066a3987cc3bf009266c7055250475566c745044553"
    "543166894508660fb7d56689550c66678d044283c710b97b006669c00d66190066055ff36e3c66abe2efbe00"
    "92b97f0066bac59d1c8166ad6631c26669d293010001e2f2668915c3524f4c4c504f494e542047554553540d"
    "0a00524f4c4c504f494e5420464f554e442000204f4b0d0a00204241442064616d616765640020424144206d"
    "697373696e670020424144206f7264657200524f4c4c504f494e542057524954494e472000434f554e5420"
)
PROGRAM = (
    _BOOT_CODE.ljust(446, b"\0")
    + _PARTITION.ljust(64, b"\0")
    + b"\x55\xaa"
    + _MAIN_CODE.ljust(2 * SECTOR_BYTES, b"\0")
)


class Found(NamedTuple):
    """What the records of one disk say.

    Args:
        newest: The highest counter, 0 if there is no record.
        problem: Empty, "damaged" or "missing": the guest's own words.
    """

    newest: int
    problem: str


def record(counter: int, disk: int) -> bytes:
    """The sector that the guest writes for a counter to disk 0 or 1."""
    words = [*struct.unpack("<2I", _MAGIC), counter, disk]
    value = (2 * counter + disk) & _MASK
    for _ in range(_FILL_WORDS):
        value = (value * 1664525 + 1013904223) & _MASK
        words.append(value)
    total = 0x811C9DC5
    for word in words:
        total = ((total ^ word) * 0x01000193) & _MASK
    return struct.pack(f"<{_WORDS + 1}I", *words, total)


def place_bytes(counter: int) -> int:
    """Offset on the disk of the record for a counter."""
    slot = counter * SPREAD % SLOTS
    return (RING_SECTOR + slot * STRIDE_SECTORS) * SECTOR_BYTES


def examine(read: Callable[[int, int], bytes], disk: int) -> Found:
    """Look at all records of a disk, as the guest does when it boots.

    Args:
        read: Returns so many bytes from an offset of the disk.
        disk: 0 or 1.
    """
    counters = []
    damaged = False
    for slot in range(SLOTS):
        place = (RING_SECTOR + slot * STRIDE_SECTORS) * SECTOR_BYTES
        sector = read(SECTOR_BYTES, place)
        if not any(sector):
            continue
        (counter,) = struct.unpack_from("<I", sector, 8)
        if place_bytes(counter) == place and sector == record(counter, disk):
            counters.append(counter)
        else:
            damaged = True
    newest = max(counters, default=0)
    kept = range(max(1, newest - SLOTS + 1), newest + 1)
    if damaged:
        return Found(newest, "damaged")
    return Found(newest, "" if sorted(counters) == list(kept) else "missing")


def parse_found(line: str) -> tuple[int, int, str]:
    """Both counters and the verdict ("OK", "BAD damaged" ...) of a FOUND line."""
    first, second, verdict = line.removeprefix(FOUND_MARKER).split(" ", 2)
    return int(first), int(second), verdict
