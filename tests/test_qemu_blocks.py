"""Freezing the disks of a QEMU that runs, killed at every word to it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypervisor_makers import QemuMaker
from rollpoint.disk import open_disk
from rollpoint.errors import HypervisorError
from rollpoint.hypervisor.base import Drive
from rollpoint.hypervisor.qmp import Qmp


def freezes_and_dies(maker: QemuMaker, overlays: dict[str, str], number: int) -> bool:
    """Whether a process of its own was killed at that command of QMP; False: it came to the end."""
    child = os.fork()
    if child == 0:
        left, execute = [number], Qmp.execute

        def dying(self: Qmp, command: str, **arguments: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return execute(self, command, **arguments)

        pytest.MonkeyPatch().setattr(Qmp, "execute", dying)
        try:
            maker.new().freeze("vm", overlays)
        finally:
            os._exit(0)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended) != 0


def test_asked_again_after_a_kill_it_is_frozen_and_goes_on(tmp_path: Path) -> None:
    maker = QemuMaker(tmp_path)
    try:
        top, number, killed = maker.chain("a")[1], 0, True
        maker.new().start(maker.machine(Drive(top)))
        while killed:
            maker.write("vm", 0, number + 1, 4096 * number, 4096)
            over = maker.overlay(top, number + 2)
            killed = freezes_and_dies(maker, {top: over}, number)
            maker.new().freeze("vm", {top: over})
            assert maker.new().status("vm") == "running"
            assert maker.drives("vm") == [over]
            for back in range(number + 1):
                assert maker.reads("vm", 0, back + 1, 4096 * back, 4096)
            top, number = over, number + 1
        assert number > 6, "it says more to QEMU than that"
        maker.new().power_off("vm")
        with open_disk(top) as disk:
            for back in range(number):
                assert disk.pread(4096, 4096 * back) == bytes([back + 1]) * 4096
    finally:
        maker.close()


def test_an_overlay_that_qemu_cannot_open_freezes_nothing(tmp_path: Path) -> None:
    maker = QemuMaker(tmp_path)
    try:
        chains = [maker.chain(name)[1] for name in ("a", "b")]
        maker.new().start(maker.machine(*map(Drive, chains)))
        overlays = {top: maker.overlay(top, 2) for top in chains}
        extent = Path(overlays[chains[1]].removesuffix(".vmdk") + "-delta.vmdk")
        whole = extent.read_bytes()
        extent.write_bytes(whole[:4])
        with pytest.raises(HypervisorError, match="blockdev-add"):
            maker.new().freeze("vm", overlays)
        assert maker.drives("vm") == chains
        assert maker.new().status("vm") == "running"
        extent.write_bytes(whole)
        maker.new().freeze("vm", overlays)
        assert maker.drives("vm") == list(overlays.values())
    finally:
        maker.close()
