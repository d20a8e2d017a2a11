"""The disk that conversions are measured on: half holes, a quarter text, a quarter random.

Text is lines as a log and prose leave them: phrases of a fixed vocabulary, drawn by Zipf's law,
with times and numbers that go on. zlib -6 makes a third to a quarter of it, grain by grain, as
it does of real text; no block repeats. Extents have mixed sizes, 64 KiB to 8 MiB in steps of
4 KiB, so that a grain of 64 KiB may hold text, random bytes and a hole.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
BLOCK_BYTES = 4 * KIB
SMALLEST_BYTES, LARGEST_BYTES = 64 * KIB, 8 * MIB
SHARES = {"hole": 2, "text": 1, "random": 1}
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
WORDS, PHRASES = 4000, 12_000
LEVELS = ("info", "info", "info", "notice", "warning", "error")


class Text:
    """An endless text, the same for the same seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        letters = list(accumulate(1 / (place + 2) for place in range(len(LETTERS))))
        words = [
            "".join(rng.choices(LETTERS, cum_weights=letters, k=rng.randint(2, 10)))
            for _ in range(WORDS)
        ]
        by_rank = list(accumulate(1 / (place + 3) for place in range(WORDS)))
        self._phrases = [
            " ".join(rng.choices(words, cum_weights=by_rank, k=rng.randint(1, 6)))
            for _ in range(PHRASES)
        ]
        self._by_rank = list(accumulate(1 / (place + 8) for place in range(PHRASES)))
        self._services = [f"{word}d[{rng.randrange(30_000)}]" for word in words[:40]]
        self._second = 0
        self._left = bytearray()

    def take(self, length: int) -> bytes:
        while len(self._left) < length:
            self._left += self._lines().encode()
        taken = bytes(self._left[:length])
        del self._left[:length]
        return taken

    def _lines(self) -> str:
        """About 200 KiB more."""
        rng = self._rng
        phrases = rng.choices(self._phrases, cum_weights=self._by_rank, k=8192)
        lines = []
        for place in range(0, len(phrases), 4):
            draw = rng.getrandbits(32)
            self._second += draw & 3
            minute, second = divmod(self._second, 60)
            hour, minute = divmod(minute, 60)
            stamp = f"{hour % 24:02}:{minute:02}:{second:02}.{draw >> 22:03}"
            service = self._services[(draw >> 2) % len(self._services)]
            level = LEVELS[(draw >> 8) % len(LEVELS)]
            said = " ".join(phrases[place : place + 4])
            lines.append(f"{stamp} {service}: {level}: {said} {draw >> 12}\n")
        return "".join(lines)


def extents(disk_bytes: int, rng: random.Random) -> Iterator[tuple[str, int]]:
    """Kinds and lengths that fill the disk, each kind with its share to the block."""
    parts = sum(SHARES.values())
    left = {kind: disk_bytes * share // parts for kind, share in SHARES.items()}
    largest = min(LARGEST_BYTES, disk_bytes // 32)
    before = ""
    while any(left.values()):
        kinds = [kind for kind, rest in left.items() if rest and kind != before]
        kinds = kinds or [kind for kind, rest in left.items() if rest]
        kind = rng.choices(kinds, weights=[left[kind] for kind in kinds])[0]
        length = int(SMALLEST_BYTES * (largest / SMALLEST_BYTES) ** rng.random())
        length = min(length // BLOCK_BYTES * BLOCK_BYTES, left[kind])
        left[kind] -= length
        before = kind
        yield kind, length


def write_mixed_disk(path: Path, disk_bytes: int, seed: int) -> None:
    """A raw image of the disk, its holes never written."""
    rng = random.Random(seed)
    text = Text(rng)
    with path.open("wb") as file:
        for kind, length in extents(disk_bytes, rng):
            if kind == "hole":
                file.seek(length, 1)
            elif kind == "text":
                file.write(text.take(length))
            else:
                file.write(rng.randbytes(length))
        file.truncate(disk_bytes)
