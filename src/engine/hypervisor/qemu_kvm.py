"""Whether KVM works here, tried: the device file alone proves nothing.

Nested virtualisation can offer KVM and emulate every instruction; a firmware that needs
0.1 s under TCG was seen to need 6 s there.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time

from ..errors import HypervisorError
from .base import Drive, Machine
from .qemu_process import command_line, spawn

SECONDS_MAX = 2.0
_POLL_SECONDS = 0.005
# Prints "K" on COM1 and halts: mov dx,0x3f8; mov al,'K'; out dx,al; cli; hlt
_SECTOR = bytes.fromhex("baf803b04beefaf4ebfd").ljust(510, b"\0") + b"\x55\xaa"


def require_kvm(program: str) -> None:
    """Boot one sector under KVM.

    Raises:
        HypervisorError: It says nothing in time, or KVM cannot be opened.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise HypervisorError("/dev/kvm cannot be opened for KVM", "use the accelerator tcg")
    with tempfile.TemporaryDirectory(prefix="rollpoint-kvm-") as directory:
        image = os.path.join(directory, "probe.raw")
        with open(image, "wb") as file:
            file.write(_SECTOR.ljust(1 << 20, b"\0"))
        machine = Machine("probe", "KVM probe", (Drive(image, "raw"),), 16 << 20)
        arguments = command_line(machine, directory)
        arguments[arguments.index("-accel") + 1] = "kvm"
        pid = spawn(program, [program, *arguments], directory)
        ended = False
        try:
            deadline = time.monotonic() + SECONDS_MAX
            while "K" not in _said(directory, "console.log"):
                ended = ended or os.waitpid(pid, os.WNOHANG)[0] == pid
                if ended or time.monotonic() >= deadline:
                    words = " ".join(_said(directory, "qemu.log").split())
                    raise HypervisorError(
                        f"KVM does not prove usable: nothing booted in {SECONDS_MAX:g} s"
                        + (f": {words}" if words else ""),
                        "use the accelerator tcg",
                    )
                time.sleep(_POLL_SECONDS)
        finally:
            if not ended:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _said(directory: str, name: str) -> str:
    try:
        with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
