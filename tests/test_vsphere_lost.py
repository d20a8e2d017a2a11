"""What a vCenter refuses, what it does not answer, sessions that expire, and who it is."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import keyring
import pytest
from keyring.backend import KeyringBackend
from rollpoint.config_tables import HypervisorTable
from rollpoint.errors import (
    Error,
    HypervisorError,
    NotFoundError,
    ToolMissingError,
    UsageError,
)
from rollpoint.hypervisor import vsphere_session
from rollpoint.hypervisor.base import Machine
from rollpoint.hypervisor.vsphere import VSphere
from rollpoint.hypervisor.vsphere_faults import LostError
from rollpoint.hypervisor.vsphere_open import open_vsphere
from rollpoint.secrets import Secret, SecretPlace
from test_vsphere import Bench, bench, certificates, vcenter
from vcenter import PASSWORD, USER, Certificates, VCenter
from vcenter_proxy import Action, Proxy

__all__ = ["bench", "certificates", "vcenter"]

DISK = "<file>[LocalDS_0] web/web-interim.vmdk</file>"
REFUSALS = {  # fault -> (its inside, words of the error)
    "NoPermission": (
        '<object type="VirtualMachine">vm-1</object>'
        "<privilegeId>VirtualMachine.Config.AddExistingDisk</privilegeId>",
        "VirtualMachine.Config.AddExistingDisk.*privilege",
    ),
    "FileNotFound": (DISK, "FileNotFound.*web-interim.*datastores"),
    "FileLocked": (DISK, "FileLocked.*web-interim.*power that off"),
    "NoDiskSpace": (f"{DISK}<datastore>LocalDS_0</datastore>", "NoDiskSpace.*make room"),
    "InvalidDatastore": ("<name>gone</name>", "InvalidDatastore.*gone"),
    "InvalidState": ("", "InvalidState"),
    "HostNotConnected": ("", "HostNotConnected.*bring the host back"),
    "InsufficientResourcesFault": ("", "make room in the resource pool"),
    "NotSupported": ("", "NotSupported"),
}


def shake(
    bench: Bench, method: str, fault: str, action: Action, machine: Machine
) -> tuple[VSphere, HypervisorError]:
    inside, _ = REFUSALS[fault]
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    bench.proxy.add(method, action, fault, inside)
    with pytest.raises(HypervisorError, match=REFUSALS[fault][1]) as caught:
        hypervisor.start(machine)
    assert not isinstance(caught.value, LostError)
    return hypervisor, caught.value


@pytest.mark.parametrize("fault", REFUSALS)
@pytest.mark.parametrize("method", ["ReconfigVM_Task", "PowerOnVM_Task"])
def test_what_a_task_fails_with_is_told_and_can_be_tried_again(
    bench: Bench, method: str, fault: str
) -> None:
    machine = bench.machine("a")
    hypervisor, error = shake(bench, method, fault, "task fault", machine)
    assert hypervisor.status(machine.id) == "off"
    assert error.hint
    hypervisor.start(machine)
    assert hypervisor.status(machine.id) == "running"
    assert bench.files(machine.id) == ["a.vmdk"]


@pytest.mark.parametrize("method", ["CreateVM_Task", "ReconfigVM_Task", "PowerOnVM_Task"])
@pytest.mark.parametrize("fault", ["NoPermission", "InvalidDatastore"])
def test_what_a_call_is_refused_with_is_told(bench: Bench, method: str, fault: str) -> None:
    machine = bench.machine("a")
    hypervisor, _ = shake(bench, method, fault, "fault", machine)
    hypervisor.start(machine)
    assert bench.files(machine.id) == ["a.vmdk"]


@pytest.mark.parametrize(
    "method", ["Destroy_Task", "PowerOffVM_Task", "FindByUuid", "RetrievePropertiesEx"]
)
def test_the_other_calls_may_be_forbidden_too(bench: Bench, method: str) -> None:
    machine = bench.machine("a")
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    hypervisor.start(machine)
    bench.proxy.add(method, "fault", "NoPermission", REFUSALS["NoPermission"][0])

    def end() -> None:
        hypervisor.power_off(machine.id)
        hypervisor.let_go(machine.id)

    with pytest.raises(HypervisorError, match="NoPermission"):
        end()
    end()
    assert not hypervisor.is_known(machine.id)


CUTS: list[Action] = ["cut before", "cut after", "cut half"]


@pytest.mark.parametrize("action", CUTS)
@pytest.mark.parametrize(
    "method",
    [
        "FindByUuid",
        "RetrievePropertiesEx",
        "CreateContainerView",
        "CreateVM_Task",
        "ReconfigVM_Task",
        "PowerOnVM_Task",
        "CreatePropertyCollector",
        "CreateFilter",
        "WaitForUpdatesEx",
        "DestroyPropertyCollector",
    ],
)
def test_a_lost_answer_is_asked_for_and_nothing_is_done_twice(
    bench: Bench, method: str, action: Action
) -> None:
    machine = bench.machine("a")
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    bench.proxy.add(method, action)
    hypervisor.start(machine)
    assert hypervisor.status(machine.id) == "running"
    assert bench.files(machine.id) == ["a.vmdk"]
    for once in ("CreateVM_Task", "ReconfigVM_Task", "PowerOnVM_Task"):
        assert bench.proxy.count(once) == 1, once


@pytest.mark.parametrize("action", CUTS)
@pytest.mark.parametrize("method", ["PowerOffVM_Task", "ReconfigVM_Task", "Destroy_Task"])
def test_letting_go_over_a_bad_line(bench: Bench, method: str, action: Action) -> None:
    machine = bench.machine("a")
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    hypervisor.start(machine)
    bench.proxy.calls.clear()
    bench.proxy.add(method, action)
    hypervisor.power_off(machine.id)
    hypervisor.let_go(machine.id)
    assert not hypervisor.is_known(machine.id)
    assert bench.proxy.count(method) == 1
    assert (bench.folder / "a.vmdk").exists()


def test_a_server_that_is_silent_is_asked_again(bench: Bench) -> None:
    """A time-out is not an outcome: it powered the machine on, and said nothing."""
    machine = bench.machine("a")
    hypervisor = bench.vcenter.new(port=bench.proxy.port, timeout="500ms")
    bench.proxy.add("PowerOnVM_Task", "silent")
    assert not hypervisor.is_known("x")
    hypervisor._session.clock = iter(range(10**6)).__next__  # no time passes but by the calls
    hypervisor._session.server = _slow(hypervisor)
    hypervisor.start(machine)
    assert bench.vcenter.new().status(machine.id) == "running"
    assert bench.vcenter.new().started_by(machine.id) == "op-1"
    assert bench.proxy.count("PowerOnVM_Task") == 1


def _slow(hypervisor: VSphere) -> Any:
    """As a table with a long timeout would have it for tasks."""
    from dataclasses import replace

    return replace(hypervisor._session.server, timeout_seconds=10**6)


def test_a_task_that_outlasts_its_time_is_looked_at(bench: Bench) -> None:
    """The server tells no news of the tasks, which it has ended long ago."""
    machine = bench.machine("a")
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    assert not hypervisor.is_known(machine.id)
    hypervisor._session.clock = itertools.count(0, 15).__next__  # of 20 s
    for _ in range(20):
        bench.proxy.add(
            "WaitForUpdatesEx", "answer", xml='<WaitForUpdatesExResponse xmlns="urn:vim25"/>'
        )
    hypervisor.start(machine)
    assert bench.vcenter.new().status(machine.id) == "running"
    assert bench.files(machine.id) == ["a.vmdk"]
    for once in ("CreateVM_Task", "ReconfigVM_Task", "PowerOnVM_Task"):
        assert bench.proxy.count(once) == 1, once


def test_a_machine_that_is_removed_meanwhile(bench: Bench) -> None:
    machine = bench.machine("a")
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    gone = '<obj type="VirtualMachine">vm-0</obj>'
    for method in ("ReconfigVM_Task", "PowerOnVM_Task"):
        bench.proxy.add(method, "fault", "ManagedObjectNotFound", gone)
        with pytest.raises(HypervisorError, match="ManagedObjectNotFound"):
            hypervisor.start(machine)
    hypervisor.start(machine)
    found = bench.found(machine.id)
    bench.vcenter.remove(machine.id)
    assert hypervisor.status(machine.id) == "off"
    hypervisor.let_go(machine.id)
    with pytest.raises(NotFoundError):
        hypervisor._reach.turn(found, on=True)


@pytest.mark.parametrize("action", CUTS)
def test_snapshots_over_a_bad_line(bench: Bench, action: Action) -> None:
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    for method in ("CreateSnapshot_Task", "RemoveSnapshot_Task"):
        bench.proxy.add(method, action)
    machine = bench.machine("a")
    hypervisor.start(machine)
    hypervisor.snapshot(machine.id, "one")
    assert list(hypervisor._snapshots(bench.found(machine.id))) == ["one"]
    hypervisor.remove_snapshot(machine.id, "one")
    assert not hypervisor._snapshots(bench.found(machine.id))
    assert bench.proxy.count("CreateSnapshot_Task") == 1
    bench.proxy.add("CreateSnapshot_Task", "task fault", "NoDiskSpace", REFUSALS["NoDiskSpace"][0])
    with pytest.raises(HypervisorError, match="make room"):
        hypervisor.snapshot(machine.id, "two")


@pytest.mark.parametrize("action", CUTS)
def test_a_guest_is_shut_down_over_a_bad_line(bench: Bench, action: Action) -> None:
    machine = bench.machine("a")
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    hypervisor.start(machine)
    bench.proxy.add("ShutdownGuest", action)
    told = hypervisor.shut_down(machine.id, 0.2)
    assert told.startswith("powered off: " if action == "cut before" else "shut down")
    assert hypervisor.status(machine.id) == "off"


def test_a_server_that_is_gone_is_an_error_with_its_name(bench: Bench) -> None:
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    assert hypervisor.status("none") == "off"
    for _ in range(3):
        bench.proxy.add("FindByUuid", "cut before")
    with pytest.raises(LostError, match=rf"127.0.0.1:{bench.proxy.port} gave no answer"):
        hypervisor.status("none")
    with pytest.raises(HypervisorError, match=r"127\.0\.0\.1:1 gave no answer"):
        bench.vcenter.new(port=1).status("none")


def test_who_else_changes_the_power_is_not_in_the_way(bench: Bench) -> None:
    machine = bench.machine("a")
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    state = "<requestedState>poweredOn</requestedState><existingState>poweredOff</existingState>"
    bench.proxy.add("PowerOnVM_Task", "task fault", "InvalidPowerState", state)
    bench.proxy.add("ReconfigVM_Task", "task fault", "TaskInProgress")
    hypervisor.start(machine)
    assert hypervisor.status(machine.id) == "running"


@pytest.mark.parametrize("fault", ["NotAuthenticated", "NoPermission"])
def test_a_machine_is_not_off_because_its_power_is_missing(bench: Bench, fault: str) -> None:
    """As of a session that ends between a call and its answer; without the right to read it."""
    machine = bench.machine("a")
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    hypervisor.start(machine)
    inside = '<object type="VirtualMachine">vm-1</object><privilegeId>System.Read</privilegeId>'
    bench.proxy.add("RetrievePropertiesEx", "missing", fault, inside)
    if fault == "NoPermission":
        with pytest.raises(HypervisorError, match="does not tell whether"):
            hypervisor.status(machine.id)
    else:
        assert hypervisor.status(machine.id) == "running"
    hypervisor.power_off(machine.id)
    assert hypervisor.status(machine.id) == "off"


def test_a_session_that_expired_is_renewed(certificates: Certificates, tmp_path: Path) -> None:
    running = VCenter(certificates, tmp_path, idle="150ms")
    proxy = Proxy(running)
    try:
        hypervisor = running.new(port=proxy.port)
        for _ in range(2):
            assert hypervisor.status("DC0_C0_RP0_VM0") == "running"
            threading.Event().wait(0.5)  # the simulator looks every so often
        for word in ("off", "running", "off"):
            threading.Event().wait(0.4)
            if word == "running":
                hypervisor.power_on("DC0_C0_RP0_VM0")
            else:
                hypervisor.power_off("DC0_C0_RP0_VM0")
            assert hypervisor.status("DC0_C0_RP0_VM0") == word
        assert proxy.count("Login") > 1
    finally:
        proxy.close()
        running.close()


def test_sessions_are_ended_when_nobody_has_them(bench: Bench) -> None:
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    hypervisor.status("none")
    del hypervisor
    gc.collect()
    assert bench.proxy.count("Logout") == 1


def test_a_session_is_renewed_while_something_is_watched(bench: Bench) -> None:
    machine = bench.machine("a")
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    for method in ("CreateFilter", "WaitForUpdatesEx", "CreateVM_Task", "PowerOnVM_Task"):
        bench.proxy.add(
            method,
            "fault",
            "NotAuthenticated",
            '<object type="Folder">group-d1</object><privilegeId>System.View</privilegeId>',
        )
    hypervisor.start(machine)
    assert bench.files(machine.id) == ["a.vmdk"]
    assert bench.proxy.count("PowerOnVM_Task") == 1


def test_a_server_that_is_down_is_not_asked_without_a_pause(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = bench.machine("a")
    hypervisor = bench.vcenter.new(port=bench.proxy.port)
    hypervisor.start(machine)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        bench.proxy.rules.clear()

    monkeypatch.setattr(vsphere_session.time, "sleep", sleep)
    for _ in range(20):
        bench.proxy.add("WaitForUpdatesEx", "cut before")
    hypervisor.power_off(machine.id)
    assert hypervisor.status(machine.id) == "off"
    assert pauses
    assert min(pauses) > 0


def test_the_server_proves_who_it_is(vcenter: VCenter) -> None:
    known = vcenter.certificates
    good: list[dict[str, Any]] = [
        {"ca_file": str(known.ca)},
        {"ca_file": "", "certificate": str(known.certificate)},
        {"ca_file": "", "certificate": str(known.certificate), "server": "localhost"},
        {"ca_file": "", "insecure": True},
    ]
    for said in good:
        assert vcenter.new(**said).is_known("DC0_C0_RP0_VM0")
    bad: list[dict[str, Any]] = [
        {"ca_file": ""},  # what the system trusts: pyvmomi alone would take anything here
        {"ca_file": str(known.stranger)},
        {"ca_file": "", "certificate": str(known.stranger)},
        {"ca_file": "", "certificate": str(known.ca)},  # pinned is that one, not what it signed
    ]
    for said in bad:
        with pytest.raises(HypervisorError, match="is not who it should be"):
            vcenter.new(**said).is_known("DC0_C0_RP0_VM0")


def test_a_server_of_another_name_is_refused(vcenter: VCenter, tmp_path: Path) -> None:
    """Its certificate is good, and says 127.0.0.1."""
    with pytest.raises(HypervisorError, match="is not who it should be"):
        vcenter.new(server="localhost").is_known("x")


def test_ways_to_check_the_server_are_not_mixed(vcenter: VCenter, tmp_path: Path) -> None:
    ca = str(vcenter.certificates.ca)
    for said in (
        {"insecure": True},
        {"certificate": ca},
        {"ca_file": str(tmp_path / "none.pem")},
        {"ca_file": "", "certificate": str(vcenter.certificates.key)},
    ):
        with pytest.raises(UsageError):
            vcenter.new(**said)


def test_what_is_no_vcenter_is_told(bench: Bench) -> None:
    wrong = HypervisorTable(kind="vsphere", server="", user="x")
    with pytest.raises(UsageError, match="server"):
        open_vsphere(wrong, "/")


def test_passwords_come_from_a_variable_a_file_or_a_keyring(
    vcenter: VCenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ring(KeyringBackend):
        priority = 1  # type: ignore[assignment]

        def get_password(self, service: str, username: str) -> str | None:
            return PASSWORD if (service, username) == ("vcenter", USER) else None

        def set_password(self, service: str, username: str, password: str) -> None:
            raise NotImplementedError

    before = keyring.get_keyring()
    keyring.set_keyring(Ring())
    monkeypatch.setenv("VCENTER_PASSWORD", PASSWORD)
    try:
        for said in ({"password_env": "VCENTER_PASSWORD"}, {"keyring": "vcenter"}):
            assert vcenter.new(password_file="", **said).is_known("DC0_C0_RP0_VM0")
        for said in ({"password_env": "NOT_SET"}, {"keyring": "other"}):
            with pytest.raises(NotFoundError):
                vcenter.new(password_file="", **said).is_known("x")
    finally:
        keyring.set_keyring(before)
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(ToolMissingError, match="keyring"):
        vcenter.new(password_file="", keyring="vcenter").is_known("x")
    for said in ({"password_file": ""}, {"password_env": "VCENTER_PASSWORD"}):
        with pytest.raises(UsageError, match="once"):
            vcenter.new(**said).is_known("x")


def test_a_password_file_that_others_can_read_is_refused(vcenter: VCenter, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    for mode in (0o640, 0o604, 0o666):
        file.chmod(mode)
        with pytest.raises(UsageError, match=f"mode {mode:04o}"):
            vcenter.new(password_file=str(file)).is_known("x")
    file.chmod(0o400)
    assert vcenter.new(password_file=str(file)).is_known("DC0_C0_RP0_VM0")
    os.mkfifo(tmp_path / "fifo", 0o600)
    for bad in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(UsageError):
            SecretPlace("a secret", file=str(bad)).read()
    with pytest.raises(NotFoundError):
        SecretPlace("a secret", file=str(tmp_path / "none")).read()


def test_a_wrong_password_is_told_and_never_shown(vcenter: VCenter, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("wrong-canary-77")
    file.chmod(0o600)
    with pytest.raises(HypervisorError, match=r"InvalidLogin.*password") as caught:
        vcenter.new(password_file=str(file)).is_known("x")
    assert "canary" not in _all_words(caught.value)
    good = vcenter.new()
    good.is_known("x")
    assert PASSWORD not in f"{good.__dict__!r}{good._session.__dict__!r}{good._session.server!r}"
    assert str(Secret("canary")) == repr(Secret("canary")) == f"{Secret('canary')}" == "***"
    with pytest.raises(TypeError):
        json.dumps(Secret("canary"))
    import pickle

    with pytest.raises(TypeError):
        pickle.dumps(Secret("canary"))


def _all_words(error: BaseException | None) -> str:
    words = ""
    while error is not None:
        words += f"{error!r} {error} {error.__dict__}"
        error = error.__cause__ or error.__context__
    return words


def test_a_canary_password_is_in_no_argument_file_or_word(bench: Bench, tmp_path: Path) -> None:
    """Over a whole life with failures, in a process of its own that logs all it can."""
    script = f"""
