"""An appliance that is kept warm beside a ready replica: who keeps it, and where."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from guests import protected
from guests.shelf import Shelf
from replicas import make
from rollpoint import warming
from rollpoint.access import warm
from rollpoint.config import Config, MountTable
from rollpoint.replica import Replica

WARM = "[mount]\nwarm = true\n"


class Keeper:
    """Stands for access.warm.Keeper."""

    def __init__(self, path: str, sizes: list[int]) -> None:
        self.path, self.sizes = path, sizes
        self.closed = False
        self.problem = ""

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(warm, "Keeper", Keeper)
    make(tmp_path / "r", {"one": 1 << 20, "two": 2 << 20})
    return tmp_path / "r"


def test_one_is_kept_for_disks_of_these_sizes_when_it_is_wanted(replica: Path) -> None:
    (replica / "replica.toml").write_text(WARM)
    with Replica.open(str(replica)) as opened, warming.kept_warm(opened) as kept:
        assert isinstance(kept, Keeper)
        assert kept.sizes == [1 << 20, 2 << 20]
        assert kept.path == warm.place(str(replica))
    assert kept.closed


@pytest.mark.parametrize("text", ["", WARM + 'mode = "files"\n', "[mount]\nwarm = false\n"])
def test_none_is_kept_when_it_is_not_wanted(replica: Path, text: str) -> None:
    (replica / "replica.toml").write_text(text)
    with Replica.open(str(replica)) as opened, warming.kept_warm(opened) as kept:
        assert not isinstance(kept, Keeper)
        assert kept.problem == ""


def test_a_failover_looks_where_the_ingest_keeps_it(replica: Path) -> None:
    wanted = Config(mount=MountTable(warm=True))
    assert warming.warm_place(str(replica), wanted) == warm.place(str(replica))
    assert warming.warm_place(str(replica), Config()) is None


@pytest.mark.appliance
def test_a_failover_attaches_its_disks_to_the_warm_one(
    guests: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Must show 2: the launch is not paid in the disaster."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    path = tmp_path / "replica"
    protected.protect(path, guests.disk("xfs"))
    protected.configure(path, "pvscsi", "appliance")
    text = (path / "replica.toml").read_text()
    (path / "replica.toml").write_text(text.replace("[mount]", "[mount]\nwarm = true"))
    with Replica.open(str(path)) as opened:
        sizes = [disk.size_bytes for disk in opened.manifest.disks]
    kept = warm.Warm(warm.place(str(path)), sizes)
    try:
        deadline = time.monotonic() + 300.0
        while kept.state(0.5) == "launching" and time.monotonic() < deadline:
            pass
        assert (kept.state(), kept.problem) == ("ready", "")
        done = protected.fail_over(path, power_on=False)
    finally:
        kept.close()
    told = protected.conversion(path)
    assert (told["mode"], told["outcome"]) == ("appliance", "changed")
    assert kept.launch_seconds is not None
    assert told["seconds"]["launch"] < kept.launch_seconds
    print(f"launched ahead in {kept.launch_seconds:.1f} s: {told['seconds']}")
    assert done.kept, "base or journal changed"
    protected.undo(path)
