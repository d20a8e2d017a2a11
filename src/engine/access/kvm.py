"""Whether KVM serves on this host, by trying it: its device can be there and be of no use.

Nested virtualization comes in kinds under which QEMU aborts, or a guest is emulated a
thousand times slower than QEMU's own translation would run it. So a boot sector counts
to a hundred million, which takes a processor a twentieth of a second, an emulator minutes.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import tempfile

LIMIT_SECONDS = 5.0
# mov ecx, 100000000; dec ecx; jnz; mov al, 3; out 0xf4, al; hlt; jmp
_COUNT = bytes.fromhex("66b900e1f505 6649 75fc b003 e6f4 f4 ebfd")
_DISK_BYTES = 1 << 20
_DONE = 7  # isa-debug-exit: twice what was written, and one; 1 is any failure of QEMU


def boot_sector() -> bytes:
    """A disk that counts, and tells QEMU to exit."""
    sector = _COUNT.ljust(510, b"\0") + b"\x55\xaa"
    return sector.ljust(_DISK_BYTES, b"\0")


def counts(accelerator: str, limit_seconds: float) -> bool:
    """Whether the disk has counted under that accelerator in time."""
    with tempfile.NamedTemporaryFile() as disk:
        disk.write(boot_sector())
        disk.flush()
        command = ["prlimit", "--core=0", "--", "qemu-system-x86_64"]
        command += ["-accel", accelerator, "-cpu", "max", "-m", "16", "-display", "none"]
        command += ["-nodefaults", "-no-user-config", "-no-reboot"]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        command += ["-drive", f"if=ide,format=raw,snapshot=on,file={disk.name}"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=limit_seconds,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == _DONE


@functools.cache
def usable() -> bool:
    """Whether an appliance is faster with KVM than without. Asked once in a process."""
    if platform.machine() != "x86_64" or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    return counts("kvm", LIMIT_SECONDS)
