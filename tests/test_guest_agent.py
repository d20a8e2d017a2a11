"""QEMU's guest agent: one that answers now is told from one that is late, stuck, or not there."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from guests import tiny
from guests.shelf import Shelf
from hypervisor_makers import QemuMaker
from rollpoint import config, machines
from rollpoint.errors import HypervisorError, UnsupportedError
from rollpoint.hypervisor import qemu_agent, qemu_records
from rollpoint.hypervisor.base import Drive, Machine
from rollpoint.hypervisor.qemu import Qemu
from rollpoint.hypervisor.qemu_process import AGENT_SOCKET
from rollpoint.manifest import MachineSettings
from rollpoint.plans import gates
from rollpoint.plans.place import Place
from rollpoint.plans.tables import Gate

Agent = Callable[[socket.socket, int], None]


@contextlib.contextmanager
def agent(folder: Path, answer: Agent) -> Iterator[None]:
    """A machine's agent socket; answer gets the connection and the number that was asked."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / AGENT_SOCKET))
        server.listen()

        def serve() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as peer:
                line = peer.makefile("rb").readline()
                asked = json.loads(line.removeprefix(b"\xff"))
                assert asked["execute"] == "guest-sync-delimited"
                answer(peer, asked["arguments"]["id"])
                peer.recv(1)  # until the one who asked has gone

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def said(*texts: str) -> Agent:
    def answer(peer: socket.socket, number: int) -> None:
        for text in texts:
            peer.sendall(text.replace("N", str(number)).encode("latin-1"))

    return answer


def endless(peer: socket.socket, number: int) -> None:
    while True:
        peer.sendall(b"[" * 65536)


def deep(peer: socket.socket, number: int) -> None:
    peer.sendall(b"[" * 60000 + b"\n")
    said('{"return": N}\n')(peer, number)


def slow(peer: socket.socket, number: int) -> None:
    threading.Event().wait(0.2)
    said('{"return": N}\n')(peer, number)


BEATING: dict[str, Agent] = {
    "as the agent does": said('\xff{"return": N}\n'),
    "late words before it": said('{"return": 1}\n{"error": {}}\n', '\xff{"return": N}\r\n'),
    "half a word before it": said('{"ret\xff{"return": N}\n'),
    "in pieces": said("\xff", '{"retu', 'rn": N', "}", "\n"),
    "after what is no object": said('[1]\nnull\n{\n\xfe\xfe\n"N"\n{"return": N}\n'),
    "after what is too deep": deep,
    "after a moment": slow,
}
SILENT: dict[str, Agent] = {
    "nothing": said(),
    "an older answer": said('\xff{"return": 1}\n'),
    "half an answer": said('\xff{"return": N}'),
    "an error": said('{"error": {"class": "GenericError", "desc": "N"}}\n'),
    "no end": endless,
    "gone": lambda peer, number: peer.close(),
}


@pytest.mark.parametrize("how", BEATING)
def test_the_answer_to_the_number_that_was_asked_is_a_beat(tmp_path: Path, how: str) -> None:
    with agent(tmp_path, BEATING[how]):
        assert qemu_agent.answers(str(tmp_path))


@pytest.mark.parametrize("how", SILENT)
def test_anything_else_is_none(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_agent, "ANSWER_SECONDS_MAX", 0.2)
    with agent(tmp_path, SILENT[how]):
        assert not qemu_agent.answers(str(tmp_path))


def test_an_answer_without_an_end_takes_no_memory() -> None:
    class Endless:
        left = 500

        def settimeout(self, seconds: float) -> None:
            pass

        def recv(self, size: int) -> bytes:
            self.left -= 1
            return b"[" * size if self.left else b""

    tracemalloc.start()
    try:
        channel: Any = Endless()
        assert not qemu_agent._is_answered(channel, 1, math.inf)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_no_socket_is_no_beat(tmp_path: Path) -> None:
    assert not qemu_agent.answers(str(tmp_path))


def test_replica_toml_gives_the_machine_a_channel() -> None:
    def made(text: bytes, before: MachineSettings) -> Machine:
        said = config.parse(text, "replica.toml")
        settings = config.machine_of(said, before)
        return machines.machine(settings, said, [Drive("/a", "raw")], id="vm", name="vm")

    assert not made(b"", MachineSettings()).agent
    assert made(b"[machine]\nguest_agent = true\n", MachineSettings()).agent
    assert made(b"", MachineSettings(guest_agent=True)).agent
    assert not made(b"[machine]\nguest_agent = false\n", MachineSettings(guest_agent=True)).agent


def test_a_machine_without_a_channel_says_how_to_get_one(tmp_path: Path) -> None:
    maker = QemuMaker(tmp_path)
    try:
        maker.new().start(maker.machine(maker.drive("a")))
        assert not os.path.exists(tmp_path / "run" / "vm" / AGENT_SOCKET)
        with pytest.raises(UnsupportedError, match="without a channel") as caught:
            maker.new().beats("vm")
        assert "guest_agent = true" in caught.value.hint
    finally:
        maker.close()


@pytest.mark.long
def test_a_guest_whose_agent_answers_passes_its_gate(tmp_path: Path, guests: Shelf) -> None:
    """A Linux guest, over QEMU's virtio-serial; and it does no more once it stands still."""
    disk = guests.copy("agent", tmp_path / "d.raw", tiny.Recipe(stays=True, agent=True))
    qemu = Qemu(tmp_path / "run")
    drive = Drive(str(disk), "raw")
    place = Place(plan="p", run="r", kind="test", group="g", replica="tiny", machine="vm")

    def look(retries: int) -> str:
        gate = Gate(kind="heartbeat", interval="200ms", timeout="5s", retries=retries)
        row = gates.wait(
            gate, place, hypervisor=qemu, gives_up=lambda: False, tell=lambda row: None
        )
        return f"{row['state']}: {row['says']}"

    try:
        qemu.start(Machine("vm", "vm", (drive,), 128 << 20, bus="virtio-blk", agent=True))
        assert look(50) == "passed: the guest agent answers"
        assert qemu.wait_for("vm", tiny.READY, 0)
        assert look(0) == "passed: the guest agent answers", "asked by another connection"
        with qemu.qmp("vm") as qmp:
            qmp.execute("stop")
        assert look(0) == "failed: no heartbeat"
        with qemu.qmp("vm") as qmp:
            qmp.execute("cont")
        assert look(5) == "passed: the guest agent answers"
    finally:
        qemu.kill("vm")
    with pytest.raises(HypervisorError, match="does not run"):
        qemu.beats("vm")


def test_what_was_recorded_before_there_were_channels_is_read(tmp_path: Path) -> None:
    machine = Machine("vm", "vm", (Drive("/a", "raw"),))
    qemu_records.store(str(tmp_path), qemu_records.Record(machine=machine))
    file = tmp_path / qemu_records.FILE_NAME
    record = json.loads(file.read_text())
    assert record["machine"].pop("agent") is False
    file.write_text(json.dumps(record))
    known = qemu_records.load(str(tmp_path))
    assert known is not None
    assert known.machine == machine
    settings = msgspec.to_builtins(MachineSettings())
    settings.pop("guest_agent")
    assert msgspec.convert(settings, MachineSettings) == MachineSettings()
