"""Files of real layouts, damaged at random: a conversion ends well, or in an error of ours.

Reproduce with the seed in the test's id.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import msgspec
import pytest
from linux_trees import Content, found, write
from rollpoint.errors import Error
from rollpoint.guest.base import Wanted
from rollpoint.guest.convert import convert
from test_guest_distributions import LAYOUTS

SEEDS = range(40)
WORDS = [
    b"/dev/sda1", b"/dev/sda3", b"root=/dev/sda2", b"UUID=", b"\\040", b"\0", b"\xff\xfe", b"\r",
    b"\n", b"}", b"{", b"menuentry 'x' {\n", b"submenu y {\n", b"../../..", b"console=ttyS0", b'"',
    b"'", b"#", b"=", b" ", b"\x1b]0;x\x07", b"subvol=../..", b"$kernelopts", b"(hd0)",
    "set default=²\nblscfg\n".encode(), "/dev/sda١".encode(), b"9" * 5000,
]  # fmt: skip
EDITED = ("etc/", "grub", "loader/", "extlinux", "modules.", "boot/grub")


def damaged(rng: random.Random, data: bytes) -> bytes:
    """One to six changes: words put in or in place, stretches lost, doubled or moved."""
    for _ in range(rng.randint(1, 6)):
        at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        kind = rng.randrange(5)
        if kind == 0:
            data = data[:at] + rng.choice(WORDS) + data[at:]
        elif kind == 1:
            data = data[:at] + data[to:]
        elif kind == 2:
            data = data[:to] + data[at:]
        elif kind == 3:
            data = data[:at] + bytes(rng.randrange(256) for _ in range(4)) + data[at:]
        else:
            lines = data.splitlines(keepends=True)
            rng.shuffle(lines)
            data = b"".join(lines)
    return data[:200_000]


def damaged_files(rng: random.Random, files: dict[str, Content]) -> dict[str, Content]:
    wanted = [name for name in files if any(part in name for part in EDITED)]
    for name in rng.sample(sorted(wanted), min(len(wanted), rng.randint(1, 4))):
        content = files[name]
        if isinstance(content, tuple):
            files[name] = (rng.choice(["/", "..", name, "../../../../etc/passwd", "\x1b"]),)
        else:
            data = content.encode() if isinstance(content, str) else content
            files[name] = damaged(rng, data)
    return files


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_files_are_converted_or_refused(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    layout = LAYOUTS[rng.choice(sorted(LAYOUTS))]
    roots = {}
    for volume, files in layout.files.items():
        place = tmp_path / "guest" / volume.replace("/", "_")
        roots[volume] = write(place, damaged_files(rng, dict(files)))
    outside = {p.name for p in tmp_path.iterdir()}
    wanted = Wanted(
        controller="pvscsi",
        nic="vmxnet3",
        firmware="uefi" if layout.firmware == "uefi" else "bios",
        serial_console=rng.random() < 0.5,
    )
    told: list[str] = []
    with contextlib.suppress(Error):
        here = found(roots, layout.volumes)
        try:
            edits = convert(here, wanted)
            msgspec.json.encode([here.guest, edits.changes, edits.warnings])
            told = edits.warnings + [change.after + change.before for change in edits.changes]
            assert convert(here, wanted).changes == []
        finally:
            here.tree.close()
        again = found(roots, layout.volumes)
        assert convert(again, wanted).changes == []
        again.tree.close()
    assert all(c.isprintable() or c in "\n\t" for text in told for c in text)
    assert {p.name for p in tmp_path.iterdir()} == outside
