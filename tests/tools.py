"""Where the project is, and what a missing program means."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Debian package of each program that tests call.
PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "qemu-system-x86_64": "qemu-system-x86",
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "nbdkit": "nbdkit",
    "fio": "fio",
    "nasm": "nasm",
    "setpriv": "util-linux",
    "vmdkinfo": "libvmdk-utils",
    "gcc": "gcc",
}


def require_tool(name: str) -> str:
    """Path of a program. In CI a missing one fails the test, elsewhere it skips it."""
    found = shutil.which(name)
    if found is not None:
        return found
    reason = f"{name} is missing: apt-get install --no-install-recommends {PACKAGES[name]}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
