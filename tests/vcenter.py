"""A vCenter for tests: govmomi's simulator (tests/vcsim) over HTTPS, with a CA of its own."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rollpoint.config_tables import HypervisorTable
from rollpoint.hypervisor.vsphere import VSphere
from rollpoint.hypervisor.vsphere_open import open_vsphere
from tools import ROOT, missing, require_tool

GOVMOMI = Path("/usr/share/gocode/src/github.com/vmware/govmomi/simulator")
SOURCE = ROOT / "tests" / "vcsim" / "main.go"
USER, PASSWORD = "rollpoint@vsphere.local", "canary-3f9a61"


def program() -> Path:
    """The simulator, built when its source is new. A minute on a machine that has not yet."""
    go = require_tool("go")
    if not GOVMOMI.is_dir():
        missing(f"{GOVMOMI} is missing: apt-get install golang-github-vmware-govmomi-dev")
    cache = ROOT / "build" / "vcsim"
    cache.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(SOURCE.read_bytes())
    target = cache / f"vcsim-{name.hexdigest()[:16]}"
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            environment = {
                **os.environ,
                "GOPATH": "/usr/share/gocode",
                "GO111MODULE": "off",
                "GOCACHE": str(cache / "go"),
                "GOFLAGS": "",
            }
            part = target.with_suffix(".part")
            command = [go, "build", "-o", str(part), str(SOURCE)]
            subprocess.run(command, check=True, env=environment, cwd=cache)
            part.rename(target)
    return target


class Certificates:
    """A CA, a certificate for 127.0.0.1 that it signed, and a stranger's: PEM files."""

    def __init__(self, folder: Path) -> None:
        self._openssl = require_tool("openssl")
        self._folder = folder
        self.ca, ca_key = self._own("ca", "-addext", "basicConstraints=critical,CA:TRUE")
        self.stranger, self.stranger_key = self._own(
            "stranger", "-addext", "subjectAltName=IP:127.0.0.1"
        )
        self.key = folder / "server.key"
        self.certificate = folder / "server.pem"
        request, more = folder / "server.csr", folder / "server.ext"
        more.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
        self._run(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", self.key, "-out", request, "-subj", "/CN=vcenter"),
        )
        self._run(
            *("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", ca_key, "-days", "2"),
            *("-set_serial", "2", "-extfile", more, "-out", self.certificate),
        )

    def _own(self, name: str, *more: str) -> tuple[Path, Path]:
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        self._run(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", key, "-out", certificate),
            *more,
        )
        return certificate, key

    def _run(self, *words: str | Path) -> None:
        subprocess.run([self._openssl, *map(str, words)], check=True, capture_output=True)


class VCenter:
    """A simulator that runs. It has one cluster of one host, two datastores, two machines."""

    def __init__(self, certificates: Certificates, folder: Path, idle: str = "0s") -> None:
        self.certificates = certificates
        self.password_file = folder / "password"
        self.password_file.write_text(PASSWORD + "\n")
        self.password_file.chmod(0o600)
        self._process = subprocess.Popen(
            [
                *(str(program()), "-user", USER, "-password", PASSWORD, "-idle", idle),
                *("-cert", str(certificates.certificate), "-key", str(certificates.key)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        assert address, "the simulator did not start"
        self.port = int(address.rpartition(":")[2])
        self.admin = self.new(datastores={})
        from pyVmomi import vim

        found = self.admin._session.inventory(vim.Datastore, ("name", "info.url"))
        self.datastores = {values["name"]: values["info.url"] for _, values in found}
        self.admin = self.new()

    def table(self, **said: Any) -> HypervisorTable:
        """[hypervisor] of a replica whose datastores are where the simulator has them."""
        settings: dict[str, Any] = {
            "kind": "vsphere",
            "server": "127.0.0.1",
            "port": self.port,
            "user": USER,
            "password_file": str(self.password_file),
            "ca_file": str(self.certificates.ca),
            "timeout": "20s",
            "datastores": getattr(self, "datastores", {}),
            **said,
        }
        return HypervisorTable(**settings)

    def new(self, **said: Any) -> VSphere:
        """As another process would have it."""
        return open_vsphere(self.table(**said), "/")

    def set(self, machine_id: str, **spec: Any) -> None:
        """Change a machine as its administrator, or its guest, does. See ConfigSpec."""
        from pyVmomi import vim

        found = self.admin._find(machine_id)
        assert found is not None
        task = found.vm.ReconfigVM_Task(vim.vm.ConfigSpec(**spec))
        self.admin._session.finish(task, "setting up a test", 10)

    def guest(self, machine_id: str, **values: str) -> None:
        """What the guest's tools report: the simulator's way to say it."""
        from pyVmomi import vim

        extra = [
            vim.option.OptionValue(key=f"SET.{key.replace('__', '.')}", value=value)
            for key, value in values.items()
        ]
        self.set(machine_id, extraConfig=extra)

    def remove(self, machine_id: str) -> None:
        """A machine that may be there, on or off."""
        found = self.admin._find(machine_id)
        if found is not None:
            self.admin.power_off(machine_id)
            task = found.vm.Destroy_Task()
            self.admin._session.finish(task, "cleaning up", 10)

    def close(self) -> None:
        self.admin.close()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def vcenter(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VCenter]:
    """One for all tests of a process; each takes machines of its own."""
    running = VCenter(certificates, tmp_path_factory.mktemp("vcenter"))
    yield running
    running.close()
