"""Registry hives for tests: an empty one laid out by hand, filled by libhivex itself."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from rollpoint.guest.hive_log import checksum
from rollpoint.guest.hives import Hive, Value
from tools import require_library

Keys = Mapping[str, Mapping[str, Value]]  # "A\\B" -> its values


def empty_hive(sequence: int = 7) -> bytes:
    """A root key and nothing else, in one bin."""
    name = b"ROOT"
    root_at, security_at = 0x20, 0x80
    no = 0xFFFFFFFF
    root = b"nk" + struct.pack(
        "<HQIIIIIIIIIIIIIIIHH",
        0x2C,
        0x01D9000000000000,
        0,
        no,
        0,
        0,
        no,
        no,
        0,
        no,
        security_at,
        no,
        0,
        0,
        0,
        0,
        0,
        len(name),
        0,
    )
    root += name
    descriptor = bytes.fromhex("0100048014000000140000000000000014000000") + bytes(8)
    security = b"sk" + struct.pack("<HIIII", 0, security_at, security_at, 1, len(descriptor))
    security += descriptor
    bins = bytearray(4096)
    bins[:32] = b"hbin" + struct.pack("<II8xQI", 0, 4096, 0x01D9000000000000, 0)
    for at, cell in ((root_at, root), (security_at, security)):
        size = 0x60
        assert len(cell) + 4 <= size
        bins[at : at + 4] = struct.pack("<i", -size)
        bins[at + 4 : at + 4 + len(cell)] = cell
    free_at = security_at + 0x60
    bins[free_at : free_at + 4] = struct.pack("<i", 4096 - free_at)
    base = bytearray(4096)
    base[:4] = b"regf"
    struct.pack_into("<IIQIIIIIII", base, 4, sequence, sequence, 0, 1, 5, 0, 1, root_at, 4096, 1)
    base[508:512] = checksum(bytes(base)).to_bytes(4, "little")
    return bytes(base + bins)


def hive(keys: Keys) -> bytes:
    """A hive with these keys and values. Without libhivex the test is skipped, or fails in CI."""
    require_library("libhivex.so.0", "libhivex0")
    with Hive(empty_hive(), "test", writable=True) as made:
        for path, values in keys.items():
            for name, value in values.items():
                made.set(path.split("\\"), name, value, "test")
        return made.save()
