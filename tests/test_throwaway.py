"""What is written above a disk to be thrown away is seen, and goes nowhere."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from frozen_life import SIZES, Life
from replicas import change, digest, seen_by_qemu
from rollpoint import _native
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import NotFoundError, ReadOnlyError, StateError
from rollpoint.mount import Mount
from rollpoint.throwaway import Throwaway
from rollpoint.view import view
from tools import libnbd


def test_a_view_is_written_above_and_stays_what_it_was() -> None:
    life = Life(_native.Io.simulate(), "/r", 1)
    life.write()
    marked, rng = life.mark(), random.Random(1)
    with view(life.replica) as shown:
        for name, below in shown.disks.items():
            with Throwaway(below) as above, Throwaway(above) as top:
                model = bytearray(marked.model[name])
                assert above.pread(SIZES[name], 0) == model
                change(above.reading, model, rng, 10)
                under = bytes(model)
                change(top.reading, model, rng, 10)
                assert top.pread(SIZES[name], 0) == model
                assert above.pread(SIZES[name], 0) == under
                assert above.written_bytes > 0
            assert below.pread(SIZES[name], 0) == marked.model[name]
    life.close()


def test_a_client_of_the_mount_writes_it_and_no_file_changes(tmp_path: Path) -> None:
    base = tmp_path / "a.vmdk"
    create_disk(str(base), "monolithicSparse", 1 << 20)
    with open_disk(base, writable=True) as disk:
        disk.pwrite(b"before", 4096)
    before = digest(base)
    with open_disk(base) as below, Throwaway(below, str(tmp_path)) as above:
        with pytest.raises(ReadOnlyError):
            below.pwrite(b"x", 0)
        with Mount({"a": above}) as mount:
            client = libnbd().NBD()
            client.connect_uri(mount.uri("a"))
            client.pwrite(b"after ", 4096)
            client.flush()
            assert client.pread(6, 4096) == b"after "
            client.shutdown()
        assert above.pread(8, 4096) == b"after \0\0"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.vmdk"]  # it has no name
    assert digest(base) == before
    assert seen_by_qemu(base, tmp_path)[4096:4102] == b"before"


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    create_disk(str(tmp_path / "a.vmdk"), "monolithicSparse", 1 << 20)
    with open_disk(tmp_path / "a.vmdk") as below:
        with pytest.raises(NotFoundError, match="nowhere"):
            Throwaway(below, str(tmp_path / "nowhere"))
        above = Throwaway(below)
        above.close()
        above.close()
        with pytest.raises(StateError):
            above.pread(1, 0)
