"""What Windows itself does on its first start on the new hardware: a service that runs once.

The service's program is cmd.exe, which starts PowerShell and is gone: no program of ours is
put into the guest. The script is not a file but a value of the service's key, where only
administrators can write. It removes the service first, so that it runs once whatever happens,
then installs the drivers that were supplied, gives the network cards their addresses, and
runs the operator's script. Its log is %SystemRoot%\\Rollpoint\\first-boot.log.

Windows notes in its event log that the service did not answer in time: that is how a program
that is no service, and lives on, is started.

Tests: tests/test_windows_first_boot.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError, system_error
from .hives import Hive, binary, dword, string

SERVICE = "RollpointFirstBoot"
PLACE = "/Windows/Rollpoint"
DRIVERS_PLACE = f"{PLACE}/Drivers"
DRIVERS_WINDOWS = "%SystemRoot%\\Rollpoint\\Drivers"
SCRIPT_BYTES_MAX = 256 << 10
_CHUNK_BYTES = 8192  # longer values are stored in a way that libhivex does not write
_AUTOMATIC, _IGNORE, _OWN_PROCESS = 2, 0, 16
_KINDS = {".cmd": "cmd", ".bat": "cmd", ".ps1": "ps1"}
_COMMAND = (
    '%SystemRoot%\\System32\\cmd.exe /d /c start "Rollpoint" /min '
    "%SystemRoot%\\System32\\WindowsPowerShell\\v1.0\\powershell.exe -NoLogo -NoProfile "
    '-NonInteractive -ExecutionPolicy Bypass -Command "& ([scriptblock]::Create((Get-ItemProperty '
    f"-LiteralPath 'HKLM:\\SYSTEM\\CurrentControlSet\\Services\\{SERVICE}\\Parameters').Main))\""
)

_MAIN = r"""
$key = 'HKLM:\SYSTEM\CurrentControlSet\Services\RollpointFirstBoot\Parameters'
$values = Get-ItemProperty -LiteralPath $key
$place = Join-Path $env:SystemRoot 'Rollpoint'
New-Item -ItemType Directory -Force -Path $place | Out-Null
& icacls.exe $place /reset /T /C /Q | Out-Null
Start-Transcript -Path (Join-Path $place 'first-boot.log') -Append | Out-Null
& sc.exe delete RollpointFirstBoot
if ($values.DriverFiles) {
  foreach ($file in ($values.DriverFiles -split '\|')) {
    & icacls.exe (Join-Path $env:SystemRoot $file) /reset /C /Q
  }
}
$quiet = @{ ErrorAction = 'SilentlyContinue' }
foreach ($inf in @(Get-ChildItem -Path (Join-Path $place 'Drivers') -Filter *.inf @quiet)) {
  & pnputil.exe /add-driver $inf.FullName /install
}
if ($values.Networks) {
  foreach ($card in @($values.Networks | ConvertFrom-Json | ForEach-Object { $_ })) {
    $adapter = $null
    for ($try = 0; $try -lt 60 -and -not $adapter; $try++) {
      $found = @(Get-NetAdapter -Physical @quiet)
      if ($card.mac) { $found = @($found | Where-Object { $_.MacAddress -eq $card.mac }) }
      if ($found.Count -eq 1) { $adapter = $found[0] } else { Start-Sleep -Seconds 5 }
    }
    if (-not $adapter) { Write-Output "no network card $($card.mac)"; continue }
    $index = $adapter.ifIndex
    $there = @(Get-NetIPAddress -InterfaceIndex $index @quiet |
      ForEach-Object { "$($_.IPAddress)/$($_.PrefixLength)" })
    $missing = @($card.addresses | Where-Object { $there -notcontains $_ })
    if ($missing.Count -gt 0) {
      foreach ($family in @($card.families)) {
        Set-NetIPInterface -InterfaceIndex $index -AddressFamily $family -Dhcp Disabled
        $all = if ($family -eq 'IPv6') { '::/0' } else { '0.0.0.0/0' }
        Remove-NetRoute -InterfaceIndex $index -DestinationPrefix $all -Confirm:$false @quiet
        Remove-NetIPAddress -InterfaceIndex $index -AddressFamily $family `
          -PrefixOrigin Manual, Dhcp -Confirm:$false @quiet
      }
      foreach ($address in @($card.addresses)) {
        $ip, $length = $address -split '/'
        New-NetIPAddress -InterfaceIndex $index -IPAddress $ip -PrefixLength $length
      }
    }
    foreach ($route in @($card.routes)) {
      $old = Get-NetRoute -InterfaceIndex $index -DestinationPrefix $route.prefix @quiet
      if (-not ($old | Where-Object { $_.NextHop -eq $route.hop })) {
        New-NetRoute -InterfaceIndex $index -DestinationPrefix $route.prefix -NextHop $route.hop
      }
    }
    if (@($card.dns).Count -gt 0) {
      Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses @($card.dns)
    }
  }
}
if ($values.ScriptKind) {
  $bytes = New-Object System.IO.MemoryStream
  for ($part = 0; $null -ne $values."Script$part"; $part++) {
    $bytes.Write($values."Script$part", 0, $values."Script$part".Length)
  }
  $script = Join-Path $place "first-boot-script.$($values.ScriptKind)"
  [System.IO.File]::WriteAllBytes($script, $bytes.ToArray())
  if ($values.ScriptKind -eq 'ps1') {
    & powershell.exe -NoLogo -NoProfile -NonInteractive -ExecutionPolicy Bypass -File $script
  } else {
    & cmd.exe /d /c $script
  }
  Write-Output "the script ended with $LASTEXITCODE"
}
Stop-Transcript | Out-Null
"""


class Card(NamedTuple):
    """The addresses that a network card gets.

    Attributes:
        mac: As Windows writes it, 52-54-00-12-34-56; "" for the only card there is.
        addresses: With prefix length. gateways: at most one of a family.
    """

    mac: str
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()


class Script(NamedTuple):
    """The operator's script. kind: cmd or ps1."""

    kind: str
    data: bytes


class FirstBoot(NamedTuple):
    """What is to be done on the first start.

    Attributes:
        driver_files: Put below C:\\Windows, relative to it: they get the rights of their
            directories. packages: drivers lie in DRIVERS_PLACE.
    """

    cards: tuple[Card, ...] = ()
    script: Script | None = None
    driver_files: tuple[str, ...] = ()
    packages: bool = False

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.cards or self.script or self.driver_files or self.packages)


def read_script(path: str) -> Script | None:
    """The operator's script, None for no path.

    Raises:
        UsageError: It is no .cmd, .bat or .ps1, or longer than SCRIPT_BYTES_MAX.
        NotFoundError, StorageError: It cannot be read.
    """
    if not path:
        return None
    kind = _KINDS.get(Path(path).suffix.lower())
    if kind is None:
        raise UsageError(
            f"{path}: Windows runs .cmd, .bat and .ps1 files on its first start",
            "give one of them as first_boot",
        )
    try:
        with open(path, "rb") as file:
            data = file.read(SCRIPT_BYTES_MAX + 1)
    except OSError as error:
        raise system_error(f"reading {path}", error.errno or 0) from error
    if len(data) > SCRIPT_BYTES_MAX:
        raise UsageError(
            f"{path} is longer than {SCRIPT_BYTES_MAX} bytes", "have it fetch what is large"
        )
    return Script(kind, data)


def install(system: Hive, sets: Sequence[str], wanted: FirstBoot) -> None:
    """Have it done on the next start; nothing where nothing is wanted."""
    if not wanted.is_wanted:
        return
    what = "a service that runs once, on the first start on the new hardware"
    for name in sets:
        service = (name, "Services", SERVICE)
        system.set(service, "Type", dword(_OWN_PROCESS), what)
        system.set(service, "Start", dword(_AUTOMATIC), what)
        system.set(service, "ErrorControl", dword(_IGNORE), what)
        system.set(service, "ObjectName", string("LocalSystem"), what)
        system.set(service, "DisplayName", string("Rollpoint first boot"), what)
        system.set(service, "ImagePath", string(_COMMAND, expand=True), what)
        place = (*service, "Parameters")
        main = _MAIN.strip().replace("\n", "\r\n")
        system.set(place, "Main", string(main), "what it does")
        if wanted.driver_files:
            files = string("|".join(wanted.driver_files))
            system.set(place, "DriverFiles", files, "drivers that were added")
        if wanted.cards:
            cards = string(networks_json(wanted.cards))
            system.set(place, "Networks", cards, "addresses of the network cards")
        if wanted.script is not None:
            _store_script(system, place, wanted.script)


def _store_script(system: Hive, place: tuple[str, ...], script: Script) -> None:
    what = "the operator's script"
    system.set(place, "ScriptKind", string(script.kind), what)
    parts = [script.data[at : at + _CHUNK_BYTES] for at in range(0, len(script.data), _CHUNK_BYTES)]
    for number, part in enumerate(parts):
        system.set(place, f"Script{number}", binary(part), what)
    for name in system.values(place):
        digits = name.removeprefix("Script")
        if digits != name and digits.isdecimal() and int(digits) >= len(parts):
            system.remove_value(place, name, what)


def networks_json(cards: Sequence[Card]) -> str:
    """The cards, for the script."""
    return json.dumps([_card(card) for card in cards])


def _card(card: Card) -> dict[str, object]:
    def family(address: str) -> str:
        return "IPv6" if ":" in address else "IPv4"

    every = {"IPv4": "0.0.0.0/0", "IPv6": "::/0"}
    return {
        "mac": card.mac,
        "addresses": list(card.addresses),
        "families": sorted({family(address) for address in card.addresses}),
        "routes": [{"prefix": every[family(hop)], "hop": hop} for hop in card.gateways],
        "dns": list(card.dns),
    }
