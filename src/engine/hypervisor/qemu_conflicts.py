"""Which QEMUs of this host have what a machine that is to be started wants for itself.

Every QEMU is looked at, whoever started it: its command line, the files that it has open
as far as this process may see them, and the record of a machine of ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from ..errors import HypervisorError
from . import qemu_records
from .base import Conflict, Drive, Machine
from .qemu_process import arguments_of

_MAC = re.compile(r"(?:^|,)mac(?:addr)?=([0-9a-f:]{17})(?:,|$)", re.IGNORECASE)
_CARDS = ("vmxnet3", "e1000", "virtio-net", "rtl8139", "igb", "pcnet", "ne2k")


class _Other(NamedTuple):
    """A QEMU that runs."""

    pid: int
    words: list[str]

    def following(self, *options: str) -> Iterator[str]:
        return (value for word, value in pairwise(self.words) if word in options)

    @property
    def directory(self) -> str:
        """Of a machine of ours, or of somebody who names pid files alike."""
        return os.path.dirname(next(self.following("-pidfile"), ""))

    @property
    def where(self) -> str:
        name = next(self.following("-name"), "").partition("guest=")[2].replace(",,", ",")
        return f"machine {name!r}, process {self.pid}" if name else f"process {self.pid}"


def conflicts(machine: Machine, directory: str) -> list[Conflict]:
    """See Hypervisor.conflicts; the directory is the machine's own."""
    found: list[Conflict] = []
    for other in _others(directory):
        found += _same_uuid(machine, other)
        found += _same_station(machine, other)
        found += _same_disks(machine, other)
    return found


def _others(directory: str) -> Iterator[_Other]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        words = [os.fsdecode(word) for word in arguments_of(int(entry))]
        if words and os.path.basename(words[0]).startswith(("qemu-system", "qemu-kvm", "kvm")):
            other = _Other(int(entry), words)
            if other.directory != directory:
                yield other


def _same_uuid(machine: Machine, other: _Other) -> Iterator[Conflict]:
    if machine.uuid and machine.uuid.lower() in (u.lower() for u in other.following("-uuid")):
        yield Conflict("uuid", machine.uuid, other.where)


def _same_station(machine: Machine, other: _Other) -> Iterator[Conflict]:
    """A card without a wire is no station, on either side."""
    record = None
    if other.directory:
        with contextlib.suppress(HypervisorError):  # not one of ours
            record = qemu_records.load(other.directory)
    if record is not None and record.isolated:
        return
    macs = set()
    for word in other.following("-device", "-nic", "-net", "-netdev"):
        found = _MAC.search(word)
        if found is not None and ("netdev=" in word or not word.startswith(_CARDS)):
            macs.add(found[1].lower())
    addresses = {
        address
        for card in (record.machine.cards if record is not None else ())
        if card.network != "none"
        for address in card.addresses
    }
    for card in machine.cards:
        if card.network == "none":
            continue
        if card.mac.lower() in macs:
            yield Conflict("mac", card.mac, other.where)
        for address in card.addresses:
            if address in addresses:
                yield Conflict("address", address, other.where)


def _same_disks(machine: Machine, other: _Other) -> Iterator[Conflict]:
    opened = _open_files(other.pid)
    named = list(_drives_named(other))
    for drive in machine.drives:
        if drive.format == "nbd":
            path = os.path.realpath(drive.path)
            if ("nbd", path, drive.export) in named:
                yield Conflict("disk", f"{drive.path} {drive.export}", other.where)
        elif _is_among(drive, opened, [path for kind, path, _ in named if kind != "nbd"]):
            yield Conflict("disk", drive.path, other.where)


def _is_among(drive: Drive, opened: set[tuple[int, int]], named: Sequence[str]) -> bool:
    with contextlib.suppress(OSError):
        stat = os.stat(drive.path)
        if (stat.st_dev, stat.st_ino) in opened:
            return True
    return os.path.realpath(drive.path) in named


def _open_files(pid: int) -> set[tuple[int, int]]:
    """Device and inode of all that a process has open; nothing when we may not see it."""
    found = set()
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                stat = os.stat(f"/proc/{pid}/fd/{fd}")
                found.add((stat.st_dev, stat.st_ino))
    return found


def _drives_named(other: _Other) -> Iterator[tuple[str, str, str]]:
    """Format, path and export of the disks that a command line names."""
    for word in other.following("-blockdev"):
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            node = json.loads(word)
            if node.get("driver") == "nbd":
                yield "nbd", os.path.realpath(node["server"]["path"]), node.get("export", "")
            else:
                inner = node.get("file", node)
                yield "file", os.path.realpath(inner["filename"]), ""
    for word in other.following("-drive", "-blockdev"):
        for part in re.split(r"(?<!,),(?!,)", word):
            key, _, value = part.partition("=")
            if key in ("file", "filename", "file.filename") and value:
                yield "file", os.path.realpath(value.replace(",,", ",")), ""
