"""replica.toml: what it says counts, and a mistake in it is told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from rollpoint import config
from rollpoint._native import Io
from rollpoint.errors import UsageError
from rollpoint.manifest import MachineSettings

WHOLE = """\
[machine]
memory = "2G"
cpus = 2
firmware = "uefi"
controller = "pvscsi"
nic = "vmxnet3"
marker = "login:"
timeout = "90s"

[mount]
mode = "files"

[guest]
target = "vsphere"
hostname = "web01"
dns = ["10.0.0.53"]

[[guest.network]]
mac = "00:50:56:00:00:01"
was = "52:54:00:00:00:01"
addresses = ["10.0.0.7/24"]
gateway = "10.0.0.1"
"""


def test_what_it_says_is_taken_and_the_rest_stays() -> None:
    said = config.parse(WHOLE.encode(), "replica.toml")
    machine = config.machine_of(said, MachineSettings(accelerator="kvm"))
    assert machine.memory_bytes == 2 << 30
    assert (machine.cpus, machine.timeout_seconds) == (2, 90.0)
    assert (machine.accelerator, machine.controller) == ("kvm", "pvscsi")
    wanted = said.wanted("pvscsi", "vmxnet3", "uefi")
    assert (wanted.target, wanted.hostname, wanted.dns) == ("vsphere", "web01", ["10.0.0.53"])
    assert wanted.networks[0].addresses == ["10.0.0.7/24"]
    assert said.mount.mode == "files"
    assert said.mount.trust_guest is False


def test_without_the_file_everything_is_as_it_was(tmp_path: Path) -> None:
    said = config.load(Io.posix().open_dir(str(tmp_path)))
    assert said == config.Config()
    before = MachineSettings(memory_bytes=1 << 30, marker="UP")
    assert config.machine_of(said, before) == before


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ('[machine]\nmemory = "2G"\nmemroy = "2G"\n', 3, "memroy"),
        ('[mount]\n\nmode = "kernel"\n', 3, "kernel"),
        ("[guest]\ndns = 7\n", 2, "array"),
        ('# all of it\n[guest]\n[[guest.network]]\nmac = "a"\nadresses = []\n', 5, "adresses"),
        ('[machine]\ncontroller = "floppy"\n', 2, "floppy"),
        ("[mouse]\n", 1, "mouse"),
        ('[mount]\ntrust_guest = "yes"\n', 2, "true or false"),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, line: int, word: str) -> None:
    with pytest.raises(UsageError, match=rf"line {line}: .*{word}"):
        config.parse(text.encode(), "r/replica.toml")


@pytest.mark.parametrize("data", [b"[machine\n", b"\xff\xfe", b"a = " + b"[" * 5000])
def test_what_is_no_toml_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"replica\.toml is no TOML"):
        config.parse(data, "replica.toml")


@pytest.mark.parametrize("name", ["memory", "timeout"])
def test_sizes_and_durations_are_looked_at(name: str) -> None:
    with pytest.raises(UsageError, match=rf"replica\.toml, line 3: machine\.{name}: 'much' is not"):
        config.parse(f'[machine]\n\n{name} = "much"\n'.encode(), "replica.toml")


def test_a_replica_has_the_labels_that_it_says() -> None:
    assert config.parse(b'labels = ["web", "tier-1"]\n', "replica.toml").labels == ["web", "tier-1"]
    assert config.parse(b"", "replica.toml").labels == []


@pytest.mark.parametrize("label", ["", "a b", "label:web", "-web", "web*", "a/b", "w" * 65])
def test_what_a_plan_could_not_ask_for_is_no_label(label: str) -> None:
    text = f'labels = [\n  "web",\n  "{label}",\n]\n'
    with pytest.raises(UsageError, match=r"replica\.toml, line 3: .* is no label") as raised:
        config.parse(text.encode(), "replica.toml")
    assert "letters" in raised.value.hint


def test_mistakes_in_later_cards_have_their_own_lines() -> None:
    text = WHOLE + '\n[[guest.network]]\nmac = 7\n'
    with pytest.raises(UsageError, match=rf"line {text.count(chr(10))}: guest\.network\.mac"):
        config.parse(text.encode(), "replica.toml")
