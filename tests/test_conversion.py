"""The step "convert" of a failover: what becomes of disks with and without a guest."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from conftest import require_tool
from guests.protected import below
from replicas import ingesting, rollpoint
from rollpoint import operation, replication
from rollpoint.errors import Error, GuestError, UnsupportedError, UsageError
from rollpoint.replica import Replica

MIB = 1 << 20
SIZE = 8 * MIB


def luks() -> bytes:
    """The head of a disk that LUKS1 encrypted as a whole."""
    head = struct.pack(">6sH32s32s32sII", b"LUKS\xba\xbe", 1, b"aes", b"xts", b"sha256", 4096, 64)
    return head.ljust(168, b"\0") + b"11111111-2222-3333-4444-555555555555".ljust(40, b"\0")


def ext4(folder: Path) -> bytes:
    """A file system of data alone."""
    (folder / "tree").mkdir()
    (folder / "tree" / "letter").write_text("no system is here\n")
    image = folder / "ext4.raw"
    image.write_bytes(bytes(SIZE))
    subprocess.run(
        [require_tool("mke2fs"), "-q", "-t", "ext4", "-d", folder / "tree", image], check=True
    )
    return image.read_bytes()


def protect(path: Path, content: bytes, settings: str = "") -> None:
    """A replica of one disk with that content, and a restore point."""
    image = path.parent / "image.raw"
    image.write_bytes(content.ljust(SIZE, b"\0"))
    Replica.create(path, [("system", SIZE)]).close()
    with Replica.open(path) as replica:
        replica.seed({"system": image})
    with ingesting(path, path.parent / "s"), Replica.open(path) as replica:
        replication.mark(replica, "crash", "")
    (path / "replica.toml").write_text(settings)


def convert_note(path: Path, **options: bool) -> str:
    with Replica.open(path) as replica:
        outcome = operation.failover(replica, power_on=False, **options)  # type: ignore[arg-type]
        operation.undo(replica)
    return next(step.note for step in outcome.steps if step.name == "convert")


def refused(path: Path, kind: type[Error]) -> Error:
    """A failover that fails, and leaves everything as it found it."""
    before = below(path)
    with Replica.open(path) as replica, pytest.raises(kind) as caught:
        operation.failover(replica, power_on=False)
    with Replica.open(path) as replica:
        assert replica.manifest.state == "Ready"
        assert not replica.manifest.held
        last = replica.manifest.history[-1]
        assert last.outcome == "rolled back"
        assert caught.value.message in str(last.error)
    assert not list(path.glob("*-interim*"))
    changed = {name for name, digest in below(path).items() if digest != before[name]}
    assert changed <= {"system-journal-log.vmdk"}, "the epoch alone, of the hold and its release"
    return caught.value


def test_disks_on_which_nothing_is_known_are_left_alone(tmp_path: Path) -> None:
    protect(tmp_path / "r", b"\x90" * 510 + b"\x55\xaa")
    assert convert_note(tmp_path / "r") == "nothing known is on the disks: left as they are"
    assert not (tmp_path / "r" / "conversion.json").exists()


def test_they_are_refused_where_a_guest_is_expected(tmp_path: Path) -> None:
    protect(tmp_path / "r", b"", '[guest]\nconvert = "always"\n')
    error = refused(tmp_path / "r", GuestError)
    assert "system: empty" in error.message
    assert "--no-convert" in error.hint


def test_an_encrypted_disk_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    protect(tmp_path / "r", luks())
    error = refused(tmp_path / "r", Error)
    assert "LUKS" in error.message


def test_a_disk_of_data_is_refused_and_can_be_started_all_the_same(tmp_path: Path) -> None:
    protect(tmp_path / "r", ext4(tmp_path))
    error = refused(tmp_path / "r", GuestError)
    assert "system" in error.message
    assert "ext4" in error.message
    assert convert_note(tmp_path / "r", convert=False) == "left as it is"
    (tmp_path / "r" / "replica.toml").write_text('[guest]\nconvert = "never"\n')
    assert convert_note(tmp_path / "r") == "left as it is"


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ('[mount]\nmode = "host"\n', UnsupportedError, "trust_guest = true"),
        ('[mount]\nmode = "hots"\n', UsageError, "line 2"),
        ('[machine]\nmemory = "2 elephants"\n', UsageError, "not a size"),
    ],
)
def test_a_mistake_in_the_settings_is_told_before_or_undone_after(
    tmp_path: Path, settings: str, kind: type[Error], words: str
) -> None:
    protect(tmp_path / "r", ext4(tmp_path), settings)
    with Replica.open(tmp_path / "r") as replica, pytest.raises(kind) as caught:
        operation.failover(replica, power_on=False)
    assert words in str(caught.value)
    with Replica.open(tmp_path / "r") as replica:
        assert replica.manifest.state == "Ready"
        assert replica.manifest.operation is None


def test_the_command_line_tells_it_and_remove_takes_the_record_along(tmp_path: Path) -> None:
    path = tmp_path / "r"
    protect(path, b"")
    told = rollpoint("failover", path, "--no-power-on")
    notes = {step["name"]: step["note"] for step in told["steps"]}
    assert notes["convert"] == "nothing known is on the disks: left as they are"
    rollpoint("undo", path)
    told = rollpoint("failover", path, "--no-power-on", "--no-convert")
    assert "left as it is" in [step["note"] for step in told["steps"]]
    rollpoint("undo", path)
    rollpoint("replica", "remove", path, "--force", "r")
    assert not path.exists()
    shutil.rmtree(tmp_path / "r", ignore_errors=True)


def test_a_hibernated_guest_is_refused(tmp_path: Path) -> None:
    swap = bytes(4086) + b"S1SUSPEND\0"
    protect(tmp_path / "r", swap)
    error = refused(tmp_path / "r", GuestError)
    assert "hibernates" in error.message
    assert "system" in error.message
