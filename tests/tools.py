"""Where the project is, and what a missing program means."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import socket
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

ROOT = Path(__file__).parent.parent
DEBIAN_PYTHON = Path("/usr/lib/python3/dist-packages")

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
    "dumpe2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "fio": "fio",
    "nasm": "nasm",
    "setpriv": "util-linux",
    "vmdkinfo": "libvmdk-utils",
    "gcc": "gcc",
    "objdump": "binutils",
    "addr2line": "binutils",
    "apt-get": "apt",
    "blkid": "util-linux",
    "udevadm": "udev",
    "ip": "iproute2",
    "unshare": "util-linux",
    "netplan": "netplan.io",
    "busybox": "busybox-static",
    "chromium": "chromium",
    "chroot": "coreutils",
    "cpio": "cpio",
    "debootstrap": "debootstrap",
    "debugfs": "e2fsprogs",
    "depmod": "kmod",
    "dracut": "dracut-core",
    "grub-mkimage": "grub-common",
    "lvm": "lvm2",
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext2": "e2fsprogs",
    "mkfs.ext3": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mkfs.xfs": "xfsprogs",
    "mkntfs": "ntfs-3g",
    "mkswap": "util-linux",
    "cryptsetup": "cryptsetup-bin",
    "pvcreate": "lvm2",
    "sfdisk": "fdisk",
    "sgdisk": "gdisk",
    "zstd": "zstd",
    "bwrap": "bubblewrap",
    "nbdfuse": "libnbd-bin",
    "fuse2fs": "fuse2fs",
    "ntfs-3g": "ntfs-3g",
    "losetup": "util-linux",
    "go": "golang-go",
    "openssl": "openssl",
    "clang-14": "clang-14 libclang-rt-14-dev",
}


def require_tool(name: str) -> str:
    """Path of a program. In CI a missing one fails the test, elsewhere it skips it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is not None:
        return found
    missing(f"{name} is missing: apt-get install --no-install-recommends {PACKAGES[name]}")


def require_library(file: str, package: str) -> None:
    """That a shared library is here. In CI a missing one fails the test, elsewhere it skips it."""
    try:
        ctypes.CDLL(file)
    except OSError:
        missing(f"{file} is missing: apt-get install --no-install-recommends {package}")


def listens(path: Path) -> bool:
    """Whether a server accepts on this Unix socket: its file is there before it does."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


_LIBNBD = threading.Lock()  # writers in a test ask for it at once


def libnbd() -> ModuleType:
    """Debian's libnbd for Python, without putting all of Debian's modules in the way."""
    with _LIBNBD:
        return _libnbd()


def _libnbd() -> ModuleType:
    if "nbd" in sys.modules:
        return sys.modules["nbd"]
    for name in ("libnbdmod", "nbd"):
        tag = f".cpython-{sys.version_info[0]}{sys.version_info[1]}-x86_64-linux-gnu.so"
        path = DEBIAN_PYTHON / (name + (tag if name == "libnbdmod" else ".py"))
        spec = importlib.util.spec_from_file_location(name, path) if path.exists() else None
        if spec is None or spec.loader is None:
            break
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    else:
        return sys.modules["nbd"]
    sys.modules.pop("libnbdmod", None)
    missing("libnbd's module for this Python is missing: apt-get install python3-libnbd")


def missing(reason: str) -> NoReturn:
    """Something that a test needs is not there: see require_tool."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
