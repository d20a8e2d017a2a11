"""System calls that nothing in the cage has any business with: a seccomp filter.

Standard library alone, as worker.py says. The drivers run as they are, so this is a list
of what is refused: ways to new namespaces and user identities, other processes' memory,
kernel modules, keys, programs for the kernel, and sockets but those of this host's
processes. It keeps bugs of the kernel out of reach, not files: those are not there.

Source: linux/seccomp.h, linux/filter.h, linux/audit.h; asm/unistd_64.h (x86_64) and
asm-generic/unistd.h (aarch64) for the numbers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_PR_SET_SECCOMP, _FILTER = 22, 2
_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # places in struct seccomp_data
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* that clone() knows
_AF_UNIX = 1
_X32 = 0x40000000
# Number on x86_64, on aarch64 (-1: it has none).
REFUSED = {
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
}
_CLONE3 = 435  # its flags lie in memory, where no filter can look: libc takes clone without it
_MACHINES = {"x86_64": (0, 0xC000003E, 56, 41), "aarch64": (1, 0xC00000B7, 220, 198)}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def program(machine: str) -> bytes:
    """The filter for a machine as uname names it; b"" where there is none for it."""
    if machine not in _MACHINES:
        return b""
    column, architecture, clone, socket = _MACHINES[machine]
    refuse = _step(_RETURN, _REFUSE | errno.EPERM)
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_JUMP_EQUAL, architecture, 1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        _step(_JUMP_AT_LEAST, _X32, 0, 1),
        _step(_RETURN, _KILL),
        _step(_JUMP_EQUAL, _CLONE3, 0, 1),
        _step(_RETURN, _REFUSE | errno.ENOSYS),
    ]
    for numbers in REFUSED.values():
        if numbers[column] >= 0:
            steps += [_step(_JUMP_EQUAL, numbers[column], 0, 1), refuse]
    steps += [
        _step(_JUMP_EQUAL, clone, 0, 2),
        _step(_LOAD, _ARGUMENT),
        _step(_JUMP_SET, _NEW_NAMESPACES, 4, 3),
        _step(_JUMP_EQUAL, socket, 0, 2),
        _step(_LOAD, _ARGUMENT),
        _step(_JUMP_EQUAL, _AF_UNIX, 0, 1),
        _step(_RETURN, _ALLOW),
        refuse,
    ]
    return b"".join(steps)


def refuse_calls() -> None:
    """For this process and all it starts, for good. OSError where the kernel cannot."""
    code = program(os.uname().machine)
    if not code:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    filter_ = _Program(len(code) // 8, code)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(filter_), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
