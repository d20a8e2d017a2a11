"""Inputs of the fuzz targets: rows of chunks that make files. The format is told in fuzz.h."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

SECTOR = 512
MAGICS = (b"KDMV", b"COWD", b"\xbe\xba\xfe\xca")
_SIZE_MAX = 16 << 20
_REPEAT_MAX = 131072

Pieces = list[tuple[int, bytes]]  # (offset, bytes) of a file


def chunk(tag: str, payload: bytes) -> bytes:
    return struct.pack("<BH", ord(tag), len(payload)) + payload


def _place(offset: int) -> bytes:
    return struct.pack("<IB", offset & 0xFFFFFFFF, offset >> 32)


def begin(kind: int = 0, sectors: int = 0, flags: int = 0) -> bytes:
    """The next file begins."""
    return chunk("F", struct.pack("<BBQ", kind, flags, sectors))


def size(length: int) -> bytes:
    return chunk("S", struct.pack("<Q", length))


def patch(offset: int, data: bytes) -> bytes:
    return chunk("P", _place(offset) + data)


def repeat(offset: int, count: int, data: bytes) -> bytes:
    return chunk("R", _place(offset) + struct.pack("<H", count) + data)


def series(offset: int, count: int, first: int, step: int, width: int = 4) -> bytes:
    """``count`` integers of ``width`` bytes: first, first + step, ..."""
    wide = width == 8
    return chunk("A", _place(offset) + struct.pack("<HBQQ", count, wide, first, step))


def grain(offset: int, lba: int, data: bytes) -> bytes:
    """A stream's grain: marker and zlib data, stored."""
    return chunk("Z", _place(offset) + struct.pack("<Q", lba) + data)


def operations(data: bytes) -> bytes:
    return chunk("O", data)


def of_pieces(pieces: Iterable[tuple[int, bytes]], length: int | None = None) -> bytes:
    """A file as patches: runs of sectors that are not zero, repeated ones once."""
    out = []
    for offset, data in pieces:
        at = 0
        while at < len(data):
            sector = data[at : at + SECTOR]
            stop = at + SECTOR
            if not any(sector):
                at = stop
                continue
            while data[stop : stop + SECTOR] == sector:
                stop += SECTOR
            if stop - at > SECTOR:
                unit = _period(sector)
                out.append(repeat(offset + at, (stop - at) // len(unit), unit))
            else:
                while any(data[stop : stop + SECTOR]) and stop - at < 8192:
                    if data[stop : stop + SECTOR] == data[stop + SECTOR : stop + 2 * SECTOR]:
                        break
                    stop += SECTOR
                out.append(patch(offset + at, data[at:stop].rstrip(b"\0")))
            at = stop
    if length is not None:
        out.append(size(length))
    return b"".join(out)


def _period(sector: bytes) -> bytes:
    for length in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        if sector == sector[:length] * (len(sector) // length):
            return sector[:length]
    return sector


def of_file(data: bytes) -> bytes:
    """A whole file as patches."""
    return of_pieces([(0, data)], len(data))


def chunks(data: bytes) -> list[tuple[str, bytes]]:
    found = []
    while len(data) >= 3 and len(found) < 256:
        tag, length = struct.unpack_from("<BH", data)
        found.append((chr(tag), data[3 : 3 + length]))
        data = data[3 + length :]
    return found


def expand(data: bytes) -> list[bytes]:
    """The files that an input makes, for looking at them with other tools."""
    if data[:4] in MAGICS:
        return [data]
    files: list[bytearray] = []
    sized = False
    for tag, payload in chunks(data):
        if tag == "O":
            continue
        if tag == "F" or not files:
            files.append(bytearray())
            sized = False
        if tag == "S" and len(payload) >= 8:
            sized = True
            length = struct.unpack_from("<Q", payload)[0] % (_SIZE_MAX + 1)
            files[-1] = files[-1][:length].ljust(length, b"\0")
        else:
            _apply(files[-1], tag, payload)
        if not sized:
            files[-1].extend(bytes(-len(files[-1]) % SECTOR))
    return [bytes(file) for file in files]


def _apply(file: bytearray, tag: str, payload: bytes) -> None:
    offset = int.from_bytes(payload[:5], "little")
    if tag == "P" and len(payload) > 5:
        data = payload[5:]
    elif tag == "R" and len(payload) > 7:
        data = (payload[7:] * struct.unpack_from("<H", payload, 5)[0])[:_REPEAT_MAX]
    elif tag == "A" and len(payload) >= 24:
        count, wide, first, step = struct.unpack_from("<HBQQ", payload, 5)
        width = 8 if wide % 2 else 4
        values = ((first + i * step) & ((1 << 8 * width) - 1) for i in range(count % 8193))
        data = b"".join(value.to_bytes(width, "little") for value in values)
    elif tag == "Z" and len(payload) >= 13:
        data = _stored(payload[5:13], payload[13:])
    else:
        return
    data = data[: max(_SIZE_MAX - offset, 0)]
    if data:
        file.extend(bytes(max(offset + len(data) - len(file), 0)))
        file[offset : offset + len(data)] = data


def _stored(lba: bytes, data: bytes) -> bytes:
    data = data[:65535]
    head = struct.pack("<HH", len(data), len(data) ^ 0xFFFF)
    packed = b"\x78\x01\x01" + head + data + struct.pack(">I", zlib.adler32(data))
    return lba + struct.pack("<I", len(packed)) + packed
