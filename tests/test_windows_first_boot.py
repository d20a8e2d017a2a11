"""What Windows does on its first start: the service, its script, and that it runs once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rollpoint.errors import GuestError, NotFoundError, UsageError
from rollpoint.guest.base import Guest, Wanted
from rollpoint.guest.edits import Edits
from rollpoint.guest.hives import Hive, Value
from rollpoint.guest.windows import convert, inspect_windows
from rollpoint.guest.windows_first_boot import SCRIPT_BYTES_MAX, SERVICE, read_script
from windows_guests import CS, build, opened, supplied

PARAMETERS = (CS, "Services", SERVICE, "Parameters")


def converted(root: Path, wanted: Wanted) -> None:
    tree = build(root)
    guest = inspect_windows(tree)
    assert isinstance(guest, Guest)
    convert(Edits(tree), guest, wanted)


def script_of(system: Hive) -> bytes:
    """The operator's script as the first start puts it together."""
    values: dict[str, Value] = system.values(PARAMETERS)
    whole = b""
    while (part := values.get(f"Script{len(whole) // 8192}")) is not None:
        whole += part.data
        if len(part.data) < 8192:
            break
    return whole


def test_nothing_is_added_when_nothing_is_to_be_done(tmp_path: Path) -> None:
    converted(tmp_path, Wanted(controller="ahci", nic="e1000e"))
    with opened(tmp_path) as system:
        assert not system.has((CS, "Services", SERVICE))


@pytest.mark.parametrize("size", [1, 8191, 8192, 8193, 40_000])
def test_the_operators_script_is_in_the_registry_where_only_administrators_write(
    tmp_path: Path, size: int
) -> None:
    script = tmp_path / "Go.CMD"
    script.write_bytes(bytes(n % 251 for n in range(size)))
    (tmp_path / "guest").mkdir()
    wanted = Wanted(controller="ahci", nic="e1000e", first_boot=str(script))
    converted(tmp_path / "guest", wanted)
    with opened(tmp_path / "guest") as system:
        assert script_of(system) == script.read_bytes()
        assert system.text(PARAMETERS, "ScriptKind") == "cmd"
        assert all(len(value.data) < 16344 for value in system.values(PARAMETERS).values())
    assert not (tmp_path / "guest/Windows/Rollpoint").exists()


def test_the_service_starts_by_itself_as_the_system_and_removes_itself_first(
    tmp_path: Path,
) -> None:
    (tmp_path / "go.ps1").write_text("Write-Output done")
    (tmp_path / "guest").mkdir()
    wanted = Wanted(controller="ahci", nic="e1000e", first_boot=str(tmp_path / "go.ps1"))
    converted(tmp_path / "guest", wanted)
    with opened(tmp_path / "guest") as system:
        service = (CS, "Services", SERVICE)
        assert system.number(service, "Start") == 2
        assert system.number(service, "Type") == 16
        assert system.number(service, "ErrorControl") == 0
        assert system.text(service, "ObjectName") == "LocalSystem"
        command = system.text(service, "ImagePath")
        assert command.startswith("%SystemRoot%\\System32\\cmd.exe /d /c start ")
        assert command.count('"') == 4
        assert f"Services\\{SERVICE}\\Parameters').Main" in command
        main = system.text(PARAMETERS, "Main")
    removed = main.index(f"sc.exe delete {SERVICE}")
    assert removed < main.index("pnputil.exe")
    assert removed < main.index("ScriptKind")
    # Each value that the script reads, and none that nobody writes.
    read = set(re.findall(r"\$values\.\"?(\w+?)(?:\$part)?\b", main))
    assert read == {"DriverFiles", "Networks", "Script", "ScriptKind"}
    for opening, closing in ("{}", "()", "[]"):
        assert main.count(opening) == main.count(closing)


def test_supplied_drivers_are_installed_and_their_rights_put_right(tmp_path: Path) -> None:
    drivers = supplied(tmp_path / "given", "pvscsi", "VEN_15AD&DEV_07C0")
    (tmp_path / "guest").mkdir()
    wanted = Wanted(controller="pvscsi", nic="e1000e", drivers=str(drivers))
    converted(tmp_path / "guest", wanted)
    with opened(tmp_path / "guest") as system:
        assert system.text(PARAMETERS, "DriverFiles") == "System32\\drivers\\pvscsi.sys"
        main = system.text(PARAMETERS, "Main")
    assert "pnputil.exe /add-driver" in main
    assert "icacls.exe" in main


def test_a_script_that_windows_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.cmd, \.bat and \.ps1"):
        read_script(str(tmp_path / "go.sh"))
    with pytest.raises(NotFoundError):
        read_script(str(tmp_path / "go.cmd"))
    (tmp_path / "go.cmd").write_bytes(bytes(SCRIPT_BYTES_MAX + 1))
    with pytest.raises(UsageError, match="longer than"):
        read_script(str(tmp_path / "go.cmd"))
    assert read_script("") is None


def test_what_the_operator_gives_wrongly_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "guest").mkdir()
    tree = build(tmp_path / "guest")
    guest = inspect_windows(tree)
    assert guest is not None
    before = (tmp_path / "guest/Windows/System32/config/SYSTEM").read_bytes()
    for wanted in (
        Wanted(controller="ahci", nic="e1000e", first_boot=str(tmp_path / "go.exe")),
        Wanted(controller="ahci", nic="e1000e", hostname="much-too-long-for-windows"),
        Wanted(controller="ahci", nic="e1000e", dns=["no address"]),
        Wanted(controller="pvscsi", nic="e1000e", drivers=str(tmp_path / "nothing")),
    ):
        with pytest.raises((UsageError, NotFoundError, GuestError)):
            convert(Edits(tree), guest, wanted)
    assert (tmp_path / "guest/Windows/System32/config/SYSTEM").read_bytes() == before


def test_the_networks_are_json_that_powershell_reads(tmp_path: Path) -> None:
    (tmp_path / "guest").mkdir()
    wanted = Wanted(controller="ahci", nic="e1000e", dns=["10.0.0.53", "fd00::53"])
    converted(tmp_path / "guest", wanted)
    with opened(tmp_path / "guest") as system:
        cards = json.loads(system.text(PARAMETERS, "Networks"))
    assert cards == [
        {
            "mac": "",
            "addresses": [],
            "families": [],
            "routes": [],
            "dns": ["10.0.0.53", "fd00::53"],
        }
    ]
