"""Which call sites of the C core asked for memory or storage in vain: counted by address.

A program that includes failing.h writes the return addresses it met into the file of
ROLLPOINT_SITES; the disassembly of the same program says which ones there are at all.
Where the compiler made several calls of one in the source, they are one site.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

NATIVE = Path(__file__).resolve().parents[2] / "src" / "_native"
# Storage that only tests have: what fails there is no site of the product.
TEST_BACKENDS = {
    "io_crash.c", "io_fault.c", "io_order.c", "io_record.c", "io_simulate.c", "io_tree.c",
    "io_wrap.c", "journal_synthesize.c",
}  # fmt: skip
REACHED = 1
# A call on a repair's view, which is kept in memory: there is no storage that could fail.
FAILED_FOR_MEMORY = 0b100000
# The bits of a site that failed in every way: once and for ever, and with EIO and ENOSPC.
# Of the kernel: interrupted, and both errors; short counts are for reads and writes alone.
ALL = {"memory": 0b00110, "storage": 0b11110, "kernel": 0b11110010}


class Site(NamedTuple):
    """A call: what is asked for, where, and which of the calls of that line it is."""

    kind: str  # memory, storage or kernel
    callee: str
    file: str
    line: int
    number: int
    function: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        """Where it is, whatever the lines above it become."""
        return self.file, self.function, self.callee

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.callee}"


# Calls that cannot fail in these ways, and why: by file, function, and what is called.
CANNOT_FAIL = {
    ("extent_repair.c", "give_back", "rp_file_truncate"): "of a view: it keeps a number",
    ("extent_tables.c", "copy_grain", "rp_file_truncate"): "of a view: it keeps a number",
}


MEMORY = ("alloc", "strdup", "pthread_create")


def kind_of(callee: str) -> str:
    if callee.startswith(("rp_file_", "rp_dir_")):
        return "storage"
    memory = callee != "fallocate" and any(word in callee for word in MEMORY)
    return "memory" if memory else "kernel"


def table(program: Path) -> dict[int, Site]:
    """Every call of a wrapped function in the C core, by the address it returns to."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", program], capture_output=True, text=True, check=True
    ).stdout
    calls: dict[int, str] = {}
    callee = None
    line_of_code = r"^ +([0-9a-f]+):\t(?:call +[0-9a-f]+ <__wrap_(\w+)>)?"
    for match in re.finditer(line_of_code, listing, re.MULTILINE):
        if callee is not None:
            calls[int(match[1], 16)] = callee
        callee = match[2]
    told = subprocess.run(  # the place of a call is one byte before the place it returns to
        ["addr2line", "-f", "-e", program], text=True, capture_output=True, check=True,
        input="".join(f"{address - 1:x}\n" for address in calls),
    ).stdout.splitlines()  # fmt: skip
    found: dict[int, Site] = {}
    numbers: dict[tuple[str, str, int], int] = {}
    for (address, name), function, place in zip(calls.items(), told[::2], told[1::2], strict=True):
        path, _, line = place.partition(":")
        ends = ("free", "_free_compressor", "_free_decompressor", "rp_file_note", "_acknowledge")
        if "/_native/" not in path or Path(path).name in TEST_BACKENDS or name.endswith(ends):
            continue
        if kind_of(name) == "kernel" and Path(path).name != "io_posix.c":
            continue  # sockets and the like
        row = int(line.split()[0])
        written = _source(Path(path).name)[row - 1].count(f"{name} (")
        number = numbers[name, path, row] = numbers.get((name, path, row), 0) + 1
        found[address] = Site(
            kind_of(name), name, Path(path).name, row, number if written > 1 else 1, function
        )
    return found


@cache
def _source(name: str) -> list[str]:
    return (NATIVE / name).read_text().splitlines()


def is_failed(site: Site, bits: int) -> bool:
    return bits & (ALL[site.kind] | (FAILED_FOR_MEMORY if site.kind == "storage" else 0)) != 0


def is_failed_in_every_way(site: Site, bits: int) -> bool:
    return bits & ALL[site.kind] == ALL[site.kind] or (
        site.kind == "storage" and bits & FAILED_FOR_MEMORY != 0
    )


def met(path: Path, sites: dict[int, Site]) -> dict[Site, int]:
    """What runs of the program told: the bits of each site."""
    found: dict[Site, int] = {}
    for row in path.read_text().splitlines():
        _, address, bits = row.split()
        site = sites.get(int(address, 16))
        if site is not None:
            found[site] = found.get(site, 0) | int(bits)
    return found


def union(runs: Iterable[dict[Site, int]]) -> dict[Site, int]:
    together: dict[Site, int] = {}
    for run in runs:
        for site, bits in run.items():
            together[site] = together.get(site, 0) | bits
    return together


def unexplained(found: dict[Site, int]) -> list[str]:
    """Sites that have not failed and are not known to be unable to; names of no site."""
    places = {site.place for site in found}
    return [
        f"has not failed: {site} in {site.function}"
        for site, bits in sorted(found.items())
        if not is_failed(site, bits) and site.place not in CANNOT_FAIL
    ] + [
        f"no such call, which CANNOT_FAIL names: {' '.join(place)}"
        for place in CANNOT_FAIL
        if place not in places
    ]
