"""vSphere for tests/test_hypervisors.py, at the simulator."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from hypervisor_makers import Maker
from rollpoint.hypervisor import vsphere_devices
from rollpoint.hypervisor.base import Drive, Machine
from rollpoint.hypervisor.vsphere import VSphere
from rollpoint.hypervisor.vsphere_inventory import Found
from rollpoint.hypervisor.vsphere_make import Site
from rollpoint.hypervisor.vsphere_session import Session
from vcenter import VCenter
from vcenter_proxy import Proxy

UP = {"guest__toolsRunningStatus": "guestToolsRunning", "guestHeartbeatStatus": "green"}
HEARD = '<ShutdownGuestResponse xmlns="urn:vim25"/>'
_NUMBERS = itertools.count()


class _WithGuests(VSphere):
    """The simulator runs no guests: one is up when it is waited for."""

    def __init__(self, session: Session, site: Site, vcenter: VCenter) -> None:
        super().__init__(session, site)
        self._vcenter = vcenter

    def wait_for(self, machine_id: str, marker: str, timeout_seconds: float) -> str:
        if self.status(machine_id) == "running":
            self._vcenter.guest(machine_id, **UP)
        return super().wait_for(machine_id, marker, timeout_seconds)


class VSphereMaker(Maker):
    """Its machines are made, and removed at the end: the simulator is shared."""

    supports = frozenset({"isolate", "conflicts", "shutdown", "beat"})
    wire = "VM Network"

    def __init__(self, folder: Path, vcenter: VCenter) -> None:
        super().__init__(Path(vcenter.datastores["LocalDS_0"]) / f"suite-{next(_NUMBERS)}")
        self.folder.mkdir()
        self.vcenter = vcenter
        self._proxy = Proxy(vcenter)
        self._made = {"vm", "other", "third"}

    def new(self) -> VSphere:
        real = self.vcenter.new(port=self._proxy.port)
        return _WithGuests(real._session, real._site, self.vcenter)

    def close(self) -> None:
        self._proxy.close()
        for name in sorted(self._made):
            self.vcenter.remove(name)

    def drive(self, name: str, *, deaf: bool = False) -> Drive:
        """The simulator wants both files, and never reads them."""
        for file in (f"{name}.vmdk", f"{name}-flat.vmdk"):
            (self.folder / file).touch()
        if deaf:
            self._proxy.add("ShutdownGuest", "answer", xml=HEARD)
        return Drive(str(self.folder / f"{name}.vmdk"))

    def machine(self, *drives: Drive, id: str = "vm", **said: object) -> Machine:
        return super().machine(*drives, id=id, **{"bus": "pvscsi", **said})

    def add(self, machine: Machine) -> None:
        """As an administrator makes one: without a note."""
        hypervisor = self.vcenter.admin
        hypervisor.start(machine)
        hypervisor.power_off(machine.id)
        self.vcenter.set(machine.id, annotation="an administrator's words")

    def beat(self, machine_id: str) -> None:
        self.vcenter.guest(machine_id, **UP)

    def drives(self, machine_id: str) -> list[str]:
        disks = vsphere_devices.disks(self._found(machine_id).devices)
        mounts = self.vcenter.datastores
        places = [disk.files[0].removeprefix("[").split("] ", 1) for disk in disks]
        return [os.path.join(mounts[store], file) for store, file in places]

    def wires(self, machine_id: str) -> int:
        cards = vsphere_devices.cards(self._found(machine_id).devices)
        return sum(card.connectable.connected for card in cards)

    def _found(self, machine_id: str) -> Found:
        found = self.vcenter.admin._find(machine_id)
        assert found is not None
        return found
