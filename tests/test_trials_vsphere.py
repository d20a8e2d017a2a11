"""Test failovers at a vCenter: govmomi's simulator over HTTPS."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from replicas import Source, empty_model, ingesting, make, rollpoint, seen_by_qemu
from rollpoint import operation, replication, trials
from rollpoint.hypervisor import vsphere_devices
from rollpoint.manifest import Step
from rollpoint.replica import Replica
from vcenter import VCenter, certificates, vcenter

__all__ = ["certificates", "vcenter"]

NETWORK = "VM Network"
_NUMBERS = itertools.count()


@pytest.fixture
def replica(vcenter: VCenter, tmp_path: Path) -> tuple[Path, dict[int, dict[str, bytes]]]:
    """A replica on a datastore, with three points and what they hold."""
    path = Path(vcenter.datastores["LocalDS_0"]) / f"tested{next(_NUMBERS)}"
    make(path)
    history = {}
    with ingesting(path, tmp_path / "s"), Replica.open(path) as opened:
        source = Source(tmp_path / "s", empty_model(), 7)
        for _ in range(3):
            for _ in range(20):
                source.act()
            history[replication.mark(opened).id] = source.snapshot()
        source.close()
    table = vcenter.table()
    (path / "replica.toml").write_text(
        f"""[hypervisor]
kind = "vsphere"
server = "{table.server}"
port = {table.port}
user = "{table.user}"
password_file = "{table.password_file}"
ca_file = "{table.ca_file}"
test_network = "{NETWORK}"

[hypervisor.datastores]
LocalDS_0 = "{table.datastores["LocalDS_0"]}"

[machine]
nic = "vmxnet3"
controller = "pvscsi"
"""
    )
    return path, history


def machine_of(path: Path, id: str) -> str:
    with Replica.open(path) as opened:
        (running,) = (test.running for test in opened.manifest.tests if test.id == id)
    assert running is not None
    return running.machine


def start(path: Path, id: str, point: str, network: str | None = None) -> None:
    """A test failover; the simulator looks for files that vSphere does not need."""

    def provide(step: Step) -> None:
        if (step.name, step.state) == ("disks", "done"):
            for disk in opened.manifest.disks:
                (path / f"{disk.name}-test-{id}-flat.vmdk").touch()

    with Replica.open(path) as opened:
        trials.start(opened, point, network=network, operation_id=id, on_step=provide)


def drop_extras(path: Path) -> None:
    for file in path.glob("*-test-*-flat.vmdk"):
        assert file.stat().st_size == 0
        file.unlink()


def test_a_machine_of_its_own_runs_from_files_in_the_isolated_network(
    vcenter: VCenter, replica: tuple[Path, dict[int, dict[str, bytes]]], tmp_path: Path
) -> None:
    path, history = replica
    for id, point, network in (("x", 1, NETWORK), ("y", 3, "none")):
        start(path, id, str(point), network)
    for id, point, network in (("x", 1, NETWORK), ("y", 3, "none")):
        found = vcenter.admin._find(machine_of(path, id))
        assert found is not None
        assert found.name.startswith(f"{path.name} test {id}")
        files = [disk.files[0] for disk in vsphere_devices.disks(found.devices)]
        assert files == [f"[LocalDS_0] {path.name}/{name}-test-{id}.vmdk" for name in history[1]]
        (card,) = vsphere_devices.cards(found.devices)
        assert bool(card.connectable.startConnected) == (network != "none")
        if network != "none":
            assert vsphere_devices.backing_name(card) == NETWORK
        assert vcenter.admin.status(machine_of(path, id)) == "running"
        assert vcenter.admin.started_by(machine_of(path, id)) == id
        for name, data in history[point].items():
            assert seen_by_qemu(path / f"{name}-test-{id}.vmdk", tmp_path) == data
    machines = [machine_of(path, id) for id in ("x", "y")]
    assert len(rollpoint("undo", path, "--test", "all")["tests"]) == 2
    assert not any(vcenter.new().is_known(machine) for machine in machines)
    drop_extras(path)
    assert not [file for file in path.iterdir() if "-test-" in file.name]


def test_a_real_failover_goes_on_beside_a_test(
    vcenter: VCenter, replica: tuple[Path, dict[int, dict[str, bytes]]], tmp_path: Path
) -> None:
    path, history = replica
    start(path, "t", "1")
    with Replica.open(path) as opened:
        operation.failover(opened, "2", power_on=False)
        for name, data in history[1].items():
            assert seen_by_qemu(path / f"{name}-test-t.vmdk", tmp_path) == data
        operation.undo(opened)
        assert vcenter.new().status(machine_of(path, "t")) == "running"
        trials.undo(opened)
    drop_extras(path)