import logging, sys
logging.basicConfig(level=logging.DEBUG, filename={str(tmp_path / "log")!r})
from rollpoint.config_tables import HypervisorTable
from rollpoint.hypervisor.vsphere_open import open_vsphere
import msgspec
table = msgspec.json.decode(sys.argv[1], type=HypervisorTable)
h = open_vsphere(table, "/")
print(h.status("DC0_C0_RP0_VM0"))
print(open("/proc/self/cmdline").read(), open("/proc/self/environ").read())
try:
    h.power_on("none")
except Exception:
    import traceback; traceback.print_exc()
try:
    h._session.tell("x", lambda content: content.sessionManager.Login("x", None, None))
except Exception:
    import traceback; traceback.print_exc()
"""
    import msgspec

    table = msgspec.json.encode(bench.vcenter.table()).decode()
    done = subprocess.run(
        [sys.executable, "-c", script, table], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    log = tmp_path / "log"
    said = done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    assert "NotFoundError" in said
    assert PASSWORD not in said


def test_pyvmomi_is_imported_for_vsphere_only() -> None:
    script = (
        "import sys, rollpoint.hypervisors as h, rollpoint.hypervisor.qemu\n"
        "from rollpoint.config_tables import HypervisorTable\n"
        "assert 'pyVmomi' not in sys.modules\n"
        "h.open_hypervisor(HypervisorTable(kind='vsphere', server='x', user='y',"
        " password_env='P'), '/')\n"
        "assert 'pyVmomi' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_each_error_says_what_to_do(bench: Bench) -> None:
    hypervisor = bench.vcenter.new()
    calls = (
        lambda: hypervisor.power_on("none"),
        lambda: hypervisor.isolate("none"),
        lambda: hypervisor.wait_for("none", "", 0),
        lambda: hypervisor.freeze("none", {}),
        lambda: hypervisor.describe("none"),
    )
    for call in calls:
        with pytest.raises(Error) as caught:
            call()
        assert caught.value.hint
