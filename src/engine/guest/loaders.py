"""Boot loader configuration that names disks as the old hardware did.

Lines are changed where they lie: no generator is run, and the generators' own sources
(/etc/default/grub and the like) are changed the same way, so that the next run agrees.

Source: GRUB manual (environment block, device.map), grub2's and SUSE's /etc/default files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from . import loading
from .base import Controller, Guest, Wanted
from .edits import Edits
from .names import Device, Names, hardware_name
from .tables import LINES_MAX, lines_of, raw, text

CONSOLE = b"console=tty0 console=ttyS0,115200"
ENVIRONMENT_BYTES = 1024  # GRUB writes it in place, and never another size
DEVICE_MAPS = ("/boot/grub/device.map", "/boot/grub2/device.map")
INSTALL_DEVICE = "/etc/default/grub_installdevice"
DEFAULTS = ("/etc/default/grub", "/etc/default/grub.d/*.cfg", "/etc/sysconfig/bootloader")
CUSTOM = ("/etc/grub.d/4?_custom", "/boot/grub/custom.cfg", "/boot/grub2/custom.cfg")
CMDLINE = ("/etc/kernel/cmdline",)
_ARGUMENT = re.compile(rb"(?<![\w.-])(root|resume|real_root|boot)=(/dev/[^\s\"'\\,;]{1,512})")
_GRUB = re.compile(rb"[ \t]*(?:linux|linux16|linuxefi)[ \t]")
_LEGACY = re.compile(rb"[ \t]*kernel[ \t]")
_EXTLINUX = re.compile(rb"[ \t]*append[ \t]", re.IGNORECASE)
_OPTIONS = re.compile(rb"[ \t]*options[ \t]")
_ANY = re.compile(rb"[ \t]*\S")
_VARIABLE = re.compile(rb"[ \t]*GRUB_CMDLINE_LINUX=([\"']?)")
_MAPPED = re.compile(rb"[ \t]*\(hd(\d{1,2})\)[ \t]+(\S+)")
Line = Callable[[bytes], bytes]


def convert(edits: Edits, guest: Guest, wanted: Wanted, names: Names) -> None:
    """Names of the old hardware become UUIDs; a serial console is added when it is asked for."""
    fix = _Arguments(edits, guest, names)
    console = wanted.serial_console
    kinds = (
        ((*loading.GRUB_CFG, *CUSTOM), _GRUB),
        (loading.MENU_LST, _LEGACY),
        (loading.EXTLINUX, _EXTLINUX),
        (loading.BLS, _OPTIONS),
        (CMDLINE, _ANY),
    )
    for places, pattern in kinds:
        for path in loading.files(edits.tree, places):
            _edit(edits, path, fix, partial(_console, pattern) if console else None)
    for path in loading.files(edits.tree, DEFAULTS):
        here = console and path == "/etc/default/grub"
        _edit(edits, path, fix, _console_in_variable if here else None)
        if here:
            _add_variable(edits, path)
    for path in loading.files(edits.tree, loading.GRUB_ENV):
        _edit_environment(edits, path, fix, console)
    for path in loading.files(edits.tree, DEVICE_MAPS):
        _edit_device_map(edits, path, wanted.controller)
    _edit_install_device(edits, wanted.controller, names)
    if edits.tree.exists("/etc/lilo.conf") and not loading.files(edits.tree, loading.GRUB_CFG):
        edits.warn("the guest may start by LILO, whose map of the disk is left as it is")


class _Arguments:
    """Replaces root=, resume= and the like in one line. Warns of each unknown name once."""

    def __init__(self, edits: Edits, guest: Guest, names: Names) -> None:
        self._edits = edits
        self._names = names
        default = next((kernel for kernel in guest.kernels if kernel.default), None)
        self._alone = default is not None and not default.initrd  # Linux itself knows no UUIDs

    def __call__(self, path: str, line: bytes) -> bytes:
        def named(found: re.Match[bytes]) -> bytes:
            name, spec = text(found[1]), text(found[2])
            if hardware_name(spec) is None:
                return found[0]
            kind = "swap" if name == "resume" else ""
            new = self._names.lasting(spec, kind, partition=self._alone and name == "root")
            if new is None:
                self._edits.warn(f"{path}: no volume is known to be {name}={spec}: it stays")
                return found[0]
            return found[1] + b"=" + raw(new)

        return _ARGUMENT.sub(named, line)


def _edit(edits: Edits, path: str, fix: _Arguments, console: Line | None) -> None:
    data = edits.read(path)
    if data is None:
        return
    lines = lines_of(data)
    for number, line in enumerate(lines[:LINES_MAX]):
        if line.lstrip(b" \t").startswith(b"#") and b"# kopt=" not in line:
            continue  # "# kopt=" is what Debian's update-grub of GRUB 0.97 reads
        new = fix(path, line)
        if console is not None and b"console=ttyS" not in new:
            new = console(new)
        lines[number] = new
    edits.replace(path, b"".join(lines), "the command line of Linux")


def _ended(line: bytes, added: bytes) -> bytes:
    """The line with something before its end and the blanks there."""
    body = line.rstrip()
    return body + added + line[len(body) :]


def _console(pattern: re.Pattern[bytes], line: bytes) -> bytes:
    """A line that gives Linux its arguments, with a console more."""
    if not pattern.match(line) or b"$kernelopts" in line:
        return line  # these are in grubenv
    return _ended(line, b" " + CONSOLE)


def _console_in_variable(line: bytes) -> bytes:
    found = _VARIABLE.match(line)
    if found is None:
        return line
    quote = found[1]
    if not quote:  # one word, or none
        start = found.end()
        value = line[start:].split()[0] if line[start:].split() else b""
        rest = line[start + len(value) :]
        return line[:start] + b'"' + value + (b" " if value else b"") + CONSOLE + b'"' + rest
    stop = line.rfind(quote, found.end())
    if stop < 0:
        return line
    blank = b" " if line[found.end() : stop].strip() else b""
    return line[:stop].rstrip() + blank + CONSOLE + line[stop:]


def _add_variable(edits: Edits, path: str) -> None:
    """Where the line that it would be put into is not there at all."""
    data = edits.read(path)
    if data is not None and b"console=ttyS" not in data:
        end = b"" if not data or data.endswith(b"\n") else b"\n"
        line = b'GRUB_CMDLINE_LINUX="' + CONSOLE + b'"\n'
        edits.replace(path, data + end + line, "the command line of Linux")


def _edit_environment(edits: Edits, path: str, fix: _Arguments, console: bool) -> None:
    """grubenv: lines, then # up to its fixed size."""
    data = edits.read(path)
    if data is None or not data.startswith(b"# GRUB Environment Block\n"):
        return
    lines = lines_of(data)
    for number, line in enumerate(lines[:LINES_MAX]):
        if line.startswith(b"kernelopts="):
            new = fix(path, line)
            if console and b"console=ttyS" not in new:
                new = _ended(new, b" " + CONSOLE)
            lines[number] = new
    if lines == lines_of(data):
        return
    body = b"".join(lines).rstrip(b"#")
    if len(body) > ENVIRONMENT_BYTES:
        edits.warn(f"{path}: a longer command line does not fit in: it stays as it is")
        return
    edits.replace(path, body.ljust(ENVIRONMENT_BYTES, b"#"), "the command line of Linux")


