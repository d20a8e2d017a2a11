"""Duplicate addresses: stations are seen, and what is only remembered is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rollpoint import stations
from rollpoint.errors import UsageError
from tools import missing, require_tool

# Two network namespaces on one wire. The peer has .2 and drops all but ARP on no port at all:
# it listens nowhere, and its kernel refuses; .9 is nobody.
_SCENE = """
set -e
ip link set lo up
ip link add near type veth peer name far
unshare -n sleep 60 & peer=$!
until [ "$(readlink /proc/$peer/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
ip link set far netns $peer
nsenter -t $peer -n sh -c 'ip addr add 10.99.0.2/24 dev far; ip link set far up; ip link set lo up'
nsenter -t $peer -n ip route add blackhole 10.99.0.0/16 table local 2>/dev/null || true
ip addr add 10.99.0.1/24 dev near
ip link set near up
ip neigh add 10.99.0.7 lladdr 02:00:00:00:00:07 dev near nud stale
"$@"
kill $peer
"""
_LOOK = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from rollpoint import stations
print(json.dumps(stations.look(sys.argv[2:])._asdict()))
"""


def in_scene(*addresses: str) -> dict[str, list[str]]:
    for tool in ("ip", "unshare", "nsenter"):
        require_tool(tool)
    words = ["unshare", "-rn", "sh", "-c", _SCENE, "scene", sys.executable, "-c", _LOOK]
    done = subprocess.run(
        [*words, json.dumps(sys.path), *addresses], capture_output=True, text=True, timeout=60
    )
    if done.returncode != 0:
        missing(f"no network namespaces here: {done.stderr.strip()[-200:]}")
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_a_station_answers_arp_and_one_that_is_only_remembered_is_none() -> None:
    """The source that has just gone is in this host's table for minutes: no duplicate."""
    found = in_scene("10.99.0.2", "10.99.0.7", "10.99.0.9", "10.99.0.1")
    assert found == {"present": ["10.99.0.2", "10.99.0.1"], "unsure": []}


def test_beyond_a_router_it_cannot_be_told() -> None:
    found = in_scene("192.0.2.77", "2001:db8::7")
    assert found == {"present": [], "unsure": ["192.0.2.77", "2001:db8::7"]}


def test_addresses_of_this_host_are_taken() -> None:
    assert stations.look(["127.0.0.1", "127.0.0.1"]).present == ["127.0.0.1"]


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(UsageError, match="no IP address"):
        stations.look(["web.example"])


def test_what_is_no_arp_packet_names_nobody() -> None:
    for size in (0, 1, 27, 28, 60):
        assert stations._sender(os.urandom(size)[:27] if size < 28 else bytes(size)) == ""


def test_without_the_tables_of_the_kernel_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(stations, "_rows", refuse)
    assert stations.neighbours() == set()
    assert stations._by_interface(["10.0.0.1"]) == {}
