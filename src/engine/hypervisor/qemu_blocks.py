"""The disks of a QEMU that runs: what is on top of each, and how they are frozen.

Block nodes that we name: "disk0" is what the first drive had at power-on; "top-<hash of
the path>" an overlay that was put above it since. Each has its file as "<name>-file".
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .. import below
from .._native import Io
from ..errors import HypervisorError
from .base import Drive
from .qemu_devices import file_node
from .qmp import Qmp

_DEVICE = re.compile(r"(?:^|/)drive(\d+)(?:/|$)")

_OURS = re.compile(r"disk\d+|top-[0-9a-f]{16}")


class Top(NamedTuple):
    """What a drive of the machine writes to now."""

    node: str
    path: str  # "" where it is no file


def tops(qmp: Qmp) -> list[Top]:
    """The node on top of each drive, in the drives' order."""
    files = {
        node["node-name"].removesuffix("-file"): node["file"]
        for node in qmp.execute("query-named-block-nodes", flat=True)
        if node["drv"] == "file" and node["node-name"].endswith("-file")
    }
    found: dict[int, Top] = {}
    for device in qmp.execute("query-block"):
        number = _DEVICE.search(device.get("qdev", ""))
        if number is not None and "inserted" in device:
            node = device["inserted"]["node-name"]
            path = files.get(node, device["inserted"]["file"])
            found[int(number[1])] = Top(node, path if os.path.isabs(path) else "")
    return [found[number] for number in sorted(found)]


def drives_now(qmp: Qmp, started_with: Sequence[Drive]) -> list[Drive]:
    """The drives of a machine, those that were frozen or merged since its start included."""
    return [
        drive if top.node == f"disk{number}" or not top.path else Drive(top.path, drive.format)
        for number, (drive, top) in enumerate(zip(started_with, tops(qmp), strict=True))
    ]


def drop_unused(qmp: Qmp) -> None:
    """Close what we named and no drive reads any more."""
    used = {top.node for top in tops(qmp)}
    while True:
        before = _names(qmp)
        for name in before - used:
            with contextlib.suppress(HypervisorError):  # another one still lies above it
                qmp.execute("blockdev-del", node_name=name)
        if _names(qmp) == before:
            return


def _names(qmp: Qmp) -> set[str]:
    nodes = qmp.execute("query-named-block-nodes", flat=True)
    return {node["node-name"] for node in nodes if _OURS.fullmatch(node["node-name"])}


def freeze(qmp: Qmp, overlays: Mapping[str, str]) -> None:
    """Put each overlay above the top that it belongs to, all at once; see Hypervisor.freeze.

    The machine stands still: what a top says of its content is what the overlay is to say.

    Raises:
        HypervisorError: It has no such disk, or QEMU refuses; nothing has changed then.
    """
    present = {os.path.realpath(top.path): top for top in tops(qmp) if top.path}
    actions, added = [], []
    for under, over in overlays.items():
        if os.path.realpath(over) in present:
            continue
        top = present.get(os.path.realpath(under))
        if top is None:
            raise HypervisorError(
                f"the machine does not write to {under}",
                f"it writes to {', '.join(sorted(present)) or 'no file'}",
            )
        actions.append((top.node, os.path.realpath(over)))
    try:
        for _, over in actions:
            with contextlib.suppress(HypervisorError):  # somebody who died here had added it
                qmp.execute("blockdev-del", node_name=_node_name(over))
            _follow(over)
            qmp.execute("blockdev-add", **_overlay(over))
            added.append(_node_name(over))
        if actions:
            snapshots = [
                {
                    "type": "blockdev-snapshot",
                    "data": {"node": node, "overlay": _node_name(over)},
                }
                for node, over in actions
            ]
            qmp.execute("transaction", actions=snapshots)
    except HypervisorError:
        for name in added:
            with contextlib.suppress(HypervisorError):
                qmp.execute("blockdev-del", node_name=name)
        raise


def _follow(overlay: str) -> None:
    """QEMU gives a disk a new content id at its first write, after the overlay was made."""
    folder, name = os.path.split(overlay)
    place = Io.posix().open_dir(folder)
    try:
        below.follow(place, name)
    finally:
        place.close()


def _overlay(path: str) -> dict[str, object]:
    name = _node_name(path)
    node: dict[str, object] = {"driver": "vmdk", "node-name": name, "discard": "unmap"}
    return node | {"backing": None, "file": file_node(name, path)}


def _node_name(path: str) -> str:
    # Node names hold at most 31 characters, "-file" included.
    return f"top-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
