"""Choosing a point, and rolling all journals of a replica to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from rollpoint._native import POINT_CRASH
from rollpoint.disk import create_disk, open_disk
from rollpoint.errors import DamagedError, NotFoundError, UsageError
from rollpoint.journal import OpenJournal, create_journal, open_journal
from rollpoint.points import Points
from rollpoint.rollback import roll_back

SECOND = 1_000_000_000
SIZE = 64 * 4096


def make_disks(folder: Path) -> dict[str, OpenJournal]:
    """Two journals with points 1 to 3; at point n each disk begins with byte n."""
    journals = {}
    for name in ("system", "data"):
        create_disk(str(folder / f"{name}.vmdk"), "monolithicFlat", SIZE)
        create_journal(folder / f"{name}.vmdk", name, segment_bytes=1 << 20)
        log = folder / f"{name}-journal-log.vmdk"
        journals[name] = open_journal(log, folder / f"{name}.vmdk", writable=True)
    for number in (1, 2, 3):
        for journal in journals.values():
            journal.disk.pwrite(bytes([number]) * 5000, 0)
            journal.native.mark(number, number * SECOND, POINT_CRASH)
            journal.native.commit()
    return journals


def listed(journals: dict[str, OpenJournal]) -> Points:
    return Points.common([journal.native.points() for journal in journals.values()], (), "web")


@pytest.mark.parametrize(
    ("to", "number"),
    [
        ("latest", 3),
        ("2", 2),
        (" 1 ", 1),
        ("1970-01-01T00:00:02Z", 2),
        ("1970-01-01T00:00:02.999Z", 2),
        ("1970-01-01T01:00:01+01:00", 1),
    ],
)
def test_a_point_is_chosen_by_latest_by_id_or_by_time(
    tmp_path: Path, to: str, number: int
) -> None:
    assert listed(make_disks(tmp_path)).find(to).id == number


@pytest.mark.parametrize(
    ("to", "error"),
    [("4", NotFoundError), ("1970-01-01T00:00:00Z", NotFoundError), ("soon", UsageError)],
)
def test_what_is_no_point_is_refused(tmp_path: Path, to: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        listed(make_disks(tmp_path)).find(to)


def test_all_disks_show_the_point_and_the_report_says_what_it_took(tmp_path: Path) -> None:
    journals = make_disks(tmp_path)
    natives = {name: journal.native for name, journal in journals.items()}
    points = listed(journals)
    for number in (2, 1, 3):
        reports = roll_back(natives, points.by_id(number))
        assert [report.disk for report in reports] == ["system", "data"]
        for report in reports:
            assert report.point == number
            assert report.tables_written == 1
            assert report.seconds >= 0
            assert report.to_json()["disk"] == report.disk
        for name in journals:
            with open_disk(tmp_path / f"{name}-journal.vmdk") as disk:
                assert disk.pread(5000, 0) == bytes([number]) * 5000
    again = roll_back(natives, points.latest)
    assert all(report.bytes_written == 0 for report in again)
    end = roll_back(natives, None)
    assert all(report.point is None and report.bytes_written == 0 for report in end)


def test_a_roll_back_that_meets_damage_leaves_what_was_shown(tmp_path: Path) -> None:
    journals = make_disks(tmp_path)
    roll_back({name: journal.native for name, journal in journals.items()}, None)
    for journal in journals.values():
        journal.close()
    log = tmp_path / "data-journal-log.vmdk"
    content = bytearray(log.read_bytes())
    content[int.from_bytes(content[56:64], "little") * 512 + 1] ^= 1  # the shown directory
    log.write_bytes(content)
    with open_journal(log, writable=True) as journal:
        points = Points.common([journal.native.points()])
        roll_back({"data": journal.native}, points.by_id(1))  # from the empty map: no need of it
        assert journal.verify() == []
    content[int.from_bytes(content[56:64], "little") * 512 - 4096 + 20] ^= 1  # its header
    log.write_bytes(content)
    with pytest.raises(DamagedError):
        open_journal(log, writable=True)
