"""A planned failover: the source goes down in order, and nothing that it wrote is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from killing import MOMENTS, FileHypervisor, Snapshot, feed, killed_at
from replicas import Source, empty_model, ingesting, make, seen_by_qemu
from rollpoint import failing_over, operation, planned, replication
from rollpoint.disk import open_disk
from rollpoint.errors import (
    GapError,
    HypervisorError,
    NotFoundError,
    UsageError,
    VerificationError,
)
from rollpoint.hypervisor.base import Handle, Machine
from rollpoint.replica import Replica

TOML = '[source]\nkind = "qemu"\nmachine = "web"\ncompare = "never"\n'
STEPS = failing_over.steps_of(True)


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Snapshot]]:
    return feed(tmp_path_factory.mktemp("fed"))


def prepared(origin: Path, tmp_path: Path) -> tuple[Path, FileHypervisor, FileHypervisor]:
    """A copy of the replica; where its machine will run; where the source runs."""
    path = Path(shutil.copytree(origin, tmp_path / "r"))
    (path / "replica.toml").write_text(TOML)
    source = FileHypervisor(tmp_path / "site")
    source.power_on("web")
    return path, FileHypervisor(tmp_path / "machines"), source


def test_the_last_write_is_there_and_the_source_is_off(tmp_path: Path) -> None:
    make(tmp_path / "r")
    (tmp_path / "r" / "replica.toml").write_text(TOML)
    site, here = FileHypervisor(tmp_path / "site"), FileHypervisor(tmp_path / "here")
    site.power_on("web")
    with ingesting(tmp_path / "r", tmp_path / "s"), Replica.open(tmp_path / "r") as replica:
        client = Source(tmp_path / "s", empty_model(), 5)
        for _ in range(30):
            client.act()
        wanted = client.snapshot()
        client.close()
        done = operation.failover(replica, hypervisor=here, source=site, planned=True)
        assert [step.name for step in done.steps] == list(STEPS)
        point = replica.points.latest
        assert (point.id, point.kind, point.label) == (done.point, "app", planned.LABEL)
        assert (site.status("web"), len(here.starts())) == ("off", 1)
        for name, interim in done.interims.items():
            assert seen_by_qemu(interim, tmp_path) == wanted[name]
        recovered = replica.manifest.recovered
        assert recovered is not None
        assert recovered.cut is not None
        assert (recovered.cut.point, recovered.cut.digests) == (done.point, {})


def with_images(path: Path, tmp_path: Path, images: dict[str, bytes]) -> None:
    """The source's disks, as files that replica.toml names."""
    lines = [TOML.replace('compare = "never"\n', ""), "[source.disks]\n"]
    for name, data in images.items():
        (tmp_path / f"{name}.raw").write_bytes(data)
        lines.append(f'{name} = "{tmp_path}/{name}.raw"\n')
    (path / "replica.toml").write_text("".join(lines))


def test_the_cut_is_proven_by_digests_of_both_sides(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path
) -> None:
    path, here, site = prepared(fed[0], tmp_path)
    with_images(path, tmp_path, fed[1][-1])
    with Replica.open(path) as replica:
        done = operation.failover(replica, hypervisor=here, source=site, planned=True)
        assert replica.manifest.recovered is not None
        cut = replica.manifest.recovered.cut
        assert cut is not None
        assert (cut.point, set(cut.digests)) == (done.point, {"a", "b"})
        assert all(cut.stamps.values())
        with open_disk(done.interims["a"]) as disk:
            assert planned.digest(planned.Native(disk.reading), disk.size_bytes) == cut.digests["a"]


def test_one_byte_that_differs_is_found_and_the_source_serves_again(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path
) -> None:
    path, here, site = prepared(fed[0], tmp_path)
    images = dict(fed[1][-1])
    changed = bytearray(images["b"])
    changed[300_007] ^= 1
    with_images(path, tmp_path, {**images, "b": bytes(changed)})
    with Replica.open(path) as replica:
        with pytest.raises(VerificationError, match="disk b is not what the source has") as caught:
            operation.failover(replica, hypervisor=here, source=site, planned=True)
        assert f"from byte {300_007 // 4096 * 4096} to" in caught.value.message
        assert (replica.manifest.state, replica.manifest.held) == ("Ready", False)
    assert (site.status("web"), here.starts()) == ("running", [])


def test_where_something_may_be_missing_it_is_refused_and_the_source_serves_again(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path
) -> None:
    path, here, site = prepared(fed[0], tmp_path)
    with Replica.open(path) as replica:
        with replica.locked():
            replication.open_gap(replica, replica.manifest.created, "the line was cut", resync=True)
            replica.save()
        with pytest.raises(GapError, match="the line was cut") as caught:
            operation.failover(replica, hypervisor=here, source=site, planned=True)
        assert "without --planned" in caught.value.hint
        assert (replica.manifest.state, replica.manifest.held) == ("Ready", False)
    assert (site.status("web"), here.starts()) == ("running", [])


class Refusing(FileHypervisor):
    def start(self, machine: Machine) -> Handle:
        raise HypervisorError("no memory for it")


class Lost(FileHypervisor):
    def power_on(self, machine_id: str) -> Handle:
        raise NotFoundError(f"{machine_id} is gone")


@pytest.mark.parametrize("comes_back", [True, False])
def test_where_the_replica_does_not_come_up_the_source_is_powered_on_again(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path, comes_back: bool
) -> None:
    path, _, site = prepared(fed[0], tmp_path)
    source = site if comes_back else Lost(tmp_path / "site")
    with Replica.open(path) as replica:
        with pytest.raises(HypervisorError, match="no memory") as caught:
            operation.failover(
                replica, hypervisor=Refusing(tmp_path / "here"), source=source, planned=True
            )
        told = caught.value.message
        assert ("the source is off: web is gone" in told) != comes_back
        assert (replica.manifest.state, replica.manifest.held) == ("Ready", False)
        assert replica.manifest.history[-1].outcome == "rolled back"
    assert site.status("web") == ("running" if comes_back else "off")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", STEPS)
def test_killed_it_is_finished(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path, step: str, moment: str
) -> None:
    path, here, site = prepared(fed[0], tmp_path)
    killed_at(
        path,
        lambda replica, die: operation.failover(
            replica, hypervisor=here, source=site, planned=True, on_step=die
        ),
        step,
        moment,
    )
    with Replica.open(path) as replica:
        done = operation.resume(replica, hypervisor=here, source=site)
        if step == "check":  # before anything is done or recorded
            assert done is None
            assert (site.status("web"), here.starts()) == ("running", [])
            return
        assert done is not None
        assert done.state == "Failover"
        assert (site.status("web"), here.starts()) == ("off", ["started\n"])
        assert replica.points.by_id(done.point or 0).label == planned.LABEL


@pytest.mark.parametrize(
    ("toml", "to", "told"),
    [
        ("", None, r"\[source\]"),
        (TOML, 1, "last write"),
        (TOML.replace("never", "full") + '[source.disks]\na = "a.raw"\n', None, "names no disk"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_anything_is_done(
    fed: tuple[Path, list[Snapshot]], tmp_path: Path, toml: str, to: int | None, told: str
) -> None:
    path, here, site = prepared(fed[0], tmp_path)
    (path / "replica.toml").write_text(toml)
    with Replica.open(path) as replica:
        with pytest.raises(UsageError) as caught:
            operation.failover(replica, to, hypervisor=here, source=site, planned=True)
        assert told.replace("\\", "") in caught.value.message + caught.value.hint
        assert (replica.manifest.state, replica.manifest.epoch) == ("Ready", 1)
    assert site.status("web") == "running"
