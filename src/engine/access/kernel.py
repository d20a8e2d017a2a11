"""Kernel mounts inside the cage: loop devices that clear themselves, fixed types and options.

Standard library alone, as worker.py says.

Source: linux/loop.h (LOOP_CONFIGURE, struct loop_config), linux/mount.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import time

from .beneath import Refused

PRIVATE_BELOW = 0x40000 | 0x4000  # MS_PRIVATE, MS_REC
NOSUID, NODEV, NOEXEC, NOSYMFOLLOW, READ_ONLY = 2, 4, 8, 256, 1
_MNT_DETACH = 2
_POLL_SECONDS = 0.002
_CLEAR_SECONDS = 30.0
_LOOP_GET_FREE, _LOOP_CONFIGURE, _LOOP_GET_STATUS = 0x4C82, 0x4C0A, 0x4C05
_LO_READ_ONLY, _LO_AUTOCLEAR = 1, 4
_TRIES = 64
_LIBC = ctypes.CDLL(None, use_errno=True)
# Kind: driver, options, options for reading alone (no journal is replayed).
DRIVERS = {
    "ext2": ("ext4", "errors=remount-ro", "noload"),
    "ext3": ("ext4", "errors=remount-ro", "noload"),
    "ext4": ("ext4", "errors=remount-ro", "noload"),
    "xfs": ("xfs", "nouuid", "nouuid,norecovery"),
    "btrfs": ("btrfs", "", "rescue=nologreplay"),
    "vfat": ("vfat", "utf8", "utf8"),
    "exfat": ("exfat", "", ""),
    "iso9660": ("iso9660", "", ""),
    "squashfs": ("squashfs", "", ""),
}
NEVER_WRITTEN = ("iso9660", "squashfs")


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """mount(2); raises OSError."""
    done = _LIBC.mount(
        source.encode(),
        target.encode(),
        kind.encode(),
        ctypes.c_ulong(flags),
        options.encode("utf-8", "surrogateescape"),
    )
    if done != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def unmount(target: str) -> None:
    """umount2(2); what is not mounted is no error. A busy one goes when it can."""
    place = target.encode()
    for _ in range(100):
        if _LIBC.umount2(place, 0) == 0 or ctypes.get_errno() != errno.EBUSY:
            return
        time.sleep(_POLL_SECONDS)
    _LIBC.umount2(place, _MNT_DETACH)


def attach_loop(path: str, writable: bool) -> tuple[int, str]:
    """A loop device on a file: its descriptor and path.

    It is gone with the last who has it open or mounted, however that ends.
    """
    backing = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    flags = _LO_AUTOCLEAR | (0 if writable else _LO_READ_ONLY)
    info = struct.pack("<5Q4I64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    config = struct.pack("<II", backing, 0) + info + bytes(64)
    try:
        for _ in range(_TRIES):
            place = f"/dev/loop{fcntl.ioctl(control, _LOOP_GET_FREE)}"
            loop = os.open(place, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(loop, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(loop)
                if error.errno == errno.EBUSY:  # somebody was faster
                    continue
                raise
            return loop, place
    finally:
        os.close(control)
        os.close(backing)
    raise Refused("guest", "no loop device is free on this host")


def wait_cleared(place: str) -> None:
    """Until a loop device has let go of its file: all of it has been written then."""
    deadline = time.monotonic() + _CLEAR_SECONDS
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            loop = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(loop, _LOOP_GET_STATUS, bytes(232))  # ENXIO when it is free
            finally:
                os.close(loop)
            time.sleep(_POLL_SECONDS)


def mount_volume(volume: str, target: str, kind: str, writable: bool, subvolume: str) -> str:
    """Mount what a file holds; the loop device's path."""
    driver, changing, reading = DRIVERS[kind]
    writable = writable and kind not in NEVER_WRITTEN
    options = changing if writable else reading
    if subvolume:
        if kind != "btrfs" or any(c in subvolume for c in ",\\\0\n"):
            raise Refused("guest", f"it has no subvolume {subvolume!a}")
        options = ",".join(filter(None, (options, f"subvol={subvolume}")))
    try:
        loop, place = attach_loop(volume, writable)
    except OSError as error:
        raise Refused("guest", f"no loop device can be made: {error}") from None
    flags = NOSUID | NODEV | NOEXEC | NOSYMFOLLOW | (0 if writable else READ_ONLY)
    try:
        mount(place, target, driver, flags, options)
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.ENODEV:
            reason = f"this host's kernel has no {driver}"
        raise Refused("guest", f"the kernel refused the volume: {reason}") from None
    finally:
        os.close(loop)
    return place