def new_disk(controller: Controller, index: int) -> str:
    """What Linux calls the disk of that number on the new hardware."""
    if controller == "nvme":
        return f"/dev/nvme{index}n1"
    letters = chr(ord("a") + index % 26)
    if index >= 26:
        letters = chr(ord("a") + index // 26 - 1) + letters
    return f"/dev/{'vd' if controller == 'virtio-blk' else 'sd'}{letters}"


def _is_disk(device: Device | None) -> bool:
    return device is not None and device.part == 0


def _edit_device_map(edits: Edits, path: str, controller: Controller) -> None:
    """GRUB's own numbers and the disks that they mean, for its installer."""
    data = edits.read(path)
    if data is None:
        return
    lines = lines_of(data)
    for number, line in enumerate(lines[:LINES_MAX]):
        found = _MAPPED.match(line)
        if found is not None and _is_disk(hardware_name(text(found[2]))):
            start, stop = found.span(2)
            new = new_disk(controller, int(found[1]))
            lines[number] = line[:start] + raw(new) + line[stop:]
    edits.replace(path, b"".join(lines), "disks as the new hardware names them")


def _edit_install_device(edits: Edits, controller: Controller, names: Names) -> None:
    """SUSE's note of where GRUB is installed, which an update of it uses."""
    data = edits.read(INSTALL_DEVICE)
    if data is None:
        return
    lines = lines_of(data)
    for number, line in enumerate(lines[:LINES_MAX]):
        spec = text(line.strip())
        device = hardware_name(spec)
        if device is None:
            continue
        volume = names.volume(spec)
        new = ""
        if device.part == 0 and len(names.disks) == 1:
            new = new_disk(controller, 0)
        elif device.part and volume is not None and volume.uuid:
            new = f"/dev/disk/by-uuid/{volume.uuid}"
        if not new:
            edits.warn(f"{INSTALL_DEVICE}: nothing tells which disk {spec} is now: it stays")
            continue
        lines[number] = line.replace(raw(spec), raw(new))
    edits.replace(INSTALL_DEVICE, b"".join(lines), "where GRUB is installed")
