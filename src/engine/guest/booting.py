"""The drivers that a Linux guest's kernels need to find their root on new hardware.

First it is worked out what each initramfs is to get, then room is asked for, then it is
written. A default kernel without the driver is refused: that machine would not start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import GuestError
from . import drivers, initramfs
from .base import Controller, Guest, Kernel, Wanted
from .drivers import Drivers
from .edits import Edits
from .tables import lines_of, text

KERNELS_MAX = 16  # that get drivers: the default one and the newest
SPARE_BYTES = 1 << 20
FILES_MAX = 50
NAMES_OF_CARDS = (
    "/etc/systemd/network/10-rollpoint-*.link",
    "/etc/udev/rules.d/*-rollpoint-*.rules",
)
TOOLS_MODULES = "/etc/initramfs-tools/modules"
TOOLS_RESUME = "/etc/initramfs-tools/conf.d/resume"
MAKERS = (  # whose initramfs loads what the hardware asks for
    "/etc/initramfs-tools",
    "/usr/share/initramfs-tools",
    "/etc/dracut.conf",
    "/usr/lib/dracut",
    "/usr/share/dracut",
    "/etc/mkinitcpio.conf",
    "/etc/booster.yaml",
    "/usr/share/mkinitfs",
)
DRACUT_CONF = "/etc/dracut.conf.d/90-rollpoint.conf"


class Plan(NamedTuple):
    """What is put behind an initrd.

    Attributes:
        early: The modules it loads first, whatever asks for them.
        names: All that it gets, but for those that they need.
    """

    kernel: Kernel
    has: Drivers
    early: tuple[str, ...]
    names: tuple[str, ...]


def plan(edits: Edits, guest: Guest, wanted: Wanted) -> list[Plan]:
    """What each kernel's initramfs is to get. Nothing is written.

    Raises:
        GuestError: There is no kernel, or the default one has no driver for the controller.
    """
    if not guest.kernels:
        raise _no_kernel(edits)
    kernels = sorted(guest.kernels, key=lambda kernel: not kernel.default)  # else as they are
    for kernel in kernels[KERNELS_MAX:]:
        edits.warn(f"kernel {kernel.version} gets no drivers: more than {KERNELS_MAX} are there")
    found = []
    for kernel in kernels[:KERNELS_MAX]:
        planned = _plan(edits, kernel, wanted)
        if planned is not None:
            found.append(planned)
    return found


def _plan(edits: Edits, kernel: Kernel, wanted: Wanted) -> Plan | None:
    has = drivers.of(edits.tree, kernel)
    label = kernel.version or kernel.image
    if not has.known:
        edits.warn(
            f"kernel {label} has no index of modules: nothing tells whether it has a driver "
            f"for {wanted.controller}"
        )
        return None
    early, missing = has.choose(drivers.STORAGE[wanted.controller])
    if missing:
        said = f"kernel {label} has no driver {', '.join(missing)} for {wanted.controller}"
        if kernel.default:
            raise GuestError(f"{said}, and the boot loader starts it by default", _others(has))
        edits.warn(f"{said}: it will not start")
        return None
    if early and not kernel.initrd:
        said = f"kernel {label} has no initramfs, and {', '.join(early)} is not built into it"
        if kernel.default:
            raise GuestError(f"{said}: it cannot find its root", _others(has, built_in=True))
        edits.warn(f"{said}: it will not start")
        return None
    network, missing = has.choose(drivers.NETWORK[wanted.nic])
    if missing:
        edits.warn(f"kernel {label} has no driver {', '.join(missing)} for {wanted.nic}")
    if not kernel.initrd:
        return None
    names = (*early, *network)
    return Plan(kernel, has, tuple(early), names) if has.files(names) else None


def _no_kernel(edits: Edits) -> GuestError:
    places = ("/boot/efi", "/efi", "/boot")
    unified = [path for at in places for path in edits.tree.glob(f"{at}/EFI/Linux/*.efi")]
    if unified:
        return GuestError(
            f"the guest starts unified kernel images ({unified[0]}): no driver can be put "
            "into one without its signature breaking",
            "give the machine the hardware it had, or see that its images hold the drivers",
        )
    return GuestError(
        "no kernel was found in the guest's /boot",
        "see that all disks of the machine are in the replica",
    )


def _others(has: Drivers, built_in: bool = False) -> str:
    """A hint: the controllers that such a kernel could start from."""
    good: list[Controller] = []
    for controller, needs in drivers.STORAGE.items():
        early, missing = has.choose(needs)
        if not missing and not (built_in and early):
            good.append(controller)
    if not good:
        return "install a kernel with more drivers in the guest"
    return f"rollpoint replica set chooses a controller; it has drivers for {', '.join(good)}"


def check_space(edits: Edits, plans: Sequence[Plan]) -> None:
    """That all of it has room.

    Raises:
        GuestError: It has not; how much there is and how much is wanted.
    """
    tree = edits.tree
    wanted: dict[str, int] = {}
    spare: dict[str, int] = {}
    for planned in plans:
        initrd = planned.kernel.initrd
        stat = tree.stat(initrd)
        if stat is None or initramfs.has_one(tree, initrd):
            continue  # a second conversion, most probably with nothing to add
        volume = tree.resolve(initrd)[0].volume
        name = volume.name
        size = initramfs.size_of(planned.has, planned.names)
        wanted[name] = wanted.get(name, 0) + initramfs.padding(stat.size_bytes) + size
        copied = stat.size_bytes if volume.kind == "vfat" else 0  # FAT files are written anew
        spare[name] = max(spare.get(name, 0), SPARE_BYTES + copied)
        free = tree.space(initrd).bytes_free
        if free < wanted[name] + spare[name]:
            raise GuestError(
                f"{initrd.rsplit('/', 1)[0]} in the guest ({name}) has {free} bytes free; the "
                f"drivers of {len(plans)} kernels want {wanted[name] + spare[name]} or more",
                "remove kernels that are not used from the guest, or enlarge it",
            )


def write(edits: Edits, plans: Sequence[Plan]) -> None:
    """Put the drivers behind each initrd, and into the lists that the next one is made from."""
    others = dict(found for pattern in NAMES_OF_CARDS for found in _files(edits, pattern))
    resume = edits.read(TOOLS_RESUME)
    if resume is not None:  # the old one in the initramfs may name the old hardware
        others["conf/conf.d/resume"] = resume
    if plans and not any(edits.tree.exists(path) for path in MAKERS):
        edits.warn(
            "the guest's initramfs is made by a tool that is not known: "
            "it may not load the drivers that are put into it"
        )
    for planned in plans:
        initrd = planned.kernel.initrd
        segment = initramfs.segment(planned.has, planned.names, planned.early, others)
        stat = edits.tree.stat(initrd)
        if stat is None or initramfs.has(edits.tree, initrd, segment):
            continue
        zeros = bytes(initramfs.padding(stat.size_bytes))
        edits.append(initrd, zeros + segment, f"drivers: {', '.join(planned.names)}")
    default = next((p.early for p in plans if p.kernel.default), ())
    if default:
        _list_for_tools(edits, default)
        _list_for_dracut(edits, default)
        _warn_of_blacklists(edits, default)


def _files(edits: Edits, pattern: str) -> list[tuple[str, bytes]]:
    """Our own rules for the names of cards: a card may get its name in the initramfs already."""
    found = []
    for path in edits.tree.glob(pattern)[:FILES_MAX]:
        data = edits.read(path)
        if data is not None:
            found.append((path.lstrip("/"), data))
    return found


def _list_for_tools(edits: Edits, names: tuple[str, ...]) -> None:
    """initramfs-tools makes a new initramfs at the next update: it is to have them, too."""
    if not edits.tree.is_directory("/etc/initramfs-tools"):
        return
    old = edits.read(TOOLS_MODULES) or b""
    listed = {line.split()[0] for line in lines_of(old) if line.split()}
    new = [name.encode() for name in names if name.encode() not in listed]
    if new:
        end = b"" if not old or old.endswith(b"\n") else b"\n"
        data = old + end + b"".join(name + b"\n" for name in new)
        edits.replace(TOOLS_MODULES, data, "drivers that the next initramfs is to have")


def _list_for_dracut(edits: Edits, names: tuple[str, ...]) -> None:
    if not (edits.tree.exists("/etc/dracut.conf") or edits.tree.is_directory("/usr/lib/dracut")):
        return
    data = f'add_drivers+=" {" ".join(names)} "\n'.encode()
    edits.replace(DRACUT_CONF, data, "drivers that the next initramfs is to have")


def _warn_of_blacklists(edits: Edits, names: tuple[str, ...]) -> None:
    for path in edits.tree.glob("/etc/modprobe.d/*.conf")[:200]:
        for line in lines_of(edits.read(path) or b""):
            words = text(line).split()
            if len(words) > 1 and words[0] in ("blacklist", "install"):
                name = words[1].replace("-", "_")
                if name in names:
                    edits.warn(f"{path}: {words[0]} {name}: the driver may not be loaded")
