"""Rights on NTFS: what a conversion writes is as well guarded as what it lies beside.

ntfs-3g lets everybody write to a new file. A driver or a script that Windows runs would be a
way to its administrator's rights for every user of the guest.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require_tool
from rollpoint.access.local import LocalFileSystem

RIGHTS = "system.ntfs_acl"
# A security descriptor as long as those of Windows: owned by the administrators (S-1-5-32-544),
# who alone may do anything.
ALLOWED = "00031800ff011f0001020000000000052000000020020000"
GUARDED = bytes.fromhex(
    "0100048014000000240000000000000034000000"
    "01020000000000052000000020020000"
    "01020000000000052000000020020000"
    "0200c80008000000" + ALLOWED * 8
)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    image, root = tmp_path / "ntfs", tmp_path / "mounted"
    root.mkdir()
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run([require_tool("mkntfs"), "-Q", "-F", "-q", image], check=True)
    done = subprocess.run(
        ["ntfs-3g", "-o", "streams_interface=none", image, root],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"NTFS cannot be mounted here: {done.stderr.strip()}")
    try:
        yield root
    finally:
        subprocess.run(["umount", root], check=True)


def rights(path: Path) -> bytes:
    buffer = ctypes.create_string_buffer(4096)
    length = ctypes.CDLL(None).getxattr(os.fsencode(path), RIGHTS.encode(), buffer, 4096)
    assert length > 0
    return buffer.raw[:length]


def test_what_is_replaced_keeps_its_rights_and_what_is_new_gets_its_directorys(
    volume: Path,
) -> None:
    drivers = volume / "drivers"
    drivers.mkdir()
    (drivers / "old.sys").write_bytes(b"old")
    everybody = rights(drivers / "old.sys")
    os.setxattr(drivers, RIGHTS, GUARDED)
    guarded = rights(drivers)
    assert guarded != everybody
    fs = LocalFileSystem(volume)
    fs.replace("drivers/new.sys", b"new")
    fs.make_directory("drivers/below")
    fs.replace("drivers/old.sys", b"newer")
    assert rights(drivers / "new.sys") == guarded
    assert rights(drivers / "below") == guarded
    assert rights(drivers / "old.sys") == everybody
    os.setxattr(drivers / "old.sys", RIGHTS, GUARDED)
    fs.replace("drivers/old.sys", b"newest")
    assert rights(drivers / "old.sys") == guarded
    fs.close()
