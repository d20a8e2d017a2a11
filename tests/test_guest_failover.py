"""Real guests fail over to hardware that they have no driver for, and boot there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from guests import debian, machines, protected, tiny
from guests.protected import Done
from guests.shelf import Shelf
from rollpoint.errors import GuestError
from rollpoint.guest.base import Controller
from rollpoint.hypervisor.base import Drive
from rollpoint.replica import Replica

pytestmark = pytest.mark.usefixtures("qemu_is_there")
# The driver that Linux has for a controller, as it is called in /sys.
DRIVERS = {
    "pvscsi": "vmw_pvscsi",
    "lsi53c895a": "sym53c8xx",
    "lsisas": "mptsas",
    "virtio-scsi": "virtio_scsi",
    "ahci": "ahci",
    "nvme": "nvme",
}


class Case(NamedTuple):
    guest: str
    controller: Controller
    mode: str = "auto"


@pytest.fixture
def qemu_is_there() -> None:
    tiny.require_tool("qemu-system-x86_64")


def boots(path: Path, case: Case, earlier: int = 0) -> Done:
    """Fail over, and hold what the guest tells of itself against what was asked for.

    Args:
        earlier: How often it had booted on the source.
    """
    recipe = tiny.RECIPES[case.guest]
    protected.configure(path, case.controller, case.mode, firmware=recipe.firmware)
    done = protected.fail_over(path)
    told = done.told
    assert told.verdict == "READY", done.step("power on").note
    assert DRIVERS[case.controller] in told.facts["drivers"].split(",")
    assert told.facts["cards"] == f"vmxnet3/{machines.MAC},"
    assert told.facts["root"] == ("tiny-root" if recipe.lvm else f"sda{recipe.root_number}")
    wanted = ["/", "/boot"] if recipe.boot_apart else ["/"]
    assert told.facts["mounts"].strip(",").split(",") == wanted
    replayed = recipe.dirty and recipe.root == "ext4"
    count = 1 + earlier + (tiny.BOOTS_REPLAYED if replayed else tiny.BOOTS_BEFORE)
    assert told.facts["boot"] == str(count)
    assert done.kept, "base or journal changed"
    print(f"{case}: export {done.step('export').seconds:.2f} s, "
          f"convert {done.step('convert').seconds:.2f} s, {done.step('convert').note}")  # fmt: skip
    return done


def test_a_guest_without_the_driver_boots_after_its_conversion_alone(
    guests: Shelf, tmp_path: Path
) -> None:
    """Must show 1: pvscsi. Before: no root. After: its marker, from the interim overlay."""
    path = tmp_path / "replica"
    protected.protect(path, guests.disk("plain"))
    protected.configure(path, "pvscsi", convert="never")
    assert protected.fail_over(path).told.verdict == "NOROOT"
    protected.undo(path)
    boots(path, Case("plain", "pvscsi"))
    assert protected.conversion(path)["changes"]
    protected.undo(path)


def test_a_kernel_without_the_driver_is_refused_and_the_replica_is_as_before(
    guests: Shelf, tmp_path: Path
) -> None:
    """Debian's cloud kernel has no mptsas."""
    path = tmp_path / "replica"
    protected.protect(path, guests.disk("plain"))
    protected.configure(path, "lsisas")
    with pytest.raises(GuestError, match="mptsas"):
        protected.fail_over(path)
    with Replica.open(path) as replica:
        assert (replica.manifest.state, replica.manifest.held) == ("Ready", False)
        last = replica.manifest.history[-1]
        assert (last.kind, last.outcome) == ("failover", "rolled back")
        assert "mptsas" in (last.error or "")
    assert not list(path.glob("*-interim*"))
    assert not (path / "run").exists(), "nothing was powered on"
    protected.configure(path, "pvscsi", marker="")
    protected.fail_over(path, power_on=False)
    protected.undo(path)


CASES = [
    Case("generic", "lsi53c895a"),
    Case("generic", "lsisas"),
    Case("generic", "ahci"),
    Case("boot-apart", "pvscsi"),
    Case("lvm", "pvscsi"),
    Case("dracut", "pvscsi"),
    Case("plain", "virtio-scsi"),
    Case("plain", "pvscsi", "host"),
    Case("xfs", "pvscsi", "host"),
    Case("xfs", "pvscsi", "appliance"),
    Case("uefi", "virtio-scsi"),  # Debian's firmware has no driver for the others
]


@pytest.mark.boots
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case))
def test_it_boots_elsewhere(guests: Shelf, tmp_path: Path, case: Case) -> None:
    if case.mode == "host" and os.geteuid() != 0:
        pytest.skip("this host's kernel mounts for root alone")
    path = tmp_path / "replica"
    protected.protect(path, guests.disk(case.guest))
    boots(path, case)
    protected.undo(path)


@pytest.mark.appliance
@pytest.mark.parametrize("name", ["plain", "xfs", "lvm"])
def test_an_appliance_converts_it_too(guests: Shelf, tmp_path: Path, name: str) -> None:
    """Must show 2: the launch is measured apart, and printed."""
    path = tmp_path / "replica"
    protected.protect(path, guests.disk(name))
    protected.configure(path, "pvscsi", "appliance")
    done = protected.fail_over(path, power_on=False)
    assert done.kept, "base or journal changed"
    told = protected.conversion(path)
    assert (told["mode"], told["outcome"]) == ("appliance", "changed")
    assert {Path(change["file"]).name for change in told["changes"]} >= {"fstab", "modules"}
    assert told["seconds"]["launch"] > 0
    assert "for the appliance" in done.step("convert").note
    print(f"{name}: {done.step('convert').note}")
    protected.undo(path)


@pytest.mark.boots
def test_what_was_running_when_its_power_went_boots_elsewhere(
    guests: Shelf, tmp_path: Path
) -> None:
    """The source is a machine that writes through the ingest, and is killed."""
    path = tmp_path / "replica"

    @contextlib.contextmanager
    def source(drive: Drive) -> Iterator[None]:
        with machines.qemu_under(tmp_path) as qemu:
            line = machines.boot(qemu, drive, "virtio-blk", ends=False)
            assert machines.parse(line).verdict == "READY"
            yield
            qemu.kill("guest")

    protected.protect(path, guests.disk("staying"), source)
    boots(path, Case("staying", "pvscsi"), earlier=1)
    protected.undo(path)


@pytest.mark.boots
def test_a_whole_debian_boots_elsewhere_and_keeps_its_network(
    guests: Shelf, tmp_path: Path
) -> None:
    """systemd and udev: the root by its UUID, the card by the name that it had."""
    path = tmp_path / "replica"
    protected.protect(path, guests.debian())
    protected.configure(path, "pvscsi")
    done = protected.fail_over(path)
    facts = done.told.facts
    assert (facts["root"], facts["driver"]) == ("sda1", "vmw_pvscsi")
    assert facts["cards"] == f"{debian.SOURCE_NAME}/{debian.ADDRESS},"
    assert facts["failed"] == ""
    assert done.kept, "base or journal changed"
    print(f"Debian: convert {done.step('convert').seconds:.2f} s, {done.step('convert').note}")
    protected.undo(path)
