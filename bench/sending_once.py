"""One failback's sending, as a process: REPLICA TARGET known|compared."""

from __future__ import annotations

import sys

from rollpoint import changed, sending
from rollpoint.disk import open_disk
from rollpoint.replica import Replica
from rollpoint.targets import open_target


def main(path: str, place: str, lineage: str) -> None:
    with Replica.open(path) as replica:
        (entry,) = replica.manifest.disks
        recovered = replica.manifest.recovered
        assert recovered is not None
        with (
            open_disk(replica.file(recovered.interims[entry.name])) as disk,
            open_target(place, entry.size_bytes) as target,
        ):
            if lineage == "known":
                spans = changed.ranges(replica, entry.name, changed.held_point(replica))
            else:
                spans = sending.differing(disk.reading, target)
            print(spans.total_bytes, sending.send(disk.reading, target, spans))


if __name__ == "__main__":
    main(*sys.argv[1:])
