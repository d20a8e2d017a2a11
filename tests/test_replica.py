"""Replicas: made, adopted, seeded, looked at, verified and removed, all or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require_tool
from replicas import SEGMENT_BYTES, digest, seen_by_qemu
from rollpoint import _native, provision
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import (
    DamagedError,
    ExistsError,
    FormatError,
    LockedError,
    NotFoundError,
    StateError,
    UsageError,
)
from rollpoint.manifest import store
from rollpoint.replica import Replica, list_replicas

ODD = 512 * 4099  # not a multiple of anything but a sector


def listing(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.is_file()}


def test_a_new_replica_has_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "web01"
    with Replica.create(path, [("root", ODD), ("data", 1 << 20)], grain_bytes=8192) as replica:
        facts = replica.show()
    assert facts["state"] == "Ready"
    assert facts["epoch"] == 1
    assert facts["disks"] == [
        {
            "name": name,
            "size_bytes": size,
            "base": str(path / f"{name}.vmdk"),
            "journal": str(path / f"{name}-journal.vmdk"),
            "grain_bytes": 8192,
            "interim": None,
        }
        for name, size in (("root", ODD), ("data", 1 << 20))
    ]
    json.dumps(facts)
    assert os.stat(path).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("size", [512, 1024, 4096 + 512, ODD, (1 << 41) + 512])
def test_any_multiple_of_512_is_a_size_and_other_readers_agree(tmp_path: Path, size: int) -> None:
    Replica.create(tmp_path / "r", [("d", size)], segment_bytes=SEGMENT_BYTES).close()
    for name in ("d.vmdk", "d-journal.vmdk"):
        done = subprocess.run(
            [require_tool("qemu-img"), "info", "--output=json", tmp_path / "r" / name],
            capture_output=True, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout)["virtual-size"] == size


def test_an_open_replica_is_the_one_that_was_made(tmp_path: Path) -> None:
    with Replica.create(tmp_path / "r", [("d", 4096)]) as made:
        wanted = made.manifest
    with Replica.open(tmp_path / "r") as found:
        assert found.manifest == wanted
        assert len(found.points) == 0
        rpo = found.rpo()
        assert [rpo[key] for key in ("target_seconds", "lag_seconds", "newest", "missed")] == [
            None, None, None, 0
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("disks", "grain", "match"),
    [
        ([], 4096, "at least one disk"),
        ([("d", 0)], 4096, "cannot have 0 bytes"),
        ([("d", 513)], 4096, "cannot have 513 bytes"),
        ([("d", 4096), ("d", 4096)], 4096, "one name"),
        ([("d", 4096), ("D", 4096)], 4096, "one name"),
        ([("../d", 4096)], 4096, "cannot name a disk"),
        ([("d-flat", 4096)], 4096, "cannot name a disk"),
        ([("d", 4096)], 512, "grains of 512"),
        ([("d", 4096)], 5000, "grains of 5000"),
        ([("d", 4096)], 131072, "grains of 131072"),
    ],
)
def test_an_impossible_replica_is_not_begun(
    tmp_path: Path, disks: list[tuple[str, int]], grain: int, match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        Replica.create(tmp_path / "r", disks, grain_bytes=grain)
    assert not (tmp_path / "r").exists()


def test_nothing_is_made_where_something_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExistsError, match=r"mine\.txt"):
        Replica.create(tmp_path, [("d", 4096)])
    assert listing(tmp_path) == {"mine.txt": b"mine"}
    Replica.create(tmp_path / "r", [("d", 4096)]).close()
    before = listing(tmp_path / "r")
    with pytest.raises(ExistsError, match="a replica already"):
        Replica.create(tmp_path / "r", [("d", 4096)])
    assert listing(tmp_path / "r") == before


def test_a_missing_parent_or_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        Replica.create(tmp_path / "nowhere" / "r", [("d", 4096)])
    (tmp_path / "file").write_text("")
    for call in (Replica.open, lambda place: Replica.create(place, [("d", 4096)])):
        with pytest.raises(Exception, match="file") as caught:
            call(tmp_path / "file")
        assert caught.type.__module__ == "rollpoint.errors"


def test_a_creation_that_was_cut_short_is_taken_back(tmp_path: Path) -> None:
    """The manifest stands first: what follows a kill is known, and removed by the next try."""
    path = tmp_path / "r"
    with Replica.create(path, [("d", 4096)]) as replica:
        replica.manifest.begin("create", "2026-11-22T00:00:00.000000Z")
        store(replica.directory, replica.manifest)
    (path / "d-journal.vmdk").unlink()
    with Replica.create(path, [("e", 8192)]) as replica:
        assert [disk.name for disk in replica.manifest.disks] == ["e"]
    assert not (path / "d.vmdk").exists()


def make_disk(path: Path, kind: str, data: bytes) -> None:
    create_disk(str(path), kind, len(data))
    with open_disk(path, writable=True) as disk:
        disk.pwrite(data, 0)


@pytest.mark.parametrize(
    "kind", ["monolithicFlat", "monolithicSparse", "twoGbMaxExtentSparse", "vmfs", "vmfsSparse"]
)
def test_adopting_changes_not_one_byte_of_the_base(tmp_path: Path, kind: str) -> None:
    data = random.Random(1).randbytes(1 << 20)
    make_disk(tmp_path / "old.vmdk", kind, data)
    before = listing(tmp_path)
    with Replica.adopt(tmp_path, {"root": tmp_path / "old.vmdk"}) as replica:
        assert replica.manifest.disks[0].base == "old.vmdk"
        assert replica.manifest.disks[0].size_bytes == len(data)
        assert replica.verify()["ok"]
    after = listing(tmp_path)
    assert {name: after[name] for name in before} == before
    if kind != "vmfsSparse":
        assert seen_by_qemu(tmp_path / "root-journal.vmdk", tmp_path) == data
    with Replica.open(tmp_path) as replica:
        assert replica.remove() == ["old.vmdk"]
    assert listing(tmp_path) == before


def test_adopting_refuses_what_cannot_be_a_base(tmp_path: Path) -> None:
    place = tmp_path / "r"
    place.mkdir()
    make_disk(tmp_path / "elsewhere.vmdk", "monolithicFlat", bytes(4096))
    make_disk(place / "parent.vmdk", "monolithicFlat", bytes(4096))
    create_disk(str(place / "child.vmdk"), "monolithicSparse", parent=str(place / "parent.vmdk"))
    (place / "raw.img").write_bytes(bytes(4096))
    before = listing(place)
    with pytest.raises(UsageError, match="is not in"):
        Replica.adopt(place, {"d": tmp_path / "elsewhere.vmdk"})
    with pytest.raises(UsageError, match="snapshot"):
        Replica.adopt(place, {"d": place / "child.vmdk"})
    with pytest.raises(FormatError, match=r"raw\.img"):
        Replica.adopt(place, {"d": place / "raw.img"})
    with pytest.raises(NotFoundError, match="gone"):
        Replica.adopt(place, {"d": place / "gone.vmdk"})
    (place / "parent-flat.vmdk").write_bytes(bytes(512))
    with pytest.raises(DamagedError, match="parent-flat"):
        Replica.adopt(place, {"d": place / "parent.vmdk"})
    assert listing(place) == before | {"parent-flat.vmdk": bytes(512)}


@pytest.mark.parametrize("image", ["image.raw", "image.vmdk"])
def test_seeding_makes_the_base_the_image(tmp_path: Path, image: str) -> None:
    data = bytes(65536) + random.Random(2).randbytes(ODD - 131072) + bytes(65536)
    source = tmp_path / image
    if image.endswith(".vmdk"):
        make_disk(source, "monolithicSparse", data)
    else:
        source.write_bytes(data)
    with Replica.create(tmp_path / "r", [("d", ODD), ("e", 4096)]) as replica:
        replica.seed({"d": source})
        assert replica.manifest.state == "Ready"
        assert replica.verify()["ok"]
    assert seen_by_qemu(tmp_path / "r" / "d.vmdk", tmp_path) == data
    assert seen_by_qemu(tmp_path / "r" / "d-journal.vmdk", tmp_path) == data


def test_a_second_seed_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"\1" * 65536)
    (tmp_path / "two").write_bytes(b"\2" * 4096 + bytes(61440))
    with Replica.create(tmp_path / "r", [("d", 65536)]) as replica:
        replica.seed({"d": tmp_path / "one"})
        replica.seed({"d": tmp_path / "two"})
    assert seen_by_qemu(tmp_path / "r" / "d.vmdk", tmp_path) == b"\2" * 4096 + bytes(61440)


def test_seeding_refuses_other_sizes_disks_and_formats_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(bytes(512))
    (tmp_path / "not.vmdk").write_bytes(random.Random(3).randbytes(4096))
    with Replica.create(tmp_path / "r", [("d", 4096)]) as replica:
        before = listing(tmp_path / "r")
        with pytest.raises(UsageError, match="has 512 bytes, disk d has 4096"):
            replica.seed({"d": tmp_path / "small"})
        with pytest.raises(NotFoundError, match="no disk 'x'"):
            replica.seed({"x": tmp_path / "small"})
        with pytest.raises(FormatError, match=r"not\.vmdk"):
            replica.seed({"d": tmp_path / "not.vmdk"})
        with pytest.raises(NotFoundError, match="gone"):
            replica.seed({"d": tmp_path / "gone"})
        with pytest.raises(UsageError, match="nothing to seed"):
            replica.seed({})
        assert listing(tmp_path / "r") == before


def test_a_seeding_that_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    from rollpoint import operation

    (tmp_path / "image").write_bytes(b"\1" * 65536)
    with (
        Replica.create(tmp_path / "r", [("d", 65536)]) as replica,
        pytest.raises(StateError, match="stopped"),
    ):
        replica.seed({"d": tmp_path / "image"}, lambda name, done, total: False)
    with Replica.open(tmp_path / "r") as replica:
        assert replica.manifest.state == "Processing"
        with pytest.raises(StateError, match="has not ended"):
            replica.need_state("Ready", doing="use")
        done = operation.resume(replica)
        assert done is not None
        assert done.state == "Ready"
    assert seen_by_qemu(tmp_path / "r" / "d-journal.vmdk", tmp_path) == b"\1" * 65536


def test_listing_finds_replicas_and_tells_of_damaged_ones(tmp_path: Path) -> None:
    for name in ("b", "a"):
        Replica.create(tmp_path / name, [("d", 4096)]).close()
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "replica.json").write_text("{")
    found = {str(row["name"]): row for row in list_replicas(tmp_path)}
    assert list(found) == ["a", "b", "broken"]
    assert found["a"]["state"] == "Ready"
    assert "broken/replica.json" in str(found["broken"]["error"])


@pytest.mark.parametrize("file", ["d-flat.vmdk", "d-journal-log.vmdk", "d-journal.vmdk", "d.vmdk"])
def test_verify_names_a_missing_or_cut_file(tmp_path: Path, file: str) -> None:
    with Replica.create(tmp_path / "r", [("d", 65536)]) as replica:
        (tmp_path / "r" / file).write_bytes((tmp_path / "r" / file).read_bytes()[:100])
        report = replica.verify()
    assert not report["ok"]
    assert file.removesuffix(".vmdk") in json.dumps(report)


def test_removing_leaves_nothing_behind(tmp_path: Path) -> None:
    with Replica.create(tmp_path / "r", [("d", 4096)]) as replica:
        assert replica.remove() == []
    assert not (tmp_path / "r").exists()


def test_removing_keeps_what_is_not_ours(tmp_path: Path) -> None:
    with Replica.create(tmp_path / "r", [("d", 4096)]) as replica:
        (tmp_path / "r" / "notes.txt").write_text("keep")
        replica.remove()
    assert listing(tmp_path / "r") == {"notes.txt": b"keep"}


def test_removing_wants_a_state_or_the_name(tmp_path: Path) -> None:
    with Replica.create(tmp_path / "r", [("d", 4096)]) as replica:
        with replica.locked():
            replica.manifest.state = "Failover"
            replica.save()
        with pytest.raises(StateError, match="its state is Failover"):
            replica.remove()
        with pytest.raises(UsageError, match="not that of this replica"):
            replica.remove("other")
        replica.remove("r")
    assert not (tmp_path / "r").exists()


def test_a_lock_keeps_every_other_operation_out(tmp_path: Path) -> None:
    with Replica.create(tmp_path / "r", [("d", 4096)]) as one, Replica.open(tmp_path / "r") as two:
        with one.locked():
            with pytest.raises(LockedError, match="another operation"), two.locked():
                pass
            with pytest.raises(LockedError):
                two.remove()
        with two.locked():
            pass


def test_digests_of_a_base_do_not_change_by_looking(tmp_path: Path) -> None:
    with Replica.create(tmp_path / "r", [("d", 65536)]) as replica:
        before = {name: digest(tmp_path / "r" / name) for name in os.listdir(tmp_path / "r")}
        replica.show()
        replica.verify()
        assert len(replica.points) == 0
        list_replicas(tmp_path)
    assert before == {name: digest(tmp_path / "r" / name) for name in before}


def test_a_creation_that_comes_second_leaves_the_first_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = provision._locked

    @contextlib.contextmanager
    def late(directory: _native.Dir) -> Iterator[None]:
        monkeypatch.setattr(provision, "_locked", locked)
        Replica.create(tmp_path / "r", [("one", 1 << 20)]).close()
        with locked(directory):
            yield

    (tmp_path / "r").mkdir()
    monkeypatch.setattr(provision, "_locked", late)
    with pytest.raises(ExistsError):
        Replica.create(tmp_path / "r", [("one", 1 << 20)])
    with Replica.open(tmp_path / "r") as replica:
        assert [disk.name for disk in replica.manifest.disks] == ["one"]
        replica.journals().close()
