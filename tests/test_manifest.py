"""The manifest: what is written is read back, and nothing else is taken for one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from rollpoint import _native
from rollpoint import manifest as room
from rollpoint.errors import (
    DamagedError,
    FormatError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)


def sample() -> room.Manifest:
    return room.Manifest(
        format=room.FORMAT,
        version=room.VERSION,
        id="0c2f8e2e-95b1-4f0e-8f6b-0d3b1c1f5a11",
        name="web01",
        created="2026-11-22T10:15:00.000000Z",
        state="Failover",
        epoch=7,
        held=True,
        disks=[
            room.DiskEntry(
                name="root",
                size_bytes=512 * 1234567,
                base="root.vmdk",
                journal="root-journal.vmdk",
                grain_bytes=4096,
                segment_bytes=65536,
            ),
            room.DiskEntry(
                name="data",
                size_bytes=1 << 40,
                base="d.vmdk",
                journal=None,
                grain_bytes=8192,
                segment_bytes=1 << 30,
            ),
        ],
        next_point_id=42,
        rpo=room.Rpo(target_seconds=2),
        gaps=[room.Gap(start="a", end=None, cause="the link was down")],
        ingest=room.IngestRecord(pid=17, socket="/x/y", started="b", rpo_seconds=1),
        recovered=room.Recovered(operation="op", point=3, interims={"root": "root-interim.vmdk"}),
        operation=room.Operation(
            id="op",
            kind="failover",
            started="c",
            found_state="Ready",
            steps=[room.Step(name="hold", state="done", started_ns=5, seconds=1)],
            point=3,
        ),
    )


def open_dir(path: Path) -> _native.Dir:
    return _native.Io.posix().open_dir(str(path))


def test_it_reads_back_what_was_stored(tmp_path: Path) -> None:
    directory = open_dir(tmp_path)
    room.store(directory, sample())
    found = room.load(directory)
    again = room.load(directory)
    assert found == again
    assert room.decode(room.encode(found), "x") == found
    expected = sample()
    room.encode(expected)
    assert found == expected


def test_it_is_json_that_other_programs_read(tmp_path: Path) -> None:
    room.store(open_dir(tmp_path), sample())
    read = json.loads((tmp_path / "replica.json").read_text())
    assert read["format"] == "rollpoint-replica"
    assert [disk["name"] for disk in read["disks"]] == ["root", "data"]


def test_white_space_and_order_of_keys_do_not_matter(tmp_path: Path) -> None:
    document = json.loads(room.encode(sample()))
    turned = dict(reversed(document.items()))
    assert room.decode(json.dumps(turned).encode(), "x").epoch == 7


def test_a_directory_without_one_is_not_a_replica(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is not a replica") as caught:
        room.load(open_dir(tmp_path))
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("text", ["[]", "1", '{"format": "other"}', "{}", "null"])
def test_json_of_others_is_a_format_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "replica.json").write_text(text)
    with pytest.raises(FormatError, match=r"replica\.json"):
        room.load(open_dir(tmp_path))


def test_a_newer_version_is_refused_with_both_numbers(tmp_path: Path) -> None:
    document = json.loads(room.encode(sample())) | {"version": 99, "news": 1}
    (tmp_path / "replica.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedError, match="version 99; this program knows 1"):
        room.load(open_dir(tmp_path))


def test_every_cut_of_the_file_is_reported(tmp_path: Path) -> None:
    data = room.encode(sample())
    for length in range(0, len(data.rstrip()), 7):
        with pytest.raises((DamagedError, FormatError), match=r"here/replica\.json"):
            room.decode(data[:length], "here/replica.json")


@pytest.mark.parametrize("seed", range(20))
def test_no_changed_byte_goes_unnoticed(seed: int) -> None:
    """A changed byte is reported, or (white space) leaves every value as it was."""
    rng = random.Random(seed)
    data = room.encode(sample())
    expected = room.decode(data, "x")
    for _ in range(100):
        place = rng.randrange(len(data))
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        try:
            found = room.decode(bytes(changed), "x")
        except (DamagedError, FormatError, UnsupportedError):
            continue
        assert found == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("state", "Broken"),
        ("epoch", 0),
        ("epoch", "1"),
        ("disks", None),
        ("held", 1),
        ("surprise", 1),
        ("next_point_id", -1),
    ],
)
def test_impossible_values_are_damage(key: str, value: object) -> None:
    document = json.loads(room.encode(sample())) | {key: value}
    with pytest.raises(DamagedError, match="damaged"):
        room.decode(json.dumps(document).encode(), "replica.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ".hidden"),
        ("name", "a/b"),
        ("size_bytes", 513),
        ("size_bytes", 0),
        ("base", "../elsewhere.vmdk"),
        ("journal", "/etc/passwd"),
        ("grain_bytes", 3000),
    ],
)
def test_impossible_disks_are_damage(key: str, value: object) -> None:
    document = json.loads(room.encode(sample()))
    document["disks"][0][key] = value
    with pytest.raises(DamagedError, match="damaged"):
        room.decode(json.dumps(document).encode(), "replica.json")


@pytest.mark.parametrize("name", ["root", "a", "Disk_0", "x.y-z", "_", "9lives", "web01-root"])
def test_plain_names_may_name_a_disk(name: str) -> None:
    assert room.check_disk_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".x", "-x", "a/b", "a b", "ä", "a\n", "a\0", "x" * 101,
     "web-journal", "web-journal-log", "web-interim", "web-interim-delta", "web-flat",
     "web-000001", "web-s001", "web.vmdk", "WEB-FLAT", "a-flat.vmdk"],
)  # fmt: skip
def test_names_that_would_clash_or_escape_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        room.check_disk_name(name)


def test_the_history_is_bounded_and_found_by_id() -> None:
    manifest = sample()
    for number in range(100):
        operation = room.Operation(
            id=str(number), kind="undo", started="", found_state="Failover", steps=[]
        )
        manifest.remember(operation)
    assert manifest.operation is None
    assert len(manifest.history) == room.HISTORY_KEPT
    assert manifest.remembered("99") is not None
    assert manifest.remembered("3") is None
