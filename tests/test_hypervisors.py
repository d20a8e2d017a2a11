"""What every hypervisor does: the page of hypervisor/base.py as a program.

Each test runs on all of MAKERS. What one cannot do it refuses, and a test holds that, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypervisor_makers import SIZE_BYTES, Maker, QemuMaker, SimulatedMaker, cards
from rollpoint.disk import open_disk
from rollpoint.errors import (
    CancelledError,
    HypervisorError,
    NotFoundError,
    StateError,
    UnsupportedError,
)
from rollpoint.hypervisor import qemu_agent
from rollpoint.hypervisor.base import Drive
from vcenter import certificates, vcenter
from vsphere_maker import VSphereMaker

__all__ = ["certificates", "vcenter"]

MAKERS: dict[str, type[Maker]] = {"qemu": QemuMaker, "simulated": SimulatedMaker}
KINDS = [*MAKERS, "vsphere"]
MAC = "52:54:00:00:00:01"


@pytest.fixture(params=KINDS)
def maker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Maker]:
    made = (
        VSphereMaker(tmp_path, request.getfixturevalue("vcenter"))
        if request.param == "vsphere"
        else MAKERS[request.param](tmp_path)
    )
    yield made
    made.close()


def needs(maker: Maker, what: str) -> None:
    if what not in maker.supports:
        pytest.skip(f"{type(maker).__name__} does not {what}")


def content(path: str) -> bytes:
    with open_disk(path) as disk:
        return disk.pread(disk.size_bytes, 0)


def test_it_says_what_it_is(maker: Maker) -> None:
    hypervisor = maker.new()
    assert hypervisor.kind in KINDS
    assert hypervisor.overlay_kind in ("hosted", "vmfsSparse")


def test_a_machine_starts_comes_up_and_is_powered_off(maker: Maker) -> None:
    hypervisor = maker.new()
    assert hypervisor.status("vm") == "off"
    hypervisor.start(maker.machine(maker.drive("a")))
    assert hypervisor.status("vm") == "running"
    assert hypervisor.wait_for("vm", maker.marker, 20)
    assert maker.new().status("vm") == "running"
    maker.new().power_off("vm")
    assert hypervisor.status("vm") == "off"
    hypervisor.power_off("vm")
    hypervisor.power_off("never-was")
    assert hypervisor.status("never-was") == "off"


def test_a_machine_that_goes_off_is_not_waited_for(maker: Maker) -> None:
    hypervisor = maker.new()
    hypervisor.start(maker.machine(maker.drive("a")))
    hypervisor.power_off("vm")
    with pytest.raises(HypervisorError):
        hypervisor.wait_for("vm", "what no guest says", 0.05)


def test_a_running_machine_is_asked_for_its_heartbeat(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_agent, "ANSWER_SECONDS_MAX", 0.1)
    with pytest.raises(HypervisorError):
        maker.new().beats("never-was")
    maker.silence("vm")
    maker.new().start(maker.machine(maker.drive("a"), agent=True))
    assert maker.new().beats("vm") == ""
    if "beat" in maker.supports:
        maker.beat("vm")
        assert maker.new().beats("vm")
    maker.new().power_off("vm")
    with pytest.raises(HypervisorError):
        maker.new().beats("vm")


def test_asked_twice_it_starts_once(maker: Maker) -> None:
    machine = maker.machine(maker.drive("a"), operation="first")
    one = maker.new().start(machine)
    again = maker.new().start(maker.machine(*machine.drives, operation="second"))
    assert (again.id, again.pid) == (one.id, one.pid)
    assert maker.new().started_by("vm") == "first"
    with pytest.raises(StateError, match="other disks"):
        maker.new().start(maker.machine(maker.drive("b")))
    assert maker.new().started_by("vm") == "first"


def test_who_started_it_is_asked_of_any_process(maker: Maker) -> None:
    assert maker.new().started_by("vm") == ""
    assert not maker.new().is_known("vm")
    maker.new().start(maker.machine(maker.drive("a"), operation="op-1", replica="web", point=7))
    assert maker.new().started_by("vm") == "op-1"
    assert maker.new().is_known("vm")
    maker.new().power_off("vm")
    assert maker.new().is_known("vm")
    maker.new().start(maker.machine(maker.drive("a"), operation="op-2"))
    assert maker.new().started_by("vm") == "op-2"


def test_a_known_machine_is_powered_on_as_it_is(maker: Maker) -> None:
    drive = maker.drive("a")
    maker.new().start(maker.machine(drive, operation="op-1"))
    maker.new().power_off("vm")
    handle = maker.new().power_on("vm")
    assert maker.new().status("vm") == "running"
    assert maker.drives("vm") == [drive.path]
    assert maker.new().power_on("vm").pid == handle.pid
    with pytest.raises(NotFoundError):
        maker.new().power_on("never-was")


def test_what_start_made_is_forgotten(maker: Maker) -> None:
    hypervisor = maker.new()
    hypervisor.let_go("never-was")
    hypervisor.start(maker.machine(maker.drive("a")))
    with pytest.raises(StateError, match="on"):
        hypervisor.let_go("vm")
    assert hypervisor.status("vm") == "running"
    hypervisor.power_off("vm")
    hypervisor.let_go("vm")
    assert not maker.new().is_known("vm")
    maker.new().let_go("vm")
    with pytest.raises(NotFoundError):
        maker.new().power_on("vm")


def test_a_machine_that_was_there_gets_its_disks_back(maker: Maker) -> None:
    own, ours, later = maker.drive("own"), maker.drive("ours"), maker.drive("later")
    maker.add(maker.machine(own))
    assert maker.new().is_known("vm")
    for drive in (ours, later):  # the second one as a change of the point does
        maker.new().start(maker.machine(drive, operation="op"))
        assert maker.drives("vm") == [drive.path]
        maker.new().power_off("vm")
    maker.new().let_go("vm")
    maker.new().let_go("vm")
    assert maker.drives("vm") == [own.path]
    maker.new().power_on("vm")
    assert maker.drives("vm") == [own.path]


def test_a_guest_is_asked_to_shut_down(maker: Maker) -> None:
    needs(maker, "shutdown")
    maker.new().start(maker.machine(maker.drive("a")))
    maker.new().wait_for("vm", maker.marker, 20)
    assert maker.new().shut_down("vm", 30) == "shut down"
    assert maker.new().status("vm") == "off"
    assert maker.new().shut_down("vm", 30) == "was off"


def test_after_its_time_the_plug_is_pulled(maker: Maker) -> None:
    maker.new().start(maker.machine(maker.drive("a", deaf=True)))
    maker.new().wait_for("vm", maker.marker, 20)
    told = maker.new().shut_down("vm", 0.2)
    assert told.startswith("powered off: ")
    assert maker.new().status("vm") == "off"


def test_an_isolated_machine_has_no_wires(maker: Maker) -> None:
    with pytest.raises((NotFoundError, UnsupportedError)):
        maker.new().isolate("never-was")
    needs(maker, "isolate")
    maker.new().start(maker.machine(maker.drive("a"), **cards(maker, MAC)))
    assert maker.wires("vm") == 1
    assert maker.new().isolate("vm")
    assert maker.wires("vm") == 0
    assert maker.new().isolate("vm")
    assert maker.new().status("vm") == "running"
    maker.new().power_off("vm")
    maker.new().power_on("vm")
    assert maker.wires("vm") == 0, "it stays so"


def test_what_cannot_run_beside_another_is_found(maker: Maker) -> None:
    needs(maker, "conflicts")
    uuid = "5c1f0f5e-0000-4000-8000-000000000001"
    wanted = maker.machine(
        maker.drive("a"), uuid=uuid, **cards(maker, MAC.upper(), "192.0.2.7", "192.0.2.8")
    )
    assert maker.new().conflicts(wanted) == []
    mine = {drive.path for drive in wanted.drives}
    other = maker.machine(
        maker.drive("b"), id="other", uuid=uuid, **cards(maker, MAC, "192.0.2.8")
    )
    maker.new().start(other)
    found = {(conflict.kind, conflict.what.lower()) for conflict in maker.new().conflicts(wanted)}
    assert ("uuid", uuid) in found
    assert ("mac", MAC) in found
    assert {what for kind, what in found if kind == "address"} <= {"192.0.2.8"}
    assert not [what for kind, what in found if kind == "disk"]
    assert all("other" in conflict.where for conflict in maker.new().conflicts(wanted))
    assert maker.new().conflicts(other) == [], "a machine is in nobody's way itself"
    maker.new().power_off("other")
    assert maker.new().conflicts(wanted) == []
    maker.new().start(maker.machine(*wanted.drives, id="third"))
    disks = [each.what for each in maker.new().conflicts(wanted) if each.kind == "disk"]
    assert set(disks) == mine


def test_a_card_without_a_wire_is_in_nobodys_way(maker: Maker) -> None:
    needs(maker, "conflicts")
    maker.new().start(maker.machine(maker.drive("a"), id="other", **cards(maker, MAC)))
    bare = maker.machine(maker.drive("b"), **cards(maker, MAC, network="none"))
    assert maker.new().conflicts(bare) == []


def test_disks_are_frozen_at_one_cut(maker: Maker) -> None:
    if "freeze" not in maker.supports:
        maker.new().start(maker.machine(maker.drive("a")))
        with pytest.raises(UnsupportedError):
            maker.new().freeze("vm", {})
        return
    chains = [maker.chain(name) for name in ("a", "b")]
    tops = [top for _, top in chains]
    maker.new().start(maker.machine(*(Drive(top) for top in tops)))
    maker.write("vm", 0, 1, 65536, 4096)  # the top has another content id from here on
    for number in (2, 3):
        overlays = {top: maker.overlay(top, number) for top in tops}
        maker.write("vm", 1, number, number * 65536, 4096)
        for _ in range(2):  # asked again it changes nothing
            maker.new().freeze("vm", overlays)
        frozen = {top: content(top) for top in tops}
        maker.write("vm", 0, 0x40 + number, 3 * 65536, 8192)
        maker.write("vm", 1, 0x50 + number, 0, 512)
        assert {top: content(top) for top in tops} == frozen
        assert maker.reads("vm", 0, 1, 65536, 4096), "below what was frozen"
        tops = list(overlays.values())
        assert maker.drives("vm") == tops
    maker.new().start(maker.machine(*(Drive(top) for top in tops)))  # these are its disks now
    maker.new().power_off("vm")
    first, second = (content(top) for top in tops)
    assert first[65536 : 65536 + 4096] == bytes([1]) * 4096
    assert first[3 * 65536 : 3 * 65536 + 8192] == bytes([0x43]) * 8192
    assert second[2 * 65536 : 2 * 65536 + 4096] == bytes([2]) * 4096
    assert second[3 * 65536 : 3 * 65536 + 4096] == bytes([3]) * 4096
    assert second[:512] == bytes([0x53]) * 512
    for base, _ in chains:
        assert content(base)[512:] == bytes(SIZE_BYTES - 512)
    maker.new().power_on("vm")
    assert maker.drives("vm") == tops


def test_a_disk_that_the_machine_has_not_is_not_frozen(maker: Maker, tmp_path: Path) -> None:
    needs(maker, "freeze")
    _, top = maker.chain("a")
    other = maker.chain("b")[1]
    maker.new().start(maker.machine(Drive(top)))
    good, bad = maker.overlay(top, 2), maker.overlay(other, 2)
    with pytest.raises(HypervisorError, match=os.path.basename(other)):
        maker.new().freeze("vm", {top: good, other: bad})
    assert maker.drives("vm") == [top]
    maker.new().freeze("vm", {top: good})
    assert maker.drives("vm") == [good]
    assert maker.new().status("vm") == "running"


def test_chains_are_merged_while_the_machine_runs(maker: Maker) -> None:
    if "commit" not in maker.supports:
        maker.new().start(maker.machine(maker.drive("a")))
        with pytest.raises(UnsupportedError):
            maker.new().commit("vm", {}, lambda done, total: True)
        return
    chains = [maker.chain(name) for name in ("a", "b")]
    maker.new().start(maker.machine(*(Drive(top) for _, top in chains)))
    maker.write("vm", 0, 1, 65536, 4096)
    maker.write("vm", 1, 2, 200 << 10, 64 << 10)
    maker.new().commit("vm", {}, lambda done, total: False)
    assert maker.drives("vm") == [top for _, top in chains]
    wanted = {top: base for base, top in chains}
    before = {top: content(top) for top in wanted}
    told: list[tuple[int, int]] = []

    def decide(done: int, total: int) -> bool:
        told.append((done, total))
        if done == total:
            assert maker.new().status("vm") == "paused"
            assert {top: content(base) for top, base in wanted.items()} == before
        return True

    for _ in range(2):  # asked again it changes nothing
        maker.new().commit("vm", wanted, decide)
        assert [done == total for done, total in told].count(True) == 1
        assert told[-1][0] == told[-1][1]
        assert maker.new().status("vm") == "running"
        assert maker.drives("vm") == [base for base, _ in chains]
        told.clear()
    for top in wanted:
        os.unlink(top)
    maker.write("vm", 0, 3, 0x80000, 8192)
    assert maker.reads("vm", 1, 2, 200 << 10, 64 << 10)
    maker.new().power_off("vm")
    for base, top in chains:
        expected = bytearray(before[top])
        if base == chains[0][0]:
            expected[0x80000 : 0x80000 + 8192] = bytes([3]) * 8192
        assert content(base) == bytes(expected)
    maker.new().power_on("vm")
    assert maker.drives("vm") == [base for base, _ in chains]


def test_a_merge_that_is_given_up_leaves_the_chains(maker: Maker) -> None:
    needs(maker, "commit")
    base, top = maker.chain("a")
    maker.new().start(maker.machine(Drive(top)))
    maker.write("vm", 0, 1, 65536, 4096)
    for until in (lambda done, total: False, lambda done, total: done < total):
        with pytest.raises(CancelledError):
            maker.new().commit("vm", {top: base}, until)
        assert maker.new().status("vm") == "running"
        assert maker.drives("vm") == [top]
        maker.write("vm", 0, 2, 128 << 10, 4096)
        assert maker.reads("vm", 0, 0, 512 << 10, 4096), "through the chain"
    maker.new().power_off("vm")
    maker.new().power_on("vm")
    assert maker.reads("vm", 0, 0, 512 << 10, 4096), "through the chain, opened again"
    assert content(top)[128 << 10 :][:4096] == bytes([2]) * 4096
    maker.new().commit("vm", {top: base}, lambda done, total: True)
    assert maker.drives("vm") == [base]


def test_an_error_at_the_decision_leaves_it_open(maker: Maker) -> None:
    needs(maker, "commit")
    base, top = maker.chain("a")
    maker.new().start(maker.machine(Drive(top)))
    maker.write("vm", 0, 1, 65536, 4096)

    def fail(done: int, total: int) -> bool:
        if done == total:
            raise ZeroDivisionError
        return True

    with pytest.raises(ZeroDivisionError):
        maker.new().commit("vm", {top: base}, fail)
    assert maker.new().status("vm") == "paused"
    assert content(top) == content(base)
    maker.new().commit("vm", {top: base}, lambda done, total: True)
    assert maker.new().status("vm") == "running"
    assert maker.drives("vm") == [base]
